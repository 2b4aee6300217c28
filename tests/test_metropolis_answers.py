"""Rules that accept or reject do so as often as they must, and move as fast: known answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import interpolate, optimize, special, stats

from langevin_ext import HMC, MALA, AniLA, sample
from langevin_ext.energies import Gaussian
from langevin_ext.testing import Checks, Kernel1D

from .conftest import WAYS, chains
from .lines import LINES, STANDARD

INF = math.inf


def anila(b: float, h: float) -> AniLA:
    return AniLA(b, h, correction="metropolis")


# ---- known answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "h", "acceptance", "rate"),
    [
        (2.0, 1.0, 0.919, None), (1.0, 1.0, 0.895, 0.6974), (1.0, 0.5, None, 0.8348),
        (1.0, 0.1, 0.981, 0.9634), (0.5, 1.0, 0.856, 0.8347), (0.5, 0.1, 0.954, 0.9799),
        (INF, 1.0, None, 0.4739), (INF, 0.1, None, 0.9490),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whole", WAYS)
def test_acceptance_and_rate_on_a_standard_normal(
    b: float, h: float, acceptance: float | None, rate: float | None, whole: bool, seed: int
) -> None:
    """AniLA's by quadrature, MALA's at b = inf; of the chains exactly these."""
    rule = MALA(h) if b == INF else anila(b, h)
    kernel, n, checks = STANDARD.kernel(rule), chains(100_000), Checks(5)
    law = kernel.law(lambda x: np.exp(-0.5 * x * x))
    exact, slowest = kernel.acceptance(law), kernel.second_eigenvalue()
    assert acceptance is None or round(exact, 3) == acceptance
    assert rate is None or round(slowest, 4) == rate
    x0 = STANDARD.energy.draw(n, seed)
    run = sample(STANDARD.energy, x0, rule, 8, seed=1000 + seed, keep_every=1, whole_chain=whole)
    assert run.trajectory is not None
    assert run.stats.acceptance is not None
    checks.gaussian(run.x[:, 0], 0.0, 1.0)
    checks.bounded_mean(run.stats.acceptance, exact, 0, 1, what="acceptance")
    f, values = slowest_function(kernel, law), [x0, *run.trajectory]
    start, *later = (f(x[:, 0].double().cpu().numpy()) for x in (values[k] for k in (0, 1, 3, 8)))
    nodes = f(kernel.x)
    for k, end in zip((1, 3, 8), later, strict=True):
        power = np.linalg.matrix_power(kernel.matrix, k)
        moments = [float(law @ (nodes**m * (power @ nodes**m))) for m in (1, 2, 3)]
        assert moments[0] == pytest.approx(slowest**k, rel=1e-6)
        variance = moments[1] - moments[0] ** 2
        third = moments[2] - 3 * moments[0] * moments[1] + 2 * moments[0] ** 3
        checks.mean(
            start * end, moments[0], variance, skewness=third / variance**1.5, what=("lag", k)
        )


def slowest_function(kernel: Kernel1D, law: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The f of unit variance with P f = rate f."""
    values, vectors = np.linalg.eigh(np.sqrt(kernel.matrix * kernel.matrix.T))
    f = vectors[:, np.argsort(np.abs(values))[-2]] / np.sqrt(law)
    return interpolate.CubicSpline(kernel.x, f)


def both_ways(*rules: Any) -> Any:
    """Of whole chains those that have them."""
    cases = [(rule, way) for rule in rules for way in WAYS if not (way and isinstance(rule, HMC))]
    return pytest.mark.parametrize(("rule", "whole"), cases, ids=str)


@both_ways(MALA(1.0), MALA(2.5), anila(0.5, 1.0), anila(1.0, 3.0), HMC(1.0, 1))
@pytest.mark.parametrize("law", ["standard", "mixture"])
def test_the_law_on_the_way_is_that_of_the_kernel(
    law: str, rule: Any, whole: bool, seed: int
) -> None:
    """From N(1, 2^2), after one step and three: refusals are in the law then."""
    line, n, checks = LINES.get(law, STANDARD), chains(100_000), Checks(4)
    wide = line._replace(span=(-12.0, 14.0))
    as_mala = MALA(rule.step_size**2) if isinstance(rule, HMC) else rule
    kernel = wide.kernel(as_mala, tolerance=1e-5)
    start = kernel.law(lambda x: np.exp(-((x - 1) ** 2) / 8))
    x0 = Gaussian(1.0, std=2.0).draw(n, seed)
    run = sample(line.energy, x0, rule, 3, seed=1000 + seed, keep_every=1, whole_chain=whole)
    assert run.trajectory is not None
    for k in (1, 3):
        x, after = run.trajectory[k - 1, :, 0], kernel.after(k, start)
        checks.law(x, kernel.cdf(after), what=(rule, k))
        checks.moment(x, 2, lambda m, after=after: kernel.moment(after, m), what=(rule, k))


# ---- normal laws in closed form -----------------------------------------------------------------


def acceptance_on_a_normal_law(h: float, steps: int, d: int) -> float:
    """Of HMC on N(0, I), by symmetry twice the probability that the ratio is above 1.

    One coordinate's leapfrog map has singular values s and 1 / s, so that the energy error is
    ((s^2 - 1) A - (1 - s^-2) B) / 2 with independent chi-squares A, B of d degrees of freedom.
    """
    kick, drift = np.array([[1, 0], [-h / 2, 1]]), np.array([[1, h], [0, 1]])
    s = np.linalg.norm(np.linalg.matrix_power(kick @ drift @ kick, steps), 2)
    return float(2 * stats.f.cdf(s**-2, d, d))


