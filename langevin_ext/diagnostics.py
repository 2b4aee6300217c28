r"""How far to trust chains: effective sample sizes, R-hat, Monte Carlo errors, autocorrelations.

A trajectory is (draws, chains, ...), as ``sample(..., keep_every=k).trajectory``; everything behind
the chains is coordinates, each for itself, and results have the shape (...). All is computed in
float64 on the trajectory's device, a few coordinates at a time.

Sources: Vehtari, Gelman, Simpson, Carpenter and Buerkner, "Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC", Bayesian Analysis 16 (2021), for
every name and definition; Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7
(1992), for where a sum of autocorrelations ends.

Every chain is split in two, without the middle draw of an odd number. With c_t the autocovariance
(a sum over n at every lag) averaged over the M chains of n that this makes,

    W = c_0 n / (n - 1),  V = c_0 + the variance of the M means,  rho_t = 1 - (W - c_t) / V
    P_m = rho_2m + rho_2m+1  for m = 0, 1, ... e: the first with P_e <= 0, or (n - 3) // 2
    tau = -1 + 2 sum_{m < e} min(P_0 .. P_m) + rho_2e,  but at least 1 / log10(M n)
    ESS = M n / tau

where a negative rho_2e counts only in a positive P_e.

ArviZ 0.23 gives the same numbers (tests/test_diagnostics.py), but on purpose not here:

- A coordinate that never moved has no ESS, R-hat or error: NaN. For ArviZ its ESS is M n.
- One chain has an R-hat, of its two halves. For ArviZ it has none.
- A quantile that falls on a draw is that draw. In ArviZ rounding may put it just below.
- What varies by less than 1e-15 varies. For ArviZ it is constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from . import _diagnostics as chunk
from ._check import as_number, check_count, check_values
from ._summary import Summary as Summary
from .errors import ArgumentError, DtypeError, ShapeError

EssKind = Literal["bulk", "tail", "mean", "sd", "quantile"]
McseKind = Literal["mean", "sd", "quantile"]
Estimate = Callable[[Tensor], Tensor]
MIN_DRAWS = 4
TAIL = 0.05


def ess(trajectory: Tensor, kind: EssKind = "bulk", prob: float | None = None) -> Tensor:
    """Effective sample size: how many independent draws would know as much.

    Args:
        trajectory: (draws, chains, ...), at least four draws.
        kind: of what. ``"bulk"``: the rank-normalised draws, for where the distribution is.
            ``"tail"``: the smaller one of two quantiles'. ``"mean"``, ``"sd"``: that estimate's.
            ``"quantile"``: one quantile's.
        prob: the quantile's probability, in (0, 1); for ``"tail"``, 0.05 and with it 0.95 if None.

    Returns:
        (...) float64; NaN where a draw is NaN or no draw differs from another. At most
        N log10(N) for N draws in all; with fewer than ten draws to a chain there are no lags to
        sum over, and it is always that.

    Raises:
        ArgumentError, DeviceError, DtypeError, ShapeError: an argument is not as above.
    """
    check_trajectory(trajectory, MIN_DRAWS)
    if kind == "quantile" or (kind == "tail" and prob is not None):
        prob = _check_prob(prob)
    elif prob is not None:
        raise ArgumentError(f"prob={prob!r} with kind={kind!r}: it is for 'tail' and 'quantile'")
    share = TAIL if prob is None else prob
    of: Mapping[str, Estimate] = {
        "bulk": lambda x: chunk.ess(chunk.scores(chunk.split(x))[0]),
        "tail": lambda x: chunk.ess_tail(x, chunk.sort(x), share),
        "mean": lambda x: chunk.ess(chunk.split(x)),
        "sd": lambda x: chunk.ess(chunk.split(chunk.squares(x))),
        "quantile": lambda x: chunk.ess_below(x, chunk.sort(x), share),
    }
    return _of_known(trajectory, _choose(kind, of))


def rhat(trajectory: Tensor) -> Tensor:
    """Rank-normalised split R-hat: the larger one of the bulk's and of the folded draws'.

    Near 1 where chains, and the halves of each, agree in place and in scale; Vehtari et al. ask
    for less than 1.01. Of chains that have converged it is about sqrt(1 + 2 (tau - 1) / draws), tau
    being `autocorrelation_time`: it asks each chain to be long, however much all know together.

    Args:
        trajectory: (draws, chains, ...), at least four draws.

    Returns:
        (...) float64; NaN as for `ess`, infinity where every half-chain is constant.

    Raises:
        DeviceError, DtypeError, ShapeError: the trajectory is not as above.
    """
    check_trajectory(trajectory, MIN_DRAWS)
    return _of_known(
        trajectory, lambda x: chunk.rhat(halves := chunk.split(x), *chunk.scores(halves))
    )


def mcse(trajectory: Tensor, kind: McseKind = "mean", prob: float | None = None) -> Tensor:
    """Monte Carlo standard error of an estimate from all draws.

    Args:
        trajectory: (draws, chains, ...), at least four draws.
        kind: ``"mean"``: sd / sqrt(ESS). ``"sd"``: the same for the mean square deviation, by the
            delta method. ``"quantile"``: half the distance between the order statistics that bound
            68.27 % of Beta(ESS p + 1, ESS (1 - p) + 1), ESS being the quantile's.
        prob: the quantile's probability, in (0, 1).

    Returns:
        (...) float64; NaN as for `ess`.

    Raises:
        ArgumentError, DeviceError, DtypeError, ShapeError: an argument is not as above.
    """
    check_trajectory(trajectory, MIN_DRAWS)
    if kind == "quantile":
        return _mcse_quantile(trajectory, _check_prob(prob))
    if prob is not None:
        raise ArgumentError(f"prob={prob!r} with kind={kind!r}: it is for 'quantile'")
    of = {"mean": chunk.mcse_mean, "sd": chunk.mcse_sd, "quantile": chunk.mcse_mean}
    return _of_known(trajectory, _choose(kind, of))


def _mcse_quantile(trajectory: Tensor, prob: float) -> Tensor:
    """In two passes, so that the beta distribution is inverted for all coordinates at once."""
    size = ess(trajectory, "quantile", prob)
    known = size.flatten().nan_to_num(1.0)
    a, b = known * prob + 1, known * (1 - prob) + 1
    below = chunk.beta_quantile(torch.full_like(a, chunk.ONE_SD_BELOW), a, b)
    above = chunk.beta_quantile(torch.full_like(a, 1 - chunk.ONE_SD_BELOW), a, b)
    width = torch.empty_like(known)
    for at, x in chunk.chunks(trajectory):
        width[at] = chunk.half_width(chunk.sort(x), below[at], above[at])
    return width.view_as(size).masked_fill(size.isnan(), math.nan)


def autocorrelation(trajectory: Tensor, lags: int | None = None) -> Tensor:
    """Autocorrelation of each chain about its own mean m, at lags 0 to ``lags``.

    rho_t = sum_{i < n-t} (x_i - m)(x_i+t - m) / (n - t) divided by sum_i (x_i - m)^2 / n: the
    autocovariances that are unbiased but for m's own error, and noisy at lags near n.

    Args:
        trajectory: (draws, chains, ...), at least two draws.
        lags: the last lag, less than the number of draws; None is all of them.

    Returns:
        (lags + 1, chains, ...) float64; NaN for a chain that is constant or not finite.

    Raises:
        ArgumentError, DeviceError, DtypeError, ShapeError: an argument is not as above.
    """
    draws = check_trajectory(trajectory, 2)
    lags = draws - 1 if lags is None else check_count("lags", lags, 0)
    if lags >= draws:
        raise ArgumentError(f"lags={lags}: give an int from 0 to {draws - 1}, the draws less one")
    shape = lags + 1, *trajectory.shape[1:]
    out = torch.empty(shape, dtype=torch.float64, device=trajectory.device)
    pairs = draws - torch.arange(lags + 1, dtype=torch.float64, device=trajectory.device)
    for at, x in chunk.chunks(trajectory):
        covariance = chunk.products(chunk.power(x, lags), draws, lags) / pairs
        rho = covariance / covariance[..., :1]
        out.view(lags + 1, out.shape[1], -1)[..., at] = rho.permute(2, 1, 0)
    return out


def autocorrelation_time(trajectory: Tensor) -> Tensor:
    """Integrated autocorrelation time, in kept draws: how many of them make one independent one.

    tau = 1 + 2 (rho_1 + rho_2 + ...), of the mean, from all chains together and cut off at the end
    of Geyer's initial monotone sequence, as the module's docstring has it: the number of draws
    over ``ess(trajectory, "mean")``. It grows without bound where chains disagree in their means.

    Args:
        trajectory: (draws, chains, ...), at least four draws.

    Returns:
        (...) float64; NaN as for `ess`. Multiply by ``keep_every`` for steps.

    Raises:
        DeviceError, DtypeError, ShapeError: the trajectory is not as above.
    """
    check_trajectory(trajectory, MIN_DRAWS)
    counted = 2 * (trajectory.shape[0] // 2) * trajectory.shape[1]
    return counted / ess(trajectory, "mean")


def acceptance_rate(trajectory: Tensor) -> Tensor:
    """Share of the kept draws at which a chain is not where it was at the one before.

    With ``keep_every=1`` it is how often a rule that accepts or rejects accepted; with more, how
    often it did so at least once in between. A rule that accepts everything has 1.

    Args:
        trajectory: (draws, chains, ...), at least two draws.

    Returns:
        (chains,) float64; NaN for a chain in which a draw is NaN.

    Raises:
        DeviceError, DtypeError, ShapeError: the trajectory is not as above.
    """
    check_trajectory(trajectory, 2)
    x = trajectory.detach().reshape(*trajectory.shape[:2], -1)
    moved = (x[1:] != x[:-1]).any(2).double().mean(0)
    return moved.masked_fill(x.isnan().any(2).any(0), math.nan)


def swap_rates(levels: Tensor) -> Tensor:
    """How often replicas change temperature: for each two neighbours, exchanges per step.

    A step exchanges temperatures i and i + 1 when a replica passes from i or below to above i (and
    another comes down). A scheme that tries a pair only at every second step accepts twice this
    share of what it tries.

    Args:
        levels: (steps, replicas) integers: the temperature, 0 to replicas - 1, that each replica
            is at; each row a permutation. At least two of both.

    Returns:
        (replicas - 1,) float64.

    Raises:
        ArgumentError: a row is not a permutation.
        DeviceError, DtypeError, ShapeError: the levels are not as above.
    """
    if not isinstance(levels, Tensor) or levels.is_floating_point() or levels.is_complex():
        kind = levels.dtype if isinstance(levels, Tensor) else f"a {type(levels).__name__}"
        raise DtypeError(f"levels is {kind}: pass a tensor of integers")
    check_values("levels", levels)
    if levels.dim() != 2 or min(levels.shape) < 2:
        raise ShapeError(
            f"levels has shape {tuple(levels.shape)}: give (steps, replicas), two of each or more"
        )
    levels = levels.long()
    steps, replicas = levels.shape
    legal = (levels.sort(1).values == torch.arange(replicas, device=levels.device)).all(1)
    if not bool(legal.all()):
        row = int((~legal).nonzero()[0])
        raise ArgumentError(
            f"levels[{row}] is {levels[row].tolist()}: each row has every temperature from 0 to"
            f" {replicas - 1} once"
        )
    before, after = levels[:-1], levels[1:]
    up = after > before
    left, reached = (torch.bincount(t[up], minlength=replicas) for t in (before, after))
    return (left - reached).cumsum(0)[:-1].double() / (steps - 1)


def weights_ess(weights: Tensor) -> Tensor:
    """Kish's effective sample size of weighted draws, (sum w)^2 / sum w^2.

    Between 1, where one draw has all the weight, and the number of draws, where all weigh the same.
    It knows nothing of the draws' dependence: of draws with an ESS of E it leaves about this times
    E over their number.

    Args:
        weights: (chains,), or (draws, chains, ...) of which the first two axes are summed over;
            none negative. They need not sum to 1.

    Returns:
        () or (...) float64; NaN where a weight is NaN or infinite, or all are 0.

    Raises:
        ArgumentError: a weight is negative.
        DeviceError, DtypeError, ShapeError: the weights are not as above.
    """
    _check_floats("weights", weights)
    if weights.dim() == 0 or weights.numel() == 0:
        raise ShapeError(
            f"weights has shape {tuple(weights.shape)}: give (chains,) or (draws, chains, ...)"
        )
    if bool((weights < 0).any()):
        least = float(weights.min())
        raise ArgumentError(f"weights has {least:.3g} in it: give none below 0, not logarithms")
    w = weights.detach().double().flatten(0, min(1, weights.dim() - 1))
    w = w / w.amax(0)  # or squares of small ones would be 0
    return w.sum(0).square() / w.square().sum(0)


def summary(trajectory: Tensor) -> Summary:
    """Mean, sd, the mean's Monte Carlo error, bulk and tail ESS, and R-hat of every coordinate.

    The same numbers as from the functions of those names, at less than the sum of their times.

    Args:
        trajectory: (draws, chains, ...), at least four draws.

    Raises:
        DeviceError, DtypeError, ShapeError: the trajectory is not as above.
    """
    check_trajectory(trajectory, MIN_DRAWS)

    def of(x: Tensor) -> Tensor:
        halves = chunk.split(x)
        scores, ordered = chunk.scores(halves)
        tail = chunk.ess_tail(x, chunk.sort(x) if x.shape[2] % 2 else ordered, TAIL)
        rhat_ = chunk.rhat(halves, scores, ordered)
        found = torch.stack([chunk.mcse_mean(x), chunk.ess(scores), tail, rhat_])
        moments = torch.stack([x.mean((1, 2)), chunk.variance(x.flatten(1)).sqrt()])
        return torch.cat([moments, chunk.where_known(x, found)])

    return Summary(*chunk.by_coordinate(trajectory, of, len(Summary._fields)))


# ---- arguments ----------------------------------------------------------------------------------


def _of_known(trajectory: Tensor, of: Estimate) -> Tensor:
    return chunk.by_coordinate(trajectory, lambda x: chunk.where_known(x, of(x)))


def _choose(kind: object, of: Mapping[str, Estimate]) -> Estimate:
    if not isinstance(kind, str) or kind not in of:
        raise ArgumentError(f"kind={kind!r}: give one of {', '.join(map(repr, of))}")
    return of[kind]


def _check_floats(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise DtypeError(f"{name} is a {type(value).__name__}: pass a torch.Tensor")
    check_values(name, value)
    if not value.is_floating_point():
        raise DtypeError(
            f"{name} is {value.dtype}: pass floating point numbers, as .double() makes"
        )


def check_trajectory(trajectory: object, least: int) -> int:
    """The number of draws of a legal trajectory.

    Raises:
        DeviceError: a meta tensor.
        DtypeError: not a dense strided tensor of floating point numbers.
        ShapeError: not (draws, chains, ...) with at least ``least`` draws and a chain.
    """
    _check_floats("trajectory", trajectory)
    assert isinstance(trajectory, Tensor)
    shape = tuple(trajectory.shape)
    if len(shape) < 2:
        raise ShapeError(
            f"trajectory has shape {shape}: give (draws, chains, ...); one chain is x[:, None]"
        )
    if shape[0] < least:
        raise ShapeError(
            f"trajectory has shape {shape}, {shape[0]} draws to a chain: at least {least} are"
            " needed; take more steps, or a smaller keep_every"
        )
    if shape[1] == 0:
        raise ShapeError(f"trajectory has shape {shape}: it has no chains")
    return shape[0]


def _check_prob(prob: object) -> float:
    value = as_number(prob)
    if not 0 < value < 1:
        raise ArgumentError(f"prob={prob!r}: give a probability, 0 < prob < 1")
    return value
