"""One supervised connection: made again whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Awaitable, Callable

from ...clock import monotonic, time_ns
from ...events import CONNECTION, record
from ...exceptions import LayerUnavailable
from ...settings.options import Options
from .attempts import Attempts
from .connector import Connector
from .downtime import Downtime, Phase
from .idle import IdleKeeper
from .outages import Outage
from .owner import ConnectionOwner
from .protocol import ClosedIdle, WireProtocol
from .reader import MessageHandler
from .replies import copy_error
from .waiters import Waiters

__all__ = ["SupervisedConnection"]

# The share of `send_timeout` in which a silent server is noticed. The rest remains to connect again.
_NOTICE = 0.6


class _Endings:
    """The tasks that end attempts and connections of one supervised connection."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, task: asyncio.Task[None] | None) -> None:
        """Hold a task that is ending."""
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self, task: asyncio.Task[None] | None, wire: WireProtocol | None) -> asyncio.Task[None]:
        """Close a connection when a task has ended."""
        closing = asyncio.get_running_loop().create_task(
            self._close(task, wire),
            name=f"channels_asyncq closing {self._name}",
            context=contextvars.Context(),
        )
        self.keep(closing)
        return closing

    @staticmethod
    async def _close(task: asyncio.Task[None] | None, wire: WireProtocol | None) -> None:
        if task is not None:
            await asyncio.wait([task])
        if wire is not None:
            await wire.close()

    async def wait(self) -> None:
        """Return when all have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Let all end now."""
        for task in self._tasks:
            task.cancel()


