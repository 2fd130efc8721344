"""Slots that move between the nodes of a real cluster: nothing is lost, doubled, out of order, raised or reported."""

from __future__ import annotations

import asyncio

import pytest

from channels_asyncq import LayerUnavailable
from tests.cluster_moves import Step
from tests.cluster_nodes import Node
from tests.cluster_sessions import Company, Moving, is_at, partition_of, slot_of_group
from tests.clusters import Cluster
from tests.contract import MakeLayer, eventually, note, receive

GROUPS = [f"room-{number}" for number in range(4)]
STEPS: list[Step] = ["importing", "migrating", "batch", "keys", "target", "source", "others"]


def other_than(cluster: Cluster, node: Node) -> Node:
    """Another primary."""
    return next(each for each in cluster.primaries() if each is not node)


@pytest.fixture(params=["classic", "atomic"])
def kind(request: pytest.FixtureRequest, redis_cluster: Cluster) -> str:
    """How slots are moved."""
    if request.param == "atomic" and not redis_cluster.has_atomic:
        pytest.skip("this server cannot move slots by itself")
    return str(request.param)


async def move(cluster: Cluster, slot: int, to: Node, kind: str = "classic") -> None:
    """Move a slot without blocking the loop."""
    mover = cluster.migrate_classic if kind == "classic" else cluster.migrate_atomic
    await asyncio.to_thread(mover, slot, to)


async def test_moves_under_load(redis_cluster: Cluster, company: Company, kind: str) -> None:
    """While slots move to and fro, everything arrives once and in order, each job is taken once, nobody is told."""
    await company.join(*GROUPS)
    company.work("jobs")
    layer = company.layers[0]
    slots = sorted({slot_of_group(layer, group) for group in GROUPS})
    async with company.at_work("jobs"):
        for slot in slots:
            home = redis_cluster.node_of(slot)
            away = other_than(redis_cluster, home)
            await move(redis_cluster, slot, away, kind)
            await is_at(company.layers, slot, away)
            await move(redis_cluster, slot, home, kind)
            await is_at(company.layers, slot, home)
    await company.settle()
    company.assert_intact()


@pytest.mark.parametrize("step", STEPS)
async def test_move_stopped_at_a_step(redis_cluster: Cluster, company: Company, step: Step) -> None:
    """Wherever a move stops for a while, sends are executed or wait, in order, and go on after it."""
    await company.join("room")
    slot = slot_of_group(company.layers[0], "room")
    away = other_than(redis_cluster, redis_cluster.node_of(slot))
    company.send_to_all(20)
    moving = Moving(redis_cluster, slot, away)
    await moving.until(step)
    waiting = company.send_to_all(20)
    if step in ("migrating", "batch", "keys"):
        # The group has no normal members: half of its keys are missing.
        for layer in company.layers:
            partition = partition_of(layer, slot)
            await eventually(lambda partition=partition: partition.sender.is_paused, "the pause")  # type: ignore[misc]
        assert not all(task.done() for task in waiting)
    company.send_to_all(20)
    await moving.finish()
    await is_at(company.layers, slot, away)
    await company.settle()
    company.assert_intact()


async def test_open_slot_for_longer_than_send_timeout(
    redis_cluster: Cluster, make_on_cluster: MakeLayer
) -> None:
    """A slot that an operator leaves open stops its groups: the error says so. When it is closed, they work."""
    layer = await make_on_cluster(send_timeout=0.5)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    slot = slot_of_group(layer, "room")
    moving = Moving(redis_cluster, slot, other_than(redis_cluster, redis_cluster.node_of(slot)))
    await moving.until("migrating")
    for _ in range(2):
        with pytest.raises(LayerUnavailable, match=f"slot {slot} is migrating"):
            await layer.group_send("room", note(1))
    await asyncio.to_thread(redis_cluster.close_slot, slot)

    async def works() -> bool:
        try:
            await layer.group_send("room", note(2))
        except LayerUnavailable:
            return False
        return True

    async with asyncio.timeout(5):
        while not await works():
            await asyncio.sleep(0.01)
    assert await receive(layer, channel) == note(2)
