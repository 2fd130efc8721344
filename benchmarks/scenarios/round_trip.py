"""There and back: how long a message and its answer take."""

import asyncio
import statistics
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, Goal, Measurement, Post, Scenario, Stage

TRIPS = 2000
WARM_UP = 100
NOISE_MEMBERS = 50
NOISE_PAUSE = 0.002


async def answer(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """Send back whatever comes; and be a room that somebody else talks to."""

    async def overhear(channel: str) -> None:
        while True:
            await layer.receive(channel)

    channel = await layer.new_channel()
    listeners = []
    for _ in range(NOISE_MEMBERS):
        member = await layer.new_channel()
        await layer.group_add("noise", member)
        listeners.append(asyncio.create_task(overhear(member)))
    await post.tell(channel=channel)
    for _ in range(TRIPS + WARM_UP):
        message = await layer.receive(channel)
        await layer.send(message["back"], {"type": "pong"})
    for listener in listeners:
        listener.cancel()


async def ask(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """Send, wait for the answer, and so on; tells the median in microseconds."""
    mine = await layer.new_channel()
    seconds = []
    for _ in range(TRIPS + WARM_UP):
        began = time.perf_counter()
        await layer.send(parameters["channel"], {**CHAT_MESSAGE, "back": mine})
        await layer.receive(mine)
        seconds.append(time.perf_counter() - began)
    await post.tell(median=1e6 * statistics.median(seconds[WARM_UP:]))


async def make_noise(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """Send to the room 500 times a second, until it is told to end."""
    await layer.new_channel()
    ending = asyncio.ensure_future(post.hear())
    while not ending.done():
        await layer.group_send("noise", dict(CHAT_MESSAGE))
        await asyncio.sleep(NOISE_PAUSE)


class RoundTrip(Scenario):
    name = "round-trip"
    title = "a message to another process and its answer, at rest"
    unit = "us"
    higher_is_better = False
    has_noise: ClassVar[bool] = False
    goals = {"asyncq": Goal("times", 1 / 0.75)}  # noqa: RUF012
    parts = {"answerer": answer, "asker": ask, "noise": make_noise}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        answerer = await stage.enter("answerer")
        channel = (await answerer.hear())["channel"]
        if self.has_noise:
            await stage.enter("noise")
        # An answer that is missing is waited for until the round is given up: there is no figure then.
        result = await (await stage.enter("asker", channel=channel)).hear()
        return Measurement(result["median"])


class BusyRoundTrip(RoundTrip):
    name = "round-trip-busy"
    title = "the same, while 50 members of a room in that process get 500 messages a second"
    has_noise = True
    goals = {}  # noqa: RUF012
