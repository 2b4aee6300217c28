"""The rules: their laws are the exact ones, and their conventions agree with one another.

The final states of independent chains are independent draws, so every test here has a bound from
a known law: all the tests that share a `Family` raise one false alarm in 10^6 runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from langevin_ext import AniLA, Langevin, Noise, Purpose, langevin_step_, sample

from .conftest import NO_NATIVE, assert_same_bits, normals

# The reference pads every row to 4096 numbers for its norm.
CHAINS, CHAINS_OF_ANILA = (10**6, 125_000) if NO_NATIVE is None else (4000, 2000)
FALSE_ALARM = 1e-6


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1).square().sum(1)


@dataclass
class Family:
    """Tests that together raise a false alarm with probability 1e-6 (Bonferroni)."""

    size: int
    done: int = field(default=0, init=False)

    @property
    def alpha(self) -> float:
        self.done += 1
        assert self.done <= self.size, "the bounds were made for fewer tests"
        return FALSE_ALARM / self.size

    def normal(self, z: float, what: object) -> None:
        """``z`` is a standard normal."""
        assert abs(z) < stats.norm.isf(self.alpha / 2), (what, z)

    def law(self, x: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray], what: object) -> None:
        """``x`` are independent draws from ``cdf``: Dvoretzky, Kiefer, Wolfowitz and Massart."""
        n = len(x)
        p = cdf(np.sort(x))
        distance = max(np.max(np.arange(1, n + 1) / n - p), np.max(p - np.arange(n) / n))
        assert distance < math.sqrt(math.log(2 / self.alpha) / (2 * n)), (what, distance)

    def gaussian(self, x: np.ndarray, mean: float, var: float, what: object) -> None:
        """``x`` are independent draws of N(mean, var): five tests."""
        n, z = len(x), (x - mean) / math.sqrt(var)
        self.normal(z.mean() * math.sqrt(n), (what, "mean"))
        square = float(np.sum((z - z.mean()) ** 2))
        tail = min(stats.chi2.cdf(square, n - 1), stats.chi2.sf(square, n - 1))
        assert 2 * tail > self.alpha, (what, "variance", square / (n - 1))
        self.normal((np.mean(z**4) - 3) * math.sqrt(n / 96), (what, "fourth moment"))
        self.law(z, stats.norm.cdf, what)
        self.normal(np.sum(z[1:] * z[:-1]) / math.sqrt(n - 1), (what, "neighbours"))


# ---- unadjusted Langevin: the exact law after k steps -------------------------------------------

PRECISIONS = torch.tensor([0.5, 1.0, 4.0])


@pytest.mark.parametrize(("h", "k"), [(0.05, 1), (0.05, 30), (0.3, 2), (0.3, 12), (0.9, 20)])
def test_ula_on_gaussians_has_its_exact_law(h: float, k: int) -> None:
    """N(a^k x0, v (1 - a^2k) + a^2k var0), a = 1 - h l / 2, v = 1 / (l (1 - h l / 4))."""
    family = Family(5 * len(PRECISIONS) + 3)
    noise = Noise(11 + k)
    start = 2.0 + 0.5 * noise.purpose(Purpose.INITIAL_STATE).normal((CHAINS, len(PRECISIONS)))
    x = sample(lambda x: 0.5 * (PRECISIONS * x * x).sum(1), start, Langevin(h), k, seed=noise).x
    for j, precision in enumerate(PRECISIONS.tolist()):
        a, v = 1 - h * precision / 2, 1 / (precision * (1 - h * precision / 4))
        var = v * (1 - a ** (2 * k)) + a ** (2 * k) * 0.25
        family.gaussian(x[:, j].double().cpu().numpy(), a**k * 2, var, (h, k, precision))
    z = ((x - x.mean(0)) / x.std(0)).double()
    for i, j in ((0, 1), (1, 2), (0, 2)):
        family.normal(float(z[:, i] @ z[:, j]) / math.sqrt(CHAINS), ("coordinates", i, j))


def test_a_chain_has_the_correlation_of_its_drift() -> None:
    """Lag s of a stationary chain is a^s; independent from chain to chain at every lag."""
    h, lags, chains = 0.8, (1, 2, 5), CHAINS // 4
    a, v = 1 - h / 2, 1 / (1 - h / 4)
    start = math.sqrt(v) * Noise(5, stream=Purpose.INITIAL_STATE).normal((chains, 1))
    run = sample(quadratic, start, Langevin(h), 6, seed=5, keep_every=1)
    assert run.trajectory is not None
    z = run.trajectory[..., 0].double() / math.sqrt(v)
    family = Family(3 * len(lags))
    for s in lags:
        # For a bivariate normal of correlation r the product has mean r and variance 1 + r^2.
        sd = math.sqrt((1 + a ** (2 * s)) / chains)
        family.normal((float(z[0] @ z[s]) / chains - a**s) / sd, ("lag", s))
        innovation = (z[s] - a**s * z[0]) / math.sqrt(1 - a ** (2 * s))
        family.normal(float(innovation @ z[0]) / math.sqrt(chains), ("innovation", s))
        crossed = float(z[0, 1:] @ z[s, :-1]) / math.sqrt(chains - 1)
        family.normal(crossed, ("another chain", s))


# ---- AniLA: the exact law of the discrete chain, on a grid --------------------------------------


class Grid:
    """Laws on the line as weights of a grid; a rule's one-step kernel acts on them."""

    def __init__(self, b: float, h: float, power: float = 0.5) -> None:
        # With the drift alone clipped the tails are exponential.
        self.x = np.linspace(-35, 35, 1001) if power == 0 else np.linspace(-8, 8, 801)
        self.width = self.x[1] - self.x[0]
        gamma = b / np.maximum(b, np.abs(self.x))
        mean, sd = self.x - h / 2 * gamma * self.x, math.sqrt(h) * gamma**power
        self.kernel = stats.norm.pdf(self.x[None], mean[:, None], sd[:, None]) * self.width

    def start(self) -> np.ndarray:
        """N(0, 1)."""
        return stats.norm.pdf(self.x) * self.width

    def after(self, steps: int) -> np.ndarray:
        law = self.start()
        for _ in range(steps):
            law = law @ self.kernel
        return law

    def stationary(self) -> np.ndarray:
        system = self.kernel.T - np.eye(len(self.x))
        system[0] = 1.0
        right = np.zeros(len(self.x))
        right[0] = 1.0
        return np.linalg.solve(system, right)

    def moment(self, law: np.ndarray, k: int) -> float:
        return float(law @ self.x**k)

    def cdf(self, law: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The weight at a point lies half to its left."""
        below = np.cumsum(law) - law / 2
        return PchipInterpolator(self.x, below)


cached_grid = functools.cache(Grid)


def run_anila(rule: AniLA, steps: int) -> np.ndarray:
    start = Noise(3, stream=Purpose.INITIAL_STATE).normal((CHAINS_OF_ANILA, 1))
    return sample(quadratic, start, rule, steps, seed=3).x[:, 0].double().cpu().numpy()


@pytest.mark.parametrize(("power", "h", "steps"), [(0.5, 0.1, 150), (1.0, 0.5, 20), (0.0, 0.5, 20)])
@pytest.mark.parametrize("b", [0.5, 1.0, 2.0])
def test_anila_has_the_exact_law_of_its_chain(b: float, power: float, h: float, steps: int) -> None:
    """From N(0, 1), after so many steps: the distribution and its even moments."""
    grid = cached_grid(b, h, power)
    law = grid.after(steps)
    assert abs(law.sum() - 1) < 1e-9  # nothing left the grid
    x = run_anila(AniLA(b, h, noise_power=power), steps)
    moments = (2, 4) if power else (2,)  # with those tails the mean of x^4 is far from normal
    family = Family(1 + len(moments))
    family.law(x, grid.cdf(law), (b, power))
    for k in moments:
        mean = grid.moment(law, k)
        sd = math.sqrt((grid.moment(law, 2 * k) - mean**2) / len(x))
        family.normal((np.mean(x**k) - mean) / sd, (b, power, k))


@pytest.mark.parametrize(
    ("b", "variance", "fourth"),
    [(0.5, 1.786217, 7.127640), (1.0, 1.414820, 5.488918), (2.0, 1.053536, 3.481828)],
)
def test_anila_tends_to_its_stated_law(b: float, variance: float, fourth: float) -> None:
    """exp(-U) max(b, |grad U|) for small steps; the chain is at the law of its step size."""
    grid = cached_grid(b, 0.1, 0.5)
    limit = np.exp(-(grid.x**2) / 2) * np.maximum(b, np.abs(grid.x))
    limit /= limit.sum()
    assert grid.moment(limit, 2) == pytest.approx(variance, abs=2e-4)
    assert grid.moment(limit, 4) == pytest.approx(fourth, abs=2e-3)
    # First order in h: halving the step halves the distance.
    distances = [abs(g.moment(g.stationary(), 2) - variance) for g in (grid, Grid(b, 0.05))]
    assert distances[1] < 0.6 * distances[0] < 0.03
    x = run_anila(AniLA(b, 0.1), 400)
    law = grid.stationary()
    # What 400 steps leave of the start, which the test must allow for.
    left = abs(grid.moment(grid.after(400), 2) - grid.moment(law, 2))
    sd = math.sqrt((grid.moment(law, 4) - grid.moment(law, 2) ** 2) / len(x))
    assert abs(np.mean(x**2) - grid.moment(law, 2)) < stats.norm.isf(FALSE_ALARM / 2) * sd + left
    assert left < 0.005


def test_anila_without_a_bound_is_langevin() -> None:
    """Bit by bit, whatever the noise power and whichever the clip."""
    x0 = normals(300, 3)
    options: dict[str, Any] = {"temperature": 0.5, "clamp": (-1, 1), "reference_precision": 2.0}
    for per in ("sample", "coordinate"):
        for power in (0.0, 0.5, 1.0):
            rule = AniLA(math.inf, 0.1, per=per, noise_power=power, **options)  # type: ignore[arg-type]
            got = sample(quadratic, x0, rule, 5, seed=1).x
            assert_same_bits(got, sample(quadratic, x0, Langevin(0.1, **options), 5, seed=1).x)


# ---- conventions --------------------------------------------------------------------------------


def by_hand(x: Tensor, steps: int, update: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """The loop a user has: x <- update(x, grad U(x), xi), with the noise of seed 1."""
    noise = Noise(1)
    for _ in range(steps):
        x = update(x, x, noise.normal(x.shape, dtype=x.dtype))
        noise.advance()
    return x


@pytest.mark.parametrize(
    ("rule", "update"),
    [
        (Langevin(0.2), lambda x, g, xi: x - 0.2 / 2 * g + math.sqrt(0.2) * xi),
        (Langevin.from_eta(0.1), lambda x, g, xi: x - 0.1 * g + math.sqrt(2 * 0.1) * xi),
        (Langevin.from_delta(0.3), lambda x, g, xi: x - 0.3**2 / 2 * g + 0.3 * xi),
        (Langevin.from_coefficients(1.0, 0.01), lambda x, g, xi: x - 1.0 * g + 0.01 * xi),
        (Langevin(0.2, temperature=0.3), lambda x, g, xi: x - 0.1 * g + math.sqrt(0.2 * 0.3) * xi),
        (Langevin(0.2, noise_std=0.05), lambda x, g, xi: x - 0.1 * g + 0.05 * xi),
        (Langevin(0.2, noise_std=0.0), lambda x, g, xi: x - 0.1 * g),
        (
            Langevin(0.2, clamp=(-0.5, 0.5), reference_precision=0.7),
            lambda x, g, xi: (x - 0.1 * g - 0.1 * 0.7 * x + math.sqrt(0.2) * xi).clamp(-0.5, 0.5),
        ),
    ],
    ids=lambda value: None if callable(value) else str(value)[:60],
)
def test_a_rule_is_the_loop_it_stands_for(
    rule: Langevin, update: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    """With the same noise, to the rounding of a coefficient."""
    x0 = normals(40, 7, dtype=torch.float64)
    got = sample(quadratic, x0, rule, 10, seed=1).x
    torch.testing.assert_close(got, by_hand(x0, 10, update), rtol=1e-14, atol=1e-14)


def test_conventions_agree() -> None:
    """One chain in four spellings: the drift to the bit, the noise to one."""
    rules = (
        Langevin(0.02),
        Langevin.from_eta(0.01),
        Langevin.from_delta(math.sqrt(0.02)),
        Langevin.from_coefficients(0.01, math.sqrt(0.02)),
        Langevin(0.02, noise_std=math.sqrt(0.02)),
    )
    want = rules[0].coefficients()
    assert want == (0.01, math.sqrt(0.02))
    x0 = normals(50, 3)
    chain = sample(quadratic, x0, rules[0], 5, seed=1).x
    for rule in rules[1:]:
        assert rule.coefficients() == pytest.approx(want, rel=4e-16, abs=0)
        got = sample(quadratic, x0, rule, 5, seed=1).x
        torch.testing.assert_close(got, chain, rtol=1e-6, atol=1e-6)


def test_implied_temperature() -> None:
    """noise_std^2 / h: that of the short-run recipe is 5e-5; a coupled rule gives its own."""
    assert Langevin.from_coefficients(1.0, 0.01).implied_temperature() == pytest.approx(5e-5)
    assert Langevin(0.3, temperature=0.7).implied_temperature() == pytest.approx(0.7)
    assert Langevin(0.3, noise_std=0.0).implied_temperature() == 0
    rule = Langevin(lambda k: 0.1 * (k + 1), noise_std=0.2)
    assert [rule.implied_temperature(k) for k in (0, 1)] == pytest.approx([0.4, 0.2])


# ---- schedules and a coefficient per chain ------------------------------------------------------

RULES: dict[str, Callable[..., Any]] = {
    "Langevin": lambda h, **o: Langevin(h, **o),
    "AniLA": lambda h, **o: AniLA(1.2, h, **o),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_schedule_is_the_loop_over_its_values(rule: str) -> None:
    """Called with 0, 1, ...; goes on counting in a continued run."""
    seen: list[int] = []

    def step_size(k: int) -> float:
        seen.append(k)
        return 0.5 / (k + 1)

    def temperature(k: int) -> Tensor:
        return torch.tensor(1.0 - 0.1 * k)

    make, x0, noise = RULES[rule], normals(30, 4), Noise(1)
    x = x0.clone()
    for k in range(6):
        bound = {"max_grad_norm": 1.2} if rule == "AniLA" else {}
        h, t = 0.5 / (k + 1), torch.tensor(1.0 - 0.1 * k).double()
        langevin_step_(x, x, drift=h / 2, diffusion=(h * t).sqrt(), noise=noise, **bound)
    scheduled = make(step_size, temperature=temperature)
    first = sample(quadratic, x0, scheduled, 2, seed=1)
    second = sample(quadratic, first.state, scheduled, 4)
    assert_same_bits(second.x, x)
    assert seen == list(range(6))


@pytest.mark.parametrize("rule", RULES)
def test_a_step_size_per_chain_is_a_run_per_chain(rule: str) -> None:
    sizes = torch.tensor([0.05, 0.1, 0.3, 0.7, 0.01])
    temperatures = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0])
    make, x0 = RULES[rule], normals(5, 6)
    together = sample(quadratic, x0, make(sizes, temperature=temperatures), 8, seed=1).x
    for i in range(5):
        own = make(sizes[i].item(), temperature=temperatures[i].item())
        alone = sample(quadratic, x0[i : i + 1], own, 8, seed=Noise(1, first_chain=i)).x
        assert_same_bits(together[i : i + 1], alone, i)


def test_a_threshold_per_chain_is_a_run_per_chain() -> None:
    """An infinite one among them: that chain is not clipped."""
    thresholds = torch.tensor([0.3, 1.0, 3.0, math.inf])
    x0 = normals(4, 6)
    together = sample(quadratic, x0, AniLA(thresholds, 0.3), 8, seed=1).x
    for i in range(4):
        rule = AniLA(thresholds[i].item(), 0.3)
        alone = sample(quadratic, x0[i : i + 1], rule, 8, seed=Noise(1, first_chain=i)).x
        assert_same_bits(together[i : i + 1], alone, i)


def test_some_chains_may_descend_without_noise() -> None:
    """noise_std is 0 for gradient descent, in a tensor as in a number."""
    x0 = normals(2, 6)
    got = sample(quadratic, x0, Langevin(0.2, noise_std=torch.tensor([0.0, 0.5])), 5, seed=1).x
    for i, std in enumerate((0.0, 0.5)):
        rule = Langevin(0.2, noise_std=std)
        alone = sample(quadratic, x0[i : i + 1], rule, 5, seed=Noise(1, first_chain=i)).x
        assert_same_bits(got[i : i + 1], alone, i)


def test_one_position_of_the_noise_per_step() -> None:
    """Also where a step draws nothing from it."""
    for rule in (Langevin(0.1), AniLA(1.0), Langevin(0.1, noise_std=0.0)):
        noise = Noise(1, step=5)
        sample(quadratic, normals(3, 2), rule, 7, seed=noise)
        assert noise.step == 12
