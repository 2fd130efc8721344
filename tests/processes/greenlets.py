"""
A process whose threads are greenlets. Arguments: CONFIG as JSON, gevent or eventlet, what to do.

It prints what came of it as one line of JSON.
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

config, kind, what = sys.argv[1:]
if what == "late":
    # As gunicorn with --preload: the application is there before its worker replaces anything.
    import channels_asyncq

    made = channels_asyncq.AsyncQueueChannelLayer(**json.loads(config))
# Of threads nothing may be replaced, and greenlets run while one of them reads or sleeps all the same.
replaced: dict[str, bool] = {"thread": False} if what == "sockets" else {}
if kind == "gevent":
    importlib.import_module("gevent.monkey").patch_all(**replaced)
else:
    importlib.import_module("eventlet").monkey_patch(all=True, **replaced)

import asyncio  # noqa: E402
import logging  # noqa: E402
import socket  # noqa: E402
import time  # noqa: E402

from asgiref.sync import async_to_sync  # noqa: E402

from channels_asyncq import AsyncQueueChannelLayer, ChannelLayerError, sync, threads  # noqa: E402

SENDERS = 50
EACH = 4

logging.basicConfig(format="%(message)s")
spawn: Callable[..., Any] = importlib.import_module(kind).spawn


def note(number: int) -> dict[str, Any]:
    return {"type": "test.note", "n": number}


async def hear(layer: AsyncQueueChannelLayer) -> list[int]:
    """The numbers that fifty greenlets send to a group, in order, while this one runs an event loop."""

    def send(first: int) -> None:
        for number in range(first, first + EACH):
            sync.group_send("room", note(number), layer)

    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    for first in range(0, SENDERS * EACH, EACH):
        spawn(send, first)
    return sorted([(await layer.receive(channel))["n"] for _ in range(SENDERS * EACH)])


def many(layer: AsyncQueueChannelLayer) -> dict[str, Any]:
    return {"heard": async_to_sync(hear)(layer)}


def sockets(layer: AsyncQueueChannelLayer) -> dict[str, Any]:
    # async_to_sync() is no good there: its pool of threads has a queue that takes them for greenlets.
    return {"heard": asyncio.run(hear(layer))}


def alone(layer: AsyncQueueChannelLayer) -> dict[str, Any]:
    """One call after the other by `async_to_sync`, the first one before any of `sync`."""
    sent = 0
    for number in range(5):
        async_to_sync(layer.group_send)("room", note(number))
        sync.group_send("room", note(number), layer)
        sent += 1
    return {"sent": sent}


def outage(layer: AsyncQueueChannelLayer) -> dict[str, Any]:
    """
    What a send waits for in vain, and how often another greenlet had its turn meanwhile.

    It ends when an attempt to connect has failed: on a slow machine that may be after the sends.
    """
    turns = 0
    waits = True
    logged: list[str] = []

    def note_line(record: logging.LogRecord) -> bool:
        logged.append(record.getMessage())
        return True

    logging.getLogger("channels_asyncq.connection").addFilter(note_line)

    def take_turns() -> None:
        nonlocal turns
        while waits:
            turns += 1
            time.sleep(0.001)

    spawn(take_turns)
    errors = []
    for number in range(3):
        try:
            sync.group_send("room", note(number), layer)
        except ChannelLayerError as exc:
            errors.append(type(exc).__name__)
    waits = False
    while not logged:
        time.sleep(0.01)
    return {"errors": errors, "turns": turns}


def hub(layer: AsyncQueueChannelLayer) -> dict[str, Any]:
    """Whether the hub that a socket has made in a real thread still holds anything after the thread has ended."""
    made = []

    def connect() -> None:
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", 1))
        made.append(importlib.import_module("gevent" if kind == "gevent" else "eventlet.hubs").get_hub())

    threads.start(connect, "test").join()
    (ended,) = made
    return {"holds": (ended.loop if kind == "gevent" else ended.greenlet) is not None}


DO = {"many": many, "late": many, "sockets": sockets, "alone": alone, "outage": outage, "hub": hub}
if __name__ == "__main__":
    layer = made if what == "late" else AsyncQueueChannelLayer(**json.loads(config))
    result = DO[what](layer)
    layer.close_from_thread()
    print(json.dumps(result))
