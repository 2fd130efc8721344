"""Reads the messages that a session missed, from the logs of partitions."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection
from typing import Any, Protocol

from ...clock import monotonic
from ...messages.envelopes import HEADER_ONLY, Envelope
from ...messages.framing import BadEnvelope
from ...messages.sealing import ANY_AGE
from ...slices import Slice
from ..base import IN_HISTORIES
from .partition import Partition, PartitionReading
from .redirects import Redirected
from .sequences import format_position, milliseconds_of, parse_position
from .shared import Shared

_PAGE = 500
# Up to this number of wanted topics, the server leaves out the entries of others, because it costs more to return
# them. Each wanted topic adds to the cost of each page. (`python -m benchmarks.recovery --others 950`)
_MOST_FILTERED = 128


class LossNotes:
    """
    Losses that were found and are not reported yet: topics by reason. A channel gets one notice for all of them.

    A reader that comes back from its own place gets some of them from a log or a history, if it has taken nothing
    that follows them. So these are reported before that is delivered.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._lost: defaultdict[str, set[bytes]] = defaultdict(set)
        self._comes_first = False

    def add(self, reason: str, *topics: bytes) -> None:
        self._lost[reason].update(topics)
        if reason == "expired" or (reason in IN_HISTORIES and self._shared.options.history):
            self._comes_first = True

    def report_first(self) -> None:
        """Report all of them, if one has to come before the message that is delivered next."""
        if self._comes_first:
            self.report()

    def report(self) -> None:
        """Report all of them."""
        self._comes_first = False
        if not self._lost:
            return
        lost, self._lost = self._lost, defaultdict(set)
        for reason, topics in lost.items():
            self._shared.report_loss(reason, topics)


class Pages(Protocol):
    """The source of the entries of logs. Implemented by `bus.redis.node.Node`."""

    async def read_log(
        self, partition: Partition, start: bytes, count: int, topics: Collection[bytes] = ()
    ) -> Any:
        """
        Return a page of `count` entries from `start` on, of which those of other topics are left out.

        Its parts are: the id of the log's last entry, the server's time in ms, how many entries the page has, the
        ids of its first and last one, and its entries. Without `topics` it has those of all.
        """


class Backlog:
    """One reading of a log that has more entries than one page."""

    def __init__(self, partition: Partition, topics: set[bytes], concerned: set[bytes]) -> None:
        self.partition = partition
        self.reading = PartitionReading(partition, partition.epoch)
        #: The logged topics that were wanted when it began. A topic that is wanted later is not confirmed before.
        self.topics = topics
        #: Those that are told if the log does not reach back to the position.
        self.concerned = concerned
        #: How many entries were read.
        self.entries = 0
        #: Whether the last page was the end of the log.
        self.is_at_end = False
        self._until = 0.0
        self._most = 0

    def limit(self, seconds: float, entries: int) -> None:
        """Set how long it may go on, and how many entries it may read in all."""
        self._until = monotonic() + seconds
        self._most = entries

    @property
    def is_current(self) -> bool:
        return self.reading.is_current

    @property
    def has_more(self) -> bool:
        """Whether the next page is to be read."""
        is_allowed = self.entries < self._most and monotonic() < self._until
        return is_allowed and not self.is_at_end and self.is_current


