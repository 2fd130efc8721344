"""What every test module shares: Django's settings, a server, and names of the test's own."""

import inspect
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import django
import hypothesis
import pytest

from channels_asyncq.local import flow
from channels_asyncq.stopping import signals
from channels_asyncq.stopping.signals import StopSignals
from channels_asyncq.testing import EmbeddedServer
from tests import buses, contract
from tests.certificates import make_certificate
from tests.cluster_sessions import Company
from tests.clusters import Cluster
from tests.resp_server import RespServer

# Not in pyproject.toml: pytest-django would import the settings before pytest knows the folder they are in.
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
# For the same reason pytest-django has not done this: it found no settings when it looked.
django.setup()

# A shell that starts the tests in the background has them ignore SIGINT, and the servers that they start would
# inherit that; a handler is not inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

_numbers = itertools.count(1)

#: Who uses or names one of these has a server; any other test that starts one says `@pytest.mark.server`.
SERVER_FIXTURES = {"redis_server", "own_redis_server", "asyncq_redis_server", "server", "redis_cluster"}
SERVER_CLASSES = {"EmbeddedServer", "RespServer", "Cluster"}
SERVER_MODULES = {"tests.test_testing", "tests.test_clusters", "tests.test_cluster_facts"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark with `server` what wants one: by its fixtures, its code, its module, or a parameter "redis"."""
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if (
            not SERVER_FIXTURES.isdisjoint(item.fixturenames)
            or not SERVER_CLASSES.isdisjoint(inspect.unwrap(item.function).__code__.co_names)
            or item.module.__name__ in SERVER_MODULES
            or any(isinstance(value, str) and value == "redis" for value in parameters)
        ):
            item.add_marker("server")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`, one more than there are cores: much of their time tests wait for servers and deadlines."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Let the workers of pytest-xdist begin without the settings, as this process did; each sets them itself."""
    del os.environ["DJANGO_SETTINGS_MODULE"]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer]:
    """A server that all tests of this run share; they keep apart by `prefix`."""
    with EmbeddedServer(external=False) as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and localhost, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1,DNS:localhost")


@pytest.fixture
async def server(redis_server: EmbeddedServer) -> AsyncIterator[RespServer]:
    """The shared server behind a proxy whose answers the test chooses."""
    async with RespServer(redis_server) as server:
        yield server


@pytest.fixture
def own_redis_server() -> Iterator[EmbeddedServer]:
    """A server of this test alone, to pause, kill and restart."""
    with EmbeddedServer(external=False) as server:
        yield server


@pytest.fixture(scope="session")
def shared_redis_cluster() -> Iterator[Cluster]:
    """Three primaries with a replica each; tests use it as `redis_cluster`, which puts it back after them."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(shared_redis_cluster: Cluster) -> Iterator[Cluster]:
    """
    A cluster that the tests of this run share, one after the other, and may harm: it is put back after each.

    What kills or freezes a node is marked `slow`: the new start takes two seconds.
    """
    yield shared_redis_cluster
    shared_redis_cluster.restore()


@pytest.fixture
async def make_on_cluster(redis_cluster: Cluster, prefix: str) -> AsyncIterator[contract.MakeLayer]:
    """Make layers on the cluster, with 16 partitions and notices of losses; they are closed at the end."""
    defaults = {"prefix": prefix, "partitions": 16, "on_loss": "lost", "capacity": 100_000}
    async with contract.layers(hosts=[redis_cluster.url], **defaults) as make_layer:
        yield make_layer


@pytest.fixture
async def company(make_on_cluster: contract.MakeLayer) -> AsyncIterator[Company]:
    """Two sessions on the cluster, which are in no group yet."""
    company = Company([await make_on_cluster(), await make_on_cluster()])
    yield company
    await company.leave()


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> str:
    """The URL of the shared server."""
    return redis_server.url


@pytest.fixture
def prefix() -> str:
    """A prefix no other test has, here or in a process beside this one."""
    return f"t{os.getpid()}x{next(_numbers)}"


@pytest.fixture
async def make_layer(redis_url: str, prefix: str) -> AsyncIterator[contract.MakeLayer]:
    """Make layers on the shared server, with `config` on top of it; they are closed when the test ends."""
    async with contract.layers(hosts=[redis_url], prefix=prefix) as make_layer:
        yield make_layer


@pytest.fixture
async def make_memory(prefix: str) -> AsyncIterator[contract.MakeLayer]:
    """Make layers on `memory://`; they are closed when the test ends."""
    async with contract.layers(hosts=["memory://"], prefix=prefix) as make_layer:
        yield make_layer


@pytest.fixture
def make_redis(make_layer: contract.MakeLayer) -> contract.MakeLayer:
    """`make_layer`, under a name that says what it is where a test uses other buses too."""
    return make_layer


@pytest.fixture
async def make_scripted(server: RespServer, prefix: str) -> AsyncIterator[contract.MakeLayer]:
    """Make layers on the server whose answers the test chooses."""
    async with contract.layers(
        hosts=[server.url], prefix=prefix, send_timeout=contract.SEND_TIMEOUT
    ) as make_layer:
        yield make_layer


@pytest.fixture
def publish(redis_server: EmbeddedServer, prefix: str) -> contract.Publish:
    """PUBLISH on a topic named without its `<prefix>:0:`, as any client of the server would."""

    def publish(topic: str, payload: str | bytes) -> int:
        return int(redis_server.command("PUBLISH", f"{prefix}:0:{topic}", payload))

    return publish


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait for readers costs what one envelope earns: how fast the machine is does not decide who keeps up."""
    monkeypatch.setattr(flow, "DEAREST_WAIT", flow.PER_ENVELOPE)


@pytest.fixture
async def make_owner(prefix: str) -> AsyncIterator[buses.MakeOwner]:
    """Make an owner of a bus on a URL; its bus is started, and closed at the end."""
    async with buses.owners(prefix) as make_owner:
        yield make_owner


@pytest.fixture
async def owner(make_owner: buses.MakeOwner, server: RespServer) -> buses.Owner:
    """An owner whose bus is up, behind the proxy."""
    # What succeeds within it must do so on a busy machine too, after six tenths of it in silence.
    owner = await make_owner(server.url, send_timeout=1.2)
    await owner.up()
    return owner


@pytest.fixture
def stop_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopSignals]:
    """What stands before the handlers, as in a fresh process; the handlers are at the end what they were."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    fresh = StopSignals()
    monkeypatch.setattr(signals, "_signals", fresh)
    yield fresh
    for number, handler in before.items():
        signal.signal(number, handler)
