"""A site goes from this release to the next one, and back: real processes are replaced one by one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests.contract import note
from tests.processes.handles import Agent
from tests.rolling import Site

pytestmark = [pytest.mark.processes, pytest.mark.server, pytest.mark.timeout(600)]


async def until(question: Callable[[], bool]) -> None:
    """Wait, for longer than the lease of a process that is gone."""
    async with asyncio.timeout(120):
        while not question():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


class Upgrade:
    """Two processes, which are replaced by others, and what they send to a page that is away, and to workers."""

    def __init__(self, server: EmbeddedServer, prefix: str) -> None:
        self._server, self._prefix = server, prefix
        # A page may be away for long on a slow machine.
        self._config = {
            "hosts": [server.url],
            "prefix": prefix,
            "recovery": {"seconds": 900},
            "capacity": 5000,
        }
        self.site = Site("releases")
        self.sent = 0

    def written(self) -> set[int]:
        """The formats that processes say they write."""
        texts = self._server.command("ZRANGE", f"{self._prefix}:0:layouts", 0, -1)
        return {json.loads(text)["writes"] for text in texts}

    async def add(self, release: str) -> Agent:
        return await self.site.add({"release": release, "config": self._config})

    async def send(self, agent: Agent) -> None:
        """Have a process send to the group of the page, and a job."""
        self.sent += 1
        await agent.do("group_send", "page", note(self.sent))
        await agent.do("send", "jobs", note(self.sent))

    async def replace(self, release: str) -> None:
        """
        Both processes are replaced, one after the other.

        While both releases are there, each has the other's channel join a group, and hears what the other sends.
        """
        for _ in range(2):
            new = await self.add(release)
            _, old = self.site.members[0]
            for mine, other in ((old, new), (new, old)):
                channel = await mine.do("new_channel")
                await other.do("group_add", "both", channel)
                await other.do("group_send", "both", note(7))
                assert (await mine.do("receive", channel))["n"] == 7
                await other.do("group_discard", "both", channel)
            await self.send(old)
            await self.send(new)
            await self.site.remove_first()


async def test_to_the_next_release_and_back(own_redis_server: EmbeddedServer, prefix: str) -> None:
    """
    Everybody hears everything once and in order. A page that was away, and jobs, go from one release to another.

    When all processes have the next release, they write its format. On the way back, a page that was away since
    then loads its data again: this release does not read what the next one has logged.
    """
    upgrade = Upgrade(own_redis_server, prefix)
    site = upgrade.site
    try:
        for _ in range(2):
            old = await upgrade.add("this")
        assert upgrade.written() == {1}
        since = await old.do("position", "page")

        await upgrade.replace("next")
        await until(lambda: upgrade.written() == {2})
        _, new = site.members[0]
        late = await new.do("position", "page")
        await upgrade.send(new)
        everything = list(range(1, upgrade.sent + 1))
        assert await new.do("missed", "page", since) == ["", everything]
        assert await new.do("jobs", upgrade.sent) == everything

        since, first = await new.do("position", "page"), upgrade.sent + 1
        await upgrade.replace("this")
        assert upgrade.written() == {1}
        _, old = site.members[0]
        await upgrade.send(old)
        rest = list(range(first, upgrade.sent + 1))
        assert await old.do("missed", "page", since) == ["", rest]
        assert await old.do("missed", "page", late) == ["unreadable", []]
        assert await old.do("jobs", len(rest)) == rest
        while site.members:
            await site.remove_first()
    finally:
        await site.kill()
    site.check()
