"""The scripts of normal channels, with commands of a dead connection that are executed late; that of the logs."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels_asyncq.bus.redis.scripts import Script, Scripts
from channels_asyncq.settings.keys import Recovery
from channels_asyncq.testing import EmbeddedServer, EmbeddedServerError

EXPIRY = 60_000
SCRIPTS = Scripts.of(None)
NO_HISTORY: dict[str, Any] = {"KEPT_ENTRIES": 0, "KEPT_BYTES": 0, "KEPT_MS": 0}


class Channel:
    def __init__(self, server: EmbeddedServer, prefix: str) -> None:
        self._server = server
        self._list, self._taken = f"{prefix}:0:queue:jobs", f"{prefix}:0:taken:n:jobs"
        self._seen, self._pushed = f"{prefix}:0:seen:3:n", 0
        self._waiting = f"{prefix}:0:waiting:jobs"
        self.reads = (1, 1)

    def _run(self, script: Script, keys: list[str], *arguments: object) -> object:
        return self._server.command("EVAL", script.text, len(keys), *keys, *map(str, arguments))

    def push(self, text: str, capacity: int = 100) -> object:
        self._pushed += 1
        return self.push_as(self._pushed, text, capacity)

    def push_as(self, number: int, text: str, capacity: int = 100) -> object:
        """Push under this number, as a command that is sent again is."""
        return self._run(
            SCRIPTS.push, [self._list, self._seen, self._waiting], text, capacity, EXPIRY, number
        )

    def push_waiting(
        self, session_id: str, text: str, waited: int, capacity: int, waits: int = EXPIRY
    ) -> object:
        """Push for a sender of a session that has waited for so many ms, and is waited for as long."""
        self._pushed += 1
        keys = [self._list, self._seen, self._waiting]
        return self._run(SCRIPTS.push, keys, text, capacity, EXPIRY, self._pushed, session_id, waited, waits)

    def time(self) -> int:
        """The server's, in ms."""
        seconds, microseconds = map(int, self._server.command("TIME"))
        return 1000 * seconds + microseconds // 1000

    def who_waits(self) -> object:
        return self._server.command("HKEYS", self._waiting)

    def items(self) -> list[str]:
        found = self._server.command("LRANGE", self._list, 0, -1)
        assert isinstance(found, list)
        return [item[13:].decode() for item in found]

    def taken_in(self) -> bytes:
        """What the server remembers of the numbers of this session."""
        found = self._server.command("GET", self._seen)
        assert isinstance(found, bytes)
        return found

    def pop(self, number: int) -> object:
        item = self._run(SCRIPTS.pop, [self._list, self._taken], number, EXPIRY, *self.reads)
        return item[13:].decode() if isinstance(item, bytes) else item

    def give_back(self, number: int) -> object:
        return self._run(SCRIPTS.give_back, [self._list, self._taken], number, EXPIRY)


@pytest.fixture
def channel(redis_server: EmbeddedServer, prefix: str) -> Channel:
    return Channel(redis_server, prefix)


def test_the_same_number(channel: Channel) -> None:
    """The same number gets the same answer, also when that was nothing; a higher one goes on."""
    assert channel.pop(1) is None
    channel.push("one")
    channel.push("two")
    assert channel.pop(1) is None
    assert channel.pop(2) == channel.pop(2) == "one"
    assert channel.pop(9) == "two"
    assert channel.pop(10) is None


def test_pop_executed_late(channel: Channel) -> None:
    """A lower number takes nothing and acknowledges nothing."""
    channel.push("one")
    channel.push("two")
    assert channel.pop(5) == "one"
    assert channel.pop(4) is None
    assert channel.pop(5) == "one"
    assert channel.give_back(5) == 1
    assert channel.pop(5) is None
    assert channel.pop(6) == "one"
    assert channel.pop(7) == "two"


def test_give_back_overtakes_its_pop(channel: Channel) -> None:
    """What was given back before it was asked for is not taken any more."""
    channel.push("one")
    assert channel.give_back(1) == 0
    assert channel.pop(1) is None
    assert channel.pop(2) == "one"


def test_give_back_executed_late_or_twice(channel: Channel) -> None:
    """A message goes back once, and not at all when a higher number was asked."""
    channel.push("one")
    channel.push("two")
    assert channel.pop(1) == "one"
    assert channel.give_back(1) == 1
    assert channel.give_back(1) == 0
    assert channel.pop(2) == "one"
    assert channel.give_back(1) == 0
    assert channel.pop(2) == "one"
    assert channel.pop(3) == "two"
    assert channel.pop(4) is None


