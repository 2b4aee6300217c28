r"""Kinetic (underdamped) Langevin dynamics, by splitting.

    dx = v dt,   dv = -grad U(x) dt - k v dt + sqrt(2 k T) dW

has the law exp(-(U + |v|^2 / 2) / T). It is split into three operations for a time t, each exact:

    A  x <- x + t v
    B  v <- v - t grad U(x)
    O  v <- c v + sqrt(T (1 - c^2)) xi,  c = exp(-k t)

A scheme names them in order, each for its share of the step h: BAOAB takes B and A for h / 2 and O
for h. One gradient a step.

Source: Leimkuhler and Matthews, "Rational construction of stochastic numerical methods for
molecular sampling" (2013); Bussi and Parrinello (2007) for OBABO; ABOBA is the sampler of Arbel,
Zhou and Gretton, "Generalized energy based models" (2021). On U = w^2 x^2 / 2 each is stable if and
only if h w < 2, and its stationary law has, whatever the friction k,

              w^2 <x^2> / T               <v^2> / T
    BAOAB     1                           1 - h^2 w^2 / 4
    ABOBA     1                           1 / (1 - h^2 w^2 / 4)
    OBABO     1 / (1 - h^2 w^2 / 4)       1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from .._moves import kinetic_, point
from .._types import ChainMove, Coefficient, KineticSpec, StepStats
from ..errors import ArgumentError
from ..gradient import EnergyGradient
from ..noise import Noise, Purpose
from ._rule import Schedule, at_step, check_fit, check_schedule

Scheme = Literal["baoab", "aboba", "obabo"]


class KineticState(NamedTuple):
    """State of kinetic Langevin dynamics; see `ChainState`."""

    x: Tensor
    energy: Tensor
    """(B,): U where the last gradient was taken: at x, or half a step before it with ABOBA."""
    grad: Tensor
    """(B, ...): that gradient."""
    velocity: Tensor
    """(B, ...)"""
    stats: StepStats
    step: int


@dataclass(frozen=True)
class KineticLangevin:
    """Kinetic Langevin dynamics (the module's docstring has equation, schemes and their laws).

    Args:
        step_size: h > 0, a time; a number, a 0-d or (B,) tensor, or a function of the step's
            number. (`Langevin` of step h^2 moves as far.)
        friction: k > 0, per unit of time; a number or a (B,) tensor. Infinite friction makes
            every velocity a new one.
        scheme: ``"baoab"``, ``"aboba"`` or ``"obabo"``.
        temperature: T > 0; a number, a 0-d or (B,) tensor, or a function of the step's number.

    Velocities start in equilibrium.

    Raises:
        StepSizeError, ArgumentError: a value is outside its range.
    """

    step_size: Schedule
    friction: Coefficient = 1.0
    scheme: Scheme = "baoab"
    temperature: Schedule = 1.0

    state_type = KineticState

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)
        if not isinstance(self.friction, Tensor) and callable(self.friction):
            raise ArgumentError("friction is a function: give a number or a tensor")
        check_schedule("friction", self.friction, infinite=True)
        check_schedule("temperature", self.temperature)
        if self.scheme not in ("baoab", "aboba", "obabo"):
            raise ArgumentError(f"scheme={self.scheme!r}: give 'baoab', 'aboba' or 'obabo'")

    def init(self, energy: EnergyGradient, x: Tensor, noise: Noise) -> KineticState:
        """Fresh chains at x (B, ...)."""
        self._check_fit(x)
        temperature = at_step("temperature", self.temperature, 0, x)
        sd = torch.as_tensor(temperature, dtype=torch.float64, device=x.device).sqrt()
        v = noise.purpose(Purpose.MOMENTUM).normal(x.shape, dtype=x.dtype, device=x.device)
        v *= sd.to(x.dtype).expand(x.shape[:1]).view(-1, *[1] * (x.dim() - 1))
        if self.scheme == "aboba":  # its first gradient is taken on the way
            nan = torch.full(x.shape[:1], torch.nan, dtype=x.dtype, device=x.device)
            at = point(nan, torch.zeros_like(x), x)
        else:
            at = point(*energy(x), x)
        stats = StepStats.empty(x.shape[0], x.device, x.dtype)
        return KineticState(x, at.energy, at.grad, v, stats, 0)

    def _check_fit(self, x: Tensor) -> None:
        check_fit(x, step_size=self.step_size, temperature=self.temperature)
        if isinstance(self.friction, Tensor):  # a number may be as large as it likes
            check_fit(x, friction=self.friction)

    def resume(self, state: Any, energy: EnergyGradient) -> KineticState:
        """Chains that go on, with the gradient at x by this energy where a step begins with it."""
        self._check_fit(state.x)
        if self.scheme == "aboba":
            return cast(KineticState, state)
        at = point(*energy(state.x), state.x)
        state = state._replace(energy=at.energy, grad=at.grad)
        return cast(KineticState, state)

    def step(
        self, state: Any, energy: EnergyGradient, noise: Noise, *, backend: str = "auto"
    ) -> KineticState:
        """One step of every chain."""
        state = cast(KineticState, state)
        first, second = self.passes(state.step, state.x)
        # Copies: where the energy raises, half-way, the state is still that of whole steps.
        x, v, stats = state.x.clone(), state.velocity.clone(), state.stats
        drawn = [noise if "spread" in given else None for given in (first, second)]
        kinetic_(x, v, state.grad, **first, noise=drawn[0], backend=backend)
        at = point(*energy(x), x)
        kinetic_(x, v, at.grad, **second, noise=drawn[1], stats=stats, backend=backend)
        noise.advance()
        return KineticState(x, at.energy, at.grad, v, stats, state.step + 1)

    def passes(self, step: int, x: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `kinetic_` is given at a step on chains at x, before the gradient and after it."""
        h = at_step("step_size", self.step_size, step, x)
        temperature = at_step("temperature", self.temperature, step, x)
        friction = at_step("friction", self.friction, step)
        share = h / 2 if self.scheme == "obabo" else h
        fluctuation = _fluctuation(friction * share, temperature)
        half = h / 2
        if self.scheme == "baoab":
            before = {"kick": half, "drift": half, **fluctuation, "second_drift": half}
            return before, {"kick": half}
        if self.scheme == "aboba":
            after = {"kick": half, **fluctuation, "second_kick": half, "second_drift": half}
            return {"drift": half}, after
        after = {"kick": half, **fluctuation, "purpose": Purpose.SECOND_KICK}
        return {**fluctuation, "second_kick": half, "second_drift": h}, after

    def chain_move(self, state: Any) -> ChainMove:
        """The step after this state, for kernels of whole chains."""
        passes = self.passes(state.step, state.x)
        coefficients = [
            given.get(name, 1.0 if name == "keep" else 0.0)
            for given in passes
            for name in KineticSpec._fields[:6]
        ]
        purposes = [given.get("purpose", Purpose.DIFFUSION) for given in passes]
        return ChainMove("kinetic", tuple(coefficients), (purposes[0], purposes[1]))


def _fluctuation(decay: Coefficient, temperature: Coefficient) -> dict[str, Any]:
    """The operation O for a time t, with decay = k t: ``keep`` and ``spread``."""
    if not isinstance(decay, Tensor) and not isinstance(temperature, Tensor):
        return {
            "keep": math.exp(-decay) if decay < 100 else 0.0,  # what no float32 is
            "spread": math.sqrt(-math.expm1(-2 * decay) * temperature),
        }
    if not isinstance(decay, Tensor):
        assert isinstance(temperature, Tensor)
        decay = temperature.new_tensor(decay, dtype=torch.float64)
    decay = decay.to(torch.float64)
    return {"keep": (-decay).exp(), "spread": (-(-2 * decay).expm1() * temperature).sqrt()}
