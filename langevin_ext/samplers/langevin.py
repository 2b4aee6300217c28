r"""Unadjusted Langevin dynamics.

    x <- clamp(x - (h / 2) grad U(x) - (h / 2) rho x + sqrt(h T) xi,  lo, hi)

Source: equation (4) of Nijkamp, Hill, Zhu and Wu, "Learning Non-Convergent Non-Persistent
Short-Run MCMC Toward Energy-Based Model" (NeurIPS 2019), with U = -f; Roberts and Tweedie (1996).
On a Gaussian of precision l its stationary variance is 1 / (l (1 - h l / 4)), and it is stable if
and only if h l < 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._check import check_clamp, check_number
from .._types import ChainMove, Clamp, Coefficient, StepStats
from ..gradient import EnergyGradient
from ..noise import Noise, Purpose
from ..step import langevin_step_
from ._rule import Schedule, at_step, check_fit, check_schedule


class LangevinState(NamedTuple):
    """State of the overdamped rules; see `ChainState`."""

    x: Tensor
    energy: Tensor
    stats: StepStats
    step: int


def overdamped_init(x: Tensor) -> LangevinState:
    """Chains at x, before their first gradient."""
    nan = torch.full(x.shape[:1], torch.nan, dtype=x.dtype, device=x.device)
    return LangevinState(x, nan, StepStats.empty(x.shape[0], x.device, x.dtype), 0)


def overdamped_step(
    state: LangevinState, energy: EnergyGradient, noise: Noise, backend: str, **coefficients: Any
) -> LangevinState:
    """One gradient and one fused step."""
    value, grad = energy(state.x)
    silent = not isinstance(coefficients["diffusion"], Tensor) and coefficients["diffusion"] == 0
    langevin_step_(
        state.x,
        grad,
        noise=None if silent else noise,
        stats=state.stats,
        backend=backend,
        **coefficients,
    )
    if silent:
        noise.advance()  # one position a step, drawn from or not
    return LangevinState(state.x, value, state.stats, state.step + 1)


def overdamped_move(
    drift: Coefficient,
    diffusion: Coefficient,
    reference_precision: float,
    clamp: Clamp | None,
    max_grad_norm: Coefficient = math.inf,
    per: str = "sample",
    noise_power: float = 0.5,
) -> ChainMove:
    """A step of `langevin_step_` with these arguments, for kernels of whole chains."""
    low, high = clamp or (None, None)
    return ChainMove(
        "overdamped",
        (drift, diffusion, max_grad_norm),
        (Purpose.DIFFUSION, Purpose.DIFFUSION),
        isinstance(diffusion, Tensor) or diffusion != 0,
        reference_precision,
        -math.inf if low is None else float(low),
        math.inf if high is None else float(high),
        noise_power,
        per == "coordinate",
    )


def check_overdamped(
    step_size: Schedule,
    temperature: Schedule,
    noise_std: Schedule | None,
    clamp: Clamp | None,
    reference_precision: float,
) -> None:
    """Check what the overdamped rules share."""
    check_schedule("step_size", step_size)
    check_schedule("temperature", temperature)
    if noise_std is not None:
        check_schedule("noise_std", noise_std, zero=True)
    check_clamp(clamp)
    check_number("reference_precision", reference_precision, zero=True)


def overdamped_coefficients(
    step_size: Schedule,
    temperature: Schedule,
    noise_std: Schedule | None,
    step: int,
    x: Tensor | None = None,
) -> tuple[Coefficient, Coefficient]:
    """(drift, diffusion) at a step: (h / 2, sqrt(h T)), or (h / 2, noise_std)."""
    h = at_step("step_size", step_size, step, x)
    if noise_std is not None:
        return h / 2, at_step("noise_std", noise_std, step, x, zero=True)
    variance = h * at_step("temperature", temperature, step, x)
    return h / 2, variance.sqrt() if isinstance(variance, Tensor) else math.sqrt(variance)


@dataclass(frozen=True)
class Langevin:
    """Unadjusted Langevin dynamics (the module's docstring has the equation).

    Args:
        step_size: h > 0; a number, a 0-d or (B,) tensor, or a function of the step's number.
        temperature: T > 0; likewise. Not used when ``noise_std`` is given.
        noise_std: the noise's coefficient, decoupled from the step: >= 0, where 0 is gradient
            descent; likewise. `implied_temperature` says what it amounts to.
        clamp: (lo, hi) of the state after every step, either of them None.
        reference_precision: rho = 1 / sigma^2 of a Gaussian reference measure, >= 0.

    Raises:
        StepSizeError, ArgumentError: a value is outside its range.
    """

    step_size: Schedule
    temperature: Schedule = 1.0
    noise_std: Schedule | None = None
    clamp: Clamp | None = None
    reference_precision: float = 0.0

    state_type = LangevinState

    def __post_init__(self) -> None:
        check_overdamped(
            self.step_size, self.temperature, self.noise_std, self.clamp, self.reference_precision
        )

    @classmethod
    def from_eta(cls, eta: float, **options: Any) -> Langevin:
        """x - eta grad U + sqrt(2 eta) xi: the convention of stochastic-gradient MCMC."""
        return cls(step_size=2 * check_number("eta", eta), **options)

    @classmethod
    def from_delta(cls, delta: float, **options: Any) -> Langevin:
        """x - (delta^2 / 2) grad U + delta xi: the convention of energy-based learning."""
        return cls(step_size=check_number("delta", delta) ** 2, **options)

    @classmethod
    def from_coefficients(cls, drift: float, diffusion: float, **options: Any) -> Langevin:
        """x - drift grad U + diffusion xi, the two decoupled: what most code writes."""
        number = check_number("diffusion", diffusion, zero=True)
        return cls(step_size=2 * check_number("drift", drift), noise_std=number, **options)

    def coefficients(self, step: int = 0) -> tuple[Coefficient, Coefficient]:
        """(drift, diffusion) at a step: of grad U and of the noise, with nothing hidden."""
        return overdamped_coefficients(self.step_size, self.temperature, self.noise_std, step)

    def implied_temperature(self, step: int = 0) -> Coefficient:
        """T = diffusion^2 / (2 drift): the law sampled is exp(-U / T), up to the step's bias."""
        drift, diffusion = self.coefficients(step)
        return diffusion**2 / (2 * drift)

    def init(self, energy: EnergyGradient, x: Tensor, noise: Noise) -> LangevinState:
        """Fresh chains at x (B, ...)."""
        del energy, noise
        check_fit(x, step_size=self.step_size)
        return overdamped_init(x)

    def step(
        self, state: Any, energy: EnergyGradient, noise: Noise, *, backend: str = "auto"
    ) -> LangevinState:
        """One step of every chain, in place."""
        state = cast(LangevinState, state)
        return overdamped_step(state, energy, noise, backend, **self.arguments(state.step))

    def arguments(self, step: int = 0) -> dict[str, Any]:
        """What `langevin_step_` is given at a step, besides the chains and the noise."""
        drift, diffusion = self.coefficients(step)
        return {
            "drift": drift,
            "diffusion": diffusion,
            "reference_precision": self.reference_precision,
            "clamp": self.clamp,
        }

    def chain_move(self, state: Any) -> ChainMove:
        """The step after this state, for kernels of whole chains."""
        return overdamped_move(**self.arguments(state.step))
