"""Wanted against confirmed topics, as a table."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any


class Subscription:
    """
    One wanted topic.

    state      | is_sent | is_confirmed | what comes next
    -----------|---------|--------------|------------------------------------------
    wanted     | False   | False        | SUBSCRIBE is sent when there is a connection
    asked      | True    | False        | the server's reply
    confirmed  | True    | True         | the end of the connection: wanted again
    """

    __slots__ = ("follows", "is_confirmed", "is_sent", "partition", "topic", "waiters")

    def __init__(self, topic: bytes, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.is_sent = False
        self.is_confirmed = False
        self.waiters: list[asyncio.Future[None]] = []
        #: The UNSUBSCRIBE of an earlier entry: what arrives before its reply was sent before this one was wanted.
        self.follows: asyncio.Future[Any] | None = None

    def finish(self, error: Exception | None) -> None:
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
    What one push connection should be subscribed to, across reconnects. No I/O: the answers say what to send.

    A topic that is given up and wanted again has a new entry, so that the reply to an old SUBSCRIBE confirms
    nothing: the last word wins.
    """

    def __init__(self) -> None:
        self._entries: dict[bytes, Subscription] = {}
        #: Return the entry of a topic, None if it is not wanted.
        self.get = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(list(self._entries.values()))

    def want(self, topic: bytes, partition: int = 0) -> Subscription:
        """Return the topic's entry, a new one if it was not wanted; SUBSCRIBE is due if it is not `is_sent`."""
        entry = self._entries.get(topic)
        if entry is None:
            entry = self._entries[topic] = Subscription(topic, partition)
        return entry

    def give_up(self, topic: bytes) -> bool:
        """Want the topic no more; return whether UNSUBSCRIBE is due."""
        entry = self._entries.pop(topic, None)
        if entry is None:
            return False
        entry.finish(None)  # nobody waits for it who still wants it
        return entry.is_sent

    def confirm(self, entry: Subscription) -> bool:
        """Note the server's confirmation; False if this entry is not wanted any more."""
        if self._entries.get(entry.topic) is not entry:
            return False
        entry.is_confirmed = True
        entry.finish(None)
        return True

    def refuse(self, entry: Subscription, error: Exception) -> None:
        """Note that the server refused: whoever waits gets the error. SUBSCRIBE is due when it is wanted anew."""
        entry.is_sent = False
        entry.finish(error)

    def disconnect(self) -> None:
        """Note the end of the connection: everything is still wanted, nothing is sent or confirmed."""
        for entry in self._entries.values():
            entry.is_sent = entry.is_confirmed = False

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for a confirmation."""
        return any(entry.waiters for entry in self._entries.values())

    def fail_waiters(self, error: Exception) -> None:
        """End the waiting for confirmations; the topics stay wanted."""
        for entry in self._entries.values():
            if entry.waiters:
                entry.finish(error)
