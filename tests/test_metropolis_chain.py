"""Whole chains of rules that accept or reject against the same chains step by step.

What a decision is made of differs by rounding. Where it lies within rounding of its uniform number
the two may decide otherwise, and go their own ways: `pair` and `assert_same_outcome` leave out such
chains, which are few. Their laws are in test_metropolis_laws.py and test_metropolis_answers.py.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import interpolate
from torch import Tensor, nn

from langevin_ext import (
    MALA,
    AniLA,
    EnergyGradient,
    Noise,
    Purpose,
    Samples,
    SampleState,
    _chain,
    sample,
)
from langevin_ext.energies import EightGaussians, Gaussian, GaussianMixture, QuarticWell
from langevin_ext.errors import NonFiniteError, SamplingInterrupted, ShapeError, StepSizeError
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
from .kinds import DTYPES, EXACT, KINDS, SOME, start
from .lines import Line
from .networks import LAWS, network
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
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def anila(b: Any, h: Any) -> AniLA:
    return AniLA(b, h, correction="metropolis")


RULES: dict[str, Callable[[Any, Tensor], Any]] = {
    "MALA": lambda h, c: MALA(h),
    "a 0-d tensor": lambda h, c: MALA(torch.tensor(h)),
    "step sizes": lambda h, c: MALA(h * c),
    "a schedule": lambda h, c: MALA(lambda k: h / (1 + k % 3)),
    "a schedule of tensors": lambda h, c: MALA(lambda k: torch.tensor(h / (1 + k))),
    "AniLA": lambda h, c: anila(1.0, h),
    "thresholds": lambda h, c: anila(2 * c, h),
    "thresholds of some": lambda h, c: anila(torch.where(c > c.mean(), INF, c), h),
    "no threshold": lambda h, c: anila(INF, h),
    "a small threshold": lambda h, c: anila(0.05, 5 * h),
    "AniLA with step sizes": lambda h, c: anila(0.7, (h * c).double()),
    "AniLA with a schedule": lambda h, c: anila(c, lambda k: h / (1 + k % 2)),
}
"""Every option, given a step size and numbers about 1 for each chain."""


def h_of(kind: str, d: int) -> float:
    """A step size at which a share of the proposals is refused."""
    return (30 if "mixture" in kind else 10) * KINDS[kind].step * d ** (-1 / 3)


def refused(run: Samples) -> float:
    assert run.stats.acceptance is not None
    return 1 - float(run.stats.acceptance.nan_to_num(1.0).mean())


# ---- the same run -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 6), (torch.float64, 12)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_energy_in_every_dimension(
    kind: str, dtype: torch.dtype, steps: int, taken: list[int]
) -> None:
    for d in KINDS[kind].dims:
        energy, x0 = start(kind, d, 37, dtype)
        h = h_of(kind, d)
        for rule in (MALA(h), anila(2.0, 1.5 * h)):
            taken.clear()
            whole, single = pair(energy, x0, rule, steps, keep_every=3, moments=True, burn_in=2)
            assert taken == [2, steps]
            assert 0.01 < refused(whole) < 0.9
            spread = 100 if (kind, d) == ("funnel", 256) else 1  # a steep neck doubles a rounding
            assert_same_run(whole, single, spread * tolerance(dtype, steps))


@each_dtype
@pytest.mark.parametrize("name", RULES)
def test_every_option(name: str, dtype: torch.dtype, taken: list[int]) -> None:
    """Of three energies, one of them in an odd dimension; the kernel took every step."""
    for kind, d in (("gaussian", 5), ("round mixture", 3), ("rings", 2)):
        energy, x0 = start(kind, d, 41, dtype)
        rule = RULES[name](h_of(kind, d), torch.linspace(0.5, 1.5, 41, dtype=dtype))
        taken.clear()
        whole, single = pair(energy, x0, rule, 9, keep_every=2, moments=True, burn_in=1)
        assert taken == [1, 9]
        assert 0.005 < refused(whole) < 0.9
        assert_same_run(whole, single, tolerance(dtype, 10))


@each_dtype
@pytest.mark.parametrize("kind", EXACT)
def test_the_same_bits_where_the_order_is_torchs(kind: str, dtype: torch.dtype, isa: str) -> None:
    """Of states, proposals and gradients, and of decisions; clipped where norms are no sums."""
    for d in (1, 5):
        for name, make in RULES.items():
            if d == 5 and ("AniLA" in name or ("threshold" in name and name != "no threshold")):
                continue
            energy, x0 = EXACT[kind](d), normals(41, d, dtype=dtype)
            rule = make(1.0, torch.linspace(0.5, 1.5, 41, dtype=dtype))
            whole, single = pair(energy, x0, rule, 9, keep_every=1)
            assert whole.trajectory is not None
            assert_same_bits(whole.trajectory, single.trajectory, (name, d))
            for field in ("proposal", "grad", "accepted"):
                got, want = (getattr(run.state.chains, field) for run in (whole, single))
                assert_same_bits(got, want, (name, d, field))
            if d == 1:
                assert_same_bits(whole.stats.grad_norm, single.stats.grad_norm)
                assert_same_bits(whole.stats.clipped, single.stats.clipped)


@pytest.mark.parametrize("components", [1, 2, 8, 63, 64])
@each_dtype
def test_any_number_of_components(components: int, dtype: torch.dtype) -> None:
    """U of the sum of their exponentials."""
    means = torch.linspace(-3, 3, components)[:, None].repeat(1, 3)
    energy = GaussianMixture(means, stds=0.7, weights=1 + torch.arange(components))
    whole, single = pair(energy, energy.draw(21, seed=3, dtype=dtype), MALA(0.8), 8)
    assert_same_run(whole, single, tolerance(dtype, 8))


def test_everything_is_recorded_at_every_setting() -> None:
    energy, x0 = start("round mixture", 3, 11, torch.float64)
    for burn_in, keep_every in ((0, None), (0, 1), (5, 7), (32, 32), (40, 3), (1, 200)):
        whole, single = pair(
            energy, x0, anila(1.0, 1.5), 70, burn_in=burn_in, keep_every=keep_every, moments=True
        )
        assert whole.stats.acceptance is not None
        assert_same_run(whole, single, tolerance(torch.float64, 70))


def test_one_step_and_none() -> None:
    """Before the first there is no ratio; none of them is taken in vain."""
    energy, x0 = start("round mixture", 3, 11, torch.float64)
    for steps, burn_in in ((0, 0), (1, 0), (0, 1), (1, 1), (0, 3)):
        whole, single = pair(energy, x0, MALA(2.0), steps, burn_in=burn_in, moments=True)
        assert whole.state.chains.log_ratio.isnan().all() == (steps + burn_in == 0)
        assert_same_run(whole, single, tolerance(torch.float64, 4))


NETWORKS = {
    "one layer": lambda: network((5, 1), "tanh", last=True),
    "two layers": lambda: network((5, 16, 1), "silu"),
    "four layers": lambda: network((5, 16, 9, 16, 1), "softplus"),
    "kinks": lambda: network((5, 8, 1), "leaky"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, isa: str, taken: list[int]) -> None:
    net, x0, each = NETWORKS[name](), normals(69, 5, seed=1), torch.linspace(0.5, 1.5, 69)
    for rule in ("MALA", "step sizes", "a schedule", "thresholds", "AniLA with a schedule"):
        made = RULES[rule](2.0, each)
        taken.clear()
        whole, single = pair(net, x0, made, 5, keep_every=2, moments=True, burn_in=1)
        assert taken == [1, 5]
        assert_same_run(whole, single, tolerance(torch.float32, 6))


def test_states_of_any_shape(taken: list[int]) -> None:
    net, x0 = nn.Sequential(nn.Flatten(), *network((12, 9, 1))), normals(30, 3, 2, 2)
    for rule in (MALA(1.0), anila(0.5, 2.0)):
        taken.clear()
        whole, single = pair(net, x0, rule, 6, moments=True)
        assert taken == [6]
        assert_same_run(whole, single, tolerance(torch.float32, 6))


def test_noise_far_along() -> None:
    """Both streams of it: seeds and chain ids at their ends, a step of more than 32 bits."""
    energy, x0 = start("gaussian", 3, 6, torch.float32)
    for noise in (
        Noise(2**64 - 1, stream=65520, first_chain=2**32 - 6, step=2**32 - 3),
        Noise(1, step=2**48 - 10),
    ):
        whole, single = pair(energy, x0, MALA(1.5), 10, seed=noise.at(noise.step))
        assert_same_bits(whole.x, single.x)


def test_a_decision_is_one_uniform_number_against_the_ratio(isa: str) -> None:
    """Read off a run: proposals by the equation, the ratio by the densities, and where it leads."""
    for d, dtype in ((1, torch.float32), (3, torch.float64)):
        energy, x0 = start("round mixture", d, 70, dtype)
        run: Any = begin(energy, x0, MALA(4.0))
        for k in range(3):
            before = run.state.chains
            run = sample(energy, run.state, MALA(4.0), 1, whole_chain=True)
            after, noise = run.state.chains, Noise(7, step=k)
            x, y = before.x.double(), after.proposal.double()
            (u, g), (v, slope) = (energy.value_and_gradient(t) for t in (x, y))
            want = x - 2 * g + 2 * noise.normal((70, d), dtype=torch.float64)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(y, want, rtol=30 * eps, atol=30 * eps)
            there, back = (y - x + 2 * g).square().sum(1), (x - y + 2 * slope).square().sum(1)
            ratio = u - v + (there - back) / 8
            torch.testing.assert_close(after.log_ratio, ratio, rtol=200 * eps, atol=200 * eps)
            uniform = noise.purpose(Purpose.ACCEPT).uniform((70, 1))[:, 0].double()
            clear = (uniform.log() - ratio).abs() > 1e-4
            moved = uniform.log() <= ratio
            assert torch.equal(after.accepted[clear], moved[clear])
            assert 0 < int(moved.sum()) < 70
            assert_same_bits(
                after.x, torch.where(after.accepted[:, None], after.proposal, before.x)
            )


# ---- the same bits ------------------------------------------------------------------------------


def recorded(
    energy: Any, x: Tensor | SampleState, rule: Any, steps: int, first: int = 0
) -> Samples:
    """Fresh chains, of which the first is the ``first`` of all, or chains that go on."""
    seed = Noise(7).shard(first) if isinstance(x, Tensor) else None
    return sample(energy, x, rule, steps, seed=seed, keep_every=2, moments=True, whole_chain=True)


STATE = "x", "energy", "grad", "proposal", "log_ratio", "accepted", "stats.grad_norm", "stats.gamma"


def assert_same_motion(got: Samples, want: Samples, rows: slice = slice(None)) -> None:
    """Bits of what `assert_same_fields` compares, and of all that goes on."""
    assert_same_fields(got, want, rows)
    a, b = (fields_of(run.state.chains) for run in (got, chains_of(want, rows)))
    for name in STATE:
        assert_same_bits(a[name], b[name], name)


@each_dtype
@pytest.mark.parametrize("kind", SOME)
def test_a_chain_is_the_same_in_any_batch(kind: str, dtype: torch.dtype) -> None:
    energy, x0 = start(kind, SOME[kind], 200, dtype)
    each, h = torch.linspace(0.5, 1.5, 200, dtype=dtype), h_of(kind, SOME[kind])
    for make in (lambda c: MALA(h * c), lambda c: anila(c, h * c)):
        fresh = begin(energy, x0, make(each))
        whole = recorded(energy, x0, make(each), 5)
        assert_same_motion(recorded(energy, fresh.state, make(each), 5), whole)
        for n in (1, 2, 7, 15, 16, 17, 33, 65):
            first = n * 37 % (200 - n)
            rows = slice(first, first + n)
            for x in (x0[rows], part_of(fresh, rows)):
                part = recorded(energy, x, make(each[rows]), 5, first)
                assert_same_motion(part, whole, rows)


def test_a_chain_of_a_network_is_the_same_in_any_batch(isa: str) -> None:
    net, x0, each = network((7, 19, 40, 1)), normals(200, 7, seed=4), torch.linspace(0.5, 1.5, 200)
    for make in (lambda c: MALA(2 * c), lambda c: anila(c, 2 * c)):
        fresh = begin(net, x0, make(each))
        whole = recorded(net, x0, make(each), 5)
        assert_same_motion(recorded(net, fresh.state, make(each), 5), whole)
        for n in (1, 3, 7, 16, 33, 65, 70):
            first = n * 37 % (200 - n)
            rows = slice(first, first + n)
            for x in (x0[rows], part_of(fresh, rows)):
                part = recorded(net, x, make(each[rows]), 5, first)
                assert_same_motion(part, whole, rows)


@each_dtype
@pytest.mark.parametrize("kind", SOME)
def test_threads_and_instruction_sets_change_no_bit(kind: str, dtype: torch.dtype) -> None:
    energy, x0 = start(kind, SOME[kind], 203, dtype)
    rule = anila(1.5, h_of(kind, SOME[kind]))
    assert x0.numel() * 24 > 8192  # fewer are one thread's
    want = recorded(energy, x0, rule, 24)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert_same_motion(recorded(energy, x0, rule, 24), want)
    torch.set_num_threads(1)
    for isa in ISAS:
        native.use_isa(isa)
        assert_same_motion(recorded(energy, x0, rule, 24), want)


@pytest.mark.parametrize("name", ["step sizes", "a schedule", "thresholds"])
@pytest.mark.parametrize("kind", ["round mixture", "network"])
def test_blocks_end_anywhere(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch, taken: list[int]
) -> None:
    energy, x0 = start("round mixture", 3, 70, torch.float32)
    energy = energy if kind != "network" else network((3, 16, 1))
    rule = RULES[name](3.0, torch.linspace(0.5, 1.5, 70))

    def run() -> Samples:
        return sample(
            energy, x0, rule, 40, seed=7, burn_in=5, keep_every=3, moments=True, whole_chain=True
        )

    want, advance = run(), _chain.WholeChain.advance
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
        assert (sum(taken), max(taken)) == (45, length)
        a, b = (fields_of(r.state.chains) for r in (got, want))
        for field in STATE:
            assert_same_bits(a[field], b[field], (length, field))
        # Sums of norms alone are rounded as spans are.
        assert_same_fields(got, want, slice(None), sums=False)
        torch.testing.assert_close(got.stats.acceptance, want.stats.acceptance)


@each_dtype
@pytest.mark.parametrize("kind", SOME)
def test_a_run_cut_in_two_goes_on_exactly(kind: str, dtype: torch.dtype) -> None:
    energy, x0 = start(kind, SOME[kind], 13, dtype)
    h = h_of(kind, SOME[kind])
    for rule in (MALA(lambda k: h / (1 + k % 5)), anila(1.5, lambda k: h / (1 + k % 5))):
        whole = sample(energy, x0, rule, 20, seed=7, keep_every=1, whole_chain=True)
        assert whole.trajectory is not None
        for cut in (1, 9, 19):
            part = sample(energy, x0, rule, cut, seed=7, whole_chain=True)
            rest = sample(energy, part.state, rule, 20 - cut, keep_every=1, whole_chain=True)
            assert places(rest.state.noise) == places(whole.state.noise)
            assert_same_bits(rest.trajectory, whole.trajectory[cut:])
            a, b = (fields_of(run.state.chains) for run in (rest, whole))
            for name in STATE:
                assert_same_bits(a[name], b[name], name)


@pytest.mark.parametrize("rule", [MALA(2.0), anila(1.0, 2.0)], ids=["MALA", "AniLA"])
def test_a_run_of_a_network_cut_in_two_goes_on_exactly(rule: Any) -> None:
    net, x0 = network((7, 19, 40, 1)), normals(70, 7, seed=4)
    whole = sample(net, x0, rule, 20, seed=7, whole_chain=True)
    for cut in (1, 9, 19):
        part = sample(net, x0, rule, cut, seed=7, whole_chain=True)
        rest = sample(net, part.state, rule, 20 - cut, whole_chain=True)
        a, b = (fields_of(run.state.chains) for run in (rest, whole))
        for name in STATE:
            assert_same_bits(a[name], b[name], (cut, name))


@pytest.mark.parametrize("rule", [MALA(2.0), anila(1.0, 2.0)], ids=["MALA", "AniLA"])
def test_where_chains_restart_is_the_same_in_any_batch(rule: Any) -> None:
    """Their energies and gradients there, in a run that goes on."""
    net, x0 = network((7, 19, 40, 1)), normals(70, 7, seed=4)
    part = sample(net, x0, rule, 3, seed=7, on_nonfinite="reinit", whole_chain=True)
    lost = part._replace(state=spoiled(part.state, 41))
    whole = sample(net, lost.state, rule, 4, on_nonfinite="reinit", whole_chain=True)
    assert whole.stats.restarts.nonzero()[:, 0].tolist() == [41]
    for n in (1, 3, 29):
        rows = slice(41, 41 + n)
        alone = sample(net, part_of(lost, rows), rule, 4, on_nonfinite="reinit", whole_chain=True)
        assert_same_motion(alone, whole, rows)


@pytest.mark.parametrize("kind", EXACT)
def test_a_run_may_change_hands_at_any_step(kind: str) -> None:
    """From whole chains to single steps and back: all that goes on is there."""
    energy, x0 = EXACT[kind](4), normals(43, 4, dtype=torch.float64)
    rule = MALA(torch.linspace(0.4, 1.2, 43))
    want = sample(energy, x0, rule, 14, seed=7, whole_chain=False)
    for ways in ((True, False, True), (False, True, False)):
        state: Any = None
        for way, steps in zip(ways, (5, 3, 6), strict=True):
            run = sample(
                energy, state or x0, rule, steps, seed=None if state else 7, whole_chain=way
            )
            state = run.state
        for field in ("x", "grad", "proposal", "accepted"):
            assert_same_bits(getattr(state.chains, field), getattr(want.state.chains, field), field)
        assert places(state.noise) == places(want.state.noise)


# ---- step sizes that adapt ----------------------------------------------------------------------

TARGET = MALA(0.3, target_acceptance=0.6)


@pytest.mark.parametrize("kind", ["gaussian", "full gaussian", "quadratic well", "logistic"])
def test_adapted_step_sizes_are_those_of_single_steps(kind: str, taken: list[int]) -> None:
    """One step at a time in burn-in, of which each changes the next; then in one block.

    In float64 an acceptance is rounded by 1e-15, and 60 steps of adaptation make 1e-12 of it; where
    chains contract, as these do.
    """
    energy, x0 = start(kind, SOME[kind], 31, torch.float64)
    for rule in (TARGET, MALA(torch.linspace(0.01, 3, 31), target_acceptance=0.8)):
        taken.clear()
        whole, single = pair(energy, x0, rule, 25, burn_in=60, keep_every=5, moments=True)
        assert taken == [1] * 60 + [25]
        assert whole.state.chains.adaptation.done
        assert whole.stats.step_size is not None
        assert whole.stats.step_size.unique().numel() > 20
        assert_same_run(whole, single, 1000 * tolerance(torch.float64, 85))


def test_few_adapted_steps_in_float32(taken: list[int]) -> None:
    energy, x0 = start("gaussian", 5, 31, torch.float32)
    whole, single = pair(energy, x0, TARGET, 5, burn_in=6)
    assert taken == [1] * 6 + [5]
    assert_same_run(whole, single, 10 * tolerance(torch.float32, 11))


def test_an_interrupted_adaptation_goes_on(
    handler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in burn-in leaves step sizes that still adapt, and the same bits at the end."""
    energy, x0 = start("two moons", 2, 13, torch.float32)
    want = sample(energy, x0, TARGET, 9, seed=7, burn_in=50, whole_chain=True)
    original, calls = native.chain_, []

    def chain_(*arguments: Any) -> int:
        calls.append(arguments[2].rule)
        if calls[-1] == "metropolis" and calls.count("metropolis") == 20:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(native, "chain_", chain_)
    with pytest.raises(SamplingInterrupted, match="after 20 steps") as caught:
        sample(energy, x0, TARGET, 9, seed=7, burn_in=50, whole_chain=True)
    assert signal.getsignal(signal.SIGINT) is handler
    part = caught.value.samples
    assert not part.state.chains.adaptation.done
    rest = sample(energy, part.state, TARGET, 9, burn_in=30, whole_chain=True)
    assert_same_bits(rest.x, want.x)
    assert_same_bits(rest.stats.step_size, want.stats.step_size)


