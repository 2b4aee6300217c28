"""The step as torch operators: for ``torch.compile``, ``torch.export``, ``vmap`` and autograd.

    langevin_ext::step_     in place, without a gradient
    langevin_ext::step      functional, differentiable in reverse mode as often as asked
    langevin_ext::step_backward   its derivative, differentiated no more
    langevin_ext::normal    the noise alone; and langevin_ext::uniform

A position is an int64 tensor ``[seed, step]``, on the CPU or on the state's device, which no
operator changes, and an offset from its step. A coefficient is a number, or the tensor beside it
if there is one. An eager in-place step does without all this: it is a plain call, see `step`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import backends
from ._check import (
    check_gradient,
    check_position,
    check_state,
    check_step,
    refuse_grad,
    refuse_tangents,
)
from ._derivative import step_gradients
from ._run import ready, refuse_repetition, run_
from ._types import Position, StepCall, StepSpec, StepStats
from .errors import ArgumentError, DeviceError, GradientError

_PLACE = "position, SymInt offset, int stream, SymInt first_chain, bool approximate"
_STEP = (
    f"Tensor grad, Tensor? {_PLACE}, float drift, Tensor? drift_tensor, float diffusion,"
    " Tensor? diffusion_tensor, float max_grad_norm, Tensor? max_grad_norm_tensor,"
    " bool per_coordinate, float noise_power, float reference_precision, float low, float high,"
    " str backend"
)
_STATS = "Tensor(b!)? grad_norm, Tensor(c!)? gamma, Tensor(d!)? finite"
_DRAW = f"(Tensor {_PLACE}, SymInt chains, SymInt columns, Device device, str backend) -> Tensor"

library = torch.library.Library("langevin_ext", "DEF")  # type: ignore[no-untyped-call]
for schema in (
    f"step_(Tensor(a!) x, {_STEP}, {_STATS}) -> ()",
    f"step(Tensor x, {_STEP}, bool with_stats) -> (Tensor, Tensor, Tensor, Tensor)",
    f"step_backward(Tensor cotangent, Tensor x, {_STEP}, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"normal{_DRAW}",
    f"uniform{_DRAW}",
):
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]


def _position(
    origin: Tensor,
    offset: int,
    stream: int,
    first_chain: int,
    approximate: bool,
    device: torch.device,
) -> Position:
    if origin.dtype != torch.int64 or origin.shape != (2,) or not origin.is_contiguous():
        raise ArgumentError(
            f"position is {origin.dtype} of shape {tuple(origin.shape)}: give int64 [seed, step]"
        )
    elsewhere = device.type, origin.device.index if device.index is None else device.index
    if not origin.is_cpu and (origin.device.type, origin.device.index) != elsewhere:
        raise DeviceError(f"the noise is on {origin.device}, the state on {device}")
    position = Position(0, offset, stream, first_chain, origin, approximate)
    return position.on_host() if origin.is_cpu else position


def _implement(name: str, function: Any, fake: Any) -> None:
    library.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"langevin_ext::{name}", fake, lib=library)


# ---- the noise -----------------------------------------------------------------------------------


def _draw(law: str) -> Any:
    def draw(
        position: Tensor,
        offset: int,
        stream: int,
        first_chain: int,
        approximate: bool,
        chains: int,
        columns: int,
        device: torch.device,
        backend: str,
    ) -> Tensor:
        place = _position(position, offset, stream, first_chain, approximate, device)
        check_position(place, chains, columns)
        if device.type == "cuda":
            refuse_repetition(place)
        out = torch.empty(chains, columns, dtype=torch.float32, device=device)
        if out.numel():
            getattr(backends.resolve(backend, device.type), law)(out, place)
        return out

    return draw


def _draw_fake(*arguments: Any) -> Tensor:
    chains, columns, device = arguments[5:8]
    return torch.empty(chains, columns, dtype=torch.float32, device=device)


_implement("normal", _draw("normal_"), _draw_fake)
_implement("uniform", _draw("uniform_"), _draw_fake)
normal, uniform = torch.ops.langevin_ext.normal, torch.ops.langevin_ext.uniform

# ---- the step ------------------------------------------------------------------------------------


def _spec(x: Tensor, call: StepCall, stats: StepStats | None) -> StepSpec:
    """The call, checked."""
    position = None
    if call.position is not None:
        position = _position(
            call.position, call.offset, call.stream, call.first_chain, call.approximate, x.device
        )
    return check_step(
        x, call.grad, *call.coefficients, call.per_coordinate, call.noise_power,
        call.reference_precision, call.low, call.high, position, stats,
    )  # fmt: skip


def _run_call_(x: Tensor, call: StepCall, stats: StepStats | None) -> None:
    step = _spec(x, call, stats)
    run_(x, call.grad, step, stats, ready(x, call.grad, step, call.backend))


def _step_(x: Tensor, *arguments: Any) -> None:
    call = StepCall(*arguments[:-3])
    if torch.is_grad_enabled():
        refuse_grad(x, call.grad, *call.coefficients)
    given = [t is not None for t in arguments[-3:]]
    if any(given) and not all(given):
        raise ArgumentError("give all three of grad_norm, gamma and finite, or none")
    _run_call_(x, call, StepStats(*arguments[-3:]) if all(given) else None)


def _step(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call, with_stats = StepCall(*arguments[:-1]), arguments[-1]
    y = x.clone()
    stats = StepStats.empty(x.shape[0] if with_stats else 0, x.device, x.dtype)
    _run_call_(y, call, stats if with_stats else None)
    return y, *stats


def _step_in_place_fake(x: Tensor, *arguments: Any) -> None:
    check_state(x)
    check_gradient(x, arguments[0])


def _step_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_state(x)
    check_gradient(x, arguments[0])
    chains = x.shape[0] if arguments[-1] else 0
    return torch.empty_like(x), *StepStats.empty(chains, x.device, x.dtype)


_implement("step_", _step_, _step_in_place_fake)
_implement("step", _step, _step_fake)


# ---- its derivative ------------------------------------------------------------------------------

_LEARNED = "x", "grad", "drift_tensor", "diffusion_tensor", "max_grad_norm_tensor"


def _torch_gradients(cotangent: Tensor, x: Tensor, call: StepCall) -> tuple[Tensor, ...]:
    noise = None
    if call.position is not None:
        place = call[1:6]
        noise = normal(*place, x.shape[0], x.shape[1:].numel(), x.device, call.backend)
    return step_gradients(cotangent, x, noise, call)


def _step_backward(cotangent: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """By a kernel where the backend has one."""
    call, wants = StepCall(*arguments[:-1]), arguments[-1]
    chosen: Any = backends.resolve(call.backend, x.device.type)
    if not hasattr(chosen, "step_backward") or not x.numel():
        results: Any = _torch_gradients(cotangent, x, call)
    else:
        states = (t.resolve_neg().to(x.dtype).contiguous() for t in (cotangent, x, call.grad))
        results = chosen.step_backward(*states, _spec(x, call, None), wants)
    shapes = x.shape, x.shape, *[x.shape[:1]] * 3
    return tuple(
        t.view(shape) if want else x.new_empty(0)
        for t, shape, want in zip(results, shapes, wants, strict=True)
    )


def _step_backward_fake(cotangent: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    shapes = x.shape, x.shape, *[x.shape[:1]] * 3
    return tuple(
        x.new_empty(shape if want else (0,))
        for shape, want in zip(shapes, arguments[-1], strict=True)
    )


_implement("step_backward", _step_backward, _step_backward_fake)


class _Step(torch.autograd.Function):
    """The step to autograd: the backward pass makes the noise again from its position."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.langevin_ext.step(*inputs)
        _Step.setup(ctx, inputs, output)
        return output

    @staticmethod
    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, *arguments, _ = inputs
        place = arguments[1] if arguments[1] is None else arguments[1].clone()  # it may move on
        tensors = [a if isinstance(a, Tensor) else None for a in arguments]
        ctx.save_for_backward(x, *tensors[:1], place, *tensors[2:])
        ctx.others = [None if isinstance(a, Tensor) else a for a in arguments]
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        call = StepCall(*(o if t is None else t for t, o in zip(tensors, ctx.others, strict=True)))
        wanted = dict(zip(("x", *StepCall._fields), ctx.needs_input_grad, strict=False))
        wants = [wanted[name] for name in _LEARNED]
        if torch.is_grad_enabled() or is_transformed():  # it may be differentiated again
            results: Any = _torch_gradients(outputs[0], x, call)
        else:
            run: Any = torch.ops.langevin_ext.step_backward
            if not is_traced(outputs[0], x, call.grad):  # a dispatcher's 30 us
                run = _step_backward
            results = run(outputs[0], x, *call, wants)
        gradients: dict[str, Tensor | None] = dict.fromkeys(("x", *StepCall._fields))
        for name, gradient, want in zip(_LEARNED, results, wants, strict=True):
            if want:
                value = x if name == "x" else getattr(call, name)
                gradients[name] = gradient.sum_to_size(value.shape).to(value)
        return *gradients.values(), None


