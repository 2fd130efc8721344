"""Topics of groups that stay subscribed without a member."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Iterator

from ..bus.base import Log, PubSub
from ..clock import monotonic
from ..local.hub import Hub
from ..names import Topic
from ..slices import Slices

# Seconds for which a topic stays subscribed after the last member has left, if its messages are kept for channels
# that come back: a page that is loaded again needs no read of the log then.
LINGER = 10.0


class LingeringTopics:
    """
    Holds topics while somebody needs them, and for a while after that.

    state     | `_held` | `_due` | what ends it
    ----------|---------|--------|------------------------------------------------------------------------
    unheld    | 0       | no     | `hold()`: held; the last member leaves a topic that is fed: lingering
    held      | > 0     | no     | the last `release()`: unheld, or lingering
    lingering | 0       | yes    | `hold()`, a join: held, unheld; `LINGER` seconds: unsubscribed
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
        hub: Hub,
        pubsub: PubSub,
        log: Log,
        chores: Slices,
    ) -> None:
        self._loop = loop
        self._context = context
        self._hub = hub
        self._pubsub = pubsub
        self._log = log
        self._chores = chores
        self._held: Counter[Topic] = Counter()
        # When each lingering topic ends, the first one first.
        self._due: dict[Topic, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def hold(self, topic: Topic) -> None:
        """Subscribe to a topic, and keep it until `release()`."""
        self._held[topic] += 1
        self._due.pop(topic, None)
        self._pubsub.subscribe(topic)

    def release(self, topic: Topic) -> None:
        """Take back one `hold()`."""
        self._held[topic] -= 1
        if not self._held[topic]:
            del self._held[topic]
            if topic.name not in self._hub.groups.by_topic:
                self.leave(topic)

    def leave(self, topic: Topic) -> None:
        """Unsubscribe from a topic that has lost its last member: now, or when nobody needs it any more."""
        if self._is_closed or topic in self._held:
            return
        if not self._log.is_fed(topic):
            self._pubsub.unsubscribe(topic)
            return
        self._due.pop(topic, None)
        self._due[topic] = monotonic() + LINGER
        if self._timer is None:
            self._start(LINGER)

    def _start(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._end_due, context=self._context)

    def _end_due(self) -> None:
        self._timer = None
        # In slices: all of a crowd may have left at once.
        self._chores.run(self._unsubscribe())

    def _unsubscribe(self) -> Iterator[bool]:
        """Unsubscribe from the topics that nobody has needed for long enough."""
        while self._due:
            topic, ends_at = next(iter(self._due.items()))
            seconds = ends_at - monotonic()
            if seconds > 0:
                if self._timer is None:
                    self._start(seconds)
                return
            del self._due[topic]
            if topic.name not in self._hub.groups.by_topic:
                self._pubsub.unsubscribe(topic)
            yield False

    def close(self) -> None:
        """Forget all topics: the session ends."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due.clear()
