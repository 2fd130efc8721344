"""The rights that the layer needs on a server, and harmless commands that show whether a user has them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from hiredis import ReplyError

from ..bus.redis.watch import UNWRITABLE
from .servers import Server

__all__ = ["Right", "Rights", "needed"]

# In a probe: a key and a topic that nobody else uses, and the number of the database.
KEY, TOPIC, DATABASE = b"<key>", b"<topic>", b"<db>"


@dataclass(frozen=True, slots=True)
class Right:
    """A command, as ACL SETUSER names it, and a probe: the same command, which leaves nothing behind."""

    command: str
    probe: tuple[bytes, ...]
    #: What happens without it, if the layer goes on without it.
    effect: str = ""


def _right(line: str, effect: str = "") -> Right:
    """Return the right to the first word of a line; with a bar, to the first two."""
    words = line.split()
    command = words[0].lower()
    probe = [part.encode() for part in words[0].split("|")] + [word.encode() for word in words[1:]]
    return Right(command, tuple(b"" if word == b"''" else word for word in probe), effect)


_NO_ROLE = "a replica is not noticed"
_NO_INFO = (
    "each reconnect sends all groups `server_changed` and refuses positions, and sends fail while the server "
    "refuses to write"
)
_NO_HISTORY = "history() raises an error, and so does a resume that needs a history"

# In this order they leave nothing behind: what HSET, RPUSH and LPUSH make, the others delete. SCRIPT LOAD
# gets no script.
_COMMANDS = tuple(
    map(
        _right,
        """
        PING
        SET <key> '' XX
        GET <key>
        SCRIPT|LOAD (
        EVALSHA 0000000000000000000000000000000000000000 0
        SCAN 0 COUNT 1
        TIME
        EXISTS <key>
        HSET <key> f v
        HGET <key> f
        HMGET <key> f
        HGETALL <key>
        HDEL <key> f
        RPUSH <key> v
        LLEN <key>
        LINDEX <key> 0
        LSET <key> 0 v
        LREM <key> 0 w
        LPUSH <key> v
        LPOP <key>
        LTRIM <key> 1 0
        PEXPIRE <key> 1000
        EXPIRE <key> 1
        PTTL <key>
        DEL <key>
        UNLINK <key>
        ZADD <key> XX 0 m
        ZSCORE <key> m
        ZRANGEBYSCORE <key> 0 0
        ZREVRANGE <key> 0 0
        ZREM <key> m
        ZREMRANGEBYSCORE <key> 0 0
        XADD <key> NOMKSTREAM * f v
        XINFO|STREAM <key>
        XRANGE <key> - + COUNT 1
        XTRIM <key> MAXLEN 0
        """.strip().splitlines(),
    )
)
_OPTIONAL = (
    _right("ROLE", _NO_ROLE),
    _right("INFO server", _NO_INFO),
    _right("XREVRANGE <key> + - COUNT 1", _NO_HISTORY),
)
# On a plain server and in a cluster; the subscriptions last, as a connection takes nothing else after them.
_PLAIN = tuple(map(_right, ("SELECT <db>", "PUBLISH <topic> ''", "SUBSCRIBE <topic>", "UNSUBSCRIBE <topic>")))
_CLUSTER = tuple(
    map(_right, ("CLUSTER|SLOTS", "SPUBLISH <topic> ''", "SSUBSCRIBE <topic>", "SUNSUBSCRIBE <topic>"))
)


def needed(*, is_cluster: bool) -> tuple[Right, ...]:
    """Return the rights of the page of advanced settings, in the order in which they are probed."""
    return (*_OPTIONAL, *_COMMANDS, *(_CLUSTER if is_cluster else _PLAIN))


@dataclass(slots=True)
class Rights:
    """
    What a user lacks: commands, and whether keys or channels were refused.

    `refusal` are the words with which the server refuses to write, if it does.
    """

    missing: list[Right] = field(default_factory=list)
    lacks_keys: bool = False
    lacks_channels: bool = False
    refusal: str = ""

    @classmethod
    async def of(cls, server: Server) -> Rights:
        """
        Probe each right. The connection is of no use afterwards: it is subscribed.

        Raises:
            OSError: the connection was lost.
        """
        rights = cls()
        probes = list(_probes(server))
        replies = [server.wire.call(*command) for _, command in probes]
        await asyncio.wait(replies)
        for (right, _), reply in zip(probes, replies, strict=True):
            rights._note(right, reply.exception())
        return rights

    def _note(self, right: Right, error: BaseException | None) -> None:
        if error is None:
            return
        if not isinstance(error, ReplyError):
            raise error
        words = str(error)
        if words.startswith((*UNWRITABLE, "READONLY")):
            self.refusal = self.refusal or words
        if not words.startswith("NOPERM"):
            return
        # A command that was refused does not show whether its key would be; another one does. The words name the
        # user, who may be called "channels".
        if " to run " in words:
            self.missing.append(right)
        elif " key" in words:
            self.lacks_keys = True
        elif " channel" in words:
            self.lacks_channels = True
        else:
            self.missing.append(right)

    @property
    def fatal(self) -> list[Right]:
        """Those without which the layer does not work."""
        return [right for right in self.missing if not right.effect]

    def grants(self, prefix: str) -> list[str]:
        """Return what is missing, in the words of ACL SETUSER."""
        found = [f"+{right.command}" for right in self.missing]
        if self.lacks_keys:
            found.append(f"~{prefix}:*")
        if self.lacks_channels:
            found.append(f"&{prefix}:*")
        return found


def _probes(server: Server) -> Iterator[tuple[Right, list[bytes]]]:
    """Yield each right with its command at this server."""
    partition = next(iter(server.partitions), 0)
    name = server.topics.root(partition) + b"check:" + secrets.token_hex(8).encode()
    values = {KEY: name, TOPIC: name, DATABASE: b"%d" % server.host.db}
    for right in needed(is_cluster=server.is_cluster):
        yield right, [values.get(word, word) for word in right.probe]
