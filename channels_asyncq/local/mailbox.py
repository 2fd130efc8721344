"""Envelopes handed over inside the process, by the memory bus and by other event loops, in order."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Callable

from ..clock import monotonic
from ..messages.envelopes import Envelope
from ..slices import SLICE

# Envelopes that may wait for one loop; senders of other loops cannot be made to wait, so more are dropped.
LIMIT = 10_000


class Mailbox:
    """
    A first-in, first-out door into one event loop's session.

    `offer(topic, envelope)` takes an envelope or answers False, which stops the mailbox until `drain()` is called
    again. `put()`, `put_always()` and `drain_soon()` may be called from any thread, all else only on the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, offer: Callable[[bytes, Envelope], bool]) -> None:
        self._loop = loop
        # What drains later belongs to nobody who drained earlier.
        self._context = contextvars.Context()
        self._offer = offer
        self._pending: deque[tuple[bytes, Envelope]] = deque()
        #: How many envelopes were taken, before the one that is being offered.
        self.taken = 0
        # Who waits, and how many envelopes must be taken before; the lowest number first.
        self._drained: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._is_scheduled = False
        self._is_resting = False

    def put(self, topic: bytes, envelope: Envelope) -> bool:
        """Append an envelope, from any thread; False if too many wait already. `drain()` must follow."""
        if len(self._pending) >= LIMIT:
            return False
        self.put_always(topic, envelope)
        return True

    def put_always(self, topic: bytes, envelope: Envelope) -> None:
        """Append what must not be left out, from any thread, however much waits. `drain()` must follow."""
        self._pending.append((topic, envelope))

    def drain_soon(self) -> bool:
        """Have the loop drain the mailbox, from any thread; False if the loop is closed."""
        if self._is_scheduled:
            return not self._loop.is_closed()
        self._is_scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._drain_scheduled)
        except RuntimeError:
            return False
        return True

    def _drain_scheduled(self) -> None:
        # Before draining: what is put from here on either is seen by drain() or schedules another one.
        self._is_scheduled = False
        self.drain()

    def drain(self) -> None:
        """Offer everything that waits, until one is not taken; what there is no time for, on the next turn."""
        if self._is_resting:
            return
        pending = self._pending
        ends = monotonic() + SLICE
        while pending:
            topic, envelope = pending[0]
            if not self._offer(topic, envelope):
                break
            pending.popleft()
            self.taken += 1
            if monotonic() >= ends:
                self._is_resting = True
                self._loop.call_soon(self._drain_rested, context=self._context)
                break
        self._tell_drained(self.taken)

    def _drain_rested(self) -> None:
        self._is_resting = False
        self.drain()

    def _tell_drained(self, taken: float) -> None:
        waiting = self._drained
        while waiting and waiting[0][0] <= taken:
            _, waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)

    @property
    def put_so_far(self) -> int:
        """How many envelopes were put: `taken` is lower while one of them is offered. On the loop only."""
        return self.taken + len(self._pending)

    @property
    def is_empty(self) -> bool:
        return not self._pending

    async def drained(self) -> None:
        """
        Return when all that waits now is taken. Cancelling is safe: the envelopes stay where they are.

        What others put meanwhile is not waited for: they may never cease to.
        """
        if self._pending:
            waiter = self._loop.create_future()
            self._drained.append((self.put_so_far, waiter))
            await waiter

    def close(self) -> int:
        """Drop what waits and let go of whoever waits for it; return how many envelopes that were."""
        count = len(self._pending)
        self._pending.clear()
        self._tell_drained(math.inf)
        return count
