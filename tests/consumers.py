"""What the tests of consumers share: Channels' kind and ours, the layers under them, and the server's side."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import channels.consumer
import channels.generic.websocket
import pytest
from asgiref.sync import sync_to_async
from channels.layers import InMemoryChannelLayer, channel_layers
from django.test import override_settings

import channels_asyncq.consumers
import channels_asyncq.generic.websocket
from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.migration import Both
from tests.contract import DEADLINE
from tests.handlers import written_once

Message = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A set of consumers, async or sync ones, for handlers as in tests/handlers.py."""

    name: str
    is_sync: bool
    Consumer: Any
    WebsocketConsumer: Any
    JsonWebsocketConsumer: Any


def _kind(name: str, base: Any, sockets: Any, *, is_sync: bool) -> Kind:
    style = "" if is_sync else "Async"
    consumers = (
        base.SyncConsumer if is_sync else base.AsyncConsumer,
        getattr(sockets, f"{style}WebsocketConsumer"),
        getattr(sockets, f"{style}JsonWebsocketConsumer"),
    )
    return Kind(name, is_sync, *(written_once(consumer, is_sync=is_sync) for consumer in consumers))


OURS, OURS_SYNC = (
    _kind(name, channels_asyncq.consumers, channels_asyncq.generic.websocket, is_sync=is_sync)
    for name, is_sync in (("ours", False), ("ours-sync", True))
)
KINDS = {
    kind.name: kind
    for kind in (
        _kind("channels", channels.consumer, channels.generic.websocket, is_sync=False),
        _kind("channels-sync", channels.consumer, channels.generic.websocket, is_sync=True),
        OURS,
        OURS_SYNC,
    )
}

LAYERS = ("none", "inmemory", "redis.pubsub", "asyncq.memory", "asyncq.redis", "asyncq.traced", "both")


class TracedLayer(AsyncQueueChannelLayer):
    """Somebody's subclass that sees each message."""

    async def receive(self, channel: str) -> Message:
        message = await super().receive(channel)
        self.seen = [*getattr(self, "seen", []), message]
        return message


@contextlib.asynccontextmanager
async def installed(layer: Any) -> AsyncGenerator[Any, None]:
    """A layer in place of CHANNEL_LAYERS["default"]; None for no layer at all. It is closed at the end."""
    if layer is None:
        with override_settings(CHANNEL_LAYERS={}):
            yield None
        return
    backends = channel_layers.backends
    before = backends.get("default")
    backends["default"] = layer
    try:
        yield layer
    finally:
        del backends["default"]
        if before is not None:
            backends["default"] = before
        if isinstance(layer, Both):
            layer = layer.layers["new"]
        if isinstance(layer, AsyncQueueChannelLayer):
            await layer.close()


def make(name: str, url: str, prefix: str, **config: Any) -> Any:
    """One of LAYERS."""
    if name == "none":
        return None
    if name == "inmemory":
        return InMemoryChannelLayer(**config)
    if name == "redis.pubsub":
        from channels_redis.pubsub import RedisPubSubChannelLayer

        return RedisPubSubChannelLayer(hosts=[url], prefix=prefix, **config)
    if name == "both":
        memory = {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": config}
        ours = {
            "BACKEND": "channels_asyncq.AsyncQueueChannelLayer",
            "CONFIG": {"hosts": ["memory://"], "prefix": prefix, **config},
        }
        return Both(old=memory, new=ours, send="new")
    kind = TracedLayer if name == "asyncq.traced" else AsyncQueueChannelLayer
    return kind(hosts=[url if name == "asyncq.redis" else "memory://"], prefix=prefix, **config)


class Talk:
    """
    The server's side of one consumer: what it says, what it is told, and how far ahead it is asked.

    While there is a `hold` that is not set, no send returns. `refuse` is an error for every send from then on, as
    of a server whose client has gone; `refused` counts them.
    """

    def __init__(self, application: Any, scope: Message | None = None) -> None:
        self.events: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self.asked = 0
        self.refuse: Exception | None = None
        self.refused = 0
        self.hold: asyncio.Event | None = None
        self.is_held = asyncio.Event()
        self.task = asyncio.create_task(
            application(scope or {"type": "websocket"}, self._receive, self._send), name="the consumer"
        )

    async def _receive(self) -> Message:
        self.asked += 1
        event = await self.events.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def _send(self, message: Message) -> None:
        if self.hold is not None:
            self.is_held.set()
            await self.hold.wait()
        if self.refuse is not None:
            self.refused += 1
            raise self.refuse
        self.sent.put_nowait(message)

    def say(self, kind: str, **content: Any) -> None:
        self.events.put_nowait({"type": kind, **content})

    async def hears(self) -> Message:
        """What the consumer sends next; its error, if it ends without another word."""
        getting = asyncio.ensure_future(self.sent.get())
        await asyncio.wait([getting, self.task], timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done():
            getting.cancel()
            if self.task.done():
                self.task.result()
            raise AssertionError(f"nothing was sent; the consumer is {self.task}")
        return getting.result()

    async def accepted(self) -> None:
        self.say("websocket.connect")
        assert (await self.hears())["type"] == "websocket.accept"

    async def ends(self) -> None:
        """Wait for the consumer's end; raises what it raised."""
        async with asyncio.timeout(DEADLINE):
            await self.task

    async def leaves(self, code: int = 1000) -> None:
        self.say("websocket.disconnect", code=code)
        await self.ends()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@contextlib.asynccontextmanager
async def talks() -> AsyncGenerator[Any, None]:
    """
    A function that begins a Talk; at the end those that still go on are stopped.

    A handler that was cancelled in the thread of sync consumers may still wait there for something of this event
    loop. The thread is waited for: if the loop closed first, it would be stuck, and all later tests with it.
    """
    begun: list[Talk] = []

    def begin(consumer: Any, scope: Message | None = None, **initkwargs: Any) -> Talk:
        begun.append(Talk(consumer.as_asgi(**initkwargs), scope))
        return begun[-1]

    try:
        yield begin
    finally:
        for talk in begun:
            await talk.stop()
        async with asyncio.timeout(DEADLINE):
            await sync_to_async(bool)()


Begin = Callable[..., Talk]


@pytest.fixture
async def begin() -> AsyncGenerator[Begin, None]:
    """`talks()`, for the time of the test."""
    async with talks() as begin:
        yield begin


@pytest.fixture
async def layer(prefix: str) -> AsyncGenerator[AsyncQueueChannelLayer, None]:
    """A layer on `memory://` in place of CHANNEL_LAYERS["default"]."""
    async with installed(make("asyncq.memory", "", prefix)) as layer:
        yield layer


def say(talk: Talk, *texts: object) -> None:
    """Have a client send frames."""
    for text in texts:
        talk.say("websocket.receive", text=str(text))


async def hears(talk: Talk) -> Any:
    """Return the text of the next frame that a client gets."""
    return (await talk.hears())["text"]
