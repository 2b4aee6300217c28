"""A million chains of Langevin from one point, cooled to eight Gaussians and to rings in seconds.

    python python/examples/million.py [OUT.png]

The energies are ones that a CPU's kernels know, so `sample` takes whole chains. What to look at:
the shares of the modes and the mean radius, beside the numbers of the exact density. A share of a
million chains is uncertain by 0.0005 at most: what is beyond it is the bias of the step size, and
what 120 steps of cooling have not undone.
"""

import math
import sys
import time
from typing import Any

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

import langevin_ext as lx

CHAINS, STEPS, FRAMES = 1_000_000, 120, 4
RULE = lx.Langevin(step_size=0.006, temperature=lambda k: max(1.0, 10.0 * 0.97**k))
REACH, CELLS = 2.0, 80


def sectors(x: Tensor) -> Tensor:
    """Which eighth of the plane (B,): one to each Gaussian."""
    turn = torch.atan2(x[:, 1], x[:, 0]) / (2 * torch.pi)
    return (turn * 8).round().long() % 8


def nearest_ring(x: Tensor) -> Tensor:
    """Which of the rings of radius 0.5, 1 and 1.5 (B,)."""
    return (2 * x.norm(dim=1)).round().long().clamp(1, 3) - 1


def run(energy: Any) -> tuple[Tensor, float]:
    """States (FRAMES, CHAINS, 2), the last of them after STEPS steps, and the seconds."""
    began = time.perf_counter()
    start = torch.zeros(CHAINS, 2)
    samples = lx.sample(energy, start, RULE, STEPS, seed=0, keep_every=STEPS // FRAMES)
    return samples.trajectory, time.perf_counter() - began


def show(row: Any, frames: Tensor, density: Tensor) -> None:
    """Histograms of the frames beside the density (side * side,), on one logarithmic scale."""
    side, top = math.isqrt(len(density)), float(density.max())
    area = (2 * REACH / CELLS) ** 2
    pictures = {}
    for i, x in enumerate(frames, start=1):
        count = torch.histogramdd(x, [CELLS, CELLS], range=[-REACH, REACH] * 2).hist
        pictures[f"step {i * (STEPS // FRAMES)}"] = count / (CHAINS * area)
    pictures["exact density"] = density.view(side, side)
    norm = LogNorm(top / 1e3, top)
    for axes, (title, picture) in zip(row, pictures.items(), strict=True):
        axes.imshow(
            picture.mT.numpy(), origin="lower", interpolation="nearest", norm=norm, cmap="magma"
        )
        axes.set(xticks=[], yticks=[], facecolor="black")
        axes.set_title(title)


def main(out: str = "million.png") -> None:
    axis = (torch.arange(800, dtype=torch.float64) + 0.5) / 200 - 2
    grid = torch.cartesian_prod(axis, axis)
    targets = {
        "eight Gaussians": (lx.energies.EightGaussians(), sectors),
        "rings": (lx.energies.Rings(radii=(0.5, 1.0, 1.5), std=0.12), nearest_ring),
    }
    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    for row, (name, (energy, mode_of)) in zip(
        figure.subplots(len(targets), FRAMES + 1), targets.items(), strict=True
    ):
        frames, seconds = run(energy)
        print(
            f"{name}: {CHAINS:,} chains, {STEPS} steps, {seconds:.2f} s,"
            f" {CHAINS * STEPS / seconds / 1e6:.0f} million steps of chains a second"
        )
        density = energy.log_prob(grid).exp()
        weights = density / density.sum()
        shares = torch.bincount(mode_of(grid), weights)
        for label, each, mean in (
            ("chains", torch.bincount(mode_of(frames[-1])) / CHAINS, frames[-1].norm(dim=1).mean()),
            ("exact", shares, (weights * grid.norm(dim=1)).sum()),
        ):
            print(
                f"  {label}: modes {' '.join(f'{share:.4f}' for share in each.tolist())},"
                f" mean radius {mean:.4f}"
            )
        show(row, frames, density)
        row[0].set_ylabel(name)
    figure.savefig(out, dpi=72)


if __name__ == "__main__":
    main(*sys.argv[1:])
