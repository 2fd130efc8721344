"""One event stream: what was missed, what comes, and the end."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import Enum
from weakref import WeakKeyDictionary

from django.contrib.sessions.backends.base import SessionBase

from ..auth.guard import Guard
from ..clock import time_ns
from ..events import LOSS, Faults
from ..exceptions import ChannelClosed, LayerUnavailable
from ..layer import AsyncQueueChannelLayer
from ..messages.closing import CLOSE, close_of
from ..messages.envelopes import Envelope
from ..session.following import Follower, Reset
from ..stopping import signals
from . import request_thread
from .frames import Closing, Events, Renderer, closing_event, compact_json, event
from .wakeups import ToldToEnd, Wakeups

#: What waits goes out together, up to about this many bytes and this many messages.
CHUNK = 16 * 1024
MOST_AT_ONCE = 256
#: The last id of a stream to which its client is not to come back. A request with this id is answered with 204:
#: that is what ends an EventSource, by the HTML standard. What a stream says does not.
ENDED = "ended"

_events: WeakKeyDictionary[AsyncQueueChannelLayer, Events] = WeakKeyDictionary()
_faults = Faults()


@dataclass(frozen=True, slots=True)
class Wishes:
    """
    The arguments of a stream, checked.

    `heartbeat`, `retry` and `recheck` are in seconds, `not_before` in milliseconds since 1970. The stream ends
    with the session, if there is one.
    """

    groups: tuple[str, ...]
    since: str | None
    not_before: int
    heartbeat: float
    retry: tuple[float, float]
    session: SessionBase | None
    recheck: float | None


class Phase(Enum):
    """How far a stream is; `Stream` has the table."""

    RETURNING = "returning"
    LIVE = "live"
    CLOSED = "closed"


class Stream:
    """
    The chunks of one response.

    An id stands in the same block as its event, or behind everything before it. A client counts an id when the
    block's blank line has come, so a connection that breaks anywhere loses nothing and repeats nothing.

    phase     | event: next phase
    ----------|----------------------------------------------------------------------------------------------
    RETURNING | everything has come that was missed before this connection: LIVE. Close messages are left out
    LIVE      | a close message comes: CLOSED
    CLOSED    | none. The stream ends, as it does in each phase when it is told to, or its channel is closed
    """

    def __init__(self, layer: AsyncQueueChannelLayer, wishes: Wishes, renderer: Renderer) -> None:
        self._layer = layer
        self._wishes = wishes
        self._renderer = renderer
        self._events = _events.setdefault(layer, Events())
        self._phase = Phase.RETURNING
        self._retry_range = wishes.retry

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the stream until its client leaves, the layer is closed, or the process is told to stop."""
        wakeups = Wakeups(self._wishes.heartbeat)
        connections = signals.enter(wakeups)
        follower: Follower | None = None
        guard: Guard | None = None
        try:
            yield self.retry()
            try:
                follower = await wakeups.unless_told(self._layer.open_follower(self._wishes.groups))
                follower.channel.obey_close()
                follower.channel.read_by(type(self))
                if self._wishes.session is not None:
                    guard = Guard(self._layer, follower.channel.name, self._wishes.recheck)
                    if not await wakeups.unless_told(guard.begin(self._wishes.session)):
                        raise ToldToEnd
                await request_thread.release()
                await wakeups.unless_told(follower.begin(self._wishes.since))
                if not follower.recovered:
                    yield self._reset(follower, Reset(follower.reason, follower.groups))
                while follower.is_behind and not wakeups.is_told:
                    chunk, _ = self._joined(follower)
                    if chunk:
                        yield chunk
                    await asyncio.sleep(0)  # others have missed something too
                self._phase = Phase.LIVE
                if not wakeups.is_told:
                    yield self._comment(follower, "here")
                while not wakeups.is_told and self._phase is Phase.LIVE:
                    chunk = await self._next(follower, wakeups)
                    if chunk:
                        yield chunk
                        wakeups.spoke()
            except (ToldToEnd, ChannelClosed, LayerUnavailable):
                pass  # the client comes back to where it was
            except Exception as error:
                self._note(error)
            yield self.retry()
        finally:
            if guard is not None:
                guard.stop()
            if follower is not None:
                follower.channel.close()
            wakeups.close()
            connections.leave(wakeups)

    async def _next(self, follower: Follower, wakeups: Wakeups) -> bytes:
        """Return the next chunk; b"" where there is none yet."""
        chunk, is_all = self._joined(follower)
        if chunk:
            return chunk
        if not is_all:
            await asyncio.sleep(0)
        elif follower.has_lost:
            reset = await wakeups.unless_told(follower.mend())
            return self._reset(follower, reset) if reset is not None else b""
        elif wakeups.is_due:
            follower.catch_up()
            return self._comment(follower, "")
        else:
            await wakeups.wait(follower.channel)
        return b""

    # Chunks

    def _joined(self, follower: Follower) -> tuple[bytes, bool]:
        """
        Return the events of the messages that wait, and whether nothing waits any more.

        What was missed is never joined with what comes live.
        """
        was_behind = follower.is_behind
        chunk = bytearray()
        for _ in range(MOST_AT_ONCE):
            envelope = follower.take()
            if envelope is None:
                return bytes(chunk), True
            if self._is_wanted(envelope, follower):
                made = self._events.event(envelope, self._renderer, follower)
            else:
                made = self._aside(envelope, follower)
            if made:
                if envelope.position:
                    chunk += b"id: %b\n" % follower.position.encode()
                chunk += made
            elif isinstance(made, Closing) and self._phase is Phase.LIVE:
                # (A close that was missed was meant for the connection before this one.)
                chunk += self._close(follower, made)
                break
            if len(chunk) >= CHUNK or follower.is_behind is not was_behind:
                break
        return bytes(chunk), False

    def _is_wanted(self, envelope: Envelope, follower: Follower) -> bool:
        # The layer's own notices come to the channel, and not to a group.
        if envelope.target not in follower.groups:
            return False
        not_before = self._wishes.not_before
        return not not_before or (envelope.position >> 64 or time_ns() // 1_000_000) >= not_before

    def _aside(self, envelope: Envelope, follower: Follower) -> bytes:
        """Return what a message is to the stream that its client does not get: `Closing`, or b""."""
        if self._phase is Phase.RETURNING:
            return b""
        message = follower.message_of(envelope)
        return Closing.of(message) if message.get("type") == CLOSE else b""

    def _close(self, follower: Follower, closing: Closing) -> bytes:
        """End the stream. Raises as `close_of()`."""
        self._phase = Phase.CLOSED
        close = close_of(closing.message)
        if close.retry is not None:
            self._retry_range = close.retry, 2 * close.retry
        last_id = ENDED if close.is_final else follower.position
        return b"id: %b\n%b" % (last_id.encode(), closing_event(close))

    def _reset(self, follower: Follower, reset: Reset) -> bytes:
        data = compact_json({"reason": reset.reason, "groups": reset.groups})
        return b"id: %b\n%b" % (follower.position.encode(), event("reset", data))

    def _comment(self, follower: Follower, text: str) -> bytes:
        return f"id: {follower.position}\n: {text}\n\n".encode()

    def retry(self, least: float = 0.0) -> bytes:
        """Return the line by which a client comes back in a while: later than in `least` seconds."""
        return b"retry: %d\n\n" % round(1000 * (least + random.uniform(*self._retry_range)))

    def _note(self, error: Exception) -> None:
        cause = f"{self._renderer} {type(error).__name__}"
        text = "an event stream of %s has ended by an error, and its client comes back to where it was: %s"
        _faults.warn(
            LOSS,
            "stream.failed",
            cause,
            text,
            ", ".join(self._wishes.groups),
            "".join(traceback.format_exception(error)),
            level=logging.ERROR,
        )
