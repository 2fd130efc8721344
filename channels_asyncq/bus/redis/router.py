"""The home of each partition: the node that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...tasks import all_of
from ..base import HostHealth, Link
from .node import Node
from .redirects import Redirects
from .shared import Shared

if TYPE_CHECKING:
    from .partition import Partition


class Router:
    """
    The nodes that a session uses, and the home of each partition among them.

    A router that learns of a new home calls `Partition.move()`. Implemented by
    `bus.redis.router.StaticRouter` and `bus.redis.cluster.router.ClusterRouter`.
    """

    def __init__(self, nodes: list[Node]) -> None:
        #: The nodes in use.
        self.nodes = nodes

    def home_of(self, partition: int) -> Node:
        """Return the node that a partition belongs to at the beginning."""
        return self.nodes[partition % len(self.nodes)]

    def redirects_for(self, partition: int) -> Redirects | None:
        """Return what acts on the redirects of commands of a partition; None where there are none."""
        return None

    def adopt(self, partitions: Sequence[Partition]) -> None:
        """Note the partitions of the session, all of them."""

    def start(self) -> None:
        """Begin connecting, unless that is done or under way."""
        for node in self.nodes:
            node.start()

    def stop(self) -> None:
        """Do nothing by itself until the next `start()`."""

    async def leave(self) -> None:
        """End what is shared by the nodes, before they are closed."""

    # The state of the connections

    @property
    def in_use(self) -> Sequence[Node]:
        """The nodes that partitions belong to."""
        return self.nodes

    @property
    def is_up(self) -> bool:
        """Whether all nodes in use are connected."""
        return all(node.is_up for node in self.in_use)

    @property
    def is_down(self) -> bool:
        """Whether this is an outage: then it ends when `is_up`."""
        return not self.is_up

    def links(self) -> list[Link]:
        """Return the state of the connections to each node in use. From any thread."""
        return [node.link() for node in self.in_use]

    async def health(self, timeout: float) -> list[HostHealth]:  # noqa: ASYNC109
        """Check each node in use, within a timeout in seconds. Cancelling is safe."""
        return await all_of(node.health(timeout) for node in self.in_use)


class StaticRouter(Router):
    """One server, several hosts, or the master that Sentinel names: the homes never change."""

    def __init__(self, shared: Shared) -> None:
        super().__init__([Node(shared, host) for host in range(len(shared.options.hosts))])
