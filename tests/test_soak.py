"""A million steps: memory and the number of Python's objects do not grow."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from torch import Tensor

from langevin_ext import MALA, Langevin, sample
from langevin_ext.energies import Gaussian
from langevin_ext.samplers._rule import Rule

from .conftest import normals

MIB = 2**20


class Watched:
    """An energy that knows its gradient, and how much memory there is at some of its calls."""

    def __init__(self, every: int) -> None:
        self.energy, self.every, self.calls = Gaussian([1.0, 4.0]), every, 0
        self.seen: list[tuple[int, int]] = []

    def __call__(self, x: Tensor) -> Tensor:
        value: Tensor = self.energy(x)
        return value

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if self.calls % self.every == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seen.append((pages * os.sysconf("SC_PAGE_SIZE"), len(gc.get_objects())))
        return self.energy.value_and_gradient(x)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("rule", [Langevin(0.1), MALA(0.5)], ids=["langevin", "mala"])
def test_a_million_steps_take_no_more_memory_than_ten_thousand(rule: Rule) -> None:
    """Within one call, after its first 10^4 steps: under 5 MB, and not 20 objects."""
    energy = Watched(5000)
    samples = sample(energy, normals(4, 2), rule, 10**6, seed=1, moments=True)
    assert len(energy.seen) == 200
    memory, objects = zip(*energy.seen[1:], strict=True)
    assert max(memory) - memory[0] < 5 * MIB
    assert max(objects) - objects[0] < 20
    assert samples.state.step == samples.state.noise.step == 10**6
    assert samples.x.isfinite().all()
