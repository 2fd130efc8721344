"""`memory://`: the same contract as the Redis bus, inside one process and without a server."""

from __future__ import annotations

import asyncio
import weakref
from collections import defaultdict
from collections.abc import Awaitable

from .. import threads
from ..clock import monotonic
from ..local.buffers import ChannelBuffer
from ..local.counters import Counters
from ..local.mailbox import Mailbox
from ..messages.codecs import Codec
from ..messages.envelopes import Envelope
from ..names import Topic, Topics, owner_of
from ..settings.options import Options
from ..slices import Slice
from .base import WAITS_SECONDS, Bus, Health, HostHealth, Link, Receiver, channel_full


class Broker:
    """
    What a server would hold for one namespace: who listens, normal channels, normal members of groups.

    Used from every thread of the process, so every method holds the lock and none of them waits.
    """

    def __init__(self) -> None:
        self._lock = threads.lock()
        self._listeners: defaultdict[bytes, dict[MemoryBus, None]] = defaultdict(dict)
        self._queues: dict[str, ChannelBuffer] = {}
        self._taken: dict[tuple[str, str], tuple[int, Envelope]] = {}
        # By group and channel: when the membership was added, and when it lapses.
        self._members: defaultdict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
        # By normal channel and session: since when a sender waits for a place, and until when it is waited for.
        self._waiting: defaultdict[str, dict[str, tuple[float, float]]] = defaultdict(dict)

    def listen(self, topic: bytes, bus: MemoryBus) -> None:
        with self._lock:
            listeners = self._listeners[topic]
            for gone in [other for other in listeners if other.is_gone]:
                self._forget(gone, gone.session_id)
            # Anew: it may have gone with the last of them.
            self._listeners[topic][bus] = None

    def listen_no_more(self, topic: bytes, bus: MemoryBus) -> None:
        with self._lock:
            listeners = self._listeners.get(topic)
            if listeners is not None:
                listeners.pop(bus, None)
                if not listeners:
                    del self._listeners[topic]

    def forget(self, bus: MemoryBus, session_id: str) -> None:
        """Remove a listener everywhere, and the record of what its session had taken."""
        with self._lock:
            self._forget(bus, session_id)

    def _forget(self, bus: MemoryBus, session_id: str) -> None:
        for topic in [topic for topic, buses in self._listeners.items() if bus in buses]:
            del self._listeners[topic][bus]
            if not self._listeners[topic]:
                del self._listeners[topic]
        for key in [key for key in self._taken if key[0] == session_id]:
            del self._taken[key]

    def publish(self, topic: bytes, envelope: Envelope | None) -> list[MemoryBus]:
        """
        Hand an envelope, or a wake-up (None), to every listener's mailbox; return the listeners.

        The lock makes one order for all of them.
        """
        with self._lock:
            return self._publish(topic, envelope)

    def _publish(self, topic: bytes, envelope: Envelope | None) -> list[MemoryBus]:
        accepted: list[MemoryBus] = []
        for bus in self._listeners.get(topic, ()):
            # The first listener gets this very envelope, each other one a copy of its own.
            if bus.accept(topic, envelope if not accepted or envelope is None else envelope.copy()):
                accepted.append(bus)
        return accepted

    def group_send(self, group: str, topic: bytes, envelope: Envelope) -> tuple[list[MemoryBus], list[str]]:
        """Publish, and return the listeners and the group's normal channels."""
        with self._lock:
            members = self._members.get(group)
            if members:
                now = monotonic()
                for channel in [channel for channel, (_, until) in members.items() if until <= now]:
                    del members[channel]
            return self._publish(topic, envelope), list(members or ())

    def add_member(self, group: str, channel: str, seconds: float) -> None:
        now = monotonic()
        with self._lock:
            self._members[group][channel] = now, now + seconds

    def discard_member(self, group: str, channel: str) -> None:
        with self._lock:
            members = self._members.get(group)
            if members is not None:
                members.pop(channel, None)
                if not members:
                    del self._members[group]

    def push(
        self,
        channel: str,
        topic: bytes,
        envelope: Envelope,
        capacity: int,
        waiter: tuple[str, float] | None = None,
    ) -> list[MemoryBus]:
        """Append to a normal channel. A `waiter` is a session with a sender that waits, and since when."""
        with self._lock:
            queue = self._queues.get(channel)
            if queue is None:
                queue = self._queues[channel] = ChannelBuffer(channel, capacity, Counters())
            queue.resize(capacity)
            may_push = not self._waiting or self._may_push(channel, queue, waiter)
            if not may_push or queue.offer(envelope) < 0:
                if waiter is not None:
                    session_id, since = waiter
                    self._waiting[channel][session_id] = since, monotonic() + WAITS_SECONDS
                raise channel_full(channel, capacity)
            if waiter is not None:
                self._stop_waiting(channel, waiter[0])
            return self._publish(topic, None)

    def _may_push(self, channel: str, queue: ChannelBuffer, waiter: tuple[str, float] | None) -> bool:
        """
        Tell whether a place is left by those who wait for one.

        A sender that waits is behind those who came before it. One that does not leaves them the last place.
        """
        queue.drop_expired()
        free = queue.maxsize - queue.qsize()
        if waiter is None and free != 1:
            return free > 0
        now = monotonic()
        for session_id, (since, until) in list(self._waiting.get(channel, {}).items()):
            if until <= now:
                self._stop_waiting(channel, session_id)
            elif waiter is None or (since, session_id) < (waiter[1], waiter[0]):
                free -= 1
        return free > 0

    def stop_waiting(self, channel: str, session_id: str) -> None:
        with self._lock:
            self._stop_waiting(channel, session_id)

    def _stop_waiting(self, channel: str, session_id: str) -> None:
        waiting = self._waiting.get(channel)
        if waiting is not None:
            waiting.pop(session_id, None)
            if not waiting:
                del self._waiting[channel]

    def pop(self, channel: str, session_id: str, number: int) -> Envelope | None:
        with self._lock:
            taken = self._taken.get((session_id, channel))
            if taken is not None and taken[0] == number:
                return taken[1]
            queue = self._queues.get(channel)
            envelope = queue.take() if queue is not None else None
            if envelope is None:
                self._queues.pop(channel, None)
                self._taken.pop((session_id, channel), None)
            else:
                self._taken[session_id, channel] = (number, envelope)
            return envelope

    def give_back(self, channel: str, topic: bytes, session_id: str, number: int) -> list[MemoryBus]:
        with self._lock:
            taken = self._taken.get((session_id, channel))
            if taken is None or taken[0] != number:
                return []
            del self._taken[session_id, channel]
            queue = self._queues.get(channel)
            if queue is None:
                queue = self._queues[channel] = ChannelBuffer(channel, 1, Counters())
            queue.put_back(taken[1])
            return self._publish(topic, None)

    def waiting(self) -> dict[str, int]:
        with self._lock:
            return {channel: queue.queued for channel, queue in self._queues.items() if queue.queued}

    def members(self) -> dict[str, dict[str, float]]:
        now = monotonic()
        with self._lock:
            found = {
                group: {channel: added for channel, (added, until) in members.items() if until > now}
                for group, members in self._members.items()
            }
        return {group: members for group, members in found.items() if members}

    def flush(self) -> None:
        with self._lock:
            self._queues.clear()
            self._taken.clear()
            self._members.clear()


