"""`statistics()`, and that an idle layer runs no task."""

import asyncio
import time

import pytest

from tests.contract import (
    MakeLayer,
    dropped,
    eventually,
    members_of,
    note,
    notes,
    receive,
    started,
)


class Statistics:
    """`statistics()`: a typed snapshot."""

    async def test_fresh_layer(self, make_layer: MakeLayer) -> None:
        """A layer that was never used has figures too: noughts."""
        layer = await make_layer()
        figures = layer.statistics()
        assert (figures.channels, figures.groups, figures.delivered, figures.reconnects) == (0, 0, 0, 0)
        assert not figures.queued
        assert dropped(layer) == 0

    async def test_channels_groups_and_queues(self, make_layer: MakeLayer) -> None:
        """It counts channels, groups with members, and what waits, the longest queue first."""
        layer = await make_layer()
        first, second, third = [await layer.new_channel() for _ in range(3)]
        await layer.group_add("room", first)
        await layer.group_add("lobby", first)
        await layer.group_add("room", second)
        for channel, count in ((first, 1), (second, 3), (third, 2)):
            for message in notes(count):
                await layer.send(channel, message)
        figures = layer.statistics()
        assert figures.channels == 3
        assert figures.groups == 2
        assert list(dict(figures.queued).items()) == [(second, 3), (third, 2), (first, 1)]

    async def test_the_channels_of_this_process(self, make_layer: MakeLayer) -> None:
        """`layer.channels` has the channels by name, and how full they are; nothing can be changed by it."""
        layer = await make_layer(capacity=2)
        assert layer.channels == {}
        first = await layer.new_channel()
        empty = layer.channels[first]
        assert (empty.qsize(), empty.empty(), empty.full(), empty.maxsize) == (0, True, False, 2)
        for message in notes(2):
            await layer.send(first, message)
        full = layer.channels[first]
        assert (full.qsize(), full.empty(), full.full(), empty.qsize()) == (2, False, True, 0)
        reader = await started(receive(layer, "jobs"))
        assert sorted(layer.channels) == sorted(["jobs", first])
        await layer.send("jobs", note(1))
        await reader
        assert list(layer.channels) == [first]
        with pytest.raises(TypeError):
            layer.channels["more"] = full  # type: ignore[index]
        with pytest.raises(AttributeError, match="channels"):
            layer.channels = {}  # type: ignore[misc]
        assert list(layer.channels) == [first]

    async def test_the_groups_of_this_process(self, make_layer: MakeLayer) -> None:
        """`layer.groups` has the groups by name, with their members and the time of the last group_add()."""
        layer = await make_layer()
        assert layer.groups == {}
        began = time.time()
        first, second = await members_of(layer, "room", 2)
        await layer.group_add("lobby", second)
        groups = layer.groups
        assert {name: groups[name].keys() for name in groups} == {"room": {first, second}, "lobby": {second}}
        assert began - 1 <= groups["room"][first] <= time.time() + 1
        with pytest.raises(TypeError):
            del groups["room"][first]  # type: ignore[attr-defined]
        await layer.group_discard("room", first)
        await layer.group_discard("lobby", second)
        assert layer.groups.keys() == {"room"} and layer.groups["room"].keys() == {second}
        with pytest.raises(AttributeError, match="groups"):
            layer.groups = {}  # type: ignore[misc]

    async def test_delivered(self, make_layer: MakeLayer) -> None:
        """It counts each copy that was put into a channel."""
        layer = await make_layer()
        members = await members_of(layer, "room", 3)
        await layer.group_send("room", note(1))
        for member in members:
            await receive(layer, member)
        await layer.send(members[0], note(2))
        await receive(layer, members[0])
        assert layer.statistics().delivered == 4

    async def test_dropped(self, make_layer: MakeLayer) -> None:
        """It counts what was dropped, by reason."""
        layer = await make_layer(capacity=1)
        members = await members_of(layer, "room", 2)
        await layer.group_send("room", note(1))
        await layer.group_send("room", note(2))
        await eventually(lambda: dropped(layer) == 2, "the second drop")
        reasons = layer.statistics().dropped
        assert set(reasons.values()) >= {2}
        assert all(isinstance(reason, str) for reason in reasons)
        assert [await receive(layer, member) for member in members] == [note(1)] * 2

    async def test_a_snapshot_stays_as_it_is(self, make_layer: MakeLayer) -> None:
        """What happens afterwards does not change it."""
        layer = await make_layer()
        channel = await layer.new_channel()
        before = layer.statistics()
        await layer.send(channel, note(1))
        assert not before.queued
        assert dict(layer.statistics().queued) == {channel: 1}


class Idle:
    """A connected session is callbacks and timers."""

    async def test_no_standing_task(self, make_layer: MakeLayer) -> None:
        """A layer in use, with members and nothing to do, runs no task."""
        layer = await make_layer()
        members = await members_of(layer, "room", 3)
        await layer.group_send("room", note(1))
        for member in members:
            await receive(layer, member)
        await layer.send("jobs", note(1))
        await receive(layer, "jobs")
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of all tasks")
