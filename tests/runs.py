"""Runs by whole chains against the same runs step by step: what their tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from hypothesis import HealthCheck, settings, strategies as st
from torch import Tensor

from langevin_ext import AniLA, Langevin, Noise, Samples, sample
from langevin_ext.errors import LangevinError

from .conftest import assert_same_bits, places

# ---- comparing ----------------------------------------------------------------------------------


def pair(energy: Any, x0: Any, rule: Any, steps: int, **options: Any) -> tuple[Samples, Samples]:
    """The run by whole chains, and step by step."""
    if isinstance(x0, Tensor):
        options = {"seed": 7} | options
    whole, single = (
        sample(energy, x0, rule, steps, whole_chain=way, **options) for way in (True, False)
    )
    return whole, single


def tolerance(dtype: torch.dtype, steps: int) -> float:
    """Relative to the largest number of its kind: thirty roundings a step (twelve are seen)."""
    return 30 * steps * torch.finfo(dtype).eps


def assert_same_run(got: Samples, want: Samples, relative: float) -> None:
    """All that the results have: counts and flags equal, numbers to ``relative`` of the largest."""
    assert places(got.state.noise) == places(want.state.noise)
    assert got.state.step == want.state.step
    assert torch.equal(got.state.frozen, want.state.frozen)
    pairs = {"x": (got.x, want.x), "trajectory": (got.trajectory, want.trajectory)}
    pairs |= {
        name: (getattr(got.stats, name), getattr(want.stats, name)) for name in want.stats._fields
    }
    pairs["state"] = got.state.chains.x, want.state.chains.x
    for name, (a, b) in pairs.items():
        assert (a is None) == (b is None), name
        if a is None or b is None:
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        finite = b.isfinite()
        assert torch.equal(a.isfinite(), finite), name
        assert torch.equal(a.isnan(), b.isnan()), name
        if not a.is_floating_point():
            assert torch.equal(a, b), name
        elif finite.any():
            scale = float(b[finite].abs().max().clamp(min=1e-3))
            apart = float((a - b)[finite].abs().max())
            assert apart <= relative * scale, (name, apart / scale, relative)


def assert_same_fields(got: Samples, want: Samples, rows: slice, *, sums: bool = True) -> None:
    """Bits of what ``got`` has and the same rows of ``want`` have."""
    assert_same_bits(got.x, want.x[rows], "x")
    if got.trajectory is not None and want.trajectory is not None:
        assert_same_bits(got.trajectory, want.trajectory[:, rows], "trajectory")
    for name in got.stats._fields if sums else ("energy", "mean", "var"):
        a, b = getattr(got.stats, name), getattr(want.stats, name)
        if a is not None:
            assert_same_bits(a, b[rows], name)


POLICIES = "raise", "freeze", "reinit"
EVERY = None, 1, 7


class Outcome(NamedTuple):
    samples: Samples
    error: LangevinError | None


def outcome(energy: Any, x0: Any, rule: Any, steps: int, **options: Any) -> Outcome:
    options = ({"seed": 7} if isinstance(x0, Tensor) else {}) | options
    try:
        return Outcome(sample(energy, x0, rule, steps, **options), None)
    except LangevinError as error:
        return Outcome(cast(Samples, error.samples), error)


def assert_same_outcome(energy: Any, x0: Any, rule: Any, steps: int, **options: Any) -> Outcome:
    """Errors of one kind, step, chains and message; what was drawn to `tolerance`; by whole chains.

    So are chains that were well all the time, by themselves; in one that blows up a step of a
    quartic energy triples what two runs differ by.
    """
    whole, single = (
        outcome(energy, x0, rule, steps, whole_chain=way, **options) for way in (True, False)
    )
    assert type(whole.error) is type(single.error)
    if whole.error is not None and single.error is not None:
        for name in ("step", "chains"):
            assert getattr(whole.error, name, None) == getattr(single.error, name, None)
        assert str(whole.error).partition(":")[0] == str(single.error).partition(":")[0]
    within = tolerance(whole.samples.x.dtype, steps + options.get("burn_in", 0))
    assert_same_run(whole.samples, single.samples, 30 * within)
    well = (single.samples.stats.first_bad_step < 0).nonzero()[:, 0]
    got, want = (
        run._replace(
            x=run.x[well],
            trajectory=None if run.trajectory is None else run.trajectory[:, well],
            stats=type(run.stats)(*[None if t is None else t[well] for t in run.stats]),
        )
        for run in (whole.samples, single.samples)
    )
    if len(well):
        assert_same_run(got, want, within)
    return whole


# ---- rules --------------------------------------------------------------------------------------

H = 0.04
RULES: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda c: Langevin(H),
    "temperature": lambda c: Langevin(H, temperature=0.3),
    "no noise": lambda c: Langevin(H, noise_std=0),
    "noise of its own": lambda c: Langevin(H, noise_std=0.05),
    "clamp": lambda c: Langevin(H, clamp=(-0.4, 0.5)),
    "lower clamp": lambda c: Langevin(H, clamp=(0.0, None)),
    "upper clamp": lambda c: Langevin(H, clamp=(None, 0.0)),
    "reference": lambda c: Langevin(H, reference_precision=0.7),
    "0-d tensors": lambda c: Langevin(torch.tensor(H), torch.tensor(0.5, dtype=torch.float64)),
    "step sizes": lambda c: Langevin(H * c),
    "temperatures": lambda c: Langevin(H, temperature=c.double()),
    "all of it": lambda c: Langevin(H * c, 1 / c, reference_precision=0.3, clamp=(-1, 1)),
    "noises": lambda c: Langevin(H, noise_std=0.1 * (c - c.min())),
    "schedule": lambda c: Langevin(lambda k: H / (1 + k)),
    "schedules": lambda c: Langevin(
        lambda k: torch.tensor(H / (1 + k)), lambda k: 1 + k % 3, reference_precision=0.3
    ),
    "noise that begins late": lambda c: Langevin(H, noise_std=lambda k: 0.1 * (k > 4)),
    "noise that ends": lambda c: Langevin(H, noise_std=lambda k: 0.1 * (k < 5)),
    "AniLA": lambda c: AniLA(1.0, H),
    "AniLA, p = 0": lambda c: AniLA(1.0, H, noise_power=0),
    "AniLA, p = 1": lambda c: AniLA(1.0, H, noise_power=1),
    "coordinates": lambda c: AniLA(0.6, H, per="coordinate"),
    "coordinates, p = 0": lambda c: AniLA(0.6, H, per="coordinate", noise_power=0),
    "coordinates, p = 1": lambda c: AniLA(0.6, H, per="coordinate", noise_power=1),
    "no threshold": lambda c: AniLA(float("inf"), H),
    "thresholds": lambda c: AniLA(torch.where(c > c.mean(), torch.inf, c), H),
    "thresholds of coordinates": lambda c: AniLA(c, H * c, per="coordinate", temperature=c),
    "a tiny threshold": lambda c: AniLA(1e-6, H),
    "all of AniLA": lambda c: AniLA(
        c, lambda k: H / (1 + k), noise_std=lambda k: 0.1 * (k % 3), clamp=(-1, 1),
        reference_precision=0.3, per="coordinate", noise_power=1,
    ),
}  # fmt: skip
"""Rules of every option, given numbers about 1 for each chain."""


@st.composite
def drawn_rules(draw: st.DrawFn, h: float, each: Tensor) -> Any:
    """Langevin and AniLA with any of their options, about the step size h; ``each`` (B,) in (0, 1]
    is multiplied to what has a number for every chain."""

    def coefficient(value: float) -> Any:
        forms: list[Any] = [
            value, torch.tensor(value), value * each, lambda k: value / (1 + k % 5),
            lambda k: torch.tensor(value / (1 + k % 3)),
        ]  # fmt: skip
        return forms[draw(st.integers(0, len(forms) - 1))]

    more: dict[str, Any] = {
        "step_size": coefficient(h),
        "clamp": draw(st.sampled_from([None, (-0.7, 0.9), (None, 0.4), (0.0, None)])),
        "reference_precision": draw(st.sampled_from([0.0, 0.4])),
    }
    if draw(st.booleans()):
        more["temperature"] = coefficient(draw(st.sampled_from([0.2, 1.0])))
    else:
        silent = st.sampled_from([0.0, 0.05, lambda k: 0.1 * (k % 7 > 2), lambda k: 0.1 * (k < 9)])
        more["noise_std"] = draw(silent)
    if not draw(st.booleans()):
        return Langevin(**more)
    return AniLA(
        threshold=draw(st.sampled_from([0.5, 2.0, 2 * each, float("inf")])),
        per=draw(st.sampled_from(["sample", "coordinate"])),
        noise_power=draw(st.sampled_from([0, 0.5, 1])),
        **more,
    )


@st.composite
def drawn_options(draw: st.DrawFn) -> dict[str, Any]:
    """What `sample` may be asked for besides."""
    return {
        "burn_in": draw(st.sampled_from([0, 0, 1, 33])),
        "keep_every": draw(st.sampled_from([None, 1, 3, 32])),
        "moments": draw(st.booleans()),
        "on_nonfinite": draw(st.sampled_from(POLICIES)),
        "check_every": draw(st.sampled_from(EVERY)),
        "seed": Noise(
            draw(st.integers(0, 2**64 - 1)),
            first_chain=draw(st.integers(0, 2**32 - 70)),
            step=draw(st.integers(0, 2**47)),
        ),
    }


def whenever(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
