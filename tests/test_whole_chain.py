"""Whole chains against the same chains step by step: the states, what is recorded, what goes wrong.

Where a kernel's gradient has torch's order of operations the bits are equal. Elsewhere gradients
differ by rounding, and chains as far as the energy lets them: of two chains with the same noise a
step multiplies the distance by |1 - (h / 2) U''| at most. Chains here start in the bulk of the law,
with steps so short that most runs contract, and no difference grows fivefold.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from langevin_ext import (
    HMC,
    MALA,
    TULA,
    AniLA,
    KineticLangevin,
    Langevin,
    Noise,
    Purpose,
    Samples,
    _chain,
    sample,
)
from langevin_ext.energies import (
    Banana,
    DoubleWell,
    EightGaussians,
    Funnel,
    GaussianMixture,
    QuarticWell,
    Rings,
    Scaled,
    TwoMoons,
)
from langevin_ext.errors import (
    ArgumentError,
    EnergyError,
    LangevinError,
    NonFiniteError,
    SamplingInterrupted,
    ShapeError,
    StepSizeError,
)
from langevin_ext.testing import Checks, Kernel1D

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
from .kinds import (
    DTYPES,
    EXACT,
    KINDS,
    SOME,
    diagonal_mixture,
    explosive,
    full_gaussian,
    full_mixture,
    gaussian,
    round_mixture,
    start,
)
from .networks import network
from .runs import (
    EVERY,
    POLICIES,
    RULES,
    assert_same_fields,
    assert_same_outcome,
    assert_same_run,
    drawn_options,
    drawn_rules,
    pair,
    tolerance,
    whenever,
)

pytestmark = [
    pytest.mark.skipif(not ON_CPU, reason="a CPU's kernels"),
    pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native backend: {NO_NATIVE}"),
]

BLOCK = 32  # steps of a block, where one is cut
driver = importlib.import_module("langevin_ext.sample")  # the package's `sample` is the function


def unknown(x: Tensor) -> Tensor:
    """The same energy, unknown to any kernel."""
    return 0.5 * x.square().sum(1)


# ---- the same run -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 8), (torch.float64, 40)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_energy_in_every_dimension(kind: str, dtype: torch.dtype, steps: int) -> None:
    for d in KINDS[kind].dims:
        energy, x0 = start(kind, d, 37, dtype)
        rule = AniLA(2.0, KINDS[kind].step, reference_precision=0.1)
        whole, single = pair(energy, x0, rule, steps, keep_every=3, moments=True, burn_in=2)
        assert_same_run(whole, single, tolerance(dtype, steps))


@pytest.mark.parametrize("components", [1, 2, 3, 8, 63, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_components(components: int, dtype: torch.dtype) -> None:
    radii = torch.linspace(0.5, 3, components)
    energies = [make(d, components) for d in (1, 3) for make in (round_mixture, diagonal_mixture)]
    energies += [full_mixture(3, components), Rings(radii, 0.3)]
    for energy in energies:
        x0 = energy.draw(9, seed=3, dtype=dtype)
        whole, single = pair(energy, x0, Langevin(0.03), 8)
        assert_same_run(whole, single, tolerance(dtype, 8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str, dtype: torch.dtype, taken: list[int]) -> None:
    """Of three energies, one of them in an odd dimension; the kernel took every step."""
    for kind, d in (("gaussian", 5), ("round mixture", 3), ("rings", 2)):
        energy, x0 = start(kind, d, 21, dtype)
        each = torch.linspace(0.5, 1.5, 21, dtype=dtype)
        taken.clear()
        whole, single = pair(
            energy, x0, RULES[rule](each), 9, keep_every=2, moments=True, burn_in=1
        )
        assert sum(taken) == 10
        assert_same_run(whole, single, tolerance(dtype, 10))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", EXACT)
def test_the_same_bits_where_the_order_is_torchs(kind: str, dtype: torch.dtype, isa: str) -> None:
    """Where norms are not sums of many terms, which kernels of chains add in another order."""
    for d in (1, 5):
        for name in RULES:
            if (d == 1) != ("AniLA" in name or "threshold" in name):
                continue
            x0 = normals(21, d, dtype=dtype)
            rule = RULES[name](torch.linspace(0.5, 1.5, 21, dtype=dtype))
            whole, single = pair(EXACT[kind](d), x0, rule, 9, keep_every=1)
            assert whole.trajectory is not None
            assert_same_bits(whole.trajectory, single.trajectory, (name, d))


@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_is_recorded_at_every_setting(dtype: torch.dtype) -> None:
    """Burn-in, thinning and moments against those of all states; over several spans."""
    energy, x0 = start("round mixture", 3, 11, dtype)
    rule, steps = AniLA(1.0, 0.02), 3 * BLOCK + 5
    for burn_in, keep_every in ((0, None), (0, 1), (5, 7), (BLOCK, BLOCK), (40, 3), (1, 200)):
        whole, single = pair(
            energy, x0, rule, steps, burn_in=burn_in, keep_every=keep_every, moments=True
        )
        assert_same_run(whole, single, tolerance(dtype, steps))


def test_one_step_and_none() -> None:
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    for steps, burn_in in ((0, 0), (1, 0), (0, 1), (1, 1), (0, 3)):
        whole, single = pair(energy, x0, Langevin(0.1), steps, burn_in=burn_in, moments=True)
        assert_same_run(whole, single, tolerance(torch.float32, 1 + burn_in))


def test_the_arguments_are_left_alone() -> None:
    """x0 and the tensors of a rule; a state in negative or transposed memory is read as it is."""
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    before, h = x0.clone(), torch.linspace(0.1, 0.2, 11)
    h0 = h.clone()
    whole, _ = pair(energy, x0, Langevin(h), 5)
    assert_same_bits(x0, before)
    assert_same_bits(h, h0)
    negative = torch.complex(x0, -x0).conj().imag
    assert negative.is_neg()
    for other in (negative, x0.mT.contiguous().mT, x0.clone().requires_grad_()):
        assert_same_bits(sample(energy, other, Langevin(h), 5, seed=7, whole_chain=True).x, whole.x)


def test_noise_far_along() -> None:
    """Seeds, streams and chain ids at their ends; a step whose number outgrows 32 bits."""
    energy, x0 = start("gaussian", 3, 6, torch.float32)
    for noise in (
        Noise(2**64 - 1, stream=65520, first_chain=2**32 - 6, step=2**32 - 3),
        Noise(1, step=2**48 - 10),
        Noise(1, first_chain=2**31 - 3),
    ):
        whole, single = pair(energy, x0, Langevin(0.1), 10, seed=noise.at(noise.step))
        assert_same_bits(whole.x, single.x)


def test_a_noise_is_advanced_as_far() -> None:
    energy, x0 = start("gaussian", 3, 6, torch.float32)
    for std in (None, 0.0):
        noise = Noise(5, step=11)
        sample(energy, x0, Langevin(0.1, noise_std=std), 40, seed=noise, burn_in=3)
        assert noise.step == 54


# ---- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SOME)
def test_a_chain_is_the_same_in_any_batch(kind: str, dtype: torch.dtype) -> None:
    """Batches of 1 to 70, from anywhere in one of 200; and each statistic with it."""
    energy, x0 = start(kind, SOME[kind], 200, dtype)
    each = torch.linspace(0.5, 1.5, 200, dtype=dtype)
    h = KINDS[kind].step
    options: dict[str, Any] = {"keep_every": 2, "moments": True, "whole_chain": True}
    whole = sample(energy, x0, AniLA(each, h * each), 5, seed=7, **options)
    for n in range(1, 71):
        first = n * 37 % (200 - n)
        rows = slice(first, first + n)
        rule = AniLA(each[rows], h * each[rows])
        noise = Noise(7, first_chain=first)
        assert_same_fields(sample(energy, x0[rows], rule, 5, seed=noise, **options), whole, rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SOME)
def test_threads_and_instruction_sets_change_no_bit(kind: str, dtype: torch.dtype) -> None:
    energy, x0 = start(kind, SOME[kind], 203, dtype)
    rule = AniLA(1.5, KINDS[kind].step)
    assert x0.numel() * 40 > 8192  # fewer are one thread's

    def run() -> Samples:
        return sample(energy, x0, rule, 40, seed=7, keep_every=9, moments=True, whole_chain=True)

    want = run()
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert_same_fields(run(), want, slice(None))
    torch.set_num_threads(1)
    for isa in ISAS:
        native.use_isa(isa)
        assert_same_fields(run(), want, slice(None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SOME)
def test_a_run_cut_in_two_goes_on_exactly(kind: str, dtype: torch.dtype) -> None:
    energy, x0 = start(kind, SOME[kind], 13, dtype)
    rule = AniLA(1.5, lambda k: KINDS[kind].step / (1 + k % 5))
    whole = sample(energy, x0, rule, 45, seed=7, keep_every=1, whole_chain=True)
    assert whole.trajectory is not None
    for cut in (1, 20, 32, 44):
        part = sample(energy, x0, rule, cut, seed=7, whole_chain=True)
        rest = sample(energy, part.state, rule, 45 - cut, keep_every=1, whole_chain=True)
        assert_same_bits(rest.trajectory, whole.trajectory[cut:])
        assert_same_bits(rest.stats.energy, whole.stats.energy)
        assert places(rest.state.noise) == places(whole.state.noise)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_end_anywhere(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, taken: list[int]
) -> None:
    """Of any number of spans, short and long in turn; the first may end before a whole one."""
    energy, x0 = start("round mixture", 3, 11, dtype)

    def run(rule: Any) -> Samples:
        return sample(
            energy, x0, rule, 7 * BLOCK + 5, seed=7, burn_in=41, keep_every=7, moments=True,
            whole_chain=True,
        )  # fmt: skip

    for rule in (AniLA(1.0, 0.02), AniLA(1.0, lambda k: 0.02 / (1 + k % 3))):
        monkeypatch.setattr(_chain, "_FIRST", 2**22)
        monkeypatch.setattr(_chain, "_SCHEDULED", 2**10)
        want = run(rule)
        for first, seconds in ((0, 0.0), (0, 1e9), (2 * BLOCK * x0.numel(), 0.05), (2**22, 0.0)):
            monkeypatch.setattr(_chain, "_FIRST", first)
            monkeypatch.setattr(_chain, "_SECONDS", seconds)
            taken.clear()
            assert_same_fields(run(rule), want, slice(None))
            assert (len(taken) > 2) == (first < 2**22)
        monkeypatch.setattr(_chain, "_SCHEDULED", BLOCK)
        assert_same_fields(run(rule), want, slice(None))


@pytest.mark.parametrize("length", [1, 2, 7, 31, 33])
def test_states_and_moments_do_not_know_of_blocks(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short they are; sums of norms alone are rounded as spans are."""
    energy, x0 = start("round mixture", 3, 11, torch.float32)

    def run() -> Samples:
        return sample(
            energy, x0, Langevin(0.02), 70, seed=7, burn_in=5, keep_every=3, moments=True,
            whole_chain=True,
        )  # fmt: skip

    want, advance = run(), _chain.WholeChain.advance
    monkeypatch.setattr(
        _chain.WholeChain,
        "advance",
        lambda self, state, noise, most, *, kept: advance(
            self, state, noise, min(most, length), kept=kept
        ),
    )
    assert_same_fields(run(), want, slice(None), sums=False)


