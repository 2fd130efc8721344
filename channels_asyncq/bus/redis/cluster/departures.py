"""Whether a partition that has left a node took everything with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ....clock import monotonic

if TYPE_CHECKING:
    from ..partition import Partition
    from .node import ClusterNode

# Seconds within which the last home must explain the departure.
_LONGEST = 1.5
_PAUSE = 0.05


class Departure:
    """
    A partition's departure from a node that was heard of from this node, on a connection that is up.

    Everything that the node has pushed before has arrived, and nothing can have been written there since.
    """

    def __init__(self, node: ClusterNode, history: bytes) -> None:
        """
        Args:
            history: that of the node while the partition was read there; empty if it was not read there.
        """
        #: The node that it has left.
        self.node = node
        self._history = history
        self._since = monotonic()

    async def is_complete(self) -> bool:
        """Tell whether the next home has everything that the node had: no failover was it, or a planned one."""
        while True:
            replication = await self.node.replication()
            if replication is None:
                return False
            is_complete = replication.has_all_of(self._history)
            if is_complete is not None:
                return is_complete
            if monotonic() - self._since > _LONGEST:
                return False
            await asyncio.sleep(_PAUSE)


def departures_of(
    partition: Partition, node: ClusterNode, *, is_known_there: bool
) -> tuple[Departure, ...]:
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
    if partition.is_live:
        return (Departure(node, partition.server),)
    # It moves on before it was read here.
    return (*partition.departures, Departure(node, b"")) if partition.departures else ()
