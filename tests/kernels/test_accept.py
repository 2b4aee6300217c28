"""Accept-or-reject in the kernels: the reference's decisions, and log ratios but for their sums.

Gradients are multiples of 1/8, so norms and all that follows from them are the reference's bits. A
log ratio is from other sums than the reference's: it is within 8 ulp of float64 of what those sums
are made of, see `room_for_roundings`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from langevin_ext._types import AcceptSpec, Decision, Point, Position, StepSpec
from langevin_ext.backends import reference, triton as kernels

from ..conftest import assert_same_bits
from .conftest import DEVICE, INTERPRETED, eighths, normals, there

INF, NAN = math.inf, math.nan
SINGLE, DOUBLE = torch.float32, torch.float64
# Several chains to a tile, one, and a chain cut into tiles: float32 after 8192, float64 after 4096.
SHAPES = (
    (600, 1), (300, 2), (300, 3), (130, 10), (40, 64), (9, 100), (9, 129), (5, 256), (5, 784),
    (3, 8192), (4, 8193), (2, 20001),
)  # fmt: skip
EACH_PATH = (300, 3), (5, 784), (5, 8193)
PLACE = Position(0x1234567890ABCDEF, 2**32 - 1, 18, 2**31 - 3)


def spec(cols: int, **given: Any) -> AcceptSpec:
    """Steps so short that about half of the proposals are accepted."""
    s = 0.5 / math.sqrt(cols)
    return AcceptSpec(
        **{
            "drift": s * s / 2,
            "diffusion": s,
            "max_grad_norm": INF,
            "log_ratio": None,
            "position": PLACE,
        }
        | given
    )


def options(rows: int, cols: int, dtype: torch.dtype = SINGLE) -> dict[str, AcceptSpec]:
    """Every option, with bounds that clip about half of the chains."""
    s, bound = 0.5 / math.sqrt(cols), math.sqrt(0.375 * cols)
    each = torch.linspace(0.5, 1.5, rows, dtype=dtype)
    some = (bound * each).where(torch.arange(rows) % 3 > 0, INF)
    return {
        "plain": spec(cols),
        "clipped": spec(cols, max_grad_norm=bound),
        "a value per chain": spec(cols, drift=s * s / 2 * each, diffusion=s * each),
        "everything": spec(
            cols, drift=s * s / 2 * each, diffusion=s * each.flip(0), max_grad_norm=some
        ),
        "a known ratio": spec(cols, log_ratio=normals(rows, seed=9).double()),
    }


def case(
    rows: int, cols: int, accept: AcceptSpec, dtype: torch.dtype = SINGLE
) -> tuple[Point, Point]:
    """Where chains are, and proposals made there by that law."""
    x, grad, grad_y = normals(rows, cols).to(dtype), eighths(rows, cols), eighths(rows, cols, 1)
    grad, grad_y = grad.to(dtype), grad_y.to(dtype)
    step = StepSpec(*accept[:3], False, 0.5, 0.0, -INF, INF, PLACE._replace(stream=16))
    y = torch.empty_like(x)
    reference.step_(x, grad, step, None, y)
    energy, energy_y = (normals(rows, seed=seed).to(dtype) for seed in (2, 3))
    return Point(x, grad, energy), Point(y, grad_y, energy_y)


def decided(
    at: Point, proposal: Point, accept: AcceptSpec, backend: Any = kernels
) -> tuple[Point, Decision]:
    """The chains after a decision on copies of them, and what it recorded; both on the host."""
    rows = at.x.shape[0]
    record = Decision(torch.full((rows,), 7.0, dtype=DOUBLE), torch.zeros(rows, dtype=torch.bool))
    record.accepted.view(torch.uint8).fill_(7)  # neither of its values
    device = DEVICE if backend is kernels else torch.device("cpu")
    at, proposal, accept, record = (there(t, device) for t in (at, proposal, accept, record))
    backend.accept_(at, proposal, accept, record)
    return Point(*(t.cpu() for t in at)), Decision(*(t.cpu() for t in record))


def room_for_roundings(at: Point, proposal: Point, accept: AcceptSpec) -> Tensor:
    """8 ulp of the sum of (|m| + a |g|)**2 / (2 d**2), at both ends, of D |log d| and of the
    energies."""
    (x, g, energy), (y, g_y, energy_y) = at, proposal
    move, cols = (y.double() - x.double()).abs(), x.shape[1]
    room = energy.double().abs() + energy_y.double().abs()
    drifts, diffusions, bound = (reference._column(value, x) for value in accept[:3])
    for grad in (g, g_y) if accept.log_ratio is None else ():
        norm = reference.philox.sqrt(reference.tree_sum(grad * grad))[:, None]
        gamma = reference.clip_factor(norm, bound)
        a, d = (drifts * gamma).double(), (diffusions * gamma.sqrt()).double()
        room += ((move + a * grad.double().abs()).square() / (2 * d * d)).sum(1)
        room += cols * d.log().abs()[:, 0]
    return 8 * torch.finfo(DOUBLE).eps * room


def check(at: Point, proposal: Point, accept: AcceptSpec, what: object = "") -> Decision:
    """The reference's decisions, every bit of where the chains then are, and its log ratios."""
    want, recorded = decided(at, proposal, accept, reference)
    got, record = decided(at, proposal, accept)
    assert_same_bits(record.accepted, recorded.accepted, what)
    for name, a, b in zip(Point._fields, got, want, strict=True):
        assert_same_bits(a, b, (what, name))
    a, b = record.log_ratio, recorded.log_ratio
    finite = b.isfinite()
    torch.testing.assert_close(a[~finite], b[~finite], rtol=0, atol=0, equal_nan=True)
    off = (a - b).abs() > room_for_roundings(at, proposal, accept)
    assert not bool(off[finite].any()), (what, a[off], b[off])
    return record


