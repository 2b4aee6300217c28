"""`sample`: the loop it stands for, what it records, what it does with bad chains, no traces."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from langevin_ext import AniLA, EnergyGradient, Langevin, Noise, Samples, langevin_step_, sample
from langevin_ext.errors import EnergyError, GradientError, NonFiniteError, SamplingInterrupted

from .conftest import DEVICE, assert_same_bits, normals, on_a_device, places, same_bits

RULES = {
    "Langevin": (Langevin(0.3, temperature=0.5), {}),
    "AniLA": (AniLA(1.5, 0.3, temperature=0.5), {"max_grad_norm": 1.5}),
}
RULE = Langevin(0.3)


def quartic(x: Tensor) -> Tensor:
    return (x.flatten(1) ** 4).sum(1) / 4


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1).square().sum(1)


class Poisoned:
    """The quadratic energy, but NaN for one row in one call: its value, or its gradient alone."""

    def __init__(self, at: dict[int, tuple[int, str]]) -> None:
        self.at = at  # row -> (call, "energy" or "gradient")
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        rows = {
            what: [row for row, poison in self.at.items() if poison == (self.calls, what)]
            for what in ("energy", "gradient")
        }
        self.calls += 1
        y = x.clone()
        bad = torch.tensor(rows["gradient"], dtype=torch.int64)
        y.register_hook(lambda g: g.index_fill(0, bad, torch.nan))
        offset = torch.zeros(len(x))
        offset[rows["energy"]] = torch.nan
        return quadratic(y) + offset


# ---- the loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_sample_is_the_loop_by_hand(rule: str, dtype: torch.dtype, backend: str) -> None:
    chosen, bound = RULES[rule]
    x0 = normals(20, 2, 3, dtype=dtype)
    x, noise = x0.clone(), Noise(7)
    for _ in range(6):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(quartic(leaf).sum(), leaf)
        langevin_step_(
            x, grad, drift=0.15, diffusion=0.15**0.5, noise=noise, backend=backend, **bound
        )
    got = sample(quartic, x0, chosen, 6, seed=7, backend=backend)
    assert_same_bits(got.x, x)
    assert places(got.state.noise) == places(noise)


@pytest.mark.parametrize("rule", RULES)
def test_a_continued_run_is_one_long_run(rule: str) -> None:
    """From one state twice, and from the state of the continuation."""
    chosen, x0 = RULES[rule][0], normals(20, 3)
    whole = sample(quartic, x0, chosen, 9, seed=7, keep_every=1)
    assert whole.trajectory is not None
    first = sample(quartic, x0, chosen, 4, seed=7)
    saved = first.state.chains.x.clone()
    first.x.zero_()  # the caller's copy is the caller's
    for _ in range(2):
        second = sample(quartic, first.state, chosen, 3, keep_every=1)
        third = sample(quartic, second.state, chosen, 2)
        assert second.trajectory is not None
        assert_same_bits(second.trajectory, whole.trajectory[4:7])
        assert_same_bits(third.x, whole.x)
        assert (third.state.step, places(third.state.noise)) == (9, places(whole.state.noise))
    assert_same_bits(first.state.chains.x, saved)


def test_burn_in_is_not_kept_or_averaged() -> None:
    x0 = normals(20, 3)
    options: dict[str, Any] = {"seed": 7, "keep_every": 1, "moments": True}
    whole = sample(quartic, x0, RULE, 9, **options)
    burnt = sample(quartic, x0, RULE, 4, burn_in=5, **options)
    assert whole.trajectory is not None
    assert_same_bits(burnt.trajectory, whole.trajectory[5:])
    first = sample(quartic, x0, RULE, 5, seed=7)
    after = sample(quartic, first.state, RULE, 4, keep_every=1, moments=True)
    for a, b in zip(burnt.stats, after.stats, strict=True):
        if a is not None or b is not None:
            assert_same_bits(a, b)


@pytest.mark.parametrize("keep_every", [1, 2, 3, 7, 8])
def test_every_so_many_states_are_kept(keep_every: int) -> None:
    """After each kept step, x0 not among them."""
    x0 = normals(5, 3)
    states = [sample(quartic, x0, RULE, k, seed=7).x.cpu() for k in range(1, 8)]
    got = sample(quartic, x0, RULE, 7, seed=7, keep_every=keep_every, trajectory_device="cpu")
    want = torch.stack([*states[keep_every - 1 :: keep_every], x0.cpu()])[:-1]
    assert_same_bits(got.trajectory, want)


def test_the_trajectory_goes_to_its_device() -> None:
    got = sample(quartic, normals(5, 3), RULE, 4, seed=7, keep_every=2, trajectory_device="meta")
    assert got.trajectory is not None
    assert (got.trajectory.device.type, got.trajectory.shape) == ("meta", (2, 5, 3))
    assert got.x.device.type == DEVICE.type


def test_moments_are_those_of_the_trajectory() -> None:
    got = sample(
        quartic, 5 + normals(6, 2, 3), Langevin(0.01), 50, seed=7, keep_every=1, moments=True
    )
    assert got.trajectory is not None
    states = got.trajectory.double().cpu().numpy()
    np.testing.assert_allclose(got.stats.mean.cpu(), states.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got.stats.var.cpu(), states.var(0, ddof=1), rtol=1e-4)


def test_statistics_are_those_of_each_chain() -> None:
    x0, rule = normals(20, 3), AniLA(1.5, 0.3)
    got = sample(quartic, x0, rule, 8, seed=7, keep_every=1, burn_in=2)
    assert got.trajectory is not None
    before = sample(quartic, x0, rule, 2, seed=7).x
    states = torch.stack([before, *got.trajectory[:-1]]).double()  # where gradients were taken
    norms = (states**3).flatten(2).norm(dim=2)
    gamma = (1.5 / norms).clamp(max=1)
    for have, want in (
        (got.stats.grad_norm, norms.mean(0)),
        (got.stats.gamma, gamma.mean(0)),
        (got.stats.clipped, (gamma < 1).double().mean(0)),
        (got.stats.energy, quartic(states[-1])),
    ):
        torch.testing.assert_close(have, want.float(), rtol=1e-5, atol=1e-6)
    assert 0 < float(got.stats.clipped.mean()) < 1
    assert got.stats.first_bad_step.eq(-1).all()
    assert not got.stats.restarts.any()


def test_the_energy_is_evaluated_once_a_step() -> None:
    energy = Poisoned({})
    sample(energy, normals(4, 3), RULE, 7, seed=1, burn_in=2, keep_every=1, moments=True)
    assert energy.calls == 9


def test_no_steps_give_back_the_start() -> None:
    x0, noise = normals(4, 3), Noise(1, step=3)
    energy = Poisoned({})
    got = sample(energy, x0, RULE, 0, seed=noise, keep_every=1)
    assert_same_bits(got.x, x0)
    assert got.x.data_ptr() != x0.data_ptr()
    assert (energy.calls, noise.step) == (0, 3)
    assert got.trajectory is not None
    assert got.trajectory.shape == (0, 4, 3)
    run = sample(energy, got.state, RULE, 5)
    assert_same_bits(run.x, sample(quadratic, x0, RULE, 5, seed=Noise(1, step=3)).x)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_nothing_to_sample(shape: tuple[int, ...]) -> None:
    """No chains, or none of any length: the documented shapes, and the noise moves on."""
    got = sample(quadratic, torch.zeros(shape), RULE, 6, seed=1, keep_every=2)
    assert got.x.shape == shape
    assert got.trajectory is not None
    assert got.trajectory.shape == (3, *shape)
    assert got.stats.grad_norm.shape == shape[:1]
    assert got.state.noise.step == 6  # in step with the other shards of a batch


def test_progress_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    got = sample(quartic, normals(4, 3), RULE, 5, seed=1, progress="drawing digits")
    assert_same_bits(got.x, sample(quartic, normals(4, 3), RULE, 5, seed=1).x)
    assert "drawing digits" in capsys.readouterr().err


# ---- seeds --------------------------------------------------------------------------------------


def test_seeds_of_every_kind() -> None:
    """int, Generator, Noise and None give the noise that `Noise` of the same gives."""
    x0 = normals(6, 3)

    def run(seed: Any) -> Tensor:
        return sample(quartic, x0, RULE, 5, seed=seed).x

    before = torch.get_rng_state()
    assert_same_bits(run(9), run(Noise(9)))
    first, second = (torch.Generator().manual_seed(4) for _ in range(2))
    assert_same_bits(run(first), run(Noise(second)))
    assert torch.equal(torch.get_rng_state(), before)

    torch.manual_seed(3)
    first, second = run(None), run(None)
    torch.manual_seed(3)
    assert_same_bits(run(Noise()), first)
    assert_same_bits(run(Noise()), second)
    assert not same_bits(first, second)


def test_a_noise_is_advanced_by_the_steps_and_a_fixed_one_is_not() -> None:
    x0, noise = normals(6, 3), Noise(9, stream=16, first_chain=2, step=5)
    fixed = noise.at(5)
    first = sample(quartic, x0, RULE, 3, burn_in=1, seed=noise).x
    assert noise.step == 9
    second = sample(quartic, x0, RULE, 4, seed=noise).x
    assert not same_bits(first, second)
    for _ in range(2):
        assert_same_bits(sample(quartic, x0, RULE, 4, seed=fixed).x, first)
    assert fixed.step == 5


def test_noise_on_a_device_samples_the_same() -> None:
    """Its step is then known to a tensor there alone, which the run advances."""
    x0, noise = normals(6, 3), on_a_device(Noise(2**64 - 5, 32, step=9))
    got = sample(quartic, x0, AniLA(1.0, 0.1), 4, seed=noise, burn_in=2)
    want = sample(quartic, x0, AniLA(1.0, 0.1), 4, seed=Noise(2**64 - 5, 32, step=9), burn_in=2)
    assert_same_bits(got.x, want.x)
    assert noise.step == 15
    assert_same_bits(*(sample(quartic, s.state, AniLA(1.0, 0.1), 3).x for s in (got, want)))


def test_shards_are_rows_of_the_whole() -> None:
    """For an element-wise energy, chain i is the same in any part of the batch."""
    x0 = normals(30, 3)
    whole = sample(quartic, x0, RULE, 5, seed=Noise(9)).x
    for first, last in ((0, 7), (7, 8), (8, 30)):
        part = sample(quartic, x0[first:last], RULE, 5, seed=Noise(9, first_chain=first)).x
        assert_same_bits(part, whole[first:last])


# ---- chains that leave the finite numbers -------------------------------------------------------


@pytest.fixture(params=["energy", "gradient"])
def what(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_raise_names_step_chains_and_remedy(what: str) -> None:
    energy = Poisoned({2: (3, what), 5: (3, what)})
    with pytest.raises(NonFiniteError, match=r"2 chains \(2, 5\).*step 3.*step_size") as caught:
        sample(energy, normals(8, 3), RULE, 9, seed=1, burn_in=1, keep_every=1, check_every=1)
    assert (caught.value.step, caught.value.chains) == (3, [2, 5])
    samples = caught.value.samples
    assert samples is not None
    assert samples.trajectory is not None
    clean = sample(quadratic, normals(8, 3), RULE, 2, seed=1, burn_in=1, keep_every=1)
    assert_same_bits(samples.trajectory, clean.trajectory)
    assert samples.stats.first_bad_step.tolist() == [-1, -1, 3, -1, -1, 3, -1, -1]


def test_raise_waits_for_its_check() -> None:
    """Every so many steps and at the end; a chain that recovered meanwhile is still named."""
    for steps, calls in ((12, 10), (8, 8)):
        energy = Poisoned({2: (7, "energy")})
        with pytest.raises(NonFiniteError) as caught:
            sample(energy, normals(8, 3), RULE, steps, seed=1, check_every=5)
        assert (energy.calls, caught.value.step, caught.value.chains) == (calls, 7, [2])


@pytest.mark.parametrize("check_every", [1, 4])
def test_freeze_keeps_the_last_finite_state(check_every: int, what: str) -> None:
    """At once, whatever check_every; the other chains are those of a clean run, bit by bit."""
    x0, options = normals(8, 3), {"seed": 1, "keep_every": 1, "check_every": check_every}
    clean = sample(quadratic, x0, RULE, 9, **options)  # type: ignore[arg-type]
    energy = Poisoned({2: (3, what), 5: (6, what)})
    got = sample(energy, x0, RULE, 9, on_nonfinite="freeze", **options)  # type: ignore[arg-type]
    assert got.trajectory is not None
    assert clean.trajectory is not None
    want = clean.trajectory.clone()
    want[3:, 2], want[6:, 5] = want[2, 2], want[5, 5].clone()
    assert_same_bits(got.trajectory, want)
    assert_same_bits(got.x, want[-1])
    assert got.stats.first_bad_step.tolist() == [-1, -1, 3, -1, -1, 6, -1, -1]
    assert got.state.frozen.nonzero().flatten().tolist() == [2, 5]
    # Frozen chains stay where they are in a continued run, the others go on.
    more = sample(quadratic, got.state, RULE, 2, on_nonfinite="freeze")
    longer = sample(quadratic, x0, RULE, 11, seed=1).x
    longer[2], longer[5] = got.x[2], got.x[5]
    assert_same_bits(more.x, longer)


def test_a_chain_that_is_bad_from_the_start_is_frozen_there() -> None:
    x0 = normals(4, 3)
    got = sample(Poisoned({1: (0, "gradient")}), x0, RULE, 3, seed=1, on_nonfinite="freeze")
    assert_same_bits(got.x[1], x0[1])
    assert got.x.isfinite().all()


@pytest.mark.parametrize("check_every", [1, 4])
def test_reinit_goes_back_to_the_start(check_every: int) -> None:
    """At the check after the bad step, to x0; the others are those of a clean run."""
    x0, options = normals(8, 3), {"seed": 1, "keep_every": 1, "check_every": check_every}
    clean = sample(quadratic, x0, RULE, 9, **options)  # type: ignore[arg-type]
    energy = Poisoned({2: (4, "gradient")})
    got = sample(energy, x0, RULE, 9, on_nonfinite="reinit", **options)  # type: ignore[arg-type]
    assert got.trajectory is not None
    assert clean.trajectory is not None
    back = 4 if check_every == 1 else 7  # the step after which row 2 is x0 again
    others = torch.arange(8) != 2
    assert_same_bits(got.trajectory[:, others], clean.trajectory[:, others])
    assert_same_bits(got.trajectory[:4, 2], clean.trajectory[:4, 2])
    assert got.trajectory[4:back, 2].isnan().all()
    assert_same_bits(got.trajectory[back, 2], x0[2])
    own = Noise(1, first_chain=2, step=back + 1)
    again = sample(quadratic, x0[2:3], RULE, 8 - back, seed=own, keep_every=1)
    assert again.trajectory is not None
    assert_same_bits(got.trajectory[back + 1 :, 2], again.trajectory[:, 0])
    assert got.stats.restarts.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert got.stats.first_bad_step.tolist() == [-1, -1, 4, -1, -1, -1, -1, -1]


def test_reinit_gives_up() -> None:
    """A start from which every step is bad is an error after 10 restarts."""

    def broken(x: Tensor) -> Tensor:
        return quadratic(x) * torch.where(torch.arange(len(x)) == 1, torch.inf, 1.0)

    with pytest.raises(NonFiniteError, match="again after 10 restarts") as caught:
        sample(broken, normals(3, 2), RULE, 50, seed=1, on_nonfinite="reinit", check_every=1)
    assert (caught.value.step, caught.value.chains) == (10, [1])


def test_a_large_energy_is_not_a_bad_chain() -> None:
    """Energies whose sum overflows are looked at one by one."""
    got = sample(lambda x: quadratic(x) + 3e38, normals(8, 3), RULE, 3, seed=1)
    assert_same_bits(got.x, sample(quadratic, normals(8, 3), RULE, 3, seed=1).x)


@pytest.mark.parametrize("policy", ["raise", "freeze", "reinit"])
def test_a_stiff_energy_leaves_by_itself(policy: str) -> None:
    """No injection: a quartic energy from far out overflows at a step that is too large."""
    x0 = normals(6, 3)
    x0[4] = 40.0
    clean = sample(quartic, x0[:4], Langevin(0.01), 12, seed=1).x
    if policy == "raise":
        with pytest.raises(NonFiniteError) as caught:
            sample(quartic, x0, Langevin(0.01), 12, seed=1)
        assert caught.value.chains == [4]
        return
    got = sample(quartic, x0, Langevin(0.01), 12, seed=1, on_nonfinite=policy)  # type: ignore[arg-type]
    assert_same_bits(got.x[:4], clean)
    assert got.x.isfinite().all()
    assert got.stats.first_bad_step[4] > 0


# ---- energies -----------------------------------------------------------------------------------


def test_a_column_of_energies_is_a_row_of_them() -> None:
    x0 = normals(6, 3)
    column = sample(lambda x: quartic(x)[:, None], x0, RULE, 3, seed=1)
    row = sample(quartic, x0, RULE, 3, seed=1)
    assert_same_bits(column.x, row.x)
    assert_same_bits(column.stats.energy, row.stats.energy)


@pytest.mark.parametrize(
    ("energy", "error", "message"),
    [
        (lambda x: quadratic(x).sum(), EnergyError, r"shape \(\).*\(4,\)"),
        (lambda x: quadratic(x)[1:], EnergyError, r"shape \(3,\)"),
        (lambda x: x, EnergyError, r"shape \(4, 3\)"),
        (lambda x: quadratic(x)[None], EnergyError, r"shape \(1, 4\)"),
        (lambda x: None, EnergyError, "returned a NoneType"),
        (lambda x: quadratic(x).sum().item(), EnergyError, "returned a float"),
        (lambda x: (quadratic(x), 1), EnergyError, "returned a tuple"),
        (lambda x: quadratic(x).long(), EnergyError, "torch.int64"),
        (lambda x: quadratic(x).to(torch.complex64), EnergyError, "torch.complex64"),
        (lambda x: quadratic(x).detach(), GradientError, "depend on its input"),
        (lambda x: torch.zeros(4), GradientError, "depend on its input"),
        (lambda x: torch.zeros(4, requires_grad=True) + 1, GradientError, "depend on its input"),
    ],
)
def test_an_energy_that_is_none(
    energy: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    x0 = normals(4, 3)
    before = x0.clone()
    with pytest.raises(error, match=message):
        sample(energy, x0, RULE, 3, seed=1)
    assert_same_bits(x0, before)


def test_one_chain_wants_one_value_not_a_scalar() -> None:
    with pytest.raises(EnergyError, match=r"shape \(\)"):
        sample(lambda x: quadratic(x).sum(), normals(1, 3), RULE, 3, seed=1)


def test_an_energy_that_raises_is_named_and_the_run_kept() -> None:
    calls = []

    def failing(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyError("no such class")
        return quadratic(x)

    x0 = normals(4, 3)
    with pytest.raises(EnergyError, match="KeyError in step 4") as caught:
        sample(failing, x0, RULE, 9, seed=1, keep_every=2)
    assert isinstance(caught.value.__cause__, KeyError)
    samples = caught.value.samples
    assert samples is not None
    clean = sample(quadratic, x0, RULE, 9, seed=1, keep_every=2)
    assert clean.trajectory is not None
    assert_same_bits(samples.trajectory, clean.trajectory[:2])
    assert_same_bits(sample(quadratic, samples.state, RULE, 5).x, clean.x)


def test_an_interrupt_gives_what_there_is_and_the_run_goes_on() -> None:
    """An interrupt inside the energy: what was drawn, and a state that ends where it would have."""
    calls = []

    def energy(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return quadratic(x)

    x0 = normals(4, 3)
    with pytest.raises(SamplingInterrupted, match="after 5 steps") as caught:
        sample(energy, x0, AniLA(1.0), 9, seed=1, keep_every=1)
    samples = caught.value.samples
    whole = sample(quadratic, x0, AniLA(1.0), 9, seed=1, keep_every=1)
    assert whole.trajectory is not None
    assert_same_bits(samples.trajectory, whole.trajectory[:5])
    rest = sample(quadratic, samples.state, AniLA(1.0), 9 - samples.state.step, keep_every=1)
    assert_same_bits(rest.trajectory, whole.trajectory[5:])
    assert isinstance(caught.value, KeyboardInterrupt)


class Signals:
    """The quadratic energy, in whose fourth call Ctrl-C is pressed so many times."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        for _ in range(self.times if self.calls == 4 else 0):
            signal.raise_signal(signal.SIGINT)
        return quadratic(x)


