"""Rooms over WebSocket, and consumers that say goodbye however they end."""

from typing import Any

from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

django_application = get_asgi_application()


class Room(AsyncJsonWebsocketConsumer):
    """Hears what is said in the room; when it ends, by itself or cancelled, it sends to `goodbyes`."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.channel_layer.send("goodbyes", {"type": "test.note", "n": 1})

    async def connect(self) -> None:
        self.room = self.scope["url_route"]["kwargs"]["room"]
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.room, self.channel_name)

    async def room_message(self, event: dict[str, Any]) -> None:
        await self.send_json({"message": event["message"]})


application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": URLRouter([path("ws/<room>/", Room.as_asgi())]),  # type: ignore[arg-type, list-item]
    }
)
