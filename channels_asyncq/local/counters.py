"""What one event loop delivered and dropped, and how many bytes wait in its channels."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from ..clock import monotonic
from ..messages.envelopes import Envelope

#: The drops that are remembered, of all channels of an event loop together.
MOST_DROPS = 256
# A payload up to this many bytes is kept with its drop, so that the type of the message can be told.
_SMALL = 1024


class Drop(NamedTuple):
    """
    A message that a channel dropped, or several of which only the number is known.

    `at` is a time of `monotonic()`. `payload` is empty for a large message. Without a message, `target` is empty,
    and `size` is 0.
    """

    at: float
    channel: str
    reason: str
    messages: int = 1
    target: str = ""
    session_id: bytes = b""
    seq: int = 0
    size: int = 0
    payload: bytes = b""


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

    The last drops of channels are remembered in `drops`.

    Where `max_buffered_bytes` is set, it also counts the bytes of the payloads that wait. A payload counts once,
    however many buffers hold it.
    """

    __slots__ = (
        "delivered",
        "dropped",
        "drops",
        "external",
        "held_bytes",
        "limited",
        "most_bytes",
        "told",
        "woken",
    )

    def __init__(self, most_bytes: int | None = None) -> None:
        self.delivered = 0
        self.external = 0
        self.dropped: Counter[str] = Counter()
        #: The last `MOST_DROPS` drops, oldest first. None until there is one: an empty deque is large.
        self.drops: deque[Drop] | None = None
        #: Channels that lost something, by reason, whether or not `on_loss` is set: `Statistics.told`.
        self.told: Counter[str] = Counter()
        #: What the clients of consumers and streams were not allowed, by limit: `Statistics.limited`.
        self.limited: Counter[str] = Counter()
        #: Bytes of the payloads that wait; stays 0 where there is no limit.
        self.held_bytes = 0
        self.most_bytes = most_bytes
        #: How often an envelope or a loss notice woke a receiver.
        self.woken = 0

    def drop(self, reason: str, channel: str, envelope: Envelope) -> None:
        """Count a message that a channel drops, and remember it."""
        payload = envelope.payload
        size = len(payload)
        self.dropped[reason] += 1
        self._remember(
            Drop(
                monotonic(),
                channel,
                reason,
                1,
                envelope.target,
                envelope.session_id,
                envelope.seq,
                size,
                payload if size <= _SMALL else b"",
            )
        )

    def drop_all(self, reason: str, channel: str, count: int) -> None:
        """Count messages of a channel that are dropped together, and remember how many."""
        if count:
            self.dropped[reason] += count
            self._remember(Drop(monotonic(), channel, reason, count))

    def _remember(self, drop: Drop) -> None:
        if self.drops is None:
            self.drops = deque(maxlen=MOST_DROPS)
        self.drops.append(drop)

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
