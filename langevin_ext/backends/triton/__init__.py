"""The step on a GPU, in Triton: one pass over memory, the noise made in registers.

With the same norm the bits are the reference's; the norm, a sum in another order, is within 8 ulp
of it. With ``TRITON_INTERPRET=1`` the same kernels run on a CPU in Triton's interpreter, slowly.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..._types import Coefficient, Position, StepSpec, StepStats
from .._memory import apart, gradient_apart

if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 6):
    raise ImportError(f"triton {triton.__version__} is too old: 3.6 is needed")

from . import kernels

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether the kernels were defined for Triton's interpreter."""

_INFINITY = float("inf")
_MOST_PARTS = 512  # partial sums of a row; every tile of the row adds them up, from the L2 cache
_CURRENT = nullcontext()
_DEVICES = {"cpu": INTERPRETED, "cuda": True}


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on the device; None if it can."""
    if _DEVICES.get(device.type):
        return None
    hint = "; TRITON_INTERPRET=1 runs them in Triton's interpreter" if device.type == "cpu" else ""
    return f"its kernels are for CUDA, not for {device.type}{hint}"


class Tiling(NamedTuple):
    """How a state is cut: tiles of ``rows`` chains by ``block`` coordinates, and warps for each."""

    rows: int
    block: int
    warps: int

    def tiles(self, rows: int, cols: int) -> int:
        """How many tiles cover (rows, cols)."""
        return -(-rows // self.rows) * -(-cols // self.block)


@functools.cache
def tiling(cols: int, itemsize: int = 4) -> Tiling:
    """How to cut rows of ``cols`` numbers of ``itemsize`` bytes."""
    vector = 16 // itemsize
    block = triton.next_power_of_2(cols)
    if block <= 32 * vector:  # a warp has a row or several
        return Tiling(256 * vector // block, block, 4)
    if cols > 4096 * vector:
        return Tiling(1, 1024 * vector, 8)
    rows = max(1, 256 * vector // block)

    def cost(warps: int) -> tuple[int, bool, int]:
        # The compiler drops whole rounds of the warps beyond the row's end, noise and all; so
        # first the fewest idle lanes, then at most four vectors to a thread.
        rounds = -(-cols // (32 * vector * warps))
        return rounds * warps, rounds * rows > 4, warps

    fewest = max(1, block // (256 * vector))  # eight vectors to a thread: more would spill
    return Tiling(rows, block, min((w for w in (1, 2, 4, 8, 16) if w >= fewest), key=cost))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """To launch on a device: Triton launches on the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _CURRENT
    return torch.cuda.device(device)


def _place(position: Position | None, x: Tensor) -> tuple[Tensor | None, int, int, int, int]:
    """Where the noise comes from: an origin on the device, seed, step, stream and first chain."""
    if position is None:
        return None, 0, 0, 0, 0
    if position.origin is not None and position.origin.device != x.device:
        position = position.on_host()
    seed, step, stream, first_chain, origin, _ = position
    return origin, seed - (seed >> 63 << 64), step, stream, first_chain  # the seed as int64


def _kind(position: Position | None) -> str | None:
    if position is None:
        return None
    return "approximate" if position.approximate and not INTERPRETED else "exact"


def step_(x: Tensor, grad: Tensor, step: StepSpec, stats: StepStats | None) -> None:
    """One step of ``x`` (B, ...) in place; both tensors contiguous."""
    rows = x.shape[0]
    cols = x.numel() // rows
    grad = gradient_apart(grad, x)
    written = (x, *(stats or ()))

    def number_and_each(value: Coefficient) -> tuple[float, Tensor | None]:
        return (0.0, apart(value, *written)) if isinstance(value, Tensor) else (value, None)

    drift, drifts = number_and_each(step.drift)
    diffusion, diffusions = number_and_each(step.diffusion)
    bound, bounds = number_and_each(step.max_grad_norm)
    clip = None
    if bounds is not None or bound != _INFINITY:
        clip = "coordinate" if step.per_coordinate else "sample"
    norms, gammas, finites = stats or (None, None, None)
    if finites is not None:
        finites = finites.view(torch.uint8)

    cut = tiling(cols, x.element_size())
    blocks = -(-cols // cut.block)
    rounds = -(-blocks // _MOST_PARTS)
    parts = -(-blocks // rounds)
    square_sums = gamma_sums = None
    noise = _kind(step.position)
    with _on(x.device):
        if blocks > 1 and (clip == "sample" or stats is not None):
            square_sums = x.new_empty(rows, parts)
            if clip == "coordinate":
                gamma_sums = torch.empty_like(square_sums)
            kernels.partial_sums[(rows * parts,)](
                grad, finites, bound, bounds, square_sums, gamma_sums,
                D=cols, BLOCK=cut.block, ROUNDS=rounds, PARTS=parts,
                num_warps=cut.warps, enable_fp_fusion=False,
            )  # fmt: skip
        kernels.step_tile[(cut.tiles(rows, cols),)](
            x, grad, norms, gammas, finites,
            drift, diffusion, bound, drifts, diffusions, bounds,
            step.reference_precision, step.low, step.high, square_sums, gamma_sums,
            *_place(step.position, x), rows,
            D=cols, R=cut.rows, BLOCK=cut.block, PARTS=parts,
            CLIP=clip, TWICE_POWER=int(2 * step.noise_power) if clip else 0,
            HAS_REFERENCE=step.reference_precision != 0,
            HAS_CLAMP=step.low != -_INFINITY or step.high != _INFINITY,
            NOISE=noise,
            num_warps=cut.warps, enable_fp_fusion=noise == "approximate",
        )  # fmt: skip


def _draw_(out: Tensor, position: Position, kind: str | None) -> None:
    rows, cols = out.shape
    cut = tiling(cols)
    with _on(out.device):
        kernels.draw_tile[(cut.tiles(rows, cols),)](
            out, *_place(position, out), rows,
            D=cols, R=cut.rows, BLOCK=cut.block, NOISE=kind,
            num_warps=cut.warps, enable_fp_fusion=kind == "approximate",
        )  # fmt: skip


def normal_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the standard normals at ``position``."""
    _draw_(out, position, _kind(position))


def uniform_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the uniform numbers in (0, 1] at ``position``."""
    _draw_(out, position, "uniform")
