"""From an entry of `hosts` to a host: a URL, a pair, a dict of redis-py arguments, Sentinels, or a cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from .arguments import checked_arguments, value_from_text
from .refusals import refuse, shown

Transport = Literal["tcp", "tls", "unix"]

DEFAULT_URL = "redis://localhost:6379"
DEFAULT_PORT = 6379

_URL_HELP = "use redis://, rediss:// (TLS), unix://, redis+cluster://, rediss+cluster:// or memory://"
_CLUSTER_HELP = "redis+cluster://host:port,host:port"
_TRANSPORTS: dict[str, Transport] = {"redis": "tcp", "rediss": "tls", "unix": "unix"}
_CLUSTERS: dict[str, Transport] = {"redis+cluster": "tcp", "rediss+cluster": "tls"}
_VALKEY = {
    "valkey": "redis",
    "valkeys": "rediss",
    "valkey+cluster": "redis+cluster",
    "valkeys+cluster": "rediss+cluster",
}


@dataclass(frozen=True, slots=True)
class Host:
    """
    One entry of `hosts`, checked.

    For Redis, `transport` and `arguments` are all that a redis-py connection needs, from the URL, its query or
    the dict. With `sentinels` there is no `host`: the Sentinels are asked for it.
    """

    kind: Literal["memory", "redis"]
    #: As configured, credentials included.
    url: str | None = field(default=None, repr=False)
    #: `host`, `port`, `path`, `db`, `password` ... for the connection class that `transport` stands for.
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    master_name: str | None = None
    sentinel_kwargs: Mapping[str, Any] | None = field(default=None, repr=False)
    #: The database number; it is part of every name on the server.
    db: int = 0
    #: For messages and logs; never holds credentials.
    address: str = "memory://"
    transport: Transport = "tcp"
    #: Host and port of the nodes of a Redis Cluster that are asked first for the others.
    startup_nodes: tuple[tuple[str, int], ...] = ()
    #: Takes the host and the port of a node, as a pair, as the cluster names them; returns those to connect to.
    address_remap: Callable[[tuple[str, int]], tuple[str, int]] | None = field(default=None, repr=False)

    @property
    def is_cluster(self) -> bool:
        """Whether it is a Redis Cluster."""
        return bool(self.startup_nodes)

    def at(self, host: str, port: int) -> Host:
        """Return the host of one node of this cluster. `address_remap` is not applied."""
        arguments = {**self.arguments, "host": host, "port": port}
        address = _address(self.transport, self.db, arguments)
        return replace(
            self, url=None, arguments=arguments, address=address, startup_nodes=(), address_remap=None
        )


def checked_hosts(key: str, value: Any) -> tuple[Host, ...]:
    if isinstance(value, (str, bytes, Mapping)):
        refuse(key, value, f"must be a list, even if there is only one host: [{shown(value)}].")
    if value is None:
        value = []
    if not isinstance(value, (list, tuple)):
        refuse(key, value, f'must be a list of hosts such as ["{DEFAULT_URL}"].')
    hosts = tuple(_host(f"{key}[{position}]", entry) for position, entry in enumerate(value or [DEFAULT_URL]))
    if len(hosts) > 1 and any(host.kind == "memory" for host in hosts):
        refuse(key, value, "memory:// is a layer of its own and cannot be mixed with other hosts.")
    if len(hosts) > 1 and any(host.is_cluster for host in hosts):
        refuse(key, value, f'a Redis Cluster is one entry with all its nodes: ["{_CLUSTER_HELP}"].')
    for position, host in enumerate(hosts):
        first = [other.address for other in hosts].index(host.address)
        if first < position:
            refuse(f"{key}[{position}]", host.address, f"is {key}[{first}] again. List each server once.")
    return hosts


def _host(where: str, entry: Any) -> Host:
    if isinstance(entry, str):
        return _url_host(where, entry, {})
    if isinstance(entry, (tuple, list)):
        if len(entry) != 2:
            refuse(where, entry, 'must be (host, port), such as ("localhost", 6379).')
        return _plain_host(where, {"host": entry[0], "port": entry[1]})
    if not isinstance(entry, Mapping):
        refuse(
            where,
            entry,
            f'must be a URL such as "{DEFAULT_URL}", (host, port) or a dict of redis-py arguments.',
        )
    rest = dict(entry)
    if "address" in rest:
        address = rest.pop("address")
        if not isinstance(address, str):
            refuse(f"{where}['address']", address, f'must be a URL such as "{DEFAULT_URL}".')
        return _url_host(where, address, rest)
    if "sentinels" in rest or "master_name" in rest or "sentinel_kwargs" in rest:
        return _sentinel_host(where, rest)
    if "startup_nodes" in rest:
        return _cluster_host(where, rest)
    return _plain_host(where, rest)


def _url_host(where: str, url: str, given: Mapping[Any, Any]) -> Host:
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in _VALKEY:
        # Another name of the same protocol.
        url = _VALKEY[scheme] + url[len(scheme) :]
        scheme = _VALKEY[scheme]
    if scheme == "memory":
        if url != "memory://" or given:
            refuse(
                where, {"address": url, **given} if given else url, 'nothing goes with it: use "memory://".'
            )
        return Host("memory", url=url)
    transport = (_TRANSPORTS | _CLUSTERS).get(scheme)
    if transport is None:
        if not scheme and re.fullmatch(r"[\w.-]+(:\d+)?", url):
            refuse(where, url, f'must be a URL: use "redis://{url}".')
        refuse(where, url, f"there is no such kind of host: {_URL_HELP}.")
    if "sentinels" in given or "master_name" in given or "sentinel_kwargs" in given:
        refuse(where, {"address": url, **given}, "give either address or sentinels and master_name.")

    nodes: tuple[tuple[str, int], ...] = ()
    if scheme in _CLUSTERS:
        nodes, from_url = _cluster_arguments(where, url, transport)
    else:
        from_url = _url_arguments(where, url, transport, url)
    for name in given:
        taken_by_url = name in ("host", "port", "path") or (nodes and name == "startup_nodes")
        if taken_by_url or (name in from_url and str(from_url[name]) != str(given[name])):
            refuse(f"{where}[{name!r}]", "***", "is given by the address too. Keep one of them.")
    if "ssl" in given and given["ssl"] is not (transport == "tls"):
        tls = "rediss+cluster://" if nodes else "rediss://"
        refuse(f"{where}['ssl']", given["ssl"], f"the address says otherwise: use {tls} for TLS.")
    arguments = {**from_url, **given}
    return (
        _nodes_host(where, transport, nodes, arguments, url)
        if nodes
        else _redis_host(where, transport, arguments, url)
    )


def _url_arguments(where: str, url: str, transport: Transport, configured: str) -> dict[str, Any]:
    """
    Return the arguments in `url`, as redis-py reads them; a part that redis-py would ignore is refused.

    Refusals show `configured`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The error's own text can hold a piece of the password.
        parts, port = SplitResult("", "", "", "", ""), None
    if not parts.scheme or parts.fragment or "#" in url:
        refuse(
            where,
            configured,
            "not a URL that can be read. Percent-encode special characters in the password.",
        )
    found: dict[str, Any] = {}
    if transport == "unix":
        if not parts.path or parts.hostname:
            refuse(
                where,
                configured,
                "a unix:// address is followed by a full path: unix:///run/redis.sock?db=0.",
            )
        found["path"] = unquote(parts.path)
    else:
        if parts.hostname:
            found["host"] = unquote(parts.hostname)
        if port is not None:
            found["port"] = port
        database = re.fullmatch(r"/?(\d*)/?", parts.path, re.ASCII)
        if database is None:
            refuse(
                where,
                configured,
                "what follows the port is the database number, as in redis://localhost:6379/0.",
            )
        if database[1]:
            found["db"] = int(database[1])
    if parts.username:
        found["username"] = unquote(parts.username)
    if parts.password:
        found["password"] = unquote(parts.password)

    query: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        value = value_from_text(name, text)
        if (
            name in query
            or (name in found and found[name] != value)
            or name in ("host", "port", "path", "ssl")
        ):
            refuse(f"{where}, {name} in the URL", "***", "is given twice. Keep it once.")
        if name == "decode_responses":
            # redis-py would take any text for True, "False" too.
            refuse(f"{where}, {name} in the URL", text, "leave it out.")
        query[name] = value
    return found | query


