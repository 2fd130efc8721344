"""Loops, threads, sync code, forks and processes on a Redis Cluster: as on one server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from channels_asyncq import AsyncQueueChannelLayer, get_layer
from tests.clusters import Cluster
from tests.contract import DEADLINE
from tests.test_contract_loops import (
    MakeLayerAnywhere,
    TestLayersThatAreDropped,
    TestLoopAfterLoop,
    TestLoopsTogether,
)
from tests.test_processes import TestForks, TestGroups, TestNormalChannels, config
from tests.test_sync import TestSends

__all__ = [
    "TestForks",
    "TestGroups",
    "TestLayersThatAreDropped",
    "TestLoopAfterLoop",
    "TestLoopsTogether",
    "TestNormalChannels",
    "TestSends",
    "config",
]

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def redis_url(shared_redis_cluster: Cluster) -> str:
    return shared_redis_cluster.url


@pytest.fixture
def make_layer(redis_url: str, prefix: str) -> Iterator[MakeLayerAnywhere]:
    """Make layers outside of any loop; all are closed at the end, from a loop of its own."""
    made: list[AsyncQueueChannelLayer] = []

    def make_layer(**config: Any) -> AsyncQueueChannelLayer:
        made.append(AsyncQueueChannelLayer(**{"hosts": [redis_url], "prefix": prefix, **config}))
        return made[-1]

    yield make_layer

    async def close() -> None:
        async with asyncio.timeout(DEADLINE):
            for layer in made:
                await layer.close()

    asyncio.run(close())


@pytest.fixture
def layer(redis_url: str, prefix: str) -> Iterator[AsyncQueueChannelLayer]:
    """A layer as CHANNEL_LAYERS["default"]."""
    config = {"hosts": [redis_url], "prefix": prefix, "capacity": 5, "max_message_size": 10_000}
    backend = "channels_asyncq.AsyncQueueChannelLayer"
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": backend, "CONFIG": config}}):
        yield get_layer()
