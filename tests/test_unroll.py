"""The chain as a function: its values, its gradients, and what they take.

Energies are smooth or quadratic: through a network of ReLUs alone a chain's gradient says nothing.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from langevin_ext import MALA, AniLA, Langevin, Noise, langevin_step, sample, unroll
from langevin_ext.energies import EightGaussians, Gaussian, QuadraticWell
from langevin_ext.errors import ArgumentError, FlatEnergyWarning, GradientError, NonFiniteError

from .conftest import assert_same_bits, normals, places

H = 0.05


def smooth(inputs: int = 3, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(inputs, 16), nn.SiLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1)
    ).to(dtype)


def by_hand(energy: Any, z: Tensor, rule: Any, steps: int, noise: Noise) -> Tensor:
    """The loop that a person would write, with its whole graph."""
    x = z
    for k in range(steps):
        (grad,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        given = rule.arguments(k)
        silent = not isinstance(given["diffusion"], Tensor) and given["diffusion"] == 0
        x = langevin_step(x, grad, **given, noise=None if silent else noise)
        if silent:
            noise.advance()
    return x


def leaf(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    t = torch.tensor(values[0] if len(values) == 1 else values, dtype=dtype)
    return t.requires_grad_()


RULES: dict[str, Any] = {
    "Langevin": lambda: (Langevin(H), []),
    "a learned step size": lambda: (Langevin(h := leaf(H)), [h]),
    "a step size each": lambda: (Langevin(h := leaf(0.03, 0.05, 0.07, 0.09)), [h]),
    "a learned temperature": lambda: (Langevin(H, t := leaf(0.5)), [t]),
    "a learned noise": lambda: (Langevin(H, noise_std=(s := leaf(0.1))), [s]),
    "clamped": lambda: (Langevin(0.3, clamp=(-0.8, 0.8)), []),
    "a schedule": lambda: (Langevin(lambda k: H / (1 + k), lambda k: 1 + k % 2), []),
    "no noise": lambda: (Langevin(0.3, noise_std=0.0), []),
    "AniLA": lambda: (AniLA(0.2, 0.3), []),
    "learned thresholds": lambda: (AniLA(b := leaf(0.1, 0.2, 0.3, 0.4), 0.3), [b]),
    "coordinates": lambda: (AniLA(b := leaf(0.1), h := leaf(0.3), per="coordinate"), [b, h]),
    "all of it": lambda: (
        AniLA(b := leaf(0.2), h := leaf(0.3), reference_precision=0.4, clamp=(-1, 1)), [b, h]
    ),
}  # fmt: skip


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("case", RULES)
def test_gradients_are_those_of_the_loop(case: str, steps: int) -> None:
    """In z, parameters and options, to 1e-10, whatever is kept."""
    energy, z = smooth(), normals(4, 3, dtype=torch.float64).requires_grad_()
    rule, options = RULES[case]()
    learned = [z, *options, *list(energy.parameters())[:-1]]  # of the last bias grad U is free
    weights, noise = normals(4, 3, seed=2, dtype=torch.float64), Noise(3)
    y = by_hand(energy, z, rule, steps, noise)
    want = torch.autograd.grad((weights * y).sum(), learned)
    for every in (1, 3, steps):
        mine = Noise(3)
        x = unroll(energy, z, rule, steps, seed=mine, checkpoint_every=every)
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)
        assert places(mine) == places(noise)
        got = torch.autograd.grad((weights * x).sum(), learned)
        for a, b in zip(got, want, strict=True):
            scale = max(float(b.abs().max()), 1e-3)
            assert float((a - b).abs().max()) <= 1e-10 * scale


@pytest.mark.parametrize("case", ["Langevin", "a learned step size", "AniLA", "all of it"])
def test_float32_gradients_are_those_of_the_loop(case: str) -> None:
    energy, z = smooth(dtype=torch.float32), normals(4, 3).requires_grad_()
    rule, options = RULES[case]()
    learned = [z, *options, *list(energy.parameters())[:-1]]
    x = unroll(energy, z, rule, 20, seed=3)
    got = torch.autograd.grad(x.square().sum(), learned)
    y = by_hand(energy, z, rule, 20, Noise(3))
    want = torch.autograd.grad(y.square().sum(), learned)
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("case", ["a learned step size", "learned thresholds", "all of it"])
def test_derivatives_are_right_once_and_twice(case: str, steps: int) -> None:
    """Against finite differences, in z, the first layer and the rule's tensors."""
    energy, z = smooth(2), normals(4, 2, dtype=torch.float64).requires_grad_()
    make = RULES[case]
    rule, options = make()
    names = [n for n, v in vars(rule).items() if any(v is t for t in options)]
    energy.requires_grad_(False)
    first = energy[0].weight.detach().clone().requires_grad_()

    def chain(z: Tensor, weight: Tensor, *values: Tensor) -> Tensor:
        def u(x: Tensor) -> Tensor:
            return energy[1:](nn.functional.linear(x, weight, energy[0].bias))

        mine = dataclasses.replace(rule, **dict(zip(names, values, strict=True)))
        return unroll(u, z, mine, steps, seed=3)

    inputs = (z, first, *options)
    assert torch.autograd.gradcheck(chain, inputs, fast_mode=steps > 1)
    if steps <= 5:
        assert torch.autograd.gradgradcheck(chain, inputs, fast_mode=True)


