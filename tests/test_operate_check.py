"""`check`: what it finds on servers that are right, and on each wrong one."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis.layout import Layout
from channels_asyncq.operate.checking import check
from channels_asyncq.operate.findings import Finding, State, has_fault
from channels_asyncq.operate.rights import needed
from channels_asyncq.testing import EmbeddedServer
from tests import resp_server
from tests.certificates import make_certificate, server_with_tls, tls_options
from tests.clusters import Cluster
from tests.code_blocks import block
from tests.contract import DEADLINE, MakeLayer, eventually, every
from tests.refusals import KINDS, PROTECTED, refusing
from tests.resp_server import RespServer
from tests.test_remedies import INFO_OF_OLD, is_listening, outward_address, running, web_server

PAGE = Path(__file__).parent.parent / "docs" / "settings-advanced.md"
#: The lines of a server that has nothing to mend, in order.
SUBJECTS = [
    *("address", "TLS", "login", "server", "rights", "writes", "eviction", "buffers"),
    *("clock", "layout", "name", "join", "pub/sub", "job"),
]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, **options: Any) -> EmbeddedServer:
    return stack.enter_context(EmbeddedServer(external=False, **options))


async def found(**config: Any) -> list[Finding]:
    """Return what `check` finds for a layer with this CONFIG."""
    layer = AsyncQueueChannelLayer(**{"send_timeout": DEADLINE, **config})

    async def findings() -> list[Finding]:
        return [finding async for finding in check(layer)]

    try:
        (all_found,) = await every([findings()])
    finally:
        await layer.close()
    return all_found


def faults(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state is State.FAULT]


def the(findings: list[Finding], subject: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.subject == subject]
    return finding


async def one_fault(subject: str, words: str, remedy: str, **config: Any) -> list[Finding]:
    """There is one fault, about this subject, with these words and this remedy. All before it went well."""
    findings = await found(**config)
    (fault,) = faults(findings)
    assert fault.subject == subject, findings
    assert words in fault.text and remedy in fault.remedy, fault
    before = findings[: findings.index(fault)]
    assert all(finding.state in (State.OK, State.UNSEEN) for finding in before), before
    return findings


# Servers that are right


async def test_all_well(own_redis_server: EmbeddedServer, prefix: str) -> None:
    """A line for each thing, in order; the round trips are measured; nothing is left behind."""
    findings = await found(hosts=[own_redis_server.url], prefix=prefix)
    assert [finding.subject for finding in findings] == SUBJECTS
    assert {finding.state for finding in findings} == {State.OK}, findings
    assert not has_fault(findings)
    for subject in ("join", "pub/sub", "job"):
        assert re.fullmatch(r"\d+\.\d ms", the(findings, subject).text)
    keys = own_redis_server.command("KEYS", "*check*")
    # What the layer itself has for a session of its normal channels has a time to live.
    assert all(own_redis_server.command("PTTL", key) > 0 for key in keys), keys


async def test_several_hosts(stack: ExitStack, prefix: str) -> None:
    """Each host has its lines, and its own round trips."""
    hosts = [started(stack).url, started(stack).url]
    findings = await found(hosts=hosts, prefix=prefix)
    assert {finding.state for finding in findings} == {State.OK}, findings
    for host in hosts:
        assert [each.subject for each in findings if each.server == host] == SUBJECTS


async def test_cluster(redis_cluster: Cluster, prefix: str) -> None:
    """Every primary has its lines. One of them has the layouts."""
    findings = await found(hosts=[redis_cluster.url], prefix=prefix)
    assert {finding.state for finding in findings} == {State.OK}, findings
    primaries = {f"redis://{node.address}/0" for node in redis_cluster.primaries()}
    assert {finding.server for finding in findings} == primaries
    for primary in primaries:
        subjects = [finding.subject for finding in findings if finding.server == primary]
        assert [each for each in SUBJECTS if each != "layout"] == [
            each for each in subjects if each != "layout"
        ]
    the(findings, "layout")


async def test_memory(prefix: str) -> None:
    """There is nothing to look at, and that is said."""
    (finding,) = await found(hosts=["memory://"], prefix=prefix)
    assert finding.state is State.WARNING and "no server" in finding.text and "`hosts`" in finding.remedy


async def test_beside_running_processes(make_layer: MakeLayer, redis_url: str, prefix: str) -> None:
    """The layout of the running processes is ours."""
    await (await make_layer()).new_channel()
    assert "running processes" in the(await found(hosts=[redis_url], prefix=prefix), "layout").text


# Address


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("redis://nosuch.invalid:6379/0", "The name does not resolve"),
        ("redis://127.0.0.1:1/0", "Nobody listens there"),
        ("unix:///no/such.sock", "Nobody listens there"),
        ("redis+cluster://127.0.0.1:1", "Nobody listens there"),
    ],
)
async def test_nobody_there(url: str, remedy: str) -> None:
    """A wrong name, port or path is named, and nothing that follows is tried."""
    assert len(await one_fault("address", "", remedy, hosts=[url])) == 1


async def test_silent_port() -> None:
    """A port that accepts and never answers is named after the time that a connection may take."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://:secret@127.0.0.1:{silent.getsockname()[1]}"
        await one_fault("address", "no connection within 1 s", "firewall", hosts=[url], send_timeout=0.5)


