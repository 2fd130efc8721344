"""Readers that come and go, at random, and senders that number their messages: who misses something shows."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.exceptions import MessagesLost


class Sender:
    """Sends numbered messages to groups, several at once, so that they share pushes and entries."""

    def __init__(
        self, name: str, layer: AsyncQueueChannelLayer, groups: list[str], chance: random.Random
    ) -> None:
        self.name = name
        self._layer = layer
        self._groups = groups
        self._chance = chance
        #: The last number of each group.
        self.sent: Counter[str] = Counter()

    async def send_some(self) -> None:
        chance = self._chance
        sends = []
        for group in chance.choices(self._groups, k=chance.choice((1, 1, 3, 8))):
            for _ in range(chance.choice((1, 1, 2, 16))):
                self.sent[group] += 1
                message = {"type": "x", "stream": self.name, "group": group, "number": self.sent[group]}
                sends.append(self._layer.group_send(group, message))
        await asyncio.gather(*sends)


class Reader:
    """
    Reads groups from a position on, and stops at random: between two messages, in any session, at any await.
    """

    def __init__(
        self, layers: list[AsyncQueueChannelLayer], groups: list[str], position: str, chance: random.Random
    ) -> None:
        self._layers = layers
        self.groups = groups
        self.position = position
        self._chance = chance
        #: The numbers that were read, by sender and group.
        self.read: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self.visits = 0
        self.resets: list[str] = []

    async def visit(self, seconds: float) -> None:
        """Come back, and read for about this time."""
        async with self._visit() as task:
            await asyncio.wait([task], timeout=seconds)

    async def read_rest(self, senders: list[Sender], seconds: float) -> None:
        """Come back, and read until it has everything, for this time at most."""
        deadline = asyncio.get_running_loop().time() + seconds
        async with self._visit() as task:
            while not (task.done() or self.is_complete(senders)):
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                await asyncio.wait([task], timeout=min(0.1, left))

    @asynccontextmanager
    async def _visit(self) -> AsyncIterator[asyncio.Task[None]]:
        self.visits += 1
        task = asyncio.create_task(self._read(self._chance.choice(self._layers)))
        yield task
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _read(self, layer: AsyncQueueChannelLayer) -> None:
        async with layer.subscribe(*self.groups, since=self.position) as subscription:
            if not subscription.recovered:
                self.resets.append(subscription.reason)
                self.position = subscription.position
            while True:
                try:
                    message = await anext(subscription)
                except MessagesLost as exc:
                    self.resets.append(exc.reason)
                else:
                    self.note(message)
                self.position = subscription.position

    def note(self, message: dict[str, Any]) -> None:
        self.read[message["stream"], message["group"]].append(message["number"])

    def is_complete(self, senders: list[Sender]) -> bool:
        return all(
            len(self.read[sender.name, group]) >= sender.sent[group]
            for sender in senders
            for group in self.groups
        )

    def wrong(self, senders: list[Sender]) -> list[str]:
        """What is missing, double or out of order."""
        found = []
        for sender in senders:
            for group in self.groups:
                read, count = self.read[sender.name, group], sender.sent[group]
                if read != list(range(1, count + 1)):
                    missing = sorted(set(range(1, count + 1)) - set(read))
                    twice = [number for number, times in Counter(read).items() if times > 1]
                    found.append(f"{sender.name} to {group}: missing {missing[:9]}, twice {twice[:9]}")
        return found


class Crowd:
    """Readers and senders of some layers."""

    def __init__(self, layers: list[AsyncQueueChannelLayer], seed: int, pause: float = 0.02) -> None:
        """
        Args:
            pause: the most seconds between two sends of a sender.
        """
        self.layers = layers
        self._pause = pause
        self.chance = random.Random(seed)
        self.senders: list[Sender] = []
        self.readers: list[Reader] = []
        self.is_over = False

    async def gather(self, readers: int, senders: int, groups: int) -> None:
        """Make them, from a position before the first message."""
        names = [f"group-{number}" for number in range(groups)]
        for number in range(senders):
            layer = self.layers[number % len(self.layers)]
            self.senders.append(Sender(f"s{number}", layer, names, self.chance))
        for _ in range(readers):
            wanted = self.chance.sample(names, self.chance.choice((1, 1, 2, 5)))
            position = await self.layers[0].position(*wanted)
            self.readers.append(Reader(self.layers, wanted, position, self.chance))

    async def run(self, seconds: float, is_enough: Callable[[], bool]) -> None:
        """Send and read for this time, or until that is enough; then let everybody read the rest."""
        tasks = [asyncio.create_task(self._send(sender)) for sender in self.senders]
        visitors = [asyncio.create_task(self._come_and_go(reader)) for reader in self.readers]
        left = seconds
        while not any(task.done() for task in (*tasks, *visitors)):
            await asyncio.wait([*tasks, *visitors], timeout=left, return_when=asyncio.FIRST_EXCEPTION)
            if is_enough():
                break
            left = 0.1
        self.is_over = True
        await asyncio.gather(*tasks, *visitors)
        await asyncio.gather(*map(self._read_rest, self.readers))

    async def _read_rest(self, reader: Reader) -> None:
        # After a reset a reader never gets everything.
        await reader.read_rest(self.senders, 5.0 if reader.resets else 60.0)

    async def _send(self, sender: Sender) -> None:
        while not self.is_over:
            await sender.send_some()
            await asyncio.sleep(self.chance.random() * self._pause)

    async def _come_and_go(self, reader: Reader) -> None:
        chance = self.chance
        while not self.is_over:
            await reader.visit(chance.choice((0.0, 0.001, 0.01, 0.1, 0.5, 1.0)))
            await asyncio.sleep(chance.choice((0.0, 0.001, 0.1, 0.5)) * chance.random())

    @property
    def visits(self) -> int:
        return sum(reader.visits for reader in self.readers)

    @property
    def messages(self) -> int:
        return sum(sender.sent.total() for sender in self.senders)

    def wrong(self) -> list[str]:
        return [line for reader in self.readers for line in reader.wrong(self.senders)]

    def resets(self) -> Counter[str]:
        return Counter(reason for reader in self.readers for reason in reader.resets)
