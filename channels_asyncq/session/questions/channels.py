"""The channels that a session reads."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

from ...clock import monotonic
from ...local.buffers import ChannelBuffer
from ...slices import Slice
from .pieces import Pieces


async def channels(pieces: Pieces, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the fullest channels here.

    Arguments: `slow`, for those only in which messages wait. Normal channels are not among them: the server has
    them.
    """
    is_slow = bool(arguments.get("slow", False))
    turn = Slice()
    found: list[tuple[float, str]] = []
    for channel, buffer in list(pieces.hub.channels.buffers.items()):
        if buffer.queued or not is_slow:
            found.append((buffer.queued / buffer.capacity, channel))
        await turn.rest()
    buffers = pieces.hub.channels.buffers
    fullest = heapq.nlargest(arguments["limit"], found)
    rows = [row_of(pieces, buffers[channel]) for _, channel in fullest if channel in buffers]
    return {"count": len(found), "channels": rows}


def row_of(pieces: Pieces, buffer: ChannelBuffer) -> dict[str, Any]:
    """
    Return how full a channel is, the age of its oldest message in seconds, and what reads it.

    The age is counted from the arrival in the channel: a message expires at an age of `expiry`.
    """
    oldest = buffer.oldest_message
    age = None
    if oldest is not None:
        age = max(0.0, pieces.options.expiry - (oldest.expires_at - monotonic()))
    return {
        "channel": buffer.channel,
        "waiting": buffer.queued,
        "capacity": buffer.capacity,
        "oldest": age,
        "reader": _reader_of(buffer),
    }


def _reader_of(buffer: ChannelBuffer) -> str:
    if buffer.reader is not None:
        return f"{buffer.reader.__module__}.{buffer.reader.__qualname__}"
    return "open_channel()" if buffer.is_kept else "receive()"
