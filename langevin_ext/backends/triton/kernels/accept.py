"""Accept or reject, in tiles of R chains by BLOCK coordinates.

    log q(x | y) - log q(y | x) = sum (m + a g)**2 c - (m - a' g')**2 c' + D log(d / d')
        = (c - c') m.m + 2 (c a m.g + c' a' m.g') + c a**2 g.g - c' a'**2 g'.g' + D log(d / d')
    log ratio = (U(x) - U(y)) + that;  x <- y where log u <= log ratio

with m = y - x, c = 1 / (2 d**2) and primes at y; a and d are the step's. `backends/reference.py` is
the specification and adds up the squares. The sums of the second line need no norm, so that one
pass over memory is enough. Its terms may cancel: it is within 8 ulp of float64 of the sum of
(|m| + |a g|)**2 c and the same at y, far less than the rounding of y makes of it.

A chain that fits a tile goes through in one launch. A longer one takes three: `product_parts`,
`decide_rows` and `select_tile`. The decision is a launch of its own because it replaces the energy
that it is made from: tiles that each made it for themselves would read one another's.
"""

import triton
import triton.language as tl

from ..noise import log, unit_interval, words
from .tile import RUNNING, clip_factor, coefficient, finite, sqrt, tile, whole_sum

# Read and written by the scalar.
ANYWHERE = [
    "drifts", "diffusions", "bounds", "log_ratios", "sums",
    "energy", "energy_y", "totals", "accepted",
]  # fmt: skip


@triton.jit
def products(x, g, y, g_y):
    """m m, m g, m g', g g and g' g' of each coordinate, in float64."""
    move = y.to(tl.float64) - x.to(tl.float64)
    g, g_y = g.to(tl.float64), g_y.to(tl.float64)
    return move * move, move * g, move * g_y, g * g, g_y * g_y


@triton.jit
def law(square, drift, diffusion, bound, CLIP: tl.constexpr):
    """a, c and d of the proposals from where the gradient has this square, in float64."""
    if CLIP:
        gamma = clip_factor(sqrt(square.to(drift.dtype)), bound)
        drift = drift * gamma
        diffusion = diffusion * sqrt(gamma)
    d = diffusion.to(tl.float64)
    return drift.to(tl.float64), 0.5 / (d * d), d


