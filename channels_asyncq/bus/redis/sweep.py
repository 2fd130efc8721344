"""Deletes what the servers store of a namespace, for `flush()`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from ...slots import share_of, slot_of
from .partition import Partition
from .shared import Shared

_SCAN_PAGE = 1000


class Sweep:
    """
    One sweep over the homes of all partitions.

    In a cluster a partition may move meanwhile, with keys that were not found yet. So it is swept once its home
    was read from beginning to end, and has then answered a question about keys of the partition.
    """

    def __init__(self, shared: Shared, partitions: Sequence[Partition]) -> None:
        self._topics = shared.topics
        self._partitions = partitions
        self._left = set(partitions)

    async def run(self) -> None:
        """
        Delete the keys. Cancelling is safe: some of them are left.

        Raises:
            ChannelLayerError: a server cannot be reached, or refused a command.
        """
        while self._left:
            lead = min(self._left, key=lambda partition: partition.number)
            epochs = {each: each.epoch for each in self._left if each.home is lead.home}
            if await self._scan(lead):
                await self._confirm(epochs)
                self._left.difference_update(each for each, epoch in epochs.items() if each.epoch == epoch)

    async def _scan(self, lead: Partition) -> bool:
        """Delete the keys at the home of a partition; return False if the partition has moved meanwhile."""
        topics, node = self._topics, lead.home
        for pattern in topics.stored(node.host):
            cursor = b"0"
            while True:
                command = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCAN_PAGE)
                cursor, keys = await lead.sender.commands.call(*command, is_repeatable=True)
                if lead.home is not node:
                    return False
                await self._unlink(lead, [key for key in keys if topics.is_stored(node.host, key)])
                if cursor == b"0":
                    break
        return True

    async def _unlink(self, lead: Partition, keys: list[bytes]) -> None:
        """Delete keys. In a cluster a command has the keys of one partition, and goes where that is now."""
        groups: defaultdict[Partition, list[bytes]] = defaultdict(list)
        for key in keys:
            groups[self._partition_of(key) if self._topics.is_cluster else lead].append(key)
        for partition, group in groups.items():
            await partition.sender.commands.call(b"UNLINK", *group, is_repeatable=True)

    def _partition_of(self, key: bytes) -> Partition:
        return self._partitions[share_of(slot_of(key), len(self._partitions))]

    async def _confirm(self, partitions: Collection[Partition]) -> None:
        """Return when each of these has answered at its home: then it is known which of them have moved."""
        if self._topics.is_cluster:
            for each in partitions:
                keys = self._topics.probes(each.number)
                await each.sender.commands.call(b"EXISTS", *keys, is_repeatable=True)
