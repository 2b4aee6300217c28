"""The test kit itself: known answers, false alarms at their stated rate, planted errors seen."""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats

from langevin_ext import Langevin, Noise, sample
from langevin_ext.errors import ArgumentError, LangevinError, ShapeError
from langevin_ext.testing import (
    Checks,
    Kernel1D,
    Passed,
    bounds,
    chains_needed,
    rank_test,
    ranks,
    rule_step,
    two_sample_test,
)

ROOT = Path(__file__).parents[1]
NORMAL = stats.norm.cdf
Array = np.ndarray
Check = Callable[[Checks, np.random.Generator], None]


def normal_moment(k: int) -> float:
    return float(special.factorial2(k - 1)) if k % 2 == 0 else 0.0


def fails(check: Callable[[], object], match: str | None = None) -> None:
    with pytest.raises(AssertionError, match=match):
        check()


# ---- a family of tests --------------------------------------------------------------------------


def test_a_family_shares_its_rate_and_refuses_more() -> None:
    """0.01 over 4 tests; a fifth has no bound."""
    x, checks = np.array([0.1, -0.2, 0.3]), Checks(4, 0.01)
    edge = stats.norm.isf(0.01 / 8) / math.sqrt(3)
    checks.mean(x - x.mean() + 0.999 * edge, 0, 1)
    fails(lambda: checks.mean(x - x.mean() + 1.001 * edge, 0, 1))
    places = np.random.default_rng(0).permutation(50) + 0.5
    checks.gaussian(stats.norm.ppf(places / 50), 0, 1)  # several things, one test
    assert (checks.tests, checks.done) == (4, 3)
    checks.law(x, NORMAL)
    with pytest.raises(ArgumentError, match=r"tests=4 are done.*declare more"):
        checks.law(x, NORMAL)


def test_counts_are_numpys_ints_too() -> None:
    assert Checks(np.int64(3)).false_alarm == Checks(3).false_alarm  # type: ignore[arg-type]
    assert chains_needed(0.1, tests=np.int64(3)) == chains_needed(0.1, tests=3)  # type: ignore


