"""
The contract of a bus: a class of rules for each protocol of `bus.base`, for the bus in memory and that of Redis.

The fixture `make_session` makes what stands on a bus: it records what it receives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest
from channels.exceptions import ChannelFull

from channels_asyncq.bus.base import Bus, ChannelRoute, NotReplayed
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.envelopes import CONTROL, Envelope
from channels_asyncq.messages.positions import Place, order_of
from channels_asyncq.names import Topic, Topics
from tests.contract import DEADLINE, eventually, every, steps


class BusSession(Protocol):
    """A session as a bus sees it, and what it got."""

    bus: Bus
    topics: Topics
    session_id: str
    takes: bool
    arrived: list[tuple[bytes, Envelope]]
    woken: list[bytes]


MakeSession = Callable[[], Awaitable[BusSession]]


def payload(number: int) -> bytes:
    return Codec().encode({"type": "test.note", "n": number})


def numbers(session: BusSession) -> list[int]:
    """The numbers of the messages that a session got, in order."""
    return [envelope.message["n"] for _, envelope in session.arrived if envelope.message is not None]


async def joined(session: BusSession, group: str = "room") -> None:
    topic = session.topics.group(group).topic
    session.bus.pubsub.subscribe(topic)
    await session.bus.pubsub.confirmed(topic)
    assert session.bus.pubsub.is_confirmed(topic)


async def popped(session: BusSession, channel: str, number: int) -> Any:
    answer = session.bus.queues.pop(channel, number)
    assert answer is not None
    envelope = await answer
    return None if envelope is None else Codec().decode(envelope.payload)["n"]


def number_in(envelope: Envelope) -> int:
    number: int = Codec().decode(envelope.payload)["n"]
    return number


async def behind(session: BusSession, topic: Topic, place: Place) -> list[Envelope]:
    """The messages of a topic behind a place, after the reads that they need."""
    log, has_read = session.bus.log, False
    async with asyncio.timeout(DEADLINE):
        while not log.has(topic, place, has_read=has_read):
            await log.read({topic.partition: place})
            has_read = True
    return log.since(topic, place)


class PubSubRules:
    """`PubSub`: topics, inboxes and groups."""

    async def test_group_reaches_every_session_once_and_in_order(self, make_session: MakeSession) -> None:
        """A message to a group arrives at each session that is subscribed, the sender's too."""
        sender, other = await make_session(), await make_session()
        await joined(sender)
        await joined(other)
        route = sender.bus.pubsub.group_route("room")
        assert route.topic == sender.topics.group("room").topic
        for number in range(50):
            assert not await route.send(payload(number), ())
        for session in (sender, other):
            await eventually(lambda: len(session.arrived) >= 50, "the messages")  # noqa: B023
            assert numbers(session) == list(range(50))

    async def test_excluded_channels_travel_along(self, make_session: MakeSession) -> None:
        """The names that a send excludes arrive with the envelope."""
        session = await make_session()
        await joined(session)
        await session.bus.pubsub.group_route("room").send(payload(1), ("specific.a!b",))
        await eventually(lambda: session.arrived, "the message")
        [(_, envelope)] = session.arrived
        assert list(envelope.excluded) == ["specific.a!b"]

    async def test_unsubscribed_topic_is_silent(self, make_session: MakeSession) -> None:
        """Nothing arrives of a topic after `unsubscribe()`, and of the others everything."""
        session = await make_session()
        await joined(session)
        await joined(session, "lobby")
        session.bus.pubsub.unsubscribe(session.topics.group("room").topic)
        assert not session.bus.pubsub.is_confirmed(session.topics.group("room").topic)
        await session.bus.pubsub.group_route("room").send(payload(1), ())
        await session.bus.pubsub.group_route("lobby").send(payload(2), ())
        await eventually(lambda: session.arrived, "the message")
        assert numbers(session) == [2]

    async def test_inbox_of_another_session(self, make_session: MakeSession) -> None:
        """A channel's route, `publish()` and `post()` lead to the inbox of the session that owns it."""
        sender, owner = await make_session(), await make_session()
        inbox = owner.topics.inbox(owner.session_id)
        owner.bus.pubsub.subscribe(inbox)
        await owner.bus.pubsub.confirmed(inbox)
        channel = f"specific.{owner.session_id}!x"
        await sender.bus.pubsub.channel_route(channel, owner.session_id).send(payload(1))
        assert await sender.bus.pubsub.publish(inbox, channel, payload(2), CONTROL) == 1
        sender.bus.pubsub.post(inbox, channel, payload(3), CONTROL)
        await eventually(lambda: len(owner.arrived) >= 3, "the messages")
        assert [(envelope.target, envelope.flags & CONTROL) for _, envelope in owner.arrived] == [
            (channel, 0),
            (channel, CONTROL),
            (channel, CONTROL),
        ]

    async def test_what_is_not_taken_is_offered_again(self, make_session: MakeSession) -> None:
        """An envelope that the session refuses is offered again after `resume()`, before those behind it."""
        session = await make_session()
        await joined(session)
        session.takes = False
        route = session.bus.pubsub.group_route("room")
        sends = [asyncio.ensure_future(_sent(route.send(payload(number), ()))) for number in range(3)]
        await asyncio.sleep(0)
        session.takes = True
        while len(session.arrived) < 3:
            session.bus.pubsub.resume()
            await asyncio.sleep(0)
        await asyncio.gather(*sends)
        assert numbers(session) == [0, 1, 2]


