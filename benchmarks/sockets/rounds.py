"""One round of a side: a fresh server, clients that come, messages of two sizes, clients that go."""

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from channels_asyncq.testing import EmbeddedServer

from ..asgi import HOST, free_port
from ..runner import BenchmarkError
from .clients import Clients
from .messages import Way, content
from .senders import Sender, sender
from .servers import SocketServer
from .sides import Side

PATIENCE = 20.0
#: The first clients and messages, which find the server cold, are not counted. Only few of them come before the
#: look at its memory: what they leave is used again.
FIRST_CLIENTS = 20
FIRST_MESSAGES = 5
SIZES: Mapping[str, int] = {"100 B": 100, "2 KB": 2048}
#: By the name of a figure: how many groups a client joins.
JOINS: Mapping[str, int] = {"accept": 0, "1 group": 1, "20 groups": 20}


def delivery(way: Way, size: str) -> str:
    """The name of a figure: microseconds of CPU time for a message to one client."""
    return f"{way}, {size}"


def memory(size: str) -> str:
    """The name of a figure: KiB of an open connection that has got messages of that size."""
    return f"open, {size}"


@dataclass(slots=True)
class Round:
    """What a round gave: microseconds, or KiB, by the name of a figure; and messages that did not arrive."""

    figures: dict[str, float] = field(default_factory=dict)
    lost: int = 0
    is_deflated: bool = False


class Stage:
    """A server that runs, its clients, and what sends to them. Use as an async context manager."""

    def __init__(self, side: Side, redis: EmbeddedServer, prefix: str, **order: str) -> None:
        self.side = side
        port = free_port()
        self.server = SocketServer(side.command(port), port, {**side.order(redis.url, prefix), **order})
        self.clients = Clients(HOST, port)
        self._sender: Sender = sender(side, redis.url, prefix)
        self._number = 0

    async def __aenter__(self) -> "Stage":
        try:
            await self.server.__aenter__()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        # First the server: a thread that waits for one of its answers then ends.
        await self.server.__aexit__()
        await self._close()

    async def _close(self) -> None:
        self.clients.close()
        await self._sender.close()

    async def connect(self, count: int, groups: int) -> float:
        """Connect so many clients; return microseconds of CPU time for each."""
        used = self.server.cpu()
        try:
            await asyncio.to_thread(self.clients.connect, count, self.side.path(groups))
        except OSError as error:
            raise BenchmarkError(f"{error}\n{self.server.tail()}") from error
        await self.server.settle()
        return 1e6 * (self.server.cpu() - used) / count

    async def memory(self) -> int:
        """The bytes of the server; Node collects its garbage before."""
        if self.side.is_node:
            os.kill(self.server.serving_pid, signal.SIGUSR2)
            await self.server.settle()
        return self.server.memory()

    async def leave(self) -> None:
        """All clients go."""
        self.clients.close_all()
        await self.server.settle()

    async def send(self, way: Way, size: int, messages: int) -> tuple[float, int]:
        """Send one after the other; return microseconds of CPU time for each that came, and how many did not."""
        members = len(self.clients)
        used, came = self.server.cpu(), 0
        for _ in range(messages):
            self._number += 1
            await self._sender.send(way, content(size, self._number))
            found = await asyncio.to_thread(self.clients.read, members, PATIENCE)
            came += found
            if found < members:
                break
        return 1e6 * (self.server.cpu() - used) / max(1, came), messages * members - came

    async def warm_up(self, way: Way, size: int) -> None:
        """Send a few that are not counted."""
        await self.send(way, size, FIRST_MESSAGES)


async def play(side: Side, redis: EmbeddedServer, prefix: str, clients: int, messages: int) -> Round:
    """
    Play one round.

    Raises:
        BenchmarkError: the server did not start, or refused a client.
    """
    found = Round()
    async with Stage(side, redis, prefix) as stage:
        await stage.connect(min(FIRST_CLIENTS, clients), max(JOINS.values()))
        for way in side.ways:
            await stage.warm_up(way, min(SIZES.values()))
        await stage.leave()
        before = await stage.memory()
        await stage.connect(clients, 1)
        found.is_deflated = stage.clients.is_deflated
        await _deliver(stage, messages, before, found)
        await stage.leave()
        for name, groups in JOINS.items():
            found.figures[name] = await stage.connect(clients, groups)
            await stage.leave()
    return found


async def _deliver(stage: Stage, messages: int, memory_before: int, found: Round) -> None:
    """Send to the clients that are there, and look at what each of them takes."""
    for size, length in SIZES.items():
        for way in stage.side.ways:
            await stage.warm_up(way, length)
            figure, lost = await stage.send(way, length, messages)
            found.lost += lost
            if not lost:
                found.figures[delivery(way, size)] = figure
        found.figures[memory(size)] = (await stage.memory() - memory_before) / len(stage.clients) / 1024
