"""Where the messages of a consumer come from: what the server brings, and what the channel layer brings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

Message = dict[str, Any]


class Source(Protocol):
    """Where messages come from. Of our own layer, the channel itself (`layer.OpenChannel`)."""

    def take(self) -> Message | None: ...
    @property
    def empty(self) -> Callable[[], bool]: ...
    @property
    def wake(self) -> Callable[[asyncio.Future[None]], None]: ...
    @property
    def stop_waking(self) -> Callable[[asyncio.Future[None]], None]: ...


class Asked:
    """
    A `receive()` of a server or of a layer as a source.

    It is called for one message at a time, and not before somebody looks for the next: whoever is behind it sees
    how fast we are, and can slow down its end.
    """

    __slots__ = ("_receive", "_task", "waiter")

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        self._receive = receive
        self._task: asyncio.Future[Any] | None = None
        self.waiter: asyncio.Future[None] | None = None

    def ask(self) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(self._receive())
            self._task.add_done_callback(self._on_answer)

    def _on_answer(self, task: asyncio.Future[Any]) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def empty(self) -> bool:
        return self._task is None or not self._task.done()

    def held(self) -> Message | None:
        """
        Return the message that has come, without taking it.

        Raises whatever `receive()` raised.
        """
        task = self._task
        if task is None:
            self.ask()
            return None
        return task.result() if task.done() else None

    def take(self) -> Message | None:
        """Return the message that has come. The next one is not asked for before somebody looks again."""
        message = self.held()
        if message is not None:
            self._task = None
        return message

    def wake(self, waiter: asyncio.Future[None]) -> None:
        self.waiter = waiter

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        self.waiter = None

    async def stop(self) -> None:
        """Give up asking. Whatever that raises at the other end comes too late to matter."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, so that nobody complains


class Nothing:
    """The source of a consumer without a channel layer, or of one that has lost its channel or its client."""

    def empty(self) -> bool:
        return True

    def take(self) -> Message | None:
        return None

    def wake(self, waiter: asyncio.Future[None]) -> None:
        pass

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        pass


NOTHING = Nothing()
