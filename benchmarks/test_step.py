"""One step, float32: every contender of updates.py, side by side, shape by shape.

On a CPU, or with ``LANGEVIN_DEVICE=cuda`` on a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch

from conftest import DEVICE, Measure
from updates import CONTENDERS, HIGH, LOW, Contender, compiler, has_compiler

ON_CPU = [(4, 2), (64, 3, 32, 32), (64, 1, 28, 28), (10_000, 2), (64, 3, 64, 64), (1_000_000, 2)]
ON_GPU = [
    (64, 3, 32, 32), (1_000_000, 2),  # what people run
    (262_144, 256), (65_536, 1024), (32_768, 3072), (8192, 12_288), (4096, 16_384), (512, 150_528),
]  # fmt: skip
SHAPES = ON_CPU if DEVICE.type == "cpu" else ON_GPU
HERE = [name for name, contender in CONTENDERS.items() if DEVICE.type in contender.devices]

# torch.compile imports torch.utils.mkldnn, which is written in the TorchScript torch deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)


def chosen(name: str) -> Contender:
    contender = CONTENDERS[name]
    if contender.compiles and not has_compiler():
        pytest.skip(f"torch.compile needs a C++ compiler and {compiler()!r} is not on the path")
    pytest.importorskip(contender.module, reason=f"{contender.package} is not installed")
    return contender


def inputs(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = {"generator": torch.Generator(DEVICE).manual_seed(0), "device": DEVICE}
    return torch.rand(shape, **drawn) * (HIGH - LOW) + LOW, torch.randn(shape, **drawn)


@pytest.mark.parametrize("name", [name for name in HERE if CONTENDERS[name].law])
def test_a_contender_does_its_work(name: str, threads: int) -> None:
    """Fresh noise in every step, of the right mean and scale in clipped and unclipped chains."""
    contender = chosen(name)
    assert contender.law is not None
    x, grad = inputs((20_000, 10))
    clipped = (grad.norm(dim=1) > math.sqrt(10))[:, None].expand_as(x)
    step = contender.build(x.clone(), grad)
    torch.manual_seed(1)
    noises, insides = [], []
    for _ in range(2):
        mean, scale = contender.law(x, grad)
        x = step().clone()
        assert x.min() == LOW
        assert x.max() == HIGH
        noises.append((x - mean) / scale)
        insides.append(mean.abs() < HIGH - 6 * scale)  # where the clamp does nothing
    for noise, inside in zip(noises, insides, strict=True):
        for group in (noise[inside & clipped], noise[inside & ~clipped]):
            n = group.numel()
            assert n > 10_000
            assert abs(group.mean()) < 5 / math.sqrt(n)
            assert abs(group.var() - 1) < 5 * math.sqrt(2 / n)
    first, second = (noise[insides[0] & insides[1]] for noise in noises)
    assert abs((first * second).mean()) < 5 / math.sqrt(first.numel())


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_step(measure: Measure, shape: tuple[int, ...], threads: int, name: str) -> None:
    contender = chosen(name)
    x, grad = inputs(shape)
    torch.manual_seed(0)
    measure(
        contender.build(x, grad),
        suite=f"step-{DEVICE.type}",
        contender=name,
        library=contender.library,
        energy="none",
        shape="x".join(map(str, shape)),
        threads=threads,
        dtype="float32",
        elements=x.numel(),
    )
