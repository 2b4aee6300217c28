"""Rules that accept or reject, step by step: proposals, ratios, decisions, trouble, continuation.

What is not finite is in test_metropolis_trouble.py, laws in test_metropolis_laws.py, known answers
in test_metropolis_answers.py, the adaptation of step sizes in test_adaptation.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from langevin_ext import (
    HMC,
    MALA,
    AniLA,
    EnergyGradient,
    Noise,
    Purpose,
    Samples,
    philox,
    sample,
)
from langevin_ext.errors import ShapeError

from .conftest import assert_same_bits, normals

INF, NAN = math.inf, math.nan
RULES: dict[str, Any] = {
    "MALA": MALA(0.9),
    "AniLA": AniLA(0.8, 1.1, correction="metropolis"),
    "HMC": HMC(0.7, 3),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def quadratic(x: Tensor) -> Tensor:
    """Of N(0, I)."""
    return 0.5 * x.square().sum(1)


def quartic(x: Tensor) -> Tensor:
    """Neither quadratic nor a sum over coordinates; of the same bits in every batch."""
    columns = (x.flatten(1) if x.dim() > 1 else x[:, None]).unbind(1)
    total = torch.zeros_like(columns[0])
    for i, a in enumerate(columns):
        total = total + 0.5 * a * a + 0.125 * a * a * a * a
        if i:
            total = total + 0.25 * a * columns[i - 1]
    return total


class Move(NamedTuple):
    """One step of a rule: the state before and after, and the noise as it was before."""

    before: Any
    after: Any
    noise: Noise


def moves(rule: Any, energy: Any, x0: Tensor, noise: Noise, steps: int) -> Iterator[Move]:
    gradient = EnergyGradient(energy)
    state = rule.init(gradient, x0.clone(), noise)
    for _ in range(steps):
        fields = (f.clone() if isinstance(f, Tensor) else f for f in state)
        before, here = type(state)(*fields), noise.clone()
        state = rule.step(state, gradient, noise)
        assert (noise.step, state.step) == (here.step + 1, before.step + 1)
        yield Move(before, state, here)


def assert_close(got: Tensor, want: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance)


# ---- proposals and ratios -----------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("d", [1, 2, 10])
@pytest.mark.parametrize("h", [0.01, 0.7, 3.0])
def test_malas_ratio_on_a_standard_normal(d: int, h: float, dtype: torch.dtype) -> None:
    """(h / 8) (|x|^2 - |y|^2): all but the third order cancels."""
    eps = torch.finfo(dtype).eps
    x0 = normals(200, d, dtype=dtype)
    for before, after, noise in moves(MALA(h), quadratic, x0, Noise(1), 3):
        x, y = before.x.double(), after.proposal.double()
        xi = noise.normal(x.shape, dtype=torch.float64)
        assert_close(after.proposal, (1 - h / 2) * x + math.sqrt(h) * xi, 8 * eps)
        want = h / 8 * (x.square().sum(1) - y.square().sum(1))
        assert_close(after.log_ratio, want, 20 * d * eps)  # energies are rounded to the dtype


def slope(energy: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(energy(x).sum(), x)[0]


def langevin_ratio(energy: Any, h: float, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """log of exp(-U(y)) q(x | y) / exp(-U(x)) q(y | x), from the densities of torch."""

    def log_q(end: Tensor, start: Tensor) -> Tensor:
        g = slope(energy, start)
        gamma = (b / g.norm(dim=1)).clamp(max=1)[:, None]
        law = Normal(start - h / 2 * gamma * g, (h * gamma).sqrt())
        return law.log_prob(end).sum(1)

    return energy(x) - energy(y) + log_q(x, y) - log_q(y, x)


@each_dtype
@pytest.mark.parametrize("d", [1, 2, 10])
@pytest.mark.parametrize("threshold", [0.3, 1.0, 4.0, INF, "per chain"])
def test_a_langevin_ratio_is_that_of_the_densities(
    threshold: Any, d: int, dtype: torch.dtype
) -> None:
    """The proposal's whole density, (d / 2) log gamma with it."""
    chains, h, eps = 200, 0.6, torch.finfo(dtype).eps
    if threshold == "per chain":
        threshold = torch.linspace(0.2, 8, chains)
    rules = [AniLA(threshold, h, correction="metropolis")]
    b = torch.as_tensor(threshold, dtype=torch.float64).expand(chains)
    for rule in rules + [MALA(h)] * bool(b.isinf().all()):
        x0 = 1.5 * normals(chains, d, dtype=dtype)
        for before, after, noise in moves(rule, quartic, x0, Noise(2), 3):
            x, y = before.x.double(), after.proposal.double()
            gamma = (b / slope(quartic, x).norm(dim=1)).clamp(max=1)[:, None]
            xi = noise.normal(x.shape, dtype=torch.float64)
            want = x - h / 2 * gamma * slope(quartic, x) + (h * gamma).sqrt() * xi
            assert_close(after.proposal, want, 16 * eps)
            want = langevin_ratio(quartic, h, b, x, y)
            assert_close(after.log_ratio, want, 80 * d * eps)


