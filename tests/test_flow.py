"""Which full channels are waited for, and for how long."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from channels_asyncq.local.buffers import ChannelBuffer
from channels_asyncq.local.counters import Counters
from channels_asyncq.local.flow import MOST, MOST_WOKEN, PER_ENVELOPE, WaitBudget, WakeLimit
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.settings.hosts import Host
from channels_asyncq.settings.options import Options
from tests.clock import Clock
from tests.hubs import EXPIRY, ROOM, Recorder, envelope


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["local", "slices"])
    return clock


def test_capacity_comes_when_all_have_it() -> None:
    """`on_capacity()` comes when every channel that was waited for has a place, and is not repeated."""
    here = Recorder(capacity=1)
    for name in "ab":
        here.hub.join(ROOM, name)
    here.hub.deliver(ROOM, envelope("1"))
    assert not here.hub.deliver(ROOM, envelope("2"))
    here.texts("a")
    assert here.capacities == 0
    here.texts("b")
    assert here.capacities == 1
    assert here.hub.deliver(ROOM, envelope("2"))
    here.texts("a")
    assert here.capacities == 1


def test_a_capacity_that_changes() -> None:
    """A member that has a place by it is waited for no more, and one that has none by it is waited for."""
    options = Options(hosts=(Host("memory"),), capacity=1)
    here = Recorder(options=options)
    here.hub.join(ROOM, "a")
    here.hub.deliver(ROOM, envelope("1"))
    assert not here.hub.deliver(ROOM, envelope("2"))
    options.change("capacity", 3)
    here.hub.options_changed()
    assert here.capacities == 1
    assert here.hub.deliver(ROOM, envelope("2"))
    options.change("capacity", 2)
    here.chores.run(iter([True]))  # a sweep, say, is unfinished
    here.hub.options_changed()
    assert not here.hub.deliver(ROOM, envelope("3"))
    assert here.texts("a") == ["1", "2"] and here.capacities == 2
    assert here.hub.deliver(ROOM, envelope("3"))
    assert here.texts("a") == ["3"] and not here.hub.counters.dropped


def test_room_by_closing() -> None:
    """A channel that is closed while it is waited for is waited for no more."""
    here = Recorder(capacity=1)
    for name in "ab":
        here.hub.join(ROOM, name)
    here.hub.deliver(ROOM, envelope("1"))
    here.texts("b")
    assert not here.hub.deliver(ROOM, envelope("2"))
    here.hub.channels.close("a")
    assert here.capacities == 1
    assert here.hub.deliver(ROOM, envelope("2"))
    assert here.texts("b") == ["2"]


def test_room_by_expiry(clock: Clock) -> None:
    """A channel full of expired messages is not waited for, and nothing is dropped for overflow."""
    here = Recorder(capacity=1)
    here.hub.join(ROOM, "a")
    here.hub.deliver(ROOM, envelope("1"))
    clock.turn(EXPIRY)
    assert here.hub.deliver(ROOM, envelope("2"))
    assert here.hub.counters.dropped == {"expired": 1} and here.texts("a") == ["2"]


class Waits:
    """Offers envelopes until they are taken, and counts for how long that is, in milliseconds."""

    def __init__(self, here: Recorder) -> None:
        self.hub = here.hub
        self.waited = 0.0
        self.delivered = 0

    def until(self, offer: Callable[[], bool], each: float = 1.0) -> None:
        while not offer():
            self.hub.flow.end_wait(each)
            self.waited += each
        self.delivered += 1
        assert self.waited <= MOST + PER_ENVELOPE * self.delivered


def test_a_stuck_reader_is_waited_for_once() -> None:
    """A reader that is stuck costs its neighbours 50 ms once; after that it loses, until it reads again."""
    here = Recorder(capacity=1)
    for name in ("stuck", "quick"):
        here.hub.join(ROOM, name)
    here.hub.deliver(ROOM, envelope("0"))
    here.texts("quick")
    waits = Waits(here)
    for number in range(1, 1001):
        one = envelope(str(number))
        waits.until(lambda one=one: here.hub.deliver(ROOM, one))  # type: ignore[misc]
        assert here.texts("quick") == [str(number)]
    assert 0 < waits.waited <= MOST
    assert here.hub.counters.dropped == {"overflow": 1000} and here.texts("stuck") == ["0"]
    here.hub.deliver(ROOM, envelope("20"))
    assert not here.hub.deliver(ROOM, envelope("21")), "who reads again is waited for again"


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("each", [0.05, 1.0, 1.7])
def test_all_waiting_is_bounded_together(overflow: str, each: float) -> None:
    """However many readers are slow, and in however many groups, the loop waits 50 ms and 0.2 ms a message."""
    here = Recorder(capacity=3, overflow=overflow)
    slow = [f"slow{number}" for number in range(30)]
    topics = [ROOM, b"lobby", b"hall"]
    for number, name in enumerate(slow):
        here.hub.join(topics[number % 3], name)
    waits = Waits(here)
    for number in range(3000):
        one = envelope(str(number))
        waits.until(lambda one=one, topic=topics[number % 3]: here.hub.deliver(topic, one), each)  # type: ignore[misc]
        waits.until(lambda one=one, name=slow[number % 30]: here.hub.deliver_to(name, one), each)  # type: ignore[misc]
        # Each takes one message of those that it gets while the others send ten.
        here.hub.channels.open(slow[number * 7 % 30]).take()
    assert waits.waited > MOST, "they are waited for"


def test_a_reader_that_keeps_up_has_its_turn_beside_slow_ones() -> None:
    """Slow readers cannot use up the time that a reader needs which empties its channel in each turn."""
    here = Recorder(capacity=2)
    for name in ("slow", "quick"):
        here.hub.join(ROOM, name)
    quick, slow = here.hub.channels.open("quick"), here.hub.channels.open("slow")
    got: list[str] = []
    waits = Waits(here)

    def offer(one: Envelope) -> bool:
        if here.hub.deliver(ROOM, one):
            return True
        # A turn of the loop.
        got.extend(here.texts("quick"))
        if int(one.payload) % 20 == 0:
            slow.take()
        return False

    for number in range(2000):
        one = envelope(str(number))
        waits.until(lambda one=one: offer(one), 0.1)  # type: ignore[misc]
    got.extend(here.texts("quick"))
    assert got == [str(number) for number in range(2000)] and quick.empty()
    assert here.hub.counters.dropped["overflow"] > 1000, "the slow one loses"


def test_full_channels_of_other_groups_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a message costs does not grow with the full channels of other groups, nor with stuck members."""
    here = Recorder(capacity=1)
    for number in range(100):
        here.hub.join(b"others", f"full{number}")
    for name in ("stuck", "quick"):
        here.hub.join(ROOM, name)
    here.hub.deliver(b"others", envelope())
    here.hub.deliver(ROOM, envelope())
    looked: list[str] = []
    full = ChannelBuffer.full

    def look(buffer: ChannelBuffer) -> bool:
        looked.append(buffer.channel)
        return full(buffer)

    monkeypatch.setattr(ChannelBuffer, "full", look)
    here.texts("quick")
    one = envelope()
    while not here.hub.deliver(ROOM, one):
        here.hub.flow.end_wait(1.0)
    assert set(looked) <= {"stuck", "quick"}
    looked.clear()
    here.hub.flow.budget = WaitBudget()
    here.texts("quick")
    assert here.hub.deliver(ROOM, envelope())
    assert "stuck" not in looked, "it was waited for in vain"


def test_who_leaves_is_waited_for_no_more() -> None:
    """A full member that leaves, and one that was full when it joined."""
    here = Recorder(capacity=1)
    here.hub.put_own("a", envelope("0"))
    for name in "ab":
        here.hub.join(ROOM, name)
    assert not here.hub.deliver(ROOM, envelope("1"))
    here.hub.groups.leave(ROOM, "a")
    assert here.capacities == 1
    assert here.hub.deliver(ROOM, envelope("1"))
    assert here.texts("b") == ["1"] and here.texts("a") == ["0"]


def test_wake_limits_are_independent() -> None:
    """A delivery ends its slice after its own wake-ups, and not because another one has woken many before it."""
    counters = Counters()
    first = WakeLimit(counters)
    counters.woken += MOST_WOKEN - 1
    assert not first.is_reached()
    second = WakeLimit(counters)
    counters.woken += 1
    assert first.is_reached() and not first.is_reached() and not second.is_reached()
    counters.woken += MOST_WOKEN - 1
    assert second.is_reached() and not first.is_reached()
