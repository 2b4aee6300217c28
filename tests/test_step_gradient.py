"""The functional step's gradients: right once, right twice, and refused where there are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from langevin_ext import Noise, langevin_step, langevin_step_
from langevin_ext.errors import GradientError

from .conftest import assert_same_bits, normals

LEARNED = "x", "grad", "drift", "diffusion", "max_grad_norm"
OPTIONS: dict[str, dict[str, Any]] = {
    "as written": {},
    "drift alone": {"noise_power": 0.0},
    "noise by gamma": {"noise_power": 1.0},
    "per coordinate": {"per": "coordinate"},
    "per coordinate, drift alone": {"per": "coordinate", "noise_power": 0.0},
    "per coordinate, noise by gamma": {"per": "coordinate", "noise_power": 1.0},
    "clamped": {"clamp": (-0.4, 0.6)},
    "clamped below": {"clamp": (-0.1, None), "per": "coordinate"},
    "reference measure": {"reference_precision": 0.7},
    "all at once": {"reference_precision": 0.7, "clamp": (-0.4, 0.6), "noise_power": 1.0},
}


def leaves(size: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The five differentiable arguments for 3 chains, of which the first is not clipped."""
    scale = torch.tensor([0.2, 1.0, 3.0], dtype=dtype)[:, None, None]
    values = {
        "x": normals(3, 2, 2, dtype=dtype),
        "grad": normals(3, 2, 2, seed=1, dtype=dtype) * scale,
        "drift": torch.tensor([0.3, 0.5, 0.7], dtype=dtype),
        "diffusion": torch.tensor([0.9, 0.8, 0.6], dtype=dtype),
        "max_grad_norm": torch.tensor([0.9, 0.8, 1.1], dtype=dtype),
    }
    if size == "one for all chains":
        values |= {name: values[name][1].clone() for name in LEARNED[2:]}
    return {name: t.requires_grad_() for name, t in values.items()}


def plain(
    x: Tensor,
    grad: Tensor,
    drift: Tensor,
    diffusion: Tensor,
    max_grad_norm: Tensor,
    *,
    per: str = "sample",
    noise_power: float = 0.5,
    reference_precision: float = 0.0,
    clamp: tuple[float | None, float | None] = (None, None),
) -> Tensor:
    """The equation in ordinary torch operations, with the noise of `Noise(1)`."""
    a, s, b = (
        (t if t.dim() else t.expand(len(x))).view(-1, 1, 1)
        for t in (drift, diffusion, max_grad_norm)
    )
    size = grad.abs() if per == "coordinate" else grad.flatten(1).norm(dim=1).view(-1, 1, 1)
    gamma = torch.where(size > b, b / size, torch.ones_like(size))
    xi = Noise(1).normal(x.shape, dtype=x.dtype)
    y = x - a * gamma * grad - a * reference_precision * x + s * gamma**noise_power * xi
    return y if clamp == (None, None) else y.clamp(*clamp)


