"""
`CONFIG` as typed values.

`Options.from_config` takes every key of `channels_redis` (core and pubsub) with its meaning, and the keys of this
layer. A wrong value raises an `ImproperlyConfigured` that names the key, the value and what would be right.
Passwords and encryption keys appear in no message and no `repr`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..messages.external import External
from ..names import Topics
from . import keys
from .hosts import DEFAULT_URL, Host, checked_hosts
from .keys import Histories, Keeping, Overflow, Recovery, SerializerFormat
from .refusals import refuse, suggestion


@dataclass(slots=True)
class Options:
    """
    `CONFIG`, validated. Times are in seconds, sizes in bytes. `recovery` is for each of the `partitions`.

    Some keys can be changed later, with `change()`: they are read here each time they are needed.
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
    partitions: int = keys.PARTITIONS
    on_loss: str | None = None
    recovery: Recovery | None = field(default_factory=lambda: Recovery())
    history: Histories = ()
    max_buffered_bytes: int | None = None
    external: External | None = field(default_factory=lambda: External())

    @property
    def notices(self) -> frozenset[str]:
        """The types of the messages that the layer itself sends to its channels."""
        return frozenset(filter(None, (self.on_loss, self.on_disconnect, self.on_reconnect)))

    @classmethod
    def from_config(cls, config: Any) -> Options:
        """
        Return the options in `config`; a missing key has its default.

        Raises:
            ImproperlyConfigured: an unknown key, a wrong type or an impossible value.
        """
        if not isinstance(config, Mapping):
            refuse(
                "CONFIG", config, f'must be a dict such as {{"hosts": ["{DEFAULT_URL}"]}}, or be left out.'
            )
        values: dict[str, Any] = {}
        for key, value in config.items():
            if key in _CHECKS:
                values[key] = _CHECKS[key](key, value)
            elif key == "random_prefix_length":
                # It makes equal messages differ in the sorted sets of channels_redis; this layer has none.
                keys.integer(key, value, least=0)
            else:
                known = [*_CHECKS, "random_prefix_length"]
                refuse(key, value, f"there is no such key. {suggestion(key, known)}")
        hosts = values.setdefault("hosts", checked_hosts("hosts", None))
        if hosts[0].is_cluster:
            values.setdefault("partitions", keys.CLUSTER_PARTITIONS)
        options = cls(**values)
        if options.recovery is not None:
            options.recovery = options.recovery.spread_over(options.partitions)
        elif options.history:
            refuse("history", config["history"], "needs the logs of `recovery`, and `recovery` is None.")
        return options

    def topics(self, session_id: str) -> Topics:
        """Return the names of the namespace on the server, as this session uses them."""
        databases = [host.db for host in self.hosts]
        is_cluster = self.hosts[0].is_cluster
        return Topics(self.prefix, self.partitions, databases, session_id, is_cluster=is_cluster)

    def keeping(self, group: str) -> Keeping | None:
        """Return what the history of a group keeps; None if it has none. A group without a log has none."""
        for pattern, kept in self.history:
            if pattern.match(group):
                return kept if self.recovery is not None and self.recovery.is_logged(group) else None
        return None

    def change(self, key: str, value: Any) -> bool:
        """
        Check a value as in CONFIG and set it; return whether it has changed.

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
        """Return how many messages a channel with this full name holds: the first matching pattern decides."""
        for pattern, capacity in self.channel_capacity:
            if pattern.match(channel):
                return capacity
        return self.capacity


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "hosts": checked_hosts,
    "prefix": keys.prefix,
    "expiry": keys.seconds,
    "group_expiry": keys.seconds,
    "capacity": keys.positive_integer,
    "channel_capacity": keys.channel_capacity,
    "symmetric_encryption_keys": keys.encryption_keys,
    "serializer_format": keys.serializer_format,
    "on_disconnect": keys.message_type,
    "on_reconnect": keys.message_type,
    "overflow": keys.overflow,
    "send_timeout": keys.seconds,
    "max_message_size": keys.message_size,
    "partitions": keys.partitions,
    "on_loss": keys.message_type,
    "recovery": keys.recovery,
    "history": keys.history,
    "max_buffered_bytes": keys.bytes_or_none,
    "external": keys.external,
}
