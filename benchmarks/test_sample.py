"""A whole sampler, per step: gradient of an energy, Langevin update, clamp; ours and the others.

    x <- clamp(x - a grad U(x) + s xi, -1, 1)        the same update for all: none of it is clipped

For a ConvNet on a CPU the update is about 2 % of a step; what differs there is the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from conftest import Measure
from langevin_ext import Langevin, sample

DRIFT, DIFFUSION, CLAMP = 0.01, 0.1, (-1.0, 1.0)

Run = Callable[[], Tensor]
"""Takes the steps and returns the last states."""


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def convnet(channels: int, side: int) -> nn.Sequential:
    """VanillaNet of https://github.com/point0bar1/ebm-anatomy, its last kernel fit to the side."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 32, 3, 1, 1), nn.LeakyReLU(0.05)]
    for inner, outer in ((32, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(inner, outer, 4, 2, 1), nn.LeakyReLU(0.05)]
    return nn.Sequential(*layers, nn.Conv2d(256, 1, side // 8), nn.Flatten())


class Case(NamedTuple):
    energy: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    steps: int
    """In one call, so that what a call costs once is shared as it is in use."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)


BOTH = torch.float32, torch.bfloat16
CASES = [
    Case("MLP 2-128-128-1", lambda: mlp(2, 128, 128, 1), (100, 2), 100),
    Case("MLP 2-128-128-1", lambda: mlp(2, 128, 128, 1), (10_000, 2), 10),
    Case("MLP 784-256-256-1", lambda: mlp(784, 256, 256, 1), (64, 784), 50),
    Case("ConvNet 1x28x28", lambda: convnet(1, 28), (64, 1, 28, 28), 5, BOTH),
    Case("ConvNet 3x32x32", lambda: convnet(3, 32), (64, 3, 32, 32), 5, BOTH),
]


class Autocast(nn.Module):
    """An energy under autocast; for those that have no such argument."""

    def __init__(self, energy: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.energy, self.dtype = energy, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype):
            return self.energy(x).float()


def under(energy: nn.Module, dtype: torch.dtype) -> nn.Module:
    return energy if dtype == torch.float32 else Autocast(energy, dtype)


# ---- the contenders: build(energy, x, steps, dtype) -> Run -------------------------------------


def ours(energy: nn.Module, x: Tensor, steps: int, dtype: torch.dtype) -> Run:
    rule = Langevin.from_coefficients(DRIFT, DIFFUSION, clamp=CLAMP)
    autocast = None if dtype == torch.float32 else dtype
    return lambda: sample(energy, x, rule, steps, seed=0, autocast=autocast, backend="native").x


def loop(energy: nn.Module, x: Tensor, steps: int, dtype: torch.dtype) -> Run:
    """What a researcher writes."""
    energy = under(energy, dtype)

    def run() -> Tensor:
        y = x.clone()
        for _ in range(steps):
            y.requires_grad_()
            (grad,) = torch.autograd.grad(energy(y).sum(), y)
            y = (y.detach() - DRIFT * grad + DIFFUSION * torch.randn_like(y)).clamp(*CLAMP)
        return y

    return run


def torchebm(energy: nn.Module, x: Tensor, steps: int, dtype: torch.dtype) -> Run:
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.energy = under(energy, dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self.energy(x).flatten()

    noise_scale = DIFFUSION / math.sqrt(2 * DRIFT)
    sampler = LangevinDynamics(Model(), step_size=DRIFT, noise_scale=noise_scale, clamp=CLAMP)
    return lambda: sampler.sample(x=x, n_steps=steps)


def ebmkit(energy: nn.Module, x: Tensor, steps: int, dtype: torch.dtype) -> Run:
    from ebm.samplers import LangevinDynamics

    energy = under(energy, dtype)
    sampler = LangevinDynamics(DRIFT, steps, noise_scale=DIFFUSION, clamp=CLAMP)
    return lambda: sampler.sample(energy, x)


CONTENDERS = {"ours": ours, "loop": loop, "torchebm": torchebm, "ebmkit": ebmkit}
PACKAGES = {"ours": "langevin_ext", "loop": "torch"}  # else the contender's own name
MODULES = {"ours": "langevin_ext", "loop": "torch", "ebmkit": "ebm"}


class Quadratic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 5 * x.square().sum(1)


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_samples(name: str) -> None:
    """On U = 5 |x|^2 after 50 steps the variance is s^2 / (1 - (1 - 10 a)^2)."""
    pytest.importorskip(MODULES.get(name, name))
    torch.manual_seed(0)
    x = CONTENDERS[name](Quadratic(), torch.zeros(10_000, 2), 50, torch.float32)()
    expected = DIFFUSION**2 / (1 - (1 - 10 * DRIFT) ** 2)
    assert abs(x.mean()) < 5 * math.sqrt(expected / x.numel())
    assert abs(x.var() / expected - 1) < 5 * math.sqrt(2 / x.numel())


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{'x'.join(map(str, case.shape))}-{str(dtype)[6:]}")
        for case in CASES
        for dtype in case.dtypes
    ],
)
def test_sample(measure: Measure, case: Case, dtype: torch.dtype, threads: int, name: str) -> None:
    pytest.importorskip(MODULES.get(name, name))
    torch.manual_seed(0)
    energy, x = case.make(), torch.rand(case.shape) * 2 - 1
    package = PACKAGES.get(name, name)
    measure(
        CONTENDERS[name](energy, x, case.steps, dtype),
        suite="sample-cpu",
        steps=case.steps,
        contender=name,
        library=f"{package} {version(package)}",
        energy=case.energy,
        shape="x".join(map(str, case.shape)),
        threads=threads,
        dtype=str(dtype)[6:],
        elements=x.numel(),
    )
