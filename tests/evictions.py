"""A real server that evicts keys because it is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from channels_asyncq.testing import EmbeddedServer

POLICIES = ("allkeys-lru", "volatile-lru")

# Of a kilobyte each, that live for an hour; the server makes room before a script, never within one.
_FILL = """
for n = 1, 100 do
  redis.call('SET', KEYS[1] .. ':' .. n, string.rep('x', 1000), 'EX', 3600)
end
"""


@contextmanager
def evicting(server: EmbeddedServer, policy: str) -> Iterator[None]:
    """Within the block the server has room for a megabyte more than it holds now, and evicts by this policy."""
    used = int(info(server, "memory", "used_memory"))
    server.command("CONFIG", "SET", "maxmemory", str(used + 2**20), "maxmemory-policy", policy)
    try:
        yield
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction")


def info(server: EmbeddedServer, section: str, name: str) -> str:
    """One figure of INFO."""
    text: str = server.command("INFO", section).decode()
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)[name]


def fill(server: EmbeddedServer, rounds: int, start: int = 0) -> None:
    """Write so many times 100 keys of somebody else."""
    for number in range(start, start + rounds):
        server.command("EVAL", _FILL, "1", f"cache:{number}")


def evict(server: EmbeddedServer, key: str) -> None:
    """Write keys of somebody else until this one is evicted."""
    for number in range(5000):
        if not server.command("EXISTS", key):
            return
        fill(server, 1, number)
    raise AssertionError(f"{key!r} is still there")
