"""Answers to single clients: one process sends to the channels of another."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, PATIENCE, Goal, Measurement, Post, Scenario, Stage

CHANNELS = 32
SENDS = 1000
WARM_UP = 10


async def listen(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """`CHANNELS` channels, each read by a task; tells their names, and when everything has come."""
    received = 0

    async def read(channel: str) -> None:
        nonlocal received
        for _ in range(SENDS + WARM_UP):
            await layer.receive(channel)
            received += 1

    channels = [await layer.new_channel() for _ in range(CHANNELS)]
    readers = [asyncio.create_task(read(channel)) for channel in channels]
    await post.tell(channels=channels)
    _, late = await asyncio.wait(readers, timeout=PATIENCE)
    for reader in late:
        reader.cancel()
    await post.tell(received=received)


async def send(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """A task for each channel that sends one message after the other."""
    await layer.new_channel()

    async def send_some(channel: str, count: int) -> None:
        for _ in range(count):
            await layer.send(channel, dict(CHAT_MESSAGE))

    for channel in parameters["channels"]:
        await send_some(channel, WARM_UP)
    began = time.monotonic()
    await asyncio.gather(*(send_some(channel, SENDS) for channel in parameters["channels"]))
    await post.tell(seconds=time.monotonic() - began)


class Direct(Scenario):
    name = "direct"
    title = f"{CHANNELS} tasks, each sending {SENDS} messages to a channel of another process"
    unit = "sends/s"
    goals = {"asyncq": Goal("times", 9), "asyncq, no log": Goal("times", 14)}  # noqa: RUF012
    parts = {"listener": listen, "sender": send}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        listener = await stage.enter("listener")
        sender = await stage.enter("sender", channels=(await listener.hear())["channels"])
        sent, arrived = await sender.hear(), await listener.hear()
        expected = CHANNELS * (SENDS + WARM_UP)
        return Measurement(CHANNELS * SENDS / sent["seconds"], lost=expected - arrived["received"])
