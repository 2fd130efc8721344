"""One session's side of a broker: publish, subscribe, queue and pop inside the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from ...clock import monotonic
from ...identity import identity
from ...messages.codecs import Codec
from ...messages.envelopes import Envelope
from ...names import Topic, Topics
from ...settings.options import Options
from ..base import Health, HostHealth, Link, Receiver
from .broker import Broker
from .history import MemoryHistories
from .log import MemoryLog
from .queues import Waiter
from .subscriber import MemorySubscriber


class MemoryBus:
    """Wires the subscriber of a session to the broker of its namespace, which holds everything else."""

    def __init__(
        self,
        broker: Broker,
        options: Options,
        topics: Topics,
        codec: Codec,
        session_id: str,
        receiver: Receiver,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._receiver = receiver
        self._broker = broker
        self._subscriber = subscriber = MemorySubscriber(broker, session_id, receiver)
        self.pubsub = MemoryPubSub(broker, options, topics, subscriber)
        self.queues = MemoryQueues(broker, options, topics, subscriber)
        self.members = MemoryMembers(broker, options)
        self.log = MemoryLog(broker, options, subscriber)
        self.histories = MemoryHistories(broker, options)
        self.connections = MemoryConnections()
        self.register = MemoryRegister(broker, topics)

    def start(self) -> None:
        self._loop.call_soon(self._receiver.on_up)

    async def answered(self) -> None:
        """Return at once: there are no replies."""

    def rest(self) -> None:
        """There is nothing to close."""

    async def close(self) -> None:
        self.connections.is_closed = True
        await self._subscriber.close()

    def let_go(self) -> None:
        self.connections.is_closed = True  # the broker finds out by itself

    def options_changed(self) -> None:
        """Do nothing: the options are read anew for each message."""

    async def flush(self) -> None:
        self._broker.flush()


class MemoryPubSub:
    """The topics of a namespace, for one session."""

    def __init__(
        self, broker: Broker, options: Options, topics: Topics, subscriber: MemorySubscriber
    ) -> None:
        self._broker = broker
        self._options = options
        self._topics = topics
        self._subscriber = subscriber

    def subscribe(self, topic: Topic) -> None:
        self._subscriber.subscribe(topic.name)

    def unsubscribe(self, topic: Topic) -> None:
        self._subscriber.unsubscribe(topic.name)

    def is_confirmed(self, topic: Topic) -> bool:
        return self._subscriber.is_subscribed(topic.name)

    async def confirmed(self, topic: Topic) -> None:
        """Return at once: a subscription holds when `subscribe()` has returned."""

    def resume(self) -> None:
        self._subscriber.mailbox.drain()

    async def publish(self, topic: Topic, target: str, payload: bytes, flags: int) -> int:
        subscriber = self._subscriber
        envelope = _wrapped(self._options, payload, target, flags)
        count = subscriber.hand_over(self._broker.publish(topic.name, envelope))
        if not subscriber.mailbox.is_empty:
            await subscriber.mailbox.drained()
        return count

    def post(self, topic: Topic, target: str, payload: bytes, flags: int) -> None:
        envelope = _wrapped(self._options, payload, target, flags)
        self._subscriber.hand_over(self._broker.publish(topic.name, envelope))

    def channel_route(self, channel: str, session_id: str) -> MemoryInboxRoute:
        return MemoryInboxRoute(self, channel, self._topics.inbox(session_id))

    def group_route(self, group: str) -> MemoryGroupRoute:
        return MemoryGroupRoute(self, group, self._topics.group(group).topic)

    async def group_send(
        self, group: str, topic: Topic, payload: bytes, excluded: tuple[str, ...]
    ) -> list[bytes]:
        """Send to a group; return its normal channels. Waits for full members, as the reader of a socket does."""
        subscriber = self._subscriber
        envelope = _wrapped(self._options, payload, group, excluded=excluded)
        listeners, members = self._broker.group_send(group, topic, envelope)
        subscriber.hand_over(listeners)
        if not subscriber.mailbox.is_empty:
            await subscriber.mailbox.drained()
        return [channel.encode() for channel in members]


class MemoryQueues:
    """The normal channels of a namespace, for one session."""

    def __init__(
        self, broker: Broker, options: Options, topics: Topics, subscriber: MemorySubscriber
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._broker = broker
        self._options = options
        self._topics = topics
        self._subscriber = subscriber

    def route(self, channel: str) -> MemoryQueueRoute:
        return MemoryQueueRoute(self, channel)

    def waiting_route(self, channel: str) -> MemoryQueueRoute:
        return MemoryQueueRoute(self, channel, Waiter(self._subscriber.session_id, monotonic()))

    def stop_waiting(self, channel: str) -> None:
        self._broker.stop_waiting(channel, self._subscriber.session_id)

    def push(self, channel: str, payload: bytes, waiter: Waiter | None = None) -> None:
        """
        Append a message and wake the readers.

        Raises:
            ChannelFull: the channel holds its capacity of unexpired messages.
        """
        envelope = _wrapped(self._options, payload, channel)
        topic = self._topics.queue(channel).topic.name
        capacity = self._options.capacity_of(channel)
        self._subscriber.hand_over(self._broker.push(channel, topic, envelope, capacity, waiter))

    def pop(self, channel: str, number: int) -> asyncio.Future[Envelope | None] | None:
        future: asyncio.Future[Envelope | None] = self._loop.create_future()
        future.set_result(self._broker.pop(channel, self._subscriber.session_id, number))
        return future

    def give_back(self, channel: str, number: int) -> asyncio.Future[None] | None:
        future: asyncio.Future[None] = self._loop.create_future()
        topic = self._topics.queue(channel).topic.name
        session_id = self._subscriber.session_id
        self._subscriber.hand_over(self._broker.give_back(channel, topic, session_id, number))
        future.set_result(None)
        return future

    def waiting(self) -> dict[str, int]:
        return self._broker.waiting()


class MemoryMembers:
    """The memberships of normal channels in a namespace."""

    def __init__(self, broker: Broker, options: Options) -> None:
        self._broker = broker
        self._options = options

    async def add(self, group: str, channel: str, seconds: float | None = None) -> None:
        seconds = self._options.group_expiry if seconds is None else seconds
        self._broker.add_member(group, channel, seconds)

    async def discard(self, group: str, channel: str) -> None:
        self._broker.discard_member(group, channel)

    async def of(self, group: str) -> list[str]:
        return list(self._broker.members().get(group, ()))

    def held(self) -> dict[str, dict[str, float]]:
        return self._broker.members()


class MemoryConnections:
    """There are none: the process is the server, and it is always there."""

    def __init__(self) -> None:
        self.is_closed = False

    def links(self) -> list[Link]:
        return [Link("memory://", "closed" if self.is_closed else "connected")]

    def transports(self) -> list[asyncio.BaseTransport]:
        return []

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        [link] = self.links()
        return Health((HostHealth(link.address, not self.is_closed, link.state, seconds=0.0),))

    async def checked(self, topic: Topic) -> None:
        """Return at once: all sessions of the process have the same layout."""


class MemoryRegister:
    """The sessions of the process."""

    def __init__(self, broker: Broker, topics: Topics) -> None:
        self._broker = broker
        self._everybody = topics.everybody.name

    async def processes(self) -> dict[str, str]:
        return dict.fromkeys(self._broker.listening(self._everybody), identity())


class MemoryInboxRoute:
    """The route to a channel of another session: to the inbox of that session."""

    def __init__(self, pubsub: MemoryPubSub, channel: str, inbox: Topic) -> None:
        self._pubsub = pubsub
        self._channel = channel
        self._inbox = inbox

    async def send(self, payload: bytes) -> None:
        await self._pubsub.publish(self._inbox, self._channel, payload, 0)


class MemoryQueueRoute:
    """The route to a normal channel, for a sender that waits for a place if there is a `waiter`."""

    def __init__(self, queues: MemoryQueues, channel: str, waiter: Waiter | None = None) -> None:
        self._queues = queues
        self._channel = channel
        self._waiter = waiter

    async def send(self, payload: bytes) -> None:
        self._queues.push(self._channel, payload, self._waiter)


class MemoryGroupRoute:
    """The route to a group."""

    def __init__(self, pubsub: MemoryPubSub, group: str, topic: Topic) -> None:
        self.topic = topic
        self._pubsub = pubsub
        self._group = group

    def send(self, payload: bytes, excluded: tuple[str, ...]) -> Awaitable[list[bytes]]:
        return self._pubsub.group_send(self._group, self.topic, payload, excluded)


def _wrapped(
    options: Options, payload: bytes, target: str, flags: int = 0, excluded: tuple[str, ...] = ()
) -> Envelope:
    expires_at = monotonic() + options.expiry
    return Envelope(payload, target, flags=flags, excluded=excluded, expires_at=expires_at)
