"""Rules: one sampler, one file, its equation on top."""

from .anila import AniLA as AniLA
from .langevin import Langevin as Langevin
