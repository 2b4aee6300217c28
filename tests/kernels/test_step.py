"""The step of the kernels: with the same norm the reference's bits, and the norm within 8 ulp.

Gradients here are multiples of 1/8, so a sum of squares is exact in any order and everything after
it has one right answer to the last bit, unless a test says otherwise.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from langevin_ext import Noise, StepStats, langevin_step, langevin_step_
from langevin_ext._types import Position, StepSpec
from langevin_ext.backends import available, reference, triton as kernels

from ..conftest import assert_same_bits
from .conftest import DEVICE, INTERPRETED, eighths, normals, there

INF, NAN = math.inf, math.nan
SINGLE, DOUBLE = torch.float32, torch.float64
# One and two tiles of short rows; rows of one tile, with and without a tail, with and without
# 16-byte accesses; rows cut into tiles. The kernels change at 128, 256, 512 and 16384 columns.
SHAPES = (
    (1030, 1), (600, 2), (300, 3), (300, 4), (130, 5), (130, 8), (9, 100), (9, 127), (9, 128),
    (5, 129), (5, 255), (5, 256), (5, 257), (3, 511), (3, 512), (3, 513), (2, 784), (2, 1000),
    (2, 1024), (2, 3072), (2, 4096), (2, 4097), (2, 16384), (2, 16385), (3, 20480),
)  # fmt: skip
EACH_PATH = (300, 3), (9, 100), (2, 784), (1, 20001)
PRECISIONS = {
    "float32": (SINGLE, SINGLE),
    "bfloat16 gradient": (SINGLE, torch.bfloat16),
    "float16 gradient": (SINGLE, torch.float16),
    "float64": (DOUBLE, DOUBLE),
    "float64, bfloat16 gradient": (DOUBLE, torch.bfloat16),
    "float64, float16 gradient": (DOUBLE, torch.float16),
}
PLACE = Position(0x1234567890ABCDEF, 2**32 - 1, 3, 2**31 - 5)


def state_and_gradient(rows: int, cols: int, precision: str = "float32") -> tuple[Tensor, Tensor]:
    dtype, grad_dtype = PRECISIONS[precision]
    return normals(rows, cols).to(dtype), eighths(rows, cols).to(grad_dtype)


def spec(**given: Any) -> StepSpec:
    return StepSpec(
        **{
            "drift": 0.1,
            "diffusion": 0.3,
            "max_grad_norm": INF,
            "per_coordinate": False,
            "noise_power": 0.5,
            "reference_precision": 0.0,
            "low": -INF,
            "high": INF,
            "position": PLACE,
        }
        | given
    )


def options(rows: int, cols: int, dtype: torch.dtype = SINGLE) -> dict[str, StepSpec]:
    """Every option, with a bound that clips about half of the chains, or of the coordinates."""
    bound = math.sqrt(0.375 * cols)
    each = torch.linspace(0.0, 1.0, rows + 1, dtype=dtype)[1:].flip(0)
    coordinate = {"per_coordinate": True, "max_grad_norm": 0.5}
    tensors: dict[str, Any] = {"drift": 0.2 * each, "diffusion": each / 2}
    some = (2 * bound * each).where(torch.arange(rows) % 3 > 0, INF)
    return {
        "plain": spec(),
        "clipped": spec(max_grad_norm=bound),
        "everything": spec(
            **tensors, max_grad_norm=some, reference_precision=1 / 3, low=-0.7, high=0.9
        ),
        "per coordinate": spec(**coordinate),
        "clipped drift alone": spec(max_grad_norm=bound, noise_power=0.0),
        "clipped noise by gamma": spec(max_grad_norm=bound, noise_power=1.0),
        "a value per chain": spec(**tensors, max_grad_norm=2 * bound * each),
        "a drift per chain": spec(drift=0.2 * each),
        "a bound per chain, per coordinate": spec(
            per_coordinate=True, max_grad_norm=each, noise_power=1.0, high=0.5
        ),
        "per coordinate, drift alone": spec(**coordinate, noise_power=0.0),
        "per coordinate, nothing clipped": spec(per_coordinate=True),
        "reference measure": spec(max_grad_norm=bound, reference_precision=1 / 3),
        "clamped below": spec(low=-0.1),
        "clamped above": spec(high=0.1),
        "no noise": spec(max_grad_norm=bound, diffusion=0.0, position=None),
        "no noise, nothing else": spec(diffusion=0.0, position=None),
    }


def stepped(
    x: Tensor, grad: Tensor, step: StepSpec, *, stats: bool = True, backend: Any = kernels
) -> tuple[Tensor, StepStats | None]:
    """The state after a step on a copy, and what the step recorded; both on the host."""
    x = x.clone()
    if backend is kernels:
        x, grad, step = (there(value) for value in (x, grad, step))
    record = StepStats.empty(x.shape[0], x.device, x.dtype) if stats else None
    if record is not None:
        record.finite.view(torch.uint8).fill_(7)  # neither of its values
    backend.step_(x, grad, step, record)
    return x.cpu(), record and StepStats(*(t.cpu() for t in record))


def stepped_elsewhere(x: Tensor, grad: Tensor, step: StepSpec) -> Tensor:
    """What a step writes to another tensor, if it leaves the state as it was."""
    was, grad, step = (there(value) for value in (x, grad, step))
    out = torch.full_like(was, 7.0)
    kernels.step_(was, grad, step, None, out)
    assert_same_bits(was.cpu(), x)
    return out.cpu()


def check(x: Tensor, grad: Tensor, step: StepSpec, what: object = "") -> None:
    """The reference's bits in the state, with statistics and without, in place and elsewhere, and
    in the statistics.

    But for the mean of gamma over coordinates, a sum that is not exact: to 8 roundings.
    """
    want, recorded = stepped(x, grad, step, backend=reference)
    got, record = stepped(x, grad, step)
    alone = stepped_elsewhere(x, grad, step)
    assert_same_bits(got, want, what)
    assert_same_bits(alone, want, (what, "elsewhere, without statistics"))
    assert record is not None
    assert recorded is not None
    assert_same_bits(record.finite, recorded.finite, what)
    for name in ("grad_norm", "gamma"):
        a, b = (getattr(r, name) for r in (record, recorded))
        a, b = (t.where(t == t, NAN) for t in (a, b))  # whichever NaN it is
        if name == "gamma" and step.per_coordinate:
            eps = torch.finfo(x.dtype).eps
            torch.testing.assert_close(a, b, rtol=8 * eps, atol=0, equal_nan=True)
        else:
            assert_same_bits(a, b, (what, name))


# ---- the reference's bits -----------------------------------------------------------------------


@pytest.mark.parametrize("option", ["plain", "everything", "per coordinate"])
def test_every_shape_has_the_bits_of_the_reference(option: str) -> None:
    for shape in SHAPES:
        x, grad = state_and_gradient(*shape)
        check(x, grad, options(*shape)[option], shape)


@pytest.mark.parametrize("option", list(options(1, 1)))
def test_every_option_has_the_bits_of_the_reference(option: str) -> None:
    for shape in EACH_PATH:
        x, grad = state_and_gradient(*shape)
        check(x, grad, options(*shape)[option], shape)


@pytest.mark.parametrize("precision", list(PRECISIONS)[1:])
def test_every_precision_has_the_bits_of_the_reference(precision: str) -> None:
    dtype = PRECISIONS[precision][0]
    for shape in ((300, 3), (9, 100), (2, 784), (1, 8193)):  # float64 is cut after 8192
        x, grad = state_and_gradient(*shape, precision)
        for option in ("plain", "everything", "per coordinate"):
            check(x, grad, options(*shape, dtype)[option], (shape, option))


def test_numbers_keep_their_precision() -> None:
    """A Python number reaches a float64 state as float64, and a float32 state rounded once."""
    third = 1 / 3
    for dtype in (SINGLE, DOUBLE):
        x, grad = normals(3, 5).to(dtype), eighths(3, 5).to(dtype)
        step = spec(
            drift=third, diffusion=third, max_grad_norm=third, reference_precision=third,
            low=-third, high=third,
        )  # fmt: skip
        check(x, grad, step, dtype)
        check(x, grad, step._replace(drift=1e-40, diffusion=1e-42, max_grad_norm=1e-41), "tiny")


# ---- the norm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_norm_is_within_8_ulp(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its value, from float64 terms added without rounding. gamma is what the reference makes
    of that norm, and the state what it makes of that gamma."""
    dtype = PRECISIONS[precision][0]
    clip_factor = reference.clip_factor
    for rows, cols in ((300, 3), (9, 127), (3, 784), (2, 16384), (1, 150528)):
        x = normals(rows, cols).to(dtype)
        grad = (normals(rows, cols, seed=1) / math.sqrt(cols)).to(dtype)
        step = spec(max_grad_norm=1.0)
        got, record = stepped(x, grad, step)
        assert record is not None
        exact = [math.sqrt(math.fsum(g * g for g in row)) for row in grad.double().tolist()]
        want = torch.tensor(exact, dtype=DOUBLE)
        ulp = torch.finfo(dtype).eps * 2.0 ** want.log2().floor()
        assert bool(((record.grad_norm.double() - want).abs() <= 8 * ulp).all()), (rows, cols)
        gamma = clip_factor(record.grad_norm, torch.ones(rows, dtype=dtype))
        assert_same_bits(record.gamma, gamma, (rows, cols))
        with monkeypatch.context() as patch:
            patch.setattr(reference, "clip_factor", lambda *_, gamma=gamma: gamma[:, None])
            assert_same_bits(got, stepped(x, grad, step, backend=reference)[0], (rows, cols))


