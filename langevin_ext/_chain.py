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
from ._check import check_range, refuse_tangents
from ._mlp import mlp_of, unscaled
from ._moves import taken
from ._types import (
    CARRIED,
    AcceptSpec,
    ChainEnergy,
    ChainMove,
    ChainRecord,
    KineticSpec,
    MlpSpec,
    StepSpec,
    StepStats,
)
from ._watch import Guard, Record
from .energies._analytic import AnalyticEnergy
from .gradient import EnergyGradient
from .noise import Noise
from .samplers import MALA, AniLA, KineticLangevin, Langevin
from .samplers._rule import is_scheduled
from .samplers.mala import MetropolisState, decided

_SECONDS = 0.2  # of a block: as long as Ctrl-C and the progress bar wait
_FIRST = 2**25  # coordinates of the first block, of which nobody knows the speed yet
_TOGETHER = 32  # chains that take as long as one
_SCHEDULED = 2**10  # steps of a block with a schedule, 4 us each or what the user's function takes
_NETWORK_STEPS = 4  # fewer do not repay packing a network's weights for the kernel
_WIDEST = 1024  # of a network's layers
_COEFFICIENTS = {
    "overdamped": StepSpec._fields[:3],
    "metropolis": AcceptSpec._fields[:3],
    "kinetic": 2 * KineticSpec._fields[:6],
}
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
        self.scheduled = is_scheduled(rule)
        work = x.numel() // x.shape[0]
        if isinstance(energy, MlpSpec):  # 32 weights cost as much as a coordinate
            work += sum(size.numel() for size in _sizes(energy)) // 32
        else:  # so do some numbers of a formula
            work += energy.numbers.numel() // 8
        rows = -(-x.shape[0] // _TOGETHER) * _TOGETHER
        self.block = max(1, _FIRST // (rows * work))
        self.tabulable = True  # schedules without a number for each chain

    def begin(self, state: Any, noise: Noise) -> None:
        """Take the energies and gradients that the rule's first step goes by from the kernel, which
        has them whatever the batch, and as it had them where these chains were cut."""
        if hasattr(state, "grad") and getattr(self.rule, "scheme", "") != "aboba":
            x = state.x
            unseen = state._replace(stats=StepStats.empty(len(x), x.device, x.dtype))
            move = ChainMove("evaluation", (), (0, 0))
            self._run(unseen, move, noise, 1, None, kept=False, tolerant=True)
            start = self.guard.start
            if start is not None:  # where chains restart, likewise
                self.guard.start = start = {name: t.clone() for name, t in start.items()}
                at = {name: start[name] for name in ("x", "energy", "grad")}
                self._run(unseen._replace(**at), move, noise, 1, None, kept=False, tolerant=True)

    def advance(self, state: Any, noise: Noise, most: int, *, kept: bool) -> int:
        """Up to ``most`` steps in place, recorded if they are ``kept``; how many were taken.

        None are where the next step is one for `step`: it goes wrong, or its schedule does, or the
        rule learns from it.
        """
        record = self.record
        if self.guard.overdue or self._is_singular(state) or not self.tabulable:
            return 0
        steps = min(most, self.block, _SCHEDULED if self.scheduled else most)
        schedule = None
        if self.scheduled:
            table = self._schedule(state, steps)
            if table is None:
                return 0
            move, schedule = table
            steps = schedule.shape[1]
        else:
            move = self._move(state)
        written = [state.x, *_carried(state), *(record.totals() if kept else ())]
        before = [t.clone() for t in written]
        begin = time.perf_counter()
        good = self._run(state, move, noise, steps, schedule, kept)
        if good < steps:
            self.block = max(1, good)  # there may be more of them: each costs a block or two
            for t, old in zip(written, before, strict=True):
                t.copy_(old)
            if good:
                schedule = None if schedule is None else schedule[:, :good].contiguous()
                again = self._run(state, move, noise, good, schedule, kept)
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

    def step(self, state: Any, noise: Noise) -> Any:
        """One step, wherever it leads, as a rule's."""
        self._run(state, self._move(state), noise, 1, None, kept=False, tolerant=True)
        noise.advance()
        if isinstance(state, MetropolisState):
            return decided(state, getattr(self.rule, "target_acceptance", None))
        return state._replace(step=state.step + 1)

    def _is_singular(self, state: Any) -> bool:
        """Whether the next step is one by itself: it adapts the step size, or forgets that it was
        adapted; or a chain has no density."""
        if not isinstance(state, MetropolisState):
            return False
        if state.adaptation is not None:
            forgets = getattr(self.rule, "target_acceptance", None) is None
            if forgets or not state.adaptation.done:
                return True
        return not bool((state.stats.finite | self.guard.frozen).all())

    def _run(
        self,
        state: Any,
        move: ChainMove,
        noise: Noise,
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
        x = state.x
        first, second = (
            noise.position(x.shape[0], x.numel() // x.shape[0], p) for p in move.purposes
        )
        good: int = self.backend.chain_(
            state,
            self.energy,
            move,
            steps,
            schedule,
            first,
            second.stream,
            guard.frozen if guard.any_frozen and move.rule != "evaluation" else None,
            room,
            tolerant,
        )
        return good

    def _move(self, state: Any) -> ChainMove:
        """The step after this state, its coefficients as a kernel takes them."""
        x = state.x
        move: ChainMove = self.rule.chain_move(state)
        check_range(move.low, move.high, x.dtype)
        refuse_tangents(x, *move.coefficients)
        named = zip(_COEFFICIENTS[move.rule], move.coefficients, strict=True)
        return move._replace(coefficients=tuple(taken(name, c, x) for name, c in named))

    def _schedule(self, state: Any, steps: int) -> tuple[ChainMove, Tensor] | None:
        """The next step, and the coefficients (m, n), but for a bound, of the next n <= steps
        steps, up to one that has not numbers alone; None if that is the next one.

        What is 0 in one of them is 0 in all.
        """
        first: ChainMove | None = None
        rows: list[list[float]] = []
        for k in range(state.step, state.step + steps):
            try:
                move = self._move(state._replace(step=k))
            except Exception:  # whatever it is, the step itself will say so
                break
            named = zip(_COEFFICIENTS[move.rule], move.coefficients, strict=True)
            numbers = [c for name, c in named if name != "max_grad_norm"]
            if any(isinstance(c, Tensor) and c.numel() != 1 for c in numbers):
                self.tabulable = False
                break
            row = [float(c) for c in numbers]
            if rows and any((a == 0) != (b == 0) for a, b in zip(row, rows[0], strict=True)):
                break
            first = first or move
            rows.append(row)
        if first is None:
            return None
        table = torch.tensor(rows, dtype=torch.float64, device="cpu")
        return first, table.mT.contiguous()


def _carried(state: Any) -> list[Tensor]:
    """What a kernel writes of a state besides x and its statistics."""
    return [getattr(state, name) for name in CARRIED if hasattr(state, name)]


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
    rules = Langevin, AniLA, MALA, KineticLangevin
    if type(rule) not in rules or getattr(rule, "correction", "none") not in ("none", "metropolis"):
        return (
            "only Langevin, AniLA (without correction, or 'metropolis'), MALA and KineticLangevin"
            " have whole chains"
        )
    if record.trajectory is not None and not record.trajectory.is_cpu:
        return "the trajectory is kept elsewhere"
    known: ChainEnergy | MlpSpec | str
    inside = unscaled(energy)
    if isinstance(inside, str):
        known = inside
    elif isinstance(inside[0], AnalyticEnergy):
        known = _formula(inside[0], inside[1], x, chosen)
    elif gradient.autocast is not None:
        known = "autocast is on"
    else:
        known = mlp_of(energy, x)
    if not isinstance(known, str) and not always and not _pays(known, x, steps):
        return "one step at a time is faster"
    if isinstance(known, str):
        return known
    return WholeChain(known, rule, chosen, x, guard, record)


def _formula(energy: AnalyticEnergy, factor: float, x: Tensor, kernels: Any) -> ChainEnergy | str:
    known = energy.chain_energy()
    if known is None or not EnergyGradient(energy).knows:
        return "the energy is none of langevin_ext.energies, as it was made"
    if x.shape[1:] != (energy.dim,):
        return f"the states are {tuple(x.shape)}, and the energy's (B, {energy.dim})"
    most = kernels.CHAIN_COLUMNS
    if energy.dim > most:
        return f"the states are {tuple(x.shape)}: whole chains are of (B, d <= {most})"
    if known.components > kernels.CHAIN_COMPONENTS:
        return (
            f"it has {known.components} components: whole chains are of {kernels.CHAIN_COMPONENTS}"
        )
    return known._replace(factor=factor)


def _pays(energy: ChainEnergy | MlpSpec, x: Tensor, steps: int) -> bool:
    """Whether blocks are faster: large products of matrices are torch's."""
    if isinstance(energy, MlpSpec):
        return steps >= _NETWORK_STEPS and max(map(max, _sizes(energy))) <= _WIDEST
    return x.shape[1] <= _LARGEST.get(energy.kind, x.shape[1])


def _sizes(network: MlpSpec) -> list[torch.Size]:
    return [layer.weight.shape for layer in network.layers]
