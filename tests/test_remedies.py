"""The errors and remedies of a layer that cannot connect, or is refused: real servers, and the table itself."""

from __future__ import annotations

import asyncio
import errno
import http.server
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq import AsyncQueueChannelLayer, ChannelLayerError, LayerUnavailable
from channels_asyncq.bus.redis.scripts import Scripts
from channels_asyncq.bus.resp.remedies import PROXY, Remedies, unsupported
from channels_asyncq.settings.options import Options
from channels_asyncq.testing import EmbeddedServer
from tests import resp_server
from tests.certificates import make_certificate, server_with_tls, tls_options
from tests.contract import DEADLINE, MakeLayer, codes, eventually, every, layers, note, time_passes
from tests.resp_server import Answer, RespServer

# So long that a test in which a send waits for it times out.
PATIENCE = 10 * DEADLINE
BRIEF = 0.2


@pytest.fixture
async def make() -> AsyncIterator[MakeLayer]:
    async with layers(prefix="asgi", send_timeout=PATIENCE) as make:
        yield make


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, **options: Any) -> EmbeddedServer:
    return stack.enter_context(EmbeddedServer(external=False, **options))


async def join(layer: AsyncQueueChannelLayer) -> None:
    await layer.group_add("room", await layer.new_channel())


async def refusal(awaitable: Any) -> str:
    """Return the error of a call, which must not wait for `send_timeout`."""
    with pytest.raises(ChannelLayerError) as caught:
        await every([awaitable])
    return str(caught.value)


async def fails_at_once(layer: AsyncQueueChannelLayer, *parts: str) -> None:
    """Sends and joins fail without waiting, with the words and the remedy."""
    for text in (await refusal(layer.group_send("room", note(1))), await refusal(join(layer))):
        assert all(part in text for part in parts), text
    health = await layer.health(DEADLINE)
    assert not health.ok


def lines(caplog: pytest.LogCaptureFixture, code: str = "connection.failed") -> list[str]:
    return [line.getMessage() for line in caplog.records if line.__dict__.get("code") == code]


# Another protocol


@pytest.fixture
def tls(certificate: tuple[Path, Path]) -> Callable[..., dict[str, Any]]:
    """Return options for a server with TLS."""
    server_with_tls()

    def options(path: Path = certificate[0], key: Path = certificate[1], **more: str) -> dict[str, Any]:
        return tls_options(path, key) | more

    return options


@contextmanager
def web_server() -> Iterator[int]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as site:
        thread = threading.Thread(target=site.serve_forever, daemon=True)
        thread.start()
        yield site.server_address[1]
        site.shutdown()
        thread.join()


@pytest.mark.parametrize(("login", "db"), [("", 0), (":secret@", 1)], ids=["bare", "password and database"])
@pytest.mark.server
async def test_plain_text_to_tls(
    stack: ExitStack,
    tls: Callable[..., dict[str, Any]],
    make: MakeLayer,
    caplog: pytest.LogCaptureFixture,
    login: str,
    db: int,
) -> None:
    """redis:// to a port with TLS fails at once, with one log line for both connections."""
    layer = await make(hosts=[f"redis://{login}127.0.0.1:{started(stack, **tls()).port}/{db}"])
    await fails_at_once(layer, "the port speaks TLS", "Use rediss://")
    assert len(lines(caplog)) == 1


@pytest.mark.server
async def test_tls_to_plain_text(stack: ExitStack, make: MakeLayer, caplog: pytest.LogCaptureFixture) -> None:
    """rediss:// to a port without TLS fails, although the server waits for more of the handshake."""
    layer = await make(hosts=[f"rediss://127.0.0.1:{started(stack).port}/0"])
    await fails_at_once(layer, "without TLS", "Use redis://")
    assert len(lines(caplog)) == 1


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("redis://127.0.0.1:{}", "That is HTTP"),
        ("redis://:secret@127.0.0.1:{}/1", "That is HTTP"),
        ("rediss://127.0.0.1:{}", "Use redis://"),
    ],
)
async def test_http(make: MakeLayer, caplog: pytest.LogCaptureFixture, url: str, remedy: str) -> None:
    """A port of a web server is named as such."""
    with web_server() as port:
        layer = await make(hosts=[url.format(port)])
        await fails_at_once(layer, remedy)
        assert len(lines(caplog)) == 1


