"""The door of the energies: numbers and tensors of parameters, checked once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._check import as_number
from ..errors import ArgumentError, ShapeError

LEAST_SCALE, LARGEST_SCALE = 2.0**-511, 2.0**511
"""Between them a square, its double, and one over it are normal float64 numbers."""


def positive(name: str, value: object) -> float:
    """A positive finite number."""
    number = as_number(value)
    if not 0 < number < math.inf:
        raise ArgumentError(f"{name}={value!r}: give a finite number > 0")
    return number


def deviation(name: str, value: object) -> float:
    """A standard deviation whose square float64 holds, and one over it."""
    number = positive(name, value)
    if not LEAST_SCALE <= number <= LARGEST_SCALE:
        raise ArgumentError(
            f"{name}={value!r}: its square, or one over it, is no normal float64; give a number"
            f" from {LEAST_SCALE:.3g} to {LARGEST_SCALE:.3g}"
        )
    return number


def check_scales(name: str, value: object, scales: Tensor) -> None:
    """The standard deviations that an argument gives have variances and precisions in float64.

    Raises:
        ArgumentError: the square of one, or one over it, is not a normal number.
    """
    if not bool(((scales >= LEAST_SCALE) & (scales <= LARGEST_SCALE)).all()):
        raise ArgumentError(
            f"{name}={value!r}: a variance or a precision is no normal float64; give standard"
            f" deviations from {LEAST_SCALE:.3g} to {LARGEST_SCALE:.3g}"
        )


def finite(name: str, value: object) -> float:
    """A finite number."""
    number = as_number(value)
    if not math.isfinite(number):
        raise ArgumentError(f"{name}={value!r}: give a finite number")
    return number


def numbers(name: str, value: object, *, zero: bool = True, negative: bool = True) -> Tensor:
    """Finite real numbers of any shape as a float64 tensor of their own, on their device.

    Raises:
        ArgumentError: something else, or a number of a sign that the flags do not allow.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ArgumentError(f"{name}={value!r}: give numbers, or a tensor of them") from None
    if tensor.is_complex() or tensor.dtype == torch.bool or tensor.is_meta:
        raise ArgumentError(f"{name} is {tensor.dtype} on {tensor.device}: give real numbers")
    if not isinstance(value, Tensor) and tensor.is_floating_point():
        tensor = torch.as_tensor(value, dtype=torch.float64)  # not by way of float32
    tensor = tensor.detach().to(torch.float64, copy=True)
    low = -math.inf if negative else 0.0
    legal = tensor.isfinite() & ((tensor >= low) if zero else (tensor > low))
    if not bool(legal.all()):
        sign = "" if negative else " >= 0" if zero else " > 0"
        raise ArgumentError(f"{name}={value!r}: give finite numbers{sign}")
    return tensor


def one_each(name: str, value: object, items: int, what: str, **signs: bool) -> Tensor:
    """One number for all, or (items,): a number for each."""
    tensor = numbers(name, value, **signs)
    if tensor.shape not in ((), (items,)):
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)}: give a number, or ({items},), one {what}"
        )
    return tensor.expand(items).clone()


def cholesky(name: str, matrices: Tensor) -> Tensor:
    """The lower Cholesky factors of (..., d, d).

    Raises:
        ArgumentError: one of them is not symmetric and positive definite.
    """
    skew = (matrices - matrices.mT).abs().amax((-2, -1))
    lopsided = skew > 1e-6 * matrices.abs().amax((-2, -1))
    factors: Tensor
    factors, failed = torch.linalg.cholesky_ex((matrices + matrices.mT) / 2)
    if bool((lopsided | (failed != 0)).any()):
        least = float(torch.linalg.eigvalsh((matrices + matrices.mT) / 2).min())
        raise ArgumentError(
            f"{name} must be symmetric and positive definite: its entries differ from the"
            f" transpose's by up to {float(skew.max()):.3g}, its least eigenvalue is {least:.3g}"
        )
    return factors
