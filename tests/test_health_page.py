"""The examples of docs/health.md, tried with curl on real servers."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from channels_asyncq.testing import EmbeddedServer
from tests.code_blocks import block
from tests.test_docs import DOCS
from tests.test_servers import Served, site

PAGE = "docs/health.md"
# Seconds for a server to start, to learn of an outage, or to end, on a machine that is busy with other tests.
PATIENCE = 60.0

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages"),
    pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on PATH"),
]


def of_docker(port: int) -> list[str]:
    """The command of the Dockerfile, without the exit status that Docker wants."""
    command = block(PAGE, "dockerfile").replace("\\\n", " ").partition(" CMD ")[2]
    assert command.strip().endswith("|| exit 1")
    return shlex.split(command.replace(":8000/", f":{port}/").rpartition("||")[0])


def of_kubernetes(probe: str, port: int) -> list[str]:
    """What Kubernetes sends for a probe of the page, as a command."""
    [container] = yaml.safe_load(block(PAGE, "yaml"))["containers"]
    get = container[probe]["httpGet"]
    [header] = get["httpHeaders"]
    name = f"{header['name']}: {header['value']}"
    return ["curl", "--fail", "--silent", "--header", name, f"http://127.0.0.1:{port}{get['path']}"]


async def run(command: Sequence[str]) -> tuple[int, str]:
    """Run a command; return its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def ends_with(status: int, command: Sequence[str]) -> None:
    """Return when a command ends with this exit status."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if (await run(command))[0] == status:
                return
            await asyncio.sleep(0.2)


async def page(path: str, port: int) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}/health/{path}/"
    _, text = await run(["curl", "--silent", "--header", "Host: www.example.com", url])
    answer: dict[str, Any] = json.loads(text)
    return answer


def without_cause(answer: dict[str, Any]) -> dict[str, Any]:
    """Leave out the words of the library that refused: asyncio and uvloop have different ones."""
    [found] = answer["reasons"]
    cause, remedy, rest = found["reason"].partition("Nobody listens there")
    assert "Error 111 connecting" in cause
    return answer | {"reasons": [found | {"reason": remedy + rest}]}


class Probed(Served):
    """The site under a server, one of them for WSGI."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind, "tests.processes.probed:application")

    def command(self) -> Sequence[str]:
        if self.name != "gunicorn":
            return super().command()
        bind = ["--bind", f"127.0.0.1:{self.port}", "--worker-class", "gthread", "--threads", "2"]
        return [sys.executable, "-m", "gunicorn", *bind, "tests.processes.probed:wsgi_application"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["daphne", "uvicorn", "gunicorn"])
async def test_examples(own_redis_server: EmbeddedServer, prefix: str, kind: str) -> None:
    """A process that never used the layer becomes ready, is not in an outage, and is again after it."""
    config = {"hosts": [own_redis_server.url], "prefix": prefix, "send_timeout": 1.0}
    environment = site(config) | {"DJANGO_SETTINGS_MODULE": "tests.processes.probed_settings"}
    server = Probed(kind)
    try:
        await server.start(server.command(), **environment)
        await server.answers()
        ready = [of_docker(server.port), of_kubernetes("readinessProbe", server.port)]
        live = of_kubernetes("livenessProbe", server.port)
        for command in (*ready, live):
            await ends_with(0, command)
        [said_live, said_ready] = re.findall(r"^\{.*\}$", block(PAGE, "console"), re.MULTILINE)
        assert await page("live", server.port) == json.loads(said_live)
        assert await page("ready", server.port) == json.loads(said_ready)

        await asyncio.to_thread(own_redis_server.kill)
        for command in ready:
            await ends_with(22, command)  # of curl, for the status 503
        assert (await run(live))[0] == 0
        shown = block(PAGE, "json")
        answer = without_cause(await page("ready", server.port))
        assert answer == without_cause(json.loads(shown.replace("6379", str(own_redis_server.port))))

        await asyncio.to_thread(own_redis_server.start)
        for command in ready:
            await ends_with(0, command)
        # Without the header, Django refuses the host.
        bare = f"http://127.0.0.1:{server.port}/health/ready/"
        assert await run(
            ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", bare]
        ) == (
            0,
            "400",
        )
        server.signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            await server.process.wait()
    finally:
        if server.process.returncode is None:
            server.process.kill()
        async with asyncio.timeout(PATIENCE):
            await server.process.wait()
