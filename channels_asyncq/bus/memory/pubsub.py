"""Who listens to which topic, and the order of what is published there."""

from __future__ import annotations

from collections import defaultdict
from typing import Protocol

from ...messages.envelopes import Envelope


class Listener(Protocol):
    """One session's side of publish and subscribe. Implemented by `bus.memory.subscriber.MemorySubscriber`."""

    @property
    def session_id(self) -> str: ...

    @property
    def is_gone(self) -> bool:
        """Whether its event loop was closed: nothing can be handed over any more."""

    @property
    def first_waiting(self) -> int:
        """The position of the first logged envelope that it has not delivered, 0 for none."""

    def accept(self, topic: bytes, envelope: Envelope | None) -> bool:
        """Take an envelope, or a wake-up (None), from any thread; False if too many wait for it already."""

    def drain_soon(self) -> bool:
        """Have its loop deliver what it has accepted, from any thread; False if the loop is closed."""

    def drain(self) -> None:
        """Deliver what it has accepted. On its loop only."""


class Listeners:
    """The listeners of each topic. Not thread-safe: the broker's lock is held."""

    def __init__(self) -> None:
        # Dicts without values: sets that keep the order of joining.
        self._by_topic: defaultdict[bytes, dict[Listener, None]] = defaultdict(dict)

    def add(self, topic: bytes, listener: Listener) -> list[Listener]:
        """Add a listener; return those of this topic that are gone."""
        listeners = self._by_topic[topic]
        listeners[listener] = None
        return [other for other in listeners if other.is_gone]

    def remove(self, topic: bytes, listener: Listener) -> None:
        """Remove a listener from one topic, if it is there."""
        listeners = self._by_topic.get(topic)
        if listeners is not None:
            listeners.pop(listener, None)
            if not listeners:
                del self._by_topic[topic]

    def remove_everywhere(self, listener: Listener) -> None:
        for topic in [topic for topic, listeners in self._by_topic.items() if listener in listeners]:
            self.remove(topic, listener)

    def of(self, topic: bytes) -> list[Listener]:
        """Return the listeners of a topic."""
        return list(self._by_topic.get(topic, ()))

    def publish(self, topic: bytes, envelope: Envelope | None) -> list[Listener]:
        """Have every listener accept an envelope, or a wake-up (None); return those that did."""
        accepted: list[Listener] = []
        for listener in self._by_topic.get(topic, ()):
            # The first listener gets this very envelope, each other one a copy of its own.
            if listener.accept(topic, envelope if not accepted or envelope is None else envelope.copy()):
                accepted.append(listener)
        return accepted
