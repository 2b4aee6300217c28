r"""Learning by short-run MCMC: chains that never persist and never converge.

Source: algorithm 1 of Nijkamp, Hill, Zhu and Wu, "Learning Non-Convergent Non-Persistent Short-Run
MCMC Toward Energy-Based Model" (NeurIPS 2019), with U = -f and means for sums:

    x+ <- a batch of data + N(0, sigma^2)
    x- <- K steps  x - a grad U(x) + s xi  from  x ~ U(-1, 1)
    theta <- Adam on  mean U(x+) - mean U(x-)

The generator is the K-step chain, not exp(-U): a and s are the authors' 1 and 0.01, decoupled,
which amounts to a temperature of s^2 / (2 a) = 5e-5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from langevin_ext import Langevin, Noise, Purpose, Samples, sample
from langevin_ext.errors import NonFiniteError

from . import data, loop, metrics, plots
from .errors import ConfigError
from .networks import ConvEnergy

# Streams, multiples of 16, under the run's one seed.
_TRAINING, _PREVIEW, _EVALUATION = 0, 16, 32


_LEAST = {
    "iterations": 1,
    "batch": 1,
    "steps": 1,
    "width": 1,
    "samples": 2,  # one has no MMD
    "image_size": 8,
    "seed": 0,
    "threads": 0,
}


@dataclass(frozen=True)
class ShortRunConfig:
    """Settings of a short-run EBM. The defaults are for the digits."""

    out: Path
    """Folder of the run."""
    data: str = "digits"
    """digits, patches, a folder of images, or a .npy file."""
    image_size: int = 32
    """Side to which a folder's images are scaled."""
    iterations: int = 1400
    """Updates of the network, T."""
    batch: int = 64
    """Images and chains in an update, m."""
    steps: int = 40
    """Langevin steps of a chain, K."""
    drift: float = 1.0
    """Coefficient a of the gradient."""
    noise_std: float = 0.01
    """Coefficient s of the chain's noise."""
    data_noise: float = 0.03
    """Standard deviation sigma of the noise added to data."""
    width: int = 32
    """Features of the network's first layer."""
    activation: Literal["leaky_relu", "silu"] = "leaky_relu"
    """LeakyReLU trains fastest; SiLU is smooth, for derivatives through the chain."""
    learning_rate: float = 2e-4
    """Adam's, at the start."""
    final_learning_rate: float = 0.05
    """Share of it left at the end; it falls linearly."""
    seed: int = 0
    """Governs the weights, the order of the data and every noise."""
    samples: int = 1000
    """How many to draw at the end, into samples.npy."""
    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    """Precision of the network; auto takes bfloat16 where the processor computes in it."""
    threads: int = 0
    """Of the processor; 0 takes one for images of up to 256 pixels, else what torch would."""
    resume: bool = False
    """Go on with the run in `out`."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: give at least {least}")
        if self.final_learning_rate > 1:
            raise ConfigError(f"final_learning_rate={self.final_learning_rate}: a share, up to 1")
        for name in ("drift", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: give a number > 0")
        for name in ("noise_std", "data_noise", "final_learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: give a number >= 0")


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has bfloat16 arithmetic, so that it is faster and not slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, p, lambda: False)() for p in probes)


class ShortRun:
    """Algorithm 1 as a `loop.Method`."""

    curves: ClassVar[dict[str, str]] = {
        "gap": "mean U(data) - mean U(samples)",
        "grad_norm": "mean |grad U| along the chain",
        "mmd2": "squared MMD to the training images",
    }

    def __init__(self, config: ShortRunConfig, images: data.Images, device: torch.device) -> None:
        self.config = config
        self.images = images
        self.train = images.train.to(device)
        channels, height, width = images.train.shape[1:]
        if height != width:
            raise ConfigError(f"images of {height}x{width} are not square")
        if config.batch > len(self.train):
            raise ConfigError(f"batch={config.batch}: there are {len(self.train)} images")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self.network = ConvEnergy(channels, height, config.width, config.activation).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.rule = Langevin.from_coefficients(config.drift, config.noise_std)
        self.noise = Noise(config.seed, _TRAINING)
        bfloat16 = config.autocast == "bfloat16" or (
            config.autocast == "auto" and computes_in_bfloat16(device)
        )
        self.autocast = torch.bfloat16 if bfloat16 else None
        self.judge = metrics.Judge(images.train, images.train_labels)

    # -- the algorithm --------------------------------------------------------------------------

    def draw(self, count: int, noise: Noise, **options: Any) -> Samples:
        """Short-run samples: K steps from U(-1, 1), the noise advanced by K."""
        shape = (count, *self.train.shape[1:])
        start = noise.purpose(Purpose.INITIAL_STATE).uniform(shape, device=self.train.device)
        return sample(
            self.network, 2 * start - 1, self.rule, self.config.steps,
            seed=noise, autocast=self.autocast, **options,
        )  # fmt: skip

    def batch(self, iteration: int) -> Tensor:
        """The iteration's images, in an order that the seed and the epoch decide."""
        size = self.config.batch
        epoch, index = divmod(iteration, len(self.train) // size)
        order = Noise(self.config.seed, _TRAINING + Purpose.DATA_ORDER, step=epoch)
        chosen = order.uniform((1, len(self.train)))[0].argsort(stable=True)
        return self.train[chosen[index * size : (index + 1) * size].to(self.train.device)]

    def learn(self, iteration: int) -> dict[str, float]:
        positive = self.batch(iteration)
        jitter = self.noise.purpose(Purpose.DATA_NOISE)
        positive = positive + self.config.data_noise * jitter.normal(
            positive.shape, device=positive.device
        )
        chains = self.draw(self.config.batch, self.noise)

        with torch.autocast(
            positive.device.type, torch.bfloat16, enabled=self.autocast is not None
        ):
            energy = self.network(torch.cat([positive, chains.x])).float()
        data_energy, sample_energy = energy.split(self.config.batch)
        gap = data_energy.mean() - sample_energy.mean()
        if not math.isfinite(gap.item()):
            raise NonFiniteError(
                f"the loss is {gap.item()} in iteration {iteration}; the weights were not touched."
                " Take a smaller learning_rate, or more steps",
                step=iteration,
                chains=[],
            )
        rate = self.learning_rate(iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        gap.backward()
        self.optimizer.step()
        return {
            "gap": gap.item(),
            "grad_norm": chains.stats.grad_norm.mean().item(),
            "learning_rate": rate,
        }

    def learning_rate(self, iteration: int) -> float:
        c = self.config
        progress = iteration / max(c.iterations - 1, 1)
        return c.learning_rate * (1 - (1 - c.final_learning_rate) * progress)

    # -- what the loop needs --------------------------------------------------------------------

    def preview(self, directory: Path) -> dict[str, float]:
        drawn = self.draw(256, Noise(self.config.seed, _PREVIEW)).x.cpu()
        plots.save_grid(drawn, directory / "samples.png")
        return {"mmd2": metrics.mmd2(drawn.clamp(-1, 1), self.judge.reference)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        optimizer = self.optimizer.state_dict()
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for index, slots in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in slots.items()}
        return tensors, {"noise": self.noise.state_dict(), "groups": optimizer["param_groups"]}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        network: dict[str, Tensor] = {}
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "network":
                network[rest] = tensor
            else:
                index, _, key = rest.partition(".")
                slots.setdefault(int(index), {})[key] = tensor
        self.network.load_state_dict(network)
        self.optimizer.load_state_dict({"state": slots, "param_groups": meta["groups"]})
        self.noise.load_state_dict(meta["noise"])

    # -- results --------------------------------------------------------------------------------

    def finish(self, directory: Path) -> dict[str, metrics.Quality]:
        """Draw the final samples; write samples.npy, pictures and report.json."""
        count = self.config.samples
        drawn = self.draw(
            count, Noise(self.config.seed, _EVALUATION), progress=self.config.progress
        )
        samples = drawn.x.clamp(-1, 1).cpu()
        np.save(directory / "samples.npy", samples.numpy())
        plots.save_grid(samples[:256], directory / "samples.png")
        strip = self.draw(12, Noise(self.config.seed, _EVALUATION), keep_every=1).trajectory
        assert strip is not None
        marks = np.unique(np.linspace(0, self.config.steps - 1, 16).round().astype(int))
        chains = strip[marks].transpose(0, 1).flatten(0, 1).cpu()
        plots.save_grid(chains, directory / "chains.png", columns=len(marks))

        train, test = self.images.train, self.images.test
        report = {"this model": self.judge(samples), "real, held out": self.judge(test)}
        for name, drawn_too in metrics.baselines(train, count).items():
            report[name] = self.judge(drawn_too)
        (directory / "report.json").write_text(
            json.dumps({k: v._asdict() for k, v in report.items()}, indent=2) + "\n"
        )
        return report


def table(report: dict[str, metrics.Quality]) -> str:
    """The report as text: the model beside real images and beside what anybody can fit."""
    lines = [f"{'':22}{'MMD^2':>9}{'sure':>8}{'nearest':>9}"]
    for name, quality in report.items():
        sure = "-" if quality.confident is None else f"{quality.confident:.0%}"
        lines.append(f"{name:22}{quality.mmd2:9.4f}{sure:>8}{quality.nearest:9.2f}")
    lines.append(
        "MMD^2: to training images. sure: share classed with confidence > 0.9."
        " nearest: mean distance to a training image."
    )
    return "\n".join(lines)


def train(config: ShortRunConfig) -> dict[str, metrics.Quality]:
    """Train, draw, judge; everything is in ``config.out`` afterwards."""
    config = loop.settle(config)
    images = data.load(config.data, config.image_size)
    with _threads(config.threads, images.train):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        method = ShortRun(config, images, device)
        loop.record(config)
        tenth = max(config.iterations // 10, 1)
        loop.run(
            method, config.out, config.iterations,
            resume=config.resume, preview_every=tenth, save_every=tenth, progress=config.progress,
        )  # fmt: skip
        return method.finish(config.out)


@contextmanager
def _threads(asked: int, images: Tensor) -> Iterator[None]:
    """The number of threads for a run.

    A 64x1x8x8 gradient is 1.5 times as fast on two idle cores as on one, and 20 times slower on two
    that other processes use too, because every layer waits for both.
    """
    before = torch.get_num_threads()
    pixels = images.shape[-2] * images.shape[-1]
    torch.set_num_threads(asked or (1 if pixels <= 256 else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
