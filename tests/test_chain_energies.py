"""What kernels of whole chains say of an energy: U to the last digit, and energies times a number.

U of a state is asked for in two ways. At the end of a block it is taken in double precision. Rules
that accept or reject take it in the state's own, at every proposal: here at one so near that it is
the state, and where it is accepted the state has its energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from langevin_ext import MALA, AniLA, KineticLangevin, Langevin, sample
from langevin_ext.energies import (
    Banana,
    DoubleWell,
    EightGaussians,
    Funnel,
    Gaussian,
    GaussianMixture,
    Logistic,
    QuadraticWell,
    QuarticWell,
    Rings,
    Scaled,
    TwoMoons,
)
from langevin_ext.errors import ArgumentError, LangevinError, NonFiniteError

from .conftest import ISAS, NO_NATIVE, ON_CPU, assert_same_bits, native, normals
from .kinds import DTYPES, EXACT, KINDS, SOME, spd, start
from .runs import assert_same_outcome, assert_same_run, pair, tolerance

pytestmark = [
    pytest.mark.skipif(not ON_CPU, reason="a CPU's kernels"),
    pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native backend: {NO_NATIVE}"),
]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
Point = list[Any]

# ---- U, by its definition -----------------------------------------------------------------------


class Case(NamedTuple):
    energy: Any
    exact: Callable[[Point], Any]
    """U in as many digits as mpmath has."""
    special: list[list[float]]
    """Modes, and where a formula has a seam."""


def half_square(x: Point, mean: Point, std: Point) -> Any:
    return sum(((a - m) / s) ** 2 for a, m, s in zip(x, mean, std, strict=True)) / 2


def whitened(x: Point, mean: Tensor, covariance: Tensor) -> Any:
    """Half of (x - m)^T C^-1 (x - m)."""
    y = mpmath.matrix([a - mpf(m) for a, m in zip(x, mean.tolist(), strict=True)])
    return (y.T * mpmath.lu_solve(mpmath.matrix(covariance.tolist()), y))[0] / 2


def log_sum(terms: list[Any]) -> Any:
    top = max(terms)
    return top + mpmath.log(sum(mpmath.exp(t - top) for t in terms))


MEANS = [[-1.5, 0.25, 3.0], [2.0, -0.5, 1.0], [0.0, 40.0, 0.0]]
WEIGHTS = [0.5, 0.375, 0.125]
COVARIANCES = [spd(3, seed=k) for k in range(3)]
STDS = [[0.5, 2.0, 0.7], [1.0, 0.3, 1.5], [0.1, 1.0, 1.0]]


def mixture(log_spreads: list[Any], squares: Callable[[Point, int], Any]) -> Callable[..., Any]:
    """-log sum_k w_k N(x; m_k, C_k), of half the log determinants and the half squares."""

    def exact(x: Point) -> Any:
        d = mpf(len(x))
        return -log_sum(
            [
                mpmath.log(w) - s - d / 2 * mpmath.log(2 * mpmath.pi) - squares(x, k)
                for k, (w, s) in enumerate(zip(WEIGHTS, log_spreads, strict=True))
            ]
        )

    return exact


def eight_gaussians(x: Point) -> Any:
    s = mpf(0.15)
    means = [(math.cos(math.pi * k / 4), math.sin(math.pi * k / 4)) for k in range(8)]
    squares = [half_square(x, [mpf(a), mpf(b)], [s, s]) for a, b in means]
    return -log_sum([-mpmath.log(8 * 2 * mpmath.pi * s * s) - q for q in squares])


RADII, RING_STDS = [0.0, 1.0, 2.5], [0.3, 0.4, 0.3]


def rings(x: Point) -> Any:
    r = mpmath.hypot(*x)
    return -log_sum([-(((r - R) / mpf(s)) ** 2) / 2 for R, s in zip(RADII, RING_STDS, strict=True)])


def two_moons(x: Point) -> Any:
    a, b = (-((x[0] - c) ** 2) / (2 * mpf(0.6) ** 2) for c in (2, -2))
    return (mpmath.hypot(*x) - 2) ** 2 / (2 * mpf(0.4) ** 2) - log_sum([a, b])


def funnel(x: Point) -> Any:
    along = x[0] ** 2 / (2 * mpf(0.7) ** 2) + (len(x) - 1) * x[0] / 2
    return along + mpmath.exp(-x[0]) * sum(y**2 for y in x[1:]) / 2


M = torch.tensor(MEANS, dtype=torch.float64)
CASES: dict[str, Case] = {
    "gaussian": Case(
        Gaussian(MEANS[0], std=STDS[0]),
        lambda x: half_square(x, list(map(mpf, MEANS[0])), list(map(mpf, STDS[0]))),
        [MEANS[0]],
    ),
    "full gaussian": Case(
        Gaussian(MEANS[0], covariance=COVARIANCES[0]),
        lambda x: whitened(x, M[0], COVARIANCES[0]),
        [MEANS[0]],
    ),
    "round mixture": Case(
        GaussianMixture(MEANS, stds=[0.5, 1.0, 0.25], weights=WEIGHTS),
        mixture(
            [3 * mpmath.log(mpf(s)) for s in (0.5, 1.0, 0.25)],
            lambda x, k: half_square(x, list(map(mpf, MEANS[k])), 3 * [mpf((0.5, 1, 0.25)[k])]),
        ),
        MEANS,
    ),
    "diagonal mixture": Case(
        GaussianMixture(MEANS, stds=STDS, weights=WEIGHTS),
        mixture(
            [sum(mpmath.log(mpf(s)) for s in stds) for stds in STDS],
            lambda x, k: half_square(x, list(map(mpf, MEANS[k])), list(map(mpf, STDS[k]))),
        ),
        MEANS,
    ),
    "full mixture": Case(
        GaussianMixture(MEANS, covariances=torch.stack(COVARIANCES), weights=WEIGHTS),
        mixture(
            [mpmath.log(mpmath.det(mpmath.matrix(c.tolist()))) / 2 for c in COVARIANCES],
            lambda x, k: whitened(x, M[k], COVARIANCES[k]),
        ),
        MEANS,
    ),
    "eight gaussians": Case(EightGaussians(), eight_gaussians, [[1.0, 0.0], [0.0, 0.0]]),
    "rings": Case(
        Rings(RADII, RING_STDS), rings,
        [[0.0, 0.0], [0.0, 1.0], [-2.5, 0.0], [1e-30, 1e-30], [1e-18, 0.0], [1.75, 0.0]],
    ),
    "two moons": Case(
        TwoMoons(), two_moons, [[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [1e-20, 1e-30]]
    ),
    "banana": Case(
        Banana(1.25, 0.75, 0.5),
        lambda x: x[0] ** 2 / (2 * mpf(1.25) ** 2)
        + ((x[1] - mpf(0.75) * (x[0] ** 2 - mpf(1.25) ** 2)) / mpf(0.5)) ** 2 / 2,
        [[0.0, -1.171875], [8.0, 46.828125], [0.0, 0.0]],
    ),
    "funnel": Case(
        Funnel(3, std=0.7), funnel,
        [[0.0, 0.0, 0.0], [-30.0, 1e-7, -1e-7], [60.0, 1e9, -1e9], [-40.0, 0.0, 0.0]],
    ),
    "double well": Case(
        DoubleWell(3, barrier=1.3, minimum=1.25),
        lambda x: mpf(1.3) * sum(((a / mpf(1.25)) ** 2 - 1) ** 2 for a in x),
        [[1.25, -1.25, 1.25], [0.0, 0.0, 0.0]],
    ),
    "quartic well": Case(
        QuarticWell(3, stiffness=0.7), lambda x: mpf(0.7) * sum(a**4 for a in x) / 4,
        [[0.0, 0.0, 0.0], [1e-9, 1e-8, 0.0]],
    ),
    "logistic": Case(
        Logistic(3, scale=0.6),
        lambda x: sum(2 * mpmath.log(2 * mpmath.cosh(a / (2 * mpf(0.6)))) for a in x),
        [[0.0, 0.0, 0.0], [1e-12, -1e-12, 0.0], [20.0, 30.0, -10.0]],
    ),
}  # fmt: skip


def points(case: Case, dtype: torch.dtype) -> Tensor:
    """The bulk of the law, far and farther out, on axes, and what is special."""
    bulk = case.energy.draw(12, seed=5, dtype=torch.float64)
    reach = 1.0 if isinstance(case.energy, Funnel) else 100.0  # exp(-x_1) is far soon enough
    axes = torch.eye(case.energy.dim, dtype=torch.float64)
    special = torch.tensor(case.special, dtype=torch.float64)
    parts = [bulk, 3 * bulk[:6], reach * bulk[:6], reach**2 * bulk[:3], 7 * axes, special]
    return torch.cat(parts).to(dtype)


def exact_values(case: Case, x: Tensor) -> list[Any]:
    with mpmath.workdps(60):
        return [case.exact([mpf(v) for v in row]) for row in x.tolist()]


@each_dtype
@pytest.mark.parametrize("name", CASES)
def test_energies_at_the_end_of_a_block_are_exact(name: str, dtype: torch.dtype) -> None:
    """In float32 all bits of U rounded; in float64 to some units in the last place."""
    case = CASES[name]
    x = points(case, dtype)
    want = exact_values(case, x)
    for isa in ISAS:
        native.use_isa(isa)
        got = sample(case.energy, x, Langevin(1e-9), 1, seed=7, whole_chain=True).stats.energy
        for row, u, exact in zip(x.tolist(), got.tolist(), want, strict=True):
            with mpmath.workdps(60):
                apart = abs(mpf(u) - exact)
                slack = 2e-15 * (1 + abs(exact))
                if dtype is torch.float32 and exact:
                    slack += mpmath.ldexp(1, max(mpmath.frexp(abs(exact))[1], -125) - 25)
                assert apart <= slack, (isa, row, u, mpmath.nstr(exact, 20))


@each_dtype
@pytest.mark.parametrize("name", CASES)
def test_energies_of_proposals_are_nearly(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    x = points(case, dtype)
    eps, h = torch.finfo(dtype).eps, 1e-26 if dtype is torch.float32 else 1e-60
    want = exact_values(case, x)
    for isa in ISAS:
        native.use_isa(isa)
        state = sample(case.energy, x, MALA(h), 1, seed=7, whole_chain=True).state.chains
        assert (state.proposal - x).abs().max() < 1e-12
        assert state.accepted.sum() > 10  # whose energy is the proposal's
        both = zip(x.tolist(), state.energy.tolist(), state.log_ratio.tolist(), want, strict=True)
        for row, u, ratio, exact in both:
            slack = 12 * eps * (1 + abs(float(exact)))
            assert abs(u - float(exact)) <= slack, (isa, row)
            assert abs(ratio) <= 2 * slack, (isa, row)


@each_dtype
@pytest.mark.parametrize("name", sorted(CASES))
def test_gradients_of_proposals_are_torchs(name: str, dtype: torch.dtype) -> None:
    """At the same points, of chains that moved there: as exact as the point itself."""
    case = CASES[name]
    x = points(case, dtype)
    h = 1e-26 if dtype is torch.float32 else 1e-60
    state = sample(case.energy, x, MALA(h), 1, seed=7, whole_chain=True).state.chains
    kept = state.accepted
    at = state.x[kept].double()
    _, want = case.energy.value_and_gradient(at)
    apart = (state.grad[kept].double() - want).norm(dim=1)
    scale = want.norm(dim=1) + 50  # of a precision: what components pull apart
    for i in range(at.shape[1]):  # what a relative error of a coordinate makes of it
        near = at.clone()
        near[:, i] *= 1 + 1e-6
        scale += (case.energy.value_and_gradient(near)[1] - want).norm(dim=1) / 1e-6
    assert (apart <= 20 * torch.finfo(dtype).eps * scale).all()


# ---- an energy times a number -------------------------------------------------------------------

FACTORS = 0.3, 2, 0.0, -0.2


def rules(h: float, factor: float) -> list[Any]:
    """Of every kind; where U has no bottom those that need none."""
    made = [
        AniLA(2.0, h, reference_precision=0.1), KineticLangevin(0.7 * h**0.5, 0.8),
        KineticLangevin(0.7 * h**0.5, 0.8, "aboba", temperature=0.5),
    ]  # fmt: skip
    return made if factor < 0 else [*made, MALA(8 * h), AniLA(1.0, 8 * h, correction="metropolis")]


@each_dtype
@pytest.mark.parametrize("kind", KINDS)
def test_an_energy_times_a_number(kind: str, dtype: torch.dtype, taken: list[int]) -> None:
    """Few steps where the factor is negative, as chains leave."""
    for factor in FACTORS:
        energy, x0 = start(kind, SOME[kind], 21, dtype)
        for rule in rules(KINDS[kind].step, factor):
            steps = 2 if factor < 0 else 5
            taken.clear()
            whole, single = pair(
                Scaled(energy, factor), x0, rule, steps, keep_every=2, moments=True, burn_in=1
            )
            assert taken == [1, steps]
            assert_same_run(whole, single, tolerance(dtype, 6))


@pytest.mark.parametrize("name", CASES)
def test_energies_times_a_number_are_exact(name: str) -> None:
    """Of either sign, whole chains' U is rounded once."""
    case = CASES[name]
    x = points(case, torch.float32)
    for factor in (0.3, -1.7):
        energy = Scaled(case.energy, factor)
        got = sample(energy, x, Langevin(1e-9), 1, seed=7, whole_chain=True).stats.energy
        for row, u, exact in zip(x.tolist(), got.tolist(), exact_values(case, x), strict=True):
            want = float(mpf(factor) * exact)
            assert abs(u - want) <= 6e-8 * abs(want) + 2e-15 * (1 + abs(want)), row


