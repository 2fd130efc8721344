"""The contract of a layer, and that of a bus, on a Redis Cluster of three primaries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.testing import server_binaries
from tests import contract
from tests.cluster_nodes import version_of
from tests.clusters import Cluster
from tests.contract import LetTimePass, MakeLayer
from tests.contract.buses import (
    ConnectionRules,
    LogRules,
    MakeSession,
    MemberRules,
    PubSubRules,
    WorkQueueRules,
)
from tests.contract.channels import Channels as TestChannels
from tests.contract.closing import Closing as TestClosing
from tests.contract.encryption import SharedEncryption as TestSharedEncryption
from tests.contract.flush import Flush as TestFlush
from tests.contract.groups import Groups as TestGroups
from tests.contract.messages import Messages as TestMessages
from tests.contract.names import Names as TestNames
from tests.contract.operating import Operating as TestOperating
from tests.contract.shared_channels import SharedChannels as TestSharedChannels
from tests.contract.shared_groups import SharedGroups as TestSharedGroups
from tests.contract.statistics import Idle as TestIdle
from tests.contract.statistics import Statistics as TestStatistics
from tests.contract.surveys import Surveys as TestSurveys
from tests.contract.waiting import Waiting as TestWaiting
from tests.test_contract_buses import Recorder

pytestmark = pytest.mark.server

# The preferred one is quick; any other is another version or another project.
BINARIES = sorted(server_binaries(), key=version_of, reverse=True)


@pytest.fixture(
    scope="session",
    params=[pytest.param(each, marks=pytest.mark.slow if each != BINARIES[0] else ()) for each in BINARIES],
    ids=[f"{name}-{version[0]}" for name, version in map(version_of, BINARIES)],
)
def plain_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three primaries without replicas, which no test harms."""
    with Cluster(replicas=0, binary=request.param) as cluster:
        yield cluster


@pytest.fixture
async def make_layer(plain_cluster: Cluster, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[plain_cluster.url], prefix=prefix) as make_layer:
        yield make_layer


@pytest.fixture
def let_time_pass() -> LetTimePass:
    return contract.time_passes


@pytest.fixture
async def make_session(plain_cluster: Cluster, prefix: str) -> AsyncIterator[MakeSession]:
    """Make sessions of one namespace; their buses are started, and closed at the end."""
    made: list[Recorder] = []

    async def make_session() -> Recorder:
        session = Recorder(plain_cluster.url, prefix)
        session.bus = RedisBus(session.options, session.topics, Codec(), session.session_id, session)
        session.bus.start()
        made.append(session)
        return session

    yield make_session
    for session in made:
        await session.bus.close()


class TestBusPubSub(PubSubRules): ...


class TestBusWorkQueues(WorkQueueRules): ...


class TestBusMembers(MemberRules): ...


class TestBusLog(LogRules): ...


class TestBusConnections(ConnectionRules): ...
