"""Daphne and uvicorn for real, with a WebSocket client, and a worker beside them."""

import asyncio
import json
import signal
import sys
import urllib.request
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from channels_asyncq.testing import EmbeddedServer
from tests.contract import DEADLINE, POLL, eventually
from tests.example import free_port
from tests.processes.handles import END_TIMEOUT, START_TIMEOUT, Process

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

APPLICATION = "tests.processes.site:application"
#: What a server's log has only if something went wrong.
COMPLAINTS = ("Traceback", "Task was destroyed", "never retrieved", "never awaited")


def site(config: dict[str, Any]) -> dict[str, str]:
    """The environment in which the site is served; the tests' own settings are others."""
    return {
        "DJANGO_SETTINGS_MODULE": "tests.processes.site_settings",
        "TEST_LAYER_CONFIG": json.dumps(config),
    }


class Served(Process):
    """The site under a server, at a port. `uvicorn-wsproto` is uvicorn with this one of its `--ws`."""

    def __init__(self, kind: str, application: str = APPLICATION) -> None:
        super().__init__(kind)
        self.port = free_port()
        self.application = application

    def command(self) -> Sequence[str]:
        server, _, protocol = self.name.partition("-")
        python = [sys.executable, "-m", server]
        match server:
            case "daphne":
                return [*python, "-b", "127.0.0.1", "-p", str(self.port), self.application]
            case "granian":
                return [*python, "--interface", "asgi", "--port", str(self.port), self.application]
            case "gunicorn":
                return [*python, "-k", "asgi", "-b", f"127.0.0.1:{self.port}", self.application]
            case "hypercorn":
                return [*python, "-b", f"127.0.0.1:{self.port}", self.application]
        assert server == "uvicorn", self.name
        more = ["--ws", protocol] if protocol else []
        host = ["--host", "127.0.0.1", "--port", str(self.port)]
        return [*python, *host, "--lifespan", "off", *more, self.application]

    async def answers(self, within: float = START_TIMEOUT) -> None:
        """Return when the server accepts connections."""
        async with asyncio.timeout(within):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    assert self.process.returncode is None, self.errors
                    await asyncio.sleep(POLL)
                    continue
                writer.close()
                return

    def visit(self, path: str) -> "Visit":
        return Visit(connect(f"ws://127.0.0.1:{self.port}/{path}/"))

    async def get(self, path: str) -> str:
        """A page, by a plain HTTP request."""
        url = f"http://127.0.0.1:{self.port}/{path}/"

        def fetch() -> str:
            with urllib.request.urlopen(url, timeout=DEADLINE) as response:
                text: str = response.read().decode()
                return text

        return await asyncio.to_thread(fetch)


class Visit:
    """A browser's tab."""

    def __init__(self, connecting: connect) -> None:
        self._connecting = connecting
        self._connection: ClientConnection | None = None

    async def __aenter__(self) -> "Visit":
        self._connection = await self._connecting.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._connecting.__aexit__(*error)

    async def say(self, **content: Any) -> None:
        assert self._connection is not None
        await self._connection.send(json.dumps(content))

    async def hears(self) -> dict[str, Any]:
        assert self._connection is not None
        async with asyncio.timeout(DEADLINE):
            heard: dict[str, Any] = json.loads(await self._connection.recv())
            return heard


@asynccontextmanager
async def served(
    *kinds: str, application: str = APPLICATION, **config: Any
) -> AsyncGenerator[list[Served], None]:
    """
    The site under servers of these kinds; at the end each must stop soon at SIGTERM, without complaints.
    """
    servers = [Served(kind, application) for kind in kinds]
    try:
        for server in servers:
            await server.start(server.command(), **site(config))
        for server in servers:
            await server.answers()
        yield servers
        for server in servers:
            server.signal(signal.SIGTERM)
            async with asyncio.timeout(END_TIMEOUT):
                await server.ended()
            for complaint in COMPLAINTS:
                assert complaint not in server.errors, server.errors
    finally:
        for server in servers:
            if server.process.returncode is None:
                server.process.kill()
            await server.ended()


@pytest.fixture
def config(redis_url: str, prefix: str) -> dict[str, Any]:
    return {"hosts": [redis_url], "prefix": prefix}


async def test_broadcast_between_daphne_and_uvicorn(
    config: dict[str, Any], redis_server: EmbeddedServer, prefix: str
) -> None:
    """
    What is said at one server is heard at both, by async and by sync consumers, once and in order; when the
    clients have gone, so have the groups.
    """
    async with served("daphne", "uvicorn", **config) as (daphne, uvicorn):
        await _talk(daphne, uvicorn)
        # This also waits for the sync consumer's disconnect(): Daphne hangs when it is told to stop meanwhile,
        # with any channel layer.
        await eventually(
            lambda: not redis_server.command("PUBSUB", "CHANNELS", f"{prefix}:0:group:*"),
            "the end of the groups",
        )


