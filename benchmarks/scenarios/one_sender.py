"""One view in a loop: each send waits for the one before."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, TO_NOBODY, Goal, Measurement, Post, Scenario, Stage

SENDS = 10_000
WARM_UP = 100


async def send(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """Send one message after the other, in a server with consumers."""
    await layer.new_channel()
    for _ in range(WARM_UP):
        await layer.group_send("room", dict(CHAT_MESSAGE))
    began = time.monotonic()
    for _ in range(SENDS):
        await layer.group_send("room", dict(CHAT_MESSAGE))
    await post.tell(seconds=time.monotonic() - began)


class OneSender(Scenario):
    name = "sequential"
    title = "one sender, one message after the other"
    unit = "sends/s"
    goals = {"asyncq": Goal("times", 1.2)}  # noqa: RUF012
    unable = TO_NOBODY
    parts = {"sender": send}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        watch = stage.watch()
        try:
            result = await (await stage.enter("sender")).hear()
            count = await asyncio.to_thread(watch.count, SENDS + WARM_UP)
            return Measurement(SENDS / result["seconds"], lost=SENDS + WARM_UP - count)
        finally:
            watch.close()
