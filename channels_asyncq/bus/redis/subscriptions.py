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

    state      | asked       | is_confirmed | what comes next
    -----------|-------------|--------------|------------------------------------------
    wanted     | None        | False        | SUBSCRIBE is sent when there is a connection
    asked      | SUBSCRIBE's | False        | the server's reply
    confirmed  | reply       | True         | the end of the connection, or a move: wanted again
    """

    __slots__ = ("asked", "follows", "is_confirmed", "is_logged", "partition", "topic", "waiters")

    def __init__(self, topic: bytes, partition: Partition | None, is_logged: bool) -> None:
        self.topic = topic
        #: None for a topic of a node, as its fence.
        self.partition = partition
        self.is_logged = is_logged
        #: The reply to SUBSCRIBE that the present home was or will be sent.
        self.asked: asyncio.Future[Any] | None = None
        self.is_confirmed = False
        self.waiters: list[asyncio.Future[None]] = []
        #: The UNSUBSCRIBE of an earlier entry: what arrives before its reply was sent before this one was wanted.
        self.follows: asyncio.Future[Any] | None = None

    def finish(self, error: Exception | None) -> None:
        """End the waiting for this topic, with an error if there is one."""
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
    What a partition, or a node for itself, should be subscribed to, across reconnects and moves. No I/O: the
    answers say what to send.

    A topic that is given up and wanted again has a new entry, so that the reply to an old SUBSCRIBE confirms
    nothing: the last word wins. All ledgers of a session share one `index`, by topic, for the pushes that arrive.
    """

    def __init__(self, index: dict[bytes, Subscription], partition: Partition | None = None) -> None:
        self._index = index
        self._partition = partition
        self._entries: dict[bytes, Subscription] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(list(self._entries.values()))

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
        """Want the topic no more; return whether UNSUBSCRIBE is due."""
        entry = self._entries.pop(topic, None)
        if entry is None:
            return False
        del self._index[topic]
        entry.finish(None)  # nobody waits for it who still wants it
        return entry.asked is not None

    def confirm(self, entry: Subscription, reply: asyncio.Future[Any]) -> bool:
        """Note the server's confirmation; False if it is of an entry, or of a SUBSCRIBE, that was given up."""
        if self._entries.get(entry.topic) is not entry or entry.asked is not reply:
            return False
        entry.is_confirmed = True
        return True

    def refuse(self, entry: Subscription, error: Exception) -> None:
        """Note that the server refused: whoever waits gets the error. SUBSCRIBE is due when it is wanted anew."""
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
        """Whether somebody waits for a confirmation."""
        return any(entry.waiters for entry in self._entries.values())

    def finish_confirmed(self) -> None:
        """End the waiting for what is confirmed: its partition is live."""
        for entry in self._entries.values():
            if entry.waiters and entry.is_confirmed:
                entry.finish(None)

    def fail_waiters(self, error: Exception) -> None:
        """End the waiting for confirmations; the topics stay wanted."""
        for entry in self._entries.values():
            if entry.waiters:
                entry.finish(error)
