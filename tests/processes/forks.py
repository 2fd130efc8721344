"""
A process that uses its layer, forks, and uses it in parent and child. Argument: CONFIG as JSON, the way.

Prints one JSON line per process: who, what arrived.
"""

import asyncio
import json
import os
import sys
import warnings
from typing import Any

from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer

# Python warns of a fork with threads; that such processes exist is what this is about.
warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)


def say(**answer: Any) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


async def use(layer: AsyncQueueChannelLayer, who: str) -> list[str]:
    """The names of whoever said something to the group while we were in it: ourselves."""
    channel = await layer.new_channel()
    group = f"room.{who}"
    await layer.group_add(group, channel)
    heard = []
    for _ in range(5):
        await layer.group_send(group, {"type": "test.name", "who": who})
        async with asyncio.timeout(30):
            heard.append((await layer.receive(channel))["who"])
    return heard


def after_the_loop(layer: AsyncQueueChannelLayer) -> None:
    """Fork between two loops, with a relay that runs: a pre-forking server."""
    asyncio.run(use(layer, "before"))
    async_to_sync(layer.send)("jobs", {"type": "test.name", "who": "before"})
    child = os.fork()
    who = "parent" if child else "child"
    heard = asyncio.run(use(layer, who))
    async_to_sync(layer.send)("jobs", {"type": "test.name", "who": who})
    say(who=who, heard=heard)
    if child:
        os.waitpid(child, 0)


def inside_the_loop(layer: AsyncQueueChannelLayer) -> None:
    """Fork while the parent's loop runs and its connections are open: the parent must not go deaf."""

    async def main() -> None:
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        waiting = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        child = os.fork()
        if not child:
            try:
                asyncio.events._set_running_loop(None)
                say(who="child", heard=asyncio.run(use(layer, "child")))
            finally:
                # The exit of a child of multiprocessing: no cleaning up of what is the parent's.
                os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        await layer.group_send("room", {"type": "test.name", "who": "parent"})
        async with asyncio.timeout(30):
            heard = [(await waiting)["who"]]
        say(who="parent", heard=heard + await use(layer, "parent"))

    asyncio.run(main())


if __name__ == "__main__":
    globals()[sys.argv[2]](AsyncQueueChannelLayer(**json.loads(sys.argv[1])))
