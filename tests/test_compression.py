"""What docs/deployment.md says of compression: which servers compress, and how to see it."""

from __future__ import annotations

import asyncio
import shutil
import sys

import pytest

pytest.importorskip("rich")
if sys.platform == "win32":
    pytest.skip("the servers of the benchmarks run on Linux", allow_module_level=True)

from benchmarks.asgi import free_port
from benchmarks.sockets.servers import SocketServer
from benchmarks.sockets.sides import SIDES
from tests.code_blocks import block

HEADER = "sec-websocket-extensions: permessage-deflate"


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(120)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's command is one of curl")
@pytest.mark.parametrize(
    ("server", "compresses"),
    [
        ("uvicorn, deflate", True),
        ("uvicorn", False),
        ("hypercorn", True),
        ("Daphne", False),
        ("granian", False),
        ("gunicorn", False),
    ],
)
async def test_command_of_the_page(server: str, compresses: bool) -> None:
    """The command shows the header where the table says that the server compresses, else only the status."""
    side = SIDES[f"this layer; {server}"]
    if (why := side.obstacle()) is not None:
        pytest.skip(why)
    port = free_port()
    command = block("docs/deployment.md", "sh", having="curl ")
    assert "localhost:8000/ws/room/" in command
    script = command.replace("localhost:8000", f"127.0.0.1:{port}").replace("/ws/room/", "/ws/1/")
    async with SocketServer(side.command(port), port, side.order("memory://", "compression")):
        output = b""
        async with asyncio.timeout(60):
            # gunicorn listens before its worker serves, and the command waits for two seconds only.
            while not output:
                asking = await asyncio.create_subprocess_shell(script, stdout=asyncio.subprocess.PIPE)
                output, _ = await asking.communicate()
    status, *headers = output.decode().lower().splitlines()
    assert status.startswith("http/1.1 101")
    assert len(headers) == compresses and all(header.startswith(HEADER) for header in headers)
