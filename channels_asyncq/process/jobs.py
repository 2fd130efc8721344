"""One piece of work that the relay does, and how its caller waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .. import threads
from ..exceptions import LayerClosed

if TYPE_CHECKING:
    from .relay_loop import RelayLoop

T = TypeVar("T")


class Bell(Protocol):
    """
    What a job rings when it is over.

    Implemented by `threads.Bell` for greenlets, and by `process.jobs.LoopBell` for coroutines.
    """

    def ring(self) -> None:
        """Wake the waiting caller, from the relay's thread."""


class JobState(Enum):
    """How far a job is. Its docstring has the table."""

    POSTED = "posted"
    RUNNING = "running"
    OVER = "over"


class Job(Generic[T]):
    """
    A coroutine that runs on the relay's loop, and the ways to wait for its end.

    The relay's loop begins and ends the job; the thread that posted it waits for the outcome.

    state   | the coroutine     | what ends the state
    --------|-------------------|------------------------------------------------------------------------
    POSTED  | was never started | the loop begins the job: RUNNING; or OVER, if the job was cancelled first
            |                   | or the loop is stopping, and then the coroutine is closed unstarted
    RUNNING | runs in `task`    | the coroutine returns or raises: OVER
    OVER    | is done or closed | nothing; the outcome waits for the caller
    """

    __slots__ = ("_bell", "_lock", "_outcome", "_work", "is_cancelled", "loop", "state", "task")

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self.loop: RelayLoop | None = None
        self._work = work
        self.task: asyncio.Task[None] | None = None
        self.state = JobState.POSTED
        self._outcome: T | BaseException | None = None
        self._bell: Bell | None = None
        #: Set by the thread that posted the job: a job that has not begun by then never begins.
        self.is_cancelled = False
        # The cheapest way for a thread to wait: the lock is held until the job is over.
        self._lock = threads.lock()
        self._lock.acquire()

    # On the relay's loop

    def begin(self) -> None:
        loop = self.loop
        if self.state is JobState.OVER:
            return
        if loop is None or loop.is_leaving or self.is_cancelled:
            self.end(relay_stopped())
        elif sys.version_info >= (3, 12):
            # The job runs up to its write within this turn of the loop: one more turn costs a system call.
            self.task = asyncio.Task(self._run(), loop=loop, eager_start=True)
        else:
            self.task = loop.create_task(self._run())
            # A task that is cancelled before it runs never enters _run().
            self.task.add_done_callback(lambda task: self.end(relay_stopped()))

    async def _run(self) -> None:
        self.state = JobState.RUNNING
        # The error gets no local name: its traceback would hold this frame, and the frame would hold the error.
        try:
            self.end(await self._work)
        except asyncio.CancelledError:
            self.end(relay_stopped())
        except GeneratorExit:
            raise
        except BaseException as exc:
            self.end(exc)

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
        else:
            self.end(relay_stopped())

    def end(self, outcome: T | BaseException) -> None:
        """Note the outcome and wake the caller; a second outcome is ignored."""
        if self.state is JobState.OVER:
            return
        self.close_unstarted()
        self._outcome = outcome
        self.state = JobState.OVER
        if self.loop is not None:
            self.loop.jobs.discard(self)
        self.task = None
        self._lock.release()
        # Read last: over() sets the bell first and looks at the state after that.
        bell = self._bell
        if bell is not None:
            bell.ring()

    def close_unstarted(self) -> None:
        """Close a coroutine that never ran, which Python would complain about."""
        if self.state is JobState.POSTED:
            self._work.close()

    # On the thread that posted the job

    def wait(self) -> None:
        """Block until the job is over; where threads are greenlets, others run meanwhile. Callable once."""
        if threads.are_greenlets():
            self._wait_for_bell()
        else:
            self._lock.acquire()

    def _wait_for_bell(self) -> None:
        bell = threads.Bell()
        try:
            self._bell = bell
            if self.state is not JobState.OVER:
                bell.wait()
        finally:
            bell.close()

    async def over(self) -> None:
        """Return when the job is over."""
        self._bell = bell = LoopBell()
        if self.state is not JobState.OVER:
            await bell.rung

    def outcome(self) -> T:
        """Return what the coroutine returned, or raise what it raised."""
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, BaseException):
            try:
                raise outcome
            finally:
                # The traceback refers to this frame: a name here would make a cycle.
                del outcome
        return outcome  # type: ignore[return-value]


class LoopBell:
    """Completes a future of the running loop when another thread rings."""

    __slots__ = ("_loop", "rung")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.rung: asyncio.Future[None] = self._loop.create_future()

    def ring(self) -> None:
        # The caller's loop may have ended without waiting. Other jobs must not see an error of that loop.
        with contextlib.suppress(Exception):
            self._loop.call_soon_threadsafe(self._complete)

    def _complete(self) -> None:
        if not self.rung.done():
            self.rung.set_result(None)


def relay_stopped() -> LayerClosed:
    """Return the error for a job that the relay cannot do any more."""
    return LayerClosed(message="The channel layer's relay was stopped: the process is ending.")
