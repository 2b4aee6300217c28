"""Step sizes adapt during burn-in as the paper says, and not after it; each chain by itself."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from langevin_ext import HMC, MALA, EnergyGradient, Noise, sample
from langevin_ext.energies import Gaussian
from langevin_ext.errors import ArgumentError, SamplingInterrupted
from langevin_ext.samplers._adapt import DualAveraging
from langevin_ext.testing import Checks

from .conftest import assert_same_bits, chains, normals

RULES = {"MALA": MALA(0.5, target_acceptance=0.574), "HMC": HMC(0.5, 3, target_acceptance=0.8)}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(1)


def hoffman_and_gelman(
    start: float, ratios: list[float], target: float
) -> tuple[list[float], float]:
    """Algorithm 5's update of each step, in its names: epsilon_0, 1, ..., and the last average."""
    gamma, t0, kappa, mu = 0.05, 10, 0.75, math.log(10 * start)
    h_bar, log_average, used = 0.0, 0.0, [start]
    for m, ratio in enumerate(ratios, 1):
        acceptance = 0.0 if math.isnan(ratio) else min(1.0, math.exp(min(0.0, ratio)))
        h_bar = (1 - 1 / (m + t0)) * h_bar + (target - acceptance) / (m + t0)
        log_step = mu - math.sqrt(m) / gamma * h_bar
        log_average = m**-kappa * log_step + (1 - m**-kappa) * log_average
        used.append(math.exp(log_step))
    return used, math.exp(log_average)


def test_dual_averaging_is_the_papers() -> None:
    """Chain by chain; a ratio that is no number counts as a refusal."""
    starts, target = torch.tensor([1e-3, 0.5, 20.0], dtype=torch.float64), 0.7
    ratios = 2 * normals(60, 3, dtype=torch.float64) - 0.5
    ratios[3, 0], ratios[4, 1], ratios[5, 2] = -math.inf, math.nan, math.inf
    state = DualAveraging.start(starts, 3, ratios.device)
    used = [state.step_size]
    for row in ratios:
        state = state.updated(row, target)
        used.append(state.step_size)
    end = state.finished()
    for i in range(3):
        want, average = hoffman_and_gelman(float(starts[i]), ratios[:, i].tolist(), target)
        assert torch.stack(used)[:, i].tolist() == pytest.approx(want, rel=1e-12)
        assert float(end.step_size[i]) == pytest.approx(average, rel=1e-12)
    later = end.updated(ratios[0], target)
    assert later.done
    assert_same_bits(later.step_size, end.step_size)
    assert_same_bits(later.finished().step_size, end.step_size)


def test_a_step_takes_its_chains_adapted_size() -> None:
    """On N(0, I) MALA's log ratio is (h / 8) (|x|^2 - |y|^2), so the ratios tell the h in use."""
    gradient, noise, rule = EnergyGradient(quadratic), Noise(1), RULES["MALA"]
    x = normals(20, 5, dtype=torch.float64)
    state = rule.init(gradient, x.clone(), noise)
    used, ratios = [], []
    for _ in range(40):
        before = state.x.square().sum(1)
        state = rule.step(state, gradient, noise)
        used.append(8 * state.log_ratio / (before - state.proposal.square().sum(1)))
        ratios.append(state.log_ratio.clone())
    for i in range(20):
        own = [float(r[i]) for r in ratios]
        want, average = hoffman_and_gelman(0.5, own, 0.574)
        assert [float(h[i]) for h in used] == pytest.approx(want[:-1], rel=1e-6)
        done = rule.end_burn_in(state).adaptation
        assert done is not None
        assert float(done.step_size[i]) == pytest.approx(average, rel=1e-12)


@each_rule
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_target_is_reached(rule: Any, scale: float, seed: int) -> None:
    """To 0.07, from a step size far too small or too large, and in proportion to the law.

    The average is taken while step sizes still move, which accepts a little more than was asked.
    """
    energy = Gaussian([0.0] * 10, std=(scale * torch.logspace(-1, 0, 10)).tolist())
    x0 = energy.draw(100, seed)
    run = sample(energy, x0, rule, 100, burn_in=500, seed=1000 + seed)
    assert run.stats.acceptance is not None
    assert run.stats.step_size is not None
    assert float(run.stats.acceptance.mean()) == pytest.approx(rule.target_acceptance, abs=0.07)
    time = run.stats.step_size.sqrt() if isinstance(rule, MALA) else run.stats.step_size
    assert ((time / scale > 0.1) & (time / scale < 0.2)).all()


