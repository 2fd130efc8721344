"""Thirty-two views at once: how fast one process can send."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, TO_NOBODY, Goal, Measurement, Post, Scenario, Stage

SENDERS = 32
SECONDS = 2.0
WARM_UP = 2


async def send(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """`SENDERS` tasks that send one message after the other for `SECONDS`, in a server with consumers."""
    await layer.new_channel()
    sent = 0

    async def keep_sending(until: float) -> None:
        nonlocal sent
        while time.monotonic() < until:
            await layer.group_send("room", dict(CHAT_MESSAGE))
            sent += 1

    for _ in range(WARM_UP):
        await layer.group_send("room", dict(CHAT_MESSAGE))
    began = time.monotonic()
    await asyncio.gather(*(keep_sending(began + SECONDS) for _ in range(SENDERS)))
    await post.tell(seconds=time.monotonic() - began, sent=sent)


class ConcurrentSenders(Scenario):
    name = "senders"
    title = f"{SENDERS} concurrent senders to one group in one process"
    unit = "sends/s"
    goals = {"asyncq": Goal("times", 8), "asyncq, no log": Goal("times", 12)}  # noqa: RUF012
    unable = TO_NOBODY
    parts = {"sender": send}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        watch = stage.watch()
        try:
            result = await (await stage.enter("sender")).hear()
            expected = result["sent"] + WARM_UP
            return Measurement(
                figure=result["sent"] / result["seconds"],
                lost=expected - await asyncio.to_thread(watch.count, expected),
                details={"sent": result["sent"]},
            )
        finally:
            watch.close()
