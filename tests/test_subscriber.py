"""Subscriber: what a push meets while partitions are taken in, one after the other, on one connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

import pytest

from channels_asyncq.bus.redis import bus as redis
from channels_asyncq.bus.redis import catching_up, recovery
from channels_asyncq.bus.redis.partition import Partition, Reading
from channels_asyncq.bus.redis.recovery import LogReader
from channels_asyncq.bus.redis.sequences import format_position, parse_position
from channels_asyncq.bus.redis.subscriber import Subscriber
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.exceptions import LayerUnavailable
from channels_asyncq.messages.framing import FORMATS, pack, pack_names
from channels_asyncq.slices import Slice
from tests import resp_server
from tests.buses import PAYLOAD, Owner
from tests.contract import eventually, every, started, steps
from tests.partitions import Home, Recorder, as_node, page_of, shared_for
from tests.resp_server import RespServer
from tests.routers import MovingRouter

SENDER = b"a" * 8
RUN_ID = b"run_id:1"
TOPICS = {0: b"asgi:0:group:a", 1: b"asgi:0:group:b"}
LOGGED = b"%c#" % FORMATS.newest


class Wire:
    """A connection for pushes: it offers them one by one, and none while one is not taken, until `resume()`."""

    is_lost = False

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self.waiting: deque[tuple[bytes, bytes]] = deque()
        self.commands: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def call(self, *command: Any) -> asyncio.Future[Any]:
        self.commands.append(command)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        reply.set_result(None)
        return reply

    def push(self, topic: bytes, data: bytes) -> None:
        self.waiting.append((topic, data))
        if len(self.waiting) == 1:
            self.resume()

    def resume(self) -> None:
        while self.waiting and self._subscriber.on_message(*self.waiting[0]):
            self.waiting.popleft()

    resume_now = resume

    def abort(self, error: Exception) -> None:
        self.error, self.is_lost = error, True

    def topics(self, command: bytes) -> list[bytes]:
        return [topic for name, *topics in self.commands if name == command for topic in topics]


class Logs:
    """The server's logs. A page has what is in the log when it is asked for, and comes when it is let go."""

    def __init__(self) -> None:
        self.entries: dict[int, list[tuple[bytes, list[bytes]]]] = {0: [], 1: []}
        self.released = {0: asyncio.Event(), 1: asyncio.Event()}
        self.singly = {0: False, 1: False}
        self.asked: list[int] = []
        self.error: Exception | None = None
        for number in self.entries:
            self.add(number)

    def let_one_go(self, partition: int) -> None:
        """Let the page come that was asked for, and not the next one."""
        self.singly[partition] = True
        self.released[partition].set()

    def add(self, partition: int, seq: int = 0) -> bytes:
        """Log a message, or the beginning; return the push of it."""
        name = b"1700000000000-%d" % len(self.entries[partition])
        data = pack([(pack_names("g"), b"x")], SENDER, seq, 0) if seq else b""
        fields = [b"t", TOPICS[partition], b"e", data] if seq else [b"begin", b""]
        self.entries[partition].append((name, fields))
        return LOGGED + name + b" " + data

    async def read_log(
        self, part: Partition, start: bytes, count: int, topics: Collection[bytes] = ()
    ) -> list[Any]:
        if self.error is not None:
            raise self.error
        partition = part.number
        found = [
            entry for entry in self.entries[partition] if parse_position(entry[0]) >= parse_position(start)
        ]
        last = self.entries[partition][-1][0]
        self.asked.append(partition)
        await self.released[partition].wait()
        if self.singly[partition]:
            self.released[partition].clear()
            self.singly[partition] = False
        return page_of(found, last, 1700000000000, count, topics)


class Checkpoint:
    has_changed = False


class Lease:
    gap = 0


class Pushes:
    """The supervised connection, which is up."""

    wire: Wire | None = None


