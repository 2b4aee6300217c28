r"""The chain as a function: x_K of x_0, the energy's parameters and the rule's tensors.

    x_{k+1} = S(x_k, grad U(x_k), xi_k),  k = 0, ..., K - 1;    x_K = M(x_0)

S is the fused step and xi_k its noise, which is an argument like any other: the same in every pass.
With v = dL/dx_K the backward pass goes from k = K - 1 to 0:

    v_x, v_g, d = the derivatives of <v, S> in x_k, in g = grad U(x_k) and in the coefficients
    v  <-  v_x + H(x_k) v_g,      H the Hessian of U

and sums the derivatives of <v_g, grad U(x_k)> in the parameters. Source: the generator view of
Nijkamp, Hill, Zhu and Wu, "Learning Non-Convergent Non-Persistent Short-Run MCMC Toward
Energy-Based Model" (NeurIPS 2019), section 3.3; taking steps again, Chen, Xu, Zhang and Guestrin,
"Training Deep Nets with Sublinear Memory Cost" (2016).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ._check import check_count
from ._types import Energy
from .errors import ArgumentError, FlatEnergyWarning, GradientError
from .gradient import EnergyGradient, undisturbed
from .noise import Noise, as_noise
from .sample import sample
from .samplers import AniLA, Langevin
from .step import langevin_step


def unroll(
    energy: Energy,
    z: Tensor,
    rule: Langevin | AniLA,
    steps: int,
    *,
    seed: int | torch.Generator | Noise | None = None,
    checkpoint_every: int = 1,
    autocast: torch.dtype | None = None,
    channels_last: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """The state after K steps from z, differentiable through all of them.

    Gradients reach z; the energy's parameters (a module's; of a function the leaves that U depends
    on); and tensors among the rule's options, as a step size that is learned. The forward pass is
    `sample`'s. The backward pass keeps K / checkpoint_every states, takes the steps between them
    again with the same noise, and has one step's graph at a time, so its memory does not grow with
    the network times K. It can be differentiated again, at the memory of an ordinary loop.

    A module runs in eval mode and is left as it was. Where U is linear in pieces, as of a network
    with ReLU or LeakyReLU alone, H = 0: an unclipped chain's Jacobian is then a number, and
    gradients through the chain say nothing of the energy. A `FlatEnergyWarning` tells.

    Args:
        energy: U, any callable or module (B, ...) -> (B,) or (B, 1), differentiable twice. Of one
            that is compiled the backward pass runs the original: compiled code has no second
            derivative. Of a `DistributedDataParallel` it is the module inside; to share gradients
            among processes, wrap a module whose forward unrolls.
        z: starting states (B, ...), float32 or float64.
        rule: `Langevin`, or `AniLA` without correction.
        steps: K >= 0.
        seed: as of `sample`; a `Noise` is advanced by K.
        checkpoint_every: keep every so many states. 1 takes no step a third time; the square root
            of K keeps the fewest.
        autocast, channels_last, backend: as of `sample`.

    Returns:
        x_K (B, ...).

    Raises:
        NonFiniteError, EnergyError, ArgumentError, ...: as `sample`.
        GradientError: a schedule returns a tensor that requires grad: make it an option itself.
    """
    if type(rule) not in (Langevin, AniLA) or getattr(rule, "correction", "none") != "none":
        raise ArgumentError(f"rule={rule!r}: pass Langevin, or AniLA without correction, to unroll")
    noise = as_noise(seed)
    chain = _Chain(
        energy,
        EnergyGradient(_original(energy), autocast=autocast, channels_last=channels_last),
        rule,
        check_count("steps", steps, 0),
        check_count("checkpoint_every", checkpoint_every, 1),
        noise.clone(),
        {"autocast": autocast, "channels_last": channels_last, "backend": backend},
    )
    learned = chain.learned(z) if torch.is_grad_enabled() else []
    if torch.is_grad_enabled() and (z.requires_grad or learned):
        x: Tensor = _Unroll.apply(chain, z, *learned)  # type: ignore[no-untyped-call]
    else:
        x = chain.run(z)[0]
    noise.advance(chain.steps)
    return x


class _Chain:
    """K steps of a rule from a position of the noise."""

    def __init__(
        self,
        energy: Energy,
        gradient: EnergyGradient,
        rule: Langevin | AniLA,
        steps: int,
        every: int,
        noise: Noise,
        options: dict[str, Any],
    ) -> None:
        self.energy, self.gradient, self.rule = energy, gradient, rule
        self.steps, self.every, self.noise, self.options = steps, every, noise, options
        self.coefficients: list[str] = []

    def learned(self, z: Tensor) -> list[Tensor]:
        """What gradients are to reach besides z: the rule's tensors, then the energy's."""
        options = vars(self.rule)
        for name, value in options.items():
            if isinstance(value, Tensor) and value.requires_grad:
                self.coefficients.append(name)
        given = self.rule.arguments(0)
        if any(isinstance(c, Tensor) and c.requires_grad for c in given.values()) and (
            not self.coefficients
        ):
            raise GradientError(
                "a schedule's value requires grad, which unroll would not see: pass the tensor"
                " itself as the rule's option"
            )
        original = self.gradient.energy
        if isinstance(original, nn.Module):
            parameters: list[Tensor] = [p for p in original.parameters() if p.requires_grad]
        else:
            parameters = _leaves(original, z) if self.steps else []
        return [*(options[name] for name in self.coefficients), *parameters]

    def run(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x_K, and the states kept on the way to it."""
        samples = sample(
            self.energy, z, self.rule, self.steps, seed=self.noise.clone(),
            keep_every=self.every, **self.options,
        )  # fmt: skip
        assert samples.trajectory is not None
        return samples.x, list(samples.trajectory[: max(self.steps - 1, 0) // self.every])

    def with_coefficients(self, values: list[Tensor]) -> _Chain:
        """The same chain with other tensors for what is learned of the rule."""
        named: dict[str, Any] = dict(zip(self.coefficients, values, strict=True))
        rule = dataclasses.replace(self.rule, **named)
        return _Chain(
            self.energy, self.gradient, rule, self.steps, self.every, self.noise, self.options
        )

    def step(self, k: int, x: Tensor, grad: Tensor) -> Tensor:
        """Step k from x."""
        given = self.rule.arguments(k)
        silent = not isinstance(given["diffusion"], Tensor) and given["diffusion"] == 0
        noise = None if silent else self.noise.ahead(k)
        return langevin_step(x, grad, **given, noise=noise, backend=self.options["backend"])

    def plain(self, x: Tensor) -> Tensor:
        """x_K with its whole graph: the loop that a person would write."""
        for k in range(self.steps):
            x = self.step(k, x, self.gradient.differentiable(x)[1])
        return x

    def segment(self, first: int, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The steps from a kept state on to the next one, last first, and where each begins."""
        states = [x]
        last = min(first + self.every, self.steps)
        with torch.no_grad():
            for k in range(first, last - 1):
                states.append(self.step(k, states[-1], self.gradient(states[-1])[1]))
        for k in reversed(range(first, last)):
            yield k, states.pop()

    def pull_back(
        self, k: int, x: Tensor, v: Tensor, coefficients: list[Tensor], parameters: list[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """v before step k of what it is after it, and what is added to the gradients of what is
        learned."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            _, slope = self.gradient.differentiable(point)
            before, grad = x.detach().requires_grad_(), slope.detach().requires_grad_()
            after = self.step(k, before, grad)
        v_x, v_g, *found = torch.autograd.grad(after, [before, grad, *coefficients], v)
        rest: list[Tensor | None] = [None] * (1 + len(parameters))
        if slope.requires_grad:
            rest = [*torch.autograd.grad(slope, [point, *parameters], v_g, allow_unused=True)]
        product, *of_parameters = rest
        if k + 1 == self.steps and bool(v_g.any()) and (product is None or not bool(product.any())):
            warnings.warn(_FLAT, FlatEnergyWarning, stacklevel=2)
        return v_x if product is None else v_x + product, [*found, *of_parameters]


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chain: _Chain, z: Tensor, *learned: Tensor) -> Tensor:
        x, kept = chain.run(z)
        ctx.chain, ctx.learned = chain, len(learned)
        ctx.save_for_backward(z, *learned, *kept)
        device = z.device.type
        ctx.cast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        return x

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        chain: _Chain = ctx.chain
        z, *saved = ctx.saved_tensors
        learned, kept = saved[: ctx.learned], [z, *saved[ctx.learned :]]
        count = len(chain.coefficients)
        enabled, dtype = ctx.cast
        with (
            torch.autocast(z.device.type, dtype, enabled=enabled),
            undisturbed(chain.gradient.energy, frozen=False),
        ):
            if torch.is_grad_enabled():  # it is to be differentiated again
                inputs = [z, *learned]
                wanted = [t for t in inputs if t.requires_grad]
                end = chain.with_coefficients(learned[:count]).plain(z)
                found = iter(
                    torch.autograd.grad(end, wanted, v, create_graph=True, allow_unused=True)
                )
                return None, *(next(found) if t.requires_grad else None for t in inputs)
            leaves = [t.detach().requires_grad_() for t in learned[:count]]
            mine = chain.with_coefficients(leaves)
            sums: list[Tensor | None] = [None] * len(learned)
            for i in reversed(range(-(-chain.steps // chain.every))):
                for k, x in mine.segment(i * chain.every, kept[i]):
                    v, parts = mine.pull_back(k, x, v, leaves, learned[count:])
                    for j, part in enumerate(parts):
                        total = sums[j]
                        sums[j] = part if total is None else total if part is None else total + part
        return None, v, *sums


_FLAT = (
    "the energy has no second derivative along this chain, like a network with ReLU or LeakyReLU"
    " alone: gradients pass through unroll as if it did not look at the energy; take a smooth"
    " activation (SiLU, Softplus, GELU, Tanh)"
)


def _original(energy: Any) -> Any:
    """What was compiled or made parallel."""
    if isinstance(energy, nn.parallel.DistributedDataParallel):
        return _original(energy.module)
    for name in ("_orig_mod", "_torchdynamo_orig_callable"):
        if hasattr(energy, name):
            return _original(getattr(energy, name))
    return energy


def _leaves(energy: Energy, z: Tensor) -> list[Tensor]:
    """The leaves that U depends on besides the state, where U is a function."""
    with torch.enable_grad():
        point = z.detach()[:1].requires_grad_()
        value = energy(point)
    found: list[Tensor] = []
    seen: set[Any] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not point:
            found.append(leaf)
        waiting += [after for after, _ in node.next_functions]
    return found
