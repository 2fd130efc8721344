"""One client of a consumer, and the order in which its events and the layer's messages are handled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from channels.exceptions import StopConsumer

from ..exceptions import ChannelClosed
from ..messages.closing import Close, send_close
from . import database
from .sources import NOTHING, OVER_LIMIT, Message, ReceiveSource, Source

#: For a client that does not keep up: "try again later".
TRY_AGAIN = Close(1013)
# A server that refuses a send reports within this time that the client has gone; else the error is another one.
GRACE = 1.0


class Handler(Protocol):
    """The consumer, as far as a conversation uses it. Implemented by `consumers.consumer.AsyncConsumer`."""

    async def dispatch(self, message: Any) -> None: ...


class Client:
    """The server's `send()`, an ASGI callable, and what is known of the connection from the calls of it."""

    __slots__ = ("has_closed", "is_open", "refusal", "send")

    def __init__(self, send: Callable[[Any], Awaitable[None]]) -> None:
        self.send = send
        self.is_open = False  # between accept and close
        self.has_closed = False
        self.refusal: Exception | None = None  # the error of the last send, if it failed

    async def __call__(self, message: Mapping[str, Any]) -> None:
        try:
            await self.send(message)
        except (OSError, RuntimeError) as error:
            self.refusal = error
            raise
        self.refusal = None
        kind = message["type"]
        if kind == "websocket.accept":
            self.is_open = True
        elif kind == "websocket.close":
            self.is_open = False
            self.has_closed = True


