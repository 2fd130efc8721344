"""The seam between the commands of a partition and a cluster that moves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .node import Node


class Redirects(Protocol):
    """
    Acts on the answers with which a cluster refuses a command for a partition.

    Implemented by `bus.redis.cluster.redirects.ClusterRedirects`.
    """

    #: Why the partition cannot be used now, for an error; "" if it can.
    reason: str

    @property
    def spent(self) -> float:
        """For how many seconds commands have been refused, again and again; 0.0 if none was a moment ago."""

    def take(self, error: BaseException | None, by: Node) -> bool:
        """Act on a node's error for a command, which was not executed then; False if it is no redirect."""


class Redirected(ConnectionError):
    """A partition was not where it was asked for. It is looked for, and taken in where it is."""
