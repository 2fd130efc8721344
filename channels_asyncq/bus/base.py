"""
The seam between a session and the bus that carries its messages: protocols of the bus, and its callbacks.

tests/contract/buses.py has the rules that each bus keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from channels.exceptions import ChannelFull

from ..messages.envelopes import Envelope
from ..messages.positions import Place
from ..names import Topic
from ..tallies import NO_LATENCY, Latency, Tally

# A sender that waits for a place in a normal channel leaves the line if it does not ask again for this long (s).
WAITS_SECONDS = 1.0


# The time (s) over which messages per second are counted.
RATE_SECONDS = 10.0


def channel_full(channel: str, capacity: int) -> ChannelFull:
    """Return the error for a message to a normal channel that is full."""
    return ChannelFull(
        f"channel {channel!r} holds {capacity} messages, its capacity, or one less while others wait for it; "
        "start more readers, raise `capacity` or `channel_capacity`, or use send_wait()"
    )


class Receiver(Protocol):
    """
    The callbacks of a bus: called on the loop of its session, and never from inside a call into the bus.

    Implemented by `session.arrivals.Arrivals`.
    """

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        """Take an envelope of a subscribed topic. False: offer it again after `PubSub.resume()`."""

    def on_wake(self, topic: bytes) -> None:
        """A message was pushed to the normal channel with this topic, or given back to it."""

    def on_subscribed(self, topic: bytes) -> None:
        """The server has confirmed a subscription: the first time, or again after a reconnect."""

    def on_unreadable(self, topic: bytes, reason: str) -> None:
        """Bytes that are not a message arrived, and were dropped."""

    def on_loss(self, reason: str, topics: set[bytes]) -> None:
        """Messages of these topics are lost, or may be. The page on delivery has the reasons."""

    def on_forgotten(self, partitions: Collection[int], topics: set[bytes]) -> None:
        """The server lost members of groups in these partitions, or may have, and the logs of these topics."""

    def on_jobs_unknown(self, partitions: Collection[int]) -> int:
        """
        The server may have lost messages that waited in normal channels of these partitions.

        Returns how many of these channels are used here.
        """

    def on_overrun(self) -> None:
        """An envelope was dropped: too many wait for this loop already. Called from any thread."""

    def on_external(self) -> None:
        """A message of another program arrived; `on_envelope` gets it next."""

    def on_answerable(self) -> None:
        """A connection for commands came up: calls that `pop()` refused may be made again."""

    def on_down(self) -> None:
        """A connection is lost; the bus is reconnecting."""

    def on_up(self) -> None:
        """All connections are up and all wanted topics are confirmed."""


@dataclass(frozen=True, slots=True)
class Link:
    """
    The state of the connections to one host.

    `state` is "connected", "connecting" or "closed"; `reason` tells why it is not connected. `Node.link()`
    makes it of the two connections to a server, and `reconnects` counts both. `reconnected_at` is the last time
    at which one was made again, in seconds since 1970; None if that was never needed.

    `fault` tells why some sends fail now, or why nothing is known yet of a host that was never connected. It is
    empty otherwise: also for connections that are lost for a moment, while sends wait for them.

    `latency` has the round trips of the checkpoints, which are sent every five seconds as sends are: behind
    everything that was sent before. `lag` is how long the last one took to arrive here behind the messages that
    were published before it, or how long the present one is under way if that is longer; None without one.
    """

    address: str
    state: str
    reconnects: int = 0
    reason: str = ""
    reconnected_at: float | None = None
    fault: str = ""
    latency: Latency = NO_LATENCY
    lag: float | None = None


@dataclass(frozen=True, slots=True)
class HostHealth:
    """
    Whether one host works, by a check that was just made.

    `ok`: it takes writes, and a message that is published there arrives here. `seconds` is how long that took,
    None if it is not `ok`. `state` is as in `Link`. `reason` tells what is wrong, without credentials.
    """

    address: str
    ok: bool
    state: str
    reason: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """The result of `health()`: an entry per host."""

    hosts: tuple[HostHealth, ...]

    @property
    def ok(self) -> bool:
        """Whether all hosts are `ok`."""
        return all(host.ok for host in self.hosts)


@dataclass(frozen=True, slots=True)
class Sent:
    """The messages that a session has sent by its bus: to groups, other sessions, and normal channels."""

    group: Tally = field(default_factory=Tally)
    channel: Tally = field(default_factory=Tally)
    normal: Tally = field(default_factory=Tally)


class ChannelRoute(Protocol):
    """
    The route to one channel of another session, or to a normal channel. Errors are those of the bus.

    Implemented by `bus.redis.pubsub.NameRoute` and `bus.redis.queues.QueueRoute`, and on `memory://` by
    `bus.memory.bus.MemoryInboxRoute` and `bus.memory.bus.MemoryQueueRoute`.
    """

    def send(self, payload: bytes) -> Awaitable[object]:
        """
        Send to the owner's inbox, or append to a normal channel and wake its readers.

        Raises:
            ChannelFull: the normal channel holds its capacity of unexpired messages.
        """


class GroupRoute(Protocol):
    """
    The route to one group.

    Implemented by `bus.redis.pubsub.NameRoute`, and on `memory://` by `bus.memory.bus.MemoryGroupRoute`.
    """

    @property
    def topic(self) -> Topic:
        """The topic that the sessions of its members subscribe to."""

    def send(self, payload: bytes, excluded: tuple[str, ...]) -> Awaitable[list[bytes]]:
        """Send to the group's topic; the result is the normal channels that are members, or empty."""


