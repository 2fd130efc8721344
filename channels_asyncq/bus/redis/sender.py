"""The commands and messages of one partition: written at its home, and resent at the next when that is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError

from ...exceptions import ChannelLayerError, DeliveryUnknown, LayerClosed, LayerUnavailable
from ...messages.framing import ITEM_SIZE
from ..resp.protocol import WireProtocol
from ..resp.replies import InFlight, NoAnswer, NotSent, ReplySink, copy_error, fail
from .batches import MESSAGES_PER_BATCH, Batch, Message, Route
from .commands import Commands
from .gate import Gate, Ticket
from .layout import Lease
from .redirects import Redirects
from .refusals import is_script_missing

if TYPE_CHECKING:
    from .node import Node


class Sender:
    """
    Sends the commands and messages of a partition. It resends those that the server did not execute or answer.

    state    | gate | home     | node     | event: next state
    ---------|------|----------|----------|---------------------------------------------------------------
    open     | open | a node   | the same | the connection is lost: waiting; a move, or `pause()`: draining, or
             |      |          |          | arriving if there is no connection
    draining | shut | the next | the last | the last node has answered all, or its lost connection has handed
             |      |          |          | over the rest: arriving
    arriving | shut | the next | the last | no sender waits for capacity at the last node any more, and after
             |      |          |          | `pause()` also `proceed()`: waiting
    waiting  | shut | a node   | any      | the connection of its home is up: commands in flight are resent, then
             |      |          |          | open

    A pause leads through the same states as a move, with the same node as the next.

    Its errors are LayerUnavailable, DeliveryUnknown, and ChannelLayerError for a command that the server refused.
    They are raised, or set in the reply sink.
    """

    def __init__(self, home: Node, redirects: Redirects | None = None) -> None:
        """
        Args:
            redirects: acts on the redirects of a cluster.
        """
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        #: The node that the partition is at now. The only reference that a move changes, with `node`.
        self.home = home
        #: The node of the connection at the gate, or of the last one, and the session's lease there, which
        #: decides the format.
        self.node = home
        self.lease: Lease = home.lease
        self.gate = Gate()
        self._redirects = redirects
        #: Writes single commands. Messages go by `send()` and `post()`.
        self.commands = Commands(self)
        #: Commands that lost connections left without a reply, in order. They are resent before all others.
        self.in_flight: list[InFlight] = []
        # The node that is being drained, and how many senders wait for capacity at a connection.
        self._drained: Node | None = None
        self._ping: asyncio.Future[Any] | None = None
        self._is_arriving = False
        self._is_paused = False
        self._at_capacity = 0
        # While the partition moves: from shut to open, `send_timeout` in all.
        self._timer: asyncio.TimerHandle | None = None
        self._overdue: LayerUnavailable | None = None
        # Tasks that send messages again that the server did not execute.
        self._again: set[asyncio.Task[None]] = set()
        # A reply sink that is already done: its message is never resent.
        self._nobody: asyncio.Future[Any] | None = None
        if redirects is None:
            self._nobody = self._loop.create_future()
            self._nobody.cancel()

    @property
    def is_awaited(self) -> bool:
        """Whether any command waits for the connection, to be sent or resent."""
        return bool(self.in_flight or self.gate or self._drained)

    @property
    def fault(self) -> str:
        """Why sends fail although there is a connection: a move takes too long; empty if they do not."""
        overdue = self._overdue
        return "" if overdue is None else overdue.reason

    @property
    def is_draining(self) -> bool:
        """Whether the last home still has commands in flight."""
        return self._drained is not None

    def mark_healthy(self) -> None:
        """Note that the server executed a command."""
        if self.node.commands.is_refusing:
            self.node.commands.mark_healthy()

    # The home

    def open(self, wire: WireProtocol) -> None:
        """Resend the commands in flight on the home's connection, then let sends go on. Not while draining."""
        self._stop_timer()
        self.node, self.lease = self.home, self.home.lease
        in_flight, self.in_flight = self.in_flight, []
        if in_flight:
            wire.pipeline.resend(in_flight)
        self.gate.open(wire)

    def on_up(self, wire: WireProtocol) -> None:
        """Send again: the connection of the home is up."""
        if self._drained is None and not self._is_arriving and not self._is_paused:
            self.open(wire)

    def hold(self) -> None:
        """Write nothing more to the connection, which ends when it has answered everything."""
        self.gate.hold()

    def on_lost(self) -> None:
        """Stop sending: the connection of the home is lost. Its commands in flight come back by `take_back()`."""
        if self._drained is None:
            self.gate.shut()

    def rest(self) -> None:
        """Wait for nothing: the home has no connection until something is sent."""
        self._stop_timer()

    def take_back(self, command: InFlight) -> None:
        """Take a command that a lost connection left without a reply."""
        self.in_flight.append(command)

    def give_up_before(self, batch: Batch) -> None:
        """
        Give up the commands in flight that a node has redirected although it executed this later batch.

        In a slot that is moving, a node may execute one command and refuse another. Sent again under its number,
        the earlier one would be dropped by receivers, and its sender would not learn of it.
        """
        stream = batch.route.stream
        if stream is None:
            return
        in_flight, self.in_flight = self.in_flight, []
        for command in in_flight:
            if isinstance(command.future, Batch) and command.future.route.stream is stream:
                command.fail(ConnectionResetError("it was refused there, and a later message was not"))
            else:
                self.in_flight.append(command)

    def fail(self, error: Exception) -> None:
        """Fail the senders that wait, and the commands in flight without a connection."""
        in_flight, self.in_flight = self.in_flight, []
        for command in in_flight:
            command.fail(error)
        self.gate.fail(error)
        if isinstance(error, LayerClosed):
            self._stop_timer()
            # The connection takes no commands while it waits for its last replies, and is not lost before.
            self.gate.shut()

    def move(self, home: Node) -> None:
        """
        Send by another node from now on, and nothing before the last one has answered.

        Commands that were written to the last node may still execute there: later ones must not overtake them.
        """
        if home is self.home:
            return
        self.home = home
        self._drain()

    def pause(self) -> None:
        """Send nothing until `proceed()`: the home has refused a command, and not for good."""
        self._is_paused = True
        self._drain()

    @property
    def is_paused(self) -> bool:
        """Whether it sends nothing until `proceed()`."""
        return self._is_paused

    def proceed(self) -> None:
        """Send again, after `pause()`, once everything that was sent before is answered."""
        self._is_paused = False
        if self._drained is None:
            self._arrive()

    def is_redirected(self, error: BaseException | None, by: Node | None = None) -> bool:
        """
        Act on the error of a command if it is a redirect of a cluster: the command is sent again then.

        Args:
            by: the node that refused the command, if that is not the one of the connection at the gate.
        """
        return self._redirects is not None and self._redirects.take(error, by or self.node)

    def _drain(self) -> None:
        """Shut the gate, and go on when the last node has answered everything."""
        wire = self.gate.at
        self.gate.shut()
        if self._timer is None:
            timeout = self.home.send_timeout
            # A gate that opens, only to be shut by the next refusal, does not begin anew.
            left = timeout if self._redirects is None else max(0.0, timeout - self._redirects.spent)
            self._timer = self._loop.call_later(left, self._is_overdue, timeout, context=self._context)
        if self._drained is not None:
            return
        if wire is None:
            self._arrive()
            return
        self._drained = self.node
        self.node.leaving.append(self)
        if not wire.is_lost:
            # Replies come in the order of the commands. Without a sender: it is not resent.
            self._ping = wire.call(b"PING")
            self._ping.add_done_callback(self._answered)

    def _answered(self, ping: asyncio.Future[Any]) -> None:
        if ping is self._ping and self._drained is not None:
            self._drained.leaving.remove(self)
            self.on_handed_over()

    def on_handed_over(self) -> None:
        """Use the home: no command of the partition is in flight at the last node."""
        self._drained = self._ping = None
        self._arrive()

    def _arrive(self) -> None:
        """Use the home, unless senders wait for capacity at the last node: they are first."""
        self._is_arriving = self._at_capacity > 0
        if self._is_arriving or self._is_paused or self._drained is not None or self.gate.at is not None:
            return
        wire = self.home.commands.wire
        if wire is not None and not wire.is_lost and not wire.is_retired:
            self.open(wire)
            self.home.on_answerable()
            return
        self.home.commands.start()
        try:
            self.home.commands.raise_if_overdue()
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            self.fail(exc)

    def _is_overdue(self, seconds: float) -> None:
        reason = self._redirects.reason if self._redirects is not None else ""
        reason = reason or "the partition was moved here, and could not be used"
        why = self.home.commands.reason
        words = f"{reason} within {seconds:g} s{': ' if why else ''}{why}"
        self._overdue = LayerUnavailable(self.home.address, words)
        self.fail(self._overdue)

    def _stop_timer(self) -> None:
        self._overdue = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _raise_if_overdue(self) -> None:
        if self._overdue is not None:
            raise copy_error(self._overdue)
        self.home.commands.raise_if_overdue()

    async def usable_wire(
        self, ticket: Ticket | None = None, waiter: asyncio.Future[None] | None = None
    ) -> WireProtocol:
        """
        Return the connection when it is up and has capacity. Write to it without awaiting in between.

        Raises:
            LayerUnavailable: `send_timeout` seconds have passed since the connection was lost.
            ImproperlyConfigured: the server holds another layout of this namespace.
        """
        gate = self.gate
        ticket = ticket or gate.take_ticket()
        while True:
            wire = gate.wire
            if wire is None or wire.is_lost or waiter is not None:
                self.home.wake()  # the process may know of an outage
                if waiter is None:
                    self._raise_if_overdue()
                    waiter = gate.line_up(ticket)
                await gate.turn(waiter)
                waiter = None
                # The present connection: it is still this sender's turn if the partition has moved meanwhile.
                wire = gate.at
                if wire is None or wire.is_lost:
                    continue
            if await self._has_capacity(wire) and gate.at is wire:
                return wire

    async def _has_capacity(self, wire: WireProtocol) -> bool:
        """Return when a connection has capacity; False if it is lost."""
        self._at_capacity += 1
        try:
            await wire.pipeline.wait_for_capacity()
        except NotSent:
            return False
        else:
            return True
        finally:
            self._at_capacity -= 1
            if self._is_arriving and not self._at_capacity:
                # After this sender has lined up again.
                self._loop.call_soon(self._arrive, context=self._context)

    # Messages

    def send(self, route: Route, names: bytes, payload: bytes) -> Awaitable[Any]:
        """Send a message when there is a connection with capacity; the result is the server's reply."""
        message = names, payload
        answer: asyncio.Future[Any] = asyncio.Future(loop=self._loop)
        wire = self.gate.wire
        if wire is None or not wire.pipeline.has_capacity:
            return self._send_later(route, message, answer)
        self._write(wire, route, message, answer)
        return answer

    async def _send_later(self, route: Route, message: Message, answer: asyncio.Future[Any]) -> Any:
        self._write(await self.usable_wire(), route, message, answer)
        return await answer

    def _write(self, wire: WireProtocol, route: Route, message: Message, answer: ReplySink) -> None:
        batch = route.open
        if batch is not None and batch.wire is wire:
            free_bytes = batch.free_bytes - len(message[0]) - len(message[1]) - ITEM_SIZE
            if free_bytes >= 0:
                batch.free_bytes = free_bytes
                batch.messages.append(message)
                batch.answers.append(answer)
                if len(batch.messages) == MESSAGES_PER_BATCH:
                    route.open = None
                    wire.pipeline.seal(MESSAGES_PER_BATCH)
                return
            wire.pipeline.seal(len(batch.messages))
        batch = Batch(self, wire, route, message, answer)
        if route.most:
            # Also if no more messages fit: a later message must not be written before this batch.
            route.open = batch
        wire.pipeline.call_open(batch)

    def post(self, route: Route, message: Message) -> None:
        """
        Write a message without waiting for the reply; it is dropped if there is no connection.

        It is not sent again, but in a cluster: a redirect moves the partition, and there may be no other message
        that learns of it.
        """
        wire = self.gate.at
        if wire is not None and not wire.is_lost:
            self._write(wire, route, message, self._nobody or self._loop.create_future())

    def not_done(self, batch: Batch, error: Exception) -> None:
        """Act on the error of a batch that was written: send it again, or fail its messages."""
        refusals = self.node.refusals
        is_executed = not isinstance(error, NotSent)
        if isinstance(error, ReplyError):
            is_executed = not (
                self.is_redirected(error) or refusals.may_go_on(batch.wire, error, batch.loads)
            )
            batch.loads += is_script_missing(error)
        elif isinstance(error, NoAnswer) and error.resend is not None and self.is_redirected(error.__cause__):
            # It may have been executed on a lost connection: receivers know a repeat by its number.
            self.take_back(error.resend)
            return
        if not is_executed:
            self._begin_again(batch)
            return
        if isinstance(error.__cause__, ReplyError) and self.gate.at is not None:
            refusals.may_go_on(self.gate.at, error.__cause__)
        for answer in batch.answers:
            if not answer.done():
                failure = self.unknown(error) if isinstance(error, NoAnswer) else refusals.error_for(error)
                failure.__cause__ = error
                fail(answer, failure)

    def _begin_again(self, batch: Batch) -> None:
        try:
            self._raise_if_overdue()
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            _fail_all(batch.answers, exc)
            return
        # Before all messages that were not sent yet, including the senders that wait at the gate.
        ticket = self.gate.take_ticket(is_resend=True)
        waiter = self.gate.line_up(ticket) if self.gate.wire is None else None
        task = self._loop.create_task(
            self._send_again(batch, ticket, waiter),
            name=f"channels_asyncq sending again to {self.home.address}",
            context=self._context,
        )
        self._again.add(task)
        task.add_done_callback(self._again.discard)

    async def _send_again(self, batch: Batch, ticket: Ticket, waiter: asyncio.Future[None] | None) -> None:
        try:
            wire = await self.usable_wire(ticket, waiter)
        except asyncio.CancelledError:
            _fail_all(batch.answers, LayerClosed())
            raise
        except (ChannelLayerError, ImproperlyConfigured) as exc:
            _fail_all(batch.answers, exc)
        else:
            # Write all messages without awaiting: otherwise other messages would come between them.
            batch.forget_done()
            if batch.messages:
                batch.wire = wire
                wire.pipeline.call_open(batch)

    def unknown(self, exc: NoAnswer) -> DeliveryUnknown:
        """Return the error of a command that was written and not answered."""
        reason = exc if isinstance(exc.__cause__, ReplyError) else exc.__cause__ or exc
        return DeliveryUnknown(f"{self.node.address} was sent the message and did not answer: {reason}")


def _fail_all(answers: Iterable[ReplySink], error: Exception) -> None:
    for answer in answers:
        if not answer.done():
            fail(answer, copy_error(error))
