"""What the tests take, and its checks at the door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..errors import ArgumentError, ShapeError

Array: TypeAlias = npt.NDArray[np.float64]
Draws: TypeAlias = "Tensor | npt.ArrayLike"
"""A tensor on any device, or anything numpy takes."""
Function: TypeAlias = Callable[[Array], Any]
"""An array in, an array of its shape out."""


def as_array(name: str, x: Draws, axes: int = 1) -> Array:
    """Draws as float64.

    Raises:
        ShapeError: they have not ``axes`` axes, or fewer than two draws.
        AssertionError: one is not finite: no law that can be tested has such draws.
    """
    raw = x.detach().cpu().double().numpy() if isinstance(x, Tensor) else x
    array = np.asarray(raw, dtype=np.float64)
    if array.ndim != axes or array.shape[-1] < 2:
        want = "(n,), one number of each chain such as x[:, 0]" if axes == 1 else "(rows, n)"
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
