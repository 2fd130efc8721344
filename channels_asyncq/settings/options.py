"""
What `CONFIG` says, as typed values.

`Options.from_config` takes every key of `channels_redis` (core and pubsub) with its meaning, and this layer's
own. Whatever is wrong becomes an `ImproperlyConfigured` that names the key, the value and what would be
right; passwords and encryption keys appear in no message and no `repr`.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib.util
import math
import re
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypedDict, cast, get_args
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from ..messages.external import External

__all__ = [
    "Config",
    "ExternalConfig",
    "Host",
    "Options",
    "Overflow",
    "Recovery",
    "RecoveryConfig",
    "SerializerFormat",
]

Overflow = Literal["drop_newest", "drop_oldest", "close"]
SerializerFormat = Literal["msgpack", "json"]
Transport = Literal["tcp", "tls", "unix"]

DEFAULT_URL = "redis://localhost:6379"
DEFAULT_PORT = 6379
MAX_PARTITIONS = 4096
# Of seconds, of bytes of a message and of entries of a log. The scripts write a time as 13 digits of ms, and no
# log begins before 1970. The header has 32 bits for the length of a message.
MOST = 10**9
#: Bytes of a message that a log can be told to keep, at most: there is room for seven of them.
MOST_LOGGED = 2**20

_URL_HELP = "use redis://, rediss:// (TLS), unix:// or memory://"
_TRANSPORTS: dict[str, Transport] = {"redis": "tcp", "rediss": "tls", "unix": "unix"}
_VALKEY = {"valkey": "redis", "valkeys": "rediss"}

# What `CONFIG` is to a type checker. (A str is a Sequence too; it is refused when the layer is made.)

Patterns = Sequence[str | re.Pattern[str]]
Hosts = Sequence[str | tuple[str, int] | Mapping[str, Any]]


class RecoveryConfig(TypedDict, total=False):
    """The setting `recovery`."""

    seconds: float
    messages: int
    message_bytes: int
    exclude: Patterns
    required: bool


class ExternalConfig(TypedDict, total=False):
    """The setting `external`."""

    types: Patterns
    groups: Patterns


class Config(TypedDict, total=False):
    """
    The keys of `CONFIG`, and the arguments of `AsyncQueueChannelLayer`, for type checkers.

    `Options.from_config()` says the rest of what a value must be.
    """

    hosts: Hosts
    prefix: str
    expiry: float
    group_expiry: float
    capacity: int
    channel_capacity: (
        Mapping[Any, int] | None
    )  # str or compiled patterns; the keys of a Mapping are invariant
    symmetric_encryption_keys: Sequence[str | bytes] | None
    serializer_format: SerializerFormat
    on_disconnect: str | None
    on_reconnect: str | None
    overflow: Overflow
    send_timeout: float
    max_message_size: int
    partitions: int
    on_loss: str | None
    recovery: RecoveryConfig | None
    max_buffered_bytes: int | None
    external: ExternalConfig | None
    random_prefix_length: int


@dataclass(frozen=True, slots=True)
class Host:
    """
    One entry of `hosts`, checked.

    For Redis, `transport` and `arguments` are all that a redis-py connection needs, wherever they were given:
    in the URL, its query or the dict. With `sentinels` there is no `host`: they are asked for it.
    """

    kind: Literal["memory", "redis"]
    #: As configured, credentials included.
    url: str | None = field(default=None, repr=False)
    #: `host`, `port`, `path`, `db`, `password` ... for the connection class that `transport` stands for.
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    master_name: str | None = None
    sentinel_kwargs: Mapping[str, Any] | None = field(default=None, repr=False)
    #: The database number, wherever it was given; it is part of every name on the server.
    db: int = 0
    #: For messages and logs; never holds credentials.
    address: str = "memory://"
    transport: Transport = "tcp"


@dataclass(frozen=True, slots=True)
class Recovery:
    """
    What each partition's log keeps: for how long, how many, how large; and which groups are not logged.

    `required`: a message that the server refuses to log is not sent.
    """

    seconds: float = 60.0
    messages: int = 10000
    message_bytes: int = 64 * 1024
    exclude: tuple[re.Pattern[str], ...] = ()
    required: bool = False

    def is_logged(self, group: str) -> bool:
        return not any(pattern.match(group) for pattern in self.exclude)


@dataclass(slots=True)
class Options:
    """
    `CONFIG`, validated. Times are in seconds, sizes in bytes.

    What a layer lets its users change later, with `change()`, is read here each time it is needed.
    """

    hosts: tuple[Host, ...]
    prefix: str = "asgi"
    expiry: float = 60.0
    group_expiry: float = 86400.0
    capacity: int = 100
    channel_capacity: tuple[tuple[re.Pattern[str], int], ...] = ()
    symmetric_encryption_keys: tuple[bytes, ...] = field(default=(), repr=False)
    serializer_format: SerializerFormat = "msgpack"
    on_disconnect: str | None = None
    on_reconnect: str | None = None
    overflow: Overflow = "drop_newest"
    send_timeout: float = 5.0
    max_message_size: int = 4 * 1024 * 1024
    partitions: int = 16
    on_loss: str | None = None
    recovery: Recovery | None = field(default_factory=lambda: Recovery())
    max_buffered_bytes: int | None = None
    external: External | None = field(default_factory=lambda: External())

    @property
    def notices(self) -> frozenset[str]:
        """Types of the messages that the layer itself sends to the channels it owns."""
        return frozenset(filter(None, (self.on_loss, self.on_disconnect, self.on_reconnect)))

    @classmethod
    def from_config(cls, config: Any) -> Options:
        """
        Return the options that `config` describes; what it leaves out has its default.

        Raises:
            ImproperlyConfigured: an unknown key, a wrong type or an impossible value.
        """
        if not isinstance(config, Mapping):
            _refuse(
                "CONFIG", config, f'must be a dict such as {{"hosts": ["{DEFAULT_URL}"]}}, or be left out.'
            )
        values: dict[str, Any] = {}
        for key, value in config.items():
            if key in _CHECKS:
                values[key] = _CHECKS[key](key, value)
            elif key == "random_prefix_length":
                # It makes equal messages differ in channels_redis' sorted sets. There are none here.
                _integer(key, value, least=0)
            else:
                known = [*_CHECKS, "random_prefix_length"]
                _refuse(key, value, f"there is no such key. {_suggestion(key, known)}")
        values.setdefault("hosts", _hosts("hosts", None))
        return cls(**values)

    def change(self, key: str, value: Any) -> bool:
        """
        Check a value as in CONFIG and set it; return whether it is another one than before.

        Raises:
            ImproperlyConfigured: a wrong type or an impossible value.
        """
        checked = _CHECKS[key](key, value)
        if checked == getattr(self, key):
            return False
        setattr(self, key, checked)
        return True

    def capacity_rule(self, channel: str) -> str:
        """Return which setting decides the capacity of `channel`, for messages."""
        for pattern, _ in self.channel_capacity:
            if pattern.match(channel):
                return f"channel_capacity[{pattern.pattern!r}]"
        return "capacity"

    def capacity_of(self, channel: str) -> int:
        """Return how many messages `channel` (its full name) holds: the first matching pattern decides."""
        for pattern, capacity in self.channel_capacity:
            if pattern.match(channel):
                return capacity
        return self.capacity


def _refuse(key: object, value: object, problem: str) -> NoReturn:
    shown = "***" if _SECRET.search(str(key)) else _shown(value)
    raise ImproperlyConfigured(f"CHANNEL_LAYERS: {key} = {shown}: {problem}")


def _suggestion(name: object, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}."


# What a message may show. Values are cut, because a mistaken one can be anything.

# Broad, so that a misspelled "pasword" is not shown either.
_SECRET = re.compile(r"pas|pwd|user|secret|cred|auth|token|encr", re.IGNORECASE)
_SECRET_IN_QUERY = re.compile(rf"([?&][^=&]*(?:{_SECRET.pattern})[^=&]*=)[^&]*", re.IGNORECASE)


def _without_credentials(url: str) -> str:
    """Return `url`, well-formed or not, without anything that could be a password."""
    head, at, tail = url.rpartition("@")
    scheme, separator, _ = head.partition("://")
    text = f"{scheme + separator if separator else ''}***@{tail}" if at else url
    return _SECRET_IN_QUERY.sub(r"\1***", text)


def _cleaned(value: object) -> object:
    if isinstance(value, str):
        return _without_credentials(value)
    if isinstance(value, bytes):
        return _without_credentials(value.decode("utf-8", "replace")).encode()
    if isinstance(value, Mapping):
        return {
            key: "***" if isinstance(key, str) and _SECRET.search(key) else _cleaned(entry)
            for key, entry in value.items()
        }
    if type(value) in (list, tuple):
        entries = [_cleaned(entry) for entry in cast("list[object]", value)]
        return entries if isinstance(value, list) else tuple(entries)
    return value


def _shown(value: object) -> str:
    text = repr(_cleaned(value))
    return text if len(text) <= 200 else f"{text[:197]}..."


# Single values.


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _integer(key: str, value: Any, *, least: int, most: int | None = None) -> int:
    if not _is_int(value) or value < least or (most is not None and value > most):
        _refuse(key, value, f"must be an int, {least} {f'to {most}' if most is not None else 'or more'}.")
    return int(value)


def _positive_integer(key: str, value: Any) -> int:
    return _integer(key, value, least=1)


def _message_size(key: str, value: Any) -> int:
    return _integer(key, value, least=1, most=MOST)


def _partitions(key: str, value: Any) -> int:
    return _integer(key, value, least=1, most=MAX_PARTITIONS)


def _seconds(key: str, value: Any) -> float:
    if not _is_seconds(value) or value > MOST:
        _refuse(key, value, f"must be a number of seconds greater than 0, {MOST} at most.")
    return float(value)


def _prefix(key: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value) or set(value) & set("{}*?[]\\"):
        # It begins every name on the server: braces are Cluster's hash tags, the others ACL patterns.
        _refuse(key, value, "must be a str of printable ASCII without spaces and without any of {}*?[]\\.")
    return value


def _choice(key: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        _refuse(key, value, f"must be one of {', '.join(map(repr, choices))}.")
    return value


def _overflow(key: str, value: Any) -> str:
    return _choice(key, value, get_args(Overflow))


def _serializer_format(key: str, value: Any) -> str:
    return _choice(key, value, get_args(SerializerFormat))


def _message_type(key: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        _refuse(key, value, 'must be None or a message type such as "redis.disconnected".')
    return value


def _bytes_or_none(key: str, value: Any) -> int | None:
    return None if value is None else _integer(key, value, least=1)


def _recovery(key: str, value: Any) -> Recovery | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        _refuse(key, value, 'must be None or a dict such as {"seconds": 60, "messages": 10000}.')
    values: dict[str, Any] = {}
    for name, part in value.items():
        at = f"{key}[{name!r}]"
        if name == "seconds":
            values[name] = _seconds(at, part)
        elif name == "messages":
            values[name] = _integer(at, part, least=100, most=MOST)
        elif name == "message_bytes":
            if not _is_int(part) or not 1024 <= part <= MOST_LOGGED:
                _refuse(
                    at,
                    part,
                    f"must be an int, 1024 to {MOST_LOGGED}: a log has room for few that are larger. "
                    "Store those, and send a key to them.",
                )
            values[name] = int(part)
        elif name == "required":
            if not isinstance(part, bool):
                _refuse(at, part, "must be True or False.")
            values[name] = part
        elif name == "exclude":
            values[name] = _patterns(at, part, 'patterns of groups such as ["typing.*"]')
        else:
            known = ["seconds", "messages", "message_bytes", "exclude", "required"]
            _refuse(at, part, f"there is no such key. {_suggestion(name, known)}")
    return Recovery(**values)


def _external(key: str, value: Any) -> External | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        _refuse(key, value, 'must be None or a dict such as {"types": ["news.*"], "groups": ["board.*"]}.')
    examples = {
        "types": 'patterns of types such as ["news.*"]',
        "groups": 'patterns of groups such as ["board.*"]',
    }
    values: dict[str, tuple[re.Pattern[str], ...]] = {}
    for name, part in value.items():
        at = f"{key}[{name!r}]"
        if name not in examples:
            _refuse(at, part, f"there is no such key. {_suggestion(name, examples)}")
        values[name] = _patterns(at, part, examples[name])
    return External(**values)


def _patterns(key: str, value: Any, what: str) -> tuple[re.Pattern[str], ...]:
    if not isinstance(value, (list, tuple)):
        _refuse(key, value, f"must be a list of {what}.")
    for glob in value:
        is_pattern = isinstance(glob, re.Pattern) and isinstance(glob.pattern, str)
        if not (is_pattern or (isinstance(glob, str) and glob)):
            _refuse(key, glob, "must be a glob or a compiled pattern of str.")
    return tuple(re.compile(fnmatch.translate(glob)) if isinstance(glob, str) else glob for glob in value)


def _channel_capacity(key: str, value: Any) -> tuple[tuple[re.Pattern[str], int], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        _refuse(key, value, 'must be a dict of patterns and capacities such as {"http.*": 200}.')
    compiled = []
    for glob, capacity in value.items():
        at = f"{key}[{glob!r}]"
        pattern = re.compile(fnmatch.translate(glob)) if isinstance(glob, str) and glob else glob
        if not isinstance(pattern, re.Pattern) or not isinstance(pattern.pattern, str):
            _refuse(at, capacity, 'the key must be a glob such as "http.*" or a compiled str pattern.')
        compiled.append((pattern, _positive_integer(at, capacity)))
    return tuple(compiled)


def _encryption_keys(key: str, value: Any) -> tuple[bytes, ...]:
    # The values are never shown.
    def refuse(problem: str) -> NoReturn:
        raise ImproperlyConfigured(f"CHANNEL_LAYERS: {key}: {problem}")

    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        refuse(
            f"must be a list of keys (str or bytes), even if there is only one; not {type(value).__name__}."
        )
    keys = []
    for position, entry in enumerate(value):
        if not isinstance(entry, (str, bytes)) or not entry:
            what = f"not {type(entry).__name__}" if not isinstance(entry, (str, bytes)) else "not empty"
            refuse(f"entry {position} must be str or bytes, {what}.")
        keys.append(entry.encode() if isinstance(entry, str) else bytes(entry))
    if keys and importlib.util.find_spec("cryptography") is None:
        refuse("encryption needs the cryptography package: pip install channels_asyncq[cryptography]")
    return tuple(keys)


# Arguments of a redis-py connection.


@dataclass(frozen=True, slots=True)
class _Argument:
    """One argument that may stand in a host's dict or in the query of its URL."""

    fits: Callable[[Any], bool]
    right: str
    none: bool = True


