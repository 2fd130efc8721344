"""Connections that a test makes itself: transport, owner, message handler, clock, and the bytes of a server."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hiredis import ReplyError

from channels_asyncq.bus.resp import deadline, protocol, reader
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.slices import SLICE


@pytest.fixture(autouse=True)
def no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read everything at once, however slow the machine is. Tests of slices set the limit back."""
    monkeypatch.setattr(reader, "_READ_SECONDS", 3600 * SLICE)


class Pipe(asyncio.Transport):
    """A transport that keeps the written bytes. The test plays the server."""

    def __init__(self, protocol: WireProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.writes: list[bytes] = []
        self.reading = True
        self.closing = False
        self.aborted = False
        self.ended = False
        self.deaf = False
        #: Bytes that were written and have not left.
        self.unsent = 0
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.closing
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True
        if not self.deaf:
            self.lose(None)

    def abort(self) -> None:
        self.closing = self.aborted = True
        self.lose(None)

    def lose(self, exc: Exception | None) -> None:
        """End the connection as asyncio does: on the next loop iteration, and once."""
        self.closing = True
        asyncio.get_running_loop().call_soon(self._end, exc)

    def _end(self, exc: Exception | None) -> None:
        if not self.ended:
            self.ended = True
            self.protocol.connection_lost(exc)


class Owner:
    """Keeps the errors with which its connections ended. The first end sets `ended`."""

    def __init__(self) -> None:
        self.lost: list[Exception | None] = []
        self.ended = asyncio.Event()

    def on_silent(self, wire: WireProtocol) -> None:
        pass

    def on_lost(self, wire: WireProtocol, error: Exception | None) -> None:
        assert not wire.pending, "on_lost comes after the futures"
        self.lost.append(error)
        self.ended.set()


class Handler:
    """Offers each message to a function and keeps the messages that it took: by default all."""

    def __init__(self, take: Callable[[bytes, bytes], bool] = lambda topic, payload: True) -> None:
        self.take = take
        self.seen: list[tuple[bytes, bytes]] = []
        self.unsubscribed: list[bytes] = []

    def on_message(self, topic: bytes, payload: bytes) -> bool:
        taken = self.take(topic, payload)
        if taken:
            self.seen.append((topic, payload))
        return taken

    def on_unsubscribed(self, topic: bytes) -> None:
        self.unsubscribed.append(topic)


class Session:
    """A WireProtocol on a Pipe, its owner and its message handler."""

    def __init__(self, *, subscriber: bool = False, **arguments: Any) -> None:
        self.lost: list[Exception | None] = []
        self.ended = asyncio.Event()
        self.seen: list[tuple[bytes, bytes]] = []
        #: How many messages had been taken when a sharded subscription ended, and its topic.
        self.unsubscribed: list[tuple[int, bytes]] = []
        #: Decides for each offer; by default everything is taken.
        self.take: Callable[[bytes, bytes], bool] = lambda topic, payload: True
        self.wire = WireProtocol(owner=self, messages=self if subscriber else None, **arguments)
        self.pipe = Pipe(self.wire)

    def on_silent(self, wire: WireProtocol) -> None:
        pass

    def on_lost(self, wire: WireProtocol, error: Exception | None) -> None:
        assert wire is self.wire and not wire.pending, "on_lost comes after the futures"
        self.lost.append(error)
        self.ended.set()

    def on_message(self, topic: bytes, payload: bytes) -> bool:
        taken = self.take(topic, payload)
        if taken:
            self.seen.append((topic, payload))
        return taken

    def on_unsubscribed(self, topic: bytes) -> None:
        self.unsubscribed.append((len(self.seen), topic))

    def feed(self, data: bytes) -> None:
        self.wire.data_received(data)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def encode(value: Any) -> bytes:
    """Return the bytes that a server sends for a value."""
    match value:
        case None:
            return b"$-1\r\n"
        case bool() | float():
            raise TypeError(value)
        case int():
            return b":%d\r\n" % value
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case str():
            return b"+%b\r\n" % value.encode()
        case ReplyError():
            return b"-%b\r\n" % str(value).encode()
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(encode, value))
    raise TypeError(value)


def message(number: int) -> bytes:
    return encode([b"message", b"topic", b"%d" % number])


def messages(*numbers: int) -> list[tuple[bytes, bytes]]:
    return [(b"topic", b"%d" % number) for number in numbers]


class Clock:
    """A clock for connections, and the timers that they set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None], FakeHandle]] = []
        for module in (deadline, protocol, reader):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self._call_later)

    def _call_later(
        self, delay: float, callback: Callable[[], None], *, context: object = None
    ) -> FakeHandle:
        handle = FakeHandle()
        self.timers.append((self.now + delay, callback, handle))
        return handle

    def advance(self, seconds: float, *, at_once: bool = False) -> None:
        """Let time pass and run timers: each at its time, or late if the loop is blocked until then."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = end if at_once else max(self.now, timer[0])
            if not timer[2].cancelled:
                timer[1]()
            if at_once:
                break
        self.now = end


class FakeHandle:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def python_calls(work: Callable[[], object]) -> int:
    """Return how many Python functions `work` calls, itself included."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    # A garbage collection would call the finalisers of objects of other tests.
    gc.collect()
    gc.disable()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


class Recording:
    """An open command that keeps its replies and errors."""

    size, count = 4, 1

    def __init__(self) -> None:
        self.results: list[object] = []

    def pack(self) -> bytes:
        return b"*1\r\n$4\r\nPING\r\n"

    def done(self) -> bool:
        return False

    def set_result(self, reply: object, /) -> None:
        self.results.append(reply)

    def set_exception(self, error: Exception, /) -> None:
        self.results.append(error)

    def exception(self) -> None:
        return None


class Growing(Recording):
    """An open command that may grow to several calls of 25 bytes each, and is packed as one."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.size, self.count = 25 * count, count

    def pack(self) -> bytes:
        self.count = 1
        return super().pack()
