"""Rules that accept or reject where energies, gradients or states are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from langevin_ext import HMC, MALA, AniLA, EnergyGradient, Noise, sample
from langevin_ext.errors import NonFiniteError

from .conftest import assert_same_bits, normals
from .test_metropolis import RULES, each_dtype, each_rule, moves, quartic

INF, NAN = math.inf, math.nan


class Broken:
    """`quartic`, but with another energy and gradient where x is beyond an edge, or not finite."""

    def __init__(self, value: float | None = None, slope: float | None = None, edge: float = 0.5):
        self.value, self.slope, self.edge = value, slope, edge
        self.right = EnergyGradient(quartic)

    def inside(self, x: Tensor) -> Tensor:
        return ~(x <= self.edge).all(1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.value_and_gradient(x)[0]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = self.right(x)
        inside = self.inside(x)
        if self.value is not None:
            value[inside] = self.value
        if self.slope is not None:
            grad[inside] = self.slope
        return value, grad


FAULTS = [(INF, 0.0), (INF, NAN), (-INF, 0.0), (NAN, 0.0), (None, NAN), (None, INF), (None, -INF)]


@each_dtype
@pytest.mark.parametrize(("value", "slope"), FAULTS)
@pytest.mark.parametrize("rule", [RULES["MALA"], RULES["AniLA"], HMC(0.7, 1)], ids=list(RULES))
def test_a_proposal_that_is_not_finite_is_refused(
    rule: Any, value: float | None, slope: float | None, dtype: torch.dtype
) -> None:
    """Its ratio is -inf, and the other chains are those of the sound energy, to the bit."""
    broken, x0 = Broken(value, slope), -normals(300, 2, dtype=dtype).abs()
    (sound,) = moves(rule, quartic, x0, Noise(10), 1)
    (got,) = moves(rule, broken, x0, Noise(10), 1)
    refused = broken.inside(sound.after.proposal)
    assert 20 < int(refused.sum()) < 280
    assert_same_bits(got.after.log_ratio == -INF, refused)
    for name in ("x", "energy", "grad", "log_ratio", "accepted"):
        mine, theirs, past = (getattr(s, name) for s in (got.after, sound.after, got.before))
        assert_same_bits(mine[~refused], theirs[~refused], name)
        if name in ("x", "energy", "grad"):
            assert_same_bits(mine[refused], past[refused], name)
    assert not got.after.accepted[refused].any()
    assert got.after.stats.finite.all()


@pytest.mark.parametrize(("value", "slope"), FAULTS)
@each_rule
def test_chains_stay_where_the_energy_is_finite(
    rule: Any, value: float | None, slope: float | None
) -> None:
    """Also where a trajectory only passes through; nothing is reported, as nothing is wrong."""
    broken = Broken(value, slope)
    run = sample(broken, -normals(300, 2).abs(), rule, 30, seed=11, keep_every=1)
    assert run.trajectory is not None
    assert not any(broken.inside(x).any() for x in run.trajectory)
    assert (run.stats.first_bad_step == -1).all()
    assert run.stats.acceptance is not None
    assert run.stats.acceptance.isfinite().all()


OVERFLOWS = {
    "MALA": (MALA(1e38), 1e20),
    "AniLA": (AniLA(10.0, 1e38, correction="metropolis"), 1e20),
    "HMC": (HMC(1e38, 3), -INF),
}


@pytest.mark.parametrize(("rule", "edge"), OVERFLOWS.values(), ids=OVERFLOWS)
def test_a_state_that_overflows_is_refused(rule: Any, edge: float) -> None:
    """Whatever the energy makes of it: this one is 0 there, and flat."""
    x0 = 10 + normals(50, 2)
    ((before, after, _),) = moves(rule, Broken(0.0, 0.0, edge), x0, Noise(12), 1)
    out = ~after.proposal.isfinite().all(1)
    assert out.sum() > 10
    assert (after.log_ratio[out] == -INF).all()
    assert_same_bits(after.x[out], before.x[out])


@each_rule
def test_a_chain_leaves_where_the_energy_is_infinite(rule: Any) -> None:
    """exp(-U) is 0 there: the first proposal that is finite is accepted."""
    energy = Broken(INF, 0.0, edge=2.0)
    ((before, after, _),) = moves(rule, energy, 2.1 + normals(300, 1).abs(), Noise(3), 1)
    stays = energy.inside(after.proposal)
    assert 20 < int(stays.sum()) < 280
    assert_same_bits(after.log_ratio == INF, ~stays)
    assert_same_bits(after.x, torch.where(stays[:, None], before.x, after.proposal))


@pytest.mark.parametrize(("value", "slope"), [(NAN, 0.0), (-INF, 0.0), (None, NAN), (None, INF)])
@each_rule
def test_a_start_without_a_density_is_trouble(
    rule: Any, value: float | None, slope: float | None
) -> None:
    """Energy or gradient at x0 are not finite: the chain is named, frozen, or tried again."""
    energy, others = Broken(value, slope, edge=9.0), [0, 1, 3]
    sound = torch.tensor([[0.3, -1.0], [1.0, 0.2], [0.0, 0.0], [-0.5, 0.7]])
    x0 = sound.clone()
    x0[2] = 10.0
    want = sample(energy, sound, rule, 10, seed=13).x
    options: dict[str, Any] = {"seed": 13, "check_every": 1}
    with pytest.raises(NonFiniteError, match=r"1 chain \(2\) became non-finite in step 0") as info:
        sample(energy, x0, rule, 10, **options)
    assert info.value.chains == [2]
    for policy in ("freeze", "reinit"):
        run = sample(energy, x0, rule, 10, on_nonfinite=policy, **options)
        assert_same_bits(run.x[others], want[others], policy)
        assert_same_bits(run.x[2], x0[2], policy)
        assert run.stats.first_bad_step.tolist() == [-1, -1, 0, -1]
        assert run.state.frozen.tolist() == [False, False, policy == "freeze", False]
        assert run.stats.restarts.tolist() == [0, 0, 10 * (policy == "reinit"), 0]
        assert run.stats.acceptance is not None
        assert run.stats.acceptance.isnan().tolist() == [False, False, True, False], policy
    with pytest.raises(NonFiniteError, match="again after 10 restarts"):
        sample(energy, x0, rule, 11, on_nonfinite="reinit", **options)
