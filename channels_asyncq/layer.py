"""The Channels contract: validate, name, and pick the running loop's session."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import re
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Generic, TypeVar, Unpack

from channels.exceptions import ChannelFull, MessageTooLarge
from channels.layers import BaseChannelLayer, channel_layers
from django.core.signals import setting_changed
from django.dispatch import receiver

from . import threads
from .bus.base import Health
from .bus.memory.bus import MemoryBus
from .bus.memory.namespaces import after_fork_in_child, broker_for, leave_broker
from .bus.redis.bus import RedisBus
from .bus.resp.connector import check_hosts
from .bus.resp.supervisor import Outages
from .exceptions import ChannelClosed, LayerClosed
from .local.buffers import ChannelBuffer, ChannelView
from .messages.codecs import codec_for
from .messages.external import ExternalMessage
from .names import MAX_NAME_LENGTH, check_channel_name, check_group_name, checked_prefix, owner_of
from .process import relay
from .process.callers import Caller, LoopState
from .session.owners import EndedSessions, check_closable
from .session.session import BusFactory, Session
from .session.statistics import Statistics
from .settings.config import Config
from .settings.options import Options

T = TypeVar("T")
# Something to do with a session: it returns an awaitable, or None if it is done.
Work = Callable[[Session], Awaitable[T] | None]

_CLOSE_SECONDS = 2.0


class OpenChannel:
    """
    A channel for one reader that waits for other things as well: it takes what is there, or leaves a future.

    It belongs to the loop on which `open_channel()` made it, and stays until it is closed, however rarely it is
    read.
    """

    __slots__ = ("_buffer", "_layer", "_session", "empty", "name", "stop_waking", "wake")

    def __init__(self, layer: AsyncQueueChannelLayer, session: Session, buffer: ChannelBuffer) -> None:
        self._layer = layer  # held: sessions end with it
        self._session = session
        self._buffer = buffer
        self.name = buffer.channel
        #: Whether nothing waits; False may still mean that what waits has expired.
        self.empty = buffer.empty
        #: Have a future done when a message comes or the channel closes. Look with `take()` first.
        self.wake = buffer.wake
        #: Take a future back that was given to `wake()`.
        self.stop_waking = buffer.stop_waking
        buffer.is_kept = True

    def take(self) -> dict[str, Any] | None:
        """
        Return the next message, a dict of the caller's own, or None if none waits.

        Raises:
            ChannelClosed: the channel or the layer is closed, and nothing is left in it.
        """
        envelope = self._buffer.take()
        if envelope is not None:
            if envelope.is_flat and envelope.message is not None:
                return envelope.message.copy()
            return self._session.opened(envelope)
        if self._buffer.closed is not None:
            raise self._buffer.closed(self.name)
        return None

    def close(self) -> None:
        """Close the channel; what still waits is dropped and counted. Closing twice is fine."""
        if not self._session.is_closed:
            self._session.hub.channels.discard(self._buffer)


class _Setting(Generic[T]):
    """
    An attribute of a layer that is one of its options.

    What is set later is checked as in CONFIG, and obeyed.
    """

    def __set_name__(self, owner: type[AsyncQueueChannelLayer], name: str) -> None:
        self._name = name

    def __get__(self, layer: AsyncQueueChannelLayer, owner: type[AsyncQueueChannelLayer]) -> T:
        value: T = getattr(layer.options, self._name)
        return value

    def __set__(self, layer: AsyncQueueChannelLayer, value: Any) -> None:
        layer._change_option(self._name, value)

    def __delete__(self, layer: AsyncQueueChannelLayer) -> None:
        """Go back to what CONFIG says, as mock.patch.object() does in the end."""
        layer._change_option(self._name, getattr(layer._configured, self._name))


class AsyncQueueChannelLayer(BaseChannelLayer):
    """
    A channel layer with a bounded queue per channel in the process that reads it, and Redis between processes.

    One object serves any number of event loops and threads. A specific channel belongs to the loop on which
    `new_channel()` made it. Source: the Channel Layer Specification of Channels.

    Args:
        **config: the keys of CONFIG, see the settings page.

    Raises:
        ImproperlyConfigured: an unknown key, a wrong type or an impossible value.
    """

    MAX_NAME_LENGTH = MAX_NAME_LENGTH
    extensions = ["groups", "flush"]  # noqa: RUF012  (the specification asks for a list)
    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge

    capacity = _Setting[int]()
    channel_capacity = _Setting[tuple[tuple[re.Pattern[str], int], ...]]()  # type: ignore[assignment]
    expiry = _Setting[float]()  # type: ignore[assignment]
    group_expiry = _Setting[float]()

    def __init__(self, **config: Unpack[Config]) -> None:
        self.options = options = Options.from_config(config)
        check_hosts(options)
        self._configured = replace(options)
        # They have these values already: nothing is changed.
        super().__init__(options.expiry, options.capacity, options.channel_capacity)  # type: ignore[arg-type]
        #: Types of the messages that the layer itself sends to the channels it owns.
        self.notices = options.notices
        self._codec = codec_for(options.serializer_format)
        self._max_message_size = options.max_message_size
        self._make_bus = _bus_factory(options, self)
        self._start_afresh()
        self._is_closed = False
        _layers.add(self)

    def _start_afresh(self) -> None:
        self._lock = threads.lock()
        self._sessions: dict[asyncio.AbstractEventLoop, Session] = {}
        self._owners: dict[str | None, Session] = {}
        self._ended_sessions = EndedSessions()
        # Sessions that are ending. Weakly: one that has ended, or whose loop has, is nobody's.
        self._ending: weakref.WeakSet[Session] = weakref.WeakSet()
        self._callers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Caller] = (
            weakref.WeakKeyDictionary()
        )

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """
        Close the sessions of a layer that nobody holds any more, each on its own loop.

        The collector of garbage may call this anywhere: nothing here waits, or takes a lock of ours. (No
        weakref.finalize(): that would hold the sessions, and by what waits in them the layer.)
        """
        # In a child that was forked in C and has not noticed, the sessions are the parent's.
        if not is_finalizing() and os.getpid() == _pid:
            for session in getattr(self, "_sessions", {}).values():  # there are none where CONFIG is wrong
                _close_session(session)

    # Settings

    @property
    def prefix(self) -> str:
        """What begins every name on the server. It cannot be set later: make another layer."""
        return self.options.prefix

    def _change_option(self, name: str, value: Any) -> None:
        """
        Set an option later than CONFIG: for messages and memberships from now on, on every loop.

        Raises:
            ImproperlyConfigured: as for CONFIG.
        """
        if name == "channel_capacity" and isinstance(value, (list, tuple)):
            # As compile_capacities() of Channels returns it. What is no list of pairs is refused below.
            with contextlib.suppress(TypeError, ValueError):
                value = dict(value)
        if self.options.change(name, value):
            for session in list(self._sessions.values()):
                session.options_changed()

    # Names and messages

    def match_type_and_length(self, name: object) -> bool:
        return isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH

    def require_valid_channel_name(self, name: object, receive: bool = False) -> bool:
        """
        Return True for a channel name; for `receive()` the whole name and the part up to `!` are both right.

        Raises:
            TypeError: it is none; the text says why.
        """
        check_channel_name(name, receive)
        return True

    def require_valid_group_name(self, name: object) -> bool:
        """
        Return True for a group name.

        Raises:
            TypeError: it is none; the text says why.
        """
        check_group_name(name)
        return True

    def _encode(self, message: dict[str, Any]) -> bytes:
        payload = self._codec.encode(message)
        if len(payload) > self._max_message_size:
            raise MessageTooLarge(
                f"the message has {len(payload)} bytes when encoded, and max_message_size is "
                f"{self._max_message_size}; send a reference to it, or raise the setting"
            )
        return payload

    # Sessions

    async def _session(self) -> Session:
        """Return the running loop's session, made if it has none."""
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is not None and not session.is_closed:
            return session
        _notice_fork()
        # close(), on another loop, takes under the lock what has to end: it must see this session, or this it.
        with self._lock:
            if self._is_closed:
                raise LayerClosed()
            if self._is_ending(loop):
                raise LayerClosed(
                    message="The event loop is ending, and its session of the channel layer was closed with its "
                    "asynchronous generators: it can receive nothing any more. Use another event loop."
                )
            self._forget_ended_sessions()
            # By a weak reference: a layer that nobody holds any more must not be held by its sessions.
            look = partial(_look_for_ended_sessions, weakref.ref(self))
            session = Session(self.options, self._codec, self._make_bus, self._ended_sessions, look)
            caller = self._callers.get(loop)
            if caller is None:
                session.state = LoopState.SETTLED
            else:
                for channel in caller.closed_names:
                    session.hub.channels.close(channel)
                caller.closed_names.clear()
            self._sessions[loop] = session
            self._owners[session.session_id] = session
        await session.start()
        return session

    def _is_ending(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether the loop's session has ended before the layer: nobody would close another one."""
        session = self._sessions.get(loop)
        if session is not None:
            return session.is_closed
        caller = self._callers.get(loop)
        return caller is not None and caller.state is LoopState.ENDING

    def look_for_ended_sessions(self) -> None:
        """Let go of loops that were ended by `loop.close()` alone, of which nothing tells. From any thread."""
        _notice_fork()
        with self._lock:
            self._forget_ended_sessions()

    def _forget_ended_sessions(self) -> None:
        for loop, session in list(self._sessions.items()):
            if session.state is LoopState.ENDED or loop.is_closed():
                if loop.is_closed():
                    session.let_go()
                else:
                    self._caller(loop).state = LoopState.ENDING
                    self._ending.add(session)
                self._ended_sessions.add(session.session_id)
                del self._sessions[loop]
                self._owners.pop(session.session_id, None)

    def _relayed_caller(self, loop: asyncio.AbstractEventLoop) -> Caller | None:
        """Return the loop's account with the relay, or None if it is to send with a session of its own."""
        session = self._sessions.get(loop)
        if session is not None and not session.is_closed:
            return None
        if self._is_closed:
            raise LayerClosed()
        if loop not in self._callers:
            self.look_for_ended_sessions()  # once for each loop
        caller = self._caller(loop)
        if session is not None:
            caller.state = LoopState.ENDING
        return None if caller.is_lasting else caller

    def _caller(self, loop: asyncio.AbstractEventLoop) -> Caller:
        # Not only by the loop's own thread.
        return self._callers.get(loop) or self._callers.setdefault(loop, Caller())

    async def _do(self, work: Work[T]) -> T | None:
        """Do something with the running loop's session, or have the relay do it with its own."""
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.state is not LoopState.SETTLED:
            caller = self._relayed_caller(loop)
            if caller is not None:
                caller.sent()
                try:
                    return await _relay().run(partial(self._relayed, work))
                finally:
                    caller.answered()
            session = await self._settled_session(loop)
        return await (work(session) or _nothing())

    async def _settled_session(self, loop: asyncio.AbstractEventLoop) -> Session:
        """Return the loop's session when the relay is done with what it sent for it: nothing must overtake it."""
        caller = self._callers.get(loop)
        if caller is not None:
            await caller.all_answered()
        session = await self._session()
        self._callers.pop(loop, None)
        if session.state is LoopState.CHANGING:
            session.state = LoopState.SETTLED
        return session

    def _relayed(self, work: Work[T]) -> Awaitable[T | None]:
        """Do something with the relay's session, on the relay's loop."""
        session = self._sessions.get(asyncio.get_running_loop())
        if session is None or session.is_closed:
            return self._relayed_first(work)
        return work(session) or _nothing()

    async def _relayed_first(self, work: Work[T]) -> T | None:
        return await (work(await self._session()) or _nothing())

    # The specification

    async def new_channel(self, prefix: str = "specific.") -> str:
        """
        Return a new name that only the running loop reads: `<prefix>.<session id>!<local>`.

        The first call waits until the server has confirmed the session's inbox, at most `send_timeout`.

        Raises:
            TypeError: the prefix makes no channel name.
            LayerClosed: the layer is closed.
        """
        if not isinstance(prefix, str):
            raise TypeError(f"the prefix of a channel must be a str, not {type(prefix).__name__}: {prefix!r}")
        prefix = checked_prefix(prefix)
        session = self._sessions.get(asyncio.get_running_loop())
        if session is None or session.is_closed:
            session = await self._session()
        if not session.is_announced:
            await session.announce()
        return session.new_channel(prefix)

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """
        Send a message to a channel; return when it is in the queue, or the server has accepted it.

        Raises:
            TypeError: the name is no channel name, or the message cannot travel.
            MessageTooLarge: it is larger than `max_message_size` when encoded, or holds too many containers.
            ChannelFull: a channel of this loop, or a normal channel, is at its capacity.
            ChannelClosed: the channel or the layer is closed.
            LayerUnavailable: the server cannot be reached.
            DeliveryUnknown: it was written, and no answer came.

        Cancelling does not take back what was written.
        """
        session = self._sessions.get(asyncio.get_running_loop())
        is_own = False
        if session is not None and isinstance(channel, str):
            route = session.channel_routes.get(channel)
            if route is not None:
                await route.send(self._encode(message))
                return
            is_own = channel in session.hub.channels.buffers
        if not is_own:
            check_channel_name(channel)
        payload = self._encode(message)
        if not is_own:
            owner = self._owners.get(owner_of(channel))
            if owner is not None and owner is not session and _hand_over(owner, channel, payload):
                return
        if session is None or session.state is not LoopState.SETTLED:
            caller = self._callers.get(asyncio.get_running_loop())
            if caller is not None and channel in caller.closed_names:
                raise ChannelClosed(channel)
            await self._do(lambda session: session.send(channel, payload))
        elif (answer := session.send(channel, payload)) is not None:
            await answer

    async def receive(self, channel: str) -> dict[str, Any]:
        """
        Return the next message of a channel, a dict of the caller's own; wait if there is none.

        `channel` is a full name, or for all channels of a session the part up to and including `!`. An outage
        raises nothing here: messages come when the server is back. Cancelling loses no message. What another
        program has published is an `ExternalMessage`, a dict too.

        Raises:
            TypeError: no channel name.
            ChannelClosed: the channel or the layer is closed.
            ChannelLayerError: the channel belongs to another loop or process.
        """
        session = self._sessions.get(asyncio.get_running_loop())
        if session is not None and isinstance(channel, str):
            buffer = session.hub.channels.buffers.get(channel)
            if buffer is not None:
                envelope = buffer.take()
                if envelope is None:
                    if session.is_resting:
                        session.rest_no_more()
                    envelope = await buffer.get_next()
                return session.opened(envelope)
        self.require_valid_channel_name(channel, receive=True)
        return await (await self._session()).receive(channel)

    async def group_add(self, group: str, channel: str) -> None:
        """
        Make a channel a member of a group, or renew its membership for `group_expiry` seconds.

        Returns when the server has confirmed it: what is sent after that is received. Cancelling leaves no
        half member.

        Raises:
            TypeError: a wrong name.
            ChannelClosed: the channel or the layer is closed.
            ChannelLayerError: the channel was made on an event loop of this process that has ended.
            LayerUnavailable: the server cannot be reached.
        """
        session = self._sessions.get(asyncio.get_running_loop())
        if session is None or session.state is not LoopState.SETTLED:
            check_group_name(group)
            check_channel_name(channel)
            if session is not None and session.is_closed and session.is_own(channel):
                raise LayerClosed(channel)
            await self._do(lambda session: session.group_add(group, channel))
        elif (answer := session.group_add(group, channel)) is not None:
            await answer

    async def group_discard(self, group: str, channel: str) -> None:
        """
        End a membership; does nothing if there is none.

        Raises:
            TypeError: a wrong name.
            LayerUnavailable: the channel is not of this loop, and the server cannot be reached.
        """
        session = self._sessions.get(asyncio.get_running_loop())
        if session is None or session.state is not LoopState.SETTLED:
            check_group_name(group)
            check_channel_name(channel)
            if session is not None and session.is_closed and session.is_own(channel):
                return  # its memberships ended with the session: the relay would ask an owner that is gone
            await self._do(lambda session: session.group_discard(group, channel))
        elif (answer := session.group_discard(group, channel)) is not None:
            await answer

    async def group_send(self, group: str, message: dict[str, Any], *, exclude: Collection[str] = ()) -> None:
        """
        Send a message to all members of a group but the channels in `exclude`.

        Never raises ChannelFull: a full member loses messages by its `overflow` setting, and that is counted.

        Raises:
            TypeError: a wrong name, or the message cannot travel.
            MessageTooLarge, LayerClosed, LayerUnavailable, DeliveryUnknown: as `send()`.
        """
        session = self._sessions.get(asyncio.get_running_loop())
        if session is None or session.state is not LoopState.SETTLED:
            check_group_name(group)
            excluded = self._excluded(exclude) if exclude else ()
            payload = self._encode(message)
            await self._do(lambda session: session.group_send(group, payload, excluded))
            return
        route = session.route_to_group(group)
        excluded = self._excluded(exclude) if exclude else ()
        payload = self._encode(message)
        members = await route.send(payload, excluded)
        if members:
            await session.push_copies(members, payload, excluded)

    def _excluded(self, exclude: Collection[str]) -> tuple[str, ...]:
        if isinstance(exclude, str):
            raise TypeError(f"exclude must be a list of channel names, not the str {exclude!r}")
        for channel in exclude:
            self.require_valid_channel_name(channel)
        return tuple(exclude)

    # Without a loop: what channels_asyncq.sync is made of

    def prepare_send(self, channel: str, message: dict[str, Any]) -> Callable[[], None]:
        """
        Check and encode a message now; calling the result sends it, and blocks until it is sent.

        For threads that run no event loop. Raises as `send()`: what is wrong with the message at once, and what
        is wrong with the server when it is sent.
        """
        self.require_valid_channel_name(channel)
        payload = self._encode(message)

        def send() -> None:
            owner = self._owners.get(owner_of(channel))
            if owner is None or not _hand_over(owner, channel, payload):
                _relay().wait(partial(self._relayed, lambda session: session.send(channel, payload)))

        return send

    def prepare_group_send(
        self, group: str, message: dict[str, Any], exclude: Collection[str] = ()
    ) -> Callable[[], None]:
        """Check and encode a message for a group now; calling the result sends it. As `prepare_send()`."""
        self.require_valid_group_name(group)
        excluded = self._excluded(exclude) if exclude else ()
        payload = self._encode(message)

        def work(session: Session) -> Awaitable[None]:
            return session.group_send(group, payload, excluded)

        return lambda: _relay().wait(partial(self._relayed, work))

    # Clearing

    async def flush(self) -> None:
        """
        Drop all messages and memberships of the prefix, in every process; return when that is done.

        Channels stay usable and receivers go on waiting. A process that is disconnected keeps what it has.
        """
        self.look_for_ended_sessions()  # they would be waited for
        await self._do(lambda session: session.flush())

    # Beyond the specification

    async def send_wait(
        self,
        channel: str,
        message: dict[str, Any],
        timeout: float | None = None,  # noqa: ASYNC109  (the words of asyncio.Queue's users)
    ) -> None:
        """
        Send to a channel of this loop or to a normal channel, waiting up to `timeout` seconds for a place.

        Raises:
            StillFull: there was none in that time; a ChannelFull and a TimeoutError.
            ChannelLayerError: the channel is of another loop or process, which tells nobody how full it is.
            As `send()` otherwise.

        The time is for a place: answers of the server, also to what this loop sent before, are waited for as by
        `send()`. Cancelling is safe: the message is not sent then, unless it is for a normal channel and its
        bytes were already on their way.
        """
        self.require_valid_channel_name(channel)
        payload = self._encode(message)
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or not (session.state is LoopState.SETTLED or session.is_own(channel)):
            if self._is_ending(loop):
                await self._do(lambda session: session.send_wait(channel, payload, timeout))
                return
            session = await self._settled_session(loop)
        await session.send_wait(channel, payload, timeout)

    async def listen(self, channel: str) -> AsyncGenerator[dict[str, Any]]:
        """Yield the messages of a channel until it, or the layer, is closed."""
        while True:
            try:
                message = await self.receive(channel)
            except ChannelClosed:
                return
            yield message

    async def open_channel(self, prefix: str = "specific.") -> OpenChannel:
        """
        Return a new channel, as `new_channel()` makes them, to read from without a call of `receive()`.

        Cancelling is safe. Raises as `new_channel()`.
        """
        channel = await self.new_channel(prefix)
        session = await self._session()
        return OpenChannel(self, session, session.hub.channels.open(channel))

    def close_channel(self, channel: str) -> Awaitable[None]:
        """
        Close a channel of the running loop, at once; its receivers get what is left and then ChannelClosed.

        A normal channel is closed in this loop only: what was taken for its receivers goes back to the server,
        and awaiting the result waits for that. Closing twice is fine, and opens no connections.

        Raises:
            TypeError: no channel name.
            ChannelLayerError: the channel belongs to another loop or process.
        """
        self.require_valid_channel_name(channel)
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is not None and not session.is_closed:
            return session.close_channel(channel)
        if not self._is_closed and not self._is_ending(loop):
            check_closable(channel, None)
            # Nothing was taken for it; what this loop sends and receives later is told that it is closed.
            self._caller(loop).close_channel(channel)
        done: asyncio.Future[None] = loop.create_future()
        done.set_result(None)
        return done

    async def close(self) -> None:
        """
        Close the layer on every loop: receivers end with LayerClosed and nothing is accepted any more.

        Answers that are due are waited for, for a bounded time. Closing twice is fine: whoever closes it once
        more, on any loop, waits for the same end.
        """
        here = asyncio.get_running_loop()
        sessions = self._end()
        elsewhere = []
        for session in sessions:
            if session.loop is not here:
                closing = _close_session(session)
                # One that stands still closes its session when it runs again.
                if session.loop.is_running():
                    elsewhere.append(asyncio.wrap_future(closing))
        for session in sessions:
            if session.loop is here:
                await session.close()
        if elsewhere:
            # Bounded, because a loop may stop just now.
            await asyncio.wait(elsewhere, timeout=2 * self.options.send_timeout + 1)

    def _end(self) -> list[Session]:
        """Accept nothing any more; return the sessions that have to end, also those that are ending already."""
        with self._lock:
            self._is_closed = True
            self._ending.update(self._sessions.values())
            sessions = list(self._ending)
            self._sessions.clear()
            self._owners.clear()
        leave_broker(self.options.prefix, self.options.hosts[0].db, self)
        return sessions

    async def close_pools(self) -> None:
        """
        Close the running loop's connections; they are opened again when the loop next uses the layer.

        For code that was written for channels_redis: here connections need no closing before the loop ends.
        Channels, messages in them and memberships stay, and what is sent meanwhile is read from the logs.
        Connections stay too while somebody on the loop waits for a message or an answer. A loop that only sent
        for a moment has none: the relay's are those of the whole process. Cancelling is safe.
        """
        session = self._sessions.get(asyncio.get_running_loop())
        if session is not None and not session.is_closed:
            await session.rest()

    def close_from_thread(self) -> None:
        """
        Close the layer from code that cannot await: as `close()`, on every loop.

        Waits, at most two seconds, for the relay's session only: nobody knows what the others wait for.
        """
        relays = relay.relay().loop
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        for session in self._end():
            closing = _close_session(session)
            if session.loop is relays and session.loop is not here:
                _wait_for(closing)

    @property
    def is_closed(self) -> bool:
        """Whether the layer was closed: everything raises LayerClosed then."""
        return self._is_closed

    async def health(self, timeout: float | None = None) -> Health:  # noqa: ASYNC109  (as send_wait)
        """
        Try out every host: whether it takes writes, and whether what is published there arrives here.

        Takes `timeout` seconds at most, `send_timeout` if it is None. An outage is a result and raises nothing.
        Cancelling is safe.

        Raises:
            LayerClosed: the layer is closed.
        """
        health = await self._do(lambda session: session.health(timeout))
        assert health is not None
        return health

    def drop_unhandled(self, message: ExternalMessage, reader: str) -> None:
        """Count and log a message from outside for which its reader, on the running loop, has no handler."""
        session = self._sessions.get(asyncio.get_running_loop())
        if session is not None:
            session.on_unhandled(message, reader)

    @property
    def channels(self) -> Mapping[str, ChannelView]:
        """
        The channels that this process reads at this moment, and how full each is. Read-only.

        On `memory://`, where the process is the server, also the normal channels in which messages wait.
        """
        self.look_for_ended_sessions()
        found: dict[str, ChannelView] = {}
        for session in list(self._sessions.values()):
            found.update(session.channels())
        return MappingProxyType(found)

    @property
    def groups(self) -> Mapping[str, Mapping[str, float]]:
        """
        The groups with members in this process at this moment: their channels, with the time of the last
        `group_add()` in seconds since 1970. Read-only.

        On `memory://`, where the process is the server, also the normal channels in groups.
        """
        self.look_for_ended_sessions()
        found: dict[str, dict[str, float]] = {}
        for session in list(self._sessions.values()):
            for group, members in session.groups().items():
                found.setdefault(group, {}).update(members)
        return MappingProxyType({group: MappingProxyType(members) for group, members in found.items()})

    def statistics(self) -> Statistics:
        """Return what this layer holds, delivered and dropped, over all loops of the process."""
        return sum((session.statistics() for session in list(self._sessions.values())), Statistics())


async def _nothing() -> None:
    """Wait for nothing."""


def _hand_over(owner: Session, channel: str, payload: bytes) -> bool:
    """Give a message to the session of another loop of this process; False if that has ended."""
    return not owner.is_closed and owner.hand_over(channel, payload)


def _look_for_ended_sessions(reference: weakref.ref[AsyncQueueChannelLayer]) -> None:
    layer = reference()
    if layer is not None:
        layer.look_for_ended_sessions()


# Held until they are done: a loop holds its tasks weakly.
_closing: set[asyncio.Task[None]] = set()


def _close_session(session: Session) -> Future[None]:
    """Close a session on its own loop, from any thread."""
    done: Future[None] = Future()

    def begin() -> None:
        # Made here: a loop that stops first never runs this, and would leave a coroutine that nobody awaits.
        task = session.loop.create_task(session.close(), context=contextvars.Context())
        _closing.add(task)
        task.add_done_callback(_closing.discard)
        task.add_done_callback(lambda task: done.set_result(None))

    try:
        session.loop.call_soon_threadsafe(begin)
    except RuntimeError:  # the loop is closed
        session.let_go()
        done.set_result(None)
    return done


def _wait_for(closing: Future[None]) -> None:
    """Wait in a thread, for a bounded time."""
    # Not by result(): eventlet replaces what that waits on, and no thread wakes it there.
    done = threads.lock()
    done.acquire()
    closing.add_done_callback(lambda closing: done.release())
    done.acquire(timeout=_CLOSE_SECONDS)


def _bus_factory(options: Options, layer: AsyncQueueChannelLayer) -> BusFactory:
    # The result must not refer to the layer: a memory namespace ends with its last layer.
    if options.hosts[0].kind == "memory":
        return partial(MemoryBus, broker_for(options.prefix, options.hosts[0].db, layer))
    # Made anew after a fork, as this is.
    return partial(RedisBus, outages=Outages())


# The layers that Channels has made. When the setting changes it takes another dict and forgets this one.
_backends = channel_layers.backends


@receiver(setting_changed)
def _close_dropped_layers(*, setting: str, **_: Any) -> None:
    global _backends
    if setting == "CHANNEL_LAYERS":
        dropped, _backends = _backends, channel_layers.backends
        if dropped is not _backends:
            for layer in dropped.values():
                if isinstance(layer, AsyncQueueChannelLayer):
                    layer.close_from_thread()


_layers: weakref.WeakSet[AsyncQueueChannelLayer] = weakref.WeakSet()
# What a forked child inherited. It is never closed, aborted or collected: that would take the descriptors out
# of the selector that the child shares with its parent, and the parent would go deaf.
_inherited: list[object] = []


_pid = os.getpid()


def _after_fork_in_child() -> None:
    global _pid
    _pid = os.getpid()
    _inherited.append(relay.after_fork_in_child())
    after_fork_in_child()
    for layer in list(_layers):
        _inherited.append((layer._sessions, layer._owners, layer._callers, list(layer._ending)))
        relay.let_go(
            descriptor
            for session in layer._sessions.values()
            if not session.is_closed
            for descriptor in session.let_go_in_child()
        )
        layer._start_afresh()
        layer._make_bus = _bus_factory(layer.options, layer)


def _notice_fork() -> None:
    """Start afresh in a child that was forked in C, as uWSGI does: Python's hooks did not run there."""
    if os.getpid() != _pid:
        _after_fork_in_child()


def _relay() -> relay.Relay:
    """Return the relay of this process."""
    _notice_fork()
    return relay.relay()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
