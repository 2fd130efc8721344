"""Partitions that move between two nodes while everything is in use: nothing is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis import bus
from channels_asyncq.bus.redis.shared import Shared
from channels_asyncq.testing import EmbeddedServer
from tests.routers import MovingRouter

pytestmark = pytest.mark.server

MOVES = 1000
GROUPS = [f"group-{number}" for number in range(20)]
QUEUES = [f"jobs-{number}" for number in range(6)]
PARTITIONS = 16


class Load:
    """Senders, receivers and workers of three sessions, and the record of what arrived."""

    def __init__(self, layers: list[AsyncQueueChannelLayer], routers: list[MovingRouter]) -> None:
        self.layers = layers
        self.routers = routers
        self.is_over = False
        #: The numbers that arrived, by channel and stream, in the order of their arrival.
        self.arrived: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        #: The last number that was sent, by stream: a sender and a destination.
        self.sent: Counter[str] = Counter()
        self.jobs: Counter[tuple[str, int]] = Counter()
        self.pushed: Counter[str] = Counter()
        self.joins = 0
        self.notices: list[dict[str, Any]] = []
        self._progress = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._receivers: list[asyncio.Task[None]] = []
        self.members: list[tuple[AsyncQueueChannelLayer, str]] = []

    async def start(self) -> None:
        """Open a channel in each session, let it join all groups, and begin to send and to work."""
        for layer in self.layers:
            channel = await layer.new_channel()
            self.members.append((layer, channel))
            await asyncio.gather(*(layer.group_add(group, channel) for group in GROUPS))
        for layer, channel in self.members:
            self._receivers.append(asyncio.create_task(self._receive(layer, channel)))
        for layer in self.layers[:2]:
            self._receivers += [asyncio.create_task(self._work(layer, queue)) for queue in QUEUES]
        for number, layer in enumerate(self.layers):
            self._tasks += [asyncio.create_task(self._send(layer, number, group)) for group in GROUPS]
            self._tasks += [asyncio.create_task(self._push(layer, number, queue)) for queue in QUEUES]
            self._tasks.append(asyncio.create_task(self._send_to_channels(layer, number)))
            self._tasks.append(asyncio.create_task(self._join_and_leave(layer, number)))

    async def _send(self, layer: AsyncQueueChannelLayer, number: int, group: str) -> None:
        stream = f"{number} to {group}"
        while not self.is_over:
            self.sent[stream] += 1
            await layer.group_send(group, {"type": "x", "stream": stream, "number": self.sent[stream]})

    async def _send_to_channels(self, layer: AsyncQueueChannelLayer, number: int) -> None:
        while not self.is_over:
            for _, channel in self.members:
                stream = f"{number} to {channel}"
                self.sent[stream] += 1
                await layer.send(channel, {"type": "x", "stream": stream, "number": self.sent[stream]})

    async def _push(self, layer: AsyncQueueChannelLayer, number: int, queue: str) -> None:
        name = f"{number} to {queue}"
        while not self.is_over:
            self.pushed[name] += 1
            await layer.send_wait(queue, {"type": "x", "from": name, "number": self.pushed[name]})

    async def _join_and_leave(self, layer: AsyncQueueChannelLayer, number: int) -> None:
        """A member that is confirmed gets the next message."""
        channel = await layer.new_channel()
        sender = self.layers[number - 1]
        joins = 0
        while not self.is_over:
            group = f"brief-{number}-{joins % 50}"
            await layer.group_add(group, channel)
            await sender.group_send(group, {"type": "x", "number": joins})
            message = await layer.receive(channel)
            assert message["number"] == joins
            await layer.group_discard(group, channel)
            joins += 1
        self.joins += joins

    async def _receive(self, layer: AsyncQueueChannelLayer, channel: str) -> None:
        while True:
            message = await layer.receive(channel)
            self._progress.set()
            if message["type"] == "lost":
                self.notices.append(message)
            else:
                self.arrived[channel, message["stream"]].append(message["number"])

    async def _work(self, layer: AsyncQueueChannelLayer, queue: str) -> None:
        while True:
            job = await layer.receive(queue)
            self._progress.set()
            self.jobs[job["from"], job["number"]] += 1

    async def stop(self) -> None:
        """Let the senders end, and wait until everything has arrived."""
        self.is_over = True
        await asyncio.gather(*self._tasks)
        # What is missing then, assert_intact() says.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while not self.is_complete:
                    await self.something_arrives()

    async def something_arrives(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    @property
    def expected(self) -> dict[tuple[str, str], int]:
        """How many messages of each stream each channel should get."""
        groups = {
            (channel, stream): count
            for _, channel in self.members
            for stream, count in self.sent.items()
            if stream.partition(" to ")[2] in GROUPS
        }
        direct = {(stream.partition(" to ")[2], stream): count for stream, count in self.sent.items()}
        return groups | {key: count for key, count in direct.items() if key[0] not in GROUPS}

    @property
    def is_complete(self) -> bool:
        return sum(self.jobs.values()) >= sum(self.pushed.values()) and all(
            len(self.arrived[key]) >= count for key, count in self.expected.items()
        )

    async def end(self) -> None:
        for task in (*self._receivers, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._receivers, *self._tasks, return_exceptions=True)
        for layer in self.layers:
            await layer.close()


@pytest.fixture
async def load(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Load]:
    """Three sessions in full use, whose partitions can be moved."""
    routers: list[MovingRouter] = []

    def make(shared: Shared) -> MovingRouter:
        routers.append(MovingRouter(shared))
        return routers[-1]

    monkeypatch.setattr(bus, "router_for", make)
    layers = [
        AsyncQueueChannelLayer(
            hosts=[redis_url], prefix=prefix, capacity=10_000, send_timeout=20, on_loss="lost"
        )
        for _ in range(3)
    ]
    load = Load(layers, routers)
    try:
        await load.start()
        yield load
    finally:
        await load.end()


def assert_intact(load: Load) -> None:
    """Nothing is lost, doubled, out of order or reported as lost."""
    expected = load.expected
    assert {key: load.arrived[key] for key in expected} == {
        key: list(range(1, count + 1)) for key, count in expected.items()
    }
    assert load.jobs == Counter(
        {(name, number): 1 for name, count in load.pushed.items() for number in range(1, count + 1)}
    )
    assert load.notices == []
    for layer in load.layers:
        statistics = layer.statistics()
        assert (statistics.told, statistics.dropped) == ({}, {})
        assert statistics.groups == len(GROUPS)


async def busy(load: Load, messages: int) -> None:
    """Return when so many messages more have arrived."""
    wanted = sum(map(len, load.arrived.values())) + messages
    async with asyncio.timeout(30):
        while sum(map(len, load.arrived.values())) < wanted:
            await load.something_arrives()


def kill(server: EmbeddedServer, chance: random.Random) -> None:
    """Close one of the connections to the server, whichever."""
    clients = [line.split(b" ", 1)[0] for line in server.command("CLIENT", "LIST").splitlines()]
    server.command("CLIENT", "KILL", "ID", chance.choice(clients).partition(b"=")[2])


@pytest.mark.parametrize("kills", [False, True], ids=["all is well", "connections are lost"])
async def test_a_thousand_moves_under_load(load: Load, redis_server: EmbeddedServer, kills: bool) -> None:
    """
    Groups, specific channels, normal channels and joins go on while partitions of all sessions move: nothing is
    lost, twice or out of order, and each job is done once.
    """
    chance = random.Random(1)
    moves = 0
    while moves < MOVES:
        for router in load.routers:
            # One, several at once, and some that return before they have arrived.
            for partition in chance.choices(range(PARTITIONS), k=chance.choice((1, 1, 3))):
                router.move(partition)
                moves += 1
        await busy(load, chance.choice((0, 10, 100)))
        if kills and chance.random() < 0.1:
            kill(redis_server, chance)
    await load.stop()
    assert sum(router.moves_in_flight for router in load.routers) > MOVES / 2
    assert load.joins > 10
    assert_intact(load)


async def test_what_was_made_before_a_move_goes_to_the_new_home(load: Load) -> None:
    """Routes, readers and members that were there before hold no node: all of them use the new one."""
    await busy(load, 100)
    for router in load.routers:
        for partition in list(router.nodes[0].partitions):
            router.move(partition)
    # What was in flight at the old homes is answered when this has arrived.
    await busy(load, 1000)
    wires = [wire for router in load.routers if (wire := router.nodes[0].commands.wire) is not None]
    before = [wire.pipeline.replies for wire in wires]
    await busy(load, 1000)
    # A fence, or the renewal of a lease, may come between.
    assert all(wire.pipeline.replies - replies < 4 for wire, replies in zip(wires, before, strict=True))
    await load.stop()
    assert_intact(load)
