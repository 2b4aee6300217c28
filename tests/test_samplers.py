"""The rules: their laws are the exact ones, and their conventions agree with one another.

The final states of independent chains are independent draws, so every test here has a bound from
a known law: all the tests that share a `Checks` raise one false alarm in 10^6 runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from langevin_ext import AniLA, Langevin, Noise, Purpose, langevin_step_, sample
from langevin_ext.testing import Checks, Kernel1D

from .conftest import assert_same_bits, chains, normals

CHAINS, CHAINS_OF_ANILA = chains(10**6), chains(125_000)


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1).square().sum(1)


# ---- unadjusted Langevin: the exact law after k steps -------------------------------------------

PRECISIONS = torch.tensor([0.5, 1.0, 4.0])


@pytest.mark.parametrize(("h", "k"), [(0.05, 1), (0.05, 30), (0.3, 2), (0.3, 12), (0.9, 20)])
def test_ula_on_gaussians_has_its_exact_law(h: float, k: int, seed: int) -> None:
    """N(a^k x0, v (1 - a^2k) + a^2k var0), a = 1 - h l / 2, v = 1 / (l (1 - h l / 4))."""
    checks = Checks(len(PRECISIONS) + 3)
    noise = Noise(11 + k + 100 * seed)
    start = 2.0 + 0.5 * noise.purpose(Purpose.INITIAL_STATE).normal((CHAINS, len(PRECISIONS)))
    x = sample(lambda x: 0.5 * (PRECISIONS * x * x).sum(1), start, Langevin(h), k, seed=noise).x
    for j, precision in enumerate(PRECISIONS.tolist()):
        a, v = 1 - h * precision / 2, 1 / (precision * (1 - h * precision / 4))
        var = v * (1 - a ** (2 * k)) + a ** (2 * k) * 0.25
        checks.gaussian(x[:, j], a**k * 2, var, what=(h, k, precision))
    for i, j in ((0, 1), (1, 2), (0, 2)):
        checks.uncorrelated(x[:, i], x[:, j], what=("coordinates", i, j))


def test_a_chain_has_the_correlation_of_its_drift(seed: int) -> None:
    """Lag s of a stationary chain is a^s; independent from chain to chain at every lag."""
    h, lags, noise = 0.8, (1, 2, 5), Noise(5 + 100 * seed)
    a, v = 1 - h / 2, 1 / (1 - h / 4)
    start = math.sqrt(v) * noise.purpose(Purpose.INITIAL_STATE).normal((CHAINS // 4, 1))
    run = sample(quadratic, start, Langevin(h), 6, seed=noise, keep_every=1)
    assert run.trajectory is not None
    z = run.trajectory[..., 0].double() / math.sqrt(v)
    checks = Checks(3 * len(lags))
    for s in lags:
        # A product of normals of correlation r has variance 1 + r^2, third moment 6 r + 2 r^3.
        r, variance = a**s, 1 + a ** (2 * s)
        skewness = (6 * r + 2 * r**3) / variance**1.5
        checks.mean(z[0] * z[s], r, variance, skewness=skewness, what=("lag", s))
        checks.uncorrelated(z[s] - r * z[0], z[0], what=("innovation", s))
        checks.uncorrelated(z[0, 1:], z[s, :-1], what=("another chain", s))


def test_no_chain_and_no_step_shares_its_noise(seed: int) -> None:
    """What the laws of single chains cannot show."""
    h, noise = 0.8, Noise(6 + 100 * seed)
    start = noise.purpose(Purpose.INITIAL_STATE).normal((CHAINS // 8, 1))
    run = sample(quadratic, start, Langevin(h), 6, seed=noise, keep_every=1)
    assert run.trajectory is not None
    x = torch.cat([start[None], run.trajectory])[..., 0].double()
    checks = Checks(2)
    checks.independent_chains(x[-1])
    checks.independent_steps(torch.cat([x[:1], x[1:] - (1 - h / 2) * x[:-1]]))


# ---- AniLA: the exact law of the discrete chain, on a grid --------------------------------------


@functools.cache
def anila_kernel(b: float, h: float, power: float = 0.5) -> Kernel1D:
    """On N(0, 1)."""

    def gamma(x: np.ndarray) -> np.ndarray:
        return b / np.maximum(b, np.abs(x))

    # With the drift alone clipped the tails are exponential.
    span, nodes = ((-35.0, 35.0), 1000) if power == 0 else ((-10.0, 10.0), 800)
    return Kernel1D.gaussian(
        lambda x: x - h / 2 * gamma(x) * x,
        lambda x: math.sqrt(h) * gamma(x) ** power,
        span,
        nodes=nodes,
        breaks=(-b, b),
    )


def run_anila(rule: AniLA, steps: int, seed: int) -> Tensor:
    noise = Noise(3 + 100 * seed)
    start = noise.purpose(Purpose.INITIAL_STATE).normal((CHAINS_OF_ANILA, 1))
    return sample(quadratic, start, rule, steps, seed=noise).x[:, 0]


@pytest.mark.parametrize(("power", "h", "steps"), [(0.5, 0.1, 150), (1.0, 0.5, 20), (0.0, 0.5, 20)])
@pytest.mark.parametrize("b", [0.5, 1.0, 2.0])
def test_anila_has_the_exact_law_of_its_chain(
    b: float, power: float, h: float, steps: int, seed: int
) -> None:
    """From N(0, 1), after so many steps: the distribution and its even moments."""
    kernel = anila_kernel(b, h, power)
    law = kernel.after(steps, stats.norm.pdf)
    x = run_anila(AniLA(b, h, noise_power=power), steps, seed)
    moments = (2, 4) if power else (2,)  # with those tails the mean of x^4 is far from normal
    checks = Checks(1 + len(moments))
    checks.law(x, kernel.cdf(law), what=(b, power))
    for k in moments:
        checks.moment(x, k, functools.partial(kernel.moment, law), what=(b, power))


@pytest.mark.parametrize(
    ("b", "variance", "fourth"),
    [(0.5, 1.786217, 7.127640), (1.0, 1.414820, 5.488918), (2.0, 1.053536, 3.481828)],
)
def test_anila_tends_to_its_stated_law(b: float, variance: float, fourth: float, seed: int) -> None:
    """exp(-U) max(b, |grad U|) for small steps; the chain is at the law of its step size."""
    kernel = anila_kernel(b, 0.1)
    limit = kernel.law(lambda x: np.exp(-(x**2) / 2) * np.maximum(b, np.abs(x)))
    assert kernel.moment(limit, 2) == pytest.approx(variance, abs=1e-6)
    assert kernel.moment(limit, 4) == pytest.approx(fourth, abs=1e-6)
    # First order in h: halving the step halves the distance.
    kernels = (kernel, anila_kernel(b, 0.05))
    distances = [abs(k.moment(k.stationary(), 2) - variance) for k in kernels]
    assert distances[1] < 0.6 * distances[0] < 0.03
    law = kernel.after(400, stats.norm.pdf)
    assert abs(kernel.moment(law, 2) - kernel.moment(kernel.stationary(), 2)) < 0.005
    x = run_anila(AniLA(b, 0.1), 400, seed)
    Checks(1).moment(x, 2, functools.partial(kernel.moment, law))


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
