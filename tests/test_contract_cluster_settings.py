"""What two processes share, on a Redis Cluster with other settings than the usual ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests import contract
from tests.clusters import Cluster
from tests.contract import MakeLayer
from tests.contract.shared_channels import SharedChannels as TestSharedChannels
from tests.contract.shared_groups import SharedGroups as TestSharedGroups

__all__ = ["TestSharedChannels", "TestSharedGroups"]

pytestmark = [pytest.mark.server, pytest.mark.slow]

SETTINGS: dict[str, dict[str, Any]] = {
    "sealed": {"symmetric_encryption_keys": ["key"]},
    "unlogged": {"recovery": None},
    "few": {"partitions": 16},
    "many": {"partitions": 256},
}


NIGHTLY = {"few", "many"}


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.nightly] * (name in NIGHTLY)) for name in SETTINGS]
)
async def make_layer(
    request: pytest.FixtureRequest, shared_redis_cluster: Cluster, prefix: str
) -> AsyncIterator[MakeLayer]:
    config = SETTINGS[request.param]
    async with contract.layers(hosts=[shared_redis_cluster.url], prefix=prefix, **config) as make_layer:
        yield make_layer
