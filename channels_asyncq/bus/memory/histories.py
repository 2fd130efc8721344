"""The histories of a namespace: what is kept of groups beside the logs."""

from __future__ import annotations

from collections import OrderedDict, deque

from ...clock import monotonic, time_ns
from ...messages.envelopes import Envelope
from ...messages.positions import Place
from ...settings.keys import HISTORY_BYTES, Keeping
from ...settings.options import Options
from ..base import HistoryPage, NotReplayed

# An envelope of more bytes trims its history to HISTORY_BYTES / bytes.
_SMALL = 1024
# The most groups for which it is known what their histories keep.
_MOST_GROUPS = 8192


class GroupHistory:
    """The last messages of one group, each with the time at which it was added."""

    def __init__(self, floor: int) -> None:
        #: Everything behind this position is here.
        self.floor = floor
        self.entries: deque[tuple[float, Envelope]] = deque()

    def add(self, envelope: Envelope, keeping: Keeping) -> None:
        now = monotonic()
        self.entries.append((now, envelope))
        most, size = keeping.messages, len(envelope.payload)
        if size > _SMALL:
            most = max(1, min(most, HISTORY_BYTES // size))
        while len(self.entries) > most:
            self._drop_first()
        self.drop_before(now - keeping.seconds)

    def drop_before(self, time: float) -> None:
        """Drop the messages that were added before a time."""
        while self.entries and self.entries[0][0] < time:
            self._drop_first()

    def _drop_first(self) -> None:
        self.floor = self.entries.popleft()[1].position


class Histories:
    """
    A history for each group that has one by the settings of a layer. Of several settings the larger bounds hold.

    Not thread-safe: the broker's lock is held.
    """

    def __init__(self) -> None:
        #: The settings of the layers.
        self.settings: list[Options] = []
        # By group: what its history keeps.
        self._keepings: dict[str, Keeping | None] = {}
        # The one that was added to last is the last.
        self._groups: OrderedDict[str, GroupHistory] = OrderedDict()
        # Messages up to this position were not kept by all of the settings.
        self._begin = 0

    def keep(self, options: Options, newest: int) -> None:
        """Keep what these settings say too; `newest` is the position of the last message that was sent."""
        present = [(each.history, each.recovery) for each in self.settings]
        if (options.history, options.recovery) in present:
            return
        self.settings.append(options)
        self._keepings.clear()
        self._begin = newest

    def clear(self) -> list[Options]:
        """Keep nothing; return the settings, to keep them again."""
        self._groups.clear()
        settings, self.settings = self.settings, []
        return settings

    def _keeping(self, group: str) -> Keeping | None:
        if group not in self._keepings:
            if len(self._keepings) >= _MOST_GROUPS:
                self._keepings.clear()
            found = [kept for each in self.settings if (kept := each.keeping(group)) is not None]
            self._keepings[group] = (
                Keeping(max(each.seconds for each in found), max(each.messages for each in found))
                if found
                else None
            )
        return self._keepings[group]

    def add(self, group: str, envelope: Envelope) -> None:
        """Keep a message to a group, if the group has a history."""
        keeping = self._keeping(group)
        if keeping is None:
            return
        history = self._groups.get(group)
        if history is None:
            history = self._groups[group] = GroupHistory(self._begin)
        history.add(envelope.copy(), keeping)
        self._groups.move_to_end(group)
        self._drop_unused()

    def _drop_unused(self) -> None:
        """Drop the first histories, if all of their messages are too old."""
        while True:
            group, history = next(iter(self._groups.items()))
            self._drop_old(group, history)
            if history.entries:
                return
            del self._groups[group]

    def _drop_old(self, group: str, history: GroupHistory) -> None:
        keeping = self._keeping(group)
        history.drop_before(monotonic() - (keeping.seconds if keeping is not None else 0))

    # Questions

    def page(self, group: str, end: Place, limit: int) -> HistoryPage:
        """Return the last messages of a group that are not behind a place."""
        history = self._present(group)
        envelopes = [envelope for _, envelope in history.entries] if history is not None else []
        found = [each for each in envelopes if not end.is_before(each)]
        start = Place(end.epoch, found[-limit].position - 1) if len(found) > limit else None
        return HistoryPage([each.copy() for each in found[-limit:]], end, start)

    def since(self, group: str, place: Place) -> list[Envelope]:
        """
        Return copies of the messages of a group behind a place.

        Raises:
            NotReplayed: they are not all here.
        """
        keeping, history = self._keeping(group), self._present(group)
        oldest = time_ns() // 1_000_000 - 1000 * (keeping.seconds if keeping is not None else 0)
        floor = self._begin if history is None else history.floor
        if place.position < floor or place.position >> 64 < oldest:
            raise NotReplayed("trimmed")
        if history is None:
            return []
        return [envelope.copy() for _, envelope in history.entries if place.is_before(envelope)]

    def _present(self, group: str) -> GroupHistory | None:
        """Return a history without messages that are too old."""
        history = self._groups.get(group)
        if history is not None:
            self._drop_old(group, history)
        return history
