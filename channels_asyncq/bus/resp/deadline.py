"""The deadline of a connection: its oldest written command must be answered in time, unless bytes still move."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from contextvars import Context
from typing import Any, Protocol

from ...clock import monotonic

try:
    from fcntl import ioctl
    from termios import TIOCOUTQ
except ImportError:  # not on Windows
    ioctl = None  # type: ignore[assignment]

__all__ = ["Deadline"]

# While a command is unanswered, this share of the timeout passes between two checks of whether bytes move.
_CHECK = 0.25
# This share of the timeout is granted once after the loop was blocked: the reply may be there, unread.
_GRACE = 0.1


class Watched(Protocol):
    """The connection of a deadline. Implemented by `bus.resp.protocol.WireProtocol`."""

    @property
    def transport(self) -> asyncio.Transport | None: ...

    @property
    def replies(self) -> int:
        """The number of commands that were answered."""

    @property
    def arrived(self) -> tuple[int, int]:
        """The number of messages that were taken, and the bytes of the reply that has not arrived whole."""

    @property
    def is_stalled(self) -> bool:
        """Whether this side has stopped reading."""

    def abort(self, exc: Exception) -> None: ...

    def on_silent(self) -> None:
        """Nothing has been answered for a quarter of the timeout or longer, although something was asked."""


class Deadline:
    """
    Ends a connection whose oldest written command has no reply within the timeout.

    Time in which this side did not read does not count, nor time in which bytes of the command still leave or
    bytes of its reply arrive: they may be many, and the link slow. Bytes of younger commands do not count: a
    server that reads and answers nothing must be noticed.

    state    | timer | event: next state
    ---------|-------|-----------------------------------------------------------------------------------------
    idle     | no    | a write: watching
    watching | yes   | timer: idle if all is answered, watching again if it is too early or this side does not
             |       | read; late, because the loop was blocked: granted; else the connection is aborted.
             |       | `rest()`: idle if all is answered
    granted  | yes   | timer: as in watching, but a second blocked loop is no excuse
    stopped  | no    | nothing

    The timer is not cancelled when the last reply arrives, which would cost a timer for each write of a quiet
    connection: it runs out once, finds nothing to wait for, and is not set again. A caller that writes nothing
    for seconds calls `rest()`, so that the timer does not wake the process.
    """

    def __init__(self, connection: Watched, timeout: float, context: Context) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._connection = connection
        self._timeout = timeout
        # One mark for each write: the number of its last command, the time, and the bytes written before it.
        self._marks: deque[tuple[int, float, int]] = deque()
        self._bytes_written = 0
        # At the last look: the bytes that had left, the number of the mark if some of its bytes had not, and the
        # value of `arrived`.
        self._bytes_left = 0
        self._leaving = 0
        self._arrived = (0, 0)
        # When bytes were last seen to move, and when reading was last resumed.
        self._moved_at = 0.0
        self._read_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._is_granted = False
        #: When the last write was; 0 if there was none.
        self.written_at = 0.0

    def note_write(self, number: int, size: int, answered: int) -> None:
        """
        Note that `size` bytes are written now.

        Args:
            number: the number of the last command among them, counted from the first of the connection.
            answered: the number of commands that are answered.
        """
        marks = self._marks
        while marks and marks[0][0] <= answered:
            marks.popleft()
        self.written_at = now = monotonic()
        marks.append((number, now, self._bytes_written))
        self._bytes_written += size
        if self._timer is None:
            self._set_timer(self._timeout * _CHECK)

    def note_reading(self) -> None:
        """Note that this side reads again: a reply may be late because it was not read."""
        self._read_since = monotonic()

    def rest(self) -> None:
        """Watch no more until the next write, if all is answered."""
        if self._timer is not None and not self._unanswered_marks():
            self._timer.cancel()
            self._timer = None
            self._is_granted = False

    def stop(self) -> None:
        """Watch no more."""
        self._marks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def remaining_wait(self) -> float:
        """
        Return for how many seconds to wait for the oldest unanswered command, because bytes of it moved; else 0.

        When they have passed, the deadline itself has decided whether bytes still move.
        """
        marks = self._unanswered_marks()
        if not marks:
            return 0.0
        now = monotonic()
        self._look(now)
        if self._moved_at <= marks[0][1]:
            return 0.0
        return max(self._timeout * _GRACE, self._moved_at + self._timeout - now)

    def _set_timer(self, seconds: float) -> None:
        self._timer_due = monotonic() + seconds
        self._timer = self._loop.call_later(seconds, self._check, context=self._context)

    def _check(self) -> None:
        self._timer = None
        marks = self._unanswered_marks()
        if not marks:
            self._is_granted = False
            return
        now = monotonic()
        if self._connection.is_stalled:
            # This side does not read, so the server's silence means nothing.
            self._set_timer(self._timeout)
            return
        self._look(now)
        due = max(marks[0][1], self._read_since, self._moved_at) + self._timeout
        grace = self._timeout * _GRACE
        if due > now:
            self._is_granted = False
            self._set_timer(min(due - now, self._timeout * _CHECK))
            if due - now <= self._timeout * (1 - _CHECK):
                self._connection.on_silent()
        elif now - self._timer_due > grace and not self._is_granted:
            # The loop was blocked, or the machine asleep: the reply may be there, unread.
            self._is_granted = True
            self._set_timer(grace)
        else:
            self._connection.abort(TimeoutError(f"no reply within {self._timeout:g} s"))

    def _unanswered_marks(self) -> deque[tuple[int, float, int]]:
        marks = self._marks
        answered = self._connection.replies
        while marks and marks[0][0] <= answered:
            marks.popleft()
        return marks

    def _look(self, now: float) -> None:
        """Note whether bytes of the oldest unanswered write left, or of its reply came, since the last look."""
        marks = self._marks
        number, _, start = marks[0]
        end = marks[1][2] if len(marks) > 1 else self._bytes_written
        transport = self._connection.transport
        assert transport is not None
        left = self._bytes_written - _unsent_bytes(transport)
        is_leaving = left < end
        # Anything that was written before it is answered, and has left.
        if left > max(self._bytes_left, start) and (is_leaving or self._leaving == number):
            self._moved_at = now
        self._bytes_left = max(self._bytes_left, left)
        self._leaving = number if is_leaving else 0
        # A part of a reply, or messages: the reply comes after them. Whole replies were to older commands.
        messages, part = arrived = self._connection.arrived
        if messages != self._arrived[0] or part not in (0, self._arrived[1]):
            self._moved_at = now
        self._arrived = arrived


def _unsent_bytes(transport: Any) -> int:
    """Return how many written bytes have not left this machine, as far as can be seen."""
    size: int = transport.get_write_buffer_size()
    # Under TLS, asyncio's transport does not count the bytes in the transport below it.
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if below is not None:
        size += below.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None and ioctl is not None:
        try:
            size += struct.unpack("i", ioctl(sock.fileno(), TIOCOUTQ, bytes(4)))[0]
        except (OSError, ValueError):
            pass  # the system does not say, or the socket is closed
    return size
