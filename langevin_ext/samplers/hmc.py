r"""Hamiltonian Monte Carlo.

    p ~ N(0, I);  (y, q) = L leapfrog steps of size h from (x, p), each
        p <- p - (h / 2) grad U(x);  x <- x + h p;  p <- p - (h / 2) grad U(x)
    x <- y with probability min(1, exp(U(x) + |p|^2 / 2 - U(y) - |q|^2 / 2))

Source: Duane, Kennedy, Pendleton and Roweth (1987); Neal, "MCMC using Hamiltonian dynamics" (2011).
Its law is exp(-U), at every step size; h is a time, so that MALA of step h^2 is HMC of one leapfrog
step. On a Gaussian a trajectory is stable if and only if h^2 l < 4 for every precision l.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .._check import as_number
from .._moves import accept_, kinetic_, point
from .._types import Decision, StepStats
from ..errors import ArgumentError
from ..gradient import EnergyGradient
from ..noise import Noise, Purpose
from ._adapt import check_target
from ._rule import Schedule, check_schedule
from .mala import (
    MetropolisState,
    decided,
    end_adaptation,
    metropolis_init,
    stats_of_proposals,
    step_size_now,
)


@dataclass(frozen=True)
class HMC:
    """Hamiltonian Monte Carlo (the module's docstring has the equation).

    Args:
        step_size: h > 0, a time; a number, a 0-d or (B,) tensor, or a function of the step's
            number.
        leapfrog_steps: L >= 1; each costs one gradient.
        target_acceptance: adapt each chain's step size during burn-in, from ``step_size``, until
            trajectories are accepted with this probability; 0.65 to 0.8 is usual. None leaves it
            as it is.

    A trajectory that leaves the finite numbers is rejected.

    Raises:
        StepSizeError, ArgumentError: a value is outside its range.
    """

    step_size: Schedule
    leapfrog_steps: int = 10
    target_acceptance: float | None = None

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)
        check_target(self.target_acceptance, self.step_size)
        steps = as_number(self.leapfrog_steps)
        if not (steps >= 1 and steps.is_integer()):
            raise ArgumentError(f"leapfrog_steps={self.leapfrog_steps!r}: give an int >= 1")

    def init(self, energy: EnergyGradient, x: Tensor, noise: Noise) -> MetropolisState:
        """Fresh chains at x (B, ...)."""
        del noise
        return metropolis_init(energy, x, self.step_size, self.target_acceptance)

    def step(
        self, state: Any, energy: EnergyGradient, noise: Noise, *, backend: str = "auto"
    ) -> MetropolisState:
        """One trajectory of every chain, and its decision, in place."""
        state = cast(MetropolisState, state)
        h = step_size_now(state, self.step_size, self.target_acceptance)
        y = state.proposal.copy_(state.x)
        p = torch.empty_like(y)
        first, last = torch.empty(2, 2, *state.energy.shape, dtype=torch.float64, device=y.device)
        kinetic_(
            y,
            p,
            state.grad,
            keep=0.0,  # a new momentum
            spread=1.0,
            second_kick=h / 2,
            second_drift=h,
            noise=noise,
            purpose=Purpose.MOMENTUM,
            energies=first,
            stats=stats_of_proposals(state),
            backend=backend,
        )
        for _ in range(int(self.leapfrog_steps) - 1):
            there = point(*energy(y), y)
            kinetic_(y, p, there.grad, kick=h, drift=h, backend=backend)
        there = point(*energy(y), y)
        end = StepStats.empty(y.shape[0], y.device, y.dtype)
        kinetic_(y, p, there.grad, kick=h / 2, energies=last, stats=end, backend=backend)
        accept_(
            state.at,
            there,
            Decision(state.log_ratio, state.accepted),
            log_ratio=(first[0] - last[1]).where(end.finite, -torch.inf),
            noise=noise,
            backend=backend,
        )
        noise.advance()
        return decided(state, self.target_acceptance)

    def end_burn_in(self, state: Any) -> MetropolisState:
        """Fix the adapted step sizes."""
        return end_adaptation(cast(MetropolisState, state))
