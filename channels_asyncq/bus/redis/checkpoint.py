"""The checkpoints of a node, by fences: messages of a session to itself, in order with all others."""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from hiredis import pack_command

from ...clock import monotonic
from ...tallies import LatencyTally
from ..resp.protocol import WireProtocol
from ..resp.replies import copy_error
from .layout import Layout, Lease
from .leasing import RENEW_EVERY, Command
from .partition import Partition, Reading
from .sequences import parse_position
from .shared import Shared
from .watch import Findings, Watch

if TYPE_CHECKING:
    from .node import Node

# A generator of our own: the state of the global one belongs to the application.
_jitter = random.Random()
# Seconds within which a fence must arrive. Otherwise the connection is deaf.
LONGEST_FENCE = 3.0
# A fence may take this many times as long while large messages arrive before it over a slow link. (A server drops
# a subscriber that is 8 MB behind for 60 s.)
_MOST_FENCE_LOOKS = 20
# Seconds between two sweeps of streams that are not used any more.
_SWEEP_EVERY = 60.0
# The life of a mark in ms, and a random addition at most: so two marks of a partition have different expiries.
MARK_LIVES = 7 * 86_400_000
MARK_DIFFERS = 86_400_000


class Covered(NamedTuple):
    """A partition when a fence is sent: its epoch, and whether its position follows the fence."""

    partition: Partition
    epoch: int
    follows: bool

    @property
    def is_current(self) -> bool:
        """Whether its reading is still the one of that time."""
        return self.partition.epoch == self.epoch


class Coverage(Protocol):
    """
    The partitions of a fence.

    Implemented by `bus.redis.checkpoint.Plan` and `bus.redis.cluster.checkpoint.ClusterPlan`.
    """

    @property
    def covered(self) -> list[Covered]: ...

    @property
    def changes(self) -> int:
        """`Node.changes` when it was made."""


class Plan(NamedTuple):
    """What the fences of a node have in common until the lease or the partitions change."""

    #: The command, and its bytes, without the number of the fence, which comes last.
    command: Command
    packed: bytes
    covered: list[Covered]
    #: The state that it was made for.
    layout: Layout
    compatible: frozenset[bytes]
    changes: int

    def pack(self, number: int) -> bytes:
        """Return the bytes of the command. (hiredis takes longer for 50 arguments than all else here.)"""
        digits = b"%d" % number
        return b"%b$%d\r\n%b\r\n" % (self.packed, len(digits), digits)


class Fence:
    """A fence of the present connection for pushes, from its sending to its arrival."""

    __slots__ = ("arrived", "sent_at")

    def __init__(self, arrived: asyncio.Future[None]) -> None:
        self.arrived = arrived
        #: When it was written; None for one that may have waited for a connection.
        self.sent_at: float | None = None


class NodeFence(Fence):
    """
    A fence for all partitions of a node, by one command.

    As a `ReplySink` it gets the reply to its command, before or after it arrives.
    """

    __slots__ = ("_checkpoint", "plan")

    def __init__(self, checkpoint: Checkpoint, plan: Plan, arrived: asyncio.Future[None]) -> None:
        super().__init__(arrived)
        self._checkpoint = checkpoint
        self.plan = plan

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any, /) -> None:
        self._checkpoint.on_answer(self, reply)

    def set_exception(self, error: Exception, /) -> None:
        self._checkpoint.on_failure(self)

    def exception(self) -> None:
        return None


