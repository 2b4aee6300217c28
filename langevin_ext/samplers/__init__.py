"""Rules: one sampler, one file, its equation on top."""

from .anila import AniLA as AniLA, gradient_scale as gradient_scale
from .hmc import HMC as HMC
from .kinetic import KineticLangevin as KineticLangevin
from .langevin import Langevin as Langevin
from .mala import MALA as MALA
from .tula import TULA as TULA