def test_step_sizes_that_are_found_stay(taken: list[int]) -> None:
    """In a later burn-in as well, which is no longer taken step by step."""
    energy, x0 = start("gaussian", 5, 13, torch.float32)
    run = sample(energy, x0, TARGET, 0, seed=7, burn_in=50, whole_chain=True)
    taken.clear()
    rest = sample(energy, run.state, TARGET, 7, burn_in=9, whole_chain=True)
    assert taken == [9, 7]
    assert_same_bits(rest.stats.step_size, run.stats.step_size)


def test_a_rule_without_a_target_forgets_the_adapted_sizes(taken: list[int]) -> None:
    """From its first step on, by whole chains as by single ones; its own step size is in use."""
    energy, x0 = EXACT["gaussian"](3), normals(9, 3, dtype=torch.float64)
    adapted = sample(energy, x0, TARGET, 5, seed=7, burn_in=40, whole_chain=True)
    assert adapted.state.chains.adaptation is not None
    taken.clear()
    for rule in (MALA(0.4), anila(INF, 0.4)):
        whole, single = pair(energy, adapted.state, rule, 8, keep_every=1)
        assert whole.stats.step_size is None
        assert whole.state.chains.adaptation is None
        assert_same_run(whole, single, tolerance(torch.float64, 8))
        fresh = sample(energy, adapted.x, rule, 8, seed=adapted.state.noise, whole_chain=True)
        assert_same_bits(whole.x, fresh.x)
    assert taken == [1, 7, 8] * 2


