"""Two senders, two receivers, 40 channels in groups, normal channels that both read, and a run of them."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from channels_asyncq.testing import EmbeddedServer, EmbeddedServerError, server_binaries
from tests.clusters import Cluster
from tests.processes.handles import Agent

from .checker import Ear, Expected, Heard, Record, Sent, Told, Verdict, Worker, check, check_resumption
from .proxy import Proxy, proxied

PREFIX = "chaos"
GROUPS = 10
CHANNELS = 40
DIRECT = 4  # channels that are sent to by name as well
JOBS = ("jobs.0", "jobs.1")
#: Seconds after which last messages are taken for lost. A deaf listener is found within a fence or two.
HEALING = 60.0
#: When other last messages are sent: of the first, somebody may have been told that they are lost.
AGAIN = 12.5

# What a connection's ups and downs and a loss may leave in the log of a player.
_EXPECTED = re.compile(r"\[(connection|loss|command|cluster)\.\w+\]$|^Executing <.* seconds$")


def seed_of_run() -> str:
    """CHAOS_SEED, or a new one."""
    return os.environ.get("CHAOS_SEED") or str(random.SystemRandom().randrange(10**9))


def seconds_of_run(default: float) -> float:
    """CHAOS_SECONDS, or what is right for every run of the tests."""
    return float(os.environ.get("CHAOS_SECONDS") or default)


def valkey() -> str:
    """The server to break: Valkey if it is there, and CHAOS_SERVER before it."""
    binaries = server_binaries()
    named = [path for path in binaries if "valkey" in os.path.basename(path)]
    return os.environ.get("CHAOS_SERVER") or (named or binaries)[0]


class PlayerAgent(Agent):
    """The handle of one `player.py`."""

    async def finish_quietly(self) -> list[str]:
        """Have it end by itself; what it complained of."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            code = await self.ended()
        except TimeoutError:
            await self.kill()
            return [f"{self.name} did not end by itself:\n{self.errors}"]
        complaints = [line for line in self.errors.splitlines() if not _EXPECTED.search(line)]
        if code or complaints:
            return [f"{self.name} ended with {code}:\n{self.errors}"]
        return []


@dataclass
class World:
    """What a fault gets into its hands."""

    rng: random.Random
    servers: list[EmbeddedServer]
    #: For the layers.
    hosts: list[Any]
    proxy: Proxy | None = None
    cluster: Cluster | None = None
    senders: list[PlayerAgent] = field(default_factory=list)
    receivers: list[PlayerAgent] = field(default_factory=list)
    #: How often something was broken, and how often the server became another one.
    faults: int = 0
    changes: int = 0
    #: When a failover that was not planned was over: the replica was a primary, and all served.
    repairs: list[float] = field(default_factory=list)

    @property
    def server(self) -> EmbeddedServer:
        return self.servers[0]

    @property
    def lane(self) -> Proxy:
        assert self.proxy is not None
        return self.proxy

    @property
    def nodes(self) -> Cluster:
        """The cluster. Its methods block, and are called by one thread at a time."""
        assert self.cluster is not None
        return self.cluster

    async def command(self, *words: str | int, server: EmbeddedServer | None = None) -> Any:
        return await asyncio.to_thread((server or self.server).command, *words)

    async def some_time(self, least: float, most: float) -> None:
        await asyncio.sleep(self.rng.uniform(least, most))


Fault = Callable[[World], Awaitable[None]]


class Place(Protocol):
    """Starts the servers of a scenario, and stops them."""

    def __call__(self, scenario: Scenario, /) -> AbstractAsyncContextManager[World]: ...


@dataclass(frozen=True)
class Scenario:
    """
    One way to break things, over and over.

    `break_it` does one fault and repairs it; `every` are the least and most seconds between two. A run takes
    `least` seconds at least: so long takes what it is to see.
    """

    name: str
    break_it: Fault
    every: tuple[float, float] = (0.1, 0.4)
    least: float = 0.0
    #: Starts the servers and names them to the layers; by default `servers` that know nothing of each other.
    place: Place | None = None
    #: Before the fleet starts: replicas, and what is the same all the time.
    prepare: Fault | None = None
    servers: int = 1
    through_proxy: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)  # of the servers
    config: dict[str, Any] = field(default_factory=dict)  # of the layers
    may_tell: frozenset[str] = frozenset()
    in_vain: frozenset[str] = frozenset()
    keeps_jobs: bool = True
    unlogged: frozenset[str] = frozenset()
    most_raised: float = 0.001
    #: After a failover, how many seconds a send that waited for it may still take.
    most_resumed: float = 1.0
    pause: float = 0.02
    burst: int = 4
    size: int = 8