def test_the_partial_sums_of_a_very_long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than partial sums: each takes several, the last fewer."""
    monkeypatch.setattr(kernels, "_MOST_PARTS", 3)
    for shape in ((2, 16385), (1, 20001), (1, 28672)):  # 5 and 7 tiles in 3 sums, 7 full ones
        x, grad = state_and_gradient(*shape)
        for option in ("everything", "a bound per chain, per coordinate"):
            check(x, grad, options(*shape)[option], (shape, option))


def test_roundings_do_not_add_up_in_a_very_long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal terms, which all err to one side: 300 of them in one lane, as in a row of 6e8."""
    monkeypatch.setattr(kernels, "_MOST_PARTS", 1)
    cols, value = 300 * 4096, torch.tensor(0.7548777, dtype=SINGLE)
    _, record = stepped(torch.zeros(1, cols), value.expand(1, cols).contiguous(), spec())
    want = math.sqrt(cols) * value.item()
    assert record is not None
    assert abs(record.grad_norm.item() - want) <= 8 * 2.0**-23 * 2.0 ** math.floor(math.log2(want))


# ---- values that are not finite -----------------------------------------------------------------


def test_the_rules_for_values_that_are_not_finite() -> None:
    """NaN exactly where the rule says, whatever the clamp; other chains as if nothing happened."""
    sample, coordinate = {"max_grad_norm": 1.0}, {"max_grad_norm": 1.0, "per_coordinate": True}
    cases: tuple[tuple[str, float, dict[str, Any], str], ...] = (
        ("x", NAN, sample, "coordinate"),
        ("x", -INF, {}, "coordinate"),
        ("grad", NAN, {}, "coordinate"),
        ("grad", INF, coordinate, "coordinate"),
        ("grad", -INF, sample, "chain"),
        ("grad", NAN, sample, "chain"),
        ("grad", 1e20, sample, "chain"),  # the norm overflows
        ("grad", 1e20, {}, "nothing"),
        ("grad", 1e20, coordinate, "nothing"),
    )
    for rows, cols in ((5, 3), (9, 100), (2, 784), (2, 16385)):
        clean, grad = state_and_gradient(rows, cols)
        col = cols // 3 if cols > 1000 else cols - 1  # in neither the first nor the last tile
        undisturbed = {
            str(o): stepped(clean, grad, spec(low=-1.0, high=1.0, **o))[0]
            for o in ({}, sample, coordinate)
        }
        for where, value, option, spread in cases:
            step = spec(low=-1.0, high=1.0, **option)
            tensors = {"x": clean.clone(), "grad": grad.clone()}
            tensors[where][rows // 2, col] = value
            got, record = stepped(tensors["x"], tensors["grad"], step)
            bad = torch.zeros(rows, cols, dtype=torch.bool)
            bad[rows // 2, slice(None) if spread == "chain" else col] = spread != "nothing"
            what = (rows, cols), where, value, option
            assert torch.equal(got.isnan(), bad), what
            assert record is not None
            assert torch.equal(record.finite, ~bad.any(1)), what
            others = torch.arange(rows) != rows // 2
            assert_same_bits(got[others], undisturbed[str(option)][others], what)


def test_an_infinite_bound_never_clips() -> None:
    """gamma is 1 even where the norm overflows, from a number and from a tensor."""
    for rows, cols in EACH_PATH:
        x, grad = state_and_gradient(rows, cols)
        grad[0, 0] = 1e20
        for bound in (INF, torch.full((rows,), INF)):
            _, record = stepped(x, grad, spec(max_grad_norm=bound))
            assert record is not None
            assert bool((record.gamma == 1).all())


# ---- anything -----------------------------------------------------------------------------------

ODD = NAN, INF, -INF, 2.0**66, -(2.0**66), 3.4e38, 1e-40, -0.0, 0.0
unhurried = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Tensor, Tensor, StepSpec]:
    """A state, a gradient and a step that are legal, if not sensible."""
    cols = draw(st.integers(1, 70) | st.sampled_from([127, 129, 255, 449, 512, 1000, 16390]))
    rows = draw(st.integers(1, 40 if cols < 100 else 3))
    dtype, grad_dtype = draw(st.sampled_from(list(PRECISIONS.values())))
    seed = draw(st.integers(0, 2**32))
    scale = 2.0 ** draw(st.sampled_from([-70, -10, 0, 0, 0, 10, 70]))  # squares are exact still
    x, grad = normals(rows, cols, seed=seed), eighths(rows, cols, seed) * scale
    for t in (x, grad):
        for _ in range(draw(st.integers(0, 3))):
            t.view(-1)[draw(st.integers(0, t.numel() - 1))] = draw(st.sampled_from(ODD))
    numbers = st.floats(1e-6, 1e3) | st.sampled_from([1e-40, 1e-12, 1e12, 1.0])

    def coefficient(infinite: bool = False) -> Any:
        values = numbers | st.just(INF) if infinite else numbers
        if draw(st.booleans()):
            return draw(values)
        few = torch.tensor([draw(values) for _ in range(3)], dtype=dtype)
        return few[torch.arange(rows) % 3]

    low, high = sorted((draw(st.floats(-3, 3)), draw(st.floats(-3, 3))))
    low, high = draw(st.sampled_from([(-INF, INF), (low, INF), (-INF, high), (low, high + 0.1)]))
    silent = draw(st.sampled_from([True, False, False, False]))
    step = StepSpec(
        coefficient(),
        coefficient(),
        coefficient(infinite=True) if draw(st.booleans()) else INF,
        draw(st.booleans()),
        draw(st.sampled_from([0.0, 0.5, 1.0])),
        draw(st.sampled_from([0.0, 0.0, 0.5, 1e3])),
        low,
        high,
        None
        if silent
        else Position(
            draw(st.integers(0, 2**64 - 1)),
            draw(st.integers(0, 2**48 - 1)),
            draw(st.integers(0, 2**16 - 1)),
            draw(st.integers(0, 2**32 - 64)),
        ),
    )
    return x.to(dtype), grad.to(grad_dtype), step


@settings(unhurried, max_examples=60)
@given(steps())
def test_random_steps_have_the_bits_of_the_reference(case: tuple[Tensor, Tensor, StepSpec]) -> None:
    check(*case)


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["plain", "clipped", "per coordinate", "a value per chain"])
def test_a_state_may_be_its_own_gradient(option: str) -> None:
    for shape in EACH_PATH:
        x = there(eighths(*shape))
        step = there(options(*shape)[option])
        want = x.clone()
        kernels.step_(want, x.clone(), step, None)
        kernels.step_(x, x, step, None)
        assert_same_bits(x.cpu(), want.cpu(), shape)


