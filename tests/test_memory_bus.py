"""The broker of `memory://`: what a reader gives back, capacities that differ, and what sessions do not share."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import AsyncIterator

import pytest
from channels.exceptions import ChannelFull

from channels_asyncq import AsyncQueueChannelLayer, sync
from channels_asyncq.bus.base import WAITS_SECONDS
from channels_asyncq.bus.memory import logs, members
from channels_asyncq.bus.memory.broker import Broker
from channels_asyncq.bus.memory.queues import MANY, Queues, Waiter
from channels_asyncq.exceptions import LayerClosed
from channels_asyncq.local import mailbox
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.messages.positions import Position
from tests.clock import Clock
from tests.contract import (
    DEADLINE,
    assert_nothing_waits,
    ended,
    eventually,
    every,
    layers,
    member_of,
    members_of,
    note,
    notes,
    queued,
    receive,
    receive_many,
    started,
)
from tests.sessions import bus_of, session_of


@pytest.fixture
async def memory_layer(prefix: str) -> AsyncIterator[AsyncQueueChannelLayer]:
    """A layer on `memory://`."""
    async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
        yield await make_layer()


def push(broker: Broker, payload: bytes, capacity: int, waiter: Waiter | None = None) -> None:
    broker.push("jobs", b"queue:jobs", Envelope(payload, "jobs", expires_at=float("inf")), capacity, waiter)


def has_place(broker: Broker, capacity: int, waiter: Waiter | None = None) -> bool:
    """Push, and tell whether it was taken."""
    try:
        push(broker, b"new", capacity, waiter)
    except ChannelFull:
        return False
    return True


def pop(broker: Broker, session_id: str, number: int) -> bytes | None:
    envelope = broker.pop("jobs", session_id, number)
    return None if envelope is None else envelope.payload


def test_given_back_to_an_empty_channel() -> None:
    """It is at the head again, and the channel holds as many as ever."""
    broker = Broker()
    push(broker, b"1", 3)
    assert pop(broker, "a", 1) == b"1"
    assert pop(broker, "b", 1) is None
    broker.give_back("jobs", b"queue:jobs", "a", 1)
    for payload in (b"2", b"3"):
        push(broker, payload, 3)
    with pytest.raises(ChannelFull):
        push(broker, b"4", 3)
    assert [pop(broker, "b", number) for number in (2, 3, 4, 5)] == [b"1", b"2", b"3", None]


def test_layers_of_other_capacities() -> None:
    """Each push goes by the capacity of its own layer."""
    broker = Broker()
    push(broker, b"1", 1)
    with pytest.raises(ChannelFull):
        push(broker, b"2", 1)
    push(broker, b"2", 2)
    with pytest.raises(ChannelFull):
        push(broker, b"3", 1)


def test_waiting_senders() -> None:
    """Nodes whose senders wait get places in the order in which they came; others leave them the last one."""
    broker = Broker()
    for payload in (b"1", b"2", b"3"):
        push(broker, payload, 3)
    first, second, third = Waiter("c", 1.0), Waiter("b", 2.0), Waiter("a", 3.0)
    assert not any(has_place(broker, 3, waiter) for waiter in (second, first, third))
    pop(broker, "r", 1)
    # One place.
    assert not has_place(broker, 3)
    assert not has_place(broker, 3, second)
    pop(broker, "r", 2)
    # Two places: the first two have them, and whoever does not wait has what is more than the last.
    assert not has_place(broker, 3, third)
    assert has_place(broker, 3, second)
    assert not has_place(broker, 3)
    assert has_place(broker, 3, first)
    pop(broker, "r", 3)
    pop(broker, "r", 4)
    assert has_place(broker, 3)
    assert not has_place(broker, 3)
    assert has_place(broker, 3, third)


def test_waiting_senders_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has given up, or has not asked again in its time, waits no more."""
    broker = Broker()
    clock = Clock()
    clock.put_into(monkeypatch, ["bus.memory"])
    push(broker, b"1", 1)
    gone, gives_up, there = Waiter("a", 1.0), Waiter("b", 2.0), Waiter("c", 3.0)
    assert not has_place(broker, 1, gone)
    clock.turn(WAITS_SECONDS)
    assert not has_place(broker, 1, gives_up)
    assert not has_place(broker, 1, there)
    pop(broker, "r", 1)
    assert not has_place(broker, 1, there)
    broker.stop_waiting("jobs", "b")
    assert has_place(broker, 1, there)


