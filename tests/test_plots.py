"""Pictures: the lines are the data, the titles the diagnostics, and little is drawn of much."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the extra plot is not installed")

from langevin_ext import diagnostics, plots
from langevin_ext.errors import ArgumentError, DtypeError, LangevinError, ShapeError

from .conftest import normals

ALL = plots.trace, plots.autocorrelations, plots.densities
each = pytest.mark.parametrize("plot", ALL, ids=lambda plot: str(plot.__name__))


def curves(axes: Any) -> list[np.ndarray]:
    """The (x, y) of every line that is not part of the background, in the order of drawing."""
    found = [line for line in axes.lines if str(line.get_color()) != plots.PALE]
    return [np.array(line.get_data()) for line in found]


def titles(axes: Any) -> tuple[str, str]:
    return axes.get_title("left").strip(), axes.get_title("right")


def draw(figure: Any) -> None:
    """Nothing of it may fail when it is drawn, as late as that, or warn."""
    figure.savefig(io.BytesIO(), format="png")


def heading(figure: Any) -> str:
    return str(figure.get_suptitle())


def test_a_trace_is_the_draws() -> None:
    x = normals(50, 3, 2)
    figure = plots.trace(x)
    assert heading(figure) == "50 draws of 3 chains"
    table = diagnostics.summary(x)
    for i, axes in enumerate(figure.axes):
        for chain, (at, values) in enumerate(curves(axes)):
            np.testing.assert_array_equal(at, np.arange(50))
            np.testing.assert_array_equal(values, x[:, chain, i].cpu().numpy())
        label, numbers = titles(axes)
        assert label == f"x[{i}]"
        assert numbers == (
            f"R-hat {float(table.rhat[i]):.3f}   ESS {float(table.ess_bulk[i]):.0f} bulk,"
            f" {float(table.ess_tail[i]):.0f} tail"
        )
        assert len(curves(axes)) == 3
        assert not axes.collections, "all chains are there: no shade"
    draw(figure)


def test_a_trace_of_much_says_what_it_leaves_out() -> None:
    x = normals(4001, 40, 7, 2)
    figure = plots.trace(x, max_chains=4, name="theta")
    assert heading(figure) == (
        "4,001 draws of 40 chains, 4 of them drawn; the first 6 of 14 coordinates, one draw in 3"
    )
    assert [titles(axes)[0] for axes in figure.axes][-2:] == ["theta[2, 0]", "theta[2, 1]"]
    lines = curves(figure.axes[5])
    for chain, (at, values) in zip((0, 13, 26, 39), lines, strict=True):
        np.testing.assert_array_equal(at, np.arange(0, 4001, 3))
        np.testing.assert_array_equal(values, x[::3, chain, 2, 1].cpu().numpy())
    (shade,) = figure.axes[5].collections
    low, high = (x[3, :, 2, 1].double().quantile(p).item() for p in (0.05, 0.95))
    corners = shade.get_paths()[0].vertices
    at_3 = sorted(set(corners[corners[:, 0] == 3, 1]))
    np.testing.assert_allclose(at_3, [low, high], rtol=1e-6)


def test_autocorrelations_are_the_diagnostics() -> None:
    x = normals(200, 30, 2).cumsum(0) * 0.05 + normals(200, 30, 2, seed=1)
    figure = plots.autocorrelations(x, lags=40, max_chains=3)
    rho = diagnostics.autocorrelation(x, 40)
    tau, ess = diagnostics.autocorrelation_time(x), diagnostics.ess(x, "mean")
    for i, axes in enumerate(figure.axes):
        *chains, mean = curves(axes)
        assert len(chains) == 3
        np.testing.assert_allclose(chains[-1][1], rho[:, -1, i].cpu(), atol=1e-12)
        np.testing.assert_allclose(mean[1], rho[..., i].mean(1).cpu(), atol=1e-12)
        assert titles(axes)[1].endswith(f"ESS {float(ess[i]):,.0f}   τ {float(tau[i]):.3g}")
    draw(figure)


def test_lags_reach_as_far_as_there_is_something_to_see() -> None:
    x = torch.stack([normals(400, 4), 0.1 * normals(400, 4, seed=1).cumsum(0)], 2)
    quick, slow = plots.autocorrelations(x).axes
    assert quick.get_xlim() == (0, 20)
    tau = float(diagnostics.autocorrelation_time(x)[1])
    assert slow.get_xlim() == (0, min(math.ceil(4 * tau), 200))
    assert tau > 10


def test_densities_are_those_of_the_law() -> None:
    """N(0, 1) within 5 % of its peak, mass 1; a uniform's edges stand."""
    x = torch.stack([normals(4000, 5), normals(4000, 5, seed=1).erf()], 2)
    x[..., 1] = torch.special.ndtr(normals(4000, 5, seed=2))
    normal, uniform = plots.densities(x).axes
    at, density = curves(normal)[-1]
    want = np.exp(-(at**2) / 2) / math.sqrt(2 * math.pi)
    assert abs(density - want).max() < 0.05 * want.max()
    at, density = curves(uniform)[-1]
    assert abs(density - 1).max() < 0.1
    for axes in (normal, uniform):
        lines = curves(axes)
        assert len(lines) == 6
        for at, density in lines:
            assert density.sum() * (at[1] - at[0]) == pytest.approx(1, abs=0.005)


