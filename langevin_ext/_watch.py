"""What `sample` does beside stepping: results, records, and the watch over the chains."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import backends
from ._arviz import inference_data
from ._types import Tally
from .errors import DeviceError, NonFiniteError
from .noise import Noise
from .samplers._rule import ChainState

OnNonFinite = Literal["raise", "freeze", "reinit"]
MAX_RESTARTS = 10


@dataclass(frozen=True)
class SampleState:
    """Where a call of `sample` stopped. Pass it as ``x0`` to go on exactly from there."""

    chains: Any
    """The rule's own state: x, and whatever it carries from step to step."""
    noise: Noise
    """The position of the next step."""
    frozen: Tensor
    """(B,) bool: chains stopped by ``on_nonfinite="freeze"``; they stay where they are."""
    start: dict[str, Tensor] | None
    """Where ``on_nonfinite="reinit"`` restarts a chain: x0 and what the rule carries with it; None
    under other policies."""
    restarts: Tensor
    """(B,) int64: how often it did."""

    @property
    def step(self) -> int:
        """Steps taken since the chains were fresh."""
        return int(self.chains.step)


class SampleStats(NamedTuple):
    """What happened to each chain after burn-in; (B,) each.

    A mean over steps of which one was not finite is not finite either. A frozen chain goes on being
    counted where it stands.
    """

    grad_norm: Tensor
    """Mean of |grad U| over the steps."""
    gamma: Tensor
    """Mean clip factor; 1 where nothing is clipped."""
    clipped: Tensor
    """Share of the steps with gamma < 1."""
    energy: Tensor
    """U where the last gradient was taken."""
    first_bad_step: Tensor
    """int64: this call's first step (burn-in included) that was not finite; -1 if none was."""
    restarts: Tensor
    """int64: how often ``on_nonfinite="reinit"`` restarted the chain."""
    mean: Tensor | None
    """(B, ...): running mean of the chain over the steps, with ``moments=True``; of a rule with
    weights the weighted mean."""
    var: Tensor | None
    """(B, ...): running variance of the chain over the steps, likewise; n / (n - 1) times the mean
    square, so unbiased without weights."""
    acceptance: Tensor | None = None
    """Mean of min(1, acceptance ratio) over the steps; None for rules that accept everything."""
    step_size: Tensor | None = None
    """float64: the step size that adaptation arrived at; None if there was none."""
    weight: Tensor | None = None
    """Mean weight over the steps, to pool weighted means of chains; None without weights."""


class Samples(NamedTuple):
    """The result of `sample`."""

    x: Tensor
    """(B, ...): the last states."""
    trajectory: Tensor | None
    """(steps // keep_every, B, ...): the kept states, x0 not among them."""
    stats: SampleStats
    state: SampleState
    """Pass it as ``x0`` to continue these chains."""
    weights: Tensor | None = None
    """(B,): weights of the last states, for a rule with weights."""
    trajectory_weights: Tensor | None = None
    """(steps // keep_every, B): those of the kept states."""

    def to_arviz(self) -> Any:
        """The trajectory as ArviZ's InferenceData, for its plots, summaries and files.

        Its posterior has ``x`` (chain, draw, x_dim_0, ...), which on a CPU shares the trajectory's
        memory; its chains are named by the noise's ids. Its sample_stats have the weights of a rule
        with weights, and what `stats` says of a chain, the same at each of its draws.

        Raises:
            ArgumentError: there is no trajectory; sample with keep_every.
            ImportError: ArviZ is not installed; it is in the extra ``langevin-ext[arviz]``.
        """
        return inference_data(self)


def name_chains(chains: list[int]) -> str:
    shown = ", ".join(map(str, chains[:8])) + (", ..." if len(chains) > 8 else "")
    return f"{len(chains)} chain{'s' if len(chains) > 1 else ''} ({shown})"


def _per_chain(flags: Tensor, x: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (x.dim() - 1))


def _carried(state: Any) -> dict[str, Tensor]:
    """What a state holds of every chain from one step to the next, x first of all."""
    rows = state.x.shape[:1]
    fields = state._asdict().items()
    return {name: t for name, t in fields if isinstance(t, Tensor) and t.shape[:1] == rows}


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in tensors.items()}


def _put_back(state: Any, chains: Tensor, saved: dict[str, Tensor]) -> None:
    """Give some chains (a mask) what was saved of them."""
    for name, t in _carried(state).items():
        torch.where(_per_chain(chains, t), saved[name], t, out=t)


