"""An energy times a number: U(x) = c U_0(x), the density to the power of c."""

from __future__ import annotations

from torch import Tensor, nn

from .._types import Energy
from ..errors import EnergyError
from ._arguments import finite


class Scaled(nn.Module):
    """U(x) = factor * energy(x): at temperature T factor 1 / T, of a score to be raised -1.

    A module, so that `sample` sees the network inside, where it would not see that of a lambda.

    Args:
        energy: any callable or module (B, ...) -> (B,) or (B, 1); a module's parameters are this
            one's.
        factor: a finite number; it may be changed.

    Raises:
        ArgumentError: factor is no finite number.
        EnergyError: energy cannot be called.
    """

    def __init__(self, energy: Energy, factor: float) -> None:
        super().__init__()
        if not callable(energy):
            raise EnergyError(f"energy is a {type(energy).__name__}: pass a callable or a module")
        self.energy = energy
        self.factor = finite("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        """U(x), in the shape that ``energy`` gives it."""
        value: Tensor = self.factor * self.energy(x)
        return value

    def extra_repr(self) -> str:
        return f"factor={self.factor:g}"