@each_rule
def test_burn_in_ends_adaptation(rule: Any) -> None:
    """The step size it ends with is the average, and it stays; also in continued runs."""
    x0 = normals(30, 4)
    burned = sample(quadratic, x0, rule, 0, burn_in=60, seed=2)
    run = sample(quadratic, x0, rule, 25, burn_in=60, seed=2)
    more = sample(quadratic, run.state, rule, 25, burn_in=10)
    sizes = burned.stats.step_size
    assert sizes is not None
    assert sizes.dtype == torch.float64
    assert len(set(sizes.tolist())) == 30
    for later in (burned, run, more):
        adaptation = later.state.chains.adaptation
        assert adaptation.done
        assert adaptation.steps == 60
        assert_same_bits(adaptation.step_size, sizes)
        assert_same_bits(later.stats.step_size, sizes)
    # From there on it is the rule of these step sizes.
    fixed = replace(rule, step_size=sizes, target_acceptance=None)
    after = sample(quadratic, burned.x, fixed, 25, seed=burned.state.noise)
    assert_same_bits(run.x, after.x)
    assert_same_bits(run.stats.acceptance, after.stats.acceptance)


@each_rule
def test_the_law_after_burn_in(rule: Any, seed: int) -> None:
    """From far away, with every chain's own step size, after steps enough to forget burn-in."""
    energy, n, checks = Gaussian(1.0, std=2.0), chains(20_000), Checks(2)
    x0 = torch.full((n, 1), -10.0)
    run = sample(energy, x0, rule, 60, burn_in=100, seed=1000 + seed)
    checks.gaussian(run.x[:, 0], 1.0, 4.0)
    checks.independent_chains(run.x[:, 0])


@each_rule
def test_an_interrupted_burn_in_goes_on(rule: Any, handler: object) -> None:
    """Ctrl-C in it leaves a state whose step sizes still adapt, and the same bits at the end."""
    x0, calls = normals(8, 3), 0
    a_step = 1 if isinstance(rule, MALA) else rule.leapfrog_steps

    def interrupted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 1 + 12 * a_step:  # the first is for the start
            signal.raise_signal(signal.SIGINT)
        return quadratic(x)

    whole = sample(quadratic, x0, rule, 5, burn_in=30, seed=3)
    with pytest.raises(SamplingInterrupted, match="after 12 steps") as info:
        sample(interrupted, x0, rule, 5, burn_in=30, seed=3)
    assert info.value.samples is not None
    state = info.value.samples.state
    assert not state.chains.adaptation.done
    with pytest.raises(ArgumentError, match="burn_in=0"):
        sample(quadratic, state, rule, 5)
    rest = sample(quadratic, state, rule, 5, burn_in=18)
    assert_same_bits(rest.x, whole.x)
    assert_same_bits(rest.stats.step_size, whole.stats.step_size)


@each_rule
def test_a_continued_run_obeys_its_own_rule(rule: Any) -> None:
    """Its step size is taken; a target that the chains know nothing of is refused."""
    fixed = replace(rule, step_size=0.2, target_acceptance=None)
    adapted = sample(quadratic, normals(8, 3), rule, 5, burn_in=30, seed=5)
    run = sample(quadratic, adapted.state, fixed, 5)
    assert run.stats.step_size is None
    want = sample(quadratic, adapted.x, fixed, 5, seed=adapted.state.noise)
    assert_same_bits(run.x, want.x)
    with pytest.raises(ArgumentError, match="for chains that were started without"):
        sample(quadratic, run.state, rule, 5, burn_in=30)


def test_a_target_that_makes_no_sense() -> None:
    for make in (MALA, HMC):
        for target in (0.0, 1.0, -0.5, math.nan):
            with pytest.raises(ArgumentError, match=r"target_acceptance=.*: give a number in"):
                make(0.1, target_acceptance=target)
        with pytest.raises(ArgumentError, match="a schedule sets it"):
            make(lambda k: 0.1, target_acceptance=0.5)
        with pytest.raises(ArgumentError, match="burn_in=0: give some hundred"):
            sample(quadratic, normals(3, 2), make(0.1, target_acceptance=0.5), 5, seed=1)


@each_rule
def test_extremes_of_adaptation_do_no_harm(rule: Any) -> None:
    """Beside a chain that can never move and one that is never refused, others notice nothing."""

    def energy(x: Tensor) -> Tensor:
        stuck = torch.where((x == 5).all(1), 0.0, math.inf)
        flat = torch.where(x[:, 0] < -50, 0.0, quadratic(x))
        return torch.where(x[:, 0] > 4, stuck, flat)

    x0 = torch.tensor([[0.5, 0.1], [5.0, 5.0], [-1e30, 0.0], [-1.0, 0.3]])
    run = sample(energy, x0, rule, 10, burn_in=400, seed=4)
    for i in (0, 3):
        alone = sample(energy, x0[i : i + 1], rule, 10, burn_in=400, seed=Noise(4, first_chain=i))
        assert_same_bits(run.x[i : i + 1], alone.x)
        assert_same_bits(run.stats.step_size[i : i + 1], alone.stats.step_size)
    assert_same_bits(run.x[1], x0[1])
    assert run.x[2, 0] < -50
    assert run.x.isfinite().all()
