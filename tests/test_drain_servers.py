"""Clients leave one after the other before their server stops: under real servers, by SIGTERM or the command."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.stopping.connections import LAST_SLICE
from tests import contract
from tests.example import get
from tests.processes.handles import Process
from tests.sse import Comment, over_http
from tests.test_event_stream_servers import has_worker_of_gunicorn
from tests.test_servers import Served

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="there are no signals"),
]

APPLICATION = "tests.processes.drains:application"
SETTINGS = "tests.processes.stream_settings"
SECONDS = 8.0
#: Seconds beyond those of the drain after which the process hangs.
SOON = 60.0
#: Seconds by which a client may leave before it is due. How much later it leaves is a matter of the machine here:
#: `test_drained.py` has the exact pace.
EARLY = 0.2
GROUP = "room"
#: Seconds from one message to the next with 200 clients, which all get each of them.
EVERY = 0.5


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def uvicorn_worker() -> str:
    """The worker class of uvicorn for gunicorn, "" if it is not here. It has moved to a package of its own."""
    for module in ("uvicorn_worker", "uvicorn.workers"):
        if has("gunicorn") and has(module):
            return f"{module}.UvicornWorker"
    return ""


#: For each kind: what tells it to stop, and the close code that its clients see.
KINDS: dict[str, tuple[str, int, bool]] = {
    "uvicorn": ("signal", 1012, True),
    "uvicorn-workers": ("signal", 1012, True),
    "daphne": ("signal", 4012, True),
    "gunicorn": ("signal", 1012, has_worker_of_gunicorn()),
    "gunicorn-uvicorn": ("signal", 1012, bool(uvicorn_worker())),
    "hypercorn-0": ("signal", 1012, has("hypercorn")),
    "hypercorn": ("command", 1012, has("hypercorn")),
    "granian": ("command", 1012, has("granian")),
}


def kinds(*how: str) -> list[Any]:
    """The kinds of servers that are told to stop in one of these ways."""
    return [
        pytest.param(kind, marks=pytest.mark.skipif(not is_here, reason=f"no {kind} here"))
        for kind, (way, _, is_here) in KINDS.items()
        if way in how
    ]


class DrainedServer(Served):
    """The drained site under a server, at a port."""

    def __init__(self, kind: str, config: dict[str, Any], seconds: float = SECONDS, **more: str) -> None:
        super().__init__(kind, APPLICATION)
        self.seconds = seconds
        self.environment = {
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "TEST_LAYER_CONFIG": json.dumps(config),
            "TEST_URLS": "tests.processes.drains",
            "TEST_SECONDS": str(seconds),
            **more,
        }

    def command(self) -> Sequence[str]:
        name, _, workers = self.name.partition("-")
        python = [sys.executable, "-m", name]
        # As the page about deployment says: longer than the drain.
        bind = ["--graceful-timeout", f"{self.seconds + 20:.0f}", "-b", f"127.0.0.1:{self.port}"]
        match name, workers:
            case "uvicorn", _:
                more = ["--workers", "2"] if workers else ["--backlog", "4096"]
                return [*python, "--port", str(self.port), *more, APPLICATION]
            case "granian", _:
                limits = ["--backlog", "4096", "--backpressure", "5000"]
                return [*python, "--interface", "asgi", "--port", str(self.port), *limits, APPLICATION]
            case "gunicorn", _:
                worker = uvicorn_worker() if workers else "asgi"
                limits = ["--worker-connections", "5000", "--backlog", "4096"]
                return [*python, "-k", worker, *limits, *bind, APPLICATION]
            case "hypercorn", "0":
                return [*python, "--workers", "0", *bind, APPLICATION]
            case "hypercorn", _:
                return [*python, *bind, APPLICATION]
        endpoint = f"tcp:port={self.port}:interface=127.0.0.1:backlog=4096"
        return [*python, "-e", endpoint, APPLICATION]

    async def run(self) -> None:
        await self.start(self.command(), **self.environment)
        await self.answers()

    async def page(self, path: str) -> str:
        _, text = await asyncio.to_thread(get, self.port, f"/{path}/")
        return text

    async def drain(self, *arguments: str) -> Process:
        """Run the command to its end."""
        command = Process("asyncq drain")
        await command.start(
            [sys.executable, "-m", "django", "asyncq", "drain", *arguments], **self.environment
        )
        async with asyncio.timeout(self.seconds + SOON + 20):
            await command.process.wait()
        await command.ended()
        return command

    async def stops(self) -> int:
        """Have it stop as its operator must; return the exit status."""
        way, _, _ = KINDS[self.name]
        if way == "command":
            command = await self.drain("--process", str(self.process.pid))
            assert command.process.returncode == 0, command.errors
        self.signal(signal.SIGTERM)
        async with asyncio.timeout(self.seconds + SOON):
            code = await self.process.wait()
        await self.ended()
        return code


MakeServer = Callable[..., Any]


@pytest.fixture
async def make_server(redis_url: str, prefix: str) -> AsyncIterator[MakeServer]:
    """Start servers of a kind; they are gone at the end, and have complained of nothing."""
    started: list[DrainedServer] = []

    async def make_server(kind: str, seconds: float = SECONDS, **more: str) -> DrainedServer:
        server = DrainedServer(kind, {"hosts": [redis_url], "prefix": prefix}, seconds, **more)
        started.append(server)
        await server.run()
        return server

    yield make_server
    for server in started:
        if server.process.returncode is None:
            server.signal(signal.SIGINT)
    try:
        for server in started:
            async with asyncio.timeout(SOON):
                await server.process.wait()
    finally:
        for server in started:
            await server.kill()
    for server in started:
        for complaint in ("Traceback", "Task was destroyed", "never retrieved", "never awaited", "ERROR"):
            assert complaint not in server.errors, server.errors


@pytest.fixture
async def layer(redis_url: str, prefix: str) -> AsyncIterator[AsyncQueueChannelLayer]:
    layer = AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix)
    yield layer
    await layer.close()


class Visitor:
    """A client that stays: when a server ends its connection, it comes back to the other one."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.resets: list[object] = []
        self.position = ""
        self.is_here = asyncio.Event()
        #: When the first connection ended, in seconds of the event loop, and what was said.
        self.ended_at = 0.0
        self.retry: int | None = None
        self.code: int | None = None

    async def stay(self, *ports: int) -> None:
        """Visit these servers, one after the other."""
        for port in ports:
            await self.visit(port)
            if not self.ended_at:
                self.ended_at = asyncio.get_running_loop().time()
                assert self.retry is not None, "it was not told when to come back"
            await asyncio.sleep((self.retry or 0) / 1000)

    async def visit(self, port: int) -> None:
        raise NotImplementedError


