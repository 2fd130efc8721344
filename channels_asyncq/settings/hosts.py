"""From an entry of `hosts` to a host: a URL, a pair, a dict of redis-py arguments, or Sentinels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from .arguments import checked_arguments, value_from_text
from .refusals import refuse, shown

Transport = Literal["tcp", "tls", "unix"]

DEFAULT_URL = "redis://localhost:6379"
DEFAULT_PORT = 6379

_URL_HELP = "use redis://, rediss:// (TLS), unix:// or memory://"
_TRANSPORTS: dict[str, Transport] = {"redis": "tcp", "rediss": "tls", "unix": "unix"}
_VALKEY = {"valkey": "redis", "valkeys": "rediss"}


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
    return _plain_host(where, rest)


def _url_host(where: str, url: str, given: Mapping[Any, Any]) -> Host:
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in _VALKEY:
        # Another name of the same protocol.
        url = _VALKEY[scheme] + url[len(scheme) :]
        scheme = _VALKEY[scheme]
    if scheme in ("redis+cluster", "rediss+cluster"):
        refuse(
            where, url, "Redis Cluster is not available in this version of channels_asyncq; use one server."
        )
    if scheme == "memory":
        if url != "memory://" or given:
            refuse(
                where, {"address": url, **given} if given else url, 'nothing goes with it: use "memory://".'
            )
        return Host("memory", url=url)
    if scheme not in _TRANSPORTS:
        if not scheme and re.fullmatch(r"[\w.-]+(:\d+)?", url):
            refuse(where, url, f'must be a URL: use "redis://{url}".')
        refuse(where, url, f"there is no such kind of host: {_URL_HELP}.")
    if "sentinels" in given or "master_name" in given or "sentinel_kwargs" in given:
        refuse(where, {"address": url, **given}, "give either address or sentinels and master_name.")

    transport = _TRANSPORTS[scheme]
    from_url = _url_arguments(where, url, transport)
    for name in given:
        taken_by_url = name in ("host", "port", "path")
        if taken_by_url or (name in from_url and str(from_url[name]) != str(given[name])):
            refuse(f"{where}[{name!r}]", "***", "is given by the address too. Keep one of them.")
    if "ssl" in given and given["ssl"] is not (transport == "tls"):
        refuse(f"{where}['ssl']", given["ssl"], "the address says otherwise: use rediss:// for TLS.")
    return _redis_host(where, transport, {**from_url, **given}, url)


def _url_arguments(where: str, url: str, transport: Transport) -> dict[str, Any]:
    """Return the arguments in `url`, as redis-py reads them; a part that redis-py would ignore is refused."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The error's own text can hold a piece of the password.
        parts, port = SplitResult("", "", "", "", ""), None
    if not parts.scheme or parts.fragment or "#" in url:
        refuse(where, url, "not a URL that can be read. Percent-encode special characters in the password.")
    found: dict[str, Any] = {}
    if transport == "unix":
        if not parts.path or parts.hostname:
            refuse(where, url, "a unix:// address is followed by a full path: unix:///run/redis.sock?db=0.")
        found["path"] = unquote(parts.path)
    else:
        if parts.hostname:
            found["host"] = unquote(parts.hostname)
        if port is not None:
            found["port"] = port
        database = re.fullmatch(r"/?(\d*)/?", parts.path, re.ASCII)
        if database is None:
            refuse(
                where, url, "what follows the port is the database number, as in redis://localhost:6379/0."
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


def _plain_host(where: str, given: Mapping[Any, Any]) -> Host:
    unix = "path" in given
    if not given:
        refuse(where, given, "needs address, host and port, path, or sentinels and master_name.")
    if unix and ("host" in given or "port" in given or given.get("ssl")):
        refuse(where, given, "give either path (a Unix socket) or host and port.")
    transport: Transport = "unix" if unix else "tls" if given.get("ssl") is True else "tcp"
    return _redis_host(where, transport, given, None)


def _redis_host(where: str, transport: Transport, given: Mapping[Any, Any], url: str | None) -> Host:
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
        checked = checked_arguments(f"{where}['sentinels']", {"host": entry[0], "port": entry[1]}, tls=False)
        pairs.append((checked["host"], checked["port"]))
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
    _no_target(where, given)
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


def _no_target(where: str, given: Mapping[Any, Any], *more: str) -> None:
    for name in ("host", "port", "path", *more):
        if name in given:
            refuse(f"{where}[{name!r}]", given[name], "has no place beside sentinels. Leave it out.")


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(transport: Transport, db: int, arguments: Mapping[str, Any]) -> str:
    if transport == "unix":
        return f"unix://{arguments['path']}?db={db}"
    scheme = "rediss" if transport == "tls" else "redis"
    return f"{scheme}://{_netloc(arguments['host'], arguments['port'])}/{db}"
