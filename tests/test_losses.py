"""Loss notices: which channels get them, when, and what they name."""

from __future__ import annotations

import pytest

from channels_asyncq.local.counters import Counters
from channels_asyncq.local.losses import Losses
from channels_asyncq.messages.envelopes import Envelope
from tests.clock import Clock
from tests.hubs import EXPIRY, ROOM, SOME_IN_A_TURN, Recorder, envelope, slow, text, until_idle


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["local", "slices"])
    return clock


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
    assert not here.hub.channels.buffers and here.empty == [ROOM]


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


# The states of a loss


def test_a_silent_loss() -> None:
    """Without `on_loss` a loss is counted once, and gives no notice, whatever is missed later."""
    counters = Counters()
    losses = Losses(None, counters)
    assert [losses.note("overflow", ["room"]) for _ in range(2)] == [None, None]
    assert counters.told == {"overflow": 1} and not losses.waiting
    assert losses.end_read_ones() == [] and not losses


def test_a_loss_from_notice_to_notice() -> None:
    """A notice names what was missed before it was read; the next notice names what was missed after that."""
    losses = Losses("loss", Counters())
    notice = losses.note("overflow", ["room", "other!1", ""])
    assert notice is not None and losses.waiting == 1
    assert losses.note("overflow", ["lobby", "room"]) is None
    assert losses.end_read_ones() == [] and losses.waiting == 1
    losses.read(notice)
    assert notice.message == {"type": "loss", "reason": "overflow", "groups": ["room", "lobby"]}
    assert not losses.waiting
    assert losses.note("overflow", ["hall"]) is None
    assert losses.end_read_ones() == [("overflow", ["hall"])] and not losses


def test_a_loss_that_was_read() -> None:
    """If nothing was missed after the notice was read, there is no other one. Another reason is another loss."""
    losses = Losses("loss", Counters())
    first, second = losses.note("overflow", ["room"]), losses.note("expired", ["room"])
    assert first is not None and second is not None and losses.waiting == 2
    losses.read(first)
    assert losses.end_read_ones() == [] and set(losses) == {"expired"}
