"""The kernels beside the step in place: every engine has the reference's bits."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from langevin_ext import StepStats, backends, philox
from langevin_ext._types import AcceptSpec, Decision, KineticSpec, Point, Position, StepSpec
from langevin_ext.backends import reference

from .conftest import DEVICE, ISAS, assert_same_bits, native, normals

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
            for recorded in (True, False):
                what = name, (rows, cols), recorded
                stats, more = (
                    StepStats.empty(rows, dtype=dtype) if recorded else None for _ in range(2)
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


def test_noise_beyond_a_row_cannot_overflow_in_it(engine: Any) -> None:
    """A spread so large that only coordinates that there are not would overflow."""
    rows, cols, padded = 60, 784, 832
    noise = torch.empty(rows, padded)
    engine.normal_(noise, POSITION)
    inside, beyond = noise[:, :cols].abs().amax(1), noise[:, cols:].abs().amax(1)
    (found,) = (beyond > inside * 1.01).nonzero(as_tuple=True)
    assert len(found) > 0
    x = torch.zeros(1, cols)
    for row in found.tolist():
        spread = torch.finfo(torch.float32).max / (0.5 * (inside + beyond)[row].item())
        place = POSITION._replace(first_chain=POSITION.first_chain + row)
        spec = NOTHING._replace(keep=0.0, spread=spread, position=place)
        _, v, _, stats = passed(engine, x, x, None, spec)
        assert v.isfinite().all()
        assert stats is not None
        assert stats.finite.all()


@pytest.mark.parametrize("cols", [1, 2, 3, 8, 20, 100])
def test_a_step_size_of_minus_zero_keeps_its_sign(cols: int, engine: Any) -> None:
    minus_zero, one = torch.full((5, cols), -0.0), torch.ones(5, cols)
    for sign in (0.0, -0.0):
        kick = torch.full((5,), sign)
        _, v, _, _ = passed(engine, one, minus_zero, one, NOTHING._replace(kick=kick))
        assert_same_bits(v, minus_zero - kick[:, None] * one)


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


def test_energies_and_statistics_are_asked_for_apart(kernels: Any) -> None:
    """What one of them is does not hang on whether the other is recorded."""
    for shape, name in itertools.product(EACH_PATH, ("everything", "forget", "kick")):
        x, v, grad = phase(*shape, torch.float32)
        want = passed(kernels, x, v, grad, PASSES[name])
        energies = torch.empty(2, shape[0], dtype=torch.float64)
        stats = StepStats.empty(shape[0])
        kernels.kinetic_(x.clone(), v.clone(), grad, PASSES[name], energies, None)
        kernels.kinetic_(x, v, grad, PASSES[name], None, stats)
        assert_same_pass((x, v, energies, stats), want, (shape, name))


def test_a_pass_over_no_chains(kernels: Any) -> None:
    x = torch.zeros(0, 3)
    passed(kernels, x, x.clone(), x.clone(), EVERYTHING)


# ---- accept or reject ---------------------------------------------------------------------------

DRIFT, DIFFUSION = 0.05, 0.3
CLIPPED = "clipped", "a bound per chain", "everything per chain, clipped"
LAWS = ("number", "given", "a value per chain", *CLIPPED)


def points(rows: int, cols: int, dtype: torch.dtype) -> tuple[Point, Point]:
    """Chains and proposals whose ratios are near 1; half of the gradients have norms above 1."""
    scale = (0.3 * normals(rows, 1, seed=9, dtype=torch.float64)).exp() / math.sqrt(max(cols, 1))
    x, g, xi, change = (normals(rows, cols, seed=k, dtype=torch.float64) for k in range(4))
    g = g * scale
    y = x - DRIFT * g + DIFFUSION * xi
    energies = (normals(rows, seed=k, dtype=torch.float64) for k in (4, 5))
    (e, e_y), g_y = energies, -g + change * scale / math.sqrt(max(cols, 1))
    at, there = (Point(*(t.to(dtype) for t in p)) for p in ((x, g, e), (y, g_y, e_y)))
    return at, there


def accept_spec(name: str, rows: int, dtype: torch.dtype) -> AcceptSpec:
    number = AcceptSpec(DRIFT, DIFFUSION, INF, None, POSITION)
    drift, diffusion, bound = (per_chain(rows, 0.5 * v, v, dtype) for v in (0.1, 0.4, 2.0))
    every_other = bound.where(torch.arange(rows) % 2 > 0, INF)
    return {
        "number": number,
        "given": number._replace(log_ratio=normals(rows, seed=6, dtype=torch.float64)),
        "a value per chain": number._replace(drift=drift, diffusion=diffusion),
        "clipped": number._replace(max_grad_norm=1.0),
        "a bound per chain": number._replace(max_grad_norm=every_other),
        "everything per chain, clipped": AcceptSpec(drift, diffusion, bound, None, POSITION),
    }[name]


def decided(engine: Any, at: Point, there: Point, spec: AcceptSpec) -> tuple[Point, Decision]:
    """Where copies of the chains are after the decision, and the decision; proposals unharmed."""
    at, before = Point(*(t.clone() for t in at)), Point(*(t.clone() for t in there))
    rows = at.x.shape[0]
    decision = Decision(torch.full((rows,), 7.0, dtype=torch.float64), torch.ones(rows) > 0)
    engine.accept_(at, there, spec, decision)
    for a, b in zip(there, before, strict=True):
        assert_same_bits(a, b, "proposal")
    return at, decision


def assert_selected(got: Point, old: Point, new: Point, accepted: Tensor, what: object) -> None:
    """Every accepted chain is its proposal, every other as it was, to the bit."""
    for name, a, b, c in zip(Point._fields, got, old, new, strict=True):
        moves = accepted.view(-1, *[1] * (a.dim() - 1))
        assert_same_bits(a, torch.where(moves, c, b), (what, name))


@functools.cache
def expected_decision(shape: tuple[int, int], name: str, dtype: torch.dtype) -> Decision:
    spec = accept_spec(name, shape[0], dtype)
    return decided(reference, *points(*shape, dtype), spec)[1]


def assert_decides_as_the_reference(
    kernels: Any, shape: tuple[int, int], name: str, dtype: torch.dtype
) -> None:
    """The reference's bits; where it takes logarithms of scales, its value within 1e-12."""
    at, there = points(*shape, dtype)
    want, what = expected_decision(shape, name, dtype), (name, shape, dtype)
    got, decision = decided(kernels, at, there, accept_spec(name, shape[0], dtype))
    if name in CLIPPED:  # relative to the logarithms of the scales, of which each is a coordinate's
        bound = 1e-12 * want.log_ratio.abs() + 4e-15 * shape[1]
        assert ((decision.log_ratio - want.log_ratio).abs() <= bound).all(), what
    else:
        assert_same_bits(decision.log_ratio, want.log_ratio, what)
    assert_same_bits(decision.accepted, want.accepted, what)
    assert_selected(got, at, there, want.accepted, what)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_is_decided_as_by_the_reference(shape: tuple[int, int], kernels: Any) -> None:
    names = "number", "given", "clipped"
    for name, dtype, threads in itertools.product(names, DTYPES, threads_for(shape)):
        torch.set_num_threads(threads)
        assert_decides_as_the_reference(kernels, shape, name, dtype)


