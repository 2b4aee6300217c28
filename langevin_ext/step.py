r"""One Langevin update, fused: clip by the gradient norm, drift, noise made inside, clamp.

    gamma_i = 1 if |g_i| <= b else b / |g_i|                     b = max_grad_norm
    x_i  <-  clamp(x_i - drift gamma_i g_i - drift rho x_i + diffusion gamma_i**p xi,  lo, hi)

The AniLA step is gamma with p = 1/2; a plain Langevin step is b = None.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import backends
from ._types import Clamp, Coefficient, Per, StepSpec, StepStats
from .errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    GradientError,
    NoiseError,
    ShapeError,
    StepSizeError,
)
from .noise import Noise

_INFINITY = float("inf")
_FLOAT32_MAX = torch.finfo(torch.float32).max
_STATES = torch.float32, torch.float64
_HALVES = torch.bfloat16, torch.float16


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
        backend: ``"auto"``, ``"native"`` or ``"reference"``.

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
    step = _check(
        x, grad, drift, diffusion, noise, max_grad_norm, per, noise_power, reference_precision,
        clamp, stats,
    )  # fmt: skip
    if torch.is_grad_enabled():
        _refuse_grad(x, grad, drift, diffusion, max_grad_norm)
    _run_(x, grad, step, stats, backend)
    if noise is not None:
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

    Arguments and errors are those of `langevin_step_`. Differentiable in reverse mode, twice, in
    ``x``, ``grad``, ``drift``, ``diffusion`` and ``max_grad_norm``: the
    backward pass is in closed form and makes the noise again from its position. At the clamp the
    derivative is that of ``torch.clamp``; at |g| = b it is that of the unclipped side.
    """
    step = _check(
        x, grad, drift, diffusion, noise, max_grad_norm, per, noise_power, reference_precision,
        clamp, stats,
    )  # fmt: skip
    learned = (x, grad, step.drift, step.diffusion, step.max_grad_norm)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in learned):
        y: Tensor = _StepFunction.apply(*learned, step, stats, backend)  # type: ignore[no-untyped-call]
    else:
        y = x.detach().clone()
        _run_(y, grad, step, stats, backend)
    if noise is not None:
        noise.advance()
    return y


# ---- the door: every argument is checked here, once, before memory is touched ------------------


def _refuse_grad(*values: Coefficient | None) -> None:
    for i, value in enumerate(values):
        if isinstance(value, Tensor) and value.requires_grad:
            name = ("x", "grad", "drift", "diffusion", "max_grad_norm")[i]
            raise GradientError(
                f"{name} requires grad, and an in-place step has no gradient: call langevin_step,"
                f" detach {name}, or step under torch.no_grad()"
            )


def _refuse_tangents(*values: Coefficient | None) -> None:
    for value in values:
        if not isinstance(value, Tensor):
            continue
        if forward_ad.unpack_dual(value).tangent is not None:  # type: ignore[no-untyped-call]
            raise GradientError("a step has no forward-mode derivative: differentiate in reverse")


