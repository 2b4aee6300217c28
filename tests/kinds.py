"""Analytic energies to run whole chains of: every kind, and step sizes that are short for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from langevin_ext.energies import (
    Banana,
    DoubleWell,
    EightGaussians,
    Funnel,
    Gaussian,
    GaussianMixture,
    Logistic,
    QuadraticWell,
    QuarticWell,
    Rings,
    TwoMoons,
)

from .conftest import normals

DTYPES = torch.float32, torch.float64


def spd(d: int, seed: int = 0) -> Tensor:
    """A covariance with variances about 1 and eigenvalues of 0.5 to some."""
    a = normals(d, d, seed=seed, dtype=torch.float64) / d**0.5
    return a @ a.mT / 2 + 0.5 * torch.eye(d, dtype=torch.float64)


def gaussian(d: int) -> Gaussian:
    return Gaussian(torch.linspace(-1, 1, d), std=torch.linspace(0.7, 1.4, d))


def full_gaussian(d: int) -> Gaussian:
    return Gaussian(torch.linspace(1, -1, d), covariance=spd(d))


def round_mixture(d: int, components: int = 5) -> GaussianMixture:
    means = normals(components, d, seed=1)
    stds = 0.6 + torch.arange(components) % 3 * 0.2
    return GaussianMixture(means, stds=stds, weights=1 + torch.arange(components))


def diagonal_mixture(d: int, components: int = 5) -> GaussianMixture:
    stds = 0.7 + 0.5 * torch.rand(components, d, generator=torch.Generator().manual_seed(2))
    stds[0, 0] = 0.65  # not round, even in one dimension the first of several
    return GaussianMixture(normals(components, d, seed=1), stds=stds)


def full_mixture(d: int, components: int = 3) -> GaussianMixture:
    covariances = torch.stack([spd(d, seed=k) for k in range(components)])
    return GaussianMixture(normals(components, d, seed=1), covariances=covariances)


class Kind(NamedTuple):
    make: Callable[[int], Any]
    step: float
    """A step size that is short for it."""
    dims: tuple[int, ...] = (1, 2, 3, 4, 5, 17, 64, 256)


PLANE = (2,)
KINDS = {
    "gaussian": Kind(gaussian, 0.2),
    "full gaussian": Kind(full_gaussian, 0.2),
    "quadratic well": Kind(lambda d: QuadraticWell(d, stiffness=1.7), 0.2),
    "round mixture": Kind(round_mixture, 0.05),
    "diagonal mixture": Kind(diagonal_mixture, 0.05),
    "full mixture": Kind(full_mixture, 0.05),
    "eight gaussians": Kind(lambda d: EightGaussians(), 0.003, PLANE),
    "rings": Kind(lambda d: Rings([0.0, 1.0, 2.5], [0.3, 0.4, 0.3]), 0.02, PLANE),
    "two moons": Kind(lambda d: TwoMoons(), 0.03, PLANE),
    "banana": Kind(lambda d: Banana(1.1, 0.7, 0.6), 0.03, PLANE),
    "funnel": Kind(lambda d: Funnel(d, std=0.7), 0.03, (2, 3, 4, 5, 17, 64, 256)),
    "double well": Kind(lambda d: DoubleWell(d, minimum=1.3), 0.03),
    "quartic well": Kind(lambda d: QuarticWell(d, stiffness=0.7), 0.1),
    "logistic": Kind(lambda d: Logistic(d, scale=0.6), 0.3),
}
SOME = {name: 2 if kind.dims == PLANE else 5 for name, kind in KINDS.items()}
"""Each energy in one dimension of several."""

EXACT: dict[str, Callable[[int], Any]] = {
    "gaussian": gaussian,
    "quadratic well": lambda d: QuadraticWell(d, stiffness=1.7),
    "double well": lambda d: DoubleWell(d, barrier=1.3, minimum=2.0),
    "quartic well": lambda d: QuarticWell(d, stiffness=0.7),
}
"""Whose kernels have torch's order of operations. A minimum is divided by: it is a power of 2."""


def start(kind: str, d: int, rows: int, dtype: torch.dtype) -> tuple[Any, Tensor]:
    energy = KINDS[kind].make(d)
    return energy, energy.draw(rows, seed=3, dtype=dtype)


def explosive(kind: str, dtype: torch.dtype) -> tuple[Any, Tensor, Tensor]:
    """An energy, 24 chains and their step sizes, of which some blow up, sooner or later."""
    energy = {
        "quartic well": QuarticWell(3),
        "double well": DoubleWell(3, minimum=1.3),
        "banana": Banana(1.1, 0.7, 0.6),
        "funnel": Funnel(3),
    }[kind]
    x0 = 0.5 * normals(24, energy.dim, dtype=dtype)
    x0[5], x0[20], x0[23] = 60.0, -17.0, 1e9
    step = torch.full((24,), 0.02, dtype=dtype)
    step[9:12] = torch.tensor([3.0, 5.0, 40.0])
    x0[12], step[12] = 3.0, torch.finfo(dtype).max  # where U is finite to the last
    return energy, x0, step