class World:
    """A node with two partitions, of one topic each, and a connection for pushes that is up."""

    def __init__(self) -> None:
        self.receiver = Recorder()
        self.options, self.shared = shared_for(self.receiver)
        self.logs = Logs()
        self.home = home = Home()
        node = cast(Any, home)
        node.host = node.number = 0
        node.checkpoint, node.lease, node.pushes = Checkpoint(), Lease(), Pushes()
        node.log = LogReader(self.shared, self.logs)
        node.has_refused = self._has_refused
        self.subscriber = Subscriber(self.shared, as_node(home))
        self.wire = node.pushes.wire = Wire(self.subscriber)
        self.subscriber.topics.wire = cast(WireProtocol, self.wire)
        self.subscriber.run_id = home.subscriber.run_id = RUN_ID
        self.subscriber.topics.subscribe_to_own(self.subscriber.topics.wire)
        self.partitions = [self._partition(number) for number in (0, 1)]

    def _partition(self, number: int) -> Partition:
        partition = self.home.partition(number, self.shared)
        partition.subscriptions.want(TOPICS[number], is_logged=True)
        partition.position = parse_position(self.logs.entries[number][0][0])
        partition.fenced_at = 1
        partition.server = RUN_ID
        partition.leave_connection()
        return partition

    async def _has_refused(self) -> bool:
        return False

    def recovery(self, **values: Any) -> None:
        """Set these keys of `recovery`."""
        assert self.options.recovery is not None
        self.options.recovery = replace(self.options.recovery, **values)

    async def take_in(self, *numbers: int) -> None:
        """Take these in, and return when their logs are being read."""
        for number in numbers:
            self.subscriber.take_in(self.partitions[number])
        await eventually(lambda: set(numbers) <= set(self.logs.asked), "the readings")

    async def is_live(self, number: int) -> None:
        self.logs.released[number].set()
        await eventually(lambda: self.partitions[number].is_live, f"the end of the reading of {number}")

    def arrived(self, number: int) -> list[int]:
        return [seq for topic, seq in self.receiver.delivered if topic == TOPICS[number]]


@pytest.fixture
async def world() -> World:
    return World()


class TestTheTable:
    """A logged push in each state of its partition."""

    async def test_away(self, world: World) -> None:
        """It is discarded: it will be read."""
        world.wire.push(TOPICS[0], world.logs.add(0, 1))
        assert world.arrived(0) == [] and not world.wire.waiting

    async def test_subscribing(self, world: World) -> None:
        """It is discarded, and read from the log."""
        world.partitions[0].begin_reading()
        world.wire.push(TOPICS[0], world.logs.add(0, 1))
        assert world.arrived(0) == [] and not world.wire.waiting
        await world.take_in(0)
        await world.is_live(0)
        assert world.arrived(0) == [1]

    async def test_subscribing_without_a_position(self, world: World) -> None:
        """There is nothing to be read: it is delivered."""
        world.partitions[0].position = None
        world.partitions[0].begin_reading()
        world.wire.push(TOPICS[0], world.logs.add(0, 1))
        assert world.arrived(0) == [1] and world.partitions[0].position is None

    async def test_catching_up(self, world: World) -> None:
        """It waits in the connection, and comes behind what is read."""
        world.logs.add(0, 1)
        await world.take_in(0)
        world.wire.push(TOPICS[0], world.logs.add(0, 2))
        assert world.partitions[0].reading is Reading.CATCHING_UP and len(world.wire.waiting) == 1
        await world.is_live(0)
        await eventually(lambda: not world.wire.waiting, "the push")
        assert world.arrived(0) == [1, 2]

    async def test_live(self, world: World) -> None:
        """It is delivered and moves the position, unless it was read already."""
        missed = world.logs.add(0, 1)
        await world.take_in(0)
        world.wire.push(TOPICS[0], missed)
        await world.is_live(0)
        world.wire.push(TOPICS[0], world.logs.add(0, 2))
        assert world.arrived(0) == [1, 2]
        assert world.partitions[0].position == parse_position(b"1700000000000-2")
        assert format_position(world.partitions[0].read_until) == b"1700000000000-1"

    async def test_moved_away(self, world: World) -> None:
        """It is not delivered, whatever the next home has made of the partition."""
        partition = world.partitions[0]
        await world.take_in(0)
        await world.is_live(0)
        partition.move(as_node(Home()))
        partition.enter(Reading.LIVE)
        world.wire.push(TOPICS[0], world.logs.add(0, 1))
        assert world.arrived(0) == [] and not world.wire.waiting


