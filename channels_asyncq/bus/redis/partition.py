"""One slice of the names: all state that goes with it when it moves from one node to another."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from ...messages.envelopes import Envelope
from ..base import Receiver
from .sender import Sender
from .sequences import DuplicateFilter, SequenceNumbers
from .subscriptions import Subscription, SubscriptionLedger

if TYPE_CHECKING:
    from .node import Node


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
    What a session sends to one slice of the names, and reads of it.

    reading     | a logged push of it                     | what comes next
    ------------|-----------------------------------------|---------------------------------------------------------
    AWAY        | none, or of its last home: is discarded | its home's connection for pushes comes up: SUBSCRIBING
    SUBSCRIBING | is discarded: it will be read. Without  | all its topics are confirmed: CATCHING_UP, or LIVE
                | a position there is nothing to read,    | with the first fence
                | and it is delivered                     |
    CATCHING_UP | waits in the connection, which is       | the log is read to its end: LIVE
                | paused                                  |
    LIVE        | is delivered if it is above             | the connection is lost, or a move: AWAY
                | `read_until`                            |
    """

    def __init__(self, number: int, home: Node, receiver: Receiver, index: dict[bytes, Subscription]) -> None:
        self.number = number
        self._receiver = receiver
        #: The node that it is at. Only `move()` changes it.
        self.home = home
        home.partitions[number] = self

        self.sender = Sender(home)
        #: The numbers of what is sent: logged, not logged, and pushed to normal channels.
        self.numbers = SequenceNumbers()
        self.unlogged_numbers = SequenceNumbers()
        self.push_numbers = SequenceNumbers()

        self.subscriptions = SubscriptionLedger(index, self)
        self.reading = Reading.AWAY
        #: How often it was moved, or its connection lost: a reading that was begun before the last time is void.
        self.epoch = 0
        #: Whether logged pushes are discarded, because they will be read from the log.
        self.discards = False
        self.delivered = DuplicateFilter()
        #: Everything up to this entry of the log that concerns the session was delivered, or reported as lost.
        #: None before the first fence.
        self.position: int | None = None
        #: A push at or below this was read from the log already.
        self.read_until = 0
        #: The time of its server, in ms, at which the last fence that arrived for it was sent.
        self.fenced_at = 0
        #: The run_id of the server that the position is from, empty if it did not say.
        self.server = b""
        #: When the server's mark of this partition expires, in ms of its clock; None before the first fence.
        self.mark: int | None = None

    def enter(self, reading: Reading) -> None:
        """Change how it is read."""
        self.reading = reading
        self.discards = reading is not Reading.LIVE and self.position is not None
        if reading is Reading.LIVE:
            self.subscriptions.finish_confirmed()

    def begin_reading(self) -> PartitionReading:
        """Note that its topics are being subscribed to."""
        self.enter(Reading.SUBSCRIBING)
        return PartitionReading(self, self.epoch)

    @property
    def is_live(self) -> bool:
        return self.reading is Reading.LIVE

    def leave_connection(self) -> None:
        """Note that its connection for pushes was lost, or is another: all is to be subscribed to again."""
        self.epoch += 1
        self.subscriptions.disconnect()
        self.enter(Reading.AWAY)

    def move(self, home: Node) -> None:
        """
        Be at another node from now on. Nothing is lost, and the order of the messages is kept.

        Messages go there when the last home has answered what it was sent. Missed pushes are read from the log.
        """
        if home is self.home:
            return
        last, self.home = self.home, home
        del last.partitions[self.number]
        home.partitions[self.number] = self
        self.sender.move(home)
        last.subscriber.release(self)
        self.leave_connection()
        home.subscriber.take_in(self)

    def deliver(self, entry: Subscription, envelopes: list[Envelope], *, is_logged: bool) -> bool:
        """
        Hand on envelopes that arrived together, the last in the list first, except repeats.

        Returns False if the rest of the list must be offered again.
        """
        on_envelope = self._receiver.on_envelope
        topic = entry.topic
        # What arrives together is of one session. Only what comes from outside has no number.
        seen = self.delivered.of(envelopes[-1].session_id if envelopes[-1].seq else b"", is_logged)
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

    def has_seen(self, envelope: Envelope, *, is_logged: bool) -> bool:
        """Tell whether this envelope, or a later one of its stream, was delivered."""
        return envelope.seq <= self.delivered.highest(envelope.session_id, is_logged)

    def passed(self, position: int) -> None:
        """
        Note that everything up to this entry of the log was delivered.

        What is held when the connection ends is read from the log.
        """
        # Only a fence gives the first: otherwise some partitions had one, and nobody would wait for the others'.
        if self.position is not None:
            self.position = position