@pytest.mark.parametrize("name", LAWS)
def test_every_law_is_decided_as_by_the_reference(name: str, kernels: Any) -> None:
    for shape, dtype in itertools.product((*EACH_PATH, (1000, 1), (600, 2), (90, 10)), DTYPES):
        assert_decides_as_the_reference(kernels, shape, name, dtype)


def test_about_half_of_the_proposals_are_accepted() -> None:
    """So that the comparisons above say something of both."""
    for shape, name in itertools.product([(130, 2), (90, 10), (40, 5)], LAWS):
        accepted = expected_decision(shape, name, torch.float32).accepted.double().mean()
        assert 0.2 < accepted < 0.8, (shape, name)


@pytest.mark.parametrize("name", LAWS)
def test_a_decision_is_its_equation(name: str, engine: Any) -> None:
    """The ratio of normal densities within 1e-11, and the uniform number's verdict on it."""
    for rows, cols in ((60, 1), (60, 3), (20, 70)):
        at, there = points(rows, cols, torch.float64)
        spec = accept_spec(name, rows, torch.float64)
        a, s, b = (torch.as_tensor(c, dtype=torch.float64).expand(rows)[:, None] for c in spec[:3])

        def log_density(
            to: Tensor, start: Tensor, g: Tensor, a: Tensor = a, s: Tensor = s, b: Tensor = b
        ) -> Tensor:
            gamma = (b / g.norm(dim=1, keepdim=True)).clamp(max=1)
            scale = (s * gamma.sqrt()).expand_as(to)
            return torch.distributions.Normal(start - a * gamma * g, scale).log_prob(to).sum(1)

        ratio = spec.log_ratio
        if ratio is None:
            ratio = log_density(at.x, there.x, there.grad) - log_density(there.x, at.x, at.grad)
        want = at.energy - there.energy + ratio
        got, decision = decided(engine, at, there, spec)
        torch.testing.assert_close(decision.log_ratio, want, rtol=1e-11, atol=1e-11)
        uniform = torch.empty(rows, 1)
        engine.uniform_(uniform, POSITION)
        log_uniform = uniform[:, 0].double().log()
        clear = (log_uniform - want).abs() > 1e-6
        assert clear.double().mean() > 0.9
        assert torch.equal(decision.accepted[clear], (log_uniform <= want)[clear])
        assert_selected(got, at, there, decision.accepted, (rows, cols))


