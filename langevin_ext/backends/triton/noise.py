"""The noise as Triton device functions: Philox4x32-10 and Box-Muller.

`langevin_ext.philox` is the specification. Compiled with FP fusion off, each operation below is
one correctly rounded float32 operation in the order written there, so the bits are the same.
"""

import triton
import triton.language as tl


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four words for a counter and a key, all uint32."""
    for _ in tl.static_range(10):
        # One wide multiplication gives both halves; tl.philox takes two.
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def unit_interval(word):
    """uint32 -> float32 in (0, 1]."""
    return word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10


@triton.jit
def log(u):
    """The natural logarithm of float32 numbers in (0, 1]."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = exponent.to(tl.float32)
    p = f * 7.0376836292e-2 + -1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f + -1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f + -1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f + -2.4999993993e-1
    p = p * f + 3.3333331174e-1
    f2 = f * f
    y = p * f * f2
    y = y + e * -2.12194440e-4
    y = y - f2 * 0.5
    return (f + y) + e * 0.693359375


@triton.jit
def box_muller(radius_word, angle_word):
    """Two uint32 words -> two independent standard normals, float32."""
    radius = tl.sqrt_rn(log(unit_interval(radius_word)) * -2.0)

    quadrant = (angle_word + 0x20000000) >> 30
    remainder = (angle_word << 2).to(tl.int32, bitcast=True) >> 2
    x = remainder.to(tl.float32) * 1.4629180792671596e-09  # pi / 2 * 2**-30
    t = x * x
    s = t * -1.9515295891e-4 + 8.3321608736e-3
    s = s * t + -1.6666654611e-1
    s = s * t * x + x
    c = t * 2.443315711809948e-5 + -1.388731625493765e-3
    c = c * t + 4.166664568298827e-2
    c = c * t * t - t * 0.5 + 1.0

    odd = (quadrant & 1) != 0
    sine = tl.where(odd, c, s).to(tl.uint32, bitcast=True)
    cosine = tl.where(odd, s, c).to(tl.uint32, bitcast=True)
    sine ^= (quadrant & 2) << 30
    cosine ^= ((quadrant + 1) & 2) << 30
    return (
        radius * cosine.to(tl.float32, bitcast=True),
        radius * sine.to(tl.float32, bitcast=True),
    )


@triton.jit
def _approximate(x, function: tl.constexpr):
    return tl.inline_asm_elementwise(
        function + ".approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def box_muller_approximate(radius_word, angle_word):
    """The same law from the GPU's own logarithm, square root, sine and cosine; not in the
    interpreter."""
    square = _approximate(unit_interval(radius_word), "lg2") * -1.3862943611198906  # -2 log 2
    radius = _approximate(tl.maximum(square, 0.0), "sqrt")
    angle = angle_word.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
    return radius * _approximate(angle, "cos"), radius * _approximate(angle, "sin")


@triton.jit
def interleave(z0, z1, z2, z3, R: tl.constexpr, BLOCK: tl.constexpr):
    """Coordinates 4q to 4q + 3 from the four results of call q; a short block takes the first."""
    if BLOCK == 1:
        z = z0
    elif BLOCK == 2:
        z = tl.reshape(tl.join(z0, z1), (R, 2))
    else:
        z = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (R, BLOCK))
    return z


@triton.jit
def words(
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
def normals(
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
