"""Which arguments of a redis-py connection a host may have."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .keys import is_int, is_seconds
from .refusals import refuse, suggestion


@dataclass(frozen=True, slots=True)
class _Argument:
    """One argument that is allowed in a host's dict and in the query of its URL."""

    fits: Callable[[Any], bool]
    right: str
    none: bool = True


_TEXT = _Argument(lambda value: isinstance(value, str), "a str")
_NAME = _Argument(lambda value: isinstance(value, str) and bool(value), "a str that is not empty", none=False)
_BOOL = _Argument(lambda value: isinstance(value, bool), "True or False", none=False)
_SECONDS = _Argument(is_seconds, "a number of seconds greater than 0")
_NATURAL = _Argument(lambda value: is_int(value) and value >= 0, "an int, 0 or more", none=False)
_ANY = _Argument(lambda value: True, "anything")

#: Arguments of redis.asyncio's Connection and UnixDomainSocketConnection (5.2 to 8) with which redis-py connects,
#: authenticates and selects the database.
ARGUMENTS: dict[str, _Argument] = {
    "host": _NAME,
    "port": _Argument(lambda value: is_int(value) and 0 < value < 65536, "an int, 1 to 65535", none=False),
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
    "socket_read_size": _Argument(lambda value: is_int(value) and value > 0, "an int, 1 or more", none=False),
    "health_check_interval": _Argument(
        lambda value: value == 0 or is_seconds(value), "a number of seconds, 0 or more"
    ),
    "retry": _ANY,
    "retry_on_timeout": _BOOL,
    "retry_on_error": _Argument(lambda value: isinstance(value, (list, tuple)), "a list of exceptions"),
    "encoding": _NAME,
    "encoding_errors": _NAME,
    # These are checked, and not passed on to redis-py.
    "protocol": _Argument(lambda value: is_int(value) and value == 2, "2 (RESP2), or be left out"),
    "decode_responses": _Argument(lambda value: value is False, "False, or be left out"),
    "max_connections": _Argument(
        lambda value: is_int(value) and value >= 2,
        "2 or more (each process uses two connections), or be left out",
    ),
    "ssl": _BOOL,
}
_NOT_HANDED_ON = frozenset({"protocol", "decode_responses", "max_connections", "ssl"})

#: Arguments of SSLConnection: for rediss:// or {"ssl": True} only.
TLS_ARGUMENTS: dict[str, _Argument] = {
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

#: Arguments of redis-py that would change how it talks to the server.
REFUSED_ARGUMENTS: dict[str, str] = {
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


#: The other keys of a host's dict.
NO_ARGUMENTS = ("address", "sentinels", "master_name", "sentinel_kwargs", "startup_nodes", "address_remap")


def checked_arguments(where: str, given: Mapping[Any, Any], *, tls: bool) -> dict[str, Any]:
    """Check the arguments; return those that are passed on to redis-py."""
    kept: dict[str, Any] = {}
    for name, value in given.items():
        at = f"{where}[{name!r}]"
        if name in REFUSED_ARGUMENTS:
            refuse(at, value, f"this redis-py argument cannot be honoured here. {REFUSED_ARGUMENTS[name]}.")
        if name in TLS_ARGUMENTS and not tls:
            refuse(at, value, 'needs TLS: use a rediss:// address, or add "ssl": True to host and port.')
        argument = ARGUMENTS.get(name) or TLS_ARGUMENTS.get(name)
        if argument is None:
            known = [*ARGUMENTS, *TLS_ARGUMENTS, *NO_ARGUMENTS]
            refuse(
                at, value, f"there is no such argument of a redis-py connection. {suggestion(name, known)}"
            )
        if name in ("port", "db") and isinstance(value, str) and re.fullmatch(r"\d{1,9}", value, re.ASCII):
            value = int(value)  # Text from the environment; redis-py accepts it too.
        if not argument.fits(value) and not (value is None and argument.none):
            refuse(at, value, f"must be {argument.right}.")
        if name not in _NOT_HANDED_ON:
            kept[name] = value
    if kept.get("credential_provider") is not None and ("username" in kept or "password" in kept):
        refuse(where, given, "give either credential_provider or username and password.")
    return kept


def value_from_text(name: str, text: str) -> Any:
    """Return the value of an argument in a URL's query. Text that does not convert stays, for the check."""
    argument = ARGUMENTS.get(name) or TLS_ARGUMENTS.get(name)
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
