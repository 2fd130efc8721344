"""Owners and message handlers for connections that a test makes itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from channels_asyncq.bus.resp.protocol import WireProtocol


class Owner:
    """Keeps the errors with which its connections ended; `ended` is set by the first."""

    def __init__(self) -> None:
        self.lost: list[Exception | None] = []
        self.ended = asyncio.Event()

    def on_lost(self, wire: WireProtocol, error: Exception | None) -> None:
        assert not wire.pending, "on_lost comes after the futures"
        self.lost.append(error)
        self.ended.set()


class Handler:
    """Offers each message to a function, by default one that takes everything, and keeps what was taken."""

    def __init__(self, take: Callable[[bytes, bytes], bool] = lambda topic, payload: True) -> None:
        self.take = take
        self.seen: list[tuple[bytes, bytes]] = []

    def on_message(self, topic: bytes, payload: bytes) -> bool:
        taken = self.take(topic, payload)
        if taken:
            self.seen.append((topic, payload))
        return taken
