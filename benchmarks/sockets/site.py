"""
The site: one room. `BENCHMARK_SOCKETS` says who talks to the clients, and with which layer.

Run as a program it serves itself. Each kind of application sends the same frame for the same message.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import django
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

GROUP = "room"


def room(base: Any) -> Any:
    class Room(base):  # type: ignore[misc]
        """As a tutorial would write it."""

        async def connect(self) -> None:
            await self.channel_layer.group_add(GROUP, self.channel_name)
            await self.accept()

        async def disconnect(self, code: int) -> None:
            await self.channel_layer.group_discard(GROUP, self.channel_name)

        async def chat_message(self, event: dict[str, Any]) -> None:
            await self.send_json({key: value for key, value in event.items() if key != "type"})

    return Room.as_asgi()


def echo(limits: dict[str, Any]) -> Any:
    class Echo(own_websocket.AsyncWebsocketConsumer):
        """Says what it hears."""

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await self.send(text_data=text_data)

    return type("LimitedEcho", (Echo,), limits).as_asgi()  # type: ignore[attr-defined]


_bare: set[Any] = set()
_listening: asyncio.Task[None] | None = None


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The least an ASGI application can do: one task reads the channel and sends to all, one after the other."""
    global _listening
    await receive()
    await send({"type": "websocket.accept"})
    _bare.add(send)
    if _listening is None:
        _listening = asyncio.create_task(_send_to_all())
        await asyncio.sleep(0.5)
    try:
        while (await receive())["type"] != "websocket.disconnect":
            pass
    finally:
        _bare.discard(send)


async def _send_to_all() -> None:
    layer = get_channel_layer()
    assert layer is not None
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    while True:
        event = await layer.receive(channel)
        if event["type"] == "websocket.send":
            text = event["text"]
        else:
            text = json.dumps({key: value for key, value in event.items() if key != "type"})
        for send in list(_bare):
            await send({"type": "websocket.send", "text": text})


_kinds: dict[str, Callable[[], Any]] = {
    "bare": lambda: bare,
    "stock": lambda: room(channels_websocket.AsyncJsonWebsocketConsumer),
    "own": lambda: room(own_websocket.AsyncJsonWebsocketConsumer),
    "echo": lambda: echo(order["limits"]),
}
application = _kinds[order["consumer"]]()

if __name__ == "__main__":
    address = order["host"], order["port"]
    if order["server"] == "daphne":
        from daphne.cli import CommandLineInterface

        sys.modules["benchmarks.sockets.site"] = sys.modules["__main__"]
        CommandLineInterface().run(
            ["-v", "0", "-b", address[0], "-p", str(address[1]), "benchmarks.sockets.site:application"]
        )
    else:
        import uvicorn

        uvicorn.run(
            application,
            host=address[0],
            port=address[1],
            lifespan="off",
            log_level="warning",
            loop="asyncio",
            interface="asgi3",
        )
