"""The groups of one process: members, `exclude`, cancellation, races of joining and leaving."""

import asyncio
import itertools
import random

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from tests.contract import (
    MARKER,
    LetTimePass,
    MakeLayer,
    MakeSpecifiedLayer,
    assert_nothing_waits,
    dropped,
    ended,
    every,
    members_of,
    note,
    notes,
    receive,
    receive_many,
    steps,
)


class SpecifiedGroups:
    """A message to a group reaches each of its members once."""

    async def test_members_get_the_message(self, make_layer: MakeSpecifiedLayer) -> None:
        """What is sent after group_add() has returned is received by every member, once."""
        layer = await make_layer()
        members = await members_of(layer, "room", 40)
        for message in notes(3):
            await layer.group_send("room", message)
        for member in members:
            assert await receive_many(layer, member, 3) == notes(3)
            await assert_nothing_waits(layer, member)

    async def test_joining_twice_delivers_once(self, make_layer: MakeSpecifiedLayer) -> None:
        """A channel that is in the group already stays in it once."""
        layer = await make_layer()
        member = await layer.new_channel()
        await layer.group_add("room", member)
        await layer.group_add("room", member)
        await layer.group_send("room", note(1))
        await layer.group_send("room", note(2))
        assert await receive_many(layer, member, 2) == [note(1), note(2)]
        await assert_nothing_waits(layer, member)
        await layer.group_discard("room", member)
        witness = await layer.new_channel()
        await layer.group_add("room", witness)
        await layer.group_send("room", note(3))
        assert await receive(layer, witness) == note(3)
        await assert_nothing_waits(layer, member)

    async def test_discard(self, make_layer: MakeSpecifiedLayer) -> None:
        """Who has left the group gets nothing more; who stays does."""
        layer = await make_layer()
        stays, leaves = await members_of(layer, "room", 2)
        await layer.group_discard("room", leaves)
        await layer.group_send("room", note(1))
        assert await receive(layer, stays) == note(1)
        await assert_nothing_waits(layer, leaves)

    async def test_discard_of_who_is_not_there(self, make_layer: MakeSpecifiedLayer) -> None:
        """Leaving a group one is not in, or that nobody is in, does nothing."""
        layer = await make_layer()
        member, other = await layer.new_channel(), await layer.new_channel()
        await layer.group_discard("room", member)
        await layer.group_add("room", member)
        await layer.group_discard("room", other)
        await layer.group_discard("room", "jobs")
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)

    async def test_coming_back(self, make_layer: MakeSpecifiedLayer) -> None:
        """Who leaves as the last one and joins again is a member again, each time."""
        layer = await make_layer()
        member = await layer.new_channel()
        for n in range(5):
            await layer.group_add("room", member)
            await layer.group_send("room", note(n))
            assert await receive(layer, member) == note(n)
            await layer.group_discard("room", member)
            await layer.group_send("room", note(100))
        await assert_nothing_waits(layer, member)

    async def test_empty_group(self, make_layer: MakeSpecifiedLayer) -> None:
        """A message to a group without members is nobody's, also not of who joins later."""
        layer = await make_layer()
        await layer.group_send("room", note(1))
        member = await layer.new_channel()
        await layer.group_add("room", member)
        await assert_nothing_waits(layer, member)

    async def test_groups_are_apart(self, make_layer: MakeSpecifiedLayer) -> None:
        """A channel in two groups gets each group's messages, a channel in one only its own's."""
        layer = await make_layer()
        first, both = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("first", first)
        await layer.group_add("first", both)
        await layer.group_add("second", both)
        await layer.group_send("first", note(1))
        assert await receive(layer, both) == note(1)
        await layer.group_send("second", note(2))
        assert await receive(layer, both) == note(2)
        assert await receive(layer, first) == note(1)
        await assert_nothing_waits(layer, first)

    async def test_group_and_channel_of_one_name(self, make_layer: MakeSpecifiedLayer) -> None:
        """A group and a channel may have the same name and nothing else in common."""
        layer = await make_layer()
        member = await layer.new_channel()
        await layer.group_add("same", member)
        await layer.send("same", note(1))
        await layer.group_send("same", note(2))
        assert await receive(layer, member) == note(2)
        assert await receive(layer, "same") == note(1)

    async def test_order_within_a_group(self, make_layer: MakeSpecifiedLayer) -> None:
        """One sender to one group: as sent, for every member."""
        layer = await make_layer()
        members = await members_of(layer, "room", 3)
        for message in notes(60):
            await layer.group_send("room", message)
        for member in members:
            assert await receive_many(layer, member, 60) == notes(60)

    async def test_a_full_member_is_not_the_senders_concern(self, make_layer: MakeSpecifiedLayer) -> None:
        """group_send() never raises ChannelFull: the full member misses the message, the others get it."""
        layer = await make_layer(capacity=3)
        full, empty = await members_of(layer, "room", 2)
        for message in notes(3):
            await layer.send(full, message)
        await layer.group_send("room", note(3))
        assert await receive(layer, empty) == note(3)
        assert await receive_many(layer, full, 3) == notes(3)
        await assert_nothing_waits(layer, full)

    async def test_normal_channel_as_member(self, make_layer: MakeSpecifiedLayer) -> None:
        """A normal channel may join and leave; as a member it gets one copy."""
        layer = await make_layer()
        witness = await layer.new_channel()
        await layer.group_add("room", "jobs")
        await layer.group_add("room", witness)
        await layer.group_send("room", note(1))
        assert await receive(layer, "jobs") == note(1)
        assert await receive(layer, witness) == note(1)
        await layer.group_discard("room", "jobs")
        await layer.group_send("room", note(2))
        assert await receive(layer, witness) == note(2)
        await assert_nothing_waits(layer, "jobs")

    async def test_membership_without_reading(self, make_layer: MakeSpecifiedLayer) -> None:
        """A member need not wait in receive() to be one: its messages wait for it."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for message in notes(5):
            await layer.group_send("room", message)
        assert await receive_many(layer, member, 5) == notes(5)


class Groups(SpecifiedGroups):
    """What the design adds: exclude, cancellation, races of joining and leaving, lapse."""

    async def test_exclude(self, make_layer: MakeLayer) -> None:
        """The channels in `exclude` are left out of one message, specific and normal ones alike."""
        layer = await make_layer()
        first, second, third = await members_of(layer, "room", 3)
        await layer.group_add("room", "jobs")
        await layer.group_send("room", note(1), exclude=[first, "jobs", third])
        await layer.group_send("room", note(2), exclude={second})
        await layer.group_send("room", note(3), exclude=[])
        assert await receive_many(layer, second, 2) == [note(1), note(3)]
        for member in (first, third, "jobs"):
            assert await receive_many(layer, member, 2) == [note(2), note(3)]

    async def test_exclude_of_who_is_not_there(self, make_layer: MakeLayer) -> None:
        """Excluding a channel that is no member changes nothing."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.group_send("room", note(1), exclude=["elsewhere", await layer.new_channel()])
        assert await receive(layer, member) == note(1)

    async def test_a_full_normal_member_is_not_the_senders_concern(self, make_layer: MakeLayer) -> None:
        """group_send() does not raise ChannelFull for a normal channel either."""
        layer = await make_layer(capacity=2)
        (witness,) = await members_of(layer, "room", 1)
        await layer.group_add("room", "jobs")
        for message in notes(2):
            await layer.send("jobs", message)
        await layer.group_send("room", note(2))
        assert await receive(layer, witness) == note(2)
        assert await receive_many(layer, "jobs", 2) == notes(2)
        await assert_nothing_waits(layer, "jobs")

    async def test_group_add_cancelled_leaves_no_half_member(self, make_layer: MakeLayer) -> None:
        """
        Wherever group_add() is cancelled, the channel is no member, and the next one to join is a whole
        one.
        """
        layer = await make_layer()
        member, witness = await layer.new_channel(), await layer.new_channel()
        for turns in range(40):
            group = f"room.{turns}"
            joining = asyncio.create_task(layer.group_add(group, member))
            await steps(turns)
            joining.cancel()
            await ended(joining)
            await layer.group_add(group, witness)
            await layer.group_send(group, note(turns))
            assert await receive(layer, witness) == note(turns)
            if not joining.cancelled():
                assert await receive(layer, member) == note(turns)
            await assert_nothing_waits(layer, member)
            await layer.group_discard(group, witness)

    async def test_group_add_cancelled_and_repeated(self, make_layer: MakeLayer) -> None:
        """After a cancelled group_add() the same channel can join, and gets each message once."""
        layer = await make_layer()
        member = await layer.new_channel()
        for turns in range(40):
            group = f"room.{turns}"
            joining = asyncio.create_task(layer.group_add(group, member))
            await steps(turns)
            joining.cancel()
            await layer.group_add(group, member)
            await ended(joining)
            await layer.group_send(group, note(turns))
            assert await receive(layer, member) == note(turns)
            await assert_nothing_waits(layer, member)

    async def test_group_add_cancelled_for_a_member(self, make_layer: MakeLayer) -> None:
        """Cancelling a second group_add() does not undo the first."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for turns in range(20):
            joining = asyncio.create_task(layer.group_add("room", member))
            await steps(turns)
            joining.cancel()
            await ended(joining)
            await layer.group_send("room", note(turns))
            assert await receive(layer, member) == note(turns)

    async def test_one_of_two_joins_is_cancelled(self, make_layer: MakeLayer) -> None:
        """Two concurrent group_add() of one channel: cancelling one leaves the other's promise as it is."""
        layer = await make_layer()
        member = await layer.new_channel()
        for turns, which in itertools.product(range(20), range(2)):
            group = f"room.{turns}.{which}"
            joins = [asyncio.create_task(layer.group_add(group, member)) for _ in range(2)]
            await steps(turns)
            joins[which].cancel()
            await every([joins[1 - which]])
            await layer.group_send(group, note(turns))
            assert await receive(layer, member) == note(turns)
            await ended(joins[which])
            await layer.group_send(group, note(turns + 1))
            assert await receive(layer, member) == note(turns + 1)
            await assert_nothing_waits(layer, member)

    async def test_one_joins_as_the_last_one_leaves(self, make_layer: MakeLayer) -> None:
        """
        group_add() of one channel and group_discard() of the only other at once: the group has its new
        member.
        """
        layer = await make_layer()
        leaves, joins = await layer.new_channel(), await layer.new_channel()
        for turns, first in itertools.product(range(15), range(2)):
            group = f"room.{turns}.{first}"
            await layer.group_add(group, leaves)
            calls = [layer.group_discard(group, leaves), layer.group_add(group, joins)]
            earlier = asyncio.create_task(calls[first])
            await steps(turns)
            later = asyncio.create_task(calls[1 - first])
            await every([earlier, later])
            await layer.group_send(group, note(turns))
            assert await receive(layer, joins) == note(turns)
            await assert_nothing_waits(layer, leaves)

    async def test_the_last_word_wins(self, make_layer: MakeLayer) -> None:
        """Joining and leaving in quick succession ends as the last call says."""
        layer = await make_layer()
        member, witness = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("room", witness)
        for last in ("add", "discard") * 5:
            calls = [asyncio.create_task(layer.group_add("room", member))]
            await steps(1)
            calls.append(asyncio.create_task(layer.group_discard("room", member)))
            await steps(1)
            if last == "add":
                calls.append(asyncio.create_task(layer.group_add("room", member)))
            await every(calls)
            await layer.group_send("room", note(1))
            assert await receive(layer, witness) == note(1)
            if last == "add":
                assert await receive(layer, member) == note(1)
            await assert_nothing_waits(layer, member)

    async def test_many_join_at_once(self, make_layer: MakeLayer) -> None:
        """Hundreds of joins of new groups and of one group in flight together all hold when they return."""
        layer = await make_layer()
        members = [await layer.new_channel() for _ in range(100)]
        await every(
            layer.group_add(group, member)
            for n, member in enumerate(members)
            for group in ("room", f"own.{n}")
        )
        await layer.group_send("room", note(1000))
        await every(layer.group_send(f"own.{n}", note(n)) for n in range(100))
        for n, member in enumerate(members):
            arrived = await receive_many(layer, member, 2)
            assert sorted(message["n"] for message in arrived) == [n, 1000]

    @pytest.mark.parametrize("seed", range(6))
    async def test_any_order_of_joining_leaving_and_cancelling(
        self, make_layer: MakeLayer, seed: int
    ) -> None:
        """
        Whatever was joined, left and cancelled meanwhile: in the end a channel is where its last call put
        it.
        """
        layer = await make_layer()
        chance = random.Random(seed)
        channels = [await layer.new_channel() for _ in range(3)]
        groups = [f"room.{n}" for n in range(3)]

        async def wander(group: str, channel: str) -> bool:
            """
            Join and leave at random, one call after the other; True if the channel is a member in the end.
            """
            is_member = False
            for _ in range(25):
                is_join = chance.random() < 0.6
                call = asyncio.create_task(
                    (layer.group_add if is_join else layer.group_discard)(group, channel)
                )
                if chance.random() < 0.4:
                    await steps(chance.randrange(30))
                    call.cancel()
                await ended(call)
                if not call.cancelled():
                    is_member = is_join
                elif not is_join:
                    # A cancelled group_discard() may have come to pass or not.
                    await layer.group_discard(group, channel)
                    is_member = False
            return is_member

        pairs = list(itertools.product(groups, channels))
        members = dict(zip(pairs, await every(wander(*pair) for pair in pairs), strict=True))
        for n, group in enumerate(groups):
            await layer.group_send(group, note(n))
            witness = await layer.new_channel()
            await layer.group_add(group, witness)
            await layer.group_send(group, note(100 + n))
            await receive(layer, witness)
        for channel in channels:
            expected = [n for n, group in enumerate(groups) if members[group, channel]]
            arrived = await receive_many(layer, channel, 2 * len(expected))
            assert sorted(message["n"] for message in arrived) == expected + [100 + n for n in expected]
            await assert_nothing_waits(layer, channel)

    async def test_group_expiry(self, make_layer: MakeLayer, let_time_pass: LetTimePass) -> None:
        """Membership lapses `group_expiry` after the last group_add() when nothing is received."""
        layer = await make_layer(group_expiry=1.4)
        forgotten, renewed = await members_of(layer, "room", 2)
        await layer.group_add("room", "jobs")
        await let_time_pass(0.9)
        await layer.group_add("room", renewed)
        await let_time_pass(0.6)
        await layer.group_send("room", note(1))
        assert await receive(layer, renewed) == note(1)
        await assert_nothing_waits(layer, forgotten)
        await assert_nothing_waits(layer, "jobs")

    async def test_receiving_keeps_membership(
        self, make_layer: MakeLayer, let_time_pass: LetTimePass
    ) -> None:
        """A member that receives does not lapse, however long ago it joined."""
        layer = await make_layer(group_expiry=1.5)
        (member,) = await members_of(layer, "room", 1)
        for n in range(3):
            await let_time_pass(0.6)
            await layer.group_send("room", note(n))
            assert await receive(layer, member) == note(n)

    async def test_group_expiry_that_is_set_later(
        self, make_layer: MakeLayer, let_time_pass: LetTimePass
    ) -> None:
        """
        A membership lapses by what `layer.group_expiry` is at the time, whatever it was at the group_add(). Of a
        normal channel it lapses by what it was then.
        """
        layer = await make_layer(group_expiry=1.0)
        (first,) = await members_of(layer, "room", 1)
        layer.group_expiry = 1000
        await let_time_pass(1.1)
        await layer.group_send("room", note(1))
        assert await receive(layer, first) == note(1)
        layer.group_expiry = 0.8
        await layer.group_add("room", "jobs")
        await let_time_pass(1.0)
        await layer.group_send("room", note(2))
        await assert_nothing_waits(layer, first)
        await assert_nothing_waits(layer, "jobs")

    async def test_group_send_cancelled(self, make_layer: MakeLayer) -> None:
        """A cancelled group_send() has sent its message once or not at all, and the layer goes on."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for turns in range(0, 30, 3):
            sender = asyncio.create_task(layer.group_send("room", note(turns)))
            await steps(turns)
            sender.cancel()
            await ended(sender)
            await layer.group_send("room", MARKER)
            arrived = await receive(layer, member)
            if arrived != MARKER:
                assert arrived == note(turns)
                assert await receive(layer, member) == MARKER

    @pytest.mark.usefixtures("patient")
    async def test_burst_with_readers_that_keep_up(self, make_layer: MakeLayer) -> None:
        """32 sends in flight to 40 members of capacity 100 who read: of 1000 messages nobody misses one."""
        asyncio.get_running_loop().set_debug(False)
        layer = await make_layer(capacity=100)
        await burst(layer, layer)


async def burst(writer: AsyncQueueChannelLayer, reader: AsyncQueueChannelLayer, count: int = 1000) -> None:
    """
    Send `count` messages, 32 in flight, to 40 members who read; assert that all got all, in order per
    sender.
    """
    members = await members_of(reader, "room", 40)
    readers = [asyncio.create_task(receive_many(reader, member, count)) for member in members]
    numbers = iter(range(count))

    async def write() -> None:
        for n in numbers:
            await writer.group_send("room", note(n))

    await asyncio.gather(*(write() for _ in range(32)))
    arrived = await asyncio.gather(*readers)
    assert all(sorted(message["n"] for message in messages) == list(range(count)) for messages in arrived)
    assert all(messages == arrived[0] for messages in arrived), "one order per group"
    assert dropped(reader) == 0
