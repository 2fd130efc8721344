"""The logs of the partitions, as a session asks about them. What it missed, `recovery.py` reads from them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from ...clock import monotonic
from ...exceptions import LayerUnavailable
from ...messages.envelopes import HEADER_ONLY, Envelope
from ...messages.positions import Place
from ...messages.sealing import ANY_AGE
from ...names import Topic
from ...slices import Slice
from ...tasks import all_of
from ..base import RATE_SECONDS, ReplayCounts
from .node import Node
from .partition import Partition
from .sequences import parse_position
from .shared import Shared

# Seconds until partitions of a cluster are asked for again that were not where they were asked for.
_PAUSE = 0.05
# The entries of a log that are counted for the messages per second: a server copies them for that.
_MOST_COUNTED = 1000
# Entries of a page, where the latest of a topic are looked for.
_LATEST = 500


class RedisLog:
    """The logs of all partitions, each at the home of its partition."""

    def __init__(self, shared: Shared, partitions: Sequence[Partition]) -> None:
        self._options = shared.options
        self._recovery = shared.options.recovery
        self._topics = shared.topics
        self._log_rates = shared.scripts.log_rates
        self._opener = shared.opener
        self._formats = shared.formats
        self._partitions = partitions
        self._counts = shared.replay_counts

    def covers(self, group: str) -> bool:
        """Tell whether messages to a group are logged."""
        return self._recovery is not None and self._recovery.is_logged(group)

    async def ends(self, partitions: Collection[int]) -> dict[int, Place]:
        """
        Return the ends of the logs, as `Log` says: one command for each node, or in a cluster for each partition.
        Raises as a send does.
        """
        if self._recovery is None:
            return {}
        ends_at = monotonic() + 2 * self._options.send_timeout
        wanted = [self._partitions[number] for number in partitions]
        ends: dict[int, Place] = {}
        while True:
            by_node: defaultdict[Node, list[Partition]] = defaultdict(list)
            for partition in wanted:
                by_node[partition.home].append(partition)
            for answer in await all_of(node.logs.ends.of(each) for node, each in by_node.items()):
                ends.update(answer)
            wanted = [partition for partition in wanted if partition.number not in ends]
            if not wanted:
                return ends
            if monotonic() > ends_at:
                reason = f"its log of partition {wanted[0].number} cannot be read"
                raise LayerUnavailable(wanted[0].home.address, reason)
            await asyncio.sleep(_PAUSE)

    async def rates(self) -> dict[str, float]:
        """Return the messages per second, as `Log` says: a command for each partition. Raises as a send does."""
        found: dict[str, float] = {}
        if self._log_rates is not None:
            # One after the other: a server would do all in one go, and serve nobody meanwhile.
            for partition in self._partitions:
                found.update(await self._rates(partition))
        return found

    async def _rates(self, partition: Partition) -> dict[str, float]:
        assert self._log_rates is not None
        span, *counts = await partition.sender.commands.call(
            b"EVALSHA",
            self._log_rates.sha,
            1,
            self._topics.log(partition.number),
            round(1000 * RATE_SECONDS),
            _MOST_COUNTED,
            is_repeatable=True,
        )
        return {
            self._topics.group_named(topic): 1000 * count / span
            for topic, count in zip(counts[::2], counts[1::2], strict=True)
            if self._topics.is_group(partition.number, topic)
        }

    async def latest(self, topic: Topic, target: str, limit: int) -> list[Envelope]:
        """Return the last messages, as `Log` says: a command for each page of the log. Raises as a send does."""
        if self._recovery is None:
            return []
        partition = self._partitions[topic.partition]
        # By sender and number, the newest first. What was sent again is found again, further back.
        found: dict[tuple[bytes, int], Envelope] = {}
        highest = b"+"
        turn = Slice()
        while True:
            key = self._topics.log(partition.number)
            command = (b"XREVRANGE", key, highest, b"-", b"COUNT", _LATEST)
            page = await partition.sender.commands.call(*command, is_repeatable=True)
            for name, fields in page:
                if fields[0] == b"t" and fields[1] == topic.name:
                    for envelope in reversed(self._opened(topic.name, parse_position(name), *fields[2:])):
                        if envelope.target == target or not envelope.target:
                            found[envelope.session_id, envelope.seq] = envelope
                await turn.rest()
            if len(page) < _LATEST or len(found) > limit:
                return list(found.values())[:limit][::-1]
            highest = b"(" + page[-1][0]

    def _opened(self, topic: bytes, position: int, kind: bytes, data: bytes) -> list[Envelope]:
        """Return the messages of an entry. One without a body has only its header."""
        opener = self._opener
        try:
            if kind == b"e":
                return opener.open_entry(topic, data, position)
            envelopes = opener.unpack_headers(topic, data, max_age=ANY_AGE)
        except ValueError:
            try:
                header = self._formats.header_of(data)
            except ValueError:
                return []
            envelopes = [Envelope(b"", "", header.session_id, header.first, HEADER_ONLY)]
        for envelope in envelopes:
            envelope.position = position
        return envelopes

    # Channels that come back

    def here(self, partition: int) -> Place | None:
        """Return the position of this session in the log."""
        part = self._partitions[partition]
        if part.position is None or not part.is_live:
            return None
        epoch = part.replay.epoch.at(part.position)
        return Place(epoch, part.position) if epoch else None

    def epoch_at(self, partition: int, position: int) -> str:
        return self._partitions[partition].replay.epoch.at(position)

    def has(self, topic: Topic, place: Place, *, has_read: bool) -> bool:
        partition = self._partitions[topic.partition]
        if not partition.is_live:
            return False
        gap = partition.home.lease.gap
        return partition.replay.has(topic, place, partition.position or 0, gap, has_read=has_read)

    def since(self, topic: Topic, place: Place) -> list[Envelope]:
        return self._partitions[topic.partition].replay.since(topic, place)

    async def read(self, places: Mapping[int, Place]) -> None:
        await all_of(self._read(self._partitions[number], place) for number, place in places.items())

    @staticmethod
    async def _read(partition: Partition, place: Place) -> None:
        await partition.home.logs.read(partition, place)

    def forget(self) -> None:
        for partition in self._partitions:
            partition.replay.forget()
            partition.replay.epoch.forget()

    def is_fed(self, topic: Topic) -> bool:
        return self._partitions[topic.partition].replay.is_fed(topic.name)

    @property
    def counts(self) -> ReplayCounts:
        return self._counts