class Conversation:
    """
    One consumer's life between its client and its channel: it decides what is handled next, and when it ends.

    It is not part of the consumer, whose attributes belong to the authors of consumers.

    state   | `_messages`   | `_lost`  | what ends the state
    --------|---------------|----------|----------------------------------------------------------------
    open    | the channel   | None     | StopConsumer; the channel closes, or a message says so: ending; a send
            |               |          | fails: lost
    ending  | NOTHING       | None     | StopConsumer, after the client's disconnect; a send fails: lost
    lost    | NOTHING       | an error | StopConsumer; a send succeeds after all: the error is raised
    """

    __slots__ = (
        "_database_thread",
        "_events",
        "_is_mistake",
        "_is_websocket",
        "_lost",
        "_messages",
        "client",
        "notices",
    )

    def __init__(self, client: Client, events: ReceiveSource, is_websocket: bool) -> None:
        self.client = client
        #: The types of the layer's own notices, which need no handler.
        self.notices: frozenset[str] = frozenset()
        self._is_websocket = is_websocket
        self._database_thread = database.known_thread()
        self._events = events
        self._messages: Source = NOTHING
        self._lost: Exception | None = None  # the error by which the client seems to have gone
        self._is_mistake = False  # the consumer itself has caused that error

    async def run(self, handler: Handler, messages: Source, passes_on: bool) -> None:
        """
        Have the handler dispatch one event or message after the other, until StopConsumer.

        With `passes_on`, the `websocket.send` messages of the layer go to the client without dispatching. Events
        of the client come first, above all its disconnect. The layer still gets its turns, because the next event
        takes the server at least one turn of the loop.
        """
        events = self._events
        self._messages = messages
        events.ask()  # before the layer is asked
        try:
            while True:
                event = events.held()
                message = None
                if event is None:
                    try:
                        message = self._messages.take()
                    except ChannelClosed:
                        if not self._is_websocket:
                            raise
                        await self._end(TRY_AGAIN)
                        continue
                if message is None and event is None:
                    await self._wait()
                    continue
                try:
                    if event is not None:
                        events.take()
                        if event.get("type") == OVER_LIMIT:
                            await self._end(event["close"])
                        else:
                            await handler.dispatch(event)
                    elif message is not None:
                        if passes_on and message.get("type") == "websocket.send":
                            await self.pass_on(message)
                        else:
                            await handler.dispatch(message)
                except (OSError, RuntimeError) as error:
                    if error is not self.client.refusal:
                        raise
                    await self._expect_end(error)
                if self._lost is not None and self.client.refusal is None:
                    raise self._lost  # a send has succeeded since: the error was not about the client
                if self.client.has_closed:
                    # Let the server report that this was the end before the next message is sent.
                    events.lift()
                    events.ask()
                    await _turn()
                    await _turn()
                elif not self._messages.empty():
                    # Let other tasks run, and the client's next event come in.
                    await _turn()
        except StopConsumer as stop:
            stop.__traceback__ = None  # from a thread, its frames hold the future that holds it
            if self._lost is not None and self._is_mistake:
                raise self._lost from None
        finally:
            self._lost = self.client.refusal = None  # their tracebacks refer to the consumer
            await events.stop()

    async def _wait(self) -> None:
        """Return when one of the sources may have something."""
        events, messages = self._events, self._messages
        waiter = asyncio.get_running_loop().create_future()
        events.waiter = waiter
        messages.wake(waiter)
        await waiter  # if this is cancelled, the channel is closed next
        if events.waiter is None:  # the client woke it
            messages.stop_waking(waiter)
        events.waiter = None

    async def _expect_end(self, error: Exception) -> None:
        """
        Return when the server's next event comes after a refused send: as a rule, that the client has gone.

        Raises:
            OSError, RuntimeError: the given error. No event came, so it was not about the client.
        """
        self._lost = error
        # Servers raise RuntimeError for a send before accept() or after close(); autobahn (Daphne) also for a
        # client that has just closed.
        self._is_mistake = isinstance(error, RuntimeError) and not self.client.is_open
        # Nothing can be sent to the client, so nothing more is worth handling for it.
        self._messages = NOTHING
        self._events.lift()
        try:
            async with asyncio.timeout(GRACE):
                while self._events.held() is None:
                    await self._wait()
        except TimeoutError:
            raise error from None

    async def _end(self, close: Close) -> None:
        """Close the WebSocket. The client's disconnect follows."""
        self._messages = NOTHING
        if self.client.has_closed:
            return
        try:
            await send_close(self.client, close)
        except (OSError, RuntimeError) as error:
            await self._expect_end(error)

    async def close(self, close: Close) -> None:
        """
        Close the client's connection, and return when the server reports its end.

        What the client sends in between is dropped: it has no business here any more. Before accept() the
        handshake is refused. If the connection is closed already, or is no WebSocket, nothing happens.
        """
        if self.client.has_closed or not self._is_websocket:
            return
        self._messages = NOTHING
        await send_close(self.client, close)
        events = self._events
        events.lift()
        while (event := events.held()) is None or event["type"] in ("websocket.receive", OVER_LIMIT):
            if event is None:
                await self._wait()
            else:
                events.take()

    def must_visit_database(self) -> bool:
        """Tell whether a database connection may be due in the consumer's thread, as before anybody's visit."""
        return self._database_thread is None or database.is_due(self._database_thread)

    async def visit_database(self) -> None:
        self._database_thread = await database.close_old_connections()

    async def pass_on(self, message: Message) -> None:
        """
        Send a `websocket.send` message of the channel layer to the client as it is.

        Raises:
            TypeError: neither its "text" is a str nor its "bytes" are bytes.
        """
        client = self.client
        if not client.is_open:
            return
        text, data = message.get("text"), message.get("bytes")
        if isinstance(text, str):
            frame: Message = {"type": "websocket.send", "text": text}
        elif text is None and isinstance(data, bytes):
            frame = {"type": "websocket.send", "bytes": data}
        else:
            raise TypeError(
                'a "websocket.send" message of the channel layer needs "text", a str, or "bytes"; this one has '
                f"text={type(text).__name__}, bytes={type(data).__name__}"
            )
        try:
            await client.send(frame)
        except (OSError, RuntimeError) as error:
            client.refusal = error
            raise


async def _turn() -> None:
    """Let the event loop turn once."""
    await asyncio.sleep(0)
