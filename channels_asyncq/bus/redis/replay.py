"""What a partition has in memory of its log, for channels that come back. No I/O, no await."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from ...clock import monotonic
from ...messages.envelopes import Envelope
from ...messages.positions import Place
from ...names import Topic
from ...settings.keys import Recovery
from ..base import NotReplayed, ReplayCounts
from .opening import Opener
from .sequences import milliseconds_of
from .tracks import Record, Track

#: The most bytes of messages that a session holds for channels that come back.
MOST_BYTES = 32 * 2**20


class LogEpoch:
    """
    The epoch of a log, as the server has named it last, and the end of the log at that time.

    Messages up to that end may be of an earlier epoch: messages without a log may have been published between
    them and the beginning of this one.
    """

    __slots__ = ("known", "since")

    def __init__(self) -> None:
        self.known = ""
        self.since = 0

    def note(self, epoch: str, end: int) -> None:
        if epoch != self.known:
            self.known, self.since = epoch, end

    def forget(self) -> None:
        """Note that the server may be another one."""
        self.known = ""

    def at(self, position: int) -> str:
        """Return the epoch of a message that arrived; empty if it may be an earlier one."""
        return self.known if position > self.since else ""


class LogPart(dict[bytes, Track]):
    """
    What a read has found in one log, by topic, and the range that it has looked at: from `first` to `tip`.

    `seen` has the highest number of each sender: an entry that is not above it was sent again.
    """

    def __init__(self, start: int, counts: ReplayCounts) -> None:
        super().__init__()
        self._counts = counts
        #: The id from which the log was read; of the first entry that was found; of the last entry of the log.
        self.start = start
        self.first = self.tip = 0
        self.seen: dict[bytes, int] = {}
        #: Position and topic of each record, in the order of the log.
        self.order: deque[tuple[int, bytes]] = deque()

    def track(self, topic: bytes) -> Track:
        """Return the track of a topic, a new one if there is none."""
        track = self.get(topic)
        if track is None:
            track = self[topic] = Track(self._counts)
        return track

    def add(self, topic: bytes, position: int, record: Record) -> None:
        self.track(topic).append(position, record)
        self.order.append((position, topic))

    def drop(self) -> None:
        """Take the records out of the count: they are not used."""
        for track in self.values():
            track.drop_all()


class ReplayIndex:
    """
    The messages of one partition's log from `floor` on, by topic: read once, then fed by what arrives.

    A topic that this session subscribes to is live: its messages are added as they arrive. Those of any other
    topic are complete up to `tip`, the end of the last read.
    """

    def __init__(self, part: LogPart, epoch: str, recovery: Recovery, counts: ReplayCounts) -> None:
        self._most_records = recovery.messages
        self._most_bytes = recovery.message_bytes
        # The time that the log keeps, as a difference of positions.
        self._kept = round(1000 * recovery.seconds) << 64
        self._counts = counts
        self._part = part
        self.live: set[bytes] = set()
        self.epoch = epoch
        #: It has no messages before `start`, because they were not looked for.
        self.start = part.start
        self.tip = part.tip
        #: Everything behind this position is here.
        self.floor = part.first or part.tip
        self.used_at = monotonic()

    @property
    def seen(self) -> dict[bytes, int]:
        return self._part.seen

    def is_too_old(self, place: Place) -> bool:
        """Tell whether a log keeps no messages from the time of a place."""
        return place.position < self.tip - self._kept

    def since(
        self, topic: bytes, place: Place, open_entry: Callable[[bytes, int], list[Envelope]]
    ) -> list[Envelope]:
        track = self._part.get(topic)
        return [] if track is None else track.since(place, open_entry)

    # What arrives

    def feed(self, topic: bytes, envelope: Envelope) -> None:
        """Add a message that arrived."""
        if topic in self.live:
            self._add(topic, envelope)
            self.limit(envelope.position)

    def _add(self, topic: bytes, envelope: Envelope) -> None:
        # The log has the header only of what is too large: a session that reads it gives the same answer.
        is_whole = len(envelope.payload) <= self._most_bytes
        self._part.add(topic, envelope.position, envelope if is_whole else "too_large")

    def make_live(self, topic: bytes, arrived: Iterable[Envelope]) -> None:
        """Feed a topic from now on; `arrived` has what was pushed since the end of the last read."""
        if topic not in self.live:
            self.live.add(topic)
            for envelope in arrived:
                if envelope.seq > self.seen.get(envelope.session_id, 0):
                    self._add(topic, envelope)

    def give_up(self, topic: bytes) -> None:
        """Note that a topic is not subscribed to any more: its pushes end."""
        if topic in self.live:
            self.live.discard(topic)
            if (track := self._part.get(topic)) is not None:
                # The next read begins behind `tip`.
                track.drop_behind(self.tip)

    def extend(self, part: LogPart) -> None:
        """Add what a read from `tip` on has found. Live topics have it already."""
        for topic, track in part.items():
            if topic in self.live:
                track.drop_all()
            else:
                self._part.track(topic).take_all(track)
        self._part.order += (entry for entry in part.order if entry[1] not in self.live)
        self._part.seen.update(part.seen)
        self.tip = part.tip

    # Bounds

    def limit(self, newest: int) -> None:
        """Drop what is older than the log keeps, and what is more than may be held."""
        order = self._part.order
        oldest = newest - self._kept
        while order:
            position, topic = order[0]
            if position >= oldest:
                if len(order) <= self._most_records and self._counts.bytes <= MOST_BYTES:
                    break
                self._counts.evicted += 1
            del order[0]
            self._part[topic].drop_until(position)
            if position > self.floor:
                self.floor = position

    def drop(self) -> None:
        self._part.drop()


class PartitionReplay:
    """
    A partition's memory of its log.

    state   | `index` | `is_reading` | event: next state
    --------|---------|--------------|-----------------------------------------------------------------------
    absent  | None    | False        | a read begins: reading
    reading | None,   | True         | the read and its marker have come: indexed; it fails: as before; the
            | or there|              | connection for pushes is lost, or messages are missing: absent
    indexed | there   | False        | a read begins: reading; not used for the time that the log keeps,
            |         |              | the connection is lost, messages are missing, a move: absent
    """

    def __init__(self, opener: Opener, recovery: Recovery | None, counts: ReplayCounts) -> None:
        self._opener = opener
        self._recovery = recovery
        self._counts = counts
        self.epoch = LogEpoch()
        self.index: ReplayIndex | None = None
        #: Raised whenever something is forgotten: a read that began before does not count.
        self.version = 0
        #: Topics that were confirmed since the last read was sent.
        self.fresh: set[bytes] = set()
        # Topics that were given up since then.
        self._gone: set[bytes] = set()
        # What arrived behind the marker of the read that is under way.
        self._arrived: dict[bytes, list[Envelope]] | None = None
        self.is_active = False

    def forget(self) -> None:
        """Give up everything: what arrives is not complete any more, or is not needed."""
        if not self.is_active:
            return
        self.version += 1
        if self.index is not None:
            self.index.drop()
            self.index = None
        self.fresh.clear()
        self._gone.clear()
        self._arrived = None
        self.is_active = False

    def forget_unused(self, now: float) -> None:
        """Give up an index that nobody has used for the time that the log keeps."""
        index, recovery = self.index, self._recovery
        if index is not None and recovery is not None and now - index.used_at > recovery.seconds:
            self.forget()

    # What arrives

    def feed(self, topic: bytes, envelope: Envelope) -> None:
        """Note a message that was delivered."""
        if self.index is not None:
            self.index.feed(topic, envelope)
        if self._arrived is not None:
            self._arrived.setdefault(topic, []).append(envelope)

    def note_confirmed(self, topic: bytes) -> None:
        self.fresh.add(topic)

    def note_given_up(self, topic: bytes) -> None:
        self.fresh.discard(topic)
        self._gone.add(topic)
        if self._arrived is not None:
            self._arrived.pop(topic, None)
        if self.index is not None:
            self.index.give_up(topic)

    # Reads

    def begin(self, confirmed: Iterable[bytes]) -> None:
        """Become active before the first read; `confirmed` has the topics that are subscribed to."""
        if not self.is_active:
            self.is_active = True
            self.fresh = set(confirmed)

    def take_fresh(self) -> set[bytes]:
        """Return the topics that will be live when a read has ended that is sent now."""
        fresh, self.fresh = self.fresh, set()
        # A topic that was given up before this read, and is subscribed to again, is live after it.
        self._gone.clear()
        return fresh

    def give_back(self, fresh: set[bytes]) -> None:
        """Note that a read has failed."""
        self.fresh |= fresh - self._gone
        self._arrived = None

    def on_marker(self) -> None:
        """Note that what arrives from now on is behind the end of the read."""
        self._arrived = {}

    def finish(self, part: LogPart, epoch: str, live: set[bytes], *, is_new: bool) -> None:
        """Use what a read has found."""
        arrived, self._arrived = self._arrived or {}, None
        self.epoch.note(epoch, part.tip)
        assert self._recovery is not None
        if is_new or self.index is None:
            if self.index is not None:
                live = live | self.index.live
                self.index.drop()
            self.index = ReplayIndex(part, epoch, self._recovery, self._counts)
        else:
            self.index.extend(part)
            self.index.epoch = epoch
        for topic in live - self._gone:
            self.index.make_live(topic, arrived.get(topic, ()))
        self._gone.clear()
        self.index.limit(part.tip)

    # Answers

    def has(self, topic: Topic, place: Place, end: int, gap: int, *, has_read: bool) -> bool:
        """
        Tell whether the index has the messages of a topic behind a place.

        Args:
            end: everything up to this position was delivered here.
            gap: messages up to this time, in ms, may be in no log.
            has_read: whether a read has ended that was begun for this place.

        Raises:
            NotReplayed: no read will bring them.
        """
        index = self.index
        if index is None:
            return False
        index.used_at = monotonic()
        if index.epoch != place.epoch:
            return _refuse(has_read, "server_changed")
        if milliseconds_of(place.position) < gap:
            return _refuse(has_read, "not_logged")
        if place.position > max(index.tip, end):
            # Pushes may be late here: a read waits for them.
            return _refuse(has_read, "ahead")
        if place.position < index.floor:
            is_final = has_read or place.position >= index.start or index.is_too_old(place)
            return _refuse(is_final, "trimmed")
        return topic.name in index.live

    def since(self, topic: Topic, place: Place) -> list[Envelope]:
        assert self.index is not None
        return self.index.since(topic.name, place, partial(self._opener.open_entry, topic.name))

    def is_fed(self, topic: bytes) -> bool:
        return self.index is not None and topic in self.index.live


def _refuse(is_final: bool, reason: str) -> bool:
    """Return False: a read is due. Raise NotReplayed where none will help."""
    if is_final:
        raise NotReplayed(reason)
    return False
