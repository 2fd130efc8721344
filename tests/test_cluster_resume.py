"""Positions and resumes on a Redis Cluster, while slots move and primaries change."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer, MessagesLost, Replay
from channels_asyncq.bus.redis import log_reading
from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.bus.redis.cluster import logs
from channels_asyncq.bus.redis.cluster.logs import ClusterLogScripts
from channels_asyncq.bus.redis.cluster.node import ClusterNode
from channels_asyncq.bus.redis.partition import Partition
from channels_asyncq.messages.positions import Position
from tests import contract
from tests.cluster_moves import Step
from tests.cluster_nodes import Node
from tests.cluster_sessions import are_held_or_done, slot_of_group
from tests.clusters import Cluster
from tests.contract import DEADLINE, MakeLayer, eventually, every, note, receive, receive_many, started
from tests.refusals import refusing
from tests.resumes import Crowd
from tests.sessions import session_of
from tests.test_resume_crowd import run_with

pytestmark = pytest.mark.server

STEPS: list[Step] = ["importing", "migrating", "batch", "keys", "target", "source", "others"]


@pytest.fixture
async def make_layer(redis_cluster: Cluster, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[redis_cluster.url], prefix=prefix, send_timeout=15) as make_layer:
        yield make_layer


class Place:
    """The slot of a group, and nodes to which it can move."""

    def __init__(self, cluster: Cluster, layer: AsyncQueueChannelLayer, group: str = "room") -> None:
        self.cluster = cluster
        self.group = group
        topics = bus_of(layer).shared.topics
        self.number = session_of(layer).resumer.topic(group).partition
        self.slot = topics.slot(self.number)

    @property
    def home(self) -> Node:
        return self.cluster.node_of(self.slot)

    @property
    def other(self) -> Node:
        home = self.home
        return next(node for node in self.cluster.primaries() if node is not home)

    def move(self, kind: str = "classic") -> None:
        if kind == "classic":
            self.cluster.migrate_classic(self.slot, self.other)
        else:
            self.cluster.migrate_atomic(self.slot, self.other)

    def fail_over(self) -> None:
        """A planned failover."""
        replica = self.cluster.replicas_of(self.home)[0]
        self.cluster.failover(replica)
        self.cluster.wait_until_ok()

    def steps(self) -> Iterator[Step]:
        return self.cluster.classic_steps(self.slot, self.other, batch=1)


async def place_of(cluster: Cluster, layer: AsyncQueueChannelLayer, group: str = "room") -> Place:
    """The place of a group, for a layer that may not have been used before."""
    await layer.new_channel()
    return Place(cluster, layer, group)


def bus_of(layer: AsyncQueueChannelLayer) -> RedisBus:
    bus = session_of(layer)._bus
    assert isinstance(bus, RedisBus)
    return bus


async def resumed(layer: AsyncQueueChannelLayer, since: str, group: str = "room") -> tuple[str, Replay]:
    channel = await layer.new_channel()
    async with asyncio.timeout(30):
        return channel, await layer.group_resume(group, channel, since=since)


async def resumed_with(layer: AsyncQueueChannelLayer, since: str, count: int) -> None:
    """A channel that comes back gets so many messages, in order: what it has missed, and what is under way."""
    await gets(layer, *await resumed(layer, since), count)


async def gets(layer: AsyncQueueChannelLayer, channel: str, replay: Replay, count: int) -> None:
    """A channel that has come back gets so many messages, in order."""
    assert (replay.recovered, replay.reason) == (True, "")
    messages = replay.messages + await receive_many(layer, channel, count - len(replay.messages))
    assert messages == [note(n) for n in range(count)]
    await layer.close_channel(channel)


async def member(layer: AsyncQueueChannelLayer) -> str:
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    return channel


# Reads


async def test_one_command_for_each_log(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty calls of a moment share one write to each node, for positions and for resumes."""
    asked: list[list[Partition]] = []
    ask_all = ClusterLogScripts._ask_all

    async def spy(self: ClusterLogScripts, questions: Any) -> Any:
        asked.append(list(questions))
        return await ask_all(self, questions)

    monkeypatch.setattr(ClusterLogScripts, "_ask_all", spy)
    layer = await make_layer()
    await layer.new_channel()
    groups = [f"group-{n}" for n in range(40)]
    partitions = session_of(layer).resumer.partitions(groups)
    await eventually(lambda: len({each.home for each in bus_of(layer).partitions}) == 3)
    positions = await every(layer.position(group) for group in groups)
    assert len(asked) == 3
    assert sorted(each.number for question in asked for each in question) == sorted(partitions)
    asked.clear()
    await every(resumed(layer, position, group) for group, position in zip(groups, positions, strict=True))
    # Not one by one: a partition that gets its first topic is read a moment later than others.
    assert len(asked) <= 3 * 4