def test_a_failure_says_what_was_found_and_where_it_should_be() -> None:
    x = np.full(100, 0.5)
    with pytest.raises(AssertionError) as caught:
        Checks(2, 0.02).law(x, NORMAL, what=("ULA", 0.3))
    high = math.sqrt(math.log(200) / 200)
    assert str(caught.value) == (
        f"ULA, 0.3, distance from the law: 0.6914625 is outside [0, {high:.7g}], where it lies but"
        " with probability 0.01"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_draws_are_tensors_or_arrays(dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 40, dtype=torch.float64).to(dtype)
    messages = []
    for draws in (x, x.double().cpu().numpy(), x.tolist()):
        with pytest.raises(AssertionError) as caught:
            Checks(1).mean(draws, 3.0, 1.0)
        messages.append(str(caught.value))
    assert len(set(messages)) == 1


ALL: dict[str, Callable[[Checks, Array], None]] = {
    "law": lambda c, x: c.law(x, NORMAL),
    "same_law": lambda c, x: c.same_law(np.sort(x), x),
    "gaussian": lambda c, x: c.gaussian(x, 0, 1),
    "mean": lambda c, x: c.mean(x, 0, 1),
    "moment": lambda c, x: c.moment(x, 4, normal_moment),
    "variance": lambda c, x: c.variance(x, 1),
    "bounded_mean": lambda c, x: c.bounded_mean(x, 0, -9, 9),
    "uncorrelated": lambda c, x: c.uncorrelated(x[::-1], x),
    "independent_chains": lambda c, x: c.independent_chains(x),
    "independent_steps": lambda c, x: c.independent_steps(np.stack([x, x[::-1]])),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_draw_that_is_not_finite_fails_every_check(name: str, bad: float) -> None:
    x = np.random.default_rng(0).normal(size=1000)
    ALL[name](Checks(1), x)
    x[7] = bad
    fails(lambda: ALL[name](Checks(1), x), "1 values of 1000 that are not finite|not finite")


# ---- false alarms -------------------------------------------------------------------------------

PLACES = np.arange(-40, 41) / 2


def rounded(x: Array) -> Array:
    """The distribution function of a normal rounded to halves."""
    return NORMAL((np.floor(2 * x) + 0.5) / 2)


# (n, repetitions, exact): the rate is the stated one, not only at most that.
CALIBRATED: dict[str, tuple[int, bool, Check]] = {
    "law": (4000, False, lambda c, g: c.law(g.normal(size=30), NORMAL)),
    "law with atoms": (
        4000,
        False,
        lambda c, g: c.law(np.round(2 * g.normal(size=30)) / 2, rounded),
    ),
    "same law": (4000, False, lambda c, g: c.same_law(*g.normal(size=(2, 40)))),
    "same law, another number": (
        4000,
        False,
        lambda c, g: c.same_law(g.normal(size=25), g.normal(size=400)),
    ),
    "mean": (20000, True, lambda c, g: c.mean(g.normal(size=5), 0, 1)),
    "mean of the skew": (
        4000,
        False,
        lambda c, g: c.mean(g.exponential(size=40), 1, 1, skewness=2.0),
    ),
    "moment": (4000, False, lambda c, g: c.moment(g.normal(size=300), 2, normal_moment)),
    "variance": (20000, True, lambda c, g: c.variance(g.normal(1.0, 2.0, size=5), 4)),
    "variance about a mean": (
        20000,
        True,
        lambda c, g: c.variance(g.normal(1.0, 2.0, size=5), 4, mean=1),
    ),
    "bounded mean": (4000, False, lambda c, g: c.bounded_mean(g.random(30) ** 9, 0.1, 0, 1)),
    "bounded mean, known variance": (
        4000,
        False,
        lambda c, g: c.bounded_mean(g.random(30) < 0.1, 0.1, 0, 1, variance=0.09),
    ),
    "probability": (4000, False, lambda c, g: c.probability(g.binomial(300, 0.3), 300, 0.3)),
    "uncorrelated": (
        20000,
        True,
        lambda c, g: c.uncorrelated(g.normal(size=9), g.standard_cauchy(size=9)),
    ),
    "gaussian": (2000, False, lambda c, g: c.gaussian(g.normal(3, 2, size=1000), 3, 4)),
    "independent chains": (
        500,
        False,
        lambda c, g: c.independent_chains(g.standard_cauchy(size=1001)),
    ),
    "independent chains, clamped": (
        500,
        False,
        lambda c, g: c.independent_chains(np.clip(g.normal(size=1000), -0.5, 1)),
    ),
    "independent steps": (
        500,
        False,
        lambda c, g: c.independent_steps(g.standard_cauchy(size=(3, 1000))),
    ),
    "ranks, with ties": (
        300,
        False,
        lambda c, g: rank_test(
            lambda n: g.integers(0, 3, (n, 1)),
            lambda x: np.where(g.random(x.shape) < 0.5, x, g.integers(0, 3, x.shape)),
            length=4,
            chains=30,
            false_alarm=0.01,
            seed=g,
        ),
    ),
}


@pytest.mark.parametrize("name", CALIBRATED)
def test_right_draws_fail_at_the_stated_rate(name: str) -> None:
    """At a rate of 0.01; in all of these tests together one false alarm in 10^6."""
    repetitions, exact, check = CALIBRATED[name]
    g, alarms = np.random.default_rng(len(name)), 0
    for _ in range(repetitions):
        try:
            check(Checks(1, 0.01), g)
        except AssertionError:
            alarms += 1
    share = 1e-6 / (2 * len(CALIBRATED))
    assert alarms <= stats.binom.isf(share, repetitions, 0.01)
    assert alarms >= (stats.binom.ppf(share, repetitions, 0.01) if exact else 0)


def test_the_fourth_moment_keeps_its_rate_where_a_plain_limit_has_ten_times_as_much() -> None:
    """The law of a mean of 4000 fourth powers, by Fourier, at the shares of 1e-6 and of 1e-7."""
    n, count = 4000, 2**18
    width = (3 * n + 20 * math.sqrt(96 * n)) / count
    z = (np.arange(count + 1) * width) ** 0.25
    mass = np.diff(2 * NORMAL(z) - 1)
    power = np.diff(3 * (2 * NORMAL(z) - 1) - 2 * (z**3 + 3 * z) * stats.norm.pdf(z))
    # Between two points of the grid, so that the mean is right.
    above = np.clip(power / np.maximum(mass, 1e-300) / width - np.arange(count), 0, 1)
    one = mass * (1 - above) + np.append(0, (mass * above)[:-1])
    law = np.fft.irfft(np.fft.rfft(one) ** n, count)
    mean = np.arange(count) * width / n
    assert law @ mean == pytest.approx(3, abs=1e-6)
    for alpha in (2e-7, 2e-8):
        rates = {}
        for skewness in (0.0, 9504 / 96**1.5):
            down, up = bounds.gaussian_mean(n, 96, skewness, alpha)
            rates[skewness] = law[mean > 3 + up].sum() + law[mean < 3 - down].sum()
        plain, corrected = rates.values()
        assert corrected < alpha
        assert plain > 10 * alpha


def test_looking_again_rejects_at_the_stated_rate() -> None:
    """20,000 right kernels whose p-values are exact: 0.01 of them, for one stage and for many."""
    g = np.random.default_rng(3)
    for stages in (1, 2, 5):
        alarms, seen = 0, 0
        for _ in range(20000):
            try:
                p = ranks._in_stages(lambda n: (math.log(g.random()), ""), 100, 0.01, stages, 2)
                seen = max(seen, p.stages)
            except AssertionError:
                alarms += 1
        low, high = (stats.binom.ppf(q, 20000, 0.01) for q in (1e-7, 1 - 1e-7))
        assert low <= alarms <= high
        assert seen == stages


# ---- bounds: known answers ----------------------------------------------------------------------


def test_bounds_have_their_known_values() -> None:
    assert bounds.massart(100, 0.01) == pytest.approx(0.16276236, rel=1e-7)
    assert bounds.binomial(100, 0.5, 0.01) == (37, 63)
    assert bounds.hoeffding(10, 0.5, 2 * 0.5**10) == pytest.approx((0, 1), abs=1e-9)
    own = math.sqrt(2 * 0.04 * math.log(400) / 50) + 7 * 3 * math.log(400) / 147
    assert bounds.empirical_bernstein(50, 0.04, 3.0, 0.01) == pytest.approx(own)
    for n, alpha in ((7, 0.03), (10**6, 1e-9)):
        low, high = bounds.chi_square_mean(n, alpha)
        tails = stats.chi2.cdf(low * n, n), stats.chi2.sf(high * n, n)
        assert tails == pytest.approx((alpha / 2, alpha / 2), rel=1e-5)
        r = bounds.correlation(n, alpha)
        assert stats.t.sf(r * math.sqrt((n - 2) / (1 - r * r)), n - 2) == pytest.approx(alpha / 2)
    # Bennett's for a Poisson-like law: n v / b^2 h(b t / v) = log(1 / alpha).
    t, n, v, b = bounds.bennett(50, 0.1, 2.0, 1e-3), 50, 0.1, 2.0
    u = b * t / v
    assert n * v / b**2 * ((1 + u) * math.log(1 + u) - u) == pytest.approx(math.log(1000))


@pytest.mark.parametrize("n", [5, 20, 60])
def test_the_two_sample_bound_is_that_of_counted_paths(n: int) -> None:
    """Of n steps up and n down that reach h: where that is rare the bound is all but exact."""
    for h in range(1, n + 1):
        inside = np.zeros((n + 1, n + 1))
        inside[0, 0] = 1
        for i in range(n + 1):
            for j in range(n + 1):
                if (i or j) and abs(i - j) < h:
                    inside[i, j] = inside[i - 1, j] * (i > 0) + inside[i, j - 1] * (j > 0)
        exact = 1 - inside[n, n] / math.comb(2 * n, n)
        bound = math.exp(bounds.two_sample_log_p(n, h))
        assert exact <= bound * (1 + 1e-9) + 1e-12
        if 1e-9 < exact < 0.01:
            assert bound == pytest.approx(exact, rel=1e-5)
    allowed = round(bounds.two_sample(n, 0.05) * n)
    log_p = [bounds.two_sample_log_p(n, h) for h in (allowed, allowed + 1)]
    assert log_p[1] <= math.log(0.05) < log_p[0]
    assert bounds.distance(np.arange(n), np.arange(n) + 1.5) == pytest.approx(2 / n)


def test_chernoffs_bound_is_one_and_not_a_bad_one() -> None:
    """Against the exact law of a sum of 40 dice, both tails."""
    dice = functools.reduce(np.convolve, [np.full(6, 1 / 6)] * 40)
    for total in (150, 170, 190, 199):  # of scores 0 to 5, expected 100
        exact = 2 * dice[total:].sum()
        counts = np.zeros(6)
        counts[5], rest = divmod(total, 5)
        counts[rest] += 1
        counts[0] += 40 - counts.sum()
        bound = math.exp(bounds.chernoff_log_p(np.arange(6) - 2.5, counts))
        assert exact <= bound < 30 * exact
        mirrored = math.exp(bounds.chernoff_log_p(np.arange(6) - 2.5, counts[::-1]))
        assert mirrored == pytest.approx(bound, rel=1e-6)
    # Five sixes, or five ones: for these it is exact.
    five = bounds.chernoff_log_p(np.arange(6) - 2.5, np.array([0, 0, 0, 0, 0, 5.0]))
    assert five == pytest.approx(math.log(2 / 6**5), abs=1e-6)


def test_the_law_of_draws_stuck_at_an_atom_is_seen() -> None:
    """At the greatest number of all the empirical law is right; just below it is not."""
    fails(lambda: Checks(1).law(np.ones(100), rounded))
    fails(lambda: Checks(1).law(np.ones(100), lambda x: np.clip(x, 0, 1)))


# ---- how many chains ----------------------------------------------------------------------------


def test_the_known_numbers_of_chains() -> None:
    """For relative errors of a normal's variance at 1e-6 and 1e-6."""
    wanted = [chains_needed(d) for d in (0.05, 0.01, 0.005)]
    assert wanted == pytest.approx([74.4e3, 1.861e6, 7.442e6], rel=1e-3)
    assert chains_needed(0.01, kind="mean") == pytest.approx(wanted[1] / 2, rel=1e-5)
    assert chains_needed(0.01, kind="probability") == pytest.approx(wanted[1] / 8, rel=1e-5)
    root = math.sqrt(math.log(2e6)) + math.sqrt(math.log(1e6))
    assert chains_needed(0.02, kind="law") == math.ceil(root**2 / 0.0008)
    assert chains_needed(0.01, kurtosis=5) == pytest.approx(2 * wanted[1], rel=1e-5)
    assert chains_needed(0.01, tests=10) == chains_needed(0.01, 1e-7)


@pytest.mark.parametrize("kind", ["variance", "mean", "law", "probability"])
def test_so_many_chains_overlook_as_seldom_as_stated(kind: Any) -> None:
    """2000 times, at 0.01 and 0.1; the law's number is a bound."""
    d, alpha, miss = 0.1, 0.01, 0.1
    n, g, missed = chains_needed(d, alpha, miss, kind, p=0.3), np.random.default_rng(8), 0
    for _ in range(2000):
        checks = Checks(1, alpha)
        try:
            if kind == "variance":  # just as often too large as too small
                checks.variance(g.normal(size=n) * math.sqrt(1 + d * (-1) ** g.integers(2)), 1)
            elif kind == "mean":
                checks.mean(g.normal(d, 1, size=n), 0, 1)
            elif kind == "law":  # uniform, with a tenth moved from its lower half to its upper
                u = g.random(n)
                checks.law(np.where(u < 0.4, u * 1.25, 0.5 + (u - 0.4) / 1.2), np.copy)
            else:
                checks.probability(g.binomial(n, 0.3 + d), n, 0.3)
        except AssertionError:
            continue
        missed += 1
    assert missed <= stats.binom.isf(2.5e-7, 2000, miss * (1.3 if kind == "probability" else 1.1))
    assert missed >= (0 if kind == "law" else stats.binom.ppf(2.5e-7, 2000, miss / 1.5))


# ---- planted errors are seen --------------------------------------------------------------------


def test_a_variance_one_percent_off_is_seen() -> None:
    z = np.random.default_rng(0).normal(size=chains_needed(0.01, tests=2))
    checks = Checks(2)
    fails(lambda: checks.variance(math.sqrt(1.01) * z, 1))
    fails(lambda: checks.variance(math.sqrt(0.99) * z, 1))
    Checks(1).variance(z, 1)


def test_noise_of_the_right_moments_and_another_law_is_seen() -> None:
    g = np.random.default_rng(0)
    uniform = math.sqrt(12) * (g.random(8000) - 0.5)
    fails(lambda: Checks(1).gaussian(uniform, 0, 1), "fourth moment")
    fails(lambda: Checks(1).law(uniform, NORMAL))
    fails(lambda: Checks(1).same_law(uniform, g.normal(size=8000)))
    fails(lambda: Checks(1).same_law(uniform, g.normal(size=90_000)))
    fails(lambda: Checks(1).bounded_mean(np.abs(uniform) > 1, 2 * NORMAL(-1), 0, 1))
    fails(lambda: Checks(1).bounded_mean(np.abs(uniform) > 1.8, 2 * NORMAL(-1.8), 0, 1), "mean")
    fails(lambda: Checks(1).bounded_mean(uniform, 0, -1, 2), "least")
    fails(lambda: Checks(1).bounded_mean(uniform, 0, -2, 1), "greatest")
    fails(lambda: Checks(1).probability(np.sum(np.abs(uniform) > 2), 8000, 2 * NORMAL(-2)))


def test_ten_heads_are_judged_at_half_the_share() -> None:
    """The other half is for the draws' own variance, which is 0 here and says nothing."""
    heads, rate = np.ones(10), 4 / 2**10
    Checks(1, 0.999 * rate).bounded_mean(heads, 0.5, 0, 1)
    fails(lambda: Checks(1, 1.001 * rate).bounded_mean(heads, 0.5, 0, 1))


def test_the_own_variance_sharpens_a_bounded_mean() -> None:
    """0.5 +- 0.01 in [0, 1]: a mean off by 0.002 is far outside of one bound and inside another."""
    x = 0.502 + 0.01 * np.cos(np.arange(100_000))
    low, high = bounds.hoeffding(100_000, 0.5, 1e-6)
    assert low < x.mean() < high
    fails(lambda: Checks(1).bounded_mean(x, 0.5, 0, 1))
    fails(lambda: Checks(1).bounded_mean(x, 0.5, 0, 1, variance=5e-5))
    Checks(1).bounded_mean(x - 0.002, 0.5, 0, 1)


RNG = np.random.default_rng(1)
FRESH = RNG.normal(size=4000)
ANGLES = RNG.uniform(0, 2 * np.pi, 4000)
RADII = np.sqrt(-2 * np.log(RNG.random(2000)))
SHARED: dict[str, Array] = {
    "in pairs": np.repeat(FRESH[:2000], 2),
    "in pairs, the sign turned": np.repeat(FRESH[:2000], 2) * np.tile([1, -1], 2000),
    "a radius in pairs": np.repeat(RADII, 2) * np.cos(ANGLES),
    "a tenth of it, by neighbours": (FRESH + 0.33 * np.roll(FRESH, 1)) / math.sqrt(1 + 0.33**2),
    "by 64ths": np.tile(FRESH[: 4000 // 64], 64),
    "by shards of 997": np.resize(FRESH[:997], 4000),
    "by halves": np.tile(FRESH[:2000], 2),
    "by halves, reversed": np.concatenate([FRESH[:2000], FRESH[1999::-1]]),
    "by halves, the sign turned": np.concatenate([FRESH[:2000], -FRESH[:2000]]),
}


@pytest.mark.parametrize("name", SHARED)
def test_noise_that_chains_share_is_seen(name: str) -> None:
    """Its marginal law is right, and a test of it passes."""
    Checks(1).independent_chains(FRESH)
    if name != "by 64ths":  # 62 numbers
        Checks(1).law(SHARED[name], NORMAL)
    fails(lambda: Checks(1).independent_chains(SHARED[name], what="shared"), "shared, correlation")


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 1024])
def test_a_little_noise_that_chains_share_is_seen_where_it_is_likeliest(lag: int) -> None:
    """Six standard errors: within the bound for every lag, outside of that for a dozen."""
    root = math.sqrt(len(FRESH))
    shared = FRESH + (6.1 - FRESH @ np.roll(FRESH, lag) / root) / root * np.roll(FRESH, lag)
    fails(lambda: Checks(1).independent_chains(shared), rf"k = {lag}: (5\.[7-9]|6\.[0-4])")


STEPS = RNG.normal(size=(4, 4000))
STEPS_THAT_SHARE: dict[str, Array] = {
    "the same chain's": STEPS[[0, 1, 2, 0]],
    "its sign turned": np.stack([*STEPS[:3], -STEPS[1]]),
    "the next chain's": np.stack([*STEPS[:3], np.roll(STEPS[2], -1)]),
    "chain + 100 step": np.stack([np.resize(np.roll(FRESH, -100 * k), 4000) for k in range(4)]),
    "a tenth of it": np.stack([*STEPS[:3], (STEPS[3] + STEPS[0] / 3) / math.sqrt(10 / 9)]),
    "its radius": np.stack([*STEPS[:3], np.abs(STEPS[0]) * np.sign(STEPS[3])]),
}


@pytest.mark.parametrize("name", STEPS_THAT_SHARE)
def test_noise_that_steps_share_is_seen(name: str) -> None:
    Checks(1).independent_steps(STEPS)
    rows = STEPS_THAT_SHARE[name]
    checks = Checks(len(rows))
    for row in rows:
        checks.gaussian(row, 0, 1)
    fails(lambda: Checks(1).independent_steps(rows), "in row")


@pytest.mark.parametrize("lag", [0, 1, -1])
def test_a_little_noise_that_steps_share_is_seen_where_it_is_likeliest(lag: int) -> None:
    """Six standard errors: within the bound for every lag, outside of that for these three."""
    near, other = np.roll(STEPS[0], lag), STEPS[1]
    other = other - near * (near @ other) / (near @ near)
    r = 6 / math.sqrt(len(near))
    shared = r * near / near.std() + math.sqrt(1 - r * r) * other / other.std()
    fails(
        lambda: Checks(1).independent_steps(np.stack([STEPS[0], shared])),
        rf"k = {lag}: (5\.[6-9]|6\.[0-4])",
    )


def test_a_correlation_is_seen_and_a_product_of_independent_draws_is_not() -> None:
    g = np.random.default_rng(0)
    a, b = g.normal(size=(2, 10_000))
    Checks(1).uncorrelated(a, b**3)
    fails(lambda: Checks(1).uncorrelated(a, b + 0.1 * a))


# ---- laws on the line ---------------------------------------------------------------------------


def gaussian_energy(x: Array) -> Array:
    return x * x / 2


def clipped(b: float, h: float, power: float = 0.5, **options: Any) -> Kernel1D:
    """AniLA on N(0, 1)."""

    def gamma(x: Array) -> Array:
        return b / np.maximum(b, np.abs(x))

    return Kernel1D.gaussian(
        lambda x: x - h / 2 * gamma(x) * x,
        lambda x: math.sqrt(h) * gamma(x) ** power,
        breaks=(-b, b),
        **options,
    )


@pytest.mark.parametrize("h", [0.1, 0.5, 1.0])
def test_ula_on_a_gaussian_has_its_closed_forms(h: float) -> None:
    a = 1 - h / 2
    kernel = Kernel1D.gaussian(lambda x: a * x, math.sqrt(h), (-10, 10), points=(1.5,))
    stationary = kernel.stationary()
    assert kernel.variance(stationary) == pytest.approx(1 / (1 - h / 4), abs=1e-8)
    assert kernel.moment(stationary, 4) == pytest.approx(3 / (1 - h / 4) ** 2, abs=1e-6)
    assert kernel.second_eigenvalue() == pytest.approx(a, abs=1e-8)
    law = kernel.after(7, 1.5)
    variance = (1 - a**14) / (1 - h / 4)
    assert kernel.moment(law, 1) == pytest.approx(1.5 * a**7, abs=1e-10)
    assert kernel.variance(law) == pytest.approx(variance, abs=1e-10)
    x = np.linspace(-9, 9, 1001)
    want = NORMAL(x, 1.5 * a**7, math.sqrt(variance))
    np.testing.assert_allclose(kernel.cdf(law)(x), want, atol=1e-5)
    assert kernel.acceptance(law) == pytest.approx(1)


@pytest.mark.parametrize(
    ("b", "h", "variance", "acceptance"),
    [
        (2, 1.0, 1.4140, 0.919),
        (1, 1.0, 1.7633, 0.895),
        (1, 0.1, 1.4451, 0.981),
        (0.5, 1.0, 2.1019, 0.856),
        (0.5, 0.1, 1.8166, 0.954),
    ],
)
def test_anila_on_a_gaussian(b: float, h: float, variance: float, acceptance: float) -> None:
    plain, corrected = clipped(b, h, span=(-12, 12)), clipped(b, h, energy=gaussian_energy)
    assert plain.variance(plain.stationary()) == pytest.approx(variance, abs=6e-5)
    law = corrected.stationary()
    assert corrected.variance(law) == pytest.approx(1, abs=1e-9)
    assert corrected.acceptance(law) == pytest.approx(acceptance, abs=6e-4)
    assert corrected.total_variation(law, stats.norm.pdf) < 1e-9


@pytest.mark.parametrize(
    ("b", "h", "rate", "corrected"),
    [
        (1, 1.0, 0.7308, 0.6974),
        (1, 0.5, 0.8624, 0.8348),
        (1, 0.1, 0.9720, 0.9634),
        (0.5, 1.0, 0.8593, None),
        (0.5, 0.5, 0.9291, None),
        (0.5, 0.1, 0.9857, None),
    ],
)
def test_anilas_geometric_rate(b: float, h: float, rate: float, corrected: float | None) -> None:
    kernel = clipped(b, h, span=(-12, 12), nodes=400)
    assert kernel.second_eigenvalue() == pytest.approx(rate, abs=6e-5)
    if corrected is not None:
        metropolis = clipped(b, h, energy=gaussian_energy)
        assert metropolis.second_eigenvalue() == pytest.approx(corrected, abs=6e-5)
        own = np.linalg.eigvals(metropolis.matrix[::2, ::2])  # a matrix of the same kind
        assert np.abs(own.imag).max() < 1e-8


@pytest.mark.parametrize(("h", "variance"), [(1.0, 2.4872), (0.1, 1.1093)])
def test_tula_on_a_gaussian(h: float, variance: float) -> None:
    kernel = Kernel1D.gaussian(
        lambda x: x - h / 2 * x / (1 + h / 2 * np.abs(x)), math.sqrt(h), (-16, 16), breaks=(0,)
    )
    assert kernel.variance(kernel.stationary()) == pytest.approx(variance, abs=6e-5)


@pytest.mark.parametrize(("h", "variance"), [(1.0, 2.7200), (0.1, 2.2845)])
def test_the_drift_alone_clipped_has_tails_that_want_room(h: float, variance: float) -> None:
    kernel = clipped(1.0, h, 0.0, span=(-30, 30), nodes=1000)
    assert kernel.variance(kernel.stationary()) == pytest.approx(variance, abs=6e-5)
    with pytest.raises(ArgumentError, match=r"loses .* of the mass, .* widen span=\(-8.0, 8.0\)"):
        clipped(1.0, h, 0.0).stationary()


@pytest.mark.parametrize(
    ("b", "gap"), [(1e9, 4.676e-3), (4, 4.031e-3), (1, 1.618e-3), (0.25, 4.265e-4)]
)
def test_the_gap_of_a_double_well(b: float, gap: float) -> None:
    """U = 2 (x^2 - 1)^2, h = 0.02: what the clip costs where the barrier is."""

    def slope(x: Array) -> Array:
        return 8 * x * (x * x - 1)

    def gamma(x: Array) -> Array:
        return b / np.maximum(b, np.abs(slope(x)))

    ends = [r.real for c in (b, -b) for r in np.roots([8, 0, -8, c]) if abs(r.imag) < 1e-9]
    kernel = Kernel1D.gaussian(
        lambda x: x - 0.01 * gamma(x) * slope(x),
        lambda x: np.sqrt(0.02 * gamma(x)),
        (-2.5, 2.5),
        nodes=500,
        breaks=ends,
    )
    assert 1 - kernel.second_eigenvalue() == pytest.approx(gap, rel=2e-3)


def test_any_density_with_an_accept_step_has_its_target() -> None:
    """A random walk in Laplace steps, drawn to the right, on a double well."""

    def log_density(x: Array, y: Array) -> Array:
        return stats.laplace.logpdf(y - x - 0.1, scale=0.4)

    def energy(x: Array) -> Array:
        return 2 * (x * x - 1) ** 2

    kernel = Kernel1D(log_density, (-3, 3), energy=energy, tolerance=0.05)
    law = kernel.law(lambda x: np.exp(-energy(x)))
    assert kernel.total_variation(law, law @ kernel.matrix) < 1e-14
    assert kernel.total_variation(kernel.stationary(), law) < 1e-9
    flow = law[:, None] * kernel.matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-16)

    x = np.linspace(-3, 3, 2001)
    target = np.exp(-energy(x)) / np.exp(-energy(x)).sum()
    q = 0.003 * np.exp(log_density(x[:, None], x))
    accepted = np.minimum(target[:, None] * q, (target[:, None] * q).T).sum()
    assert kernel.acceptance(law) == pytest.approx(accepted, abs=1e-4)


def test_a_clamp_collects_atoms() -> None:
    low, high = -0.5, 1.0
    kernel = Kernel1D.gaussian(lambda x: 0.8 * x, 0.6, clamp=(low, high), points=(0.25,))
    law = kernel.after(1, 0.25)
    below, above = NORMAL((low - 0.2) / 0.6), NORMAL((0.2 - high) / 0.6)
    assert (kernel.x[0], kernel.x[-1]) == (low, high)
    assert (law[0], law[-1], law.sum()) == pytest.approx((below, above, 1), abs=1e-12)
    cdf, x = kernel.cdf(law), np.array([-1, low - 1e-9, low, 0.3, high - 1e-9, high, 2])
    want = np.where(x < low, 0, np.where(x < high, NORMAL((x - 0.2) / 0.6), 1))
    np.testing.assert_allclose(cdf(x), want, atol=1e-6)
    g, draws = np.random.default_rng(0), np.full(100_000, 0.25, dtype=np.float32)
    for _ in range(5):
        noise = 0.6 * g.normal(size=draws.shape)
        draws = np.clip(0.8 * draws + noise, low, high).astype(np.float32)
    five, checks = kernel.after(5, 0.25), Checks(3)
    checks.law(draws, kernel.cdf(five))
    checks.probability((draws == high).sum(), len(draws), five[-1])
    checks.moment(draws, 2, functools.partial(kernel.moment, five))
    half_open = Kernel1D.gaussian(lambda x: 0.8 * x, 0.6, clamp=(0, None))
    assert (half_open.low, half_open.high) == (0, 8)
    assert half_open.stationary()[0] > 0.25


def test_accuracy_is_known() -> None:
    """A break that the panels know, and one that they do not; a grid too coarse for the noise."""
    known = clipped(1.0, 0.5, span=(-12, 12), nodes=150)
    unknown = Kernel1D(known._log_density, (-12, 12), nodes=150)
    errors = [k.refinement(lambda k: k.variance(k.stationary())) for k in (known, unknown)]
    assert errors[0] < 1e-8 < 1e-6 < errors[1] < 1e-3
    coarse = Kernel1D.gaussian(lambda x: 0.9 * x, 0.05, nodes=100)
    with pytest.raises(ArgumentError, match="more than nodes=100"):
        coarse.after(1, stats.norm.pdf)


def test_total_variation_and_means() -> None:
    kernel = Kernel1D.gaussian(lambda x: x / 2, 1.0)
    apart = kernel.total_variation(stats.norm(0, 1).pdf, stats.norm(1, 1).pdf)
    assert apart == pytest.approx(2 * NORMAL(0.5) - 1, abs=1e-4)
    assert kernel.expect(stats.norm.pdf, np.cos) == pytest.approx(math.exp(-0.5), abs=1e-12)
    # The law of exp(-U) up to a constant.
    assert kernel.moment(lambda x: 7 * np.exp(-2 * x**2), 2) == pytest.approx(0.25, abs=1e-12)


def test_a_wrong_accept_step_is_seen() -> None:
    """AniLA's, without the log of the ratio of the two standard deviations."""
    b, h, n, g = 0.5, 1.0, 200_000, np.random.default_rng(4)
    kernel = clipped(b, h, energy=gaussian_energy)
    start = kernel.law(stats.norm.pdf)

    def propose(x: Array) -> tuple[Array, Array]:
        gamma = b / np.maximum(b, np.abs(x))
        return x - h / 2 * gamma * x, np.sqrt(h * gamma)

    def step(x: Array, ratio_of_sds: bool) -> tuple[Array, Array]:
        mean, sd = propose(x)
        y = mean + sd * g.normal(size=n)
        back, sd_back = propose(y)
        log = (x * x - y * y) / 2 + ((y - mean) / sd) ** 2 / 2 - ((x - back) / sd_back) ** 2 / 2
        log += np.log(sd / sd_back) * ratio_of_sds
        accepted = np.log(g.random(n)) < log
        return np.where(accepted, y, x), accepted

    x, accepted = step(g.normal(size=n), True)
    checks = Checks(4)
    checks.probability(accepted.sum(), n, kernel.acceptance(start))
    checks.gaussian(x, 0, 1)
    x, accepted = step(g.normal(size=n), False)
    fails(lambda: checks.probability(accepted.sum(), n, kernel.acceptance(start)))
    fails(lambda: checks.gaussian(x, 0, 1))


# ---- rank tests ---------------------------------------------------------------------------------


class Sampler:
    """Chains in numpy, for N(0, I): a draw, and steps that are right or wrong."""

    def __init__(self, seed: int) -> None:
        self.g = np.random.default_rng(seed)

    def draw(self, n: int) -> Array:
        return self.g.normal(size=(n, 2))

    def ula(self, x: Array, h: float = 0.5) -> Array:
        return (1 - h / 2) * x + math.sqrt(h) * self.g.normal(size=x.shape)

    def mala(self, x: Array, h: float = 0.9, ratio_of_proposals: bool = True) -> Array:
        y = self.ula(x, h)

        def log_q(a: Array, b: Array) -> Array:
            return -np.sum((b - (1 - h / 2) * a) ** 2, axis=1) / (2 * h)

        log = (np.sum(x**2, 1) - np.sum(y**2, 1)) / 2
        log += (log_q(y, x) - log_q(x, y)) * ratio_of_proposals
        return np.where((np.log(self.g.random(len(x))) < log)[:, None], y, x)

    def exact(self, x: Array, a: float) -> Array:
        return a * x + math.sqrt(1 - a * a) * self.g.normal(size=x.shape)

    def turning(self, x: Array, angle: float = 0.5) -> Array:
        """Leaves N(0, I) as it is, and is not reversible."""
        c, s = math.cos(angle), math.sin(angle)
        return 0.8 * x @ np.array([[c, s], [-s, c]]) + 0.6 * self.g.normal(size=x.shape)


def products(x: Array) -> Array:
    return np.stack([x[:, 0], x[:, 0] * x[:, 1], np.sum(x**2, 1)], 1)


def test_right_kernels_pass_and_wrong_ones_do_not() -> None:
    s = Sampler(0)
    assert isinstance(rank_test(s.draw, s.mala), Passed)
    rank_test(s.draw, lambda x: s.mala(x, 2.0), length=25, statistic=products)
    rank_test(lambda n: s.draw(n) / math.sqrt(1 - 0.5 / 4), s.ula)  # its own law
    two_sample_test(s.draw, s.mala)
    wrong = functools.partial(s.mala, ratio_of_proposals=False)
    for test in (rank_test, two_sample_test):
        fails(lambda test=test: test(s.draw, s.ula), "statistic 1")
        fails(lambda test=test: test(s.draw, wrong), "statistic 1")


@pytest.mark.parametrize("length", [2, 3, 10])
@pytest.mark.parametrize("own_reverse", [True, False])
def test_ranks_in_the_path_of_a_slow_chain_are_uniform(length: int, own_reverse: bool) -> None:
    """Its middle states have middle ranks, so every place must be as probable as any other."""
    s, n = Sampler(7), 20_000
    step = functools.partial(s.exact, a=0.99)
    ranked = ranks._ranks(
        s.draw(n), step, step if own_reverse else None, length, lambda x: x[:, 0], s.g
    )
    counts = np.bincount(ranked[:, 0], minlength=length)
    assert len(counts) == length
    assert stats.chisquare(counts).pvalue > 1e-7


def test_the_rate_is_shared_by_statistics_and_degrees() -> None:
    """Five first places of two: 2 / 2^5. Five middle places of three: 2 / 3^5, of degree 2."""
    log_p, found = ranks._uniformity(np.zeros((5, 3), dtype=np.int64), 2)
    assert (math.exp(log_p), found[-8:]) == (pytest.approx(3 * 2 * 2 / 2**5), "degree 1")
    log_p, found = ranks._uniformity(np.ones((5, 1), dtype=np.int64), 3)
    assert (math.exp(log_p), found[-8:]) == (pytest.approx(4 * 2 / 3**5), "degree 2")


def test_a_kernel_that_is_not_reversible_wants_its_reverse() -> None:
    s = Sampler(1)
    back = functools.partial(s.turning, angle=-0.5)
    rank_test(s.draw, s.turning, reverse=back, statistic=products)
    two_sample_test(s.draw, s.turning, statistic=products)
    fails(lambda: rank_test(s.draw, s.turning, statistic=products))
    wide = lambda x: 1.05 * s.turning(x)  # noqa: E731
    fails(lambda: rank_test(s.draw, wide, reverse=back, statistic=products))
    fails(lambda: two_sample_test(s.draw, wide, statistic=products))


def test_what_is_suspicious_is_looked_at_again() -> None:
    """An error that 10,000 paths cannot be sure of is found with more of them."""
    s = Sampler(2)
    small = functools.partial(s.ula, h=0.25)
    fails(lambda: rank_test(s.draw, small, length=20, stages=1, chains=50_000))
    fails(lambda: rank_test(s.draw, small, length=20), r"stage [2-5] of 5")


def test_rules_and_tensors_in_place() -> None:
    """ULA at the law of its own step size, and at one 5 % too narrow; a step that writes to x."""
    h, noise = 0.5, Noise(9)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1) / 2

    def draw(n: int, variance: float = 1 / (1 - h / 4)) -> torch.Tensor:
        noise.advance()
        return math.sqrt(variance) * noise.normal((n, 3))

    step = rule_step(energy, Langevin(h), Noise(7))
    assert rank_test(draw, step).chains >= 10_000
    two_sample_test(draw, step, steps=3)
    fails(lambda: rank_test(functools.partial(draw, variance=0.95 / (1 - h / 4)), step))
    g = torch.Generator(noise.normal((1, 1)).device).manual_seed(0)

    def in_place(x: torch.Tensor) -> torch.Tensor:
        fresh = torch.randn(x.shape, generator=g, device=x.device)
        return x.mul_(1 - h / 2).add_(math.sqrt(h) * fresh)

    rank_test(draw, in_place, seed=4)
    rank_test(draw, in_place, reverse=in_place)


