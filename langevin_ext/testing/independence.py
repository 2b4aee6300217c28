"""Correlations between chains, and between rows of chains, that should have nothing in common.

Draws become the normal scores of their ranks, which for independent draws of any continuous law are
the same numbers in a random order; so no law and no moments enter, and no tail is too heavy. Noise
whose sign was turned, or that shares its radius alone, is uncorrelated in value but not in
magnitude: both are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from ..errors import ArgumentError
from ._draws import Array

FEWEST = 1000
"""Draws below which the tail of a sum of products is not yet normal."""


class Largest(NamedTuple):
    """The largest in magnitude of some statistics, each a standard normal."""

    name: str
    value: float
    of: int
    """How many there were."""


def of_chains(x: Array) -> list[Largest]:
    """Of draws (n,): chain i with chain i + k, and one half with the other."""
    n = len(x)
    half, lags = n // 2, np.arange(1, (n + 1) // 2)
    named = (lags == 3) | (lags & (lags - 1) == 0)
    found = []
    for kind, s in _scores(x):
        # Ranks are drawn without replacement: a sum of n products has mean -1.
        z = (_crossed(s, s)[lags] + 1) / math.sqrt(n)
        halves = np.array([s[:half] @ s[-half:], s[:half] @ s[::-1][:half]]) / math.sqrt(half)
        found += [
            _largest(z[named], f"{kind} of chains i and i + k, k = ", lags[named]),
            _largest(z, f"{kind} of chains i and i + k, k = ", lags),
            _largest(halves, f"{kind} of one half and the other", np.array(["", ", reversed"])),
        ]
    return found


def of_rows(rows: Array) -> list[Largest]:
    """Of draws (rows, n): chain i of one row with chain i + k of another, for every pair."""
    n, found = rows.shape[1], []
    lags = (np.arange(n) + n // 2) % n - n // 2
    near = np.abs(lags) <= 1
    for kind, s in _scores(rows):
        for a in range(len(rows)):
            for b in range(a + 1, len(rows)):
                z = _crossed(s[a], s[b]) / math.sqrt(n)
                name = f"{kind} of chain i in row {a} and i + k in row {b}, k = "
                found += [_largest(z[near], name, lags[near]), _largest(z, name, lags)]
    return found


def _scores(x: Array) -> Iterator[tuple[str, Array]]:
    """Each row's draws as normals of mean square 1: by value, and by magnitude.

    Ties have the mean of their ranks.
    """
    n = x.shape[-1]
    if n < FEWEST:
        raise ArgumentError(f"{n} chains: the bounds are good from {FEWEST} on")
    values = special.ndtri((stats.rankdata(x, axis=-1) - 0.5) / n)
    yield "values", _standard(values)
    far = 2 * special.ndtr(np.abs(values)) - 1
    yield "magnitudes", _standard(special.ndtri(np.maximum(far, 0.5 / n)))


def _standard(scores: Array) -> Array:
    centred: Array = scores - scores.mean(-1, keepdims=True)
    square: Array = np.sqrt(np.mean(centred**2, -1, keepdims=True))
    if np.any(square < 1e-6):
        raise AssertionError("the draws, or their magnitudes, are one number over and over")
    standard: Array = centred / square
    return standard


def _crossed(a: Array, b: Array) -> Array:
    """sum_i a_i b_(i + k), around the end, for k = 0, 1, ..., n - 1."""
    spectrum = np.conj(np.fft.rfft(a)) * np.fft.rfft(b)
    return np.asarray(np.fft.irfft(spectrum, len(a)), dtype=np.float64)


def _largest(z: Array, name: str, labels: np.ndarray[tuple[int], np.dtype[np.generic]]) -> Largest:
    at = int(np.argmax(np.abs(z)))
    return Largest(f"{name}{labels[at]}", float(z[at]), len(z))
