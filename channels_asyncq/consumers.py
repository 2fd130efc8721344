"""
The consumers of Channels, leaner inside: change the import, and nothing else.

`AsyncConsumer` is `channels.consumer.AsyncConsumer` with another way of waiting for its two sources, the client
and the channel layer, and without a trip to the database's thread where nothing is to be done there. It works
with every channel layer, and with none. `SyncConsumer` is the one of Channels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from asgiref.sync import iscoroutinefunction
from channels import consumer
from channels.consumer import SyncConsumer, get_handler_name
from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer

from . import database
from .exceptions import ChannelClosed
from .external import ExternalMessage
from .layer import AsyncQueueChannelLayer

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable
    from channels.consumer import _ChannelScope

__all__ = ["AsyncConsumer", "SyncConsumer", "get_handler_name"]

Message = dict[str, Any]

#: The WebSocket close codes for a client that does not keep up: "try again later", and what stands in for it
#: under a server that sends no code below 3000 (Daphne).
CLOSE_TRY_AGAIN = 1013
CLOSE_TRY_AGAIN_PRIVATE = 4013
# A server that refuses what we send says within this time that the client has gone; else something is wrong.
GRACE = 1.0


class Source(Protocol):
    """Where messages come from. Of our own layer, the channel itself (`layer.OpenChannel`)."""

    def take(self) -> Message | None: ...
    @property
    def empty(self) -> Callable[[], bool]: ...
    @property
    def wake(self) -> Callable[[asyncio.Future[None]], None]: ...
    @property
    def stop_waking(self) -> Callable[[asyncio.Future[None]], None]: ...


class Asked:
    """
    A `receive()` of a server or of a layer as a source.

    It is called for one message at a time, and not before somebody looks for the next: whoever is behind it sees
    how fast we are, and can slow down its end.
    """

    __slots__ = ("_receive", "_task", "waiter")

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        self._receive = receive
        self._task: asyncio.Future[Any] | None = None
        self.waiter: asyncio.Future[None] | None = None

    def ask(self) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(self._receive())
            self._task.add_done_callback(self._on_answer)

    def _on_answer(self, task: asyncio.Future[Any]) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def empty(self) -> bool:
        return self._task is None or not self._task.done()

    def held(self) -> Message | None:
        """
        Return the message that has come, without taking it.

        Raises whatever `receive()` raised.
        """
        task = self._task
        if task is None:
            self.ask()
            return None
        return task.result() if task.done() else None

    def take(self) -> Message | None:
        """Return the message that has come. The next one is not asked for before somebody looks again."""
        message = self.held()
        if message is not None:
            self._task = None
        return message

    def wake(self, waiter: asyncio.Future[None]) -> None:
        self.waiter = waiter

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        self.waiter = None

    async def stop(self) -> None:
        """Give up asking. Whatever that raises at the other end comes too late to matter."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, so that nobody complains


class Nothing:
    """The source of a consumer without a channel layer, or of one that has lost its channel or its client."""

    def empty(self) -> bool:
        return True

    def take(self) -> Message | None:
        return None

    def wake(self, waiter: asyncio.Future[None]) -> None:
        pass

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        pass


NOTHING = Nothing()


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


class AsyncConsumer(consumer.AsyncConsumer):
    """
    A consumer whose handlers are coroutines: the behaviour of Channels', with less work for each message.

    What is different, for those who look: a `websocket.send` message from the channel layer goes to the client
    as it is; a client that is gone while something is sent to it is met by the disconnect handler, under every
    server; what the layer itself has to say (`on_loss` and the like) needs no handler; a channel that is closed
    by `overflow="close"` closes the WebSocket with 1013.
    """

    # For type checkers, which then know `exclude=`; with another BACKEND it is another layer, without one None.
    channel_layer: AsyncQueueChannelLayer
    # Of the class, because consumers need not call our __init__(), and their tests may call dispatch().
    _asyncq: Conversation | None = None

    async def __call__(
        self, scope: _ChannelScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Dispatch what the server and the channel layer bring to handlers by type, until StopConsumer."""
        self.scope = scope
        client = Client(send)
        self.base_send = client
        self._asyncq = conversation = Conversation(client, receive, scope["type"] == "websocket")
        layer = get_channel_layer(self.channel_layer_alias)
        self.channel_layer = layer  # type: ignore[assignment]
        if isinstance(layer, AsyncQueueChannelLayer):
            conversation.notices = layer.notices
        # A dispatch() of the consumer's own is to see them all.
        passes_on = type(self).dispatch is AsyncConsumer.dispatch and not hasattr(self, "websocket_send")
        if layer is None:
            await conversation.run(NOTHING, self.dispatch, passes_on)
        elif isinstance(layer, AsyncQueueChannelLayer) and _reads_as_we_do(layer):
            channel = await layer.open_channel()
            try:
                self._use(channel.name)
                await conversation.run(channel, self.dispatch, passes_on)
            finally:
                channel.close()
        else:
            self._use(await layer.new_channel())
            messages = Asked(self.channel_receive)
            try:
                await conversation.run(messages, self.dispatch, passes_on)
            finally:
                await messages.stop()
                if isinstance(layer, AsyncQueueChannelLayer) and not layer.is_closed:
                    layer.close_channel(self.channel_name)

    def _use(self, channel: str) -> None:
        self.channel_name = channel
        self.channel_receive = partial(self.channel_layer.receive, channel)  # type: ignore[assignment]

    async def dispatch(self, message: Message) -> None:
        """
        Hand a message to the handler that its type names.

        A message from outside for which there is none is counted and logged, and dropped.

        Raises:
            ValueError: there is none.
        """
        handler = getattr(self, get_handler_name(message), None)
        conversation = self._asyncq
        if isinstance(message, ExternalMessage) and not iscoroutinefunction(handler):
            handler = None  # an attribute, or a method that is not for messages
        if handler:
            if conversation is None:
                await database.close_old_connections()
            elif conversation.must_visit_database():
                await conversation.visit_database()
            await handler(message)
        elif conversation is not None and message["type"] == "websocket.send":
            await conversation.pass_on(message)
        elif isinstance(message, ExternalMessage):
            _drop(message, self.channel_layer, type(self).__name__)
        elif conversation is None or message["type"] not in conversation.notices:
            raise ValueError(f"No handler for message type {message['type']}")


def _drop(message: ExternalMessage, layer: object, reader: str) -> None:
    """Have a message that nobody handles counted, and go on."""
    if isinstance(layer, AsyncQueueChannelLayer):
        layer.drop_unhandled(message, reader)


def _reads_as_we_do(layer: AsyncQueueChannelLayer) -> bool:
    """Is `receive()` our own? Somebody's subclass may want to see every message."""
    return type(layer).receive is AsyncQueueChannelLayer.receive


async def _turn() -> None:
    """Let the event loop turn once."""
    await asyncio.sleep(0)
