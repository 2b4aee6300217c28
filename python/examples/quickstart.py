"""Sample a 2-D energy with Langevin and with AniLA, and see what the clipping does to the law.

    python python/examples/quickstart.py [OUT.png]

The target is a banana; AniLA takes larger steps safely, and its law is exp(-U) max(b, |grad U|).
"""

import sys

import torch
from matplotlib.figure import Figure

import langevin_ext as lx


def banana(x: torch.Tensor) -> torch.Tensor:
    """(B, 2) -> (B,): a Gaussian bent along a parabola."""
    return x[:, 0] ** 2 / 2 + (x[:, 1] - x[:, 0] ** 2 / 2) ** 2 / 0.1


def main(out: str = "quickstart.png") -> None:
    x0 = torch.zeros(20_000, 2)
    rules = {
        "Langevin, h = 0.02": lx.Langevin(0.02),
        "AniLA, h = 0.1, b = 4": lx.AniLA(threshold=4.0, step_size=0.1),
    }
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, (name, rule) in zip(figure.subplots(1, 2), rules.items(), strict=True):
        samples = lx.sample(banana, x0, rule, steps=1000, seed=0, progress=name)
        x = samples.x
        print(
            f"{name}: mean {x.mean(0).tolist()}, variance {x.var(0).tolist()},"
            f" clipped {samples.stats.clipped.mean():.0%} of the steps"
        )
        axes.hist2d(x[:, 0].numpy(), x[:, 1].numpy(), bins=100, range=[[-4, 4], [-2, 6]])
        axes.set(title=name)
    figure.savefig(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
