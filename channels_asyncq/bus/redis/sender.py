"""What is sent to a server: messages, those of one topic in one command while it is not yet written."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from typing import Any, Protocol

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError, pack_command

from ...clock import monotonic
from ...exceptions import ChannelLayerError, DeliveryUnknown, LayerClosed, LayerUnavailable
from ...messages.envelopes import HEADER_ONLY, ITEM_SIZE, MOST_JOINED, batch_size
from ...messages.sealing import Seal
from ..resp.protocol import WireProtocol
from ..resp.remedies import Remedies
from ..resp.replies import NoAnswer, NotSent, ReplySink, fail
from ..resp.supervisor import SupervisedConnection, copy_error
from .layout import Lease
from .sequences import SequenceNumbers
from .watch import UNWRITABLE

# The messages that one command may carry.
MESSAGES_PER_BATCH = 16
# Errors of a server that is there and cannot serve now: the connection is given up, and made again.
_UNSERVING = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS")
# A command whose script is missing is sent again so often, each time after loading the scripts.
_MOST_LOADS = 3
# Seconds until scripts that the server refused are loaded again.
_PAUSE_AFTER_REFUSAL = 1.0
# A log that is full of entries of up to 1 KiB keeps as many as `recovery` says; a larger one trims it to fewer.
_SMALL_ENTRY = 1024
# Redis 6 says before the words of an error where in a script it was.
_IN_SCRIPT = re.compile(r"@user_script: \d+: -([^\r\n]*)")


# Whom it is for, from `pack_names()`, and the encoded message.
Message = tuple[bytes, bytes]


class Route(Protocol):
    """Where a kind of message goes, and how it is packed."""

    #: The command of this turn that more messages may join.
    open: Sending | None
    #: Bytes of several messages in one command, at most; 0 if each goes alone.
    most: int
    #: Bytes of a batch beside the messages in it.
    batch_size: int

    def pack(self, messages: list[Message]) -> bytes:
        """Return the command for these messages."""


class Sending:
    """
    One command for one to sixteen messages of a route, which take their numbers when it is packed.

    What is numbered first must be written first: receivers drop what comes after a higher number.
    """

    __slots__ = ("_sender", "answers", "count", "loads", "messages", "room", "route", "size", "wire")

    def __init__(
        self, sender: Sender, wire: WireProtocol, route: Route, message: Message, answer: ReplySink
    ) -> None:
        self._sender = sender
        self.wire = wire
        self.route = route
        self.messages = [message]
        self.answers = [answer]
        #: How often the scripts were loaded for it.
        self.loads = 0
        size = route.batch_size + len(message[0]) + len(message[1]) + ITEM_SIZE
        #: Bytes of messages that may still join.
        self.room = route.most - size
        self.size, self.count = (route.most, MESSAGES_PER_BATCH) if self.room > 0 else (size, 1)

    # As an OpenCommand

    def pack(self) -> bytes:
        route = self.route
        if route.open is self:
            route.open = None
        self.count = len(self.messages)
        return route.pack(self.messages)

    def forget_done(self) -> None:
        """Leave out the messages that nobody wants to know of any more; the rest takes new numbers."""
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
        self._sender.mark_healthy()
        for answer in self.answers:
            try:
                answer.set_result(reply)
            except asyncio.InvalidStateError:
                pass  # its sender was cancelled

    def set_exception(self, error: Exception, /) -> None:
        self._sender.not_done(self, error)

    def exception(self) -> None:
        return None


class TopicRoute:
    """
    Sends to one topic, and the command for them.

    A route is logged if `logged_bytes`, the size of the largest message that is logged whole, is not 0. With a
    `seal`, batches are sealed for `place`, as their numbers are known when the command is packed.

    The command is packed up to the `$` before the batch's length. For a logged route the argument before that is
    what is logged in place of a batch that is too large, or else empty; more batches may follow, each for its own
    entry.
    """

    def __init__(
        self,
        sender: Sender,
        lease: Lease,
        numbers: SequenceNumbers,
        command: tuple[bytes, ...],
        session_id: bytes,
        flags: int,
        seal: Seal | None,
        place: bytes,
        *,
        logged_bytes: int,
        is_alone: bool,
    ) -> None:
        self.sender = sender
        is_logged = logged_bytes > 0
        # What shares a command is logged whole.
        self.most = 0 if is_alone else min(MOST_JOINED, logged_bytes or MOST_JOINED)
        self.batch_size = batch_size(seal)
        self.open: Sending | None = None
        self._lease = lease
        self._numbers = numbers
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
        first = self._numbers.take(len(messages))
        if self._is_logged and len(messages) > 1:
            return self._pack_entries(messages, first)
        pack = self._lease.format.pack
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
        pack = self._lease.format.pack
        for part in _parted(messages, self.batch_size):
            data = pack(part, self._session_id, first, self._flags, self._seal, self._place)
            entries.append(b"%d\r\n%b\r\n" % (len(data), data))
            first += len(part)
        _, rest = self._opened.split(b"\r\n", 1)
        return b"*%d\r\n%b%b" % (self._arguments - 1 + len(entries), rest, b"$".join(entries))


def _parted(messages: list[Message], around: int) -> list[list[Message]]:
    """Return the messages in parts that make a small entry of the log each, or are one larger message."""
    parts: list[list[Message]] = []
    room = 0  # below zero after a larger one, so that nothing joins it
    for message in messages:
        size = len(message[0]) + len(message[1]) + ITEM_SIZE
        room -= size
        if room < 0:
            parts.append([])
            room = _SMALL_ENTRY - around - size
        parts[-1].append(message)
    return parts


def _argument(argument: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(argument), argument)


# What stands before an envelope that is logged itself, and the `$` of the envelope.
_WHOLE = _argument(b"") + b"$"


class Sender:
    """
    Commands to one host, over its line: sent, sent again when the server did not execute them, or failed.

    Raises, or tells, LayerUnavailable, DeliveryUnknown and ChannelLayerError for what the server refused.
    """

    def __init__(
        self,
        line: SupervisedConnection,
        address: str,
        remedies: Remedies,
        load_scripts: Callable[[WireProtocol], list[asyncio.Future[Any]]],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._line = line
        self._address = address
        self._remedies = remedies
        self._load_scripts = load_scripts
        # Replies to SCRIPT LOAD that are due; then, until a time of the loop, why it is no use.
        self._loading = 0
        self._load_refusal: BaseException | None = None
        self._load_again_at = 0.0
        self._context = Context()
        # Messages that the server did not execute.
        self._again: set[asyncio.Task[None]] = set()
        # A reply sink that is already done: its message is never resent.
        self._nobody: asyncio.Future[Any] = self._loop.create_future()
        self._nobody.cancel()

    def mark_healthy(self) -> None:
        """Note that the server did what it was told."""
        if self._line.is_refusing:
            self._line.mark_healthy()

    # Commands

    async def call(self, *command: bytes | str | int, is_repeatable: bool = False) -> Any:
        """
        Return the reply to a command, waiting for the line if it is down.

        A repeatable command is sent again when the connection ended without an answer.
        """
        loads = 0
        while True:
            wire = self._line.open_wire
            if wire is None or not wire.pipeline.has_capacity:
                wire = await self._line.with_capacity()
            try:
                reply = await wire.call(*command)
                self.mark_healthy()
                return reply
            except (NotSent, NoAnswer) as exc:
                if isinstance(exc, NoAnswer) and not is_repeatable:
                    raise self._unknown(exc) from exc
                _raise_if_given_up(exc)
            except ReplyError as exc:
                if not self.may_go_on(wire, exc, loads):
                    raise self.refused(exc) from exc
                loads += is_script_missing(exc)

    # Messages

    def send(self, route: Route, names: bytes, payload: bytes) -> Awaitable[Any]:
        """Send a message when the line is up and has room; the result is the server's reply."""
        message = names, payload
        answer: asyncio.Future[Any] = asyncio.Future(loop=self._loop)
        wire = self._line.open_wire
        if wire is None or not wire.pipeline.has_capacity:
            return self._send_later(route, message, answer)
        self._write(wire, route, message, answer)
        return answer

    async def _send_later(self, route: Route, message: Message, answer: asyncio.Future[Any]) -> Any:
        self._write(await self._line.with_capacity(), route, message, answer)
        return await answer

    def _write(self, wire: WireProtocol, route: Route, message: Message, answer: ReplySink) -> None:
        sending = route.open
        if sending is not None and sending.wire is wire:
            room = sending.room - len(message[0]) - len(message[1]) - ITEM_SIZE
            if room >= 0:
                sending.room = room
                sending.messages.append(message)
                sending.answers.append(answer)
                if len(sending.messages) == MESSAGES_PER_BATCH:
                    route.open = None
                    wire.pipeline.seal(MESSAGES_PER_BATCH)
                return
            wire.pipeline.seal(len(sending.messages))
        sending = Sending(self, wire, route, message, answer)
        if route.most:
            # Also one that nothing more goes into: what comes next must not come before it.
            route.open = sending
        wire.pipeline.call_open(sending)

    def post(self, route: Route, message: Message) -> None:
        """Write a message for which nobody waits; it is dropped if the link is lost."""
        wire = self._line.wire
        if wire is not None and not wire.is_lost:
            self._write(wire, route, message, self._nobody)

    def not_done(self, sending: Sending, error: Exception) -> None:
        """Deal with the error of a command that was written: send it again, or tell."""
        is_executed = not isinstance(error, NotSent)
        if is_executed and isinstance(error, ReplyError):
            is_executed = not self.may_go_on(sending.wire, error, sending.loads)
            sending.loads += is_script_missing(error)
        if not is_executed:
            self._begin_again(sending)
            return
        if isinstance(error.__cause__, ReplyError) and self._line.wire is not None:
            self.may_go_on(self._line.wire, error.__cause__)
        for answer in sending.answers:
            if not answer.done():
                told = self._unknown(error) if isinstance(error, NoAnswer) else self.refused(error)
                told.__cause__ = error
                fail(answer, told)

    def _begin_again(self, sending: Sending) -> None:
        try:
            self._line.raise_if_overdue()
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            _fail_all(sending.answers, exc)
            return
        task = self._loop.create_task(
            self._send_again(sending),
            name=f"channels_asyncq sending again to {self._address}",
            context=self._context,
        )
        self._again.add(task)
        task.add_done_callback(self._again.discard)

    async def _send_again(self, sending: Sending) -> None:
        try:
            wire = await self._line.with_capacity()
        except asyncio.CancelledError:
            _fail_all(sending.answers, LayerClosed())
            raise
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            _fail_all(sending.answers, exc)
        else:
            # All at once: what is waited for between them would come between them.
            sending.forget_done()
            if sending.messages:
                sending.wire = wire
                wire.pipeline.call_open(sending)

    def _unknown(self, exc: NoAnswer) -> DeliveryUnknown:
        reason = exc if isinstance(exc.__cause__, ReplyError) else exc.__cause__ or exc
        return DeliveryUnknown(f"{self._address} was sent the message and did not answer: {reason}")

    def may_go_on(self, wire: WireProtocol, exc: ReplyError, loads: int = 0) -> bool:
        """
        Deal with an error that says that a command was not executed; True if it should be sent again.

        `loads` is how often the command was sent again because its script was missing.
        """
        if is_script_missing(exc):
            return loads < _MOST_LOADS and self._load(wire)
        text = _words_of(exc)
        if text.startswith(_UNSERVING):
            self._line.give_up(wire, self._remedies.diagnose(text).reason)
            return True
        return False

    def _load(self, wire: WireProtocol) -> bool:
        """Load the scripts, unless that is under way; False if the server has just refused to."""
        if self._loading:
            return True
        if self._load_refusal is not None and monotonic() < self._load_again_at:
            return False
        self._load_refusal = None
        replies = self._load_scripts(wire)
        self._loading = len(replies)
        for reply in replies:
            reply.add_done_callback(self._loaded)
        return True

    def _loaded(self, reply: asyncio.Future[Any]) -> None:
        self._loading -= 1
        if isinstance(reply.exception(), ReplyError):
            self._load_refusal = reply.exception()
            self._load_again_at = monotonic() + _PAUSE_AFTER_REFUSAL

    def refused(self, exc: BaseException) -> ChannelLayerError:
        text = _words_of(exc)
        if is_script_missing(exc):
            if self._load_refusal is not None:
                text += (
                    f"; it cannot be loaded: {self._load_refusal} (the user needs the command script|load)"
                )
            else:
                text += (
                    f"; it was missing again after {_MOST_LOADS} times of loading it (does something run SCRIPT "
                    "FLUSH all the time, or does a proxy lead to several servers?)"
                )
        if text.startswith((*UNWRITABLE, "BUSY")):
            return LayerUnavailable(self._address, text, is_refusal=True)
        return ChannelLayerError(f"{self._address} refused: {self._remedies.diagnose(text).reason}")


def is_script_missing(exc: BaseException) -> bool:
    return str(exc).startswith("NOSCRIPT")


def _words_of(exc: BaseException) -> str:
    """Return what the server says, without where in a script that was."""
    text = str(exc)
    found = _IN_SCRIPT.search(text)
    return text if found is None else found[1]


def _raise_if_given_up(exc: NotSent | NoAnswer) -> None:
    """Raise what the line gave a command up for: it may be up again, and give up what is repeated, for ever."""
    if isinstance(exc.__cause__, (ChannelLayerError, ImproperlyConfigured)):
        raise copy_error(exc.__cause__) from exc


def _fail_all(answers: Iterable[ReplySink], error: Exception) -> None:
    for answer in answers:
        if not answer.done():
            fail(answer, copy_error(error))