def jumps_on_a_normal_law(h: float, d: int, power: int) -> float:
    """E |x - y|^(2 power) min(1, ratio) of MALA on N(0, I).

    The log ratio is (h / 8) a . b with a = x - y, b = x + y jointly normal; given a it is positive
    with probability Phi(beta |a| / tau).
    """
    var_a, var_b, cov = h + h**2 / 4, 4 - h + h**2 / 4, -(h**2) / 4
    beta, tau = cov / var_a, math.sqrt(var_b - cov**2 / var_a)
    x, w = np.polynomial.legendre.leggauss(400)
    low, high = max(0.0, math.sqrt(d) - 8), math.sqrt(d) + 8
    radius = ((low + high) + (high - low) * x) / 2  # of |a| / sqrt(var a)
    w = w * (high - low) / 2 * stats.chi.pdf(radius, d)
    size = math.sqrt(var_a) * radius
    return float(2 * w @ (size ** (2 * power) * special.ndtr(beta * size / tau)))


def test_closed_forms_agree() -> None:
    """MALA is HMC of one step; on the line it is the kernel; h^(3/2) / 4 pi is refused if small."""
    for h in (0.1, 1.0, 3.0):
        for d in (1, 2, 128):
            want = acceptance_on_a_normal_law(math.sqrt(h), 1, d)
            assert jumps_on_a_normal_law(h, d, 0) == pytest.approx(want, abs=1e-10)
        want = acceptance_on_a_normal_law(math.sqrt(h), 1, 1)
        assert STANDARD.acceptance(MALA(h)) == pytest.approx(want, abs=1e-5)
    for h in (0.01, 0.001):
        refused = 1 - acceptance_on_a_normal_law(math.sqrt(h), 1, 1)
        assert refused == pytest.approx(h**1.5 / (4 * math.pi), rel=h)


@pytest.mark.parametrize("d", [1, 3, 128])
@both_ways(MALA(0.3), MALA(1.5), HMC(0.25, 1), HMC(0.6, 2), HMC(1.9, 5))
def test_acceptance_on_a_normal_law(rule: Any, whole: bool, d: int, seed: int) -> None:
    """The closed form, in any dimension."""
    n, hmc, checks = chains(200_000 // d), isinstance(rule, HMC), Checks(2)
    h, steps = (rule.step_size, rule.leapfrog_steps) if hmc else (math.sqrt(rule.step_size), 1)
    energy, exact = Gaussian([0.0] * d), acceptance_on_a_normal_law(h, steps, d)
    run = sample(energy, energy.draw(n, seed), rule, 2, seed=1000 + seed, whole_chain=whole)
    assert run.stats.acceptance is not None
    checks.bounded_mean(run.stats.acceptance, exact, 0, 1)
    checks.probability(run.state.chains.accepted.sum(), n, exact)


@pytest.mark.parametrize("law", LINES)
def test_refusals_vanish_like_the_step_size_to_three_halves(law: str, seed: int) -> None:
    """MALA's 1 - acceptance: the slope by quadrature, and of chains the value."""
    line, n = LINES[law], chains(100_000)
    scale = {"normal": 4.0, "logistic": 2.0, "mixture": 0.25}[law]
    steps = [scale * 2**-k for k in (4, 5)]
    refused = [1 - line.acceptance(MALA(h)) for h in steps]
    assert math.log2(refused[0] / refused[1]) == pytest.approx(1.5, abs=0.02)
    run = sample(line.energy, line.energy.draw(n, seed), MALA(steps[0]), 4, seed=1000 + seed)
    assert run.stats.acceptance is not None
    Checks(1).bounded_mean(run.stats.acceptance, 1 - refused[0], 0, 1)


def best_step_size(d: int) -> float:
    """Of MALA on N(0, I): the one that jumps farthest."""
    found = optimize.minimize_scalar(
        lambda log_h: -jumps_on_a_normal_law(math.exp(log_h), d, 1), bounds=(-9, 2),
        method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    return math.exp(found.x)


@pytest.mark.parametrize(
    ("d", "acceptance"), [(32, 0.535), (128, 0.543), (10**4, 0.566), (10**8, 0.574)]
)
def test_mala_jumps_farthest_at_an_acceptance_near_0_574(d: int, acceptance: float) -> None:
    """Where it tends to (Roberts and Rosenthal 1998); to accept 0.574 costs half a percent."""
    best = best_step_size(d)
    assert round(jumps_on_a_normal_law(best, d, 0), 3) == acceptance
    usual = optimize.brentq(lambda h: jumps_on_a_normal_law(h, d, 0) - 0.574, 1e-6, 2)
    assert jumps_on_a_normal_law(usual, d, 1) > 0.995 * jumps_on_a_normal_law(best, d, 1)


def test_malas_jumps_in_128_dimensions(seed: int) -> None:
    """E |x_1 - x_0|^2 about the best step size, as the closed form has it."""
    d = 128
    best = best_step_size(d)
    energy, n, checks = Gaussian([0.0] * d), chains(4000), Checks(6)
    x0 = energy.draw(n, seed)
    for h in (0.5 * best, best, 2 * best):
        run = sample(energy, x0, MALA(h), 1, seed=1000 + seed)
        assert run.stats.acceptance is not None
        exact = [jumps_on_a_normal_law(h, d, k) for k in (0, 1, 2, 3)]
        variance = exact[2] - exact[1] ** 2
        third = exact[3] - 3 * exact[1] * exact[2] + 2 * exact[1] ** 3
        jumps = (run.x.double() - x0.double()).square().sum(1)
        checks.mean(jumps, exact[1], variance, skewness=third / variance**1.5, what=h)
        checks.bounded_mean(run.stats.acceptance, exact[0], 0, 1, what=h)
