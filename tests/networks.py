"""Small networks for tests, of every activation that the kernels know."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky": functools.partial(nn.LeakyReLU, 0.2),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "softplus of 3": functools.partial(nn.Softplus, beta=3.0, threshold=2.0),
}
KINKED = {"relu", "leaky", "softplus of 3"}


def network(
    widths: tuple[int, ...], activation: str = "silu", *, bias: bool = True, last: bool = False
) -> nn.Sequential:
    """Layers from width to width with an activation between them, and after the last if asked."""
    torch.manual_seed(sum(widths))
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        linear = nn.Linear(inputs, outputs, bias=bias)
        parts += [linear, ACTIVATIONS[activation]()]
        nn.init.normal_(linear.weight, std=inputs**-0.5)
        if bias:
            nn.init.uniform_(linear.bias, 0.3, 0.9)
    if last:  # above 0, where no activation is flat
        nn.init.uniform_(linear.weight, 0, 2 / inputs)
    return nn.Sequential(*parts[: None if last else -1])