def test_the_target_is_reached_by_whole_chains(seed: int) -> None:
    """And the law is that of the step sizes that were found: acceptance to 0.07 of the target."""
    energy = Gaussian([0.0] * 10, std=torch.logspace(-1, 0, 10).tolist())
    run = sample(
        energy, energy.draw(100, seed), MALA(1.0, target_acceptance=0.574), 100, burn_in=300,
        seed=1000 + seed, whole_chain=True,
    )  # fmt: skip
    assert run.stats.acceptance is not None
    assert float(run.stats.acceptance.mean()) == pytest.approx(0.574, abs=0.07)


# ---- where there is no density ------------------------------------------------------------------


def edge(dtype: torch.dtype) -> float:
    """Where x^4 is 1.02 times the largest number, and x^3 far from it."""
    return float(1.005 * torch.finfo(dtype).max ** 0.25)


@pytest.mark.parametrize("check_every", [1, 7])
@pytest.mark.parametrize("policy", POLICIES)
@each_dtype
def test_a_start_without_a_density_is_dealt_with_alike(
    dtype: torch.dtype, policy: str, check_every: int
) -> None:
    """U infinite, and its gradient too in one of two chains; the others are in the bulk."""
    energy, x0 = QuarticWell(3), normals(37, 3, dtype=dtype)
    x0[5], x0[20] = 10 * edge(dtype), float(torch.finfo(dtype).max) ** 0.4
    for rule in (MALA(0.5), anila(1.0, 1.0), MALA(0.5, target_acceptance=0.7)):
        adapts = getattr(rule, "target_acceptance", None) is not None
        for steps, burn_in in ((7, 2), (20, 5 * adapts)):
            got = assert_same_outcome(
                energy, x0, rule, steps, burn_in=burn_in, keep_every=3, moments=True,
                on_nonfinite=policy, check_every=check_every, spread=100 if adapts else 1,
            )  # fmt: skip
            again = policy == "reinit" and steps + burn_in > 11 and check_every != 7
            if policy == "raise" or again:
                assert isinstance(got.error, NonFiniteError)
                assert got.error.chains == [5, 20]
            else:
                assert got.error is None
                bad = (got.samples.stats.first_bad_step >= 0).nonzero()[:, 0]
                assert bad.tolist() == [5, 20]


