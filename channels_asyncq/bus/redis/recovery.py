"""What a session missed on one host while its push connection was down, read from the logs."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from ...clock import monotonic
from ...messages.envelopes import FORMATS, HEADER_ONLY, BadEnvelope, Envelope, Formats
from ...names import NOT_LOGGED
from ...settings.options import Options
from ...slices import Slice
from ..base import Receiver
from .sequences import DuplicateFilter, format_position, milliseconds_of, parse_position, stream_of
from .subscriptions import Subscription, SubscriptionLedger

_PAGE = 500

# Topic and bytes of an entry.
OpenEnvelopes = Callable[[bytes, bytes], list[Envelope]]
# The same, and whether it has expired; raises BadEnvelope.
UnpackHeaders = Callable[[bytes, bytes, bool], list[Envelope]]
ReadPage = Callable[[int, bytes, int], Awaitable[Any]]


class LogReader:
    """
    How far this session is in the logs of one host, and what of them it has seen.

    state          | is_reading | discards | what a logged push does
    ---------------|------------|----------|-----------------------------------------------------
    live           | False      | False    | it is delivered, unless it is in what was read
    subscribing    | False      | True     | it is dropped: it will be read
    reading        | True       | True     | it waits in the connection, which is paused
    """

    def __init__(
        self,
        options: Options,
        receiver: Receiver,
        ledger: SubscriptionLedger,
        read_page: ReadPage,
        open_envelopes: OpenEnvelopes,
        unpack_headers: UnpackHeaders,
        formats: Formats = FORMATS,
    ) -> None:
        self._options = options
        self._receiver = receiver
        self._ledger = ledger
        self._read_page = read_page
        self._open = open_envelopes
        self._unpack_headers = unpack_headers
        self._formats = formats
        self._seen = DuplicateFilter()
        self._resumed: asyncio.Future[None] | None = None
        # What a catch_up() that failed half way found lost, by reason: the positions are past it already.
        self._lost: defaultdict[str, set[bytes]] = defaultdict(set)
        #: By partition: everything up to this entry that concerns the session was delivered, or told.
        self.positions: dict[int, int] = {}
        #: By partition: what is pushed at or below this was read from the log already.
        self.read_until: dict[int, int] = {}
        self.is_reading = False
        self.discards = False

    @property
    def has_positions(self) -> bool:
        return bool(self.positions)

    def move_to(self, ends: dict[int, bytes]) -> None:
        """Take the ends of the logs, as a fence tells them, for the positions."""
        for partition, end in ends.items():
            self.positions[partition] = parse_position(end)
        self._seen.sweep(monotonic())
        self._tell_lost()

    def deliver(self, entry: Subscription, envelopes: list[Envelope], *, is_logged: bool) -> bool:
        """
        Hand on what arrived together, the last in the list first, but what was seen.

        Returns False if what is left in the list must be offered again.
        """
        if not envelopes:
            return True
        on_envelope = self._receiver.on_envelope
        topic = entry.topic
        # What arrives together is of one session. Only what comes from outside has no number.
        session_id = envelopes[-1].session_id if envelopes[-1].seq else b""
        seen = self._seen.of(session_id, stream_of(entry.partition, is_logged=is_logged))
        while envelopes:
            envelope = envelopes[-1]
            seq = envelope.seq
            if not seq or seq > seen.highest:
                if not on_envelope(topic, envelope):
                    return False
                seen.highest = seq
                seen.last_used = envelope.expires_at
            envelopes.pop()
        return True

    def note_missed(self, topic: bytes) -> None:
        """Note that something arrived that this release does not read: it is told with the next fence."""
        self._lost["not_logged"].add(topic)

    def note_expired(self, topic: bytes, envelopes: list[Envelope], *, is_logged: bool) -> None:
        """Note that something arrived too late: it is told with the next fence, unless it is a repeat."""
        entry = self._ledger.get(topic)
        if entry is not None:
            stream = stream_of(entry.partition, is_logged=is_logged)
            if any(envelope.seq > self._seen.highest(envelope.session_id, stream) for envelope in envelopes):
                self._lost["expired"].add(topic)

    def passed(self, partition: int, position: int) -> None:
        """
        Note that everything up to this entry of the log was delivered.

        What is held when the connection ends is read from the log.
        """
        # Only a fence gives the first: otherwise some partitions had one, and nobody would wait for the others'.
        if partition in self.positions:
            self.positions[partition] = position

    def resume(self) -> None:
        """Offer again what the receiver did not take."""
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    async def catch_up(self, *, has_changed: bool, has_gap: bool = False) -> None:
        """
        Read every log that concerns the session from its position to its end, and tell what is lost.

        `has_changed`: it is another server than the one that the positions are from, or it was restarted; the
        end of a log may be missing then, and nobody can know. `has_gap`: something may have been sent meanwhile
        that is in none of these logs.
        """
        topics = await self._wanted_topics()
        lost = self._lost
        # The ids of another server may be lower.
        self.read_until.clear()
        # Partition 0 first: flush() is there.
        for partition in sorted(topics):
            if partition in self.positions:
                await self._read(partition, lost, set() if has_changed else topics[partition])
        if has_changed:
            lost["server_changed"] = set().union(*topics.values())
        elif has_gap:
            lost["not_logged"] |= set().union(*topics.values())
        self._tell_lost()

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, defaultdict(set)
        for reason, names in lost.items():
            self._receiver.on_loss(reason, names)

    async def _wanted_topics(self) -> defaultdict[int, set[bytes]]:
        """Return the logged topics that are wanted now, by partition. What is pushed meanwhile waits."""
        topics: defaultdict[int, set[bytes]] = defaultdict(set)
        turn = Slice()
        for entry in self._ledger:
            if entry.partition != NOT_LOGGED:
                topics[entry.partition].add(entry.topic)
            await turn.rest()
        return topics

    async def _read(self, partition: int, lost: defaultdict[str, set[bytes]], concerned: set[bytes]) -> None:
        """Read one log. `concerned` are the topics to be told if it does not reach back to the position."""
        position = self.positions[partition]
        turn = Slice()
        while True:
            last, now, entries = await self._read_page(partition, format_position(position), _PAGE)
            # Each page: the log may be trimmed faster than it is read. And at once: the next page may fail, and
            # the positions are past the gap then.
            first = parse_position(entries[0][0]) if entries else None
            if concerned and position not in (first, parse_position(last)):
                lost["trimmed"] |= concerned
            for name, fields in entries:
                at = parse_position(name)
                if at <= position:
                    continue
                await self._replay(fields, at, int(now), lost)
                self.positions[partition] = position = at
                await turn.rest()
            if len(entries) < _PAGE:
                # Lower than the position only after the log was deleted or the server is another one.
                self.positions[partition] = self.read_until[partition] = parse_position(last)
                return

    async def _replay(
        self, fields: list[bytes], at: int, now: int, lost: defaultdict[str, set[bytes]]
    ) -> None:
        if fields[0] != b"t":
            return  # the mark at the beginning of a log
        _, topic, kind, data = fields
        entry = self._ledger.get(topic)
        if entry is None:
            return
        if self._formats.is_foreign(data):
            # A release that is newer wrote it before this one took part.
            lost["not_logged"].add(topic)
            return
        is_expired = now - milliseconds_of(at) > 1000 * self._options.expiry
        if kind != b"e" or is_expired:
            self._tell_of(topic, entry.partition, data, is_expired, lost)
            return
        envelopes = self._open(topic, data)
        envelopes.reverse()
        while not self.deliver(entry, envelopes, is_logged=True):
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed

    def _tell_of(
        self,
        topic: bytes,
        partition: int,
        data: bytes,
        is_expired: bool,
        lost: defaultdict[str, set[bytes]],
    ) -> None:
        """Note that the messages of an entry are lost, but for those that arrived live."""
        try:
            envelopes = self._unpack_headers(topic, data, is_expired)
            if not is_expired and not envelopes[0].flags & HEADER_ONLY:
                raise BadEnvelope("a whole message where a header was announced")
        except BadEnvelope as exc:
            self._receiver.on_unreadable(topic, str(exc))
            return
        for envelope in envelopes:
            if envelope.seq > self._seen.highest(envelope.session_id, partition):
                lost["expired" if is_expired else "too_large"].add(topic)
