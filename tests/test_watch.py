"""Watch: what is new in a fence about its server."""

from __future__ import annotations

import logging

import pytest

from channels_asyncq.bus.redis import watch
from channels_asyncq.bus.redis.watch import Findings, Watch
from channels_asyncq.settings.keys import Recovery
from tests.contract import codes

NOW = 1_700_000_000_000
WEEK = 7 * 86_400_000


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A watch over partitions 1, 3 and 5 of a host that nobody has spoken of."""
    monkeypatch.setattr(watch, "_evicting", set())
    monkeypatch.setattr(watch, "_evicted", set())
    return Watch("redis://host", range(1, 6, 2), Recovery())


def marks(*expire: int | None, now: int = NOW) -> bytes:
    texts = (b"-" if each is None else b"%d" % each for each in expire)
    return b" ".join([b"%d" % now, *texts])


def counts(refusals: int = 0, evictions: int | None = None) -> bytes:
    text = b"# Errorstats\r\nerrorstat_ERR:count=7\r\n"
    if refusals:
        text += b"errorstat_MISCONF:count=%d\r\nerrorstat_OOM:count=1\r\n" % (refusals - 1)
    return text if evictions is None else b"%b\n# Stats\r\nevicted_keys:%d\r\n" % (text, evictions)


EVICTED = b"evicted_keys:5\r\nmaxmemory_policy:allkeys-lru\r\n"
OLD = (NOW + WEEK, NOW + WEEK + 5000, NOW + WEEK)


def forgotten(here: Watch, *expire: int | None, now: int = NOW) -> set[int]:
    return set(here.note_fence(marks(*expire, now=now), b"", counts()).forgotten)


def test_first_fence(here: Watch) -> None:
    """It has no fence before it to differ from, whatever it says."""
    findings = here.note_fence(marks(*OLD), b"", counts(3, 99))
    assert findings == Findings(frozenset(), has_evicted=False, is_first=True)
    assert here.note_fence(marks(*OLD), b"", counts(3, 99)) == Findings(
        frozenset(), has_evicted=False, is_first=False
    )


@pytest.mark.parametrize(
    ("expire", "now", "expected"),
    [
        (OLD, NOW + 5000, set()),
        ((OLD[0] + 300, OLD[1] - 300, OLD[2]), NOW, set()),
        ((OLD[0] + 90_000, *OLD[1:]), NOW, {1}),
        ((OLD[0] - 90_000, OLD[1], OLD[2] + 90_000), NOW, {1, 5}),
        ((None, *OLD[1:]), NOW, set()),
        (tuple(each + WEEK for each in OLD), OLD[0], {3}),
        (tuple(each + WEEK for each in OLD), OLD[1], set()),
    ],
    ids=["the same", "nearly", "one", "two", "not written", "one before its time", "when they were due"],
)
def test_marks(here: Watch, expire: tuple[int | None, ...], now: int, expected: set[int]) -> None:
    """A mark that is another one, before it was due to expire, has been lost."""
    assert forgotten(here, *OLD) == set()
    assert forgotten(here, *expire, now=now) == expected
    assert forgotten(here, *expire, now=now) == set()


def test_a_mark_that_could_not_be_written(here: Watch) -> None:
    """The loss is found when the server writes again."""
    assert forgotten(here, *OLD) == set()
    assert forgotten(here, None, *OLD[1:]) == set()
    assert forgotten(here, OLD[0] + 90_000, *OLD[1:]) == {1}


def test_evictions(here: Watch) -> None:
    """Each growth of the count; one that shrinks is of a server that began anew."""
    found = [here.note_fence(marks(*OLD), b"", counts(0, n)).has_evicted for n in (5, 5, 6, 9, 0, 1)]
    assert found == [False, False, True, True, False, True]
    assert not here.note_fence(marks(*OLD), b"", b"").has_evicted


def test_has_refused(here: Watch) -> None:
    """Since the last fence, or nobody can know."""
    here.note_fence(marks(*OLD), b"", counts(4))
    assert [here.has_refused(counts(n)) for n in (4, 5, 0)] == [False, True, True]
    assert here.has_refused(b"")
    here.note_fence(marks(*OLD), b"", b"")
    assert not here.has_refused(b"")
    assert here.has_refused(counts(0))


def test_lines_about_refusals(here: Watch, caplog: pytest.LogCaptureFixture) -> None:
    """One when it begins, one when it ends, and one if it was over before anybody looked."""
    caplog.set_level(logging.INFO)
    for words, count in ((b"", 0), (b"OOM no memory.", 1), (b"OOM no memory.", 2), (b"", 2), (b"", 2)):
        here.note_fence(marks(*OLD), words, counts(count))
    assert codes(caplog) == ["connection.unwritable", "connection.writable"]
    assert "OOM no memory. Messages are sent without a log" in caplog.text
    here.note_fence(marks(*OLD), b"", counts(3))
    assert codes(caplog)[2:] == ["connection.unwritable"]


@pytest.mark.parametrize(
    "errors", [b"", b"# Errorstats\r\nerrorstat_ERR:count=7\r\n"], ids=["not told", "not counted"]
)
def test_refusals_that_are_not_counted(here: Watch, caplog: pytest.LogCaptureFixture, errors: bytes) -> None:
    """Nothing is sent without a log where the server's count of refusals cannot be read, and the line says so."""
    here.note_fence(marks(*OLD), b"OOM no memory.", errors)
    assert "OOM no memory. Sends, jobs and memberships" in caplog.text
    assert here.consequence.startswith("Sends, jobs")


