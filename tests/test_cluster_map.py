"""What the nodes of a real cluster say of the slots: wrong, late, in other words, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from channels_asyncq import AsyncQueueChannelLayer, LayerUnavailable
from channels_asyncq.bus.redis.cluster.slot_map import SlotMap
from tests.cluster_nodes import Node
from tests.cluster_sessions import (
    Company,
    Moving,
    home_of,
    is_at,
    partition_of,
    redis_bus_of,
    router_of,
    slot_of_group,
)
from tests.clusters import Cluster
from tests.contract import DEADLINE, MakeLayer, eventually, note, receive, steps
from tests.sessions import shorten_send_timeout
from tests.test_cluster_moves import other_than


def map_of(node: Node) -> SlotMap:
    """The slot map, as a node tells it now."""
    return SlotMap.from_reply(node.command("CLUSTER", "SLOTS"), ("127.0.0.1", node.port))


async def test_two_nodes_that_name_each_other(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """Sends wait, and their error says what is wrong; a few questions a second are asked. Mended, all goes on."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    slot = slot_of_group(layer, "room")
    home = redis_cluster.node_of(slot)
    away = other_than(redis_cluster, home)
    moving = Moving(redis_cluster, slot, away)
    await moving.until("keys")
    # Neither has the slot, and each says that the other one has it.
    await asyncio.to_thread(away.command, "CLUSTER", "SETSLOT", slot, "STABLE")
    await asyncio.to_thread(home.command, "CLUSTER", "SETSLOT", slot, "NODE", away.id)
    before = [await asyncio.to_thread(commands_of, node) for node in (home, away)]
    seconds = 3.0
    shorten_send_timeout(redis_bus_of(layer), seconds)
    with pytest.raises(LayerUnavailable, match=f"the nodes disagree about slot {slot}"):
        await layer.group_send("room", note(1))
    after = [await asyncio.to_thread(commands_of, node) for node in (home, away)]
    # Both nodes are asked for the map, the keys, and the topics: at most all 50 ms.
    assert sum(after) - sum(before) < 5 * seconds / 0.05
    for node in redis_cluster.primaries():
        await asyncio.to_thread(node.command, "CLUSTER", "SETSLOT", slot, "NODE", away.id)
    await is_at([layer], slot, away)
    await works_again(layer, "room")
    assert await receive(layer, channel) == note(2)


def commands_of(node: Node) -> int:
    """How many commands about slots, keys and topics a node was sent."""
    stats = node.info("commandstats")
    names = ("cmdstat_cluster|slots", "cmdstat_exists", "cmdstat_ssubscribe", "cmdstat_evalsha")
    words = [dict(pair.split("=") for pair in stats[name].split(",")) for name in names if name in stats]
    return sum(int(each["calls"]) + int(each["rejected_calls"]) for each in words)


async def works_again(layer: AsyncQueueChannelLayer, group: str) -> None:
    """Return when a message to the group could be sent: `note(2)`."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await layer.group_send(group, note(2))
                return
            except LayerUnavailable:
                await steps(10)


async def test_map_of_a_third_node_that_is_late(redis_cluster: Cluster, company: Company) -> None:
    """A node that has not heard of a move does not take a partition back, also when its home is in doubt."""
    await company.join("room")
    layer = company.layers[0]
    slot = slot_of_group(layer, "room")
    home = redis_cluster.node_of(slot)
    away = other_than(redis_cluster, home)
    third = next(node for node in redis_cluster.primaries() if node not in (home, away))
    late = await asyncio.to_thread(map_of, third)
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, away)
    await is_at(company.layers, slot, away)
    number = partition_of(layer, slot).number
    company.send_to_all(10)
    router = router_of(layer)
    router.doubt([number])
    router.learn(late, ("127.0.0.1", third.port))
    assert home_of(layer, slot).place[1] == away.port
    await eventually(lambda: not router.is_in_doubt(number), "the end of the doubt")
    assert home_of(layer, slot).place[1] == away.port
    company.send_to_all(10)
    await company.settle()
    company.assert_intact()


async def test_empty_hosts(redis_cluster: Cluster, company: Company) -> None:
    """Nodes that leave their own host out are reached at the address of the node that was asked."""
    for node in redis_cluster.nodes:
        await asyncio.to_thread(
            node.command, "CONFIG", "SET", "cluster-preferred-endpoint-type", "unknown-endpoint"
        )
    await company.join("room")
    slot = slot_of_group(company.layers[0], "room")
    home = redis_cluster.node_of(slot)
    away = other_than(redis_cluster, home)
    for to in (away, home):
        company.send_to_all(10)
        await asyncio.to_thread(redis_cluster.migrate_classic, slot, to)
        company.send_to_all(10)
        await is_at(company.layers, slot, to)
    await company.settle()
    company.assert_intact()


async def test_hostnames(redis_cluster: Cluster, company: Company) -> None:
    """Nodes that announce hostnames are reached by these."""
    for node in redis_cluster.nodes:
        await asyncio.to_thread(node.command, "CONFIG", "SET", "cluster-announce-hostname", "localhost")
        await asyncio.to_thread(node.command, "CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")

    def know_the_name() -> bool:
        replies = [node.command("CLUSTER", "SLOTS") for node in redis_cluster.nodes]
        return all(entry[0] == b"localhost" for reply in replies for slots in reply for entry in slots[2:])

    await eventually(know_the_name, "the names of the nodes")
    await company.join("room")
    slot = slot_of_group(company.layers[0], "room")
    away = other_than(redis_cluster, redis_cluster.node_of(slot))
    company.send_to_all(10)
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, away)
    await is_at(company.layers, slot, away)
    assert home_of(company.layers[0], slot).place == ("localhost", away.port)
    await company.settle()
    company.assert_intact()