class Stream(Visitor):
    """An event stream."""

    async def visit(self, port: int) -> None:
        client = await over_http(port, f"/stream/{GROUP}/", self.position)
        client.parser.retry = None
        try:
            while (item := await client.next(120)) is not None:
                if item == Comment("here"):
                    client.parser.retry = None
                    self.is_here.set()
                elif not isinstance(item, Comment):
                    if item.type == "reset":
                        self.resets.append(item.json)
                    else:
                        self.numbers.append(item.json["n"])
                self.position = client.last_id
        finally:
            self.retry = client.parser.retry
            client.abort()


class Socket(Visitor):
    """A WebSocket."""

    async def visit(self, port: int) -> None:
        query = f"group={GROUP}&since={self.position}" if self.position else f"group={GROUP}"
        url = f"ws://127.0.0.1:{port}/room/?{query}"
        options: dict[str, Any] = {"ping_interval": None, "compression": None, "proxy": None}
        async with connect(url, open_timeout=60, close_timeout=1, **options) as socket:
            while True:
                try:
                    frame = json.loads(await socket.recv())
                except ConnectionClosed:
                    break
                self.position = frame.get("id", self.position)
                if "m" in frame:
                    self.numbers.append(frame["m"]["n"])
                elif frame.get("type") == "resumed":
                    if not frame["recovered"]:
                        self.resets.append(frame)
                    self.is_here.set()
                elif frame.get("type") == "retry":
                    self.retry = frame["ms"]
            if self.code is None:
                self.code = socket.close_code


def spread(moments: Sequence[float]) -> list[int]:
    """Return how many of the moments lie in each tenth of the time from the first to the last one."""
    begin, end = min(moments), max(moments)
    tenths = Counter(min(int(10 * (moment - begin) / (end - begin)), 9) for moment in moments)
    return [tenths[number] for number in range(10)]


async def come(server: DrainedServer, other: DrainedServer, count: int) -> tuple[list[Visitor], list[Any]]:
    """Have clients come, half of them by event streams; return them, and their tasks."""
    visitors: list[Visitor] = [Stream() if number % 2 else Socket() for number in range(count)]
    tasks = []
    for number, visitor in enumerate(visitors):
        tasks.append(asyncio.create_task(visitor.stay(server.port, other.port)))
        if number % 50 == 49:
            await catch_up(visitor, tasks[-1])
    for visitor, task in zip(visitors, tasks, strict=True):
        await catch_up(visitor, task)
        visitor.is_here.clear()
    return visitors, tasks