def test_ctrl_c_twice_stops_at_once(handler: Callable[..., Any]) -> None:
    """In the middle of a step, perhaps, so there is no state to go on from."""
    with pytest.raises(KeyboardInterrupt) as caught:
        sample(Signals(2), normals(4, 3), RULE, 9, seed=1)
    assert type(caught.value) is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_lets_the_step_end(handler: Callable[..., Any]) -> None:
    """The state is that of whole steps, and the handler is back in place."""
    times, steps = 1, 4
    x0 = normals(4, 3)
    with pytest.raises(SamplingInterrupted, match=f"after {steps} steps") as caught:
        sample(Signals(times), x0, RULE, 9, seed=1)
    assert signal.getsignal(signal.SIGINT) is handler
    state = caught.value.samples.state
    assert (state.step, state.noise.step) == (steps, steps)
    whole = sample(quadratic, x0, RULE, 9, seed=1)
    assert_same_bits(sample(quadratic, state, RULE, 9 - steps).x, whole.x)


def test_ctrl_c_is_left_to_who_handles_it(handler: Callable[..., Any]) -> None:
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    got = sample(Signals(2), normals(4, 3), RULE, 9, seed=1)
    assert (got.state.step, len(heard)) == (9, 2)


# ---- networks -----------------------------------------------------------------------------------


