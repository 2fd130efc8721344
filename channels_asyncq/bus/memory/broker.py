"""What a server would hold for one namespace: listeners, normal channels, and their memberships in groups."""

from __future__ import annotations

from collections import Counter
from copy import copy

from ... import threads
from ...messages.envelopes import Envelope
from ...messages.positions import Place
from ...names import Topic
from ...settings.keys import Recovery
from ...settings.options import Options
from ..base import HistoryPage, NotReplayed, ReplayCounts
from .histories import Histories
from .logs import Logs
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
        self._logs = Logs()
        self._histories = Histories()
        # The number of messages that were published.
        self._published = 0
        # The listener whose session reports what the logs hold: it would be counted several times otherwise.
        self._reporter: Listener | None = None

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
        if self._reporter is listener:
            self._reporter = None

    def listening(self, topic: bytes) -> list[str]:
        """Return the ids of the sessions that listen to a topic."""
        with self._lock:
            return [each.session_id for each in self._listeners.of(topic) if not each.is_gone]

    def publish(self, topic: bytes, envelope: Envelope) -> list[Listener]:
        """Have all listeners of the topic accept an envelope; return those that did."""
        with self._lock:
            self._published += 1
            return self._listeners.publish(topic, envelope)

    def group_send(self, group: str, topic: Topic, envelope: Envelope) -> tuple[list[Listener], list[str]]:
        """Publish and log; return the listeners that accepted it, and the normal channels in the group."""
        with self._lock:
            self._published += 1
            if self._logs.epoch:
                # Before the copies are made, which have its position.
                self._logs.add(group, topic, envelope, self._published)
                if self._histories.settings and envelope.position:
                    self._histories.add(group, envelope)
            members = self._members.of(group) if group in self._members.by_group else []
            return self._listeners.publish(topic.name, envelope), members

    # Logs

    def end(self, recovery: Recovery) -> Place:
        """Return the end of all logs, which are kept from now on."""
        with self._lock:
            self._logs.keep(recovery, self._published)
            return Place(self._logs.epoch, self._logs.newest)

    def delivered(self, listener: Listener) -> Place | None:
        """Return the place up to which a listener has delivered everything; None while no logs are kept."""
        with self._lock:
            return Place(self._logs.epoch, self._until(listener)) if self._logs.epoch else None

    def _until(self, listener: Listener) -> int:
        first = listener.first_waiting
        return first - 1 if first else self._logs.newest

    def epoch_at(self, position: int) -> str:
        """Return the epoch of a message; empty for a message of an earlier one."""
        with self._lock:
            return self._logs.epoch_at(position)

    def require(self, topic: Topic, place: Place, listener: Listener) -> int:
        """
        Return the position up to which a listener has delivered everything.

        Raises:
            NotReplayed: the log does not have everything behind the place.
        """
        with self._lock:
            self._logs.require(topic, place)
            return self._until(listener)

    def since(self, topic: Topic, place: Place, listener: Listener) -> list[Envelope]:
        """
        Return the messages of a topic behind a place, up to those that a listener has delivered.

        Raises:
            NotReplayed: they are not all in the log.
        """
        with self._lock:
            return self._logs.since(topic, place, self._until(listener))

    def replay_counts(self, listener: Listener) -> ReplayCounts:
        """Return what the logs hold, to one of the listeners, and nothing to the others."""
        with self._lock:
            if self._reporter is None or self._reporter.is_gone:
                self._reporter = listener
            return copy(self._logs.counts) if self._reporter is listener else ReplayCounts()

    def logged_since(self, time: float) -> Counter[bytes]:
        """Return how many messages were logged since then, by topic."""
        with self._lock:
            return self._logs.added_since(time)

    # Histories

    def keep_histories(self, options: Options) -> None:
        """Keep the histories of these settings from now on, and logs, which give their messages positions."""
        with self._lock:
            self._keep_histories(options)

    def _keep_histories(self, options: Options) -> None:
        assert options.recovery is not None
        self._logs.keep(options.recovery, self._published)
        self._histories.keep(options, self._logs.newest)

    def history_page(self, group: str, before: Place | None, limit: int) -> HistoryPage:
        """Return the last messages of a group's history, or the last ones that are not behind a place."""
        with self._lock:
            end = before or Place(self._logs.epoch, self._logs.newest)
            return self._histories.page(group, end, limit)

    def history_since(self, group: str, place: Place) -> tuple[list[Envelope], Place]:
        """
        Return the messages of a group behind a place, and the end of the logs.

        Raises:
            NotReplayed: they are not all in the history.
        """
        with self._lock:
            if place.epoch != self._logs.epoch:
                raise NotReplayed("server_changed")
            if place.position > self._logs.newest:
                raise NotReplayed("ahead")
            return self._histories.since(group, place), Place(self._logs.epoch, self._logs.newest)

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
        """Drop all normal channels and their memberships, the logs and the histories."""
        with self._lock:
            self._logs.drop()
            settings = self._histories.clear()
            for options in settings:
                self._keep_histories(options)
            self._queues.clear()
            self._members.clear()