async def catch_up(visitor: Visitor, task: asyncio.Task[None]) -> None:
    """Wait until a client has caught up; raise its error if it has one."""
    arriving = asyncio.create_task(visitor.is_here.wait())
    await asyncio.wait([arriving, task], timeout=60, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    assert arriving.done(), "it has not caught up within a minute"


async def check_drain(
    make_server: MakeServer, layer: AsyncQueueChannelLayer, kind: str, count: int, seconds: float, **more: str
) -> None:
    server, other = await make_server(kind, seconds, **more), await make_server("uvicorn", **more)
    visitors, tasks = await come(server, other, count)
    stopped = asyncio.Event()
    sent = 0

    async def publish() -> None:
        nonlocal sent
        while not stopped.is_set():
            await layer.group_send(GROUP, {"type": "test.message", "n": sent})
            sent += 1
            await asyncio.sleep(EVERY * count / 200)

    publishing = asyncio.create_task(publish())
    begin = asyncio.get_running_loop().time()
    assert await server.stops() == 0, server.errors
    for visitor, task in zip(visitors, tasks, strict=True):
        await catch_up(visitor, task)  # it is back, at the other one
    stopped.set()
    await publishing

    def have_all() -> bool:
        return all(visitor.numbers[-1:] == [sent - 1] for visitor in visitors)

    await contract.eventually(have_all, "the last message")
    assert all(visitor.numbers == list(range(sent)) and not visitor.resets for visitor in visitors)
    moments = sorted(visitor.ended_at - begin for visitor in visitors)
    for number, moment in enumerate(moments):
        assert moment > (1 - LAST_SLICE) * seconds * number / count - EARLY, (number, spread(moments))
    assert {visitor.code for visitor in visitors if isinstance(visitor, Socket)} == {KINDS[kind][1]}
    print(
        f"\n{kind}: {count} ends within {moments[-1] - moments[0]:.1f} s, "
        f"{spread(moments)} in tenths, {sent} messages"
    )
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("kind", kinds("signal", "command"))
async def test_clients_leave_one_after_the_other(
    make_server: MakeServer, layer: AsyncQueueChannelLayer, kind: str
) -> None:
    """
    Nobody leaves before it is due, clients are told when to come back, and miss nothing.

    The process ends with the exit status 0.
    """
    await check_drain(make_server, layer, kind, 200, SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", kinds("signal", "command"))
async def test_a_thousand_clients(make_server: MakeServer, layer: AsyncQueueChannelLayer, kind: str) -> None:
    """So it is with a thousand. Development mode would cost the servers half of their time."""
    await check_drain(make_server, layer, kind, 1000, 25.0, PYTHONDEVMODE="")


async def answer(server: DrainedServer, path: str, expected: str) -> None:
    """Wait until a page says this."""
    async with asyncio.timeout(contract.DEADLINE):
        while await server.page(path) != expected:  # noqa: ASYNC110  (another process)
            await asyncio.sleep(contract.POLL)


@pytest.mark.parametrize("kind", ["uvicorn", "daphne"])
async def test_newcomers_are_served(
    make_server: MakeServer, layer: AsyncQueueChannelLayer, kind: str
) -> None:
    """During a drain the process is not ready, and serves those who come all the same, until its last slice."""
    server = await make_server(kind, 4.0)
    assert await server.page("ready") == "ready"
    first = [await over_http(server.port, f"/stream/{GROUP}/") for _ in range(2)]
    for client in first:
        await client.here()
    server.signal(signal.SIGTERM)
    await answer(server, "ready", "draining")
    begin = asyncio.get_running_loop().time()
    late = await over_http(server.port, f"/stream/{GROUP}/")
    await late.here()
    await layer.group_send(GROUP, {"type": "test.message", "n": 1})
    assert (await late.event()).json["n"] == 1
    ends: list[float] = []
    for client in (*first, late):
        client.parser.retry = None
        await client.end()
        assert client.parser.retry is not None
        client.abort()
        ends.append(asyncio.get_running_loop().time() - begin)
    assert ends[-1] == max(ends) and ends[-1] > 2.5
    assert await server.ended() == 0


@pytest.mark.parametrize("kind", ["uvicorn", "daphne"])
async def test_second_sigterm(make_server: MakeServer, kind: str) -> None:
    """A second SIGTERM goes straight to the server; one that follows at once is the same order."""
    server = await make_server(kind, 600.0)
    clients = [await over_http(server.port, f"/stream/{GROUP}/") for _ in range(2)]
    for client in clients:
        await client.here()
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGTERM)
    await answer(server, "ready", "draining")
    await asyncio.sleep(1.2)
    assert await server.page("ready") == "draining"
    server.signal(signal.SIGTERM)
    for client in clients:
        client.abort()
    assert await server.ended() == 0


@pytest.mark.parametrize("kind", ["uvicorn", "daphne"])
async def test_consumers_that_talk_on(
    make_server: MakeServer, layer: AsyncQueueChannelLayer, kind: str
) -> None:
    """Consumers that send until they see the disconnect are closed without a line in the server's log."""
    server = await make_server(kind, 2.0)
    url = f"ws://127.0.0.1:{server.port}/plain/"
    sockets = [await connect(url, ping_interval=None, proxy=None, max_queue=None) for _ in range(40)]
    for socket in sockets:
        socket.transport.pause_reading()
    talking = True

    async def talk() -> None:
        while talking:
            await layer.group_send("plain", {"type": "test.message", "text": "on and on"})
            await asyncio.sleep(0.01)

    task = asyncio.create_task(talk())
    server.signal(signal.SIGTERM)
    await asyncio.sleep(1.5)
    # Only now they see the close, and answer it.
    for socket in sockets:
        socket.transport.resume_reading()
    for socket in sockets:
        await socket.wait_closed()
        assert socket.close_code == KINDS[kind][1]
    talking = False
    await task
    assert await server.ended() == 0


async def test_daphne_stands_still(make_server: MakeServer) -> None:
    """Clients of Daphne get what they are told also where its event loop stands still right after that."""
    server = await make_server("daphne", 0.2, TEST_STANDSTILL="1")
    url = f"ws://127.0.0.1:{server.port}/room/?group={GROUP}"
    sockets = [await connect(url, ping_interval=None, proxy=None) for _ in range(2)]
    for socket in sockets:
        assert json.loads(await socket.recv())["type"] == "resumed"
    server.signal(signal.SIGTERM)
    for socket in sockets:
        frames = [json.loads(frame) async for frame in until_close(socket)]
        assert [frame["type"] for frame in frames] == ["retry"]
        assert socket.close_code == KINDS["daphne"][1]
    assert await server.ended() == 0


async def until_close(socket: ClientConnection) -> AsyncIterator[str | bytes]:
    """Yield the frames until the connection is closed, in whatever way."""
    try:
        while True:
            yield await socket.recv()
    except ConnectionClosed:
        pass


async def test_command_first(make_server: MakeServer) -> None:
    """After the command a process still serves, sends newcomers away, and stops at SIGTERM without delay."""
    server = await make_server("uvicorn", 600.0)
    client = await over_http(server.port, f"/stream/{GROUP}/")
    await client.here()
    command = await server.drain("--seconds", "0.5")
    assert command.process.returncode == 0 and ": 1 open, 0.5 s" in command.errors, command.errors
    await client.end()
    client.abort()
    assert await server.page("ready") == "draining"
    late = await over_http(server.port, f"/stream/{GROUP}/")
    assert await late.end() == [] and late.parser.retry is not None
    late.abort()
    server.signal(signal.SIGTERM)
    assert await server.ended() == 0


async def test_command_for_nobody(make_server: MakeServer) -> None:
    """The command fails when no process is meant."""
    server = await make_server("uvicorn")
    command = await server.drain("--process", "elsewhere:*")
    assert command.process.returncode == 1
    assert "CommandError: no process of elsewhere:* has answered within 10 s" in command.errors
    assert await server.page("ready") == "ready"


async def test_server_in_a_thread(redis_url: str, prefix: str) -> None:
    """A server in a thread is told that it gets no signal, and drains by the command."""
    server = DrainedServer("uvicorn", {"hosts": [redis_url], "prefix": prefix}, 0.5)
    program = f"""
import threading, uvicorn
server = uvicorn.Server(uvicorn.Config("{APPLICATION}", port={server.port}))
thread = threading.Thread(target=server.run)
thread.start()
import sys; sys.stdin.read()
server.should_exit = True
thread.join()
"""
    await server.start([sys.executable, "-c", program], **server.environment)
    await server.answers()
    client = await over_http(server.port, f"/stream/{GROUP}/")
    await client.here()
    assert "SIGTERM begins no drain here: the server runs in a thread" in server.errors
    command = await server.drain("--process", str(server.process.pid))
    assert command.process.returncode == 0, command.errors
    await client.end()
    client.abort()
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert await server.ended() == 0
    assert "Traceback" not in server.errors, server.errors
