"""A room of a thousand: one process sends, another one's members receive."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, Goal, Measurement, Post, Scenario, Stage

MEMBERS = 1000
SENDS = 200
WARM_UP = 3
PATIENCE = 60.0


async def be_members(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """`MEMBERS` channels in one group, each read by a task; tells when the last message has come."""
    received = 0

    async def read(channel: str, count: int) -> None:
        nonlocal received
        for _ in range(count):
            await layer.receive(channel)
            received += 1

    async def read_all(count: int) -> None:
        nonlocal received
        received = 0
        readers = [asyncio.create_task(read(channel, count)) for channel in channels]
        await post.tell(reading=True)
        _, late = await asyncio.wait(readers, timeout=PATIENCE)
        for reader in late:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        await post.tell(ended=time.monotonic(), received=received)

    channels = [await layer.new_channel() for _ in range(MEMBERS)]
    for channel in channels:
        await layer.group_add("room", channel)
    await read_all(WARM_UP)
    await read_all(SENDS)


async def send(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """Send as many messages as it is told, one after the other, as a server with consumers of its own."""
    await layer.new_channel()
    await post.tell(ready=True)
    while count := (await post.hear())["sends"]:
        began = time.monotonic()
        for _ in range(count):
            await layer.group_send("room", dict(CHAT_MESSAGE))
        await post.tell(began=began, ended=time.monotonic())


class FanOut(Scenario):
    name = "fan-out"
    title = f"{MEMBERS} members in one process, {SENDS} sends from another"
    unit = "deliveries/s"
    goal = Goal("times", 1.5)
    parts = {"members": be_members, "sender": send}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        members, sender = await stage.enter("members"), await stage.enter("sender")
        await sender.hear()
        for sends in (WARM_UP, SENDS):
            await members.hear()
            await sender.tell(sends=sends)
            sent = await sender.hear()
            arrived = await members.hear()
        await sender.tell(sends=0)
        expected = MEMBERS * SENDS
        seconds = arrived["ended"] - sent["began"]
        return Measurement(
            figure=expected / seconds,
            lost=expected - arrived["received"],
            details={"seconds": seconds, "sending_seconds": sent["ended"] - sent["began"]},
        )
