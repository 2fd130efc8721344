"""docs/platform-recipes.md: its configurations, run where that can be done, and held against the code."""

from __future__ import annotations

import asyncio
import configparser
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from django.urls import resolve
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from websockets.asyncio.client import ClientConnection, connect

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.generic.websocket import ResumableWebsocketConsumer
from channels_asyncq.http import EventStream
from channels_asyncq.testing import EmbeddedServer, server_binaries
from tests.code_blocks import files
from tests.contract import DEADLINE, note
from tests.example import free_port, is_listening
from tests.installing import dry_run
from tests.processes.handles import END_TIMEOUT, START_TIMEOUT, Process
from tests.sse import Parser
from tests.systemd import Systemd, needs_systemd, systemd

__all__ = ["systemd"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "platform-recipes.md"
NGINX = shutil.which("nginx", path=os.pathsep.join([*os.get_exec_path(), "/usr/sbin"]))

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PAGE.is_file(), reason="only the package is here, without its pages"),
    pytest.mark.skipif(sys.platform == "win32", reason="the recipes are for POSIX"),
]

#: The rest of the site: what the page leaves to its reader.
REST = {
    "settings.py": """
ROOT_URLCONF = "mysite.urls"
INSTALLED_APPS = ["channels", "channels_asyncq"]
USE_TZ = True
# That no other test is heard.
CHANNEL_LAYERS["default"]["CONFIG"]["prefix"] = os.environ["TEST_PREFIX"]
""",
    "urls.py": """
from channels_asyncq.http import EventStream
from django.http import JsonResponse
from django.urls import include, path

async def events(request):
    return EventStream(request, ["room"])

def client(request):
    return JsonResponse({"address": request.META["REMOTE_ADDR"], "is_secure": request.is_secure()})

urlpatterns = [
    path("health/", include("channels_asyncq.urls")), path("events/", events), path("client/", client)
]
""",
    "routing.py": """
import asyncio

from channels.routing import ChannelNameRouter
from channels.security.websocket import AllowedHostsOriginValidator
from channels_asyncq.consumers import AsyncConsumer
from channels_asyncq.generic.websocket import AsyncJsonWebsocketConsumer

class Room(AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.channel_layer.group_add("room", self.channel_name)
        await self.accept()

    async def receive_json(self, content):
        await self.send_json({"echo": content})

    async def test_note(self, message):
        await self.send_json(message)

class Jobs(AsyncConsumer):
    async def test_note(self, message):
        await self.channel_layer.group_send("done", message)

    async def test_long(self, message):
        await self.channel_layer.group_send("done", {"type": "test.begun"})
        try:
            await asyncio.Future()
        finally:
            await self.channel_layer.group_send("done", {"type": "test.cancelled"})

sockets = AllowedHostsOriginValidator(Room.as_asgi())
workers = ChannelNameRouter({"jobs": Jobs.as_asgi()})
""",
}
MANAGE = """
import os
from django.core.management import execute_from_command_line
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
import sys
execute_from_command_line(sys.argv)
"""


def blocks() -> dict[str, str]:
    """The blocks of the page, by the name of the file with which each begins."""
    return files("docs/platform-recipes.md")


def test_blocks() -> None:
    """Each block is used by a test of this module."""
    program = Path(__file__).read_text()
    for name in blocks():
        assert f'"{name}"' in program or f'"{name.removeprefix("mysite/")}"' in program, name


