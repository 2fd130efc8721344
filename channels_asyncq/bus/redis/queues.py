"""Normal channels on a server: pushed one by one, and popped by exactly one session."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from hiredis import pack_command

from ...clock import monotonic
from ...messages.envelopes import Envelope
from ...messages.framing import batch_size, pack_names
from ...messages.sealing import QUEUE, Seal, place
from ...names import Topic
from ..base import WAITS_SECONDS, channel_full
from .batches import Batch, Message
from .partition import Partition
from .scripts import milliseconds
from .shared import Shared

_ITEM_EXPIRY_DIGITS = 13


class QueueRoute:
    """The route to a normal channel: messages one by one, each accepted once, by its number."""

    most = 0
    # The server knows the missing numbers.
    stream = None

    def __init__(self, shared: Shared, partition: Partition, channel: str, seal: Seal | None) -> None:
        self.open: Batch | None = None
        self._shared = shared
        self._channel = channel
        self._names = pack_names(channel)
        self._queue = shared.topics.queue(channel)
        self._sender = partition.sender
        self._numbers = partition.push_numbers
        self._seal = seal
        self._place = place(QUEUE, self._queue.topic.name)
        self.batch_size = batch_size(seal)
        self._tally = shared.sent.normal
        self._capacity = shared.options.capacity_of(channel)

    async def send(self, payload: bytes) -> None:
        """
        Append a message.

        Raises:
            ChannelFull: the channel holds its capacity of unexpired messages.
        """
        if not await self._sender.send(self, self._names, payload):
            raise channel_full(self._channel, self._capacity)
        self._tally.count += 1

    def pack(self, messages: list[Message]) -> bytes:
        """Return the command for these messages."""
        number = self._numbers.take()
        shared = self._shared
        data = self._sender.lease.format.pack(messages, shared.session_id, number, 0, self._seal, self._place)
        topic, _, seen, waiting = self._queue
        arguments = (data, self._capacity, milliseconds(shared.options.expiry), number, *self._waits())
        return _packed(b"EVALSHA", shared.scripts.push.sha, 3, topic.name, seen, waiting, *arguments)

    def _waits(self) -> tuple[bytes | int, ...]:
        """Return the arguments of the script about a sender that waits. This one does not wait."""
        return ()


class WaitingRoute(QueueRoute):
    """The route to a normal channel for a sender that waits for a place. It waits since the route was made."""

    def __init__(self, shared: Shared, partition: Partition, channel: str, seal: Seal | None) -> None:
        super().__init__(shared, partition, channel, seal)
        self._since = monotonic()

    async def send(self, payload: bytes) -> None:
        """Append a message, like `QueueRoute`; the sender keeps its place in the line."""
        self._capacity = self._shared.options.capacity_of(self._channel)  # the setting may have changed
        await super().send(payload)

    def _waits(self) -> tuple[bytes | int, ...]:
        waited = round(1000 * (monotonic() - self._since))
        return self._shared.session_id, waited, milliseconds(WAITS_SECONDS)


class RedisQueues:
    """The normal channels of all partitions. Each command goes by the sender of the channel's partition."""

    def __init__(self, shared: Shared, partitions: Sequence[Partition], seal: Seal | None) -> None:
        self._shared = shared
        self._partitions = partitions
        self._seal = seal

    def route(self, channel: str) -> QueueRoute:
        """Return the route to a normal channel."""
        return QueueRoute(self._shared, self._partition_of(channel), channel, self._seal)

    def waiting_route(self, channel: str) -> WaitingRoute:
        """Return the route to a normal channel for a sender that waits for a place, from this moment on."""
        return WaitingRoute(self._shared, self._partition_of(channel), channel, self._seal)

    def _partition_of(self, channel: str) -> Partition:
        return self._partitions[self._shared.topics.partition(channel)]

    def stop_waiting(self, channel: str) -> None:
        """Give up the place in the line that `waiting_route()` has kept for this session."""
        queue = self._shared.topics.queue(channel)
        answer = self._ask(queue.topic, b"HDEL", queue.waiting, self._shared.session_id)
        if answer is not None:
            answer.add_done_callback(_forget)

    def pop(self, channel: str, number: int) -> asyncio.Future[Envelope | None] | None:
        """Ask for the oldest message, as in `WorkQueues`."""
        topic, taken, *_ = self._shared.topics.queue(channel)
        formats, expiry = self._shared.formats, milliseconds(self._shared.options.expiry)
        arguments = (topic.name, taken, number, expiry, formats.oldest, formats.newest)
        item = self._ask(topic, b"EVALSHA", self._shared.scripts.pop.sha, 2, *arguments)
        if item is None:
            return None
        envelope: asyncio.Future[Envelope | None] = self._shared.loop.create_future()
        item.add_done_callback(partial(self._popped, topic.name, envelope))
        return envelope

    def _popped(
        self, queue: bytes, answer: asyncio.Future[Envelope | None], item: asyncio.Future[Any]
    ) -> None:
        try:
            data = item.result()
            opened = (
                None if data is None else self._shared.opener.open_item(queue, data[_ITEM_EXPIRY_DIGITS:])
            )
        except (OSError, ValueError) as exc:
            answer.set_exception(exc)
        else:
            answer.set_result(opened)

    def give_back(self, channel: str, number: int) -> asyncio.Future[None] | None:
        """Put a message back at the head of its channel, as in `WorkQueues`."""
        topic, taken, *_ = self._shared.topics.queue(channel)
        expiry = milliseconds(self._shared.options.expiry)
        return self._ask(
            topic, b"EVALSHA", self._shared.scripts.give_back.sha, 2, topic.name, taken, number, expiry
        )

    def waiting(self) -> dict[str, int]:
        """Return nothing: the server holds the messages."""
        return {}

    def _ask(self, topic: Topic, *command: bytes | str | int) -> asyncio.Future[Any] | None:
        return self._partitions[topic.partition].sender.commands.ask(*command)


def _packed(*command: bytes | str | int) -> bytes:
    packed: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub says: a tuple of one
    return packed


def _forget(answer: asyncio.Future[Any]) -> None:
    """Mark the error of an answer as retrieved: nothing depends on it."""
    if not answer.cancelled():
        answer.exception()
