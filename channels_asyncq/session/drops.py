"""
Messages that arrived and that no channel can get: counted, and logged at a bounded rate.

A message that a channel drops is counted by that channel's rooms: `Counters` lists all reasons.
"""

from __future__ import annotations

from .. import threads
from ..events import WIRE
from ..local.hub import Hub
from ..messages.external import ExternalMessage


class DropLog:
    """Counts and logs the arriving messages that one session drops."""

    def __init__(self, hub: Hub) -> None:
        self._counters = hub.counters
        self._throttle = hub.throttle
        # Other threads count here, and the hub's counters belong to the session's loop: two threads that add one
        # each may add one in all.
        self._lock = threads.lock()
        self._overruns = 0

    def unreadable(self, topic: bytes, reason: str) -> None:
        """Note bytes on a topic that are no message."""
        self._counters.dropped["unreadable"] += 1
        text = "dropped what arrived on %(topic)s: %(reason)s"
        self._throttle.warn(WIRE, "wire.unreadable", text, topic=topic.decode(), reason=reason)

    def unhandled(self, message: ExternalMessage, reader: str) -> None:
        """Note a message from outside for which its consumer has no handler."""
        self._counters.dropped["unhandled"] += 1
        self._throttle.warn(
            WIRE,
            "wire.unhandled",
            "%(consumer)s has no handler for a message from outside of type %(type)r; it is dropped: list the "
            "types that other programs may send in CONFIG's `external`",
            consumer=reader,
            type=message["type"],
        )

    def limited(self, limit: str, reader: str, outcome: str | None) -> None:
        """Count what a client was not allowed, and log it if there is an outcome that is worth a line."""
        self._counters.limited[limit] += 1
        if outcome is not None:
            self._throttle.warn(
                WIRE,
                "client.limited",
                "a client of %(consumer)s exceeds %(limit)s: %(reason)s. Raise the limit if the client means "
                "no harm",
                consumer=reader,
                limit=limit,
                reason=outcome,
            )

    def overrun(self) -> None:
        """Note an envelope for which this loop had no place, from any thread."""
        with self._lock:
            self._overruns += 1

    @property
    def overruns(self) -> int:
        return self._overruns
