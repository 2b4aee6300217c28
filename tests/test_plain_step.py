"""The short way to an in-place step on a CPU: what it takes, and that it is the long way."""

from __future__ import annotations

from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from langevin_ext import Noise, StepStats, backends, langevin_step_
from langevin_ext.errors import GradientError

from .conftest import NO_NATIVE, assert_same_bits, normals

plain_step = None if NO_NATIVE else backends.plain_step()
pytestmark = pytest.mark.skipif(
    plain_step is None, reason=f"no short way: {NO_NATIVE or 'torch lacks the exchange API'}"
)

LEGAL: dict[str, Any] = {
    "drift": 0.05,
    "diffusion": 0.2,
    "max_grad_norm": 1.5,
    "per": "sample",
    "noise_power": 0.5,
    "reference_precision": 0.0,
    "clamp": None,
    "stats": None,
}
PLAIN: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no clipping": {"max_grad_norm": None},
    "an infinite bound": {"max_grad_norm": float("inf")},
    "per coordinate": {"per": "coordinate"},
    "power 0": {"noise_power": 0.0},
    "power 1": {"noise_power": 1.0},
    "a reference measure": {"reference_precision": 0.7},
    "clamped": {"clamp": (-1.0, 1.0)},
    "clamped below": {"clamp": (-0.5, None)},
    "clamped above": {"clamp": (None, 0.5)},
    "clamped beyond float32": {
        "x": normals(4, 10).double(),
        "grad": normals(4, 10, seed=1).double(),
        "clamp": (None, 1e39),
    },
    "statistics": {"stats": StepStats.empty(4)},
    "a 64-bit state": {"x": normals(4, 10).double(), "grad": normals(4, 10, seed=1).double()},
    "a bfloat16 gradient": {"grad": normals(4, 10, seed=1).bfloat16()},
    "a float16 gradient": {"grad": normals(4, 10, seed=1).half()},
    "a vector of chains": {"x": normals(7), "grad": normals(7, seed=1)},
    "images": {"x": normals(2, 3, 5, 7), "grad": normals(2, 3, 5, 7, seed=1)},
    "enough for threads": {"x": normals(4, 3000), "grad": normals(4, 3000, seed=1)},
    "far in the noise": {"noise": Noise(2**64 - 1, 65535, 2**32 - 4, 2**48 - 1)},
    "a fixed position": {"noise": Noise(3).at(9)},
    "a view ahead": {"noise": Noise(3, step=2).ahead(7)},
}
TAKEN_CARE_OF: dict[str, dict[str, Any]] = {
    "an integer": {"diffusion": 1},
    "no noise": {"noise": None, "diffusion": 0.0},
    "a tensor of drifts": {"drift": torch.full((4,), 0.05)},
    "a strided state": {"x": normals(10, 4).t()},
    "a strided gradient": {"grad": normals(10, 4).t()},
    "a negative view": {"grad": torch._neg_view(normals(4, 10, seed=1))},
    "an empty state": {"x": torch.zeros(4, 0), "grad": torch.zeros(4, 0)},
    "integers for ends": {"clamp": (-1, 1)},
    "noise on a device": {"noise": "on a device"},
}


