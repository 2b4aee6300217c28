"""Networks run by the kernels: torch's values and gradients, each chain's bits its own; and which
modules are recognised as such networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils import parametrizations

from langevin_ext import EnergyGradient, Langevin, sample
from langevin_ext._mlp import mlp_of
from langevin_ext._types import MlpSpec
from langevin_ext.energies import Scaled
from langevin_ext.errors import ArgumentError, EnergyError

from .conftest import ISAS, NO_NATIVE, ON_CPU, assert_same_bits, native, normals
from .networks import ACTIVATIONS, KINKED, network

pytestmark = pytest.mark.skipif(not ON_CPU, reason="a CPU's kernels")
needs_native = pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native backend: {NO_NATIVE}")

INF, NAN = float("inf"), float("nan")


def recognised(energy: nn.Module, x: Tensor) -> MlpSpec:
    spec = mlp_of(energy, x)
    assert isinstance(spec, MlpSpec), spec
    return spec


def ours(energy: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = native.mlp_gradient(x, recognised(energy, x))
    return result


def torchs(energy: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same by autograd, in the dtype of x."""
    like = next(energy.parameters()).dtype
    value, grad = EnergyGradient(energy.to(x.dtype))(x)
    energy.to(like)
    return value, grad


def away_from_kinks(net: nn.Sequential, x: Tensor) -> Tensor:
    """Which chains come nowhere so near to a kink that float32 may be on its other side."""
    far = torch.ones(len(x), dtype=torch.bool)
    y = x.double()
    for part in net.double():
        kinks = [0.0, part.threshold / part.beta] if isinstance(part, nn.Softplus) else [0.0]
        if not isinstance(part, nn.Linear):
            for kink in kinks:  # exactly there is where nothing arrives, in any precision
                far &= (((y - kink).abs() > 1e-4) | (y == kink)).all(1)
        y = part(y)
    net.float()
    return far


def assert_close(net: nn.Sequential, x: Tensor, activation: str) -> None:
    """Every chain's U and gradient to 1e-5 of their usual size, by autograd in two precisions."""
    u, g = ours(net, x)
    far = away_from_kinks(net, x) if activation in KINKED else torch.ones(len(x), dtype=torch.bool)
    assert far.any()
    for dtype in (torch.float64, torch.float32):
        value, grad = (t.double() for t in torchs(net, x.to(dtype)))
        error = (u - value).abs() / value.abs().clamp(min=1)
        assert error[far].max() <= 1e-5, (activation, dtype)
        size = grad.norm(dim=1).clamp(min=grad.norm(dim=1).mean())
        assert ((g - grad).norm(dim=1) / size)[far].max() <= 1e-5, (activation, dtype)


# ---- torch's numbers ----------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "widths", [(1,), (3,), (17, 65), (2, 32, 64, 64), (300, 9, 16, 13, 15, 14, 8), (3, 1, 5)]
)
def test_value_and_gradient_are_autograds(
    widths: tuple[int, ...], activation: str, isa: str
) -> None:
    for last, bias in ((True, True), (False, False)):
        net = network((*widths, 1), activation, bias=bias, last=last)
        assert_close(net, normals(37, widths[0], seed=1), activation)


@needs_native
@pytest.mark.parametrize("chains", [1, 2, 15, 16, 17, 48, 63, 64, 65, 100, 129, 200])
def test_any_number_of_chains(chains: int, isa: str) -> None:
    assert_close(network((5, 24, 13, 1)), normals(chains, 5, seed=2), "silu")


@needs_native
@pytest.mark.parametrize("width", [127, 128, 129, 300, 1024])
def test_sums_in_several_passes(width: int, isa: str) -> None:
    assert_close(network((width, 9, width, 1), "tanh"), normals(20, width, seed=3), "tanh")


