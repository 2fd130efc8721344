"""CONFIG: what is accepted means what it says, what is wrong is named with its remedy; no secret is shown."""

from __future__ import annotations

import inspect
import re
import ssl
import sys
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection, parse_url

from channels_asyncq.settings import arguments, options
from channels_asyncq.settings.hosts import Host
from channels_asyncq.settings.keys import Keeping, Recovery, log_bytes
from channels_asyncq.settings.options import Options

PROVIDER = SimpleNamespace(get_credentials=tuple)


def host(entry: Any) -> Host:
    return Options.from_config({"hosts": [entry]}).hosts[0]


def error(config: Mapping[Any, Any]) -> str:
    """Return the text of the ImproperlyConfigured that `config` gives."""
    with pytest.raises(ImproperlyConfigured) as caught:
        Options.from_config(config)
    return str(caught.value)


# Defaults and everything that channels_redis takes.


def test_empty_config_has_the_documented_defaults() -> None:
    """No CONFIG at all is a Redis on this machine, with the defaults of docs/settings.md."""
    found = Options.from_config({})
    assert found.hosts == (
        Host(
            "redis",
            url="redis://localhost:6379",
            arguments={"host": "localhost", "port": 6379, "db": 0},
            address="redis://localhost:6379/0",
        ),
    )
    assert found == Options(hosts=found.hosts)
    assert (found.prefix, found.expiry, found.group_expiry, found.capacity) == ("asgi", 60.0, 86400.0, 100)
    assert (found.overflow, found.send_timeout, found.partitions) == ("drop_newest", 5.0, 16)
    assert (found.max_message_size, found.serializer_format) == (4 * 1024 * 1024, "msgpack")


@pytest.mark.parametrize("hosts", [None, [], ()])
def test_no_hosts_is_localhost(hosts: Any) -> None:
    """An empty list of hosts means the same as none, as in channels_redis."""
    assert Options.from_config({"hosts": hosts}) == Options.from_config({})


def test_full_channels_redis_config() -> None:
    """A CONFIG with every key of channels_redis, core and pubsub, keeps its meaning."""
    found = Options.from_config(
        {
            "hosts": [("redis", 6380)],
            "prefix": "myapp:",
            "expiry": 10,
            "group_expiry": 3600,
            "capacity": 5,
            "channel_capacity": {
                "http.request": 200,
                "http.response!*": 10,
                re.compile(r"^websocket.send\!.+"): 20,
            },
            "symmetric_encryption_keys": ["secret", b"older"],
            "random_prefix_length": 12,
            "serializer_format": "json",
            "on_disconnect": "redis.gone",
            "on_reconnect": "redis.back",
        }
    )
    assert found.hosts[0].arguments == {"host": "redis", "port": 6380, "db": 0}
    assert (found.prefix, found.expiry, found.group_expiry, found.capacity) == ("myapp:", 10.0, 3600.0, 5)
    assert found.symmetric_encryption_keys == (b"secret", b"older")
    assert (found.serializer_format, found.on_disconnect, found.on_reconnect) == (
        "json",
        "redis.gone",
        "redis.back",
    )
    assert not hasattr(found, "random_prefix_length")


@pytest.mark.parametrize("key", ["hosts", "channel_capacity", "symmetric_encryption_keys", "on_disconnect"])
def test_none_is_the_default_where_channels_redis_has_it(key: str) -> None:
    """None means the default for those keys whose default it is in channels_redis."""
    assert Options.from_config({key: None}) == Options.from_config({})


def test_own_keys() -> None:
    """The keys that channels_redis does not have arrive too; recovery may be switched off, which it is."""
    config = {
        "overflow": "close",
        "send_timeout": 0.5,
        "max_message_size": 1,
        "partitions": 4096,
        "recovery": None,
    }
    found = Options.from_config(config)
    assert (found.overflow, found.send_timeout) == ("close", 0.5)
    assert (found.max_message_size, found.partitions) == (1, 4096)


@pytest.mark.parametrize(
    ("partitions", "messages", "kept", "size"),
    [
        (1, 10_000, 10_000, 8 * 2**20),
        (16, 10_000, 10_000, 8 * 2**20),
        (17, 10_000, 9411, 7_895_160),
        (64, 10_000, 2500, 2 * 2**20),
        (4096, 10_000, 39, 32 * 2**10),
        (4096, 100, 1, 32 * 2**10),
    ],
)
def test_more_logs_keep_less_each(partitions: int, messages: int, kept: int, size: int) -> None:
    """More than 16 logs together keep what 16 would, and each at least one message."""
    found = Options.from_config({"partitions": partitions, "recovery": {"messages": messages, "seconds": 9}})
    assert found.recovery == Recovery(seconds=9, messages=kept)
    assert log_bytes(partitions) == size


def test_every_option_can_be_configured() -> None:
    """No field of Options is out of reach of CONFIG."""
    assert set(options._CHECKS) == set(Options.__dataclass_fields__)


@pytest.mark.parametrize(
    ("channel", "capacity"),
    [
        ("http.request", 200),
        ("http.request.more", 7),
        ("http.response!abc", 10),
        ("websocket.send!x", 20),
        ("specific.node!local", 100),
        ("HTTP.request", 100),
    ],
)
def test_capacity_of_channel(channel: str, capacity: int) -> None:
    """Patterns are matched against the full name, case and all, and the first that matches decides."""
    patterns = {
        "http.request": 200,
        "http.response!*": 10,
        re.compile(r"^websocket.send\!.+"): 20,
        "http.*": 7,
        "*.request.more": 8,
    }
    assert Options.from_config({"channel_capacity": patterns}).capacity_of(channel) == capacity


@pytest.mark.parametrize(
    ("group", "keeping"),
    [
        ("chat.7", Keeping(300, 100)),
        ("chat.big", Keeping(5.5, 100)),
        ("news", Keeping(300, 7)),
        ("newspaper", None),
        ("chat.typing", None),
    ],
)
def test_history(group: str, keeping: Keeping | None) -> None:
    """The first pattern that matches decides; missing keys have defaults; a group without a log has none."""
    history: dict[Any, Any] = {
        "chat.big": {"seconds": 5.5},
        "chat.*": {},
        re.compile("news$"): {"messages": 7},
    }
    options = Options.from_config({"history": history, "recovery": {"exclude": ["*.typing"]}})
    assert options.keeping(group) == keeping


