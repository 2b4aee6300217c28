"""Rules that accept or reject sample exp(-U) at every step size, and accept as often as they must.

Those that have whole chains are taken by these and step by step: two implementations.

Chains start in exact draws, so that after any number of steps they are draws of the same law; or
in another law, and then the law after k steps is known by quadrature of the kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from langevin_ext import HMC, MALA, AniLA, Noise, sample
from langevin_ext.energies import Gaussian, GaussianMixture
from langevin_ext.testing import Checks, rank_test, rule_step

from .conftest import WAYS, chains
from .lines import LINES

INF = math.inf


def anila(b: float, h: float) -> AniLA:
    return AniLA(b, h, correction="metropolis")


# Step sizes at which 0.9, 0.6 and 0.3 are accepted.
STEPS = {
    "MALA": (MALA, {"normal": (4.68, 12.93, 25.08), "logistic": (1.94, 6.04, 12.07),
                    "mixture": (0.57, 2.23, 6.19)}),
    "AniLA": (functools.partial(anila, 0.5),
              {"normal": (3.8, 16.66, 35.23), "logistic": (1.26, 10.01, 22.31),
               "mixture": (0.24, 5.81, 16.98)}),
    "HMC": (lambda h: HMC(h, 2),
            {"normal": (3.067, 3.508, 3.989), "logistic": (1.415, 2.369, 2.94),
             "mixture": (0.784, 1.523, 1.955)}),
}  # fmt: skip


BOTH = [(name, whole) for name in STEPS for whole in WAYS if not (whole and name == "HMC")]


@pytest.mark.parametrize("law", LINES)
@pytest.mark.parametrize(("name", "whole"), BOTH)
def test_the_law_on_the_line_stays(name: str, whole: bool, law: str, seed: int) -> None:
    """After 1, 5 and 20 steps; acceptance is that of the quadrature."""
    line, n, checks = LINES[law], chains(100_000), Checks(21)
    make, sizes = STEPS[name][0], STEPS[name][1][law]
    x0 = line.energy.draw(n, seed)
    for h, nominal in zip(sizes, (0.9, 0.6, 0.3), strict=True):
        run = sample(
            line.energy, x0, make(h), 20, seed=1000 + seed, keep_every=1, whole_chain=whole
        )
        assert run.trajectory is not None
        assert run.stats.acceptance is not None
        for k in (1, 5, 20):
            checks.law(run.trajectory[k - 1, :, 0], line.cdf, what=(h, k))
        for k in (1, 2):
            checks.moment(run.x[:, 0], k, line.moment, what=h)
        exact = line.acceptance(make(h))
        assert abs(exact - nominal) < 0.02
        checks.bounded_mean(run.stats.acceptance, exact, 0, 1, what=("acceptance", h))
        checks.probability(run.state.chains.accepted.sum(), n, exact, what=("accepted", h))


# ---- in space -----------------------------------------------------------------------------------


class Space(NamedTuple):
    """A mixture of normal laws: its weights, means and covariances; so are its projections."""

    weights: list[float]
    means: list[list[float]]
    covariances: list[Any]

    @property
    def energy(self) -> Any:
        if len(self.means) == 1:
            return Gaussian(self.means[0], covariance=self.covariances[0])
        return GaussianMixture(self.means, covariances=self.covariances, weights=self.weights)

    def cdf(self, u: np.ndarray) -> Callable[[np.ndarray], Any]:
        """Of the projection on u."""
        laws = [
            stats.norm(u @ np.array(m), math.sqrt(u @ np.array(c) @ u))
            for m, c in zip(self.means, self.covariances, strict=True)
        ]
        return lambda x: sum(w * law.cdf(x) for w, law in zip(self.weights, laws, strict=True))


SPACES = {
    "normal": Space([1.0], [[0.0, 1.0, -1.0]], [[[1.0, 0.6, 0], [0.6, 2, -0.3], [0, -0.3, 0.5]]]),
    "mixture": Space(
        [0.4, 0.6],
        [[-1.5, 0.0], [1.0, 1.0]],
        [[[0.5, 0.3], [0.3, 0.4]], [[1.0, -0.6], [-0.6, 0.8]]],
    ),
}
SPACE_STEPS: dict[str, tuple[Callable[[float], Any], tuple[float, ...]]] = {
    "MALA": (MALA, (0.5, 1.0, 2.0)),
    "AniLA": (functools.partial(anila, 1.0), (0.5, 2.0, 4.0)),
    "HMC": (lambda h: HMC(h, 3), (0.5, 1.0, 1.3)),
}


@pytest.mark.parametrize("law", SPACES)
@pytest.mark.parametrize(("name", "whole"), BOTH)
def test_the_law_in_space_stays(name: str, whole: bool, law: str, seed: int) -> None:
    """Every projection after 1, 5 and 20 steps; and no chain's decision is another one's."""
    space, n = SPACES[law], chains(50_000)
    make, sizes = SPACE_STEPS[name]
    d = len(space.means[0])
    directions = [*np.eye(d), np.ones(d), np.arange(d) - 0.7]
    checks = Checks(len(sizes) * (3 * len(directions) + 2))
    x0 = space.energy.draw(n, seed)
    for h in sizes:
        run = sample(
            space.energy, x0, make(h), 20, seed=1000 + seed, keep_every=1, whole_chain=whole
        )
        assert run.trajectory is not None
        for u in directions:
            for k in (1, 5, 20):
                x = run.trajectory[k - 1].double().cpu().numpy() @ u
                checks.law(x, space.cdf(u), what=(h, k, u))
        checks.independent_chains(run.x[:, 0], what=h)
        last = run.state.chains
        surprise = last.accepted.double() - last.log_ratio.exp().clamp(max=1)
        checks.independent_chains(surprise, what=("decisions", h))


@pytest.mark.parametrize("name", SPACE_STEPS)
def test_a_piece_of_a_stationary_chain_has_no_direction(name: str, seed: int) -> None:
    """The rank test of Gandy and Scott, which is exact however slowly a chain moves."""
    energy, (make, sizes) = SPACES["mixture"].energy, SPACE_STEPS[name]
    draws, noise = Noise(seed), Noise(1000 + seed)

    def statistic(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], x[:, 0] * x[:, 1], energy(x)], 1)

    rank_test(
        lambda n: energy.draw(n, draws),
        rule_step(energy, make(sizes[1]), noise),
        statistic=statistic,
        chains=chains(10_000),
        seed=seed,
    )


def assert_symmetric(a: Tensor, b: Tensor, edges: Tensor, false_alarm: float, what: Any) -> None:
    """As many pairs go from cell i to cell j as from j to i.

    Of the m pairs between two cells n_ij - n_ji is a sum of m signs, so the sum of its squares over
    m has no larger tail than chi-square (Laurent and Massart 2000, lemma 1): exact at any number.
    """
    cells = len(edges) + 1
    i, j = (torch.searchsorted(edges, t.contiguous()) for t in (a, b))
    counts = torch.bincount(i * cells + j, minlength=cells**2).view(cells, cells).double()
    both, apart = (counts + counts.T).triu(1), (counts - counts.T).triu(1)
    pairs, alarm = int((both > 0).sum()), -math.log(false_alarm)
    square = float((apart[both > 0] ** 2 / both[both > 0]).sum())
    assert pairs >= cells - 1, what
    assert square < pairs + 2 * math.sqrt(pairs * alarm) + 2 * alarm, what


@pytest.mark.parametrize(("name", "whole"), BOTH)
def test_as_many_go_there_as_come_back(name: str, whole: bool, seed: int) -> None:
    """Detailed balance of one step, over 20 equally likely cells: on the line, and in space."""
    n, spaces = chains(200_000), SPACES["mixture"]
    cases: list[tuple[Any, Any]] = [
        (LINES["mixture"].energy, STEPS[name][0](STEPS[name][1]["mixture"][k])) for k in (0, 1)
    ]
    cases += [(spaces.energy, SPACE_STEPS[name][0](SPACE_STEPS[name][1][k])) for k in (0, 1)]
    for energy, rule in cases:
        x0 = energy.draw(n, seed)
        x1 = sample(energy, x0, rule, 1, seed=1000 + seed, whole_chain=whole).x
        for a, b in ((x0[:, 0], x1[:, 0]), (energy(x0), energy(x1))):
            edges = a.sort().values[:: n // 20][1:20].contiguous()
            assert_symmetric(a, b, edges, 1e-6 / (2 * len(cases)), rule)


# ---- where the density is zero ------------------------------------------------------------------


def box(x: Tensor) -> Tensor:
    """Of the uniform law on the unit cube: 0 inside and infinite outside, without a slope."""
    return torch.where(((x >= 0) & (x <= 1)).all(1), (0 * x).sum(1), INF)


def kept_inside(reach: float) -> float:
    """The probability that x + reach z stays in [0, 1], of x uniform and z normal."""
    t = 1 / reach
    below = t * special.ndtr(-t) + (1 - math.exp(-t * t / 2)) / math.sqrt(2 * math.pi)
    return float(1 - 2 * reach * below)


@pytest.mark.parametrize(
    ("rule", "reach"),
    [(MALA(0.01), 0.1), (MALA(0.25), 0.5), (anila(1.0, 0.09), 0.3), (HMC(0.1, 3), 0.3)],
    ids=str,
)
def test_a_box_keeps_its_uniform_law(rule: Any, reach: float, seed: int) -> None:
    """A random walk that is refused outside; HMC may pass through the outside and come back."""
    n, d, checks = chains(50_000), 2, Checks(7)
    x0 = Noise(seed).uniform((n, d))
    run = sample(box, x0, rule, 20, seed=1000 + seed, keep_every=1)
    assert run.trajectory is not None
    for k in (1, 5, 20):
        for j in range(d):
            checks.law(run.trajectory[k - 1, :, j], stats.uniform.cdf, what=(k, j))
    checks.probability(run.state.chains.accepted.sum(), n, kept_inside(reach) ** d)
