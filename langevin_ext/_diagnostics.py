r"""The arithmetic of `diagnostics`, for a chunk of coordinates at once.

Where nothing else is said, x is (coordinates, chains, draws), float64 and contiguous, and a result
has one number per coordinate. The definitions are in the docstring of `diagnostics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ONE_SD_BELOW = 0.15865525393145707  # the normal distribution function at -1
# Elements in a chunk. On a CPU, four times as many take half again as long: they leave the cache.
CHUNK_ON_CPU, CHUNK_ELSEWHERE = 2**19, 2**24


def chunks(trajectory: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Which flat coordinates of a trajectory (draws, chains, ...), and their x."""
    draws, chains = trajectory.shape[:2]
    flat = trajectory.detach().reshape(draws, chains, -1)
    budget = CHUNK_ON_CPU if flat.device.type == "cpu" else CHUNK_ELSEWHERE
    width = max(1, budget // (draws * chains))
    for i in range(0, flat.shape[2], width):
        part = flat[..., i : i + width].permute(2, 1, 0)
        # Converted first, a transposed copy would take twice as long.
        x = torch.empty(part.shape, dtype=torch.float64, device=flat.device)
        yield slice(i, i + width), x.copy_(part)


def by_coordinate(trajectory: Tensor, of: Callable[[Tensor], Tensor], *outputs: int) -> Tensor:
    """(*outputs, ...) from what ``of`` makes of every x: (*outputs, coordinates)."""
    shape = trajectory.shape[2:]
    device = trajectory.device
    out = torch.empty((*outputs, shape.numel()), dtype=torch.float64, device=device)
    for at, x in chunks(trajectory):
        out[..., at] = of(x)
    return out.view((*outputs, *shape))


def where_known(x: Tensor, value: Tensor) -> Tensor:
    """The value, or NaN where a draw is NaN or none differs from another."""
    known = x.amax((1, 2)) > x.amin((1, 2))
    return value.masked_fill(~known, math.nan)


# ---- moments and autocovariances ----------------------------------------------------------------


def split(x: Tensor) -> Tensor:
    """Both halves of every chain as chains; the middle draw of an odd number is left out."""
    half = x.shape[2] // 2
    if x.shape[2] % 2:
        x = torch.cat([x[..., :half], x[..., -half:]], dim=2)
    return x.view(x.shape[0], -1, half)


def centred(x: Tensor) -> Tensor:
    """x less its last axis' mean: exactly 0 where x is constant, which a mean alone may miss."""
    x = x - x[..., :1]
    return x.sub_(x.mean(-1, keepdim=True))


def variance(x: Tensor) -> Tensor:
    """Unbiased, along the last axis. (torch.var takes five times as long.)"""
    return centred(x).square_().sum(-1) / (x.shape[-1] - 1)


def squares(x: Tensor) -> Tensor:
    """Square deviations from the mean of all draws."""
    return centred(x.flatten(1)).square_().view(x.shape)


@lru_cache
def fft_size(least: int) -> int:
    """The next number without a prime factor above 5."""
    while True:
        rest = least
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return least
        least += 1


def power(x: Tensor, lags: int) -> Tensor:
    """|FFT|^2 of the draws about their chain's mean, padded for that many lags: (..., frequencies).

    Its inverse has the sums of products at each lag.
    """
    spectrum: Tensor = torch.fft.rfft(centred(x), n=fft_size(x.shape[-1] + lags))
    return spectrum.real.square().add_(spectrum.imag.square())


def products(power: Tensor, draws: int, lags: int) -> Tensor:
    """Sums of products at lags 0 to ``lags``, from the power of that many draws."""
    sums: Tensor = torch.fft.irfft(power, n=fft_size(draws + lags))
    return sums[..., : lags + 1]


# ---- effective sample sizes ---------------------------------------------------------------------


def ess(x: Tensor) -> Tensor:
    """ESS of the mean of chains that are already split; N of what does not vary."""
    chains, n = x.shape[1:]
    covariance = products(power(x, n - 1).mean(1), n, n - 1) / n
    biased = covariance[:, :1]
    total = biased + variance(x.mean(2))[:, None] if chains > 1 else biased
    rho = 1 - (biased * n / (n - 1) - covariance) / total
    unknown = rho.isnan().any(1)
    rho[:, 0] = 1
    size = chains * n
    tau = _geyer(rho).clamp(min=1 / math.log10(size)).masked_fill(unknown, math.nan)
    low, high = x.amin((1, 2)), x.amax((1, 2))
    # Up to rounding: squares of -0.3 and 0.3 may differ.
    constant = torch.isclose(low, high, rtol=1e-15, atol=0.0)
    return torch.where(constant, float(size), size / tau)


def _geyer(rho: Tensor) -> Tensor:
    """tau of autocorrelations (coordinates, lags), by Geyer's initial monotone sequence.

    As Stan has it: of the pair that ends the sum the first autocorrelation still counts, once.
    """
    lags = rho.shape[1]
    last = max(0, (lags - 3) // 2)
    even = rho[:, : 2 * last + 1 : 2]
    pairs = even + rho[:, 1 : 2 * last + 2 : 2]
    end = (pairs > 0).long().cumprod(1).sum(1, keepdim=True).clamp(max=last)
    summed = torch.arange(last + 1, device=rho.device) < end
    monotone = pairs.cummin(1).values.masked_fill(~summed, 0).sum(1)
    at_end = even.gather(1, end)
    counts = (at_end > 0) | (pairs.gather(1, end) >= 0)
    return -1 + 2 * monotone + at_end.masked_fill(~counts, 0).squeeze(1)


def ess_below(x: Tensor, ordered: Tensor, prob: float) -> Tensor:
    """ESS of a quantile: of whether a draw is at most that."""
    bound = quantile(ordered, prob).view(-1, 1, 1)
    return ess(split((x <= bound).double()))


def ess_tail(x: Tensor, ordered: Tensor, prob: float) -> Tensor:
    return torch.minimum(ess_below(x, ordered, prob), ess_below(x, ordered, 1 - prob))


# ---- order, ranks, R-hat ------------------------------------------------------------------------


def _rows(of: Callable[[np.ndarray], np.ndarray], flat: Tensor) -> Tensor:
    """numpy's ``of`` each row, in as many threads as torch has."""
    rows, threads = flat.numpy(), torch.get_num_threads()
    if threads == 1 or len(rows) == 1:
        return torch.from_numpy(of(rows))
    with ThreadPoolExecutor(threads) as pool:
        return torch.from_numpy(np.stack(list(pool.map(of, rows))))


def order(flat: Tensor) -> Tensor:
    """What sorts each row of (coordinates, elements). numpy takes a quarter of torch's time."""
    return _rows(np.argsort, flat) if flat.device.type == "cpu" else flat.argsort(1)


def sort(x: Tensor) -> Tensor:
    """All draws of a coordinate in order: (coordinates, elements)."""
    flat = x.flatten(1)
    return _rows(np.sort, flat) if flat.device.type == "cpu" else flat.sort(1).values


def quantile(ordered: Tensor, prob: float) -> Tensor:
    """Linear between the order statistics (type 7 of Hyndman and Fan)."""
    last = ordered.shape[1] - 1
    place = prob * last
    if abs(place - round(place)) <= 1e-15 * last:  # 0.05 x 20 is 1
        return ordered[:, round(place)]
    below, weight = int(place), place - int(place)
    low, high = ordered[:, below], ordered[:, below + 1]
    return torch.where(low == high, low, (1 - weight) * low + weight * high)


def scores(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normal scores of the ranks of all draws, and (coordinates, elements), the draws in order.

    Phi^-1((r - 3/8) / (S + 1/4)) of ranks r = 1 .. S; equal draws share the mean of their ranks.
    """
    flat = x.flatten(1)
    size = flat.shape[1]
    by = order(flat)
    ordered = flat.gather(1, by)
    ranks = torch.arange(1, size + 1, dtype=torch.float64, device=x.device)
    in_order = _normal(ranks, size).expand_as(flat)
    tied = ordered[:, 1:] == ordered[:, :-1]
    if bool(tied.any()):
        in_order = _share_ranks(in_order.contiguous(), tied)
    return torch.empty_like(flat).scatter_(1, by, in_order).view(x.shape), ordered


def _normal(rank: Tensor, size: int) -> Tensor:
    score: Tensor = torch.special.ndtri((rank - 3 / 8) / (size + 1 / 4))
    return score


def _share_ranks(in_order: Tensor, tied: Tensor) -> Tensor:
    """Give draws that are equal to the next one, and that one, the score of their mean rank."""
    size = in_order.shape[1]
    as_last, as_next = (F.pad(tied, side).flatten() for side in ((1, 0), (0, 1)))
    first = (as_next & ~as_last).nonzero().squeeze(1)
    last = (as_last & ~as_next).nonzero().squeeze(1)
    rank = (first % size).double() + 1 + (last - first).double() / 2
    shared = _normal(rank, size).repeat_interleave(last - first + 1)
    in_order.view(-1)[as_last | as_next] = shared
    return in_order


def rhat(x: Tensor, scored: Tensor, ordered: Tensor) -> Tensor:
    """The larger R-hat of split chains' scores and of their distances' from the median.

    Draws at two values alone may all have one distance, which then has nothing to say.
    """
    folded, _ = scores((x - quantile(ordered, 0.5).view(-1, 1, 1)).abs_())
    return torch.fmax(_rhat(scored), _rhat(folded))


def _rhat(x: Tensor) -> Tensor:
    n = x.shape[2]
    return (variance(x.mean(2)) / variance(x).mean(1) + (n - 1) / n).sqrt()


# ---- Monte Carlo standard errors ----------------------------------------------------------------


def mcse_mean(x: Tensor) -> Tensor:
    return (variance(x.flatten(1)) / ess(split(x))).sqrt()


def mcse_sd(x: Tensor) -> Tensor:
    """By the delta method from the mean square deviation's error."""
    deviations = squares(x)
    mean = deviations.mean((1, 2))
    return ((deviations.square().mean((1, 2)) - mean**2) / ess(split(deviations)) / mean).sqrt() / 2


def half_width(ordered: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """Half the distance between the order statistics at two shares of all draws."""
    size = ordered.shape[1]
    low = (below * size - 1).floor().clamp(0, size - 1).long()
    high = (above * size - 1).ceil().clamp(0, size - 1).long()
    return (ordered.gather(1, high[:, None]) - ordered.gather(1, low[:, None])).squeeze(1) / 2


def beta_quantile(prob: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Where the distribution function of Beta(a, b) is ``prob``; a, b >= 1, all of one shape.

    Newton's method within a shrinking bracket.
    """
    mean = a / (a + b)
    sd = (mean * (1 - mean) / (a + b + 1)).sqrt()
    low, high = torch.zeros_like(mean), torch.ones_like(mean)
    x: Tensor = (mean + sd * torch.special.ndtri(prob)).clamp(mean / 8, 1 - (1 - mean) / 8)
    for _ in range(60):
        value, log_density = _beta(x, a, b)
        excess = value - prob
        low, high = torch.where(excess < 0, x, low), torch.where(excess < 0, high, x)
        there = x - excess / log_density.exp()
        there = torch.where((there >= low) & (there <= high), there, (low + high) / 2)
        change, x = (there - x).abs(), there
        if bool((change <= 1e-9 * x).all()):
            break
    return x


def _beta(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Distribution function of Beta(a, b) at x, and the logarithm of its density.

    The continued fraction DLMF 8.17.22, from its tail; for x above its own range, of 1 - x.
    """
    flip = x > (a + 1) / (a + b + 2)
    x, a, b = torch.where(flip, 1 - x, x), torch.where(flip, b, a), torch.where(flip, a, b)
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    log_power = a * x.log() + b * torch.log1p(-x) - log_beta
    # The fraction needs O(sqrt(max(a, b))) of its terms (Press et al., Numerical Recipes, 6.4).
    terms = 30 + 2 * math.isqrt(int(torch.maximum(a, b).max()))
    t = torch.ones_like(x)
    for m in range(terms, 0, -1):
        t = 1 + m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)) / t
        t = 1 - (a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1)) / t
    value = (log_power - a.log()).exp() / t
    return torch.where(flip, 1 - value, value), log_power - x.log() - torch.log1p(-x)
