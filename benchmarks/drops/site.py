"""
The site: rooms over event streams and WebSockets, served by any ASGI server. `BENCHMARK_DROPS` has its order.

With `resume` it has what this package offers to a browser that comes back. Without, it is what a tutorial would
write; the client is told when it has joined, so that the time to that can be measured. With `database` each event
stream begins with a query there.
"""

import asyncio
import json
import os
import resource
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import fields
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.db import connection
from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path

order: dict[str, Any] = json.loads(os.environ["BENCHMARK_DROPS"])
if not settings.configured:
    settings.configure(
        SECRET_KEY="only for benchmarks",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["channels"],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": order["database"] or ":memory:"}
        },
        CHANNEL_LAYERS={"default": {"BACKEND": order["backend"], "CONFIG": order["config"]}},
        LOGGING_CONFIG=None,
    )
    django.setup()
    # Thousands of clients: more descriptors than a shell allows at first.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

from channels.generic import websocket as channels_websocket  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402

from channels_asyncq import get_layer  # noqa: E402
from channels_asyncq.asgi import drained  # noqa: E402
from channels_asyncq.generic import websocket as own_websocket  # noqa: E402


def groups_of(query: str) -> list[str]:
    return parse_qs(query)["group"][0].split(",")


async def events(request: HttpRequest) -> HttpResponseBase:
    """The rooms of the query as an event stream."""
    groups = groups_of(request.META["QUERY_STRING"])
    if order["database"]:
        await sync_to_async(ask_database)()
    if order["resume"]:
        response: HttpResponseBase = import_module("channels_asyncq.http").EventStream(request, groups)
        return response
    return StreamingHttpResponse(
        plain_events(groups), content_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


def ask_database() -> None:
    """Open the database connection of this thread, as a view does that looks at its user."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def plain_events(groups: list[str]) -> AsyncIterator[bytes]:
    """What comes from now on: the control."""
    layer = get_layer()
    channel = await layer.open_channel()
    try:
        for group in groups:
            await layer.group_add(group, channel.name)
        yield b": here\n\n"
        while True:
            while (message := channel.take()) is not None:
                data = json.dumps({key: value for key, value in message.items() if key != "type"})
                yield f"event: {message['type']}\ndata: {data}\n\n".encode()
            waiter = asyncio.get_running_loop().create_future()
            channel.wake(waiter)
            try:
                await waiter
            finally:
                channel.stop_waking(waiter)
    finally:
        channel.close()


def plain_consumer() -> Any:
    """A consumer as a tutorial would write it: that of Channels, or this package's for this layer."""
    is_ours = order["backend"].startswith("channels_asyncq.")
    base: Any = (own_websocket if is_ours else channels_websocket).AsyncJsonWebsocketConsumer

    class Room(base):  # type: ignore[misc]
        async def connect(self) -> None:
            self.groups_here = groups_of(self.scope["query_string"].decode())
            await self.accept()
            for group in self.groups_here:
                await self.channel_layer.group_add(group, self.channel_name)
            await self.send_json({"type": "resumed", "id": "", "recovered": True, "reason": ""})

        async def disconnect(self, code: int) -> None:
            for group in self.groups_here:
                await self.channel_layer.group_discard(group, self.channel_name)

        async def chat_message(self, event: dict[str, Any]) -> None:
            await self.send_json({"id": "", "m": event})

    return Room.as_asgi()


def resumable_consumer() -> Any:
    """The consumer whose clients come back."""

    base: Any = own_websocket

    class Room(base.ResumableWebsocketConsumer):  # type: ignore[misc]
        def resumable_groups(self) -> list[str]:
            return groups_of(self.scope["query_string"].decode())

    return Room.as_asgi()


async def statistics(request: HttpRequest) -> JsonResponse:
    """The figures of this process; those of the layer only where it has some."""
    layer: Any = get_channel_layer()
    figures: dict[str, Any] = {"pid": os.getpid(), "threads": threading.active_count()}
    if hasattr(layer, "statistics"):
        counted = layer.statistics()
        for field in fields(counted):
            value = getattr(counted, field.name)
            if isinstance(value, int | dict):
                figures[field.name] = value
        # What is held in memory for those that come back, and how often logs were read for them.
        for field in fields(counted.replay):
            figures[f"replay_{field.name}"] = getattr(counted.replay, field.name)
    return JsonResponse(figures)


urlpatterns = [path("events/", events), path("statistics/", statistics)]

_http = ASGIHandler()
_socket: Any = None
if order["kind"] == "websocket":
    _socket = resumable_consumer() if order["resume"] else plain_consumer()


async def application(scope: Any, receive: Any, send: Any) -> None:
    """The site as an ASGI application; it has WebSockets only where its clients speak them."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": f"{event['type']}.complete"})
            if event["type"] == "lifespan.shutdown":
                return
    await (_socket if scope["type"] == "websocket" else _http)(scope, receive, send)


if order["drain"]:
    # Only where servers are restarted: the other runs measure the site without it.
    application = drained(application, seconds=order["drain"])

if __name__ == "__main__":
    sys.exit("serve benchmarks.drops.site:application with an ASGI server")