class Guard:
    """Finds chains that left the finite numbers and does what ``on_nonfinite`` says."""

    def __init__(
        self,
        state: ChainState,
        past: SampleState | None,
        policy: OnNonFinite,
        check_every: int | None,
        backend: str,
    ) -> None:
        x = state.x
        self.backend = backends.resolve(backend, x.device.type)
        self.policy = policy
        self.check_every = check_every or (1 if x.device.type == "cpu" else 64)
        self.first_bad_step = torch.full(x.shape[:1], -1, dtype=torch.int64, device=x.device)
        if past is None:
            self.frozen = torch.zeros(x.shape[:1], dtype=torch.bool, device=x.device)
            self.restarts = torch.zeros_like(self.first_bad_step)
            self.start = None
        else:
            self.frozen, self.restarts = past.frozen.clone(), past.restarts.clone()
            self.start = past.start
        if policy == "reinit" and self.start is None:
            self.start = _copies(_carried(state))
        self.any_frozen = bool(self.frozen.any())
        freezes = policy == "freeze" or self.any_frozen
        self.held = _copies(_carried(state)) if freezes else None

    @property
    def overdue(self) -> bool:
        """Whether a chain went wrong, and the check that is to raise is still to come."""
        return self.policy == "raise" and bool((self.first_bad_step >= 0).any())

    def before(self, state: ChainState) -> None:
        if self.held is not None:
            for name, t in _carried(state).items():
                self.held[name].copy_(t)

    def after(self, state: ChainState, k: int, *, last: bool) -> None:
        finite = state.stats.finite
        quick = self.check_every == 1 and not self.any_frozen
        if quick and self.backend.all_finite(state.stats, state.energy):
            return
        ok = (state.energy.isfinite() & finite) | self.frozen
        self.first_bad_step.masked_fill_(~ok & (self.first_bad_step < 0), k)
        due = last or state.step % self.check_every == 0
        if self.policy == "freeze":
            self.frozen |= ~ok
            self.any_frozen = True
        elif due and self.policy == "raise" and bool((self.first_bad_step >= 0).any()):
            bad = self.first_bad_step >= 0
            self._raise(state, bad, int(self.first_bad_step[bad].min()))
        elif due and self.policy == "reinit":
            self.restarts += ~ok
            if bool((self.restarts > MAX_RESTARTS).any()):
                self._raise(state, self.restarts > MAX_RESTARTS, k)
            assert self.start is not None
            _put_back(state, ~ok, self.start)
        if self.held is not None:
            _put_back(state, self.frozen, self.held)
            grad = getattr(state, "grad", None)
            if hasattr(state, "velocity") and grad is not None and self.any_frozen:
                norm, squares = state.stats.grad_norm, grad.flatten(1).square()
                torch.where(self.frozen, squares.sum(1).sqrt(), norm, out=norm)  # where they stand

    def _raise(self, state: ChainState, bad: Tensor, k: int) -> None:
        chains = bad.nonzero().flatten().tolist()
        first = chains[0]
        norm, energy = float(state.stats.grad_norm[first]), float(state.energy[first])
        where = f"|grad U| there is {norm:.3g}" if math.isfinite(energy) else f"U there is {energy}"
        again = f" and again after {MAX_RESTARTS} restarts" if self.policy == "reinit" else ""
        raise NonFiniteError(
            f"{name_chains(chains)} became non-finite in step {k}{again}: {where}. Start where U is"
            " finite, take a smaller step_size, bound the step (AniLA, or a clamp), or keep the"
            " other chains with on_nonfinite='freeze'",
            step=k,
            chains=chains,
        )