def test_a_rules_step_is_sampling_on() -> None:
    x = torch.arange(6.0).view(3, 2)
    rule, energy = Langevin(0.1), lambda x: x.square().sum(1)
    step = rule_step(energy, rule, 5, steps=2)
    torch.testing.assert_close(step(step(x)), sample(energy, x, rule, 4, seed=5).x, rtol=0, atol=0)


def test_randomness_that_repeats_and_a_state_that_is_lost() -> None:
    s = Sampler(3)
    with pytest.raises(ArgumentError, match="draw gave the same states twice"):
        two_sample_test(lambda n: Sampler(5).draw(n), s.mala)
    with np.errstate(divide="ignore", invalid="ignore"):
        fails(lambda: rank_test(s.draw, lambda x: x / 0.0), "not finite")


# ---- the door -----------------------------------------------------------------------------------

X, KERNEL = np.linspace(-1, 1, 1200), Kernel1D.gaussian(lambda x: x / 2, 1.0, nodes=100)
DRAW, STAY = Sampler(6).draw, np.copy
BAD: list[tuple[Callable[[], object], type[LangevinError], str]] = [
    (lambda: Checks(0), ArgumentError, "tests=0: give an int >= 1"),
    (lambda: Checks(True), ArgumentError, "tests=True"),
    (lambda: Checks(2.0), ArgumentError, "tests=2.0"),  # type: ignore[arg-type]
    (lambda: Checks(1, 0), ArgumentError, "false_alarm=0: give a probability"),
    (lambda: Checks(1, math.nan), ArgumentError, "false_alarm=nan"),
    (lambda: Checks(1).law(X[:, None], NORMAL), ShapeError, r"x is (1200, 1): give (n,)"),
    (lambda: Checks(1).mean([1.0], 0, 1), ShapeError, "n >= 2"),
    (lambda: Checks(1).gaussian(X, 0, 0), ArgumentError, "variance=0: give a positive"),
    (lambda: Checks(1).mean(X, 0, -1), ArgumentError, "variance=-1"),
    (lambda: Checks(1).moment(X, 2, lambda j: 1), ArgumentError, "the variance of x^2=0"),
    (lambda: Checks(1).variance(X, 1, kurtosis=1), ArgumentError, "kurtosis=1: give a number"),
    (lambda: Checks(1).bounded_mean(X, 2, -1, 1), ArgumentError, "low=-1, mean=2, high=1"),
    (lambda: Checks(1).probability(5, 4, 0.5), ArgumentError, "hits=5, n=4"),
    (lambda: Checks(1).uncorrelated(X, X[:9]), ShapeError, "a has 1200 draws and b 9"),
    (lambda: Checks(1).independent_chains(X[:999]), ArgumentError, "999 chains"),
    (lambda: Checks(1).independent_steps(X), ShapeError, "give (rows, n)"),
    (lambda: Checks(1).independent_steps(X[None]), ShapeError, "two steps or more"),
    (lambda: chains_needed(0), ArgumentError, "discrepancy=0"),
    (lambda: chains_needed(0.1, kind="median"), ArgumentError, "kind='median'"),  # type: ignore
    (lambda: Kernel1D.gaussian(np.sin, 1.0, (1, 0)), ArgumentError, "span=(1, 0)"),
    *(
        (lambda sd=sd: Kernel1D.gaussian(np.sin, sd, nodes=100), ArgumentError, f"sd={sd}: give")
        for sd in (0.0, -1.0, math.nan, math.inf)
    ),
    (lambda: Kernel1D.gaussian(np.sin, np.zeros_like, nodes=100), ArgumentError, "sd=0.0"),
    (lambda: Kernel1D.gaussian(np.sin, -1.0, nodes=100, clamp=(0, 1)), ArgumentError, "sd=-1.0"),
    (lambda: Kernel1D.gaussian(np.sin, 1.0, nodes=5), ArgumentError, "nodes=5"),
    (
        lambda: Kernel1D.gaussian(np.sin, 1.0, energy=np.square, clamp=(0, 1)),
        ArgumentError,
        "clamp",
    ),
    (lambda: Kernel1D.gaussian(np.sin, 1.0, points=(9,)), ArgumentError, "points=(9.0,)"),
    (lambda: KERNEL.after(1, 0.5), ArgumentError, "0.5 is not a node: name it in points"),
    (lambda: KERNEL.moment(np.ones(5), 1), ArgumentError, "a law has 100 probabilities"),
    (lambda: rank_test(DRAW, STAY, length=1), ArgumentError, "length=1: give an int >= 2"),
    (lambda: rank_test(DRAW, STAY, stages=0), ArgumentError, "stages=0"),
    (lambda: rank_test(lambda n: X, STAY), ShapeError, "draw(10000) gave (1200,)"),
    (lambda: rank_test(DRAW, STAY, statistic=np.sum), ShapeError, "statistic gave ()"),
    (lambda: two_sample_test(DRAW, STAY, steps=0), ArgumentError, "steps=0"),
]