class SupervisedConnection:
    """
    One connection that is made again whenever it is lost.

    `wire` is set while it is up: connected, and `owner.set_up(wire)` done. There is a task only while
    connecting.

    An outage begins with a loss. It ends with an answer to something that was sent, not with a connection: a
    server may accept each connection and never answer. Where nothing waits for an answer, the replies to
    `set_up(wire)` must do. An owner that does not resend has asked all it wants in `set_up(wire)`.

    state   | wire | downtime | a send     | event: next state
    --------|------|----------|------------|------------------------------------------------------------------
    up      | yes  | none     | is written | loss: waiting
    waiting | no   | running  | waits      | connection: trial, or up if nothing waits for an answer; timer:
            |      |          |            | overdue, or extended if the loop was blocked
    trial   | yes  | running  | is written | answer: up; loss: waiting, and the timer runs on, but overdue if it
            |      |          |            | was extended; timer: overdue, and the connection is given up, or
            |      |          |            | extended while bytes move, or once if the loop was blocked
    overdue | no   | overdue  | fails      | connection: up, or refused if the last one was given up for an answer
            |      |          |            | of the server
    refused | yes  | overdue  | is written | `mark_healthy()`: up; loss: overdue
    resting | no   | none     | waits      | `start()`: waiting, as at the beginning
    closed  | no   | closed   | fails      | none

    A connection that was given up stays for as long as it has commands to answer. Sends wait meanwhile, whatever
    the state: see `ConnectionOwner.on_refusing()`. Its end is a loss.

    The state is `wire` together with the phase of the downtime (running includes extended). `is_refusing` is
    independent of it: from `give_up()` to `mark_healthy()`, in waiting and trial too, an answer does not end the
    outage.

    Several attempts in a row that fail for a reason that waiting cannot mend, to a host that never served, make
    it overdue at once. Overdue, everything that waits or is in flight without a connection fails, and so does
    everything that a connection leaves in flight. The timer is set at the loss, to `send_timeout`. A connection
    begins as waiting, or as overdue if the process knows that the host is out.
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
        self._name = name
        self._address = connector.address
        self._send_timeout = options.send_timeout
        self._owner = owner
        self._resends = resends
        self._outage = outage = outage or Outage()
        self._downtime = Downtime(self, outage, connector.address, options.send_timeout)
        self._attempts = Attempts(
            connector,
            name,
            self,
            owner,
            self._downtime,
            outage,
            messages=messages,
            reply_timeout=options.send_timeout * _NOTICE,
        )
        self._idle = IdleKeeper()
        self._waiters = Waiters()
        # Tasks that ask whether it is there, and do not wait for the next attempt.
        self._askers = Waiters()
        self._endings = _Endings(f"{name} to {connector.address}")
        # Replies of the present connection to its set-up.
        self._replies_to_set_up = 0
        self.wire: WireProtocol | None = None
        self.reconnects = 0
        #: When it was made again last, in seconds since 1970; 0 for never.
        self.reconnected_at = 0.0
        #: Whether it was up since it was made, or since `rest()`.
        self.was_up = False
        #: Whether the last connection was given up for an answer of the server.
        self.is_refusing = False

    @property
    def reason(self) -> str:
        """Why it is not in service; empty while it is."""
        return self._downtime.reason

    @property
    def fault(self) -> str:
        """Why nothing waits for it any more, or why it was never up; empty if it is up, may come up or rests."""
        if self._downtime.phase is Phase.CLOSED or self.is_resting:
            return ""
        if self.is_overdue:
            return self.reason if self.is_refusing or not self._is_usable else ""
        return "" if self.was_up else self.reason

    @property
    def _is_usable(self) -> bool:
        return self.wire is not None and not self.wire.is_lost

    def explain(self, reason: str) -> None:
        """Note what its set-up waits for, while that lasts."""
        self._downtime.reason = reason

    # Up and down

    def start(self) -> None:
        """Begin connecting, unless that is under way, done, or the connection is closed."""
        self._start(self._send_timeout)

    def _start(self, seconds: float) -> None:
        """Begin connecting, and if this begins a downtime, wait for at most `seconds`."""
        phase = self._downtime.phase
        if phase is Phase.CLOSED or self.wire is not None or self._attempts.is_under_way:
            return
        if phase is Phase.NONE:
            self._downtime.begin(seconds, is_first=not self.was_up)
        self._attempts.start(is_first=not self.was_up)

    def use(self, wire: WireProtocol) -> None:
        """Use a connection that is set up."""
        self._replies_to_set_up = wire.replies
        is_asked = self._resends and (bool(self._waiters) or self._owner.is_awaited)
        wire.keeps_unanswered = self._resends
        self.wire = wire
        self._owner.on_up(wire)
        if not self.is_refusing:
            self._downtime.serve()
            if self._downtime.is_overdue or not is_asked:
                self._downtime.end()
        if self.was_up:
            self.reconnects += 1
            self.reconnected_at = time_ns() / 1e9
            _log_restored(self._name, self._address)
        self.was_up = True
        self._idle.start(wire)
        self._waiters.release()
        self._askers.release()
        self._owner.on_change()

    def mark_healthy(self) -> None:
        """End the outage: the connection is up, and the server executes commands."""
        self.is_refusing = False
        self._attempts.reset_delay()
        self._downtime.serve()
        self._downtime.end()

    def give_up(self, wire: WireProtocol, reason: str) -> None:
        """
        End a connection whose server cannot serve, when it has answered everything.

        The outage lasts until `mark_healthy()`.
        """
        if wire is not self.wire or wire.is_retired:
            return  # a command that was resent names its first connection: it is sent again, and refused here
        self._attempts.lengthen_delay()
        self.is_refusing = True
        self._downtime.reason = reason
        self._owner.on_refusing()
        wire.retire(ConnectionAbortedError(reason))

    def on_lost(self, wire: WireProtocol, error: Exception | None) -> None:
        """Note that a connection has ended, and begin to make the next one."""
        self._attempts.forget(wire)
        if self.wire is not wire:
            return
        downtime = self._downtime
        self.wire = None
        self._idle.stop()
        self._idle.learn(error)
        self._owner.on_lost(wire.unanswered)
        if self._has_answered(wire):
            self._attempts.reset_delay()
            downtime.end()
        downtime.reason = str(error) or type(error).__name__
        if downtime.is_running:
            self._end_trial()
        if downtime.error is not None:
            # The connection came and went within the outage: waiting is over already.
            self._owner.on_overdue(downtime.error)
            downtime.report(monotonic())
        # The silence of a server is noticed after a part of the time.
        share = 1 - _NOTICE if isinstance(error, TimeoutError) else 1
        self._start(self._send_timeout * share)
        self._owner.on_change()
        _log_lost(self._outage, self._address, self.reason, is_idle=isinstance(error, ClosedIdle))

    def on_silent(self, wire: WireProtocol) -> None:
        """Note that nothing has been answered for a while, although something was asked."""
        if wire is self.wire:
            self._owner.on_silent()

    # The judgement of a connection during an outage

    def _has_answered(self, wire: WireProtocol) -> bool:
        """Tell whether the connection has answered a command since it is up. Asked when a downtime may end."""
        return wire.replies > self._replies_to_set_up and not self.is_refusing

    def _end_trial(self) -> None:
        """Judge a connection that ended before the outage did."""
        if not (self._waiters or self._owner.is_awaited or self.is_refusing):
            self._downtime.end()  # nothing waits for an answer any more: the connection was as good as up
        elif self._downtime.phase is Phase.EXTENDED:
            self._downtime.give_up()

    def on_time_over(self, grace: float) -> None:
        """End, extend or give up the downtime: its time is over."""
        wire = self.wire
        is_asked = False
        if wire is not None:
            is_asked = wire.pending > 0
            if self._has_answered(wire) or not (is_asked or self.is_refusing):
                self._downtime.end()
                return
            grace = max(grace, wire.remaining_wait())
        if grace > 0:
            self._downtime.extend(grace)
            return
        if is_asked and not self.is_refusing:
            self._downtime.reason = (
                f"it accepted connections, and answered nothing within {self._send_timeout:g} s"
            )
        self._downtime.expire()
        if wire is not None and is_asked:
            wire.abort(TimeoutError(self.reason))

    def on_overdue(self, error: Exception) -> None:
        """Fail everything that waits for the connection."""
        self._waiters.fail(error)
        self._askers.fail(error)
        self._owner.on_overdue(error)

    def on_refused(self) -> None:
        """Let those know that do not wait for the next attempt."""
        self._askers.release()

    # For everything that needs the connection

    def raise_if_overdue(self) -> None:
        """Raise the error with which sends fail now, if waiting is over."""
        downtime = self._downtime
        if downtime.error is None:
            return
        if downtime.phase is Phase.CLOSED or self.wire is None or self.wire.is_lost:
            raise downtime.caller_error()

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
            await self._waiters.wait()
        return wire

    async def up_at_once(self) -> None:
        """
        Return when the connection is up, and do not wait for another attempt if the last one was refused.

        Raises:
            LayerUnavailable: the last attempt made no connection, for a reason that is known; or as `up()`.
            ImproperlyConfigured: as `up()`.
        """
        while not self._is_usable:
            self.start()
            self.raise_if_overdue()
            if self._attempts.refusal:
                raise LayerUnavailable(self._address, self._attempts.refusal)
            await self._askers.wait()

    def look_again(self) -> None:
        """Let those look again that wait for it: they may wait for another one by now."""
        self._waiters.release()

    async def first_up(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """
        Return when the connection was up once, however long that takes, or when it is not wanted any more.

        Args:
            is_wanted: is asked at the beginning, at each change, and at `look_again()`.

        Raises:
            ImproperlyConfigured: the server holds another layout of this namespace.
            LayerClosed: the connection was closed.
        """
        while not self.was_up and is_wanted():
            error = self._downtime.error
            if error is not None and not isinstance(error, LayerUnavailable):
                raise copy_error(error)
            with contextlib.suppress(LayerUnavailable):
                self.start()
                await self._waiters.wait()

    @property
    def is_overdue(self) -> bool:
        """Whether `send_timeout` seconds have passed since it was lost: nothing waits for it any more."""
        return self._downtime.is_overdue

    @property
    def is_busy(self) -> bool:
        """Whether anything has no reply yet, or waits for the connection."""
        wire = self.wire
        return bool(self._waiters or self._askers or (wire is not None and wire.pending))

    @property
    def is_resting(self) -> bool:
        """Whether there is no connection, and none is being made."""
        return self.wire is None and self._attempts.is_stopped

    def transports(self) -> list[asyncio.BaseTransport]:
        """Return the transports of its connections, including those that are being set up or closed."""
        return self._attempts.transports()

    # The end

    def rest(self) -> Awaitable[None]:
        """
        End the connection, or the attempts at one, until the next `start()`. Not for one that is busy.

        The result only waits for the end: a new connection may be made meanwhile, and cancelling changes nothing.
        """
        self._downtime.end()
        self._idle.stop()
        task = self._attempts.stop()
        wire, self.wire = self.wire, None
        self.was_up = self.is_refusing = False
        self._attempts.reset_delay()
        self._downtime.reason = "closed until it is needed"
        self._owner.on_lost([])
        return asyncio.shield(self._endings.close(task, wire))

    def _end(self) -> WireProtocol | None:
        """Fail everything that waits, attempt nothing more, and return the connection, which is to be ended."""
        self._idle.stop()
        self._downtime.close()
        self._endings.keep(self._attempts.stop())
        wire, self.wire = self.wire, None
        if wire is not None:
            wire.keeps_unanswered = False  # nothing sends it again
        return wire

    async def close(self) -> None:
        """End the connection and the attempts at one. Safe to call twice."""
        wire = self._end()
        if wire is not None:
            await wire.close()
        await self._endings.wait()

    def abort(self) -> None:
        """End the connection and the attempts at one now, after a close() that was cancelled."""
        self._endings.cancel()
        wire = self._end()
        if wire is not None:
            wire.abort(ConnectionAbortedError("closing was cancelled"))


def _log_restored(name: str, address: str) -> None:
    text = "%(connection)s to %(address)s are connected again"
    record(CONNECTION, logging.INFO, "connection.restored", text, connection=name, address=address)


def _log_lost(outage: Outage, address: str, reason: str, *, is_idle: bool) -> None:
    outage.faults.warn(
        CONNECTION,
        "connection.lost",
        "idle" if is_idle else reason,
        "lost a connection to %(address)s: %(reason)s",
        level=logging.INFO if is_idle else logging.WARNING,
        address=address,
        reason=reason,
    )
