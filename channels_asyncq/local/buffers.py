"""One bounded queue of envelopes: expiry, closing, waiting for a place, and the count of what was dropped."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol, cast

from ..clock import monotonic
from ..exceptions import ChannelClosed
from ..messages.closing import CLOSE
from ..messages.codecs import Codec
from ..messages.envelopes import NOTICE, Envelope
from .counters import Counters
from .losses import Losses
from .queue_interface import QueueInterface
from .senders import WaitingSenders

# The deque of a buffer that has had no message: shared, because an empty deque is large.
_NOTHING = cast("deque[Envelope]", ())
_CLOSE = CLOSE.encode()


@dataclass(frozen=True, slots=True)
class ChannelView:
    """How full a channel was when its layer was asked, in the words of `asyncio.Queue`."""

    maxsize: int
    waiting: int

    def qsize(self) -> int:
        return self.waiting

    def empty(self) -> bool:
        return not self.waiting

    def full(self) -> bool:
        return self.waiting >= self.maxsize


class GroupLimit(NamedTuple):
    """How many groups a channel may be in, and the name of the setting that says so."""

    most: int
    setting: str


@lru_cache(maxsize=1024)
def group_limit(most: int, setting: str) -> GroupLimit:
    """Return the limit, one object for all channels that have it: a consumer has as many as it has clients."""
    return GroupLimit(most, setting)


class PlaceObserver(Protocol):
    """What a buffer calls when it can take messages again. Implemented by `local.flow.FlowControl`."""

    def on_place_free(self, buffer: ChannelBuffer) -> None:
        """A buffer that was marked `is_reported_full` has a place; the mark is gone."""


class ChannelBuffer(QueueInterface):
    """
    The messages that wait in one channel, at most `capacity` of them, oldest first.

    An `asyncio.Queue` whose envelopes expire, which can be closed, and which counts what it drops. `offer()`
    and `take()` never wait; `get()` waits for an envelope and `put_when_free()` for a place. Loss notices wait
    beside the messages, over capacity; they never expire. A buffer belongs to one event loop.

    closed | what it accepts, and what a reader gets
    -------|------------------------------------------------------------------------------------------
    None   | open: envelopes while there is a place; a reader without one waits
    reason | closed: nothing new; a reader gets what is left, and then this exception
    """

    def __init__(
        self,
        channel: str,
        capacity: int,
        counters: Counters,
        observer: PlaceObserver | None = None,
        on_loss: str | None = None,
    ) -> None:
        # Queue.__init__() is not called: it makes deques and an Event for each channel. So every method of
        # Queue is overridden (see QueueInterface), and no attribute has the name of one of Queue's.
        self.channel = channel
        self.capacity = capacity
        # How many envelopes fit in: the capacity and the waiting notices, without the places held for senders.
        self._places = capacity
        self._envelopes: deque[Envelope] = _NOTHING
        self.lost_expired = False  # a message expired unread since the last successful receive
        self._receivers: list[asyncio.Future[None]] = []
        self.last_used = self.last_received = monotonic()
        self.groups: set[bytes] = set()  # topics of the groups the channel is in; `Groups` owns it
        self._counters = counters
        self._counts_bytes = counters.most_bytes is not None
        self._observer = observer
        self._on_loss = on_loss  # the message type of loss notices; None for no notices

    # Class attributes for what most channels never change: they save memory. What is set often is an instance
    # attribute, whose lookup is faster.

    losses: Losses | None = None  # until the reader has caught up
    closed: type[ChannelClosed] | None = None
    is_reported_full = False
    #: Channels of earlier connections of the reader: a message that excludes one of them is not for this one.
    former: tuple[str, ...] = ()
    is_mended = False  # its reader gets from the log what an overflow drops
    group_limit: GroupLimit | None = None
    own_groups = 0  # how many of its groups do not count for the limit
    #: Set where the reader ends at a close message: it does not expire, and the channel is closed if it finds no
    #: place.
    close_codec: Codec | None = None
    is_kept = False  # an open channel reads from it: never swept
    reader: type | None = None  # the class that reads it, if it is one of ours
    _senders: WaitingSenders | None = None

    def resize(self, capacity: int) -> None:
        """Set another capacity; messages that exceed it stay."""
        if capacity == self.capacity:
            return
        self._places += capacity - self.capacity
        self.capacity = capacity
        if not self.full():
            self._note_place_free()

    def qsize(self) -> int:
        return len(self._envelopes)

    def empty(self) -> bool:
        return not self._envelopes

    def full(self) -> bool:
        return len(self._envelopes) >= self._places

    # Putting

    def offer(self, envelope: Envelope) -> int:
        """
        Append the envelope if there is a place (expired messages free theirs).

        Returns how many places are left after it; -1 if there was none.
        """
        queue = self._envelopes
        left = self._places - len(queue) - 1
        if left < 0:
            left += self.drop_expired()
            if left < 0:
                return -1
        if queue is _NOTHING:
            queue = self._envelopes = deque()
        queue.append(envelope)
        if self._counts_bytes:
            self._counters.hold(envelope)
        if self._receivers:
            _wake_first(self._receivers)
            self._counters.woken += 1
        return left

    def notify_loss(self, reason: str, targets: Iterable[str], *, at_head: bool) -> None:
        """
        Tell the reader that messages to these targets were lost, by a notice at the head or the end of the queue.

        One notice for each reason until the reader has caught up: later losses are added to it while it waits.
        """
        if self.closed is not None:
            return
        if self.losses is None:
            self.losses = Losses(self._on_loss, self._counters)
        if (notice := self.losses.note(reason, targets)) is not None:
            self._insert_notice(notice, at_head=at_head)

    def tell_losses(self, message_type: str) -> None:
        """
        Put loss notices of this type into the channel, if `on_loss` names none: its reader mends losses.

        So an overflow does not close it, whatever `overflow` says.
        """
        self.is_mended = True
        if self._on_loss is None:
            self._on_loss = message_type

    def _insert_notice(self, notice: Envelope, *, at_head: bool) -> None:
        self._places += 1
        if self._envelopes is _NOTHING:
            self._envelopes = deque()
        if at_head:
            self._envelopes.appendleft(notice)
        else:
            self._envelopes.append(notice)
        if self._counts_bytes:
            self._counters.hold(notice)
        if self._receivers:
            _wake_first(self._receivers)
            self._counters.woken += 1

    def put_back(self, envelope: Envelope) -> None:
        """Put an envelope that was taken back at the head, also over capacity. Wakes no reader."""
        if self._envelopes is _NOTHING:
            self._envelopes = deque()
        self._envelopes.appendleft(envelope)

    async def put_when_free(self, envelope: Envelope, expiry: float | None = None) -> None:
        """
        Append the envelope as soon as there is a place; it expires `expiry` seconds after that, if given.

        Cancelling is safe: the envelope is not in the buffer then.

        Raises:
            ChannelClosed: the channel closed before there was a place.
        """
        senders = self._senders
        # Earlier senders wait in line or hold a place already; a newcomer does not overtake them.
        must_wait = senders is not None and not senders.is_empty
        while True:
            if self.closed is not None:
                raise self.closed(self.channel)
            if expiry is not None:
                envelope.expires_at = monotonic() + expiry
            if not must_wait and self.offer(envelope) >= 0:
                if self._senders is not None:
                    self._senders.watch_expiry()  # those behind this one may wait for its expiry
                return
            if self._senders is None:
                self._senders = WaitingSenders(self)
            await self._senders.wait()
            must_wait = False

    # For the senders that wait

    def may_proceed(self) -> bool:
        return self.closed is not None or not self.full()

    def reserve_place(self) -> None:
        self._places -= 1

    def return_place(self) -> None:
        self._places += 1

    def next_expiry(self) -> float | None:
        oldest = self.oldest_message
        return None if oldest is None or self.ends_at(oldest) else oldest.expires_at

    # Taking

    def take(self) -> Envelope | None:
        """Remove and return the oldest unexpired envelope, or None."""
        queue = self._envelopes
        while queue:
            envelope = queue.popleft()
            if self._counts_bytes:
                self._counters.release(envelope)
            if envelope.flags & NOTICE:
                self._places -= 1
                if self.losses is not None:
                    self.losses.read(envelope)
            if self.is_reported_full or self.losses or (self._senders is not None and self._senders.line):
                self._note_place_free()
            now = monotonic()
            if envelope.expires_at > now or self.ends_at(envelope):
                self.last_used = self.last_received = now
                self.lost_expired = False
                return envelope
            self._count_expired([envelope])
        return None

    def wake(self, waiter: asyncio.Future[None]) -> None:
        """Have this future done when an envelope comes or the channel closes. Look with `take()` first."""
        self._receivers.append(waiter)

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        """Withdraw a future that was given to `wake()`: its owner does not take an envelope now."""
        if self._receivers and waiter in self._receivers:
            self._receivers.remove(waiter)
        elif self._envelopes:
            # It was woken and cancelled in one turn: the next receiver gets the envelope.
            _wake_first(self._receivers)
        self.last_used = monotonic()

    def _note_place_free(self) -> None:
        if self.is_reported_full:
            self.is_reported_full = False
            if self._observer is not None:
                self._observer.on_place_free(self)
        if self.losses and 2 * len(self._envelopes) <= self.capacity:
            self._note_caught_up(self.losses)
        if self._senders is not None and self._senders.line:
            # In use: the woken sender has yet to run, and until then nothing else shows that it is there.
            self.last_used = monotonic()
            self._senders.hand_out()

    def _note_caught_up(self, losses: Losses) -> None:
        """End the losses that the reader has caught up with; later losses get another notice now."""
        for reason, groups in losses.end_read_ones():
            self.notify_loss(reason, groups, at_head=False)

    # Ending

    def drop_expired(self) -> int:
        """Drop the envelopes at the head that expired; return how many places that freed."""
        queue = self._envelopes
        if not queue or (queue[0].expires_at > monotonic() and not queue[0].flags & NOTICE):
            return 0  # as a rule
        expired = self._pop_expired(queue)
        if not expired:
            return 0
        if self._counts_bytes:
            for envelope in expired:
                self._counters.release(envelope)
        self._note_place_free()
        self._count_expired(expired)
        return len(expired)

    def _pop_expired(self, queue: deque[Envelope]) -> list[Envelope]:
        """Remove and return the messages at the head that expired; loss notices among them stay."""
        now = monotonic()
        expired: list[Envelope] = []
        notices: list[Envelope] = []
        while queue and (queue[0].expires_at <= now or queue[0].flags & NOTICE):
            if self.ends_at(queue[0]):
                break
            envelope = queue.popleft()
            (notices if envelope.flags & NOTICE else expired).append(envelope)
        if notices:
            queue.extendleft(reversed(notices))
        return expired

    def ends_at(self, envelope: Envelope) -> bool:
        """Tell whether an envelope has a close message, at which the reader of this buffer would end."""
        codec = self.close_codec
        if codec is None or _CLOSE not in envelope.payload:
            return False
        # Most messages are not decoded for this: the bytes must have the type in them.
        return codec.decode_own(envelope.payload).get("type") == CLOSE

    def _count_expired(self, expired: list[Envelope]) -> None:
        self.lost_expired = True
        for envelope in expired:
            self._counters.drop("expired", self.channel, envelope)
        self.notify_loss("expired", sorted({envelope.target for envelope in expired}), at_head=True)

    def drop_oldest(self) -> Envelope:
        """Remove and return the oldest message. There must be one."""
        envelope = next(_messages(self._envelopes))
        self._envelopes.remove(envelope)
        if self._counts_bytes:
            self._counters.release(envelope)
        return envelope

    def clear(self) -> int:
        """Drop everything that waits; return how many envelopes that were."""
        count = len(self._envelopes)
        if count:
            if self._counts_bytes:
                for envelope in self._envelopes:
                    self._counters.release(envelope)
            self._envelopes.clear()
            self._places -= self.losses.waiting if self.losses else 0
            self.losses = None
            self._note_place_free()
        return count

    def drop_logged(self, targets: Container[str]) -> None:
        """
        Drop the messages to these groups that are in a log, without counting them: they are replayed.

        Close messages stay: in a replay they are those of the connection before this one.
        """
        dropped: list[Envelope] = []
        kept: deque[Envelope] = deque()
        for each in self._envelopes:
            is_replayed = each.position and each.target in targets and not self.ends_at(each)
            (dropped if is_replayed else kept).append(each)
        if not dropped:
            return
        self._envelopes = kept
        if self._counts_bytes:
            for envelope in dropped:
                self._counters.release(envelope)
        self._note_place_free()

    def close(self, reason: type[ChannelClosed] = ChannelClosed) -> None:
        """
        Accept nothing new; receivers get what is left, then `reason`. All waiters are woken.

        Closing again changes nothing.
        """
        if self.closed is not None:
            return
        self.closed = reason
        while self._receivers:
            _wake_first(self._receivers)
        if self._senders is not None:
            self._senders.hand_out()

    # Contents

    @property
    def waiting(self) -> int:
        """How many receivers wait and have not been woken."""
        return len(self._receivers)

    @property
    def is_awaited(self) -> bool:
        """Whether a receiver waits for an envelope, or a sender for a place."""
        return bool(self._receivers) or (self._senders is not None and not self._senders.is_empty)

    @property
    def queued(self) -> int:
        """How many envelopes wait."""
        return len(self._envelopes)

    def contents(self) -> list[Envelope]:
        """Return what waits, oldest first; loss notices are among it."""
        return list(self._envelopes)

    @property
    def has_messages(self) -> bool:
        """Whether any of them is more than a loss notice."""
        return len(self._envelopes) > (self.losses.waiting if self.losses else 0)

    @property
    def oldest(self) -> Envelope | None:
        return self._envelopes[0] if self._envelopes else None

    @property
    def oldest_message(self) -> Envelope | None:
        """The oldest of them that is no loss notice."""
        return next(_messages(self._envelopes), None)


def _wake_first(waiters: list[asyncio.Future[None]]) -> None:
    while waiters:
        waiter = waiters.pop(0)
        if not waiter.done():
            waiter.set_result(None)
            return


def _messages(queue: deque[Envelope]) -> Iterator[Envelope]:
    """Yield the envelopes that are no loss notices, oldest first."""
    return (envelope for envelope in queue if not envelope.flags & NOTICE)
