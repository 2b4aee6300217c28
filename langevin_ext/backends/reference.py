"""The step in plain torch, in the order of the equation: the specification and the oracle.

    gamma_i = 1 if |g_i| <= b else b / |g_i|
    a_i = drift_i gamma_i,  d_i = diffusion_i gamma_i**p        each rounded once
    y = x - a g;  y = y - (drift rho) x;  y = y + d xi;  x <- clamp(y, low, high)

Nothing here is optimised, and no operation may be reordered: csrc/step_cpu.cpp gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import philox
from .._types import Position, StepSpec, StepStats

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


def step_(x: Tensor, grad: Tensor, step: StepSpec, stats: StepStats | None) -> None:
    """One step of ``x`` (B, ...) in place; both tensors contiguous."""
    state, x = x, x.flatten(1) if x.dim() > 1 else x[:, None]
    rows, cols = x.shape
    grad = grad.reshape(x.shape).to(x.dtype)

    def column(value: float | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(rows)[:, None]

    drifts, diffusions, bound = (
        column(step.drift),
        column(step.diffusion),
        column(step.max_grad_norm),
    )
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
    state.copy_(y.view(state.shape))
    if stats is not None:
        stats.grad_norm.copy_(norm[:, 0])
        stats.gamma.copy_(tree_sum(gamma) / cols if step.per_coordinate else gamma[:, 0])
        stats.finite.copy_(finite.all(1))


def normal_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the standard normals at ``position``."""
    out.copy_(philox.normal(position, out.shape[0], out.shape[1], out.device))


def uniform_(out: Tensor, position: Position) -> None:
    """Fill ``out`` (B, D) float32 with the uniform numbers in (0, 1] at ``position``."""
    out.copy_(philox.uniform(position, out.shape[0], out.shape[1], out.device))