async def test_http() -> None:
    """A web server is named as such."""
    with web_server() as port:
        await one_fault("address", "", "That is HTTP", hosts=[f"redis://127.0.0.1:{port}"])


async def test_one_host_of_two(redis_url: str, prefix: str) -> None:
    """The lines of a host that is right are there although another one is wrong; round trips are not."""
    findings = await one_fault(
        "address", "", "Nobody listens", hosts=[redis_url, "redis://127.0.0.1:1"], prefix=prefix
    )
    assert [each.subject for each in findings if each.server == redis_url] == SUBJECTS[:-3]


# TLS


@pytest.fixture
def tls(certificate: tuple[Path, Path]) -> Callable[..., dict[str, Any]]:
    """Return options for a server with TLS."""
    server_with_tls()

    def options(path: Path = certificate[0], key: Path = certificate[1], **more: str) -> dict[str, Any]:
        return tls_options(path, key) | more

    return options


@pytest.mark.server
async def test_tls_that_is_right(
    stack: ExitStack, tls: Callable[..., dict[str, Any]], certificate: tuple[Path, Path]
) -> None:
    """The version of TLS is told."""
    url = f"rediss://127.0.0.1:{started(stack, **tls()).port}?ssl_ca_certs={certificate[0]}"
    findings = await found(hosts=[url])
    assert not faults(findings) and the(findings, "TLS").text.startswith("TLSv1")


@pytest.mark.server
async def test_plain_text_to_tls(stack: ExitStack, tls: Callable[..., dict[str, Any]]) -> None:
    """redis:// to a port with TLS."""
    url = f"redis://127.0.0.1:{started(stack, **tls()).port}"
    await one_fault("TLS", "the port speaks TLS", "Use rediss://", hosts=[url])


@pytest.mark.server
@pytest.mark.parametrize(("url", "right"), [("rediss", "redis://"), ("rediss+cluster", "redis+cluster://")])
async def test_tls_to_plain_text(redis_server: EmbeddedServer, url: str, right: str) -> None:
    """rediss:// to a port without TLS."""
    where = f"{url}://127.0.0.1:{redis_server.port}"
    await one_fault("TLS", "without TLS", f"Use {right}", hosts=[where])


@pytest.mark.server
async def test_certificates(stack: ExitStack, tls: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """An unknown authority, another host's certificate, and a server that wants one of ours."""
    port = started(stack, **tls()).port
    await one_fault("TLS", "verify failed", "ssl_ca_certs=", hosts=[f"rediss://127.0.0.1:{port}"])
    path, key = make_certificate(tmp_path, "DNS:other.example")
    url = f"rediss://127.0.0.1:{started(stack, **tls(path, key)).port}?ssl_ca_certs={path}"
    await one_fault("TLS", "not valid for '127.0.0.1'", "by a name or address", hosts=[url])


@pytest.mark.server
async def test_certificate_of_the_client(
    stack: ExitStack, tls: Callable[..., dict[str, Any]], certificate: tuple[Path, Path]
) -> None:
    """A server that wants a certificate of its clients."""
    port = started(stack, **tls(tls_auth_clients="yes")).port
    url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate[0]}"
    await one_fault("TLS", "", "give ssl_certfile and ssl_keyfile", hosts=[url])