def test_a_step_may_go_over_what_it_reads() -> None:
    """To the gradient, to a shifted view of the state, to the state itself."""
    for rows, cols in EACH_PATH:
        buffer, grad = there(eighths(1, rows * cols + 1).view(-1)), there(eighths(rows, cols, 1))
        x, shifted = (buffer[i : i + rows * cols].view(rows, cols) for i in (0, 1))
        step = there(options(rows, cols)["clipped"])
        first, own = x.clone(), grad.clone()
        want = first.clone()
        kernels.step_(want, own, step, None)
        for out in (grad, x, shifted):
            x.copy_(first)
            grad.copy_(own)
            kernels.step_(x, grad, step, None, out)
            assert_same_bits(out.cpu(), want.cpu(), (rows, cols))


@pytest.mark.parametrize("shift", [-785, -784, -1, 1, 64, 784])
def test_a_state_may_overlap_its_gradient(shift: int) -> None:
    rows, cols = 5, 784
    at, other = max(shift, 0), max(-shift, 0)
    buffer = there(eighths(1, rows * cols + abs(shift)).view(-1))
    x = buffer[at : at + rows * cols].view(rows, cols)
    grad = buffer[other : other + rows * cols].view(rows, cols)
    step = there(options(rows, cols)["clipped"])
    want = x.clone()
    kernels.step_(want, grad.clone(), step, None)
    kernels.step_(x, grad, step, None)
    assert_same_bits(x.cpu(), want.cpu())


