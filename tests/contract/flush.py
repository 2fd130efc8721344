"""`flush()` in one process."""

from tests.contract import (
    MakeLayer,
    MakeSpecifiedLayer,
    assert_nothing_waits,
    both_kinds,
    channel_of,
    members_of,
    note,
    queued,
    receive,
    started,
)


class SpecifiedFlush:
    """A blank state."""

    async def test_flush(self, make_layer: MakeSpecifiedLayer) -> None:
        """After flush() there are no messages and no groups."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.group_add("room", "jobs")
        await layer.group_send("room", note(1))
        await layer.send("jobs", note(2))
        await layer.send(member, note(3))
        await layer.flush()
        await layer.group_send("room", note(4))
        await assert_nothing_waits(layer, member)
        await assert_nothing_waits(layer, "jobs")

    async def test_usable_after_flush(self, make_layer: MakeSpecifiedLayer) -> None:
        """Old and new channels, groups and normal channels work after flush()."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        for n in range(3):
            await layer.flush()
            for channel in (member, await layer.new_channel(), "jobs"):
                await layer.group_add("room", channel)
                await layer.group_send("room", note(n))
                assert await receive(layer, channel) == note(n)
                await layer.group_discard("room", channel)


class Flush(SpecifiedFlush):
    """What the design adds."""

    async def test_flush_of_a_fresh_layer(self, make_layer: MakeLayer) -> None:
        """flush() is fine as the first call of all."""
        layer = await make_layer()
        await layer.flush()
        await layer.send("jobs", note(1))
        assert await receive(layer, "jobs") == note(1)

    @both_kinds
    async def test_waiting_reader_survives_flush(self, make_layer: MakeLayer, kind: str) -> None:
        """A receive() that waits during flush() goes on waiting and gets the next message."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        reader = await started(receive(layer, channel))
        await layer.flush()
        assert not reader.done()
        await layer.send(channel, note(1))
        assert await reader == note(1)

    async def test_flush_leaves_nothing_in_the_statistics(self, make_layer: MakeLayer) -> None:
        """Nothing is queued and no group has members after flush()."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.send(member, note(1))
        await layer.flush()
        assert queued(layer, member) == 0
        assert layer.statistics().groups == 0
