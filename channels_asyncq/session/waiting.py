"""A session's senders that wait for a place in a normal channel."""

from __future__ import annotations

import asyncio
import math

from channels.exceptions import ChannelFull

from ..bus.base import ChannelRoute, WorkQueues
from ..clock import monotonic
from ..exceptions import StillFull
from .lifetime import Lifetime
from .routes import Routes

# A sender asks for a place again after this many seconds, then ever more seldom.
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1


class Attempt:
    """One message for a full normal channel, and how it asks for a place."""

    __slots__ = ("_channel", "_lifetime", "_payload", "_route", "_routes")

    def __init__(
        self, lifetime: Lifetime, routes: Routes, channel: str, payload: bytes, route: ChannelRoute
    ) -> None:
        self._lifetime = lifetime
        self._routes = routes
        self._channel = channel
        self._payload = payload
        self._route = route

    async def succeeds(self) -> bool:
        """Send the message; False if the channel is full."""
        self._lifetime.require_open(self._channel)
        self._routes.to_channel(self._channel)  # raises if the channel was closed here
        try:
            await self._route.send(self._payload)
        except ChannelFull:
            return False
        return True


class SendersLine:
    """
    A session's senders that wait for a place in one normal channel: first come, first served.

    Only the first of them asks the server, so that no sender overtakes another, however long each has waited.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()  # it serves its waiters in order
        self._length = 0

    @property
    def is_empty(self) -> bool:
        return not self._length

    async def wait(self, attempt: Attempt, until: float) -> bool:
        """
        Repeat an attempt until it succeeds; False if it has not by that time.

        Cancelling leaves the line to the next sender.
        """
        # The first sender was refused just now.
        pause = 0.0 if self._length else _FIRST_PAUSE
        self._length += 1
        try:
            try:
                async with asyncio.timeout(None if until == math.inf else until - monotonic()):
                    await self._turn.acquire()
            except TimeoutError:
                return False
            try:
                return await self._repeat(attempt, until, pause)
            finally:
                self._turn.release()
        finally:
            self._length -= 1

    @staticmethod
    async def _repeat(attempt: Attempt, until: float, pause: float) -> bool:
        while (left := until - monotonic()) > 0:
            # Readers in other processes free places, and so does expiry, and neither notifies this sender.
            await asyncio.sleep(min(pause, left))
            # Not under a timeout: a push that is cut short may be in the queue all the same.
            if await attempt.succeeds():
                return True
            pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * pause))
        return False


class SenderLines:
    """The lines of a session's senders, one for each normal channel that is waited for."""

    def __init__(self, queues: WorkQueues, routes: Routes, lifetime: Lifetime) -> None:
        self._queues = queues
        self._routes = routes
        self._lifetime = lifetime
        self._lines: dict[str, SendersLine] = {}

    @property
    def is_empty(self) -> bool:
        return not self._lines

    async def send(self, channel: str, payload: bytes, timeout: float | None) -> None:  # noqa: ASYNC109
        """
        Send to a normal channel as soon as there is a place.

        Cancelling is safe: the message is not sent then, unless its bytes were already on their way.

        Raises:
            StillFull: there was no place within `timeout` seconds. The message was not sent.
        """
        until = math.inf if timeout is None else monotonic() + timeout
        route = self._queues.waiting_route(channel)
        attempt = Attempt(self._lifetime, self._routes, channel, payload, route)
        is_sent = False
        try:
            # A newcomer does not overtake the senders of this session that wait already.
            is_sent = channel not in self._lines and await attempt.succeeds()
            if not is_sent:
                is_sent = await self._wait_in_line(channel, attempt, until)
        finally:
            if not is_sent and channel not in self._lines:
                self._queues.stop_waiting(channel)
        if not is_sent:
            raise StillFull(f"channel {channel!r} had no place for {timeout} s")

    async def _wait_in_line(self, channel: str, attempt: Attempt, until: float) -> bool:
        line = self._lines.setdefault(channel, SendersLine())
        try:
            return await line.wait(attempt, until)
        finally:
            if line.is_empty:
                self._lines.pop(channel, None)
