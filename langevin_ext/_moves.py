"""What rules are made of besides the step: proposals, accept-or-reject, passes over velocities.

They take states that a rule owns (contiguous, float32 or float64, one device) and coefficients that
it has checked; each is one kernel of a backend. None of them advances the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends
from ._check import as_taken, check_coefficient
from ._run import refuse_repetition
from ._types import (
    AcceptSpec,
    Coefficient,
    Decision,
    KineticSpec,
    Point,
    Position,
    StepSpec,
    StepStats,
)
from .noise import Noise, Purpose

_INFINITY = float("inf")


def propose_(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    *,
    drift: Coefficient,
    diffusion: Coefficient,
    max_grad_norm: Coefficient,
    noise: Noise,
    stats: StepStats,
    backend: str,
) -> None:
    """x - a gamma g + s gamma**(1/2) xi to ``out``, in one pass."""
    step = StepSpec(
        drift=taken("drift", drift, x),
        diffusion=taken("diffusion", diffusion, x),
        max_grad_norm=taken("max_grad_norm", max_grad_norm, x),
        per_coordinate=False,
        noise_power=0.5,
        reference_precision=0.0,
        low=-_INFINITY,
        high=_INFINITY,
        position=_place(noise, Purpose.DIFFUSION, x),
    )
    backends.resolve(backend, x.device.type).step_(x, grad, step, stats, out)


def accept_(
    at: Point,
    proposal: Point,
    decision: Decision,
    *,
    drift: Coefficient = 1.0,
    diffusion: Coefficient = 1.0,
    max_grad_norm: Coefficient = _INFINITY,
    log_ratio: Tensor | None = None,
    noise: Noise,
    backend: str,
) -> None:
    """Move chains to their proposals or leave them, in place; uniforms from their own stream.

    The coefficients are those the proposals were made with; or ``log_ratio`` (B,) float64 is
    log q(x | y) - log q(y | x).
    """
    x = at.x
    spec = AcceptSpec(
        drift=taken("drift", drift, x),
        diffusion=taken("diffusion", diffusion, x),
        max_grad_norm=taken("max_grad_norm", max_grad_norm, x),
        log_ratio=log_ratio,
        position=_place(noise, Purpose.ACCEPT, x),
    )
    backends.resolve(backend, x.device.type).accept_(at, proposal, spec, decision)


def kinetic_(
    x: Tensor,
    v: Tensor,
    grad: Tensor | None,
    *,
    kick: Coefficient = 0.0,
    drift: Coefficient = 0.0,
    keep: Coefficient = 1.0,
    spread: Coefficient = 0.0,
    second_kick: Coefficient = 0.0,
    second_drift: Coefficient = 0.0,
    noise: Noise | None = None,
    purpose: Purpose = Purpose.DIFFUSION,
    energies: Tensor | None = None,
    stats: StepStats | None = None,
    backend: str,
) -> None:
    """v -= kick g;  x += drift v;  v = keep v + spread xi;  v -= second_kick g;
    x += second_drift v, in place and in one pass; see `KineticSpec`."""
    spec = KineticSpec(
        kick=taken("kick", kick, x),
        drift=taken("drift", drift, x),
        keep=taken("keep", keep, x),
        spread=taken("spread", spread, x),
        second_kick=taken("second_kick", second_kick, x),
        second_drift=taken("second_drift", second_drift, x),
        position=None if noise is None else _place(noise, purpose, x),
    )
    backends.resolve(backend, x.device.type).kinetic_(x, v, grad, spec, energies, stats)


def taken(name: str, value: Coefficient, x: Tensor) -> Coefficient:
    """A checked coefficient."""
    # Nearly all are numbers in this range, and have nothing to be asked.
    if type(value) is float and (1e-30 < value < 1e30 or value in (0, _INFINITY)):
        return value
    check_coefficient(name, value, x, zero=True, infinite=True)
    return as_taken(value, x)


def _place(noise: Noise, purpose: Purpose, x: Tensor) -> Position:
    position = noise.position(x.shape[0], x.numel() // x.shape[0], purpose)
    if x.is_cuda:
        refuse_repetition(position)
    return position


def point(energy: Tensor, grad: Tensor, x: Tensor) -> Point:
    """A point from an energy's value and gradient there, as the kernels take it."""
    return Point(x, grad.to(x.dtype).resolve_neg().contiguous(), energy)


def room_for_decision(x: Tensor) -> Decision:
    """Room for what `accept_` records."""
    chains = x.shape[0]
    return Decision(
        torch.zeros(chains, dtype=torch.float64, device=x.device),
        torch.zeros(chains, dtype=torch.bool, device=x.device),
    )
