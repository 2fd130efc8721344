"""Work for callers who have no event loop that lasts: one thread with one event loop for the whole process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import os
import select
import selectors
import socket
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar, TypeVarTuple

from .bus.answers import AnswerSource
from .exceptions import LayerClosed

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# From the call of stop() to the end of the thread, with what is left of the connections cut off before.
_STOP_SECONDS = 2.0
_LEAVE_SECONDS = 1.5


# Does the work without a task: ends the errand, now or when the answer comes, and returns where that comes from.
# None: it cannot be done like that, and nothing was.
AtOnce: TypeAlias = Callable[["Errand[T]"], AnswerSource | None]


class Errand(Generic[T]):
    """
    One piece of work that the relay does, and the ways to wait for it.

    It is begun, cancelled and ended by whoever runs the relay's loop; the rest is for the thread that posted it.
    """

    __slots__ = ("_at_once", "_lock", "_make", "_outcome", "_task", "_tell", "is_over", "loop")

    def __init__(self, make: Callable[[], Awaitable[T]], at_once: AtOnce[T] | None = None) -> None:
        self.loop: RelayLoop | None = None
        self._make = make
        self._at_once = at_once
        self._task: asyncio.Task[None] | None = None
        self._outcome: T | BaseException | None = None
        self._tell: Callable[[], object] | None = None
        self.is_over = False
        # The cheapest way to wait: held until it is over.
        self._lock = threading.Lock()
        self._lock.acquire()

    # On the relay's loop

    def begin(self) -> None:
        loop = self.loop
        if self.is_over or loop is None:
            return
        try:
            # Not while an errand before it has a task that has yet to run: that would be overtaken.
            if self._at_once is None or loop.starting or self._at_once(self) is None:
                self.run(self._make)
        except BaseException as exc:
            # It must not raise: others wait behind it.
            loop.starting.discard(self)
            self.end(exc)

    def run(self, make: Callable[[], Awaitable[T]]) -> None:
        """Have `make()` awaited, and end with what it returns or raises."""
        loop = self.loop
        if loop is None or loop.is_leaving:
            self.end(_stopped())
            return
        if sys.version_info >= (3, 12):
            # Up to the write within this turn of the loop: a turn is a system call.
            self._task = asyncio.Task(self._run(make), loop=loop, eager_start=True)
        else:
            loop.starting.add(self)
            self._task = loop.create_task(self._run(make))
            self._task.add_done_callback(self._task_has_ended)

    def _task_has_ended(self, task: asyncio.Task[None]) -> None:
        """See that a task that was cancelled before it ran has an end too."""
        if self.loop is not None:
            self.loop.starting.discard(self)
        self.end(_stopped())

    async def _run(self, make: Callable[[], Awaitable[T]]) -> None:
        if self.loop is not None:
            self.loop.starting.discard(self)
        # No local name for the error: its traceback would hold this frame, and with it itself.
        try:
            self.end(await make())
        except asyncio.CancelledError:
            self.end(_stopped())
        except GeneratorExit:
            raise
        except BaseException as exc:
            self.end(exc)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:
            self.end(asyncio.CancelledError())

    def end(self, outcome: T | BaseException) -> None:
        """Note what came of it and wake who waits; what comes after the first outcome is ignored."""
        if self.is_over:
            return
        self._outcome = outcome
        self.is_over = True
        if self.loop is not None:
            self.loop.errands.discard(self)
        self._task = None
        self._lock.release()
        # Last: whoever sets it looks at is_over after that.
        tell = self._tell
        if tell is not None:
            tell()

    # On the thread that posted it

    def begin_on_a_visit(self, loop: RelayLoop, seconds: float, bell: int) -> bool:
        """
        Begin it here, with the loop lent to this thread, and wait for its answer; False if it was not begun.

        It is not if it needs a task.
        """
        if self._at_once is None:
            return False
        self.loop = loop
        try:
            loop.errands.add(self)
            source = self._at_once(self)
            if source is None:
                loop.errands.discard(self)
                return False
            if source.read_answer(seconds, bell) and not self.is_over:
                # An exception from outside came while it was told, and was taken for one of who tells it.
                self.end(None)  # type: ignore[arg-type]
        except BaseException as exc:
            self.end(exc)
        return True

    def wait(self, seconds: float = -1) -> bool:
        """Block until it is over, for so many seconds at most; return whether it is. Can be asked once."""
        return self._lock.acquire(timeout=seconds)

    async def over(self) -> None:
        """Return when it is over."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def release() -> None:
            if not future.done():
                future.set_result(None)

        def tell() -> None:
            # The loop may have ended without waiting, and what its own door raises concerns nobody else.
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


