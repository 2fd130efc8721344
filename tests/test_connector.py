"""Connector against real servers: TCP, Unix sockets, TLS, users, Sentinels; and no connection left behind."""

from __future__ import annotations

import asyncio
import copy
import gc
import re
import socket
import ssl
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError
from redis.asyncio.connection import Connection

from channels_asyncq.bus.resp import connector as connections
from channels_asyncq.bus.resp.connector import Connector
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.exceptions import LayerUnavailable
from channels_asyncq.identity import identity
from channels_asyncq.settings.options import Options
from channels_asyncq.testing import EmbeddedServer
from tests.certificates import tls_options
from tests.contract import DEADLINE, eventually
from tests.wires import Handler, Owner


def connector(host: Any, timeout: float = DEADLINE) -> Connector:
    [only] = Options.from_config({"hosts": [host]}).hosts
    return Connector(only, connect_timeout=timeout)


async def connect(host: Any, seconds: float = DEADLINE) -> WireProtocol:
    return await connector(host, seconds).connect(lambda: WireProtocol(owner=Owner()))


async def unavailable(host: Any, seconds: float = DEADLINE) -> LayerUnavailable:
    with pytest.raises(LayerUnavailable) as caught:
        await connect(host, seconds)
    return caught.value


async def info(wire: WireProtocol) -> dict[str, str]:
    """Return what the server knows about this connection."""
    return dict(pair.split("=", 1) for pair in (await wire.call("CLIENT", "INFO")).decode().split())


def clients(server: EmbeddedServer) -> int:
    """Return how many clients the server has, besides the one that asks."""
    return len(server.command("CLIENT", "LIST").splitlines()) - 1


async def no_clients_left(server: EmbeddedServer) -> None:
    await eventually(lambda: not clients(server), "the end of all connections")


@pytest.fixture
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = None
    if getattr(request, "param", "asyncio") == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


both_loops = pytest.mark.parametrize("runner", ["asyncio", "uvloop"], indirect=True)


@asynccontextmanager
async def serving(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """Run a server that calls `serve` for each connection, and give its port. At the end it closes them."""
    running: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.ensure_future(connected(reader, writer)))

    async with await asyncio.start_server(start, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*running)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


# Transports.


@both_loops
def test_tcp(runner: asyncio.Runner, redis_server: EmbeddedServer) -> None:
    """A redis:// host: database and RESP2 are set, the socket is tuned, and no library name is sent."""

    async def run() -> None:
        wire = await connect(redis_server.url_for(3))
        told = await info(wire)
        assert (told["db"], told.get("resp", "2"), told.get("lib-name", "")) == ("3", "2", "")
        transport = wire.transport
        assert transport is not None
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
        await wire.close()

    runner.run(run())


async def test_host_and_port(redis_server: EmbeddedServer) -> None:
    """
    A (host, port) pair and a dict of redis-py arguments lead to the same server. It knows the connection by the
    name of its process, or by a name that the site gives, which may be empty.
    """
    for host in (
        ("127.0.0.1", redis_server.port),
        {"host": "127.0.0.1", "port": redis_server.port, "client_name": "chat", "socket_keepalive": False},
        {"address": redis_server.url, "client_name": "chat", "max_connections": 10, "retry_on_timeout": True},
        {"address": f"{redis_server.url}?socket_read_size=4096&socket_type=1", "client_name": "chat"},
        {"address": redis_server.url, "client_name": ""},
    ):
        wire = await connect(host)
        told = await info(wire)
        assert told["name"] == (host["client_name"] if isinstance(host, dict) else identity())
        await wire.close()


@pytest.mark.server
@both_loops
def test_unix_socket(runner: asyncio.Runner) -> None:
    """A unix:// host, with a password, and with both databases."""
    with EmbeddedServer(external=False, unix=True, requirepass="s3cret") as server:

        async def run() -> None:
            wire = await connect(f"unix://:s3cret@{server.unix_path}?db=2")
            told = await info(wire)
            assert told["db"] == "2"
            await wire.close()
            error = await unavailable(f"unix://:wr0ng@{server.unix_path}")
            assert "wr0ng" not in str(error)
            await no_clients_left(server)

        runner.run(run())


