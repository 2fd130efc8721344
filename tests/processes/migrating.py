"""
A process of a site that changes its layer: a member of a group that hears everybody, and talks.

Run with an entry of CHANNEL_LAYERS as JSON; requests and answers are those of `agent.py`.
"""

import asyncio
from collections import defaultdict
from typing import Any

from channels.layers import BaseChannelLayer
from django.utils.module_loading import import_string

from tests.processes import agent

GROUP = "room"
#: Seconds between two messages of a process.
PAUSE = 0.1


class Member(agent.Agent):
    """It joins once, and then sends numbered messages until it is told to stop."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self._heard: defaultdict[str, list[int]] = defaultdict(list)
        self._news = asyncio.Condition()
        self._sent = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._is_talking = True

    async def do_join(self) -> None:
        """Join; then listen for ever. The channel lives as long as the task that has made it, as a consumer's."""
        joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks.append(asyncio.create_task(self._listen(joined)))
        await joined

    async def _listen(self, joined: asyncio.Future[None]) -> None:
        channel = await self.layer.new_channel()
        await self.layer.group_add(GROUP, channel)
        joined.set_result(None)
        while True:
            message = await self.layer.receive(channel)
            async with self._news:
                self._heard[message["from"]].append(message["n"])
                self._news.notify_all()

    async def do_talk(self, name: str) -> None:
        """Begin to send."""
        self._tasks.append(asyncio.create_task(self._talk(name)))

    async def _talk(self, name: str) -> None:
        while self._is_talking:
            self._sent += 1
            await self.layer.group_send(GROUP, {"type": "test.note", "from": name, "n": self._sent})
            await asyncio.sleep(PAUSE)

    async def do_sent(self) -> int:
        """How many messages it has begun to send."""
        return self._sent

    async def do_hush(self) -> int:
        """Stop sending; how many messages it has sent."""
        self._is_talking = False
        await self._tasks[-1]
        return self._sent

    async def do_hear(self, name: str, number: int) -> None:
        """Wait for this message of a process, or a later one."""
        async with self._news:
            await self._news.wait_for(lambda: any(n >= number for n in self._heard[name]))

    async def do_heard(self) -> dict[str, list[int]]:
        """The numbers of everybody's messages, as they came."""
        return dict(self._heard)

    async def do_leave(self) -> None:
        """Stop listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


def layer_of(config: dict[str, Any]) -> BaseChannelLayer:
    layer: BaseChannelLayer = import_string(config["BACKEND"])(**config["CONFIG"])
    return layer


if __name__ == "__main__":
    asyncio.run(agent.main(Member, layer_of))
