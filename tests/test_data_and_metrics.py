"""Data in the promised range, metrics with known answers, pictures of what they are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("PIL", "skimage", "sklearn"):
    pytest.importorskip(package, reason="the trainers' extra is not installed")

from ebm_trainers import data, metrics, networks, plots
from ebm_trainers.errors import ConfigError, DataError


def test_digits_are_the_real_ones() -> None:
    images = data.load("digits")
    assert images.train.shape == (1438, 1, 8, 8)
    assert images.test.shape == (359, 1, 8, 8)
    assert images.train_labels is not None
    both = torch.cat([images.train, images.test])
    assert both.min() == -1
    assert both.max() == 1
    assert both.double().mean().item() == pytest.approx(4.884164579855314 / 8 - 1, abs=1e-7)
    zero = images.train[images.train_labels == 0].mean(0)[0]
    assert zero[3, 3] < -0.5 < 0 < zero[3, 2], "a zero is hollow"


def test_patches_are_photographs() -> None:
    images = data.load("patches")
    assert images.train.shape[1:] == (3, 32, 32)
    assert len(images.train) > 2000
    assert images.train.abs().max() <= 1
    neighbours = (images.train[..., 1:] - images.train[..., :-1]).abs().mean()
    assert neighbours < 0.1 < images.train.std()


def test_a_folder_of_images(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(12):
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[:, :10] = 255  # cut away by the central square
        pixels[..., i % 3] = 200
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    images = data.load(str(tmp_path), image_size=16)
    everything = torch.cat([images.train, images.test])
    assert everything.shape == (12, 3, 16, 16)
    assert {round(v, 4) for v in everything.flatten().tolist()} == {-1.0, round(200 / 127.5 - 1, 4)}


@pytest.mark.parametrize("kind", ["16 bits", "transparent", "rotated"])
def test_unusual_images_look_as_a_viewer_shows_them(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    half = np.zeros((20, 20), np.uint8)
    half[:10] = 200
    for i in range(10):
        if kind == "16 bits":
            Image.fromarray(half.astype(np.uint16) * 257).save(tmp_path / f"{i}.png")
        elif kind == "transparent":
            rgba = np.dstack([half, half, half, np.full_like(half, 255)])
            rgba[10:] = 0, 0, 0, 0  # nothing over white
            Image.fromarray(rgba).save(tmp_path / f"{i}.png")
        else:
            exif = Image.Exif()
            exif[0x0112] = 3  # stored upside down
            Image.fromarray(half[::-1].copy()).save(tmp_path / f"{i}.png", exif=exif)
    image = data.load(str(tmp_path), image_size=20).train[0]
    assert image[:, 5, 5].tolist() == pytest.approx([200 / 127.5 - 1] * 3)
    below = 1.0 if kind == "transparent" else -1.0
    assert image[:, 15, 5].tolist() == [below] * 3


def test_arrays_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.full((20, 9, 9), 255, np.uint8))
    assert torch.equal(data.load(str(file)).train, torch.ones(16, 1, 9, 9))
    for array, message in [
        (np.zeros((20, 9)), "shape"),
        (np.full((20, 9, 9), 1.5), r"outside \[-1, 1\]"),
        (np.full((20, 9, 9), np.nan), r"outside \[-1, 1\]"),
        (np.zeros((20, 9, 9), np.int64), "int64"),
        (np.zeros((5, 9, 9)), "too few"),
        (np.array([object()]), "cannot be read"),
        (np.zeros((20, 2, 9, 9)), "1 or 3 channels"),
        (np.zeros((0, 9, 9)), "shape"),
    ]:
        np.save(file, array)
        with pytest.raises(DataError, match=message):
            data.load(str(file))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        data.load(str(tmp_path))


def test_mmd2_of_two_pairs_by_hand() -> None:
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]])

    def k(d: float) -> float:
        return sum(np.exp(-(d**2) / (2 * s * s)) for s in (1, 2, 4, 8))

    expected = k(1) + k(2) - 2 * (k(3) + k(5) + k(2) + k(4)) / 4
    assert metrics.mmd2(x, y) == pytest.approx(expected, abs=1e-12)


def test_mmd2_is_unbiased() -> None:
    """Over 200 pairs of samples of one law its mean is 0 within 4.9 standard errors (1e-6)."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(
        [metrics.mmd2(*torch.randn(2, 30, 4, generator=generator)) for _ in range(200)]
    )
    assert abs(values.mean()) < 4.9 * values.std() / 200**0.5


def test_the_judge_tells_digits_from_what_looks_like_them() -> None:
    images = data.load("digits")
    judge = metrics.Judge(images.train, images.train_labels)
    real = judge(images.test)
    fitted = {name: judge(x) for name, x in metrics.baselines(images.train, 1000).items()}
    uniform = judge(torch.rand(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert abs(real.mmd2) < 0.005
    assert 0.03 < fitted["fitted Gaussian"].mmd2 < 0.06
    assert uniform.mmd2 > 0.5
    assert real.confident is not None
    assert real.confident > 0.5
    assert fitted["fitted Gaussian"].confident == pytest.approx(0.03, abs=0.02)
    assert real.nearest < fitted["30 diagonal Gaussians"].nearest < 3 < uniform.nearest
    assert judge(5 * images.test.clamp(0)) == judge((5 * images.test.clamp(0)).clamp(-1, 1))
    assert metrics.Judge(images.train, None)(images.test).confident is None


def test_a_grid_shows_its_images() -> None:
    images = torch.stack([torch.full((1, 2, 2), v) for v in (-1.0, 0.0, 1.0)])
    assert plots.grid(images, columns=2)[..., 0].tolist() == [
        [128, 128, 128, 128, 128, 128, 128],
        [128, 0, 0, 128, 128, 128, 128],
        [128, 0, 0, 128, 128, 128, 128],
        [128, 128, 128, 128, 128, 128, 128],
        [128, 255, 255, 128, 128, 128, 128],
        [128, 255, 255, 128, 128, 128, 128],
        [128, 128, 128, 128, 128, 128, 128],
    ]


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 17)])
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_an_energy_is_one_number_for_each_image_alone(
    channels: int, size: int, activation: str
) -> None:
    network = networks.ConvEnergy(channels, size, width=4, activation=activation)
    x = torch.randn(5, channels, size, size, generator=torch.Generator().manual_seed(0))
    energies = network(x)
    assert energies.shape == (5,)
    torch.testing.assert_close(energies[2:3], network(x[2:3]))
    assert energies.std() > 0
    with pytest.raises(ConfigError, match="too small"):
        networks.ConvEnergy(1, 7)
    with pytest.raises(ConfigError, match="activation='tanh'"):
        networks.ConvEnergy(1, 8, activation="tanh")
