"""ESS, R-hat and errors: ArviZ's numbers, known answers, and every coordinate for itself."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_ext import _diagnostics, diagnostics
from langevin_ext.diagnostics import Summary
from langevin_ext.errors import ArgumentError, DeviceError, DtypeError, LangevinError, ShapeError

from .conftest import assert_same_bits, normals

stats = pytest.importorskip("scipy.stats")
with warnings.catch_warnings():
    # Once a day it speaks of its next version.
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
    try:
        import arviz
    except ImportError:
        arviz = None

NAN, INF = math.nan, math.inf
F64 = torch.float64


def autoregression(draws: int, chains: int, *rest: int, a: float, seed: int = 0) -> Tensor:
    """Stationary AR(1) of N(0, 1): x_t = a x_t-1 + sqrt(1 - a^2) xi."""
    x = normals(draws, chains, *rest, seed=seed, dtype=F64)
    for t in range(1, draws):
        x[t] = a * x[t - 1] + math.sqrt(1 - a * a) * x[t]
    return x


def changed(x: Tensor, *at: Any, to: float) -> Tensor:
    x[at] = to
    return x


FOUR = torch.arange(4, dtype=F64)
CASES = {
    "independent": normals(200, 4, dtype=F64),
    **{f"AR(1) {a}": autoregression(300, 4, a=a) for a in (0.3, 0.9, 0.99, -0.3, -0.9)},
    "odd": autoregression(201, 3, a=0.6),
    "at two values": (autoregression(300, 4, a=0.5) > 0.4).double() * 2 - 1,
    "at two values, both as often": torch.eye(2, dtype=F64).repeat(50, 1)[:, :1].repeat(1, 4),
    "at few values": autoregression(250, 4, a=0.8).round(),
    "odd, at few values": autoregression(97, 5, a=0.8).round(),
    "rejections": autoregression(250, 4, a=0.5)[torch.arange(250) // 4 * 4],
    "one chain stuck": changed(normals(100, 4, dtype=F64), slice(None), 2, to=0.7),
    "all stuck, apart": FOUR.repeat(50, 1),
    "different means": normals(150, 4, dtype=F64) + FOUR,
    "different scales": normals(150, 4, dtype=F64) * (1 + FOUR),
    "a trend": normals(150, 4, dtype=F64) + torch.linspace(0, 3, 150, dtype=F64)[:, None],
    "far from 0": normals(150, 4, dtype=F64) + 1e6,
    "heavy tails": normals(200, 4, dtype=F64) / normals(200, 4, seed=1),
    "infinite": changed(changed(normals(90, 4, dtype=F64), 30, 1, to=INF), 7, 2, to=-INF),
    "one chain": autoregression(200, 1, a=0.5),
    "many chains": autoregression(30, 500, a=0.5),
    **{f"{n} draws": autoregression(n, 3, a=0.5) for n in range(4, 13)},
    "4 draws of 1 chain": autoregression(4, 1, a=0.5),
    "a sum that ends in a negative one of a positive pair": normals(12, 1, seed=147, dtype=F64),
}

ESTIMATES: list[tuple[str, dict[str, Any]]] = [
    *(("ess", {"kind": kind}) for kind in ("bulk", "tail", "mean", "sd")),
    *(("ess", {"kind": "quantile", "prob": p}) for p in (0.05, 0.37, 0.9)),
    ("ess", {"kind": "tail", "prob": 0.2}),
    ("rhat", {}),
    *(("mcse", {"kind": kind}) for kind in ("mean", "sd")),
    *(("mcse", {"kind": "quantile", "prob": p}) for p in (0.05, 0.37, 0.9)),
]


def estimate(name: str, arguments: dict[str, Any], x: Tensor) -> Tensor:
    found: Tensor = getattr(diagnostics, name)(x, **arguments)
    return found


def by_arviz(x: Tensor, name: str, kind: str | None = None, prob: float | None = None) -> Tensor:
    """ArviZ's number for (draws, chains)."""
    arguments = {"method": kind, "prob": prob}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    with np.errstate(all="ignore"):
        value = getattr(arviz, name)(x.cpu().numpy().T, **arguments)
    return torch.tensor(float(value), dtype=F64, device=x.device)


# ---- ArviZ --------------------------------------------------------------------------------------


@pytest.mark.skipif(arviz is None, reason="ArviZ is not installed")
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_arvizs(case: str) -> None:
    x = CASES[case]
    for name, arguments in ESTIMATES:
        if name == "rhat" and x.shape[1] == 1:
            continue  # below
        got, want = estimate(name, arguments, x), by_arviz(x, name, **arguments)
        message = f"{name} {arguments}: {got} for {want}"
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0, equal_nan=True, msg=message)


