"""The kernels' own exp, tanh, log and softplus: error, limits, and equal bits everywhere."""

from __future__ import annotations

import math

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
    "log": mpmath.log,
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
}
ULPS = {"exp": 1.1, "tanh": 2.6, "log": 1.2, "softplus": 2.0}
"""The largest of all float32 are 1.02, 2.56, 0.96 and 1.73; log has 1.1 in float64."""
WIDE = {
    "exp": torch.exp, "tanh": torch.tanh, "log": torch.log,
    "softplus": torch.nn.Softplus(threshold=1000),
}  # fmt: skip
KINDS = [(name, torch.float32) for name in ULPS]
KINDS += [(name, torch.float64) for name in ("exp", "tanh", "log")]
LIMITS = {
    "exp": [(-INF, 0.0), (INF, INF), (0.0, 1.0), (-0.0, 1.0), (-1e30, 0.0), (1e30, INF)],
    "tanh": [(-INF, -1.0), (INF, 1.0), (0.0, 0.0), (-0.0, -0.0), (-1e30, -1.0), (1e-38, 1e-38)],
    "log": [(1.0, 0.0), *((x, NAN) for x in (0.0, -0.0, -1e-38, -1.0, -1e30, -INF, INF))],
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


def inputs(name: str, dtype: torch.dtype) -> Tensor:
    """`points`; of a logarithm sizes of all normal numbers, those about 1, and both ends."""
    x = points(dtype)
    if name != "log":
        return x
    info = torch.finfo(dtype)
    span = math.log2(info.max)
    about = 1 + torch.arange(-2000, 2000, dtype=torch.float64) * info.eps / 2
    ends = [1.0, info.tiny, info.tiny * (1 + info.eps), info.max, info.max / 2]
    ends += [0.7067054509229048, 0.5**0.5, 2**0.5, 1 - info.eps / 2, 1 + info.eps, 2.0, 0.5]
    sizes = torch.exp2(torch.linspace(2 - span, span, 10_000, dtype=torch.float64)[1:-1])
    parts = [torch.tensor(ends, dtype=torch.float64), about, sizes, x[(x > 0) & (x < 1e3)].double()]
    return torch.cat(parts).to(dtype).clamp(min=info.tiny)


def ulps(got: Tensor, want: Tensor) -> Tensor:
    """The distance of numbers of a dtype to float64 ones in units of the last place."""
    info = torch.finfo(got.dtype)
    exponent = torch.frexp(want.abs().clamp(min=info.tiny))[1] - 1
    unit = torch.exp2(exponent.double()) * info.eps
    return (got.double() - want).abs() / unit


@pytest.mark.parametrize("name", EXACT)
def test_float32_against_float64(name: str, isa: str) -> None:
    x = inputs(name, torch.float32)
    want = WIDE[name](x.double())
    inside = want < torch.finfo(torch.float32).max
    worst = ulps(native.elementary(name, x), want)[inside].max().item()
    assert worst <= ULPS[name]
    assert native.elementary(name, x)[~inside].isinf().all()


@pytest.mark.parametrize("name", ["exp", "tanh", "log"])
def test_float64_against_many_digits(name: str) -> None:
    """The difference is taken in 40 digits: float64 would round it away."""
    x = inputs(name, torch.float64)
    x = torch.cat([x[:20], x[20::7] if name == "log" else x[20::23]])
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
    got = native.elementary(name, x.contiguous())
    assert torch.equal(got.isnan(), want.isnan())
    assert_same_bits(got[~got.isnan()], want[~want.isnan()])
    wrong = torch.tensor([NAN, 1.0, NAN, 3.0, 0.5], dtype=dtype)
    assert native.elementary(name, wrong).isnan().tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_bits_are_those_of_every_instruction_set(name: str, dtype: torch.dtype) -> None:
    x = inputs(name, dtype)
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
