"""What every analytic energy is: a value, a gradient without autograd, and exact draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._check import check_count
from .._types import ChainEnergy
from ..errors import DtypeError, ShapeError
from ..noise import Noise, Purpose, as_noise
from ._draws import Source

_STATES = torch.float32, torch.float64
_Result = TypeVar("_Result")
_COMPUTING = {
    "forward", "value_and_gradient", "_energy", "_energy_and_gradient", "_exactly", "_call_impl",
    "_slow_forward",
}  # fmt: skip


class AnalyticEnergy(nn.Module, ABC):
    """U with density exp(-U - log Z) on states x (B, d), all of it known.

    Args:
        dim: d.

    Attributes:
        dim: d.
        log_partition: log Z, the logarithm of the integral of exp(-U).

    An energy is fixed once it is made: it has no parameters, and its state dict is empty. It keeps
    its numbers in float64 and computes in the dtype (float32 or float64) and on the device of x,
    whatever autocast it runs in; but products of float32 matrices are as exact as torch is told to
    make them (TF32). NaN or infinity in a chain's state makes U of that chain NaN or +inf and no
    other's; where U overflows it is +inf.
    """

    dim: int
    log_partition: float
    _in_dtype: tuple[str, ...] = ()
    """The buffers that `_constants` gives, in this order."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self._converted: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    # ---- what a subclass says -------------------------------------------------------------------

    @abstractmethod
    def _energy(self, x: Tensor) -> Tensor:
        """U (B,), by operations that can be differentiated."""

    @abstractmethod
    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """U (B,) and its gradient (B, d) in memory of their own, in few operations."""

    @abstractmethod
    def _draw(self, source: Source) -> Tensor:
        """Independent draws (n, d) in float64."""

    @abstractmethod
    def _moments(self) -> tuple[Tensor, Tensor]:
        """The mean (d,) and the covariance, (d, d) or its diagonal (d,)."""

    @abstractmethod
    def _numbers(self) -> tuple[str, int, list[Any]]:
        """The kind, components and numbers of `ChainEnergy`."""

    # ---- what a user asks -----------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """U(x) (B,) for states (B, d), differentiable as often as asked.

        Raises:
            ShapeError, DtypeError: x is not (B, d) in float32 or float64.
        """
        return self._exactly(self._energy, x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(U(x), grad U(x)), (B,) and (B, d), without autograd.

        The two are new tensors. `EnergyGradient` uses it.

        Raises:
            ShapeError, DtypeError: x is not (B, d) in float32 or float64.
        """
        with torch.no_grad():
            return self._exactly(self._energy_and_gradient, x)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density -U(x) - log Z (B,), differentiable as often as asked."""
        energy: Tensor = self(x)
        return -energy - self.log_partition

    def draw(
        self,
        n: int,
        seed: int | torch.Generator | Noise | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """n independent draws (n, d) from exp(-U) / Z, computed in float64.

        Row i depends on the seed and i alone, not on n. A draw uses two positions of the noise in
        `Purpose.INITIAL_STATE`, so it is independent of a run of `sample` with the same seed.

        Args:
            seed: an int, a generator, a `Noise` (which is advanced by two), or None, as in
                `sample`.
            dtype: of the result.
            device: of the result; this module's if None.

        Raises:
            ArgumentError, DtypeError, NoiseError: an argument is outside its range.
        """
        n = check_count("n", n, 0)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise DtypeError(f"dtype={dtype}: give a floating point dtype")
        noise = as_noise(seed)
        place = next(self.buffers()).device
        source = Source(noise.purpose(Purpose.INITIAL_STATE), n, place)
        noise.advance(Source.POSITIONS)
        with torch.no_grad():
            return self._draw(source).to(dtype).to(place if device is None else device)

    @property
    def mean(self) -> Tensor:
        """E x (d,), float64."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Var x (d,), float64."""
        spread = self._moments()[1]
        return spread if spread.dim() == 1 else spread.diagonal().clone()

    @property
    def covariance(self) -> Tensor:
        """Cov x (d, d), float64."""
        spread = self._moments()[1]
        return spread.diag() if spread.dim() == 1 else spread

    def extra_repr(self) -> str:
        return f"dim={self.dim}, log_partition={self.log_partition:.6g}"

    def chain_energy(self) -> ChainEnergy | None:
        """What kernels of whole chains take of this energy, as it was made; None if it was not.

        A subclass of a user's, or an instance with a forward of its own, is another energy.
        """
        own = type(self).__module__.startswith(f"{__package__}.")
        changed = self.__dict__.keys() & _COMPUTING
        if not own or changed:
            return None
        kind, components, numbers = self._numbers()
        cpu = torch.device("cpu")
        flat = [torch.as_tensor(t, dtype=torch.float64, device=cpu).reshape(-1) for t in numbers]
        return ChainEnergy(kind, components, torch.cat(flat))

    # ---- the machinery --------------------------------------------------------------------------

    def _hold(self, **values: Tensor) -> None:
        """Keep float64 tensors as buffers that are not part of the state dict."""
        for name, value in values.items():
            self.register_buffer(name, value.contiguous(), persistent=False)

    def _exactly(self, function: Callable[[Tensor], _Result], x: Tensor) -> _Result:
        """``function`` of checked states, in their dtype: autocast would leave eight bits."""
        if not isinstance(x, Tensor) or x.dtype not in _STATES:
            kind = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise DtypeError(f"x is {kind}: states are float32 or float64 tensors")
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ShapeError(f"x has shape {tuple(x.shape)}: states are (B, {self.dim})")
        device = x.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return function(x)
        with torch.autocast(device, enabled=False):
            return function(x)

    def _constants(self, x: Tensor) -> tuple[Tensor, ...]:
        """The buffers of ``_in_dtype`` in the dtype and on the device of x; made once for each."""
        if torch.compiler.is_compiling():
            return self._convert(x)
        key = x.dtype, x.device
        found = self._converted.get(key)
        if found is None:
            # Whatever watches this call must not be in what later calls use.
            with torch._C._DisableFuncTorch(), torch.inference_mode(False), torch.no_grad():
                found = tuple(t.clone() if t.is_inference() else t for t in self._convert(x))
            if all(type(t) is Tensor for t in found) and not _capturing(x):
                self._converted[key] = found
        return found

    def _convert(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name).to(x.device, x.dtype) for name in self._in_dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move to another device, and stay in float64 whatever dtype is asked for."""

        def move(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_converted": {}}


def _capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured: what it makes is filled in when it is replayed."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def absolute(x: Tensor) -> Tensor:
    """|x|, which has the right limit's derivatives at 0: those of an even smooth function of it."""
    return torch.where(x < 0, -x, x)


def transposed(x: Tensor) -> Tensor:
    """x^T (n, m) in memory of its own.

    Written through the transposed view of the result 10,000 x 2 numbers take 8 us on one core, read
    through that of x 39 us. With many rows and columns it is the other way round.
    """
    if min(x.shape) > 16:
        return x.mT.contiguous()
    out = x.new_empty(x.shape[1], x.shape[0])
    out.mT.copy_(x)
    return out