def test_no_history() -> None:
    """It is off by default, and may be off without logs."""
    cases: list[dict[str, Any]] = [{}, {"history": None}, {"history": {}}, {"history": {}, "recovery": None}]
    for config in cases:
        assert Options.from_config(config).keeping("chat.7") is None


# Hosts.


@pytest.mark.parametrize(
    ("entry", "transport", "arguments", "address"),
    [
        ("redis://h", "tcp", {"host": "h", "port": 6379, "db": 0}, "redis://h:6379/0"),
        ("redis://", "tcp", {"host": "localhost", "port": 6379, "db": 0}, "redis://localhost:6379/0"),
        ("redis://h:1/2", "tcp", {"host": "h", "port": 1, "db": 2}, "redis://h:1/2"),
        ("redis://h/?db=3", "tcp", {"host": "h", "port": 6379, "db": 3}, "redis://h:6379/3"),
        ("redis://[::1]:7/1", "tcp", {"host": "::1", "port": 7, "db": 1}, "redis://[::1]:7/1"),
        (
            "rediss://u%40:p%2Fw@h:1/2?socket_timeout=1.5&ssl_cert_reqs=none&ssl_check_hostname=false",
            "tls",
            {
                "host": "h",
                "port": 1,
                "db": 2,
                "username": "u@",
                "password": "p/w",
                "socket_timeout": 1.5,
                "ssl_cert_reqs": "none",
                "ssl_check_hostname": False,
            },
            "rediss://h:1/2",
        ),
        ("unix:///run/r.sock", "unix", {"path": "/run/r.sock", "db": 0}, "unix:///run/r.sock?db=0"),
        (
            "unix://:pw@/run/r.sock?db=4",
            "unix",
            {"path": "/run/r.sock", "password": "pw", "db": 4},
            "unix:///run/r.sock?db=4",
        ),
        (("h", 1), "tcp", {"host": "h", "port": 1, "db": 0}, "redis://h:1/0"),
        (["h", "6380"], "tcp", {"host": "h", "port": 6380, "db": 0}, "redis://h:6380/0"),
        ({"address": "redis://h:1/2"}, "tcp", {"host": "h", "port": 1, "db": 2}, "redis://h:1/2"),
        (
            {"address": "redis://h", "db": 5, "password": "pw", "socket_keepalive": True},
            "tcp",
            {"host": "h", "port": 6379, "db": 5, "password": "pw", "socket_keepalive": True},
            "redis://h:6379/5",
        ),
        (
            {"address": "redis://h/5", "db": 5},
            "tcp",
            {"host": "h", "port": 6379, "db": 5},
            "redis://h:6379/5",
        ),
        (
            {"address": "rediss://h", "ssl_cert_reqs": None, "ssl": True},
            "tls",
            {"host": "h", "port": 6379, "db": 0, "ssl_cert_reqs": None},
            "rediss://h:6379/0",
        ),
        ({"port": 6380}, "tcp", {"host": "localhost", "port": 6380, "db": 0}, "redis://localhost:6380/0"),
        (
            {"host": "h", "ssl": True, "ssl_cert_reqs": ssl.CERT_NONE},
            "tls",
            {"host": "h", "port": 6379, "db": 0, "ssl_cert_reqs": ssl.CERT_NONE},
            "rediss://h:6379/0",
        ),
        (
            {"path": "/run/r.sock", "db": "3", "ssl": False},
            "unix",
            {"path": "/run/r.sock", "db": 3},
            "unix:///run/r.sock?db=3",
        ),
        (
            {"host": "h", "protocol": 2, "decode_responses": False, "max_connections": 10},
            "tcp",
            {"host": "h", "port": 6379, "db": 0},
            "redis://h:6379/0",
        ),
        (
            {"host": "h", "health_check_interval": 0, "retry_on_timeout": True, "socket_timeout": None},
            "tcp",
            {
                "host": "h",
                "port": 6379,
                "db": 0,
                "health_check_interval": 0,
                "retry_on_timeout": True,
                "socket_timeout": None,
            },
            "redis://h:6379/0",
        ),
    ],
    ids=repr,
)
def test_host(entry: Any, transport: str, arguments: dict[str, Any], address: str) -> None:
    """Each form that channels_redis takes gives transport, arguments, database and an address to show."""
    found = host(entry)
    assert (found.kind, found.transport, found.arguments, found.address) == (
        "redis",
        transport,
        arguments,
        address,
    )
    assert found.db == arguments["db"]
    assert found.url == (
        entry if isinstance(entry, str) else entry.get("address") if isinstance(entry, dict) else None
    )


@pytest.mark.parametrize("rest", ["://h:1/2", "://u:p%40w@h?db=3", "s://h", "s://h?ssl_cert_reqs=none"])
def test_valkey_is_another_name(rest: str) -> None:
    """valkey:// and valkeys:// are redis:// and rediss://, alone and as the address in a dict."""
    for entry, same in ((f"valkey{rest}", f"redis{rest}"), ({"address": f"valkey{rest}"}, f"redis{rest}")):
        assert host(entry) == host(same)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:1/2",
        "redis://u:p%40w@h?db=3&socket_timeout=1.5&health_check_interval=9&client_name=me",
        "rediss://:pw@[::1]:7/0?ssl_cert_reqs=none&ssl_check_hostname=no",
        "unix://u:pw@/run/r.sock?db=1",
        "redis://h?socket_keepalive=yes&retry_on_timeout=0",
        "rediss://h/0/",
        "redis://h:1/3/?client_name=me",
    ],
)
def test_url_is_read_as_redis_py_reads_it(url: str) -> None:
    """What the URL gives is what redis-py would have taken from it."""
    theirs = dict(parse_url(url))
    theirs.pop("connection_class", None)
    assert {key: value for key, value in host(url).arguments.items() if key in theirs} == theirs


