"""AniLA's bias and its corrections, and TULA: what each chain samples, by quadrature.

Every figure is the law of small steps, exp(-U) max(b, |grad U|) up to a constant, or that of the
chain's own kernel at its step size, on the line or for the radius of a Gaussian.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import special
from torch import Tensor

from langevin_ext import TULA, AniLA, Langevin, Noise, Purpose, gradient_scale, sample
from langevin_ext.errors import (
    ArgumentError,
    EnergyError,
    NonFiniteError,
    SamplingInterrupted,
    ShapeError,
)
from langevin_ext.samplers.anila import Correction
from langevin_ext.testing import Checks, Kernel1D

from .conftest import assert_same_bits, chains, normals

Array = npt.NDArray[np.float64]


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1).square().sum(1)


def quartic(x: Tensor) -> Tensor:
    return 0.25 * x.flatten(1).pow(4).sum(1)


def coupled(x: Tensor) -> Tensor:
    """Its Hessian is no multiple of the identity, and depends on x."""
    return 0.25 * x.pow(4).sum(1) + 0.7 * x[:, 0] * x[:, 1] + 0.3 * x[:, 1].sin()


def initial(seed: int, shape: tuple[int, ...]) -> Tensor:
    return Noise(seed, stream=Purpose.INITIAL_STATE).normal(shape)


def gaussian_density(x: Array) -> Array:
    return np.asarray(np.exp(-x * x / 2))


# ---- what is exact ------------------------------------------------------------------------------


def gamma(norm: Array, b: float) -> Array:
    return np.asarray(b / np.maximum(b, norm))


@functools.cache
def anila_kernel(
    b: float, h: float, kind: str = "none", power: float = 0.5, span: float = 9.0, nodes: int = 500
) -> Kernel1D:
    """AniLA's on N(0, 1); ``kind`` is none or divergence."""

    def mean(x: Array) -> Array:
        push = np.where(np.abs(x) > b, -b * np.sign(x) / np.maximum(x * x, b * b), 0.0)
        return x - h / 2 * gamma(np.abs(x), b) * x + (h / 2 * push if kind == "divergence" else 0)

    return Kernel1D.gaussian(
        mean, lambda x: math.sqrt(h) * gamma(np.abs(x), b) ** power, (-span, span),
        breaks=(-b, b), nodes=nodes,
    )  # fmt: skip


@functools.cache
def tula_kernel(
    h: float, power: int, span: tuple[float, float], nodes: int, points: tuple[float, ...] = ()
) -> Kernel1D:
    """TULA's on x^(power + 1) / (power + 1)."""

    def mean(x: Array) -> Array:
        grad = x**power
        return np.asarray(x - h / 2 * grad / (1 + h / 2 * np.abs(grad)))

    grid: dict[str, Any] = {"breaks": (0.0,), "nodes": nodes, "points": points}
    return Kernel1D.gaussian(mean, math.sqrt(h), span, **grid)


@functools.cache
def radial_kernel(d: int, b: float, h: float) -> Kernel1D:
    """AniLA's on N(0, I_d), for |x|: what N(m, s^2 I) has for a radius is a noncentral chi."""

    def log_density(r: Array, y: Array) -> Array:
        g = gamma(r, b)
        m, variance = np.maximum(np.abs(r - h / 2 * g * r), 1e-9), h * g
        order, z = d / 2 - 1, y * m / variance
        bessel = np.log(special.ive(order, z)) - (y - m) ** 2 / (2 * variance)
        return np.asarray(np.log(y / variance) + order * np.log(y / m) + bessel)

    return Kernel1D(log_density, (0.0, 10.0), breaks=(b,), nodes=400, tolerance=1e-5)


def weighted_variance(kernel: Kernel1D, law: Any, b: float) -> float:
    """Of an even law, with weights gamma."""
    weight = kernel.expect(law, lambda x: gamma(np.abs(x), b))
    return kernel.expect(law, lambda x: gamma(np.abs(x), b) * x * x) / weight


