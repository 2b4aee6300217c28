"""The fused step: every engine has the reference's bits, and the reference the equation's value."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from langevin_ext import Noise, StepStats, langevin_step, langevin_step_, philox
from langevin_ext.errors import DeviceError, LangevinError

from .conftest import CPU, DEVICE, ISAS, NO_NATIVE, assert_same_bits, bits, native, normals, places

# Fewer coordinates than a register, than a chunk of 64, rows that share a tile of 1024 numbers.
SHORT = (
    (1, 1), (3, 1), (513, 1), (1030, 1), (9000, 1), (1, 2), (511, 2), (513, 2), (5000, 2), (1, 3),
    (257, 3), (3000, 5), (7, 7), (300, 8), (300, 9), (4, 10), (100, 17), (33, 63), (9, 65),
    (130, 100), (20, 449),
)  # fmt: skip
# A row at a time: whole chunks, and tails of every kind.
ROWS = (
    (3, 64), (1, 512), (5, 513), (17, 784), (3, 1023), (2, 1025), (20, 4096), (17, 4097),
    (17, 8193),
)  # fmt: skip
# A few rows of more than one block of 4096, which two threads share.
LONG = (
    (1, 4096), (1, 4097), (2, 4097), (3, 4097), (1, 8192), (1, 8193), (3, 12289), (1, 150528),
    (2, 150528), (3, 150528),
)  # fmt: skip
EACH_PATH = (700, 2), (40, 5), (9, 65), (5, 784), (2, 12289)
SERIAL = 8192  # fewer elements than this are never shared
POSITION = 0x1234567890ABCDEF, 3, 2**31 - 5, 2**32 - 1  # seed, stream, first chain, step


@pytest.fixture(autouse=True)
def _exact_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's float64 square root may be off by one bit on a CPU; numpy's is not, nor is C++'s."""
    given = philox.sqrt

    def sqrt(t: Tensor) -> Tensor:
        if t.dtype != torch.float64:
            return given(t)
        return torch.from_numpy(np.sqrt(t.cpu().numpy())).to(t.device)

    monkeypatch.setattr(philox, "sqrt", sqrt)


def state_and_gradient(rows: int, cols: int, precision: str = "float32") -> tuple[Tensor, Tensor]:
    """A state, and a gradient whose norm is about 1: more than 1 in half of the chains."""
    dtype, grad_dtype = PRECISIONS[precision]
    scale = normals(rows, 1, seed=2).exp() / math.sqrt(cols)
    grad = normals(rows, cols, seed=1) * scale
    return normals(rows, cols).to(dtype), grad.to(grad_dtype)


def per_chain(rows: int, low: float, high: float) -> Tensor:
    return torch.linspace(low, high, rows + 1)[1:].flip(0).contiguous()


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"max_grad_norm": 1.0},
    "clipped drift alone": {"max_grad_norm": 1.0, "noise_power": 0.0},
    "clipped noise by gamma": {"max_grad_norm": 1.0, "noise_power": 1.0},
    "one value in tensors": {
        "drift": torch.tensor(0.1),
        "diffusion": torch.tensor(0.3, dtype=torch.float64),
        "max_grad_norm": torch.tensor(1.0),
    },
    "a value per chain": {"drift": "each", "diffusion": "each", "max_grad_norm": "each"},
    "a bound per chain, some infinite": {"max_grad_norm": "some"},
    "a drift per chain, nothing clipped": {"drift": "each"},
    "per coordinate": {"per": "coordinate", "max_grad_norm": 0.05},
    "per coordinate, drift alone": {
        "per": "coordinate",
        "max_grad_norm": 0.05,
        "noise_power": 0.0,
        "reference_precision": 0.5,
    },
    "per coordinate and per chain": {
        "per": "coordinate",
        "drift": "each",
        "diffusion": "each",
        "max_grad_norm": "each",
        "noise_power": 1.0,
    },
    "per coordinate, nothing clipped": {"per": "coordinate"},
    "reference measure": {"max_grad_norm": 1.0, "reference_precision": 1 / 3, "drift": "each"},
    "clamped below": {"clamp": (-0.1, None)},
    "clamped above": {"clamp": (None, 0.1)},
    "clamped": {"max_grad_norm": 1.0, "clamp": (-0.7, 0.3)},
    "no noise": {"noise": None, "diffusion": 0.0, "max_grad_norm": 1.0},
    "no noise, nothing else": {"noise": None, "diffusion": 0.0},
}
PRECISIONS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16 gradient": (torch.float32, torch.bfloat16),
    "float16 gradient": (torch.float32, torch.float16),
    "float64": (torch.float64, torch.float64),
    "float64, bfloat16 gradient": (torch.float64, torch.bfloat16),
}


