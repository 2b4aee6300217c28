"""The launches whose machine code `codegen.py` looks at: kernels, options, ways to cut a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from langevin_ext._types import (
    AcceptSpec,
    Decision,
    KineticSpec,
    Point,
    Position,
    StepSpec,
    StepStats,
)
from langevin_ext.backends import triton as backend

PLACE = Position(3, 5, 0, 7)
INFINITY = float("inf")
SINGLE, BFLOAT, DOUBLE = torch.float32, torch.bfloat16, torch.float64


@dataclass(frozen=True)
class Variant:
    """A launch that is worth a row for each of its kernels."""

    name: str
    cols: int
    dtype: torch.dtype
    noise: str
    """``"exact"``, ``"approximate"`` or none."""
    vectors: int
    """What its `tiling` asks for."""
    elements: dict[str, float]
    """How many numbers of the state's dtype a kernel moves for each coordinate; a kernel that is
    not named moves a few for each chain."""
    launch: Callable[[int, Position], None]
    """Takes a number of chains and a position."""


def _like(chains: int, cols: int, dtype: torch.dtype, count: int) -> list[torch.Tensor]:
    return [torch.zeros(chains, cols, dtype=dtype) for _ in range(count)]


def step(
    name: str,
    cols: int,
    dtype: torch.dtype = SINGLE,
    *,
    grad: torch.dtype | None = None,
    stats: bool = False,
    out: bool = False,
    approximate: bool = False,
    **options: Any,
) -> Variant:
    """One step; an option ``"each"`` is a value per chain."""
    given = {
        "drift": 0.1,
        "diffusion": 0.3,
        "max_grad_norm": INFINITY,
        "per_coordinate": False,
        "noise_power": 0.5,
        "reference_precision": 0.0,
        "low": -INFINITY,
        "high": INFINITY,
    } | options

    def launch(chains: int, place: Position) -> None:
        x, y = _like(chains, cols, dtype, 2)
        each = {k: torch.ones(chains, dtype=dtype) for k, v in given.items() if v == "each"}
        spec = StepSpec(**given | each, position=place._replace(approximate=approximate))
        record = StepStats.empty(chains, dtype=dtype) if stats else None
        backend.step_(x, x.to(grad or dtype), spec, record, y if out else None)

    share = (grad or dtype).itemsize / dtype.itemsize
    noise = "approximate" if approximate else "exact"
    elements = {"step_tile": 2 + share, "partial_sums": share}
    return Variant(name, cols, dtype, noise, 8, elements, launch)


def accept(
    name: str, cols: int, dtype: torch.dtype = SINGLE, *, bound: float = 1.0, known: bool = False
) -> Variant:
    """One accept-or-reject, every chain accepted."""

    def launch(chains: int, place: Position) -> None:
        x, grad, y, grad_y = _like(chains, cols, dtype, 4)
        energy, energy_y = (torch.zeros(chains, dtype=dtype) for _ in range(2))
        ratio, total = (torch.zeros(chains, dtype=DOUBLE) for _ in range(2))
        spec = AcceptSpec(0.1, 0.3, bound, ratio if known else None, place)
        decision = Decision(total, torch.zeros(chains, dtype=torch.bool))
        backend.accept_(Point(x, grad, energy), Point(y, grad_y, energy_y), spec, decision)

    elements = {"accept_tile": 4 if known else 6, "product_parts": 4, "select_tile": 4}
    return Variant(name, cols, dtype, "", 4, elements, launch)


def kinetic(
    name: str,
    cols: int,
    coefficients: tuple[float, ...],
    moved: int,
    dtype: torch.dtype = SINGLE,
    *,
    energies: bool = False,
    stats: bool = False,
    each: bool = False,
    approximate: bool = False,
) -> Variant:
    """One pass of kick, drift, keep, spread, second kick and second drift."""

    def launch(chains: int, place: Position) -> None:
        x, v, grad = _like(chains, cols, dtype, 3)
        values = [torch.ones(chains, dtype=dtype) if each and c else c for c in coefficients]
        position = place._replace(approximate=approximate) if coefficients[3] else None
        total = torch.zeros(2, chains, dtype=DOUBLE) if energies else None
        record = StepStats.empty(chains, dtype=dtype) if stats else None
        backend.kinetic_(x, v, grad, KineticSpec(*values, position), total, record)

    noise = ("approximate" if approximate else "exact") if coefficients[3] else ""
    return Variant(name, cols, dtype, noise, 4, {"kinetic_tile": moved}, launch)


def draw(name: str, cols: int) -> Variant:
    """The noise alone."""

    def launch(chains: int, place: Position) -> None:
        getattr(backend, name)(torch.zeros(chains, cols), place)

    return Variant(name, cols, SINGLE, "exact", 8, {"draw_tile": 1}, launch)


LENGTHS = 1, 2, 3, 4, 10, 64, 100, 128, 256, 784, 1000, 1024, 3072, 4096, 12288, 16384, 150528
CLIPPED: dict[str, Any] = {"max_grad_norm": 1.0, "low": -1.0, "high": 1.0}
EACH: dict[str, Any] = dict.fromkeys(("drift", "diffusion", "max_grad_norm"), "each")
USUAL, HALF = "clipped, clamped", "clipped, clamped, bfloat16 gradient"
# Coefficients, and the numbers moved: x, v and g are read, x and v are written; but what is not
# needed is not read, and what does not change is not written.
BAOA = (0.1, 0.2, 0.9, 0.4, 0.0, 0.2), 5
EVERYTHING = (0.1, 0.2, 0.9, 0.4, 0.1, 0.2), 5
NEW = (0.0, 0.0, 0.0, 1.0, 0.1, 0.2), 4
LEAPFROG = (0.1, 0.2, 1.0, 0.0, 0.0, 0.0), 5
KICK = (0.1, 0.0, 1.0, 0.0, 0.0, 0.0), 3
RECORDED_KICK = KICK[0], 4
RECORDS = {"energies": True, "stats": True}

STEPS = (
    *(step(USUAL, n, **CLIPPED) for n in LENGTHS),
    *(step(USUAL, n, approximate=True, **CLIPPED) for n in LENGTHS),
    step(USUAL, 1023, **CLIPPED),
    step("clipped, clamped, out of place", 64, out=True, **CLIPPED),
    step("clipped, clamped, out of place", 3072, out=True, **CLIPPED),
    step("no clip, no clamp", 3072),
    step("clipped, clamped, with statistics", 3072, stats=True, **CLIPPED),
    step("clipped, clamped, with statistics", 64, stats=True, **CLIPPED),
    step("per coordinate", 3072, per_coordinate=True, **CLIPPED),
    step(
        "everything, a value per chain", 3072,
        stats=True, reference_precision=0.5, **CLIPPED | EACH,
    ),
    *(step(HALF, n, grad=BFLOAT, **CLIPPED) for n in (64, 784, 3072, 4096)),
    *(step(HALF, n, grad=BFLOAT, approximate=True, **CLIPPED) for n in (3072, 4096)),
    *(step("clipped, clamped, float64", n, DOUBLE, **CLIPPED) for n in (64, 3072, 8192, 150528)),
)  # fmt: skip
DRAWS = tuple(draw(law, n) for law in ("normal_", "uniform_") for n in (2, 64, 3072))
ACCEPTS = (
    *(accept("clipped", n) for n in (1, 2, 3, 10, 64, 100, 256, 784, 1024, 3072, 8192, 12288)),
    *(accept("no clip", n, bound=INFINITY) for n in (2, 64, 784, 3072, 8192, 12288, 150528)),
    *(accept("a known ratio", n, known=True) for n in (2, 64, 3072, 12288)),
    *(accept("clipped, float64", n, DOUBLE) for n in (64, 3072, 4096, 12288)),
)
PASSES = (
    *(kinetic("BAOA", n, *BAOA) for n in (1, 2, 3, 10, 64, 100, 784, 3072, 8192, 150528)),
    *(kinetic("BAOA", n, *BAOA, approximate=True) for n in (64, 3072, 150528)),
    *(kinetic("all, with records", n, *EVERYTHING, **RECORDS) for n in (3, 64, 784, 3072, 150528)),
    kinetic("all, with records, a value per chain", 3072, *EVERYTHING, each=True, **RECORDS),
    *(kinetic("a new velocity, with records", n, *NEW, **RECORDS) for n in (64, 3072)),
    *(kinetic("leapfrog", n, *LEAPFROG) for n in (64, 3072)),
    kinetic("a kick", 3072, *KICK),
    kinetic("a kick, with records", 3072, *RECORDED_KICK, **RECORDS),
    *(kinetic("BAOA, float64", n, *BAOA, DOUBLE) for n in (64, 3072)),
    kinetic("all, with records, float64", 8192, *EVERYTHING, DOUBLE, **RECORDS),
)
VARIANTS = (*STEPS, *ACCEPTS, *PASSES, *DRAWS)

QUICK = tuple(
    v
    for v in VARIANTS
    if (v.name == USUAL and v.noise == "exact" and v.cols in (2, 64, 784, 3072, 16384, 150528))
    or (v.name == USUAL and v.noise == "approximate" and v.cols in (64, 784, 3072, 16384, 150528))
    or (v in STEPS and v.cols == 3072 and v.dtype == SINGLE and v.noise == "exact")
    or (v in DRAWS and v.cols == 3072 and v.name == "normal_")
    or (v in ACCEPTS and v.dtype == SINGLE and v.cols in (2, 64, 3072, 12288))
    or (v in PASSES and v.dtype == SINGLE and v.cols == 3072)
    or (v.name == "all, with records" and v.cols == 150528)
    or (v.cols == 8192 and v.dtype == DOUBLE)
)
"""What the ordinary tests compile: every kernel, every option, each way to cut a row."""
