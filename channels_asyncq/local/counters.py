"""What one event loop delivered and dropped, and how many bytes wait in its channels."""

from __future__ import annotations

from collections import Counter

from ..messages.envelopes import Envelope


class Counters:
    """
    What a session delivered to its channels and what it dropped, by reason.

    reason in `dropped` | counted by
    --------------------|------------------------------------------------------------------------------
    overflow            | `local.overflow`; envelopes from inside the process: `session.drops`
    expired             | `local.buffers`
    closed              | `local.hub`, `local.channels`, `session.arrivals`
    flushed             | `local.channels`; normal channels: `session.flushing`
    unreadable          | `session.drops`
    unhandled           | `session.drops`
    dead_owner          | `session.groups`, `session.requests`
    server_forgot       | `session.notices`

    Where `max_buffered_bytes` is set, it also counts the bytes of the payloads that wait. A payload counts once,
    however many buffers hold it.
    """

    __slots__ = ("delivered", "dropped", "external", "held_bytes", "limited", "most_bytes", "told", "woken")

    def __init__(self, most_bytes: int | None = None) -> None:
        self.delivered = 0
        self.external = 0
        self.dropped: Counter[str] = Counter()
        #: Channels that lost something, by reason, whether or not `on_loss` is set: `Statistics.told`.
        self.told: Counter[str] = Counter()
        #: What the clients of consumers and streams were not allowed, by limit: `Statistics.limited`.
        self.limited: Counter[str] = Counter()
        #: Bytes of the payloads that wait; stays 0 where there is no limit.
        self.held_bytes = 0
        self.most_bytes = most_bytes
        #: How often an envelope or a loss notice woke a receiver.
        self.woken = 0

    def hold(self, envelope: Envelope) -> None:
        """Count a buffer that now holds the envelope. Only where there is a limit."""
        if not envelope.holders:
            self.held_bytes += len(envelope.payload)
        envelope.holders += 1

    def release(self, envelope: Envelope) -> None:
        """Count a buffer that no longer holds the envelope. Only where there is a limit."""
        envelope.holders -= 1
        if not envelope.holders:
            self.held_bytes -= len(envelope.payload)

    def would_exceed(self, envelope: Envelope) -> bool:
        """Tell whether the waiting payloads would exceed the limit if one more buffer held the envelope."""
        added = 0 if envelope.holders else len(envelope.payload)
        return self.most_bytes is not None and self.held_bytes + added > self.most_bytes
