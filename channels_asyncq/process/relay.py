"""Work for callers who have no event loop that lasts: one thread with one event loop for the whole process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

from .. import threads
from ..clock import monotonic
from ..exceptions import LayerClosed

T = TypeVar("T")

# From the call of stop() to the end of the thread, with what is left of the connections cut off before.
_STOP_SECONDS = 2.0
_LEAVE_SECONDS = 1.5


class Job(Generic[T]):
    """
    One piece of work that the relay does, and the ways to wait for it.

    The relay's loop begins and ends it; the rest is for the thread that posted it.
    """

    __slots__ = ("_lock", "_make", "_outcome", "_tell", "is_cancelled", "is_over", "loop", "task")

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self.loop: RelayLoop | None = None
        self._make = make
        self.task: asyncio.Task[None] | None = None
        self._outcome: T | BaseException | None = None
        self._tell: Callable[[], object] | None = None
        #: Set by the thread that posted it: what has not begun by then never does.
        self.is_cancelled = False
        self.is_over = False
        # The cheapest way for a thread to wait: held until it is over.
        self._lock = threads.lock()
        self._lock.acquire()

    # On the relay's loop

    def begin(self) -> None:
        loop = self.loop
        if self.is_over:
            return
        if loop is None or loop.is_leaving or self.is_cancelled:
            self.end(_stopped())
        elif sys.version_info >= (3, 12):
            # Up to the write within this turn of the loop: a turn is a system call.
            self.task = asyncio.Task(self._run(), loop=loop, eager_start=True)
        else:
            self.task = loop.create_task(self._run())
            # A task that is cancelled before it runs has an end too.
            self.task.add_done_callback(lambda task: self.end(_stopped()))

    async def _run(self) -> None:
        # No local name for the error: its traceback would hold this frame, and with it itself.
        try:
            self.end(await self._make())
        except asyncio.CancelledError:
            self.end(_stopped())
        except GeneratorExit:
            raise
        except BaseException as exc:
            self.end(exc)

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
        else:
            self.end(_stopped())

    def end(self, outcome: T | BaseException) -> None:
        """Note the outcome and wake the thread that waits; a second outcome is ignored."""
        if self.is_over:
            return
        self._outcome = outcome
        self.is_over = True
        if self.loop is not None:
            self.loop.jobs.discard(self)
        self.task = None
        self._lock.release()
        # Last: over() sets it and looks at is_over after that.
        tell = self._tell
        if tell is not None:
            tell()

    # On the thread that posted it

    def wait(self) -> None:
        """Block until it is over; a greenlet lets others run meanwhile. Can be asked once."""
        if threads.are_greenlets():
            self._wait_for_bell()
        else:
            self._lock.acquire()

    def _wait_for_bell(self) -> None:
        bell = threads.Bell()
        try:
            self._tell = bell.ring
            if not self.is_over:
                bell.wait()
        finally:
            bell.close()

    async def over(self) -> None:
        """Return when it is over."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def release() -> None:
            if not future.done():
                future.set_result(None)

        def tell() -> None:
            # The loop may have ended without waiting. Other jobs must not see an error of this loop.
            with contextlib.suppress(Exception):
                loop.call_soon_threadsafe(release)

        self._tell = tell
        if not self.is_over:
            await future

    def outcome(self) -> T:
        """Return what the work returned, or raise what it raised."""
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, BaseException):
            try:
                raise outcome
            finally:
                # The traceback refers to this frame: without this it would refer to itself.
                del outcome
        return outcome  # type: ignore[return-value]


def _stopped() -> LayerClosed:
    return LayerClosed(message="The channel layer's relay was stopped: the process is ending.")