async def test_a_message_between_the_last_page_and_the_marker(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in no page, and arrives before the marker: it is not missed, and does not come twice."""
    layer, sender = await make_layer(), await make_layer()
    witness = await member(layer)
    position = await sender.position("room")
    await sender.group_send("room", note(0))
    sent = 1
    publish = ClusterLogScripts.publish

    async def publish_later(self: ClusterLogScripts, marker: bytes) -> None:
        nonlocal sent
        await sender.group_send("room", note(sent))
        sent += 1
        await publish(self, marker)

    monkeypatch.setattr(ClusterLogScripts, "publish", publish_later)
    channel, replay = await resumed(layer, position)
    assert replay.messages == [note(0), note(1)]
    _, again = await resumed(layer, position)
    assert again.messages == [note(0), note(1)] and sent == 2
    await sender.group_send("room", note(2))
    assert await receive_many(layer, channel, 1) == [note(2)]
    assert await receive_many(layer, witness, 3) == [note(0), note(1), note(2)]


async def test_a_marker_without_subscribers(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read is begun again at once: the topic of the fences is being renewed."""
    layer = await make_layer()
    await member(layer)
    position = await layer.position("room")
    await layer.group_send("room", note(0))
    lost: list[bytes] = []
    publish = ClusterLogScripts.publish

    async def lose(self: ClusterLogScripts, marker: bytes) -> None:
        topics = self._node.subscriber.topics
        topic = topics.fence_topic
        if not lost:
            lost.append(marker)
            topics.fence_topic = topic + b":nobody"
        try:
            await publish(self, marker)
        finally:
            topics.fence_topic = topic

    monkeypatch.setattr(ClusterLogScripts, "publish", lose)
    monkeypatch.setattr(log_reading, "_LONGEST_MARKER", 60.0)
    await resumed_with(layer, position, 1)
    assert lost


# Planned changes: no reset


@pytest.mark.parametrize("kind", ["classic", "atomic", "failover"])
async def test_coming_back_after_a_planned_change(
    make_layer: MakeLayer, redis_cluster: Cluster, kind: str
) -> None:
    """Nothing is missed: in a session that was there, in one that was not subscribed, and in a new one."""
    if kind == "atomic" and not redis_cluster.has_atomic:
        pytest.skip("the server does not move slots by itself")
    layer, sender = await make_layer(), await make_layer()
    await member(layer)
    position = await layer.position("room")
    await sender.group_send("room", note(0))
    place = await place_of(redis_cluster, layer)
    await asyncio.to_thread(place.fail_over if kind == "failover" else lambda: place.move(kind))
    await sender.group_send("room", note(1))
    await resumed_with(layer, position, 2)
    await resumed_with(sender, position, 2)
    later = await (await make_layer()).position("room")
    assert {at.epoch for at in Position.parse(later).places.values()} == {
        at.epoch for at in Position.parse(position).places.values()
    }
    await resumed_with(await make_layer(), position, 2)


async def test_moving_there_and_back(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """A position holds over any number of moves."""
    layer = await make_layer()
    await member(layer)
    position = await layer.position("room")
    place = await place_of(redis_cluster, layer)
    for n in range(4):
        await layer.group_send("room", note(n))
        await asyncio.to_thread(place.move if n % 2 else place.fail_over)
    await resumed_with(layer, position, 4)


async def test_failover_of_a_node_that_is_being_set_up(
    make_layer: MakeLayer, redis_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot moves to a node whose primary is replaced, as planned, before the slot was read there."""
    layer = await make_layer()
    await member(layer)
    position = await layer.position("room")
    place = await place_of(redis_cluster, layer)
    await layer.group_send("room", note(0))
    is_there, may_go_on = asyncio.Event(), asyncio.Event()
    changed_among = ClusterNode.changed_among

    async def wait_and_ask(self: ClusterNode, partitions: Any) -> list[Partition]:
        if not is_there.is_set() and place.number in {each.number for each in partitions}:
            is_there.set()
            await may_go_on.wait()
        return await changed_among(self, partitions)

    monkeypatch.setattr(ClusterNode, "changed_among", wait_and_ask)
    await asyncio.to_thread(place.move)
    await layer.group_send("room", note(1))
    async with asyncio.timeout(DEADLINE):
        await is_there.wait()
    await asyncio.to_thread(place.fail_over)
    may_go_on.set()
    await resumed_with(layer, position, 2)


@pytest.mark.parametrize("step", STEPS)
async def test_coming_back_at_each_step_of_a_move(
    make_layer: MakeLayer, redis_cluster: Cluster, step: Step
) -> None:
    """While the slot is open the resume waits, or gets all; afterwards nothing is missing."""
    layer, sender = await make_layer(), await make_layer()
    channel = await member(layer)
    position = await layer.position("room")
    for n in range(3):
        await sender.group_send("room", note(n))
    await receive_many(layer, channel, 3)
    steps = Place(redis_cluster, layer).steps()
    while await asyncio.to_thread(next, steps) != step:
        pass
    reads = [await started(resumed(each, position)) for each in (layer, sender)]
    asking = await started(sender.position("room"))
    sending = await started(sender.group_send("room", note(3)))
    # The slot stays open for longer than a read takes.
    slot = slot_of_group(layer, "room")
    await are_held_or_done(layer, slot, reads[:1])
    await are_held_or_done(sender, slot, [*reads[1:], asking, sending])
    await asyncio.to_thread(list, steps)
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(asking, sending)
    for each, read in zip((layer, sender), reads, strict=True):
        await gets(each, *await read, 4)
    await resumed_with(await make_layer(), position, 4)


@pytest.mark.parametrize("kind", ["classic", "atomic", "failover"])
async def test_a_change_between_two_pages(
    make_layer: MakeLayer, redis_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The read is given up, and begun again where the partition is."""
    if kind == "atomic" and not redis_cluster.has_atomic:
        pytest.skip("the server does not move slots by itself")
    layer, sender = await make_layer(), await make_layer()
    await member(sender)
    position = await layer.position("room")
    for n in range(30):
        await sender.group_send("room", note(n))
    place = await place_of(redis_cluster, layer)
    pages = 0
    read = ClusterLogScripts.pages

    async def pages_with_change(self: ClusterLogScripts, *arguments: Any) -> Any:
        nonlocal pages
        pages += 1
        if pages == 2:
            await asyncio.to_thread(place.fail_over if kind == "failover" else lambda: place.move(kind))
        return await read(self, *arguments)

    monkeypatch.setattr(log_reading, "_PAGE", 10)
    monkeypatch.setattr(ClusterLogScripts, "pages", pages_with_change)
    await resumed_with(layer, position, 30)
    assert pages > 3


async def test_a_slot_that_is_open_delays_no_other(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """Groups of other slots of the node come back, and have positions, while it is open."""
    layer, sender = await make_layer(), await make_layer()
    await member(sender)
    place = await place_of(redis_cluster, layer)
    home = place.home
    places = [Place(redis_cluster, layer, f"room-{n}") for n in range(60)]
    other = next(each.group for each in places if each.slot != place.slot and each.home is home)
    position = await layer.position("room", other)
    await sender.group_send(other, note(0))
    await sender.group_send("room", note(0))
    steps = place.steps()
    while await asyncio.to_thread(next, steps) != "keys":
        pass
    waiting = await started(resumed_with(layer, position, 1))
    _, replay = await resumed(layer, position, other)
    assert replay.messages == [note(0)]
    assert await layer.position(other)
    assert not waiting.done()
    await asyncio.to_thread(list, steps)
    await waiting


@pytest.mark.parametrize("kind", ["classic", "atomic", "failover"])
async def test_subscribe_goes_on(make_layer: MakeLayer, redis_cluster: Cluster, kind: str) -> None:
    """Each message comes once and in order, and its position can be come back to, while the home changes."""
    if kind == "atomic" and not redis_cluster.has_atomic:
        pytest.skip("the server does not move slots by itself")
    layer, sender = await make_layer(), await make_layer()
    place = await place_of(redis_cluster, layer)
    position = await layer.position("room")
    sent = 0

    async def send(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            await sender.group_send("room", note(sent))
            sent += 1

    change = place.fail_over if kind == "failover" else lambda: place.move(kind)
    async with layer.subscribe("room", since=position) as subscription:
        for _ in range(2):
            await asyncio.gather(asyncio.to_thread(change), send(100))
            await send(10)
        got: list[dict[str, Any]] = []
        positions: list[str] = []
        async with asyncio.timeout(DEADLINE):
            while len(got) < sent:
                got.append(await anext(subscription))
                positions.append(subscription.position)
    assert got == [note(n) for n in range(sent)]
    half = sent // 2
    _, replay = await resumed(sender, positions[half - 1])
    assert replay.recovered and replay.messages == got[half:]


# What may have lost messages


async def test_after_a_kill(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """The positions of before are refused by every session, and those of after are good."""
    layer, sender = await make_layer(), await make_layer()
    await member(layer)
    position = await layer.position("room")
    await sender.group_send("room", note(0))
    place = await place_of(redis_cluster, layer)
    home = place.home
    replica = redis_cluster.replicas_of(home)[0]
    await asyncio.to_thread(home.kill)
    await asyncio.to_thread(redis_cluster.wait_for_promotion, replica)
    await sender.group_send("room", note(1))
    for each in (layer, sender, await make_layer()):
        _, replay = await resumed(each, position)
        assert (replay.recovered, replay.reason, replay.messages) == (False, "server_changed", [])
    await sender.group_send("room", note(2))
    channel, again = await resumed(layer, replay.position)
    assert again.recovered
    # Its push may arrive after the answer to its sender: then it is not missed, and comes to the channel.
    assert again.messages == [note(2)] or await receive(layer, channel) == note(2)


async def test_a_tail_that_is_lost(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """A position behind the end of the new log is refused, and subscribe() says that messages are lost."""
    layer, sender = await make_layer(), await make_layer()
    place = await place_of(redis_cluster, layer)
    home = place.home
    replica = redis_cluster.replicas_of(home)[0]
    async with layer.subscribe("room") as subscription:
        await sender.group_send("room", note(0))
        assert await anext(subscription) == note(0)
        await asyncio.to_thread(replica.freeze)
        home.command("CLIENT", "KILL", "TYPE", "replica")
        await sender.group_send("room", note(1))
        assert await anext(subscription) == note(1)
        position = subscription.position
        await asyncio.to_thread(home.kill)
        await asyncio.to_thread(replica.thaw)
        await asyncio.to_thread(redis_cluster.wait_for_promotion, replica)
        await sender.group_send("room", note(2))
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(MessagesLost):
                while True:
                    assert (await anext(subscription))["n"] == 2
    _, replay = await resumed(sender, position)
    assert (replay.recovered, replay.reason) == (False, "server_changed")


async def test_a_move_that_nobody_has_seen(
    make_layer: MakeLayer, redis_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was not there cannot know whether something was lost: it begins another epoch."""
    monkeypatch.setattr(logs, "_PATIENCE", 0.3)
    layer = await make_layer()
    position = await layer.position("room")
    place = await place_of(redis_cluster, layer)
    await layer.close()
    await asyncio.to_thread(place.move)
    _, replay = await resumed(await make_layer(), position)
    assert (replay.recovered, replay.reason) == (False, "server_changed")


@pytest.mark.parametrize("at", ["the last home", "the next home"])
async def test_a_home_that_refused_to_write(make_layer: MakeLayer, redis_cluster: Cluster, at: str) -> None:
    """Messages that no log has refuse a position, also if the slot moves before anybody asks."""
    layer, sender = await make_layer(), await make_layer()
    await member(layer)
    position = await layer.position("room")
    place = await place_of(redis_cluster, layer)
    home, other = place.home, place.other
    if at == "the last home":
        with refusing(home, "OOM"):
            await sender.group_send("room", note(0))
        await asyncio.to_thread(redis_cluster.migrate_classic, place.slot, other)
    else:
        adopt = ClusterLogScripts.adopt
        with pytest.MonkeyPatch.context() as patch:
            # Before the record is brought up to date.
            patch.setattr(ClusterLogScripts, "adopt", lambda self, partitions: None)
            await asyncio.to_thread(redis_cluster.migrate_classic, place.slot, other)
            await eventually(lambda: bus_of(layer).partitions[place.number].is_live)
            with refusing(other, "OOM"):
                await sender.group_send("room", note(0))
        assert ClusterLogScripts.adopt is adopt
    _, replay = await resumed(layer, position)
    assert (replay.recovered, replay.reason) == (False, "server_changed")


# A crowd


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", ["classic", "all"])
async def test_a_crowd_while_slots_move(
    redis_cluster: Cluster, prefix: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Each message once, in order, and no reset."""
    made = [
        AsyncQueueChannelLayer(
            hosts=[redis_cluster.url], prefix=prefix, capacity=200, send_timeout=15, partitions=16
        )
        for _ in range(3)
    ]
    kinds = ["classic", "atomic", "failover"] if kind == "all" and redis_cluster.has_atomic else ["classic"]
    crowd = Crowd(made, seed=4)
    try:
        await crowd.gather(readers=30, senders=4, groups=12)
        groups = [f"group-{n}" for n in range(12)]
        places = [await place_of(redis_cluster, made[0], group) for group in groups]
        changes: Counter[str] = Counter()
        is_read = asyncio.Event()

        async def stay() -> None:
            # A partition that no session reads while it moves refuses the positions of before.
            async with made[0].subscribe(*groups) as subscription:
                is_read.set()
                async for _ in subscription:
                    pass

        staying = asyncio.create_task(stay())
        await is_read.wait()

        async def move() -> None:
            await asyncio.sleep(crowd.chance.random() * 0.3)
            chosen = crowd.chance.choice(kinds)
            place = crowd.chance.choice(places)
            changes[chosen] += 1
            await asyncio.to_thread(place.fail_over if chosen == "failover" else lambda: place.move(chosen))

        await run_with(crowd, move, 20.0, lambda: changes.total() > 10)
        assert (crowd.resets(), changes.total() > 10) == (Counter(), True)
        assert crowd.wrong() == []
        assert not staying.done(), staying
        # A move is no fault.
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
        staying.cancel()
        await asyncio.wait([staying])
    finally:
        for layer in made:
            await layer.close()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_crowd_while_primaries_are_killed(redis_cluster: Cluster, prefix: str) -> None:
    """Readers miss messages with a reset only, and get none twice and none out of order."""
    made = [
        AsyncQueueChannelLayer(
            hosts=[redis_cluster.url], prefix=prefix, capacity=2000, send_timeout=20, partitions=16
        )
        for _ in range(3)
    ]
    crowd = Crowd(made, seed=5, pause=0.1)
    try:
        await crowd.gather(readers=30, senders=4, groups=12)
        kills = 0

        def kill() -> None:
            nonlocal kills
            primary = crowd.chance.choice(redis_cluster.primaries())
            replica = redis_cluster.replicas_of(primary)[0]
            primary.kill()
            redis_cluster.wait_for_promotion(replica)
            primary.restart()
            redis_cluster.wait_until_ok()
            kills += 1

        async def trouble() -> None:
            goal = crowd.messages + 100
            await eventually(lambda: crowd.is_over or crowd.messages >= goal, "messages between two kills")
            if not crowd.is_over:
                await asyncio.to_thread(kill)

        await run_with(crowd, trouble, 20.0, lambda: kills > 1)
        for reader in crowd.readers:
            for stream, read in reader.read.items():
                assert read == sorted(set(read)), stream
            if reader.wrong(crowd.senders):
                assert reader.resets, reader.wrong(crowd.senders)
        assert kills > 1
        assert set(crowd.resets()) <= {"server_changed", "trimmed"}
    finally:
        for layer in made:
            await layer.close()