def leapfrog(energy: Any, x: Tensor, p: Tensor, h: float, steps: int) -> tuple[Tensor, Tensor]:
    for _ in range(steps):
        p = p - h / 2 * slope(energy, x)
        x = x + h * p
        p = p - h / 2 * slope(energy, x)
    return x, p


@each_dtype
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_hmc_is_leapfrog_and_its_energy_error(steps: int, dtype: torch.dtype) -> None:
    """Fresh momenta of their own stream; the way back leads back."""
    h, tolerance = 0.3, 64 * torch.finfo(dtype).eps
    x0 = normals(200, 3, dtype=dtype)
    for before, after, noise in moves(HMC(h, steps), quartic, x0, Noise(3), 3):
        x = before.x.double()
        p = noise.purpose(Purpose.MOMENTUM).normal(x.shape, dtype=torch.float64)
        y, q = leapfrog(quartic, x, p, h, steps)
        assert_close(after.proposal, y, tolerance)
        error = quartic(y) + quadratic(q) - quartic(x) - quadratic(p)
        assert_close(after.log_ratio, -error, tolerance)
        x_again, p_again = leapfrog(quartic, after.proposal.double(), -q, h, steps)
        assert_close(x_again, x, tolerance)
        assert_close(p_again, -p, tolerance)


def test_hmc_of_one_leapfrog_step_is_mala() -> None:
    """Of the square of its step, the momenta for noise; ratio and proposal."""
    h, x0 = 0.6, normals(300, 3, dtype=torch.float64)
    (hmc,) = moves(HMC(h, 1), quartic, x0, Noise(4), 1)
    (mala,) = moves(MALA(h * h), quartic, x0, Noise(4, stream=Purpose.MOMENTUM), 1)
    assert_close(hmc.after.proposal, mala.after.proposal, 1e-14)
    assert_close(hmc.after.log_ratio, mala.after.log_ratio, 1e-13)


# ---- decisions ----------------------------------------------------------------------------------


@each_dtype
@each_rule
@pytest.mark.parametrize("shape", [(300,), (300, 3), (50, 2, 2)], ids=str)
def test_a_decision_is_one_uniform_against_the_ratio(
    shape: tuple[int, ...], rule: Any, dtype: torch.dtype
) -> None:
    """To the bit: log u <= log ratio; what is refused stays, what is accepted is the proposal."""
    chains, seen = shape[0], torch.zeros(2)
    noise = Noise(5, stream=32, first_chain=7, step=2**40)
    gradient = EnergyGradient(quartic)
    for before, after, here in moves(rule, quartic, normals(*shape, dtype=dtype), noise, 20):
        u = here.purpose(Purpose.ACCEPT).uniform((chains,))
        accepted = philox.log(u).double() <= after.log_ratio
        assert_same_bits(after.accepted, accepted)
        there = (after.proposal, *gradient(after.proposal))
        for old, new, got in zip(
            (before.x, before.energy, before.grad),
            (there[0], there[1], there[2]),
            (after.x, after.energy, after.grad),
            strict=True,
        ):
            want = torch.where(accepted.view(-1, *[1] * (old.dim() - 1)), new, old)
            assert_same_bits(got, want)
        for got, want in zip((after.energy, after.grad), gradient(after.x), strict=True):
            assert_same_bits(got, want)
        seen += torch.stack([accepted.sum(), (~accepted).sum()])
    assert seen.min() > 0.05 * seen.sum()


@each_rule
def test_what_sample_says_of_acceptance(rule: Any) -> None:
    """The mean of min(1, ratio) over the steps after burn-in; energies are those of x."""
    x0, burn_in, steps = normals(50, 3), 3, 8
    run = sample(quartic, x0, rule, steps, seed=6, burn_in=burn_in, keep_every=1)
    path = list(moves(rule, quartic, x0, Noise(6), 0))
    total, norms, gammas = (torch.zeros(50, dtype=torch.float64) for _ in range(3))
    for k, (before, after, _) in enumerate(moves(rule, quartic, x0, Noise(6), burn_in + steps)):
        path.append(after)
        if k >= burn_in:
            assert run.trajectory is not None
            assert_same_bits(run.trajectory[k - burn_in], after.x)
            total += after.log_ratio.exp().clamp(max=1)
            norm = before.grad.norm(dim=1)
            norms += norm
            gammas += (0.8 / norm).clamp(max=1) if isinstance(rule, AniLA) else 1.0
    assert run.stats.acceptance is not None
    assert_close(run.stats.acceptance, total / steps, 1e-6)
    assert_close(run.stats.grad_norm, norms / steps, 1e-6)
    assert_close(run.stats.gamma, gammas / steps, 1e-6)
    assert_same_bits(run.stats.energy, quartic(run.x))
    assert run.stats.step_size is None
    assert (run.stats.first_bad_step == -1).all()


