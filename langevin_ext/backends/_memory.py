"""What a kernel may read while it writes: tensors in memory of their own."""

from __future__ import annotations

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
