"""A site with rooms, some of whose readers are slow: what the commands are to find in it."""

import asyncio
import os
from typing import Any

from channels.consumer import AsyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from channels_asyncq.generic import websocket

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.operated_settings")
django_application = get_asgi_application()

#: Set when slow readers may go on, so that the server can stop.
released = asyncio.Event()


class Room(websocket.AsyncJsonWebsocketConsumer):
    """Hears what is said in its room."""

    async def connect(self) -> None:
        await self.channel_layer.group_add(self.scope["url_route"]["kwargs"]["room"], self.channel_name)
        await self.accept()
        await self.send_json({"channel": self.channel_name})

    async def room_message(self, event: dict[str, Any]) -> None:
        await self.send_json(event)


class Slow(Room):
    """Takes one message, and no other."""

    async def room_message(self, event: dict[str, Any]) -> None:
        await self.send_json({"taken": event})
        await released.wait()


class Foreign(AsyncJsonWebsocketConsumer):
    """A consumer of Channels itself."""

    async def connect(self) -> None:
        await self.channel_layer.group_add(self.scope["url_route"]["kwargs"]["room"], self.channel_name)
        await self.accept()
        await self.send_json({"channel": self.channel_name})

    async def room_message(self, event: dict[str, Any]) -> None:
        await self.send_json({"taken": event})
        await released.wait()


class Words(AsyncConsumer):
    """The worker: takes one job, and no other."""

    async def count_words(self, event: dict[str, Any]) -> None:
        await released.wait()


async def release(request: HttpRequest) -> HttpResponse:
    """Let slow readers go on."""
    released.set()
    return HttpResponse("released")


urlpatterns = [path("release/", release)]

application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": URLRouter(
            [
                path(f"{name}/<room>/", consumer.as_asgi())  # type: ignore[arg-type, misc]
                for name, consumer in (("room", Room), ("slow", Slow), ("foreign", Foreign))
            ]
        ),
        "channel": ChannelNameRouter({"words": Words.as_asgi()}),
    }
)
