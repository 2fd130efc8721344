"""The sources of a consumer's messages: its client, by way of the server, and its channel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

Message = dict[str, Any]
#: The type of an event that no client sends: it has broken a limit, and is to be disconnected.
OVER_LIMIT = "asyncq.over_limit"


class Source(Protocol):
    """
    Gives messages without waiting, and wakes a waiter when one comes.

    Implemented by `session.open_channel.OpenChannel` for our own layer, by `consumers.resuming.FollowedGroups`
    for consumers that come back, by `consumers.sources.ReceiveSource` for other layers, and by
    `consumers.sources.Nothing` for no layer.
    """

    def take(self) -> Message | None: ...
    def empty(self) -> bool: ...
    def wake(self, waiter: asyncio.Future[None]) -> None: ...
    def stop_waking(self, waiter: asyncio.Future[None]) -> None: ...


class ReceiveSource:
    """
    A `receive()` of a server or of another layer as a source.

    It is called for one message at a time, and only when the consumer looks for the next one: so the server sees
    how fast the consumer is, and can slow down the client.

    state    | `_task`          | what ends the state
    ---------|------------------|------------------------------------------------------------
    idle     | None             | `ask()`, or `held()` which asks: asking
    asking   | is not done      | `receive()` returns or raises: holding
    holding  | has a result     | `take()`: idle. `stop()` ends every state
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
        """Return the message that has come. The next one is not asked for before the next look."""
        message = self.held()
        if message is not None:
            self._task = None
        return message

    def wake(self, waiter: asyncio.Future[None]) -> None:
        self.waiter = waiter

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        self.waiter = None

    def lift(self) -> None:
        """Do not hold back the next event any more: it may be the client's disconnect. Here none is held back."""

    async def stop(self) -> None:
        """Cancel the pending `receive()`. An error of it comes too late to matter."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it


class Nothing:
    """The source of a consumer that has no channel layer, or has lost its channel or its client."""

    def empty(self) -> bool:
        return True

    def take(self) -> Message | None:
        return None

    def wake(self, waiter: asyncio.Future[None]) -> None:
        pass

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        pass


NOTHING = Nothing()