def test_coefficients_may_be_views_of_what_is_written() -> None:
    """A step size read from the state, or a bound from the statistics, is that of before."""
    for rows, cols in EACH_PATH:
        x, grad = there(normals(rows, cols).abs() + 0.1), there(eighths(rows, cols))
        stats = StepStats.empty(rows, DEVICE)
        stats.grad_norm.fill_(0.5)
        want = x.clone()
        step = spec(drift=x.view(-1)[:rows], max_grad_norm=stats.grad_norm)
        apart = step._replace(drift=step.drift.clone(), max_grad_norm=0.5)  # type: ignore[union-attr]
        kernels.step_(want, grad, apart, None)
        kernels.step_(x, grad, step, stats)
        assert_same_bits(x.cpu(), want.cpu(), (rows, cols))


def test_tensors_need_no_alignment() -> None:
    """Views that begin at any element."""
    for rows, cols in EACH_PATH:
        x, grad = state_and_gradient(rows, cols)
        step = options(rows, cols)["clipped"]
        buffer = there(torch.cat([torch.full((1,), 7.0), x.view(-1), torch.full((1,), 7.0)]))
        shifted = there(torch.cat([torch.zeros(3), grad.view(-1)]))[3:].view(rows, cols)
        state = buffer[1:-1].view(rows, cols)
        kernels.step_(state, shifted, there(step), None)
        assert_same_bits(state.cpu(), stepped(x, grad, step, backend=reference)[0])
        assert float(buffer[0]) == float(buffer[-1]) == 7.0


