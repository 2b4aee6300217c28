r"""Whether a kernel leaves a law invariant, from exact draws of that law: exact at every size.

Start in an exact draw, put it at a uniformly random place of a path of L states, and run the kernel
from it to the path's end, and to its beginning by the reversed kernel (a reversible kernel is its
own). If the law is invariant the path is a piece of a stationary chain, whichever place the start
was given, so the rank of the start's statistic in the path is uniform on 1, ..., L (ties in random
order). However slowly the chain mixes: no effective sample size enters.

Both tests look again at what is suspicious. With k stages, beta = a / k and gamma = beta^(1/k),
stage i rejects at p <= beta gamma^(1-i), is content above that plus gamma, and between them goes
on to new and more chains, which it does with probability gamma. So a right kernel is rejected with
probability beta + gamma (beta / gamma + gamma (...)) = k beta = a; at most, where p is a bound.

Source: Gandy and Scott, "Unit testing for MCMC and other Monte Carlo methods" (arXiv:2001.06465),
after Besag and Clifford (1989).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from numpy.polynomial import legendre
from torch import Tensor

from .._check import check_count
from .._types import Energy
from ..errors import ArgumentError, ShapeError
from ..noise import Noise, as_noise
from ..sample import sample
from ..samplers._rule import Rule
from . import bounds
from ._draws import Array, check_rate

State: TypeAlias = Any
"""Chains (n, ...), a tensor or a numpy array."""
Step: TypeAlias = Callable[[State], State]
Statistic: TypeAlias = Callable[[State], Any]
"""(n, ...) -> (n,) or (n, statistics)."""
Mask: TypeAlias = npt.NDArray[np.bool_]
Ranks: TypeAlias = npt.NDArray[np.int64]

MOST_DEGREES = 12


class Passed(NamedTuple):
    """What a test that did not reject has seen."""

    p: float
    """Bound on the p-value of the last stage, for all statistics together."""
    stages: int
    chains: int
    """Of all stages."""


def rule_step(
    energy: Energy,
    rule: Rule,
    seed: int | torch.Generator | Noise | None,
    steps: int = 1,
    *,
    backend: str = "auto",
) -> Step:
    """A rule as a function of states (n, ...): so many steps of `sample`, new noise in every call.

    What the rule carries beside x (a velocity) is made anew in every call.
    """
    noise = as_noise(seed)
    return lambda x: sample(energy, x, rule, steps, seed=noise, backend=backend).x


def rank_test(
    draw: Callable[[int], State],
    step: Step,
    *,
    reverse: Step | None = None,
    length: int = 10,
    statistic: Statistic | None = None,
    chains: int = 10_000,
    false_alarm: float = 1e-6,
    stages: int = 5,
    growth: int = 2,
    seed: int | np.random.Generator = 0,
) -> Passed:
    """The law of ``draw`` is invariant under ``step``, which is reversible or has ``reverse``.

    The ranks' uniformity is tested by the orthogonal polynomials of degree 1 (the start is shifted
    against its path), 2 (it is inside or outside of it), ..., L - 1, or 12 if that is less. Degree
    d has 2^-d of the rate, and Chernoff's bound on its sum: exact at every number of chains.

    Args:
        draw: n -> n independent exact draws (n, ...), new ones in every call.
        step: moves states (n, ...) of independent chains by a step, with new randomness in every
            call. What the kernel has beside x (a momentum that is kept) belongs to the state.
        reverse: the kernel of the reversed stationary chain; None for a reversible ``step``, as
            those of Metropolis rules are. (For an unadjusted rule draw from its own law.)
        length: states of a path, L; L - 1 steps for each chain, with ``reverse`` twice as many.
        statistic: (n, ...) -> (n,) or (n, statistics); a chain's mean and mean square over its
            coordinates if None. Another one sees other errors; U is a good one.
        chains: independent paths of the first stage.
        false_alarm: the probability that a right kernel is rejected, all stages and statistics.
        stages, growth: times it is looked at before it is content, and how many times as many
            chains each has as the one before. A right kernel takes one, nearly always.
        seed: of the places and of the order of ties.

    Raises:
        AssertionError: the law is not invariant, or a statistic is not finite.
        ArgumentError, ShapeError: an argument is outside its range.
    """
    length = check_count("length", length, 2)
    rng, start = np.random.default_rng(seed), _fresh(draw)

    def log_p(n: int) -> tuple[float, str]:
        ranks = _ranks(start(n), step, reverse, length, statistic or _mean_and_square, rng)
        return _uniformity(ranks, length)

    return _in_stages(log_p, chains, false_alarm, stages, growth)


def two_sample_test(
    draw: Callable[[int], State],
    step: Step,
    *,
    steps: int = 10,
    statistic: Statistic | None = None,
    chains: int = 10_000,
    false_alarm: float = 1e-6,
    stages: int = 5,
    growth: int = 2,
) -> Passed:
    """The law of ``draw`` is invariant under ``step``, reversible or not.

    The statistic after so many steps from one set of exact draws, against that of another set, by
    the exact two-sample bound of `Checks.same_law`. It sees only what the steps accumulate, where
    `rank_test` compares each start with its own path.

    Args and raises: as for `rank_test`.
    """
    steps = check_count("steps", steps, 1)
    start, measure = _fresh(draw), statistic or _mean_and_square

    def log_p(n: int) -> tuple[float, str]:
        x = _copy(start(n))
        for _ in range(steps):
            x = step(x)
        moved, exact = _measured(measure, x, n), _measured(measure, start(n), n)
        columns = range(moved.shape[1])
        found = []
        for j in columns:
            distance = bounds.distance(moved[:, j], exact[:, j])
            log = bounds.two_sample_log_p(n, round(distance * n)) + math.log(len(columns))
            found.append((log, f"statistic {j} after {steps} steps is {distance:.4g} from its law"))
        return min(found)

    return _in_stages(log_p, chains, false_alarm, stages, growth)


def _in_stages(
    log_p: Callable[[int], tuple[float, str]],
    chains: int,
    false_alarm: float,
    stages: int,
    growth: int,
) -> Passed:
    """The sequential test of the module's docstring; ``log_p(n)`` is of n new chains."""
    stages = check_count("stages", stages, 1)
    growth = check_count("growth", growth, 1)
    n = check_count("chains", chains, 2)
    beta = check_rate("false_alarm", false_alarm) / stages
    gamma, used = beta ** (1 / stages), 0
    for stage in range(1, stages + 1):
        log, found = log_p(n)
        used += n
        if log <= math.log(beta):
            raise AssertionError(
                f"the law is not invariant: {found} (p <= {math.exp(log):.2g}, {n} chains, stage"
                f" {stage} of {stages}; a right kernel is rejected with probability"
                f" {false_alarm:.2g})"
            )
        if log > math.log(beta + gamma):
            break
        beta, n = beta / gamma, n * growth
    return Passed(math.exp(min(log, 0.0)), stage, used)


