"""langevin_ext: fused Langevin samplers for PyTorch, and the models trained on them."""

from ._types import StepStats as StepStats
from .noise import Noise as Noise
from .step import langevin_step as langevin_step, langevin_step_ as langevin_step_