def test_sentinels() -> None:
    """Sentinels, the name of their master, their own arguments and those of the master are kept apart."""
    found = host(
        {
            "sentinels": [("s1", 26379), ["::1", "26380"]],
            "master_name": "mymaster",
            "sentinel_kwargs": {"password": "sentinel-pw", "ssl": True, "ssl_ca_certs": "/ca.pem"},
            "password": "pw",
            "db": 2,
            "ssl": True,
        }
    )
    assert found.sentinels == (("s1", 26379), ("::1", 26380))
    assert (found.master_name, found.db, found.transport, found.url) == ("mymaster", 2, "tls", None)
    assert found.sentinel_kwargs == {"password": "sentinel-pw", "ssl": True, "ssl_ca_certs": "/ca.pem"}
    assert found.arguments == {"password": "pw", "db": 2}
    assert found.address == "sentinel://s1:26379,[::1]:26380/mymaster/2"


def test_sentinels_without_more() -> None:
    """Sentinels need no arguments of their own."""
    found = host({"sentinels": [("s1", 26379)], "master_name": "m"})
    assert (found.sentinel_kwargs, found.transport, found.arguments) == (None, "tcp", {"db": 0})


def remap(address: tuple[str, int]) -> tuple[str, int]:
    return "tunnel", address[1]


@pytest.mark.parametrize(
    ("entry", "nodes", "arguments", "address"),
    [
        ("redis+cluster://h", (("h", 6379),), {"db": 0}, "redis+cluster://h:6379"),
        (
            "redis+cluster://a:1,[::1]:2,[::2],c",
            (("a", 1), ("::1", 2), ("::2", 6379), ("c", 6379)),
            {"db": 0},
            "redis+cluster://a:1,[::1]:2,[::2]:6379,c:6379",
        ),
        (
            "redis+cluster://u%40:p%2Cw@a:1,b:2/0?socket_timeout=1.5",
            (("a", 1), ("b", 2)),
            {"username": "u@", "password": "p,w", "socket_timeout": 1.5, "db": 0},
            "redis+cluster://a:1,b:2",
        ),
        ("redis+cluster://a,b@c@h:1/", (("h", 1),), {"username": "a,b@c", "db": 0}, "redis+cluster://h:1"),
        ("redis+cluster://h:1,h:1", (("h", 1),), {"db": 0}, "redis+cluster://h:1"),
        (
            "rediss+cluster://:pw@a:1,b?ssl_cert_reqs=none",
            (("a", 1), ("b", 6379)),
            {"password": "pw", "ssl_cert_reqs": "none", "db": 0},
            "rediss+cluster://a:1,b:6379",
        ),
        (
            {"address": "redis+cluster://a:1,b:2", "password": "pw", "db": 0},
            (("a", 1), ("b", 2)),
            {"password": "pw", "db": 0},
            "redis+cluster://a:1,b:2",
        ),
        (
            {"startup_nodes": [("a", 1), ["::1", "2"], {"host": "c", "port": "3"}, {"host": "d"}]},
            (("a", 1), ("::1", 2), ("c", 3), ("d", 6379)),
            {"db": 0},
            "redis+cluster://a:1,[::1]:2,c:3,d:6379",
        ),
        (
            {
                "startup_nodes": [("a", 1)],
                "ssl": True,
                "ssl_ca_certs": "/ca.pem",
                "credential_provider": PROVIDER,
            },
            (("a", 1),),
            {"ssl_ca_certs": "/ca.pem", "credential_provider": PROVIDER, "db": 0},
            "rediss+cluster://a:1",
        ),
    ],
    ids=repr,
)
def test_cluster(entry: Any, nodes: object, arguments: dict[str, Any], address: str) -> None:
    """A URL or a dict gives the nodes to ask first, and the arguments that all nodes have in common."""
    found = host(entry)
    assert (found.kind, found.startup_nodes, found.arguments, found.address) == (
        "redis",
        nodes,
        arguments,
        address,
    )
    assert found.is_cluster and found.db == 0 and found.address_remap is None
    assert found.transport == ("tls" if address.startswith("rediss") else "tcp")


@pytest.mark.parametrize(
    "entry",
    [{"startup_nodes": [("a", 1)]}, {"address": "redis+cluster://a:1"}, {"address": "valkey+cluster://a:1"}],
)
def test_cluster_behind_other_addresses(entry: dict[str, Any]) -> None:
    """The function that redis-py calls `address_remap` stands beside both forms, and is not an argument."""
    found = host({**entry, "address_remap": remap})
    assert found.address_remap is remap and found.arguments == {"db": 0}
    assert host({**entry, "address_remap": None}).address_remap is None
    assert found != host(entry) and "remap" not in repr(found)


@pytest.mark.parametrize("rest", ["://h:1,g", "s://u:p@h?ssl_cert_reqs=none"])
def test_valkey_cluster_is_another_name(rest: str) -> None:
    """valkey+cluster:// and valkeys+cluster:// are redis+cluster:// and rediss+cluster://."""
    name, colon, nodes = rest.partition("://")
    same = f"redis{name}+cluster{colon}{nodes}"
    for entry in (f"valkey{name}+cluster{colon}{nodes}", {"address": f"valkey{name}+cluster{colon}{nodes}"}):
        assert host(entry) == host(same)


def test_one_node_of_a_cluster() -> None:
    """A node is a host with its own address, and with everything else that is configured for the cluster."""
    cluster = host({"address": "rediss+cluster://u:pw@a:1,b:2?ssl_cert_reqs=none", "address_remap": remap})
    arguments = {"username": "u", "password": "pw", "ssl_cert_reqs": "none", "db": 0}
    node = cluster.at("::1", 7001)
    assert node == Host(
        "redis",
        arguments={**arguments, "host": "::1", "port": 7001},
        address="rediss://[::1]:7001/0",
        transport="tls",
    )
    assert not node.is_cluster
    assert cluster.arguments == arguments and cluster.is_cluster
    assert host("redis+cluster://a").at("b", 2) == replace(host("redis://b:2"), url=None)


def test_partitions_in_a_cluster() -> None:
    """64 by default; together they keep as many messages as 16 partitions."""
    found = Options.from_config({"hosts": ["redis+cluster://h"]})
    assert found.partitions == 64
    assert found.recovery == Recovery(messages=2500)
    topics = found.topics("0" * 16)
    assert topics.is_cluster and topics.partitions == 64
    assert Options.from_config({"hosts": ["redis+cluster://h"], "partitions": 16}).partitions == 16
    assert Options.from_config({"partitions": 4096, "hosts": ["redis+cluster://h"]}).partitions == 4096


