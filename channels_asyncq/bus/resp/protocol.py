"""
One connection to a Redis server: RESP2 over hiredis, as an `asyncio.Protocol`.

What is called while nothing is unanswered is written at once, unless several calls were answered together just
before; all else of one turn of the loop in one `write`. Replies are matched, in order, to a FIFO of futures.
Nothing here knows hosts, topics or scripts, and nothing here is a task: a connection is callbacks, futures and at
most one timer.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Iterable
from contextvars import Context
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol, cast

from hiredis import Reader, ReplyError, pack_command

from ...clock import monotonic
from ...slices import SLICE
from .pacing import CALLS_PER_WRITE, Pace, pace_of

try:
    from fcntl import ioctl
    from termios import TIOCOUTQ
except ImportError:  # not on Windows
    ioctl = None  # type: ignore[assignment]

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
# While something is unanswered, this share of the timeout passes between two looks at whether bytes move.
_LOOK = 0.25
# A connection that was used within these seconds was not closed for being idle.
_IDLE = 1.0
# Replies on a subscriber's connection after which their callbacks get the turn.
_MOST_ANSWERED = 512


class NotSent(ConnectionError):
    """The connection ended before the command was handed to the transport: the server has not seen it."""


class NoAnswer(ConnectionError):
    """The command was written, and the connection ended before its reply: it may have been executed."""


class ClosedIdle(ConnectionResetError):
    """The server closed a connection for commands on which nothing had been asked for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the server closed the connection, which was idle for {seconds:.0f} s")
        self.seconds = seconds


class ReplySink(Protocol):
    """
    What may stand in the FIFO in place of a future: it is told at once, not on the next turn.

    It must not raise. Its methods are those of a future that the connection calls.
    """

    def done(self) -> bool: ...
    def set_result(self, reply: Any, /) -> None: ...
    def set_exception(self, error: Exception, /) -> None: ...
    def exception(self) -> BaseException | None: ...


def fail(answer: asyncio.Future[Any] | ReplySink, error: Exception) -> None:
    """Give the answer an error, marked as seen: a caller who does not look is not told through the log."""
    answer.set_exception(error)
    answer.exception()


class OpenCommand(ReplySink, Protocol):
    """
    A command that may grow until it is written, and is told its own reply.

    Until then it counts as what it may become.
    """

    #: The bytes of what it carries, and how many calls it stands for; at most, before it is packed.
    size: int
    count: int

    def pack(self) -> bytes:
        """Return its bytes: it is about to be written, or will be sent by somebody else. It must not raise."""


class MessageHandler(Protocol):
    """Receives the messages of a subscriber's connection."""

    def on_message(self, topic: bytes, payload: bytes) -> bool:
        """Take a message and return True, or return False to hold it. It must not raise."""


class WireOwner(Protocol):
    """The owner of a connection, which is told of its end."""

    def on_lost(self, wire: WireProtocol, error: Exception | None) -> None:
        """Note that the connection has ended. `error` is None only if it was closed on request."""


class InFlight(NamedTuple):
    """
    A command whose connection ended before its reply.

    Its bytes, its future, whether it was written, and how many calls it stands for.
    """

    packed: bytes
    future: asyncio.Future[Any] | ReplySink
    is_written: bool
    calls: int = 1

    def fail(self, cause: Exception) -> None:
        """Give up, because of `cause`: nobody will send it again."""
        if not self.future.done():
            error = NoAnswer(str(cause)) if self.is_written else NotSent(str(cause))
            error.__cause__ = cause
            fail(self.future, error)


