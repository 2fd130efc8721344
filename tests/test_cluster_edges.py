"""Events that meet the nodes and partitions of a real cluster in the middle of something else."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis import checkpoint
from channels_asyncq.bus.redis.node import Node
from channels_asyncq.bus.redis.partition import Partition
from tests.cluster_sessions import partition_of, router_of, slot_of_group
from tests.contract import DEADLINE, MakeLayer, eventually, note, receive

pytestmark = pytest.mark.server


async def joined(layer: AsyncQueueChannelLayer, groups: int = 20) -> str:
    """A channel in so many groups that each node has some of them."""
    channel = await layer.new_channel()
    await asyncio.gather(*(layer.group_add(f"room-{number}", channel) for number in range(groups)))
    return channel


# Fences


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


# Homes in doubt


def partition_of_group(layer: AsyncQueueChannelLayer, group: str) -> Partition:
    """The partition of a group in the running loop's session."""
    return partition_of(layer, slot_of_group(layer, group))


def unread(layer: AsyncQueueChannelLayer) -> Iterator[str]:
    """Yield groups of partitions that are not read."""
    for number in itertools.count():
        if partition_of_group(layer, f"other-{number}").is_away:
            yield f"other-{number}"


async def commands_lost(node: Node) -> None:
    """Return when a node has lost its connection for commands: its partitions are in doubt until it has another."""
    wire = node.commands.wire
    assert wire is not None
    wire.abort(ConnectionResetError("cut by the test"))
    while node.commands.wire is not None:
        await asyncio.sleep(0)


async def test_join_while_the_home_is_in_doubt(make_on_cluster: MakeLayer) -> None:
    """A group whose partition is not read yet, and whose home is in doubt, is joined when the home is up again."""
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
    """A partition whose subscriptions have ended is read again when its home is up, though nobody searched for it."""
    layer = await make_on_cluster()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    partition = partition_of_group(layer, "room")
    await commands_lost(partition.home)
    router_of(layer).left(partition)
    await eventually(lambda: partition.is_live, "the reading")
    await layer.group_send("room", note(1))
    assert await receive(layer, channel) == note(1)
