"""The kernels beside the step in place: every engine has the reference's bits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_ext import StepStats, backends, philox
from langevin_ext._types import Position, StepSpec

from .conftest import DEVICE, assert_same_bits, normals

INF = float("inf")
POSITION = Position(0x1234567890ABCDEF, 2**32 - 1, 3, 2**31 - 5)
# Rows shorter than a register, than a chunk of 64, than a tile of 1024; of several blocks of 4096.
SHAPES = (
    (1, 1), (513, 1), (9000, 1), (511, 2), (5000, 2), (257, 3), (300, 4), (1000, 5), (7, 7),
    (300, 8), (100, 16), (33, 33), (9, 65), (17, 784), (3, 1000), (3, 4096), (17, 4097),
    (2, 12289), (1, 20000),
)  # fmt: skip
EACH_PATH = (700, 2), (40, 5), (9, 65), (5, 784), (2, 12289)
DTYPES = torch.float32, torch.float64


@pytest.fixture(autouse=True)
def _exact_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's float64 square root may be off by one bit on a CPU; numpy's is not, nor is C++'s."""
    given = philox.sqrt

    def sqrt(t: Tensor) -> Tensor:
        if t.dtype != torch.float64:
            return given(t)
        return torch.from_numpy(np.sqrt(t.cpu().numpy())).to(t.device)

    monkeypatch.setattr(philox, "sqrt", sqrt)


@pytest.fixture
def engine(backend: str) -> Any:
    """The functions of each backend in turn, the native one with each instruction set in use."""
    return backends.resolve(backend, DEVICE.type)


def per_chain(rows: int, low: float, high: float, dtype: torch.dtype) -> Tensor:
    """A different value for every chain, all of them between the two."""
    return torch.linspace(low, high, rows + 2, dtype=dtype)[1:-1].flip(0).contiguous()


def assert_same_numbers(got: Tensor, want: Tensor, what: object = "") -> None:
    """The same bits, but for which NaN a sum or product of NaNs is."""
    got, want = (t.where(t == t, torch.nan) for t in (got, want))
    assert_same_bits(got, want, what)


# ---- the step out of place ----------------------------------------------------------------------


def step_specs(rows: int, dtype: torch.dtype) -> dict[str, StepSpec]:
    plain = StepSpec(0.1, 0.3, 1.0, False, 0.5, 0.0, -INF, INF, POSITION)
    each = per_chain(rows, 0.0, 0.2, dtype)
    return {
        "plain": plain,
        "clamped": plain._replace(low=-0.7, high=0.3),
        "a value per chain": plain._replace(drift=each, diffusion=each, max_grad_norm=5 * each),
        "per coordinate": plain._replace(per_coordinate=True, reference_precision=0.5),
        "no noise": plain._replace(diffusion=0.0, position=None),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_out_of_place_is_that_in_place(dtype: torch.dtype, engine: Any) -> None:
    """The same bits, with and without statistics; the state and the gradient are left alone."""
    for (rows, cols), threads in itertools.product((*EACH_PATH, (600, 20)), (1, 2)):
        torch.set_num_threads(threads)
        x, grad = normals(rows, cols, dtype=dtype), normals(rows, cols, seed=1, dtype=dtype)
        for name, spec in step_specs(rows, dtype).items():
            for given in (True, False):
                what = name, (rows, cols), threads, given
                stats, more = (
                    StepStats.empty(rows, dtype=dtype) if given else None for _ in range(2)
                )
                want, state, gradient, out = x.clone(), x.clone(), grad.clone(), x * torch.nan
                engine.step_(want, gradient, spec, stats)
                engine.step_(state, gradient, spec, more, out)
                assert_same_bits(out, want, what)
                assert_same_bits(state, x, what)
                assert_same_bits(gradient, grad, what)
                for a, b in zip(more or (), stats or (), strict=True):
                    assert_same_bits(a, b, what)


def test_a_step_to_where_its_arguments_are(engine: Any) -> None:
    """Out may be the state itself or its gradient, reach into it, or hold the step sizes."""
    rows, cols = 40, 784
    x, grad = normals(rows, cols), normals(rows, cols, seed=1)
    spec = StepSpec(0.1, 0.3, 20.0, False, 0.5, 0.0, -INF, INF, POSITION)
    want = torch.empty_like(x)
    engine.step_(x, grad, spec, None, want)

    state = x.clone()
    engine.step_(state, grad, spec, None, state)
    assert_same_bits(state, want)
    for shift in (0, 1, 784):
        memory = torch.zeros(rows * cols + shift)
        gradient, out = memory[: rows * cols].view_as(x), memory[shift:].view_as(x)
        gradient.copy_(grad)
        engine.step_(x, gradient, spec, None, out)
        assert_same_bits(out, want, shift)
    out = torch.full_like(x, 0.1)
    engine.step_(x, grad, spec._replace(drift=out.view(-1)[:rows]), None, out)
    assert_same_bits(out, want)