def arguments(option: str, rows: int) -> dict[str, Any]:
    """The keyword arguments of an option for so many chains."""
    each = {
        "drift": per_chain(rows, 0.0, 0.2),
        "diffusion": per_chain(rows, 0.0, 0.5),
        "max_grad_norm": per_chain(rows, 0.0, 2.0),
    }
    given = {"drift": 0.1, "diffusion": 0.3, "noise": Noise(*POSITION)} | OPTIONS[option]
    for name, value in each.items():
        if given.get(name) == "each":
            given[name] = value
        elif given.get(name) == "some":
            given[name] = value.where(torch.arange(rows) % 3 > 0, math.inf)
    return given


def stepped(
    x: Tensor, grad: Tensor, *, backend: str, stats: bool = True, threads: int = 2, **options: Any
) -> tuple[Tensor, StepStats | None]:
    """The state after a step in place on a copy, and what the step recorded."""
    x = x.clone()
    record = StepStats.empty(x.shape[0], dtype=x.dtype) if stats else None
    torch.set_num_threads(threads if backend == "native" else 1)
    langevin_step_(x, grad, stats=record, backend=backend, **options)
    torch.set_num_threads(1)
    return x, record


@functools.cache
def outcome(
    shape: tuple[int, int], option: str, precision: str = "float32", backend: str = "reference"
) -> tuple[Tensor, StepStats]:
    options = arguments(option, shape[0])
    y, stats = stepped(*state_and_gradient(*shape, precision), backend=backend, **options)
    assert stats is not None
    return y, stats


def assert_same_outcome(
    got: tuple[Tensor, StepStats | None], want: tuple[Tensor, StepStats | None], what: object = ""
) -> None:
    """The same bits in the state and, where recorded, in the statistics."""
    assert_same_bits(got[0], want[0], what)
    for name, a, b in zip(StepStats._fields, got[1] or (), want[1] or (), strict=False):
        if name != "finite":  # which NaN a sum of NaNs is depends on the order of its operands
            a, b = (t.where(t == t, torch.nan) for t in (a, b))
        assert_same_bits(a, b, (what, name))


# ---- the reference's bits -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "threads"),
    [(s, t) for s in SHORT + ROWS + LONG for t in (1, 2) if t == 1 or math.prod(s) >= SERIAL],
    ids=str,
)
def test_every_shape_has_the_bits_of_the_reference(
    shape: tuple[int, int], threads: int, isa: str
) -> None:
    x, grad = state_and_gradient(*shape)
    for option in ("plain", "a value per chain", "per coordinate"):
        want = outcome(shape, option)
        for stats in (True, False):
            options = arguments(option, shape[0])
            got = stepped(x, grad, backend="native", stats=stats, threads=threads, **options)
            assert_same_outcome(got, want, (option, "with stats" if stats else "alone"))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_the_bits_of_the_reference(option: str, precision: str, isa: str) -> None:
    for shape in EACH_PATH:
        x, grad = state_and_gradient(*shape, precision)
        want = outcome(shape, option, precision)
        for stats in (True, False):
            options = arguments(option, shape[0])
            got = stepped(x, grad, backend="native", stats=stats, **options)
            assert_same_outcome(got, want, shape)


# ---- the equation's value -----------------------------------------------------------------------


