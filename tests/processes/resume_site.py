"""
A small site for resume.js: one room, whose log is a file, so that it outlives a server that is killed.

Its consumer speaks the frames of a resumable WebSocket by itself, and does as the page says.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from channels_asyncq.generic.websocket import ResumableWebsocketConsumer

settings.configure(
    SECRET_KEY="only for tests",
    ALLOWED_HOSTS=["127.0.0.1"],
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.staticfiles", "channels", "channels_asyncq"],
    ROOT_URLCONF=__name__,
    STATIC_URL="static/",
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_asyncq.AsyncQueueChannelLayer",
            "CONFIG": json.loads(os.environ.get("RESUME_LAYER", '{"hosts": ["memory://"]}')),
        }
    },
)
django.setup()

LOG = Path(os.environ.get("RESUME_LOG", os.devnull))
#: While there is such a file, the stream is refused.
REFUSING = LOG.with_name("refusing")
#: Positions before this one are no longer in the log.
FIRST = int(os.environ.get("RESUME_FIRST", "0"))

PAGE = '<!doctype html><title>A page</title><script type="module" src="/page.js"></script>'
OTHER_PAGE = "<!doctype html><title>Another page</title>"
# Keeps all that it is told, for the test to look at.
SCRIPT = """
import { ResumableSocket } from "/static/channels_asyncq/resume.js";

window.ResumableSocket = ResumableSocket;
window.told = [];
window.violations = [];
addEventListener("securitypolicyviolation", ({ violatedDirective }) => violations.push(violatedDirective));
addEventListener("pageshow", ({ persisted }) => told.push({ type: "pageshow", persisted }));

window.connect = (options, events = told) => {
  const socket = new ResumableSocket(options?.url ?? "/ws/room/", options);
  const tell = (event) => {
    const { type, data, lastEventId, detail } = event;
    events.push({ type, at: performance.now(), position: socket.position, data, lastEventId, ...detail });
  };
  for (const type of ["message", "recovered", "close"]) socket.addEventListener(type, tell);
  return socket;
};
window.connectMany = (length, options) => {
  window.attempts = Array.from({ length }, () => []);
  for (const events of attempts) connect(options, events);
};
"""


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE, headers={"Content-Security-Policy": "default-src 'self'"})


def documented(request: HttpRequest) -> HttpResponse:
    """What the test has written: Chromium lets a page that the test itself answers open no WebSocket here."""
    html = LOG.with_name("documented.html").read_text()
    return HttpResponse(html, headers={"Content-Security-Policy": "default-src 'self'"})


def other_page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(OTHER_PAGE)


def script(request: HttpRequest) -> HttpResponse:
    return HttpResponse(SCRIPT, content_type="text/javascript")


def said() -> list[str]:
    return LOG.read_text().splitlines()


def add(text: str) -> None:
    with LOG.open("a") as log:
        log.write(f"{text}\n")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """What was said since, as server-sent events; then it ends, and an EventSource comes back. Or 503."""
    if REFUSING.exists():
        return StreamingHttpResponse([], status=503)
    since = request.headers.get("Last-Event-ID") or request.GET.get("since", "")
    at = int(since.removeprefix("p~") or "0")
    parts = ["retry: 50\n\n"]
    if at < FIRST:
        at = len(said())
        parts.append(f"id: p~{at}\nevent: reset\ndata: {{}}\n\n")
    for number, text in enumerate(said()[at:], at + 1):
        parts.append(f"id: p~{number}\nevent: order.changed\ndata: {json.dumps(text)}\n\n")

    async def events() -> AsyncIterator[str]:
        for part in parts:
            yield part

    return StreamingHttpResponse(events(), content_type="text/event-stream")


class Room(AsyncWebsocketConsumer):
    """Messages have the positions p~1, p~2 and so on."""

    members: "set[Room]" = set()  # noqa: RUF012  (shared on purpose)

    async def connect(self) -> None:
        await self.accept()
        query = parse_qs(self.scope["query_string"].decode())
        since = query.get("since", [""])[0]
        await self.send(text_data=json.dumps({"since": since}))
        self.sending = asyncio.Lock()
        self.at = int(since.removeprefix("p~")) if since else len(said())
        recovered = self.at >= FIRST
        if not recovered:
            self.at = len(said())
        self.members.add(self)
        await self.catch_up()
        reason = "" if recovered else "trimmed"
        resumed = {"type": "resumed", "id": f"p~{self.at}", "recovered": recovered, "reason": reason}
        await self.send(text_data=json.dumps(resumed))

    async def disconnect(self, code: int) -> None:
        self.members.discard(self)

    async def catch_up(self) -> None:
        async with self.sending:
            for text in said()[self.at :]:
                self.at += 1
                await self.send(text_data=json.dumps({"id": f"p~{self.at}", "m": text}))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        order: dict[str, Any] = json.loads(text_data or "{}")
        if "say" in order:
            add(order["say"])
            for member in list(self.members):
                await member.catch_up()
        if "send" in order:
            await self.send(text_data=order["send"])
        if "close" in order:
            await self.close(*order["close"])


class PackageRoom(ResumableWebsocketConsumer):
    """The consumer of the package."""

    # What is said when this connection has ended.
    later: "list[str]" = []  # noqa: RUF012  (replaced, never changed)

    def resumable_groups(self) -> list[str]:
        return ["room"]

    async def say(self, text: str) -> None:
        await self.channel_layer.group_send("room", {"type": "room.said", "text": text})

    async def room_said(self, event: dict[str, Any]) -> None:
        await self.send_json(event["text"])

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        if "say" in content:
            await self.say(content["say"])
        if "answer" in content:
            await self.send_json(content["answer"])
        if "leave" in content:
            self.later = content["leave"]
            await self.close(4500)

    async def disconnect(self, code: int) -> None:
        for text in self.later:
            await self.say(text)


urlpatterns = [
    path("documented/", documented),
    path("", page),
    path("other/", other_page),
    path("page.js", script),
    path("orders/events/", stream),
]

application = ProtocolTypeRouter(
    {
        "http": ASGIStaticFilesHandler(get_asgi_application()),
        "websocket": URLRouter(
            [
                path("ws/room/", Room.as_asgi()),  # type: ignore[arg-type, list-item]
                path("ws/package/", PackageRoom.as_asgi()),  # type: ignore[arg-type, list-item]
            ]
        ),
    }
)
