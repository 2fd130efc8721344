"""Primaries of a real cluster that are replaced: on purpose, by SIGKILL, or without the tail of their logs."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from channels_asyncq import AsyncQueueChannelLayer, LayerUnavailable
from channels_asyncq.bus.redis.cluster.node import ClusterNode
from channels_asyncq.testing import EmbeddedServerError
from tests import contract
from tests.cluster_nodes import Node
from tests.cluster_sessions import Company, is_at, redis_bus_of, slot_of_group
from tests.clusters import Cluster
from tests.contract import MakeLayer, eventually, note, receive

GROUPS = [f"room-{number}" for number in range(4)]


def replica_of(cluster: Cluster, node: Node) -> Node:
    """The replica of a primary."""
    return cluster.replicas_of(node)[0]


def change_places(cluster: Cluster, replica: Node) -> None:
    """
    Make a replica the primary, and return when all nodes know it.

    They undo a failover that came too soon after another one.
    """
    slot = cluster_slot_of(cluster, replica)
    for _ in range(4):
        with contextlib.suppress(EmbeddedServerError):
            cluster.failover(replica)
        cluster.wait_until_ok()
        if cluster.node_of(slot) is replica:
            return
    raise TimeoutError(f"{replica.address} is no primary.")


def cluster_slot_of(cluster: Cluster, replica: Node) -> int:
    """A slot of a replica's primary."""
    primary = next(node for node in cluster.primaries() if replica in cluster.replicas_of(node))
    return min(primary.me().numbers())


async def test_planned_failover_and_back(redis_cluster: Cluster, company: Company) -> None:
    """A primary changes places with its replica twice, at once, under load: nothing is lost, nobody is told."""
    await company.join(*GROUPS)
    company.work("jobs")
    slot = slot_of_group(company.layers[0], GROUPS[0])
    first = redis_cluster.node_of(slot)
    second = replica_of(redis_cluster, first)
    async with company.at_work("jobs"):
        for node in (second, first):
            await asyncio.to_thread(change_places, redis_cluster, node)
        await is_at(company.layers, slot, first)
    await company.settle()
    company.assert_intact()


async def test_failover_of_a_quiet_partition(redis_cluster: Cluster, company: Company) -> None:
    """Where nothing was ever sent, a failover is no loss: each log has an entry from its first fence on."""
    await company.join("room")
    slot = slot_of_group(company.layers[0], "room")
    replica = replica_of(redis_cluster, redis_cluster.node_of(slot))
    await asyncio.to_thread(change_places, redis_cluster, replica)
    await is_at(company.layers, slot, replica)
    company.send_to_all(5)
    await company.settle()
    company.assert_intact()


async def test_scripts_that_the_next_primary_has_lost(redis_cluster: Cluster, company: Company) -> None:
    """A script is loaded where it is missing: caches of scripts are not replicated."""
    await company.join("room")
    slot = slot_of_group(company.layers[0], "room")
    replica = replica_of(redis_cluster, redis_cluster.node_of(slot))
    await asyncio.to_thread(change_places, redis_cluster, replica)
    await is_at(company.layers, slot, replica)
    for node in redis_cluster.primaries():
        await asyncio.to_thread(node.command, "SCRIPT", "FLUSH")
    company.send_to_all(20)
    await company.settle()
    company.assert_intact()


@pytest.mark.slow
async def test_killed_primary(redis_cluster: Cluster, company: Company) -> None:
    """
    After SIGKILL sends go on at the replica, under their numbers: nothing arrives twice or out of order. What may
    be missing is reported.
    """
    await company.join(*GROUPS)
    slot = slot_of_group(company.layers[0], GROUPS[0])
    primary = redis_cluster.node_of(slot)
    replica = replica_of(redis_cluster, primary)
    company.send_to_all(5)
    await company.settle()
    async with company.at_work():
        await asyncio.to_thread(primary.kill)
        await is_at(company.layers, slot, replica)
    await company.settle_what_may_be_lost()
    company.assert_order()
    told = {group for notice in company.notices for group in notice["groups"]}
    assert {notice["reason"] for notice in company.notices} == {"server_changed"}
    assert told >= {group for group in GROUPS if slot_of_group(company.layers[0], group) == slot}
    for (receiver, _, name), numbers in company.missing().items():
        assert name in told or name == company.channels[receiver], (name, numbers)


@pytest.mark.slow
async def test_lost_tail(redis_cluster: Cluster, company: Company) -> None:
    """Messages that only the dead primary had are gone: every group of its partition gets one notice."""
    await company.join("room")
    slot = slot_of_group(company.layers[0], "room")
    primary = redis_cluster.node_of(slot)
    replica = replica_of(redis_cluster, primary)
    company.send_to_all(5)
    await company.settle()
    replica.freeze()
    await asyncio.to_thread(primary.command, "CLIENT", "KILL", "TYPE", "replica")
    await asyncio.gather(*company.send(0, "room", 3))
    await asyncio.to_thread(primary.kill)
    replica.thaw()
    await is_at(company.layers, slot, replica)
    company.send(0, "room", 3)
    await company.settle_what_may_be_lost()
    company.assert_order()
    for number in range(2):
        told = [each for each in company.notices_of[number] if "room" in each["groups"]]
        assert [each["reason"] for each in told] == ["server_changed"]


