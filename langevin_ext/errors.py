"""The errors raised on purpose, each also of a built-in kind so that old handlers work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._watch import Samples


class LangevinError(Exception):
    """Base of the errors below. Raised in `sample`, ``samples`` holds what had been drawn."""

    samples: Samples | None = None


class ArgumentError(LangevinError, ValueError):
    """An argument has a value outside its documented range."""


class StepSizeError(ArgumentError):
    """A step size, coefficient or threshold is not a positive finite number."""


class NoiseError(ArgumentError):
    """A seed, step, stream or chain id does not fit the noise's counter."""


class ShapeError(LangevinError, ValueError):
    """A tensor has the wrong shape."""


class DtypeError(LangevinError, TypeError):
    """A tensor has a dtype that cannot be used here."""


class DeviceError(LangevinError, ValueError):
    """Tensors that must share a device do not."""


class GradientError(LangevinError, RuntimeError):
    """An operation and autograd contradict each other."""


class BackendError(LangevinError, RuntimeError):
    """A backend was asked for by name and cannot do it."""


class EnergyError(LangevinError, RuntimeError):
    """The energy raised, or returned something that is not one number per chain."""


class NonFiniteError(LangevinError, ArithmeticError):
    """Chains left the finite numbers. ``step`` and ``chains`` say when and which."""

    def __init__(self, message: str, *, step: int = 0, chains: list[int] | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.chains = chains or []


class SamplingInterrupted(KeyboardInterrupt):
    """Ctrl-C during `sample`. ``samples`` holds what was drawn; its state continues the run."""

    def __init__(self, message: str = "", samples: Samples | None = None) -> None:
        super().__init__(message)
        self.samples = samples


class FlatEnergyWarning(UserWarning):
    """A chain was differentiated through an energy whose second derivative is zero."""


class FallbackWarning(UserWarning):
    """``backend="auto"`` had to take a slower backend than this device deserves."""
