r"""Laws that are a normal one, bent: their draws are a map of normals.

Banana: with x_1 = s z_1, x_2 = b (x_1^2 - s^2) + t z_2 (Haario, Saksman and Tamminen, "Adaptive
proposal distribution for random walk Metropolis algorithm", Computational Statistics 1999)

    U(x) = x_1^2 / (2 s^2) + v^2 / (2 t^2),  v = x_2 - b (x_1^2 - s^2),    Z = 2 pi s t
    grad U(x) = (x_1 / s^2 - 2 b x_1 v / t^2, v / t^2)
    E x = 0,  Var x_1 = s^2,  Var x_2 = t^2 + 2 b^2 s^4,  uncorrelated

Funnel: with x_1 = s z_1, x_i = exp(x_1 / 2) z_i (Neal, "Slice sampling", Annals of Statistics 2003,
where s = 3, d = 10)

    U(x) = x_1^2 / (2 s^2) + (d - 1) x_1 / 2 + exp(-x_1) sum_i x_i^2 / 2,    Z = (2 pi)^(d/2) s
    E x = 0,  Var x_1 = s^2,  Var x_i = exp(s^2 / 2),  uncorrelated
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._check import check_count
from ..errors import ArgumentError
from ._analytic import AnalyticEnergy, transposed
from ._arguments import deviation, finite
from ._draws import Source


class Banana(AnalyticEnergy):
    """A normal law bent along a parabola (the module's docstring has the equation).

    Args:
        std: s > 0, along it.
        curvature: b, any finite number; where b s^2 is large, Var x_2 overflows to infinity.
        width: t > 0, across it.

    Raises:
        ArgumentError: a value is outside its range, or s^2, t^2 or b s^2 that of float64.
    """

    squares: Tensor
    """E x^2 (2,)."""

    def __init__(self, std: float = 1.0, curvature: float = 1.0, width: float = 0.5) -> None:
        super().__init__(2)
        self.std, self.width = deviation("std", std), deviation("width", width)
        self.curvature = finite("curvature", curvature)
        sag = self.curvature * self.std**2
        if not math.isfinite(sag):
            raise ArgumentError(
                f"curvature={curvature!r} with std={std!r}: curvature * std**2 overflows"
            )
        # Products, where they overflow, are infinite; a power of a Python number raises.
        squares = [self.std**2, self.width**2 + 2 * sag * sag]
        self._hold(squares=torch.tensor(squares, dtype=torch.float64))
        self.log_partition = math.log(2 * math.pi * self.std * self.width)

    def _above(self, x: Tensor) -> Tensor:
        """v (B,)."""
        return x[:, 1] - self.curvature * (x[:, 0].square() - self.std**2)

    def _energy(self, x: Tensor) -> Tensor:
        return ((x[:, 0] / self.std).square() + (self._above(x) / self.width).square()) / 2

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        points = transposed(x)
        along, above = points[0] / self.std, self._above(points.mT).div_(self.width)
        up = torch.div(above, self.width, out=points[1])
        points[0].mul_(up).mul_(-2 * self.curvature).add_(along, alpha=1 / self.std)
        return along.square_().add_(above.square_()).div_(2), transposed(points)

    def _numbers(self) -> tuple[str, int, list[Any]]:
        return "banana", 1, [[1 / self.std, self.curvature, 1 / self.width, self.std**2]]

    def _draw(self, source: Source) -> Tensor:
        z = source.normal(2)
        along = self.std * z[:, 0]
        parabola = self.curvature * (along.square() - self.std**2)
        return torch.stack([along, parabola + self.width * z[:, 1]], 1)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.squares), self.squares.clone()


class Funnel(AnalyticEnergy):
    """Neal's funnel, x_1 the scale of the others (the module's docstring has the equation).

    Where exp(-x_1 / 2) is beyond the numbers of a dtype it is taken to be near the largest of them.

    Args:
        dim: d >= 2.
        std: s > 0, of the first coordinate; from 38 on Var x_i overflows to infinity.

    Raises:
        ArgumentError: a value is outside its range, or s^2 that of float64.
    """

    halves: Tensor
    """1/2 for each of the other coordinates (d - 1,)."""
    _in_dtype = ("halves",)

    def __init__(self, dim: int = 10, *, std: float = 3.0) -> None:
        super().__init__(check_count("dim", dim, 2))
        self.std = deviation("std", std)
        self._hold(halves=torch.full((self.dim - 1,), 0.5, dtype=torch.float64))
        self.log_partition = self.dim / 2 * math.log(2 * math.pi) + math.log(self.std)

    def _widths(self, v: Tensor) -> Tensor:
        """exp(-v / 2) (B,): finite, so that its product with 0 is 0."""
        largest = math.floor(math.log(torch.finfo(v.dtype).max))
        return (-0.5 * v).clamp(max=largest).exp()

    def _energy(self, x: Tensor) -> Tensor:
        v = x[:, 0]
        y = x[:, 1:] * self._widths(v)[:, None]
        along = v * (v / (2 * self.std**2) + (self.dim - 1) / 2)
        return along + y.square().sum(1) / 2

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (halves,) = self._constants(x)
        points = transposed(x)
        v, y = points[0], points[1:]
        widths = self._widths(v)
        across = halves @ y.mul_(widths).square()
        y.mul_(widths)
        along = v / (2 * self.std**2)
        value = v.mul(along + (self.dim - 1) / 2).add_(across)
        torch.sub(along.mul_(2).add_((self.dim - 1) / 2), across, out=v)
        return value, transposed(points)

    def _numbers(self) -> tuple[str, int, list[Any]]:
        return "funnel", 1, [[self.std**-2]]

    def _draw(self, source: Source) -> Tensor:
        z = source.normal(self.dim)
        z[:, 0] *= self.std
        z[:, 1:] *= (z[:, :1] / 2).exp()
        return z

    def _moments(self) -> tuple[Tensor, Tensor]:
        variance = self.halves.new_full((self.dim,), self.std**2 / 2).exp_()
        variance[0] = self.std**2
        return torch.zeros_like(variance), variance
