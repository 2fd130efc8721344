"""Reads the logs at a node for channels that come back: one script for all that are wanted at a time."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...clock import monotonic
from ...messages.envelopes import Envelope
from ...messages.framing import BadEnvelope
from ...messages.positions import Place
from ...slices import Slice
from ..base import ReplayCounts
from ..resp.replies import copy_error
from .log_ends import LogEnds, LogScripts
from .partition import Partition
from .replay import LogPart
from .sequences import milliseconds_of, parse_position
from .shared import Shared

if TYPE_CHECKING:
    from .node import Node

# Entries of each log in a page.
_PAGE = 1000
# Seconds between two reads, so that the resumes of that time share one.
_BETWEEN_READS = 0.1
# Seconds within which a marker must arrive. Otherwise the connection for pushes is deaf.
_LONGEST_MARKER = 3.0
_MARKER = b"R"


class LogRead:
    """One partition's part in a read."""

    def __init__(self, partition: Partition, place: Place, margin: int, counts: ReplayCounts) -> None:
        """
        Args:
            margin: ms before the place at which a new index begins at least.
        """
        replay = partition.replay
        replay.begin()
        self.partition = partition
        self.version = replay.version
        index = replay.index
        #: Whether it replaces the index, which does not reach back to the place.
        self.is_new = index is None or place.position < index.start
        #: Everything up to here was read. The next page begins with it, which shows that nothing was trimmed.
        self.read_until: int | None = None
        # Numbers that were found before were sent again if they come once more.
        self._known: dict[bytes, tuple[int, int]] = {}
        if index is None or self.is_new:
            # Twice as far back as wanted, so that channels that are still further behind cost few reads.
            milliseconds = milliseconds_of(place.position)
            age = milliseconds_of(index.tip) - milliseconds if index is not None else 0
            start = max(0, milliseconds - max(margin, age)) << 64
        else:
            start, self.read_until, self._known = index.start, index.tip, index.seen
        self.part = LogPart(start, counts)
        self.epoch = ""

    @property
    def after(self) -> int:
        """The first id of the next page, inclusive."""
        return self.part.start if self.read_until is None else self.read_until

    def highest(self, session_id: bytes) -> int:
        """Return the highest number of a sender that was found so far, 0 for none."""
        return (self.part.seen.get(session_id) or self._known.get(session_id) or (0, 0))[0]

    @property
    def is_current(self) -> bool:
        """Whether nothing was forgotten since it began, and it was not given up."""
        return self.partition.replay.version == self.version

    def give_up(self) -> None:
        """Note that it cannot be finished."""
        self.part.drop()
        if self.is_current:
            self.partition.replay.fail()
            self.version = -1

    def begin_page(self, epoch: str, last: int, first: int | None) -> None:
        """
        Note the epoch, the last id of the log, and the first entry of a page, if it has any.

        Raises:
            ConnectionResetError: another epoch has begun since the page before.
        """
        if self.epoch not in ("", epoch):
            raise ConnectionResetError("messages are missing from a log since the read began")
        self.epoch = epoch
        if self.read_until is not None and self.read_until not in (first, last):
            # The log was trimmed beyond what was read, or deleted: it is complete from here on.
            self.part.drop()
            self.part.seen = self._known | self.part.seen
            self.part.start = self.part.first = 0
            self.read_until = None
            self.is_new = True
        self.part.tip = last

    def pass_entry(self, position: int) -> bool:
        """Note the next entry of a page; return whether it is new."""
        is_new = self.read_until is None or position > self.read_until
        if is_new:
            self.part.first = self.part.first or position
            self.read_until = position
        return is_new