# ---- the position -------------------------------------------------------------------------------


def test_a_step_from_an_origin_is_that_of_its_numbers() -> None:
    for shape in EACH_PATH:
        x, grad = state_and_gradient(*shape)
        step = options(*shape)["clipped"]
        origin = torch.tensor([PLACE.seed, PLACE.step - 5], device=DEVICE)
        place = PLACE._replace(seed=0, step=5, origin=origin)
        got, _ = stepped(x, grad, step._replace(position=place))
        assert_same_bits(got, stepped(x, grad, step)[0], shape)


@pytest.mark.parametrize("shape", [(300, 3), (40, 100), (6, 784), (3, 20001)])
def test_a_chain_does_not_depend_on_its_batch(shape: tuple[int, int]) -> None:
    x, grad = state_and_gradient(*shape)
    whole, record = stepped(x, grad, options(*shape)["clipped"])
    assert record is not None
    for first, last in ((0, 1), (1, shape[0]), (shape[0] // 2, shape[0] // 2 + 1)):
        place = PLACE._replace(first_chain=PLACE.first_chain + first)
        step = options(*shape)["clipped"]._replace(position=place)
        got, part = stepped(x[first:last], grad[first:last], step)
        assert_same_bits(got, whole[first:last])
        assert part is not None
        for a, b in zip(part, record, strict=True):
            assert_same_bits(a, b[first:last])


# ---- how it is called ---------------------------------------------------------------------------


def test_a_state_of_any_width_is_covered() -> None:
    """Tiles cover the state, and a thread has at most eight 16-byte vectors of it."""
    for itemsize in (4, 8):
        vector = 16 // itemsize
        for cols in (*range(1, 2100), 4095, 4096, 4097, 8192, 8193, 16384, 16385, 2**20 + 1, 2**34):
            rows, block, warps = cut = kernels.tiling(cols, itemsize)
            assert block & (block - 1) == 0
            assert rows == 1 or block >= cols
            assert rows * block <= 8 * vector * 32 * warps
            for chains in (1, rows, rows + 1, 1000):
                assert cut.tiles(chains, cols) * rows * block >= chains * cols


def test_the_public_step_takes_it_by_name() -> None:
    assert available(DEVICE)["triton"] is None
    x, grad = state_and_gradient(5, 100)
    arguments: dict[str, Any] = {"drift": 0.1, "diffusion": 0.3, "max_grad_norm": 4.0}
    noise = Noise(5)
    got = langevin_step_(there(x), there(grad), noise=noise, backend="triton", **arguments)
    assert noise.step == 1
    want = langevin_step(x, grad, noise=Noise(5), backend="reference", **arguments)
    assert_same_bits(got.cpu(), want)


compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter has neither streams nor graphs")


@compiled
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("shape", EACH_PATH)
def test_nothing_waits_for_the_device(shape: tuple[int, int]) -> None:
    x, grad = map(there, state_and_gradient(*shape))
    step = there(options(*shape)["everything"])
    stats = StepStats.empty(shape[0], DEVICE)
    kernels.step_(x, grad, step, stats)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.step_(x, grad, step, stats)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@compiled
@pytest.mark.parametrize("shape", EACH_PATH)
def test_a_captured_step_is_replayed_with_new_noise(shape: tuple[int, int]) -> None:
    """Three replays of two steps and an advance of the origin are six steps."""
    x, grad = map(there, state_and_gradient(*shape))
    step = there(options(*shape)["clipped"])
    want, first = x.clone(), x.clone()
    for k in range(6):
        kernels.step_(want, grad, step._replace(position=Position(7, 5 + k, 0, 0)), None)
    origin = torch.tensor([7, 5], device=DEVICE)

    def two_steps() -> None:
        for k in range(2):
            kernels.step_(x, grad, step._replace(position=Position(0, k, 0, 0, origin)), None)
        origin[1:].add_(2)

    two_steps()  # compiles
    x.copy_(first)
    origin[1:].fill_(5)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        two_steps()
    for _ in range(3):
        graph.replay()
    assert_same_bits(x.cpu(), want.cpu())


@compiled
def test_approximate_noise_moves_the_state_a_little() -> None:
    """By the diffusion times 1e-3 at most (see test_noise), and the roundings of the terms, which
    may be fused."""
    x, grad = state_and_gradient(9, 784)
    step = options(9, 784)["clipped"]
    near, _ = stepped(x, grad, step._replace(position=PLACE._replace(approximate=True)))
    exact, _ = stepped(x, grad, step)
    assert float((near - exact).abs().max()) <= 0.3e-3 + 1e-5
