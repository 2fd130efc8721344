"""Channel and group names to partitions, shards and the names that Redis sees."""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

NODE_BYTES = 8
_HEX = frozenset("0123456789abcdef")
_CACHED_NAMES = 8192

MAX_NAME_LENGTH = 100
_CHANNEL_NAME = re.compile(r"[a-zA-Z0-9\-_.]+(![a-zA-Z0-9\-_.]*)?")
_GROUP_NAME = re.compile(r"[a-zA-Z0-9\-_.]+")


def _check_name(kind: str, name: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{kind} name must be a str, not {type(name).__name__}: {name!r}")
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise TypeError(f"{kind} name must have 1 to {MAX_NAME_LENGTH} characters, not {len(name)}: {name!r}")
    if not pattern.fullmatch(name):
        allowed = "ASCII letters, digits, hyphens, underscores and periods"
        if pattern is _CHANNEL_NAME:
            allowed += ", with at most one exclamation mark after the first of them"
        raise TypeError(f"{kind} name may contain only {allowed}, which {name!r} does not keep to")


@lru_cache(maxsize=_CACHED_NAMES)
def _checked(name: str, is_channel: bool, is_for_receive: bool) -> None:
    if not is_channel:
        _check_name("Group", name, _GROUP_NAME)
        return
    _check_name("Channel", name, _CHANNEL_NAME)
    if name.endswith("!") and not is_for_receive and node_of(name) is not None:
        raise TypeError(
            f"Channel name {name!r} is what the channels of one session have in common: it can only be received "
            "from. To send, use a whole name, as new_channel() returned it"
        )


def check_channel_name(name: object, receive: bool = False) -> None:
    """
    Raises:
        TypeError: it is no channel name, or only the part up to `!` and not for `receive`; the text says why.
    """
    # Only a str may reach the cache: a list could not be looked up in it.
    if type(name) is str:
        _checked(name, True, receive)
    else:
        _check_name("Channel", name, _CHANNEL_NAME)


def check_group_name(name: object) -> None:
    """
    Raises:
        TypeError: it is no group name; the text says why.
    """
    if type(name) is str:
        _checked(name, False, False)
    else:
        _check_name("Group", name, _GROUP_NAME)


class Topic(NamedTuple):
    """One name as Redis sees it, and the index of the host that holds it."""

    shard: int
    name: bytes


class Queue(NamedTuple):
    """A normal channel: its list, which is also the topic of its wake-ups, and the key of what a node took."""

    topic: Topic
    taken: bytes


class Group(NamedTuple):
    """A group: its topic, and the sorted set of the normal channels that are members."""

    topic: Topic
    members: bytes


def new_node() -> str:
    """Return a fresh identity for a session: 16 hexadecimal digits, 64 random bits."""
    return secrets.token_hex(NODE_BYTES)


def node_of(channel: str) -> str | None:
    """
    Return the node that owns a specific channel, None for a channel that any process may read.

    Only `<prefix>.<node>!<local>`, as `new_channel()` makes it, has an owner. Another name with a `!` is
    served like a normal channel, under its whole name.
    """
    head, mark, _ = channel.partition("!")
    if not mark:
        return None
    node = head.rpartition(".")[2]
    return node if is_node(node) else None


def is_node(text: str) -> bool:
    """Tell whether this may be the identity of a session."""
    return len(text) == 2 * NODE_BYTES and _HEX.issuperset(text)


class Topics:
    """
    The names of one namespace (a prefix), spread over `partitions` slices.

    Pub/sub ignores the database number, so every name carries it: sites on /0 and /1 never meet. The slice of
    a name decides its host; `databases` holds the database number of each host, in the order of `hosts`.
    """

    def __init__(self, prefix: str, partitions: int, databases: Sequence[int], node: str) -> None:
        self.prefix = prefix
        self.partitions = partitions
        self._roots = [f"{prefix}:{database}:".encode() for database in databases]
        self._node = node.encode()
        self._groups: dict[str, Group] = {}
        self._queues: dict[str, Queue] = {}

    @property
    def shards(self) -> range:
        return range(len(self._roots))

    def partition(self, name: str) -> int:
        """Return the slice of a group, a normal channel or a node: CRC-32, the same in every process."""
        return zlib.crc32(name.encode()) % self.partitions

    def shard(self, name: str) -> int:
        """Return the index of the host that holds this name."""
        return self.partition(name) % len(self._roots)

    def group(self, group: str) -> Group:
        found = self._groups.get(group)
        if found is None:
            if len(self._groups) >= _CACHED_NAMES:
                self._groups.clear()
            shard = self.shard(group)
            root, name = self._roots[shard], group.encode()
            found = Group(Topic(shard, root + b"group:" + name), root + b"members:" + name)
            self._groups[group] = found
        return found

    def queue(self, channel: str) -> Queue:
        found = self._queues.get(channel)
        if found is None:
            if len(self._queues) >= _CACHED_NAMES:
                self._queues.clear()
            shard = self.shard(channel)
            root, name = self._roots[shard], channel.encode()
            taken = root + b"taken:" + self._node + b":" + name
            found = self._queues[channel] = Queue(Topic(shard, root + b"queue:" + name), taken)
        return found

    def inbox(self, node: str) -> Topic:
        shard = self.shard(node)
        return Topic(shard, self._roots[shard] + b"inbox:" + node.encode())

    @property
    def everybody(self) -> Topic:
        """The topic that every session of the namespace listens on; `flush()` goes there."""
        return Topic(0, self._roots[0] + b"all")

    def layout_key(self, shard: int) -> bytes:
        return self._roots[shard] + b"layout"

    def group_named(self, name: bytes) -> str:
        """Return the group that a topic is of, given the name of the topic."""
        return name.rpartition(b":")[2].decode()

    def is_group(self, shard: int, name: bytes) -> bool:
        """Tell whether a topic that arrived from this host is a group's."""
        return name.startswith(self._roots[shard] + b"group:")

    def stored(self, shard: int) -> list[bytes]:
        """Return the glob patterns of every key that holds messages or members; `flush()` deletes them."""
        return [self._roots[shard] + kind + b":*" for kind in (b"queue", b"taken", b"members")]
