"""One event loop's life in the layer: wires the hub to the bus."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator
from functools import partial
from typing import Any

from channels.exceptions import ChannelFull
from django.core.exceptions import ImproperlyConfigured

from .. import threads
from ..bus.base import Bus, ChannelRoute, GroupRoute, Health, Receiver
from ..clock import monotonic, time_ns
from ..events import LOSS, WIRE, record
from ..exceptions import ChannelClosed, ChannelLayerError, LayerClosed, LayerUnavailable, StillFull
from ..local.buffers import ChannelView
from ..local.groups import Member
from ..local.hub import Hub
from ..local.mailbox import LIMIT, Mailbox
from ..messages.codecs import Codec
from ..messages.envelopes import CONTROL, EXTERNAL, Envelope
from ..messages.external import ExternalMessage
from ..names import (
    Topic,
    Topics,
    check_channel_name,
    check_group_name,
    is_session_id,
    new_session_id,
    new_session_ids,
    owner_of,
)
from ..process.callers import LoopState
from ..settings.options import Options
from ..slices import SHORT, Slice, Slices
from .control import Asked, Request
from .memberships import Memberships
from .owners import EndedSessions, check_closable, not_here
from .queues import QueueReader, SendersLine
from .statistics import Statistics

BusFactory = Callable[[Options, Topics, Codec, str, Receiver], Bus]

# A member in another process is asked for again this often, while its process may be reconnecting.
_ASK_AGAIN = 0.5
# The process is gone when so long nobody was there to hear it.
_GONE_AFTER = 2.5
# Random digits for names are fetched from the system for so many at once.
_NAMES_AT_ONCE = 64
_MOST_ROUTES = 8192
# Everybody else has this long to confirm a flush; one who is disconnected cannot.
_FLUSH_WAIT = 1.0
_MOST_SECONDS_BETWEEN_SWEEPS = 30.0
# Between two looks whether a reader that has had its turn makes room.
_PAUSE = 0.001
_UNCHANGEABLE = frozenset({str, bytes, int, float, bool, type(None)})

# By reason: the event code, and what it means.
_REASONS = {
    "trimmed": (
        "loss.trimmed",
        "the log does not reach back to it; raise recovery's `seconds` or `messages`",
    ),
    "expired": ("loss.expired", "that, or a standstill of this process, lasted longer than `expiry`"),
    "too_large": ("loss.too_large", "what is larger than recovery's `message_bytes` is not kept"),
    "server_changed": (
        "loss.server_changed",
        "the server was restarted or replaced, or may not be asked which it is (INFO), and the end of its log "
        "cannot be vouched for",
    ),
    "not_logged": (
        "loss.not_logged",
        "the server refused to write for a while, or another process has no logs (`recovery`), or logged what "
        "this one does not read",
    ),
}


class Session:
    """
    The channels, groups and connections of one event loop. Everything here runs on that loop.

    There is no standing task: callbacks of the bus, futures, and a timer that sweeps while there is something
    to sweep. `look_for_ended()` is called with it, with each flush, and before another session is asked: other
    loops of the process may be closed.
    """

    def __init__(
        self,
        options: Options,
        codec: Codec,
        make_bus: BusFactory,
        ended_sessions: EndedSessions | None = None,
        look_for_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._ended_sessions = ended_sessions or EndedSessions()
        self._look_for_ended = look_for_ended
        # Callbacks belong to the session, not to the consumer that happened to be first.
        self._context = contextvars.Context()
        self.session_id = new_session_id()
        self._options = options
        self._codec = codec
        self._topics = Topics(
            options.prefix, options.partitions, [host.db for host in options.hosts], self.session_id
        )
        self._slices = Slices(self.loop, self._context, self)
        self._chores = Slices(self.loop, self._context, seconds=SHORT)
        self.hub = Hub(options, self, self._slices, self._chores)
        self._bus = make_bus(options, self._topics, codec, self.session_id, self)
        self.mailbox = Mailbox(self.loop, self)
        self._inbox = self._topics.inbox(self.session_id)
        self._everybody = self._topics.everybody
        self._readers: dict[bytes, QueueReader] = {}
        # By normal channel: its senders that wait for a place, while there are any.
        self._lines: dict[str, SendersLine] = {}
        self._memberships = Memberships(self._bus, self._topics, options)
        self._requests: dict[int, Request] = {}
        self._last_request = 0
        self._asked = Asked()
        self._mark = f"{self.session_id}!"
        self._dotted_mark = f".{self._mark}"
        self._locals = 0
        self._random_digits: list[str] = []
        # Counted by other threads.
        self._overruns = 0
        self._overruns_lock = threads.lock()
        #: Whether the server has confirmed the inbox.
        self.is_announced = False
        #: Whether the connections were closed until they are needed; they may be there again.
        self.is_resting = False
        self._was_up = False
        self._held_since = 0.0
        self._is_pausing = False
        self._retry: asyncio.Handle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._joining: set[asyncio.Task[None]] = set()
        # By the closing of a normal channel: its name.
        self._closing: dict[asyncio.Task[None], str] = {}
        self._life: AsyncGenerator[None] | None = None
        self._ended = asyncio.Event()
        #: The layer says when it is settled.
        self.state = LoopState.CHANGING
        #: The only cache of names: the routes to them. There are routes to channels only while it is settled.
        self.channel_routes: dict[str, ChannelRoute] = {}
        self.group_routes: dict[str, GroupRoute] = {}

    async def start(self) -> None:
        """Begin connecting. Never waits for the server."""
        # Ends in shutdown_asyncgens(), after the finally blocks of consumers, whose sends still work.
        self._life = self._live()
        await anext(self._life)
        self._bus.subscribe(self._everybody)
        self._bus.subscribe(self._inbox)
        self._bus.start()

    @property
    def is_closed(self) -> bool:
        """Whether it accepts nothing any more; answers that are due may still be waited for."""
        return self.state is LoopState.ENDING or self.state is LoopState.ENDED

    async def _live(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._life = None
            await self.close()

    def options_changed(self) -> None:
        """Act on a change of the options, at once if this is the session's loop, else soon. From any thread."""
        try:
            is_here = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            is_here = False
        if is_here:
            self._adjust()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._adjust, context=self._context)

    def _adjust(self) -> None:
        if self.is_closed:
            return
        self.channel_routes.clear()  # those to normal channels have their capacity
        self._bus.options_changed()
        self.hub.options_changed()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
            self._sweep_later()

    # Names

    async def announce(self) -> None:
        """
        Return when the server has confirmed the inbox: what is sent to new channels arrives.

        In an outage it waits as a send does, and then returns all the same: the inbox is subscribed before
        anything else when the server is back.
        """
        with contextlib.suppress(LayerUnavailable):
            await self._bus.confirmed(self._inbox)
            self.is_announced = True

    def new_channel(self, prefix: str) -> str:
        """Return a fresh name that belongs to this session, which is announced."""
        if self.is_closed:
            raise LayerClosed()
        if not self._random_digits:
            self._random_digits = new_session_ids(_NAMES_AT_ONCE)
        self._locals += 1
        channel = f"{prefix}{self._mark}{self._locals}.{self._random_digits.pop()}"
        self.hub.channels.make(channel)
        if self._sweeper is None:
            self._sweep_later()
        return channel

    def is_own(self, channel: str) -> bool:
        """Tell whether a channel is one of this session's, by its name."""
        return self._dotted_mark in channel or channel.startswith(self._mark)

    # Receiving

    async def receive(self, channel: str) -> dict[str, Any]:
        """
        Return the next message of a channel, as a dict of the caller's own.

        Cancelling is safe: no message is lost.

        Raises:
            ChannelClosed: the channel or the layer is closed.
            ChannelLayerError: the channel belongs to another session.
        """
        return self.opened(await self._next(channel))

    def opened(self, envelope: Envelope) -> dict[str, Any]:
        """Return the message in an envelope, as a dict that nobody else has."""
        message = envelope.message
        if message is None:
            message = self._codec.decode_own(envelope.payload)
            if envelope.flags & EXTERNAL:
                message = ExternalMessage(message)
        elif envelope.is_flat:
            return message.copy()
        if envelope.is_flat is None and "!" not in envelope.target:
            # A group's. Where no value can be changed, its members cannot tell a copy from one decoded anew.
            envelope.is_flat = _UNCHANGEABLE.issuperset(map(type, message.values()))
            if envelope.is_flat:
                envelope.message = message
                return message.copy()
        envelope.message = None
        return message

    async def _next(self, channel: str) -> Envelope:
        if self.is_resting:
            self.rest_no_more()
        buffer = self.hub.channels.buffers.get(channel)
        if buffer is not None:
            return await buffer.get()
        session_id = owner_of(channel)
        if session_id is None:
            topic = self._topics.queue(channel).topic
            if topic.name not in self._readers:
                await self._bus.checked(topic)
            return await self._reader(channel).get()
        if session_id != self.session_id:
            self._look_for_ended()
            self._ended_sessions.refuse(session_id, channel)
            raise not_here(channel, "receive on the loop that called new_channel()")
        if channel.endswith("!"):
            return await self._next_of_all(channel)
        self._require_open(channel)
        self._sweep_later()
        return await self.hub.channels.open(channel).get()

    async def _next_of_all(self, prefix: str) -> Envelope:
        while True:
            envelope = self.hub.channels.take_any(prefix)
            if envelope is not None:
                return envelope
            self._require_open(prefix)
            if self.is_resting:
                self.rest_no_more()
            await self.hub.watchers.watch()

    def _reader(self, channel: str) -> QueueReader:
        self._require_open(channel)
        topic = self._topics.queue(channel).topic
        reader = self._readers.get(topic.name)
        if reader is None:
            if channel in self.hub.channels.closed_names:
                raise ChannelClosed(channel)
            reader = QueueReader(channel, topic.name, self._bus, self.hub.counters, self.on_unreadable)
            self._readers[topic.name] = reader
            self._bus.subscribe(topic)
            self._sweep_later()
        return reader

    def _require_open(self, channel: str = "") -> None:
        if self.is_closed:
            raise LayerClosed(channel)

    # Sending

    def _own(self, payload: bytes, channel: str) -> Envelope:
        """Wrap an encoded message that stays in this session."""
        return Envelope(payload, channel, expires_at=monotonic() + self._options.expiry)

    def send(self, channel: str, payload: bytes) -> Awaitable[object] | None:
        """Send; return an awaitable, or None if it is done."""
        if self.is_closed:
            raise LayerClosed(channel)
        if self.is_own(channel):
            self.hub.put_own(channel, self._own(payload, channel))
            if self._sweeper is None:
                self._sweep_later()
            return None
        return self._route_to(channel).send(payload)

    def _route_to(self, channel: str) -> ChannelRoute:
        route = self.channel_routes.get(channel)
        if route is None:
            if channel in self.hub.channels.closed_names:
                raise ChannelClosed(channel)
            if len(self.channel_routes) >= _MOST_ROUTES:
                self.channel_routes.clear()
            channel = str.__str__(channel)  # a subclass may compare as it likes
            route = self.channel_routes[channel] = self._bus.channel_route(channel)
        return route

    def route_to_group(self, group: str) -> GroupRoute:
        """
        Return the route to a group.

        Raises:
            TypeError: it is no group name.
        """
        route = self.group_routes.get(group) if isinstance(group, str) else None
        if route is None:
            check_group_name(group)
            if len(self.group_routes) >= _MOST_ROUTES:
                self.group_routes.clear()
            group = str.__str__(group)
            route = self.group_routes[group] = self._bus.group_route(group)
        return route

    def hand_over(self, channel: str, payload: bytes) -> bool:
        """Take a message for one of this session's channels, from any thread; False if the loop is closed."""
        if not self.mailbox.put(self._inbox.name, self._own(payload, channel)):
            raise ChannelFull(
                f"{LIMIT} messages wait for the event loop of channel {channel!r}: it is blocked, or slower than "
                "its senders; send less, or use a normal channel"
            )
        return self.mailbox.drain_soon()

    async def send_wait(self, channel: str, payload: bytes, timeout: float | None) -> None:  # noqa: ASYNC109
        """
        Send, waiting for a place if the channel is full. Only for channels of this session and normal ones.

        Cancelling is safe: the message is not sent then, unless its bytes were already on their way.

        Raises:
            StillFull: there was no place within `timeout` seconds. The message was not sent.
        """
        self._require_open(channel)
        session_id = owner_of(channel)
        if session_id == self.session_id:
            buffer = self.hub.channels.open(channel)
            try:
                async with asyncio.timeout(timeout):
                    await buffer.put_when_free(self._own(payload, channel), self._options.expiry)
            except TimeoutError:
                raise StillFull(f"channel {channel!r} had no place for {timeout} s") from None
            self.hub.note_put(buffer)
            return
        if session_id is not None:
            raise not_here(channel, "send_wait() cannot see how full it is: use send(), or a normal channel")
        until = math.inf if timeout is None else monotonic() + timeout
        ask = partial(self._is_taken, channel, payload, self._bus.waiting_route(channel))
        is_sent = False
        try:
            # Whoever comes while others of this session wait does not overtake them.
            is_sent = channel not in self._lines and await ask()
            if not is_sent:
                is_sent = await self._wait_in_line(channel, ask, until)
        finally:
            if not is_sent and channel not in self._lines:
                self._bus.stop_waiting(channel)
        if not is_sent:
            raise StillFull(f"channel {channel!r} had no place for {timeout} s")

    async def _is_taken(self, channel: str, payload: bytes, route: ChannelRoute) -> bool:
        """Send to a normal channel; False if it is full."""
        self._require_open(channel)
        self._route_to(channel)  # raises if the channel was closed here
        try:
            await route.send(payload)
        except ChannelFull:
            return False
        return True

    async def _wait_in_line(self, channel: str, ask: Callable[[], Awaitable[bool]], until: float) -> bool:
        line = self._lines.setdefault(channel, SendersLine())
        try:
            return await line.wait(ask, until)
        finally:
            if line.is_empty:
                self._lines.pop(channel, None)

    async def group_send(self, group: str, payload: bytes, excluded: tuple[str, ...]) -> None:
        """Send to a group: to its topic, and a copy to each normal channel that is a member."""
        self._require_open()
        members = await self.route_to_group(group).send(payload, excluded)
        if members:
            await self.push_copies(members, payload, excluded)

    async def push_copies(self, members: list[bytes], payload: bytes, excluded: Collection[str]) -> None:
        excluded = frozenset(excluded)
        # A bus inside the process answers without giving the loop a turn.
        turn = Slice()
        for member in members:
            await turn.rest()
            channel = member.decode()
            if channel in excluded:
                continue
            try:
                # Not kept: a route that is kept is to a channel that was not closed here.
                route = self.channel_routes.get(channel) or self._bus.channel_route(channel)
                await route.send(payload)
            except ChannelFull:
                self.hub.overflow.count(channel)

    # Groups

    def group_add(self, group: str, channel: str) -> Awaitable[None] | None:
        """
        Join; return an awaitable, or None if it is done because the group is confirmed here.

        The awaitable returns when the server has confirmed the group's subscription, or the owner of the channel
        has. Cancelling leaves no half member.
        """
        if isinstance(channel, str) and channel in self.hub.channels.buffers:
            return self._join(group, channel)
        self._require_open(channel)
        check_group_name(group)
        check_channel_name(channel)
        if self.is_own(channel):
            return self._join(group, channel)
        session_id = owner_of(channel)
        if session_id is None:
            return self._memberships.add(group, channel)
        if not session_id:
            self.hub.counters.dropped["dead_owner"] += 1  # no process has this channel
            return None
        self._look_for_ended()
        self._ended_sessions.refuse(session_id, channel)
        return self._ask_owner(session_id, {"do": "add", "group": group, "channel": channel})

    def _join(self, group: str, channel: str) -> Awaitable[None] | None:
        topic = self.route_to_group(group).topic
        # Locally before subscribing: a push may arrive before the confirmation is processed.
        member = self.hub.join(topic.name, channel)
        if self._sweeper is None:
            self._sweep_later()
        if self._bus.is_confirmed(topic):
            member.is_confirmed = True
            return None
        self._bus.subscribe(topic)
        return self._confirmed_join(topic, member)

    async def _confirmed_join(self, topic: Topic, member: Member) -> None:
        member.joiners += 1
        try:
            await self._bus.confirmed(topic)
        except BaseException:
            member.joiners -= 1
            self._abandon(topic.name, member)
            raise
        member.joiners -= 1
        member.is_confirmed = True

    def _abandon(self, topic: bytes, member: Member) -> None:
        if self.hub.groups.abandon(topic, member):
            self.on_group_empty(topic)

    def on_group_empty(self, topic: bytes) -> None:
        self._bus.unsubscribe(self._topics.group(self._topics.group_named(topic)).topic)

    def group_discard(self, group: str, channel: str) -> Awaitable[None] | None:
        """Leave; return an awaitable, or None if it is done."""
        if isinstance(channel, str) and channel in self.hub.channels.buffers:
            topic = self.route_to_group(group).topic
            if self.hub.groups.leave(topic.name, channel):
                self._bus.unsubscribe(topic)
            return None
        self._require_open(channel)
        check_group_name(group)
        check_channel_name(channel)
        if self.is_own(channel):
            return None  # a channel that is not there is in no group
        session_id = owner_of(channel)
        if session_id is None:
            return self._memberships.discard(group, channel)
        self._look_for_ended()
        if not session_id or session_id in self._ended_sessions:
            return None  # its memberships have ended with it
        return self._ask_owner(session_id, {"do": "discard", "group": group, "channel": channel})

    # Requests to other sessions

    def _new_request(self, expected: int | None) -> tuple[int, Request]:
        self._last_request += 1
        request = Request(self.loop.create_future(), expected)
        self._requests[self._last_request] = request
        return self._last_request, request

    async def _ask_owner(self, session_id: str, body: dict[str, Any]) -> None:
        """
        Have the session that owns a channel do something; return when it has confirmed.

        An owner that is gone is counted, and no error: its channel is gone, and so is whatever was to be done
        with it. It is gone when nobody has heard a question for 2.5 seconds (it may be connecting again), or when
        it has not confirmed within `send_timeout`. Cancelling takes back nothing that was asked.
        """
        number, request = self._new_request(1)
        question = self._codec.encode({**body, "request": number, "reply": self.session_id})
        inbox = self._topics.inbox(session_id)
        until, gone_at = monotonic() + self._options.send_timeout, math.inf
        try:
            # The confirmation comes to our inbox.
            await self._bus.confirmed(self._inbox)
            while not request.done.done():
                if monotonic() >= min(until, gone_at):
                    self.hub.counters.dropped["dead_owner"] += 1
                    return
                # Asking again is harmless: the owner knows by the number what it has done.
                listeners = await self._bus.publish(inbox, body["channel"], question, CONTROL)
                now = monotonic()
                gone_at = math.inf if listeners else min(gone_at, now + _GONE_AFTER)
                left = max(0.0, min(until, gone_at) - now)
                await asyncio.wait([request.done], timeout=min(left, _ASK_AGAIN))
        finally:
            del self._requests[number]

    def _on_control(self, envelope: Envelope) -> None:
        try:
            body = self.opened(envelope)
            action, number, reply = body["do"], body["request"], body["reply"]
            if not isinstance(number, int) or not isinstance(reply, str) or not is_session_id(reply):
                raise TypeError("request or reply")
            if action == "confirm":
                self._confirmed(number)
            elif action == "flush":
                self._flush_own(partial(self._confirm, number, reply))
            elif action in ("add", "discard"):
                check_group_name(body["group"])
                check_channel_name(body["channel"])
                self._do_for_other(action, body["group"], body["channel"], number, reply)
            else:
                raise TypeError(f"do: {action!r}")
        except (KeyError, TypeError) as exc:
            self.on_unreadable(self._inbox.name, f"a control message that is none: {exc!r}")

    def _do_for_other(self, action: str, group: str, channel: str, number: int, reply: str) -> None:
        if not self.is_own(channel):
            return
        what = reply, group, channel
        if self._asked.was_done(what, number):
            self._confirm(number, reply)
            return
        if not self._asked.begin(what, number):
            return
        work = self.group_add if action == "add" else self.group_discard
        task = self.loop.create_task(
            self._do_and_confirm(partial(work, group, channel), what, number),
            name=f"channels_asyncq group_{action} for {reply}",
            context=contextvars.Context(),
        )
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _do_and_confirm(
        self, work: Callable[[], Awaitable[None] | None], what: tuple[str, str, str], number: int
    ) -> None:
        is_done = False
        try:
            if (answer := work()) is not None:
                await answer
            is_done = True
        except ChannelClosed:
            is_done = True  # its groups are gone too, and there is nothing to wait for
        except (ChannelLayerError, ImproperlyConfigured):
            pass  # no link: the other side asks again, or gives up
        finally:
            self._asked.end(what, number, is_done=is_done)
        if is_done:
            self._confirm(number, what[0])

    def _confirm(self, number: int, reply: str) -> None:
        if reply == self.session_id:
            self._confirmed(number)
        else:
            body = {"do": "confirm", "request": number, "reply": self.session_id}
            self._bus.post(self._topics.inbox(reply), reply, self._codec.encode(body), CONTROL)

    def _confirmed(self, number: int) -> None:
        request = self._requests.get(number)
        if request is not None:
            request.confirmed += 1
            request.look()

    async def flush(self) -> None:
        """
        Drop every message and every membership of the namespace; return when everybody has done so.

        A session that does not confirm within a second (it is disconnected) is not waited for.
        """
        self._require_open()
        await self._bus.confirmed(self._inbox)
        await self._bus.confirmed(self._everybody)
        await self._bus.flush()
        # Confirmations may come before we know how many to expect.
        number, request = self._new_request(None)
        try:
            order = self._codec.encode({"do": "flush", "request": number, "reply": self.session_id})
            request.expected = await self._bus.publish(self._everybody, "", order, CONTROL)
            request.look()
            await asyncio.wait([request.done], timeout=_FLUSH_WAIT)
        finally:
            del self._requests[number]

    def _flush_own(self, flushed: Callable[[], None]) -> None:
        self._look_for_ended()
        self._memberships.clear()
        for reader in self._readers.values():
            self.hub.counters.dropped["flushed"] += reader.flush()
        self._chores.run(self._unsubscribe_from(self.hub.flush(flushed)))

    def _unsubscribe_from(self, topics: list[bytes]) -> Iterator[bool]:
        for topic in topics:
            if topic not in self.hub.groups.by_topic:  # else somebody has joined meanwhile
                self.on_group_empty(topic)
            yield False

    # What the bus calls

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        if self._slices.is_busy:
            return False
        hub = self.hub
        if topic in hub.groups.by_topic:
            taken = hub.deliver(topic, envelope)
        elif topic == self._inbox.name:
            if envelope.flags & CONTROL:
                self._on_control(envelope)
                return True
            target = envelope.target
            if target not in hub.channels.buffers and not self._may_open(target):
                if self.is_closed:
                    hub.counters.dropped["closed"] += 1
                else:
                    self.on_unreadable(topic, f"addressed to {target!r}")
                return True
            taken = hub.deliver_to(target, envelope)
            if self._sweeper is None:
                self._sweep_later()
        elif topic == self._everybody.name:
            self._on_control(envelope)
            return True
        else:
            return True  # a group that lost its last member while this was under way
        if not taken:
            self._hold()
        return taken

    def on_idle(self) -> None:
        """Take in what arrived while earlier envelopes were delivered."""
        self._bus.resume()
        self.mailbox.drain()

    def _may_open(self, channel: str) -> bool:
        """Tell whether a name from elsewhere is that of a channel of ours, and may still be read."""
        if self.is_closed:
            return False
        try:
            check_channel_name(channel)
        except TypeError:
            return False
        return owner_of(channel) == self.session_id

    def on_wake(self, topic: bytes) -> None:
        reader = self._readers.get(topic)
        if reader is not None:
            reader.poke()

    def on_subscribed(self, topic: bytes) -> None:
        reader = self._readers.get(topic)
        if reader is not None:
            reader.poke()

    def on_unreadable(self, topic: bytes, reason: str) -> None:
        self.hub.counters.dropped["unreadable"] += 1
        self.hub.throttle.warn(
            WIRE, "wire.unreadable", "dropped what arrived on %s: %s", topic.decode(), reason
        )

    def on_loss(self, reason: str, topics: set[bytes]) -> None:
        self._notify_loss(reason, topics)

    def on_forgotten(self, partitions: Collection[int], topics: set[bytes]) -> None:
        self._memberships.renew(partitions)
        if topics:
            self._notify_loss("server_forgot", topics)

    def on_jobs_unknown(self, partitions: Collection[int]) -> int:
        jobs = {reader.channel for reader in self._readers.values()}
        jobs.update(channel for channel in self.channel_routes if owner_of(channel) is None)
        count = sum(self._topics.partition(channel) in partitions for channel in jobs)
        if count:
            # How many messages waited there nobody knows.
            self.hub.counters.dropped["server_forgot"] += count
        return count

    def _notify_loss(self, reason: str, topics: set[bytes]) -> None:
        """Notify the channels concerned, in slices; `on_loss_notified()` follows."""
        named, groups = self._topics.group_named, self.hub.groups.by_topic
        # A message to one of this session's channels came to the inbox; nobody knows to which channel.
        self.hub.notify_loss(
            reason,
            ((topic, named(topic)) for topic in topics if topic in groups),
            everybody=self._inbox.name in topics,
        )

    def on_loss_notified(self, reason: str, channels: int, groups: int) -> None:
        # The bus has logged that the server forgot something, with the likely cause.
        if channels and reason != "server_forgot":
            code, meaning = _REASONS[reason]
            record(
                LOSS,
                logging.WARNING,
                code,
                "%d channels may have missed messages while the connection was lost: %s (%d groups)",
                channels,
                meaning,
                groups,
            )

    def on_overrun(self) -> None:
        # Not in the hub's counters, which belongs to this loop: two threads that add one may add one in all.
        with self._overruns_lock:
            self._overruns += 1

    def on_external(self) -> None:
        self.hub.counters.external += 1

    def on_unhandled(self, message: ExternalMessage, reader: str) -> None:
        """Note that a consumer has no handler for a message from outside, and drops it."""
        self.hub.counters.dropped["unhandled"] += 1
        self.hub.throttle.warn(
            WIRE,
            "wire.unhandled",
            "%s has no handler for a message from outside of type %r; it is dropped: list the types that other "
            "programs may send in CONFIG's `external`",
            reader,
            message["type"],
        )

    def on_answerable(self) -> None:
        for reader in list(self._readers.values()):
            reader.reconnected()

    def on_down(self) -> None:
        if self._options.on_disconnect is not None:
            self._tell_everybody(self._options.on_disconnect)

    def on_up(self) -> None:
        if self._was_up and self._options.on_reconnect is not None:
            self._tell_everybody(self._options.on_reconnect)
        self._was_up = True

    def _tell_everybody(self, kind: str) -> None:
        self.hub.broadcast(self._own(self._codec.encode({"type": kind}), ""))

    # Flow: a full channel stops the mailbox of messages while there is time to wait for its reader (see Hub)

    def _hold(self) -> None:
        if self._retry is not None:
            return
        self._held_since = monotonic()
        self._is_pausing = not self.hub.flow.awaits_a_turn
        if self._is_pausing:
            self._retry = self.loop.call_later(_PAUSE, self._offer_again, context=self._context)
        else:
            self._retry = self.loop.call_soon(self._offer_again, context=self._context)

    def _offer_again(self) -> None:
        self._retry = None
        self.hub.flow.end_wait(1000.0 * (monotonic() - self._held_since))
        self.on_idle()

    def on_capacity(self) -> None:
        """All channels that messages are held for have a place again."""
        if self._retry is not None and self._is_pausing:
            self._is_pausing = False
            self._retry.cancel()
            self._retry = self.loop.call_soon(self._offer_again, context=self._context)

    # Sweeping

    def _sweep_later(self) -> None:
        if self._sweeper is None and not self.is_closed:
            pause = min(_MOST_SECONDS_BETWEEN_SWEEPS, max(self._options.expiry / 2, 0.05))
            self._sweeper = self.loop.call_later(pause, self._sweep, context=self._context)

    def _sweep(self) -> None:
        self._sweeper = None
        self._look_for_ended()
        self.hub.sweep()
        now = monotonic()
        for topic, reader in list(self._readers.items()):
            if reader.is_idle and now - reader.buffer.last_used > self._options.expiry:
                del self._readers[topic]
                self._bus.unsubscribe(self._topics.queue(reader.channel).topic)
        if self.hub.channels.buffers or self.hub.channels.closed_names or self._readers:
            self._sweep_later()

    # Resting

    async def rest(self) -> None:
        """
        Close the connections until this loop uses the layer again, unless something here waits for them.

        Channels, what waits in them and memberships stay. Cancelling is safe.
        """
        await self._bus.answered()
        if self.is_closed or self._is_awaited():
            return
        closing = self._bus.rest()
        if closing is not None:
            # It is no outage: nobody is told that it is over.
            self.is_announced = self._was_up = False
            self.is_resting = True
            await closing

    def _is_awaited(self) -> bool:
        """Tell whether somebody would wait in vain without connections."""
        return (
            bool(self._requests or self._lines or self._joining or self._closing)
            or self._retry is not None
            or self._slices.is_busy
            or self.hub.channels.are_awaited
            or not all(reader.is_idle for reader in self._readers.values())
        )

    def rest_no_more(self) -> None:
        """Open the connections again: somebody waits for a message."""
        self.is_resting = False
        self._bus.start()

    # Ending

    def close_channel(self, channel: str) -> asyncio.Future[None]:
        """Close a channel now; the future is done when the server has back what was taken for its receivers."""
        check_closable(channel, self.session_id)
        self.hub.channels.close(channel)
        self.channel_routes.pop(channel, None)
        topic = self._topics.queue(channel).topic
        reader = self._readers.pop(topic.name, None)
        if reader is None:
            return self._channel_closed(channel)
        self._bus.unsubscribe(topic)
        task = self.loop.create_task(reader.close(ChannelClosed), name=f"channels_asyncq closing {channel}")
        self._closing[task] = channel
        task.add_done_callback(self._closing.pop)
        return asyncio.shield(task)

    def _channel_closed(self, channel: str) -> asyncio.Future[None]:
        """Return what is done when an earlier call has closed the channel."""
        for task, name in self._closing.items():
            if name == channel:
                # Shielded, as for the first: whoever is cancelled ends the waiting of nobody else.
                return asyncio.shield(task)
        done: asyncio.Future[None] = self.loop.create_future()
        done.set_result(None)
        return done

    async def close(self) -> None:
        """
        End this session: receivers get LayerClosed, what was taken for them goes back, answers are waited for.

        A second call returns when the first has ended it. Cancelling the first ends the session at once.
        """
        if self.is_closed:
            await self._ended.wait()
            return
        try:
            await self._close(LayerClosed)
        finally:
            self._ended.set()
            life, self._life = self._life, None
            if life is not None:
                await life.aclose()  # nothing is left for it to do

    async def _close(self, reason: type[ChannelClosed]) -> None:
        self.state = LoopState.ENDING
        self._ended_sessions.add(self.session_id)
        self.channel_routes.clear()
        self.group_routes.clear()
        for handle in (self._retry, self._sweeper):
            if handle is not None:
                handle.cancel()
        self._retry = self._sweeper = None
        for task in list(self._joining):
            task.cancel()
        self._memberships.close()
        readers = list(self._readers.values())
        self.hub.close(reason)
        try:
            closing = asyncio.gather(*(reader.close(reason) for reader in readers))
            await self._slices.idle()
            if readers:
                await asyncio.wait([closing], timeout=self._options.send_timeout)
                closing.cancel()
        finally:
            self.state = LoopState.ENDED
            self.mailbox.close()
            await self._bus.close()

    def let_go(self) -> None:
        """
        End what is left of a session whose loop is closed and runs nothing any more.

        From any thread and without a lock: the collector of garbage may call it.
        """
        self.state = LoopState.ENDED
        if not self._ended.is_set():
            self._bus.let_go()

    def let_go_in_child(self) -> list[int]:
        """Be closed without closing anything: in a forked child. Return the descriptors of the connections."""
        self.state = LoopState.ENDED
        self._ended.set()
        sockets = [transport.get_extra_info("socket") for transport in self._bus.transports()]
        return [sock.fileno() for sock in sockets if sock is not None and sock.fileno() >= 0]

    async def health(self, timeout: float | None = None) -> Health:  # noqa: ASYNC109
        self._require_open()
        return await self._bus.health(self._options.send_timeout if timeout is None else timeout)

    def channels(self) -> dict[str, ChannelView]:
        """Return the channels that are read here, and on `memory://` those that wait for a reader."""
        found = {
            channel: ChannelView(buffer.capacity, buffer.queued)
            for channel, buffer in list(self.hub.channels.buffers.items())
        }
        waiting = {
            reader.channel: reader.buffer.queued
            for reader in list(self._readers.values())
            if not reader.is_idle
        }
        for channel, count in (waiting | self._bus.waiting()).items():
            found[channel] = ChannelView(self._options.capacity_of(channel), count)
        return found

    def groups(self) -> dict[str, dict[str, float]]:
        """Return the members of groups that are known here, and the time at which each was added."""
        found = self._bus.members()
        for topic, group in list(self.hub.groups.by_topic.items()):
            members = {channel: member.added for channel, member in list(group.members.items())}
            found.setdefault(self._topics.group_named(topic), {}).update(members)
        epoch = time_ns() / 1e9 - monotonic()
        return {
            group: {channel: epoch + added for channel, added in members.items()}
            for group, members in found.items()
        }

    def statistics(self) -> Statistics:
        hub = self.hub
        queued = [
            (channel, buffer.queued)
            for channel, buffer in list(hub.channels.buffers.items())
            if buffer.queued > 0
        ]
        return Statistics(
            channels=len(hub.channels.buffers) + len(self._readers),
            groups=len(hub.groups.by_topic),
            queued=tuple(sorted(queued, key=lambda entry: -entry[1])),
            delivered=hub.counters.delivered,
            external=hub.counters.external,
            dropped=dict(hub.counters.dropped + Counter(overflow=self._overruns)),
            told=dict(hub.counters.told),
            links=tuple(self._bus.links()),
        )
