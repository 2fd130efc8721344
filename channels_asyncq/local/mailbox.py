"""Envelopes handed over inside the process, by the memory bus and by other event loops, in order."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from typing import Protocol

from ..clock import monotonic
from ..messages.envelopes import Envelope
from ..slices import SLICE

# The envelopes that may wait for one loop. Senders of other loops cannot be made to wait, so more are dropped.
LIMIT = 10_000


class MailboxOwner(Protocol):
    """
    What a mailbox calls, always on its loop.

    Implemented by `bus.memory.subscriber.MemorySubscriber` and `session.arrivals.Arrivals`.
    """

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        """Take an envelope. False: it is offered again, and the mailbox waits for the next `drain()`."""


class Mailbox:
    """
    A first-in, first-out door into one event loop's session.

    `put()`, `put_always()` and `drain_soon()` may be called from any thread, all else only on the loop.

    state   | envelopes wait | what ends it
    --------|----------------|---------------------------------------------------------------------------
    idle    | no             | an envelope is put
    waiting | yes            | `drain()`, or `drain_soon()` in the next turn of the loop, takes all: idle;
            |                | or the slice is over: resting
    resting | yes            | the next turn of the loop goes on; `drain()` does nothing meanwhile
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: MailboxOwner) -> None:
        self._loop = loop
        # Later turns do not run in the context of whatever called `drain()` first.
        self._context = contextvars.Context()
        self._owner = owner
        self._pending: deque[tuple[bytes, Envelope]] = deque()
        #: How many envelopes were taken, without the one that is being offered.
        self.taken = 0
        # The waiters of `drained()`, and how many envelopes must be taken for each; the lowest number first.
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
        """Append an envelope that must not be dropped, from any thread. `drain()` must follow."""
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
        # Before draining: an envelope that is put from here on is either seen by drain() or schedules it again.
        self._is_scheduled = False
        self.drain()

    def drain(self) -> None:
        """Offer the waiting envelopes until one is not taken; go on in the next turn if the slice is over."""
        if self._is_resting:
            return
        pending = self._pending
        ends = monotonic() + SLICE
        while pending:
            topic, envelope = pending[0]
            if not self._owner.on_envelope(topic, envelope):
                break
            pending.popleft()
            self.taken += 1
            if monotonic() >= ends:
                self._is_resting = True
                self._loop.call_soon(self._drain_rested, context=self._context)
                break
        self._notify_drained(self.taken)

    def _drain_rested(self) -> None:
        self._is_resting = False
        self.drain()

    def _notify_drained(self, taken: float) -> None:
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

    def first_logged(self) -> int:
        """Return the position of the first waiting envelope in a log, 0 for none. Nothing is put meanwhile."""
        return next((envelope.position for _, envelope in self._pending if envelope.position), 0)

    async def drained(self) -> None:
        """
        Return when all the envelopes that wait now are taken. Cancelling is safe: they stay where they are.

        Envelopes that are put meanwhile are not waited for: there may always be more.
        """
        if self._pending:
            waiter = self._loop.create_future()
            self._drained.append((self.put_so_far, waiter))
            await waiter

    def close(self) -> int:
        """Drop the waiting envelopes, and have `drained()` return; return how many envelopes that were."""
        count = len(self._pending)
        self._pending.clear()
        self._notify_drained(math.inf)
        return count
