"""A site whose clients are limited: a consumer for each limit, a stream, and what the process knows of them."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import django
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.sessions import SessionMiddlewareStack
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.urls import path

settings.configure(
    SECRET_KEY="only for tests",
    ALLOWED_HOSTS=["127.0.0.1"],
    USE_TZ=True,
    INSTALLED_APPS=["channels", "channels_asyncq"],
    ROOT_URLCONF=__name__,
    # Without a database.
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_asyncq.AsyncQueueChannelLayer",
            "CONFIG": json.loads(os.environ["TEST_LAYER_CONFIG"]),
        }
    },
)
django.setup()

from channels_asyncq import TooManyGroups, get_layer  # noqa: E402
from channels_asyncq.generic.websocket import (  # noqa: E402
    AsyncWebsocketConsumer,
    ResumableWebsocketConsumer,
)
from channels_asyncq.http import EventStream  # noqa: E402

handled: Counter[str] = Counter()
ended: list[tuple[str, int]] = []


class Room(AsyncWebsocketConsumer):
    """Counts the frames that it handles; says the short ones again, and joins groups."""

    groups = ["room"]  # noqa: RUF012

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        handled[type(self).__name__] += 1
        if text_data is None:
            return
        if text_data.startswith("join "):
            try:
                await self.channel_layer.group_add(text_data[5:], self.channel_name)
            except TooManyGroups as error:
                await self.send(text_data=f"too many: {error.most}")
                return
        await self.send(text_data=text_data)

    async def disconnect(self, code: int) -> None:
        ended.append((type(self).__name__, code))


class Waits(Room):
    rate = "20/s"
    burst = 5


class Drops(Waits):
    rate_action = "drop"


class Closes(Waits):
    rate_action = "close"


class Short(Room):
    max_frame = 1000


class Idle(Room):
    idle_timeout = 0.5


class Few(Room):
    max_groups = 3


class Back(ResumableWebsocketConsumer):
    resume_rate = "1/h"
    resume_burst = 2

    def resumable_groups(self) -> list[str]:
        return ["news"]


async def stream(request: HttpRequest) -> HttpResponseBase:
    return EventStream(request, ["news"], resume_rate="1/h", resume_burst=2)


async def position(request: HttpRequest) -> HttpResponseBase:
    return JsonResponse({"position": await get_layer().position("news")})


def kib() -> int:
    """The memory of this process."""
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])


async def figures(request: HttpRequest) -> HttpResponseBase:
    statistics = get_layer().statistics()
    return JsonResponse(
        {
            "kib": kib(),
            "handled": handled,
            "ended": ended,
            "limited": statistics.limited,
            "resumes": statistics.resumes,
        }
    )


async def say(request: HttpRequest) -> HttpResponseBase:
    await get_layer().group_send("room", {"type": "websocket.send", "text": "hello"})
    return JsonResponse({})


urlpatterns = [
    path("stream/", stream),
    path("position/", position),
    path("figures/", figures),
    path("say/", say),
]

CONSUMERS: list[Any] = [Waits, Drops, Closes, Short, Idle, Few, Back]
application = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        # It wraps send(), as on most sites.
        "websocket": SessionMiddlewareStack(
            URLRouter([path(f"{each.__name__.lower()}/", each.as_asgi()) for each in CONSUMERS])
        ),
    }
)
