"""Keeps a connection alive whose server closes idle ones."""

from __future__ import annotations

import asyncio
from contextvars import Context

from .protocol import ClosedIdle, WireProtocol

__all__ = ["IdleKeeper"]


class IdleKeeper:
    """
    Sends PING in time, once the server has closed two connections in a row because they were idle.

    One alone may have been closed by a restart.

    state    | two in a row were idle | timer | event: next state
    ---------|------------------------|-------|-------------------------------------------------------------------
    off      | no                     | no    | `learn()` of the second: due
    due      | yes                    | no    | `start()`: keeping; `learn()` of another end: off
    keeping  | yes                    | yes   | timer: PING, and keeping; `stop()`: due
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        # How the last connection ended, if it was idle.
        self._last: ClosedIdle | None = None
        # How many seconds a connection may be idle; None in the state off.
        self._limit: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_keeping(self) -> bool:
        """Whether PING is sent when a connection is idle."""
        return self._timer is not None

    def learn(self, error: Exception | None) -> None:
        """Note how a connection ended."""
        before, self._last = self._last, error if isinstance(error, ClosedIdle) else None
        if before is None or self._last is None:
            self._limit = None
        else:
            self._limit = min(before.seconds, self._last.seconds)

    def start(self, wire: WireProtocol) -> None:
        """Keep this connection alive, if its server closes idle ones."""
        if self._limit is not None and not wire.is_lost:
            self._timer = self._loop.call_later(self._limit / 2, self._ping, wire, context=self._context)

    def _ping(self, wire: WireProtocol) -> None:
        if not wire.is_lost:
            wire.call("PING")
        self.start(wire)

    def stop(self) -> None:
        """Send nothing more: the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
