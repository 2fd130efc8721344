"""The contract of histories, on every kind of bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests import contract
from tests.contract import LetTimePass, MakeLayer
from tests.contract.history import HistoryResumes as TestHistoryResumes
from tests.contract.history import Pages as TestPages

__all__ = ["TestHistoryResumes", "TestPages"]


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


@pytest.fixture
def let_time_pass() -> LetTimePass:
    return contract.time_passes