def test_a_ratio_of_scales_is_accurate(engine: Any) -> None:
    """What does not move has the ratio of the scales alone, whatever their size: 2 roundings."""
    exponents = torch.linspace(-80, 80, 400, dtype=torch.float64)
    norms, others = 10.0**exponents, 10.0 ** exponents.flip(0).roll(7) * 1.7
    nowhere, energy = (
        torch.zeros(400, 1, dtype=torch.float64),
        torch.zeros(400, dtype=torch.float64),
    )
    at, there = (Point(nowhere, n[:, None], energy) for n in (norms, others))
    spec = AcceptSpec(0.0, 3.0, 1e-80, None, POSITION)
    _, decision = decided(engine, at, there, spec)
    want = [(math.log(n) - math.log(m)) / 2 for n, m in zip(others, norms, strict=True)]
    torch.testing.assert_close(
        decision.log_ratio, torch.tensor(want, dtype=torch.float64), rtol=0, atol=3e-13
    )


WRONG = {  # where, what -> the log of the ratio
    "proposal": ("there.x", math.nan, -INF),
    "proposal too far": ("there.x", INF, -INF),
    "gradient there": ("there.grad", math.nan, -INF),
    "infinite gradient there": ("there.grad", -INF, -INF),
    "energy there": ("there.energy", math.nan, -INF),
    "infinite energy there": ("there.energy", INF, -INF),
    "energy there without bound": ("there.energy", -INF, -INF),
    "state": ("at.x", math.nan, -INF),
    "gradient": ("at.grad", math.nan, -INF),
    "energy": ("at.energy", math.nan, math.nan),
    "infinite energy": ("at.energy", INF, INF),
    "ratio": ("ratio", math.nan, -INF),
    "infinite ratio": ("ratio", INF, -INF),
    "impossible ratio": ("ratio", -INF, -INF),
}
LOOKED_AT = [
    (wrong, name)
    for wrong, name in itertools.product(WRONG, ("number", "given", "clipped"))
    if "energy" in wrong or ("ratio" in wrong) == (name == "given")
]
"""A state or gradient is not looked at where the ratio is given."""


@pytest.mark.parametrize(("wrong", "name"), LOOKED_AT)
def test_a_bad_proposal_is_rejected_alone(wrong: str, name: str, engine: Any) -> None:
    """It leaves its chain as it was; the other chains are those of a clean run to the bit."""
    where, value, want = WRONG[wrong]
    of, _, field = where.partition(".")
    for (rows, cols), dtype in itertools.product((*EACH_PATH, (90, 10)), DTYPES):
        at, there = points(rows, cols, dtype)
        spec = accept_spec(name, rows, dtype)
        clean, _ = decided(engine, at, there, spec)
        bad, others = rows // 2, torch.arange(rows) != rows // 2
        if of == "ratio":
            assert spec.log_ratio is not None
            spec.log_ratio[bad] = value
        else:
            getattr({"at": at, "there": there}[of], field)[bad].view(-1)[-1] = value
        got, decision = decided(engine, at, there, spec)
        assert_same_numbers(decision.log_ratio[bad], torch.tensor(want, dtype=torch.float64))
        assert decision.accepted[bad] == (want == INF)
        assert_selected(got, at, there, decision.accepted, (rows, cols))
        for a, b in zip(got, clean, strict=True):
            assert_same_bits(a[others], b[others], (rows, cols))


def test_a_scale_that_is_no_scale_is_rejected(engine: Any) -> None:
    """NaN, infinite or 0 in a tensor, or a square beyond float64: no law, no move."""
    at, there = points(6, 3, torch.float64)
    diffusion = torch.tensor([math.nan, INF, 0.0, -0.3, 1e-170, 0.3], dtype=torch.float64)
    for bound in (INF, 0.01):
        spec = AcceptSpec(DRIFT, diffusion, bound, None, POSITION)
        _, decision = decided(engine, at, there, spec)
        assert decision.log_ratio[:5].tolist() == [-INF] * 5, bound
        assert not decision.accepted[:5].any()
        assert decision.log_ratio[5].isfinite()


