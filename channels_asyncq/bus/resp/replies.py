"""The objects that get replies, the errors they may get instead, and commands of a lost connection."""

from __future__ import annotations

import asyncio
import copy
from typing import Any, NamedTuple, Protocol

from hiredis import ReplyError, pack_command

__all__ = [
    "MORE",
    "InFlight",
    "NoAnswer",
    "NotSent",
    "OpenCommand",
    "ReplySink",
    "Unsubscription",
    "copy_error",
    "fail",
    "is_redirect",
    "moved_to",
    "not_sent",
    "refusal",
    "unexpected",
]

#: Returned by the parser when it needs more bytes: None and False are replies.
MORE = object()

# The first words of errors by which a node of a cluster says that it does not have the slot now.
_REDIRECTS = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})


class NotSent(ConnectionError):
    """The connection ended before the command was handed to the transport: the server has not seen it."""


class NoAnswer(ConnectionError):
    """The command was written, and the connection ended before its reply: it may have been executed."""

    #: The command, if it was sent again and a node of a cluster redirected it (see `is_redirect()`). It was not
    #: executed this time. A sink that is not done yet may send it once more, to the right node.
    resend: InFlight | None = None


class ReplySink(Protocol):
    """
    Gets the reply to a command, as a future does, but within the call that reads the reply.

    Its methods are those of a future that a connection calls. They must not raise.

    Implemented by `asyncio.Future`, `bus.redis.checkpoint.NodeFence` and
    `bus.redis.cluster.checkpoint.ClusterFence`, and as an `OpenCommand` by
    `bus.redis.batches.Batch`, `bus.redis.commands.Question` and `bus.resp.replies.Unsubscription`.
    """

    def done(self) -> bool: ...
    def set_result(self, reply: Any, /) -> None: ...
    def set_exception(self, error: Exception, /) -> None: ...
    def exception(self) -> BaseException | None: ...


class OpenCommand(ReplySink, Protocol):
    """
    A command that may grow until it is written, and gets its own reply.

    Until it is packed, `size` and `count` are the most that it may grow to. Afterwards they are exact.

    Implemented by `bus.redis.batches.Batch`, `bus.redis.commands.Question` and `bus.resp.replies.Unsubscription`.
    """

    #: The bytes that it carries.
    size: int
    #: The calls that share it.
    count: int

    def pack(self) -> bytes:
        """Return its bytes: it is about to be written, or another connection will send it. It must not raise."""


def copy_error(error: Exception) -> Exception:
    """Return a copy for one caller: an error that several tasks raise would mix their tracebacks."""
    return copy.copy(error)


def fail(sink: asyncio.Future[Any] | ReplySink, error: Exception) -> None:
    """Set an error and mark it as retrieved: asyncio must not log it if the caller never looks."""
    sink.set_exception(error)
    sink.exception()


def not_sent(cause: Exception) -> NotSent:
    """Return the error of a command that was not written, because of `cause`."""
    error = NotSent(f"not sent: {cause}")
    error.__cause__ = cause
    return error


def _no_answer(cause: Exception) -> NoAnswer:
    error = NoAnswer(f"sent, but not answered: {cause}")
    error.__cause__ = cause
    return error


def refusal(reply: ReplyError, *, resent: InFlight | None) -> ReplyError | NoAnswer:
    """Return the error of a command that the server refused: a resent one may have been executed before."""
    if resent is None:
        return reply
    error = NoAnswer(f"it was refused when it was sent again: {reply}")
    error.__cause__ = reply
    if is_redirect(reply):
        error.resend = resent
    return error


def is_redirect(error: BaseException) -> bool:
    """Tell whether a node of a cluster refused a command because it does not have the slot, or not entirely."""
    return str(error).partition(" ")[0] in _REDIRECTS


def moved_to(error: BaseException) -> tuple[int, str, int] | None:
    """
    Return the slot, the host and the port that a MOVED names; None for any other error.

    The host is empty if the server does not know its own: that of the node that was asked is meant. None also if
    the server was told to announce a hostname and has none ("?"): then the error names no address.
    """
    words = str(error).split()
    if len(words) < 3 or words[0] != "MOVED":
        return None
    host, colon, port = words[2].rpartition(":")
    if not colon or host == "?" or not (words[1].isdecimal() and port.isdecimal()):
        return None
    return int(words[1]), host, int(port)


def unexpected(reply: object) -> ConnectionAbortedError:
    """Return the error of a connection on which a reply came that no command waits for."""
    text = repr(reply)
    if len(text) > 200:
        text = text[:200] + "..."
    return ConnectionAbortedError(f"the server sent what no command asked for: {text}")


class InFlight(NamedTuple):
    """A command without a reply whose connection has ended, to be sent again on the next one, or to fail."""

    #: The bytes of the command.
    packed: bytes
    #: Gets the reply.
    future: asyncio.Future[Any] | ReplySink
    #: Whether a connection has written it: then the server may have executed it.
    is_written: bool
    #: The calls that share it.
    calls: int = 1

    def fail(self, cause: Exception) -> None:
        """Fail it because of `cause`: it will not be sent again."""
        if not self.future.done():
            fail(self.future, _no_answer(cause) if self.is_written else not_sent(cause))


class Unsubscription(asyncio.Future[Any]):
    """
    SUNSUBSCRIBE for one topic with PING behind it, as one command that has one place in the FIFO.

    The server confirms SUNSUBSCRIBE with an array that it also sends unasked, when the slot of the topic moves.
    So the array cannot answer the command. The pong answers it: then SUNSUBSCRIBE was executed or refused. As an
    `OpenCommand` it does not grow.

    state   | the pong, or an error that | another error                   | any other reply
            | only PING gets             |                                 |
    --------|----------------------------|---------------------------------|---------------------
    asked   | done                       | SUNSUBSCRIBE's: next is refused | ends the connection
    refused | done                       | PING's: next is done            | ends the connection
    """

    def __init__(self, topic: bytes) -> None:
        super().__init__()
        self._topic = topic
        commands: list[Any] = [(b"SUNSUBSCRIBE", topic), (b"PING", topic)]
        self._packed = b"".join(map(pack_command, commands))
        self._is_refused = False
        self.size, self.count = len(self._packed), 1

    def pack(self) -> bytes:
        return self._packed

    def is_answered_by(self, reply: Any) -> bool:
        """
        Tell whether a reply answers the PING; if not, it was the error of SUNSUBSCRIBE.

        Raises:
            ConnectionAbortedError: it can be neither.
        """
        if isinstance(reply, ReplyError):
            if self._is_refused or _is_of_ping(reply):
                return True
            self._is_refused = True
            return False
        # Without a subscription, the last one being gone, the server answers with the text alone.
        if reply != [b"pong", self._topic] and reply != self._topic:
            raise unexpected(reply)
        return True


def _is_of_ping(error: ReplyError) -> bool:
    """Tell whether an error is that of PING: a server that cannot save refuses PING, and not SUNSUBSCRIBE."""
    text = str(error)
    return text.startswith("MISCONF") or (text.startswith("NOPERM") and "'ping'" in text)
