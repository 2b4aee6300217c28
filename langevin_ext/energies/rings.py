r"""Laws around a circle, in the plane.

Rings: with r = |x|

    U(x) = -log sum_k w_k exp(-(r - R_k)^2 / (2 s_k^2))
    grad U(x) = (x / r) sum_k p_k (r - R_k) / s_k^2,    p_k the shares of the sum; 0 at r = 0
    Z = 2 pi sum_k w_k s_k^2 J_1(R_k / s_k)
    J_1(q) = exp(-q^2 / 2) + q sqrt(pi / 2) (1 + erf(q / sqrt 2))

Two moons: the first energy in table 1 of Rezende and Mohamed, "Variational inference with
normalizing flows" (ICML 2015), where R = 2, s = 0.4, w = 0.6:

    U(x) = (r - R)^2 / (2 s^2) - log(exp(-(x_1 - R)^2 / (2 w^2)) + exp(-(x_1 + R)^2 / (2 w^2)))

At angle t the moon at +R is, with c = cos t, l = 1 / s^2 + c^2 / w^2 and q = R (1 / s^2 + c / w^2)
/ sqrt(l), the law r exp(-(sqrt(l) r - q)^2 / 2) of the radius, times

    g(t) = J_1(q) / l  exp(-R^2 (1 - c)^2 / (2 (w^2 + s^2 c^2))),    Z = 2 int g(t) dt

so both are drawn by inverting distribution functions: of an angle, then of the radius.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ShapeError
from ._analytic import AnalyticEnergy, absolute, transposed
from ._arguments import check_scales, deviation, numbers, one_each, positive
from ._draws import (
    Quantiles,
    Source,
    draw_radius,
    quadrature,
    radial_integral,
    sign_and_tail,
)
from .mixture import MAX_COMPONENTS, log_mixture_


def _polar(points: Tensor) -> tuple[Tensor, Tensor]:
    """Of points (2, B): r (B,) without overflow, and x / r (2, B), which is 0 at the origin."""
    r = torch.hypot(points[0], points[1])
    return r, points / r.clamp(min=torch.finfo(r.dtype).tiny)


class Rings(AnalyticEnergy):
    """Concentric rings with normal profiles (the module's docstring has the equation).

    Args:
        radii: (K,) numbers >= 0, of 1 to 64 rings.
        std: s > 0, a number or (K,).
        weights: heights w > 0 of the rings' ridges, a number or (K,).

    Raises:
        ArgumentError, ShapeError: a value is outside its range.
    """

    radii: Tensor
    stds: Tensor
    masses: Tensor
    """The probability of each ring (K,)."""
    _in_dtype = ("log_weights", "columns", "inverses", "pull")

    def __init__(self, radii: Any = (1.0, 2.0, 3.0), std: Any = 0.1, *, weights: Any = 1.0) -> None:
        super().__init__(2)
        radii = numbers("radii", radii, negative=False)
        rings = radii.numel()
        if radii.dim() != 1 or not 1 <= rings <= MAX_COMPONENTS:
            shape = tuple(radii.shape)
            raise ShapeError(f"radii has shape {shape}: give (K,) with 1 <= K <= {MAX_COMPONENTS}")
        signs = {"zero": False, "negative": False}
        stds = one_each("std", std, rings, "for each ring", **signs).to(radii.device)
        check_scales("std", std, stds)
        weights = one_each("weights", weights, rings, "for each ring", **signs).to(radii.device)
        log_masses = weights.log() + 2 * stds.log() + radial_integral(radii / stds).log()
        log_total = log_masses.logsumexp(0)
        self._hold(
            radii=radii,
            stds=stds,
            masses=(log_masses - log_total).exp(),
            log_weights=weights.log()[:, None],
            columns=radii[:, None],
            inverses=1 / stds[:, None],
            pull=torch.stack([stds**-2, radii * stds**-2]),
        )
        self.log_partition = math.log(2 * math.pi) + float(log_total)

    def _energy(self, x: Tensor) -> Tensor:
        log_weights, columns, inverses, _ = self._constants(x)
        t = (torch.linalg.vector_norm(x, dim=1) - columns) * inverses
        return -torch.logsumexp(log_weights - 0.5 * t * t, 0)

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_weights, columns, inverses, pull = self._constants(x)
        r, direction = _polar(transposed(x))
        t = (r - columns).mul_(inverses).square_()  # (K, B)
        value, shares = log_mixture_(torch.sub(log_weights, t, alpha=0.5))
        slopes = pull @ shares  # (2, B): sum_k p_k / s_k^2 and sum_k p_k R_k / s_k^2
        return value, transposed(direction.mul_(slopes[0].mul_(r).sub_(slopes[1])))

    def _numbers(self) -> tuple[str, int, list[Any]]:
        log_weights = self._buffers["log_weights"]
        return "rings", len(self.radii), [log_weights, self.radii, self.stds**-2]

    def _draw(self, source: Source) -> Tensor:
        u = source.uniform(3)
        ring = torch.searchsorted(self.masses.cumsum(0)[:-1], u[:, 0].contiguous(), right=True)
        stds, angle = self.stds[ring], 2 * math.pi * u[:, 1]
        r = stds * draw_radius(1 - u[:, 2], self.radii[ring] / stds)
        return torch.stack([r * angle.cos(), r * angle.sin()], 1)

    def _moments(self) -> tuple[Tensor, Tensor]:
        rho = self.radii / self.stds
        squares = self.stds**2 * radial_integral(rho, 3) / radial_integral(rho)  # E r^2 of each
        return self.radii.new_zeros(2), (self.masses @ squares / 2).expand(2).clone()


class TwoMoons(AnalyticEnergy):
    """Two crescents that face each other (the module's docstring has the equation).

    Args:
        radius: R > 0, of their circle.
        std: s > 0, across them.
        width: w >= s, along the first axis.

    Raises:
        ArgumentError: a value is outside its range.
    """

    squares: Tensor
    """E x^2 (2,)."""

    def __init__(self, radius: float = 2.0, std: float = 0.4, width: float = 0.6) -> None:
        super().__init__(2)
        self.radius = R = positive("radius", radius)  # noqa: N806
        self.std, self.width = deviation("std", std), deviation("width", width)
        if self.width < self.std:
            raise ArgumentError(f"width={width!r} below std={std!r}: give a width >= std")
        # Beyond this angle the density is e^-40 of what it is at 0.
        apart = math.sqrt(80 * (self.width**2 + self.std**2)) / R
        if not 1e-12 < apart < 1e12:
            raise ArgumentError(
                f"radius={radius!r} with std={std!r}, width={width!r}: float64 does not hold these"
                " moons; give lengths within a factor of 1e12 of one another"
            )
        angle = math.acos(1 - apart) if apart < 2 else math.pi
        self.angles = Quantiles(self._log_density_at, 0.0, angle)
        points, weights = quadrature(0.0, angle)
        density = self._log_density_at(points).exp() * weights
        cosine, (scale, rho) = points.cos(), self._radial_law(points)
        radii = density * radial_integral(rho, 3) / (radial_integral(rho) * scale)
        squares = [float((radii * f).sum() / density.sum()) for f in (cosine**2, points.sin() ** 2)]
        self._hold(squares=torch.tensor(squares, dtype=torch.float64))
        self.log_partition = math.log(4) + self.angles.log_total

    def _radial_law(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """l and q at an angle of the moon at +R."""
        cosine, across, along = angle.cos(), self.std**-2, self.width**-2
        scale = across + cosine**2 * along
        return scale, self.radius * (across + cosine * along) / scale.sqrt()

    def _log_density_at(self, angle: Tensor) -> Tensor:
        """log g."""
        scale, rho = self._radial_law(angle)
        cosine = angle.cos()
        apart = self.radius * 2 * (angle / 2).sin() ** 2
        spread = self.width**2 + (self.std * cosine) ** 2
        return radial_integral(rho).log() - scale.log() - apart**2 / (2 * spread)

    def _energy(self, x: Tensor) -> Tensor:
        r: Tensor = torch.linalg.vector_norm(x, dim=1)
        u = absolute(x[:, 0])
        across = ((r - self.radius) / self.std).square() / 2
        along = ((u - self.radius) / self.width).square() / 2
        return across + along - (-2 * self.radius / self.width**2 * u).exp().log1p()

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self.radius / self.width**2
        points = transposed(x)
        u, (r, direction) = points[0], _polar(points)
        t = r.sub_(self.radius).div_(self.std)
        near = u.abs()
        other = (near * (-2 * ratio)).exp_().log1p_()
        near.sub_(self.radius).div_(self.width).square_()
        grad = direction.mul_(t / self.std)
        grad[0] += u / self.width**2 - ratio * torch.tanh(ratio * u)
        return t.square_().add_(near).div_(2).sub_(other), transposed(grad)

    def _numbers(self) -> tuple[str, int, list[Any]]:
        return "two_moons", 1, [[self.radius, self.std**-2, self.width**-2]]

    def _draw(self, source: Source) -> Tensor:
        u = source.uniform(3)
        side, tail = sign_and_tail(u[:, 0])
        angle = self.angles(1 - tail)
        scale, rho = self._radial_law(angle)
        r = draw_radius(1 - u[:, 1], rho) / scale.sqrt()
        moon = torch.where(u[:, 2] < 0.5, -1.0, 1.0)
        return torch.stack([moon * r * angle.cos(), side * r * angle.sin()], 1)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.squares), self.squares.clone()
