"""What became of messages that reached a session: which ones wait, and which ones were dropped, and why."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from ...clock import monotonic, time_ns
from ...local.buffers import ChannelBuffer
from ...local.counters import MOST_DROPS, Drop
from ...messages.envelopes import NOTICE, Envelope
from ...names import owner_of
from ..logged import type_of
from .channels import row_of
from .pieces import Pieces

# Losses of which each message is among the drops.
_REMEMBERED = frozenset({"overflow", "expired"})


async def trace(pieces: Pieces, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the last drops of a channel, or of messages to a group. Of a channel of this session, also what waits.

    Arguments: `name`, of the group or channel. `drops_since` is the time of the first drop that is remembered, in
    s since 1970, if earlier ones were forgotten. `told` says how many channels here missed messages that never
    arrived, by reason.
    """
    name, limit = str(arguments["name"]), int(arguments["limit"])
    counters = pieces.hub.counters
    drops = list(counters.drops or ())
    found = [drop for drop in drops if name in (drop.channel, drop.target)]
    body: dict[str, Any] = {
        "dropped": [_dropped(pieces, drop) for drop in found[len(found) - min(limit, len(found)) :]],
        "drops_since": _time_of(drops[0].at) if len(drops) == MOST_DROPS else None,
        "told": {reason: count for reason, count in counters.told.items() if reason not in _REMEMBERED},
        "is_owner": owner_of(name) == pieces.session_id,
        "is_closed": name in pieces.hub.channels.closed_names,
        "channel": None,
    }
    buffer = pieces.hub.channels.buffers.get(name)
    if buffer is not None:
        body["channel"] = _channel(pieces, buffer, limit)
    return body


def _channel(pieces: Pieces, buffer: ChannelBuffer, limit: int) -> dict[str, Any]:
    groups = []
    for topic in islice(buffer.groups, limit):
        group = pieces.hub.groups.by_topic.get(topic)
        member = None if group is None else group.members.get(buffer.channel)
        if member is not None:
            groups.append({"group": pieces.topics.group_named(topic), "joined": _time_of(member.joined)})
    messages = [each for each in buffer.contents() if not each.flags & NOTICE]
    return {
        **row_of(pieces, buffer),
        "groups": sorted(groups, key=lambda row: str(row["group"])),
        "group_count": len(buffer.groups),
        "names": [buffer.channel, *buffer.former],
        "messages": [
            _waiting(pieces, each) for each in messages[len(messages) - min(limit, len(messages)) :]
        ],
    }


def _waiting(pieces: Pieces, envelope: Envelope) -> dict[str, Any]:
    return {
        "at": _time_of(envelope.expires_at - pieces.options.expiry),
        "target": envelope.target,
        "sender": _sender(pieces, envelope.session_id),
        "number": envelope.seq,
        "size": len(envelope.payload),
        "type": type_of(envelope.payload, pieces.codec),
    }


def _dropped(pieces: Pieces, drop: Drop) -> dict[str, Any]:
    return {
        "at": _time_of(drop.at),
        "channel": drop.channel,
        "reason": drop.reason,
        "count": drop.messages,
        "target": drop.target,
        "sender": _sender(pieces, drop.session_id) if drop.session_id else None,
        "number": drop.seq,
        "size": drop.size if drop.session_id else None,
        "type": type_of(drop.payload, pieces.codec) if drop.payload else None,
    }


def _sender(pieces: Pieces, session_id: bytes) -> str:
    # What never left the process has no sender in its envelope.
    return session_id.hex() if any(session_id) else pieces.session_id


def _time_of(at: float) -> float:
    """Return a time of `monotonic()` in s since 1970."""
    return time_ns() / 1e9 - (monotonic() - at)