async def _sent(send: Awaitable[object]) -> None:
    await send


class WorkQueueRules:
    """`WorkQueues`: each message to one session, the oldest first."""

    async def test_each_message_to_one_session(self, make_session: MakeSession) -> None:
        """What one session has popped, another does not get; asking again with a number gives the same."""
        first, second = await make_session(), await make_session()
        for number in range(3):
            await first.bus.queues.route("jobs").send(payload(number))
        assert await popped(first, "jobs", 1) == 0
        assert await popped(first, "jobs", 1) == 0
        assert await popped(second, "jobs", 1) == 1
        assert await popped(first, "jobs", 2) == 2
        assert await popped(first, "jobs", 3) is None
        assert await popped(second, "jobs", 2) is None

    async def test_given_back(self, make_session: MakeSession) -> None:
        """A message that is given back is the next one that is popped; readers are woken; twice does nothing."""
        first, second = await make_session(), await make_session()
        topic = second.topics.queue("jobs").topic
        second.bus.pubsub.subscribe(topic)
        await second.bus.pubsub.confirmed(topic)
        for number in range(2):
            await first.bus.queues.route("jobs").send(payload(number))
        assert await popped(first, "jobs", 1) == 0
        second.woken.clear()
        for _ in range(2):
            answer = first.bus.queues.give_back("jobs", 1)
            assert answer is not None
            await answer
        await eventually(lambda: topic.name in second.woken, "the wake-up")
        assert await popped(second, "jobs", 1) == 0
        assert await popped(second, "jobs", 2) == 1
        assert await popped(second, "jobs", 3) is None

    async def test_full(self, make_session: MakeSession) -> None:
        """A channel that holds its capacity refuses, and takes the next one when there is a place."""
        session = await make_session()
        route = session.bus.queues.route("jobs")
        await _fill(route)
        with pytest.raises(ChannelFull):
            await route.send(payload(9))
        assert await popped(session, "jobs", 1) == 0
        await route.send(payload(9))

    async def test_first_come_first_served(self, make_session: MakeSession) -> None:
        """Sessions whose senders wait get places in the order in which these came, before any other sender."""
        early, late = await make_session(), await make_session()
        await _fill(early.bus.queues.route("jobs"))
        ways = [early.bus.queues.waiting_route("jobs")]
        with pytest.raises(ChannelFull):
            await ways[0].send(payload(100))
        await asyncio.sleep(0.002)  # the server tells senders apart by the millisecond
        ways.append(late.bus.queues.waiting_route("jobs"))
        for way in ways:
            with pytest.raises(ChannelFull):
                await way.send(payload(100))
        assert await popped(early, "jobs", 1) == 0
        for refused in (ways[1], late.bus.queues.route("jobs")):
            with pytest.raises(ChannelFull):
                await refused.send(payload(100))
        await ways[0].send(payload(100))
        late.bus.queues.stop_waiting("jobs")


