"""The event loop of the relay: it takes jobs from any thread, and its name look-ups delay no exit."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
from collections import deque
from typing import Any

from .. import threads
from ..clock import monotonic
from .jobs import Job


class RelayLoop(asyncio.SelectorEventLoop):
    """
    A plain selector loop, whatever policy the application has set for its own loops.

    Look-ups of host names run on daemon threads. (asyncio's run in an executor, whose threads the interpreter
    joins at its exit, and a name server may be silent for long.)
    """

    def __init__(self) -> None:
        #: The jobs that a caller waits for.
        self.jobs: set[Job[Any]] = set()
        self.selector = threads.selector()
        super().__init__(self.selector)
        self.is_leaving = False
        #: Each loop has its own: at the exit a successor may run already, and two threads cannot share a context.
        self.context = contextvars.Context()
        # An eventfd wakes a loop at less cost than call_soon_threadsafe(), which makes a handle and reads twice.
        # Only Linux has it, and it may be forbidden. `python -m benchmarks sync` has what a call costs.
        self._posted: deque[Job[Any]] = deque()
        # Reentrant: a signal handler may post while its thread is posting.
        self._eventfd, self._eventfd_lock = -1, threads.original("_thread", "RLock")()
        with contextlib.suppress(AttributeError, OSError):
            eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.context.run(self.add_reader, eventfd, self._begin_posted)
            self._eventfd = eventfd

    def time(self) -> float:
        # A test can freeze asyncio's own clock. Then no timer would fire, and timers set meanwhile never would.
        return monotonic()

    def post(self, job: Job[Any]) -> None:
        """
        Queue a job, from any thread; the loop begins jobs in the order in which they were posted.

        Raises:
            RuntimeError: the loop is closed.
        """
        # close() takes this lock too: otherwise the write could go to another file that got the same number.
        with self._eventfd_lock:
            if self._eventfd < 0 or self.is_closed():
                self.call_soon_threadsafe(job.begin, context=self.context)
            else:
                self._posted.append(job)
                os.eventfd_write(self._eventfd, 1)

    def _begin_posted(self) -> None:
        os.eventfd_read(self._eventfd)
        # Only the jobs that are there now: the loop has other work as well.
        for _ in range(len(self._posted)):
            self._posted.popleft().begin()

    def close(self) -> None:
        with self._eventfd_lock:
            if self._eventfd >= 0 and not self.is_closed():
                os.close(self._eventfd)
            super().close()

    async def getaddrinfo(self, host: Any, port: Any, **hints: Any) -> Any:
        answer: asyncio.Future[Any] = self.create_future()

        def set_answer(found: Any, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found)

        def look_up() -> None:
            found, error = None, None
            try:
                found = threads.original("socket", "getaddrinfo")(host, port, **hints)
            except Exception as exc:
                error = exc
            with contextlib.suppress(RuntimeError):
                self.call_soon_threadsafe(set_answer, found, error)

        threads.start(look_up, "channels_asyncq look-up")
        return await answer
