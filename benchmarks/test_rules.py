r"""The rules that do more than one update: ours beside the loop a person would write, per step.

    MALA     y = x - (h / 2) g + sqrt(h) xi;  accept or reject
    BAOAB    v -= (h / 2) g;  x += (h / 2) v;  v = c v + s xi;  x += (h / 2) v;  v -= (h / 2) g
    HMC      a new momentum, five leapfrog steps, accept or reject

The gradient is a fixed tensor, so that what a rule adds to it is all that is timed; chains accept
about half of what is proposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Measure
from langevin_ext import HMC, MALA, KineticLangevin, sample

H, FRICTION, LEAPFROGS, STEPS = 0.01, 1.0, 5, 20
SHAPES = [(4, 2), (10_000, 2), (64, 784), (64, 3, 32, 32)]

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x -> (U, grad U)."""


class Fixed:
    """An energy that costs nothing: the same gradient everywhere, the values of a fair coin."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.grad = torch.randn(shape, generator=generator)
        self.values = [torch.randn(shape[0], generator=generator) for _ in range(7)]
        self.calls = 0

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.values[self.calls % len(self.values)], self.grad

    def __call__(self, x: Tensor) -> Tensor:
        raise AssertionError("the closed form is what is asked")


# ---- by hand ------------------------------------------------------------------------------------


def column(per_chain: Tensor, x: Tensor) -> Tensor:
    return per_chain.view(-1, *[1] * (x.dim() - 1))


def mala(gradient: Gradient, x: Tensor, steps: int) -> Tensor:
    u, g = gradient(x)
    for _ in range(steps):
        y = x - H / 2 * g + math.sqrt(H) * torch.randn_like(x)
        u_y, g_y = gradient(y)
        there = (y - x + H / 2 * g).flatten(1).square().sum(1)
        back = (x - y + H / 2 * g_y).flatten(1).square().sum(1)
        log_ratio = u - u_y + (there - back) / (2 * H)
        accepted = torch.rand_like(u).log() <= log_ratio
        x = torch.where(column(accepted, x), y, x)
        g = torch.where(column(accepted, x), g_y, g)
        u = torch.where(accepted, u_y, u)
    return x


def baoab(gradient: Gradient, x: Tensor, steps: int) -> Tensor:
    keep = math.exp(-FRICTION * H)
    v = torch.randn_like(x)
    _, g = gradient(x)
    for _ in range(steps):
        v = v - H / 2 * g
        x = x + H / 2 * v
        v = keep * v + math.sqrt(1 - keep**2) * torch.randn_like(v)
        x = x + H / 2 * v
        _, g = gradient(x)
        v = v - H / 2 * g
    return x


def hmc(gradient: Gradient, x: Tensor, steps: int) -> Tensor:
    u, g = gradient(x)
    for _ in range(steps):
        y, p = x, torch.randn_like(x)
        before = u + p.flatten(1).square().sum(1) / 2
        g_y = g
        for _ in range(LEAPFROGS):
            p = p - H / 2 * g_y
            y = y + H * p
            u_y, g_y = gradient(y)
            p = p - H / 2 * g_y
        log_ratio = before - u_y - p.flatten(1).square().sum(1) / 2
        accepted = torch.rand_like(u).log() <= log_ratio
        x = torch.where(column(accepted, x), y, x)
        g = torch.where(column(accepted, x), g_y, g)
        u = torch.where(accepted, u_y, u)
    return x


RULES: dict[str, tuple[Any, Callable[[Gradient, Tensor, int], Tensor]]] = {
    "MALA": (MALA(H), mala),
    "BAOAB": (KineticLangevin(H, FRICTION), baoab),
    "HMC, 5 steps": (HMC(H, LEAPFROGS), hmc),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("contender", ["ours", "loop"])
def test_a_contender_samples(name: str, contender: str) -> None:
    """N(0, 1) from N(0, 1), whose variance 5 standard errors hold."""
    rule, by_hand = RULES[name]
    torch.manual_seed(0)
    x = torch.randn(20_000, 2)
    if contender == "ours":
        x = sample(lambda x: x.square().sum(1) / 2, x, rule, 10, seed=0, backend="native").x
    else:
        x = by_hand(lambda x: (x.square().sum(1) / 2, x), x, 10)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / x.numel())


@pytest.mark.parametrize("contender", ["ours", "loop"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_rule(
    measure: Measure, shape: tuple[int, ...], threads: int, name: str, contender: str
) -> None:
    rule, by_hand = RULES[name]
    energy, x = Fixed(shape), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if contender == "ours":
        work: Any = lambda: sample(energy, x, rule, STEPS, seed=0, backend="native")  # noqa: E731
    else:
        work = lambda: by_hand(energy.value_and_gradient, x, STEPS)  # noqa: E731
    package = "langevin_ext" if contender == "ours" else "torch"
    measure(
        work,
        suite="rules-cpu",
        steps=STEPS,
        contender=contender,
        library=f"{package} {version(package)}",
        energy=name,
        shape="x".join(map(str, shape)),
        threads=threads,
        dtype="float32",
        elements=x.numel(),
    )