# ---- chains that leave the finite numbers -------------------------------------------------------


@pytest.mark.parametrize("check_every", EVERY)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["quartic well", "double well", "banana", "funnel"])
def test_bad_chains_are_dealt_with_alike(
    kind: str, dtype: torch.dtype, policy: str, check_every: int | None
) -> None:
    """At a clamp too, inside of which a chain that went wrong may find back."""
    energy, x0, step = explosive(kind, dtype)
    seen = set()
    for rule in (
        Langevin(step),
        Langevin(lambda k: 0.02 if k < 9 else 2.0),
        Langevin(step, clamp=(-2, 2)),
        AniLA(3.0, step, per="coordinate", clamp=(None, 2)),
    ):
        for burn_in in (0, 6):
            got = assert_same_outcome(
                energy, x0, rule, 50, burn_in=burn_in, keep_every=3, moments=True,
                on_nonfinite=policy, check_every=check_every,
            )  # fmt: skip
            seen |= {*got.samples.stats.first_bad_step.tolist()}
    assert len(seen) > (1 if policy == "raise" or kind == "funnel" else 3)


@pytest.mark.parametrize("check_every", EVERY)
def test_a_chain_that_recovers_is_still_named(check_every: int | None) -> None:
    """U overflows, its gradient does not, and a clamp brings the chain back before the check."""
    x0 = torch.full((4, 1), 0.5)
    x0[2] = 1e10
    for steps in (5, 20):
        got = assert_same_outcome(
            QuarticWell(), x0, Langevin(0.1, clamp=(-2, 2)), steps, check_every=check_every
        )
        assert isinstance(got.error, NonFiniteError)
        assert (got.error.step, got.error.chains) == (0, [2])
        assert got.samples.x.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", EXACT)