@each_dtype
def test_a_chain_leaves_where_the_energy_is_infinite(dtype: torch.dtype, taken: list[int]) -> None:
    """exp(-U) is 0 there: its first finite proposal is accepted, and nothing was wrong."""
    x0 = normals(20, 1, dtype=dtype)
    x0[3], h = edge(dtype), torch.full((20,), 0.3, dtype=dtype)
    h[3] = 0.1 / edge(dtype) ** 2  # a step of 0.05 x
    energy = QuarticWell(1)
    assert energy(x0)[3].isinf()
    whole, single = pair(energy, x0, MALA(h), 1)
    assert taken == [1]
    assert whole.state.chains.log_ratio[3] == INF
    assert whole.state.chains.accepted[3]
    assert_same_run(whole, single, tolerance(dtype, 1))
    whole, single = pair(energy, x0, MALA(h), 6, keep_every=1)
    assert (whole.stats.first_bad_step == -1).all()
    assert taken == [1, 6]
    assert_same_run(whole, single, 10 * tolerance(dtype, 6))


@each_dtype
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_proposals_that_overflow_are_refused(kind: str, dtype: torch.dtype) -> None:
    """Where they or their energies do, or nearly: the chain stays, and nothing is reported. The
    others keep their bits."""
    d = SOME[kind]
    energy, x0 = start(kind, d, 40, dtype)
    h = torch.full((40,), h_of(kind, d), dtype=dtype)
    clean = sample(energy, x0, MALA(h), 12, seed=7, keep_every=1, whole_chain=True)
    far = [0, 7, 39]
    h[far] = float(torch.finfo(dtype).max) ** 0.99
    dirty = sample(energy, x0, MALA(h), 12, seed=7, keep_every=1, whole_chain=True)
    well = torch.ones(40, dtype=torch.bool)
    well[far] = False
    assert (dirty.stats.first_bad_step == -1).all()
    last = dirty.state.chains
    assert (last.log_ratio[far] < -1e30).all()
    assert not last.accepted[far].any()
    assert_same_bits(dirty.x[far], x0[far])
    assert dirty.stats.acceptance is not None
    assert (dirty.stats.acceptance[far] == 0).all()
    assert dirty.trajectory is not None
    assert clean.trajectory is not None
    assert_same_bits(dirty.trajectory[:, well], clean.trajectory[:, well])
    a, b = (fields_of(run.state.chains) for run in (dirty, clean))
    for name in STATE:
        assert_same_bits(a[name][well], b[name][well], name)


