"""The methods of `asyncio.Queue` in terms of those of a channel's buffer."""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from ..exceptions import ChannelClosed
from ..messages.envelopes import Envelope


class QueueInterface(asyncio.Queue[Envelope]):
    """
    What an `asyncio.Queue` offers beside `qsize()`, `full()` and `empty()`. It has no state of its own.

    Every method of Queue is overridden here or below, so that none of them needs what `Queue.__init__()` makes.
    Implemented by `local.buffers.ChannelBuffer`.
    """

    channel: str
    capacity: int
    closed: type[ChannelClosed] | None

    @abstractmethod
    def offer(self, envelope: Envelope) -> int: ...

    @abstractmethod
    def take(self) -> Envelope | None: ...

    @abstractmethod
    async def put_when_free(self, envelope: Envelope, expiry: float | None = None) -> None: ...

    @abstractmethod
    def wake(self, waiter: asyncio.Future[None]) -> None: ...

    @abstractmethod
    def stop_waking(self, waiter: asyncio.Future[None]) -> None: ...

    @abstractmethod
    def clear(self) -> int: ...

    @abstractmethod
    def close(self) -> None: ...

    def __repr__(self) -> str:
        state = "open" if self.closed is None else "closed"
        return (
            f"<{type(self).__name__} of {self.channel!r}, {state}, {self.qsize()} of maxsize={self.capacity}>"
        )

    __str__ = __repr__

    @property
    def maxsize(self) -> int:
        return self.capacity

    async def get(self) -> Envelope:
        """
        Remove and return the oldest unexpired envelope, waiting for one if there is none.

        Cancelling is safe: the buffer is left as it was.

        Raises:
            ChannelClosed: the channel is closed and empty, or closed while waiting.
        """
        return self.take() or await self.get_next()

    async def get_next(self) -> Envelope:
        """Like `get()`, for a caller to whom `take()` has just returned None."""
        while True:
            if self.closed is not None:
                raise self.closed(self.channel)
            receiver: asyncio.Future[None] = asyncio.Future()
            self.wake(receiver)
            try:
                await receiver
            except BaseException:
                self.stop_waking(receiver)
                raise
            envelope = self.take()
            if envelope is not None:
                return envelope

    async def put(self, item: Envelope) -> None:
        """Like `put_when_free()` for an envelope whose `expires_at` is already set."""
        await self.put_when_free(item)

    def put_nowait(self, item: Envelope) -> None:
        if self.closed is not None:
            raise self.closed(self.channel)
        if self.offer(item) < 0:
            raise asyncio.QueueFull

    def get_nowait(self) -> Envelope:
        envelope = self.take()
        if envelope is None:
            raise asyncio.QueueEmpty
        return envelope

    def shutdown(self, immediate: bool = False) -> None:
        """Close the channel; with `immediate` drop what waits. As `asyncio.Queue.shutdown()` of Python 3.13."""
        if immediate:
            self.clear()
        self.close()

    def task_done(self) -> None:
        raise ValueError("a channel counts no tasks: there is nothing to be done with task_done()")

    async def join(self) -> None:
        """Return at once: a channel counts no tasks."""
