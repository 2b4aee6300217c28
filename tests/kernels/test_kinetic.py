"""Passes over positions and velocities in the kernels: the reference's bits, and the kinetic
energies, sums of float64 in another order, within 8 ulp of it.

Gradients are multiples of 1/8, so their norms are the reference's bits too.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from langevin_ext import StepStats
from langevin_ext._types import KineticSpec, Position
from langevin_ext.backends import reference, triton as kernels

from ..conftest import assert_same_bits
from .conftest import DEVICE, INTERPRETED, eighths, normals, there

INF, NAN = math.inf, math.nan
SINGLE, DOUBLE = torch.float32, torch.float64
# Several chains to a tile, one, and a chain cut into tiles: float32 after 8192, float64 after 4096.
SHAPES = (
    (600, 1), (300, 2), (300, 3), (130, 10), (40, 64), (9, 100), (5, 129), (5, 256), (3, 784),
    (1, 8192), (2, 8193), (2, 20001),
)  # fmt: skip
EACH_PATH = (300, 3), (3, 784), (2, 8193)
PLACE = Position(0x1234567890ABCDEF, 2**32 - 1, 16, 2**31 - 3)


def options(rows: int, dtype: torch.dtype = SINGLE) -> dict[str, KineticSpec]:
    """Passes of the schemes that there are, and of operations alone."""
    each = torch.linspace(0.1, 1.0, rows, dtype=dtype)
    return {
        "BAOA": KineticSpec(0.1, 0.2, 0.9, 0.4, 0.0, 0.2, PLACE),
        "everything, a value per chain": KineticSpec(
            each, each / 2, 1 - each / 3, each.sqrt(), each / 5, each / 7, PLACE
        ),
        "everything, some values per chain": KineticSpec(0.1, each, 0.9, each, 1 / 3, 0.2, PLACE),
        "a new velocity": KineticSpec(0.0, 0.0, 0.0, 1.0, 0.1, 0.2, PLACE),
        "leapfrog": KineticSpec(0.1, 0.2, 1.0, 0.0, 0.0, 0.0, None),
        "a kick": KineticSpec(0.1, 0.0, 1.0, 0.0, 0.0, 0.0, None),
        "a drift": KineticSpec(0.0, 0.0, 1.0, 0.0, 0.0, 0.2, None),
        "friction": KineticSpec(0.0, 0.1, 0.5, 0.0, 0.3, 0.0, None),
        "a velocity forgotten": KineticSpec(0.0, 0.1, 0.0, 0.0, 0.0, 0.2, None),
        "noise alone": KineticSpec(0.0, 0.0, 1.0, 0.3, 0.0, 0.0, PLACE),
        "nothing": KineticSpec(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, PLACE),
    }


def case(rows: int, cols: int, dtype: torch.dtype = SINGLE) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, velocities and a gradient."""
    x, v = (normals(rows, cols, seed=seed).to(dtype) for seed in (0, 1))
    return x, v, eighths(rows, cols).to(dtype)


def passed(
    x: Tensor,
    v: Tensor,
    grad: Tensor | None,
    spec: KineticSpec,
    *,
    records: bool = True,
    backend: Any = kernels,
) -> tuple[Tensor, Tensor, Tensor | None, StepStats | None]:
    """Positions and velocities after a pass over copies, and the records, all on the host."""
    device = DEVICE if backend is kernels else torch.device("cpu")
    x, v, grad, spec = (there(t, device) for t in (x, v, grad, spec))
    energies = stats = None
    if records:
        energies = torch.full((2, len(x)), 7.0, dtype=DOUBLE, device=device)
        stats = StepStats.empty(len(x), device, x.dtype)
        stats.finite.view(torch.uint8).fill_(7)  # neither of its values
    backend.kinetic_(x, v, grad, spec, energies, stats)
    host = torch.device("cpu")
    return x.cpu(), v.cpu(), there(energies, host), there(stats, host)


