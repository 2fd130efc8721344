"""SIGTERM and Ctrl-C: the open connections end first, then the server gets the signal."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from ..clock import monotonic
from . import connections
from .connections import OpenConnections, Phase

SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: A SIGTERM that follows the first one within these seconds is the same order: process managers tell all
#: processes of a service, and then the server's parent tells its workers.
SAME_ORDER = 1.0

ServerHandler = Callable[[int, FrameType | None], Any]


class StopSignals:
    """
    Stands before the signal handlers of the server.

    A handler that was set with `signal.signal()` is called when the connections have ended. One that was set with
    `loop.add_signal_handler()` is called by the event loop all the same: such a server begins to wait, and the
    connections end meanwhile.

    state   | `_held`        | a signal
    --------|----------------|------------------------------------------------------------------------
    waiting | None           | while connections are open: holding. Else straight to the server
    holding | number, time   | straight to the server, but for a SIGTERM that repeats the first one.
            |                | When the connections have ended, the first one goes to the server
    """

    def __init__(self) -> None:
        # The last one is called. An earlier one is called only if the last one calls what it has replaced: us.
        self._replaced: dict[int, list[ServerHandler | signal.Handlers]] = {}
        self._held: tuple[int, float] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0  # of the process that runs the loop: a forked child has a copy, which stands still
        #: The connections of the event loop that runs on the main thread.
        self.connections: OpenConnections | None = None
        #: Seconds in which the connections end at SIGTERM; None without `drained()`: then they end at once.
        self.seconds: float | None = None

    def watch(self, loop: asyncio.AbstractEventLoop, open_connections: OpenConnections) -> None:
        """Stand before the handlers that are set now, for this event loop of the main thread."""
        if loop is not self._loop:
            self._loop = loop
            self._pid = os.getpid()
            self.connections = open_connections
            self._held = None
        self.hook()

    def hook(self) -> None:
        """Stand before the handlers that are set now. On the main thread; once more changes nothing."""
        for number in SIGNALS:
            current = signal.getsignal(number)
            if current == self._on_signal or not self._is_worth_it(number, current):
                continue
            self._replaced.setdefault(number, []).append(current)  # type: ignore[arg-type]
            signal.signal(number, self._on_signal)
            signal.siginterrupt(number, False)  # as add_signal_handler() has it

    def _is_worth_it(self, number: int, handler: object) -> bool:
        if handler is signal.SIG_DFL:
            # uvicorn raises SIGTERM again at its end, for the handler that it found at its begin. It then finds
            # ours, and the process has the exit status 0.
            return number == signal.SIGTERM and self.seconds is not None
        # Without a handler the process ends at once: nothing waits for connections.
        return callable(handler) and handler is not signal.default_int_handler

    def server_handles(self, number: int) -> bool:
        """Tell whether a server has set a handler, and it has been replaced."""
        return any(callable(handler) for handler in self._replaced.get(number, ()))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        loop, held = self._loop, self._held
        if loop is None or os.getpid() != self._pid or not self._must_wait(number):
            self.pass_on(number, frame)
        elif held is None:
            self._held = number, monotonic()
            try:
                loop.call_soon_threadsafe(self._begin, number)
            except RuntimeError:  # the loop is closed
                self.pass_on(number, frame)
        elif number != signal.SIGTERM or held[0] != number or monotonic() - held[1] >= SAME_ORDER:
            self.pass_on(number, frame)

    def _must_wait(self, number: int) -> bool:
        open_connections = self.connections
        if open_connections is None or open_connections.phase is Phase.ENDED:
            return False
        if open_connections.phase is Phase.SERVING and not len(open_connections):
            if number == signal.SIGTERM:
                open_connections.phase = Phase.ENDED
            return False
        # Ctrl-C does not wait for a drain that has begun.
        return number == signal.SIGTERM or self._held is not None or open_connections.phase is Phase.SERVING

    def _begin(self, number: int) -> None:
        assert self.connections is not None
        seconds = self.seconds if number == signal.SIGTERM else None
        self.connections.begin(seconds or 0.0).add_done_callback(partial(self._on_end, number))

    def _on_end(self, number: int, drain: asyncio.Task[None]) -> None:
        if not drain.cancelled():
            self.pass_on(number, None)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Call the server's handler. Without one, the process ends."""
        handlers = self._replaced.get(number)
        if not handlers:
            return
        handler = handlers.pop()
        try:
            if callable(handler):
                handler(number, frame)
            elif handler is signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        finally:
            handlers.append(handler)


_signals = StopSignals()


def enter(connection: connections.Stoppable) -> OpenConnections:
    """
    Note a connection of the running event loop: it is told to end when the process gets SIGTERM or SIGINT.

    Signals reach the main thread alone. Where the server runs in another thread, its owner closes the layer, or
    has the process drained by the command.
    """
    found = watched()
    found.enter(connection)
    return found


def watched() -> OpenConnections:
    """Return the connections of the running event loop. On the main thread, signals are about them from then."""
    found = connections.of_running_loop()
    if threading.current_thread() is threading.main_thread():
        _signals.watch(asyncio.get_running_loop(), found)
    return found


def drain_for(seconds: float) -> None:
    """Have SIGTERM end connections over some seconds from now on."""
    _signals.seconds = seconds
    if threading.current_thread() is threading.main_thread():
        _signals.hook()


def why_unheard() -> str:
    """Return why SIGTERM does not reach the running event loop, "" if it does."""
    if threading.current_thread() is not threading.main_thread():
        return "the server runs in a thread, and signals reach the main thread only"
    if not _signals.server_handles(signal.SIGTERM):
        return "the server has set no handler for it"
    return ""