# ---- the reference's decisions ------------------------------------------------------------------


@pytest.mark.parametrize("option", list(options(1, 1)))
def test_every_shape_has_the_decisions_of_the_reference(option: str) -> None:
    fates = []
    for shape in SHAPES:
        accept = options(*shape)[option]
        fates.append(check(*case(*shape, accept), accept, shape).accepted)
    accepted = torch.cat(fates)
    assert 0.2 < accepted.double().mean() < 0.8


@pytest.mark.parametrize("option", list(options(1, 1)))
def test_float64_has_the_decisions_of_the_reference(option: str) -> None:
    for shape in ((300, 3), (9, 100), (5, 784), (3, 4096), (3, 4097)):
        accept = options(*shape, DOUBLE)[option]
        check(*case(*shape, accept, DOUBLE), accept, shape)


def test_gradients_of_any_size() -> None:
    """Not multiples of anything; steep, flat, and so that the terms of the sums cancel."""
    for shape in ((300, 3), (2, 8193)):
        for scale in (1e-12, 1.0, 1e6):
            for accept in (spec(shape[1]), spec(shape[1], max_grad_norm=3.0)):
                at, proposal = case(*shape, accept, DOUBLE)
                grad, grad_y = (scale * normals(*shape, seed=s).double() for s in (4, 5))
                y = at.x - accept.drift * grad + accept.diffusion * normals(*shape, seed=6)
                check(at._replace(grad=grad), Point(y, grad_y, proposal.energy), accept, scale)