@pytest.fixture(scope="session")
def tls_server(certificate: tuple[Path, Path]) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(external=False, requirepass="s3cret", **tls_options(*certificate)) as server:
        yield server


@pytest.mark.server
@both_loops
def test_tls(
    runner: asyncio.Runner, tls_server: EmbeddedServer, certificate: tuple[Path, Path], prefix: str
) -> None:
    """A rediss:// host: pipelines, large values, held messages, loss and close(), all over TLS."""

    async def run() -> None:
        path = certificate[0]
        url = f"rediss://:s3cret@127.0.0.1:{tls_server.port}/1?ssl_ca_certs={path}"
        loop = asyncio.get_running_loop()
        owner = Owner()
        seen: list[bytes] = []

        def on_message(topic: bytes, payload: bytes) -> bool:
            if len(seen) == 100 and not held.is_set():
                held.set()
                loop.call_later(0.01, subscriber.resume)
                return False
            seen.append(payload)
            if len(seen) == 300:
                complete.set()
            return True

        held, complete = asyncio.Event(), asyncio.Event()
        host = connector(url)
        commands = await host.connect(lambda: WireProtocol(owner=owner))
        gc.collect()
        subscriber = await host.connect(lambda: WireProtocol(owner=owner, messages=Handler(on_message)))
        assert (await info(commands))["db"] == "1"
        await subscriber.call("SUBSCRIBE", f"{prefix}:topic")
        payloads = [b"%d" % number + b"x" * 1000 for number in range(300)]
        await asyncio.gather(*(commands.call("PUBLISH", f"{prefix}:topic", payload) for payload in payloads))
        await complete.wait()
        assert held.is_set()
        assert seen == payloads
        big = b"x" * 3_000_000
        await commands.call("SET", f"{prefix}:big", big)
        assert await commands.call("GET", f"{prefix}:big") == big
        victim = await host.connect(lambda: WireProtocol(owner=owner))
        number = (await info(victim))["id"]
        await commands.call("CLIENT", "KILL", "ID", number)
        await subscriber.close()
        await commands.close()
        await eventually(lambda: len(owner.lost) == 3, "the end of all connections")
        assert sum(error is None for error in owner.lost) == 2

    runner.run(run())


@pytest.mark.server
async def test_tls_certificate_is_checked(tls_server: EmbeddedServer) -> None:
    """A certificate of an unknown authority is refused, and the error says so."""
    error = await unavailable(f"rediss://:s3cret@127.0.0.1:{tls_server.port}")
    assert "certificate" in error.reason.lower()
    assert "s3cret" not in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.1 has no neighbours here")