# The brokers are held by those who use them, and by their sessions.
_brokers: dict[tuple[str, int], tuple[weakref.ref[Broker], weakref.WeakSet[object]]] = {}
_brokers_lock = threads.lock()


def broker_for(prefix: str, database: int, user: object) -> Broker:
    """
    Return the broker of a namespace. It lives as long as one of its users does: two layers with one prefix
    share it, as they would share a server, and a layer made after they are gone finds it empty.
    """
    with _brokers_lock:
        for key in [key for key, (_, users) in _brokers.items() if not users]:
            del _brokers[key]
        reference, users = _brokers.get((prefix, database), (None, weakref.WeakSet[object]()))
        broker = (reference and reference()) or Broker()
        _brokers[prefix, database] = weakref.ref(broker), users
        users.add(user)
        return broker


def leave_broker(prefix: str, database: int, user: object) -> None:
    """End one user's interest in a namespace."""
    with _brokers_lock:
        found = _brokers.get((prefix, database))
        if found is not None:
            found[1].discard(user)
            if not found[1]:
                del _brokers[prefix, database]


def after_fork_in_child() -> None:
    """Start with no namespace: a lock may have been held by a thread that the child does not have."""
    global _brokers, _brokers_lock
    _brokers, _brokers_lock = {}, threads.lock()


