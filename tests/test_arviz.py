"""`Samples.to_arviz`: every draw in its place, and what ArviZ then does with it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_ext import AniLA, Langevin, Noise, Samples, diagnostics, sample
from langevin_ext.errors import ArgumentError

from .conftest import normals

with warnings.catch_warnings():
    # Once a day it speaks of its next version.
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
    arviz = pytest.importorskip("arviz")


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1).square().sum(1)


def drawn(**changes: Any) -> Samples:
    arguments: dict[str, Any] = {"seed": 0, "keep_every": 2} | changes
    return sample(quadratic, normals(5, 2, 3), AniLA(1.0, 0.5), 40, **arguments)


def test_every_draw_is_in_its_place() -> None:
    samples = drawn(seed=Noise(0, first_chain=7))
    data = samples.to_arviz()
    x = data.posterior["x"]
    assert x.dims == ("chain", "draw", "x_dim_0", "x_dim_1")
    assert x.sizes == {"chain": 5, "draw": 20, "x_dim_0": 2, "x_dim_1": 3}
    assert samples.trajectory is not None
    np.testing.assert_array_equal(x.values, samples.trajectory.cpu().numpy().swapaxes(0, 1))
    assert data.posterior["chain"].values.tolist() == [7, 8, 9, 10, 11]
    assert data.posterior["draw"].values.tolist() == list(range(20))
    assert data.posterior.attrs["inference_library"] == "langevin_ext"
    assert data.posterior.attrs["steps_taken"] == 40


def test_statistics_keep_their_chains() -> None:
    """Each at all of its chain's draws; what there is none of is left out; not under the names
    by which ArviZ knows other things."""
    samples = drawn(keep_every=4)
    statistics = samples.to_arviz().sample_stats
    for name, value in (
        ("mean_grad_norm", samples.stats.grad_norm),
        ("mean_gamma", samples.stats.gamma),
        ("clipped_rate", samples.stats.clipped),
        ("last_energy", samples.stats.energy),
        ("first_bad_step", samples.stats.first_bad_step),
        ("restarts", samples.stats.restarts),
    ):
        assert statistics[name].dims == ("chain", "draw"), name
        want = np.repeat(value.cpu().numpy()[:, None], 10, axis=1)
        np.testing.assert_array_equal(statistics[name].values, want, err_msg=name)
    assert not {"energy", "acceptance_rate", "step_size", "weight"} & set(statistics)


def test_what_a_rule_may_add_is_passed_on() -> None:
    """Acceptance, an adapted step size, weights: here of no rule, only in their places."""
    samples = drawn()
    stats = samples.stats._replace(
        acceptance=normals(5).abs(), step_size=torch.tensor(0.3, dtype=torch.float64)
    )
    weights = normals(20, 5).exp()
    statistics = samples._replace(stats=stats, trajectory_weights=weights).to_arviz().sample_stats
    assert stats.acceptance is not None
    np.testing.assert_array_equal(statistics["acceptance_rate"][:, 3], stats.acceptance.cpu())
    np.testing.assert_array_equal(statistics["step_size"], np.full((5, 20), 0.3))
    np.testing.assert_array_equal(statistics["weight"], weights.T.cpu())


def test_arviz_summarises_joins_and_stores_it(tmp_path: Path) -> None:
    """More chains than draws, of which its own converters warn."""
    samples = sample(quadratic, normals(30, 2), Langevin(0.5), 20, seed=0, keep_every=1)
    data = samples.to_arviz()
    assert samples.trajectory is not None
    table = arviz.summary(data, round_to="none")
    np.testing.assert_allclose(table["ess_bulk"], diagnostics.ess(samples.trajectory).cpu())
    more = sample(quadratic, samples.state, Langevin(0.5), 20, keep_every=1).to_arviz()
    longer = arviz.concat(data, more, dim="draw")
    assert dict(longer.posterior.sizes) == {"chain": 30, "draw": 40, "x_dim_0": 2}
    assert longer.sample_stats["mean_gamma"].shape == (30, 40)
    assert arviz.concat(data, more, dim="chain").posterior.sizes["chain"] == 60
    data.to_netcdf(str(tmp_path / "samples.nc"))
    stored = arviz.from_netcdf(str(tmp_path / "samples.nc"))
    np.testing.assert_array_equal(stored.posterior["x"], data.posterior["x"])
    assert stored.sample_stats.attrs["steps_taken"] == 20


def test_no_trajectory_and_no_arviz_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="no trajectory: pass keep_every"):
        drawn(keep_every=None).to_arviz()
    samples = drawn()
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install 'langevin-ext\[arviz\]'"):
        samples.to_arviz()
