"""The kernel of the step's derivative against its closed form in torch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from langevin_ext import Noise, langevin_step

from .conftest import ISAS, NO_NATIVE, ON_CPU, assert_same_bits, native, normals

pytestmark = [
    pytest.mark.skipif(not ON_CPU, reason="a CPU's kernels"),
    pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native backend: {NO_NATIVE}"),
]

LEARNED = "x", "grad", "drift", "diffusion", "max_grad_norm"
SHAPES = (
    (1, 1),
    (7, 1),
    (40, 2),
    (9, 3),
    (300, 4),
    (5, 17),
    (3, 63),
    (3, 64),
    (4, 65),
    (2, 5000),
    (1, 9000),
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "drift alone": {"noise_power": 0.0},
    "noise by gamma": {"noise_power": 1.0},
    "coordinates": {"per": "coordinate"},
    "coordinates, drift alone": {"per": "coordinate", "noise_power": 0.0},
    "coordinates, noise by gamma": {"per": "coordinate", "noise_power": 1.0},
    "clamped": {"clamp": (-0.4, 0.6)},
    "clamped coordinates": {"clamp": (None, 0.3), "per": "coordinate"},
    "reference": {"reference_precision": 0.7},
    "all": {"reference_precision": 0.7, "clamp": (-0.4, None), "noise_power": 1.0},
    "no noise": {"noise": None, "clamp": (-0.5, 0.5)},
}  # fmt: skip


def leaves(shape: tuple[int, ...], dtype: torch.dtype, *, each: bool) -> dict[str, Tensor]:
    """The five arguments; half of the chains are clipped."""
    rows = shape[0]
    c = 0.5 + torch.rand(rows, generator=torch.Generator().manual_seed(3), dtype=dtype)
    size = max(1, shape[1:].numel() if isinstance(shape, torch.Size) else shape[1]) ** 0.5
    values = {
        "x": normals(*shape, dtype=dtype),
        "grad": normals(*shape, seed=1, dtype=dtype) * c.view(-1, 1),
        "drift": 0.3 * c,
        "diffusion": 0.8 * c.flip(0),
        "max_grad_norm": torch.full_like(c, size) if shape[1] > 1 else 0.5 * c,
    }
    if not each:
        values |= {name: values[name][0].clone() for name in LEARNED[2:]}
    return {name: t.requires_grad_() for name, t in values.items()}


def gradients(
    values: dict[str, Tensor], names: tuple[str, ...], backend: str, **options: Any
) -> list[Tensor]:
    """Of a weighted sum of the step, in what is named; the others are constants."""
    given: dict[str, Any] = {n: t if n in names else t.detach() for n, t in values.items()}
    noise: Any = options.pop("noise", Noise(5, first_chain=9, step=2**33))
    if noise is None:
        given["diffusion"] = 0.0
    if options.get("per") == "coordinate":
        given["max_grad_norm"] = given["max_grad_norm"] * 0.7
    y = langevin_step(**given, noise=noise, backend=backend, **options)
    weights = normals(*y.shape, seed=2, dtype=y.dtype)
    wanted = [values[n] for n in names if not (noise is None and n == "diffusion")]
    return list(torch.autograd.grad((weights * y).sum(), wanted))


def sums(values: dict[str, Tensor]) -> float:
    """How many terms a coefficient's gradient has: rounding of sums is relative to their number."""
    return float(values["x"].numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_has_the_closed_form(
    shape: tuple[int, int], option: str, dtype: torch.dtype
) -> None:
    for each in (False, True):
        values = leaves(shape, dtype, each=each)
        got = gradients(values, LEARNED, "native", **OPTIONS[option])
        want = gradients(values, LEARNED, "reference", **OPTIONS[option])
        for a, b in zip(got, want, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            eps = torch.finfo(dtype).eps * max(30.0, 3 * sums(values) ** 0.5)
            torch.testing.assert_close(a, b, rtol=eps, atol=eps * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", [(40, 2), (3, 4100)], ids=str)
def test_what_is_not_wanted_changes_nothing(shape: tuple[int, int], option: str) -> None:
    """Each gradient alone, and in pairs, has the bits that it has among all five."""
    values = leaves(shape, torch.float32, each=True)
    options = OPTIONS[option]
    names = tuple(n for n in LEARNED if not (options.get("noise", 1) is None and n == "diffusion"))
    everything = dict(zip(names, gradients(values, names, "native", **options), strict=True))
    for some in (*itertools.combinations(names, 1), *itertools.combinations(names, 2)):
        for name, got in zip(some, gradients(values, some, "native", **options), strict=True):
            assert_same_bits(got, everything[name], name)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", [(2000, 2), (300, 3), (37, 70), (5, 5000)], ids=str)
def test_no_bit_depends_on_batch_threads_or_instruction_set(
    shape: tuple[int, int], option: str
) -> None:
    values = leaves(shape, torch.float32, each=True)
    names = LEARNED if OPTIONS[option].get("noise", 1) is not None else (*LEARNED[:3], LEARNED[4])
    want = gradients(values, names, "native", **OPTIONS[option])
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        got = gradients(values, names, "native", **OPTIONS[option])
        for a, b in zip(got, want, strict=True):
            assert_same_bits(a, b, threads)
    for isa in ISAS:
        native.use_isa(isa)
        got = gradients(values, names, "native", **OPTIONS[option])
        for a, b in zip(got, want, strict=True):
            assert_same_bits(a, b, isa)