async def test_tls_host_is_checked(certificate: tuple[Path, Path]) -> None:
    """A certificate of another host is refused, whatever redis-py's default is, unless asked otherwise."""
    path, key = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path, key)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.2", 0, ssl=context) as server:
        address = f"rediss://127.0.0.2:{server.sockets[0].getsockname()[1]}"
        error = await unavailable({"address": address, "ssl_ca_certs": str(path)})
        assert "127.0.0.2" in error.reason and "mismatch" in error.reason
        requests: list[dict[str, Any]] = [
            {"ssl_ca_certs": str(path), "ssl_check_hostname": False},
            {"ssl_ca_certs": str(path), "ssl_check_hostname": False, "ssl_cert_reqs": ssl.CERT_REQUIRED},
            {"ssl_cert_reqs": "none"},
            {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": True},
            {"ssl_cert_reqs": None},
        ]
        for request in requests:
            wire = await connect({"address": address, **request})
            await wire.close()


# Users and passwords.


@pytest.fixture
def guarded() -> Iterator[EmbeddedServer]:
    users = ["default on >pa55word ~* &* +@all", "bob on >b0bsword ~* &* +@all -select"]
    with EmbeddedServer(external=False, user=users) as server:
        yield server


@pytest.mark.server
async def test_password_and_user(guarded: EmbeddedServer) -> None:
    """A password without a user name logs in the default user; with a name, that user."""
    for login, user in ((":pa55word", "default"), ("bob:b0bsword", "bob")):
        wire = await connect(f"redis://{login}@127.0.0.1:{guarded.port}")
        assert (await info(wire))["user"] == user
        await wire.close()


@pytest.mark.server
@pytest.mark.parametrize(
    ("login", "reason"),
    [
        (":wr0ng", "invalid username-password"),
        ("carl:wr0ng", "invalid username-password"),
        ("bob:b0bsword", "no permissions|NOPERM"),
        ("", "Authentication required|NOAUTH"),
    ],
)
async def test_refused(guarded: EmbeddedServer, login: str, reason: str) -> None:
    """A refusal names the address and the server's words, never a password. No connection is left."""
    error = await unavailable(f"redis://{login}{'@' if login else ''}127.0.0.1:{guarded.port}/2")
    assert error.address == f"redis://127.0.0.1:{guarded.port}/2"
    text = "".join(traceback.format_exception(error))
    assert "wr0ng" not in text.replace(login, "")
    assert "b0bsword" not in text
    assert isinstance(error, ConnectionError)
    assert re.search(reason, error.reason)


async def test_password_in_the_words_of_the_server() -> None:
    """A server that quotes the password in its error does not bring it into a message or a traceback."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"-ERR unknown command 'AUTH', with args beginning with: 's3cret'\r\n")
        await reader.read()

    async with serving(serve) as port:
        error = await unavailable(f"redis://:s3cret@127.0.0.1:{port}")
    assert "unknown command" in error.reason
    assert "***" in error.reason
    assert "s3cret" not in "".join(traceback.format_exception(error))


async def test_arguments_this_redis_py_does_not_take(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument that redis-py does not take is an error of the settings, when the connector is made."""

    class Narrow:
        def __init__(self, *, host: str) -> None: ...

    monkeypatch.setattr(connections, "Connection", Narrow)
    with pytest.raises(
        ImproperlyConfigured, match=r"redis-py [\d.]+ does not take the arguments for redis://"
    ):
        connector(redis_url)


# Failures.


async def test_nobody_listens() -> None:
    """A closed port, a missing socket and an unknown host name fail at once."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        error = await unavailable(f"redis://127.0.0.1:{port}")
    assert f"redis://127.0.0.1:{port}" in str(error)
    assert "Connect" in error.reason
    assert "/nowhere" in (await unavailable("unix:///nowhere/redis.sock")).reason


async def test_deadline_covers_authentication() -> None:
    """A server that accepts and does not answer fails at the deadline, and no connection is left."""
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent(reader, writer)
        closed.set()

    async with serving(serve) as port:
        error = await unavailable(f"redis://:s3cret@127.0.0.1:{port}", seconds=0.3)
        await closed.wait()
    assert error.reason.startswith("no connection within 0.3 s. Check host and port")


@pytest.mark.parametrize("url", ["redis://:s3cret@127.0.0.1:{}", "rediss://127.0.0.1:{}"])
async def test_cancelled(url: str) -> None:
    """Cancelling connect(), in the middle of TLS or of AUTH, leaves no connection."""
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        arrived.set()
        await silent(reader, writer)
        closed.set()

    async with serving(serve) as port:
        task = asyncio.ensure_future(connect(url.format(port)))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed.wait()


@pytest.mark.server
async def test_cancelled_at_every_step() -> None:
    """Wherever in connect() the cancellation falls, it leaves no connection."""
    with EmbeddedServer(external=False, requirepass="s3cret") as server:
        steps = 0
        while True:
            task = asyncio.ensure_future(connect(f"redis://:s3cret@127.0.0.1:{server.port}/1"))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            try:
                wire = await task
            except asyncio.CancelledError:
                await no_clients_left(server)
                steps += 1
                # Many: several loop iterations may pass before the server answers.
                assert steps < 2000
                continue
            await wire.close()
            break
        await no_clients_left(server)
        assert steps


async def test_closed_after_authentication() -> None:
    """A server that answers AUTH and closes: connect() fails, or the owner is told of the end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"+OK\r\n")

    async with serving(serve) as port:
        url = f"redis://:s3cret@127.0.0.1:{port}"
        wire: WireProtocol | None = None
        owner = Owner()
        try:
            # The end is seen before or after the handover, as the network decides, but it is seen.
            wire = await connector(url).connect(lambda: WireProtocol(owner=owner))
        except LayerUnavailable:
            pass
        else:
            assert wire is not None
            await owner.ended.wait()


