"""The memberships of normal channels that a session has added, and adds again when the server forgot them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Collection

from django.core.exceptions import ImproperlyConfigured

from ..bus.base import Members
from ..clock import monotonic
from ..exceptions import ChannelLayerError
from ..names import Topics
from ..settings.options import Options

# This many memberships are remembered, the last ones.
_MAX_REMEMBERED = 10_000
# The pause after a renewal that failed.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0

# A group and a normal channel.
Membership = tuple[str, str]


class Memberships:
    """
    The memberships of normal channels that `group_add()` made here and `group_discard()` did not end.

    The server holds them. If it forgets them, only the session that added them can add them again.
    """

    def __init__(self, members: Members, topics: Topics, options: Options) -> None:
        self._members = members
        self._topics = topics
        self._options = options
        # The time at which each membership lapses; the last one added is at the end.
        self._lapses: dict[Membership, float] = {}
        self._due: dict[Membership, None] = {}
        self._renewing: asyncio.Task[None] | None = None

    async def add(self, group: str, channel: str) -> None:
        """Make a normal channel a member. Cancelling leaves it a member only if the server got the command."""
        membership = group, channel
        before = self._lapses.pop(membership, None)
        # Noted before the server replies: it may confirm the membership and forget it before the reply is read.
        lapses_at = self._lapses[membership] = monotonic() + self._options.group_expiry
        if len(self._lapses) > _MAX_REMEMBERED:
            del self._lapses[next(iter(self._lapses))]
        try:
            await self._members.add(group, channel)
        except BaseException:
            # Unless the membership was discarded, or added again, meanwhile.
            if self._lapses.get(membership) == lapses_at:
                del self._lapses[membership]
                if before is not None:
                    self._lapses[membership] = before
            raise

    async def discard(self, group: str, channel: str) -> None:
        """End a membership. It is never renewed after this, even if the server does not get the command."""
        self._lapses.pop((group, channel), None)
        await self._members.discard(group, channel)

    def clear(self) -> None:
        """Forget all memberships: the namespace was flushed."""
        self._lapses.clear()

    def renew(self, partitions: Collection[int]) -> None:
        """Add the memberships in some partitions again, each for the rest of its time, until that succeeds."""
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
                await self._members.add(*membership, seconds=left)
            except (ChannelLayerError, ImproperlyConfigured):
                self._due[membership] = None
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)

    def close(self) -> None:
        """Stop renewing, and renew nothing any more: a fence may still arrive."""
        self._lapses.clear()
        self._due.clear()
        if self._renewing is not None:
            self._renewing.cancel()
