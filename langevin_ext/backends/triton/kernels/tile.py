"""What the kernels share: a program's tile, arithmetic with one rounding, coefficients, sums."""

import triton
import triton.language as tl

# What changes from step to step: any value runs the code compiled for the first.
RUNNING = ["origin", "seed", "step", "noise_stream", "first_chain", "rows"]


@triton.jit
def tile(D: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr):
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
def sqrt(x):
    """Correctly rounded: in float64 Triton's own is, in float32 it is not."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def divide(x, y):
    """Correctly rounded, as `sqrt`."""
    return x / y if y.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def clip_factor(norm, bound):
    """gamma of a norm (or a magnitude) against its bound."""
    gamma = tl.where(norm <= bound, 1.0, divide(bound, norm))
    gamma = tl.where(finite(norm), gamma, float("nan"))
    return tl.where(bound == float("inf"), 1.0, gamma)


@triton.jit
def coefficient(value, values, row, here, dtype: tl.constexpr):
    """A number for every chain, or one for each: (R, 1)."""
    if values is None:
        value = tl.full(here.shape, value, dtype)
    else:
        value = tl.load(values + row, mask=here, other=0.0)
    return value


@triton.jit
def whole_sum(sums, row, PARTS: tl.constexpr):
    """The sum of a row from its partial sums."""
    part = tl.arange(0, triton.next_power_of_2(PARTS))
    return tl.sum(tl.load(sums + row * PARTS + part, mask=part < PARTS, other=0.0), axis=0)
