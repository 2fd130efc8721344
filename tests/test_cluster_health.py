"""health(), statistics and notices of outages on a Redis Cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq import AsyncQueueChannelLayer
from tests import contract
from tests.clusters import Cluster
from tests.contract import DEADLINE, MakeLayer, eventually, every, members_of, note, receive, receive_many
from tests.sessions import bus_of, shorten_send_timeout


@pytest.fixture
async def make_layer(redis_cluster: Cluster, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[redis_cluster.url], prefix=prefix) as make_layer:
        yield make_layer


def addresses(cluster: Cluster) -> set[str]:
    return {f"redis://{node.address}/0" for node in cluster.primaries()}


def slot_of(cluster: Cluster, layer: AsyncQueueChannelLayer, group: str) -> int:
    return int(cluster.nodes[0].command("CLUSTER", "KEYSLOT", layer.topic_of_group(group)))


async def test_of_a_new_layer(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """The first question of all is answered for each primary, and not for the first node alone."""
    layer = await make_layer()
    health = await layer.health()
    assert health.ok
    assert {host.address for host in health.hosts} == addresses(redis_cluster)
    assert [(host.state, host.reason) for host in health.hosts] == 3 * [("connected", "")]
    assert all(host.seconds is not None for host in health.hosts)
    assert {link.address for link in layer.statistics().links} == addresses(redis_cluster)
    assert layer.statistics().connected


async def test_of_a_new_layer_whose_first_node_is_gone(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """A node of the settings that does not answer is no node in use: health is that of the others."""
    url = redis_cluster.url.replace("//", "//127.0.0.1:1,")
    health = await (await make_layer(hosts=[url])).health()
    assert health.ok
    assert {host.address for host in health.hosts} == addresses(redis_cluster)


async def test_without_any_node(make_layer: MakeLayer) -> None:
    """If no node of the settings answers, the reason is that of the first, then at once."""
    layer = await make_layer(hosts=["redis+cluster://127.0.0.1:1,127.0.0.1:2"], send_timeout=0.5)
    for _ in range(2):
        health = await layer.health(1.0)
        [host] = health.hosts
        assert not health.ok and host.state == "connecting"
        assert "127.0.0.1:1" in host.address and "Nobody listens there" in host.reason
        with pytest.raises(ConnectionError, match="Nobody listens there"):
            await layer.group_send("room", note(1))
    assert layer.statistics().connected is False


async def test_where_nobody_listens(make_layer: MakeLayer) -> None:
    """Nodes that refuse are known when each was asked once: the check does not wait for its time."""
    layer = await make_layer(hosts=["redis+cluster://127.0.0.1:1,127.0.0.1:2"], send_timeout=300.0)
    async with asyncio.timeout(DEADLINE):
        [host] = (await layer.health()).hosts
    assert "Nobody listens there" in host.reason
    assert "Nobody listens there" in (await layer.faults())[host.address]


async def test_while_a_slot_is_open(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """A partition that cannot be used is named with its slot, by health() and by a send."""
    layer = await make_layer()
    await members_of(layer, "room", 1)
    shorten_send_timeout(bus_of(layer), 0.5)
    slot = slot_of(redis_cluster, layer, "room")
    target = next(node for node in redis_cluster.primaries() if node is not redis_cluster.node_of(slot))
    steps = redis_cluster.classic_steps(slot, target)
    assert [next(steps), next(steps), next(steps)] == ["importing", "migrating", "batch"]
    health = await layer.health(2.0)
    assert [host.reason for host in health.hosts if not host.ok] == [f"slot {slot} is migrating"]
    with pytest.raises(ConnectionError, match=f"slot {slot} is migrating"):
        await layer.group_send("room", note(1))
    await asyncio.to_thread(list, steps)
    assert (await layer.health(contract.DEADLINE)).ok


async def test_slots_without_a_primary(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """Slots that no node has are named."""
    layer = await make_layer()
    (member,) = await members_of(layer, "room", 1)
    shorten_send_timeout(bus_of(layer), 0.5)
    slot = slot_of(redis_cluster, layer, "room")
    for node in redis_cluster.primaries():
        node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
    owner = redis_cluster.node_of(slot)
    for node in redis_cluster.living():
        node.command("CLUSTER", "DELSLOTS", slot)
    with pytest.raises(ConnectionError, match=f"no primary for slots {slot}-{slot}"):
        await layer.group_send("room", note(1))
    health = await layer.health(2.0)
    assert [host.reason for host in health.hosts if not host.ok] == [f"no primary for slots {slot}-{slot}"]
    owner.command("CLUSTER", "ADDSLOTS", slot)
    health = await layer.health(contract.DEADLINE)
    assert health.ok, [host for host in health.hosts if not host.ok]
    await layer.group_send("room", note(2))
    assert await receive(layer, member) == note(2)


async def test_a_move_is_no_outage(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """A slot that moves to a node that was not in use makes no notice, and the node gets its link."""
    layer = await make_layer(on_disconnect="link.down", on_reconnect="link.up")
    (member,) = await members_of(layer, "room", 1)
    slot = slot_of(redis_cluster, layer, "room")
    node = await asyncio.to_thread(redis_cluster.add_node)
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, node)
    await every(layer.group_send("room", note(n)) for n in range(5))
    assert await receive_many(layer, member, 5) == [note(n) for n in range(5)]
    health = await layer.health()
    assert health.ok
    assert {host.address for host in health.hosts} == addresses(redis_cluster)
    assert len(layer.statistics().links) == 4 and layer.statistics().reconnects == 0
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, redis_cluster.nodes[0])
    await layer.group_send("room", note(5))
    assert await receive(layer, member) == note(5)
    assert len(layer.statistics().links) == 3


async def test_lost_connections_are_an_outage(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """A connection that is lost to any node makes one notice, and its return another."""
    layer = await make_layer(on_disconnect="link.down", on_reconnect="link.up")
    member = await layer.new_channel()
    await every(layer.group_add(f"room.{n}", member) for n in range(64))
    for node in redis_cluster.primaries():
        node.command("CLIENT", "KILL", "TYPE", "pubsub")
        assert await receive_many(layer, member, 2) == [{"type": "link.down"}, {"type": "link.up"}]
    assert layer.statistics().reconnects == 3


async def test_another_session_takes_the_namespace(
    make_layer: MakeLayer, redis_cluster: Cluster, prefix: str
) -> None:
    """A session whose lease was lost to one with other settings uses no node until that has gone."""
    layer = await make_layer()
    assert (await layer.health()).ok
    for node in redis_cluster.primaries():
        for key in node.command("KEYS", f"{prefix}:0:{{*}}:layouts*"):
            node.command("UNLINK", key)
    other = await make_layer(partitions=16)
    assert (await other.health()).ok
    async with asyncio.timeout(contract.DEADLINE):
        while (health := await layer.health(0.5)).ok:
            pass
    for group in (f"room.{n}" for n in range(16)):
        with pytest.raises(ImproperlyConfigured, match="partitions: 16"):
            await layer.group_send(group, note(1))
    assert [host.ok for host in health.hosts] == [False] * len(health.hosts)
    await other.close()
    await eventually(lambda: layer.statistics().connected, "the return of the links")
    assert (await layer.health()).ok
