"""A primary that stands still for a while: with a successor, and without."""

from __future__ import annotations

import asyncio

import pytest

from channels_asyncq.bus.redis.cluster import node as cluster_node
from tests.cluster_sessions import home_of, slot_of_group
from tests.clusters import Cluster
from tests.contract import MakeLayer, eventually, note, receive, receive_many

pytestmark = [pytest.mark.server, pytest.mark.slow]


async def test_a_short_silence(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """The others say that it is the primary still: its answers count, and the connections are kept."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    primary = redis_cluster.node_of(slot_of_group(layer, "room"))
    for node in redis_cluster.nodes:
        await asyncio.to_thread(node.command, "CONFIG", "SET", "cluster-node-timeout", "60000")
    reconnects = layer.statistics().reconnects
    await asyncio.to_thread(primary.freeze)
    try:
        send = asyncio.create_task(layer.group_send("room", note(1)))
        home = home_of(layer, slot_of_group(layer, "room"))
        await eventually(lambda: home.router.is_silent(home), "the silence")
    finally:
        await asyncio.to_thread(primary.thaw)
    await send
    assert await receive(layer, channel) == note(1)
    await eventually(lambda: not home.router._doubts, "the end of all doubts")
    assert not home.router.is_silent(home)
    assert layer.statistics().reconnects == reconnects
    await layer.group_send("room", note(2))
    assert await receive(layer, channel) == note(2)


async def test_planned_failover_of_a_silent_primary(
    redis_cluster: Cluster, make_on_cluster: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A primary that holds writes for long, as a busy one in a planned failover: nothing is lost, nobody told."""
    monkeypatch.setattr(cluster_node, "_BRIEF", 10.0)
    layer = await make_on_cluster(send_timeout=20)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    slot = slot_of_group(layer, "room")
    primary = redis_cluster.node_of(slot)
    replica = redis_cluster.replicas_of(primary)[0]
    home = home_of(layer, slot)
    await asyncio.to_thread(primary.command, "CLIENT", "PAUSE", 20_000, "WRITE")
    sends = [asyncio.create_task(layer.group_send("room", note(number))) for number in range(20)]
    await eventually(lambda: home.router.is_silent(home), "the silence")
    await asyncio.to_thread(redis_cluster.failover, replica)
    await asyncio.gather(*sends)
    assert home_of(layer, slot).place[1] == replica.port
    await asyncio.to_thread(primary.command, "CLIENT", "UNPAUSE")
    await layer.group_send("room", note(20))
    assert await receive_many(layer, channel, 21) == [note(number) for number in range(21)]
    assert layer.statistics().told == {}


async def test_answers_after_a_failover(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """
    A primary that wakes up executes what it had received, and that is lost: its answers do not count.

    The sends have been repeated at the successor under their numbers, so each message arrives once.
    """
    layer = await make_on_cluster(send_timeout=20)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    slot = slot_of_group(layer, "room")
    primary = redis_cluster.node_of(slot)
    await asyncio.to_thread(primary.freeze)
    try:
        sends = [asyncio.create_task(layer.group_send("room", note(number))) for number in range(20)]
        await asyncio.wait(sends)
        successor = home_of(layer, slot).place[1]
        assert successor != primary.port
    finally:
        await asyncio.to_thread(primary.thaw)
    for send in sends:
        send.result()
    await layer.group_send("room", note(20))
    numbers = []
    while 20 not in numbers:
        message = await receive(layer, channel)
        if message["type"] == "lost":
            assert message["reason"] == "server_changed"
        else:
            numbers.append(message["n"])
    assert numbers == list(range(21))
