"""What arrives for one event loop, and which of its channels get it; the work that goes in slices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from channels_asyncq.exceptions import LayerClosed
from channels_asyncq.local.buffers import ChannelBuffer
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.slices import SLICE
from tests.clock import Clock
from tests.contract import every
from tests.hubs import EXPIRY, GROUP_EXPIRY, ROOM, SOME_IN_A_TURN, Recorder, envelope, slow, until_idle


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["local", "slices"])
    return clock


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


def test_close() -> None:
    """Closing the hub closes every channel with its reason, and counts what still waited."""
    here = Recorder(capacity=1)
    here.hub.join(ROOM, "a")
    here.hub.deliver(ROOM, envelope("1"))
    buffer = here.hub.channels.open("a")
    assert not here.hub.deliver(ROOM, envelope("2"))
    here.hub.close(LayerClosed)
    assert here.hub.counters.dropped == {"closed": 1}
    assert not here.hub.channels.buffers and not here.hub.groups.by_topic
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
    assert here.hub.channels.buffers == {"a": buffer} and not buffer.groups and buffer.empty()
    here.hub.join(ROOM, "a")
    here.hub.deliver(ROOM, envelope("3"))
    assert here.texts("a") == ["3"]


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


# A slice of that machine, and what is put between two checks of the clock.
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
    assert len(here.hub.groups.by_topic[ROOM].members) == 998
    assert [
        here.hub.channels.open(name).queued
        for name in here.names
        if name in here.hub.groups.by_topic[ROOM].members
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


# Everything at once


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
    assert 0 < len(cleared) <= SOME_IN_A_TURN and here.slices.is_busy and not here.hub.groups.by_topic
    here.hub.join(ROOM, "member998")
    here.hub.channels.discard(here.hub.channels.buffers["member999"])
    assert until_idle(here, here.slices, cleared) <= SOME_IN_A_TURN
    assert flushed == [1000] and not here.empty
    assert here.hub.counters.dropped == {"flushed": 999, "closed": 1}
    assert here.hub.deliver(ROOM, envelope("new"))
    assert [here.texts(name) for name in ("member0", "member998")] == [[], ["new"]]
    assert here.hub.groups.leave(ROOM, "member998")


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
    assert not here.hub.channels.buffers and not here.hub.groups.by_topic
    assert 0 < len(closed) <= SOME_IN_A_TURN
    assert until_idle(here, here.slices, closed) <= SOME_IN_A_TURN
    assert closed == names and all(buffer.closed is LayerClosed for buffer in buffers)
    assert here.hub.counters.dropped == {"closed": 1000} and not here.empty