@pytest.mark.parametrize("entry", ["memory://", {"address": "memory://"}])
def test_memory(entry: Any) -> None:
    """memory:// is a host without server, arguments and database."""
    assert host(entry) == Host("memory", url="memory://", address="memory://")


def test_several_hosts_keep_their_order() -> None:
    """Partitions are dealt out by position, so positions stay."""
    found = Options.from_config({"hosts": ["redis://b", ("a", 1), {"address": "redis://c/1"}]})
    assert [entry.address for entry in found.hosts] == [
        "redis://b:6379/0",
        "redis://a:1/0",
        "redis://c:6379/1",
    ]


def test_config_is_left_as_it_is() -> None:
    """Reading CONFIG changes nothing in it: Django reads it again."""
    entry = {"sentinels": [("s", 1)], "master_name": "m", "sentinel_kwargs": {"ssl": True}, "ssl": True}
    config = {"hosts": [entry, {"address": "redis://h", "ssl": False}]}
    before = repr(config)
    assert Options.from_config(config) == Options.from_config(config)
    assert repr(config) == before


def test_every_argument_of_redis_py_is_decided_on() -> None:
    """Each argument of the installed redis-py's connections is either taken or refused with a reason."""
    theirs = {
        name
        for connection in (AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection)
        for name, parameter in inspect.signature(connection.__init__).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    }
    decided = set(arguments.ARGUMENTS) | set(arguments.TLS_ARGUMENTS) | set(arguments.REFUSED_ARGUMENTS)
    assert theirs <= decided


def test_accepted_arguments_fit_redis_py() -> None:
    """redis-py's connection classes take what is handed on."""
    assert Connection(**host("redis://u:p@h:1/2?socket_timeout=3").arguments).port == 1
    assert UnixDomainSocketConnection(**host("unix:///run/r.sock?db=1").arguments).path == "/run/r.sock"
    SSLConnection(
        **host({"address": "rediss://h", "ssl_cert_reqs": None, "ssl_check_hostname": False}).arguments
    )


# What is wrong.

