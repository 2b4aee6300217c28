"""The door: every argument of a step is checked here, once, before memory is touched."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._types import Clamp, Coefficient, Position, StepSpec, StepStats
from .errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    GradientError,
    NoiseError,
    ShapeError,
    StepSizeError,
)

INFINITY = float("inf")
MAX_STEP, MAX_STREAM, MAX_CHAIN, MAX_COLUMNS = 2**48, 2**16, 2**32, 2**34
_FLOAT32_MAX = torch.finfo(torch.float32).max
_FLOAT32_LEAST = 2.0**-149
_STATES = torch.float32, torch.float64
_HALVES = torch.bfloat16, torch.float16


def check_step(
    x: Tensor,
    grad: Tensor,
    drift: Coefficient,
    diffusion: Coefficient,
    max_grad_norm: Coefficient,
    per_coordinate: bool,
    noise_power: float,
    reference_precision: float,
    low: float,
    high: float,
    position: Position | None,
    stats: StepStats | None,
) -> StepSpec:
    """One step's arguments, checked; the coefficients as a backend takes them."""
    check_state(x)
    check_gradient(x, grad)
    if stats is not None:
        check_stats(x, stats)
    refuse_tangents(x, grad, drift, diffusion, max_grad_norm)
    noise_power = check_noise_power(noise_power)
    reference_precision = check_number("reference_precision", reference_precision, zero=True)
    check_range(low, high, x.dtype)
    check_coefficient("drift", drift, x)
    check_coefficient("diffusion", diffusion, x, zero=True)
    check_coefficient("max_grad_norm", max_grad_norm, x, infinite=True)
    if position is not None:
        chains = x.shape[0]
        check_position(position, chains, x.numel() // max(chains, 1))
    if not isinstance(diffusion, Tensor) and diffusion == 0:
        position = None
    elif position is None:
        raise NoiseError("noise=None with a diffusion that is not 0: pass a Noise(seed)")
    return StepSpec(
        as_taken(drift, x), as_taken(diffusion, x), as_taken(max_grad_norm, x), per_coordinate,
        noise_power, reference_precision, low, high, position,
    )  # fmt: skip


def as_taken(value: Coefficient, x: Tensor) -> Coefficient:
    """A coefficient as a backend takes it: a number, or a (B,) tensor of the state's dtype."""
    if not isinstance(value, Tensor):
        return float(value)
    return value.to(x.device, x.dtype).expand(x.shape[:1]).resolve_neg().contiguous()


def check_position(position: Position, chains: int, columns: int) -> None:
    """A state of (chains, columns) finds its noise there.

    Raises:
        NoiseError: a chain id would reach 2**32 or a coordinate 2**34; or the last of the
            2**48 steps has been consumed. (A step on a device is not looked at.)
    """
    _, step, stream, first_chain, _, _ = position
    if step < 0 or first_chain < 0 or not 0 <= stream < MAX_STREAM:
        raise NoiseError(
            f"step={step}, stream={stream}, first_chain={first_chain}: none of them may be"
            " negative, and a stream must be below 2**16"
        )
    if step >= MAX_STEP:
        raise NoiseError("step=2**48: the noise of this stream is used up; take another stream")
    if first_chain + chains > MAX_CHAIN:
        raise NoiseError(
            f"first_chain={first_chain} with {chains} chains: chain ids must stay below 2**32"
        )
    if columns > MAX_COLUMNS:
        raise NoiseError(f"{columns} coordinates to a chain: there is noise for 2**34")


def refuse_grad(*values: Coefficient) -> None:
    """An in-place step of (x, grad, drift, diffusion, max_grad_norm) has no gradient in any."""
    names = "x", "grad", "drift", "diffusion", "max_grad_norm"
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Tensor) and value.requires_grad:
            raise GradientError(
                f"{name} requires grad, and an in-place step has no gradient: call langevin_step,"
                f" detach {name}, or step under torch.no_grad()"
            )


def refuse_tangents(*values: Coefficient | None) -> None:
    """A step has no forward-mode derivative."""
    if forward_ad._current_level < 0:
        return
    for value in values:
        dual = isinstance(value, Tensor) and forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
        if dual and dual.tangent is not None:
            raise GradientError("a step has no forward-mode derivative: differentiate in reverse")


def check_backend(backend: object) -> None:
    """A backend is given by its name; which there are is known where it is resolved."""
    if not isinstance(backend, str):
        raise ArgumentError(f"backend={backend!r}: give 'auto' or the name of a backend")


def check_per(per: object) -> bool:
    """Whether each coordinate is clipped for itself."""
    if per == "sample":
        return False
    if per == "coordinate":
        return True
    raise ArgumentError(f"per={per!r}: give 'sample' or 'coordinate'")


def check_noise_power(value: object) -> float:
    """p as a float.

    Raises:
        ArgumentError: not 0, 0.5 or 1.
    """
    power = as_number(value)
    if power not in (0.0, 0.5, 1.0):
        raise ArgumentError(f"noise_power={value!r}: give 0, 0.5 or 1")
    return power


