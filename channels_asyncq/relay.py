"""Work for callers who have no event loop that lasts: one thread with one event loop for the whole process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from .exceptions import LayerClosed

T = TypeVar("T")

# From the call of stop() to the end of the thread, with what is left of the connections cut off before.
_STOP_SECONDS = 2.0
_LEAVE_SECONDS = 1.5


class Errand(Generic[T]):
    """
    One coroutine that the relay runs, and the way to tell whoever waits for it.

    Everything here runs on the relay's loop. `wake()` is called exactly once; after it, `outcome()` may be
    asked from any thread.
    """

    __slots__ = ("_make", "_outcome", "_task", "_wake", "loop")

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]], wake: Callable[[], object]) -> None:
        self.loop: RelayLoop | None = None
        self._make = make
        self._wake: Callable[[], object] | None = wake
        self._task: asyncio.Task[T] | None = None
        self._outcome: T | BaseException | None = None

    def begin(self) -> None:
        loop = self.loop
        if self._wake is None or loop is None:
            return
        if loop.is_leaving:
            self.fail(_stopped())
            return
        # No local name for the task: an error's traceback would hold this frame, and with it itself.
        if sys.version_info >= (3, 12):
            # Up to the write within this turn of the loop: a turn is a system call.
            self._task = asyncio.Task(self._make(), loop=loop, eager_start=True)
        else:
            self._task = loop.create_task(self._make())
        if self._task.done():
            self._finished(self._task)
        else:
            self._task.add_done_callback(self._finished)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:
            self.fail(asyncio.CancelledError())

    def _finished(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.fail(_stopped())
        elif (error := task.exception()) is not None:
            self.fail(error)
        else:
            self._done(task.result())

    def fail(self, error: BaseException) -> None:
        self._done(error)

    def _done(self, outcome: T | BaseException) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            if self.loop is not None:
                self.loop.errands.discard(self)
            self._task = None
            self._outcome = outcome
            wake()

    def outcome(self) -> T:
        """Return what the coroutine returned, or raise what it raised."""
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
    A plain loop, whatever policy the application has set for its own, whose look-ups of names delay no exit.

    The threads of an executor are joined at the exit of the interpreter, and a name server may be silent for
    long; these are daemons.
    """

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        super().__init__(self.selector)
        #: What somebody waits for.
        self.errands: set[Errand[Any]] = set()
        self.is_leaving = False
        #: One for each: at the exit a successor may run already, and two threads cannot be in one context.
        self.context = contextvars.Context()

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
                found = socket.getaddrinfo(host, port, **hints)
            except Exception as exc:
                error = exc
            with contextlib.suppress(RuntimeError):
                self.call_soon_threadsafe(set_answer, found, error)

        threading.Thread(target=look_up, name="channels_asyncq look-up", daemon=True).start()
        return await answer


class Relay:
    """
    A daemon thread that runs coroutines for callers whose own loop lives only for a moment, or who have none.

    It is started by the first errand and stopped at the exit of the interpreter. It holds no more than its
    callers do: each waits for its errand.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: RelayLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, while the relay runs."""
        return self._loop

    # For callers

    async def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """
        Run `make()` on the relay's loop; return or raise what it does.

        Cancelling cancels it there, as soon as it can be; what was written is written.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            # The caller's loop may have ended without waiting.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(release)

        def release() -> None:
            if not future.done():
                future.set_result(None)

        errand = Errand(make, wake)
        self._post(errand)
        try:
            await future
        except asyncio.CancelledError:
            self._cancel(errand)
            raise
        return errand.outcome()

    def wait(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `make()` on the relay's loop, block until it is done; return or raise what it does."""
        # A lock is the cheapest way to wait: the relay's thread releases what this one has acquired.
        lock = threading.Lock()
        lock.acquire()
        errand = Errand(make, lock.release)
        self._post(errand)
        try:
            lock.acquire()
        except BaseException:
            # Ctrl-C, or whatever else a signal's handler raises.
            self._cancel(errand)
            raise
        return errand.outcome()

    def _post(self, errand: Errand[Any]) -> None:
        while True:
            errand.loop = loop = self._loop or self._start()
            # Before posting: whatever happens to the loop from here on, _live() looks at these last.
            loop.errands.add(errand)
            try:
                loop.call_soon_threadsafe(errand.begin, context=loop.context)
                return
            except RuntimeError:
                # It was closed in between; what runs next is another one.
                loop.errands.discard(errand)
                with self._lock:
                    if self._loop is loop:
                        self._loop = self._thread = None

    def _cancel(self, errand: Errand[Any]) -> None:
        if errand.loop is not None:
            with contextlib.suppress(RuntimeError):
                errand.loop.call_soon_threadsafe(errand.cancel, context=errand.loop.context)

    # Its life

    def _start(self) -> RelayLoop:
        with self._lock:
            if self._loop is None:
                loop = RelayLoop()
                # A daemon, because other threads are joined before atexit handlers run.
                thread = threading.Thread(
                    target=self._live, args=(loop,), name="channels_asyncq relay", daemon=True
                )
                try:
                    thread.start()
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
            for errand in list(loop.errands):
                errand.fail(_stopped())

    @staticmethod
    async def _leave(loop: RelayLoop) -> None:
        """Let go of those who wait, and close the sessions; what takes too long is cut off."""
        loop.is_leaving = True
        this = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not this]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LEAVE_SECONDS / 3)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS / 2):
                await loop.shutdown_asyncgens()
        # A closed transport closes its socket on the next turn.
        await asyncio.sleep(0)

    def stop(self) -> None:
        """End the thread: what was sent has left, connections are closed; bounded by two seconds."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        atexit.unregister(self.stop)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(loop.stop)
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
