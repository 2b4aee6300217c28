"""Kinetic Langevin dynamics: each scheme has the exact law of its matrices, and order two.

On U = w^2 x^2 / 2 each of A, B and O is a matrix, and O adds a Gaussian; a scheme is their product.
What is said of laws is worked out here from those, or on a grid of phase space, and from nothing of
the library's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import linalg
from torch import Tensor

from langevin_ext import KineticLangevin, Noise, Purpose, sample
from langevin_ext.errors import (
    ArgumentError,
    EnergyError,
    NonFiniteError,
    SamplingInterrupted,
    ShapeError,
    StepSizeError,
)
from langevin_ext.samplers.kinetic import Scheme
from langevin_ext.testing import Checks

from .conftest import assert_same_bits, chains, normals

Array = npt.NDArray[np.float64]
SCHEMES: tuple[Scheme, ...] = ("baoab", "aboba", "obabo")
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def oscillators(*w: float) -> Callable[[Tensor], Tensor]:
    """U = sum_j w_j^2 x_j^2 / 2."""
    squares = torch.tensor(w, dtype=torch.float64) ** 2
    return lambda x: 0.5 * (squares.to(x.dtype) * x * x).sum(1)


def quartic(x: Tensor) -> Tensor:
    """Coordinates that depend on one another."""
    rows = x.flatten(1) if x.dim() > 1 else x[:, None]
    return 0.25 * rows.pow(4).sum(1) + 0.1 * rows.sum(1).square()


def free(x: Tensor) -> Tensor:
    return 0 * x.sum(1)


def initial(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normals to start from, float64."""
    return Noise(seed, stream=Purpose.INITIAL_STATE).normal(shape, dtype=torch.float64)


def begin(energy: Any, rule: KineticLangevin, x: Tensor, seed: int, v: Tensor | None = None) -> Any:
    """The state of fresh chains at x, with velocities v or in equilibrium."""
    state = sample(energy, x, rule, 0, seed=seed).state
    if v is None:
        return state
    return dataclasses.replace(state, chains=state.chains._replace(velocity=v.clone()))


# ---- what is exact: two by two matrices ---------------------------------------------------------


def parts(scheme: str, h: float, w: float, friction: float, temperature: float) -> Iterator[Any]:
    """The matrix that each letter applies to (x, v), and the covariance that it adds."""
    for letter in scheme:
        t = h / scheme.count(letter)
        c = math.exp(-friction * t)
        yield {
            "a": (np.array([[1.0, t], [0.0, 1.0]]), np.zeros((2, 2))),
            "b": (np.array([[1.0, 0.0], [-t * w * w, 1.0]]), np.zeros((2, 2))),
            "o": (np.diag([1.0, c]), np.diag([0.0, temperature * (1 - c * c)])),
        }[letter]


def one_step(scheme: str, h: float, w: float, friction: float, temperature: float = 1.0) -> Any:
    """(M, S): a step takes a law of mean m and covariance C to M m and M C M^T + S."""
    matrix, added = np.eye(2), np.zeros((2, 2))
    for part, noise in parts(scheme, h, w, friction, temperature):
        matrix, added = part @ matrix, part @ added @ part.T + noise
    return matrix, added


def stationary(*where: Any) -> Array:
    """C = M C M^T + S."""
    return np.asarray(linalg.solve_discrete_lyapunov(*one_step(*where)))


def after(steps: int, mean: Array, covariance: Array, *where: Any) -> tuple[Array, Array]:
    matrix, added = one_step(*where)
    for _ in range(steps):
        mean, covariance = matrix @ mean, matrix @ covariance @ matrix.T + added
    return mean, covariance


