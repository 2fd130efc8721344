"""What wakes one stream: a message, the time for a heartbeat, or the end of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from ..session.open_channel import OpenChannel

T = TypeVar("T")


class ToldToEnd(Exception):
    """The stream was told to end while it waited for something else."""


class Wakeups:
    """
    The one waiter of a stream, and its timer.

    The timer is not set anew for each event: when it fires, it looks how long the stream has been quiet.
    """

    __slots__ = ("_heartbeat", "_loop", "_scope", "_spoke_at", "_timer", "_waiter", "is_due", "is_told")

    def __init__(self, heartbeat: float) -> None:
        self._heartbeat = heartbeat
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._scope: asyncio.Timeout | None = None
        self._spoke_at = self._loop.time()
        self._timer = self._loop.call_later(heartbeat, self._on_timer)
        #: Whether a heartbeat is due.
        self.is_due = False
        #: Whether the stream was told to end.
        self.is_told = False

    def tell(self) -> None:
        """Have the stream end soon. On its own event loop; telling it twice is fine."""
        self.is_told = True
        self._wake()
        if self._scope is not None:
            self._scope.reschedule(self._loop.time())

    def spoke(self) -> None:
        """Note that the client has got something: the next heartbeat is due `heartbeat` seconds from now."""
        self._spoke_at = self._loop.time()
        self.is_due = False

    def _on_timer(self) -> None:
        now = self._loop.time()
        due = self._spoke_at + self._heartbeat
        if due <= now:
            self.is_due = True
            self._wake()
            due = now + self._heartbeat
        self._timer = self._loop.call_at(due, self._on_timer)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, channel: OpenChannel) -> None:
        """
        Return when a message has come, a heartbeat is due, or the stream is told to end.

        To be called after a look into the channel, in the same turn of the event loop. Cancelling is safe.
        """
        if self.is_told or self.is_due:
            return
        waiter = self._waiter = self._loop.create_future()
        channel.wake(waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            channel.stop_waking(waiter)

    async def unless_told(self, result: Awaitable[T]) -> T:
        """
        Await something that may take long.

        Raises:
            ToldToEnd: the stream was told to end meanwhile; the rest was cancelled.
        """
        try:
            async with asyncio.timeout(0 if self.is_told else None) as self._scope:
                return await result
        except TimeoutError:
            if self._scope is not None and self._scope.expired():
                raise ToldToEnd from None
            raise
        finally:
            self._scope = None

    def close(self) -> None:
        """Stop the timer."""
        self._timer.cancel()
