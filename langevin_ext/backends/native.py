"""The step in C++ on a CPU (csrc/): vector instructions, threads, the bits of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C  # type: ignore[attr-defined]  # built by setup.py; its loader reports its absence
from .._types import (
    CARRIED,
    NOWHERE,
    AcceptSpec,
    ChainEnergy,
    ChainMove,
    ChainRecord,
    Coefficient,
    Decision,
    KineticSpec,
    MlpSpec,
    Point,
    Position,
    StepSpec,
    StepStats,
    Tally,
)
from ._memory import each

isas: tuple[str, ...] = _C.isas
"""Instruction sets compiled and supported here, best first."""

openmp: bool = _C.openmp
compiler: str = _C.compiler

plain_step = _C.plain_step
"""`langevin_step_` of nothing but plain arguments, all at once, or False and nothing done; None
where torch lacks DLPack's C exchange API. The step then goes the long way, through the checks."""

CHAIN_ENERGIES: tuple[str, ...] = _C.chain_energies
"""The analytic energies that have whole chains."""

CHAIN_RULES: tuple[str, ...] = _C.chain_rules
"""What `ChainMove.rule` may be."""

CHAIN_COLUMNS, CHAIN_COMPONENTS = _C.chain_limits
"""The most coordinates and components of those."""

_DTYPES = {
    (torch.float32, torch.float32): 0,
    (torch.float32, torch.bfloat16): 1,
    (torch.float32, torch.float16): 2,
    (torch.float64, torch.float64): 3,
}


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on the device; None if it can."""
    return None if device.type == "cpu" else f"its kernels are for the CPU, not for {device.type}"


def isa() -> str:
    """The instruction set in use."""
    return str(_C.isa())


def use_isa(name: str) -> None:
    """Use the kernels of one of `isas` from now on. They differ in speed,
    and of networks in the last bits."""
    if name not in isas:
        raise ValueError(f"instruction set {name!r}: this processor and build have {isas}")
    _C.use_isa(name)


def normals_in_registers(count: int) -> float:
    """Make ``count`` normals without storing them: the rate that bounds every step."""
    return float(_C.normals_in_registers(count))


# Each of the three finds out whether something that it reads shares memory with something that it
# writes. Then it does nothing and says so, and is given copies: addresses are at hand there, and a
# question in Python for every two tensors would cost more than a small state's whole step.


def step_(
    x: Tensor, grad: Tensor, step: StepSpec, stats: StepStats | None, out: Tensor | None = None
) -> None:
    """One step of ``x`` (B, ...), in place or to ``out`` apart from it; all of them contiguous."""
    if x.dtype == torch.float64 and grad.dtype != torch.float64:
        grad = grad.double()
    position, rows = step.position, x.shape[0]
    done = _C.step(
        _DTYPES[x.dtype, grad.dtype],
        x.data_ptr(),
        grad.data_ptr(),
        (x if out is None else out).data_ptr(),
        rows,
        x.numel() // rows if rows else 0,
        *[c if type(c) is float else _float_or_address(c) for c in step[:3]],
        step.reference_precision,
        step.low,
        step.high,
        int(2 * step.noise_power),
        step.per_coordinate,
        position is not None,
        *(position.on_host() if position else NOWHERE)[:4],
        *((0, 0, 0) if stats is None else [s.data_ptr() for s in stats]),
        torch.get_num_threads(),
    )
    if not done:
        step_(x, grad.clone(), StepSpec(*map(_copy, step)), stats, out)


def step_backward(
    cotangent: Tensor, x: Tensor, grad: Tensor, step: StepSpec, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of <cotangent, step> in x, grad, drift, diffusion and max_grad_norm, the last three
    (B,); None where they are not ``wanted``. All tensors contiguous, the results in x's dtype."""
    position, rows = step.position, x.shape[0]
    shapes = x.shape, x.shape, x.shape[:1], x.shape[:1], x.shape[:1]
    wanted = (True, *wanted[1:])  # the kernel's workplace
    results = [x.new_empty(s) if want else None for s, want in zip(shapes, wanted, strict=True)]
    _C.step_backward(
        x.dtype == torch.float64,
        cotangent.data_ptr(),
        x.data_ptr(),
        grad.data_ptr(),
        rows,
        x.numel() // rows,
        *[c if type(c) is float else _float_or_address(c) for c in step[:3]],
        step.reference_precision,
        step.low,
        step.high,
        int(2 * step.noise_power),
        step.per_coordinate,
        position is not None,
        *(position.on_host() if position else NOWHERE)[:4],
        *map(_address, results),
        torch.get_num_threads(),
    )
    return results