@pytest.mark.parametrize("size", ["one for all chains", "one per chain"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_first_and_second_derivatives_are_right(name: str, option: str, size: str) -> None:
    """Against finite differences, in all five arguments."""

    def step(*values: Tensor) -> Tensor:
        arguments = dict(zip(LEARNED, values, strict=True))
        return langevin_step(**arguments, noise=Noise(1), backend=name, **OPTIONS[option])

    inputs = tuple(leaves(size).values())
    assert torch.autograd.gradcheck(step, inputs)
    assert torch.autograd.gradgradcheck(step, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", ["one for all chains", "one per chain"])
@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_are_those_of_the_plain_formula(
    option: str, size: str, dtype: torch.dtype
) -> None:
    """Autograd through ordinary operations with the same noise gives the same five gradients."""
    values, weights = leaves(size, dtype), normals(3, 2, 2, seed=2, dtype=dtype)
    y = langevin_step(**values, noise=Noise(1), **OPTIONS[option])
    got = torch.autograd.grad((weights * y).sum(), list(values.values()))
    formula = plain(**values, **OPTIONS[option])
    torch.testing.assert_close(y, formula)
    want = torch.autograd.grad((weights * formula).sum(), list(values.values()))
    tolerance = 20 * torch.finfo(dtype).eps
    for argument, a, b in zip(LEARNED, got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=argument)


def test_a_differentiable_step_has_the_values_of_a_plain_one(backend: str) -> None:
    values = leaves("one per chain", torch.float32)
    y = langevin_step(**values, noise=Noise(1), backend=backend)
    assert y.requires_grad
    with torch.no_grad():
        assert_same_bits(y, langevin_step(**values, noise=Noise(1), backend=backend))


def test_backward_makes_the_noise_of_its_own_forward() -> None:
    """Two steps advance by two, and each backward pass uses the noise of its own step."""
    noise = Noise(1)
    diffusion = torch.ones((), dtype=torch.float64, requires_grad=True)
    x = torch.zeros(2, 3, dtype=torch.float64)
    steps = []
    for _ in range(2):
        drawn = noise.normal((2, 3), dtype=torch.float64).sum()
        y = langevin_step(x, torch.ones_like(x), drift=1.0, diffusion=diffusion, noise=noise)
        steps.append((y, drawn))
    assert noise.step == 2
    for y, drawn in steps:
        (got,) = torch.autograd.grad(y.sum(), diffusion)
        torch.testing.assert_close(got, drawn)
    assert noise.step == 2


def test_a_16_bit_gradient_gets_a_16_bit_gradient() -> None:
    values = leaves("one per chain", torch.float32)
    half = values["grad"].detach().bfloat16().requires_grad_()
    y = langevin_step(**(values | {"grad": half}), noise=Noise(1))
    (got,) = torch.autograd.grad(y.sum(), half)
    wide = half.detach().float().requires_grad_()
    y = langevin_step(**(values | {"grad": wide}), noise=Noise(1))
    (want,) = torch.autograd.grad(y.sum(), wide)
    assert_same_bits(got, want.bfloat16())


def test_a_gradient_of_zero_has_finite_derivatives() -> None:
    """|g| is not differentiable at 0, but a chain there is not clipped."""
    values = leaves("one per chain")
    grad = torch.zeros_like(values["grad"]).requires_grad_()
    y = langevin_step(**(values | {"grad": grad}), noise=Noise(1))
    first = torch.autograd.grad(y.square().sum(), [values["x"], grad], create_graph=True)
    second = torch.autograd.grad(sum(t.square().sum() for t in first), grad)
    torch.testing.assert_close(first[1], -values["drift"][:, None, None] * 2 * y)
    assert second[0].isfinite().all()


@pytest.mark.parametrize("argument", LEARNED)
def test_an_in_place_step_refuses_what_needs_a_gradient(argument: str) -> None:
    values: dict[str, Any] = {n: t.detach().clone() for n, t in leaves("one per chain").items()}
    before, noise = values["x"].clone(), Noise(1)
    values[argument].requires_grad_()
    with pytest.raises(GradientError, match=rf"^{argument} requires grad.*langevin_step"):
        langevin_step_(**values, noise=noise)
    assert_same_bits(values["x"], before)
    assert noise.step == 0
    with torch.no_grad():
        langevin_step_(**values, noise=noise)
    want = langevin_step(**(values | {"x": before}), noise=Noise(1)).detach()
    assert_same_bits(values["x"], want)


# torch's own decompositions for duals are written in the TorchScript it deprecates.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("step", [langevin_step, langevin_step_])
def test_a_tangent_is_refused_and_not_dropped(step: Any) -> None:
    x, grad = normals(2, 3), normals(2, 3, seed=1)
    with forward_ad.dual_level(), pytest.raises(GradientError, match="forward-mode"):
        step(x, forward_ad.make_dual(grad, x), drift=0.1, diffusion=1.0, noise=Noise(1))
    with forward_ad.dual_level(), pytest.raises(GradientError, match="forward-mode"):
        step(forward_ad.make_dual(x, grad), grad, drift=0.1, diffusion=1.0, noise=Noise(1))


def test_no_chains_have_no_gradients() -> None:
    for shape in ((0, 10), (4, 0)):
        x = torch.zeros(shape, requires_grad=True)
        y = langevin_step(x, torch.zeros(shape), drift=0.1, diffusion=1.0, noise=Noise(1))
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape


def test_clipping_the_drift_alone_stands_a_vanishing_gamma() -> None:
    grad = torch.full((1, 1), 1e18, requires_grad=True)
    options = {"max_grad_norm": 1e-30, "noise_power": 0.0}
    y = langevin_step(torch.zeros(1, 1), grad, drift=0.1, diffusion=1.0, noise=Noise(1), **options)
    assert torch.autograd.grad(y.sum(), grad)[0].isfinite().all()
