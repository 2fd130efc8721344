"""Channels across processes, which in one loop are layers that share a prefix."""

import asyncio
import itertools

import pytest
from channels.exceptions import ChannelFull

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.exceptions import ChannelClosed, ChannelLayerError
from tests.contract import (
    DEADLINE,
    MARKER,
    MakeLayer,
    assert_nothing_waits,
    both_kinds,
    channel_of,
    dropped,
    ended,
    eventually,
    every,
    members_of,
    note,
    notes,
    receive,
    receive_many,
    short,
    started,
    steps,
    time_passes,
)
from tests.contract.messages import BEYOND_THE_SPECIFICATION


class SharedChannels:
    """Channels across processes."""

    async def test_send_to_a_channel_of_another_process(self, make_layer: MakeLayer) -> None:
        """A specific channel is reached from any process, in order."""
        reader, writer = await make_layer(), await make_layer()
        channel = await reader.new_channel()
        for message in notes(50):
            await writer.send(channel, message)
        assert await receive_many(reader, channel, 50) == notes(50)

    async def test_a_channel_is_reached_as_soon_as_it_has_a_name(self, make_layer: MakeLayer) -> None:
        """The first channel of a fresh process is reachable when new_channel() has returned."""
        writer = await make_layer()
        for n in range(10):
            reader = await make_layer()
            channel = await reader.new_channel()
            await writer.send(channel, note(n))
            assert await receive(reader, channel) == note(n)

    @pytest.mark.parametrize(
        ("value", "arrives_as"),
        [case for case in BEYOND_THE_SPECIFICATION if case[1] is not None],
        ids=short,
    )
    async def test_values_arrive_as_they_do_locally(
        self, make_layer: MakeLayer, value: object, arrives_as: object
    ) -> None:
        """Local and remote delivery give equal values of equal types."""
        reader, writer = await make_layer(), await make_layer()
        channel = await reader.new_channel()
        await reader.group_add("room", channel)
        message = {"type": "test.value", "value": value}
        await writer.send(channel, message)
        remote = await receive(reader, channel)
        await writer.group_send("room", message)
        remote_group = await receive(reader, channel)
        await writer.send("jobs", message)
        remote_normal = await receive(reader, "jobs")
        await reader.send(channel, message)
        local = await receive(reader, channel)
        for arrived in (remote, remote_group, remote_normal, local):
            assert arrived == {"type": "test.value", "value": arrives_as}
            assert type(arrived["value"]) is type(arrives_as)

    async def test_normal_channel_has_one_reader_per_message(self, make_layer: MakeLayer) -> None:
        """Of all readers in all processes exactly one gets each message."""
        layers = [await make_layer() for _ in range(3)]
        arrived: list[int] = []

        async def work(layer: AsyncQueueChannelLayer) -> None:
            while True:
                arrived.append((await layer.receive("jobs"))["n"])

        workers = [await started(work(layer)) for layer in layers for _ in range(2)]
        for n in range(200):
            await layers[n % 3].send_wait("jobs", note(n))
        await eventually(lambda: len(arrived) >= 200, "the last job")
        for worker in workers:
            worker.cancel()
            await ended(worker)
        assert sorted(arrived) == list(range(200))
        await assert_nothing_waits(layers[0], "jobs")

    async def test_normal_channel_waits_for_its_reader(self, make_layer: MakeLayer) -> None:
        """What was sent before the reader's process came is received by it, in order."""
        writer = await make_layer()
        for message in notes(20):
            await writer.send("jobs", message)
        await writer.close()
        reader = await make_layer()
        assert await receive_many(reader, "jobs", 20) == notes(20)

    async def test_normal_channel_expires_for_all(self, make_layer: MakeLayer) -> None:
        """A message expires for every process, by the `expiry` of its sender."""
        writer, reader = await make_layer(expiry=0.3), await make_layer()
        await writer.send("jobs", note(1))
        await time_passes(0.5)
        await assert_nothing_waits(reader, "jobs")

    async def test_normal_channel_is_full_for_all(self, make_layer: MakeLayer) -> None:
        """The capacity of a normal channel counts the messages of every process; expiry frees the places."""
        first, second = await make_layer(capacity=3, expiry=1.0), await make_layer(capacity=3, expiry=1.0)
        for layer in (first, second):
            await layer.group_send("room", MARKER)  # connecting takes time of those that are to be counted
        for layer in (first, second, first):
            await layer.send("jobs", note(1))
        for layer in (first, second):
            with pytest.raises(ChannelFull):
                await layer.send("jobs", note(2))
        await time_passes(1.2)
        second.expiry = 60.0
        for message in notes(3):
            await second.send("jobs", message)
        assert await receive_many(first, "jobs", 3) == notes(3)

    async def test_capacity_is_counted_at_once(self, make_layer: MakeLayer) -> None:
        """Concurrent sends of two processes to a channel of capacity 10: exactly ten are taken."""
        layers = [await make_layer(capacity=10) for _ in range(2)]
        async with asyncio.timeout(DEADLINE):
            results = await asyncio.gather(
                *(layers[n % 2].send("jobs", note(n)) for n in range(40)), return_exceptions=True
            )
        taken = [n for n, result in enumerate(results) if result is None]
        assert len(taken) == 10
        assert all(isinstance(result, ChannelFull) for result in results if result is not None)
        arrived = await receive_many(layers[0], "jobs", 10)
        assert sorted(message["n"] for message in arrived) == taken

    async def test_waiting_for_room_made_by_another_process(self, make_layer: MakeLayer) -> None:
        """send_wait() to a normal channel sees the room that another process's reader makes."""
        writer, reader = await make_layer(capacity=1), await make_layer(capacity=1)
        await writer.send("jobs", note(0))
        waits = await started(writer.send_wait("jobs", note(1)))
        assert await receive(reader, "jobs") == note(0)
        await every([waits])
        assert await receive(reader, "jobs") == note(1)

    async def test_writers_of_two_processes(self, make_layer: MakeLayer) -> None:
        """Whoever came first gets the place, also if the other one's process looks more often by now."""
        first, second = await make_layer(capacity=1), await make_layer(capacity=1)
        await first.send("jobs", note(0))
        writers = [await started(first.send_wait("jobs", note(1)))]
        await time_passes(0.2)
        writers.append(await started(second.send_wait("jobs", note(2))))
        await time_passes(0.01)
        received = await receive_many(second, "jobs", 3)
        await every(writers)
        if first.statistics().reconnects:  # it may have been away when a place came free
            received.sort(key=lambda message: message["n"])
        assert received == notes(3)

    async def test_writer_among_senders_that_do_not_wait(self, make_layer: MakeLayer) -> None:
        """A writer that waits gets a place, though another process fills each that comes free at once."""
        writer, sender = await make_layer(capacity=2), await make_layer(capacity=2)
        for message in notes(2):
            await sender.send("jobs", message)
        waits = await started(writer.send_wait("jobs", MARKER))
        await writer.group_send("nobody", MARKER)  # a round trip
        async with asyncio.timeout(DEADLINE):
            while not waits.done():
                sends = [sender.send("jobs", note(3)) for _ in range(4)]
                # Written at once: what is read is replaced before anybody else has a turn.
                await asyncio.gather(sender.receive("jobs"), *sends, return_exceptions=True)
        await waits

    async def test_send_wait_for_a_channel_of_another_process(self, make_layer: MakeLayer) -> None:
        """Nobody can wait for room in another process's channel: an error that says so."""
        reader, writer = await make_layer(), await make_layer()
        channel = await reader.new_channel()
        with pytest.raises(ChannelLayerError, match="another"):
            async with asyncio.timeout(DEADLINE):
                await writer.send_wait(channel, note(1))
        await assert_nothing_waits(reader, channel)

    async def test_polling_workers_in_two_processes(self, make_layer: MakeLayer) -> None:
        """Workers that poll with wait_for() lose no job and do none twice."""
        layers = [await make_layer() for _ in range(2)]
        count = 300
        arrived: list[int] = []
        # The last one is long enough on a busy machine too.
        timeouts = itertools.cycle([0.0002, 0.0007, 0.001, 0.002, 0.004, 0.0015, 0.003, 0.1])

        async def poll(layer: AsyncQueueChannelLayer) -> None:
            while len(arrived) < count:
                try:
                    message = await asyncio.wait_for(layer.receive("jobs"), next(timeouts))
                except TimeoutError:
                    continue
                arrived.append(message["n"])

        async def write() -> None:
            for n in range(count):
                await layers[n % 2].send_wait("jobs", note(n))
                await steps(n % 40)

        async with asyncio.timeout(2 * DEADLINE):
            await asyncio.gather(write(), *(poll(layer) for layer in layers for _ in range(2)))
        assert sorted(arrived) == list(range(count))
        await assert_nothing_waits(layers[0], "jobs")

    @pytest.mark.parametrize(("overflow", "kept"), [("drop_newest", [0, 1, 2]), ("drop_oldest", [7, 8, 9])])
    async def test_overflow_of_a_channel_of_another_process(
        self, make_layer: MakeLayer, overflow: str, kept: list[int]
    ) -> None:
        """The sender sees nothing; the receiver keeps the oldest or the newest and counts the rest."""
        reader, writer = await make_layer(capacity=3, overflow=overflow), await make_layer()
        channel = await reader.new_channel()
        for message in notes(10):
            await writer.send(channel, message)
        await eventually(lambda: dropped(reader) == 7, "the seventh drop")
        assert [message["n"] for message in await receive_many(reader, channel, 3)] == kept
        await assert_nothing_waits(reader, channel)

    async def test_a_flood_of_drops_is_not_one_of_log_lines(
        self, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Hundreds of messages dropped for one reason are a few lines in the log, with an event code."""
        reader, writer = await make_layer(capacity=1), await make_layer()
        channel = await reader.new_channel()
        for message in notes(300):
            await writer.send(channel, message)
        await eventually(lambda: dropped(reader) == 299, "the last drop")
        lines = [record for record in caplog.records if record.name == "channels_asyncq.loss"]
        assert 1 <= len(lines) <= 5
        assert all(getattr(line, "code", "").startswith("loss.") for line in lines)

    async def test_overflow_closes_the_channel(self, make_layer: MakeLayer) -> None:
        """With `overflow="close"` a channel that would lose a message is closed instead."""
        reader, writer = await make_layer(capacity=3, overflow="close"), await make_layer()
        channel, neighbour = await members_of(reader, "room", 2)
        for message in notes(4):
            await writer.send(channel, message)
        await eventually(lambda: dropped(reader) > 0, "the overflow")
        with pytest.raises(ChannelClosed):
            await receive_many(reader, channel, 4)
        with pytest.raises(ChannelClosed):
            await reader.send(channel, note(5))
        await writer.group_send("room", note(6))
        assert await receive(reader, neighbour) == note(6)

    @both_kinds
    @pytest.mark.usefixtures("patient")
    async def test_burst_to_one_channel(self, make_layer: MakeLayer, kind: str) -> None:
        """32 sends in flight to one channel of capacity 100 whose reader keeps up: it misses none of 2000."""
        asyncio.get_running_loop().set_debug(False)
        reader, writer = await make_layer(capacity=100), await make_layer(capacity=100)
        channel = await channel_of(reader, kind)
        numbers = iter(range(2000))

        async def read() -> list[int]:
            arrived = []
            for _ in range(2000):
                arrived.append((await receive(reader, channel))["n"])
                await steps(1)
            return arrived

        async def write() -> None:
            for n in numbers:
                if kind == "specific":
                    await writer.send(channel, note(n))
                else:
                    await writer.send_wait(channel, note(n))

        reading = asyncio.create_task(read())
        await asyncio.gather(*(write() for _ in range(32)))
        (arrived,) = await every([reading])
        assert sorted(arrived) == list(range(2000))
        assert dropped(reader) == 0

    async def test_a_channel_whose_process_is_gone(self, make_layer: MakeLayer) -> None:
        """A send to a channel that nobody reads any more is no error."""
        gone, writer = await make_layer(), await make_layer()
        channel = await gone.new_channel()
        await gone.close()
        async with asyncio.timeout(DEADLINE):
            await writer.send(channel, note(1))
