"""Sums over the steps of every chain, and the question whether all is finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from langevin_ext import StepStats, backends
from langevin_ext._types import Tally
from langevin_ext.backends import reference

INF, NAN = math.inf, math.nan


def record(chains: int, dtype: torch.dtype = torch.float32) -> tuple[StepStats, Tensor, Tensor]:
    """A step's statistics, log ratios and weights, with what may stand there besides numbers."""
    generator = torch.Generator().manual_seed(chains)
    norm, gamma, ratio, weight = torch.rand(4, chains, generator=generator, dtype=torch.float64)
    ratio = 4 * ratio - 2
    for values in (norm, ratio):
        values[2:5] = torch.tensor([NAN, INF, -INF])[: max(0, chains - 2)]
    gamma[1::2] = 1
    stats = StepStats(norm.to(dtype), gamma.to(dtype), torch.ones(chains, dtype=torch.bool))
    return stats, ratio, weight


def test_known_sums() -> None:
    sums = Tally.zeros(2, torch.device("cpu"), acceptance=True, weight=True)
    ones = torch.ones(2, dtype=torch.bool)
    steps = (
        ([1.0, 2.0], [0.5, 1.0], [0.0, -INF], [0.25, 3.0]),
        ([0.5, NAN], [1.0, 0.25], [-math.log(4), 7.0], [1.0, 1.0]),
    )
    for norm, gamma, ratio, weight in steps:
        stats = StepStats(torch.tensor(norm), torch.tensor(gamma), ones)
        doubles = [torch.tensor(v, dtype=torch.float64) for v in (ratio, weight)]
        backends.resolve("auto", "cpu").tally_(sums, stats, *doubles)
    expected = [1.5, NAN], [1.5, 1.25], [1.0, 1.0], [1.25, 1.0], [1.25, 4.0]
    for total, values in zip(sums, expected, strict=True):
        torch.testing.assert_close(
            total, torch.tensor(values, dtype=torch.float64), rtol=1e-15, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("chains", [0, 1, 7, 1000])
def test_the_native_sums_are_the_references(
    chains: int, dtype: torch.dtype, optional: bool
) -> None:
    native = backends.resolve("native", "cpu")
    ours, theirs = (
        Tally.zeros(chains, torch.device("cpu"), acceptance=optional, weight=optional)
        for _ in range(2)
    )
    stats, ratio, weight = record(chains, dtype)
    for _ in range(3):
        for sums, backend in ((ours, native), (theirs, reference)):
            backend.tally_(sums, stats, *((ratio, weight) if optional else (None, None)))
    for one, other in zip(ours, theirs, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-14, atol=0, equal_nan=True)


def test_a_record_of_another_layout_is_read_as_torch_would() -> None:
    stats, ratio, weight = record(6)
    layouts = StepStats(
        stats.grad_norm[:1].expand(6), stats.gamma.repeat_interleave(2)[::2], stats.finite
    )
    ours, theirs = (
        Tally.zeros(6, torch.device("cpu"), acceptance=True, weight=True) for _ in range(2)
    )
    single = ratio.float(), weight[:1]
    backends.resolve("native", "cpu").tally_(ours, layouts, *single)
    reference.tally_(theirs, layouts, *single)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=0, equal_nan=True)
    with pytest.raises(RuntimeError, match="expanded size"):
        backends.resolve("native", "cpu").tally_(ours, record(5)[0], None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_one_chain_that_is_not_finite_is_found(backend: str, dtype: torch.dtype) -> None:
    chosen = backends.resolve(backend, "cpu")
    for chains in (1, 2, 33, 1000):
        stats = StepStats.empty(chains)
        stats.finite.fill_(True)
        energy = torch.full((chains,), torch.finfo(dtype).max, dtype=dtype)  # their sum is infinite
        assert chosen.all_finite(stats, energy)
        for chain in {0, chains // 2, chains - 1}:
            for value in (NAN, INF, -INF):
                bad = energy.clone()
                bad[chain] = value
                assert not chosen.all_finite(stats, bad)
            stats.finite[chain] = False
            assert not chosen.all_finite(stats, energy)
            stats.finite[chain] = True
    nobody = StepStats.empty(0)
    assert chosen.all_finite(nobody, torch.empty(0, dtype=dtype))
