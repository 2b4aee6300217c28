r"""Whole chains in one call of a kernel, per step: ours, the same step by step, and the others.

    x <- x - (h / 2) grad U(x) + sqrt(h) xi        the same update for all

All on one thread, and ours on two. JAX has its loop compiled too: ``lax.scan`` over the steps under
``jit``, of which the compilation is not timed.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from importlib.metadata import version
from time import perf_counter, process_time
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from conftest import Measure
from langevin_ext import MALA, KineticLangevin, Langevin, sample
from langevin_ext.energies import (
    DoubleWell,
    EightGaussians,
    GaussianMixture,
    QuadraticWell,
    Rings,
)
from test_rules import FRICTION, baoab, mala
from test_sample import mlp

H = 0.01
DRIFT, DIFFUSION = H / 2, math.sqrt(H)

Run = Callable[[], Any]
"""Takes the steps and returns the last states, a tensor or what torch makes one of."""


def mixture() -> GaussianMixture:
    return GaussianMixture(torch.randn(8, 32, generator=torch.Generator().manual_seed(2)))


class Case(NamedTuple):
    energy: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int]
    steps: int = 100
    """In one call, so that what a call costs once is shared as it is in use."""
    rule: str = "Langevin"

    @property
    def name(self) -> str:
        return self.energy if self.rule == "Langevin" else f"{self.energy}, {self.rule}"


FORMULAS = [
    Case("eight Gaussians", EightGaussians, (10_000, 2)),
    Case("quadratic well", lambda: QuadraticWell(2), (10_000, 2)),
    Case("double well", lambda: DoubleWell(2), (10_000, 2)),
    Case("rings", Rings, (10_000, 2)),
    Case("8 Gaussians in 32-d", mixture, (10_000, 32)),
]
NETWORKS = [
    Case("MLP 2-32-64-64-64-1", lambda: mlp(2, 32, 64, 64, 64, 1), (100, 2)),
    Case("MLP 2-32-64-64-64-1", lambda: mlp(2, 32, 64, 64, 64, 1), (10_000, 2), 20),
    Case("MLP 20-128-128-1", lambda: mlp(20, 128, 128, 1), (100, 20)),
    Case("MLP 784-256-256-1", lambda: mlp(784, 256, 256, 1), (64, 784)),
]
OTHER_RULES = [
    Case("eight Gaussians", EightGaussians, (10_000, 2), rule="MALA"),
    Case("eight Gaussians", EightGaussians, (10_000, 2), rule="BAOAB"),
]
CASES = FORMULAS + NETWORKS


# ---- the contenders: build(energy, x, steps, rule) -> Run --------------------------------------

RULES = {"Langevin": Langevin(H), "MALA": MALA(H), "BAOAB": KineticLangevin(H, FRICTION)}


def ours(energy: nn.Module, x: Tensor, steps: int, rule: str = "Langevin") -> Run:
    """One call; where no kernel knows the energy it is an error."""
    by, options = RULES[rule], {"whole_chain": True, "backend": "native"}
    return lambda: sample(energy, x, by, steps, seed=0, **options).x


def ours_step_by_step(energy: nn.Module, x: Tensor, steps: int, rule: str = "Langevin") -> Run:
    """The gradient by torch (an analytic energy's closed form, a network's autograd), our step."""
    by, options = RULES[rule], {"whole_chain": False, "backend": "native"}
    return lambda: sample(energy, x, by, steps, seed=0, **options).x


def loop(energy: nn.Module, x: Tensor, steps: int, rule: str = "Langevin") -> Run:
    """What a researcher writes."""

    def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value = energy(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    if rule != "Langevin":
        by_hand = {"MALA": mala, "BAOAB": baoab}[rule]
        return lambda: by_hand(gradient, x, steps)

    def run() -> Tensor:
        y = x.clone()
        for _ in range(steps):
            y.requires_grad_()
            (grad,) = torch.autograd.grad(energy(y).sum(), y)
            y = y.detach() - DRIFT * grad + DIFFUSION * torch.randn_like(y)
        return y

    return run


def torchebm(energy: nn.Module, x: Tensor, steps: int) -> Run:
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.energy = energy

        def forward(self, x: Tensor) -> Tensor:
            return self.energy(x).flatten()

    noise_scale = DIFFUSION / math.sqrt(2 * DRIFT)
    sampler = LangevinDynamics(Model(), step_size=DRIFT, noise_scale=noise_scale)
    return lambda: sampler.sample(x=x, n_steps=steps)


def jax_scan(energy: nn.Module, x: Tensor, steps: int) -> Run:
    """The loop in JAX, compiled as one; its chains could lie last in memory, which gains 5 %."""
    jax = jax_on_one_core()
    grad = jax.vmap(jax.grad(energy_in_jax(energy)))

    def step(state: Any, _: None) -> tuple[Any, None]:
        x, key = state
        key, mine = jax.random.split(key)
        return (x - DRIFT * grad(x) + DIFFUSION * jax.random.normal(mine, x.shape), key), None

    chain = jax.jit(lambda x, key: jax.lax.scan(step, (x, key), None, length=steps)[0][0])
    x0, key = jax.numpy.asarray(x.numpy()), jax.random.key(0)
    return lambda: chain(x0, key).block_until_ready()


def registers(energy: nn.Module, x: Tensor, steps: int) -> Run:
    """No chain: the noise alone, made in registers and not stored, each core its equal share."""
    from langevin_ext.backends import native

    count = -(-x.numel() * steps // torch.get_num_threads())
    return lambda: native.normals_in_registers(count)


CONTENDERS = {
    "ours": ours,
    "step-by-step": ours_step_by_step,
    "loop": loop,
    "jax": jax_scan,
    "torchebm": torchebm,
}
ON_TWO = {"ours": ours}
BY_HAND = {name: CONTENDERS[name] for name in ("ours", "step-by-step", "loop")}
LIMITS = {"registers": registers}
PACKAGES = {"jax": "jax", "torchebm": "torchebm", "loop": "torch"}  # else langevin_ext


# ---- JAX ---------------------------------------------------------------------------------------


@functools.cache
def jax_on_one_core() -> Any:
    """The package, whose threads all stay on one core, and whose vectors are a register wide.

    It has an option for one of its thread pools only; but threads inherit where they may run.
    By default it takes half of an AVX-512 register, with which chains take up to a fifth longer.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    flags = "--xla_cpu_multi_thread_eigen=false --xla_cpu_prefer_vector_width=512"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    try:
        import jax

        jax.devices()  # starts the threads
    finally:
        os.sched_setaffinity(0, cores)
    return jax


