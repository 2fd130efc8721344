"""The normal channels that a session reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .pieces import Pieces


async def readers(pieces: Pieces, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of the normal channels that are read; with `channel`, of that one only."""
    wanted = arguments.get("channel")
    found = sorted(pieces.readers.channels() if wanted is None else {wanted} & pieces.readers.channels())
    return {"channels": found[: arguments["limit"]]}
