r"""One Langevin update, fused: clip by the gradient norm, drift, noise made inside, clamp.

    gamma_i = 1 if |g_i| <= b else b / |g_i|                     b = max_grad_norm
    x_i  <-  clamp(x_i - drift gamma_i g_i - drift rho x_i + diffusion gamma_i**p xi,  lo, hi)

The AniLA step is gamma with p = 1/2; a plain Langevin step is b = None.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backends, ops
from ._check import (
    INFINITY,
    check_backend,
    check_clamp,
    check_coefficient,
    check_gradient,
    check_noise_power,
    check_number,
    check_per,
    check_state,
    check_stats,
    check_step,
    refuse_grad,
    refuse_tangents,
)
from ._run import ready, run_
from ._types import NOWHERE, Clamp, Coefficient, Per, StepCall, StepStats
from .errors import ArgumentError, NoiseError
from .noise import Noise


def langevin_step_(
    x: Tensor,
    grad: Tensor,
    *,
    drift: Coefficient,
    diffusion: Coefficient,
    noise: Noise | None,
    max_grad_norm: Coefficient | None = None,
    per: Per = "sample",
    noise_power: float = 0.5,
    reference_precision: float = 0.0,
    clamp: Clamp | None = None,
    stats: StepStats | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Update ``x`` in place by one Langevin step and advance ``noise`` by one.

    .. math:: x_i \leftarrow \mathrm{clamp}(x_i - a\,\gamma_i g_i - a\rho x_i
              + s\,\gamma_i^p \xi,\ lo,\ hi), \qquad \gamma_i = \min(1, b / |g_i|)

    Args:
        x: states (B, ...), float32 or float64; B is the chain axis. Any strides without overlap.
        grad: grad U(x), the shape of ``x``; its dtype, or bfloat16 or float16.
        drift: a, the coefficient of the gradient with no hidden factor: a number > 0, or a 0-d or
            (B,) tensor. (Tensors are not looked into: that would wait for the device.)
        diffusion: s, the coefficient of the noise: a number >= 0 or a 0-d or (B,) tensor.
        noise: where the normals come from; None only with ``diffusion=0``.
        max_grad_norm: b, a number > 0 or a 0-d or (B,) tensor; None clips nothing.
        per: ``"sample"`` takes |g_i| over all axes but the first; ``"coordinate"`` clips every
            coordinate by its own magnitude.
        noise_power: p, one of 0.5 (AniLA as written), 1 (its authors' code), 0 (drift only).
        reference_precision: rho = 1 / sigma^2 of a Gaussian reference measure, >= 0.
        clamp: (lo, hi), either of them None; lo < hi.
        stats: filled in the same pass: `StepStats.empty(B, x.device, x.dtype)`.
        backend: ``"auto"``, ``"triton"``, ``"native"`` or ``"reference"``.

    Returns:
        ``x``.

    A coordinate that is not finite before the clamp becomes NaN. With per-sample clipping a
    gradient norm that is not finite makes its whole chain NaN. Other chains are unaffected.

    Raises:
        ShapeError, DtypeError, DeviceError: a tensor does not fit ``x``; a 16-bit state.
        StepSizeError, ArgumentError, NoiseError: a value is outside its range.
        GradientError: a tensor needs a gradient while grad is enabled; use `langevin_step`.
        BackendError: the named backend cannot do this here.
    """
    traced = ops.is_traced(x, grad)
    if not traced and backend in ("auto", "native") and type(noise) is Noise:
        plain_step = backends.plain_step()
        if plain_step is not None and plain_step(
            x, grad, drift, diffusion, noise, max_grad_norm, per, noise_power, reference_precision,
            clamp, stats,
        ):  # fmt: skip
            return x
    bound = INFINITY if max_grad_norm is None else max_grad_norm
    if traced:
        call = _call(
            x, grad, drift, diffusion, noise, bound, per, noise_power, reference_precision, clamp,
            stats, backend,
        )  # fmt: skip
        if torch.is_grad_enabled():
            refuse_grad(x, grad, *call.coefficients)
        torch.ops.langevin_ext.step_(x, *call, *((None, None, None) if stats is None else stats))
        if noise is not None:
            noise.advance()
    else:
        _check_noise(noise)
        check_backend(backend)
        position = None if noise is None else noise.by_value()
        step = check_step(
            x, grad, drift, diffusion, bound, check_per(per), noise_power, reference_precision,
            *check_clamp(clamp), position, stats,
        )  # fmt: skip
        if torch.is_grad_enabled():
            refuse_grad(x, grad, drift, diffusion, bound)
        chosen = ready(x, grad, step, backend)
        read_by_the_kernel = position is not None and position.origin is not None
        if noise is not None and not read_by_the_kernel:
            noise.advance()  # first: an interrupt may then skip noise, but never repeat it
        run_(x, grad, step, stats, chosen)
        if noise is not None and read_by_the_kernel:
            noise.advance()
    return x


