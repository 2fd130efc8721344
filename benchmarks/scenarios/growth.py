"""How the cost of a message grows with what else there is; `python -m benchmarks.growth` draws it."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, Measurement, Post, Scenario, Stage

MESSAGES = 300
BIG_MESSAGES = 30
WARM_UP = 10


async def be_a_crowd(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """
    Open channels, groups or members, then send to one group and receive; tells the microseconds of CPU time.

    Of a message; of each member's copy if it is members that grow.
    """
    kind, size = parameters["kind"], parameters["size"]
    message = dict(CHAT_MESSAGE)
    if kind == "bytes":
        message["text"] = "x" * size
    members = [await layer.new_channel() for _ in range(size if kind == "members" else 1)]
    for member in members:
        await layer.group_add("room", member)
    for number in range(size if kind in ("channels", "groups") else 0):
        channel = await layer.new_channel()
        if kind == "groups":
            await layer.group_add(f"other.{number}", channel)
    count = BIG_MESSAGES if size >= 10_000 and kind in ("bytes", "members") else MESSAGES

    async def exchange(times: int) -> None:
        for _ in range(times):
            await layer.group_send("room", message)
            for member in members:
                await layer.receive(member)

    await exchange(WARM_UP)
    began = time.process_time()
    await exchange(count)
    await post.tell(cost=1e6 * (time.process_time() - began) / count / len(members))


async def listen(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """One of several processes with a member."""
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await post.tell(ready=True)
    for _ in range(MESSAGES + WARM_UP):
        await layer.receive(channel)
    await post.tell(received=True)


async def send(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """Send to the group, one message after the other; tells the microseconds of CPU time of each."""
    await layer.new_channel()
    for _ in range(WARM_UP):
        await layer.group_send("room", dict(CHAT_MESSAGE))
    began = time.process_time()
    for _ in range(MESSAGES):
        await layer.group_send("room", dict(CHAT_MESSAGE))
    await post.tell(cost=1e6 * (time.process_time() - began) / MESSAGES)


class Growth(Scenario):
    name = "growth"
    title = "what a message costs beside many channels, groups, members, processes, bytes"
    unit = "us of CPU time"
    higher_is_better = False
    is_default = False
    parts = {"crowd": be_a_crowd, "listener": listen, "sender": send}  # noqa: RUF012

    def __init__(self, kind: str = "channels", size: int = 1000) -> None:
        self.kind = kind
        self.size = size

    async def conduct(self, stage: Stage) -> Measurement:
        if self.kind != "processes":
            crowd = await stage.enter("crowd", kind=self.kind, size=self.size)
            return Measurement((await crowd.hear())["cost"])
        listeners = [await stage.enter("listener") for _ in range(self.size)]
        await asyncio.gather(*(listener.hear() for listener in listeners))
        result = await (await stage.enter("sender")).hear()
        # One that missed a message never says so, and the round is given up.
        await asyncio.gather(*(listener.hear() for listener in listeners))
        return Measurement(result["cost"])
