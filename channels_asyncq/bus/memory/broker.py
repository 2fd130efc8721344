"""What a server would hold for one namespace: listeners, normal channels, and their memberships in groups."""

from __future__ import annotations

from ... import threads
from ...messages.envelopes import Envelope
from .members import Members
from .pubsub import Listener, Listeners
from .queues import Queues, Waiter


class Broker:
    """
    One namespace. Every thread of the process uses it: each method holds the lock, and none of them waits.

    The lock makes one order of what is published, for all listeners. What is published is in their mailboxes when
    a method returns; the caller has the returned listeners drain them.
    """

    def __init__(self) -> None:
        self._lock = threads.lock()
        self._listeners = Listeners()
        self._queues = Queues()
        self._members = Members()
        # The number of messages that were published.
        self._published = 0

    # Publish and subscribe

    def listen(self, topic: bytes, listener: Listener) -> None:
        with self._lock:
            for gone in self._listeners.add(topic, listener):
                self._forget(gone)

    def stop_listening(self, topic: bytes, listener: Listener) -> None:
        with self._lock:
            self._listeners.remove(topic, listener)

    def forget(self, listener: Listener) -> None:
        """Remove a listener everywhere, and what its session had claimed."""
        with self._lock:
            self._forget(listener)

    def _forget(self, listener: Listener) -> None:
        self._listeners.remove_everywhere(listener)
        self._queues.forget_session(listener.session_id)

    def publish(self, topic: bytes, envelope: Envelope) -> list[Listener]:
        """Have all listeners of the topic accept an envelope; return those that did."""
        with self._lock:
            self._published += 1
            return self._listeners.publish(topic, envelope)

    def group_send(self, group: str, topic: bytes, envelope: Envelope) -> tuple[list[Listener], list[str]]:
        """Publish; return the listeners that accepted it, and the normal channels in the group."""
        with self._lock:
            self._published += 1
            members = self._members.of(group) if group in self._members.by_group else []
            return self._listeners.publish(topic, envelope), members

    @property
    def published(self) -> int:
        """The number of messages that were published so far: a position in their one order."""
        return self._published

    # Normal channels in groups

    def add_member(self, group: str, channel: str, seconds: float) -> None:
        with self._lock:
            self._members.add(group, channel, seconds)

    def discard_member(self, group: str, channel: str) -> None:
        with self._lock:
            self._members.discard(group, channel)

    def members(self) -> dict[str, dict[str, float]]:
        with self._lock:
            return self._members.snapshot()

    # Normal channels

    def push(
        self, channel: str, topic: bytes, envelope: Envelope, capacity: int, waiter: Waiter | None = None
    ) -> list[Listener]:
        """Append to a normal channel; return the listeners with a wake-up for its readers."""
        with self._lock:
            self._queues.push(channel, envelope, capacity, waiter)
            return self._listeners.publish(topic, None)

    def stop_waiting(self, channel: str, session_id: str) -> None:
        with self._lock:
            self._queues.stop_waiting(channel, session_id)

    def pop(self, channel: str, session_id: str, number: int) -> Envelope | None:
        with self._lock:
            return self._queues.pop(channel, session_id, number)

    def give_back(self, channel: str, topic: bytes, session_id: str, number: int) -> list[Listener]:
        """Put a claimed message back; return the listeners with a wake-up for its readers."""
        with self._lock:
            if not self._queues.give_back(channel, session_id, number):
                return []
            return self._listeners.publish(topic, None)

    def waiting(self) -> dict[str, int]:
        with self._lock:
            return self._queues.lengths()

    def flush(self) -> None:
        """Drop all normal channels and their memberships."""
        with self._lock:
            self._queues.clear()
            self._members.clear()
