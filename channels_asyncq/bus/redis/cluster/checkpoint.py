"""The checkpoints of a node of a cluster: the ends of its logs, each in its slot, and a fence behind them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from hiredis import ReplyError, pack_command

from ....clock import monotonic
from ...resp.replies import ReplySink, is_redirect
from ..checkpoint import LONGEST_FENCE, MARK_DIFFERS, MARK_LIVES, Checkpoint, Covered, Fence
from ..partition import Partition, Reading
from ..redirects import Redirected
from ..refusals import is_script_missing
from ..scripts import Script

if TYPE_CHECKING:
    from ..shared import Shared
    from ..watch import Watch
    from .node import ClusterNode

# In each round with a number divisible by this, the fences also trim the logs and renew their expiry.
_FULL_EVERY = 6


class ClusterPlan(NamedTuple):
    """The fences of a node until its partitions change."""

    covered: list[Covered]
    changes: int
    #: The commands about the partitions, in their order, and those that trim.
    light: list[bytes]
    full: list[bytes]
    #: The topic of the fence; empty if there is none yet, and nothing is covered.
    topic: bytes


class ClusterFence(Fence):
    """
    A fence, and the answers about the partitions that were sent before it.

    As a `ReplySink` it gets the answer to its SPUBLISH, which comes after all others.
    """

    __slots__ = (
        "_checkpoint",
        "answers",
        "error",
        "has_arrived",
        "is_published",
        "is_regular",
        "node",
        "number",
        "plan",
    )

    def __init__(
        self,
        checkpoint: ClusterCheckpoint,
        node: ClusterNode,
        number: int,
        plan: ClusterPlan,
        arrived: asyncio.Future[None],
        *,
        is_regular: bool,
    ) -> None:
        super().__init__(arrived)
        #: Whether the timer sent it: then the next one follows it.
        self.is_regular = is_regular
        self._checkpoint = checkpoint
        self.node = node
        self.number = number
        self.plan = plan
        self.answers: list[list[Any] | None] = [None] * len(plan.covered)
        #: Why a partition could not be asked.
        self.error: Exception | None = None
        self.is_published = self.has_arrived = False

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any, /) -> None:
        self._checkpoint.on_published(self)

    def set_exception(self, error: Exception, /) -> None:
        self._checkpoint.on_refused(self, error)

    def exception(self) -> None:
        return None


class FencePart:
    """Gets the answer about one partition of a fence."""

    __slots__ = ("_fence", "_index")

    def __init__(self, fence: ClusterFence, index: int) -> None:
        self._fence = fence
        self._index = index

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any, /) -> None:
        self._fence.answers[self._index] = reply

    def set_exception(self, error: Exception, /) -> None:
        covered = self._fence.plan.covered[self._index]
        if not is_redirect(error):
            self._fence.error = error
        elif self._fence.is_regular and self._index > 0:
            # A slot may be open for long. The fence counts for the other partitions.
            covered.partition.sender.is_redirected(error, self._fence.node)
        else:
            if covered.is_current:
                covered.partition.sender.is_redirected(error, self._fence.node)
            self._fence.error = Redirected(str(error))

    def exception(self) -> None:
        return None


class ClusterCheckpoint(Checkpoint):
    """
    Asks about each partition that is read at a node, then publishes the fence, all in one write.

    The answers are from before the fence was published, so when it arrives, everything up to these ends has
    arrived.
    """

    _node: ClusterNode

    def __init__(self, shared: Shared, node: ClusterNode, watch: Watch) -> None:
        super().__init__(shared, node, watch)
        self._cluster_plan: ClusterPlan | None = None
        self._round = 0

    # Sending

    def _plan_for(self, partitions: Collection[Partition]) -> ClusterPlan:
        topic = self._node.subscriber.topics.fence_topic
        covered = [
            Covered(each, each.epoch, each.reading is Reading.LIVE or each.position is None)
            for each in partitions
            if topic and not each.is_away
        ]
        light = [
            self._pack(each.partition, is_full=False, is_first=not at) for at, each in enumerate(covered)
        ]
        full = [self._pack(each.partition, is_full=True, is_first=not at) for at, each in enumerate(covered)]
        return ClusterPlan(covered, self._node.changes, light, full, topic)

    def _pack(self, partition: Partition, *, is_full: bool, is_first: bool) -> bytes:
        return _packed(*self._command(partition, is_full=is_full, is_first=is_first))

    def _command(
        self, partition: Partition, *, is_full: bool, is_first: bool
    ) -> tuple[bytes | str | int, ...]:
        topics, recovery = self._shared.topics, self._shared.options.recovery
        script = self._shared.scripts.fence_part
        assert isinstance(script, Script)
        keys = [topics.mark(partition.number)]
        if recovery is not None:
            keys.append(topics.log(partition.number))
        keep = math.ceil(recovery.seconds) if recovery is not None else 0
        is_full = is_full or partition.position is None or partition.mark is None
        rounds = b"1" if is_full else b"0", keep, self._node.lease_keeper.keeps_past
        marks = MARK_LIVES, MARK_DIFFERS, b"1" if is_first else b"0"
        return b"EVALSHA", script.sha, len(keys), *keys, *rounds, *marks

    async def write(self) -> None:
        """
        Return when the server has written the mark of a partition that is at this node.

        Raises:
            ChannelLayerError: the server refuses to write.
        """
        if not self._node.partitions:
            return
        partition = self._node.partitions[min(self._node.partitions)]
        command = self._command(partition, is_full=False, is_first=True)
        _, _, _, words, _ = await partition.sender.commands.call(*command, is_repeatable=True)
        if words:
            raise self._node.refusals.error_for(ReplyError(words.decode(errors="replace")))

    def _present(self) -> ClusterPlan:
        plan = self._cluster_plan
        topic = self._node.subscriber.topics.fence_topic
        if plan is None or plan.changes != self._node.changes or plan.topic != topic:
            partitions = [partition for _, partition in sorted(self._node.partitions.items())]
            plan = self._cluster_plan = self._plan_for(partitions)
        return plan

    def _begin(self, plan: ClusterPlan, *, is_full: bool, is_regular: bool = False) -> ClusterFence | None:
        """Send a fence; None if there is no connection for commands."""
        self._number += 1
        arrived: asyncio.Future[None] = self._shared.loop.create_future()
        fence = ClusterFence(self, self._node, self._number, plan, arrived, is_regular=is_regular)
        self._fences[self._number] = fence
        if is_regular:
            fence.sent_at = monotonic()
        for index, packed in enumerate(plan.full if is_full else plan.light):
            if not self._ask(packed, FencePart(fence, index)):
                return None
        published = _packed(b"SPUBLISH", plan.topic, self._number)
        return fence if self._ask(published, fence) else None

    def _ask(self, packed: bytes, answer: ReplySink) -> bool:
        wire = self._node.commands.wire
        if wire is None or wire.is_lost:
            return False
        wire.pipeline.call_open(_Part(packed, answer))
        return True

    async def first(self, partitions: Collection[Partition] | None = None) -> None:
        """
        Send a fence and wait for it: then each of these partitions has a position.

        Raises:
            Redirected: one of them is not here. It is looked for.
            TimeoutError: the fence did not arrive.
            ConnectionResetError: a connection was lost.
        """
        plan = self._present() if partitions is None else self._plan_for(partitions)
        if not plan.covered:
            return
        await self._node.commands.up()
        fence = self._begin(plan, is_full=True)
        if fence is None:
            raise ConnectionResetError("the connection for commands was lost")
        while not fence.arrived.done():
            await asyncio.wait([fence.arrived], timeout=LONGEST_FENCE)
            wire = self._node.subscriber.topics.wire
            is_behind = wire is not None and wire.is_stalled  # another partition catches up meanwhile
            if not fence.arrived.done() and not is_behind:
                raise TimeoutError("what is published does not arrive")
        fence.arrived.result()

    def _send(self) -> None:
        plan = self._present()
        if not plan.covered:
            self.send_in()
            return
        self._round += 1
        if self._begin(plan, is_full=self._round % _FULL_EVERY == 0, is_regular=True) is None:
            self.send_in()

    # Answers

    def on_published(self, fence: ClusterFence) -> None:
        """Act on the answer to a fence's SPUBLISH: the answers about the partitions have come before it."""
        if (wire := self._node.commands.wire) is not None:
            wire.rest()
        self._note_round_trip(fence)
        fence.is_published = True
        if fence.error is not None:
            self.on_refused(fence, fence.error)
            return
        if fence.has_arrived:
            self._finish(fence)
        self._sent_here(fence, has_failed=False)

    def on_refused(self, fence: ClusterFence, error: Exception) -> None:
        """Void a fence: a partition has left, or the connection was lost. The next one follows soon."""
        # First: one that was void before, with the connection for pushes, is followed by none of this connection.
        self._sent_here(fence, has_failed=True)
        if not fence.arrived.done():
            has_moved = isinstance(error, Redirected) or is_redirect(error)
            kind = Redirected if has_moved else ConnectionResetError
            fence.arrived.set_exception(kind(f"no fence: {error}"))
            fence.arrived.exception()  # mark it as retrieved: there may be no waiter
        if isinstance(error, ReplyError):
            owner = self._node.partition_of_own(fence.plan.topic)
            if owner is not None:
                owner.sender.is_redirected(error, self._node)
            wire = self._node.commands.wire
            if wire is not None and is_script_missing(error):
                # Loads it: there may be no other command that does.
                self._node.refusals.may_go_on(wire, error)
        self._fences.pop(fence.number, None)

    def _sent_here(self, fence: ClusterFence, *, has_failed: bool) -> None:
        if fence.is_regular:
            self._sent(fence, has_failed=has_failed)

    def on_fence(self, data: bytes) -> None:
        fence = self._fences.get(int(data))
        if not isinstance(fence, ClusterFence):
            return  # it is of an earlier connection
        fence.has_arrived = True
        if fence.is_published and fence.error is None:
            self._finish(fence)

    def _settle(self, number: int) -> None:
        for earlier, fence in self._fences.items():
            if earlier < number and not fence.arrived.done():
                # It was published before its topic was subscribed to. This one may be for other partitions.
                fence.arrived.set_exception(Redirected("the fence did not arrive"))
                fence.arrived.exception()  # mark it as retrieved: there may be no waiter
        super()._settle(number)

    def _finish(self, fence: ClusterFence) -> None:
        plan = fence.plan
        answered = [
            (each, answer)
            for each, answer in zip(plan.covered, fence.answers, strict=True)
            if answer is not None
        ]
        answers = [answer for _, answer in answered]
        if len(answers) < len(fence.answers):
            plan = plan._replace(covered=[each for each, _ in answered])
        published_at = min(int(answer[0]) for answer in answers)
        refusal = next((answer[3] for answer in answers if answer[3]), b"")
        lines = b"\n".join(
            (
                b" ".join(answer[1] for answer in answers),
                b" ".join(answer[2] for answer in answers),
                refusal.replace(b"\n", b" "),
                answers[0][4],
            )
        )
        self._complete(fence.number, plan, published_at, lines)


class _Part:
    """A command of a fence, as an `OpenCommand`. It is not sent again: the next fence asks anew."""

    __slots__ = ("_answer", "_packed", "count", "size")

    def __init__(self, packed: bytes, answer: ReplySink) -> None:
        self._packed = packed
        self._answer = answer
        self.size, self.count = len(packed), 1

    def pack(self) -> bytes:
        return self._packed

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any, /) -> None:
        self._answer.set_result(reply)

    def set_exception(self, error: Exception, /) -> None:
        self._answer.set_exception(error)

    def exception(self) -> None:
        return None


def _packed(*command: bytes | str | int) -> bytes:
    packed: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub says: a tuple of one
    return packed
