"""
Ways in which a process with senders can end. Arguments: CONFIG as JSON, the way.

Prints `{"end": time}` where the program comes to its end; what follows is the interpreter's. Anything on
stderr is a complaint.
"""

import asyncio
import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from channels_asyncq import AsyncQueueChannelLayer, LayerClosed, sync

MESSAGE = {"type": "test.note", "n": 1}


def end() -> None:
    print(json.dumps({"end": time.monotonic()}), flush=True)


def sends_and_ends(layer: AsyncQueueChannelLayer) -> None:
    """What was sent has left, and the interpreter ends."""
    for n in range(20):
        sync.send("jobs", {"type": "test.note", "n": n}, layer)
    end()


def sends_and_vanishes(layer: AsyncQueueChannelLayer) -> None:
    """The same for a process that ends without a word to Python."""
    for n in range(20):
        sync.send("jobs", {"type": "test.note", "n": n}, layer)
    end()
    os._exit(0)


def async_sends_and_ends(layer: AsyncQueueChannelLayer) -> None:
    async def main() -> None:
        await layer.new_channel()
        for n in range(20):
            await layer.send("jobs", {"type": "test.note", "n": n})

    asyncio.run(main())
    end()


def daemon_threads(layer: AsyncQueueChannelLayer) -> None:
    """Daemon threads go on sending while the interpreter ends."""

    def keep_sending() -> None:
        while True:
            try:
                sync.group_send("room", MESSAGE, layer)
            except (LayerClosed, RuntimeError):
                # What a thread gets that the interpreter no longer waits for.
                return

    for _ in range(4):
        threading.Thread(target=keep_sending, daemon=True).start()
    for n in range(20):
        sync.send("jobs", {"type": "test.note", "n": n}, layer)
    end()


def threads(layer: AsyncQueueChannelLayer) -> None:
    """Threads that are joined at the end send until then."""
    began = threading.Event()

    def send() -> None:
        for n in range(20):
            sync.send("jobs", {"type": "test.note", "n": n}, layer)
            began.set()

    threading.Thread(target=send).start()
    assert began.wait(10)
    end()


def at_exit(layer: AsyncQueueChannelLayer) -> None:
    """A handler that sends at the exit, after the relay has stopped."""

    @atexit.register
    def send() -> None:
        for n in range(20):
            sync.send("jobs", {"type": "test.note", "n": n}, layer)

    sync.group_send("room", MESSAGE, layer)
    end()


def finally_sends(layer: AsyncQueueChannelLayer) -> None:
    """Consumers and generators that send in `finally`, as asyncio.run() tears them down."""

    async def consumer(n: int) -> None:
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        begun.append(n)
        try:
            await layer.receive(channel)
        finally:
            await layer.group_discard("room", channel)
            await layer.group_send("room", MESSAGE)
            await layer.send("jobs", {"type": "test.note", "n": n})

    async def listen(n: int) -> AsyncIterator[Any]:
        begun.append(n)
        try:
            async for message in layer.listen("other"):
                yield message
        finally:
            await layer.send("jobs", {"type": "test.note", "n": n})

    async def listener(n: int) -> None:
        async for _ in listen(n):
            pass

    tasks: list[asyncio.Task[None]] = []
    begun: list[int] = []

    async def main() -> None:
        tasks.extend(asyncio.create_task(consumer(n) if n % 2 else listener(n)) for n in range(20))
        while len(begun) < 20:  # noqa: ASYNC110  (connecting takes a busy machine long)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)

    asyncio.run(main())
    end()


def finally_sends_of_a_sender(layer: AsyncQueueChannelLayer) -> None:
    """The same on a loop that has no session."""

    async def worker(n: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await layer.send("jobs", {"type": "test.note", "n": n})

    tasks: list[asyncio.Task[None]] = []

    async def main() -> None:
        tasks.extend([asyncio.create_task(worker(n)) for n in range(20)])
        await asyncio.sleep(0)

    asyncio.run(main())
    end()


def interrupted(layer: AsyncQueueChannelLayer) -> None:
    """Ctrl-C in asyncio.run() with consumers that wait."""

    async def consumer() -> None:
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        await layer.receive(channel)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(consumer())
            await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
    end()


def loops_in_daemon_threads(layer: AsyncQueueChannelLayer) -> None:
    """Loops that still run, with sessions, in threads that nobody joins."""
    ready = threading.Semaphore(0)

    async def consumer() -> None:
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        ready.release()
        await layer.receive(channel)

    for _ in range(2):
        threading.Thread(target=lambda: asyncio.run(consumer()), daemon=True).start()
    for _ in range(2):
        assert ready.acquire(timeout=30)
    sync.send("other", MESSAGE, layer)
    end()


def interrupted_wait(layer: AsyncQueueChannelLayer) -> None:
    """Ctrl-C while a sync send waits for a server that keeps silent."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    with contextlib.suppress(KeyboardInterrupt):
        sync.group_send("room", MESSAGE, layer)
    end()


def silent_server(layer: AsyncQueueChannelLayer) -> None:
    """Sends wait for a server that keeps silent, in threads that nobody joins."""

    def send() -> None:
        with contextlib.suppress(LayerClosed):
            sync.group_send("room", MESSAGE, layer)

    for _ in range(4):
        threading.Thread(target=send, daemon=True).start()
    time.sleep(0.2)
    end()


def silent_names(layer: AsyncQueueChannelLayer) -> None:
    """A server whose name is looked up, and no name server answers."""
    looking = threading.Event()

    def look_up(*_: Any, **__: Any) -> Any:
        looking.set()
        time.sleep(60)

    socket.getaddrinfo = look_up
    config = json.loads(sys.argv[1])
    silent_server(AsyncQueueChannelLayer(**{**config, "hosts": ["redis://silent.example:6379"]}))
    assert looking.wait(10)


if __name__ == "__main__":
    globals()[sys.argv[2]](AsyncQueueChannelLayer(**json.loads(sys.argv[1])))