def test_what_never_moved_says_nothing() -> None:
    """ArviZ says that its ESS is the number of draws."""
    x = torch.stack([torch.full((50, 4), 0.3, dtype=F64), normals(50, 4, dtype=F64)], 2)
    for name, arguments in ESTIMATES:
        nothing, something = estimate(name, arguments, x).tolist()
        assert math.isnan(nothing), (name, arguments)
        assert math.isfinite(something), (name, arguments)
    assert diagnostics.autocorrelation_time(x).isnan().tolist() == [True, False]
    table = diagnostics.summary(x)
    assert (float(table.mean[0]), float(table.sd[0])) == (pytest.approx(0.3, rel=1e-15), 0)
    assert all(math.isnan(value[0]) for value in table[2:])


@pytest.mark.parametrize("draws", [60, 61])
def test_one_chain_has_the_rhat_of_its_halves(draws: int) -> None:
    """By the definition, in numpy; a chain whose halves differ in scale alone."""
    x = normals(draws, 1, dtype=F64)
    x[draws // 2 :] *= 3
    halves = np.stack([x[: draws // 2, 0].cpu().numpy(), x[-(draws // 2) :, 0].cpu().numpy()])

    def of(values: np.ndarray) -> float:
        ranks = stats.rankdata(values).reshape(values.shape)
        z = stats.norm.ppf((ranks - 3 / 8) / (values.size + 1 / 4))
        n, within = z.shape[1], z.var(axis=1, ddof=1).mean()
        return math.sqrt(((n - 1) / n * within + z.mean(axis=1).var(ddof=1)) / within)

    bulk, folded = of(halves), of(abs(halves - np.median(halves)))
    assert folded > 1.1 > bulk
    assert float(diagnostics.rhat(x)) == pytest.approx(folded, rel=1e-12)


def test_a_quantile_that_falls_on_draws_is_exact() -> None:
    """In ArviZ it may fall just below, and the draws at that place no longer count as reached."""
    to_100 = torch.arange(101, dtype=F64)[None]
    for p in range(1, 100):  # 100 x 0.07 is not 7
        assert _diagnostics.quantile(to_100, p / 100).tolist() == [p]
    thirds = torch.full((1, 188), 1 / 3, dtype=F64)
    assert all(float(_diagnostics.quantile(thirds, p / 100)) == 1 / 3 for p in range(1, 100))
    assert float(_diagnostics.quantile(to_100[:, :21], 0.37)) == pytest.approx(7.4, rel=1e-15)


def test_units_do_not_matter() -> None:
    """Powers of two, exactly. ArviZ takes what varies by less than 1e-15 for constant."""
    x = autoregression(100, 4, a=0.5)
    for name, arguments in ESTIMATES:
        scale = 2.0**-60 if name == "mcse" else 1.0
        want = scale * estimate(name, arguments, x)
        assert_same_bits(estimate(name, arguments, 2.0**-60 * x), want, (name, arguments))


# ---- one coordinate at a time -------------------------------------------------------------------


def test_coordinates_do_not_know_of_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any shape, in memory of any order, in chunks of any size, beside one with NaN."""
    x = torch.stack([CASES["odd"], CASES["odd"].round(), 1e3 * CASES["odd"].flip(0)] * 2, 2)
    x[17, 1, 3] = NAN
    odd = x.view(201, 3, 3, 2).transpose(2, 3)
    assert not odd.is_contiguous()
    for name, arguments in ESTIMATES:
        got = estimate(name, arguments, odd)
        assert (got.shape, got.dtype, got.device) == ((2, 3), F64, x.device)
        for size in (1, 2 * 201 * 3):  # coordinate by coordinate; two at a time
            monkeypatch.setattr(_diagnostics, "CHUNK_ON_CPU", size)
            monkeypatch.setattr(_diagnostics, "CHUNK_ELSEWHERE", size)
            chunked = estimate(name, arguments, odd)
            torch.testing.assert_close(chunked, got, rtol=1e-12, atol=0, equal_nan=True)
        monkeypatch.undo()
        for i in range(6):
            alone = estimate(name, arguments, x[..., i])
            assert alone.isnan() == (i == 3), (name, arguments)
            place = got[i % 2, i // 2]
            torch.testing.assert_close(place, alone, rtol=1e-12, atol=0, equal_nan=True)


def test_all_is_computed_in_float64() -> None:
    """Of float32 as of the same numbers in float64, also of one with a graph behind it."""
    x = (1000 + autoregression(100, 4, 3, a=0.5)).float().requires_grad_()
    for name, arguments in ESTIMATES:
        want = estimate(name, arguments, x.detach().double())
        got = estimate(name, arguments, x)
        assert_same_bits(got, want, (name, arguments))
        assert not got.requires_grad


def test_threads_sort_alike() -> None:
    x = autoregression(50, 4, 9, a=0.5)
    want = diagnostics.summary(x)
    torch.set_num_threads(3)
    got = diagnostics.summary(x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_no_coordinates_have_no_numbers() -> None:
    x = torch.zeros(10, 4, 0, 3)
    assert diagnostics.ess(x).shape == (0, 3)
    assert diagnostics.summary(x).rhat.shape == (0, 3)
    assert str(diagnostics.summary(x)).split() == list(Summary._fields)
    assert diagnostics.autocorrelation(x, 2).shape == (3, 4, 0, 3)


# ---- known answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "sd", "quantile"])
def test_errors_are_as_large_as_they_are_said_to_be(kind: str) -> None:
    """Squares of errors over their mcse, summed over coordinates: chi^2, within a rate of 1e-6."""
    coordinates = 1000
    x = autoregression(1200, 2, coordinates, a=0.6, seed=3)
    flat = x.flatten(0, 1)
    error, prob = {
        "mean": (flat.mean(0), None),
        "sd": (flat.std(0) - 1, None),
        "quantile": (flat.quantile(0.3, 0) - stats.norm.ppf(0.3), 0.3),
    }[kind]
    scores = error / estimate("mcse", {"kind": kind, "prob": prob}, x)
    low, high = stats.chi2.ppf([0.5e-6, 1 - 0.5e-6], coordinates)
    assert low < float(scores.square().sum()) < high


@pytest.mark.parametrize("a", [-0.5, 0.0, 0.7])
def test_autocorrelation_time_of_an_autoregression(a: float) -> None:
    """(1 + a) / (1 - a), within 5 % of it that cutting the sum may cost and 5 standard errors."""
    tau = diagnostics.autocorrelation_time(autoregression(2000, 2, 100, a=a))
    want, error = (1 + a) / (1 - a), float(tau.std()) / 10
    assert abs(float(tau.mean()) - want) < 0.05 * want + 5 * error
    assert error < 0.02 * want


def test_autocorrelation_is_its_definition() -> None:
    x = autoregression(23, 3, 2, a=0.7)
    x[:, 1, 1] = 0.1
    x[4, 2, 0] = NAN
    centred = x - x.mean(0)
    sums = [(centred[: 23 - t] * centred[t:]).sum(0) / (23 - t) for t in range(23)]
    want = torch.stack(sums) / sums[0]
    want[:, 1, 1] = NAN  # a constant has none
    for lags in (None, 0, 1, 5, 22):
        got = diagnostics.autocorrelation(x, lags)
        expected = want if lags is None else want[: lags + 1]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12, equal_nan=True)


def test_lags_are_numpys_ints_too() -> None:
    x = torch.randn(10, 2)
    assert torch.equal(
        diagnostics.autocorrelation(x, np.int64(3)), diagnostics.autocorrelation(x, 3)
    )


def test_rhat_of_many_short_chains_of_one_law() -> None:
    """Exactly, from the variance of a half-chain's mean; about sqrt(1 + 2 (tau - 1) / draws)."""
    a, n = 0.5, 50
    between = (n + 2 * sum((n - t) * a**t for t in range(1, n))) / n**2
    within = (1 - between) * n / (n - 1)
    want = between / within + (n - 1) / n
    assert want == pytest.approx(1 + ((1 + a) / (1 - a) - 1) / n, abs=0.002)
    got = diagnostics.rhat(autoregression(2 * n, 500, 40, a=a)).square()
    assert abs(float(got.mean()) - want) < 5 * float(got.std()) / math.sqrt(40) < 0.002


def test_acceptance_rate_counts_moves() -> None:
    x = torch.zeros(5, 4, 2, 2)
    x[2:, 0, 1, 0] = 1.0  # one move, of one coordinate
    x[:, 1] = torch.arange(5.0)[:, None, None]
    x[3, 3, 0, 0] = NAN
    assert diagnostics.acceptance_rate(x)[:3].tolist() == [0.25, 1.0, 0.0]
    assert diagnostics.acceptance_rate(x)[3].isnan()
    assert diagnostics.acceptance_rate(x[..., 1, 0])[:3].tolist() == [0.25, 1.0, 0.0]


def test_swap_rates_count_exchanges() -> None:
    """Two pairs at once, none, then a replica that passes two neighbours in a step."""
    levels = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2], [1, 0, 3, 2], [2, 0, 3, 1], [2, 1, 3, 0]])
    assert diagnostics.swap_rates(levels).tolist() == [0.5, 0.25, 0.25]
    assert diagnostics.swap_rates(levels.to(torch.uint8)).tolist() == [0.5, 0.25, 0.25]
    passing = torch.tensor([[0, 1, 2], [2, 0, 1]])  # 0 with 1, then 1 with 2
    assert diagnostics.swap_rates(passing).tolist() == [1.0, 1.0]


def test_weights_ess_is_kishs() -> None:
    assert float(diagnostics.weights_ess(torch.tensor([1.0, 2.0, 3.0]))) == pytest.approx(36 / 14)
    assert float(diagnostics.weights_ess(torch.full((7,), 1e-30))) == pytest.approx(7, rel=1e-15)
    x = normals(20, 5, 3, dtype=F64).abs()
    want = x.sum((0, 1)) ** 2 / (x**2).sum((0, 1))
    torch.testing.assert_close(diagnostics.weights_ess(x), want)
    torch.testing.assert_close(diagnostics.weights_ess(1e-200 * x), want)
    x[:, :, 0] = 0
    x[0, 0, 1] = INF
    x[3, 2, 2] = NAN
    assert diagnostics.weights_ess(x).isnan().all()
    assert diagnostics.weights_ess(x[..., 0] + torch.eye(20, 5)[:, :1]) == 5


@pytest.mark.parametrize("largest", [1.0, 30.0, 1e3, 1e6])
def test_the_beta_distributions_quantile(largest: float) -> None:
    """scipy's. The index of an order statistic is a share of at most 1e7 draws or so."""
    generator = torch.Generator().manual_seed(0)
    a, b, prob = torch.rand(3, 400, dtype=F64, generator=generator, device="cpu")
    a, b = 1 + largest * a, 1 + largest * b**4
    got = _diagnostics.beta_quantile(prob, a, b).numpy()
    np.testing.assert_allclose(got, stats.beta.ppf(prob, a, b), rtol=1e-9)


# ---- the summary --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["odd", "AR(1) 0.9", "one chain"])
def test_the_summary_is_made_of_the_functions(case: str) -> None:
    x = CASES[case]
    got = diagnostics.summary(x)
    assert_same_bits(got.rhat, diagnostics.rhat(x))
    assert_same_bits(got.mcse, diagnostics.mcse(x))
    assert_same_bits(got.ess_bulk, diagnostics.ess(x))
    assert_same_bits(got.ess_tail, diagnostics.ess(x, "tail"))
    torch.testing.assert_close(got.mean, x.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(got.sd, x.std(), rtol=1e-12, atol=0)


def test_the_summary_is_a_table() -> None:
    columns = [[0.01234567, 100.5, -3.0], [1.0, 2.5e-5, 0], [0.001, 0.2, NAN]]
    columns += [[12345.6, 80.2, NAN], [400, 55, NAN], [1.0004, 1.25, NAN]]
    made = Summary(*(torch.tensor(c, dtype=F64)[:, None] for c in columns))
    assert str(made) == (
        "            mean       sd   mcse  ess_bulk  ess_tail   rhat\n"
        "x[0, 0]  0.01235        1  0.001    12,346       400  1.000\n"
        "x[1, 0]    100.5  2.5e-05    0.2        80        55  1.250\n"
        "x[2, 0]       -3        0    nan       nan       nan    nan"
    )
    assert made.table("phi", rows=1).splitlines()[1:] == [
        "phi[0, 0]  0.01235   1  0.001    12,346       400  1.000",
        "... and 2 more; 1 of all are NaN or never moved; largest rhat 1.250 of phi[1, 0],"
        " smallest ess_bulk 80 of phi[1, 0]",
    ]
    single = Summary(*(torch.tensor(c[0], dtype=F64) for c in columns))
    assert str(single).splitlines()[1].startswith("x  0.01235")


# ---- bad input ----------------------------------------------------------------------------------

X = torch.zeros(10, 2)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says that the two are prototypes, or deprecated
    NESTED = torch.nested.nested_tensor([X, X])
    QUANTIZED = torch.quantize_per_tensor(X.cpu(), 0.1, 0, torch.qint8)
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], type[LangevinError], str]] = [
    *(
        (name, (value,), {}, error, message)
        for name in ("ess", "rhat", "mcse", "summary", "autocorrelation_time")
        for value, error, message in (
            (np.zeros((10, 2)), DtypeError, "trajectory is a ndarray"),
            (None, DtypeError, "trajectory is a NoneType"),
            (X.long(), DtypeError, r"torch.int64: .* \.double\(\)"),
            (X.bool(), DtypeError, "torch.bool"),
            (X.to(torch.complex64), DtypeError, "torch.complex64"),
            (X.to_sparse(), DtypeError, "trajectory must be .* layout torch.sparse_coo"),
            (NESTED, DtypeError, "trajectory must be .* nested"),
            (QUANTIZED, DtypeError, "trajectory must be .* quantized"),
            (X.to("meta"), DeviceError, "trajectory is a meta tensor"),
            (X[:, 0], ShapeError, r"\(10,\): give \(draws, chains, ...\); one chain is x\[:, None"),
            (X[:3], ShapeError, r"\(3, 2\), 3 draws .* at least 4 .* keep_every"),
            (X[:, :0], ShapeError, "no chains"),
        )
    ),
    ("ess", (X, "bluk"), {}, ArgumentError, "kind='bluk': give one of 'bulk', 'tail'"),
    ("ess", (X, ["bulk"]), {}, ArgumentError, r"kind=\['bulk'\]"),
    ("ess", (X, "quantile"), {}, ArgumentError, "prob=None: give a probability"),
    ("ess", (X, "mean", 0.5), {}, ArgumentError, "prob=0.5 with kind='mean'"),
    *(
        (name, (X, "quantile", prob), {}, ArgumentError, f"prob={prob!r}: give")
        for name in ("ess", "mcse")
        for prob in (0, 1, -0.1, NAN, True, "0.5")
    ),
    ("ess", (X, "tail", 1.0), {}, ArgumentError, "prob=1.0"),
    ("mcse", (X, "bulk"), {}, ArgumentError, "kind='bulk'"),
    ("mcse", (X, "sd", 0.5), {}, ArgumentError, "prob=0.5 with kind='sd'"),
    ("autocorrelation", (X[:1],), {}, ShapeError, "at least 2"),
    *(
        ("autocorrelation", (X, lags), {}, ArgumentError, f"lags={lags!r}: give an int >= 0")
        for lags in (-1, 2.0, True)
    ),
    ("autocorrelation", (X, 10), {}, ArgumentError, "lags=10: give an int from 0 to 9"),
    ("autocorrelation", (X.to_sparse(),), {}, DtypeError, "torch.sparse_coo"),
    ("acceptance_rate", (X.to("meta"),), {}, DeviceError, "trajectory is a meta"),
    ("acceptance_rate", (X[:1],), {}, ShapeError, "at least 2"),
    ("acceptance_rate", (X.long(),), {}, DtypeError, "torch.int64"),
    ("swap_rates", (X,), {}, DtypeError, "torch.float32"),
    ("swap_rates", ([[0, 1]],), {}, DtypeError, "a list"),
    ("swap_rates", (X.long().to_sparse(),), {}, DtypeError, "levels must be .* torch.sparse_coo"),
    ("swap_rates", (X.long().to("meta"),), {}, DeviceError, "levels is a meta"),
    ("swap_rates", (X[:, 0].long(),), {}, ShapeError, r"\(10,\)"),
    ("swap_rates", (torch.tensor([[0, 1]]),), {}, ShapeError, r"\(1, 2\)"),
    ("swap_rates", (torch.tensor([[0, 1], [1, 1]]),), {}, ArgumentError, r"levels\[1\] is \[1, 1"),
    ("swap_rates", (torch.tensor([[1, 2], [2, 1]]),), {}, ArgumentError, r"levels\[0\] is \[1, 2"),
    ("weights_ess", (X.long(),), {}, DtypeError, "weights is torch.int64"),
    ("weights_ess", (X.to_sparse(),), {}, DtypeError, "weights must be .* torch.sparse_coo"),
    ("weights_ess", (X.to("meta"),), {}, DeviceError, "weights is a meta"),
    ("weights_ess", (torch.tensor(1.0),), {}, ShapeError, r"\(\)"),
    ("weights_ess", (X[:0],), {}, ShapeError, r"\(0, 2\)"),
    ("weights_ess", (X - 1,), {}, ArgumentError, "weights has -1 in it"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "more", "error", "message"), BAD, ids=[f"{b[0]}-{b[4]}" for b in BAD]
)
def test_bad_input_is_named(
    name: str,
    arguments: tuple[Any, ...],
    more: dict[str, Any],
    error: type[LangevinError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        getattr(diagnostics, name)(*arguments, **more)