class RelayLoop(asyncio.SelectorEventLoop):
    """
    A plain loop, whatever policy the application has set for its own.

    Its look-ups of names delay no exit: the threads of an executor are joined at the exit of the interpreter,
    and a name server may be silent for long; these are daemons.
    """

    def __init__(self) -> None:
        #: Work that somebody waits for.
        self.jobs: set[Job[Any]] = set()
        self.selector = threads.selector()
        super().__init__(self.selector)
        self.is_leaving = False
        #: One for each loop: at the exit a successor may run already, and two threads cannot be in one context.
        self.context = contextvars.Context()
        # An eventfd wakes a loop at less cost than call_soon_threadsafe(), which makes a handle and reads twice.
        # (sync.group_send: 94 us a call so, 109 us without.) There is none but on Linux, and it may be forbidden.
        self._posted: deque[Job[Any]] = deque()
        # A signal's handler may post while its thread does.
        self._bell, self._bell_lock = -1, threads.original("_thread", "RLock")()
        with contextlib.suppress(AttributeError, OSError):
            bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.context.run(self.add_reader, bell, self._begin_posted)
            self._bell = bell

    def time(self) -> float:
        # asyncio's own can be frozen by a test; then no timer would fire, and what was set meanwhile never does.
        return monotonic()

    def post(self, job: Job[Any]) -> None:
        """
        Queue a job, from any thread; the loop begins jobs in the order in which they were posted.

        Raises:
            RuntimeError: the loop is closed.
        """
        with self._bell_lock:  # held by close() too: nobody writes into another file that got this number
            if self._bell < 0 or self.is_closed():
                self.call_soon_threadsafe(job.begin, context=self.context)
            else:
                self._posted.append(job)
                os.eventfd_write(self._bell, 1)

    def _begin_posted(self) -> None:
        os.eventfd_read(self._bell)
        # No more than there are now: the loop has other things to do.
        for _ in range(len(self._posted)):
            self._posted.popleft().begin()

    def close(self) -> None:
        with self._bell_lock:
            if self._bell >= 0 and not self.is_closed():
                os.close(self._bell)
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


class Relay:
    """
    A daemon thread that runs coroutines for callers whose own loop lives only for a moment, or who have none.

    It is started by the first job and stopped at the exit of the interpreter. It holds no more than its
    callers do: each waits for its job.
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

    async def run(self, make: Callable[[], Awaitable[T]]) -> T:
        """
        Have `make()` awaited on the relay's loop; return or raise what it does.

        Cancelling cancels the work, as soon as that can be; what was written is written.
        """
        job = Job(make)
        try:
            self._post(job)
            await job.over()
        except BaseException:
            self._cancel(job)
            raise
        return job.outcome()

    def wait(self, make: Callable[[], Awaitable[T]]) -> T:
        """Have `make()` awaited on the relay's loop, for a thread without a loop: block until it is over."""
        job = Job(make)
        try:
            self._post(job)
            job.wait()
        except BaseException:
            # Ctrl-C, or whatever else a signal's handler raises.
            self._cancel(job)
            raise
        return job.outcome()

    def _post(self, job: Job[Any]) -> None:
        while True:
            job.loop = loop = self._loop or self._start()
            # Before posting: _live() ends what is still in this set when the loop has closed.
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
        if job.loop is not None:
            with contextlib.suppress(RuntimeError):
                job.loop.call_soon_threadsafe(job.cancel, context=job.loop.context)

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
            # Posted too late to begin.
            for job in list(loop.jobs):
                job.end(_stopped())

    @staticmethod
    async def _leave(loop: RelayLoop) -> None:
        """Let go of those who wait, and close the sessions; what takes too long is cut off."""
        loop.is_leaving = True
        # What was written may still be answered: its caller must not take it for unsent.
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
        End the thread: what was sent has left, connections are closed; bounded by two seconds.

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
        """Let go of a forked child's copies of the relay's descriptors; no transport and no loop is told."""
        atexit.unregister(self.stop)
        if self._loop is not None:
            selector = self._loop.selector
            let_go(key.fd for key in list((selector.get_map() or {}).values()))
            # The child's copy of the selector's own descriptor; the parent's selector stays as it is.
            selector.close()


def let_go(descriptors: Iterable[int]) -> None:
    """
    Replace a forked child's copies of its parent's descriptors by the null device.

    To close the transport would take the descriptor out of the selector that the child shares with its parent,
    and to close the descriptor would free its number for another file, which the transport would then meddle
    with. To keep it would leave the connection open after the parent has closed it.
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
