r"""Hamiltonian Monte Carlo.

    p ~ N(0, I);  (y, q) = L leapfrog steps of size h from (x, p), each
        p <- p - (h / 2) grad U(x);  x <- x + h p;  p <- p - (h / 2) grad U(x)
    x <- y with probability min(1, exp(U(x) + |p|^2 / 2 - U(y) - |q|^2 / 2))

Source: Duane, Kennedy, Pendleton and Roweth (1987); Neal, "MCMC using Hamiltonian dynamics" (2011).
It leaves exp(-U) as it is, at every step size; h is a time, so that MALA of step h^2 is HMC of one
leapfrog step. On a Gaussian a trajectory is stable if and only if h^2 l < 4 for every precision l.

Chains may still stand still, or go round in circles: a trajectory of a whole period ends where it
began, and is always accepted. Where that is to be feared, as on energies that are nearly Gaussian,
``jitter`` takes a new step size for each trajectory (Neal 2011, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .._check import as_number, check_count
from .._moves import accept_, kinetic_, point
from .._types import Decision, StepStats
from ..errors import ArgumentError
from ..gradient import EnergyGradient
from ..noise import Noise, Purpose
from ._adapt import check_target
from ._rule import Schedule, check_fit, check_schedule
from .mala import (
    MetropolisState,
    decided,
    end_adaptation,
    metropolis_init,
    metropolis_resume,
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
        jitter: j in [0, 1): the step size of each trajectory of each chain is h times a uniform
            number from [1 - j, 1 + j].

    A trajectory that leaves the finite numbers is rejected.

    Raises:
        StepSizeError, ArgumentError: a value is outside its range.
    """

    step_size: Schedule
    leapfrog_steps: int = 10
    target_acceptance: float | None = None
    jitter: float = 0.0

    state_type = MetropolisState

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)
        check_target(self.target_acceptance, self.step_size)
        check_count("leapfrog_steps", self.leapfrog_steps, 1)
        if not 0 <= as_number(self.jitter) < 1:
            raise ArgumentError(f"jitter={self.jitter!r}: give a number in [0, 1)")

    def init(self, energy: EnergyGradient, x: Tensor, noise: Noise) -> MetropolisState:
        """Fresh chains at x (B, ...)."""
        del noise
        return metropolis_init(energy, x, self.step_size, self.target_acceptance)

    def resume(self, state: Any, energy: EnergyGradient) -> MetropolisState:
        """Chains that go on, with their energies and gradients by this energy."""
        check_fit(state.x, step_size=self.step_size)
        return metropolis_resume(state, energy)

    def step(
        self, state: Any, energy: EnergyGradient, noise: Noise, *, backend: str = "auto"
    ) -> MetropolisState:
        """One trajectory of every chain, and its decision, in place."""
        state = cast(MetropolisState, state)
        h = step_size_now(state, self.step_size, self.target_acceptance)
        if self.jitter:
            u = noise.purpose(Purpose.JITTER).uniform((state.x.shape[0], 1), device=state.x.device)
            h = h * (1 + self.jitter * (2 * u[:, 0].double() - 1))
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
