"""Bugs to plant in a copy of the library, each with the test that must catch it.

`test_planted_bugs` plants them one at a time. They are what goes wrong in samplers that look
right: most leave a plausible picture, and a test of means and variances to ten percent passes.
"""

from __future__ import annotations

from . import chains, checks, decisions, driver, kernels, noise, rules, step
from .bug import Bug

__all__ = ["BUGS", "Bug"]

BUGS: tuple[Bug, ...] = (
    *noise.BUGS,
    *step.BUGS,
    *rules.BUGS,
    *decisions.BUGS,
    *driver.BUGS,
    *kernels.BUGS,
    *chains.BUGS,
    *checks.BUGS,
)