def test_bad_chains_change_no_bit_of_others(kind: str, dtype: torch.dtype) -> None:
    """Where the step by itself has the kernel's bits."""
    energy, x0 = EXACT[kind](2), normals(40, 2, dtype=dtype)
    ill = torch.tensor([0, 7, 39])
    well = torch.ones(40, dtype=torch.bool)
    well[ill] = False
    step = torch.full((40,), 0.02, dtype=dtype)
    clean = sample(energy, x0, Langevin(step), 60, seed=7, keep_every=1, moments=True)
    x0[0], step[7], step[39] = torch.finfo(dtype).max, 1e15, 1e7
    dirty = sample(
        energy, x0, Langevin(step), 60, seed=7, keep_every=1, moments=True, on_nonfinite="freeze"
    )
    assert dirty.stats.first_bad_step.ge(0).nonzero()[:, 0].tolist() == ill.tolist()
    assert dirty.trajectory is not None
    assert clean.trajectory is not None
    assert_same_bits(dirty.trajectory[:, well], clean.trajectory[:, well])


def test_bad_chains_change_no_bit_of_others_of_any_energy() -> None:
    for kind, d in SOME.items():
        energy, x0 = start(kind, d, 200, torch.float64)
        step = torch.full((200,), KINDS[kind].step, dtype=torch.float64)
        clean = sample(energy, x0, Langevin(step), 60, seed=7)
        x0[7] = torch.finfo(x0.dtype).max
        dirty = sample(energy, x0, Langevin(step), 60, seed=7, on_nonfinite="freeze")
        well = torch.arange(200) != 7
        assert_same_bits(dirty.x[well], clean.x[well], kind)


@pytest.mark.parametrize(("name", "dtype"), [("grad_norm", torch.float32), ("mean", torch.float64)])
def test_bad_chains_change_no_bit_of_others_statistics(name: str, dtype: torch.dtype) -> None:
    energy, x0 = QuarticWell(2), normals(400, 2, dtype=dtype)
    options: dict[str, Any] = {"seed": 7, "moments": True, "on_nonfinite": "freeze"}
    clean = sample(energy, x0, Langevin(0.02), 60, **options)
    x0[7] = 50.0
    dirty = sample(energy, x0, Langevin(0.02), 60, **options)
    well = torch.arange(400) != 7
    assert dirty.stats.first_bad_step[7] > 0
    assert_same_bits(getattr(dirty.stats, name)[well], getattr(clean.stats, name)[well])


@pytest.mark.parametrize("policy", POLICIES)
def test_frozen_chains_stay_frozen_in_a_continued_run(policy: str, taken: list[int]) -> None:
    """Whatever the policy then is; the others go on as if nothing had been."""
    energy, x0, step = explosive("quartic well", torch.float32)
    rule = Langevin(step)
    part, single = pair(energy, x0, rule, 20, on_nonfinite="freeze")
    assert_same_run(part, single, tolerance(torch.float32, 20))
    frozen = part.state.frozen
    assert 2 < frozen.sum() < 10
    assert part.x.isfinite().all()
    taken.clear()
    whole, single = pair(energy, part.state, rule, 40, on_nonfinite=policy, keep_every=1)
    assert sum(taken) == 40
    assert_same_run(whole, single, tolerance(torch.float32, 40))
    assert whole.trajectory is not None
    for state in whole.trajectory:
        assert_same_bits(state[frozen], part.x[frozen])
    long = sample(energy, x0, rule, 60, seed=7, on_nonfinite="freeze", whole_chain=True)
    assert_same_bits(whole.x, long.x)
    assert_same_bits(whole.stats.energy, long.stats.energy)


def test_all_chains_frozen() -> None:
    energy, x0 = QuarticWell(2), torch.full((9, 2), 1e30)
    whole, single = pair(energy, x0, Langevin(0.1), 50, on_nonfinite="freeze", moments=True)
    assert whole.state.frozen.all()
    assert_same_run(whole, single, 0.0)
    assert_same_bits(whole.x, x0)


