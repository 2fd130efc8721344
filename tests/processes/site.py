"""
A small site with rooms, an async and a sync consumer, a view that sends, and a worker that counts words.
"""

import os
from typing import Any

from asgiref.sync import async_to_sync
from channels.consumer import AsyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.site_settings")
django_application = get_asgi_application()


class Room(AsyncJsonWebsocketConsumer):
    """Everything said is heard by everybody in the room; `count` is answered by the worker."""

    async def connect(self) -> None:
        self.room = self.scope["url_route"]["kwargs"]["room"]
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.room, self.channel_name)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        if "count" in content:
            job = {"type": "count.words", "text": content["count"], "reply": self.channel_name}
            await self.channel_layer.send("words", job)
        else:
            await self.channel_layer.group_send(
                self.room, {"type": "room.message", "message": content["message"]}
            )

    async def room_message(self, event: dict[str, Any]) -> None:
        await self.send_json({"message": event["message"]})

    async def words_counted(self, event: dict[str, Any]) -> None:
        await self.send_json({"words": event["words"]})


class SyncRoom(JsonWebsocketConsumer):
    """The same for code that is sync."""

    def connect(self) -> None:
        self.room = self.scope["url_route"]["kwargs"]["room"]
        async_to_sync(self.channel_layer.group_add)(self.room, self.channel_name)
        self.accept()

    def disconnect(self, code: int) -> None:
        async_to_sync(self.channel_layer.group_discard)(self.room, self.channel_name)

    def receive_json(self, content: Any, **kwargs: Any) -> None:
        message = {"type": "room.message", "message": content["message"]}
        async_to_sync(self.channel_layer.group_send)(self.room, message)

    def room_message(self, event: dict[str, Any]) -> None:
        self.send_json({"message": event["message"]})


class Words(AsyncConsumer):
    """The worker."""

    async def count_words(self, event: dict[str, Any]) -> None:
        counted = {"type": "words.counted", "words": len(event["text"].split())}
        await self.channel_layer.send(event["reply"], counted)


def say(request: HttpRequest, room: str, message: str) -> HttpResponse:
    """A sync view that sends to a room."""
    layer = get_channel_layer()
    assert layer is not None
    async_to_sync(layer.group_send)(room, {"type": "room.message", "message": message})
    return HttpResponse("said")


urlpatterns = [path("say/<room>/<message>/", say)]

application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": URLRouter(
            [
                path("ws/<room>/", Room.as_asgi()),  # type: ignore[arg-type, list-item]
                path("sync/<room>/", SyncRoom.as_asgi()),  # type: ignore[arg-type, list-item]
            ]
        ),
        "channel": ChannelNameRouter({"words": Words.as_asgi()}),
    }
)