@pytest.mark.parametrize("h", [0.1, 0.5, 1.0, 1.9])
@pytest.mark.parametrize("friction", [0.01, 1.0, 30.0, math.inf])
def test_the_stationary_law_is_the_table(h: float, friction: float) -> None:
    """That of the module's docstring: no friction in it, and no <x v>."""
    for w, temperature in ((1.0, 1.0), (0.3, 2.0), (1.0, 0.1)):
        off = 1 / (1 - h * h * w * w / 4)
        for scheme, xx, vv in (("baoab", 1, 1 / off), ("aboba", 1, off), ("obabo", off, 1)):
            got = stationary(scheme, h, w, friction, temperature)
            want = temperature * np.diag([xx / w**2, vv])
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@each_scheme
@pytest.mark.parametrize("friction", [0.01, 1.0, 30.0, math.inf])
def test_stable_below_two(scheme: Scheme, friction: float) -> None:
    """h w < 2, whatever the friction: the matrix's eigenvalues, and chains."""

    def radius(h: float) -> float:
        return float(np.abs(np.linalg.eigvals(one_step(scheme, h, 1.0, friction)[0])).max())

    assert max(radius(h) for h in (0.1, 1.0, 1.5, 1.999)) < 1
    assert min(radius(h) for h in (2.001, 2.5)) > 1
    fatal = math.ceil(100 / math.log(radius(2.5)))  # e^100 is no float32
    x, energy = normals(8, 1), oscillators(1.0)
    assert (
        sample(energy, x, KineticLangevin(1.9, friction, scheme), fatal, seed=1).x.abs().max() < 50
    )
    with pytest.raises(NonFiniteError):
        sample(energy, x, KineticLangevin(2.5, friction, scheme), fatal, seed=1)


# ---- chains have that law -----------------------------------------------------------------------


def check_law(checks: Checks, x: Tensor, v: Tensor, mean: Array, covariance: Array) -> None:
    """Three tests: (x, v) is Gaussian with these moments, both of its whitened coordinates."""
    z = torch.stack([x, v]).double().cpu().numpy() - mean[:, None]
    white = np.linalg.solve(np.linalg.cholesky(covariance), z)
    checks.gaussian(white[0], 0, 1, what="x")
    checks.gaussian(white[1], 0, 1, what="v given x")
    checks.uncorrelated(white[0], white[1], what="x, v")


SETTINGS = ((0.3, 0.1, 1.0), (1.2, 1.0, 2.0), (0.7, 8.0, 0.3), (0.9, math.inf, 1.0))
"""Step size, friction and temperature, each for a share of the chains."""
FREQUENCIES = (0.4, 1.0, 1.5)
"""Of a chain's coordinates."""


def places(scheme: Scheme, n: int) -> tuple[KineticLangevin, list[Any]]:
    """A rule that has every setting, and for each setting and frequency the law's arguments and
    where its n chains are."""
    each = torch.tensor(SETTINGS, dtype=torch.float64).repeat_interleave(n, 0).T
    found = [
        ((scheme, h, w, friction, temperature), (slice(i * n, (i + 1) * n), j))
        for i, (h, friction, temperature) in enumerate(SETTINGS)
        for j, w in enumerate(FREQUENCIES)
    ]
    return KineticLangevin(each[0], each[1], scheme, each[2]), found


@each_scheme
def test_chains_keep_the_stationary_law(scheme: Scheme, seed: int) -> None:
    """Positions and velocities together, over seven steps."""
    n = chains(20_000)
    rule, found = places(scheme, n)
    x, v = initial(2000 + seed, (2, 4 * n, 3))
    for where, at in found:
        sd = np.sqrt(np.diag(stationary(*where)))
        x[at] *= sd[0]
        v[at] *= sd[1]
    energy = oscillators(*FREQUENCIES)
    end = sample(energy, begin(energy, rule, x, 1000 + seed, v), rule, 7)
    checks = Checks(3 * len(found))
    for where, at in found:
        check_law(checks, end.x[at], end.state.chains.velocity[at], np.zeros(2), stationary(*where))


