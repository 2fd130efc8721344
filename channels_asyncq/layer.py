"""The Channels contract: validate the arguments, and call the running loop's session or the relay's."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar, Unpack

from channels.exceptions import ChannelFull, MessageTooLarge
from channels.layers import BaseChannelLayer, channel_layers
from django.core.signals import setting_changed
from django.dispatch import receiver

from .bus.base import Health
from .bus.resp.connector import check_hosts
from .exceptions import ChannelClosed, ChannelLayerError
from .local.buffers import ChannelView, group_limit
from .messages.codecs import codec_for
from .messages.external import ExternalMessage
from .messages.positions import Position
from .names import MAX_NAME_LENGTH, check_channel_name, check_group_name, checked_prefix, owner_of
from .process.loops import LoopPhase
from .session.buses import buses_for
from .session.closing import close_sessions, close_sessions_from_thread
from .session.decoding import Decoder
from .session.dispatch import Dispatcher, PreparedGroupSend, PreparedSend
from .session.following import Follower
from .session.histories import MOST_MESSAGES, History
from .session.logged import LoggedMessage
from .session.open_channel import OpenChannel
from .session.owners import check_closable, not_here
from .session.questions import QUESTIONS
from .session.registry import SessionRegistry
from .session.resuming import with_channel
from .session.statistics import Statistics
from .session.surveys import Survey
from .settings.config import Config
from .settings.options import Options
from .subscription import Replay, Subscription

T = TypeVar("T")


class _Setting(Generic[T]):
    """
    An attribute of a layer that is one of its options.

    A value that is set later is checked like one in CONFIG, and takes effect.
    """

    def __set_name__(self, owner: type[AsyncQueueChannelLayer], name: str) -> None:
        self._name = name

    def __get__(self, layer: AsyncQueueChannelLayer, owner: type[AsyncQueueChannelLayer]) -> T:
        value: T = getattr(layer.options, self._name)
        return value

    def __set__(self, layer: AsyncQueueChannelLayer, value: Any) -> None:
        layer._change_option(self._name, value)

    def __delete__(self, layer: AsyncQueueChannelLayer) -> None:
        """Go back to the value of CONFIG, as mock.patch.object() does in the end."""
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
        # Sets attributes that are options here to the values they have.
        super().__init__(options.expiry, options.capacity, options.channel_capacity)  # type: ignore[arg-type]
        #: The types of the notices that the layer itself puts into its channels.
        self.notices = options.notices
        self._codec = codec_for(options.serializer_format)
        self._decoder = Decoder(self._codec)
        self._max_message_size = options.max_message_size
        self._registry = SessionRegistry(options, self._codec, self._decoder, buses_for(options, self))
        self._dispatcher = Dispatcher(self._registry)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """
        Close the sessions of a layer to which no reference is left, each on its own loop.

        (weakref.finalize() would hold the sessions, and a receiver that waits in a session holds the layer.)
        """
        registry = getattr(self, "_registry", None)  # there is none where CONFIG is wrong
        if registry is not None and not is_finalizing():
            registry.drop()

    # Settings

    @property
    def prefix(self) -> str:
        """The beginning of every name on the server. It cannot be set later: make another layer."""
        return self.options.prefix

    def _change_option(self, name: str, value: Any) -> None:
        """
        Set an option later than CONFIG, for messages and memberships from now on, on every loop.

        Raises:
            ImproperlyConfigured: as for CONFIG.
        """
        if name == "channel_capacity" and isinstance(value, (list, tuple)):
            # The form in which compile_capacities() of Channels returns it. Anything else is refused below.
            with contextlib.suppress(TypeError, ValueError):
                value = dict(value)
        if self.options.change(name, value):
            self._registry.options_changed()

    # Names and messages

    def match_type_and_length(self, name: object) -> bool:
        return isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH

    def require_valid_channel_name(self, name: object, receive: bool = False) -> bool:
        """
        Return True for a channel name; for `receive()` the part up to `!` is valid too.

        Raises:
            TypeError: the name is not valid; the text says why.
        """
        check_channel_name(name, receive)
        return True

    def require_valid_group_name(self, name: object) -> bool:
        """
        Return True for a group name.

        Raises:
            TypeError: the name is not valid; the text says why.
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
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is None or session.lifetime.phase is not LoopPhase.SETTLED:
            session = await self._registry.session()
        if not session.connections.is_announced:
            await session.connections.announce()
        return session.new_channel(prefix)

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """
        Send a message to a channel; return when it is in the queue, or the server has accepted it.

        Raises:
            TypeError: the channel name is not valid, or the message cannot be encoded.
            MessageTooLarge: the encoded message is larger than `max_message_size`, or has too many containers.
            ChannelFull: a channel of this loop, or a normal channel, is at its capacity.
            ChannelClosed: the channel or the layer is closed.
            LayerUnavailable: the server cannot be reached.
            DeliveryUnknown: the message was written, and no reply came.

        Cancelling does not take back bytes that were written.
        """
        registry = self._registry
        session = registry.sessions.get(asyncio.get_running_loop())
        is_own = False
        if session is not None and isinstance(channel, str):
            route = session.routes.channels.get(channel)
            if route is not None:
                await route.send(self._encode(message))
                return
            is_own = channel in session.hub.channels.buffers
        if not is_own:
            check_channel_name(channel)
        payload = self._encode(message)
        if not is_own and registry.hand_over(channel, payload, session):
            return
        if session is None or session.lifetime.phase is not LoopPhase.SETTLED:
            await self._dispatcher.send(channel, payload)
        elif (answer := session.sending.send(channel, payload)) is not None:
            await answer

    async def receive(self, channel: str) -> dict[str, Any]:
        """
        Return the next message of a channel, a dict of the caller's own; wait if there is none.

        `channel` is a full name, or for all channels of a session the part up to and including `!`. An outage
        raises nothing here: messages come when the server is back. Cancelling loses no message. A message that
        another program has published is an `ExternalMessage`, a dict too.

        Raises:
            TypeError: the channel name is not valid.
            ChannelClosed: the channel or the layer is closed.
            ChannelLayerError: the channel belongs to another loop or process.
        """
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is not None and isinstance(channel, str):
            buffer = session.hub.channels.buffers.get(channel)
            if buffer is not None:
                envelope = buffer.take()
                if envelope is None:
                    if session.connections.is_resting:
                        session.connections.wake()
                    envelope = await buffer.get_next()
                return self._decoder.message_of(envelope)
        self.require_valid_channel_name(channel, receive=True)
        session = await self._registry.session()
        return await session.reading.receive(channel)

    async def group_add(self, group: str, channel: str) -> None:
        """
        Make a channel a member of a group, or renew its membership for `group_expiry` seconds.

        Returns when the server has confirmed it: the channel gets every message that is sent after that.
        Cancelling leaves no half member.

        Raises:
            TypeError: a name is not valid.
            ChannelClosed: the channel or the layer is closed.
            ChannelLayerError: the channel was made on an event loop of this process that has ended.
            LayerUnavailable: the server cannot be reached.
            TooManyGroups: the channel is a consumer's, and in as many groups as its `max_groups` allows.
        """
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is None or session.lifetime.phase is not LoopPhase.SETTLED:
            await self._dispatcher.group_add(group, channel)
        elif (answer := session.groups.add(group, channel)) is not None:
            await answer

    async def group_discard(self, group: str, channel: str) -> None:
        """
        End a membership; do nothing if there is none.

        Raises:
            TypeError: a name is not valid.
            LayerUnavailable: the channel belongs to another loop or process, and the server cannot be reached.
        """
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is None or session.lifetime.phase is not LoopPhase.SETTLED:
            await self._dispatcher.group_discard(group, channel)
        elif (answer := session.groups.discard(group, channel)) is not None:
            await answer

    async def group_send(self, group: str, message: dict[str, Any], *, exclude: Collection[str] = ()) -> None:
        """
        Send a message to all members of a group but the channels in `exclude`.

        Never raises ChannelFull: a full member drops messages as the setting `overflow` says, and counts them.

        Raises:
            TypeError: a name is not valid, or the message cannot be encoded.
            MessageTooLarge, LayerClosed, LayerUnavailable, DeliveryUnknown: as `send()`.
        """
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is None or session.lifetime.phase is not LoopPhase.SETTLED:
            check_group_name(group)
            excluded = self._excluded(exclude) if exclude else ()
            payload = self._encode(message)
            await self._dispatcher.group_send(group, payload, excluded)
            return
        route = session.routes.to_group(group)
        excluded = self._excluded(exclude) if exclude else ()
        payload = self._encode(message)
        members = await route.send(payload, excluded)
        if members:
            await session.sending.push_copies(members, payload, excluded)

    def _excluded(self, exclude: Collection[str]) -> tuple[str, ...]:
        if isinstance(exclude, str):
            raise TypeError(f"exclude must be a list of channel names, not the str {exclude!r}")
        for channel in exclude:
            self.require_valid_channel_name(channel)
        return tuple(exclude)

    # Without a loop, for channels_asyncq.sync

    def prepare_send(self, channel: str, message: dict[str, Any]) -> Callable[[], None]:
        """
        Check and encode a message now; calling the result sends it, and blocks until it is sent.

        For threads that run no event loop. Raises as `send()`: errors of the message at once, and errors of the
        server when it is sent.
        """
        self.require_valid_channel_name(channel)
        payload = self._encode(message)
        return PreparedSend(self._dispatcher, channel, payload).send

    def prepare_group_send(
        self, group: str, message: dict[str, Any], exclude: Collection[str] = ()
    ) -> Callable[[], None]:
        """Check and encode a message for a group now; calling the result sends it. As `prepare_send()`."""
        self.require_valid_group_name(group)
        excluded = self._excluded(exclude) if exclude else ()
        payload = self._encode(message)
        return PreparedGroupSend(self._dispatcher, group, payload, excluded).send

    def look_for_ended_sessions(self) -> None:
        """Release the sessions of loops that were ended by `loop.close()` alone. From any thread."""
        self._registry.look_for_ended()

    # Clearing

    async def flush(self) -> None:
        """
        Drop all messages and memberships of the prefix, in every process; return when that is done.

        Channels stay usable, and receivers go on waiting. A disconnected process drops nothing.
        """
        self._registry.look_for_ended()  # a flush would wait for them
        await self._dispatcher.flush()

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
            StillFull: there was no place in that time; a ChannelFull and a TimeoutError.
            ChannelLayerError: the channel belongs to another loop or process; its free places are unknown here.
            Otherwise as `send()`.

        The timeout is for a place only: replies of the server, also to earlier sends of this loop, are waited for
        as by `send()`. Cancelling is safe: the message is not sent then, unless it is for a normal channel and
        its bytes were already on their way.
        """
        self.require_valid_channel_name(channel)
        payload = self._encode(message)
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is None or session.lifetime.phase is not LoopPhase.SETTLED:
            await self._dispatcher.send_wait(channel, payload, timeout)
        else:
            await session.sending.send_wait(channel, payload, timeout)

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
        session = await self._registry.session()
        return OpenChannel(self, session, self._decoder, session.hub.channels.open(channel))

    # Coming back

    async def position(self, *groups: str, channel: str | None = None) -> str:
        """
        Return where these groups are now: a text that is safe in URLs and headers, at most 4096 characters.

        What is sent after this call is behind the position. What was sent before, and has returned, is not. So
        read the position first, then the data that a page shows, and resume from the position. One command for
        all groups of a server; calls of one turn of the event loop share it. With `channel`, the position has
        the name of a channel: messages that exclude it are not for whoever comes back.

        Raises:
            TypeError: a name is not valid, or there is no group.
            ValueError: the groups are in so many partitions that the position would be too long.
            LayerUnavailable: the server cannot be reached.
        """
        return await self._dispatcher.position(*self._checked_position(groups, channel))

    def position_from_thread(self, *groups: str, channel: str | None = None) -> str:
        """Return what `position()` returns. For threads that run no event loop; blocks until it is there."""
        return self._dispatcher.position_from_thread(*self._checked_position(groups, channel))

    def _checked_position(
        self, groups: tuple[str, ...], channel: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        if channel is not None:
            check_channel_name(channel)
            if not owner_of(channel):
                raise TypeError(
                    f"{channel!r} is not a channel that new_channel() has made: none comes back to it"
                )
        return self._checked_groups(groups), channel

    def _checked_groups(self, groups: tuple[str, ...]) -> tuple[str, ...]:
        if not groups:
            raise TypeError("name at least one group")
        for group in groups:
            check_group_name(group)
        return groups

    async def history(self, group: str, limit: int = 50, before: str | None = None) -> History:
        """
        Return the last messages of a group that has a history by the setting `history`: see `History`.

        Channels in the `exclude` of a message make no difference here. Cancelling is safe.

        Args:
            limit: the number of messages, 1 to 1000.
            before: a position. What was sent behind it is left out.

        Raises:
            TypeError: the name is not valid, or an argument has a wrong type.
            ValueError: `limit` is out of range, or `before` is no position of this group.
            ChannelLayerError: the group has no history.
            LayerUnavailable: the server cannot be reached.
        """
        return await self._dispatcher.history(*self._checked_history(group, limit, before))

    def history_from_thread(self, group: str, limit: int = 50, before: str | None = None) -> History:
        """Return what `history()` returns. For threads that run no event loop; blocks until it is there."""
        return self._dispatcher.history_from_thread(*self._checked_history(group, limit, before))

    def _checked_history(self, group: str, limit: int, before: str | None) -> tuple[str, int, str | None]:
        check_group_name(group)
        _check_limit(limit, MOST_MESSAGES)
        if before is not None and not isinstance(before, str):
            raise TypeError(f"before must be a position or None, not {before!r}")
        return group, limit, before

    async def group_resume(self, group: str, channel: str, *, since: str) -> Replay:
        """
        Make a channel of this loop a member of a group, and return what it has missed since a position.

        All of it, or nothing: see `Replay`. The channel gets every message that follows, and none twice. What
        waits in the channel from an earlier membership in the group is replaced by the replay. Cancelling leaves
        no half member.

        Args:
            since: a position that `position()`, a `Replay` or a `Subscription` gave. Any other text is refused
                by the result, with the reason "bad_token".

        Raises:
            TypeError: a name is not valid.
            ChannelClosed: the channel or the layer is closed.
            ChannelLayerError: the channel belongs to another loop or process.
            LayerUnavailable: the server cannot be reached.
        """
        check_group_name(group)
        check_channel_name(channel)
        session = await self._registry.session()
        if not session.names.is_own(channel):
            raise not_here(channel, "resume on the loop that called new_channel()")
        resumption = await session.resumer.resume((group,), channel, since)
        messages = [self._decoder.message_of(envelope) for envelope in resumption.envelopes]
        position = Position(resumption.places, with_channel(resumption.former, channel))
        return Replay(resumption.recovered, resumption.reason, messages, str(position))

    def subscribe(self, *groups: str, since: str | None = None) -> Subscription:
        """
        Follow some groups in an `async with` block, from a position on if there is one: see `Subscription`.

        Raises:
            TypeError: a name is not valid, or there is no group.
        """
        return Subscription(self, self._checked_groups(groups), since)

    async def open_follower(self, groups: tuple[str, ...]) -> Follower:
        """Return a new channel that follows groups once its `begin()` is called. Raises as `new_channel()`."""
        channel = await self.open_channel()
        session = await self._registry.session()
        return Follower(channel, session.resumer, self._decoder, groups)

    def close_channel(self, channel: str) -> Awaitable[None]:
        """
        Close a channel of the running loop at once; its receivers get the waiting messages, then ChannelClosed.

        A normal channel is closed in this loop only: a message that was claimed for its receivers goes back to
        the server, and the result is done when it is there. Closing twice is fine, and opens no connections.

        Raises:
            TypeError: the channel name is not valid.
            ChannelLayerError: the channel belongs to another loop or process.
        """
        self.require_valid_channel_name(channel)
        loop = asyncio.get_running_loop()
        session = self._registry.sessions.get(loop)
        if session is not None and not session.lifetime.is_closed:
            return session.close_channel(channel)
        if not self._registry.is_closed and not self._registry.is_ending(loop):
            check_closable(channel, None)
            # Nothing was claimed for its receivers; later sends and receives of this loop raise ChannelClosed.
            self._registry.close_channel(loop, channel)
        done: asyncio.Future[None] = loop.create_future()
        done.set_result(None)
        return done

    async def close(self) -> None:
        """
        Close the layer on every loop: receivers end with LayerClosed and nothing is accepted any more.

        Waits for replies that are due, for a bounded time. A second call, on any loop, waits for the same end.
        """
        await close_sessions(self._registry.end(), 2 * self.options.send_timeout + 1)

    async def close_pools(self) -> None:
        """
        Close the running loop's connections; they are opened again when the loop next uses the layer.

        For code that was written for channels_redis: here connections need no closing before the loop ends.
        Channels, messages in them and memberships stay, and messages that are sent meanwhile are read from the
        logs. The connections stay open while a task of the loop waits for a message or a reply. A loop that only
        sent for a moment has none: it uses those of the relay, which the whole process shares. Cancelling is
        safe.
        """
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is not None and not session.lifetime.is_closed:
            await session.rest()

    def close_from_thread(self) -> None:
        """
        Close the layer from code that cannot await: as `close()`, on every loop.

        Waits at most two seconds, and for the relay's session only: another loop may be waiting for this thread.
        """
        close_sessions_from_thread(self._registry.end())

    @property
    def is_closed(self) -> bool:
        """Whether the layer was closed: everything raises LayerClosed then."""
        return self._registry.is_closed

    async def health(self, timeout: float | None = None) -> Health:  # noqa: ASYNC109  (as send_wait)
        """
        Try out every host: whether it takes writes, and whether a message that is published there arrives here.

        Takes `timeout` seconds at most, `send_timeout` if it is None. An outage is a result and raises nothing.
        Cancelling is safe.

        Raises:
            LayerClosed: the layer is closed.
        """
        return await self._dispatcher.health(self.options.send_timeout if timeout is None else timeout)

    async def survey(self, question: str, timeout: float = 2.0, **arguments: Any) -> Survey:  # noqa: ASYNC109
        """
        Ask all processes that use the prefix, this one included, and return their answers: see `Survey`.

        Each event loop with a session answers for itself. Those that do not answer within `timeout` seconds are
        named as missing. Nothing is kept ready for it: it costs something when it is called. Cancelling is safe.

        Args:
            question: one of `channels_asyncq.session.questions.QUESTIONS`, such as "status".
            arguments: those of the question. Of large answers each session gives `limit` rows, 100 as a rule.

        Raises:
            ValueError: there is no such question.
            LayerUnavailable, DeliveryUnknown: the server cannot be reached.
        """
        if question not in QUESTIONS:
            raise ValueError(f"there is no question {question!r}, but {', '.join(sorted(QUESTIONS))}")
        return await self._dispatcher.survey(question, timeout, arguments)

    async def faults(self, *, is_lasting: bool = False) -> dict[str, str]:
        """
        Return why sends of this process fail now, by the address of the host; empty if they do not.

        Only what is known already counts: no server is asked. Of a process that has not used the layer nothing is
        known, so the first call begins to connect, and does not wait. Until that is done, it is a fault.

        Args:
            is_lasting: the running loop is that of a server, and is to connect with a session of its own.

        Raises:
            LayerClosed: the layer is closed.
        """
        self._registry.look_for_ended()
        if not any(not session.is_closed for session in list(self._registry.sessions.values())):
            await self._dispatcher.connect(is_lasting=is_lasting)
        sessions = list(self._registry.sessions.values())
        links = [link for session in sessions for link in session.views.links()]
        return {link.address: link.fault for link in links if link.fault}

    async def message_rates(self) -> dict[str, float]:
        """
        Return the messages per second of groups, over the last ten seconds: those of all processes.

        They are counted in the logs on the server, at most 1000 messages of a partition. Groups without messages
        are left out, and those that are in no log: see `recovery`. Cancelling is safe.

        Raises:
            LayerUnavailable: the server cannot be reached.
        """
        return await self._dispatcher.message_rates()

    async def normal_members(self, group: str) -> list[str]:
        """
        Return the normal channels that are members of a group. The server has them. Cancelling is safe.

        Raises:
            TypeError: the name is not valid.
            LayerUnavailable: the server cannot be reached.
        """
        check_group_name(group)
        return await self._dispatcher.normal_members(group)

    async def logged_messages(self, target: str, limit: int = 20) -> list[LoggedMessage]:
        """
        Return the last messages to a group, or to a specific channel, that the log on the server has.

        Oldest first. Groups and channels without a log have none: see `recovery`. Cancelling is safe.

        Args:
            limit: the number of messages, 1 or more.

        Raises:
            TypeError: the name is not valid, or `limit` is no int.
            ValueError: `limit` is less than 1.
            LayerUnavailable: the server cannot be reached.
        """
        (check_channel_name if "!" in target else check_group_name)(target)
        _check_limit(limit)
        return await self._dispatcher.logged_messages(target, limit)

    def drop_unhandled(self, message: ExternalMessage, reader: str) -> None:
        """Count and log a message from outside for which its reader, on the running loop, has no handler."""
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is not None:
            session.drops.unhandled(message, reader)

    def note_limited(self, limit: str, reader: str, outcome: str | None) -> None:
        """
        Count, for the running loop, that a client of a consumer or a stream was not allowed something.

        Args:
            limit: the name of the limit.
            reader: the name of the consumer, or of the stream.
            outcome: what happened to the client, for the log; None for no line.
        """
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is not None:
            session.drops.limited(limit, reader, outcome)

    def limit_groups(self, channel: str, most: int, setting: str) -> None:
        """
        Let a channel of the running loop be in this many groups, and in no more.

        `setting` names what set the limit, for the error: "max_groups of RoomConsumer".
        """
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is not None and not session.lifetime.is_closed:
            session.hub.channels.open(channel).group_limit = group_limit(most, setting)

    def allow_own_groups(self, channel: str, count: int) -> None:
        """Let a channel of the running loop be in this many groups beside those that `limit_groups()` allows."""
        session = self._registry.sessions.get(asyncio.get_running_loop())
        if session is not None and not session.lifetime.is_closed:
            session.hub.channels.open(channel).own_groups = count

    def topic_of_group(self, group: str) -> str:
        """
        Return the name on the server on which another program publishes messages to a group.

        It publishes with PUBLISH, and in a Redis Cluster with SPUBLISH. See the page *Publishing from outside*.

        Raises:
            TypeError: the name is not valid.
            ChannelLayerError: the layer is on `memory://`, where no other program can publish.
        """
        check_group_name(group)
        if self.options.hosts[0].kind == "memory":
            raise ChannelLayerError(
                f"no other program can publish to group {group!r}: the layer is on memory://, which is this "
                "process only. Set `hosts` to the URL of a Redis or Valkey server"
            )
        return self.options.topics("").group(group).topic.name.decode()

    @property
    def channels(self) -> Mapping[str, ChannelView]:
        """
        The channels that this process reads at this moment, and how full each is. Read-only.

        On `memory://`, where the process is the server, it has the normal channels with waiting messages too.
        """
        self._registry.look_for_ended()
        found: dict[str, ChannelView] = {}
        for session in list(self._registry.sessions.values()):
            found.update(session.views.channels())
        return MappingProxyType(found)

    @property
    def groups(self) -> Mapping[str, Mapping[str, float]]:
        """
        The groups with members in this process at this moment: their channels, with the time of the last
        `group_add()` in seconds since 1970. Read-only.

        On `memory://`, where the process is the server, it has the normal channels in groups too.
        """
        self._registry.look_for_ended()
        found: dict[str, dict[str, float]] = {}
        for session in list(self._registry.sessions.values()):
            for group, members in session.views.groups().items():
                found.setdefault(group, {}).update(members)
        return MappingProxyType({group: MappingProxyType(members) for group, members in found.items()})

    def statistics(self) -> Statistics:
        """Return the figures of this layer, over all loops of the process."""
        sessions = list(self._registry.sessions.values())
        return sum((session.views.statistics() for session in sessions), Statistics())


def _check_limit(limit: int, most: int | None = None) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, not {limit!r}")
    if limit < 1 or (most is not None and limit > most):
        raise ValueError(f"limit must be 1 {'or more' if most is None else f'to {most}'}, not {limit}")


# The layers that Channels has made. When the setting changes, Channels takes a new dict and forgets this one.
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