@needs_native
def test_states_of_any_shape() -> None:
    net = nn.Sequential(nn.Flatten(), network((24, 8, 1)))
    x = normals(6, 2, 3, 4)
    value, grad = torchs(net, x)
    u, g = ours(net, x)
    torch.testing.assert_close(u, value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(g, grad, rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ends_of_the_range_are_torchs(activation: str, isa: str) -> None:
    """One number through one activation: zeros, infinities, NaN and what overflows."""
    net = network((1, 1), activation, last=True)
    with torch.no_grad():
        net[0].weight.fill_(1)  # type: ignore[operator,union-attr]
        net[0].bias.zero_()  # type: ignore[operator,union-attr]
    ends = [0.0, 1e-30, 1e-6, 0.5, 0.7, 6.0, 19.5, 20.5, 30.0, 80.0, 87.5, 88.5, 100.0, 1e30, INF]
    x = torch.tensor([*ends, *(-v for v in ends), NAN]).unsqueeze(1)
    (u, g), (value, slope) = ours(net, x), torchs(net, x)
    torch.testing.assert_close(u, value, rtol=2e-6, atol=1e-36, equal_nan=True)
    torch.testing.assert_close(g, slope, rtol=2e-6, atol=2e-7, equal_nan=True)


@needs_native
def test_zero_chains() -> None:
    u, g = ours(network((3, 4, 1)), torch.empty(0, 3))
    assert (u.shape, g.shape) == ((0,), (0, 3))


@needs_native
def test_weights_are_read_when_it_runs() -> None:
    net, x = network((3, 8, 1)), normals(5, 3)
    spec = recognised(net, x)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(-2)
    torch.testing.assert_close(native.mlp_gradient(x, spec)[0], torchs(net, x)[0])


# ---- a chain is its own -------------------------------------------------------------------------

WIDTHS = (7, 19, 150, 6, 1)


@needs_native
@pytest.mark.parametrize("activation", ["silu", "tanh", "softplus", "leaky"])
def test_a_chain_depends_on_nothing_but_its_state(activation: str, isa: str) -> None:
    """Bit for bit: whatever the batch, the place in it, and the number of threads."""
    net, x = network(WIDTHS, activation), normals(200, 7, seed=4)
    u, g = ours(net, x)
    for begin, end in ((0, 1), (3, 20), (1, 200), (100, 164), (77, 110), (199, 200)):
        some = ours(net, x[begin:end].clone())
        assert_same_bits(some[0], u[begin:end], (begin, end))
        assert_same_bits(some[1], g[begin:end], (begin, end))
    order = torch.arange(200).flip(0)
    assert_same_bits(ours(net, x[order])[1], g[order])


@needs_native
def test_the_number_of_threads_changes_no_bit() -> None:
    net, x = network(WIDTHS), normals(1001, 7, seed=5)
    one = ours(net, x)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for got, want in zip(ours(net, x), one, strict=True):
            assert_same_bits(got, want, threads)


@needs_native
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("wrong", [NAN, INF, -INF, 3e38])
def test_what_is_wrong_with_a_chain_stays_in_it(activation: str, wrong: float, isa: str) -> None:
    net, x = network(WIDTHS, activation), normals(70, 7, seed=6)
    u, g = ours(net, x)
    x[33, 2] = wrong
    spoilt, slopes = ours(net, x)
    others = torch.arange(70) != 33
    assert_same_bits(spoilt[others], u[others])
    assert_same_bits(slopes[others], g[others])
    assert wrong == 3e38 or not spoilt[33].isfinite() or activation in ("tanh", "relu")


@needs_native
def test_instruction_sets_differ_in_the_last_bits_alone() -> None:
    net, x = network((20, 128, 128, 1)), normals(100, 20, seed=7)
    results = []
    for isa in ISAS:
        native.use_isa(isa)
        results.append(ours(net, x))
    for u, g in results[1:]:
        torch.testing.assert_close(u, results[0][0], rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(g, results[0][1], rtol=2e-6, atol=2e-6)


# ---- what is recognised -------------------------------------------------------------------------


def net_with(change: Callable[[nn.Sequential], Any]) -> nn.Sequential:
    net = network((3, 4, 1))
    change(net)
    return net


def test_the_layers_of_a_network() -> None:
    first, second = nn.Linear(3, 4, bias=False), nn.Linear(4, 1)
    inner = nn.Sequential(nn.Identity(), second, nn.Softplus(2.0, 7.0))
    net = nn.Sequential(nn.Flatten(), first, nn.LeakyReLU(0.25), inner, nn.Flatten(0))
    spec = recognised(Scaled(net, -0.5), torch.zeros(2, 3))
    (a, b), factor = spec
    assert factor == -0.5
    assert (a.weight is first.weight, a.bias, a.activation, a.slope) == (True, None, "leaky", 0.25)
    assert (b.weight is second.weight, b.bias is second.bias) == (True, True)
    assert (b.activation, b.beta, b.threshold) == ("softplus", 2.0, 7.0)


def test_one_linear_layer_is_a_network() -> None:
    assert len(recognised(nn.Linear(3, 1), torch.zeros(2, 3)).layers) == 1


class Mine(nn.Linear):
    pass


class Noted(nn.Parameter):
    pass


def _replace_forward(net: nn.Sequential) -> None:
    net[0].forward = lambda x: x  # type: ignore[method-assign]


def _transpose(net: nn.Sequential) -> None:
    net[0].weight = nn.Parameter(torch.zeros(3, 4).t())


def _share(net: nn.Sequential) -> None:
    del net[0].weight
    net[0].weight = torch.zeros(4, 3)


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "a function": (lambda: lambda x: x.sum(1), "a function, not an nn.Sequential"),
    "a module": (lambda: nn.Bilinear(3, 3, 1), "a Bilinear, not an nn.Sequential"),
    "a list": (lambda: nn.ModuleList([nn.Linear(3, 1)]), "a ModuleList, not"),
    "a subclass": (lambda: net_with(lambda n: n.insert(0, Mine(3, 3))), "contains a Mine"),
    "another layer": (lambda: net_with(lambda n: n.insert(1, nn.LayerNorm(4))), "a LayerNorm"),
    "another activation": (lambda: net_with(lambda n: n.insert(1, nn.GELU())), "a GELU"),
    "dropout": (lambda: net_with(lambda n: n.insert(1, nn.Dropout())), "a Dropout"),
    "two activations": (lambda: net_with(lambda n: n.insert(1, nn.Tanh())), "not follow a linear"),
    "activation first": (lambda: net_with(lambda n: n.insert(0, nn.Tanh())), "not follow a linear"),
    "nothing": (lambda: nn.Sequential(), "no linear layer"),
    "two outputs": (lambda: network((3, 4, 2)), "2 outputs"),
    "other inputs": (lambda: network((4, 4, 1)), r"\(4, 4\) where \(4, 3\) is needed"),
    "widths apart": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 1)), r"\(1, 5\) where"),
    "no width": (lambda: nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 1)), r"\(0, 3\) where"),
    "another number of outputs": (
        lambda: net_with(lambda n: setattr(n[0], "out_features", 5)),
        r"\(4, 3\) where \(5, 3\) is needed",
    ),
    "made in inference mode": (lambda: _inferred(), "inference mode"),
    "no gradient in torch": (
        lambda: net_with(lambda n: n.__setitem__(1, nn.LeakyReLU(-0.1, inplace=True))),
        "below slope 0",
    ),
    "float64": (lambda: network((3, 4, 1)).double(), "weight is torch.float64"),
    "bfloat16": (lambda: network((3, 4, 1)).bfloat16(), "weight is torch.bfloat16"),
    "meta": (lambda: network((3, 4, 1)).to("meta"), "on meta"),
    "wide bias": (
        lambda: net_with(lambda n: setattr(n[0], "bias", nn.Parameter(torch.zeros(4).double()))),
        "bias is torch.float64",
    ),
    "other bias": (
        lambda: net_with(lambda n: setattr(n[0], "bias", nn.Parameter(torch.zeros(1)))),
        "bias has shape",
    ),
    "not contiguous": (lambda: net_with(_transpose), "not contiguous"),
    "a parameter of its own kind": (
        lambda: net_with(lambda n: setattr(n[0], "weight", Noted(torch.zeros(4, 3)))),
        "no plain parameter",
    ),
    "a tensor for a parameter": (lambda: net_with(_share), "a weight of its own"),
    "forward replaced": (lambda: net_with(_replace_forward), "a forward of its own"),
    "weight norm": (
        lambda: net_with(lambda n: parametrizations.weight_norm(n[0])),
        "ParametrizedLinear",
    ),
    "spectral norm": (lambda: net_with(lambda n: nn.utils.spectral_norm(n[0])), "hooks"),
    "forward hook": (
        lambda: net_with(lambda n: n[1].register_forward_hook(lambda *_: None)),
        "SiLU has hooks",
    ),
    "forward pre-hook": (
        lambda: net_with(lambda n: n.register_forward_pre_hook(lambda *_: None)),
        "Sequential has hooks",
    ),
    "backward hook": (
        lambda: net_with(lambda n: n[0].register_full_backward_hook(lambda *_: None)),
        "Linear has hooks",
    ),
    "backward pre-hook": (
        lambda: net_with(lambda n: n[0].register_full_backward_pre_hook(lambda *_: None)),
        "Linear has hooks",
    ),
    "hook on the factor": (
        lambda: _hooked(Scaled(network((3, 4, 1)), 2.0)),
        "a Scaled has hooks",
    ),
    "a factor for every chain": (lambda: _with_factor(torch.ones(2)), "factor is a Tensor"),
    "flatten of two axes": (
        lambda: net_with(lambda n: n.insert(0, nn.Flatten(0, 1))),
        r"nn.Flatten\(0, 1\)",
    ),
    "flatten too early": (lambda: net_with(lambda n: n.insert(1, nn.Flatten(0))), "nn.Flatten"),
}