def test_the_partial_sums_of_a_very_long_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than partial sums: each takes several, the last fewer."""
    monkeypatch.setattr(kernels, "_MOST_PARTS", 3)
    for shape in ((2, 16385), (1, 28672)):  # 5 tiles in 3 sums, 7
        accept = options(*shape)["everything"]
        check(*case(*shape, accept), accept, shape)


def test_a_decision_is_its_rule() -> None:
    """x <- y where log u <= log ratio, u being coordinate 0 of each chain; the rest as it was."""
    ratio = torch.tensor([0.0, 1e3, -1e3, -1.0, -1.0, -1.0, -1.0, -1.0], dtype=DOUBLE)
    u = reference.philox.uniform(PLACE, 8, 1, torch.device("cpu"))[:, 0].double()
    accept = spec(3, log_ratio=ratio + 1)
    at, proposal = case(8, 3, accept)
    at, proposal = at._replace(energy=torch.ones(8)), proposal._replace(energy=torch.full([8], 2.0))
    got, record = decided(at, proposal, accept)
    want = u.log() <= ratio
    assert want.tolist()[:3] == [True, True, False]
    assert 0 < int(want[3:].sum()) < 5
    assert torch.equal(record.accepted, want)
    assert_same_bits(record.log_ratio, ratio)
    for old, new, now in zip(at, proposal, got, strict=True):
        assert_same_bits(now[want], new[want])
        assert_same_bits(now[~want], old[~want])


# ---- values that are not finite -----------------------------------------------------------------

WRONG: tuple[tuple[str, str, float], ...] = (
    ("proposal", "x", NAN),
    ("proposal", "x", INF),
    ("proposal", "grad", NAN),
    ("proposal", "grad", -INF),
    ("proposal", "grad", 1e20),  # in float32 the norm overflows
    ("proposal", "energy", NAN),
    ("proposal", "energy", INF),
    ("proposal", "energy", -INF),
    ("at", "x", NAN),
    ("at", "grad", INF),
    ("at", "grad", 1e20),
    ("at", "energy", NAN),
    ("at", "energy", INF),  # whatever is finite is better
    ("at", "energy", -INF),
)


@pytest.mark.parametrize("option", ["plain", "everything", "a known ratio"])
def test_a_proposal_that_is_not_finite_is_rejected(option: str) -> None:
    """Each such value in a chain of its own; the chains between are decided as without them."""
    rows = 2 * len(WRONG)
    for cols in (3, 100) if option == "plain" else (3, 8193):
        accept = options(rows, cols)[option]
        clean = case(rows, cols, accept)
        at, proposal = (Point(*(t.clone() for t in point)) for point in clean)
        rejected = torch.zeros(rows, dtype=torch.bool)
        for i, (point, name, value) in enumerate(WRONG):
            wrong = getattr(at if point == "at" else proposal, name)
            wrong[2 * i if name == "energy" else (2 * i, cols - 1)] = value
            unread = option == "a known ratio" and name != "energy"
            rejected[2 * i] = point == "proposal" and not unread
        record = check(at, proposal, accept, cols)
        assert not bool(record.accepted[rejected].any())
        assert bool((record.log_ratio[rejected & ~record.log_ratio.isfinite()] == -INF).all())
        _, undisturbed = decided(*clean, accept)
        assert torch.equal(record.accepted[1::2], undisturbed.accepted[1::2])


def test_a_ratio_that_is_not_finite_is_no_ratio() -> None:
    ratio = torch.tensor([NAN, INF, -INF, 5.0], dtype=DOUBLE)
    for cols in (3, 8193):
        accept = spec(cols, log_ratio=ratio)
        at, proposal = case(4, cols, accept)
        record = check(at, proposal._replace(energy=at.energy), accept, cols)
        assert record.accepted.tolist() == [False, False, False, True]
        assert record.log_ratio.tolist() == [-INF, -INF, -INF, 5.0]


# ---- memory and the position --------------------------------------------------------------------


def test_a_ratio_may_be_recorded_where_it_is_given() -> None:
    for shape in EACH_PATH:
        accept = there(options(*shape)["a known ratio"], DEVICE)
        at, proposal = there(case(*shape, accept), DEVICE)
        want, recorded = decided(at, proposal, accept)
        assert accept.log_ratio is not None
        record = Decision(accept.log_ratio, torch.zeros(shape[0], dtype=torch.bool, device=DEVICE))
        kernels.accept_(at, proposal, accept, record)
        for a, b in zip((*at, *record), (*want, *recorded), strict=True):
            assert_same_bits(a.cpu(), b, shape)


def test_coefficients_may_be_views_of_what_is_written() -> None:
    """A step size read from the state is that of before."""
    for shape in EACH_PATH:
        rows, cols = shape
        accept = options(*shape)["everything"]
        at, proposal = there(case(*shape, accept), DEVICE)
        at.x.view(-1)[:rows].copy_(accept.diffusion)
        accept = there(accept, DEVICE)
        want, recorded = decided(at, proposal, accept)
        assert bool(recorded.accepted[: 1 + rows // cols].any()), "nothing is written over"
        record = there(recorded, DEVICE)
        kernels.accept_(at, proposal, accept._replace(diffusion=at.x.view(-1)[:rows]), record)
        for a, b in zip((*at, *record), (*want, *recorded), strict=True):
            assert_same_bits(a.cpu(), b, shape)


@pytest.mark.parametrize("shape", EACH_PATH)
def test_a_decision_does_not_depend_on_the_batch(shape: tuple[int, int]) -> None:
    """Nor on whether its position is numbers or on a device."""
    accept = options(*shape)["clipped"]
    at, proposal = case(*shape, accept)
    whole, record = decided(at, proposal, accept)
    origin = torch.tensor([PLACE.seed, PLACE.step - 5], device=DEVICE)
    for first, last in ((0, 2), (1, shape[0])):
        place = Position(0, 5, PLACE.stream, PLACE.first_chain + first, origin)
        rows = slice(first, last)
        part = [Point(*(t[rows] for t in point)) for point in (at, proposal)]
        got, some = decided(part[0], part[1], accept._replace(position=place))
        for a, b in zip((*got, *some), (*whole, *record), strict=True):
            assert_same_bits(a, b[rows])


compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter has neither warps nor graphs")


@compiled
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("shape", EACH_PATH)
def test_nothing_waits_for_the_device(shape: tuple[int, int]) -> None:
    accept = options(*shape)["everything"]
    at, proposal = there(case(*shape, accept), DEVICE)
    accept = there(accept, DEVICE)
    record = there(decided(at, proposal, accept)[1], DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.accept_(at, proposal, accept, record)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@compiled
@pytest.mark.parametrize("option", ["everything", "a known ratio"])
def test_every_warp_of_a_chain_decides_the_same(option: str) -> None:
    """In thousands of tiles of many warps, none read an energy that another had replaced."""
    for shape in ((20000, 64), (4000, 3072)):
        accept = options(*shape)[option]
        check(*case(*shape, accept), accept, shape)
