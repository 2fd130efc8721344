"""A message that finds its channel full."""

from __future__ import annotations

import re

import pytest
from channels.exceptions import ChannelFull

from tests.contract import codes
from tests.hubs import ROOM, Recorder, envelope


@pytest.mark.parametrize(
    ("overflow", "left"), [("drop_newest", ["1"]), ("drop_oldest", ["2"]), ("close", ["1"])]
)
def test_overflow(overflow: str, left: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """A full channel is waited for; then its setting applies, to it alone, and is counted and logged."""
    here = Recorder(capacity=1, overflow=overflow, channel_capacity=((re.compile("wide"), 9),))
    for name in ("full", "wide"):
        here.hub.join(ROOM, name)
    assert here.hub.deliver(ROOM, envelope("1"))
    second = envelope("2")
    assert not here.hub.deliver(ROOM, second)
    assert here.hub.channels.open("wide").queued == 1
    here.hub.flow.budget.left = 0.0
    assert here.hub.deliver(ROOM, second)
    assert here.hub.counters.dropped == {"overflow": 1}
    assert codes(caplog) == ["loss.overflow"]
    assert "channel full is full by capacity (1)" in caplog.text and f"overflow={overflow!r}" in caplog.text
    assert here.texts("wide") == ["1", "2"]
    assert here.texts("full") == left
    assert ("full" in here.hub.groups.by_topic[ROOM].members) is (overflow != "close")
    assert not here.empty


def test_overflow_of_the_only_member_closes_the_group() -> None:
    """A channel that closes on overflow takes its group with it, in the middle of a delivery."""
    here = Recorder(capacity=1, overflow="close")
    here.hub.join(ROOM, "a")
    here.flood(1, 2)
    assert here.empty == [ROOM] and not here.hub.groups.by_topic
    assert here.texts("a") == ["1"]


def test_count_full(caplog: pytest.LogCaptureFixture) -> None:
    """A normal channel that a group found full is counted and told like a member here."""
    here = Recorder()
    here.hub.overflow.count("jobs")
    assert (
        here.hub.counters.dropped == {"overflow": 1} and "channel jobs is full by capacity (2)" in caplog.text
    )


def test_bytes_are_bounded() -> None:
    """A process that holds its bytes takes no more but for empty channels; one envelope counts once."""
    here = Recorder(capacity=100, max_buffered_bytes=100)
    for name in "ab":
        here.hub.join(ROOM, name)
    for _ in range(4):
        here.hub.deliver(ROOM, envelope("x" * 30))
    assert [here.hub.channels.open(name).queued for name in "ab"] == [
        3,
        3,
    ] and here.hub.counters.held_bytes == 90
    assert here.hub.counters.dropped == {"overflow": 2}
    here.hub.put_own("c", envelope("y" * 50))
    # The sender can see it.
    with pytest.raises(ChannelFull, match=r"channel 'c' is not empty, and messages of 140 bytes .* is 100"):
        here.hub.put_own("c", envelope("z"))
    assert here.hub.counters.held_bytes == 140 and here.hub.counters.dropped == {"overflow": 2}
    assert here.texts("c") == ["y" * 50] and len(here.texts("a")) == 3 and here.hub.counters.held_bytes == 90
    assert len(here.texts("b")) == 3 and here.hub.counters.held_bytes == 0