class Network(nn.Module):
    """A convolutional energy with everything that sampling could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, padding=1)),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(8 * 8 * 8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.body(x)
        return value


@pytest.fixture
def network() -> Network:
    torch.manual_seed(1)
    net = Network()
    net(normals(16, 3, 8, 8))  # statistics that are not those of a fresh network
    return net


def _everything(net: nn.Module) -> dict[str, Any]:
    tensors = {k: v.clone() for k, v in net.state_dict().items()}
    grads = {k: (p.requires_grad, p.grad) for k, p in net.named_parameters()}
    return tensors | grads | {f"{k} mode": m.training for k, m in net.named_modules()}


@pytest.mark.parametrize("caller", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("end", ["well", "in an error", "interrupted"])
def test_sampling_leaves_no_trace(network: Network, end: str, caller: Any) -> None:
    """Parameters, gradients, modes, buffers, x0, global state: as before, however it ends."""
    network.body[1].eval()  # a module that was in eval mode stays in it
    network.body[5].weight.requires_grad_(False)
    network.body[5].bias.grad = torch.ones(1)
    seen: list[tuple[bool, bool, bool]] = []

    def stop(*_: Any) -> None:
        training = any(m.training for m in network.modules())
        learning = any(p.requires_grad for p in network.parameters())
        seen.append((training, learning, torch.is_grad_enabled()))
        if len(seen) == 3 and end != "well":
            raise (KeyboardInterrupt if end == "interrupted" else ValueError)("stop")

    network.register_forward_pre_hook(stop)
    x0 = normals(4, 3, 8, 8).requires_grad_()
    before, values = _everything(network), x0.detach().clone()
    rng = torch.get_rng_state()
    with caller():
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        try:
            result = sample(network, x0, RULE, 4, seed=1)
        except (EnergyError, SamplingInterrupted) as error:
            result = cast(Samples, error.samples)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    after = _everything(network)
    assert seen[:2] == [(False, False, True)] * 2
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = same_bits(value, after[key]) if isinstance(value, Tensor) else value == after[key]
        assert same, key
    assert_same_bits(x0, values)
    assert (x0.grad, x0.requires_grad, x0._version) == (None, True, 0)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.get_default_dtype() == torch.float32
    assert not torch.is_autocast_enabled("cpu")
    assert not result.x.requires_grad
    assert not result.x.is_inference()  # it can be trained on
    if end == "well":
        assert_same_bits(result.x, sample(network, values, RULE, 4, seed=1).x)
    assert result.state.step == (4 if end == "well" else 2)


def test_bfloat16_autocast_keeps_the_state_in_float32(network: Network) -> None:
    dtypes = set()
    network.body[4].register_forward_hook(lambda *args: dtypes.add(args[2].dtype))
    x0 = normals(4, 3, 8, 8)
    got = sample(network, x0, Langevin(0.01), 5, seed=1, autocast=torch.bfloat16)
    wide = sample(network, x0, Langevin(0.01), 5, seed=1)
    assert dtypes == {torch.bfloat16, torch.float32}
    assert got.x.dtype == got.stats.energy.dtype == torch.float32
    assert not same_bits(got.x, wide.x)
    torch.testing.assert_close(got.x, wide.x, rtol=0, atol=1e-3)
    assert not torch.is_autocast_enabled("cpu")


def test_the_caller_may_have_autocast_on(network: Network) -> None:
    """Then the energy runs under it, the update does not, and it is still on afterwards."""
    x0 = normals(4, 3, 8, 8)
    asked = sample(network, x0, Langevin(0.01), 3, seed=1, autocast=torch.bfloat16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        got = sample(network, x0, Langevin(0.01), 3, seed=1)
        assert torch.is_autocast_enabled(DEVICE.type)
    assert_same_bits(got.x, asked.x)


def test_channels_last_is_chosen_for_convolutions_and_changes_no_noise(network: Network) -> None:
    layouts = []
    network.register_forward_pre_hook(
        lambda _, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    x0 = normals(4, 3, 8, 8)
    chosen, plain, asked = (
        sample(network, x0, Langevin(0.01), 5, seed=1, channels_last=choice)
        for choice in (None, False, True)
    )
    assert layouts == [True] * 5 + [False] * 5 + [True] * 5
    assert_same_bits(chosen.x, asked.x)
    assert chosen.x.is_contiguous()
    torch.testing.assert_close(chosen.x, plain.x, rtol=1e-5, atol=1e-5)


def test_a_state_in_channels_last_is_a_state(network: Network) -> None:
    x0 = normals(4, 3, 8, 8)
    want = sample(network, x0, RULE, 3, seed=1).x
    got = sample(network, x0.contiguous(memory_format=torch.channels_last), RULE, 3, seed=1).x
    assert_same_bits(got, want)


def test_the_gradient_pass_gives_value_and_gradient(network: Network) -> None:
    """Both detached, and right, where the network is left in the caller's hands."""
    network.eval()
    x = normals(4, 3, 8, 8)
    value, grad = EnergyGradient(network)(x)
    leaf = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    want = network(leaf)
    assert_same_bits(value, want.detach()[:, 0])
    assert_same_bits(grad, torch.autograd.grad(want.sum(), leaf)[0])
    assert not value.requires_grad
    assert not grad.requires_grad


