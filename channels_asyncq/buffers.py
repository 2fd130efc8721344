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

_CLOSING = Envelope(b"", "")


class Tally:
    """What a session delivered to its channels, and what it dropped, by reason."""

    __slots__ = ("delivered", "dropped", "external")

    def __init__(self) -> None:
        self.delivered = 0
        self.external = 0
        self.dropped: Counter[str] = Counter()


class ChannelBuffer(asyncio.Queue[Envelope]):
    """
    The messages that wait in one channel, at most `capacity` of them, oldest first.

    `offer()` and `take()` never wait; `get()` waits for an envelope and `put_when_free()` for a place. Expired
    envelopes free their place. It belongs to one event loop once somebody waits in it.
    """

    def __init__(
        self,
        channel: str,
        capacity: int,
        tally: Tally,
        on_room: Callable[[ChannelBuffer], None] | None = None,
    ) -> None:
        super().__init__(capacity)
        self.channel = channel
        self.capacity = capacity
        self.closed: type[ChannelClosed] | None = None
        self.waiting = 0  # receivers inside get()
        self.patience = PATIENCE
        self.is_reported_full = False
        self.lost_expired = False  # a message expired unread since the last successful receive
        self.last_used = self.last_received = monotonic()
        self.groups: set[bytes] = set()  # owned by the hub: topics of the groups this channel is in
        self._tally = tally
        self._on_room = on_room
        self._room: deque[asyncio.Future[None]] = deque()

    # asyncio.Queue documents these as the hooks of a subclass.

    def _init(self, maxsize: int) -> None:
        self._queue: deque[Envelope] = deque()

    def _get(self) -> Envelope:
        envelope = self._queue.popleft()
        if self.is_reported_full or self._room:
            self._made_room()
        if self.patience < PATIENCE and 2 * len(self._queue) <= self.capacity:
            self.patience = PATIENCE
        return envelope

    def _made_room(self) -> None:
        if self.is_reported_full:
            self.is_reported_full = False
            self.patience = min(PATIENCE, self.patience + _PATIENCE_PER_RECEIVE)
            if self._on_room is not None:
                self._on_room(self)
        while self._room:
            waiter = self._room.popleft()
            self.last_used = monotonic()  # until it has run, nothing else says that it is here
            if not waiter.done():
                waiter.set_result(None)
                break

    def full(self) -> bool:
        return len(self._queue) >= self.capacity and self.closed is None

    # Putting

    def offer(self, envelope: Envelope) -> bool:
        """Append the envelope if there is a place (expired ones give theirs up); False if there is none."""
        if len(self._queue) >= self.capacity and not self.drop_expired():
            return False
        self.put_nowait(envelope)
        return True

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
        while True:
            if self.closed is not None:
                raise self.closed(self.channel)
            envelope.expires_at = monotonic() + expiry
            # Those who came first wait in _room; a newcomer does not overtake them.
            if not self._room and self.offer(envelope):
                return
            await self._place()
            envelope.expires_at = monotonic() + expiry
            if self.closed is None and self.offer(envelope):
                if self._room and not self.full():
                    self._made_room()
                return

    async def _place(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._room.append(waiter)
        head = self._queue[0] if self._queue else None
        delay = max(0.0, head.expires_at - monotonic()) if head is not None else 0.0
        # A place also comes free when the oldest envelope expires, which nobody else would notice.
        timer = asyncio.get_running_loop().call_later(delay, _wake, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._made_room()  # woken and cancelled at once: the place is for the next one
            raise
        finally:
            timer.cancel()
            if waiter in self._room:
                self._room.remove(waiter)

    # Taking

    def take(self) -> Envelope | None:
        """Remove and return the oldest unexpired envelope, or None."""
        while self._queue:
            if self._queue[0] is _CLOSING:
                return None
            envelope = self.get_nowait()
            now = monotonic()
            if envelope.expires_at > now:
                self.last_used = self.last_received = now
                self.lost_expired = False
                return envelope
            self._count_expired(1)
        return None

    async def get(self) -> Envelope:
        """
        Remove and return the oldest unexpired envelope, waiting for one if there is none.

        Cancelling is safe: the buffer is left as it was.

        Raises:
            ChannelClosed: the channel is closed and empty, or closed while waiting.
        """
        while True:
            envelope = self.take()
            if envelope is not None:
                return envelope
            if self.closed is not None:
                raise self.closed(self.channel)
            self.waiting += 1
            try:
                envelope = await super().get()
            finally:
                self.waiting -= 1
                self.last_used = monotonic()
            if envelope is _CLOSING:
                self.put_nowait(_CLOSING)  # wakes the next one
            elif envelope.expires_at > self.last_used:
                self.last_received = self.last_used
                self.lost_expired = False
                return envelope
            else:
                self._count_expired(1)

    # Ending

    def drop_expired(self) -> int:
        """Drop the envelopes at the head that expired; return how many places that freed."""
        now = monotonic()
        count = 0
        while self._queue and self._queue[0].expires_at <= now and self._queue[0] is not _CLOSING:
            self.get_nowait()
            count += 1
        if count:
            self._count_expired(count)
        return count

    def _count_expired(self, count: int) -> None:
        self.lost_expired = True
        self._tally.dropped["expired"] += count

    def drop_oldest(self) -> None:
        self.get_nowait()

    def clear(self) -> int:
        """Drop everything that waits; return how much it was."""
        count = 0
        while self._queue and self._queue[0] is not _CLOSING:
            self.get_nowait()
            count += 1
        return count

    def close(self, reason: type[ChannelClosed] = ChannelClosed) -> None:
        """
        Accept nothing new; receivers get what is left, then `reason`. Whoever waits is woken.

        Closing again changes nothing.
        """
        if self.closed is not None:
            return
        self.closed = reason
        self.put_nowait(_CLOSING)
        while self._room:
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits, for an envelope or for a place."""
        return bool(self.waiting or self._room)

    @property
    def queued(self) -> int:
        """How many envelopes wait."""
        return len(self._queue) - (self.closed is not None)

    @property
    def oldest(self) -> Envelope | None:
        return self._queue[0] if self.queued > 0 else None

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
