"""
A process with one layer that does as it is told.

Run with the CONFIG as JSON; then each line of stdin is a request `{"id", "do", "arguments", "options"}` and
each line of stdout an answer `{"id", "result"}` or `{"id", "error", "text"}`, in the order in which they are
done. Requests run together. `do` is a method of the layer or one of `Agent`'s own. The process ends, as a
server does, when stdin does: without closing its layer.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer


class Agent:
    """What it can do beyond the methods of the layer."""

    def __init__(self, layer: AsyncQueueChannelLayer) -> None:
        self.layer = layer

    async def perform(self, request: dict[str, Any]) -> object:
        method = getattr(self, "do_" + request["do"], None) or getattr(self.layer, request["do"])
        return await method(*request["arguments"], **request["options"])

    async def do_ready(self) -> int:
        """The process is there: its id."""
        return os.getpid()

    async def do_receive_many(self, channel: str, count: int) -> list[object]:
        """The next `count` messages."""
        return [await self.layer.receive(channel) for _ in range(count)]

    async def do_work(self, channel: str) -> None:
        """Receive from `channel` for ever; each message is a line `{"job"}` as soon as it is there."""
        while True:
            say({"job": await self.layer.receive(channel)})

    async def do_poll(self, channel: str) -> None:
        """The same, as a worker that polls with wait_for()."""
        timeout = 0.0003
        while True:
            try:
                message = await asyncio.wait_for(self.layer.receive(channel), timeout)
            except TimeoutError:
                timeout = timeout * 1.7 % 0.01
                continue
            say({"job": message})

    async def do_group_send_many(self, group: str, first: int, count: int) -> None:
        """Send notes numbered from `first`, one after the other."""
        for n in range(first, first + count):
            await self.layer.group_send(group, {"type": "test.note", "n": n})

    async def do_sync_group_send(self, group: str, message: dict[str, Any]) -> None:
        """As a view in a thread does."""
        await asyncio.to_thread(async_to_sync(self.layer.group_send), group, message)

    async def do_figures(self) -> dict[str, Any]:
        """Some of `statistics()`."""
        figures = self.layer.statistics()
        return {
            "connected": figures.connected,
            "reconnects": figures.reconnects,
            "groups": figures.groups,
            "dropped": dict(figures.dropped),
        }


def say(answer: dict[str, Any]) -> None:
    """One line, at once."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def layer_of(config: dict[str, Any]) -> AsyncQueueChannelLayer:
    return AsyncQueueChannelLayer(**config)


async def main(make_agent: Callable[[Any], Any] = Agent, make_layer: Callable[[Any], Any] = layer_of) -> None:
    agent = make_agent(make_layer(json.loads(sys.argv[1])))
    reader = asyncio.StreamReader(limit=2**24)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tasks: set[asyncio.Task[None]] = set()

    async def answer(request: dict[str, Any]) -> None:
        try:
            say({"id": request["id"], "result": await agent.perform(request)})
        except Exception as error:
            say({"id": request["id"], "error": type(error).__name__, "text": str(error)})

    try:
        while line := await reader.readline():
            task = asyncio.create_task(answer(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        transport.close()


if __name__ == "__main__":
    asyncio.run(main())
