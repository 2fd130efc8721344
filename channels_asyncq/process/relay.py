"""Work for callers without a lasting event loop: one thread with one event loop for the whole process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

from .. import threads
from .jobs import Job, relay_stopped
from .relay_loop import RelayLoop

T = TypeVar("T")

# The time from the call of stop() to the end of the thread, and the part of it for closing the connections.
_STOP_SECONDS = 2.0
_LEAVE_SECONDS = 1.5


class Relay:
    """
    A daemon thread that runs coroutines for callers that have no loop, or one that lives only for a moment.

    The first job starts the thread, and the exit of the interpreter stops it. The relay holds a job only as long
    as its caller waits for it.

    state    | `_loop`  | `_thread` | what ends the state
    ---------|----------|-----------|-----------------------------------------------------------
    idle     | None     | None      | a job is posted: running
    running  | the loop | runs it   | `stop()`: stopping
    stopping | None     | ends      | a job is posted: running, with a new loop and a new thread
    """

    def __init__(self) -> None:
        self._lock = threads.lock()
        self._loop: RelayLoop | None = None
        self._thread: threads.Joinable | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, while the relay runs."""
        return self._loop

    # For callers

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """
        Run a coroutine on the relay's loop; return or raise what it does.

        Cancelling cancels the coroutine as soon as possible; bytes that were written stay written.
        """
        job = Job(work)
        try:
            self._post(job)
            await job.over()
        except BaseException:
            self._cancel(job)
            raise
        return job.outcome()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the relay's loop for a thread without a loop: block until it is over."""
        job = Job(work)
        try:
            self._post(job)
            job.wait()
        except BaseException:
            # Ctrl-C, or another exception of a signal handler.
            self._cancel(job)
            raise
        return job.outcome()

    def _post(self, job: Job[Any]) -> None:
        while True:
            job.loop = loop = self._loop or self._start()
            # Added before posting: _live() ends the jobs in this set when the loop has closed.
            loop.jobs.add(job)
            try:
                loop.post(job)
                return
            except RuntimeError:
                # The loop was closed in between; the next one is another loop.
                loop.jobs.discard(job)
                with self._lock:
                    if self._loop is loop:
                        self._loop = self._thread = None

    def _cancel(self, job: Job[Any]) -> None:
        job.is_cancelled = True
        if job.loop is None:
            job.close_unstarted()
            return
        try:
            job.loop.call_soon_threadsafe(job.cancel, context=job.loop.context)
        except RuntimeError:  # the loop is closed and begins nothing any more
            job.close_unstarted()

    # Its life

    def _start(self) -> RelayLoop:
        with self._lock:
            if self._loop is None:
                loop = RelayLoop()
                try:
                    thread = threads.start(partial(self._live, loop), "channels_asyncq relay")
                except BaseException:
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread
                atexit.register(self.stop)
            return self._loop

    def _live(self, loop: RelayLoop) -> None:
        try:
            loop.run_forever()
            loop.run_until_complete(self._leave(loop))
        finally:
            loop.close()
            # Jobs that were posted too late to begin.
            for job in list(loop.jobs):
                job.end(relay_stopped())

    @staticmethod
    async def _leave(loop: RelayLoop) -> None:
        """Release the waiting callers and close the sessions; work that takes too long is cut off."""
        loop.is_leaving = True
        # A written command may still be answered: its caller must not be told that it was not sent.
        # A copy: other threads still add to the set.
        begun = [job.task for job in list(loop.jobs) if job.task is not None]
        if begun:
            await asyncio.wait(begun, timeout=_LEAVE_SECONDS / 4)
        this = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not this]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LEAVE_SECONDS / 4)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS / 2):
                await loop.shutdown_asyncgens()
        # A closed transport closes its socket on the next turn.
        await asyncio.sleep(0)

    def stop(self) -> None:
        """
        End the thread within two seconds: sent messages have left, and connections are closed.

        A second call waits for the same end.
        """
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = None
        if loop is not None:
            atexit.unregister(self.stop)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(loop.stop)
        if thread is not None:
            thread.join(_STOP_SECONDS)

    def let_go_in_child(self) -> None:
        """Release a forked child's copies of the relay's descriptors; no transport and no loop is told."""
        atexit.unregister(self.stop)
        if self._loop is not None:
            selector = self._loop.selector
            let_go(key.fd for key in list((selector.get_map() or {}).values()))
            # The child's copy of the selector's own descriptor; the parent's selector stays as it is.
            selector.close()


def let_go(descriptors: Iterable[int]) -> None:
    """
    Replace a forked child's copies of its parent's descriptors by the null device.

    Closing the transport would take the descriptor out of the selector that the child shares with its parent.
    Closing the descriptor would free its number for another file, which the transport would then write to.
    Keeping the descriptor would leave the connection open after the parent has closed it.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.dup2(null, descriptor, inheritable=False)
    finally:
        os.close(null)


_relay = Relay()


def relay() -> Relay:
    """Return the relay of this process."""
    return _relay


def after_fork_in_child() -> Relay:
    """Start with a fresh relay; return the inherited one, which the child must keep and never collect."""
    global _relay
    inherited, _relay = _relay, Relay()
    inherited.let_go_in_child()
    return inherited
