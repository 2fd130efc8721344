"""The contract of channels that come back, on every kind of bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests import contract
from tests.contract import MakeLayer
from tests.contract.resume import Positions as TestPositions
from tests.contract.resume import Refusals as TestRefusals
from tests.contract.resume import Resumes as TestResumes
from tests.contract.resume import Subscriptions as TestSubscriptions
from tests.contract.resume import Threads as TestThreads

__all__ = ["TestPositions", "TestRefusals", "TestResumes", "TestSubscriptions", "TestThreads"]


@pytest.fixture(
    params=[
        "memory",
        *(pytest.param(kind, marks=pytest.mark.server) for kind in ("redis", "sealed", "hosts", "cluster")),
    ]
)
async def make_layer(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[MakeLayer]:
    config: dict[str, Any] = {"hosts": ["memory://"]}
    if request.param == "cluster":
        config["hosts"] = [request.getfixturevalue("redis_cluster").url]
    elif request.param != "memory":
        config["hosts"] = [request.getfixturevalue("redis_url")]
    if request.param == "sealed":
        config["symmetric_encryption_keys"] = ["key"]
    if request.param == "hosts":
        config["hosts"].append(request.getfixturevalue("own_redis_server").url)
    async with contract.layers(**config, prefix=prefix) as make_layer:
        yield make_layer