class _TransformedStep(_Step):
    """The same to torch.func, which looks into a Function of this form but not into an operator.

    This form takes torch 20 us longer to call.
    """

    @staticmethod
    def forward(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.langevin_ext.step(*inputs)

    setup_context = _Step.setup

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise GradientError("a step has no forward-mode derivative: differentiate in reverse")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        """The mapped axis is not a chain axis: the chains of every slice have the same noise."""
        if not info.batch_size:
            x, d = arguments[0], in_dims[0]
            shape = x.shape if d is None else x.movedim(d, 0).shape[1:]
            chains = shape[0] if arguments[-1] else 0
            empty = (x.new_empty(0, *shape), *StepStats.empty(chains, x.device, x.dtype))
            return tuple(t.new_empty(0, *t.shape[t is empty[0] :]) for t in empty), (0, 0, 0, 0)
        slices = [
            step(
                *(
                    a if d is None else a.select(d, i)
                    for a, d in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        return tuple(map(torch.stack, zip(*slices, strict=True))), (0, 0, 0, 0)


def _step_with_autograd(*inputs: Any) -> Any:
    refuse_tangents(*inputs)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
        return _Step.apply(*inputs)  # type: ignore[no-untyped-call]
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.langevin_ext.step(*inputs)


library.impl("step", _step_with_autograd, "Autograd")  # type: ignore[no-untyped-call]
torch.library.register_vmap("langevin_ext::step", _TransformedStep.vmap, lib=library)


def is_traced(*tensors: Tensor) -> bool:
    """Whether somebody watches for operators: a compiler, a tracer, a mode, a class of tensors."""
    return (
        torch.compiler.is_compiling()
        or any(type(t) is not Tensor for t in tensors)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or forward_ad._current_level >= 0
    )


def is_transformed() -> bool:
    """Whether a transform of torch.func, vmap among them, is at work."""
    return torch._C._are_functorch_transforms_active()


def step(*arguments: Any) -> Any:
    """langevin_ext::step, under torch.func too."""
    if not torch.compiler.is_compiling() and is_transformed():
        return _TransformedStep.apply(*arguments)  # type: ignore[no-untyped-call]
    return torch.ops.langevin_ext.step(*arguments)
