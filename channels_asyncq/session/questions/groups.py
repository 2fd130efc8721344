"""The groups with members in a session."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ...slices import Slice
from .channels import row_of
from .pieces import Pieces


async def groups(pieces: Pieces, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the groups with the most members here, and how many members these are.

    Arguments: `pattern`, for the names of groups, `*` for any text. Normal channels are not counted: the server
    has them.
    """
    pattern = str(arguments.get("pattern", "*"))
    turn = Slice()
    found: list[tuple[int, str]] = []
    for topic, group in list(pieces.hub.groups.by_topic.items()):
        name = pieces.topics.group_named(topic)
        if fnmatchcase(name, pattern):
            found.append((len(group.members), name))
        await turn.rest()
    most = heapq.nlargest(arguments["limit"], found)
    return {"count": len(found), "groups": [{"group": name, "members": count} for count, name in most]}


async def group(pieces: Pieces, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the members of one group: those in which the most messages wait come first.

    Arguments: `group`, its name.
    """
    topic = pieces.topics.group(str(arguments["group"])).topic.name
    members = pieces.hub.groups.by_topic[topic].members if topic in pieces.hub.groups.by_topic else {}
    turn = Slice()
    found: list[tuple[int, str]] = []
    for channel, member in list(members.items()):
        found.append((member.buffer.queued, channel))
        await turn.rest()
    rows = [
        row_of(pieces, members[channel].buffer)
        for _, channel in heapq.nlargest(arguments["limit"], found)
        if channel in members
    ]
    return {"count": len(found), "members": rows}
