"""
Ends the open streams of a process that is told to stop.

Servers wait for open responses, some without a limit, and tell an application nothing before that.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from enum import Enum
from types import FrameType
from typing import Any, Protocol

SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds for which the streams may hold up the server's own handler. The last chunk of a client that does not
#: read cannot be written: how long to wait for that one is the server's affair.
LONGEST = 1.0
#: Seconds between the end of the last stream and the server's handler: the last chunk is written meanwhile.
LAST_CHUNK = 0.05


class Stoppable(Protocol):
    """A stream that is open. Implemented by `http.wakeups.Wakeups`."""

    def tell(self) -> None: ...


class Phase(Enum):
    """How far the end of an event loop's streams is; `OpenStreams` has the table."""

    SERVING = "serving"
    ENDING = "ending"
    ENDED = "ended"


class OpenStreams:
    """
    The open streams of one event loop.

    phase   | event: next phase
    --------|-------------------------------------------------------------------------------
    SERVING | a signal, while streams are open: ENDING. They are told to end
    ENDING  | the last one is gone, or LONGEST has passed: ENDED. The server gets its signal
    ENDED   | none. As in ENDING, a stream that begins is told to end at once
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.phase = Phase.SERVING
        self._open: set[Stoppable] = set()
        self._none_left = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, stream: Stoppable) -> None:
        """Add a stream."""
        self._open.add(stream)
        self._none_left.clear()
        if self.phase is not Phase.SERVING:
            stream.tell()

    def leave(self, stream: Stoppable) -> None:
        """Remove a stream that has ended."""
        self._open.discard(stream)
        if not self._open:
            self._none_left.set()

    def end(self, number: int) -> None:
        """Tell all streams to end; then give the signal with this number to the server."""
        if self._ending is None:
            self.phase = Phase.ENDING
            self._ending = self.loop.create_task(self._end(number), name="channels_asyncq: streams end")

    async def _end(self, number: int) -> None:
        for stream in list(self._open):
            stream.tell()
        try:
            await asyncio.wait_for(self._none_left.wait(), LONGEST)
        except TimeoutError:
            pass
        await asyncio.sleep(LAST_CHUNK)
        self.phase = Phase.ENDED
        _signals.pass_on(number, None)


class StopSignals:
    """
    Stands before the signal handlers of the server.

    A handler that was set with `signal.signal()` is called when the streams have ended. One that was set with
    `loop.add_signal_handler()` is called by the event loop all the same: such a server begins to wait, and the
    streams end meanwhile. A second signal goes straight to the server.
    """

    def __init__(self) -> None:
        self._previous: dict[int, Callable[[int, FrameType | None], Any]] = {}
        #: The streams of the event loop that runs on the main thread.
        self.streams: OpenStreams | None = None

    def hook(self) -> None:
        """Stand before the handlers that are set now. On the main thread; once more changes nothing."""
        for number in SIGNALS:
            current = signal.getsignal(number)
            if current == self._on_signal or not callable(current) or current is signal.default_int_handler:
                continue  # without a handler the process ends at once: nothing waits for streams
            self._previous[number] = current
            signal.signal(number, self._on_signal)
            signal.siginterrupt(number, False)  # as add_signal_handler() has it

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        streams = self.streams
        if streams is None or streams.phase is not Phase.SERVING or not len(streams):
            self.pass_on(number, frame)
            return
        try:
            streams.loop.call_soon_threadsafe(streams.end, number)
        except RuntimeError:  # the loop is closed
            self.pass_on(number, frame)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Call the server's handler."""
        self._previous[number](number, frame)


_signals = StopSignals()
# Without those of loops on which no stream is open, and which were not told to stop.
_by_loop: dict[asyncio.AbstractEventLoop, OpenStreams] = {}


def enter(stream: Stoppable) -> None:
    """
    Note a stream of the running event loop: it is told to end when the process gets SIGTERM or SIGINT.

    Signals reach the main thread alone. Where the server runs in another thread, its owner closes the layer,
    which ends the streams too.
    """
    loop = asyncio.get_running_loop()
    streams = _by_loop.get(loop)
    if streams is None:
        streams = _by_loop[loop] = OpenStreams(loop)
    if threading.current_thread() is threading.main_thread():
        _signals.streams = streams
        _signals.hook()
    streams.enter(stream)


def leave(stream: Stoppable) -> None:
    """Forget a stream of the running event loop."""
    loop = asyncio.get_running_loop()
    streams = _by_loop.get(loop)
    if streams is not None:
        streams.leave(stream)
        if not len(streams) and streams.phase is Phase.SERVING:
            del _by_loop[loop]