@pytest.mark.parametrize("rest", [b"+more\r\n", b"$5\r\nhal"])
async def test_server_that_says_too_much(rest: bytes) -> None:
    """Bytes that come unasked before the handover would be lost, so the connection is refused."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"+OK\r\n" + rest)
        await silent(reader, writer)

    async with serving(serve) as port:
        error = await unavailable(f"redis://:s3cret@127.0.0.1:{port}")
    assert error.reason == "the server sent more than was asked for"


async def test_loading_server() -> None:
    """A server that is still loading is unavailable, with its own words as the reason."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")
        await silent(reader, writer)

    async with serving(serve) as port:
        assert "loading" in (await unavailable(f"redis://127.0.0.1:{port}/1")).reason


async def test_make_protocol_that_fails(own_redis_server: EmbeddedServer) -> None:
    """An error in make_protocol leaves no connection."""

    def fail() -> WireProtocol:
        raise ZeroDivisionError

    with pytest.raises(LayerUnavailable):
        await connector(own_redis_server.url).connect(fail)
    await no_clients_left(own_redis_server)


# The handover.


async def test_collecting_what_redis_py_left(redis_url: str) -> None:
    """After the handover, collecting the objects of redis-py does not close the transport."""
    wire = await connect(redis_url)
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(0)
    assert wire.transport is not None
    assert not wire.transport.is_closing()
    assert await wire.call("PING") == b"PONG"
    with pytest.raises(ReplyError):
        await wire.call("NOPE")
    await wire.close()


