"""The step as an operator: compiled, exported, mapped, differentiated by torch.func."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

from langevin_ext import (
    AniLA,
    EnergyGradient,
    Langevin,
    Noise,
    Purpose,
    StepStats,
    langevin_step,
    langevin_step_,
    ops,
)
from langevin_ext._types import StepCall
from langevin_ext.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    GradientError,
    NoiseError,
    ShapeError,
    StepSizeError,
)

from .conftest import DEVICE, assert_same_bits, normals, on_a_device

# torch's own compiler is partly written in the TorchScript it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

OPS = torch.ops.langevin_ext
ANILA: dict[str, Any] = {
    "drift": 0.05,
    "diffusion": 0.2,
    "max_grad_norm": 1.5,
    "clamp": (-1.0, 1.0),
}
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> None:
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], backend: str) -> tuple[Any, Any]:
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


# ---- compiled -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize("step", [langevin_step_, langevin_step])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_a_hundred_compiled_steps_are_one_compilation(
    backend: str, step: Callable[..., Tensor], place: str
) -> None:
    """They equal the eager chain in every bit, and leave the noise where it does."""
    noise, eager_noise = Noise(5, step=2**33), Noise(5, step=2**33)
    if place == "device":
        noise = on_a_device(noise)
    function, counter = compiled(lambda x, g: step(x, g * x, noise=noise, **ANILA), backend)
    x, g = normals(4, 10), normals(4, 10, seed=1)
    want = x.clone()
    for _ in range(100):
        x = function(x, g)
        langevin_step_(want, g * want, noise=eager_noise, **ANILA)
    assert_same_bits(x, want)
    assert noise.step == eager_noise.step == 2**33 + 100
    assert counter.frame_count == 1


def test_a_compiled_block_of_steps_looks_ahead_and_advances_once() -> None:
    noise, eager_noise = Noise(5), Noise(5)

    def block(x: Tensor, g: Tensor) -> Tensor:
        for k in range(5):
            langevin_step_(x, g * x, noise=noise.ahead(k), **ANILA)
        noise.advance(5)
        return x

    function, counter = compiled(block, "aot_eager")
    x, g = normals(4, 10), normals(4, 10, seed=1)
    want = x.clone()
    for _ in range(4):
        function(x, g)
    for _ in range(20):
        langevin_step_(want, g * want, noise=eager_noise, **ANILA)
    assert_same_bits(x, want)
    assert noise.step == 20
    assert counter.frame_count == 1


def test_a_schedule_in_tensors_does_not_recompile() -> None:
    drifts, widths = torch.linspace(0.1, 0.01, 20), torch.linspace(0.5, 0.1, 20)
    noise = Noise(5)

    def step(x: Tensor, g: Tensor, drift: Tensor, width: Tensor) -> Tensor:
        return langevin_step_(x, g * x, drift=drift, diffusion=width, noise=noise)

    function, counter = compiled(step, "aot_eager")
    x, g = normals(4, 10), normals(4, 10, seed=1)
    want, eager_noise = x.clone(), Noise(5)
    for drift, width in zip(drifts, widths, strict=True):
        function(x, g, drift, width)
        langevin_step_(want, g * want, drift=drift, diffusion=width, noise=eager_noise)
    assert_same_bits(x, want)
    assert counter.frame_count == 1


def test_batch_sizes_cost_two_compilations() -> None:
    noise = Noise(5)
    function, counter = compiled(lambda x, g: langevin_step_(x, g, noise=noise, **ANILA), "eager")
    for k, chains in enumerate((4, 5, 6, 7)):
        x = torch.zeros(chains, 10)
        function(x, torch.zeros(chains, 10))
        want = langevin_step(0 * x, 0 * x, noise=Noise(5).at(k), **ANILA)
        assert_same_bits(x, want)
    assert counter.frame_count == 2


def test_compiled_statistics_are_the_eager_ones() -> None:
    x, g = normals(4, 10), normals(4, 10, seed=1)
    want, stats = StepStats.empty(4), [StepStats.empty(4) for _ in range(2)]
    langevin_step_(x.clone(), g, noise=Noise(5), stats=want, **ANILA)
    for step, got in zip((langevin_step_, langevin_step), stats, strict=True):
        function, _ = compiled(
            lambda x, s, step=step: step(x, g, noise=Noise(5).at(0), stats=s, **ANILA), "aot_eager"
        )
        function(x.clone(), got)
        for field in StepStats._fields:
            assert_same_bits(getattr(got, field), getattr(want, field), (step, field))


def test_a_compiled_backward_pass_is_the_eager_one() -> None:
    g, noise = normals(4, 10, seed=1), Noise(5).at(3)

    def loss(x: Tensor, drift: Tensor) -> Tensor:
        return (
            langevin_step(x, g * x, drift=drift, diffusion=0.2, noise=noise, max_grad_norm=1.5)
            .square()
            .sum()
        )

    leaves = [normals(4, 10).requires_grad_(), torch.full((4,), 0.05, requires_grad=True)]
    function, _ = compiled(loss, "aot_eager")
    got = torch.autograd.grad(function(*leaves), leaves)
    want = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_noise_from_outside_is_copied_inside_a_compiled_function() -> None:
    noise = Noise(3, stream=16, step=4)

    def chain(x: Tensor) -> Tensor:
        purpose = noise.purpose(Purpose.MOMENTUM)
        for place in (noise.at(9), purpose, noise.shard(5), noise.clone(), noise.ahead(2)):
            langevin_step_(x, x.clone(), noise=place, **ANILA)
        return x

    function, counter = compiled(chain, "aot_eager")
    for _ in range(2):
        assert_same_bits(function(normals(4, 10)), chain(normals(4, 10)))
        noise.advance(3)
    assert counter.frame_count == 1
    with pytest.raises(Exception, match="read them outside"):
        compiled(lambda x: x + noise.step, "eager")[0](normals(4))


def test_noise_is_made_moved_and_shown_inside_a_compiled_function() -> None:
    def chain(x: Tensor) -> Tensor:
        noise = Noise(2**64 - 7, stream=16, first_chain=3, step=2)
        for _ in range(3):
            langevin_step_(x, x.clone(), noise=noise, **ANILA)
        langevin_step_(x, x.clone(), noise=noise.at(9), **ANILA)
        langevin_step_(x, x.clone(), noise=noise.purpose(1), **ANILA)
        return x + noise.normal((4, 10)) + noise.uniform((4, 10))

    function, _ = compiled(chain, "aot_eager")
    assert_same_bits(function(normals(4, 10)), chain(normals(4, 10)))


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).tanh().square().sum(1)


@pytest.mark.parametrize(
    "rule", [Langevin(0.1), AniLA(1.0, 0.1, clamp=(-1, 1)), Langevin(torch.full((4,), 0.1))]
)
def test_the_step_of_a_sampler_compiles_whole(rule: Any) -> None:
    """Gradient and update in one graph, the chain that of the eager rule."""
    energy, noise, eager_noise = EnergyGradient(Smooth()), Noise(5), Noise(5)
    function, counter = compiled(lambda state: rule.step(state, energy, noise), "aot_eager")
    got, want = (rule.init(energy, normals(4, 10), noise) for _ in range(2))
    for _ in range(20):
        got, want = function(got), rule.step(want, energy, eager_noise)
    assert not got.x.requires_grad
    assert_same_bits(got.x, want.x)
    assert_same_bits(got.energy, want.energy)
    assert (noise.step, got.step) == (20, 20)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("energy", [lambda x: x.detach().square().sum(1), lambda x: torch.zeros(4)])
def test_a_compiled_energy_that_forgets_its_input_is_refused(energy: Any) -> None:
    gradient = EnergyGradient(energy)
    function, _ = compiled(gradient, "eager")
    with torch.no_grad(), pytest.raises(Exception, match="does not depend on its input"):
        function(normals(4, 10))


# ---- mapped and differentiated -------------------------------------------------------------------


def test_every_slice_of_a_mapped_step_has_the_same_noise() -> None:
    x, g, noise = normals(3, 4, 10), normals(4, 3, 10, seed=1), Noise(5, step=8)
    mapped = torch.vmap(lambda a, b: langevin_step(a, b, noise=noise, **ANILA), in_dims=(0, 1))
    y = mapped(x, g)
    assert noise.step == 9
    for i in range(3):
        assert_same_bits(y[i], langevin_step(x[i], g[:, i], noise=Noise(5, step=8), **ANILA), i)
    nested = torch.vmap(torch.vmap(lambda a: langevin_step(a, g[:, 0], noise=noise, **ANILA)))
    y = nested(x[None].expand(2, -1, -1, -1))
    assert noise.step == 10
    assert_same_bits(y[1, 2], langevin_step(x[2], g[:, 0], noise=Noise(5).at(9), **ANILA))


def test_no_slices_are_mapped_to_none() -> None:
    y = torch.vmap(lambda a: langevin_step(a, a, noise=Noise(5), **ANILA), in_dims=1, out_dims=1)(
        torch.zeros(4, 0, 10)
    )
    assert y.shape == (4, 0, 10)


def test_what_cannot_be_mapped_says_so() -> None:
    x = normals(3, 4, 10)
    with pytest.raises(DeviceError, match="call langevin_step under vmap"):
        torch.vmap(lambda a: langevin_step_(a, a.clone(), noise=Noise(5), **ANILA))(x)
    with pytest.raises(DeviceError, match="or a coefficient has no memory"):
        torch.vmap(lambda d: langevin_step_(x[0], x[1], drift=d, diffusion=1.0, noise=Noise(5)))(
            torch.ones(3)
        )
    stats = StepStats.empty(4)
    with pytest.raises(ArgumentError, match="stats are written to"):
        torch.vmap(lambda a: langevin_step(a, a, noise=Noise(5), stats=stats, **ANILA))(x)


def test_forward_mode_is_refused_under_torch_func_too() -> None:
    x = normals(4, 10)
    for transform in (torch.func.jacfwd, torch.func.hessian):
        with pytest.raises(GradientError, match="forward-mode"):
            transform(lambda a: langevin_step(a, a, noise=Noise(5), **ANILA).sum())(x)


def test_the_transforms_of_torch_func_give_autograds_gradients() -> None:
    g, options = normals(4, 10, seed=1).double(), {"drift": 0.3, "diffusion": 0.2}

    def loss(x: Tensor) -> Tensor:
        y = langevin_step(x, g * x, noise=Noise(5), max_grad_norm=1.5, **options)
        return y.square().sum()

    x = normals(4, 10, dtype=torch.float64)
    (want,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(loss)(x), want)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(torch.stack([x, x]))[1], want)
    torch.testing.assert_close(torch.func.jacrev(loss)(x), want)
    noise = on_a_device(Noise(5))
    torch.func.grad(lambda x: langevin_step(x, g * x, noise=noise, **options).sum())(x)
    assert noise.step == 1
    twice = torch.func.jacrev(torch.func.grad(loss))(x)
    torch.testing.assert_close(twice, torch.autograd.functional.hessian(loss, x))


# ---- traced and exported -------------------------------------------------------------------------


class Chain(nn.Module):
    """Three steps of a chain whose position is part of the module."""

    def __init__(self, step: Callable[..., Tensor]) -> None:
        super().__init__()
        self.noise, self.step = Noise(5), step

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        for _ in range(3):
            x = self.step(x, g * x, noise=self.noise, **ANILA)
        return self.step(x, g * x, noise=self.noise.purpose(1), **ANILA)


@pytest.mark.parametrize("step", [langevin_step_, langevin_step])
def test_an_exported_chain_goes_on_as_the_eager_one(step: Callable[..., Tensor]) -> None:
    x, g = normals(4, 10), normals(4, 10, seed=1)
    exported = torch.export.export(Chain(step), (x.clone(), g)).module()
    eager = Chain(step)
    got, want = x.clone(), x.clone()
    for _ in range(2):
        got, want = exported(got, g), eager(want, g)
        assert_same_bits(got, want)


@pytest.mark.parametrize(
    ("step", "target"),
    [(langevin_step_, OPS.step_.default), (langevin_step, OPS.step.default)],
)
def test_a_tracer_sees_the_operator(step: Callable[..., Tensor], target: Any) -> None:
    """make_fx records one call of it."""
    x, g = normals(4, 10), normals(4, 10, seed=1)

    def function(x: Tensor, g: Tensor) -> Tensor:
        return step(x, g, noise=Noise(5).ahead(2), **ANILA)

    want = function(x.clone(), g)
    for mode in ("fake", "real"):
        graph = make_fx(function, tracing_mode=mode)(x.clone(), g)
        assert [node.target for node in graph.graph.nodes].count(target) == 1, mode
        assert_same_bits(graph(x.clone(), g), want)


# ---- the operators themselves -------------------------------------------------------------------


def call(**changes: Any) -> StepCall:
    """The arguments of a legal step on a (4, 10) state."""
    place = Noise(5, stream=2, first_chain=7, step=3).by_reference()
    legal = StepCall(
        grad=normals(4, 10, seed=1), position=place.origin, offset=2, stream=2, first_chain=7,
        approximate=False, drift=0.1, drift_tensor=None, diffusion=0.2, diffusion_tensor=None,
        max_grad_norm=1.5, max_grad_norm_tensor=None, per_coordinate=False, noise_power=0.5,
        reference_precision=0.3, low=-1.0, high=1.0, backend="auto",
    )  # fmt: skip
    return legal._replace(**changes)


def each() -> Tensor:
    return torch.rand(4) + 0.1


CALLS: dict[str, dict[str, Any]] = {
    "numbers": {},
    "a value for each chain": {"drift_tensor": each(), "diffusion_tensor": each(),
                               "max_grad_norm_tensor": each()},
    "no noise": {"position": None, "diffusion": 0.0},
    "per coordinate": {"per_coordinate": True},
    "a 16-bit gradient": {"grad": normals(4, 10, seed=1).bfloat16()},
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_torch_checks_the_operators(case: str) -> None:
    """opcheck's four tests: schema, autograd registration, fake tensors, dynamic AOT dispatch."""
    arguments = call(**CALLS[case])
    learned = ("grad", "drift_tensor", "diffusion_tensor", "max_grad_norm_tensor")
    leaves = {
        name: value.clone().requires_grad_()
        for name in learned
        if (value := getattr(arguments, name)) is not None
    }
    checks = [
        (OPS.step_.default, (normals(4, 10), *arguments, *StepStats.empty(4))),
        (OPS.step_.default, (normals(4, 10), *arguments, None, None, None)),
        (OPS.step.default, (normals(4, 10), *arguments, True)),
        (
            OPS.step.default,
            (normals(4, 10).requires_grad_(), *arguments._replace(**leaves), False),
        ),
    ]
    for operator, values in checks:
        assert set(torch.library.opcheck(operator, values).values()) == {"SUCCESS"}