def test_an_energy_of_minus_infinity_is_refused(isa: str) -> None:
    """Beyond a cliff, on flat land: its density would be infinite, and is no number."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.copy_(torch.tensor([-50.0, 50.0]))
        net[2].weight.fill_(3e38)
        net[2].bias.fill_(0.0)
    x0 = torch.zeros(70, 1)
    for whole in (True, False):
        run = sample(net, x0, MALA(1e4), 1, seed=7, whole_chain=whole)
        last = run.state.chains
        beyond, near = last.proposal[:, 0] < -80, last.proposal[:, 0].abs() < 30
        assert net(last.proposal)[beyond].eq(-INF).all()
        assert 5 < beyond.sum() < 30
        assert (last.log_ratio[beyond] == -INF).all()
        assert not last.accepted[beyond].any()
        assert_same_bits(run.x[beyond], x0[beyond])
        assert last.accepted[near].all()


def test_a_start_whose_gradient_alone_is_infinite_is_trouble() -> None:
    """U is a number: no step of the kernel's would say what is wrong."""
    net = network((1, 1, 1), "tanh")
    with torch.no_grad():
        for layer, weight in (net[0], 1e38), (net[2], 10.0):
            layer.weight.fill_(weight)  # type: ignore[operator,union-attr]
            layer.bias.fill_(0.0)  # type: ignore[operator,union-attr]
    x0 = torch.full((20, 1), 0.5)
    x0[7] = 0.0
    for policy in POLICIES:
        got = assert_same_outcome(net, x0, MALA(0.1), 5, on_nonfinite=policy)
        assert (policy == "raise") == isinstance(got.error, NonFiniteError)
        assert got.samples.stats.first_bad_step.ge(0).nonzero()[:, 0].tolist() == [7]