@pytest.mark.parametrize("number", range(len(BAD)), ids=[text for _, _, text in BAD])
def test_bad_input_is_named(number: int) -> None:
    call, error, message = BAD[number]
    with pytest.raises(error, match=re.escape(message)):
        call()


GUIDE = re.findall(r"```python\n(.*?)```", (ROOT / "docs/TESTING_SAMPLERS.md").read_text(), re.S)


@pytest.mark.parametrize("number", range(len(GUIDE)))
def test_the_guide_runs(number: int) -> None:
    """And its figures are those it states."""
    names: dict[str, Any] = {}
    with torch.device("cpu"):
        exec(GUIDE[number], names)
    if "checks" in names:
        assert names["checks"].done == names["checks"].tests
    if "stationary" in names:
        kernel, rates = names["kernel"], []
        rates += [kernel.variance(names["stationary"]), kernel.second_eigenvalue()]
        assert rates == pytest.approx([1.575, 0.862], abs=6e-4)


WITHOUT = """
import sys
sys.modules["scipy"] = None
import langevin_ext
assert not [name for name in sys.modules if name.startswith("langevin_ext.testing")]
try:
    import langevin_ext.testing
except ImportError as error:
    assert "pip install 'langevin-ext[testing]'" in str(error), error
else:
    raise AssertionError("without scipy")
"""


def test_the_package_works_without_scipy_and_the_kit_says_what_it_wants() -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
