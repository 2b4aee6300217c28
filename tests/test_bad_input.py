"""Every kind of bad input has its typed error, which names the value and changes nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from langevin_ext import (
    AniLA,
    EnergyGradient,
    Langevin,
    Noise,
    StepStats,
    langevin_step,
    langevin_step_,
    sample,
)
from langevin_ext._check import check_count
from langevin_ext.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    EnergyError,
    GradientError,
    LangevinError,
    NoiseError,
    NonFiniteError,
    ShapeError,
    StepSizeError,
)

from .conftest import bits, normals, places

NAN, INF = math.nan, math.inf


def _overlapping() -> Tensor:
    return torch.zeros(9).unfold(0, 5, 1)


# ---- one step: the argument, the value, the error, a part of its message ------------------------

STEP: list[tuple[str, Any, type[LangevinError], str]] = [
    ("x", [[0.0]], DtypeError, "x is a list"),
    ("x", torch.zeros(5, 3, dtype=torch.int64), DtypeError, "torch.int64"),
    ("x", torch.zeros(5, 3, dtype=torch.bool), DtypeError, "torch.bool"),
    ("x", torch.zeros(5, 3, dtype=torch.complex64), DtypeError, "torch.complex64"),
    ("x", torch.zeros(5, 3, dtype=torch.bfloat16), DtypeError, "variance 1.40"),
    ("x", torch.zeros(5, 3, dtype=torch.float16), DtypeError, "torch.float16"),
    ("x", torch.zeros(5, 3).to_sparse(), DtypeError, "torch.sparse_coo"),
    ("x", torch.zeros(()), ShapeError, "0-dimensional"),
    ("x", torch.zeros(5, 3, device="meta"), DeviceError, "meta"),
    ("x", torch.zeros(5, 1).expand(5, 3), ShapeError, "expanded"),
    ("x", torch.zeros(1, 3).expand(5, 3), ShapeError, "expanded"),
    ("grad", None, DtypeError, "grad is a NoneType"),
    ("grad", torch.zeros(3, 5), ShapeError, r"\(3, 5\)"),
    ("grad", torch.zeros(5), ShapeError, r"\(5,\)"),
    ("grad", torch.zeros(5, 3, dtype=torch.float64), DtypeError, "torch.float64"),
    ("grad", torch.zeros(5, 3, dtype=torch.int32), DtypeError, "torch.int32"),
    ("grad", torch.zeros(5, 3, device="meta"), DeviceError, "meta"),
    ("grad", torch.zeros(5, 3).to_sparse(), DtypeError, "torch.sparse_coo"),
    *(
        (name, value, StepSizeError, f"{name}={re.escape(repr(value))}")
        for name in ("drift", "diffusion", "max_grad_norm")
        for value in (-0.1, NAN, -INF, True, "0.1", 1j, [0.1])
    ),
    ("drift", 0.0, StepSizeError, "drift=0.0: give a finite number > 0"),
    ("drift", INF, StepSizeError, "drift=inf"),
    ("drift", None, StepSizeError, "drift=None"),
    ("drift", 10**400, StepSizeError, "drift=1000"),
    ("diffusion", INF, StepSizeError, "diffusion=inf: give a finite number >= 0"),
    ("max_grad_norm", 0.0, StepSizeError, "max_grad_norm=0.0: give a number > 0"),
    *(
        row
        for name in ("drift", "diffusion", "max_grad_norm")
        for row in (
            (name, torch.ones(4), ShapeError, rf"{name} has shape \(4,\).*\(5,\)"),
            (name, torch.ones(5, 1), ShapeError, rf"{name} has shape \(5, 1\)"),
            (name, torch.ones(5, dtype=torch.int64), DtypeError, f"{name} is torch.int64"),
            (name, torch.ones(5, device="meta"), DeviceError, f"{name} is on meta"),
        )
    ),
    *(
        (name, value, StepSizeError, re.escape(f"{name}={value!r}: in float32"))
        for name in ("drift", "diffusion", "max_grad_norm")
        for value in (1e39, 1e-50)
    ),
    ("noise", None, NoiseError, "noise=None"),
    ("noise", 3, NoiseError, "noise=3"),
    ("noise", Noise(1, first_chain=2**32 - 4), NoiseError, r"first_chain=4294967292 with 5 chains"),
    ("per", "row", ArgumentError, "per='row'"),
    ("per", None, ArgumentError, "per=None"),
    ("noise_power", 0.3, ArgumentError, "noise_power=0.3"),
    ("noise_power", "1", ArgumentError, "noise_power='1'"),
    ("noise_power", torch.tensor([0.5, 1.0]), ArgumentError, "noise_power=tensor"),
    *(
        ("reference_precision", value, ArgumentError, f"reference_precision={value!r}")
        for value in (-1.0, NAN, INF, None, "1", True)
    ),
    *(
        ("clamp", value, ArgumentError, f"clamp={re.escape(repr(value))}")
        for value in ((1, -1), (1, 1), (NAN, 1), (0, NAN), (0,), (0, 1, 2), 1, ("0", "1"), "01")
    ),
    ("clamp", (torch.zeros(3), None), ArgumentError, "clamp="),
    ("stats", StepStats.empty(4), ShapeError, r"stats.grad_norm has shape \(4,\)"),
    ("stats", StepStats.empty(5, dtype=torch.float64), DtypeError, "torch.float64"),
    ("stats", StepStats.empty(5, "meta"), DeviceError, "stats.grad_norm is on meta"),
    ("stats", StepStats(*(t[::2] for t in StepStats.empty(10))), ShapeError, "stats.grad_norm"),
    ("stats", StepStats.empty(5)[:2], ArgumentError, "stats"),
    ("stats", "all", ArgumentError, "stats='all'"),
    ("backend", "cuda", ArgumentError, "backend='cuda'"),
    ("backend", None, ArgumentError, "backend=None"),
]


@pytest.mark.parametrize("step", [langevin_step_, langevin_step])
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    STEP,
    ids=[f"{row[0]}={row[1]!r}"[:48].splitlines()[0] for row in STEP],
)
def test_a_step_refuses(
    name: str,
    value: Any,
    error: type[LangevinError],
    message: str,
    step: Callable[..., Tensor],
) -> None:
    x, noise = normals(5, 3), Noise(1, step=7)
    before = x.clone()
    legal = {"x": x, "grad": normals(5, 3), "drift": 0.1, "diffusion": 1.0, "noise": noise}
    with pytest.raises(error, match=message):
        step(**(legal | {name: value}))
    assert torch.equal(bits(x), bits(before))
    assert places(noise) == (1, 0, 0, 7)


def test_a_step_refuses_a_state_whose_elements_overlap() -> None:
    x = _overlapping()
    with pytest.raises(ShapeError):
        langevin_step_(x, torch.ones(5, 5), drift=0.1, diffusion=1.0, noise=Noise(1))
    assert not x.any()


# ---- everything else: a call, the error, a part of its message ----------------------------------


ZEROS, RULE = torch.zeros(5, 3), Langevin(0.1)


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1).square().sum(1)


class Elsewhere(nn.Module):
    """An energy whose parameters are on another device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        return quadratic(x * self.weight)


