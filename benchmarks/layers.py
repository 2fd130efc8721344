"""The layers that take part, by name."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from .nats import nats_server

Message = dict[str, Any]


class Layer(Protocol):
    """What a scenario may use of a layer: the specification."""

    async def send(self, channel: str, message: Message) -> None: ...
    async def receive(self, channel: str) -> Message: ...
    async def new_channel(self) -> str: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_discard(self, group: str, channel: str) -> None: ...
    async def group_send(self, group: str, message: Message) -> None: ...


@dataclass(frozen=True, slots=True)
class Contender:
    """
    One layer as it is configured for a comparison.

    `settings` are laid over the server and the prefix that every contender gets; defaults are left alone unless
    a comparison needs them changed.
    """

    name: str
    backend: str
    distribution: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    server: Literal["redis", "nats", "none"] = "redis"

    def config(self, url: str, prefix: str) -> dict[str, Any]:
        """What tells it the server of that address."""
        if self.server == "none":
            return {}
        return {"hosts" if self.server == "redis" else "servers": [url], "prefix": prefix}

    def make(self, config: Mapping[str, Any]) -> Layer:
        """The layer itself; called in the process that uses it."""
        module, _, name = self.backend.rpartition(".")
        layer: Layer = getattr(importlib.import_module(module), name)(**{**config, **self.settings})
        return layer

    @property
    def is_installed(self) -> bool:
        try:
            importlib.import_module(self.backend.rpartition(".")[0])
        except ImportError:
            return False
        return self.server != "nats" or nats_server() is not None


_OURS = "channels_asyncq.AsyncQueueChannelLayer"

CONTENDERS: Mapping[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("asyncq", _OURS, "channels_asyncq"),
        Contender("asyncq, no log", _OURS, "channels_asyncq", {"recovery": None}),
        Contender("asyncq, memory", _OURS, "channels_asyncq", {"hosts": ["memory://"]}),
        Contender("redis.pubsub", "channels_redis.pubsub.RedisPubSubChannelLayer", "channels_redis"),
        Contender("redis.core", "channels_redis.core.RedisChannelLayer", "channels_redis"),
        Contender("valkey.pubsub", "channels_valkey.pubsub.ValkeyPubSubChannelLayer", "channels_valkey"),
        Contender("valkey.core", "channels_valkey.core.ValkeyChannelLayer", "channels_valkey"),
        Contender("nats", "channels_nats.NatsChannelLayer", "channels_nats", server="nats"),
        Contender("memory", "channels.layers.InMemoryChannelLayer", "channels", server="none"),
    )
}

OURS = "asyncq"
THEIRS = "redis.pubsub"