def check_range(low: float, high: float, dtype: torch.dtype) -> None:
    if not low < high:
        raise ArgumentError(f"clamp={(low, high)!r}: give numbers lo < hi, either of them None")
    if dtype == torch.float32 and (low > _FLOAT32_MAX or high < -_FLOAT32_MAX):
        raise ArgumentError(f"clamp={(low, high)!r}: it leaves no finite float32 value")


def check_state(x: Tensor, name: str = "x") -> None:
    """A state is a strided float32 or float64 tensor (B, ...) whose elements do not overlap."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{name} is a {type(x).__name__}: pass a torch.Tensor")
    check_values(name, x)
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
    if x.is_inference() and name == "x" and not torch.is_inference_mode_enabled():
        raise GradientError("x is an inference tensor: step it in inference mode, or clone it")
    if not x.is_contiguous() and _overlaps(x):
        raise ShapeError(
            f"{name} has elements that share memory (it is expanded or unfolded): clone it first"
        )


def check_values(name: str, t: Tensor) -> None:
    """A tensor is dense and strided, and has values."""
    _check_dense(name, t)
    if t.is_meta:
        raise DeviceError(f"{name} is a meta tensor, which has no values")


def _check_dense(name: str, t: Tensor) -> None:
    if t.layout != torch.strided or t.is_quantized or t.is_nested:
        kind = "nested" if t.is_nested else "quantized" if t.is_quantized else f"layout {t.layout}"
        raise DtypeError(f"{name} must be a dense strided tensor, got {kind}")


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
    _check_dense("grad", grad)
    if grad.shape != x.shape:
        raise ShapeError(f"grad has shape {tuple(grad.shape)}, the state {tuple(x.shape)}")
    if grad.device != x.device:
        raise DeviceError(f"grad is on {grad.device}, the state on {x.device}")
    if grad.dtype != x.dtype and grad.dtype not in _HALVES:
        raise DtypeError(
            f"grad is {grad.dtype}; for a {x.dtype} state give {x.dtype}, bfloat16 or float16"
        )


def check_stats(x: Tensor, stats: StepStats) -> None:
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
        if t.is_inference() and not torch.is_inference_mode_enabled():
            raise GradientError(f"stats.{name} is an inference tensor: step in inference mode")
        if t.requires_grad or t.is_neg():
            raise GradientError(
                f"stats.{name} requires grad or is a negated view: it is written to"
            )


def check_clamp(clamp: Clamp | None) -> tuple[float, float]:
    """(lo, hi) with None as infinity.

    Raises:
        ArgumentError: not a pair, NaN, or lo >= hi.
    """
    if clamp is None:
        return -INFINITY, INFINITY
    try:
        low, high = clamp
    except (TypeError, ValueError):
        raise ArgumentError(f"clamp={clamp!r}: give (lo, hi), either of them None") from None
    low = -INFINITY if low is None else as_number(low)
    high = INFINITY if high is None else as_number(high)
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


def check_count(name: str, value: Any, least: int) -> int:
    """An int of at least so much; numpy's will do.

    Raises:
        ArgumentError: it is not, a bool and a float included.
    """
    truth = isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if truth or number < least:
        raise ArgumentError(f"{name}={value!r}: give an int >= {least}")
    return number


def check_number(name: str, value: object, *, zero: bool = False, infinite: bool = False) -> float:
    """A positive finite number, or as the flags allow.

    Raises:
        StepSizeError: it is not; the message gives the value.
    """
    number = as_number(value)
    if 0 < number < INFINITY or (zero and number == 0) or (infinite and number == INFINITY):
        return number
    range_ = f"{'' if infinite else 'finite '}number {'>= 0' if zero else '> 0'}"
    raise StepSizeError(f"{name}={value!r}: give a {range_}, or a tensor")


def check_coefficient(
    name: str, value: Coefficient, x: Tensor, *, zero: bool = False, infinite: bool = False
) -> None:
    """A number in the state's range, or a tensor with one for all chains or one for each."""
    if not isinstance(value, Tensor):
        number = check_number(name, value, zero=zero, infinite=infinite)
        legal = number in (0, INFINITY) or _FLOAT32_LEAST <= number <= _FLOAT32_MAX
        if x.dtype == torch.float32 and not legal:
            raise StepSizeError(f"{name}={value!r}: in float32, as the state, it is 0 or infinite")
        return
    if value.shape not in (torch.Size(), x.shape[:1]):
        raise ShapeError(
            f"{name} has shape {tuple(value.shape)}: give a number, a 0-d tensor or one of shape"
            f" ({x.shape[0]},), a value for each chain"
        )
    if not value.is_floating_point():
        raise DtypeError(f"{name} is {value.dtype}: give a floating point tensor")
    if value.device != x.device and value.dim():
        raise DeviceError(f"{name} is on {value.device}, the state on {x.device}")
