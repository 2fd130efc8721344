"""The contract of a layer on each other topology: several hosts, Sentinel, TLS, a Unix socket."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.certificates import tls_options
from tests.contract import LetTimePass, MakeLayer
from tests.contract.channels import Channels as TestChannels
from tests.contract.closing import Closing as TestClosing
from tests.contract.encryption import SharedEncryption as TestSharedEncryption
from tests.contract.flush import Flush as TestFlush
from tests.contract.groups import Groups as TestGroups
from tests.contract.history import HistoryResumes as TestHistoryResumes
from tests.contract.history import Pages as TestPages
from tests.contract.messages import Messages as TestMessages
from tests.contract.names import Names as TestNames
from tests.contract.operating import Operating as TestOperating
from tests.contract.resume import Resumes as TestResumes
from tests.contract.shared_channels import SharedChannels as TestSharedChannels
from tests.contract.shared_groups import SharedGroups as TestSharedGroups
from tests.contract.statistics import Idle as TestIdle
from tests.contract.statistics import Statistics as TestStatistics
from tests.contract.surveys import Surveys as TestSurveys
from tests.contract.waiting import Waiting as TestWaiting

pytestmark = [pytest.mark.server, pytest.mark.slow]

Hosts = list[Any]
Topology = Callable[[tuple[Path, Path]], contextlib.AbstractContextManager[Hosts]]


@contextlib.contextmanager
def two_hosts(certificate: tuple[Path, Path]) -> Iterator[Hosts]:
    with EmbeddedServer(external=False) as first, EmbeddedServer(external=False) as second:
        yield [first.url, second.url]


@contextlib.contextmanager
def a_sentinel(certificate: tuple[Path, Path]) -> Iterator[Hosts]:
    with EmbeddedServer(external=False) as master:
        watched = f"monitor mymaster 127.0.0.1 {master.port} 1"
        with EmbeddedServer(external=False, sentinel=[watched]) as sentinel:
            yield [{"sentinels": [("127.0.0.1", sentinel.port)], "master_name": "mymaster"}]


@contextlib.contextmanager
def a_unix_socket(certificate: tuple[Path, Path]) -> Iterator[Hosts]:
    with EmbeddedServer(external=False, unix=True) as server:
        yield [server.url]


@contextlib.contextmanager
def tls(certificate: tuple[Path, Path]) -> Iterator[Hosts]:
    with EmbeddedServer(external=False, requirepass="s3cret", **tls_options(*certificate)) as server:
        yield [f"rediss://:s3cret@127.0.0.1:{server.port}?ssl_ca_certs={certificate[0]}"]


# asyncio loses a TLS connection whose `open_connection()` is cancelled between the handshakes of TCP and TLS. It
# ends with its handshake, or when it is collected: in the test that has lost it.
LOST_BY_ASYNCIO = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <(socket\.socket|function _SelectorTransport\.__del__)"
    ":pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(
    scope="session",
    params=[
        two_hosts,
        pytest.param(a_sentinel, marks=pytest.mark.nightly),
        pytest.param(a_unix_socket, marks=pytest.mark.nightly),
        pytest.param(tls, marks=LOST_BY_ASYNCIO),
    ],
    ids=lambda topology: topology.__name__,
)
def topology(request: pytest.FixtureRequest, certificate: tuple[Path, Path]) -> Iterator[Hosts]:
    """The `hosts` of a topology, whose servers all its tests share."""
    start: Topology = request.param
    with start(certificate) as hosts:
        yield hosts


@pytest.fixture
async def make_layer(
    topology: Hosts, prefix: str, request: pytest.FixtureRequest
) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=topology, prefix=prefix) as make_layer:
        yield make_layer
    if request.node.get_closest_marker("filterwarnings"):
        gc.collect()


@pytest.fixture
def let_time_pass() -> LetTimePass:
    return contract.time_passes