BAD: list[tuple[dict[Any, Any], str, str]] = [
    ({"capactiy": 10}, "capactiy = 10", "Did you mean 'capacity'?"),
    ({"HOSTS": []}, "HOSTS = []", "Did you mean 'hosts'?"),
    ({"xyzzy": 1}, "xyzzy = 1", "Known are capacity"),
    ({1: 2}, "1 = 2", "no such key"),
    ({"on_loss": 1}, "on_loss = 1", "message type"),
    ({"max_buffered_bytes": 0}, "max_buffered_bytes = 0", "1 or more"),
    ({"max_buffered_bytes": "1"}, "max_buffered_bytes = '1'", "int"),
    ({"external": ["news.*"]}, "external = ['news.*']", "None or a dict"),
    ({"external": {"types": "news.*"}}, "external['types'] = 'news.*'", "list of patterns"),
    ({"external": {"groups": [re.compile(b"x")]}}, "external['groups'] = re.compile(b'x')", "pattern of str"),
    ({"external": {"type": []}}, "external['type'] = []", "Did you mean 'types'?"),
    ({"recovery": True}, "recovery = True", "None or a dict"),
    ({"recovery": {"seconds": 0}}, "recovery['seconds'] = 0", "seconds"),
    ({"recovery": {"messages": 99}}, "recovery['messages'] = 99", "100 to 1000000000"),
    ({"recovery": {"message_bytes": 1023}}, "recovery['message_bytes'] = 1023", "1024 to 1048576"),
    ({"recovery": {"message_bytes": 2**20 + 1}}, "= 1048577", "Store those, and send a key"),
    ({"recovery": {"message_bytes": True}}, "recovery['message_bytes'] = True", "int, 1024"),
    ({"recovery": {"message_bytes": "64k"}}, "recovery['message_bytes'] = '64k'", "int, 1024"),
    ({"recovery": {"catch_up_messages": 0}}, "recovery['catch_up_messages'] = 0", "int, 1 to"),
    ({"recovery": {"catch_up_messages": 1.5}}, "recovery['catch_up_messages'] = 1.5", "int, 1 to"),
    ({"recovery": {"catch_up_seconds": 0}}, "recovery['catch_up_seconds'] = 0", "greater than 0"),
    ({"recovery": {"catch_up_second": 5}}, "recovery['catch_up_second'] = 5", "catch_up_seconds"),
    ({"recovery": {"message_byte": 2048}}, "recovery['message_byte'] = 2048", "message_bytes"),
    ({"recovery": {"exclude": "typing.*"}}, "recovery['exclude'] = 'typing.*'", "list of patterns"),
    ({"recovery": {"exclude": [1]}}, "recovery['exclude'] = 1", "glob or a compiled"),
    ({"recovery": {"required": 1}}, "recovery['required'] = 1", "True or False"),
    ({"recovery": {"second": 60}}, "recovery['second'] = 60", "seconds"),
    ({"prefix": None}, "prefix = None", "printable ASCII"),
    ({"prefix": ""}, "prefix = ''", "printable ASCII"),
    ({"prefix": b"asgi"}, "prefix = b'asgi'", "must be a str"),
    ({"prefix": "a{b}"}, "prefix = 'a{b}'", "without any of {}*?[]"),
    ({"prefix": "a*"}, "prefix = 'a*'", "without any of {}*?[]"),
    ({"prefix": "a b"}, "prefix = 'a b'", "without spaces"),
    ({"prefix": "asgi\n"}, r"prefix = 'asgi\n'", "printable ASCII"),
    ({"prefix": "ä"}, "prefix = 'ä'", "printable ASCII"),
    ({"expiry": 0}, "expiry = 0", "greater than 0"),
    ({"expiry": "60"}, "expiry = '60'", "number of seconds"),
    ({"expiry": True}, "expiry = True", "number of seconds"),
    ({"expiry": None}, "expiry = None", "number of seconds"),
    ({"expiry": float("nan")}, "expiry = nan", "number of seconds"),
    ({"expiry": float("inf")}, "expiry = inf", "number of seconds"),
    ({"expiry": 10**9 + 1}, "expiry = 1000000001", "greater than 0, 1000000000 at most"),
    ({"expiry": 10**400}, "expiry = 1000", "greater than 0, 1000000000 at most"),
    ({"group_expiry": -1}, "group_expiry = -1", "greater than 0"),
    ({"group_expiry": 1e10}, "group_expiry = 10000000000.0", "greater than 0, 1000000000 at most"),
    ({"send_timeout": 1e10}, "send_timeout = 10000000000.0", "greater than 0, 1000000000 at most"),
    ({"recovery": {"seconds": 1e10}}, "recovery['seconds'] = 10000000000.0", "1000000000 at most"),
    ({"recovery": {"messages": 2**63}}, "recovery['messages'] = 9223372036854775808", "100 to 1000000000"),
    ({"max_message_size": 2**32}, "max_message_size = 4294967296", "an int, 1 to 1000000000"),
    ({"send_timeout": 0}, "send_timeout = 0", "greater than 0"),
    ({"capacity": 0}, "capacity = 0", "an int, 1 or more"),
    ({"capacity": True}, "capacity = True", "an int, 1 or more"),
    ({"capacity": 1.5}, "capacity = 1.5", "an int, 1 or more"),
    ({"capacity": None}, "capacity = None", "an int, 1 or more"),
    ({"max_message_size": 0}, "max_message_size = 0", "an int, 1 to 1000000000"),
    ({"partitions": 0}, "partitions = 0", "an int, 1 to 4096"),
    ({"partitions": 4097}, "partitions = 4097", "an int, 1 to 4096"),
    ({"random_prefix_length": "12"}, "random_prefix_length = '12'", "an int, 0 or more"),
    ({"overflow": "drop"}, "overflow = 'drop'", "'drop_newest', 'drop_oldest', 'close'"),
    ({"overflow": ["close"]}, "overflow = ['close']", "must be one of"),
    ({"serializer_format": "pickle"}, "serializer_format = 'pickle'", "'msgpack', 'json'"),
    ({"on_disconnect": 1}, "on_disconnect = 1", "message type"),
    ({"on_reconnect": ""}, "on_reconnect = ''", "message type"),
    ({"channel_capacity": [("a", 1)]}, "channel_capacity = [('a', 1)]", "must be a dict"),
    ({"channel_capacity": {"a": 0}}, "channel_capacity['a'] = 0", "an int, 1 or more"),
    ({"channel_capacity": {"a": True}}, "channel_capacity['a'] = True", "an int, 1 or more"),
    ({"channel_capacity": {1: 2}}, "channel_capacity[1] = 2", "glob"),
    ({"channel_capacity": {"": 2}}, "channel_capacity[''] = 2", "glob"),
    ({"channel_capacity": {re.compile(b"a"): 2}}, "channel_capacity[re.compile(b'a')] = 2", "str pattern"),
    ({"history": ["chat.*"]}, "history = ['chat.*']", 'a dict such as {"chat.*": {"seconds": 300'),
    ({"history": {"chat.*": 100}}, "history['chat.*'] = 100", 'a dict such as {"seconds": 300'),
    ({"history": {"": {}}}, "history[''] = {}", 'a glob such as "chat.*"'),
    ({"history": {5: {}}}, "history[5] = {}", 'a glob such as "chat.*"'),
    ({"history": {"a": {"seconds": 0}}}, "history['a']['seconds'] = 0", "greater than 0"),
    ({"history": {"a": {"messages": 0}}}, "history['a']['messages'] = 0", "1 to 10000"),
    ({"history": {"a": {"messages": 10_001}}}, "history['a']['messages'] = 10001", "1 to 10000"),
    ({"history": {"a": {"message": 1}}}, "history['a']['message'] = 1", "Did you mean 'messages'?"),
    ({"history": {"a": {}}, "recovery": None}, "history = {'a': {}}", "`recovery` is None"),
    ({"symmetric_encryption_keys": "secret"}, "symmetric_encryption_keys", "must be a list of keys"),
    ({"symmetric_encryption_keys": b"secret"}, "symmetric_encryption_keys", "must be a list of keys"),
    (
        {"symmetric_encryption_keys": ["a", 1]},
        "symmetric_encryption_keys",
        "entry 1 must be str or bytes, not int",
    ),
    (
        {"symmetric_encryption_keys": [""]},
        "symmetric_encryption_keys",
        "entry 0 must be str or bytes, not empty",
    ),
    (
        {"hosts": "redis://h"},
        "hosts = 'redis://h'",
        "must be a list, even if there is only one host: ['redis://h']",
    ),
    ({"hosts": ""}, "hosts = ''", "must be a list"),
    ({"hosts": {"address": "redis://h"}}, "hosts = {'address'", "[{'address': 'redis://h'}]"),
    ({"hosts": 5}, "hosts = 5", "must be a list of hosts"),
    ({"hosts": ("localhost", 6379)}, "hosts[0] = 'localhost'", 'use "redis://localhost"'),
    ({"hosts": [None]}, "hosts[0] = None", "must be a URL"),
    ({"hosts": [b"redis://h"]}, "hosts[0] = b'redis://h'", "must be a URL"),
    ({"hosts": ["localhost:6379"]}, "hosts[0] = 'localhost:6379'", 'use "redis://localhost:6379"'),
    ({"hosts": ["http://h"]}, "hosts[0] = 'http://h'", "use redis://, rediss://"),
    ({"hosts": ["REDIS://h"]}, "hosts[0] = 'REDIS://h'", "use redis://, rediss://"),
    ({"hosts": ["keydb://h"]}, "hosts[0] = 'keydb://h'", "use redis://, rediss://"),
    (
        {"hosts": ["redis+cluster://a", "redis+cluster://b"]},
        "hosts = ['redis+cluster://a', 'redis+cluster://b']",
        'one entry with all its nodes: ["redis+cluster://host:port,host:port"]',
    ),
    ({"hosts": ["redis+cluster://a", ("b", 1)]}, "hosts = ['redis+cluster://a', ('b', 1)]", "is one entry"),
    ({"hosts": ["cluster://h"]}, "hosts[0] = 'cluster://h'", "use redis://, rediss://"),
    ({"hosts": ["unix+cluster://h"]}, "hosts[0] = 'unix+cluster://h'", "redis+cluster://, rediss+cluster://"),
    ({"hosts": ["redis+cluster://"]}, "'redis+cluster://'", "use redis+cluster://host:port,host:port"),
    ({"hosts": ["redis+cluster://a,"]}, "'redis+cluster://a,'", "use redis+cluster://host:port,host:port"),
    ({"hosts": ["redis+cluster://a, b"]}, "'redis+cluster://a, b'", "use redis+cluster://host:port"),
    ({"hosts": ["redis+cluster://a:b"]}, "'redis+cluster://a:b'", "use redis+cluster://host:port"),
    ({"hosts": ["redis+cluster://a:70000"]}, "'redis+cluster://a:70000'", "use redis+cluster://host:port"),
    ({"hosts": ["redis+cluster://[::1"]}, "'redis+cluster://[::1'", "use redis+cluster://host:port"),
    ({"hosts": ["redis+cluster://h#x"]}, "'redis+cluster://h#x'", "Percent-encode special characters"),
    ({"hosts": ["redis+cluster://u:p#x@h"]}, "'redis+cluster://***@h'", "Percent-encode special characters"),
    ({"hosts": ["redis+cluster://u:p/x@h"]}, "'redis+cluster://***@h'", "Percent-encode special characters"),
    ({"hosts": ["redis+cluster://u:p[x@h"]}, "'redis+cluster://***@h'", "Percent-encode special characters"),
    ({"hosts": ["redis+cluster://a:0"]}, "hosts[0]['port'] = 0", "1 to 65535"),
    ({"hosts": ["redis+cluster://a,b/1"]}, "'redis+cluster://a,b/1'", "has database 0 only. Leave out"),
    ({"hosts": ["redis+cluster://a/x"]}, "'redis+cluster://a/x'", "has database 0 only. Leave out"),
    ({"hosts": ["redis+cluster://a?db=2"]}, "hosts[0]['db'] = 2", "has database 0 only. Leave it out"),
    ({"hosts": ["redis+cluster://a?host=b"]}, "host in the URL", "given twice"),
    ({"hosts": ["redis+cluster://a?ssl_ca_certs=x"]}, "hosts[0]['ssl_ca_certs'] = 'x'", "rediss://"),
    ({"hosts": ["redis+cluster://a?address_remap=f"]}, "['address_remap'] = 'f'", "must be a function"),
    ({"hosts": [{"address": "redis+cluster://a", "db": 1}]}, "hosts[0]['db'] = 1", "database 0 only"),
    ({"hosts": [{"address": "redis+cluster://a", "ssl": True}]}, "['ssl'] = True", "use rediss+cluster://"),
    ({"hosts": [{"address": "redis+cluster://a", "host": "a"}]}, "hosts[0]['host']", "Keep one of them"),
    (
        {"hosts": [{"address": "redis+cluster://a", "startup_nodes": [("a", 1)]}]},
        "hosts[0]['startup_nodes']",
        "given by the address too. Keep one of them",
    ),
    (
        {"hosts": [{"address": "redis+cluster://a", "address_remap": {"a": "b"}}]},
        "hosts[0]['address_remap'] = {'a': 'b'}",
        "must be a function that takes a pair (host, port)",
    ),
    ({"hosts": [{"startup_nodes": []}]}, "hosts[0]['startup_nodes'] = []", 'such as [("10.0.0.1", 6379)'),
    ({"hosts": [{"startup_nodes": "a:1"}]}, "hosts[0]['startup_nodes'] = 'a:1'", "must be a list such as"),
    (
        {"hosts": [{"startup_nodes": ["a:1"]}]},
        "hosts[0]['startup_nodes'] = 'a:1'",
        "each must be (host, port)",
    ),
    ({"hosts": [{"startup_nodes": [("a", 0)]}]}, "hosts[0]['startup_nodes']['port'] = 0", "1 to 65535"),
    ({"hosts": [{"startup_nodes": [{"port": 1}]}]}, "hosts[0]['startup_nodes']['host'] = None", "a str"),
    (
        {"hosts": [{"startup_nodes": [{"host": "a", "ssl": True}]}]},
        "hosts[0]['startup_nodes']['ssl'] = True",
        "belongs beside startup_nodes",
    ),
    ({"hosts": [{"startup_nodes": [("a", 1)], "db": 3}]}, "hosts[0]['db'] = 3", "has database 0 only"),
    (
        {"hosts": [{"startup_nodes": [("a", 1)], "host": "a"}]},
        "hosts[0]['host'] = 'a'",
        "beside startup_nodes",
    ),
    ({"hosts": [{"startup_nodes": [("a", 1)], "path": "/x"}]}, "hosts[0]['path'] = '/x'", "Leave it out"),
    ({"hosts": [{"startup_nodes": [("a", 1)], "address_remap": 1}]}, "['address_remap'] = 1", "a function"),
    ({"hosts": [{"startup_node": [("a", 1)]}]}, "hosts[0]['startup_node']", "Did you mean 'startup_nodes'?"),
    ({"hosts": [{"host": "a", "address_remap": 1}]}, "['address_remap'] = 1", "is for a Redis Cluster: use"),
    ({"hosts": [{"path": "/x", "address_remap": 1}]}, "['address_remap'] = 1", "is for a Redis Cluster: use"),
    (
        {"hosts": [{"address": "redis://a", "startup_nodes": [("a", 1)]}]},
        "hosts[0]['startup_nodes'] = [('a', 1)]",
        "use redis+cluster://host:port,host:port, or startup_nodes without another address",
    ),
    (
        {"hosts": [{"sentinels": [("s", 1)], "master_name": "m", "startup_nodes": [("a", 1)]}]},
        "hosts[0]['startup_nodes'] = [('a', 1)]",
        "has no place beside sentinels",
    ),
    ({"hosts": ["memory://", "redis://h"]}, "hosts = ['memory://', 'redis://h']", "cannot be mixed"),
    ({"hosts": ["memory://", "memory://"]}, "hosts = ", "cannot be mixed"),
    ({"hosts": ["memory://x"]}, "hosts[0] = 'memory://x'", 'use "memory://"'),
    ({"hosts": [{"address": "memory://", "db": 1}]}, "hosts[0]", 'use "memory://"'),
    ({"hosts": ["redis://h/x"]}, "hosts[0] = 'redis://h/x'", "database number"),
    ({"hosts": ["redis://h/0/1"]}, "hosts[0] = 'redis://h/0/1'", "database number"),
    ({"hosts": ["redis://h:70000"]}, "hosts[0] = 'redis://h:70000'", "URL that can be read"),
    ({"hosts": ["redis://h:0"]}, "hosts[0]['port'] = 0", "1 to 65535"),
    ({"hosts": ["redis://[::1"]}, "hosts[0] = 'redis://[::1'", "URL that can be read"),
    ({"hosts": ["redis://h?db=x"]}, "hosts[0]['db'] = 'x'", "an int, 0 or more"),
    ({"hosts": ["redis://h/1?db=2"]}, "db in the URL", "given twice"),
    ({"hosts": ["redis://h?db=1&db=1"]}, "db in the URL", "given twice"),
    ({"hosts": ["redis://h?host=g"]}, "host in the URL", "given twice"),
    ({"hosts": ["redis://h?protocol=3"]}, "hosts[0]['protocol'] = 3", "2 (RESP2)"),
    (
        {"hosts": ["redis://h?decode_responses=False"]},
        "decode_responses in the URL = 'False'",
        "leave it out",
    ),
    ({"hosts": ["redis://h?ssl_cert_reqs=none"]}, "hosts[0]['ssl_cert_reqs'] = 'none'", "rediss://"),
    ({"hosts": ["rediss://h?ssl_cert_reqs=CERT_NONE"]}, "'CERT_NONE'", '"required", "optional" or "none"'),
    ({"hosts": ["unix://run/r.sock"]}, "hosts[0]", "full path"),
    ({"hosts": ["unix://"]}, "hosts[0]", "full path"),
    ({"hosts": [{"address": "redis://h/1", "db": 2}]}, "hosts[0]['db']", "given by the address too"),
    ({"hosts": [{"address": "redis://h", "host": "h"}]}, "hosts[0]['host']", "given by the address too"),
    ({"hosts": [{"address": "redis://h", "ssl": True}]}, "hosts[0]['ssl'] = True", "use rediss://"),
    ({"hosts": [{"address": ["redis://h"]}]}, "hosts[0]['address'] = ['redis://h']", "must be a URL"),
    ({"hosts": [{"address": "redis://h", "master_name": "m"}]}, "hosts[0]", "either address or sentinels"),
    ({"hosts": [{"adress": ""}]}, "hosts[0]['adress']", "Did you mean 'address'?"),  # codespell:ignore
    ({"hosts": [{}]}, "hosts[0] = {}", "needs address"),
    ({"hosts": [("h",)]}, "hosts[0] = ('h',)", "(host, port)"),
    ({"hosts": [("h", 1, 2)]}, "hosts[0] = ('h', 1, 2)", "(host, port)"),
    ({"hosts": [("h", "x")]}, "hosts[0]['port'] = 'x'", "1 to 65535"),
    ({"hosts": [("h", True)]}, "hosts[0]['port'] = True", "1 to 65535"),
    ({"hosts": [(None, 1)]}, "hosts[0]['host'] = None", "a str that is not empty"),
    ({"hosts": [{"host": "h", "db": -1}]}, "hosts[0]['db'] = -1", "an int, 0 or more"),
    ({"hosts": [{"host": "h", "db": None}]}, "hosts[0]['db'] = None", "an int, 0 or more"),
    ({"hosts": [{"host": "h", "protocol": 3}]}, "hosts[0]['protocol'] = 3", "2 (RESP2), or be left out"),
    (
        {"hosts": [{"host": "h", "decode_responses": True}]},
        "['decode_responses'] = True",
        "False, or be left out",
    ),
    ({"hosts": [{"host": "h", "max_connections": 1}]}, "['max_connections'] = 1", "2 or more"),
    ({"hosts": [{"host": "h", "socket_timeout": 0}]}, "['socket_timeout'] = 0", "greater than 0"),
    ({"hosts": [{"host": "h", "socket_keepalive": "yes"}]}, "= 'yes'", "True or False"),
    ({"hosts": [{"host": "h", "ssl_ca_certs": "x"}]}, "['ssl_ca_certs'] = 'x'", '"ssl": True'),
    ({"hosts": [{"host": "h", "connection_class": SSLConnection}]}, "connection_class", "rediss://"),
    ({"hosts": [{"host": "h", "parser_class": object}]}, "parser_class", "hiredis"),
    ({"hosts": [{"host": "h", "maint_notifications_config": 1}]}, "maint_notifications_config", "RESP3"),
    ({"hosts": [{"host": "h", 5: 1}]}, "hosts[0][5] = 1", "no such argument"),
    ({"hosts": [{"path": "/x", "host": "h"}]}, "hosts[0]", "either path"),
    ({"hosts": [{"path": "/x", "ssl": True}]}, "hosts[0]", "either path"),
    (
        {"hosts": [{"host": "h", "credential_provider": PROVIDER, "password": "x"}]},
        "hosts[0]",
        "either credential",
    ),
    ({"hosts": [{"sentinels": [("s", 1)]}]}, "hosts[0]['master_name'] = None", "mymaster"),
    ({"hosts": [{"master_name": "m"}]}, "hosts[0]['sentinels'] = None", '[("localhost", 26379)]'),
    ({"hosts": [{"sentinels": [], "master_name": "m"}]}, "hosts[0]['sentinels'] = []", "must be a list"),
    (
        {"hosts": [{"sentinels": ["s:1"], "master_name": "m"}]},
        "hosts[0]['sentinels'] = 's:1'",
        "(host, port)",
    ),
    ({"hosts": [{"sentinels": [("s", 0)], "master_name": "m"}]}, "['port'] = 0", "1 to 65535"),
    (
        {"hosts": [{"sentinels": [("s", 1)], "master_name": "m", "host": "h"}]},
        "hosts[0]['host'] = 'h'",
        "beside",
    ),
    (
        {"hosts": [{"sentinels": [("s", 1)], "master_name": "m", "sentinel_kwargs": 1}]},
        "= 1",
        "must be a dict",
    ),
    (
        {"hosts": [{"sentinels": [("s", 1)], "master_name": "m", "sentinel_kwargs": {"db": 1}}]},
        "hosts[0]['sentinel_kwargs']['db'] = 1",
        "beside",
    ),
]