# Login


@pytest.mark.server
@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("redis://:password@127.0.0.1:{}", "Check the password of the user 'default'"),
        ("redis://bob:password@127.0.0.1:{}/2", "Check the password of the user 'bob'"),
        ("redis://127.0.0.1:{}", "Give the password in `hosts`"),
        ("redis+cluster://127.0.0.1:{}", "Give the password in `hosts`"),
    ],
)
async def test_password(stack: ExitStack, url: str, remedy: str) -> None:
    """A wrong password, or none. No text has the password."""
    port = started(stack, requirepass="right").port
    findings = await one_fault("login", "", remedy, hosts=[url.format(port)])
    assert not any(":password" in f"{finding}" for finding in findings)


@pytest.mark.server
async def test_password_that_nobody_wants(redis_server: EmbeddedServer) -> None:
    """A password for a server without one."""
    url = f"redis://:needless@127.0.0.1:{redis_server.port}"
    await one_fault("login", "", "Leave the password out", hosts=[url])


@pytest.mark.server
async def test_protected_mode(own_redis_server: EmbeddedServer, tmp_path: Path) -> None:
    """A server in protected mode."""
    host = outward_address()
    if host.startswith("127."):
        pytest.skip("this machine has no address but 127.0.0.1")
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    options = f"--bind {host} --port {port} --protected-mode yes --dir {tmp_path} --save".split()
    with running([own_redis_server.binary, *options, ""], tmp_path):
        await eventually(lambda: is_listening(host, port))
        await one_fault("login", "protected mode", "Set a password", hosts=[f"redis://{host}:{port}"])


@pytest.mark.server
@pytest.mark.parametrize("login", ["", ":needless@"])
async def test_max_clients(stack: ExitStack, login: str) -> None:
    """A server with as many connections as it takes."""
    full = started(stack, maxclients=4)
    others = [socket.create_connection((full.host, full.port)) for _ in range(4)]
    url = f"redis://{login}{full.host}:{full.port}"
    await one_fault("login", "max number of clients", "Raise `maxclients`", hosts=[url])
    for other in others:
        other.close()


# Rights


def granted() -> tuple[set[str], set[str]]:
    """Return the commands on the page: for a plain server, and for a cluster."""
    plain = set(re.findall(r"\+([a-z|]+)", block("docs/settings-advanced.md", "text", having="user site ")))
    more = block("docs/settings-advanced.md", "text", having="+cluster|slots")
    (less,) = re.findall(r"It does not need `([^`]*)`", PAGE.read_text())
    cluster = plain | set(re.findall(r"\+([a-z|]+)", more))
    return plain, cluster - set(re.findall(r"\+([a-z|]+)", less))


def test_rights_are_those_of_the_page() -> None:
    """What is probed is what the page has, on a plain server and in a cluster."""
    plain, cluster = granted()
    assert {right.command for right in needed(is_cluster=False)} == plain
    assert {right.command for right in needed(is_cluster=True)} == cluster


@pytest.fixture
def as_user(own_redis_server: EmbeddedServer, prefix: str) -> Callable[[str], str]:
    """Return the URL of a user with these rules."""

    def url(rules: str) -> str:
        own_redis_server.command("ACL", "SETUSER", "site", "reset", "on", ">secret", *rules.split())
        return f"redis://site:secret@{own_redis_server.host}:{own_redis_server.port}/0"

    return url


async def test_the_user_of_the_page(as_user: Callable[[str], str], prefix: str) -> None:
    """Lacks nothing. What it may not see, is said, and is no fault."""
    plain, _ = granted()
    rules = f"~{prefix}:* &{prefix}:* -@all " + " ".join(f"+{command}" for command in plain)
    findings = await found(hosts=[as_user(rules)], prefix=prefix)
    assert [finding.subject for finding in findings] == SUBJECTS
    unseen = {finding.subject: finding for finding in findings if finding.state is not State.OK}
    assert {subject: finding.state for subject, finding in unseen.items()} == {
        "buffers": State.UNSEEN,
        "name": State.UNSEEN,
    }
    assert "may not call CONFIG GET" in unseen["buffers"].text
    assert "may not call CLIENT SETNAME" in unseen["name"].text