_TEXT = _Argument(lambda value: isinstance(value, str), "a str")
_NAME = _Argument(lambda value: isinstance(value, str) and bool(value), "a str that is not empty", none=False)
_BOOL = _Argument(lambda value: isinstance(value, bool), "True or False", none=False)
_SECONDS = _Argument(_is_seconds, "a number of seconds greater than 0")
_NATURAL = _Argument(lambda value: _is_int(value) and value >= 0, "an int, 0 or more", none=False)
_ANY = _Argument(lambda value: True, "anything")

#: Arguments of redis.asyncio's Connection and UnixDomainSocketConnection (5.2 to 8) that mean something here:
#: redis-py connects, authenticates and selects the database with them.
_ARGUMENTS: dict[str, _Argument] = {
    "host": _NAME,
    "port": _Argument(lambda value: _is_int(value) and 0 < value < 65536, "an int, 1 to 65535", none=False),
    "path": _NAME,
    "db": _NATURAL,
    "username": _TEXT,
    "password": _Argument(lambda value: isinstance(value, (str, bytes)), "a str"),
    "credential_provider": _Argument(
        lambda value: hasattr(value, "get_credentials") or hasattr(value, "get_credentials_async"),
        "an object such as a redis.CredentialProvider",
    ),
    "client_name": _TEXT,
    "lib_name": _TEXT,
    "lib_version": _TEXT,
    "driver_info": _ANY,
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": _BOOL,
    "socket_keepalive_options": _Argument(lambda value: isinstance(value, Mapping), "a dict"),
    "socket_type": _NATURAL,
    "socket_read_size": _Argument(
        lambda value: _is_int(value) and value > 0, "an int, 1 or more", none=False
    ),
    "health_check_interval": _Argument(
        lambda value: value == 0 or _is_seconds(value), "a number of seconds, 0 or more"
    ),
    "retry": _ANY,
    "retry_on_timeout": _BOOL,
    "retry_on_error": _Argument(lambda value: isinstance(value, (list, tuple)), "a list of exceptions"),
    "encoding": _NAME,
    "encoding_errors": _NAME,
    # What follows is checked here and not handed on.
    "protocol": _Argument(lambda value: _is_int(value) and value == 2, "2 (RESP2), or be left out"),
    "decode_responses": _Argument(lambda value: value is False, "False, or be left out"),
    "max_connections": _Argument(
        lambda value: _is_int(value) and value >= 2,
        "2 or more (each process uses two connections), or be left out",
    ),
    "ssl": _BOOL,
}
_NOT_HANDED_ON = frozenset({"protocol", "decode_responses", "max_connections", "ssl"})