@pytest.mark.parametrize("cut", [2, 5, 31])
def test_a_run_with_restarts_goes_on_exactly(cut: int) -> None:
    energy, x0 = QuarticWell(1), torch.linspace(-1.5, 1.5, 40)[:, None]
    options: dict[str, Any] = {"on_nonfinite": "reinit", "whole_chain": True}
    rule = Langevin(1.2)
    whole = sample(energy, x0, rule, 45, seed=7, **options)
    assert 3 < whole.stats.restarts.sum() < 200
    part = sample(energy, x0, rule, cut, seed=7, **options)
    rest = sample(energy, part.state, rule, 45 - cut, **options)
    assert_same_bits(rest.x, whole.x)
    assert torch.equal(rest.stats.restarts, whole.stats.restarts)


@pytest.mark.parametrize("energy", [Rings([1.0], 1.0), TwoMoons(std=2.0, width=2.0)])
def test_a_direction_has_length_one_however_short_the_vector(energy: Any) -> None:
    for dtype, size in ((torch.float32, 1e-25), (torch.float64, 1e-170)):
        x0 = torch.tensor([[size, 0.0], [0.0, -size], [size, size]], dtype=dtype)
        whole, single = pair(energy, x0, Langevin(1e-5), 1)
        assert_same_run(whole, single, tolerance(dtype, 1))


def test_a_share_of_nothing_is_nothing_beside_a_great_precision() -> None:
    energy = GaussianMixture([[0.0], [10.0]], stds=[1.0, 1e-18])
    x0 = torch.full((3, 1), 0.5, dtype=torch.float64)
    whole, single = pair(energy, x0, Langevin(0.01), 3)
    assert_same_run(whole, single, tolerance(torch.float64, 3))


# ---- schedules that go wrong, and go long -------------------------------------------------------


def at_40(then: Any) -> Callable[[int], Any]:
    """A schedule with a surprise in its step 40."""

    def schedule(k: int) -> Any:
        if k != 40:
            return 0.02
        return then() if callable(then) else then

    return schedule


def fail() -> None:
    raise KeyError("no such rate")


@pytest.mark.parametrize(
    ("then", "error"),
    [
        (fail, EnergyError),
        (-1.0, StepSizeError),
        (0.0, StepSizeError),
        (float("nan"), StepSizeError),
        (1e-60, StepSizeError),  # 0 in float32
        (torch.full((3,), 0.1), ShapeError),
        ("soon", StepSizeError),
        (None, StepSizeError),
    ],
)
def test_a_schedule_that_goes_wrong(then: Any, error: type[LangevinError]) -> None:
    """The error of the step it is for, and all that came before."""
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    got = assert_same_outcome(energy, x0, Langevin(at_40(then)), 60, burn_in=3, keep_every=1)
    assert isinstance(got.error, error)
    assert got.samples.trajectory is not None
    assert (got.samples.state.step, len(got.samples.trajectory)) == (40, 37)


@pytest.mark.parametrize("option", ["step_size", "temperature", "noise_std"])
def test_a_schedule_of_tensors_is_taken_step_by_step(option: str, taken: list[int]) -> None:
    """Numbers for each chain from a function, always or at times."""
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    each = torch.linspace(0.01, 0.02, 11)
    always = Langevin(**{"step_size": 0.02, option: lambda k: each})
    whole, single = pair(energy, x0, always, 9, keep_every=1)
    assert_same_run(whole, single, tolerance(torch.float32, 9))
    assert taken == [1] * 9
    taken.clear()
    at_times = Langevin(**{"step_size": 0.02, option: at_40(each)})
    whole, single = pair(energy, x0, at_times, 60, keep_every=1)
    assert_same_run(whole, single, tolerance(torch.float32, 60))
    assert sum(taken) == 60
    assert max(taken) > 1


def test_a_schedule_is_asked_for_every_step_in_turn() -> None:
    """And for none beyond the last."""
    energy, x0 = start("gaussian", 3, 5, torch.float32)
    asked: list[int] = []
    rule = Langevin(lambda k: asked.append(k) or 0.1)
    part = sample(energy, x0, rule, 50, burn_in=5, seed=7, whole_chain=True)
    assert sorted({*asked}) == list(range(55))
    asked.clear()
    sample(energy, part.state, rule, 5, whole_chain=True)
    assert sorted({*asked}) == list(range(55, 60))


def test_ctrl_c_in_a_schedule_is_between_steps() -> None:
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    pressed: list[int] = []

    def schedule(k: int) -> float:
        if k == 40 and not pressed:
            pressed.append(k)
            raise KeyboardInterrupt
        return 0.02

    with pytest.raises(SamplingInterrupted) as caught:
        sample(energy, x0, Langevin(schedule), 60, seed=7, keep_every=1, whole_chain=True)
    part = caught.value.samples
    rest = sample(energy, part.state, Langevin(schedule), 60 - part.state.step, whole_chain=True)
    assert_same_bits(rest.x, sample(energy, x0, Langevin(schedule), 60, seed=7).x)


# ---- Ctrl-C and progress ------------------------------------------------------------------------