async def _fill(route: ChannelRoute) -> None:
    """Send until the channel is full: it has a capacity of three."""
    for number in range(3):
        await route.send(payload(number))


class MemberRules:
    """`Members`: normal channels in groups."""

    async def test_group_send_names_them(self, make_session: MakeSession) -> None:
        """A send to the group returns its normal channels, each once, until they are discarded."""
        session, other = await make_session(), await make_session()
        for channel in ("jobs", "mail", "jobs"):
            await session.bus.members.add("room", channel)
        await other.bus.members.add("lobby", "jobs")
        assert sorted(await other.bus.pubsub.group_route("room").send(payload(1), ())) == [b"jobs", b"mail"]
        await other.bus.members.discard("room", "jobs")
        await other.bus.members.discard("room", "nobody")
        assert await session.bus.pubsub.group_route("room").send(payload(2), ()) == [b"mail"]

    async def test_flushed(self, make_session: MakeSession) -> None:
        """`flush()` ends all memberships, and empties the normal channels."""
        session = await make_session()
        await session.bus.members.add("room", "jobs")
        await session.bus.queues.route("jobs").send(payload(1))
        await session.bus.flush()
        assert not await session.bus.pubsub.group_route("room").send(payload(2), ())
        assert await popped(session, "jobs", 1) is None