def test_waiting_senders(channel: Channel) -> None:
    """Nodes whose senders wait get places in the order in which they came; others leave them the last one."""
    assert [channel.push(text, 3) for text in "abcd"] == [1, 1, 1, 0]
    assert channel.push_waiting("second", "x", 1000, 3) == 0
    assert channel.push_waiting("first", "x", 2000, 3) == 0
    assert channel.push_waiting("third", "x", 500, 3) == 0
    channel.pop(1)
    # One place.
    assert channel.push("plain", 3) == 0
    assert channel.push_waiting("second", "x", 1000, 3) == 0
    channel.pop(2)
    # Two places: the first two have them, and whoever does not wait has what is more than the last.
    assert channel.push_waiting("third", "x", 500, 3) == 0
    assert channel.push_waiting("second", "second", 1000, 3) == 1
    assert channel.who_waits() == [b"first", b"third"]
    assert channel.push("plain", 3) == 0
    assert channel.push_waiting("first", "first", 2000, 3) == 1
    channel.pop(3)
    channel.pop(4)
    assert channel.push("plain", 3) == 1
    assert channel.push("plain", 3) == 0
    assert channel.push_waiting("third", "third", 500, 3) == 1
    assert channel.who_waits() == []
    assert channel.items() == ["first", "plain", "third"]


def test_waiting_senders_that_are_gone(channel: Channel) -> None:
    """Who has not asked again in its time waits no more."""
    assert channel.push("old", 1) == 1
    assert channel.push_waiting("gone", "x", 0, 1, waits=1) == 0
    assert channel.push_waiting("there", "x", 0, 1) == 0
    channel.pop(1)
    # Later than the millisecond, by the server's clock.
    began = channel.time()
    while channel.time() <= began + 1:
        pass
    assert channel.push_waiting("there", "there", 0, 1) == 1
    assert channel.who_waits() == []


def test_full_and_sent_again(channel: Channel) -> None:
    """A number that was refused and is sent again is not "taken in before", though a later one was."""
    assert channel.push_as(1, "old", 1) == 1
    assert channel.push_as(2, "refused", 1) == 0
    assert channel.pop(1) == "old"
    assert channel.push_as(3, "later", 1) == 1
    assert channel.push_as(2, "refused", 1) == 0
    assert channel.push_as(2, "refused", 2) == channel.push_as(2, "again", 2) == 1
    assert channel.push_as(3, "again", 9) == 1
    assert channel.items() == ["later", "refused"]


def test_a_server_that_lost_its_memory(channel: Channel) -> None:
    """Nothing is remembered of a session that has pushed before: each number is taken once, in any order."""
    for number in (5000, 4999, 4500, 5001, 4999, 4500, 5000):
        assert channel.push_as(number, str(number)) == 1
    assert channel.items() == ["5000", "4999", "4500", "5001"]


def test_what_is_remembered_is_bounded(channel: Channel) -> None:
    """Of the numbers that were not taken in, at most the last 1024 are kept; without any it is one number."""
    for number in range(1, 6):
        channel.push(str(number))
    assert channel.taken_in() == b"5"
    for number in (20_000, 20_900, 40_000):
        assert channel.push_as(number, "far") == 1
    kept = channel.taken_in().split(b",")
    assert kept[0] == b"40000"
    assert [int(number) for number in kept[1:-1]] == [*range(38_976, 40_000)]


NUMBERS = st.tuples(st.integers(1, 30), st.integers(1, 3), st.booleans())


@given(st.lists(NUMBERS, max_size=40))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_numbers(redis_server: EmbeddedServer, pushes: list[tuple[int, int, bool]]) -> None:
    """In whatever order numbers come, find the channel full or are repeated: each is stored once, or refused."""
    channel = Channel(redis_server, f"any{secrets.token_hex(4)}")
    stored: set[int] = set()
    waiting: list[int] = []
    for turn, (number, capacity, pops) in enumerate(pushes, 1):
        expected = 1 if number in stored or len(waiting) < capacity else 0
        assert channel.push_as(number, str(number), capacity) == expected
        if expected and number not in stored:
            stored.add(number)
            waiting.append(number)
        if pops:
            assert channel.pop(turn) == (str(waiting.pop(0)) if waiting else None)
    assert channel.items() == [str(number) for number in waiting]


def test_a_header_in_the_log_is_small(redis_server: EmbeddedServer, prefix: str) -> None:
    """However large a message is: if only its header is logged, those before it stay in the log."""
    script = Script.load("send", MOST_ENTRIES=1000, MOST_BYTES=100_000, **NO_HISTORY)
    log = f"{prefix}:0:log:0"

    def send(*arguments: str | int) -> None:
        redis_server.command("EVAL", script.text, 1, log, f"{prefix}:0:group:room", *arguments)

    for _ in range(500):
        send("", "x" * 100)
    send("x" * 50, "x" * 50_000)
    assert redis_server.command("XLEN", log) == 501
    # Whole, it takes as much of MOST_BYTES as it has.
    send("", "x" * 50_000)
    found = redis_server.command("XLEN", log)
    assert isinstance(found, int) and found < 300


