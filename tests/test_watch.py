"""Watch: what is new in a fence about its server."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import pytest

from channels_asyncq.bus.redis import watch
from channels_asyncq.bus.redis.watch import Findings, Watch
from channels_asyncq.settings.keys import Recovery
from tests.contract import codes

NOW = 1_700_000_000_000
WEEK = 7 * 86_400_000


@dataclass
class Marked:
    """A partition, as far as a watch knows it: it keeps the mark."""

    number: int
    mark: int | None = None


class World:
    """A watch over a host that nobody has spoken of, and its partitions 1, 3 and 5."""

    def __init__(self) -> None:
        self.watch = Watch("redis://host", Recovery())
        self.partitions: list[Marked | None] = [Marked(number) for number in (1, 3, 5)]

    def note(self, marks: bytes, refusal: bytes = b"", counts: bytes = b"0 0") -> Findings:
        now, _, expire = marks.partition(b" ")
        return self.watch.note_fence(cast(Any, self.partitions), int(now), expire, refusal, counts)

    def forgotten(self, *expire: int | None, now: int = NOW) -> set[int]:
        return set(self.note(marks(*expire, now=now)).forgotten)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(watch, "_evicting", set())
    monkeypatch.setattr(watch, "_evicted", set())
    return World()


def marks(*expire: int | None, now: int = NOW) -> bytes:
    texts = (b"-" if each is None else b"%d" % each for each in expire)
    return b" ".join([b"%d" % now, *texts])


def counts(refusals: int | None = 0, evictions: int | None = None) -> bytes:
    """The last line of a fence."""
    return b" ".join(b"-" if each is None else b"%d" % each for each in (refusals, evictions))


def errorstats(refusals: int) -> bytes:
    """INFO errorstats."""
    text = b"# Errorstats\r\nerrorstat_ERR:count=7\r\n"
    if refusals:
        text += b"errorstat_MISCONF:count=%d\r\nerrorstat_OOM:count=1\r\n" % (refusals - 1)
    return text


OLD = (NOW + WEEK, NOW + WEEK + 5000, NOW + WEEK)


def test_first_fence(here: World) -> None:
    """It has no fence before it to differ from, whatever it says."""
    findings = here.note(marks(*OLD), counts=counts(3, 99))
    assert findings == Findings(frozenset(), has_evicted=False, is_first=True)
    findings = here.note(marks(*OLD), counts=counts(3, 99))
    assert findings == Findings(frozenset(), has_evicted=False, is_first=False)


def test_marks_go_with_their_partitions(here: World) -> None:
    """
    A partition that comes from another node brings the mark it had there: another one here is a loss, though no
    fence of this watch has seen the first. One that has moved away since the fence was sent is left alone.
    """
    assert here.note(marks(*OLD)).is_first
    here.partitions = [Marked(7, mark=OLD[0]), Marked(9, mark=OLD[0]), Marked(11), None]
    gone = here.partitions[1] = Marked(9, mark=OLD[0])
    assert here.forgotten(OLD[0], OLD[0] + 90_000, OLD[0] + 90_000, OLD[0] + 90_000) == {9}
    assert gone.mark == OLD[0] + 90_000
    here.partitions[1] = None
    assert here.forgotten(OLD[0], OLD[0], OLD[0] + 90_000, OLD[0]) == set()
    assert gone.mark == OLD[0] + 90_000


def test_a_first_fence_without_a_partition(here: World) -> None:
    """The first with a mark is the first: what had moved, or was not written, is found later."""
    here.partitions = [None, Marked(3)]
    assert here.note(marks(OLD[0], None)).is_first
    assert here.note(marks(OLD[0], OLD[1])).is_first
    assert not here.note(marks(OLD[0], OLD[1])).is_first


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
def test_marks(here: World, expire: tuple[int | None, ...], now: int, expected: set[int]) -> None:
    """A mark that is another one, before it was due to expire, has been lost."""
    assert here.forgotten(*OLD) == set()
    assert here.forgotten(*expire, now=now) == expected
    assert here.forgotten(*expire, now=now) == set()


def test_a_mark_that_could_not_be_written(here: World) -> None:
    """The loss is found when the server writes again."""
    assert here.forgotten(*OLD) == set()
    assert here.forgotten(None, *OLD[1:]) == set()
    assert here.forgotten(OLD[0] + 90_000, *OLD[1:]) == {1}


def test_evictions(here: World) -> None:
    """Each growth of the count; one that shrinks is of a server that began anew."""
    found = [here.note(marks(*OLD), counts=counts(0, n)).has_evicted for n in (5, 5, 6, 9, 0, 1)]
    assert found == [False, False, True, True, False, True]
    assert not here.note(marks(*OLD), counts=counts(0, None)).has_evicted
    assert not here.note(marks(*OLD), counts=counts(0, 99)).has_evicted


def test_has_refused(here: World) -> None:
    """Since the last fence, or nobody can know."""
    here.note(marks(*OLD), counts=counts(4))
    assert [here.watch.has_refused(errorstats(n)) for n in (4, 5, 0)] == [False, True, True]
    assert here.watch.has_refused(b"")
    here.note(marks(*OLD), counts=counts(None))
    assert not here.watch.has_refused(b"")
    assert here.watch.has_refused(errorstats(0))


def test_lines_about_refusals(here: World, caplog: pytest.LogCaptureFixture) -> None:
    """One when it begins, one when it ends, and one if it was over before anybody looked."""
    caplog.set_level(logging.INFO)
    for words, count in ((b"", 0), (b"OOM no memory.", 1), (b"OOM no memory.", 2), (b"", 2), (b"", 2)):
        here.note(marks(*OLD), words, counts(count))
    assert codes(caplog) == ["connection.unwritable", "connection.writable"]
    assert "OOM no memory. Messages are sent without a log" in caplog.text
    here.note(marks(*OLD), counts=counts(3))
    assert codes(caplog)[2:] == ["connection.unwritable"]


@pytest.mark.parametrize("refusals", [None, 0], ids=["not told", "not counted"])
def test_refusals_that_are_not_counted(
    here: World, caplog: pytest.LogCaptureFixture, refusals: int | None
) -> None:
    """Nothing is sent without a log where the server's count of refusals cannot be read, and the line says so."""
    here.note(marks(*OLD), b"OOM no memory.", counts(refusals))
    assert "OOM no memory. Sends, jobs and memberships" in caplog.text
    assert here.watch.consequence.startswith("Sends, jobs")


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
    here: World, caplog: pytest.LogCaptureFixture, info: bytes, has_evicted: bool, expected: list[str]
) -> None:
    """What INFO says decides."""
    here.watch.log_forgotten(Findings(frozenset({1}), has_evicted, is_first=False), 3, info)
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
    here: World, caplog: pytest.LogCaptureFixture, memory: bytes, level: int | None
) -> None:
    """Once, if the policy evicts; no warning while there is no limit."""
    caplog.set_level(logging.INFO)
    for _ in range(2):
        here.watch.warn_of_evictions(memory)
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])