async def test_every_right_that_is_missing(
    as_user: Callable[[str], str], prefix: str, own_redis_server: EmbeddedServer
) -> None:
    """A user with PING only gets the whole list, in the form of ACL SETUSER; with that, it lacks nothing."""
    findings = await found(hosts=[as_user("-@all +ping")], prefix=prefix)
    (rights,) = [fault for fault in faults(findings) if fault.subject == "rights"]
    grants = re.match(r"ACL SETUSER site (.*) \(", rights.remedy)
    assert grants is not None
    plain, _ = granted()
    assert set(grants[1].split()) == {f"+{command}" for command in plain - {"ping"}}
    # Keys and channels are seen when the commands are there.
    url = as_user(f"-@all +ping {grants[1]}")
    (rights,) = [fault for fault in faults(await found(hosts=[url], prefix=prefix))]
    assert rights.text == f"missing: ~{prefix}:* &{prefix}:*"
    url = as_user(f"-@all +ping {grants[1]} ~{prefix}:* &{prefix}:*")
    assert not faults(await found(hosts=[url], prefix=prefix))


async def test_rights_that_are_not_necessary(as_user: Callable[[str], str], prefix: str) -> None:
    """What happens without ROLE, INFO and XREVRANGE is said; it is no fault."""
    url = as_user(f"~{prefix}:* &{prefix}:* +@all -role -info -xrevrange")
    findings = await found(hosts=[url], prefix=prefix)
    assert not faults(findings)
    texts = [each.text for each in findings if each.subject == "rights" and each.state is State.WARNING]
    assert texts[0] == "missing: +role +info +xrevrange"
    assert [re.match(r"without (\w+)", text)[1] for text in texts[1:]] == ["ROLE", "INFO", "XREVRANGE"]  # type: ignore[index]
    assert "may not call INFO" in the(findings, "server").text


@pytest.mark.server
async def test_rights_in_a_cluster(redis_cluster: Cluster, prefix: str) -> None:
    """Each primary is asked: a user who lacks a right at one of them gets a fault there only."""
    _, cluster = granted()
    rules = f"reset on >secret ~{prefix}:* &{prefix}:* -@all {' '.join(f'+{each}' for each in cluster)}"
    for node in redis_cluster.nodes:
        node.command("ACL", "SETUSER", "site", *rules.split())
    url = redis_cluster.url.replace("://", "://site:secret@")
    assert not faults(await found(hosts=[url], prefix=prefix))
    (lame, *_) = redis_cluster.primaries()
    lame.command("ACL", "SETUSER", "site", "-xadd", "-spublish")
    (fault,) = faults(await found(hosts=[url], prefix=prefix))
    assert fault.server == f"redis://{lame.address}/0"
    assert fault.text == "missing: +xadd +spublish"


# The server


@pytest.mark.server
async def test_cluster_and_plain(redis_cluster: Cluster, redis_server: EmbeddedServer) -> None:
    """The URL of a cluster on a plain server, and the other way."""
    url = f"redis+cluster://127.0.0.1:{redis_server.port}"
    await one_fault("server", "it is no node of a Redis Cluster", "redis://HOST:PORT", hosts=[url])
    (node, *_) = redis_cluster.nodes
    url = f"redis://{node.address}"
    await one_fault("server", "it runs in cluster mode", "use redis+cluster://", hosts=[url])


@pytest.mark.server
async def test_some_nodes_of_the_settings(redis_cluster: Cluster, prefix: str) -> None:
    """A node in the settings that is gone is worth a warning while another one answers."""
    url = redis_cluster.url.replace("://", "://127.0.0.1:1,")
    findings = await found(hosts=[url], prefix=prefix)
    assert not faults(findings)
    (warning,) = [each for each in findings if each.state is State.WARNING]
    assert warning.server == "redis://127.0.0.1:1/0" and "Nobody listens" in warning.remedy


