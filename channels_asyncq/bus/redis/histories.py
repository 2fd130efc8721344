"""The histories of groups: messages that the server keeps longer than the logs, under the ids of the logs."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Sequence
from typing import NamedTuple

from ...exceptions import LayerUnavailable
from ...messages.codecs import BadPayload
from ...messages.envelopes import Envelope
from ...messages.framing import BadEnvelope
from ...messages.positions import Place
from ...settings.keys import Keeping
from ...slices import Slice
from ..base import HistoryPage, NotReplayed
from ..resp.replies import copy_error
from .log import RedisLog
from .partition import Partition
from .sequences import format_position, milliseconds_of, parse_position
from .shared import Shared

# Entries of a page, where all of a history is read.
_PAGE = 1000
# Seconds until a read begins, so that the resumes of that time share it.
_UNTIL_READ = 0.05

# An entry of a history: its id, and the bytes of a batch.
Entry = tuple[int, bytes]


class _Answer(NamedTuple):
    """
    The server's time in ms, and a page of entries, the newest first.

    `whole` is about the whole history: the id of its first entry, empty for none, and whether it has every entry
    that was ever added, as history.lua says.
    """

    now: int
    entries: list[Entry]
    whole: tuple[bytes, int]


class _Opened:
    """The messages in some entries, in order, without those that were sent again."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        #: For each, how many messages of its entry are before it.
        self.inner: list[int] = []
        #: The position of the last entry that cannot be read, 0 for none.
        self.unreadable = 0

    def start_of(self, index: int, epoch: str) -> Place:
        """Return the place before a message."""
        position, inner = self.envelopes[index].position, self.inner[index]
        return Place(epoch, position, inner) if inner else Place(epoch, position - 1)


class _Kept(NamedTuple):
    """What was read of a history: it has all messages between `reach` and `end`."""

    reach: float
    end: Place
    opened: _Opened

    def since(self, place: Place) -> tuple[list[Envelope], Place]:
        """Return what is behind a place, as `Histories.since()` does."""
        if place.epoch != self.end.epoch:
            raise NotReplayed("server_changed")
        if place.position > self.end.position:
            raise NotReplayed("ahead")
        if place.position < self.reach:
            raise NotReplayed("trimmed")
        unreadable = self.opened.unreadable
        if unreadable > place.position or (place.nth and unreadable == place.position):
            raise NotReplayed("unreadable")
        return [each for each in self.opened.envelopes if place.is_before(each)], self.end


class _Read:
    """A read of a history that has not begun, and how far back it has to go."""

    def __init__(self, task: asyncio.Task[_Kept], lowest: int) -> None:
        self.task = task
        self.lowest = lowest