# ---- one chain's affairs ------------------------------------------------------------------------

SIZES = torch.tensor([0.2, 0.5, 0.9, 1.4, 0.05])
PER_CHAIN: dict[str, Any] = RULES | {
    "MALA, a step size each": MALA(SIZES),
    "AniLA, a threshold each": AniLA(2 * SIZES, SIZES, correction="metropolis"),
    "HMC, a step size each": HMC(SIZES, 3),
    "MALA, adapting": MALA(0.1, target_acceptance=0.574),
    "HMC, adapting": HMC(SIZES, 3, target_acceptance=0.8),
}


def of_chain(rule: Any, i: int) -> Any:
    """The rule as chain i has it."""
    sizes = {n: t[i].item() for n, t in vars(rule).items() if isinstance(t, Tensor)}
    return replace(rule, **sizes)


@each_dtype
@pytest.mark.parametrize("rule", PER_CHAIN.values(), ids=PER_CHAIN)
def test_a_chain_does_not_depend_on_its_batch(rule: Any, dtype: torch.dtype) -> None:
    """Alone, and with its right neighbours; x, energy, ratio, and the step size it adapts."""
    x0 = normals(5, 3, dtype=dtype)
    whole = sample(quartic, x0, rule, 9, seed=8, burn_in=20)
    for i in range(5):
        own = of_chain(rule, i)
        part = sample(quartic, x0[i : i + 1], own, 9, seed=Noise(8, first_chain=i), burn_in=20)
        for got, want in zip(figures(part), figures(whole), strict=True):
            assert_same_bits(got, want[i : i + 1], (i, "alone"))
    if not any(isinstance(value, Tensor) for value in vars(rule).values()):
        part = sample(quartic, x0[2:], rule, 9, seed=Noise(8, first_chain=2), burn_in=20)
        for got, want in zip(figures(part), figures(whole), strict=True):
            assert_same_bits(got, want[2:], "shard")


def figures(run: Samples) -> list[Tensor]:
    """All that is known of chains."""
    fields = run.state.chains
    adapted = fields.adaptation[:4] if fields.adaptation else ()
    known = (run.x, run.stats.acceptance, run.stats.step_size, *fields, *adapted)
    return [t for t in known if isinstance(t, Tensor)]


@pytest.mark.parametrize("rule", PER_CHAIN.values(), ids=PER_CHAIN)
def test_a_continued_run_is_one_long_run(rule: Any) -> None:
    x0 = normals(5, 3)
    whole = sample(quartic, x0, rule, 12, seed=9, burn_in=4)
    first = sample(quartic, x0, rule, 5, seed=9, burn_in=4)
    kept = [t.clone() for t in figures(first)]
    rest = sample(quartic, first.state, rule, 7)
    for i, (got, want) in enumerate(zip(figures(rest), figures(whole), strict=True)):
        if want is not whole.stats.acceptance:  # a mean over other steps
            assert_same_bits(got, want, i)
    for got, want in zip(figures(first), kept, strict=True):
        assert_same_bits(got, want, "the state it went on from")


@each_rule
def test_a_schedule_counts_on(rule: Any) -> None:
    """A function of the step's number, burn-in included; a continued run goes on counting."""
    x0, seen = normals(5, 2), []

    def step_size(k: int) -> float:
        seen.append(k)
        return 1 / (k + 1)

    scheduled, noise = replace(rule, step_size=step_size), Noise(1)
    first = sample(quartic, x0, scheduled, 2, seed=1, burn_in=1)
    second = sample(quartic, first.state, scheduled, 2)
    assert seen == list(range(5))
    x = x0
    for k in range(5):
        x = sample(quartic, x, replace(rule, step_size=1 / (k + 1)), 1, seed=noise).x
    assert_same_bits(second.x, x)


@each_rule
def test_step_sizes_fit_the_chains(rule: Any) -> None:
    with pytest.raises(ShapeError, match=r"step_size has shape \(3,\)"):
        sample(quartic, normals(5, 2), replace(rule, step_size=torch.ones(3)), 1)
