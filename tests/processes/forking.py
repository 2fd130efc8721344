"""
A process that forks while its layer is in use. Arguments: CONFIG as JSON, the way.

The parent is a member of a group on a loop that runs throughout, in a thread, and sends from other threads; the
children send too. Prints one JSON line: what arrived, by sender, and what was found out on the way.
"""

import asyncio
import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer, sync

# Python warns of a fork with threads; that such processes exist is what this is about.
warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)

CHILDREN = 4
SENDS = 25
ROOM = "room"


class Parent:
    """The receiving side: a loop in a thread, with a session of its own."""

    def __init__(self, layer: AsyncQueueChannelLayer) -> None:
        self.layer = layer
        self.arrived: defaultdict[str, list[int]] = defaultdict(list)
        self._expected: Future[None] = Future()
        self._count = 0
        self._enough = threading.Condition()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._receive()))
        self._thread.start()
        assert self._ready.wait(10)

    async def _receive(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        channel = await self.layer.new_channel()
        await self.layer.group_add(ROOM, channel)
        self._ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                message = await self.layer.receive(channel)
                with self._enough:
                    self.arrived[message["who"]].append(message["n"])
                    self._count += 1
                    self._enough.notify_all()

    def wait_for(self, count: int) -> bool:
        with self._enough:
            return self._enough.wait_for(lambda: self._count >= count, 30)

    def finish(self) -> None:
        assert self._loop is not None
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)


def send_many(layer: AsyncQueueChannelLayer, who: str, count: int = SENDS) -> None:
    for n in range(count):
        if n % 2:
            async_to_sync(layer.group_send)(ROOM, {"type": "test.note", "who": who, "n": n})
        else:
            sync.group_send(ROOM, {"type": "test.note", "who": who, "n": n}, layer)


def sockets() -> set[str]:
    """The sockets this process holds, by inode; Linux only."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            if target.startswith("socket:"):
                found.add(target)
    return found


def connections() -> set[str]:
    """Those of them that are TCP."""
    with open("/proc/self/net/tcp") as table:
        inodes = {f"socket:[{line.split()[9]}]" for line in table.readlines()[1:]}
    return sockets() & inodes


def in_flight(parent: Parent, work: Callable[[str], None], *, before: int = 0) -> dict[str, Any]:
    """Fork four children while four threads send; `before` messages were sent earlier."""
    layer = parent.layer
    stop = threading.Event()
    sent = dict.fromkeys((f"thread {n}" for n in range(4)), 0)

    def keep_sending(who: str) -> None:
        while not stop.is_set():
            sync.group_send(ROOM, {"type": "test.note", "who": who, "n": sent[who]}, layer)
            sent[who] += 1

    threads = [threading.Thread(target=keep_sending, args=(who,)) for who in sent]
    for thread in threads:
        thread.start()
    assert parent.wait_for(40)
    children = []
    for number in range(CHILDREN):
        child = os.fork()
        if not child:
            work(f"child {number}")
            # With all that an interpreter does at its end: atexit, the collection of everything.
            sys.exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sent_until_now = dict(sent)
    # The threads that were there before the forks, and the loop, go on.
    while any(sent[who] < sent_until_now[who] + 20 for who in sent):
        if not all(thread.is_alive() for thread in threads):
            break
        stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join(10)
    arrived_all = parent.wait_for(before + sum(sent.values()) + CHILDREN * SENDS)
    return {"codes": codes, "sent": sent, "arrived_all": arrived_all}


def exits(parent: Parent) -> dict[str, Any]:
    """Children that send and end like any program."""
    return in_flight(parent, lambda who: send_many(parent.layer, who))


def collects(parent: Parent) -> dict[str, Any]:
    """Children that drop what they can and collect before and after."""

    def work(who: str) -> None:
        gc.collect()
        send_many(parent.layer, who)
        asyncio.run(asyncio.sleep(0))
        gc.collect()

    return in_flight(parent, work)


def shares_nothing(parent: Parent) -> dict[str, Any]:
    """Children that look whether they hold a connection of the parent."""
    send_many(parent.layer, "before", 2)
    ours = connections()
    shared: list[int] = []
    reader, writer = os.pipe()

    def work(who: str) -> None:
        held = len(connections() & ours)
        send_many(parent.layer, who)
        os.write(writer, f"{held} {len(connections() & ours)} {len(connections())}\n".encode())

    result = in_flight(parent, work, before=2)
    os.close(writer)
    with os.fdopen(reader) as lines:
        shared = [int(number) for line in lines for number in line.split()]
    result["ours"] = len(ours)
    result["shared"] = shared
    result["arrived_before"] = parent.arrived.pop("before", None)
    return result


def _process(config: dict[str, Any], who: str, layer: AsyncQueueChannelLayer | None = None) -> None:
    send_many(layer or AsyncQueueChannelLayer(**config), who)


def _by(method: str, parent: Parent) -> dict[str, Any]:
    context: Any = multiprocessing.get_context(method)
    send_many(parent.layer, "before", 2)
    config = json.loads(sys.argv[1])
    layer = parent.layer if method == "fork" else None
    children = [
        context.Process(target=_process, args=(config, f"child {number}", layer))
        for number in range(CHILDREN)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
    send_many(parent.layer, "after")
    arrived_all = parent.wait_for(2 + (CHILDREN + 1) * SENDS)
    result = {"codes": [child.exitcode for child in children], "arrived_all": arrived_all}
    result["after"] = parent.arrived.pop("after", None)
    parent.arrived.pop("before", None)
    for child in children:
        child.close()
    return result


def multiprocessing_fork(parent: Parent) -> dict[str, Any]:
    return _by("fork", parent)


def multiprocessing_spawn(parent: Parent) -> dict[str, Any]:
    return _by("spawn", parent)


def multiprocessing_forkserver(parent: Parent) -> dict[str, Any]:
    return _by("forkserver", parent)


def grandchildren(parent: Parent) -> dict[str, Any]:
    """A child that uses its layer and forks again, as pre-forking servers under supervisors do."""
    send_many(parent.layer, "before", 2)
    child = os.fork()
    if not child:
        send_many(parent.layer, "child 0")
        grandchild = os.fork()
        if not grandchild:
            send_many(parent.layer, "child 1")
            sys.exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
        send_many(parent.layer, "child 2")
        sys.exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    send_many(parent.layer, "child 3")
    arrived_all = parent.wait_for(2 + 4 * SENDS)
    parent.arrived.pop("before", None)
    return {"codes": [code] * CHILDREN, "arrived_all": arrived_all}


def in_c(parent: Parent) -> dict[str, Any]:
    """Children that were forked in C, as uWSGI forks: none of Python's hooks has run."""
    send_many(parent.layer, "before", 2)
    libc = ctypes.PyDLL(None)
    codes = []
    for number in range(CHILDREN):
        parent.wait_for(2 + number * (SENDS + 2))
        # The other threads sleep in their selectors then: one that waits for the interpreter's lock would
        # leave it broken in the child, whatever a layer does.
        time.sleep(0.1)
        child = libc.fork()
        if not child:
            code = 1
            try:
                send_many(parent.layer, f"child {number}")
                code = 0
            finally:
                # Python does not know that the parent's threads are not here, and would wait for them.
                os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        send_many(parent.layer, f"after {number}", 2)
    arrived_all = parent.wait_for(2 + CHILDREN * (SENDS + 2))
    for name in ("before", *(f"after {number}" for number in range(CHILDREN))):
        assert parent.arrived.pop(name) == [0, 1]
    return {"codes": codes, "arrived_all": arrived_all}