async def test_redis_py_of_another_build(
    own_redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redis-py whose connections are built in another way is named as the cause."""

    class Renamed(Connection):
        async def connect(self) -> Any:
            await cast(Any, super()).connect()
            cast(Any, self)._parser = object()

    monkeypatch.setattr(connections, "Connection", Renamed)
    error = await unavailable(own_redis_server.url)
    assert "cannot be taken over" in error.reason
    assert "install redis>=5.2,<9" in error.reason
    await no_clients_left(own_redis_server)


async def test_many_connections_of_one_connector(own_redis_server: EmbeddedServer) -> None:
    """A connector makes any number of connections, also concurrently, and keeps none."""
    host = connector(own_redis_server.url)
    assert host.address == own_redis_server.url
    wires = await asyncio.gather(*(host.connect(lambda: WireProtocol(owner=Owner())) for _ in range(10)))
    assert clients(own_redis_server) == 10
    await asyncio.gather(*(wire.close() for wire in wires))
    await no_clients_left(own_redis_server)


# Sentinel.


@pytest.fixture
def watched(own_redis_server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """A Sentinel that watches the test's own server as mymaster."""
    with EmbeddedServer(
        external=False, sentinel=[f"monitor mymaster 127.0.0.1 {own_redis_server.port} 1"]
    ) as sentinel:
        yield sentinel


async def test_sentinel(own_redis_server: EmbeddedServer, watched: EmbeddedServer) -> None:
    """The Sentinels are asked for the master; those that are down are skipped; no connection stays."""
    dead = ("127.0.0.1", 1)
    host = connector(
        {
            "sentinels": [dead, ("127.0.0.1", watched.port)],
            "master_name": "mymaster",
            "db": 4,
            "client_name": "us",
        }
    )
    for _ in range(3):
        wire = await host.connect(lambda: WireProtocol(owner=Owner()))
        told = await info(wire)
        assert (told["db"], told["name"]) == ("4", "us")
        assert told["laddr"] == f"127.0.0.1:{own_redis_server.port}"
        assert (await wire.call("ROLE"))[0] == b"master"
        await wire.close()
    await no_clients_left(watched)
    assert b"name=us" not in own_redis_server.command("CLIENT", "LIST")


async def test_sentinel_that_does_not_know(watched: EmbeddedServer) -> None:
    """A master that no Sentinel knows is an outage. The reason names the Sentinel and the master."""
    error = await unavailable({"sentinels": [("127.0.0.1", watched.port)], "master_name": "other"})
    assert f"127.0.0.1:{watched.port}" in error.reason
    assert "'other'" in error.reason
    assert "Check `sentinels`" in error.reason
    assert "'other'" in str(copy.copy(error))
    await no_clients_left(watched)


async def test_sentinel_that_hangs_up() -> None:
    """If a Sentinel closes the connection before a master is known, there is no port to examine."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with serving(hang_up) as port:
        host = connector({"sentinels": [("127.0.0.1", port)], "master_name": "mymaster"})
        for error in (
            await unavailable({"sentinels": [("127.0.0.1", port)], "master_name": "mymaster"}),
            ConnectionResetError("Connection reset by peer"),
        ):
            diagnosis = host.diagnose(error)
            assert diagnosis.heals
            assert await host.look() is None
            assert "mymaster" in diagnosis.reason or "reset" in diagnosis.reason


async def test_sentinel_that_is_silent(own_redis_server: EmbeddedServer, watched: EmbeddedServer) -> None:
    """A Sentinel that does not answer leaves time to ask the next one."""
    async with serving(silent) as port:
        host = {"sentinels": [("127.0.0.1", port), ("127.0.0.1", watched.port)], "master_name": "mymaster"}
        wire = await connect(host, seconds=1.5)
        assert await wire.call("PING") == b"PONG"
        await wire.close()


async def test_sentinel_with_a_password(own_redis_server: EmbeddedServer) -> None:
    """sentinel_kwargs are for the Sentinels alone. A wrong password among them is not shown."""
    with EmbeddedServer(
        external=False,
        sentinel=[f"monitor mymaster 127.0.0.1 {own_redis_server.port} 1"],
        requirepass="w4tch",
    ) as sentinel:
        host: dict[str, Any] = {"sentinels": [("127.0.0.1", sentinel.port)], "master_name": "mymaster"}
        wire = await connect(host | {"sentinel_kwargs": {"password": "w4tch"}})
        assert await wire.call("PING") == b"PONG"
        await wire.close()
        error = await unavailable(host | {"sentinel_kwargs": {"password": "wr0ng"}})
        assert "wr0ng" not in "".join(traceback.format_exception(error))
        await no_clients_left(sentinel)


async def test_sentinel_cancelled(watched: EmbeddedServer) -> None:
    """Cancelling while a Sentinel is asked leaves no connection to it."""
    for steps in range(1, 12):
        task = asyncio.ensure_future(
            connect({"sentinels": [("127.0.0.1", watched.port)], "master_name": "mymaster"})
        )
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await no_clients_left(watched)


@pytest.mark.slow
@pytest.mark.chaos
async def test_sentinel_fails_over(own_redis_server: EmbeddedServer) -> None:
    """A master that is down is not used. After the failover the connector connects to the new one."""
    old = own_redis_server
    with (
        EmbeddedServer(external=False, replicaof=f"127.0.0.1 {old.port}") as replica,
        EmbeddedServer(
            external=False,
            sentinel=[f"monitor mymaster 127.0.0.1 {old.port} 1", "down-after-milliseconds mymaster 200"],
        ) as sentinel,
    ):
        host = connector({"sentinels": [("127.0.0.1", sentinel.port)], "master_name": "mymaster"})
        # A Sentinel must know the replica before it can promote it.
        await eventually(lambda: len(sentinel.command("SENTINEL", "REPLICAS", "mymaster")) == 1)
        await eventually(lambda: replica.command("ROLE")[3] == b"connected")
        old.kill()
        reasons = set()
        while True:
            try:
                wire = await host.connect(lambda: WireProtocol(owner=Owner()))
            except LayerUnavailable as exc:
                reasons.add(exc.reason)
                await asyncio.sleep(0.02)
            else:
                break
        assert (await info(wire))["laddr"].endswith(f":{replica.port}")
        await wire.close()
        assert any("the master is down" in reason for reason in reasons)
