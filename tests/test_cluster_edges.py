"""Events that meet the nodes and partitions of a real cluster in the middle of something else."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError

from channels_asyncq import AsyncQueueChannelLayer, DeliveryUnknown, LayerUnavailable
from channels_asyncq.bus.redis import checkpoint
from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.bus.redis.cluster import checkpoint as cluster_checkpoint
from channels_asyncq.bus.redis.cluster.checkpoint import ClusterPlan
from channels_asyncq.bus.redis.cluster.node import ClusterNode
from channels_asyncq.bus.redis.cluster.replication import Replication
from channels_asyncq.bus.redis.node import Node
from channels_asyncq.bus.redis.partition import Partition, Reading
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.names import owner_of
from channels_asyncq.testing import _free_port
from tests.cluster_nodes import Node as Server
from tests.cluster_sessions import (
    Company,
    Moving,
    home_of,
    partition_of,
    router_of,
    slot_of_group,
    slot_of_queue,
)
from tests.clusters import Cluster
from tests.contract import DEADLINE, MakeLayer, ended, eventually, note, receive, started
from tests.fences import fence_every
from tests.sessions import bus_of

pytestmark = pytest.mark.server


async def joined(layer: AsyncQueueChannelLayer, groups: int = 20) -> str:
    """A channel in so many groups that each node has some of them."""
    channel = await layer.new_channel()
    await asyncio.gather(*(layer.group_add(f"room-{number}", channel) for number in range(groups)))
    return channel


def partition_of_group(layer: AsyncQueueChannelLayer, group: str) -> Partition:
    """The partition of a group in the running loop's session."""
    return partition_of(layer, slot_of_group(layer, group))


def bus_of_redis(layer: AsyncQueueChannelLayer) -> RedisBus:
    """The bus of the running loop's session."""
    bus = bus_of(layer)
    assert isinstance(bus, RedisBus)
    return bus


def home_of_queue(layer: AsyncQueueChannelLayer, channel: str) -> Node:
    """The home of a normal channel in the running loop's session."""
    return partition_of(layer, slot_of_queue(layer, channel)).home


def unread(layer: AsyncQueueChannelLayer) -> Iterator[str]:
    """Yield groups of partitions that are not read."""
    for number in itertools.count():
        if partition_of_group(layer, f"other-{number}").is_away:
            yield f"other-{number}"


# Fences


