"""What the tests take: draws as float64 arrays, and their normal scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special, stats
from torch import Tensor

from ..errors import ArgumentError, ShapeError

Array: TypeAlias = npt.NDArray[np.float64]
Draws: TypeAlias = "Tensor | npt.ArrayLike"
"""A tensor on any device, or anything numpy takes."""
Function: TypeAlias = Callable[[Array], Any]
"""An array in, an array of its shape out."""


def as_array(name: str, x: Draws, dims: int = 1) -> Array:
    """Draws as float64.

    Raises:
        ShapeError: they have not ``dims`` axes, or fewer than two draws.
        AssertionError: one is not finite: no law that can be tested has such draws.
    """
    raw = x.detach().cpu().double().numpy() if isinstance(x, Tensor) else x
    array = np.asarray(raw, dtype=np.float64)
    if array.ndim != dims or array.shape[-1] < 2:
        want = "(n,), one number of each chain such as x[:, 0]" if dims == 1 else "(rows, n)"
        raise ShapeError(f"{name} is {array.shape}: give {want}, n >= 2")
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise AssertionError(f"{name} has {bad} values of {array.size} that are not finite")
    return array


def check_positive(name: str, value: float) -> float:
    if not 0 < value < np.inf:
        raise ArgumentError(f"{name}={value!r}: give a positive finite number")
    return float(value)


def check_rate(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ArgumentError(f"{name}={value!r}: give a probability in (0, 1)")
    return float(value)


def normal_scores(x: Array) -> Array:
    """Each row's ranks, made normal: mean 0, mean square 1. Ties have the mean of their ranks.

    Raises:
        AssertionError: a row is one number over and over.
    """
    n = x.shape[-1]
    scores: Array = special.ndtri((stats.rankdata(x, axis=-1) - 0.5) / n)
    return _standard(scores)


def magnitudes(scores: Array) -> Array:
    """Normal scores of how far out a draw is: 0 mean, independent of the sign."""
    return _standard(special.ndtri(np.clip(2 * special.ndtr(np.abs(scores)) - 1, 1e-12, None)))


def _standard(scores: Array) -> Array:
    centred: Array = scores - scores.mean(-1, keepdims=True)
    square = np.sqrt(np.mean(centred**2, -1, keepdims=True))
    if np.any(square < 1e-6):
        raise AssertionError("the draws are all the same number")
    standard: Array = centred / square
    return standard