class RedisHistories:
    """The histories of all groups, each at the home of its partition."""

    def __init__(self, shared: Shared, partitions: Sequence[Partition], log: RedisLog) -> None:
        self._shared = shared
        self._options = shared.options
        self._partitions = partitions
        self._log = log
        # A message may be sent again this many ms later.
        self._margin = round(2000 * shared.options.send_timeout)
        # By group.
        self._next: dict[str, _Read] = {}
        self._tasks: set[asyncio.Task[_Kept]] = set()

    def covers(self, group: str) -> bool:
        return self._options.keeping(group) is not None

    def _keeping(self, group: str) -> Keeping:
        keeping = self._options.keeping(group)
        assert keeping is not None
        return keeping

    # Pages

    async def page(self, group: str, before: Place | None, limit: int) -> HistoryPage:
        """Return a page, as `Histories` says: one command, or up to three. Raises as a send does."""
        end = await self._end(group) if before is None else before
        answer = await self._ask(group, end.position, 0, limit + 1)
        entries, last = answer.entries, answer.entries[-1][0] if answer.entries else 0
        is_full = len(entries) > limit
        if is_full:
            # What was sent again is recognised by its first copy, which may be before the page.
            earlier = await self._ask(group, last - 1, self._before(last), _PAGE)
            entries = entries + earlier.entries
        opened = await self._open(group, entries)
        oldest = answer.now - 1000 * self._keeping(group).seconds
        found = [
            index
            for index, envelope in enumerate(opened.envelopes)
            if not end.is_before(envelope) and milliseconds_of(envelope.position) >= oldest
        ]
        has_more = len(found) > limit or (is_full and milliseconds_of(last) >= oldest)
        found = found[-limit:]
        start = None
        if has_more:
            start = opened.start_of(found[0], end.epoch) if found else Place(end.epoch, last - 1)
        return HistoryPage([opened.envelopes[index] for index in found], end, start)

    # All that is behind a place

    async def since(self, group: str, place: Place) -> tuple[list[Envelope], Place]:
        """Return what is behind a place, as `Histories` says. Raises as a send does, too."""
        read = self._next.get(group)
        if read is None:
            task = self._shared.loop.create_task(
                self._read(group),
                name=f"channels_asyncq reading the history of {group}",
                context=contextvars.Context(),
            )
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            read = self._next[group] = _Read(task, place.position)
        read.lowest = min(read.lowest, place.position)
        task = read.task
        await asyncio.wait([task])
        if task.cancelled():
            raise LayerUnavailable(self._partition(group).home.address, "the session was closed")
        if (error := task.exception()) is not None:
            assert isinstance(error, Exception)
            raise copy_error(error) from error
        return task.result().since(place)

    async def _read(self, group: str) -> _Kept:
        await asyncio.sleep(_UNTIL_READ)
        lowest = self._before(self._next.pop(group).lowest)
        end = await self._end(group)
        entries: list[Entry] = []
        highest = end.position
        while True:
            answer = await self._ask(group, highest, lowest, _PAGE, looks_at_whole=True)
            entries += answer.entries
            if len(answer.entries) < _PAGE:
                break
            highest = answer.entries[-1][0] - 1
        opened = await self._open(group, entries)
        # A session with other histories may have come and sent since this one renewed its lease last.
        await self._partition(group).home.lease_keeper.refresh()
        return _Kept(self._reach(group, answer, end), end, opened)

    def _reach(self, group: str, answer: _Answer, end: Place) -> float:
        """Return the lowest position behind which nothing is missing."""
        oldest = answer.now - 1000 * self._keeping(group).seconds
        reach: float = int(max(oldest, self._partition(group).home.lease.unkept)) << 64
        first, is_whole = answer.whole
        # If the server's clock was set back, ids are ahead of it, and a history may expire with young ones in it.
        if not is_whole or milliseconds_of(end.position) > answer.now:
            # Its first entry shows that nothing is missing behind it.
            reach = max(reach, parse_position(first) - 1) if first else math.inf
        return reach

    def _ended(self, task: asyncio.Task[_Kept]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: all who waited for it may have been cancelled

    def close(self) -> None:
        """Cancel the reads."""
        for task in self._tasks:
            task.cancel()

    # Commands and their answers

    def _partition(self, group: str) -> Partition:
        return self._partitions[self._shared.topics.partition(group)]

    def _before(self, position: int) -> int:
        """Return a position before which no first copy is of what is sent again behind `position`."""
        return max(0, milliseconds_of(position) - self._margin) << 64

    async def _end(self, group: str) -> Place:
        partition = self._partition(group).number
        return (await self._log.ends((partition,)))[partition]

    async def _ask(
        self, group: str, highest: int, lowest: int, count: int, *, looks_at_whole: bool = False
    ) -> _Answer:
        script = self._shared.scripts.history
        assert script is not None
        now, entries, *whole = await self._partition(group).sender.commands.call(
            b"EVALSHA",
            script.sha,
            1,
            self._shared.topics.history(group),
            format_position(highest),
            format_position(lowest),
            count,
            int(looks_at_whole),
            is_repeatable=True,
        )
        first, is_whole = whole or (b"", 0)
        found = [(parse_position(name), fields[1]) for name, fields in entries]
        return _Answer(int(now), found, (first, is_whole))

    async def _open(self, group: str, entries: list[Entry]) -> _Opened:
        """Open entries, the newest of which is the first."""
        opened = _Opened()
        topic, keeping = self._shared.topics.group(group).topic.name, self._keeping(group)
        highest: dict[bytes, int] = {}
        turn = Slice()
        for position, data in reversed(entries):
            try:
                envelopes = self._shared.opener.open_entry(topic, data, position, keeping=keeping)
            except (BadEnvelope, BadPayload) as exc:
                self._shared.receiver.on_unreadable(topic, str(exc))
                opened.unreadable = position
                continue
            for inner, envelope in enumerate(envelopes):
                if envelope.seq > highest.get(envelope.session_id, 0):
                    highest[envelope.session_id] = envelope.seq
                    opened.envelopes.append(envelope)
                    opened.inner.append(inner)
            await turn.rest()
        return opened
