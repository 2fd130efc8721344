"""
The WebSocket consumers of Channels under their names: change the import from `channels.generic.websocket`.

They are those of Channels on top of `channels_asyncq.consumers.AsyncConsumer` and `SyncConsumer`, which say what
is different. `ResumableWebsocketConsumer` and `AuthGroups` are new.
"""

from __future__ import annotations

from channels.generic import websocket

from ..consumers.auth_groups import AuthGroups
from ..consumers.consumer import AsyncConsumer
from ..consumers.resumable import ResumableWebsocketConsumer
from ..consumers.sync import SyncConsumer

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


class WebsocketConsumer(websocket.WebsocketConsumer, SyncConsumer):
    """A WebSocket as a class with functions: override `connect()`, `receive()` and `disconnect()`."""


class JsonWebsocketConsumer(websocket.JsonWebsocketConsumer, WebsocketConsumer):
    """A WebSocket that speaks JSON, with functions: override `receive_json()`, and answer with `send_json()`."""
