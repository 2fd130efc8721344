"""A session's readers of normal channels: one `QueueReader` for each channel that is read here."""

from __future__ import annotations

import asyncio

from ..bus.base import Bus
from ..exceptions import ChannelClosed
from ..local.hub import Hub
from ..names import Topic, Topics
from ..settings.options import Options
from .drops import DropLog
from .queues import QueueReader


class QueueReaders:
    """
    The `QueueReader`s of one session, by topic, and the channels that are being closed.

    A channel in `_closing` has no reader any more; its task returns the claimed message.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bus: Bus,
        topics: Topics,
        hub: Hub,
        drops: DropLog,
        options: Options,
    ) -> None:
        self._loop = loop
        self._bus = bus
        self._topics = topics
        self._hub = hub
        self._drops = drops
        self._options = options
        self._readers: dict[bytes, QueueReader] = {}
        # The tasks that close normal channels, with the channel of each.
        self._closing: dict[asyncio.Task[None], str] = {}

    @property
    def count(self) -> int:
        """How many normal channels are read here."""
        return len(self._readers)

    @property
    def is_idle(self) -> bool:
        """Whether no receiver waits, and no answer of the server is due."""
        return not self._closing and all(reader.is_idle for reader in self._readers.values())

    def has(self, topic: Topic) -> bool:
        return topic.name in self._readers

    def open(self, channel: str, topic: Topic) -> QueueReader:
        """
        Return the reader of a normal channel, made if it is not there.

        Raises:
            ChannelClosed: the channel was closed here.
        """
        reader = self._readers.get(topic.name)
        if reader is None:
            if channel in self._hub.channels.closed_names:
                raise ChannelClosed(channel)
            reader = QueueReader(channel, topic.name, self._bus.queues, self._hub.counters, self._drops)
            self._readers[topic.name] = reader
            self._bus.pubsub.subscribe(topic)
        return reader

    # The bus says

    def poke(self, topic: bytes) -> None:
        """Have the reader of this topic look for a message."""
        reader = self._readers.get(topic)
        if reader is not None:
            reader.poke()

    def reconnected(self) -> None:
        for reader in list(self._readers.values()):
            reader.reconnected()

    # Upkeep

    def flush(self) -> int:
        """Drop the messages that are held for receivers; return their number."""
        return sum(reader.flush() for reader in self._readers.values())

    def sweep(self, now: float) -> None:
        """Drop the readers that were not used for `expiry`."""
        for topic, reader in list(self._readers.items()):
            if reader.is_idle and now - reader.buffer.last_used > self._options.expiry:
                del self._readers[topic]
                self._bus.pubsub.unsubscribe(self._topics.queue(reader.channel).topic)

    def channels(self) -> set[str]:
        """Return the normal channels that are read here."""
        return {reader.channel for reader in self._readers.values()}

    def waiting(self) -> dict[str, int]:
        """Return how many messages are held for receivers, by normal channel. From any thread."""
        return {
            reader.channel: reader.buffer.queued
            for reader in list(self._readers.values())
            if not reader.is_idle
        }

    # Closing

    def close_channel(self, channel: str) -> asyncio.Future[None]:
        """Close the reader of a channel; the future completes when the server has its claimed message back."""
        topic = self._topics.queue(channel).topic
        reader = self._readers.pop(topic.name, None)
        if reader is None:
            return self._closed_earlier(channel)
        self._bus.pubsub.unsubscribe(topic)
        task = self._loop.create_task(reader.close(ChannelClosed), name=f"channels_asyncq closing {channel}")
        self._closing[task] = channel
        task.add_done_callback(self._closing.pop)
        return asyncio.shield(task)

    def _closed_earlier(self, channel: str) -> asyncio.Future[None]:
        """Return a future that completes when an earlier call has closed the channel."""
        for task, name in self._closing.items():
            if name == channel:
                # Shielded like the first: a cancelled caller ends only its own waiting.
                return asyncio.shield(task)
        done: asyncio.Future[None] = self._loop.create_future()
        done.set_result(None)
        return done

    def closing(self, reason: type[ChannelClosed]) -> asyncio.Future[list[None]] | None:
        """End all receivers with `reason`; the future completes when the server has the claimed messages back."""
        readers = list(self._readers.values())
        if not readers:
            return None
        closing = asyncio.gather(*(reader.close(reason) for reader in readers))
        closing.add_done_callback(_retrieve)
        return closing


def _retrieve(closing: asyncio.Future[list[None]]) -> None:
    """Retrieve the error of a closing that was given up: asyncio would log it."""
    if not closing.cancelled():
        closing.exception()
