"""The histories of groups, as one session asks about them."""

from __future__ import annotations

from ...messages.envelopes import Envelope
from ...messages.positions import Place
from ...settings.options import Options
from ..base import HistoryPage
from .broker import Broker


class MemoryHistories:
    """What one session may read of its broker's histories."""

    def __init__(self, broker: Broker, options: Options) -> None:
        self._broker = broker
        self._options = options
        if options.history:
            broker.keep_histories(options)

    def covers(self, group: str) -> bool:
        return self._options.keeping(group) is not None

    async def page(self, group: str, before: Place | None, limit: int) -> HistoryPage:
        return self._broker.history_page(group, before, limit)

    async def since(self, group: str, place: Place) -> tuple[list[Envelope], Place]:
        """Return what is behind a place, as `Histories` says. What waits in the mailbox is in it too."""
        return self._broker.history_since(group, place)
