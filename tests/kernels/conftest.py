"""Where the Triton kernels are tested: on a GPU, compiled, or on a CPU in Triton's interpreter.

The interpreter is chosen when triton is first imported, so it has a process of its own:
``TRITON_INTERPRET=1 python -m pytest tests/kernels``. A process with neither collects nothing.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_ext import backends, philox

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
collect_ignore_glob = ["test_*.py"]
if (INTERPRETED or torch.cuda.is_available()) and backends.why_not("triton", DEVICE) is None:
    collect_ignore_glob = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kernels" in item.path.parts:  # numpy, in the interpreter, where a GPU is silent
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))


@pytest.fixture(autouse=True)
def _exact_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's float64 square root may be off by one bit on a CPU; numpy's is not, nor a GPU's."""
    given = philox.sqrt

    def sqrt(t: Tensor) -> Tensor:
        return torch.from_numpy(np.sqrt(t.numpy())) if t.dtype == torch.float64 else given(t)

    monkeypatch.setattr(philox, "sqrt", sqrt)