@dataclass
class Outcome:
    """A run's figures."""

    scenario: str
    seed: str
    seconds: float
    faults: int
    reconnects: int
    verdict: Verdict

    def counts(self) -> dict[str, int]:
        """What can be added up over several runs."""
        verdict = self.verdict
        told = {f"told {reason}": count for reason, count in verdict.told.items()}
        raised = {f"raised {name}": count for name, count in verdict.raised.items()}
        lost = {"lost": verdict.lost, "lost and told": verdict.lost_told, "jobs lost": verdict.lost_jobs}
        wrong = {
            "twice": verdict.twice,
            "out of order": verdict.out_of_order,
            "jobs again": verdict.jobs_again,
        }
        sizes = {"faults": self.faults, "sends": verdict.sends, "receipts": verdict.receipts}
        return sizes | lost | wrong | told | raised

    def __str__(self) -> str:
        verdict = self.verdict
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(verdict.told.items())) or "none"
        raised = ", ".join(f"{name} {count}" for name, count in verdict.raised.items())
        return (
            f"{self.scenario} (seed {self.seed}, {self.seconds:g} s): {self.faults} faults, "
            f"{self.reconnects} reconnects, {verdict.sends} sends, {verdict.receipts} receipts, "
            f"longest send {verdict.longest:.2f} s; "
            f"lost {verdict.lost}, lost and told {verdict.lost_told}, twice {verdict.twice}, "
            f"out of order {verdict.out_of_order}, words: {told}, "
            f"raised {100 * verdict.raised_share:.3f} %{f' ({raised})' if raised else ''}"
            + (f", sends over {verdict.resumed:.2f} s after a failover" if verdict.resumed else "")
            + (f", jobs lost {verdict.lost_jobs}" if verdict.lost_jobs else "")
            + (f", jobs again {verdict.jobs_again}" if verdict.jobs_again else "")
            + (f", unlogged lost {verdict.lost_unlogged}" if verdict.lost_unlogged else "")
        )


@asynccontextmanager
async def _players(config: dict[str, Any], names: Sequence[str]) -> AsyncGenerator[list[PlayerAgent], None]:
    players = [PlayerAgent(name) for name in names]
    command = [sys.executable, "-m", "tests.chaos.player", json.dumps(config)]
    try:
        # Not in development mode: asyncio's debugging would leave no time for traffic.
        await asyncio.gather(*(player.start(command, PYTHONDEVMODE="") for player in players))
        for player in players:
            try:
                await player.do("ready")
            except asyncio.CancelledError:
                if player.process.stdout is None or not player.process.stdout.at_eof():
                    raise
                raise RuntimeError(f"{player.name} did not start:\n{player.errors}") from None
        yield players
    finally:
        for player in players:
            if player._process is not None and player.process.returncode is None:
                player.process.kill()
            if player._process is not None:
                await player.ended()


@asynccontextmanager
async def _servers(scenario: Scenario) -> AsyncGenerator[World, None]:
    """Servers that know nothing of each other; the layers know the first."""
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(scenario.servers):
            server = EmbeddedServer(external=False, binary=valkey(), **scenario.options)
            await asyncio.to_thread(server.start)
            stack.push_async_callback(asyncio.to_thread, server.stop)
            servers.append(server)
        yield World(random.Random(), servers, [servers[0].url])


async def run(scenario: Scenario, seed: str, seconds: float, *, judges_times: bool = True) -> Outcome:
    """
    Play a scenario for some seconds, let everything heal, and hold the records against what was sent.

    Args:
        judges_times: complain of sends that take longer than the scenario allows, for a machine that is not busy.
    """
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context((scenario.place or _servers)(scenario))
        if scenario.through_proxy:
            world.proxy = await stack.enter_async_context(proxied(world.server.port, random.Random(seed)))
            world.hosts = [world.proxy.url]
        config = {"hosts": world.hosts, "prefix": PREFIX, "capacity": 10_000, "on_loss": "loss"}
        names = ["sender.0", "sender.1", "receiver.0", "receiver.1"]
        players = await stack.enter_async_context(_players(config | scenario.config, names))
        world.senders, world.receivers = players[:2], players[2:]
        if scenario.prepare is not None:
            await scenario.prepare(world)
        most_resumed = scenario.most_resumed if judges_times else math.inf
        return await _play(scenario, world, seed, max(seconds, scenario.least), most_resumed)


