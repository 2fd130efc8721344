"""Checkpoint: what a fence that arrives does to the partitions of its node."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, cast

import pytest

from channels_asyncq.bus.redis.checkpoint import Checkpoint
from channels_asyncq.bus.redis.log_ends import LogScripts
from channels_asyncq.bus.redis.log_reading import LogsReader
from channels_asyncq.bus.redis.partition import Partition, Reading
from channels_asyncq.bus.redis.recovery import LogReader
from channels_asyncq.bus.redis.sequences import parse_position
from channels_asyncq.bus.redis.subscriber import logged_topics
from channels_asyncq.bus.redis.watch import Watch
from tests.partitions import Home, Recorder, as_node, shared_for

NOW = 1_700_000_000_000
WEEK = 7 * 86_400_000
END = b"1700000000000-5"


class Told(Recorder):
    """What is told of a server that forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: list[tuple[set[int], set[bytes]]] = []
        self.unknown: list[set[int]] = []

    def on_forgotten(self, partitions: Collection[int], topics: set[bytes]) -> None:
        self.forgotten.append((set(partitions), topics))

    def on_jobs_unknown(self, partitions: Collection[int]) -> int:
        self.unknown.append(set(partitions))
        return 1


class Lease:
    """A lease that holds, and its keeper."""

    keeps_past = 900
    compatible: frozenset[bytes] = frozenset()

    def __init__(self) -> None:
        self.lease = self.layout = self

    def command(self, *arguments: Any) -> tuple[bytes, ...]:
        return (b"EVALSHA",)


class World:
    """A node with two partitions, and the fences that its server publishes."""

    def __init__(self) -> None:
        self.receiver = Told()
        _, self.shared = shared_for(self.receiver)
        self.home, self.partitions = self.make_home(0, 1)
        self.checkpoint: Checkpoint = cast(Any, self.home).checkpoint

    def make_home(self, *numbers: int) -> tuple[Home, list[Partition]]:
        home = Home()
        node = cast(Any, home)
        node.host = node.number = 0
        node.lease = node.lease_keeper = Lease()
        node.log = LogReader(self.shared, cast(Any, None))
        node.logs = LogsReader(self.shared, as_node(home), LogScripts(self.shared, as_node(home)))
        node.logged_topics = lambda each: logged_topics([home.partitions[number] for number in each])
        node.checkpoint = Checkpoint(self.shared, as_node(home), Watch(home.address, None))
        node.subscriber.topics = SimpleNamespace(fence_topic=b"fence")
        partitions = [home.partition(number, self.shared) for number in numbers]
        for number, partition in zip(numbers, partitions, strict=True):
            partition.subscriptions.want(b"room%d" % number, is_logged=True)
        return home, partitions

    @staticmethod
    def send(checkpoint: Checkpoint) -> int:
        """A fence is sent; return its number."""
        checkpoint._new()
        return checkpoint._number

    @staticmethod
    def fence(number: int, *marks: int, ends: int = 2, now: int = NOW) -> bytes:
        expire = b" ".join(b"%d" % mark for mark in marks) if marks else b"- -"
        return b"%d %d\n%b\n%b\n\n0 0" % (number, now, b" ".join([END] * ends), expire)


@pytest.fixture
async def world() -> World:
    return World()


def test_it_gives_positions(world: World) -> None:
    """The first to all; later ones to those that were live when it was sent."""
    world.checkpoint.on_fence(world.fence(world.send(world.checkpoint)))
    assert [each.position for each in world.partitions] == [parse_position(END)] * 2
    live, away = world.partitions
    live.position = away.position = 1
    live.enter(Reading.LIVE)
    number = world.send(world.checkpoint)
    away.enter(Reading.LIVE)
    world.checkpoint.on_fence(world.fence(number))
    assert (live.position, away.position) == (parse_position(END), 1)
    assert {each.fenced_at for each in world.partitions} == {NOW}


@pytest.mark.parametrize("what", ["moved", "there and back", "lost its connection"])
def test_a_partition_that_left_meanwhile(world: World, what: str) -> None:
    """The fence vouches for what arrived where it was sent: nothing of it is taken over."""
    stays, leaves = world.partitions
    for each in world.partitions:
        each.position, each.mark = 1, NOW + WEEK
        each.enter(Reading.LIVE)
    number = world.send(world.checkpoint)
    if what == "lost its connection":
        leaves.leave_connection()
    else:
        other, _ = world.make_home()
        leaves.move(as_node(other))
        if what == "there and back":
            leaves.move(as_node(world.home))
    leaves.enter(Reading.LIVE)
    world.checkpoint.on_fence(world.fence(number, NOW + WEEK, NOW + 2 * WEEK))
    assert (stays.position, leaves.position) == (parse_position(END), 1)
    assert leaves.mark == NOW + WEEK and world.receiver.unknown == []


def test_the_same_lines_again(world: World) -> None:
    """They say that nothing was published: the time of the fence is noted, and nothing else is there to do."""
    marks = NOW + WEEK, NOW + 2 * WEEK
    for _ in range(2):
        world.checkpoint.on_fence(world.fence(world.send(world.checkpoint), *marks))
        for each in world.partitions:
            each.enter(Reading.LIVE)
    for later in (1, 2):
        world.checkpoint.on_fence(world.fence(world.send(world.checkpoint), *marks, now=NOW + later))
        assert {each.fenced_at for each in world.partitions} == {NOW + later}
    assert [each.position for each in world.partitions] == [parse_position(END)] * 2
    assert len(world.receiver.forgotten) == 1  # of the first fence at all


def test_the_same_lines_again_after_a_change(world: World) -> None:
    """A partition that an earlier fence did not concern gets its position and its mark from the next one."""
    marks = NOW + WEEK, NOW + 2 * WEEK
    stays, leaves = world.partitions
    for each in world.partitions:
        each.position = 1
        each.enter(Reading.LIVE)
    world.checkpoint.on_fence(world.fence(world.send(world.checkpoint), *marks))
    leaves.position, leaves.mark = 2, None
    leaves.leave_connection()
    number = world.send(world.checkpoint)
    leaves.enter(Reading.LIVE)
    world.checkpoint.on_fence(world.fence(number, *marks))
    assert (stays.position, leaves.position) == (parse_position(END), 2)
    world.checkpoint.on_fence(world.fence(world.send(world.checkpoint), *marks))
    assert [leaves.position, leaves.mark] == [parse_position(END), NOW + 2 * WEEK]


def test_a_fence_of_an_earlier_connection(world: World) -> None:
    """It is void, and so is what nobody sent; what is no fence is an error."""
    number = world.send(world.checkpoint)
    world.checkpoint.drop()
    for each in (number, number + 7):
        world.checkpoint.on_fence(world.fence(each))
    assert [each.position for each in world.partitions] == [None, None]
    with pytest.raises(ValueError, match="unpack"):
        world.checkpoint.on_fence(b"nonsense")


def test_forgotten_before_the_first_fence(world: World) -> None:
    """A partition that brings a mark, and whose first fence at the node finds another one, has lost something."""
    other, _ = world.make_home()
    checkpoint: Checkpoint = cast(Any, other).checkpoint
    leaves = world.partitions[0]
    leaves.position, leaves.mark = 1, NOW + WEEK
    leaves.move(as_node(other))
    checkpoint.on_fence(world.fence(world.send(checkpoint), NOW + WEEK + 90_000, ends=1))
    assert ({0}, {b"room0"}) in world.receiver.forgotten
    assert world.receiver.unknown == [{0}]
