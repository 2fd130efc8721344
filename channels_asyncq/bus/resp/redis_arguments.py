"""The arguments of redis-py's connections, which here only connect and authenticate."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Mapping
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

__all__ = ["for_connection", "for_tls"]

# With these redis-py would retry, check health and decode by itself; deadlines and reconnects belong to the bus.
_UNUSED = frozenset(
    {
        "connection_class",
        "decode_responses",
        "health_check_interval",
        "max_connections",
        "parser_class",
        "protocol",
        "retry",
        "retry_on_error",
        "retry_on_timeout",
        "timeout",
    }
)

# From 7.2 on redis-py takes the name of the library as driver_info, and warns of the older arguments.
_HAS_DRIVER_INFO = "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
_NO_SETINFO: Mapping[str, Any] = (
    {"driver_info": None} if _HAS_DRIVER_INFO else {"lib_name": None, "lib_version": None}
)


def for_connection(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for a redis-py connection that only connects and authenticates."""
    kept = {name: value for name, value in given.items() if name not in _UNUSED}
    if not any(name in kept for name in ("driver_info", "lib_name", "lib_version")):
        kept.update(_NO_SETINFO)
    # The connector has its own deadline; the defaults of redis-py differ between its versions.
    kept.setdefault("socket_connect_timeout", None)
    kept.setdefault("socket_timeout", None)
    return kept | {"protocol": 2, "retry": Retry(NoBackoff(), 0)}


def for_tls(given: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the arguments for the check of a certificate, with the defaults of redis-py 6 and newer.

    Before 6, redis-py accepted a certificate of any other host.
    """
    requirement = given.get("ssl_cert_reqs", "required")
    if isinstance(requirement, ssl.VerifyMode):
        # Before 6, redis-py took only the words.
        requirement = requirement.name.removeprefix("CERT_").lower()
    checks = requirement not in (None, "none") and given.get("ssl_check_hostname", True)
    return {"ssl_cert_reqs": requirement, "ssl_check_hostname": checks}
