"""
A sender or receiver of the fleet: an agent that numbers what it sends and records what it hears.

What it sends is `{"type", "s": sender, "t": name, "n": number}`, consecutive from 0 for each sender and name.
Times are of the machine's monotonic clock, which all processes share.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any

from channels_asyncq import AsyncQueueChannelLayer
from tests.processes.agent import Agent, main

#: A receipt is [sender, name, number, time], a word about a loss [reason, groups, time].
Entry = list[Any]


class Player(Agent):
    def __init__(self, layer: AsyncQueueChannelLayer) -> None:
        super().__init__(layer)
        self._stopped = asyncio.Event()
        self._streams: list[asyncio.Task[None]] = []
        # By name: begin, end and error of each send; the number is its place.
        self._sent: dict[str, list[Entry]] = {}
        # By name: sends a last message; False if it was not sent.
        self._ending: dict[str, Callable[[], Awaitable[bool]]] = {}
        self._heard: dict[str, list[Entry]] = {}
        self._ends: dict[str, set[tuple[str, str]]] = {}
        self._reading: list[asyncio.Task[None]] = []

    # Sending

    async def do_play(
        self,
        sender: str,
        groups: list[str],
        channels: list[str],
        pause: float,
        burst: int,
        size: int,
        seed: str,
    ) -> None:
        """Send to all these names until `stop`: bursts of up to `burst`, every `pause` seconds on average."""
        rng = random.Random(seed)
        for name in groups + channels:
            send = self.layer.group_send if name in groups else self.layer.send
            stream = self._play(send, sender, name, pause, burst, "x" * size, random.Random(rng.random()))
            self._streams.append(asyncio.create_task(stream))

    async def _play(
        self, send: Any, sender: str, name: str, pause: float, burst: int, pad: str, rng: random.Random
    ) -> None:
        sent: list[Entry] = []
        self._sent[name] = sent

        async def one(is_end: bool = False) -> bool:
            # The last is small: it is in every log, and so heard in any case.
            padding = "" if is_end else pad
            message = {"type": "m", "s": sender, "t": name, "n": len(sent), "pad": padding, "end": is_end}
            entry: Entry = [monotonic(), None, None]
            sent.append(entry)
            try:
                await send(name, message)
            except Exception as error:
                entry[2] = type(error).__name__
            entry[1] = monotonic()
            return entry[2] is None

        while not self._stopped.is_set():
            await asyncio.gather(*(one() for _ in range(rng.randint(1, burst))))
            await asyncio.sleep(rng.expovariate(1 / pause))
        self._ending[name] = partial(one, is_end=True)
        await self._end(name)

    async def _end(self, name: str) -> None:
        while not await self._ending[name]():  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def do_end_again(self) -> None:
        """Send another last message to every name: of the first it may have been told that it is lost."""
        await asyncio.gather(*map(self._end, self._ending))

    async def do_stop(self) -> None:
        """Send a last message to every name, one that arrives at the server, and return."""
        self._stopped.set()
        await asyncio.gather(*self._streams)

    async def do_sent(self, name: str) -> list[Entry]:
        return self._sent[name]

    # Receiving

    async def do_open(self, groups: list[str]) -> list[str]:
        """A new channel for each group in the list, a member of it; the names."""
        channels = []
        for group in groups:
            channel = await self.layer.new_channel()
            await self.layer.group_add(group, channel)
            channels.append(channel)
            await self.do_read(channel)
        return channels

    async def do_read(self, channel: str) -> None:
        """Read a channel for ever."""
        self._heard[channel], self._ends[channel] = [], set()
        self._reading.append(asyncio.create_task(self._read(channel)))

    async def _read(self, channel: str) -> None:
        heard, ends = self._heard[channel], self._ends[channel]
        while True:
            message = await self.layer.receive(channel)
            if message["type"] == "loss":
                heard.append([message["reason"], message["groups"], monotonic()])
                continue
            heard.append([message["s"], message["t"], message["n"], monotonic()])
            if message["end"]:
                ends.add((message["s"], message["t"]))

    async def do_members(self, group: str, count: int, messages: int) -> None:
        """`count` members of a group that read as fast as they can, until each has so many messages."""

        async def member(channel: str) -> None:
            for _ in range(messages):
                await self.layer.receive(channel)

        for _ in range(count):
            channel = await self.layer.new_channel()
            await self.layer.group_add(group, channel)
            self._reading.append(asyncio.create_task(member(channel)))

    async def do_all_arrived(self) -> None:
        """Return when the members have what they wait for."""
        await asyncio.gather(*self._reading)

    async def do_stick(self, group: str) -> str:
        """A member that nobody reads; its name."""
        channel = await self.layer.new_channel()
        await self.layer.group_add(group, channel)
        return channel

    async def do_healthy(self) -> None:
        """Return when health() finds nothing wrong."""
        while not (await self.layer.health()).ok:  # noqa: ASYNC110  (nothing announces it)
            await asyncio.sleep(0.05)

    async def do_caught_up(self) -> None:
        """Return when everything has arrived that was sent before this."""
        await self.layer.health()

    async def do_count(self) -> int:
        """How many messages and words were heard."""
        return sum(map(len, self._heard.values()))

    async def do_ends(self) -> dict[str, int]:
        """By channel, how many streams have been heard to their end."""
        return {channel: len(ends) for channel, ends in self._ends.items()}

    async def do_forget_ends(self) -> None:
        """Wait for other last messages than those that have been heard."""
        for ends in self._ends.values():
            ends.clear()

    async def do_heard(self, channel: str) -> list[Entry]:
        return self._heard[channel]


if __name__ == "__main__":
    asyncio.run(main(Player))
