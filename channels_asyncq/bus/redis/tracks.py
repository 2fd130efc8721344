"""The messages of one topic that are in memory for channels that come back."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

from ...messages.codecs import BadPayload
from ...messages.envelopes import Envelope
from ...messages.framing import BadEnvelope
from ...messages.positions import Place
from ..base import NotReplayed, ReplayCounts

# What a message takes in memory beside its payload, and an entry beside its bytes, about.
_OVERHEAD = 600
_ENTRY_OVERHEAD = 160
# Messages stay decoded while all partitions hold fewer bytes than this.
_MOST_DECODED = 16 * 2**20
# A track is shortened when this many of its first records are gone, and they are half of it.
_MANY_GONE = 64

#: An envelope, the bytes of an entry of a log, or the reason for which a message cannot be replayed.
Record = Envelope | bytes | str


class Track:
    """The records of one topic, in the order of the log."""

    __slots__ = ("_counts", "_gone", "_has_entries", "_positions", "_records")

    def __init__(self, counts: ReplayCounts) -> None:
        self._counts = counts
        self._positions: list[int] = []
        self._records: list[Record] = []
        # The number of records at the beginning that were dropped.
        self._gone = 0
        # Whether some records are bytes of entries.
        self._has_entries = False

    def __len__(self) -> int:
        return len(self._records) - self._gone

    def append(self, position: int, record: Record) -> None:
        """Add a record behind all others."""
        self._positions.append(position)
        self._records.append(record)
        if isinstance(record, bytes):
            self._has_entries = True
        self._counts.records += 1
        self._counts.bytes += _size_of(record)

    def take_all(self, other: Track) -> None:
        """Add the records of a track that continues this one, and has no use after that."""
        self._positions += other._positions[other._gone :]
        self._records += other._records[other._gone :]
        self._has_entries = self._has_entries or other._has_entries

    # Dropping

    def drop_until(self, position: int) -> None:
        """Drop the records up to a position."""
        end = bisect_right(self._positions, position, self._gone)
        self._uncount(self._gone, end)
        self._records[self._gone : end] = [""] * (end - self._gone)
        self._gone = end
        if self._gone >= _MANY_GONE and 2 * self._gone >= len(self._records):
            del self._positions[: self._gone]
            del self._records[: self._gone]
            self._gone = 0

    def drop_behind(self, position: int) -> None:
        """Drop the records behind a position."""
        begin = bisect_right(self._positions, position, self._gone)
        self._uncount(begin, len(self._records))
        del self._positions[begin:]
        del self._records[begin:]

    def drop_all(self) -> None:
        self._uncount(self._gone, len(self._records))
        self._positions, self._records, self._gone = [], [], 0

    def _uncount(self, begin: int, end: int) -> None:
        self._counts.records -= end - begin
        self._counts.bytes -= sum(map(_size_of, self._records[begin:end]))

    # Reading

    def since(self, place: Place, open_entry: Callable[[bytes, int], list[Envelope]]) -> list[Envelope]:
        """
        Return the messages behind a place.

        Args:
            open_entry: returns the messages of an entry at a position.

        Raises:
            NotReplayed: one of them is too large, or cannot be read.
        """
        begin = bisect_left(self._positions, place.position, self._gone)
        positions, records = self._positions[begin:], self._records[begin:]
        if self._has_entries:
            positions, records = self._opened(positions, records, open_entry)
            if self._counts.bytes < _MOST_DECODED:
                self._replace(begin, positions, records)
        found: list[Envelope] = []
        for position, record in zip(positions, records, strict=True):
            if isinstance(record, Envelope):
                if place.is_before(record):
                    found.append(record)
            elif isinstance(record, str) and (position > place.position or place.nth):
                raise NotReplayed(record, position, found)
        return found

    @staticmethod
    def _opened(
        positions: list[int], records: list[Record], open_entry: Callable[[bytes, int], list[Envelope]]
    ) -> tuple[list[int], list[Record]]:
        """Return the records with the messages of entries in place of their bytes."""
        all_positions: list[int] = []
        all_records: list[Record] = []
        for position, record in zip(positions, records, strict=True):
            opened: list[Record] = [record]
            if isinstance(record, bytes):
                try:
                    opened = list(open_entry(record, position))
                except (BadEnvelope, BadPayload):
                    opened = ["unreadable"]
            all_positions += [position] * len(opened)
            all_records += opened
        return all_positions, all_records

    def _replace(self, begin: int, positions: list[int], records: list[Record]) -> None:
        """Put these records in place of all from this index on; none of them is the bytes of an entry."""
        self._uncount(begin, len(self._records))
        self._positions[begin:], self._records[begin:] = positions, records
        self._counts.records += len(records)
        self._counts.bytes += sum(map(_size_of, records))
        self._has_entries = begin > self._gone


def _size_of(record: Record) -> int:
    """Return the bytes for which a record counts."""
    if isinstance(record, Envelope):
        return _OVERHEAD + len(record.payload)
    return _ENTRY_OVERHEAD + len(record)
