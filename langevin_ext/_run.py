"""A checked step on a backend: the last refusals, the call, and what autograd must be told."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends
from ._types import Position, StepSpec, StepStats
from .errors import DeviceError, NoiseError


def ready(x: Tensor, grad: Tensor, step: StepSpec, backend: str) -> backends.Backend:
    """The backend for a checked step, once nothing is left that could refuse it."""
    chosen = backends.resolve(backend, "cpu" if x.is_cpu else x.device.type)
    if x.numel():
        _check_memory(x, grad, *(c for c in step[:3] if isinstance(c, Tensor)))
    if x.is_cuda and step.position is not None:
        refuse_repetition(step.position)
    return chosen


def run_(
    x: Tensor, grad: Tensor, step: StepSpec, stats: StepStats | None, chosen: backends.Backend
) -> None:
    """One checked step of ``x`` in place."""
    if x.numel() == 0:
        if stats is not None:
            stats.grad_norm.zero_()
            stats.gamma.fill_(1)
            stats.finite.fill_(True)
        return
    written = [t for t in (x, *(stats or ())) if not t.is_inference()]
    if x.is_contiguous() and not x.is_neg():
        chosen.step_(x, grad.resolve_neg().contiguous(), step, stats)
    else:
        y = x.resolve_neg().contiguous()
        chosen.step_(y, grad.resolve_neg().contiguous(), step, stats)
        x.copy_(y)
    torch.autograd.graph.increment_version(written)  # a raw write would hide itself from autograd


def _check_memory(*tensors: Tensor) -> None:
    try:
        if all(t.data_ptr() for t in tensors):
            return
    except RuntimeError:  # fake tensors, and tensors under vmap; torch's symbolic zeros have 0
        pass
    raise DeviceError(
        "the state, its gradient or a coefficient has no memory of its own: pass tensors with"
        " values, and call langevin_step under vmap and torch.func"
    )


def refuse_repetition(position: Position) -> None:
    """A CUDA graph may not capture a position that is a number."""
    if position.origin is None and torch.cuda.is_current_stream_capturing():
        raise NoiseError(
            "a CUDA graph would repeat this noise at every replay, because its step is a number on"
            " the host: use Noise(seed, device='cuda')"
        )
