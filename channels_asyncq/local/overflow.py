"""What happens to a message that finds its channel full."""

from __future__ import annotations

from channels.exceptions import ChannelFull

from ..events import LOSS, Throttle
from ..messages.envelopes import Envelope
from ..settings.options import Options
from .buffers import ChannelBuffer
from .channels import Channels
from .counters import Counters


def would_exceed_bytes(counters: Counters, buffer: ChannelBuffer, envelope: Envelope) -> bool:
    """Tell whether `max_buffered_bytes` forbids an envelope. An empty channel takes it: its reader keeps up."""
    return counters.would_exceed(envelope) and buffer.has_messages


class Overflow:
    """The `overflow` setting at work: messages are dropped, counted, logged, and their readers notified."""

    def __init__(self, options: Options, counters: Counters, throttle: Throttle, channels: Channels) -> None:
        self._options = options
        self._counters = counters
        self._throttle = throttle
        self._channels = channels

    def require_place(self, buffer: ChannelBuffer, envelope: Envelope) -> None:
        """
        Raises:
            ChannelClosed: the channel is closed.
            ChannelFull: it holds `capacity` messages, or the event loop holds `max_buffered_bytes`.
        """
        if buffer.closed is not None:
            raise buffer.closed(buffer.channel)
        if buffer.full() and not buffer.drop_expired():
            raise ChannelFull(
                f"channel {buffer.channel!r} holds {buffer.capacity} messages, its capacity; "
                "read it faster, raise `capacity` or `channel_capacity`, or use send_wait()"
            )
        counters = self._counters
        if counters.most_bytes is not None and would_exceed_bytes(counters, buffer, envelope):
            raise ChannelFull(
                f"channel {buffer.channel!r} is not empty, and messages of {counters.held_bytes} bytes wait in "
                f"this event loop; max_buffered_bytes is {counters.most_bytes}: read faster, or raise it"
            )

    def put(self, buffer: ChannelBuffer, envelope: Envelope) -> bool:
        """Put an envelope into a full buffer, or drop it; return whether it is in the buffer now."""
        policy = self._options.overflow
        if policy == "close" and buffer.is_mended:
            policy = "drop_newest"
        if policy == "close":
            self._counters.drop("overflow", buffer.channel, envelope)
            self._close(buffer)
            return False
        if not buffer.losses or "overflow" not in buffer.losses:
            self._log(buffer.channel)
        if policy == "drop_newest" or not buffer.has_messages:
            self._counters.drop("overflow", buffer.channel, envelope)
            if buffer.ends_at(envelope):
                self._close(buffer)
                return False
            buffer.notify_loss("overflow", [envelope.target], at_head=False)
            return False
        dropped = [buffer.drop_oldest()]
        while would_exceed_bytes(self._counters, buffer, envelope):
            dropped.append(buffer.drop_oldest())
        for each in dropped:
            self._counters.drop("overflow", buffer.channel, each)
        if any(buffer.ends_at(each) for each in dropped):
            self._close(buffer)
            return False
        buffer.offer(envelope)
        buffer.notify_loss("overflow", [each.target for each in dropped], at_head=True)
        return True

    def _close(self, buffer: ChannelBuffer) -> None:
        self._log(buffer.channel)
        self._counters.told["overflow"] += 1
        self._channels.close(buffer.channel)

    def count(self, channel: str) -> None:
        """Count and log a message to a group that found a normal channel full."""
        self._counters.drop_all("overflow", channel, 1)
        self._log(channel)

    def _log(self, channel: str) -> None:
        options, counters = self._options, self._counters
        if counters.most_bytes is not None and counters.held_bytes >= counters.most_bytes / 2:
            limit = f"max_buffered_bytes ({options.max_buffered_bytes}; {counters.held_bytes} wait)"
        else:
            limit = f"{options.capacity_rule(channel)} ({options.capacity_of(channel)})"
        self._throttle.warn(
            LOSS,
            "loss.overflow",
            "channel %(channel)s is full by %(limit)s, and its reader is too slow: messages are dropped "
            "(overflow=%(overflow)r); raise that setting, or read faster",
            channel=channel,
            limit=limit,
            overflow=options.overflow,
        )
