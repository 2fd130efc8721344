"""Channel and group names to partitions and the names that Redis sees."""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from .slots import share_of, slot_of, tags

SESSION_ID_BYTES = 8
_HEX_DIGITS = "0123456789abcdef"

MAX_NAME_LENGTH = 100
_CHANNEL_NAME = re.compile(r"[a-zA-Z0-9\-_.]+(![a-zA-Z0-9\-_.]*)?")
_GROUP_NAME = re.compile(r"[a-zA-Z0-9\-_.]+")
# No name has a colon in it.
_STORED = re.compile(rb"(queue|members|history|epoch|taken:[0-9a-f]{16}):[^:]+")


def check_channel_name(name: object, receive: bool = False) -> None:
    """
    Raises:
        TypeError: it is not a channel name, or it ends with `!` and `receive` is false. The text explains it.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH or not _CHANNEL_NAME.fullmatch(name):
        raise _no_name("Channel", name, ", with at most one exclamation mark after the first of them")
    if name.endswith("!") and not receive and owner_of(name):
        raise TypeError(
            f"Channel name {name!r} is what the channels of one session have in common: it can only be received "
            "from. To send, use a whole name, as new_channel() returned it"
        )


# Prefixes are few, and each new channel needs one.
@lru_cache(256)
def checked_prefix(prefix: str) -> str:
    """
    Return the beginning of the names of new channels: the prefix, with a dot at its end.

    Raises:
        TypeError: the names would not be channel names. The text explains it.
    """
    if prefix and not prefix.endswith("."):
        prefix += "."
    # The longest continuation. It has an exclamation mark, so a prefix with another one is refused.
    check_channel_name(f"{prefix}{'0' * 16}!{'0' * 35}")
    return prefix


def check_group_name(name: object) -> None:
    """
    Raises:
        TypeError: it is not a group name. The text explains it.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH or not _GROUP_NAME.fullmatch(name):
        raise _no_name("Group", name)


def _no_name(kind: str, name: object, also_allowed: str = "") -> TypeError:
    if not isinstance(name, str):
        return TypeError(f"{kind} name must be a str, not {type(name).__name__}: {name!r}")
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        return TypeError(
            f"{kind} name must have 1 to {MAX_NAME_LENGTH} characters, not {len(name)}: {name!r}"
        )
    allowed = f"ASCII letters, digits, hyphens, underscores and periods{also_allowed}"
    return TypeError(f"{kind} name may contain only {allowed}, which {name!r} does not keep to")


class Topic(NamedTuple):
    """A partition, a name in it as Redis sees it, and whether messages that are published there may be logged."""

    partition: int
    name: bytes
    is_logged: bool = True


class Queue(NamedTuple):
    """
    The keys of a normal channel.

    `topic`: its list, and the topic of its wake-ups. `taken`: the item that this session has claimed. `seen`: the
    numbers of this session's pushes that were accepted. `waiting`: the sessions whose senders wait for a place.
    """

    topic: Topic
    taken: bytes
    seen: bytes
    waiting: bytes


class Group(NamedTuple):
    """A group: its topic, the sorted set of the normal channels that are members, and its partition's log."""

    topic: Topic
    members: bytes
    log: bytes


def new_session_id() -> str:
    """Return a fresh identity for a session: 16 hexadecimal digits, 64 random bits."""
    return secrets.token_hex(SESSION_ID_BYTES)


def new_session_ids(count: int) -> list[str]:
    """Return `count` identities."""
    digits = secrets.token_hex(SESSION_ID_BYTES * count)
    width = 2 * SESSION_ID_BYTES
    return [digits[start : start + width] for start in range(0, len(digits), width)]


def owner_of(channel: str) -> str | None:
    """
    Return the session that owns a specific channel, None for a normal channel, which any process may read.

    Only `<prefix>.<session id>!<local>`, as `new_channel()` makes it, has an owner. For any other name with a `!`
    the result is "", which is no session's id, as for the channel of a process that has ended.
    """
    head, mark, _ = channel.partition("!")
    if not mark:
        return None
    session_id = head.rpartition(".")[2]
    return session_id if is_session_id(session_id) else ""


def is_session_id(text: str) -> bool:
    """Tell whether a text may be the identity of a session."""
    return len(text) == 2 * SESSION_ID_BYTES and not text.strip(_HEX_DIGITS)


