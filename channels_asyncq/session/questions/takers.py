"""The channels of a session that take a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .pieces import Pieces


async def takers(pieces: Pieces, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many channels here are members of the `group` but not in `exclude`, or are the `channel`."""
    if "channel" in arguments:
        return {"channels": int(arguments["channel"] in pieces.hub.channels.buffers)}
    group = pieces.hub.groups.by_topic.get(pieces.topics.group(arguments["group"]).topic.name)
    members = set() if group is None else group.members.keys() - set(arguments["exclude"])
    return {"channels": len(members)}
