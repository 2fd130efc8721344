"""Local channels and the members of groups: rule by rule, and against a model."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import pytest
from channels.exceptions import ChannelFull
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from channels_asyncq.exceptions import ChannelClosed, LayerClosed
from channels_asyncq.local import buffers
from channels_asyncq.local.buffers import ChannelBuffer
from channels_asyncq.local.channels import CLOSED_NAMES_KEPT, MOST_CLOSED_NAMES
from channels_asyncq.local.flow import MOST, PER_ENVELOPE, WaitBudget
from channels_asyncq.local.hub import Hub
from channels_asyncq.messages.envelopes import NOTICE, Envelope
from channels_asyncq.settings.hosts import Host
from channels_asyncq.settings.options import Options
from channels_asyncq.slices import SLICE, Slices
from tests.clock import Clock
from tests.contract import codes, eventually, every, started

EXPIRY = 60.0
GROUP_EXPIRY = 600.0
ROOM = b"asgi:0:group:room"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["local", "slices"])
    return clock


class Recorder:
    """A hub and its owner, who writes down every call; and the owner's event loop, which turns by hand."""

    def __init__(self, options: Options | None = None, *, notifies: bool = False, **more: Any) -> None:
        defaults: dict[str, Any] = {"expiry": EXPIRY, "group_expiry": GROUP_EXPIRY, "capacity": 2}
        self.empty: list[bytes] = []
        self.capacities = 0
        #: For each loss that many were notified of, how many channels and groups these were.
        self.notified: list[tuple[int, int]] = []
        #: What is to be called on the next turn of the loop.
        self.next_turn: list[Callable[[], object]] = []
        self.slices, self.chores = (Slices(cast(asyncio.AbstractEventLoop, self)) for _ in range(2))
        if notifies:
            defaults["on_loss"] = "loss"
        options = options or Options(hosts=(Host("memory"),), **(defaults | more))
        self.hub = Hub(options, self, self.slices, self.chores)

    def call_soon(self, callback: Callable[[], object], *, context: Context | None = None) -> None:
        self.next_turn.append(callback)

    def on_group_empty(self, topic: bytes) -> None:
        self.empty.append(topic)

    def on_capacity(self) -> None:
        self.capacities += 1

    def on_loss_notified(self, reason: str, channels: int, groups: int) -> None:
        self.notified.append((channels, groups))

    def turn(self) -> bool:
        """Turn the loop once; return whether there was anything to do."""
        due, self.next_turn[:] = list(self.next_turn), []
        for each in due:
            each()
        return bool(due)

    def texts(self, channel: str) -> list[str]:
        """Everything that can be taken out of a channel now."""
        buffer = self.hub.channels.get(channel)
        return [] if buffer is None else [text(one) for one in iter(buffer.take, None)]

    def notify_loss(self, reason: str, groups: dict[bytes, str], *, everybody: bool) -> tuple[int, int]:
        """Notify of a loss; return how many channels and groups that were."""
        self.hub.notify_loss(reason, groups.items(), everybody=everybody)
        while self.slices.is_busy:
            self.turn()
        return self.notified.pop()

    def flood(self, *numbers: int) -> None:
        """Send these to the room, whose members nobody has time to wait for."""
        for number in numbers:
            self.hub.flow.budget.left = 0.0
            assert self.hub.deliver(ROOM, envelope(str(number)))


def text(taken: Envelope | None) -> str:
    """What a message says, or a loss notice with its reason and groups."""
    assert taken is not None
    if taken.message is None:
        return taken.payload.decode()
    assert taken.flags & NOTICE and taken.message["type"] == "loss"
    return " ".join(["lost", taken.message["reason"], *taken.message["groups"]])


def envelope(text: str = "x", lifetime: float = EXPIRY, excluded: tuple[str, ...] = ()) -> Envelope:
    """An envelope as the hub's own clock sees it."""
    return Envelope(
        text.encode(), "room", excluded=excluded, expires_at=buffers.__dict__["monotonic"]() + lifetime
    )


# Channels


def test_closed_names_are_bounded() -> None:
    """Of many channels that come and go, the last ones' names are remembered."""
    here = Recorder()
    for number in range(MOST_CLOSED_NAMES + 5):
        here.hub.channels.open(str(number))
        here.hub.channels.close(str(number))
    assert len(here.hub.channels.closed_names) == MOST_CLOSED_NAMES
    assert "4" not in here.hub.channels.closed_names and "5" in here.hub.channels.closed_names
    assert not here.hub.channels


def test_open() -> None:
    """A channel is one buffer, with the capacity that the settings have for its name."""
    here = Recorder(channel_capacity=((re.compile("big"), 7),))
    assert here.hub.channels.open("a") is here.hub.channels.open("a") is not here.hub.channels.open("b")
    assert [here.hub.channels.open(name).capacity for name in ("a", "big.one")] == [2, 7]


def test_put_own() -> None:
    """The session's own send is told at once when the channel is full, whatever `overflow` says."""
    for overflow in ("drop_newest", "drop_oldest", "close"):
        here = Recorder(overflow=overflow)
        here.hub.put_own("a", envelope("1"))
        here.hub.put_own("a", envelope("2"))
        with pytest.raises(ChannelFull):
            here.hub.put_own("a", envelope("3"))
        assert here.texts("a") == ["1", "2"] and not here.hub.counters.dropped
        assert here.hub.counters.delivered == 2


def test_put_own_into_what_has_expired(clock: Clock) -> None:
    """A channel full of expired messages takes a message of the session's own; else the error has the figure."""
    here = Recorder(capacity=2)
    for text in "ab":
        here.hub.put_own("a", envelope(text))
    with pytest.raises(ChannelFull, match="'a' holds 2 messages"):
        here.hub.put_own("a", envelope("c"))
    clock.turn(EXPIRY)
    here.hub.put_own("a", envelope("d"))
    assert here.texts("a") == ["d"] and here.hub.counters.dropped == {"expired": 2}


def test_close_channel() -> None:
    """A closed channel leaves its groups and accepts nothing; what is in it can be received."""
    here = Recorder()
    here.hub.join(ROOM, "a")
    here.hub.put_own("a", envelope("1"))
    here.hub.channels.close("a")
    here.hub.channels.close("a")
    assert here.empty == [ROOM] and not here.hub.groups
    with pytest.raises(ChannelClosed):
        here.hub.put_own("a", envelope("2"))
    with pytest.raises(ChannelClosed):
        here.hub.join(ROOM, "a")
    assert here.hub.deliver_to("a", envelope("3"))
    assert here.hub.counters.dropped == {"closed": 1}
    assert here.texts("a") == ["1"]
    assert here.hub.groups == {}


