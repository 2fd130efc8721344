"""The commands for messages: several messages of one topic share a command until it is written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from hiredis import pack_command

from ...messages.envelopes import HEADER_ONLY
from ...messages.framing import ITEM_SIZE, MOST_JOINED, batch_size
from ...messages.sealing import Seal
from ...tallies import Tally
from ..resp.protocol import WireProtocol
from ..resp.replies import ReplySink
from .sequences import SequenceNumbers

if TYPE_CHECKING:
    from .sender import Sender

# The messages that one command may carry.
MESSAGES_PER_BATCH = 16
# A log keeps as many entries of up to 1 KiB as `recovery` says. A larger entry trims it to fewer.
_SMALL_ENTRY = 1024

# The packed names of the receivers, from `pack_names()`, and the encoded message.
Message = tuple[bytes, bytes]


class Route(Protocol):
    """
    The way of messages of one kind: to which key or topic they go, and how they are packed.

    Implemented by `bus.redis.batches.TopicRoute`, and for normal channels by `bus.redis.queues.QueueRoute`.
    """

    #: The command of this loop iteration that more messages may join.
    open: Batch | None
    #: The most bytes of several messages in one command; 0 if each message has its own.
    most: int
    #: The bytes of a batch without its messages.
    batch_size: int

    @property
    def stream(self) -> SequenceNumbers | None:
        """Its numbers, if receivers drop those below the highest; None if they take them in as well."""

    def pack(self, messages: list[Message]) -> bytes:
        """Return the command for these messages."""


class Batch:
    """
    One command for one to sixteen messages of a route, which take their numbers when it is packed.

    Commands must be written in the order of their numbers: receivers drop a message whose number is not above the
    highest before it.
    """

    __slots__ = ("answers", "count", "free_bytes", "loads", "messages", "route", "sender", "size", "wire")

    def __init__(
        self, sender: Sender, wire: WireProtocol, route: Route, message: Message, answer: ReplySink
    ) -> None:
        self.sender = sender
        self.wire = wire
        self.route = route
        self.messages = [message]
        self.answers = [answer]
        #: How often it was sent again because its script was missing.
        self.loads = 0
        size = route.batch_size + len(message[0]) + len(message[1]) + ITEM_SIZE
        #: Bytes of messages that may still join.
        self.free_bytes = route.most - size
        self.size, self.count = (route.most, MESSAGES_PER_BATCH) if self.free_bytes > 0 else (size, 1)

    # As an OpenCommand

    def pack(self) -> bytes:
        route = self.route
        if route.open is self:
            route.open = None
        self.count = len(self.messages)
        return route.pack(self.messages)

    def forget_done(self) -> None:
        """Leave out the messages whose senders were cancelled. The rest gets new numbers."""
        both = zip(self.messages, self.answers, strict=True)
        left = [(message, answer) for message, answer in both if not answer.done()]
        self.messages = [message for message, _ in left]
        self.answers = [answer for _, answer in left]

    def done(self) -> bool:
        for answer in self.answers:
            if not answer.done():
                return False
        return True

    def set_result(self, reply: Any, /) -> None:
        self.sender.mark_healthy()
        if self.sender.in_flight:
            self.sender.give_up_before(self)
        for answer in self.answers:
            try:
                answer.set_result(reply)
            except asyncio.InvalidStateError:
                pass  # its sender was cancelled

    def set_exception(self, error: Exception, /) -> None:
        self.sender.not_done(self, error)

    def exception(self) -> None:
        return None


class TopicRoute:
    """
    The route to one topic: it packs the command for its messages.

    A route is logged if `logged_bytes`, the size of the largest message that is logged whole, is not 0. With a
    `seal`, batches are sealed for `place` when the command is packed: their numbers are known only then.

    Messages are added to the `tally` as they are packed, those that a cluster redirects each time.

    The command is packed once, up to the `$` before the length of the batch. For a logged route, the argument
    before it is the header that is logged in place of a batch that is too large, or empty. More batches may
    follow, each for its own entry.
    """

    def __init__(
        self,
        sender: Sender,
        numbers: SequenceNumbers,
        command: tuple[bytes, ...],
        session_id: bytes,
        flags: int,
        seal: Seal | None,
        place: bytes,
        *,
        logged_bytes: int,
        is_alone: bool,
        tally: Tally,
    ) -> None:
        self.sender = sender
        self._tally = tally
        is_logged = logged_bytes > 0
        # Messages that share a command are logged whole.
        self.most = 0 if is_alone else min(MOST_JOINED, logged_bytes or MOST_JOINED)
        self.batch_size = batch_size(seal)
        self.open: Batch | None = None
        self.stream = self._numbers = numbers
        self._is_logged = is_logged
        self._logged_bytes = logged_bytes
        command = (*command, b"", b"") if is_logged else (*command, b"")
        self._arguments = len(command)
        packed: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub says: a tuple of one
        self._opened = packed.removesuffix(b"0\r\n\r\n")
        self._session_id = session_id
        self._flags = flags
        self._seal = seal
        self._place = place

    def pack(self, messages: list[Message]) -> bytes:
        count = len(messages)
        first = self._numbers.take(count)
        self._tally.count += count
        if self._is_logged and count > 1:
            return self._pack_entries(messages, first)
        pack = self.sender.lease.format.pack
        data = pack(messages, self._session_id, first, self._flags, self._seal, self._place)
        if self._is_logged and len(messages[0][1]) > self._logged_bytes:
            flags = self._flags | HEADER_ONLY
            header = _argument(
                pack([(messages[0][0], b"")], self._session_id, first, flags, self._seal, self._place)
            )
            # Not by hiredis, which would copy all of it twice.
            return b"%b%b$%d\r\n%b\r\n" % (self._opened.removesuffix(_WHOLE), header, len(data), data)
        return b"%b%d\r\n%b\r\n" % (self._opened, len(data), data)

    def _pack_entries(self, messages: list[Message], first: int) -> bytes:
        """Return the command for several messages: in one entry of the log, or in several small ones."""
        entries = []
        pack = self.sender.lease.format.pack
        for part in _parted(messages, self.batch_size):
            data = pack(part, self._session_id, first, self._flags, self._seal, self._place)
            entries.append(b"%d\r\n%b\r\n" % (len(data), data))
            first += len(part)
        _, rest = self._opened.split(b"\r\n", 1)
        return b"*%d\r\n%b%b" % (self._arguments - 1 + len(entries), rest, b"$".join(entries))


def _parted(messages: list[Message], around: int) -> list[list[Message]]:
    """Return the messages in parts: each makes a small entry of the log, or is one larger message."""
    parts: list[list[Message]] = []
    free = 0  # below zero after a larger one, so that nothing joins it
    for message in messages:
        size = len(message[0]) + len(message[1]) + ITEM_SIZE
        free -= size
        if free < 0:
            parts.append([])
            free = _SMALL_ENTRY - around - size
        parts[-1].append(message)
    return parts


def _argument(argument: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(argument), argument)


# The empty argument before an envelope that is logged whole, and the `$` of the envelope.
_WHOLE = _argument(b"") + b"$"
