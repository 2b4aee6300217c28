"""The kernels' own exp, tanh and softplus: their error, their limits, and equal bits everywhere."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor

from .conftest import ISAS, NO_NATIVE, assert_same_bits, native

pytestmark = pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native backend: {NO_NATIVE}")

INF, NAN = float("inf"), float("nan")
EXACT = {
    "exp": mpmath.exp,
    "tanh": mpmath.tanh,
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
}
ULPS = {"exp": 1.1, "tanh": 2.6, "softplus": 2.0}  # the largest of all float32: 1.02, 2.56, 1.73
WIDE = {"exp": torch.exp, "tanh": torch.tanh, "softplus": torch.nn.Softplus(threshold=1000)}
KINDS = [("exp", torch.float32), ("tanh", torch.float32), ("softplus", torch.float32)]
KINDS += [("exp", torch.float64), ("tanh", torch.float64)]
LIMITS = {
    "exp": [(-INF, 0.0), (INF, INF), (0.0, 1.0), (-0.0, 1.0), (-1e30, 0.0), (1e30, INF)],
    "tanh": [(-INF, -1.0), (INF, 1.0), (0.0, 0.0), (-0.0, -0.0), (-1e30, -1.0), (1e-38, 1e-38)],
    "softplus": [(-INF, 0.0), (INF, INF), (1e30, 1e30), (-1e30, 0.0)],
}


def points(dtype: torch.dtype) -> Tensor:
    """Numbers of every size and both signs, many where a function bends, and ends of ranges."""
    generator = torch.Generator().manual_seed(1)
    real = torch.float64
    span = 760.0 if dtype is torch.float64 else 110.0
    uniform = torch.rand(20_000, generator=generator, dtype=real) * 2 - 1
    size = torch.exp2(torch.rand(20_000, generator=generator, dtype=real) * 40 - 32)
    parts = [uniform * span, uniform, uniform * 20, size, -size]
    halves = (torch.arange(-40, 41, dtype=real) + 0.5) * 0.6931471805599453
    return torch.cat([*parts, halves, halves / 2]).to(dtype)


def ulps(got: Tensor, want: Tensor) -> Tensor:
    """The distance of numbers of a dtype to float64 ones in units of the last place."""
    info = torch.finfo(got.dtype)
    exponent = torch.frexp(want.abs().clamp(min=info.tiny))[1] - 1
    unit = torch.exp2(exponent.double()) * info.eps
    return (got.double() - want).abs() / unit


@pytest.mark.parametrize("name", EXACT)
def test_float32_against_float64(name: str, isa: str) -> None:
    x = points(torch.float32)
    want = WIDE[name](x.double())
    inside = want < torch.finfo(torch.float32).max
    worst = ulps(native.elementary(name, x), want)[inside].max().item()
    assert worst <= ULPS[name]
    assert native.elementary(name, x)[~inside].isinf().all()


@pytest.mark.parametrize("name", ["exp", "tanh"])
def test_float64_against_many_digits(name: str) -> None:
    """The difference is taken in 40 digits: float64 would round it away."""
    x = points(torch.float64)[::23].contiguous()
    got = native.elementary(name, x)
    with mpmath.workdps(40):
        exact = [EXACT[name](mpmath.mpf(v)) for v in x.tolist()]
        for v, ours, want in zip(x.tolist(), got.tolist(), exact, strict=True):
            if want > mpmath.mpf(2) ** 1024:
                assert ours == INF, v
                continue
            unit = mpmath.ldexp(1, max(mpmath.frexp(want)[1] - 53, -1074))
            assert abs(mpmath.mpf(ours) - want) <= ULPS[name] * unit, (name, v)


@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_limits(name: str, dtype: torch.dtype, isa: str) -> None:
    x, want = torch.tensor(LIMITS[name], dtype=dtype).unbind(1)
    assert_same_bits(native.elementary(name, x.contiguous()), want.contiguous())
    wrong = torch.tensor([NAN, 1.0, NAN, -1.0, 0.5], dtype=dtype)
    assert native.elementary(name, wrong).isnan().tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_bits_are_those_of_every_instruction_set(name: str, dtype: torch.dtype) -> None:
    x = points(dtype)
    results = []
    for isa in ISAS:
        native.use_isa(isa)
        results.append(native.elementary(name, x))
        assert_same_bits(native.elementary(name, x[3:20].clone()), results[-1][3:20], isa)
    for isa, result in zip(ISAS, results, strict=True):
        assert_same_bits(result, results[0], isa)


def test_an_unknown_function_is_refused() -> None:
    with pytest.raises(ValueError, match="no softplus"):
        native.elementary("softplus", torch.zeros(1, dtype=torch.float64))
