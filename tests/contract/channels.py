"""The channels of one process: order, capacity, expiry, cancellation."""

import asyncio
import itertools
import re

import pytest
from channels.exceptions import ChannelFull, MessageTooLarge
from django.core.exceptions import ImproperlyConfigured

from tests.contract import (
    DEADLINE,
    MARKER,
    LetTimePass,
    MakeLayer,
    MakeSpecifiedLayer,
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
    steps,
)


class SpecifiedChannels:
    """First in, first out, at most once."""

    @both_kinds
    async def test_a_message_waits_for_its_reader(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """What is sent before anybody reads is received."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(1))
        assert await receive(layer, channel) == note(1)

    @both_kinds
    async def test_a_reader_waits_for_its_message(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """What is sent while somebody waits is received."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        reader = await started(receive(layer, channel))
        assert not reader.done()
        await layer.send(channel, note(1))
        assert await reader == note(1)

    @both_kinds
    async def test_order(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """One writer, one reader: as sent."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for message in notes(80):
            await layer.send(channel, message)
        assert await receive_many(layer, channel, 80) == notes(80)

    @both_kinds
    async def test_order_while_reading(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """The same when the reader reads meanwhile."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        reader = await started(receive_many(layer, channel, 80))
        for message in notes(80):
            await layer.send(channel, message)
        assert await reader == notes(80)

    @both_kinds
    async def test_each_message_goes_to_one_reader(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """Readers that wait together get one message each, none twice."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        readers = [await started(receive(layer, channel)) for _ in range(8)]
        for message in notes(8):
            await layer.send(channel, message)
        arrived = await every(readers)
        assert sorted(message["n"] for message in arrived) == list(range(8))
        await assert_nothing_waits(layer, channel)

    async def test_channels_are_apart(self, make_layer: MakeSpecifiedLayer) -> None:
        """A message is received on the channel it was sent to and on no other."""
        layer = await make_layer()
        first, second = await layer.new_channel(), await layer.new_channel()
        await layer.send(first, note(1))
        await layer.send("jobs", note(3))
        await layer.send(second, note(2))
        assert await receive(layer, second) == note(2)
        assert await receive(layer, first) == note(1)
        assert await receive(layer, "jobs") == note(3)
        for channel in (first, second, "jobs"):
            await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_capacity(self, make_layer: MakeSpecifiedLayer, kind: str) -> None:
        """A send to a channel that holds its capacity raises ChannelFull; each read makes room for one."""
        layer = await make_layer(capacity=3)
        channel = await channel_of(layer, kind)
        for message in notes(3):
            await layer.send(channel, message)
        with pytest.raises(ChannelFull):
            await layer.send(channel, note(3))
        assert await receive(layer, channel) == note(0)
        await layer.send(channel, note(4))
        with pytest.raises(ChannelFull):
            await layer.send(channel, note(5))
        assert [message["n"] for message in await receive_many(layer, channel, 3)] == [1, 2, 4]

    @both_kinds
    async def test_expiry(
        self, make_layer: MakeSpecifiedLayer, kind: str, let_time_pass: LetTimePass
    ) -> None:
        """A message that nobody read for `expiry` seconds is never delivered."""
        layer = await make_layer(expiry=0.8)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(1))
        await let_time_pass(1.0)
        reader = await started(receive(layer, channel))
        await layer.send(channel, note(2))
        assert await reader == note(2)

    @both_kinds
    async def test_receive_cancelled_leaves_the_channel(
        self, make_layer: MakeSpecifiedLayer, kind: str
    ) -> None:
        """A cancelled receive() does not end the channel: what comes later is received by the next one."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for n in range(3):
            reader = await started(layer.receive(channel))
            reader.cancel()
            assert await ended(reader) is None
            await layer.send(channel, note(n))
            assert await receive(layer, channel) == note(n)


class Channels(SpecifiedChannels):
    """What the design adds: names in two forms, cancellation at every point, expiry that frees places."""

    async def test_attributes(self, make_layer: MakeLayer) -> None:
        """The attributes of the specification are there."""
        layer = await make_layer(expiry=30, group_expiry=900, capacity=7)
        assert sorted(layer.extensions) == ["flush", "groups"]
        assert layer.ChannelFull is ChannelFull
        assert layer.MessageTooLarge is MessageTooLarge
        assert (layer.expiry, layer.group_expiry, layer.capacity) == (30, 900, 7)

    async def test_names_of_new_channels(self, make_layer: MakeLayer) -> None:
        """`<prefix>.<session id>!<local>`: the channels of one session share what is before the `!`."""
        layer = await make_layer()
        first, second = await layer.new_channel(), await layer.new_channel()
        assert first.split("!")[0] == second.split("!")[0]
        assert re.fullmatch(r"[A-Za-z0-9._-]+\.[A-Za-z0-9_-]+![A-Za-z0-9._-]+", first)

    async def test_new_channel_by_eight_at_once(self, make_layer: MakeLayer) -> None:
        """
        Concurrent first calls of new_channel() on a fresh layer give eight channels that deliver once each.
        """
        layer = await make_layer()
        channels = await every(layer.new_channel() for _ in range(8))
        assert len(set(channels)) == 8
        await every(layer.group_add("room", channel) for channel in channels)
        await layer.group_send("room", note(1))
        for n, channel in enumerate(channels):
            await layer.send(channel, note(100 + n))
        for n, channel in enumerate(channels):
            arrived = await receive_many(layer, channel, 2)
            assert sorted(message["n"] for message in arrived) == [1, 100 + n]
            await assert_nothing_waits(layer, channel)

    async def test_receive_by_the_part_up_to_the_mark(self, make_layer: MakeLayer) -> None:
        """receive() with the name up to and including the `!` gets the messages of every channel under it."""
        layer = await make_layer()
        first, second = await layer.new_channel(), await layer.new_channel()
        process = first[: first.index("!") + 1]
        await layer.send(first, note(1))
        assert await receive(layer, process) == note(1)
        reader = await started(receive(layer, process))
        await layer.send(second, note(2))
        assert await reader == note(2)
        await layer.send(process + "own.local-part", note(3))
        assert await receive(layer, process) == note(3)
        await layer.send(first, note(4))
        await layer.send(second, note(5))
        arrived = await receive_many(layer, process, 2)
        assert sorted(message["n"] for message in arrived) == [4, 5]

    async def test_both_forms_of_receive_at_once(self, make_layer: MakeLayer) -> None:
        """A reader by full name and one by the part up to `!` never both get a message."""
        layer = await make_layer()
        channel = await layer.new_channel()
        by_name = await started(layer.receive(channel))
        by_process = await started(layer.receive(channel[: channel.index("!") + 1]))
        await layer.send(channel, note(1))
        await layer.send(channel, note(2))
        arrived = await every([by_name, by_process])
        assert sorted(message["n"] for message in arrived) == [1, 2]

    async def test_a_local_part_of_ones_own(self, make_layer: MakeLayer) -> None:
        """
        The local part is the process's to choose: a name never given by new_channel() works under its
        prefix.
        """
        layer = await make_layer()
        channel = await layer.new_channel()
        own = channel[: channel.index("!") + 1] + "mine"
        await layer.send(own, note(1))
        assert await receive(layer, own) == note(1)
        await layer.group_add("room", own)
        await layer.group_send("room", note(2))
        assert await receive(layer, own) == note(2)

    async def test_full_channel_does_not_starve_its_neighbour(self, make_layer: MakeLayer) -> None:
        """Capacity counts per full name: a full channel leaves the others of its process alone."""
        layer = await make_layer(capacity=2)
        full, neighbour = await layer.new_channel(), await layer.new_channel()
        for message in notes(2):
            await layer.send(full, message)
        with pytest.raises(ChannelFull):
            await layer.send(full, note(2))
        await layer.send(neighbour, note(1))
        assert await receive(layer, neighbour) == note(1)

    @both_kinds
    async def test_capacity_by_glob_and_by_pattern(self, make_layer: MakeLayer, kind: str) -> None:
        """`channel_capacity` takes globs and compiled patterns; the first that matches decides."""
        layer = await make_layer(
            capacity=4,
            channel_capacity={re.compile(r"jo.s$"): 1, "jobs*": 3, "*!*": 2, re.compile(r".*!.*"): 3},
        )
        channel = await channel_of(layer, kind)
        capacity = 2 if kind == "specific" else 1
        for message in notes(capacity):
            await layer.send(channel, message)
        with pytest.raises(ChannelFull):
            await layer.send(channel, MARKER)
        for message in notes(3):
            await layer.send("jobs.more", message)
        with pytest.raises(ChannelFull):
            await layer.send("jobs.more", MARKER)
        for message in notes(4):
            await layer.send("others", message)
        with pytest.raises(ChannelFull):
            await layer.send("others", MARKER)

    @both_kinds
    async def test_capacity_that_is_set_later(self, make_layer: MakeLayer, kind: str) -> None:
        """A channel holds what `layer.capacity` says when a message comes, not what it said in the beginning."""
        layer = await make_layer(capacity=5)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        layer.capacity = 2
        await layer.send(channel, note(1))
        with pytest.raises(ChannelFull):
            await layer.send(channel, MARKER)
        layer.capacity = 3
        await layer.send(channel, note(2))
        with pytest.raises(ChannelFull, match="3 messages"):
            await layer.send(channel, MARKER)
        layer.capacity = 1
        assert await receive_many(layer, channel, 3) == notes(3)
        assert (layer.capacity, layer.get_capacity(channel)) == (1, 1)

    @both_kinds
    async def test_channel_capacity_that_is_set_later(self, make_layer: MakeLayer, kind: str) -> None:
        """`layer.channel_capacity` takes what CONFIG takes, and what `compile_capacities()` returns."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        patterns = {"*!*": 1, "jobs*": 1}
        for value in (patterns, layer.compile_capacities(patterns)):  # type: ignore[arg-type]
            layer.channel_capacity = value
            await layer.send(channel, note(0))
            with pytest.raises(ChannelFull):
                await layer.send(channel, MARKER)
            assert await receive(layer, channel) == note(0)
            layer.channel_capacity = None
            for message in notes(2):
                await layer.send(channel, message)
            assert await receive_many(layer, channel, 2) == notes(2)

    @both_kinds
    async def test_a_capacity_that_is_set_later_ends_the_waiting(
        self, make_layer: MakeLayer, kind: str
    ) -> None:
        """A send_wait() that waits in a full channel gets the place that a higher capacity makes."""
        layer = await make_layer(capacity=1)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        writer = await started(layer.send_wait(channel, note(1)))
        layer.capacity = 2
        async with asyncio.timeout(DEADLINE):
            await writer
        assert await receive_many(layer, channel, 2) == notes(2)

    @both_kinds
    async def test_expiry_that_is_set_later(
        self, make_layer: MakeLayer, kind: str, let_time_pass: LetTimePass
    ) -> None:
        """A message waits as long as `layer.expiry` says when it is sent."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(0))
        layer.expiry = 0.8
        assert await receive(layer, channel) == note(0)
        await layer.send(channel, note(1))
        await let_time_pass(1.0)
        layer.expiry = 60
        await layer.send(channel, note(2))
        assert await receive(layer, channel) == note(2)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("capacity", 0), ("expiry", -1), ("group_expiry", "1"), ("channel_capacity", {"a": 0})],
    )
    async def test_a_wrong_value_that_is_set_later(
        self, make_layer: MakeLayer, name: str, value: object
    ) -> None:
        """It is refused with the words that CONFIG would get, and changes nothing."""
        layer = await make_layer()
        before = getattr(layer, name)
        with pytest.raises(ImproperlyConfigured, match=name):
            setattr(layer, name, value)
        assert getattr(layer, name) == before

    async def test_a_prefix_cannot_be_set_later(self, make_layer: MakeLayer) -> None:
        """Names and subscriptions hang on it: it is refused, and not ignored."""
        layer = await make_layer()
        with pytest.raises(AttributeError, match="prefix"):
            layer.prefix = "other"  # type: ignore[misc]

    async def test_full_channel_names_itself(self, make_layer: MakeLayer) -> None:
        """ChannelFull says which channel is full."""
        layer = await make_layer(capacity=1)
        channel = await layer.new_channel()
        await layer.send(channel, note(1))
        with pytest.raises(ChannelFull, match=re.escape(channel)):
            await layer.send(channel, note(2))

    @both_kinds
    async def test_expired_messages_free_their_places(
        self, make_layer: MakeLayer, kind: str, let_time_pass: LetTimePass
    ) -> None:
        """A channel full of expired messages takes new ones."""
        layer = await make_layer(capacity=2, expiry=0.8)
        channel = await channel_of(layer, kind)
        for message in notes(2):
            await layer.send(channel, message)
        with pytest.raises(ChannelFull):
            await layer.send(channel, note(2))
        await let_time_pass(1.0)
        layer.expiry = 60.0
        for message in (note(3), note(4)):
            await layer.send(channel, message)
        assert await receive_many(layer, channel, 2) == [note(3), note(4)]

    @both_kinds
    async def test_expiry_counts_from_the_send(
        self, make_layer: MakeLayer, kind: str, let_time_pass: LetTimePass
    ) -> None:
        """Of two messages the older one expires first."""
        layer = await make_layer(expiry=1.6)
        channel = await channel_of(layer, kind)
        await layer.send(channel, note(1))
        await let_time_pass(1.0)
        await layer.send(channel, note(2))
        await let_time_pass(0.7)
        assert await receive(layer, channel) == note(2)

    @both_kinds
    @pytest.mark.parametrize("has_waited", [False, True], ids=["new", "waiting"])
    async def test_receive_cancelled_at_every_step(
        self, make_layer: MakeLayer, kind: str, has_waited: bool
    ) -> None:
        """Cancelled anywhere while its message is on the way, it or the next receive() gets it, once."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for turns in range(60):
            reader = asyncio.create_task(layer.receive(channel))
            if has_waited:
                # A round trip: the server has answered what was asked before it.
                await layer.group_send("nobody", MARKER)
            sender = asyncio.create_task(layer.send(channel, note(turns)))
            if has_waited:
                await sender
            await steps(turns)
            reader.cancel()
            await sender
            arrived = await ended(reader)
            if arrived is None:
                arrived = await receive(layer, channel)
            assert arrived == note(turns)
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_one_of_two_waiting_is_cancelled(self, make_layer: MakeLayer, kind: str) -> None:
        """A message meant for a reader that was cancelled meanwhile goes to the other one that waits."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for turns in range(40):
            first = await started(layer.receive(channel))
            second = await started(layer.receive(channel))
            await layer.send(channel, note(turns))
            await steps(turns)
            first.cancel()
            arrived = await ended(first)
            if arrived is None:
                arrived = await ended(second)
            else:
                second.cancel()
                assert await ended(second) is None
            assert arrived == note(turns)
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_polling_reader_under_load(self, make_layer: MakeLayer, kind: str) -> None:
        """
        A reader that polls with wait_for() loses nothing and gets nothing twice, however the timeouts fall.
        """
        layer = await make_layer(capacity=20)
        channel = await channel_of(layer, kind)
        count = 400
        arrived: list[int] = []
        # The last one is long enough on a busy machine too.
        timeouts = itertools.cycle([0.0002, 0.0005, 0.001, 0.0015, 0.003, 0.1])
        pauses = itertools.cycle([0, 7, 1, 25, 3, 60])

        async def poll() -> None:
            while len(arrived) < count:
                try:
                    message = await asyncio.wait_for(layer.receive(channel), next(timeouts))
                except TimeoutError:
                    continue
                arrived.append(message["n"])

        async def write() -> None:
            for message in notes(count):
                while True:
                    try:
                        await layer.send(channel, message)
                        break
                    except ChannelFull:
                        await steps(5)
                await steps(next(pauses))

        async with asyncio.timeout(2 * DEADLINE):
            await asyncio.gather(poll(), write())
        assert arrived == list(range(count))
        await assert_nothing_waits(layer, channel)

    @both_kinds
    async def test_send_cancelled(self, make_layer: MakeLayer, kind: str) -> None:
        """A cancelled send() has sent its message once or not at all, and the layer goes on."""
        layer = await make_layer()
        channel = await channel_of(layer, kind)
        for turns in range(0, 30, 3):
            sender = asyncio.create_task(layer.send(channel, note(turns)))
            await steps(turns)
            sender.cancel()
            await ended(sender)
            await layer.send(channel, MARKER)
            arrived = await receive(layer, channel)
            if arrived != MARKER:
                assert arrived == note(turns)
                assert await receive(layer, channel) == MARKER
        await assert_nothing_waits(layer, channel)
