"""The researcher's loop in a process of its own: python benchmarks/fresh.py [THREADS]

Its temporaries cost what malloc makes of them. In a fresh process their pages go back to the system
and are faulted in again in every step; late in the suite they are kept. This prints the former.
"""

from __future__ import annotations

import statistics
import sys
from time import perf_counter

import torch

import updates


def median_us(step: updates.Step, rounds: int = 300) -> float:
    times = []
    for _ in range(rounds):
        start = perf_counter()
        step()
        times.append((perf_counter() - start) * 1e6)
    return statistics.median(times)


def main(threads: int) -> None:
    torch.set_num_threads(threads)
    x, grad = torch.rand(64, 3, 32, 32) * 2 - 1, torch.randn(64, 3, 32, 32)
    times = {
        build.__name__: median_us(build(x.clone(), grad))
        for build in (updates.loop, updates.tuned, updates.ours)
    }
    for name, time in times.items():
        print(f"{name:6} {time:7.1f} us, {time / times['ours']:.1f} times ours")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
