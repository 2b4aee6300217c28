"""langevin_ext: fused Langevin samplers for PyTorch, and the models trained on them."""

from . import (
    backends as backends,
    diagnostics as diagnostics,
    energies as energies,
    errors as errors,
    noise as noise,
    plots as plots,
)
from ._types import StepStats as StepStats
from ._watch import Samples as Samples, SampleState as SampleState, SampleStats as SampleStats
from .gradient import EnergyGradient as EnergyGradient
from .noise import Noise as Noise, Purpose as Purpose
from .sample import sample as sample
from .samplers import (
    HMC as HMC,
    MALA as MALA,
    TULA as TULA,
    AniLA as AniLA,
    KineticLangevin as KineticLangevin,
    Langevin as Langevin,
    gradient_scale as gradient_scale,
)
from .step import langevin_step as langevin_step, langevin_step_ as langevin_step_
from .unroll import unroll as unroll

__version__ = "0.1.0"
