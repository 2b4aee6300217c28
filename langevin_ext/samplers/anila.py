r"""AniLA: anisotropic Langevin dynamics, whose step shrinks where the gradient is large.

    gamma(x) = min(1, b / |grad U(x)|)
    x <- clamp(x - (h / 2) gamma grad U(x) - (h / 2) rho x + sqrt(h T) gamma^p xi,  lo, hi)

Source: equations (2) and (3) of Karimi, Xie and Li, "AniLA: Anisotropic Langevin Dynamics for
training Energy-Based Models", where h = 1 and p = 1/2.

It is biased: with p = 1/2 and small steps its law is exp(-U) max(b, |grad U|), up to a constant,
and not exp(-U). On N(0, 1) that has variance 1.0535 at b = 2, 1.4148 at b = 1, 1.7862 at b = 1/2.
What it is good for is stability: a step is never longer than b h / 2 plus noise, however steep
the energy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from .._check import as_number
from .._types import Clamp, Coefficient, Per
from ..errors import ArgumentError
from ..gradient import EnergyGradient
from ..noise import Noise
from ._rule import Schedule, check_schedule
from .langevin import (
    LangevinState,
    check_overdamped,
    overdamped_coefficients,
    overdamped_init,
    overdamped_step,
)


@dataclass(frozen=True)
class AniLA:
    """Anisotropic Langevin dynamics, uncorrected (the module's docstring has equation and bias).

    Args:
        threshold: b > 0, in units of |grad U|; a number or a (B,) tensor, constant during a call.
        step_size: h > 0; a number, a 0-d or (B,) tensor, or a function of the step's number.
        per: ``"sample"`` clips by the norm of a chain's whole gradient, ``"coordinate"`` each
            coordinate by its own magnitude.
        noise_power: p: 0.5 as written, 1 as its authors' code has it, 0 for clipping the drift
            alone.
        temperature, noise_std, clamp, reference_precision: as for `Langevin`.

    Raises:
        StepSizeError, ArgumentError: a value is outside its range.
    """

    threshold: Coefficient
    step_size: Schedule = 1.0
    per: Per = "sample"
    noise_power: float = 0.5
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
        if self.per not in ("sample", "coordinate"):
            raise ArgumentError(f"per={self.per!r}: give 'sample' or 'coordinate'")
        if as_number(self.noise_power) not in (0.0, 0.5, 1.0):
            raise ArgumentError(f"noise_power={self.noise_power!r}: give 0, 0.5 or 1")

    def coefficients(self, step: int = 0) -> tuple[Coefficient, Coefficient]:
        """(drift, diffusion) at a step, before gamma: (h / 2, sqrt(h T))."""
        return overdamped_coefficients(self.step_size, self.temperature, self.noise_std, step)

    def init(self, energy: EnergyGradient, x: Tensor, noise: Noise) -> LangevinState:
        """Fresh chains at x (B, ...)."""
        del energy, noise
        return overdamped_init(x)

    def step(
        self, state: Any, energy: EnergyGradient, noise: Noise, *, backend: str = "auto"
    ) -> LangevinState:
        """One step of every chain, in place."""
        state = cast(LangevinState, state)
        drift, diffusion = self.coefficients(state.step)
        return overdamped_step(
            state,
            energy,
            noise,
            backend,
            drift=drift,
            diffusion=diffusion,
            max_grad_norm=self.threshold,
            per=self.per,
            noise_power=self.noise_power,
            reference_precision=self.reference_precision,
            clamp=self.clamp,
        )
