"""Runs by whole chains against the same runs step by step: what their tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast, get_args

import torch
from hypothesis import HealthCheck, settings, strategies as st
from torch import Tensor

from langevin_ext import (
    MALA,
    AniLA,
    KineticLangevin,
    Langevin,
    Noise,
    Purpose,
    Samples,
    SampleState,
    sample,
)
from langevin_ext.errors import LangevinError
from langevin_ext.samplers.kinetic import Scheme

from .conftest import assert_same_bits, places

# ---- comparing ----------------------------------------------------------------------------------


def pair(energy: Any, x0: Any, rule: Any, steps: int, **options: Any) -> tuple[Samples, Samples]:
    """The run by whole chains, and step by step; but for chains with a decision that is `close`."""
    if isinstance(x0, Tensor):
        options = {"seed": 7} | options
    watched = Watched(rule)
    whole = sample(energy, x0, rule, steps, whole_chain=True, **options)
    single = sample(energy, x0, watched, steps, whole_chain=False, **options)
    sure = watched.sure(whole.x)
    return chains_of(whole, sure), chains_of(single, sure)


def tolerance(dtype: torch.dtype, steps: int) -> float:
    """Relative to the largest number of its kind: thirty roundings a step (twelve are seen)."""
    return 30 * steps * torch.finfo(dtype).eps


class Watched:
    """A rule, and which chains it has decided on within rounding of their uniform number.

    There the same run by whole chains may decide otherwise, and then is another run.
    """

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.close: Tensor | None = None
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)

    def step(self, state: Any, energy: Any, noise: Noise, *, backend: str) -> Any:
        if not hasattr(state, "log_ratio"):
            return self.rule.step(state, energy, noise, backend=backend)
        uniform = noise.purpose(Purpose.ACCEPT).uniform((len(state.x), 1))[:, 0].double()
        before = state.energy.clone()
        state = self.rule.step(state, energy, noise, backend=backend)
        self.steps += 1
        rounding = tolerance(state.x.dtype, self.steps)
        size = torch.stack([before.double(), state.energy.double(), state.log_ratio]).abs()
        size = size.nan_to_num(0, 0, 0).amax(0).clamp(min=1)
        close = (uniform.log() - state.log_ratio).abs() <= rounding * size
        self.close = close if self.close is None else self.close | close
        return state

    def sure(self, x: Tensor) -> Tensor:
        """The chains that were decided on clearly, nearly all of those at x."""
        if self.close is None:
            return torch.arange(len(x))
        sure = (~self.close).nonzero()[:, 0]
        assert len(sure) >= 0.8 * len(x) - 1
        return sure


def begin(energy: Any, x0: Tensor, rule: Any) -> Samples:
    """Fresh chains, with seed 7."""
    return sample(energy, x0, rule, 0, seed=7)


def part_of(run: Samples, rows: slice) -> SampleState:
    """Where some chains of a run are, to go on from by themselves."""
    first = run.state.noise.first_chain + rows.start
    return replace(chains_of(run, rows).state, noise=run.state.noise.shard(first))


def spoiled(state: SampleState, chain: int) -> SampleState:
    """With one chain where no energy is finite."""
    x = state.chains.x.clone()
    x[chain] = float("inf")
    return replace(state, chains=state.chains._replace(x=x))


def chains_of(run: Samples, rows: Tensor | slice) -> Samples:
    """A run of fewer chains."""
    n = len(run.x)

    def of(field: Any) -> Any:
        if isinstance(field, Tensor):
            return field[rows] if field.shape[:1] == (n,) else field
        if isinstance(field, tuple):
            return type(field)(*map(of, field))
        return field

    kept = run.trajectory
    state, start = run.state, run.state.start
    return run._replace(
        x=run.x[rows],
        trajectory=None if kept is None else kept[:, rows],
        stats=of(run.stats),
        state=replace(
            state,
            chains=of(state.chains),
            frozen=state.frozen[rows],
            restarts=state.restarts[rows],
            start=start and {name: of(t) for name, t in start.items()},
        ),
    )


def fields_of(state: Any, prefix: str = "") -> dict[str, Any]:
    """All that a rule's state has, by name: tensors, and what else there is."""
    fields: dict[str, Any] = {}
    for name, value in state._asdict().items():
        nested = hasattr(value, "_asdict")
        fields |= fields_of(value, f"{name}.") if nested else {prefix + name: value}
    return fields