def test_expired_messages_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not wait, and channels that are used once and never read do not add up."""
    clock = Clock()
    clock.put_into(monkeypatch, ["bus.memory", "local"])
    queues = Queues()

    def push_to(channel: str, expiry: float) -> None:
        queues.push(channel, Envelope(b"m", channel, expires_at=clock.now + expiry), 2, None)

    push_to("read", 60)
    push_to("half", 10)
    push_to("half", 60)
    push_to("unread", 10)
    assert queues.lengths() == {"read": 1, "half": 2, "unread": 1}
    clock.turn(10)
    assert queues.lengths() == {"read": 1, "half": 1}
    for number in range(10 * MANY):
        push_to(f"job-{number}", 1)
        clock.turn(1)
        assert len(queues.by_channel) <= MANY
    for number in range(10 * MANY):
        push_to(f"task-{number}", 1)
    assert len(queues.lengths()) == 10 * MANY
    clock.turn(1)
    assert not queues.lengths()
    for number in range(10 * MANY):
        push_to(f"late-{number}", 1)
        clock.turn(1)
        assert len(queues.by_channel) <= MANY


def test_claims_of_channels_that_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim is kept until its message expires, so channels that are used and read once do not add up."""
    clock = Clock()
    clock.put_into(monkeypatch, ["bus.memory", "local"])
    queues = Queues()
    for number in range(10 * MANY):
        channel = f"answer-{number}"
        queues.push(channel, Envelope(b"m", channel, expires_at=clock.now + 10), 1, None)
        claimed = queues.pop(channel, "reader", number)
        assert claimed is not None
        assert queues.pop(channel, "reader", number) is claimed
        clock.turn(1)
        assert max(len(queues.by_channel), len(queues.claimed)) <= MANY
    assert queues.give_back(channel, "reader", number)
    assert queues.lengths() == {channel: 1}


def test_places_in_line_of_sessions_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that does not ask again is forgotten, also when nobody else sends to its channel."""
    clock = Clock()
    clock.put_into(monkeypatch, ["bus.memory", "local"])
    queues = Queues()
    envelope = Envelope(b"m", "jobs", expires_at=float("inf"))
    queues.push("jobs", envelope, 1, None)
    with pytest.raises(ChannelFull):
        queues.push("jobs", envelope, 1, Waiter("gone", clock.now))
    assert queues.lengths() == {"jobs": 1} and queues.waiting.by_channel
    clock.turn(WAITS_SECONDS)
    assert queues.lengths() == {"jobs": 1} and not queues.waiting.by_channel


def test_memberships_of_groups_that_nobody_sends_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memberships of normal channels that lapsed are dropped, so groups that are used once do not add up."""
    clock = Clock()
    clock.put_into(monkeypatch, ["bus.memory"])
    groups = members.Members()
    groups.add("kept", "jobs", float("inf"))
    for number in range(10 * members.MANY):
        groups.add(f"order-{number}", "jobs", 1)
        clock.turn(1)
        assert len(groups.by_group) <= members.MANY + 1
    for number in range(10 * members.MANY):
        groups.add("kept", f"jobs-{number}", 1)
        clock.turn(1)
        assert sum(map(len, groups.by_group.values())) <= members.MANY + 1
    assert groups.of("kept") == ["jobs"]


async def test_sessions_count_their_own_bytes(prefix: str) -> None:
    """A group with members in several sessions: each session's bytes are those that wait in its own channels."""
    async with layers(hosts=["memory://"], prefix=prefix, max_buffered_bytes=1000) as make_layer:
        here = [await make_layer() for _ in range(3)]
        members = [(layer, member) for layer in here for member in await members_of(layer, "room", 2)]
        for number in range(300):
            await here[number % 3].group_send("room", note(number))
            # Every session is the first, the second and the last to have read it.
            for layer, member in members[number % 6 :] + members[: number % 6]:
                assert await receive(layer, member) == note(number)
        for number in range(3):
            await here[0].group_send("room", note(number))
        for layer, member in members:
            assert [(await receive(layer, member))["n"] for _ in range(3)] == [0, 1, 2]
        assert all(not layer.statistics().dropped for layer in here)


async def test_sessions_hold_no_more_than_their_bytes(prefix: str) -> None:
    """What waits in one session makes another one hold neither more nor less."""
    async with layers(hosts=["memory://"], prefix=prefix, max_buffered_bytes=1000) as make_layer:
        here = [await make_layer() for _ in range(2)]
        members = [(layer, member) for layer in here for member in await members_of(layer, "room", 2)]
        message = {"type": "m", "text": "x" * 280}
        for _ in range(5):
            await here[0].group_send("room", message)
        # Nobody reads before all of them have arrived: an empty channel takes more.
        await eventually(lambda: all(layer.statistics().dropped == {"overflow": 4} for layer in here))
        for layer, member in members:
            for _ in range(3):
                assert await receive(layer, member) == message
            assert not [name for name, _ in layer.statistics().queued if name == member]


