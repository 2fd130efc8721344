"""The runs: drops, a herd, cuts at random bytes, and streams that stay open."""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from channels_asyncq.testing import EmbeddedServer
from tests.clusters import Cluster

from ..runner import ROOT, Actor
from .clients import Habits
from .cluster_faults import ClusterFaults, slots_of
from .counting import Sent, Tally, Visit, apart_from
from .faults import Faults
from .servers import Resources, Server, resources_of_group
from .sides import Side, Stage
from .watching import Samples, ScriptWatch

#: Seconds within which all clients must be live at first, and at the end.
PATIENCE = 60.0
#: One process has at most so many clients.
CROWD = 2500
CUT_CLIENTS = 60
CUT_ROOMS = 6
CUT_GROUPS = 3
CUT_RATE = 20.0
#: Bytes of a response before the cut: from within the headers to some dozens of messages.
CUT_BYTES = (1, 6000)
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How large a run is.

    `rate` is per room and second, `seconds` is the time of publishing. A client is cut off `stay` seconds after
    each connect (a range), and is away for `away` seconds. Faults come `every` so many seconds (a range). With
    `is_cluster` the messages go through a cluster of three primaries with a replica each. Where servers are
    restarted, their clients leave within `drain` seconds.
    """

    clients: int = 300
    rooms: int = 10
    rate: float = 10.0
    seconds: float = 60.0
    stay: tuple[float, float] = (10.0, 16.0)
    away: float = 2.0
    settle: float = 6.0
    servers: int = 2
    server: str = "uvicorn"
    faults: tuple[str, ...] = ()
    every: tuple[float, float] = (3.0, 6.0)
    seed: int = 1
    is_cluster: bool = False
    drain: float = 5.0


@dataclass(slots=True)
class Outcome:
    """
    What a run gave.

    `visits` are the reconnects; `clear` are the seconds of those that no outage touched. `faults` are (kind,
    begin, end); `origin` is when the first message was sent. `ends` counts the ends of connections by their
    reason. `back` and `reads` are those of a herd: the seconds until all were back, and the scripts that read a
    log. `held` is what open streams hold beyond what the server held before them.
    """

    run: str
    side: Side
    plan: Plan
    tally: Tally = field(default_factory=Tally)
    live: int = 0
    visits: list[Visit] = field(default_factory=list)
    clear: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, float, float]] = field(default_factory=list)
    origin: float = 0.0
    fates: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0
    client_cpu: float = 0.0
    busy: float = 0.0
    commands: Counter[str] = field(default_factory=Counter)
    statistics: dict[str, int] = field(default_factory=dict)
    back: float | None = None
    reads: int | None = None
    scripts: int | None = None
    held: Resources | None = None

    @property
    def times(self) -> list[float]:
        """Seconds from connect to caught up."""
        return [visit.seconds for visit in self.visits]

    @property
    def closed_for_good(self) -> int:
        """Responses after which an EventSource never comes back; those of WebSockets are only retried."""
        if self.side.kind != "sse":
            return 0
        return sum(number for why, number in self.ends.items() if why.startswith(("status", "unreadable")))


class Scene:
    """Valkey or a cluster of it, servers, clients and the publisher of one run; all end with it."""

    def __init__(self, side: Side, plan: Plan, folder: Path, database: Path | None = None) -> None:
        self.side = side
        self.plan = plan
        self.rooms = [f"room.{number}" for number in range(plan.rooms)]
        self._redis: EmbeddedServer | Cluster
        self._redis = Cluster() if plan.is_cluster else EmbeddedServer(external=False)
        self._prefix = f"drops{os.getpid()}x{next(_numbers)}"
        self.servers: list[Server] = []
        self._folder = folder
        self._database = database
        self._stack = AsyncExitStack()
        self._crowds: list[Actor] = []
        self._publisher: Actor | None = None

    async def __aenter__(self) -> "Scene":
        await asyncio.to_thread(self._redis.start)
        self._stack.push_async_callback(asyncio.to_thread, self._redis.stop)
        try:
            drain = self.plan.drain if "restart" in self.plan.faults else 0.0
            self.stage = Stage(
                self.side,
                self.plan.server,
                self._redis.url,
                self._folder,
                self._prefix,
                self._database,
                drain,
            )
            for number in range(self.plan.servers):
                server = self.stage.make_server(number)
                self._stack.push_async_callback(server.kill)
                await server.start()
                self.servers.append(server)
            command = self.stage.publisher(self.rooms, self.plan.rate)
            self._publisher = await self._actor("publisher", *command)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    @property
    def nodes(self) -> Sequence[EmbeddedServer]:
        """The servers through which the messages go."""
        return self._redis.nodes if isinstance(self._redis, Cluster) else [self._redis]

    def faults(self) -> Faults:
        """The faults of the plan, none of which has been played."""
        plan = self.plan
        if isinstance(self._redis, Cluster):
            slots = slots_of(self._prefix, self.rooms)
            return ClusterFaults(plan.faults, plan.every, self._redis, slots, self.servers, plan.seed)
        return Faults(plan.faults, plan.every, self._redis, self.servers, plan.seed)

    async def _actor(self, name: str, *command: str) -> Actor:
        names = ("PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "PYTHONWARNINGS", "PYTHONTRACEMALLOC")
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key not in names},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A report of thousands of clients is one line.
            limit=1 << 28,
        )
        actor = Actor(name, process)
        self._stack.push_async_callback(actor.stop)
        return actor

    async def invite(self, habits: Habits, rooms_of: Sequence[Sequence[str]]) -> None:
        """Start the processes of the clients: one client for each list of rooms."""
        clients = list(enumerate(rooms_of))
        for first in range(0, len(clients), CROWD):
            order = {
                "seed": self.plan.seed,
                "kind": self.side.kind,
                "query": self.side.query(),
                "ports": [server.port for server in self.servers],
                "habits": asdict(habits),
                "clients": clients[first : first + CROWD],
            }
            path = self._folder / f"clients-{next(_numbers)}.json"
            path.write_text(json.dumps(order))
            command = [sys.executable, "-m", "benchmarks.drops.clients", str(path)]
            self._crowds.append(await self._actor("clients", *command))

    async def tell(self, word: str, **more: Any) -> list[dict[str, Any]]:
        """Say a word to all processes of clients, and return their answers."""
        for crowd in self._crowds:
            await crowd.tell(word=word, **more)
        return [await crowd.hear() for crowd in self._crowds]

    async def come(self, *, at_once: bool = False) -> int:
        """Let all clients come; return how many are live."""
        answers = await self.tell("come", at_once=at_once, patience=PATIENCE)
        live: int = sum(answer["live"] for answer in answers)
        return live

    async def publish(self) -> None:
        """Begin to publish."""
        assert self._publisher is not None
        await self._publisher.tell(word="go")
        await self._publisher.hear()

    async def fates(self) -> dict[str, Sent]:
        """End publishing; return what was sent to each room."""
        assert self._publisher is not None
        await self._publisher.tell(word="stop")
        rooms = await self._publisher.hear()
        return {name: Sent(room["began"], room["fates"]) for name, room in rooms.items()}

    async def settle(self) -> int:
        """Let nobody be cut off any more; return how many are live when all are back and have read the rest."""
        until = time.monotonic() + self.plan.settle
        live: int = sum(answer["live"] for answer in await self.tell("settle", patience=PATIENCE))
        await asyncio.sleep(max(1.0, until - time.monotonic()))
        return live

    async def count(self, outcome: Outcome, sent: dict[str, Sent], faults: Faults | None = None) -> None:
        """Count what the clients report."""
        for messages in sent.values():
            outcome.fates.update(messages.fates)
        outcome.origin = min(messages.began[0] for messages in sent.values() if messages.began)
        for report in await self.tell("report"):
            for client in report["clients"]:
                outcome.tally.add(client, sent, faults.losses if faults is not None else ())
            outcome.visits += [Visit(*visit) for visit in report["visits"]]
            outcome.ends.update(report["counts"])
            outcome.client_cpu += report["cpu"]
        outages = faults.outages if faults is not None else ()
        outcome.clear = [visit.seconds for visit in apart_from(outcome.visits, outages)]

    def note(self, outcome: Outcome, samples: Samples) -> None:
        """Take over what was sampled."""
        outcome.cpu, outcome.busy = samples.cpu, samples.busy
        outcome.commands, outcome.statistics = samples.commands, samples.statistics


async def drops(plan: Plan, side: Side, folder: Path) -> Outcome:
    """Cut off each client again and again, perhaps with faults."""
    outcome = Outcome("drops", side, plan)
    async with Scene(side, plan, folder) as scene:
        rooms_of = [[scene.rooms[number % plan.rooms]] for number in range(plan.clients)]
        await scene.invite(Habits(stay=plan.stay, away=plan.away), rooms_of)
        await scene.come()
        faults = scene.faults()
        stopped = asyncio.Event()
        async with Samples(scene.nodes, scene.servers) as samples:
            await scene.publish()
            async with asyncio.TaskGroup() as group:
                group.create_task(faults.run(stopped))
                await asyncio.sleep(plan.seconds)
                stopped.set()
            sent = await scene.fates()
            outcome.live = await scene.settle()
        await scene.count(outcome, sent, faults)
        outcome.faults = faults.log
        scene.note(outcome, samples)
    return outcome


async def herd(plan: Plan, side: Side, folder: Path) -> Outcome:
    """Kill the server of all clients, publish on for a while; then all come back at once to a fresh process."""
    outcome = Outcome("herd", side, plan)
    async with Scene(side, plan, folder) as scene:
        [server] = scene.servers
        rooms_of = [[scene.rooms[number % plan.rooms]] for number in range(plan.clients)]
        await scene.invite(Habits(gathers=True), rooms_of)
        await scene.come()
        await scene.publish()
        await asyncio.sleep(plan.seconds)
        await server.kill()
        await scene.tell("gone", patience=PATIENCE)
        await asyncio.sleep(plan.settle)
        sent = await scene.fates()
        await server.start()
        async with Samples(scene.nodes, scene.servers) as samples:
            [redis] = scene.nodes
            watch = ScriptWatch(redis)
            try:
                outcome.live = await scene.come(at_once=True)
                await asyncio.sleep(1.0)
            finally:
                await asyncio.to_thread(watch.stop)
        await scene.count(outcome, sent)
        outcome.reads, outcome.scripts = watch.count.reads, watch.count.scripts
        if outcome.visits:
            begin = min(visit.begin for visit in outcome.visits)
            outcome.back = max(visit.end for visit in outcome.visits) - begin
        scene.note(outcome, samples)
    return outcome


async def cuts(number: int, plan: Plan, side: Side, folder: Path) -> Outcome:
    """Cut connections of clients of three groups at random bytes, until there were so many cuts."""
    outcome = Outcome("cuts", side, plan)
    async with Scene(side, plan, folder) as scene:
        rooms_of = [
            [scene.rooms[(index + step) % plan.rooms] for step in range(CUT_GROUPS)]
            for index in range(plan.clients)
        ]
        await scene.invite(Habits(away=0.02, budget=CUT_BYTES), rooms_of)
        async with Samples(scene.nodes, scene.servers) as samples:
            # With a budget of a few bytes a client may take several attempts to be live for the first time.
            await scene.come()
            await scene.publish()
            await scene.tell("cuts", number=number)
            sent = await scene.fates()
            outcome.live = await scene.settle()
        await scene.count(outcome, sent)
        scene.note(outcome, samples)
    return outcome


async def held(plan: Plan, side: Side, folder: Path) -> Outcome:
    """Open streams, each after a query in a database, and see what the server holds for them."""
    outcome = Outcome("open", side, plan)
    database = folder / "database"
    async with Scene(side, plan, folder, database) as scene:
        [server] = scene.servers
        before = resources_of_group(server.group, database)
        await scene.invite(Habits(), [[scene.rooms[number % plan.rooms]] for number in range(plan.clients)])
        async with Samples(scene.nodes, scene.servers) as samples:
            outcome.live = await scene.come()
            await scene.publish()
            await asyncio.sleep(plan.seconds)
            sent = await scene.fates()
            await scene.settle()
        after = resources_of_group(server.group, database)
        outcome.held = Resources(
            after.threads - before.threads,
            after.bytes - before.bytes,
            after.descriptors - before.descriptors,
            after.databases,
        )
        await scene.count(outcome, sent)
        scene.note(outcome, samples)
    return outcome


def cuts_plan(plan: Plan) -> Plan:
    """The size of a run of cuts on the servers of another plan."""
    return replace(plan, clients=CUT_CLIENTS, rooms=CUT_ROOMS, rate=CUT_RATE, settle=3.0, faults=())