@pytest.mark.parametrize("burn_in", [0, 2, 200])
def test_ctrl_c_ends_a_block(
    burn_in: int, handler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has done is kept, and goes on to where it would have ended."""
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    rule = AniLA(1.0, lambda k: 0.02 / (1 + k % 3))
    whole = sample(energy, x0, rule, 300, seed=7, burn_in=burn_in, keep_every=1)
    assert whole.trajectory is not None
    monkeypatch.setattr(_chain, "_FIRST", 0)
    monkeypatch.setattr(_chain, "_SECONDS", 0.0)
    original, calls = native.chain_, []

    def chain_(*arguments: Any) -> int:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(native, "chain_", chain_)
    done = 3
    with pytest.raises(SamplingInterrupted, match=f"after {done} steps") as caught:
        sample(energy, x0, rule, 300, seed=7, burn_in=burn_in, keep_every=1)
    assert signal.getsignal(signal.SIGINT) is handler
    part = caught.value.samples
    assert (part.state.step, part.state.noise.step) == (done, done)
    assert_same_bits(part.trajectory, whole.trajectory[: max(0, done - burn_in)])
    rest = sample(energy, part.state, rule, 300 + burn_in - done, keep_every=1)
    left = len(whole.trajectory) - max(0, done - burn_in)
    assert_same_bits(rest.trajectory[-left:], whole.trajectory[-left:])


@pytest.mark.parametrize("progress", [True, False, "warming up"])
def test_progress_counts_to_the_total(
    progress: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole blocks at a time, and steps that are taken one by one."""
    bars: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.options, self.updates = options, []
            bars.append(self)

        def update(self, steps: int) -> None:
            self.updates.append(steps)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(driver, "tqdm", Bar)
    energy, x0, step = explosive("quartic well", torch.float32)
    monkeypatch.setattr(_chain, "_FIRST", 0)
    sample(
        energy, x0, Langevin(step), 200, seed=7, burn_in=20, progress=progress,
        on_nonfinite="freeze", whole_chain=True,
    )  # fmt: skip
    (bar,) = bars
    assert (bar.options["total"], bar.options["disable"]) == (220, not progress)
    assert sum(bar.updates) == (220 if progress else 0)
    if progress:
        assert min(bar.updates) == 1 < max(bar.updates)


# ---- what is not recognised ---------------------------------------------------------------------


class Heated(DoubleWell):
    """A subclass of a user's: another energy, though it overrides what no kernel knows of."""

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = super()._energy_and_gradient(x)
        return value / 2, grad / 2


class Untouched(DoubleWell):
    pass


class Halved(DoubleWell):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Delegating(torch.nn.Module):
    """It answers for the energy inside, whose half it is."""

    def __init__(self, energy: torch.nn.Module) -> None:
        super().__init__()
        self.inner = energy

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / 2


def with_(name: str, value: Callable[[DoubleWell], Any]) -> DoubleWell:
    """An energy with an attribute of its own."""
    energy = DoubleWell(2)
    setattr(energy, name, value(energy))
    return energy


def hooked(register: str, energy: torch.nn.Module | None = None) -> torch.nn.Module:
    energy = energy or DoubleWell(2)
    getattr(energy, register)(lambda *_: None)
    return energy


class Factor(Scaled):
    pass


def scaled(name: str, value: Any) -> Scaled:
    """A `Scaled` with an attribute that it was not made with."""
    energy = Scaled(DoubleWell(2), 0.5)
    setattr(energy, name, value)
    return energy


class Slower(Langevin):
    def step(self, *arguments: Any, **options: Any) -> Any:
        return super().step(*arguments, **options)


class Colder(KineticLangevin):
    pass


class Stubborn(MALA):
    pass


class Own:
    """A rule with all that `Langevin` has, and another class."""

    def __init__(self) -> None:
        self.rule = Langevin(0.05)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)


