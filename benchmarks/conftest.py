"""What the suites share: the clock, the thread count, and the facts that go with every row."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch

import langevin_ext

# pytest's importlib mode does not put a test's folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

DEVICE = torch.device(os.environ.get("LANGEVIN_DEVICE", "cpu"))
ROUND = 250e-6  # seconds at least: far above the clock's resolution, far below a scheduler's slice
MAX_ROUNDS = 1000
BLOCK = 50

Measure = Callable[..., None]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Put into the JSON what rows.py needs, so that it can run on another machine."""
    try:
        from langevin_ext.backends import native

        instruction_set = native.isa()
    except ImportError:
        instruction_set = "none"
    if DEVICE.type == "cuda":
        instruction_set = "sm_{}{}".format(*torch.cuda.get_device_capability())
        machine_info["cpu"] |= {"brand_raw": torch.cuda.get_device_name()}
    machine_info["instruction_set"] = instruction_set
    machine_info["torch"] = torch.__version__
    machine_info["langevin_ext"] = langevin_ext.__version__


@pytest.fixture(params=(1, 2) if DEVICE.type == "cpu" else (1,), ids=lambda threads: f"{threads}t")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """torch's thread count, which every contender follows."""
    if request.param > len(os.sched_getaffinity(0)):
        pytest.skip(f"this process may use {len(os.sched_getaffinity(0))} core")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def in_blocks(step: Callable[[], object]) -> Callable[[], object]:
    """Many steps and one wait: a GPU is given work faster than it does it, if there is enough."""

    def block() -> None:
        for _ in range(BLOCK):
            step()
        torch.cuda.synchronize()

    return block


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """Time a function for about ``--benchmark-max-time`` seconds; ``steps`` are in one call.

    The other arguments are the row's columns (rows.py).
    """
    budget = float(request.config.getoption("benchmark_max_time"))
    least = int(request.config.getoption("benchmark_min_rounds"))

    def run(work: Callable[[], object], *, suite: str, steps: int = 1, **columns: object) -> None:
        if DEVICE.type == "cuda":
            work, steps = in_blocks(work), BLOCK * steps
        work()  # compiles, and allocates what is allocated once
        seconds: list[float] = []
        while not seconds or (sum(seconds) < budget / 10 and len(seconds) < 50):
            start = perf_counter()
            work()
            seconds.append(perf_counter() - start)
        # A stalled thread must not shorten a round, but may well cost rounds.
        calls = math.ceil(ROUND / min(seconds))
        rounds = int(budget / (calls * sum(seconds) / len(seconds)))
        benchmark.group = f"{suite} {columns['shape']} {columns['dtype']} {columns['threads']}t"
        benchmark.extra_info.update(suite=suite, steps=steps, **columns)
        benchmark.pedantic(
            work, iterations=calls, rounds=min(max(rounds, least), MAX_ROUNDS), warmup_rounds=1
        )

    return run
