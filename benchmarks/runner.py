"""Rounds in turn: fresh processes for each, one server for all."""

import asyncio
import itertools
import json
import os
import socket
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis

from channels_asyncq.messages.framing import BadEnvelope, unpack
from channels_asyncq.testing import EmbeddedServer

from .layers import Contender
from .nats import NatsServer, SubjectWatch
from .scenario import Measurement, Post, Scenario, Watch

Server = EmbeddedServer | NatsServer

ROOT = Path(__file__).parents[1]
ROUND_TIMEOUT = 180.0
_numbers = itertools.count(1)


class BenchmarkError(Exception):
    """A process of a round failed; the text is what it printed."""


class Actor:
    """A process that plays a part; the conductor's end of its post."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process

    async def tell(self, **news: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(news).encode() + b"\n")
        await self._process.stdin.drain()

    async def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            errors = (await self._process.stderr.read()).decode(errors="replace")
            raise BenchmarkError(f"{self._name} ended with {await self._process.wait()}:\n{errors}")
        news: dict[str, Any] = json.loads(line)
        return news

    async def stop(self) -> None:
        """Let it end by itself for a moment, then kill it: the measurement is done."""
        try:
            async with asyncio.timeout(5):
                await self._process.communicate()
        except TimeoutError:
            self._process.kill()
            await self._process.communicate()


def messages_in(payload: bytes) -> int:
    """How many messages a layer has published as one: ours puts several that are sent in one turn into it."""
    envelopes = payload.partition(b" ")[2] if payload.startswith(b"\x01#") else payload
    try:
        return len(unpack(envelopes))
    except BadEnvelope:
        return 1


class TopicWatch:
    """
    Counts what is published under a prefix, and costs next to nothing meanwhile.

    It subscribes and does not read: what is published waits in the server's output buffer (which has no limit
    here) until `count()` reads it, after the measurement.
    """

    def __init__(self, server: EmbeddedServer, prefix: str) -> None:
        self._replies = hiredis.Reader()
        self._socket = socket.create_connection((server.host, server.port))
        self._socket.settimeout(2.0)
        self._socket.sendall(f"PSUBSCRIBE {prefix}*group*\r\n".encode())
        next(self._read())

    def _read(self) -> Iterator[Any]:
        while True:
            while (reply := self._replies.gets()) is not False:
                yield reply
            try:
                data = self._socket.recv(2**16)
            except TimeoutError:
                return
            if not data:
                return
            self._replies.feed(data)

    def count(self, expected: int) -> int:
        """How many messages were published; stops looking when there are as many as expected."""
        counted = 0
        for _, _, _, payload in self._read():
            counted += messages_in(payload)
            if counted >= expected:
                break
        return min(counted, expected)

    def close(self) -> None:
        self._socket.close()


class Round:
    """The stage of one round with one layer."""

    def __init__(self, server: Server, scenario: Scenario, contender: Contender) -> None:
        self._server = server
        self._scenario = scenario
        self._contender = contender
        self._actors: list[Actor] = []
        self.prefix = f"bench{os.getpid()}x{next(_numbers)}"

    def watch(self) -> Watch:
        if isinstance(self._server, NatsServer):
            return SubjectWatch(self._server, self.prefix)
        return TopicWatch(self._server, self.prefix)

    async def enter(self, part: str, **parameters: Any) -> Post:
        """Start a fresh process that plays `part`."""
        order = {
            "scenario": self._scenario.name,
            "layer": self._contender.name,
            "part": part,
            "config": self._contender.config(self._server.url, self.prefix),
            "parameters": parameters,
        }
        # A measurement in development mode would measure development mode.
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "PYTHONWARNINGS", "PYTHONTRACEMALLOC")
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.process",
            json.dumps(order),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=environment,
        )
        actor = Actor(f"{self._contender.name}: {part}", process)
        self._actors.append(actor)
        return actor

    async def play(self) -> Measurement:
        try:
            async with asyncio.timeout(ROUND_TIMEOUT):
                return await self._scenario.conduct(self)
        except TimeoutError:
            raise BenchmarkError(f"no end after {ROUND_TIMEOUT:g} s") from None
        finally:
            for actor in self._actors:
                await actor.stop()


@dataclass(slots=True)
class Result:
    """All rounds of one scenario with one layer."""

    layer: str
    figures: list[float] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    details: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None

    def add(self, measurement: Measurement) -> None:
        self.lost.append(measurement.lost)
        self.details.append(dict(measurement.details))
        if not measurement.lost:
            self.figures.append(measurement.figure)

    @property
    def median(self) -> float | None:
        """Of the rounds that lost nothing; None when there is no such round."""
        return statistics.median(self.figures) if self.figures else None


async def compare(
    scenario: Scenario,
    contenders: Sequence[Contender],
    rounds: int,
    servers: Mapping[str, Server],
    on_round: Callable[[], None] = lambda: None,
) -> list[Result]:
    """
    Play `rounds` rounds with each layer, in turn; who begins changes with each round.

    `servers` has the server for each kind that the contenders need.
    """
    results = {contender.name: Result(contender.name) for contender in contenders}
    for number in range(rounds):
        order = list(contenders) if number % 2 == 0 else list(reversed(contenders))
        for contender in order:
            result = results[contender.name]
            if result.error is None:
                try:
                    server = servers.get(contender.server, servers["redis"])
                    result.add(await Round(server, scenario, contender).play())
                except BenchmarkError as error:
                    result.error = str(error)
            on_round()
    return list(results.values())
