"""The `receive()` of one session, from its own channels and from normal ones."""

from __future__ import annotations

from typing import Any

from ..bus.base import Bus
from ..local.hub import Hub
from ..messages.envelopes import Envelope
from ..names import Topics, owner_of
from .channel_names import ChannelNames
from .connections import Connections
from .decoding import Decoder
from .lifetime import Lifetime
from .owners import Siblings, not_here
from .readers import QueueReaders
from .sweeping import Sweeper


class MessageReader:
    """Finds the next message for `receive()`, in the hub or by the reader of a normal channel."""

    def __init__(
        self,
        names: ChannelNames,
        topics: Topics,
        lifetime: Lifetime,
        hub: Hub,
        bus: Bus,
        readers: QueueReaders,
        connections: Connections,
        siblings: Siblings,
        sweeper: Sweeper,
        decoder: Decoder,
    ) -> None:
        self._names = names
        self._topics = topics
        self._lifetime = lifetime
        self._hub = hub
        self._bus = bus
        self._readers = readers
        self._connections = connections
        self._siblings = siblings
        self._sweeper = sweeper
        self._decoder = decoder

    async def receive(self, channel: str) -> dict[str, Any]:
        """
        Return the next message of a channel, as a dict of the caller's own.

        Cancelling is safe: no message is lost.

        Raises:
            ChannelClosed: the channel or the layer is closed.
            ChannelLayerError: the channel belongs to another session.
        """
        return self._decoder.message_of(await self._next(channel))

    async def _next(self, channel: str) -> Envelope:
        if self._connections.is_resting:
            self._connections.wake()
        buffer = self._hub.channels.buffers.get(channel)
        if buffer is not None:
            return await buffer.get()
        session_id = owner_of(channel)
        if session_id is None:
            return await self._next_of_queue(channel)
        if session_id != self._names.session_id:
            self._siblings.refuse_ended(session_id, channel)
            raise not_here(channel, "receive on the loop that called new_channel()")
        if channel.endswith("!"):
            return await self._next_of_all(channel)
        self._lifetime.require_open(channel)
        self._sweeper.start()
        return await self._hub.channels.open(channel).get()

    async def _next_of_queue(self, channel: str) -> Envelope:
        topic = self._topics.queue(channel).topic
        if not self._readers.has(topic):
            await self._bus.connections.checked(topic)
        self._lifetime.require_open(channel)
        reader = self._readers.open(channel, topic)
        if self._sweeper.timer is None:
            self._sweeper.start()
        return await reader.get()

    async def _next_of_all(self, prefix: str) -> Envelope:
        while True:
            envelope = self._hub.channels.take_any(prefix)
            if envelope is not None:
                return envelope
            self._lifetime.require_open(prefix)
            if self._connections.is_resting:
                self._connections.wake()
            await self._hub.watchers.watch()