def energy_in_jax(energy: nn.Module) -> Callable[[Any], Any]:
    """U of one state (d,), as a person would write it."""
    jax = jax_on_one_core()
    jnp, logsumexp = jax.numpy, jax.scipy.special.logsumexp

    def array(t: Tensor) -> Any:
        return jnp.asarray(t.detach().float().numpy())

    if isinstance(energy, QuadraticWell):
        stiffness = float(energy.metric[0])
        return lambda x: stiffness / 2 * (x**2).sum()
    if isinstance(energy, DoubleWell):
        barrier, minimum = energy.barrier, energy.minimum
        return lambda x: barrier * (((x / minimum) ** 2 - 1) ** 2).sum()
    if isinstance(energy, Rings):
        radii, stds = array(energy.radii), array(energy.stds)
        return lambda x: -logsumexp(-(((jnp.sqrt((x**2).sum()) - radii) / stds) ** 2) / 2)
    if isinstance(energy, GaussianMixture):
        means, stds = array(energy.means), array(energy.spreads)
        return lambda x: -logsumexp(-(((x - means) / stds) ** 2).sum(1) / 2)  # equal heights

    assert isinstance(energy, nn.Sequential)
    layers = [(array(m.weight), array(m.bias)) for m in energy if isinstance(m, nn.Linear)]

    def network(x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jax.nn.silu(weight @ x + bias)
        weight, bias = layers[-1]
        return (weight @ x + bias)[0]

    return network


# ---- that each does its work, and its time -----------------------------------------------------


def start(case: Case) -> tuple[nn.Module, Tensor]:
    """The energy, and states that are draws of it where it has such."""
    torch.manual_seed(0)
    energy = case.make().requires_grad_(False)
    draw: Any = getattr(energy, "draw", None)
    return energy, draw(case.shape[0], seed=1) if draw else torch.randn(case.shape)


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_samples(name: str) -> None:
    """On U = 10 |x|^2 with r = 1 - 10 h the variance after n steps is h (1 - r^2n) / (1 - r^2)."""
    pytest.importorskip(PACKAGES.get(name, "langevin_ext"))
    torch.manual_seed(0)
    run = CONTENDERS[name](QuadraticWell(2, stiffness=20.0), torch.zeros(10_000, 2), 50)
    x = torch.tensor(run().tolist())
    r = 1 - 10 * H
    expected = H * (1 - r**100) / (1 - r**2)
    assert abs(x.mean()) < 5 * math.sqrt(expected / x.numel())
    assert abs(x.var() / expected - 1) < 5 * math.sqrt(2 / x.numel())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.energy)
def test_an_energy_in_jax_is_the_energy(case: Case) -> None:
    """Its gradient is torch's, but for rounding."""
    pytest.importorskip("jax")
    energy, x = start(case)
    x = x[:100].requires_grad_()
    (expected,) = torch.autograd.grad(energy(x).sum(), x)
    jax = jax_on_one_core()
    found = jax.vmap(jax.grad(energy_in_jax(energy)))(jax.numpy.asarray(x.detach().numpy()))
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.tensor(found.tolist()), expected, atol=1e-5 * scale, rtol=1e-4)


def test_jax_has_one_core() -> None:
    """On the largest network, which it would spread: time of all processors, and of the clock."""
    pytest.importorskip("jax")
    run = jax_scan(*start(NETWORKS[1]), 5)
    run()
    wall, processors = perf_counter(), process_time()
    run()
    assert process_time() - processors < 1.1 * (perf_counter() - wall)


@pytest.mark.parametrize(
    ("case", "name", "threads"),
    [
        pytest.param(case, name, threads, id=f"{case.energy}-{case.shape[0]}-{name}-{threads}t")
        for threads, contenders in ((1, CONTENDERS), (2, ON_TWO))
        for case in CASES
        for name in (*contenders, *(LIMITS if case in FORMULAS else ()))
    ]
    + [
        pytest.param(case, name, 1, id=f"{case.name}-{name}-1t")
        for case in OTHER_RULES
        for name in BY_HAND
    ],
    indirect=["threads"],
)
def test_chain(measure: Measure, case: Case, name: str, threads: int) -> None:
    package = PACKAGES.get(name, "langevin_ext")
    pytest.importorskip(package)
    energy, x = start(case)
    build: Any = (CONTENDERS | LIMITS)[name]
    of_rule = {} if case.rule == "Langevin" else {"rule": case.rule}
    measure(
        build(energy, x, case.steps, **of_rule),
        suite="chains-cpu",
        steps=case.steps,
        contender=name,
        library=f"{package} {version(package)}",
        energy=case.name,
        shape="x".join(map(str, case.shape)),
        threads=threads,
        dtype="float32",
        elements=x.numel(),
    )
