"""The logs of the partitions: what they hold, and how far back a process that was away can read."""

from __future__ import annotations

from dataclasses import dataclass

from ..bus.redis.scripts import Script
from ..settings.options import Options
from .servers import Server, open_servers

__all__ = ["PartitionLog", "logs_of"]

_PAGE = 500
#: A message of more bytes drops entries by their bytes, as in send.lua.
LARGE = 1024
_MEASURE = Script.load("measure_log")


@dataclass(frozen=True, slots=True)
class PartitionLog:
    """
    The log of one partition.

    `bytes` are those of its entries. `span` is the time between the first and the last one, in seconds. A process
    that was away for up to `reaches` seconds, or a reader that comes back, gets everything.
    """

    partition: int
    server: str
    entries: int
    bytes: int
    span: float
    reaches: float


async def logs_of(options: Options) -> list[PartitionLog]:
    """
    Return the logs of all partitions; none without `recovery`.

    Raises:
        LayerUnavailable: a server cannot be reached, or refuses.
    """
    if options.recovery is None:
        return []
    found: list[PartitionLog] = []
    async with open_servers(options) as servers:
        # In a cluster one server knows of all.
        gaps = {server.index: await _gap_at(server) for server in servers if server.has_layouts}
        for server in servers:
            await server.ask(b"SCRIPT", b"LOAD", _MEASURE.text)
            gap = gaps[server.index]
            found += [await _measure(server, partition, gap) for partition in server.partitions]
    return sorted(found, key=lambda log: log.partition)


async def _gap_at(server: Server) -> int:
    """Return the time in ms up to which messages may be in no log, as a process without `recovery` was there."""
    *_, past = server.topics.lease_keys(server.index, b"")
    (gap,) = await server.ask(b"HMGET", past, b"gap")
    return int(gap or 0)


async def _measure(server: Server, partition: int, gap: int) -> PartitionLog:
    recovery = server.options.recovery
    assert recovery is not None
    key = server.topics.log(partition)
    entries = size = largest = 0
    oldest = newest = start = b"-"
    while True:
        command = (b"EVALSHA", _MEASURE.sha, 1, key, start, _PAGE)
        length, end, count, bytes_, large, first, last = await server.ask(*command)
        if count:
            oldest, newest = first if not entries else oldest, last
            entries += count
            size += bytes_
            largest = max(largest, large)
        if length < _PAGE:
            break
        start = b"(" + end
    seconds, micros = await server.ask(b"TIME")
    now = int(seconds) + int(micros) / 1e6
    reaches, span = recovery.seconds, 0.0
    if entries:
        span = _seconds_of(newest) - _seconds_of(oldest)
        # What dropped entries that are not too old, a full log or a large message, is in the log for as long.
        may_have_dropped = entries >= recovery.messages or largest > LARGE
        if may_have_dropped and await _has_dropped(server, key):
            reaches = min(reaches, now - _seconds_of(oldest))
    reaches = max(0.0, min(reaches, now - gap / 1000))
    return PartitionLog(partition, server.address, entries, size, span, reaches)


async def _has_dropped(server: Server, key: bytes) -> bool:
    """Tell whether a log had more entries than it has now. Redis 6.2 does not tell, so it may."""
    flat = await server.ask(b"XINFO", b"STREAM", key)
    said: dict[bytes, object] = dict(zip(flat[::2], flat[1::2], strict=True))
    return said.get(b"entries-added") != said[b"length"]


def _seconds_of(entry_id: bytes) -> float:
    return int(entry_id.partition(b"-")[0]) / 1000
