r"""Checks that share one rate of false alarms, for independent draws.

A family of N tests at rate a gives each a / N (Bonferroni): whatever their dependence, a right
sampler fails one of them with probability at most a. Each method is one test of the family; one
that looks at several things divides its share among them.

Exact at every n: `law`, `same_law`, `probability`, `bounded_mean`; for normal draws also `mean`,
`variance` and `uncorrelated`. The rest is asymptotic in n, and its docstring says how good it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import SupportsInt

import numpy as np
from scipy import special

from .._check import check_count
from ..errors import ArgumentError, ShapeError
from . import bounds, independence
from ._draws import (
    Array,
    Draws,
    Function,
    as_array,
    check_positive,
    check_rate,
)


class Checks:
    """Tests that together raise a false alarm with probability ``false_alarm`` at most.

    Args:
        tests: how many there will be, each a call of a method; more are refused, as the bounds
            were made for these.
        false_alarm: the probability that a right sampler fails any of them.

    Draws are tensors or arrays (n,): one number of each of n independent chains. ``what`` is said
    first when a test fails; a tuple is fine.

    Raises (every method):
        AssertionError: the draws are not what they are said to be, or one is not finite. The
            message has the statistic and its bounds.
        ArgumentError, ShapeError: a wrong argument, or one test more than declared.
    """

    def __init__(self, tests: int, false_alarm: float = 1e-6) -> None:
        self.tests, self.done = check_count("tests", tests, 1), 0
        self.false_alarm = check_rate("false_alarm", false_alarm)

    def _spend(self) -> float:
        """One test's share of the rate."""
        if self.done == self.tests:
            raise ArgumentError(
                f"tests={self.tests} are done, and the bounds are for no more: declare more"
            )
        self.done += 1
        return self.false_alarm / self.tests

    # ---- laws -----------------------------------------------------------------------------------

    def law(self, x: Draws, cdf: Function, *, what: object = "") -> None:
        """``x`` are draws of the law with this distribution function.

        sup |F_n - F| exceeds sqrt(log(2 / a) / 2n) with probability a at most: exact at every n,
        also for laws with atoms. (It is looked up at the draws, and just below those that occur
        more than once; at others there is 1 / n to be found.)
        """
        _law(as_array("x", x), cdf, self._spend(), what)

    def same_law(self, x: Draws, y: Draws, *, what: object = "") -> None:
        """``x`` and ``y`` are independent draws of one law, whichever it is.

        Exact at every n; with atoms, conservative. Of n draws each, sup |F_n - G_n| >= h / n has
        probability 2 C(2n, n - h) / C(2n, n) at most. Of unequal numbers either the surplus is left
        out or both are held against the common law, whichever is sharper at these numbers.
        """
        a, b, alpha = as_array("x", x), as_array("y", y), self._spend()
        n = min(len(a), len(b))
        high = bounds.two_sample(n, alpha)
        with_all = bounds.massart(len(a), alpha / 2) + bounds.massart(len(b), alpha / 2)
        if with_all < high:
            high = with_all
        else:
            a, b = a[:n], b[:n]
        _inside("distance between the laws", bounds.distance(a, b), 0, high, alpha, what)

    def gaussian(self, x: Draws, mean: float, variance: float, *, what: object = "") -> None:
        """``x`` are draws of N(mean, variance).

        Mean, variance, fourth moment, law, and neighbours uncorrelated, a fifth of the share each.
        Exact but for the fourth moment and the neighbours, which are central limits: at rates of
        1e-6 to 1e-7 the five together have less than twice their share for 1000 draws, and keep it
        from 4000 on. (Without its skewness the fourth moment would have 10 times its own there.)
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
        """The mean of ``x``, draws of a law whose mean and variance are known.

        Exact for normal draws. For others a central limit: a bound at z standard errors (5 or so)
        has exp(skewness z^3 / (6 sqrt n)) times the rate, unless ``skewness`` is given: then the
        longer tail's bound is skewness (z^2 - 1) / (6 sqrt n) standard errors further out, and what
        is left is of order exp(excess kurtosis z^4 / 24n). `bounded_mean` is exact at every n.
        """
        check_positive("variance", variance)
        _mean(as_array("x", x), mean, variance, skewness, self._spend(), what)

    def moment(
        self, x: Draws, k: int, moments: Callable[[int], float], *, what: object = ""
    ) -> None:
        """The mean of x^k: `mean` with the variance and skewness that follow from ``moments``.

        ``moments(j)`` is E x^j, asked for at k, 2k and 3k.
        """
        k = check_count("k", k, 1)
        m1, m2, m3 = (float(moments(j * k)) for j in (1, 2, 3))
        variance = check_positive(f"the variance of x^{k}", m2 - m1**2)
        skewness = (m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5
        draws = as_array("x", x) ** k
        _mean(draws, m1, variance, skewness, self._spend(), (what, f"moment {k}"))

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

        A chi-square of 2 (n - 1) / (kurtosis - 1) degrees of freedom: exact for normal draws, whose
        kurtosis E (x - mean)^4 / variance^2 is 3. For others a central limit, of the right mean and
        variance and with a gamma law's tail.
        """
        scale = math.sqrt(check_positive("variance", variance))
        if not 1 < kurtosis < math.inf:
            raise ArgumentError(f"kurtosis={kurtosis!r}: give a number above 1; a normal has 3")
        about = None if mean is None else mean / scale
        _variance(as_array("x", x) / scale, about, kurtosis, self._spend(), what)

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
        """The mean of draws that lie in [low, high]: exact at every n, for any law.

        With ``variance``, theirs or a bound on it, Bennett's inequality. Without, Hoeffding's with
        the relative entropy, and Maurer and Pontil's, which takes the draws' own variance; half the
        share each.
        """
        if not low < high or not low <= mean <= high:
            raise ArgumentError(f"low={low}, mean={mean}, high={high}: give low <= mean <= high")
        draws, alpha = as_array("x", x), self._spend()
        _inside("the least draw", float(draws.min()), low, high, 0.0, what)
        _inside("the greatest draw", float(draws.max()), low, high, 0.0, what)
        got, n, width = float(draws.mean()), len(draws), high - low
        if variance is not None:
            check_positive("variance", variance)
            down = bounds.bennett(n, variance, mean - low, alpha / 2)
            up = bounds.bennett(n, variance, high - mean, alpha / 2)
            _inside("mean", got, mean - down, mean + up, alpha, what)
            return
        ends = bounds.hoeffding(n, (mean - low) / width, alpha / 2)
        _inside("mean", got, low + width * ends[0], low + width * ends[1], alpha / 2, what)
        own = float(draws.var(ddof=1))
        radius = bounds.empirical_bernstein(n, own, width, alpha / 2)
        _inside("mean", got, mean - radius, mean + radius, alpha / 2, what)

    def probability(self, hits: SupportsInt, n: int, p: float, *, what: object = "") -> None:
        """``hits`` of n independent events have happened, each of probability p: exact, binomial.

        The acceptances of one step of n chains are such events, and the chains in a mode. Where the
        probability depends on the state, p is its mean over the states' law.
        """
        got = int(hits)
        if not 0 <= p <= 1 or not 0 <= got <= n:
            raise ArgumentError(f"hits={got}, n={n}, p={p}: give 0 <= hits <= n and 0 <= p <= 1")
        alpha = self._spend()
        _inside(f"hits of {n}", got, *bounds.binomial(n, p, alpha), alpha, what)

    # ---- independence ---------------------------------------------------------------------------

    def uncorrelated(self, a: Draws, b: Draws, *, what: object = "") -> None:
        """a is independent of b: the correlation of the n independent pairs (a_i, b_i).

        r sqrt((n - 2) / (1 - r^2)) is Student's with n - 2 degrees of freedom: exact if a or b is
        normal, whatever the other; otherwise a central limit.
        """
        x, y = as_array("a", a), as_array("b", b)
        if len(x) != len(y) or len(x) < 3:
            raise ShapeError(f"a has {len(x)} draws and b {len(y)}: give pairs, 3 or more")
        alpha = self._spend()
        high = bounds.correlation(len(x), alpha)
        _inside("correlation", float(np.corrcoef(x, y)[0, 1]), -high, high, alpha, what)

    def independent_chains(self, x: Draws, *, what: object = "") -> None:
        """Chains of different ids have nothing to do with one another: no noise is shared.

        What no test of a marginal law sees. Chain i is correlated with chain i + k (around the
        end) for k = 1, 2, 3, 4, 8, 16, ..., and, with a bound for so many, for every k; the first
        half with the second, in order and reversed; by value and by magnitude, as the normal scores
        of their ranks, so of any law, with atoms and with any tails. A central limit, good from
        1000 chains on; fewer are refused.
        """
        alpha = self._spend()
        _independent(independence.of_chains(as_array("x", x)), alpha, what)

    def independent_steps(self, innovations: Draws, *, what: object = "") -> None:
        """The rows of (steps, chains) are independent of one another, at equal and other chains.

        For innovations of a kernel, (x_(k+1) - mean(x_k)) / sd(x_k), and for whatever else should
        be fresh in every row: the noise of other streams, seeds or purposes. Every pair of rows is
        correlated at equal chains, at neighbours, and, with a bound for so many, at chains i and
        i + k for every k. Otherwise as `independent_chains`; it costs (pairs of rows) n log n.
        """
        rows, alpha = as_array("innovations", innovations, axes=2), self._spend()
        if len(rows) < 2:
            raise ShapeError(f"innovations is {rows.shape}: give two steps or more")
        _independent(independence.of_rows(rows), alpha, what)


