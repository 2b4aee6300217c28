"""Tensors as kernels may read them: in memory of their own, or laid out as another."""

from __future__ import annotations

import torch
from torch import Tensor


def apart(value: Tensor, *written: Tensor) -> Tensor:
    """The tensor, or a copy if it shares memory with what a kernel is about to write."""
    at = value.data_ptr()
    shared = any(-value.nbytes < at - t.data_ptr() < t.nbytes for t in written)
    return value.clone() if shared else value


def gradient_apart(grad: Tensor, x: Tensor) -> Tensor:
    """As `apart`; but a state may be its own gradient: an element is read before it is written."""
    same = grad.data_ptr() == x.data_ptr() and grad.dtype == x.dtype
    return grad if same else apart(grad, x)


def each(t: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A record of every chain laid out as ``like``: a rule from outside may keep its own way."""
    dtype = dtype or t.dtype
    if (
        t.dtype is dtype
        and t.shape == like.shape
        and t.device == like.device
        and t.is_contiguous()
        and not t.is_neg()
    ):
        return t
    return t.to(like.device, dtype).expand_as(like).resolve_neg().contiguous()
