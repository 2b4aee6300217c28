"""Energies that are small networks, recognised: what kernels can run without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from ._types import MlpLayer, MlpSpec
from .energies import Scaled

_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_REPLACEABLE = {"forward", "_call_impl", "_slow_forward", "weight", "bias"}
_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    nn.Softplus: "softplus",
}


class _Refused(Exception):  # noqa: N818  # not an error: the answer to a question
    """Why an energy is not one of these."""


def mlp_of(energy: object, x: Tensor) -> MlpSpec | str:
    """The network that ``energy`` is at states ``x`` (B, ...), or why it is none: a short clause.

    An ``nn.Sequential`` (or one linear layer), nested or not, of linear layers, each followed by at
    most one of ReLU, LeakyReLU, SiLU, Tanh and Softplus, with one number at the end; in a `Scaled`
    or not. States of more than two dimensions need an ``nn.Flatten()`` at the front. It reads the
    module as it is now: ask again before each use, as layers, hooks and memory may change.

    Only what torch itself would compute is recognised: exact types, parameters in float32 on a CPU,
    no hooks, nothing replaced.
    """
    try:
        _check_surroundings(x)
        energy, factor = _unscaled(energy)
        if not isinstance(energy, nn.Module) or type(energy) not in (nn.Sequential, nn.Linear):
            raise _Refused(f"the energy is {_kind(energy)}, not an nn.Sequential")
        return MlpSpec(_layers([*_parts(energy)], x), factor)
    except _Refused as reason:
        return str(reason)


def unscaled(energy: object) -> tuple[object, float] | str:
    """What is in a `Scaled`, or the energy itself, and the factor; or why that is torch's."""
    try:
        return _unscaled(energy)
    except _Refused as reason:
        return str(reason)


def _unscaled(energy: object) -> tuple[object, float]:
    if type(energy) is not Scaled:
        return energy, 1.0
    _check_global_hooks()
    _check_untouched(energy)
    if type(energy.factor) not in (float, int):
        raise _Refused(f"its factor is {_kind(energy.factor)}, not a number")
    try:
        return energy.energy, float(energy.factor)
    except OverflowError:
        raise _Refused("its factor is larger than a float") from None


def _layers(parts: list[nn.Module], x: Tensor) -> tuple[MlpLayer, ...]:
    layers: list[MlpLayer] = []
    flat = x.dim() == 2
    width = math.prod(x.shape[1:])
    for i, part in enumerate(parts):
        _check_untouched(part)
        if type(part) is nn.Flatten:
            _check_flatten(part, last=i == len(parts) - 1)
            flat = True
        elif type(part) is nn.Linear:
            if not flat:
                raise _Refused(f"states of shape {tuple(x.shape)} need an nn.Flatten() in front")
            layers.append(_linear(part, width))
            width = part.out_features
        elif type(part) in _ACTIVATIONS:
            if not layers or layers[-1].activation != "identity":
                raise _Refused(f"{_kind(part)} does not follow a linear layer")
            layers[-1] = _followed(layers[-1], part)
        elif type(part) is not nn.Identity:
            raise _Refused(f"it contains {_kind(part)}")
    if not layers:
        raise _Refused("it has no linear layer")
    if width != 1:
        raise _Refused(f"its last layer has {width} outputs, not one")
    return tuple(layers)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """What runs, in order: sequences are taken apart."""
    if type(module) is not nn.Sequential:
        yield module
        return
    _check_untouched(module)
    for part in module._modules.values():
        if part is None:
            raise _Refused("it contains None")
        yield from _parts(part)


def _linear(part: nn.Linear, width: int) -> MlpLayer:
    weight, bias = (part._parameters.get(name, ()) for name in ("weight", "bias"))
    for name, t in (("weight", weight), ("bias", bias)):
        if t is None and name == "bias":
            continue
        if type(t) is not nn.Parameter:
            raise _Refused(f"a linear layer's {name} is no plain parameter")
        if t.dtype is not torch.float32 or t.device.type != "cpu":
            raise _Refused(f"a linear layer's {name} is {t.dtype} on {t.device}")
        if t.layout is not torch.strided or not t.is_contiguous() or t.is_neg():
            raise _Refused(f"a linear layer's {name} is not contiguous")
        if t.is_inference():
            raise _Refused(f"a linear layer's {name} was made in inference mode")
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    outputs = part.out_features
    if weight.shape != (outputs, width) or not weight.numel():
        shape = tuple(weight.shape)
        raise _Refused(f"a linear layer's weight is {shape} where ({outputs}, {width}) is needed")
    if bias is not None and bias.shape != (outputs,):
        raise _Refused(f"a linear layer's bias has shape {tuple(bias.shape)}")
    return MlpLayer(weight, bias, "identity")


def _followed(layer: MlpLayer, part: nn.Module) -> MlpLayer:
    layer = layer._replace(activation=_ACTIVATIONS[type(part)])
    if isinstance(part, nn.LeakyReLU):
        if part.inplace and part.negative_slope < 0:
            raise _Refused("torch has no gradient of an nn.LeakyReLU in place below slope 0")
        return layer._replace(slope=float(part.negative_slope))
    if isinstance(part, nn.Softplus):
        return layer._replace(beta=float(part.beta), threshold=float(part.threshold))
    return layer


def _check_flatten(part: nn.Flatten, *, last: bool) -> None:
    """It leaves (B, n) as it is, or makes (B,) of (B, 1) at the end."""
    ends = part.start_dim, part.end_dim
    if ends != (1, -1) and not (last and ends == (0, -1)):
        raise _Refused(f"it contains nn.Flatten{ends}")


def _check_surroundings(x: Tensor) -> None:
    if type(x) is not Tensor or x.dtype is not torch.float32 or x.device.type != "cpu":
        raise _Refused(f"the states are {_kind(x)} of {x.dtype} on {x.device}")
    if x.dim() < 2:
        raise _Refused("the states have fewer than two dimensions")
    if torch.is_autocast_enabled("cpu"):
        raise _Refused("autocast is on")
    _check_global_hooks()


def _check_global_hooks() -> None:
    if any(getattr(hooks, f"_global{name}") for name in _HOOKS):
        raise _Refused("hooks are registered on all modules")


def _check_untouched(module: nn.Module) -> None:
    """Calling it runs the ``forward`` of its class and nothing else, on its parameters."""
    if any(getattr(module, name) for name in _HOOKS):
        raise _Refused(f"{_kind(module)} has hooks")
    if replaced := _REPLACEABLE & vars(module).keys():
        raise _Refused(f"{_kind(module)} has a {min(replaced)} of its own")


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"
