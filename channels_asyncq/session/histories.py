"""The histories of groups: pages of them, for code that shows what was sent before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..bus.base import Bus
from ..exceptions import ChannelLayerError
from ..messages.positions import BadPosition, Place, Position
from ..settings.options import Options
from .decoding import Decoder
from .routes import Routes

#: The most messages of a page.
MOST_MESSAGES = 1000


@dataclass(frozen=True, slots=True)
class History:
    """
    The result of `history()`: a page of a group's history.

    `messages` are in order, the oldest first, and `positions` has the position behind each of them. `position` is
    behind all of them: a channel that resumes from there gets what follows. `before` is the argument that gives
    the page before this one, None if there is none.
    """

    messages: list[dict[str, Any]]
    positions: list[str]
    position: str
    before: str | None


class GroupHistories:
    """The histories of groups, as one session reads them."""

    def __init__(self, options: Options, bus: Bus, routes: Routes, decoder: Decoder) -> None:
        self._options = options
        self._histories = bus.histories
        self._routes = routes
        self._decoder = decoder

    async def page(self, group: str, limit: int, before: str | None) -> History:
        """
        Return a page, as `AsyncQueueChannelLayer.history()` does. Cancelling is safe.

        Raises:
            ChannelLayerError: the group has no history.
            BadPosition: `before` is no position of this group.
            LayerUnavailable: the server cannot be reached.
        """
        if not self._histories.covers(group):
            raise ChannelLayerError(self._refusal(group))
        partition = self._routes.to_group(group).topic.partition
        place: Place | None = None
        channels: tuple[str, ...] = ()
        if before is not None:
            position = Position.parse(before)
            place, channels = position.places.get(partition), position.channels
            if place is None:
                raise BadPosition(f"before={before[:60]!r} is no position of group {group!r}")
        page = await self._histories.page(group, place, limit)

        def text(place: Place, channels: tuple[str, ...] = ()) -> str:
            return str(Position({partition: place}, channels))

        epoch = page.end.epoch
        return History(
            [self._decoder.message_of(envelope) for envelope in page.envelopes],
            [text(Place(epoch, each.position, each.nth)) for each in page.envelopes],
            text(page.end, channels),
            None if page.start is None else text(page.start),
        )

    def _refusal(self, group: str) -> str:
        problem = f"group {group!r} has no history: "
        if any(pattern.match(group) for pattern, _ in self._options.history):
            return problem + "a pattern in `exclude` of `recovery` matches it"
        return problem + (
            'no pattern in the setting `history` matches it. Add one, such as "history": '
            f'{{"{group}": {{"seconds": 300, "messages": 100}}}}'
        )
