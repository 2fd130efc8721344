"""What a consumer can know and do about its connection beyond ASGI, by the server that has it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

from ..stopping.sockets import protocol_of

# Seconds in which a client that was disconnected for a limit can take the close frame and leave.
_FAREWELL = 1.0


class Connection:
    """A connection of a server that is not known: it stops reading by itself, and tells nothing."""

    __slots__ = ()

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended, so that a disconnect waits behind what was read before."""
        return False

    def stop_reading(self) -> None:
        """Read no more from the client. A second call changes nothing."""

    def read_again_if_empty(self) -> None:
        """Go on reading if the consumer has taken everything that was read."""

    def read_again(self) -> None:
        """Go on reading."""

    def cut_off(self) -> None:
        """
        Read nothing more of a client that was sent a close frame, and end its connection in a second.

        A second call changes nothing.
        """


class UvicornConnection(Connection):
    """A connection of asyncio or uvloop. uvicorn stops reading by itself until everything is taken."""

    __slots__ = ("_is_cut_off", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._is_cut_off = False

    @property
    def is_gone(self) -> bool:
        return bool(self._transport.is_closing())

    def cut_off(self) -> None:
        # uvicorn reads on for ten seconds, until the client answers.
        if not self._is_cut_off and not self.is_gone:
            self._is_cut_off = True
            self._transport.pause_reading()
            _later(self._transport.abort)


class DaphneConnection(Connection):
    """
    A connection of Twisted. Daphne reads all that comes, and queues it.

    state   | `_is_stopped` | event: next state
    --------|---------------|-------------------------------------------------------------------------------
    reading | False         | `stop_reading()`: stopped. The buffers of TCP fill, and the client must wait
    stopped | True          | `read_again_if_empty()` with an empty queue, `read_again()`: reading
    """

    __slots__ = ("_events", "_is_stopped", "_transport")

    def __init__(self, events: asyncio.Queue[Any], transport: Any) -> None:
        self._events = events
        self._transport = transport  # a push producer of Twisted
        self._is_stopped = False

    @property
    def is_gone(self) -> bool:
        return not getattr(self._transport, "connected", True)

    def stop_reading(self) -> None:
        if not self._is_stopped:
            self._is_stopped = True
            self._transport.pauseProducing()

    def read_again_if_empty(self) -> None:
        if self._is_stopped and self._events.empty():
            self.read_again()

    def read_again(self) -> None:
        if self._is_stopped:
            self._is_stopped = False
            self._transport.resumeProducing()

    def cut_off(self) -> None:
        self.stop_reading()  # autobahn ends it in a second


def _later(end: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(_FAREWELL, end, context=contextvars.Context())


def connection_of(
    receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> Connection:
    """
    Return the connection of a WebSocket, as its ASGI callables show it.

    Daphne's `receive` is the `get()` of a queue, and `protocol_of()` finds its protocol. uvicorn's `receive` is a
    method of the protocol. Behind middleware that wraps one of them in another way, nothing is known of the
    connection.
    """
    owner = getattr(receive, "__self__", None)
    if isinstance(owner, asyncio.Queue):
        transport = getattr(protocol_of(send), "transport", None)
        if callable(getattr(transport, "pauseProducing", None)):
            return DaphneConnection(owner, transport)
    else:
        transport = getattr(owner, "transport", None)
        if callable(getattr(transport, "is_closing", None)):
            return UvicornConnection(transport)
    return Connection()
