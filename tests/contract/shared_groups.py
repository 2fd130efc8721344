"""Groups across processes, which in one loop are layers that share a prefix."""

import asyncio
import contextlib
import itertools
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.exceptions import LayerClosed
from channels_asyncq.local.flow import WaitBudget
from tests.contract import (
    DEADLINE,
    MARKER,
    MakeLayer,
    assert_nothing_waits,
    dropped,
    ended,
    eventually,
    every,
    members_of,
    note,
    notes,
    queued,
    receive,
    receive_many,
    started,
    steps,
)
from tests.contract.groups import burst


class SharedGroups:
    """Groups across processes."""

    async def test_members_in_two_processes(self, make_layer: MakeLayer) -> None:
        """A message reaches the members of every process once, in one order for all."""
        layers = [await make_layer() for _ in range(3)]
        members = [(layer, member) for layer in layers for member in await members_of(layer, "room", 3)]
        await every(layers[n % 3].group_send("room", note(n)) for n in range(60))
        arrived = [await receive_many(layer, member, 60) for layer, member in members]
        assert sorted(message["n"] for message in arrived[0]) == list(range(60))
        assert all(messages == arrived[0] for messages in arrived)
        for layer, member in members:
            await assert_nothing_waits(layer, member)

    async def test_group_add_is_confirmed(self, make_layer: MakeLayer) -> None:
        """What another process sends after group_add() has returned is received."""
        reader, writer = await make_layer(), await make_layer()
        member = await reader.new_channel()
        for n in range(50):
            await reader.group_add(f"room.{n}", member)
            await writer.group_send(f"room.{n}", note(n))
            assert await receive(reader, member) == note(n)

    async def test_exclude_in_another_process(self, make_layer: MakeLayer) -> None:
        """`exclude` names channels of any process."""
        reader, writer = await make_layer(), await make_layer()
        left_out, member = await members_of(reader, "room", 2)
        (own,) = await members_of(writer, "room", 1)
        await writer.group_send("room", note(1), exclude=[left_out, own])
        await writer.group_send("room", note(2))
        assert await receive_many(reader, member, 2) == [note(1), note(2)]
        assert await receive(reader, left_out) == note(2)
        assert await receive(writer, own) == note(2)

    async def test_normal_member_gets_one_copy_in_all(self, make_layer: MakeLayer) -> None:
        """
        A normal channel in a group gets one copy of each message, however many processes read or added it.
        """
        layers = [await make_layer() for _ in range(3)]
        for layer in layers:
            await layer.group_add("room", "jobs")
        arrived: list[int] = []

        async def work(layer: AsyncQueueChannelLayer) -> None:
            while True:
                arrived.append((await layer.receive("jobs"))["n"])

        workers = [await started(work(layer)) for layer in layers]
        for n in range(30):
            await layers[n % 3].group_send("room", note(n))
        await eventually(lambda: len(arrived) >= 30, "the last job")
        for worker in workers:
            worker.cancel()
            await ended(worker)
        await assert_nothing_waits(layers[0], "jobs")
        assert sorted(arrived) == list(range(30))

    @pytest.mark.parametrize("kind", ["queue", "members", "taken", f"taken:{'0' * 16}"])
    async def test_flush_of_a_prefix_that_another_begins_with(self, make_layer: MakeLayer, kind: str) -> None:
        """flush() deletes nothing of a prefix that is its own and what follows that in its keys."""
        ours = await make_layer()
        theirs = await make_layer(prefix=f"{ours.prefix}:0:{kind}")
        (foreign,) = await members_of(theirs, "room", 1)
        for layer in (theirs, ours):
            await layer.group_add("room", "mail")
            await layer.send("jobs", note(1))
        await ours.flush()
        assert await receive(theirs, "jobs") == note(1)
        await theirs.group_send("room", note(2))
        assert await receive(theirs, "mail") == note(2)
        assert await receive(theirs, foreign) == note(2)
        await ours.group_send("room", note(3))
        for channel in ("jobs", "mail"):
            await assert_nothing_waits(ours, channel)
            await assert_nothing_waits(theirs, channel)

    async def test_normal_member_discarded_by_another_process(self, make_layer: MakeLayer) -> None:
        """Membership of a normal channel is everybody's."""
        first, second = await make_layer(), await make_layer()
        await first.group_add("room", "jobs")
        await second.group_discard("room", "jobs")
        await first.group_send("room", note(1))
        await assert_nothing_waits(second, "jobs")

    async def test_group_add_of_another_processs_channel(self, make_layer: MakeLayer) -> None:
        """Its owner has confirmed it when group_add() returns; group_discard() likewise."""
        owner, other, third = [await make_layer() for _ in range(3)]
        member = await owner.new_channel()
        (witness,) = await members_of(owner, "room", 1)
        await other.group_add("room", member)
        await third.group_send("room", note(1))
        assert await receive(owner, member) == note(1)
        assert await receive(owner, witness) == note(1)
        await third.group_discard("room", member)
        await other.group_send("room", note(2))
        assert await receive(owner, witness) == note(2)
        await assert_nothing_waits(owner, member)

    async def test_group_add_for_an_owner_that_is_gone(self, make_layer: MakeLayer) -> None:
        """
        A channel whose process is gone may be added and discarded: no error, after send_timeout at the
        latest.
        """
        gone, layer = await make_layer(), await make_layer()
        channel = await gone.new_channel()
        await layer.new_channel()
        layer.options.send_timeout = 0.5
        await gone.close()
        async with asyncio.timeout(DEADLINE):
            await layer.group_add("room", channel)
            await layer.group_discard("room", channel)
            await layer.group_send("room", note(1))

    @pytest.mark.usefixtures("patient")
    async def test_burst_from_another_process(self, make_layer: MakeLayer) -> None:
        """32 sends in flight to 40 members of capacity 100 who read: of 2000 messages nobody misses one."""
        asyncio.get_running_loop().set_debug(False)
        await burst(await make_layer(capacity=100), await make_layer(capacity=100), count=2000)

    async def test_a_stuck_member_loses_only_its_own(
        self, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A member that does not read holds its neighbours up a few times, and its capacity is what it keeps."""
        waits: list[float] = []
        spend = WaitBudget.spend

        def count(budget: WaitBudget, milliseconds: float) -> None:
            waits.append(milliseconds)
            spend(budget, milliseconds)

        monkeypatch.setattr(WaitBudget, "spend", count)
        reader, writer = await make_layer(capacity=50), await make_layer()
        stuck, *members = await members_of(reader, "room", 6)
        readers = [asyncio.create_task(receive_many(reader, member, 500)) for member in members]
        for message in notes(500):
            await writer.group_send("room", message)
        for messages in await every(readers):
            assert messages == notes(500)
        assert len(waits) <= 50
        await eventually(lambda: dropped(reader) == 450, "the last drop")
        assert await receive_many(reader, stuck, 50) == notes(50)
        await assert_nothing_waits(reader, stuck)

    async def test_flush_is_for_everybody(self, make_layer: MakeLayer) -> None:
        """When flush() returns, no process has a message or a group left, and every process goes on."""
        first, second = await make_layer(), await make_layer()
        (member,) = await members_of(first, "room", 1)
        await first.group_add("room", "jobs")
        await first.send(member, note(1))
        await first.send("jobs", note(2))
        await second.flush()
        await second.group_send("room", note(3))
        await assert_nothing_waits(first, member)
        await assert_nothing_waits(first, "jobs")
        await first.group_add("room", member)
        await second.group_send("room", note(4))
        assert await receive(first, member) == note(4)

    async def test_flush_returns_when_it_is_done(self, make_layer: MakeLayer) -> None:
        """The other processes are empty when flush() returns, not a moment later."""
        layers = [await make_layer() for _ in range(4)]
        members = [(layer, (await members_of(layer, "room", 1))[0]) for layer in layers]
        for _ in range(5):
            for layer, member in members:
                await layer.group_add("room", member)
                await layer.send(member, note(1))
            await layers[0].flush()
            assert [queued(layer, member) for layer, member in members] == [0] * 4
            assert [layer.statistics().groups for layer in layers] == [0] * 4

    async def test_flush_amid_traffic(self, make_layer: MakeLayer) -> None:
        """flush() returns while others send and join, and what joins after it is a member."""
        first, second = await make_layer(), await make_layer()
        member = await first.new_channel()
        is_over = False

        async def traffic() -> None:
            n = 0
            while not is_over:
                n += 1
                await first.group_add("room", member)
                await second.group_send("room", note(n))
                with contextlib.suppress(ChannelFull):
                    await second.send("jobs", note(n))

        busy = await started(traffic())
        for _ in range(10):
            async with asyncio.timeout(DEADLINE):
                await second.flush()
                await first.flush()
        is_over = True
        await every([busy])
        await first.flush()
        await first.group_add("room", member)
        await second.group_send("room", MARKER)
        assert await receive(first, member) == MARKER
        await assert_nothing_waits(second, "jobs")

    async def test_cancelled_group_add_of_another_processs_channel(self, make_layer: MakeLayer) -> None:
        """Cancelled on its way to the owner it may have come to pass; the next word about it holds."""
        owner, other = await make_layer(), await make_layer()
        (witness,) = await members_of(owner, "room", 1)
        member = await owner.new_channel()
        for turns, last in itertools.product(range(0, 40, 4), ("add", "discard")):
            joining = asyncio.create_task(other.group_add("room", member))
            await steps(turns)
            joining.cancel()
            await ended(joining)
            await (other.group_add if last == "add" else other.group_discard)("room", member)
            await other.group_send("room", note(turns))
            assert await receive(owner, witness) == note(turns)
            if last == "add":
                assert await receive(owner, member) == note(turns)
            await assert_nothing_waits(owner, member)

    async def test_sending_again_to_another_processs_channel(self, make_layer: MakeLayer) -> None:
        """What is remembered of a name changes nothing: the order, the errors, the end of the layer."""
        here, there = await make_layer(max_message_size=2000), await make_layer()
        channels = [await there.new_channel() for _ in range(3)]
        for n in range(4):
            for channel in channels:
                await here.send(channel, note(n))
        await every(here.send(channel, note(n)) for n in range(4, 50) for channel in channels)
        for channel in channels:
            assert await receive_many(there, channel, 50) == notes(50)
        with pytest.raises(TypeError, match="value"):
            await here.send(channels[0], {"type": "test.value", "value": object()})
        with pytest.raises(here.MessageTooLarge):
            await here.send(channels[0], {"type": "test.value", "value": "x" * 2000})
        wrong: list[Any] = [[channels[0]], channels[0].encode(), channels[0] + "\ud800"]
        for name in wrong:
            with pytest.raises(TypeError, match="Channel name m"):
                await here.send(name, note(50))
        await here.close()
        with pytest.raises(LayerClosed):
            await here.send(channels[0], note(50))
        for channel in channels:
            await assert_nothing_waits(there, channel)

    async def test_names_of_another_type_beside_known_ones(self, make_layer: MakeLayer) -> None:
        """Names that were right do not let wrong ones pass."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for group, channel in (
            (["room"], member),
            (b"room", member),
            ("room\ud800", member),
            ("room", [member]),
            ("room", member.encode()),
            ("room", None),
        ):
            for attempt in (layer.group_add, layer.group_discard):
                with pytest.raises(TypeError, match="name m"):
                    await attempt(group, channel)  # type: ignore[arg-type]
        await layer.group_send("room", note(1))
        assert await receive(layer, member) == note(1)

    async def test_prefixes_are_apart(self, make_layer: MakeLayer) -> None:
        """Layers of another prefix share nothing."""
        ours, theirs = await make_layer(), await make_layer(prefix="another-prefix")
        (own,), (foreign,) = await members_of(ours, "room", 1), await members_of(theirs, "room", 1)
        await ours.group_send("room", note(1))
        await ours.send("jobs", note(2))
        await ours.flush()
        await theirs.group_send("room", note(3))
        assert await receive(theirs, foreign) == note(3)
        await assert_nothing_waits(theirs, "jobs")
        await assert_nothing_waits(theirs, foreign)
        await assert_nothing_waits(ours, own)
