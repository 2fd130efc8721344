"""Every kind of caller for real: what it sends reaches a WebSocket client of a running Daphne."""

import asyncio
import importlib.util
import json
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest
from websockets.asyncio.client import ClientConnection, connect

from channels_asyncq.testing import EmbeddedServer
from tests.contract import DEADLINE, eventually
from tests.processes.handles import ROOT, START_TIMEOUT, Process, environment
from tests.test_servers import Served

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

TASKS = "tests.processes.callers.celery"
COMPLAINTS = ("Traceback", "Task was destroyed", "never retrieved", "never awaited", "channels_asyncq/")


class Server(Served):
    """The callers' project: under Daphne, or as WSGI under gunicorn."""

    options: Sequence[str] = ()

    def command(self) -> Sequence[str]:
        if self.name == "daphne":
            application = "tests.processes.callers.asgi:application"
            return [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(self.port), application]
        bind = ["--bind", f"127.0.0.1:{self.port}", "--workers", "2", "--threads", "4", *self.options]
        return [sys.executable, "-m", "gunicorn", *bind, "tests.processes.callers.wsgi:application"]


class Site:
    """Daphne with one client in the room `lobby`, and the environment in which the callers run."""

    def __init__(self, server: EmbeddedServer, prefix: str) -> None:
        self.server = server
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "tests.processes.callers.settings",
            "TEST_LAYER_CONFIG": json.dumps({"hosts": [server.url], "prefix": prefix, "capacity": 10_000}),
            "CELERY_BROKER": server.url,
            "CELERY_PREFIX": f"{prefix}.celery.",
            "PRELOAD_ROOM": "lobby",
            # Others have resources of their own that they do not close.
            "PYTHONDEVMODE": "",
        }
        self.client: ClientConnection | None = None

    async def hears(self) -> str:
        assert self.client is not None
        async with asyncio.timeout(DEADLINE):
            text: str = json.loads(await self.client.recv())["message"]
            return text

    async def hears_many(self, count: int) -> list[str]:
        return [await self.hears() for _ in range(count)]

    async def run(self, *arguments: str, stdin: str = "") -> None:
        """Run a command of this project to its end; it must end well and without complaints."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=ROOT,
            env=environment(**self.environment),
        )
        async with asyncio.timeout(START_TIMEOUT):
            output, _ = await process.communicate(stdin.encode())
        assert process.returncode == 0, output.decode()
        _look_for_complaints(output.decode())

    def connections(self) -> Counter[str]:
        """How many connections each of the layer's kinds of use has: by the last command."""
        lines = self.server.command("CLIENT", "LIST").decode().splitlines()
        fields = [dict(field.split("=", 1) for field in line.split()) for line in lines]
        return Counter(
            "pushes" if line["cmd"] == "subscribe" else "commands"
            for line in fields
            if line["cmd"] in ("subscribe", "evalsha", "script|load")
        )


def _look_for_complaints(output: str) -> None:
    for complaint in COMPLAINTS:
        assert complaint not in output, output


async def stop(process: Process) -> None:
    """SIGTERM; it must end soon and without complaints."""
    process.process.terminate()
    code = await process.ended()
    assert code == 0, process.errors
    _look_for_complaints(process.errors)


@pytest.fixture
async def site(own_redis_server: EmbeddedServer, prefix: str) -> AsyncIterator[Site]:
    """Daphne with a client; stopped at the end."""
    site = Site(own_redis_server, prefix)
    daphne = Server("daphne")
    try:
        await daphne.start(daphne.command(), **site.environment)
        await daphne.answers()
        async with connect(f"ws://127.0.0.1:{daphne.port}/ws/lobby/") as site.client:
            yield site
        await stop(daphne)
    finally:
        await daphne.kill()


async def test_management_command(site: Site) -> None:
    """A command that sends, by the sync API and by async_to_sync, and ends."""
    await site.run("django", "announce", "lobby", "hello")
    assert await site.hears_many(2) == ["hello"] * 2


