"""The kernels in plain torch, in the order of their equations: the specification and the oracle.

    step     gamma_i = 1 if |g_i| <= b else b / |g_i|
             a_i = drift_i gamma_i,  d_i = diffusion_i gamma_i**p        each rounded once
             y = x - a g;  y = y - (drift rho) x;  y = y + d xi;  x <- clamp(y, low, high)
    accept   x <- y with probability min(1, exp(U(x) - U(y)) q(x | y) / q(y | x)),
             q(y | x) = N(x - a_x g_x, d_x**2)
    kinetic  v <- v - k g;  x <- x + t v;  v <- c v + s xi;  v <- v - k' g;  x <- x + t' v

Nothing here is optimised, and no operation may be reordered: the kernels in csrc/ give the same
bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import philox
from .._types import (
    AcceptSpec,
    Coefficient,
    Decision,
    KineticSpec,
    Point,
    Position,
    StepSpec,
    StepStats,
    Tally,
)

BLOCK, LANES = 4096, 64


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on the device; None if it can. It always can."""
    return None


def tree_sum(terms: Tensor) -> Tensor:
    """Sums of the rows of ``terms`` (B, D) by a fixed tree, so that every backend agrees.

    In a block of 4096 elements, lane k of 64 adds elements k, k + 64, ... in order; the lanes are
    then added by halves, and the blocks in pairs.
    """
    rows, cols = terms.shape
    size = BLOCK if cols > BLOCK else max(LANES, -(-cols // LANES) * LANES)  # zeros add nothing
    blocks = max(1, -(-cols // size))
    padded = torch.nn.functional.pad(terms, (0, blocks * size - cols))
    rounds = padded.view(rows, blocks, size // LANES, LANES).unbind(2)
    lanes = torch.zeros_like(rounds[0])
    for terms_of_round in rounds:
        lanes = lanes + terms_of_round
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    sums = lanes[..., 0]
    while sums.shape[-1] > 1:
        if sums.shape[-1] % 2:
            sums = torch.nn.functional.pad(sums, (0, 1))
        sums = sums[:, 0::2] + sums[:, 1::2]
    return sums[:, 0]


def clip_factor(norm: Tensor, bound: Tensor) -> Tensor:
    """gamma of a norm (or a magnitude) against its bound."""
    gamma = torch.where(norm <= bound, 1.0, bound / norm)
    gamma = torch.where(norm.isfinite(), gamma, torch.nan)
    return torch.where(bound.isposinf(), 1.0, gamma)


def noise_factor(gamma: Tensor, noise_power: float) -> Tensor:
    """gamma ** noise_power for the powers 0, 1/2 and 1."""
    if noise_power == 0:
        return torch.ones_like(gamma)
    return philox.sqrt(gamma) if noise_power == 0.5 else gamma


def _rows(x: Tensor) -> Tensor:
    """(B, ...) as (B, D)."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def _column(value: Coefficient, like: Tensor) -> Tensor:
    """A coefficient in a state's dtype, (B, 1)."""
    column = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return column.expand(like.shape[0])[:, None]


def step_(
    x: Tensor, grad: Tensor, step: StepSpec, stats: StepStats | None, out: Tensor | None = None
) -> None:
    """One step of ``x`` (B, ...), in place or to ``out``; all of them contiguous."""
    out, x = x if out is None else out, _rows(x)
    rows, cols = x.shape
    grad = grad.reshape(x.shape).to(x.dtype)
    drifts, diffusions, bound = (_column(value, x) for value in step[:3])
    low, high = (
        x.new_tensor(end, dtype=torch.float64).to(x.dtype) for end in (step.low, step.high)
    )
    rho = torch.tensor(step.reference_precision, dtype=x.dtype, device=x.device)
    norm = philox.sqrt(tree_sum(grad * grad))[:, None]
    gamma = clip_factor(grad.abs() if step.per_coordinate else norm, bound)
    a = drifts * gamma
    d = diffusions * noise_factor(gamma, step.noise_power)

    y = x - a * grad
    if step.reference_precision != 0:
        y = y - (drifts * rho) * x
    if step.position is not None:
        y = y + d * philox.normal(step.position, rows, cols, x.device)
    finite = y.isfinite()
    y = torch.where(finite, y, torch.nan)
    y = torch.where(y < low, low, y)
    y = torch.where(y > high, high, y)
    out.copy_(y.view(out.shape))
    if stats is not None:
        stats.grad_norm.copy_(norm[:, 0])
        stats.gamma.copy_(tree_sum(gamma) / cols if step.per_coordinate else gamma[:, 0])
        stats.finite.copy_(finite.all(1))


def accept_(at: Point, proposal: Point, accept: AcceptSpec, decision: Decision) -> None:
    """Move each chain ``at`` some point to its proposal, or leave it, in place.

    What it takes of the state's dtype is exact in float64, in which all is computed but the norms
    and the coefficients: they are those that the proposal was made with.
    """
    x, grad, y, grad_y = (_rows(t) for t in (*at[:2], *proposal[:2]))
    rows, cols = x.shape

    def law(g: Tensor) -> tuple[Tensor, Tensor]:
        """a_i and d_i of proposals from where the gradient is g, in float64."""
        gamma = clip_factor(philox.sqrt(tree_sum(g * g))[:, None], bound)
        return (drifts * gamma).double(), (diffusions * noise_factor(gamma, 0.5)).double()

    if accept.log_ratio is None:
        drifts, diffusions, bound = (_column(value, x) for value in accept[:3])
        (a, d), (a_y, d_y) = law(grad), law(grad_y)
        move = y.double() - x.double()
        there, back = move + a * grad.double(), move - a_y * grad_y.double()
        terms = there * there * (0.5 / (d * d)) - back * back * (0.5 / (d_y * d_y))
        ratio = tree_sum(terms) + cols * (d.log() - d_y.log())[:, 0]
    else:
        ratio = accept.log_ratio
    finite = ratio.isfinite() & proposal.energy.isfinite()
    total = (at.energy.double() - proposal.energy.double()) + ratio
    total = torch.where(finite, total, -torch.inf)
    u = philox.uniform(accept.position, rows, 1, x.device)[:, 0]
    accepted = philox.log(u).double() <= total
    for old, new in zip(at, proposal, strict=True):
        old[accepted] = new[accepted]
    decision.log_ratio.copy_(total)
    decision.accepted.copy_(accepted)


def kinetic_(
    x: Tensor,
    v: Tensor,
    grad: Tensor | None,
    spec: KineticSpec,
    energies: Tensor | None,
    stats: StepStats | None,
) -> None:
    """One pass over positions and velocities (B, ...), in place; all of them contiguous.

    ``energies`` (2, B) float64 is filled with |v|**2 / 2 after the noise and at the end, ``stats``
    with |grad| and whether positions and velocities are finite. ``grad`` may be None without kicks.
    """
    position, velocity, x, v = x, v, _rows(x), _rows(v)
    g = torch.zeros_like(x) if grad is None else grad.reshape(x.shape)
    coefficients = (_column(value, x) for value in spec[:6])
    kick, drift, keep, spread, second_kick, second_drift = coefficients

    def present(value: Coefficient) -> bool:
        return isinstance(value, Tensor) or value != 0

    if present(spec.kick):
        v = v - kick * g
    if present(spec.drift):
        x = x + drift * v
    if present(spec.spread) or isinstance(spec.keep, Tensor) or spec.keep != 1:
        v = keep * v if present(spec.keep) else torch.zeros_like(v)
        if spec.position is not None:
            v = v + spread * philox.normal(spec.position, len(x), x.shape[1], x.device)
    refreshed = v
    if present(spec.second_kick):
        v = v - second_kick * g
    if present(spec.second_drift):
        x = x + second_drift * v
    if energies is not None:
        for energy, of in zip(energies, (refreshed, v), strict=True):
            energy.copy_(tree_sum(of.double() * of.double()) * 0.5)
    if stats is not None:
        stats.grad_norm.copy_(philox.sqrt(tree_sum(g * g)))
        stats.gamma.fill_(1)
        stats.finite.copy_((x.isfinite() & v.isfinite()).all(1))
    position.copy_(x.view(position.shape))  # last: what is above may be views of them
    velocity.copy_(v.view(velocity.shape))


def tally_(sums: Tally, stats: StepStats, log_ratio: Tensor | None, weight: Tensor | None) -> None:
    """Add a step's record to the sums; ``log_ratio`` and ``weight`` (B,) where they have one."""
    sums.grad_norm.add_(stats.grad_norm)
    sums.gamma.add_(stats.gamma)
    sums.clipped.add_(stats.gamma < 1)
    if sums.acceptance is not None and log_ratio is not None:
        sums.acceptance.add_(log_ratio.exp().clamp_(max=1))
    if sums.weight is not None and weight is not None:
        sums.weight.add_(weight)


def all_finite(stats: StepStats, energy: Tensor) -> bool:
    """Whether a step left every chain, and found every energy, finite."""
    return bool((stats.finite & energy.isfinite()).all())


def normal_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the standard normals at ``position``."""
    out.copy_(philox.normal(position, out.shape[0], out.shape[1], out.device))


def uniform_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the uniform numbers in (0, 1] at ``position``."""
    out.copy_(philox.uniform(position, out.shape[0], out.shape[1], out.device))
