"""The few types that every layer shares."""

from __future__ import annotations

import math
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


class AcceptSpec(NamedTuple):
    """One accept-or-reject of proposals, all of it that a backend takes besides the tensors.

    The proposals came from N(x - a gamma g, (s gamma**(1/2))**2), gamma per sample.
    """

    drift: Coefficient
    """a; a number, or a contiguous (B,) tensor in the state's dtype; so are the next two."""
    diffusion: Coefficient
    """s > 0."""
    max_grad_norm: Coefficient
    log_ratio: Tensor | None
    """(B,) float64: log q(x | y) - log q(y | x) where it is known; the three above then are not
    used."""
    position: Position
    """Of the uniform numbers: coordinate 0 of every chain."""


class Point(NamedTuple):
    """Where chains are, or may go: states (B, ...), their gradients, their energies (B,).

    Contiguous, one dtype, one device.
    """

    x: Tensor
    grad: Tensor
    energy: Tensor


class Decision(NamedTuple):
    """What an accept-or-reject records of each chain; (B,) each."""

    log_ratio: Tensor
    """float64: the log of the acceptance ratio; -inf if the proposal was not finite."""
    accepted: Tensor
    """bool."""


class KineticSpec(NamedTuple):
    """One pass of a splitting scheme over positions and velocities, at one gradient.

    v <- v - kick g;  x <- x + drift v;  v <- keep v + spread xi;  v <- v - second_kick g;
    x <- x + second_drift v.  A coefficient that is the number 0 (for ``keep`` 1, together with
    spread 0) leaves its operation out; ``keep`` 0 forgets the velocity, whatever it was.
    """

    kick: Coefficient
    """A number, or a contiguous (B,) tensor in the state's dtype; so are the next five."""
    drift: Coefficient
    keep: Coefficient
    spread: Coefficient
    second_kick: Coefficient
    second_drift: Coefficient
    position: Position | None
    """Where the noise comes from; None if there is none."""


class MlpLayer(NamedTuple):
    """x -> activation(weight x + bias)."""

    weight: Tensor
    """(out, in) float32, contiguous, on a CPU."""
    bias: Tensor | None
    """(out,), likewise."""
    activation: str
    """"identity", "relu", "leaky", "silu", "tanh" or "softplus"."""
    slope: float = 0.0
    """Of "leaky", below 0."""
    beta: float = 1.0
    """Of "softplus": log(1 + exp(beta z)) / beta, but z where beta z is above the threshold."""
    threshold: float = 20.0


class MlpSpec(NamedTuple):
    """An energy that is a network: U(x) = factor * network(x), of states of `in` coordinates."""

    layers: tuple[MlpLayer, ...]
    factor: float


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


class Tally(NamedTuple):
    """Sums over the steps of what each records of each chain; (B,) float64 each.

    In float32 a sum of 1e5 steps is off in the fourth digit.
    """

    grad_norm: Tensor
    gamma: Tensor
    clipped: Tensor
    """How often gamma was below 1."""
    acceptance: Tensor | None
    """Of min(1, acceptance ratio); None where everything is accepted."""
    weight: Tensor | None
    """None where there are no weights."""

    @classmethod
    def zeros(cls, chains: int, device: torch.device, *, acceptance: bool, weight: bool) -> Tally:
        """The sums before the first step."""

        def zeros() -> Tensor:
            return torch.zeros(chains, dtype=torch.float64, device=device)

        last = [zeros() if there else None for there in (acceptance, weight)]
        return cls(zeros(), zeros(), zeros(), *last)


class ChainEnergy(NamedTuple):
    """An energy as a kernel of whole chains knows it."""

    kind: str
    """One of csrc/energies.h, as ``"round_mixture"``."""
    components: int
    numbers: Tensor
    """float64, one-dimensional, on the host: what csrc/energies.h lists for this kind."""
    factor: float = 1.0
    """That it is multiplied by."""


class ChainMove(NamedTuple):
    """A step as a kernel of whole chains knows it; csrc/chain.h has the equations."""

    rule: str
    """"overdamped", "metropolis" or "kinetic"."""
    coefficients: tuple[Coefficient, ...]
    """As csrc/chain.h lists them; a number, or a contiguous (B,) tensor in the state's dtype."""
    purposes: tuple[int, int]
    """Streams of noise of the step, and of its second draw."""
    noisy: bool = True
    reference_precision: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    noise_power: float = 0.5
    per_coordinate: bool = False


CARRIED = "energy", "grad", "velocity", "proposal", "log_ratio", "accepted"
"""Tensors of a rule's state, besides x and its statistics, that whole chains carry on."""


class ChainRecord(NamedTuple):
    """What is kept over the steps of whole chains."""

    first: int
    """How many steps it has already."""
    sums: Tally
    mean: Tensor | None
    """(B, d) float64: running means and sums of squares about them; None if not asked for."""
    squares: Tensor | None
    trajectory: Tensor | None
    """(kept, B, d): the states to come, after every so many of the recorded steps."""
    every: int