NOT_AN_ENERGY = "the energy is none of langevin_ext.energies, as it was made"
NOT_A_NETWORK = "the energy is .*, not an nn.Sequential"
NOT_A_RULE = r"only Langevin, AniLA \(without correction, or 'metropolis'\), MALA and Kinetic"
RULE = Langevin(0.05)
UNKNOWN: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], str]] = {
    "a function": (lambda: unknown, RULE, {}, NOT_A_NETWORK),
    "a lambda": (lambda: (lambda e: lambda x: e(x))(DoubleWell(2)), RULE, {}, NOT_A_NETWORK),
    "a bound method": (lambda: DoubleWell(2).forward, RULE, {}, NOT_A_NETWORK),
    "scaled twice": (lambda: Scaled(Scaled(DoubleWell(2), 0.5), 2.0), RULE, {}, NOT_A_NETWORK),
    "a subclass of the factor": (lambda: Factor(DoubleWell(2), 0.5), RULE, {}, NOT_A_NETWORK),
    "a scaled function": (lambda: Scaled(unknown, 0.5), RULE, {}, NOT_A_NETWORK),
    "a scaled subclass": (lambda: Scaled(Heated(2), 0.5), RULE, {}, NOT_AN_ENERGY),
    "a hook on the factor": (
        lambda: hooked("register_forward_hook", scaled("factor", 0.5)), RULE, {},
        "a Scaled has hooks",
    ),
    "a hook on what is scaled": (
        lambda: Scaled(hooked("register_forward_hook"), 0.5), RULE, {}, NOT_AN_ENERGY
    ),
    "a factor that is a tensor": (
        lambda: scaled("factor", torch.tensor(0.5)), RULE, {}, "its factor is a Tensor, not a numb"
    ),
    "a factor with a forward of its own": (
        lambda: scaled("forward", lambda x: x.square().sum(1)), RULE, {},
        "a Scaled has a forward of its own",
    ),
    "in a module": (
        lambda: torch.nn.Sequential(DoubleWell(2)), RULE, {}, "it contains a DoubleWell"
    ),
    "a delegate": (lambda: Delegating(DoubleWell(2)), RULE, {}, NOT_A_NETWORK),
    "a subclass": (lambda: Heated(2), RULE, {}, NOT_AN_ENERGY),
    "a subclass as it was": (lambda: Untouched(2), RULE, {}, NOT_AN_ENERGY),
    "a subclass with a forward": (lambda: Halved(2), RULE, {}, NOT_AN_ENERGY),
    "a forward of its own": (
        lambda: with_("forward", lambda e: lambda x: e._energy(x) / 2), RULE, {}, NOT_AN_ENERGY
    ),
    "a gradient of its own": (
        lambda: with_("value_and_gradient", lambda e: lambda x: (e(x), 0 * x)), RULE, {},
        NOT_AN_ENERGY,
    ),
    "a forward hook": (lambda: hooked("register_forward_hook"), RULE, {}, NOT_AN_ENERGY),
    "a hook before": (lambda: hooked("register_forward_pre_hook"), RULE, {}, NOT_AN_ENERGY),
    "a backward hook": (lambda: hooked("register_full_backward_hook"), RULE, {}, NOT_AN_ENERGY),
    "TULA": (lambda: DoubleWell(2), TULA(0.05), {}, NOT_A_RULE),
    "HMC": (lambda: DoubleWell(2), HMC(0.05, 3), {}, NOT_A_RULE),
    "weights": (lambda: DoubleWell(2), AniLA(1.0, 0.05, correction="weights"), {}, NOT_A_RULE),
    "divergence": (
        lambda: DoubleWell(2), AniLA(1.0, 0.05, correction="divergence"), {}, NOT_A_RULE
    ),
    "a subclass of Langevin": (lambda: DoubleWell(2), Slower(0.05), {}, NOT_A_RULE),
    "a subclass of MALA": (lambda: DoubleWell(2), Stubborn(0.05), {}, NOT_A_RULE),
    "a subclass of KineticLangevin": (lambda: DoubleWell(2), Colder(0.05), {}, NOT_A_RULE),
    "a rule of one's own": (lambda: DoubleWell(2), Own(), {}, NOT_A_RULE),
    "a trajectory elsewhere": (
        lambda: DoubleWell(2), RULE, {"keep_every": 1, "trajectory_device": "meta"},
        "the trajectory is kept elsewhere",
    ),
    "the reference": (
        lambda: DoubleWell(2), RULE, {"backend": "reference"}, "the reference backend"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_recognised(case: str, taken: list[int]) -> None:
    """It is sampled step by step; asked for whole chains, the error says why not."""
    make, rule, options, why = UNKNOWN[case]
    x0, noise = normals(7, 2), Noise(7)
    with pytest.raises(ArgumentError, match=f"whole_chain=True: {why}.*'auto'"):
        sample(make(), x0, rule, 5, seed=noise, whole_chain=True, **options)
    assert noise.step == 0
    got, want = (
        sample(make(), x0, rule, 5, seed=7, whole_chain=way, **options) for way in ("auto", False)
    )
    assert_same_bits(got.x, want.x)
    assert not taken


def test_a_class_whose_forward_was_replaced(
    taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DoubleWell, "forward", lambda self, x: x.square().sum(1))
    with pytest.raises(ArgumentError, match=NOT_AN_ENERGY):
        sample(DoubleWell(2), normals(7, 2), RULE, 5, seed=7, whole_chain=True)
    got = sample(DoubleWell(2), normals(7, 2), RULE, 5, seed=7)
    assert_same_bits(got.x, sample(lambda x: x.square().sum(1), normals(7, 2), RULE, 5, seed=7).x)
    assert not taken


def test_a_hook_that_is_taken_away(taken: list[int]) -> None:
    energy = DoubleWell(2)
    handle = energy.register_forward_hook(lambda *_: None)
    sample(energy, normals(7, 2), RULE, 5, seed=7)
    assert not taken
    handle.remove()
    sample(energy, normals(7, 2), RULE, 5, seed=7)
    assert sum(taken) == 5


def test_an_energy_that_has_changed_is_sampled_as_it_is() -> None:
    """Its numbers are read at every call."""
    energy, x0 = gaussian(3), normals(7, 3)
    sample(energy, x0, RULE, 5, seed=7)
    energy = energy.double()
    energy.location += 3
    energy._converted.clear()
    whole, single = pair(energy, x0, RULE, 5)
    assert_same_bits(whole.x, single.x)


@pytest.mark.parametrize(
    ("energy", "shape"),
    [
        (gaussian(3), (4, 2)), (gaussian(3), (4, 5)), (gaussian(3), (4,)), (gaussian(3), (4, 3, 1)),
        (gaussian(3), (4, 3, 3)), (EightGaussians(), (4, 5)), (Rings(), (4, 3)), (Rings(), (4, 1)),
        (full_gaussian(3), (4, 256)), (full_gaussian(300), (4, 3)), (DoubleWell(2), (4, 3)),
        (full_mixture(2), (4, 5)), (Funnel(3), (4, 2)), (Banana(), (4, 200)),
    ],
)  # fmt: skip
def test_states_that_are_not_the_energys(energy: Any, shape: tuple[int, ...]) -> None:
    """Another dimension is an error: the kernel would read what is not there."""
    for way, error in ((True, ArgumentError), ("auto", ShapeError), (False, ShapeError)):
        with pytest.raises(error, match=str(energy.dim)):
            sample(energy, torch.zeros(shape), RULE, 3, seed=7, whole_chain=way)


def test_as_many_coordinates_as_there_are_registers_for(taken: list[int]) -> None:
    x0 = normals(5, 257)
    with pytest.raises(ArgumentError, match=r"\(5, 257\): whole chains are of \(B, d <= 256\)"):
        sample(gaussian(257), x0, RULE, 5, seed=7, whole_chain=True)
    sample(gaussian(257), x0, RULE, 5, seed=7)
    assert not taken
    sample(gaussian(256), x0[:, :256], RULE, 5, seed=7)
    assert sum(taken) == 5


@pytest.mark.parametrize("way", [0, 1, 2, None, "yes", "", [True], float("nan"), torch.ones(2)])
def test_whole_chain_is_one_of_three(way: Any) -> None:
    with pytest.raises(ArgumentError, match=r"whole_chain=.*'auto', True or False"):
        sample(DoubleWell(2), normals(7, 2), RULE, 5, seed=7, whole_chain=way)


def test_whole_chains_are_taken_by_themselves(taken: list[int]) -> None:
    energy, x0 = start("round mixture", 3, 11, torch.float32)
    got = sample(energy, x0, RULE, 9, seed=7, burn_in=4)
    assert taken == [4, 9]
    assert_same_bits(got.x, sample(energy, x0, RULE, 9, seed=7, burn_in=4, whole_chain=True).x)
    taken.clear()
    sample(energy, x0, RULE, 9, seed=7, whole_chain=False)
    assert not taken


def test_nothing_to_sample(taken: list[int]) -> None:
    """No chains: the noise moves on all the same."""
    noise = Noise(7)
    got = sample(DoubleWell(2), torch.zeros(0, 2), RULE, 6, seed=noise, keep_every=2)
    assert (got.x.shape, noise.step) == ((0, 2), 6)
    assert not taken


# ---- random runs --------------------------------------------------------------------------------


class Case(NamedTuple):
    kind: str
    dim: int
    factor: float | None
    """That it is multiplied by."""
    rows: int
    dtype: torch.dtype
    rule: Any
    steps: int
    far: int | None
    """A chain that starts where it blows up."""
    options: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(sorted(KINDS)))
    dim = draw(st.sampled_from([d for d in KINDS[kind].dims if d < 64]))
    factor = draw(st.sampled_from([None, None, None, 0.4]))
    rows = draw(st.sampled_from([1, 2, 7, 8, 16, 31, 33, 70]))
    dtype = draw(st.sampled_from(DTYPES))
    h = KINDS[kind].step * draw(st.sampled_from([0.1, 0.5, 1.0]))
    rule = draw(drawn_rules(h, torch.linspace(0.3, 1.0, rows, dtype=dtype)))
    blows = kind in ("quartic well", "double well") and not isinstance(rule, (AniLA, MALA))
    options = draw(drawn_options())
    far = draw(st.integers(0, rows - 1)) if blows and draw(st.booleans()) else None
    steps = draw(st.sampled_from([0, 1, 2, 31, 32, 40, 66]))
    return Case(kind, dim, factor, rows, dtype, rule, steps, far, options)


def check(case: Case) -> None:
    energy, x0 = start(case.kind, case.dim, case.rows, case.dtype)
    if case.factor is not None:
        energy = Scaled(energy, case.factor)
    if case.far is not None:
        x0[case.far] = 1e5
    options = case.options
    where = options["seed"]
    options = options | {"seed": where.at(where.step)}  # which stays where it is
    got = assert_same_outcome(energy, x0, case.rule, case.steps, **options)
    if case.far is None:
        assert got.error is None


@whenever(60)
@given(cases())
def test_random_runs_agree(case: Case) -> None:
    check(case)


@pytest.mark.slow
@whenever(1000)
@given(cases())
def test_many_random_runs_agree(case: Case) -> None:
    check(case)


# ---- odd surroundings ---------------------------------------------------------------------------


ANY = {
    "a schedule": lambda: Langevin(lambda k: 0.1 / (1 + k % 3)),
    "thresholds": lambda: AniLA(torch.linspace(0.5, 1.0, 5, device="cpu"), 0.1),
    "MALA": lambda: MALA(lambda k: 0.5 / (1 + k)),
    "MALA that adapts": lambda: MALA(0.3, target_acceptance=0.6),
    "frictions and a schedule": lambda: KineticLangevin(0.1, 2.0, temperature=lambda k: 1 + k % 2),
    "temperatures": lambda: KineticLangevin(
        0.1, 2.0, temperature=torch.linspace(0.5, 1.0, 5, device="cpu")
    ),
    "ABOBA": lambda: KineticLangevin(
        0.1, torch.tensor(2.0, device="cpu"), "aboba",
        temperature=torch.linspace(0.5, 1.0, 5, device="cpu"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ANY)
def test_the_default_device_is_not_asked(name: str, policy: Any, taken: list[int]) -> None:
    """The states are on the CPU, whatever tensors of the user's would be on."""
    energy, x0 = EightGaussians(), normals(5, 2)

    def run() -> Samples:
        return sample(
            energy, x0, ANY[name](), 9, seed=7, burn_in=4, keep_every=2, moments=True,
            on_nonfinite=policy, whole_chain=True,
        )  # fmt: skip

    want = run()
    taken.clear()
    with torch.device("meta"):
        got = run()
    assert sum(taken) == 13
    assert_same_bits(got.x, want.x)
    assert_same_fields(got, want, slice(None))


def test_a_schedule_that_raises_is_an_error_of_the_energys_or_schedules() -> None:
    """Of the step it is for, from its n-th call on; by whole chains as by single steps."""
    energy, x0 = EightGaussians(), normals(5, 2)
    for make in (Langevin, MALA, KineticLangevin):
        for n in (1, 2, 6, 20):
            for way in (True, False):
                calls: list[int] = []

                def schedule(k: int, calls: list[int] = calls, n: int = n) -> float:
                    calls.append(k)
                    if len(calls) >= n:
                        raise ZeroDivisionError
                    return 0.1

                with pytest.raises(EnergyError, match=f"raised Zero.* in step {n - 1}$") as caught:
                    sample(energy, x0, make(schedule), 20, seed=7, whole_chain=way)
                assert isinstance(caught.value.__cause__, ZeroDivisionError)
                assert caught.value.samples is not None
                assert caught.value.samples.state.step == n - 1


@pytest.mark.parametrize("where", ["chain_move", "chain_"])
def test_what_a_block_raises_has_its_step_and_all_that_was_drawn(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, say: an error of ours, with the samples."""
    energy, x0, rule = EightGaussians(), normals(5, 2), Langevin(0.1)
    want = sample(energy, x0, rule, 0, burn_in=6, seed=7, whole_chain=True)
    of: Any = {"chain_move": Langevin, "chain_": native}[where]
    original, calls = getattr(of, where), []

    def raising(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return original(*arguments)

    monkeypatch.setattr(of, where, raising)
    with pytest.raises(EnergyError, match="MemoryError in step 6") as caught:
        sample(energy, x0, rule, 5, burn_in=6, seed=7, whole_chain=True)
    assert caught.value.samples is not None
    assert_same_bits(caught.value.samples.x, want.x)


# ---- how long a block is ------------------------------------------------------------------------


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first block of each run, in steps."""
    made: list[int] = []
    original = _chain.WholeChain.begin

    def begin(self: Any, state: Any, noise: Noise) -> None:
        made.append(self.block)
        original(self, state, noise)

    monkeypatch.setattr(_chain.WholeChain, "begin", begin)
    return made


def test_the_first_block_of_much_work_is_short(blocks: list[int]) -> None:
    """Ctrl-C waits for it: 0.3 s at 1e9 products a second for one chain, which costs what 32 do."""
    torch.manual_seed(0)
    whitening = torch.eye(32) + 0.05 * torch.randn(64, 32, 32)
    mixture = GaussianMixture(torch.randn(64, 32), covariances=whitening @ whitening.mT)
    net = network((3, 512, 512, 1))
    for energy, d, products in ((mixture, 32, 64 * 32 * 32), (net, 3, 2 * 512 * 516)):
        blocks.clear()
        for rows in (1, 5, 32, 33, 320):
            sample(energy, torch.zeros(rows, d), Langevin(0.01), 1, seed=7, whole_chain=True)
        assert products * blocks[0] <= 0.3e9
        assert blocks[0] == blocks[1] == blocks[2]
        assert blocks[3] == blocks[0] // 2
        assert blocks[4] == blocks[0] // 10
        assert 20 <= blocks[0] <= 300


def test_the_first_block_of_little_work_is_long(blocks: list[int]) -> None:
    sample(Rings(), torch.ones(1, 2), Langevin(0.01), 1, seed=7, whole_chain=True)
    sample(Rings(), torch.ones(3200, 2), Langevin(0.01), 1, seed=7, whole_chain=True)
    assert blocks[0] > 100_000
    assert blocks[1] == pytest.approx(blocks[0] / 100, rel=0.01)


# ---- laws ---------------------------------------------------------------------------------------


def test_the_law_of_a_double_well(seed: int) -> None:
    """In each of two coordinates the stationary law of the step itself, by quadrature: moments,
    distribution, and a half on either side."""
    h, n, energy = 0.1, chains(20_000), DoubleWell(2, barrier=1.0)
    kernel = Kernel1D.gaussian(
        lambda x: x - h / 2 * 4 * x * (x**2 - 1), lambda x: np.full_like(x, h**0.5), (-3.5, 3.5)
    )
    law = kernel.stationary()
    assert kernel.second_eigenvalue() ** 400 < 1e-6
    x0 = 0.5 * Noise(2000 + seed, stream=Purpose.INITIAL_STATE).normal((n, 2))
    x = sample(energy, x0, Langevin(h), 400, seed=1000 + seed, whole_chain=True).x.double()
    checks = Checks(9)
    for i in range(2):
        checks.law(x[:, i], kernel.cdf(law), what=i)
        checks.moment(x[:, i], 2, lambda k: kernel.moment(law, k), what=i)
        checks.probability((x[:, i] > 0).sum(), n, 0.5, what=i)
        checks.independent_chains(x[:, i], what=i)
    checks.probability((x[:, 0] * x[:, 1] > 0).sum(), n, 0.5, what="both")


def test_the_law_of_eight_gaussians(seed: int) -> None:
    """Modes that do not overlap: around each a normal law of variance s^2 / (1 - h / (4 s^2))."""
    s, n = 0.05, chains(20_000)
    h = 0.4 * s**2
    energy = EightGaussians(std=s)
    x0 = 1.05 * energy.draw(n, seed=2000 + seed)
    x = sample(energy, x0, Langevin(h), 150, seed=1000 + seed, whole_chain=True).x.double()
    turn = (torch.atan2(x[:, 1], x[:, 0]) / (torch.pi / 4)).round() * (torch.pi / 4)
    off = x - torch.stack([turn.cos(), turn.sin()], 1)
    checks = Checks(4)  # 0.8 of the distance is left after a step, 1e-14 at the end
    for i in range(2):
        checks.gaussian(off[:, i], 0, s**2 / (1 - h / (4 * s**2)), what=i)
    checks.uncorrelated(off[:, 0], off[:, 1])
    checks.independent_chains(off[:, 0])


def test_the_law_of_rings(seed: int) -> None:
    """Stationary chains have E (x . grad U - h |grad U|^2 / 4) = 2, as a step leaves E |x|^2 as it
    is; and no direction."""
    s, n = 0.3, chains(20_000)
    h = 0.05 * s**2
    energy = Rings([1.0, 3.0], s)
    x0 = 1.1 * energy.draw(n, seed=2000 + seed)
    x = sample(energy, x0, Langevin(h), 400, seed=1000 + seed, whole_chain=True).x.double()
    _, grad = energy.value_and_gradient(x)
    virial = (x * grad).sum(1) - h / 4 * grad.square().sum(1)
    checks = Checks(4)
    checks.mean(virial, 2, float(virial.var()))
    for i in range(2):
        checks.probability((x[:, i] > 0).sum(), n, 0.5, what=i)
    checks.independent_chains(x.square().sum(1))
