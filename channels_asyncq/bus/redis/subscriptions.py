"""Wanted against confirmed topics of one owner, as a table."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .partition import Partition


class Subscription:
    """
    One wanted topic.

    state      | asked        | is_confirmed | event: next state
    -----------|--------------|--------------|-------------------------------------------------------------------
    wanted     | None         | False        | SUBSCRIBE is sent, when there is a connection: asked
    asked      | the reply to | False        | the server confirms: confirmed; it refuses, the connection ends, or
               | SUBSCRIBE    |              | a move: wanted
    confirmed  | the same     | True         | the connection ends, or a move: wanted
    """

    __slots__ = ("asked", "follows", "is_confirmed", "is_logged", "partition", "topic", "waiters")

    def __init__(self, topic: bytes, partition: Partition | None, is_logged: bool) -> None:
        self.topic = topic
        #: None for a topic of a node, such as that of its fences.
        self.partition = partition
        self.is_logged = is_logged
        #: The reply to SUBSCRIBE, from the present home.
        self.asked: asyncio.Future[Any] | None = None
        self.is_confirmed = False
        self.waiters: list[asyncio.Future[None]] = []
        #: The reply to UNSUBSCRIBE of an earlier entry. Pushes before it were published for that entry.
        self.follows: asyncio.Future[Any] | None = None

    def finish(self, error: Exception | None) -> None:
        """End the waiting for this topic, with an error or successfully."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


class SubscriptionLedger:
    """
    The wanted topics of a partition, or of a node for itself, across reconnects and moves. No I/O: the results of
    its methods tell which commands are due.

    A topic that is given up and wanted again has a new entry, so that the reply to an old SUBSCRIBE does not
    confirm it. All ledgers of a session share one `index`, by topic, for the pushes that arrive.
    """

    def __init__(self, index: dict[bytes, Subscription], partition: Partition | None = None) -> None:
        self._index = index
        self._partition = partition
        self._entries: dict[bytes, Subscription] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(list(self._entries.values()))

    def topics(self) -> list[bytes]:
        """Return the wanted topics."""
        return list(self._entries)

    def get(self, topic: bytes) -> Subscription | None:
        """Return the entry of a topic, None if it is not wanted."""
        return self._entries.get(topic)

    def want(self, topic: bytes, is_logged: bool) -> Subscription:
        """Return the topic's entry, a new one if it was not wanted; SUBSCRIBE is due if it is not `asked`."""
        entry = self._entries.get(topic)
        if entry is None:
            entry = Subscription(topic, self._partition, is_logged)
            self._entries[topic] = self._index[topic] = entry
        return entry

    def give_up(self, topic: bytes) -> bool:
        """Give up a topic; return whether UNSUBSCRIBE is due."""
        entry = self._entries.pop(topic, None)
        if entry is None:
            return False
        del self._index[topic]
        entry.finish(None)  # its waiters do not want it any more
        return entry.asked is not None

    def confirm(self, entry: Subscription, reply: asyncio.Future[Any]) -> bool:
        """Note the server's confirmation; False if the entry or its SUBSCRIBE was given up meanwhile."""
        if self._entries.get(entry.topic) is not entry or entry.asked is not reply:
            return False
        entry.is_confirmed = True
        return True

    def refuse(self, entry: Subscription, error: Exception) -> None:
        """Note that the server refused: the waiters get the error, and SUBSCRIBE is due at the next wish."""
        entry.asked = None
        entry.finish(error)

    def disconnect(self) -> None:
        """
        Note the end of the connection, or a move: everything is still wanted, nothing is asked or confirmed.
        """
        for entry in self._entries.values():
            entry.asked = entry.follows = None
            entry.is_confirmed = False

    @property
    def is_awaited(self) -> bool:
        """Whether any task waits for a confirmation."""
        return any(entry.waiters for entry in self._entries.values())

    def finish_confirmed(self) -> None:
        """End the waiting for confirmed topics: their partition is live."""
        for entry in self._entries.values():
            if entry.waiters and entry.is_confirmed:
                entry.finish(None)

    def fail_waiters(self, error: Exception) -> None:
        """End the waiting for confirmations; the topics stay wanted."""
        for entry in self._entries.values():
            if entry.waiters:
                entry.finish(error)
