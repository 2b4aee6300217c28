r"""The contenders: ways to write one AniLA step of given states and gradients.

    gamma_i = min(1, b / |g_i|);   x_i <- clamp(x_i - a gamma_i g_i + s sqrt(gamma_i) xi, -1, 1)

Each is built from states and gradients (B, ...) and returns a function that takes the next step.
The gradient is a fixed tensor, so the update is all that is timed. b is sqrt(D): about half of the
chains are clipped. `Contender.law` is what each must compute; test_step.py checks it before timing.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from langevin_ext import Noise, StepStats, __version__, langevin_step_

DRIFT, DIFFUSION, LOW, HIGH = 0.01, 0.1, -1.0, 1.0

Step: TypeAlias = Callable[[], Tensor]
"""Takes one step of the chains it holds and returns their states."""


def bound(grad: Tensor) -> float:
    return math.sqrt(grad[0].numel())


def column(per_chain: Tensor, x: Tensor) -> Tensor:
    return per_chain.view(-1, *[1] * (x.dim() - 1))


# ---- ours --------------------------------------------------------------------------------------


def ours(
    x: Tensor, grad: Tensor, stats: StepStats | None = None, noise: Noise | None = None
) -> Step:
    """One call, in place."""
    noise, b = noise or Noise(0), bound(grad)
    backend = "triton" if x.is_cuda else "native"  # by name, so that it is timed or fails

    def step() -> Tensor:
        return langevin_step_(
            x,
            grad,
            drift=DRIFT,
            diffusion=DIFFUSION,
            noise=noise,
            max_grad_norm=b,
            clamp=(LOW, HIGH),
            stats=stats,
            backend=backend,
        )

    return step


def ours_with_stats(x: Tensor, grad: Tensor) -> Step:
    """The same, which also records each chain's norm, gamma and finiteness."""
    return ours(x, grad, StepStats.empty(x.shape[0], x.device))


def ours_approximate(x: Tensor, grad: Tensor) -> Step:
    """The same with noise by the GPU's own logarithm, sine and cosine."""
    return ours(x, grad, noise=Noise(0, approximate=True))


def ours_16_bit_gradient(x: Tensor, grad: Tensor) -> Step:
    """The same with a bfloat16 gradient: 10 bytes to an element for 12."""
    return ours(x, grad.bfloat16())


def ours_approximate_16_bit_gradient(x: Tensor, grad: Tensor) -> Step:
    return ours(x, grad.bfloat16(), noise=Noise(0, approximate=True))


def ours_graphed(x: Tensor, grad: Tensor) -> Step:
    """The same in a CUDA graph, its position on the GPU."""
    return graphed(ours(x, grad, noise=Noise(0, device=x.device)), x)


def copy_graphed(x: Tensor, grad: Tensor) -> Step:
    return graphed(copy(x, grad), x)


def graphed(step: Step, x: Tensor) -> Step:
    """A step of ``x`` in place, captured once and replayed: what it costs without Python."""
    start = x.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    x.copy_(start)  # from before it was warmed up

    def replay() -> Tensor:
        graph.replay()
        return x

    return replay


# ---- what people write -------------------------------------------------------------------------


def loop_update(x: Tensor, grad: Tensor, b: float, xi: Tensor | None = None) -> Tensor:
    gamma = column((b / grad.flatten(1).norm(dim=1)).clamp(max=1), x)
    xi = torch.randn_like(x) if xi is None else xi
    x = x - DRIFT * gamma * grad + DIFFUSION * gamma.sqrt() * xi
    return x.clamp(LOW, HIGH)


def tuned_update_(x: Tensor, grad: Tensor, b: float, xi: Tensor) -> Tensor:
    gamma = column(torch.linalg.vector_norm(grad.flatten(1), dim=1).reciprocal_().mul_(b), x)
    gamma = gamma.clamp_(max=1)
    x.addcmul_(gamma, grad, value=-DRIFT)
    x.addcmul_(gamma.sqrt_(), xi, value=DIFFUSION)
    return x.clamp_(LOW, HIGH)