def run(case: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """State, statistics, the noise's step and the counted writes after one step."""
    arguments = {"x": normals(4, 10), "grad": normals(4, 10, seed=1), "noise": Noise(5, step=3)}
    arguments |= LEGAL | case
    x = arguments.pop("x")
    x = x.clone() if x.is_contiguous() else x.t().clone().t()
    noise = arguments["noise"]
    if noise == "on a device":
        arguments["noise"] = noise = Noise(5, step=3)
        noise._cells = None
    elif noise is not None and not noise.fixed:
        arguments["noise"] = noise = noise.clone()
    stats = arguments["stats"] and StepStats.empty(4)
    with monkeypatch.context() as patch:
        if way == "long":
            patch.setattr(backends, "plain_step", lambda: None)
        version = x._version
        langevin_step_(x, **(arguments | {"stats": stats}))
    versions = [t._version for t in stats or ()]
    return x, stats, noise and noise.step, x._version - version, versions


@pytest.mark.parametrize("case", [*PLAIN, *TAKEN_CARE_OF])
def test_the_short_way_is_the_long_way(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = (PLAIN | TAKEN_CARE_OF)[case]
    short, long = (run(changes, way, monkeypatch) for way in ("short", "long"))
    assert_same_bits(short[0], long[0])
    for a, b in zip(short[1] or (), long[1] or (), strict=True):
        assert_same_bits(a, b)
    assert short[2:] == long[2:]


def taken(case: dict[str, Any]) -> bool:
    arguments = {"x": normals(4, 10), "grad": normals(4, 10, seed=1), "noise": Noise(5)}
    arguments |= LEGAL | case
    order = "x", "grad", "drift", "diffusion", "noise", *list(LEGAL)[2:]
    assert plain_step is not None
    return plain_step(*(arguments[name] for name in order))


@pytest.mark.parametrize("case", PLAIN)
def test_it_takes_what_is_plain(case: str) -> None:
    assert taken({name: _copy(value) for name, value in PLAIN[case].items()})


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, (Tensor, Noise)) else value


class Subclass(Tensor):
    pass


released = memoryview(bytearray(16))
released.release()
NOT_PLAIN: dict[str, Any] = {
    "x": [
        None, [[0.0]], torch.zeros(4, 10, dtype=torch.int64), torch.zeros(4, 10).bfloat16(),
        torch.zeros(()), torch.zeros(4, 10, device="meta"), torch.zeros(4, 10).to_sparse(),
        torch.zeros(4, 10, requires_grad=True), torch.zeros(4, 1).expand(4, 10), torch.zeros(10, 4),
        torch._neg_view(torch.zeros(4, 10)), torch.zeros(4, 10).as_subclass(Subclass),
        torch.nn.Parameter(torch.zeros(4, 10)),
    ],
    "grad": [
        None, torch.zeros(4, 9), torch.zeros(4, 10).double(), torch.zeros(4, 10, dtype=torch.int16),
        torch.zeros(4, 10, requires_grad=True), torch.zeros(4, 10, device="meta"),
    ],
    "drift": [0.0, -1.0, float("nan"), float("inf"), 5e38, 1e-50, 1, None, torch.tensor(0.1)],
    "diffusion": [0.0, -1.0, float("nan"), float("inf"), None],
    "noise": [
        None, 3, Noise(1, first_chain=2**32 - 3), Noise,
        *(
            SimpleNamespace(_cells=memory, _offset=0, _stream=stream, _first_chain=0, _fixed=False)
            for memory, stream in (
                (memoryview(bytes(16)), 0), (memoryview(bytearray(8)), 0),
                (memoryview(bytearray(16)), 2**16), (released, 0), ("", 0), (None, 0),
            )
        ),
    ],
    "max_grad_norm": [0.0, -1.0, float("nan"), 1, torch.tensor(0.1)],
    "per": ["row", None, 1],
    "noise_power": [0.3, 1, None],
    "reference_precision": [-1.0, float("nan"), float("inf"), 0, None],
    "clamp": [
        (1.0, -1.0), (0.0, 0.0), (float("nan"), 1.0), (0.0,), [0.0, 1.0], 1.0, (0, 1),
        (1e39, None),
    ],
    "stats": [
        StepStats.empty(5), StepStats.empty(4, dtype=torch.float64), (1, 2, 3), "all",
        tuple(StepStats.empty(4)),
        StepStats.empty(4)._replace(gamma=torch._neg_view(torch.ones(4))),
        StepStats.empty(4)._replace(gamma=torch.ones(4, requires_grad=True)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_it_leaves_everything_else_alone(name: str) -> None:
    """It says so, and neither state nor noise has moved."""
    for value in NOT_PLAIN[name]:
        x, noise = normals(4, 10), Noise(5)
        assert not taken({"x": x, "noise": noise} | {name: value}), value
        assert_same_bits(x, normals(4, 10))
        assert noise.step == 0


def test_it_leaves_noise_that_is_used_up_alone() -> None:
    noise = Noise(5, step=2**48 - 1)
    assert taken({"noise": noise})
    assert not taken({"noise": noise})
    assert noise.step == 2**48


def test_it_leaves_a_gradient_inside_the_state_alone() -> None:
    memory = normals(50)
    x, shifted = memory[:40].view(4, 10), memory[10:].view(4, 10)
    assert not taken({"x": x, "grad": shifted})
    assert taken({"x": x, "grad": x})


def test_it_leaves_inference_tensors_alone() -> None:
    with torch.inference_mode():
        x, stats = normals(4, 10), StepStats.empty(4)
    assert not taken({"x": x})
    assert not taken({"stats": stats})
    noise = Noise(5)
    with pytest.raises(GradientError, match=r"stats\.grad_norm is an inference tensor"):
        langevin_step_(normals(4, 10), normals(4, 10), noise=noise, **(LEGAL | {"stats": stats}))
    assert noise.step == 0


def test_threads_do_not_share_a_position() -> None:
    """Plain steps read and advance the noise at once; a switch of threads falls in between."""
    noise, seen = Noise(5), set()
    grad = torch.zeros(16, 1000)

    def steps() -> None:
        for _ in range(50):
            x = torch.zeros(16, 1000)
            langevin_step_(x, grad, drift=0.1, diffusion=1.0, noise=noise)
            seen.add(x[0, 0].item())

    threads = [Thread(target=steps) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert noise.step == 200
    assert len(seen) == 200