def test_an_accepted_chain_has_the_bits_of_its_proposal(engine: Any) -> None:
    """Signs of zeros and payloads of NaNs in the gradient too, where the ratio is given."""
    for rows, cols in ((700, 2), (40, 5), (5, 784)):
        at, there = points(rows, cols, torch.float32)
        there.grad.view(torch.int32)[:, 0] = torch.tensor(0x7FC01234, dtype=torch.int32)
        at.x[:, -1] = -0.0
        spec = accept_spec("given", rows, torch.float32)
        for sign, moves in ((100.0, True), (-100.0, False)):
            given = torch.full((rows,), sign, dtype=torch.float64)
            got, decision = decided(engine, at, there, spec._replace(log_ratio=given))
            assert (decision.accepted == moves).all()
            for a, b in zip(got, there if moves else at, strict=True):
                assert_same_bits(a, b)


def test_what_a_decision_reads_may_be_what_it_writes(engine: Any) -> None:
    """Step sizes in the state, a ratio where the ratio goes, proposals in the chains' memory."""
    rows, cols = 600, 3
    at, there = points(rows, cols, torch.float32)
    spec = accept_spec("given", rows, torch.float32)
    assert spec.log_ratio is not None
    want, decision = decided(engine, at, there, spec)
    memory, ratio = Point(*(t.clone() for t in at)), spec.log_ratio.clone()
    accepted = torch.zeros(rows) > 0
    engine.accept_(memory, there, spec._replace(log_ratio=ratio), Decision(ratio, accepted))
    for a, b in zip((*memory, ratio, accepted), (*want, *decision), strict=True):
        assert_same_bits(a, b)

    scale = (1.0 + torch.rand(rows, cols)) / 3
    at = at._replace(x=scale)
    spec = AcceptSpec(DRIFT, scale.view(-1)[:rows].clone(), INF, None, POSITION)
    want, decision = decided(engine, at, there, spec)
    memory = Point(*(t.clone() for t in at))
    again = Decision(torch.empty(rows, dtype=torch.float64), torch.zeros(rows) > 0)
    engine.accept_(memory, there, spec._replace(diffusion=memory.x.view(-1)[:rows]), again)
    for a, b in zip((*memory, *again), (*want, *decision), strict=True):
        assert_same_bits(a, b)

    shared = normals((rows + 5) * cols)
    at = at._replace(x=shared[: rows * cols].view(rows, cols))
    there = there._replace(x=shared[5 * cols :].view(rows, cols))
    want, _ = decided(
        engine, at, Point(*(t.clone() for t in there)), accept_spec("number", rows, torch.float32)
    )
    engine.accept_(at, there, accept_spec("number", rows, torch.float32), again)
    assert_same_bits(at.x, want.x)


@pytest.mark.parametrize("shape", [(3, 0), (50,), (20, 3, 4)], ids=str)
def test_a_decision_over_any_shape(shape: tuple[int, ...], engine: Any) -> None:
    """No coordinates, one axis, many: those of (B, D)."""
    rows, cols = shape[0], math.prod(shape[1:])
    at, there = points(rows, cols, torch.float32)
    for name in LAWS:
        spec = accept_spec(name, rows, torch.float32)
        want, decision = decided(engine, at, there, spec)
        shaped = [Point(p.x.view(shape), p.grad.view(shape), p.energy) for p in (at, there)]
        got, again = decided(engine, shaped[0], shaped[1], spec)
        for a, b in zip((*got, *again), (*want, *decision), strict=True):
            assert_same_bits(a.view(b.shape), b, name)
        if cols == 0:
            energies = (at.energy.double() - there.energy.double()) + (
                spec.log_ratio if spec.log_ratio is not None else 0.0
            )
            assert_same_bits(decision.log_ratio, energies)


def test_a_decision_over_no_chains(kernels: Any) -> None:
    at, there = points(0, 3, torch.float32)
    for name in LAWS:
        decided(kernels, at, there, accept_spec(name, 0, torch.float32))


# ---- memory -------------------------------------------------------------------------------------

