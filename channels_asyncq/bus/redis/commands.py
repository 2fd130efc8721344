"""Single commands of a partition: sent again where the server did not execute them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError, pack_command

from ...events import WIRE
from ...exceptions import ChannelLayerError
from ..resp.protocol import WireProtocol
from ..resp.replies import InFlight, NoAnswer, NotSent, ReplySink, copy_error, fail
from .refusals import is_script_missing

if TYPE_CHECKING:
    from .sender import Sender


class CommandReply(asyncio.Future[Any]):
    """The reply to a command of a sender, which gets the command back if the connection is lost before."""

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self.sender = sender


class Commands:
    """Writes single commands to the connection of a sender. It holds no state: a call has it, or a callback."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    async def call(self, *command: bytes | str | int, is_repeatable: bool = False) -> Any:
        """
        Return the reply to a command, waiting for the connection if it is down.

        A repeatable command is sent again when the connection ended without an answer.
        """
        sender = self._sender
        loads = 0
        while True:
            wire = sender.gate.wire
            if wire is None or not wire.pipeline.has_capacity:
                wire = await sender.usable_wire()
            node = sender.node
            try:
                reply = await wire.call(*command, reply=CommandReply(sender))
                sender.mark_healthy()
                return reply
            except (NotSent, NoAnswer) as exc:
                if isinstance(exc, NoAnswer) and not is_repeatable:
                    raise sender.unknown(exc) from exc
                _raise_if_given_up(exc)
            except ReplyError as exc:
                if sender.is_redirected(exc):
                    continue
                if not node.refusals.may_go_on(wire, exc, loads):
                    raise node.refusals.error_for(exc) from exc
                loads += is_script_missing(exc)

    def ask(self, *command: bytes | str | int) -> asyncio.Future[Any] | None:
        """
        Send a command without waiting; None if there is no connection. The future fails with ConnectionError,
        which is not logged if it is never retrieved.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        packed: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub says: a tuple of one
        return answer if self.ask_packed(packed, answer) else None

    def ask_packed(self, packed: bytes, answer: ReplySink) -> bool:
        """
        Send the bytes of a command as `ask()` does; return False if there is no connection.

        The answer is set within the call that reads the reply.
        """
        wire = self._sender.gate.at
        if wire is None or wire.is_lost:
            return False
        wire.pipeline.call_open(Question(self._sender, wire, packed, answer))
        return True


class Question:
    """A command sent without waiting. Its sender gets it back if the connection is lost before the reply."""

    __slots__ = ("_answer", "_loads", "_packed", "_wire", "count", "sender", "size")

    def __init__(self, sender: Sender, wire: WireProtocol, packed: bytes, answer: ReplySink) -> None:
        self.sender = sender
        self._wire = wire
        self._packed = packed
        self._answer = answer
        # How often it was sent again because its script was missing.
        self._loads = 0
        self.size, self.count = len(packed), 1

    # As an OpenCommand: it does not grow, and is packed before

    def pack(self) -> bytes:
        return self._packed

    def done(self) -> bool:
        return self._answer.done()

    def set_result(self, reply: Any, /) -> None:
        self.sender.mark_healthy()
        self._answer.set_result(reply)

    def set_exception(self, error: Exception, /) -> None:
        if isinstance(error, NoAnswer) and error.resend is not None:
            if self.sender.is_redirected(error.__cause__):
                self.sender.take_back(error.resend)
                return
        elif self.sender.is_redirected(error):
            self.sender.take_back(InFlight(self._packed, self, is_written=False))
            return
        if not isinstance(error, ReplyError):
            fail(self._answer, error)
            return
        node = self.sender.node
        wire = self.sender.gate.at or self._wire  # another one, if the command was resent
        goes_on = node.refusals.may_go_on(wire, error, self._loads)
        self._loads += is_script_missing(error)
        if goes_on and self._is_sent_again(wire):
            return
        refused = str(node.refusals.error_for(error))
        node.faults.warn(WIRE, "command.refused", refused, "%(reason)s", address=node.address, reason=refused)
        fail(self._answer, ConnectionAbortedError(refused))

    def exception(self) -> None:
        return None

    def _is_sent_again(self, wire: WireProtocol) -> bool:
        """Send it again: the server did not execute it. Return False if there is no connection."""
        if self.sender.is_draining:
            # Not to the last home: the PING behind which nothing is awaited there was sent already.
            self.sender.take_back(InFlight(self._packed, self, is_written=False))
            return True
        if wire.is_lost or wire.is_retired:
            return False
        self._wire = wire
        wire.pipeline.call_open(self)
        return True


def _raise_if_given_up(exc: NotSent | NoAnswer) -> None:
    """Raise the error that a command was given up for: otherwise it would be sent to an overdue node for ever."""
    if isinstance(exc.__cause__, (ChannelLayerError, ImproperlyConfigured)):
        raise copy_error(exc.__cause__) from exc