class Bell:
    """
    Wakes a loop at half the cost of `call_soon_threadsafe()`, which makes a handle and reads twice.

    Source: eventfd(2) of Linux.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        """From any thread; also when nobody listens any more."""
        os.eventfd_write(self._descriptor, 1)

    def has_rung(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)

    def __del__(self) -> None:
        # Not sooner: whoever is about to ring would write into the next file of this number.
        os.close(self._descriptor)


def _new_bell() -> Bell | None:
    if hasattr(os, "eventfd"):
        # It may be forbidden; what else is wrong shows at the selector.
        with contextlib.suppress(OSError):
            return Bell(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    return None


class LendingSelector(selectors.DefaultSelector):
    """
    The selector of a loop that another thread may run while it sleeps and nobody waits for it.

    It sleeps at a gate then, which is an epoll with nothing but its own descriptor in it: while that is shut,
    nothing that comes wakes it. Source: epoll(7), which says that one can be in another.
    """

    def __init__(self, waited_for: Collection[object]) -> None:
        super().__init__()
        self._waited_for = waited_for
        #: Whoever holds it runs the loop; the loop's own thread does, but when it sleeps. It knows its holder.
        self.turn = threading.RLock()
        #: The loop's own thread has it, or wants it back.
        self.is_awake = True
        self._has_turn = False
        self.gate = select.epoll()
        self.gate.register(self.fileno(), select.EPOLLIN)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._waited_for or (timeout is not None and timeout <= 0):
            return super().select(timeout)
        self.is_awake = False
        if self._has_turn:
            self.turn.release()
        self._has_turn = True
        try:
            self.gate.poll(timeout, 1)
        finally:
            self.is_awake = True
            self.turn.acquire()
        # Only now: what was ready before may have been dealt with.
        return super().select(0)

    def close(self) -> None:
        self.gate.close()
        super().close()


def _new_selector(waited_for: Collection[object], bell: Bell | None) -> selectors.BaseSelector:
    if bell is not None and selectors.DefaultSelector is getattr(selectors, "EpollSelector", None):
        return LendingSelector(waited_for)
    return selectors.DefaultSelector()


class RelayLoop(asyncio.SelectorEventLoop):
    """
    A plain loop, whatever policy the application has set for its own, with a door for errands of other threads.

    A thread may visit it too: while the loop sleeps, it does what the loop would do for its errand, and neither
    has to wake the other.

    Its look-ups of names delay no exit: the threads of an executor are joined at the exit of the interpreter,
    and a name server may be silent for long; these are daemons.
    """

    def __init__(self) -> None:
        #: What somebody waits for.
        self.errands: set[Errand[Any]] = set()
        self._posted: deque[Errand[Any]] = deque()
        self._bell = _new_bell()
        self._main_thread = threading.main_thread().ident
        self._has_scheduled = False
        self.selector = _new_selector(self.errands, self._bell)
        super().__init__(self.selector)
        #: Of the errands, those whose tasks have yet to run; Python 3.11 only.
        self.starting: set[Errand[Any]] = set()
        self.is_leaving = False
        #: One for each: at the exit a successor may run already, and two threads cannot be in one context.
        self.context = contextvars.Context()
        if self._bell is not None:
            self.context.run(self.add_reader, self._bell, self._begin_posted)

    def post(self, errand: Errand[Any]) -> None:
        """
        Have an errand begun, from any thread, after those that were posted before it.

        Raises:
            RuntimeError: the loop is closed.
        """
        if self.is_closed():
            raise RuntimeError("the relay's loop is closed")
        # If it is closed now, the relay looks for `errands` after that.
        self._posted.append(errand)
        if self._bell is not None:
            self._bell.ring()
        else:
            self.call_soon_threadsafe(self._begin_posted, context=self.context)

    def _begin_posted(self) -> None:
        if self._bell is not None:
            # Before looking: what is posted from here on rings again.
            self._bell.has_rung()
        # No more than there are now: the loop has other things to do.
        for _ in range(len(self._posted)):
            self._posted.popleft().begin()

    def visit(self, errand: Errand[Any], seconds: float) -> bool:
        """
        Do an errand in the calling thread, if the loop sleeps and has nothing else to do; False if not.

        The thread has the loop to itself for so many seconds at most, or until another errand is posted. What is
        not over then is the loop's.
        """
        bell, selector = self._bell, self.selector
        if (
            self.errands
            or bell is None
            or not isinstance(selector, LendingSelector)
            # Handlers of signals run in the main thread: Ctrl-C would leave half of what is done here.
            or threading.get_ident() == self._main_thread
            # It asks for the loop's own thread.
            or self.get_debug()
        ):
            return False
        turn = selector.turn
        # An exception that is raised from outside, as by a worker's time limit, comes after a call: nothing is
        # called between `try` and what is to be undone, and nothing in `finally` before it is.
        try:
            if not turn.acquire(blocking=False):
                return False
            # Those who have waited since then go first.
            if self.errands or selector.is_awake or self.is_leaving:
                return False
            descriptor, own, open_or_shut = bell.fileno(), selector.fileno(), selector.gate.modify
            try:
                open_or_shut(own, 0)
                self._has_scheduled = False
                # Nothing here belongs to the visitor's context.
                return self.context.run(errand.begin_on_a_visit, self, seconds, descriptor)
            finally:
                try:
                    if self._has_scheduled:
                        os.eventfd_write(descriptor, 1)
                finally:
                    open_or_shut(own, select.EPOLLIN)
        finally:
            try:
                turn.release()
            except RuntimeError:
                pass  # it was not to be had

    # What a visitor schedules, a loop that sleeps does not know of.

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        self._has_scheduled = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        self._has_scheduled = True
        return super().call_at(when, callback, *args, context=context)

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

    async def run(
        self,
        make: Callable[[], Awaitable[T]],
        at_once: AtOnce[T] | None = None,
        *,
        stands_still: float = 0.0,
        visits: bool = False,
    ) -> T:
        """
        Have `make()` awaited on the relay's loop; return or raise what it does.

        `at_once` is tried first: if the loop is to be visited and can be, by this thread.
        The caller's loop does nothing else meanwhile, for `stands_still` seconds at most: to go to sleep and be
        woken costs it more than most answers take. Cancelling cancels the work, as soon as that can be; what was
        written is written.
        """
        errand = Errand(make, at_once)
        until = monotonic() + stands_still
        try:
            loop = self._loop
            if at_once is None or loop is None or not visits or not loop.visit(errand, stands_still):
                self._post(errand)
            if not errand.is_over and not errand.wait(max(0.0, until - monotonic())):
                await errand.over()
        except BaseException:
            self._cancel(errand)
            raise
        return errand.outcome()

    def wait(self, make: Callable[[], Awaitable[T]], at_once: AtOnce[T] | None = None) -> T:
        """Do the same for a thread without a loop: block until it is over."""
        errand = Errand(make, at_once)
        try:
            self._post(errand)
            errand.wait()
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
                loop.post(errand)
                return
            except RuntimeError:
                # It was closed in between; what runs next is another one.
                loop.errands.discard(errand)
                with self._lock:
                    if self._loop is loop:
                        self._loop = self._thread = None

    def _cancel(self, errand: Errand[Any]) -> None:
        # By the other door: an errand that has yet to begin never does.
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
                errand.end(_stopped())

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
