"""
A process of a site that is upgraded, with this release or the next one, which reads format 2 of the wire as well.

Run with `{"release": "this" or "next", "config": CONFIG}` as JSON; it is a `migrating.Member`, and more.
"""

import asyncio
from typing import Any

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.messages.framing import FORMATS, Formats
from tests.processes import agent, migrating
from tests.releases import TWO, layer_of_release

FORMATS_OF = {"this": FORMATS, "next": Formats(*(FORMATS[version] for version in FORMATS.versions), TWO)}


class Member(migrating.Member):
    """It also has channels of its own, resumes, and works on jobs."""

    layer: AsyncQueueChannelLayer

    async def do_missed(self, group: str, since: str) -> tuple[str, list[int]]:
        """Come back to a group: why not, and the numbers of what was sent since."""
        replay = await self.layer.group_resume(group, await self.layer.new_channel(), since=since)
        return replay.reason, [message["n"] for message in replay.messages]

    async def do_jobs(self, count: int) -> list[int]:
        """The numbers of so many jobs."""
        return [(await self.layer.receive("jobs"))["n"] for _ in range(count)]


def layer_of(arguments: dict[str, Any]) -> AsyncQueueChannelLayer:
    return layer_of_release(FORMATS_OF[arguments["release"]], **arguments["config"])


if __name__ == "__main__":
    asyncio.run(agent.main(Member, layer_of))
