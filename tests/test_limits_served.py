"""Each limit under Daphne and uvicorn, broken by a real client."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.contract import DEADLINE, POLL
from tests.example import get
from tests.sse import over_http
from tests.test_servers import Served, served

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="the figures come from /proc"),
]

#: Bytes that may be in the socket buffers of both sides, and in the server.
BUFFERS = 16 * 2**20
#: KiB by which a process may grow while a client floods it. What is not read stays in the buffers of the kernel.
GROWTH = 24 * 1024


@pytest.fixture(params=["daphne", "uvicorn"])
async def site(request: pytest.FixtureRequest, redis_url: str, prefix: str) -> AsyncGenerator[Served, None]:
    config = {"hosts": [redis_url], "prefix": prefix}
    async with served(request.param, application="tests.processes.limited:application", **config) as (site,):
        yield site


async def figures(site: Served) -> dict[str, Any]:
    _, text = await asyncio.to_thread(get, site.port, "/figures/")
    found: dict[str, Any] = json.loads(text)
    return found


async def figures_with(site: Served, key: str, value: object) -> dict[str, Any]:
    """Return the figures when one of them is this."""
    async with asyncio.timeout(DEADLINE):
        while (found := await figures(site))[key] != value:  # noqa: ASYNC110  (another process)
            await asyncio.sleep(POLL)
    return found


def visit(site: Served, path: str) -> connect:
    return connect(f"ws://127.0.0.1:{site.port}/{path}", open_timeout=DEADLINE, max_queue=None)


async def hears(client: ClientConnection) -> Any:
    async with asyncio.timeout(DEADLINE):
        return await client.recv()


async def close_code(client: ClientConnection) -> tuple[int, list[Any]]:
    """The code with which the server closes, and what it says before."""
    heard: list[Any] = []
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            heard.append(await hears(client))
    assert closed.value.rcvd is not None, closed.value
    return closed.value.rcvd.code, heard


class Flood:
    """A client that sends one frame again and again, as fast as its socket takes it, and reads nothing."""

    def __init__(self, connection: socket.socket, size: int) -> None:
        self._connection = connection
        length = bytes([0x80 | size]) if size < 126 else bytes([0xFE]) + size.to_bytes(2)
        self._frame = bytes([0x82]) + length + bytes(4) + bytes(size)
        self._rest = memoryview(b"")
        self.sent = 0

    @property
    def frames(self) -> int:
        """How many whole frames are gone."""
        return self.sent // len(self._frame)

    async def pour(self, seconds: float, most: int = 2**62) -> None:
        """Send for so many seconds, until so many bytes are gone, or until the server ends it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self.sent < most and loop.time() < until:
            if not self._rest:
                self._rest = memoryview(self._frame * max(1, 2**16 // len(self._frame)))
            try:
                count = self._connection.send(self._rest)
            except BlockingIOError:
                await asyncio.sleep(POLL)
            except OSError:
                return
            else:
                self._rest = self._rest[count:]
                self.sent += count
                await asyncio.sleep(0)


@asynccontextmanager
async def flood(site: Served, path: str, size: int) -> AsyncGenerator[Flood, None]:
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", site.port))
        key = base64.b64encode(os.urandom(16)).decode()
        await loop.sock_sendall(
            connection,
            f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode(),
        )
        answer = b""
        async with asyncio.timeout(DEADLINE):
            while b"\r\n\r\n" not in answer:
                answer += await loop.sock_recv(connection, 4096)
        assert b" 101 " in answer
        yield Flood(connection, size)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("size", [10, 2**15])
async def test_flood_that_waits(site: Served, size: int) -> None:
    """
    The server stops reading: neither its memory nor what it has handled grows, and the room goes on.

    When the flood has gone, its consumer ends.
    """
    loop = asyncio.get_running_loop()
    async with visit(site, "few/") as room:
        before = (await figures(site))["kib"]
        began = loop.time()
        async with flood(site, "waits/", size) as flooding:
            await flooding.pour(3.0)
            assert flooding.sent < BUFFERS
            await asyncio.to_thread(get, site.port, "/say/")
            assert await hears(room) == "hello"
            found = await figures(site)
        assert 5 <= found["handled"]["Waits"] <= 5 + 1 + 20 * (loop.time() - began)
        assert found["kib"] - before < GROWTH
        assert found["limited"]["rate"] > 0


async def test_burst_that_waits(site: Served) -> None:
    """A client that sends much at once is slowed down, and loses nothing."""
    loop = asyncio.get_running_loop()
    async with visit(site, "waits/") as client:
        began = loop.time()
        for number in range(30):
            await client.send(str(number))
        assert [await hears(client) for _ in range(30)] == [str(number) for number in range(30)]
        assert loop.time() - began > 25 / 20 - 0.01
    found = await figures_with(site, "ended", [["Waits", 1000]])
    assert found["handled"] == {"Waits": 30}


@pytest.mark.parametrize("size", [100, 2**15])
async def test_flood_that_is_dropped(site: Served, size: int) -> None:
    """Frames that are too many go nowhere, and soon the server stops reading. The client stays connected."""
    loop = asyncio.get_running_loop()
    async with visit(site, "drops/") as room:
        before = (await figures(site))["kib"]
        began = loop.time()
        async with flood(site, "drops/", size) as flooding:
            await flooding.pour(3.0)
            assert flooding.sent < 2 * BUFFERS
            await asyncio.to_thread(get, site.port, "/say/")
            assert await hears(room) == "hello"
            found = await figures(site)
            seconds = loop.time() - began
        assert 5 <= found["handled"]["Drops"] <= 5 + 1 + 20 * seconds
        cost = 1 + size // 4096
        assert 500 / cost <= found["limited"]["rate"] + 1 <= (500 + 500 * (seconds + 0.1)) / cost + 2
        assert found["kib"] - before < GROWTH
        assert found["ended"] == []


async def test_flood_that_is_closed(site: Served) -> None:
    """The client is told 4008, whatever it goes on sending; the memory stays as it was."""
    async with visit(site, "closes/") as client:
        for number in range(100):
            await client.send(str(number))
        code, heard = await close_code(client)
    assert (code, heard) == (4008, [str(number) for number in range(len(heard))])
    assert 5 <= len(heard) <= 10
    # Daphne reads no answer any more.
    found = await figures_with(site, "ended", [["Closes", 1006 if site.name == "daphne" else 4008]])
    assert found["handled"] == {"Closes": len(heard)}
    for number, size in ((2, 2**15), (3, 100)):
        async with flood(site, "closes/", size) as flooding:
            async with asyncio.timeout(DEADLINE / 2):
                # The server ends it, although it does not answer to the close frame.
                await flooding.pour(DEADLINE)
            assert flooding.sent < BUFFERS
            assert (await figures(site))["kib"] - found["kib"] < GROWTH
        assert (await figures(site))["limited"] == {"rate": number}


async def test_frame_that_is_too_long(site: Served) -> None:
    """The client is told 1009 (4009 by Daphne), and its handler is not called."""
    async with visit(site, "short/") as client:
        await client.send("x" * 1000)
        assert await hears(client) == "x" * 1000
        await client.send("x" * 1001)
        code, _ = await close_code(client)
    assert code == (4009 if site.name == "daphne" else 1009)
    found = await figures_with(site, "ended", [["Short", code]])
    assert found["handled"] == {"Short": 1}
    assert found["limited"] == {"max_frame": 1}


async def test_silence(site: Served) -> None:
    """A client that says nothing, and does not even answer, is told 4408 and is gone."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with visit(site, "idle/") as client:
        code, _ = await close_code(client)
    assert code == 4408
    assert loop.time() - began > 0.49
    found = await figures_with(site, "ended", [["Idle", 4408]])
    async with flood(site, "idle/", 100):
        async with asyncio.timeout(DEADLINE):
            while len((await figures(site))["ended"]) < 2:  # noqa: ASYNC110
                await asyncio.sleep(POLL)
    assert (await figures(site))["limited"] == {"idle_timeout": 2}
    assert found["handled"] == {}


async def test_groups_that_are_too_many(site: Served) -> None:
    """The handler is told, and the client stays. (Its consumer is in the room already.)"""
    async with visit(site, "few/") as client:
        for text in ("join a", "join b", "join c", "join a"):
            await client.send(text)
        assert [await hears(client) for _ in range(4)] == ["join a", "join b", "too many: 3", "join a"]
    assert (await figures(site))["limited"] == {"max_groups": 1}


async def test_resumes_that_are_too_many(site: Served) -> None:
    """The page is told when to come back, by a WebSocket and by a stream."""
    _, text = await asyncio.to_thread(get, site.port, "/position/")
    since = json.loads(text)["position"]
    for number in range(4):
        async with visit(site, f"back/?since={since}") as client:
            frame = json.loads(await hears(client))
            if number < 2:
                assert frame["recovered"] is True
            else:
                assert frame["type"] == "retry" and frame["ms"] > 3_500_000
                code, _ = await close_code(client)
                assert code == (4012 if site.name == "daphne" else 1012)
    for number in range(4):
        stream = await over_http(site.port, "/stream/", since)
        if number < 2:
            assert await stream.here() == []
        else:
            assert await stream.end() == []
            assert stream.parser.retry is not None and stream.parser.retry > 3_500_000
        await stream.leave()
    found = await figures(site)
    assert found["limited"] == {"resume_rate": 4}
    assert found["resumes"] == 4
