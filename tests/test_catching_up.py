"""Sessions that missed more than they may read, on real servers: one, and a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis.subscriber import Subscriber
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.names import Topics, owner_of
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.clusters import Cluster
from tests.contract import DEADLINE, MakeLayer, Message, every, members_of, note, receive, receive_many
from tests.contract.resume import resumed

PARTITIONS = 4
TOPICS = Topics("asgi", PARTITIONS, [0], "0" * 16)
LOSS = "test.loss"
#: More than a page, and more than the limit below.
MISSED = 1500
LIMIT = {"catch_up_messages": 600}


@pytest.fixture(scope="module", params=["server", "cluster"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[str, Sequence[EmbeddedServer]]]:
    """The URL, and the servers behind it."""
    with ExitStack() as stack:
        if request.param == "cluster":
            cluster = stack.enter_context(Cluster(primaries=3, replicas=0))
            yield cluster.url, cluster.nodes
        else:
            server = stack.enter_context(EmbeddedServer(external=False))
            yield server.url, [server]


@pytest.fixture
async def make_layer(servers: tuple[str, Sequence[EmbeddedServer]], prefix: str) -> AsyncIterator[MakeLayer]:
    config = {"hosts": [servers[0]], "prefix": prefix, "partitions": PARTITIONS, "capacity": 10_000}
    async with contract.layers(**config) as make_layer:
        yield make_layer


class Away:
    """Holds the layers with `on_loss` up when they connect again, until they may come back."""

    def __init__(self, servers: Sequence[EmbeddedServer]) -> None:
        self._servers = servers
        self._may_return = asyncio.Event()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        set_up, away = Subscriber.set_up, self

        async def held(self: Subscriber, wire: WireProtocol) -> None:
            if self._shared.options.on_loss is not None:
                await away._may_return.wait()
            await set_up(self, wire)

        monkeypatch.setattr(Subscriber, "set_up", held)

    async def leave(self) -> None:
        """End all connections for pushes."""
        for server in self._servers:
            await asyncio.to_thread(server.command, "CLIENT", "KILL", "TYPE", "pubsub")

    def come_back(self) -> None:
        self._may_return.set()


@pytest.fixture
async def away(servers: tuple[str, Sequence[EmbeddedServer]], monkeypatch: pytest.MonkeyPatch) -> Away:
    """`install()` it when the layers are up."""
    return Away(servers[1])


def group_in(partition: int) -> str:
    """A group of this partition."""
    return next(f"g{n}" for n in range(1000) if TOPICS.partition(f"g{n}") == partition)


def two_groups(channel: str) -> tuple[str, str]:
    """Groups of two partitions, in which neither the inbox of the channel's session is nor the topic of all."""
    session = owner_of(channel)
    assert session is not None
    first, second, *_ = {1, 2, 3} - {TOPICS.inbox(session).partition}
    return group_in(first), group_in(second)


def large(n: int) -> Message:
    """A message that shares its entry of the log with no other."""
    return {**note(n), "text": "x" * 1100}


def number(message: Message) -> object:
    return message.get("n", message.get("reason"))


async def missed(sender: AsyncQueueChannelLayer, group: str, count: int = MISSED) -> None:
    for first in range(0, count, 100):
        await every(sender.group_send(group, large(n)) for n in range(first, min(count, first + 100)))


@pytest.fixture
async def sender(make_layer: MakeLayer) -> AsyncQueueChannelLayer:
    return await make_layer()


async def test_too_far(
    make_layer: MakeLayer, sender: AsyncQueueChannelLayer, away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What was read comes first, in order; then the loss, once; then what is sent later. Nothing comes twice. Groups
    of other partitions miss nothing and are told nothing. A position of before is still good.
    """
    reader = await make_layer(on_loss=LOSS, recovery=LIMIT)
    of_far, of_near = await reader.new_channel(), await reader.new_channel()
    far, near = two_groups(of_far)
    await every([reader.group_add(far, of_far), reader.group_add(near, of_near)])
    await sender.group_send(far, large(-1))
    position = await reader.position(far)
    away.install(monkeypatch)
    await away.leave()
    await missed(sender, far)
    await missed(sender, near, 3)
    away.come_back()
    assert await receive_many(reader, of_near, 3) == [large(n) for n in range(3)]
    got: list[object] = []
    while not got or got[-1] != "too_far":
        got.append(number(await receive(reader, of_far)))
    assert got == [*range(-1, len(got) - 2), "too_far"] and 500 < len(got) < MISSED
    for group, channel in ((far, of_far), (near, of_near)):
        await sender.group_send(group, large(MISSED))
        assert number(await receive(reader, channel)) == MISSED
    assert reader.statistics().told == {"too_far": 1}
    for layer in (sender, reader):
        _, replay = await resumed(layer, far, position)
        assert replay.recovered and [number(each) for each in replay.messages] == list(range(MISSED + 1))
    # The next outage tells nothing of what is past.
    await away.leave()
    await sender.group_send(far, large(MISSED + 1))
    assert number(await receive(reader, of_far)) == MISSED + 1


async def test_within_the_limits(
    make_layer: MakeLayer, sender: AsyncQueueChannelLayer, away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs of several pages are read to their ends while more is sent: all comes in order, nothing is told."""
    reader = await make_layer(on_loss=LOSS)
    groups = [group_in(partition) for partition in range(PARTITIONS)]
    channels = [(await members_of(reader, group, 1))[0] for group in groups]
    away.install(monkeypatch)
    await away.leave()
    await every(missed(sender, group) for group in groups)
    away.come_back()
    await every(sender.group_send(group, large(MISSED + n)) for n in range(100) for group in groups)
    for channel in channels:
        got = [number(message) for message in await receive_many(reader, channel, MISSED + 100)]
        assert got[:MISSED] == list(range(MISSED)) and sorted(map(int, map(str, got))) == [
            *range(MISSED + 100)
        ]
    assert reader.statistics().told == {}


async def test_no_time(
    make_layer: MakeLayer, sender: AsyncQueueChannelLayer, away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond `catch_up_seconds` too: each partition with more than a page is told."""
    reader = await make_layer(on_loss=LOSS, recovery={"catch_up_seconds": 1e-9})
    channels = [await reader.new_channel() for _ in range(2)]
    groups = two_groups(channels[0])
    await every(reader.group_add(group, channel) for group, channel in zip(groups, channels, strict=True))
    away.install(monkeypatch)
    await away.leave()
    await every(missed(sender, group, 600) for group in groups)
    away.come_back()
    for group, channel in zip(groups, channels, strict=True):
        while (message := await receive(reader, channel))["type"] != LOSS:
            pass
        assert message == {"type": LOSS, "reason": "too_far", "groups": [group]}
        await sender.group_send(group, large(600))
        assert await receive(reader, channel) == large(600)


async def test_followers_read_the_log(
    make_layer: MakeLayer, sender: AsyncQueueChannelLayer, away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader with a position gets from the log what its process left out, and notices nothing."""
    reader = await make_layer(on_loss=LOSS, recovery=LIMIT)
    group = group_in(1)
    async with reader.subscribe(group) as subscription:
        away.install(monkeypatch)
        await away.leave()
        await missed(sender, group)
        away.come_back()
        async with asyncio.timeout(DEADLINE):
            got: list[object] = []
            async for message in subscription:
                got.append(number(message))
                if got[-1] == MISSED - 1:
                    break
    assert got == list(range(MISSED))
    assert reader.statistics().told == {"too_far": 1}