@pytest.mark.parametrize("operator", [OPS.normal.default, OPS.uniform.default])
def test_torch_checks_the_operators_of_the_noise(operator: Any) -> None:
    values = (*call()[1:6], 4, 10, DEVICE, "auto")
    assert set(torch.library.opcheck(operator, values).values()) == {"SUCCESS"}


def test_an_operator_never_moves_its_position() -> None:
    arguments = call()
    assert arguments.position is not None
    before, version = arguments.position.clone(), arguments.position._version
    OPS.step_(normals(4, 10), *arguments, None, None, None)
    OPS.step(normals(4, 10), *arguments, False)
    ops.normal(*arguments[1:6], 4, 10, DEVICE, "auto")
    assert torch.equal(arguments.position, before)
    assert arguments.position._version == version


def test_an_offset_counts_from_the_position() -> None:
    x = normals(4, 10)
    got, *_ = OPS.step(x, *call(), False)
    place = call(position=torch.tensor([5, 5]), offset=0)
    assert_same_bits(got, OPS.step(x, *place, False)[0])


def test_a_backward_pass_does_not_follow_a_position_that_moves_on() -> None:
    leaf = torch.tensor(0.2, requires_grad=True)
    arguments = call(diffusion_tensor=leaf, low=-9.0, high=9.0, max_grad_norm=1e9)
    assert arguments.position is not None
    y, *_ = OPS.step(normals(4, 10), *arguments, False)
    want = ops.normal(*arguments[1:6], 4, 10, DEVICE, "auto").sum()
    arguments.position[1] += 1
    (got,) = torch.autograd.grad(y.sum(), leaf)
    torch.testing.assert_close(got, want)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "grad's shape": ({"grad": torch.zeros(10, 4)}, ShapeError, "grad has shape"),
    "grad's dtype": ({"grad": torch.zeros(4, 10, dtype=torch.int32)}, DtypeError, "torch.int32"),
    "a float position": ({"position": torch.zeros(2)}, ArgumentError, "torch.float32"),
    "a long position": (
        {"position": torch.zeros(3, dtype=torch.int64)},
        ArgumentError,
        r"\(3,\)",
    ),
    "no position": ({"position": None}, NoiseError, "noise=None"),
    "the noise used up": (
        {"position": torch.tensor([5, 2**48 - 1], device="cpu"), "offset": 1},
        NoiseError,
        "used up",
    ),
    "a chain id": ({"first_chain": 2**32 - 3}, NoiseError, "first_chain=4294967293"),
    "a stream": ({"stream": 2**16}, NoiseError, "stream=65536"),
    "a negative offset": ({"offset": -4}, NoiseError, "step=-1"),
    "a negative chain id": ({"first_chain": -1}, NoiseError, "first_chain=-1"),
    "a 16-bit state": ({"x": torch.zeros(4, 10).half()}, DtypeError, "variance 1.40"),
    "some of the statistics": ({"stats": (torch.ones(4), None, None)}, ArgumentError, "all three"),
    "drift": ({"drift": -1.0}, StepSizeError, "drift=-1.0"),
    "diffusion's shape": ({"diffusion_tensor": torch.ones(5)}, ShapeError, "diffusion"),
    "power": ({"noise_power": 0.7}, ArgumentError, "noise_power=0.7"),
    "clamp": ({"low": 1.0, "high": 0.0}, ArgumentError, "clamp"),
    "backend": ({"backend": "fast"}, ArgumentError, "backend='fast'"),
    "a leaf": ({"grad": torch.zeros(4, 10, requires_grad=True)}, GradientError, "grad requires"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_operator_called_by_its_own_name_refuses(case: str) -> None:
    changes, error, message = REFUSED[case]
    changes = dict(changes)
    x, stats = changes.pop("x", normals(4, 10)), changes.pop("stats", (None, None, None))
    before = x.clone()
    with pytest.raises(error, match=message):
        OPS.step_(x, *call(**changes), *stats)
    assert_same_bits(x, before)
