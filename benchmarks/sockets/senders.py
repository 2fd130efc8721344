"""What publishes to the room of each side: through the layer, or as the adapters of Node read it from Redis."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

import ormsgpack
from redis.asyncio import Redis

from ..layers import CONTENDERS, Layer
from ..process import Closable
from .messages import ROOM, Way
from .sides import Side

#: A packet of Socket.IO that is an event.
_EVENT = 2


class Sender(Protocol):
    """Sends to the room of a side. Implemented by LayerSender, WsSender and SocketIoSender."""

    async def send(self, way: Way, message: Mapping[str, str]) -> None: ...
    async def close(self) -> None: ...


class LayerSender:
    """Sends to the group of a channel layer."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    async def send(self, way: Way, message: Mapping[str, str]) -> None:
        event: dict[str, Any]
        if way == "frame":
            event = {"type": "websocket.send", "text": json.dumps(message)}
        else:
            event = {"type": "chat.message", **message}
        await self._layer.group_send(ROOM, event)

    async def close(self) -> None:
        if isinstance(self._layer, Closable):
            await self._layer.close()


class WsSender:
    """Publishes the text of the frame."""

    def __init__(self, url: str, prefix: str) -> None:
        self._redis = Redis.from_url(url)
        self._topic = f"{prefix}{ROOM}"

    async def send(self, way: Way, message: Mapping[str, str]) -> None:
        await self._redis.publish(self._topic, json.dumps(message))

    async def close(self) -> None:
        await self._redis.aclose()


class SocketIoSender:
    """Publishes an event as Socket.IO's emitter for Redis does."""

    def __init__(self, url: str, prefix: str) -> None:
        self._redis = Redis.from_url(url)
        self._topic = f"{prefix}#/#{ROOM}#"

    async def send(self, way: Way, message: Mapping[str, str]) -> None:
        packet = {"type": _EVENT, "data": ["chat.message", dict(message)], "nsp": "/"}
        options = {"rooms": [ROOM], "except": [], "flags": {}}
        await self._redis.publish(self._topic, ormsgpack.packb(["emitter", packet, options]))

    async def close(self) -> None:
        await self._redis.aclose()


def sender(side: Side, url: str, prefix: str) -> Sender:
    """What publishes to the room of that side."""
    if side.is_node:
        return (SocketIoSender if side.consumer == "socket_io" else WsSender)(url, prefix)
    contender = CONTENDERS[side.layer]
    return LayerSender(contender.make(contender.config(url, prefix)))
