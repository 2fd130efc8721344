"""The figures of a session for monitoring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..figures import Figures
from .pieces import Pieces


async def metrics(pieces: Pieces, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return `Figures` in plain values."""
    return Figures.of(pieces.views.statistics()).to_plain()
