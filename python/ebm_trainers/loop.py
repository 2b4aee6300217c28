"""The one training loop: progress, log, pictures, checkpoints, signals, resume.

A method supplies `Method`; all that it needs to go on exactly is in its ``state``. On SIGINT and
SIGTERM the loop finishes its iteration, saves, and raises `Stopped`; a second signal stops at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor
from tqdm.auto import tqdm

from langevin_ext import info

from . import checkpoint, plots
from .errors import ConfigError


class Method(Protocol):
    """A learning algorithm, one iteration at a time."""

    curves: ClassVar[dict[str, str]]
    """Columns of the log to plot, and their titles; the first few lead the progress bar."""

    def learn(self, iteration: int) -> dict[str, float]:
        """One iteration; returns what to log."""

    def preview(self, directory: Path) -> dict[str, float]:
        """Draw the current samples into a folder; returns what to log of them."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next iteration depends on: tensors, and what JSON can hold."""

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Take up a `state`."""


class Stopped(SystemExit):
    """A signal ended the run after it was saved; the exit status is 128 + the signal's number."""

    def __init__(self, number: int, iteration: int, out: Path) -> None:
        super().__init__(128 + number)
        self.message = (
            f"stopped by {signal.Signals(number).name} after {iteration} iterations and saved;"
            f" go on with --out {out} --resume"
        )


_Config = TypeVar("_Config")
_NOT_RECORDED = "out", "resume", "progress"


def settle(config: _Config) -> _Config:
    """The settings to run with: those given, or those of the run to resume. Writes nothing.

    Args:
        config: a dataclass with the fields ``out`` and ``resume``.

    Raises:
        ConfigError: the folder holds another run, or no run to resume, or one with settings that
            contradict those given.
    """
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    out: Path = given["out"]
    file = out / "config.json"
    if not given["resume"]:
        if file.exists():
            raise ConfigError(f"{out} holds a run already: give --resume, or another --out")
        return config
    try:
        record = json.loads(file.read_text())
        saved, environment = dict(record["settings"]), dict(record["environment"])
    except FileNotFoundError:
        raise ConfigError(f"{out} has no config.json: there is no run to resume") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not a run's configuration: {error}") from error
    defaults = {f.name: f.default for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    unknown = set(saved) - set(defaults)
    if unknown:
        raise ConfigError(f"{file} has settings this version does not know: {sorted(unknown)}")
    for name, value in saved.items():
        if given[name] not in (value, defaults[name]):
            raise ConfigError(
                f"{name}={given[name]!r}, but the run in {out} has {name}={value!r}; a run is"
                " resumed as it was begun"
            )
    for name, value in info.environment().items():
        if environment.get(name) != value:
            warnings.warn(
                f"this run began with {name}: {environment.get(name)}; it goes on with {value}."
                " Its last bits may differ from those of an uninterrupted run",
                stacklevel=2,
            )
    return dataclasses.replace(config, **saved)  # type: ignore[type-var]


def record(config: Any) -> None:
    """Make a new run's folder and its config.json, once everything it names has been found.

    Raises:
        ConfigError: the folder cannot be written.
    """
    if config.resume:
        return
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    settings = {k: v for k, v in given.items() if k not in _NOT_RECORDED}
    text = json.dumps({"settings": settings, "environment": info.environment()}, indent=2)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        partial = config.out / ".config.json.partial"
        partial.write_text(text + "\n")
        partial.replace(config.out / "config.json")
    except OSError as error:
        raise ConfigError(f"--out {config.out}: {error}") from error


def run(
    method: Method,
    out: Path,
    iterations: int,
    *,
    resume: bool = False,
    log_every: int = 10,
    preview_every: int = 100,
    save_every: int = 200,
    progress: bool = True,
) -> None:
    """Train ``method`` up to ``iterations`` iterations in the folder ``out``.

    Raises:
        Stopped: a signal came; everything is saved.
        CheckpointError: a checkpoint cannot be written or read.
    """
    start = 0
    log = out / "log.jsonl"
    if resume and checkpoint.everything(out / "checkpoints"):  # else it ended before the first
        tensors, meta = checkpoint.load(checkpoint.newest(out / "checkpoints"))
        method.restore(tensors, meta["method"])
        start = meta["iteration"]
    rows = _rows_before(log, start)
    log.write_text("".join(json.dumps(r) + "\n" for r in rows))
    spent = rows[-1]["seconds"] if rows else 0.0

    def save(iteration: int) -> None:
        tensors, meta = method.state()
        meta = {"iteration": iteration, "method": meta}
        checkpoint.save(out / "checkpoints", iteration, tensors, meta)

    began = time.perf_counter() - spent
    shown: dict[str, float] = {}
    bar = tqdm(total=iterations, initial=start, disable=not progress, unit="it", dynamic_ncols=True)
    with bar, log.open("a") as file, _signals() as caught:
        for t in range(start, iterations):
            row = method.learn(t)
            done = t + 1
            if done % preview_every == 0 or done == iterations:
                with _pictures_are_no_reason_to_stop():
                    row |= method.preview(out)
            if done % log_every == 0 or done == iterations:
                seconds = round(time.perf_counter() - began, 3)
                rows.append({"iteration": done, "seconds": seconds, **row})
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
            if done % preview_every == 0 or done == iterations:
                with _pictures_are_no_reason_to_stop():
                    plots.save_curves(rows, out / "curves.png", method.curves)
            shown |= {k: row[k] for k in method.curves if k in row}
            bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)
            bar.update()
            if done % save_every == 0 or done == iterations or caught:
                save(done)
            if caught:
                raise Stopped(caught[0], done, out)


def _rows_before(log: Path, iteration: int) -> list[dict[str, Any]]:
    """The rows that a run resumed at ``iteration`` keeps; a torn last line is dropped."""
    rows: list[dict[str, Any]] = []
    if iteration and log.exists():
        for line in log.read_text().splitlines():
            try:
                row = json.loads(line)
                if row["iteration"] <= iteration:
                    rows.append(row)
            except (ValueError, TypeError, KeyError):
                break
    return rows


@contextmanager
def _pictures_are_no_reason_to_stop() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        tqdm.write(f"a picture could not be written, training goes on: {error}")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; the second one acts as it would have without this."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) == 1:
            tqdm.write("finishing this iteration, then saving; once more to stop at once")
        else:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: whoever owns it handles signals
            break
    try:
        yield caught
    finally:
        for caught_number, handler in before.items():
            signal.signal(caught_number, handler)
