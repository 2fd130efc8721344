"""One session's part of a flush of the namespace."""

from __future__ import annotations

from collections.abc import Callable

from ..bus.base import Log
from ..local.hub import Hub
from ..slices import Slices
from .groups import SessionGroups
from .memberships import Memberships
from .owners import Siblings
from .readers import QueueReaders


class LocalFlush:
    """Drops the messages and memberships that a session holds."""

    def __init__(
        self,
        hub: Hub,
        readers: QueueReaders,
        groups: SessionGroups,
        memberships: Memberships,
        siblings: Siblings,
        chores: Slices,
        log: Log,
    ) -> None:
        self._hub = hub
        self._readers = readers
        self._groups = groups
        self._memberships = memberships
        self._siblings = siblings
        self._chores = chores
        self._log = log

    def begin(self, flushed: Callable[[], None]) -> None:
        """Forget the groups now and drop the messages in slices; then call `flushed`."""
        # First: topics without members are not kept for channels that come back.
        self._log.forget()
        self._siblings.look_for_ended()
        self._memberships.clear()
        self._hub.counters.dropped["flushed"] += self._readers.flush()
        topics = self._hub.flush(flushed)
        self._chores.run(self._groups.unsubscribe_from(topics))
