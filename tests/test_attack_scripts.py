"""The scripts of normal channels, with commands of a dead connection that the server executes late."""

from __future__ import annotations

import pytest

from channels_asyncq.bus.redis import GIVE_BACK, POP, PUSH, Script
from channels_asyncq.testing import EmbeddedServer

EXPIRY = 60_000


class Channel:
    def __init__(self, server: EmbeddedServer, prefix: str) -> None:
        self._server = server
        self._list, self._taken = f"{prefix}:0:queue:jobs", f"{prefix}:0:taken:n:jobs"
        self._seen, self._pushed = f"{prefix}:0:seen:jobs", 0

    def _run(self, script: Script, keys: list[str], *arguments: object) -> object:
        return self._server.command("EVAL", script.text, len(keys), *keys, *map(str, arguments))

    def push(self, text: str) -> object:
        self._pushed += 1
        return self._run(PUSH, [self._list, self._seen], text, 100, EXPIRY, "n", self._pushed)

    def pop(self, number: int) -> object:
        item = self._run(POP, [self._list, self._taken], number, EXPIRY)
        return item[13:].decode() if isinstance(item, bytes) else item

    def give_back(self, number: int) -> object:
        return self._run(GIVE_BACK, [self._list, self._taken], number, EXPIRY)


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
