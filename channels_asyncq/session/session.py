"""One event loop's life in the layer: wires the hub to the bus, and the rooms around them to each other."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars

from ..bus.base import Health
from ..exceptions import LayerClosed
from ..local.hub import Hub
from ..local.mailbox import Mailbox
from ..messages.codecs import Codec
from ..names import new_session_id
from ..settings.options import Options
from ..slices import SHORT, Slices
from .arrivals import Arrivals
from .buses import Buses
from .channel_names import ChannelNames
from .connections import Connections
from .control import Control
from .decoding import Decoder
from .drops import DropLog
from .ending import Ending
from .flushing import LocalFlush
from .groups import SessionGroups
from .histories import GroupHistories
from .holding import Holding
from .lifetime import Lifetime
from .lingering import LingeringTopics
from .memberships import Memberships
from .notices import Notices
from .owners import Siblings, check_closable
from .questions.pieces import Pieces
from .readers import QueueReaders
from .reading import MessageReader
from .requests import Requests
from .resting import Resting
from .resuming import Resumer
from .routes import Routes
from .sending import MessageSender
from .surveys import Surveys
from .sweeping import Sweeper
from .views import Views


class Session:
    """
    The channels, groups and connections of one event loop. Everything here runs on that loop.

    A session has no standing task: it is callbacks of the bus, futures, and a timer while there is something to
    sweep. Each room owns its state; callers use the rooms that are public here. `lifetime` has the phase.
    """

    def __init__(
        self, options: Options, codec: Codec, decoder: Decoder, buses: Buses, siblings: Siblings
    ) -> None:
        self.loop = loop = asyncio.get_running_loop()
        # Callbacks belong to the session, not to the consumer that happened to be first.
        context = contextvars.Context()
        self.names = names = ChannelNames(new_session_id())
        session_id = names.session_id
        topics = options.topics(session_id)
        inbox = topics.inbox(session_id)
        self.lifetime = lifetime = Lifetime()
        slices = Slices(loop, context, self)
        chores = Slices(loop, context, seconds=SHORT)
        self.hub = hub = Hub(options, self, slices, chores)
        self.drops = drops = DropLog(hub)
        arrivals = Arrivals(names, topics, lifetime, hub, slices, drops)
        self._bus = bus = buses.open(options, topics, codec, session_id, arrivals)
        mailbox = Mailbox(loop, arrivals)
        self.routes = routes = Routes(bus, hub)
        self._holding = holding = Holding(loop, context, hub, bus.pubsub, mailbox)
        self._readers = readers = QueueReaders(loop, bus, topics, hub, drops, options)
        self._sweeper = sweeper = Sweeper(loop, context, options, hub, readers, siblings, lifetime)
        self.connections = connections = Connections(bus, topics, inbox)
        self.requests = requests = Requests(loop, options, session_id, topics, codec, bus, hub.counters)
        memberships = Memberships(bus.members, topics, options)
        self.sending = sending = MessageSender(
            options, names, inbox.name, lifetime, hub, bus.queues, mailbox, routes, sweeper
        )
        self.reading = MessageReader(
            names, topics, lifetime, hub, bus, readers, connections, siblings, sweeper, decoder
        )
        lingering = LingeringTopics(loop, context, hub, bus.pubsub, bus.log, chores)
        self.groups = groups = SessionGroups(
            names,
            topics,
            lifetime,
            hub,
            bus.pubsub,
            routes,
            memberships,
            requests,
            siblings,
            sweeper,
            lingering,
        )
        self.histories = GroupHistories(options, bus, routes, decoder)
        self.resumer = Resumer(options, hub, slices, lifetime, bus, routes, groups, lingering)
        flush = LocalFlush(hub, readers, groups, memberships, siblings, chores, bus.log)
        self._notices = notices = Notices(options, topics, inbox.name, codec, hub, routes, readers)
        self.views = views = Views(options, topics, hub, bus, readers, drops, self.resumer.counts)
        self.surveys = surveys = Surveys(session_id, topics, codec, bus)
        pieces = Pieces(options, session_id, topics, hub, bus, readers, drops, views)
        control = Control(
            loop, names, topics, codec, decoder, bus.pubsub, drops, requests, groups, flush, surveys, pieces
        )
        arrivals.connect(connections, control, holding, memberships, notices, readers, sweeper)
        self._resting = Resting(
            lifetime, hub, slices, bus, connections, readers, requests, control, sending.waiting, holding
        )
        self._ending = Ending(
            session_id, options, lifetime, siblings, hub, slices, bus, mailbox, routes, readers, memberships,
            control, holding, sweeper, lingering,
        )  # fmt: skip

    async def start(self) -> None:
        """Begin connecting. Never waits for the server."""
        await self._ending.close_with_loop()
        self.connections.start()

    @property
    def session_id(self) -> str:
        return self.names.session_id

    @property
    def is_closed(self) -> bool:
        """Whether the session accepts nothing any more; replies that are due may still be awaited."""
        return self.lifetime.is_closed

    # Callbacks of the hub and of its slices

    def on_group_empty(self, topic: bytes) -> None:
        self.groups.unsubscribe(topic)

    def on_capacity(self) -> None:
        self._holding.on_capacity()

    def on_loss_notified(self, reason: str, channels: int, groups: int) -> None:
        self._notices.on_notified(reason, channels, groups)

    def on_idle(self) -> None:
        self._holding.on_idle()

    # Options

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
                self.loop.call_soon_threadsafe(self._adjust, context=contextvars.Context())

    def _adjust(self) -> None:
        if self.is_closed:
            return
        self.routes.forget_channels()
        self._bus.options_changed()
        self.hub.options_changed()
        self._sweeper.restart()

    # Channels

    def new_channel(self, prefix: str) -> str:
        """Return a fresh name that belongs to this session, which is announced."""
        if self.is_closed:
            raise LayerClosed()
        channel = self.names.new(prefix)
        self.hub.channels.make(channel)
        if self._sweeper.timer is None:
            self._sweeper.start()
        return channel

    def close_channel(self, channel: str) -> asyncio.Future[None]:
        """Close a channel now; the future completes when the server has the claimed message back."""
        check_closable(channel, self.session_id)
        self.hub.channels.close(channel)
        self.routes.forget_channel(channel)
        return self._readers.close_channel(channel)

    # The whole session

    async def flush(self) -> None:
        """Drop every message and every membership of the namespace; return when all sessions have done so."""
        self.lifetime.require_open()
        await self.requests.flush()

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        self.lifetime.require_open()
        return await self._bus.connections.health(timeout)

    async def message_rates(self) -> dict[str, float]:
        """Return the messages per second of groups that are logged."""
        self.lifetime.require_open()
        return await self._bus.log.rates()

    async def normal_members(self, group: str) -> list[str]:
        """Return the normal channels that are members of a group."""
        self.lifetime.require_open()
        return await self._bus.members.of(group)

    async def rest(self) -> None:
        """Close the connections until this loop uses the layer again, unless something here waits for them."""
        await self._resting.rest()

    async def close(self) -> None:
        """End the session, once; a second call waits for the same end. Cancelling the first ends it at once."""
        await self._ending.close()

    def let_go(self) -> None:
        """Release the connections of a session whose loop is closed. From any thread, without a lock."""
        self._ending.let_go()

    def let_go_in_child(self) -> list[int]:
        """Be closed without closing anything, in a forked child; return the descriptors of the connections."""
        return self._ending.let_go_in_child()