def draw(
    x0: Any = ZEROS, rule: Any = RULE, steps: Any = 2, energy: Any = quadratic, **options: Any
) -> Any:
    return sample(energy, x0, rule, steps, **options)


def _bad_chains() -> Tensor:
    x = torch.zeros(5, 3)
    x[1, 2], x[4, 0] = NAN, INF
    return x


BAD_SIZES = 0.0, -0.1, NAN, INF, -INF, True, 1j, "0.1", None, torch.zeros(5), torch.tensor(NAN)

CALLS: dict[str, tuple[Callable[[], Any], type[LangevinError], str]] = {
    **{
        f"Langevin({value!r})": (
            lambda value=value: Langevin(value),
            StepSizeError,
            "step_size",
        )
        for value in BAD_SIZES
    },
    **{
        f"AniLA({value!r})": (lambda value=value: AniLA(value), StepSizeError, "threshold")
        for value in BAD_SIZES
        if not (isinstance(value, float) and value == INF)
    },
    **{
        f"temperature={value!r}": (
            lambda value=value: Langevin(0.1, temperature=value),
            StepSizeError,
            "temperature",
        )
        for value in BAD_SIZES
    },
    **{
        f"noise_std={value!r}": (
            lambda value=value: AniLA(1.0, noise_std=value),
            ArgumentError,
            "noise_std",
        )
        for value in (-0.1, NAN, INF, True, False, "0", 1j)
    },
    "integers for step sizes": (
        lambda: Langevin(torch.ones(5, dtype=torch.int64)),
        StepSizeError,
        "torch.int64",
    ),
    "a threshold that is a schedule": (
        lambda: AniLA(lambda step: 1.0),  # type: ignore[arg-type, return-value]
        ArgumentError,
        "constant during a call",
    ),
    "AniLA per row": (lambda: AniLA(1.0, per="row"), ArgumentError, "per='row'"),  # type: ignore[arg-type]
    "AniLA power 2": (lambda: AniLA(1.0, noise_power=2.0), ArgumentError, "noise_power=2.0"),
    "reference precision": (
        lambda: Langevin(0.1, reference_precision=-1.0),
        StepSizeError,
        "reference_precision=-1.0",
    ),
    "clamp": (lambda: Langevin(0.1, clamp=(1, 0)), ArgumentError, r"clamp=\(1, 0\)"),
    "eta": (lambda: Langevin.from_eta(-1.0), StepSizeError, "eta=-1.0"),
    "delta": (lambda: Langevin.from_delta(NAN), StepSizeError, "delta=nan"),
    "drift": (lambda: Langevin.from_coefficients(0.0, 1.0), StepSizeError, "drift=0.0"),
    "diffusion": (lambda: Langevin.from_coefficients(1.0, -1.0), StepSizeError, "diffusion=-1.0"),
    "a state without a seed": (
        lambda: Noise(0).load_state_dict({"stream": 0, "first_chain": 0, "step": 0}),
        ArgumentError,
        "seed",
    ),
    "a state with a seed of None": (
        lambda: Noise(0).load_state_dict({"seed": None, "stream": 0, "first_chain": 0, "step": 0}),
        NoiseError,
        "seed=None",
    ),
    "a state with a generator for its seed": (
        lambda: Noise(0).load_state_dict(Noise(0).state_dict() | {"seed": torch.Generator()}),  # type: ignore[dict-item]
        NoiseError,
        "seed=",
    ),
    "a purpose beyond the low bits": (lambda: Noise(0).purpose(16), NoiseError, "16"),
    "a meta device for noise": (lambda: Noise(0, device="meta"), DeviceError, "meta"),
    "a shape of halves": (lambda: Noise(0).normal((3, 2.5)), ShapeError, "2.5"),  # type: ignore[arg-type]
    "a shape in letters": (lambda: Noise(0).normal("ab"), ShapeError, "ab"),  # type: ignore[arg-type]
    "a dtype by name": (lambda: Noise(0).normal((2,), dtype="float32"), DtypeError, "float32"),  # type: ignore[arg-type]
    "integer noise": (
        lambda: Noise(0).normal((2, 3), dtype=torch.int32),
        DtypeError,
        "torch.int32",
    ),
    "steps -1": (lambda: draw(steps=-1), ArgumentError, "steps=-1"),
    "steps 1.5": (lambda: draw(steps=1.5), ArgumentError, "steps=1.5"),
    "steps True": (lambda: draw(steps=True), ArgumentError, "steps=True"),
    "burn_in -1": (lambda: draw(burn_in=-1), ArgumentError, "burn_in=-1"),
    "keep_every 0": (lambda: draw(keep_every=0), ArgumentError, "keep_every=0"),
    "keep_every 0.5": (lambda: draw(keep_every=0.5), ArgumentError, "keep_every=0.5"),
    "check_every -1": (lambda: draw(check_every=-1), ArgumentError, "check_every=-1"),
    "check_every True": (lambda: draw(check_every=True), ArgumentError, "check_every=True"),
    "on_nonfinite": (lambda: draw(on_nonfinite="ignore"), ArgumentError, "on_nonfinite='ignore'"),
    "autocast": (lambda: draw(autocast=torch.float32), ArgumentError, "autocast=torch.float32"),
    "backend": (lambda: draw(backend="fast"), ArgumentError, "backend='fast'"),
    "rule": (lambda: draw(rule=0.1), ArgumentError, "rule=0.1"),
    "channels_last of vectors": (lambda: draw(channels_last=True), ArgumentError, "channels_last"),
    "energy": (lambda: draw(energy=3), EnergyError, "energy is a int"),
    "EnergyGradient": (lambda: EnergyGradient(None), EnergyError, "NoneType"),  # type: ignore[arg-type]
    "energy elsewhere": (lambda: draw(energy=Elsewhere()), DeviceError, "meta"),
    "x0 a list": (lambda: draw([[0.0]]), DtypeError, "x0 is a list"),
    "x0 integers": (lambda: draw(torch.zeros(5, 3, dtype=torch.int64)), DtypeError, "torch.int64"),
    "x0 16-bit": (lambda: draw(torch.zeros(5, 3).bfloat16()), DtypeError, "x0 is torch.bfloat16"),
    "x0 0-dimensional": (lambda: draw(torch.zeros(())), ShapeError, "x0 is 0-dimensional"),
    "x0 meta": (lambda: draw(torch.zeros(5, 3, device="meta")), DeviceError, "x0 is a meta"),
    "x0 not finite": (lambda: draw(_bad_chains()), NonFiniteError, r"2 chains \(1, 4\)"),
    "seed 1.5": (lambda: draw(seed=1.5), NoiseError, "seed=1.5"),
    "seed -1": (lambda: draw(seed=-1), NoiseError, "seed=-1"),
    "seed 2**64": (lambda: draw(seed=2**64), NoiseError, f"seed={2**64}"),
    "seed True": (lambda: draw(seed=True), NoiseError, "seed=True"),
    "stream with a purpose": (lambda: draw(seed=Noise(1, stream=3)), ArgumentError, "stream=3"),
    "chains beyond 2**32": (
        lambda: draw(seed=Noise(1, first_chain=2**32 - 4)),
        NoiseError,
        "first_chain=4294967292",
    ),
    "a seed for a state": (lambda: draw(draw().state, seed=1), ArgumentError, "seed together"),
    "step sizes for others": (lambda: draw(rule=Langevin(torch.ones(4))), ShapeError, r"\(4,\)"),
    "thresholds for others": (lambda: draw(rule=AniLA(torch.ones(4))), ShapeError, r"\(4,\)"),
    "a schedule of NaN": (
        lambda: draw(rule=Langevin(lambda step: NAN)),
        StepSizeError,
        "step_size=nan",
    ),
    "a detached energy": (
        lambda: draw(energy=lambda x: quadratic(x.detach())),
        GradientError,
        "does not depend on its input",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_refuses(case: str) -> None:
    call, error, message = CALLS[case]
    with pytest.raises(error, match=message):
        call()


def test_noise_that_runs_out_is_refused_before_the_first_step() -> None:
    """A run that needs more positions than are left does not spend hours first."""
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(x)
        return quadratic(x)

    with pytest.raises(NoiseError, match=f"step={2**48 - 5} and 10 more"):
        draw(energy=counted, steps=10, seed=Noise(1, step=2**48 - 5))
    assert not calls


def test_a_count_is_an_int_of_anyones() -> None:
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        assert type(check_count("n", value, 3)) is int
    for value in (2, True, np.bool_(True), torch.tensor(True), 3.0, np.float64(3), "3", None, [3]):
        with pytest.raises(ArgumentError, match=f"n={re.escape(repr(value))}: give an int >= 3"):
            check_count("n", value, 3)
