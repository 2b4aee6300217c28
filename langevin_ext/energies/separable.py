r"""Energies that are sums over coordinates, which are then independent and alike.

    DoubleWell   U = h sum_i ((x_i / a)^2 - 1)^2    wells at +-a, between them a barrier of h
                 Z = (2 int_0^inf exp(-h ((x / a)^2 - 1)^2) dx)^d, by quadrature
    QuarticWell  U = k sum_i x_i^4 / 4              Z = ((4 / k)^(1/4) Gamma(1/4) / 2)^d
                 E x_i^2 = 2 Gamma(3/4) / (Gamma(1/4) sqrt k), 0.675978 at k = 1
    Logistic     U = sum_i 2 log(2 cosh(x_i / 2s))  Z = s^d,  Var x_i = (pi s)^2 / 3

Draws of a coordinate are a sign and the inverse of |x|'s distribution function: of the logistic law
in closed form, of the wells from a table that is exact to 1e-10 in probability.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from .._check import check_count
from ..errors import ArgumentError
from ._analytic import AnalyticEnergy, absolute
from ._arguments import positive
from ._draws import Quantiles, Source, quadrature, sign_and_tail


class _Separable(AnalyticEnergy):
    """Coordinates that are independent, alike, and symmetric about 0."""

    sums: Tensor
    """(d,): the product with it is the sum over coordinates, times a factor."""
    _in_dtype = ("sums",)

    def __init__(self, dim: int, factor: float, variance: float) -> None:
        super().__init__(check_count("dim", dim, 1))
        self._variance = variance
        self._hold(sums=torch.full((self.dim,), factor, dtype=torch.float64))

    @abstractmethod
    def _sizes(self, tail: Tensor) -> Tensor:
        """|x| with P(|X| > |x|) = tail."""

    def _draw(self, source: Source) -> Tensor:
        sign, tail = sign_and_tail(source.uniform(self.dim))
        return sign * self._sizes(tail)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.sums), torch.full_like(self.sums, self._variance)


class DoubleWell(_Separable):
    """h sum ((x / a)^2 - 1)^2, which has 2^d wells (the module's docstring has the law).

    As k (x^2 - a^2)^2 it is ``barrier=k * a**4, minimum=a``; ``DoubleWell()`` is 2 (x^2 - 1)^2.

    Args:
        dim: d.
        barrier: h > 0, the height between two wells.
        minimum: a > 0, where they are.
    """

    def __init__(self, dim: int = 1, *, barrier: float = 2.0, minimum: float = 1.0) -> None:
        h, a = positive("barrier", barrier), positive("minimum", minimum)
        if not (h < 1e20 and 1e-100 < a < 1e100):
            raise ArgumentError(
                f"barrier={barrier!r}, minimum={minimum!r}: float64 does not hold these wells; give"
                " a barrier below 1e20 and a minimum between 1e-100 and 1e100"
            )

        def log_density(x: Tensor) -> Tensor:
            return -h * ((x / a) ** 2 - 1) ** 2

        reach = math.sqrt(40 / h)  # beyond it the density is e^-40 of its largest
        low, high = a * math.sqrt(max(0.0, 1 - reach)), a * math.sqrt(1 + reach)
        points, weights = quadrature(low, high)
        mass = log_density(points).exp() * weights
        super().__init__(dim, h, float((mass * points**2).sum() / mass.sum()))
        self.barrier, self.minimum = h, a
        self.sizes = Quantiles(log_density, low, high)
        self.log_partition = self.dim * (math.log(2) + self.sizes.log_total)

    def _energy(self, x: Tensor) -> Tensor:
        return ((x / self.minimum).square() - 1).square().sum(1) * self.barrier

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (sums,) = self._constants(x)
        z = x / self.minimum
        t = (z * z).sub_(1)
        grad = z.mul_(t).mul_(4 * self.barrier / self.minimum)
        return t.square_() @ sums, grad

    def _numbers(self) -> tuple[str, int, list[Any]]:
        return "double_well", 1, [[1 / self.minimum, self.barrier, 4 * self.barrier / self.minimum]]

    def _sizes(self, tail: Tensor) -> Tensor:
        size: Tensor = self.sizes(1 - tail)
        return size


class QuarticWell(_Separable):
    """k sum x^4 / 4 (the module's docstring has the law).

    Args:
        dim: d.
        stiffness: k > 0.
    """

    def __init__(self, dim: int = 1, *, stiffness: float = 1.0) -> None:
        k = positive("stiffness", stiffness)
        variance = 2 * math.gamma(0.75) / (math.gamma(0.25) * math.sqrt(k))
        super().__init__(dim, k / 4, variance)
        self.stiffness = k
        self.sizes = Quantiles(lambda x: -k / 4 * x**4, 0.0, (160 / k) ** 0.25)  # to e^-40
        log_width = math.log(4 / k) / 4 + math.lgamma(0.25) - math.log(2)
        self.log_partition = self.dim * log_width

    def _energy(self, x: Tensor) -> Tensor:
        return x.square().square().sum(1) * (self.stiffness / 4)

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (sums,) = self._constants(x)
        square = x * x
        grad = (x * square).mul_(self.stiffness)
        return square.square_() @ sums, grad

    def _numbers(self) -> tuple[str, int, list[Any]]:
        return "quartic_well", 1, [[self.stiffness]]

    def _sizes(self, tail: Tensor) -> Tensor:
        size: Tensor = self.sizes(1 - tail)
        return size


class Logistic(_Separable):
    """Logistic laws of scale s (the module's docstring has the equation).

    Args:
        dim: d.
        scale: s > 0.
    """

    def __init__(self, dim: int = 1, *, scale: float = 1.0) -> None:
        s = positive("scale", scale)
        variance = (math.pi * s) * (math.pi * s) / 3  # which may overflow; a power would raise
        super().__init__(dim, 1.0, variance)
        self.scale = s
        self.log_partition = self.dim * math.log(s)

    def _energy(self, x: Tensor) -> Tensor:
        z = absolute(x / self.scale)
        return (z + 2 * (-z).exp().log1p()).sum(1)

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (sums,) = self._constants(x)
        z = x.abs().div_(self.scale)
        value = z.neg().exp_().log1p_().mul_(2).add_(z)
        return value @ sums, (x / (2 * self.scale)).tanh_().div_(self.scale)

    def _numbers(self) -> tuple[str, int, list[Any]]:
        return "logistic", 1, [[1 / self.scale]]

    def _sizes(self, tail: Tensor) -> Tensor:
        return self.scale * ((2 - tail) / tail).log()
