"""How long one connection is out of service, and when waiting for it is over."""

from __future__ import annotations

import asyncio
from contextvars import Context
from enum import Enum, auto
from typing import Protocol

from ...clock import monotonic
from ...exceptions import LayerClosed, LayerUnavailable
from .outages import Outage
from .replies import copy_error

__all__ = ["LONGEST_DELAY", "Downtime", "DowntimeOwner", "Phase"]

#: Seconds, at most, between two attempts to connect.
LONGEST_DELAY = 1.0
# This share of the timeout is granted once after the loop was blocked.
_GRACE = 0.1


class Phase(Enum):
    """The phases of a `Downtime`."""

    NONE = auto()
    RUNNING = auto()
    EXTENDED = auto()
    OVERDUE = auto()
    CLOSED = auto()


class DowntimeOwner(Protocol):
    """
    The connection that is out of service.

    Implemented by `bus.resp.supervisor.SupervisedConnection`.
    """

    def on_time_over(self, grace: float) -> None:
        """
        End, extend or give up the downtime: its time is over.

        Args:
            grace: seconds to extend it by because the loop was blocked: an answer may be there, unread, or an
                attempt to connect was not made. 0 if it was not, or if that was granted before.
        """

    def on_overdue(self, error: Exception) -> None:
        """Fail everything that waits for the connection."""


class Downtime:
    """
    The time since a connection was last in service, its limit, and the reason.

    phase    | timer | error | event: next phase
    ---------|-------|-------|----------------------------------------------------------------------------------
    none     | no    | no    | `begin()`: running, or overdue if the process knows that the host is out
    running  | yes   | no    | `end()`: none; `fail()`: overdue; timer: the owner ends, extends or fails it
    extended | yes   | no    | as in running, but a blocked loop is granted nothing more
    overdue  | no    | yes   | `end()`: none; `fail()`: overdue, with the new error
    closed   | no    | yes   | none

    `close()` leads from each phase to closed.
    """

    def __init__(self, owner: DowntimeOwner, outage: Outage, address: str, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._outage = outage
        self._address = address
        self._timeout = timeout
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        self._began_at = 0.0
        self.phase = Phase.NONE
        #: The error of senders: set in overdue and closed.
        self.error: Exception | None = None
        #: Why the connection is not in service; empty while it is.
        self.reason = "not connected yet"

    @property
    def is_running(self) -> bool:
        """Whether the timer runs."""
        return self.phase is Phase.RUNNING or self.phase is Phase.EXTENDED

    @property
    def is_overdue(self) -> bool:
        """Whether waiting is over: nothing waits for the connection."""
        return self.error is not None

    def begin(self, seconds: float, *, is_first: bool) -> None:
        """
        Begin a downtime of at most `seconds`.

        Args:
            is_first: the connection was not up yet. Then it does not wait in an outage that the process knows of.
        """
        if is_first and (known := self._outage.reason) is not None:
            self.reason = known
            self.give_up()
            return
        self._began_at = monotonic()
        self._enter(Phase.RUNNING)
        # Not yet: nobody connects in the rest of this turn of the loop, which may be a long one.
        self._timer = self._loop.call_soon(self._run, seconds, context=Context())

    def extend(self, seconds: float) -> None:
        """Wait for `seconds` more."""
        self._enter(Phase.EXTENDED)
        self._run(seconds)

    def _run(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self._time_over, context=Context())

    def _time_over(self) -> None:
        self._timer = None
        grace = self._timeout * _GRACE
        is_blocked = self.phase is Phase.RUNNING and self._loop.time() - self._due > grace
        self._owner.on_time_over(grace if is_blocked else 0.0)

    def end(self) -> None:
        """End the downtime."""
        self._enter(Phase.NONE)

    def give_up(self) -> None:
        """End the waiting, for the present reason."""
        self.fail(LayerUnavailable(self._address, self.reason))

    def expire(self) -> None:
        """End the waiting because its time is over, and report the outage to the process."""
        self.give_up()
        self.report(self._began_at)

    def fail(self, error: Exception) -> None:
        """End the waiting with an error."""
        self._enter(Phase.OVERDUE, error)
        self._owner.on_overdue(error)

    def close(self) -> None:
        """End the waiting for good."""
        error = LayerClosed()
        self._enter(Phase.CLOSED, error)
        self._owner.on_overdue(error)

    def _enter(self, phase: Phase, error: Exception | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.phase is not Phase.CLOSED:
            self.phase, self.error = phase, error

    def serve(self) -> None:
        """Note that the server serves. The downtime ends by `end()`."""
        self.reason = ""
        self._outage.served()

    def report(self, since: float) -> None:
        """Report a failure that began at `since` to the process, if this is overdue without a connection."""
        if isinstance(self.error, LayerUnavailable):
            # An attempt takes no longer, with the pause before it.
            seconds = LONGEST_DELAY + 2 * max(1.0, self._timeout)
            self._outage.failed(self.reason, since, seconds)

    def caller_error(self) -> Exception:
        """Return the error of a send in overdue or closed: a new object, with the latest reason."""
        assert self.error is not None
        if isinstance(self.error, LayerUnavailable):
            return LayerUnavailable(self._address, self.reason)
        return copy_error(self.error)
