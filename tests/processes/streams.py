"""A site with event streams, served by the servers under test; Django's settings are in `stream_settings`."""

import os
import threading
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.urls import path

from channels_asyncq import get_layer
from channels_asyncq.http import EventStream

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.processes.stream_settings")


def _query() -> None:
    with connection.cursor() as cursor:
        cursor.execute("select 1")


def sync_only(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Any:
    """A middleware that knows of no event loop: Django calls it and the rest in the request's thread."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        _query()
        return get_response(request)

    return middleware


async def stream(request: HttpRequest, group: str) -> HttpResponseBase:
    """A stream of some groups; with `?database=1` the view uses the database before."""
    if request.GET.get("database"):
        await sync_to_async(_query)()
    heartbeat = float(request.GET.get("heartbeat", 15))
    return EventStream(request, group.split(","), heartbeat=heartbeat, retry=(0.2, 0.4))


def sync_stream(request: HttpRequest, group: str) -> HttpResponseBase:
    """The same from a sync view: Django iterates it on the event loop all the same."""
    _query()
    return EventStream(request, [group])


async def figures(request: HttpRequest) -> HttpResponseBase:
    """What the process has open, as its operating system and the layer count it."""
    layer = get_layer()
    return JsonResponse(
        {
            "pid": os.getpid(),
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
            "channels": layer.statistics().channels,
            "groups": sorted(layer.groups),
        }
    )


async def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("<!doctype html><title>streams</title>")


urlpatterns = [
    path("stream/<group>/", stream),
    path("sync/<group>/", sync_stream),
    path("figures/", figures),
    path("page/", page),
]

application: Any = get_asgi_application()
