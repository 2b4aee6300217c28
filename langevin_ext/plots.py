"""Pictures of a trajectory (draws, chains, ...), with the numbers that say what they are worth.

Each function returns a `matplotlib.figure.Figure` that no global state knows of: save it with
``figure.savefig("trace.png")``. Matplotlib is in the extra ``langevin-ext[plot]``.

However many chains and coordinates there are, a picture stays readable: ``max_chains`` of the
chains are drawn, evenly spread, and of the coordinates the first six unless they are chosen; the
heading says so. All numbers, and what is bold or shaded, are of every chain. The numbers are red
where R-hat is above 1.01 or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import _diagnostics as chunk, diagnostics
from ._check import check_count
from ._summary import coordinate_names
from .errors import ArgumentError

Coordinates = Sequence[int | tuple[int, ...]]
MAX_COORDINATES = 6
MAX_POINTS = 2000  # of a line
BINS = 400
RHAT_LIMIT = 1.01  # Vehtari et al. (2021), section 4.1
INK, ALARM, PALE = "#1f2933", "#c0182b", "#8996a3"


class _Chosen(NamedTuple):
    x: Tensor
    """(draws, chains, coordinates): the coordinates to draw."""
    labels: list[str]
    shown: list[int]
    """The chains to draw."""
    heading: str


def trace(
    trajectory: Tensor,
    *,
    coordinates: Coordinates | None = None,
    name: str = "x",
    max_chains: int = 12,
) -> Any:
    """Draws in their order, a line for each chain; R-hat, bulk and tail ESS above.

    Where not every chain is drawn, the shade holds the middle 90 % of all chains at each draw.

    Args:
        trajectory: (draws, chains, ...), at least four draws.
        coordinates: indices of the trailing axis, or tuples of indices where there are more of
            these; None for the first six.
        name: what to call the variable.
        max_chains: how many chains to draw, at least 1.

    Raises:
        ArgumentError, DtypeError, ShapeError: an argument is not as above.
        ImportError: matplotlib is not installed.
    """
    chosen = _choose(trajectory, coordinates, name, max_chains)
    every = -(-len(chosen.x) // MAX_POINTS)
    heading = chosen.heading + (f", one draw in {every}" if every > 1 else "")
    figure, panels = _panels(chosen, heading, columns=1, size=(9.0, 1.8))
    at = np.arange(0, len(chosen.x), every)
    for i, axes in enumerate(panels):
        x = chosen.x[::every, :, i]
        if len(chosen.shown) < x.shape[1]:
            ordered = chunk.sort(x.double()[:, None])
            edges = [_array(chunk.quantile(ordered, p)) for p in (0.05, 0.95)]
            axes.fill_between(at, *edges, color=PALE, alpha=0.3, lw=0)
        _lines(axes, at, x[:, chosen.shown], alpha=0.8)
        axes.set_xlim(0, at[-1])
    panels[-1].set_xlabel("kept draw")
    _name_ranks(panels, chosen)
    return figure


def autocorrelations(
    trajectory: Tensor,
    *,
    lags: int | None = None,
    coordinates: Coordinates | None = None,
    name: str = "x",
    max_chains: int = 12,
) -> Any:
    """Autocorrelation of each chain, bold the mean of all; R-hat, the mean's ESS and tau above.

    Between the dashed lines lie 95 % of what a chain of independent draws would show at a lag.

    Args:
        trajectory, coordinates, name, max_chains: as for `trace`.
        lags: the last lag; None for four autocorrelation times of each coordinate, but at least 20
            and at most half of the draws.

    Raises:
        ArgumentError, DtypeError, ShapeError, ImportError: as for `trace`.
    """
    chosen = _choose(trajectory, coordinates, name, max_chains)
    draws = len(chosen.x)
    tau = diagnostics.autocorrelation_time(chosen.x)
    if lags is None:
        needed = (4 * tau).nan_to_num(0.0).ceil().clamp(20, max(20, draws)).long()
        last = needed.clamp(max=draws // 2).tolist()
    else:
        last = [lags] * len(chosen.labels)
    rho = diagnostics.autocorrelation(chosen.x, max(last))
    figure, panels = _panels(chosen, chosen.heading, columns=3, size=(3.6, 2.5))
    for i, axes in enumerate(panels):
        axes.axhline(0, color=PALE, lw=0.8)
        for level in (-1.96, 1.96):
            axes.axhline(level / math.sqrt(draws), color=PALE, lw=0.8, ls=(0, (4, 3)))
        at = np.arange(last[i] + 1)
        _lines(axes, at, rho[: len(at), chosen.shown, i], alpha=0.5)
        axes.plot(at, _array(rho[: len(at), :, i].nanmean(1)), color=INK, lw=1.8)
        axes.set(xlim=(0, last[i]), ylim=(min(-0.25, axes.get_ylim()[0]), 1.03), xlabel="lag")
        axes.xaxis.get_major_locator().set_params(integer=True)
    found = zip(diagnostics.ess(chosen.x, "mean").tolist(), tau.tolist(), strict=True)
    _name(panels, chosen, [f"ESS {_short(e)}   τ {t:.3g}" for e, t in found])
    return figure


def densities(
    trajectory: Tensor,
    *,
    coordinates: Coordinates | None = None,
    name: str = "x",
    max_chains: int = 12,
) -> Any:
    """Density of each chain, bold that of all together; R-hat, bulk and tail ESS above.

    Gaussian kernels, reflected at the ends, 0.9 s n^-1/5 wide for n draws by the chains' own ESS; s
    is the standard deviation of a normal law with a densest quarter as wide as theirs. The
    outermost 0.1 % of the draws at each side may lie beyond the ends.

    Args:
        trajectory, coordinates, name, max_chains: as for `trace`.

    Raises:
        ArgumentError, DtypeError, ShapeError, ImportError: as for `trace`.
    """
    chosen = _choose(trajectory, coordinates, name, max_chains)
    figure, panels = _panels(chosen, chosen.heading, columns=3, size=(3.6, 2.5))
    for i, axes in enumerate(panels):
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        x = chosen.x[..., i].double().T
        if not bool(x.isfinite().all()):
            note = {"ha": "center", "size": 8, "color": ALARM, "transform": axes.transAxes}
            axes.text(0.5, 0.5, "draws that are not finite", **note)
            axes.set_xticks([])
            continue
        where, each, pooled = _kernel_densities(x, chosen.shown)
        _lines(axes, where, each.T, alpha=0.6)
        axes.plot(where, _array(pooled), color=INK, lw=1.8)
        axes.fill_between(where, _array(pooled), color=PALE, alpha=0.2, lw=0)
        axes.set(xlim=(where[0], where[-1]), ylim=(0, None))
    _name_ranks(panels, chosen)
    return figure


# ---- densities ----------------------------------------------------------------------------------


def _kernel_densities(x: Tensor, shown: list[int]) -> tuple[np.ndarray, Tensor, Tensor]:
    """A grid, the density there of the shown ones of x (chains, draws), and that of all draws."""
    ordered = chunk.sort(x[None])
    low, high = (float(chunk.quantile(ordered, p)) for p in (0.001, 0.999))
    margin = 0.15 * (high - low)
    low, high = max(low - margin, float(ordered[0, 0])), min(high + margin, float(ordered[0, -1]))
    if not low < high:
        low, high = low - 0.5, high + 0.5
    step = (high - low) / BINS
    inside = (x >= low) & (x <= high)
    row = torch.arange(len(x), device=x.device)[:, None] * BINS
    bins = row + ((x - low) / step).clamp(0, BINS - 1).long()
    counts = torch.bincount(bins[inside], minlength=len(x) * BINS).view(len(x), BINS).double()
    # Each chain's ESS of its own: together, chains in different modes would know nothing.
    known = max(1.0, float(chunk.ess(chunk.split(x[:, None])).nanmedian().nan_to_num(1.0)))
    widths = (0.9 * _spread(ordered[0]) / step * n**-0.2 for n in (known, known * len(x)))
    each, pooled = counts[shown] / x.shape[1], counts.sum(0, keepdim=True) / x.numel()
    each, pooled = (_smooth(c / step, w) for c, w in zip((each, pooled), widths, strict=True))
    return low + step * (np.arange(BINS) + 0.5), each, pooled[0]


def _spread(ordered: Tensor) -> float:
    """The sd of a normal law whose densest quarter is as wide as that of these draws.

    Of two narrow modes it is that of one, not their distance. Of draws of which a quarter are
    equal it is their sd.
    """
    quarter = max(1, len(ordered) // 4)
    densest = float((ordered[quarter:] - ordered[:-quarter]).min())
    return densest / 0.6373 or float(chunk.variance(ordered).sqrt())


def _smooth(rows: Tensor, width: float) -> Tensor:
    """Rows (n, BINS) under a Gaussian kernel of that many bins, reflected at their ends."""
    reach = min(BINS - 1, math.ceil(4 * width))
    bins = torch.arange(-reach, reach + 1, dtype=rows.dtype, device=rows.device)
    kernel = torch.exp(-0.5 * (bins / max(width, 0.1)) ** 2)
    padded = F.pad(rows[:, None], (reach, reach), mode="reflect")
    return F.conv1d(padded, (kernel / kernel.sum()).view(1, 1, -1))[:, 0]


# ---- what every picture shares ------------------------------------------------------------------


def _choose(
    trajectory: Tensor, coordinates: Coordinates | None, name: str, max_chains: int
) -> _Chosen:
    draws = diagnostics.check_trajectory(trajectory, diagnostics.MIN_DRAWS)
    max_chains = check_count("max_chains", max_chains, 1)
    shape, chains = trajectory.shape[2:], trajectory.shape[1]
    if coordinates is None:
        flat = list(range(min(shape.numel(), MAX_COORDINATES)))
    else:
        flat = [_flat(shape, index) for index in coordinates]
    if not flat:
        raise ArgumentError(
            f"coordinates={coordinates!r} of {tuple(shape)}: there are none to draw"
        )
    x = trajectory.detach().reshape(draws, chains, -1)[..., flat]
    shown = sorted({round(i) for i in np.linspace(0, chains - 1, min(chains, max_chains))})
    some = f", {len(shown)} of them drawn" if len(shown) < chains else ""
    heading = f"{draws:,} draws of {chains:,} chain{'s' if chains > 1 else ''}{some}"
    if len(flat) < shape.numel():
        first = "the first " if coordinates is None else ""
        heading += f"; {first}{len(flat)} of {shape.numel():,} coordinates"
    return _Chosen(x, coordinate_names(shape, name, flat), shown, heading)


def _flat(shape: torch.Size, index: object) -> int:
    place = index if isinstance(index, tuple) else (index,)
    try:
        return int(np.ravel_multi_index(place, tuple(shape)))
    except (TypeError, ValueError):
        raise ArgumentError(
            f"coordinates has {index!r}: give an index, or a tuple of {len(shape)}, into"
            f" {tuple(shape)}"
        ) from None


def _panels(
    chosen: _Chosen, heading: str, columns: int, size: tuple[float, float]
) -> tuple[Any, list[Any]]:
    """A figure with a panel for each coordinate."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            f"plots need matplotlib ({error}): pip install 'langevin-ext[plot]'"
        ) from error
    count = len(chosen.labels)
    columns = min(columns, count)
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.5), layout=layout)
    figure.suptitle(heading, fontsize=9, color=PALE, x=0.01, ha="left")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=columns == 1).flatten()
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PALE)
        axes.tick_params(labelsize=8, color=PALE, labelcolor=INK)
        axes.xaxis.label.set(size=8, color=INK)
    return figure, list(grid[:count])


