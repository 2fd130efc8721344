"""One slice of the names: all state that moves with it from one node to another."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from ...clock import monotonic
from ...messages.envelopes import Envelope
from .redirects import Redirects
from .replay import LogPart, PartitionReplay
from .sender import Sender
from .sequences import DuplicateFilter, SequenceNumbers
from .subscriptions import Subscription, SubscriptionLedger

if TYPE_CHECKING:
    from .cluster.departures import Departure, Lineage
    from .node import Node
    from .shared import Shared


class Reading(enum.Enum):
    """How a partition is read at its home; the table is in `Partition`."""

    AWAY = enum.auto()
    SUBSCRIBING = enum.auto()
    CATCHING_UP = enum.auto()
    LIVE = enum.auto()


class PartitionReading(NamedTuple):
    """
    One attempt to read a partition on one connection. It is void after a move, or when the connection is lost.
    """

    partition: Partition
    epoch: int

    @property
    def is_current(self) -> bool:
        return self.partition.epoch == self.epoch


class Partition:
    """
    A session's part in one slice of the names: its sends, and its subscriptions.

    reading     | a logged push                           | event: next state
    ------------|-----------------------------------------|---------------------------------------------------------
    AWAY        | is discarded if the last home sends one | its home's connection for pushes comes up: SUBSCRIBING
    SUBSCRIBING | is discarded, as the log will be read;  | all its topics are confirmed: CATCHING_UP, or LIVE
                | without a position no log is read, and  | with the first fence
                | it is delivered                         |
    CATCHING_UP | waits in the connection, which is       | the log is read to its end: LIVE
                | paused                                  |
    LIVE        | is delivered if it is above             | the connection is lost, or a move: AWAY
                | `read_until`                            |
    """

    def __init__(self, number: int, home: Node, shared: Shared, redirects: Redirects | None = None) -> None:
        self.number = number
        self._receiver = shared.receiver
        #: The node that it belongs to now. Only `move()` changes it.
        self.home = home
        home.partitions[number] = self
        home.changes += 1

        self.sender = Sender(home, redirects)
        #: The numbers of messages that are logged, not logged, and pushed to normal channels.
        self.numbers = SequenceNumbers()
        self.unlogged_numbers = SequenceNumbers()
        self.push_numbers = SequenceNumbers()

        self.subscriptions = SubscriptionLedger(shared.index, self)
        self.reading = Reading.AWAY
        #: Counts moves and lost connections: a reading that began in an earlier epoch is void.
        self.epoch = 0
        #: Whether logged pushes are discarded, because they will be read from the log.
        self.discards = False
        self.delivered = DuplicateFilter()
        #: What is in memory of its log, for channels that come back.
        self.replay = PartitionReplay(
            shared.opener, shared.options.recovery, shared.replay_counts, self.subscriptions
        )
        #: All messages for the session up to this entry of the log were delivered, or reported as lost. None
        #: before the first fence.
        self.position: int | None = None
        #: Pushes up to this position were read from the log already.
        self.read_until = 0
        #: The time of the server, in ms, at which the last fence was published that set the position.
        self.fenced_at = 0
        #: The identity of the server that the position is from; empty if it is not known.
        self.server = b""
        #: In a cluster, the servers before that which had the same messages; None if messages may have been lost.
        self.lineage: Lineage | None = None
        #: In a cluster, how it has left the homes since it was read last; empty if they did not say it.
        self.departures: tuple[Departure, ...] = ()
        #: When the server's mark of this partition expires, in ms of its clock; None before the first fence.
        self.mark: int | None = None

    def enter(self, reading: Reading) -> None:
        """Change the state of its reading."""
        self.reading = reading
        self.home.changes += 1
        self.discards = reading is not Reading.LIVE and self.position is not None
        if reading is Reading.LIVE:
            self.departures = ()  # of the time before: it is read here now
            self.subscriptions.finish_confirmed()

    def begin_reading(self) -> PartitionReading:
        """Note that its topics are being subscribed to."""
        self.enter(Reading.SUBSCRIBING)
        return PartitionReading(self, self.epoch)

    @property
    def is_live(self) -> bool:
        return self.reading is Reading.LIVE

    def leave_connection(self) -> None:
        """Note that its connection for pushes was lost, or is another one: its subscriptions have ended."""
        self.epoch += 1
        self.replay.forget()
        self.replay.epoch.forget()
        self.subscriptions.disconnect()
        self.enter(Reading.AWAY)

    @property
    def is_away(self) -> bool:
        """Whether it is not read, and nobody has begun to."""
        return self.reading is Reading.AWAY

    def note_successor(self, lineage: Lineage) -> None:
        """Note a server that has everything that the server of the position had."""
        self.server, self.lineage = lineage.server, lineage
        self.departures = ()

    def move(self, home: Node) -> None:
        """
        Use another node from now on. No message is lost, and their order is kept.

        Messages are sent there after the last home has answered all commands. Missed pushes are read from the
        log.
        """
        if home is self.home:
            return
        last, self.home = self.home, home
        del last.partitions[self.number]
        last.changes += 1
        home.partitions[self.number] = self
        self.sender.move(home)
        last.subscriber.release(self)
        self.leave_connection()
        home.subscriber.take_in(self)

    def note_fence(self, position: int, published_at: int, server: bytes) -> None:
        """
        Note that everything up to this entry of the log was delivered, because a fence has arrived.

        Args:
            published_at: the time of the server, in ms, at which the fence was published.
            server: its run_id.
        """
        if self.position is None:
            self.server = server
            self.home.changes += 1
        self.position = position
        self.fenced_at = published_at

    def deliver(self, entry: Subscription, envelopes: list[Envelope], *, is_logged: bool) -> bool:
        """
        Hand on envelopes that arrived together, the last in the list first, except repeats.

        Returns False if the rest of the list must be offered again.
        """
        on_envelope = self._receiver.on_envelope
        topic = entry.topic
        # Envelopes that arrive together are of one session. Only messages from other programs have no number.
        seen = self.delivered.of(envelopes[-1].session_id if envelopes[-1].seq else b"", is_logged)
        replay = self.replay if self.replay.is_active else None
        while envelopes:
            envelope = envelopes[-1]
            seq = envelope.seq
            if not seq or seq > seen.highest:
                if not on_envelope(topic, envelope):
                    return False
                seen.highest = seq
                seen.last_used = envelope.expires_at
                if replay is not None and envelope.position:
                    replay.feed(topic, envelope)
            envelopes.pop()
        return True

    def take_read(self, part: LogPart, epoch: str, *, is_new: bool) -> None:
        """
        Use what a read of the log has found, for channels that come back.

        Everything that the read has found has arrived, where it is subscribed to. What arrives from now on and is
        in the log up to there was sent again.
        """
        now = monotonic()
        for session_id, (seq, _) in part.seen.items():
            self.delivered.note_highest(session_id, seq, now)
        self.replay.finish(part, epoch, is_new=is_new)

    def has_seen(self, envelope: Envelope, *, is_logged: bool) -> bool:
        """Tell whether this envelope, or a later one of its stream, was delivered."""
        return envelope.seq <= self.delivered.highest(envelope.session_id, is_logged)

    def passed(self, position: int) -> None:
        """
        Note that everything up to this entry of the log was delivered.

        A push that is held when the connection ends has not passed: it is read from the log.
        """
        # Only a fence sets the first position: all partitions get theirs at once, and the set-up waits for them.
        if self.position is not None:
            self.position = position