class PubSub(Protocol):
    """
    Topics: those of groups, the inboxes of sessions, and one that all sessions subscribe to.

    Implemented by `bus.redis.pubsub.RedisPubSub`, and on `memory://` by `bus.memory.bus.MemoryPubSub`.
    """

    def subscribe(self, topic: Topic) -> None:
        """Keep this topic subscribed from now on, across reconnects; `confirmed()` waits for the server."""

    def unsubscribe(self, topic: Topic) -> None:
        """Give up this topic; never waits."""

    def is_confirmed(self, topic: Topic) -> bool:
        """Tell whether the server has confirmed the subscription on the present connection."""

    def confirmed(self, topic: Topic) -> Coroutine[Any, Any, None]:
        """Return when the server has confirmed a subscribed topic. Cancelling is safe."""

    def publish(self, topic: Topic, target: str, payload: bytes, flags: int) -> Awaitable[int]:
        """Send to an inbox, or to all sessions; return how many subscribers the server passed it to."""

    def post(self, topic: Topic, target: str, payload: bytes, flags: int) -> None:
        """Send to an inbox without waiting for anything; the message is dropped if there is no connection."""

    def channel_route(self, channel: str, session_id: str) -> ChannelRoute:
        """Return the route to a channel of another session: to the inbox of that session."""

    def group_route(self, group: str) -> GroupRoute:
        """Return the route to a group."""

    def resume(self) -> None:
        """Offer the envelopes that `on_envelope` did not take again, and go on."""


class WorkQueues(Protocol):
    """
    Normal channels: each message goes to one reader, in any session.

    Implemented by `bus.redis.queues.RedisQueues`, and on `memory://` by `bus.memory.bus.MemoryQueues`.
    """

    def route(self, channel: str) -> ChannelRoute:
        """Return the route to a normal channel."""

    def waiting_route(self, channel: str) -> ChannelRoute:
        """
        Return the route to a normal channel for a sender that waits for a place, from this moment on.

        Sending by it again after a ChannelFull goes on waiting: sessions get places in the order in which their
        senders came, and no other sender gets the last place. A session uses one for each channel at a time.
        """

    def stop_waiting(self, channel: str) -> None:
        """Give up the place in line that `waiting_route()` holds for this session for `WAITS_SECONDS`."""

    def pop(self, channel: str, number: int) -> asyncio.Future[Envelope | None] | None:
        """
        Ask for the oldest message of a normal channel. The future's result is None if there is none.

        Count `number` up by one for each message. Asking again with the same number gives the same message, and
        the next number acknowledges it. Returns None if there is no connection. The future fails with
        ConnectionError if the connection is lost before the answer, and with ValueError if the message is
        unreadable; use the next number after that too.
        """

    def give_back(self, channel: str, number: int) -> asyncio.Future[None] | None:
        """
        Put the message with this number back at the head of its channel and wake its readers.

        Does nothing if the number is not the last one that was taken. Returns and fails like `pop()`.
        """

    def waiting(self) -> dict[str, int]:
        """Return how many messages wait in each normal channel that this process holds. From any thread."""


