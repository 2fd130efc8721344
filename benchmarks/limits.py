"""What no layer can exceed on this machine: the server, a queue and a call from sync code by themselves."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping

import hiredis
from asgiref.sync import async_to_sync

from channels_asyncq.testing import EmbeddedServer

COMMANDS = 100_000
IN_FLIGHT = 32
ITEMS = 200_000
CALLS = 1000
PAYLOAD = b"x" * 150


def limits(server: EmbeddedServer) -> Mapping[str, float]:
    """Return rates per second by what was done."""
    return {
        f"PUBLISH to nobody, {IN_FLIGHT} in flight, by hand": publish(server),
        "asyncio.Queue, from one task to another": asyncio.run(hand_off()),
        "an empty async_to_sync() call": empty_calls(),
    }


def publish(server: EmbeddedServer) -> float:
    """PUBLISH over one connection, written and read by hand, `IN_FLIGHT` at a time."""
    command = b"*3\r\n$7\r\nPUBLISH\r\n$5\r\nlimit\r\n$%d\r\n%b\r\n" % (len(PAYLOAD), PAYLOAD)
    batch = command * IN_FLIGHT
    reader = hiredis.Reader()
    with socket.create_connection((server.host, server.port)) as connection:
        began = time.monotonic()
        for _ in range(COMMANDS // IN_FLIGHT):
            connection.sendall(batch)
            answers = 0
            while answers < IN_FLIGHT:
                reader.feed(connection.recv(2**16))
                while reader.gets() is not False:
                    answers += 1
        return COMMANDS / (time.monotonic() - began)


async def hand_off() -> float:
    """One task puts, another gets."""
    queue: asyncio.Queue[int] = asyncio.Queue(100)

    async def put() -> None:
        for number in range(ITEMS):
            await queue.put(number)

    began = time.monotonic()
    putting = asyncio.create_task(put())
    for _ in range(ITEMS):
        await queue.get()
    await putting
    return ITEMS / (time.monotonic() - began)


def empty_calls() -> float:
    async def nothing() -> None:
        pass

    def call() -> None:
        async_to_sync(nothing)()

    began = time.monotonic()
    for _ in range(CALLS):
        call()
    return CALLS / (time.monotonic() - began)