def unwinds(parent: Parent) -> dict[str, Any]:
    """Children forked inside a coroutine, who leave through asyncio.run(): its clean-up runs in the child."""
    layer = parent.layer
    codes: list[int] = []

    async def main() -> None:
        channel = await layer.new_channel()
        await layer.group_add("own", channel)
        for number in range(CHILDREN):
            child = os.fork()
            if not child:
                raise SystemExit(0)
            # Blocking, because the child closes its loop, and with it the pipe by which threads wake the
            # parent's: that is asyncio's own. The connections are ours.
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))  # noqa: ASYNC222
            await layer.group_send("own", {"type": "test.note", "n": number})
            async with asyncio.timeout(30):
                assert (await layer.receive(channel))["n"] == number
            for n in range(SENDS):
                await layer.group_send(ROOM, {"type": "test.note", "who": f"child {number}", "n": n})

    asyncio.run(main())
    return {"codes": codes, "arrived_all": parent.wait_for(CHILDREN * SENDS)}


def stands_still(parent: Parent) -> dict[str, Any]:
    """Children forked while a loop with a session stands still: to collect it would close it."""
    layer = parent.layer
    loop = asyncio.new_event_loop()

    async def join() -> str:
        channel = await layer.new_channel()
        await layer.group_add("own", channel)
        return channel

    async def receive() -> None:
        async with asyncio.timeout(30):
            for n in range(2):
                assert (await layer.receive(channel))["n"] == n

    channel = loop.run_until_complete(join())
    codes = []
    for number in range(CHILDREN):
        child = os.fork()
        if not child:
            del loop
            sys.exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        receiving = loop.create_task(receive())
        # Over the server, and from a thread that wakes the loop.
        sync.group_send("own", {"type": "test.note", "n": 0}, layer)
        thread = threading.Timer(0.1, sync.send, [channel, {"type": "test.note", "n": 1}, layer])
        thread.start()
        loop.run_until_complete(receiving)
        thread.join()
        send_many(layer, f"child {number}")
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    return {"codes": codes, "arrived_all": parent.wait_for(CHILDREN * SENDS)}


if __name__ == "__main__":
    layer = AsyncQueueChannelLayer(**json.loads(sys.argv[1]))
    parent = Parent(layer)
    process = os.getpid()
    try:
        result = globals()[sys.argv[2]](parent)
    finally:
        if os.getpid() == process:
            parent.finish()
    print(json.dumps({**result, "arrived": parent.arrived}))
