"""What every launch needs: how a state is cut into tiles, where, and where its noise is."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..._types import Coefficient, Position
from .._memory import apart

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether the kernels were defined for Triton's interpreter."""

_CURRENT = nullcontext()


class Tiling(NamedTuple):
    """How a state is cut: tiles of ``rows`` chains by ``block`` coordinates, and warps for each."""

    rows: int
    block: int
    warps: int

    def tiles(self, rows: int, cols: int) -> int:
        """How many tiles cover (rows, cols)."""
        return -(-rows // self.rows) * -(-cols // self.block)


@functools.cache
def tiling(cols: int, itemsize: int = 4, vectors: int = 8) -> Tiling:
    """How to cut rows of ``cols`` numbers of ``itemsize`` bytes.

    A thread has at most ``vectors`` (4 or 8) 16-byte vectors of each tensor: more would spill.
    """
    vector = 16 // itemsize
    block = triton.next_power_of_2(cols)
    if block <= 32 * vector:  # a warp has a row or several
        return Tiling(32 * vectors * vector // block, block, 4)
    if cols > (512 * vectors) * vector:
        return Tiling(1, 1024 * vector, 8)
    rows = max(1, 32 * vectors * vector // block)

    def cost(warps: int) -> tuple[int, bool, int]:
        # The compiler drops whole rounds of the warps beyond the row's end, noise and all; so
        # first the fewest idle lanes, then at most four vectors to a thread.
        rounds = -(-cols // (32 * vector * warps))
        return rounds * warps, rounds * rows > 4, warps

    fewest = max(1, block // (32 * vectors * vector))
    return Tiling(rows, block, min((w for w in (1, 2, 4, 8, 16) if w >= fewest), key=cost))


def on(device: torch.device) -> AbstractContextManager[Any]:
    """To launch on a device: Triton launches on the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _CURRENT
    return torch.cuda.device(device)


def place(position: Position | None, x: Tensor) -> tuple[Tensor | None, int, int, int, int]:
    """Where the noise comes from: an origin on the device, seed, step, stream and first chain."""
    if position is None:
        return None, 0, 0, 0, 0
    if position.origin is not None and position.origin.device != x.device:
        position = position.on_host()
    seed, step, stream, first_chain, origin, _ = position
    return origin, seed - (seed >> 63 << 64), step, stream, first_chain  # the seed as int64


def kind(position: Position | None) -> str | None:
    if position is None:
        return None
    return "approximate" if position.approximate and not INTERPRETED else "exact"


def number_and_each(value: Coefficient, *written: Tensor) -> tuple[float, Tensor | None]:
    """A coefficient as the kernels take it: a number and, in its place, a tensor or None."""
    return (0.0, apart(value, *written)) if isinstance(value, Tensor) else (value, None)
