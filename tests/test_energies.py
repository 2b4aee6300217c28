"""Energies that know their gradient: how it is asked for, and the analytic ones against the law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from langevin_ext import EnergyGradient, Langevin, sample
from langevin_ext.errors import ArgumentError, EnergyError

from .conftest import assert_same_bits, normals

# torch's own compiler is partly written in the TorchScript it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

# ---- the gradient an energy brings along --------------------------------------------------------


class Quartic(nn.Module):
    """sum x^4 / 4, which counts who asks for what."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append("forward")
        return (x**4).sum(1) / 4

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append("value_and_gradient")
        return (x**4).sum(1) / 4, x**3


class Doubled(Quartic):
    """Its inherited gradient is half of what it should be."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Called(Quartic):
    """Likewise, by way of ``__call__``."""

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class Halved(Doubled):
    """A gradient as new as its forward, or newer, is its own."""

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = super().value_and_gradient(x)
        return 2 * value, 2 * grad


class Derived(Quartic):
    """Nothing replaced."""


class Plain:
    """Not a module."""

    def __call__(self, x: Tensor) -> Tensor:
        raise AssertionError("autograd was taken")

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.square().sum(1, keepdim=True), 2 * x


def test_an_energy_that_knows_its_gradient_is_asked() -> None:
    x = normals(5, 3).requires_grad_()
    for energy in (Quartic(), Derived()):
        value, grad = EnergyGradient(energy)(x)
        assert energy.asked == ["value_and_gradient"]
        assert_same_bits(value, ((x**4).sum(1) / 4).detach())
        assert_same_bits(grad, (x**3).detach())
        assert not value.requires_grad
        assert not grad.requires_grad
    value, grad = EnergyGradient(Plain())(x)
    assert_same_bits(value, x.detach().square().sum(1))
    assert_same_bits(grad, 2 * x.detach())
    chain = sample(Quartic(), x.detach(), Langevin(0.1), 5, seed=1).x
    torch.testing.assert_close(
        chain, sample(lambda x: Quartic()(x), x.detach(), Langevin(0.1), 5, seed=1).x
    )


@pytest.mark.parametrize("kind", [Doubled, Called, Halved])
def test_a_gradient_older_than_its_energy_is_not_believed(kind: type[Quartic]) -> None:
    x = normals(5, 3)
    energy = kind()
    value, grad = EnergyGradient(energy)(x)
    torch.testing.assert_close(value, (x**4).sum(1) / 2)
    torch.testing.assert_close(grad, 2 * x**3)
    assert energy.asked == ["value_and_gradient" if kind is Halved else "forward"]


def test_a_forward_or_a_gradient_of_the_object_itself_comes_first() -> None:
    x = normals(5, 3)
    energy = Quartic()
    energy.forward = lambda x: x.square().sum(1)  # type: ignore[method-assign]
    torch.testing.assert_close(EnergyGradient(energy)(x)[1], 2 * x)
    energy.value_and_gradient = lambda x: (x.sum(1), x + 1)  # type: ignore[method-assign]
    assert_same_bits(EnergyGradient(energy)(x)[1], x + 1)

    def function(x: Tensor) -> Tensor:
        return x.square().sum(1)

    function.value_and_gradient = lambda x: (x.sum(1), x + 2)  # type: ignore[attr-defined]
    assert_same_bits(EnergyGradient(function)(x)[1], x + 2)


@pytest.mark.parametrize(
    "hook",
    [
        lambda e: e.register_forward_hook(lambda module, args, out: 3 * out),
        lambda e: e.register_forward_pre_hook(lambda module, args: (args[0] * 3**0.25,)),
        lambda e: e.register_full_backward_hook(lambda module, back, out: (3 * back[0],)),
    ],
)
def test_hooks_are_run(hook: Callable[[nn.Module], Any]) -> None:
    x, energy = normals(5, 3), Quartic()
    gradient = EnergyGradient(energy)
    handle = hook(energy)
    torch.testing.assert_close(gradient(x)[1], 3 * x**3)
    handle.remove()
    assert_same_bits(gradient(x)[1], x**3)
    assert energy.asked == ["forward", "value_and_gradient"]


class Odd(nn.Module):
    """Returns what it is given to return, of x and its own memory."""

    def __init__(self, result: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.ones(4, 3))
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)

    def value_and_gradient(self, x: Tensor) -> Any:
        return self.result(x, self.memory)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x, _: x, "returned a Tensor"),
        (lambda x, _: (x.sum(1), x, x), "returned a tuple"),
        (lambda x, _: None, "returned a NoneType"),
        (lambda x, _: (x.sum(), x), r"shape \(\).*\(4,\)"),
        (lambda x, _: (x.sum(1)[1:], x), r"shape \(3,\)"),
        (lambda x, _: (x.sum(1).long(), x), "torch.int64"),
        (lambda x, _: (3.0, x), "returned a float"),
        (lambda x, _: (x.sum(1), x.T), r"shape \(3, 4\).*\(4, 3\)"),
        (lambda x, _: (x.sum(1), x.long()), "torch.int64"),
        (lambda x, _: (x.sum(1), None), "NoneType for a gradient"),
    ],
)
def test_what_is_no_gradient_is_refused(result: Any, message: str) -> None:
    with pytest.raises(EnergyError, match=message):
        EnergyGradient(Odd(result))(normals(4, 3))


@pytest.mark.parametrize(
    "result",
    [
        lambda x, memory: (x[:, 0], x),
        lambda x, memory: (memory[:, 0], memory),
        lambda x, memory: (memory.view(-1)[:4], memory.view(3, 4).T),
    ],
)
def test_what_is_returned_is_a_copy(result: Any) -> None:
    """Neither the state's next update nor the module's next call changes it."""
    energy, x = Odd(result), normals(4, 3)
    value, grad = EnergyGradient(energy)(x)
    want = value.clone(), grad.clone()
    x.zero_()
    with torch.no_grad():
        energy.memory.zero_()
    assert_same_bits(value, want[0])
    assert_same_bits(grad, want[1])
    assert grad.is_contiguous()
    assert not any(t.requires_grad for t in (value, grad))


def test_a_gradient_comes_in_the_dtype_of_the_state() -> None:
    energy = Odd(lambda x, _: (x.double().sum(1, keepdim=True), x.double()))
    value, grad = EnergyGradient(energy)(normals(4, 3))
    assert (value.dtype, grad.dtype, value.shape) == (torch.float32, torch.float32, (4,))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_known_gradient_in_every_mode(mode: Any) -> None:
    """Without gradient mode for the energy; what comes out can be trained on."""
    modes = []

    def result(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return x.sum(1), x

    with mode():
        value, grad = EnergyGradient(Odd(result))(normals(4, 3))
    assert modes == [(False, False)]
    assert not any(t.is_inference() for t in (value, grad))


def test_autocast_of_a_known_gradient_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"autocast=torch.bfloat16.*value_and_gradient"):
        EnergyGradient(Quartic(), autocast=torch.bfloat16)
    with pytest.raises(ArgumentError, match=r"autocast=torch.bfloat16.*value_and_gradient"):
        sample(Quartic(), normals(4, 3), Langevin(0.1), 1, autocast=torch.bfloat16)
    EnergyGradient(Doubled(), autocast=torch.bfloat16)


def test_a_known_gradient_compiles() -> None:
    torch._dynamo.reset()
    x = normals(4, 3)
    gradient = EnergyGradient(Odd(lambda x, _: (x.square().sum(1), 2 * x)))
    got = torch.compile(gradient, fullgraph=True, backend="aot_eager")(x)
    for a, b in zip(got, gradient(x), strict=True):
        assert_same_bits(a, b)
