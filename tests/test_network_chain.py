"""Whole chains of networks against the same chains step by step, where autograd has the gradient.

Gradients differ by rounding, of sums in another order and of other exponentials, and chains as far
as the energy lets them: runs are short. Where an activation has a kink a chain that comes to it
within rounding may be on its other side: their networks and runs are the shortest.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from langevin_ext import (
    HMC,
    AniLA,
    EnergyGradient,
    Langevin,
    Noise,
    Purpose,
    Samples,
    _chain,
    sample,
)
from langevin_ext.energies import Scaled
from langevin_ext.errors import ArgumentError, NonFiniteError
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
from .networks import ACTIVATIONS, KINKED, LAWS, network
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

SMOOTH = sorted(ACTIVATIONS.keys() - KINKED)
WIDTHS = (7, 19, 40, 6, 1)
RULE = Langevin(0.05)


def within(steps: int) -> float:
    """Relative to the largest number of its kind: thirty roundings a step."""
    return tolerance(torch.float32, steps)


def images(*shape: int) -> nn.Sequential:
    """A network of states (B, *shape)."""
    return nn.Sequential(nn.Flatten(), *network((int(np.prod(shape)), 24, 9, 1)))


# ---- the same run -------------------------------------------------------------------------------

DEPTHS = ((1,), (2, 1), (3, 1, 5), (2, 16, 16, 16), (17, 65), (300, 9, 16, 13, 15, 14, 8))


@pytest.mark.parametrize("widths", DEPTHS)
@pytest.mark.parametrize("activation", SMOOTH)
def test_every_smooth_network(
    activation: str, widths: tuple[int, ...], isa: str, taken: list[int]
) -> None:
    """The kernel took every step; more chains than a block has on any instruction set."""
    for last, bias in ((True, True), (False, False)):
        net = network((*widths, 1), activation, bias=bias, last=last)
        rule = AniLA(1.5, 0.1, reference_precision=0.1)
        taken.clear()
        whole, single = pair(
            net, normals(69, widths[0], seed=1), rule, 6, keep_every=2, moments=True, burn_in=1
        )
        assert sum(taken) == 7
        assert_same_run(whole, single, within(7))


@pytest.mark.parametrize("activation", sorted(KINKED))
def test_every_network_with_kinks(activation: str, isa: str, taken: list[int]) -> None:
    for widths in ((1, 3), (3, 8, 5), (40, 9)):
        net = network((*widths, 1), activation)
        taken.clear()
        whole, single = pair(net, normals(19, widths[0], seed=1), RULE, 4, keep_every=1)
        assert sum(taken) == 4
        assert_same_run(whole, single, within(4))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 31, 64, 127, 128, 129, 256, 300])
def test_any_number_of_coordinates(width: int) -> None:
    """Odd ones too, whose last noise is half used; sums in one pass and in several."""
    for rule in (RULE, AniLA(1.0, 0.05, per="coordinate")):
        net = network((width, 9, width, 1), "tanh")
        whole, single = pair(net, normals(20, width, seed=2), rule, 4, moments=True)
        assert_same_run(whole, single, within(4))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str, taken: list[int]) -> None:
    net, x0 = network((5, 16, 8, 1)), normals(21, 5)
    made = RULES[rule](torch.linspace(0.5, 1.5, 21))
    whole, single = pair(net, x0, made, 9, keep_every=2, moments=True, burn_in=1)
    assert sum(taken) == 10
    assert_same_run(whole, single, within(10))


@pytest.mark.parametrize("factor", [0.3, -2.0, 0.0, 1, 1e-30])
def test_an_energy_times_a_number(factor: float, taken: list[int]) -> None:
    net, x0 = network((5, 16, 8, 1)), normals(21, 5)
    whole, single = pair(Scaled(net, factor), x0, AniLA(1.0, 0.1), 6, keep_every=1)
    assert sum(taken) == 6
    assert_same_run(whole, single, within(6))


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 8, 8), (6,), (2, 1, 1, 3)])
def test_states_of_any_shape(shape: tuple[int, ...], taken: list[int]) -> None:
    net, x0 = images(*shape), normals(11, *shape)
    for rule in (AniLA(1.0, 0.1), AniLA(torch.linspace(0.1, 1, 11), 0.1, per="coordinate")):
        taken.clear()
        whole, single = pair(net, x0, rule, 6, keep_every=2, moments=True)
        assert sum(taken) == 6
        assert_same_run(whole, single, within(6))
        flat = sample(nn.Sequential(*net[1:]), x0.flatten(1), rule, 6, seed=7, whole_chain=True)
        assert_same_bits(whole.x.flatten(1), flat.x)


def test_memory_of_another_format_is_read_as_it_is() -> None:
    """The state's, and what the energy is to be given; neither argument is written to."""
    net, x0 = images(3, 4, 5), normals(6, 3, 4, 5)
    want = sample(net, x0, RULE, 6, seed=7, whole_chain=True, keep_every=1)
    negative = torch.complex(x0, -x0).conj().imag
    assert negative.is_neg()
    last = x0.contiguous(memory_format=torch.channels_last)
    for other in (last, negative, x0.mT.contiguous().mT, x0.clone().requires_grad_()):
        before = other.detach().clone()
        for channels_last in (None, True, False):
            got, single = pair(net, other, RULE, 6, keep_every=1, channels_last=channels_last)
            assert_same_fields(got, want, slice(None))
            assert_same_run(got, single, within(6))
        assert_same_bits(other.detach(), before)


