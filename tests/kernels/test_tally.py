"""The kernel that adds up records: the reference's sums, but for the last bit of an exponential."""

from __future__ import annotations

import pytest
import torch

from langevin_ext._types import Tally
from langevin_ext.backends import reference, triton as kernels

from ..test_tally import record
from .conftest import DEVICE, there

HOST = torch.device("cpu")


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("chains", [1, 255, 600])
def test_the_kernels_sums_are_the_references(
    chains: int, dtype: torch.dtype, optional: bool
) -> None:
    stats, ratio, weight = record(chains, dtype)
    more = (ratio, weight) if optional else (None, None)
    on_device = there((stats, *more))
    ours, theirs = (
        Tally.zeros(chains, device, acceptance=optional, weight=optional)
        for device in (DEVICE, HOST)
    )
    for _ in range(3):
        kernels.tally_(ours, *on_device)
        reference.tally_(theirs, stats, *more)
    for one, other in zip(there(tuple(ours), HOST), theirs, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-14, atol=0, equal_nan=True)


def test_whether_all_is_finite() -> None:
    stats, _, energy = record(600)
    stats, energy = there(stats), there(energy)
    assert kernels.all_finite(stats, energy)
    energy[599] = torch.inf
    assert not kernels.all_finite(stats, energy)
    energy[599] = 0
    stats.finite[0] = False
    assert not kernels.all_finite(stats, energy)
