"""Rooms: one process sends, another one's members receive."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, PATIENCE, Goal, Measurement, Post, Scenario, Stage

WARM_UP = 3


async def be_members(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """Channels in one group, each read by a task; tells when the last message has come."""
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

    channels = [await layer.new_channel() for _ in range(parameters["members"])]
    for channel in channels:
        await layer.group_add("room", channel)
    await read_all(WARM_UP)
    await read_all(parameters["sends"])


async def send(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """Send as many messages as it is told, from so many tasks, as a server with consumers of its own."""
    await layer.new_channel()
    await post.tell(ready=True)

    async def send_some(count: int) -> None:
        for _ in range(count):
            await layer.group_send("room", dict(CHAT_MESSAGE))

    while (order := await post.hear())["sends"]:
        began = time.monotonic()
        senders = order["senders"]
        await asyncio.gather(*(send_some(order["sends"] // senders) for _ in range(senders)))
        await post.tell(began=began, ended=time.monotonic())


class FanOut(Scenario):
    name = "fan-out"
    members: ClassVar[int] = 1000
    senders: ClassVar[int] = 1
    sends: ClassVar[int] = 200
    title = "1000 members in one process, 200 sends from another"
    unit = "deliveries/s"
    goals = {"asyncq": Goal("times", 1.6)}  # noqa: RUF012
    parts = {"members": be_members, "sender": send}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        members = await stage.enter("members", members=self.members, sends=self.sends)
        sender = await stage.enter("sender")
        await sender.hear()
        for sends, senders in ((WARM_UP, 1), (self.sends, self.senders)):
            await members.hear()
            await sender.tell(sends=sends, senders=senders)
            sent = await sender.hear()
            arrived = await members.hear()
        await sender.tell(sends=0)
        expected = self.members * self.sends
        seconds = arrived["ended"] - sent["began"]
        return Measurement(
            figure=expected / seconds,
            lost=expected - arrived["received"],
            details={"seconds": seconds, "sending_seconds": sent["ended"] - sent["began"]},
        )


class FanOutOfMany(FanOut):
    name = "fan-out-32"
    senders = 32
    sends = 640
    title = "1000 members in one process, 640 sends by 32 tasks of another"
    goals = {}  # noqa: RUF012


class SmallRoom(FanOut):
    name = "small-room"
    members = 10
    sends = 4000
    title = "10 members in one process, 4000 sends from another"
    goals = {}  # noqa: RUF012


class SmallRoomOfMany(SmallRoom):
    name = "small-room-32"
    senders = 32
    sends = 12800
    title = "10 members in one process, 12800 sends by 32 tasks of another"


class Pair(FanOut):
    name = "one-member"
    members = 1
    sends = 5000
    title = "one member, 5000 sends from another process"
    goals = {}  # noqa: RUF012


class PairOfMany(Pair):
    name = "one-member-32"
    senders = 32
    sends = 32000
    title = "one member, 32000 sends by 32 tasks of another process"