def check(
    x: Tensor, v: Tensor, grad: Tensor | None, spec: KineticSpec, what: object = ""
) -> StepStats:
    """The reference's bits with records and without, and in the statistics."""
    want = passed(x, v, grad, spec, backend=reference)
    got, alone = passed(x, v, grad, spec), passed(x, v, grad, spec, records=False)
    for a, b, c in zip(got[:2], alone[:2], want[:2], strict=True):
        assert_same_bits(*(t.where(t == t, NAN) for t in (a, c)), what)  # whichever NaN it is
        assert_same_bits(*(t.where(t == t, NAN) for t in (b, c)), (what, "without records"))
    assert got[2] is not None
    assert want[2] is not None
    eps = torch.finfo(DOUBLE).eps
    torch.testing.assert_close(got[2], want[2], rtol=8 * eps, atol=0, equal_nan=True)
    assert got[3] is not None
    assert want[3] is not None
    for name, a, b in zip(StepStats._fields, got[3], want[3], strict=True):
        assert_same_bits(*(t.where(t == t, NAN) if name == "grad_norm" else t for t in (a, b)))
    return got[3]


# ---- the reference's bits -----------------------------------------------------------------------


@pytest.mark.parametrize("option", ["BAOA", "everything, a value per chain", "a new velocity"])
def test_every_shape_has_the_bits_of_the_reference(option: str) -> None:
    for shape in SHAPES:
        check(*case(*shape), options(shape[0])[option], shape)


@pytest.mark.parametrize("option", list(options(1)))
def test_every_pass_has_the_bits_of_the_reference(option: str) -> None:
    for shape in EACH_PATH:
        check(*case(*shape), options(shape[0])[option], shape)


@pytest.mark.parametrize("option", ["BAOA", "everything, a value per chain", "a new velocity"])
def test_float64_has_the_bits_of_the_reference(option: str) -> None:
    for shape in ((300, 3), (3, 784), (2, 4096), (2, 4097)):
        check(*case(*shape, DOUBLE), options(shape[0], DOUBLE)[option], shape)


def test_a_pass_without_kicks_needs_no_gradient() -> None:
    for shape in EACH_PATH:
        x, v, _ = case(*shape)
        stats = check(x, v, None, options(shape[0])["friction"]._replace(second_kick=0.0), shape)
        assert bool((stats.grad_norm == 0).all())


def test_numbers_keep_their_precision() -> None:
    """A Python number reaches a float64 state as float64, and a float32 state rounded once."""
    third = 1 / 3
    for dtype in (SINGLE, DOUBLE):
        check(*case(3, 5, dtype), KineticSpec(*(third,) * 6, PLACE), dtype)
        check(*case(3, 5, dtype), KineticSpec(*(1e-41,) * 6, PLACE), "tiny")