def of_small_steps(
    energy: Callable[[Array], Array], slope: Callable[[Array], Array], b: float,
    f: Callable[[Array], Array], span: tuple[float, float] = (-12.0, 12.0),
) -> float:  # fmt: skip
    """The mean of f under exp(-U) max(b, |U'|), by the midpoint rule."""
    cells = 400_000
    x = span[0] + (np.arange(cells) + 0.5) * (span[1] - span[0]) / cells
    p = np.exp(-energy(x)) * np.maximum(b, np.abs(slope(x)))
    return float((p * f(x)).sum() / p.sum())


class TwoModes:
    """1/2 N(-3, s^2) + 1/2 N(3, 1)."""

    def __init__(self, s: float) -> None:
        self.s = s

    def parts(self, x: Any) -> Any:
        return -0.5 * ((x + 3) / self.s) ** 2 - math.log(self.s), -0.5 * (x - 3) ** 2

    def energy(self, x: Array) -> Array:
        return -np.logaddexp(*self.parts(x))

    def slope(self, x: Array) -> Array:
        left, right = self.parts(x)
        share = special.expit(left - right)
        return np.asarray(share * (x + 3) / self.s**2 + (1 - share) * (x - 3))

    def __call__(self, x: Tensor) -> Tensor:
        return -torch.logaddexp(*self.parts(x[:, 0]))

    def kernel(self, b: float, h: float, nodes: int, points: tuple[float, ...] = ()) -> Kernel1D:
        """AniLA's."""
        x = np.linspace(-6, 9, 150_001)
        breaks = x[:-1][np.diff(np.sign(np.abs(self.slope(x)) - b)) != 0]
        return Kernel1D.gaussian(
            lambda x: x - h / 2 * gamma(np.abs(self.slope(x)), b) * self.slope(x),
            lambda x: np.sqrt(h * gamma(np.abs(self.slope(x)), b)),
            (-6, 9), breaks=(*breaks, *points), nodes=nodes,
        )  # fmt: skip


# ---- no correction: what the bias is ------------------------------------------------------------


@pytest.mark.parametrize(
    ("s", "b", "mass"), [(0.3, 0.5, 0.7514), (0.3, 2, 0.6086), (0.1, 0.5, 0.8997), (0.1, 2, 0.8018)]
)
def test_the_narrow_mode_gains(s: float, b: float, mass: float) -> None:
    """Of two modes of mass 1/2: the mass of the left one for small steps."""
    two = TwoModes(s)
    got = of_small_steps(two.energy, two.slope, b, lambda x: x < 0)
    assert got == pytest.approx(mass, abs=5e-5)
    # The chain tends to it, slowly where the mode is stiff.
    errors = [abs(_left(two.kernel(b, h, nodes)) - mass) for h, nodes in ((0.1, 700), (0.05, 1000))]
    assert s < 0.3 or errors[1] < 0.4 * errors[0]


def _left(kernel: Kernel1D) -> float:
    return kernel.expect(kernel.stationary(), lambda x: x < 0)


@pytest.mark.parametrize("b", [0.5, 2.0])
def test_chains_between_modes_have_the_law_of_their_kernel(b: float, seed: int) -> None:
    """From everywhere between -5 and 7, after 60 small steps: the law, and the left mode's mass."""
    n, h, two = chains(50_000), 0.05, TwoModes(0.3)
    kernel = two.kernel(b, h, 1000, points=(-5, 7))
    law = kernel.after(60, lambda x: np.where(np.abs(x - 1) <= 6, 1.0, 0.0))
    start = 12 * Noise(2000 + seed, stream=Purpose.INITIAL_STATE).uniform((n, 1)) - 5
    x = sample(two, start, AniLA(b, h), 60, seed=1000 + seed).x[:, 0]
    checks = Checks(2)
    checks.law(x, kernel.cdf(law))
    checks.probability((x < 0).sum(), n, kernel.expect(law, lambda x: x < 0))


