"""A hub whose owner and event loop are played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, cast

import pytest

from channels_asyncq.local import buffers
from channels_asyncq.local.buffers import ChannelBuffer
from channels_asyncq.local.hub import Hub
from channels_asyncq.messages.envelopes import NOTICE, Envelope
from channels_asyncq.settings.hosts import Host
from channels_asyncq.settings.options import Options
from channels_asyncq.slices import SLICE, Slices
from tests.clock import Clock

EXPIRY = 60.0


GROUP_EXPIRY = 600.0


ROOM = b"asgi:0:group:room"


class Recorder:
    """A hub and its owner, who writes down every call; and the owner's event loop, which turns by hand."""

    def __init__(self, options: Options | None = None, *, notifies: bool = False, **more: Any) -> None:
        defaults: dict[str, Any] = {"expiry": EXPIRY, "group_expiry": GROUP_EXPIRY, "capacity": 2}
        self.empty: list[bytes] = []
        self.capacities = 0
        #: For each loss that many were notified of, how many channels and groups these were.
        self.notified: list[tuple[int, int]] = []
        #: What is to be called on the next turn of the loop.
        self.next_turn: list[Callable[[], object]] = []
        self.slices, self.chores = (Slices(cast(asyncio.AbstractEventLoop, self)) for _ in range(2))
        if notifies:
            defaults["on_loss"] = "loss"
        options = options or Options(hosts=(Host("memory"),), **(defaults | more))
        self.hub = Hub(options, self, self.slices, self.chores)

    def call_soon(self, callback: Callable[[], object], *, context: Context | None = None) -> None:
        self.next_turn.append(callback)

    def on_group_empty(self, topic: bytes) -> None:
        self.empty.append(topic)

    def on_capacity(self) -> None:
        self.capacities += 1

    def on_loss_notified(self, reason: str, channels: int, groups: int) -> None:
        self.notified.append((channels, groups))

    def turn(self) -> bool:
        """Turn the loop once; return whether there was anything to do."""
        due, self.next_turn[:] = list(self.next_turn), []
        for each in due:
            each()
        return bool(due)

    def texts(self, channel: str) -> list[str]:
        """Everything that can be taken out of a channel now."""
        buffer = self.hub.channels.buffers.get(channel)
        return [] if buffer is None else [text(one) for one in iter(buffer.take, None)]

    def notify_loss(self, reason: str, groups: dict[bytes, str], *, everybody: bool) -> tuple[int, int]:
        """Notify of a loss; return how many channels and groups that were."""
        self.hub.notify_loss(reason, groups.items(), everybody=everybody)
        while self.slices.is_busy:
            self.turn()
        return self.notified.pop()

    def flood(self, *numbers: int) -> None:
        """Send these to the room, whose members nobody has time to wait for."""
        for number in numbers:
            self.hub.flow.budget.left = 0.0
            assert self.hub.deliver(ROOM, envelope(str(number)))


def text(taken: Envelope | None) -> str:
    """What a message says, or a loss notice with its reason and groups."""
    assert taken is not None
    if taken.message is None:
        return taken.payload.decode()
    assert taken.flags & NOTICE and taken.message["type"] == "loss"
    return " ".join(["lost", taken.message["reason"], *taken.message["groups"]])


def envelope(text: str = "x", lifetime: float = EXPIRY, excluded: tuple[str, ...] = ()) -> Envelope:
    """An envelope as the hub's own clock sees it."""
    return Envelope(
        text.encode(), "room", excluded=excluded, expires_at=buffers.__dict__["monotonic"]() + lifetime
    )


def slow(monkeypatch: pytest.MonkeyPatch, clock: Clock, method: str) -> list[str]:
    """Have a method of the buffers take 0.05 ms; return the list of the channels it was called for."""
    called: list[str] = []
    original = getattr(ChannelBuffer, method)

    def slower(buffer: ChannelBuffer, *arguments: Any, **names: Any) -> Any:
        clock.turn(0.00005)
        called.append(buffer.channel)
        return original(buffer, *arguments, **names)

    monkeypatch.setattr(ChannelBuffer, method, slower)
    return called


def until_idle(here: Recorder, work: Slices, called: list[str]) -> int:
    """Turn the loop until the work is done; return how many channels were served in one turn at most."""
    most = before = len(called)
    while work.is_busy:
        here.turn()
        most = max(most, len(called) - before)
        before = len(called)
    return most


# What `slow()` calls are made in a slice where the clock is checked every 64 channels.
SOME_IN_A_TURN = int(SLICE / 0.00005) + 64