class Checkpoint:
    """
    Sends a fence through the server every five seconds, and acts on its content when it arrives.

    A fence is a message that the session publishes to itself: everything that was published before it has
    arrived before it. So it is a heartbeat, as the connection for pushes is not deaf, and a checkpoint, as it
    contains the ends of the logs, which become the positions. It also contains findings about the server.

    state    | timer                      | event: next state
    ---------|----------------------------|-------------------------------------------------------------------
    idle     | none                       | the connection for pushes comes up: due
    due      | until the next fence       | timer: awaited, or due again without a connection for commands
    awaited  | until it must have arrived | it arrives: due; timer: the connection for pushes is given up

    The end of the connection for pushes leads to idle, and its fences are void.
    """

    def __init__(self, shared: Shared, node: Node, watch: Watch) -> None:
        self._shared = shared
        self._node = node
        self._watch = watch
        self._context = contextvars.Context()
        self._number = 0
        self._plan: Plan | None = None
        # The lines of the last fence and `changes` of its plan, if there was nothing to act on.
        self._settled: tuple[bytes, int] | None = None
        self._swept_at = 0.0
        self._fences: dict[int, Fence] = {}
        self._timer: asyncio.TimerHandle | None = None
        # Set in `awaited`.
        self._awaited: Fence | None = None
        # Of the last fence that the timer has sent: how long it took to arrive.
        self._lag: float | None = None
        #: The round trips of the commands of the fences that the timer has sent.
        self.latency = LatencyTally()
        #: The server may have lost data for a reason that was reported already.
        self.has_changed = False

    @property
    def lag(self) -> float | None:
        """How long the last fence took to arrive, or the awaited one has taken so far if that is longer."""
        awaited = self._awaited
        if self._lag is None or awaited is None or awaited.sent_at is None:
            return self._lag
        return max(self._lag, monotonic() - awaited.sent_at)

    def _note_round_trip(self, fence: Fence) -> None:
        """Note that the command of a fence was answered."""
        if fence.sent_at is not None:
            self.latency.note(monotonic() - fence.sent_at)

    # Sending

    def _new(self) -> NodeFence:
        """Return the next fence, whose command is to be sent now."""
        self._number += 1
        fence = NodeFence(self, self._present_plan(), self._shared.loop.create_future())
        self._fences[self._number] = fence
        return fence

    def _present_plan(self) -> Plan:
        plan, lease = self._plan, self._node.lease
        if (
            plan is None
            or plan.changes != self._node.changes
            or plan.layout is not lease.layout
            or plan.compatible is not lease.compatible
        ):
            plan = self._plan = self._make_plan(lease)
        return plan

    def _make_plan(self, lease: Lease) -> Plan:
        node, topics, recovery = self._node, self._shared.topics, self._shared.options.recovery
        partitions = [partition for _, partition in sorted(node.partitions.items())]
        covered = [
            Covered(each, each.epoch, each.reading is Reading.LIVE or each.position is None)
            for each in partitions
        ]
        marks = [topics.mark(each.number) for each in partitions]
        logs = [topics.log(each.number) for each in partitions] if recovery else []
        keep = math.ceil(recovery.seconds) if recovery else 0
        command = (
            *node.lease_keeper.command(lease.layout, self._shared.scripts.fence, *marks, *logs),
            *(node.subscriber.topics.fence_topic, keep, node.lease_keeper.keeps_past, len(marks)),
            *(MARK_LIVES, MARK_DIFFERS),
        )
        packed: bytes = pack_command((*command, b""))  # type: ignore[arg-type]  # its stub says: a tuple of one
        packed = packed.removesuffix(b"$0\r\n\r\n")
        return Plan(command, packed, covered, lease.layout, lease.compatible, node.changes)

    async def first(self, partitions: Collection[Partition] | None = None) -> None:
        """
        Send a fence and wait for it: then each partition has a position.

        Args:
            partitions: those that need one. All others here may get theirs as well.

        Raises:
            TimeoutError: the fence did not arrive.
            ConnectionResetError: the connection for pushes was lost, or the lease of this session had run out.
        """
        fence = self._new()
        command = (*fence.plan.command, self._number)
        answer = await self._node.sender.commands.call(*command, is_repeatable=True)
        if not self._node.lease_keeper.note(answer, fence.plan.layout):
            raise ConnectionResetError("the lease had run out, and the fence does not count")
        async with asyncio.timeout(LONGEST_FENCE):
            await fence.arrived

    def send_in(self, seconds: float | None = None) -> None:
        """Send the next fence after about `seconds`, or `RENEW_EVERY` if that is None."""
        if self._node.is_closed:
            return  # the connection came up in the loop iteration in which the session was closed
        self._node.lease_keeper.stop_renewal()
        seconds = (RENEW_EVERY if seconds is None else seconds) * _jitter.uniform(0.8, 1.2)
        self._timer = self._shared.loop.call_later(seconds, self._send, context=self._context)

    def _send(self) -> None:
        fence = self._new()
        fence.sent_at = monotonic()
        if not self._node.sender.commands.ask_packed(fence.plan.pack(self._number), fence):
            self.send_in()

    def on_answer(self, fence: NodeFence, answer: Any) -> None:
        """Act on the answer to the command of a fence."""
        if (wire := self._node.commands.wire) is not None:
            wire.rest()
        self._note_round_trip(fence)
        # Without a lease no fence was sent.
        self._sent(fence, has_failed=not self._node.lease_keeper.note(answer, fence.plan.layout))

    def on_failure(self, fence: Fence) -> None:
        """Send another fence later: the server refused this one, or did not answer."""
        self._sent(fence, has_failed=True)

    def _sent(self, fence: Fence, *, has_failed: bool) -> None:
        wire = self._node.pushes.wire
        arrived = fence.arrived
        if wire is None or (arrived.done() and arrived.exception() is not None):
            return  # the next connection has its own fences
        if has_failed or arrived.done():
            self.send_in()
            return
        self._awaited = fence
        self._look(wire, _MOST_FENCE_LOOKS, LONGEST_FENCE)

    # Waiting for a fence

    def _look(self, wire: WireProtocol, looks: int, seconds: float, is_last: bool = False) -> None:
        """Check after `seconds` why the awaited fence has not arrived."""
        arguments = wire, looks, wire.arrived, is_last
        self._timer = self._shared.loop.call_later(seconds, self._is_deaf, *arguments, context=self._context)

    def _is_deaf(self, wire: WireProtocol, looks: int, before: tuple[int, int], is_last: bool) -> None:
        # The fence may take longer to arrive than a lease holds.
        self._node.lease_keeper.renew_later()
        if looks > 0 and wire.arrived != before and (wire.arrived[1] or before[1]):
            # A large message is arriving. No log keeps it, so wait: the fence comes after it.
            self._look(wire, looks - 1, LONGEST_FENCE)
        elif not is_last or wire.is_stalled:
            # The fence may be there, unread: this loop was blocked, or is still busy with earlier messages.
            self._look(wire, looks, LONGEST_FENCE / 10, is_last=True)
        else:
            wire.abort(TimeoutError("what is published does not arrive"))

    def stop(self) -> None:
        """Send no more fences, until `send_in()`."""
        self._awaited = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drop(self, error: ConnectionError | None = None) -> None:
        """
        Void the fences that are under way: they would move positions past pushes that are discarded.

        Args:
            error: for those that wait for them, if the connection for pushes is not lost.
        """
        fences, self._fences = self._fences, {}
        self._lag = None
        error = error or ConnectionResetError("the connection for pushes was lost")
        for fence in fences.values():
            if not fence.arrived.done():
                fence.arrived.set_exception(copy_error(error))
                fence.arrived.exception()  # mark it as retrieved: there may be no waiter

    # The arrival of a fence

    def on_fence(self, data: bytes) -> None:
        """
        Act on a fence that has arrived.

        Raises:
            ValueError: the bytes are not a fence.
        """
        head, lines = data.split(b"\n", 1)
        number, published_at = map(int, head.split(b" "))
        fence = self._fences.get(number)
        if not isinstance(fence, NodeFence):
            return  # it is of an earlier connection
        self._complete(number, fence.plan, published_at, lines)

    def _complete(self, number: int, plan: Coverage, published_at: int, lines: bytes) -> None:
        """Act on a fence: everything that was published before it has arrived."""
        findings = self._note(plan, published_at, lines)
        self._sweep()
        self._node.log.losses.report()
        self._settle(number)
        if findings is not None:
            self._act_on(findings)
        self._node.logs.ends.ask_for_epochs()

    def _note(self, plan: Coverage, published_at: int, lines: bytes) -> Findings | None:
        """Move the positions, and return the findings; None if nothing was published or changed meanwhile."""
        state = lines, plan.changes
        if state == self._settled and plan.changes == self._node.changes:
            for each in plan.covered:
                if each.follows:
                    each.partition.fenced_at = published_at
            return None
        ends, marks, refusal, counts = lines.split(b"\n", 3)
        for each, end in zip(plan.covered, ends.split(), strict=False):
            # A partition that came here later, or was not live, has missed pushes before the fence.
            if each.follows and each.is_current:
                each.partition.note_fence(parse_position(end), published_at, self._node.subscriber.run_id)
        marked = [each.partition if each.is_current else None for each in plan.covered]
        findings = self._watch.note_fence(marked, published_at, marks, refusal, counts)
        self._settled = None if findings else state
        return findings

    def _settle(self, number: int) -> None:
        """Note that this fence has arrived. Earlier ones may have been refused, and then never arrive."""
        for earlier in [earlier for earlier in self._fences if earlier <= number]:
            fence = self._fences.pop(earlier)
            if not fence.arrived.done():
                fence.arrived.set_result(None)
            if earlier == number and fence.sent_at is not None:
                self._lag = monotonic() - fence.sent_at
            if fence is self._awaited:
                self.stop()
                self.send_in()

    def _sweep(self) -> None:
        now = monotonic()
        if now - self._swept_at > _SWEEP_EVERY:
            self._swept_at = now
            for partition in self._node.partitions.values():
                partition.delivered.sweep(now)
                partition.replay.forget_unused(now)
            self._node.leave_unwanted()

    def _act_on(self, findings: Findings) -> None:
        """Report the losses of the server to the session."""
        # The loss by another server, or by a restart without the end of the logs, was reported already.
        has_changed, self.has_changed = self.has_changed, False
        receiver = self._shared.receiver
        all_here = list(self._node.partitions)
        if findings.forgotten:
            # Without logs the server held no messages of topics.
            has_logs = self._shared.options.recovery is not None
            topics = self._node.logged_topics(findings.forgotten) if has_logs and not has_changed else set()
            # Keys are evicted one by one: keys of other partitions may go before their marks.
            jobs = all_here if findings.has_evicted else findings.forgotten
            self._shared.forget_logs(topics)
            receiver.on_forgotten(all_here if findings.is_first else jobs, topics)
            receiver.on_jobs_unknown(jobs)
            wire = self._node.commands.wire
            if wire is not None and not wire.is_lost and not has_changed:
                info = wire.call(b"INFO", b"all")
                info.add_done_callback(partial(self._explain, findings))
        elif findings.is_first:
            # Memberships from before this fence may have gone together with marks that this session never saw.
            receiver.on_forgotten(all_here, set())
        elif findings.has_evicted:
            # A membership may go before its mark: the mark expires later, and may be as old.
            receiver.on_forgotten(all_here, set())
            if receiver.on_jobs_unknown(all_here):
                self._watch.log_evictions()

    def _explain(self, findings: Findings, info: asyncio.Future[bytes]) -> None:
        words = b"" if info.exception() is not None else info.result()
        self._watch.log_forgotten(findings, len(self._node.partitions), words)