def test_close_channel_that_was_never_there() -> None:
    """Its name is closed all the same: nobody opens it, joins with it or delivers to it."""
    here = Recorder()
    here.hub.channels.close("a")
    for attempt in (lambda: here.hub.channels.open("a"), lambda: here.hub.join(ROOM, "a")):
        with pytest.raises(ChannelClosed):
            attempt()
    assert here.hub.deliver_to("a", envelope())
    assert here.hub.counters.dropped == {"closed": 1} and not here.hub.channels and not here.hub.groups


def test_a_closed_channel_that_is_empty_is_gone() -> None:
    """Closing a channel in which nothing waits frees it; its name is remembered for a while."""
    here = Recorder()
    here.hub.channels.open("a")
    here.hub.channels.close("a")
    assert not here.hub.channels and set(here.hub.channels.closed_names) == {"a"}


def test_names_of_closed_channels_are_forgotten(clock: Clock) -> None:
    """A closed name is kept for late senders, not for ever, and not before its last message is gone."""
    here = Recorder()
    here.hub.put_own("a", envelope("1", lifetime=10_000))
    here.hub.channels.close("a")
    here.hub.channels.close("b")
    clock.turn(CLOSED_NAMES_KEPT)
    here.hub.sweep()
    assert set(here.hub.channels.closed_names) == {"a", "b"}
    clock.turn(1)
    here.hub.sweep()
    assert set(here.hub.channels.closed_names) == {"a"}
    assert here.texts("a") == ["1"]
    clock.turn(EXPIRY + 1)
    here.hub.sweep()
    assert not here.hub.channels.closed_names and not here.hub.channels


def test_close() -> None:
    """Closing the hub closes every channel with its reason, and counts what still waited."""
    here = Recorder(capacity=1)
    here.hub.join(ROOM, "a")
    here.hub.deliver(ROOM, envelope("1"))
    buffer = here.hub.channels.open("a")
    assert not here.hub.deliver(ROOM, envelope("2"))
    here.hub.close(LayerClosed)
    assert here.hub.counters.dropped == {"closed": 1}
    assert not here.hub.channels and not here.hub.groups
    with pytest.raises(LayerClosed):
        buffer.put_nowait(envelope())
    here.hub.close(LayerClosed)


def test_flush() -> None:
    """Messages and memberships are gone, channels stay and can be used; the topics are told once."""
    here = Recorder()
    here.hub.join(ROOM, "a")
    here.hub.join(b"other", "a")
    here.hub.deliver(ROOM, envelope("1"))
    here.hub.put_own("closed", envelope("2"))
    here.hub.channels.close("closed")
    buffer = here.hub.channels.open("a")
    flushed = 0

    def done() -> None:
        nonlocal flushed
        flushed += 1

    assert sorted(here.hub.flush(done)) == sorted([ROOM, b"other"])
    assert here.hub.flush(done) == [] and not here.empty and flushed == 2
    assert here.hub.counters.dropped == {"flushed": 2}
    assert here.hub.channels == {"a": buffer} and not buffer.groups and buffer.empty()
    here.hub.join(ROOM, "a")
    here.hub.deliver(ROOM, envelope("3"))
    assert here.texts("a") == ["3"]


# Groups


def test_join_and_leave() -> None:
    """leave() says whether the group has lost its last member; twice is once."""
    here = Recorder()
    first = here.hub.join(ROOM, "a")
    assert here.hub.join(ROOM, "a") is first
    here.hub.join(ROOM, "b")
    assert [here.hub.groups.leave(ROOM, name) for name in ("a", "a", "c", "b", "b")] == [
        *(False, False, False),
        *(True, False),
    ]
    assert not here.hub.groups and not here.hub.channels.open("a").groups and not here.empty
    assert not here.hub.groups.leave(b"nobody", "a")


def test_abandon() -> None:
    """A membership that was never confirmed can be taken back, unless another call waits for it."""
    here = Recorder()
    member = here.hub.join(ROOM, "a")
    member.joiners += 1
    assert not here.hub.groups.abandon(ROOM, member) and ROOM in here.hub.groups
    member.joiners -= 1
    assert here.hub.groups.abandon(ROOM, member) and ROOM not in here.hub.groups
    assert not here.hub.groups.abandon(ROOM, member)


def test_abandon_of_a_member() -> None:
    """Who is a member already stays one; a membership that was made anew is another one."""
    here = Recorder()
    member = here.hub.join(ROOM, "a")
    member.is_confirmed = True
    assert not here.hub.groups.abandon(ROOM, member)
    here.hub.groups.leave(ROOM, "a")
    old, new = member, here.hub.join(ROOM, "a")
    old.is_confirmed = False
    assert not here.hub.groups.abandon(ROOM, old)
    assert here.hub.groups[ROOM].members == {"a": new}


def test_membership_lapses(clock: Clock) -> None:
    """After `group_expiry` without a join or a receive, a delivery finds no member any more."""
    here = Recorder()
    here.hub.join(ROOM, "a")
    clock.turn(GROUP_EXPIRY - 1)
    here.hub.deliver(ROOM, envelope("1"))
    clock.turn(1)
    assert here.hub.deliver(ROOM, envelope("2"))
    assert here.empty == [ROOM] and not here.hub.groups
    assert here.hub.channels.open("a").queued == 1


@pytest.mark.parametrize("renewal", ["join", "receive"])
def test_membership_is_renewed(clock: Clock, renewal: str) -> None:
    """Joining again and receiving both count from anew; another member lapses alone."""
    here = Recorder()
    for name in "ab":
        here.hub.join(ROOM, name)
    clock.turn(GROUP_EXPIRY - 1)
    if renewal == "join":
        here.hub.join(ROOM, "a")
    else:
        here.hub.put_own("a", envelope("0"))
        assert here.texts("a") == ["0"]
    clock.turn(1)
    here.hub.sweep()
    assert set(here.hub.groups[ROOM].members) == {"a"}
    clock.turn(GROUP_EXPIRY - 2)
    here.hub.sweep()
    assert not here.empty
    clock.turn(1)
    here.hub.sweep()
    assert here.empty == [ROOM]


# Delivery