@triton.jit
def log_ratio(
    mm, mg, mg_y, gg, gg_y,
    drift, diffusion, bound, drifts, diffusions, bounds, chain, here,
    dtype: tl.constexpr, D: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """log q(x | y) - log q(y | x) from the sums of `products`, (R, 1)."""
    drift = coefficient(drift, drifts, chain, here, dtype)
    diffusion = coefficient(diffusion, diffusions, chain, here, dtype)
    if CLIP:
        bound = coefficient(bound, bounds, chain, here, dtype)
    a, c, d = law(gg, drift, diffusion, bound, CLIP)
    a_y, c_y, d_y = law(gg_y, drift, diffusion, bound, CLIP)
    ratio = 2.0 * (c * a * mg + c_y * a_y * mg_y) + (c * a * a * gg - c_y * a_y * a_y * gg_y)
    if CLIP:
        ratio += (c - c_y) * mm + tl.log(d / d_y) * D
    return ratio


@triton.jit
def decide(
    ratio, energy, energy_y, totals, accepted,
    origin, seed, step, noise_stream, first_chain, row, chain, here, R: tl.constexpr,
):  # fmt: skip
    """Whether each chain of a tile moves, (R, 1); it is recorded, and the energy moves."""
    old = tl.load(energy + chain, mask=here, other=0.0)
    new = tl.load(energy_y + chain, mask=here, other=0.0)
    total = (old.to(tl.float64) - new.to(tl.float64)) + ratio
    total = tl.where(finite(ratio) & finite(new), total, float("-inf"))
    word, _, _, _ = words(origin, seed, step, noise_stream, first_chain, row, row * 0, R, 1)
    moves = here & (log(unit_interval(word)).to(tl.float64) <= total)
    tl.debug_barrier()  # every warp has read what one of them writes: energies, and log ratios
    tl.store(energy + chain, new, mask=moves)
    tl.store(totals + chain, total, mask=here)
    tl.store(accepted + chain, moves.to(tl.uint8), mask=here)
    return moves


@triton.jit(do_not_specialize=RUNNING + ANYWHERE)
def accept_tile(
    x,
    grad,
    y,
    grad_y,
    drift: tl.float64,
    diffusion: tl.float64,
    bound: tl.float64,
    drifts,  # and the next two: (B,) in place of the number, or None
    diffusions,
    bounds,
    log_ratios,  # (B,) in place of all that is above, or None
    energy,
    energy_y,
    totals,
    accepted,
    origin,
    seed: tl.int64,
    step: tl.int64,
    noise_stream: tl.int64,
    first_chain: tl.int64,
    rows: tl.int64,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    CLIP: tl.constexpr,
):
    """A tile of whole chains."""
    row, _, r, c, at = tile(D, R, BLOCK)
    chain = row + r
    here = chain < rows
    inside = here & (c < D)
    x += row * D
    grad += row * D
    y += row * D
    grad_y += row * D
    if log_ratios is None:
        g = tl.load(grad + at, mask=inside, other=0.0)
        v = tl.load(x + at, mask=inside, other=0.0)
        w = tl.load(y + at, mask=inside, other=0.0)
        g_y = tl.load(grad_y + at, mask=inside, other=0.0)
        mm, mg, mg_y, gg, gg_y = products(v, g, w, g_y)
        ratio = log_ratio(
            tl.sum(mm, axis=1, keep_dims=True),
            tl.sum(mg, axis=1, keep_dims=True),
            tl.sum(mg_y, axis=1, keep_dims=True),
            tl.sum(gg, axis=1, keep_dims=True),
            tl.sum(gg_y, axis=1, keep_dims=True),
            drift, diffusion, bound, drifts, diffusions, bounds, chain, here,
            x.dtype.element_ty, D, CLIP,
        )  # fmt: skip
    else:
        ratio = tl.load(log_ratios + chain, mask=here, other=0.0)
    moves = inside & decide(
        ratio, energy, energy_y, totals, accepted,
        origin, seed, step, noise_stream, first_chain, row, chain, here, R,
    )  # fmt: skip
    if log_ratios is not None:
        w = tl.load(y + at, mask=moves)
        g_y = tl.load(grad_y + at, mask=moves)
    tl.store(x + at, w, mask=moves)
    tl.store(grad + at, g_y, mask=moves)


@triton.jit(do_not_specialize=["sums", "rows"])
def product_parts(
    x,
    grad,
    y,
    grad_y,
    sums,  # (5, B, PARTS) float64
    rows: tl.int64,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The sums of `products` over ROUNDS tiles of a long chain."""
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    mm = tl.full([], 0.0, tl.float64)
    mg, mg_y, gg, gg_y = mm, mm, mm, mm
    for i in range(ROUNDS):
        col = (part * ROUNDS + i).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = col < D
        at = row * D + col
        g = tl.load(grad + at, mask=inside, other=0.0)
        v = tl.load(x + at, mask=inside, other=0.0)
        w = tl.load(y + at, mask=inside, other=0.0)
        g_y = tl.load(grad_y + at, mask=inside, other=0.0)
        p0, p1, p2, p3, p4 = products(v, g, w, g_y)
        mm += tl.sum(p0, axis=0)
        mg += tl.sum(p1, axis=0)
        mg_y += tl.sum(p2, axis=0)
        gg += tl.sum(p3, axis=0)
        gg_y += tl.sum(p4, axis=0)
    plane = rows * PARTS
    sums += row * PARTS + part
    tl.store(sums, mm)
    tl.store(sums + plane, mg)
    tl.store(sums + 2 * plane, mg_y)
    tl.store(sums + 3 * plane, gg)
    tl.store(sums + 4 * plane, gg_y)


@triton.jit(do_not_specialize=RUNNING + ANYWHERE)
def decide_rows(
    x,
    drift: tl.float64,
    diffusion: tl.float64,
    bound: tl.float64,
    drifts,
    diffusions,
    bounds,
    log_ratios,  # (B,) in place of all that is above and of the sums, or None
    sums,
    energy,
    energy_y,
    totals,
    accepted,
    origin,
    seed: tl.int64,
    step: tl.int64,
    noise_stream: tl.int64,
    first_chain: tl.int64,
    rows: tl.int64,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    CLIP: tl.constexpr,
):
    """Whether a long chain moves."""
    row = tl.program_id(0).to(tl.int64)
    chain = row + tl.full([1, 1], 0, tl.int64)
    here = chain < rows
    if log_ratios is None:
        ratio = log_ratio(
            whole_sum(sums, row, PARTS),
            whole_sum(sums, row + rows, PARTS),
            whole_sum(sums, row + 2 * rows, PARTS),
            whole_sum(sums, row + 3 * rows, PARTS),
            whole_sum(sums, row + 4 * rows, PARTS),
            drift, diffusion, bound, drifts, diffusions, bounds, chain, here,
            x.dtype.element_ty, D, CLIP,
        )  # fmt: skip
    else:
        ratio = tl.load(log_ratios + chain)
    decide(
        ratio, energy, energy_y, totals, accepted,
        origin, seed, step, noise_stream, first_chain, row, chain, here, 1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["accepted"])
def select_tile(x, grad, y, grad_y, accepted, D: tl.constexpr, BLOCK: tl.constexpr):
    """A piece of a long chain, if it moves."""
    row, col, r, c, at = tile(D, 1, BLOCK)
    moves = (tl.load(accepted + row + r) != 0) & (col + c < D)
    at += row * D + col
    tl.store(x + at, tl.load(y + at, mask=moves), mask=moves)
    tl.store(grad + at, tl.load(grad_y + at, mask=moves), mask=moves)
