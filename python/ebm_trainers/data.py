"""Images to train on, as one tensor: (N, C, H, W) float32 in [-1, 1].

The named sets are inside wheels (scikit-learn, scikit-image), so nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
_PICTURES = "astronaut", "chelsea", "coffee", "rocket"


class Images(NamedTuple):
    name: str
    train: Tensor
    """(N, C, H, W) float32 in [-1, 1]."""
    test: Tensor
    """Held out, likewise."""
    train_labels: Tensor | None
    """(N,) int64, or None where there are none."""
    test_labels: Tensor | None


def load(name: str, image_size: int = 32) -> Images:
    """Images by name, or from a path.

    Args:
        name: ``"digits"`` (scikit-learn's 1,797 handwritten digits, 1x8x8), ``"patches"`` (3x32x32
            patches of photographs inside scikit-image), a folder of images, or a ``.npy`` file of
            (N, C, H, W) or (N, H, W): uint8, or floating point in [-1, 1].
        image_size: side to which the images of a folder are cut and scaled.

    Raises:
        DataError: no such name or path, or nothing usable there.
    """
    if name == "digits":
        return _digits()
    if name == "patches":
        return _split(name, _patches(32, stride=16))
    path = Path(name)
    if name and path.is_dir():
        return _split(path.name, _folder(path, image_size))
    if path.suffix == ".npy" and path.is_file():
        return _split(path.stem, _array(path))
    raise DataError(f"data {name!r}: give 'digits', 'patches', a folder of images, or a .npy file")


def _split(
    name: str, images: Tensor, labels: Tensor | None = None, test_share: float = 0.2
) -> Images:
    """A fixed split: the same images are held out on every machine and in every run."""
    if len(images) < 10:
        raise DataError(f"data {name!r}: {len(images)} images are too few to train on")
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(images)))
    held_out = int(len(images) * test_share)
    test, train = order[:held_out], order[held_out:]
    if labels is None:
        return Images(name, images[train], images[test], None, None)
    return Images(name, images[train], images[test], labels[train], labels[test])


def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32))[:, None] / 8 - 1
    return _split("digits", images, torch.from_numpy(digits.target.astype(np.int64)))


def _patches(size: int, stride: int) -> Tensor:
    import skimage.data

    cut = []
    for picture in _PICTURES:
        image = torch.from_numpy(np.array(getattr(skimage.data, picture)())).permute(2, 0, 1)
        tiles = image.unfold(1, size, stride).unfold(2, size, stride)
        cut.append(tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size))
    return _scaled(torch.cat(cut).numpy(), "patches")


def _folder(path: Path, size: int) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"{path} has no images ({', '.join(sorted(_SUFFIXES))})")
    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                image = _as_rgb(opened)
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{file} cannot be read as an image: {error}") from error
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((size, size))
        images.append(np.asarray(square).transpose(2, 0, 1))
    return _scaled(np.stack(images), str(path))


def _as_rgb(opened: Any) -> Any:
    """An image upright, in 8 bits, over white where it is transparent."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise OSError(f"mode {image.mode} has no known range; save it in 8 or 16 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive: give one array")
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
        raise DataError(
            f"{path} has shape {array.shape}: give (N, C, H, W) with 1 or 3 channels, or (N, H, W)"
        )
    return _scaled(array, str(path))


def _scaled(array: np.ndarray, name: str) -> Tensor:
    if array.dtype == np.uint8:
        return torch.from_numpy(array.astype(np.float32)) / 127.5 - 1
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{name} holds {array.dtype}: give uint8, or floating point in [-1, 1]")
    if not np.isfinite(array).all() or np.abs(array).max() > 1:
        raise DataError(f"{name} has values outside [-1, 1]")
    return torch.from_numpy(array.astype(np.float32))
