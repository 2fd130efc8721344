"""What goes wrong during a run: one fault after the other, in turn."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from channels_asyncq.testing import EmbeddedServer

from .counting import Outage
from .servers import Server

DOWN = 2.0


class Faults:
    """
    The faults of one run. Times are of `time.monotonic()`, which all processes share.

    They come `every` so many seconds (a range). `log` has each fault with its begin and end; at `losses` the
    server of the layer lost its data.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        every: tuple[float, float],
        redis: EmbeddedServer,
        servers: Sequence[Server],
        seed: int,
    ) -> None:
        self.outages: list[Outage] = []
        self.losses: list[float] = []
        self.log: list[tuple[str, float, float]] = []
        self._kinds = kinds
        self._every = every
        self._redis = redis
        self._servers = servers
        self._random = random.Random(seed)
        self._restarts = 0

    async def run(self, stopped: asyncio.Event) -> None:
        """Play faults until it is stopped; the last one is played to its end, so that everything is up again."""
        number = 0
        while self._kinds:
            try:
                async with asyncio.timeout(self._random.uniform(*self._every)):
                    await stopped.wait()
                return
            except TimeoutError:
                pass
            kind = self._kinds[number % len(self._kinds)]
            number += 1
            begin = time.monotonic()
            await self.play(kind)
            self.log.append((kind, begin, time.monotonic()))

    async def play(self, kind: str) -> None:
        """Play one fault; everything is up again when this returns."""
        await FAULTS[kind](self)

    async def kill_server(self) -> None:
        """kill -9 of one of the servers with all its clients; two seconds later it is back."""
        server = self._random.choice(self._servers)
        begin = time.monotonic()
        await server.kill()
        await asyncio.sleep(DOWN)
        await server.start()
        # Some listen before they serve.
        self.outages.append(Outage(begin, time.monotonic(), server.port))

    async def restart_server(self) -> None:
        """A deploy: the servers in turn are told to stop, and start again when their clients have left."""
        server = self._servers[self._restarts % len(self._servers)]
        self._restarts += 1
        await server.drain()
        begin = time.monotonic()
        await server.start()
        self.outages.append(Outage(begin, time.monotonic(), server.port))

    async def kill_connections(self) -> None:
        """CLIENT KILL of every connection to Valkey."""
        for kind in ("normal", "pubsub"):
            await asyncio.to_thread(self._redis.command, "CLIENT", "KILL", "TYPE", kind)

    async def stop_valkey(self) -> None:
        """SIGSTOP of Valkey for two seconds."""
        begin = time.monotonic()
        await asyncio.to_thread(self._redis.pause)
        await asyncio.sleep(DOWN)
        self._redis.resume()
        self.outages.append(Outage(begin, time.monotonic()))

    async def empty_valkey(self) -> None:
        """kill -9 of Valkey, and a restart without its data, two seconds later."""
        begin = time.monotonic()
        self.losses.append(begin)
        await asyncio.to_thread(self._redis.kill)
        await asyncio.sleep(DOWN)
        await asyncio.to_thread(self._redis.restart)
        self.outages.append(Outage(begin, time.monotonic()))


FAULTS: Mapping[str, Callable[[Faults], Awaitable[None]]] = {
    "server": Faults.kill_server,
    "connections": Faults.kill_connections,
    "stop": Faults.stop_valkey,
    "empty": Faults.empty_valkey,
    "restart": Faults.restart_server,
}
