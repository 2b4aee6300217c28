"""Five rules on two targets that are hard to get around in: eight Gaussians, and rings.

    python python/examples/rules.py [OUT.png]

Every chain starts in the middle and pays for the same number of gradients. What to look at: whether
the modes are filled evenly, and how far the numbers under each picture are from those of the truth.
"""

import sys
import time

import torch
from matplotlib.figure import Figure

import langevin_ext as lx

CHAINS, GRADIENTS, LEAPFROGS = 20_000, 1500, 5
RULES = {
    "Langevin": lx.Langevin(0.01),
    "AniLA": lx.AniLA(threshold=5.0, step_size=0.02),
    "MALA": lx.MALA(0.02),
    "KineticLangevin": lx.KineticLangevin(0.08, friction=2.0),
    "HMC": lx.HMC(0.12, LEAPFROGS),
}


def sectors(x: torch.Tensor) -> torch.Tensor:
    """The share of the samples in each of eight sectors of the plane, one to each Gaussian."""
    turn = torch.atan2(x[:, 1], x[:, 0]) / (2 * torch.pi)
    return torch.bincount((turn * 8).round().long() % 8, minlength=8) / len(x)


def main(out: str = "rules.png") -> None:
    targets = {
        "eight Gaussians": lx.energies.EightGaussians(),
        "rings": lx.energies.Rings(radii=(0.4, 0.8, 1.2), std=0.08),
    }
    figure = Figure(figsize=(13, 4.9), layout="constrained")
    grid = figure.subplots(len(targets), len(RULES) + 1)
    for row, (name, energy) in zip(grid, targets.items(), strict=True):
        draws = {"truth": energy.draw(CHAINS, seed=0)}
        squares = energy.draw(200_000, seed=1).square().sum(1)
        print(f"{name}, truth: |x|^2 = {squares.mean():.3f}, deviation {squares.std():.3f}")
        reach = 1.15 * float(draws["truth"].abs().max())
        for rule_name, rule in RULES.items():
            steps = GRADIENTS // LEAPFROGS if rule_name == "HMC" else GRADIENTS
            x0 = 0.1 * lx.Noise(1, stream=lx.Purpose.INITIAL_STATE).normal((CHAINS, 2))
            began = time.perf_counter()
            samples = lx.sample(energy, x0, rule, steps, seed=1, progress=f"{name}, {rule_name}")
            took = time.perf_counter() - began
            draws[rule_name] = samples.x
            accepted = samples.stats.acceptance
            print(
                f"{name}, {rule_name}: {took:.1f} s; |x|^2 = {samples.x.square().sum(1).mean():.3f}"
                + ("" if accepted is None else f"; accepted {accepted.mean():.0%}")
            )
        for axes, (label, x) in zip(row, draws.items(), strict=True):
            axes.hist2d(*x.T.numpy(), bins=110, range=[[-reach, reach]] * 2, cmap="magma")
            uneven = 0.5 * (sectors(x) - 1 / 8).abs().sum()
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.set_xlabel(
                f"E|x|² {x.square().sum(1).mean():.3f}, unevenness {uneven:.3f}", fontsize=8
            )
            if name == "eight Gaussians":
                axes.set_title(label)
        row[0].set_ylabel(name)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