def tuned_update_drawing_(x: Tensor, grad: Tensor, b: float, xi: Tensor) -> Tensor:
    return tuned_update_(x, grad, b, xi.normal_())


def loop(x: Tensor, grad: Tensor, update: Callable[..., Tensor] = loop_update) -> Step:
    """The researcher's loop: the equation as papers' code has it, a new tensor for every term."""
    b = bound(grad)

    def step() -> Tensor:
        nonlocal x
        x = update(x, grad, b)
        return x

    return step


def tuned(x: Tensor, grad: Tensor, update: Callable[..., Tensor] = tuned_update_drawing_) -> Step:
    """The loop tuned: in place, noise into one buffer, no temporary of the state's size."""
    b, xi = bound(grad), torch.empty_like(x)
    return lambda: update(x, grad, b, xi)


def tuned_graphed(x: Tensor, grad: Tensor) -> Step:
    """`tuned` in a CUDA graph; torch's generator knows how to go on in replays."""
    return graphed(tuned(x, grad), x)


# ---- torch.compile of both ---------------------------------------------------------------------


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch.compiler.reset()  # else the tenth shape runs into the recompile limit and runs eagerly
    return torch.compile(function, fullgraph=True, dynamic=False)


def loop_compiled(x: Tensor, grad: Tensor) -> Step:
    """`loop` under torch.compile, its noise drawn by the compiled code."""
    return loop(x, grad, compiled(loop_update))


def tuned_compiled(x: Tensor, grad: Tensor) -> Step:
    """`tuned` under torch.compile, its noise drawn by the compiled code."""
    return tuned(x, grad, compiled(tuned_update_drawing_))


def loop_compiled_noise_outside(x: Tensor, grad: Tensor) -> Step:
    """`loop` under torch.compile, eager ``normal_`` into a buffer before every call."""
    xi, update = torch.empty_like(x), compiled(loop_update)
    return loop(x, grad, lambda x, grad, b: update(x, grad, b, xi.normal_()))


def tuned_compiled_noise_outside(x: Tensor, grad: Tensor) -> Step:
    """`tuned` under torch.compile, eager ``normal_`` into its buffer before every call."""
    update = compiled(tuned_update_)
    return tuned(x, grad, lambda x, grad, b, xi: update(x, grad, b, xi.normal_()))


# ---- the peers ---------------------------------------------------------------------------------