def test_a_proposal_at_infinity_is_refused_though_its_energy_is_finite(isa: str) -> None:
    """As of a network that ends in tanh: the terms of the densities are not."""
    net, x0 = network((3, 1), "tanh", last=True), 0.03 * normals(70, 3)
    with torch.no_grad():
        net[0].weight.fill_(20)  # type: ignore[operator,union-attr]
    h = torch.full((70,), 1e-3)
    h[::3] = 3e38
    whole = sample(net, x0, MALA(h), 1, seed=7, whole_chain=True)
    single = sample(net, x0, MALA(h), 1, seed=7, whole_chain=False)
    out = ~whole.state.chains.proposal.isfinite().all(1)
    assert out.sum() > 10
    assert torch.equal(out, ~single.state.chains.proposal.isfinite().all(1))
    for run in (whole, single):
        assert (run.state.chains.log_ratio[out] == -INF).all()
        assert not run.state.chains.accepted[out].any()
        assert_same_bits(run.x[out], x0[out])


@pytest.mark.parametrize("policy", POLICIES)
def test_frozen_chains_stay_frozen_in_a_continued_run(policy: str, taken: list[int]) -> None:
    """With all they had: ratio and acceptance of the last step that counted, or none."""
    energy, x0 = QuarticWell(3), normals(37, 3)
    x0[5], x0[20] = 10 * edge(torch.float32), 1e14
    rule = MALA(0.5)
    part, single = pair(energy, x0, rule, 10, on_nonfinite="freeze")
    assert part.state.frozen.nonzero()[:, 0].tolist() == [5, 20]
    assert_same_run(part, single, tolerance(torch.float32, 10))
    taken.clear()
    whole, single = pair(energy, part.state, rule, 15, on_nonfinite=policy, keep_every=1)
    assert taken == [15]
    assert_same_run(whole, single, tolerance(torch.float32, 25))
    for name in ("x", "energy", "grad", "proposal", "log_ratio", "accepted"):
        got, want = (getattr(run.state.chains, name)[[5, 20]] for run in (whole, part))
        assert_same_bits(got, want, name)
    assert whole.stats.acceptance is not None
    assert whole.stats.acceptance[[5, 20]].isnan().all()


