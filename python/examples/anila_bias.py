"""What AniLA samples, and what each of its three corrections does about it.

    python python/examples/anila_bias.py [OUT.png]

The target has a narrow and a wide mode of equal mass. AniLA as written follows its own law,
exp(-U) max(b, |grad U|), which gives the narrow mode too much; see docs/SAMPLERS.md. Weights and
the divergence are right for small steps, metropolis at every step.
"""

import sys

import torch
from matplotlib.figure import Figure

import langevin_ext as lx

B, H, CHAINS, STEPS = 1.0, 0.01, 10_000, 6000
RANGE, VALLEY = (-1.9, 3.2), -0.55


def main(out: str = "anila-bias.png") -> None:
    energy = lx.energies.GaussianMixture(means=[[-0.9], [0.9]], stds=[0.25, 0.7])
    x = torch.linspace(*RANGE, 1000, dtype=torch.float64)[:, None]
    u, slope = energy.value_and_gradient(x)
    target = torch.exp(-u)
    biased = target * slope[:, 0].abs().clamp(min=B)
    spacing = float(x[1, 0] - x[0, 0])

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    titles = {
        "none": "as written",
        "weights": "weights",
        "divergence": "divergence",
        "metropolis": "metropolis",
    }
    for axes, (correction, title) in zip(
        figure.subplots(1, 4, sharey=True), titles.items(), strict=True
    ):
        rule = lx.AniLA(B, H, correction=correction)
        x0 = energy.draw(CHAINS, seed=0)
        samples = lx.sample(energy, x0, rule, STEPS, seed=1, progress=title)
        weights = torch.ones(CHAINS) if samples.weights is None else samples.weights
        left = samples.x[:, 0] < VALLEY
        share = float((weights * left).sum() / weights.sum())
        print(f"{title}: {share:.1%} of the mass in the narrow mode")
        axes.hist(
            samples.x[:, 0].numpy(),
            bins=100,
            range=RANGE,
            weights=weights.numpy(),
            density=True,
            color="#9db8d9",
        )
        for law, style, name in ((target, "k-", "exp(-U)"), (biased, "r--", "AniLA's law")):
            density = (law / law.sum() / spacing).numpy()
            axes.plot(x[:, 0].numpy(), density, style, linewidth=1.2, label=name)
        axes.set(yticks=[], xlim=RANGE)
        axes.set_title(f"{title}\n{share:.0%} in the narrow mode", fontsize=10)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
    figure.axes[0].legend(frameon=False)
    for law, name in ((target, "the target"), (biased, "AniLA's law")):
        print(f"{name}: {float(law[x[:, 0] < VALLEY].sum() / law.sum()):.1%}")
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
