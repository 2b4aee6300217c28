r"""MALA: the Metropolis-adjusted Langevin algorithm.

    y = x - (h / 2) grad U(x) + sqrt(h) xi
    x <- y with probability min(1, exp(U(x) - U(y)) q(x | y) / q(y | x)),
         q(y | x) = N(x - (h / 2) grad U(x), h)

Source: Besag's comment on Grenander and Miller (1994); Roberts and Tweedie (1996). Its law is
exp(-U), at every step size. In d dimensions the best h goes like d^(-1/3), at an acceptance of
0.574 (Roberts and Rosenthal 1998).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._moves import accept_, point, propose_, room_for_decision
from .._types import ChainMove, Coefficient, Decision, Point, StepStats
from ..errors import ArgumentError
from ..gradient import EnergyGradient
from ..noise import Noise, Purpose
from ._adapt import DualAveraging, check_target
from ._rule import Schedule, at_step, check_fit, check_schedule, norms


class MetropolisState(NamedTuple):
    """State of the rules that accept or reject; see `ChainState`. All of it is at x."""

    x: Tensor
    energy: Tensor
    """(B,): U(x)."""
    grad: Tensor
    """(B, ...): grad U(x)."""
    stats: StepStats
    step: int
    proposal: Tensor
    """(B, ...): the last proposal."""
    log_ratio: Tensor
    """(B,) float64: the log of its acceptance ratio; -inf if it was not finite, NaN of none."""
    accepted: Tensor
    """(B,) bool: whether it was accepted."""
    adaptation: DualAveraging | None
    """The step sizes of a rule with a target acceptance."""

    @property
    def at(self) -> Point:
        """Where the chains are."""
        return Point(self.x, self.grad, self.energy)


def metropolis_init(
    energy: EnergyGradient, x: Tensor, step_size: Schedule, target: float | None
) -> MetropolisState:
    """Chains at x, with their energies and gradients."""
    check_fit(x, step_size=step_size)
    value, grad = energy(x)
    at = point(value, grad.clone(), x)  # which will be written to
    stats = StepStats.empty(x.shape[0], x.device, x.dtype)
    # For good: an accepted proposal is finite, and without a gradient there is none.
    stats.finite.copy_(norms(at.grad).isfinite())
    adaptation = None
    if target is not None:
        first = at_step("step_size", step_size, 0, x)
        adaptation = DualAveraging.start(first, x.shape[0], x.device)
    decision = room_for_decision(x)
    decision.log_ratio.fill_(torch.nan)
    return MetropolisState(x, at.energy, at.grad, stats, 0, x.clone(), *decision, adaptation)


def metropolis_resume(state: MetropolisState, energy: EnergyGradient) -> MetropolisState:
    """Chains that go on, with their energies and gradients by this energy."""
    value, grad = energy(state.x)
    at = point(value, grad.clone(), state.x)
    state.stats.finite.copy_(norms(at.grad).isfinite())
    return state._replace(energy=at.energy, grad=at.grad)


def step_size_now(state: MetropolisState, step_size: Schedule, target: float | None) -> Coefficient:
    """The step size of the next step, by a rule with this target acceptance.

    Raises:
        ArgumentError: it has one, and these chains were started by a rule without.
    """
    if target is None:
        return at_step("step_size", step_size, state.step, state.x)
    if state.adaptation is None:
        raise ArgumentError(
            f"target_acceptance={target!r} for chains that were started without: start from their x"
        )
    return state.adaptation.step_size


def stats_of_proposals(state: MetropolisState) -> StepStats:
    """Where a proposal's kernel records: not over whether the chain is finite."""
    return StepStats(state.stats.grad_norm, state.stats.gamma, torch.empty_like(state.accepted))


def decided(state: MetropolisState, target: float | None) -> MetropolisState:
    """One step on, after a decision."""
    adaptation = None
    if target is not None and state.adaptation is not None:
        adaptation = state.adaptation.updated(state.log_ratio, target)
    return state._replace(step=state.step + 1, adaptation=adaptation)


def end_adaptation(state: MetropolisState) -> MetropolisState:
    """The state after burn-in: its step sizes move no more."""
    if state.adaptation is None:
        return state
    return state._replace(adaptation=state.adaptation.finished())


def metropolis_langevin_step(
    state: MetropolisState,
    energy: EnergyGradient,
    noise: Noise,
    backend: str,
    *,
    step_size: Schedule,
    threshold: Coefficient,
    target: float | None,
) -> MetropolisState:
    """Propose x - (h / 2) gamma grad U(x) + sqrt(h gamma) xi, and decide."""
    h = step_size_now(state, step_size, target)
    proposals: dict[str, Any] = {"drift": h / 2, "diffusion": h**0.5, "max_grad_norm": threshold}
    propose_(
        state.proposal,
        state.x,
        state.grad,
        noise=noise,
        stats=stats_of_proposals(state),
        backend=backend,
        **proposals,
    )
    value, grad = energy(state.proposal)
    there, decision = point(value, grad, state.proposal), Decision(state.log_ratio, state.accepted)
    accept_(state.at, there, decision, noise=noise, backend=backend, **proposals)
    noise.advance()
    return decided(state, target)


def metropolis_move(
    state: MetropolisState, step_size: Schedule, threshold: Coefficient, target: float | None
) -> ChainMove:
    """The step of `metropolis_langevin_step` after this state, for kernels of whole chains."""
    h = step_size_now(state, step_size, target)
    purposes = Purpose.DIFFUSION, Purpose.ACCEPT
    return ChainMove("metropolis", (h / 2, h**0.5, threshold), purposes)


@dataclass(frozen=True)
class MALA:
    """The Metropolis-adjusted Langevin algorithm (the module's docstring has the equation).

    Args:
        step_size: h > 0; a number, a 0-d or (B,) tensor, or a function of the step's number.
        target_acceptance: adapt each chain's step size during burn-in, from ``step_size``, until
            proposals are accepted with this probability; 0.574 is best in high dimension. None
            leaves it as it is.

    A proposal that is not finite, or whose energy or gradient is not, is rejected.

    Raises:
        StepSizeError, ArgumentError: a value is outside its range.
    """

    step_size: Schedule
    target_acceptance: float | None = None

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)
        check_target(self.target_acceptance, self.step_size)

    state_type = MetropolisState

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
        """One step of every chain, in place."""
        return metropolis_langevin_step(
            cast(MetropolisState, state),
            energy,
            noise,
            backend,
            step_size=self.step_size,
            threshold=float("inf"),
            target=self.target_acceptance,
        )

    def chain_move(self, state: Any) -> ChainMove:
        """The step after this state, for kernels of whole chains."""
        return metropolis_move(state, self.step_size, float("inf"), self.target_acceptance)

    def end_burn_in(self, state: Any) -> MetropolisState:
        """Fix the adapted step sizes."""
        return end_adaptation(cast(MetropolisState, state))
