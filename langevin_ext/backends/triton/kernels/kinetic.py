"""A pass of a splitting scheme, in tiles of R chains by BLOCK coordinates.

    v <- v - k g;  x <- x + t v;  v <- c v + s xi;  v <- v - k' g;  x <- x + t' v

`backends/reference.py` is the specification. What a pass leaves out is not compiled, and what it
does not change is not written. Nothing waits for a sum, so a chain may be cut anywhere; the sums of
one that is, its energies and statistics, are written tile by tile and added up by `finish_rows`.
"""

import triton
import triton.language as tl

from ..noise import normals, words
from .tile import RUNNING, coefficient, finite, sqrt, tile

# Read and written by the scalar.
ANYWHERE = [
    "kicks", "drifts", "keeps", "spreads", "second_kicks", "second_drifts",
    "energies", "norms", "gammas", "finites", "sums",
]  # fmt: skip


@triton.jit
def squares(v, inside, beyond):
    """The sum of v**2 of each chain in float64, (R, 1)."""
    wide = tl.where(inside, v, beyond).to(tl.float64)
    return tl.sum(wide * wide, axis=1, keep_dims=True)


@triton.jit(do_not_specialize=RUNNING + ANYWHERE)
def kinetic_tile(
    x,
    v,
    grad,  # or None
    energies,  # (2, B) float64, or None
    norms,  # and the next two: where the statistics go, or None
    gammas,
    finites,
    sums,  # (4, B, TILES) float64 in place of the four above, or None
    kick: tl.float64,
    drift: tl.float64,
    keep: tl.float64,
    spread: tl.float64,
    second_kick: tl.float64,
    second_drift: tl.float64,
    kicks,  # and the next five: (B,) in place of the number, or None
    drifts,
    keeps,
    spreads,
    second_kicks,
    second_drifts,
    origin,
    seed: tl.int64,
    step: tl.int64,
    noise_stream: tl.int64,
    first_chain: tl.int64,
    rows: tl.int64,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    KICK: tl.constexpr,  # and the next four: whether the coefficient is not 0
    DRIFT: tl.constexpr,
    KEEP: tl.constexpr,
    SECOND_KICK: tl.constexpr,
    SECOND_DRIFT: tl.constexpr,
    REFRESH: tl.constexpr,  # whether v <- c v + s xi does anything
    NOISE: tl.constexpr,  # None, "exact" or "approximate"
):
    """One pass over one tile, in place; every operation in the order of the reference."""
    dtype: tl.constexpr = x.dtype.element_ty
    row, col, r, c, at = tile(D, R, BLOCK)
    chain = row + r
    here = chain < rows
    inside = here & (col + c < D)
    x += row * D + col
    v += row * D + col
    q = tl.load(x + at, mask=inside, other=0.0)
    p = tl.load(v + at, mask=inside, other=0.0)
    # Zero where a tile has no coordinates, and loaded. Beside a constant the compiler would lay out
    # the sums of fresh noise in its own way, and bring the noise there through shared memory.
    beyond = q if DRIFT or SECOND_DRIFT else p
    g = tl.full([R, BLOCK], 0.0, dtype)
    if grad is not None:
        g = tl.load(grad + row * D + col + at, mask=inside, other=0.0)

    if KICK:
        p = p - coefficient(kick, kicks, chain, here, dtype) * g
    if DRIFT:
        q = q + coefficient(drift, drifts, chain, here, dtype) * p
    if REFRESH:
        if KEEP:
            p = coefficient(keep, keeps, chain, here, dtype) * p
        else:
            p = tl.full([R, BLOCK], 0.0, dtype)
        if NOISE is not None:
            w0, w1, w2, w3 = words(
                origin, seed, step, noise_stream, first_chain, row, col, R, BLOCK
            )
            xi = normals(w0, w1, w2, w3, NOISE == "approximate", D, R, BLOCK).to(dtype)
            p = p + coefficient(spread, spreads, chain, here, dtype) * xi
    refreshed = p
    if SECOND_KICK:
        p = p - coefficient(second_kick, second_kicks, chain, here, dtype) * g
    if SECOND_DRIFT:
        q = q + coefficient(second_drift, second_drifts, chain, here, dtype) * p
    if DRIFT or SECOND_DRIFT:
        tl.store(x + at, q, mask=inside)
    if KICK or REFRESH or SECOND_KICK:
        tl.store(v + at, p, mask=inside)

    if sums is not None:
        plane = rows * ((D + BLOCK - 1) // BLOCK)
        sums += tl.program_id(0) + tl.full([R, 1], 0, tl.int64)
    if energies is not None:
        first = squares(refreshed, inside, beyond)
        last = squares(p, inside, beyond) if SECOND_KICK else first
        if sums is None:
            tl.store(energies + chain, first * 0.5, mask=here)
            tl.store(energies + rows + chain, last * 0.5, mask=here)
        else:
            tl.store(sums, first)
            tl.store(sums + plane, last)
    if norms is not None:
        square = tl.sum(g * g, axis=1, keep_dims=True)
        good = finite(q) & finite(p)
        bad = tl.sum((inside & (good == 0)).to(tl.int32), axis=1, keep_dims=True)
        if sums is None:
            tl.store(norms + chain, sqrt(square), mask=here)
            tl.store(gammas + chain, tl.full([R, 1], 1.0, dtype), mask=here)
            tl.store(finites + chain, (bad == 0).to(tl.uint8), mask=here)
        else:
            tl.store(sums + 2 * plane, square.to(tl.float64))
            tl.store(sums + 3 * plane, bad.to(tl.float64))


@triton.jit
def row_sum(sums, row, TILES: tl.constexpr):
    """The sum of a row of (B, TILES), in an order that depends on TILES alone."""
    total = tl.full([1024], 0.0, tl.float64)
    for start in range(0, TILES, 1024):
        part = start + tl.arange(0, 1024)
        total += tl.load(sums + row * TILES + part, mask=part < TILES, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=[*ANYWHERE, "rows"])
def finish_rows(
    sums,
    energies,
    norms,
    gammas,
    finites,
    rows: tl.int64,
    TILES: tl.constexpr,
):
    """The energies and statistics of one long chain from the sums of its tiles."""
    row = tl.program_id(0).to(tl.int64)
    if energies is not None:
        tl.store(energies + row, row_sum(sums, row, TILES) * 0.5)
        tl.store(energies + rows + row, row_sum(sums, row + rows, TILES) * 0.5)
    if norms is not None:
        dtype: tl.constexpr = norms.dtype.element_ty
        tl.store(norms + row, sqrt(row_sum(sums, row + 2 * rows, TILES).to(dtype)))
        tl.store(gammas + row, 1.0)
        tl.store(finites + row, (row_sum(sums, row + 3 * rows, TILES) == 0.0).to(tl.uint8))
