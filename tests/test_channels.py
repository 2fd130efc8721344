"""The channels of one session: opened, closed, swept, read by prefix."""

from __future__ import annotations

import re

import pytest

from channels_asyncq.exceptions import ChannelClosed, LayerClosed
from channels_asyncq.local.channels import CLOSED_NAMES_KEPT, MOST_CLOSED_NAMES
from tests.clock import Clock
from tests.contract import eventually, every, started
from tests.hubs import EXPIRY, ROOM, SOME_IN_A_TURN, Recorder, envelope, slow, until_idle


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["local", "slices"])
    return clock


def test_open() -> None:
    """A channel is one buffer, with the capacity that the settings have for its name."""
    here = Recorder(channel_capacity=((re.compile("big"), 7),))
    assert here.hub.channels.open("a") is here.hub.channels.open("a") is not here.hub.channels.open("b")
    assert [here.hub.channels.open(name).capacity for name in ("a", "big.one")] == [2, 7]


def test_close_channel() -> None:
    """A closed channel leaves its groups and accepts nothing; what is in it can be received."""
    here = Recorder()
    here.hub.join(ROOM, "a")
    here.hub.put_own("a", envelope("1"))
    here.hub.channels.close("a")
    here.hub.channels.close("a")
    assert here.empty == [ROOM] and not here.hub.groups.by_topic
    with pytest.raises(ChannelClosed):
        here.hub.put_own("a", envelope("2"))
    with pytest.raises(ChannelClosed):
        here.hub.join(ROOM, "a")
    assert here.hub.deliver_to("a", envelope("3"))
    assert here.hub.counters.dropped == {"closed": 1}
    assert here.texts("a") == ["1"]
    assert here.hub.groups.by_topic == {}


def test_close_channel_that_was_never_there() -> None:
    """Its name is closed all the same: nobody opens it, joins with it or delivers to it."""
    here = Recorder()
    here.hub.channels.close("a")
    for attempt in (lambda: here.hub.channels.open("a"), lambda: here.hub.join(ROOM, "a")):
        with pytest.raises(ChannelClosed):
            attempt()
    assert here.hub.deliver_to("a", envelope())
    assert (
        here.hub.counters.dropped == {"closed": 1}
        and not here.hub.channels.buffers
        and not here.hub.groups.by_topic
    )


def test_a_closed_channel_that_is_empty_is_gone() -> None:
    """Closing a channel in which nothing waits frees it; its name is remembered for a while."""
    here = Recorder()
    here.hub.channels.open("a")
    here.hub.channels.close("a")
    assert not here.hub.channels.buffers and set(here.hub.channels.closed_names) == {"a"}


def test_closed_names_are_bounded() -> None:
    """Of many channels that come and go, the last ones' names are remembered."""
    here = Recorder()
    for number in range(MOST_CLOSED_NAMES + 5):
        here.hub.channels.open(str(number))
        here.hub.channels.close(str(number))
    assert len(here.hub.channels.closed_names) == MOST_CLOSED_NAMES
    assert "4" not in here.hub.channels.closed_names and "5" in here.hub.channels.closed_names
    assert not here.hub.channels.buffers


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
    assert not here.hub.channels.closed_names and not here.hub.channels.buffers


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
    assert set(here.hub.channels.buffers) == {"unused", "used", "member"}
    clock.turn(1)
    here.hub.sweep()
    assert set(here.hub.channels.buffers) == {"used", "member"}


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
    assert here.texts("a") == ["2"] and here.hub.channels.buffers["a"] is buffer


def test_sweep_ends_what_nobody_reads(clock: Clock) -> None:
    """A member that lets messages expire loses its groups when it is late by twice the expiry, and its buffer."""
    here = Recorder()
    here.hub.join(ROOM, "a")
    here.hub.deliver(ROOM, envelope("1"))
    clock.turn(2 * EXPIRY)
    here.hub.sweep()
    assert here.hub.counters.dropped == {"expired": 1} and ROOM in here.hub.groups.by_topic
    clock.turn(1)
    here.hub.sweep()
    assert here.empty == [ROOM] and not here.hub.channels.buffers and not here.hub.groups.by_topic


def test_sweep_keeps_an_open_channel_in_its_groups(clock: Clock) -> None:
    """Its reader comes back to it, as a consumer does when its client reads again."""
    here = Recorder()
    here.hub.join(ROOM, "a")
    here.hub.channels.open("a").is_kept = True
    here.hub.deliver(ROOM, envelope("1"))
    for _ in range(2):
        clock.turn(3 * EXPIRY)
        here.hub.sweep()
    assert here.hub.counters.dropped == {"expired": 1}
    here.hub.deliver(ROOM, envelope("2"))
    assert here.texts("a") == ["2"]


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
    assert set(here.hub.groups.by_topic[ROOM].members) == {"quiet", "reading"}


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
    assert set(here.hub.channels.buffers) == {"channel998", "channel999"}


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
