"""What a rule is: two functions over a state, so that adaptation and momentum have a place.

A rule is a small frozen dataclass. ``init`` makes the state of fresh chains; ``step`` moves it on
and consumes exactly one position of the noise. A state is a NamedTuple with at least the fields of
`ChainState`; ``step`` owns the state it is given and may update its tensors in place.

What `sample` knows of besides, where a state or a rule has it: ``log_ratio`` (B,), of acceptance;
``weight`` (B,), of the chains at x; ``adaptation``, with ``step_size`` and whether it is ``done``;
``state_type``, of the states that the rule goes on from; ``chain_move(state)``, the step as kernels
of whole chains know it; and two methods from state to state: ``end_burn_in``, called when burn-in
ends, and ``resume(state, energy)``, called where chains go on, perhaps on another energy. Tensors
(B, ...) at the top of a state go back with x where a chain is frozen or restarted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from .._check import check_coefficient, check_number, check_state
from .._types import Coefficient, StepStats
from ..errors import ArgumentError, DeviceError, DtypeError, ShapeError, StepSizeError
from ..gradient import EnergyGradient
from ..noise import Noise

Schedule: TypeAlias = "Coefficient | Callable[[int], Coefficient]"
"""A coefficient, or a function from the step's number (0, 1, ...) to one."""


class ChainState(Protocol):
    """The fields every rule's state has."""

    @property
    def x(self) -> Tensor:
        """(B, ...), contiguous."""

    @property
    def energy(self) -> Tensor:
        """(B,): U where the last gradient was taken; NaN before the first step."""

    @property
    def stats(self) -> StepStats:
        """What the last step recorded."""

    @property
    def step(self) -> int:
        """Steps taken so far."""


class Rule(Protocol):
    """What `sample` needs of a sampler."""

    def init(self, energy: EnergyGradient, x: Tensor, noise: Noise) -> ChainState: ...
    def step(
        self, state: ChainState, energy: EnergyGradient, noise: Noise, *, backend: str = "auto"
    ) -> ChainState: ...


_LIKE_X = "grad", "velocity", "proposal"
_OF_CHAINS = "energy", "log_ratio", "accepted", "weight"


def check_fields(state: Any) -> None:
    """What kernels will read of a state to go on from is there, as large, and of the type, as they
    think.

    Raises:
        ArgumentError, ShapeError, DtypeError, DeviceError: it is not, as after a hand's
            ``_replace``.
    """
    x = state.x
    check_state(x, "the state's x")
    dtypes = {"log_ratio": torch.float64, "accepted": torch.bool, "finite": torch.bool}
    dtypes["weight"] = torch.float64
    for name in _LIKE_X:
        if name in state._fields:
            check_field(name, getattr(state, name), x, x.shape, x.dtype)
    of_chains = {name: getattr(state, name) for name in _OF_CHAINS if name in state._fields}
    for name, value in (of_chains | state.stats._asdict()).items():
        check_field(name, value, x, x.shape[:1], dtypes.get(name, x.dtype))


def check_field(
    name: str, value: object, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """One of them beside x; see `check_fields`."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"the state's {name} is a {type(value).__name__}, not a tensor")
    if value.shape != shape:
        raise ShapeError(
            f"the state's {name} has shape {tuple(value.shape)}: beside x {tuple(x.shape)} it is"
            f" {tuple(shape)}"
        )
    if value.dtype != dtype:
        raise DtypeError(f"the state's {name} is {value.dtype}: beside this x it is {dtype}")
    if value.device != x.device:
        raise DeviceError(f"the state's {name} is on {value.device}, its x on {x.device}")


def check_schedule(
    name: str, value: Schedule, *, zero: bool = False, infinite: bool = False
) -> None:
    """Check what can be checked before the chains are known; values of schedules come later."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise StepSizeError(f"{name} is {value.dtype}: give floating point values")
        right = (value >= 0) if zero else (value > 0)
        if not infinite:
            right &= value.isfinite()
        if not bool(right.all()):
            range_ = f"{'>= 0' if zero else '> 0'}{'' if infinite else ' and finite'}"
            raise StepSizeError(f"{name} has values that are not {range_}: {value}")
    elif not callable(value):
        check_number(name, value, zero=zero, infinite=infinite)


def is_scheduled(rule: Rule) -> bool:
    """Whether an option of the rule is a function of the step's number."""
    return any(callable(value) and not isinstance(value, Tensor) for value in vars(rule).values())


def check_fit(x: Tensor, **values: Schedule | None) -> None:
    """Check numbers and tensors, as they were given, against the chains at x."""
    for name, value in values.items():
        if value is not None and (isinstance(value, Tensor) or not callable(value)):
            check_coefficient(name, value, x, zero=True, infinite=True)


def at_step(
    name: str, value: Schedule, step: int, x: Tensor | None = None, *, zero: bool = False
) -> Coefficient:
    """The coefficient at a step, tensors in float64 so that what follows is rounded once.

    With ``x`` what a schedule returns is checked to fit the chains there.
    """
    if not isinstance(value, Tensor) and callable(value):
        value = value(step)
        if not isinstance(value, Tensor) or value.device.type == "cpu":  # elsewhere it would wait
            check_schedule(name, value, zero=zero)
        if x is not None:
            check_coefficient(name, value, x, zero=zero)
    if not isinstance(value, Tensor):
        return float(value)
    learned = value.requires_grad and torch.is_grad_enabled()
    if value.is_cpu and not value.dim() and not learned and not torch.compiler.is_compiling():
        return float(value)  # a GPU would wait for the copy of a number
    return value.to(torch.float64)


def norms(grad: Tensor) -> Tensor:
    """|grad U| of each chain, (B,) float64, in which float32 gradients do not overflow."""
    rows = grad.flatten(1) if grad.dim() > 1 else grad[:, None]
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norm
