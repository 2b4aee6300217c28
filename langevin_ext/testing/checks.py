r"""Checks that share one rate of false alarms, for independent draws.

A family of N tests at rate a gives each a / N (Bonferroni): whatever their dependence, a right
sampler fails one of them with probability at most a. Each method is one test of the family; one
that looks at several things divides its share among them.

What is exact at every n: `law` (Massart 1990), `same_law` (Gnedenko and Korolyuk 1951),
`probability` (binomial), `bounded_mean` (Hoeffding 1963, Bennett 1962, Maurer and Pontil 2009); of
normal draws also `mean`, `variance` and `uncorrelated`. The rest is asymptotic in n, and its
docstring says from which n on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import SupportsInt

import numpy as np
from scipy import optimize, special, stats

from ..errors import ArgumentError, ShapeError
from ._draws import (
    Array,
    Draws,
    Function,
    as_array,
    check_positive,
    check_rate,
    magnitudes,
    normal_scores,
)

FEWEST = 1000
"""Chains below which the tail of a sum of products is not yet normal."""


class Checks:
    """Tests that together raise a false alarm with probability ``false_alarm`` at most.

    Args:
        tests: how many there will be, each a call of a method; more are refused, as the bounds
            were made for these.
        false_alarm: the probability that a right sampler fails any of them.

    Every method raises AssertionError with the statistic, its bounds and ``what``, if the draws are
    not what they are said to be or one of them is not finite. Draws are tensors or arrays (n,), one
    number of each of n independent chains.
    """

    def __init__(self, tests: int, false_alarm: float = 1e-6) -> None:
        if isinstance(tests, bool) or not isinstance(tests, int) or tests < 1:
            raise ArgumentError(f"tests={tests!r}: give the number of tests, an int >= 1")
        self.tests, self.done = tests, 0
        self.false_alarm = check_rate("false_alarm", false_alarm)

    def _spend(self) -> float:
        """One test's share of the rate."""
        if self.done == self.tests:
            raise ArgumentError(
                f"tests={self.tests}: all are done, and the bounds are for no more; declare more"
            )
        self.done += 1
        return self.false_alarm / self.tests

    # ---- laws -----------------------------------------------------------------------------------

    def law(self, x: Draws, cdf: Function, *, what: object = "") -> None:
        """``x`` are independent draws of the law with this distribution function.

        sup |F_n - F| exceeds sqrt(log(2 / a) / 2n) with probability a at most: exact at every n,
        for laws with atoms too (Massart 1990). It is looked up at the draws and just below those
        that occur more than once.
        """
        _law(as_array("x", x), cdf, self._spend(), what)

    def same_law(self, x: Draws, y: Draws, *, what: object = "") -> None:
        """``x`` and ``y`` are independent draws of one law, whichever it is.

        Exact at every n, and conservative for laws with atoms. With n draws of each
        P(sup |F_n - G_n| >= h / n) <= 2 C(2n, n - h) / C(2n, n) (Gnedenko and Korolyuk 1951). Of
        unequal numbers the surplus is left out, or both are held against the common law by
        Massart's bound, whichever is sharper at these numbers.
        """
        a, b, alpha = as_array("x", x), as_array("y", y), self._spend()
        n = min(len(a), len(b))
        high = tied_up_to(n, alpha) / n
        apart = sum(math.sqrt(math.log(4 / alpha) / (2 * k)) for k in (len(a), len(b)))
        if apart < high:
            high = apart
        else:
            a, b = a[:n], b[:n]
        _inside("distance between the laws", two_sample_distance(a, b), 0, high, alpha, what)

    def gaussian(self, x: Draws, mean: float, variance: float, *, what: object = "") -> None:
        """``x`` are independent draws of N(mean, variance).

        Five things, each with a fifth of the share: mean, variance, fourth moment, law, and
        neighbours uncorrelated. Exact but for the fourth moment (its skewness enters the bound:
        fine from n = 1000 on) and the neighbours (likewise).
        """
        z = (as_array("x", x) - mean) / math.sqrt(check_positive("variance", variance))
        alpha = self._spend() / 5
        _mean(z, 0.0, 1.0, 0.0, alpha, (what, "mean"))
        _variance(z, None, 3.0, alpha, (what, "variance"))
        _mean(z**4, 3.0, 96.0, 9504 / 96**1.5, alpha, (what, "fourth moment"))
        _law(z, special.ndtr, alpha, what)
        _mean(z[1:] * z[:-1], 0.0, 1.0, 0.0, alpha, (what, "product of neighbours"))

    # ---- moments --------------------------------------------------------------------------------

    def mean(
        self,
        x: Draws,
        mean: float,
        variance: float,
        *,
        skewness: float = 0.0,
        what: object = "",
    ) -> None:
        """The mean of ``x``, independent draws of known mean and variance.

        Exact for normal draws. For others it is the central limit: at z standard errors the rate
        is off by a factor exp(skewness z^3 / (6 sqrt n)) unless ``skewness`` is given, which moves
        the bound of the longer tail out by skewness (z^2 - 1) / (6 sqrt n) standard errors
        (Cornish and Fisher 1938); what is left is of order z^4 kurtosis / 24n. `bounded_mean` is
        exact at every n.
        """
        check_positive("variance", variance)
        _mean(as_array("x", x), mean, variance, skewness, self._spend(), what)

    def moment(
        self, x: Draws, k: int, moments: Callable[[int], float], *, what: object = ""
    ) -> None:
        """The mean of x^k, whose variance and skewness are those of ``moments``.

        ``moments(j)`` is E x^j, wanted at k, 2k and 3k. A central limit: see `mean`.
        """
        m1, m2, m3 = (float(moments(j * k)) for j in (1, 2, 3))
        variance = check_positive(f"the variance of x^{k}", m2 - m1**2)
        skewness = (m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5
        named = (what, f"moment {k}")
        _mean(as_array("x", x) ** k, m1, variance, skewness, self._spend(), named)

    def variance(
        self,
        x: Draws,
        variance: float,
        *,
        mean: float | None = None,
        kurtosis: float = 3.0,
        what: object = "",
    ) -> None:
        """The variance of ``x``, about its own mean or a known one.

        A chi-square with 2 (n - 1) / (kurtosis - 1) degrees of freedom: exact for normal draws
        (kurtosis 3); for others of this kurtosis it has the right mean and variance, a central
        limit with the skewness of a gamma law.
        """
        z = as_array("x", x) / math.sqrt(check_positive("variance", variance))
        if not kurtosis > 1:
            raise ArgumentError(f"kurtosis={kurtosis!r}: E (x - mean)^4 / variance^2 is above 1")
        about = None if mean is None else mean / math.sqrt(variance)
        _variance(z, about, kurtosis, self._spend(), what)

    def bounded_mean(
        self,
        x: Draws,
        mean: float,
        low: float,
        high: float,
        *,
        variance: float | None = None,
        what: object = "",
    ) -> None:
        """The mean of independent draws that lie in [low, high]: exact at every n, for any law.

        With a known variance (or a bound on it) it is Bennett's inequality; without, Hoeffding's in
        its relative-entropy form and the empirical Bernstein inequality of Maurer and Pontil, half
        the share each.
        """
        draws, alpha = as_array("x", x), self._spend()
        if not low < high or not low <= mean <= high:
            raise ArgumentError(f"low={low}, mean={mean}, high={high}: give low <= mean <= high")
        _inside("smallest draw", float(draws.min()), low, high, 0.0, what)
        _inside("largest draw", float(draws.max()), low, high, 0.0, what)
        got, n = float(draws.mean()), len(draws)
        if variance is not None:
            check_positive("variance", variance)
            down = _bennett(variance, mean - low, n, alpha / 2)
            up = _bennett(variance, high - mean, n, alpha / 2)
            _inside("mean", got, mean - down, mean + up, alpha, what)
            return
        width = high - low
        ends = _hoeffding((mean - low) / width, n, alpha / 4)
        _inside("mean", got, low + width * ends[0], low + width * ends[1], alpha, what)
        log = math.log(8 / alpha)  # two tails, each with half for the variance
        radius = math.sqrt(2 * float(draws.var(ddof=1)) * log / n) + 7 * width * log / (3 * (n - 1))
        _inside("mean", got, mean - radius, mean + radius, alpha, what)

    def probability(self, hits: SupportsInt, n: int, p: float, *, what: object = "") -> None:
        """``hits`` of n independent events have happened, each of probability p: exact, binomial.

        Acceptances of one step of n chains are such events, and so are chains in a mode, also where
        the probability depends on the state: p is then its mean over the states.
        """
        if not 0 <= p <= 1 or not 0 <= int(hits) <= n:
            raise ArgumentError(f"hits={int(hits)}, n={n}, p={p}: give 0 <= hits <= n, p in [0, 1]")
        alpha = self._spend()
        low, high = stats.binom.ppf(alpha / 2, n, p), stats.binom.isf(alpha / 2, n, p)
        _inside(f"hits of {n}", float(int(hits)), float(low), float(high), alpha, what)

    # ---- independence ---------------------------------------------------------------------------

    def uncorrelated(self, a: Draws, b: Draws, *, what: object = "") -> None:
        """The pairs (a_i, b_i) are independent draws, and a is independent of b.

        r sqrt((n - 2) / (1 - r^2)) is Student's with n - 2 degrees of freedom: exact if a or b is
        normal, whatever the other; otherwise a central limit.
        """
        x, y = as_array("a", a), as_array("b", b)
        if len(x) != len(y) or len(x) < 3:
            raise ShapeError(f"a and b are pairs, of 3 chains at least; got {len(x)} and {len(y)}")
        alpha = self._spend()
        t = float(special.stdtrit(len(x) - 2, 1 - alpha / 2))
        high = t / math.sqrt(len(x) - 2 + t * t)
        _inside("correlation", float(np.corrcoef(x, y)[0, 1]), -high, high, alpha, what)

    def independent_chains(self, x: Draws, *, what: object = "") -> None:
        """The chains' states have nothing to do with one another: no noise is shared.

        What no test of the marginal law sees. Chain i is correlated with chain i + k (around the
        end) for k = 1, 2, 3, 4, 8, 16, ... and, with a bound for so many, for every k; the first
        half with the second, in order and reversed. Values and magnitudes (noise that shares its
        radius, or its sign turned, is uncorrelated in value), both as normal scores of their ranks:
        of any law, also with atoms, and with any tails. A central limit, fine from n = 1000 on;
        fewer are refused.
        """
        scores, alpha = normal_scores(_enough(as_array("x", x))), self._spend() / 2
        for kind, s in (("values", scores), ("magnitudes", magnitudes(scores))):
            _chains(s, alpha, (what, kind))

    def independent_steps(self, innovations: Draws, *, what: object = "") -> None:
        """The rows of (steps, chains) are independent of one another, at equal and other chains.

        For innovations of a kernel, (x_k+1 - mean(x_k)) / sd(x_k), and for anything else that
        should be fresh in every row: the noise of other streams, seeds or purposes. Every pair of
        rows is correlated at equal chains, at neighbours, and with a bound for so many between
        chain i and i + k for every k. Values and magnitudes, n and exactness as in
        `independent_chains`; pairs of rows times n log n.
        """
        rows = _enough(as_array("innovations", innovations, dims=2))
        if len(rows) < 2:
            raise ShapeError(
                f"innovations is {rows.shape}: give (steps, chains), two steps or more"
            )
        scores, alpha = normal_scores(rows), self._spend() / 2
        for kind, s in (("values", scores), ("magnitudes", magnitudes(scores))):
            _steps(s, alpha, (what, kind))


def _inside(name: str, got: float, low: float, high: float, alpha: float, what: object) -> None:
    if not low <= got <= high:
        told = f"{what}: " if what != "" else ""
        raise AssertionError(
            f"{told}{name} is {got:.7g}, outside [{low:.7g}, {high:.7g}], where it is but with"
            f" probability {alpha:.2g}"
        )


def _mean(
    x: Array, mean: float, variance: float, skewness: float, alpha: float, what: object
) -> None:
    z, error = float(-special.ndtri(alpha / 2)), math.sqrt(variance / len(x))
    longer = abs(skewness) * (z * z - 1) / (6 * math.sqrt(len(x)))
    down, up = (z, z + longer) if skewness > 0 else (z + longer, z)
    _inside("mean", float(x.mean()), mean - down * error, mean + up * error, alpha, what)


def _variance(z: Array, mean: float | None, kurtosis: float, alpha: float, what: object) -> None:
    """Of draws divided by their standard deviation."""
    free = len(z) - (mean is None)
    degrees = 2 * free / (kurtosis - 1)
    got = float(np.sum((z - (z.mean() if mean is None else mean)) ** 2)) / free
    low, high = (float(special.chdtri(degrees, p)) / degrees for p in (1 - alpha / 2, alpha / 2))
    _inside("variance over what it should be", got, low, high, alpha, what)


def _law(x: Array, cdf: Function, alpha: float, what: object) -> None:
    n = len(x)
    values, counts = np.unique(x, return_counts=True)
    tied = values[counts > 1]
    # Below a tie the empirical law is another; elsewhere it is so by 1 / n.
    below = np.nextafter(tied, -np.inf)
    points = np.concatenate([values, below])
    empirical = np.concatenate([np.cumsum(counts), np.searchsorted(np.sort(x), below, "right")]) / n
    distance = float(np.max(np.abs(empirical - np.asarray(cdf(points)))))
    high = math.sqrt(math.log(2 / alpha) / (2 * n))
    _inside("distance from the law", distance, 0, high, alpha, what)


def two_sample_distance(x: Array, y: Array) -> float:
    """sup |F - G| of two empirical distribution functions."""
    points = np.sort(np.concatenate([x, y]))
    f, g = (np.searchsorted(np.sort(a), points, "right") / len(a) for a in (x, y))
    return float(np.max(np.abs(f - g)))


def two_sample_log_p(n: int, h: int) -> float:
    """log of 2 C(2n, n - h) / C(2n, n), which bounds P(sup |F_n - G_n| >= h / n)."""
    ways = 2 * special.gammaln(n + 1) - special.gammaln(n + h + 1) - special.gammaln(n - h + 1)
    return min(0.0, math.log(2) + float(ways))


def tied_up_to(n: int, alpha: float) -> int:
    """The largest h that two empirical laws of n draws may be apart, in units of 1 / n."""
    low, high = 0, n + 1
    while high - low > 1:
        h = (low + high) // 2
        low, high = (low, h) if two_sample_log_p(n, h) <= math.log(alpha) else (h, high)
    return low


def _bennett(variance: float, reach: float, n: int, alpha: float) -> float:
    """How far above its expectation a mean gets, of draws no further than ``reach`` above."""
    if reach == 0:
        return 0.0
    want = math.log(1 / alpha) * reach**2 / (n * variance)
    u = float(optimize.brentq(lambda u: (1 + u) * math.log1p(u) - u - want, 0, 3 * want + 3))
    return u * variance / reach


def _hoeffding(p: float, n: int, alpha: float) -> tuple[float, float]:
    """Where a mean of draws in [0, 1] lies: n KL(mean, p) < log(1 / alpha), on either side."""
    want = math.log(1 / alpha) / n

    def excess(q: float) -> float:
        return float(special.rel_entr(q, p) + special.rel_entr(1 - q, 1 - p)) - want

    low = 0.0 if excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, p))
    high = 1.0 if excess(1.0) <= 0 else float(optimize.brentq(excess, p, 1.0))
    return low, high


