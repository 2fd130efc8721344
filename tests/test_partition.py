"""Partition: what it does with a push in each state, and what goes with it when it moves."""

from __future__ import annotations

import pytest

from channels_asyncq.bus.redis.partition import Partition, Reading
from channels_asyncq.bus.redis.subscriptions import Subscription
from channels_asyncq.messages.envelopes import Envelope
from tests.partitions import Home, Recorder, as_node, shared_for

A, B = b"a" * 8, b"b" * 8


class World:
    """A partition with one topic at one of two homes."""

    def __init__(self) -> None:
        self.receiver = Recorder()
        _, self.shared = shared_for(self.receiver)
        self.home, self.other = Home(), Home()
        self.partition = self.home.partition(3, self.shared)

    @property
    def entry(self) -> Subscription:
        return self.partition.subscriptions.want(b"room", is_logged=True)

    def arrives(self, *numbers: int, session_id: bytes = A, is_logged: bool = True) -> bool:
        """A push with envelopes of these numbers."""
        envelopes = [Envelope(b"x", "g", session_id, seq) for seq in reversed(numbers)]
        return self.partition.deliver(self.entry, envelopes, is_logged=is_logged)

    @property
    def arrived(self) -> list[int]:
        return [seq for _, seq in self.receiver.delivered]


@pytest.fixture
async def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("reading", "position", "discards"),
    [
        (Reading.AWAY, None, False),
        (Reading.AWAY, 7, True),
        (Reading.SUBSCRIBING, None, False),
        (Reading.SUBSCRIBING, 7, True),
        (Reading.CATCHING_UP, 7, True),
        (Reading.LIVE, None, False),
        (Reading.LIVE, 7, False),
    ],
)
def test_logged_pushes(world: World, reading: Reading, position: int | None, discards: bool) -> None:
    """They are discarded while they will be read from the log; without a position nothing will be."""
    partition = world.partition
    partition.position = position
    partition.enter(reading)
    assert (partition.reading, partition.discards) == (reading, discards)
    assert partition.is_live is (reading is Reading.LIVE)


async def test_who_waits_for_it_to_be_live(world: World) -> None:
    """Only LIVE ends the waiting for a topic that is confirmed, and a topic that is not waits on."""
    loop = world.shared.loop
    confirmed, unconfirmed = world.entry, world.partition.subscriptions.want(b"hall", is_logged=True)
    confirmed.is_confirmed = True
    for entry in (confirmed, unconfirmed):
        entry.waiters.append(loop.create_future())
    [waiter], [patient] = confirmed.waiters, unconfirmed.waiters
    for reading in (Reading.SUBSCRIBING, Reading.CATCHING_UP):
        world.partition.enter(reading)
        assert not waiter.done()
    world.partition.enter(Reading.LIVE)
    assert waiter.done() and not patient.done()


class TestDelivering:
    """Envelopes that arrive together."""

    def test_repeats(self, world: World) -> None:
        """Each number once and none below the highest, of each session and stream."""
        assert world.arrives(1, 2) and world.arrives(1, 2, 3) and world.arrives(2)
        assert world.arrived == [1, 2, 3]
        assert world.arrives(2, session_id=B) and world.arrives(3, is_logged=False)
        assert world.arrived == [1, 2, 3, 2, 3]

    def test_from_outside(self, world: World) -> None:
        """What has no number is never a repeat."""
        assert world.arrives(0) and world.arrives(0)
        assert world.arrived == [0, 0]

    def test_held_in_the_middle(self, world: World) -> None:
        """The rest is offered again, and the one that was not taken is not seen."""
        world.receiver.places = 2
        envelopes = [Envelope(b"x", "g", A, seq) for seq in (4, 3, 2, 1)]
        assert not world.partition.deliver(world.entry, envelopes, is_logged=True)
        assert [envelope.seq for envelope in envelopes] == [4, 3]
        assert not world.partition.has_seen(Envelope(b"", "g", A, 3), is_logged=True)
        world.receiver.is_full, world.receiver.places = False, None
        assert world.partition.deliver(world.entry, envelopes, is_logged=True)
        assert world.arrived == [1, 2, 3, 4] and not envelopes

    def test_seen(self, world: World) -> None:
        """What is at or below the highest of its stream was delivered."""
        world.arrives(5)
        seen = [
            world.partition.has_seen(Envelope(b"", "g", session_id, seq), is_logged=is_logged)
            for session_id, seq, is_logged in (
                (A, 5, True),
                (A, 4, True),
                (A, 6, True),
                (A, 5, False),
                (B, 1, True),
            )
        ]
        assert seen == [True, True, False, False, False]

    def test_only_a_fence_gives_the_first_position(self, world: World) -> None:
        """A push before the first fence makes no position: some partitions would have one, and others not."""
        world.partition.passed(5)
        assert world.partition.position is None
        world.partition.position = 5
        world.partition.passed(6)
        assert world.partition.position == 6


class TestMoving:
    """From one node to another."""

    def prepared(self, world: World) -> Partition:
        partition = world.partition
        partition.position, partition.mark, partition.server, partition.read_until = 7, 8, b"run_id:1", 6
        partition.enter(Reading.LIVE)
        entry = world.entry
        entry.asked = world.shared.loop.create_future()
        entry.is_confirmed = True
        world.arrives(5)
        partition.numbers.take(3)
        return partition

    async def test_all_its_state_goes_along(self, world: World) -> None:
        """What was delivered and sent, position, mark and what is wanted; not what was confirmed."""
        partition = self.prepared(world)
        partition.move(as_node(world.other))
        assert world.home.partitions == {} and world.other.partitions == {3: partition}
        assert partition.home is as_node(world.other) and partition.epoch == 1
        assert (partition.position, partition.mark, partition.server) == (7, 8, b"run_id:1")
        assert partition.numbers.take() == 4
        assert (partition.reading, partition.discards) == (Reading.AWAY, True)
        entry = world.entry
        assert entry is world.shared.index[b"room"]
        assert (entry.asked, entry.is_confirmed) == (None, False)
        assert world.arrives(5) and world.arrived == [5]
        assert (world.home.subscriber.went, world.other.subscriber.came) == ([3], [3])
        assert (world.home.subscriber.came, world.other.subscriber.went) == ([], [])
        partition.sender.fail(OSError("over"))

    async def test_to_where_it_is(self, world: World) -> None:
        """Nothing changes, and nobody is told."""
        partition = self.prepared(world)
        partition.move(as_node(world.home))
        assert (partition.epoch, partition.reading) == (0, Reading.LIVE)
        assert world.entry.is_confirmed
        assert world.home.subscriber.went == world.home.subscriber.came == []

    async def test_there_and_back(self, world: World) -> None:
        """What was begun before is void, though it is back."""
        partition = self.prepared(world)
        before = partition.begin_reading()
        assert before.is_current
        for home in (world.other, world.home):
            partition.move(as_node(home))
        assert partition.epoch == 2 and world.home.partitions == {3: partition} and not world.other.partitions
        assert partition.reading is Reading.AWAY and not world.entry.is_confirmed
        assert not before.is_current and partition.begin_reading().is_current
