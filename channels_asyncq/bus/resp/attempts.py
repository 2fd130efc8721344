"""The attempts to connect: the pauses between them, and the meaning of their failures."""

from __future__ import annotations

import asyncio
import contextvars
import random
import weakref
from typing import Protocol

from django.core.exceptions import ImproperlyConfigured

from ...clock import monotonic
from ...events import CONNECTION
from ...exceptions import LayerUnavailable
from .connector import Connector, Unreachable
from .downtime import LONGEST_DELAY, Downtime
from .outages import Outage
from .owner import ConnectionOwner
from .protocol import WireOwner, WireProtocol
from .reader import MessageHandler
from .remedies import Diagnosis

__all__ = ["Attempts"]

# A generator of our own: the state of the global one belongs to the application.
_jitter = random.Random()
_FIRST_DELAY = 0.05
# After this many failures in a row for one cause that waiting cannot mend, waiting is over.
_SURE = 3
# After this many failures in a row without an explanation, the port is examined.
_EXAMINE_AFTER = 2


class Supervisor(WireOwner, Protocol):
    """The connection that is to be made. Implemented by `bus.resp.supervisor.SupervisedConnection`."""

    def use(self, wire: WireProtocol) -> None:
        """Use a connection that is set up."""

    def on_refused(self) -> None:
        """Note that an attempt made no connection, for a reason that is known."""


class Failures:
    """The failures in a row, and whether waiting can help against them."""

    def __init__(self, connector: Connector, outage: Outage) -> None:
        self._connector = connector
        self._outage = outage
        # How many in a row failed for one cause that waiting cannot mend; of another cause, 0.
        self._cause = ""
        self._count = 0
        # How many in a row ended without an explanation.
        self._unexplained = 0

    @property
    def has_cause(self) -> bool:
        """Whether a cause is known since the last success."""
        return bool(self._cause)

    def clear(self) -> None:
        """Note that an attempt succeeded."""
        self._cause, self._count, self._unexplained = "", 0, 0

    async def diagnose(self, exc: Exception) -> Diagnosis | None:
        """Return the meaning of the next failure; None for the first of several without an explanation."""
        diagnosis = self._connector.diagnose(exc)
        if not diagnosis.is_wordless:
            self._unexplained = 0
            return diagnosis
        self._unexplained += 1
        if self._unexplained < _EXAMINE_AFTER:
            return None  # the next attempt follows at once, and an examination would delay it
        return await self._connector.look() or diagnosis

    def is_hopeless(self, diagnosis: Diagnosis) -> bool:
        """
        Note the cause of the next failure, and tell whether waiting cannot help.

        One or two failures do not show that: a server that is restarted or set up may answer so for a moment.
        """
        if diagnosis.heals:
            self._count = 0
        elif diagnosis.cause == self._cause:
            self._count += 1
        else:
            self._count = 1
        self._cause = diagnosis.cause
        return self._count >= _SURE and not self._outage.has_served