@pytest.mark.parametrize(
    ("d", "limit", "wide"), [(2, 1.5, 1.2226), (10, 1.1, 1.0480), (100, 1.01, 1.00495)]
)
def test_the_variance_of_many_coordinates(d: int, limit: float, wide: float) -> None:
    """Of one coordinate of N(0, I_d), small steps: (d + 1) / d for b = 0, and at b = sqrt(d)."""

    def variance(b: float) -> float:
        radius = (np.arange(400_000) + 0.5) * 1e-4
        p = np.exp((d - 1) * np.log(radius) - radius**2 / 2) * np.maximum(b, radius)
        return float((p * radius**2).sum() / p.sum() / d)

    assert limit == (d + 1) / d
    assert variance(0) == pytest.approx(limit, abs=1e-6)
    assert variance(math.sqrt(d)) == pytest.approx(wide, abs=5e-5)


@pytest.mark.parametrize(
    ("d", "b", "h", "variance"),
    [
        (2, 0.05, 4.0, 1.6759), (2, math.sqrt(2), 0.1, 1.2501),
        (10, 0.05, 4.0, 1.1170), (10, math.sqrt(10), 0.5, 1.1861),
    ],
)  # fmt: skip
def test_chains_in_many_coordinates(d: int, b: float, h: float, variance: float, seed: int) -> None:
    """The radius has the law of its kernel; in the long run a coordinate has this variance."""
    n, kernel = chains(20_000), radial_kernel(d, b, h)
    assert kernel.moment(kernel.stationary(), 2) / d == pytest.approx(variance, abs=5e-5)
    law = kernel.after(30, lambda r: r ** (d - 1) * np.exp(-r * r / 2))
    x = sample(quadratic, initial(2000 + seed, (n, d)), AniLA(b, h), 30, seed=1000 + seed).x
    radius, checks = x.double().norm(dim=1), Checks(2)
    checks.law(radius, kernel.cdf(law))
    checks.moment(radius, 2, functools.partial(kernel.moment, law))


@pytest.mark.parametrize(("b", "variance"), [(5, 0.68830), (1, 1.11368), (0.2, 1.63598)])
def test_the_bias_on_a_quartic_well(b: float, variance: float) -> None:
    got = of_small_steps(lambda x: x**4 / 4, lambda x: x**3, b, lambda x: x * x)
    assert got == pytest.approx(variance, abs=5e-6)


@pytest.mark.parametrize(("h", "variance"), [(1.0, 2.7200), (0.1, 2.2845)])
def test_clipping_the_drift_alone(h: float, variance: float, seed: int) -> None:
    """b = 1, noise power 0: an exponential tail, and a variance far from 1 for every step size."""
    kernel = anila_kernel(1.0, h, power=0.0, span=30.0, nodes=1000)
    assert kernel.variance(kernel.stationary()) == pytest.approx(variance, abs=5e-5)
    law = kernel.after(25, gaussian_density)
    start = initial(2000 + seed, (chains(40_000), 1))
    x = sample(quadratic, start, AniLA(1.0, h, noise_power=0), 25, seed=1000 + seed).x[:, 0]
    checks = Checks(2)
    checks.law(x, kernel.cdf(law))
    checks.moment(x, 2, functools.partial(kernel.moment, law))


# ---- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "h", "variance"),
    [(2, 1, 1.3020), (1, 1, 1.1919), (1, 0.1, 1.0173), (0.5, 1, 1.0979), (0.5, 0.1, 1.0096)],
)
def test_weighted_variance(b: float, h: float, variance: float, seed: int) -> None:
    """Of N(0, 1), in the long run; and after 20 steps from N(0, 1) that of the kernel."""
    kernel = anila_kernel(b, h)
    assert weighted_variance(kernel, kernel.stationary(), b) == pytest.approx(variance, abs=5e-5)
    law = kernel.after(20, gaussian_density)
    start = initial(2000 + seed, (chains(40_000), 1))
    got = sample(quadratic, start, AniLA(b, h, correction="weights"), 20, seed=1000 + seed)
    assert got.weights is not None
    # Of weighted deviations from what the variance should be the mean is 0.
    want = weighted_variance(kernel, law, b)
    term = got.weights * (got.x[:, 0].double() ** 2 - want)

    def moment(k: int) -> float:
        return kernel.expect(law, lambda x: (gamma(np.abs(x), b) * (x * x - want)) ** k)

    checks = Checks(1)
    checks.mean(term, 0, moment(2), skewness=moment(3) / moment(2) ** 1.5)