async def test_what_was_sent_before_a_group_was_joined_again(prefix: str) -> None:
    """Who leaves and joins while a message waits for the event loop does not get it, as on a server."""
    async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
        layer, other = await make_layer(), await make_layer()
        [member] = await members_of(layer, "room", 1)
        await other.new_channel()
        session_of(layer).hub._slices.run(iter([True] * 20))  # a delivery to many is unfinished
        await other.group_send("room", note(1))
        await layer.group_discard("room", member)
        await layer.group_add("room", member)
        await other.group_send("room", note(2))
        assert await receive(layer, member) == note(2)
        await other.group_send("room", note(3))
        assert await receive(layer, member) == note(3)


async def test_wake_up_for_a_loop_that_has_too_much(
    memory_layer: AsyncQueueChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A reader of a normal channel is woken, however many messages wait for its loop; only those beyond the limit
    count as dropped.
    """
    monkeypatch.setattr(mailbox, "LIMIT", 3)
    [channel] = await members_of(memory_layer, "room", 1)
    reading = await started(memory_layer.receive("jobs"))

    def send() -> None:
        for message in notes(5):
            sync.group_send("room", message, memory_layer)
        for message in notes(5):
            sync.send("jobs", message, memory_layer)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()  # and this loop stands still
    assert await ended(reading) == note(0)
    assert await receive_many(memory_layer, "jobs", 4) == notes(5)[1:]
    assert await receive_many(memory_layer, channel, 3) == notes(3)
    assert memory_layer.statistics().dropped == {"overflow": 2}


class TestLogs:
    """The logs that a broker keeps for channels that come back."""

    async def test_none_before_the_first_position(self, prefix: str) -> None:
        """Nothing is kept, and no message has a position, before somebody asks; from then on everything is."""
        async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
            layer = await make_layer()
            follower = layer.subscribe("room")
            channel = (await members_of(layer, "lobby", 1))[0]
            broker = bus_of(layer)._broker  # type: ignore[attr-defined]
            await layer.group_send("lobby", note(0))
            assert broker._logs.epoch == "" and layer.statistics().replay.records == 0
            async with follower:
                assert re.fullmatch("[0-9a-f]{8}", broker._logs.epoch)
                await layer.group_send("lobby", note(1))
                replay = layer.statistics().replay
                assert replay.records == 1 and replay.bytes > 0 and replay.evicted == replay.reads == 0
            assert await receive_many(layer, channel, 2) == notes(2)

    async def test_counted_by_one_session(self, prefix: str) -> None:
        """What a namespace holds is not counted again by each layer, and not forgotten when one closes."""
        async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
            first, second = await make_layer(), await make_layer()
            for layer in (first, second):
                await layer.new_channel()
                await layer.position("room")
            await first.group_send("room", note(1))
            assert first.statistics().replay.records + second.statistics().replay.records == 1
            await first.close()
            assert second.statistics().replay.records == 1

    async def test_a_flush_begins_another_epoch(self, memory_layer: AsyncQueueChannelLayer) -> None:
        """Nothing is held after it, and places from before are of another epoch, also where messages wait."""
        before = await memory_layer.position("room")
        await memory_layer.group_send("room", note(1))
        await memory_layer.flush()
        await memory_layer.new_channel()
        assert memory_layer.statistics().replay.records == memory_layer.statistics().replay.bytes == 0
        after = await memory_layer.position("room")
        [old], [new] = (Position.parse(text).places.values() for text in (before, after))
        assert old.epoch != new.epoch and new.position > old.position
        log = bus_of(memory_layer).log
        assert (log.epoch_at(0, old.position), log.epoch_at(0, new.position + 1)) == ("", new.epoch)

    async def test_bounds(self, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Messages, seconds and bytes are bounded as messages come, and what was dropped is `trimmed`."""
        clock = Clock()
        clock.put_into(monkeypatch, ["bus.memory"])
        recovery = {"messages": 100, "seconds": 10}
        async with layers(hosts=["memory://"], prefix=prefix, partitions=1, recovery=recovery) as make_layer:
            layer = await make_layer()
            channel = await layer.new_channel()
            positions = []
            for n in range(150):
                positions.append(await layer.position("room"))
                await layer.group_send("room", note(n))
            replay = layer.statistics().replay
            assert (replay.records, replay.evicted) == (100, 50)
            for position, expected in ((positions[49], "trimmed"), (positions[50], "")):
                result = await layer.group_resume("room", channel, since=position)
                assert (result.reason, len(result.messages)) == (expected, 0 if expected else 100)
            clock.turn(9)
            await layer.group_send("room", note(150))
            late = await layer.position("room")
            clock.turn(2)
            result = await layer.group_resume("room", channel, since=positions[149])
            assert result.reason == "trimmed" and layer.statistics().replay.records == 1
            # A place from which nothing is gone is good, however old it is.
            clock.turn(1000)
            result = await layer.group_resume("room", channel, since=late)
            assert result.recovered and result.messages == []
            assert layer.statistics().replay.evicted == 51
            monkeypatch.setattr(logs, "MOST_BYTES", 5000)
            for _ in range(10):
                await layer.group_send("room", {"type": "test.note", "text": "x" * 1000})
            assert layer.statistics().replay.bytes <= 5000
            assert layer.statistics().replay.records == 3

    async def test_layers_of_other_settings(self, prefix: str) -> None:
        """A group is logged if one layer says so; positions from before that layer's first do not count."""
        async with layers(hosts=["memory://"], prefix=prefix, partitions=1) as make_layer:
            without = await make_layer(recovery=None)
            excluding, logging = await make_layer(recovery={"exclude": ["room"]}), await make_layer()
            old = await excluding.position("lobby")
            await without.group_send("room", note(1))
            channel = await logging.new_channel()
            position = await logging.position("room")
            await without.group_send("room", note(2))
            await excluding.group_send("room", note(3))
            result = await logging.group_resume("room", channel, since=position)
            assert result.messages == [note(2), note(3)]
            result = await logging.group_resume("room", channel, since=old)
            assert result.reason == "server_changed"

    async def test_what_waits_in_the_mailbox(self, prefix: str) -> None:
        """It comes live, and is not in the replay; what was taken is in the replay and does not come."""
        async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
            layer, other = await make_layer(), await make_layer()
            [member, channel] = [await member_of(layer), await layer.new_channel()]
            await other.new_channel()
            await layer.group_resume("lobby", channel, since=await other.position("lobby"))
            position = await other.position("room")
            await other.group_send("room", note(1))
            assert await receive(layer, member) == note(1)
            busy(layer)
            await every(other.group_send("room", note(n)) for n in (2, 3))
            replay = await layer.group_resume("room", channel, since=position)
            assert replay.messages == [note(1)] and not bus_of(layer)._subscriber.mailbox.is_empty  # type: ignore[attr-defined]
            assert await receive_many(layer, channel, 2) == [note(2), note(3)]
            assert await receive_many(layer, member, 2) == [note(2), note(3)]
            again, result = await layer.new_channel(), replay.position
            replay = await layer.group_resume("room", again, since=result)
            assert replay.messages == [note(2), note(3)]

    async def test_what_waits_and_was_seen_elsewhere(self, prefix: str) -> None:
        """Messages up to the position wait in the mailbox of a session that lags: they do not come again."""
        async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
            layer, other = await make_layer(), await make_layer()
            [member, channel] = [await member_of(layer), await layer.new_channel()]
            await other.new_channel()
            await layer.group_resume("lobby", channel, since=await other.position("lobby"))
            busy(layer)
            await other.group_send("room", note(1))
            position = await other.position("room")
            await other.group_send("room", note(2))
            replay = await layer.group_resume("room", channel, since=position)
            assert replay.messages + await receive_many(layer, channel, 1 - len(replay.messages)) == [note(2)]
            assert await receive_many(layer, member, 2) == [note(1), note(2)]
            await assert_nothing_waits(layer, channel)

    async def test_what_waits_from_before_the_logs(self, prefix: str) -> None:
        """Messages from before the first position, which no log has, do not come behind it."""
        async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
            layer, other = await make_layer(), await make_layer()
            [member, channel] = [await member_of(layer), await layer.new_channel()]
            await other.new_channel()
            busy(layer)
            await other.group_send("room", note(1))
            position = await other.position("room")
            await other.group_send("room", note(2))
            replay = await layer.group_resume("room", channel, since=position)
            assert replay.messages + await receive_many(layer, channel, 1 - len(replay.messages)) == [note(2)]
            await assert_nothing_waits(layer, channel)
            assert await receive_many(layer, member, 2) == [note(1), note(2)]

    @pytest.mark.parametrize("was_member", [True, False])
    async def test_a_topic_that_is_wanted_while_others_wait(self, prefix: str, was_member: bool) -> None:
        """What the session drops, or never got, as it was not subscribed then, is in the replay."""
        async with layers(hosts=["memory://"], prefix=prefix, partitions=1) as make_layer:
            layer, other = await make_layer(), await make_layer()
            lobby, channel = await member_of(layer, "lobby"), await layer.new_channel()
            await other.new_channel()
            position = await other.position("room")
            if was_member:
                await layer.group_add("room", channel)
            busy(layer)
            await other.group_send("lobby", note(1))
            await other.group_send("room", note(2))
            await layer.group_discard("room", channel)
            await other.group_send("room", note(3))
            replay = await layer.group_resume("room", channel, since=position)
            rest = await receive_many(layer, channel, 2 - len(replay.messages))
            assert replay.messages + rest == [note(2), note(3)]
            await assert_nothing_waits(layer, channel)
            assert await receive(layer, lobby) == note(1)

    async def test_more_than_the_mailbox_holds(
        self, memory_layer: AsyncQueueChannelLayer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A subscription gets from the log what found no place; so does a channel that comes back meanwhile."""
        monkeypatch.setattr(mailbox, "LIMIT", 3)
        position = await memory_layer.position("room")
        channel = await memory_layer.new_channel()
        async with memory_layer.subscribe("room", since=position) as subscription, asyncio.timeout(DEADLINE):

            def send() -> None:
                for message in notes(10):
                    sync.group_send("room", message, memory_layer)

            thread = threading.Thread(target=send)
            thread.start()
            thread.join()  # and this loop stands still
            assert memory_layer.statistics().dropped == {"overflow": 7}
            replay = await memory_layer.group_resume("room", channel, since=position)
            assert replay.messages == notes(10)
            assert [await anext(subscription) for _ in range(10)] == notes(10)
            await memory_layer.group_send("room", note(10))
            assert await anext(subscription) == await receive(memory_layer, channel) == note(10)

    async def test_envelopes_of_its_own(self, prefix: str) -> None:
        """No session, and no second resume, gets an envelope that another one decodes or counts."""
        async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
            here = [await make_layer(), await make_layer()]
            members = [await member_of(layer) for layer in here]
            [place] = (await bus_of(here[0]).log.ends([0])).values()
            await here[0].group_send("room", note(1))
            await eventually(lambda: queued(here[1], members[1]) == 1, "the message")
            topic = session_of(here[0]).resumer.topic("room")
            found = [bus_of(layer).log.since(topic, place)[0] for layer in (*here, here[0])]
            for layer, member in zip(here, members, strict=True):
                envelope = session_of(layer).hub.channels.open(member).take()
                assert envelope is not None
                found.append(envelope)
            assert len({id(envelope) for envelope in found}) == 5
            assert len({(envelope.position, envelope.payload) for envelope in found}) == 1

    async def test_a_clock_that_is_set_back(self, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Positions go on: nothing is missed, and nothing comes twice."""
        times = iter([10**18, 10**18 + 5 * 10**6, 10**18 - 3600 * 10**9, 10**18 + 6 * 10**6])
        monkeypatch.setattr(logs, "time_ns", lambda: next(times))
        async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
            layer = await make_layer()
            channel = await layer.new_channel()
            position = await layer.position("room")
            for n in range(3):
                await layer.group_send("room", note(n))
                replay = await layer.group_resume("room", channel, since=position)
                assert replay.messages == [note(n)]
                position = replay.position
        assert next(times, None) is None

    async def test_closed_while_it_reads(self, prefix: str) -> None:
        """A layer that closes while a resume waits for the mailbox ends it."""
        async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
            layer, other = await make_layer(), await make_layer()
            channel = (await member_of(layer), await layer.new_channel())[1]
            await other.new_channel()
            await other.position("room")
            session_of(layer).hub._slices.run(itertools.repeat(True))
            await other.group_send("room", note(1))
            position = await other.position("room")
            task = await started(layer.group_resume("room", channel, since=position))
            assert not task.done()
            await layer.close()
            with pytest.raises(LayerClosed):
                await ended(task)


def busy(layer: AsyncQueueChannelLayer) -> None:
    """Have a delivery to many be unfinished: what comes waits in the mailbox for some turns of the loop."""
    session_of(layer).hub._slices.run(iter([True] * 20))
