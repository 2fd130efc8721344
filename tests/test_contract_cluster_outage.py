"""Outages of a Redis Cluster: cut connections, stopped nodes, and what the layer promises about them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from channels_asyncq.exceptions import ChannelLayerError, LayerClosed, LayerUnavailable
from tests import contract
from tests.cluster_nodes import Node
from tests.clusters import Cluster
from tests.contract import (
    DEADLINE,
    MakeLayer,
    assert_nothing_waits,
    ended,
    eventually,
    every,
    members_of,
    note,
    receive,
    receive_many,
    started,
    steps,
)
from tests.test_contract_redis_outage import has_reconnected, next_note, works

pytestmark = [pytest.mark.chaos, pytest.mark.server]


@pytest.fixture
async def make_layer(redis_cluster: Cluster, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[redis_cluster.url], prefix=prefix) as make_layer:
        yield make_layer


def kill_connections(cluster: Cluster, kind: str) -> int:
    """CLIENT KILL the `pubsub` or `normal` connections at all nodes; returns how many there were."""
    kill = "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"
    return sum(int(node.command(*kill)) for node in cluster.primaries())


def connections(node: Node) -> int:
    """How many clients a node has, with the one that asks."""
    kinds = ("normal", "pubsub")
    return sum(len(node.command("CLIENT", "LIST", "TYPE", kind).splitlines()) for kind in kinds)


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
async def test_killed_connections_heal(make_layer: MakeLayer, redis_cluster: Cluster, kind: str) -> None:
    """The layer connects and subscribes again at each node; groups, channels and normal channels work."""
    reader, writer = await make_layer(), await make_layer()
    (member,) = await members_of(reader, "room", 1)
    await writer.group_send("room", note(0))
    assert await receive(reader, member) == note(0)
    for n in range(1, 4):
        before = reader.statistics().reconnects
        assert kill_connections(redis_cluster, kind) >= 1
        await eventually(has_reconnected(reader, before), "the reconnect")
        await eventually(lambda: reader.statistics().connected and writer.statistics().connected)
        await works(writer, reader, member)
        await writer.send(member, note(n))
        assert await next_note(reader, member) == note(n)
        await writer.send("jobs", note(n))
        assert await receive(reader, "jobs") == note(n)


async def test_connections_do_not_pile_up(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """After many cuts there are two connections to each node, however many subscribed at that moment."""
    layer = await make_layer()
    members = [await layer.new_channel() for _ in range(20)]
    for n in range(5):
        joins = [
            asyncio.create_task(layer.group_add(f"room.{n}.{m}", member)) for m, member in enumerate(members)
        ]
        await steps(n)
        before = layer.statistics().reconnects
        kill_connections(redis_cluster, "pubsub")
        kill_connections(redis_cluster, "normal")
        await every(joins)
        await eventually(has_reconnected(layer, before) if n else lambda: True, "the reconnect")
        await eventually(lambda: layer.statistics().connected, "the links' return")
    await eventually(
        lambda: max(map(connections, redis_cluster.primaries())) <= 3, "the end of stray connections"
    )
    for n in range(5):
        await layer.group_send(f"room.{n}.7", note(n))
        assert await receive(layer, members[7]) == note(n)


async def test_jobs_over_killed_connections(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """Cutting connections under load loses no job of a normal channel and does none twice."""
    reader, writer = await make_layer(capacity=10_000), await make_layer(capacity=10_000)
    arrived: list[int] = []
    unknown: set[int] = set()

    async def work(channel: str) -> None:
        while True:
            arrived.append((await reader.receive(channel))["n"])

    async def write() -> None:
        for n in range(300):
            try:
                await writer.send(f"jobs.{n % 3}", note(n))
            except ChannelLayerError:
                unknown.add(n)

    workers = [await started(work(f"jobs.{n}")) for n in range(3)]
    sender = await started(write())
    for goal in (20, 80, 150):
        await eventually(partial(lambda goal: len(arrived) > goal or sender.done(), goal), "progress")
        kill_connections(redis_cluster, "normal")
        kill_connections(redis_cluster, "pubsub")
    await every([sender])
    await eventually(lambda: set(range(300)) - unknown <= set(arrived), "the last job")
    for worker in workers:
        worker.cancel()
        await ended(worker)
    assert len(arrived) == len(set(arrived))


async def test_scripts_are_flushed(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """SCRIPT FLUSH by somebody else is no loss."""
    layer = await make_layer()
    for n in range(2):
        await layer.send("jobs", note(n))
        for node in redis_cluster.primaries():
            node.command("SCRIPT", "FLUSH")
    assert await receive_many(layer, "jobs", 2) == [note(0), note(1)]


@pytest.mark.slow
async def test_all_nodes_are_killed(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """Sends fail after `send_timeout` and then at once, receivers survive, and get what is sent afterwards."""
    layer = await make_layer(send_timeout=3.0)
    (member,) = await members_of(layer, "room", 1)
    waits, works_too = await started(receive(layer, member)), await started(receive(layer, "jobs"))
    assert (await layer.health()).ok
    for node in redis_cluster.nodes:
        await asyncio.to_thread(node.kill)
    for is_first in (True, False):
        for send in (layer.group_send("room", note(1)), layer.send("jobs", note(1))):
            sending = await started(send)
            assert is_first or sending.done()
            with pytest.raises(LayerUnavailable):
                async with asyncio.timeout(DEADLINE):
                    await sending
    assert not waits.done() and not works_too.done()
    health = await layer.health(0.5)
    assert not health.ok and all(host.reason for host in health.hosts)
    await asyncio.to_thread(redis_cluster.restore)
    await eventually(lambda: layer.statistics().connected, "the links' return")
    await layer.group_send("room", note(2))
    await layer.send("jobs", note(3))
    assert await every([waits, works_too]) == [note(2), note(3)]
    await assert_nothing_waits(layer, member)


@pytest.mark.slow
async def test_close_during_an_outage(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """close() does not wait for nodes that are gone."""
    layer = await make_layer(send_timeout=10 * DEADLINE)
    (member,) = await members_of(layer, "room", 1)
    waits = await started(layer.receive(member))
    for node in redis_cluster.nodes:
        await asyncio.to_thread(node.kill)
    async with asyncio.timeout(DEADLINE):
        await layer.close()
    with pytest.raises(LayerClosed):
        await waits
