"""The health of a cluster: of each node in use, and of the partitions that no node serves."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from ....clock import monotonic
from ....tasks import all_of
from ...base import HostHealth

# Seconds between two looks at partitions whose home is in doubt, or refuses.
_PAUSE = 0.05

if TYPE_CHECKING:
    from .node import ClusterNode
    from .router import ClusterRouter


async def health_of(router: ClusterRouter, timeout: float) -> list[HostHealth]:  # noqa: ASYNC109
    """
    Check each node in use, within a timeout in seconds. Cancelling is safe.

    Nodes that partitions move to meanwhile are checked as well. Nodes that they leave are not in the result.
    """
    ends_at = monotonic() + timeout

    def left() -> float:
        return max(ends_at - monotonic(), 0.0)

    if not any(node.is_missing for node in router.in_use):
        while left() and not router.has_map.is_set() and not router.is_unreachable:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE):
                    await router.has_map.wait()
        if not router.has_map.is_set():
            return [HostHealth(router.address, False, "connecting", router.why_unknown)]
    checked: dict[ClusterNode, HostHealth] = {}
    while True:
        new = [node for node in router.in_use if node not in checked]
        checked.update(zip(new, await all_of(node.health(left()) for node in new), strict=True))
        told = [checked[node] for node in router.in_use if node in checked]
        if len(told) < len(router.in_use):
            continue  # a partition has moved meanwhile
        if not left() or not all(health.ok for health in told) or not any(map(router.trouble, router.in_use)):
            break
        await asyncio.sleep(_PAUSE)
    return [_with_trouble(checked[node], router.trouble(node)) for node in router.in_use]


def _with_trouble(health: HostHealth, trouble: str) -> HostHealth:
    """Return the health of a node, with the reason why a partition that was last there cannot be used."""
    if not trouble or health.state != "connected":
        return health
    return replace(health, ok=False, reason=trouble, seconds=None)