MARGIN = 71
"""More elements than a kernel holds in registers; odd, so that no register is aligned in memory."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_beside_what_is_written_is_left_alone(dtype: torch.dtype, kernels: Any) -> None:
    beside: list[Tensor] = []

    def enclosed(t: Tensor) -> Tensor:
        """A copy of the tensor with margins before and after it."""
        edge = MARGIN * t.element_size()
        memory = torch.full((t.nbytes + 2 * edge,), 0x5A, dtype=torch.uint8)
        beside.extend((memory[:edge], memory[-edge:]))
        return memory[edge:-edge].view(t.dtype).view(t.shape).copy_(t)

    for shape in (*EACH_PATH, (1030, 1), (90, 10), (3, 1000)):
        rows, name, law = shape[0], "everything per chain", "a value per chain"
        x, v, grad = phase(*shape, dtype)
        x, v, energies = map(enclosed, (x, v, torch.empty(2, rows, dtype=torch.float64)))
        stats = StepStats(*map(enclosed, StepStats.empty(rows, dtype=dtype)))
        kernels.kinetic_(x, v, grad, kinetic_spec(name, rows, dtype), energies, stats)
        assert_same_pass((x, v, energies, stats), expected_pass(shape, name, dtype), shape)

        old, there = points(*shape, dtype)
        want = expected_decision(shape, law, dtype)
        at, decision = Point(*map(enclosed, old)), Decision(*map(enclosed, want))
        kernels.accept_(at, there, accept_spec(law, rows, dtype), decision)
        assert_same_bits(decision.log_ratio, want.log_ratio, shape)
        assert_selected(at, old, there, want.accepted, shape)
    for edge in beside:
        assert (edge == 0x5A).all()


# ---- random arguments ---------------------------------------------------------------------------

ODD = (0.0, -0.0, 1e-45, 1e-38, 1e-30, 1e19, 1e30, 3.4e38, INF, -INF, math.nan)


@st.composite
def moves(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor], KineticSpec, AcceptSpec, int]:
    """Four arrays, two energies, what to do with them, and threads: legal if not sensible."""
    cols = draw(st.integers(0, 80) | st.sampled_from([127, 128, 129, 449, 512, 1000, 4097]))
    rows = draw(st.integers(1, 40) if cols < 500 else st.integers(1, 3))
    dtype, data = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32))
    arrays = [normals(rows, cols, seed=data + k, dtype=dtype) for k in range(4)]
    energies = [normals(rows, seed=data + k, dtype=dtype) for k in range(4, 6)]
    for t in (*arrays, *energies):
        for _ in range(draw(st.integers(0, 2)) if t.numel() else 0):
            t.view(-1)[draw(st.integers(0, t.numel() - 1))] = draw(st.sampled_from(ODD))

    def coefficient(least: float, most: float) -> Any:
        if draw(st.booleans()):
            return draw(st.floats(least, most) | st.sampled_from([0.0, 1.0]))
        values = draw(
            st.lists(st.floats(least, most) | st.sampled_from(ODD), min_size=3, max_size=3)
        )
        return torch.tensor(values, dtype=dtype)[(torch.arange(rows) * data) % 3]

    place = Position(
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(0, 2**48 - 2)),
        draw(st.integers(0, 2**16 - 1)),
        draw(st.integers(0, 2**32 - 64)),
    )
    six = [coefficient(-1.0, 1.0) for _ in range(6)]
    kinetic = KineticSpec(*six, draw(st.sampled_from([None, place])))
    bound = INF if draw(st.booleans()) else coefficient(0.1, 3.0)
    accept = AcceptSpec(coefficient(0.0, 0.1), coefficient(0.1, 0.5), bound, None, place)
    return arrays, energies, kinetic, accept, draw(st.integers(1, 3))


@pytest.mark.skipif(native is None, reason="nothing to compare")
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(moves())
def test_random_moves_agree(
    case: tuple[list[Tensor], list[Tensor], KineticSpec, AcceptSpec, int],
) -> None:
    """Every instruction set has the reference's bits, but for logarithms of scales."""
    (x, v, grad, y), (e, e_y), kinetic, accept, threads = case
    at, there, bound = Point(x, grad, e), Point(y, v, e_y), accept.max_grad_norm
    want, (to, decision) = (
        passed(reference, x, v, grad, kinetic),
        decided(reference, at, there, accept),
    )
    for isa in ISAS:
        native.use_isa(isa)
        torch.set_num_threads(threads)
        assert_same_pass(passed(native, x, v, grad, kinetic), want, isa)
        got, again = decided(native, at, there, accept)
        if isinstance(bound, Tensor) or bound != INF:
            torch.testing.assert_close(
                again.log_ratio, decision.log_ratio, rtol=1e-12, atol=1e-13 * (1 + x.shape[1]),
                equal_nan=True,
            )  # fmt: skip
        else:
            assert_same_numbers(again.log_ratio, decision.log_ratio, isa)
        assert_same_bits(again.accepted, decision.accepted, isa)
        for a, b in zip(got, to, strict=True):
            assert_same_bits(a, b, isa)
    torch.set_num_threads(1)