def _check(
    x: Tensor,
    grad: Tensor,
    drift: Coefficient,
    diffusion: Coefficient,
    noise: Noise | None,
    max_grad_norm: Coefficient | None,
    per: Per,
    noise_power: float,
    reference_precision: float,
    clamp: Clamp | None,
    stats: StepStats | None,
) -> StepSpec:
    check_state(x)
    check_gradient(x, grad)
    if forward_ad._current_level >= 0:
        _refuse_tangents(x, grad, drift, diffusion, max_grad_norm)
    if stats is not None:
        _check_stats(x, stats)
    if per not in ("sample", "coordinate"):
        raise ArgumentError(f"per={per!r}: give 'sample' or 'coordinate'")
    if as_number(noise_power) not in (0.0, 0.5, 1.0):
        raise ArgumentError(f"noise_power={noise_power!r}: give 0, 0.5 or 1")
    if type(reference_precision) is not float or not 0.0 <= reference_precision < _INFINITY:
        reference_precision = check_number("reference_precision", reference_precision, zero=True)
    low, high = check_clamp(clamp)
    if x.dtype == torch.float32 and (low > _FLOAT32_MAX or high < -_FLOAT32_MAX):
        raise ArgumentError(f"clamp={clamp!r}: it leaves no finite float32 value")
    chains = x.shape[0]
    position = None
    silent = not isinstance(diffusion, Tensor) and diffusion == 0
    if noise is None:
        if not silent:
            raise NoiseError("noise=None with a diffusion that is not 0: pass a Noise(seed)")
    elif not isinstance(noise, Noise):
        raise NoiseError(f"noise={noise!r}: pass a langevin_ext.Noise(seed)")
    else:
        position = noise.position(chains, x.numel() // max(chains, 1))
    return StepSpec(
        check_coefficient("drift", drift, x),
        check_coefficient("diffusion", diffusion, x, zero=True),
        _INFINITY
        if max_grad_norm is None
        else check_coefficient("max_grad_norm", max_grad_norm, x, infinite=True),
        per == "coordinate",
        noise_power,
        reference_precision,
        low,
        high,
        None if silent else position,
    )


def check_state(x: Tensor, name: str = "x") -> None:
    """A state is a strided float32 or float64 tensor (B, ...) whose elements do not overlap."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{name} is a {type(x).__name__}: pass a torch.Tensor")
    if x.layout != torch.strided or x.is_quantized or x.is_nested:
        raise DtypeError(f"{name} must be a dense strided tensor, got layout {x.layout}")
    if x.dtype not in _STATES:
        hint = ""
        if x.dtype in _HALVES:
            hint = (
                ": in 16 bits small drifts are lost to rounding (a chain with step 1e-3 on N(0, 1)"
                " settles at variance 1.40); keep the state in float32 and pass 16-bit gradients,"
                " or autocast the energy"
            )
        raise DtypeError(f"{name} is {x.dtype}; a state is float32 or float64{hint}")
    if x.dim() == 0:
        raise ShapeError(f"{name} is 0-dimensional: a state is (B, ...), chains first")
    if x.is_meta:
        raise DeviceError(f"{name} is a meta tensor, which has no values")
    if x.is_inference() and name == "x" and not torch.is_inference_mode_enabled():
        raise GradientError("x is an inference tensor: step it in inference mode, or clone it")
    if not x.is_contiguous() and _overlaps(x):
        raise ShapeError(
            f"{name} has elements that share memory (it is expanded or unfolded): clone it first"
        )


def _overlaps(x: Tensor) -> bool:
    """Whether elements may share memory: an axis steps inside what the finer ones span."""
    span = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride <= span:
                return True
            span += stride * (size - 1)
    return False


def check_gradient(x: Tensor, grad: Tensor) -> None:
    """A gradient has the state's shape and device, and its dtype or a 16-bit one."""
    if not isinstance(grad, Tensor):
        raise DtypeError(f"grad is a {type(grad).__name__}: pass a torch.Tensor")
    if grad.shape != x.shape:
        raise ShapeError(f"grad has shape {tuple(grad.shape)}, the state {tuple(x.shape)}")
    if grad.device != x.device:
        raise DeviceError(f"grad is on {grad.device}, the state on {x.device}")
    if grad.dtype != x.dtype and grad.dtype not in _HALVES:
        raise DtypeError(
            f"grad is {grad.dtype}; for a {x.dtype} state give {x.dtype}, bfloat16 or float16"
        )
    if grad.layout != torch.strided:
        raise DtypeError(f"grad must be a dense strided tensor, got layout {grad.layout}")


def _check_stats(x: Tensor, stats: StepStats) -> None:
    if not isinstance(stats, StepStats):
        raise ArgumentError(f"stats={stats!r}: pass StepStats.empty({x.shape[0]})")
    expected = x.dtype, x.dtype, torch.bool
    for name, t, dtype in zip(StepStats._fields, stats, expected, strict=True):
        if t.shape != x.shape[:1] or not t.is_contiguous():
            raise ShapeError(f"stats.{name} has shape {tuple(t.shape)}, not ({x.shape[0]},)")
        if t.dtype != dtype:
            raise DtypeError(f"stats.{name} is {t.dtype}; this state needs {dtype}")
        if t.device != x.device:
            raise DeviceError(f"stats.{name} is on {t.device}, the state on {x.device}")


def check_clamp(clamp: Clamp | None) -> tuple[float, float]:
    """(lo, hi) with None as infinity.

    Raises:
        ArgumentError: not a pair, NaN, or lo >= hi.
    """
    if clamp is None:
        return -_INFINITY, _INFINITY
    try:
        low, high = clamp
    except (TypeError, ValueError):
        raise ArgumentError(f"clamp={clamp!r}: give (lo, hi), either of them None") from None
    low = -_INFINITY if low is None else as_number(low)
    high = _INFINITY if high is None else as_number(high)
    if not low < high:
        raise ArgumentError(f"clamp={clamp!r}: give numbers lo < hi, either of them None")
    return low, high


def as_number(value: object) -> float:
    """A real number as a float; NaN for everything else, a bool included."""
    # Real alone would do, but asking an abstract class takes ten times as long.
    if isinstance(value, bool) or not isinstance(value, (float, int, Real)):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int beyond every float
        return math.nan


def check_number(name: str, value: object, *, zero: bool = False, infinite: bool = False) -> float:
    """A positive finite number, or as the flags allow.

    Raises:
        StepSizeError: it is not; the message gives the value.
    """
    number = as_number(value)
    if (number > 0 and (math.isfinite(number) or infinite)) or (zero and number == 0):
        return number
    range_ = f"{'' if infinite else 'finite '}number {'>= 0' if zero else '> 0'}"
    raise StepSizeError(f"{name}={value!r}: give a {range_}, or a tensor")


def check_coefficient(
    name: str, value: Coefficient, x: Tensor, *, zero: bool = False, infinite: bool = False
) -> Coefficient:
    """A number, or a contiguous (B,) tensor in the state's dtype and on its device."""
    if type(value) is float and 0.0 < value < _INFINITY:
        return value
    if not isinstance(value, Tensor):
        return check_number(name, value, zero=zero, infinite=infinite)
    if value.shape not in (torch.Size(), x.shape[:1]):
        raise ShapeError(
            f"{name} has shape {tuple(value.shape)}: give a number, a 0-d tensor or one of shape"
            f" ({x.shape[0]},), a value for each chain"
        )
    if not value.is_floating_point():
        raise DtypeError(f"{name} is {value.dtype}: give a floating point tensor")
    if value.device != x.device and value.dim():
        raise DeviceError(f"{name} is on {value.device}, the state on {x.device}")
    return value.to(x.device, x.dtype).expand(x.shape[:1]).resolve_neg().contiguous()


# ---- running it --------------------------------------------------------------------------------


def _run_(x: Tensor, grad: Tensor, step: StepSpec, stats: StepStats | None, backend: str) -> None:
    if not isinstance(backend, str):
        raise ArgumentError(f"backend={backend!r}: give 'auto' or one of {backends.NAMES}")
    chosen = backends.resolve(backend, "cpu" if x.is_cpu else x.device.type)
    if x.numel() == 0:
        if stats is not None:
            stats.grad_norm.zero_()
            stats.gamma.fill_(1)
            stats.finite.fill_(True)
    elif x.is_contiguous() and not x.is_neg():
        chosen.step_(x, grad.resolve_neg().contiguous(), step, stats)
        if not x.is_inference():  # a raw write would hide itself from autograd
            torch.autograd.graph.increment_version(x)
    else:
        y = x.resolve_neg().contiguous()
        chosen.step_(y, grad.resolve_neg().contiguous(), step, stats)
        x.copy_(y)


class _StepFunction(torch.autograd.Function):
    """Forward on any backend; backward in closed form, in torch, so it differentiates again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        grad: Tensor,
        drift: Coefficient,
        diffusion: Coefficient,
        max_grad_norm: Coefficient,
        step: StepSpec,
        stats: StepStats | None,
        backend: str,
    ) -> Tensor:
        y = x.detach().clone()
        _run_(y, grad, step, stats, backend)
        coefficients = (drift, diffusion, max_grad_norm)
        ctx.save_for_backward(x, grad, *(c for c in coefficients if isinstance(c, Tensor)))
        ctx.numbers = [None if isinstance(c, Tensor) else c for c in coefficients]
        ctx.step, ctx.backend = step, backend
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, grad, *tensors = ctx.saved_tensors
        rest = iter(tensors)
        drift, diffusion, bound = (next(rest) if n is None else n for n in ctx.numbers)
        gradients = _step_gradients(
            grad_outputs[0], x, grad, drift, diffusion, bound, ctx.step, ctx.backend
        )
        needed = ctx.needs_input_grad[:5]
        return *(g if n else None for g, n in zip(gradients, needed, strict=True)), *[None] * 3


def _step_gradients(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    drift: Coefficient,
    diffusion: Coefficient,
    bound: Coefficient,
    step: StepSpec,
    backend: str,
) -> tuple[Tensor, ...]:
    """Gradients of <out, step(x, grad, drift, diffusion, bound)> in its five arguments.

    With G = out inside the clamp and 0 outside, sums over a chain's coordinates, and
    L = -drift <G, g> + p diffusion gamma^(p-1) <G, xi> the derivative in gamma:

        dx = (1 - drift rho) G
        dg = -drift gamma G - L gamma g / |g|^2,  db = L / |g|     where |g| > b; elsewhere L = 0
        ddrift = -gamma <G, g> - rho <G, x>,  ddiffusion = gamma^p <G, xi>
    """
    chains, p = x.shape[0], step.noise_power
    dtype = grad.dtype
    shape = x.shape
    out, x, grad = (t.reshape(chains, -1).to(x.dtype) for t in (out, x, grad))

    def column(value: Coefficient) -> Tensor:
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(chains)[:, None]

    a, s, b = column(drift), column(diffusion), column(bound)
    size = grad.abs() if step.per_coordinate else torch.linalg.vector_norm(grad, dim=1)[:, None]
    clipped = size > b
    safe = torch.where(clipped, size, 1.0)
    gamma = torch.where(clipped, b / safe, 1.0)
    xi = torch.zeros_like(x)
    if step.position is not None:
        seed, at, stream, first = step.position
        xi = Noise(seed, stream, first, at).normal(
            x.shape, dtype=x.dtype, device=x.device, backend=backend
        )
    power = gamma**p
    y = x - a * gamma * grad - a * step.reference_precision * x + s * power * xi
    inside = torch.where((y >= step.low) & (y <= step.high), out, 0.0)

    def total(t: Tensor) -> Tensor:  # over whatever shares one gamma
        return t if step.per_coordinate else t.sum(1, keepdim=True)

    along, noisy = total(inside * grad), total(inside * xi)
    slope = torch.where(clipped, -a * along + p * s * gamma ** (p - 1) * noisy, 0.0)
    dx = inside * (1 - a * step.reference_precision)
    dgrad = -a * gamma * inside - slope * gamma * grad / safe**2
    ddrift = (-gamma * along - step.reference_precision * total(inside * x)).sum(1)
    ddiffusion = (power * noisy).sum(1)
    dbound = (slope / safe).sum(1)
    return dx.view(shape), dgrad.to(dtype).view(shape), ddrift, ddiffusion, dbound
