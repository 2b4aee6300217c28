r"""The normal law.

    U(x) = (x - m)^T P (x - m) / 2,    P = C^-1,    log Z = (d log(2 pi) + log det C) / 2
    grad U(x) = P (x - m)

With a full C, U is half the square of W (x - m), where C = L L^T and W = L^-1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._check import check_count
from ..errors import ArgumentError, ShapeError
from ._analytic import AnalyticEnergy, transposed
from ._arguments import check_scales, cholesky, numbers, positive
from ._draws import Source


class Gaussian(AnalyticEnergy):
    """N(mean, C) in any dimension (the module's docstring has the equation).

    Args:
        mean: (d,), or a number for one dimension.
        std: standard deviations, a number or (d,). At most one of these three is given; without
            any, std = 1.
        covariance: C, (d, d); or its diagonal, a number or (d,).
        precision: P, (d, d); or its diagonal, a number or (d,).

    Raises:
        ArgumentError, ShapeError: more than one spread, a wrong shape, or no such law;
            a variance or a precision that is no normal float64.
    """

    location: Tensor
    spread: Tensor
    """Standard deviations (d,), or A (d, d) with C = A A^T."""
    metric: Tensor
    """The diagonal of P (d,), or W = A^-1 (d, d)."""
    _in_dtype = ("location", "metric", "halves")

    def __init__(
        self,
        mean: Any = 0.0,
        *,
        std: Any = None,
        covariance: Any = None,
        precision: Any = None,
    ) -> None:
        location = numbers("mean", mean)
        if location.dim() > 1 or not location.numel():
            raise ShapeError(f"mean has shape {tuple(location.shape)}: give (d,) or a number")
        location = location.reshape(-1)
        super().__init__(len(location))
        given = {"std": std, "covariance": covariance, "precision": precision}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ArgumentError(f"{' and '.join(given)} are given: give one of them")
        name, value = next(iter(given.items()), ("std", 1.0))
        spread, metric = _spread(name, value, location)
        check_scales(name, value, spread.diagonal() if spread.dim() == 2 else spread)
        halves = torch.full_like(location, 0.5)
        self._hold(location=location, spread=spread, metric=metric, halves=halves)
        log_scale = float(spread.logdet() if spread.dim() == 2 else spread.log().sum())
        self.log_partition = self.dim * math.log(2 * math.pi) / 2 + log_scale

    def _energy(self, x: Tensor) -> Tensor:
        location, metric, _ = self._constants(x)
        y = x - location
        squares = (y @ metric.mT).square() if metric.dim() == 2 else metric * y * y
        return 0.5 * squares.sum(1)

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        location, metric, halves = self._constants(x)
        y = x - location
        if metric.dim() == 2:  # a short last axis is slow in a product of matrices
            y = metric @ y.mT
            return halves @ y.square(), transposed(metric.mT @ y)
        grad = y * metric
        return y.mul_(grad) @ halves, grad

    def _numbers(self) -> tuple[str, int, list[Any]]:
        kind = "full_gaussian" if self.metric.dim() == 2 else "diagonal_gaussian"
        return kind, 1, [self.location, self.metric]

    def _draw(self, source: Source) -> Tensor:
        z = source.normal(self.dim)
        return self.location + (z @ self.spread.mT if self.spread.dim() == 2 else z * self.spread)

    def _moments(self) -> tuple[Tensor, Tensor]:
        spread = self.spread
        covariance = spread @ spread.mT if spread.dim() == 2 else spread.square()
        return self.location.clone(), covariance


def _spread(name: str, value: Any, location: Tensor) -> tuple[Tensor, Tensor]:
    """`Gaussian.spread` and `Gaussian.metric` from one of its arguments."""
    given, d = numbers(name, value).to(location.device), len(location)
    if given.dim() == 2 and given.shape == (d, d) and name != "std":
        factor = cholesky(name, given)
        eye = torch.eye(d, dtype=torch.float64, device=given.device)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        return (factor, inverse) if name == "covariance" else (inverse.mT, factor.mT)
    if given.shape not in ((), (d,)):
        matrix = "" if name == "std" else f", or ({d}, {d})"
        raise ShapeError(
            f"{name} has shape {tuple(given.shape)}: for a mean ({d},) give a number or"
            f" ({d},){matrix}"
        )
    numbers(name, value, zero=False, negative=False)
    spread = given.expand(d) ** {"std": 1.0, "covariance": 0.5, "precision": -0.5}[name]
    return spread, spread**-2


class QuadraticWell(Gaussian):
    """U = k |x|^2 / 2: the `Gaussian` of mean 0 and precision k, by the name it has as a well.

    Args:
        dim: d.
        stiffness: k > 0.
    """

    def __init__(self, dim: int = 1, *, stiffness: float = 1.0) -> None:
        zero = torch.zeros(check_count("dim", dim, 1), dtype=torch.float64)
        k = positive("stiffness", stiffness)
        check_scales("stiffness", stiffness, torch.tensor(k, dtype=torch.float64).rsqrt())
        super().__init__(zero, precision=k)
