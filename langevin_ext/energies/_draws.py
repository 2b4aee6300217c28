"""Where exact draws come from: numbers at a position of the noise, and inverse distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..noise import Noise

_CELLS = 4096
_ORDER = 8
_ROOT_2PI = math.sqrt(2 * math.pi)
_LEAST_TAIL = 2.0**-41


class Source:
    """Numbers for n draws, in float64; row i is chain i of the noise.

    Args:
        noise: already of its purpose. Normals come from its position, uniforms from the next.
        n: rows.
        device: where to make them.
    """

    POSITIONS: ClassVar[int] = 2

    def __init__(self, noise: Noise, n: int, device: torch.device) -> None:
        self.n, self.device = n, device
        self._normal, self._uniform = noise, noise.ahead(1)

    def normal(self, columns: int) -> Tensor:
        """Standard normals (n, columns), as `Noise` makes them: |z| <= 6.76, in float32's steps."""
        return self._normal.normal((self.n, columns), dtype=torch.float64, device=self.device)

    def uniform(self, columns: int) -> Tensor:
        """Uniform numbers in [0, 1), (n, columns), in steps of 2^-40 at most.

        The noise's own are in steps of 2^-24 near 1. Modulo 1 their sum with others of a 2^16-th
        of the size has a distribution function within 2^-33 of the uniform one.
        """
        shape = self.n, 2 * columns
        words = self._uniform.uniform(shape, dtype=torch.float64, device=self.device)
        return (words[:, :columns] + words[:, columns:] * 2.0**-16) % 1


def sign_and_tail(u: Tensor) -> tuple[Tensor, Tensor]:
    """From a uniform number a sign, and P(|X| > |x|) in [2^-41, 1] of a symmetric law's draw."""
    centred = 2 * u - 1
    return torch.where(centred < 0, -1.0, 1.0), (1 - centred.abs()).clamp(min=_LEAST_TAIL)


def quadrature(low: float, high: float) -> tuple[Tensor, Tensor]:
    """Points and weights (4096, 8): Gauss and Legendre's of order 8 in 4096 cells."""
    nodes, weights = (torch.tensor(t.tolist(), dtype=torch.float64, device="cpu")
                      for t in np.polynomial.legendre.leggauss(_ORDER))  # fmt: skip
    width = (high - low) / _CELLS
    left = low + width * torch.arange(_CELLS, dtype=torch.float64, device="cpu")[:, None]
    return left + width * (nodes + 1) / 2, (width / 2 * weights).expand(_CELLS, _ORDER)


class Quantiles(nn.Module):
    """The inverse distribution function of exp(log_density) on [low, high], from a table.

    The distribution function is integrated to rounding at 4097 nodes and is the cubic through its
    values and slopes between them. With h the width of a cell the error in probability is
    h^4 / 384 times the density's third derivative: 1e-11 where a cell is a hundredth of the
    narrowest mode.

    Args:
        log_density: float64 (...) -> (...), on a CPU; finite or -inf.
        low, high: where all but e^-40 of the density is.

    Attributes:
        log_total: the logarithm of the integral of exp(log_density).
    """

    distribution: Tensor
    slopes: Tensor

    def __init__(self, log_density: Callable[[Tensor], Tensor], low: float, high: float) -> None:
        super().__init__()
        points, weights = quadrature(low, high)
        nodes = torch.linspace(low, high, _CELLS + 1, dtype=torch.float64, device="cpu")
        values = log_density(points)
        top = float(values.max())
        cells = ((values - top).exp() * weights).sum(1)
        total = float(cells.sum())
        self.low, self.width = low, (high - low) / _CELLS
        self.log_total = math.log(total) + top
        distribution = torch.cat([torch.zeros_like(cells[:1]), cells.cumsum(0)]) / total
        slopes = (log_density(nodes) - top).exp() * (self.width / total)
        place = torch.empty(0).device
        self.register_buffer("distribution", distribution.to(place), persistent=False)
        self.register_buffer("slopes", slopes.to(place), persistent=False)

    def forward(self, p: Tensor) -> Tensor:
        """The x with P(X <= x) = p, for p in [0, 1]."""
        table, slopes = self.distribution, self.slopes
        cell = (torch.searchsorted(table, p.contiguous(), right=True) - 1).clamp(0, _CELLS - 1)
        start, first, last = table[cell], slopes[cell], slopes[cell + 1]
        rise = table[cell + 1] - start
        cubic, square = first + last - 2 * rise, 3 * rise - 2 * first - last
        aim = p - start
        s = (aim / rise).clamp(0, 1)
        for _ in range(4):  # Newton, from the chord
            value = ((cubic * s + square) * s + first) * s
            slope = (3 * cubic * s + 2 * square) * s + first
            s = (s - (value - aim) / slope).nan_to_num(nan=0.5).clamp(0, 1)
        return self.low + self.width * (cell + s)


def radial_integral(rho: Tensor, power: int = 1) -> Tensor:
    """J_n, the integral of t^n exp(-(t - rho)^2 / 2) over t > 0, for rho >= 0.

    J_0 = sqrt(2 pi) Phi(rho), J_1 = rho J_0 + exp(-rho^2 / 2), J_n+1 = rho J_n + n J_n-1.
    """
    before: Tensor = _ROOT_2PI * torch.special.ndtr(rho)
    here: Tensor = rho * before + (-0.5 * rho * rho).exp()
    for n in range(1, power):
        before, here = here, rho * here + n * before
    return here


def draw_radius(tail: Tensor, rho: Tensor) -> Tensor:
    """t with P(T > t) = tail, for the density t exp(-(t - rho)^2 / 2) / J_1 on t > 0, rho >= 0.

    P(T > t) = (exp(-s^2 / 2) + rho sqrt(2 pi) Phi(-s)) / J_1 at s = t - rho. Twenty bisections,
    then two of Newton's steps in t^2, in which the density has no zero: exact to rounding.
    """
    total = radial_integral(rho)

    def excess(t: Tensor) -> Tensor:
        s = t - rho
        below: Tensor = torch.special.ndtr(-s)
        return ((-0.5 * s * s).exp() + rho * _ROOT_2PI * below) / total - tail

    low = (rho - 9).clamp(min=0)
    high = rho + 9
    for _ in range(20):
        middle = (low + high) / 2
        beyond = excess(middle) > 0
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    t = (low + high) / 2
    for _ in range(2):
        density = (-0.5 * (t - rho) ** 2).exp() / total
        t = (t * t + 2 * excess(t) / density).clamp(min=0).sqrt()
    return t
