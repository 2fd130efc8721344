"""Nothing to do: what a process with a thousand open channels costs."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, Goal, Measurement, Post, Scenario, Stage

CHANNELS = 1000
# Long enough for a dozen fences: one more or less in a short time would be a large difference.
SECONDS = 60.0
SETTLE = 1.0


async def be_idle(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """`CHANNELS` channels in a group, each with a reader that waits; tells the CPU time of a quiet while."""
    channels = [await layer.new_channel() for _ in range(CHANNELS)]
    for channel in channels:
        await layer.group_add("room", channel)
    first = [asyncio.create_task(layer.receive(channel)) for channel in channels]
    await layer.group_send("room", dict(CHAT_MESSAGE))
    await asyncio.gather(*first)
    readers = [asyncio.create_task(layer.receive(channel)) for channel in channels]
    await asyncio.sleep(SETTLE)
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(SECONDS)
    cpu, seconds = time.process_time() - cpu, time.monotonic() - began
    await layer.group_send("room", dict(CHAT_MESSAGE))
    done, late = await asyncio.wait(readers, timeout=10)
    for reader in late:
        reader.cancel()
    await post.tell(cpu=cpu, seconds=seconds, received=len(done))


class Idle(Scenario):
    name = "idle"
    title = f"an idle process with {CHANNELS} channels"
    unit = "ms CPU/s"
    higher_is_better = False
    goals = {"asyncq": Goal("at most", 0.2)}  # noqa: RUF012
    parts = {"idler": be_idle}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        result = await (await stage.enter("idler")).hear()
        return Measurement(
            figure=result["cpu"] / result["seconds"] * 1000, lost=CHANNELS - result["received"]
        )
