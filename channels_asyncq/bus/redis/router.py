"""The home of each partition: the node that it belongs to."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .node import Node
from .shared import Shared


class Router(ABC):
    """
    The nodes that a session uses, and the home of each partition among them.

    A router that learns of a new home calls `Partition.move()`. Implemented by `bus.redis.router.StaticRouter`.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    @abstractmethod
    def home_of(self, partition: int) -> Node:
        """Return the node that a partition belongs to now."""


class StaticRouter(Router):
    """One server, several hosts, or the master that Sentinel names: the homes never change."""

    def __init__(self, shared: Shared) -> None:
        super().__init__([Node(shared, host) for host in range(len(shared.options.hosts))])

    def home_of(self, partition: int) -> Node:
        return self.nodes[partition % len(self.nodes)]


def router_for(shared: Shared) -> Router:
    """Return the router for the hosts of a session."""
    return StaticRouter(shared)
