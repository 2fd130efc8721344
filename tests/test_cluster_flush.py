"""`flush()` on a Redis Cluster: what is deleted, wherever it is, and what stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from channels_asyncq.bus.redis.sweep import Sweep
from tests import contract
from tests.cluster_nodes import Node
from tests.clusters import Cluster
from tests.contract import MakeLayer, every, note, receive_many, started


@pytest.fixture
async def make_layer(redis_cluster: Cluster, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[redis_cluster.url], prefix=prefix) as make_layer:
        yield make_layer


def stored(node: Node, prefix: str, kind: str = "queue") -> list[bytes]:
    """The keys of a kind at a node."""
    keys: list[bytes] = node.command("KEYS", f"{prefix}:0:{{*}}:{kind}:*")
    return keys


def all_stored(cluster: Cluster, prefix: str, kind: str = "queue") -> int:
    return sum(len(stored(node, prefix, kind)) for node in cluster.primaries())


async def test_of_many_slots(make_layer: MakeLayer, redis_cluster: Cluster, prefix: str) -> None:
    """The normal channels and members of all partitions are deleted, though a page has keys of many slots."""
    layer, other = await make_layer(), await make_layer(prefix=f"{prefix}y")
    channels = [f"jobs.{n}" for n in range(200)]
    await every(layer.send(channel, note(0)) for channel in channels)
    await every(layer.group_add(f"room.{n}", "jobs") for n in range(100))
    await every(other.send(channel, note(1)) for channel in channels)
    assert all(stored(node, prefix) for node in redis_cluster.primaries())
    assert all_stored(redis_cluster, prefix, "members") == 100
    await layer.flush()
    assert all_stored(redis_cluster, prefix) == all_stored(redis_cluster, prefix, "members") == 0
    assert all_stored(redis_cluster, f"{prefix}y") == 200
    await layer.send("jobs.0", note(2))
    assert await receive_many(layer, "jobs.0", 1) == [note(2)]


async def test_of_keys_like_ours(make_layer: MakeLayer, redis_cluster: Cluster, prefix: str) -> None:
    """A key that only looks like one of the namespace stays, by its tag or by its name."""
    layer = await make_layer()
    await layer.send("jobs", note(0))
    names = [f"{prefix}:0:{{foreign}}:queue:jobs", f"{prefix}:0:{{foreign}}:queue:a:b"]
    slot = int(redis_cluster.nodes[0].command("CLUSTER", "KEYSLOT", names[0]))
    node = redis_cluster.node_of(slot)
    for name in names:
        node.command("SET", name, "x")
    await layer.flush()
    assert all_stored(redis_cluster, prefix) == 2
    node.command("UNLINK", *names)


async def test_while_a_slot_moves_to_a_node_that_was_swept(
    make_layer: MakeLayer, redis_cluster: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that move from a node that was not swept yet to one that was are deleted there."""
    layer = await make_layer()
    session = await make_layer()
    channels = [f"jobs.{n}" for n in range(200)]
    await every(session.send(channel, note(0)) for channel in channels)
    first, *_, last = redis_cluster.primaries()
    key = stored(last, prefix)[0]
    slot = int(last.command("CLUSTER", "KEYSLOT", key))
    confirm, confirmed = Sweep._confirm, 0

    async def confirm_and_move(sweep: Sweep, partitions: object) -> None:
        nonlocal confirmed
        confirmed += 1
        await confirm(sweep, partitions)  # type: ignore[arg-type]
        if confirmed == 1:
            await asyncio.to_thread(redis_cluster.migrate_classic, slot, first)
            assert key in stored(first, prefix)

    monkeypatch.setattr(Sweep, "_confirm", confirm_and_move)
    await layer.flush()
    assert confirmed == 4
    assert all_stored(redis_cluster, prefix) == 0


async def test_while_a_slot_is_half_moved(make_layer: MakeLayer, redis_cluster: Cluster, prefix: str) -> None:
    """A flush waits for a move that is under way, and finds the keys that had gone ahead."""
    layer = await make_layer()
    await every(layer.send(f"jobs.{n}", note(0)) for n in range(1000))
    first, second, _ = redis_cluster.primaries()
    slot = int(first.command("CLUSTER", "KEYSLOT", stored(first, prefix)[0]))
    steps = redis_cluster.classic_steps(slot, second, batch=2)

    def until(name: str) -> None:
        assert any(step == name for step in steps)

    await asyncio.to_thread(until, "batch")
    flushing = await started(layer.flush())
    assert second.command("CLUSTER", "COUNTKEYSINSLOT", slot) >= 1
    assert first.command("CLUSTER", "COUNTKEYSINSLOT", slot) >= 1
    await asyncio.to_thread(list, steps)
    await every([flushing])
    assert all_stored(redis_cluster, prefix) == 0
