"""Sync views that send to a room."""

import os

from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.urls import path

from channels_asyncq import get_layer, sync


def tell(request: HttpRequest, room: str, message: str) -> HttpResponse:
    """By the sync API; the answer is the process that told."""
    sync.group_send(room, {"type": "room.message", "message": message})
    return HttpResponse(str(os.getpid()))


def say(request: HttpRequest, room: str, message: str) -> HttpResponse:
    """By `async_to_sync`."""
    async_to_sync(get_layer().group_send)(room, {"type": "room.message", "message": message})
    return HttpResponse(str(os.getpid()))


urlpatterns = [path("tell/<room>/<message>/", tell), path("say/<room>/<message>/", say)]