# Certificates


@pytest.mark.server
async def test_unknown_authority(
    stack: ExitStack, tls: Callable[..., dict[str, Any]], make: MakeLayer
) -> None:
    """A certificate of an unknown authority names ssl_ca_certs."""
    layer = await make(hosts=[f"rediss://127.0.0.1:{started(stack, **tls()).port}"])
    await fails_at_once(layer, "certificate verify failed", "ssl_ca_certs=")


@pytest.mark.server
async def test_certificate_of_another_host(
    stack: ExitStack, tls: Callable[..., dict[str, Any]], make: MakeLayer, tmp_path: Path
) -> None:
    """A valid certificate for another name says so."""
    path, key = make_certificate(tmp_path, "DNS:other.example")
    port = started(stack, **tls(path, key)).port
    layer = await make(hosts=[f"rediss://127.0.0.1:{port}?ssl_ca_certs={path}"])
    await fails_at_once(
        layer, "not valid for '127.0.0.1'", "by a name or address that the server's certificate has"
    )


@pytest.mark.server
async def test_certificate_of_the_client(
    stack: ExitStack, tls: Callable[..., dict[str, Any]], make: MakeLayer, certificate: tuple[Path, Path]
) -> None:
    """A server that wants a certificate of its clients names ssl_certfile."""
    port = started(stack, **tls(tls_auth_clients="yes")).port
    layer = await make(hosts=[f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate[0]}"])
    await fails_at_once(layer, "give ssl_certfile and ssl_keyfile")


@pytest.mark.parametrize("name", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_file_that_is_not_there(name: str) -> None:
    """A missing file is an error of the settings, when the layer is made."""
    with pytest.raises(
        ImproperlyConfigured, match=rf"{name} = '/no/such/file' for rediss://localhost:6379/0.*No such"
    ):
        AsyncQueueChannelLayer(hosts=[f"rediss://localhost?{name}=/no/such/file"])


def test_file_that_is_no_certificate(tmp_path: Path) -> None:
    """A file that holds something else is an error of the settings, too. No password is shown."""
    (tmp_path / "ca.pem").write_text("no certificate")
    host = {
        "address": "rediss://localhost",
        "ssl_ca_certs": str(tmp_path / "ca.pem"),
        "password": "s3cret",
    }
    with pytest.raises(
        ImproperlyConfigured, match="TLS to rediss://localhost:6379/0 cannot be set up"
    ) as caught:
        AsyncQueueChannelLayer(hosts=[host])
    assert "s3cret" not in str(caught.value)


# Passwords and rights


@pytest.mark.server
@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("redis://:password@127.0.0.1:{}", "Check the password of the user 'default'"),
        ("redis://bob:password@127.0.0.1:{}/2", "Check the password of the user 'bob'"),
        ("redis://127.0.0.1:{}", "Give the password in `hosts`"),
        ("redis://127.0.0.1:{}/1", "Give the password in `hosts`"),
    ],
)
async def test_password(
    stack: ExitStack, make: MakeLayer, caplog: pytest.LogCaptureFixture, url: str, remedy: str
) -> None:
    """A wrong password or none fails sends at once, also a password that is a word of the error."""
    layer = await make(hosts=[url.format(started(stack, requirepass="right").port)])
    await fails_at_once(layer, remedy)
    assert codes(caplog) == ["connection.failed"]


@pytest.mark.server
async def test_password_that_nobody_wants(stack: ExitStack, make: MakeLayer) -> None:
    """A password for a server without one fails sends at once."""
    layer = await make(hosts=[f"redis://:needless@127.0.0.1:{started(stack).port}"])
    await fails_at_once(layer, "Leave the password out of `hosts`")


@pytest.mark.server
async def test_password_of_a_provider(stack: ExitStack, make: MakeLayer) -> None:
    """Credentials of a provider may be right the next time: sends wait, as in any outage."""
    from redis.credentials import CredentialProvider

    class Changing(CredentialProvider):
        asked = 0

        def get_credentials(self) -> tuple[str]:
            self.asked += 1
            return ("right",) if self.asked > 4 else ("old",)

    port = started(stack, requirepass="right").port
    layer = await make(hosts=[{"host": "127.0.0.1", "port": port, "credential_provider": Changing()}])
    await every([layer.group_send("room", note(1))])


