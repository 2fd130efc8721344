"""Channels' consumers and ours under Daphne and uvicorn, with real clients."""

import asyncio
import base64
import os
import socket
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from channels_asyncq import AsyncQueueChannelLayer
from tests.consumers import KINDS
from tests.contract import DEADLINE, eventually
from tests.test_servers import Served, served

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

APPLICATION = "tests.processes.sockets:application"
SERVERS = ["daphne", "uvicorn"]


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest, server: str) -> str:
    return _served_by(server, request.param)


@pytest.fixture(params=["ours", "ours-sync"])
def own(request: pytest.FixtureRequest, server: str) -> str:
    return _served_by(server, request.param)


def _served_by(server: str, kind: str) -> str:
    if server == "daphne" and KINDS[kind].is_sync:
        pytest.skip("Daphne hangs when it is told to stop while a sync handler runs, whatever the consumer")
    return kind


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(redis_url: str, prefix: str) -> dict[str, Any]:
    return {"hosts": [redis_url], "prefix": prefix, "application": APPLICATION}


def visit(site: Served, path: str, **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{site.port}/{path}", open_timeout=DEADLINE, **options)


async def hears(client: ClientConnection) -> Any:
    async with asyncio.timeout(DEADLINE):
        return await client.recv()


async def test_conversation(kind: str, server: str, config: dict[str, Any]) -> None:
    """Accepted with a subprotocol, heard by the room, closed with its code; refused with 403."""
    async with served(server, **config) as (site,):
        async with visit(site, f"{kind}/room/", subprotocols=["a", "b"]) as one:
            assert one.subprotocol == "a"
            async with visit(site, f"{kind}/room/") as two:
                await two.send("hello")
                assert [await hears(one), await hears(two)] == ["hello"] * 2
                await two.send("close")
                with pytest.raises(ConnectionClosed) as closed:
                    await hears(two)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4001
            assert await hears(one) == "left"
        with pytest.raises(InvalidStatus, match="403"):
            await visit(site, f"{kind}/room/?no")


async def test_error(kind: str, server: str, config: dict[str, Any]) -> None:
    """A handler's error is the server's to log, and the client's connection ends."""
    async with served(server, **config) as (site,):
        async with visit(site, f"{kind}/room/") as client:
            await client.send("fail")
            with pytest.raises(ConnectionClosed):
                await hears(client)
        await eventually(lambda: "ZeroDivisionError: a consumer's own error" in site.errors, "the log")
        # Expected; `served()` would complain about it.
        site.errors = ""


async def test_frame(own: str, server: str, config: dict[str, Any]) -> None:
    """A `websocket.send` message reaches every client of the room under each server."""
    async with (
        served(server, **config) as (site,),
        visit(site, f"{own}/room/") as one,
        visit(site, f"{own}/room/") as two,
    ):
        await two.send("frame")
        assert [await hears(one), await hears(two)] == ["frame"] * 2


@pytest.mark.parametrize("code", [4403, 1012])
async def test_close(own: str, server: str, config: dict[str, Any], code: int) -> None:
    """
    A `websocket.close` message ends every connection of the room, in the middle of what is said there: with code
    and reason under uvicorn, and without the reason and with 4012 for 1012 under Daphne. Nothing is logged.
    """
    layer = AsyncQueueChannelLayer(hosts=config["hosts"], prefix=config["prefix"])
    async with served(server, **config) as (site,):
        clients = [await visit(site, f"{own}/room/") for _ in range(5)]

        async def talk(client: ClientConnection) -> ConnectionClosed:
            try:
                while True:
                    await client.send("hello")
                    for _ in clients:
                        await client.recv()
            except ConnectionClosed as closed:
                return closed

        talking = [asyncio.create_task(talk(client)) for client in clients]
        await asyncio.sleep(0.5)  # they talk
        await layer.group_send("room", {"type": "websocket.close", "code": code, "reason": "over"})
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*talking)
        is_daphne = server == "daphne"
        expected = (4012 if is_daphne and code == 1012 else code, "" if is_daphne else "over")
        assert {(client.close_code, client.close_reason) for client in clients} == {expected}
    await layer.close()


async def test_client_gone_while_the_room_talks(own: str, server: str, config: dict[str, Any]) -> None:
    """A client that is cut off while it is sent to is said to have left, under each server."""
    async with served(server, **config) as (site,), visit(site, f"{own}/room/") as stays:
        for _ in range(10):
            goes = await visit(site, f"{own}/room/")
            for n in range(5):
                await stays.send(str(n))
            goes.transport.abort()
            for n in range(5):
                await stays.send(str(n))
            heard: list[str] = []
            while heard.count("4") < 2 or "left" not in heard:
                heard.append(await hears(stays))


