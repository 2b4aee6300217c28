"""Known answers of the field, one test each: what a textbook or a paper says must come out.

Laws of unadjusted Langevin on Gaussians are Gaussian at every step, so chains are held against
exact means and covariances, not against limits. Step sizes are `Langevin`'s: h / 2 of the gradient.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from langevin_ext import MALA, Langevin, Noise, Purpose, sample
from langevin_ext.energies import EightGaussians
from langevin_ext.testing import Checks

from .conftest import chains

Array = npt.NDArray[np.float64]


def initial(seed: int, shape: tuple[int, ...]) -> Tensor:
    return Noise(seed, stream=Purpose.INITIAL_STATE).normal(shape)


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(1)


@pytest.mark.parametrize("steps", [1, 4, 400])
def test_langevin_on_a_gaussian_of_full_covariance(steps: int, seed: int) -> None:
    """N(0, A^-1): the stationary covariance is A^-1 (I - h A / 4)^-1; and from a point the mean
    (I - h A / 2)^k x0 and its covariance, with nothing shared by chains."""
    covariance = np.array([[1.0, 0.6, -0.3], [0.6, 2.0, 0.5], [-0.3, 0.5, 0.8]])
    a, h = np.linalg.inv(covariance), 0.4
    shrink = np.eye(3) - h * a / 2
    assert np.abs(np.linalg.eigvalsh(shrink)).max() < 0.96  # 400 steps leave 1e-7 of the start
    mean, spread = np.array([2.0, -1.0, 1.0]), np.zeros((3, 3))
    start = torch.tensor(mean, dtype=torch.float32).repeat(chains(20_000), 1)
    for _ in range(steps):
        mean, spread = shrink @ mean, shrink @ spread @ shrink + h * np.eye(3)
    if steps == 400:
        stationary = covariance @ np.linalg.inv(np.eye(3) - h * a / 4)
        np.testing.assert_allclose(spread, stationary, atol=1e-12)
        assert np.linalg.eigvalsh(stationary - covariance).min() > 0.09
    precision = torch.tensor(a, dtype=torch.float32)
    x = sample(
        lambda x: 0.5 * ((x @ precision) * x).sum(1), start, Langevin(h), steps, seed=1000 + seed
    ).x
    white = np.linalg.solve(np.linalg.cholesky(spread), x.double().cpu().numpy().T - mean[:, None])
    checks = Checks(7)
    for i in range(3):
        checks.gaussian(white[i], 0, 1, what=i)
        checks.uncorrelated(white[i], white[i - 1], what=(i, i - 1))
    checks.independent_chains(white[0])


@pytest.mark.parametrize(
    ("steps", "to_its_law", "to_the_target"),
    [
        (0, 3.043502, 3.041381), (10, 1.802307, 1.801305), (50, 0.230846, 0.231072),
        (100, 0.017762, 0.021850), (200, 0.000105, 0.012740),
    ],
)  # fmt: skip
def test_langevin_contracts(steps: int, to_its_law: float, to_the_target: float, seed: int) -> None:
    """From N(3, 1/4) on N(0, 1) at h = 0.1 the Wasserstein distance W2 to its own law shrinks by
    1 - h / 2 = 0.95 a step, and to the target's as far as 0.012740, the bias of the step."""
    h, shrink = 0.1, 0.95
    own = 1 / (1 - h / 4)
    mean = 3 * shrink**steps
    variance = own + shrink ** (2 * steps) * (0.25 - own)
    distances = [math.hypot(mean, math.sqrt(variance) - math.sqrt(v)) for v in (own, 1.0)]
    assert distances == pytest.approx([to_its_law, to_the_target], abs=1e-6)
    assert distances[0] <= shrink**steps * 3.043502 + 1e-6
    start = 3 + 0.5 * initial(2000 + seed, (chains(100_000), 1))
    x = sample(quadratic, start, Langevin(h), steps, seed=1000 + seed).x[:, 0]
    Checks(1).gaussian(x, mean, variance)


@pytest.mark.parametrize("steps", [100, 1500])
def test_a_decoupled_step_has_a_temperature_of_its_own(steps: int, seed: int) -> None:
    """x - grad U + s xi on U = x^2 / (2 tau): variance s^2 / (1 - (1 - 1 / tau)^2); with tau = 100
    and s = 0.01 .00502513, where exp(-U) has 100."""
    tau, s = 100.0, 0.01
    shrink = 1 - 1 / tau
    stationary = s**2 / (1 - shrink**2)
    assert stationary == pytest.approx(0.00502513, abs=1e-8)
    rule = Langevin.from_coefficients(1.0, s)
    x = sample(
        lambda x: x.square().sum(1) / (2 * tau), torch.full((chains(5000), 1), 0.1), rule, steps,
        seed=1000 + seed,
    ).x[:, 0]  # fmt: skip
    left = shrink ** (2 * steps)
    assert steps < 1500 or left < 1e-12
    Checks(1).gaussian(x, 0.1 * shrink**steps, stationary * (1 - left))