@pytest.mark.parametrize("way", ["--command", "stdin"])
async def test_shell(site: Site, way: str) -> None:
    """`manage.py shell`: line after line sends."""
    lines = [
        "from asgiref.sync import async_to_sync",
        "from channels_asyncq import get_layer, sync",
        "sync.group_send('lobby', {'type': 'room.message', 'message': 'one'})",
        "async_to_sync(get_layer().group_send)('lobby', {'type': 'room.message', 'message': 'two'})",
        "sync.group_send('lobby', {'type': 'room.message', 'message': 'three'})",
    ]
    text = "\n".join(lines) + "\n"
    if way == "stdin":
        await site.run("django", "shell", stdin=text)
    else:
        await site.run("django", "shell", "--command", text)
    assert await site.hears_many(3) == ["one", "two", "three"]


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["threads", "preload"])
async def test_gunicorn(site: Site, options: list[str]) -> None:
    """
    Two workers with four threads each: what 80 requests send arrives once, over two connections for each
    process that sends; with --preload the master has sent before it forked.
    """
    gunicorn = Server("gunicorn")
    gunicorn.options = options
    try:
        await gunicorn.start(gunicorn.command(), **site.environment)
        await gunicorn.answers()
        # Once by the master, or once by each worker as it loads the application.
        for _ in range(1 if options else 2):
            assert await site.hears() == "preload"
        limit = asyncio.Semaphore(8)

        async def get(path: str) -> str:
            async with limit:
                return await asyncio.to_thread(_fetch, f"http://127.0.0.1:{gunicorn.port}/{path}/")

        workers = await asyncio.gather(
            *(get(f"{'say' if n % 2 else 'tell'}/lobby/{n}") for n in range(80)),
        )
        assert sorted(map(int, await site.hears_many(80))) == list(range(80))
        senders = len(set(workers)) + (1 if options else 0)
        if not options:
            # Each has sent as it loaded.
            senders = 2
        # A send may return with its connection for pushes still to come.
        await eventually(lambda: site.connections()["pushes"] == 1 + senders)
        assert site.connections()["commands"] <= 1 + senders
        await stop(gunicorn)
    finally:
        await gunicorn.kill()


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=DEADLINE) as response:
        text: str = response.read().decode()
        return text


async def test_celery(site: Site) -> None:
    """
    A prefork worker whose parent has sent before the fork: the tasks of its children, which send in both ways,
    reach the client once each.
    """
    worker = Process("celery")
    application = ["-A", "tests.processes.callers.celery"]
    pool = ["worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "WARNING", "--without-mingle"]
    try:
        await worker.start([sys.executable, "-m", "celery", *application, *pool], **site.environment)
        assert await site.hears() == "preload"
        await site.run("celery", *application, "call", f"{TASKS}.order", "--args", '["lobby", 40]')
        heard = [text.split(" from ") for text in await site.hears_many(40)]
        assert sorted(int(number) for number, _ in heard) == list(range(40))
        # The client's Daphne, the parent, and the children that had a task.
        assert site.connections()["pushes"] <= 4
        await asyncio.to_thread(_nobody_waits, site)
        await stop(worker)
    finally:
        await worker.kill()


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
async def test_celery_with_greenlets(site: Site, pool: str) -> None:
    """A worker whose tasks are greenlets of one thread: what they send reaches the client once each."""
    if importlib.util.find_spec(pool) is None:
        pytest.skip(f"{pool} is not installed")
    worker = Process("celery")
    application = ["-A", "tests.processes.callers.celery"]
    # They warn of asyncio and of their own end.
    environment = {**site.environment, "PYTHONWARNINGS": "ignore", "PYTHONFAULTHANDLER": "1"}
    options = ["worker", "--pool", pool, "--concurrency", "20", "--loglevel", "WARNING", "--without-mingle"]
    try:
        await worker.start([sys.executable, "-m", "celery", *application, *options], **environment)
        assert await site.hears() == "preload"
        await site.run("celery", *application, "call", f"{TASKS}.order_told", "--args", '["lobby", 40]')
        heard = [text.split(" from ") for text in await site.hears_many(40)]
        assert sorted(int(number) for number, _ in heard) == list(range(40))
        await site.run("celery", *application, "call", f"{TASKS}.say", "--args", '["lobby", "by asgiref"]')
        assert (await site.hears()).startswith("by asgiref")
        # The client's Daphne, and the worker.
        assert site.connections()["pushes"] == 2
        await asyncio.to_thread(_nobody_waits, site)
        await stop(worker)
    finally:
        await worker.kill()


def _nobody_waits(site: Site) -> None:
    assert not site.server.command("KEYS", f"{site.environment['CELERY_PREFIX']}celery")
