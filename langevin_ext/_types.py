"""The few types that every layer shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Energy: TypeAlias = Callable[[Tensor], Tensor]
"""U: states (B, ...) -> (B,) or (B, 1); density proportional to exp(-U)."""

Coefficient: TypeAlias = "float | Tensor"
"""One value for every chain, or a (B,) tensor with one per chain."""

Clamp: TypeAlias = "tuple[float | None, float | None]"
Per: TypeAlias = Literal["sample", "coordinate"]


class Position(NamedTuple):
    """A place in the stream of noise; row i of a state is chain ``first_chain + i``."""

    seed: int
    step: int
    stream: int
    first_chain: int
    origin: Tensor | None = None
    """int64 ``[seed, step]`` on a device: the seed is then there, and ``step`` counts from it."""
    approximate: bool = False
    """A GPU may use its own logarithm, sine and cosine; otherwise the bits are the reference's."""

    def on_host(self) -> Position:
        """The same place without an origin; waits for the device that holds it."""
        if self.origin is None:
            return self
        seed, step = self.origin.tolist()
        return self._replace(seed=seed % 2**64, step=step + self.step, origin=None)


NOWHERE = Position(0, 0, 0, 0)
"""Of a step without noise."""


class StepSpec(NamedTuple):
    """One checked step: what a backend takes besides the state, its gradient and the stats."""

    drift: Coefficient
    """A number, or a contiguous (B,) tensor in the state's dtype; so are the next two."""
    diffusion: Coefficient
    max_grad_norm: Coefficient
    per_coordinate: bool
    noise_power: float
    reference_precision: float
    low: float
    high: float
    position: Position | None
    """Where the noise comes from; None if there is none."""


class StepCall(NamedTuple):
    """What the operators of the step take after the state, unchecked, in this order.

    A coefficient is the number, or the tensor after it if there is one; ``position`` and
    ``offset`` are the origin and step of a `Position`.
    """

    grad: Tensor
    position: Tensor | None
    offset: int
    stream: int
    first_chain: int
    approximate: bool
    drift: float
    drift_tensor: Tensor | None
    diffusion: float
    diffusion_tensor: Tensor | None
    max_grad_norm: float
    max_grad_norm_tensor: Tensor | None
    per_coordinate: bool
    noise_power: float
    reference_precision: float
    low: float
    high: float
    backend: str

    @property
    def coefficients(self) -> tuple[Coefficient, Coefficient, Coefficient]:
        """drift, diffusion and max_grad_norm."""
        a, s, b = self.drift_tensor, self.diffusion_tensor, self.max_grad_norm_tensor
        return (
            self.drift if a is None else a,
            self.diffusion if s is None else s,
            self.max_grad_norm if b is None else b,
        )


class StepStats(NamedTuple):
    """What one step records of each chain, in the same pass over memory; (B,) each."""

    grad_norm: Tensor
    """|grad U| over all axes but the chain axis, in the state's dtype."""
    gamma: Tensor
    """The clip factor; with ``per="coordinate"`` its mean. Clipped is ``gamma < 1``."""
    finite: Tensor
    """bool: every coordinate was finite before the clamp."""

    @classmethod
    def empty(
        cls,
        chains: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> StepStats:
        """Room for ``chains`` chains; ``dtype`` is that of the state."""
        norm, gamma = (torch.empty(chains, dtype=dtype, device=device) for _ in range(2))
        return cls(norm, gamma, torch.empty(chains, dtype=torch.bool, device=device))
