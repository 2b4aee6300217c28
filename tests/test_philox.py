"""The generator and the normals: known answers, and the same bits from every engine."""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_ext import Noise, noise, philox

from .conftest import CPU, NO_NATIVE, assert_same_bits

# Random123's kat_vectors for philox4x32-10: counter, key, words.
KNOWN_WORDS = (
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
# float32 bits of coordinates 0 to 7.
KNOWN_NORMALS = (
    (
        Noise(0),
        "3f7dbb31 bf6cb6b0 bf1e1b9f bef6d1b2 be1d5353 3e392a68 3f54ec97 3e4a2da2",
    ),
    (
        Noise(0x1234567890ABCDEF, stream=0, first_chain=3, step=7),
        "3ff62fe9 bfb34707 bf075025 3f2e6184 be270fef 3faf65f5 3e8242ce c000ec81",
    ),
    (
        Noise(2**64 - 1, stream=9, first_chain=2**32 - 1, step=2**40 + 5),
        "3ec8061e 3f8811f3 be087d3a bf15b46c 3b5125cd bed2e3c0 be81009b bfb3baf6",
    ),
)
# Below, at and above a group of 4, a vector, a chunk of 64 and a block of 4096.
COLUMNS = 1, 2, 3, 4, 5, 7, 63, 64, 65, 257, 784, 4096, 4097


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_WORDS)
def test_reference_has_the_known_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    assert tuple(philox.philox4x32(torch.tensor(counter), torch.tensor(key)).tolist()) == words


@pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native backend: {NO_NATIVE}")
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_WORDS)
def test_native_has_the_known_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    compiled = importlib.import_module("langevin_ext._C")
    assert compiled.philox4x32(*counter, key[0] | key[1] << 32) == words


def test_counters_and_keys_broadcast() -> None:
    """One call over many counters and keys is the calls one by one."""
    counters = torch.tensor([c for c, _, _ in KNOWN_WORDS])
    keys = torch.tensor([k for _, k, _ in KNOWN_WORDS])
    table = noise.philox4x32(counters[:, None], keys)
    for i, counter in enumerate(counters):
        for j, key in enumerate(keys):
            assert torch.equal(table[i, j], philox.philox4x32(counter, key))


@pytest.mark.parametrize(("position", "words"), KNOWN_NORMALS)
def test_known_normals(position: Noise, words: str, backend: str) -> None:
    z = position.normal((1, 8), backend=backend)
    assert [f"{w & 0xFFFFFFFF:08x}" for w in z.view(torch.int32)[0].tolist()] == words.split()


def _place(rows: int) -> Noise:
    """A step above 2^32, and chains on both sides of 2^31."""
    return Noise(0xFEDCBA9876543210, stream=9, first_chain=2**31 - rows // 2, step=2**40 + 5)


@functools.cache
def _specified(law: str, numbers: int, cols: int) -> Tensor:
    """At least ``numbers`` numbers of the reference."""
    rows = numbers // cols + 1
    draw = philox.normal if law == "normal" else philox.uniform
    return draw(_place(rows).position(rows, cols), rows, cols, CPU)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_million_normals_are_the_reference_bits(threads: int, isa: str) -> None:
    """A million over all column counts."""
    torch.set_num_threads(threads)
    for cols in COLUMNS:
        want = _specified("normal", 10**6 // len(COLUMNS), cols)
        got = _place(len(want)).normal(want.shape, backend="native")
        assert_same_bits(got, want, f"{cols} columns")


@pytest.mark.parametrize("threads", [1, 2])
def test_uniform_numbers_are_the_reference_bits(threads: int, isa: str) -> None:
    torch.set_num_threads(threads)
    for cols in COLUMNS:
        want = _specified("uniform", 10**4, cols)
        got = _place(len(want)).uniform(want.shape, backend="native")
        assert_same_bits(got, want, f"{cols} columns")


def _exact(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Box-Muller in float64 of the same uniform number and the same angle."""
    radius = (-2 * philox.unit_interval(radius_word).double().log()).sqrt()
    angle = angle_word.double() * (2 * torch.pi / 2**32)
    return radius * angle.cos(), radius * angle.sin()


def test_normals_are_accurate() -> None:
    """Within 1e-6 of float64 Box-Muller, over 2e5 pairs and the corners of both words."""
    words = philox.words(Noise(3).position(1, 4 * 10**5), 1, 4 * 10**5, CPU)[0]
    edges = torch.tensor(
        sorted({e + d for e in (0, *(2**k for k in range(33)), 3 * 2**30) for d in (-1, 0, 1)}),
        device=CPU,
    )
    edges = edges[(edges >= 0) & (edges < 2**32)]
    corners = torch.cartesian_prod(edges, edges)
    radius_word, angle_word = torch.cat((words[:, :2], words[:, 2:], corners)).unbind(1)
    got = torch.stack(philox.box_muller(radius_word, angle_word))
    want = torch.stack(_exact(radius_word, angle_word))
    assert float((got - want).abs().max()) <= 1e-6
    assert 6.76 < float(got.abs().max()) <= 6.77  # word 0, the longest radius, is in `edges`


def test_square_roots_are_correctly_rounded() -> None:
    """In float32, which the noise needs; in float64 to one bit."""
    x = torch.rand(10**5, dtype=torch.float64) * 100
    root = philox.sqrt(x.float()).cpu().numpy()
    np.testing.assert_array_equal(root, np.sqrt(x.float().cpu().numpy()))
    np.testing.assert_array_max_ulp(philox.sqrt(x).cpu().numpy(), np.sqrt(x.cpu().numpy()), 1)


def test_uniform_numbers_are_in_the_half_open_interval() -> None:
    ends = philox.unit_interval(torch.tensor([0, 2**32 - 1]))
    assert ends.tolist() == [2.0**-33, 1.0]
