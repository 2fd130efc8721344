"""Messages per second, as the script counts them in a log."""

from __future__ import annotations

from channels_asyncq.bus.redis.scripts import Scripts
from channels_asyncq.settings.keys import Recovery
from channels_asyncq.testing import EmbeddedServer

SECONDS = 10


def add(server: EmbeddedServer, log: str, milliseconds: int, topic: str, *more: str) -> None:
    """Add an entry as it would have been added so many milliseconds ago."""
    server.command("XADD", log, *more, f"{now(server) - milliseconds}-*", "t", topic, "e", "...")


def now(server: EmbeddedServer) -> int:
    seconds, microseconds = map(int, server.command("TIME"))
    return 1000 * seconds + microseconds // 1000


def count(server: EmbeddedServer, log: str, most: int = 1000) -> tuple[int, dict[bytes, int]]:
    script = Scripts.of(Recovery()).log_rates
    assert script is not None
    span, *counts = server.command("EVAL", script.text, 1, log, 1000 * SECONDS, most)
    return span, dict(zip(counts[::2], counts[1::2], strict=True))


def test_no_log(redis_server: EmbeddedServer, prefix: str) -> None:
    """Where nothing was sent there is nothing."""
    assert count(redis_server, prefix) == (10_000, {})


def test_topics(redis_server: EmbeddedServer, prefix: str) -> None:
    """Each topic has its number of entries in the last seconds. The entry with which a log begins is none."""
    redis_server.command("XADD", prefix, f"{now(redis_server) - 60_000}-0", "begin", "")
    add(redis_server, prefix, 30_000, "a")
    for ago, topic in ((9_000, "a"), (5_000, "b"), (4_000, "a")):
        add(redis_server, prefix, ago, topic)
    assert count(redis_server, prefix) == (10_000, {b"a": 2, b"b": 1})


def test_young_log(redis_server: EmbeddedServer, prefix: str) -> None:
    """A log that began a moment ago had nothing before."""
    redis_server.command("XADD", prefix, f"{now(redis_server) - 2_000}-0", "begin", "")
    add(redis_server, prefix, 1_000, "a")
    assert count(redis_server, prefix) == (10_000, {b"a": 1})


def test_trimmed_log(redis_server: EmbeddedServer, prefix: str) -> None:
    """A log that is full has the last entries only, which came in less time."""
    for ago in range(4_000, 1_000, -500):
        add(redis_server, prefix, ago, "a", "MAXLEN", "=", "3")
    span, counts = count(redis_server, prefix)
    assert counts == {b"a": 3} and 2_500 <= span < 9_000


def test_many_entries(redis_server: EmbeddedServer, prefix: str) -> None:
    """No more than so many entries are looked at, and the time is theirs."""
    for ago in range(9_000, 1_000, -1_000):
        add(redis_server, prefix, ago, "a")
    span, counts = count(redis_server, prefix, most=2)
    assert counts == {b"a": 2} and 3_000 <= span < 9_000


def test_nothing_without_logs() -> None:
    """Without `recovery` there is no script for it."""
    assert Scripts.of(None).log_rates is None