@each_scheme
@pytest.mark.parametrize("steps", [1, 5])
def test_chains_from_a_point_have_the_exact_law(scheme: Scheme, steps: int, seed: int) -> None:
    """With velocities in equilibrium: mean and covariance after so many steps."""
    n = chains(20_000)
    rule, found = places(scheme, n)
    energy = oscillators(*FREQUENCIES)
    x = torch.full((4 * n, 3), 1.5, dtype=torch.float64)
    end = sample(energy, x, rule, steps, seed=1000 + seed)
    checks = Checks(3 * len(found))
    for where, at in found:
        law = after(steps, np.array([1.5, 0.0]), np.diag([0.0, where[-1]]), *where)
        check_law(checks, end.x[at], end.state.chains.velocity[at], *law)


@pytest.mark.parametrize(
    ("stiffness", "h", "variance"), [(1, 0.5, 1.066667), (1, 1.0, 1.333333), (4, 0.5, 1.333333)]
)
def test_velocities_of_aboba(stiffness: int, h: float, variance: float, seed: int) -> None:
    """U = stiffness x^2 / 2: <v^2> is not 1, and <x^2> is that of exp(-U)."""
    w, n, rule = math.sqrt(stiffness), chains(40_000), KineticLangevin(h, 1.0, "aboba")
    assert stationary("aboba", h, w, 1.0)[1, 1] == pytest.approx(variance, abs=1e-6)
    x, v = initial(2000 + seed, (2, n, 1)) * torch.tensor([1 / w, variance**0.5])[:, None, None]
    end = sample(oscillators(w), begin(oscillators(w), rule, x, 1000 + seed, v), rule, 5)
    check_law(Checks(3), end.x[:, 0], end.state.chains.velocity[:, 0], np.zeros(2),
              np.diag([1 / stiffness, variance]))  # fmt: skip


