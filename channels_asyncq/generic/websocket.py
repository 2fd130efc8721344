"""
The WebSocket consumers of Channels under their names: change the import from `channels.generic.websocket`.

The async ones are those of Channels on top of `channels_asyncq.consumers.AsyncConsumer`, which says what is
different. The sync ones are those of Channels. `ResumableWebsocketConsumer` and `AuthGroups` are new.
"""

from __future__ import annotations

from channels.generic import websocket
from channels.generic.websocket import JsonWebsocketConsumer, WebsocketConsumer

from ..consumers.auth_groups import AuthGroups
from ..consumers.consumer import AsyncConsumer
from ..consumers.resumable import ResumableWebsocketConsumer

__all__ = [
    "AsyncJsonWebsocketConsumer",
    "AsyncWebsocketConsumer",
    "AuthGroups",
    "JsonWebsocketConsumer",
    "ResumableWebsocketConsumer",
    "WebsocketConsumer",
]


class AsyncWebsocketConsumer(websocket.AsyncWebsocketConsumer, AsyncConsumer):
    """A WebSocket as a class: override `connect()`, `receive()` and `disconnect()`."""


class AsyncJsonWebsocketConsumer(websocket.AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer):
    """A WebSocket that speaks JSON: override `receive_json()`, and answer with `send_json()`."""
