"""Buffers of one channel for tests, and what is in them."""

from __future__ import annotations

from typing import Any

from channels_asyncq.local.buffers import ChannelBuffer
from channels_asyncq.local.counters import Counters
from channels_asyncq.messages.envelopes import Envelope

NEVER = float("inf")


def make(capacity: int = 3, counters: Counters | None = None, **more: Any) -> ChannelBuffer:
    return ChannelBuffer("chat", capacity, Counters() if counters is None else counters, **more)


def envelope(text: str = "x", expires_at: float = NEVER) -> Envelope:
    return Envelope(text.encode(), "chat", expires_at=expires_at)


def texts(buffer: ChannelBuffer) -> list[str]:
    """Everything that can be taken, in order."""
    return [one.payload.decode() for one in iter(buffer.take, None)]


class Observer:
    """Writes down which buffers have a place again."""

    def __init__(self) -> None:
        self.freed: list[ChannelBuffer] = []

    def on_place_free(self, buffer: ChannelBuffer) -> None:
        self.freed.append(buffer)
