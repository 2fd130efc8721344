"""A timer that drops unused channels, memberships and readers, while there are any."""

from __future__ import annotations

import asyncio
import contextvars

from ..clock import monotonic
from ..local.hub import Hub
from ..settings.options import Options
from .lifetime import Lifetime
from .owners import Siblings
from .readers import QueueReaders

_MAX_SECONDS_BETWEEN_SWEEPS = 30.0


class Sweeper:
    """
    Sweeps a session's channels, groups and readers. `timer` is None while there is nothing to sweep.

    Code that creates one of these calls `start()`; the hot path looks at `timer` first.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
        options: Options,
        hub: Hub,
        readers: QueueReaders,
        siblings: Siblings,
        lifetime: Lifetime,
    ) -> None:
        self._loop = loop
        self._context = context
        self._options = options
        self._hub = hub
        self._readers = readers
        self._siblings = siblings
        self._lifetime = lifetime
        self.timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Have a sweep come, unless one is due already or the session is closed."""
        if self.timer is None and not self._lifetime.is_closed:
            pause = min(_MAX_SECONDS_BETWEEN_SWEEPS, max(self._options.expiry / 2, 0.05))
            self.timer = self._loop.call_later(pause, self._sweep, context=self._context)

    def restart(self) -> None:
        """Set the timer anew, if it is set: `expiry` has changed."""
        if self.timer is not None:
            self.stop()
            self.start()

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _sweep(self) -> None:
        self.timer = None
        self._siblings.look_for_ended()
        self._hub.sweep()
        self._readers.sweep(monotonic())
        if self._hub.channels.buffers or self._hub.channels.closed_names or self._readers.count:
            self.start()