@pytest.mark.slow
@pytest.mark.server
async def test_slots_without_a_primary(prefix: str) -> None:
    """Slots that nobody serves are named."""
    with Cluster(2, 0, full_coverage=False) as cluster:
        for node in cluster.nodes[:1]:
            node.command("CLUSTER", "DELSLOTS", "5")
        findings = await found(hosts=[f"redis+cluster://{cluster.nodes[0].address}"], prefix=prefix)
    (fault,) = [each for each in faults(findings) if each.subject == "slots"]
    assert "no primary for slots 5-5" in fault.text and "Slots have no primary" in fault.remedy


@pytest.mark.server
async def test_replica(stack: ExitStack, own_redis_server: EmbeddedServer, prefix: str) -> None:
    """A replica is refused, also if the user may not call ROLE."""
    users = ["default on nopass ~* &* +@all", "bob on >secret ~* &* +@all -role"]
    replica = started(stack, replicaof=f"127.0.0.1 {own_redis_server.port}", user=users)
    await eventually(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
    await one_fault("server", "it is a replica", "Name the primary", hosts=[replica.url])
    findings = await found(hosts=[replica.url.replace("://", "://bob:secret@")], prefix=prefix)
    (fault,) = faults(findings)
    assert fault.subject == "writes" and "READONLY" in fault.text and "Name the primary" in fault.remedy


async def test_old_server(server: RespServer) -> None:
    """A server that is too old."""
    server.always("INFO", resp_server.reply(INFO_OF_OLD))
    await one_fault("server", "it is Redis 6.0.16", "Redis 6.2 is the oldest", hosts=[server.url])


async def test_loading_server(server: RespServer) -> None:
    """A server that loads its data."""
    for name in ("PING", "INFO", "ROLE"):
        server.always(name, resp_server.error("LOADING Redis is loading the dataset in memory"))
    await one_fault("server", "LOADING", "wait until it has done so", hosts=[server.url])


async def test_sentinel_as_a_server(stack: ExitStack, own_redis_server: EmbeddedServer) -> None:
    """The address of a Sentinel in place of a server."""
    sentinel = started(stack, sentinel=[f"monitor mymaster 127.0.0.1 {own_redis_server.port} 1"])
    await one_fault("server", "it is a Sentinel", '"sentinels"', hosts=[f"redis://127.0.0.1:{sentinel.port}"])


async def test_sentinels(stack: ExitStack, own_redis_server: EmbeddedServer, prefix: str) -> None:
    """The master that Sentinels name is looked at; without a name, the line says what each of them answered."""
    sentinel = started(stack, sentinel=[f"monitor mymaster 127.0.0.1 {own_redis_server.port} 1"])
    host = {"sentinels": [("127.0.0.1", sentinel.port)], "master_name": "mymaster"}
    findings = await found(hosts=[host], prefix=prefix)
    assert [finding.subject for finding in findings] == SUBJECTS and not faults(findings), findings
    host["master_name"] = "other"
    await one_fault("address", "no Sentinel names a master 'other'", "Check `sentinels`", hosts=[host])


@pytest.mark.server
async def test_database_that_is_not_there(stack: ExitStack) -> None:
    """A database number that the server does not have."""
    hosts = [started(stack, databases=1).url_for(7)]
    await one_fault("server", "out of range", "use a lower number", hosts=hosts)


async def test_proxy_that_hangs_up(server: RespServer) -> None:
    """A proxy that closes the connection at unknown commands, as Twemproxy does."""
    for name in ("ROLE", "SELECT", "SCRIPT", "INFO", "SUBSCRIBE"):
        server.always(name, resp_server.close(executes=False))
    await one_fault("server", "closes the connection at INFO", "the server itself", hosts=[server.url])


# Its settings


@pytest.mark.server
@pytest.mark.parametrize("kind", KINDS)
async def test_server_that_does_not_write(stack: ExitStack, prefix: str, kind: str) -> None:
    """A server that is full, cannot save or lacks replicas. Nothing is left there."""
    refuses = started(stack, **PROTECTED)
    remedy = {"OOM": "raise its maxmemory", "MISCONF": "see its log", "NOREPLICAS": "min-replicas-to-write"}
    with refusing(refuses, kind):
        findings = await found(hosts=[refuses.url], prefix=prefix)
    (fault,) = faults(findings)
    assert fault.subject == "writes" and kind in fault.text and remedy[kind] in fault.remedy


async def test_eviction(own_redis_server: EmbeddedServer, prefix: str) -> None:
    """A policy that evicts is a fault if there is a limit, else a warning. So is a server that is nearly full."""
    own_redis_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    finding = the(await found(hosts=[own_redis_server.url], prefix=prefix), "eviction")
    assert finding.state is State.WARNING and "noeviction" in finding.remedy
    own_redis_server.command("CONFIG", "SET", "maxmemory", "100mb")
    await one_fault("eviction", "allkeys-lru", "to noeviction", hosts=[own_redis_server.url], prefix=prefix)
    own_redis_server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert not faults(await found(hosts=[own_redis_server.url], prefix=prefix))
    own_redis_server.command("CONFIG", "SET", "maxmemory", _used(own_redis_server) * 105 // 100)
    finding = the(await found(hosts=[own_redis_server.url], prefix=prefix), "eviction")
    assert finding.state is State.WARNING and "Raise maxmemory" in finding.remedy


def _used(server: EmbeddedServer) -> int:
    memory = server.command("INFO", "memory")
    return int(re.search(rb"^used_memory:(\d+)", memory, re.MULTILINE)[1])  # type: ignore[index]


@pytest.mark.parametrize(
    ("limits", "state", "words"),
    [
        ("0 0 0", State.OK, "pubsub 0 0 0"),
        ("64mb 32mb 60", State.OK, ""),
        ("16mb 8mb 60", State.WARNING, "is disconnected"),
        ("32mb 8mb 10", State.WARNING, "is disconnected"),
        ("1mb 0 0", State.FAULT, "4194304 bytes (max_message_size)"),
    ],
)
async def test_output_buffer(
    own_redis_server: EmbeddedServer, prefix: str, limits: str, state: State, words: str
) -> None:
    """A limit below the default, and one that is smaller than a message may be."""
    own_redis_server.command("CONFIG", "SET", "client-output-buffer-limit", f"pubsub {limits}")
    finding = the(await found(hosts=[own_redis_server.url], prefix=prefix), "buffers")
    assert finding.state is state and words in finding.text
    if state is not State.OK:
        assert "CONFIG SET client-output-buffer-limit" in finding.remedy
        remedied = re.findall(r'"([^"]*)"', finding.remedy)[0]
        own_redis_server.command("CONFIG", "SET", "client-output-buffer-limit", remedied)
        assert the(await found(hosts=[own_redis_server.url], prefix=prefix), "buffers").state is State.OK


@pytest.mark.parametrize(("ahead", "words"), [(3600, "s ahead of"), (-3600, "s behind")])
@pytest.mark.parametrize(("is_sealed", "state"), [(True, State.FAULT), (False, State.WARNING)])
async def test_clock(server: RespServer, ahead: int, words: str, is_sealed: bool, state: State) -> None:
    """A clock that is an hour off breaks encryption, and is worth a warning without it."""
    now = int(time.time()) + ahead
    server.always("TIME", resp_server.reply([b"%d" % now, b"0"]))
    keys = {"symmetric_encryption_keys": [Fernet.generate_key().decode()]} if is_sealed else {}
    findings = await found(hosts=[server.url], **keys)
    finding = the(findings, "clock")
    assert finding.state is state and words in finding.text and "NTP" in finding.remedy


@pytest.mark.parametrize(
    ("theirs", "words", "remedy"),
    [
        ({"partitions": 8}, "others have partitions: 8", "the same settings in every process"),
        ({"serializer_format": "json"}, "others have serializer_format: 'json'", "another `prefix`"),
    ],
)
async def test_layout_of_another_site(
    make_layer: MakeLayer, redis_url: str, prefix: str, theirs: dict[str, Any], words: str, remedy: str
) -> None:
    """Another site runs on this prefix, with settings that do not fit."""
    await (await make_layer(**theirs)).new_channel()
    await one_fault("layout", words, remedy, hosts=[redis_url], prefix=prefix)


async def test_a_layout_that_cannot_be_read(
    redis_server: EmbeddedServer, redis_url: str, prefix: str
) -> None:
    """What another release has written is shown."""
    redis_server.command("ZADD", f"{prefix}:0:layouts", int(time.time() * 1000) + 60_000, "nonsense")
    await one_fault("layout", "(nonsense)", "the same release", hosts=[redis_url], prefix=prefix)


async def test_managed_server(server: RespServer, prefix: str) -> None:
    """Where CONFIG is no command, as on many managed servers, the line says so, and check goes on."""
    server.always(
        "CONFIG", resp_server.error("ERR unknown command 'CONFIG', with args beginning with: 'GET'")
    )
    findings = await found(hosts=[server.url], prefix=prefix)
    buffers = the(findings, "buffers")
    assert buffers.state is State.UNSEEN and "does not know CONFIG GET" in buffers.text
    assert "provider" in buffers.remedy
    assert [finding.subject for finding in findings] == SUBJECTS and not faults(findings)


@pytest.mark.parametrize("answer", ["ERR not today", [b"client-output-buffer-limit", b"normal 0 0 0"]])
async def test_settings_that_are_not_told(server: RespServer, prefix: str, answer: str | list[bytes]) -> None:
    """A server that answers something else is no fault either."""
    server.always(
        "CONFIG", resp_server.error(answer) if isinstance(answer, str) else resp_server.reply(answer)
    )
    buffers = the(await found(hosts=[server.url], prefix=prefix), "buffers")
    assert buffers.state is State.UNSEEN and ("not today" in buffers.text) is isinstance(answer, str)


async def test_format_of_a_newer_release(redis_server: EmbeddedServer, redis_url: str, prefix: str) -> None:
    """A process that writes what this release does not read is worth a warning: it will change."""
    options = AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix).options
    newer = Layout.of(options, 0)
    newer = replace(newer, newest=newer.newest + 1, writes=newer.newest + 1)
    until = int(time.time() * 1000) + 600_000
    redis_server.command("ZADD", f"{prefix}:0:layouts", until, newer.text())
    finding = the(await found(hosts=[redis_url], prefix=prefix, send_timeout=0.5), "layout")
    assert finding.state is State.WARNING and "does not read yet" in finding.text


# Faults that only a round trip shows, or that come in between


async def test_trip_that_fails(server: RespServer, prefix: str) -> None:
    """A job that is refused is a fault, with the server's words."""
    server.always("PUSH", resp_server.error("ERR not on a Monday"))
    findings = await found(hosts=[server.url], prefix=prefix)
    (fault,) = faults(findings)
    assert fault.subject == "job" and "not on a Monday" in fault.text and "log" in fault.remedy


async def test_layer_that_does_not_connect(server: RespServer, prefix: str) -> None:
    """A layer that cannot connect after all is a fault."""
    server.always("LEASE", resp_server.error("ERR not on a Monday"))
    findings = await found(hosts=[server.url], prefix=prefix, send_timeout=1.0)
    (fault,) = faults(findings)
    assert fault.subject == "join" and "not on a Monday" in fault.text


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_connection_that_ends_meanwhile(server: RespServer, prefix: str, scheme: str) -> None:
    """What was found before is there, and then why nothing follows."""
    for name in ("TIME", "CLUSTER"):
        server.always(name, resp_server.close(executes=False))
    url = server.url.replace("redis", scheme, 1).removesuffix("/0")
    (fault,) = faults(await found(hosts=[url], prefix=prefix))
    assert "Nobody said why" in fault.remedy


@pytest.mark.server
async def test_primary_without_a_partition(redis_cluster: Cluster, prefix: str) -> None:
    """With fewer partitions than primaries, some have nothing to try; that is said."""
    findings = await found(hosts=[redis_cluster.url], prefix=prefix, partitions=1)
    assert not faults(findings)
    joins = [finding.state for finding in findings if finding.subject == "join"]
    assert sorted(joins, key=lambda state: state.value) == [State.OK, State.UNSEEN, State.UNSEEN]
