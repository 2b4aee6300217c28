"""A state to go on from, changed by hand or met by another energy: no field of it is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from langevin_ext import HMC, MALA, AniLA, KineticLangevin, Langevin, SampleState, sample
from langevin_ext.energies import EightGaussians, QuadraticWell, QuarticWell
from langevin_ext.errors import ArgumentError, DtypeError, LangevinError, NonFiniteError, ShapeError

from .conftest import assert_same_bits, normals

RULES: dict[str, Any] = {
    "Langevin": Langevin(0.1),
    "AniLA": AniLA(1.0, 0.1),
    "weights": AniLA(1.0, 0.1, correction="weights"),
    "MALA": MALA(0.1),
    "AniLA that decides": AniLA(1.0, 0.1, correction="metropolis"),
    "HMC": HMC(0.1, 3),
    "BAOAB": KineticLangevin(0.1),
    "ABOBA": KineticLangevin(0.1, 1.0, "aboba"),
    "OBABO": KineticLangevin(0.1, 1.0, "obabo"),
}
WITH_GRADIENTS = {
    name: RULES[name] for name in ("MALA", "AniLA that decides", "HMC", "BAOAB", "OBABO")
}
ENERGY = EightGaussians()
each_rule = pytest.mark.parametrize("name", RULES)
each_way = pytest.mark.parametrize("way", ["auto", False])
METROPOLIS = pytest.mark.parametrize("name", ["MALA", "AniLA that decides", "HMC"])


def left(rule: Any) -> SampleState:
    """Where five chains are after three steps, with where they restart."""
    return sample(ENERGY, normals(5, 2), rule, 3, seed=7, on_nonfinite="reinit").state


def assert_refused(
    state: SampleState, rule: Any, way: Any, error: type[LangevinError], named: str
) -> None:
    for policy in ("raise", "freeze", "reinit"):
        with pytest.raises(error, match=f"the state's {named} (is|has)"):
            sample(ENERGY, state, rule, 2, whole_chain=way, on_nonfinite=policy)


# ---- fields that are not there, or not what they were --------------------------------------------


@each_way
@each_rule
def test_no_field_of_the_chains_may_be_none(name: str, way: Any) -> None:
    state = left(RULES[name])
    chains, seen = state.chains, []
    for field, value in chains._asdict().items():
        if isinstance(value, Tensor) and field != "x":
            seen.append(field)
            none = replace(state, chains=chains._replace(**{field: None}))
            assert_refused(none, RULES[name], way, ArgumentError, field)
    for field in chains.stats._fields:
        stats = chains.stats._replace(**{field: None})
        none = replace(state, chains=chains._replace(stats=stats))
        assert_refused(none, RULES[name], way, ArgumentError, field)
    assert set(seen) == {"energy", "grad", "velocity", "weight", "proposal", "log_ratio",
                         "accepted"} & set(chains._fields)  # fmt: skip


FROZEN: dict[str, tuple[Callable[[Tensor], Any], type[LangevinError]]] = {
    "too few": (lambda t: t[:3], ShapeError),
    "too many": (lambda t: t.repeat(2), ShapeError),
    "a column": (lambda t: t[:, None], ShapeError),
    "one for all": (lambda t: t[0], ShapeError),
    "of another type": (lambda t: t.to(torch.float16), DtypeError),
    "none": (lambda t: None, ArgumentError),
    "a list": (lambda t: t.tolist(), ArgumentError),
}


@each_way
@pytest.mark.parametrize("case", FROZEN)
@each_rule
def test_frozen_and_restarts_are_for_each_chain(name: str, case: str, way: Any) -> None:
    change, error = FROZEN[case]
    state = left(RULES[name])
    for field in ("frozen", "restarts"):
        changed: Any = {field: change(getattr(state, field))}
        assert_refused(replace(state, **changed), RULES[name], way, error, field)


@each_way
@pytest.mark.parametrize("case", ["too few", "of another type", "none"])
@each_rule
def test_where_chains_restart_is_like_where_they_are(name: str, case: str, way: Any) -> None:
    change, error = FROZEN[case]
    state = left(RULES[name])
    assert state.start is not None
    for field, value in state.start.items():
        start: Any = state.start | {field: change(value)}
        assert_refused(replace(state, start=start), RULES[name], way, error, f"start's {field}")


# ---- another energy ------------------------------------------------------------------------------


class Patchy:
    """The energy of `EightGaussians`, with no gradient in some chains."""

    def __init__(self, *bad: int) -> None:
        self.bad = list(bad)

    def __call__(self, x: Tensor) -> Tensor:
        return ENERGY(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = ENERGY.value_and_gradient(x)
        grad = grad.clone()
        grad[self.bad] = float("nan")
        return value, grad


@METROPOLIS
def test_a_gradient_that_is_gone_is_trouble(name: str) -> None:
    """Its energies are numbers as they were: the decision alone would not say it."""
    state = left(RULES[name])
    with pytest.raises(NonFiniteError, match="1 chain") as caught:
        sample(Patchy(3), state, RULES[name], 5)
    assert (caught.value.chains, caught.value.step) == ([3], 0)


@METROPOLIS
@each_way
def test_a_gradient_that_is_back_is_none(name: str, way: Any) -> None:
    """The state remembers no trouble that this energy has not."""
    state = left(RULES[name])
    bad = sample(Patchy(1, 3), state, RULES[name], 0).state
    assert bad.chains.stats.finite.tolist() == [True, False, True, False, True]
    got = sample(ENERGY, bad, RULES[name], 5, whole_chain=way)
    want = sample(ENERGY, state, RULES[name], 5, whole_chain=way)
    assert (got.stats.first_bad_step == -1).all()
    assert_same_bits(got.x, want.x)
    assert_same_bits(got.stats.grad_norm, want.stats.grad_norm)


@each_way
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_chains_restart_with_this_energys_gradient(name: str, way: Any) -> None:
    """Not with that of the energy of the run before, nor with its value."""
    rule, before, now = WITH_GRADIENTS[name], QuadraticWell(3), QuarticWell(3)
    x0 = normals(5, 3)
    state = sample(before, x0, rule, 2, seed=7, on_nonfinite="reinit").state
    x = state.chains.x.clone()
    x[3] = 1e30
    state = replace(state, chains=state.chains._replace(x=x))
    run = sample(now, state, rule, 1, on_nonfinite="reinit", whole_chain=way)
    assert run.stats.restarts.tolist() == [0, 0, 0, 1, 0]
    assert_same_bits(run.x[3], x0[3])
    value, grad = now.value_and_gradient(x0)
    torch.testing.assert_close(run.state.chains.energy[3], value[3])
    torch.testing.assert_close(run.state.chains.grad[3], grad[3])
    for policy in ("raise", "freeze"):  # which take it along
        on = sample(now, run.state, rule, 0, on_nonfinite=policy).state
        assert on.start is not None
        torch.testing.assert_close(on.start["grad"], grad)
        torch.testing.assert_close(on.start["energy"], value)
