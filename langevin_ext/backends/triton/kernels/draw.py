"""The noise alone, in the tiles of the step."""

import triton
import triton.language as tl

from ..noise import interleave, normals, unit_interval, words
from .tile import RUNNING, tile


@triton.jit(do_not_specialize=RUNNING)
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
    row, col, r, c, at = tile(D, R, BLOCK)
    w0, w1, w2, w3 = words(origin, seed, step, noise_stream, first_chain, row, col, R, BLOCK)
    if NOISE == "uniform":
        z = interleave(
            unit_interval(w0), unit_interval(w1), unit_interval(w2), unit_interval(w3), R, BLOCK
        )
    else:
        z = normals(w0, w1, w2, w3, NOISE == "approximate", D, R, BLOCK)
    tl.store(out + row * D + col + at, z, mask=(row + r < rows) & (col + c < D))
