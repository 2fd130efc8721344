"""A router that moves partitions between two pairs of connections to one server."""

from __future__ import annotations

from channels_asyncq.bus.redis.node import Node
from channels_asyncq.bus.redis.router import Router
from channels_asyncq.bus.redis.shared import Shared


class MovingRouter(Router):
    """Two nodes at the first host. A partition begins at the node of its number modulo 2."""

    def __init__(self, shared: Shared) -> None:
        super().__init__([Node(shared, 0, number) for number in range(2)])
        #: Moves away from a connection on which commands had no reply yet.
        self.moves_in_flight = 0

    def home_of(self, partition: int) -> Node:
        for node in self.nodes:
            if partition in node.partitions:
                return node
        return self.nodes[partition % 2]

    def move(self, partition: int) -> None:
        """Move a partition to the other node."""
        here = self.home_of(partition)
        wire = here.commands.wire
        self.moves_in_flight += wire is not None and wire.pending > 0
        there = self.nodes[1 - self.nodes.index(here)]
        here.partitions[partition].move(there)
