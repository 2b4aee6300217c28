"""Laws on the line, and what rules that accept or reject do there, by quadrature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import optimize, special, stats

from langevin_ext import HMC
from langevin_ext.energies import Gaussian, GaussianMixture, Logistic
from langevin_ext.testing import Kernel1D

from .conftest import DEVICE


class Line(NamedTuple):
    """A law on the line, of which the span holds all but 1e-9."""

    energy: Any
    cdf: Callable[[np.ndarray], Any]
    span: tuple[float, float]

    def value(self, x: np.ndarray) -> np.ndarray:
        return self.slopes(x)[0]

    def slope(self, x: np.ndarray) -> np.ndarray:
        return self.slopes(x)[1]

    def slopes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = torch.tensor(np.ravel(x)[:, None], device=DEVICE)
        return tuple(t.cpu().numpy().reshape(x.shape) for t in self.energy.value_and_gradient(at))

    def nodes(self, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
        """Of a quadrature, and the law's weights there."""
        x, w = np.polynomial.legendre.leggauss(n)
        low, high = self.span
        x = (low + high + (high - low) * x) / 2
        w = w * np.exp(-self.value(x))
        return x, w / w.sum()

    def moment(self, k: int) -> float:
        x, w = self.nodes()
        return float(w @ x**k)

    def kernel(self, rule: Any, **grid: Any) -> Kernel1D:
        """The exact kernel of MALA or AniLA."""
        h, b = rule.step_size, min(getattr(rule, "threshold", 1e9), 1e9)

        def gamma(x: np.ndarray) -> np.ndarray:
            return b / np.maximum(b, np.abs(self.slope(x)))

        def excess(x: Any) -> np.ndarray:
            return np.abs(self.slope(np.asarray(x))) - b

        x = np.linspace(*self.span, 1000)
        turns = np.flatnonzero(np.diff(excess(x) > 0))
        breaks = [optimize.brentq(excess, x[i], x[i + 1]) for i in turns]

        return Kernel1D.gaussian(
            lambda x: x - h / 2 * gamma(x) * self.slope(x),
            lambda x: np.sqrt(h * gamma(x)),
            self.span,
            energy=self.value,
            breaks=breaks,
            **grid,
        )

    def acceptance(self, rule: Any) -> float:
        """The mean of min(1, ratio) over the law, by quadrature, to 1e-4."""
        if not isinstance(rule, HMC):
            kernel = self.kernel(rule, nodes=400)
            rough, fine = (
                k.acceptance(lambda x: np.exp(-self.value(x))) for k in (kernel, kernel.refined())
            )
            return (4 * fine - rough) / 3  # the errors are of the order of a spacing squared
        h = rule.step_size
        x, w = self.nodes(600)
        p, v = np.polynomial.legendre.leggauss(600)
        p, v = 8 * p, v * np.exp(-32 * p**2)
        y, q = x[:, None] + 0 * p, p + 0 * x[:, None]
        before = self.value(y) + q**2 / 2
        for _ in range(rule.leapfrog_steps):
            q = q - h / 2 * self.slope(y)
            y = y + h * q
            q = q - h / 2 * self.slope(y)
        ratio = np.exp(np.minimum(0, before - self.value(y) - q**2 / 2))
        return float(w @ ratio @ (v / v.sum()))


LINES = {
    "normal": Line(Gaussian(1.0, std=2.0), stats.norm(1, 2).cdf, (-15.0, 17.0)),
    "logistic": Line(Logistic(1, scale=0.8), stats.logistic(scale=0.8).cdf, (-20.0, 20.0)),
    "mixture": Line(
        GaussianMixture([[-2.0], [1.5]], stds=[0.5, 1.0], weights=[0.3, 0.7]),
        lambda x: 0.3 * special.ndtr((x + 2) / 0.5) + 0.7 * special.ndtr(x - 1.5),
        (-7.0, 9.0),
    ),
}
STANDARD = Line(Gaussian(0.0), special.ndtr, (-8.0, 8.0))
