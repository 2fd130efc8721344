"""`send_wait()`."""

import asyncio

import pytest
from channels.exceptions import ChannelFull

from channels_asyncq.exceptions import ChannelClosed, LayerClosed, StillFull
from tests.contract import (
    DEADLINE,
    MARKER,
    MakeLayer,
    assert_nothing_waits,
    both_kinds,
    channel_of,
    ended,
    every,
    note,
    notes,
    receive,
    receive_many,
    started,
    time_passes,
)
from tests.contract.messages import Plain


class Waiting:
    """`send_wait()`: the bounded queue whose put waits for room."""

    @both_kinds
    async def test_room_is_taken_at_once(self, make_layer: MakeLayer, kind: str) -> None:
        """Where there is room, send_wait() is send()."""
        layer = await make_layer(capacity=2)
        channel = await channel_of(layer, kind)
        for message in notes(2):
            async with asyncio.timeout(DEADLINE):
                await layer.send_wait(channel, message)
        assert await receive_many(layer, channel, 2) == notes(2)

    @both_kinds
    async def test_waits_for_room(self, make_layer: MakeLayer, kind: str) -> None:
        """With the channel full it waits until a message is read, then its own is queued."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        writer = await started(layer.send_wait(channel, note(1)))
        # A round trip: the server has answered what was asked before it.
        await layer.group_send("nobody", MARKER)
        assert not writer.done()
        assert await receive(layer, channel) == note(0)
        async with asyncio.timeout(DEADLINE):
            await writer
        assert await receive(layer, channel) == note(1)

    @both_kinds
    async def test_many_writers(self, make_layer: MakeLayer, kind: str) -> None:
        """Ten writers through one place: every message arrives once."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        writers = [asyncio.create_task(layer.send_wait(channel, message)) for message in notes(10)]
        arrived = await receive_many(layer, channel, 10)
        await every(writers)
        assert sorted(message["n"] for message in arrived) == list(range(10))
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_first_come_first_served(self, make_layer: MakeLayer, kind: str) -> None:
        """Writers get places in the order in which they came, however long the first ones have waited."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        writers = [await started(layer.send_wait(channel, note(1)))]
        # It looks ever more seldom.
        await time_passes(0.2)
        writers += [await started(layer.send_wait(channel, note(n))) for n in range(2, 6)]
        assert await receive_many(layer, channel, 6) == notes(6)
        await every(writers)

    @both_kinds
    async def test_at_once(self, make_layer: MakeLayer, kind: str) -> None:
        """Where there is room, a hundred writers do not wait for each other: their order is that of the calls."""
        layer = await make_layer(capacity=100)
        channel = await channel_of(layer, kind)
        await every(layer.send_wait(channel, message) for message in notes(100))
        assert await receive_many(layer, channel, 100) == notes(100)

    @both_kinds
    @pytest.mark.parametrize("end", ["timeout", "cancelled"])
    async def test_who_gives_up_keeps_no_place(self, make_layer: MakeLayer, kind: str, end: str) -> None:
        """When the last writer that waited has given up, send() has the place at once."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        waits = await started(layer.send_wait(channel, note(1), timeout=0.01 if end == "timeout" else None))
        await layer.group_send("nobody", MARKER)  # a round trip
        if end == "cancelled":
            waits.cancel()
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait([waits])
        assert waits.cancelled() or isinstance(waits.exception(), StillFull)
        assert await receive(layer, channel) == note(0)
        await layer.send(channel, note(2))
        assert await receive(layer, channel) == note(2)

    @both_kinds
    async def test_timeout(self, make_layer: MakeLayer, kind: str) -> None:
        """When no place came in time it raises StillFull, and the message is not sent."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        with pytest.raises(StillFull) as raised:
            async with asyncio.timeout(DEADLINE):
                await layer.send_wait(channel, note(1), timeout=0.1)
        # Both those who know send() and those who know asyncio.timeout() catch it.
        assert isinstance(raised.value, ChannelFull)
        assert isinstance(raised.value, TimeoutError)
        assert await receive(layer, channel) == note(0)
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_cancelled(self, make_layer: MakeLayer, kind: str) -> None:
        """A cancelled send_wait() sends nothing and leaves its place in the line to the next."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        cancelled = await started(layer.send_wait(channel, note(1)))
        waits = await started(layer.send_wait(channel, note(2)))
        cancelled.cancel()
        await ended(cancelled)
        assert cancelled.cancelled()
        assert await receive(layer, channel) == note(0)
        await every([waits])
        assert await receive(layer, channel) == note(2)
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_close_ends_who_waits(self, make_layer: MakeLayer, kind: str) -> None:
        """Closing the layer ends a waiting send_wait() with LayerClosed."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        writer = await started(layer.send_wait(channel, note(1)))
        await layer.close()
        with pytest.raises(LayerClosed):
            async with asyncio.timeout(DEADLINE):
                await writer

    async def test_close_channel_ends_who_waits(self, make_layer: MakeLayer) -> None:
        """Closing the channel ends a waiting send_wait() with ChannelClosed."""
        layer = await make_layer(capacity=1)
        channel = await layer.new_channel()
        await layer.send(channel, note(0))
        writer = await started(layer.send_wait(channel, note(1)))
        await layer.close_channel(channel)
        with pytest.raises(ChannelClosed):
            async with asyncio.timeout(DEADLINE):
                await writer

    @both_kinds
    async def test_expiry_makes_room(self, make_layer: MakeLayer, kind: str) -> None:
        """The place of a message that expires is a place."""
        layer = await make_layer(capacity=1, expiry=1.0)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        layer.expiry = 60.0
        async with asyncio.timeout(DEADLINE):
            await layer.send_wait(channel, note(1))
        assert await receive(layer, channel) == note(1)

    async def test_bad_input(self, make_layer: MakeLayer) -> None:
        """Names and messages are checked as by send()."""
        layer = await make_layer()
        with pytest.raises(TypeError):
            await layer.send_wait("so bad", note(1))
        with pytest.raises(TypeError, match="user"):
            await layer.send_wait("jobs", {"type": "test.value", "user": Plain()})
