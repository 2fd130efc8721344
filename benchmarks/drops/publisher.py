"""The process that publishes: numbered messages to each room, at a steady rate, and the fate of each."""

import asyncio
import json
import sys
import time
from typing import Any

from channels_asyncq.exceptions import LayerUnavailable

from ..layers import CONTENDERS, Layer
from ..process import Closable, Line
from .counting import ACCEPTED, REFUSED, UNKNOWN

TEXT = "The layer carries this from one process to another, and back to browsers that were away."


class Room:
    """One room: its messages go out one after the other, so that their order is known."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began: list[float] = []
        self.fates: list[str] = []

    async def publish(self, layer: Layer) -> None:
        """Send the next message and note its fate."""
        number = len(self.began)
        self.began.append(time.monotonic())
        try:
            await layer.group_send(
                self.name, {"type": "chat.message", "room": self.name, "n": number, "text": TEXT}
            )
        except LayerUnavailable:
            self.fates.append(REFUSED)
        except Exception:
            # Other layers raise the errors of their client, after which a message may have been sent.
            self.fates.append(UNKNOWN)
        else:
            self.fates.append(ACCEPTED)


async def publish(layer: Layer, room: Room, rate: float, offset: float, stopped: asyncio.Event) -> None:
    """Publish to one room until it is stopped; what an outage held up is sent as soon as it is over."""
    begin = time.monotonic() + offset
    while not stopped.is_set():
        wait = begin + len(room.began) / rate - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        if not stopped.is_set():
            await room.publish(layer)


async def main(order: dict[str, Any]) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    line = Line(reader)
    layer = CONTENDERS[order["layer"]].make(order["config"])
    rooms = [Room(name) for name in order["rooms"]]
    stopped = asyncio.Event()
    try:
        await line.hear()
        offsets = [number / len(rooms) / order["rate"] for number in range(len(rooms))]
        async with asyncio.TaskGroup() as group:
            for room, offset in zip(rooms, offsets, strict=True):
                group.create_task(publish(layer, room, order["rate"], offset, stopped))
            await line.tell(began=time.monotonic())
            await line.hear()
            stopped.set()
        await line.tell(**{room.name: {"began": room.began, "fates": "".join(room.fates)} for room in rooms})
        if isinstance(layer, Closable):
            await layer.close()
    finally:
        transport.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
