"""The layers that take part, by name."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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

    `settings` are laid over the hosts and the prefix that every contender gets; defaults are left alone unless
    a comparison needs them changed.
    """

    name: str
    backend: str
    distribution: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def make(self, config: Mapping[str, Any]) -> Layer:
        """The layer itself; called in the process that uses it."""
        module, _, name = self.backend.rpartition(".")
        layer: Layer = getattr(importlib.import_module(module), name)(**{**config, **self.settings})
        return layer


CONTENDERS: Mapping[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("asyncq", "channels_asyncq.AsyncQueueChannelLayer", "channels_asyncq"),
        Contender("redis.pubsub", "channels_redis.pubsub.RedisPubSubChannelLayer", "channels_redis"),
    )
}

OURS = "asyncq"
THEIRS = "redis.pubsub"
