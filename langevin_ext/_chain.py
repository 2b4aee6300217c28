"""Whole chains: many steps in one call of a kernel, where energy and rule are known to it.

A kernel takes blocks of steps, with the noise and the order of operations of one step at a time.
Where a block leaves the finite numbers it is taken back, run up to the step before, and that step
left to `sample`, which knows what to do. So nothing depends on where blocks end.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from . import backends
from ._check import check_coefficient, check_step
from ._mlp import mlp_of
from ._types import ChainEnergy, ChainRecord, MlpSpec, StepSpec
from ._watch import Guard, Record
from .energies._analytic import AnalyticEnergy
from .gradient import EnergyGradient
from .noise import Noise
from .samplers import AniLA, Langevin
from .samplers.langevin import LangevinState

_SECONDS = 0.2  # of a block: as long as Ctrl-C and the progress bar wait
_FIRST = 2**25  # coordinates of the first block, of which nobody knows the speed yet
_SCHEDULED = 2**10  # steps of a block with a schedule, 4 us each or what the user's function takes
_NETWORK_STEPS = 4  # fewer do not repay packing a network's weights for the kernel
_WIDEST = 1024  # of a network's layers
_LARGEST = {
    "full_gaussian": 64,
    "full_mixture": 32,
}  # dimensions; 0.85 of torch's speed at twice that


class WholeChain:
    """Takes blocks of steps for `sample`; made by `whole_chain`."""

    def __init__(
        self,
        energy: ChainEnergy | MlpSpec,
        rule: Any,
        backend: Any,
        x: Tensor,
        guard: Guard,
        record: Record,
    ) -> None:
        self.energy, self.rule, self.backend = energy, rule, backend
        self.guard, self.record = guard, record
        work = x.numel()
        if isinstance(energy, MlpSpec):  # 32 weights cost as much as a coordinate
            work += x.shape[0] * sum(size.numel() for size in _sizes(energy)) // 32
        self.block = max(1, _FIRST // work)

    def advance(self, state: LangevinState, noise: Noise, most: int, *, kept: bool) -> int:
        """Up to ``most`` steps in place, recorded if they are ``kept``; how many were taken.

        None are where the next step is one for `step`: it goes wrong, or its schedule does.
        """
        record = self.record
        if self.guard.overdue:
            return 0
        steps = min(most, self.block, _SCHEDULED if self.rule.scheduled else most)
        schedule = None
        if self.rule.scheduled:
            schedule = self._schedule(state, steps)
            steps = schedule.shape[1]
        if not steps:
            return 0
        step = self._step(state.x, state.step, noise)
        written = [state.x, state.energy, *(record.totals() if kept else ())]
        before = [t.clone() for t in written]
        begin = time.perf_counter()
        good = self._run(state, step, steps, schedule, kept)
        if good < steps:
            self.block = max(1, good)  # there may be more of them: each costs a block or two
            for t, old in zip(written, before, strict=True):
                t.copy_(old)
            if good:
                schedule = None if schedule is None else schedule[:, :good].contiguous()
                again = self._run(state, step, good, schedule, kept)
                assert again == good
        elif steps == self.block:
            share = _SECONDS / max(time.perf_counter() - begin, 1e-9)
            self.block = max(1, int(min(4.0, max(0.25, share)) * steps))
        noise.advance(good)
        if kept:
            record.count += good
            if record.keep_every:
                record.kept = record.count // record.keep_every
        return good

    def step(self, state: LangevinState, noise: Noise) -> LangevinState:
        """One step, wherever it leads, as a rule's."""
        step = self._step(state.x, state.step, noise)
        self._run(state, step, 1, None, kept=False, tolerant=True)
        noise.advance()
        return state._replace(step=state.step + 1)

    def _run(
        self,
        state: LangevinState,
        step: StepSpec,
        steps: int,
        schedule: Tensor | None,
        kept: bool,
        tolerant: bool = False,
    ) -> int:
        guard, record = self.guard, self.record
        room = None
        if kept:
            trajectory = None if record.trajectory is None else record.trajectory[record.kept :]
            room = ChainRecord(
                record.count,
                record.sums,
                record.mean,
                record.squares,
                trajectory,
                record.keep_every or 1,
            )
        frozen = guard.frozen if guard.any_frozen else None
        energy = state.energy if frozen is None else torch.empty_like(state.energy)
        good: int = self.backend.chain_(
            state.x, self.energy, step, steps, schedule, energy, state.stats, frozen, room, tolerant
        )
        if frozen is not None:  # whose energies stay what they were
            torch.where(frozen, state.energy, energy, out=state.energy)
        return good

    def _step(self, x: Tensor, k: int, noise: Noise) -> StepSpec:
        """The coefficients and options of the step, checked as a step's are."""
        given = self.rule.arguments(k)
        low, high = given["clamp"] or (None, None)
        position = noise.position(x.shape[0], x.numel() // x.shape[0])
        return check_step(
            x,
            x,
            given["drift"],
            given["diffusion"],
            given.get("max_grad_norm", float("inf")),
            given.get("per") == "coordinate",
            given.get("noise_power", 0.5),
            given["reference_precision"],
            -float("inf") if low is None else float(low),
            float("inf") if high is None else float(high),
            position,
            None,
        )

    def _schedule(self, state: LangevinState, steps: int) -> Tensor:
        """Drift and diffusion (2, n) of the next n <= steps steps, up to one without numbers.

        All of them have noise, or none has.
        """
        pairs: list[list[float]] = []
        for k in range(state.step, state.step + steps):
            try:
                given = self.rule.arguments(k)
                pair = given["drift"], given["diffusion"]
                for name, value in zip(("drift", "diffusion"), pair, strict=True):
                    check_coefficient(name, value, state.x, zero=name == "diffusion")
                drift, diffusion = map(float, pair)
            except Exception:  # whatever it is, the step itself will say so
                break
            if pairs and (diffusion == 0) != (pairs[0][1] == 0):
                break
            pairs.append([drift, diffusion])
        return torch.tensor(pairs, dtype=torch.float64).view(-1, 2).mT.contiguous()


def whole_chain(
    energy: object,
    gradient: EnergyGradient,
    rule: object,
    state: Any,
    backend: str,
    guard: Guard,
    record: Record,
    steps: int,
    *,
    always: bool,
) -> WholeChain | str:
    """What takes whole chains of this energy by this rule, or why nothing does.

    That it would not be faster is a reason, too, unless it is ``always`` to be.
    """
    x = state.x
    chosen: Any = backends.resolve(backend, x.device.type)
    if not hasattr(chosen, "chain_"):
        return f"the {chosen.__name__.rpartition('.')[2]} backend takes one step at a time"
    if type(rule) not in (Langevin, AniLA) or getattr(rule, "correction", "none") != "none":
        return "only Langevin and AniLA without correction have whole chains"
    if record.trajectory is not None and not record.trajectory.is_cpu:
        return "the trajectory is kept elsewhere"
    known: ChainEnergy | MlpSpec | str
    if isinstance(energy, AnalyticEnergy):
        known = _formula(energy, gradient, x, chosen.CHAIN_COLUMNS)
    elif gradient.autocast is not None:
        known = "autocast is on"
    else:
        known = mlp_of(energy, x)
    if not isinstance(known, str) and not always and not _pays(known, x, steps):
        return "one step at a time is faster"
    return known if isinstance(known, str) else WholeChain(known, rule, chosen, x, guard, record)


def _formula(
    energy: AnalyticEnergy, gradient: EnergyGradient, x: Tensor, most: int
) -> ChainEnergy | str:
    known = energy.chain_energy()
    if known is None or not gradient.knows:
        return "the energy is none of langevin_ext.energies, as it was made"
    if x.shape[1:] != (energy.dim,):
        return f"the states are {tuple(x.shape)}, and the energy's (B, {energy.dim})"
    if energy.dim > most:
        return f"the states are {tuple(x.shape)}: whole chains are of (B, d <= {most})"
    return known


def _pays(energy: ChainEnergy | MlpSpec, x: Tensor, steps: int) -> bool:
    """Whether blocks are faster: large products of matrices are torch's."""
    if isinstance(energy, MlpSpec):
        return steps >= _NETWORK_STEPS and max(map(max, _sizes(energy))) <= _WIDEST
    return x.shape[1] <= _LARGEST.get(energy.kind, x.shape[1])


def _sizes(network: MlpSpec) -> list[torch.Size]:
    return [layer.weight.shape for layer in network.layers]
