"""The kernels beside the step in place: every engine has the reference's bits."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_ext import StepStats, backends, philox
from langevin_ext._types import KineticSpec, Position, StepSpec
from langevin_ext.backends import reference

from .conftest import DEVICE, assert_same_bits, native, normals

INF = math.inf
POSITION = Position(0x1234567890ABCDEF, 2**32 - 1, 3, 2**31 - 5)
# Rows shorter than a register, than a chunk of 64, than a tile of 1024; of several blocks of 4096.
SHAPES = (
    (1, 1), (513, 1), (1030, 1), (1, 2), (511, 2), (4200, 2), (257, 3), (300, 4), (1000, 5), (7, 7),
    (300, 8), (100, 16), (33, 33), (9, 65), (12, 784), (3, 1000), (2, 4096), (17, 513), (3, 4097),
    (1, 20000),
)  # fmt: skip
EACH_PATH = (130, 2), (40, 5), (9, 65), (3, 784), (2, 4097)
SERIAL = 8192  # fewer elements than this are never shared
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


@pytest.fixture
def kernels(isa: str) -> Any:
    """The functions of the native backend, each instruction set in use in turn."""
    assert native.isa() == isa
    return native


def use_threads(engine: Any, threads: int) -> None:
    """As many threads for the native backend; the others have their own ways."""
    torch.set_num_threads(threads if engine is native else 1)


def threads_for(shape: tuple[int, int]) -> tuple[int, ...]:
    return (1, 2) if math.prod(shape) >= SERIAL else (1,)


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
    use_threads(engine, 2)
    for rows, cols in (*EACH_PATH, (600, 20)):
        x, grad = normals(rows, cols, dtype=dtype), normals(rows, cols, seed=1, dtype=dtype)
        for name, spec in step_specs(rows, dtype).items():
            for given in (True, False):
                what = name, (rows, cols), given
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


# ---- a kinetic pass -----------------------------------------------------------------------------

NOTHING = KineticSpec(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, POSITION)
EVERYTHING = KineticSpec(0.1, 0.2, 0.9, 0.3, 0.15, 0.25, POSITION)
PASSES: dict[str, KineticSpec] = {
    "everything": EVERYTHING,
    "nothing": NOTHING,
    "kick": NOTHING._replace(kick=0.1),
    "drift": NOTHING._replace(drift=0.1),
    "kick and drift": NOTHING._replace(second_kick=0.1, second_drift=0.2, position=None),
    "drift, refresh, drift": EVERYTHING._replace(kick=0.0, second_kick=0.0),
    "drift twice": NOTHING._replace(drift=0.1, second_drift=0.2),
    "refresh": NOTHING._replace(keep=0.9, spread=0.3),
    "damp": NOTHING._replace(keep=0.9, position=None),
    "damp, noise of size 0": NOTHING._replace(keep=0.9),
    "noise": NOTHING._replace(spread=0.3),
    "a spread without noise": NOTHING._replace(spread=0.3, position=None),
    "forget": NOTHING._replace(keep=0.0, spread=0.3, second_kick=0.1),
    "forget, no noise": NOTHING._replace(keep=0.0, position=None),
    "minus zero": EVERYTHING._replace(kick=-0.0, keep=-0.0),
    "less than the least float32": EVERYTHING._replace(kick=1e-60, keep=1e-60),
}
EACH = {"kick": 0.2, "drift": -0.3, "keep": 1.0, "spread": 0.5, "second_kick": 0.4,
        "second_drift": 0.1}  # fmt: skip
"""Fields of a value per chain, between 0 and these, instead of a number."""
VARYING = {"everything per chain": tuple(EACH), "keep per chain": ("keep",),
           "the kicks per chain": ("kick", "second_kick")}  # fmt: skip


def kinetic_spec(name: str, rows: int, dtype: torch.dtype) -> KineticSpec:
    each = {f: per_chain(rows, 0.0, EACH[f], dtype) for f in VARYING.get(name, ())}
    return PASSES.get(name, EVERYTHING)._replace(**each)


Kinetic = tuple[Tensor, Tensor, "Tensor | None", "StepStats | None"]


def passed(
    engine: Any, x: Tensor, v: Tensor, grad: Tensor | None, spec: KineticSpec, recorded: bool = True
) -> Kinetic:
    """Positions, velocities, energies and statistics after a pass over copies."""
    x, v, rows = x.clone(), v.clone(), x.shape[0]
    energies = torch.full((2, rows), -1.0, dtype=torch.float64) if recorded else None
    stats = StepStats(*(t.fill_(7) for t in StepStats.empty(rows, dtype=x.dtype)))
    engine.kinetic_(x, v, grad, spec, energies, stats if recorded else None)
    return x, v, energies, stats if recorded else None


def assert_same_pass(got: Kinetic, want: Kinetic, what: object) -> None:
    for name, a, b in zip(("x", "v", "energies"), got, want, strict=False):
        if a is not None and b is not None:
            assert_same_numbers(a, b, (what, name))
    for name, a, b in zip(StepStats._fields, got[3] or (), want[3] or (), strict=False):
        assert_same_numbers(a, b, (what, name))


def phase(rows: int, cols: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, velocities and a gradient."""
    x, v, g = (normals(rows, cols, seed=k, dtype=dtype) for k in range(3))
    return x, v, g


