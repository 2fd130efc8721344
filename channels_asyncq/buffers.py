"""One bounded queue of envelopes: expiry, closing, waiting for a place, and the count of what was dropped."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from time import monotonic

from channels.exceptions import ChannelFull

from .envelopes import Envelope
from .exceptions import ChannelClosed

# What a full buffer may cost its neighbours, in milliseconds of a reader that waits for it (see Hub.must_wait).
PATIENCE = 50.0
_PATIENCE_PER_RECEIVE = 5.0


class Tally:
    """What a session delivered to its channels, and what it dropped, by reason."""

    __slots__ = ("delivered", "dropped", "external", "held_bytes", "most_bytes", "told")

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


class ChannelBuffer(asyncio.Queue[Envelope]):
    """
    The messages that wait in one channel, at most `capacity` of them, oldest first.

    An `asyncio.Queue` whose envelopes expire, which can be closed, and which counts what it drops. `offer()`
    and `take()` never wait; `get()` waits for an envelope and `put_when_free()` for a place. It belongs to one
    event loop once somebody waits in it. There is no `task_done()`: nobody joins a channel.
    """

    def __init__(
        self,
        channel: str,
        capacity: int,
        tally: Tally,
        on_room: Callable[[ChannelBuffer], None] | None = None,
        on_expired: Callable[[ChannelBuffer, set[str]], None] | None = None,
    ) -> None:
        super().__init__(capacity)
        self.channel = channel
        self.capacity = capacity
        self.closed: type[ChannelClosed] | None = None
        self.patience = PATIENCE
        self.is_reported_full = False
        self.lost_expired = False  # a message expired unread since the last successful receive
        self.last_used = self.last_received = monotonic()
        self.groups: set[bytes] = set()  # owned by the hub: topics of the groups this channel is in
        self.is_kept = False  # somebody holds it to read from it: not swept, however long that takes
        self._tally = tally
        self._on_room = on_room
        self._on_expired = on_expired
        self._counts_bytes = tally.most_bytes is not None
        self.told: set[str] = set()  # reasons of the losses that the reader was told since it last caught up
        self._receivers: deque[asyncio.Future[None]] = deque()
        self._senders: deque[asyncio.Future[None]] = deque()

    def _init(self, maxsize: int) -> None:
        self._queue: deque[Envelope] = deque()

    def full(self) -> bool:
        return len(self._queue) >= self.capacity

    # Putting

    def offer(self, envelope: Envelope) -> int:
        """
        Append the envelope if there is a place (expired ones give theirs up).

        Returns how many places are left after it; -1 if there was none.
        """
        queue = self._queue
        left = self.capacity - len(queue) - 1
        if left < 0:
            left += self.drop_expired()
            if left < 0:
                return -1
        queue.append(envelope)
        if self._counts_bytes:
            self._hold(envelope)
        if self._receivers:
            _wake_first(self._receivers)
        return left

    def notify(self, envelope: Envelope, *, at_head: bool) -> None:
        """Add a word about a loss, over capacity: one of each reason, until the reader has caught up."""
        if at_head:
            self._queue.appendleft(envelope)
        else:
            self._queue.append(envelope)
        if self._counts_bytes:
            self._hold(envelope)
        _wake_first(self._receivers)

    def _hold(self, envelope: Envelope) -> None:
        if not envelope.holders:
            self._tally.held_bytes += len(envelope.payload)
        envelope.holders += 1

    def _release(self, envelope: Envelope) -> None:
        envelope.holders -= 1
        if not envelope.holders:
            self._tally.held_bytes -= len(envelope.payload)

    def put_nowait(self, item: Envelope) -> None:
        if self.closed is not None:
            raise self.closed(self.channel)
        if self.offer(item) < 0:
            raise asyncio.QueueFull

    def put_back(self, envelope: Envelope) -> None:
        """Put an envelope that was taken back at the head, also over capacity. Wakes nobody."""
        self._queue.appendleft(envelope)

    async def put_when_free(self, envelope: Envelope, expiry: float) -> None:
        """
        Append the envelope as soon as there is a place; it expires `expiry` seconds after that.

        Cancelling is safe: the envelope is not in the buffer then.

        Raises:
            ChannelClosed: the channel closed before there was a place.
        """
        # Those who came first wait in _senders; a newcomer does not overtake them.
        must_wait = bool(self._senders)
        while True:
            if self.closed is not None:
                raise self.closed(self.channel)
            envelope.expires_at = monotonic() + expiry
            if not must_wait and (left := self.offer(envelope)) >= 0:
                if left:
                    _wake_first(self._senders)
                return
            await self._place()
            must_wait = False

    async def _place(self) -> None:
        loop = asyncio.get_running_loop()
        sender = loop.create_future()
        self._senders.append(sender)
        # A place also comes free when the oldest envelope expires, which nobody else would notice.
        head = self._queue[0].expires_at if self._queue else 0.0
        timer = loop.call_later(max(0.0, head - monotonic()), _wake, sender)
        try:
            await sender
        except asyncio.CancelledError:
            if sender.done() and not sender.cancelled():
                _wake_first(self._senders)  # woken and cancelled at once: the place is for the next one
            raise
        finally:
            timer.cancel()
            if sender in self._senders:
                self._senders.remove(sender)

    # Taking

    def take(self) -> Envelope | None:
        """Remove and return the oldest unexpired envelope, or None."""
        queue = self._queue
        while queue:
            envelope = queue.popleft()
            if self._counts_bytes:
                self._release(envelope)
            if self.is_reported_full or self._senders or self.patience < PATIENCE or self.told:
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
        while (envelope := self.take()) is None:
            if self.closed is not None:
                raise self.closed(self.channel)
            receiver = asyncio.get_running_loop().create_future()
            self.wake(receiver)
            try:
                await receiver
            except BaseException:
                self.stop_waking(receiver)
                raise
        return envelope

    def wake(self, waiter: asyncio.Future[None]) -> None:
        """Have this future done when an envelope comes or the channel closes. Look with `take()` first."""
        self._receivers.append(waiter)

    def stop_waking(self, waiter: asyncio.Future[None]) -> None:
        """Take a future back that was given to `wake()`: its owner takes nothing now."""
        if self._receivers and waiter in self._receivers:
            self._receivers.remove(waiter)
        elif self._queue:
            _wake_first(self._receivers)  # woken and given up at once: the envelope is for the next one
        self.last_used = monotonic()

    def _made_room(self) -> None:
        if self.is_reported_full:
            self.is_reported_full = False
            self.patience = min(PATIENCE, self.patience + _PATIENCE_PER_RECEIVE)
            if self._on_room is not None:
                self._on_room(self)
        if 2 * len(self._queue) <= self.capacity:
            self.patience = PATIENCE
            self.told.clear()
        if self._senders:
            self.last_used = monotonic()  # until it has run, nothing else says that the sender is here
            _wake_first(self._senders)

    # Ending

    def drop_expired(self) -> int:
        """Drop the envelopes at the head that expired; return how many places that freed."""
        queue = self._queue
        now = monotonic()
        expired = []
        while queue and queue[0].expires_at <= now:
            expired.append(queue.popleft())
        if expired:
            if self._counts_bytes:
                for envelope in expired:
                    self._release(envelope)
            self._made_room()
            self._count_expired(expired)
        return len(expired)

    def _count_expired(self, expired: list[Envelope]) -> None:
        self.lost_expired = True
        self._tally.dropped["expired"] += len(expired)
        if self._on_expired is not None:
            self._on_expired(self, {envelope.target for envelope in expired})

    def drop_oldest(self) -> Envelope:
        envelope = self._queue.popleft()
        if self._counts_bytes:
            self._release(envelope)
        return envelope

    def clear(self) -> int:
        """Drop everything that waits; return how much it was."""
        count = len(self._queue)
        if count:
            if self._counts_bytes:
                for envelope in self._queue:
                    self._release(envelope)
            self._queue.clear()
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
        for waiters in (self._receivers, self._senders):
            while waiters:
                _wake_first(waiters)

    @property
    def waiting(self) -> int:
        """How many receivers wait and have not been woken."""
        return len(self._receivers)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits, for an envelope or for a place."""
        return bool(self._receivers or self._senders)

    @property
    def queued(self) -> int:
        """How many envelopes wait."""
        return len(self._queue)

    @property
    def oldest(self) -> Envelope | None:
        return self._queue[0] if self._queue else None

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


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _wake_first(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return