class Site:
    """The site of the page, in a folder."""

    def __init__(self, folder: Path, redis_url: str, prefix: str) -> None:
        self.folder = folder
        self.config: dict[str, Any] = {"hosts": [redis_url], "prefix": prefix}
        package = folder / "mysite"
        package.mkdir()
        (package / "__init__.py").touch()
        for name in ("settings.py", "asgi.py", "is_live.py"):
            (package / name).write_text(blocks()[f"mysite/{name}"] + REST.get(name, ""))
        for name in ("urls.py", "routing.py"):
            (package / name).write_text(REST[name])
        (folder / "manage.py").write_text(MANAGE)
        self.environment = {
            "SECRET_KEY": "only for tests",
            "ALLOWED_HOSTS": "www.example.com",
            "REDIS_URL": redis_url,
            "FORWARDED_ALLOW_IPS": "*",
            "DRAIN_SECONDS": "0.5",
            "TEST_PREFIX": prefix,
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
        }

    @asynccontextmanager
    async def layer(self) -> AsyncIterator[AsyncQueueChannelLayer]:
        """The layer of the site, in this process."""
        layer = AsyncQueueChannelLayer(**self.config)
        try:
            yield layer
        finally:
            await layer.close()

    @asynccontextmanager
    async def runs(self, command: list[str], stop: signal.Signals, **more: str) -> AsyncIterator[Process]:
        """Run a command in the folder; at the end it gets a signal, and must end by itself, in order."""
        process = Process(command[0])
        # A shell changes the folder, and is gone then.
        within = ["sh", "-c", 'cd "$0" && exec "$@"', str(self.folder), *command]
        await process.start(within, **self.environment, **more)
        try:
            yield process
        except BaseException:
            # nginx that is killed leaves its workers behind, so it is asked first.
            await ends(process, stop)
            await process.kill()
            raise
        await ends(process, stop)
        code = process.process.returncode
        await process.kill()
        assert code == 0 and "Traceback" not in process.errors, process.errors

    async def works(self, command: list[str]) -> None:
        """A worker of this command does a job, and ends at SIGINT."""
        async with self.layer() as layer, self.runs(command, signal.SIGINT):
            channel = await layer.new_channel()
            await layer.group_add("done", channel)
            await layer.send("jobs", note(1))
            assert await asyncio.wait_for(layer.receive(channel), START_TIMEOUT) == note(1)

    async def serves(self, command: list[str], port: int, **more: str) -> None:
        """A server of this command is live and ready, and ends at SIGTERM."""
        async with self.runs(command, signal.SIGTERM, **more) as process:
            await listens(port, process)
            await self.is_ready(port)

    async def is_ready(self, port: int) -> None:
        """Wait until the server is live and ready."""
        for path in ("live", "ready"):
            url = f"http://127.0.0.1:{port}/health/{path}/"
            assert await status(["--header", "Host: www.example.com", url], until=200) == 200

    @asynccontextmanager
    async def client(self, port: int) -> AsyncIterator[ClientConnection]:
        """A WebSocket that the site has answered."""
        origin: Any = "https://www.example.com"
        url = "ws://www.example.com/"
        async with connect(url, host="127.0.0.1", port=port, origin=origin, proxy=None) as socket:
            await socket.send('{"n": 1}')
            assert json.loads(await asyncio.wait_for(socket.recv(), DEADLINE)) == {"echo": {"n": 1}}
            yield socket

    def unit(self, text: str, port: int) -> str:
        """A unit of systemd with the folder, the Python, the environment and the user of this test."""
        environment = self.folder / "mysite.env"
        variables = {**self.environment, "GRANIAN_PORT": str(port)}
        environment.write_text("".join(f'{name}="{value}"\n' for name, value in variables.items()))
        text = text.replace("User=www-data\n", "").replace("EnvironmentFile=/etc/mysite.env\n", "")
        text = text.replace("[Service]\n", f"[Service]\nEnvironmentFile={environment}\n")
        text = re.sub(r"/srv/mysite/\.venv/bin/(uvicorn|granian)", rf"{sys.executable} -m \1", text)
        text = text.replace("/srv/mysite/.venv/bin/python", sys.executable)
        return text.replace("/srv/mysite", str(self.folder)).replace("--port 8000", f"--port {port}")


@pytest.fixture
def site(tmp_path: Path, redis_url: str, prefix: str) -> Site:
    return Site(tmp_path, redis_url, prefix)


async def ends(process: Process, stop: signal.Signals) -> None:
    """Send a signal, and wait for the end."""
    if process.process.returncode is None:
        process.signal(stop)
        await asyncio.wait([asyncio.create_task(process.process.wait())], timeout=END_TIMEOUT)


async def listens(port: int, process: Process) -> None:
    async with asyncio.timeout(START_TIMEOUT):
        while not is_listening(port):
            assert process.process.returncode is None, process.errors
            await asyncio.sleep(0.05)


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    found, _ = await asyncio.wait_for(process.communicate(), START_TIMEOUT)
    return found.decode()


async def status(arguments: list[str], until: int) -> int:
    """What curl says is the status; it asks again until that is this one."""
    async with asyncio.timeout(START_TIMEOUT):
        while True:
            curl = ["curl", "--silent", "--output", os.devnull, "--write-out", "%{http_code}"]
            found = int(await output(*curl, *arguments))
            if found == until:
                return found
            await asyncio.sleep(0.2)


needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on PATH")


def local(command: list[str], port: int) -> list[str]:
    """A command of uvicorn, on a port of this test."""
    text = shlex.join(command)
    assert text.count("--port 8000") == 1
    return shlex.split(text.replace("--port 8000", f"--port {port}").replace("0.0.0.0", "127.0.0.1"))


# nginx


@pytest.fixture
def nginx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nginx")


def nginx_configuration(folder: Path, certificate: tuple[Path, Path], port: int, upstream: int) -> Path:
    """The configuration of the page with ports and files of this test, in what else an nginx needs."""
    text = blocks()["/etc/nginx/conf.d/mysite.conf"]
    for old, new in {
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "/etc/ssl/mysite/fullchain.pem": str(certificate[0]),
        "/etc/ssl/mysite/key.pem": str(certificate[1]),
        "/srv/mysite": str(folder),
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "static").mkdir()
    (folder / "static" / "a.txt").write_text("a static file")
    folder.chmod(0o755)
    (folder / "mysite.conf").write_text(text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    whole = (
        f"daemon off;\npid {folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\n    access_log off;\n{temporary}    include {folder}/mysite.conf;\n}}\n"
    )
    if os.getuid() == 0:
        whole = f"user root;\n{whole}"
    path = folder / "nginx.conf"
    path.write_text(whole)
    return path


@pytest.mark.processes
@needs_curl
@pytest.mark.skipif(NGINX is None, reason="no nginx here (Debian: apt install nginx)")
async def test_nginx(site: Site, nginx_folder: Path, certificate: tuple[Path, Path]) -> None:
    """
    Pages, static files, WebSockets and event streams go through, each message at once, over TLS and HTTP/2; the
    application sees https and the client's address, not the one that a client claims to have.
    """
    assert NGINX is not None
    port, upstream = free_port(), free_port()
    configuration = nginx_configuration(nginx_folder, certificate, port, upstream)
    command = exec_start("/etc/systemd/system/mysite.service", site)
    nginx = [NGINX, "-p", str(nginx_folder), "-e", "stderr", "-c", str(configuration)]
    async with (
        site.layer() as layer,
        site.runs(local(command, upstream), signal.SIGTERM) as server,
        site.runs(nginx, signal.SIGQUIT) as proxy,
    ):
        await listens(upstream, server)
        await listens(port, proxy)
        to_it = ["--insecure", "--connect-to", f"www.example.com:443:127.0.0.1:{port}"]
        base = "https://www.example.com"
        assert await status([*to_it, f"{base}/health/ready/"], until=200) == 200
        curl = ["curl", "--silent", "--http2", *to_it]
        assert await output(*curl, f"{base}/static/a.txt") == "a static file"
        forged = ["--header", "X-Forwarded-For: 203.0.113.9", "--header", "X-Forwarded-Proto: http"]
        seen = json.loads(await output(*curl, *forged, f"{base}/client/"))
        assert seen == {"address": "127.0.0.1", "is_secure": True}
        await passes_websockets(port, layer)
        await passes_streams([*curl, "--no-buffer", "--dump-header", "-", f"{base}/events/"], layer)


async def passes_websockets(port: int, layer: AsyncQueueChannelLayer) -> None:
    """Frames go through in both directions."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    origin: Any = "https://www.example.com"
    opening = connect(
        "wss://www.example.com/", host="127.0.0.1", port=port, ssl=trusting, origin=origin, proxy=None
    )
    async with opening as socket:
        await socket.send('{"n": 1}')
        assert json.loads(await asyncio.wait_for(socket.recv(), DEADLINE)) == {"echo": {"n": 1}}
        for n in range(3):
            await layer.group_send("room", note(n))
            assert json.loads(await asyncio.wait_for(socket.recv(), DEADLINE)) == note(n)


async def passes_streams(curl: list[str], layer: AsyncQueueChannelLayer) -> None:
    """Each event comes before the next one is sent, over HTTP/2."""
    client = await asyncio.create_subprocess_exec(*curl, stdout=asyncio.subprocess.PIPE)
    assert client.stdout is not None
    parser = Parser()
    try:
        head = (await asyncio.wait_for(client.stdout.readuntil(b"\r\n\r\n"), DEADLINE)).decode()
        assert head.startswith("HTTP/2 200")
        found: list[Any] = []

        async def until(count: int) -> None:
            assert client.stdout is not None
            while len(found) < count:
                found.extend(parser.feed(await client.stdout.readline()))

        await asyncio.wait_for(until(1), DEADLINE)  # that nothing is missing
        for n in range(3):
            await layer.group_send("room", note(n))
            await asyncio.wait_for(until(n + 2), DEADLINE)
            assert found[-1].json == note(n)
    finally:
        client.kill()
        await client.wait()


def test_nobody_is_silent_for_long() -> None:
    """What the page says of timeouts of proxies: something is sent every so many seconds, on every connection."""
    server = pytest.importorskip("daphne.server").Server
    heartbeats = {
        inspect.signature(EventStream).parameters["heartbeat"].default,
        ResumableWebsocketConsumer.heartbeat,
    }
    pings = {
        inspect.signature(of).parameters[name].default
        for of, name in ((uvicorn.Config, "ws_ping_interval"), (server, "ping_interval"))
    }
    assert heartbeats == {15.0} and pings == {20.0}
    said = " ".join(PAGE.read_text().split())
    assert "send something every 15 s, and uvicorn and Daphne ping each WebSocket every 20 s" in said


def test_idle_connections_of_nginx() -> None:
    """nginx closes them before uvicorn does."""
    found = re.search(r"keepalive_timeout (\d+)s;", blocks()["/etc/nginx/conf.d/mysite.conf"])
    assert found is not None
    assert int(found[1]) < uvicorn.Config("").timeout_keep_alive


# systemd


UNITS = ("/etc/systemd/system/mysite.service", "/etc/systemd/system/mysite-worker.service")


def unit(name: str) -> Mapping[str, Mapping[str, str]]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(blocks()[name].replace("\\\n", " "))
    return parser


def exec_start(name: str, site: Site) -> list[str]:
    """The command of a unit, by the Python of this test."""
    program, *arguments = shlex.split(unit(name)["Service"]["ExecStart"])
    name = program.removeprefix("/srv/mysite/.venv/bin/")
    assert name != program
    return [sys.executable, *(["-m", name] if name != "python" else []), *arguments]


needs_systemd_analyze = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="no systemd-analyze here (Debian: systemd)"
)


@needs_systemd_analyze
@pytest.mark.parametrize("name", UNITS)
def test_units_are_verified(tmp_path: Path, name: str) -> None:
    """systemd has nothing to say of them."""
    said = said_by_systemd(blocks()[name], tmp_path / Path(name).name)
    assert said == ""


def said_by_systemd(text: str, path: Path) -> str:
    """What systemd says of a unit whose programs are there."""
    folder = path.parent / "site"
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for program in ("uvicorn", "python", "granian"):
        (programs / program).write_text("#!/bin/sh\n")
        (programs / program).chmod(0o755)
    path.write_text(text.replace("/srv/mysite", str(folder)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if str(path) in line or path.name in line]
    return "" if done.returncode == 0 and not ours else done.stderr


def test_times_of_the_units() -> None:
    """The server has more time than its drain takes, and what its command waits for after that."""
    service = unit(UNITS[0])["Service"]
    assert drain_seconds() + graceful(service["ExecStart"]) < int(service["TimeoutStopSec"])


def drain_seconds() -> float:
    found = re.search(r'"DRAIN_SECONDS", "(\d+)"', blocks()["mysite/asgi.py"])
    assert found is not None
    return float(found[1])


def graceful(command: str) -> float:
    found = re.search(r"--timeout-graceful-shutdown (\d+)", command)
    assert found is not None
    return float(found[1])


@pytest.mark.processes
@needs_curl
async def test_commands_of_the_units(site: Site) -> None:
    """They serve and work, and end in order at their signals."""
    port = free_port()
    await site.serves(local(exec_start(UNITS[0], site), port), port)
    worker = unit(UNITS[1])["Service"]
    assert worker["KillSignal"] == "SIGINT"
    await site.works(exec_start(UNITS[1], site))


@needs_systemd
@pytest.mark.processes
async def test_units(site: Site, systemd: Systemd) -> None:
    """
    systemd starts both units, and starts them again when they are killed. When it stops them, the clients are
    told to come back, and nothing is killed or failed.
    """
    port = free_port()
    web, worker = (Path(name).name for name in UNITS)
    for name in UNITS:
        await systemd.install(Path(name).name, site.unit(blocks()[name], port))
    await systemd.do("start", web, worker)
    async with site.layer() as layer:
        channel = await layer.new_channel()
        await layer.group_add("done", channel)

        async def work(n: int) -> None:
            await layer.send("jobs", note(n))
            assert await asyncio.wait_for(layer.receive(channel), START_TIMEOUT) == note(n)

        await site.is_ready(port)
        await work(1)
        for name in (web, worker):
            killed = await systemd.property(name, "MainPID")
            os.kill(int(killed), signal.SIGKILL)
            async with asyncio.timeout(START_TIMEOUT):
                while await systemd.property(name, "MainPID") in (killed, "0"):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        await site.is_ready(port)
        await work(2)
        async with site.client(port) as socket:
            await systemd.do("stop", web, worker)
            await asyncio.wait_for(socket.wait_closed(), DEADLINE)
            assert socket.close_code == 1012
    for name in (web, worker):
        assert await systemd.property(name, "ActiveState") == "inactive"
        assert await systemd.property(name, "Result") == "success"


@pytest.mark.processes
async def test_jobs_of_a_worker_that_is_stopped(site: Site) -> None:
    """At SIGINT the job can clean up; one that the worker has taken already is lost."""
    worker = exec_start(UNITS[1], site)
    async with site.layer() as layer:
        layer.capacity = 1
        channel = await layer.new_channel()
        await layer.group_add("done", channel)
        async with site.runs(worker, signal.SIGINT):
            await layer.send("jobs", {"type": "test.long"})
            assert await asyncio.wait_for(layer.receive(channel), START_TIMEOUT) == {"type": "test.begun"}
            for n in range(2):  # there is a place for the second one when the first one was taken
                await layer.send_wait("jobs", note(n), timeout=START_TIMEOUT)
        assert await asyncio.wait_for(layer.receive(channel), DEADLINE) == {"type": "test.cancelled"}
        layer.capacity = 10
        await layer.send("jobs", note(2))
        left = [await asyncio.wait_for(layer.receive("jobs"), DEADLINE)]
        while left[-1] != note(2):
            left.append(await asyncio.wait_for(layer.receive("jobs"), DEADLINE))
        assert note(0) not in left


@pytest.mark.parametrize(("allowed", "seen"), [("*", "203.0.113.9"), ("10.0.0.0/8", "198.51.100.7")])
async def test_address_behind_a_proxy_that_appends(allowed: str, seen: str) -> None:
    """uvicorn takes the address that the proxy has appended, but with `*` the one that the client has written."""
    found: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope["client"][0])

    headers = [(b"x-forwarded-for", b"203.0.113.9, 198.51.100.7")]
    scope: Any = {"type": "http", "scheme": "http", "client": ("10.1.2.3", 1), "headers": headers}
    unused: Any = None
    await ProxyHeadersMiddleware(application, allowed)(scope, unused, unused)
    assert found == [seen]


# Docker


def dockerfile() -> dict[str, str]:
    """The last line of each instruction."""
    text = blocks()["Dockerfile"].replace("\\\n", " ")
    return {name: rest for name, _, rest in (line.partition(" ") for line in text.splitlines())}


def test_requirements(tmp_path: Path) -> None:
    """pip reads them, and finds them satisfied here: they are what the tests have."""
    assert dockerfile()["RUN"] == "pip install --no-cache-dir -r requirements.txt"
    path = tmp_path / "requirements.txt"
    path.write_text(blocks()["requirements.txt"])
    names = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert names == ["channels_asyncq", "uvicorn", "websockets"]
    assert dry_run("--no-deps", "-r", str(path)).count("already satisfied") == len(names)


@pytest.mark.processes
@needs_curl
async def test_commands_of_the_image(site: Site) -> None:
    """The server serves, and the health check tells whether it is live."""
    port = free_port()
    command = local(json.loads(dockerfile()["CMD"]), port)
    assert command[0] == "uvicorn"
    path = site.folder / "mysite" / "is_live.py"
    assert path.read_text().count(":8000/") == 1
    path.write_text(path.read_text().replace(":8000/", f":{port}/"))
    check = json.loads(dockerfile()["HEALTHCHECK"].partition("CMD ")[2])
    assert check[0] == "python"
    assert await exit_status(check, site) == 1
    async with site.runs([sys.executable, "-m", *command], signal.SIGTERM) as server:
        await listens(port, server)
        assert await status(
            ["--header", "Host: www.example.com", f"http://127.0.0.1:{port}/health/live/"], 200
        )
        assert await exit_status(check, site) == 0


async def exit_status(command: list[str], site: Site) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command[1:],
        cwd=site.folder,
        env=os.environ | site.environment,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await asyncio.wait_for(process.wait(), START_TIMEOUT)


@pytest.mark.processes
async def test_compose(site: Site) -> None:
    """Both services have what the settings read, and time to drain; the worker's command works."""
    services = yaml.safe_load(blocks()["compose.yaml"])["services"]
    web, worker = services["web"], services["worker"]
    assert variables() <= set(web["environment"]) and web["environment"] == worker["environment"]
    assert drain_seconds() + 5 < float(web["stop_grace_period"].removesuffix("s"))
    assert worker["stop_signal"] == "SIGINT"
    python, *arguments = worker["command"]
    assert python == "python"
    await site.works([sys.executable, *arguments])


def variables() -> set[str]:
    """What the settings want of the environment."""
    return set(re.findall(r'os\.environ\["(\w+)"\]', blocks()["mysite/settings.py"]))


@pytest.mark.server
def test_options_of_the_message_server(tmp_path: Path) -> None:
    """A server takes the options of the page."""
    command = yaml.safe_load(blocks()["compose.yaml"])["services"]["valkey"]["command"]
    assert command[0] == "valkey-server"
    options = dict(zip(command[1::2], command[2::2], strict=True))
    given: dict[str, Any] = {
        name.removeprefix("--").replace("-", "_"): value for name, value in options.items()
    }
    with EmbeddedServer(external=False, binary=server_binaries()[0], **given) as server:
        for name, value in options.items():
            found = server.command("CONFIG", "GET", name.removeprefix("--"))
            assert found[1].decode() == value


# Kubernetes


def manifests() -> dict[tuple[str, str], Any]:
    found = [each for each in yaml.safe_load_all(blocks()["mysite.yaml"]) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def test_kubernetes() -> None:
    """Labels, ports, variables and times fit each other; the probes ask pages that there are."""
    found = manifests()
    assert set(found) == {("Deployment", "mysite"), ("Deployment", "mysite-worker"), ("Service", "mysite")}
    for (kind, name), each in found.items():
        spec = each["spec"]
        if kind == "Service":
            assert spec["selector"] == found["Deployment", name]["spec"]["selector"]["matchLabels"]
            assert spec["ports"][0]["targetPort"] == "http"
            continue
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        (container,) = spec["template"]["spec"]["containers"]
        assert variables() <= {variable["name"] for variable in container["env"]}
    pod = found["Deployment", "mysite"]["spec"]["template"]["spec"]
    (web,) = pod["containers"]
    assert [port["containerPort"] for port in web["ports"]] == [8000]
    assert "--port 8000" in " ".join(json.loads(dockerfile()["CMD"]))
    assert drain_seconds() + 5 < pod["terminationGracePeriodSeconds"]
    for probe, view in (("livenessProbe", "live"), ("readinessProbe", "ready")):
        asked = web[probe]["httpGet"]
        assert asked["port"] == "http" and asked["httpHeaders"][0]["name"] == "Host"
        path = asked["path"].removeprefix("/health")
        assert resolve(path, "channels_asyncq.urls").url_name == view
    (worker,) = found["Deployment", "mysite-worker"]["spec"]["template"]["spec"]["containers"]
    assert worker["command"] == yaml.safe_load(blocks()["compose.yaml"])["services"]["worker"]["command"]
    assert worker["lifecycle"]["preStop"]["exec"]["command"] == ["sh", "-c", "kill -INT 1"]


# Heroku and the like


@pytest.mark.processes
@needs_curl
async def test_procfile(site: Site) -> None:
    """A shell runs its lines: the server at the port of the environment, and the worker."""
    lines = dict(line.split(": ", 1) for line in blocks()["Procfile"].splitlines()[1:])
    assert set(lines) == {"web", "worker"}
    port = free_port()
    text = lines["web"].replace("0.0.0.0", "127.0.0.1")
    assert text.startswith("uvicorn ")
    shell = ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m {text}"]
    await site.serves(shell, port, PORT=str(port))
    assert lines["worker"].startswith("python ")
    await site.works(["sh", "-c", f"exec {shlex.quote(sys.executable)} {lines['worker'][7:]}"])
