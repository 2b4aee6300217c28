"""The kernels on a GPU, in Triton: one pass over memory, the noise made in registers.

With the same norms the bits are the reference's, but for sums in another order: norms, mean clip
factors and kinetic energies are within 8 ulp of its, log ratios as `kernels.accept` says. With
``TRITON_INTERPRET=1`` the same kernels run on a CPU in Triton's interpreter, slowly.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..._types import AcceptSpec, Decision, KineticSpec, Point, Position, StepSpec, StepStats, Tally
from .._memory import apart, each, gradient_apart

if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 6):
    raise ImportError(f"triton {triton.__version__} is too old: 3.6 is needed")

from . import kernels
from ._launch import INTERPRETED, kind, number_and_each, on, place, tiling

_INFINITY = float("inf")
_MOST_PARTS = 512  # partial sums of a row; every tile of the row adds them up, from the L2 cache
_DEVICES = {"cpu": INTERPRETED, "cuda": True}


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on the device; None if it can."""
    if _DEVICES.get(device.type):
        return None
    hint = "; TRITON_INTERPRET=1 runs them in Triton's interpreter" if device.type == "cpu" else ""
    return f"its kernels are for CUDA, not for {device.type}{hint}"


def _parts(cols: int, block: int) -> tuple[int, int]:
    """Of how many tiles a partial sum of a row is, and how many sums there are."""
    blocks = -(-cols // block)
    rounds = -(-blocks // _MOST_PARTS)
    return rounds, -(-blocks // rounds)


def step_(
    x: Tensor, grad: Tensor, step: StepSpec, stats: StepStats | None, out: Tensor | None = None
) -> None:
    """One step of ``x`` (B, ...), in place or to ``out``; all of them contiguous."""
    rows = x.shape[0]
    cols = x.numel() // rows
    written = (x if out is None else out, *(stats or ()))
    grad = gradient_apart(grad, written[0])
    if out is not None:
        x = gradient_apart(x, out)  # or is itself what is written
    drift, drifts = number_and_each(step.drift, *written)
    diffusion, diffusions = number_and_each(step.diffusion, *written)
    bound, bounds = number_and_each(step.max_grad_norm, *written)
    clip = None
    if bounds is not None or bound != _INFINITY:
        clip = "coordinate" if step.per_coordinate else "sample"
    norms, gammas, finites = stats or (None, None, None)
    if finites is not None:
        finites = finites.view(torch.uint8)

    cut = tiling(cols, x.element_size())
    rounds, parts = _parts(cols, cut.block)
    square_sums = gamma_sums = None
    noise = kind(step.position)
    with on(x.device):
        if cols > cut.block and (clip == "sample" or stats is not None):
            square_sums = x.new_empty(rows, parts)
            if clip == "coordinate":
                gamma_sums = torch.empty_like(square_sums)
            kernels.partial_sums[(rows * parts,)](
                grad, finites, bound, bounds, square_sums, gamma_sums,
                D=cols, BLOCK=cut.block, ROUNDS=rounds, PARTS=parts,
                num_warps=cut.warps, enable_fp_fusion=False,
            )  # fmt: skip
        kernels.step_tile[(cut.tiles(rows, cols),)](
            x, grad, out, norms, gammas, finites,
            drift, diffusion, bound, drifts, diffusions, bounds,
            step.reference_precision, step.low, step.high, square_sums, gamma_sums,
            *place(step.position, x), rows,
            D=cols, R=cut.rows, BLOCK=cut.block, PARTS=parts,
            CLIP=clip, TWICE_POWER=int(2 * step.noise_power) if clip else 0,
            HAS_REFERENCE=step.reference_precision != 0,
            HAS_CLAMP=step.low != -_INFINITY or step.high != _INFINITY,
            NOISE=noise,
            num_warps=cut.warps, enable_fp_fusion=noise == "approximate",
        )  # fmt: skip


def accept_(at: Point, proposal: Point, accept: AcceptSpec, decision: Decision) -> None:
    """Move each chain ``at`` some point to its proposal, or leave it, in place."""
    x, grad, energy = at
    y, grad_y, energy_y = proposal
    rows = x.shape[0]
    cols = x.numel() // rows
    written = (*at, *decision)
    drift, drifts = number_and_each(accept.drift, *written)
    diffusion, diffusions = number_and_each(accept.diffusion, *written)
    bound, bounds = number_and_each(accept.max_grad_norm, *written)
    coefficients = drift, diffusion, bound, drifts, diffusions, bounds
    log_ratios = accept.log_ratio
    if log_ratios is not None:  # which may be recorded where it is read
        log_ratios = gradient_apart(apart(log_ratios, *at), decision.log_ratio)
    clip = log_ratios is None and (bounds is not None or bound != _INFINITY)
    accepted = decision.accepted.view(torch.uint8)

    cut = tiling(cols, x.element_size(), 4)
    options: dict[str, Any] = {"num_warps": cut.warps, "enable_fp_fusion": False}
    fates = decision.log_ratio, accepted, *place(accept.position, x)
    with on(x.device):
        if cols <= cut.block:
            kernels.accept_tile[(cut.tiles(rows, cols),)](
                x, grad, y, grad_y, *coefficients, log_ratios, energy, energy_y, *fates, rows,
                D=cols, R=cut.rows, BLOCK=cut.block, CLIP=clip, **options,
            )  # fmt: skip
            return
        rounds, parts = _parts(cols, cut.block)
        sums = None
        if log_ratios is None:
            sums = energy.new_empty(5, rows, parts, dtype=torch.float64)
            kernels.product_parts[(rows * parts,)](
                x, grad, y, grad_y, sums, rows,
                D=cols, BLOCK=cut.block, ROUNDS=rounds, PARTS=parts, **options,
            )  # fmt: skip
        kernels.decide_rows[(rows,)](
            x, *coefficients, log_ratios, sums, energy, energy_y, *fates, rows,
            D=cols, PARTS=parts, CLIP=clip, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
        kernels.select_tile[(cut.tiles(rows, cols),)](
            x, grad, y, grad_y, accepted, D=cols, BLOCK=cut.block, **options
        )


def kinetic_(
    x: Tensor,
    v: Tensor,
    grad: Tensor | None,
    spec: KineticSpec,
    energies: Tensor | None,
    stats: StepStats | None,
) -> None:
    """One pass over positions and velocities (B, ...), in place; all of them contiguous."""
    rows = x.shape[0]
    cols = x.numel() // rows
    if grad is not None:
        grad = gradient_apart(gradient_apart(grad, x), v)
    written = [t for t in (x, v, energies, *(stats or ())) if t is not None]
    taken = [number_and_each(value, *written) for value in spec[:6]]
    numbers, each = zip(*taken, strict=True)
    kick, drift, keep, spread, *second = (number != 0 or t is not None for number, t in taken)
    refresh = spread or taken[2] != (1.0, None)
    noise = kind(spec.position) if refresh else None
    norms, gammas, finites = stats or (None, None, None)
    if finites is not None:
        finites = finites.view(torch.uint8)
    records = energies, norms, gammas, finites

    cut = tiling(cols, x.element_size(), 4)
    tiles = -(-cols // cut.block)
    sums = None
    if tiles > 1 and (energies is not None or stats is not None):
        sums = x.new_empty(4, rows, tiles, dtype=torch.float64)
    with on(x.device):
        kernels.kinetic_tile[(cut.tiles(rows, cols),)](
            x, v, grad, *records, sums, *numbers, *each, *place(spec.position, x), rows,
            D=cols, R=cut.rows, BLOCK=cut.block,
            KICK=kick, DRIFT=drift, KEEP=keep, SECOND_KICK=second[0], SECOND_DRIFT=second[1],
            REFRESH=refresh, NOISE=noise,
            num_warps=cut.warps, enable_fp_fusion=noise == "approximate",
        )  # fmt: skip
        if sums is not None:
            kernels.finish_rows[(rows,)](
                sums, *records, rows, TILES=tiles, num_warps=4, enable_fp_fusion=False
            )


def tally_(sums: Tally, stats: StepStats, log_ratio: Tensor | None, weight: Tensor | None) -> None:
    """Add a step's record to the sums; ``log_ratio`` and ``weight`` (B,) where they have one."""
    like, block = sums.grad_norm, 256
    values = stats.grad_norm, stats.gamma, log_ratio, weight
    read = [None if t is None else each(t, like) for t in values]
    with on(like.device):
        kernels.tally_tile[(-(-len(like) // block),)](
            *read, *sums, len(like), BLOCK=block, num_warps=4, enable_fp_fusion=False
        )


def all_finite(stats: StepStats, energy: Tensor) -> bool:
    """Whether a step left every chain, and found every energy, finite."""
    return bool((stats.finite & energy.isfinite()).all())


def _draw_(out: Tensor, position: Position, law: str | None) -> None:
    rows, cols = out.shape
    cut = tiling(cols)
    with on(out.device):
        kernels.draw_tile[(cut.tiles(rows, cols),)](
            out, *place(position, out), rows,
            D=cols, R=cut.rows, BLOCK=cut.block, NOISE=law,
            num_warps=cut.warps, enable_fp_fusion=law == "approximate",
        )  # fmt: skip


def normal_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the standard normals at ``position``."""
    _draw_(out, position, kind(position))


def uniform_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the uniform numbers in (0, 1] at ``position``."""
    _draw_(out, position, "uniform")
