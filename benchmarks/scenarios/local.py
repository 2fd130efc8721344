"""Within one process: from a sender to a thousand channels beside it."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, PATIENCE, Goal, Measurement, Post, Scenario, Stage

MEMBERS = 1000
SENDS = 100
WARM_UP = 3


async def be_everything(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """`MEMBERS` channels in a group, each read by a task; a loop that sends to it."""
    received = 0

    async def read(channel: str) -> None:
        nonlocal received
        for _ in range(SENDS + WARM_UP):
            await layer.receive(channel)
            received += 1

    channels = [await layer.new_channel() for _ in range(MEMBERS)]
    for channel in channels:
        await layer.group_add("room", channel)
    readers = [asyncio.create_task(read(channel)) for channel in channels]
    for _ in range(WARM_UP):
        await layer.group_send("room", dict(CHAT_MESSAGE))
    while received < MEMBERS * WARM_UP:  # noqa: ASYNC110  (an event would be work in the readers)
        await asyncio.sleep(0)
    began = time.monotonic()
    for _ in range(SENDS):
        await layer.group_send("room", dict(CHAT_MESSAGE))
        await asyncio.sleep(0)
    _, late = await asyncio.wait(readers, timeout=PATIENCE)
    for reader in late:
        reader.cancel()
    seconds = time.monotonic() - began
    await post.tell(seconds=seconds, received=received, bare=await bare_queues())


async def bare_queues() -> float:
    """Deliveries per second of as many queues without any layer."""
    queues: list[asyncio.Queue[Any]] = [asyncio.Queue(SENDS) for _ in range(MEMBERS)]

    async def read(queue: asyncio.Queue[Any]) -> None:
        for _ in range(SENDS):
            await queue.get()

    readers = [asyncio.create_task(read(queue)) for queue in queues]
    await asyncio.sleep(0)
    began = time.monotonic()
    for _ in range(SENDS):
        for queue in queues:
            queue.put_nowait(CHAT_MESSAGE)
        await asyncio.sleep(0)
    await asyncio.gather(*readers)
    return MEMBERS * SENDS / (time.monotonic() - began)


class Local(Scenario):
    name = "local"
    title = f"{MEMBERS} members and {SENDS} sends, all in one process"
    unit = "deliveries/s"
    reference = "memory"
    goals = {"asyncq, memory": Goal("times", 20)}  # noqa: RUF012
    unable = {}  # noqa: RUF012
    parts = {"process": be_everything}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        result = await (await stage.enter("process")).hear()
        rate = MEMBERS * SENDS / result["seconds"]
        return Measurement(
            rate,
            lost=MEMBERS * (SENDS + WARM_UP) - result["received"],
            details={"bare_queues": result["bare"], "of_bare_queues": rate / result["bare"]},
        )
