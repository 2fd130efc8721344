"""One session's side of a broker: publish, subscribe, queue and pop inside the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from ...clock import monotonic
from ...messages.codecs import Codec
from ...messages.envelopes import Envelope
from ...names import Topic, Topics, owner_of
from ...settings.options import Options
from ..base import Bus, Health, HostHealth, Link, Receiver
from .broker import Broker
from .queues import Waiter
from .subscriber import Subscriber


class MemoryBus(Bus):
    """Publishes and subscribes through a `Subscriber`; normal channels and their memberships are the broker's."""

    def __init__(
        self,
        broker: Broker,
        options: Options,
        topics: Topics,
        codec: Codec,
        session_id: str,
        receiver: Receiver,
    ) -> None:
        self.session_id = session_id
        self._options = options
        self._topics = topics
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._broker = broker
        self._subscriber = Subscriber(broker, session_id, receiver)
        self._is_closed = False

    # Its life

    def start(self) -> None:
        self._loop.call_soon(self._receiver.on_up)

    async def close(self) -> None:
        self._is_closed = True
        await self._subscriber.close()

    def let_go(self) -> None:
        self._is_closed = True  # the broker finds out by itself

    def options_changed(self) -> None:
        """Do nothing: the options are read anew for each message."""

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        [link] = self.links()
        return Health((HostHealth(link.address, not self._is_closed, link.state, seconds=0.0),))

    def links(self) -> list[Link]:
        return [Link("memory://", "closed" if self._is_closed else "connected")]

    async def checked(self, topic: Topic) -> None:
        return None

    async def flush(self) -> None:
        self._broker.flush()

    # Publish and subscribe

    def subscribe(self, topic: Topic) -> None:
        self._subscriber.subscribe(topic.name)

    def unsubscribe(self, topic: Topic) -> None:
        self._subscriber.unsubscribe(topic.name)

    def is_confirmed(self, topic: Topic) -> bool:
        return self._subscriber.is_subscribed(topic.name)

    async def confirmed(self, topic: Topic) -> None:
        return None

    def resume(self) -> None:
        self._subscriber.mailbox.drain()

    async def publish(self, topic: Topic, target: str, payload: bytes, flags: int) -> int:
        subscriber = self._subscriber
        count = subscriber.hand_over(self._broker.publish(topic.name, self._wrap(payload, target, flags)))
        if not subscriber.mailbox.is_empty:
            await subscriber.mailbox.drained()
        return count

    def post(self, topic: Topic, target: str, payload: bytes, flags: int) -> None:
        self._subscriber.hand_over(self._broker.publish(topic.name, self._wrap(payload, target, flags)))

    def group_route(self, group: str) -> MemoryGroupRoute:
        return MemoryGroupRoute(self, group, self._topics.group(group).topic)

    async def group_send(
        self, group: str, topic: bytes, payload: bytes, excluded: tuple[str, ...]
    ) -> list[bytes]:
        subscriber = self._subscriber
        envelope = self._wrap(payload, group, excluded=excluded)
        listeners, members = self._broker.group_send(group, topic, envelope)
        subscriber.hand_over(listeners)
        if not subscriber.mailbox.is_empty:
            # The sender waits for full members, as the reader of a socket does.
            await subscriber.mailbox.drained()
        return [channel.encode() for channel in members]

    def _wrap(self, payload: bytes, target: str, flags: int = 0, excluded: tuple[str, ...] = ()) -> Envelope:
        expires_at = monotonic() + self._options.expiry
        return Envelope(payload, target, flags=flags, excluded=excluded, expires_at=expires_at)

    # Normal channels in groups

    async def add_member(self, group: str, channel: str, seconds: float | None = None) -> None:
        seconds = self._options.group_expiry if seconds is None else seconds
        self._broker.add_member(group, channel, seconds)

    async def discard_member(self, group: str, channel: str) -> None:
        self._broker.discard_member(group, channel)

    def members(self) -> dict[str, dict[str, float]]:
        return self._broker.members()

    # Normal channels

    def channel_route(self, channel: str) -> MemoryChannelRoute:
        session_id = owner_of(channel)
        inbox = None if session_id is None else self._topics.inbox(session_id)
        return MemoryChannelRoute(self, channel, inbox)

    def waiting_route(self, channel: str) -> MemoryChannelRoute:
        return MemoryChannelRoute(self, channel, None, Waiter(self.session_id, monotonic()))

    def stop_waiting(self, channel: str) -> None:
        self._broker.stop_waiting(channel, self.session_id)

    def push(self, channel: str, payload: bytes, waiter: Waiter | None = None) -> None:
        envelope = self._wrap(payload, channel)
        topic = self._topics.queue(channel).topic.name
        capacity = self._options.capacity_of(channel)
        self._subscriber.hand_over(self._broker.push(channel, topic, envelope, capacity, waiter))

    def pop(self, channel: str, number: int) -> asyncio.Future[Envelope | None] | None:
        future: asyncio.Future[Envelope | None] = self._loop.create_future()
        future.set_result(self._broker.pop(channel, self.session_id, number))
        return future

    def give_back(self, channel: str, number: int) -> asyncio.Future[None] | None:
        future: asyncio.Future[None] = self._loop.create_future()
        topic = self._topics.queue(channel).topic.name
        self._subscriber.hand_over(self._broker.give_back(channel, topic, self.session_id, number))
        future.set_result(None)
        return future

    def waiting(self) -> dict[str, int]:
        return self._broker.waiting()


class MemoryChannelRoute:
    """The route to a channel: to the inbox of its owner, or to the queue of a normal channel if there is none."""

    def __init__(
        self, bus: MemoryBus, channel: str, inbox: Topic | None, waiter: Waiter | None = None
    ) -> None:
        self._bus = bus
        self._channel = channel
        self._inbox = inbox
        self._waiter = waiter

    async def send(self, payload: bytes) -> None:
        if self._inbox is None:
            self._bus.push(self._channel, payload, self._waiter)
        else:
            await self._bus.publish(self._inbox, self._channel, payload, 0)


class MemoryGroupRoute:
    """The route to a group."""

    def __init__(self, bus: MemoryBus, group: str, topic: Topic) -> None:
        self.topic = topic
        self._bus = bus
        self._group = group

    def send(self, payload: bytes, excluded: tuple[str, ...]) -> Awaitable[list[bytes]]:
        return self._bus.group_send(self._group, self.topic.name, payload, excluded)
