"""The receiver of a session's bus: envelopes go to the hub, and news to the other rooms."""

from __future__ import annotations

from collections.abc import Collection

from ..bus.base import Receiver
from ..local.hub import Hub
from ..messages.envelopes import CONTROL, Envelope
from ..names import Topics, check_channel_name, owner_of
from ..slices import Slices
from .channel_names import ChannelNames
from .connections import Connections
from .control import Control
from .drops import DropLog
from .holding import Holding
from .lifetime import Lifetime
from .memberships import Memberships
from .notices import Notices
from .readers import QueueReaders
from .sweeping import Sweeper


class Arrivals(Receiver):
    """
    The receiver that a session gives to its bus.

    The bus needs it before the rooms exist that need the bus, so these come by `connect()`. A bus calls nothing
    before its `start()`.
    """

    _connections: Connections
    _control: Control
    _holding: Holding
    _memberships: Memberships
    _notices: Notices
    _readers: QueueReaders
    _sweeper: Sweeper

    def __init__(
        self,
        names: ChannelNames,
        topics: Topics,
        lifetime: Lifetime,
        hub: Hub,
        slices: Slices,
        drops: DropLog,
    ) -> None:
        self._session_id = names.session_id
        self._inbox = topics.inbox(names.session_id).name
        self._everybody = topics.everybody.name
        self._lifetime = lifetime
        self._hub = hub
        self._slices = slices
        self._drops = drops

    def connect(
        self,
        connections: Connections,
        control: Control,
        holding: Holding,
        memberships: Memberships,
        notices: Notices,
        readers: QueueReaders,
        sweeper: Sweeper,
    ) -> None:
        """Set the rooms to which the news of the bus go."""
        self._connections = connections
        self._control = control
        self._holding = holding
        self._memberships = memberships
        self._notices = notices
        self._readers = readers
        self._sweeper = sweeper

    # Envelopes

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        if self._slices.is_busy:
            return False
        hub = self._hub
        if topic in hub.groups.by_topic:
            is_taken = hub.deliver(topic, envelope)
        elif topic == self._inbox:
            if envelope.flags & CONTROL:
                self._control.on_message(envelope)
                return True
            target = envelope.target
            if target not in hub.channels.buffers and not self._may_open(target):
                self._drop(topic, target)
                return True
            is_taken = hub.deliver_to(target, envelope)
            if self._sweeper.timer is None:
                self._sweeper.start()
        elif topic == self._everybody:
            self._control.on_message(envelope)
            return True
        else:
            return True  # of a group that lost its last member while the envelope was under way
        if not is_taken:
            self._holding.hold()
        return is_taken

    def _may_open(self, channel: str) -> bool:
        """Tell whether a target from elsewhere names an own channel, which may still be read."""
        if self._lifetime.is_closed:
            return False
        try:
            check_channel_name(channel)
        except TypeError:
            return False
        return owner_of(channel) == self._session_id

    def _drop(self, topic: bytes, target: str) -> None:
        if self._lifetime.is_closed:
            self._hub.counters.dropped["closed"] += 1
        else:
            self._drops.unreadable(topic, f"addressed to {target!r}")

    def on_external(self) -> None:
        self._hub.counters.external += 1

    def on_unreadable(self, topic: bytes, reason: str) -> None:
        self._drops.unreadable(topic, reason)

    def on_overrun(self) -> None:
        self._drops.overrun()

    # Normal channels

    def on_wake(self, topic: bytes) -> None:
        self._readers.poke(topic)

    def on_subscribed(self, topic: bytes) -> None:
        self._readers.poke(topic)

    def on_answerable(self) -> None:
        self._readers.reconnected()

    # Losses

    def on_loss(self, reason: str, topics: set[bytes]) -> None:
        self._notices.notify_of_loss(reason, topics)

    def on_forgotten(self, partitions: Collection[int], topics: set[bytes]) -> None:
        self._memberships.renew(partitions)
        if topics:
            self._notices.notify_of_forgotten(topics)

    def on_jobs_unknown(self, partitions: Collection[int]) -> int:
        return self._notices.count_forgotten_queues(partitions)

    # Outages

    def on_down(self) -> None:
        self._notices.notify_of_disconnect()

    def on_up(self) -> None:
        if self._connections.came_up():
            self._notices.notify_of_reconnect()
