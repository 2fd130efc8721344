"""The router for the hosts of a session."""

from __future__ import annotations

from .cluster.router import ClusterRouter
from .router import Router, StaticRouter
from .shared import Shared


def router_for(shared: Shared) -> Router:
    """Return the router for the hosts of a session."""
    return ClusterRouter(shared) if shared.topics.is_cluster else StaticRouter(shared)