def test_chains_frozen_by_hand_keep_their_ratio_and_count_it() -> None:
    """A chain that was frozen after steps that counted: its acceptance is that of its last."""
    for energy in (EightGaussians(), network((2, 16, 1))):
        x0, rule = normals(70, 2), anila(1.0, 0.3)
        part = sample(energy, x0, rule, 6, seed=7, whole_chain=True)
        frozen = torch.zeros(70, dtype=torch.bool)
        frozen[[2, 40, 69]] = True
        state = replace(part.state, frozen=frozen)
        whole = sample(energy, state, rule, 11, whole_chain=True, keep_every=1)
        free = sample(energy, part.state, rule, 11, whole_chain=True, keep_every=1)
        a, b = (fields_of(run.state.chains) for run in (whole, free))
        for name in STATE:
            assert_same_bits(a[name][~frozen], b[name][~frozen], name)
        for name in ("x", "energy", "grad", "proposal", "log_ratio", "accepted"):
            assert_same_bits(a[name][frozen], getattr(part.state.chains, name)[frozen], name)
        assert whole.stats.acceptance is not None
        want = part.state.chains.log_ratio[frozen].exp().clamp(max=1).float()
        torch.testing.assert_close(whole.stats.acceptance[frozen], want)


# ---- schedules that go wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "error"),
    [
        (-1.0, StepSizeError), (0.0, StepSizeError), (float("nan"), StepSizeError),
        (1e-100, StepSizeError),  # its root is 0 in float32
        (torch.full((3,), 0.1), ShapeError), ("soon", StepSizeError),
    ],
)  # fmt: skip
def test_a_schedule_that_goes_wrong(then: Any, error: type[Exception]) -> None:
    """The error of the step it is for, and all that came before."""
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    for make in (MALA, lambda h: anila(1.0, h)):
        rule = make(lambda k: then if k == 20 else 0.5)
        got = assert_same_outcome(energy, x0, rule, 30, burn_in=3, keep_every=1)
        assert isinstance(got.error, error)
        assert got.samples.trajectory is not None
        assert (got.samples.state.step, len(got.samples.trajectory)) == (20, 17)