async def _play(scenario: Scenario, world: World, seed: str, seconds: float, most_resumed: float) -> Outcome:
    groups = [f"group.{n % GROUPS}" for n in range(CHANNELS // len(world.receivers))]
    channels: dict[str, tuple[PlayerAgent, str]] = {}
    for receiver in world.receivers:
        for channel, group in zip(await receiver.do("open", groups), groups, strict=True):
            channels[channel] = receiver, group
        for name in JOBS:
            await receiver.do("read", name)
    direct = list(channels)[:: CHANNELS // DIRECT]
    names = [f"group.{n}" for n in range(GROUPS)]
    for sender in world.senders:
        traffic = (scenario.pause, scenario.burst, scenario.size, f"{seed}.{sender.name}")
        await sender.do("play", sender.name, names, direct + list(JOBS), *traffic)
    until = monotonic() + seconds
    while monotonic() < until:
        # For each fault anew: how much chance one takes depends on what it finds.
        world.rng = random.Random(f"{seed}.{scenario.name}.{world.faults}")
        await world.some_time(*scenario.every)
        world.faults += 1
        await scenario.break_it(world)
    if world.proxy is not None:
        world.proxy.resume()
    if scenario.unlogged:
        # Their last messages would not come again.
        await asyncio.gather(*(player.do("healthy") for player in world.senders + world.receivers))
    await asyncio.gather(*(sender.do("stop") for sender in world.senders))
    complaints = await _heard_to_the_end(world, channels, direct)
    sent = {}
    for sender in world.senders:
        for name in names + direct + list(JOBS):
            sends = await sender.do("sent", name)
            sent[sender.name, name] = [Sent(*send) for send in sends]
    ears = [
        Ear(channel, group, _records(await receiver.do("heard", channel)), receiver.name)
        for channel, (receiver, group) in channels.items()
    ]
    workers = [
        Worker(name, [r for r in _records(await receiver.do("heard", name)) if isinstance(r, Heard)])
        for name in JOBS
        for receiver in world.receivers
    ]
    figures = [await player.do("figures") for player in world.senders + world.receivers]
    expected = Expected(
        scenario.may_tell, world.changes, scenario.keeps_jobs, scenario.unlogged, scenario.in_vain
    )
    verdict = check(sent, ears, workers, expected)
    check_resumption(verdict, sent, world.repairs, most_resumed)
    verdict.complaints += complaints
    for player in world.senders + world.receivers:
        verdict.complaints += await player.finish_quietly()
    if verdict.raised_share > scenario.most_raised:
        verdict.complain(f"{100 * verdict.raised_share:.2f} % of the sends raised: {dict(verdict.raised)}")
    return Outcome(
        scenario.name, seed, seconds, world.faults, sum(each["reconnects"] for each in figures), verdict
    )


async def _heard_to_the_end(
    world: World, channels: dict[str, tuple[PlayerAgent, str]], direct: list[str]
) -> list[str]:
    """Wait until every channel has the last message of every stream to it; a complaint if that takes long."""
    expected = {channel: len(world.senders) * (1 + (channel in direct)) for channel in channels}
    expected |= dict.fromkeys(JOBS, len(world.senders))
    until = monotonic() + HEALING
    again_at = monotonic() + AGAIN
    while True:
        ends: dict[str, int] = {}
        for receiver in world.receivers:
            for channel, count in (await receiver.do("ends")).items():
                ends[channel] = ends.get(channel, 0) + count
        missing = {name: count - ends[name] for name, count in expected.items() if ends[name] < count}
        if not missing:
            return []
        if monotonic() > again_at:
            again_at = until + 1
            await asyncio.gather(*(receiver.do("forget_ends") for receiver in world.receivers))
            await asyncio.gather(*(sender.do("end_again") for sender in world.senders))
        if monotonic() > until:
            links = [await player.do("figures") for player in world.senders + world.receivers]
            return [f"after {HEALING:g} s the last messages are missing: {missing}; {links}"]
        await asyncio.sleep(0.02)


def _records(entries: list[list[Any]]) -> list[Record]:
    return [
        Heard(*entry) if len(entry) == 4 else Told(entry[0], tuple(entry[1]), entry[2]) for entry in entries
    ]


__all__ = [
    "EmbeddedServerError",
    "Outcome",
    "Scenario",
    "World",
    "run",
    "seconds_of_run",
    "seed_of_run",
    "valkey",
]
