"""One bounded queue of envelopes: expiry, closing, waiting for a place, and the count of what was dropped."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from channels.exceptions import ChannelFull

from ..clock import monotonic
from ..exceptions import ChannelClosed
from ..messages.envelopes import NOTICE, Envelope

# Of buffers that have had none: nobody can put anything in.
_NOTHING = cast("deque[Envelope]", ())
_NO_LOSSES: Mapping[str, Loss] = MappingProxyType({})


class Counters:
    """What a session delivered to its channels, and what it dropped, by reason."""

    __slots__ = ("delivered", "dropped", "external", "held_bytes", "most_bytes", "told", "woken")

    def __init__(self, most_bytes: int | None = None) -> None:
        self.delivered = 0
        self.external = 0
        self.dropped: Counter[str] = Counter()
        #: Channels that were told of a loss, or would have been if `on_loss` were set, by reason.
        self.told: Counter[str] = Counter()
        #: Bytes of the payloads that wait, each counted once however many buffers hold it. Kept only when
        #: there is a limit.
        self.held_bytes = 0
        self.most_bytes = most_bytes
        #: How often an envelope or a word about a loss woke a receiver.
        self.woken = 0


class Loss:
    """
    Why and from which groups a channel missed something, while its reader has not caught up.

    `notice` waits in the buffer to say so. What is missed after the reader has it is told at the end.
    """

    __slots__ = ("groups", "notice")

    def __init__(self, groups: list[str], notice: Envelope | None) -> None:
        # None when there is nothing to tell (any more).
        self.groups: dict[str, None] | None = None if notice is None else dict.fromkeys(groups)
        self.notice = notice

    def add(self, groups: list[str]) -> None:
        if self.groups is None:
            self.groups = {}
        self.groups.update(dict.fromkeys(groups))

    def read(self) -> None:
        """Note that the reader has the notice, with the groups of all that was missed until now."""
        if self.notice is not None and self.notice.message is not None and self.groups is not None:
            self.notice.message["groups"] = list(self.groups)
        self.notice = self.groups = None


@dataclass(frozen=True, slots=True)
class ChannelView:
    """How full a channel was when somebody looked, in the words of `asyncio.Queue`."""

    maxsize: int
    waiting: int

    def qsize(self) -> int:
        return self.waiting

    def empty(self) -> bool:
        return not self.waiting

    def full(self) -> bool:
        return self.waiting >= self.maxsize


class ChannelBuffer(asyncio.Queue[Envelope]):
    """
    The messages that wait in one channel, at most `capacity` of them, oldest first.

    An `asyncio.Queue` whose envelopes expire, which can be closed, and which counts what it drops. `offer()`
    and `take()` never wait; `get()` waits for an envelope and `put_when_free()` for a place. It belongs to one
    event loop once somebody waits in it. It counts no tasks: `join()` returns at once.
    """

    def __init__(
        self,
        channel: str,
        capacity: int,
        counters: Counters,
        on_room: Callable[[ChannelBuffer], None] | None = None,
        on_expired: Callable[[ChannelBuffer, set[str]], None] | None = None,
        on_missed: Callable[[ChannelBuffer, str, list[str]], None] | None = None,
    ) -> None:
        # Not Queue's __init__(): it makes deques and an Event, 1.5 KiB a channel. So every method of Queue is
        # overridden, and no attribute has the name of one of Queue's.
        # Places are for messages and notices; those that are held for senders are not among them.
        self.capacity = self._places = capacity
        self._envelopes: deque[Envelope] = _NOTHING  # until a message comes: an empty deque takes 760 bytes
        self.lost_expired = False  # a message expired unread since the last successful receive
        self._receivers: list[asyncio.Future[None]] = []
        self.channel = channel
        self.last_used = self.last_received = monotonic()
        self.groups: set[bytes] = set()  # owned by the hub: topics of the groups this channel is in
        self._counters = counters
        self._counts_bytes = counters.most_bytes is not None
        self._on_room = on_room
        self._on_expired = on_expired
        self._on_missed = on_missed

    # What many channels never change. (What is set often would be slower to look up here.)

    losses: Mapping[str, Loss] = _NO_LOSSES  # by reason; until the reader has caught up
    closed: type[ChannelClosed] | None = None
    is_reported_full = False
    is_kept = False  # somebody holds it to read from it: not swept, however long that takes
    # Those who wait for a place, and the places that are held for some of them.
    _senders: deque[asyncio.Future[None]] | tuple[()] = ()
    _held = 0
    _expiry_timer: asyncio.TimerHandle | None = None

    def resize(self, capacity: int) -> None:
        """Hold so many messages from now on; what is there and exceeds it stays."""
        if capacity == self.capacity:
            return
        self._places += capacity - self.capacity
        self.capacity = capacity
        if not self.full():
            self._made_room()

    def __repr__(self) -> str:
        state = "open" if self.closed is None else "closed"
        return f"<ChannelBuffer of {self.channel!r}, {state}, {self.queued} of maxsize={self.capacity}>"

    __str__ = __repr__

    @property
    def maxsize(self) -> int:
        return self.capacity

    def qsize(self) -> int:
        return len(self._envelopes)

    def empty(self) -> bool:
        return not self._envelopes

    def full(self) -> bool:
        return len(self._envelopes) >= self._places

    # Putting

    def offer(self, envelope: Envelope) -> int:
        """
        Append the envelope if there is a place (expired ones give theirs up).

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
            self._hold(envelope)
        if self._receivers:
            _wake_first(self._receivers)
            self._counters.woken += 1
        return left

    def tell(self, reason: str, groups: list[str], notice: Envelope | None, *, at_head: bool) -> None:
        """Add a word about a loss, over capacity: of these groups, and of those added to it until it is read."""
        self.losses = {**self.losses, reason: Loss(groups, notice)}
        if notice is None:
            return
        self._places += 1
        if self._envelopes is _NOTHING:
            self._envelopes = deque()
        if at_head:
            self._envelopes.appendleft(notice)
        else:
            self._envelopes.append(notice)
        if self._counts_bytes:
            self._hold(notice)
        if self._receivers:
            _wake_first(self._receivers)
            self._counters.woken += 1

    def _hold(self, envelope: Envelope) -> None:
        if not envelope.holders:
            self._counters.held_bytes += len(envelope.payload)
        envelope.holders += 1

    def _release(self, envelope: Envelope) -> None:
        envelope.holders -= 1
        if not envelope.holders:
            self._counters.held_bytes -= len(envelope.payload)

    def put_nowait(self, item: Envelope) -> None:
        if self.closed is not None:
            raise self.closed(self.channel)
        if self.offer(item) < 0:
            raise asyncio.QueueFull

    def put_back(self, envelope: Envelope) -> None:
        """Put an envelope that was taken back at the head, also over capacity. Wakes nobody."""
        if self._envelopes is _NOTHING:
            self._envelopes = deque()
        self._envelopes.appendleft(envelope)

    async def put(self, item: Envelope) -> None:
        """Like `put_when_free()` for an envelope whose `expires_at` is already set."""
        await self.put_when_free(item)

    async def put_when_free(self, envelope: Envelope, expiry: float | None = None) -> None:
        """
        Append the envelope as soon as there is a place; it expires `expiry` seconds after that, if given.

        Cancelling is safe: the envelope is not in the buffer then.

        Raises:
            ChannelClosed: the channel closed before there was a place.
        """
        # Those who came first wait in _senders or hold a place already; a newcomer does not overtake them.
        must_wait = bool(self._senders or self._held)
        while True:
            if self.closed is not None:
                raise self.closed(self.channel)
            if expiry is not None:
                envelope.expires_at = monotonic() + expiry
            if not must_wait and self.offer(envelope) >= 0:
                return
            await self._place()
            self._release_place()
            must_wait = False

    async def _place(self) -> None:
        """Wait until a place is held for the caller, or the buffer is closed."""
        sender = asyncio.get_running_loop().create_future()
        if not self._senders:
            self._senders = deque()
        self._senders.append(sender)
        if self._expiry_timer is None:
            self._watch_expiry()
        try:
            await sender
        except asyncio.CancelledError:
            if sender in self._senders:
                self._senders.remove(sender)
            elif not sender.cancelled():
                self._release_place()
                self._hand_out()
            raise

    def _hand_out(self) -> None:
        """Hold the free places for the senders that wait, first come, first served."""
        while self._senders and (self.closed is not None or not self.full()):
            sender = self._senders.popleft()
            if not sender.done():
                self._held += 1
                self._places -= 1
                sender.set_result(None)

    def _release_place(self) -> None:
        self._held -= 1
        self._places += 1

    def _watch_expiry(self) -> None:
        # A place also comes free when the oldest message expires, which nobody else would notice.
        self._expiry_timer = None
        self.drop_expired()
        self._hand_out()
        oldest = next((envelope for envelope in self._envelopes if not envelope.flags & NOTICE), None)
        if self._senders and oldest is not None:
            loop = asyncio.get_running_loop()
            until = max(0.0, oldest.expires_at - monotonic())
            self._expiry_timer = loop.call_later(until, self._watch_expiry)

    # Taking

    def take(self) -> Envelope | None:
        """Remove and return the oldest unexpired envelope, or None."""
        queue = self._envelopes
        while queue:
            envelope = queue.popleft()
            if self._counts_bytes:
                self._release(envelope)
            if envelope.flags & NOTICE:
                self._notice_read(envelope)
            if self.is_reported_full or self._senders or self.losses:
                self._made_room()
            now = monotonic()
            if envelope.expires_at > now:
                self.last_used = self.last_received = now
                self.lost_expired = False
                return envelope
            self._count_expired([envelope])
        return None

    def get_nowait(self) -> Envelope:
        envelope = self.take()
        if envelope is None:
            raise asyncio.QueueEmpty
        return envelope

    async def get(self) -> Envelope:
        """
        Remove and return the oldest unexpired envelope, waiting for one if there is none.

        Cancelling is safe: the buffer is left as it was.

        Raises:
            ChannelClosed: the channel is closed and empty, or closed while waiting.
        """
        return self.take() or await self.get_next()

    async def get_next(self) -> Envelope:
        """Like `get()`, for a caller to whom `take()` has just returned None."""
        while True:
            if self.closed is not None:
                raise self.closed(self.channel)
            receiver: asyncio.Future[None] = asyncio.Future()
            self.wake(receiver)
            try:
                await receiver
            except BaseException:
                self.stop_waking(receiver)
                raise
            envelope = self.take()
            if envelope is not None:
                return envelope

    def wake(self, waiter: asyncio.Future[None]) -> None:
        """Have this future done when an envelope comes or the channel closes. Look with `take()` first."""
        self._receivers.append(waiter)

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        """Take a future back that was given to `wake()`: its owner takes nothing now."""
        if self._receivers and waiter in self._receivers:
            self._receivers.remove(waiter)
        elif self._envelopes:
            _wake_first(self._receivers)  # woken and given up at once: the envelope is for the next one
        self.last_used = monotonic()

    def _made_room(self) -> None:
        if self.is_reported_full:
            self.is_reported_full = False
            if self._on_room is not None:
                self._on_room(self)
        if self.losses and 2 * len(self._envelopes) <= self.capacity:
            self._caught_up()
        if self._senders:
            self.last_used = monotonic()  # until it has run, nothing else says that the sender is here
            self._hand_out()

    def _notice_read(self, notice: Envelope) -> None:
        self._places -= 1
        for loss in self.losses.values():
            if loss.notice is notice:
                loss.read()

    def _caught_up(self) -> None:
        """Begin anew with losses; what was missed after the reader had the notice of its reason is told now."""
        losses = self.losses
        self.losses = {reason: loss for reason, loss in losses.items() if loss.notice is not None}
        for reason, loss in losses.items():
            if loss.notice is None and loss.groups is not None and self._on_missed is not None:
                self._on_missed(self, reason, list(loss.groups))

    # Ending

    def drop_expired(self) -> int:
        """Drop the envelopes at the head that expired; return how many places that freed."""
        queue = self._envelopes
        now = monotonic()
        expired: list[Envelope] = []
        notices: list[Envelope] = []
        while queue and (queue[0].expires_at <= now or queue[0].flags & NOTICE):
            envelope = queue.popleft()
            (notices if envelope.flags & NOTICE else expired).append(envelope)
        if notices:
            queue.extendleft(reversed(notices))
        if expired:
            if self._counts_bytes:
                for envelope in expired:
                    self._release(envelope)
            self._made_room()
            self._count_expired(expired)
        return len(expired)

    def _count_expired(self, expired: list[Envelope]) -> None:
        self.lost_expired = True
        self._counters.dropped["expired"] += len(expired)
        if self._on_expired is not None:
            self._on_expired(self, {envelope.target for envelope in expired})

    def drop_oldest(self) -> Envelope:
        """Remove and return the oldest message. There must be one."""
        place, envelope = next(
            (place, envelope) for place, envelope in enumerate(self._envelopes) if not envelope.flags & NOTICE
        )
        del self._envelopes[place]
        if self._counts_bytes:
            self._release(envelope)
        return envelope

    def clear(self) -> int:
        """Drop everything that waits; return how much it was."""
        count = len(self._envelopes)
        if count:
            if self._counts_bytes:
                for envelope in self._envelopes:
                    self._release(envelope)
            self._envelopes.clear()
            self._places = self.capacity - self._held
            self.losses = _NO_LOSSES
            self._made_room()
        return count

    def close(self, reason: type[ChannelClosed] = ChannelClosed) -> None:
        """
        Accept nothing new; receivers get what is left, then `reason`. Whoever waits is woken.

        Closing again changes nothing.
        """
        if self.closed is not None:
            return
        self.closed = reason
        while self._receivers:
            _wake_first(self._receivers)
        self._hand_out()

    def shutdown(self, immediate: bool = False) -> None:
        """Close the channel; with `immediate` drop what waits. As `asyncio.Queue.shutdown()` of Python 3.13."""
        if immediate:
            self.clear()
        self.close()

    def task_done(self) -> None:
        raise ValueError("a channel counts no tasks: there is nothing to be done with task_done()")

    async def join(self) -> None:
        """Return at once: a channel counts no tasks."""

    @property
    def waiting(self) -> int:
        """How many receivers wait and have not been woken."""
        return len(self._receivers)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits, for an envelope or for a place."""
        return bool(self._receivers or self._senders or self._held)

    @property
    def queued(self) -> int:
        """How many envelopes wait."""
        return len(self._envelopes)

    @property
    def has_messages(self) -> bool:
        """Whether any of those that wait is more than a word about a loss."""
        return len(self._envelopes) > self._places + self._held - self.capacity

    @property
    def oldest(self) -> Envelope | None:
        return self._envelopes[0] if self._envelopes else None

    def require_place(self) -> None:
        """
        Raises:
            ChannelClosed: the channel is closed.
            ChannelFull: it holds `capacity` messages.
        """
        if self.closed is not None:
            raise self.closed(self.channel)
        if self.full() and not self.drop_expired():
            raise ChannelFull(
                f"channel {self.channel!r} holds {self.capacity} messages, its capacity; "
                "read it faster, raise `capacity` or `channel_capacity`, or use send_wait()"
            )


def _wake_first(waiters: list[asyncio.Future[None]]) -> None:
    while waiters:
        waiter = waiters.pop(0)
        if not waiter.done():
            waiter.set_result(None)
            return
