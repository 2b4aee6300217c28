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

from .noise import box_muller, box_muller_approximate, interleave, philox4x32, unit_interval

# What changes from step to step: any value runs the code compiled for the first.
_RUNNING = ["origin", "seed", "step", "noise_stream", "first_chain", "rows"]
_ANYWHERE = ["drifts", "diffusions", "bounds", "norms", "gammas", "finites"]  # read by the scalar


@triton.jit
def _tile(D: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr):
    """This program's first row and column, the rows and columns of its tile, and each number's
    offset from the first."""
    across: tl.constexpr = (D + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // across).to(tl.int64) * R
    col = (tl.program_id(0) % across).to(tl.int64) * BLOCK
    # The noise comes four to a thread; a wider load of 16-bit gradients would be reshuffled.
    c = tl.max_contiguous(tl.arange(0, BLOCK), 4 if BLOCK > 4 else BLOCK)
    r, c = tl.arange(0, R)[:, None], c[None, :]
    at = r * D + c if R > 1 else c  # a row alone may be longer than an int32
    return row, col, r, c, at


@triton.jit
def _words(
    origin, seed, step, noise_stream, first_chain, row, col, R: tl.constexpr, BLOCK: tl.constexpr
):
    """The four words behind every four coordinates of a tile."""
    # Triton's interpreter keeps a number in [2**31, 2**32) as uint32, which has no sign to shift.
    zero = tl.full([], 0, tl.int64)
    seed, step = seed + zero, step + zero
    if origin is not None:
        seed = tl.load(origin)
        step += tl.load(origin + 1)
    chain = (first_chain + row).to(tl.uint32) + tl.arange(0, R)[:, None].to(tl.uint32)
    groups: tl.constexpr = BLOCK // 4 if BLOCK > 4 else 1
    group = (col // 4).to(tl.uint32) + tl.arange(0, groups)[None, :].to(tl.uint32)
    high = ((noise_stream << 16) | (step >> 32)).to(tl.uint32)
    low_key, high_key = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    return philox4x32(group, chain, step.to(tl.uint32), high, low_key, high_key)


@triton.jit
def _normals(
    w0, w1, w2, w3, APPROXIMATE: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr
):
    """The standard normals of a tile from its words."""
    if APPROXIMATE:
        z0, z1 = box_muller_approximate(w0, w1)
        z2, z3 = box_muller_approximate(w2, w3)
    else:
        z0, z1 = box_muller(w0, w1)
        z2, z3 = box_muller(w2, w3)
    z = interleave(z0, z1, z2, z3, R, BLOCK)
    if BLOCK > D:  # so that the compiler drops what no lane needs
        z = tl.where(tl.arange(0, BLOCK)[None, :] < D, z, 0.0)
    return z


@triton.jit
def _sqrt(x):
    """Correctly rounded: in float64 Triton's own is, in float32 it is not."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def _divide(x, y):
    """Correctly rounded, as `_sqrt`."""
    return x / y if y.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _clip_factor(norm, bound):
    """gamma of a norm (or a magnitude) against its bound."""
    gamma = tl.where(norm <= bound, 1.0, _divide(bound, norm))
    gamma = tl.where(_finite(norm), gamma, float("nan"))
    return tl.where(bound == float("inf"), 1.0, gamma)


@triton.jit
def _coefficient(value, values, row, here, dtype: tl.constexpr):
    """A number for every chain, or one for each: (R, 1)."""
    if values is None:
        value = tl.full(here.shape, value, dtype)
    else:
        value = tl.load(values + row, mask=here, other=0.0)
    return value


@triton.jit
def _whole_sum(sums, row, PARTS: tl.constexpr):
    """The sum of a row from its partial sums."""
    part = tl.arange(0, triton.next_power_of_2(PARTS))
    return tl.sum(tl.load(sums + row * PARTS + part, mask=part < PARTS, other=0.0), axis=0)


@triton.jit(do_not_specialize=_RUNNING + _ANYWHERE)
def step_tile(
    x,
    grad,
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
    """One step of one tile, in place; every operation in the order of the reference."""
    dtype: tl.constexpr = x.dtype.element_ty
    row, col, r, c, at = _tile(D, R, BLOCK)
    here = row + r < rows
    inside = here & (col + c < D)
    x += row * D + col
    grad += row * D + col
    v = tl.load(x + at, mask=inside, other=0.0)
    g = tl.load(grad + at, mask=inside, other=0.0).to(dtype)
    chain = row + r
    a = _coefficient(drift, drifts, chain, here, dtype)
    d = _coefficient(diffusion, diffusions, chain, here, dtype)
    shrink = a * tl.full([], rho, dtype)

    gamma = tl.full([R, 1], 1.0, dtype)
    if CLIP == "sample" or norms is not None:
        if square_sums is None:
            square = tl.sum(g * g, axis=1, keep_dims=True)
        else:
            square = tl.full([R, 1], _whole_sum(square_sums, row, PARTS), dtype)
        norm = _sqrt(square)
    if CLIP is not None:
        bound = _coefficient(bound, bounds, chain, here, dtype)
        gamma = _clip_factor(norm if CLIP == "sample" else tl.abs(g), bound)
        a = a * gamma
        if TWICE_POWER == 1:
            d = d * _sqrt(gamma)
        elif TWICE_POWER == 2:
            d = d * gamma

    y = v - a * g
    if HAS_REFERENCE:
        y = y - shrink * v
    if NOISE is not None:
        w0, w1, w2, w3 = _words(origin, seed, step, noise_stream, first_chain, row, col, R, BLOCK)
        y = y + d * _normals(w0, w1, w2, w3, NOISE == "approximate", D, R, BLOCK).to(dtype)
    good = _finite(y)
    y = tl.where(good, y, float("nan"))
    if HAS_CLAMP:
        low = tl.full([], low, dtype)
        high = tl.full([], high, dtype)
        y = tl.where(y < low, low, y)
        y = tl.where(y > high, high, y)
    tl.store(x + at, y, mask=inside)

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
                gamma = tl.full([R, 1], _whole_sum(gamma_sums, row, PARTS), dtype)
            gamma = _divide(gamma, tl.full([R, 1], D, dtype))
        tl.store(norms + chain, norm, mask=here)
        tl.store(gammas + chain, gamma, mask=here)


@triton.jit(do_not_specialize=_ANYWHERE)
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
            limit = _coefficient(bound, bounds, row, row >= 0, dtype)
            shares += tl.where(col < D, _clip_factor(tl.abs(g), limit), 0.0)
    tl.store(square_sums + row * PARTS + part, tl.sum(squares, axis=0).to(dtype))
    if gamma_sums is not None:
        tl.store(gamma_sums + row * PARTS + part, tl.sum(shares, axis=0).to(dtype))
    if finites is not None:
        tl.store(finites + row, 1, mask=part == 0)


@triton.jit(do_not_specialize=_RUNNING)
def draw_tile(
    out,
    origin,
    seed: tl.int64,
    step: tl.int64,
    noise_stream: tl.int64,
    first_chain: tl.int64,
    rows: tl.int64,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    NOISE: tl.constexpr,  # "uniform", "exact" or "approximate"
):
    """The numbers of one tile, float32."""
    row, col, r, c, at = _tile(D, R, BLOCK)
    w0, w1, w2, w3 = _words(origin, seed, step, noise_stream, first_chain, row, col, R, BLOCK)
    if NOISE == "uniform":
        z = interleave(
            unit_interval(w0), unit_interval(w1), unit_interval(w2), unit_interval(w3), R, BLOCK
        )
    else:
        z = _normals(w0, w1, w2, w3, NOISE == "approximate", D, R, BLOCK)
    tl.store(out + row * D + col + at, z, mask=(row + r < rows) & (col + c < D))
