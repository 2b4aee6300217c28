r"""The exact law of a Markov kernel on the line, by quadrature.

A law is a vector of probabilities p_j, one for each node x_j; a density f becomes p_j = f(x_j) w_j
with the weights w of Gauss and Legendre on panels, and an atom is a node of weight 0. The kernel is
the matrix

    P_ij = q(x_j | x_i) w_j                                      its transition density q, or
    P_ij = min(q_ij, exp(U_i - U_j) q_ji) w_j,  i != j           with a Metropolis accept step,

where what is refused stays: P_ii gets the rest of row i. That matrix satisfies detailed balance
with exp(-U_i) w_i to the bit, however coarse the grid (Metropolis et al. 1953, Hastings 1970). A
clamp's atoms, one at each end, collect what lies beyond them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.polynomial import legendre
from scipy import special
from scipy.interpolate import PchipInterpolator

from ..errors import ArgumentError
from ._draws import Array, Function, check_positive

Law: TypeAlias = "Array | Function | float"
"""Probabilities of the nodes, a density up to a constant, or a point that is a node."""

ORDER = 10
"""Nodes of a panel."""


class Kernel1D:
    """One step of a Markov chain on the line; `gaussian` makes those of Langevin rules.

    Args:
        log_density: log q(y | x) as a function of arrays x and y that broadcast. Logarithms, as the
            ratios of an accept step are of densities that underflow.
        span: (low, high), which must hold all but ``tolerance`` of every law asked for.
        energy: U of the target, for a Metropolis accept step.
        ends: x -> (mass sent to low, mass sent to high): the kernel is clamped to the span, and q
            is what it does inside.
        nodes: how many, about. A step's standard deviation should be three spacings or more.
        breaks: points where the kernel is not smooth in x, such as the threshold of a clip. The
            panels end there; the error of a break inside a panel is of the order of a spacing
            squared.
        points: further nodes, for laws that start in a point.
        tolerance: the largest mass that may be lost (beyond the span, or between the nodes).

    Raises:
        ArgumentError: an argument is outside its range; in the methods, more mass than
            ``tolerance`` is lost.
    """

    def __init__(
        self,
        log_density: Callable[[Array, Array], Any],
        span: tuple[float, float] = (-8.0, 8.0),
        *,
        energy: Function | None = None,
        ends: Callable[[Array], tuple[Any, Any]] | None = None,
        nodes: int = 800,
        breaks: Iterable[float] = (),
        points: Iterable[float] = (),
        tolerance: float = 1e-6,
    ) -> None:
        low, high = map(float, span)
        breaks, points = tuple(map(float, breaks)), tuple(map(float, points))
        if not -math.inf < low < high < math.inf:
            raise ArgumentError(f"span={span!r}: give finite low < high")
        if nodes < 2 * ORDER:
            raise ArgumentError(f"nodes={nodes!r}: give {2 * ORDER} or more")
        if not all(low <= point <= high for point in points):
            raise ArgumentError(f"points={points}: they lie in span=({low}, {high})")
        if energy is not None and ends is not None:
            raise ArgumentError("an energy and a clamp: after a clamp the ratio is of no density")
        self.low, self.high, self.tolerance = low, high, check_positive("tolerance", tolerance)
        self.reversible = energy is not None
        self._more: dict[str, Any] = {"energy": energy, "ends": ends, "tolerance": tolerance}
        self._log_density, self._nodes = log_density, int(nodes)
        self._breaks, self._points = breaks, points
        self._edges = _panels(low, high, breaks, self._nodes)
        inside, weights = _gauss_legendre(self._edges)
        atoms = sorted({*points, *((low, high) if ends else ())})
        at = np.searchsorted(inside, atoms)
        self.x: Array = np.insert(inside, at, atoms)
        """The nodes, in order."""
        self.weights: Array = np.insert(weights, at, 0.0)
        """Of the quadrature; 0 at an atom."""
        self.matrix: Array
        """P: a law's probabilities p become p @ P in one step."""
        self._fill(energy, ends)

    @classmethod
    def gaussian(
        cls,
        mean: Function,
        sd: Function | float,
        span: tuple[float, float] = (-8.0, 8.0),
        *,
        energy: Function | None = None,
        clamp: tuple[float | None, float | None] | None = None,
        **grid: Any,
    ) -> Kernel1D:
        """x -> N(mean(x), sd(x)^2), then perhaps an accept step for ``energy``, or a clamp.

        ``clamp`` is (lo, hi), either of them None; it replaces those ends of the span. Draws of it
        lie at its ends exactly: of float32 chains give ``float(np.float32(0.7))``, not 0.7.
        ``grid`` are the constructor's other arguments.

        Raises:
            ArgumentError: an argument is outside its range, or sd so at a node.
        """

        def scale(x: Array) -> Array:
            s: Array = np.asarray(sd(x) if callable(sd) else sd, dtype=np.float64)
            wrong = s[~((s > 0) & (s < math.inf))]
            if wrong.size:
                raise ArgumentError(f"sd={wrong.flat[0]}: give positive finite numbers")
            return np.broadcast_to(s, x.shape)

        def log_density(x: Array, y: Array) -> Array:
            s = scale(x)
            z: Array = (y - mean(x)) / s
            return -0.5 * z * z - np.log(s) - 0.5 * math.log(2 * math.pi)

        lo, hi = (None, None) if clamp is None else clamp
        if lo is None and hi is None:
            return cls(log_density, span, energy=energy, **grid)

        def ends(x: Array) -> tuple[Any, Any]:
            none = np.zeros_like(x)
            below = none if lo is None else special.ndtr((lo - mean(x)) / scale(x))
            above = none if hi is None else special.ndtr((mean(x) - hi) / scale(x))
            return below, above

        low, high = (end if c is None else c for end, c in zip(span, (lo, hi), strict=True))
        return cls(log_density, (low, high), energy=energy, ends=ends, **grid)

    def _fill(
        self, energy: Function | None, ends: Callable[[Array], tuple[Any, Any]] | None
    ) -> None:
        """The matrix; where each row's mass went, and what share of it is accepted."""
        log_q = np.asarray(self._log_density(self.x[:, None], self.x[None, :]), dtype=np.float64)
        log_q = np.broadcast_to(log_q, (len(self.x),) * 2)
        matrix: Array = np.exp(log_q) * self.weights
        if ends is not None:
            matrix[:, 0], matrix[:, -1] = ends(self.x)
        self._lost: Array = np.abs(matrix.sum(1) - 1)
        self.accepted: Array = np.ones_like(self.x)
        """Of the moves proposed at each node, the share that is accepted."""
        if energy is not None:
            u = np.asarray(energy(self.x), dtype=np.float64)
            matrix = np.exp(np.minimum(log_q, u[:, None] - u[None, :] + log_q.T)) * self.weights
            self.accepted = matrix.sum(1)
            matrix[np.diag_indices_from(matrix)] += 1 - self.accepted
        self.matrix = matrix

    def refined(self) -> Kernel1D:
        """The same kernel on twice as many nodes."""
        grid: dict[str, Any] = {"breaks": self._breaks, "points": self._points}
        grid |= {"nodes": 2 * self._nodes, **self._more}
        return Kernel1D(self._log_density, (self.low, self.high), **grid)

    def refinement(self, figure: Callable[[Kernel1D], float]) -> float:
        """How much a figure changes on twice as many nodes: an estimate of its error here."""
        return abs(figure(self.refined()) - figure(self))

    # ---- laws -----------------------------------------------------------------------------------

    def law(self, law: Law) -> Array:
        """The nodes' probabilities, of a density up to a constant, or of a point among ``points``.

        Raises:
            ArgumentError: they are not probabilities, or the point is not a node.
        """
        if callable(law):
            p = np.asarray(law(self.x), dtype=np.float64) * self.weights
            p = p / p.sum()
        elif np.ndim(law) == 0:
            p = ((self.x == law) & (self.weights == 0)).astype(np.float64)
            if not p.any():
                raise ArgumentError(f"the point {law!r} is not a node: name it in points")
        else:
            p = np.asarray(law, dtype=np.float64)
        if p.shape != self.x.shape or not np.all(p >= -1e-9) or not abs(p.sum() - 1) < 1e-3:
            raise ArgumentError(f"a law has {len(self.x)} probabilities; got {p.shape}: {p}")
        return p

    def after(self, steps: int, start: Law) -> Array:
        """The law after so many steps from ``start``."""
        p = self.law(start)
        lost = 0.0
        for _ in range(steps):
            lost += float(p @ self._lost)
            p = p @ self.matrix
        return self._kept(p, lost)

    def stationary(self) -> Array:
        """The law that a step leaves as it is (there should be one)."""
        # One equation follows from the others. Without that of a state that is hardly ever visited
        # the system would be as good as singular, so it is that of one visited often.
        p = np.full(len(self.x), 1 / len(self.x))
        for _ in range(30):
            p = p @ self.matrix
        left_out = int(np.argmax(p))
        system, right = self.matrix.T - np.eye(len(p)), np.zeros(len(p))
        system[left_out] = right[left_out] = 1.0
        p = np.asarray(np.linalg.solve(system, right), dtype=np.float64)
        return self._kept(p, float(np.abs(p) @ self._lost))

    def _kept(self, p: Array, lost: float) -> Array:
        if not lost <= self.tolerance:
            raise ArgumentError(
                f"the grid loses {lost:.2g} of the mass, more than tolerance={self.tolerance:.2g}:"
                f" widen span=({self.low}, {self.high}), or give more than nodes={self._nodes}"
            )
        return p

    # ---- figures --------------------------------------------------------------------------------

    def expect(self, law: Law, f: Function) -> float:
        """The mean of f(x)."""
        return float(self.law(law) @ np.asarray(f(self.x), dtype=np.float64))

    def moment(self, law: Law, k: int) -> float:
        """The mean of x^k."""
        return self.expect(law, lambda x: x**k)

    def variance(self, law: Law) -> float:
        """The mean of (x - mean)^2."""
        mean = self.moment(law, 1)
        return self.expect(law, lambda x: (x - mean) ** 2)

    def acceptance(self, law: Law) -> float:
        """The probability that a step from this law is accepted."""
        return self.expect(law, lambda x: self.accepted)

    def total_variation(self, law: Law, other: Law) -> float:
        """Half the sum of |p - q|: the most by which two laws differ on any set."""
        return 0.5 * float(np.abs(self.law(law) - self.law(other)).sum())

    def cdf(self, law: Law) -> Function:
        """The distribution function, for any array of points; to be held against draws."""
        p = self.law(law)
        atom = self.weights == 0
        at, jump = self.x[atom], np.cumsum(np.append(0.0, p[atom]))
        density = (p[~atom] / self.weights[~atom]).reshape(-1, ORDER)
        half = np.diff(self._edges) / 2
        within = half[:, None] * (density @ _INTEGRAL.T)
        below = np.append(0.0, np.cumsum(half * (density @ _WEIGHTS)))
        nodes = np.concatenate([self._edges, self.x[~atom]])
        values = np.concatenate([below, (below[:-1, None] + within).ravel()])
        order = np.argsort(nodes)
        smooth = PchipInterpolator(nodes[order], values[order])

        def cdf(x: Array) -> Any:
            inside = smooth(np.clip(x, self.low, self.high))
            return np.clip(inside + jump[np.searchsorted(at, x, "right")], 0.0, 1.0)

        return cdf

    def second_eigenvalue(self) -> float:
        """The modulus of the second largest eigenvalue: the chain's geometric rate.

        With an accept step the kernel is reversible, and the eigenvalues are those of the symmetric
        matrix sqrt(P_ij P_ji); otherwise P's own. (Each node's rejections are in the spectrum, the
        tails' too: a chain that is stuck there has this rate on the span, and a worse one beyond.)
        """
        m = self.matrix
        if self.reversible:
            moduli = np.abs(np.linalg.eigvalsh(np.sqrt(m * m.T)))
        else:
            moduli = np.abs(np.linalg.eigvals(m))
        return float(np.sort(moduli)[-2])


_NODES, _WEIGHTS = legendre.leggauss(ORDER)


def _integral() -> Array:
    """From values at a panel's nodes on [-1, 1] to the integrals from -1 up to them."""
    coefficients = np.linalg.inv(legendre.legvander(_NODES, ORDER - 1))
    integrals = legendre.legint(coefficients, lbnd=-1)
    return np.asarray(legendre.legvander(_NODES, ORDER) @ integrals, dtype=np.float64)


_INTEGRAL = _integral()


def _panels(low: float, high: float, breaks: tuple[float, ...], nodes: int) -> Array:
    """Edges of about nodes / ORDER panels, the breaks among them."""
    ends = [low, *sorted({b for b in breaks if low < b < high}), high]
    width = (high - low) * ORDER / nodes
    edges = [
        np.linspace(a, b, max(1, round((b - a) / width)) + 1)[:-1]
        for a, b in itertools.pairwise(ends)
    ]
    return np.append(np.concatenate(edges), high)


def _gauss_legendre(edges: Array) -> tuple[Array, Array]:
    half = np.diff(edges)[:, None] / 2
    centre = (edges[:-1, None] + edges[1:, None]) / 2
    return (centre + half * _NODES).ravel(), (half * _WEIGHTS).ravel()