def test_a_factor_is_read_at_every_call() -> None:
    energy, x0 = EXACT["gaussian"](3), normals(9, 3)
    scaled = Scaled(energy, 1.0)
    seen: list[Tensor] = []
    for factor in (1.0, 0.5, 3):
        scaled.factor = factor
        whole, single = pair(scaled, x0, MALA(0.5), 6)
        assert_same_run(whole, single, tolerance(torch.float32, 6))
        fresh = sample(Scaled(energy, factor), x0, MALA(0.5), 6, seed=7, whole_chain=True)
        assert_same_bits(fresh.x, sample(scaled, x0, MALA(0.5), 6, seed=7, whole_chain=True).x)
        assert all(not torch.equal(fresh.x, x) for x in seen)
        seen.append(fresh.x)
    scaled.energy = QuadraticWell(3)
    whole, single = pair(scaled, x0, Langevin(0.1), 6)
    assert_same_run(whole, single, tolerance(torch.float32, 6))
    assert all(not torch.equal(whole.x, x) for x in seen)


def test_a_factor_of_one_is_the_energy_itself() -> None:
    for kind, d in SOME.items():
        energy, x0 = start(kind, d, 21, torch.float32)
        for rule in (Langevin(KINDS[kind].step), KineticLangevin(0.1, scheme="aboba")):
            whole = sample(energy, x0, rule, 5, seed=7, whole_chain=True)
            scaled = sample(Scaled(energy, 1.0), x0, rule, 5, seed=7, whole_chain=True)
            assert_same_bits(whole.x, scaled.x)
            assert_same_bits(whole.stats.energy, scaled.stats.energy)