def _refusal_of_resent(reply: ReplyError) -> NoAnswer:
    """Return the error of a command that is refused now: it may have been executed when it was first written."""
    error = NoAnswer(f"it was refused when it was sent again: {reply}")
    error.__cause__ = reply
    return error


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

        # One mark for each write: the number of the last command in it, when it was written, and how many bytes
        # were written before it.
        self._marks: deque[tuple[int, float, int]] = deque()
        self._bytes_written = 0
        self._written_at = 0.0
        # What the last look at the oldest mark found: how many bytes had left, the number of the mark if some of
        # its bytes had not, and what had arrived. And when bytes were last seen to move.
        self._bytes_left = 0
        self._leaving = 0
        self._arrived = (0, 0)
        self._moved_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._grace_used = False

        # A stalled reader parses nothing: a message is held, or the loop gets a turn. The transport stays
        # paused until the reader is through.
        self._is_stalled = False
        self._read_paused = False
        self._held: tuple[bytes, bytes] | None = None
        self._continuation: asyncio.Handle | None = None
        self._read_since = 0.0

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
            fail(future, self._not_sent())
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
            fail(command, self._not_sent())
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
                fail(future, self._no_answer() if is_written else self._not_sent())
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
            raise self._not_sent()
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
            raise self._not_sent()

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
        outgoing = self._outgoing
        if not outgoing or self._write_paused or self.is_lost:
            return
        assert self._transport is not None
        if self._transport.is_closing():
            # It would drop what it is given. connection_lost() follows, and these were not sent.
            return
        packed = self._pack()
        data = packed[0] if len(packed) == 1 else b"".join(packed)
        self.writes += 1
        self.commands += len(packed)
        marks = self._marks
        while marks and marks[0][0] <= self.replies:
            marks.popleft()
        self._written_at = now = monotonic()
        marks.append((self.commands, now, self._bytes_written))
        self._bytes_written += len(data)
        if self._timer is None:
            self._set_timer(self._timeout * _LOOK)
        # It may call pause_writing().
        self._transport.write(data)
        if not self.has_capacity:
            # Open commands have given up the places that they did not need.
            self._wake()

    def _pack(self) -> list[bytes]:
        """Return the bytes of what was called since the last write; nothing of it can grow any more."""
        outgoing, self._outgoing = self._outgoing, []
        self._calls = 0
        written = self._written
        all_packed = []
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
            all_packed.append(packed)
        return all_packed

    # The deadline. The timer is not cancelled when the last reply arrives, which would cost a timer for each
    # write of a quiet connection: it runs out once, finds nothing to wait for, and is not set again.

    def _set_timer(self, seconds: float) -> None:
        self._deadline = monotonic() + seconds
        self._timer = self._loop.call_later(seconds, self._check_deadline, context=self._context)

    def _check_deadline(self) -> None:
        self._timer = None
        marks = self._unanswered_marks()
        if not marks:
            self._grace_used = False
            return
        now = monotonic()
        if self._is_stalled:
            # We are not reading, so the server's silence means nothing.
            self._set_timer(self._timeout)
            return
        self._look(now)
        due = max(marks[0][1], self._read_since, self._moved_at) + self._timeout
        grace = self._timeout / 10
        if due > now:
            self._grace_used = False
            self._set_timer(min(due - now, self._timeout * _LOOK))
        elif now - self._deadline > grace and not self._grace_used:
            # This loop was blocked, or the machine asleep: the reply may be there, unread.
            self._grace_used = True
            self._set_timer(grace)
        else:
            self.abort(TimeoutError(f"no reply within {self._timeout:g} s"))

    def _unanswered_marks(self) -> deque[tuple[int, float, int]]:
        marks = self._marks
        while marks and marks[0][0] <= self.replies:
            marks.popleft()
        return marks

    def _look(self, now: float) -> None:
        """
        Note whether bytes of the oldest unanswered write have left, or of its reply arrived, since the last look.

        Bytes of younger writes do not count: a server that reads and answers nothing must be noticed.
        """
        marks = self._marks
        number, _, start = marks[0]
        end = marks[1][2] if len(marks) > 1 else self._bytes_written
        left = self._bytes_written - self._unsent()
        is_leaving = left < end
        # What was written before it is answered, and has left.
        if left > max(self._bytes_left, start) and (is_leaving or self._leaving == number):
            self._moved_at = now
        self._bytes_left = max(self._bytes_left, left)
        self._leaving = number if is_leaving else 0
        # A part of a reply, or messages: the reply comes after them. Whole replies were to older commands.
        messages, part = arrived = self.arrived
        if messages != self._arrived[0] or part not in (0, self._arrived[1]):
            self._moved_at = now
        self._arrived = arrived

    def _unsent(self) -> int:
        """Return how many written bytes have not left this machine, as far as can be seen."""
        transport: Any = self._transport
        size: int = transport.get_write_buffer_size()
        # Under TLS, asyncio's transport does not count what waits in the transport below it.
        below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
        if below is not None:
            size += below.get_write_buffer_size()
        sock = transport.get_extra_info("socket")
        if sock is not None and ioctl is not None:
            try:
                size += struct.unpack("i", ioctl(sock.fileno(), TIOCOUTQ, bytes(4)))[0]
            except (OSError, ValueError):
                pass  # a system that does not tell, or a socket that is closed
        return size

    def remaining_wait(self) -> float:
        """
        Return for how many seconds to wait for the oldest unanswered command, because bytes of it moved; else 0.

        When they have passed, the connection itself has decided whether bytes still move.
        """
        marks = self._unanswered_marks()
        if not marks or self.is_lost:
            return 0.0
        now = monotonic()
        self._look(now)
        if self._moved_at <= marks[0][1]:
            return 0.0
        return max(self._timeout / 10, self._moved_at + self._timeout - now)

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
                        fail(future, _refusal_of_resent(reply) if is_resent else reply)
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
                fail(future, _refusal_of_resent(reply) if is_resent else reply)
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
            self._read_since = monotonic()
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
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(self._timeout, self._finish, context=self._context)
        else:
            self._finish()

    def _end_of_server(self) -> ConnectionResetError:
        idle = monotonic() - self._written_at
        if self._messages is None and self._written_at and not self._unanswered and idle >= _IDLE:
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._continuation is not None:
            self._continuation.cancel()
            self._continuation = None
        written = len(self._written)
        self._pack()
        for number, (future, noted) in enumerate(zip_longest(self._unanswered, self._written)):
            # One of them is missing if a signal's handler raised while a command was called or packed.
            if future is None or future.done():
                continue
            is_written = number < written or (noted is not None and noted[2])
            if self.keeps_unanswered and noted is not None:
                packed, count, _ = noted
                self.unanswered.append(InFlight(packed, future, is_written, count))
            else:
                fail(future, self._no_answer() if is_written else self._not_sent())
        self._unanswered.clear()
        self._written.clear()
        self._marks.clear()
        self.unanswered_bytes = self._pending = 0
        self._release_waiters()
        self._gone.set_result(None)
        self._owner.on_lost(self, self._error)

    def _release_waiters(self) -> None:
        """Let everybody in wait_for_capacity() see that there will be none."""
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_result(None)

    def _not_sent(self) -> NotSent:
        error = NotSent(f"not sent: {self._error or 'the connection is closed'}")
        error.__cause__ = self._error
        return error

    def _no_answer(self) -> NoAnswer:
        error = NoAnswer(f"sent, but not answered: {self._error or 'the connection is closed'}")
        error.__cause__ = self._error
        return error