def test_weighted_moments_tend_to_those_of_the_target() -> None:
    """At first order: a fifth of the step is a fifth of the error."""
    for b in (0.5, 1.0, 2.0):
        errors = []
        for h in (0.1, 0.02):
            kernel = anila_kernel(b, h, span=6.5, nodes=800)
            errors.append(abs(weighted_variance(kernel, kernel.stationary(), b) - 1))
        assert errors[1] == pytest.approx(errors[0] / 5, rel=0.1)
        assert errors[1] < 0.006


def test_chains_are_those_without_weights() -> None:
    """To the bit, with a threshold for each chain too."""
    x0 = normals(40, 3)
    for b in (0.7, torch.rand(40) + 0.1):
        got = sample(coupled, x0, AniLA(b, 0.3, correction="weights"), 9, seed=1, keep_every=2)
        want = sample(coupled, x0, AniLA(b, 0.3), 9, seed=1, keep_every=2)
        assert want.weights is want.trajectory_weights is want.stats.weight is None
        assert got.trajectory is not None
        assert want.trajectory is not None
        assert_same_bits(got.x, want.x)
        assert_same_bits(got.trajectory, want.trajectory)
        for name in ("grad_norm", "gamma", "clipped"):
            assert_same_bits(getattr(got.stats, name), getattr(want.stats, name), name)


def recomputed(x: Tensor, b: float | Tensor) -> Tensor:
    """gamma where chains (B, ...) of `coupled` are, float64."""
    point = x.double().requires_grad_()
    (grad,) = torch.autograd.grad(coupled(point).sum(), point)
    return torch.clamp(b / grad.norm(dim=1), max=1)


def test_weights_are_those_of_the_states_they_come_with() -> None:
    """gamma(x), at the last states and at every kept one, after burn-in."""
    b, x0 = torch.linspace(0.2, 2, 30, dtype=torch.float64), normals(30, 2, dtype=torch.float64)
    rule = AniLA(b, 0.3, correction="weights")
    got = sample(coupled, x0, rule, 10, seed=1, burn_in=2, keep_every=3)
    assert got.weights is not None
    assert got.trajectory is not None
    assert got.trajectory_weights is not None
    assert got.trajectory_weights.shape == (3, 30)
    torch.testing.assert_close(got.weights, recomputed(got.x, b), rtol=1e-12, atol=0)
    for x, weights in zip(got.trajectory, got.trajectory_weights, strict=True):
        torch.testing.assert_close(weights, recomputed(x, b), rtol=1e-12, atol=0)
    assert (got.weights < 1).any()
    assert (got.weights == 1).any()


@pytest.mark.parametrize("shape", [(30,), (30, 2), (10, 2, 2)], ids=str)
def test_moments_are_weighted(shape: tuple[int, ...]) -> None:
    """Mean, variance n / (n - 1) and mean weight of each chain, from its trajectory."""
    got = sample(
        lambda x: x.abs().reshape(len(x), -1).pow(2.5).sum(1),
        normals(*shape),
        AniLA(0.5, 0.5, correction="weights"),
        50,
        seed=1,
        keep_every=1,
        moments=True,
    )
    assert got.trajectory is not None
    assert got.trajectory_weights is not None
    x, w = got.trajectory.double(), got.trajectory_weights
    share = (w / w.sum(0)).view(50, -1, *[1] * (len(shape) - 1))
    mean = (share * x).sum(0)
    variance = (share * (x - mean) ** 2).sum(0) * 50 / 49
    assert got.stats.mean is not None
    assert got.stats.var is not None
    assert got.stats.weight is not None
    torch.testing.assert_close(got.stats.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.stats.var.double(), variance, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.stats.weight.double(), w.mean(0), rtol=1e-6, atol=0)
    assert (got.stats.var - x.var(0)).abs().mean() > 0.01  # it makes a difference


