"""Reads a subscriber's connection: hands messages to their handler, and replies to the commands."""

from __future__ import annotations

import asyncio
from contextvars import Context
from enum import Enum, auto
from typing import Any, Protocol

from hiredis import Reader

from ...clock import monotonic
from ...slices import SLICE
from .deadline import Deadline
from .pipeline import Pipeline
from .replies import MORE, unexpected

__all__ = ["MessageHandler", "PushReader", "ReaderState"]

# After this many seconds other callbacks of the loop run before more messages and replies are handed on.
_READ_SECONDS = SLICE
# After this many replies other callbacks of the loop run, those of the answered futures among them.
_MOST_ANSWERED = 512


class MessageHandler(Protocol):
    """
    Receives the messages of a subscriber's connection.

    Implemented by `bus.redis.subscriber.Subscriber`.
    """

    def on_message(self, topic: bytes, payload: bytes) -> bool:
        """Take a message and return True, or return False to hold it. It must not raise."""

    def on_unsubscribed(self, topic: bytes) -> None:
        """
        Note that the server has ended a sharded subscription, because of a SUNSUBSCRIBE or unasked.

        It is called in order with `on_message()`. It must not raise.
        """


class _Discarding:
    """The message handler of a connection that is being closed."""

    def on_message(self, topic: bytes, payload: bytes) -> bool:
        return True

    def on_unsubscribed(self, topic: bytes) -> None:
        pass


class Connection(Protocol):
    """The connection of a reader. Implemented by `bus.resp.protocol.WireProtocol`."""

    def abort(self, exc: Exception) -> None: ...

    def on_drained(self) -> None:
        """Note that everything that arrived before the end of the connection is handed on."""


class ReaderState(Enum):
    """The states of a reader."""

    READING = auto()
    STALLED = auto()
    HELD = auto()
    STOPPED = auto()


class PushReader:
    """
    Hands on the messages and replies of a subscriber's connection, in the order in which they arrived.

    state   | bytes that have arrived           | event: next state
    --------|-----------------------------------|------------------------------------------------------------------
    reading | are handed on at once             | a message is not taken: held; the slice is over: stalled
    stalled | wait for the next loop iteration  | next loop iteration: reads on, until all is read: reading
    held    | wait behind a message that was    | `resume()`, `resume_now()`: offers the message again; if it is
            | not taken                         | taken, reads on
    stopped | are dropped                       | none

    The transport is paused in `stalled` and `held`, until all is read. `stop()` leads to stopped from every
    state. If the connection ends in `stalled` or `held`, the rest is handed on before `on_drained()` is called.
    """

    def __init__(
        self,
        connection: Connection,
        parser: Reader,
        pipeline: Pipeline,
        deadline: Deadline,
        handler: MessageHandler,
        context: Context,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._connection = connection
        self._parser = parser
        self._pipeline = pipeline
        self._deadline = deadline
        self._handler = handler
        # None before there is a connection, and after its end.
        self._transport: asyncio.Transport | None = None
        # The message that was not taken, in `held`.
        self._message: tuple[bytes, bytes] | None = None
        # The next loop iteration in which this reads on, or offers the message again.
        self._continuation: asyncio.Handle | None = None
        #: Changed by the reader alone.
        self.state = ReaderState.READING
        #: The number of messages that were taken.
        self.messages = 0

    @property
    def is_stalled(self) -> bool:
        """Whether something that arrived waits to be handed on."""
        return self.state is ReaderState.STALLED or self.state is ReaderState.HELD

    def connect(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def disconnect(self) -> None:
        """Note that the connection has ended: nothing more arrives."""
        self._transport = None

    def read(self) -> None:
        """Hand on the messages and replies in the parser. The caller checks that the state is `reading`."""
        gets = self._parser.gets
        on_message = self._handler.on_message
        count = answered = 0
        stop_at = monotonic() + _READ_SECONDS
        try:
            while (reply := gets()) is not MORE:
                if type(reply) is list and reply and (reply[0] == b"message" or reply[0] == b"smessage"):
                    _, topic, payload = reply
                    if not on_message(topic, payload):
                        self._hold((topic, payload))
                        break
                    count += 1
                elif type(reply) is list and reply and reply[0] == b"sunsubscribe":
                    self._end_subscription(reply)
                else:
                    self._pipeline.answer(reply)
                    answered += 1
                    if answered == _MOST_ANSWERED:
                        stop_at = 0.0
                if self.state is ReaderState.STOPPED:
                    break
                if monotonic() > stop_at:
                    self._stall(ReaderState.STALLED)
                    self._continue_soon()
                    break
        except Exception as exc:
            self._connection.abort(exc)
        self.messages += count
        if not self._pipeline.has_capacity:
            self._pipeline.wake()

    def _end_subscription(self, reply: list[Any]) -> None:
        """Hand on a `sunsubscribe` array. It answers no command: the server sends it unasked, too."""
        if len(reply) != 3 or not isinstance(reply[1], bytes):
            raise unexpected(reply)
        self._handler.on_unsubscribed(reply[1])

    def _hold(self, message: tuple[bytes, bytes]) -> None:
        if self.state is not ReaderState.STOPPED:
            self._message = message
            self._stall(ReaderState.HELD)

    def _stall(self, state: ReaderState) -> None:
        if (
            self.state is ReaderState.READING
            and self._transport is not None
            and not self._transport.is_closing()
        ):
            self._transport.pause_reading()
        self.state = state

    def resume(self) -> None:
        """
        Offer the held message again, on the next loop iteration, and read on if it is taken.

        Does nothing when no message is held or one is about to be offered, and therefore inside on_message().
        """
        if self.state is ReaderState.HELD and self._continuation is None:
            self._continue_soon()

    def resume_now(self) -> None:
        """
        Offer the held message again at once, and read on if it is taken. For an owner that the loop called.

        If the connection has ended, this waits for the next loop iteration: on_lost() must not be called in here.
        """
        if self._transport is None:
            self.resume()
        elif self.state is ReaderState.HELD and self._continuation is None:
            self._continue()

    def _continue_soon(self) -> None:
        self._continuation = self._loop.call_soon(self._continue, context=self._context)

    def _continue(self) -> None:
        """Offer the held message, if there is one, and read on."""
        self._continuation = None
        message, self._message = self._message, None
        if message is not None:
            self.state = ReaderState.STALLED
            if not self._offer(message):
                return
        self.read()
        if self.state is ReaderState.STOPPED or self._message is not None or self._continuation is not None:
            return
        if self._transport is None:
            self._connection.on_drained()
            return
        self.state = ReaderState.READING
        self._deadline.note_reading()
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _offer(self, message: tuple[bytes, bytes]) -> bool:
        """Offer a message that was held before; return whether to read on."""
        is_taken = False
        try:
            is_taken = self._handler.on_message(*message)
        except Exception as exc:
            self._connection.abort(exc)
        if self.state is ReaderState.STOPPED:
            return False
        if is_taken:
            self.messages += 1
        else:
            self._hold(message)
        return is_taken

    def discard(self) -> None:
        """Drop the messages that are held, or arrive from now on. Replies still answer commands."""
        self._handler = _Discarding()
        self.resume()

    def stop(self) -> None:
        """Hand on nothing more."""
        self.state = ReaderState.STOPPED
        self._message = None
        if self._continuation is not None:
            self._continuation.cancel()
            self._continuation = None