class MemoryChannelRoute:
    """The route to a channel: to an inbox, or to the queue of a normal channel if there is none."""

    def __init__(
        self, bus: MemoryBus, channel: str, inbox: Topic | None, waiter: tuple[str, float] | None = None
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


class MemoryBus(Bus):
    """One session's side of a broker."""

    def __init__(
        self,
        broker: Broker,
        options: Options,
        topics: Topics,
        codec: Codec,
        session_id: str,
        receiver: Receiver,
    ) -> None:
        self._options = options
        self._topics = topics
        self.session_id = session_id
        self._receiver = receiver
        self._loop = loop = asyncio.get_running_loop()
        self._broker = broker
        self._wanted: set[bytes] = set()
        # By topic that is wanted again: of what was put in so far, its envelopes were sent before that.
        self._not_before: dict[bytes, int] = {}
        self._mailbox = Mailbox(loop, self)
        # Normal channels whose wake-up is in the mailbox.
        self._waking: set[bytes] = set()
        self._is_closed = False

    def accept(self, topic: bytes, envelope: Envelope | None) -> bool:
        """Take something from the broker, from any thread and under its lock."""
        if envelope is None:
            # One for each topic is enough, and its reader would wait for ever without it.
            if topic not in self._waking:
                self._waking.add(topic)
                self._mailbox.put_always(topic, _WAKE)
            return True
        if self._mailbox.put(topic, envelope):
            return True
        self._receiver.on_overrun()
        return False

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        if envelope is _WAKE:
            # First: what is pushed from here on has a wake-up of its own.
            self._waking.discard(topic)
            self._receiver.on_wake(topic)
            return True
        if self._not_before and self._is_too_old(topic):
            return True
        return self._receiver.on_envelope(topic, envelope)

    def _is_too_old(self, topic: bytes) -> bool:
        """Tell whether what is offered on this topic was sent before it was wanted again."""
        if self._mailbox.taken < self._not_before.get(topic, 0):
            return True
        self._not_before.pop(topic, None)
        return False

    def _hand_over(self, buses: list[MemoryBus]) -> int:
        """Have these buses take in what was published; return how many of them do, and forget the others."""
        count = len(buses)
        for bus in buses:
            if bus is self:
                # At once: whatever reached the mailbox earlier has gone before.
                self._mailbox.drain()
            elif not bus._mailbox.drain_soon():
                self._broker.forget(bus, bus.session_id)
                count -= 1
        return count

    def start(self) -> None:
        self._loop.call_soon(self._receiver.on_up)

    async def close(self) -> None:
        self._is_closed = True
        turn = Slice()
        try:
            while self._wanted:
                self._broker.listen_no_more(self._wanted.pop(), self)
                await turn.rest()
        finally:
            self._broker.forget(self, self.session_id)
            self._mailbox.close()

    def let_go(self) -> None:
        self._is_closed = True  # the broker finds out by itself

    @property
    def is_gone(self) -> bool:
        """Whether the loop was closed, and nothing can be handed over any more."""
        return self._loop.is_closed()

    def subscribe(self, topic: Topic) -> None:
        if topic.name not in self._wanted and not self._mailbox.is_empty:
            self._not_before[topic.name] = self._mailbox.put_so_far
        self._wanted.add(topic.name)
        self._broker.listen(topic.name, self)

    def unsubscribe(self, topic: Topic) -> None:
        self._wanted.discard(topic.name)
        self._not_before.pop(topic.name, None)
        self._broker.listen_no_more(topic.name, self)

    def is_confirmed(self, topic: Topic) -> bool:
        return topic.name in self._wanted

    async def confirmed(self, topic: Topic) -> None:
        return None

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        [link] = self.links()
        return Health((HostHealth(link.address, not self._is_closed, link.state, seconds=0.0),))

    async def checked(self, topic: Topic) -> None:
        return None

    def _wrap(self, payload: bytes, target: str, flags: int = 0, excluded: tuple[str, ...] = ()) -> Envelope:
        expires_at = monotonic() + self._options.expiry
        return Envelope(payload, target, flags=flags, excluded=excluded, expires_at=expires_at)

    async def publish(self, topic: Topic, target: str, payload: bytes, flags: int) -> int:
        buses = self._broker.publish(topic.name, self._wrap(payload, target, flags))
        count = self._hand_over(buses)
        if not self._mailbox.is_empty:
            await self._mailbox.drained()
        return count

    def post(self, topic: Topic, target: str, payload: bytes, flags: int) -> None:
        self._hand_over(self._broker.publish(topic.name, self._wrap(payload, target, flags)))

    def channel_route(self, channel: str) -> MemoryChannelRoute:
        session_id = owner_of(channel)
        return MemoryChannelRoute(
            self, channel, None if session_id is None else self._topics.inbox(session_id)
        )

    def waiting_route(self, channel: str) -> MemoryChannelRoute:
        return MemoryChannelRoute(self, channel, None, (self.session_id, monotonic()))

    def stop_waiting(self, channel: str) -> None:
        self._broker.stop_waiting(channel, self.session_id)

    def group_route(self, group: str) -> MemoryGroupRoute:
        return MemoryGroupRoute(self, group, self._topics.group(group).topic)

    async def group_send(
        self, group: str, topic: bytes, payload: bytes, excluded: tuple[str, ...]
    ) -> list[bytes]:
        envelope = self._wrap(payload, group, excluded=excluded)
        buses, members = self._broker.group_send(group, topic, envelope)
        self._hand_over(buses)
        if not self._mailbox.is_empty:
            # A full member is waited for, as the reader of a socket would be.
            await self._mailbox.drained()
        return [channel.encode() for channel in members]

    async def add_member(self, group: str, channel: str, seconds: float | None = None) -> None:
        seconds = self._options.group_expiry if seconds is None else seconds
        self._broker.add_member(group, channel, seconds)

    async def discard_member(self, group: str, channel: str) -> None:
        self._broker.discard_member(group, channel)

    def push(self, channel: str, payload: bytes, waiter: tuple[str, float] | None = None) -> None:
        envelope = self._wrap(payload, channel)
        topic = self._topics.queue(channel).topic.name
        capacity = self._options.capacity_of(channel)
        self._hand_over(self._broker.push(channel, topic, envelope, capacity, waiter))

    def pop(self, channel: str, number: int) -> asyncio.Future[Envelope | None] | None:
        future: asyncio.Future[Envelope | None] = self._loop.create_future()
        future.set_result(self._broker.pop(channel, self.session_id, number))
        return future

    def give_back(self, channel: str, number: int) -> asyncio.Future[None] | None:
        future: asyncio.Future[None] = self._loop.create_future()
        topic = self._topics.queue(channel).topic.name
        self._hand_over(self._broker.give_back(channel, topic, self.session_id, number))
        future.set_result(None)
        return future

    async def flush(self) -> None:
        self._broker.flush()

    def options_changed(self) -> None:
        """Read them anew with each message, as ever."""

    def resume(self) -> None:
        self._mailbox.drain()

    def waiting(self) -> dict[str, int]:
        return self._broker.waiting()

    def members(self) -> dict[str, dict[str, float]]:
        return self._broker.members()

    def links(self) -> list[Link]:
        return [Link("memory://", "closed" if self._is_closed else "connected")]


_WAKE = Envelope(b"", "")
