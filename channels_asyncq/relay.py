"""Sends for loops that have no session: one thread with one event loop for the whole process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_STOP_SECONDS = 2.0


class Relay:
    """
    A daemon thread that runs coroutines for callers whose own loop lives only for a moment.

    It is started by the first `run()` and stopped at the exit of the interpreter.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the relay's loop. Cancelling the future cancels it there."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())
        except BaseException:
            coroutine.close()
            raise

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                # Plain on purpose: whatever loop policy the application has set is for its own loops.
                self._loop = asyncio.SelectorEventLoop()
                # A daemon, because other threads are joined before atexit handlers run.
                self._thread = threading.Thread(
                    target=self._live, args=(self._loop,), name="channels_asyncq relay", daemon=True
                )
                self._thread.start()
                atexit.register(self.stop)
            return self._loop

    @staticmethod
    def _live(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            try:
                tasks = asyncio.all_tasks(loop)
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                asyncio.set_event_loop(None)
                loop.close()

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


_relay = Relay()


def relay() -> Relay:
    """Return the relay of this process."""
    return _relay


def after_fork_in_child() -> Relay:
    """Start with a fresh relay; return the inherited one, which the child must keep and never touch."""
    global _relay
    inherited, _relay = _relay, Relay()
    atexit.unregister(inherited.stop)
    return inherited