def accept_(at: Point, proposal: Point, accept: AcceptSpec, decision: Decision) -> None:
    """Move each chain ``at`` some point to its proposal, or leave it, in place."""
    x, log_ratio = at.x, accept.log_ratio
    rows = x.shape[0]
    done = _C.accept(
        x.dtype == torch.float64,
        *[t.data_ptr() for t in (*at, *proposal)],
        rows,
        x.numel() // rows if rows else 0,
        *[c if type(c) is float else _float_or_address(c) for c in accept[:3]],
        0 if log_ratio is None else log_ratio.data_ptr(),
        *accept.position.on_host()[:4],
        decision.log_ratio.data_ptr(),
        decision.accepted.data_ptr(),
        torch.get_num_threads(),
    )
    if not done:
        accept_(at, Point(*map(_copy, proposal)), AcceptSpec(*map(_copy, accept)), decision)


def kinetic_(
    x: Tensor,
    v: Tensor,
    grad: Tensor | None,
    spec: KineticSpec,
    energies: Tensor | None,
    stats: StepStats | None,
) -> None:
    """One pass over positions and velocities (B, ...), in place; all of them contiguous."""
    rows, position = x.shape[0], spec.position
    done = _C.kinetic(
        x.dtype == torch.float64,
        x.data_ptr(),
        v.data_ptr(),
        0 if grad is None else grad.data_ptr(),
        rows,
        x.numel() // rows if rows else 0,
        *[c if type(c) is float else _float_or_address(c) for c in spec[:6]],
        position is not None,
        *(position.on_host() if position else NOWHERE)[:4],
        0 if energies is None else energies.data_ptr(),
        *((0, 0, 0) if stats is None else [s.data_ptr() for s in stats]),
        torch.get_num_threads(),
    )
    if not done:
        kinetic_(x, v, _copy(grad), KineticSpec(*map(_copy, spec)), energies, stats)


def chain_(
    state: Any,
    energy: ChainEnergy | MlpSpec,
    move: ChainMove,
    steps: int,
    schedule: Tensor | None,
    position: Position,
    second_stream: int,
    frozen: Tensor | None,
    record: ChainRecord | None,
    tolerant: bool,
) -> int:
    """Many steps of a rule's state down an energy, in place; how many left all chains finite.

    With fewer than ``steps`` of them, what was to be written is in no certain state. The state's
    energy and statistics become those of the last step, ``schedule`` (m, steps) float64 has the
    move's first m coefficients at each, ``frozen`` (B,) bool says who stays. A ``tolerant`` call
    goes on whatever happens.
    """
    x = state.x
    first, sums, mean, squares, trajectory, every = record or (0, None, None, None, None, 1)
    totals = (None,) * 4 if sums is None else sums[:4]
    of_state = [getattr(state, name, None) for name in CARRIED]
    return int(
        _C.chain(
            x.dtype == torch.float64,
            network(energy) if isinstance(energy, MlpSpec) else _formula(energy),
            (
                CHAIN_RULES.index(move.rule),
                [c if type(c) is float else _float_or_address(c) for c in move.coefficients],
                _address(schedule),
                0 if schedule is None else len(schedule),
                move.reference_precision,
                move.low,
                move.high,
                int(2 * move.noise_power),
                move.per_coordinate,
                move.noisy,
                second_stream,
            ),
            tuple(map(_address, (x, *of_state, *state.stats, frozen))),
            (first, *map(_address, (*totals, mean, squares, trajectory)), every),
            x.shape[0],
            x.numel() // x.shape[0],
            steps,
            *position.on_host()[:4],
            tolerant,
            torch.get_num_threads(),
        )
    )


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