def langevin_step(
    x: Tensor,
    grad: Tensor,
    *,
    drift: Coefficient,
    diffusion: Coefficient,
    noise: Noise | None,
    max_grad_norm: Coefficient | None = None,
    per: Per = "sample",
    noise_power: float = 0.5,
    reference_precision: float = 0.0,
    clamp: Clamp | None = None,
    stats: StepStats | None = None,
    backend: str = "auto",
) -> Tensor:
    """The step of `langevin_step_` as a function: a new tensor, ``x`` as it was.

    Arguments and errors are those of `langevin_step_`. Differentiable in reverse mode, as often as
    asked, in ``x``, ``grad``, ``drift``, ``diffusion`` and ``max_grad_norm``: the backward pass is
    in closed form and makes the noise again from its position. At the clamp the derivative is that
    of ``torch.clamp``; at |g| = b it is that of the unclipped side. Under ``vmap`` every slice has
    the same noise.
    """
    bound = INFINITY if max_grad_norm is None else max_grad_norm
    if _is_a_copy_stepped(x, grad, drift, diffusion, bound):
        return langevin_step_(
            x.detach().clone(), grad, drift=drift, diffusion=diffusion, noise=noise,
            max_grad_norm=max_grad_norm, per=per, noise_power=noise_power,
            reference_precision=reference_precision, clamp=clamp, stats=stats, backend=backend,
        )  # fmt: skip
    call = _call(
        x, grad, drift, diffusion, noise, bound, per, noise_power, reference_precision, clamp,
        stats, backend,
    )  # fmt: skip
    y: Tensor
    y, *recorded = ops.step(x, *call, stats is not None)
    for mine, new in zip(stats or (), recorded, strict=False):
        mine.copy_(new)
    if noise is not None:
        noise.advance()
    return y


def _is_a_copy_stepped(x: Tensor, *others: Any) -> bool:
    """Whether a functional step is one in place of a copy: nobody watches or wants a gradient."""
    if ops.is_traced(x, others[0]) or ops.is_transformed() or x.layout is not torch.strided:
        return False
    learned = (x, *others) if torch.is_grad_enabled() else ()
    if any(isinstance(t, Tensor) and t.requires_grad for t in learned):
        return False
    return not x.is_nested and x.is_contiguous()  # elements of a copy would not overlap


def _check_noise(noise: Noise | None) -> None:
    if noise is not None and not isinstance(noise, Noise):
        raise NoiseError(f"noise={noise!r}: pass a langevin_ext.Noise(seed)")


def _call(
    x: Tensor,
    grad: Tensor,
    drift: Coefficient,
    diffusion: Coefficient,
    noise: Noise | None,
    bound: Coefficient,
    per: Per,
    noise_power: float,
    reference_precision: float,
    clamp: Clamp | None,
    stats: StepStats | None,
    backend: str,
) -> StepCall:
    """The operators' arguments.

    The operators check them too, but in compiled code only as it runs, and in eager code a schema
    would be the first to refuse a tensor that is none, or is elsewhere, in words of its own.
    """
    if not torch.compiler.is_compiling():
        check_state(x)
        check_gradient(x, grad)
        refuse_tangents(x, grad, drift, diffusion, bound)
        if stats is not None:
            check_stats(x, stats)
            if ops.is_transformed():
                raise ArgumentError("stats are written to, which torch.func does not allow")
        for name, value in (("drift", drift), ("diffusion", diffusion), ("max_grad_norm", bound)):
            if isinstance(value, Tensor):
                check_coefficient(name, value, x)
    _check_noise(noise)
    check_backend(backend)
    place = NOWHERE if noise is None else noise.by_reference()
    low, high = check_clamp(clamp)

    def number(name: str, value: Coefficient, **allowed: bool) -> float:
        return 0.0 if isinstance(value, Tensor) else check_number(name, value, **allowed)

    def tensor(value: Coefficient) -> Tensor | None:
        return value if isinstance(value, Tensor) else None

    return StepCall(
        grad=grad,
        position=place.origin,
        offset=place.step,
        stream=place.stream,
        first_chain=place.first_chain,
        approximate=place.approximate,
        drift=number("drift", drift),
        drift_tensor=tensor(drift),
        diffusion=number("diffusion", diffusion, zero=True),
        diffusion_tensor=tensor(diffusion),
        max_grad_norm=number("max_grad_norm", bound, infinite=True),
        max_grad_norm_tensor=tensor(bound),
        per_coordinate=check_per(per),
        noise_power=check_noise_power(noise_power),
        reference_precision=check_number("reference_precision", reference_precision, zero=True),
        low=low,
        high=high,
        backend=backend,
    )
