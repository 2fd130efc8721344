"""The normal channels that a session made members of groups, and made so again when the server forgot it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Collection

from ..bus.base import Bus
from ..clock import monotonic
from ..exceptions import ChannelLayerError
from ..names import Topics
from ..settings.options import Options

# The last so many are kept.
_MOST = 10_000
# After a renewal that failed.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0

# A group and a normal channel.
Membership = tuple[str, str]


class Memberships:
    """
    What `group_add()` said of normal channels here, and `group_discard()` did not take back.

    The server holds the memberships, and a worker lives on when they are gone: nobody else would add them again.
    """

    def __init__(self, bus: Bus, topics: Topics, options: Options) -> None:
        self._bus = bus
        self._topics = topics
        self._options = options
        # When each of them lapses, what was added last at the end.
        self._lapses: dict[Membership, float] = {}
        self._due: dict[Membership, None] = {}
        self._renewing: asyncio.Task[None] | None = None

    async def add(self, group: str, channel: str) -> None:
        """Make a normal channel a member. Cancelling leaves it a member or not, as the server got it or not."""
        membership = group, channel
        before = self._lapses.pop(membership, None)
        # Before the server has it: it may forget before we know that it had.
        lapses_at = self._lapses[membership] = monotonic() + self._options.group_expiry
        if len(self._lapses) > _MOST:
            del self._lapses[next(iter(self._lapses))]
        try:
            await self._bus.add_member(group, channel)
        except BaseException:
            # Not if it was discarded, or added again, meanwhile.
            if self._lapses.get(membership) == lapses_at:
                del self._lapses[membership]
                if before is not None:
                    self._lapses[membership] = before
            raise

    async def discard(self, group: str, channel: str) -> None:
        """End a membership; it is not renewed from now on, whatever comes of this."""
        self._lapses.pop((group, channel), None)
        await self._bus.discard_member(group, channel)

    def clear(self) -> None:
        """Note that all memberships of the namespace were ended."""
        self._lapses.clear()

    def renew(self, partitions: Collection[int]) -> None:
        """Add those of some partitions again, each for the rest of its time, however often that fails."""
        for membership in self._lapses:
            if self._topics.partition(membership[0]) in partitions:
                self._due[membership] = None
        if self._due and (self._renewing is None or self._renewing.done()):
            loop = asyncio.get_running_loop()
            self._renewing = loop.create_task(
                self._renew(), name="channels_asyncq renewing memberships", context=contextvars.Context()
            )

    async def _renew(self) -> None:
        pause = _FIRST_PAUSE
        while self._due:
            membership = next(iter(self._due))
            del self._due[membership]
            left = self._lapses.get(membership, 0.0) - monotonic()
            if left <= 0:
                continue  # lapsed, or discarded meanwhile
            try:
                await self._bus.add_member(*membership, seconds=left)
            except ChannelLayerError:
                self._due[membership] = None
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)

    def close(self) -> None:
        """Renew nothing any more."""
        self._due.clear()
        if self._renewing is not None:
            self._renewing.cancel()
