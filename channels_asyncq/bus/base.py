"""The seam between a session and what carries its messages: what a bus must do, and the callbacks it makes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from channels.exceptions import ChannelFull

from ..messages.envelopes import Envelope
from ..names import Topic

# A sender that waits for a place in a normal channel and has not asked again for so long waits no more.
WAITS_SECONDS = 1.0


def channel_full(channel: str, capacity: int) -> ChannelFull:
    """Return the error for a message that a normal channel has no place for."""
    return ChannelFull(
        f"channel {channel!r} holds {capacity} messages, its capacity, or one less while others wait for it; "
        "start more readers, raise `capacity` or `channel_capacity`, or use send_wait()"
    )


class Receiver(Protocol):
    """What a bus calls, always on the loop of its session and never re-entrantly from a call into the bus."""

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        """Take an envelope of a subscribed topic. False: it must be offered again after `Bus.resume()`."""

    def on_wake(self, topic: bytes) -> None:
        """Something was pushed to the normal channel with this topic, or given back to it."""

    def on_subscribed(self, topic: bytes) -> None:
        """The server has confirmed a subscription: the first time, or again after a reconnect."""

    def on_unreadable(self, topic: bytes, reason: str) -> None:
        """Bytes arrived that are no message; they were dropped."""

    def on_loss(self, reason: str, topics: set[bytes]) -> None:
        """Messages of these topics are lost, or nobody can know: see the page on delivery for the reasons."""

    def on_forgotten(self, partitions: Collection[int], topics: set[bytes]) -> None:
        """The server lost members of groups in these partitions, or may have, and the logs of these topics."""

    def on_jobs_unknown(self, partitions: Collection[int]) -> int:
        """
        The server may have lost what waited in normal channels of these partitions.

        Returns how many of them are used here.
        """

    def on_overrun(self) -> None:
        """Too much waits for this loop already; an envelope was dropped. Called from any thread."""

    def on_external(self) -> None:
        """A message written by somebody else's program arrived; `on_envelope` gets it next."""

    def on_answerable(self) -> None:
        """The connection for commands to a host is there (again): what `pop()` refused may be asked."""

    def on_down(self) -> None:
        """A connection is lost; the bus is reconnecting."""

    def on_up(self) -> None:
        """All connections are there again and all wanted topics are confirmed."""


@dataclass(frozen=True, slots=True)
class Link:
    """
    The state of the connections to one host.

    `state` is "connected", "connecting" or "closed"; `reason` says why it is not connected.
    """

    address: str
    state: str
    reconnects: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HostHealth:
    """
    Whether one host does what it is there for, as it was just tried out.

    `ok`: it takes writes, and what is published there arrives here. `seconds` is how long that took, None if it
    is not `ok`; `state` is as in `Link`, and `reason` says what is wrong, without credentials.
    """

    address: str
    ok: bool
    state: str
    reason: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What `health()` found: an entry per host."""

    hosts: tuple[HostHealth, ...]

    @property
    def ok(self) -> bool:
        """Whether all hosts are."""
        return all(host.ok for host in self.hosts)


class ChannelRoute(Protocol):
    """The route to one channel of another session, or to a normal channel. Errors are those of the bus."""

    def send(self, payload: bytes) -> Awaitable[object]:
        """
        Send to the owner's inbox, or append to a normal channel and wake its readers.

        Raises:
            ChannelFull: the normal channel holds its capacity of unexpired messages.
        """


class GroupRoute(Protocol):
    """The route to one group."""

    @property
    def topic(self) -> Topic:
        """The topic that the sessions of its members subscribe to."""

    def send(self, payload: bytes, excluded: tuple[str, ...]) -> Awaitable[list[bytes]]:
        """Send to the group's topic; the result is the normal channels that are members, or an empty one."""


