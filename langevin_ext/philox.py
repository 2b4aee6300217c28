r"""The noise, specified in torch: Philox4x32-10 and Box-Muller, one rounded operation at a time.

    key     = (seed & 0xffffffff, seed >> 32)
    counter = (coordinate // 4, chain id, step & 0xffffffff, (stream << 16) | (step >> 32))
    words 0, 1 -> normals of coordinates 4q, 4q + 1;  words 2, 3 -> 4q + 2, 4q + 3
    u = float32(word) * 2**-32 + 2**-33                     in (0, 1], so |normal| <= 6.76

Philox: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
Logarithm, sine and cosine are the polynomials of Cephes' single-precision functions.

The order of operations below is the definition: csrc/philox.h repeats it, and the results are the
same bits. Nothing here is optimised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._types import Position

_MASK = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_SIN = -1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1
_COS = 2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2
_QUARTER_TURN = 1.4629180792671596e-09  # float32(pi / 2 * 2**-30)


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """The generator itself: Philox4x32-10.

    Args:
        counter: (..., 4) int64 holding uint32 values.
        key: (..., 2) int64 holding uint32 values, broadcast against ``counter``.

    Returns:
        (..., 4) int64 holding uint32 values.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        # The product wraps modulo 2^64; both of its halves are still right.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    shape = torch.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)  # type: ignore[no-untyped-call]
    return torch.stack([c.expand(shape) for c in (c0, c1, c2, c3)], -1)


def words(position: Position, rows: int, cols: int, device: torch.device) -> Tensor:
    """The four words behind every four coordinates: (rows, ceil(cols / 4), 4) int64."""
    position = position.on_host()
    groups = (cols + 3) // 4
    counter = torch.empty(rows, groups, 4, dtype=torch.int64, device=device)
    counter[..., 0] = torch.arange(groups, device=device)
    counter[..., 1] = torch.arange(rows, device=device)[:, None] + position.first_chain
    counter[..., 2] = position.step & _MASK
    counter[..., 3] = (position.stream << 16) | (position.step >> 32)
    key = torch.tensor([position.seed & _MASK, position.seed >> 32], device=device)
    return philox4x32(counter, key)


def unit_interval(word: Tensor) -> Tensor:
    """uint32 words as float32 in (0, 1]."""
    return word.to(torch.float32) * 2.0**-32 + 2.0**-33


def log(u: Tensor) -> Tensor:
    """The natural logarithm of float32 numbers in (0, 1]."""
    bits = u.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    e = exponent.to(torch.float32)
    p = torch.full_like(f, _LOG[0])
    for coefficient in _LOG[1:]:
        p = p * f + coefficient
    f2 = f * f
    y = p * f * f2
    y = y + e * -2.12194440e-4
    y = y - f2 * 0.5
    return (f + y) + e * 0.693359375


def sqrt(x: Tensor) -> Tensor:
    """Square root, correctly rounded in float32; torch's own on a CPU is not always."""
    return x.double().sqrt().to(x.dtype)


def box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two uint32 words -> two independent standard normals, float32."""
    radius = sqrt(log(unit_interval(radius_word)) * -2.0)

    turned = angle_word + 0x20000000  # the nearest multiple of a quarter turn, exactly
    quadrant = (turned >> 30) & 3
    remainder = (turned & 0x3FFFFFFF) - 0x20000000
    x = remainder.to(torch.float32) * _QUARTER_TURN
    t = x * x
    sine = torch.full_like(t, _SIN[0])
    for coefficient in _SIN[1:]:
        sine = sine * t + coefficient
    sine = sine * t * x + x
    cosine = torch.full_like(t, _COS[0])
    for coefficient in _COS[1:]:
        cosine = cosine * t + coefficient
    cosine = cosine * t * t - t * 0.5 + 1.0

    odd = (quadrant & 1) == 1
    s, c = torch.where(odd, cosine, sine), torch.where(odd, sine, cosine)
    s = torch.where(quadrant >= 2, -s, s)
    c = torch.where((quadrant == 1) | (quadrant == 2), -c, c)
    return radius * c, radius * s


def normal(position: Position, rows: int, cols: int, device: torch.device) -> Tensor:
    """Standard normals at a position: (rows, cols) float32."""
    w = words(position, rows, cols, device)
    z0, z1 = box_muller(w[..., 0::2], w[..., 1::2])
    return torch.stack((z0, z1), -1).reshape(rows, -1)[:, :cols].contiguous()


def uniform(position: Position, rows: int, cols: int, device: torch.device) -> Tensor:
    """Uniform numbers in (0, 1] at a position: (rows, cols) float32."""
    w = words(position, rows, cols, device)
    return unit_interval(w).reshape(rows, -1)[:, :cols].contiguous()
