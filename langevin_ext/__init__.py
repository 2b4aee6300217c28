"""langevin_ext: fused Langevin samplers for PyTorch, and the models trained on them."""

from . import backends as backends
from . import errors as errors
from . import noise as noise
from ._types import StepStats as StepStats
from .gradient import EnergyGradient as EnergyGradient
from .noise import Noise as Noise
from .noise import Purpose as Purpose
from .sample import (
    Samples as Samples,
)
from .sample import (
    SampleState as SampleState,
)
from .sample import (
    SampleStats as SampleStats,
)
from .sample import (
    sample as sample,
)
from .samplers import AniLA as AniLA
from .samplers import Langevin as Langevin
from .step import langevin_step as langevin_step
from .step import langevin_step_ as langevin_step_

__version__ = "0.1.0"