@pytest.mark.slow
async def test_no_primary_with_full_coverage(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """
    All nodes refuse all commands while one slot has no primary: sends wait, subscriptions and connections to
    other nodes stay. When the primary is back, they are sent in order; only the groups of its slots are told.
    """
    company = Company([await make_on_cluster(send_timeout=30) for _ in range(2)])
    await company.join(*GROUPS)
    layer = company.layers[0]
    primary = redis_cluster.node_of(slot_of_group(layer, GROUPS[0]))
    await asyncio.to_thread(replica_of(redis_cluster, primary).kill)
    await asyncio.to_thread(primary.kill)
    others = redis_cluster.primaries()
    await eventually(
        lambda: all(node.cluster_info()["cluster_state"] == "fail" for node in others), "the end of service"
    )
    topics = topics_at(others)
    wires = wires_to(company.layers, others)
    waiting = [task for number in range(2) for group in GROUPS for task in company.send(number, group, 3)]
    impatient = await make_on_cluster()
    with pytest.raises(LayerUnavailable, match=f"{primary.address}.* Nobody listens there"):
        await impatient.group_send(GROUPS[0], note(1))
    assert all("errorstat_CLUSTERDOWN" in node.info("errorstats") for node in others)
    assert not any(task.done() for task in waiting)
    assert topics_at(others) >= topics
    assert wires_to(company.layers, others) == wires
    await asyncio.to_thread(primary.restart)
    await asyncio.gather(*waiting)
    await company.settle_what_may_be_lost()
    company.assert_order()
    assert wires_to(company.layers, others) == wires
    told = {group for notice in company.notices for group in notice["groups"]}
    assert {redis_cluster.node_of(slot_of_group(layer, group)) for group in told} <= {primary}
    assert {name for _, _, name in company.missing()} <= {*told, *company.channels}
    await company.leave()


def wires_to(layers: list[AsyncQueueChannelLayer], nodes: list[Node]) -> set[tuple[int, str, object]]:
    """The connections of sessions to some nodes, both of each node."""
    ports = {node.port for node in nodes}
    return {
        (number, node.address, connection.wire)
        for number, layer in enumerate(layers)
        for node in redis_bus_of(layer).nodes
        if isinstance(node, ClusterNode) and node.place[1] in ports
        for connection in (node.pushes, node.commands)
    }


def topics_at(nodes: list[Node]) -> set[bytes]:
    """The sharded channels that are subscribed to at some nodes."""
    return {topic for node in nodes for topic in node.command("PUBSUB", "SHARDCHANNELS")}


@pytest.mark.slow
async def test_all_addresses_new(prefix: str) -> None:
    """
    Where no node is left that was ever learned, the nodes of the settings are asked again: another cluster
    may be there.
    """
    with Cluster(replicas=0) as first, Cluster(replicas=0) as second:
        hosts = [f"redis+cluster://{first.nodes[0].address},{second.nodes[0].address}"]
        async with contract.layers(hosts=hosts, prefix=prefix, on_loss="lost", send_timeout=20) as make_layer:
            layer = await make_layer()
            channel = await layer.new_channel()
            await layer.group_add("room", channel)
            await layer.group_send("room", note(1))
            assert await receive(layer, channel) == note(1)
            await asyncio.to_thread(first.stop)
            # It may be sent before the layer has subscribed there: that is reported.
            await layer.group_send("room", note(2))
            lost = {"type": "lost", "reason": "server_changed", "groups": ["room"]}
            while await receive(layer, channel) != lost:
                pass
            await layer.group_send("room", note(3))
            while await receive(layer, channel) != note(3):
                pass


@pytest.mark.slow
async def test_all_seeds_dead(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """Where all nodes of the settings are dead, those that were learned are asked."""
    seed = redis_cluster.primaries()[0]
    layer = await make_on_cluster(hosts=[f"redis+cluster://{seed.address}"])
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    replica = replica_of(redis_cluster, seed)
    await asyncio.to_thread(seed.kill)
    await eventually(lambda: replica.role == "master", "the failover")
    for group in [f"group-{number}" for number in range(30)]:
        await layer.group_add(group, channel)
        await layer.group_send(group, note(1))
        while (message := await receive(layer, channel))["type"] == "lost":
            pass
        assert message == note(1)


@pytest.mark.slow
async def test_session_made_while_a_node_is_down(redis_cluster: Cluster, make_on_cluster: MakeLayer) -> None:
    """A session that begins between a death and the promotion works as soon as the cluster does."""
    seed = redis_cluster.primaries()[0]
    await asyncio.to_thread(seed.kill)
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    for group in GROUPS:
        await layer.group_add(group, channel)
        await layer.group_send(group, note(1))
        assert await receive(layer, channel) == note(1)
