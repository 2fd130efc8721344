"""Sync code: a view or a task that sends, without an event loop of its own."""

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer, sync

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, TO_NOBODY, Goal, Measurement, Post, Scenario, Stage

CALLS = 400
BLOCKS = 40
WARM_UP = 5


async def nothing() -> None:
    """What an empty call costs."""


def rates(*calls: Callable[[], object]) -> list[float]:
    """Calls per second of each, by the median of `BLOCKS` blocks, in turn."""
    for call in calls:
        for _ in range(WARM_UP):
            call()
    size = CALLS // BLOCKS
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(BLOCKS):
        for call, blocks in zip(calls, seconds, strict=True):
            began = time.monotonic()
            for _ in range(size):
                call()
            blocks.append(time.monotonic() - began)
    return [size / statistics.median(blocks) for blocks in seconds]


async def send(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """A thread without a loop makes `CALLS` calls, and as many empty ones in between."""

    def through_async_to_sync() -> None:
        async_to_sync(layer.group_send)("room", dict(CHAT_MESSAGE))

    def through_our_functions() -> None:
        assert isinstance(layer, AsyncQueueChannelLayer)
        sync.group_send("room", dict(CHAT_MESSAGE), layer)

    is_ours = parameters["has_functions"] and isinstance(layer, AsyncQueueChannelLayer)
    call = through_our_functions if is_ours else through_async_to_sync

    def empty_call() -> None:
        async_to_sync(nothing)()

    empty, full = await asyncio.to_thread(rates, empty_call, call)
    await post.tell(empty=empty, rate=full)


class SyncSenders(Scenario):
    name = "async-to-sync"
    title = f"{CALLS} calls of async_to_sync(layer.group_send)"
    unit = "calls/s"
    has_functions: ClassVar[bool] = False
    goals: ClassVar[Mapping[str, Goal]] = {}
    unable = TO_NOBODY
    parts = {"thread": send}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        watch = stage.watch()
        try:
            result = await (await stage.enter("thread", has_functions=self.has_functions)).hear()
            expected = CALLS + WARM_UP
            return Measurement(
                result["rate"],
                lost=expected - await asyncio.to_thread(watch.count, expected),
                details={"empty": result["empty"], "of_empty": result["rate"] / result["empty"]},
            )
        finally:
            watch.close()


class OurFunctions(SyncSenders):
    name = "sync"
    title = (
        f"{CALLS} calls of channels_asyncq.sync.group_send; of async_to_sync(group_send) with other layers"
    )
    has_functions = True
    goals = {"asyncq": Goal("times", 10)}  # noqa: RUF012
