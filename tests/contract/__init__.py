"""
The contract of a channel layer: what it does on every bus, as classes of tests, a module for each subject.

The rules of a bus alone, without a layer, are in `buses`.

Here is what the rules are written with. A bus's own test module supplies the fixtures `make_layer` (see
`MakeLayer`) and `let_time_pass` (see `LetTimePass`), and binds the rules by subclassing::

    class TestGroups(groups.Groups): ...

Classes named `Specified...` hold what the Channel Layer Specification leaves no choice about; they also run
on `InMemoryChannelLayer`. Their subclasses without that prefix add what this project's design promises on
every bus. Classes named `Shared...` need two processes that share a prefix, which in one loop are two layers.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import pytest

from channels_asyncq import AsyncQueueChannelLayer

Message = dict[str, Any]
T = TypeVar("T")
Call = Callable[[], Awaitable[object]]

DEADLINE = 20.0
# The `send_timeout` of layers on a server whose answers a test chooses.
SEND_TIMEOUT = 1.0
"""Seconds after which something that should have happened is called missing."""

POLL = 0.01
"""Seconds between two looks at something of which only time can tell."""


class SpecifiedLayer(Protocol):
    """What the specification asks of any channel layer."""

    async def send(self, channel: str, message: Message) -> None: ...
    async def receive(self, channel: str) -> Message: ...
    async def new_channel(self) -> str: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_discard(self, group: str, channel: str) -> None: ...
    async def group_send(self, group: str, message: Message) -> None: ...
    async def flush(self) -> None: ...


class MakeSpecifiedLayer(Protocol):
    """
    Make a layer of the bus under test with `config` on top of the test's own; it is closed when the test
    ends.
    """

    async def __call__(self, **config: Any) -> SpecifiedLayer: ...


class MakeLayer(Protocol):
    """The same for this project's layer: every layer made in one test shares one prefix of the test's own."""

    async def __call__(self, **config: Any) -> AsyncQueueChannelLayer: ...


class LetTimePass(Protocol):
    """Return when so many seconds have passed for what expires on the bus under test."""

    def __call__(self, seconds: float, /) -> Awaitable[None]: ...


class Publish(Protocol):
    """PUBLISH bytes on a topic of the test's prefix; returns how many connections got them."""

    def __call__(self, topic: str, payload: str | bytes) -> int: ...


@asynccontextmanager
async def layers(**defaults: Any) -> AsyncGenerator[MakeLayer, None]:
    """The fixture `make_layer` of a bus whose CONFIG is `defaults`; every layer made is closed at the end."""
    made: list[AsyncQueueChannelLayer] = []

    async def make_layer(**config: Any) -> AsyncQueueChannelLayer:
        layer = AsyncQueueChannelLayer(**{**defaults, **config})
        made.append(layer)
        return layer

    try:
        yield make_layer
    finally:
        async with asyncio.timeout(DEADLINE):
            for layer in made:
                await layer.close()


# What the rules are written with.

MARKER: Message = {"type": "test.marker"}


def note(n: int) -> Message:
    """A small message that can be told from its neighbours."""
    return {"type": "test.note", "n": n}


def notes(count: int) -> list[Message]:
    """The messages `note(0)` to `note(count - 1)`."""
    return [note(n) for n in range(count)]


async def receive(layer: SpecifiedLayer, channel: str) -> Message:
    """The next message on `channel`; a failure if none comes."""
    async with asyncio.timeout(DEADLINE):
        return await layer.receive(channel)


async def receive_many(layer: SpecifiedLayer, channel: str, count: int) -> list[Message]:
    """The next `count` messages on `channel`, in order."""
    return [await receive(layer, channel) for _ in range(count)]


async def assert_nothing_waits(layer: SpecifiedLayer, channel: str) -> None:
    """Assert that `channel` is empty: the next message out of it is the one put in now."""
    await layer.send(channel, MARKER)
    assert await receive(layer, channel) == MARKER


async def steps(count: int) -> None:
    """Let the event loop turn `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def started(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task of `coroutine` that has run up to where it waits."""
    task = asyncio.create_task(coroutine)
    await steps(5)
    return task


async def ended(task: asyncio.Task[T]) -> T | None:
    """The result of `task`, or None if it was cancelled."""
    async with asyncio.timeout(DEADLINE):
        await asyncio.wait([task])
    return None if task.cancelled() else task.result()


async def eventually(predicate: Callable[[], object], what: str = "it", within: float = DEADLINE) -> None:
    """Return when `predicate()` is true; fail after `within` seconds. For what no event announces."""
    deadline = asyncio.get_running_loop().time() + within
    while not predicate():
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"{what} did not happen within {within} s")
        await asyncio.sleep(POLL)


async def time_passes(seconds: float) -> None:
    """For expiry alone, where the passing of time is the event."""
    await asyncio.sleep(seconds)


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The codes of what the package logged, in order; asyncio's own lines are none of our concern."""
    records = [record for record in caplog.records if record.name.startswith("channels_asyncq")]
    return [record.__dict__["code"] for record in records]


def calls(*each: Call) -> tuple[Call, ...]:
    """The calls one rule holds for, as they are; it gives lambdas their type."""
    return each


async def every(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """All results; a failure if one does not come."""
    async with asyncio.timeout(DEADLINE):
        return list(await asyncio.gather(*awaitables))


async def channel_of(layer: SpecifiedLayer, kind: str) -> str:
    """
    A channel to read from: one of the layer's own (`specific`), or one that any process may read
    (`normal`).
    """
    return await layer.new_channel() if kind == "specific" else "jobs"


async def members_of(layer: SpecifiedLayer, group: str, count: int) -> list[str]:
    """`count` new channels, all in `group`."""
    channels = [await layer.new_channel() for _ in range(count)]
    await every(layer.group_add(group, channel) for channel in channels)
    return channels


async def member_of(layer: SpecifiedLayer, group: str = "room") -> str:
    """A new channel that is in `group`."""
    return (await members_of(layer, group, 1))[0]


def dropped(layer: AsyncQueueChannelLayer) -> int:
    """How many messages the layer dropped in all, whatever the reason."""
    return sum(layer.statistics().dropped.values())


def queued(layer: AsyncQueueChannelLayer, channel: str) -> int:
    """How many messages wait in one of the layer's channels."""
    queues: dict[str, int] = dict(layer.statistics().queued)
    return queues.get(channel, 0)


def short(value: object) -> str:
    """A test's id for a value."""
    return repr(value)[:40]


both_kinds = pytest.mark.parametrize("kind", ["specific", "normal"])
