"""The pass every rule is built on: an energy's value and its gradient in the state, once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ._types import Energy
from .errors import ArgumentError, EnergyError, GradientError

_INDEPENDENT = (
    "the energy does not depend on its input through autograd: it was detached,"
    " computed under no_grad, or does not use x"
)


class EnergyGradient:
    """x -> (U(x), grad U(x)) for an energy, (B,) and the shape of x, both detached.

    An energy that knows its gradient says so by a method ``value_and_gradient``: x -> (U, grad U),
    (B,) or (B, 1) and the shape of x. It is asked instead of autograd, without gradient mode, and
    copied. Not if a subclass has replaced ``forward`` or ``__call__`` and not the method, which
    would be the parent's; nor while hooks are registered on the module, which it would not run.

    Args:
        energy: any callable or module (B, ...) -> (B,) or (B, 1).
        autocast: bfloat16 or float16 to run the energy under ``torch.autocast``; U comes back in
            the state's dtype, the gradient in the dtype autograd gives it. None leaves the
            caller's autocast state as it is. Not for an energy that knows its gradient.
        channels_last: hand the energy its states in this memory format. None decides by a fixed
            rule (`prefers_channels_last`), because it can change the last bits.

    Raises:
        ArgumentError: autocast is not one of these, or the energy knows its gradient.

    Raises (when called):
        EnergyError: the result is not one floating point number per chain, or not a gradient.
        GradientError: U does not depend on x through autograd.
    """

    def __init__(
        self,
        energy: Energy,
        *,
        autocast: torch.dtype | None = None,
        channels_last: bool | None = None,
    ) -> None:
        if not callable(energy):
            raise EnergyError(f"energy is a {type(energy).__name__}: pass a callable or a module")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ArgumentError(f"autocast={autocast}: give torch.bfloat16, torch.float16 or None")
        self._knows = _knows_its_gradient(energy)
        if self._knows and autocast is not None:
            raise ArgumentError(
                f"autocast={autocast} with an energy that has value_and_gradient, which runs in the"
                " state's dtype: leave autocast out, or pass lambda x: energy(x) to use autograd"
            )
        self.energy = energy
        self.autocast = autocast
        self.channels_last = channels_last

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        compiling = torch.compiler.is_compiling()
        if not compiling and torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self(x.clone() if x.is_inference() else x)
        if self.knows:
            return self._known(x)
        if compiling:  # which can follow torch.func.grad, not autograd.grad
            grad, value = torch.func.grad(self._total, has_aux=True)(self._point(x))
        else:
            with torch.enable_grad():
                point = self._point(x).requires_grad_()
                total, value = self._total(point)
                grad = _slope(total, point)
        # A copy: an energy may return a view of its input, which is about to change.
        return value.detach().view(x.shape[0]).to(x.dtype, copy=True), grad.detach()

    @property
    def knows(self) -> bool:
        """Whether the energy is asked for its gradient, and not autograd."""
        return self._knows and not _has_hooks(self.energy)

    def differentiable(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(U(x), grad U(x)) with their graph, at x that requires grad."""
        last = self.channels_last
        point = x
        if prefers_channels_last(self.energy, x) if last is None else last:
            point = x.contiguous(memory_format=torch.channels_last)
        total, value = self._total(point)
        return value, _slope(total, x, create_graph=True)

    def with_hessian_product(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U(x), g = grad U(x) and H g with the Hessian H, all detached.

        Where an energy is linear in pieces, as of a network with ReLU alone, H is 0.
        """
        with torch.inference_mode(False), torch.enable_grad():
            point = self._point(x.clone() if x.is_inference() else x).requires_grad_()
            total, value = self._total(point)
            grad = _slope(total, point, create_graph=True)
            product = None
            if grad.requires_grad:
                (product,) = torch.autograd.grad(grad, point, grad.detach(), allow_unused=True)
        value = value.detach().view(x.shape[0]).to(x.dtype, copy=True)
        return value, grad.detach(), torch.zeros_like(grad) if product is None else product

    def _known(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the energy itself says, checked; both are copies."""
        if torch.is_grad_enabled():  # else leave out the 3 us of saying so again
            with torch.no_grad():
                return self._known(x)
        point = self._point(x)
        watched = not torch.compiler.is_compiling() and not point.is_inference()
        before = point._version if watched else 0
        pair: object = self.energy.value_and_gradient(point)  # type: ignore[attr-defined]
        if watched and point._version != before:
            raise EnergyError("value_and_gradient has changed its input: leave x as it is")
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise EnergyError(
                f"value_and_gradient returned a {type(pair).__name__}: return (U, grad U)"
            )
        value, grad = pair
        _check_one_per_chain(value, x)
        _check_gradient(grad, x)
        # Views of the state would change with it, and the energy may use its memory again.
        return _copy(value.view(x.shape[0]), x.dtype), _copy(grad, x.dtype)

    def _point(self, x: Tensor) -> Tensor:
        """Where to take the gradient: x, in the energy's memory format."""
        last = self.channels_last
        if prefers_channels_last(self.energy, x) if last is None else last:
            return x.detach().contiguous(memory_format=torch.channels_last)
        return x.detach()

    def _total(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the energies, and the energies."""
        if self.autocast is None:
            value = self.energy(point)
        else:
            with torch.autocast(point.device.type, self.autocast):
                value = self.energy(point)
        _check_one_per_chain(value, point)
        if not value.requires_grad:
            raise GradientError(_INDEPENDENT)
        return value.sum(), value


def _copy(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy in a dtype."""
    if t.dtype is dtype:  # half the time of what is more general
        return t.clone(memory_format=torch.contiguous_format)
    return t.to(dtype, memory_format=torch.contiguous_format)


def _slope(total: Tensor, point: Tensor, *, create_graph: bool = False) -> Tensor:
    try:
        (grad,) = torch.autograd.grad(total, point, create_graph=create_graph)
    except RuntimeError as error:
        if "appears to not have been used" not in str(error):
            raise
        raise GradientError(_INDEPENDENT) from error
    return grad


def _check_one_per_chain(value: object, x: Tensor) -> None:
    chains = x.shape[0]
    if not isinstance(value, Tensor):
        raise EnergyError(
            f"the energy returned a {type(value).__name__}: return one value per chain, a tensor of"
            f" shape ({chains},)"
        )
    if value.shape not in ((chains,), (chains, 1)):
        raise EnergyError(
            f"the energy returned shape {tuple(value.shape)}: return one value per chain, shape"
            f" ({chains},) or ({chains}, 1)"
        )
    if not value.is_floating_point():
        raise EnergyError(f"the energy returned {value.dtype}: return floating point values")


def _check_gradient(grad: object, x: Tensor) -> None:
    if not isinstance(grad, Tensor):
        raise EnergyError(f"value_and_gradient returned a {type(grad).__name__} for a gradient")
    if grad.shape != x.shape or not grad.is_floating_point():
        raise EnergyError(
            f"value_and_gradient returned a gradient of shape {tuple(grad.shape)} in {grad.dtype}:"
            f" return one of shape {tuple(x.shape)}, as the state has, in floating point"
        )


def _knows_its_gradient(energy: Energy) -> bool:
    """Whether ``value_and_gradient`` is there, and no older than the energy that is called."""
    if not callable(getattr(energy, "value_and_gradient", None)):
        return False
    # What overrides what, first to last: the object's own attributes, then its classes.
    owners = [getattr(energy, "__dict__", {}), *map(vars, type(energy).__mro__)]
    called = [
        i for i, owner in enumerate(owners) if "forward" in owner or (i and "__call__" in owner)
    ]
    known = [i for i, owner in enumerate(owners) if "value_and_gradient" in owner]
    return bool(known) and known[0] <= called[0]


def _has_hooks(energy: Energy) -> bool:
    return isinstance(energy, nn.Module) and bool(
        energy._forward_hooks
        or energy._forward_pre_hooks
        or energy._backward_hooks
        or energy._backward_pre_hooks
    )


def prefers_channels_last(energy: Energy, x: Tensor) -> bool:
    """The fixed rule: convolutions over images of two or more channels.

    On two CPU cores a 3x32x32 ConvNet's gradient takes 0.65 to 0.95 of its time in this format;
    with one channel the two formats are the same memory.
    """
    return (
        x.dim() == 4
        and x.shape[1] > 1
        and isinstance(energy, nn.Module)
        and any(isinstance(m, nn.Conv2d) for m in energy.modules())
    )


_lock = threading.Lock()
_held: dict[int, int] = {}  # id of what samplers hold still -> how many do


@contextlib.contextmanager
def undisturbed(energy: Energy, *, frozen: bool = True) -> Iterator[None]:
    """Run a module's energy in eval mode with frozen parameters, and leave no trace of it.

    Eval mode keeps BatchNorm statistics and spectral-norm vectors as they are, and dropout off:
    an energy that changes from step to step has no density. Frozen parameters save the memory
    that their gradients would need. Threads may sample one module; the last one restores it.
    """
    if not isinstance(energy, nn.Module):
        yield
        return
    ours: list[nn.Module | nn.Parameter] = []
    try:
        with _lock:
            parts: list[nn.Module | nn.Parameter] = [*energy.modules()]
            if frozen:
                parts += energy.parameters()
            for part in parts:
                if id(part) in _held or _is_live(part):
                    _held[id(part)] = _held.get(id(part), 0) + 1
                    ours.append(part)
                    _set_live(part, False)
        yield
    finally:
        with _lock:
            for part in ours:
                _held[id(part)] -= 1
                if not _held[id(part)]:
                    del _held[id(part)]
                    _set_live(part, True)


def _is_live(part: nn.Module | nn.Parameter) -> bool:
    return part.training if isinstance(part, nn.Module) else part.requires_grad


def _set_live(part: nn.Module | nn.Parameter, live: bool) -> None:
    if not isinstance(part, nn.Module):
        part.requires_grad_(live)
    elif type(part).__setattr__ is nn.Module.__setattr__:  # which looks for parameters, for 3 us
        object.__setattr__(part, "training", live)
    else:
        part.training = live
