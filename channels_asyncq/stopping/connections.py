"""The open connections of each event loop, and how they are ended."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from enum import Enum
from typing import Protocol
from weakref import WeakKeyDictionary

from .. import threads
from ..events import DRAIN, record

# A generator of our own: the state of the global one belongs to the application.
_jitter = random.Random()
#: The part of the time that is for connections that came after the drain had begun: the last slice.
LAST_SLICE = 0.05
#: Seconds from one slice to the next, at least. The connections of one slice are told at once.
SLICE = 0.05
#: How many times larger a slice may be that comes late: after a standstill the others must not end in one burst.
CATCH_UP = 4
#: Seconds in which the connections that were told must end, in steps of SLICE: on a late event loop they get as
#: many turns. A client that does not read cannot be sent its last chunk: that one is the server's affair.
LONGEST = 1.0
#: Seconds between the end of the last connection and the server's handler: the last chunk is written meanwhile.
LAST_CHUNK = 0.05


class Stoppable(Protocol):
    """
    A connection that is open.

    Implemented by `http.wakeups.Wakeups` for an event stream, and by `stopping.sockets.OpenSocket`.
    """

    def tell(self) -> None: ...


class Phase(Enum):
    """How far the end of an event loop's connections is; `OpenConnections` has the table."""

    SERVING = "serving"
    DRAINING = "draining"
    LAST = "last"
    ENDED = "ended"


class OpenConnections:
    """
    The open event streams of one event loop, and its WebSockets where the application is `drained()`.

    phase    | event: next phase
    ---------|------------------------------------------------------------------------------------------
    SERVING  | `begin()`: DRAINING, or ENDED where nothing is open
    DRAINING | those of before were told to end, one after the other: LAST
    LAST     | those that came meanwhile were told, and all are gone, or LONGEST has passed: ENDED
    ENDED    | none. As in LAST, a connection that comes is told to end at once

    In DRAINING and LAST the phase is ENDED too as soon as nothing is open.
    """

    def __init__(self) -> None:
        self.phase = Phase.SERVING
        self._open: set[Stoppable] = set()
        self._untold: set[Stoppable] = set()
        self._none_left = asyncio.Event()
        self._drain: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, connection: Stoppable) -> None:
        """Add a connection."""
        self._open.add(connection)
        self._none_left.clear()
        if self.phase is Phase.LAST or self.phase is Phase.ENDED:
            connection.tell()
        else:
            self._untold.add(connection)

    def leave(self, connection: Stoppable) -> None:
        """Remove a connection that has ended. Removing it twice is fine."""
        self._open.discard(connection)
        self._untold.discard(connection)
        if not self._open:
            self._none_left.set()

    def begin(self, seconds: float) -> asyncio.Task[None]:
        """
        Begin to end the connections, evenly over some seconds; return the task that does it.

        On its own event loop. Once it has begun, another call changes nothing.
        """
        if self._drain is None:
            if self.phase is Phase.SERVING:
                self.phase = Phase.DRAINING if self._open else Phase.ENDED
            name = "channels_asyncq: drain"
            self._drain = asyncio.get_running_loop().create_task(self._end(seconds), name=name)
        return self._drain

    async def _end(self, seconds: float) -> None:
        if self.phase is Phase.ENDED:
            return
        # Without seconds it is no drain, but Ctrl-C, or a site that uses none.
        level = logging.INFO if seconds else logging.DEBUG
        text = "%(open)d open connections end within %(seconds)g s"
        record(DRAIN, level, "drain.began", text, open=len(self._open), seconds=seconds)
        last = seconds * LAST_SLICE
        await self._tell(self._shuffled(), seconds - last)
        self.phase = Phase.LAST
        await self._tell(self._shuffled(), last if self._untold else 0.0)
        for _ in range(round(LONGEST / SLICE)):
            if await self._all_gone(SLICE):
                break
        record(DRAIN, level, "drain.ended", "%(open)d connections are still open", open=len(self._open))
        await asyncio.sleep(LAST_CHUNK)
        self.phase = Phase.ENDED

    def _shuffled(self) -> list[Stoppable]:
        # The oldest connections are often those of one crowd: at the begin of a lecture, or after a restart.
        connections = list(self._untold)
        _jitter.shuffle(connections)
        return connections

    async def _tell(self, connections: list[Stoppable], seconds: float) -> None:
        """Tell these connections to end, evenly over the seconds; return after them, or when all are gone."""
        now = asyncio.get_running_loop().time
        until = now() + seconds
        total = len(connections)
        while connections:
            left = until - now()
            number = len(connections)
            if left > 0:
                per_second = total / seconds
                most = CATCH_UP * math.ceil(per_second * SLICE)
                number = min(max(number - int(per_second * left), 1), most)
            some, connections = connections[:number], connections[number:]
            for connection in some:
                if connection in self._untold:
                    self._untold.discard(connection)
                    connection.tell()
            # Sleeps are too long on a busy machine. So the next one ends when the next connection is due.
            due = until - seconds * len(connections) / total
            if seconds and await self._all_gone(max(due - now(), SLICE)):
                return
        await self._all_gone(until - now())

    async def _all_gone(self, seconds: float) -> bool:
        """Wait until nothing is open, for some seconds at most; return whether nothing is."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._none_left.wait(), seconds)
            except TimeoutError:
                pass
        return not self._open


_lock = threads.lock()
_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, OpenConnections] = WeakKeyDictionary()


def of_running_loop() -> OpenConnections:
    """Return the open connections of the running event loop."""
    loop = asyncio.get_running_loop()
    connections = _by_loop.get(loop)
    if connections is None:
        connections = OpenConnections()
        with _lock:
            _by_loop[loop] = connections
    return connections


def is_ready() -> bool:
    """
    Tell whether this process is to get new connections: False once a drain has begun, on any event loop.

    It costs nothing and asks no server. For the view by which a load balancer finds out.
    """
    with _lock:
        loops = list(_by_loop.items())
    return all(loop.is_closed() or connections.phase is Phase.SERVING for loop, connections in loops)
