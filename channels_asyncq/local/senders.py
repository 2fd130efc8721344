"""The senders that wait for a place in one full channel."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from ..clock import monotonic


class Places(Protocol):
    """What senders need of the buffer that they wait for. Implemented by `local.buffers.ChannelBuffer`."""

    def may_proceed(self) -> bool:
        """Tell whether the next sender need not wait: there is a free place, or the buffer is closed."""

    def reserve_place(self) -> None:
        """Take one place out of those that are free, for a sender that has yet to run."""

    def return_place(self) -> None:
        """Undo `reserve_place()`."""

    def drop_expired(self) -> int:
        """Drop the expired messages at the head of the buffer."""

    def next_expiry(self) -> float | None:
        """Return when the oldest message expires; None if there is none."""


class WaitingSenders:
    """
    The senders that wait for a place in one buffer: first come, first served.

    state of a sender | what ends it
    ------------------|----------------------------------------------------------------------------------
    waiting, in line  | a place is free: it holds that place; or it is cancelled
    holding a place   | it runs, and returns the place to put its envelope there; or it is cancelled, and
                      | the place goes to the next sender
    """

    __slots__ = ("_expiry_timer", "_places", "held", "line")

    def __init__(self, places: Places) -> None:
        self._places = places
        self._expiry_timer: asyncio.TimerHandle | None = None
        self.line: deque[asyncio.Future[None]] = deque()
        #: How many senders hold a place.
        self.held = 0

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits or holds a place."""
        return not (self.line or self.held)

    async def wait(self) -> None:
        """
        Return when there is a free place, which nobody else can have taken, or when the buffer is closed.

        Cancelling is safe: the next sender gets the place.
        """
        sender = asyncio.get_running_loop().create_future()
        self.line.append(sender)
        self.watch_expiry()
        try:
            await sender
        except asyncio.CancelledError:
            if sender in self.line:
                self.line.remove(sender)
            elif not sender.cancelled():
                self._release()
                self.hand_out()
            raise
        self._release()

    def hand_out(self) -> None:
        """Give the free places to the senders in line."""
        while self.line and self._places.may_proceed():
            sender = self.line.popleft()
            if not sender.done():
                self.held += 1
                self._places.reserve_place()
                sender.set_result(None)

    def _release(self) -> None:
        self.held -= 1
        self._places.return_place()

    def watch_expiry(self) -> None:
        """See to it that the oldest message frees its place when it expires: nothing else runs at that time."""
        if self.line and self._expiry_timer is None:
            self._hand_out_expired()

    def _hand_out_expired(self) -> None:
        self._expiry_timer = None
        self._places.drop_expired()
        self.hand_out()
        until = self._places.next_expiry()
        if self.line and until is not None:
            loop = asyncio.get_running_loop()
            self._expiry_timer = loop.call_later(max(0.0, until - monotonic()), self._hand_out_expired)
