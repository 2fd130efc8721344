"""Single commands of a partition: sent again where the server did not execute them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError, pack_command

from ...events import WIRE
from ...exceptions import ChannelLayerError
from ..resp.protocol import WireProtocol
from ..resp.replies import InFlight, NoAnswer, NotSent, copy_error, fail
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
                if not node.refusals.may_go_on(wire, exc, loads):
                    raise node.refusals.error_for(exc) from exc
                loads += is_script_missing(exc)

    def ask(self, *command: bytes | str | int) -> asyncio.Future[Any] | None:
        """
        Send a command without waiting; None if there is no connection. The future fails with ConnectionError,
        which is not logged if it is never retrieved.
        """
        wire = self._sender.gate.at
        if wire is None or wire.is_lost:
            return None
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._ask(wire, command, answer, 0)
        return answer

    def _ask(
        self,
        wire: WireProtocol,
        command: tuple[bytes | str | int, ...],
        answer: asyncio.Future[Any],
        loads: int,
    ) -> None:
        reply = wire.call(*command, reply=CommandReply(self._sender))
        reply.add_done_callback(partial(self._asked, wire, command, answer, loads))

    def _ask_again(
        self,
        wire: WireProtocol,
        command: tuple[bytes | str | int, ...],
        answer: asyncio.Future[Any],
        loads: int,
    ) -> bool:
        """Send a command again that the server did not execute; return False if there is no connection."""
        if self._sender.is_draining:
            # Not to the last home: the PING behind which nothing is awaited there was sent already.
            reply = CommandReply(self._sender)
            reply.add_done_callback(partial(self._asked, wire, command, answer, loads))
            packed: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub says: a tuple of one
            self._sender.take_back(InFlight(packed, reply, is_written=False))
            return True
        if wire.is_lost:
            return False
        self._ask(wire, command, answer, loads)
        return True

    def _asked(
        self,
        wire: WireProtocol,
        command: tuple[bytes | str | int, ...],
        answer: asyncio.Future[Any],
        loads: int,
        reply: asyncio.Future[Any],
    ) -> None:
        if answer.done():
            return
        error = reply.exception()
        if error is None:
            self._sender.mark_healthy()
            answer.set_result(reply.result())
        elif isinstance(error, ReplyError):
            node = self._sender.node
            wire = self._sender.gate.at or wire  # another one, if the command was resent
            goes_on = node.refusals.may_go_on(wire, error, loads)
            if goes_on and self._ask_again(wire, command, answer, loads + is_script_missing(error)):
                return
            refused = str(node.refusals.error_for(error))
            node.faults.warn(WIRE, "command.refused", refused, "%s", refused)
            fail(answer, ConnectionAbortedError(refused))
        else:
            assert isinstance(error, Exception)
            fail(answer, error)


def _raise_if_given_up(exc: NotSent | NoAnswer) -> None:
    """Raise the error that a command was given up for: otherwise it would be sent to an overdue node for ever."""
    if isinstance(exc.__cause__, (ChannelLayerError, ImproperlyConfigured)):
        raise copy_error(exc.__cause__) from exc
