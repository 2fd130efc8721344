"""Normal channels: waiting messages, messages that sessions have claimed, and senders that wait for a place."""

from __future__ import annotations

from typing import NamedTuple

from ...clock import monotonic
from ...local.buffers import ChannelBuffer
from ...local.counters import Counters
from ...messages.envelopes import Envelope
from ..base import WAITS_SECONDS, channel_full

#: Of fewer channels and claims than this, nobody looks for those that expired.
MANY = 64


class Waiter(NamedTuple):
    """A session with a sender that waits for a place in a normal channel, and since when."""

    session_id: str
    since: float


class WaitingSessions:
    """The sessions whose senders wait for a place in a normal channel. Places go to them in their order."""

    def __init__(self) -> None:
        #: By channel and session, since when it waits, and until when it must ask again.
        self.by_channel: dict[str, dict[str, tuple[float, float]]] = {}

    def add(self, channel: str, waiter: Waiter) -> None:
        """Note that a session waits, or goes on waiting."""
        self.by_channel.setdefault(channel, {})[waiter.session_id] = waiter.since, monotonic() + WAITS_SECONDS

    def remove(self, channel: str, session_id: str) -> None:
        waiting = self.by_channel.get(channel)
        if waiting is not None:
            waiting.pop(session_id, None)
            if not waiting:
                del self.by_channel[channel]

    def drop_expired(self) -> None:
        """Forget the sessions that did not ask again in time: their event loops ended."""
        for channel in list(self.by_channel):
            self.count_before(channel, None)

    def count_before(self, channel: str, waiter: Waiter | None) -> int:
        """Return how many sessions came before this one; all of them for a sender that does not wait."""
        now = monotonic()
        count = 0
        for session_id, (since, until) in list(self.by_channel.get(channel, {}).items()):
            if until <= now:
                self.remove(channel, session_id)
            elif waiter is None or (since, session_id) < (waiter.since, waiter.session_id):
                count += 1
        return count


class Queues:
    """
    The normal channels of one namespace. Not thread-safe: the broker's lock is held.

    record of (session, channel) | what it means, and what ends it
    -----------------------------|---------------------------------------------------------------------------
    none                         | the session has claimed nothing; `pop()` claims the oldest message
    (number, envelope)           | claimed: `pop()` with the same number returns it again, with a higher number
                                 | acknowledges it; `give_back()` returns it to the head of the channel. When it
                                 | has expired, it need not be returned, and the record is dropped
    """

    def __init__(self) -> None:
        self.by_channel: dict[str, ChannelBuffer] = {}
        self.claimed: dict[tuple[str, str], tuple[int, Envelope]] = {}
        #: With as many channels and claims, a new channel has the expired ones dropped.
        self._many = MANY
        self.waiting = WaitingSessions()

    def push(self, channel: str, envelope: Envelope, capacity: int, waiter: Waiter | None) -> None:
        """
        Append to a normal channel.

        Raises:
            ChannelFull: there is no place, or it belongs to a session that waits for it.
        """
        queue = self.by_channel.get(channel)
        if queue is None:
            if len(self.by_channel) + len(self.claimed) >= self._many:
                self._drop_expired()
            queue = self.by_channel[channel] = ChannelBuffer(channel, capacity, Counters())
        queue.resize(capacity)
        may_push = not self.waiting.by_channel or self._may_push(channel, queue, waiter)
        if not may_push or queue.offer(envelope) < 0:
            if waiter is not None:
                self.waiting.add(channel, waiter)
            raise channel_full(channel, capacity)
        if waiter is not None:
            self.waiting.remove(channel, waiter.session_id)

    def _may_push(self, channel: str, queue: ChannelBuffer, waiter: Waiter | None) -> bool:
        """
        Tell whether there is a place beside those that waiting sessions get.

        A waiting sender is behind those that came before it. Other senders leave them the last place.
        """
        queue.drop_expired()
        free = queue.maxsize - queue.qsize()
        if waiter is None and free != 1:
            return free > 0
        return free > self.waiting.count_before(channel, waiter)

    def stop_waiting(self, channel: str, session_id: str) -> None:
        """Give up the place in line of a session's senders."""
        self.waiting.remove(channel, session_id)

    def pop(self, channel: str, session_id: str, number: int) -> Envelope | None:
        """Return what the session claimed under this number, else claim the oldest message; None without one."""
        claimed = self.claimed.get((session_id, channel))
        if claimed is not None and claimed[0] == number:
            return claimed[1]
        queue = self.by_channel.get(channel)
        envelope = queue.take() if queue is not None else None
        if envelope is None:
            self.by_channel.pop(channel, None)
            self.claimed.pop((session_id, channel), None)
        else:
            self.claimed[session_id, channel] = (number, envelope)
        return envelope

    def give_back(self, channel: str, session_id: str, number: int) -> bool:
        """Put the message back that the session claimed under this number; False if there is none."""
        claimed = self.claimed.get((session_id, channel))
        if claimed is None or claimed[0] != number:
            return False
        del self.claimed[session_id, channel]
        queue = self.by_channel.get(channel)
        if queue is None:
            queue = self.by_channel[channel] = ChannelBuffer(channel, 1, Counters())
        queue.put_back(claimed[1])
        return True

    def forget_session(self, session_id: str) -> None:
        """Drop what a session has claimed: it is gone."""
        for key in [key for key in self.claimed if key[0] == session_id]:
            del self.claimed[key]

    def lengths(self) -> dict[str, int]:
        """Return how many messages wait in each channel that is not empty, after dropping those that expired."""
        self._drop_expired()
        return {channel: queue.queued for channel, queue in self.by_channel.items()}

    def _drop_expired(self) -> None:
        """Drop expired messages, claims and places in line, and the channels that are empty."""
        for channel, queue in list(self.by_channel.items()):
            queue.drop_expired()
            if queue.empty():
                del self.by_channel[channel]
        now = monotonic()
        for key, (_, envelope) in list(self.claimed.items()):
            if envelope.expires_at <= now:
                del self.claimed[key]
        self.waiting.drop_expired()
        # Twice what is left: so there are as many new ones before all are looked at again.
        self._many = max(MANY, 2 * (len(self.by_channel) + len(self.claimed)))

    def clear(self) -> None:
        self.by_channel.clear()
        self.claimed.clear()