@pytest.mark.server
@pytest.mark.parametrize(
    ("rights", "grants"),
    [
        ("~asgi:* &asgi:* +@all -publish", ["+publish ("]),
        ("~asgi:* &asgi:* +@all -script|load -evalsha", ["+script|load +evalsha ("]),
        ("~asgi:* &asgi:* +@all -hset", ["+hset ("]),
        ("~other:* &asgi:* +@all", ["~asgi:* ("]),
        ("~asgi:* &other:* +@all", ["&asgi:* ("]),
    ],
)
async def test_rights(
    stack: ExitStack, make: MakeLayer, caplog: pytest.LogCaptureFixture, rights: str, grants: list[str]
) -> None:
    """A user without rights: they are named for ACL SETUSER, in one log line for both connections."""
    users = ["default on nopass ~* &* +@all", f"bob on >b0bsword {rights}"]
    layer = await make(hosts=[f"redis://bob:b0bsword@127.0.0.1:{started(stack, user=users).port}"])
    text = await refusal(layer.group_send("room", note(1)))
    assert all(f"Grant the user 'bob' {grant}" in text for grant in grants), text
    await refusal(join(layer))
    assert codes(caplog) == ["connection.failed"]


@pytest.mark.server
async def test_right_to_subscribe(
    stack: ExitStack, make: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """Sends work. A call that needs a subscription fails, and the log has one line, not one per attempt."""
    users = ["default on nopass ~* &* +@all", "bob on >b0bsword ~asgi:* &asgi:* +@all -subscribe"]
    layer = await make(hosts=[f"redis://bob:b0bsword@127.0.0.1:{started(stack, user=users).port}"])
    for _ in range(3):
        assert "Grant the user 'bob' +subscribe (" in await refusal(join(layer))
    await every([layer.group_send("room", note(1))])
    assert codes(caplog) == ["connection.failed"]


# Errors that pass

NO_PASSWORD = "NOAUTH Authentication required."


@pytest.mark.parametrize(
    "answer",
    [resp_server.error(NO_PASSWORD), resp_server.half(closes=True), resp_server.close(executes=False)],
    ids=["refused", "cut", "closed"],
)
async def test_odd_answer_once(server: RespServer, make: MakeLayer, answer: Answer) -> None:
    """A new server may refuse or close a connection once: sends and joins wait for the next attempt."""
    for name in ("INFO", "ROLE", "SCRIPT", "PING"):
        server.script(name, answer)
    layer = await make(hosts=[server.url])
    await every([layer.group_send("room", note(1)), join(layer)])


@pytest.mark.parametrize(
    "words",
    [
        "the server closed the connection",
        "[Errno 104] Connection reset by peer",
        "[Errno 32] Broken pipe",
        f"Error {errno.ECONNRESET} connecting to h:6379. Connect call failed ('10.0.0.1', 6379)",
    ],
)
def test_end_without_a_word(words: str) -> None:
    """A connection that ends without a word is one fault, however it is noticed; the log says where to look."""
    found = remedies().diagnose(words)
    assert found.is_wordless and found.heals
    assert found.reason.startswith(words) and "proxy or load balancer" in found.reason
    assert found.cause == remedies().diagnose("Connection lost").cause
    assert remedies().diagnose(found.reason) == found


async def test_error_of_a_server_that_served(server: RespServer, make: MakeLayer) -> None:
    """A server that was reached before may come back, whatever it answers: sends wait as in any outage."""
    layer = await make(hosts=[server.url])
    await every([layer.group_send("room", note(1)), join(layer)])
    for name in ("INFO", "ROLE", "SCRIPT"):
        server.always(name, resp_server.error(NO_PASSWORD))
    seen = len(server.received("INFO"))
    server.cut()
    waiting = asyncio.gather(layer.group_send("room", note(2)), join(layer))
    await eventually(lambda: len(server.received("INFO")) > seen + 8, "attempts")
    assert not waiting.done()
    server.restore()
    await every([waiting])


# Kind and settings of the server


@pytest.mark.server
@pytest.mark.parametrize("login", ["", ":needless@"])
async def test_max_clients(
    stack: ExitStack, make: MakeLayer, caplog: pytest.LogCaptureFixture, login: str
) -> None:
    """The server's words are shown, which it sends before it closes. It heals when a client leaves."""
    full = started(stack, maxclients=4)
    others = [socket.create_connection((full.host, full.port)) for _ in range(4)]
    # Long enough for the second examination, which reads these words, on a busy machine too.
    layer = await make(hosts=[f"redis://{login}{full.host}:{full.port}"], send_timeout=3.0)
    text = await refusal(layer.group_send("room", note(1)))
    assert "max number of clients reached. Raise `maxclients`" in text
    assert "max number of clients reached. Raise `maxclients`" in await refusal(join(layer))
    assert codes(caplog) == ["connection.failed"]
    for other in others:
        other.close()
    if not login:
        await eventually(lambda: layer.statistics().connected)
        await every([layer.new_channel()])


@pytest.mark.server
@pytest.mark.parametrize(("db", "holds_all"), [(0, False), (1, False), (0, True)])
async def test_cluster_node(stack: ExitStack, make: MakeLayer, db: int, holds_all: bool) -> None:
    """A node of a Redis Cluster, also one that holds all slots, is refused with the URL that is right."""
    node = started(stack, cluster_enabled="yes")
    if holds_all:
        node.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        await eventually(lambda: b"cluster_state:ok" in node.command("CLUSTER", "INFO"))
    layer = await make(hosts=[node.url_for(db)])
    await fails_at_once(layer, "a node of a Redis Cluster: use redis+cluster://HOST:PORT in `hosts`")


INFO_OF_OLD = b"# Server\r\nredis_version:6.0.16\r\nredis_mode:standalone\r\n"


async def test_old_server(server: RespServer, make: MakeLayer, caplog: pytest.LogCaptureFixture) -> None:
    """A server that is too old is refused, by its answer to INFO."""
    server.always("INFO", resp_server.reply(INFO_OF_OLD))
    layer = await make(hosts=[server.url])
    await fails_at_once(layer, "it is Redis 6.0.16", "Redis 6.2 is the oldest that works")
    assert codes(caplog) == ["connection.failed"]


@pytest.mark.server
@pytest.mark.skipif("OLD_REDIS" not in os.environ, reason="OLD_REDIS names no redis-server before 6.2")
async def test_real_old_started(stack: ExitStack, make: MakeLayer) -> None:
    """A real server that is too old is refused: `OLD_REDIS=/path/of/redis-server`."""
    layer = await make(hosts=[started(stack, binary=os.environ["OLD_REDIS"]).url])
    await fails_at_once(layer, "it is Redis ", "Redis 6.2 is the oldest that works")


@pytest.mark.server
async def test_sentinel_as_a_server(
    stack: ExitStack, make: MakeLayer, own_redis_server: EmbeddedServer
) -> None:
    """The address of a Sentinel in place of a server is explained."""
    sentinel = started(stack, sentinel=[f"monitor mymaster 127.0.0.1 {own_redis_server.port} 1"])
    layer = await make(hosts=[f"redis://127.0.0.1:{sentinel.port}"])
    await fails_at_once(layer, "it is a Sentinel", '{"sentinels": [("HOST", 26379)]')


@pytest.mark.server
async def test_database_that_is_not_there(stack: ExitStack, make: MakeLayer) -> None:
    """A database number that the server does not have is explained."""
    layer = await make(hosts=[started(stack, databases=1).url_for(7)])
    await fails_at_once(layer, "DB index is out of range", "use a lower number in the URL")


def outward_address() -> str:
    """Return an address of this machine other than 127.0.0.1; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
        return address
    return "127.0.0.1"


def is_listening(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[None]:
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.server
async def test_protected_mode(
    make: MakeLayer, own_redis_server: EmbeddedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server in protected mode explains that at length; the error has the first sentence."""
    host = outward_address()
    if host.startswith("127."):
        pytest.skip("this machine has no address but 127.0.0.1")
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    options = f"--bind {host} --port {port} --protected-mode yes --dir {tmp_path} --save".split()
    with running([own_redis_server.binary, *options, ""], tmp_path):
        await eventually(lambda: is_listening(host, port))
        layer = await make(hosts=[f"redis://{host}:{port}"])
        await fails_at_once(layer, "protected mode", "Set a password in the server (requirepass)")
        (line,) = lines(caplog)
        assert len(line) < 400


# Proxies


async def test_proxy_that_hangs_up(
    server: RespServer, make: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy that closes the connection at unknown commands, as Twemproxy does, is diagnosed."""
    for name in ("ROLE", "SELECT", "SCRIPT", "INFO", "SUBSCRIBE"):
        server.always(name, resp_server.close(executes=False))
    layer = await make(hosts=[server.url])
    await fails_at_once(layer, PROXY, "connect to the server itself")
    assert codes(caplog) == ["connection.failed"]


async def test_proxy_that_refuses(server: RespServer, make: MakeLayer) -> None:
    """A proxy that answers unknown commands with an error is diagnosed."""
    server.always("ROLE", resp_server.error("ERR unknown command 'ROLE'"))
    server.always("SCRIPT", resp_server.error("ERR unknown command 'SCRIPT'"))
    layer = await make(hosts=[server.url])
    await fails_at_once(layer, "unknown command 'SCRIPT'", "connect to the server itself")


@pytest.mark.server
@pytest.mark.skipif(shutil.which("nutcracker") is None, reason="there is no nutcracker on PATH")
async def test_twemproxy(redis_server: EmbeddedServer, make: MakeLayer, tmp_path: Path) -> None:
    """A real Twemproxy is diagnosed (Debian: nutcracker)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "nutcracker.yml").write_text(
        f"pool:\n  listen: 127.0.0.1:{port}\n  redis: true\n  hash: fnv1a_64\n  distribution: ketama\n"
        f"  servers:\n   - 127.0.0.1:{redis_server.port}:1\n"
    )
    command = ["nutcracker", "-c", "nutcracker.yml", "-o", "log", "-p", "pid", "-s", str(port + 1)]
    with running(command, tmp_path):
        await eventually(lambda: is_listening("127.0.0.1", port))
        await fails_at_once(await make(hosts=[f"redis://127.0.0.1:{port}"]), "Twemproxy")


# Addresses


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("redis://nosuch.invalid:6379/0", "The name does not resolve"),
        ("redis://127.0.0.1:1/0", "Nobody listens there"),
        ("unix:///no/such.sock", "Nobody listens there"),
    ],
)
async def test_nobody_there(make: MakeLayer, caplog: pytest.LogCaptureFixture, url: str, remedy: str) -> None:
    """Sends wait, as it may heal. The log has one line."""
    layer = await make(hosts=[url], send_timeout=BRIEF)
    # The first attempt may take longer than that, as resolvers do: then nobody knows the reason yet.
    with pytest.raises(LayerUnavailable):
        await every([layer.group_send("room", note(1))])
    await eventually(lambda: codes(caplog), "the first attempt")
    for call in (layer.group_send("room", note(1)), join(layer)):
        with pytest.raises(LayerUnavailable, match=remedy):
            await every([call])
    assert codes(caplog) == ["connection.failed"]


