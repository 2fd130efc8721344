"""Events that meet the nodes and partitions of a real cluster in the middle of something else."""

from __future__ import annotations

import asyncio

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis import checkpoint
from tests.cluster_sessions import router_of
from tests.contract import MakeLayer

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
