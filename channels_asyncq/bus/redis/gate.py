"""The line of senders that wait for a connection, and the connection that sends may use."""

from __future__ import annotations

import asyncio
from contextvars import Context

from ..resp.protocol import WireProtocol
from ..resp.waiters import outcome

#: A place in the line. Messages that are resent come before messages that were never sent.
Ticket = tuple[int, int]


class Gate:
    """
    The order in which senders get a connection after they had to wait for it.

    A sender keeps its ticket until it has written: if the gate is shut again before, it gets its old place back.

    state    | at  | wire | a send               | event: next state
    ---------|-----|------|----------------------|-----------------------------------------------------------
    shut     | no  | no   | waits                | `open()`: opening; `fail()`: the waiting sends fail
    opening  | yes | no   | waits at the end     | all waiting senders have had their turn: open;
             |     |      |                      | `hold()`: held; `shut()`: shut
    open     | yes | yes  | is written           | `hold()`: held; `shut()`: shut
    held     | yes | no   | waits at the end     | `shut()`: shut
    """

    __slots__ = ("_context", "_is_held", "_loop", "_tickets", "_waiters", "at", "wire")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._tickets = 0
        self._waiters: dict[asyncio.Future[None], Ticket] = {}
        # Only while `at` is a connection.
        self._is_held = False
        #: The connection, None while shut.
        self.at: WireProtocol | None = None
        #: Like `at`, but set only after all senders that queued before have had their turn.
        self.wire: WireProtocol | None = None

    def __bool__(self) -> bool:
        """Whether any sender waits."""
        return bool(self._waiters)

    def open(self, wire: WireProtocol) -> None:
        """Give this connection to all waiting senders, in order, and then to all later ones."""
        self.at, self.wire, self._is_held = wire, None, False
        self._admit(wire)

    def _admit(self, wire: WireProtocol) -> None:
        if self.at is not wire or self._is_held:
            return
        waiters, self._waiters = self._waiters, {}
        if not waiters:
            self.wire = wire
            return
        for waiter in sorted(waiters, key=waiters.__getitem__):
            if not waiter.done():
                waiter.set_result(None)
        # A sender that comes before these have run waits at the end of the line.
        self._loop.call_soon(self._admit, wire, context=self._context)

    def hold(self) -> None:
        """Let all later senders wait, while the connection still answers what was written."""
        if self.at is not None:
            self.wire, self._is_held = None, True

    def shut(self) -> None:
        """Let all later senders wait."""
        self.at = self.wire = None
        self._is_held = False

    def fail(self, error: Exception) -> None:
        """End the waiting with an error. The gate stays as it is."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def take_ticket(self, *, is_resend: bool = False) -> Ticket:
        """Return a place at the end of the line, or for a resend at the end of the resends."""
        self._tickets += 1
        return not is_resend, self._tickets

    def line_up(self, ticket: Ticket) -> asyncio.Future[None]:
        """Wait from now on. Await the result with `turn()` before the loop runs anything else."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters[waiter] = ticket
        return waiter

    async def turn(self, waiter: asyncio.Future[None]) -> None:
        """
        Return when it is this sender's turn: the connection is `at`, unless it was lost or moved since.

        Cancelling is safe.

        Raises:
            ChannelLayerError, ImproperlyConfigured: a copy of the error that `fail()` was given.
        """
        try:
            await outcome(waiter)
        finally:
            self._waiters.pop(waiter, None)
