"""A site whose processes are replaced one by one while all of them send and listen."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from tests.processes.handles import Agent


class Site:
    """
    Processes of which one after the other is replaced, and what each of them must have heard.

    `program` is one of `tests.processes` whose agent is a `migrating.Member`.
    """

    def __init__(self, program: str) -> None:
        self._program = f"tests.processes.{program}"
        self.members: list[tuple[str, Agent]] = []
        #: By process: what had begun to be sent by each when it had joined, and what it heard until it left.
        self.joined: dict[str, dict[str, int]] = {}
        self.heard: dict[str, dict[str, list[int]]] = {}

    async def add(self, config: dict[str, Any]) -> Agent:
        name = f"p{len(self.joined)}"
        member = Agent(name)
        self.members.append((name, member))
        command = [sys.executable, "-m", self._program, json.dumps(config)]
        await member.start(command, PYTHONDEVMODE="")  # which would take most of the time
        await member.do("join")
        self.joined[name] = {other: await agent.do("sent") for other, agent in self.members[:-1]}
        await member.do("talk", name)
        return member

    async def remove_first(self) -> None:
        """The oldest process stops sending, everybody hears its last words, and it leaves."""
        name, leaving = self.members.pop(0)
        last = await leaving.do("hush")
        for other, member in [*self.members, (name, leaving)]:
            if self.joined[other].get(name, 0) < last:
                await member.do("hear", name, last)
        for other, member in self.members:
            await leaving.do("hear", other, await member.do("sent"))
        self.heard[name] = await leaving.do("heard")
        await leaving.do("leave")
        await leaving.finish()

    async def kill(self) -> None:
        for _, member in self.members:
            await member.kill()

    def check(self) -> None:
        """Everybody has heard everything that was sent while it was there, once and in order."""
        assert len(self.heard) == len(self.joined)
        for name, heard in self.heard.items():
            for other, numbers in heard.items():
                assert numbers == list(range(numbers[0], numbers[-1] + 1)), (name, other)
                assert numbers[0] <= self.joined[name].get(other, 0) + 1, (name, other)


async def talk_in_steps(steps: Sequence[dict[str, Any]]) -> None:
    """Two processes talk; in each step they are replaced one by one. Everybody hears everything, in order."""
    site = Site("migrating")
    try:
        for _ in range(2):
            await site.add(steps[0])
        for step in steps[1:]:
            for _ in range(2):
                await site.add(step)
                await site.remove_first()
        while site.members:
            await site.remove_first()
    finally:
        await site.kill()
    site.check()