#: Arguments of SSLConnection: for rediss:// or {"ssl": True} only.
_TLS_ARGUMENTS: dict[str, _Argument] = {
    "ssl_keyfile": _TEXT,
    "ssl_certfile": _TEXT,
    "ssl_cert_reqs": _Argument(
        lambda value: isinstance(value, ssl.VerifyMode) or value in ("none", "optional", "required"),
        '"required", "optional" or "none"',
    ),
    "ssl_include_verify_flags": _ANY,
    "ssl_exclude_verify_flags": _ANY,
    "ssl_ca_certs": _TEXT,
    "ssl_ca_data": _ANY,
    "ssl_ca_path": _TEXT,
    "ssl_check_hostname": _BOOL,
    "ssl_min_version": _ANY,
    "ssl_ciphers": _TEXT,
    "ssl_password": _ANY,
}

#: Arguments that redis-py knows and that would change what is between it and the wire.
_REFUSED_ARGUMENTS: dict[str, str] = {
    "connection_class": "Use a rediss:// or unix:// address instead",
    "parser_class": "Replies are always read by hiredis",
    "encoder_class": "Commands are always packed by hiredis",
    "redis_connect_func": "Use credential_provider for credentials that change",
    "event_dispatcher": "Use credential_provider for credentials that change",
    "legacy_responses": "Replies are always those of RESP2",
    "himport_registry": "Leave it out",
    "maint_notifications_config": "Maintenance notifications need RESP3",
    "maint_notifications_pool_handler": "Maintenance notifications need RESP3",
    "maintenance_notification_hash": "Maintenance notifications need RESP3",
    "maintenance_state": "Maintenance notifications need RESP3",
    "oss_cluster_maint_notifications_handler": "Maintenance notifications need RESP3",
    "orig_host_address": "Leave it out",
    "orig_socket_timeout": "Leave it out",
    "orig_socket_connect_timeout": "Leave it out",
}