class LogReader:
    """
    Reads logs at one node from the positions of partitions to their ends.

    The node's `Subscriber` calls this after a reconnect, and when a partition was moved here. While it calls
    `catch_up()` and `finish()`, its connection for pushes is paused.

    Several readings may be under way, for partitions that were moved here one after the other. The losses that a
    reading found before it failed stay noted: the positions are past them already.
    """

    def __init__(self, shared: Shared, pages: Pages) -> None:
        self._shared = shared
        self._options = shared.options
        self._opener = shared.opener
        self._pages = pages
        self.losses = LossNotes(shared)
        # One for each reading that waits for the receiver.
        self._waiters: set[asyncio.Future[None]] = set()

    def note_missed(self, topic: bytes) -> None:
        """Note a push in a format that this release does not read. It is reported with the next fence."""
        self.losses.add("not_logged", topic)

    def note_expired(
        self, partition: int, topic: bytes, envelopes: list[Envelope], *, is_logged: bool
    ) -> None:
        """
        Note envelopes that arrived too late: they are reported with the next fence, unless they are repeats.
        """
        entry = self._shared.index.get(topic)
        if entry is None or entry.partition is None:
            return
        if any(not entry.partition.has_seen(envelope, is_logged=is_logged) for envelope in envelopes):
            self.losses.add("expired", topic)

    def resume(self) -> None:
        """Offer the receiver again the envelopes that it did not take."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def catch_up(
        self,
        partitions: Collection[Partition],
        changed: Collection[Partition],
        gaps: Collection[Partition] = (),
    ) -> list[Backlog]:
        """
        Read a page of the log of each of these partitions that has wanted topics and a position. Report losses.

        Args:
            changed: those whose server was restarted, or is not the one of their positions. The end of the log
                may be missing, and its absence cannot be seen.
            gaps: those for which messages may have been sent meanwhile that are in none of these logs.

        Returns those that are not at the end of their logs. They need `read_on()`, and then `finish()`.
        """
        for partition in partitions:
            # The ids of another server may be lower than these.
            partition.read_until = 0
        topics = await self._wanted_topics(partitions)
        backlogs = []
        # Partition 0 first: its log contains flush().
        for partition in sorted(topics, key=lambda partition: partition.number):
            if partition.position is not None:
                wanted = topics[partition]
                backlog = Backlog(partition, wanted, set() if partition in changed else wanted)
                try:
                    await self._read_page(backlog)
                except Redirected:
                    del topics[partition]  # it is read where it is found
                if backlog.is_current and not backlog.is_at_end:
                    backlog.concerned = wanted
                    backlogs.append(backlog)
        for partition, names in topics.items():
            if partition in changed:
                self.losses.add("server_changed", *names)
            elif partition in gaps:
                self.losses.add("not_logged", *names)
        self.losses.report()
        return backlogs

    async def read_on(self, backlog: Backlog) -> None:
        """
        Read on until nearly the end of a log, or until its limit.

        Pushes that arrive meanwhile need not wait: those of the partition are discarded, as the log has them.
        """
        try:
            while backlog.has_more:
                await self._read_page(backlog)
        except Redirected:
            return  # the reading is not current any more

    async def finish(self, backlog: Backlog) -> None:
        """Read the end of a log. If its limit was reached, go there without reading, and report `too_far`."""
        try:
            if backlog.is_at_end and backlog.is_current:
                backlog.is_at_end = False
                await self._read_page(backlog)
            while backlog.has_more:
                await self._read_page(backlog)
            if backlog.is_current and not backlog.is_at_end:
                await self._leave_out(backlog)
        except Redirected:
            return  # the reading is not current any more
        self.losses.report()

    @staticmethod
    async def _wanted_topics(partitions: Collection[Partition]) -> dict[Partition, set[bytes]]:
        """Return the logged topics that are wanted now. Pushes that arrive meanwhile wait."""
        topics: dict[Partition, set[bytes]] = {}
        turn = Slice()
        for partition in partitions:
            wanted = set()
            for entry in partition.subscriptions:
                if entry.is_logged:
                    wanted.add(entry.topic)
                await turn.rest()
            if wanted:
                topics[partition] = wanted
        return topics

    async def _read_page(self, backlog: Backlog) -> None:
        """Read the next page of a log. Note the `concerned` topics if it does not reach back to the position."""
        partition, position = backlog.partition, backlog.partition.position
        assert position is not None
        turn = Slice()
        wanted = partition.subscriptions.topics() if len(partition.subscriptions) <= _MOST_FILTERED else ()
        page = await self._pages.read_log(partition, format_position(position), _PAGE, wanted)
        if not backlog.is_current:
            return  # the reading on its next connection continues
        last, now, count, first, through, entries = page
        backlog.entries += count
        # Check each page: the log may be trimmed faster than it is read. Note the loss at once: the next page may
        # fail, and the position is past the gap then.
        reaches = (parse_position(first) if count else None, parse_position(last))
        if backlog.concerned and position not in reaches:
            self.losses.add("trimmed", *backlog.concerned)
        for name, fields in entries:
            at = parse_position(name)
            if at <= position:
                continue
            await self._replay(partition, fields, at, int(now))
            if not backlog.is_current:
                return
            partition.position = at
            await turn.rest()
        if count < _PAGE:
            # This is lower than the position if the log was deleted, or the server is another one.
            partition.position = partition.read_until = parse_position(last)
            backlog.is_at_end = True
        else:
            partition.position = parse_position(through)

    async def _leave_out(self, backlog: Backlog) -> None:
        """Go to the end of a log. What was not read is lost for all topics."""
        partition, position = backlog.partition, backlog.partition.position
        assert position is not None
        last, *_ = await self._pages.read_log(
            partition, format_position(position), 1, list(backlog.topics)[:1]
        )
        if not backlog.is_current:
            return
        end = parse_position(last)
        if end != position:
            self.losses.add("too_far", *backlog.topics)
        partition.position = partition.read_until = end

    async def _replay(self, partition: Partition, fields: list[bytes], at: int, now: int) -> None:
        if fields[0] != b"t":
            return  # the first entry of each log
        _, topic, kind, data = fields
        entry = partition.subscriptions.get(topic)
        if entry is None:
            return
        if self._shared.formats.is_foreign(data):
            # A newer release wrote it before this session had a lease.
            self.losses.add("not_logged", topic)
            return
        is_expired = now - milliseconds_of(at) > 1000 * self._options.expiry
        if kind != b"e" or is_expired:
            self._note_lost(partition, topic, data, is_expired)
            return
        envelopes = self._opener.open_all(partition.number, topic, data, self, is_logged=True, position=at)
        envelopes.reverse()
        if envelopes:
            self.losses.report_first()
        while envelopes and not partition.deliver(entry, envelopes, is_logged=True):
            waiter: asyncio.Future[None] = self._shared.loop.create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def _note_lost(self, partition: Partition, topic: bytes, data: bytes, is_expired: bool) -> None:
        """Note that the messages of an entry are lost, except those that arrived live."""
        try:
            limit = ANY_AGE if is_expired else None
            envelopes = self._opener.unpack_headers(topic, data, max_age=limit)
            if not is_expired and not envelopes[0].flags & HEADER_ONLY:
                raise BadEnvelope("a whole message where a header was announced")
        except BadEnvelope as exc:
            self._shared.receiver.on_unreadable(topic, str(exc))
            return
        if any(not partition.has_seen(envelope, is_logged=True) for envelope in envelopes):
            self.losses.add("expired" if is_expired else "too_large", topic)
