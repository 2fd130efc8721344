"""
What users write, to a type checker. `mypy --strict` looks at it (`tox -e types`), and nothing runs it.

A line that must be refused has an ignore, which is an error of its own (`unused-ignore`) if the line is not.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, assert_type

from asgiref.sync import async_to_sync
from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, StreamingHttpResponse

from channels_asyncq import (
    AsyncQueueChannelLayer,
    Config,
    ExternalConfig,
    Health,
    HostHealth,
    Latency,
    Link,
    OpenChannel,
    Overflow,
    RecoveryConfig,
    SerializerFormat,
    Statistics,
    get_layer,
    sync,
)
from channels_asyncq.asgi import Drained, drained, is_ready
from channels_asyncq.consumers import AsyncConsumer
from channels_asyncq.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
)
from channels_asyncq.http import EventStream
from channels_asyncq.migration import Both
from channels_asyncq.pytest_plugin import Listener
from channels_asyncq.testing import EmbeddedServer, Option

MESSAGE = {"type": "chat.message", "text": "hello"}


class Room(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        assert_type(self.channel_layer, AsyncQueueChannelLayer)
        await self.channel_layer.group_add("room", self.channel_name)
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.channel_layer.group_send("room", MESSAGE, exclude=[self.channel_name])
        await self.channel_layer.send_wait(self.channel_name, MESSAGE, timeout=1)
        await self.channel_layer.group_send("room", MESSAGE, excludes=[])  # type: ignore[call-arg]


class JsonRoom(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        await self.channel_layer.group_send("room", content, exclude=[self.channel_name])


class SyncRoom(JsonWebsocketConsumer):
    def connect(self) -> None:
        assert_type(self.channel_layer, AsyncQueueChannelLayer)
        async_to_sync(self.channel_layer.group_add)("room", self.channel_name)
        self.accept()

    def receive_json(self, content: Any, **kwargs: Any) -> None:
        async_to_sync(self.channel_layer.group_send)("room", content, exclude=[self.channel_name])
        self.send_json({"text": "said"})


class Worker(AsyncConsumer):
    async def job(self, message: dict[str, Any]) -> None:
        await self.channel_layer.group_send("room", message, exclude=(self.channel_name,))


def as_html(message: dict[str, Any]) -> str | None:
    return message.get("text")


async def events(request: HttpRequest) -> StreamingHttpResponse:
    EventStream(request, ["room"], since="1~", render=lambda message: {"n": message["n"]}, layer=get_layer())
    EventStream(request, ["room"], not_before=datetime.now())
    EventStream(request, ["room"], not_before=5)  # type: ignore[arg-type]
    EventStream(request, ["room"], render=lambda message: 5)  # type: ignore[arg-type, return-value]
    return EventStream(request, ("room",), heartbeat=5, retry=(1, 2.5), render=as_html)


async def the_layer() -> None:
    layer = get_layer()
    assert_type(layer, AsyncQueueChannelLayer)
    assert_type(await layer.open_channel(), OpenChannel)
    assert_type(layer.topic_of_group("room"), str)
    health = await layer.health()
    assert_type(health, Health)
    assert_type(health.hosts, tuple[HostHealth, ...])
    assert_type(await layer.faults(), dict[str, str])
    assert_type(layer.statistics(), Statistics)
    assert_type(layer.statistics().links, tuple[Link, ...])
    assert_type(layer.statistics().latency, Latency)
    assert_type(layer.statistics().lag, float | None)
    async for message in layer.listen("jobs"):
        assert_type(message, dict[str, Any])
    sync.group_send("room", MESSAGE, layer, exclude=["a"], on_commit=True)


def the_settings(hosts: list[str], capacities: dict[str, int], groups: list[str]) -> Config:
    overflow: Overflow = "close"
    serializer_format: SerializerFormat = "json"
    recovery: RecoveryConfig = {"seconds": 30, "exclude": groups, "required": True}
    external: ExternalConfig = {"types": [re.compile("news"), "sport.*"], "groups": ("board.*",)}
    config: Config = {
        "hosts": hosts,
        "expiry": 30,
        "channel_capacity": capacities,
        "overflow": overflow,
        "serializer_format": serializer_format,
        "recovery": recovery,
        "external": external,
        "symmetric_encryption_keys": ["a", b"b"],
    }
    config["hosts"] = ["redis://one", ("two", 6379), {"address": "rediss://three", "ssl_ca_certs": "ca.pem"}]
    config["hosts"] = [("localhost", 6379)]
    config["hosts"] = [{"host": "localhost", "port": 6379}]
    config["channel_capacity"] = {"http.*": 20, re.compile("mail"): 1000}
    config["recovery"] = config["external"] = None
    config["hosts"] = 6379  # type: ignore[typeddict-item]
    config["overflow"] = "drop"  # type: ignore[typeddict-item]
    config["capacty"] = 5  # type: ignore[typeddict-unknown-key]
    config["capacity"] = "5"  # type: ignore[typeddict-item]
    return config


def the_arguments(config: Config) -> None:
    AsyncQueueChannelLayer(hosts=["memory://"], prefix="shop", recovery={"messages": 1000})
    AsyncQueueChannelLayer(**config)
    AsyncQueueChannelLayer(capacty=5)  # type: ignore[call-arg]
    AsyncQueueChannelLayer(capacity="5")  # type: ignore[arg-type]


def the_fixtures(asyncq_listen: Callable[..., Listener], maxmemory: Option) -> None:
    assert_type(asyncq_listen("room").get(), dict[str, Any])
    EmbeddedServer(maxmemory=maxmemory, user=["default off", "bob on"])


def applications() -> None:
    assert_type(drained(get_asgi_application(), seconds=10), Drained)
    drained(ProtocolTypeRouter({"http": get_asgi_application()}), 25.0, layer="other")
    drained(drained(get_asgi_application()))
    drained("site.asgi")  # type: ignore[arg-type]
    assert_type(is_ready(), bool)


def both_layers() -> None:
    old = {"BACKEND": "channels_redis.core.RedisChannelLayer"}
    Both(old=old, new={"BACKEND": "channels_asyncq.AsyncQueueChannelLayer", "CONFIG": {}}, send="old")
    Both(old=old, new=old)  # type: ignore[call-arg]
