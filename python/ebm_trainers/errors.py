"""Errors of the trainers, in the library's hierarchy."""

from __future__ import annotations

from langevin_ext.errors import LangevinError


class CheckpointError(LangevinError, RuntimeError):
    """A checkpoint cannot be written, or what is read is not an intact one."""


class ConfigError(LangevinError, ValueError):
    """A run's configuration is wrong, or contradicts the run it is to resume."""


class DataError(LangevinError, ValueError):
    """There are no such data, or they cannot be read."""