# ---- memory -------------------------------------------------------------------------------------


def test_a_trajectory_that_cannot_fit_is_refused_before_the_first_step() -> None:
    energy, noise = Poisoned({}), Noise(1)
    with pytest.raises(MemoryError, match=r"\(1000000000000, 4, 3\).*44703.5 GiB.*keep_every"):
        sample(energy, normals(4, 3), RULE, 10**12, seed=noise, keep_every=1)
    assert (energy.calls, noise.step) == (0, 0)


def test_threads_that_share_a_module_leave_it_as_it_was() -> None:
    """The first to finish must not wake dropout in the chains of the other."""
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1)).train()
    modes: list[bool] = []
    net.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    alone = sample(net, normals(4, 3), RULE, 60, seed=1).x
    results: dict[int, Tensor] = {}

    def draw(steps: int) -> None:
        results[steps] = sample(net, normals(4, 3), RULE, steps, seed=1).x

    threads = [threading.Thread(target=draw, args=(n,)) for n in (5, 20, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(modes)
    assert_same_bits(results[60], alone)
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad for p in net.parameters())


def test_an_energy_that_is_a_view_of_the_state_is_copied() -> None:
    x0 = normals(4, 3)
    got = sample(lambda x: x[:, 0], x0, RULE, 1, seed=0)
    assert_same_bits(got.stats.energy, x0[:, 0])


@pytest.mark.parametrize("cut", [2, 5, 9])
def test_a_run_with_restarts_continues_exactly(cut: int) -> None:
    """The chain goes back to its first state, not to the one it was continued from."""

    def cliff(x: Tensor) -> Tensor:  # beyond 2.5 there is nothing
        return torch.where(x[:, 0] > 2.5, torch.nan, -2 * x[:, 0] + x[:, 1:].square().sum(1))

    rule, x0 = Langevin(0.5), normals(6, 3)
    options: dict[str, Any] = {"on_nonfinite": "reinit", "check_every": 1}
    whole = sample(cliff, x0, rule, 12, seed=1, **options)
    assert whole.stats.restarts.sum() > 3
    part = sample(cliff, x0, rule, cut, seed=1, **options)
    rest = sample(cliff, part.state, rule, 12 - cut, **options)
    assert_same_bits(rest.x, whole.x)
    assert torch.equal(rest.stats.restarts, whole.stats.restarts)


def test_a_frozen_chain_stays_frozen_when_continued() -> None:
    def wall(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 1, torch.nan, -x[:, 0])

    part = sample(wall, torch.zeros(8, 2), Langevin(0.5), 3, seed=1, on_nonfinite="freeze")
    frozen = part.state.frozen
    assert 0 < frozen.sum() < 8
    rest = sample(quadratic, part.state, Langevin(0.5), 5)
    assert_same_bits(rest.x[frozen], part.x[frozen])
    assert (rest.x[~frozen] != part.x[~frozen]).all()


def test_errors_travel_between_processes() -> None:
    error = NonFiniteError("gone", step=3, chains=[1, 2])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.step, again.chains) == ("gone", 3, [1, 2])
    assert str(pickle.loads(pickle.dumps(SamplingInterrupted("after 3")))) == "after 3"