def _inferred() -> nn.Module:
    with torch.inference_mode():
        return network((3, 4, 1))


def _with_factor(factor: Any) -> Scaled:
    scaled = Scaled(network((3, 4, 1)), 1.0)
    scaled.factor = factor
    return scaled


def _hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore:.*deprecated")
@pytest.mark.parametrize("why", REFUSALS)
def test_what_is_not_recognised_is_named(why: str) -> None:
    make, reason = REFUSALS[why]
    answer = mlp_of(make(), torch.zeros(2, 3))
    assert isinstance(answer, str), answer
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(answer)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.zeros(2, 3).double(), "float64"),
        (torch.zeros(2, 3, device="meta"), "meta"),
        (nn.Parameter(torch.zeros(2, 3)), "a Parameter"),
        (torch.zeros(3), "fewer than two dimensions"),
        (torch.zeros(2, 3, 1), "need an nn.Flatten"),
    ],
)
def test_states_that_no_kernel_takes(x: Tensor, reason: str) -> None:
    answer = mlp_of(network((3, 4, 1)), x)
    assert isinstance(answer, str)
    assert reason in answer


def test_hooks_on_all_modules_are_seen() -> None:
    net, x = network((3, 4, 1)), torch.zeros(2, 3)
    for register in (
        hooks.register_module_forward_hook,
        hooks.register_module_forward_pre_hook,
        hooks.register_module_full_backward_hook,
        hooks.register_module_full_backward_pre_hook,
    ):
        handle = register(lambda *_: None)
        try:
            assert mlp_of(net, x) == "hooks are registered on all modules"
        finally:
            handle.remove()
    assert isinstance(mlp_of(net, x), MlpSpec)