@pytest.mark.slow
@pytest.mark.server
async def test_server_that_closes_idle_connections(
    stack: ExitStack, make: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """With `timeout 1` nothing is logged as a warning; after the second end the connection is kept busy."""
    caplog.set_level("INFO")
    layer = await make(hosts=[started(stack, timeout=1).url])
    await every([layer.new_channel()])
    await eventually(lambda: layer.statistics().reconnects == 2)
    await time_passes(6)  # longer than a connection may be idle, and than the time between fences
    assert layer.statistics().reconnects == 2
    assert {line.levelname for line in caplog.records} == {"INFO"}
    assert "idle" in lines(caplog, "connection.lost")[0]


# The table


def remedies(url: str = "redis://bob:b0bsword@127.0.0.1:6379") -> Remedies:
    [host] = Options.from_config({"hosts": [url]}).hosts
    scripts = {script.sha.decode(): script.text.decode() for script in Scripts.of(None)}
    return Remedies(host, "asgi", scripts)


@pytest.mark.parametrize(
    "words",
    [
        "WRONGPASS invalid username-password pair or user is disabled.",
        "NOAUTH Authentication required.",
        "NOPERM this user has no permissions to run the 'subscribe' command",
        "CLUSTERDOWN Hash slot not served",
        "MOVED 3999 127.0.0.1:6381",
        "it is Redis 5.0.6",
        "it is a Sentinel",
        PROXY,
        "DENIED Redis is running in protected mode because of this. And much more. " + "x" * 300,
        "ERR max number of clients reached",
        "Error 111 connecting to 127.0.0.1:1. Connect call failed ('127.0.0.1', 1).",
        "the server closed the connection",
        "something that nobody foresaw",
    ],
)
def test_twice_is_once(words: str) -> None:
    """The words of an earlier diagnosis, by the other connection, are not changed."""
    once = remedies().diagnose(words)
    twice = remedies().diagnose(once.reason)
    assert (twice.reason, twice.cause, twice.heals) == (once.reason, once.cause, once.heals)


@pytest.mark.parametrize("words", ["CLUSTERDOWN The cluster is down", "MOVED 3999 127.0.0.1:6381"])
def test_refusals_of_an_expected_cluster(words: str) -> None:
    """A node that cannot serve a slot now is waited for, and its URL is right."""
    host = remedies().host
    found = Remedies(host, "asgi", {}, is_cluster=True).diagnose(words)
    assert found.heals and "redis+cluster://" not in found.reason
    assert Remedies(host, "asgi", {}, is_cluster=True).diagnose(found.reason) == found


def test_right_by_its_place_in_a_script() -> None:
    """The refused command is found by its line in the script, where Redis 7.0 does not name it."""
    lease = Scripts.of(None).lease
    text = lease.text.decode()
    number = next(n for n, line in enumerate(text.splitlines(), 1) if "redis.call('PUBLISH'" in line)
    words = (
        "ERR The user executing the script can't run this command or subcommand "
        f"script: {lease.sha.decode()}, on @user_script:{number}."
    )
    assert "Grant the user 'bob' +publish (" in remedies().diagnose(words).reason
    for unknown in (
        words.replace(f":{number}.", ":9999."),
        words.replace(lease.sha.decode(), "0" * 40),
    ):
        assert "~asgi:* &asgi:* and the commands" in remedies().diagnose(unknown).reason


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("ACL failure in script: No permissions to access a channel", "&asgi:*"),
        ("ACL failure in script: No permissions to access a key", "~asgi:*"),
        ("The user executing the script can't publish to the channel mentioned in the command", "&asgi:*"),
        ("The user executing the script can't access at least one of the keys mentioned in it", "~asgi:*"),
    ],
)
def test_right_to_a_name_in_a_script(said: str, right: str) -> None:
    """A user who may run the command, and not on this key or channel, lacks that alone: Redis 8 and 7."""
    lease = Scripts.of(None).lease
    lines = lease.text.decode().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if "redis.call('PUBLISH'" in line)
    words = f"ERR {said} script: {lease.sha.decode()}, on @user_script:{number}."
    assert f"Grant the user 'bob' {right} (" in remedies().diagnose(words).reason


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        (b"redis_version:6.0.9\r\n", "it is Redis 6.0.9"),
        (b"redis_version:6.2.0\r\n", None),
        (b"redis_version:10.0.1\r\n", None),
        (b"redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n", None),
        (b"redis_version:7.0.15\r\nredis_mode:sentinel\r\n", "it is a Sentinel"),
        (b"redis_version:7.0.15\r\nredis_mode:cluster\r\n", "it runs in cluster mode"),
        (b"redis_version:7.2.4\r\nvalkey_version:9.1.2\r\nserver_mode:sentinel\r\n", "it is a Sentinel"),
        (
            b"redis_version:7.2.4\r\nvalkey_version:9.1.2\r\nserver_mode:cluster\r\n",
            "it runs in cluster mode",
        ),
        (b"redis_version:unstable\r\n", None),
        (b"", None),
        (b"\xff\xfe", None),
    ],
)
def test_unsupported(info: bytes, problem: str | None) -> None:
    """Version and mode of INFO decide. A server that does not say is accepted."""
    assert unsupported(info) == problem


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        (b"redis_version:7.0.15\r\nredis_mode:cluster\r\n", None),
        (b"redis_version:6.2.14\r\nredis_mode:cluster\r\n", "it is Redis 6.2.14, without sharded channels"),
        (b"redis_version:7.0.0\r\n", None),
        (b"", None),
    ],
)
def test_unsupported_in_a_cluster(info: bytes, problem: str | None) -> None:
    """A Redis Cluster needs a later version, and may say that it is one."""
    assert unsupported(info, is_cluster=True) == problem
