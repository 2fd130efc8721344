"""Fences on a slow connection, or behind messages that are not taken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from channels_asyncq.bus.redis.checkpoint import Checkpoint
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.testing import EmbeddedServer
from tests.buses import (
    PAYLOAD,
    MakeOwner,
    Owner,
    send_some,
)
from tests.chaos.proxy import proxied
from tests.contract import eventually, every
from tests.fences import fence_every


async def test_fence_behind_a_message_that_takes_long(
    make_owner: MakeOwner, redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener is not deaf while a message arrives over a slow link: it may be in no log."""
    fence_every(monkeypatch, 0.05, longest=0.3)
    async with proxied(redis_server.port) as proxy:
        owner = await make_owner(proxy.url, recovery={}, send_timeout=5.0)
        await owner.join()
        proxy.delays["down"] = lambda: 0.02
        large = Codec().encode({"type": "test.note", "text": "x" * 4_000_000})
        await every([owner.group_send("room", large)])
        await eventually(lambda: owner.arrived, "the message")
        assert owner.events == ["up"] and owner.losses == []


async def test_lease_while_a_fence_is_waited_for(
    make_owner: MakeOwner, redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """A fence may be under way for longer than a lease holds; it is renewed meanwhile."""
    fence_every(monkeypatch, 0.05, longest=0.3)
    async with proxied(redis_server.port) as proxy:
        owner = await make_owner(proxy.url, recovery={}, send_timeout=5.0)
        await owner.join()
        proxy.delays["down"] = lambda: 0.02
        large = Codec().encode({"type": "test.note", "text": "x" * 4_000_000})
        sending = asyncio.gather(owner.group_send("room", large))
        ends = set()
        while not owner.arrived:
            ends.add(redis_server.command("ZRANGE", f"{prefix}:0:layouts", 0, -1, "WITHSCORES")[1])
            await asyncio.sleep(0.01)
        await sending
        assert len(ends) > 4


async def test_a_fence_behind_a_held_message(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is too busy to read for longer than a fence may take is not deaf: the connection stays."""
    await owner.join()
    looks = 0
    is_deaf = Checkpoint._is_deaf

    def look(self: Checkpoint, *arguments: Any) -> None:
        nonlocal looks
        looks += 1
        is_deaf(self, *arguments)

    monkeypatch.setattr(Checkpoint, "_is_deaf", look)
    fence_every(monkeypatch, 0.01, longest=0.01)
    owner.takes = False
    await every(send_some(owner, "room", PAYLOAD))
    await eventually(lambda: owner.offered, "the one that is not taken")
    for node in owner.bus.nodes:
        node.checkpoint.send_in(0.0)
    await eventually(lambda: looks >= 4, "looks for a fence that is not there")
    assert [link.reconnects for link in owner.bus.connections.links()] == [0]
    owner.takes = True
    owner.bus.pubsub.resume()
    await eventually(lambda: owner.arrived, "the message")


async def test_the_next_fence_is_due_when_one_has_arrived(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time after which a connection is deaf is not waited for, whether the reply or the fence came first."""
    fence_every(monkeypatch, 0.01, longest=60)
    await owner.join()
    checkpoints = [node.checkpoint for node in owner.bus.nodes]
    for checkpoint in checkpoints:
        checkpoint.stop()
        checkpoint.send_in(0.0)
    numbers = [checkpoint._number for checkpoint in checkpoints]
    await eventually(
        lambda: all(each._number > number + 5 for each, number in zip(checkpoints, numbers, strict=True)),
        "more fences",
    )
