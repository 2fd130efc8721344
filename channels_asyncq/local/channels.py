"""The channels that one session reads: opened, closed and swept."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..clock import monotonic
from ..exceptions import ChannelClosed
from ..messages.envelopes import Envelope
from ..settings.options import Options
from .buffers import ChannelBuffer
from .chunks import SOME, chunks
from .counters import Counters
from .flow import MOST_WOKEN, FlowControl
from .groups import Groups
from .watchers import Watchers

# The name of a closed channel is remembered this long, so that late senders and receivers get ChannelClosed.
CLOSED_NAMES_KEPT = 300.0
# The names that are remembered at most, where channels come and go fast.
MOST_CLOSED_NAMES = 10_000
# A reader may be this many expiries late before its expired messages cost it its groups.
_ABANDONED_AFTER = 2.0
# An exception takes a receiver longer than a message.
_MOST_CLOSED = MOST_WOKEN // 3


class Channels:
    """
    The channels of one session, and the names of those that were closed.

    state of a name | `buffers` | `closed_names` | what ends it
    ----------------|-----------|----------------|---------------------------------------------------------
    unknown         | none      | no             | it is opened: open; or closed: closed
    open            | there     | no             | it is closed: draining; unused for `expiry`: unknown
    draining        | closed    | yes            | nothing is left to read: closed
    closed          | none      | yes            | `CLOSED_NAMES_KEPT` seconds, or many newer names: unknown
    """

    def __init__(
        self, options: Options, counters: Counters, flow: FlowControl, groups: Groups, watchers: Watchers
    ) -> None:
        self._options = options
        self._counters = counters
        self._flow = flow
        self._groups = groups
        self._watchers = watchers
        #: By name.
        self.buffers: dict[str, ChannelBuffer] = {}
        #: By name, when the channel was closed.
        self.closed_names: dict[str, float] = {}

    def open(self, channel: str) -> ChannelBuffer:
        """
        Return the buffer of a channel, made if it is not there.

        Raises:
            ChannelClosed: it was closed.
        """
        buffer = self.buffers.get(channel)
        if buffer is None:
            if channel in self.closed_names:
                raise ChannelClosed(channel)
            buffer = self.make(channel)
        return buffer

    def make(self, channel: str) -> ChannelBuffer:
        """Return the buffer of a channel that was never there."""
        options = self._options
        buffer = ChannelBuffer(
            channel, options.capacity_of(channel), self._counters, self._flow, options.on_loss
        )
        self.buffers[channel] = buffer
        return buffer

    def close(self, channel: str) -> None:
        """
        Close a channel: it leaves its groups and accepts nothing; receivers get what is left, then ChannelClosed.
        """
        self.closed_names.setdefault(channel, monotonic())
        if len(self.closed_names) > MOST_CLOSED_NAMES:
            del self.closed_names[next(iter(self.closed_names))]
        buffer = self.buffers.get(channel)
        if buffer is None:
            return
        self._groups.leave_all(buffer)
        buffer.close()
        self._flow.forget(buffer)
        if not buffer.queued and not buffer.waiting:
            del self.buffers[channel]
        self._watchers.wake()

    def discard(self, buffer: ChannelBuffer) -> None:
        """Close a channel whose only reader has gone; what still waits in it is counted as dropped."""
        buffer.is_kept = False
        self._counters.drop_all("closed", buffer.channel, buffer.clear())
        self.close(buffer.channel)

    def has(self, buffer: ChannelBuffer) -> bool:
        """Tell whether a buffer is still that of its channel."""
        return self.buffers.get(buffer.channel) is buffer

    def forget_all(self) -> list[ChannelBuffer]:
        """Remove all channels; return their buffers for `close_all()`."""
        buffers = list(self.buffers.values())
        self.buffers.clear()
        return buffers

    def take_any(self, prefix: str) -> Envelope | None:
        """Remove and return the oldest envelope of all channels whose name begins so, or None."""
        found = [buffer for channel, buffer in self.buffers.items() if channel.startswith(prefix)]
        for buffer in found:
            buffer.drop_expired()
        for buffer in sorted(
            found, key=lambda buffer: buffer.oldest.expires_at if buffer.oldest else math.inf
        ):
            envelope = buffer.take()
            if envelope is not None:
                return envelope
        return None

    @property
    def are_awaited(self) -> bool:
        """Whether a receiver or a sender waits, or a channel is held open to read from it."""
        return bool(self._watchers.waiting) or any(
            buffer.is_awaited or buffer.is_kept for buffer in self.buffers.values()
        )

    # Long jobs in slices

    def close_all(self, buffers: list[ChannelBuffer], reason: type[ChannelClosed]) -> Iterator[bool]:
        """Close channels that were removed; what waits in them is counted as dropped."""
        # Emptied on the way: freeing all of them at the end would be a long turn of the loop.
        buffers.reverse()
        woken = 0
        while buffers:
            for _ in range(min(SOME, len(buffers))):
                buffer = buffers.pop()
                woken += buffer.waiting
                self._counters.dropped["closed"] += buffer.clear()
                buffer.close(reason)
            must_end = woken >= _MOST_CLOSED
            if must_end:
                woken = 0
            yield must_end

    def flush(self, buffers: list[ChannelBuffer]) -> Iterator[bool]:
        """Drop all messages, and the topics of forgotten groups."""
        for some in chunks(buffers, SOME):
            for buffer in some:
                if self.has(buffer):
                    self._flush(buffer)
            yield False

    def _flush(self, buffer: ChannelBuffer) -> None:
        self._counters.drop_all("flushed", buffer.channel, buffer.clear())
        self._groups.drop_stale_topics(buffer)
        if buffer.closed is not None:
            del self.buffers[buffer.channel]

    def sweep(self, now: float) -> Iterator[bool]:
        """Drop what expired, the buffers that nobody uses any more, and old names of closed channels."""
        for some in chunks(list(self.buffers.values()), SOME):
            for buffer in some:
                if self.has(buffer):
                    self._sweep(buffer, now)
            yield False
        for channel, since in list(self.closed_names.items()):
            if now - since > CLOSED_NAMES_KEPT and channel not in self.buffers:
                del self.closed_names[channel]

    def _sweep(self, buffer: ChannelBuffer, now: float) -> None:
        expiry = self._options.expiry
        buffer.drop_expired()
        if buffer.is_awaited or now - buffer.last_used <= expiry:
            return
        is_unread = buffer.lost_expired and now - buffer.last_used > _ABANDONED_AFTER * expiry
        is_abandoned = is_unread and not buffer.is_kept
        if is_abandoned:
            self._groups.leave_all(buffer)
        is_empty = not (buffer.has_messages if is_abandoned else buffer.queued)
        if is_empty and not buffer.groups and not buffer.is_kept:
            self._flow.forget(buffer)
            del self.buffers[buffer.channel]

    def resize(self) -> Iterator[bool]:
        """Hold the channels to their capacities as they are now."""
        for some in chunks(list(self.buffers.values()), SOME):
            for buffer in some:
                if self.has(buffer):
                    buffer.resize(self._options.capacity_of(buffer.channel))
                    self._flow.note_full(buffer)
            yield False
