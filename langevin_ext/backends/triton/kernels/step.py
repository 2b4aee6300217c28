"""The step in tiles of R chains by BLOCK coordinates; one program each, straight through.

    gamma_i = 1 if |g_i| <= b else b / |g_i|
    a_i = drift_i gamma_i,  d_i = diffusion_i gamma_i**p        each rounded once
    y = x - a g;  y = y - (drift rho) x;  y = y + d xi;  x <- clamp(y, low, high)

`backends/reference.py` is the specification. A row that fits a tile finds its norm there, in the
same pass over memory. A longer row is cut into tiles: `partial_sums` goes first, if anything needs
its norm.
"""

import triton
import triton.language as tl

from ..noise import normals, words
from .tile import RUNNING, clip_factor, coefficient, divide, finite, sqrt, tile, whole_sum

ANYWHERE = ["drifts", "diffusions", "bounds", "norms", "gammas", "finites"]  # read by the scalar


@triton.jit(do_not_specialize=RUNNING + ANYWHERE)
def step_tile(
    x,
    grad,
    out,  # None: in place
    norms,  # and the next two: where the statistics go, or None
    gammas,
    finites,
    drift: tl.float64,  # Triton's own float is float32
    diffusion: tl.float64,
    bound: tl.float64,
    drifts,  # and the next two: (B,) in place of the number, or None
    diffusions,
    bounds,
    rho: tl.float64,
    low: tl.float64,
    high: tl.float64,
    square_sums,  # and the next: (B, PARTS) of rows longer than a tile, or None
    gamma_sums,
    origin,  # [seed, step] in memory, from which `step` counts; or None
    seed: tl.int64,
    step: tl.int64,
    noise_stream: tl.int64,
    first_chain: tl.int64,
    rows: tl.int64,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    CLIP: tl.constexpr,  # None, "sample" or "coordinate"
    TWICE_POWER: tl.constexpr,
    HAS_REFERENCE: tl.constexpr,
    HAS_CLAMP: tl.constexpr,
    NOISE: tl.constexpr,  # None, "exact" or "approximate"
):
    """One step of one tile; every operation in the order of the reference."""
    dtype: tl.constexpr = x.dtype.element_ty
    row, col, r, c, at = tile(D, R, BLOCK)
    here = row + r < rows
    inside = here & (col + c < D)
    x += row * D + col
    grad += row * D + col
    out = x if out is None else out + row * D + col
    v = tl.load(x + at, mask=inside, other=0.0)
    g = tl.load(grad + at, mask=inside, other=0.0).to(dtype)
    chain = row + r
    a = coefficient(drift, drifts, chain, here, dtype)
    d = coefficient(diffusion, diffusions, chain, here, dtype)
    shrink = a * tl.full([], rho, dtype)

    gamma = tl.full([R, 1], 1.0, dtype)
    if CLIP == "sample" or norms is not None:
        if square_sums is None:
            square = tl.sum(g * g, axis=1, keep_dims=True)
        else:
            square = tl.full([R, 1], whole_sum(square_sums, row, PARTS), dtype)
        norm = sqrt(square)
    if CLIP is not None:
        bound = coefficient(bound, bounds, chain, here, dtype)
        gamma = clip_factor(norm if CLIP == "sample" else tl.abs(g), bound)
        a = a * gamma
        if TWICE_POWER == 1:
            d = d * sqrt(gamma)
        elif TWICE_POWER == 2:
            d = d * gamma

    y = v - a * g
    if HAS_REFERENCE:
        y = y - shrink * v
    if NOISE is not None:
        w0, w1, w2, w3 = words(origin, seed, step, noise_stream, first_chain, row, col, R, BLOCK)
        y = y + d * normals(w0, w1, w2, w3, NOISE == "approximate", D, R, BLOCK).to(dtype)
    good = finite(y)
    y = tl.where(good, y, float("nan"))
    if HAS_CLAMP:
        low = tl.full([], low, dtype)
        high = tl.full([], high, dtype)
        y = tl.where(y < low, low, y)
        y = tl.where(y > high, high, y)
    tl.store(out + at, y, mask=inside)

    if norms is not None:
        bad = tl.sum((inside & (good == 0)).to(tl.int32), axis=1, keep_dims=True) > 0
        if D > BLOCK:  # `partial_sums` has written that the chain is finite
            tl.store(finites + chain, tl.full([R, 1], 0, tl.uint8), mask=here & bad)
        else:
            tl.store(finites + chain, (bad == 0).to(tl.uint8), mask=here)
        if CLIP == "coordinate":
            if gamma_sums is None:
                gamma = tl.sum(tl.where(inside, gamma, 0.0), axis=1, keep_dims=True)
            else:
                gamma = tl.full([R, 1], whole_sum(gamma_sums, row, PARTS), dtype)
            gamma = divide(gamma, tl.full([R, 1], D, dtype))
        tl.store(norms + chain, norm, mask=here)
        tl.store(gammas + chain, gamma, mask=here)


@triton.jit(do_not_specialize=ANYWHERE)
def partial_sums(
    grad,
    finites,
    bound: tl.float64,
    bounds,
    square_sums,
    gamma_sums,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The sums of g**2, and of gamma per coordinate, over ROUNDS tiles of a long row.

    Marks the row as finite, which `step_tile` takes back.
    """
    dtype: tl.constexpr = square_sums.dtype.element_ty
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    grad += row * D
    wide: tl.constexpr = tl.float64 if ROUNDS > 16 else dtype  # or many roundings would add up
    squares = tl.full([BLOCK], 0.0, wide)
    shares = tl.full([BLOCK], 0.0, wide)
    for i in range(ROUNDS):
        col = (part * ROUNDS + i).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(grad + col, mask=col < D, other=0.0).to(dtype)
        squares += g * g
        if gamma_sums is not None:
            limit = coefficient(bound, bounds, row, row >= 0, dtype)
            shares += tl.where(col < D, clip_factor(tl.abs(g), limit), 0.0)
    tl.store(square_sums + row * PARTS + part, tl.sum(squares, axis=0).to(dtype))
    if gamma_sums is not None:
        tl.store(gamma_sums + row * PARTS + part, tl.sum(shares, axis=0).to(dtype))
    if finites is not None:
        tl.store(finites + row, 1, mask=part == 0)