class TestTwoAtOnce:
    """Two partitions that catch up on one connection: the pause is counted."""

    @pytest.mark.parametrize("first", [0, 1])
    async def test_push_between_the_ends_of_two_readings(self, world: World, first: int) -> None:
        """
        A push of the second, sent after its page was read, arrives when the reading of the first has ended. It
        waits for the second: it neither overtakes what is in the page, nor is it lost.
        """
        second = 1 - first
        for number in (first, second):
            world.logs.add(number, 1)
        await world.take_in(first, second)
        await world.is_live(first)
        assert world.partitions[second].reading is Reading.CATCHING_UP
        world.wire.push(TOPICS[second], world.logs.add(second, 2))
        world.wire.push(TOPICS[first], world.logs.add(first, 2))
        assert world.arrived(second) == [] and len(world.wire.waiting) == 2
        await world.is_live(second)
        await eventually(lambda: not world.wire.waiting, "the pushes")
        assert (world.arrived(first), world.arrived(second)) == ([1, 2], [1, 2])
        assert world.receiver.losses == []

    async def test_push_that_waited_since_the_first_began(self, world: World) -> None:
        """It waits until both have ended."""
        await world.take_in(0)
        world.wire.push(TOPICS[0], world.logs.add(0, 1))
        world.subscriber.take_in(world.partitions[1])
        await eventually(lambda: 1 in world.logs.asked, "the second reading")
        await world.is_live(0)
        assert world.arrived(0) == []
        await world.is_live(1)
        await eventually(lambda: world.arrived(0) == [1], "the push")

    async def test_one_moves_away_meanwhile(self, world: World) -> None:
        """The count goes down with its reading, and the other's pushes pass when that ends."""
        await world.take_in(0, 1)
        world.partitions[0].move(as_node(Home()))
        world.wire.push(TOPICS[1], world.logs.add(1, 1))
        await world.is_live(1)
        assert world.arrived(1) == []
        world.logs.released[0].set()
        await eventually(lambda: world.arrived(1) == [1], "the push")
        assert world.partitions[0].reading is Reading.AWAY

    async def test_resume_while_it_is_paused(self, world: World) -> None:
        """A channel that has room again lets a reading go on, and no push past it."""
        world.logs.add(0, 1)
        await world.take_in(0)
        world.receiver.is_full = True
        world.logs.released[0].set()
        await eventually(lambda: world.receiver.offers, "the offer")
        world.wire.push(TOPICS[0], world.logs.add(0, 2))
        world.receiver.is_full = False
        world.subscriber.resume()
        await eventually(lambda: world.arrived(0) == [1, 2], "both")


