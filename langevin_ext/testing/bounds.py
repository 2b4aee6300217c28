r"""Where a statistic of n independent draws lies, but with probability alpha.

Sources: Massart, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality" (1990); Gnedenko
and Korolyuk (1951); Hoeffding (1963); Bennett (1962); Maurer and Pontil, "Empirical Bernstein
bounds and sample variance penalization" (2009); Cornish and Fisher (1938); Chernoff (1952).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special, stats

from ._draws import Array


def normal_quantile(alpha: float) -> float:
    """A standard normal is above it with probability alpha."""
    return float(-special.ndtri(alpha))


def massart(n: int, alpha: float) -> float:
    """sup |F_n - F| is above it with probability alpha at most, for every n and every law."""
    return math.sqrt(math.log(2 / alpha) / (2 * n))


def two_sample_log_p(n: int, h: int) -> float:
    """log of 2 C(2n, n - h) / C(2n, n), which P(sup |F_n - G_n| >= h / n) does not exceed.

    The paths of F_n - G_n that reach h / n are, reflected, those that end at 2h / n; so either
    side's probability is exact, and their sum a bound. Ties only make the distance less.
    """
    ways = 2 * special.gammaln(n + 1) - special.gammaln(n + h + 1) - special.gammaln(n - h + 1)
    return min(0.0, math.log(2) + float(ways))


def two_sample(n: int, alpha: float) -> float:
    """sup |F_n - G_n| of two times n draws is above it with probability alpha at most."""
    low, high = 0, n + 1
    while high - low > 1:
        h = (low + high) // 2
        low, high = (low, h) if two_sample_log_p(n, h) <= math.log(alpha) else (h, high)
    return low / n


def gaussian_mean(n: int, variance: float, skewness: float, alpha: float) -> tuple[float, float]:
    """How far below and above its expectation a mean lies: central limit, longer tail moved out."""
    z, root = normal_quantile(alpha / 2), math.sqrt(n)
    longer = abs(skewness) * (z * z - 1) / (6 * root)
    down, up = (z, z + longer) if skewness > 0 else (z + longer, z)
    error = math.sqrt(variance) / root
    return down * error, up * error


def chi_square_mean(degrees: float, alpha: float) -> tuple[float, float]:
    """Where a chi-square divided by its degrees of freedom lies."""
    low, high = (
        2 * float(inverse(degrees / 2, alpha / 2)) / degrees
        for inverse in (special.gammaincinv, special.gammainccinv)
    )
    return low, high


def correlation(n: int, alpha: float) -> float:
    """|r| of n independent pairs, one of each pair normal, is above it with probability alpha."""
    t = -float(special.stdtrit(n - 2, alpha / 2))
    return t / math.sqrt(n - 2 + t * t)


def binomial(n: int, p: float, alpha: float) -> tuple[int, int]:
    """Fewer and more hits than these have probability alpha / 2 each, at most."""
    return int(stats.binom.ppf(alpha / 2, n, p)), int(stats.binom.isf(alpha / 2, n, p))


def bennett(n: int, variance: float, reach: float, alpha: float) -> float:
    """How far above its expectation a mean lies, of draws at most ``reach`` above theirs."""
    if reach == 0:
        return 0.0
    want = math.log(1 / alpha) * reach**2 / (n * variance)
    u = optimize.brentq(lambda u: (1 + u) * math.log1p(u) - u - want, 0, 3 * want + 3)
    return float(u) * variance / reach


def hoeffding(n: int, mean: float, alpha: float) -> tuple[float, float]:
    """Where a mean of draws in [0, 1] lies: n KL(it, mean) <= log(2 / alpha)."""
    want = math.log(2 / alpha) / n

    def excess(q: float) -> float:
        return float(special.rel_entr(q, mean) + special.rel_entr(1 - q, 1 - mean)) - want

    low = 0.0 if excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, mean))
    high = 1.0 if excess(1.0) <= 0 else float(optimize.brentq(excess, mean, 1.0))
    return low, high


def empirical_bernstein(n: int, variance: float, width: float, alpha: float) -> float:
    """How far a mean is from its expectation, of draws in an interval, by their own variance."""
    log = math.log(4 / alpha)
    return math.sqrt(2 * variance * log / n) + 7 * width * log / (3 * (n - 1))


def chernoff_log_p(scores: Array, counts: Array) -> float:
    """log of a bound on how probable a sum so far out is, of draws uniform among ``scores``.

    ``counts`` say how often each was drawn. Two-sided: min over t of 2 M(t)^n exp(-t S); any t is
    a bound, so the search need not be perfect.
    """
    n, total = float(counts.sum()), float(counts @ scores)
    scores = scores * math.copysign(1.0, total)

    most = float(scores.max())

    def log_p(t: float) -> float:
        log_mean = t * most + math.log(float(np.exp(t * (scores - most)).mean()))
        return n * log_mean - t * abs(total)

    best = optimize.minimize_scalar(log_p, bounds=(0.0, 30.0), method="bounded")
    return min(0.0, math.log(2) + float(best.fun))


def distance(x: Array, y: Array) -> float:
    """sup |F - G| of two empirical distribution functions."""
    points = np.sort(np.concatenate([x, y]))
    f, g = (np.searchsorted(np.sort(a), points, "right") / len(a) for a in (x, y))
    return float(np.max(np.abs(f - g)))
