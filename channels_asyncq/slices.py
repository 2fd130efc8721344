"""Long work in slices: the event loop gets a turn after each slice."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextvars import Context
from typing import Protocol

from .clock import monotonic

# Seconds that deliveries may take in one turn of the loop. Reading, handing over and chores have limits of their
# own beside it: all else waits little longer than twice that.
SLICE = 0.003
# Chores beside deliveries take less, so that both together leave time for everything else.
SHORT = SLICE / 2


class SlicesOwner(Protocol):
    """What slices call. Implemented by `session.session.Session`."""

    def on_idle(self) -> None:
        """The slices were busy, and are not any more. Called on a later turn of the loop than `run()`."""


class Slices:
    """
    The long jobs of one event loop, done one after the other and each in slices.

    A job is an iterator that does a little work before each yield. It yields whether its slice must end there,
    however short it was; else the slice ends there if its time is over. All calls of `run()` in one turn of the
    loop share one slice.

    state   | `is_busy` | what ends it
    --------|-----------|-------------------------------------------------------
    idle    | False     | `run()`: working
    working | True      | all jobs are done: idle; the slice is over: resting
    resting | True      | the next turn of the loop: working, with a new slice

    Args:
        context: for what is called on later turns.
        owner: gets `on_idle()` when the slices are idle again.
        seconds: how long a slice is.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context | None = None,
        owner: SlicesOwner | None = None,
        seconds: float = SLICE,
    ) -> None:
        self._loop = loop
        self._context = context
        self._owner = owner
        self._seconds = seconds
        self._jobs: deque[Iterator[bool]] = deque()
        self._ends = 0.0
        #: Whether a job is unfinished, or the time of this turn of the loop is used up.
        self.is_busy = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def run(self, job: Iterator[bool]) -> None:
        """Begin with a job now, unless others are unfinished. It may go on in later turns."""
        self._jobs.append(job)
        if self.is_busy:
            return
        now = monotonic()
        if now >= self._ends:
            self._ends = now + self._seconds
        self._work()

    def clear(self) -> None:
        """Abandon the unfinished jobs."""
        self._jobs.clear()

    async def idle(self) -> None:
        """Return when no job is unfinished. Cancelling is safe: the work goes on."""
        await self._is_idle.wait()

    def _work(self) -> None:
        jobs = self._jobs
        self.is_busy = True  # so that a job that calls run() does not begin another job inside itself
        is_over = False
        try:
            while jobs and not is_over:
                job = jobs.popleft()  # a job that raises is not tried again
                for must_end in job:
                    if must_end or monotonic() >= self._ends:
                        jobs.appendleft(job)
                        is_over = True
                        break
                else:
                    is_over = monotonic() >= self._ends
        finally:
            self.is_busy = is_over or bool(jobs)
            if self.is_busy:
                self._is_idle.clear()
                self._loop.call_soon(self._resume, context=self._context)

    def _resume(self) -> None:
        self._ends = monotonic() + self._seconds
        try:
            self._work()
        finally:
            if not self.is_busy:
                self._is_idle.set()
                if self._owner is not None:
                    self._owner.on_idle()


class Slice:
    """The time that one coroutine may take in one turn of the loop, beside deliveries."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends = monotonic() + SHORT

    async def rest(self) -> None:
        """Give the loop a turn if the slice is over, and begin another slice. Cancelling is safe."""
        if monotonic() >= self._ends:
            await asyncio.sleep(0)
            self._ends = monotonic() + SHORT


class Turnstile:
    """
    Lets tasks that were woken at once go on in turns: as many in one turn of the loop as a slice has time for.

    state  | `_waiters` | `_is_begun` | event: next state
    -------|------------|-------------|--------------------------------------------------------------------------
    open   | none       | False       | `pass_through()`: begun
    begun  | none       | True        | the next turn: open; `pass_through()` after the end of the slice: queue
    queue  | some       | True        | each turn lets some pass, and more of them if the last were quick
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context | None = None) -> None:
        self._loop = loop
        self._context = context
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._is_begun = False
        self._began = 0.0
        self._at_once = 1

    async def pass_through(self) -> None:
        """Return in this turn, or in a later one if its slice is over. Cancelling is safe."""
        if not self._is_begun:
            self._begin()
        elif self._waiters or monotonic() - self._began >= SLICE:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def _begin(self) -> None:
        self._is_begun = True
        self._began = monotonic()
        self._loop.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        if not self._waiters:
            self._is_begun = False
            return
        seconds = monotonic() - self._began
        self._at_once = self._at_once * 2 if seconds < SHORT else max(1, self._at_once // 2)
        # The clock starts when the first of them runs: what else the loop does does not count.
        self._loop.call_soon(self._start_clock, context=self._context)
        count = 0
        while self._waiters and count < self._at_once:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count += 1
        # The tasks that were woken run before this is called again.
        self._loop.call_soon(self._turn, context=self._context)

    def _start_clock(self) -> None:
        self._began = monotonic()
