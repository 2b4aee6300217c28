"""The backends of the fused step, resolved by name when first used.

Each is a module with the functions of `Backend`; the native one has a short way to plain steps
besides. An explicit name works or raises `BackendError`; ``"auto"`` takes the fastest that fits the
device and says so once if that is the reference.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from .._types import AcceptSpec, Decision, KineticSpec, Point, Position, StepSpec, StepStats, Tally
from ..errors import ArgumentError, BackendError, FallbackWarning

NAMES = "triton", "native", "reference"
_FASTEST = {"cuda": "triton", "cpu": "native"}


class Backend(Protocol):
    def unavailable(self, device: torch.device) -> str | None: ...
    def step_(
        self,
        x: Tensor,
        grad: Tensor,
        step: StepSpec,
        stats: StepStats | None,
        out: Tensor | None = None,
    ) -> None: ...
    def accept_(
        self, at: Point, proposal: Point, accept: AcceptSpec, decision: Decision
    ) -> None: ...
    def kinetic_(
        self,
        x: Tensor,
        v: Tensor,
        grad: Tensor | None,
        spec: KineticSpec,
        energies: Tensor | None,
        stats: StepStats | None,
    ) -> None: ...
    def tally_(
        self, sums: Tally, stats: StepStats, log_ratio: Tensor | None, weight: Tensor | None
    ) -> None: ...
    def all_finite(self, stats: StepStats, energy: Tensor) -> bool: ...
    def normal_(self, out: Tensor, position: Position) -> None: ...
    def uniform_(self, out: Tensor, position: Position) -> None: ...


@functools.cache
def _load(name: str) -> Backend | str:
    """The backend's module, or why it cannot be imported."""
    try:
        return importlib.import_module(f".{name}", __name__)
    except ImportError as error:
        return f"{error}; {build_report() if name == 'native' else 'pip install triton'}"


def build_record() -> dict[str, Any]:
    """What setup.py wrote about the native build; empty when nothing was recorded."""
    file = Path(__file__).parents[1] / "_build.json"
    return json.loads(file.read_text()) if file.exists() else {}


def build_report() -> str:
    """The native build in one sentence."""
    record = build_record()
    if record.get("error"):
        return f"the native build failed at installation: {record['error']}"
    if record.get("requested") == "none":
        return "the native part was left out at installation (LANGEVIN_BUILD=none)"
    return "the native part was built" if record.get("built") else "no native build is recorded"


def why_not(name: str, device: torch.device) -> str | None:
    """Why a backend cannot be used on a device; None if it can."""
    backend = _load(name)
    return backend if isinstance(backend, str) else backend.unavailable(device)


def _level_of_the_caller() -> int:
    """How far up the stack this package was called, as seen from `resolve`."""
    package = __name__.partition(".")[0]
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame and (
        frame.f_code.co_filename.startswith("<eval_with_key>")  # code of torch.fx
        or frame.f_globals.get("__name__", "torch").partition(".")[0] in (package, "torch")
    ):
        level, frame = level + 1, frame.f_back
    return level


@functools.cache
def resolve(name: str, device_type: str) -> Backend:
    """The backend for a name and a device type.

    Raises:
        ArgumentError: the name is not ``"auto"`` or one of `NAMES`.
        BackendError: an explicit name that cannot work here; the message says what is missing.
    """
    device = torch.device(device_type)
    if name == "auto":
        name = _FASTEST.get(device_type, "reference")
        reason = "there are no kernels for it" if name == "reference" else why_not(name, device)
        if reason:
            warnings.warn(
                f"langevin_ext runs its plain torch reference on {device_type}, which is slow;"
                f" {name}: {reason}",
                FallbackWarning,
                stacklevel=_level_of_the_caller(),
            )
            name = "reference"
    elif name not in NAMES:
        raise ArgumentError(f"backend={name!r}: give 'auto' or one of {NAMES}")
    elif reason := why_not(name, device):
        raise BackendError(f"backend {name!r} cannot be used on {device_type}: {reason}")
    backend = _load(name)
    assert not isinstance(backend, str)
    return backend


@functools.cache
def plain_step() -> Callable[..., bool] | None:
    """The short way for plain steps on a CPU, if there is one: see `native.plain_step`."""
    return getattr(_load("native"), "plain_step", None)


def available(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """Every backend, and why it cannot be used on ``device`` (None: it can)."""
    return {name: why_not(name, torch.device(device)) for name in NAMES}
