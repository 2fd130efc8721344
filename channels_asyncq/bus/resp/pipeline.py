"""The commands of one connection: written and answered in order, bounded in number and bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextvars import Context
from itertools import zip_longest
from typing import Any

from hiredis import Reader, ReplyError, pack_command

from .capacity import CapacityQueue
from .deadline import Deadline
from .pacing import CALLS_PER_WRITE, Pace, pace_of
from .replies import (
    MORE,
    InFlight,
    OpenCommand,
    ReplySink,
    Unsubscription,
    fail,
    not_sent,
    refusal,
    unexpected,
)

__all__ = ["Pipeline"]

# A command when it is packed: its bytes, the calls that share it, and whether it was written before.
_Packed = tuple[bytes, int, bool]


class Pipeline:
    """
    The commands of one connection, from the call to the reply. It belongs to a `WireProtocol`.

    state   | a call         | commands that were called             | event: next state
    --------|----------------|---------------------------------------|------------------------------------------
    paused  | is kept        | are kept: there is no transport yet,  | `resume_writing()`: open; `close()`;
            |                | or its buffer is full                 | `stop()`
    open    | is written     | are written, now or at the end of the | `pause_writing()`: paused; `close()`:
            | or kept        | loop iteration, as `pace_of()` says   | closing; `stop()`: stopped
    closing | fails: NotSent | as in paused or open                  | `stop()`: stopped
    stopped | fails: NotSent | are kept for `finish()`               | none: `finish()` returns them

    Replies are matched, in order, to a FIFO of futures and reply sinks.
    """

    def __init__(self, deadline: Deadline, context: Context, *, max_pending: int, max_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._deadline = deadline
        self._max_pending = max_pending
        self._max_bytes = max_bytes
        # None while nothing can be written: not connected yet, buffer full, ended.
        self._transport: asyncio.Transport | None = None
        # Why no command is accepted any more.
        self._refusal: Exception | None = None
        # The FIFO: a future or sink for each unanswered command. The first ones were written; they are in
        # `_written` too, and the others in `_outgoing`.
        self._unanswered: deque[asyncio.Future[Any] | ReplySink] = deque()
        self._written: deque[_Packed] = deque()
        self._outgoing: list[_Packed | OpenCommand] = []
        # Calls since the last write, where an open command counts as one until it is sealed; and calls that the
        # last read answered.
        self._calls = 0
        self._answered = 0
        self._is_flush_scheduled = False
        # Calls that are not answered; an open command counts as the most calls that it may grow to.
        self._pending = 0
        self._queue = CapacityQueue(self, context)
        # Is done when nothing is unanswered, for a connection that is being closed.
        self._idle: asyncio.Future[None] | None = None
        #: Whether another command may be called without waiting. No, while tasks wait in `wait_for_capacity()`.
        self.has_capacity = False
        #: Bytes of the unanswered commands; an open command counts as the most bytes that it may grow to.
        self.unanswered_bytes = 0
        #: The number of commands that were answered.
        self.replies = 0

    @property
    def pending(self) -> int:
        """The number of commands that are not answered, written or not."""
        return len(self._unanswered)

    @property
    def is_closed(self) -> bool:
        """Whether no command is accepted any more."""
        return self._refusal is not None

    # Calls

    def call(self, *args: bytes | str | int, reply: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """
        Send one command; the result of the returned future is the reply.

        With `reply`, that future is used and returned: an owner that resends finds it again in `InFlight`.

        An error reply is raised as `hiredis.ReplyError`; errors inside an array are left in it. If the
        connection ends first, the future raises `NotSent` or `NoAnswer`. Cancelling it does not unsend the
        command: the reply is awaited and thrown away. An error that is never retrieved is not logged.

        Raises:
            TypeError: an argument is of another type. Nothing was sent.
        """
        packed: bytes = pack_command(args)  # type: ignore[arg-type]  # its stub says: a tuple of one
        future: asyncio.Future[Any] = asyncio.Future(loop=self._loop) if reply is None else reply
        if self._refusal is not None:
            fail(future, not_sent(self._refusal))
            return future
        self._outgoing.append((packed, 1, False))
        self._unanswered.append(future)
        # As in call_open(), without a function call for each command.
        self._calls += 1
        self._pending += 1
        self.unanswered_bytes += len(packed)
        if self._pending >= self._max_pending or self.unanswered_bytes >= self._max_bytes:
            self.has_capacity = False
        if self._calls >= CALLS_PER_WRITE or not self._is_flush_scheduled:
            self._write_or_schedule()
        return future

    def call_open(self, command: OpenCommand) -> None:
        """
        Send a command that may grow until it is packed and written.

        It gets its reply or an error; the error within this call if the connection has ended.
        """
        if self._refusal is not None:
            fail(command, not_sent(self._refusal))
            return
        self._outgoing.append(command)
        self._unanswered.append(command)
        self._calls += 1
        self._pending += command.count
        self.unanswered_bytes += command.size
        if self._pending >= self._max_pending or self.unanswered_bytes >= self._max_bytes:
            self.has_capacity = False
        self._write_or_schedule()

    def seal(self, calls: int) -> None:
        """Note that an open command stands for `calls` calls now and does not grow further."""
        self._calls += calls - 1
        self._write_or_schedule()

    def resend(self, in_flight: Iterable[InFlight]) -> None:
        """
        Send the unanswered commands of an earlier connection, in their order, behind the commands called so far.

        Their futures live on. An error reply to a command that had been written before is raised as `NoAnswer`:
        it is not known whether the server executed the command then. If this connection has ended, or is being
        closed, the futures raise `NotSent`, or `NoAnswer` if they had been written.
        """
        for command in in_flight:
            packed, future, is_written, count = command
            if future.done():
                continue
            if self._refusal is not None:
                command.fail(self._refusal)
                continue
            self._outgoing.append((packed, count, is_written))
            self._unanswered.append(future)
            self._pending += count
            self.unanswered_bytes += len(packed)
        self.has_capacity = not self._queue and self.free_calls() > 0
        self._write()

    # Writes

    def resume_writing(self, transport: asyncio.Transport) -> None:
        """Write to the transport, which is new, or has room in its buffer again."""
        self._transport = transport
        if self._outgoing and not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush, context=self._context)
        self.wake()

    def pause_writing(self) -> None:
        """Write nothing until `resume_writing()`."""
        self._transport = None
        self.has_capacity = False

    def _write_or_schedule(self) -> None:
        pace = pace_of(
            self._calls,
            len(self._unanswered),
            self._answered,
            is_scheduled=self._is_flush_scheduled,
            is_paused=self._transport is None,
        )
        if pace is Pace.WRITE:
            self._write()
        elif pace is Pace.SCHEDULE:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush, context=self._context)

    def _flush(self) -> None:
        """Write the commands of this loop iteration."""
        self._is_flush_scheduled = False
        self._write()

    def _write(self) -> None:
        """Pack and write the commands called since the last write, unless the transport takes nothing now."""
        outgoing = self._outgoing
        transport = self._transport
        # A transport that is closing would drop the bytes. connection_lost() follows, and these were not sent.
        if not outgoing or transport is None or transport.is_closing():
            return
        self._outgoing = []
        self._calls = 0
        written = self._written
        parts = []
        for command in outgoing:
            if isinstance(command, tuple):
                packed = command[0]
                written.append(command)
            else:
                size, most = command.size, command.count
                packed = command.pack()
                count = command.count
                self._pending += count - most
                self.unanswered_bytes += len(packed) - size
                written.append((packed, count, False))
            parts.append(packed)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._deadline.note_write(self.replies + len(written), len(data), self.replies)
        # It may call pause_writing().
        transport.write(data)
        if not self.has_capacity:
            # Open commands have given back the capacity that they did not use.
            self.wake()

    # Replies

    def answer_all(self, reader: Reader) -> None:
        """
        Give the replies in the reader to the commands.

        Raises:
            ConnectionAbortedError: there was a reply and no command without one.
            hiredis.ProtocolError: the bytes are not RESP.
        """
        gets = reader.gets
        unanswered = self._unanswered
        written = self._written
        answered = 0
        try:
            while (reply := gets()) is not MORE:
                if not written:
                    raise unexpected(reply)
                # As in answer(), without a function call for each reply.
                self.replies += 1
                packed, count, is_resent = written.popleft()
                answered += count
                self._pending -= count
                self.unanswered_bytes -= len(packed)
                future = unanswered.popleft()
                if not future.done():
                    if isinstance(reply, ReplyError):
                        resent = InFlight(packed, future, True, count) if is_resent else None
                        fail(future, refusal(reply, resent=resent))
                    else:
                        future.set_result(reply)
        finally:
            self._answered = answered
            if not self.has_capacity:
                self.wake()
            if self._idle is not None and not unanswered and not self._idle.done():
                self._idle.set_result(None)

    def answer(self, reply: Any) -> None:
        """
        Give a reply to the oldest command of a subscriber's connection. The caller calls `wake()` afterwards.

        Raises:
            ConnectionAbortedError: there is no command without a reply, or the oldest one cannot have this reply.
        """
        if not self._written:
            raise unexpected(reply)
        oldest = self._unanswered[0]
        if type(oldest) is Unsubscription and not oldest.is_answered_by(reply):
            return
        self.replies += 1
        packed, count, is_resent = self._written.popleft()
        self._pending -= count
        self.unanswered_bytes -= len(packed)
        future = self._unanswered.popleft()
        if not future.done():
            if isinstance(reply, ReplyError):
                resent = InFlight(packed, future, True, count) if is_resent else None
                fail(future, refusal(reply, resent=resent))
            else:
                future.set_result(reply)
        if self._idle is not None and not self._unanswered and not self._idle.done():
            self._idle.set_result(None)

    # Capacity

    async def wait_for_capacity(self) -> None:
        """
        Wait until another command may be called, first come, first served. Then call it before awaiting anything.

        Cancelling gives the place to the next in the queue.

        Raises:
            NotSent: the connection ended, or is being closed.
        """
        if not self.has_capacity and self._refusal is None:
            try:
                await self._queue.wait()
            finally:
                self.has_capacity = not self._queue and self.free_calls() > 0
        if self._refusal is not None:
            raise not_sent(self._refusal)

    def free_calls(self) -> int:
        """Return how many more calls are accepted now."""
        if self._transport is None or self.unanswered_bytes >= self._max_bytes:
            return 0
        return max(0, self._max_pending - self._pending)

    def wake(self) -> None:
        """Wake a waiting task for each call that is free. Each looks again when it runs: one may call often."""
        free = self.free_calls()
        self.has_capacity = free > 0 and not self._queue
        if free:
            self._queue.wake(free)

    # The end

    def when_idle(self) -> asyncio.Future[None]:
        """Return a future that is done when a reply leaves nothing unanswered."""
        if self._idle is None:
            self._idle = self._loop.create_future()
        return self._idle

    def close(self) -> None:
        """Accept no further command. Those that were called are still written and answered."""
        if self._refusal is None:
            self._refusal = ConnectionAbortedError("the connection is closed")
        self._queue.wake_all()

    def stop(self, error: Exception | None) -> None:
        """Write nothing more and accept no further command, because of `error`, or because of close()."""
        self._transport = None
        self._refusal = error or self._refusal
        self.has_capacity = False

    def finish(self) -> list[InFlight]:
        """Return the commands that have no reply, in order, after the end of the connection."""
        assert self._refusal is not None
        written = len(self._written)
        for command in self._outgoing:
            packed = command if isinstance(command, tuple) else (command.pack(), command.count, False)
            self._written.append(packed)
        in_flight = []
        # One of the two is missing if a signal's handler raised while a command was called or written.
        for number, (future, noted) in enumerate(zip_longest(self._unanswered, self._written)):
            if future is None or future.done():
                continue
            if noted is None:
                fail(future, not_sent(self._refusal))
            else:
                data, calls, is_resent = noted
                in_flight.append(InFlight(data, future, is_resent or number < written, calls))
        self._unanswered.clear()
        self._written.clear()
        self._outgoing.clear()
        self.unanswered_bytes = self._pending = 0
        self._queue.wake_all()
        return in_flight
