"""Pictures of a run: image grids and curves, replaced atomically so that a viewer can watch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


def grid(images: Tensor, columns: int) -> np.ndarray:
    """Images (N, C, H, W) in [-1, 1] as one (rows H', columns W', C) uint8 array, 1-pixel gaps."""
    images = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    n, c, h, w = images.shape
    rows = -(-n // columns)
    out = np.full((rows * (h + 1) + 1, columns * (w + 1) + 1, c), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + 1) + 1, i % columns * (w + 1) + 1
        out[top : top + h, left : left + w] = image.permute(1, 2, 0).numpy()
    return out


def save_grid(images: Tensor, path: Path, columns: int = 16, min_width: int = 720) -> None:
    """Write a grid of images as a PNG, small ones enlarged by a whole factor."""
    from PIL import Image

    array = grid(images, columns)
    picture = Image.fromarray(array if array.shape[2] == 3 else array[..., 0])
    scale = max(1, -(-min_width // picture.width))
    picture = picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
    _replace(path, lambda partial: picture.save(partial, format="PNG"))


def save_curves(rows: list[dict[str, Any]], path: Path, titles: dict[str, str]) -> None:
    """Plot columns of a log over its ``iteration``, one panel for each of ``titles``."""
    import matplotlib as mpl

    mpl.use("Agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(titles), 3), layout="constrained")
    for axes, (key, title) in zip(
        figure.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True
    ):
        points = [(r["iteration"], r[key]) for r in rows if r.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), lw=1, marker="." if len(points) < 40 else None)
        axes.set(title=title, xlabel="iteration")
        axes.grid(alpha=0.3)
    _replace(path, lambda partial: figure.savefig(partial, format="png", dpi=110))


def _replace(path: Path, write: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    os.replace(partial, path)