class TestLongLogs:
    """Partitions with more than a page to read: the connection is paused for their last page only."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pages of three entries, read without a wait before."""
        monkeypatch.setattr(recovery, "_PAGE", 3)
        monkeypatch.setattr(catching_up, "LONGEST_WAIT", 0.0)

    async def test_the_others_go_on(self, world: World) -> None:
        """
        While it is read, pushes of the other partition arrive, and its own are in its log: each comes once, in
        order, also one that was pushed behind the page that ended the log.
        """
        for number in range(1, 4):
            world.logs.add(0, number)
        readings = [partition.begin_reading() for partition in world.partitions]
        world.logs.released[1].set()
        task = asyncio.create_task(
            world.subscriber._catching_up.catch_up(cast(WireProtocol, world.wire), readings)
        )
        await eventually(lambda: world.logs.asked == [0], "the first page")
        world.logs.let_one_go(0)
        await eventually(lambda: world.partitions[1].is_live, "the short one")
        await eventually(lambda: world.logs.asked == [0, 1, 0], "the second page")
        world.wire.push(TOPICS[1], world.logs.add(1, 1))
        world.wire.push(TOPICS[0], world.logs.add(0, 4))
        assert (world.arrived(0), world.arrived(1), list(world.wire.waiting)) == ([1, 2], [1], [])
        world.logs.let_one_go(0)
        await eventually(lambda: world.logs.asked == [0, 1, 0, 0], "the end")
        world.wire.push(TOPICS[0], world.logs.add(0, 5))
        world.wire.push(TOPICS[1], world.logs.add(1, 2))
        assert (world.arrived(0), world.arrived(1)) == ([1, 2, 3], [1]) and len(world.wire.waiting) == 2
        await world.is_live(0)
        await task
        await eventually(lambda: not world.wire.waiting, "the pushes")
        assert (world.arrived(0), world.arrived(1)) == ([1, 2, 3, 4, 5], [1, 2])
        assert world.receiver.losses == []

    async def test_wait(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only long logs are waited for, and for a random time up to the longest."""
        waits: list[tuple[float, float]] = []

        class Jitter:
            def uniform(self, least: float, most: float) -> float:
                waits.append((least, most))
                return 0.0

        monkeypatch.setattr(catching_up, "_jitter", Jitter())
        monkeypatch.setattr(catching_up, "LONGEST_WAIT", 0.25)
        for number in range(1, 5):
            world.logs.add(0, number)
        await world.take_in(1)
        await world.is_live(1)
        assert waits == []
        await world.take_in(0)
        await world.is_live(0)
        assert waits == [(0, 0.25)]

    async def test_full_channels(self, world: World) -> None:
        """When there is room again, both go on: the reading, and a push of the other partition."""
        for number in range(1, 9):
            world.logs.add(0, number)
        await world.take_in(1)
        await world.is_live(1)
        world.logs.released[0].set()
        world.receiver.places = 4
        world.subscriber.take_in(world.partitions[0])
        await eventually(lambda: world.receiver.offers == 5, "the full channel")
        world.wire.push(TOPICS[1], world.logs.add(1, 1))
        assert world.arrived(0) == [1, 2, 3, 4] and len(world.wire.waiting) == 1
        world.receiver.is_full, world.receiver.places = False, None
        world.subscriber.resume()
        await world.is_live(0)
        assert (world.arrived(0), world.arrived(1)) == (list(range(1, 9)), [1])

    async def test_too_far(self, world: World) -> None:
        """
        It is told before anything newer. What is pushed behind the new end of the log arrives.
        """
        world.recovery(catch_up_messages=1)
        for number in range(1, 9):
            world.logs.add(0, number)
        world.subscriber.take_in(world.partitions[0])
        await eventually(lambda: world.logs.asked == [0], "the first page")
        world.logs.let_one_go(0)
        await eventually(lambda: world.logs.asked == [0, 0], "the end")
        world.wire.push(TOPICS[0], world.logs.add(0, 9))
        world.wire.push(TOPICS[0], world.logs.add(0, 10))
        world.receiver.delivered.clear()
        await world.is_live(0)
        assert world.receiver.losses == [("too_far", {TOPICS[0]})]
        await eventually(lambda: not world.wire.waiting, "the pushes")
        assert world.arrived(0) == [9, 10]

    async def test_refused_and_discarded(self, world: World) -> None:
        """A push that is in no log is told, if it was discarded while its partition is read."""
        for number in range(1, 5):
            world.logs.add(0, number)
        world.subscriber.take_in(world.partitions[0])
        await eventually(lambda: world.logs.asked == [0], "the first page")
        world.logs.let_one_go(0)
        await eventually(lambda: world.logs.asked == [0, 0], "the second page")
        world.wire.push(TOPICS[0], LOGGED + b" " + pack([(pack_names("g"), b"x")], SENDER, 9, 0))
        await world.is_live(0)
        assert world.receiver.losses == [("not_logged", {TOPICS[0]})]

    async def test_the_connection_is_lost(self, world: World) -> None:
        """The reading ends, and the partition is not live."""
        for number in range(1, 9):
            world.logs.add(0, number)
        readings = [world.partitions[0].begin_reading()]
        task = asyncio.create_task(
            world.subscriber._catching_up.catch_up(cast(WireProtocol, world.wire), readings)
        )
        await eventually(lambda: world.logs.asked == [0], "the first page")
        world.wire.is_lost = True
        world.logs.released[0].set()
        with pytest.raises(ConnectionResetError):
            await task
        assert not world.partitions[0].is_live


class TestTakingIn:
    """What is sent to the server for a partition that comes or goes."""

    async def test_there_and_back(self, world: World) -> None:
        """UNSUBSCRIBE is not sent after the SUBSCRIBE of the way back."""
        await world.take_in(0)
        await world.is_live(0)
        partition, other = world.partitions[0], Home()
        cast(Any, world.home).subscriber = world.subscriber
        partition.move(as_node(other))
        partition.move(as_node(world.home))
        await world.is_live(0)
        await eventually(lambda: not world.subscriber._tasks, "the end of what is under way")
        names = [name for name, *topics in world.wire.commands if topics == [TOPICS[0]]]
        assert names[-1] == b"SUBSCRIBE"
        world.wire.push(TOPICS[0], world.logs.add(0, 1))
        assert world.arrived(0) == [1]

    async def test_topic_that_a_caller_asks_for_first(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The log is read when the server has confirmed it: what is published between is in neither otherwise."""
        confirmation: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(world.wire, "call", lambda *command: confirmation)
        world.subscriber.take_in(world.partitions[0])
        world.subscriber.topics.subscribe(world.partitions[0], TOPICS[0], is_logged=True)
        await steps(10)
        assert world.logs.asked == []
        confirmation.set_result(None)
        await eventually(lambda: world.logs.asked == [0], "the reading")
        await world.is_live(0)

    async def test_topics_are_confirmed_again(self, world: World) -> None:
        """Whoever waited for a topic is told when its partition is live, and so is the session."""
        entry = world.partitions[0].subscriptions.get(TOPICS[0])
        assert entry is not None
        waiter = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        await world.take_in(0)
        assert not waiter.done()
        await world.is_live(0)
        assert waiter.done() and TOPICS[0] in world.receiver.subscribed

    @pytest.mark.parametrize(
        "error",
        [ConnectionResetError("cable"), LayerUnavailable("redis://x", "down"), ValueError("nonsense")],
        ids=["lost", "unavailable", "nonsense"],
    )
    async def test_a_reading_that_fails(self, world: World, error: Exception) -> None:
        """A new connection takes in all partitions: this one is given up."""

        world.logs.error = error
        world.subscriber.take_in(world.partitions[0])
        await eventually(lambda: world.wire.is_lost, "the end of the connection")
        assert world.wire.error is error
        assert not world.partitions[0].is_live and world.subscriber._pauses == 0


class TestOnAServer:
    """Two nodes at one server."""

    @pytest.mark.server
    async def test_moved_before_its_new_home_was_ever_up(
        self, server: RespServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A home that has had no fence reads from its position: nothing was lost, and nobody is told."""
        monkeypatch.setattr(redis, "router_for", MovingRouter)
        owner = Owner(server.url, prefix, partitions=2, recovery={"seconds": 10}, send_timeout=20)
        first, second = owner.bus.nodes
        monkeypatch.setattr(owner.bus, "start", first.start)  # which a node calls when it comes up
        try:
            first.start()
            await eventually(
                lambda: all(each.is_live for each in first.partitions.values()), "the first home"
            )
            groups = (f"room{number}" for number in range(100))
            group = next(
                each for each in groups if owner.topics.group(each).topic.partition in first.partitions
            )
            owner.bus.pubsub.subscribe(owner.topics.group(group).topic)
            await owner.bus.pubsub.confirmed(owner.topics.group(group).topic)
            [partition] = first.partitions.values()
            partition.move(second)
            await eventually(lambda: partition.is_live, "the second home")
            await owner.group_send(group, PAYLOAD)
            await eventually(lambda: owner.arrived, "a message")
            assert owner.losses == []
        finally:
            await owner.bus.close()

    @pytest.mark.server
    async def test_moved_before_the_first_fence(
        self, server: RespServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A partition that gets its position from a fence while it is taken in has lost nothing."""
        monkeypatch.setattr(redis, "router_for", MovingRouter)
        owner = Owner(server.url, prefix, partitions=2, recovery={"seconds": 10}, send_timeout=20)
        first, second = owner.bus.nodes
        monkeypatch.setattr(owner.bus, "start", second.start)
        released = asyncio.Event()
        try:
            second.start()
            await eventually(lambda: second.is_up, "the second home")
            [partition] = first.partitions.values()
            groups = (owner.topics.group(f"room{number}").topic for number in range(100))
            topic = next(topic for topic in groups if topic.partition == partition.number)
            owner.bus.pubsub.subscribe(topic)
            monkeypatch.setattr(Slice, "rest", lambda turn: released.wait())
            partition.move(second)
            assert (await second.health(10)).ok and partition.position is not None
            released.set()
            await eventually(lambda: partition.is_live, "the end of the move")
            assert owner.losses == []
        finally:
            released.set()
            await owner.bus.close()

    @pytest.mark.server
    async def test_joined_while_it_moves(
        self, server: RespServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who waited for the first connection of the last home asks for the topic at the next one."""
        connected, released = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(redis, "router_for", MovingRouter)
        owner = Owner(server.url, prefix, partitions=2, recovery={"seconds": 10}, send_timeout=20)
        first, second = owner.bus.nodes
        monkeypatch.setattr(owner.bus, "start", second.start)
        try:
            second.start()
            await eventually(lambda: second.is_up, "the second home")
            server.script("ROLE", resp_server.after(connected))
            first.start()
            await eventually(lambda: len(server.received("SUBSCRIBE")) == 4, "the connection for pushes")
            [partition] = first.partitions.values()
            groups = (f"room{number}" for number in range(100))
            here = [each for each in groups if owner.topics.group(each).topic.partition == partition.number]
            earlier, topic = (owner.topics.group(each).topic for each in here[:2])
            for each in (earlier, topic):
                owner.bus.pubsub.subscribe(each)
            waiting = await started(owner.bus.pubsub.confirmed(topic))
            monkeypatch.setattr(Slice, "rest", lambda turn: released.wait())
            partition.move(second)
            connected.set()
            await eventually(lambda: first.commands.was_up, "the first home")
            await steps(10)
            released.set()
            await every([waiting])
            await owner.group_send(here[1], PAYLOAD)
            await eventually(lambda: owner.arrived, "a message")
        finally:
            released.set()
            await owner.bus.close()