@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize("a", [0.5, 0.9, 0.99, 1.01])
def test_a_linear_chain_is_inverted_in_closed_form(a: float, steps: int) -> None:
    """On U = |x|^2 / 2 without noise x_K = a^K z with a = 1 - h / 2; of |x - x_K|^2 the gradient in
    z is 2 a^K (a^K z - x), which vanishes at z = x / a^K."""
    if a > 1:  # no step size gives it on a well: a hill does
        energy: Any = lambda x: -x.square().sum(1) / 2  # noqa: E731
        h = 2 * (a - 1)
    else:
        energy, h = QuadraticWell(2), 2 * (1 - a)
    x = normals(5, 2, dtype=torch.float64)
    z = normals(5, 2, seed=1, dtype=torch.float64).requires_grad_()
    rule = Langevin(h, noise_std=0.0)
    end = unroll(energy, z, rule, steps)
    torch.testing.assert_close(end, a**steps * z, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad((x - end).square().sum(), z)
    torch.testing.assert_close(grad, 2 * a**steps * (a**steps * z - x), rtol=1e-11, atol=1e-12)
    best = (x / a**steps).requires_grad_()
    (grad,) = torch.autograd.grad((x - unroll(energy, best, rule, steps)).square().sum(), best)
    size = max(1, float(best.detach().abs().max()))
    assert float(grad.abs().max()) < 1e-12 * a ** (2 * steps) * size


def test_without_gradients_it_is_sample() -> None:
    energy, z = smooth(dtype=torch.float32), normals(4, 3)
    with torch.no_grad():
        x = unroll(energy, z, Langevin(H), 10, seed=3)
    assert not x.requires_grad
    assert_same_bits(x, sample(energy, z, Langevin(H), 10, seed=3).x)


def test_no_steps_are_the_identity() -> None:
    z = normals(4, 3).requires_grad_()
    x = unroll(smooth(dtype=torch.float32), z, Langevin(H), 0)
    assert_same_bits(x, z)
    (grad,) = torch.autograd.grad(x.square().sum(), z)
    assert_same_bits(grad, 2 * z.detach())


def test_a_module_is_left_as_it_was() -> None:
    layers = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(), nn.Linear(8, 1)
    energy = nn.Sequential(*layers)
    before = {k: v.clone() for k, v in energy.state_dict().items()}
    x = unroll(energy, normals(4, 3).requires_grad_(), Langevin(H), 5, seed=0)
    x.sum().backward()
    assert energy.training
    assert all(m.training for m in energy.modules())
    assert all(p.requires_grad for p in energy.parameters())
    for name, value in energy.state_dict().items():
        assert_same_bits(value, before[name], name)


def test_a_parameter_changed_in_between_is_noticed() -> None:
    energy, z = smooth(), normals(4, 3, dtype=torch.float64).requires_grad_()
    x = unroll(energy, z, Langevin(H), 3, seed=0)
    with torch.no_grad():
        energy[0].weight.mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
def test_a_flat_energy_is_told(activation: type[nn.Module]) -> None:
    """The Jacobian of its unclipped chain is the identity, and nothing reaches z but that."""
    energy = nn.Sequential(nn.Linear(3, 16), activation(), nn.Linear(16, 1))
    z = normals(4, 3).requires_grad_()
    x = unroll(energy, z, Langevin(H), 5, seed=0)
    with pytest.warns(FlatEnergyWarning, match="smooth"):
        (grad,) = torch.autograd.grad((x * x.detach()).sum(), z)
    torch.testing.assert_close(grad, x.detach())


def test_smooth_energies_are_not_told() -> None:
    z = normals(4, 3).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unroll(smooth(dtype=torch.float32), z, Langevin(H), 5, seed=0).sum().backward()
        (0 * unroll(smooth(dtype=torch.float32), z, Langevin(H), 5, seed=0)).sum().backward()


@pytest.mark.parametrize("energy", [EightGaussians(), Gaussian(torch.zeros(2), std=[0.5, 2.0])])
def test_analytic_energies_and_whole_chains_forward(energy: Any) -> None:
    """The forward pass may be a kernel's; gradients are those of the loop to rounding."""
    z = (0.3 * normals(6, 2, dtype=torch.float64)).requires_grad_()
    x = unroll(energy, z, Langevin(0.002), 10, seed=3)
    (got,) = torch.autograd.grad(x.square().sum(), z)
    (want,) = torch.autograd.grad(
        by_hand(energy, z, Langevin(0.002), 10, Noise(3)).square().sum(), z
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_unrolled_is_refused() -> None:
    z = normals(4, 2).requires_grad_()
    with pytest.raises(ArgumentError, match="pass Langevin, or AniLA without correction"):
        unroll(QuadraticWell(2), z, MALA(H), 3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="without correction"):
        unroll(QuadraticWell(2), z, AniLA(1.0, H, correction="weights"), 3)
    with pytest.raises(ArgumentError, match="checkpoint_every"):
        unroll(QuadraticWell(2), z, Langevin(H), 3, checkpoint_every=0)
    h = leaf(H, dtype=torch.float32)
    with pytest.raises(GradientError, match="a schedule's value requires grad"):
        unroll(QuadraticWell(2), z, Langevin(lambda k: h / (1 + k)), 3)
    with pytest.raises(NonFiniteError):
        unroll(lambda x: x.pow(4).sum(1), 1e3 * z, Langevin(1.0), 30, seed=0)


def test_memory_holds_states_and_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd saves of a chain is K / every states and no graph."""
    saved: list[int] = []
    energy, z = smooth(dtype=torch.float32), normals(64, 3).requires_grad_()
    for every, states in ((1, 30), (5, 6), (30, 1)):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (saved.append(t.numel() if t.shape == z.shape else 0), t)[1], lambda t: t
        ):
            unroll(energy, z, Langevin(H), 30, seed=0, checkpoint_every=every)
        assert sum(saved) == states * z.numel()
        assert math.isclose(len(saved), states + len(list(energy.parameters())))
