"""The tasks that wait until a connection takes another command."""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context
from itertools import islice
from typing import Protocol

__all__ = ["CapacityQueue"]


class Bounded(Protocol):
    """Commands that are bounded in number and bytes. Implemented by `bus.resp.pipeline.Pipeline`."""

    @property
    def is_closed(self) -> bool:
        """Whether no command is accepted any more."""

    def free_calls(self) -> int:
        """Return how many more calls are accepted now."""

    def wake(self) -> None:
        """Wake the tasks that may call now."""


class _Place:
    """A place in the queue. A task keeps it when it is woken and may not call yet."""

    __slots__ = ("woken",)

    def __init__(self) -> None:
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class CapacityQueue:
    """Tasks that wait until another command may be called, first come, first served."""

    def __init__(self, commands: Bounded, context: Context) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._commands = commands
        self._places: deque[_Place] = deque()
        self._is_wake_scheduled = False

    def __bool__(self) -> bool:
        return bool(self._places)

    async def wait(self) -> None:
        """
        Wait until the task is the first in the queue and may call, or until no command is accepted any more.

        Cancelling gives the place to the next in the queue.
        """
        place = _Place()
        self._places.append(place)
        try:
            await place.woken
            # Tasks that were woken before this one may have called much. Then all of them keep their places.
            while not self._may_leave(place):
                place.woken = self._loop.create_future()
                await place.woken
        finally:
            self._leave(place)

    def _may_leave(self, place: _Place) -> bool:
        commands = self._commands
        return commands.is_closed or (self._places[0] is place and commands.free_calls() > 0)

    def _leave(self, place: _Place) -> None:
        if self._places[0] is place:
            self._places.popleft()
        else:
            self._places.remove(place)
        # The task may call or not: wake the next one after it has run, or that would wait for ever.
        if self._places and not self._is_wake_scheduled:
            self._is_wake_scheduled = True
            self._loop.call_soon(self._wake_next, context=self._context)

    def _wake_next(self) -> None:
        self._is_wake_scheduled = False
        self._commands.wake()

    def wake(self, calls: int) -> None:
        """Wake the first `calls` tasks. One that was woken and has not run yet counts: it may still call."""
        for place in islice(self._places, calls):
            if not place.woken.done():
                place.woken.set_result(None)

    def wake_all(self) -> None:
        """Wake every task, because no command is accepted any more."""
        self.wake(len(self._places))
