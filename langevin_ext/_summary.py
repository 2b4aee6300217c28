"""The table of `diagnostics.summary`, and names for coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FORMATS = {"ess_bulk": ",.0f", "ess_tail": ",.0f", "rhat": ".3f"}


class Summary(NamedTuple):
    """What `summary` found; (...) each, in float64. It prints as a table."""

    mean: Tensor
    sd: Tensor
    """With N - 1."""
    mcse: Tensor
    """The mean's."""
    ess_bulk: Tensor
    ess_tail: Tensor
    rhat: Tensor

    def __repr__(self) -> str:
        return self.table()

    def table(self, name: str = "x", rows: int = 20) -> str:
        """Text: the first ``rows`` coordinates, and of the others how bad the worst is."""
        values = torch.stack([value.flatten() for value in self], dim=1).cpu()
        shape, shown = self.mean.shape, min(len(values), rows)
        cells: list[tuple[str, ...]] = [("", *self._fields)]
        for label, row in zip(
            coordinate_names(shape, name, range(shown)), values[:shown].tolist(), strict=True
        ):
            texts = zip(self._fields, row, strict=True)
            cells.append((label, *(_text(field, value) for field, value in texts)))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            f"{label:{widths[0]}}"
            + "".join(f"  {text:>{width}}" for text, width in zip(texts, widths[1:], strict=True))
            for label, *texts in cells
        ]
        if shown < len(values):
            lines.append(f"... and {len(values) - shown:,} more{self._extremes(name)}")
        return "\n".join(lines)

    def _extremes(self, name: str) -> str:
        rhat, least = self.rhat.flatten(), self.ess_bulk.flatten()
        unknown = int(least.isnan().sum())
        text = f"; {unknown:,} of all are NaN or never moved" if unknown else ""
        if unknown == len(least):
            return text
        worst = int(rhat.nan_to_num(-math.inf, math.inf).argmax())
        scarce = int(least.nan_to_num(math.inf).argmin())
        names = coordinate_names(self.mean.shape, name, [worst, scarce])
        return (
            f"{text}; largest rhat {_text('rhat', float(rhat[worst]))} of {names[0]},"
            f" smallest ess_bulk {_text('ess_bulk', float(least[scarce]))} of {names[1]}"
        )


def _text(field: str, value: float) -> str:
    return format(value, FORMATS.get(field, ".4g"))


def coordinate_names(shape: Sequence[int], name: str, flat: Sequence[int]) -> list[str]:
    """``x[2, 0]`` for a flat index of coordinates of that shape; ``x`` where there is but one."""
    if not shape or not flat:
        return [name] * len(flat)
    places = zip(*(axis.tolist() for axis in np.unravel_index(flat, tuple(shape))), strict=True)
    return [f"{name}[{', '.join(map(str, place))}]" for place in places]
