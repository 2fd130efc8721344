"""
A site of sockets for what servers do to consumers: Channels' at `channels/...`, ours at `ours/...`. The sync ones
are at `channels-sync/...` and `ours-sync/...`.
"""

import asyncio
import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.site_settings")

import django

django.setup()

from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

from tests.consumers import KINDS, Kind  # noqa: E402
from tests.contract import eventually  # noqa: E402
from tests.handlers import Steps, on_loop  # noqa: E402


def consumers(kind: Kind) -> dict[str, Any]:
    class Room(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        """Says what everybody says, and who has left."""

        groups = ["room"]  # noqa: RUF012

        def connect(self) -> Steps:
            if self.scope["query_string"] == b"no":
                yield self.close()
            else:
                yield self.accept(next(iter(self.scope["subprotocols"]), None))

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            if text_data == "fail":
                raise ZeroDivisionError("a consumer's own error")
            if text_data == "linger":
                # To somebody who has gone before it ends: the server refuses, or does not mind.
                yield self.channel_layer.group_send("room", {"type": "room.says", "text": "lingering"})
                for _ in range(50):
                    yield self.send(text_data="still here")
                    yield asyncio.sleep(0.02)
            elif text_data == "chatter":
                for _ in range(2000):
                    yield self.send(text_data="still here")
                    yield asyncio.sleep(0)
            elif text_data == "close":
                yield self.close(4001, "enough")
            elif text_data == "frame":
                yield self.channel_layer.group_send("room", {"type": "websocket.send", "text": "frame"})
            else:
                yield self.channel_layer.group_send("room", {"type": "room.says", "text": text_data})

        def room_says(self, event: dict[str, Any]) -> Steps:
            yield self.send(text_data=event["text"])

        def disconnect(self, code: int) -> Steps:
            yield self.channel_layer.group_send("room", {"type": "room.says", "text": "left"})

    class Slow(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        """Takes its time over the first frame, until the room says something; counts what comes."""

        bytes = 0

        def connect(self) -> Steps:
            self.go_on = asyncio.Event()
            yield self.accept()
            yield self.begin_to_wait()

        async def begin_to_wait(self) -> None:
            self.waiting = asyncio.create_task(self._wait())

        async def _wait(self) -> None:
            layer = self.channel_layer
            channel = await layer.new_channel()
            await layer.group_add("now", channel)
            await layer.receive(channel)
            self.go_on.set()

        def receive(self, text_data: str | None = None, bytes_data: Any = None) -> Steps:
            yield self.go_on.wait()
            self.bytes += len(bytes_data or "")
            if text_data is not None:
                yield self.send(text_data=str(self.bytes))

        def disconnect(self, code: int) -> Steps:
            yield on_loop(self.waiting.cancel)

    class Now(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        """Lets the slow ones go on."""

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield self.channel_layer.group_send("now", {"type": "go.on"})
            yield self.send(text_data="sent")

    class Stuck(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        """Overflows its own channel."""

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield self.channel_layer.group_add("stuck", self.channel_name)
            for _ in range(20):
                yield self.channel_layer.group_send("stuck", {"type": "websocket.send", "text": "x"})
            yield eventually(lambda: self.channel_layer.statistics().told, "the overflow")

        def disconnect(self, code: int) -> Steps:
            yield self.channel_layer.group_send("room", {"type": "room.says", "text": f"stuck {code}"})

    return {"room": Room, "slow": Slow, "now": Now, "stuck": Stuck}


application = ProtocolTypeRouter(
    {
        "websocket": URLRouter(
            [
                path(f"{name}/{what}/", consumer.as_asgi())
                for name, kind in KINDS.items()
                for what, consumer in consumers(kind).items()
            ]
        )
    }
)