def test_a_factor_that_overflows_is_trouble() -> None:
    """U, its gradient or both: the same chains are named."""
    x0 = torch.tensor([[0.5, 0.1], [3.0, 3.0], [-1.0, 2.5], [0.0, 0.0]])
    for rule in (Langevin(1e-38), KineticLangevin(1e-19), AniLA(1.0, 1e-30)):
        got = assert_same_outcome(Scaled(QuadraticWell(2), 1e38), x0, rule, 3)
        assert isinstance(got.error, NonFiniteError)
        overflows = [0, 1, 2] if isinstance(rule, AniLA) else [1, 2]  # a norm does sooner
        assert got.error.chains == overflows


def test_as_many_dimensions_as_the_energy_has(taken: list[int]) -> None:
    for d in (1, 2, 3, 17, 256):
        for kind in ("gaussian", "round mixture", "logistic"):
            energy, x0 = start(kind, d, 37, torch.float32)
            taken.clear()
            whole, single = pair(Scaled(energy, 0.7), x0, Langevin(KINDS[kind].step), 6)
            assert taken == [6]
            assert_same_run(whole, single, tolerance(torch.float32, 6))


def test_hooks_on_all_modules_are_seen_around_a_formula(taken: list[int]) -> None:
    """They run where U is that of a module with a factor: here they halve it."""
    scaled, x0 = Scaled(QuadraticWell(3), 2.0), normals(7, 3)
    halves = sample(Scaled(QuadraticWell(3), 1.0), x0, Langevin(0.1), 5, seed=7, whole_chain=False)

    def halve(module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        return output / 2 if module is scaled else None

    handle = torch.nn.modules.module.register_module_forward_hook(halve)
    try:
        got = sample(scaled, x0, Langevin(0.1), 5, seed=7)
        assert not taken
        torch.testing.assert_close(got.x, halves.x)
        with pytest.raises(ArgumentError, match="hooks are registered on all modules"):
            sample(scaled, x0, Langevin(0.1), 5, seed=7, whole_chain=True)
    finally:
        handle.remove()
    sample(scaled, x0, Langevin(0.1), 5, seed=7)
    assert taken == [5]


@pytest.mark.parametrize("factor", [10**400, -(10**400)])
def test_a_factor_larger_than_a_float_is_refused(factor: int, taken: list[int]) -> None:
    """As it is made; and one that is changed later is no kernel's."""
    with pytest.raises(ArgumentError, match="factor"):
        Scaled(QuadraticWell(3), factor)
    scaled = Scaled(QuadraticWell(3), 1.0)
    scaled.factor = factor
    with pytest.raises(ArgumentError, match="its factor is larger than a float"):
        sample(scaled, normals(7, 3), Langevin(0.1), 5, seed=7, whole_chain=True)
    with pytest.raises(LangevinError):
        sample(scaled, normals(7, 3), Langevin(0.1), 5, seed=7)
    assert not taken


def test_instances_that_compute_otherwise_are_seen(taken: list[int]) -> None:
    """Whatever method of theirs it is that somebody has changed."""
    x0 = normals(7, 2)
    names = ("forward", "value_and_gradient", "_energy", "_energy_and_gradient", "_exactly")
    for name in (*names, "_call_impl"):
        for make in (lambda e: e, lambda e: Scaled(e, 1.0)):
            energy = EightGaussians()
            setattr(energy, name, getattr(energy, name))
            sample(make(energy), x0, Langevin(0.1), 3, seed=7)
            with pytest.raises(ArgumentError, match=r"langevin_ext\.energies|of its own"):
                sample(make(energy), x0, Langevin(0.1), 3, seed=7, whole_chain=True)
    assert not taken


# ---- where terms overflow -----------------------------------------------------------------------


FAR: dict[str, Any] = {
    "mixture": EightGaussians,
    "diagonal mixture": lambda: GaussianMixture(
        torch.zeros(2, 2), stds=torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    ),
    "rings": Rings,
    "two moons": TwoMoons,
}


@pytest.mark.parametrize("kind", FAR)
def test_where_all_terms_overflow_the_energy_is_infinite(kind: str) -> None:
    """Not NaN; and the gradient is the number that torch says it is."""
    energy, x0 = FAR[kind](), normals(21, 2, dtype=torch.float64)
    x0[3] = torch.tensor([1e200, -1e200], dtype=torch.float64)
    for rule in (Langevin(0.1), MALA(0.1), KineticLangevin(0.1)):
        for way in (True, False):
            with pytest.raises(NonFiniteError, match="U there is inf") as caught:
                sample(energy, x0, rule, 5, seed=7, whole_chain=way)
            assert (caught.value.chains, caught.value.step) == ([3], 0)
    state = sample(energy, x0, KineticLangevin(0.1), 0, seed=7, whole_chain=True).state.chains
    want = energy.value_and_gradient(x0[3:4])[1][0]
    assert state.energy[3] == math.inf
    assert want.isfinite().all()
    assert (state.grad[3].sign() == want.sign()).all()
    if kind != "diagonal mixture":  # of equal terms torch may take another
        torch.testing.assert_close(state.grad[3], want, rtol=1e-12, atol=0)


def test_a_narrow_logistic_law_has_gradients_larger_than_energies(taken: list[int]) -> None:
    """x times g is out of range, U is not: no block is taken back for it."""
    energy, x0 = Logistic(3, scale=1e-200), 1e-50 * normals(21, 3, dtype=torch.float64)
    whole, single = pair(energy, x0, Langevin(1e-300), 5)
    assert taken == [5]
    assert_same_run(whole, single, tolerance(torch.float64, 5))
