"""The driver: run a rule on an energy, keep what was asked for, watch over the chains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ._chain import whole_chain as find_whole_chain
from ._check import check_count, check_state
from ._moves import point
from ._types import Energy
from ._watch import Guard, OnNonFinite, Record, Samples, SampleState, name_chains
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
from .samplers._rule import Rule, check_field, check_fields


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
    whole_chain: bool | str = "auto",
    backend: str = "auto",
) -> Samples:
    """Draw from exp(-U) by a rule, all chains at once.

    Args:
        energy: U, any callable or module (B, ...) -> (B,) or (B, 1). A module runs in eval mode
            with frozen parameters, and is left as it was. (A function around a module hides it:
            call ``eval`` on it yourself.)
        x0: starting states (B, ...), float32 or float64; never modified. Or the ``state`` of an
            earlier result of the same kind of rule, which continues it exactly; on another energy
            too, as what a rule carries of the energy is taken anew.
        rule: `Langevin`, `AniLA`, `MALA`, `KineticLangevin`, `HMC`, `TULA`, or anything with
            their two methods.
        steps: steps after burn-in, >= 0.
        seed: an int in [0, 2**64), a generator, a `Noise` (which is advanced by the steps taken,
            as a generator would be), or None to draw a seed from torch's default generator.
        burn_in: steps before anything is kept or averaged; a rule with a target acceptance
            adapts its step size during these alone.
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
        whole_chain: take many steps in one call of a kernel: ``"auto"`` where one knows energy and
            rule and is faster, False never, True always, or an error that says why not. The noise
            is the same; gradients differ by rounding.
        backend: ``"auto"``, ``"triton"``, ``"native"`` or ``"reference"``.

    Raises:
        NonFiniteError, EnergyError, SamplingInterrupted: each with ``samples``, what was drawn.
        ArgumentError, ShapeError, DtypeError, DeviceError, NoiseError: before the first step.
    """
    gradient = EnergyGradient(energy, autocast=autocast, channels_last=channels_last)
    steps, burn_in = check_count("steps", steps, 0), check_count("burn_in", burn_in, 0)
    if keep_every is not None:
        keep_every = check_count("keep_every", keep_every, 1)
    if check_every is not None:
        check_every = check_count("check_every", check_every, 1)
    is_rule = callable(getattr(rule, "init", None)) and callable(getattr(rule, "step", None))
    if isinstance(rule, type) or not is_rule:
        raise ArgumentError(
            f"rule={rule!r}: pass Langevin, AniLA, MALA, or an object with init and step"
        )
    if whole_chain != "auto" if isinstance(whole_chain, str) else type(whole_chain) is not bool:
        raise ArgumentError(f"whole_chain={whole_chain!r}: give 'auto', True or False")
    if on_nonfinite not in ("raise", "freeze", "reinit"):
        raise ArgumentError(f"on_nonfinite={on_nonfinite!r}: give 'raise', 'freeze' or 'reinit'")

    with torch.inference_mode(False), torch.no_grad(), undisturbed(energy):
        state, noise, past = _begin(energy, gradient, x0, rule, seed)
        adapts = getattr(rule, "target_acceptance", None) is not None
        adaptation = getattr(state, "adaptation", None) if adapts else None
        if steps and not burn_in and adaptation is not None and not adaptation.done:
            raise ArgumentError(
                f"{rule} adapts its step size during burn-in, and burn_in=0: give some hundred"
                " steps, or target_acceptance=None"
            )
        record = Record(state, steps, keep_every, trajectory_device, moments, backend)
        guard = Guard(state, past, on_nonfinite, check_every, backend)
        total = burn_in + steps
        noise.clone().advance(total)  # so that it does not run out on the way
        if not state.x.numel():  # nothing to move, but the noise keeps step with other shards
            noise.advance(total)
            record.kept, total = steps // (keep_every or 1), 0
            if burn_in and hasattr(rule, "end_burn_in"):
                state = rule.end_burn_in(state)

        chain = None
        if whole_chain and total:
            found = find_whole_chain(
                energy, gradient, rule, state, backend, guard, record, total,
                always=whole_chain is True,
            )  # fmt: skip
            if not isinstance(found, str):
                chain = found
                chain.begin(state, noise)
            elif whole_chain is True:
                raise ArgumentError(f"whole_chain=True: {found}; leave whole_chain at 'auto'")

        def samples() -> Samples:
            return record.result(state, noise, guard)

        bar = tqdm(
            total=total,
            desc=progress if isinstance(progress, str) else "sampling",
            disable=not progress,
            leave=False,
        )
        with bar, _interrupts_between_steps() as interrupted:
            k = 0
            try:
                while k < total:
                    end = burn_in if k < burn_in else total
                    done = 0
                    if chain:
                        with _named_errors(f"in step {k}"):
                            done = chain.advance(state, noise, end - k, kept=k >= burn_in)
                    if done:
                        state = state._replace(step=state.step + done)
                    else:
                        done = 1
                        guard.before(state)
                        with _named_errors(f"in step {k}"):
                            if chain:
                                state = chain.step(state, noise)
                            else:
                                state = rule.step(state, gradient, noise, backend=backend)
                        guard.after(state, k, last=k + 1 == total)
                        if k >= burn_in:
                            record.add(state, k - burn_in)
                    k += done
                    if k == burn_in and hasattr(rule, "end_burn_in"):
                        state = rule.end_burn_in(state)
                    if progress:
                        bar.update(done)
                    if interrupted:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                if len(interrupted) > 1:  # a step may be half done: there is nothing to go on from
                    raise
                taken = f"sampling interrupted after {state.step} steps"
                raise SamplingInterrupted(taken, samples()) from None
            except LangevinError as error:
                error.samples = samples()
                raise
        return samples()


def _begin(
    energy: Energy,
    gradient: EnergyGradient,
    x0: Tensor | SampleState,
    rule: Rule,
    seed: int | torch.Generator | Noise | None,
) -> tuple[Any, Noise, SampleState | None]:
    """The chains' state, the noise to advance, and what is continued."""
    if isinstance(x0, SampleState):
        if seed is not None:
            raise ArgumentError("seed together with a state to continue: the state has its noise")
        return _resume(gradient, x0, rule), x0.noise.clone(), _renewed(gradient, x0)
    check_state(x0, "x0")
    if gradient.channels_last and x0.dim() != 4:
        raise ArgumentError(f"channels_last=True is for (B, C, H, W); x0 is {tuple(x0.shape)}")
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
    chains_: list[int] = []
    if not bool(x0.sum().isfinite()):  # a sixth of the time of looking at each, or in vain
        finite = x0.flatten(1).isfinite().all(1) if x0.dim() > 1 else x0.isfinite()
        chains_ = (~finite).nonzero().flatten().tolist()
    if chains_:
        raise NonFiniteError(f"x0 is not finite in {name_chains(chains_)}", step=0, chains=chains_)
    x = x0.detach().clone(memory_format=torch.contiguous_format)
    with _named_errors("at x0"):
        state = rule.init(gradient, x, noise)
    return state, noise, None