def test_a_schedule_of_tensors_is_taken_step_by_step(taken: list[int]) -> None:
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    each = torch.linspace(0.5, 1.5, 11)
    for rule in (MALA(lambda k: each / (1 + k)), anila(each, lambda k: each)):
        taken.clear()
        whole, single = pair(energy, x0, rule, 9, keep_every=1)
        assert taken == [1] * 9
        assert_same_run(whole, single, tolerance(torch.float32, 9))


# ---- laws ---------------------------------------------------------------------------------------


class Wide:
    """A network in double precision that knows its gradient."""

    def __init__(self, net: nn.Module) -> None:
        self.value_and_gradient = EnergyGradient(net.double())


@pytest.mark.parametrize("rule", [MALA(4.0), anila(0.8, 5.0)], ids=["MALA", "AniLA"])
@pytest.mark.parametrize("case", LAWS)
def test_the_law_of_a_network(case: str, rule: Any, seed: int) -> None:
    """Exact draws by quadrature stay draws, where a good share is refused."""
    make, span = LAWS[case]
    line, n = Line(Wide(make()), lambda x: x, span), chains(20_000)
    grid = np.linspace(*span, 20_001)
    density = np.exp(-line.value(grid))
    cdf = interpolate.CubicSpline(grid, density).antiderivative()
    total = float(cdf(span[1]))
    uniform = Noise(2000 + seed, stream=Purpose.INITIAL_STATE).uniform((n, 1)).double().numpy()
    x0 = torch.from_numpy(np.interp(uniform, cdf(grid) / total, grid)).float()
    run = sample(make(), x0, rule, 20, seed=1000 + seed, keep_every=1, whole_chain=True)
    checks = Checks(7)
    assert run.trajectory is not None
    assert run.stats.acceptance is not None
    for k in (1, 5, 20):
        checks.law(run.trajectory[k - 1, :, 0], lambda x: cdf(x) / total, what=k)
    exact = line.acceptance(rule)
    assert 0.2 < exact < 0.8
    checks.bounded_mean(run.stats.acceptance, exact, 0, 1)
    checks.probability(run.state.chains.accepted.sum(), n, exact)
    last = run.state.chains
    surprise = last.accepted.double() - last.log_ratio.exp().clamp(max=1)
    checks.independent_chains(surprise, what="decisions")
    checks.independent_chains(run.x[:, 0])