# ---- one statistic and its bound ----------------------------------------------------------------


def _told(what: object) -> str:
    parts = [_told(part) for part in what] if isinstance(what, tuple) else [str(what)]
    return ", ".join(part for part in parts if part)


def _inside(name: str, got: float, low: float, high: float, alpha: float, what: object) -> None:
    if not low <= got <= high:
        raise AssertionError(
            f"{_told((what, name))}: {got:.7g} is outside [{low:.7g}, {high:.7g}], where it lies"
            f" but with probability {alpha:.2g}"
        )


def _law(x: Array, cdf: Function, alpha: float, what: object) -> None:
    n = len(x)
    values, counts = np.unique(x, return_counts=True)
    upto = np.cumsum(counts)
    tied = counts > 1
    points = np.concatenate([values, np.nextafter(values[tied], -np.inf)])
    empirical = np.concatenate([upto, (upto - counts)[tied]]) / n
    got = float(np.max(np.abs(empirical - np.asarray(cdf(points), dtype=np.float64))))
    _inside("distance from the law", got, 0, bounds.massart(n, alpha), alpha, what)


def _mean(
    x: Array, mean: float, variance: float, skewness: float, alpha: float, what: object
) -> None:
    down, up = bounds.gaussian_mean(len(x), variance, skewness, alpha)
    _inside("mean", float(x.mean()), mean - down, mean + up, alpha, what)


def _variance(z: Array, mean: float | None, kurtosis: float, alpha: float, what: object) -> None:
    """Of draws divided by what should be their standard deviation."""
    free = len(z) - (mean is None)
    got = float(np.sum((z - (z.mean() if mean is None else mean)) ** 2)) / free
    low, high = bounds.chi_square_mean(2 * free / (kurtosis - 1), alpha)
    _inside("variance over what it should be", got, low, high, alpha, what)


def _independent(found: list[independence.Largest], alpha: float, what: object) -> None:
    share = alpha / len(found)
    for name, value, of in found:
        high = bounds.normal_quantile(share / (2 * of))
        _inside(f"correlation times root n, {name}", value, -high, high, share, what)
