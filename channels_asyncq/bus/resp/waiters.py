"""The tasks that wait until a connection comes up."""

from __future__ import annotations

import asyncio

from django.core.exceptions import ImproperlyConfigured

from ...exceptions import ChannelLayerError
from .replies import copy_error

__all__ = ["Waiters", "outcome"]


async def outcome(waiter: asyncio.Future[None]) -> None:
    """
    Return when a waiter is done. Cancelling is safe.

    Raises:
        ChannelLayerError, ImproperlyConfigured: a copy of the error that it was failed with, with others.
    """
    try:
        await waiter
    except (ChannelLayerError, ImproperlyConfigured) as exc:
        raise copy_error(exc) from exc


class Waiters:
    """Tasks that wait for a connection. They go on together, or fail together."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._futures: set[asyncio.Future[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._futures)

    async def wait(self) -> None:
        """
        Return at the next `release()`. Cancelling is safe.

        Raises:
            ChannelLayerError, ImproperlyConfigured: the error of `fail()`, which came before.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._futures.add(future)
        try:
            await outcome(future)
        finally:
            self._futures.discard(future)

    def release(self) -> None:
        """Let all go on."""
        for future in self._take():
            future.set_result(None)

    def fail(self, error: Exception) -> None:
        """Let all fail."""
        for future in self._take():
            future.set_exception(error)

    def _take(self) -> list[asyncio.Future[None]]:
        """Return the futures that are not cancelled, and keep none."""
        futures, self._futures = self._futures, set()
        return [future for future in futures if not future.done()]
