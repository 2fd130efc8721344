"""The site with event streams, and with WebSockets, whose clients leave one after the other before it stops."""

import json
import os
import time
from typing import Any
from urllib.parse import parse_qs

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter
from django.http import HttpRequest, HttpResponse
from django.urls import path

from channels_asyncq.asgi import drained, is_ready
from channels_asyncq.generic.websocket import ResumableWebsocketConsumer
from tests.processes import streams


def ready(request: HttpRequest) -> HttpResponse:
    """What a load balancer asks."""
    return HttpResponse("ready" if is_ready() else "draining")


urlpatterns = [*streams.urlpatterns, path("ready/", ready)]


class Room(ResumableWebsocketConsumer):
    """Follows the group of its query."""

    def resumable_groups(self) -> list[str]:
        return [parse_qs(self.scope["query_string"].decode())["group"][0]]


class Plain(AsyncWebsocketConsumer):
    """A consumer of Channels, which sends on while it is being closed: its error would be in the log."""

    async def connect(self) -> None:
        await self.accept()
        await self.channel_layer.group_add("plain", self.channel_name)

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard("plain", self.channel_name)

    async def test_message(self, message: dict[str, Any]) -> None:
        await self.send(text_data=json.dumps(message))


async def sockets(scope: Any, receive: Any, send: Any) -> None:
    consumer: Any = Plain if scope["path"] == "/plain/" else Room
    await consumer.as_asgi()(scope, receive, send)


application: Any = drained(
    ProtocolTypeRouter({"http": streams.application, "websocket": sockets}),
    seconds=float(os.environ.get("TEST_SECONDS", "5")),
)


class Standstill:
    """The event loop stands still after each close, for longer than autobahn waits for the answer."""

    def __init__(self, send: Any) -> None:
        self.real_send = send

    async def send(self, message: dict[str, Any]) -> None:
        await self.real_send(message)
        if message["type"] == "websocket.close":
            time.sleep(1.1)  # noqa: ASYNC251


async def standing_still(scope: Any, receive: Any, send: Any) -> None:
    """The application on an event loop that stands still at the worst moment. For Daphne."""
    from twisted.internet.task import LoopingCall

    # Timers of Twisted run in each turn, and before what is to be written.
    timers = LoopingCall(lambda: None)
    timers.start(0)
    try:
        await plain_application(scope, receive, Standstill(send).send)
    finally:
        timers.stop()


if os.environ.get("TEST_STANDSTILL"):
    plain_application, application = application, standing_still