def _arguments(where: str, given: Mapping[Any, Any], *, tls: bool) -> dict[str, Any]:
    """Return those of `given` that go to redis-py; refuse what it or the wire could not take."""
    kept: dict[str, Any] = {}
    for name, value in given.items():
        at = f"{where}[{name!r}]"
        if name in _REFUSED_ARGUMENTS:
            _refuse(at, value, f"this redis-py argument cannot be honoured here. {_REFUSED_ARGUMENTS[name]}.")
        if name in _TLS_ARGUMENTS and not tls:
            _refuse(at, value, 'needs TLS: use a rediss:// address, or add "ssl": True to host and port.')
        argument = _ARGUMENTS.get(name) or _TLS_ARGUMENTS.get(name)
        if argument is None:
            known = [*_ARGUMENTS, *_TLS_ARGUMENTS, "address", "sentinels", "master_name", "sentinel_kwargs"]
            _refuse(
                at, value, f"there is no such argument of a redis-py connection. {_suggestion(name, known)}"
            )
        if name in ("port", "db") and isinstance(value, str) and re.fullmatch(r"\d{1,9}", value, re.ASCII):
            value = int(value)  # As it comes out of the environment; redis-py takes it too.
        if not argument.fits(value) and not (value is None and argument.none):
            _refuse(at, value, f"must be {argument.right}.")
        if name not in _NOT_HANDED_ON:
            kept[name] = value
    if kept.get("credential_provider") is not None and ("username" in kept or "password" in kept):
        _refuse(where, given, "give either credential_provider or username and password.")
    return kept


