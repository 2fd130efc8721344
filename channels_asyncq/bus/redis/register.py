"""The sessions of a namespace and their processes, as the leases of the server name them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...identity import identity
from ...names import Topics

if TYPE_CHECKING:
    from .partition import Partition


def member_of(session_id: bytes) -> bytes:
    """Return the name of a session of this process in the lists of leases."""
    return b"%b %b" % (session_id.hex().encode(), identity().encode())


class RedisRegister:
    """Reads the lists that the leases keep: of host 0, on which every session has one, or of the cluster."""

    def __init__(self, topics: Topics, first: Partition) -> None:
        """
        Args:
            first: partition 0, whose sender reaches the server that has the lists.
        """
        self._topics = topics
        self._first = first

    async def processes(self) -> dict[str, str]:
        """Return the `identity()` of the process of each session. Raises as a send does."""
        found: dict[str, str] = {}
        for layout in await self._read(self._topics.layouts(0)):
            _, sessions, _ = self._topics.lease_keys(0, layout)
            for member in await self._read(sessions):
                session_id, _, process = member.decode(errors="replace").partition(" ")
                found[session_id] = process
        return found

    async def _read(self, key: bytes) -> list[bytes]:
        command = (b"ZRANGEBYSCORE", key, b"-inf", b"+inf")
        answer: list[bytes] = await self._first.sender.commands.call(*command, is_repeatable=True)
        return answer