def test_densities_keep_two_modes_apart() -> None:
    """Of chains that each sit in one: both as narrow and high as they are, and nothing between."""
    x = 0.1 * normals(500, 4)
    x[:, 2:] += 5
    figure = plots.densities(x)
    at, density = curves(figure.axes[0])[-1]
    middle = abs(at - 2.5) < 1
    peak = 0.5 / (0.1 * math.sqrt(2 * math.pi))
    assert density.max() == pytest.approx(peak, rel=0.1)
    assert density[middle].max() < 1e-9 * peak
    assert figure.axes[0]._right_title.get_color() == plots.ALARM
    assert plots.densities(normals(500, 4)).axes[0]._right_title.get_color() == plots.INK


@each
def test_what_cannot_be_drawn_well_is_drawn_at_all(plot: Callable[..., Any]) -> None:
    """Constant, NaN, infinite, one chain, four draws, no trailing axis, TeX in a name."""
    x = normals(30, 3, 4)
    x[..., 0] = 2.0
    x[4, 1, 1] = math.nan
    x[4, 1, 2] = math.inf
    x[:, 1, 3] = 0.5
    draw(plot(x, name="$x_{1$"))
    figure = plot(normals(4, 1))
    assert titles(figure.axes[0])[0] == "x"
    draw(figure)
    draw(plot(normals(300, 1000), max_chains=1))


@each
def test_coordinates_are_chosen(plot: Callable[..., Any]) -> None:
    x = normals(20, 2, 3, 4)
    figure = plot(x, coordinates=[(2, 1), (0, 3)])
    assert [titles(axes)[0] for axes in figure.axes] == ["x[2, 1]", "x[0, 3]"]
    assert heading(figure) == "20 draws of 2 chains; 2 of 12 coordinates"
    for picked, index in zip(figure.axes, [(2, 1), (0, 3)], strict=True):
        (alone,) = plot(x[:, :, index[0], index[1]]).axes
        for got, want in zip(curves(picked), curves(alone), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
    assert len(plot(x.flatten(2), coordinates=range(8)).axes) == 8


BAD: list[tuple[Any, dict[str, Any], type[LangevinError], str]] = [
    (np.zeros((9, 2)), {}, DtypeError, "trajectory is a ndarray"),
    (torch.zeros(9), {}, ShapeError, r"\(9,\)"),
    (torch.zeros(3, 2), {}, ShapeError, "at least 4"),
    (torch.zeros(9, 2, 0), {}, ArgumentError, "none to draw"),
    (torch.zeros(9, 2, 3), {"coordinates": []}, ArgumentError, r"coordinates=\[\] of \(3,\)"),
    (torch.zeros(9, 2, 3), {"coordinates": [3]}, ArgumentError, r"has 3: .* into \(3,\)"),
    (torch.zeros(9, 2, 3), {"coordinates": [-1]}, ArgumentError, "has -1"),
    (torch.zeros(9, 2, 3), {"coordinates": ["0"]}, ArgumentError, "has '0'"),
    (torch.zeros(9, 2, 3, 2), {"coordinates": [1]}, ArgumentError, "a tuple of 2"),
    (torch.zeros(9, 2), {"max_chains": 0}, ArgumentError, "max_chains=0"),
    (torch.zeros(9, 2), {"max_chains": 2.5}, ArgumentError, "max_chains=2.5"),
]


@each
@pytest.mark.parametrize(("x", "arguments", "error", "message"), BAD, ids=[b[3] for b in BAD])
def test_bad_input_is_named(
    plot: Callable[..., Any], x: Any, arguments: Any, error: type[LangevinError], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot(x, **arguments)


def test_lags_are_checked() -> None:
    with pytest.raises(ArgumentError, match="lags=20: give an int from 0 to 19"):
        plots.autocorrelations(normals(20, 2), lags=20)


@each
def test_without_matplotlib_the_extra_is_named(
    plot: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'langevin-ext\[plot\]'"):
        plot(normals(20, 2))


def test_nothing_global_is_touched() -> None:
    """The package imports no matplotlib, and its plots no pyplot."""
    code = """
import io, sys, torch, langevin_ext.plots as plots
assert "matplotlib" not in sys.modules
for plot in (plots.trace, plots.autocorrelations, plots.densities):
    plot(torch.randn(20, 2)).savefig(io.BytesIO())
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