# Hosts.


def _hosts(key: str, value: Any) -> tuple[Host, ...]:
    if isinstance(value, (str, bytes, Mapping)):
        _refuse(key, value, f"must be a list, even if there is only one host: [{_shown(value)}].")
    if value is None:
        value = []
    if not isinstance(value, (list, tuple)):
        _refuse(key, value, f'must be a list of hosts such as ["{DEFAULT_URL}"].')
    hosts = tuple(_host(f"{key}[{position}]", entry) for position, entry in enumerate(value or [DEFAULT_URL]))
    if len(hosts) > 1 and any(host.kind == "memory" for host in hosts):
        _refuse(key, value, "memory:// is a layer of its own and cannot be mixed with other hosts.")
    for position, host in enumerate(hosts):
        first = [other.address for other in hosts].index(host.address)
        if first < position:
            _refuse(f"{key}[{position}]", host.address, f"is {key}[{first}] again. List each server once.")
    return hosts


def _host(where: str, entry: Any) -> Host:
    if isinstance(entry, str):
        return _url_host(where, entry, {})
    if isinstance(entry, (tuple, list)):
        if len(entry) != 2:
            _refuse(where, entry, 'must be (host, port), such as ("localhost", 6379).')
        return _plain_host(where, {"host": entry[0], "port": entry[1]})
    if isinstance(entry, Mapping):
        rest = dict(entry)
        if "address" in rest:
            address = rest.pop("address")
            if not isinstance(address, str):
                _refuse(f"{where}['address']", address, f'must be a URL such as "{DEFAULT_URL}".')
            return _url_host(where, address, rest)
        if "sentinels" in rest or "master_name" in rest or "sentinel_kwargs" in rest:
            return _sentinel_host(where, rest)
        return _plain_host(where, rest)
    _refuse(
        where, entry, f'must be a URL such as "{DEFAULT_URL}", (host, port) or a dict of redis-py arguments.'
    )


