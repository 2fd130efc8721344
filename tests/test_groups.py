"""Members of groups: joining, leaving, lapsing."""

from __future__ import annotations

import pytest

from tests.clock import Clock
from tests.hubs import GROUP_EXPIRY, ROOM, Recorder, envelope


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["local", "slices"])
    return clock


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
    assert not here.hub.groups.by_topic and not here.hub.channels.open("a").groups and not here.empty
    assert not here.hub.groups.leave(b"nobody", "a")


def test_abandon() -> None:
    """A membership that was never confirmed can be taken back, unless another call waits for it."""
    here = Recorder()
    member = here.hub.join(ROOM, "a")
    member.joiners += 1
    assert not here.hub.groups.abandon(ROOM, member) and ROOM in here.hub.groups.by_topic
    member.joiners -= 1
    assert here.hub.groups.abandon(ROOM, member) and ROOM not in here.hub.groups.by_topic
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
    assert here.hub.groups.by_topic[ROOM].members == {"a": new}


def test_membership_lapses(clock: Clock) -> None:
    """After `group_expiry` without a join or a receive, a delivery finds no member any more."""
    here = Recorder()
    here.hub.join(ROOM, "a")
    clock.turn(GROUP_EXPIRY - 1)
    here.hub.deliver(ROOM, envelope("1"))
    clock.turn(1)
    assert here.hub.deliver(ROOM, envelope("2"))
    assert here.empty == [ROOM] and not here.hub.groups.by_topic
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
    assert set(here.hub.groups.by_topic[ROOM].members) == {"a"}
    clock.turn(GROUP_EXPIRY - 2)
    here.hub.sweep()
    assert not here.empty
    clock.turn(1)
    here.hub.sweep()
    assert here.empty == [ROOM]


def test_membership_of_an_open_channel(clock: Clock) -> None:
    """It has a reader until it is closed: it does not lapse, however quiet its group is; others in it do."""
    here = Recorder()
    for name in ("open", "other"):
        here.hub.join(ROOM, name)
    here.hub.channels.open("open").is_kept = True
    for _ in range(3):
        clock.turn(GROUP_EXPIRY)
        here.hub.sweep()
        assert set(here.hub.groups.by_topic[ROOM].members) == {"open"}
    here.hub.deliver(ROOM, envelope("1"))
    assert here.texts("open") == ["1"]
    here.hub.channels.discard(here.hub.channels.open("open"))
    assert here.empty == [ROOM]