@pytest.mark.parametrize("correction", ["weights", "divergence"])
def test_a_run_goes_on_and_splits_to_the_bit(correction: Correction) -> None:
    x0, rule = normals(20, 2), AniLA(0.5, lambda k: 0.3 / (k + 1), correction=correction)
    noise = Noise(3)
    whole = sample(coupled, x0, rule, 9, seed=noise)
    assert noise.step == 9
    rest = sample(coupled, sample(coupled, x0, rule, 4, seed=3).state, rule, 5)
    assert_same_bits(rest.x, whole.x)
    for first, last in ((0, 7), (7, 8), (8, 20)):
        part = sample(coupled, x0[first:last], rule, 9, seed=Noise(3, first_chain=first))
        assert_same_bits(part.x, whole.x[first:last])
        if whole.weights is not None and part.weights is not None:
            assert_same_bits(part.weights, whole.weights[first:last])


@pytest.mark.parametrize("correction", ["weights", "divergence"])
def test_a_threshold_per_chain_is_a_run_per_chain(correction: Correction) -> None:
    """Step sizes too; an infinite threshold among them."""
    b, h = torch.tensor([0.3, 1.0, 3.0, math.inf]), torch.tensor([0.1, 0.5, 0.3, 0.05])
    x0 = normals(4, 2)
    together = sample(coupled, x0, AniLA(b, h, correction=correction), 8, seed=1).x
    for i in range(4):
        rule = AniLA(b[i].item(), h[i].item(), correction=correction)
        alone = sample(coupled, x0[i : i + 1], rule, 8, seed=Noise(1, first_chain=i)).x
        assert_same_bits(together[i : i + 1], alone, i)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_energy_that_raises_leaves_whole_steps(error: Any) -> None:
    """The weight at a step's end is found after the step; the state goes on exactly."""
    calls: list[int] = []

    def failing(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise error
        return coupled(x)

    x0, rule = normals(4, 2), AniLA(0.5, 0.2, correction="weights")
    with pytest.raises((EnergyError, SamplingInterrupted)) as caught:
        sample(failing, x0, rule, 9, seed=1)
    samples: Any = caught.value.samples
    assert samples.state.step == 3
    assert_same_bits(samples.x, sample(coupled, x0, rule, 3, seed=1).x)
    whole = sample(coupled, x0, rule, 9, seed=1)
    rest = sample(coupled, samples.state, rule, 6)
    assert_same_bits(rest.x, whole.x)
    assert rest.weights is not None
    assert whole.weights is not None
    assert_same_bits(rest.weights, whole.weights)


class Cliff:
    """U = x_1 + x_2, with an infinite gradient where x_1 > 3/2."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.sum(1)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), torch.where(x > 1.5, math.inf, 1.0)


def test_a_chain_without_a_weight_is_frozen_where_it_had_one() -> None:
    """A gradient that is not finite ends the chain at the step that led there."""
    x0, rule = torch.zeros(200, 2), AniLA(0.5, 0.5, correction="weights")
    got = sample(Cliff(), x0, rule, 30, seed=1, on_nonfinite="freeze", moments=True)
    assert 0 < got.state.frozen.sum() < 200
    assert got.weights is not None
    assert got.stats.mean is not None
    assert got.weights.isfinite().all()
    assert got.stats.mean.isfinite().all()
    assert (got.x <= 1.5).all()
    with pytest.raises(NonFiniteError):
        sample(Cliff(), x0, rule, 30, seed=1)


@pytest.mark.parametrize("policy", ["freeze", "reinit"])
def test_a_gradient_may_be_one_number_expanded(policy: Any) -> None:
    """Of a linear energy it is; what is saved of a chain does not share its memory."""

    def poisoned(x: Tensor) -> Tensor:
        return x.sum(1) + torch.where(x.detach()[:, 0] > 1, math.nan, 0.0)

    x0, rule = torch.zeros(50, 2), AniLA(0.5, 0.5, correction="weights")
    got = sample(poisoned, x0, rule, 20, seed=1, on_nonfinite=policy)
    bad = got.state.frozen if policy == "freeze" else got.stats.restarts > 0
    assert 0 < bad.sum() < 50
    clean = sample(lambda x: x.sum(1), x0, rule, 20, seed=1)
    assert_same_bits(got.x[~bad], clean.x[~bad])


# ---- divergence ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "h", "variance"),
    [(2, 1, 1.3515), (1, 1, 1.4370), (1, 0.1, 1.0351), (0.5, 1, 1.6297), (0.5, 0.1, 1.0519)],
)
def test_the_law_with_divergence(b: float, h: float, variance: float, seed: int) -> None:
    """Of N(0, 1), in the long run; and after 20 steps from N(0, 1) that of the kernel."""
    kernel = anila_kernel(b, h, "divergence")
    assert kernel.variance(kernel.stationary()) == pytest.approx(variance, abs=5e-5)
    law = kernel.after(20, gaussian_density)
    start = initial(2000 + seed, (chains(40_000), 1))
    rule = AniLA(b, h, correction="divergence")
    x, checks = sample(quadratic, start, rule, 20, seed=1000 + seed).x[:, 0], Checks(3)
    checks.law(x, kernel.cdf(law))
    checks.moment(x, 2, functools.partial(kernel.moment, law))
    checks.moment(x, 1, functools.partial(kernel.moment, law))


def test_divergence_tends_to_the_target() -> None:
    for b in (0.5, 1.0):
        kernels = [anila_kernel(b, h, "divergence", 0.5, 6.5, 800) for h in (0.1, 0.02)]
        errors = [abs(kernel.variance(kernel.stationary()) - 1) for kernel in kernels]
        assert errors[1] < 0.25 * errors[0] < 0.015


@pytest.mark.parametrize("b", [0.3, 1.0, math.inf])
def test_the_drift_is_the_gradient_of_gamma(b: float) -> None:
    """(h / 2) grad gamma, by differentiating gamma itself; nothing where it is 1."""
    h, x = 0.4, 1.5 * normals(200, 2, dtype=torch.float64)
    point = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(coupled(point).sum(), point, create_graph=True)
    g = torch.clamp(b / grad.norm(dim=1), max=1)
    (slope,) = torch.autograd.grad(g.sum(), point) if b < math.inf else (torch.zeros_like(x),)
    assert b == math.inf or (g < 1).any()
    assert b < 1 or (slope == 0).all(1).any()
    g, grad = g.detach()[:, None], grad.detach()
    xi = Noise(1).normal(x.shape, dtype=x.dtype)
    want = x - h / 2 * g * grad + h / 2 * slope + (h * g).sqrt() * xi
    got = sample(coupled, x, AniLA(b, h, correction="divergence"), 1, seed=1, moments=True)
    torch.testing.assert_close(got.x, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.stats.gamma, g[:, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(got.stats.grad_norm, grad.norm(dim=1), rtol=1e-12, atol=0)


def test_there_is_none_where_the_energy_is_linear_in_pieces() -> None:
    """Of |x|, and of a network with ReLU alone: AniLA as it is."""
    torch.manual_seed(0)
    relu = torch.nn.Sequential(
        torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)
    ).double()
    x0 = normals(50, 2, dtype=torch.float64)
    for energy in (lambda x: x.abs().sum(1), relu, lambda x: x.sum(1)):
        runs = [
            sample(energy, x0, AniLA(0.1, 0.5, correction=c), 5, seed=1).x
            for c in ("none", "divergence")
        ]
        torch.testing.assert_close(runs[0], runs[1], rtol=1e-12, atol=1e-12)


# ---- thresholds ---------------------------------------------------------------------------------


def test_gradient_scale() -> None:
    """A quantile of |grad U| over the chains; the norm is over all other axes."""
    x = normals(101, 2, 3)
    norms = x.flatten(1).norm(dim=1).double()
    assert gradient_scale(quadratic, x) == pytest.approx(norms.median().item(), rel=1e-6)
    for q in (0.0, 0.25, 0.9, 1.0):
        want = np.quantile(norms.cpu().numpy(), q)
        assert gradient_scale(quadratic, x, q) == pytest.approx(want, rel=1e-6)
    b = gradient_scale(quadratic, x)
    assert sample(quadratic, x, AniLA(b), 1, seed=1).stats.clipped.sum() == 50
    assert gradient_scale(lambda x: x.square(), torch.tensor([3.0, 1.0, 2.0])) == 4.0


def test_gradient_scale_leaves_a_module_alone() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(), torch.nn.Linear(4, 1))
    first = gradient_scale(module, normals(20, 3))
    assert first == gradient_scale(module, normals(20, 3))  # without dropout
    assert module.training
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_gradient_scale_says_what_is_wrong() -> None:
    for quantile in (-0.1, 1.1, math.nan, "half", True):
        with pytest.raises(ArgumentError, match="quantile="):
            gradient_scale(quadratic, normals(4, 3), quantile)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no gradient to measure"):
        gradient_scale(quadratic, torch.zeros(0, 3))
    bad = normals(4, 3)
    bad[2, 1] = math.inf
    with pytest.raises(NonFiniteError, match=r"x\[2\]") as caught:
        gradient_scale(quadratic, bad)
    assert caught.value.chains == [2]


@pytest.mark.parametrize("correction", ["none", "weights", "divergence", "metropolis"])
def test_a_threshold_that_does_not_fit_is_named(correction: Correction) -> None:
    rule = AniLA(torch.ones(3), 0.1, correction=correction)
    with pytest.raises(ShapeError, match=r"threshold has shape \(3,\).*\(5,\)"):
        sample(coupled, normals(5, 2), rule, 1, seed=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("per", "coordinate"), ("noise_power", 1.0), ("temperature", 0.5), ("noise_std", 0.1),
        ("clamp", (-1, 1)), ("reference_precision", 1.0), ("temperature", torch.ones(3)),
    ],
)  # fmt: skip
def test_corrections_are_of_anila_as_written(name: str, value: Any) -> None:
    for correction in ("weights", "divergence", "metropolis"):
        with pytest.raises(ArgumentError, match=f"{name}=.*correction='{correction}'"):
            AniLA(1.0, 0.1, correction=correction, **{name: value})  # type: ignore[arg-type]


# ---- TULA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "variance"), [(1.0, 2.4872), (0.1, 1.1093)])
def test_tula_on_a_gaussian(h: float, variance: float, seed: int) -> None:
    """In the long run; and after 20 steps the law of the kernel. Two coordinates that are tamed
    each by itself are independent."""
    kernel = tula_kernel(h, 1, (-16.0, 16.0), 600)
    assert kernel.variance(kernel.stationary()) == pytest.approx(variance, abs=5e-5)
    law = kernel.after(20, gaussian_density)
    start, checks = initial(2000 + seed, (chains(40_000), 2)), Checks(7)
    rule = TULA(h, per="coordinate")
    x = sample(quadratic, start, rule, 20, seed=1000 + seed).x.double()
    alone = sample(quadratic, start[:, :1], TULA(h), 20, seed=1000 + seed).x[:, 0]
    for draws in (x[:, 0], x[:, 1], alone):
        checks.law(draws, kernel.cdf(law))
        checks.moment(draws, 2, functools.partial(kernel.moment, law))
    product = x[:, 0] * x[:, 1]
    checks.mean(product, 0, kernel.moment(law, 2) ** 2)


def test_tula_is_its_equation() -> None:
    """The norm is over all axes but the chains'; the clamp is the last thing."""
    x = normals(30, 2, 3, dtype=torch.float64)
    xi = Noise(1).normal(x.shape, dtype=x.dtype)
    norm = x.flatten(1).norm(dim=1).view(-1, 1, 1)
    h, t = 0.8, 0.6
    want = x - h / 2 * x / (1 + h / 2 * norm) + math.sqrt(h * t) * xi
    got = sample(quadratic, x, TULA(h, temperature=t), 1, seed=1)
    torch.testing.assert_close(got.x, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.stats.grad_norm, norm.flatten(), rtol=1e-12, atol=0)
    got = sample(quadratic, x, TULA(h, clamp=(-1, None), temperature=t), 1, seed=1)
    torch.testing.assert_close(got.x, want.clamp(min=-1), rtol=1e-12, atol=1e-12)
    want = x - h / 2 * x / (1 + h / 2 * x.abs()) + math.sqrt(h) * xi
    got = sample(quadratic, x, TULA(h, per="coordinate"), 1, seed=1)
    torch.testing.assert_close(got.x, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per", ["sample", "coordinate"])
def test_step_sizes_of_tula_per_chain_are_a_run_per_chain(per: Any) -> None:
    sizes, temperatures = torch.tensor([0.05, 0.1, 0.3, 2.0]), torch.tensor([1.0, 0.5, 2.0, 1.0])
    x0 = normals(4, 2, 3)
    together = sample(quartic, x0, TULA(sizes, per, temperatures), 8, seed=1).x
    for i in range(4):
        own = TULA(sizes[i].item(), per, temperatures[i].item())
        alone = sample(quartic, x0[i : i + 1], own, 8, seed=Noise(1, first_chain=i)).x
        assert_same_bits(together[i : i + 1], alone, i)


@pytest.mark.parametrize("per", ["sample", "coordinate"])
@pytest.mark.parametrize("h", [0.1, 4.0])
@pytest.mark.parametrize("slope", [1e5, 1e25, 3e38])
def test_no_gradient_is_too_large_for_tula(per: Any, h: float, slope: float) -> None:
    """A drift of length 1, also where the square of the gradient is no float32; beyond that the
    chain is reported, and never left standing still."""
    x0 = torch.full((4, 1), 0.5)
    rule = TULA(h, per, temperature=1e-12)
    x = sample(lambda x: slope * x.abs().sum(1), x0, rule, 1, seed=1).x
    torch.testing.assert_close(x, x0 - h / 2 * slope / (1 + h / 2 * slope), rtol=1e-5, atol=1e-5)
    with pytest.raises(NonFiniteError):
        sample(lambda x: (x * math.inf).sum(1), x0, rule, 1, seed=1)


@pytest.mark.parametrize(("h", "variance", "nodes"), [(0.1, 0.7322, 500), (0.02, 0.6860, 1000)])
def test_tula_on_a_steep_well(h: float, variance: float, nodes: int, seed: int) -> None:
    """U = x^4 / 4, from 20: <x^2> is .6760 under exp(-U)."""
    kernel = tula_kernel(h, 3, (-5.0, 24.0), nodes, (20.0,))
    assert kernel.variance(kernel.stationary()) == pytest.approx(variance, abs=5e-5)
    law = kernel.after(150, 20.0)
    start = torch.full((chains(10_000), 1), 20.0)
    x, checks = sample(quartic, start, TULA(h), 150, seed=1000 + seed).x[:, 0], Checks(2)
    checks.law(x, kernel.cdf(law))
    checks.moment(x, 2, functools.partial(kernel.moment, law))


def test_a_steep_well_from_far_away(seed: int) -> None:
    """Langevin's drift overshoots and overflows; AniLA's is b h / 2 at most, and it arrives."""
    start = torch.full((100, 1), 20.0)
    with pytest.raises(NonFiniteError, match="smaller step_size"):
        sample(quartic, start, Langevin(0.1), 100, seed=1000 + seed)
    run = sample(quartic, start, AniLA(5.0, 0.1), 200, seed=1000 + seed, keep_every=1)
    assert run.trajectory is not None
    # Where |grad U| > 5 the noise is below sqrt(0.1): 100 x 200 draws within 8 of them.
    moves = run.trajectory.diff(dim=0).abs().max()
    assert moves < 0.25 + 8 * math.sqrt(0.1)
    assert run.trajectory.abs().max() < 21
    assert run.x.abs().max() < 5
