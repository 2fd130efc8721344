"""The normal channels in groups: sorted sets on the server, scored with the end of each membership."""

from __future__ import annotations

from collections.abc import Sequence

from .partition import Partition
from .scripts import milliseconds
from .shared import Shared


class RedisMembers:
    """The members of the groups of all partitions."""

    def __init__(self, shared: Shared, partitions: Sequence[Partition]) -> None:
        self._shared = shared
        self._partitions = partitions

    async def add(self, group: str, channel: str, seconds: float | None = None) -> None:
        """Make a normal channel a member of a group, for `seconds`, or for `group_expiry` if that is None."""
        topic, members_key, _ = self._shared.topics.group(group)
        lasts = milliseconds(self._shared.options.group_expiry if seconds is None else seconds)
        command = (b"EVALSHA", self._shared.scripts.add_member.sha, 1, members_key, channel, lasts)
        await self._partitions[topic.partition].sender.commands.call(*command, is_repeatable=True)

    async def discard(self, group: str, channel: str) -> None:
        """End a normal channel's membership."""
        topic, members_key, _ = self._shared.topics.group(group)
        await self._partitions[topic.partition].sender.commands.call(
            b"ZREM", members_key, channel, is_repeatable=True
        )

    async def of(self, group: str) -> list[str]:
        """Return the members of a group whose membership has not lapsed."""
        topic, members_key, _ = self._shared.topics.group(group)
        call = self._partitions[topic.partition].sender.commands.call
        # Lapsed ones stay until the next is added. The server's clock decides.
        seconds, microseconds = await call(b"TIME", is_repeatable=True)
        now = 1000 * int(seconds) + int(microseconds) // 1000
        members: list[bytes] = await call(
            b"ZRANGEBYSCORE", members_key, b"(%d" % now, b"+inf", is_repeatable=True
        )
        return [member.decode() for member in members]

    def held(self) -> dict[str, dict[str, float]]:
        """Return nothing: the server holds the members."""
        return {}
