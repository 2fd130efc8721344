"""Nodes of a real cluster that come and go, and sessions that end, rest and begin while slots move."""

from __future__ import annotations

import asyncio

import pytest

from channels_asyncq import LayerClosed
from channels_asyncq.bus.redis.cluster import router as router_module
from tests.cluster_moves import Step
from tests.cluster_nodes import Node
from tests.cluster_sessions import (
    Company,
    Moving,
    home_of,
    is_at,
    redis_bus_of,
    router_of,
    slot_of_group,
)
from tests.clusters import Cluster
from tests.contract import DEADLINE, MakeLayer, eventually, note, receive, steps
from tests.test_cluster_moves import STEPS, other_than


def ports_of(company: Company) -> set[int]:
    """The ports of the nodes that the first session uses."""
    return {node.place[1] for node in router_of(company.layers[0]).nodes_by_place.values()}


async def test_node_joins_and_is_forgotten(
    redis_cluster: Cluster, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new node takes slots, gives them back and is forgotten, under load: all quiet, and nothing is left."""
    monkeypatch.setattr(router_module, "_UNUSED", 0.1)
    await company.join("room", "hall")
    slots = sorted({slot_of_group(company.layers[0], group) for group in ("room", "hall")})
    homes = [redis_cluster.node_of(slot) for slot in slots]
    node = await asyncio.to_thread(redis_cluster.add_node)
    async with company.at_work():
        for slot in slots:
            await asyncio.to_thread(redis_cluster.migrate_classic, slot, node)
            await is_at(company.layers, slot, node)
        assert node.port in ports_of(company)
        # With its last slot it would become a replica of the node that takes it.
        await asyncio.to_thread(node.command, "CONFIG", "SET", "cluster-allow-replica-migration", "no")
        for slot, home in zip(slots, homes, strict=True):
            await asyncio.to_thread(redis_cluster.migrate_classic, slot, home)
            await is_at(company.layers, slot, home)
    await company.settle()
    company.assert_intact()
    await eventually(lambda: node.port not in ports_of(company), "the end of the connections")
    await eventually(lambda: not tasks_about(node.address), "the end of the tasks")
    await eventually(lambda: not clients_of(node), "the end of its clients")
    await asyncio.to_thread(redis_cluster.wait_until_ok)
    await asyncio.to_thread(redis_cluster.forget, node)
    company.send_to_all(5)
    await company.settle()
    company.assert_intact()


def tasks_about(address: str) -> list[str]:
    """The tasks that are about a node, by their names."""
    return [task.get_name() for task in asyncio.all_tasks() if address in task.get_name()]


def clients_of(node: Node) -> list[bytes]:
    """The connections of sessions to a node."""
    lines = b"".join(node.command("CLIENT", "LIST", "TYPE", kind) for kind in ("pubsub", "normal"))
    return [line for line in lines.splitlines() if b"addr=127.0.0.1:" in line and b"laddr=127.0.0.1" in line]


async def test_last_slot(redis_cluster: Cluster, company: Company) -> None:
    """
    A primary that loses its last slot becomes a replica of the node that takes it, without a word about its own
    history: its groups may be told of a loss that was none. Nothing is lost, doubled or out of order.
    """
    await company.join("room")
    slot = slot_of_group(company.layers[0], "room")
    home = redis_cluster.node_of(slot)
    node = await asyncio.to_thread(redis_cluster.add_node)
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, node)
    await is_at(company.layers, slot, node)
    async with company.at_work():
        await asyncio.to_thread(redis_cluster.migrate_classic, slot, home)
        await is_at(company.layers, slot, home)
    await company.settle()
    assert {notice["reason"] for notice in company.notices} <= {"server_changed"}
    company.notices.clear()
    company.assert_intact()


@pytest.mark.parametrize("step", STEPS)
async def test_close_in_the_middle_of_a_move(
    redis_cluster: Cluster, make_on_cluster: MakeLayer, step: Step
) -> None:
    """Closing ends everything at once, wherever a move is: no task and no connection is left."""
    layer = await make_on_cluster(send_timeout=10 * DEADLINE)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    slot = slot_of_group(layer, "room")
    moving = Moving(redis_cluster, slot, other_than(redis_cluster, redis_cluster.node_of(slot)))
    await moving.until(step)
    sends = [asyncio.create_task(layer.group_send("room", note(n))) for n in range(20)]
    await steps(STEPS.index(step) * 3)
    async with asyncio.timeout(DEADLINE):
        await layer.close()
    results = await asyncio.gather(*sends, return_exceptions=True)
    assert all(result is None or isinstance(result, (LayerClosed, ConnectionError)) for result in results)
    left = [task.get_name() for task in asyncio.all_tasks() if "channels_asyncq" in task.get_name()]
    assert not left
    await moving.finish()


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_close_at_each_await(redis_cluster: Cluster, make_on_cluster: MakeLayer, turns: int) -> None:
    """Closing is possible after any number of turns of the loop behind a move."""
    layer = await make_on_cluster(send_timeout=10 * DEADLINE)
    await layer.group_add("room", await layer.new_channel())
    slot = slot_of_group(layer, "room")
    partition_home = home_of(layer, slot)
    away = other_than(redis_cluster, redis_cluster.node_of(slot))
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, away)
    send = asyncio.create_task(layer.group_send("room", note(1)))
    await steps(turns)
    async with asyncio.timeout(DEADLINE):
        await layer.close()
    await asyncio.gather(send, return_exceptions=True)
    assert not [task for task in asyncio.all_tasks() if "channels_asyncq" in task.get_name()]
    assert partition_home.commands.wire is None


async def test_rest_and_start(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """A session without connections finds its slots where they are, and reads what it has missed in logs."""
    layer, other = await make_on_cluster(), await make_on_cluster()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await other.group_add("room", await other.new_channel())
    slot = slot_of_group(layer, "room")
    away = other_than(redis_cluster, redis_cluster.node_of(slot))
    await layer.close_pools()
    assert not any(node.is_up for node in redis_bus_of(layer).nodes)
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, away)
    for n in range(3):
        await other.group_send("room", note(n))
    await layer.group_send("room", note(3))
    assert [await receive(layer, channel) for _ in range(4)] == [note(n) for n in range(4)]
