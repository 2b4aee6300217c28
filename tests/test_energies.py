"""Energies that know their gradient: how it is asked for, and the analytic ones against the law."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from langevin_ext import AniLA, EnergyGradient, Langevin, Noise, Purpose, sample
from langevin_ext.energies import (
    AnalyticEnergy,
    Banana,
    DoubleWell,
    EightGaussians,
    Funnel,
    Gaussian,
    GaussianMixture,
    Logistic,
    QuadraticWell,
    QuarticWell,
    Rings,
    TwoMoons,
)
from langevin_ext.energies._draws import draw_radius
from langevin_ext.errors import ArgumentError, DtypeError, EnergyError, NoiseError, ShapeError

from .conftest import CPU, DEVICE, assert_same_bits, normals, places, same_bits

NAN, INF = math.nan, math.inf

# torch's own compiler is partly written in the TorchScript it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

# ---- the gradient an energy brings along --------------------------------------------------------


class Quartic(nn.Module):
    """sum x^4 / 4, which counts who asks for what."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append("forward")
        return (x**4).sum(1) / 4

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append("value_and_gradient")
        return (x**4).sum(1) / 4, x**3


class Doubled(Quartic):
    """Its inherited gradient is half of what it should be."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Called(Quartic):
    """Likewise, by way of ``__call__``."""

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class Halved(Doubled):
    """A gradient as new as its forward, or newer, is its own."""

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = super().value_and_gradient(x)
        return 2 * value, 2 * grad


class Derived(Quartic):
    """Nothing replaced."""


class Plain:
    """Not a module."""

    def __call__(self, x: Tensor) -> Tensor:
        raise AssertionError("autograd was taken")

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.square().sum(1, keepdim=True), 2 * x


def test_an_energy_that_knows_its_gradient_is_asked() -> None:
    x = normals(5, 3).requires_grad_()
    for energy in (Quartic(), Derived()):
        value, grad = EnergyGradient(energy)(x)
        assert energy.asked == ["value_and_gradient"]
        assert_same_bits(value, ((x**4).sum(1) / 4).detach())
        assert_same_bits(grad, (x**3).detach())
        assert not value.requires_grad
        assert not grad.requires_grad
    value, grad = EnergyGradient(Plain())(x)
    assert_same_bits(value, x.detach().square().sum(1))
    assert_same_bits(grad, 2 * x.detach())
    chain = sample(Quartic(), x.detach(), Langevin(0.1), 5, seed=1).x
    torch.testing.assert_close(
        chain, sample(lambda x: Quartic()(x), x.detach(), Langevin(0.1), 5, seed=1).x
    )


@pytest.mark.parametrize("kind", [Doubled, Called, Halved])
def test_a_gradient_older_than_its_energy_is_not_believed(kind: type[Quartic]) -> None:
    x = normals(5, 3)
    energy = kind()
    value, grad = EnergyGradient(energy)(x)
    torch.testing.assert_close(value, (x**4).sum(1) / 2)
    torch.testing.assert_close(grad, 2 * x**3)
    assert energy.asked == ["value_and_gradient" if kind is Halved else "forward"]


def test_a_forward_or_a_gradient_of_the_object_itself_comes_first() -> None:
    x = normals(5, 3)
    energy = Quartic()
    energy.forward = lambda x: x.square().sum(1)  # type: ignore[method-assign]
    torch.testing.assert_close(EnergyGradient(energy)(x)[1], 2 * x)
    energy.value_and_gradient = lambda x: (x.sum(1), x + 1)  # type: ignore[method-assign]
    assert_same_bits(EnergyGradient(energy)(x)[1], x + 1)

    def function(x: Tensor) -> Tensor:
        return x.square().sum(1)

    function.value_and_gradient = lambda x: (x.sum(1), x + 2)  # type: ignore[attr-defined]
    assert_same_bits(EnergyGradient(function)(x)[1], x + 2)


@pytest.mark.parametrize(
    "hook",
    [
        lambda e: e.register_forward_hook(lambda module, args, out: 3 * out),
        lambda e: e.register_forward_pre_hook(lambda module, args: (args[0] * 3**0.25,)),
        lambda e: e.register_full_backward_hook(lambda module, back, out: (3 * back[0],)),
    ],
)
def test_hooks_are_run(hook: Callable[[nn.Module], Any]) -> None:
    x, energy = normals(5, 3), Quartic()
    gradient = EnergyGradient(energy)
    handle = hook(energy)
    torch.testing.assert_close(gradient(x)[1], 3 * x**3)
    handle.remove()
    assert_same_bits(gradient(x)[1], x**3)
    assert energy.asked == ["forward", "value_and_gradient"]


class Odd(nn.Module):
    """Returns what it is given to return, of x and its own memory."""

    def __init__(self, result: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.ones(4, 3))
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)

    def value_and_gradient(self, x: Tensor) -> Any:
        return self.result(x, self.memory)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x, _: x, "returned a Tensor"),
        (lambda x, _: (x.sum(1), x, x), "returned a tuple"),
        (lambda x, _: None, "returned a NoneType"),
        (lambda x, _: (x.sum(), x), r"shape \(\).*\(4,\)"),
        (lambda x, _: (x.sum(1)[1:], x), r"shape \(3,\)"),
        (lambda x, _: (x.sum(1).long(), x), "torch.int64"),
        (lambda x, _: (3.0, x), "returned a float"),
        (lambda x, _: (x.sum(1), x.T), r"shape \(3, 4\).*\(4, 3\)"),
        (lambda x, _: (x.sum(1), x.long()), "torch.int64"),
        (lambda x, _: (x.sum(1), None), "NoneType for a gradient"),
    ],
)
def test_what_is_no_gradient_is_refused(result: Any, message: str) -> None:
    with pytest.raises(EnergyError, match=message):
        EnergyGradient(Odd(result))(normals(4, 3))


@pytest.mark.parametrize(
    "result",
    [
        lambda x, memory: (x[:, 0], x),
        lambda x, memory: (memory[:, 0], memory),
        lambda x, memory: (memory.view(-1)[:4], memory.view(3, 4).T),
    ],
)
def test_what_is_returned_is_a_copy(result: Any) -> None:
    """Neither the state's next update nor the module's next call changes it."""
    energy, x = Odd(result), normals(4, 3)
    value, grad = EnergyGradient(energy)(x)
    want = value.clone(), grad.clone()
    x.zero_()
    with torch.no_grad():
        energy.memory.zero_()
    assert_same_bits(value, want[0])
    assert_same_bits(grad, want[1])
    assert grad.is_contiguous()
    assert not any(t.requires_grad for t in (value, grad))


def test_a_gradient_comes_in_the_dtype_of_the_state() -> None:
    energy = Odd(lambda x, _: (x.double().sum(1, keepdim=True), x.double()))
    value, grad = EnergyGradient(energy)(normals(4, 3))
    assert (value.dtype, grad.dtype, value.shape) == (torch.float32, torch.float32, (4,))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_known_gradient_in_every_mode(mode: Any) -> None:
    """Without gradient mode for the energy; what comes out can be trained on."""
    modes = []

    def result(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return x.sum(1), x

    with mode():
        value, grad = EnergyGradient(Odd(result))(normals(4, 3))
    assert modes == [(False, False)]
    assert not any(t.is_inference() for t in (value, grad))


def test_autocast_of_a_known_gradient_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"autocast=torch.bfloat16.*value_and_gradient"):
        EnergyGradient(Quartic(), autocast=torch.bfloat16)
    with pytest.raises(ArgumentError, match=r"autocast=torch.bfloat16.*value_and_gradient"):
        sample(Quartic(), normals(4, 3), Langevin(0.1), 1, autocast=torch.bfloat16)
    EnergyGradient(Doubled(), autocast=torch.bfloat16)


def test_a_known_gradient_compiles() -> None:
    torch._dynamo.reset()
    x = normals(4, 3)
    gradient = EnergyGradient(Odd(lambda x, _: (x.square().sum(1), 2 * x)))
    got = torch.compile(gradient, fullgraph=True, backend="aot_eager")(x)
    for a, b in zip(got, gradient(x), strict=True):
        assert_same_bits(a, b)


# ---- the analytic energies ----------------------------------------------------------------------

COVARIANCE = [[2.0, 0.5, 0.1], [0.5, 1.0, -0.3], [0.1, -0.3, 0.5]]
PLANE = [[[1.0, 0.6], [0.6, 0.5]], [[0.3, -0.1], [-0.1, 2.0]]]
MAKE: dict[str, Callable[[], AnalyticEnergy]] = {
    "a number": lambda: Gaussian(3.0, std=0.5),
    "diagonal": lambda: Gaussian([1.0, 2.0, -3.0], std=[1.0, 0.5, 2.0]),
    "variances": lambda: Gaussian([1.0, 2.0, -3.0], covariance=[1.0, 0.25, 4.0]),
    "full": lambda: Gaussian([1.0, 2.0, -3.0], covariance=COVARIANCE),
    "precision": lambda: Gaussian([1.0, 2.0, -3.0], precision=COVARIANCE),
    "one component": lambda: GaussianMixture([[1.0, 2.0]], covariances=0.25),
    "mixture": lambda: GaussianMixture(
        [[0.0, 0.0], [3.0, 1.0], [90.0, 5.0]], stds=[1.0, 0.5, 2.0], weights=[1, 2, 3]
    ),
    "mixture, diagonal": lambda: GaussianMixture(
        [[0.0, 0.0], [3.0, 1.0]], covariances=[[1.0, 0.25], [0.1, 2.0]], weights=[0.2, 0.1]
    ),
    "mixture, full": lambda: GaussianMixture([[0.0, 0.0], [2.0, 1.0]], covariances=PLANE),
    "EightGaussians": EightGaussians,
    "Rings": Rings,
    "rings that overlap": lambda: Rings([0.0, 0.7, 2.0], [0.5, 0.3, 0.6], weights=[1.0, 0.5, 2.0]),
    "TwoMoons": TwoMoons,
    "moons, narrow": lambda: TwoMoons(radius=5.0, std=0.1, width=0.3),
    "Banana": Banana,
    "Funnel": Funnel,
    "a plane funnel": lambda: Funnel(2, std=0.8),
    "QuadraticWell": lambda: QuadraticWell(3, stiffness=4.0),
    "DoubleWell": DoubleWell,
    "wells, far apart": lambda: DoubleWell(3, barrier=30.0, minimum=2.0),
    "QuarticWell": lambda: QuarticWell(2, stiffness=3.0),
    "Logistic": lambda: Logistic(2, scale=2.0),
}
made: Callable[[str], AnalyticEnergy] = functools.cache(lambda name: MAKE[name]())


@pytest.fixture(params=MAKE)
def energy(request: pytest.FixtureRequest) -> AnalyticEnergy:
    return made(request.param)


def some_states(energy: AnalyticEnergy, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draws, states around them, and some in ten and ten thousand times the distance."""
    x = energy.draw(50, seed=3, dtype=torch.float64)
    near = x + normals(*x.shape, dtype=torch.float64) * energy.variance.sqrt()
    return torch.cat([x, near, 10 * x, 1e4 * x]).to(dtype)


