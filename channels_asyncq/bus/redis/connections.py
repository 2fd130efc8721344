"""The connections of one session to its nodes, as they are now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from ...names import Topic
from ..base import Health, Link
from .node import Node
from .partition import Partition
from .router import Router


class RedisConnections:
    """Asks the nodes that the router uses."""

    def __init__(self, router: Router, partitions: Sequence[Partition]) -> None:
        self._router = router
        self._partitions = partitions

    def links(self) -> list[Link]:
        return self._router.links()

    def transports(self) -> list[asyncio.BaseTransport]:
        return [transport for node in self._router.nodes for transport in node.transports()]

    async def health(self, timeout: float) -> Health:  # noqa: ASYNC109
        """Check each node, within a timeout in seconds. Cancelling is safe."""
        return Health(tuple(await self._router.health(timeout)))

    async def checked(self, topic: Topic) -> None:
        """Return when the topic's node has accepted the layout of this process, as `Connections` describes."""
        partition = self._partitions[topic.partition]
        while not (home := partition.home).commands.was_up:
            await home.commands.first_up(partial(_is_at, partition, home))


def _is_at(partition: Partition, node: Node) -> bool:
    return partition.home is node
