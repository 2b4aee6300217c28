"""`Noise`: what a position promises, and that what it gives is normal and independent."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from copy import copy as shallow_copy, deepcopy
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from langevin_ext import Noise, Purpose, langevin_step, langevin_step_
from langevin_ext.errors import NoiseError, ShapeError

from .conftest import CPU, DEVICE, ON_CPU, assert_same_bits, normals, on_a_device, places, same_bits

LAST_STEP, LAST_STREAM, LAST_CHAIN, LAST_SEED = 2**48 - 1, 2**16 - 1, 2**32 - 1, 2**64 - 1


def step_zeros(noise: Noise, *shape: int, **options: Any) -> Tensor:
    """A step that leaves nothing but its noise in the state."""
    zero = torch.zeros(shape)
    return langevin_step_(zero, zero.clone(), drift=1.0, diffusion=1.0, noise=noise, **options)


# ---- a position ---------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [langevin_step, langevin_step_])
def test_every_step_consumes_one_position(step: Callable[..., Tensor]) -> None:
    noise = Noise(1, step=41)
    step(torch.zeros(2, 3), torch.zeros(2, 3), drift=1.0, diffusion=1.0, noise=noise)
    assert noise.step == 42
    step(torch.zeros(2, 3), torch.zeros(2, 3), drift=1.0, diffusion=0.0, noise=noise)
    assert noise.step == 43  # drawn from or not


def test_normal_shows_what_the_next_step_uses_and_consumes_nothing(backend: str) -> None:
    noise = Noise(7, stream=3, first_chain=11, step=5)
    shown = noise.normal((6, 2, 9), backend=backend)
    assert_same_bits(noise.normal((6, 2, 9), backend=backend), shown)
    assert_same_bits(step_zeros(noise, 6, 2, 9, backend=backend), shown)
    assert not same_bits(noise.normal((6, 2, 9), backend=backend), shown)


def test_wider_noise_is_the_same_noise() -> None:
    noise = Noise(7)
    wide = noise.normal((5, 9), dtype=torch.float64)
    assert_same_bits(wide, noise.normal((5, 9)).double())


def test_a_fixed_copy_repeats_itself() -> None:
    noise = Noise(1, stream=2, first_chain=3, step=4)
    fixed = noise.at(9)
    first, again = step_zeros(fixed, 4, 5), step_zeros(fixed, 4, 5)
    assert_same_bits(first, again)
    assert (fixed.fixed, noise.fixed) == (True, False)
    assert (places(fixed), places(noise)) == ((1, 2, 3, 9), (1, 2, 3, 4))
    noise.advance(5)
    assert_same_bits(step_zeros(noise, 4, 5), first)


def test_copies_are_free_and_independent() -> None:
    noise = Noise(1, stream=32, first_chain=3, step=4)
    copies = noise.clone(), noise.shard(8), noise.purpose(Purpose.ACCEPT)
    for copy in copies:
        copy.advance()
    assert [places(c) for c in (noise, *copies)] == [
        (1, 32, 3, 4),
        (1, 32, 3, 5),
        (1, 32, 8, 5),
        (1, 34, 3, 5),
    ]
    fixed = noise.at(9)
    assert all(copy.fixed for copy in (fixed.shard(8), fixed.purpose(1), fixed.to(DEVICE)))
    assert not fixed.clone().fixed


def test_a_view_stays_ahead_and_never_advances() -> None:
    noise = Noise(1, stream=16, first_chain=3, step=4)
    view = noise.ahead(5)
    assert (places(view), view.fixed) == ((1, 16, 3, 9), True)
    shown = view.normal((4, 5))
    assert_same_bits(step_zeros(view, 4, 5), shown)
    noise.advance(2)
    assert places(view) == (1, 16, 3, 11)
    assert places(view.ahead(1)) == (1, 16, 3, 12)
    assert_same_bits(step_zeros(view.clone(), 4, 5), noise.at(11).normal((4, 5)))
    with pytest.raises(NoiseError, match="steps"):
        view.ahead(LAST_STEP)
    assert noise.step == 6


@pytest.mark.parametrize(
    "duplicate", [shallow_copy, deepcopy, lambda n: pickle.loads(pickle.dumps(n))]
)
def test_copies_of_the_standard_library_are_independent(
    duplicate: Callable[[Noise], Noise],
) -> None:
    for noise in (Noise(2**64 - 1, 48, 7, 2**40), Noise(1).at(3), Noise(1, approximate=True)):
        twin = duplicate(noise)
        assert twin == noise
        twin.advance()
        assert twin.step == noise.step + (not noise.fixed)
        assert_same_bits(
            step_zeros(twin, 2, 5), twin.at(twin.step - 1 + noise.fixed).normal((2, 5))
        )


def test_noise_whose_step_is_on_a_device_is_the_same_noise() -> None:
    """There only the tensor knows seed and step."""
    here = Noise(2**64 - 3, 16, 5, 2**33)
    there = on_a_device(here)
    for move in (
        lambda n: n,
        Noise.clone,
        lambda n: n.at(7),
        lambda n: n.ahead(3),
        lambda n: n.ahead(3).ahead(2),
        lambda n: n.ahead(3).clone(),
        lambda n: n.purpose(Purpose.ACCEPT),
        lambda n: n.shard(9),
        lambda n: n.to("cpu"),
    ):
        a, b = move(here), move(there)
        assert (a, a.state_dict()) == (b, b.state_dict())
        assert_same_bits(step_zeros(a, 3, 6), step_zeros(b, 3, 6))
        assert a.step == b.step
    assert here == there
    there.load_state_dict(Noise(4, step=2**48 - 1).state_dict())
    assert places(there) == (4, 0, 0, 2**48 - 1)


def test_loading_does_not_depend_on_modes() -> None:
    """A mode that makes other tensors does not make another position."""
    state = Noise(2**64 - 2, step=9)
    for mode in (FakeTensorMode(), torch.device("meta")):
        with mode:
            noise = Noise(3)
            noise.load_state_dict(state.state_dict())
            assert noise == deepcopy(state) == state


def test_noise_made_in_inference_mode_lasts() -> None:
    with torch.inference_mode():
        here = Noise(1)
        copies = here, here.clone(), on_a_device(here).clone(), here.at(2), here.to(DEVICE)
    for noise in copies:
        noise.by_reference().origin.add_(0)  # type: ignore[union-attr]
        noise.advance()


def test_loading_a_state_keeps_the_memory_that_graphs_hold() -> None:
    noise = Noise(1)
    memory = noise.by_reference().origin
    noise.load_state_dict(Noise(2**64 - 2, step=9).state_dict())
    assert noise.by_reference().origin is memory
    assert places(noise) == (2**64 - 2, 0, 0, 9)


def test_used_up_noise_loads_its_own_state() -> None:
    noise = Noise(1, step=LAST_STEP)
    noise.advance()
    other = Noise(2)
    other.load_state_dict(noise.state_dict())
    assert other == noise
    with pytest.raises(NoiseError, match="used up"):
        step_zeros(other, 1, 1)


def test_exact_and_approximate_noise_are_not_equal_but_the_same_on_a_cpu(backend: str) -> None:
    exact, approximate = Noise(3), Noise(3, approximate=True)
    assert exact != approximate
    assert "approximate" in repr(approximate)
    assert approximate.clone().purpose(1).approximate
    if ON_CPU:
        options = {"backend": backend}
        assert_same_bits(approximate.normal((3, 9), **options), exact.normal((3, 9), **options))


def test_purposes_and_seeds_and_steps_are_different_noise(backend: str) -> None:
    """No two positions that differ in one field agree in a single pair of neighbours."""
    noise = Noise(1, step=2**32 + 1)
    others = [noise.purpose(p) for p in Purpose if p] + [
        Noise(2, step=2**32 + 1),
        Noise(1 + 2**32, step=2**32 + 1),
        Noise(1, step=1),
        Noise(1, step=2**32 + 2),
        Noise(1, stream=16, step=2**32 + 1),
        Noise(1, first_chain=64, step=2**32 + 1),
    ]
    drawn = [n.normal((64, 8), backend=backend).view(torch.int64) for n in (noise, *others)]
    assert len(torch.cat(drawn).unique()) == (1 + len(others)) * 64 * 4


def test_a_stream_without_room_for_purposes_is_refused() -> None:
    with pytest.raises(NoiseError, match="stream=17"):
        Noise(1, stream=17).purpose(Purpose.MOMENTUM)


def test_state_dict_goes_through_json() -> None:
    noise = Noise(LAST_SEED, stream=48, first_chain=5, step=2**40)
    saved = json.dumps(noise.state_dict())
    restored = Noise(0)
    restored.load_state_dict(json.loads(saved))
    assert places(restored) == places(noise)
    assert_same_bits(restored.normal((2, 3)), noise.normal((2, 3)))


# ---- seeds --------------------------------------------------------------------------------------


def test_none_draws_one_int64_from_the_default_generator() -> None:
    torch.manual_seed(5)
    drawn = int(torch.empty((), dtype=torch.int64, device=CPU).random_())
    after = torch.get_rng_state()
    torch.manual_seed(5)
    assert Noise().seed == drawn
    assert torch.equal(torch.get_rng_state(), after)


def test_a_generator_draws_from_itself_alone() -> None:
    generator, twin = (torch.Generator().manual_seed(6) for _ in range(2))
    before = torch.get_rng_state()
    noises = Noise(generator), Noise(generator)
    number = torch.empty((), dtype=torch.int64, device=CPU)
    drawn = [int(number.random_(generator=twin)) for _ in range(2)]
    assert [n.seed for n in noises] == drawn
    assert torch.equal(generator.get_state(), twin.get_state())
    assert torch.equal(torch.get_rng_state(), before)


def test_an_int_seed_leaves_the_default_generator_alone() -> None:
    before = torch.get_rng_state()
    step_zeros(Noise(3), 4, 4)
    assert torch.equal(torch.get_rng_state(), before)


# ---- a chain's noise is its own -----------------------------------------------------------------


@pytest.mark.parametrize("cols", [1, 2, 3, 10, 64, 65, 4097])
def test_noise_does_not_depend_on_batch_or_shard(cols: int, backend: str) -> None:
    """Chain i of 600 has the bits of chain i alone, in half a batch, and in any shard."""
    chains = 600 if cols < 100 else 20
    noise = Noise(4, step=3)
    whole = noise.normal((chains, cols), backend=backend)
    for first, count in ((0, 1), (0, chains // 2), (7, 1), (13, chains - 13), (chains - 1, 1)):
        part = noise.shard(first).normal((count, cols), backend=backend)
        assert_same_bits(part, whole[first : first + count], (first, count))


@pytest.mark.parametrize("shape", [(600, 1), (600, 2), (600, 3), (600, 65), (20, 4097)])
def test_a_step_does_not_depend_on_batch_or_shard(shape: tuple[int, int], isa: str) -> None:
    chains, cols = shape
    whole = step_zeros(Noise(4), *shape, backend="native")
    for first, count in ((0, 1), (13, chains - 13), (chains - 1, 1)):
        part = step_zeros(Noise(4, first_chain=first), count, cols, backend="native")
        assert_same_bits(part, whole[first : first + count], (first, count))


def test_noise_does_not_depend_on_the_number_of_coordinates(backend: str) -> None:
    """Coordinate j of a long chain is coordinate j of a short one."""
    long = Noise(4).normal((3, 5000), backend=backend)
    for cols in (1, 2, 3, 4, 5, 63, 64, 65, 511, 513, 4096, 4097):
        assert_same_bits(Noise(4).normal((3, cols), backend=backend), long[:, :cols], cols)


@pytest.mark.parametrize("shape", [(9000, 1), (3000, 3), (400, 65), (40, 4097), (2, 20000)])
def test_noise_does_not_depend_on_threads(shape: tuple[int, int], isa: str) -> None:
    want = Noise(4).normal(shape, backend="native")
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        assert_same_bits(step_zeros(Noise(4), *shape, backend="native"), want, threads)
        assert_same_bits(Noise(4).normal(shape, backend="native"), want, threads)


def test_noise_counts_coordinates_not_memory(backend: str) -> None:
    """A state in channels_last order gets the values of a contiguous one."""
    x, grad = normals(2, 3, 4, 5), normals(2, 3, 4, 5, seed=1)
    options: dict[str, Any] = {"drift": 0.1, "diffusion": 1.0, "backend": backend}
    want = langevin_step(x, grad, noise=Noise(1), **options)
    last = x.contiguous(memory_format=torch.channels_last)
    got = langevin_step_(last, grad, noise=Noise(1), **options)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_same_bits(got, want)


# ---- nothing wraps around -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "last"),
    [
        ("seed", LAST_SEED),
        ("stream", LAST_STREAM),
        ("first_chain", LAST_CHAIN),
        ("step", LAST_STEP),
    ],
)
def test_the_last_value_works_and_the_next_is_refused(field: str, last: int, backend: str) -> None:
    fields = {"seed": 1} | {field: last}
    z = Noise(**fields).normal((1, 4), backend=backend)
    zero = Noise(**(fields | {field: 0})).normal((1, 4), backend=backend)
    assert not same_bits(z, zero)
    assert z.isfinite().all()
    for value in (last + 1, -1, True, 1.0, "1", math.nan):
        with pytest.raises(NoiseError, match=f"{field}=.*{value}"):
            Noise(**(fields | {field: value}))  # type: ignore[arg-type]


def test_the_last_step_works_and_the_next_is_refused(backend: str) -> None:
    """Before the state or the noise has been touched; a fixed copy of it can be drawn again."""
    noise = Noise(1, step=LAST_STEP)
    fixed = noise.at(LAST_STEP)
    x = step_zeros(noise, 2, 3, backend=backend)
    after, zero = x.clone(), torch.zeros(2, 3)
    with pytest.raises(NoiseError, match=r"2\*\*48"):
        langevin_step_(x, zero, drift=1.0, diffusion=1.0, noise=noise, backend=backend)
    assert_same_bits(x, after)
    assert_same_bits(step_zeros(fixed, 2, 3, backend=backend), x)


def test_no_move_leaves_the_noise() -> None:
    noise = Noise(1, step=LAST_STEP)
    for move, steps in ((noise.advance, 2), (noise.advance, -(2**48)), (noise.at, 2**48)):
        with pytest.raises(NoiseError):
            move(steps)
        assert noise.step == LAST_STEP


def test_the_last_chain_works_and_the_next_is_refused(backend: str) -> None:
    noise = Noise(1, first_chain=LAST_CHAIN - 2)
    z = noise.normal((3, 5), backend=backend)
    assert_same_bits(z[2:], Noise(1, first_chain=LAST_CHAIN).normal((1, 5), backend=backend))
    with pytest.raises(NoiseError, match=f"first_chain={LAST_CHAIN - 2} with 4 chains"):
        noise.normal((4, 5), backend=backend)
    with pytest.raises(NoiseError, match="4 chains"):
        step_zeros(noise, 4, 5, backend=backend)


def test_more_coordinates_than_noise_are_refused() -> None:
    Noise(1).position(1, 2**34)
    with pytest.raises(NoiseError, match=str(2**34 + 1)):
        Noise(1).position(1, 2**34 + 1)


def test_noise_without_a_chain_axis_is_refused() -> None:
    with pytest.raises(ShapeError, match="chains first"):
        Noise(1).normal(())


# ---- the law ------------------------------------------------------------------------------------

FALSE_ALARM = 1e-6  # of all the tests of one run of `check_law` together
BINS = 2**14


def check_law(noise: Noise, total: int, rows: int = 2000, cols: int = 1000) -> None:
    """Moments, Kolmogorov-Smirnov, tails and correlations of ``total`` normals, in a stream."""
    powers = torch.zeros(6, dtype=torch.float64)
    counts = torch.zeros(BINS, dtype=torch.float64)
    beyond = {4.0: 0, 5.0: 0}
    products: dict[str, list[float]] = {}  # their sum and their number
    before = None
    chunks = total // (rows * cols)
    for _ in range(chunks):
        z = noise.normal((rows, cols)).double()
        noise.advance()
        power = torch.ones_like(z)
        for k in range(6):
            power *= z
            powers[k] += power.sum()
        counts += torch.special.ndtr(z).histc(BINS, 0, 1)
        for bound in beyond:
            beyond[bound] += int((z.abs() > bound).sum())
        # A normal times an independent one has mean 0 and variance 1; so has (z^2 - 1) / sqrt(2).
        forms = {"z": z, "z^2": (z**2 - 1) / math.sqrt(2)}
        for name, f in forms.items():
            pairs = {"coordinate": (f[:, 1:], f[:, :-1]), "chain": (f[1:], f[:-1])}
            if before is not None:
                pairs["step"] = (f, before[name])
            for lag, (a, b) in pairs.items():
                entry = products.setdefault(f"{name} at the next {lag}", [0.0, 0.0])
                entry[0] += float((a * b).sum())
                entry[1] += a.numel()
        before = forms

    n = chunks * rows * cols
    alpha = FALSE_ALARM / (6 + 1 + len(beyond) + len(products))
    bound = stats.norm.isf(alpha / 2)
    moments = [float(stats.norm.moment(k)) for k in range(13)]
    for k in range(1, 7):
        deviation = math.sqrt((moments[2 * k] - moments[k] ** 2) / n)
        assert abs(float(powers[k - 1]) / n - moments[k]) < bound * deviation, f"moment {k}"
    cumulative = counts.cumsum(0) / n
    distance = float((cumulative - torch.arange(1, BINS + 1) / BINS).abs().max())
    assert distance < math.sqrt(math.log(2 / alpha) / (2 * n)), "Kolmogorov-Smirnov, DKW bound"
    for sigma, count in beyond.items():
        p = stats.binomtest(count, n, 2 * stats.norm.sf(sigma)).pvalue
        assert p > alpha, f"{count} of {n} beyond {sigma} sigma"
    for name, (product, number) in products.items():
        assert abs(product) < bound * math.sqrt(number), f"correlation of {name}"


def test_four_million_normals() -> None:
    """False alarms: 1e-6 for the whole family."""
    check_law(Noise(20231016), 4 * 10**6)


@pytest.mark.slow
def test_a_hundred_million_normals() -> None:
    """False alarms: 1e-6 for the whole family."""
    check_law(Noise(20231017, stream=16, step=2**32 - 20), 10**8)