class Members(Protocol):
    """
    The memberships of normal channels in groups, which a server holds.

    Implemented by `bus.redis.members.RedisMembers`, and on `memory://` by `bus.memory.bus.MemoryMembers`.
    """

    async def add(self, group: str, channel: str, seconds: float | None = None) -> None:
        """Make a normal channel a member of a group, for `seconds`, or for `group_expiry` if that is None."""

    async def discard(self, group: str, channel: str) -> None:
        """End a normal channel's membership."""

    async def of(self, group: str) -> list[str]:
        """Return the normal channels that are members of a group. Cancelling is safe."""

    def held(self) -> dict[str, dict[str, float]]:
        """
        Return the members that this process holds, by group, and when each was added.

        From any thread. The times are those of `monotonic()`.
        """


class NotReplayed(Exception):
    """
    The messages behind a place cannot be had, for the `reason`. The page on resuming has the reasons.

    Where only the message at `position` cannot be had, `found` has those before it. Else `position` is 0.
    """

    def __init__(self, reason: str, position: int = 0, found: Sequence[Envelope] = ()) -> None:
        super().__init__(reason, position)
        self.reason = reason
        self.position = position
        self.found = found


@dataclass(slots=True)
class ReplayCounts:
    """
    What a bus has in memory for channels that come back, and how often it has read logs for them.

    `records` and `bytes` are of messages that are held now. `evicted` counts the messages that were given up
    before their time, as too many were held.
    """

    reads: int = 0
    records: int = 0
    bytes: int = 0
    evicted: int = 0

    def __add__(self, other: ReplayCounts) -> ReplayCounts:
        return ReplayCounts(
            self.reads + other.reads,
            self.records + other.records,
            self.bytes + other.bytes,
            self.evicted + other.evicted,
        )


class Log(Protocol):
    """
    The messages that are kept for sessions whose connection was lost, and for channels that come back: one log
    for each partition.

    A channel that comes back gets the messages behind its place by `since()`, in one step with its join. Before,
    the topic is subscribed, and `has()` is true. `read()` makes it true; it may become false in any turn of the
    event loop.

    Implemented by `bus.redis.log.RedisLog`, and on `memory://` by `bus.memory.log.MemoryLog`.
    """

    def covers(self, group: str) -> bool:
        """Tell whether messages to a group are kept."""

    async def ends(self, partitions: Collection[int]) -> dict[int, Place]:
        """
        Return the end of the log of each of these partitions; none without logs.

        A message whose send has returned is at or before the end, and one that is sent later is behind it. Calls
        of one turn of the event loop share a command. Cancelling is safe.
        """

    def here(self, partition: int) -> Place | None:
        """
        Return the place up to which this session has delivered everything; None if it does not know one.

        No command is sent, so a message that was sent a moment ago may be behind it.
        """

    def epoch_at(self, partition: int, position: int) -> str:
        """Return the epoch of a message that arrived; empty if it is not known for this position."""

    def has(self, topic: Topic, place: Place, *, has_read: bool) -> bool:
        """
        Tell whether `since()` has an answer now; if not, await `read()`.

        Args:
            has_read: whether a read for this place was begun and has ended.

        Raises:
            NotReplayed: no read will bring the messages.
        """

    def since(self, topic: Topic, place: Place) -> list[Envelope]:
        """
        Return the messages of a topic behind a place, up to those that were delivered here.

        To be called where `has()` is true.

        Raises:
            NotReplayed: one of them is too large, or cannot be read.
        """

    async def read(self, places: Mapping[int, Place]) -> None:
        """
        Return when a read of these partitions from these places has ended that was begun after this call.

        Others share it. Cancelling is safe.

        Raises:
            ConnectionError: a connection was lost. Wait until the topics are confirmed again.
        """

    async def rates(self) -> dict[str, float]:
        """
        Return the messages per second of groups, over the last `RATE_SECONDS` or since the log was cut.

        Groups without messages in this time are left out, and those that are in no log. Cancelling is safe.
        """

    async def latest(self, topic: Topic, target: str, limit: int) -> list[Envelope]:
        """
        Return the last messages to a group or channel that the log of its topic has, oldest first.

        An envelope has the flag HEADER_ONLY if the log has only its header, or if it cannot be read. Cancelling
        is safe.
        """

    def forget(self) -> None:
        """Keep nothing of the logs in memory: `flush()` has begun another epoch."""

    def is_fed(self, topic: Topic) -> bool:
        """Tell whether messages that arrive on this topic are kept here, for channels that come back soon."""

    @property
    def counts(self) -> ReplayCounts: ...


