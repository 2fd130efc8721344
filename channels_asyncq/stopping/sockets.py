"""A WebSocket as the server's callables show it: it can be closed whatever consumer it has."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from ..messages.closing import Close, send_close
from . import signals
from .connections import OpenConnections

# A generator of our own: the state of the global one belongs to the application.
_jitter = random.Random()
#: Where a consumer finds the `OpenSocket` in its scope.
SCOPE_KEY = "channels_asyncq.socket"
#: "Service restart": the client is to come back.
RESTART = Close(1012)
#: Seconds in which a client of Daphne can answer the close. autobahn has 1.0, and cuts it off at the full second
#: of the clock before that. On a late event loop Twisted has not yet written what the client was told.
ANSWER = 10.0


def protocol_of(send: Callable[[Any], Awaitable[None]]) -> Any:
    """
    Return Daphne's protocol of a WebSocket, None under another server.

    Its `send` is a partial with the protocol. Middleware may wrap it by a method of an object that has the `send`
    below it as `real_send`, as the session middleware of Channels does.
    """
    while (below := getattr(getattr(send, "__self__", None), "real_send", None)) is not None:
        send = below
    return send.args[0] if isinstance(send, partial) and send.args else None


class OpenSocket:
    """
    The application's way to one WebSocket, which the drain may close.

    state   | `_connections` | `_closing` | a message of the application
    --------|----------------|------------|---------------------------------------------------------------
    opening | None           | None       | goes to the server; `websocket.accept`: open, once it was sent
    open    | are set        | None       | goes to the server. `tell()`: told
    told    | are set        | a task     | is dropped: a server refuses frames behind the close

    `stop()` ends every state, when the application has returned.
    """

    def __init__(self, send: Callable[[Any], Awaitable[None]]) -> None:
        #: By this name Channels' session middleware has what it wraps too.
        self.real_send = send
        self._connections: OpenConnections | None = None
        self._closing: asyncio.Task[None] | None = None
        #: The range, in ms, of the time in the frame `retry` before the close; None for clients that expect none.
        self.retry: tuple[int, int] | None = None

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a message of the application to the server. Raises whatever the server raises."""
        if self._closing is not None:
            return
        await self.real_send(message)
        if message["type"] == "websocket.accept":
            self._connections = signals.enter(self)

    def tell(self) -> None:
        """Close the WebSocket. On its own event loop; telling it twice is fine."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        protocol = protocol_of(self.real_send)
        if 0 < getattr(protocol, "closeHandshakeTimeout", 0) < ANSWER:  # 0 is no limit
            protocol.closeHandshakeTimeout = ANSWER
        if self.retry is not None:
            frame = json.dumps({"type": "retry", "ms": _jitter.randint(*self.retry)})
            await self.real_send({"type": "websocket.send", "text": frame})
        await send_close(self.real_send, RESTART)

    async def stop(self) -> None:
        """Forget the WebSocket: its application has returned."""
        if self._connections is not None:
            self._connections.leave(self)
        if self._closing is not None:
            self._closing.cancel()
            await asyncio.wait([self._closing])
            if not self._closing.cancelled():
                self._closing.exception()  # retrieved, or asyncio would log it: the client has gone