def _lines(axes: Any, at: np.ndarray, y: Tensor, alpha: float) -> None:
    """A line for each column, in colours from dark to light."""
    import matplotlib as mpl

    colours = mpl.colormaps["viridis"](np.linspace(0.05, 0.85, y.shape[1]))
    for column, colour in zip(_array(y).T, colours, strict=True):
        axes.plot(at, column, color=colour, lw=0.8, alpha=alpha)


def _name_ranks(panels: list[Any], chosen: _Chosen) -> None:
    bulk, tail = diagnostics.ess(chosen.x).tolist(), diagnostics.ess(chosen.x, "tail").tolist()
    both = zip(bulk, tail, strict=True)
    _name(panels, chosen, [f"ESS {_short(b)} bulk, {_short(t)} tail" for b, t in both])


def _name(panels: list[Any], chosen: _Chosen, numbers: list[str]) -> None:
    """Titles: at the left the label, above where it is long; at the right R-hat and numbers."""
    rhats = diagnostics.rhat(chosen.x).tolist()
    for axes, label, rhat, text in zip(panels, chosen.labels, rhats, numbers, strict=True):
        above = "\n" if len(label) > 14 else ""
        axes.set_title(
            label + above, loc="left", size=9, weight="bold", color=INK, parse_math=False
        )
        colour = INK if rhat <= RHAT_LIMIT else ALARM
        axes.set_title(f"R-hat {rhat:.3f}   {text}", loc="right", size=8, color=colour)


def _short(count: float) -> str:
    """10,000 and more in thousands."""
    return f"{count:,.0f}" if not count >= 1e4 else f"{count / 1e3:,.0f}k"


def _array(t: Tensor) -> np.ndarray:
    array: np.ndarray = t.detach().cpu().numpy()
    return array
