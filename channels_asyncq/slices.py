"""Long work in slices: an event loop gets a turn when a slice is over."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from .clock import monotonic

# Seconds that deliveries may take in one turn of the loop: with what is read, handed over and done beside them,
# nothing else waits much longer than twice that.
SLICE = 0.003
# What is done beside them takes less, so that both together leave the others enough.
SHORT = SLICE / 2


class Slices:
    """
    The long jobs of one event loop, done one after the other and each in slices.

    A job is an iterator that does a little work before each yield. It yields whether its slice must end there,
    however short it was; else it ends there if its time is over. What `run()` is called for in one turn of the
    loop shares a slice.

    Args:
        call_soon: has the loop call something on its next turn.
        on_idle: is called when `is_busy` has ended on a later turn.
        seconds: how long a slice is.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        on_idle: Callable[[], None],
        seconds: float = SLICE,
    ) -> None:
        self._call_soon = call_soon
        self._on_idle = on_idle
        self._seconds = seconds
        self._jobs: deque[Iterator[bool]] = deque()
        self._ends = 0.0
        #: Whether a job is unfinished, or the time of this turn of the loop is used up.
        self.is_busy = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def run(self, job: Iterator[bool]) -> None:
        """Begin with a job now, unless others are unfinished; what its slice has no time for comes later."""
        self._jobs.append(job)
        if self.is_busy:
            return
        now = monotonic()
        if now >= self._ends:
            self._ends = now + self._seconds
        self._work()

    def clear(self) -> None:
        """Drop what is unfinished."""
        self._jobs.clear()

    async def idle(self) -> None:
        """Return when nothing is unfinished. Cancelling is safe: the work goes on."""
        await self._is_idle.wait()

    def _work(self) -> None:
        jobs = self._jobs
        self.is_busy = True  # a job that calls run() does not begin another one inside itself
        is_over = False
        try:
            while jobs and not is_over:
                job = jobs.popleft()  # one that raises is not tried again
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
                self._call_soon(self._go_on)

    def _go_on(self) -> None:
        self._ends = monotonic() + self._seconds
        try:
            self._work()
        finally:
            if not self.is_busy:
                self._is_idle.set()
                self._on_idle()


class Slice:
    """The time that a coroutine may take in one turn of the loop, beside deliveries."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends = monotonic() + SHORT

    async def rest(self) -> None:
        """Give the loop a turn if the slice is over, and begin another one. Cancelling is safe."""
        if monotonic() >= self._ends:
            await asyncio.sleep(0)
            self._ends = monotonic() + SHORT
