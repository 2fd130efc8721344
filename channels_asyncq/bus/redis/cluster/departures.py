"""Whether a partition that has left a node took everything with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from ....clock import monotonic
from ..partition import Partition, Reading
from .replication import Replication

if TYPE_CHECKING:
    from .node import ClusterNode

# Seconds within which the last home must explain the departure. After a planned failover it follows the next
# primary first, and tries to once in a second.
_LONGEST = 3.0
_PAUSE = 0.05


class Lineage(NamedTuple):
    """
    A server that has all messages of a partition that other servers had before.

    Refusals are how often a server has refused to write, in digits: its messages are in no log then.
    """

    #: The identity of the server, and its refusals before the partition came.
    server: bytes
    refusals: bytes
    #: The identities of the others, the last one first, and the refusals of each when the partition left it.
    formers: tuple[tuple[bytes, bytes], ...]


class Witnesses:
    """The nodes that partitions have left, each asked once for all partitions that are taken in together."""

    def __init__(self) -> None:
        self._answers: dict[ClusterNode, Replication | None] = {}

    async def ask(self, node: ClusterNode) -> Replication | None:
        """Return what a node says of its history, or has said before; None if it does not answer."""
        if node not in self._answers:
            self._answers[node] = await node.testimony()
        return self._answers[node]

    async def wait(self, node: ClusterNode) -> None:
        """Let some time pass before the node is asked again."""
        await asyncio.sleep(_PAUSE)
        self._answers.pop(node, None)


class Departure:
    """
    A partition's departure from a node whose connections were up until then.

    Either the node has said so. Then everything that it has pushed before has arrived, and nothing can have been
    written there since. Or it did not answer for a while, and another node says so. Then only the node itself can
    tell whether the failover was planned.
    """

    def __init__(self, node: ClusterNode, history: bytes, *, is_known_there: bool) -> None:
        """
        Args:
            history: that of the node while the partition was there; empty if it is not known.
            is_known_there: the node has said so itself.
        """
        #: The node that it has left.
        self.node = node
        self._history = history
        self._process = node.process
        self._is_known_there = is_known_there
        self._since = monotonic()
        #: How often each node had refused to write then, by the history of the node, as far as it is known.
        self._refusals_then = {
            each.subscriber.run_id: refusals
            for each in node.router.nodes_by_place.values()
            if (refusals := each.refusals_by_fence) is not None
        }
        #: The history of the node at that time, and how often it has refused to write, when `is_complete()`.
        self.history = b""
        self.refusals = b"-"

    def refusals_then(self, history: bytes) -> bytes:
        """
        Return how often the node with this history had refused to write at that time, in digits.

        One that was not in use is taken for one that never has. If it has, the counts differ.
        """
        return self._refusals_then.get(history, b"0")

    async def is_complete(self, witnesses: Witnesses) -> bool:
        """Tell whether the next home has everything that the node had: no failover was it, or a planned one."""
        while True:
            replication = await witnesses.ask(self.node)
            if replication is None or replication.process != self._process:
                return False  # one that was started again may have lost what it had
            is_complete = self._is_complete(replication)
            if is_complete is not None:
                self.history, self.refusals = replication.history_as_primary, replication.refusals
                return is_complete
            if monotonic() - self._since > _LONGEST:
                return False
            await witnesses.wait(self.node)

    def _is_complete(self, replication: Replication) -> bool | None:
        if replication.is_primary and not self._is_known_there:
            return None  # it does not know of its successor yet
        return replication.has_all_of(self._history)


def departures_of(
    partition: Partition, node: ClusterNode, *, is_known_there: bool, is_silent: bool = False
) -> tuple[Departure, ...]:
    """
    Return how a partition has left this node, and the ones before, since it was read last.

    Args:
        is_known_there: the node has said so itself.
        is_silent: it has not answered for a while, on connections that are up.
    """
    if partition.departures and partition.departures[-1].node is node:
        return partition.departures  # it has said so before
    wire = node.subscriber.topics.wire
    if not (is_known_there or is_silent) or wire is None or wire.is_lost:
        return ()
    # Before its log is read, it is known already that nothing was missing when it came here.
    is_known = partition.reading is Reading.CATCHING_UP or not partition.departures
    is_whole = is_known and partition.server == node.subscriber.run_id != b""
    if partition.is_live or is_whole:
        return (Departure(node, partition.server, is_known_there=is_known_there),)
    # It moves on before it was read here.
    last = Departure(node, node.run_id, is_known_there=is_known_there)
    return (*partition.departures, last) if partition.departures else ()


def lineage_of(departures: tuple[Departure, ...], server: bytes) -> Lineage:
    """Return what is known of a partition that has left these nodes, completely, and has come to this server."""
    first = departures[0]
    formers = []
    for each in reversed(departures):
        formers.append((each.history, each.refusals))
        if each.refusals != first.refusals_then(each.history):
            break  # messages of its time there may be in no log
    return Lineage(server, first.refusals_then(server), tuple(formers))