def _url_host(where: str, url: str, given: Mapping[Any, Any]) -> Host:
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in _VALKEY:
        # One protocol, two names.
        url = _VALKEY[scheme] + url[len(scheme) :]
        scheme = _VALKEY[scheme]
    if scheme in ("redis+cluster", "rediss+cluster"):
        _refuse(
            where, url, "Redis Cluster is not available in this version of channels_asyncq; use one server."
        )
    if scheme == "memory":
        if url != "memory://" or given:
            _refuse(
                where, {"address": url, **given} if given else url, 'nothing goes with it: use "memory://".'
            )
        return Host("memory", url=url)
    if scheme not in _TRANSPORTS:
        if not scheme and re.fullmatch(r"[\w.-]+(:\d+)?", url):
            _refuse(where, url, f'must be a URL: use "redis://{url}".')
        _refuse(where, url, f"there is no such kind of host: {_URL_HELP}.")
    if "sentinels" in given or "master_name" in given or "sentinel_kwargs" in given:
        _refuse(where, {"address": url, **given}, "give either address or sentinels and master_name.")

    transport = _TRANSPORTS[scheme]
    from_url = _url_arguments(where, url, transport)
    for name in given:
        taken_by_url = name in ("host", "port", "path")
        if taken_by_url or (name in from_url and str(from_url[name]) != str(given[name])):
            _refuse(f"{where}[{name!r}]", "***", "is given by the address too. Keep one of them.")
    if "ssl" in given and given["ssl"] is not (transport == "tls"):
        _refuse(f"{where}['ssl']", given["ssl"], "the address says otherwise: use rediss:// for TLS.")
    return _redis_host(where, transport, {**from_url, **given}, url)


def _url_arguments(where: str, url: str, transport: Transport) -> dict[str, Any]:
    """Return what `url` says, as redis-py reads it, except that nothing is passed over in silence."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The error's own text can hold a piece of the password.
        parts, port = SplitResult("", "", "", "", ""), None
    if not parts.scheme or parts.fragment or "#" in url:
        _refuse(where, url, "not a URL that can be read. Percent-encode special characters in the password.")
    found: dict[str, Any] = {}
    if transport == "unix":
        if not parts.path or parts.hostname:
            _refuse(where, url, "a unix:// address is followed by a full path: unix:///run/redis.sock?db=0.")
        found["path"] = unquote(parts.path)
    else:
        if parts.hostname:
            found["host"] = unquote(parts.hostname)
        if port is not None:
            found["port"] = port
        database = re.fullmatch(r"/?(\d*)/?", parts.path, re.ASCII)
        if database is None:
            _refuse(
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
        value = _from_text(name, text)
        if (
            name in query
            or (name in found and found[name] != value)
            or name in ("host", "port", "path", "ssl")
        ):
            _refuse(f"{where}, {name} in the URL", "***", "is given twice. Keep it once.")
        if name == "decode_responses":
            # redis-py would take any text for True, "False" too.
            _refuse(f"{where}, {name} in the URL", text, "leave it out.")
        query[name] = value
    return found | query


def _from_text(name: str, text: str) -> Any:
    """Return the value of an argument in a URL's query; what does not convert is left for the check."""
    argument = _ARGUMENTS.get(name) or _TLS_ARGUMENTS.get(name)
    if argument is _BOOL:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
            text.lower(), text
        )
    if (
        argument in (_TEXT, _NAME, _ANY)
        or argument is None
        or not re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII)
    ):
        return text
    return float(text) if "." in text else int(text) if len(text) < 20 else text


