"""Small networks for tests, of every activation that the kernels know."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

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


def with_weights(net: nn.Sequential, *layers: tuple[Any, Any]) -> nn.Sequential:
    """The network with these weights and biases."""
    linear = [part for part in net if isinstance(part, nn.Linear)]
    with torch.no_grad():
        for part, (weight, bias) in zip(linear, layers, strict=True):
            part.weight.copy_(torch.tensor(weight))
            part.bias.copy_(torch.tensor(bias))
    return net


LAWS: dict[str, tuple[Callable[[], nn.Sequential], tuple[float, float]]] = {
    "two wells": (
        lambda: with_weights(
            nn.Sequential(
                nn.Linear(1, 2), nn.Softplus(), nn.Linear(2, 3), nn.SiLU(), nn.Linear(3, 1)
            ),
            ([[2.0], [-2.0]], [-2.0, -2.0]),
            ([[1.0, 0.5], [0.4, 1.0], [-3.0, -3.0]], [0.0, 0.0, 4.0]),
            ([[1.0, 0.8, 0.7]], [0.3]),
        ), (-14.0, 14.0),
    ),
    "a kink": (
        lambda: with_weights(
            nn.Sequential(nn.Linear(1, 1), nn.LeakyReLU(-0.6)), ([[1.5]], [0.0])
        ), (-24.0, 18.0),
    ),
}  # fmt: skip
"""Networks on the line, and a span that holds all but 1e-7 of their laws."""