class Attempts:
    """
    Attempts to connect, one after the other, until one succeeds.

    The pause between two attempts doubles, from none at the very first to `LONGEST_DELAY`. The pause before the
    first attempt after a loss doubles too, until `reset_delay()`: a server may accept each connection and end it
    before it answers anything.
    """

    def __init__(
        self,
        connector: Connector,
        name: str,
        supervisor: Supervisor,
        owner: ConnectionOwner,
        downtime: Downtime,
        outage: Outage,
        *,
        messages: MessageHandler | None,
        reply_timeout: float,
    ) -> None:
        self._connector = connector
        self._name = name
        self._supervisor = supervisor
        self._owner = owner
        self._downtime = downtime
        self._outage = outage
        self._messages = messages
        self._reply_timeout = reply_timeout
        self._failures = Failures(connector, outage)
        #: Why the last attempt made no connection, if that is known; empty after a success or `stop()`.
        self.refusal = ""
        # Of the first attempt after a loss.
        self._delay = _FIRST_DELAY
        self._task: asyncio.Task[None] | None = None
        # One may be set up while another is closed.
        self._wires: weakref.WeakSet[WireProtocol] = weakref.WeakSet()

    @property
    def is_under_way(self) -> bool:
        """Whether the connection is being made."""
        return self._task is not None and not self._task.done()

    @property
    def is_stopped(self) -> bool:
        """Whether none was begun, or since `stop()`."""
        return self._task is None

    def reset_delay(self) -> None:
        """Note that the server serves: the next loss is followed by an attempt after the shortest pause."""
        self._delay = _FIRST_DELAY

    def lengthen_delay(self) -> None:
        """Note that the server refuses to serve: the next attempt comes later."""
        self._delay = max(2 * _FIRST_DELAY, self._delay)

    def start(self, *, is_first: bool) -> None:
        """Begin, unless that is under way. `is_first`: no connection was up yet, so connect without a pause."""
        if self.is_under_way:
            return
        delay = 0.0
        if not is_first:
            delay, self._delay = self._delay, min(LONGEST_DELAY, 2 * self._delay)
        self._task = asyncio.get_running_loop().create_task(
            self._run(delay),
            name=f"channels_asyncq connecting {self._name} to {self._connector.address}",
            context=contextvars.Context(),
        )

    def stop(self) -> asyncio.Task[None] | None:
        """Attempt nothing more. Return the task that is ending, for the caller to keep or to wait for."""
        self.refusal = ""
        task, self._task = self._task, None
        if task is None or task.done():
            return None
        task.cancel()  # now: the connection must not come up any more
        return task

    async def _run(self, delay: float) -> None:
        task = self._task
        # Otherwise a library that turns a cancellation into its own error would keep this going for ever.
        while self._task is task:
            await asyncio.sleep(delay * _jitter.uniform(0.5, 1.0))
            began = monotonic()
            try:
                wire = await self._connector.connect(self._make_wire)
                await self._set_up(wire)
            except ImproperlyConfigured as exc:
                if self._task is task:
                    self._note_failure(str(exc), str(exc))
                    self._downtime.fail(exc)
            except Exception as exc:
                # Also the error of a server that answers nonsense: the next attempt may succeed.
                if self._task is task:
                    await self._failed(exc, began)
            else:
                if self._task is not task:
                    wire.abort(ConnectionAbortedError("it is not needed any more"))
                elif not wire.is_lost:
                    self._failures.clear()
                    self.refusal = ""
                    self._supervisor.use(wire)
                    return
                else:
                    # The supervisor did not know of this connection when its end was reported.
                    self._downtime.reason = "the connection was lost while it was being set up"
                    self._owner.on_lost([])
            delay = min(LONGEST_DELAY, max(delay, _FIRST_DELAY / 2) * 2)

    async def _set_up(self, wire: WireProtocol) -> None:
        """Let the owner set a new connection up. An error ends it."""
        try:
            await self._owner.set_up(wire)
        except GeneratorExit:
            raise  # this is collected, with an event loop that was closed
        except BaseException as exc:
            wire.abort(ConnectionAbortedError(f"{exc}"))
            self._owner.on_lost([])
            raise

    async def _failed(self, exc: Exception, began: float) -> None:
        """Note why an attempt failed. If waiting is sure not to help, it is over."""
        downtime = self._downtime
        if not self._failures.has_cause:
            # Until more is known, which may take a moment. A cause that was found before explains more.
            downtime.reason = (
                exc.reason if isinstance(exc, LayerUnavailable) else str(exc) or type(exc).__name__
            )
        diagnosis = await self._failures.diagnose(exc)
        if diagnosis is not None:
            self._note_failure(diagnosis.reason, diagnosis.cause)
            if self._failures.is_hopeless(diagnosis):
                downtime.give_up()
            if isinstance(exc, Unreachable) and not diagnosis.is_wordless:
                self.refusal = diagnosis.reason
                self._supervisor.on_refused()
        downtime.report(began)

    def _note_failure(self, reason: str, cause: str) -> None:
        self._downtime.reason = reason
        self._outage.faults.warn(
            CONNECTION,
            "connection.failed",
            cause,
            "cannot connect to %(address)s: %(reason)s",
            address=self._connector.address,
            reason=reason,
        )

    # The connections that were made

    def _make_wire(self) -> WireProtocol:
        wire = WireProtocol(owner=self._supervisor, messages=self._messages, timeout=self._reply_timeout)
        self._wires.add(wire)
        return wire

    def forget(self, wire: WireProtocol) -> None:
        """Leave a connection that has ended out of `transports()`: another file may get its descriptor."""
        self._wires.discard(wire)

    def transports(self) -> list[asyncio.BaseTransport]:
        """Return the transports of the connections, including those that are being set up or closed."""
        return [wire.transport for wire in list(self._wires) if wire.transport is not None]