class LogRules:
    """`Log`: positions in the order of the messages."""

    async def test_a_send_moves_the_end(self, make_session: MakeSession) -> None:
        """What is sent is behind the end that was there before, and at or before the one that is there after."""
        session = await make_session()
        await joined(session)
        partition = session.topics.group("room").topic.partition
        ends = [await session.bus.log.ends([partition])]
        for number in range(3):
            await session.bus.pubsub.group_route("room").send(payload(number), ())
            ends.append(await session.bus.log.ends([partition]))
        positions = [end[partition] for end in ends]
        assert positions == sorted(set(positions)) and len(positions) == 4

    async def test_sessions_agree(self, make_session: MakeSession) -> None:
        """All sessions of a namespace have the same ends, of all partitions that they ask for."""
        first, second = await make_session(), await make_session()
        await joined(first)
        await first.bus.pubsub.group_route("room").send(payload(1), ())
        everything = range(first.topics.partitions)
        ends = await first.bus.log.ends(everything)
        assert list(ends) == list(everything)
        assert await second.bus.log.ends(everything) == ends
        assert await second.bus.log.ends([]) == {}

    async def test_ends_are_of_one_epoch(self, make_session: MakeSession) -> None:
        """A message that arrives is of the epoch of the end before it, in every session; its place is one."""
        first, second = await make_session(), await make_session()
        await joined(first)
        await joined(second)
        partition = first.topics.group("room").topic.partition
        assert first.bus.log.covers("room")
        [end] = (await first.bus.log.ends([partition])).values()
        await second.bus.log.ends([partition])
        await every(_sent(first.bus.pubsub.group_route("room").send(payload(n), ())) for n in range(40))
        await eventually(lambda: min(len(first.arrived), len(second.arrived)) == 40, "the messages")
        orders = [order_of(envelope) for _, envelope in first.arrived]
        assert orders == sorted(set(orders)) and orders[0] > end.order
        assert [order_of(envelope) for _, envelope in second.arrived] == orders
        for session in (first, second):
            epochs = {
                session.bus.log.epoch_at(partition, envelope.position) for _, envelope in session.arrived
            }
            assert epochs == {end.epoch}
            assert session.bus.log.epoch_at(partition, 0) == ""

    async def test_what_is_behind_a_place(self, make_session: MakeSession) -> None:
        """`since()` has the messages of a topic behind any place, in order, at the places at which they came."""
        session, sender = await make_session(), await make_session()
        topic = session.topics.group("room").topic
        [before] = (await sender.bus.log.ends([topic.partition])).values()
        await every(_sent(sender.bus.pubsub.group_route("room").send(payload(n), ())) for n in range(40))
        await joined(session)
        found = await behind(session, topic, before)
        assert [number_in(envelope) for envelope in found] == list(range(40))
        await every(_sent(sender.bus.pubsub.group_route("room").send(payload(n), ())) for n in range(40, 80))
        await sender.bus.pubsub.group_route("lobby").send(payload(100), ("specific.a!b",))
        await eventually(lambda: len(session.arrived) == 40, "the messages")
        for envelope in found + [envelope for _, envelope in session.arrived]:
            place = Place(before.epoch, envelope.position, envelope.nth)
            rest = await behind(session, topic, place)
            assert [number_in(each) for each in rest] == list(range(number_in(envelope) + 1, 80))
        assert [order_of(each) for each in await behind(session, topic, before)][40:] == [
            order_of(envelope) for _, envelope in session.arrived
        ]
        await joined(session, "lobby")
        other = session.topics.group("lobby").topic
        [end] = (await session.bus.log.ends([other.partition])).values()
        assert await behind(session, other, end) == []

    async def test_excluded_channels_are_kept(self, make_session: MakeSession) -> None:
        """The names that a send excludes are in the log."""
        session = await make_session()
        topic = session.topics.group("room").topic
        [before] = (await session.bus.log.ends([topic.partition])).values()
        await session.bus.pubsub.group_route("room").send(payload(1), ("specific.a!b",))
        await joined(session)
        [envelope] = await behind(session, topic, before)
        assert (envelope.target, list(envelope.excluded)) == ("room", ["specific.a!b"])

    async def test_places_that_are_refused(self, make_session: MakeSession) -> None:
        """A place of another epoch, from before the log or from the future is refused after one read at most."""
        session = await make_session()
        await joined(session)
        topic = session.topics.group("room").topic
        await session.bus.log.ends([topic.partition])
        await session.bus.pubsub.group_route("room").send(payload(1), ())
        [end] = (await session.bus.log.ends([topic.partition])).values()
        for place, reason in (
            (end._replace(epoch="01234567"), "server_changed"),
            (end._replace(position=end.position + (1 << 80)), "ahead"),
            (end._replace(position=1), "trimmed"),
        ):
            with pytest.raises(NotReplayed) as raised:
                await behind(session, topic, place)
            assert raised.value.reason == reason

    async def test_here_is_not_ahead(self, make_session: MakeSession) -> None:
        """What a session does not take is behind the place up to which it has delivered, where it knows one."""
        session = await make_session()
        await joined(session)
        topic = session.topics.group("room").topic
        await session.bus.log.ends([topic.partition])
        session.takes = False
        sends = [
            asyncio.ensure_future(_sent(session.bus.pubsub.group_route("room").send(payload(n), ())))
            for n in range(3)
        ]
        await steps(10)
        ends = await session.bus.log.ends([topic.partition])
        here = session.bus.log.here(topic.partition)
        assert here is None or here.order < ends[topic.partition].order
        session.takes = True
        session.bus.pubsub.resume()
        await eventually(lambda: len(session.arrived) == 3, "the messages")
        await every(sends)
        here = session.bus.log.here(topic.partition)
        assert here is None or here.order <= order_of(session.arrived[-1][1])


class ConnectionRules:
    """`Connections`: the state of the links."""

    async def test_healthy(self, make_session: MakeSession) -> None:
        """A bus that works says so, and after `close()` that it is closed."""
        session = await make_session()
        health = await session.bus.connections.health(5.0)
        assert health.ok
        assert {link.state for link in session.bus.connections.links()} == {"connected"}
        await session.bus.connections.checked(session.topics.everybody)
        await session.bus.close()
        assert {link.state for link in session.bus.connections.links()} == {"closed"}
