"""Event streams under real servers: how they end, what they cost, and clients that do not read."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from tests import contract
from tests.contract import DEADLINE
from tests.example import get
from tests.processes.handles import Process
from tests.sse import Connection, Event, over_http
from tests.test_servers import Served

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="the figures come from /proc"),
]

APPLICATION = "tests.processes.streams:application"
#: Seconds in which a process with open streams ends. (gunicorn's parent looks after its workers each second.)
SOON = 15.0


def has_worker_of_gunicorn() -> bool:
    return importlib.util.find_spec("gunicorn") is not None and (
        importlib.util.find_spec("gunicorn.workers.gasgi") is not None
    )


KINDS = [
    "uvicorn",
    "daphne",
    pytest.param(
        "granian",
        marks=pytest.mark.skipif(importlib.util.find_spec("granian") is None, reason="no granian here"),
    ),
    pytest.param(
        "gunicorn",
        marks=pytest.mark.skipif(not has_worker_of_gunicorn(), reason="no gunicorn with an ASGI worker here"),
    ),
]


class StreamServer(Served):
    """The site with event streams under a server, at a port."""

    def __init__(self, kind: str, layer: AsyncQueueChannelLayer) -> None:
        super().__init__(kind, APPLICATION)
        self.layer = layer

    async def run(self, config: dict[str, Any], **more: str) -> None:
        settings = "tests.processes.stream_settings"
        more = {"TEST_LAYER_CONFIG": json.dumps(config), "DJANGO_SETTINGS_MODULE": settings, **more}
        await self.start(self.command(), **more)
        await self.answers()

    async def stream(self, path: str, last_id: str = "") -> Connection:
        return await over_http(self.port, f"/{path}", last_id)

    async def figures(self) -> dict[str, Any]:
        _, text = await asyncio.to_thread(get, self.port, "/figures/")
        figures: dict[str, Any] = json.loads(text)
        return figures

    async def figures_with(self, *, channels: int) -> dict[str, Any]:
        """Return the figures when there are this many channels."""
        async with asyncio.timeout(DEADLINE):
            while (figures := await self.figures())["channels"] != channels:  # noqa: ASYNC110  (another process)
                await asyncio.sleep(contract.POLL)
        return figures

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Send a signal; return after how many seconds the process has ended."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.signal(number)
        async with asyncio.timeout(SOON):
            await self.process.wait()
        took = loop.time() - began
        await self.ended()
        return took


MakeServer = Callable[..., Any]


@pytest.fixture
async def make_server(redis_url: str, prefix: str) -> AsyncIterator[MakeServer]:
    """Start servers of a kind; they are gone at the end, and have complained of nothing."""
    started: list[StreamServer] = []
    layers: list[AsyncQueueChannelLayer] = []

    async def make_server(kind: str, config: dict[str, Any] | None = None, **more: str) -> StreamServer:
        settings = {"hosts": [redis_url], "prefix": prefix, **(config or {})}
        layers.append(AsyncQueueChannelLayer(**settings))
        server = StreamServer(kind, layers[-1])
        started.append(server)
        await server.run(settings, **more)
        return server

    yield make_server
    for server in started:
        if server.process.returncode is None:
            await server.stop()
        for complaint in ("Traceback", "Task was destroyed", "never retrieved", "never awaited", "ERROR"):
            assert complaint not in server.errors, server.errors
    for layer in layers:
        await layer.close()


async def say(server: StreamServer, group: str, *numbers: int, **more: Any) -> None:
    for number in numbers:
        await server.layer.group_send(group, {"type": "test.message", "n": number, **more})


@pytest.mark.parametrize("kind", KINDS)
async def test_streams_and_their_ends(make_server: MakeServer, kind: str) -> None:
    """
    Each event comes at once. At SIGTERM every stream gets `retry:` and its last chunk, and the process ends.
    """
    server = await make_server(kind)
    clients = [await server.stream(f"stream/room.{number}/?database=1") for number in range(3)]
    for number, client in enumerate(clients):
        assert "content-type: text/event-stream; charset=utf-8" in client.head
        assert "content-length" not in client.head and "content-encoding: identity" in client.head
        await client.here()
        await say(server, f"room.{number}", number)
        assert (await client.event()).json["n"] == number
        client.parser.retry = None
    stopping = asyncio.create_task(server.stop())
    for client in clients:
        assert await client.end() == []
        assert client.parser.retry is not None and 200 <= client.parser.retry <= 400
        await client.leave()
    await stopping


@pytest.mark.parametrize("kind", ["uvicorn", "daphne"])
async def test_interrupt(make_server: MakeServer, kind: str) -> None:
    """Ctrl-C ends streams and server too."""
    server = await make_server(kind)
    client = await server.stream("stream/room/")
    await client.here()
    client.parser.retry = None
    stopping = asyncio.create_task(server.stop(signal.SIGINT))
    assert await client.end() == [] and client.parser.retry is not None
    await stopping
    await client.leave()


@pytest.mark.parametrize("kind", ["uvicorn", "daphne"])
async def test_client_leaves(make_server: MakeServer, kind: str) -> None:
    """When a client has gone, so have its channel and its membership, and no error is logged."""
    server = await make_server(kind)
    clients = [await server.stream("stream/room/") for _ in range(3)]
    for client in clients:
        await client.here()
    assert (await server.figures())["groups"] == ["room"]
    for client in clients:
        await client.leave()
    assert (await server.figures_with(channels=0))["groups"] == []


async def test_server_is_killed(make_server: MakeServer) -> None:
    """After kill -9 each client gets from another server what it has missed, once and in order."""
    first, second = await make_server("uvicorn"), await make_server("uvicorn")
    client = await first.stream("stream/room/")
    await client.here()
    await say(first, "room", *range(5))
    seen = [(await client.event()).json["n"] for _ in range(5)]
    await first.kill()
    await say(second, "room", *range(5, 10))
    back = await second.stream("stream/room/", client.last_id)
    seen += [event.json["n"] for event in await back.here()]
    await say(second, "room", 10)
    seen.append((await back.event()).json["n"])
    assert seen == list(range(11))
    await client.leave()
    await back.leave()


MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.common.CommonMiddleware",
    "tests.processes.streams.sync_only",
]


@pytest.mark.parametrize(
    ("path", "middleware"),
    [
        ("stream/room/", []),
        ("stream/room/?database=1", []),
        ("stream/room/?database=1", MIDDLEWARE),
        ("sync/room/", []),
        ("sync/room/", MIDDLEWARE),
    ],
)
async def test_threads_and_connections_are_let_go(
    make_server: MakeServer, tmp_path: Path, path: str, middleware: list[str]
) -> None:
    """
    Open streams cost a socket each: neither a thread nor a connection to the database.

    So it is with sync views and sync middleware too, and all of them stream.
    """
    database = str(tmp_path / "db.sqlite3")
    server = await make_server("uvicorn", TEST_DATABASE=database, TEST_MIDDLEWARE=json.dumps(middleware))
    clients = [await server.stream(path) for _ in range(30)]
    for client in clients:
        await client.here()
    figures = await server.figures()
    assert figures["channels"] == 30
    assert figures["threads"] < 10
    assert figures["files"] < 30 + 20
    for client in clients:
        await client.leave()


async def test_client_that_does_not_read(make_server: MakeServer) -> None:
    """A stream waits for its client, and then gets what it has missed meanwhile: all of it, in order."""
    server = await make_server("uvicorn", {"capacity": 2})
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", server.port))
    slow.sendall(b"GET /stream/room/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    watcher = await server.stream("stream/room/")
    await watcher.here()
    await server.figures_with(channels=2)
    await say(server, "room", *range(600), pad="x" * 10_000)
    assert [(await watcher.event()).json["n"] for _ in range(600)] == list(range(600))
    slow.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=slow)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    client = Connection(reader, writer, head)
    events: list[Event] = []
    while len(events) < 600:
        events.append(await client.event())
    assert [event.json["n"] for event in events] == list(range(600))
    await client.leave()
    await watcher.leave()


async def test_wsgi(redis_url: str, prefix: str) -> None:
    """A WSGI server says that it cannot stream, and how it can be done."""
    program = """
import logging, os
logging.basicConfig()
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.processes.stream_settings"
from django.core.wsgi import get_wsgi_application
from django.test import RequestFactory
application = get_wsgi_application()
environ = RequestFactory(headers={"Host": "127.0.0.1"})._base_environ(PATH_INFO="/stream/room/")
environ["SERVER_NAME"] = "127.0.0.1"
print(application(environ, lambda status, headers: print(status)))
"""
    process = Process("wsgi")
    await process.start([sys.executable, "-c", program], TEST_LAYER_CONFIG=json.dumps({"hosts": [redis_url]}))
    await process.ended()
    assert "500 Internal Server Error" in process.errors
    assert "a WSGI server cannot keep event streams open: make the view `async def`" in process.errors