def equation(
    x: np.ndarray,
    g: np.ndarray,
    xi: np.ndarray,
    *,
    drift: Any,
    diffusion: Any,
    max_grad_norm: Any = None,
    per: str = "sample",
    noise_power: float = 0.5,
    reference_precision: float = 0.0,
    clamp: tuple[float | None, float | None] | None = None,
    **_: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The new state, gamma, and the sum of the terms' magnitudes, in float64."""

    def column(value: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), len(x))[:, None]

    b = column(np.inf if max_grad_norm is None else max_grad_norm)
    size = np.abs(g) if per == "coordinate" else np.linalg.norm(g, axis=1, keepdims=True)
    gamma = np.minimum(1.0, b / size)
    terms = (
        x,
        -column(drift) * gamma * g,
        -column(drift) * reference_precision * x,
        column(diffusion) * gamma**noise_power * xi,
    )
    low, high = (None, None) if clamp is None else clamp
    y = sum(terms)
    if clamp is not None:
        y = np.clip(y, -np.inf if low is None else low, np.inf if high is None else high)
    return y, gamma, sum(np.abs(t) for t in terms)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_step_is_the_equation(option: str, precision: str) -> None:
    """Within 8 roundings of the terms; and so are the recorded norm and gamma."""
    dtype = PRECISIONS[precision][0]
    for shape in EACH_PATH:
        x, grad = state_and_gradient(*shape, precision)
        options = arguments(option, shape[0])
        xi = Noise(*POSITION).normal(shape, dtype=torch.float64, backend="reference")
        for name in ("drift", "diffusion", "max_grad_norm"):  # a coefficient has the state's dtype
            if isinstance(options.get(name), Tensor):
                options[name] = options[name].to(CPU, dtype)
        values, g = x.double().cpu().numpy(), grad.double().cpu().numpy()
        want, gamma, scale = equation(values, g, xi.cpu().numpy(), **options)
        got, stats = outcome(shape, option, precision)
        eps = torch.finfo(dtype).eps
        assert np.all(np.abs(got.double().cpu().numpy() - want) <= 8 * eps * scale), shape
        norm = np.linalg.norm(g, axis=1)
        np.testing.assert_allclose(stats.grad_norm.double().cpu().numpy(), norm, rtol=8 * eps)
        np.testing.assert_allclose(stats.gamma.double().cpu().numpy(), gamma.mean(1), rtol=16 * eps)
        assert stats.finite.all()


@pytest.mark.parametrize("option", OPTIONS)
def test_in_place_is_functional(option: str, backend: str) -> None:
    """Same values, x untouched by one and returned by the other, noise advanced by one in both."""
    for shape in EACH_PATH:
        x, grad = state_and_gradient(*shape)
        before, target = x.clone(), x.clone()
        noises = []
        results = []
        for step, state in ((langevin_step, x), (langevin_step_, target)):
            options = arguments(option, shape[0])
            results.append(step(state, grad, backend=backend, **options))
            noises.append(options["noise"] and places(options["noise"]))
        assert_same_bits(results[0], results[1], shape)
        assert results[1] is target
        assert_same_bits(x, before)
        assert noises[0] == noises[1]


def test_a_bound_of_minus_zero_keeps_its_sign(backend: str) -> None:
    x, zero = torch.tensor([[-3.0], [3.0]]), torch.zeros(2, 1)
    for clamp, row in (((-0.0, None), 0), ((None, -0.0), 1)):
        y = langevin_step(
            x, zero, drift=0.1, diffusion=0.0, noise=None, clamp=clamp, backend=backend
        )
        assert_same_bits(y[row], torch.tensor([-0.0]))


def test_a_bound_beyond_the_dtype_is_no_bound(backend: str) -> None:
    x, grad = state_and_gradient(5, 70)
    for clamp in ((-1e300, 1e300), (-math.inf, None)):
        options = arguments("clipped", 5) | {"clamp": clamp}
        got = langevin_step(x, grad, backend=backend, **options)
        assert_same_bits(got, outcome((5, 70), "clipped", backend=backend)[0])