def test_autocast_is_seen() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert mlp_of(network((3, 4, 1)), torch.zeros(2, 3)) == "autocast is on"


# ---- an energy times a number -------------------------------------------------------------------


@needs_native
def test_a_factor_multiplies_both() -> None:
    net, x = network((3, 8, 1)), normals(50, 3)
    for got, plain in zip(ours(Scaled(net, -4.0), x), ours(net, x), strict=True):
        assert_same_bits(got, -4 * plain)
    value, grad = torchs(Scaled(net, 0.3), x)
    u, g = ours(Scaled(net, 0.3), x)
    torch.testing.assert_close(u, value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(g, grad, rtol=1e-5, atol=1e-6)


def test_scaled_energies_are_energies() -> None:
    net, x = network((3, 8, 1)), normals(50, 3)
    scaled = Scaled(net, 0.5)
    assert torch.equal(scaled(x), 0.5 * net(x))
    assert "factor=0.5" in repr(scaled)
    run, plain = (sample(u, x, Langevin(0.01), 3, seed=0).x for u in (scaled, lambda y: net(y) / 2))
    assert_same_bits(run, plain)
    with pytest.raises(ArgumentError, match="factor=inf"):
        Scaled(net, INF)
    with pytest.raises(EnergyError, match="energy is a int"):
        Scaled(3, 1.0)  # type: ignore[arg-type]
