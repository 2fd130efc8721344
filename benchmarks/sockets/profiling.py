"""Where the CPU time of a delivery and of a connect goes: own time by owner, and by function."""

import asyncio
import json
import linecache
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from channels_asyncq.testing import EmbeddedServer

from ..runner import BenchmarkError
from .messages import Way
from .rounds import SIZES, Stage
from .sampling import BEGAN, BEGIN, END, STACKS, Stack
from .sides import SIDES

OBEY_SECONDS = 30.0
PROFILED = ("bare loop; uvicorn", "queue and task per client; uvicorn", "this layer; uvicorn")
SIZE = "100 B"
#: Samples are rare: so many times the messages, and the clients, of the measurement without them.
DELIVERY_TIMES = 20
CONNECT_TIMES = 8

SOCKET_WRITE = "kernel: writing to sockets"
SOCKET_READ = "kernel: other calls of sockets and epoll"
ASYNCIO = "asyncio"
SERVER = "server: uvicorn, websockets"
CHANNELS = "Channels, Django, asgiref"
JSON = "json"
SITE = "the site's consumer"
OURS = "this layer and its consumers"
OTHER = "other"
OWNERS = (SOCKET_WRITE, SOCKET_READ, ASYNCIO, SERVER, CHANNELS, JSON, SITE, OURS, OTHER)

#: What the file of a function says of its owner, the first that fits.
_FILES: Sequence[tuple[str, str]] = (
    ("/asyncio/", ASYNCIO),
    ("/selectors.py", ASYNCIO),
    ("/site-packages/uvicorn/", SERVER),
    ("/site-packages/websockets/", SERVER),
    ("/site-packages/httptools/", SERVER),
    ("/site-packages/h11/", SERVER),
    ("/site-packages/channels/", CHANNELS),
    ("/site-packages/django/", CHANNELS),
    ("/site-packages/asgiref/", CHANNELS),
    ("/json/", JSON),
    ("/benchmarks/", SITE),
    ("/channels_asyncq/", OURS),
    ("/site-packages/redis/", OURS),
)
_WRITES = re.compile(r"\.(send|sendmsg|sendall|writev)\(")
_READS = re.compile(r"\.(recv|recv_into|accept|poll|register|unregister|close|shutdown|setsockopt)\(")


@dataclass(frozen=True, slots=True)
class Frame:
    """A function, and the line where it is."""

    name: str
    file: str
    line: int

    @property
    def owner(self) -> str | None:
        """Whose time is spent there; None for a part of Python that works for its caller."""
        for part, owner in _FILES:
            if part in self.file:
                if owner is ASYNCIO:
                    source = linecache.getline(self.file, self.line)
                    if _WRITES.search(source):
                        return SOCKET_WRITE
                    if _READS.search(source):
                        return SOCKET_READ
                return owner
        return None

    @property
    def place(self) -> str:
        """The function and its module, without the folders before the package."""
        file = re.sub(r"^.*/(site-packages|lib/python[\d.]+)/", "", self.file)
        parts = file.split("/")
        for package in ("channels_asyncq", "benchmarks"):
            if package in parts:
                file = "/".join(parts[parts.index(package) :])
        return f"{self.name} ({file})"


@dataclass(slots=True)
class Profile:
    """Microseconds of one delivery or connect, and the samples by owner and by owner and function."""

    title: str
    cost: float
    owners: Counter[str] = field(default_factory=Counter)
    functions: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def samples(self) -> int:
        return self.owners.total()

    def share(self, samples: int) -> float:
        return samples / self.samples if self.samples else 0.0

    def of_owner(self, owner: str) -> float:
        """Microseconds of that owner."""
        return self.cost * self.share(self.owners[owner])

    def costly(self, least: float) -> Iterator[tuple[str, str, float]]:
        """Owner, function and microseconds of those with at least such a share, the costliest first."""
        for (owner, place), samples in self.functions.most_common():
            if self.share(samples) >= least:
                yield owner, place, self.cost * self.share(samples)

    def add_all(self, stacks: Iterable[tuple[Stack, int]]) -> None:
        """Count stacks: each is the time of the innermost function that has an owner."""
        for stack, samples in stacks:
            for frame in (Frame(*each) for each in stack):
                if (owner := frame.owner) is not None:
                    self.owners[owner] += samples
                    self.functions[owner, frame.place] += samples
                    break
            else:
                self.owners[OTHER] += samples


class Sampler:
    """Has a server sample itself, from its entry to its exit; then `stacks` has what it saw."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._stage = stage
        self._folder = folder
        self.stacks: Sequence[tuple[Stack, int]] = ()

    async def __aenter__(self) -> "Sampler":
        """
        Begin.

        Raises:
            BenchmarkError: the server did not obey.
        """
        await self._tell(BEGIN, BEGAN)
        return self

    async def __aexit__(self, *_: object) -> None:
        path = await self._tell(END, STACKS)
        self.stacks = json.loads(path.read_text())
        path.unlink()

    async def _tell(self, number: signal.Signals, answer: str) -> Path:
        """Send a signal, and wait until it was obeyed."""
        path = self._folder / answer
        path.unlink(missing_ok=True)
        os.kill(self._stage.server.serving_pid, number)
        deadline = time.monotonic() + OBEY_SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise BenchmarkError(f"the server did not obey {number.name}:\n{self._stage.server.tail()}")
            await asyncio.sleep(0.02)
        return path


async def profiles(redis: EmbeddedServer, clients: int, messages: int) -> list[Profile]:
    """
    Look into a server without an application of ours, and into one with it.

    Raises:
        BenchmarkError: a server failed, or a message was lost.
    """
    found: list[Profile] = []
    with tempfile.TemporaryDirectory() as name:
        for number, side in enumerate(SIDES[name] for name in PROFILED):
            async with Stage(side, redis, f"profile{number}", profile=name) as stage:
                await stage.connect(clients, 1)
                await stage.leave()
                found.append(await _connects(stage, clients, Path(name)))
                found.extend([await _deliveries(stage, way, messages, Path(name)) for way in side.ways])
    return found


async def _connects(stage: Stage, clients: int, folder: Path) -> Profile:
    """Look while clients come, some times in a row. They stay until the last have come."""
    profile = Profile(f"connect, {stage.side.application}", await stage.connect(clients, 1))
    for _ in range(CONNECT_TIMES):
        await stage.leave()
        async with Sampler(stage, folder) as sampler:
            await stage.connect(clients, 1)
        profile.add_all(sampler.stacks)
    return profile


async def _deliveries(stage: Stage, way: Way, messages: int, folder: Path) -> Profile:
    """Look while clients get messages."""
    await stage.warm_up(way, SIZES[SIZE])
    cost, _ = await stage.send(way, SIZES[SIZE], messages)
    async with Sampler(stage, folder) as sampler:
        _, lost = await stage.send(way, SIZES[SIZE], DELIVERY_TIMES * messages)
    if lost:
        raise BenchmarkError(f"{stage.side.name}: {lost} messages were lost")
    profile = Profile(f"{way}, {stage.side.application}", cost)
    profile.add_all(sampler.stacks)
    return profile
