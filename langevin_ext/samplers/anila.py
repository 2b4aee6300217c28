r"""AniLA: anisotropic Langevin dynamics, whose step shrinks where the gradient is large.

    gamma(x) = min(1, b / |grad U(x)|)
    x <- clamp(x - (h / 2) gamma grad U(x) - (h / 2) rho x + sqrt(h T) gamma^p xi,  lo, hi)

Source: equations (2) and (3) of Karimi, Xie and Li, "AniLA: Anisotropic Langevin Dynamics for
training Energy-Based Models", where h = 1 and p = 1/2.

It is biased: with p = 1/2 and small steps its law is exp(-U) max(b, |grad U|), up to a constant,
and not exp(-U). On N(0, 1) that has variance 1.0535 at b = 2, 1.4148 at b = 1, 1.7862 at b = 1/2.
What it is good for is stability: a step is never longer than b h / 2 plus noise, however steep
the energy. docs/SAMPLERS.md has the whole story, and what each of the corrections costs:

    weights      averages with weight gamma(x); those of exp(-U) as h tends to 0. Free.
    divergence   x <- x + (h / 2) grad gamma(x) - ...; its law is exp(-U) as h tends to 0. One
                 product with the Hessian H a step, as grad gamma = -gamma H grad U / |grad U|^2.
    metropolis   accept or reject the step; its law is exp(-U) at every h. The step's density
                 scales with gamma(x)^(-d/2), which is part of the ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor

from .._check import as_number, check_noise_power, check_per, check_state
from .._moves import point, propose_
from .._types import ChainMove, Clamp, Coefficient, Energy, Per, StepStats
from ..errors import ArgumentError, NonFiniteError
from ..gradient import EnergyGradient, undisturbed
from ..noise import Noise
from ..step import langevin_step_
from ._rule import ChainState, Schedule, check_fit, check_schedule, norms
from .langevin import (
    LangevinState,
    check_overdamped,
    overdamped_coefficients,
    overdamped_init,
    overdamped_move,
    overdamped_step,
)
from .mala import (
    MetropolisState,
    metropolis_init,
    metropolis_langevin_step,
    metropolis_move,
    metropolis_resume,
)

Correction = Literal["none", "weights", "metropolis", "divergence"]


class WeightedState(NamedTuple):
    """State of chains with weights; see `ChainState`. All of it is at x."""

    x: Tensor
    energy: Tensor
    grad: Tensor
    """(B, ...): grad U(x)."""
    stats: StepStats
    step: int
    weight: Tensor
    """(B,): gamma(x)."""


@dataclass(frozen=True)
class AniLA:
    """Anisotropic Langevin dynamics (the module's docstring has equation, bias and corrections).

    Args:
        threshold: b > 0, in units of |grad U|; a number or a (B,) tensor, constant during a call.
            `gradient_scale` helps to choose one.
        step_size: h > 0; a number, a 0-d or (B,) tensor, or a function of the step's number.
        per: ``"sample"`` clips by the norm of a chain's whole gradient, ``"coordinate"`` each
            coordinate by its own magnitude.
        noise_power: p: 0.5 as written, 1 as its authors' code has it, 0 for clipping the drift
            alone.
        correction: ``"none"``, ``"weights"``, ``"metropolis"`` or ``"divergence"``; all but the
            first ask for what AniLA is as written: ``per="sample"``, p = 1/2 and none of the
            options below.
        temperature, noise_std, clamp, reference_precision: as for `Langevin`.

    Raises:
        StepSizeError, ArgumentError: a value is outside its range.
    """

    threshold: Coefficient
    step_size: Schedule = 1.0
    per: Per = "sample"
    noise_power: float = 0.5
    correction: Correction = "none"
    temperature: Schedule = 1.0
    noise_std: Schedule | None = None
    clamp: Clamp | None = None
    reference_precision: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, Tensor) and callable(self.threshold):
            raise ArgumentError(
                "threshold is a function: it is constant during a call; adapt it between calls"
            )
        check_schedule("threshold", self.threshold, infinite=True)
        check_overdamped(
            self.step_size, self.temperature, self.noise_std, self.clamp, self.reference_precision
        )
        check_per(self.per)
        check_noise_power(self.noise_power)
        if self.correction not in get_args(Correction):
            raise ArgumentError(
                f"correction={self.correction!r}: give one of {get_args(Correction)}"
            )
        if self.correction != "none":
            self._check_as_written()

    def _check_as_written(self) -> None:
        asked = {
            "per": "sample",
            "noise_power": 0.5,
            "temperature": 1.0,
            "noise_std": None,
            "clamp": None,
            "reference_precision": 0.0,
        }
        for name, value in asked.items():
            given = getattr(self, name)
            if isinstance(given, Tensor) or given != value:
                raise ArgumentError(
                    f"{name}={given!r} with correction={self.correction!r}: it corrects AniLA as"
                    f" written, with {name}={value!r}"
                )

    def coefficients(self, step: int = 0) -> tuple[Coefficient, Coefficient]:
        """(drift, diffusion) at a step, before gamma: (h / 2, sqrt(h T))."""
        return overdamped_coefficients(self.step_size, self.temperature, self.noise_std, step)

    @property
    def state_type(self) -> type:
        """Of the states that it goes on from."""
        types = {"metropolis": MetropolisState, "weights": WeightedState}
        return types.get(self.correction, LangevinState)

    def init(self, energy: EnergyGradient, x: Tensor, noise: Noise) -> ChainState:
        """Fresh chains at x (B, ...)."""
        del noise
        check_fit(x, threshold=self.threshold, step_size=self.step_size)
        if self.correction == "metropolis":
            return metropolis_init(energy, x, self.step_size, None)
        if self.correction == "weights":
            stats = StepStats.empty(x.shape[0], x.device, x.dtype)
            return self._weighted(x, energy, stats, 0)
        return overdamped_init(x)

    def resume(self, state: Any, energy: EnergyGradient) -> ChainState:
        """Chains that go on, with what is known of them by this energy."""
        check_fit(state.x, threshold=self.threshold, step_size=self.step_size)
        if self.correction == "metropolis":
            return metropolis_resume(state, energy)
        if self.correction == "weights":
            return self._weighted(state.x, energy, state.stats, state.step)
        return cast(LangevinState, state)

    def step(
        self, state: Any, energy: EnergyGradient, noise: Noise, *, backend: str = "auto"
    ) -> ChainState:
        """One step of every chain, in place."""
        if self.correction == "metropolis":
            return metropolis_langevin_step(
                cast(MetropolisState, state),
                energy,
                noise,
                backend,
                step_size=self.step_size,
                threshold=self.threshold,
                target=None,
            )
        if self.correction == "weights":
            return self._step_with_weights(cast(WeightedState, state), energy, noise, backend)
        if self.correction == "divergence":
            return self._step_with_divergence(state, energy, noise, backend)
        state = cast(LangevinState, state)
        return overdamped_step(state, energy, noise, backend, **self.arguments(state.step))

    def arguments(self, step: int = 0) -> dict[str, Any]:
        """What `langevin_step_` is given at a step, besides the chains and the noise."""
        drift, diffusion = self.coefficients(step)
        return {
            "drift": drift,
            "diffusion": diffusion,
            "max_grad_norm": self.threshold,
            "per": self.per,
            "noise_power": self.noise_power,
            "reference_precision": self.reference_precision,
            "clamp": self.clamp,
        }

    def chain_move(self, state: Any) -> ChainMove | None:
        """The step after this state, for kernels of whole chains; which know no other correction
        than "metropolis"."""
        if self.correction == "metropolis":
            return metropolis_move(state, self.step_size, self.threshold, None)
        return overdamped_move(**self.arguments(state.step)) if self.correction == "none" else None

    def _step_with_weights(
        self, state: WeightedState, energy: EnergyGradient, noise: Noise, backend: str
    ) -> WeightedState:
        """The step as written, then the energy; where that raises, the state is as it was."""
        drift, diffusion = self.coefficients(state.step)
        x, stats = torch.empty_like(state.x), state.stats
        propose_(
            x,
            state.x,
            state.grad,
            drift=drift,
            diffusion=diffusion,
            max_grad_norm=self.threshold,
            noise=noise,
            stats=stats,
            backend=backend,
        )
        after = self._weighted(x, energy, stats, state.step + 1)
        stats.finite.logical_and_(after.weight.isfinite())
        noise.advance()
        return after

    def _weighted(
        self, x: Tensor, energy: EnergyGradient, stats: StepStats, step: int
    ) -> WeightedState:
        """Chains at x, with their energies, gradients and weights."""
        at = point(*energy(x), x)
        return WeightedState(
            x, at.energy, at.grad, stats, step, _gamma(norms(at.grad), self.threshold)
        )

    def _step_with_divergence(
        self, state: LangevinState, energy: EnergyGradient, noise: Noise, backend: str
    ) -> LangevinState:
        """x - (h / 2) gamma (grad U + [clipped] H grad U / |grad U|^2) + sqrt(h gamma) xi."""
        x, stats = state.x, state.stats
        value, grad, product = energy.with_hessian_product(x)
        norm = norms(grad)
        gamma = _gamma(norm, self.threshold)
        scale = torch.where(gamma < 1, norm**-2, 0.0).to(x.dtype)
        drift, diffusion = self.coefficients(state.step)
        langevin_step_(
            x,
            torch.addcmul(grad, scale.view(-1, *[1] * (x.dim() - 1)), product),
            drift=drift * gamma,
            diffusion=diffusion * gamma.sqrt(),
            noise=noise,
            stats=stats,
            backend=backend,
        )
        stats.grad_norm.copy_(norm)
        stats.gamma.copy_(gamma)
        return LangevinState(x, value, stats, state.step + 1)


def _gamma(norm: Tensor, threshold: Coefficient) -> Tensor:
    """min(1, b / norm), (B,) float64; NaN where the norm is not finite."""
    bound = threshold.to(norm) if isinstance(threshold, Tensor) else float(threshold)
    return torch.where(norm <= bound, 1.0, bound / norm).where(norm.isfinite(), torch.nan)


def gradient_scale(energy: Energy, x: Tensor, quantile: float = 0.5) -> float:
    """The median of |grad U| over chains at ``x`` (B, ...), or another of its quantiles.

    A threshold b of this size clips half of the chains; AniLA moves a chain by at most b h / 2 a
    step besides its noise, so b is to grow with the energy during training. The norm is over all
    axes but the first, and ``quantile`` is in [0, 1].

    Raises:
        ArgumentError: the quantile is outside its range; or there are no chains.
        NonFiniteError: a gradient is not finite.
    """
    check_state(x, "the state")
    number = as_number(quantile)
    if not 0 <= number <= 1:
        raise ArgumentError(f"quantile={quantile!r}: give a number in [0, 1]")
    if not x.numel():
        raise ArgumentError(f"x has shape {tuple(x.shape)}: there is no gradient to measure")
    with undisturbed(energy):
        _, grad = EnergyGradient(energy)(x)
    norm = norms(grad)
    bad = (~norm.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"|grad U| is not finite at x[{bad[0]}]", chains=bad)
    return float(np.quantile(norm.cpu().numpy(), number))  # torch's takes no more than 2**24
