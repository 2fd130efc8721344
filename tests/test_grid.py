"""
One cell of the grid, in the environment of tox that has its versions: its web servers with each kind of client.

Each check leaves a line of JSON in the file `GRID_RESULTS`.
`python -m tests.grid_page` makes docs/grid.md of them.
"""

import asyncio
import contextlib
import json
import os
import platform
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.testing import EmbeddedServer, server_binaries
from tests import grid
from tests.contract import DEADLINE, eventually
from tests.sse import over_http
from tests.test_servers import COMPLAINTS, Served

CELL = grid.cells().get(os.environ.get("TOX_ENV_NAME", ""))
GROUP = "room"
#: Seconds after which a server that was told to stop is taken for hanging.
PATIENCE = 10.0
#: The packages whose versions stand beside each result.
PACKAGES = (
    "Django",
    "channels",
    "redis",
    "daphne",
    "uvicorn",
    "websockets",
    "wsproto",
    "hypercorn",
    "granian",
)

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.processes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CELL is None, reason="only in an environment of tox that is a cell of the grid"),
]


@pytest.fixture(scope="module")
def redis_server() -> Iterator[EmbeddedServer]:
    """The server of messages of this cell, in place of the one that the other tests share."""
    wanted = os.environ["GRID_SERVER"]
    binary = next((path for path in server_binaries() if Path(path).name == wanted), wanted)
    with EmbeddedServer(external=False, binary=binary) as server:
        yield server


@pytest.fixture(scope="module")
def versions(redis_server: EmbeddedServer) -> dict[str, str]:
    """What is installed here, by name; a server of another version than the cell's is an error."""
    facts = dict(
        line.split(":", 1) for line in redis_server.command("INFO", "server").decode().split() if ":" in line
    )
    name = "Valkey" if "valkey_version" in facts else "Redis"
    server_version = facts[f"{name.lower()}_version"]
    assert CELL is not None
    assert CELL.is_about(name, server_version), f"{name} {server_version} is not what {CELL.name} is about"
    installed = {package: version(package) for package in (*PACKAGES, "gunicorn")}
    return {"Python": platform.python_version(), **installed, name: server_version}