def test_everything_is_recorded_at_every_setting() -> None:
    """Burn-in, thinning and moments against those of all states."""
    net, x0 = network((3, 8, 1)), normals(11, 3)
    rule = AniLA(1.0, 0.02)
    for burn_in, keep_every in ((0, None), (0, 1), (5, 7), (12, 12), (20, 3), (1, 200)):
        whole, single = pair(
            net, x0, rule, 33, burn_in=burn_in, keep_every=keep_every, moments=True
        )
        assert_same_run(whole, single, within(33 + burn_in))


# ---- the same bits ------------------------------------------------------------------------------


def recorded(net: nn.Module, x0: Tensor, rule: Any, steps: int, seed: Any = 7) -> Samples:
    return sample(net, x0, rule, steps, seed=seed, keep_every=2, moments=True, whole_chain=True)


@pytest.mark.parametrize("activation", ["silu", "tanh", "softplus of 3", "leaky"])
def test_a_chain_is_the_same_in_any_batch(activation: str, isa: str) -> None:
    """Batches of 1 to 70, from anywhere in one of 200; and each statistic with it."""
    net, x0 = network(WIDTHS, activation), normals(200, 7, seed=4)
    each = torch.linspace(0.5, 1.5, 200)
    whole = recorded(net, x0, AniLA(each, 0.05 * each), 5)
    for n in range(1, 71):
        first = n * 37 % (200 - n)
        rows = slice(first, first + n)
        rule = AniLA(each[rows], 0.05 * each[rows])
        got = recorded(net, x0[rows], rule, 5, Noise(7, first_chain=first))
        assert_same_fields(got, whole, rows)


def test_the_number_of_threads_changes_no_bit(isa: str) -> None:
    net, x0 = network(WIDTHS), normals(203, 7, seed=5)
    want = recorded(net, x0, AniLA(1.5, 0.05), 20)  # work for five threads
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert_same_fields(recorded(net, x0, AniLA(1.5, 0.05), 20), want, slice(None))


def test_instruction_sets_differ_by_rounding() -> None:
    runs = []
    for isa in ISAS:
        native.use_isa(isa)
        runs.append(recorded(network(WIDTHS), normals(70, 7), AniLA(1.5, 0.05), 6))
    for got in runs[1:]:
        assert_same_run(got, runs[0], within(6))


@pytest.mark.parametrize("cut", [1, 3, 4, 20, 41])
def test_a_run_cut_in_two_goes_on_exactly(cut: int) -> None:
    """On either side of the cut there may be too few steps for "auto"."""
    net, x0 = images(2, 3, 2), normals(13, 2, 3, 2)
    rule = AniLA(1.5, lambda k: 0.05 / (1 + k % 5))
    whole = sample(net, x0, rule, 45, seed=7, keep_every=1)
    assert whole.trajectory is not None
    part = sample(net, x0, rule, cut, seed=7, whole_chain=True)
    rest = sample(net, part.state, rule, 45 - cut, keep_every=1, whole_chain=True)
    assert_same_bits(rest.trajectory, whole.trajectory[cut:])
    assert_same_bits(rest.stats.energy, whole.stats.energy)
    assert places(rest.state.noise) == places(whole.state.noise)