def _enough(x: Array) -> Array:
    if x.shape[-1] < FEWEST:
        raise ArgumentError(f"{x.shape[-1]} chains: the bounds are right from {FEWEST} on")
    return x


def _normal(z: Array, alpha: float, what: object) -> None:
    """All of these are standard normals."""
    high = float(-special.ndtri(alpha / (2 * z.size)))
    worst = int(np.argmax(np.abs(z)))
    _inside("correlation times root n", float(z.flat[worst]), -high, high, alpha, (what, worst))


def _crossed(a: Array, b: Array) -> Array:
    """sum_i a_i b_(i + k), around the end, for every k."""
    spectrum = np.conj(np.fft.rfft(a)) * np.fft.rfft(b)
    sums: Array = np.fft.irfft(spectrum, a.shape[-1])
    return sums


def _chains(s: Array, alpha: float, what: object) -> None:
    n = len(s)
    half = n // 2
    # A sum of n products of ranks has mean -1: they are drawn without replacement.
    z = (_crossed(s, s)[1 : (n + 1) // 2] + 1) / math.sqrt(n)
    lags = [1, 2, 3] + [2**j for j in range(2, n.bit_length()) if 2**j <= len(z)]
    _normal(z[[k - 1 for k in lags]], alpha / 4, (what, "chains at lags", lags))
    _normal(z, alpha / 4, (what, "chains at every lag, less one"))
    halves = [float(s[:half] @ other[:half]) for other in (s[-half:], s[::-1])]
    _normal(np.array(halves) / math.sqrt(half), alpha / 2, (what, "halves, reversed halves"))


def _steps(s: Array, alpha: float, what: object) -> None:
    count, n = s.shape
    pairs = [(k, j) for k in range(count) for j in range(k + 1, count)]
    for k, j in pairs:
        z = _crossed(s[k], s[j]) / math.sqrt(n)
        at = (what, "steps", (k, j))
        _normal(z[[0, 1, -1]], alpha / (2 * len(pairs)), (at, "chains at lags 0, 1, -1"))
        _normal(z, alpha / (2 * len(pairs)), (at, "chains at every lag"))