class Record:
    """Keeps the trajectory and the per-chain sums."""

    def __init__(
        self,
        state: ChainState,
        steps: int,
        keep_every: int | None,
        device: torch.device | str | None,
        moments: bool,
        backend: str,
    ) -> None:
        x = state.x
        self.backend = backends.resolve(backend, x.device.type)
        self.keep_every = keep_every
        self.kept = self.count = 0
        self.trajectory = None
        if keep_every is not None:
            shape = (steps // keep_every, *x.shape)
            try:
                where = x.device if device is None else torch.device(device)
            except RuntimeError as error:
                raise DeviceError(f"trajectory_device={device!r}: {error}") from error
            _check_memory(shape, x.element_size(), where)
            self.trajectory = torch.empty(shape, dtype=x.dtype, device=where)
        weights = hasattr(state, "weight")
        self.sums = Tally.zeros(
            x.shape[0], x.device, acceptance=hasattr(state, "log_ratio"), weight=weights
        )
        self.trajectory_weights = None
        if self.trajectory is not None and weights:
            self.trajectory_weights = self.trajectory.new_empty(
                self.trajectory.shape[:2], dtype=torch.float64
            )
        self.mean = torch.zeros_like(x, dtype=torch.float64) if moments else None
        self.squares = torch.zeros_like(x, dtype=torch.float64) if moments else None

    def totals(self) -> list[Tensor]:
        """All that steps are added to, but for the trajectory."""
        return [t for t in (*self.sums, self.mean, self.squares) if t is not None]

    def add(self, state: Any, k: int) -> None:
        self.count += 1
        log_ratio, weight = (getattr(state, name, None) for name in ("log_ratio", "weight"))
        self.backend.tally_(self.sums, state.stats, log_ratio, weight)
        if self.mean is not None and self.squares is not None:
            self._add_moments(state, self.mean, self.squares)
        if self.trajectory is not None and self.keep_every and (k + 1) % self.keep_every == 0:
            self.trajectory[self.kept].copy_(state.x, non_blocking=True)
            if self.trajectory_weights is not None:
                self.trajectory_weights[self.kept].copy_(state.weight, non_blocking=True)
            self.kept += 1

    def _add_moments(self, state: Any, mean: Tensor, squares: Tensor) -> None:
        """Welford's algorithm, and with weights West's."""
        delta = state.x - mean
        if self.sums.weight is None:
            mean.add_(delta * (1 / self.count))  # not fused, as in kernels of whole chains
            squares.add_(delta.mul_(state.x - mean))
        else:
            mean.addcmul_(delta, _per_chain(state.weight / self.sums.weight, mean))
            squares.addcmul_(delta, (state.x - mean) * _per_chain(state.weight, mean))

    def result(self, state: Any, noise: Noise, guard: Guard) -> Samples:
        moment = var = None
        if self.mean is not None and self.squares is not None:
            moment = self.mean.to(state.x.dtype, copy=True)
            if not self.count:
                moment.fill_(math.nan)
            weight = self.sums.weight
            total = self.count if weight is None else _per_chain(weight, self.squares)
            var = (self.squares / total).to(state.x.dtype)
            var *= self.count / (self.count - 1) if self.count > 1 else math.nan

        def mean(total: Tensor | None) -> Any:
            return None if total is None else (total / self.count).to(state.x.dtype)

        adaptation = getattr(state, "adaptation", None)
        stats = SampleStats(
            grad_norm=mean(self.sums.grad_norm),
            gamma=mean(self.sums.gamma),
            clipped=mean(self.sums.clipped),
            energy=state.energy.clone(),
            first_bad_step=guard.first_bad_step,
            restarts=guard.restarts,
            mean=moment,
            var=var,
            acceptance=mean(self.sums.acceptance),
            step_size=None if adaptation is None else adaptation.step_size.clone(),
            weight=mean(self.sums.weight),
        )
        if self.trajectory is not None and self.trajectory.device.type != state.x.device.type:
            _wait_for(state.x.device)
        kept = None if self.trajectory is None else self.trajectory[: self.kept]
        # The caller may do to x what they like: the state keeps its own.
        past = SampleState(state, noise.clone(), guard.frozen, guard.start, guard.restarts)
        weights = state.weight.clone() if self.sums.weight is not None else None
        kept_weights = None
        if self.trajectory_weights is not None:
            kept_weights = self.trajectory_weights[: self.kept]
        return Samples(state.x.clone(), kept, stats, past, weights, kept_weights)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _meminfo() -> str:
    file = Path("/proc/meminfo")
    return file.read_text() if file.exists() else ""


def _check_memory(shape: tuple[int, ...], itemsize: int, device: torch.device) -> None:
    need = torch.Size(shape).numel() * itemsize
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu" and (available := re.search(r"MemAvailable: +(\d+) kB", _meminfo())):
        free = int(available[1]) * 1024
    else:
        return
    if need > free:
        raise MemoryError(
            f"a trajectory of shape {shape} needs {need / 2**30:.1f} GiB and {device} has"
            f" {free / 2**30:.1f} GiB free: take a larger keep_every, or trajectory_device='cpu'"
        )