@pytest.fixture(scope="module")
def results() -> Path:
    """The file of the results, empty."""
    file = Path(os.environ["GRID_RESULTS"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    return file


class Checks:
    """Notes what became of each check of one server with one kind of client."""

    def __init__(self, file: Path, **facts: Any) -> None:
        self.file = file
        self.facts = facts

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Run the block as this check, and note why it failed if it did."""
        began, failed = time.monotonic(), ""
        try:
            yield
        except BaseException as error:
            failed = (str(error) or type(error).__name__).splitlines()[0]
            if known := grid.KNOWN.get((self.facts["web"], name)):
                pytest.xfail(f"{known}: {failed}")
            raise
        finally:
            seconds = round(time.monotonic() - began, 2)
            now = datetime.now(UTC).date().isoformat()
            line = {**self.facts, "check": name, "failed": failed, "seconds": seconds, "date": now}
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")


class Socket:
    """A client with a WebSocket."""

    def __init__(self, port: int, kind: str) -> None:
        self.url = f"ws://127.0.0.1:{port}/{kind}/"
        self.is_resumable = kind == "resumable"
        self.position = ""

    async def come(self) -> None:
        """Connect, and come back to where it was; return when the server has let it in."""
        since = f"?since={self.position}" if self.position else ""
        self.connection = await connect(
            self.url + since, open_timeout=DEADLINE, ping_interval=None, proxy=None
        )
        self.missed: list[int] = []
        if self.is_resumable:
            frame = await self._frame()
            while frame.get("type") != "resumed":
                self.missed.append(frame["m"]["n"])
                frame = await self._frame()
            assert frame["recovered"], frame

    async def _frame(self) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE):
            frame: dict[str, Any] = json.loads(await self.connection.recv())
        self.position = frame.get("id", self.position)
        return frame

    async def hears(self) -> int:
        """Return the number of the next message."""
        if self.missed:
            return self.missed.pop(0)
        number: int = (await self._frame())["m"]["n"]
        return number

    async def ends(self) -> None:
        """Wait until the server has ended the connection."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.connection.recv()

    def leave(self) -> None:
        self.connection.transport.abort()


class Stream:
    """A client with an event stream."""

    def __init__(self, port: int, kind: str) -> None:
        self.port = port
        self.position = ""

    async def come(self) -> None:
        """Connect, and come back to where it was; return when nothing is missing."""
        self.connection = await over_http(self.port, f"/stream/{GROUP}/", self.position)
        self.missed = [event.json["n"] for event in await self.connection.here()]

    async def hears(self) -> int:
        """Return the number of the next message."""
        number: int = self.missed.pop(0) if self.missed else (await self.connection.event()).json["n"]
        self.position = self.connection.last_id
        return number

    async def ends(self) -> None:
        """Wait until the server has ended the stream, with its last chunk."""
        try:
            await self.connection.end()
        except asyncio.IncompleteReadError:
            raise AssertionError("the stream was cut off, without its last chunk") from None

    def leave(self) -> None:
        self.position = self.connection.last_id
        self.connection.abort()


class WebServer(Served):
    """The site under a web server."""

    def command(self) -> Sequence[str]:
        python, module = super().command()[:2], super().command()[2:]
        return [*python, module[0], *grid.STOP_OPTIONS.get(module[0], ()), *module[1:]]

    def processes(self) -> list[int]:
        """Return the processes below the one that was started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    async def stop(self, clients: Sequence["Socket | Stream"]) -> None:
        """Send SIGTERM, and wait until the server and the clients' connections have ended."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(self.process.wait(), *(client.ends() for client in clients))
        except TimeoutError:
            still = "it runs" if self.process.returncode is None else "connections are open"
            raise AssertionError(f"{still} {PATIENCE:.0f} s after SIGTERM") from None

    async def clear_away(self) -> None:
        """kill -9 of all that is left of it."""
        workers = self.processes()
        if self.process.returncode is None:
            self.process.kill()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self.ended()


@pytest.fixture
async def layer(redis_url: str, prefix: str) -> AsyncIterator[AsyncQueueChannelLayer]:
    """The layer of the test's own process, which sends."""
    layer = AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix)
    yield layer
    await layer.close()


@pytest.fixture
async def server(web: str, redis_url: str, prefix: str) -> AsyncIterator[WebServer]:
    """The site under the web server; it is killed at the end if it still runs."""
    server = WebServer(web, "tests.processes.grid:application")
    await server.start(
        server.command(),
        DJANGO_SETTINGS_MODULE="tests.processes.stream_settings",
        TEST_LAYER_CONFIG=json.dumps({"hosts": [redis_url], "prefix": prefix}),
        PYTHONDEVMODE="",
    )
    yield server
    await server.clear_away()


@pytest.mark.parametrize("kind", grid.KINDS)
@pytest.mark.parametrize("web", CELL.web_servers if CELL else ())
async def test_cell(
    web: str,
    kind: str,
    server: WebServer,
    layer: AsyncQueueChannelLayer,
    redis_server: EmbeddedServer,
    prefix: str,
    results: Path,
    versions: dict[str, str],
) -> None:
    """Clients come, hear their group, come back if they can, and go when the server is told to stop."""
    assert CELL is not None
    checks = Checks(results, cell=CELL.name, web=web, kind=kind, versions=versions)

    def memberships() -> list[bytes]:
        found: list[bytes] = redis_server.command("PUBSUB", "CHANNELS", f"{prefix}:0:group:*")
        return found

    async def say(*numbers: int) -> None:
        for number in numbers:
            await layer.group_send(GROUP, {"type": "test.message", "n": number})

    clients = [Stream(server.port, kind) if kind == "stream" else Socket(server.port, kind) for _ in range(3)]
    try:
        with checks.check("connect"):
            await server.answers()
            for client in clients:
                await client.come()
        with checks.check("message"):
            await say(1, 2)
            assert [[await client.hears(), await client.hears()] for client in clients] == [[1, 2]] * 3
        if kind in grid.RESUMABLE:
            with checks.check("resume"):
                clients[0].leave()
                await say(3, 4)
                await clients[0].come()
                await say(5)
                assert [await clients[0].hears() for _ in range(3)] == [3, 4, 5]
        assert memberships()
        with checks.check("stop"):
            began = time.monotonic()
            await server.stop(clients)
            took = time.monotonic() - began
            assert took < grid.STOP_LIMIT, f"it took {took:.1f} s to stop"
            status = server.process.returncode
            assert status == grid.EXIT_STATUS.get(web.partition("-")[0], 0), f"exit status {status}"
            await eventually(lambda: not memberships(), "the end of the memberships")
        with checks.check("log"):
            for complaint in COMPLAINTS:
                assert complaint not in server.errors, f"{complaint!r} in its log\n{server.errors[-3000:]}"
    finally:
        for client in clients:
            if hasattr(client, "connection"):
                client.leave()