@pytest.mark.parametrize(
    ("info", "has_evicted", "expected"),
    [
        (b"", False, ["FLUSHDB", "eviction", "DEL"]),
        (b"cmdstat_flushdb:calls=2,usec=5\r\ncmdstat_flushall:calls=1,usec=5\r\n", False, ["3 times"]),
        (b"evicted_keys:5\r\nmaxmemory_policy:allkeys-lru\r\n", False, ["evicts keys", "allkeys-lru"]),
        (
            b"evicted_keys:5\r\nmaxmemory_policy:allkeys-lru\r\ncmdstat_flushdb:calls=2,usec=5\r\n",
            False,
            ["2 times"],
        ),
        (
            b"evicted_keys:5\r\nmaxmemory_policy:volatile-ttl\r\ncmdstat_flushdb:calls=2\r\n",
            True,
            ["volatile-ttl"],
        ),
    ],
    ids=["unknown", "flushed", "evicted", "flushed, long evicted", "just evicted"],
)
def test_likely_cause(
    here: Watch, caplog: pytest.LogCaptureFixture, info: bytes, has_evicted: bool, expected: list[str]
) -> None:
    """What INFO says decides."""
    here.log_forgotten(Findings(frozenset({1}), has_evicted, is_first=False), info)
    assert codes(caplog) == ["loss.server_forgot"]
    assert all(word in caplog.text for word in ["1 of 3 partitions", *expected])


@pytest.mark.parametrize(
    ("memory", "level"),
    [
        (b"maxmemory:0\r\nmaxmemory_policy:noeviction\r\n", None),
        (b"maxmemory:9\r\nmaxmemory_policy:noeviction\r\n", None),
        (b"maxmemory:9\r\nmaxmemory_policy:volatile-ttl\r\n", logging.WARNING),
        (b"maxmemory:0\r\nmaxmemory_policy:volatile-ttl\r\n", logging.INFO),
        (b"maxmemory_human:0B\r\n", None),
    ],
)
def test_warning_of_evictions(
    here: Watch, caplog: pytest.LogCaptureFixture, memory: bytes, level: int | None
) -> None:
    """Once, if the policy evicts; no warning while there is no limit."""
    caplog.set_level(logging.INFO)
    for _ in range(2):
        here.warn_of_evictions(memory)
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])