class PubSub(Protocol):
    """Topics: the groups that a session listens to, the inboxes of all sessions, and one for everybody."""

    def subscribe(self, topic: Topic) -> None:
        """Want this topic from now on, across reconnects; `confirmed()` returns when the server knows."""

    def unsubscribe(self, topic: Topic) -> None:
        """Want this topic no more; never waits."""

    def is_confirmed(self, topic: Topic) -> bool:
        """Tell whether the server has confirmed the subscription on the present connection."""

    def confirmed(self, topic: Topic) -> Coroutine[Any, Any, None]:
        """Return when the server has confirmed a subscribed topic. Cancelling is safe."""

    def publish(self, topic: Topic, target: str, payload: bytes, flags: int) -> Awaitable[int]:
        """Send to an inbox, or to everybody; return how many subscribers the server passed it to."""

    def post(self, topic: Topic, target: str, payload: bytes, flags: int) -> None:
        """Send to an inbox without waiting for anything; the message is dropped if there is no connection."""

    def channel_route(self, channel: str, session_id: str) -> ChannelRoute:
        """Return the route to a channel of another session: to the inbox of that session."""

    def group_route(self, group: str) -> GroupRoute:
        """Return the route to a group."""

    def resume(self) -> None:
        """Offer the envelopes that `on_envelope` did not take again, and go on."""


class WorkQueues(Protocol):
    """Normal channels: each message goes to one reader, in whichever session that is."""

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
        Ask for the oldest message of a normal channel, None in the future if there is none.

        `number` grows with each message taken. Asking again with the same number gives the same message;
        the next number acknowledges it. Returns None if the link is lost; the future fails with
        ConnectionError if it is lost before the answer, and with ValueError if the message is unreadable
        (it was acknowledged nevertheless, as the next number will say).
        """

    def give_back(self, channel: str, number: int) -> asyncio.Future[None] | None:
        """
        Put the message taken under this number back at the head of its channel and wake its readers.

        Does nothing if the number is not held. Returns and fails like `pop()`.
        """

    def waiting(self) -> dict[str, int]:
        """Return how many messages wait in each normal channel that this process holds. From any thread."""


class Members(Protocol):
    """The memberships of normal channels in groups, which a server holds."""

    async def add(self, group: str, channel: str, seconds: float | None = None) -> None:
        """Make a normal channel a member of a group, for `seconds`, or for `group_expiry` if that is None."""

    async def discard(self, group: str, channel: str) -> None:
        """End a normal channel's membership."""

    def held(self) -> dict[str, dict[str, float]]:
        """
        Return the members that this process holds, by group, and when each was added.

        From any thread. The times are those of `monotonic()`.
        """


class Connections(Protocol):
    """The connections of one session to its hosts, as they are now."""

    def links(self) -> list[Link]:
        """Return their state, one entry per host."""

    def transports(self) -> list[asyncio.BaseTransport]:
        """Return the open connections: a forked child lets go of its copies of them."""

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        """Try out each host, within a timeout in seconds. An outage is a result, and no error."""

    async def checked(self, topic: Topic) -> None:
        """
        Return when the host of this topic was found to be laid out as this process thinks, however long it takes.

        Raises:
            ImproperlyConfigured: it is laid out otherwise.
        """


class Bus(Protocol):
    """
    Publish, subscribe, queue and pop for one session. Payloads are encoded messages; the bus wraps them.

    Every coroutine raises LayerUnavailable when the link is lost for longer than `send_timeout`, at once if
    that time is over, and DeliveryUnknown when the bytes were written and no answer came. Cancelling one never
    takes back what was written.
    """

    @property
    def pubsub(self) -> PubSub: ...

    @property
    def queues(self) -> WorkQueues: ...

    @property
    def members(self) -> Members: ...

    @property
    def connections(self) -> Connections: ...

    def start(self) -> None:
        """Begin connecting, unless that is done or under way; never waits."""

    async def answered(self) -> None:
        """Return when all that was sent before has its reply, or never will have one."""

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
