"""What a planted bug is."""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    name: str
    file: str
    old: str
    """Occurs once in the file."""
    new: str
    test: str
    """Node id, without parameters."""
