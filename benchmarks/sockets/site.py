"""
The site: one room. `BENCHMARK_SOCKETS` says what kind of application talks to the clients, and with which layer.

An ASGI server serves `benchmarks.sockets.site:application`. Each kind of application sends the same frame for the
same message. The path says how many groups a client joins: `/ws/20/`.
"""

import asyncio
import json
import os
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import django
from asgiref.sync import async_to_sync
from django.conf import settings

order: dict[str, Any] = json.loads(os.environ["BENCHMARK_SOCKETS"])
settings.configure(
    SECRET_KEY="only for benchmarks",
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["channels"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    CHANNEL_LAYERS={"default": {"BACKEND": order["backend"], "CONFIG": order["config"]}},
    LOGGING_CONFIG=None,
)
django.setup()

from channels.generic import websocket as channels_websocket  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402

from channels_asyncq.generic import websocket as own_websocket  # noqa: E402

from .messages import ROOM  # noqa: E402
from .sampling import obey_signals  # noqa: E402

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

if "profile" in order:
    obey_signals(Path(order["profile"]))
Application = Callable[[Any, Any, Any], Awaitable[None]]


def groups(scope: Any) -> Iterator[str]:
    """The groups of a client: the room, and others that all clients share."""
    for number in range(int(scope["path"].strip("/").rpartition("/")[2])):
        yield f"{ROOM}.{number}" if number else ROOM


def content(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "type"}


def room(base: Any) -> Application:
    class Room(base):  # type: ignore[misc]
        """As a tutorial would write it."""

        async def connect(self) -> None:
            for group in groups(self.scope):
                await self.channel_layer.group_add(group, self.channel_name)
            await self.accept()

        async def disconnect(self, code: int) -> None:
            for group in groups(self.scope):
                await self.channel_layer.group_discard(group, self.channel_name)

        async def chat_message(self, event: dict[str, Any]) -> None:
            await self.send_json(content(event))

    application: Application = Room.as_asgi()
    return application


def sync_room(base: Any, **handlers: Any) -> Application:
    class Room(base):  # type: ignore[misc]
        """As most tutorials write it."""

        def connect(self) -> None:
            for group in groups(self.scope):
                async_to_sync(self.channel_layer.group_add)(group, self.channel_name)
            self.accept()

        def disconnect(self, code: int) -> None:
            for group in groups(self.scope):
                async_to_sync(self.channel_layer.group_discard)(group, self.channel_name)

        def chat_message(self, event: dict[str, Any]) -> None:
            self.send_json(content(event))

    application: Application = type("SyncRoom", (Room,), handlers).as_asgi()  # type: ignore[attr-defined]
    return application


def pass_on(self: Any, event: dict[str, Any]) -> None:
    """What a consumer of Channels needs to send a `websocket.send` message to its client."""
    self.send(text_data=event["text"])


def echo(limits: dict[str, Any]) -> Application:
    class Echo(own_websocket.AsyncWebsocketConsumer):
        """Says what it hears."""

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await self.send(text_data=text_data)

    application: Application = type("LimitedEcho", (Echo,), limits).as_asgi()  # type: ignore[attr-defined]
    return application


_bare: set[Any] = set()
_listening: asyncio.Task[None] | None = None


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The least an ASGI application can do: one task reads the channel and sends to all, one after the other."""
    global _listening
    await receive()
    if _listening is None:
        _listening = asyncio.create_task(_send_to_all())
    await send({"type": "websocket.accept"})
    if any(groups(scope)):
        _bare.add(send)
    try:
        while (await receive())["type"] != "websocket.disconnect":
            pass
    finally:
        _bare.discard(send)


async def _room_messages() -> AsyncIterator[dict[str, Any]]:
    """The messages of the room, by one channel for all clients."""
    layer = get_channel_layer()
    assert layer is not None
    channel = await layer.new_channel()
    await layer.group_add(ROOM, channel)
    while True:
        yield await layer.receive(channel)


async def _send_to_all() -> None:
    async for event in _room_messages():
        for send in list(_bare):
            await send({"type": "websocket.send", "text": event["text"]})


_queues: set[asyncio.Queue[dict[str, Any]]] = set()


async def tasks(scope: Any, receive: Any, send: Any) -> None:
    """
    The least that gives each client a pace and handlers of its own: a queue, and a task that sends from it.

    It has no consumers, and of a layer only one channel for all.
    """
    global _listening
    await receive()
    if _listening is None:
        _listening = asyncio.create_task(_put_to_all())
    await send({"type": "websocket.accept"})
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(100)
    if any(groups(scope)):
        _queues.add(queue)
    sending = asyncio.create_task(_send_from(queue, send))
    try:
        while (await receive())["type"] != "websocket.disconnect":
            pass
    finally:
        _queues.discard(queue)
        sending.cancel()


async def _put_to_all() -> None:
    async for event in _room_messages():
        for queue in _queues:
            queue.put_nowait(event)


async def _send_from(queue: asyncio.Queue[dict[str, Any]], send: Any) -> None:
    while True:
        event = await queue.get()
        text = event["text"] if event["type"] == "websocket.send" else json.dumps(content(event))
        await send({"type": "websocket.send", "text": text})


_kinds: dict[str, Callable[[], Application]] = {
    "bare": lambda: bare,
    "tasks": lambda: tasks,
    "stock": lambda: room(channels_websocket.AsyncJsonWebsocketConsumer),
    "own": lambda: room(own_websocket.AsyncJsonWebsocketConsumer),
    "sync-stock": lambda: sync_room(channels_websocket.JsonWebsocketConsumer, websocket_send=pass_on),
    "sync-own": lambda: sync_room(own_websocket.JsonWebsocketConsumer),
    "echo": lambda: echo(order["limits"]),
}
_application = _kinds[order["consumer"]]()


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve WebSockets, and nothing else."""
    if scope["type"] != "websocket":
        raise ValueError(f"only WebSockets are served here, not {scope['type']}")
    await _application(scope, receive, send)
