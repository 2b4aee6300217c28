"""What holds of every rule: its door, its trouble, and how it goes on."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from langevin_ext import (
    HMC,
    MALA,
    TULA,
    AniLA,
    KineticLangevin,
    Langevin,
    SampleState,
    errors,
    sample,
)
from langevin_ext.testing import Checks

from .conftest import assert_same_bits, chains, normals

RULES: dict[str, Any] = {
    "Langevin": Langevin,
    "AniLA": lambda h: AniLA(1.0, h),
    "weights": lambda h: AniLA(1.0, h, correction="weights"),
    "divergence": lambda h: AniLA(1.0, h, correction="divergence"),
    "metropolis": lambda h: AniLA(1.0, h, correction="metropolis"),
    "TULA": TULA,
    "TULAc": lambda h: TULA(h, per="coordinate"),
    "MALA": MALA,
    "HMC": lambda h: HMC(h, 3),
    "BAOAB": KineticLangevin,
    "ABOBA": lambda h: KineticLangevin(h, scheme="aboba"),
    "OBABO": lambda h: KineticLangevin(h, scheme="obabo"),
}


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1).square().sum(1) if x.dim() > 1 else 0.5 * x.square()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", [(0, 3), (0,), (3, 0), (4,), (2, 1, 3)])
def test_states_of_every_shape(name: str, shape: tuple[int, ...]) -> None:
    """Empty ones as they are; a number per chain is a row of one."""
    x0, rule = normals(*shape), RULES[name](0.1)
    run = sample(quadratic, x0, rule, 3, seed=0, keep_every=1, moments=True, burn_in=2)
    assert run.x.shape == shape
    assert run.trajectory is not None
    assert run.trajectory.shape == (3, *shape)
    if len(shape) == 1 and x0.numel():
        column = sample(quadratic, x0[:, None], rule, 3, seed=0, burn_in=2).x
        assert_same_bits(run.x, column[:, 0])


def test_adaptation_of_no_chains_ends_with_burn_in() -> None:
    rule = MALA(0.1, target_acceptance=0.6)
    for shape in ((0, 3), (3, 0)):
        first = sample(quadratic, torch.zeros(shape), rule, 0, seed=0, burn_in=5)
        sample(quadratic, first.state, rule, 5)


@pytest.mark.parametrize("name", RULES)
def test_the_door_names_what_was_given(name: str) -> None:
    x0 = normals(3, 2)
    with pytest.raises(errors.ShapeError, match=r"step_size has shape \(2,\)"):
        sample(quadratic, x0, RULES[name](torch.full((2,), 0.1)), 1, seed=0)
    with pytest.raises(errors.StepSizeError, match="step_size=1e-60: in float32"):
        sample(quadratic, x0, RULES[name](1e-60), 1, seed=0)


@pytest.mark.parametrize("name", RULES)
def test_an_energy_that_raises_is_named_wherever_it_does(name: str) -> None:
    def raises(x: Tensor) -> Tensor:
        raise ValueError("no")

    with pytest.raises(errors.EnergyError, match=r"ValueError (at x0|in step 0)"):
        sample(raises, normals(3, 2), RULES[name](0.1), 1, seed=0)


class Changes:
    """An energy that works in its input's memory."""

    def __call__(self, x: Tensor) -> Tensor:
        return quadratic(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return quadratic(x), x.mul_(2)


@pytest.mark.parametrize("name", ["Langevin", "MALA", "BAOAB"])
def test_an_energy_may_not_change_its_input(name: str) -> None:
    with pytest.raises(errors.EnergyError, match="changed its input"):
        sample(Changes(), normals(3, 2), RULES[name](0.1), 2, seed=0)


@pytest.mark.parametrize("name", RULES)
def test_a_run_goes_on_with_another_energy(name: str) -> None:
    """As persistent chains do: from the state as from its x, velocities and noise apart."""

    def shifted(x: Tensor) -> Tensor:
        return quadratic(x - 1) + 1000

    rule = RULES[name](0.1)
    first = sample(quadratic, normals(50, 2), rule, 20, seed=0)
    assert isinstance(first.state, SampleState)
    on = sample(shifted, first.state, rule, 30)
    if name in ("BAOAB", "ABOBA", "OBABO"):
        reference = sample(quadratic, first.state, rule, 30)
        assert not torch.equal(on.x, reference.x)
    else:
        anew = sample(shifted, first.x, rule, 30, seed=first.state.noise.clone())
        assert_same_bits(on.x, anew.x)
    assert float(on.x.mean()) > float(first.x.mean()) + 0.3


def test_the_gradient_of_a_run_that_goes_on_is_that_of_the_new_energy() -> None:
    """One step without noise to speak of: BAOAB's first kick is of the new energy."""
    rule = KineticLangevin(0.1, friction=1e-6)
    first = sample(quadratic, normals(50, 2), rule, 1, seed=0)
    x, v = first.x.clone(), first.state.chains.velocity.clone()
    on = sample(lambda x: 3 * quadratic(x), first.state, rule, 1)
    want = x + 0.1 * (v - 0.05 * 3 * x)
    assert float((on.x - want).abs().max()) < 0.01


@pytest.mark.parametrize(
    ("first", "then"),
    [("Langevin", "MALA"), ("MALA", "Langevin"), ("HMC", "BAOAB"), ("weights", "metropolis")],
)
def test_a_state_of_another_kind_is_refused(first: str, then: str) -> None:
    state = sample(quadratic, normals(3, 2), RULES[first](0.1), 1, seed=0).state
    with pytest.raises(errors.ArgumentError, match=r"another rule's; .* start from its x"):
        sample(quadratic, state, RULES[then](0.1), 1)


def test_a_start_beyond_a_wall_is_named() -> None:
    def wall(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, torch.inf, 0.0) + 0 * x.sum(1)

    with pytest.raises(errors.NonFiniteError, match=r"U there is inf. Start where U is finite"):
        sample(wall, torch.tensor([[-1.0], [1e6]]), MALA(0.1), 1, seed=0)


def test_moments_of_no_steps_are_unknown() -> None:
    stats = sample(quadratic, torch.ones(5, 2), Langevin(0.1), 0, seed=0, moments=True).stats
    assert stats.mean is not None
    assert stats.var is not None
    assert stats.mean.isnan().all()
    assert stats.var.isnan().all()


def test_moments_of_long_runs_far_from_zero() -> None:
    """In float32 a mean of 100 does not move by a step of 0.01 / 10,000."""

    def narrow(x: Tensor) -> Tensor:
        return 0.5 * ((x - 100) / 0.01).square().sum(1)

    x0 = torch.full((4, 1), 100.0)
    run = sample(narrow, x0, Langevin(1e-4), 4000, seed=0, keep_every=1, moments=True)
    assert run.trajectory is not None
    assert run.stats.mean is not None
    exact = run.trajectory.double().mean(0)
    assert float((run.stats.mean.double() - exact).abs().max()) < 4e-6  # half a float32 at 100


def test_jitter_breaks_the_circle(seed: int) -> None:
    """Ten leapfrog steps of (sqrt 5 - 1) / 2 are a period of N(0, 1): nothing moves without it."""
    h, x0 = (math.sqrt(5) - 1) / 2, torch.full((chains(50_000), 1), 3.0)
    still = sample(quadratic, x0[:100], HMC(h), 20, seed=seed)
    assert float((still.x - 3).abs().max()) < 1e-3
    x = sample(quadratic, x0, HMC(h, jitter=0.2), 40, seed=seed).x
    Checks(1).gaussian(x[:, 0], 0.0, 1.0)
    for jitter in (-0.1, 1.0, math.nan, "a"):
        with pytest.raises(errors.ArgumentError, match="jitter="):
            HMC(h, jitter=jitter)  # type: ignore[arg-type]


def negative_view(x: Tensor) -> Tensor:
    """x, as torch takes it from a conjugate: its memory has -x, and a flag."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg()
    assert torch.equal(view, x)
    return view


class InNegativeViews:
    """`quadratic`, whose gradients come as views of negative memory."""

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return quadratic(x), negative_view(x)

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.complex(torch.zeros_like(x), x).conj() * 1j
        return quadratic(product.real)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_a_gradient_in_a_negative_view_is_the_gradient(name: str, closed: bool) -> None:
    """torch says that such memory of one element is contiguous."""
    x0, rule = normals(1, 1), RULES[name](0.1)
    energy: Any = InNegativeViews() if closed else InNegativeViews().__call__
    options: Any = {"seed": 0, "burn_in": 2}
    want = sample(quadratic, x0, rule, 5, **options).x
    torch.testing.assert_close(sample(energy, x0, rule, 5, **options).x, want)


def test_a_threshold_in_a_negative_view_is_the_threshold() -> None:
    x0, threshold = normals(1, 3), torch.ones(1)
    for correction in ("none", "weights", "divergence", "metropolis"):
        runs = (
            sample(quadratic, x0, AniLA(b, 0.5, correction=correction), 5, seed=0).x
            for b in (threshold, negative_view(threshold))
        )
        assert_same_bits(*runs)


@pytest.mark.parametrize("name", RULES)
def test_a_state_changed_by_hand_goes_on_or_is_refused(name: str) -> None:
    """Fields in another layout are what they are; of another size or type they are refused."""
    rule = RULES[name](0.1)
    state = sample(quadratic, normals(3, 4), rule, 2, seed=0, burn_in=1).state
    fields = state.chains._asdict()
    apart = {
        k: t.mT.contiguous().mT for k, t in fields.items() if isinstance(t, Tensor) and t.dim() == 2
    }
    moved = dataclasses.replace(state, chains=state.chains._replace(**apart))
    assert_same_bits(sample(quadratic, moved, rule, 3).x, sample(quadratic, state, rule, 3).x, name)
    for field, value in fields.items():
        if not isinstance(value, Tensor) or field == "x":
            continue
        shorter = state.chains._replace(**{field: value[1:]})
        with pytest.raises(errors.ShapeError, match=f"the state's {field} has shape"):
            sample(quadratic, dataclasses.replace(state, chains=shorter), rule, 1)
        other = state.chains._replace(**{field: value.to(torch.float16)})
        with pytest.raises(errors.DtypeError, match=f"the state's {field} is torch.float16"):
            sample(quadratic, dataclasses.replace(state, chains=other), rule, 1)
