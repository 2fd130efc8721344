"""A site with each kind of consumer, and event streams, for the grid of servers and versions."""

import json
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

from channels_asyncq.generic.websocket import AsyncJsonWebsocketConsumer, ResumableWebsocketConsumer
from tests.consumers import KINDS, Kind
from tests.handlers import Steps
from tests.processes import streams

GROUP = "room"


def room(kind: Kind) -> Any:
    """A consumer of this kind that sends each message of the group to its client."""

    class Room(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        groups = [GROUP]  # noqa: RUF012

        def test_message(self, message: dict[str, Any]) -> Steps:
            yield self.send(text_data=json.dumps({"m": message}))

    return Room


class JsonRoom(AsyncJsonWebsocketConsumer):
    """The same, in JSON."""

    groups = [GROUP]  # noqa: RUF012

    async def test_message(self, message: dict[str, Any]) -> None:
        await self.send_json({"m": message})


class ResumableRoom(ResumableWebsocketConsumer):
    """The same, for clients that come back."""

    def resumable_groups(self) -> list[str]:
        return [GROUP]


CONSUMERS: dict[str, Any] = {
    **{name: room(kind) for name, kind in KINDS.items()},
    "ours-json": JsonRoom,
    "resumable": ResumableRoom,
}

application = ProtocolTypeRouter(
    {
        "http": streams.application,
        "websocket": URLRouter(
            [path(f"{name}/", consumer.as_asgi()) for name, consumer in CONSUMERS.items()]
        ),
    }
)