def _fresh(draw: Callable[[int], State]) -> Callable[[int], State]:
    """``draw``, refused if it repeats itself: stages and samples must be independent."""
    last: list[Array] = []

    def drawn(n: int) -> State:
        x = draw(n)
        if len(x) != n:
            raise ShapeError(f"draw({n}) gave {tuple(x.shape)}: give (n, ...)")
        first = _numpy(x[:64]).copy()
        if last and np.array_equal(first, last[0]):
            raise ArgumentError("draw gave the same states twice: its random numbers must go on")
        last[:] = [first]
        return x

    return drawn


def _ranks(
    start: State,
    step: Step,
    reverse: Step | None,
    length: int,
    statistic: Statistic,
    rng: np.random.Generator,
) -> Ranks:
    """(n, statistics): the rank of each start in its path, from 0."""
    n = len(start)
    own = _measured(statistic, start, n)
    ahead = rng.integers(0, length, n)  # how much of the path comes after the start
    less, ties = np.zeros((2, *own.shape), dtype=np.int64)

    def compare(x: State, taken: Mask | bool = True) -> None:
        path, of_path = _measured(statistic, x, n), np.broadcast_to(taken, n)[:, None]
        less[:] += of_path & (path < own)
        ties[:] += of_path & (path == own)

    x, back = _copy(start), _copy(start)
    for t in range(length - 1):
        if reverse is None:  # the way back begins where the way ahead has ended
            x = step(_where(ahead == t, start, x))
            compare(x)
        else:
            x, back = step(x), reverse(back)
            compare(x, t < ahead)
            compare(back, t < length - 1 - ahead)
    ranks: Ranks = less + rng.integers(0, ties + 1)
    return ranks


def _uniformity(ranks: Ranks, length: int) -> tuple[float, str]:
    """log of a bound on the p-value of (n, statistics) ranks that should be uniform."""
    degrees = min(length - 1, MOST_DEGREES)
    raw = legendre.legvander(np.linspace(-1, 1, length), degrees)
    polynomials = np.linalg.qr(raw)[0] * math.sqrt(length)
    found = []
    for j in range(ranks.shape[1]):
        counts = np.bincount(ranks[:, j], minlength=length).astype(np.float64)
        for degree in range(1, degrees + 1):
            log = bounds.chernoff_log_p(polynomials[:, degree], counts)
            log += degree * math.log(2) + math.log(ranks.shape[1])
            found.append((log, f"ranks of statistic {j} are not uniform in degree {degree}"))
    return min(found)


def _mean_and_square(x: State) -> Array:
    flat = _numpy(x).reshape(len(x), -1)
    return np.stack([flat.mean(1), (flat**2).mean(1)], axis=1)


def _measured(statistic: Statistic, x: State, n: int) -> Array:
    value = _numpy(statistic(x))
    if value.ndim == 1:
        value = value[:, None]
    if value.ndim != 2 or len(value) != n:
        raise ShapeError(f"statistic gave {value.shape} for {n} chains: give (n,) or (n, k)")
    if not np.isfinite(value).all():
        raise AssertionError("a statistic of the path is not finite")
    return value


def _numpy(x: Any) -> Array:
    raw = x.detach().cpu().double().numpy() if isinstance(x, Tensor) else x
    return np.asarray(raw, dtype=np.float64)


def _copy(x: State) -> State:
    return x.detach().clone() if isinstance(x, Tensor) else np.array(x)


def _where(chosen: Mask, start: State, x: State) -> State:
    """x with the chosen chains back at their start."""
    mask = chosen.reshape(-1, *[1] * (start.ndim - 1))
    if isinstance(x, Tensor):
        return torch.where(torch.from_numpy(mask).to(x.device), start, x)
    return np.where(mask, start, x)
