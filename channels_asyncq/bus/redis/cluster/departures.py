"""Whether a partition that has left a node took everything with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from ....clock import monotonic
from ..partition import Partition, Reading

if TYPE_CHECKING:
    from .node import ClusterNode

# Seconds within which the last home must explain the departure.
_LONGEST = 1.5
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


class Departure:
    """
    A partition's departure from a node that was heard of from this node, on a connection that is up.

    Everything that the node has pushed before has arrived, and nothing can have been written there since.
    """

    def __init__(self, node: ClusterNode, history: bytes) -> None:
        """
        Args:
            history: that of the node while the partition was there; empty if it is not known.
        """
        #: The node that it has left.
        self.node = node
        self._history = history
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

    async def is_complete(self) -> bool:
        """Tell whether the next home has everything that the node had: no failover was it, or a planned one."""
        while True:
            replication = await self.node.replication()
            if replication is None:
                return False
            is_complete = replication.has_all_of(self._history)
            if is_complete is not None:
                self.history, self.refusals = replication.history_as_primary, replication.refusals
                return is_complete
            if monotonic() - self._since > _LONGEST:
                return False
            await asyncio.sleep(_PAUSE)


def departures_of(partition: Partition, node: ClusterNode, *, is_known_there: bool) -> tuple[Departure, ...]:
    """
    Return how a partition has left this node, and the ones before, since it was read last.

    Args:
        is_known_there: the node has said so itself.
    """
    if partition.departures and partition.departures[-1].node is node:
        return partition.departures  # it has said so before
    wire = node.subscriber.topics.wire
    if not is_known_there or wire is None or wire.is_lost:
        return ()
    # Before its log is read, it is known already that nothing was missing when it came here.
    is_known = partition.reading is Reading.CATCHING_UP or not partition.departures
    is_whole = is_known and partition.server == node.subscriber.run_id != b""
    if partition.is_live or is_whole:
        return (Departure(node, partition.server),)
    # It moves on before it was read here.
    return (*partition.departures, Departure(node, node.run_id)) if partition.departures else ()


def lineage_of(departures: tuple[Departure, ...], server: bytes) -> Lineage:
    """Return what is known of a partition that has left these nodes, completely, and has come to this server."""
    first = departures[0]
    formers = []
    for each in reversed(departures):
        formers.append((each.history, each.refusals))
        if each.refusals != first.refusals_then(each.history):
            break  # messages of its time there may be in no log
    return Lineage(server, first.refusals_then(server), tuple(formers))