@functools.cache
def expected_pass(shape: tuple[int, int], name: str, dtype: torch.dtype) -> Kinetic:
    return passed(reference, *phase(*shape, dtype), kinetic_spec(name, shape[0], dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_of_a_pass_has_the_bits_of_the_reference(
    shape: tuple[int, int], kernels: Any
) -> None:
    names = "everything", "everything per chain", "kick and drift"
    for name, dtype, threads in itertools.product(names, DTYPES, threads_for(shape)):
        spec, want = kinetic_spec(name, shape[0], dtype), expected_pass(shape, name, dtype)
        torch.set_num_threads(threads)
        for recorded in (True, False):
            got = passed(kernels, *phase(*shape, dtype), spec, recorded)
            assert_same_pass(got, want, (name, dtype, threads, recorded))


@pytest.mark.parametrize("name", [*PASSES, *VARYING])
def test_every_pass_has_the_bits_of_the_reference(name: str, kernels: Any) -> None:
    for shape, dtype in itertools.product(EACH_PATH, DTYPES):
        x, v, grad = phase(*shape, dtype)
        spec = kinetic_spec(name, shape[0], dtype)
        torch.set_num_threads(2)
        for recorded in (True, False):
            got = passed(kernels, x, v, grad, spec, recorded)
            assert_same_pass(got, expected_pass(shape, name, dtype), (shape, dtype, recorded))
        if name in ("drift", "refresh", "drift, refresh, drift"):
            want = passed(reference, x, v, None, spec)
            assert_same_pass(passed(kernels, x, v, None, spec), want, (shape, "no gradient"))


@pytest.mark.parametrize("name", ["everything", "everything per chain", "kick and drift"])
def test_a_pass_is_its_equation(name: str, engine: Any) -> None:
    """Positions and velocities within 1e-14, which is 20 roundings; energies within 1e-12."""
    rows, cols = 30, 70
    x, v, grad = phase(rows, cols, torch.float64)
    spec = kinetic_spec(name, rows, torch.float64)
    k, t, c, s, k2, t2 = (
        torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1) for value in spec[:6]
    )
    noise = torch.empty(rows, cols)
    engine.normal_(noise, POSITION)
    kicked = v - k * grad
    refreshed = c * kicked + s * noise.double()
    velocity = refreshed - k2 * grad
    position = x + t * kicked + t2 * velocity
    got_x, got_v, energies, stats = passed(engine, x, v, grad, spec)
    assert (got_x - position).abs().max() < 1e-14
    assert (got_v - velocity).abs().max() < 1e-14
    assert energies is not None
    for energy, of in zip(energies, (refreshed, velocity), strict=True):
        torch.testing.assert_close(energy, of.square().sum(1) / 2, rtol=1e-12, atol=0)
    assert stats is not None
    torch.testing.assert_close(stats.grad_norm, grad.norm(dim=1), rtol=1e-12, atol=0)
    assert (stats.gamma == 1).all()
    assert stats.finite.all()


@pytest.mark.parametrize("value", [math.nan, INF, 1e30], ids=str)
@pytest.mark.parametrize("where", ["x", "v", "grad", *EACH])
def test_a_bad_chain_of_a_pass_is_alone(where: str, value: float, engine: Any) -> None:
    """It is reported, and the reference's; the others are those of a clean run to the bit."""
    for rows, cols in EACH_PATH:
        x, v, grad = phase(rows, cols, torch.float32)
        spec = kinetic_spec("everything per chain", rows, torch.float32)
        use_threads(engine, 2)
        clean = passed(engine, x, v, grad, spec)
        bad = rows // 2
        if where in EACH:
            getattr(spec, where)[bad] = value
        else:
            {"x": x, "v": v, "grad": grad}[where][bad, cols - 1] = value
        got = passed(engine, x, v, grad, spec)
        if engine is native:
            assert_same_pass(got, passed(reference, x, v, grad, spec), (rows, cols))
        assert got[3] is not None
        assert clean[3] is not None
        assert got[3].finite[bad] == (got[0][bad].isfinite() & got[1][bad].isfinite()).all()
        others = torch.arange(rows) != bad
        for a, b in zip((*got[:2], *got[3]), (*clean[:2], *clean[3]), strict=True):
            assert_same_bits(a[others], b[others])


def test_forgetting_forgets_what_is_not_finite(engine: Any) -> None:
    x, v, grad = phase(5, 9, torch.float32)
    want = passed(engine, x, v, grad, PASSES["forget"])
    got = passed(engine, x, v * math.nan, grad, PASSES["forget"])
    assert_same_pass(got, want, "forget")


def test_the_gradient_of_a_pass_may_be_its_state(engine: Any) -> None:
    """U = |x|**2 / 2 may hand back x itself; memory that is shared in part is as good."""
    rows = 40
    for (cols, of), shift in itertools.product(((65, "x"), (784, "v")), (0, 1, 65)):
        memory = normals(rows * cols + shift, seed=3)
        state, grad = (memory[at:][: rows * cols].view(rows, cols) for at in (0, shift))
        other = normals(rows, cols)
        x, v = (state, other) if of == "x" else (other, state)
        want = passed(engine, x, v, grad.clone(), EVERYTHING)
        energies, stats = torch.empty(2, rows, dtype=torch.float64), StepStats.empty(rows)
        engine.kinetic_(x, v, grad, EVERYTHING, energies, stats)
        assert_same_pass((x, v, energies, stats), want, (of, shift))


def test_coefficients_of_a_pass_may_be_what_it_writes(engine: Any) -> None:
    """A step size that is a view of the state, or a statistic, is that of before the pass."""
    rows, cols = 600, 3
    x, v, grad = phase(rows, cols, torch.float32)
    stats = StepStats.empty(rows)
    stats.grad_norm.fill_(0.1)
    spec = EVERYTHING._replace(
        kick=x.view(-1)[:rows], keep=v.view(-1)[-rows:], drift=stats.grad_norm
    )
    copies = spec._replace(kick=spec.kick.clone(), keep=spec.keep.clone(), drift=0.1)  # type: ignore[union-attr]
    want = passed(engine, x, v, grad, copies)
    engine.kinetic_(x, v, grad, spec, None, stats)
    assert_same_pass((x, v, None, stats), want, "views")


@pytest.mark.parametrize("shape", [(3, 0), (5,), (2, 3, 4)], ids=str)
def test_a_pass_over_any_shape(shape: tuple[int, ...], engine: Any) -> None:
    """No coordinates, one axis, many: those of (B, D)."""
    flat = (shape[0], math.prod(shape[1:]))
    for name in PASSES:
        x, v, grad = (normals(*shape, seed=k) for k in range(3))
        want = passed(engine, *(t.view(flat) for t in (x, v, grad)), PASSES[name])
        got = passed(engine, x, v, grad, PASSES[name])
        got = (got[0].view(flat), got[1].view(flat), *got[2:])
        assert_same_pass(got, want, name)
        if 0 in shape:
            assert [t.tolist() for t in got[3] or ()] == [[0.0] * 3, [1.0] * 3, [True] * 3]
            assert (got[2] == 0).all()


def test_a_pass_over_no_chains(kernels: Any) -> None:
    x = torch.zeros(0, 3)
    passed(kernels, x, x.clone(), x.clone(), EVERYTHING)
