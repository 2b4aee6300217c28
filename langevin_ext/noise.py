"""Randomness as an argument: a position in a stream of noise.

Chain i gets the same noise whatever the batch size, the split over processes, the backend or the
device, and a run goes on exactly from (seed, step). `langevin_ext.philox` defines the numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import ops
from ._check import MAX_CHAIN, MAX_STEP, MAX_STREAM, check_backend, check_position
from ._types import Position
from .errors import ArgumentError, DeviceError, DtypeError, NoiseError, ShapeError
from .philox import philox4x32 as philox4x32


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
    JITTER = 8


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


def _cells(seed: int, step: int) -> list[int]:
    """What the tensor of a position holds: 64 bits of seed, two's complement, and the step."""
    return [seed - 2**64 if seed >= 2**63 else seed, step]


def _lasting(make: Callable[[], Tensor]) -> Tensor:
    """A tensor that can be written to later, even if it is made in inference mode."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return make()
    with torch.inference_mode(False):
        return make()


def _restore(state: dict[str, int], device: str, approximate: bool, fixed: bool) -> Noise:
    noise = Noise(0, device=device, approximate=approximate)
    noise.load_state_dict(state)
    noise._fixed = fixed
    return noise


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
        device: where seed and step live; the CPU if None. In a CUDA graph, whose replays repeat
            what the host passed by value, they must be on the GPU. Reading them waits for it.
        approximate: a GPU may take its own logarithm, sine and cosine, which is faster and differs
            from the exact noise by their errors (as documented for the instructions: some 1e-6, at
            worst 1e-3 near zero). On a CPU the noise is always exact.

    Threads that step at the same time want a noise each.

    Raises:
        NoiseError: a value does not fit the counter; nothing ever wraps around.
    """

    # Seed and step are one int64 tensor, which compiled code reads and advances. On the CPU the
    # cells are the same memory, for Python to do so in a twentieth of the time. Besides this file
    # csrc/plain_step.cpp knows these names.
    __slots__ = (
        "_approximate",
        "_cells",
        "_first_chain",
        "_fixed",
        "_offset",
        "_origin",
        "_stream",
    )

    def __init__(
        self,
        seed: int | torch.Generator | None = None,
        stream: int = 0,
        first_chain: int = 0,
        step: int = 0,
        *,
        device: torch.device | str | None = None,
        approximate: bool = False,
    ) -> None:
        if seed is None or isinstance(seed, torch.Generator):
            drawn = torch.empty((), dtype=torch.int64, device=seed.device if seed else "cpu")
            seed = int(drawn.random_(generator=seed))
        seed = _integer("seed", seed, 2**64, "a seed")
        step = _integer("step", step, MAX_STEP, "a step")
        self._stream = _integer("stream", stream, MAX_STREAM, "a stream")
        self._first_chain = _integer("first_chain", first_chain, MAX_CHAIN, "a chain id")
        self._approximate = bool(approximate)
        self._offset, self._fixed = 0, False
        place = torch.device("cpu" if device is None else device)
        if place.type == "meta":
            raise DeviceError("a meta device holds no seed and step")
        self._place(seed, step, place)

    def _place(self, seed: int, step: int, device: torch.device) -> None:
        """Put seed and step into memory of this noise's own."""
        pair = _cells(seed, step)
        self._cells: memoryview | None = None
        if torch.compiler.is_compiling() or device.type != "cpu":
            self._origin = _lasting(lambda: torch.tensor(pair, dtype=torch.int64, device=device))
        else:
            memory = np.array(pair, dtype=np.int64)
            self._origin = _lasting(lambda: torch.from_numpy(memory))
            self._cells = memory.data

    @property
    def seed(self) -> int:
        return self._read()[0]

    @property
    def stream(self) -> int:
        return self._stream

    @property
    def first_chain(self) -> int:
        return self._first_chain

    @property
    def step(self) -> int:
        return self._read()[1]

    @property
    def device(self) -> torch.device:
        """Where seed and step live."""
        return self._origin.device

    @property
    def approximate(self) -> bool:
        """Whether a GPU may make this noise by its own functions."""
        return self._approximate

    def _read(self) -> tuple[int, int]:
        if torch.compiler.is_compiling():
            raise NoiseError("in compiled code seed and step are in a tensor: read them outside")
        seed, step = self._origin.tolist() if self._cells is None else self._cells
        return seed % 2**64, step + self._offset

    @property
    def fixed(self) -> bool:
        """Whether this is a copy made by `at`, or a view made by `ahead`: they never advance."""
        return self._fixed

    def at(self, step: int) -> Noise:
        """A copy fixed at ``step``: whoever consumes it gets the same noise again."""
        step = _integer("step", step, MAX_STEP, "a step")
        copy = self.clone()
        copy._offset, copy._fixed = 0, True
        if copy._cells is None:
            copy._origin[1].fill_(step)
        else:
            copy._cells[1] = step
        return copy

    def ahead(self, steps: int) -> Noise:
        """A view of what comes ``steps`` steps from here, wherever this noise is by then.

        It never advances. A block of steps that is compiled or captured as one uses ``ahead(0)``,
        ``ahead(1)``, ... and then advances this noise once.
        """
        view = self._like(self._origin, self._cells)
        ahead = self._offset + _integer("steps", steps, MAX_STEP, "a number of steps")
        view._offset = _integer("steps", ahead, MAX_STEP, "a number of steps")
        view._fixed = True
        return view

    def clone(self) -> Noise:
        """An independent copy at the same position, free to advance."""
        copy = self._like(self._origin, None)
        if self._cells is None or torch.compiler.is_compiling():
            copy._origin, copy._offset = _lasting(self._origin.clone), self._offset
        else:
            copy._place(*self._read(), self.device)
        return copy

    def _like(self, origin: Tensor, cells: memoryview | None) -> Noise:
        copy = object.__new__(Noise)
        copy._origin, copy._cells, copy._offset, copy._fixed = origin, cells, 0, False
        copy._stream, copy._first_chain = self._stream, self._first_chain
        copy._approximate = self._approximate
        return copy

    def purpose(self, purpose: Purpose | int) -> Noise:
        """A copy at the same position in the stream for another `Purpose`.

        Raises:
            NoiseError: this stream is not a multiple of 16, so its low bits are taken; or the
                purpose does not fit them.
        """
        number = purpose.value if isinstance(purpose, Purpose) else purpose  # Dynamo knows no enum
        low_bits = _integer("purpose", number, 16, "a purpose")
        if self._stream % 16:
            raise NoiseError(f"stream={self._stream}: a stream with purposes is a multiple of 16")
        copy = self.clone()
        copy._stream += low_bits
        copy._fixed = self._fixed
        return copy

    def shard(self, first_chain: int) -> Noise:
        """A copy at the same position whose row 0 is chain ``first_chain``."""
        copy = self.clone()
        copy._first_chain = _integer("first_chain", first_chain, MAX_CHAIN, "a chain id")
        copy._fixed = self._fixed
        return copy

    def to(self, device: torch.device | str) -> Noise:
        """A copy at the same position whose seed and step live on ``device``."""
        copy = self.clone()
        copy._offset, copy._fixed = 0, self._fixed
        copy._place(*self._read(), torch.device(device))
        return copy

    def advance(self, steps: int = 1) -> None:
        """Move on, except where the position is fixed.

        Raises:
            NoiseError: there are not so many steps left of the 2**48. (Where the step is on a
                device, or in compiled code, that is not looked at.)
        """
        if type(steps) is not int or not 0 <= steps <= MAX_STEP:
            steps = _integer("steps", steps, MAX_STEP + 1, "a number of steps")
        if self._fixed:
            return
        cells = self._cells
        if torch.compiler.is_compiling():
            self._origin[1].add_(steps)
            return
        if cells is None:
            with torch._C._DisableFuncTorch():  # which would not change what is from outside it
                self._origin[1].add_(steps)
            return
        if cells[1] + steps > MAX_STEP:
            raise NoiseError(f"step={cells[1]} and {steps} more: the noise ends at step 2**48")
        cells[1] += steps

    def by_value(self, purpose: int = 0) -> Position:
        """Where the next step draws from, as numbers if they are at hand; nothing is checked."""
        cells = self._cells
        if cells is None:
            return self.by_reference(purpose)
        seed, step = cells
        return Position(
            seed % 2**64, step + self._offset, self._stream + purpose, self._first_chain, None,
            self._approximate,
        )  # fmt: skip

    def by_reference(self, purpose: int = 0) -> Position:
        """Where the next step draws from, as the tensor that holds it and an offset."""
        return Position(
            0, self._offset, self._stream + purpose, self._first_chain, self._origin,
            self._approximate,
        )  # fmt: skip

    def position(self, chains: int, columns: int, purpose: Purpose | int = 0) -> Position:
        """Where a state of (chains, columns) draws from next, for a purpose; consumes nothing.

        Raises:
            NoiseError: a chain id would reach 2**32 or a coordinate 2**34; or the last of the
                2**48 steps has been consumed.
        """
        position = self.by_value(int(purpose))
        check_position(position, chains, columns)
        return position

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
        return self._draw(ops.normal, shape, dtype, device, backend)

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
        return self._draw(ops.uniform, shape, dtype, device, backend)

    def _draw(
        self,
        law: Any,
        shape: tuple[int, ...] | torch.Size,
        dtype: torch.dtype,
        device: torch.device | str | None,
        backend: str,
    ) -> Tensor:
        sizes = tuple(shape) if isinstance(shape, Iterable) else ()
        if not sizes or any(type(n) is not int or n < 0 for n in sizes):
            raise ShapeError(f"shape={shape}: give (B, ...) in ints, chains first")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise DtypeError(f"dtype={dtype}: noise is floating point")
        check_backend(backend)
        columns = torch.Size(sizes[1:]).numel()
        _, offset, stream, first_chain, origin, approximate = self.by_reference()
        if device is None and self.device.type != "cpu":
            device = self.device
        where = torch.empty(0, device=device).device
        out: Tensor = law(
            origin, offset, stream, first_chain, approximate, sizes[0], columns, where, backend
        )
        return out.view(sizes).to(dtype)

    def state_dict(self) -> dict[str, int]:
        """The position as four integers; `load_state_dict` goes on from them."""
        seed, step = self._read()
        return {
            "seed": seed,
            "stream": self._stream,
            "first_chain": self._first_chain,
            "step": step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position saved by `state_dict`.

        Raises:
            ArgumentError: keys are missing or unknown.
            NoiseError: a value does not fit the counter.
        """
        if not isinstance(state, dict) or set(state) != {"seed", "stream", "first_chain", "step"}:
            raise ArgumentError(f"a noise state has seed, stream, first_chain, step; got {state!r}")
        seed = _integer("seed", state["seed"], 2**64, "a seed")
        step = _integer("step", state["step"], MAX_STEP + 1, "a step")  # or used up
        stream = _integer("stream", state["stream"], MAX_STREAM, "a stream")
        first_chain = _integer("first_chain", state["first_chain"], MAX_CHAIN, "a chain id")
        self._stream, self._first_chain, self._offset = stream, first_chain, 0
        pair = _cells(seed, step)  # in place: compiled code and graphs hold this memory
        if self._cells is None:
            self._origin.copy_(torch.tensor(pair, device=self._origin.device))
        else:
            self._cells[0], self._cells[1] = pair

    def __reduce__(self) -> Any:
        return _restore, (self.state_dict(), str(self.device), self._approximate, self._fixed)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Noise):
            return NotImplemented
        kinds = [(n._fixed, n._approximate) for n in (self, other)]
        return self.state_dict() == other.state_dict() and kinds[0] == kinds[1]

    __hash__ = None  # type: ignore[assignment]  # it moves

    def __repr__(self) -> str:
        seed, step = self._read()
        more = ", fixed" * self._fixed + ", approximate" * self._approximate
        more += "" if self.device.type == "cpu" else f", {self.device}"
        return (
            f"Noise(seed={seed}, stream={self._stream},"
            f" first_chain={self._first_chain}, step={step}{more})"
        )


def as_noise(seed: int | torch.Generator | Noise | None) -> Noise:
    """A `Noise` from whatever a ``seed`` argument accepts; a `Noise` is returned as it is."""
    return seed if isinstance(seed, Noise) else Noise(seed)