def _plain_host(where: str, given: Mapping[Any, Any]) -> Host:
    unix = "path" in given
    if not given:
        _refuse(where, given, "needs address, host and port, path, or sentinels and master_name.")
    if unix and ("host" in given or "port" in given or given.get("ssl")):
        _refuse(where, given, "give either path (a Unix socket) or host and port.")
    transport: Transport = "unix" if unix else "tls" if given.get("ssl") is True else "tcp"
    return _redis_host(where, transport, given, None)


def _redis_host(where: str, transport: Transport, given: Mapping[Any, Any], url: str | None) -> Host:
    arguments = _arguments(where, given, tls=transport == "tls")
    if transport != "unix":
        arguments = {"host": "localhost", "port": DEFAULT_PORT} | arguments
    db = arguments.setdefault("db", 0)
    address = _address(transport, db, arguments)
    return Host("redis", url=url, arguments=arguments, db=db, address=address, transport=transport)


def _sentinel_host(where: str, given: dict[Any, Any]) -> Host:
    sentinels, master_name = given.pop("sentinels", None), given.pop("master_name", None)
    sentinel_kwargs = given.pop("sentinel_kwargs", None)
    if not isinstance(sentinels, (list, tuple)) or not sentinels:
        _refuse(f"{where}['sentinels']", sentinels, 'must be a list such as [("localhost", 26379)].')
    pairs = []
    for entry in sentinels:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            _refuse(
                f"{where}['sentinels']", entry, 'each must be (host, port), such as ("localhost", 26379).'
            )
        checked = _arguments(f"{where}['sentinels']", {"host": entry[0], "port": entry[1]}, tls=False)
        pairs.append((checked["host"], checked["port"]))
    if not isinstance(master_name, str) or not master_name:
        _refuse(
            f"{where}['master_name']",
            master_name,
            'must be the name the Sentinels watch, such as "mymaster".',
        )
    if sentinel_kwargs is not None:
        at = f"{where}['sentinel_kwargs']"
        if not isinstance(sentinel_kwargs, Mapping):
            _refuse(at, sentinel_kwargs, "must be a dict of redis-py arguments for the Sentinels.")
        _no_target(at, sentinel_kwargs, "db")
        tls = sentinel_kwargs.get("ssl") is True
        # These go to redis.asyncio.Redis, which has an argument for TLS.
        sentinel_kwargs = _arguments(at, sentinel_kwargs, tls=tls) | ({"ssl": True} if tls else {})
    _no_target(where, given)
    transport: Transport = "tls" if given.get("ssl") is True else "tcp"
    arguments = _arguments(where, given, tls=transport == "tls")
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
            _refuse(f"{where}[{name!r}]", given[name], "has no place beside sentinels. Leave it out.")


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(transport: Transport, db: int, arguments: Mapping[str, Any]) -> str:
    if transport == "unix":
        return f"unix://{arguments['path']}?db={db}"
    scheme = "rediss" if transport == "tls" else "redis"
    return f"{scheme}://{_netloc(arguments['host'], arguments['port'])}/{db}"


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "hosts": _hosts,
    "prefix": _prefix,
    "expiry": _seconds,
    "group_expiry": _seconds,
    "capacity": _positive_integer,
    "channel_capacity": _channel_capacity,
    "symmetric_encryption_keys": _encryption_keys,
    "serializer_format": _serializer_format,
    "on_disconnect": _message_type,
    "on_reconnect": _message_type,
    "overflow": _overflow,
    "send_timeout": _seconds,
    "max_message_size": _message_size,
    "partitions": _partitions,
    "on_loss": _message_type,
    "recovery": _recovery,
    "max_buffered_bytes": _bytes_or_none,
    "external": _external,
}
