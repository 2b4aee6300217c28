"""The driver: run a rule on an energy, keep what was asked for, watch over the chains."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ._types import Energy
from .errors import (
    ArgumentError,
    DeviceError,
    EnergyError,
    LangevinError,
    NonFiniteError,
    SamplingInterrupted,
)
from .gradient import EnergyGradient, undisturbed
from .noise import Noise, as_noise
from .samplers._rule import ChainState, Rule
from .step import check_state

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
    """(B,) bool: chains stopped by ``on_nonfinite="freeze"``."""

    @property
    def step(self) -> int:
        """Steps taken since the chains were fresh."""
        return int(self.chains.step)


class SampleStats(NamedTuple):
    """What happened to each chain after burn-in; (B,) each."""

    grad_norm: Tensor
    """Mean of |grad U| over the steps."""
    gamma: Tensor
    """Mean clip factor; 1 where nothing is clipped."""
    clipped: Tensor
    """Share of the steps with gamma < 1."""
    energy: Tensor
    """U where the last gradient was taken."""
    first_bad_step: Tensor
    """int64: the first step (burn-in included) that was not finite; -1 if there was none."""
    restarts: Tensor
    """int64: how often ``on_nonfinite="reinit"`` restarted the chain."""
    mean: Tensor | None
    """(B, ...): running mean of the chain over the steps, with ``moments=True``."""
    var: Tensor | None
    """(B, ...): running unbiased variance of the chain over the steps, with ``moments=True``."""


class Samples(NamedTuple):
    """The result of `sample`."""

    x: Tensor
    """(B, ...): the last states."""
    trajectory: Tensor | None
    """(steps // keep_every, B, ...): the kept states, x0 not among them."""
    stats: SampleStats
    state: SampleState
    """Pass it as ``x0`` to continue these chains."""


def sample(
    energy: Energy,
    x0: Tensor | SampleState,
    rule: Rule,
    steps: int,
    *,
    seed: int | torch.Generator | Noise | None = None,
    burn_in: int = 0,
    keep_every: int | None = None,
    trajectory_device: torch.device | str | None = None,
    moments: bool = False,
    on_nonfinite: OnNonFinite = "raise",
    check_every: int | None = None,
    progress: bool | str = False,
    autocast: torch.dtype | None = None,
    channels_last: bool | None = None,
    backend: str = "auto",
) -> Samples:
    """Draw from exp(-U) by a rule, all chains at once.

    Args:
        energy: U, any callable or module (B, ...) -> (B,) or (B, 1). A module runs in eval mode
            with frozen parameters, and is left as it was.
        x0: starting states (B, ...), float32 or float64; never modified. Or the ``state`` of an
            earlier result, which continues it exactly.
        rule: `Langevin`, `AniLA`, or anything with their two methods.
        steps: steps after burn-in, >= 0.
        seed: an int in [0, 2**64), a generator, a `Noise` (which is advanced by the steps taken,
            as a generator would be), or None to draw a seed from torch's default generator.
        burn_in: steps before anything is kept or averaged.
        keep_every: keep every so many states in ``trajectory``.
        trajectory_device: where to keep them, ``"cpu"`` for instance; the chains' device if None.
        moments: keep the running mean and variance of every coordinate of every chain.
        on_nonfinite: ``"raise"`` a `NonFiniteError` that names step, chains and remedy;
            ``"freeze"`` a bad chain at its last finite state; ``"reinit"`` it at its x0, up to
            10 times. The other chains are not affected by a bit.
        check_every: read the chains' finiteness every so many steps; 1 on a CPU, 64 elsewhere,
            where reading waits for the device. ``"freeze"`` acts at once in either case.
        progress: show a progress bar; a string is its label.
        autocast: bfloat16 or float16 for the energy; the state stays as it is.
        channels_last: hand the energy its states in this memory format; None decides by a fixed
            rule. The noise is the same in either.
        backend: ``"auto"``, ``"native"`` or ``"reference"``.

    Raises:
        NonFiniteError, EnergyError, SamplingInterrupted: each with ``samples``, what was drawn.
        ArgumentError, ShapeError, DtypeError, DeviceError, NoiseError: before the first step.
    """
    gradient = EnergyGradient(energy, autocast=autocast, channels_last=channels_last)
    counts = {"steps": steps, "burn_in": burn_in}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ArgumentError(f"{name}={value!r}: give an int >= 0")
    for name, every in (("keep_every", keep_every), ("check_every", check_every)):
        if every is not None and (isinstance(every, bool) or not isinstance(every, int)):
            raise ArgumentError(f"{name}={every!r}: give an int >= 1 or None")
        if every is not None and every < 1:
            raise ArgumentError(f"{name}={every}: give an int >= 1 or None")
    if on_nonfinite not in ("raise", "freeze", "reinit"):
        raise ArgumentError(f"on_nonfinite={on_nonfinite!r}: give 'raise', 'freeze' or 'reinit'")

    with torch.inference_mode(False), torch.no_grad():
        state, noise, frozen = _begin(energy, gradient, x0, rule, seed)
        record = _Record(state, steps, keep_every, trajectory_device, moments)
        guard = _Guard(state, frozen, on_nonfinite, check_every)
        total = burn_in + steps if state.x.numel() else 0

        def samples() -> Samples:
            return record.result(state, noise, guard)

        bar = tqdm(
            total=total,
            desc=progress if isinstance(progress, str) else "sampling",
            disable=not progress,
            leave=False,
        )
        with undisturbed(energy), bar:
            try:
                for k in range(total):
                    guard.before(state)
                    state = _advance(rule, state, gradient, noise, backend, k)
                    guard.after(state, k, last=k + 1 == total)
                    if k >= burn_in:
                        record.add(state, k - burn_in)
                    if progress:
                        bar.update()
            except KeyboardInterrupt:
                raise SamplingInterrupted(samples()) from None
            except (EnergyError, NonFiniteError) as error:
                error.samples = samples()
                raise
        return samples()


def _begin(
    energy: Energy,
    gradient: EnergyGradient,
    x0: Tensor | SampleState,
    rule: Rule,
    seed: int | torch.Generator | Noise | None,
) -> tuple[Any, Noise, Tensor]:
    """The chains' state, the noise to advance, and which chains are frozen already."""
    if isinstance(x0, SampleState):
        if seed is not None:
            raise ArgumentError("seed together with a state to continue: the state has its noise")
        chains = type(x0.chains)(*(_copy(field) for field in x0.chains))
        return chains, x0.noise.clone(), x0.frozen.clone()
    check_state(x0, "x0")
    noise = as_noise(seed)
    if noise.stream % 16:
        raise ArgumentError(
            f"a sampler's stream is a multiple of 16 (its low bits name purposes); got {noise!r}"
        )
    if noise.fixed:
        noise = noise.clone()
    if isinstance(energy, torch.nn.Module):
        for p in energy.parameters():
            if p.device != x0.device:
                raise DeviceError(f"the energy is on {p.device}, the chains on {x0.device}")
            break
    noise.position(x0.shape[0], 1)
    bad = ~x0.flatten(1).isfinite().all(1) if x0.dim() > 1 else ~x0.isfinite()
    if bool(bad.any()):
        chains_ = bad.nonzero().flatten().tolist()
        raise NonFiniteError(f"x0 is not finite in {_name_chains(chains_)}", step=0, chains=chains_)
    x = x0.detach().clone(memory_format=torch.contiguous_format)
    with undisturbed(energy):
        state = rule.init(gradient, x, noise)
    return state, noise, torch.zeros(x.shape[:1], dtype=torch.bool, device=x.device)


def _copy(field: Any) -> Any:
    if isinstance(field, Tensor):
        return field.clone()
    return type(field)(*map(_copy, field)) if isinstance(field, tuple) else field


def _advance(
    rule: Rule, state: Any, gradient: EnergyGradient, noise: Noise, backend: str, k: int
) -> Any:
    try:
        return rule.step(state, gradient, noise, backend=backend)
    except LangevinError:
        raise
    except Exception as error:
        raise EnergyError(f"the energy raised {type(error).__name__} in step {k}") from error


def _name_chains(chains: list[int]) -> str:
    shown = ", ".join(map(str, chains[:8])) + (", ..." if len(chains) > 8 else "")
    return f"{len(chains)} chain{'s' if len(chains) > 1 else ''} ({shown})"


def _per_chain(flags: Tensor, x: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (x.dim() - 1))


class _Guard:
    """Finds chains that left the finite numbers and does what ``on_nonfinite`` says."""

    def __init__(
        self, state: ChainState, frozen: Tensor, policy: OnNonFinite, check_every: int | None
    ) -> None:
        x = state.x
        self.policy = policy
        self.frozen = frozen
        self.any_frozen = bool(frozen.any())
        self.check_every = check_every or (1 if x.device.type == "cpu" else 64)
        self.first_bad_step = torch.full(x.shape[:1], -1, dtype=torch.int64, device=x.device)
        self.restarts = torch.zeros_like(self.first_bad_step)
        self.anchor = x.clone() if policy != "raise" else None  # last finite state, or x0

    def before(self, state: ChainState) -> None:
        if self.policy == "freeze" and self.anchor is not None:
            self.anchor.copy_(state.x)

    def after(self, state: ChainState, k: int, *, last: bool) -> None:
        finite = state.stats.finite
        quick = self.check_every == 1 and not self.any_frozen
        # The sum tells of every energy at the price of one; a false alarm is looked into.
        if quick and bool(finite.all()) and math.isfinite(float(state.energy.sum())):
            return
        ok = state.energy.isfinite() & finite
        due = last or (k + 1) % self.check_every == 0
        newly = ~ok & (self.first_bad_step < 0)
        self.first_bad_step.masked_fill_(newly, k)
        if self.policy == "freeze":
            assert self.anchor is not None
            self.frozen |= ~ok
            self.any_frozen = True
            torch.where(_per_chain(self.frozen, state.x), self.anchor, state.x, out=state.x)
        elif due and self.policy == "raise" and bool((self.first_bad_step >= 0).any()):
            self._raise(state, self.first_bad_step >= 0, int(self.first_bad_step.max()))
        elif due and self.policy == "reinit":
            assert self.anchor is not None
            # A chain that went bad between two checks is not finite now either.
            bad = ~ok
            self.restarts += bad
            if bool((self.restarts > MAX_RESTARTS).any()):
                self._raise(state, self.restarts > MAX_RESTARTS, k)
            torch.where(_per_chain(bad, state.x), self.anchor, state.x, out=state.x)

    def _raise(self, state: ChainState, bad: Tensor, k: int) -> None:
        chains = bad.nonzero().flatten().tolist()
        norms = state.stats.grad_norm[bad]
        again = f" and again after {MAX_RESTARTS} restarts" if self.policy == "reinit" else ""
        raise NonFiniteError(
            f"{_name_chains(chains)} became non-finite by step {k}{again}: |grad U| there is"
            f" {float(norms[0]):.3g}. Take a smaller step_size, bound the step (AniLA, or a clamp),"
            " or keep the other chains with on_nonfinite='freeze'",
            step=k,
            chains=chains,
        )


class _Record:
    """Keeps the trajectory and the per-chain sums."""

    def __init__(
        self,
        state: ChainState,
        steps: int,
        keep_every: int | None,
        device: torch.device | str | None,
        moments: bool,
    ) -> None:
        x = state.x
        self.keep_every = keep_every
        self.kept = self.count = 0
        self.trajectory = None
        if keep_every is not None:
            shape = (steps // keep_every, *x.shape)
            where = x.device if device is None else torch.device(device)
            _check_memory(shape, x.element_size(), where)
            self.trajectory = torch.empty(shape, dtype=x.dtype, device=where)
        zeros = x.new_zeros(x.shape[:1])
        self.norm, self.gamma, self.clipped = zeros, zeros.clone(), zeros.clone()
        self.mean = torch.zeros_like(x) if moments else None
        self.squares = torch.zeros_like(x) if moments else None

    def add(self, state: ChainState, k: int) -> None:
        stats = state.stats
        self.count += 1
        self.norm += stats.grad_norm
        self.gamma += stats.gamma
        self.clipped += stats.gamma < 1
        if self.mean is not None and self.squares is not None:  # Welford
            delta = state.x - self.mean
            self.mean.add_(delta, alpha=1 / self.count)
            self.squares.addcmul_(delta, state.x - self.mean)
        if self.trajectory is not None and self.keep_every and (k + 1) % self.keep_every == 0:
            self.trajectory[self.kept].copy_(state.x, non_blocking=True)
            self.kept += 1

    def result(self, state: Any, noise: Noise, guard: _Guard) -> Samples:
        count = max(self.count, 1)
        var = None if self.squares is None else self.squares / max(self.count - 1, 1)
        stats = SampleStats(
            self.norm / count,
            self.gamma / count,
            self.clipped / count,
            state.energy.clone(),
            guard.first_bad_step,
            guard.restarts,
            self.mean,
            var,
        )
        if self.trajectory is not None and self.trajectory.device.type != state.x.device.type:
            _wait_for(state.x.device)
        kept = None if self.trajectory is None else self.trajectory[: self.kept]
        # The caller may do to x what they like: the state keeps its own.
        return Samples(
            state.x.clone(), kept, stats, SampleState(state, noise.clone(), guard.frozen)
        )


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check_memory(shape: tuple[int, ...], itemsize: int, device: torch.device) -> None:
    need = torch.Size(shape).numel() * itemsize
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    if need > free:
        raise MemoryError(
            f"a trajectory of shape {shape} needs {need / 2**30:.1f} GiB and {device} has"
            f" {free / 2**30:.1f} GiB free: take a larger keep_every, or trajectory_device='cpu'"
        )