def test_deliver_to_nobody() -> None:
    """A topic without members takes every message at once."""
    here = Recorder()
    assert here.hub.deliver(ROOM, envelope()) and here.hub.counters.delivered == 0


def test_members_share_one_envelope() -> None:
    """Each member has the very same envelope: it is stored once."""
    here = Recorder()
    for name in "abc":
        here.hub.join(ROOM, name)
    one = envelope()
    here.hub.deliver(ROOM, one)
    assert all(here.hub.channels.open(name).take() is one for name in "abc")
    assert here.hub.counters.delivered == 3


def test_excluded() -> None:
    """Who is excluded gets nothing, and is not waited for when it is full."""
    here = Recorder(capacity=1)
    for name in "abc":
        here.hub.join(ROOM, name)
    assert here.hub.deliver(ROOM, envelope("1", excluded=("b", "elsewhere")))
    assert [here.texts(name) for name in "abc"] == [["1"], [], ["1"]]
    here.hub.put_own("b", envelope("2"))
    assert here.hub.deliver(ROOM, envelope("3", excluded=("b",)))
    assert not here.hub.counters.dropped and here.hub.counters.delivered == 5


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
    assert ("full" in here.hub.groups[ROOM].members) is (overflow != "close")
    assert not here.empty


def test_overflow_of_the_only_member_closes_the_group() -> None:
    """A channel that closes on overflow takes its group with it, in the middle of a delivery."""
    here = Recorder(capacity=1, overflow="close")
    here.hub.join(ROOM, "a")
    here.flood(1, 2)
    assert here.empty == [ROOM] and not here.hub.groups
    assert here.texts("a") == ["1"]


def test_deliver_to() -> None:
    """A message from elsewhere to one channel: opened if it is not there, waited for if it is full."""
    here = Recorder(capacity=1)
    assert here.hub.deliver_to("a", envelope("1"))
    second = envelope("2")
    assert not here.hub.deliver_to("a", second)
    assert here.hub.deliver_to("b", envelope("1"))
    assert here.texts("a") == ["1"]
    assert here.capacities == 1
    assert here.hub.deliver_to("a", second)
    assert here.texts("a") == ["2"] and not here.hub.counters.dropped


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


# Delivery to many


class Crowd(Recorder):
    """A hub with a large group, on a machine that takes 0.05 ms to put one envelope into one channel."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, clock: Clock, size: int = 1000, **options: Any
    ) -> None:
        super().__init__(**options)
        self.names = [f"member{number}" for number in range(size)]
        for name in self.names:
            self.hub.join(ROOM, name)
        offer = ChannelBuffer.offer
        #: The channel and the text of each envelope that was put, in order.
        self.put: list[tuple[str, str]] = []

        def slow(buffer: ChannelBuffer, one: Envelope) -> int:
            clock.turn(0.00005)
            self.put.append((buffer.channel, one.payload.decode()))
            return offer(buffer, one)

        monkeypatch.setattr(ChannelBuffer, "offer", slow)

    def turns_until_idle(self) -> list[int]:
        """Turn the loop until nothing is unfinished; return how much was put in each turn."""
        counts = []
        while self.slices.is_busy:
            before = len(self.put)
            self.turn()
            counts.append(len(self.put) - before)
        return counts


# A slice of that machine, and what is put between two looks at the clock.
MOST_IN_A_TURN = int(SLICE / 0.00005) + 256


def test_a_delivery_to_many_comes_in_slices(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """One turn of the loop delivers for 3 ms; every member gets the envelope once, in their order."""
    here = Crowd(monkeypatch, clock, 2000)
    assert here.hub.deliver(ROOM, envelope("1"))
    assert 0 < len(here.put) <= MOST_IN_A_TURN and here.slices.is_busy
    counts = here.turns_until_idle()
    assert len(counts) > 4 and max(counts) <= MOST_IN_A_TURN
    assert here.put == [(name, "1") for name in here.names]


def test_the_time_of_a_turn_is_for_all_deliveries_together(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Many envelopes that arrive together share the time of one turn, also if each needs less."""
    here = Crowd(monkeypatch, clock, 300)
    taken = 0
    while not here.slices.is_busy:
        assert here.hub.deliver(ROOM, envelope(str(taken)))
        taken += 1
    assert len(here.put) <= MOST_IN_A_TURN
    here.turns_until_idle()
    assert here.put == [(name, str(number)) for number in range(taken) for name in here.names]