@pytest.mark.parametrize(("partitions", "kept"), [(4, 127), (16, 127), (64, 31), (1024, 1), (4096, 1)])
def test_more_logs_keep_fewer_large_messages(
    redis_server: EmbeddedServer, prefix: str, partitions: int, kept: int
) -> None:
    """Each log keeps its share of what 16 logs keep, and its last message in any case."""
    script = Scripts.of(Recovery().spread_over(partitions), partitions).send
    assert script is not None
    log = f"{prefix}:0:log:0"
    # The largest message that is logged, with its header.
    entries = [b"%0200d" % number + bytes(65_400) for number in range(kept + 5)]
    for entry in entries:
        redis_server.command("EVAL", script.text, 1, log, f"{prefix}:0:group:room", "", entry)
    found = [fields[3] for _, fields in redis_server.command("XRANGE", log, "-", "+")]
    # Redis trims about to a length: it keeps whole blocks of entries.
    assert kept <= len(found) <= kept + 1
    assert found == entries[-len(found) :]


_REDIS_6 = b"""
local redis = setmetatable({}, {__index = redis})
redis.pcall = function(command, ...)
  if command == 'INFO' then
    return '# Errorstats\\r\\nerrorstat_OOM:count=1\\r\\n'
  end
  return { err = "@user_script: 17: -OOM command not allowed when used memory > 'maxmemory'.\\r\\n" }
end
"""


def test_lease_has_the_words_of_redis_6(redis_server: EmbeddedServer, prefix: str) -> None:
    """Where Redis 6 refuses to write, the line of the script and the end of a line are left out."""
    keys = [f"{prefix}:0:layouts", f"{prefix}:0:layouts:x", f"{prefix}:0:layouts:past"]
    text = _REDIS_6 + SCRIPTS.lease.text
    answer = redis_server.command("EVAL", text, 3, *keys, "layout", "session", 1000, "", "place", 1, 1000)
    assert answer[0] == b"OOM command not allowed when used memory > 'maxmemory'."


def test_nothing_is_sent_that_redis_6_would_not_count(redis_server: EmbeddedServer, prefix: str) -> None:
    """Redis 6 counts no errors within scripts, only others': nobody would learn that a message is in no log."""
    send = Script.load("send", MOST_ENTRIES=100, MOST_BYTES=10_000, IS_REQUIRED=0, **NO_HISTORY)
    with pytest.raises(EmbeddedServerError, match="OOM"):
        redis_server.command("EVAL", _REDIS_6 + send.text, 1, f"{prefix}:0:log:0", "topic", "", "message")


class TestReadLog:
    """A page of a log: what it says of the log, and which entries it has."""

    @pytest.fixture
    def log(self, redis_server: EmbeddedServer, prefix: str) -> str:
        """Entries 1-1 to 6-1, of the topics a, b, a, b, a, b."""
        log = f"{prefix}:0:log:0"
        for number in range(1, 7):
            redis_server.command("XADD", log, f"{number}-1", "t", "ba"[number % 2], "e", "x")
        return log

    def page(self, server: EmbeddedServer, log: str, start: str, count: int, *topics: str) -> list[object]:
        last, _, size, first, through, entries = server.command(
            "EVAL", SCRIPTS.read_log.text, 1, log, start, count, *topics
        )
        return [last, size, first, through, [name for name, _ in entries]]

    @pytest.mark.parametrize(
        ("topics", "found"),
        [
            ((), [b"2-1", b"3-1", b"4-1"]),
            (("a",), [b"3-1"]),
            (("b", "c"), [b"2-1", b"4-1"]),
            (("c",), []),
        ],
    )
    def test_topics(
        self, redis_server: EmbeddedServer, log: str, topics: tuple[str, ...], found: list[bytes]
    ) -> None:
        """Entries of other topics are left out, and everything else is as without topics."""
        page = self.page(redis_server, log, "2-1", 3, *topics)
        assert page == [b"6-1", 3, b"2-1", b"4-1", found]

    def test_the_end(self, redis_server: EmbeddedServer, log: str) -> None:
        """The position alone is returned, wanted or not; a page behind the end is empty."""
        assert self.page(redis_server, log, "6-1", 3, "a") == [b"6-1", 1, b"6-1", b"6-1", [b"6-1"]]
        assert self.page(redis_server, log, "7-1", 3, "a") == [b"6-1", 0, b"", b"", []]

    def test_trimmed_to_nothing(self, redis_server: EmbeddedServer, log: str) -> None:
        """The last id stays."""
        redis_server.command("XTRIM", log, "MAXLEN", 0)
        assert self.page(redis_server, log, "2-1", 3, "a") == [b"6-1", 0, b"", b"", []]

    def test_no_log(self, redis_server: EmbeddedServer, prefix: str) -> None:
        """A log that is not there has had no entry."""
        assert self.page(redis_server, f"{prefix}:0:log:1", "2-1", 3) == [b"0-0", 0, b"", b"", []]
