"""
One connection to a Redis server: RESP2 over hiredis, as an `asyncio.Protocol`.

What is called while nothing is unanswered is written at once, unless several calls were answered together just
before; all else of one turn of the loop in one `write`. Replies are matched, in order, to a FIFO of futures.
Nothing here knows hosts, topics or scripts, and nothing here is a task: a connection is callbacks, futures and at
most one timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextvars import Context
from itertools import zip_longest
from typing import Any, Protocol, cast

from hiredis import Reader, ReplyError, pack_command

from ...clock import monotonic
from ...slices import SLICE
from .deadline import Deadline
from .pacing import CALLS_PER_WRITE, Pace, pace_of
from .replies import InFlight, NoAnswer, NotSent, OpenCommand, ReplySink, fail, no_answer, not_sent, refusal

__all__ = [
    "ClosedIdle",
    "InFlight",
    "MessageHandler",
    "NoAnswer",
    "NotSent",
    "OpenCommand",
    "ReplySink",
    "WireOwner",
    "WireProtocol",
    "fail",
]

# What the reader answers when it needs more bytes. None and False are legitimate replies.
_MORE = object()


# Seconds for which messages and replies are handed on before the loop gets a turn.
_READ_SECONDS = SLICE
# A connection that was used within these seconds was not closed for being idle.
_IDLE = 1.0
# Replies on a subscriber's connection after which their callbacks get the turn.
_MOST_ANSWERED = 512


class ClosedIdle(ConnectionResetError):
    """The server closed a connection for commands on which nothing had been asked for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the server closed the connection, which was idle for {seconds:.0f} s")
        self.seconds = seconds


class MessageHandler(Protocol):
    """Receives the messages of a subscriber's connection."""

    def on_message(self, topic: bytes, payload: bytes) -> bool:
        """Take a message and return True, or return False to hold it. It must not raise."""


class WireOwner(Protocol):
    """The owner of a connection, which is told of its end."""

    def on_lost(self, wire: WireProtocol, error: Exception | None) -> None:
        """Note that the connection has ended. `error` is None only if it was closed on request."""


class _Discarding:
    """The message handler of a connection that is being closed."""

    def on_message(self, topic: bytes, payload: bytes) -> bool:
        return True


