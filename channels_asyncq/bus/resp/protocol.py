"""
One connection to a Redis server: RESP2 over hiredis, as an `asyncio.Protocol`.

A connection does not know hosts, topics or scripts, and has no task: it is callbacks, futures and timers.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from enum import Enum, auto
from typing import Any, Protocol, cast

from hiredis import Reader

from ...clock import monotonic
from .deadline import Deadline
from .pipeline import Pipeline
from .reader import MessageHandler, PushReader, ReaderState
from .replies import MORE, InFlight, Unsubscription

__all__ = ["ClosedIdle", "Nobody", "WireOwner", "WireProtocol"]

# A connection that was used within these seconds was not closed for being idle.
_IDLE = 1.0


class ClosedIdle(ConnectionResetError):
    """The server closed a connection for commands on which nothing had been asked for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the server closed the connection, which was idle for {seconds:.0f} s")
        self.seconds = seconds


class WireOwner(Protocol):
    """
    The owner of a connection, which is told of its end.

    Implemented by `bus.resp.supervisor.SupervisedConnection` and `bus.resp.protocol.Nobody`.
    """

    def on_lost(self, wire: WireProtocol, error: Exception | None) -> None:
        """Note that the connection has ended. `error` is None only if it was closed on request."""

    def on_silent(self, wire: WireProtocol) -> None:
        """Note that nothing has been answered for a while, although something was asked."""


class Nobody:
    """The owner of a connection that is made for some questions: their futures tell of its end."""

    def on_lost(self, wire: WireProtocol, error: Exception | None) -> None:
        pass

    def on_silent(self, wire: WireProtocol) -> None:
        pass


class _Life(Enum):
    CONNECTING = auto()
    OPEN = auto()
    CLOSING = auto()
    DRAINING = auto()
    ABORTED = auto()
    FINISHED = auto()