async def test_client_gone_while_its_handler_sends(own: str, server: str, config: dict[str, Any]) -> None:
    """
    A handler that goes on sending to a client that has gone: uvicorn refuses, Daphne does not care, and either
    way disconnect() runs. (Channels' own consumer ends without it under uvicorn.)
    """
    async with served(server, **config) as (site,), visit(site, f"{own}/room/") as stays:
        goes = await visit(site, f"{own}/room/")
        await goes.send("linger")
        assert await hears(goes) == "still here"
        assert await hears(stays) == "lingering"
        goes.transport.abort()
        assert await hears(stays) == "left"


async def test_client_says_goodbye_while_its_handler_sends(
    own: str, server: str, config: dict[str, Any]
) -> None:
    """
    A client that closes as it should, while a handler sends to it, is no error: disconnect() runs, and the
    server's log has nothing. (Daphne does not ignore what is sent between the goodbye and the end.)
    """
    goodbye = _masked(8, (1000).to_bytes(2))
    async with served(server, **config) as (site,), visit(site, f"{own}/room/") as stays:
        for _ in range(10):
            async with visit(site, f"{own}/room/", max_queue=None) as goes:
                await goes.send("chatter")
                assert await hears(goes) == "still here"
                goes.transport.write(goodbye)
                assert await hears(stays) == "left"
        # Daphne looks at all consumers that have ended, in the order in which they came, once a second.
        async with visit(site, f"{own}/room/") as last:
            await last.send("fail")
            await eventually(lambda: "ZeroDivisionError" in site.errors, "the log")
        assert "closed protocol" not in site.errors
        assert site.errors.count("Traceback") == 1
        site.errors = ""


async def test_overflow_says_try_again(own: str, server: str, config: dict[str, Any]) -> None:
    """overflow="close": the client sees 1013 (4013 from Daphne, which cannot say that), and disconnect() runs."""
    code = 4013 if server == "daphne" else 1013
    async with (
        served(server, **config, capacity=5, overflow="close") as (site,),
        visit(site, f"{own}/room/") as room,
        visit(site, f"{own}/stuck/") as client,
    ):
        await client.send("overflow")
        with pytest.raises(ConnectionClosed) as closed:
            for _ in range(6):
                assert await hears(client) == "x"
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code, site.errors
        assert await hears(room) == f"stuck {code}"


FRAME = 64 * 1024
FRAMES = 600


def _masked(opcode: int, payload: bytes) -> bytes:
    """A frame of a client, whose mask is zero."""
    if len(payload) < 126:
        header = bytes([0x80 | opcode, 0x80 | len(payload)])
    else:
        header = bytes([0x80 | opcode, 0xFF]) + len(payload).to_bytes(8)
    return header + bytes(4) + payload


async def test_flow_control(kind: str, server: str, config: dict[str, Any]) -> None:
    """
    While a handler takes its time uvicorn stops reading the socket, so the client cannot send for ever; Daphne
    has no such thing. Either way everything is handled in the end.
    """
    loop = asyncio.get_running_loop()
    async with served(server, **config) as (site,), visit(site, "ours/now/") as now:
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            client.setblocking(False)
            key = base64.b64encode(os.urandom(16)).decode()
            await loop.sock_sendall(
                client,
                f"GET /{kind}/slow/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode(),
            )
            async with asyncio.timeout(DEADLINE):
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += await loop.sock_recv(client, 4096)
            data = memoryview(_masked(2, bytes(FRAME)) * FRAMES + _masked(1, b"how much?"))
            sent = 0

            async def send(patience: float) -> None:
                nonlocal sent
                until = loop.time() + patience
                while sent < len(data) and loop.time() < until:
                    try:
                        sent += client.send(data[sent : sent + FRAME])
                        until = loop.time() + patience
                    except BlockingIOError:
                        await asyncio.sleep(0.01)

            # Daphne takes it all, when it comes to it; uvicorn stops.
            await send(1.0 if server == "uvicorn" else DEADLINE)
            assert (sent < len(data) / 2) is (server == "uvicorn")
            await now.send("now")
            assert await hears(now) == "sent"
            await send(DEADLINE)
            assert sent == len(data)
            async with asyncio.timeout(DEADLINE):
                answer = await loop.sock_recv(client, 4096)
            assert answer.endswith(str(FRAME * FRAMES).encode())