def _cluster_arguments(
    where: str, url: str, transport: Transport
) -> tuple[tuple[tuple[str, int], ...], dict[str, Any]]:
    """Return the nodes in the URL of a Redis Cluster, and the arguments that are for all of them."""
    parts = re.fullmatch(r"[^:]+://([^/?]*)([^?]*)(.*)", url, re.DOTALL)
    assert parts is not None  # it has a scheme
    authority, path, query = parts.groups()
    credentials, at, names = authority.rpartition("@")
    nodes = tuple(_node_in_url(where, name, url) for name in names.split(","))
    if "#" not in url and path.strip("/") not in ("", "0"):
        refuse(where, url, "a Redis Cluster has database 0 only. Leave out what follows the nodes.")
    scheme = "rediss" if transport == "tls" else "redis"
    return nodes, _url_arguments(where, f"{scheme}://{credentials}{at}{path}{query}", transport, url)


def _node_in_url(where: str, name: str, url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{name}")
        host, port = parts.hostname, parts.port
    except ValueError:
        # The error's own text can hold a piece of the password.
        host = port = None
    else:
        # Anything else is a piece of a password, a path or a list with spaces.
        host = host if parts.netloc == name and not re.search(r"\s", name) else None
    if not host:
        refuse(
            where,
            url,
            f"its nodes cannot be read: use {_CLUSTER_HELP}. Percent-encode special characters in the password.",
        )
    return _node(where, unquote(host), DEFAULT_PORT if port is None else port)


def _plain_host(where: str, given: Mapping[Any, Any]) -> Host:
    unix = "path" in given
    if not given:
        refuse(
            where, given, "needs address, host and port, path, sentinels and master_name, or startup_nodes."
        )
    if unix and ("host" in given or "port" in given or given.get("ssl")):
        refuse(where, given, "give either path (a Unix socket) or host and port.")
    transport: Transport = "unix" if unix else "tls" if given.get("ssl") is True else "tcp"
    return _redis_host(where, transport, given, None)


def _redis_host(where: str, transport: Transport, given: Mapping[Any, Any], url: str | None) -> Host:
    for name in ("startup_nodes", "address_remap"):
        if name in given:
            problem = (
                f"is for a Redis Cluster: use {_CLUSTER_HELP}, or startup_nodes without another address."
            )
            refuse(f"{where}[{name!r}]", given[name], problem)
    arguments = checked_arguments(where, given, tls=transport == "tls")
    if transport != "unix":
        arguments = {"host": "localhost", "port": DEFAULT_PORT} | arguments
    db = arguments.setdefault("db", 0)
    address = _address(transport, db, arguments)
    return Host("redis", url=url, arguments=arguments, db=db, address=address, transport=transport)


def _sentinel_host(where: str, given: dict[Any, Any]) -> Host:
    sentinels, master_name = given.pop("sentinels", None), given.pop("master_name", None)
    sentinel_kwargs = given.pop("sentinel_kwargs", None)
    if not isinstance(sentinels, (list, tuple)) or not sentinels:
        refuse(f"{where}['sentinels']", sentinels, 'must be a list such as [("localhost", 26379)].')
    pairs = []
    for entry in sentinels:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            refuse(f"{where}['sentinels']", entry, 'each must be (host, port), such as ("localhost", 26379).')
        pairs.append(_node(f"{where}['sentinels']", *entry))
    if not isinstance(master_name, str) or not master_name:
        refuse(
            f"{where}['master_name']",
            master_name,
            'must be the name the Sentinels watch, such as "mymaster".',
        )
    if sentinel_kwargs is not None:
        at = f"{where}['sentinel_kwargs']"
        if not isinstance(sentinel_kwargs, Mapping):
            refuse(at, sentinel_kwargs, "must be a dict of redis-py arguments for the Sentinels.")
        _no_target(at, sentinel_kwargs, "db")
        tls = sentinel_kwargs.get("ssl") is True
        # These go to redis.asyncio.Redis, which has an argument for TLS.
        sentinel_kwargs = checked_arguments(at, sentinel_kwargs, tls=tls) | ({"ssl": True} if tls else {})
    _no_target(where, given, "startup_nodes", "address_remap")
    transport: Transport = "tls" if given.get("ssl") is True else "tcp"
    arguments = checked_arguments(where, given, tls=transport == "tls")
    db = arguments.setdefault("db", 0)
    watchers = ",".join(_netloc(name, port) for name, port in pairs)
    return Host(
        "redis",
        arguments=arguments,
        sentinels=tuple(pairs),
        master_name=master_name,
        sentinel_kwargs=sentinel_kwargs,
        db=db,
        address=f"sentinel://{watchers}/{master_name}/{db}",
        transport=transport,
    )


def _cluster_host(where: str, given: dict[Any, Any]) -> Host:
    at, listed = f"{where}['startup_nodes']", given.pop("startup_nodes")
    _no_target(where, given, beside="startup_nodes")
    if not isinstance(listed, (list, tuple)) or not listed:
        refuse(at, listed, 'must be a list such as [("10.0.0.1", 6379), ("10.0.0.2", 6379)].')
    nodes = []
    for entry in listed:
        if isinstance(entry, Mapping):
            for name in entry.keys() - {"host", "port"}:
                refuse(
                    f"{at}[{name!r}]", entry[name], "belongs beside startup_nodes: it holds for all nodes."
                )
            host, port = entry.get("host"), entry.get("port", DEFAULT_PORT)
        elif isinstance(entry, (list, tuple)) and len(entry) == 2:
            host, port = entry
        else:
            refuse(
                at, entry, 'each must be (host, port), or a dict such as {"host": "10.0.0.1", "port": 6379}.'
            )
        nodes.append(_node(at, host, port))
    return _nodes_host(where, "tls" if given.get("ssl") is True else "tcp", nodes, given, None)


def _node(where: str, host: Any, port: Any) -> tuple[str, int]:
    checked = checked_arguments(where, {"host": host, "port": port}, tls=False)
    return checked["host"], checked["port"]


def _nodes_host(
    where: str,
    transport: Transport,
    nodes: Iterable[tuple[str, int]],
    given: Mapping[Any, Any],
    url: str | None,
) -> Host:
    """Return the host of a Redis Cluster with these nodes and arguments."""
    remap = given.get("address_remap")
    if remap is not None and not callable(remap):
        problem = "must be a function that takes a pair (host, port) and returns the pair to connect to."
        refuse(f"{where}['address_remap']", remap, problem)
    options = {name: value for name, value in given.items() if name != "address_remap"}
    arguments = checked_arguments(where, options, tls=transport == "tls")
    if arguments.setdefault("db", 0) != 0:
        refuse(f"{where}['db']", arguments["db"], "a Redis Cluster has database 0 only. Leave it out.")
    nodes = tuple(dict.fromkeys(nodes))
    scheme = "rediss" if transport == "tls" else "redis"
    return Host(
        "redis",
        url=url,
        arguments=arguments,
        address=f"{scheme}+cluster://{','.join(_netloc(*node) for node in nodes)}",
        transport=transport,
        startup_nodes=nodes,
        address_remap=remap,
    )


def _no_target(where: str, given: Mapping[Any, Any], *more: str, beside: str = "sentinels") -> None:
    for name in ("host", "port", "path", *more):
        if name in given:
            refuse(f"{where}[{name!r}]", given[name], f"has no place beside {beside}. Leave it out.")


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(transport: Transport, db: int, arguments: Mapping[str, Any]) -> str:
    if transport == "unix":
        return f"unix://{arguments['path']}?db={db}"
    scheme = "rediss" if transport == "tls" else "redis"
    return f"{scheme}://{_netloc(arguments['host'], arguments['port'])}/{db}"
