"""The tables of docs/SAMPLERS.md, computed again."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from langevin_ext.testing import Kernel1D

TEXT = (Path(__file__).parents[1] / "docs" / "SAMPLERS.md").read_text()


def table(name: str) -> list[list[float]]:
    """The numbers of a table's rows."""
    found = re.search(rf"<!-- {name}:begin -->\n(.*)<!-- {name}:end -->", TEXT, re.DOTALL)
    assert found is not None, name
    rows = found[1].strip().splitlines()[2:]
    return [[float(number) for number in re.findall(r"\d[\d.]*", row)] for row in rows]


def target(x: Any) -> Any:
    return np.exp(-x * x / 2)


def anila(b: float, h: float, correction: str = "none") -> Kernel1D:
    """AniLA on N(0, 1)."""

    def gamma(x: Any) -> Any:
        return b / np.maximum(b, np.abs(x))

    def mean(x: Any) -> Any:
        y = x - h / 2 * gamma(x) * x
        if correction == "divergence":  # - (h / 2) gamma H g / g^2
            y = y - np.where(np.abs(x) > b, h / 2 * gamma(x) / np.where(x == 0, 1, x), 0)
        return y

    energy = (lambda x: x * x / 2) if correction == "metropolis" else None
    return Kernel1D.gaussian(
        mean, lambda x: np.sqrt(h * gamma(x)), (-9, 9), energy=energy, breaks=(-b, b)
    )


def test_table_of_the_bias() -> None:
    rows = table("bias")
    assert len(rows) == 5
    for b, h, *figures in rows:
        kernel, divergence = anila(b, h), anila(b, h, "divergence")
        law = kernel.stationary()
        weighted = law * b / np.maximum(b, np.abs(kernel.x))
        weighted /= weighted.sum()
        corrected = divergence.stationary()
        metropolis = anila(b, h, "metropolis")
        exact = metropolis.stationary()
        want = [
            *(kernel.variance(law), kernel.total_variation(law, target)),
            *(kernel.variance(weighted), kernel.total_variation(weighted, target)),
            *(divergence.variance(corrected), divergence.total_variation(corrected, target)),
            *(metropolis.variance(exact), metropolis.acceptance(exact)),
        ]
        places = [1e-4, 1e-3] * 4
        wrong = [
            (f, w) for f, w, p in zip(figures, want, places, strict=True) if abs(f - w) > 0.51 * p
        ]
        assert not wrong, (b, h, wrong)


def test_table_of_the_rates() -> None:
    rows = table("rates")
    assert len(rows) == 6
    for b, h, *figures in rows:
        mala = Kernel1D.gaussian(
            lambda x, h=h: x - h / 2 * x, math.sqrt(h), (-9, 9), energy=lambda x: x * x / 2
        )
        kernels = anila(b, h), anila(b, h, "metropolis"), mala
        want = [*(kernel.second_eigenvalue() for kernel in kernels), 1 - h / 2]
        assert np.abs(np.subtract(figures, want)).max() < 0.51e-4, (b, h, figures, want)


def test_figures_in_the_text() -> None:
    """Of the law in closed form, for small steps."""
    for b, variance in ((3, "1.0030"), (2, "1.0535"), (1, "1.4148"), (0.5, "1.7862")):
        phi = math.exp(-(b**2) / 2) / math.sqrt(2 * math.pi)
        exact = 1 + 2 * phi / (b * math.erf(b / math.sqrt(2)) + 2 * phi)
        assert variance in TEXT
        assert abs(float(variance) - exact) < 0.51e-4
    assert "0.61 of the mass\n  at b = 2 and 0.75 at b = 1/2" in TEXT
    assert abs(narrow_mode(2) - 0.61) < 0.005
    assert abs(narrow_mode(0.5) - 0.75) < 0.005


def narrow_mode(b: float) -> float:
    """The mass left of 0 under exp(-U) max(b, |U'|), of 1/2 N(-3, 0.3^2) + 1/2 N(3, 1)."""
    x = np.linspace(-6, 9, 300_001)
    narrow = np.exp(-(((x + 3) / 0.3) ** 2) / 2) / 0.3
    wide = np.exp(-((x - 3) ** 2) / 2)
    slope = (narrow * (x + 3) / 0.3**2 + wide * (x - 3)) / (narrow + wide)
    law = (narrow + wide) * np.maximum(b, np.abs(slope))
    return float(law[x < 0].sum() / law.sum())