async def _talk(daphne: Served, uvicorn: Served) -> None:
    async with AsyncExitStack() as open_:
        visits = [
            await open_.enter_async_context(server.visit(path))
            for server in (daphne, uvicorn)
            for path in ("ws/room", "sync/room")
        ]
        elsewhere = await open_.enter_async_context(uvicorn.visit("ws/elsewhere"))
        expected = []
        for n in range(5):
            for m, visit in enumerate(visits):
                expected.append({"message": f"{n} from {m}"})
                await visit.say(**expected[-1])
                # Somebody else's next word must come after this one.
                assert await visits[0].hears() == expected[-1]
        for visit in visits[1:]:
            assert [await visit.hears() for _ in expected] == expected
        await elsewhere.say(message="alone")
        assert await elsewhere.hears() == {"message": "alone"}


@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
async def test_sync_view_reaches_the_sockets(config: dict[str, Any], kind: str) -> None:
    """`async_to_sync(group_send)` in a view reaches clients of this server and of the other."""
    other = "uvicorn" if kind == "daphne" else "daphne"
    async with (
        served(kind, other, **config) as (here, there),
        here.visit("ws/room") as near,
        there.visit("ws/room") as far,
    ):
        for n in range(5):
            assert await here.get(f"say/room/message{n}") == "said"
        for visit in (near, far):
            assert [await visit.hears() for _ in range(5)] == [{"message": f"message{n}"} for n in range(5)]


async def test_worker(config: dict[str, Any]) -> None:
    """`runworker` does jobs from a consumer and answers to its channel; two workers do each job once."""
    workers = [Process("worker"), Process("worker")]
    command = [sys.executable, "-m", "django", "runworker", "words"]
    try:
        for worker in workers:
            await worker.start(command, **site(config))
        async with served("uvicorn", **config) as (server,), server.visit("ws/room") as visit:
            for n in range(1, 21):
                await visit.say(count="word " * n)
            counts = [(await visit.hears())["words"] for n in range(20)]
            assert sorted(counts) == list(range(1, 21))
            await visit.say(message="and nothing more")
            assert await visit.hears() == {"message": "and nothing more"}
        for worker in workers:
            worker.signal(signal.SIGINT)
            await worker.ended()
            assert "Task was destroyed" not in worker.errors, worker.errors
    finally:
        for worker in workers:
            await worker.kill()


@pytest.mark.chaos
async def test_redis_killed_and_back(own_redis_server: EmbeddedServer, prefix: str) -> None:
    """
    kill -9 of Redis under running servers: no client is disconnected, and all hear each other when it is
    back.
    """
    config: dict[str, Any] = {"hosts": [own_redis_server.url], "prefix": prefix, "send_timeout": 30}
    async with (
        served("daphne", "uvicorn", **config) as (daphne, uvicorn),
        daphne.visit("ws/room") as first,
        uvicorn.visit("ws/room") as second,
    ):
        await first.say(message="before")
        assert [await visit.hears() for visit in (first, second)] == [{"message": "before"}] * 2
        await asyncio.to_thread(own_redis_server.kill)
        # The handler waits for the server's return, as `send_timeout` says.
        await first.say(message="meanwhile")
        await asyncio.to_thread(own_redis_server.restart)
        assert await first.hears() == {"message": "meanwhile"}
        # The other server may have come back a moment later than that was sent.
        heard: dict[str, Any] = {}
        n = 0
        while heard.get("message") != "after":
            n += 1
            assert n < 1000
            await first.say(message="after")
            assert (await first.hears())["message"] == "after"
            try:
                heard = await asyncio.wait_for(second.hears(), POLL * n)
            except TimeoutError:
                continue
        await second.say(message="back")
        while heard != {"message": "back"}:
            heard = await first.hears()


async def test_a_client_that_goes_without_a_word(config: dict[str, Any]) -> None:
    """A connection cut in the middle leaves the others as they are."""
    async with served("daphne", "uvicorn", **config) as (daphne, uvicorn), daphne.visit("ws/room") as stays:
        async with uvicorn.visit("ws/room") as goes:
            await stays.say(message="one")
            assert await goes.hears() == {"message": "one"}
            assert goes._connection is not None
            goes._connection.transport.abort()
        assert await stays.hears() == {"message": "one"}
        for n in range(3):
            await stays.say(message=str(n))
            assert await stays.hears() == {"message": str(n)}
