"""Randomness as an argument: a position in a stream of noise.

Chain i gets the same noise whatever the batch size, the split over processes, the backend or the
device, and a run goes on exactly from (seed, step). `langevin_ext.philox` defines the numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from . import backends
from ._types import Position
from .errors import ArgumentError, DtypeError, NoiseError, ShapeError
from .philox import philox4x32 as philox4x32

MAX_STEP, MAX_STREAM, MAX_CHAIN, MAX_COLUMNS = 2**48, 2**16, 2**32, 2**34


class Purpose(IntEnum):
    """The low four bits of a stream: what the numbers are for."""

    DIFFUSION = 0
    SECOND_KICK = 1
    ACCEPT = 2
    MOMENTUM = 3
    INITIAL_STATE = 4
    DATA_NOISE = 5
    RESTART = 6
    DATA_ORDER = 7


def _integer(name: str, value: Any, limit: int, meaning: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise NoiseError(f"{name}={value!r}: give an int")
    if not 0 <= number < limit:
        raise NoiseError(f"{name}={number}: {meaning} must be in [0, 2**{limit.bit_length() - 1})")
    return int(number)


class Noise:
    """A position in a stream of noise, which every step that consumes it advances by one.

    Args:
        seed: 64 bits in [0, 2**64), or a ``torch.Generator``, or None; the last two draw one
            int64 from the generator (from torch's default one), so ``torch.manual_seed`` governs.
            With an int the global generators are untouched.
        stream: independent noise under one seed, in [0, 2**16). `sample` and the trainers want a
            multiple of 16 and use the low four bits for a `Purpose`.
        first_chain: id of the chain in row 0, so that a shard of a batch draws its own rows.
        step: where in the stream to start, in [0, 2**48).

    Raises:
        NoiseError: a value does not fit the counter; nothing ever wraps around.
    """

    __slots__ = ("_first_chain", "_fixed", "_seed", "_step", "_stream")

    def __init__(
        self,
        seed: int | torch.Generator | None = None,
        stream: int = 0,
        first_chain: int = 0,
        step: int = 0,
    ) -> None:
        if seed is None or isinstance(seed, torch.Generator):
            drawn = torch.empty((), dtype=torch.int64, device=seed.device if seed else None)
            seed = int(drawn.random_(generator=seed))
        self._seed = _integer("seed", seed, 2**64, "a seed")
        self._stream = _integer("stream", stream, MAX_STREAM, "a stream")
        self._first_chain = _integer("first_chain", first_chain, MAX_CHAIN, "a chain id")
        self._step = _integer("step", step, MAX_STEP, "a step")
        self._fixed = False

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def stream(self) -> int:
        return self._stream

    @property
    def first_chain(self) -> int:
        return self._first_chain

    @property
    def step(self) -> int:
        return self._step

    @property
    def fixed(self) -> bool:
        """Whether this is a copy made by `at`, which never advances."""
        return self._fixed

    def at(self, step: int) -> Noise:
        """A copy fixed at ``step``: whoever consumes it gets the same noise again."""
        copy = self.clone()
        copy._step = _integer("step", step, MAX_STEP, "a step")
        copy._fixed = True
        return copy

    def clone(self) -> Noise:
        """An independent copy at the same position, free to advance."""
        copy = Noise(self._seed, self._stream, self._first_chain)
        copy._step = self._step
        return copy

    def purpose(self, purpose: Purpose | int) -> Noise:
        """A copy at the same position in the stream for another `Purpose`.

        Raises:
            NoiseError: this stream is not a multiple of 16, so its low bits are taken; or the
                purpose does not fit them.
        """
        low_bits = _integer("purpose", purpose, 16, "a purpose")
        if self._stream % 16:
            raise NoiseError(f"stream={self._stream}: a stream with purposes is a multiple of 16")
        copy = self.clone()
        copy._stream += low_bits
        return copy

    def shard(self, first_chain: int) -> Noise:
        """A copy at the same position whose row 0 is chain ``first_chain``."""
        copy = self.clone()
        copy._first_chain = _integer("first_chain", first_chain, MAX_CHAIN, "a chain id")
        return copy

    def advance(self, steps: int = 1) -> None:
        """Move on, except where the position is fixed.

        Raises:
            NoiseError: there are not so many steps left of the 2**48.
        """
        steps = _integer("steps", steps, 2 * MAX_STEP, "a number of steps")
        if self._fixed:
            return
        if self._step + steps > MAX_STEP:
            raise NoiseError(f"step={self._step} and {steps} more: the noise ends at step 2**48")
        self._step += steps

    def position(self, chains: int, columns: int) -> Position:
        """Where a state of (chains, columns) draws from next; consumes nothing.

        Raises:
            NoiseError: a chain id would reach 2**32 or a coordinate 2**34; or the last of the
                2**48 steps has been consumed.
        """
        if self._step == MAX_STEP:
            raise NoiseError("step=2**48: the noise of this stream is used up; take another stream")
        if self._first_chain + chains > MAX_CHAIN:
            raise NoiseError(
                f"first_chain={self._first_chain} with {chains} chains: chain ids must stay"
                " below 2**32"
            )
        if columns > MAX_COLUMNS:
            raise NoiseError(f"{columns} coordinates to a chain: there is noise for 2**34")
        return Position(self._seed, self._step, self._stream, self._first_chain)

    def normal(
        self,
        shape: tuple[int, ...] | torch.Size,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        backend: str = "auto",
    ) -> Tensor:
        """The standard normals that the next step on a state of ``shape`` (B, ...) will use.

        They are drawn in float32 and widened to ``dtype``; nothing is consumed.
        """
        return self._draw("normal_", shape, dtype, device, backend)

    def uniform(
        self,
        shape: tuple[int, ...] | torch.Size,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        backend: str = "auto",
    ) -> Tensor:
        """Uniform numbers in (0, 1] at this position, for a state of ``shape`` (B, ...).

        They come from the same words as `normal`, so use another `purpose` beside it.
        """
        return self._draw("uniform_", shape, dtype, device, backend)

    def _draw(
        self,
        law: str,
        shape: tuple[int, ...] | torch.Size,
        dtype: torch.dtype,
        device: torch.device | str | None,
        backend: str,
    ) -> Tensor:
        shape = tuple(shape) if isinstance(shape, Iterable) else ()
        if not shape or any(n < 0 for n in shape):
            raise ShapeError(f"shape={shape}: give (B, ...), chains first")
        if not dtype.is_floating_point:
            raise DtypeError(f"dtype={dtype}: noise is floating point")
        chains = shape[0]
        columns = torch.Size(shape[1:]).numel()
        position = self.position(chains, columns)
        out = torch.empty(chains, columns, dtype=torch.float32, device=device)
        if out.numel():
            getattr(backends.resolve(backend, out.device.type), law)(out, position)
        return out.view(shape).to(dtype)

    def state_dict(self) -> dict[str, int]:
        """The position as four integers; `load_state_dict` goes on from them."""
        return {
            "seed": self._seed,
            "stream": self._stream,
            "first_chain": self._first_chain,
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position saved by `state_dict`.

        Raises:
            ArgumentError: keys are missing or unknown.
            NoiseError: a value does not fit the counter.
        """
        if not isinstance(state, dict) or set(state) != {"seed", "stream", "first_chain", "step"}:
            raise ArgumentError(f"a noise state has seed, stream, first_chain, step; got {state!r}")
        _integer("seed", state["seed"], 2**64, "a seed")  # nothing to draw one from
        other = Noise(**state)
        self._seed, self._stream = other._seed, other._stream
        self._first_chain, self._step = other._first_chain, other._step

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Noise):
            return NotImplemented
        return self.state_dict() == other.state_dict() and self._fixed == other._fixed

    __hash__ = None  # type: ignore[assignment]  # it moves

    def __repr__(self) -> str:
        fixed = ", fixed" if self._fixed else ""
        return (
            f"Noise(seed={self._seed}, stream={self._stream},"
            f" first_chain={self._first_chain}, step={self._step}{fixed})"
        )


def as_noise(seed: int | torch.Generator | Noise | None) -> Noise:
    """A `Noise` from whatever a ``seed`` argument accepts; a `Noise` is returned as it is."""
    return seed if isinstance(seed, Noise) else Noise(seed)