def torchebm(x: Tensor, grad: Tensor) -> Step:
    """TorchEBM: the body of the loop of its `LangevinDynamics.sample`.

    It has no clipping by any norm, so it does less: neither the norm nor gamma.
    """
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Fixed(BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            return (x * grad).flatten(1).sum(1)

        def gradient(self, x: Tensor, model_kwargs: object = None) -> Tensor:
            return grad

    sampler = LangevinDynamics(
        Fixed(), step_size=DRIFT, noise_scale=DIFFUSION / math.sqrt(2 * DRIFT), clamp=(LOW, HIGH)
    )

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return -sampler._model_gradient(x, {})

    @torch.no_grad()
    def step() -> Tensor:
        nonlocal x
        x = sampler.integrator.step(
            state={"x": x},
            step_size=sampler.get_scheduled_value("step_size"),
            noise_scale=sampler.get_scheduled_value("noise_scale"),
            drift=drift,
            generator=None,
        )["x"].clamp_(*sampler.clamp)
        sampler.step_schedulers()
        return x

    return step


ELEMENT_BOUND = 1.0


def ebmkit(x: Tensor, grad: Tensor) -> Step:
    """ebmkit: its `LangevinDynamics.step`, the gradient pass replaced by the fixed gradient.

    It clips element by element, so it does less: no norm, and noise of one scale.
    """
    from ebm.samplers import LangevinDynamics

    class Fixed(LangevinDynamics):
        @staticmethod
        def _energy_grad(energy: object, x: Tensor) -> tuple[Tensor, Tensor]:
            return grad, grad

    sampler = Fixed(
        step_size=DRIFT, noise_scale=DIFFUSION, grad_clip=ELEMENT_BOUND, clamp=(LOW, HIGH)
    )

    def step() -> Tensor:
        nonlocal x
        x = sampler.step(None, x)
        return x

    return step


# ---- what binds --------------------------------------------------------------------------------


def registers(x: Tensor, grad: Tensor) -> Step:
    """No step: the noise alone, made in registers and not stored, each core its equal share.

    One core makes elements / threads normals: threads that never wait for one another.
    """
    from langevin_ext.backends import native

    count = -(-x.numel() // torch.get_num_threads())

    def step() -> Tensor:
        native.normals_in_registers(count)
        return x

    return step


def copy(x: Tensor, grad: Tensor) -> Step:
    """No step: ``x.copy_(grad)``, 8 bytes to an element: what a GPU's step is held to."""
    return lambda: x.copy_(grad)


def memory(x: Tensor, grad: Tensor) -> Step:
    """No step: the memory traffic alone, ``x.add_(grad)``, 12 bytes to an element."""
    return lambda: x.add_(grad)


# ---- what each must compute --------------------------------------------------------------------


def anila_law(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) before the clamp."""
    gamma = (bound(grad) / column(grad.flatten(1).norm(dim=1), x)).clamp(max=1)
    return x - DRIFT * gamma * grad, (DIFFUSION * gamma.sqrt()).expand_as(x)


def unclipped_law(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return x - DRIFT * grad, torch.full_like(x, DIFFUSION)


def element_clipped_law(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return unclipped_law(x, grad.clamp(-ELEMENT_BOUND, ELEMENT_BOUND))


class Contender(NamedTuple):
    build: Callable[[Tensor, Tensor], Step]
    law: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = anila_law
    """None where nothing is stepped."""
    package: str = "torch"
    compiles: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def module(self) -> str:
        return {"ebmkit": "ebm"}.get(self.package, self.package)

    @property
    def library(self) -> str:
        if self.package == "langevin_ext":  # perhaps only on the path
            return f"langevin_ext {__version__}"
        return f"{self.package} {version(self.package)}"


GPU = ("cuda",)
CONTENDERS = {
    "ours": Contender(ours, package="langevin_ext"),
    "ours-stats": Contender(ours_with_stats, package="langevin_ext"),
    "ours-approximate": Contender(ours_approximate, package="langevin_ext", devices=GPU),
    "ours-bf16": Contender(ours_16_bit_gradient, package="langevin_ext", devices=GPU),
    "ours-bf16-approximate": Contender(
        ours_approximate_16_bit_gradient, package="langevin_ext", devices=GPU
    ),
    "ours-graph": Contender(ours_graphed, package="langevin_ext", devices=GPU),
    "loop": Contender(loop),
    "tuned": Contender(tuned),
    "tuned-graph": Contender(tuned_graphed, devices=GPU),
    "loop-compiled": Contender(loop_compiled, compiles=True),
    "loop-compiled-noise-outside": Contender(
        loop_compiled_noise_outside, compiles=True, devices=("cpu",)
    ),
    "tuned-compiled": Contender(tuned_compiled, compiles=True),
    "tuned-compiled-noise-outside": Contender(
        tuned_compiled_noise_outside, compiles=True, devices=("cpu",)
    ),
    "torchebm": Contender(torchebm, unclipped_law, "torchebm"),
    "ebmkit": Contender(ebmkit, element_clipped_law, "ebmkit"),
    "registers": Contender(registers, None, "langevin_ext", devices=("cpu",)),
    "memory": Contender(memory, None),
    "copy": Contender(copy, None),
    "copy-graph": Contender(copy_graphed, None, devices=GPU),
}


def compiler() -> str:
    """The C++ compiler that torch.compile calls on a CPU."""
    return os.environ.get("CXX", "g++")


def has_compiler() -> bool:
    return shutil.which(compiler().split()[0]) is not None
