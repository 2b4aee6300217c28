r"""Step sizes that find themselves during burn-in: Nesterov's dual averaging.

    e_m = e_{m-1} + (target - acceptance_m)
    log h_m = log(10 h_0) - sqrt(m) / (s (m + m_0)) e_m          s = 0.05, m_0 = 10
    average of log h_m with weights m**-0.75; it is the step size once burn-in ends

Source: Hoffman and Gelman, "The No-U-Turn Sampler" (JMLR 2014), section 3.2, equations (5), (6).

Each chain has its own, so that it does not depend on the batch it is in. A chain whose step size
moves has no stationary law: `sample` ends the adaptation with burn-in.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._check import as_number
from .._types import Coefficient
from ..errors import ArgumentError

_SHRINKAGE, _DELAY, _FORGETTING = 0.05, 10.0, 0.75


class DualAveraging(NamedTuple):
    """The step sizes of chains, (B,) float64 each."""

    step_size: Tensor
    """In use."""
    log_average: Tensor
    error: Tensor
    """The sum of target - acceptance."""
    log_start: Tensor
    steps: int
    done: bool
    """Whether burn-in has ended."""

    @classmethod
    def start(cls, step_size: Coefficient, chains: int, device: torch.device) -> DualAveraging:
        """At a first guess for each chain."""
        h = torch.as_tensor(step_size, dtype=torch.float64, device=device).expand(chains).clone()
        zero = torch.zeros_like(h)
        return cls(h, zero, zero.clone(), (10 * h).log(), 0, False)

    def updated(self, log_ratio: Tensor, target: float) -> DualAveraging:
        """After a step with these log acceptance ratios (B,); as it is once it is done."""
        if self.done:
            return self
        m = self.steps + 1
        acceptance = log_ratio.exp().clamp(max=1).nan_to_num(0)
        error = self.error + (target - acceptance)
        log_h = self.log_start - math.sqrt(m) / (_SHRINKAGE * (m + _DELAY)) * error
        weight = m**-_FORGETTING
        average = weight * log_h + (1 - weight) * self.log_average
        return DualAveraging(log_h.exp(), average, error, self.log_start, m, False)

    def finished(self) -> DualAveraging:
        """With the averaged step sizes, for good."""
        if self.done or not self.steps:
            return self._replace(done=True)
        return self._replace(step_size=self.log_average.exp(), done=True)


def check_target(target: float | None, step_size: Any) -> None:
    """A target acceptance in (0, 1), and a step size to start from.

    Raises:
        ArgumentError: it is not; or the step size is a schedule, which adaptation would override.
    """
    if target is None:
        return
    if not 0 < as_number(target) < 1:
        raise ArgumentError(f"target_acceptance={target!r}: give a number in (0, 1), or None")
    if callable(step_size) and not isinstance(step_size, Tensor):
        raise ArgumentError(
            "target_acceptance adapts the step size, and a schedule sets it: give one of the two"
        )
