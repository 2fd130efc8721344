"""The figures of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...clock import monotonic
from .pieces import Pieces


async def status(pieces: Pieces, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the figures of `statistics()`, and for how many seconds the session has been there.

    Arguments: `interval`, the seconds for which `per_second` is measured: the messages that are delivered in that
    time. Without it, that is None.
    """
    interval = float(arguments.get("interval", 0))
    per_second = None
    if interval > 0:
        began, before = monotonic(), pieces.hub.counters.delivered
        await asyncio.sleep(interval)
        per_second = (pieces.hub.counters.delivered - before) / (monotonic() - began)
    figures = pieces.views.statistics()
    return {
        "seconds": monotonic() - pieces.began,
        "channels": figures.channels,
        "groups": figures.groups,
        "queued": sum(count for _, count in figures.queued),
        "delivered": figures.delivered,
        "per_second": per_second,
        "dropped": figures.dropped,
        "told": figures.told,
        "links": [asdict(link) for link in figures.links],
    }