class _Waiter:
    """A place in the queue of `wait_for_capacity()`. It keeps its place when it is woken and finds no room."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future


class WireProtocol(asyncio.Protocol):
    """
    Commands out, replies and messages in, until the connection ends.

    With `messages` this is a subscriber's connection: `message` and `smessage` arrays go to
    `messages.on_message(topic, payload)`, and everything else, confirmations of subscriptions included, answers
    the FIFO. `SUBSCRIBE` and its relatives are therefore called with one topic each.

    `on_message()` returns `True` when it took the message. `False` holds it: reading stops, nothing further is
    parsed, and `resume()` offers the same message again. `on_message()` must not raise; if it does, the
    connection ends with that error.

    `owner.on_lost(wire, error)` is called exactly once, after every future is done, and never from inside a
    method that the owner calls. `error` is `None` only when `close()` was asked for and succeeded. If the
    connection ends while a message is held or messages wait their turn, these are delivered first and the end
    is told after them, so that a successor's messages cannot overtake; `timeout` bounds that too.

    Args:
        owner: is told when the connection ends.
        messages: receives the messages of a subscriber's connection.
        timeout: seconds after which the oldest written command must be answered; else the connection is given
        up.
            Time in which reading was stopped by our own side does not count, nor time in which bytes of the
            command still leave or bytes of its reply arrive: they may be many, and the link slow.
        max_pending: unanswered commands beyond which `wait_for_capacity()` waits.
        max_bytes: bytes of unanswered commands beyond which `wait_for_capacity()` waits.
    """

    def __init__(
        self,
        *,
        owner: WireOwner,
        messages: MessageHandler | None = None,
        timeout: float = 5.0,
        max_pending: int = 1024,
        max_bytes: int = 16 * 2**20,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        # Timers and flushes run in an empty context: they belong to the connection, not to whoever called
        # first. One for each connection, because two threads cannot be in one context at a time.
        self._context = Context()
        self._transport: asyncio.Transport | None = None
        reader = Reader(notEnoughData=_MORE)
        self._feed = reader.feed
        self._gets = reader.gets
        self._reader = reader
        self._owner = owner
        self._messages = messages
        self._timeout = timeout
        self._max_pending = max_pending
        self._max_bytes = max_bytes

        # Every unanswered command; and, of those that were written, and of those that were not, the bytes, how
        # many calls they are, and whether an earlier connection had written them.
        self._unanswered: deque[asyncio.Future[Any] | ReplySink] = deque()
        self._written: deque[tuple[bytes, int, bool]] = deque()
        self._outgoing: list[tuple[bytes, int, bool] | OpenCommand] = []
        # Calls since the last write, an open command for one; and those that are not answered, or may be called.
        self._calls = 0
        self._pending = 0
        # Calls that were answered by what was read last.
        self._answered = 0
        self._flush_scheduled = False
        # True until connection_made(): nothing can be written before there is a transport.
        self._write_paused = True
        self._waiters: deque[_Waiter] = deque()
        self._wake_scheduled = False

        self._deadline = Deadline(self, timeout, self._context)
        # Delivers what was received, after the end of the connection, for no longer than the timeout.
        self._drain_timer: asyncio.TimerHandle | None = None

        # A stalled reader parses nothing: a message is held, or the loop gets a turn. The transport stays
        # paused until the reader is through.
        self._is_stalled = False
        self._read_paused = False
        self._held: tuple[bytes, bytes] | None = None
        self._continuation: asyncio.Handle | None = None

        # connection_lost() or abort() sets is_lost; connection_lost() alone sets _is_disconnected. A
        # connection that is disconnected and not aborted still delivers what it received; _finish() is the
        # end.
        self._closing = False
        self._is_disconnected = False
        self._is_aborted = False
        self._error: Exception | None = None
        self._is_finished = False
        self._idle: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()

        #: The connection has ended, or was given up: nothing can be called any more.
        self.is_lost = False
        #: May another command be called without waiting? Not while others wait in `wait_for_capacity()`.
        self.has_capacity = False
        #: Set by an owner who sends again what is unanswered when the connection ends: it is then in
        #: `unanswered`, in order, when on_lost() is called, and its futures are still pending.
        self.keeps_unanswered = False
        self.unanswered: list[InFlight] = []
        #: Packed bytes of the commands that are not answered.
        self.unanswered_bytes = 0
        #: Calls of transport.write(), and the commands they carried.
        self.writes = 0
        self.commands = 0
        #: Replies matched to commands, and messages that were taken.
        self.replies = 0
        self.messages = 0

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport, from `connection_made()` on."""
        return self._transport

    @property
    def arrived(self) -> tuple[int, int]:
        """How many messages were taken, and the bytes of the one that has not arrived whole."""
        return self.messages, self._reader.len() if self._reader.has_data() else 0

    @property
    def is_stalled(self) -> bool:
        """Whether what arrives is left unread for now, by our own side."""
        return self._is_stalled

    @property
    def pending(self) -> int:
        """Commands that are not answered, written or not."""
        return len(self._unanswered)

    # Out

    def call(self, *args: bytes | str | int, reply: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """
        Send one command; the result of the returned future is the reply.

        With `reply`, that future is used and returned: an owner that resends finds it again in `unanswered`.

        An error reply is raised as `hiredis.ReplyError`; errors inside an array are left in it. If the
        connection ends first, the future raises `NotSent` or `NoAnswer`. Cancelling it does not unsend the
        command: the reply is awaited and thrown away. A future that nobody awaits complains about nothing.

        Raises:
            TypeError: an argument is of another type. Nothing was sent.
        """
        packed: bytes = pack_command(args)  # type: ignore[arg-type]  # its stub says: a tuple of one
        future: asyncio.Future[Any] = asyncio.Future(loop=self._loop) if reply is None else reply
        if self.is_lost or self._closing:
            fail(future, not_sent(self._error))
            return future
        self._outgoing.append((packed, 1, False))
        self._unanswered.append(future)
        # As call_open(), without a call for each command.
        self._calls += 1
        self._pending += 1
        self.unanswered_bytes += len(packed)
        if self._pending >= self._max_pending or self.unanswered_bytes >= self._max_bytes:
            self.has_capacity = False
        if self._calls >= CALLS_PER_WRITE or not self._flush_scheduled:
            self._leave()
        return future

    def call_open(self, command: OpenCommand) -> None:
        """
        Send a command that may grow until it is packed and written.

        It is told what comes of it, within this call if the connection has ended.
        """
        if self.is_lost or self._closing:
            fail(command, not_sent(self._error))
            return
        self._outgoing.append(command)
        self._unanswered.append(command)
        self._calls += 1
        self._pending += command.count
        self.unanswered_bytes += command.size
        if self._pending >= self._max_pending or self.unanswered_bytes >= self._max_bytes:
            self.has_capacity = False
        self._leave()

    def seal(self, calls: int) -> None:
        """Note that an open command stands for `calls` calls now and does not grow further."""
        self._calls += calls - 1
        self._leave()

    def _leave(self) -> None:
        """Write what was called, now or at the end of this turn of the loop."""
        pace = pace_of(
            self._calls,
            len(self._unanswered),
            self._answered,
            is_scheduled=self._flush_scheduled,
            is_paused=self._write_paused,
        )
        if pace is Pace.WRITE:
            self._write()
        elif pace is Pace.SCHEDULE:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush, context=self._context)

    def resend(self, in_flight: Iterable[InFlight]) -> None:
        """
        Send the unanswered commands of an earlier connection, in their order, behind what was called so far.

        Their futures live on. An error reply to a command that had been written before is raised as `NoAnswer`:
        it is not known whether the server executed the command then. If this connection has ended, or is being
        closed, the futures raise `NotSent`, or `NoAnswer` if they had been written.
        """
        is_ending = self._is_ending()
        for packed, future, is_written, count in in_flight:
            if future.done():
                continue
            if is_ending:
                fail(future, no_answer(self._error) if is_written else not_sent(self._error))
                continue
            self._outgoing.append((packed, count, is_written))
            self._unanswered.append(future)
            self._pending += count
            self.unanswered_bytes += len(packed)
        self._look_for_capacity()
        self._write()

    async def wait_for_capacity(self) -> None:
        """
        Wait until another command may be called, first come, first served. Call it without awaiting in
        between.

        Cancelling gives the place to the next in the queue.

        Raises:
            NotSent: the connection ended, or is being closed.
        """
        if self._is_ending():
            raise not_sent(self._error)
        if self.has_capacity:
            return
        waiter = _Waiter(self._loop.create_future())
        self._waiters.append(waiter)
        self.has_capacity = False
        try:
            await waiter.future
            # Those woken before us may have called much: then they, and we, keep our places in the queue.
            while not self._is_ending() and (self._waiters[0] is not waiter or not self._is_below_limits()):
                waiter.future = self._loop.create_future()
                await waiter.future
        finally:
            if self._waiters and self._waiters[0] is waiter:
                self._waiters.popleft()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            # Whether this one calls or not: look again once it had its turn, lest the rest wait for ever.
            self._wake_soon()
            self._look_for_capacity()
        if self._is_ending():
            raise not_sent(self._error)

    def _is_ending(self) -> bool:
        return self.is_lost or self._closing

    def _is_below_limits(self) -> bool:
        return (
            self._pending < self._max_pending
            and self.unanswered_bytes < self._max_bytes
            and not self._write_paused
            and not self.is_lost
        )

    def _look_for_capacity(self) -> None:
        self.has_capacity = not self._waiters and self._is_below_limits()

    def _wake_soon(self) -> None:
        if self._waiters and not self._wake_scheduled:
            self._wake_scheduled = True
            self._loop.call_soon(self._wake, context=self._context)

    def _wake(self) -> None:
        """Wake as many as there are free places; each looks itself when it runs, as one may take several."""
        self._wake_scheduled = False
        self._look_for_capacity()
        if not self._is_below_limits():
            return
        free = self._max_pending - self._pending
        for waiter in self._waiters:
            if not free:
                break
            # One that is already woken and has not run yet will take a place as well.
            if not waiter.future.done():
                waiter.future.set_result(None)
            free -= 1

    def _flush(self) -> None:
        """Write what was called in this turn of the loop."""
        self._flush_scheduled = False
        self._write()

    def _write(self) -> None:
        """Pack and write what was called since the last write, unless the transport takes nothing now."""
        outgoing = self._outgoing
        if not outgoing or self._write_paused or self.is_lost:
            return
        assert self._transport is not None
        if self._transport.is_closing():
            # It would drop what it is given. connection_lost() follows, and these commands were not sent.
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
        self.writes += 1
        self.commands += len(parts)
        self._deadline.note_write(self.commands, len(data), self.replies)
        # It may call pause_writing().
        self._transport.write(data)
        if not self.has_capacity:
            # Open commands have given up the places that they did not need.
            self._wake()

    def remaining_wait(self) -> float:
        """
        Return for how many seconds to wait for the oldest unanswered command, because bytes of it moved; else 0.

        When they have passed, the connection itself has decided whether bytes still move.
        """
        return 0.0 if self.is_lost else self._deadline.remaining_wait()

    # In

    def data_received(self, data: bytes) -> None:
        self._feed(data)
        # A paused transport may still deliver what it had already read or decrypted.
        if self._is_stalled or self.is_lost:
            return
        if self._messages is None:
            self._read_replies()
        else:
            self._read_messages()

    def _read_replies(self) -> None:
        """Answer the FIFO from what is in the reader."""
        gets = self._gets
        unanswered = self._unanswered
        written = self._written
        answered = 0
        try:
            while (reply := gets()) is not _MORE:
                if not written:
                    self._abort_unexpected(reply)
                    break
                self.replies += 1
                packed, count, is_resent = written.popleft()
                answered += count
                self._pending -= count
                self.unanswered_bytes -= len(packed)
                future = unanswered.popleft()
                if not future.done():
                    if isinstance(reply, ReplyError):
                        fail(future, refusal(reply, is_resent=is_resent))
                    else:
                        future.set_result(reply)
        except Exception as exc:
            self.abort(exc)
        self._answered = answered
        if not self.has_capacity:
            self._wake()
        if self._idle is not None and not unanswered and not self._idle.done():
            self._idle.set_result(None)

    def _read_messages(self) -> None:
        """Deliver messages and answer the FIFO, until nothing is left, a message is held, or time is up."""
        gets = self._gets
        assert self._messages is not None
        on_message = self._messages.on_message
        count = answered = 0
        stop_at = monotonic() + _READ_SECONDS
        try:
            while (reply := gets()) is not _MORE:
                if type(reply) is list and reply and (reply[0] == b"message" or reply[0] == b"smessage"):
                    _, topic, payload = reply
                    if not on_message(topic, payload):
                        if self._is_aborted:
                            break
                        self._held = (topic, payload)
                        self._stall()
                        break
                    count += 1
                    if self._is_aborted:
                        break
                elif self._answer(reply):
                    answered += 1
                    if answered == _MOST_ANSWERED:
                        stop_at = 0.0
                else:
                    self._abort_unexpected(reply)
                    break
                if monotonic() > stop_at:
                    self._stall()
                    self._continuation = self._loop.call_soon(self._continue, context=self._context)
                    break
        except Exception as exc:
            self.abort(exc)
        self.messages += count
        if not self.has_capacity:
            self._wake()

    def _answer(self, reply: Any) -> bool:
        """Give a subscriber's reply to the oldest command. False: no command waits for one."""
        unanswered = self._unanswered
        if not self._written:
            return False
        self.replies += 1
        packed, count, is_resent = self._written.popleft()
        self._pending -= count
        self.unanswered_bytes -= len(packed)
        future = unanswered.popleft()
        if not future.done():
            if isinstance(reply, ReplyError):
                fail(future, refusal(reply, is_resent=is_resent))
            else:
                future.set_result(reply)
        if self._idle is not None and not unanswered and not self._idle.done():
            self._idle.set_result(None)
        return True

    def resume(self) -> None:
        """
        Offer the held message again, on the next turn of the loop, and go on reading if it is taken.

        Does nothing when no message is held or one is about to be offered, and therefore inside on_message.
        """
        if self._held is not None and self._continuation is None and not self._is_finished:
            self._continuation = self._loop.call_soon(self._continue, context=self._context)

    def resume_now(self) -> None:
        """
        Offer the held message again at once, and go on reading if it is taken. For an owner whom the loop called.

        The end of a connection that has ended meanwhile is told on the next turn, as ever.
        """
        if self._is_disconnected:
            self.resume()
        elif self._held is not None and self._continuation is None and not self._is_finished:
            self._continue()

    def _stall(self) -> None:
        self._is_stalled = True
        assert self._transport is not None
        if not self._read_paused and not self._is_disconnected and not self._transport.is_closing():
            self._read_paused = True
            self._transport.pause_reading()

    def _continue(self) -> None:
        """The reader's next turn: the held message if there is one, then the rest."""
        self._continuation = None
        assert self._messages is not None
        held, self._held = self._held, None
        if held is not None:
            try:
                taken = self._messages.on_message(*held)
            except Exception as exc:
                self.abort(exc)
                return
            if self._is_aborted:
                return
            if not taken:
                self._held = held
                return
            self.messages += 1
        self._is_stalled = False
        self._read_messages()
        if self._is_stalled or self._is_aborted:
            return
        if self._is_disconnected:
            self._finish()
        else:
            self._deadline.note_reading()
            assert self._transport is not None
            if self._read_paused and not self._transport.is_closing():
                self._read_paused = False
                self._transport.resume_reading()

    def _abort_unexpected(self, reply: object) -> None:
        text = repr(reply)
        if len(text) > 200:
            text = text[:200] + "..."
        self.abort(ConnectionAbortedError(f"the server sent what no command asked for: {text}"))

    # The life of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.resume_writing()

    def pause_writing(self) -> None:
        self._write_paused = True
        self.has_capacity = False

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._outgoing and not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush, context=self._context)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_disconnected = True
        self.is_lost = True
        self.has_capacity = False
        if self._error is None:
            if exc is not None:
                self._error = exc
            elif not self._closing or self._unanswered:
                self._error = self._end_of_server()
        if self._is_stalled and not self._is_aborted:
            # What was received is delivered before its end is told: _continue() comes back to _finish().
            self._deadline.stop()
            self._drain_timer = self._loop.call_later(self._timeout, self._finish, context=self._context)
        else:
            self._finish()

    def _end_of_server(self) -> ConnectionResetError:
        written_at = self._deadline.written_at
        idle = monotonic() - written_at
        if self._messages is None and written_at and not self._unanswered and idle >= _IDLE:
            return ClosedIdle(idle)
        return ConnectionResetError("the server closed the connection")

    def abort(self, exc: Exception) -> None:
        """
        End the connection now, because of `exc`. What was received and not yet delivered is dropped.

        The futures fail and `on_lost(exc)` is called on a later turn of the loop. Does nothing on a
        connection that has ended.
        """
        if self._is_aborted or self._is_finished:
            return
        self.is_lost = True
        self.has_capacity = False
        self._is_aborted = True
        if self._error is None:
            self._error = exc
        self._held = None
        if self._continuation is not None:
            self._continuation.cancel()
            self._continuation = None
        if self._is_disconnected or self._transport is None:
            self._loop.call_soon(self._finish, context=self._context)
        else:
            # connection_lost() follows.
            self._transport.abort()

    async def close(self) -> None:
        """
        Close the connection once everything called so far is written and answered, within `timeout` seconds
        in all; whatever takes longer is cut off. Messages that arrive, or are held, are dropped from now on.

        Safe to call twice. Cancelling it ends the connection at once.
        """
        if self._is_finished:
            return
        if self._transport is None:
            self.abort(ConnectionAbortedError("closed before it was connected"))
            return
        if not self._closing:
            self._closing = True
            self._release_waiters()
            if self._messages is not None:
                self._messages = _Discarding()
                self.resume()
        until = self._loop.time() + self._timeout
        try:
            if self._unanswered and not self.is_lost:
                if self._idle is None:
                    self._idle = self._loop.create_future()
                await asyncio.wait(
                    {self._idle, self._gone}, timeout=self._timeout, return_when="FIRST_COMPLETED"
                )
            if not self._unanswered and not self.is_lost:
                self._transport.close()
                # TLS says goodbye, and a peer that is silent need not answer.
                await asyncio.wait({self._gone}, timeout=max(0.0, until - self._loop.time()))
            if not self._is_finished:
                self.abort(TimeoutError(f"not closed within {self._timeout:g} s"))
                await asyncio.wait({self._gone})
        except asyncio.CancelledError:
            self.abort(ConnectionAbortedError("closing was cancelled"))
            raise

    def _finish(self) -> None:
        """Fail what is left and tell the owner: once, from the loop, after the transport is gone."""
        if self._is_finished:
            return
        self._is_finished = True
        self._held = None
        self._is_stalled = False
        self._deadline.stop()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        if self._continuation is not None:
            self._continuation.cancel()
            self._continuation = None
        number = len(self._written)
        for command in self._outgoing:
            if isinstance(command, tuple):
                self._written.append(command)
            else:
                self._written.append((command.pack(), command.count, False))
        self._outgoing.clear()
        # One of the two is missing if a signal's handler raised while a command was called or written.
        for future, noted in zip_longest(self._unanswered, self._written):
            number -= 1
            if future is None or future.done():
                continue
            is_written = number >= 0 or (noted is not None and noted[2])
            if self.keeps_unanswered and noted is not None:
                packed, count, _ = noted
                self.unanswered.append(InFlight(packed, future, is_written, count))
            else:
                fail(future, no_answer(self._error) if is_written else not_sent(self._error))
        self._unanswered.clear()
        self._written.clear()
        self.unanswered_bytes = self._pending = 0
        self._release_waiters()
        self._gone.set_result(None)
        self._owner.on_lost(self, self._error)

    def _release_waiters(self) -> None:
        """Let everybody in wait_for_capacity() see that there will be none."""
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_result(None)
