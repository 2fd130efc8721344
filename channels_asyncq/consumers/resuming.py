"""The messages of a consumer that comes back: what was missed, then what comes, each with its position."""

from __future__ import annotations

import asyncio
import contextvars
import random
from datetime import datetime
from typing import NamedTuple

from ..messages.envelopes import Envelope
from ..session.following import Follower
from .sources import Message

# A generator of our own: the state of the global one belongs to the application.
_jitter = random.Random()

#: The types of the messages that a `FollowedGroups` makes for its consumer.
MISSED = "asyncq.missed"
ARRIVED = "asyncq.arrived"
RESUMED = "asyncq.resumed"
LOST = "asyncq.lost"
BEAT = "asyncq.beat"
OWN_TYPES = frozenset({MISSED, ARRIVED, RESUMED, LOST, BEAT})


class Taken(NamedTuple):
    """The envelope of a message of one of the groups, not decoded yet, and the position behind it."""

    envelope: Envelope
    position: str


class FollowedGroups:
    """
    The source of a consumer that follows groups by its own channel.

    state   | `_begun` | `_is_due` | what `take()` returns
    --------|----------|-----------|------------------------------------------------------------------------
    apart   | False    | False     | the messages of the channel; the groups were not joined
    closed  | False    | any       | `ChannelClosed`, also where messages were missed or lost
    behind  | True     | True      | `MISSED`, for `next_missed()`; then `RESUMED`, once: live
    live    | True     | False     | `ARRIVED` for a message of a group, which is in `taken`; other messages;
            |          |           | `LOST` where messages are missing; `BEAT` after a silence
    """

    def __init__(self, follower: Follower, heartbeat: float) -> None:
        """
        Args:
            heartbeat: seconds after which a reader of quiet groups gets a fresh position.
        """
        self.follower = follower
        self._heartbeat = heartbeat
        #: Messages from before this time, in ms since 1970, are not for this reader.
        self._not_before = 0
        self._begun = False
        self._is_due = False
        self._beats = False
        #: The message of a group that was taken last.
        self.taken: Taken | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def begin(self, groups: tuple[str, ...], since: str | None, not_before: datetime | None) -> None:
        """Join the groups. Raises as `Follower.begin()`."""
        self.follower.follow(groups)
        if not_before is not None:
            self._not_before = round(not_before.timestamp() * 1000)
        await self.follower.begin(since)
        self._begun = self._is_due = True
        self._start_timer()

    @property
    def name(self) -> str:
        """The name of the channel."""
        return self.follower.channel.name

    @property
    def is_returning(self) -> bool:
        """Whether what was missed before this connection is still being taken."""
        return self._is_due

    # As a source

    def take(self) -> Message | None:
        """Raises ChannelClosed: the channel or the layer is closed, and nothing is left in it."""
        follower = self.follower
        if not self._begun:
            return follower.channel.take()
        if follower.is_behind:
            return {"type": MISSED}
        if self._is_due:
            # Before what comes live: in a busy group the channel may never be empty.
            self._is_due = False
            return {"type": RESUMED}
        while (envelope := follower.take()) is not None:
            if envelope.target not in follower.groups:
                return follower.message_of(envelope)
            if not self._is_before(envelope):
                self.taken = Taken(envelope, follower.position)
                return {"type": ARRIVED}
        if follower.has_lost:
            return {"type": LOST}
        if self._beats:
            self._beats = False
            follower.catch_up()
            return {"type": BEAT}
        return None

    def next_missed(self) -> Taken | None:
        """Return the next message that was missed, None if there is none left."""
        follower = self.follower
        while follower.is_behind:
            envelope = follower.take()
            if envelope is not None and not self._is_before(envelope):
                return Taken(envelope, follower.position)
        return None

    def _is_before(self, envelope: Envelope) -> bool:
        return 0 < envelope.position >> 64 < self._not_before

    def empty(self) -> bool:
        follower = self.follower
        if not self._begun:
            return follower.channel.empty()
        is_pending = self._is_due or self._beats or follower.is_behind or follower.has_lost
        return not is_pending and follower.channel.empty()

    def wake(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = waiter
        self.follower.channel.wake(waiter)

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = None
        self.follower.channel.stop_waking(waiter)

    # Heartbeats

    def _start_timer(self) -> None:
        seconds = self._heartbeat * _jitter.uniform(0.8, 1.0)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._beat, context=contextvars.Context())

    def _beat(self) -> None:
        self._beats = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            self.follower.channel.stop_waking(waiter)
            waiter.set_result(None)
        self._start_timer()

    def close(self) -> None:
        """Close the channel, with what was missed and not taken. Closing twice is fine."""
        self._begun = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.follower.channel.close()