class WireProtocol(asyncio.Protocol):
    """
    Commands out, replies and messages in, until the connection ends.

    state      | a call         | bytes that arrive       | event: next state
    -----------|----------------|-------------------------|--------------------------------------------------------
    connecting | waits          |                         | `connection_made()`: open; `abort()` or `close()`:
               |                |                         | aborted
    open       | is written     | are handed on           | `close()`: closing; `abort()`: aborted;
               |                |                         | `connection_lost()`: draining if the reader is stalled
               |                |                         | or holds a message, else finished
    closing    | fails: NotSent | replies are handed on,  | as in open
               |                | messages are dropped    |
    draining   | fails: NotSent | those before the end    | all is handed on, or the timeout: finished; `abort()`:
               |                | are handed on           | aborted
    aborted    | fails: NotSent | are dropped             | `connection_lost()`, or the next loop iteration if
               |                |                         | there is no transport: finished
    finished   | fails: NotSent |                         | none

    With `messages` this is a subscriber's connection: `message` and `smessage` arrays go to
    `messages.on_message(topic, payload)`, and `sunsubscribe` arrays to `messages.on_unsubscribed(topic)`.
    Everything else, confirmations of subscriptions included, answers the commands. `SUBSCRIBE` and its relatives
    are therefore called with one topic each, and SUNSUBSCRIBE only by `sunsubscribe()`.

    `on_message()` returns `True` when it took the message. `False` holds it: reading stops, nothing further is
    parsed, and `resume()` offers the same message again. `on_message()` must not raise; if it does, the
    connection ends with that error.

    `owner.on_lost(wire, error)` is called exactly once, after every future is done, and never from inside a
    method that the owner calls. `error` is `None` only when `close()` was asked for and succeeded. If the
    connection ends while messages wait to be handed on, these are delivered first and `on_lost()` is called after
    them, so that messages of the next connection cannot overtake them. `timeout` bounds that too.

    Args:
        owner: is told when the connection ends.
        messages: receives the messages of a subscriber's connection.
        timeout: seconds after which the oldest written command must be answered, as `Deadline` counts them; else
            the connection is given up.
        max_pending: unanswered calls beyond which `Pipeline.wait_for_capacity()` waits.
        max_bytes: bytes of unanswered commands beyond which `Pipeline.wait_for_capacity()` waits.
    """

    def __init__(
        self,
        *,
        owner: WireOwner,
        messages: MessageHandler | None = None,
        timeout: float = 5.0,
        max_pending: int = 1024,
        max_bytes: int = 16 * 2**20,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        # Timers and callbacks run in an empty context: they belong to the connection, not to the task that called
        # first. One for each connection, because two threads cannot be in one context at a time.
        self._context = Context()
        self._owner = owner
        self._timeout = timeout
        self._state = _Life.CONNECTING
        # Why the connection ends; None if it was closed on request.
        self._error: Exception | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = Reader(notEnoughData=MORE)
        self._deadline = Deadline(self, timeout, self._context)
        #: The commands.
        self.pipeline = Pipeline(self._deadline, self._context, max_pending=max_pending, max_bytes=max_bytes)
        self._reader: PushReader | None = None
        if messages is not None:
            self._reader = PushReader(
                self, self._parser, self.pipeline, self._deadline, messages, self._context
            )
        # Bounds the time in `draining`.
        self._drain_timer: asyncio.TimerHandle | None = None
        # Is done in `finished`.
        self._gone: asyncio.Future[None] = self._loop.create_future()
        #: Set by an owner that sends unanswered commands again when the connection ends: then they are in
        #: `unanswered`, in order, when on_lost() is called, and their futures are still pending.
        self.keeps_unanswered = False
        self.unanswered: list[InFlight] = []
        #: Whether it ends when everything is answered: its owner calls little more. Set only in `retire()`.
        self.is_retired = False

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport, from `connection_made()` on."""
        return self._transport

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended, or was given up: nothing can be called any more."""
        return self._state in (_Life.DRAINING, _Life.ABORTED, _Life.FINISHED)

    @property
    def arrived(self) -> tuple[int, int]:
        """The number of messages that were taken, and the bytes of a message or reply that is incomplete."""
        messages = self._reader.messages if self._reader is not None else 0
        return messages, self._parser.len() if self._parser.has_data() else 0

    @property
    def is_stalled(self) -> bool:
        """Whether this side has stopped reading for now."""
        return self._reader is not None and self._reader.is_stalled

    @property
    def pending(self) -> int:
        """The number of commands that are not answered, written or not."""
        return self.pipeline.pending

    @property
    def replies(self) -> int:
        """The number of commands that were answered."""
        return self.pipeline.replies

    def on_silent(self) -> None:
        """Tell the owner that nothing has been answered for a while."""
        self._owner.on_silent(self)

    def remaining_wait(self) -> float:
        """
        Return for how many seconds to wait for the oldest unanswered command, because bytes of it moved; else 0.

        When they have passed, the connection itself has decided whether bytes still move.
        """
        return 0.0 if self.is_lost else self._deadline.remaining_wait()

    def call(self, *args: bytes | str | int, reply: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Send one command; the result of the returned future is the reply. See `Pipeline.call()`."""
        return self.pipeline.call(*args, reply=reply)

    def sunsubscribe(self, topic: bytes) -> asyncio.Future[Any]:
        """
        Send SUNSUBSCRIBE on a subscriber's connection. See `Unsubscription`.

        The future is done when the server has executed or refused it, and after `messages.on_unsubscribed()` was
        called for it. A server that refuses it because the slot has moved has ended the subscription itself. The
        future raises `ReplyError` if the server refuses PING, and `NotSent` or `NoAnswer` if the connection ends
        first. Cancelling it does not unsend the command.
        """
        assert self._reader is not None
        command = Unsubscription(topic)
        self.pipeline.call_open(command)
        return command

    def pause_reading(self) -> None:
        """Read no replies until `resume_reading()`. For a connection without messages."""
        if self._transport is not None and not self.is_lost and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read replies again, after `pause_reading()`."""
        if self._transport is not None and not self.is_lost and not self._transport.is_closing():
            self._transport.resume_reading()

    def rest(self) -> None:
        """Note that nothing will be called for seconds, if nothing is unanswered now. See `Deadline.rest()`."""
        self._deadline.rest()

    def resume(self) -> None:
        """Offer a held message again on the next loop iteration. See `PushReader.resume()`."""
        if self._reader is not None:
            self._reader.resume()

    def resume_now(self) -> None:
        """Offer a held message again at once. See `PushReader.resume_now()`."""
        if self._reader is not None:
            self._reader.resume_now()

    # Callbacks of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._state is _Life.CONNECTING:
            self._state = _Life.OPEN
        if self._reader is not None:
            self._reader.connect(self._transport)
        self.resume_writing()

    def pause_writing(self) -> None:
        self.pipeline.pause_writing()

    def resume_writing(self) -> None:
        if not self.is_lost:
            assert self._transport is not None
            self.pipeline.resume_writing(self._transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        reader = self._reader
        if reader is not None:
            # A paused transport may still deliver bytes that it had already read or decrypted.
            if reader.state is ReaderState.READING:
                reader.read()
        elif self._state is _Life.OPEN or self._state is _Life.CLOSING:
            try:
                self.pipeline.answer_all(self._parser)
            except Exception as exc:
                self.abort(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._state is _Life.FINISHED:
            return
        if self._error is None:
            if exc is not None:
                self._error = exc
            elif self._state is not _Life.CLOSING or self.pipeline.pending:
                self._error = self._end_of_server()
        self.pipeline.stop(self._error)
        if self._reader is not None:
            self._reader.disconnect()
            if self._reader.is_stalled:
                # Messages that were received are delivered before on_lost() is called.
                self._state = _Life.DRAINING
                self._deadline.stop()
                self._drain_timer = self._loop.call_later(self._timeout, self._finish, context=self._context)
                return
        self._finish()

    def _end_of_server(self) -> ConnectionResetError:
        written_at = self._deadline.written_at
        idle = monotonic() - written_at
        if self._reader is None and written_at and not self.pipeline.pending and idle >= _IDLE:
            return ClosedIdle(idle)
        return ConnectionResetError("the server closed the connection")

    # The end

    def on_drained(self) -> None:
        """Note that everything that arrived before the end of the connection is handed on."""
        self._finish()

    def abort(self, exc: Exception) -> None:
        """
        End the connection now, because of `exc`. Messages that were received and not yet delivered are dropped.

        The futures fail and `on_lost(exc)` is called on a later loop iteration. Does nothing on a connection that
        has ended.
        """
        if self._state is _Life.ABORTED or self._state is _Life.FINISHED:
            return
        has_transport = self._transport is not None and self._state is not _Life.DRAINING
        self._state = _Life.ABORTED
        if self._error is None:
            self._error = exc
        self.pipeline.stop(self._error)
        if self._reader is not None:
            self._reader.stop()
        if has_transport:
            assert self._transport is not None
            self._transport.abort()  # connection_lost() follows
        else:
            self._loop.call_soon(self._finish, context=self._context)

    def retire(self, exc: Exception) -> None:
        """
        End the connection as `abort()` does, once everything that was called is answered.

        The replies tell which commands the server has executed. `timeout` bounds the wait for them, as always.
        """
        if self.is_retired or self.is_lost:
            return
        self.is_retired = True
        if self.pending:
            self.pipeline.when_idle().add_done_callback(lambda _: self.abort(exc), context=self._context)
        else:
            self.abort(exc)

    async def close(self) -> None:
        """
        Close the connection once all commands called so far are written and answered. After `timeout` seconds it
        is aborted. Messages that arrive, or are held, are dropped from now on.

        Safe to call twice. Cancelling it ends the connection at once.
        """
        if self._state is _Life.FINISHED:
            return
        if self._transport is None:
            self.abort(ConnectionAbortedError("closed before it was connected"))
            return
        if self._state is _Life.OPEN:
            self._state = _Life.CLOSING
        self.pipeline.close()
        if self._reader is not None:
            self._reader.discard()
        until = self._loop.time() + self._timeout
        try:
            if self.pending and not self.is_lost:
                idle = self.pipeline.when_idle()
                await asyncio.wait({idle, self._gone}, timeout=self._timeout, return_when="FIRST_COMPLETED")
            if not self.pending and not self.is_lost:
                self._transport.close()
                # TLS says goodbye, and a peer that is silent need not answer.
                await asyncio.wait({self._gone}, timeout=max(0.0, until - self._loop.time()))
            if not self._gone.done():
                self.abort(TimeoutError(f"not closed within {self._timeout:g} s"))
                await asyncio.wait({self._gone})
        except asyncio.CancelledError:
            self.abort(ConnectionAbortedError("closing was cancelled"))
            raise

    def _finish(self) -> None:
        """Fail the commands without a reply and call on_lost(), once, from the loop, without a transport."""
        if self._state is _Life.FINISHED:
            return
        self._state = _Life.FINISHED
        self._deadline.stop()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        if self._reader is not None:
            self._reader.stop()
        in_flight = self.pipeline.finish()
        if self.keeps_unanswered:
            self.unanswered = in_flight
        elif in_flight:
            assert self._error is not None
            for command in in_flight:
                command.fail(self._error)
        self._gone.set_result(None)
        self._owner.on_lost(self, self._error)
