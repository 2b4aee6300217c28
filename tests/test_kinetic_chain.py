"""Whole chains of kinetic Langevin dynamics against the same chains step by step, and their laws.

Gradients differ by rounding, as in test_whole_chain.py, and so do positions and velocities; their
difference is turned and kicked by the energy like a chain itself. Runs are short for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from langevin_ext import KineticLangevin, Noise, Purpose, Samples, SampleState, _chain, sample
from langevin_ext.energies import DoubleWell, Gaussian, QuadraticWell, QuarticWell
from langevin_ext.errors import NonFiniteError, ShapeError, StepSizeError
from langevin_ext.samplers.kinetic import Scheme
from langevin_ext.testing import Checks

from .conftest import (
    ISAS,
    NO_NATIVE,
    ON_CPU,
    assert_same_bits,
    chains,
    native,
    normals,
    places,
)
from .kinds import DTYPES, EXACT, KINDS, SOME, explosive, start
from .networks import network
from .runs import (
    POLICIES,
    assert_same_fields,
    assert_same_outcome,
    assert_same_run,
    begin,
    chains_of,
    fields_of,
    pair,
    part_of,
    spoiled,
    tolerance,
)

pytestmark = [
    pytest.mark.skipif(not ON_CPU, reason="a CPU's kernels"),
    pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native backend: {NO_NATIVE}"),
]

INF = math.inf
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def h_of(kind: str) -> float:
    """A step that moves as far as one of `Langevin` that is short for the energy."""
    return 0.7 * KINDS[kind].step ** 0.5


# ---- the same run -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 6), (torch.float64, 15)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_energy_in_every_dimension(
    kind: str, dtype: torch.dtype, steps: int, taken: list[int]
) -> None:
    for d in KINDS[kind].dims:
        energy, x0 = start(kind, d, 37, dtype)
        for scheme in SCHEMES:
            rule = KineticLangevin(h_of(kind), 0.8, scheme, temperature=0.9)
            taken.clear()
            whole, single = pair(energy, x0, rule, steps, keep_every=3, moments=True, burn_in=2)
            assert taken == [2, steps]
            assert_same_run(whole, single, tolerance(dtype, steps))


OPTIONS: dict[str, Callable[[float, Tensor], dict[str, Any]]] = {
    "numbers": lambda h, c: {"step_size": h, "friction": 0.3, "temperature": 0.5},
    "0-d tensors": lambda h, c: {
        "step_size": torch.tensor(h), "friction": torch.tensor(2.0),
        "temperature": torch.tensor(0.5, dtype=torch.float64),
    },
    "step sizes": lambda h, c: {"step_size": h * c},
    "frictions": lambda h, c: {"step_size": h, "friction": 2 * c},
    "temperatures": lambda h, c: {"step_size": h, "temperature": c.double()},
    "all of them": lambda h, c: {"step_size": h * c, "friction": 1 / c, "temperature": c},
    "infinite friction": lambda h, c: {"step_size": h, "friction": INF},
    "a friction that forgets": lambda h, c: {"step_size": h, "friction": 1e5},
    "hardly any friction": lambda h, c: {"step_size": h, "friction": 1e-20},
    "infinite frictions": lambda h, c: {
        "step_size": h, "friction": torch.where(c > c.mean(), INF, c)
    },
    "a schedule": lambda h, c: {"step_size": lambda k: h / (1 + k % 3), "friction": 0.4},
    "schedules": lambda h, c: {
        "step_size": lambda k: torch.tensor(h / (1 + k)), "temperature": lambda k: 0.5 + k % 3,
    },
    "a schedule of temperatures": lambda h, c: {
        "step_size": torch.tensor(h), "temperature": lambda k: 0.1 * (1 + k)
    },
    "a schedule that forgets at times": lambda h, c: {
        "step_size": lambda k: h / (1 + k % 4), "friction": 150 / h
    },
}  # fmt: skip
"""Every option, given a step size and numbers about 1 for each chain."""


@each_dtype
@each_scheme
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option(option: str, scheme: Scheme, dtype: torch.dtype, taken: list[int]) -> None:
    """Of three energies, one of them in an odd dimension; the kernel took every step."""
    for kind, d in (("gaussian", 5), ("round mixture", 3), ("rings", 2)):
        energy, x0 = start(kind, d, 21, dtype)
        each = torch.linspace(0.5, 1.5, 21, dtype=dtype)
        rule = KineticLangevin(**OPTIONS[option](h_of(kind), each), scheme=scheme)
        taken.clear()
        whole, single = pair(energy, x0, rule, 9, keep_every=2, moments=True, burn_in=1)
        assert sum(taken) == 10
        assert len(taken) == 2 or "at times" in option
        assert_same_run(whole, single, tolerance(dtype, 10))


@each_dtype
@pytest.mark.parametrize("kind", EXACT)
def test_the_same_bits_where_the_order_is_torchs(kind: str, dtype: torch.dtype, isa: str) -> None:
    """Of states, velocities and gradients. In one dimension a norm is no sum, and is the same.

    Energies share out the combinations of options and schemes.
    """
    for i, (name, options) in enumerate(OPTIONS.items()):
        d, scheme = (1, 5, 2)[i % 3], SCHEMES[(i // 3 + sorted(EXACT).index(kind)) % 3]
        energy, x0 = EXACT[kind](d), normals(21, d, dtype=dtype)
        each = torch.linspace(0.5, 1.5, 21, dtype=dtype)
        rule = KineticLangevin(**options(0.2, each), scheme=scheme)
        whole, single = pair(energy, x0, rule, 9, keep_every=1)
        assert whole.trajectory is not None
        assert_same_bits(whole.trajectory, single.trajectory, (name, scheme))
        for field in ("velocity", "grad"):
            got, want = (getattr(run.state.chains, field) for run in (whole, single))
            assert_same_bits(got, want, (name, scheme, field))
        if d == 1:
            assert_same_bits(whole.stats.grad_norm, single.stats.grad_norm)


@each_scheme
def test_everything_is_recorded_at_every_setting(scheme: Scheme) -> None:
    energy, x0 = start("round mixture", 3, 11, torch.float64)
    rule = KineticLangevin(0.1, scheme=scheme)
    for burn_in, keep_every in ((0, None), (0, 1), (5, 7), (32, 32), (40, 3), (1, 200)):
        whole, single = pair(
            energy, x0, rule, 70, burn_in=burn_in, keep_every=keep_every, moments=True
        )
        assert_same_run(whole, single, tolerance(torch.float64, 70))


@each_scheme
def test_one_step_and_none(scheme: Scheme) -> None:
    """ABOBA has no energy before its first step, and then the one of half a step before."""
    energy, x0 = start("round mixture", 3, 11, torch.float64)
    for steps, burn_in in ((0, 0), (1, 0), (0, 1), (1, 1), (0, 3)):
        rule = KineticLangevin(0.1, scheme=scheme)
        whole, single = pair(energy, x0, rule, steps, burn_in=burn_in, moments=True)
        assert_same_run(whole, single, tolerance(torch.float64, 4))
    if scheme == "aboba":
        half = x0 + 0.05 * sample(energy, x0, rule, 0, seed=7).state.chains.velocity
        got = sample(energy, x0, rule, 1, seed=7, whole_chain=True)
        torch.testing.assert_close(got.stats.energy, energy(half), rtol=1e-13, atol=1e-13)


NETWORKS = {
    "one layer": lambda: network((5, 1), "tanh", last=True),
    "two layers": lambda: network((5, 16, 1), "silu"),
    "four layers": lambda: network((5, 16, 9, 16, 1), "softplus"),
    "kinks": lambda: network((5, 8, 1), "leaky"),
}


@each_scheme
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, scheme: Scheme, isa: str, taken: list[int]) -> None:
    """With numbers and with numbers for each chain; more chains than a block has."""
    net, x0 = NETWORKS[name](), normals(69, 5, seed=1)
    for option in ("numbers", "all of them", "infinite frictions", "schedules"):
        rule = KineticLangevin(**OPTIONS[option](0.2, torch.linspace(0.5, 1.5, 69)), scheme=scheme)
        taken.clear()
        whole, single = pair(net, x0, rule, 5, keep_every=2, moments=True, burn_in=1)
        assert taken == [1, 5]
        assert_same_run(whole, single, tolerance(torch.float32, 6))


def test_states_of_any_shape(taken: list[int]) -> None:
    net, x0 = nn.Sequential(nn.Flatten(), *network((12, 9, 1))), normals(11, 3, 2, 2)
    for scheme in SCHEMES:
        taken.clear()
        whole, single = pair(net, x0, KineticLangevin(0.1, scheme=scheme), 6, moments=True)
        assert taken == [6]
        assert_same_run(whole, single, tolerance(torch.float32, 6))


@each_scheme
def test_noise_far_along(scheme: Scheme) -> None:
    """Both streams of it: seeds and chain ids at their ends, a step of more than 32 bits."""
    energy, x0 = start("gaussian", 3, 6, torch.float32)
    rule = KineticLangevin(0.2, 0.7, scheme)
    for noise in (
        Noise(2**64 - 1, stream=65520, first_chain=2**32 - 6, step=2**32 - 3),
        Noise(1, step=2**48 - 10),
    ):
        whole, single = pair(energy, x0, rule, 10, seed=noise.at(noise.step))
        assert_same_bits(whole.x, single.x)


# ---- the same bits ------------------------------------------------------------------------------


def recorded(
    energy: Any, x: Tensor | SampleState, rule: Any, steps: int, first: int = 0
) -> Samples:
    """Fresh chains, of which the first is the ``first`` of all, or chains that go on."""
    seed = Noise(7).shard(first) if isinstance(x, Tensor) else None
    return sample(energy, x, rule, steps, seed=seed, keep_every=2, moments=True, whole_chain=True)


STATE = "x", "energy", "grad", "velocity", "stats.grad_norm", "stats.finite"


def assert_same_motion(got: Samples, want: Samples, rows: slice = slice(None)) -> None:
    """Bits of what `assert_same_fields` compares, and of all that goes on."""
    assert_same_fields(got, want, rows)
    a, b = (fields_of(run.state.chains) for run in (got, chains_of(want, rows)))
    for name in STATE:
        assert_same_bits(a[name], b[name], name)


@each_dtype
@each_scheme
@pytest.mark.parametrize("kind", SOME)
def test_a_chain_is_the_same_in_any_batch(kind: str, scheme: Scheme, dtype: torch.dtype) -> None:
    energy, x0 = start(kind, SOME[kind], 200, dtype)
    each, h = torch.linspace(0.5, 1.5, 200, dtype=dtype), h_of(kind)

    def rule(rows: slice) -> KineticLangevin:
        return KineticLangevin(h * each[rows], each[rows], scheme, each[rows])

    fresh = begin(energy, x0, rule(slice(None)))
    whole = recorded(energy, x0, rule(slice(None)), 5)
    assert_same_motion(recorded(energy, fresh.state, rule(slice(None)), 5), whole)
    for n in (1, 2, 7, 15, 16, 17, 33, 65):
        first = n * 37 % (200 - n)
        rows = slice(first, first + n)
        for x in (x0[rows], part_of(fresh, rows)):
            assert_same_motion(recorded(energy, x, rule(rows), 5, first), whole, rows)


@each_scheme
def test_a_chain_of_a_network_is_the_same_in_any_batch(scheme: Scheme, isa: str) -> None:
    net, x0, each = network((7, 19, 40, 1)), normals(200, 7, seed=4), torch.linspace(0.5, 1.5, 200)

    def rule(rows: slice) -> KineticLangevin:
        return KineticLangevin(0.2 * each[rows], each[rows], scheme)

    fresh = begin(net, x0, rule(slice(None)))
    whole = recorded(net, x0, rule(slice(None)), 5)
    assert_same_motion(recorded(net, fresh.state, rule(slice(None)), 5), whole)
    for n in (1, 3, 7, 16, 33, 65, 70):
        first = n * 37 % (200 - n)
        rows = slice(first, first + n)
        for x in (x0[rows], part_of(fresh, rows)):
            assert_same_motion(recorded(net, x, rule(rows), 5, first), whole, rows)


@each_dtype
@each_scheme
@pytest.mark.parametrize("kind", SOME)
def test_threads_and_instruction_sets_change_no_bit(
    kind: str, scheme: Scheme, dtype: torch.dtype
) -> None:
    energy, x0 = start(kind, SOME[kind], 203, dtype)
    rule = KineticLangevin(h_of(kind), 0.8, scheme)
    assert x0.numel() * 24 > 8192  # fewer are one thread's
    want = recorded(energy, x0, rule, 24)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert_same_motion(recorded(energy, x0, rule, 24), want)
    torch.set_num_threads(1)
    for isa in ISAS:
        native.use_isa(isa)
        assert_same_motion(recorded(energy, x0, rule, 24), want)


@each_scheme
@pytest.mark.parametrize("kind", ["round mixture", "network"])
def test_blocks_end_anywhere(
    kind: str, scheme: Scheme, monkeypatch: pytest.MonkeyPatch, taken: list[int]
) -> None:
    """A number, a schedule and a schedule that is cut where it forgets velocities."""
    energy, x0 = start("round mixture", 3, 70, torch.float32)
    energy = energy if kind != "network" else network((3, 16, 1))
    h = h_of("round mixture")
    advance = _chain.WholeChain.advance
    for option in ("frictions", "a schedule", "a schedule that forgets at times"):
        rule = KineticLangevin(**OPTIONS[option](h, torch.linspace(0.5, 1.5, 70)), scheme=scheme)

        def run(rule: Any = rule) -> Samples:
            return sample(
                energy, x0, rule, 40, seed=7, burn_in=5, keep_every=3, moments=True,
                whole_chain=True,
            )  # fmt: skip

        want = run()
        for length in (1, 2, 7, 31):
            with monkeypatch.context() as patch:
                patch.setattr(
                    _chain.WholeChain,
                    "advance",
                    lambda self, state, noise, most, *, kept, length=length: advance(
                        self, state, noise, min(most, length), kept=kept
                    ),
                )
                taken.clear()
                got = run()
            assert sum(taken) == 45
            assert max(taken) <= length
            for name in ("x", "velocity", "grad", "energy"):
                a, b = (getattr(r.state.chains, name) for r in (got, want))
                assert_same_bits(a, b, (option, length, name))
            # Sums of norms alone are rounded as spans are.
            assert_same_fields(got, want, slice(None), sums=False)


@each_dtype
@each_scheme
@pytest.mark.parametrize("kind", SOME)
def test_a_run_cut_in_two_goes_on_exactly(kind: str, scheme: Scheme, dtype: torch.dtype) -> None:
    """A gradient at the cut is taken anew by the kernel, and is what it was."""
    energy, x0 = start(kind, SOME[kind], 13, dtype)
    h = h_of(kind)
    rule = KineticLangevin(lambda k: h / (1 + k % 5), 0.5, scheme, lambda k: 0.5 + 0.1 * (k % 4))
    whole = sample(energy, x0, rule, 20, seed=7, keep_every=1, whole_chain=True)
    assert whole.trajectory is not None
    for cut in (1, 9, 19):
        part = sample(energy, x0, rule, cut, seed=7, whole_chain=True)
        rest = sample(energy, part.state, rule, 20 - cut, keep_every=1, whole_chain=True)
        assert places(rest.state.noise) == places(whole.state.noise)
        assert_same_bits(rest.trajectory, whole.trajectory[cut:])
        assert_same_bits(rest.stats.energy, whole.stats.energy)
        a, b = (fields_of(run.state.chains) for run in (rest, whole))
        for name in STATE:
            assert_same_bits(a[name], b[name], (cut, name))


@each_scheme
def test_a_run_of_a_network_cut_in_two_goes_on_exactly(scheme: Scheme) -> None:
    """Its restarts too, wherever they are in a batch."""
    net, x0 = network((7, 19, 40, 1)), normals(70, 7, seed=4)
    options: dict[str, Any] = {"on_nonfinite": "reinit", "whole_chain": True}
    rule = KineticLangevin(0.2, 0.5, scheme)
    whole = sample(net, x0, rule, 20, seed=7, **options)
    for cut in (1, 9, 19):
        part = sample(net, x0, rule, cut, seed=7, **options)
        rest = sample(net, part.state, rule, 20 - cut, **options)
        a, b = (fields_of(run.state.chains) for run in (rest, whole))
        for name in STATE:
            assert_same_bits(a[name], b[name], (cut, name))
        lost = spoiled(part.state, 41)
        for n in (1, 40):
            rows = slice(41, 41 + n)
            alone = sample(net, part_of(part._replace(state=lost), rows), rule, 3, **options)
            all_ = sample(net, lost, rule, 3, **options)
            assert all_.stats.restarts.nonzero()[:, 0].tolist() == [41]
            assert_same_bits(alone.x, all_.x[rows])


@each_scheme
@pytest.mark.parametrize("kind", EXACT)
def test_a_run_may_change_hands_at_any_step(kind: str, scheme: Scheme) -> None:
    """From whole chains to single steps and back: all that goes on is there."""
    energy, x0 = EXACT[kind](4), normals(13, 4, dtype=torch.float64)
    rule = KineticLangevin(0.2, torch.linspace(0.1, 3, 13), scheme)
    want = sample(energy, x0, rule, 14, seed=7, whole_chain=False)
    for ways in ((True, False, True), (False, True, False)):
        state: Any = None
        for way, steps in zip(ways, (5, 3, 6), strict=True):
            run = sample(
                energy, state or x0, rule, steps, seed=None if state else 7, whole_chain=way
            )
            state = run.state
        assert_same_bits(run.x, want.x)
        for field in ("velocity", "grad"):
            assert_same_bits(getattr(state.chains, field), getattr(want.state.chains, field))
        assert places(state.noise) == places(want.state.noise)


# ---- chains that leave the finite numbers -------------------------------------------------------


@pytest.mark.parametrize("check_every", [1, 7])
@pytest.mark.parametrize("policy", POLICIES)
@each_dtype
@pytest.mark.parametrize("kind", ["quartic well", "double well", "banana", "funnel"])
def test_bad_chains_are_dealt_with_alike(
    kind: str, dtype: torch.dtype, policy: str, check_every: int
) -> None:
    """Error, step, chains and message; restarts; and where the other chains are."""
    energy, x0, step = explosive(kind, dtype)
    step[12] = 1e15
    seen = set()
    for i, scheme in enumerate(SCHEMES):
        for rule in (
            KineticLangevin(step, 0.3, scheme),
            KineticLangevin(lambda k: 0.05 if k < 9 else 4.0, 0.3, scheme),
        ):
            got = assert_same_outcome(
                energy, x0, rule, 30, spread=300, burn_in=3 * i, keep_every=3, moments=True,
                on_nonfinite=policy, check_every=check_every,
            )  # fmt: skip
            assert got.error is None or isinstance(got.error, NonFiniteError)
            seen |= {*got.samples.stats.first_bad_step.tolist()}
    assert len(seen) > (1 if policy == "raise" else 2)


@each_scheme
@each_dtype
def test_a_frozen_chain_keeps_all_it_had(scheme: Scheme, dtype: torch.dtype) -> None:
    """State, velocity, gradient and energy of the step before; then and in a continued run."""
    energy, x0, step = explosive("quartic well", dtype)
    step[12] = 1e15
    rule = KineticLangevin(step, 0.3, scheme)
    run = sample(energy, x0, rule, 30, seed=7, on_nonfinite="freeze", whole_chain=True)
    frozen = run.state.frozen.nonzero()[:, 0].tolist()
    assert len(frozen) > 3
    assert len({*run.stats.first_bad_step[frozen].tolist()}) > 1
    fresh = sample(energy, x0, rule, 0, seed=7, whole_chain=True).state.chains
    on = sample(energy, run.state, rule, 12, whole_chain=True, keep_every=1)
    assert on.trajectory is not None
    for i in frozen:
        k = int(run.stats.first_bad_step[i])
        before = fresh
        if k:
            others = torch.arange(24) != i
            alone = sample(
                energy, torch.where(others[:, None], 0.1, x0).to(dtype),
                KineticLangevin(torch.where(others, 0.05, step), 0.3, scheme), k, seed=7,
                whole_chain=True,
            )  # fmt: skip
            before = alone.state.chains
        for name in ("x", "velocity", "grad", "energy"):
            want = getattr(before, name)[i]
            assert_same_bits(getattr(run.state.chains, name)[i], want, (i, name))
            if name == "x" or scheme == "aboba":  # else a run that goes on takes U and g at x anew
                assert_same_bits(getattr(on.state.chains, name)[i], want, (i, name))
        for x in on.trajectory:
            assert_same_bits(x[i], before.x[i])
    assert on.stats.grad_norm[~run.state.frozen].isfinite().all()


@pytest.mark.parametrize("friction", [INF, "some infinite"])
def test_infinite_friction_forgets_any_velocity(friction: Any, isa: str) -> None:
    """OBABO begins with it: also one that is no number, of a state changed by hand. Numbers for
    each chain multiply it by 0, by whole chains as by single steps."""
    energy, x0 = EXACT["gaussian"](3), normals(40, 3)
    if friction != INF:
        friction = torch.where(torch.arange(40) < 20, INF, 1.0)
    rule = KineticLangevin(0.2, friction, "obabo")
    fresh = begin(energy, x0, rule).state
    velocity = fresh.chains.velocity.clone()
    velocity[3], velocity[30] = math.nan, INF
    state = replace(fresh, chains=fresh.chains._replace(velocity=velocity))
    whole, single = pair(energy, state, rule, 5, on_nonfinite="freeze")
    assert_same_bits(whole.x, single.x)
    assert whole.state.frozen.nonzero()[:, 0].tolist() == ([] if friction is INF else [3, 30])


@each_scheme
def test_bad_chains_change_no_bit_of_others(scheme: Scheme, isa: str) -> None:
    for energy in (QuarticWell(2), network((2, 16, 1)), *(k.make(2) for k in KINDS.values())):
        x0 = 0.5 * normals(70, 2)
        step = torch.full((70,), 0.02)
        clean = sample(energy, x0, KineticLangevin(step, 1.0, scheme), 20, seed=7, keep_every=1)
        step[7], step[40], step[69] = 1e37, 1e36, 1e35
        dirty = sample(
            energy, x0, KineticLangevin(step, 1.0, scheme), 20, seed=7, keep_every=1,
            on_nonfinite="freeze", whole_chain=True,
        )  # fmt: skip
        well = torch.ones(70, dtype=torch.bool)
        well[[7, 40, 69]] = False
        assert dirty.state.frozen.any()
        assert not dirty.state.frozen[well].any()
        assert dirty.trajectory is not None
        assert clean.trajectory is not None
        assert_same_bits(dirty.trajectory[:, well], clean.trajectory[:, well], energy)
        for name in ("velocity", "grad", "energy"):
            got, want = (getattr(run.state.chains, name)[well] for run in (dirty, clean))
            assert_same_bits(got, want, (energy, name))


@each_scheme
@pytest.mark.parametrize("policy", POLICIES)
def test_frozen_chains_stay_frozen_in_a_continued_run(
    scheme: Scheme, policy: str, taken: list[int]
) -> None:
    energy, x0, step = explosive("quartic well", torch.float32)
    step[12] = 1e15
    rule = KineticLangevin(step, 0.3, scheme)
    part, single = pair(energy, x0, rule, 20, on_nonfinite="freeze")
    assert_same_run(part, single, 30 * tolerance(torch.float32, 20))
    assert 2 < part.state.frozen.sum() < 10
    taken.clear()
    whole, single = pair(energy, part.state, rule, 15, on_nonfinite=policy, keep_every=1)
    assert sum(taken) == 15
    assert_same_run(whole, single, 30 * tolerance(torch.float32, 15))


@pytest.mark.parametrize("cut", [2, 5, 20])
@each_scheme
def test_a_run_with_restarts_goes_on_exactly(scheme: Scheme, cut: int) -> None:
    """A chain that starts again does so with the velocity that it first had."""
    energy, x0 = QuarticWell(1), torch.linspace(-1.5, 1.5, 40)[:, None]
    options: dict[str, Any] = {"on_nonfinite": "reinit", "whole_chain": True}
    rule = KineticLangevin(1.3, 0.5, scheme)
    whole = sample(energy, x0, rule, 25, seed=7, **options)
    assert 3 < whole.stats.restarts.sum() < 200
    part = sample(energy, x0, rule, cut, seed=7, **options)
    rest = sample(energy, part.state, rule, 25 - cut, **options)
    assert_same_bits(rest.x, whole.x)
    assert torch.equal(rest.stats.restarts, whole.stats.restarts)
    single = sample(energy, x0, rule, 25, seed=7, on_nonfinite="reinit", whole_chain=False)
    assert torch.equal(whole.stats.restarts, single.stats.restarts)
    assert_same_bits(whole.x, single.x)
    assert_same_bits(whole.state.chains.velocity, single.state.chains.velocity)


# ---- schedules that go wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "then", "error"),
    [
        ("step_size", -1.0, StepSizeError),
        ("step_size", 0.0, StepSizeError),
        ("step_size", 1e-60, StepSizeError),  # 0 in float32
        ("temperature", float("nan"), StepSizeError),
        ("temperature", torch.full((3,), 0.1), ShapeError),
    ],
)
@each_scheme
def test_a_schedule_that_goes_wrong(
    scheme: Scheme, option: str, then: Any, error: type[Exception]
) -> None:
    """The error of the step it is for, and all that came before."""
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    values = {"step_size": 0.1, option: lambda k: then if k == 20 else 0.1}
    got = assert_same_outcome(
        energy, x0, KineticLangevin(**values, scheme=scheme), 30, burn_in=3, keep_every=1
    )
    assert isinstance(got.error, error)
    assert got.samples.trajectory is not None
    assert (got.samples.state.step, len(got.samples.trajectory)) == (20, 17)


def test_numbers_for_each_chain_under_a_schedule_are_taken_step_by_step(taken: list[int]) -> None:
    """From the first of them on; the steps before are a block."""
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    each = torch.linspace(0.5, 1.5, 11)
    rules = [
        KineticLangevin(lambda k: 0.1 / (1 + k % 3), each),
        KineticLangevin(lambda k: 0.1 * each),
        KineticLangevin(0.1, temperature=lambda k: each if k % 4 == 3 else 1.0),
    ]
    for rule, ones in zip(rules, (9, 9, 6), strict=True):
        taken.clear()
        whole, single = pair(energy, x0, rule, 9, keep_every=1)
        assert (sum(taken), taken.count(1)) == (9, ones)
        assert_same_run(whole, single, tolerance(torch.float32, 9))


# ---- laws ---------------------------------------------------------------------------------------


@each_scheme
@pytest.mark.parametrize("h", [0.3, 1.2])
def test_the_exact_law_on_a_gaussian(scheme: Scheme, h: float, seed: int) -> None:
    """<x^2> w^2 / T and <v^2> / T by the formula of the scheme; x and v do not correlate."""
    n, temperature = chains(20_000), 0.6
    std = torch.tensor([0.8, 1.7], dtype=torch.float64)
    energy = Gaussian([0.5, -1.0], std=std)
    rule = KineticLangevin(h, 1.1, scheme, temperature)
    x0 = energy.mean + std * Noise(2000 + seed, stream=Purpose.INITIAL_STATE).normal(
        (n, 2), dtype=torch.float64
    )
    run = sample(energy, x0, rule, 80, seed=1000 + seed, whole_chain=True)
    v, checks = run.state.chains.velocity, Checks(8)
    for i in range(2):
        bent = 1 / (1 - (h / float(std[i])) ** 2 / 4)
        shape = {"baoab": (1.0, 1 / bent), "aboba": (1.0, bent), "obabo": (bent, 1.0)}[scheme]
        checks.gaussian(
            run.x[:, i], float(energy.mean[i]), temperature * float(std[i]) ** 2 * shape[0], what=i
        )
        checks.gaussian(v[:, i], 0, temperature * shape[1], what=("v", i))
        checks.uncorrelated(run.x[:, i], v[:, i])
    checks.independent_chains(run.x[:, 0])
    checks.independent_chains(v[:, 0])


@each_scheme
def test_the_law_of_a_double_well(scheme: Scheme, seed: int) -> None:
    """Short steps, and exact draws to begin with: they stay draws, up to the step's h^2 bias."""
    n, h = chains(20_000), 0.02
    energy = DoubleWell(2, barrier=1.0)
    run = sample(
        energy, energy.draw(n, 2000 + seed), KineticLangevin(h, 1.5, scheme), 300,
        seed=1000 + seed, whole_chain=True,
    )  # fmt: skip
    x, checks = run.x.double(), Checks(6)
    variance = float(energy.variance[0])
    for i in range(2):
        squares = x[:, i] ** 2
        checks.mean(squares, variance, float(squares.var()), what=i)
        checks.probability((x[:, i] > 0).sum(), n, 0.5, what=i)
        crossed = (x[:, i] > 0) != (energy.draw(n, 2000 + seed)[:, i] > 0)
        assert 0.1 < crossed.double().mean() < 0.9
        checks.gaussian(run.state.chains.velocity[:, i], 0, 1.0, what=i)


def test_a_quadratic_well_of_any_stiffness_is_stable_to_the_last() -> None:
    """h w < 2: just below the chains stay, just above they leave; by the kernel as by steps."""
    for h, stays in ((1.99, True), (2.02, False)):
        for scheme in SCHEMES:
            run = sample(
                QuadraticWell(1), torch.ones(8, 1, dtype=torch.float64),
                KineticLangevin(h, 1e-9, scheme, 1e-30), 100, seed=7, whole_chain=True,
            )  # fmt: skip
            assert (run.x.abs().max() < 1e3) == stays
