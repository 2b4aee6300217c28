"""The step in C++ on a CPU (csrc/): vector instructions, threads, the bits of the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C  # type: ignore[attr-defined]  # built by setup.py; its loader reports its absence
from .._types import Position, StepSpec, StepStats
from ..errors import DeviceError

isas: tuple[str, ...] = _C.isas
"""Instruction sets compiled and supported here, best first."""

openmp: bool = _C.openmp
compiler: str = _C.compiler

plain_step = _C.plain_step
"""`langevin_step_` of nothing but plain arguments, all at once, or False and nothing done; None
where torch lacks DLPack's C exchange API. The step then goes the long way, through the checks."""

_NOWHERE = Position(0, 0, 0, 0)
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
    """Use the kernels of one of `isas` from now on. They differ in speed and in nothing else."""
    if name not in isas:
        raise ValueError(f"instruction set {name!r}: this processor and build have {isas}")
    _C.use_isa(name)


def normals_in_registers(count: int) -> float:
    """Make ``count`` normals without storing them: the rate that bounds every step."""
    return float(_C.normals_in_registers(count))


def _inside(value: Tensor, x: Tensor) -> bool:
    """Whether values share memory with the state that is about to change."""
    return -value.nbytes < value.data_ptr() - x.data_ptr() < x.nbytes


def _scalar_and_pointer(
    value: float | Tensor, written: list[Tensor], keep: list[Tensor]
) -> tuple[float, int]:
    """A coefficient as one number, or the address of many, kept alive in ``keep``."""
    if not isinstance(value, Tensor):
        return value, 0
    keep.append(value.clone() if any(_inside(value, t) for t in written) else value)
    return 0.0, keep[-1].data_ptr()


def step_(x: Tensor, grad: Tensor, step: StepSpec, stats: StepStats | None) -> None:
    """One step of ``x`` (B, ...) in place; both tensors contiguous."""
    if x.dtype == torch.float64 and grad.dtype != torch.float64:
        grad = grad.double()
    try:
        readable = x.data_ptr() and grad.data_ptr()
    except RuntimeError:
        readable = 0
    if not readable:  # fake tensors, torch's symbolic zeros, tensors under vmap
        raise DeviceError(
            "the state or its gradient has no memory of its own: pass tensors with values, and"
            " call langevin_step under vmap and torch.func"
        )
    # The kernel reads a gradient after writing the states before it.
    if _inside(grad, x) and (grad.data_ptr() != x.data_ptr() or grad.dtype != x.dtype):
        grad = grad.clone()
    drift, diffusion, bound, per_coordinate, power, rho, low, high, position = step
    written, keep = [x, *(stats or ())], list[Tensor]()
    rows = x.shape[0]
    _C.step(
        _DTYPES[x.dtype, grad.dtype],
        x.data_ptr(),
        grad.data_ptr(),
        rows,
        x.numel() // rows,
        *_scalar_and_pointer(drift, written, keep),
        *_scalar_and_pointer(diffusion, written, keep),
        *_scalar_and_pointer(bound, written, keep),
        rho,
        low,
        high,
        int(2 * power),
        per_coordinate,
        position is not None,
        *(position.on_host() if position else _NOWHERE)[:4],
        *((0, 0, 0) if stats is None else [s.data_ptr() for s in stats]),
        torch.get_num_threads(),
    )


def normal_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the standard normals at ``position``."""
    _C.normal(out.data_ptr(), *out.shape, *position.on_host()[:4], torch.get_num_threads())


def uniform_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the uniform numbers in (0, 1] at ``position``."""
    _C.uniform(out.data_ptr(), *out.shape, *position.on_host()[:4], torch.get_num_threads())
