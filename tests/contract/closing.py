"""`close()`, `close_channel()` and `listen()`."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from channels_asyncq.exceptions import ChannelClosed, ChannelLayerError, LayerClosed
from tests.contract import (
    DEADLINE,
    MakeLayer,
    Message,
    both_kinds,
    calls,
    channel_of,
    eventually,
    members_of,
    note,
    notes,
    receive,
    started,
)


class Closing:
    """`close()` and `close_channel()`: waiting receivers end, nothing new is accepted."""

    @both_kinds
    async def test_close_ends_waiting_receivers(self, make_layer: MakeLayer, kind: str) -> None:
        """
        Everybody who waits in receive() when the layer closes gets LayerClosed, which is a ChannelClosed.
        """
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        readers = [await started(layer.receive(channel)) for _ in range(3)]
        async with asyncio.timeout(DEADLINE):
            await layer.close()
            for reader in readers:
                with pytest.raises(LayerClosed) as raised:
                    await reader
                assert isinstance(raised.value, ChannelClosed)
                assert isinstance(raised.value, ChannelLayerError)

    async def test_close_twice(self, make_layer: MakeLayer) -> None:
        """A second close() is fine, also a concurrent one, also on a layer that was never used."""
        unused = await make_layer()
        await unused.close()
        await unused.close()
        layer = await make_layer()
        await layer.new_channel()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(layer.close(), layer.close(), layer.close())
            await layer.close()

    async def test_use_after_close(self, make_layer: MakeLayer) -> None:
        """A closed layer accepts nothing: every call raises LayerClosed."""
        layer = await make_layer()
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        await layer.close()
        for call in calls(
            lambda: layer.send(channel, note(1)),
            lambda: layer.send("jobs", note(1)),
            lambda: layer.send_wait(channel, note(1)),
            lambda: layer.receive(channel),
            lambda: layer.receive("jobs"),
            lambda: layer.new_channel(),
            lambda: layer.group_add("room", channel),
            lambda: layer.group_send("room", note(1)),
            lambda: layer.flush(),
        ):
            with pytest.raises(LayerClosed):
                async with asyncio.timeout(DEADLINE):
                    await call()

    async def test_close_leaves_no_task(self, make_layer: MakeLayer) -> None:
        """When close() has returned, nothing of the layer runs any more."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.group_send("room", note(1))
        await receive(layer, member)
        before = asyncio.current_task()
        await layer.close()
        await eventually(lambda: asyncio.all_tasks() == {before}, "the end of all tasks")

    async def test_close_channel(self, make_layer: MakeLayer) -> None:
        """A closed channel ends its receivers with ChannelClosed that names it; its neighbours go on."""
        layer = await make_layer()
        closed, neighbour = await members_of(layer, "room", 2)
        readers = [await started(layer.receive(closed)) for _ in range(2)]
        other = await started(receive(layer, neighbour))
        await layer.close_channel(closed)
        for reader in readers:
            with pytest.raises(ChannelClosed) as raised:
                await reader
            assert raised.value.channel == closed
            assert not isinstance(raised.value, LayerClosed)
        await layer.group_send("room", note(1))
        assert await other == note(1)

    async def test_close_channel_accepts_nothing_new(self, make_layer: MakeLayer) -> None:
        """
        Sending to a closed channel, reading it and joining with it raise ChannelClosed; closing it again is
        fine.
        """
        layer = await make_layer()
        channel = await layer.new_channel()
        await layer.close_channel(channel)
        await layer.close_channel(channel)
        for call in calls(
            lambda: layer.send(channel, note(1)),
            lambda: layer.send_wait(channel, note(1)),
            lambda: layer.receive(channel),
            lambda: layer.group_add("room", channel),
        ):
            with pytest.raises(ChannelClosed):
                async with asyncio.timeout(DEADLINE):
                    await call()
        await layer.group_discard("room", channel)

    async def test_closed_channel_leaves_its_groups(self, make_layer: MakeLayer) -> None:
        """A closed channel is in no group any more."""
        layer = await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.close_channel(member)
        await layer.group_send("room", note(1))
        assert layer.statistics().groups == 0

    async def test_close_channel_before_anything_else(self, make_layer: MakeLayer) -> None:
        """
        On a loop that has used the layer for nothing yet, close_channel() opens no connection. A normal channel
        is closed for what the loop does later; another session's channel is for its owner to close.
        """
        layer, other = await make_layer(), await make_layer()
        await layer.close_channel("jobs")
        await layer.close_channel("jobs")
        with pytest.raises(ChannelLayerError, match="belongs to another"):
            await layer.close_channel(await other.new_channel())
        assert layer.statistics().links == ()
        with pytest.raises(ChannelClosed):
            await layer.send("jobs", note(1))
        assert layer.statistics().links == ()
        for call in calls(
            lambda: layer.receive("jobs"),
            lambda: layer.send("jobs", note(1)),
            lambda: layer.send_wait("jobs", note(1)),
        ):
            with pytest.raises(ChannelClosed):
                async with asyncio.timeout(DEADLINE):
                    await call()
        await layer.close_channel("jobs")
        await other.send("jobs", note(2))
        assert await receive(other, "jobs") == note(2)

    async def test_close_channel_that_is_invalid(self, make_layer: MakeLayer) -> None:
        """The name is checked like any other."""
        layer = await make_layer()
        with pytest.raises(TypeError):
            await layer.close_channel("so bad")

    async def test_listen(self, make_layer: MakeLayer) -> None:
        """`async for` gives the messages in order and ends when the channel closes."""
        layer = await make_layer()
        channel = await layer.new_channel()
        arrived: list[Message] = []

        async def listen() -> None:
            async for message in layer.listen(channel):
                arrived.append(message)  # noqa: PERF401  # the test looks at the list meanwhile

        listener = await started(listen())
        for message in notes(5):
            await layer.send(channel, message)
        await eventually(lambda: len(arrived) == 5, "the fifth message")
        await layer.close_channel(channel)
        async with asyncio.timeout(DEADLINE):
            await listener
        assert arrived == notes(5)

    @both_kinds
    async def test_listen_ends_with_the_layer(self, make_layer: MakeLayer, kind: str) -> None:
        """`async for` ends without an error when the layer closes."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)

        async def listen() -> int:
            return len([message async for message in layer.listen(channel)])

        listener = await started(listen())
        await layer.close()
        async with asyncio.timeout(DEADLINE):
            assert await listener == 0

    async def test_listen_left_early(self, make_layer: MakeLayer) -> None:
        """Leaving the loop leaves the channel: what comes next is received."""
        layer = await make_layer()
        channel = await layer.new_channel()
        for message in notes(3):
            await layer.send(channel, message)
        messages: AsyncIterator[Message] = layer.listen(channel)
        async for message in messages:
            assert message == note(0)
            break
        assert await receive(layer, channel) == note(1)
