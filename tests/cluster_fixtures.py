"""A cluster of each server that there is, for the tests of the servers and of the cluster of the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from channels_asyncq.testing import server_binaries
from tests.cluster_nodes import Node
from tests.clusters import Cluster

#: The slot of names with the hash tag `0`.
SLOT = 13907


@pytest.fixture(scope="module", params=server_binaries(), ids=os.path.basename)
def started(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of each server that there is."""
    with Cluster(binary=request.param) as cluster:
        yield cluster


@pytest.fixture
def cluster(started: Cluster) -> Iterator[Cluster]:
    """The cluster, put back after the test."""
    yield started
    started.restore()


@pytest.fixture
def source(cluster: Cluster) -> Node:
    """The node that has the slot at first."""
    return cluster.nodes[2]


@pytest.fixture
def target(cluster: Cluster) -> Node:
    """Another primary."""
    return cluster.nodes[0]