class Latent(torch.nn.Module):
    """U(z) = |z|^2 / 2 + E(G(z)), G linear, E(x) = k x^2 / 2 - m x: chains in a latent space."""

    def __init__(self, a: float, k: float, m: float) -> None:
        super().__init__()
        self.generator = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.generator.weight, a)
        self.k, self.m = k, m

    def forward(self, z: Tensor) -> Tensor:
        x = self.generator(z)
        return (0.5 * z.square() + 0.5 * self.k * x.square() - self.m * x).sum(1)


@pytest.mark.parametrize(
    ("rule", "variance"), [(Langevin(0.05), 0.2133333), (Langevin.from_eta(0.05), 0.2285714)]
)
def test_chains_in_a_latent_space(rule: Langevin, variance: float, seed: int) -> None:
    """Base N(0, 1), generator a z: the law of z is N(m a / (1 + k a^2), 1 / (1 + k a^2)); with
    a = 2, k = m = 1 N(.4, .2), of a z N(.8, .8). Langevin's variance is 1 / (1 - h l / 4) times
    that, in either convention."""
    a, k, m = 2.0, 1.0, 1.0
    precision = 1 + k * a * a
    assert (m * a / precision, 1 / precision, a * a / precision) == pytest.approx((0.4, 0.2, 0.8))
    h = 2 * float(rule.coefficients()[0])
    assert 1 / (precision * (1 - h * precision / 4)) == pytest.approx(variance, abs=1e-7)
    energy = Latent(a, k, m)
    z = sample(energy, initial(2000 + seed, (chains(40_000), 1)), rule, 150, seed=1000 + seed).x
    with torch.no_grad():
        x = energy.generator(z)
    left = (1 - h * precision / 2) ** 150  # 5e-9 at most
    assert left < 1e-8
    checks = Checks(2)
    checks.gaussian(z[:, 0], 0.4, variance, what="z")
    checks.gaussian(x[:, 0], 0.8, 4 * variance, what="x")
    assert all(p.grad is None for p in energy.parameters())


def test_eight_gaussians(seed: int) -> None:
    """E |x|^2 = R^2 + 2 s^2 = 1.045, every mode an eighth, entropy 1.0932 nats (1.1231, that of a
    mode and log 8, if none overlapped): by long chains of an exact rule that start in one mode."""
    s, n = 0.15, chains(3000)
    energy = EightGaussians()
    start = torch.tensor([[1.0, 0.0]]).repeat(n, 1)
    # E x_1 falls by 0.99 a step: 2500 of them leave 1e-10 of the start.
    x = sample(energy, start, MALA(0.15), 2500, seed=1000 + seed).x.double()
    u = energy(x)
    # |x|^2 has the same law around each of the modes.
    square = x.square().sum(1)
    checks = Checks(12)
    law = stats.ncx2(2, 1 / s**2, scale=s**2)
    assert law.mean() == pytest.approx(1.045)
    checks.law(square, law.cdf)
    checks.mean(square, 1.045, law.var(), skewness=float(law.stats("s")))
    turn = torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)
    mode = turn.round().long() % 8
    for k in range(8):
        checks.probability((mode == k).sum(), n, 1 / 8, what=("mode", k))
    # The density by itself, on a grid.
    side = np.linspace(-2.2, 2.2, 441)
    angles = np.arange(8) * math.pi / 4
    at = np.stack(np.meshgrid(side, side), -1)[..., None, :]
    squares = ((at - np.stack([np.cos(angles), np.sin(angles)], -1)) ** 2).sum(-1)
    log_p = special.logsumexp(-squares / (2 * s * s), axis=-1) - math.log(16 * math.pi * s * s)
    p = np.exp(log_p) * (side[1] - side[0]) ** 2
    entropy, second, third = (float((p * (-log_p) ** k).sum()) for k in (1, 2, 3))
    assert p.sum() == pytest.approx(1, abs=1e-9)
    assert entropy == pytest.approx(1.0932, abs=5e-5)
    apart = math.log(8) + math.log(2 * math.pi * math.e * s * s)
    assert apart == pytest.approx(1.1231, abs=5e-5)
    spread = second - entropy**2
    skewness = (third - 3 * entropy * second + 2 * entropy**3) / spread**1.5
    checks.mean(u, entropy, spread, skewness=skewness, what="entropy")
    checks.independent_chains(square)
