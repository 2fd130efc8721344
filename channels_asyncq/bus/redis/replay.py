"""What a partition has in memory of its log, for channels that come back. No I/O, no await."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from functools import partial

from ...clock import monotonic
from ...messages.envelopes import Envelope
from ...messages.positions import Place
from ...names import Topic
from ...settings.keys import Recovery
from ..base import NotReplayed, ReplayCounts
from .opening import Opener
from .sequences import milliseconds_of
from .subscriptions import SubscriptionLedger
from .tracks import Record, Track

#: The most bytes of messages that a session holds for channels that come back.
MOST_BYTES = 32 * 2**20
# Milliseconds for which the numbers of a sender are kept at least, and how many senders are never too many.
_SEEN_LIVES = 900_000
_MANY_SEEN = 1000


class LogEpoch:
    """
    The epoch of a log, as the server has named it last, and the end of the log at that time.

    Messages up to that end may be of an earlier epoch: messages without a log may have been published between
    them and the beginning of this one.
    """

    __slots__ = ("is_used", "known", "since")

    def __init__(self) -> None:
        self.known = ""
        self.since = 0
        #: Whether it was ever asked for: then it is asked for again when it is forgotten.
        self.is_used = False

    def note(self, epoch: str, end: int) -> None:
        self.is_used = True
        if epoch != self.known:
            self.known, self.since = epoch, end

    def forget(self) -> None:
        """Note that the server may be another one, or has begun another epoch."""
        self.known = ""

    def at(self, position: int) -> str:
        """Return the epoch of a message that arrived; empty if it may be an earlier one."""
        return self.known if position > self.since else ""


class LogPart(dict[bytes, Track]):
    """
    What a read has found in one log, by topic, and the range that it has looked at: from `first` to `tip`.

    `seen` has the highest number of each sender and its position: an entry that is not above it was sent again.
    """

    def __init__(self, start: int, counts: ReplayCounts) -> None:
        super().__init__()
        self._counts = counts
        #: The id from which the log was read; of the first entry that was found; of the last entry of the log.
        self.start = start
        self.first = self.tip = 0
        self.seen: dict[bytes, tuple[int, int]] = {}
        #: Position and topic of each record, about in the order of the log.
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

    def has_seen(self, envelope: Envelope) -> bool:
        """Tell whether a message was sent again, and the log has it already."""
        return envelope.seq <= self.seen.get(envelope.session_id, (0, 0))[0]

    def drop(self) -> None:
        """Drop all records: they are not used."""
        for track in self.values():
            track.drop_all()
        self.clear()
        self.order.clear()


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
        self._most_seen = _MANY_SEEN
        self.epoch = epoch
        #: It has no messages before `start`, because they were not looked for.
        self.start = part.start
        self.tip = part.tip
        #: Everything behind this position is here.
        self.floor = part.first or part.tip
        self.used_at = monotonic()

    @property
    def seen(self) -> dict[bytes, tuple[int, int]]:
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
        """Add a message of a live topic that arrived."""
        self._add(topic, envelope)
        self.limit(envelope.position)

    def feed_arrived(self, topic: bytes, envelope: Envelope) -> None:
        """Add a message that arrived behind the end of the last read, before its topic was live."""
        if not self._part.has_seen(envelope):
            self._add(topic, envelope)

    def _add(self, topic: bytes, envelope: Envelope) -> None:
        # The log has the header only of what is too large: a session that reads it gives the same answer.
        is_whole = len(envelope.payload) <= self._most_bytes
        self._part.add(topic, envelope.position, envelope if is_whole else "too_large")

    def give_up(self, topic: bytes) -> None:
        """Note that a topic is not subscribed to any more: its pushes end."""
        if (track := self._part.get(topic)) is not None:
            # The next read begins behind `tip`.
            track.drop_behind(self.tip)
            if not track:
                del self._part[topic]

    def extend(self, part: LogPart, live: Container[bytes]) -> None:
        """Add what a read from `tip` on has found. Live topics have it already."""
        for topic, track in part.items():
            if topic in live:
                track.drop_all()
            else:
                self._part.track(topic).take_all(track)
        self._part.order += (entry for entry in part.order if entry[1] not in live)
        self._part.seen.update(part.seen)
        self.tip = part.tip
        if len(self._part.seen) > self._most_seen:
            self._forget_seen()

    def _forget_seen(self) -> None:
        """Forget the numbers of senders that have sent nothing for a while: they will not send again."""
        oldest = self.tip - max(self._kept, _SEEN_LIVES << 64)
        seen = {sender: last for sender, last in self.seen.items() if last[1] >= oldest}
        self._part.seen = seen
        self._most_seen = max(_MANY_SEEN, 2 * len(seen))

    # Bounds

    def limit(self, newest: int) -> None:
        """Drop what is older than the log keeps, and what is more than may be held."""
        part = self._part
        order = part.order
        oldest = newest - self._kept
        while order:
            position, topic = order[0]
            if position >= oldest:
                if len(order) <= self._most_records and self._counts.bytes <= MOST_BYTES:
                    break
                self._counts.evicted += 1
            del order[0]
            # It is gone if its topic was given up, or if it came together with the one before.
            if (track := part.get(topic)) is not None:
                track.drop_until(position)
                if not track:
                    del part[topic]
            if position > self.floor:
                self.floor = position

    def drop(self) -> None:
        self._part.drop()


class _Live:
    """The live topics of a partition's index: those that were confirmed before the last read was sent."""

    def __init__(self, subscriptions: SubscriptionLedger) -> None:
        self._subscriptions = subscriptions
        #: Topics that were confirmed since then.
        self.fresh: set[bytes] = set()
        #: Topics that will be live when the read that is under way has ended.
        self.coming: set[bytes] = set()

    def __contains__(self, topic: object) -> bool:
        assert isinstance(topic, bytes)
        if topic in self.fresh or topic in self.coming:
            return False
        entry = self._subscriptions.get(topic)
        return entry is not None and entry.is_confirmed

    def discard(self, topic: bytes) -> None:
        self.fresh.discard(topic)
        self.coming.discard(topic)

    def clear(self) -> None:
        self.fresh.clear()
        self.coming.clear()


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

    Args:
        subscriptions: the topics of the partition.
    """

    def __init__(
        self,
        opener: Opener,
        recovery: Recovery | None,
        counts: ReplayCounts,
        subscriptions: SubscriptionLedger,
    ) -> None:
        self._opener = opener
        self._recovery = recovery
        self._counts = counts
        self.epoch = LogEpoch()
        self.index: ReplayIndex | None = None
        #: Raised whenever something is forgotten: a read that began before does not count.
        self.version = 0
        self._live = _Live(subscriptions)
        # What arrived behind the marker of the read that is under way.
        self._arrived: list[tuple[bytes, Envelope]] | None = None
        self.is_active = False
        self.is_reading = False

    def forget(self) -> None:
        """Give up everything: what arrives is not complete any more, or is not needed."""
        if not self.is_active:
            return
        self.version += 1
        if self.index is not None:
            self.index.drop()
            self.index = None
        self._live.clear()
        self._arrived = None
        self.is_active = self.is_reading = False

    def forget_unused(self, now: float) -> None:
        """Give up an index that nobody has used for the time that the log keeps."""
        recovery = self._recovery
        if self.is_reading or not self.is_active or recovery is None:
            return
        if self.index is None or now - self.index.used_at > recovery.seconds:
            self.forget()

    # What arrives

    def feed(self, topic: bytes, envelope: Envelope) -> None:
        """Note a message that was delivered."""
        if self.index is not None and topic in self._live:
            self.index.feed(topic, envelope)
        if self._arrived is not None:
            self._arrived.append((topic, envelope))

    def note_confirmed(self, topic: bytes) -> None:
        """Note that the server has confirmed a subscription."""
        self._live.fresh.add(topic)

    def note_given_up(self, topic: bytes) -> None:
        """Note that a topic is given up."""
        self._live.discard(topic)
        if self.index is not None:
            self.index.give_up(topic)

    # Reads

    def begin(self) -> None:
        """Note that a read is sent now: the topics that are confirmed will be live when it has ended."""
        live = self._live
        live.coming, live.fresh = live.fresh, set()
        self.is_active = self.is_reading = True

    def fail(self) -> None:
        """Note that the read has failed."""
        self._live.fresh |= self._live.coming
        self._live.coming = set()
        self._arrived = None
        self.is_reading = False

    def begin_page(self) -> None:
        """Note that a page is asked for: what is not in it, if it is the last one, arrives from now on."""
        self._arrived = []

    def on_marker(self) -> None:
        """Note that what arrives from now on is behind the end of the read."""
        if self._arrived is None:
            self._arrived = []

    def finish(self, part: LogPart, epoch: str, *, is_new: bool) -> None:
        """Use what a read has found. With `is_new` it replaces the index."""
        live = self._live
        arrived, self._arrived = self._arrived or [], None
        coming = live.coming
        self.epoch.note(epoch, part.tip)
        assert self._recovery is not None
        if is_new or self.index is None:
            if self.index is not None:
                self.index.drop()
            self.index = ReplayIndex(part, epoch, self._recovery, self._counts)
        else:
            self.index.extend(part, live)
            self.index.epoch = epoch
            # The others were fed as they arrived.
            arrived = [each for each in arrived if each[0] in coming]
        live.coming = set()
        for topic, envelope in arrived:
            if topic in live and envelope.position > part.tip:
                self.index.feed_arrived(topic, envelope)
        self.index.limit(part.tip)
        self.is_reading = False

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
        return topic.name in self._live

    def since(self, topic: Topic, place: Place) -> list[Envelope]:
        assert self.index is not None
        return self.index.since(topic.name, place, partial(self._opener.open_entry, topic.name))

    def is_fed(self, topic: bytes) -> bool:
        """Tell whether messages that arrive on a topic are kept here."""
        return self.index is not None and topic in self._live


def _refuse(is_final: bool, reason: str) -> bool:
    """Return False: a read is due. Raise NotReplayed where none will help."""
    if is_final:
        raise NotReplayed(reason)
    return False
