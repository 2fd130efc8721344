"""The normal channels that a server holds: length, bytes and age."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from ..bus.redis.scripts import Script
from ..settings.options import Options
from .servers import Server, open_servers

__all__ = ["Queue", "queues_of"]

_SCAN_PAGE = 1000
# So few that the server serves others in between.
_PAGE = 500
_MEASURE = Script.load("measure_queue")


@dataclass(frozen=True, slots=True)
class Queue:
    """A normal channel: its unexpired messages, their bytes, and for how many seconds the oldest one waits."""

    channel: str
    length: int
    bytes: int
    oldest: float | None


async def queues_of(options: Options) -> list[Queue]:
    """
    Return the normal channels in which a message waits, by name.

    Messages that come and go meanwhile may be counted, or not.

    Raises:
        LayerUnavailable: a server cannot be reached, or refuses.
    """
    found: dict[str, Queue] = {}
    async with open_servers(options) as servers:
        for server in servers:
            await server.ask(b"SCRIPT", b"LOAD", _MEASURE.text)
            async for key in _keys_at(server):
                queue = await _measure(server, key)
                if queue.length:
                    found[queue.channel] = queue
    return [found[channel] for channel in sorted(found)]


async def _keys_at(server: Server) -> AsyncIterator[bytes]:
    """Yield the keys of normal channels whose home is this server, each once or more often."""
    topics = server.topics
    pattern, *_ = topics.stored(server.index)
    cursor = b"0"
    while True:
        cursor, keys = await server.ask(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCAN_PAGE)
        for key in keys:
            if topics.is_stored(server.index, key):
                yield key
        if cursor == b"0":
            return


async def _measure(server: Server, key: bytes) -> Queue:
    length, size, oldest, start = 0, 0, None, 0
    while True:
        command = (b"EVALSHA", _MEASURE.sha, 1, key, start, _PAGE)
        stored, now, expired, bytes_, first = await server.ask(*command)
        length += min(_PAGE, max(0, stored - start)) - expired
        size += bytes_
        if oldest is None and first:
            # It was sent `expiry` before it expires.
            oldest = max(0.0, (int(now) - int(first)) / 1000 + server.options.expiry)
        start += _PAGE
        if start >= stored:
            return Queue(key.rpartition(b":")[2].decode(), length, size, oldest)
