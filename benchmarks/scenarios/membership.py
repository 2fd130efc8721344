"""Clients come and go: channels that join groups and leave them."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from ..layers import Layer
from ..scenario import CHAT_MESSAGE, Goal, Measurement, Post, Scenario, Stage

TASKS = 32
ROUNDS = 200
ROOMS = 10


async def come_and_go(layer: Layer, post: Post, parameters: Mapping[str, Any]) -> None:
    """`TASKS` tasks that join and leave `ROUNDS` times, one after the other; the last joins must be some."""
    kind = parameters["kind"]

    async def join_and_leave(number: int, channel: str) -> None:
        for turn in range(ROUNDS):
            group = f"room.{number}.{turn}" if kind == "own" else f"room.{turn % ROOMS}"
            member = await layer.new_channel() if kind == "clients" else channel
            await layer.group_add(group, member)
            await layer.group_discard(group, member)

    standing = await layer.new_channel()
    for room in range(ROOMS):
        await layer.group_add(f"room.{room}", standing)
    channels = [await layer.new_channel() for _ in range(TASKS)]
    began = time.monotonic()
    await asyncio.gather(*(join_and_leave(number, channel) for number, channel in enumerate(channels)))
    seconds = time.monotonic() - began
    for channel in channels:
        await layer.group_add("room", channel)
    await layer.group_send("room", dict(CHAT_MESSAGE))
    readers = [asyncio.create_task(layer.receive(channel)) for channel in channels]
    done, late = await asyncio.wait(readers, timeout=10)
    for reader in late:
        reader.cancel()
    await post.tell(seconds=seconds, received=len(done))


class Clients(Scenario):
    name = "join-leave"
    title = f"{TASKS} tasks, {ROUNDS} clients each: a new channel joins one of {ROOMS} rooms and leaves it"
    unit = "joins and leaves/s"
    kind: ClassVar[str] = "clients"
    goals: ClassVar[Mapping[str, Goal]] = {"asyncq": Goal("times", 8)}
    parts = {"crowd": come_and_go}  # noqa: RUF012

    async def conduct(self, stage: Stage) -> Measurement:
        result = await (await stage.enter("crowd", kind=self.kind)).hear()
        return Measurement(2 * TASKS * ROUNDS / result["seconds"], lost=TASKS - result["received"])


class Rooms(Clients):
    name = "rooms"
    title = (
        f"{TASKS} channels, each joining and leaving {ROOMS} rooms that others are in, {ROUNDS} times in all"
    )
    kind = "rooms"
    goals: ClassVar[Mapping[str, Goal]] = {}


class OwnGroups(Clients):
    name = "own-groups"
    title = f"{TASKS} channels, each joining and leaving {ROUNDS} groups that only it is in"
    kind = "own"
    goals: ClassVar[Mapping[str, Goal]] = {}