def test_blocks_end_anywhere(monkeypatch: pytest.MonkeyPatch, taken: list[int]) -> None:
    """As short and as long as their speed says; of weights, too, the first has but so many."""
    net, x0 = network((3, 16, 16, 1)), normals(70, 3)
    work = 96 * (3 + (3 * 16 + 16 * 16 + 16) // 32)  # 70 chains take as long as 96

    def run(rule: Any) -> Samples:
        return sample(net, x0, rule, 60, seed=7, burn_in=13, keep_every=7, moments=True)

    for rule in (AniLA(1.0, 0.02), AniLA(1.0, lambda k: 0.02 / (1 + k % 3))):
        monkeypatch.setattr(_chain, "_FIRST", 2**22)
        monkeypatch.setattr(_chain, "_SCHEDULED", 2**10)
        taken.clear()
        want = run(rule)
        assert taken == [13, 60]
        for first, seconds in ((0, 0.0), (0, 1e9), (5 * work, 0.05), (2**22, 0.0)):
            monkeypatch.setattr(_chain, "_FIRST", first)
            monkeypatch.setattr(_chain, "_SECONDS", seconds)
            taken.clear()
            assert_same_fields(run(rule), want, slice(None))
            assert taken[0] == min(13, max(1, first // work))
            assert sum(taken) == 73
        monkeypatch.setattr(_chain, "_SCHEDULED", 9)
        assert_same_fields(run(rule), want, slice(None))


# ---- chains that leave the finite numbers -------------------------------------------------------


def explosive(activation: str) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network that is huge inside, 24 chains and their step sizes, of which some blow up.

    From 1e20 on U is infinite, its gradient is not, and no sum has infinities of either sign: what
    comes of those depends on their order.
    """
    net, x0 = network((3, 16, 8, 1), activation), 0.5 * normals(24, 3)
    with torch.no_grad():
        for layer, scale in (net[2], 1e24), (net[4], 1e-24):
            layer.weight.abs_().mul_(scale)
            layer.bias.mul_(scale)
    x0[5], x0[20], x0[23] = 1e20, -1e22, 1e36
    step = torch.full((24,), 0.02)
    step[9:12] = torch.tensor([1e25, 1e30, 1e36])
    return net, x0, step


@pytest.mark.parametrize("check_every", EVERY)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("activation", ["silu", "softplus", "relu"])
def test_bad_chains_are_dealt_with_alike(
    activation: str, policy: str, check_every: int | None
) -> None:
    """At a clamp too, inside of which a chain that went wrong may find back."""
    net, x0, step = explosive(activation)
    seen = set()
    for rule in (
        Langevin(step),
        Langevin(lambda k: 0.02 if k < 9 else 1e25),
        Langevin(step, clamp=(-2, 2)),
        AniLA(3.0, step, per="coordinate", clamp=(None, 2)),
    ):
        for burn_in in (0, 6):
            got = assert_same_outcome(
                net, x0, rule, 20, burn_in=burn_in, keep_every=3, moments=True,
                on_nonfinite=policy, check_every=check_every,
            )  # fmt: skip
            assert got.error is None or isinstance(got.error, NonFiniteError)
            seen |= {*got.samples.stats.first_bad_step.tolist()}
    assert len(seen) > (1 if policy == "raise" else 3)


def test_bad_chains_change_no_bit_of_others(isa: str) -> None:
    """Nor of their statistics; they stay where they were."""
    net, x0, step = explosive("silu")
    ill = torch.tensor([5, 9, 10, 11, 20, 23])
    well = torch.ones(24, dtype=torch.bool)
    well[ill] = False
    options: dict[str, Any] = {"seed": 7, "keep_every": 1, "moments": True, "whole_chain": True}
    dirty = sample(net, x0, Langevin(step), 60, on_nonfinite="freeze", **options)
    assert dirty.stats.first_bad_step.ge(0).nonzero()[:, 0].tolist() == ill.tolist()
    assert dirty.x.isfinite().all()
    x0, step = x0.clone(), step.clone()
    x0[ill], step[ill] = 0.5, 0.02
    clean = sample(net, x0, Langevin(step), 60, **options)
    assert dirty.trajectory is not None
    assert clean.trajectory is not None
    assert_same_bits(dirty.trajectory[:, well], clean.trajectory[:, well])
    for name in ("grad_norm", "energy", "mean", "var"):
        assert_same_bits(getattr(dirty.stats, name)[well], getattr(clean.stats, name)[well], name)


def test_frozen_chains_stay_frozen_in_a_continued_run(taken: list[int]) -> None:
    net, x0, step = explosive("softplus")
    part = sample(net, x0, Langevin(step), 10, seed=7, on_nonfinite="freeze", whole_chain=True)
    assert part.state.frozen.sum() == 6
    taken.clear()
    whole, single = pair(net, part.state, Langevin(step), 20, keep_every=1)
    assert taken == [20]
    assert_same_run(whole, single, within(20))
    long = sample(net, x0, Langevin(step), 30, seed=7, on_nonfinite="freeze", whole_chain=True)
    assert_same_bits(whole.x, long.x)
    assert_same_bits(whole.stats.energy, long.stats.energy)


def test_a_network_without_numbers() -> None:
    """A weight that is none: every chain goes wrong in the first step."""
    net, x0 = network((3, 8, 1)), normals(9, 3)
    with torch.no_grad():
        net[2].bias.fill_(torch.nan)  # type: ignore[operator,union-attr]
    for policy in POLICIES:
        assert_same_outcome(net, x0, RULE, 20, on_nonfinite=policy)


# ---- the module ---------------------------------------------------------------------------------


def test_weights_are_read_at_every_call() -> None:
    """Changed in place, given other memory, loaded; the factor, too."""
    net, x0 = network((3, 8, 1)), normals(9, 3)
    other = network((3, 8, 1)).requires_grad_(False)
    energy = Scaled(net, 1.0)
    run = functools.partial(sample, x0=x0, rule=RULE, steps=5, seed=7, whole_chain=True)
    seen = [run(energy).x]

    def is_fresh() -> None:
        x = run(energy).x
        assert all(not torch.equal(x, old) for old in seen)
        assert_same_bits(x, run(copy.deepcopy(energy)).x)
        seen.append(x)

    with torch.no_grad():
        for p in net.parameters():
            p.mul_(-2)
        is_fresh()
        net[0].weight.data = net[0].weight * 1.5  # type: ignore[operator,union-attr]
        is_fresh()
        net[2].bias = None  # which no chain knows of
        assert_same_bits(run(energy).x, seen[-1])
        net.load_state_dict({**other[0].state_dict(prefix="0."), "2.weight": net[2].weight / 3})
        is_fresh()
        net[1] = nn.Tanh()
        is_fresh()
        energy.factor = 0.5
        is_fresh()


def test_the_module_is_left_as_it_was() -> None:
    """Modes, gradients, versions and flags; after an error as well."""
    for make in (lambda: network((3, 8, 1)), lambda: explosive("silu")[0]):
        net = make()
        net[1].eval()
        net[0].weight.requires_grad_(False)  # type: ignore[operator,union-attr]
        for p in net.parameters():
            if p.requires_grad:
                p.grad = torch.ones_like(p)
        before = [(p.clone(), p.grad, p.requires_grad, p._version) for p in net.parameters()]
        modes = [m.training for m in net.modules()]
        x0 = torch.full((4, 3), 1e20)
        try:
            sample(net, x0, RULE, 9, seed=7, whole_chain=True)
        except NonFiniteError:
            assert net[2].weight.max() > 1e9  # type: ignore[operator,union-attr]
        assert [m.training for m in net.modules()] == modes
        for p, (value, grad, live, version) in zip(net.parameters(), before, strict=True):
            assert_same_bits(p.detach(), value.detach())
            assert p.grad is grad
            assert grad is None or torch.equal(grad, torch.ones_like(p))
            assert (p.requires_grad, p._version) == (live, version)


# ---- what is not recognised ---------------------------------------------------------------------


class Halved(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = super().forward(x) / 2
        return value


class Untouched(nn.Sequential):
    pass


def hooked(register: str, part: int | None = None) -> nn.Sequential:
    net = network((3, 8, 1))
    module = net if part is None else net[part]
    getattr(module, register)(lambda *_: None)
    return net


def with_(*more: nn.Module) -> nn.Sequential:
    """A network with more behind its first layer."""
    first, *rest = network((3, 8, 1))
    return nn.Sequential(first, *more, *rest)


def doubled() -> nn.Sequential:
    return network((3, 8, 1)).double()


UNKNOWN: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "a lambda": (lambda: lambda x: network((3, 8, 1))(x), "the energy is a function, not", {}),
    "a subclass": (lambda: Halved(*network((3, 8, 1))), "the energy is a Halved, not", {}),
    "a subclass as it was": (
        lambda: Untouched(*network((3, 8, 1))), "the energy is an Untouched, not", {}
    ),
    "a network in another's": (
        lambda: nn.Sequential(Halved(*network((3, 8, 1)))), "it contains a Halved", {}
    ),
    "dropout": (lambda: with_(nn.Dropout(0.9)), "it contains a Dropout", {}),
    "BatchNorm": (lambda: with_(nn.BatchNorm1d(8)), "it contains a BatchNorm1d", {}),
    "an unknown activation": (lambda: with_(nn.GELU()), "it contains a GELU", {}),
    "a forward hook": (lambda: hooked("register_forward_hook"), "a Sequential has hooks", {}),
    "a hook before": (lambda: hooked("register_forward_pre_hook", 1), "a SiLU has hooks", {}),
    "a backward hook": (lambda: hooked("register_full_backward_hook", 0), "Linear has hooks", {}),
    "a hook on the factor": (
        lambda: Scaled(hooked("register_forward_hook"), 0.5), "a Sequential has hooks", {}
    ),
    "float64": (doubled, "the states are .*float64", {"dtype": torch.float64}),
    "autocast": (lambda: network((3, 8, 1)), "autocast is on", {"autocast": torch.bfloat16}),
    "scaled twice": (
        lambda: Scaled(Scaled(network((3, 8, 1)), 0.5), 2.0), "the energy is a Scaled, not", {}
    ),
    "HMC": (lambda: network((3, 8, 1)), "only Langevin, AniLA", {"rule": HMC(0.05, 3)}),
    "a correction": (
        lambda: network((3, 8, 1)), "only Langevin, AniLA",
        {"rule": AniLA(1.0, 0.05, correction="weights")},
    ),
    "the reference": (
        lambda: network((3, 8, 1)), "the reference backend", {"backend": "reference"}
    ),
    "a trajectory elsewhere": (
        lambda: network((3, 8, 1)), "the trajectory is kept elsewhere",
        {"keep_every": 1, "trajectory_device": "meta"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_recognised(case: str, taken: list[int]) -> None:
    """It is sampled step by step; asked for whole chains, the error says why not."""
    make, why, options = UNKNOWN[case]
    options = dict(options)
    rule, x0 = options.pop("rule", RULE), normals(7, 3, dtype=options.pop("dtype", torch.float32))
    noise = Noise(7)
    with pytest.raises(ArgumentError, match=f"whole_chain=True: .*{why}.*'auto'"):
        sample(make(), x0, rule, 5, seed=noise, whole_chain=True, **options)
    assert noise.step == 0
    got, want = (
        sample(make(), x0, rule, 5, seed=7, whole_chain=way, **options) for way in ("auto", False)
    )
    assert_same_bits(got.x, want.x)
    assert not taken


def test_under_autocast_torch_has_the_network(taken: list[int]) -> None:
    net, x0 = network((3, 8, 1)), normals(7, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ArgumentError, match="autocast is on"):
            sample(net, x0, RULE, 5, seed=7, whole_chain=True)
        got, want = (sample(net, x0, RULE, 5, seed=7, whole_chain=way) for way in ("auto", False))
    assert_same_bits(got.x, want.x)
    assert not taken
    sample(net, x0, RULE, 5, seed=7)
    assert taken == [5]


def test_dropout_that_is_taken_out(taken: list[int]) -> None:
    net, x0 = with_(nn.Dropout(0.9)), normals(7, 3)
    want = sample(net, x0, RULE, 5, seed=7)
    assert not taken
    del net[1]
    got = sample(net, x0, RULE, 5, seed=7)
    assert taken == [5]
    assert_same_run(got, want, within(5))


@pytest.mark.parametrize(("steps", "burn_in"), [(0, 0), (3, 0), (0, 3), (2, 1)])
def test_few_steps_are_torchs(steps: int, burn_in: int, taken: list[int]) -> None:
    """They do not repay the packing of weights, unless it is asked for; four do, with burn-in."""
    net, x0 = network((3, 8, 1)), normals(7, 3)
    got, want = (
        sample(net, x0, RULE, steps, burn_in=burn_in, seed=7, whole_chain=way)
        for way in ("auto", False)
    )
    assert_same_bits(got.x, want.x)
    assert not taken
    sample(net, x0, RULE, 4, seed=7)
    sample(net, x0, RULE, 1, burn_in=3, seed=7)
    assert taken == [4, 3, 1]
    asked = sample(net, x0, RULE, steps, burn_in=burn_in, seed=7, whole_chain=True)
    assert sum(taken) == 8 + steps + burn_in
    assert_same_run(asked, want, within(4))


def test_wide_layers_are_torchs(taken: list[int]) -> None:
    net, x0 = network((3, 1025, 1)), normals(2, 3)
    assert_same_bits(
        sample(net, x0, RULE, 5, seed=7).x, sample(net, x0, RULE, 5, seed=7, whole_chain=False).x
    )
    assert not taken
    sample(network((3, 1024, 1)), x0, RULE, 5, seed=7)
    sample(net, x0, RULE, 6, seed=7, whole_chain=True)
    assert taken == [5, 6]


# ---- random runs --------------------------------------------------------------------------------


class Case(NamedTuple):
    energy: nn.Module
    x0: Tensor
    rule: Any
    steps: int
    options: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows = draw(st.sampled_from([1, 2, 7, 8, 16, 31, 33, 70]))
    shape = draw(st.sampled_from([(1,), (2,), (5,), (17,), (40,), (2, 3), (1, 4, 4), (3, 2, 2)]))
    activation = draw(st.sampled_from(sorted(ACTIVATIONS)))
    kinked = activation in KINKED
    hidden = draw(st.lists(st.sampled_from([1, 2, 5, 8] if kinked else [1, 5, 16, 33]), max_size=3))
    net = network(
        (int(np.prod(shape)), *hidden, 1),
        activation,
        bias=draw(st.booleans()),
        last=draw(st.booleans()),
    )
    energy: nn.Module = net if len(shape) == 1 else nn.Sequential(nn.Flatten(), net)
    factor = draw(st.sampled_from([None, None, 0.3, -1.0]))
    if factor is not None:
        energy = Scaled(energy, factor)
    h = draw(st.sampled_from([0.003, 0.03]))
    rule = draw(drawn_rules(h, torch.linspace(0.3, 1.0, rows)))
    options = draw(drawn_options())
    if kinked:
        options["burn_in"] = min(1, options["burn_in"])
    steps = draw(st.sampled_from([0, 1, 3, 5] if kinked else [0, 1, 3, 4, 9, 32, 41]))
    return Case(energy, normals(rows, *shape, seed=rows), rule, steps, options)


def check(case: Case) -> None:
    options = case.options
    where = options["seed"]
    options = options | {"seed": where.at(where.step)}  # which stays where it is
    assert assert_same_outcome(case.energy, case.x0, case.rule, case.steps, **options).error is None


@whenever(40)
@given(cases())
def test_random_runs_agree(case: Case) -> None:
    check(case)


@pytest.mark.slow
@whenever(300)
@given(cases())
def test_many_random_runs_agree(case: Case) -> None:
    check(case)


# ---- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Langevin(0.4), AniLA(0.8, 0.4)], ids=["Langevin", "AniLA"])
@pytest.mark.parametrize("case", LAWS)
def test_the_law_of_a_network(case: str, rule: Langevin | AniLA, seed: int) -> None:
    """The stationary law of the step itself, by quadrature of the network in double precision."""
    make, span = LAWS[case]
    net, h, n, steps = make(), 0.4, chains(20_000), 600
    slope_of = EnergyGradient(make().double())
    bound = rule.threshold if isinstance(rule, AniLA) else np.inf

    def slope(x: Any) -> Any:
        points = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)).view(-1, 1)
        return slope_of(points)[1].numpy().reshape(np.shape(x))

    def gamma(x: Any) -> Any:
        return np.minimum(1, bound / np.maximum(np.abs(slope(x)), 1e-300))

    kernel = Kernel1D.gaussian(
        lambda x: x - h / 2 * gamma(x) * slope(x), lambda x: (h * gamma(x)) ** 0.5, span,
        breaks=(0.0,),
    )  # fmt: skip
    law = kernel.stationary()
    assert kernel.second_eigenvalue() ** steps < 1e-6
    x0 = Noise(2000 + seed, stream=Purpose.INITIAL_STATE).normal((n, 1))
    x = sample(net, x0, rule, steps, seed=1000 + seed, whole_chain=True).x[:, 0].double()
    checks = Checks(4)
    checks.law(x, kernel.cdf(law))
    checks.moment(x, 1, lambda k: kernel.moment(law, k))
    checks.moment(x, 2, lambda k: kernel.moment(law, k))
    checks.independent_chains(x)