_ACTIVATIONS = "identity", "relu", "leaky", "silu", "tanh", "softplus"  # as csrc/mlp.h counts


def _formula(energy: ChainEnergy) -> tuple[int, int, int, int, float]:
    """An analytic energy as the kernels take it; its tensor must outlive the call."""
    kind, numbers = CHAIN_ENERGIES.index(energy.kind), energy.numbers
    return kind, energy.components, numbers.data_ptr(), numbers.numel(), energy.factor


def network(spec: MlpSpec) -> tuple[list[tuple[float, ...]], float]:
    """A network as the kernels take it; its tensors must outlive the call."""
    layers: list[tuple[float, ...]] = []
    for layer in spec.layers:
        weight, bias = layer.weight, layer.bias
        places = weight.data_ptr(), 0 if bias is None else bias.data_ptr()
        kind = _ACTIVATIONS.index(layer.activation)
        layers.append((*places, weight.shape[1], weight.shape[0], kind, *layer[3:]))
    return layers, spec.factor


def mlp_gradient(x: Tensor, spec: MlpSpec) -> tuple[Tensor, Tensor]:
    """U (B,) and its gradient at contiguous float32 states x (B, ...)."""
    u, g = x.new_empty(x.shape[0]), torch.empty_like(x)
    addresses = [t.data_ptr() for t in (x, u, g)]
    _C.mlp_gradient(*network(spec), *addresses, x.shape[0], torch.get_num_threads())
    return u, g


def tally_(sums: Tally, stats: StepStats, log_ratio: Tensor | None, weight: Tensor | None) -> None:
    """Add a step's record to the sums; ``log_ratio`` and ``weight`` (B,) where they have one."""
    like, dtype = sums.grad_norm, _real(stats.grad_norm)
    read = [each(stats.grad_norm, like, dtype), each(stats.gamma, like, dtype)]
    more = [None if t is None else each(t, like, torch.float64) for t in (log_ratio, weight)]
    addresses = [0 if t is None else t.data_ptr() for t in (*read, *more, *sums)]
    _C.tally(dtype is torch.float64, *addresses, len(like))


def all_finite(stats: StepStats, energy: Tensor) -> bool:
    """Whether a step left every chain, and found every energy, finite."""
    finite, dtype = each(stats.finite, stats.finite, torch.bool), _real(energy)
    energy, wide = each(energy, finite, dtype), dtype is torch.float64
    return bool(_C.all_finite(wide, finite.data_ptr(), energy.data_ptr(), finite.numel()))


def _real(t: Tensor) -> torch.dtype:
    """The type, of the two that the kernels know, in which a record is exact."""
    return torch.float32 if t.dtype is torch.float32 else torch.float64


def _float_or_address(value: Coefficient) -> float | int:
    """A coefficient that is not a float as the kernels take it: a tensor's address is an int."""
    return value.data_ptr() if isinstance(value, Tensor) else float(value)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def elementary(name: str, x: Tensor) -> Tensor:
    """The kernels' own "exp", "tanh", "log" or (float32) "softplus" of contiguous floats."""
    out = torch.empty_like(x)
    wide = x.dtype is torch.float64
    if not _C.elementary(name, wide, x.data_ptr(), out.data_ptr(), x.numel()):
        raise ValueError(f"no {name} of {x.dtype}")
    return out


def normal_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the standard normals at ``position``."""
    _C.normal(out.data_ptr(), *out.shape, *position.on_host()[:4], torch.get_num_threads())


def uniform_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the uniform numbers in (0, 1] at ``position``."""
    _C.uniform(out.data_ptr(), *out.shape, *position.on_host()[:4], torch.get_num_threads())
