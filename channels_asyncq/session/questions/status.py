"""The figures of a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...clock import monotonic
from .pieces import Pieces


async def status(pieces: Pieces, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of `statistics()`, and for how many seconds the session has been there."""
    figures = pieces.views.statistics()
    return {
        "seconds": monotonic() - pieces.began,
        "channels": figures.channels,
        "groups": figures.groups,
        "queued": sum(count for _, count in figures.queued),
        "delivered": figures.delivered,
        "dropped": figures.dropped,
        "told": figures.told,
        "links": [
            {
                "address": link.address,
                "state": link.state,
                "reconnects": link.reconnects,
                "reason": link.reason,
            }
            for link in figures.links
        ],
    }