def assert_close(got: Tensor, want: Tensor, rtol: float, what: object = "") -> None:
    """Each chain's error relative to its largest number, or to 1."""
    got, want = (t.detach().double().reshape(len(t), -1) for t in (got, want))
    size = want.abs().amax(1, keepdim=True).clamp(min=1)
    error = torch.where(got == want, 0, (got - want).abs() / size).max()
    assert error <= rtol, (what, float(error))


def gradient_by_autograd(energy: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = energy(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def test_the_closed_form_is_the_derivative_of_the_energy(energy: AnalyticEnergy) -> None:
    x = some_states(energy)
    x = x[energy(x).isfinite()]  # all of them, but in the funnel
    assert len(x) >= 150
    before = x.clone()
    value, grad = energy.value_and_gradient(x)
    want = gradient_by_autograd(energy, x)
    assert (value.shape, grad.shape, grad.dtype) == (x.shape[:1], x.shape, x.dtype)
    assert_close(value, want[0], 1e-12, "value")
    assert_close(grad, want[1], 1e-12, "gradient")
    assert_same_bits(x, before)
    assert not any(t.requires_grad for t in energy.value_and_gradient(x.requires_grad_()))


def test_the_energy_can_be_differentiated_as_often_as_asked(energy: AnalyticEnergy) -> None:
    x = energy.draw(3, seed=5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(energy, x)
    assert torch.autograd.gradgradcheck(energy, x)
    far = torch.cat([x.detach(), some_states(energy)])
    far = far[energy(far) < 1e100].requires_grad_()
    value = energy(far)
    for _ in range(3):
        (value,) = torch.autograd.grad(value.sum(), far, create_graph=True)
        assert value.isfinite().all()
        if not value.requires_grad:
            break


def test_an_energy_drives_a_sampler_by_its_own_gradient() -> None:
    energy, rule = made("EightGaussians"), Langevin(0.001)
    x0 = energy.draw(200, seed=1)
    got, want = (sample(e, x0, rule, 10, seed=1) for e in (energy, lambda x: energy(x)))
    assert not same_bits(got.x, want.x)  # two ways of rounding
    torch.testing.assert_close(got.x, want.x, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.stats.energy, want.stats.energy, rtol=0, atol=1e-4)


# ---- what is known of their laws ----------------------------------------------------------------


def panels(low: float, high: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss and Legendre's points and weights in so many cells."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    width = (high - low) / cells
    left = low + width * np.arange(cells)[:, None]
    return (left + width * (nodes + 1) / 2).ravel(), np.tile(weights * width / 2, cells)


def polar(reach: float) -> tuple[np.ndarray, np.ndarray]:
    r, w = panels(0, reach, 40)
    angles = 2 * np.pi * np.arange(720) / 720
    x = np.stack([np.outer(r, np.cos(angles)), np.outer(r, np.sin(angles))], -1)
    return x.reshape(-1, 2), np.outer(r * w, np.full(720, 2 * np.pi / 720)).ravel()


def product(
    x: np.ndarray, w: np.ndarray, y: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2), np.outer(w, v).ravel()


def narrowing() -> tuple[np.ndarray, np.ndarray]:
    """Points for the plane funnel, whose second coordinate is in proportion to exp(v / 2)."""
    x, w = product(*panels(-10, 10, 40), *panels(-10, 10, 40))
    width = np.exp(x[:, 0] / 2)
    return np.stack([x[:, 0], x[:, 1] * width], 1), w * width


QUADRATURE: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "mixture, diagonal": lambda: product(*panels(-10, 14, 40), *panels(-14, 16, 40)),
    "mixture, full": lambda: product(*panels(-10, 12, 40), *panels(-14, 16, 40)),
    "EightGaussians": lambda: polar(3),
    "Rings": lambda: polar(5),
    "rings that overlap": lambda: polar(8),
    "TwoMoons": lambda: polar(7),
    "moons, narrow": lambda: polar(7),
    "Banana": lambda: product(*panels(-9, 9, 60), *panels(-6, 82, 300)),
    "a plane funnel": narrowing,
    "QuarticWell": lambda: product(*panels(-5, 5, 30), *panels(-5, 5, 30)),
    "Logistic": lambda: product(*panels(-90, 90, 60), *panels(-90, 90, 60)),
}


@pytest.mark.parametrize("name", QUADRATURE)
def test_partition_mean_and_covariance_by_quadrature(name: str) -> None:
    energy = made(name)
    x, w = QUADRATURE[name]()
    density = w * torch.exp(-energy(torch.tensor(x))).cpu().numpy()
    total = density.sum()
    assert math.log(total) == pytest.approx(energy.log_partition, abs=1e-11)
    density = density / total
    mean = density @ x
    np.testing.assert_allclose(energy.mean.cpu(), mean, rtol=1e-10, atol=1e-10)
    covariance = (density[:, None] * (x - mean)).T @ (x - mean)
    np.testing.assert_allclose(energy.covariance.cpu(), covariance, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(energy.variance.cpu(), energy.covariance.diagonal().cpu())
    assert energy.mean.dtype == energy.covariance.dtype == torch.float64


@pytest.mark.parametrize("a", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("h", [1e-3, 0.5, 2.0, 30.0, 1e3, 1e6])
def test_the_partition_of_double_wells_is_of_bessel_functions(h: float, a: float) -> None:
    """int exp(-h ((x/a)^2 - 1)^2) dx = (pi a / 2) exp(-z) (I_1/4(z) + I_-1/4(z)), z = h / 2."""
    z = math.pi * a / 2 * (special.ive(0.25, h / 2) + special.ive(-0.25, h / 2))
    energy = DoubleWell(3, barrier=h, minimum=a)
    assert energy.log_partition == pytest.approx(3 * math.log(z), abs=1e-10)


def test_what_is_known_of_normal_laws() -> None:
    """Densities and moments as torch.distributions has them."""
    at = functools.partial(torch.tensor, dtype=torch.float64)
    m, c = at([1.0, 2.0, -3.0]), at(COVARIANCE)
    normal = torch.distributions.MultivariateNormal
    x = normals(20, 3, dtype=torch.float64)
    for energy, law in (
        (made("full"), normal(m, c)),
        (made("precision"), normal(m, precision_matrix=c)),
        (made("diagonal"), normal(m, at([1.0, 0.25, 4.0]).diag())),
        (made("variances"), normal(m, at([1.0, 0.25, 4.0]).diag())),
        (made("QuadraticWell"), normal(0 * m, at([0.25] * 3).diag())),
    ):
        assert_close(energy.log_prob(x), law.log_prob(x), 1e-13)
        assert_close(energy.covariance, law.covariance_matrix, 1e-14)
        assert_close(energy.mean[None], law.mean[None], 0)
    kinds = torch.distributions.Categorical(at([1.0, 2.0, 3.0]))
    means = at([[0.0, 0.0], [3.0, 1.0], [90.0, 5.0]])
    parts = normal(means, at([1.0, 0.25, 4.0])[:, None, None] * at([1.0, 1.0]).diag())
    law = torch.distributions.MixtureSameFamily(kinds, parts)
    x = torch.cat([x[:, :2], means, means + 1])
    assert_close(made("mixture").log_prob(x), law.log_prob(x), 1e-13)
    assert_close(made("mixture").mean[None], law.mean[None], 1e-13)
    assert_close(made("mixture").variance[None], law.variance[None], 1e-13)
    want = stats.logistic.logpdf(x.cpu().numpy(), scale=2.0).sum(1)
    assert_close(made("Logistic").log_prob(x), torch.tensor(want), 1e-13)


@pytest.mark.parametrize(
    ("make", "variance"),
    [
        (lambda: Funnel(3, std=100.0), [1e4, INF, INF]),
        (lambda: Banana(1.0, 1e160), [1.0, INF]),
        (lambda: Banana(1e100), [1e200, INF]),
        (lambda: Logistic(scale=1e200), [INF]),
    ],
)
def test_moments_that_overflow_are_infinite(
    make: Callable[[], AnalyticEnergy], variance: list[float]
) -> None:
    energy = make()
    assert energy.variance.tolist() == pytest.approx(variance, rel=1e-15)
    value, grad = energy.value_and_gradient(torch.ones(2, energy.dim, dtype=torch.float64))
    assert not value.isnan().any()
    assert not grad.isnan().any()


def test_the_narrowest_and_the_widest_normal_law() -> None:
    for std in (2.0**-511, 2.0**511):
        for law in (Gaussian(std=std), Gaussian(covariance=std**2), Gaussian(precision=std**-2)):
            value, grad = law.value_and_gradient(torch.full((1, 1), std, dtype=torch.float64))
            assert (float(value), float(grad)) == (0.5, 1 / std)


def test_known_answers() -> None:
    assert float(EightGaussians().covariance.trace()) == pytest.approx(1.045, rel=1e-14)
    assert float(QuarticWell().variance) == pytest.approx(0.6759782400671747, rel=1e-14)
    assert float(made("Funnel").variance[5]) == pytest.approx(math.exp(4.5), rel=1e-14)
    assert float(Logistic().variance) == pytest.approx(math.pi**2 / 3, rel=1e-14)
    one = torch.tensor([[0.0], [1.0], [-2.0]], dtype=torch.float64)
    assert DoubleWell()(one).tolist() == [2.0, 0.0, 18.0]
    assert DoubleWell(barrier=3 * 2**4, minimum=2.0)(one)[1] == 27  # 3 (1 - 4)^2
    assert QuarticWell()(one).tolist() == [0.0, 0.25, 4.0]
    # The entropy, which without the modes' overlap would be log 8 + log(2 pi e s^2) = 1.1231.
    energy = EightGaussians()
    x, w = polar(3)
    value = energy(torch.tensor(x)).cpu().numpy()
    assert w @ (value * np.exp(-value)) == pytest.approx(1.0932342, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [1e4, 1e18])
def test_far_away_it_is_right_or_overflows(
    energy: AnalyticEnergy, distance: float, dtype: torch.dtype
) -> None:
    """Against float64: the same, or infinite where that is beyond the dtype."""
    eye = torch.eye(energy.dim, dtype=torch.float64)
    ways = torch.cat([eye, -eye, 0.1 + eye.flip(0), normals(20, energy.dim, dtype=torch.float64)])
    x = (distance * ways).to(dtype)
    largest = torch.finfo(dtype).max
    want = energy.value_and_gradient(x.double())
    for got, exact in zip(energy.value_and_gradient(x), want, strict=True):
        assert not got.isnan().any()
        right = (got - exact).abs() <= 1e-4 * exact.abs() + 1e-4
        beyond = (exact.abs() > largest / 10) & (got == exact.sign() * math.inf)
        assert (right | beyond | (got == exact)).all()
    assert not energy(x).isnan().any()
    assert (want[0] > 100).all()


def test_shares_that_all_vanish_give_an_infinite_energy_and_a_gradient() -> None:
    """Squares beyond float32: nothing is left to compare the modes by."""
    energy = EightGaussians(std=1e-3)
    x = torch.tensor([[1e18, 0.0], [0.0, -1e18], [1.0, 0.0]])
    for value in (energy(x), energy.value_and_gradient(x)[0]):
        assert value[:2].tolist() == [math.inf] * 2
        assert value[2] == pytest.approx(math.log(8 * 2e-6 * math.pi), rel=1e-5)
    torch.testing.assert_close(energy.value_and_gradient(x)[1][:2], 1e6 * x[:2])


def test_a_chain_that_is_not_finite_is_alone() -> None:
    """The others keep every bit."""
    for name in MAKE:
        energy = made(name)
        x = energy.draw(37, seed=1)
        clean = energy(x), *energy.value_and_gradient(x)
        for bad in (math.nan, math.inf, -math.inf):
            for column in range(energy.dim):
                y = x.clone()
                y[5, column] = bad
                y[11] = bad
                got = energy(y), *energy.value_and_gradient(y)
                rest = [i for i in range(37) if i not in (5, 11)]
                for a, b in zip(got, clean, strict=True):
                    assert_same_bits(a[rest], b[rest], (name, bad))
                for value in got[:2]:
                    ends = value[[5, 11]]
                    assert (ends.isnan() | (ends == math.inf)).all(), (name, bad, ends)


def test_float32_is_float64_rounded(energy: AnalyticEnergy) -> None:
    """To ten units in the last place: of x, of U, and of the gradient."""
    x = some_states(energy, torch.float32)
    x = x[energy(x) < 1e30]
    wide, narrow = energy.value_and_gradient(x.double()), energy.value_and_gradient(x)
    assert narrow[0].dtype == narrow[1].dtype == energy(x).dtype == torch.float32
    hessian = torch.func.vmap(torch.func.hessian(lambda point: energy(point[None])[0]))
    curvature = torch.linalg.matrix_norm(hessian(x.double()), 2)
    size, slope = x.double().norm(dim=1), wide[1].norm(dim=1)
    unit = torch.finfo(torch.float32).eps
    for value in (narrow[0], energy(x)):
        assert ((value - wide[0]).abs() / (1 + wide[0].abs() + size * slope)).max() < 10 * unit
    off = (narrow[1] - wide[1]).norm(dim=1)
    assert (off / (1 + slope + size * curvature)).max() < 10 * unit


def test_curvature_where_a_formula_has_a_seam() -> None:
    """At x_1 = 0 the logistic law and the moons are written with |x_1|."""
    zero = torch.zeros(1, dtype=torch.float64)
    hessian = torch.func.hessian(lambda x: made("Logistic")(x[None])[0])(torch.cat([zero, zero]))
    torch.testing.assert_close(hessian, torch.eye(2, dtype=torch.float64) / 8)
    moons, step = TwoMoons(), 1e-4
    points = torch.tensor([[d * step, 1.5] for d in (-1.0, 0.0, 1.0)], dtype=torch.float64)
    slopes = moons.value_and_gradient(points)[1][:, 0]
    hessian = torch.func.hessian(lambda x: moons(x[None])[0])(points[1])
    assert float(slopes[1]) == 0
    assert float(hessian[0, 0]) == pytest.approx(float(slopes[2] - slopes[0]) / (2 * step), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["Rings", "TwoMoons"])
def test_the_gradient_at_the_tip_of_a_cone(name: str, dtype: torch.dtype) -> None:
    """However close, where squares underflow, its length is the slope's; at the tip it is 0."""
    energy, tiny = made(name), 2.0**-100
    x = torch.tensor([[0.0, 0.0], [tiny, 0.0], [-0.6 * tiny, 0.8 * tiny], [0.0, 0.01]], dtype=dtype)
    grad = energy.value_and_gradient(x)[1]
    slope = energy.value_and_gradient(x.new_tensor([[0.0, 1e-6]]))[1][0, 1]
    want = slope * torch.tensor([[0.0, 0.0], [1.0, 0.0], [-0.6, 0.8]], dtype=dtype)
    torch.testing.assert_close(grad[:3], want, rtol=1e-5, atol=1e-5)
    assert energy(x).isfinite().all()
    assert gradient_by_autograd(energy, x)[1][0].abs().max() < 1e-12


# ---- draws --------------------------------------------------------------------------------------

DRAWS = 100_000
Uniforms = list[np.ndarray]


def projections(name: str, x: np.ndarray) -> Uniforms:
    """A mixture of normal laws along some lines, each a mixture on the line."""
    if "mixture" in name or name in ("one component", "EightGaussians"):
        energy: Any = made(name)
        means, weights = energy.means.cpu().numpy(), energy.weights.cpu().numpy()
        spreads = energy.spreads.cpu().numpy()
        roots = spreads if spreads.ndim == 3 else spreads[:, :, None] * np.eye(energy.dim)
    else:
        means, weights = made(name).mean.cpu().numpy()[None], np.ones(1)
        roots = np.linalg.cholesky(made(name).covariance.cpu().numpy())[None]
    lines = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.8, 0.0], [0.5, -0.5, 0.7]])
    found = []
    for line in lines[: {1: 1, 2: 3, 3: 4}[x.shape[1]], : x.shape[1]]:
        std = np.linalg.norm(np.swapaxes(roots, 1, 2) @ line, axis=1)
        z = ((x @ line)[:, None] - means @ line) / std
        found.append(stats.norm.cdf(z) @ weights)
    return found


def of_rings(name: str, x: np.ndarray) -> Uniforms:
    """Radius and angle."""
    energy: Any = made(name)
    radius, angle = np.hypot(x[:, 0], x[:, 1]), np.arctan2(x[:, 1], x[:, 0])
    r, w = panels(0, 8, 400)
    at = torch.tensor(np.stack([r, 0 * r], 1))
    return [below(r, w * r * torch.exp(-energy(at)).cpu().numpy(), radius), angle / 2 / np.pi % 1]


def of_moons(name: str, x: np.ndarray) -> Uniforms:
    """Both coordinates, their sum, and the radius."""
    points, weights = polar(7)
    p = weights * torch.exp(-made(name)(torch.tensor(points))).cpu().numpy()
    radii = np.hypot(points[:, 0], points[:, 1]).reshape(-1, 720)
    radius = below(radii[:, 0], p.reshape(-1, 720).sum(1), np.hypot(x[:, 0], x[:, 1]))
    axis, w = panels(-7, 7, 60)
    plane = torch.tensor(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
    eighth = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    p, turned = (
        np.outer(w, w) * torch.exp(-made(name)(at)).cpu().numpy().reshape(len(axis), -1)
        for at in (plane, plane @ eighth)
    )
    return [
        radius,
        below(axis, p.sum(1), x[:, 0]),
        below(axis, p.sum(0), x[:, 1]),
        below(axis, turned.sum(1), x @ eighth[0].cpu().numpy()),
    ]


def below(nodes: np.ndarray, masses: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The distribution function at x; half of a node's mass lies to its left."""
    some = masses > 1e-30 * masses.max()
    nodes, masses = nodes[some], masses[some]
    total = np.cumsum(masses)
    value: np.ndarray = PchipInterpolator(nodes, (total - masses / 2) / total[-1])(x)
    return value


def unbent(name: str, x: np.ndarray) -> Uniforms:
    """The normals that the draw is a map of."""
    energy: Any = made(name)
    z = x.copy()
    z[:, 0] /= energy.std
    if name == "Banana":
        z[:, 1] = (x[:, 1] - (x[:, 0] ** 2 - 1)) / energy.width
    else:
        z[:, 1:] = x[:, 1:] * np.exp(-x[:, :1] / 2)
    return list(stats.norm.cdf(z[:, :3]).T)


def of_separable(name: str, x: np.ndarray) -> Uniforms:
    if name == "Logistic":
        return list(stats.logistic.cdf(x, scale=2.0).T)
    if name == "QuarticWell":
        return list((0.5 + 0.5 * np.sign(x) * special.gammainc(0.25, 0.75 * x**4)).T)
    energy = made(name)
    nodes, w = panels(-4, 4, 400)
    rows = torch.zeros(len(nodes), energy.dim, dtype=torch.float64)
    rows[:, 0] = torch.tensor(nodes)
    p = w * torch.exp(-(energy(rows) - energy(0 * rows))).cpu().numpy()
    return [below(nodes, p, column) for column in x.T]


LAWS: dict[str, Callable[[str, np.ndarray], Uniforms]] = {
    **dict.fromkeys(("a number", "diagonal", "full", "precision", "QuadraticWell"), projections),
    **dict.fromkeys(("one component", "mixture", "mixture, diagonal"), projections),
    **dict.fromkeys(("mixture, full", "EightGaussians"), projections),
    **dict.fromkeys(("Rings", "rings that overlap"), of_rings),
    **dict.fromkeys(("TwoMoons", "moons, narrow"), of_moons),
    **dict.fromkeys(("Banana", "Funnel", "a plane funnel"), unbent),
    **dict.fromkeys(("DoubleWell", "wells, far apart", "QuarticWell", "Logistic"), of_separable),
}
MOST = 6
"""Distribution functions compared for one law. All of them together raise one false alarm in 10^6
seeds, by the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart."""


@pytest.mark.parametrize("name", LAWS)
def test_draws_have_the_law(name: str) -> None:
    """Each number's law, and by the sum modulo 1 that they are independent where they should be."""
    x = made(name).draw(DRAWS, seed=11, dtype=torch.float64).cpu().numpy()
    uniforms = LAWS[name](name, x)
    if LAWS[name] not in (projections, of_moons):
        uniforms += [(uniforms[0] + u) % 1 for u in uniforms[1:]]
    uniforms += [(u[1:] + u[:-1]) % 1 for u in uniforms[:1]]  # neighbouring chains
    assert len(uniforms) <= MOST
    alpha = 1e-6 / (MOST * len(LAWS))
    for i, u in enumerate(uniforms):
        n, p = len(u), np.sort(u)
        distance = max(np.max(np.arange(1, n + 1) / n - p), np.max(p - np.arange(n) / n))
        assert distance < math.sqrt(math.log(2 / alpha) / (2 * n)), (i, distance)


def test_draws_are_finer_than_the_noise() -> None:
    """Of 24 bits 300 pairs would be equal; of 40 one in two hundred seeds has a pair."""
    x = Logistic().draw(DRAWS, seed=1, dtype=torch.float64)
    assert len(x.unique()) == DRAWS


def test_the_entropy_is_the_mean_energy_of_draws() -> None:
    value = EightGaussians()(EightGaussians().draw(DRAWS, seed=12, dtype=torch.float64))
    z = (float(value.mean()) - 1.0932342) / math.sqrt(float(value.var()) / DRAWS)
    assert abs(z) < stats.norm.isf(1e-6 / 2)


P = torch.cat([torch.linspace(0, 1, 1001)[1:-1].double(), 2.0 ** -torch.arange(2, 41).double()])


@pytest.mark.parametrize("k", [1e-6, 1.0, 1e6])
def test_tabulated_quantiles_of_the_quartic_well(k: float) -> None:
    """To 1e-10 in probability, and to 1e-6 of it in the tail."""
    x = QuarticWell(stiffness=k)._sizes(P).cpu().numpy()
    tail = special.gammaincc(0.25, k * x**4 / 4)
    np.testing.assert_allclose(tail, P.cpu(), rtol=1e-6, atol=1e-13)
    np.testing.assert_allclose(tail, P.cpu(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("h", [1e-3, 2.0, 20.0, 39.9, 40.1, 1e6])
def test_tabulated_quantiles_of_double_wells(h: float) -> None:
    energy = DoubleWell(barrier=h, minimum=3.0)
    p = P[::13]
    reach = math.sqrt(50 / h)
    low, high = 3 * math.sqrt(max(0.0, 1 - reach)), 3 * math.sqrt(1 + reach)
    for x, tail in zip(energy._sizes(p).tolist(), p.tolist(), strict=True):
        nodes, w = panels(x, high, 200) if x > low else panels(low, high, 200)
        mass = 2 * w @ np.exp(-h * ((nodes / 3) ** 2 - 1) ** 2 - energy.log_partition)
        assert mass == pytest.approx(tail, abs=1e-10)


@pytest.mark.parametrize("rho", [0.0, 0.5, 3.0, 30.0, 1e5])
def test_quantiles_of_the_radius(rho: float) -> None:
    """By quadrature of t exp(-(t - rho)^2 / 2)."""
    t = draw_radius(P[::13], torch.full_like(P[::13], rho))
    low, high = max(0.0, rho - 12), rho + 12
    nodes, w = panels(low, high, 200)
    total = w @ (nodes * np.exp(-((nodes - rho) ** 2) / 2))
    for start, tail in zip(t.tolist(), P[::13].tolist(), strict=True):
        nodes, w = panels(start, high, 200)
        mass = w @ (nodes * np.exp(-((nodes - rho) ** 2) / 2)) / total
        assert mass == pytest.approx(tail, abs=1e-10 if rho > 1e4 else 1e-13)


def test_a_draw_depends_on_seed_and_row_alone(energy: AnalyticEnergy) -> None:
    whole = energy.draw(30, seed=7, dtype=torch.float64)
    assert_same_bits(energy.draw(12, seed=7, dtype=torch.float64), whole[:12])
    assert_same_bits(energy.draw(9, Noise(7, first_chain=12), dtype=torch.float64), whole[12:21])
    assert_same_bits(energy.draw(30, seed=7), whole.float())
    assert (energy.draw(30, seed=8) != whole.float()).any(1).all()
    assert (whole[1:] != whole[:-1]).any(1).all()
    assert energy.draw(0, seed=7).shape == (0, energy.dim)
    assert not whole.requires_grad


def test_a_draw_moves_its_own_noise_and_nobody_elses() -> None:
    energy = Gaussian([0.0, 0.0])
    before = torch.get_rng_state()
    first = energy.draw(5, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    # The position that `Purpose` sets apart: not what the steps of a sampler consume.
    assert_same_bits(first, Noise(7).purpose(Purpose.INITIAL_STATE).normal((5, 2)))
    assert not same_bits(first, Noise(7).normal((5, 2)))
    noise = Noise(7)
    assert_same_bits(energy.draw(5, noise), first)
    assert places(noise) == (7, 0, 0, 2)
    assert not same_bits(energy.draw(5, noise), first)
    fixed = Noise(7).at(0)
    assert_same_bits(energy.draw(5, fixed), first)
    assert fixed.step == 0
    torch.manual_seed(3)
    drawn = energy.draw(5)
    torch.manual_seed(3)
    assert_same_bits(energy.draw(5), drawn)
    generators = [torch.Generator(DEVICE).manual_seed(4) for _ in range(2)]
    assert_same_bits(*(energy.draw(5, g) for g in generators))
    assert not same_bits(*(energy.draw(5, generators[0]) for _ in range(2)))


# ---- dtypes, devices, modes ---------------------------------------------------------------------


def test_an_energy_keeps_float64_whatever_it_is_moved_to() -> None:
    energy, x = made("mixture"), some_states(made("mixture"))
    value, grad = energy.value_and_gradient(x)
    rounded = energy.value_and_gradient(x.float())
    for moved in (
        copy.deepcopy(energy).half(),
        copy.deepcopy(energy).to(DEVICE, torch.float32),
        nn.Sequential(copy.deepcopy(energy)).float()[0],
        pickle.loads(pickle.dumps(energy)),
    ):
        assert {b.dtype for b in moved.buffers()} == {torch.float64}
        assert_same_bits(moved.value_and_gradient(x)[0], value)
        assert_same_bits(moved.value_and_gradient(x)[1], grad)
        assert_same_bits(moved.value_and_gradient(x.float())[1], rounded[1])
    assert energy.state_dict() == {}
    assert not list(energy.parameters())


def test_an_energy_follows_the_device_of_the_states(energy: AnalyticEnergy) -> None:
    x = torch.empty(5, energy.dim, device="meta")
    value, grad = energy.value_and_gradient(x)
    assert (value.device.type, grad.shape, energy(x).shape) == ("meta", x.shape, (5,))
    assert copy.deepcopy(energy).to("meta").mean.device.type == "meta"


def test_draws_and_moments_are_where_the_energy_is() -> None:
    there = MAKE["mixture"]().to(DEVICE)
    assert there.draw(3, seed=0).device.type == DEVICE.type
    assert there.draw(3, seed=0, device="cpu").device == CPU
    assert there.mean.device.type == DEVICE.type


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["mixture", "full", "Funnel"])
@pytest.mark.parametrize("first", ["inference", "func", "export", "fake"])
def test_who_calls_first_leaves_nothing_behind(name: str, first: str, dtype: torch.dtype) -> None:
    """Constants are converted once; what watches that call must not be in them."""
    x = made(name).draw(5, seed=0, dtype=dtype)
    want = gradient_by_autograd(MAKE[name](), x)
    with torch.inference_mode(first == "inference"):
        energy = MAKE[name]()
        if first == "inference":
            energy(x)
    if first == "func":
        torch.func.grad(lambda y: energy(y).sum())(x)
    if first == "export":
        torch.export.export(energy, (x,))
    if first == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            energy(mode.from_tensor(x))
    for got, exact in zip(gradient_by_autograd(energy, x), want, strict=True):
        assert_same_bits(got, exact)
    kept = [t for constants in energy._converted.values() for t in constants]
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in kept)


def test_autocast_does_not_reach_an_exact_energy(energy: AnalyticEnergy) -> None:
    x = energy.draw(20, seed=0)
    want = energy(x), *energy.value_and_gradient(x)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        got = energy(x), *energy.value_and_gradient(x)
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize(
    "name",
    ["full", "mixture", "mixture, full", "Rings", "TwoMoons", "Banana", "Funnel", "DoubleWell"],
)
def test_an_energy_compiles(name: str) -> None:
    torch._dynamo.reset()
    gradient, x = EnergyGradient(made(name)), made(name).draw(6, seed=0)
    got = torch.compile(gradient, fullgraph=True, backend="aot_eager")(x)
    for a, b in zip(got, gradient(x), strict=True):
        assert_same_bits(a, b)


def test_a_sampler_on_an_energy_compiles_whole() -> None:
    torch._dynamo.reset()
    rule, gradient = AniLA(5.0, 0.001), EnergyGradient(EightGaussians())
    x0, noise, eager = EightGaussians().draw(6, seed=0), Noise(5), Noise(5)
    step = torch.compile(
        lambda state: rule.step(state, gradient, noise), fullgraph=True, backend="aot_eager"
    )
    got, want = (rule.init(gradient, x0.clone(), noise) for _ in range(2))
    for _ in range(3):
        got, want = step(got), rule.step(want, gradient, eager)
    assert_same_bits(got.x, want.x)
    assert_same_bits(got.energy, want.energy)


# ---- bad input ----------------------------------------------------------------------------------

TWO = [[0.0, 0.0], [1.0, 1.0]]
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: EightGaussians()(torch.zeros(2)), ShapeError, r"\(2,\): states are \(B, 2\)"),
    (lambda: EightGaussians()(torch.zeros(5, 3)), ShapeError, r"\(5, 3\)"),
    (lambda: EightGaussians()([[0.0, 0.0]]), DtypeError, "x is a list"),
    (lambda: EightGaussians()(torch.zeros(5, 2).half()), DtypeError, "torch.float16"),
    (lambda: Gaussian().value_and_gradient(torch.zeros(5, 1).long()), DtypeError, "torch.int64"),
    (lambda: Gaussian().value_and_gradient(torch.zeros(1, 5)), ShapeError, r"\(1, 5\)"),
    (lambda: Gaussian().draw(-1), ArgumentError, "n=-1"),
    (lambda: Gaussian().draw(2.5), ArgumentError, "n=2.5"),
    (lambda: Gaussian().draw(2, dtype=torch.int32), DtypeError, "torch.int32"),
    (lambda: Gaussian().draw(2, seed=-1), NoiseError, "seed=-1"),
    (lambda: Gaussian().draw(2, Noise(1, stream=3)), NoiseError, "stream=3"),
    (lambda: Gaussian().draw(2, Noise(1, first_chain=2**32 - 1)), NoiseError, "first_chain"),
    (lambda: Gaussian("a"), ArgumentError, "mean='a'"),
    (lambda: Gaussian([0.0, NAN]), ArgumentError, r"mean=\[0.0, nan\]"),
    (lambda: Gaussian([1j]), ArgumentError, "complex"),
    (lambda: Gaussian(torch.zeros(2, 2)), ShapeError, r"mean has shape \(2, 2\)"),
    (lambda: Gaussian([]), ShapeError, r"mean has shape \(0,\)"),
    (lambda: Gaussian(std=1.0, precision=1.0), ArgumentError, "std and precision are given"),
    (lambda: Gaussian(std=0.0), ArgumentError, "std=0.0"),
    *(
        (
            lambda std=std: Gaussian(0.0, std=std),
            ArgumentError,
            f"std={re.escape(repr(std))}: a var",
        )
        for std in (1e-200, 1e200, 5e-324)
    ),
    (lambda: Gaussian(covariance=1e-310), ArgumentError, "covariance=1e-310"),
    (lambda: Gaussian(precision=5e-324), ArgumentError, "precision=5e-324"),
    (lambda: Gaussian([0.0, 0.0], covariance=1e-310 * torch.eye(2).double()), ArgumentError, "cov"),
    (lambda: QuadraticWell(stiffness=1e-310), ArgumentError, "stiffness=1e-310"),
    (lambda: GaussianMixture(TWO, stds=1e-200), ArgumentError, "stds=1e-200"),
    (lambda: GaussianMixture(TWO, covariances=1e-310), ArgumentError, "covariances=1e-310"),
    (lambda: EightGaussians(std=1e200), ArgumentError, r"std=1e\+200"),
    (lambda: Rings([1.0], 1e-200), ArgumentError, "std=1e-200"),
    (lambda: TwoMoons(std=1e-200), ArgumentError, "std=1e-200: its square"),
    (lambda: TwoMoons(width=1e200), ArgumentError, r"width=1e\+200: its square"),
    (lambda: Banana(std=1e200), ArgumentError, r"std=1e\+200: its square"),
    (lambda: Banana(width=1e-200), ArgumentError, "width=1e-200: its square"),
    (lambda: Banana(1e100, 1e200), ArgumentError, r"curvature=1e\+200 with std=1e\+100"),
    (lambda: Funnel(std=1e200), ArgumentError, r"std=1e\+200: its square"),
    (lambda: Gaussian(covariance=-1.0), ArgumentError, "covariance=-1.0"),
    (lambda: Gaussian([0.0, 0.0], std=[1.0] * 3), ShapeError, r"std has shape \(3,\).*\(2,\)"),
    (lambda: Gaussian([0.0, 0.0], std=torch.eye(2)), ShapeError, r"std has shape \(2, 2\)"),
    (lambda: Gaussian([0.0, 0.0], precision=[[1.0, 2.0], [2.0, 1.0]]), ArgumentError, "is -1"),
    (
        lambda: Gaussian([0.0, 0.0], covariance=[[1.0, 0.5], [0, 1.0]]),
        ArgumentError,
        "by up to 0.5",
    ),
    (lambda: GaussianMixture([0.0, 1.0]), ShapeError, r"means has shape \(2,\)"),
    (lambda: GaussianMixture(torch.zeros(65, 2)), ShapeError, r"means has shape \(65, 2\)"),
    (lambda: GaussianMixture(torch.zeros(0, 2)), ShapeError, r"means has shape \(0, 2\)"),
    (lambda: GaussianMixture(TWO, stds=-1.0), ArgumentError, "stds="),
    (lambda: GaussianMixture(TWO, stds=[1.0] * 3), ShapeError, r"stds has shape \(3,\)"),
    (
        lambda: GaussianMixture(TWO, stds=1.0, covariances=1.0),
        ArgumentError,
        "stds and covariances",
    ),
    (
        lambda: GaussianMixture(TWO, covariances=-torch.eye(2).expand(2, 2, 2)),
        ArgumentError,
        "is -1",
    ),
    (lambda: GaussianMixture(TWO, weights=[1.0]), ShapeError, r"weights has shape \(1,\)"),
    (lambda: GaussianMixture(TWO, weights=[1.0, 0.0]), ArgumentError, r"weights=\[1.0, 0.0\]"),
    (lambda: EightGaussians(radius=0.0), ArgumentError, "radius=0.0"),
    (lambda: EightGaussians(std=True), ArgumentError, "std=True"),
    (lambda: Rings([-1.0]), ArgumentError, "radii="),
    (lambda: Rings([]), ShapeError, r"radii has shape \(0,\)"),
    (lambda: Rings(1.0), ShapeError, r"radii has shape \(\)"),
    (lambda: Rings([1.0, 2.0], [0.1] * 3), ShapeError, r"std has shape \(3,\).*\(2,\)"),
    (lambda: Rings([1.0], weights=-1.0), ArgumentError, "weights=-1.0"),
    (lambda: TwoMoons(std=0.5, width=0.4), ArgumentError, "width=0.4 below std=0.5"),
    (lambda: TwoMoons(radius=math.inf), ArgumentError, "radius=inf"),
    (lambda: Banana(curvature=NAN), ArgumentError, "curvature=nan"),
    (lambda: Banana(width=0), ArgumentError, "width=0"),
    (lambda: Funnel(1), ArgumentError, "dim=1: give an int >= 2"),
    (lambda: Funnel(std=None), ArgumentError, "std=None"),
    (lambda: QuadraticWell(0), ArgumentError, "dim=0"),
    (lambda: QuadraticWell(stiffness=-2.0), ArgumentError, "stiffness=-2.0"),
    (lambda: DoubleWell(2.0), ArgumentError, "dim=2.0"),
    (lambda: DoubleWell(barrier="2"), ArgumentError, "barrier='2'"),
    (lambda: DoubleWell(minimum=0.0), ArgumentError, "minimum=0.0"),
    (lambda: QuarticWell(True), ArgumentError, "dim=True"),
    (lambda: Logistic(scale=NAN), ArgumentError, "scale=nan"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_named(case: int) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_a_draw_that_is_refused_consumes_nothing() -> None:
    noise = Noise(1)
    with pytest.raises(ArgumentError):
        Gaussian().draw(-1, noise)
    assert noise.step == 0


def test_arguments_are_copied() -> None:
    means = torch.tensor(TWO, dtype=torch.float64)
    mixture, normal = GaussianMixture(means), Gaussian(means[1])
    x = means.clone()
    want = mixture(x), normal(x)
    means.fill_(9.0)
    for got, value in zip((mixture(x), normal(x)), want, strict=True):
        assert_same_bits(got, value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DoubleWell(barrier=1e150),
        lambda: DoubleWell(minimum=5e-324),
        lambda: TwoMoons(radius=1e150),
        lambda: TwoMoons(1.0, 1e-30, 1e-30),
    ],
)
def test_what_float64_does_not_hold_is_named(make: Callable[[], Any]) -> None:
    with pytest.raises(ArgumentError, match="float64 does not hold"):
        make()
