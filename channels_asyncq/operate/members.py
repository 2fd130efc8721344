"""The normal channels that are members of a group, as the server has them."""

from __future__ import annotations

from ..settings.options import Options
from .servers import open_servers

__all__ = ["normal_members"]


async def normal_members(options: Options, group: str) -> list[str]:
    """
    Return the normal channels in a group, by name.

    Raises:
        LayerUnavailable: the server cannot be reached, or refuses.
    """
    key = options.topics("").group(group)
    async with open_servers(options, key.topic.partition) as servers:
        for server in servers:
            seconds, _ = await server.ask(b"TIME")
            since = b"(%d" % (1000 * int(seconds))
            found = await server.ask(b"ZRANGEBYSCORE", key.members, since, b"+inf")
            return sorted(member.decode() for member in found)
    return []
