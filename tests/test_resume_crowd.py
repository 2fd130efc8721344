"""Thirty readers that come and go at random: each message once, in order, and no reset."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis import bus
from channels_asyncq.bus.redis.shared import Shared
from channels_asyncq.testing import EmbeddedServer
from tests.contract import eventually
from tests.resumes import Crowd
from tests.routers import MovingRouter

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(150)]

Trouble = Callable[[], Awaitable[None]]


@contextlib.asynccontextmanager
async def layers(server: EmbeddedServer, prefix: str) -> AsyncIterator[list[AsyncQueueChannelLayer]]:
    """Three sessions, with channels that overflow now and then."""
    made = [
        AsyncQueueChannelLayer(hosts=[server.url], prefix=prefix, capacity=200, send_timeout=10)
        for _ in range(3)
    ]
    try:
        yield made
    finally:
        for layer in made:
            await layer.close()


async def run_with(
    crowd: Crowd, trouble: Trouble, seconds: float, is_enough: Callable[[], bool] = lambda: True
) -> None:
    """Make trouble again and again for so many seconds, and on a slow machine longer: until that is enough."""

    async def again_and_again() -> None:
        while not crowd.is_over:
            await trouble()

    task = asyncio.create_task(again_and_again())
    try:
        await crowd.run(seconds, is_enough)
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def nothing() -> None:
    await asyncio.sleep(1)


def assert_whole(crowd: Crowd) -> None:
    assert crowd.resets() == Counter()
    assert crowd.wrong() == []
    for layer in crowd.layers:
        statistics = layer.statistics()
        assert statistics.refused == {}


SECONDS = 20.0


async def test_they_come_and_go(own_redis_server: EmbeddedServer, prefix: str) -> None:
    """With four senders, in three sessions."""
    async with layers(own_redis_server, prefix) as made:
        crowd = Crowd(made, seed=1)
        await crowd.gather(readers=30, senders=4, groups=12)
        await run_with(crowd, nothing, SECONDS, lambda: crowd.visits > 300 and crowd.messages > 3000)
        assert crowd.visits > 300
        assert crowd.messages > 3000
        assert_whole(crowd)


async def test_they_come_and_go_while_connections_are_killed(
    own_redis_server: EmbeddedServer, prefix: str
) -> None:
    """
    The connections for pushes are killed every 150 ms: what is in memory is forgotten each time.

    Every other kill waits up to a second until all are up again: a server that never lets them come up is out.
    The others hit set-ups that are under way.
    """
    kills = itertools.count()

    def is_connected() -> bool:
        return all(link.state == "connected" for each in made for link in each.statistics().links)

    async def kill() -> None:
        await asyncio.sleep(0.15)
        if next(kills) % 2:
            with contextlib.suppress(pytest.fail.Exception):
                await eventually(is_connected, "all connections", within=1)
        await asyncio.to_thread(own_redis_server.command, "CLIENT", "KILL", "TYPE", "pubsub")

    async with layers(own_redis_server, prefix) as made:
        crowd = Crowd(made, seed=2, pause=0.1)
        await crowd.gather(readers=30, senders=4, groups=12)
        await run_with(crowd, kill, SECONDS)
        assert_whole(crowd)


async def test_they_come_and_go_while_partitions_move(
    own_redis_server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read of a partition that has moved does not count: pushes come over another connection."""
    routers: list[MovingRouter] = []
    loop = asyncio.get_running_loop()

    def make(shared: Shared) -> MovingRouter:
        router = MovingRouter(shared)
        if shared.loop is loop:  # and not the relay's
            routers.append(router)
        return router

    monkeypatch.setattr(bus, "router_for", make)
    chance = random.Random(3)

    async def move() -> None:
        await asyncio.sleep(chance.random() * 0.1)
        for router in routers:
            router.move(chance.randrange(16))

    async with layers(own_redis_server, prefix) as made:
        crowd = Crowd(made, seed=3)
        await crowd.gather(readers=30, senders=4, groups=12)
        await run_with(crowd, move, SECONDS)
        assert_whole(crowd)