class Topics:
    """
    The names of one namespace (a prefix), spread over `partitions` slices.

    Pub/sub ignores the database number, so every name carries it: sites on /0 and /1 never meet. `databases`
    holds the database number of each host, in the order of `hosts`. Partition p is in the database of host p
    modulo the number of hosts. Names of a host itself contain the index of the host.

    In a Redis Cluster each partition has a hash tag instead, so that all its names are in one slot. The cluster
    counts as one host, with index 0, and its names are in the slot of partition 0.
    """

    def __init__(
        self,
        prefix: str,
        partitions: int,
        databases: Sequence[int],
        session_id: str,
        *,
        is_cluster: bool = False,
    ) -> None:
        self.prefix = prefix
        self.partitions = partitions
        self.is_cluster = is_cluster
        #: For each partition of a cluster; elsewhere for each host.
        self._roots = (
            _cluster_roots(prefix, partitions)
            if is_cluster
            else tuple(f"{prefix}:{database}:".encode() for database in databases)
        )
        self._session_id = session_id.encode()

    def partition(self, name: str) -> int:
        """Return the slice of a group, a normal channel or a session id: CRC-32, the same everywhere."""
        return zlib.crc32(name.encode()) % self.partitions

    def root(self, partition: int) -> bytes:
        """The beginning of all names of a partition."""
        return self._roots[partition % len(self._roots)]

    def slot(self, partition: int) -> int:
        """Return the slot of a Redis Cluster in which all names of a partition are."""
        return slot_of(self.root(partition))

    def _topic(self, name: str, kind: bytes) -> Topic:
        partition = self.partition(name)
        return Topic(partition, self.root(partition) + kind + name.encode())

    def group(self, group: str) -> Group:
        topic = self._topic(group, b"group:")
        members = self.root(topic.partition) + b"members:" + group.encode()
        return Group(topic, members, self.log(topic.partition))

    def history(self, group: str) -> bytes:
        """The key of a group's history, in the group's partition."""
        return self.root(self.partition(group)) + b"history:" + group.encode()

    def queue(self, channel: str) -> Queue:
        topic = self._topic(channel, b"queue:")
        root, name = self.root(topic.partition), channel.encode()
        taken = root + b"taken:" + self._session_id + b":" + name
        seen = root + b"seen:%d:%s" % (topic.partition, self._session_id)
        waiting = root + b"waiting:" + name
        # Wake-ups are not logged: a reader looks for messages itself after each reconnect.
        return Queue(topic._replace(is_logged=False), taken, seen, waiting)

    def inbox(self, session_id: str) -> Topic:
        return self._topic(session_id, b"inbox:")

    @property
    def everybody(self) -> Topic:
        """The topic that every session of the namespace subscribes to; `flush()` publishes there."""
        return Topic(0, self.root(0) + b"all")

    def log(self, partition: int) -> bytes:
        """The key of a partition's log."""
        return self.root(partition) + b"log:%d" % partition

    def epoch(self, partition: int) -> bytes:
        """The key of the epoch of a partition's log."""
        return self.root(partition) + b"epoch:%d" % partition

    def mark(self, partition: int) -> bytes:
        """The key that exists as long as the server has lost nothing of a partition."""
        return self.root(partition) + b"mark:%d" % partition

    def probes(self, partition: int) -> tuple[bytes, bytes]:
        """Two keys of a partition, of which one never exists: a cluster refuses their command like any send."""
        return self.log(partition), self.root(partition) + b"members:"

    def is_group(self, partition: int, name: bytes) -> bool:
        """Tell whether a topic of this partition is a group's."""
        return name.startswith(self.root(partition) + b"group:")

    @staticmethod
    def group_named(name: bytes) -> str:
        """Return the name of the group whose topic this is."""
        return name.rpartition(b":")[2].decode()

    # The names of a host

    def fence(self, host: int, node: int) -> bytes:
        """The topic of the fences of one node that this session uses on a host."""
        return self._roots[host] + b"fence:%b:%d" % (self._session_id, node)

    def fence_of(self, partition: int, node: int) -> bytes:
        """The topic of the fences of one node of a cluster that this session uses, in the slot of a partition."""
        return self.root(partition) + b"fence:%b:%d" % (self._session_id, node)

    def layouts(self, host: int) -> bytes:
        """The key of the layouts that sessions use on a host; also the topic on which a new one is announced."""
        return self._roots[host] + b"layouts"

    def lease_keys(self, host: int, layout: bytes) -> tuple[bytes, bytes, bytes]:
        """The keys of a lease: all layouts, the sessions with this layout, and the namespace's past."""
        layouts = self.layouts(host)
        digest = hashlib.sha256(layout).hexdigest()[:16]
        return layouts, b"%b:%b" % (layouts, digest.encode()), layouts + b":past"

    def stored(self, host: int) -> list[bytes]:
        """
        Return glob patterns of the keys that a flush deletes; check each match with `is_stored()`.

        Without its epoch a log is not replayed to channels that come back.
        """
        root = b"%b:0:{*}:" % self.prefix.encode() if self.is_cluster else self._roots[host]
        return [root + kind + b":*" for kind in (b"queue", b"taken", b"members", b"epoch", b"history")]

    def is_stored(self, host: int, key: bytes) -> bool:
        """
        Tell whether a key of this host is one of this namespace that `flush()` deletes.

        A glob pattern alone also matches keys of a layer with the prefix `<prefix>:<database>:queue`, and in a
        cluster all hash tags.
        """
        root = self.root(share_of(slot_of(key), self.partitions)) if self.is_cluster else self._roots[host]
        return key.startswith(root) and _STORED.fullmatch(key, len(root)) is not None


# Sessions share them: there are up to 4096.
@lru_cache(16)
def _cluster_roots(prefix: str, partitions: int) -> tuple[bytes, ...]:
    return tuple(b"%b:0:{%b}:" % (prefix.encode(), tag) for tag in tags(partitions))