def test_the_sums_of_a_very_long_chain() -> None:
    """More tiles than are added up at a time; the terms are integers, so the sums are exact."""
    rows, tiles = 3, 2500
    sums = torch.arange(4 * rows * tiles, dtype=DOUBLE).view(4, rows, tiles)
    sums[3] = 0
    sums[3, 1, 2400] = 1  # a coordinate that is not finite
    energies, stats = torch.empty(2, rows, dtype=DOUBLE, device=DEVICE), StepStats.empty(rows)
    stats = there(stats)
    kernels.kernels.finish_rows[(rows,)](
        sums.to(DEVICE), energies, stats.grad_norm, stats.gamma, stats.finite.view(torch.uint8),
        rows, TILES=tiles, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    assert_same_bits(energies.cpu(), sums[:2].sum(2) / 2)
    assert_same_bits(stats.grad_norm.cpu(), reference.philox.sqrt(sums[2].sum(1).float()))
    assert stats.gamma.tolist() == [1, 1, 1]
    assert stats.finite.tolist() == [True, False, True]


# ---- values that are not finite -----------------------------------------------------------------


def test_the_rules_for_values_that_are_not_finite() -> None:
    """A chain of its own for each; no clip or clamp, so they spread as arithmetic has it. Only a
    velocity that is forgotten does not matter, whatever it was."""
    values = NAN, INF, -INF, 3e38
    for cols, option in (
        (3, "BAOA"), (3, "everything, a value per chain"), (3, "a new velocity"),
        (784, "a new velocity"), (8193, "BAOA"),
    ):  # fmt: skip
        tensors = case(12, cols)
        for i, value in enumerate(3 * values):
            tensors[i // 4][i, cols // 2] = value
        finite = check(*tensors, options(12)[option], (cols, option)).finite
        assert not bool(finite[:3].any())
        assert bool(finite[4:8].all()) or option != "a new velocity"


# ---- memory and the position --------------------------------------------------------------------


@pytest.mark.parametrize("option", ["BAOA", "everything, a value per chain"])
def test_a_gradient_may_be_what_is_written(option: str) -> None:
    """The positions, the velocities, or a view shifted from either."""
    for shape in ((300, 3), (2, 8193)):
        count = shape[0] * shape[1]
        spec = there(options(shape[0])[option])
        for which in (0, 1):
            for shift in (0, 1):
                buffer = there(normals(count + shift))
                other, own = there(normals(*shape, seed=2)), buffer[shift:].view(shape)
                grad = buffer[:count].view(shape)
                x, v = (own, other) if which == 0 else (other, own)
                want = passed(x, v, grad, spec)
                kernels.kinetic_(x, v, grad, spec, None, None)
                for a, b in zip((x, v), want[:2], strict=True):
                    assert_same_bits(a.cpu(), b, (shape, which, shift))


def test_coefficients_may_be_views_of_what_is_written() -> None:
    for shape in EACH_PATH:
        rows = shape[0]
        x, v, grad = there(case(*shape))
        spec = there(options(rows)["everything, a value per chain"])
        spec = spec._replace(kick=x.view(-1)[:rows], second_drift=v.view(-1)[:rows])
        want = passed(x, v, grad, spec)
        kernels.kinetic_(x, v, grad, spec, None, None)
        for a, b in zip((x, v), want[:2], strict=True):
            assert_same_bits(a.cpu(), b, shape)


@pytest.mark.parametrize("shape", EACH_PATH)
def test_a_chain_does_not_depend_on_its_batch(shape: tuple[int, int]) -> None:
    """Nor on whether its position is numbers or on a device."""
    tensors, spec = case(*shape), options(shape[0])["BAOA"]
    x, v, energies, stats = passed(*tensors, spec)
    assert energies is not None
    assert stats is not None
    origin = torch.tensor([PLACE.seed, PLACE.step - 5], device=DEVICE)
    for first, last in ((0, 1), (1, shape[0])):
        place = Position(0, 5, PLACE.stream, PLACE.first_chain + first, origin)
        rows = slice(first, last)
        got = passed(*(t[rows] for t in tensors), spec._replace(position=place))
        assert got[2] is not None
        assert got[3] is not None
        assert_same_bits(got[2], energies[:, rows])
        for a, b in zip((*got[:2], *got[3]), (x, v, *stats), strict=True):
            assert_same_bits(a, b[rows])


compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter has neither streams nor graphs")


@compiled
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("shape", EACH_PATH)
def test_nothing_waits_for_the_device(shape: tuple[int, int]) -> None:
    spec = there(options(shape[0])["everything, a value per chain"])
    tensors = there(case(*shape))
    energies = torch.empty(2, shape[0], dtype=DOUBLE, device=DEVICE)
    stats = StepStats.empty(shape[0], DEVICE)
    kernels.kinetic_(*tensors, spec, energies, stats)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.kinetic_(*tensors, spec, energies, stats)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@compiled
def test_approximate_noise_moves_velocities_a_little() -> None:
    """By the spread times 1e-3 at most (see test_noise), and the roundings of what may be fused."""
    tensors, spec = case(9, 784), options(9)["a new velocity"]
    near = passed(*tensors, spec._replace(position=PLACE._replace(approximate=True)))
    exact = passed(*tensors, spec)
    assert float((near[1] - exact[1]).abs().max()) <= 1e-3 + 1e-5