def letters(
    scheme: Scheme, x: Tensor, v: Tensor, h: float, friction: float, temperature: float, steps: int,
    noise: Noise,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The scheme spelt out, a gradient at every B."""
    for _ in range(steps):
        fresh = [noise, noise.purpose(Purpose.SECOND_KICK)]
        for letter in scheme:
            t = h / scheme.count(letter)
            if letter == "a":
                x = x + t * v
            elif letter == "b":
                x = x.detach().requires_grad_()
                (grad,) = torch.autograd.grad(quartic(x).sum(), x)
                x, v = x.detach(), v - t * grad
            else:
                c = math.exp(-friction * t)
                xi = fresh.pop(0).normal(x.shape, dtype=x.dtype)
                v = c * v + math.sqrt(temperature * (1 - c * c)) * xi
        noise.advance()
    return x, v


@each_scheme
@pytest.mark.parametrize("shape", [(50,), (20, 3), (10, 2, 3)], ids=str)
@pytest.mark.parametrize("friction", [0.3, 4.0, math.inf])
def test_a_step_is_its_letters(scheme: Scheme, shape: tuple[int, ...], friction: float) -> None:
    """In order and with the same noise, off the harmonic; velocities start as sqrt(T) xi."""
    noise, x = Noise(5), normals(*shape, dtype=torch.float64)
    v = math.sqrt(0.7) * noise.purpose(Purpose.MOMENTUM).normal(shape, dtype=x.dtype)
    end = sample(quartic, x, KineticLangevin(0.2, friction, scheme, 0.7), 6, seed=5)
    want = letters(scheme, x, v, 0.2, friction, 0.7, 6, noise)
    torch.testing.assert_close(end.x, want[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end.state.chains.velocity, want[1], rtol=1e-12, atol=1e-12)


@each_scheme
def test_time_runs_backwards(scheme: Scheme) -> None:
    """Without friction, from the end with velocities reversed: back to the start."""
    x, v = normals(2, 30, 3, dtype=torch.float64)
    rule = KineticLangevin(0.1, 1e-100, scheme)
    there = sample(quartic, begin(quartic, rule, x, 1, v), rule, 50)
    turned = begin(quartic, rule, there.x, 2, -there.state.chains.velocity)
    back = sample(quartic, turned, rule, 50)
    assert (there.x - x).norm() > 1
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(back.state.chains.velocity, -v, rtol=0, atol=1e-12)


# ---- order two, on a grid of phase space --------------------------------------------------------


class PhaseSpace:
    """The exact law of a scheme on U = x^4 / 4, as a density on a grid of (x, v).

    A and B are shifts of lines of the grid, done to all digits by Fourier's transform, O is a
    matrix; nothing reaches the grid's ends.
    """

    SIZE, ENDS = 96, (4.5, 8.0)

    def __init__(self, scheme: Scheme, h: float, friction: float = 1.0) -> None:
        n = self.SIZE
        self.x, self.v = (end * (2 * np.arange(n) / n - 1) for end in self.ENDS)
        kx, kv = (2j * np.pi * np.fft.rfftfreq(n, 2 * end / n) for end in self.ENDS)
        self.letters: list[tuple[str, Array]] = []
        for letter in scheme:
            t = h / scheme.count(letter)
            c = math.exp(-friction * t)
            sd = math.sqrt(1 - c * c)
            z = (self.v[None] - c * self.v[:, None]) / sd
            width = self.v[1] - self.v[0]
            matrices = {
                "a": np.exp(-kx[:, None] * t * self.v[None]),
                "b": np.exp(kv[None] * t * self.x[:, None] ** 3),
                "o": np.exp(-0.5 * z * z) * width / (sd * math.sqrt(2 * math.pi)),
            }
            self.letters.append((letter, matrices[letter]))

    def law(self, energy: Callable[[Array], Array]) -> Array:
        """exp(-energy(x) - v^2 / 2)."""
        p = np.exp(-energy(self.x)[:, None] - self.v[None] ** 2 / 2)
        return np.asarray(p / p.sum())

    def after(self, steps: int, p: Array) -> Array:
        for _ in range(steps):
            for letter, matrix in self.letters:
                if letter == "o":
                    p = p @ matrix
                else:
                    axis = "ab".index(letter)
                    p = np.fft.irfft(np.fft.rfft(p, axis=axis) * matrix, self.SIZE, axis=axis)
        assert abs(p.sum() - 1) < 1e-7
        return p

    def mean(self, p: Array, f: Callable[[Array, Array], Array]) -> float:
        return float((p * f(self.x[:, None], self.v[None])).sum())


QUARTIC = 2 * math.gamma(0.75) / math.gamma(0.25)
"""<x^2> under exp(-x^4 / 4): 0.675978."""


@each_scheme
def test_halving_the_step_divides_the_error_by_four(scheme: Scheme) -> None:
    """<x^2> on the quartic well, in the exact stationary law."""
    assert pytest.approx(0.675978, abs=1e-6) == QUARTIC
    errors = []
    for h in (0.3, 0.15, 0.075):
        space = PhaseSpace(scheme, h)
        law = space.after(round(40 / h), space.law(lambda x: x**4 / 4))
        errors.append(abs(space.mean(law, lambda x, v: x * x) - QUARTIC))
    slopes = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert slopes == pytest.approx([2, 2], abs=0.2)


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "xx": lambda x, v: x * x,
    "xv": lambda x, v: x * v,
    "vv": lambda x, v: v * v,
    "xxxv": lambda x, v: x**3 * v,
    "xvvv": lambda x, v: x * v**3,
    "xxvv": lambda x, v: (x * v) ** 2,
}


@each_scheme
def test_chains_on_a_quartic_well_have_the_law_of_the_grid(scheme: Scheme, seed: int) -> None:
    """From N(0, 1/2), after one step and after ten."""
    n, h = chains(50_000), 0.3
    rule, space = KineticLangevin(h, 1.0, scheme), PhaseSpace(scheme, h)

    def well(x: Tensor) -> Tensor:
        return 0.25 * x.pow(4).sum(1)

    run: Any = math.sqrt(0.5) * initial(2000 + seed, (n, 1))
    p, checks = space.law(lambda x: x * x), Checks(12)
    for steps in (1, 9):
        end = sample(well, run, rule, steps, seed=None if steps > 1 else 1000 + seed)
        run, p = end.state, space.after(steps, p)
        for name, f in FUNCTIONS.items():
            moments = [space.mean(p, lambda x, v, k=k, f=f: f(x, v) ** k) for k in (1, 2, 3)]
            variance = moments[1] - moments[0] ** 2
            third = moments[2] - 3 * moments[0] * moments[1] + 2 * moments[0] ** 3
            got = f(end.x[:, 0], run.chains.velocity[:, 0])
            checks.mean(got, moments[0], variance, skewness=third / variance**1.5, what=name)


# ---- no force, no memory ------------------------------------------------------------------------


@each_scheme
def test_free_particles_diffuse(scheme: Scheme, seed: int) -> None:
    """Their mean square displacement, exactly; D = T / k as h tends to 0.

    Velocities half-way through a step are correlated by c = exp(-k h) from one to the next. Each
    moves OBABO for h; in the others the first and the last step's ends move it for h / 2.
    """
    n, h, steps = chains(20_000), 0.5, 12
    settings = [(0.2, 1.0), (1.0, 0.5), (6.0, 2.0), (math.inf, 1.0)]

    def displacement(h: float, friction: float, temperature: float, steps: int) -> float:
        moves = np.full(steps, h) if scheme == "obabo" else np.full(steps + 1, h)
        if scheme != "obabo":
            moves[[0, -1]] = h / 2
        lags = np.abs(np.subtract.outer(np.arange(len(moves)), np.arange(len(moves))))
        correlation = np.where(lags == 0, 1.0, np.exp(-np.where(lags == 0, 1, lags) * friction * h))
        return float(temperature * moves @ correlation @ moves)

    friction, temperature = torch.tensor(settings).repeat_interleave(n, 0).T
    rule = KineticLangevin(h, friction, scheme, temperature)
    x = sample(free, torch.zeros(4 * n, 1), rule, steps, seed=1000 + seed).x[:, 0]
    checks = Checks(4)
    for i, (k, t) in enumerate(settings):
        want = displacement(h, k, t, steps)
        checks.gaussian(x[i * n : (i + 1) * n], 0, want, what=(k, t))
        if math.isfinite(k):
            late, early = (displacement(0.05 / k, k, t, steps) for steps in (600, 300))
            assert (late - early) / (2 * 300 * 0.05 / k) == pytest.approx(t / k, rel=3e-4)


def test_infinite_friction_is_leimkuhler_and_matthews(seed: int) -> None:
    """BAOAB then is x - (h^2 / 2) grad U + (h / 2) (xi_k + xi_k+1), with h^2 / 2 for their step;
    every velocity is new."""
    h, n, noise = 0.9, chains(40_000), Noise(1000 + seed)
    rule = KineticLangevin(h, math.inf)
    x = initial(2000 + seed, (n, 1))
    v = math.sqrt(1 - h * h / 4) * initial(3000 + seed, (n, 1))
    state, old = begin(oscillators(1.0), rule, x, 1000 + seed, v), v + h / 2 * x
    for k in range(5):
        new = noise.at(k).normal((n, 1), dtype=torch.float64)
        x, old = x - h * h / 2 * x + h / 2 * (old + new), new
    end = sample(oscillators(1.0), state, rule, 5)
    v = end.state.chains.velocity
    torch.testing.assert_close(end.x, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(v, old - h / 2 * x, rtol=1e-12, atol=1e-12)
    law = np.diag([1, 1 - h * h / 4])
    np.testing.assert_allclose(stationary("baoab", h, 1.0, math.inf), law, atol=1e-12)
    check_law(Checks(3), end.x[:, 0], v[:, 0], np.zeros(2), law)


# ---- noise --------------------------------------------------------------------------------------


@each_scheme
def test_every_noise_is_fresh(scheme: Scheme, seed: int) -> None:
    """Initial velocities and the noise of every O: normal, and independent of one another, of
    other steps and of other chains. Read off free particles, whose motion gives it away."""
    n, h, friction = chains(20_000), 0.5, 1.3
    rule = KineticLangevin(h, friction, scheme)
    c = math.exp(-friction * h / scheme.count("o"))
    s = math.sqrt(1 - c * c)
    run = sample(free, torch.zeros(n, 1, dtype=torch.float64), rule, 0, seed=1000 + seed)
    x, v = run.x, run.state.chains.velocity
    rows = [v]
    for _ in range(3):
        run = sample(free, run.state, rule, 1)
        y, new = run.x, run.state.chains.velocity
        if scheme == "obabo":
            between = (y - x) / h
            rows += [(between - c * v) / s, (new - c * between) / s]
        else:
            rows.append((new - c * v) / s)
        x, v = y, new
    checks = Checks(1 + len(rows))
    for k, row in enumerate(rows):
        checks.gaussian(row[:, 0], 0, 1, what=k)
    checks.independent_steps(torch.cat(rows, 1).T)


@each_scheme
def test_one_position_of_the_noise_per_step(scheme: Scheme) -> None:
    noise = Noise(1, step=5)
    sample(quartic, normals(3, 2), KineticLangevin(0.1, scheme=scheme), 7, seed=noise)
    assert noise.step == 12


@each_scheme
def test_a_run_goes_on_and_splits_to_the_bit(scheme: Scheme) -> None:
    """Continued, and as shards of the batch; a schedule goes on where it was."""
    x0, rule = normals(20, 3), KineticLangevin(0.2, 0.8, scheme, temperature=lambda k: 1 + 0.1 * k)
    whole = sample(quartic, x0, rule, 9, seed=Noise(3))
    state = sample(quartic, x0, rule, 4, seed=Noise(3)).state
    rest = sample(quartic, state, rule, 5)
    for name in ("x", "velocity", "grad", "energy"):
        got, want = (getattr(run.state.chains, name) for run in (rest, whole))
        assert_same_bits(got, want, name)
    for first, last in ((0, 7), (7, 8), (8, 20)):
        noise = Noise(3, first_chain=first)
        assert_same_bits(
            sample(quartic, x0[first:last], rule, 9, seed=noise).x, whole.x[first:last]
        )


@each_scheme
def test_coefficients_per_chain_are_a_run_per_chain(scheme: Scheme) -> None:
    """Step size, friction (an infinite one among them) and temperature."""
    each = torch.tensor([[0.1, 0.2, 0.05, 0.3], [1.0, 0.1, math.inf, 4.0], [1.0, 0.5, 2.0, 0.1]])
    x0 = normals(4, 6)
    together = sample(quartic, x0, KineticLangevin(each[0], each[1], scheme, each[2]), 8, seed=1).x
    for i, (h, friction, temperature) in enumerate(each.T.tolist()):
        rule = KineticLangevin(h, friction, scheme, temperature)
        alone = sample(quartic, x0[i : i + 1], rule, 8, seed=Noise(1, first_chain=i)).x
        assert_same_bits(together[i : i + 1], alone, i)


@each_scheme
def test_schedules_are_read_at_their_step(scheme: Scheme) -> None:
    """A run of changing step sizes and temperatures is that of its steps, one rule for each."""
    sizes, temperatures = [0.1, 0.3, 0.2], [1.0, torch.tensor(0.3), 2.0]
    rule = KineticLangevin(sizes.__getitem__, 0.7, scheme, temperatures.__getitem__)
    whole = sample(quartic, normals(6, 2), rule, 3, seed=1)
    state: Any = sample(quartic, normals(6, 2), rule, 0, seed=1).state
    for h, t in zip(sizes, temperatures, strict=True):
        state = sample(quartic, state, KineticLangevin(h, 0.7, scheme, t), 1).state
    assert_same_bits(state.chains.x, whole.x)


# ---- trouble ------------------------------------------------------------------------------------


@each_scheme
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_energy_that_raises_half_way_leaves_whole_steps(scheme: Scheme, error: Any) -> None:
    """A gradient is taken when half of the step is done; the state it leaves goes on exactly."""
    calls: list[int] = []

    def failing(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise error
        return quartic(x)

    x0, rule = normals(4, 3), KineticLangevin(0.2, scheme=scheme)
    with pytest.raises((EnergyError, SamplingInterrupted)) as caught:
        sample(failing, x0, rule, 9, seed=1)
    samples: Any = caught.value.samples
    taken = samples.state.step
    assert taken == (4 if scheme == "aboba" else 3)
    assert_same_bits(samples.x, sample(quartic, x0, rule, taken, seed=1).x)
    got = sample(quartic, samples.state, rule, 9 - taken).x
    assert_same_bits(got, sample(quartic, x0, rule, 9, seed=1).x)


@each_scheme
def test_a_bad_chain_is_frozen_and_the_others_are_not_touched(scheme: Scheme) -> None:
    calls: list[int] = []

    def poisoned(x: Tensor) -> Tensor:
        calls.append(1)
        bad = (torch.arange(5) == 2) & (len(calls) == 6)
        return torch.where(bad, math.nan, quartic(x))

    x0, rule = normals(5, 3), KineticLangevin(0.2, scheme=scheme)
    got = sample(poisoned, x0, rule, 9, seed=1, on_nonfinite="freeze")
    bad = 5 if scheme == "aboba" else 4  # the others take a gradient before the first step
    assert got.stats.first_bad_step.tolist() == [-1, -1, bad, -1, -1]
    clean = sample(quartic, x0, rule, 9, seed=1)
    others = [0, 1, 3, 4]
    assert_same_bits(got.x[others], clean.x[others])
    assert_same_bits(got.x[2], sample(quartic, x0, rule, bad, seed=1).x[2])


@each_scheme
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,)], ids=str)
def test_nothing_to_move(scheme: Scheme, shape: tuple[int, ...]) -> None:
    def nothing(x: Tensor) -> Tensor:
        return x.new_zeros(len(x)) + 0 * x.sum()

    noise = Noise(1)
    got = sample(nothing, torch.zeros(shape), KineticLangevin(0.1, scheme=scheme), 3, seed=noise)
    assert (got.x.shape, noise.step) == (shape, 3)


@pytest.mark.parametrize("friction", [210.0, 1e4, 1e300, 1e-30])
def test_any_friction_will_do(friction: float) -> None:
    """Also where exp(-k h) is no float32: then it is infinite friction, to the bit."""
    x0 = normals(6, 2)
    for scheme in SCHEMES:
        got = sample(quartic, x0, KineticLangevin(0.5, friction, scheme), 4, seed=1).x
        assert got.isfinite().all()
        if friction > 1e3:
            infinite = KineticLangevin(0.5, math.inf, scheme)
            assert_same_bits(got, sample(quartic, x0, infinite, 4, seed=1).x)


def test_bad_arguments_are_named() -> None:
    for name, value in (("step_size", 0.0), ("friction", -1.0), ("temperature", math.nan)):
        with pytest.raises(StepSizeError, match=f"{name}="):
            KineticLangevin(**{"step_size": 0.1, name: value})
    with pytest.raises(StepSizeError, match="friction has values"):
        KineticLangevin(0.1, torch.tensor([1.0, -1.0]))
    with pytest.raises(ArgumentError, match="scheme='abo': give 'baoab'"):
        KineticLangevin(0.1, scheme="abo")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="friction is a function"):
        KineticLangevin(0.1, lambda k: 1.0)  # type: ignore[arg-type]
    three = torch.ones(3)
    for name in ("step_size", "friction", "temperature"):
        rule = KineticLangevin(**{"step_size": 0.1, name: three})
        with pytest.raises(ShapeError, match=rf"{name} has shape \(3,\).*\(5,\)"):
            sample(quartic, normals(5, 2), rule, 1, seed=1)
