"""What every test shares: the engines under comparison, equality of bits, and a clean slate.

With ``LANGEVIN_DEVICE=cuda`` the suite runs on CUDA tensors: torch's default device is the GPU, so
that "auto" is Triton, and tests of what a CPU alone has are left out.

Tests of laws take the fixture ``seed`` and as many chains as `chains` says. ``LANGEVIN_SEEDS=200``
runs each of them with seeds 0 to 199, ``LANGEVIN_CHAINS=0.1`` with a tenth of the chains.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from langevin_ext import Noise, backends, errors

CPU = torch.device("cpu")
DEVICE = torch.device(os.environ.get("LANGEVIN_DEVICE", "cpu"))
ON_CPU = DEVICE.type == "cpu"
torch.set_default_device(None if ON_CPU else DEVICE)  # modules make tensors as they are imported
NO_NATIVE = backends.why_not("native", DEVICE)
"""Why the native backend cannot be used here; None if it can."""
native: Any = None if NO_NATIVE else importlib.import_module("langevin_ext.backends.native")
ISAS: tuple[str, ...] = () if NO_NATIVE else native.isas
ENGINES = ("reference", *(f"native-{isa}" for isa in ISAS)) if ON_CPU else ("reference", "triton")
"""Every (backend, instruction set) of the device."""
WAYS = (True, False) if ON_CPU and not NO_NATIVE else (False,)
"""By whole chains, where there are any, and step by step."""
HOST_ONLY = {
    "test_bad_input.py", "test_build.py", "test_checkpoint.py", "test_codegen.py",
    "test_data_and_metrics.py", "test_imports.py", "test_plain_step.py", "test_planted_bugs.py",
    "test_readme.py", "test_short_run.py",
}  # fmt: skip
"""Tests of what happens before any device is asked, or is the same on all."""
if not ON_CPU:
    collect_ignore = sorted(HOST_ONLY)

_skip_native = pytest.mark.skip(reason=f"no native backend: {NO_NATIVE}")
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def chains(number: int) -> int:
    """How many chains a test of a law takes; fewer where the slow reference has to do it."""
    share = float(os.environ.get("LANGEVIN_CHAINS", "1")) * (0.01 if ON_CPU and NO_NATIVE else 1)
    return max(int(number * share), 1000)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(int(os.environ.get("LANGEVIN_SEEDS", "1"))))


def pytest_itemcollected(item: pytest.Item) -> None:
    if "seed" in getattr(item, "fixturenames", ()):
        item.add_marker("law")


def pytest_configure(config: pytest.Config) -> None:
    if ON_CPU and NO_NATIVE:  # "auto" is right to warn then, and nearly every test uses it
        warning = errors.FallbackWarning
        line = f"ignore::{warning.__module__}.{warning.__name__}"
        config.addinivalue_line("filterwarnings", line)
    if not ON_CPU:  # the first product of matrices in a thread of autograd says this, once
        config.addinivalue_line("filterwarnings", "ignore:Attempting to run cuBLAS")
        torch.backends.cudnn.deterministic = True  # some tests ask for the same bits twice
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # and for more than TF32's ten bits


@pytest.fixture(autouse=True)
def _clean_slate() -> Iterator[None]:
    """No test sees another's instruction set, thread count or global random numbers.

    One thread unless a test asks for more: on a busy machine threads wait for one another.
    """
    threads, isa = torch.get_num_threads(), native and native.isa()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    if isa:
        native.use_isa(isa)


@pytest.fixture
def handler() -> Iterator[Callable[..., Any]]:
    """The interpreter's own handler of Ctrl-C, in place, which a background process has not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=ISAS or [pytest.param(None, marks=_skip_native)])
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of the native backend in turn, in use for the test."""
    native.use_isa(request.param)
    return str(request.param)


@pytest.fixture(params=ENGINES)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend in turn, the native one with each instruction set in use."""
    name, _, isa = str(request.param).partition("-")
    if isa:
        native.use_isa(isa)
    return name


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that kernels have taken, call by call."""
    calls: list[int] = []
    original = native.chain_

    def chain_(*arguments: Any) -> int:
        taken = int(original(*arguments))
        if arguments[2].rule != "evaluation":
            calls.append(taken)
        return taken

    monkeypatch.setattr(native, "chain_", chain_)
    return calls


def on_a_device(noise: Noise) -> Noise:
    """The same noise, its seed and step known to a tensor on the device alone."""
    copy = noise.to(DEVICE)
    copy._cells = None  # what a CPU's noise has for Python's sake
    return copy


def bits(t: Tensor) -> Tensor:
    """The bits of a tensor's elements as integers."""
    return t.detach().contiguous().view(_WORDS[t.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and every bit: a NaN equals itself, 0 and -0 differ."""
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def assert_same_bits(got: Tensor, want: Tensor, what: object = "") -> None:
    """`same_bits`, with the first difference in the message."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape), what
    wrong = (bits(got) != bits(want)).nonzero()
    if len(wrong):
        at = tuple(wrong[0].tolist())
        pytest.fail(
            f"{what}: {len(wrong)} of {got.numel()} elements differ, the first at {at}:"
            f" {got[at].item()!r} for {want[at].item()!r}"
        )


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normals that depend on the arguments alone: test data, not the noise under test."""
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(DEVICE, dtype)


def places(noise: Noise) -> tuple[int, int, int, int]:
    """Where a `Noise` is."""
    return noise.seed, noise.stream, noise.first_chain, noise.step
