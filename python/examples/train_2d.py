"""Learn a law of the plane from samples of it, and watch: a small network trained in seconds.

    python python/examples/train_2d.py [OUT.png] [--target moons] [--show]

The density learned is exp(-f(x) - |x|^2 / 4) up to its constant, f an nn.Sequential. The gradient
of its log-likelihood by the weights is the mean of f's over the model minus that over the data;
persistent chains stand for the model (Tieleman, ICML 2008), twenty steps of Langevin to every
update of f, which `sample` takes in one call of a kernel. One chain in twenty starts anew each
time, so that none stays behind in a mode that is no more. OUT.png is drawn again ten times on the
way; --show opens a window.

How good it is can be seen exactly in two dimensions: on a grid both densities are normalised.
"""

import argparse
import math
import sys
import time
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm.auto import tqdm

import langevin_ext as lx

ITERATIONS, CHAINS, STEPS, FRESH = 1500, 512, 20, 26
RATE, PICTURES, SAMPLES, SAMPLE_STEPS = 4e-3, 10, 20_000, 500
TARGETS = {
    "gaussians": lx.energies.EightGaussians(radius=2.0, std=0.3),
    "moons": lx.energies.TwoMoons(),
    "rings": lx.energies.Rings(radii=(1.0, 2.2), std=0.25),
}
REACH, CELLS, PRECISION = 4.0, 120, 0.5
AXIS = (torch.arange(CELLS) + 0.5) * (2 * REACH / CELLS) - REACH
GRID = torch.cartesian_prod(AXIS, AXIS)
AREA = (2 * REACH / CELLS) ** 2
RULE = lx.Langevin(step_size=0.02, reference_precision=PRECISION)


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
    )
    with torch.no_grad():  # bends closer together: the modes are narrow
        for parameter in network[0].parameters():
            parameter.mul_(3)
    return network


@torch.no_grad()
def learned(network: nn.Module) -> Tensor:
    """The log density of the cells of the grid."""
    energy = network(GRID)[:, 0].double() + PRECISION / 2 * GRID.square().sum(1)
    return -energy - torch.logsumexp(-energy, 0) - math.log(AREA)


def divergences(log_target: Tensor, log_model: Tensor) -> tuple[float, float]:
    """KL(target | model) and KL(model | target), in nats."""
    apart = (log_target - log_model) * AREA
    return float((log_target.exp() * apart).sum()), -float((log_model.exp() * apart).sum())


def draw(axes: Any, density: Tensor, title: str) -> None:
    axes.clear()
    axes.imshow(density.view(CELLS, CELLS).mT.numpy(), origin="lower", extent=[-REACH, REACH] * 2)
    axes.set_title(title, fontsize=9)


class Picture:
    """How the density came to be, what it is now, and what it should be."""

    def __init__(self, out: str, log_target: Tensor, show: bool) -> None:
        size = {"figsize": (10.4, 5.4), "layout": "constrained"}
        self.out, self.window = out, None
        if show:
            from matplotlib import pyplot

            self.window, self.figure = pyplot, pyplot.figure(**size)
            if self.figure.canvas.required_interactive_framework is None:
                print(f"no display for a window: look at {out}", file=sys.stderr)
                self.window = None
        else:
            self.figure = Figure(**size)
        grid = self.figure.subplots(2, 4)
        self.then, (self.now, self.points, target, self.curve) = [*grid[0]], grid[1]
        draw(target, log_target.exp(), "the target")
        for axes in grid.flat:
            if axes is not self.curve:
                axes.set(xticks=[], yticks=[])
        self.kept = 0
        self.divergence: dict[int, float] = {}

    def keep(self, log_model: Tensor, iteration: int) -> None:
        draw(self.then[self.kept], log_model.exp(), f"iteration {iteration}")
        self.then[self.kept].set(xticks=[], yticks=[])
        self.kept += 1

    def refresh(self, log_model: Tensor, x: Tensor, title: str) -> None:
        draw(self.now, log_model.exp(), f"iteration {max(self.divergence)}")
        self.points.clear()
        self.points.hist2d(*x.T.numpy(), bins=CELLS // 2, range=[[-REACH, REACH]] * 2)
        self.points.set_title(title, fontsize=9)
        for axes in (self.now, self.points):
            axes.set(xticks=[], yticks=[], aspect="equal")
        self.curve.clear()
        self.curve.semilogy(*zip(*self.divergence.items(), strict=True), color="#c0182b")
        self.curve.set_title("KL(target | model), nats", fontsize=9)
        self.figure.savefig(self.out, dpi=100)
        if self.window:
            self.window.pause(0.001)


def train(target: Any, picture: Picture, log_target: Tensor) -> tuple[nn.Module, float]:
    """The network, and the seconds that its chains took."""
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, ITERATIONS)
    noise, data = lx.Noise(0), lx.Noise(1)
    x = 2 * lx.Noise(2, stream=lx.Purpose.INITIAL_STATE).normal((CHAINS, 2))
    sampling = 0.0
    early = {0, ITERATIONS // 15, ITERATIONS // 5, ITERATIONS // 2}
    for i in (bar := tqdm(range(ITERATIONS), desc="learning", leave=False)):
        if i in early:
            picture.keep(learned(network), i)
        if i % max(ITERATIONS // 50, 1) == 0:
            picture.divergence[i] = divergences(log_target, learned(network))[0]
            bar.set_postfix_str(f"KL {picture.divergence[i]:.3f}")
        if i % max(ITERATIONS // PICTURES, 1) == 0:
            picture.refresh(learned(network), x, f"the {CHAINS} chains")
        anew = torch.arange(i * FRESH, (i + 1) * FRESH) % CHAINS
        x[anew] = 2 * noise.purpose(lx.Purpose.INITIAL_STATE).normal((FRESH, 2))
        began = time.perf_counter()
        x = lx.sample(network, x, RULE, STEPS, seed=noise).x
        sampling += time.perf_counter() - began

        real, model = network(torch.cat([target.draw(CHAINS, data), x])).view(2, CHAINS)
        optimizer.zero_grad()
        (real.mean() - model.mean()).backward()
        optimizer.step()
        decay.step()
    return network, sampling


def main(out: str = "train-2d.png", target: str = "gaussians", show: bool = False) -> None:
    energy = TARGETS[target]
    log_target = energy.log_prob(GRID.double())
    picture = Picture(out, log_target, show)
    began = time.perf_counter()
    network, sampling = train(energy, picture, log_target)
    steps = ITERATIONS * CHAINS * STEPS
    print(
        f"{target}: {time.perf_counter() - began:.1f} s, of which {sampling:.1f} s for"
        f" {steps / 1e6:.3g} million steps of chains"
    )
    start = 2 * lx.Noise(3, stream=lx.Purpose.INITIAL_STATE).normal((SAMPLES, 2))
    samples = lx.sample(network, start, RULE, SAMPLE_STEPS, seed=3, progress="new chains")
    log_model = learned(network)
    there, back = divergences(log_target, log_model)
    print(f"KL(target | model) = {there:.4f}, KL(model | target) = {back:.4f} nats")
    first = divergences(log_target, learned(make_network()))[0]
    print(f"before learning KL(target | model) = {first:.4f}")
    picture.divergence[ITERATIONS] = there
    picture.refresh(log_model, samples.x, f"{SAMPLES:,} new chains")
    if picture.window:
        picture.window.show()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", default="train-2d.png", help="where the picture goes")
    parser.add_argument("--target", choices=[*TARGETS], default="gaussians")
    parser.add_argument("--show", action="store_true", help="open a window and watch")
    main(**vars(parser.parse_args()))
