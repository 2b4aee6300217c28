"""Where the Triton kernels are tested: on a GPU, compiled, or on a CPU in Triton's interpreter.

The interpreter is chosen when triton is first imported, so it has a process of its own:
``TRITON_INTERPRET=1 python -m pytest tests/kernels``. A process with neither collects nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_ext import backends, philox

from .. import conftest
from ..conftest import CPU

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
ASKED = INTERPRETED or torch.cuda.is_available()
NO_TRITON = backends.why_not("triton", DEVICE) if ASKED else "not asked for"
collect_ignore_glob = ["test_*.py"] if NO_TRITON else []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if INTERPRETED and NO_TRITON and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK  # `make test` where there is no triton
        print(f"\nnot tested: {NO_TRITON}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:  # numpy warns where a GPU is silent
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))


@pytest.fixture(autouse=True)
def _data_on_the_host() -> Iterator[None]:
    """Whatever the default device: a test moves to `DEVICE` what the kernels get."""
    with CPU:
        yield


@pytest.fixture(autouse=True)
def _exact_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's float64 square root may be off by one bit on a CPU; numpy's is not, nor a GPU's."""
    given = philox.sqrt

    def sqrt(t: Tensor) -> Tensor:
        return torch.from_numpy(np.sqrt(t.numpy())) if t.dtype == torch.float64 else given(t)

    monkeypatch.setattr(philox, "sqrt", sqrt)


def normals(*shape: int, seed: int = 0) -> Tensor:
    """Standard normals on the host: test data, not the noise under test."""
    return conftest.normals(*shape, seed=seed).cpu()


def eighths(rows: int, cols: int, seed: int = 0) -> Tensor:
    """Multiples of 1/8 in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, (rows, cols), generator=generator) / 8


def there(value: Any, device: torch.device = DEVICE) -> Any:
    """Copies of tensors, alone or in tuples, on the device under test."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, tuple):
        parts = [there(v, device) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