#: The reasons for which a log has not what a history may have.
IN_HISTORIES = frozenset({"trimmed", "too_large"})


class HistoryPage(NamedTuple):
    """
    Messages of a group's history, in order.

    `end` is the place at or before which all of them are. `start` is before all of them, and None if the history
    has no older ones.
    """

    envelopes: list[Envelope]
    end: Place
    start: Place | None


class Histories(Protocol):
    """
    The messages of some groups that are kept beside the logs: a history for each group, as `history` says.

    A message has the same place in a history as in the log of its partition.

    Implemented by `bus.redis.histories.RedisHistories`, and on `memory://` by
    `bus.memory.history.MemoryHistories`.
    """

    def covers(self, group: str) -> bool:
        """Tell whether messages to a group are kept in a history."""

    async def page(self, group: str, before: Place | None, limit: int) -> HistoryPage:
        """
        Return the last `limit` messages of a history, or the last ones that are not behind a place.

        Cancelling is safe.
        """

    async def since(self, group: str, place: Place) -> tuple[list[Envelope], Place]:
        """
        Return the messages behind a place, up to the end of the log, and that end. Others share the read.

        Cancelling is safe.

        Raises:
            NotReplayed: they are not all in the history.
        """


class Connections(Protocol):
    """
    The connections of one session to its hosts, as they are now.

    Implemented by `bus.redis.connections.RedisConnections`, and on `memory://` by
    `bus.memory.bus.MemoryConnections`.
    """

    def links(self) -> list[Link]:
        """Return their state, one entry per host."""

    def transports(self) -> list[asyncio.BaseTransport]:
        """Return the open connections: a forked child lets go of its copies of them."""

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        """Check each host, within a timeout in seconds. An outage is a result, and not an error."""

    async def checked(self, topic: Topic) -> None:
        """
        Return when the host of this topic has accepted the layout of this process, however long that takes.

        Raises:
            ImproperlyConfigured: other sessions use the namespace in an incompatible way.
        """


class Register(Protocol):
    """
    The sessions of the namespace, those included that do not answer.

    Implemented by `bus.redis.register.RedisRegister`, and on `memory://` by `bus.memory.bus.MemoryRegister`.
    """

    async def processes(self) -> dict[str, str]:
        """
        Return the `identity()` of the process of each session, by session id; empty if its release tells none.

        Sessions that have ended without a word may be among them for an hour. Cancelling is safe.
        """


class Bus(Protocol):
    """
    Publish, subscribe, queue and pop for one session. Payloads are encoded messages; the bus wraps them.

    Every coroutine raises LayerUnavailable when the connection is lost for longer than `send_timeout`, at once if
    that time is over, and DeliveryUnknown when the bytes were written and no answer came. Cancelling does not
    undo a command that was written.

    Implemented by `bus.redis.bus.RedisBus` and `bus.memory.bus.MemoryBus`.
    """

    @property
    def pubsub(self) -> PubSub: ...

    @property
    def queues(self) -> WorkQueues: ...

    @property
    def members(self) -> Members: ...

    @property
    def log(self) -> Log: ...

    @property
    def histories(self) -> Histories: ...

    @property
    def connections(self) -> Connections: ...

    @property
    def sent(self) -> Sent: ...

    @property
    def register(self) -> Register: ...

    def start(self) -> None:
        """Begin connecting, unless that is done or under way; never waits."""

    async def answered(self) -> None:
        """Return when all commands that were sent before are answered, or have failed."""

    def rest(self) -> Awaitable[None] | None:
        """
        Close the connections until something is sent or `start()` is called; the result is done when they are.

        Subscriptions stay wanted: missed messages are read from the logs, as after a lost connection. None if
        there is nothing to close, or something waits for a reply.
        """

    async def close(self) -> None:
        """End all connections; replies that are due are waited for, for a bounded time. Safe to call twice."""

    def let_go(self) -> None:
        """
        Close the connections of an event loop that is closed, and cannot do it itself.

        From any thread and without a lock: the collector of garbage may call it.
        """

    def options_changed(self) -> None:
        """Act on a change of `expiry`; routes to channels that were made before are not used any more."""

    async def flush(self) -> None:
        """Delete every normal channel and every group's normal members of the namespace."""