def _renewed(gradient: EnergyGradient, past: SampleState) -> SampleState:
    """With what this energy says of where chains restart."""
    start = past.start
    if start is None or "grad" not in start or not start["x"].numel():
        return past
    with _named_errors("where chains restart"):
        at = point(*gradient(start["x"]), start["x"])
    return replace(past, start=start | {"energy": at.energy, "grad": at.grad.clone()})


def _resume(gradient: EnergyGradient, past: SampleState, rule: Rule) -> Any:
    """The state to go on from: a copy, with what this energy says of the chains."""
    expected = getattr(rule, "state_type", None)
    if expected is not None and not isinstance(past.chains, expected):
        raise ArgumentError(
            f"a state of {type(past.chains).__name__} is another rule's; {type(rule).__name__} goes"
            f" on from a {expected.__name__}: start from its x"
        )
    if expected is not None:
        check_fields(past.chains)
        x = past.chains.x
        check_field("frozen", past.frozen, x, x.shape[:1], torch.bool)
        check_field("restarts", past.restarts, x, x.shape[:1], torch.int64)
        for name, value in (past.start or {}).items():
            now = getattr(past.chains, name)
            check_field(f"start's {name}", value, x, now.shape, now.dtype)
    state = _copy(past.chains)
    if state.x.numel() and hasattr(rule, "resume"):
        with _named_errors("at the start"):
            state = rule.resume(state, gradient)
    return state


def _copy(field: Any) -> Any:
    """A copy of a state, or of what is in it, down to the tensors."""
    if isinstance(field, Tensor):
        return field.clone(memory_format=torch.contiguous_format)
    if isinstance(field, tuple):
        copies = map(_copy, field)
        return type(field)(*copies) if hasattr(field, "_fields") else tuple(copies)
    if isinstance(field, dict):
        return {key: _copy(value) for key, value in field.items()}
    return [_copy(value) for value in field] if isinstance(field, list) else field


@contextmanager
def _named_errors(when: str) -> Iterator[None]:
    """What is not an error of ours is one of the energy."""
    try:
        yield
    except LangevinError:
        raise
    except Exception as error:
        raise EnergyError(
            f"the energy, or a schedule of the rule, raised {type(error).__name__} {when}"
        ) from error


@contextmanager
def _interrupts_between_steps() -> Iterator[list[int]]:
    """Collect Ctrl-C instead of raising it, so that no step is torn; a second one raises at once.

    Where somebody else handles the signal, or off the main thread, it is left to them.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            raise KeyboardInterrupt

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield caught
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
