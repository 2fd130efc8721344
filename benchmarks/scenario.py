"""What a scenario is: parts that are played in processes of their own, and a conductor that measures."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from .layers import Layer

CHAT_MESSAGE: Mapping[str, Any] = {
    "type": "chat.message",
    "room": "lobby",
    "user": "ada",
    "text": "The layer carries this from one process to another, a hundred times a second or more.",
    "sent": 1700000000.125,
    "id": 123456,
}
"""What is sent: a message of a chat, as dict of the usual types."""

PATIENCE = 60.0
"""Seconds that a round waits for its messages; what has not come by then is lost. A busy machine needs many."""


class Post(Protocol):
    """The line between a part and the conductor: JSON both ways."""

    async def tell(self, **news: Any) -> None: ...
    async def hear(self) -> dict[str, Any]: ...


Part = Callable[[Layer, Post, Mapping[str, Any]], Awaitable[None]]
"""A coroutine function that plays a part: with a layer of its own process, the post, and its parameters."""


class Stage(Protocol):
    """What a conductor has: fresh processes to play parts, and the server."""

    @property
    def prefix(self) -> str: ...

    def watch(self) -> "Watch": ...
    async def enter(self, part: str, **parameters: Any) -> Post: ...


class Watch(Protocol):
    """What the server was given to publish since `watch()`, counted by the server's own means afterwards."""

    def count(self, expected: int) -> int: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Measurement:
    """
    What one round gave: a figure in the scenario's unit, and how many messages did not arrive.

    `details` are further figures for the JSON file.
    """

    figure: float
    lost: int = 0
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Goal:
    """What we want: at least a multiple of the other side's figure, or a bound on our own."""

    kind: Literal["times", "at most"]
    value: float

    def is_met(self, ours: float, ratio: float | None) -> bool | None:
        """None when it cannot be told."""
        if self.kind == "at most":
            return ours <= self.value
        return None if ratio is None else ratio >= self.value

    def __str__(self) -> str:
        return f">= {self.value:g} x" if self.kind == "times" else f"<= {self.value:g}"


ONE_PROCESS = dict.fromkeys(("memory", "asyncq, memory"), "it serves one process only")
_KEYS = "it writes to the keys of the members, and there are none"
TO_NOBODY = ONE_PROCESS | dict.fromkeys(("redis.core", "valkey.core"), _KEYS)


class Scenario(ABC):
    """
    One comparison. A module of `benchmarks.scenarios` holds one subclass.

    `parts` maps names to what is played in processes of their own; `conduct()` runs in the command's process,
    enters them and returns the measurement of one round. `goals` are by layer.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    goals: ClassVar[Mapping[str, Goal]] = {}
    is_default: ClassVar[bool] = True
    #: The layer that the others are compared with.
    reference: ClassVar[str] = "redis.pubsub"
    #: Layers that cannot take part, and why.
    unable: ClassVar[Mapping[str, str]] = ONE_PROCESS
    parts: ClassVar[Mapping[str, Part]]

    @abstractmethod
    async def conduct(self, stage: Stage) -> Measurement:
        """Play one round with one layer."""
