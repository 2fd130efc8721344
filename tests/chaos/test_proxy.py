"""The proxy breaks what it is told to break, and nothing else."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.contract import eventually

from .proxy import Direction, Proxy, proxied

pytestmark = pytest.mark.chaos


class Echo:
    """A server that says back what it hears, and keeps count."""

    def __init__(self) -> None:
        self.heard = b""
        self.ends = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
        self.ends += 1
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()
    await server.wait_closed()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with proxied(echo.port, random.Random(1)) as proxy:
        yield proxy


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def asks(self, data: bytes) -> bytes:
        self.writer.write(data)
        async with asyncio.timeout(10):
            return await self.reader.readexactly(len(data))

    async def is_silent(self) -> bool:
        """Nothing is there to read. Only time can tell."""
        try:
            async with asyncio.timeout(0.1):
                return not await self.reader.read(1)
        except TimeoutError:
            return True

    async def is_reset(self) -> bool:
        async with asyncio.timeout(10):
            try:
                return not await self.reader.read()
            except ConnectionResetError:
                return True

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    assert await client.asks(b"hello") == b"hello"
    yield client
    await client.close()


async def test_passes_everything_on(proxy: Proxy, client: Client) -> None:
    """Without a fault nothing changes, also when it is much."""
    data = random.Random(2).randbytes(3_000_000)
    assert await client.asks(data) == data
    [tunnel] = proxy.tunnels
    assert (tunnel.up.passed, tunnel.down.passed) == (len(data) + 5, len(data) + 5)


async def test_cut(proxy: Proxy, client: Client, echo: Echo) -> None:
    """Both ends are reset, and the tunnel is forgotten; the next connection works."""
    assert proxy.cut() == 1
    assert await client.is_reset()
    await eventually(lambda: echo.ends == 1, "the server's end")
    assert not proxy.tunnels
    again = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    assert await again.asks(b"again") == b"again"
    await again.close()
    await eventually(lambda: not proxy.tunnels, "the end of the tunnel")


async def test_kinds(proxy: Proxy, client: Client) -> None:
    """A connection that subscribes is one for pushes, and only the kind that was named is cut."""
    other = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    await other.asks(b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n")
    assert [tunnel.kind for tunnel in proxy.tunnels] == ["commands", "pushes"]
    assert proxy.cut("pushes") == 1
    assert await other.is_reset()
    assert await client.asks(b"alive") == b"alive"
    await other.close()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_stall(proxy: Proxy, client: Client, echo: Echo, direction: Direction) -> None:
    """One direction stands still while the other lives; then what piled up arrives."""
    [tunnel] = proxy.tunnels
    proxy.stall(direction)
    client.writer.write(b"waits")
    assert await client.is_silent()
    assert (echo.heard == b"hellowaits") is (direction == "down")
    assert tunnel.flow(direction).is_stalled
    proxy.resume()
    async with asyncio.timeout(10):
        assert await client.reader.readexactly(5) == b"waits"


async def test_stalled_sender_feels_it(proxy: Proxy, client: Client) -> None:
    """Behind a stalled direction the buffers fill up: nothing is swallowed."""
    proxy.stall("up")
    data = bytes(20_000_000)
    client.writer.write(data)
    assert await client.is_silent()
    assert client.writer.transport.get_write_buffer_size() > 0
    proxy.resume()
    async with asyncio.timeout(20):
        assert await client.reader.readexactly(len(data)) == data


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_split(proxy: Proxy, client: Client, direction: Direction) -> None:
    """Small pieces are all there, in order."""
    proxy.splits[direction] = 3
    data = random.Random(3).randbytes(5000)
    assert await client.asks(data) == data
    assert len(list(proxy.pieces(direction, data))) > 5000 / 3


async def test_delay(proxy: Proxy, client: Client) -> None:
    """What is delayed is late."""
    proxy.delays["down"] = lambda: 0.2
    began = asyncio.get_running_loop().time()
    assert await client.asks(b"late") == b"late"
    assert asyncio.get_running_loop().time() - began >= 0.2


async def test_deaf(proxy: Proxy, client: Client, echo: Echo) -> None:
    """What the server says is swallowed, and the connection stays."""
    [tunnel] = proxy.tunnels
    tunnel.down.is_deaf = True
    client.writer.write(b"lost")
    async with asyncio.timeout(10):
        await tunnel.has_dropped.wait()
    assert echo.heard == b"hellolost"
    tunnel.down.is_deaf = False
    assert await client.asks(b"back") == b"back"


async def test_lose_reply(proxy: Proxy, client: Client, echo: Echo) -> None:
    """The command arrives, its reply does not."""
    found = proxy.lose_reply(b"word")
    assert await client.asks(b"other") == b"other"
    client.writer.write(b"the word")
    tunnel = await found
    async with asyncio.timeout(10):
        await tunnel.has_dropped.wait()
    assert echo.heard == b"hellootherthe word"
    assert await client.is_silent()


async def test_hold_and_release(proxy: Proxy, client: Client, echo: Echo) -> None:
    """A command that is held arrives when it is released, long after its client is gone."""
    found = proxy.hold(b"word")
    client.writer.write(b"*1\r\nbefore*1\r\nword")
    tunnel = await found
    await eventually(lambda: echo.heard == b"hello*1\r\nbefore", "what came before it")
    tunnel.cut_client()
    with suppress(ConnectionResetError):
        await client.reader.read()
    assert echo.ends == 0
    await tunnel.release()
    await eventually(lambda: echo.heard.endswith(b"*1\r\nword"), "the command")


async def test_refuse_and_switch(proxy: Proxy, client: Client) -> None:
    """Connections are refused while it says so, and lead to another server after a switch."""
    proxy.refuses = True
    refused = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    assert await refused.is_reset()
    await refused.close()
    proxy.refuses = False
    other = Echo()
    server = await asyncio.start_server(other.serve, "127.0.0.1", 0)
    proxy.switch(server.sockets[0].getsockname()[1])
    assert await client.is_reset()
    again = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    assert await again.asks(b"switched") == b"switched"
    assert other.heard == b"switched"
    await again.close()
    server.close()
    await server.wait_closed()
