"""
The ways in which a process with a layer can end. Arguments: CONFIG as JSON, the way.

Prints `done` when it has come to its end; anything on stderr is a complaint.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from typing import Any

from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer

MESSAGE = {"type": "test.note", "n": 1}


async def use(layer: AsyncQueueChannelLayer) -> str:
    """Everything once."""
    channel: str = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.group_add("room", "jobs")
    await layer.group_send("room", MESSAGE)
    assert await layer.receive(channel) == MESSAGE
    assert await layer.receive("jobs") == MESSAGE
    return channel


def run_without_close(layer: AsyncQueueChannelLayer) -> None:
    """`asyncio.run`, nobody closes the layer."""
    asyncio.run(use(layer))


def run_with_receivers(layer: AsyncQueueChannelLayer) -> None:
    """`asyncio.run` that ends while consumers wait."""

    async def main() -> None:
        channel = await use(layer)
        waiting = [asyncio.create_task(layer.receive(name)) for name in (channel, "jobs", "more.jobs")]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)

    asyncio.run(main())


def run_with_close(layer: AsyncQueueChannelLayer) -> None:
    """As it should be."""

    async def main() -> None:
        await use(layer)
        await layer.close()

    asyncio.run(main())


def loop_without_cleaning_up(layer: AsyncQueueChannelLayer) -> None:
    """A loop that is closed with nothing cancelled and no generator shut down."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(use(layer))
    loop.run_until_complete(asyncio.sleep(0.1))
    loop.close()


def sync_sends(layer: AsyncQueueChannelLayer) -> None:
    """A script that only sends: the relay's thread must not hold up its end."""
    for _ in range(3):
        async_to_sync(layer.send)("script", MESSAGE)
        async_to_sync(layer.group_send)("room", MESSAGE)


def sync_use(layer: AsyncQueueChannelLayer) -> None:
    """A script that does everything, each call in a loop of its own."""
    for _ in range(2):
        async_to_sync(layer.send)("script", MESSAGE)
        assert async_to_sync(layer.receive)("script") == MESSAGE
        async_to_sync(use)(layer)


def unfinished_listen(layer: AsyncQueueChannelLayer) -> None:
    """A loop that ends within `async for message in layer.listen(...)`."""

    async def listen() -> AsyncGenerator[dict[str, Any], None]:
        async for message in layer.listen("jobs"):
            yield message

    async def main() -> None:
        await layer.send("jobs", MESSAGE)
        async for _ in listen():
            break

    asyncio.run(main())


def nothing(layer: AsyncQueueChannelLayer) -> None:
    """A layer that is made and not used."""


if __name__ == "__main__":
    globals()[sys.argv[2]](AsyncQueueChannelLayer(**json.loads(sys.argv[1])))
    print("done")