def test_who_comes_and_goes_during_a_delivery(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Who leaves gets nothing more, who joins gets nothing of it, and who leaves and joins is a new member."""
    here = Crowd(monkeypatch, clock)
    assert here.hub.deliver(ROOM, envelope("1"))
    had = len(here.put)
    assert had < 900
    here.hub.groups.leave(ROOM, "member0")
    here.hub.groups.leave(ROOM, "member999")
    here.hub.channels.close("member998")
    here.hub.groups.leave(ROOM, "member997")
    here.hub.join(ROOM, "member997")
    here.hub.join(ROOM, "new")
    here.turns_until_idle()
    assert here.put == [(name, "1") for name in here.names[:997]]
    assert not here.hub.counters.dropped
    assert here.hub.deliver(ROOM, envelope("2"))
    here.turns_until_idle()
    assert [name for name, number in here.put if number == "2"] == [*here.names[1:997], "member997", "new"]


@pytest.mark.parametrize("end", ["flush", "close"])
def test_what_ends_all_groups_ends_a_delivery(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, end: str
) -> None:
    """After flush() or close() nobody gets the rest of an earlier envelope."""
    here = Crowd(monkeypatch, clock)
    here.hub.deliver(ROOM, envelope("1"))
    had = len(here.put)
    if end == "flush":
        here.hub.flush(lambda: None)
        here.hub.join(ROOM, "member999")
    else:
        here.hub.close(LayerClosed)
    here.turns_until_idle()
    assert len(here.put) == had
    if end == "flush":
        assert here.hub.counters.dropped == {"flushed": had}


def test_a_delivery_to_many_that_must_wait(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A full member is waited for before anybody gets the envelope; an excluded one is not."""
    here = Crowd(monkeypatch, clock, capacity=1)
    here.hub.put_own("member500", envelope("0"))
    here.put.clear()
    assert not here.hub.deliver(ROOM, envelope("1")) and not here.put
    assert here.hub.deliver(ROOM, envelope("2", excluded=("member500", "member0")))
    here.turns_until_idle()
    assert len(here.put) == 998
    assert not {"member0", "member500"} & {name for name, _ in here.put}


def test_overflow_during_a_delivery_to_many(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A channel that closes on overflow leaves the group in the middle of a delivery; the others get theirs."""
    here = Crowd(monkeypatch, clock, capacity=1, overflow="close")
    for name in ("member3", "member700"):
        here.hub.put_own(name, envelope("0"))
    here.put.clear()
    here.hub.flow.budget.left = 0.0
    assert here.hub.deliver(ROOM, envelope("1"))
    here.turns_until_idle()
    assert len(here.hub.groups[ROOM].members) == 998
    assert [
        here.hub.channels.open(name).queued for name in here.names if name in here.hub.groups[ROOM].members
    ] == [1] * 998


def test_lapsed_members_of_a_large_group(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Memberships that lapsed are ended before the envelope is delivered."""
    here = Crowd(monkeypatch, clock)
    clock.turn(GROUP_EXPIRY / 2)
    for name in here.names[::2]:
        here.hub.join(ROOM, name)
    clock.turn(GROUP_EXPIRY / 2)
    assert here.hub.deliver(ROOM, envelope("1"))
    here.turns_until_idle()
    assert here.put == [(name, "1") for name in here.names[::2]]
    clock.turn(GROUP_EXPIRY)
    assert here.hub.deliver(ROOM, envelope("2"))
    here.turns_until_idle()
    assert here.empty == [ROOM] and len(here.put) == 500


async def test_who_is_woken_has_a_turn(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """However fast the machine is, so many receivers are woken in a turn and no more: they need time as well."""
    here = Recorder()
    waiting = []
    for number in range(3000):
        here.hub.join(ROOM, str(number))
        waiting.append(asyncio.ensure_future(here.hub.channels.open(str(number)).get()))
    await asyncio.sleep(0)
    assert here.hub.deliver(ROOM, envelope("1"))
    woken = [here.hub.counters.woken]
    while here.slices.is_busy:
        await asyncio.sleep(0)
        assert sum(each.done() for each in waiting) == woken[-1]
        here.turn()
        woken.append(here.hub.counters.woken)
    assert len(woken) > 2 and woken[-1] == 3000
    await every(waiting)


@pytest.mark.parametrize("kind", ["groups", "channels", "losses"])
async def test_who_is_woken_by_many_deliveries_has_a_turn(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, kind: str
) -> None:
    """The bound holds also for envelopes to many small groups, or to single channels, and for losses."""
    here = Recorder(notifies=True)
    waiting = []
    topics = [b"%d" % number for number in range(30)]
    for number in range(3000):
        here.hub.join(topics[number % 30], str(number))
        waiting.append(asyncio.ensure_future(here.hub.channels.open(str(number)).get()))
    await asyncio.sleep(0)
    groups = [(topic, topic.decode()) for topic in topics]
    work: list[Callable[[Envelope], object]]
    if kind == "groups":
        work = [partial(here.hub.deliver, topic) for topic in topics]
    elif kind == "channels":
        work = [partial(here.hub.deliver_to, str(number)) for number in range(3000)]
    else:
        work = [lambda _: here.hub.notify_loss("trimmed", groups, everybody=False)]
    most = woken = 0
    while work or here.slices.is_busy:
        while work and not here.slices.is_busy:
            work.pop(0)(envelope("1"))
        most, woken = max(most, here.hub.counters.woken - woken), here.hub.counters.woken
        await asyncio.sleep(0)
        here.turn()
    most = max(most, here.hub.counters.woken - woken)
    assert here.hub.counters.woken == 3000 and most < 1200
    await every(waiting)


def test_exclude_is_looked_up_once(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A delivery with many exclusions compares no member with each of them."""
    compared = 0

    class Name(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other) is True

        __hash__ = str.__hash__

    here = Recorder()
    for number in range(400):
        here.hub.join(ROOM, str(number))
    assert here.hub.deliver(ROOM, envelope("1", excluded=tuple(Name(number) for number in range(100))))
    assert here.hub.counters.delivered == 300
    assert compared <= 1000


def test_broadcast_to_many(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A broadcast comes in slices, before what comes later; a channel that has gone meanwhile gets nothing."""
    here = Crowd(monkeypatch, clock)
    here.hub.broadcast(envelope("down"))
    here.hub.broadcast(envelope("up"))
    assert len(here.put) <= MOST_IN_A_TURN
    here.hub.channels.close("member999")
    assert max(here.turns_until_idle()) <= MOST_IN_A_TURN
    gone = here.names[:999]
    assert here.put == [(name, kind) for kind in ("down", "up") for name in gone]


def test_broadcast() -> None:
    """Every channel gets it, the ones of no group too; a full one loses it by its setting."""
    here = Recorder(capacity=1)
    for name in "abc":
        here.hub.channels.open(name)
    here.hub.put_own("c", envelope("0"))
    here.hub.channels.close("b")
    here.hub.broadcast(envelope("1"))
    assert [here.texts(name) for name in "abc"] == [["1"], [], ["0"]]
    assert here.hub.counters.dropped == {"overflow": 1}


def test_broadcast_counts_the_closed() -> None:
    """A channel that closed with something in it gets nothing new, and that is counted."""
    here = Recorder()
    here.hub.put_own("a", envelope("0"))
    here.hub.channels.close("a")
    here.hub.broadcast(envelope("1"))
    assert here.texts("a") == ["0"] and here.hub.counters.dropped == {"closed": 1}


def test_count_full(caplog: pytest.LogCaptureFixture) -> None:
    """A normal channel that a group found full is counted and told like a member here."""
    here = Recorder()
    here.hub.overflow.count("jobs")
    assert (
        here.hub.counters.dropped == {"overflow": 1} and "channel jobs is full by capacity (2)" in caplog.text
    )


# Loss notices


def test_overflow_is_notified() -> None:
    """A channel gets one notice of lost messages, in their place, until its reader has caught up."""
    here = Recorder(notifies=True)
    here.hub.join(ROOM, "a")
    for _ in range(2):
        here.flood(1, 2, 3, 4)
        assert here.texts("a") == ["1", "2", "lost overflow room"]
    assert here.hub.counters.dropped == {"overflow": 4} and here.hub.counters.told == {"overflow": 2}


def test_the_oldest_are_dropped_with_a_notice() -> None:
    """The notice of what was dropped is not dropped itself, and takes no place: the newest messages are kept."""
    here = Recorder(notifies=True, overflow="drop_oldest")
    here.hub.join(ROOM, "a")
    here.flood(1, 2, 3, 4, 5)
    assert here.texts("a") == ["lost overflow room", "4", "5"]
    assert here.hub.counters.dropped == {"overflow": 3} and here.hub.counters.told == {"overflow": 1}
    here.flood(6, 7)
    assert here.texts("a") == ["6", "7"]


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_what_is_missed_after_the_notice_was_read(overflow: str) -> None:
    """A reader that has read a notice and loses more before it has caught up gets another one then."""
    here = Recorder(notifies=True, overflow=overflow, capacity=4)
    here.hub.join(ROOM, "a")
    here.flood(*range(9))
    buffer = here.hub.channels.open("a")
    while not text(buffer.take()).startswith("lost"):
        here.flood(9)  # its place is taken again
    here.flood(*range(10, 20))
    assert "lost overflow room" in here.texts("a")
    assert here.hub.counters.told == {"overflow": 2}
    here.flood(20)
    assert here.texts("a") == ["20"]


def test_the_groups_of_what_is_missed_until_it_is_read() -> None:
    """A loss notice names every group that lost something before the reader took it."""
    here = Recorder(notifies=True)
    here.hub.join(ROOM, "a")
    here.flood(1, 2, 3)
    here.hub.deliver_to("a", envelope("direct"))
    lobby = Envelope(b"4", "lobby", expires_at=float("inf"))
    here.hub.join(b"lobby", "a")
    assert here.hub.deliver(b"lobby", lobby)
    assert here.texts("a") == ["1", "2", "lost overflow room lobby"]


def test_a_notice_outlives_what_was_lost(clock: Clock) -> None:
    """It does not expire, keeps no message from expiring and leaves with the channel that nobody reads."""
    here = Recorder(notifies=True, overflow="drop_oldest")
    here.hub.join(ROOM, "a")
    here.flood(1, 2, 3)
    clock.turn(EXPIRY)
    here.flood(4, 5)
    assert here.texts("a") == ["lost expired room", "lost overflow room", "4", "5"]
    here.flood(6, 7, 8)
    for _ in range(4):
        clock.turn(EXPIRY)
        here.hub.sweep()
    assert not here.hub.channels and here.empty == [ROOM]


def test_expiry_is_notified(clock: Clock) -> None:
    """A reader that comes too late gets a notice first, then what is still there."""
    here = Recorder(notifies=True, capacity=5)
    here.hub.join(ROOM, "a")
    here.hub.deliver(ROOM, envelope("1"))
    clock.turn(EXPIRY)
    here.hub.deliver(ROOM, envelope("2"))
    assert here.texts("a") == ["lost expired room", "2"]
    assert here.hub.counters.told == {"expired": 1}


def test_notify_loss() -> None:
    """The members of the groups concerned are notified, each of its groups; or everybody; a closed one is not."""
    here = Recorder(notifies=True, capacity=5)
    for topic, name in ((ROOM, "a"), (b"lobby", "a"), (b"lobby", "b"), (ROOM, "d")):
        here.hub.join(topic, name)
    for name in "cd":
        here.hub.channels.open(name)
    here.hub.put_own("d", envelope("0"))
    assert here.notify_loss("trimmed", {ROOM: "room", b"nobody": "nobody"}, everybody=False) == (2, 2)
    assert here.notify_loss("trimmed", {ROOM: "room"}, everybody=False) == (2, 1)
    here.hub.channels.close("d")
    assert here.notify_loss("server_changed", {ROOM: "room", b"lobby": "lobby"}, everybody=True) == (4, 2)
    assert [here.texts(name) for name in "abcd"] == [
        ["lost trimmed room", "lost server_changed room lobby"],
        ["lost server_changed lobby"],
        ["lost server_changed"],
        ["0", "lost trimmed room"],
    ]
    assert here.hub.counters.told == {"trimmed": 2, "server_changed": 3}


def slow(monkeypatch: pytest.MonkeyPatch, clock: Clock, method: str) -> list[str]:
    """Have a method of the buffers take 0.05 ms; return the list of the channels it was called for."""
    called: list[str] = []
    original = getattr(ChannelBuffer, method)

    def slower(buffer: ChannelBuffer, *arguments: Any, **names: Any) -> Any:
        clock.turn(0.00005)
        called.append(buffer.channel)
        return original(buffer, *arguments, **names)

    monkeypatch.setattr(ChannelBuffer, method, slower)
    return called


def until_idle(here: Recorder, work: Slices, called: list[str]) -> int:
    """Turn the loop until the work is done; return how many channels were served in one turn at most."""
    most = before = len(called)
    while work.is_busy:
        here.turn()
        most = max(most, len(called) - before)
        before = len(called)
    return most


# What is done in a slice of that machine where it is looked at every 64 channels.
SOME_IN_A_TURN = int(SLICE / 0.00005) + 64


def test_flush_of_many_channels_in_slices(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """
    All groups are gone at once, and the channels are emptied in slices before anything else is delivered.

    Who joins meanwhile is a member afterwards, and a channel that was discarded meanwhile is counted once.
    """
    here = Recorder()
    names = [f"member{number}" for number in range(1000)]
    for name in names:
        here.hub.join(ROOM, name)
        here.hub.put_own(name, envelope("old"))
    cleared = slow(monkeypatch, clock, "clear")
    flushed: list[int] = []
    assert here.hub.flush(lambda: flushed.append(len(cleared))) == [ROOM]
    assert 0 < len(cleared) <= SOME_IN_A_TURN and here.slices.is_busy and not here.hub.groups
    here.hub.join(ROOM, "member998")
    here.hub.channels.discard(here.hub.channels["member999"])
    assert until_idle(here, here.slices, cleared) <= SOME_IN_A_TURN
    assert flushed == [1000] and not here.empty
    assert here.hub.counters.dropped == {"flushed": 999, "closed": 1}
    assert here.hub.deliver(ROOM, envelope("new"))
    assert [here.texts(name) for name in ("member0", "member998")] == [[], ["new"]]
    assert here.hub.groups.leave(ROOM, "member998")


def test_many_are_notified_in_slices(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """All concerned are notified before anything else is delivered, but not who has left or joined meanwhile."""
    here = Recorder(notifies=True)
    names = [f"member{number}" for number in range(1000)]
    for name in names:
        here.hub.join(ROOM, name)
    notified = slow(monkeypatch, clock, "notify_loss")
    here.hub.notify_loss("trimmed", [(ROOM, "room")], everybody=True)
    assert 0 < len(notified) <= SOME_IN_A_TURN and here.slices.is_busy and not here.notified
    here.hub.channels.close("member999")
    here.hub.join(ROOM, "new")
    assert until_idle(here, here.slices, notified) <= SOME_IN_A_TURN
    assert notified == names[:999] and here.notified == [(1000, 1)]
    assert here.hub.deliver(ROOM, envelope("1"))
    assert here.texts("new") == ["1"] and here.texts("member998") == ["lost trimmed room", "1"]


def test_who_joins_while_the_members_are_collected(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A notice that waits for its turn is for the members of the moment of the loss."""
    here = Recorder(notifies=True)
    for name in "abc":
        here.hub.join(ROOM, name)
    clock.turn(1)
    here.slices.run(iter([True]))  # something else is unfinished
    here.hub.notify_loss("trimmed", [(ROOM, "room")], everybody=False)
    clock.turn(1)
    here.hub.join(ROOM, "new")
    here.hub.join(ROOM, "a")  # again
    for name in "bc":
        here.hub.groups.leave(ROOM, name)
    here.hub.join(ROOM, "c")
    while here.slices.is_busy:
        here.turn()
    assert here.notified == [(1, 1)]
    assert [here.texts(name) for name in ("a", "b", "c", "new")] == [["lost trimmed room"], [], [], []]


def test_close_of_many(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Everything is forgotten at once, and closed in slices, in the order in which it was opened."""
    here = Recorder()
    names = [f"member{number}" for number in range(1000)]
    for name in names:
        here.hub.join(ROOM, name)
    here.hub.deliver(ROOM, envelope("1"))
    buffers = [here.hub.channels.open(name) for name in names]
    closed = slow(monkeypatch, clock, "close")
    here.hub.close(LayerClosed)
    assert not here.hub.channels and not here.hub.groups
    assert 0 < len(closed) <= SOME_IN_A_TURN
    assert until_idle(here, here.slices, closed) <= SOME_IN_A_TURN
    assert closed == names and all(buffer.closed is LayerClosed for buffer in buffers)
    assert here.hub.counters.dropped == {"closed": 1000} and not here.empty


def test_sweep_of_many(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A sweep goes in slices and holds up no delivery; what is used, joined or closed meanwhile is left alone."""
    here = Recorder()
    names = [f"channel{number}" for number in range(1000)]
    for name in names:
        here.hub.channels.open(name)
    clock.turn(EXPIRY + 1)
    swept = slow(monkeypatch, clock, "drop_expired")
    here.hub.sweep()
    assert 0 < len(swept) <= SOME_IN_A_TURN and here.chores.is_busy and not here.slices.is_busy
    here.hub.put_own("channel999", envelope("1"))
    here.hub.join(ROOM, "channel998")
    here.hub.channels.close("channel997")
    here.hub.sweep()  # the other one is not finished
    assert until_idle(here, here.chores, swept) <= SOME_IN_A_TURN
    assert swept == [name for name in names if name != "channel997"]
    assert set(here.hub.channels) == {"channel998", "channel999"}


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


# Sweeping


def test_sweep_frees_what_nobody_uses(clock: Clock) -> None:
    """An empty buffer in no group goes after `expiry`; one that was used since stays."""
    here = Recorder()
    for name in ("unused", "used", "member"):
        here.hub.channels.open(name)
    here.hub.join(ROOM, "member")
    clock.turn(EXPIRY)
    here.hub.put_own("used", envelope("1"))
    here.texts("used")
    here.hub.sweep()
    assert set(here.hub.channels) == {"unused", "used", "member"}
    clock.turn(1)
    here.hub.sweep()
    assert set(here.hub.channels) == {"used", "member"}


async def test_sweep_keeps_what_somebody_waits_for(clock: Clock) -> None:
    """A buffer with a receiver, however long it waits, is not freed under it."""
    here = Recorder()
    waiting = await started(here.hub.channels.open("a").get())
    clock.turn(10 * EXPIRY)
    here.hub.sweep()
    here.hub.put_own("a", envelope("1"))
    [got] = await every([waiting])
    assert got.payload == b"1"


async def test_sweep_keeps_what_a_sender_waits_for(clock: Clock) -> None:
    """A buffer with a sender who waits for a place is not freed under it, nor before it has put."""
    here = Recorder(capacity=1)
    buffer = here.hub.channels.open("a")
    here.hub.put_own("a", envelope("1"))
    waiting = await started(buffer.put_when_free(envelope("2"), EXPIRY))
    clock.turn(10 * EXPIRY)
    here.hub.sweep()
    here.hub.sweep()
    await every([waiting])
    assert here.texts("a") == ["2"] and here.hub.channels["a"] is buffer


def test_sweep_ends_what_nobody_reads(clock: Clock) -> None:
    """A member that lets messages expire loses its groups when it is late by twice the expiry, and its buffer."""
    here = Recorder()
    here.hub.join(ROOM, "a")
    here.hub.deliver(ROOM, envelope("1"))
    clock.turn(2 * EXPIRY)
    here.hub.sweep()
    assert here.hub.counters.dropped == {"expired": 1} and ROOM in here.hub.groups
    clock.turn(1)
    here.hub.sweep()
    assert here.empty == [ROOM] and not here.hub.channels and not here.hub.groups


def test_sweep_leaves_a_quiet_member_alone(clock: Clock) -> None:
    """A member that nobody writes to, or that received all it got, stays until its membership lapses."""
    here = Recorder()
    for name in ("quiet", "reading"):
        here.hub.join(ROOM, name)
    here.hub.deliver_to("reading", envelope("1"))
    clock.turn(EXPIRY - 1)
    assert here.texts("reading") == ["1"]
    clock.turn(5 * EXPIRY)
    here.hub.sweep()
    assert set(here.hub.groups[ROOM].members) == {"quiet", "reading"}


# Receivers of a whole prefix


def test_take_any(clock: Clock) -> None:
    """The oldest message of all channels that begin so; expired ones are passed over."""
    here = Recorder()
    for name, text in (("x!1", "first"), ("x!2", "second"), ("y!1", "other"), ("x!1", "third")):
        here.hub.put_own(name, envelope(text))
        clock.turn(1)
    taken = []
    while (one := here.hub.channels.take_any("x!")) is not None:
        taken.append(one.payload.decode())
    assert taken == ["first", "second", "third"]
    here.hub.put_own("x!1", envelope("late"))
    clock.turn(EXPIRY)
    here.hub.put_own("x!2", envelope("in time"))
    one = here.hub.channels.take_any("x!")
    assert one is not None and one.payload == b"in time"
    assert here.hub.channels.take_any("x!") is None and here.hub.channels.take_any("z!") is None


async def test_watch() -> None:
    """A watcher is woken by every kind of delivery and by closing; a cancelled one is forgotten."""
    here = Recorder(capacity=1)
    here.hub.join(ROOM, "a")
    for happens in (
        lambda: here.hub.deliver(ROOM, envelope()),
        lambda: here.hub.deliver_to("b", envelope()),
        lambda: here.hub.put_own("c", envelope()),
        lambda: here.hub.channels.close("a"),
        lambda: here.hub.close(LayerClosed),
    ):
        watcher, cancelled = here.hub.watchers.watch(), here.hub.watchers.watch()
        cancelled.cancel()
        assert not watcher.done()
        happens()
        await every([watcher])
    here.hub.watchers.watch().cancel()
    await eventually(lambda: not here.hub.watchers.waiting, "forgetting it")


# Against a model


@dataclass
class Channel:
    """What a channel is to the model: its messages with their ends, its groups with the times of joining."""

    used: float
    waiting: list[tuple[int, float]] = field(default_factory=list)
    groups: dict[str, float] = field(default_factory=dict)
    received: float = 0.0
    lost: bool = False


CHANNELS = st.sampled_from(["a", "c!1", "c!2"])
GROUPS = st.sampled_from(["room", "lobby"])
CAPACITY = 2


class HubMachine(RuleBasedStateMachine):
    """Everything that can happen to a hub; it and the model agree on every message, place and member."""

    @initialize(overflow=st.sampled_from(["drop_newest", "drop_oldest", "close"]))
    def begin(self, overflow: str) -> None:
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.clock.put_into(self.patch, ["local", "slices"])
        # Thousands of examples would each be worth a line.
        self.patch.setattr("channels_asyncq.events.LOSS.disabled", True)
        self.overflow = overflow
        self.subscribed: set[bytes] = set()
        options = Options(
            hosts=(Host("memory"),),
            overflow=overflow,  # type: ignore[arg-type]
            expiry=EXPIRY,
            group_expiry=GROUP_EXPIRY,
            capacity=CAPACITY,
        )
        slices, chores = (Slices(cast(asyncio.AbstractEventLoop, self)) for _ in range(2))
        self.hub = Hub(options, self, slices, chores)
        self.model: dict[str, Channel] = {}
        self.closed: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.number = 0

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()

    # What the hub calls.

    def call_soon(self, callback: Callable[[], object], *, context: Context | None = None) -> None:
        """The loop never turns."""

    def on_group_empty(self, topic: bytes) -> None:
        self.subscribed.remove(topic)

    def on_capacity(self) -> None: ...

    def on_loss_notified(self, reason: str, channels: int, groups: int) -> None: ...

    # What the model does.

    def opened(self, name: str) -> Channel | None:
        if name not in self.model and name in self.closed:
            return None
        return self.model.setdefault(name, Channel(self.clock.now, received=self.clock.now))

    def purge(self, channel: Channel) -> None:
        live = [entry for entry in channel.waiting if entry[1] > self.clock.now]
        if len(live) < len(channel.waiting):
            self.counts["expired"] += len(channel.waiting) - len(live)
            channel.waiting, channel.lost = live, True

    def put(self, name: str) -> None:
        channel = self.model[name]
        if name in self.closed:
            self.counts["closed"] += 1
            return
        if len(channel.waiting) >= CAPACITY:
            self.purge(channel)
        if len(channel.waiting) >= CAPACITY:
            self.counts["overflow"] += 1
            if self.overflow == "close":
                self.closing(name)
            if self.overflow != "drop_oldest":
                return
            del channel.waiting[0]
        channel.waiting.append((self.number, self.clock.now + EXPIRY))
        self.counts["delivered"] += 1

    def closing(self, name: str) -> None:
        self.closed.setdefault(name, self.clock.now)
        if name in self.model:
            self.model[name].groups.clear()
            if not self.model[name].waiting:
                del self.model[name]

    def lapse(self, group: str) -> None:
        for channel in self.model.values():
            joined = channel.groups.get(group)
            if joined is not None and max(joined, channel.received) + GROUP_EXPIRY <= self.clock.now:
                del channel.groups[group]

    def next_envelope(self, excluded: tuple[str, ...] = ()) -> Envelope:
        self.number += 1
        return envelope(str(self.number), excluded=excluded)

    def insist(self, is_full: list[str], offer: Any) -> None:
        """Offer until it is taken; it may have to wait only for a channel that is full."""
        before = {name: buffer.queued for name, buffer in self.hub.channels.items()}
        for _ in range(50):
            if offer():
                return
            assert any(len(self.model[name].waiting) >= CAPACITY for name in is_full if name in self.model)
            assert before == {name: buffer.queued for name, buffer in self.hub.channels.items()} or any(
                entry[1] <= self.clock.now for one in self.model.values() for entry in one.waiting
            )
            self.hub.flow.end_wait(10.0)
        raise AssertionError("the hub waits for ever")

    # What happens.

    @rule(name=CHANNELS)
    def open(self, name: str) -> None:
        if self.opened(name) is None:
            with pytest.raises(ChannelClosed):
                self.hub.channels.open(name)
        else:
            self.hub.channels.open(name)

    @rule(name=CHANNELS, group=GROUPS)
    def join(self, name: str, group: str) -> None:
        channel = self.opened(name)
        if name in self.closed:
            with pytest.raises(ChannelClosed):
                self.hub.join(group.encode(), name)
            return
        assert channel is not None
        channel.groups[group] = self.clock.now
        self.hub.join(group.encode(), name)
        self.subscribed.add(group.encode())

    @rule(name=CHANNELS, group=GROUPS)
    def leave(self, name: str, group: str) -> None:
        was_in = name in self.model and self.model[name].groups.pop(group, None) is not None
        is_empty = not any(group in channel.groups for channel in self.model.values())
        was_last = self.hub.groups.leave(group.encode(), name)
        assert was_last is (was_in and is_empty)
        if was_last:
            self.subscribed.remove(group.encode())

    @rule(group=GROUPS, excluded=st.sets(CHANNELS, max_size=2))
    def deliver(self, group: str, excluded: set[str]) -> None:
        self.lapse(group)
        one = self.next_envelope(tuple(excluded))
        names = [name for name, channel in self.model.items() if group in channel.groups]
        names = [name for name in names if name not in excluded]
        self.insist(names, lambda: self.hub.deliver(group.encode(), one))
        for name in names:
            self.put(name)

    @rule(group=GROUPS)
    def burst(self, group: str) -> None:
        for _ in range(CAPACITY + 1):
            self.deliver(group, set())

    @rule(group=GROUPS)
    def everybody_joins(self, group: str) -> None:
        for name in ("a", "c!1", "c!2"):
            self.join(name, group)

    @rule(name=CHANNELS)
    def deliver_to(self, name: str) -> None:
        one = self.next_envelope()
        self.insist([name], lambda: self.hub.deliver_to(name, one))
        if self.opened(name) is None:
            self.counts["closed"] += 1
        else:
            self.put(name)

    @rule(name=CHANNELS)
    def put_own(self, name: str) -> None:
        one, channel = self.next_envelope(), self.opened(name)
        if name in self.closed or channel is None:
            with pytest.raises(ChannelClosed):
                self.hub.put_own(name, one)
            return
        if len(channel.waiting) >= CAPACITY:
            self.purge(channel)
        if len(channel.waiting) >= CAPACITY:
            with pytest.raises(ChannelFull):
                self.hub.put_own(name, one)
        else:
            self.hub.put_own(name, one)
            self.put(name)

    @rule()
    def broadcast(self) -> None:
        self.hub.broadcast(self.next_envelope())
        for name in list(self.model):
            self.put(name)

    @rule(name=CHANNELS)
    def take(self, name: str) -> None:
        buffer = self.hub.channels.get(name)
        assert (buffer is None) is (name not in self.model)
        if buffer is None:
            return
        taken, channel = buffer.take(), self.model[name]
        self.purge(channel)
        assert (taken is None) is (not channel.waiting)
        if taken is not None:
            assert int(taken.payload) == channel.waiting.pop(0)[0]
            channel.used = channel.received = self.clock.now
            channel.lost = False
            self.counts["taken"] += 1

    @rule()
    def take_any(self) -> None:
        names = [name for name in self.model if name.startswith("c!")]
        live = {name: [one for one in self.model[name].waiting if one[1] > self.clock.now] for name in names}
        taken = self.hub.channels.take_any("c!")
        assert (taken is None) is (not any(live.values()))
        for name in names:
            # It need not look into every channel; where it did, what had expired is dropped.
            oldest = self.hub.channels[name].oldest
            if oldest is None or oldest.expires_at > self.clock.now:
                self.purge(self.model[name])
        if taken is None:
            return
        number = int(taken.payload)
        [channel] = [
            self.model[name]
            for name in names
            if live[name][:1] == [(number, taken.expires_at)]
            and self.hub.channels[name].queued < len(self.model[name].waiting)
        ]
        channel.waiting.pop(0)
        channel.used = channel.received = self.clock.now
        channel.lost = False
        self.counts["taken"] += 1

    @rule(name=CHANNELS)
    def close_channel(self, name: str) -> None:
        self.closing(name)
        self.hub.channels.close(name)

    @rule()
    def flush(self) -> None:
        for name, channel in list(self.model.items()):
            self.counts["flushed"] += len(channel.waiting)
            channel.waiting.clear()
            channel.groups.clear()
            if name in self.closed:
                del self.model[name]
        self.closed.clear()
        topics = self.hub.flush(lambda: None)
        assert set(topics) == self.subscribed and len(topics) == len(self.subscribed)
        self.subscribed.clear()

    @rule()
    def sweep(self) -> None:
        now = self.clock.now
        for group in ("room", "lobby"):
            self.lapse(group)
        for name, channel in list(self.model.items()):
            self.purge(channel)
            if channel.lost and now - channel.used > 2 * EXPIRY:
                channel.groups.clear()
            if now - channel.used > EXPIRY and not channel.groups and not channel.waiting:
                del self.model[name]
        for name, since in list(self.closed.items()):
            if now - since > CLOSED_NAMES_KEPT and name not in self.model:
                del self.closed[name]
        self.hub.sweep()

    @rule(seconds=st.sampled_from([1.0, EXPIRY / 2, EXPIRY, GROUP_EXPIRY / 2]))
    def time_passes(self, seconds: float) -> None:
        self.clock.turn(seconds)

    # What always holds.

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def agrees(self) -> None:
        for name, buffer in self.hub.channels.items():
            assert [int(one.payload) for one in buffer._envelopes] == [
                number for number, _ in self.model[name].waiting
            ]
            assert buffer.queued <= CAPACITY
            assert (buffer.closed is not None) is (name in self.closed)
            assert buffer.groups == {group.encode() for group in self.model[name].groups}
        assert set(self.hub.channels) == set(self.model)
        assert set(self.hub.channels.closed_names) == set(self.closed)

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def groups_are_what_the_owner_was_told(self) -> None:
        members = {topic: set(group.members) for topic, group in self.hub.groups.items()}
        expected: dict[bytes, set[str]] = {}
        for name, channel in self.model.items():
            for group in channel.groups:
                expected.setdefault(group.encode(), set()).add(name)
        assert members == expected and set(members) == self.subscribed

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def nothing_is_lost_without_being_counted(self) -> None:
        counters = self.hub.counters
        reasons = ("expired", "overflow", "closed", "flushed")
        assert {reason: counters.dropped[reason] for reason in reasons} == {
            reason: self.counts[reason] for reason in reasons
        }
        assert counters.delivered == self.counts["delivered"]
        waiting = sum(buffer.queued for buffer in self.hub.channels.values())
        gone = self.counts["taken"] + self.counts["expired"] + self.counts["flushed"]
        replaced = self.counts["overflow"] if self.overflow == "drop_oldest" else 0
        assert counters.delivered == waiting + gone + replaced

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def only_what_is_here_and_full_is_waited_for(self) -> None:
        open_ones = {buffer for buffer in self.hub.channels.values() if buffer.closed is None}
        full = {buffer for buffer in open_ones if buffer.full()}
        assert {buffer for buffer in open_ones if buffer.is_reported_full} == full
        for topic, members in self.hub.flow.full_members.items():
            assert members
            assert members <= full & {member.buffer for member in self.hub.groups[topic].members.values()}
        assert self.hub.flow._fresh | self.hub.flow._given_up <= full
        assert self.hub.flow._awaited <= full | set(self.hub.flow.full_members)


TestHubMachine = HubMachine.TestCase
TestHubMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
