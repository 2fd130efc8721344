"""Many rooms over all partitions: what the servers do for them; `python -m benchmarks.clusters` compares."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from channels_asyncq import AsyncQueueChannelLayer

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, Measurement, Post, Scenario, Stage

#: So many that each partition has some.
ROOMS = 256
SENDERS = 32
SENDS = 12_800
WARM_UP = 2
PATIENCE = 30.0

Meter = Callable[[], Awaitable[Sequence[float]]]
"""Returns the CPU seconds that each server has used."""


async def be_members(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """A member of each room. Tells when all messages have come, and how many did."""
    received = expected = 0
    complete = asyncio.Event()

    async def read(channel: str) -> None:
        nonlocal received
        while True:
            await layer.receive(channel)
            received += 1
            if received == expected:
                complete.set()

    readers = []
    for number in range(ROOMS):
        channel = await layer.new_channel()
        await layer.group_add(f"room.{number}", channel)
        readers.append(asyncio.create_task(read(channel)))
    await post.tell(ready=True)
    while expected := (await post.hear())["expected"]:
        if received < expected:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(complete.wait(), PATIENCE)
        await post.tell(ended=time.monotonic(), received=received)
        received = 0
        complete.clear()
    for reader in readers:
        reader.cancel()


async def send(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """`SENDERS` tasks that send to all rooms in turn, at a rate or, if that is 0, as fast as they can."""
    await layer.new_channel()

    async def keep_sending(first: int, count: int, rate: float) -> None:
        began = time.monotonic() + first / rate if rate else 0.0
        for number in range(count):
            if rate:
                await asyncio.sleep(max(0.0, began + number * SENDERS / rate - time.monotonic()))
            room = f"room.{(first + number * SENDERS) % ROOMS}"
            await layer.group_send(room, dict(CHAT_MESSAGE))

    while (order := await post.hear())["sends"]:
        count = order["sends"] // SENDERS
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.gather(*(keep_sending(first, count, order["rate"]) for first in range(SENDERS)))
        await post.tell(began=began, ended=time.monotonic(), cpu=time.process_time() - cpu)


async def be_sessions(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """
    Sessions of our own layer with a member of each room each, so that each reads all partitions.

    Tells the CPU seconds of the process in `seconds`.
    """
    layers = [AsyncQueueChannelLayer(**parameters["config"]) for _ in range(parameters["sessions"])]
    for each in layers:
        channels = [await each.new_channel() for _ in range(ROOMS)]
        await asyncio.gather(
            *(each.group_add(f"room.{number}", channel) for number, channel in enumerate(channels))
        )
    await post.tell(ready=True)
    await post.hear()
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(parameters["seconds"])
    await post.tell(cpu=time.process_time() - cpu, seconds=time.monotonic() - began)
    for each in layers:
        await each.close()


class ClusterLoad(Scenario):
    """
    An equal load at `rate` messages a second, and then as fast as it goes.

    `cpu` in the details is of all servers per message, without what they use when nothing is sent; `cpu of 0` is
    that of the first, and so on.
    """

    name = "cluster"
    title = f"{ROOMS} rooms with a member in each process, {SENDERS} senders"
    unit = "us of CPU of all servers, a message"
    higher_is_better = False
    is_default = False
    parts = {"members": be_members, "sender": send, "sessions": be_sessions}  # noqa: RUF012

    def __init__(
        self, meter: Meter | None = None, rate: float = 1000, seconds: float = 5, processes: int = 2
    ) -> None:
        self._meter = meter
        self._rate = rate
        self._seconds = seconds
        self._processes = processes

    async def conduct(self, stage: Stage) -> Measurement:
        assert self._meter is not None
        members = [await stage.enter("members") for _ in range(self._processes)]
        for each in members:
            await each.hear()
        sender = await stage.enter("sender")
        await self._exchange(sender, members, ROOMS * WARM_UP, 0)
        idle = await self._idle(self._seconds)
        sends = int(self._rate * self._seconds) // SENDERS * SENDERS
        before = await self._meter()
        paced = await self._exchange(sender, members, sends, self._rate)
        used = [after - first for first, after in zip(before, await self._meter(), strict=True)]
        fast = await self._exchange(sender, members, SENDS, 0)
        for each in [sender, *members]:
            await each.tell(sends=0, expected=0)
        costs = [1e6 * (cpu - rest * paced["seconds"]) / sends for cpu, rest in zip(used, idle, strict=True)]
        details = {f"cpu of {number}": cost for number, cost in enumerate(costs)}
        details |= {
            "cpu": sum(costs),
            "most": max(costs),
            "client": 1e6 * paced["cpu"] / sends,
            "sends/s": SENDS / fast["sending"],
            "deliveries/s": SENDS * self._processes / fast["seconds"],
            "idle": 1000 * sum(idle),
        }
        return Measurement(sum(costs), int(paced["lost"] + fast["lost"]), details)

    async def _idle(self, seconds: float) -> list[float]:
        """CPU seconds a second of each server while nothing is sent."""
        assert self._meter is not None
        before = await self._meter()
        await asyncio.sleep(seconds)
        return [(after - first) / seconds for first, after in zip(before, await self._meter(), strict=True)]

    async def _exchange(
        self, sender: Post, members: Sequence[Post], sends: int, rate: float
    ) -> dict[str, float]:
        for each in members:
            await each.tell(expected=sends)
        await sender.tell(sends=sends, rate=rate)
        sent = await sender.hear()
        arrived = [await each.hear() for each in members]
        return {
            "sending": sent["ended"] - sent["began"],
            "seconds": max(each["ended"] for each in arrived) - sent["began"],
            "cpu": sent["cpu"],
            "lost": sum(sends - each["received"] for each in arrived),
        }


class IdleSessions(ClusterLoad):
    """Sessions without messages: what their checkpoints cost themselves and the servers."""

    name = "cluster-idle"
    title = "idle sessions that read all partitions"
    unit = "ms of CPU of all servers, a second"

    def __init__(
        self,
        meter: Meter | None = None,
        sessions: int = 1,
        seconds: float = 60,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(meter, seconds=seconds)
        self._sessions = sessions
        self._config = dict(config or {})

    async def conduct(self, stage: Stage) -> Measurement:
        assert self._meter is not None
        config = self._config | {"prefix": stage.prefix}
        if not self._sessions:
            idle = await self._idle(self._seconds)
            return Measurement(1000 * sum(idle), details={"client": 0.0})
        post = await stage.enter("sessions", sessions=self._sessions, seconds=self._seconds, config=config)
        await post.hear()
        # The first fences of all are over.
        await asyncio.sleep(6)
        before = await self._meter()
        await post.tell(go=True)
        result = await post.hear()
        used = [after - first for first, after in zip(before, await self._meter(), strict=True)]
        client = 1000 * result["cpu"] / result["seconds"] / self._sessions
        return Measurement(1000 * sum(used) / result["seconds"], details={"client": client})
