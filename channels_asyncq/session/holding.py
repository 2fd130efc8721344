"""Full channels stop the arrival of messages while there is time to wait for their readers."""

from __future__ import annotations

import asyncio
import contextvars

from ..bus.base import PubSub
from ..clock import monotonic
from ..local.hub import Hub
from ..local.mailbox import Mailbox

# The time between two looks whether a reader that has had its turn makes room.
_PAUSE = 0.001


class Holding:
    """
    Holds arriving envelopes while the hub waits for the readers of full channels, and offers them again.

    The envelopes stay in the bus and in the mailbox; the hub decides which channels to wait for, and how long
    (`local.flow.WaitBudget`).

    state   | `_retry`         | what ends the state
    --------|------------------|-----------------------------------------------------------------------
    flowing | None             | the hub refuses an envelope: turning or pausing
    turning | on the next turn | the turn: the envelopes are offered again
    pausing | after 1 ms       | the timer; or room in all channels that are waited for: turning
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
        hub: Hub,
        pubsub: PubSub,
        mailbox: Mailbox,
    ) -> None:
        self._loop = loop
        self._context = context
        self._hub = hub
        self._pubsub = pubsub
        self._mailbox = mailbox
        self._retry: asyncio.Handle | None = None
        self._is_pausing = False
        self._since = 0.0

    @property
    def is_holding(self) -> bool:
        return self._retry is not None

    def hold(self) -> None:
        """Note that the hub has refused an envelope; it will be offered again."""
        if self._retry is not None:
            return
        self._since = monotonic()
        self._is_pausing = not self._hub.flow.awaits_a_turn
        if self._is_pausing:
            self._retry = self._loop.call_later(_PAUSE, self._offer_again, context=self._context)
        else:
            self._retry = self._loop.call_soon(self._offer_again, context=self._context)

    def _offer_again(self) -> None:
        self._retry = None
        self._hub.flow.end_wait(1000.0 * (monotonic() - self._since))
        self.on_idle()

    def on_capacity(self) -> None:
        """Note that all channels that envelopes are held for have room again."""
        if self._retry is not None and self._is_pausing:
            self._is_pausing = False
            self._retry.cancel()
            self._retry = self._loop.call_soon(self._offer_again, context=self._context)

    def on_idle(self) -> None:
        """Take in the envelopes that arrived while earlier ones were delivered."""
        self._pubsub.resume()
        self._mailbox.drain()

    def stop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
