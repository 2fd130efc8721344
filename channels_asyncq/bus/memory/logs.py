"""The logs of a namespace: what channels that come back may have missed."""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Iterator

from ...clock import monotonic, time_ns
from ...messages.envelopes import HEADER_ONLY, Envelope
from ...messages.positions import Place
from ...names import Topic
from ...settings.keys import Recovery
from ..base import NotReplayed, ReplayCounts

#: The most bytes of messages that the logs of a namespace hold.
MOST_BYTES = 32 * 2**20
# What a message takes in memory beside its payload, about.
_OVERHEAD = 600


class Logs:
    """
    A log for each partition, from the first question for their ends on.

    Not thread-safe: the broker's lock is held.

    state  | `epoch` | event: next state
    -------|---------|-------------------------------------------------------------------------------------------
    absent | empty   | the first question of a layer that has logs: kept
    kept   | there   | a flush: absent; a question of a layer with other settings of `recovery`: kept, with
           |         | another epoch, as messages may not have been logged by its settings

    With several settings a group is logged if one of them says so, and the larger bound holds.
    """

    def __init__(self) -> None:
        self.epoch = ""
        #: The position of the last message that was logged, or of the beginning of the epoch if that is later.
        self.newest = 0
        self.counts = ReplayCounts()
        self._begin = 0
        self._recoveries: list[Recovery] = []
        # The bounds of them all.
        self._bounds = Recovery()
        self._partitions: dict[int, PartitionLog] = {}

    def keep(self, recovery: Recovery, published: int) -> None:
        """Keep logs from now on, if they are not kept; `published` messages were published so far."""
        if self.epoch and recovery in self._recoveries:
            return
        recoveries = self._recoveries
        self.drop()
        self._recoveries = recoveries = [*recoveries, recovery]
        self._bounds = Recovery(
            max(each.seconds for each in recoveries),
            max(each.messages for each in recoveries),
            max(each.message_bytes for each in recoveries),
        )
        self.epoch = secrets.token_hex(4)
        self.newest = self._begin = self._position(published)

    def drop(self) -> None:
        """Keep no logs, until they are asked for again."""
        self.epoch = ""
        self._recoveries = []
        for log in self._partitions.values():
            log.clear()
        self._partitions.clear()

    def _position(self, published: int) -> int:
        """Return a position for the message with this number, higher than all before."""
        return max(time_ns() // 1_000_000, self.newest >> 64) << 64 | published

    def add(self, group: str, topic: Topic, envelope: Envelope, published: int) -> None:
        """Log a message to a group, and set its position, if the group is logged."""
        for recovery in self._recoveries:
            if recovery.is_logged(group):
                break
        else:
            return
        self.newest = envelope.position = self._position(published)
        if len(envelope.payload) <= self._bounds.message_bytes:
            kept = envelope.copy()
        else:
            kept = Envelope(b"", group, flags=HEADER_ONLY)
            kept.position = envelope.position
        log = self._log(topic.partition)
        log.append(topic.name, kept)
        self.counts.evicted += log.limit(self._bounds.messages)
        self._drop_old(log)

    def _log(self, partition: int) -> PartitionLog:
        log = self._partitions.get(partition)
        if log is None:
            log = self._partitions[partition] = PartitionLog(self._begin, self.counts)
        return log

    def _drop_old(self, log: PartitionLog) -> None:
        log.drop_before(monotonic() - self._bounds.seconds)

    # Questions

    def added_since(self, time: float) -> Counter[bytes]:
        """Return how many messages were added since then, by topic."""
        counts: Counter[bytes] = Counter()
        for log in self._partitions.values():
            counts.update(log.topics_since(time))
        return counts

    def epoch_at(self, position: int) -> str:
        """Return the epoch of a message; empty for a message of an earlier one."""
        return self.epoch if position > self._begin else ""

    def require(self, topic: Topic, place: Place) -> None:
        """
        Check that everything behind a place is here.

        Raises:
            NotReplayed: it is not.
        """
        if place.epoch != self.epoch:
            raise NotReplayed("server_changed")
        if place.position > self.newest:
            raise NotReplayed("ahead")
        log = self._log(topic.partition)
        self._drop_old(log)
        if place.position < log.floor:
            raise NotReplayed("trimmed")

    def since(self, topic: Topic, place: Place, until: int) -> list[Envelope]:
        """
        Return copies of the messages of a topic behind a place, up to a position.

        Raises:
            NotReplayed: they are not all here, or one of them is too large.
        """
        self.require(topic, place)
        found: list[Envelope] = []
        for envelope in self._log(topic.partition).since(topic.name, place, until):
            if envelope.flags & HEADER_ONLY:
                raise NotReplayed("too_large", envelope.position, found)
            found.append(envelope.copy())
        return found


class PartitionLog:
    """The messages of one partition, by topic and in their order."""

    def __init__(self, floor: int, counts: ReplayCounts) -> None:
        #: Everything behind this position is here.
        self.floor = floor
        self._counts = counts
        self._topics: dict[bytes, deque[Envelope]] = {}
        # When each message was added, and its topic: in their order.
        self._order: deque[tuple[float, bytes]] = deque()

    def append(self, topic: bytes, envelope: Envelope) -> None:
        self._topics.setdefault(topic, deque()).append(envelope)
        self._order.append((monotonic(), topic))
        self._counts.records += 1
        self._counts.bytes += _size_of(envelope)

    def limit(self, most: int) -> int:
        """Drop what is more than may be held; return how many messages that were."""
        dropped = 0
        while self._order and (len(self._order) > most or self._counts.bytes > MOST_BYTES):
            self._drop_first()
            dropped += 1
        return dropped

    def drop_before(self, time: float) -> None:
        """Drop the messages that were added before a time."""
        while self._order and self._order[0][0] < time:
            self._drop_first()

    def topics_since(self, time: float) -> Iterator[bytes]:
        """Yield the topic of each message that was added since then."""
        for added, topic in reversed(self._order):
            if added < time:
                break
            yield topic

    def _drop_first(self) -> None:
        _, topic = self._order.popleft()
        envelopes = self._topics[topic]
        envelope = envelopes.popleft()
        if not envelopes:
            del self._topics[topic]
        self.floor = envelope.position
        self._counts.records -= 1
        self._counts.bytes -= _size_of(envelope)

    def clear(self) -> None:
        while self._order:
            self._drop_first()

    def since(self, topic: bytes, place: Place, until: int) -> list[Envelope]:
        """Return the messages of a topic behind a place, up to a position."""
        found: list[Envelope] = []
        for envelope in reversed(self._topics.get(topic, ())):
            if not place.is_before(envelope):
                break
            if envelope.position <= until:
                found.append(envelope)
        found.reverse()
        return found


def _size_of(envelope: Envelope) -> int:
    return len(envelope.payload) + _OVERHEAD
