"""One supervised connection: made again whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import logging
import random
import weakref
from collections import defaultdict
from collections.abc import Awaitable
from typing import Protocol

from django.core.exceptions import ImproperlyConfigured

from ... import threads
from ...clock import monotonic
from ...events import CONNECTION, Faults, record
from ...exceptions import ChannelLayerError, LayerClosed, LayerUnavailable
from ...settings.options import Options
from .connector import Connector
from .protocol import ClosedIdle, WireProtocol
from .reader import MessageHandler
from .remedies import Diagnosis
from .replies import InFlight

# Of our own: the state of the global one belongs to the application.
_jitter = random.Random()
_FIRST_DELAY = 0.05
_LONGEST_DELAY = 2.0
# What waiting cannot help against is believed when so many attempts in a row have met it.
_SURE = 3
# So many in a row that end without a word are worth a look at the port.
_WORTH_A_LOOK = 2
# How `send_timeout` is shared out when a server goes silent: to notice it, and to come back.
_NOTICE = 0.6


def copy_error(error: Exception) -> Exception:
    """Return an error of the caller's own: one object raised in many tasks would mix their tracebacks."""
    return copy.copy(error)


class Outage:
    """
    What the lines of a process to one host tell each other: whether it is out. From any thread.

    A line that is overdue says so with each attempt that fails. What it says holds until a line of the process
    has a connection, or nobody has said it again for longer than an attempt takes: its loop may have ended.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        #: What is said of this host in the log.
        self.faults = faults or Faults()
        self._lock = threads.lock()
        self._reason = ""
        self._until = self._served_at = 0.0

    def failed(self, reason: str, since: float, seconds: float) -> None:
        """Note that what began at `since` failed, unless a line has served since; it is known for `seconds`."""
        with self._lock:
            if since > self._served_at:
                self._reason, self._until = reason, monotonic() + seconds

    def served(self) -> None:
        with self._lock:
            self._until, self._served_at = 0.0, monotonic()

    @property
    def has_served(self) -> bool:
        """Whether a line of the process has ever had a connection: then whatever is wrong may pass again."""
        with self._lock:
            return self._served_at > 0

    @property
    def reason(self) -> str | None:
        """Why the host is out, None if it is not, as far as is known."""
        with self._lock:
            return self._reason if monotonic() < self._until else None


class Outages:
    """What a process knows of the hosts of a layer, for all its sessions: a new one need not find out itself."""

    def __init__(self) -> None:
        self._outages: dict[tuple[int, str], Outage] = {}
        self._faults: defaultdict[int, Faults] = defaultdict(Faults)
        self._lock = threads.lock()

    def of(self, host: int, name: str) -> Outage:
        """Return what is known of a host, given by its place in `hosts`, by the lines of this name."""
        with self._lock:
            outage = self._outages.get((host, name))
            if outage is None:
                outage = self._outages[host, name] = Outage(self._faults[host])
            return outage

    def faults_of(self, host: int) -> Faults:
        """Return what is said in the log of a host, for all connections to it."""
        with self._lock:
            return self._faults[host]


class ConnectionOwner(Protocol):
    """What sends and reads by a supervised connection, and decides what becomes of commands in flight."""

    async def set_up(self, wire: WireProtocol) -> None:
        """Do what must be done on a new connection before it is used. An error ends the attempt."""

    def on_up(self, wire: WireProtocol) -> None:
        """The connection is set up: resend what is in flight, then use it."""

    def on_lost(self, in_flight: list[InFlight]) -> None:
        """The connection, or the attempt at one, has ended. These commands have no reply, if they are kept."""

    def on_overdue(self, error: Exception) -> None:
        """Waiting is over: let everything fail that waits for the connection, or is in flight without one."""

    def on_change(self) -> None:
        """The connection came up or was lost; called after the others, when its state is that of the table."""

    @property
    def is_awaited(self) -> bool:
        """Whether anything waits to be sent or resent, or else for the connection."""


class SupervisedConnection:
    """
    One connection that is made again whenever it is lost.

    `wire` is there while it is up: connected, and `owner.set_up(wire)` done. There is a task only while
    connecting.

    An outage begins with a loss. It ends with an answer to something that was sent, not with a connection: a
    server may accept each connection and never answer. Where nothing waits for an answer, the replies to
    `set_up(wire)` must do. An owner that does not resend has asked all it wants in `set_up(wire)`.

    state   | wire | timer | overdue | a send       | what comes next
    --------|------|-------|---------|--------------|---------------------------------------------------------
    up      | yes  | no    | no      | is written   | loss: waiting
    waiting | no   | runs  | no      | waits        | connection: trial, or up if nothing waits for an answer;
            |      |       |         |              | timer: overdue, or once more if the loop was blocked
    trial   | yes  | runs  | no      | is written   | answer: up; loss: waiting, and the timer runs on; timer:
            |      |       |         |              | overdue, and the connection is given up. The timer runs
            |      |       |         |              | longer while bytes move, or once if the loop was blocked;
            |      |       |         |              | then a loss is overdue at once
    overdue | no   | no    | yes     | fails        | connection: up, or refused if the last one was given up
            |      |       |         |              | for what the server answered
    refused | yes  | no    | yes     | is written   | `mark_healthy()`: up; loss: overdue
    resting | no   | no    | no      | waits        | `start()`: waiting, as at the beginning

    Several attempts in a row that fail for a reason that waiting cannot mend, to a host that never served, make
    it overdue at once. Overdue, everything that waits or is in flight without a connection fails, and so does
    what a connection leaves in flight. The timer is set at the loss, to `send_timeout`. While the server
    refuses, only `mark_healthy()` counts as an answer. A connection begins as waiting, or as overdue if the
    process knows that the host is out.
    """

    def __init__(
        self,
        connector: Connector,
        name: str,
        options: Options,
        owner: ConnectionOwner,
        *,
        messages: MessageHandler | None = None,
        resends: bool = False,
        outage: Outage | None = None,
    ) -> None:
        """
        Args:
            name: "commands" or "pushes", for the log.
            messages: gets the pushes of a subscriber's connection.
            resends: the owner keeps what is in flight when the connection is lost, and sends it again.
        """
        self._loop = asyncio.get_running_loop()
        self._connector = connector
        self._name = name
        self._send_timeout = options.send_timeout
        self._owner = owner
        self._messages = messages
        self._resends = resends
        self._outage = outage or Outage()
        self._down_since = 0.0
        # An attempt takes no longer, with the pause before it.
        self._attempt_seconds = _LONGEST_DELAY + 2 * max(1.0, options.send_timeout)
        self._was_silent = False
        self._task: asyncio.Task[None] | None = None
        # Of connections that were closed until they are needed.
        self._endings: set[asyncio.Task[None]] = set()
        # All that may be there: one is being set up, another closed.
        self._wires: weakref.WeakSet[WireProtocol] = weakref.WeakSet()
        self._timer: asyncio.TimerHandle | None = None
        # Of `up()` and `first_up()`.
        self._waiters: set[asyncio.Future[None]] = set()
        self._delay = _FIRST_DELAY
        self._overdue: Exception | None = None
        self._due = 0.0
        # The timer ran out while bytes moved, or on a loop that was blocked.
        self._is_late = False
        # The attempts in a row that failed for one cause that waiting cannot help against.
        self._hopeless = ("", 0)
        # Those in a row that ended without a word.
        self._wordless = 0
        # Replies of the present connection to what was called before it was up.
        self._replies_to_set_up = 0
        # What the last connection was closed as, if that was as an idle one; and how long one may be idle.
        self._closed_idle: ClosedIdle | None = None
        self._longest_idle: float | None = None
        self._keeper: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._context = contextvars.Context()
        self.wire: WireProtocol | None = None
        self.reconnects = 0
        self.was_up = False
        self.is_refusing = False  # the last connection was given up for what the server answered
        self.reason = "not connected yet"

    # Up and down

    def start(self) -> None:
        """Begin connecting, unless that is under way, done, or the line is closed."""
        if self._is_closed or self.wire is not None or (self._task is not None and not self._task.done()):
            return
        if not self.was_up and self._overdue is None and (known := self._outage.reason) is not None:
            self.reason = known
            self._give_up_waiting(self.unavailable())
        if self._timer is None and self._overdue is None:
            self._is_late = False
            self._down_since = monotonic()
            self._set_timer(self._send_timeout * (1 - _NOTICE if self._was_silent else 1))
        self._task = self._loop.create_task(
            self._connect(),
            name=f"channels_asyncq connecting {self._name} to {self._connector.address}",
            context=contextvars.Context(),
        )

    async def _connect(self) -> None:
        delay = self._delay if self.was_up else 0.0
        if self.was_up:
            # For a connection that ends before it carried anything.
            self._delay = min(_LONGEST_DELAY, 2 * self._delay)
        while True:
            await asyncio.sleep(delay * _jitter.uniform(0.5, 1.0))
            began = monotonic()
            try:
                wire = await self._connector.connect(self._make_wire)
                try:
                    await self._owner.set_up(wire)
                except GeneratorExit:
                    raise  # this is collected, with an event loop that was closed
                except BaseException as exc:
                    wire.abort(ConnectionAbortedError(f"{exc}"))
                    self._owner.on_lost([])
                    raise
            except ImproperlyConfigured as exc:
                self._note_failure(str(exc), str(exc))
                self._stop_timer()
                self._give_up_waiting(exc)
            except Exception as exc:
                # Whatever it is, a server that answers nonsense included: the next attempt may succeed.
                await self._failed(exc, began)
            else:
                # An end of the connection that came in between has set is_lost; on_lost() found no `wire`.
                if not wire.is_lost:
                    self._came_up(wire)
                    return
                self.reason = "the connection was lost while it was being set up"
                self._owner.on_lost([])
            delay = min(_LONGEST_DELAY, max(delay, _FIRST_DELAY / 2) * 2)

    def _make_wire(self) -> WireProtocol:
        wire = WireProtocol(owner=self, messages=self._messages, timeout=self._send_timeout * _NOTICE)
        self._wires.add(wire)
        return wire

    def transports(self) -> list[asyncio.BaseTransport]:
        """Return the transports of its connections, also of those that are being set up or closed."""
        return [wire.transport for wire in list(self._wires) if wire.transport is not None]

    def _tell_outage(self, since: float) -> None:
        """Tell the process what this line knows, if it is overdue because it has no connection."""
        if isinstance(self._overdue, LayerUnavailable):
            self._outage.failed(self.reason, since, self._attempt_seconds)

    async def _failed(self, exc: Exception, began: float) -> None:
        """Say why an attempt failed. If it is sure that waiting cannot help, whoever waits is told now."""
        if not self._hopeless[0]:
            # Until more is known, which may take a moment. What was found before in this outage says more.
            self.reason = exc.reason if isinstance(exc, LayerUnavailable) else str(exc) or type(exc).__name__
        diagnosis = self._connector.diagnose(exc)
        if diagnosis.is_wordless:
            self._wordless += 1
            if self._wordless < _WORTH_A_LOOK:
                self._tell_outage(began)
                return  # the next attempt comes at once, and a look would hold it up
            diagnosis = await self._connector.look() or diagnosis
        else:
            self._wordless = 0
        self._note_failure(diagnosis.reason, diagnosis.cause)
        if self._is_hopeless(diagnosis):
            self._stop_timer()
            self._give_up_waiting(self.unavailable())
        self._tell_outage(began)

    def _is_hopeless(self, diagnosis: Diagnosis) -> bool:
        """Tell whether waiting cannot help. A server that is restarted or set up may say so for a moment."""
        cause, number = self._hopeless
        number = 0 if diagnosis.heals else number + 1 if diagnosis.cause == cause else 1
        self._hopeless = diagnosis.cause, number
        return number >= _SURE and not self._outage.has_served

    def _note_failure(self, reason: str, cause: str) -> None:
        self.reason = reason
        self._outage.faults.warn(
            CONNECTION,
            "connection.failed",
            cause,
            "cannot connect to %s: %s",
            self._connector.address,
            reason,
        )

    def _came_up(self, wire: WireProtocol) -> None:
        self._hopeless = ("", 0)
        self._wordless = 0
        self._replies_to_set_up = wire.replies
        is_asked = self._resends and (bool(self._waiters) or self._owner.is_awaited)
        wire.keeps_unanswered = self._resends
        self.wire = wire
        self._owner.on_up(wire)
        if not self.is_refusing:
            self.reason = ""
            self._outage.served()
            if self._overdue is not None or not is_asked:
                self._end_outage()
        if self.was_up:
            self.reconnects += 1
            record(
                CONNECTION,
                logging.INFO,
                "connection.restored",
                "%s to %s are connected again",
                self._name,
                self._connector.address,
            )
        self.was_up = True
        self._keep_alive(wire)
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._owner.on_change()

    def _keep_alive(self, wire: WireProtocol) -> None:
        """Ask for something in time where the server closes idle connections."""
        if self._longest_idle is None or self.wire is not wire or wire.is_lost:
            return
        if self._keeper is not None:
            wire.call("PING")
        self._keeper = self._loop.call_later(
            self._longest_idle / 2, self._keep_alive, wire, context=self._context
        )

    def _stop_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None

    def mark_healthy(self) -> None:
        """Note that the outage is over: the connection is there, and the server does what it is told."""
        self.is_refusing = False
        self._delay = _FIRST_DELAY
        self.reason = ""
        self._outage.served()
        self._end_outage()

    def _end_outage(self) -> None:
        self._stop_timer()
        self._overdue = None

    def _has_answered(self, wire: WireProtocol) -> bool:
        """Tell whether the connection has answered anything since it is up. (Nobody tells: answers are many.)"""
        return wire.replies > self._replies_to_set_up and not self.is_refusing

    def give_up(self, wire: WireProtocol, reason: str) -> None:
        """End a connection whose server cannot serve. The outage lasts until `mark_healthy()`."""
        self._delay = max(2 * _FIRST_DELAY, self._delay)
        self.is_refusing = True
        self.reason = reason
        wire.abort(ConnectionAbortedError(reason))

    def _set_timer(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self._is_overdue, context=contextvars.Context())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_lost(self, wire: WireProtocol, error: Exception | None) -> None:
        self._wires.discard(wire)  # another file may get the number of its socket
        if self.wire is not wire:
            return
        self.wire = None
        self._was_silent = isinstance(error, TimeoutError)
        self._stop_keeper()
        self._learn_idle(error)
        self._owner.on_lost(wire.unanswered)
        if self._is_closed:
            self._owner.on_overdue(LayerClosed())
            return
        if self._has_answered(wire):
            self._delay = _FIRST_DELAY
            self._end_outage()
        self.reason = str(error) or type(error).__name__
        if self._timer is not None:
            self._end_trial(wire)
        if self._overdue is not None:
            # The connection came and went within the outage: waiting is over already.
            self._owner.on_overdue(self._overdue)
            self._tell_outage(monotonic())
        self.start()
        self._owner.on_change()
        # Last: the application's handlers of logs may raise.
        is_idle = isinstance(error, ClosedIdle)
        self._outage.faults.warn(
            CONNECTION,
            "connection.lost",
            "idle" if is_idle else self.reason,
            "lost a connection to %s: %s",
            self._connector.address,
            self.reason,
            level=logging.INFO if is_idle else logging.WARNING,
        )

    def _learn_idle(self, error: Exception | None) -> None:
        """Note how long a connection may be idle, when two in a row were closed so: one may be a restart."""
        before, self._closed_idle = self._closed_idle, error if isinstance(error, ClosedIdle) else None
        if before is None or self._closed_idle is None:
            self._longest_idle = None
        else:
            self._longest_idle = min(before.seconds, self._closed_idle.seconds)

    def _end_trial(self, wire: WireProtocol) -> None:
        """Judge a connection that ended before the outage did."""
        if not (self._waiters or self._owner.is_awaited or self.is_refusing):
            self._stop_timer()  # nothing was asked any more: it was as good as up
        elif self._is_late:
            self._stop_timer()
            self._give_up_waiting(self.unavailable())

    def _is_overdue(self) -> None:
        self._timer = None
        wire = self.wire
        is_asked = False
        patience = 0.0
        if not self._is_late and self._loop.time() - self._due > self._send_timeout / 10:
            # This loop was blocked: the answer may be there, unread, or an attempt to connect was not made.
            patience = self._send_timeout / 10
        if wire is not None:
            is_asked = wire.pending > 0
            if self._has_answered(wire) or not (is_asked or self.is_refusing):
                self._end_outage()
                return
            patience = max(patience, wire.remaining_wait())
        if patience > 0:
            self._is_late = True
            self._set_timer(patience)
            return
        if is_asked and not self.is_refusing:
            self.reason = f"it accepted connections, and answered nothing within {self._send_timeout:g} s"
        self._give_up_waiting(self.unavailable())
        self._tell_outage(self._down_since)
        if wire is not None and is_asked:
            wire.abort(TimeoutError(self.reason))

    def _give_up_waiting(self, error: Exception) -> None:
        self._overdue = error
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._owner.on_overdue(error)

    def unavailable(self) -> LayerUnavailable:
        return LayerUnavailable(self._connector.address, self.reason)

    # For those who need it

    def raise_if_overdue(self) -> None:
        """Raise what sends fail with by now, if waiting is over."""
        if self._is_closed:
            raise LayerClosed()
        if self._overdue is not None and (self.wire is None or self.wire.is_lost):
            if isinstance(self._overdue, LayerUnavailable):
                raise self.unavailable()
            raise copy_error(self._overdue)

    async def up(self) -> WireProtocol:
        """
        Return the wire when it is up.

        Raises:
            LayerUnavailable: `send_timeout` seconds have passed since the loss of the connection.
            ImproperlyConfigured: the server holds another layout of this namespace.
        """
        while (wire := self.wire) is None or wire.is_lost:
            self.start()  # the process may know of an outage
            self.raise_if_overdue()
            await self._changed()
        return wire

    async def _changed(self) -> None:
        """
        Return when the connection comes up; raise what `on_overdue()` is called with if it does not in time.
        """
        self.start()
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            raise copy_error(exc) from exc
        finally:
            self._waiters.discard(waiter)

    async def first_up(self) -> None:
        """
        Return when the line was up once, however long that takes.

        Raises:
            ImproperlyConfigured: the server holds another layout of this namespace.
            LayerClosed: the line was closed.
        """
        while not self.was_up:
            if self._overdue is not None and not isinstance(self._overdue, LayerUnavailable):
                raise copy_error(self._overdue)
            with contextlib.suppress(LayerUnavailable):
                await self._changed()

    @property
    def is_busy(self) -> bool:
        """Whether anything has no reply yet, or waits in `up()`."""
        wire = self.wire
        return bool(self._waiters or (wire is not None and wire.pending))

    @property
    def is_resting(self) -> bool:
        """Whether there is no connection, and none is being made."""
        return self.wire is None and self._task is None

    def rest(self) -> Awaitable[None]:
        """
        End the connection, or the attempts at one, until the next `start()`. Not for a line that is busy.

        The result only waits for the end: a new connection may be made meanwhile, and cancelling changes nothing.
        """
        self._end_outage()
        self._stop_keeper()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()  # now: it must not come up any more
        wire, self.wire = self.wire, None
        self.was_up = self.is_refusing = False
        self._delay = _FIRST_DELAY
        self.reason = "closed until it is needed"
        self._owner.on_lost([])
        ending = self._loop.create_task(
            self._ended(task, wire),
            name=f"channels_asyncq closing {self._name} to {self._connector.address}",
            context=contextvars.Context(),
        )
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        return asyncio.shield(ending)

    @staticmethod
    async def _ended(task: asyncio.Task[None] | None, wire: WireProtocol | None) -> None:
        if task is not None:
            await asyncio.wait([task])
        if wire is not None:
            await wire.close()

    async def close(self) -> None:
        """End the connection and the attempts at one. Safe to call twice."""
        self._is_closed = True
        self._stop_timer()
        self._stop_keeper()
        self._give_up_waiting(LayerClosed())
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        wire, self.wire = self.wire, None
        if wire is not None:
            wire.keeps_unanswered = False  # nobody sends again what it leaves
            await wire.close()
        if self._endings:
            await asyncio.wait(self._endings)

    def abort(self) -> None:
        """End the connection and the attempts at one now, after a close() that was cancelled."""
        self._is_closed = True
        self._stop_timer()
        self._stop_keeper()
        self._give_up_waiting(LayerClosed())
        if self._task is not None:
            self._task.cancel()
        for ending in self._endings:
            ending.cancel()
        wire, self.wire = self.wire, None
        if wire is not None:
            wire.keeps_unanswered = False
            wire.abort(ConnectionAbortedError("closing was cancelled"))
