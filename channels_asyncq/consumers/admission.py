"""Holds what a client sends to the limits of its consumer."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

from ..layer import AsyncQueueChannelLayer
from ..messages.closing import Close
from ..rates import Meter, Rate
from ..slices import Slice
from .connection import Connection, connection_of
from .limits import Limits
from .sources import OVER_LIMIT, Message, ReceiveSource

# Close codes.
_TOO_MUCH = 4008  # "policy violation", privately
_TOO_BIG = 1009
_TOO_QUIET = 4408  # HTTP's "request timeout", privately
# Seconds for which the frames of a client that has left are handled, at its rate. The rest is dropped: neither
# its channel nor a server that stops can wait for it.
_LINGER = 5.0
# Seconds between two looks at the connection of a client whose frame waits.
_LOOK = 1.0
# How many frames of a client are dropped in a second, and how many at once after a quiet time. The server has to
# parse what is dropped, so a client that sends more has to wait as well: for at least _PAUSE seconds, because a
# timer for each frame would cost more than the frame.
_DROPS = Rate(1 / 500, 500)
_PAUSE = 0.1
# A larger frame counts as several of this many bytes.
_FRAME = 4096


class Admission:
    """
    Stands between a server's `receive()` and a consumer, and knows the limits.

    state | `is_over` | event: next state
    ------|-----------|---------------------------------------------------------------------------------
    open  | False     | a frame or a silence for which the client is disconnected; `lift()`; a client that
          |           | left _LINGER seconds ago: over
    over  | True      | none. Frames are dropped, without waiting, until the client's disconnect comes. After a
          |           | frame too many (`_is_cut_off`), nothing more is read from the connection
    """

    def __init__(
        self,
        limits: Limits,
        receive: Callable[[], Awaitable[Any]],
        connection: Connection,
        layer: AsyncQueueChannelLayer | None,
        reader: str,
    ) -> None:
        """
        Args:
            connection: reading from it stops while frames wait.
            layer: counts what is limited.
            reader: the name of the consumer's class.
        """
        self._limits = limits
        self._receive = receive
        self._connection = connection
        self._layer = layer
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._meter = Meter(limits.rate) if limits.rate is not None else None
        self._drops = Meter(_DROPS)
        #: Whether nothing that the client sends is admitted any more.
        self.is_over = False
        # Whether that is for what the client has sent: nothing more is read from it then, not even its answer.
        self._is_cut_off = False
        self._waiter: asyncio.Future[None] | None = None
        # When a frame waited and the connection was found to have ended.
        self._gone_at: float | None = None
        #: Since when the server has been asked for an event; None while it is not asked.
        self.asked_at: float | None = None

    async def receive(self) -> Message:
        """
        Return the next event that is admitted, or the event OVER_LIMIT: the client is to be disconnected.

        With the action "wait", a frame that comes too early is held until its time, and no other is asked for. So
        it is with "drop" while more than _DROPS are dropped.
        (One that is not asked for either would hide the disconnect of a client that has sent nothing.) Cancelling
        loses the frame that is held, and no event where the server's own `receive()` loses none.
        """
        turn = Slice()
        while True:
            if self._is_cut_off:
                self._connection.cut_off()
            else:
                self._connection.read_again_if_empty()
            self.asked_at = self._loop.time()
            event: Message = await self._receive()
            self.asked_at = None
            # Also if the frame is not too early: a flood may leave the loop so little time that no frame ever is.
            self._connection.stop_reading()
            if event.get("type") != "websocket.receive":
                return event
            if not self.is_over and (judged := await self._judged(event)) is not None:
                return judged
            await turn.rest()  # a queue that is full would never let go of the loop

    async def _judged(self, frame: Message) -> Message | None:
        """Return a frame, None if it is to be dropped, or OVER_LIMIT."""
        limits, meter = self._limits, self._meter
        if limits.max_frame is not None and _is_longer(frame, limits.max_frame):
            return self._end("max_frame", _TOO_BIG)
        if meter is None:
            return frame
        delay = meter.wait()
        if delay:
            if limits.rate_action == "close":
                return self._end("rate", _TOO_MUCH)
            if limits.rate_action == "drop":
                self._note("rate", "its frames are dropped")
                await self._pause_after_dropping(frame)
                return None
            self._note("rate", "its frames wait", is_worth_a_line=False)
            await self._hold(delay)
            if self.is_over:
                return None
        meter.take()
        return frame

    async def _pause_after_dropping(self, frame: Message) -> None:
        self._drops.take(1 + len(frame.get("text") or frame.get("bytes") or b"") // _FRAME)
        excess = self._drops.wait()
        if excess and not self._connection.is_gone:
            await self._hold(excess + _PAUSE)

    async def _hold(self, delay: float) -> None:
        """Return after `delay` seconds, or when the admission is over."""
        until = self._loop.time() + delay
        while not self.is_over and (left := until - self._loop.time()) > 0:
            self._waiter = self._loop.create_future()
            await asyncio.wait([self._waiter], timeout=min(left, _LOOK))
            self._waiter = None
            self._look_at_connection()

    def _look_at_connection(self) -> None:
        if self._gone_at is None:
            if self._connection.is_gone:
                self._gone_at = self._loop.time()
        elif self._loop.time() - self._gone_at > _LINGER:
            self.is_over = True

    def end_for_silence(self) -> Message:
        """Return OVER_LIMIT: the client was idle for too long."""
        self.is_over = True
        self._note("idle_timeout", "it is disconnected", is_worth_a_line=False)
        return {"type": OVER_LIMIT, "close": Close(_TOO_QUIET, "idle_timeout")}

    def _end(self, limit: str, code: int) -> Message:
        """Return OVER_LIMIT: the client has sent too much."""
        self.is_over = self._is_cut_off = True
        self._note(limit, "it is disconnected")
        return {"type": OVER_LIMIT, "close": Close(code, limit)}

    def lift(self) -> None:
        """Wait no more: the client's disconnect is what matters now. What it has sent before that is dropped."""
        self.is_over = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Leave the connection as the server had it, unless its client is disconnected for what it has sent."""
        if self._is_cut_off:
            self._connection.cut_off()
        else:
            self._connection.read_again()

    def _note(self, limit: str, outcome: str, *, is_worth_a_line: bool = True) -> None:
        if self._layer is not None:
            self._layer.note_limited(limit, self._reader, outcome if is_worth_a_line else None)


class LimitedEvents(ReceiveSource):
    """
    The events of a client as its consumer's limits admit them, and the end of a client that is idle.

    state  | `_end` | event: next state
    -------|--------|---------------------------------------------------------------------------------------
    awake  | None   | the server was asked for an event `idle_timeout` seconds ago, and has none: idle
    idle   | there  | `take()`: awake, without a timer. The event that was asked for is still waited for
    """

    __slots__ = ("_admission", "_end", "_idle_timeout", "_loop", "_timer")

    def __init__(self, admission: Admission, idle_timeout: float | None) -> None:
        super().__init__(admission.receive)
        self._admission = admission
        self._idle_timeout = idle_timeout
        self._loop = asyncio.get_running_loop()
        self._end: Message | None = None
        self._timer: asyncio.TimerHandle | None = None
        if idle_timeout is not None:
            self._set_timer(self._loop.time() + idle_timeout)

    def _set_timer(self, due: float) -> None:
        self._timer = self._loop.call_at(due, self._on_timer, context=contextvars.Context())

    def _on_timer(self) -> None:
        """Look how long the client has been idle. The timer is not set anew for each event."""
        assert self._idle_timeout is not None
        if self._admission.is_over:
            return  # the client is being disconnected already
        now, asked_at = self._loop.time(), self._admission.asked_at
        # A client is not idle while the server is not asked: a handler may take its time.
        due = (now if asked_at is None else asked_at) + self._idle_timeout
        if due > now:
            self._set_timer(due)
            return
        self._end = self._admission.end_for_silence()
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def empty(self) -> bool:
        return self._end is None and super().empty()

    def held(self) -> Message | None:
        return self._end or super().held()

    def take(self) -> Message | None:
        if self._end is None:
            return super().take()
        end, self._end = self._end, None
        return end

    def lift(self) -> None:
        self._admission.lift()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await super().stop()
        finally:
            self._admission.close()


def limited_events(
    limits: Limits,
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
    layer: AsyncQueueChannelLayer | None,
    reader: str,
) -> LimitedEvents:
    """Return the events of a WebSocket as these limits admit them."""
    connection = connection_of(receive, send) if limits.rate is not None else Connection()
    admission = Admission(limits, receive, connection, layer, reader)
    return LimitedEvents(admission, limits.idle_timeout)


def _is_longer(frame: Message, most: int) -> bool:
    """Tell whether a frame has more than this many bytes. Characters of UTF-8 have up to four."""
    text = frame.get("text")
    if text is None:
        return len(frame.get("bytes") or b"") > most
    return len(text) > most or (4 * len(text) > most and len(text.encode()) > most)