@pytest.mark.parametrize(("config", "names", "remedy"), BAD)
def test_wrong_config_is_named_with_remedy(config: dict[Any, Any], names: str, remedy: str) -> None:
    """The error names the key and the value, and what would be right."""
    text = error(config)
    assert names in text
    assert remedy in text


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "config",
    [
        {"hosts": f"redis://:{SECRET}@h"},
        {"hosts": {"address": f"redis://user:{SECRET}@h"}},
        {"hosts": {"host": "h", "password": SECRET}},
        {"hosts": [f"redis://:{SECRET}@h/x"]},
        {"hosts": [f"redis://:{SECRET}#@h"]},
        {"hosts": [f"redis://:{SECRET}/x@h:6379/0"]},
        {"hosts": [f"redis://:a@b{SECRET}@h:port"]},
        {"hosts": [f"redis//:{SECRET}@h"]},
        {"hosts": [f"redis://h:{SECRET}@:x"]},
        {"hosts": [f"redis+cluster://:{SECRET}@h/1"]},
        {"hosts": [f"redis+cluster://:{SECRET}@h,"]},
        {"hosts": [f"redis+cluster://:{SECRET}@h?foo=1"]},
        {"hosts": [f"redis+cluster://:{SECRET}#@h"]},
        {"hosts": [f"redis+cluster://:{SECRET}/x@h:6379"]},
        {"hosts": [f"redis+cluster://:a,{SECRET}[@h"]},
        {"hosts": [f"redis+cluster://:a@b{SECRET}@h:port"]},
        {"hosts": [f"redis+cluster://:{SECRET}@h", "redis://g"]},
        {"hosts": [{"startup_nodes": [{"host": "h", "password": SECRET}]}]},
        {"hosts": [{"startup_nodes": f"redis://:{SECRET}@h"}]},
        {"hosts": [{"startup_nodes": [f"redis://:{SECRET}@h"]}]},
        {"hosts": [{"startup_nodes": [("h", 1)], "password": SECRET, "db": 1}]},
        {"hosts": [{"startup_nodes": [("h", 1)], "pasword": SECRET}]},  # codespell:ignore
        {"hosts": [f"redis://h/x?password={SECRET}"]},
        {"hosts": [f"redis://h?pasword={SECRET}"]},  # codespell:ignore
        {"hosts": [f"redis://:a@h?password={SECRET}"]},
        {"hosts": [f"rediss://h?ssl_password={SECRET}&foo=1"]},
        {"hosts": [f"redis://:{SECRET}@h?foo=1"]},
        {"hosts": [{"host": "h", "pasword": SECRET}]},  # codespell:ignore
        {"hosts": [{"host": "h", "password": [SECRET]}]},
        {"hosts": [{"host": "h", "ssl_password": SECRET}]},
        {"hosts": [{"path": "/x", "host": "h", "password": SECRET}]},
        # By hand: repr() has an address.
        pytest.param(
            {"hosts": [{"host": "h", "password": SECRET, "credential_provider": PROVIDER}]},
            id="password beside credential_provider",
        ),
        {"hosts": [{"address": "redis://:a@h", "password": SECRET}]},
        {"hosts": [{"address": f"redis://:{SECRET}@h", "master_name": "m"}]},
        {"hosts": [{"address": "memory://", "password": SECRET}]},
        {
            "hosts": [
                {"sentinels": [("s", 1)], "master_name": "m", "sentinel_kwargs": [f"redis://:{SECRET}@h"]}
            ]
        },
        {
            "hosts": [
                "memory://",
                f"redis://:{SECRET}@h",
                {"address": f"redis://:{SECRET}@h", "password": SECRET},
            ]
        },
        {"hosts": [f"redis://:{SECRET}@h".encode()]},
        {"symmetric_encryption_keys": SECRET},
        {"symmetric_encryption_keys": [SECRET, 1]},
        {"symetric_encryption_keys": [SECRET]},
    ],
    ids=repr,
)
def test_no_error_shows_a_secret(config: dict[str, Any]) -> None:
    """Whatever is wrong, a password or key never gets into the error, nor into what it was raised from."""
    with pytest.raises(ImproperlyConfigured) as caught:
        Options.from_config(config)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    "entry",
    [
        f"redis://user:{SECRET}@h",
        f"redis://h?password={SECRET}",
        f"unix://:{SECRET}@/run/r.sock",
        f"redis+cluster://:{SECRET}@a,b",
        {"startup_nodes": [("h", 1)], "password": SECRET},
        {"host": "h", "password": SECRET},
        {
            "sentinels": [("s", 1)],
            "master_name": "m",
            "password": SECRET,
            "sentinel_kwargs": {"password": SECRET},
        },
    ],
    ids=repr,
)
def test_no_address_and_no_repr_shows_a_secret(entry: Any) -> None:
    """Addresses go into messages and logs, options into tracebacks: neither holds credentials."""
    found = Options.from_config({"hosts": [entry], "symmetric_encryption_keys": [SECRET]})
    assert SECRET not in found.hosts[0].address
    assert SECRET not in found.hosts[0].at("node", 1).address
    assert SECRET not in repr(found)
    assert SECRET in repr(found.hosts[0].arguments)


def test_encryption_without_cryptography_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys without the package that uses them are an error at start, with the command that helps."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    text = error({"symmetric_encryption_keys": [SECRET]})
    assert "pip install channels_asyncq[cryptography]" in text
    assert Options.from_config({"symmetric_encryption_keys": []}).symmetric_encryption_keys == ()


def test_long_value_is_cut() -> None:
    """A value of any size gives an error of readable size."""
    assert len(error({"prefix": "ä" * 10_000})) < 500