class LogsReader:
    """
    The reads of logs at one node, one at a time.

    state     | `_next` | `_running` | event: next state
    ----------|---------|------------|------------------------------------------------------------------
    idle      | None    | None       | `read()`: waiting
    waiting   | a task  | None       | 0.1 s have passed since the last read: reading
    reading   | None    | the task   | `read()`: both; the read ends: idle
    both      | a task  | the task   | the read ends: waiting
    """

    def __init__(self, shared: Shared, node: Node, scripts: LogScripts) -> None:
        self._shared = shared
        self._node = node
        self._scripts = scripts
        # A message may be sent again this many ms later.
        self._margin = round(2000 * shared.options.send_timeout)
        # By partition, the lowest place that the next read has to reach.
        self._wanted: dict[int, tuple[Partition, Place]] = {}
        self._next: asyncio.Task[set[Partition]] | None = None
        self._running: asyncio.Task[set[Partition]] | None = None
        self._last_read = 0.0
        self._number = 0
        # The marker that is awaited, its read, and the future of its arrival.
        self._awaited: tuple[bytes, list[LogRead], asyncio.Future[None]] | None = None
        self.ends = LogEnds(shared, node, scripts)

    async def read(self, partition: Partition, place: Place) -> None:
        """
        Return when a read of a partition from a place has ended that was begun after this call.

        Cancelling is safe: the read goes on for others.

        Raises:
            ConnectionError: a connection was lost, or the partition is not live here.
        """
        _, lowest = self._wanted.get(partition.number, (partition, place))
        self._wanted[partition.number] = partition, min(place, lowest, key=_position_of)
        if self._next is None:
            self._next = self._shared.loop.create_task(
                self._run(self._running),
                name=f"channels_asyncq reading logs at {self._node.address}",
                context=contextvars.Context(),
            )
            self._next.add_done_callback(_retrieve)
        task = self._next
        await asyncio.wait([task])
        if task.cancelled():
            raise ConnectionResetError("the session was closed")
        if (error := task.exception()) is not None:
            assert isinstance(error, Exception)
            raise copy_error(error) from error
        if partition not in task.result():
            raise ConnectionResetError("the partition was not live, or messages were missed during the read")

    async def _run(self, before: asyncio.Task[set[Partition]] | None) -> set[Partition]:
        """Read all that is wanted when the time has come; return the partitions that were read."""
        if before is not None:
            await asyncio.wait([before])
        pause = self._last_read + _BETWEEN_READS - monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        wanted, self._wanted = self._wanted, {}
        self._running, self._next = self._next, None
        try:
            return await self._read(wanted)
        finally:
            self._running = None
            self._last_read = monotonic()

    async def _read(self, wanted: Mapping[int, tuple[Partition, Place]]) -> set[Partition]:
        node = self._node
        if node.pushes.wire is None or node.pushes.wire.is_lost:
            # A marker that is published now may not arrive.
            raise ConnectionResetError("the connection for pushes is down")
        counts = self._shared.replay_counts
        # The marker is in order with the pushes of partitions that are live here.
        reads = [
            LogRead(partition, place, self._margin, counts)
            for partition, place in wanted.values()
            if partition.home is node and partition.is_live
        ]
        if not reads:
            return set()
        self._number += 1
        marker = b"%b%d" % (_MARKER, self._number)
        arrived: asyncio.Future[None] = self._shared.loop.create_future()
        self._awaited = marker, reads, arrived
        counts.reads += 1
        finished: set[Partition] = set()
        unfinished = list(reads)
        turn = Slice()
        try:
            await self._read_pages(reads, marker)
            async with asyncio.timeout(_LONGEST_MARKER):
                await arrived
            while unfinished:
                read = unfinished.pop()
                if self._finish(read):
                    finished.add(read.partition)
                await turn.rest()
        except BaseException as exc:
            self._awaited = None
            for read in unfinished:
                read.give_up()
            if isinstance(exc, TimeoutError):
                raise ConnectionResetError("what is published does not arrive") from None
            raise
        return finished

    @staticmethod
    def _finish(read: LogRead) -> bool:
        """Use what was read, unless something was forgotten meanwhile."""
        if not read.is_current:
            read.part.drop()
            return False
        read.partition.take_read(read.part, read.epoch, is_new=read.is_new)
        return True

    async def _read_pages(self, reads: list[LogRead], marker: bytes) -> None:
        """Read to the ends of the logs, and publish the marker. A read that is given up has failed then."""
        turn = Slice()
        unread = {read.partition: read for read in reads}
        while unread:
            starts = {partition: read.after for partition, read in unread.items()}
            pages = await self._scripts.pages(starts, _PAGE, marker)
            for partition, read in list(unread.items()):
                page = pages.get(partition)
                if page is None:
                    read.give_up()
                else:
                    first = parse_position(page.entries[0][0]) if page.entries else None
                    read.begin_page(page.epoch, page.last, first)
                    for name, fields in page.entries:
                        position = parse_position(name)
                        if read.pass_entry(position):
                            self._add(read, position, fields)
                        await turn.rest()
                if page is None or page.is_last:
                    del unread[partition]
        await self._scripts.publish(marker)

    def _add(self, read: LogRead, position: int, fields: list[bytes]) -> None:
        """Add an entry to what a read has found, unless it was sent again, or is not of a group."""
        if fields[0] != b"t":
            return
        _, topic, kind, data = fields
        is_group = self._shared.topics.is_group(read.partition.number, topic)
        try:
            header = self._shared.formats.header_of(data)
        except BadEnvelope:
            if is_group:
                read.part.add(topic, position, "unreadable")
            return
        highest = read.highest(header.session_id)
        if header.last <= highest:
            return
        read.part.seen[header.session_id] = header.last, position
        if not is_group:
            return
        if kind != b"e":
            read.part.add(topic, position, "too_large")
        elif header.first > highest:
            read.part.add(topic, position, data)
        else:
            self._add_rest(read, topic, position, data, highest)

    def _add_rest(self, read: LogRead, topic: bytes, position: int, data: bytes, highest: int) -> None:
        """Add the messages of an entry of which some were sent again."""
        try:
            envelopes: list[Envelope] = self._shared.opener.open_entry(topic, data, position)
        except ValueError:
            read.part.add(topic, position, "unreadable")
            return
        for envelope in envelopes:
            if envelope.seq > highest:
                read.part.add(topic, position, envelope)

    # The connection for pushes

    def on_push(self, data: bytes) -> bool:
        """Act on a message on the topic of the fences; return whether it is a marker."""
        if not data.startswith(_MARKER):
            return False
        if self._awaited is not None and self._awaited[0] == data:
            _, reads, arrived = self._awaited
            self._awaited = None
            for read in reads:
                if read.is_current:
                    read.partition.replay.on_marker()
            if not arrived.done():
                arrived.set_result(None)
        return True

    def on_lost(self) -> None:
        """Note that the connection for pushes is lost: a marker that is under way does not come."""
        if self._awaited is not None:
            arrived = self._awaited[2]
            self._awaited = None
            if not arrived.done():
                arrived.set_exception(ConnectionResetError("the connection for pushes was lost"))
                arrived.exception()

    def close(self) -> None:
        """Cancel the reads, and the questions for ends."""
        for task in (self._next, self._running):
            if task is not None:
                task.cancel()
        self.ends.close()


def _position_of(place: Place) -> int:
    return place.position


def _retrieve(task: asyncio.Task[set[Partition]]) -> None:
    """Mark the error of a read as retrieved: all who waited for it may have been cancelled."""
    if not task.cancelled():
        task.exception()