def test_numbers_of_numpy_are_numbers(backend: str) -> None:
    x, grad = state_and_gradient(5, 70)
    kinds = {"drift": np.float32(0.5), "diffusion": np.float64(0.25), "max_grad_norm": np.int64(1)}
    values = {"drift": 0.5, "diffusion": 0.25, "max_grad_norm": 1.0}
    got, want = (
        langevin_step(x, grad, noise=Noise(1), backend=backend, **numbers)
        for numbers in (kinds, values)
    )
    assert_same_bits(got, want)


def test_a_step_of_one_axis_is_that_of_one_coordinate(backend: str) -> None:
    """(B,) is B chains, not one."""
    x, grad = state_and_gradient(50, 1)
    options = arguments("a value per chain", 50)
    flat = langevin_step(x[:, 0], grad[:, 0], backend=backend, **options)
    want = langevin_step(x, grad, backend=backend, **arguments("a value per chain", 50))
    assert_same_bits(flat, want[:, 0])


# ---- what autograd sees -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_an_in_place_step_tells_autograd(layout: str, backend: str) -> None:
    """A tensor that was saved for a backward pass and then stepped raises there."""
    x = normals(4, 6) if layout == "contiguous" else normals(6, 4).t()
    weight = torch.ones(4, 6, requires_grad=True)
    product = (weight * x).sum()
    langevin_step_(x, normals(4, 6), drift=0.1, diffusion=1.0, noise=Noise(1), backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


# ---- non-finite values --------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
UNCLIPPED: dict[str, Any] = {}
SAMPLE: dict[str, Any] = {"max_grad_norm": 1.0}
COORDINATE: dict[str, Any] = {"max_grad_norm": 1.0, "per": "coordinate"}
POISON = {  # where, what, options -> what becomes NaN
    "x NaN": ("x", NAN, SAMPLE, "coordinate"),
    "x inf": ("x", INF, UNCLIPPED, "coordinate"),
    "x -inf": ("x", -INF, COORDINATE, "coordinate"),
    "gradient NaN, not clipped": ("grad", NAN, UNCLIPPED, "coordinate"),
    "gradient inf, not clipped": ("grad", INF, UNCLIPPED, "coordinate"),
    "gradient NaN": ("grad", NAN, SAMPLE, "chain"),
    "gradient -inf": ("grad", -INF, SAMPLE, "chain"),
    "gradient NaN, per coordinate": ("grad", NAN, COORDINATE, "coordinate"),
    "gradient inf, per coordinate": ("grad", INF, COORDINATE, "coordinate"),
    "norm overflows": ("grad", 1e20, SAMPLE, "chain"),
    "norm overflows, not clipped": ("grad", 1e20, UNCLIPPED, "nothing"),
    "norm overflows, per coordinate": ("grad", 1e20, COORDINATE, "nothing"),
    "sum of the chunk overflows": ("x", 3.4e38, UNCLIPPED, "nothing"),
    "update overflows": ("both", 3.4e38, {"drift": 10.0}, "coordinate"),
}


@pytest.mark.parametrize("poison", POISON)
def test_non_finite_values_stay_where_they_belong(poison: str, backend: str) -> None:
    """NaN exactly where the rule says, whatever the clamp; the other chains are a clean run's."""
    where, value, options, spread = POISON[poison]
    options = {"drift": 0.1, "diffusion": 0.3, "clamp": (-1.0, 1.0)} | options
    for rows, cols in (*EACH_PATH, (3, 4097)):
        for row, col in ((rows // 2, 0), (0, cols - 1), (rows - 1, cols // 2)):
            x, grad = state_and_gradient(rows, cols)
            clean, _ = stepped(x, grad, backend=backend, noise=Noise(5), **options)
            if where != "grad":
                x[row, col] = value
            if where != "x":
                grad[row, col] = -value if where == "both" else value
            y, stats = stepped(x, grad, backend=backend, noise=Noise(5), **options)
            assert stats is not None
            bad = torch.zeros(rows, cols, dtype=torch.bool)
            bad[row, slice(None) if spread == "chain" else col] = spread != "nothing"
            what = (rows, cols), (row, col)
            assert torch.equal(y.isnan(), bad), what
            assert not y.isinf().any()
            assert torch.equal(stats.finite, ~bad.any(1)), what
            assert bool(stats.gamma[row].isnan()) == (
                (where == "grad" and value != 1e20 and options.get("per") == "coordinate")
                or spread == "chain"
            ), what
            others = torch.arange(rows) != row
            assert_same_bits(y[others], clean[others], what)


@pytest.mark.parametrize("poison", POISON)
def test_non_finite_values_have_the_bits_of_the_reference(poison: str, isa: str) -> None:
    where, value, options, _ = POISON[poison]
    options = {"drift": 0.1, "diffusion": 0.3, "clamp": (None, 1.0)} | options
    for rows, cols in EACH_PATH:
        x, grad = state_and_gradient(rows, cols)
        if where != "grad":
            x[rows // 2, cols // 2] = value
        if where != "x":
            grad[rows // 2, cols // 2] = -value
        got, want = (
            stepped(x, grad, backend=name, noise=Noise(5), **options)
            for name in ("native", "reference")
        )
        assert_same_outcome(got, want, (rows, cols))


# ---- memory -------------------------------------------------------------------------------------


def _strided(kind: str, t: Tensor) -> Tensor:
    """The values of ``t`` (B, C, H, W) in another layout."""
    if kind == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if kind == "chains last":
        return t.movedim(0, -1).contiguous().movedim(-1, 0)
    if kind == "every other element":
        return torch.full((*t.shape[:-1], 2 * t.shape[-1]), 7.0)[..., ::2].copy_(t)
    if kind == "offset by one element":
        return torch.full((t.numel() + 1,), 7.0)[1:].view(t.shape).copy_(t)
    assert kind == "contiguous"
    return t.clone()


LAYOUTS = (
    "contiguous", "channels_last", "chains last", "every other element", "offset by one element",
)  # fmt: skip


@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_state", LAYOUTS)
def test_layout_changes_nothing(of_state: str, of_grad: str, backend: str) -> None:
    """The values of contiguous tensors; a state keeps its strides, its base the gaps between."""
    x, grad = normals(5, 3, 4, 7), normals(5, 3, 4, 7, seed=1)
    options: dict[str, Any] = {"drift": 0.1, "diffusion": 0.3, "max_grad_norm": 9.0}
    want = langevin_step(x, grad, noise=Noise(1), backend=backend, **options)
    state, gradient = _strided(of_state, x), _strided(of_grad, grad)
    strides, gaps = state.stride(), state._base
    got = langevin_step_(state, gradient, noise=Noise(1), backend=backend, **options)
    assert got is state
    assert state.stride() == strides
    assert_same_bits(state, want)
    if of_state == "every other element" and gaps is not None:
        assert (gaps[..., 1::2] == 7.0).all()
    assert_same_bits(gradient, grad)
    again = _strided(of_state, x)
    assert_same_bits(
        langevin_step(again, gradient, noise=Noise(1), backend=backend, **options), want
    )
    assert_same_bits(again, x)


def test_an_expanded_gradient_is_its_values(backend: str) -> None:
    """What autograd gives for a sum: one number with stride 0."""
    x, grad = normals(5, 70), torch.tensor(0.5).expand(5, 70)
    for option in ("plain", "clipped", "per coordinate"):
        got, want = (
            langevin_step(x, g, backend=backend, **arguments(option, 5))
            for g in (grad, grad.clone())
        )
        assert_same_bits(got, want, option)


@pytest.mark.parametrize("shape", [(600, 2), (40, 65), (5, 784), (2, 12289)])
def test_a_state_may_be_its_own_gradient(shape: tuple[int, int], backend: str) -> None:
    for option in ("plain", "clipped", "per coordinate", "a value per chain"):
        x, _ = state_and_gradient(*shape)
        want = langevin_step(x, x.clone(), backend=backend, **arguments(option, shape[0]))
        assert_same_bits(langevin_step_(x, x, backend=backend, **arguments(option, shape[0])), want)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shift", [-785, -784, -64, -1, 1, 2, 64, 784, 785])
def test_a_state_may_overlap_its_gradient(shift: int, threads: int, backend: str) -> None:
    """Windows of one memory give the values of separate tensors."""
    torch.set_num_threads(threads if backend == "native" else 1)
    rows, cols = 12, 784
    memory = normals(rows * cols + abs(shift), seed=3)
    at, other = max(shift, 0), max(-shift, 0)
    for option in ("plain", "clipped"):
        buffer = memory.clone()
        x = buffer[at : at + rows * cols].view(rows, cols)
        grad = buffer[other : other + rows * cols].view(rows, cols)
        want = langevin_step(x.clone(), grad.clone(), backend=backend, **arguments(option, rows))
        langevin_step_(x, grad, backend=backend, **arguments(option, rows))
        assert_same_bits(x, want, option)


def test_a_state_may_overlap_a_16_bit_gradient(backend: str) -> None:
    x = normals(12, 784)
    grad = x.view(torch.bfloat16).view(-1)[784 * 6 : 784 * 18].view(12, 784)
    want = langevin_step(x.clone(), grad.clone(), backend=backend, **arguments("plain", 12))
    assert_same_bits(langevin_step_(x, grad, backend=backend, **arguments("plain", 12)), want)


def test_coefficients_may_be_views_of_the_state(backend: str) -> None:
    """A step size read from the state is that of before the step, in every chain."""
    x, grad = normals(6000, 2).abs() + 0.1, normals(6000, 2, seed=1)
    drift = x.view(-1)[:6000]
    want = langevin_step(
        x.clone(), grad, drift=drift.clone(), diffusion=0.1, noise=Noise(1), backend=backend
    )
    got = langevin_step_(x, grad, drift=drift, diffusion=0.1, noise=Noise(1), backend=backend)
    assert_same_bits(got, want)


@pytest.mark.parametrize("shape", [(0, 3), (0,), (3, 0), (2, 3, 0)])
def test_nothing_to_step(shape: tuple[int, ...], backend: str) -> None:
    """No chains or no coordinates: a norm of 0, and the noise moves on as ever."""
    x, noise = torch.zeros(shape), Noise(1)
    stats = StepStats(*(t.fill_(t.dtype == torch.float32) for t in StepStats.empty(shape[0])))
    langevin_step_(
        x,
        x.clone(),
        drift=0.1,
        diffusion=1.0,
        noise=noise,
        stats=stats,
        max_grad_norm=1.0,
        backend=backend,
    )
    assert noise.step == 1
    assert [t.tolist() for t in stats] == [[v] * shape[0] for v in (0.0, 1.0, True)]


# ---- random arguments ---------------------------------------------------------------------------

ODD = (0.0, -0.0, 1e-45, 1e-38, 1e-30, 1e19, 1e30, 3.4e38, INF, -INF, NAN)
bounds = st.floats(-3, 3)
numbers = st.floats(1e-6, 1e3) | st.sampled_from([1e-40, 1e-12, 1e12, 1.0])


@st.composite
def steps(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, Any], int]:
    """A state, a gradient, options and a thread count that are legal, if not sensible."""
    rows = draw(st.integers(0, 40))
    cols = draw(st.integers(0, 70) | st.sampled_from([127, 128, 129, 255, 449, 512, 1000, 4097]))
    if rows * cols > 20000:
        rows = draw(st.integers(1, 3))
    dtype, grad_dtype = draw(st.sampled_from(list(PRECISIONS.values())))
    data = draw(st.integers(0, 2**32))
    scale = draw(st.sampled_from([1e-20, 1e-3, 1.0, 1.0, 1.0, 1e3, 1e20]))
    x, grad = normals(rows, cols, seed=data), normals(rows, cols, seed=data + 1) * scale
    for t in (x, grad):
        for _ in range(draw(st.integers(0, 3)) if t.numel() else 0):
            t.view(-1)[draw(st.integers(0, t.numel() - 1))] = draw(st.sampled_from(ODD))

    def coefficient(infinite: bool = False) -> Any:
        kind = draw(st.sampled_from(["number", "0-d", "per chain"]))
        values = numbers | st.just(INF) if infinite else numbers
        if kind == "number":
            return draw(values)
        size = (rows,) if kind == "per chain" else ()
        few = [draw(values) for _ in range(3)]
        generator = torch.Generator().manual_seed(data)
        chosen = torch.randint(3, size, generator=generator, device=CPU).to(DEVICE)
        return torch.tensor(few, dtype=dtype)[chosen]

    low, high = sorted(draw(bounds) for _ in range(2))
    clamp = draw(st.sampled_from([None, (low, None), (None, high), (low, high + 0.1)]))
    silent = draw(st.booleans()) and draw(st.booleans())
    return (
        x.to(dtype),
        grad.to(grad_dtype),
        {
            "drift": coefficient(),
            "diffusion": 0.0 if silent else coefficient(),
            "noise": Noise(
                draw(st.integers(0, 2**64 - 1)),
                draw(st.integers(0, 2**16 - 1)),
                draw(st.integers(0, 2**32 - 64)),
                draw(st.integers(0, 2**48 - 2)),
            ),
            "max_grad_norm": coefficient(infinite=True) if draw(st.booleans()) else None,
            "per": draw(st.sampled_from(["sample", "coordinate"])),
            "noise_power": draw(st.sampled_from([0.0, 0.5, 1.0])),
            "reference_precision": draw(st.sampled_from([0.0, 0.0, 0.5, 1e3])),
            "clamp": clamp,
        },
        draw(st.integers(1, 3)),
    )


def check_agreement(case: tuple[Tensor, Tensor, dict[str, Any], int]) -> None:
    """Every instruction set gives the reference's state and statistics, bit by bit."""
    x, grad, options, threads = case
    at = options["noise"].step
    want = stepped(x, grad, backend="reference", **(options | {"noise": options["noise"].at(at)}))
    for isa in ISAS:
        native.use_isa(isa)
        for stats in (True, False):
            given = options | {"noise": options["noise"].at(at)}
            got = stepped(x, grad, backend="native", stats=stats, threads=threads, **given)
            assert_same_outcome(got, want, isa)


compares_native = pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native: {NO_NATIVE}")
unhurried = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@compares_native
@settings(unhurried, max_examples=200)
@given(steps())
def test_random_steps_agree(case: tuple[Tensor, Tensor, dict[str, Any], int]) -> None:
    check_agreement(case)


@compares_native
@pytest.mark.slow
@settings(unhurried, max_examples=10_000, derandomize=False)
@given(steps())
def test_ten_thousand_random_steps_agree(case: tuple[Tensor, Tensor, dict[str, Any], int]) -> None:
    check_agreement(case)


not_numbers = st.sampled_from(["0.1", [0.1], (0.1,), 1j, True, False, {}, b"1", object()])
wrong_shapes = st.sampled_from([(41,), (1, 1), (2, 1), (41, 1)])
wrong_tensors = st.builds(torch.full, wrong_shapes, numbers) | st.builds(
    torch.ones, st.just(()), dtype=st.sampled_from([torch.int64, torch.bool, torch.complex64])
)
negative = st.floats(max_value=-1e-300, allow_nan=False) | st.sampled_from([NAN, -INF])
wrong_states = st.sampled_from(
    [
        None,
        [[1.0]],
        np.zeros((2, 2), np.float32),
        torch.zeros(()),
        torch.zeros(3, 1).expand(3, 4),
        torch.zeros(2, 2, device="meta"),
        torch.zeros(2, 2).to_sparse(),
        *(
            torch.zeros(2, 2, dtype=t)
            for t in (torch.int64, torch.bool, torch.complex64, torch.float16, torch.bfloat16)
        ),
    ]
)
REFUSED: dict[str, st.SearchStrategy[Any]] = {
    "x": wrong_states,
    "grad": wrong_states,
    "drift": st.just(0.0) | st.just(None) | st.just(INF) | negative | not_numbers | wrong_tensors,
    "diffusion": st.just(None) | st.just(INF) | negative | not_numbers | wrong_tensors,
    "noise": st.sampled_from([0, 1.5, "seed", torch.Generator()]),
    "max_grad_norm": st.just(0.0) | negative | not_numbers | wrong_tensors,
    "per": st.sampled_from(["", "row", None, 0]),
    "noise_power": st.floats(1.001) | negative | st.sampled_from(["1", None, 1j, [0.5]]),
    "reference_precision": negative | st.just(INF) | st.sampled_from(["1", None, 1j, [0.5]]),
    "clamp": st.sampled_from(
        [(1, -1), (0, 0), (NAN, 1), (0, NAN), (0,), (0, 1, 2), 1, "0", ("a", 1)]
    ),
    "backend": st.sampled_from(["", "cuda", "Native", None, 0]),
    "stats": st.sampled_from(
        [StepStats.empty(41), StepStats(*(t[::2] for t in StepStats.empty(4))), "stats", 1]
    ),
}


@st.composite
def refusals(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    """Legal arguments but for one, and which."""
    name = draw(st.sampled_from(sorted(REFUSED)))
    bad = draw(REFUSED[name])
    x, grad, options, _ = draw(steps())
    return {"x": x, "grad": grad, "backend": "auto", "stats": None} | options | {name: bad}, name


def check_refusal(case: tuple[dict[str, Any], str]) -> None:
    """A typed error; the state and the noise are as they were."""
    arguments_, bad = case
    x, noise = (arguments_[n] if n != bad else None for n in ("x", "noise"))
    before, place = x is not None and bits(x).clone(), noise and places(noise)
    with pytest.raises(LangevinError):
        langevin_step_(**arguments_)
    assert x is None or torch.equal(bits(x), before)
    assert noise is None or places(noise) == place


@settings(unhurried, max_examples=500)
@given(refusals())
def test_random_bad_arguments_are_refused(case: tuple[dict[str, Any], str]) -> None:
    check_refusal(case)


@pytest.mark.slow
@settings(unhurried, max_examples=10_000, derandomize=False)
@given(refusals())
def test_ten_thousand_random_bad_arguments_are_refused(case: tuple[dict[str, Any], str]) -> None:
    check_refusal(case)


def test_negated_views_have_their_sign(backend: str) -> None:
    """torch keeps the imaginary part of a conjugate as a view with its sign left to do."""
    z = torch.complex(normals(5, 3), normals(5, 3, seed=1)).conj().imag
    assert z.is_neg()
    neg = torch._neg_view(normals(5, 3))
    plain = {"drift": 0.5, "diffusion": 0.1, "backend": backend}
    for grad in (z, neg):
        got = langevin_step(torch.zeros(5, 3), grad, noise=Noise(1), **plain)
        want = langevin_step(torch.zeros(5, 3), grad.clone().resolve_neg(), noise=Noise(1), **plain)
        assert_same_bits(got, want)
    state = torch._neg_view(normals(5, 3))
    langevin_step_(state, normals(5, 3, seed=2), noise=Noise(1), **plain)
    want = langevin_step(-normals(5, 3), normals(5, 3, seed=2), noise=Noise(1), **plain)
    assert_same_bits(state.resolve_neg(), want)


def test_tensors_without_memory_are_refused() -> None:
    x = torch.ones(2, 3)
    if native is None:
        pytest.skip(f"no null pointer to hand on: {NO_NATIVE}")
    with pytest.raises(DeviceError, match="no memory"):
        langevin_step_(x, torch._efficientzerotensor(2, 3), drift=0.1, diffusion=1, noise=Noise(1))


def test_statistics_may_be_the_bound_of_the_same_step(backend: str) -> None:
    """b read from what the step will write is that of before the step, in long rows too."""
    x, grad = normals(3, 20_000), normals(3, 20_000, seed=1)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        stats = StepStats.empty(3)
        stats.grad_norm.fill_(50.0)
        got = langevin_step_(
            x.clone(), grad, drift=0.1, diffusion=0.1, noise=Noise(1),
            max_grad_norm=stats.grad_norm, stats=stats, backend=backend,
        )  # fmt: skip
        want = langevin_step(
            x, grad, drift=0.1, diffusion=0.1, noise=Noise(1), max_grad_norm=50.0, backend=backend
        )
        assert_same_bits(got, want)
