"""One client of a consumer, and the order in which what comes from it and from the channel layer is handled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from channels.exceptions import StopConsumer

from ..exceptions import ChannelClosed
from . import database
from .sources import NOTHING, Asked, Message, Source

if TYPE_CHECKING:
    pass

#: The WebSocket close codes for a client that does not keep up: "try again later", and what stands in for it
#: under a server that sends no code below 3000 (Daphne).
CLOSE_TRY_AGAIN = 1013
CLOSE_TRY_AGAIN_PRIVATE = 4013
# A server that refuses what we send says within this time that the client has gone; else something is wrong.
GRACE = 1.0


class Client:
    """The server's `send()`, and what went through it."""

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
    One consumer's life between its client and its channel: what comes next, and what ends it.

    Not part of the consumer, whose attributes are for those who write consumers.
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

    def __init__(self, client: Client, receive: Callable[[], Awaitable[Any]], is_websocket: bool) -> None:
        self.client = client
        #: Types of what the layer itself has to say; that needs no handler.
        self.notices: frozenset[str] = frozenset()
        self._is_websocket = is_websocket
        self._database_thread: int | None = None
        self._events = Asked(receive)
        self._messages: Source = NOTHING
        self._lost: Exception | None = None  # why we believe that the client has gone
        self._is_mistake = False  # that error is of the consumer's doing

    async def run(
        self, messages: Source, dispatch: Callable[[Any], Awaitable[None]], passes_on: bool
    ) -> None:
        """
        Hand one thing after the other to `dispatch`, until StopConsumer. With `passes_on`, the `websocket.send`
        messages of the layer need no dispatching.

        What the client did comes first: the disconnect above all. Both have their turns all the same, because its
        next event takes the server a turn of the loop at least.
        """
        events = self._events
        self._messages = messages
        events.ask()  # before anybody asks the layer
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
                        await self._close_for_overflow()
                        continue
                if message is None and event is None:
                    await self._wait()
                    continue
                try:
                    if message is None:
                        await dispatch(events.take())
                    elif passes_on and message.get("type") == "websocket.send":
                        await self.pass_on(message)
                    else:
                        await dispatch(message)
                except (OSError, RuntimeError) as error:
                    if error is not self.client.refusal:
                        raise
                    await self._expect_end(error)
                if self._lost is not None and self.client.refusal is None:
                    raise self._lost  # something went through after all: it was no word about the client
                if self.client.has_closed:
                    # The server has the time to say that this was the end, before anybody sends again.
                    events.ask()
                    await _turn()
                    await _turn()
                elif not self._messages.empty():
                    # Others have something to do as well, and the client may have something to say.
                    await _turn()
        except StopConsumer:
            if self._lost is not None and self._is_mistake:
                raise self._lost from None
        finally:
            self._lost = self.client.refusal = None  # they refer to frames that refer to the consumer
            await events.stop()

    async def _wait(self) -> None:
        """Return when one of the sources may have something."""
        events, messages = self._events, self._messages
        waiter = asyncio.get_running_loop().create_future()
        events.waiter = waiter
        messages.wake(waiter)
        await waiter  # cancelled: the channel is closed next
        if events.waiter is None:  # it was the client
            messages.stop_waking(waiter)
        events.waiter = None

    async def _expect_end(self, error: Exception) -> None:
        """
        Return when the server says something after it refused to send: that the client has gone, as a rule.

        Raises:
            OSError, RuntimeError: the given error: the server says nothing, so it was another one.
        """
        self._lost = error
        # Servers say so of a consumer that sends before accept() or after close(), autobahn (Daphne) of a client
        # that has just closed.
        self._is_mistake = isinstance(error, RuntimeError) and not self.client.is_open
        # Nothing can be sent to the client, so nothing more is worth handling for it.
        self._messages = NOTHING
        try:
            async with asyncio.timeout(GRACE):
                while self._events.held() is None:
                    await self._wait()
        except TimeoutError:
            raise error from None

    async def _close_for_overflow(self) -> None:
        self._messages = NOTHING
        if self.client.has_closed:
            return
        try:
            try:
                await self.client({"type": "websocket.close", "code": CLOSE_TRY_AGAIN})
            except (OSError, RuntimeError):
                raise
            except Exception:
                await self.client({"type": "websocket.close", "code": CLOSE_TRY_AGAIN_PRIVATE})
        except (OSError, RuntimeError) as error:
            await self._expect_end(error)

    def must_visit_database(self) -> bool:
        """Tell whether something is due in the thread of the consumer's database code; at first, nobody knows."""
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