def millisecond_of(node: Server) -> int:
    """The clock of a server, in ms, as fences are dated."""
    seconds, microseconds = node.command("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


async def test_checks_of_health_start_no_fences_of_their_own(
    make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often health() is called, a node has one timer for its next fence."""
    monkeypatch.setattr(checkpoint, "RENEW_EVERY", 600.0)
    layer = await make_on_cluster()
    await joined(layer)
    nodes = router_of(layer).in_use
    timers = [node.checkpoint._timer for node in nodes]
    for _ in range(3):
        assert (await layer.health()).ok
    # A timer that was replaced, and not cancelled, sends fences beside the new one for ever.
    assert [node.checkpoint._timer for node in nodes] == timers


def late(monkeypatch: pytest.MonkeyPatch, wire: WireProtocol, seconds: float) -> None:
    """Let SSUBSCRIBE for the fences be written so much later than it is called."""
    loop, call = asyncio.get_running_loop(), wire.call

    def call_late(*command: Any, **options: Any) -> asyncio.Future[Any]:
        if command[0] != b"SSUBSCRIBE" or b":fence:" not in command[1]:
            return call(*command, **options)
        reply: asyncio.Future[Any] = loop.create_future()
        loop.call_later(seconds, lambda: call(*command, reply=reply))
        return reply

    monkeypatch.setattr(wire, "call", call_late)


async def node_without_topics(layer: AsyncQueueChannelLayer) -> tuple[ClusterNode, list[str]]:
    """A node at which nothing is read, and two groups of different partitions there."""
    await eventually(lambda: router_of(layer).is_up, "all connections")
    by_node: defaultdict[Node, dict[Partition, str]] = defaultdict(dict)
    for group in unread(layer):
        partition = partition_of_group(layer, group)
        node = partition.home
        by_node[node][partition] = group
        if not any(map(node.reads, node.partitions.values())) and len(by_node[node]) == 2:
            assert isinstance(node, ClusterNode)
            return node, list(by_node[node].values())
    raise AssertionError("unreachable")


async def test_two_partitions_are_the_first_at_a_node(
    make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence of neither is published before its topic is subscribed to: it would not arrive."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    node, groups = await node_without_topics(layer)
    assert node.pushes.wire is not None
    late(monkeypatch, node.pushes.wire, 0.1)
    await asyncio.gather(*(layer.group_add(group, channel) for group in groups))
    assert all(partition_of_group(layer, group).position is not None for group in groups)
    assert node.pushes.reconnects == 0


async def test_topic_of_the_fences_moves_while_another_partition_waits_for_one(
    make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partition that waits is read again, and the connection is kept."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    node, (first, second) = await node_without_topics(layer)
    await layer.group_add(first, channel)
    pushes = node.pushes.wire
    assert pushes is not None
    begin = node.checkpoint._begin

    def begin_and_move(plan: ClusterPlan, *, is_full: bool, **options: bool) -> Any:
        monkeypatch.setattr(node.checkpoint, "_begin", begin)
        fence = begin(plan, is_full=is_full, **options)
        node.subscriber._renew_own(pushes)  # as when the partition leaves in whose slot the fences are
        return fence

    monkeypatch.setattr(node.checkpoint, "_begin", begin_and_move)
    async with asyncio.timeout(DEADLINE):
        await layer.group_add(second, channel)
    assert node.pushes.wire is pushes


async def test_first_fence_while_another_partition_catches_up(
    make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence waits with the pushes, however long the connection is paused."""
    monkeypatch.setattr(cluster_checkpoint, "LONGEST_FENCE", 0.05)
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    node, (first, second) = await node_without_topics(layer)
    await layer.group_add(first, channel)
    pushes = node.pushes.wire
    assert pushes is not None
    with node.subscriber.paused(pushes):
        joining = asyncio.create_task(layer.group_add(second, channel))
        await eventually(lambda: pushes.is_stalled, "a fence that waits")
        await asyncio.wait([joining], timeout=0.3)
        assert not joining.done()
    async with asyncio.timeout(DEADLINE):
        await joining
    assert node.pushes.wire is pushes


async def test_fences_while_a_slot_is_open(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """The partitions whose slots are closed have fences still, however long another one is open."""
    layer = await make_on_cluster()
    await joined(layer)
    node = next(node for node in router_of(layer).in_use if len(node.partitions) > 2)
    partitions = [each for _, each in sorted(node.partitions.items()) if each.is_live]
    slot = router_of(layer)._slots[partitions[-1].number]
    home = redis_cluster.node_of(slot)
    moving = Moving(redis_cluster, slot, next(each for each in redis_cluster.primaries() if each is not home))
    await moving.until("keys")
    before = [each.fenced_at for each in partitions]
    # The fence after this one is of a later millisecond.
    await eventually(lambda: millisecond_of(home) > max(before), "the next millisecond")
    node.checkpoint.stop()
    node.checkpoint._send()
    await eventually(lambda: partitions[0].fenced_at > before[0], "the fence")
    assert partitions[-1].fenced_at == before[-1]
    await moving.finish()


# Homes in doubt


async def commands_lost(node: Node) -> None:
    """Return when a node has lost its connection for commands: its partitions are in doubt."""
    wire = node.commands.wire
    assert wire is not None
    wire.abort(ConnectionResetError("cut by the test"))
    await eventually(lambda: node.commands.wire is None, "the loss")


async def fences_go_on(node: Node) -> None:
    """Return when a node has sent more fences, one after the other."""
    number = node.checkpoint._number
    await eventually(lambda: node.checkpoint._number > number + 2, "more fences")


async def test_commands_are_lost_with_a_fence(
    make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next fence follows, over the next connection: without fences, nobody notices a deaf connection."""
    fence_every(monkeypatch, 0.05)
    layer = await make_on_cluster()
    await joined(layer)
    await eventually(lambda: router_of(layer).is_up, "all connections")
    node = router_of(layer).partitions[0].home
    pushes = node.pushes.wire
    node.checkpoint.stop()
    node.checkpoint._send()
    await commands_lost(node)
    await eventually(lambda: node.commands.wire is not None, "the next connection")
    await fences_go_on(node)
    assert node.pushes.wire is pushes


async def test_scripts_are_lost(
    redis_cluster: Cluster, make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fences load them: a session that only receives has no other command at most nodes."""
    fence_every(monkeypatch, 0.05)
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    node, (group, _) = await node_without_topics(layer)
    assert not node.keeps_lease
    server = next(each for each in redis_cluster.primaries() if each.port == node.place[1])
    await asyncio.to_thread(server.command, "SCRIPT", "FLUSH")
    async with asyncio.timeout(DEADLINE):
        await layer.group_add(group, channel)
    await asyncio.to_thread(server.command, "SCRIPT", "FLUSH")
    partition = partition_of_group(layer, group)
    then = millisecond_of(server)
    await eventually(lambda: partition.fenced_at > then, "a fence that arrives")


async def test_next_topic_of_the_fences_is_refused(
    redis_cluster: Cluster, make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another connection is made, and has fences again."""
    fence_every(monkeypatch, 0.05)
    layer = await make_on_cluster()
    await joined(layer)
    await eventually(lambda: router_of(layer).is_up, "all connections")
    node = router_of(layer).partitions[0].home
    assert isinstance(node, ClusterNode) and node.pushes.wire is not None
    wire, call = node.pushes.wire, node.pushes.wire.call

    def refuse(*command: Any, **options: Any) -> asyncio.Future[Any]:
        if command[0] != b"SSUBSCRIBE" or b":fence:" not in command[1]:
            return call(*command, **options)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        reply.set_exception(ReplyError("BUSY Redis is busy running a script"))
        return reply

    monkeypatch.setattr(wire, "call", refuse)
    slot = router_of(layer)._slots[node._fence_partition]
    target = next(each for each in redis_cluster.primaries() if each.port != node.place[1])
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, target)
    await eventually(lambda: node.pushes.wire not in (None, wire), "another connection")
    await fences_go_on(node)


async def test_join_while_the_home_is_in_doubt(make_on_cluster: MakeLayer) -> None:
    """A group of a partition that is not read, and whose home is in doubt, is joined when the home is up."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    await eventually(lambda: router_of(layer).is_up, "all connections")
    group = next(unread(layer))
    partition = partition_of_group(layer, group)
    await commands_lost(partition.home)
    assert router_of(layer).is_in_doubt(partition.number)
    async with asyncio.timeout(DEADLINE):
        await layer.group_add(group, channel)
    await layer.group_send(group, note(1))
    assert await receive(layer, channel) == note(1)


async def test_subscriptions_taken_back_while_the_home_is_lost(make_on_cluster: MakeLayer) -> None:
    """A partition whose subscriptions have ended is read again when its home is up."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    partition = partition_of_group(layer, "room")
    await commands_lost(partition.home)
    router_of(layer).left(partition)
    await eventually(lambda: partition.is_live, "the reading")
    await layer.group_send("room", note(1))
    assert await receive(layer, channel) == note(1)


async def test_subscription_that_is_refused_for_now(
    make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition is not live while a topic has been redirected: SSUBSCRIBE is sent again."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    node, groups = await node_without_topics(layer)
    await layer.group_add(groups[0], channel)
    wire, refused = node.pushes.wire, layer.topic_of_group(groups[1]).encode()
    assert wire is not None
    call = wire.call

    def refuse_once(*command: Any, **options: Any) -> asyncio.Future[Any]:
        if command != (b"SSUBSCRIBE", refused):
            return call(*command, **options)
        monkeypatch.setattr(wire, "call", call)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        reply.set_exception(ReplyError("CLUSTERDOWN Hash slot not served"))
        return reply

    monkeypatch.setattr(wire, "call", refuse_once)
    async with asyncio.timeout(DEADLINE):
        await layer.group_add(groups[1], channel)
    await layer.group_send(groups[1], note(1))
    assert await receive(layer, channel) == note(1)


async def test_departure_that_came_to_nothing(make_on_cluster: MakeLayer) -> None:
    """A partition that has left and is read at the same node again forgets it: the next departure counts."""
    layer = await make_on_cluster()
    await joined(layer)
    partition = partition_of_group(layer, "room-1")
    router_of(layer).left(partition)
    assert partition.departures
    await eventually(lambda: partition.is_live, "the reading")
    assert not partition.departures


async def test_replica_whose_partition_has_moved_on(
    make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that turns out to be a replica speaks for itself alone, not for the next home of its partition."""
    layer = await make_on_cluster()
    await joined(layer)
    partition = partition_of_group(layer, "room-1")
    home = partition.home
    assert isinstance(home, ClusterNode)
    next_home = next(place for place in router_of(layer).nodes_by_place if place != home.place)

    async def answer_late() -> Replication:
        router_of(layer)._move(partition.number, next_home, is_known_here=True)
        return Replication(is_primary=False, is_linked=True, history=b"a" * 40, before=b"b" * 40)

    monkeypatch.setattr(home, "_replication", answer_late)
    with pytest.raises(LayerUnavailable, match="it is a replica"):
        await home.changed_among([partition])
    assert [each.node for each in partition.departures] == [home]
    monkeypatch.undo()
    await eventually(lambda: partition.is_live, "the reading")


async def test_topic_of_a_partition_that_nobody_wanted(
    redis_cluster: Cluster, make_on_cluster: MakeLayer
) -> None:
    """What was lost while no topic was wanted is not told to those that join later."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    node, (group, _) = await node_without_topics(layer)
    await layer.group_add(group, channel)
    partition = partition_of_group(layer, group)
    await layer.group_discard(group, channel)
    assert not node.reads(partition)
    assert node.pushes.wire is not None
    node.pushes.wire.abort(ConnectionResetError("cut by the test"))
    await eventually(lambda: node.pushes.reconnects == 1, "the next connection")
    log = bus_of_redis(layer).shared.topics.log(partition.number)
    redis_cluster.node_of(slot_of_group(layer, group)).command("DEL", log)
    await layer.group_add(group, channel)
    await layer.group_send(group, note(1))
    assert await receive(layer, channel) == note(1)


async def test_partition_that_nobody_wanted_has_moved(
    redis_cluster: Cluster, make_on_cluster: MakeLayer
) -> None:
    """A session that read it until it left can tell that the epoch of its log goes on."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    node, (group, _) = await node_without_topics(layer)
    await layer.group_add(group, channel)
    since = await layer.position(group)
    await layer.group_discard(group, channel)
    partition, slot = partition_of_group(layer, group), slot_of_group(layer, group)
    assert partition.is_live
    home = redis_cluster.node_of(slot)
    other = next(each for each in redis_cluster.primaries() if each is not home)
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, other)
    await layer.group_send(group, note(1))
    assert partition.home is not node
    replay = await layer.group_resume(group, channel, since=since)
    assert (replay.recovered, replay.reason, replay.messages) == (True, "", [note(1)])


async def test_partition_0_comes_to_a_node_that_waits_for_the_lease(
    redis_cluster: Cluster, make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for the lease then: the node that had the partition does not any more, and waits for it too."""
    layer = await make_on_cluster()
    channel = await joined(layer)
    router = router_of(layer)
    await eventually(lambda: router.is_up, "all connections")
    last = router._node_of(0)
    target = next(each for each in redis_cluster.primaries() if each.port != last.place[1])
    node = router.node_at(("127.0.0.1", target.port))
    set_up, has_moved = Node.set_up, asyncio.Event()

    async def set_up_late(self: Node, wire: WireProtocol) -> None:
        if self is last:
            await has_moved.wait()
        await set_up(self, wire)

    monkeypatch.setattr(Node, "set_up", set_up_late)
    router.lease.note_lost()
    await asyncio.gather(commands_lost(last), commands_lost(node))
    await eventually(lambda: "it waits for the lease" in node.commands.reason, "the wait for the lease")
    await asyncio.to_thread(redis_cluster.migrate_classic, router._slots[0], target)
    has_moved.set()
    await eventually(lambda: router.is_up, "all connections again")
    assert router.partitions[0].home is node
    await layer.group_send("room-0", note(1))
    assert await receive(layer, channel) == note(1)


async def test_partition_0_comes_to_a_node_that_is_up(
    redis_cluster: Cluster, make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refusal at its last home, the nodes that wait hear of the lease that is renewed at this one."""
    fence_every(monkeypatch, 0.05)
    layer = await make_on_cluster()
    await joined(layer)
    router = router_of(layer)
    await eventually(lambda: router.is_up, "all connections")
    last = router._node_of(0)
    target, third = (each for each in redis_cluster.primaries() if each.port != last.place[1])
    node, other = (router.node_at(("127.0.0.1", each.port)) for each in (target, third))
    set_up = Node.set_up

    async def refuse(self: Node, wire: WireProtocol) -> None:
        """As if others use the namespace in another way, for as long as the partition is there."""
        if self is last and self.keeps_lease:
            raise ImproperlyConfigured("others have partitions: 8")
        await set_up(self, wire)

    monkeypatch.setattr(Node, "set_up", refuse)
    await commands_lost(last)
    await eventually(lambda: not router.lease.is_held, "the refusal")
    await commands_lost(other)
    await asyncio.to_thread(redis_cluster.migrate_classic, router._slots[0], target)
    await eventually(lambda: router.is_up, "all connections again")
    assert router.partitions[0].home is node and node.commands.reconnects == 0
    channel = await joined(layer, 1)  # which gets no notice of the move, that its last home has not seen
    await layer.group_send("room-0", note(1))
    assert await receive(layer, channel) == note(1)


async def test_last_topic_of_a_node_is_given_up_while_it_is_asked_for(
    make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next connection of the node, which asks for none, does not mind that the last one was not answered."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    node, (group, _) = await node_without_topics(layer)
    assert node.pushes.wire is not None
    wire, call, is_cut = node.pushes.wire, node.pushes.wire.call, asyncio.Event()

    def cut(*command: Any, **options: Any) -> asyncio.Future[Any]:
        reply = call(*command, **options)
        if command[0] == b"SSUBSCRIBE":
            wire.abort(ConnectionResetError("cut by the test"))
            is_cut.set()
        return reply

    monkeypatch.setattr(wire, "call", cut)
    joining = await started(layer.group_add(group, channel))
    await is_cut.wait()
    joining.cancel()
    await ended(joining)
    await eventually(lambda: node.pushes.reconnects == 1, "the next connection")


async def test_receiver_whose_channel_moves_before_the_first_home_is_up(
    redis_cluster: Cluster, make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the next home then, although the first one stays in use and never comes up."""
    layer = await make_on_cluster()
    await layer.new_channel()
    router = router_of(layer)
    await eventually(lambda: router.is_up, "all connections")
    last = next(node for node in router.in_use if not node.keeps_lease)
    jobs = next(
        name for name in map("jobs-{}".format, itertools.count()) if home_of_queue(layer, name) is last
    )
    await layer.close_pools()

    async def never(wire: WireProtocol) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(last, "set_up", never)
    receiving = await started(layer.receive(jobs))
    target = next(each for each in redis_cluster.primaries() if each.port != last.place[1])
    await asyncio.to_thread(redis_cluster.migrate_classic, slot_of_queue(layer, jobs), target)
    await eventually(lambda: home_of_queue(layer, jobs) is not last, "the move")
    await layer.send(jobs, note(1))
    assert await ended(receiving) == note(1)
    assert last.partitions


async def test_site_maps_no_addresses_for_a_moment(
    redis_cluster: Cluster, make_on_cluster: MakeLayer
) -> None:
    """The search for the homes goes on, whatever `address_remap` raises."""
    has_failed = asyncio.Event()
    is_broken = False

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        if is_broken:
            has_failed.set()
            raise KeyError(address)
        return address

    layer = await make_on_cluster(hosts=[{"address": redis_cluster.url, "address_remap": remap}])
    await joined(layer)
    router = router_of(layer)
    await eventually(lambda: router.is_up, "all connections")
    is_broken = True
    router.doubt([0])
    await has_failed.wait()
    is_broken = False
    await eventually(lambda: not router.is_in_doubt(0), "the end of the search")


async def test_site_maps_no_address_of_the_next_home(
    redis_cluster: Cluster, make_on_cluster: MakeLayer
) -> None:
    """Sends that are redirected there fail in time, and go on when there is one."""
    unknown: set[tuple[str, int]] = set()

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        if address in unknown:
            raise KeyError(address)
        return address

    host = {"address": redis_cluster.url, "address_remap": remap}
    layer = await make_on_cluster(hosts=[host], send_timeout=1)
    await layer.new_channel()
    await eventually(lambda: router_of(layer).is_up, "all connections")
    slot = slot_of_group(layer, "room")
    home = redis_cluster.node_of(slot)
    target = next(each for each in redis_cluster.primaries() if each is not home)
    unknown.add(("127.0.0.1", target.port))
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, target)
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(LayerUnavailable):
            await layer.group_send("room", note(1))
    unknown.clear()
    await eventually(lambda: home_of(layer, slot).place[1] == target.port, "the move")
    await layer.group_send("room", note(2))


async def test_first_node_in_the_settings_is_dead(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """A receiver of a normal channel, which waits for it, waits for the home of the channel instead."""
    dead = f"127.0.0.1:{_free_port()}"
    layer = await make_on_cluster(hosts=[redis_cluster.url.replace("//", f"//{dead},")])
    receiving = await started(layer.receive("jobs"))
    await layer.send("jobs", note(1))
    assert await ended(receiving) == note(1)


async def test_nodes_that_do_not_answer(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """A round of a search asks one of them, after all others; those that left the cluster are forgotten."""
    layer = await make_on_cluster()
    await joined(layer)
    router = router_of(layer)
    reader, places = router._reader, {("127.0.0.1", node.port) for node in redis_cluster.nodes}
    assert await reader.read(reader._host.startup_nodes[0]) is not None
    gone = [("192.0.2.1", port) for port in range(3)]
    reader._known.update(dict.fromkeys(gone))
    reader.silent.update(dict.fromkeys(gone, "no answer"))
    asked = list(reader.addresses())
    assert (set(asked[:-1]), asked[-1]) == (places, gone[0])
    assert await reader.read(asked[0]) is not None
    assert set(reader.addresses()) == places
    assert (set(reader._known), reader.silent) == (places, {})


# Resting and closing


def rests(layer: AsyncQueueChannelLayer) -> bool:
    """Whether nothing of the session is connected, or begins to be."""
    router = router_of(layer)
    is_idle = all(node.commands.is_resting and node.pushes.is_resting for node in router.nodes)
    return is_idle and router._searching is None


async def test_close_pools(make_on_cluster: MakeLayer) -> None:
    """The connections stay closed until the next use, and what was sent meanwhile arrives then."""
    layer, sender = await make_on_cluster(), await make_on_cluster()
    channel = await joined(layer)
    await layer.close_pools()
    await sender.group_send("room-1", note(1))
    assert rests(layer)
    # Another session may use the namespace in another way meanwhile.
    assert not router_of(layer).lease.is_held
    await layer.group_send("room-1", note(2))
    assert [await receive(layer, channel), await receive(layer, channel)] == [note(1), note(2)]


async def test_home_of_partition_0_dies_while_the_session_rests(
    redis_cluster: Cluster, make_on_cluster: MakeLayer
) -> None:
    """A question for the health, too, finds its successor: otherwise all nodes wait for the lease there."""
    layer = await make_on_cluster()
    await joined(layer)
    router = router_of(layer)
    await eventually(lambda: router.is_up, "all connections")
    server = next(each for each in redis_cluster.primaries() if each.port == router._node_of(0).place[1])
    [replica] = redis_cluster.replicas_of(server)
    await layer.close_pools()
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(redis_cluster.wait_for_promotion, replica)
    assert (await layer.health(DEADLINE)).ok


async def test_close_pools_and_use_at_once(make_on_cluster: MakeLayer) -> None:
    """A search that is being cancelled is begun again."""
    layer = await make_on_cluster()
    channel = await joined(layer)
    router = router_of(layer)
    router.doubt(range(16))
    router.stop()
    router.start()
    await eventually(lambda: not router._doubts, "the end of the search")
    await layer.group_send("room-1", note(1))
    assert await receive(layer, channel) == note(1)


async def test_close_pools_while_a_partition_is_held(make_on_cluster: MakeLayer) -> None:
    """Sends to a partition that had refused a command go on with the next connection."""
    layer = await make_on_cluster()
    channel = await joined(layer)
    held = partition_of_group(layer, "room-1")
    held_redirects = router_of(layer).redirects_for(held.number)
    held_redirects._pause = 600.0
    held_redirects.hold("TRYAGAIN")
    await eventually(lambda: not held.sender.is_draining, "the pause")
    await layer.close_pools()
    assert rests(layer)
    async with asyncio.timeout(DEADLINE):
        await layer.group_send("room-1", note(1))
    assert await receive(layer, channel) == note(1)


async def test_redirected_while_closing(make_on_cluster: MakeLayer) -> None:
    """A MOVED that comes while a session closes makes no node: nobody would close it."""
    layer = await make_on_cluster()
    await joined(layer)
    router = router_of(layer)
    nodes = list(router.nodes)
    await router.leave()
    router.moved(1, "127.0.0.1", 1)
    assert router.nodes == nodes
    await layer.close()


# Sends


async def test_resend_that_is_refused_while_a_later_one_is_executed(
    redis_cluster: Cluster, make_on_cluster: MakeLayer
) -> None:
    """
    A message that may not be sent again under its number is reported to its sender: receivers would drop it.

    In an open slot a message to a group is refused, as its members are not there. One to a channel is executed.
    """
    layer, sender = await make_on_cluster(), await make_on_cluster()
    channel = await layer.new_channel()
    await sender.new_channel()
    inbox = bus_of_redis(layer).shared.topics.partition(owner_of(channel) or "")
    router = router_of(sender)
    group = next(
        f"room-{n}" for n in itertools.count() if partition_of_group(sender, f"room-{n}").number == inbox
    )
    await layer.group_add(group, channel)
    await sender.group_send(group, note(0))
    await sender.send(channel, note(0))
    assert [await receive(layer, channel), await receive(layer, channel)] == [note(0), note(0)]
    slot = slot_of_group(layer, group)
    home = redis_cluster.node_of(slot)
    moving = Moving(redis_cluster, slot, next(each for each in redis_cluster.primaries() if each is not home))
    await moving.until("migrating")
    wire = router.partitions[inbox].home.commands.wire
    assert wire is not None
    first = asyncio.create_task(sender.group_send(group, note(1)))
    second = asyncio.create_task(sender.send(channel, note(2)))
    for _ in range(10):
        if len(wire.pipeline._written) == 2:
            break
        await asyncio.sleep(0)
    assert len(wire.pipeline._written) == 2
    wire.abort(ConnectionResetError("cut by the test"))
    await second
    assert await receive(layer, channel) == note(2)
    await moving.finish()
    with pytest.raises(DeliveryUnknown):
        await first


# Reasons


async def test_lease_that_cannot_be_taken(make_on_cluster: MakeLayer) -> None:
    """A send to a node that waits for the lease of the session says where that is kept."""
    layer = await make_on_cluster()
    await joined(layer)
    router = router_of(layer)
    home = router.partitions[0].home
    group, node = next(
        (f"room-{n}", partition_of_group(layer, f"room-{n}").home)
        for n in range(20)
        if partition_of_group(layer, f"room-{n}").home is not home
    )
    router.lease.note_lost()
    await commands_lost(node)
    await eventually(lambda: "waits for the lease" in node.commands.reason, "the wait for the lease")
    node.commands._downtime.begin(0.1, is_first=False)  # what is left of its time
    with pytest.raises(LayerUnavailable, match=f"waits for the lease .* kept at {home.address}"):
        await layer.group_send(group, note(1))
    router.lease.note_held()
    await eventually(lambda: node.commands.wire is not None, "the next connection")
    await layer.group_send(group, note(2))


# Lost connections


async def test_connections_for_commands_lost_while_logs_are_read(
    redis_cluster: Cluster, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log whose reading is cut off is read by the next connection: nothing is missing, nothing comes twice."""
    groups = [f"room-{number}" for number in range(8)]
    await company.join(*groups)
    node = redis_cluster.node_of(slot_of_group(company.layers[0], groups[0]))
    cuts = 0
    enter = Partition.enter

    def enter_and_cut(partition: Partition, reading: Reading) -> None:
        nonlocal cuts
        enter(partition, reading)
        if (
            reading is Reading.CATCHING_UP
            and cuts < 10
            and partition.home.address.endswith(f":{node.port}/0")
        ):
            cuts += 1
            node.command("CLIENT", "KILL", "TYPE", "normal")

    monkeypatch.setattr(Partition, "enter", enter_and_cut)
    async with company.at_work():
        while cuts < 10:
            lost = [layer.statistics().reconnects for layer in company.layers]
            # In this thread: the other kill would end a connection of another one.
            node.command("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(
                lambda lost=lost: all(  # type: ignore[misc]  # mypy: the type of a default
                    layer.statistics().reconnects > before
                    for layer, before in zip(company.layers, lost, strict=True)
                ),
                "the next connections",
            )
    await company.settle()
    company.assert_intact()
