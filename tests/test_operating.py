"""`manage.py asyncq` on a running site: it shows what is there, as the page about operating says."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from tests.code_blocks import block
from tests.consumers import installed
from tests.contract import DEADLINE, started
from tests.operating import asyncq, shape, transcript
from tests.processes.handles import Process
from tests.test_servers import Served, Visit

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="there are no signals"),
]

PAGE = "docs/operating.md"
CAPACITY = 10
#: For processes on a busy machine; nobody is missing, so nothing takes so long.
PATIENT = ("--timeout", "20")


class Site:
    """Two Daphnes, a uvicorn and a worker; the layer of a fifth process, this one."""

    def __init__(self, layer: AsyncQueueChannelLayer, servers: list[Served], worker: Process) -> None:
        self.layer = layer
        self.daphne, self.second, self.uvicorn = servers
        self.servers = servers
        self.worker = worker
        self._load: asyncio.Task[None] | None = None

    @staticmethod
    def name(process: Process) -> str:
        role = "runworker" if process.name == "worker" else process.name
        return f"{socket.gethostname()}:{process.process.pid}:{role}"

    @property
    def names(self) -> list[str]:
        return sorted(map(self.name, [*self.servers, self.worker]))

    async def say(self, room: str, count: int) -> None:
        for number in range(count):
            await self.layer.group_send(room, {"type": "room.message", "number": number})

    async def begin_load(self) -> None:
        async def load() -> None:
            while True:
                await self.say("lobby", 1)
                await asyncio.sleep(0.02)

        self._load = await started(load())

    async def end_load(self) -> None:
        if self._load is not None:
            self._load.cancel()
            await asyncio.wait([self._load])
            self._load = None

    async def figures(self) -> dict[str, dict[str, Any]]:
        said = await asyncq("status", "--json", *PATIENT)
        assert said.status == 0
        return {each["process"]: each for each in said.json["processes"]}


class Guest:
    """A client and the channel of its consumer."""

    def __init__(self, visit: Visit, channel: str) -> None:
        self.visit = visit
        self.channel = channel


async def enter(stack: AsyncExitStack, server: Served, path: str) -> Guest:
    visit = await stack.enter_async_context(server.visit(path))
    return Guest(visit, (await visit.hears())["channel"])


@pytest.fixture
async def site(redis_url: str, prefix: str) -> AsyncIterator[Site]:
    """The site, which nobody has entered yet."""
    config: dict[str, Any] = {"hosts": [redis_url], "prefix": prefix, "capacity": CAPACITY, "expiry": 600}
    environment = {
        "DJANGO_SETTINGS_MODULE": "tests.processes.operated_settings",
        "TEST_LAYER_CONFIG": json.dumps(config),
    }
    servers = [
        Served(kind, "tests.processes.operated:application") for kind in ("daphne", "daphne", "uvicorn")
    ]
    worker = Process("worker")
    everything: list[Process] = [*servers, worker]
    async with installed(AsyncQueueChannelLayer(**config)) as layer:
        site = Site(layer, servers, worker)
        try:
            for server in servers:
                await server.start(server.command(), **environment)
            await worker.start([sys.executable, "-m", "django", "runworker", "words"], **environment)
            for server in servers:
                await server.answers(within=90)
            yield site
            await site.end_load()
            for server in servers:
                assert await server.get("release") == "released"
            for server in servers:
                server.signal(signal.SIGTERM)
                async with asyncio.timeout(DEADLINE):
                    await server.process.wait()
                await server.ended()
                assert "Traceback" not in server.errors, server.errors
        finally:
            await site.end_load()
            for process in everything:
                if process.process.returncode is None:
                    process.process.kill()
                await process.ended()


async def test_site_under_load(site: Site) -> None:
    """
    The commands show what the test has opened, and nothing else, while messages are sent; they look as the page
    says. A process that is stopped is named.
    """
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await enter(stack, site.daphne, "room/lobby")
        slow = await enter(stack, site.daphne, "slow/news")
        await enter(stack, site.second, "room/lobby")
        foreign = await enter(stack, site.second, "foreign/news")
        for _ in range(3):
            await enter(stack, site.uvicorn, "room/games")
        await enter(stack, site.uvicorn, "room/lobby")
        # Each of the slow ones takes one message; ten wait then, and five find no place.
        await site.say("news", 1)
        for guest in (slow, foreign):
            assert "taken" in await guest.visit.hears()
        await site.say("news", CAPACITY + 5)
        await site.layer.group_add("games", "words")
        await site.begin_load()
        async with asyncio.timeout(3 * DEADLINE):
            while True:
                figures = await site.figures()
                overflows = [each["dropped"].get("overflow", 0) for each in figures.values()]
                if len(figures) == 4 and sum(overflows) >= 10:
                    break

        assert sorted(figures) == site.names
        opened = {site.daphne: (3, 2), site.second: (2, 2), site.uvicorn: (4, 2), site.worker: (1, 0)}
        for process, counts in opened.items():
            found = figures[site.name(process)]
            assert (found["channels"], found["groups"]) == counts, process.name
            assert [link["address"] for link in found["links"]] == [site.layer.options.hosts[0].address]
        for process, dropped in ((site.daphne, 5), (site.second, 5), (site.uvicorn, 0), (site.worker, 0)):
            found = figures[site.name(process)]
            assert found["dropped"] == ({"overflow": dropped} if dropped else {}), process.name
            assert found["told"] == ({"overflow": 1} if dropped else {}), process.name
            assert (found["per_second"] > 0) is (process is not site.worker), process.name
        said = await asyncq("groups", "--json", *PATIENT)
        rows = [(row["group"], row["members"], row["processes"]) for row in said.json["groups"]]
        assert rows == [("lobby", 4, 3), ("games", 3, 1), ("news", 2, 2)] and said.status == 0
        rates = {row["group"]: row["per_second"] for row in said.json["groups"]}
        assert rates["lobby"] > 0 and rates["games"] == 0

        await site.end_load()
        said = await asyncq("channels", "--slow", "--json", *PATIENT)
        slow_rows = [
            (row["channel"], row["waiting"], row["capacity"], row["reader"], row["process"])
            for row in said.json["channels"]
        ]
        assert sorted(slow_rows) == sorted(
            [
                (slow.channel, 10, 10, "tests.processes.operated.Slow", site.name(site.daphne)),
                (foreign.channel, 10, 10, "receive()", site.name(site.second)),
            ]
        )
        assert all(0 < row["oldest"] < 600 for row in said.json["channels"]) and said.json["count"] == 2
        said = await asyncq("groups", "games", "--json", *PATIENT)
        assert (said.json["count"], said.json["normal_channels"]) == (3, ["words"])

        arguments, output = transcript(block(PAGE, "console", having="asyncq groups\n"))
        said = await asyncq(*arguments, *PATIENT)
        assert (shape(said.text), said.status) == (shape(output), 0)
        # These are in the order of process ids, or of ages.
        for text in (
            block(PAGE, "console", having="asyncq status\n"),
            block(PAGE, "console", having="asyncq groups news\n"),
            block(PAGE, "console", having="asyncq channels --slow\n"),
        ):
            arguments, output = transcript(text)
            said = await asyncq(*arguments, *PATIENT)
            assert sorted(shape(said.text)) == sorted(shape(output)), said.text
            assert said.status == 0
        said = await asyncq("groups", "l*", *PATIENT)
        assert [line.split()[0] for line in said.lines] == ["GROUP", "lobby"]

        site.uvicorn.signal(signal.SIGSTOP)
        try:
            said = await asyncq("status", "--json", "--timeout", "4")
            assert said.status == 1
            assert said.json["missing"] == [
                {
                    "process": site.name(site.uvicorn),
                    "session": said.json["missing"][0]["session"],
                    "reason": "no answer",
                }
            ]
            assert len(said.json["processes"]) == 3
            said = await asyncq("groups", "games", "--timeout", "4")
        finally:
            site.uvicorn.signal(signal.SIGCONT)
        assert said.status == 1
        assert said.lines[-1] == f"missing: {site.name(site.uvicorn)} (no answer)"
        for server in site.servers:
            await server.get("release")
