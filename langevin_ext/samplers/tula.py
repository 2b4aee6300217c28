r"""TULA: the tamed unadjusted Langevin algorithm.

    x <- clamp(x - (h / 2) grad U(x) / (1 + (h / 2) |grad U(x)|) + sqrt(h T) xi,  lo, hi)

Source: Brosse, Durmus, Moulines and Sabanis, "The tamed unadjusted Langevin algorithm" (2019),
where h / 2 is called gamma; with ``per="coordinate"`` it is their TULAc, tamed by |grad_j U(x)|.

It bounds the drift, as AniLA does: no drift is longer than 1. Unlike AniLA's, its taming goes away
with the step size, and its law then tends to exp(-U): on N(0, 1) its variance is 1.1093 at h = 0.1
and 2.4872 at h = 1, where AniLA's at b = 1 is 1.4451 and 1.7633.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .._check import check_per
from .._types import Clamp, Coefficient, Per
from ..gradient import EnergyGradient
from ..noise import Noise
from ..step import langevin_step_
from ._rule import Schedule, check_fit, norms
from .langevin import LangevinState, check_overdamped, overdamped_coefficients, overdamped_init


@dataclass(frozen=True)
class TULA:
    """The tamed unadjusted Langevin algorithm (the module's docstring has the equation).

    Args:
        step_size: h > 0; a number, a 0-d or (B,) tensor, or a function of the step's number.
        per: ``"sample"`` tames by the norm of a chain's whole gradient, ``"coordinate"`` each
            coordinate by its own magnitude.
        temperature, clamp: as for `Langevin`.

    Raises:
        StepSizeError, ArgumentError: a value is outside its range.
    """

    step_size: Schedule
    per: Per = "sample"
    temperature: Schedule = 1.0
    clamp: Clamp | None = None

    state_type = LangevinState

    def __post_init__(self) -> None:
        check_overdamped(self.step_size, self.temperature, None, self.clamp, 0.0)
        check_per(self.per)

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
        x = state.x
        drift, diffusion = overdamped_coefficients(
            self.step_size, self.temperature, None, state.step, x
        )
        value, grad = energy(x)
        norm = norms(grad)
        if self.per == "sample":
            drift = drift / (1 + drift * norm)
            drift = torch.where(norm.isfinite(), drift, torch.nan)
        else:
            if isinstance(drift, Tensor) and drift.dim():
                each: Coefficient = drift.view(-1, *[1] * (x.dim() - 1))
            else:
                each = drift
            wide = grad.double()  # in which nothing overflows
            grad = (wide / (1 + each * wide.abs())).to(x.dtype)
        langevin_step_(
            x,
            grad,
            drift=drift,
            diffusion=diffusion,
            noise=noise,
            clamp=self.clamp,
            stats=state.stats,
            backend=backend,
        )
        state.stats.grad_norm.copy_(norm)
        return LangevinState(x, value, state.stats, state.step + 1)