def assert_same_run(got: Samples, want: Samples, relative: float) -> None:
    """All that the results have: counts and flags equal, numbers to ``relative`` of the largest."""
    assert places(got.state.noise) == places(want.state.noise)
    assert torch.equal(got.state.frozen, want.state.frozen)
    pairs = {"x": (got.x, want.x), "trajectory": (got.trajectory, want.trajectory)}
    pairs |= {
        name: (getattr(got.stats, name), getattr(want.stats, name)) for name in want.stats._fields
    }
    got_state, want_state = fields_of(got.state.chains), fields_of(want.state.chains)
    assert got_state.keys() == want_state.keys()
    recorded = want.state.step > 0  # what a step records is there
    names = [name for name in want_state if recorded or not name.startswith("stats.")]
    pairs |= {f"the state's {name}": (got_state[name], want_state[name]) for name in names}
    energy, norm = want.state.chains.energy, want.stats.grad_norm
    size = max([1.0, *energy[energy.isfinite()].abs().tolist()])
    slope = max([0.0, *norm[norm.isfinite()].tolist()])  # where the chains were: here it may vanish
    for name, (a, b) in pairs.items():
        assert type(a) is type(b), name
        if not isinstance(a, Tensor):
            assert a == b, name
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        if name.endswith(("grad_norm", ".finite")) and "velocity" in want_state:
            # Of a frozen chain they are where it stands, or where a step from there would have led.
            a, b = a[~got.state.frozen], b[~got.state.frozen]
        finite = b.isfinite()
        assert torch.equal(a.isfinite(), finite), name
        if name != "the state's proposal":  # a bad one is infinite or NaN
            assert torch.equal(a.isnan(), b.isnan()), name
        if not a.is_floating_point():
            assert torch.equal(a, b), name
        elif finite.any():
            scale = float(b[finite].abs().max().clamp(min=1e-3))
            if name.endswith(("log_ratio", "acceptance")):  # a difference of energies
                scale = max(scale, size)
            elif "grad" in name:
                scale = max(scale, slope)
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


def assert_same_outcome(
    energy: Any, x0: Any, rule: Any, steps: int, *, spread: float = 1, **options: Any
) -> Outcome:
    """Errors of one kind, step, chains and message; what was drawn to `tolerance`; by whole chains.

    So are chains that were well all the time, by themselves; in one that blows up a step of a
    quartic energy triples what two runs differ by. Other chains spread them by ``spread``.
    """
    watched = Watched(rule)
    whole = outcome(energy, x0, rule, steps, whole_chain=True, **options)
    single = outcome(energy, x0, watched, steps, whole_chain=False, **options)
    assert type(whole.error) is type(single.error)
    if whole.error is not None and single.error is not None:
        for name in ("step", "chains"):
            assert getattr(whole.error, name, None) == getattr(single.error, name, None)
        assert str(whole.error).partition(":")[0] == str(single.error).partition(":")[0]
    within = spread * tolerance(whole.samples.x.dtype, steps + options.get("burn_in", 0))
    sure = watched.sure(whole.samples.x)
    got, want = chains_of(whole.samples, sure), chains_of(single.samples, sure)
    assert_same_run(got, want, 30 * within)
    well = want.stats.first_bad_step < 0
    if well.any():
        assert_same_run(chains_of(got, well), chains_of(want, well), within)
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
    """Rules with any of their options, about the step size h; ``each`` (B,) in (0, 1] is multiplied
    to what has a number for every chain."""

    def coefficient(value: float) -> Any:
        forms: list[Any] = [
            value, torch.tensor(value), value * each, lambda k: value / (1 + k % 5),
            lambda k: torch.tensor(value / (1 + k % 3)),
        ]  # fmt: skip
        return forms[draw(st.integers(0, len(forms) - 1))]

    kind = draw(st.sampled_from([Langevin, Langevin, AniLA, AniLA, MALA, KineticLangevin]))
    if kind is MALA:  # where a good share is refused
        step_size = coefficient(5 * h)
        if draw(st.booleans()):
            return MALA(step_size)
        threshold = draw(st.sampled_from([0.5, 2.0, 2 * each, float("inf")]))
        return AniLA(threshold, step_size, correction="metropolis")
    if kind is KineticLangevin:
        some = torch.where(each > 0.6, torch.inf, each)
        return KineticLangevin(
            coefficient(0.5 * h**0.5),
            draw(st.sampled_from([0.3, 3.0, 3 * each, float("inf"), some, 1e6])),
            draw(st.sampled_from(get_args(Scheme))),
            coefficient(draw(st.sampled_from([0.2, 1.0]))),
        )
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
    if kind is Langevin:
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
