"""Receivers that wait for a message in any channel of the session."""

from __future__ import annotations

import asyncio


class Watchers:
    """The futures that are done after the next delivery, or when a channel or the hub is closed."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []

    def watch(self) -> asyncio.Future[None]:
        """Return one more such future. Cancelling it is safe."""
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(watcher)
        watcher.add_done_callback(self._remove)  # one that was cancelled is still in the list
        return watcher

    def _remove(self, watcher: asyncio.Future[None]) -> None:
        if watcher in self.waiting:
            self.waiting.remove(watcher)

    def wake(self) -> None:
        """Have all of them done now."""
        watchers, self.waiting = self.waiting, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)
