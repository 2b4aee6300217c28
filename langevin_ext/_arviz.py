"""`Samples` as ArviZ's InferenceData."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .errors import ArgumentError

if TYPE_CHECKING:
    from ._watch import Samples

PER_DRAW = "chain", "draw"
# Their names in InferenceData: those of its schema where it means the same, and of the others none
# that the schema uses for something else (there "energy" is a Hamiltonian's, of every draw).
STATISTICS = {
    "acceptance": "acceptance_rate",
    "step_size": "step_size",
    "grad_norm": "mean_grad_norm",
    "gamma": "mean_gamma",
    "clipped": "clipped_rate",
    "energy": "last_energy",
    "weight": "mean_weight",
    "first_bad_step": "first_bad_step",
    "restarts": "restarts",
}


def inference_data(samples: Samples) -> Any:
    """What `Samples.to_arviz` documents."""
    trajectory = samples.trajectory
    if trajectory is None:
        raise ArgumentError(
            "these samples have no trajectory: pass keep_every to sample, 1 to keep every step"
        )
    try:
        import arviz
        import xarray
    except ImportError as error:
        raise ImportError(
            f"to_arviz needs ArviZ ({error}): pip install 'langevin-ext[arviz]'"
        ) from error
    draws, chains = trajectory.shape[:2]
    coordinates = {
        "chain": samples.state.noise.first_chain + np.arange(chains),
        "draw": np.arange(draws),
    }
    dims = *PER_DRAW, *(f"x_dim_{i}" for i in range(trajectory.dim() - 2))
    attrs = _attributes(samples) | {"arviz_version": arviz.__version__}
    x = {"x": (dims, _array(trajectory.transpose(0, 1)))}
    # From datasets, because the converters from arrays warn of more chains than draws, which is
    # no mistake here.
    return arviz.InferenceData(
        posterior=xarray.Dataset(x, coordinates, attrs),
        sample_stats=xarray.Dataset(_statistics(samples, (chains, draws)), coordinates, attrs),
    )


def _attributes(samples: Samples) -> dict[str, str | int]:
    attrs: dict[str, str | int] = {
        "created_at": datetime.now(timezone.utc).isoformat(),
        "inference_library": "langevin_ext",
        "steps_taken": samples.state.step,
    }
    with suppress(importlib.metadata.PackageNotFoundError):  # not installed, run from its source
        attrs["inference_library_version"] = importlib.metadata.version("langevin-ext")
    return attrs


def _statistics(samples: Samples, shape: tuple[int, int]) -> dict[str, Any]:
    """A run's statistics at each of its draws: `arviz.concat` along draws refuses any others."""
    found: dict[str, Any] = {}
    for field, name in STATISTICS.items():
        value = getattr(samples.stats, field)
        if value is not None:
            column = _array(value).reshape(-1, 1)
            found[name] = PER_DRAW, np.broadcast_to(column, shape)
    if samples.trajectory_weights is not None:
        found["weight"] = PER_DRAW, _array(samples.trajectory_weights.T)
    return found


def _array(t: Tensor) -> Any:
    return t.detach().cpu().numpy()
