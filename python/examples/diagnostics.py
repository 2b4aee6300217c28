"""When to trust a chain: one target, a rule that explores it and one that only seems to.

    python python/examples/diagnostics.py [FOLDER]

Four Gaussians of unequal mass in a row. Langevin at a small step hardly leaves the mode it started
in, and each chain looks fine by itself; R-hat over the chains says otherwise.
"""

import sys
from pathlib import Path

import torch

import langevin_ext as lx

CHAINS, STEPS = 8, 4000


def main(folder: str = ".") -> None:
    energy = lx.energies.GaussianMixture(
        means=[[-3.6], [-1.2], [1.2], [3.6]], stds=0.5, weights=[0.4, 0.1, 0.2, 0.3]
    )
    print(f"the truth: mean {float(energy.mean[0]):.3f}, sd {float(energy.variance[0]) ** 0.5:.3f}")
    x0 = torch.linspace(-4, 4, CHAINS)[:, None]
    for name, rule in {
        "Langevin": lx.Langevin(0.05),
        "HMC": lx.HMC(1.1, leapfrog_steps=3),
    }.items():
        samples = lx.sample(
            energy, x0, rule, STEPS, seed=0, burn_in=500, keep_every=1, progress=name
        )
        print(f"\n{name}\n{lx.diagnostics.summary(samples.trajectory)}")
        for plot in (lx.plots.trace, lx.plots.densities):
            figure = plot(samples.trajectory, name=name)
            figure.savefig(Path(folder) / f"{plot.__name__}-{name.lower()}.png", dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
