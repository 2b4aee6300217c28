"""Sums over the steps of what each records of each chain, in tiles of BLOCK chains."""

import triton
import triton.language as tl

# Read and written by the scalar.
ANYWHERE = [
    "norms", "gammas", "log_ratios", "weights",
    "norm_sums", "gamma_sums", "clipped_sums", "acceptance_sums", "weight_sums",
]  # fmt: skip


@triton.jit
def add(sums, term, chain, here):
    tl.store(sums + chain, tl.load(sums + chain, mask=here, other=0.0) + term, mask=here)


@triton.jit(do_not_specialize=[*ANYWHERE, "rows"])
def tally_tile(
    norms,
    gammas,
    log_ratios,
    weights,
    norm_sums,
    gamma_sums,
    clipped_sums,
    acceptance_sums,
    weight_sums,
    rows: tl.int64,
    BLOCK: tl.constexpr,
):
    chain = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = chain < rows
    gamma = tl.load(gammas + chain, mask=here, other=1.0).to(tl.float64)
    add(norm_sums, tl.load(norms + chain, mask=here, other=0.0).to(tl.float64), chain, here)
    add(gamma_sums, gamma, chain, here)
    add(clipped_sums, (gamma < 1.0).to(tl.float64), chain, here)
    if log_ratios is not None:
        ratio = tl.load(log_ratios + chain, mask=here, other=0.0).to(tl.float64)
        add(acceptance_sums, tl.where(ratio >= 0.0, 1.0, tl.exp(ratio)), chain, here)
    if weights is not None:
        add(weight_sums, tl.load(weights + chain, mask=here, other=0.0).to(tl.float64), chain, here)
