"""The logs of the partitions, as a session asks about them. What it missed, `recovery.py` reads from them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from .partition import Partition
from .sequences import parse_position
from .shared import Shared


class RedisLog:
    """The logs of all partitions, each at the home of its partition."""

    def __init__(self, shared: Shared, partitions: Sequence[Partition]) -> None:
        self._recovery = shared.options.recovery
        self._partitions = partitions

    def covers(self, group: str) -> bool:
        """Tell whether messages to a group are logged."""
        return self._recovery is not None and self._recovery.is_logged(group)

    async def ends(self, partitions: Collection[int]) -> dict[int, int]:
        """Return the ids of the last entries, as `Log` says. Cancelling is safe. Raises as a send does."""
        if self._recovery is None:
            return dict.fromkeys(partitions, 0)
        # In one write, if they are at one node.
        ends = await asyncio.gather(*(self._end(self._partitions[number]) for number in partitions))
        return dict(zip(partitions, ends, strict=True))

    @staticmethod
    async def _end(partition: Partition) -> int:
        last, *_ = await partition.home.read_log(partition.number, b"+", 1)
        return parse_position(last)
