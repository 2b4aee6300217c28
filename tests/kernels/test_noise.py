"""The noise of the kernels: known answers, and every bit of the reference."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from langevin_ext import philox
from langevin_ext._types import Position
from langevin_ext.backends import triton as kernels
from langevin_ext.backends.triton import noise

from ..conftest import CPU, assert_same_bits
from ..test_philox import KNOWN_NORMALS, KNOWN_WORDS
from .conftest import DEVICE, INTERPRETED

# Below, at and above a call of the generator, a tile's row, a tile, and what fits one program.
SHAPES = (
    (1030, 1), (600, 2), (300, 3), (300, 4), (130, 5), (130, 7), (17, 63), (17, 64), (17, 65),
    (9, 127), (9, 128), (5, 129), (5, 256), (5, 257), (3, 512), (3, 784), (2, 1000), (3, 4096),
    (3, 4097), (2, 16384), (2, 16385), (2, 20001),
)  # fmt: skip
PLACE = Position(0xFEDCBA9876543210, 2**40 + 5, 9, 2**31 - 7)


def drawn(law: str, shape: tuple[int, int], position: Position) -> Tensor:
    out = torch.full(shape, torch.nan, device=DEVICE)
    getattr(kernels, law)(out, position)
    return out.cpu()


@triton.jit
def philox_kernel(counter, key, words):
    w0, w1, w2, w3 = noise.philox4x32(
        tl.load(counter).to(tl.uint32),
        tl.load(counter + 1).to(tl.uint32),
        tl.load(counter + 2).to(tl.uint32),
        tl.load(counter + 3).to(tl.uint32),
        tl.load(key).to(tl.uint32),
        tl.load(key + 1).to(tl.uint32),
    )
    tl.store(words, w0.to(tl.int64))
    tl.store(words + 1, w1.to(tl.int64))
    tl.store(words + 2, w2.to(tl.int64))
    tl.store(words + 3, w3.to(tl.int64))


@triton.jit
def box_muller_kernel(radius_words, angle_words, z0, z1, count, BLOCK: tl.constexpr):  # noqa: N803
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    radius_word = tl.load(radius_words + i, mask=i < count, other=0).to(tl.uint32)
    angle_word = tl.load(angle_words + i, mask=i < count, other=0).to(tl.uint32)
    a, b = noise.box_muller(radius_word, angle_word)
    tl.store(z0 + i, a, mask=i < count)
    tl.store(z1 + i, b, mask=i < count)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_WORDS)
def test_known_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    out = torch.empty(4, dtype=torch.int64, device=DEVICE)
    philox_kernel[(1,)](
        torch.tensor(counter, device=DEVICE),
        torch.tensor(key, device=DEVICE),
        out,
        enable_fp_fusion=False,
    )
    assert tuple(out.tolist()) == words


@pytest.mark.parametrize(("position", "words"), KNOWN_NORMALS)
def test_known_normals(position: object, words: str) -> None:
    s = position.state_dict()  # type: ignore[attr-defined]
    z = drawn("normal_", (1, 8), Position(s["seed"], s["step"], s["stream"], s["first_chain"]))
    assert [f"{w & 0xFFFFFFFF:08x}" for w in z.view(torch.int32)[0].tolist()] == words.split()


def test_corners_have_the_reference_bits() -> None:
    """Every pair of words at the ends of an octave, of a quadrant and of the range."""
    edges = torch.tensor(
        sorted({e + d for e in (0, *(2**k for k in range(33)), 3 * 2**30) for d in (-1, 0, 1)})
    )
    edges = edges[(edges >= 0) & (edges < 2**32)]
    radius, angle = torch.cartesian_prod(edges, edges).t().contiguous()
    got = [torch.empty(len(radius), device=DEVICE) for _ in range(2)]
    box_muller_kernel[(triton.cdiv(len(radius), 8192),)](
        radius.to(DEVICE), angle.to(DEVICE), *got, len(radius), BLOCK=8192, enable_fp_fusion=False
    )
    for z, want in zip(got, philox.box_muller(radius, angle), strict=True):
        assert_same_bits(z.cpu(), want)


def test_a_million_normals_are_the_reference_bits() -> None:
    rows = 62
    assert rows * 16384 > 10**6
    want = philox.normal(PLACE, rows, 16384, CPU)
    assert_same_bits(drawn("normal_", (rows, 16384), PLACE), want)


@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_every_shape_has_the_reference_bits(law: str) -> None:
    for shape in SHAPES:
        want = getattr(philox, law)(PLACE, *shape, CPU)
        assert_same_bits(drawn(f"{law}_", shape, PLACE), want, shape)


# Where an argument of a kernel would change its type, or an interpreter its mind.
SEEDS = 0, 1, 16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1
STEPS = 0, 1, 16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**48 - 1


def test_every_place_has_the_reference_bits() -> None:
    places = [Position(seed, 3, 0, 0) for seed in SEEDS]
    places += [Position(5, step, 1, 7) for step in STEPS]
    places += [Position(5, 2**32 + 9, stream, 7) for stream in (0, 1, 2**15, 2**16 - 1)]
    places += [Position(5, 9, 1, chain) for chain in (1, 16, 2**31 - 2, 2**31, 2**32 - 5)]
    for place in places:
        want = philox.normal(place, 5, 6, CPU)
        assert_same_bits(drawn("normal_", (5, 6), place), want, place)


@pytest.mark.parametrize("device", [CPU, DEVICE], ids=["origin on the host", "on the device"])
def test_an_origin_counts_as_its_numbers(device: torch.device) -> None:
    """[seed, step] in memory and a number of steps from it are the seed and the sum."""
    for seed, start, more in ((2**64 - 1, 0, 5), (7, 2**31 - 1, 1), (2**63, 2**40, 2**32 + 3)):
        origin = torch.tensor([seed - (seed >> 63 << 64), start], device=device)
        got = drawn("normal_", (3, 10), Position(0, more, 2, 5, origin))
        want = philox.normal(Position(seed, start + more, 2, 5), 3, 10, CPU)
        assert_same_bits(got, want, (seed, start, more))
        assert origin.tolist() == [seed - (seed >> 63 << 64), start]


@pytest.mark.parametrize("cols", [1, 3, 64, 100, 784])
def test_a_shard_draws_its_own_rows(cols: int) -> None:
    whole = drawn("normal_", (11, cols), PLACE)
    for first, rows in ((0, 4), (4, 1), (5, 6)):
        place = PLACE._replace(first_chain=PLACE.first_chain + first)
        assert_same_bits(drawn("normal_", (rows, cols), place), whole[first : first + rows])


def test_approximate_noise() -> None:
    """The interpreter gives the exact noise. A GPU is nowhere further from it than 1e-3: lg2.approx
    is within 2**-22, so a squared radius near 0 is off by 3.3e-7 and the radius by 5.8e-4 at
    most. On average it is within 1e-5, of which sin.approx and cos.approx, within 2**-20.5, use
    less than a tenth."""
    exact = drawn("normal_", (4, 16384), PLACE)
    near = drawn("normal_", (4, 16384), PLACE._replace(approximate=True))
    if INTERPRETED:
        assert_same_bits(near, exact)
    else:
        assert float((near - exact).abs().max()) <= 1e-3
        assert float((near - exact).abs().mean()) <= 1e-5
        assert not torch.equal(near, exact)
