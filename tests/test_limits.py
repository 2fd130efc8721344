"""What the clients of our consumers may do: each limit, broken by a client, with a server that a test plays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.consumers import admission
from channels_asyncq.consumers.connection import (
    Connection,
    DaphneConnection,
    UvicornConnection,
    connection_of,
)
from channels_asyncq.generic.websocket import (
    AsyncWebsocketConsumer,
    ResumableWebsocketConsumer,
)
from tests.consumers import Message, Talk, begin, hears, installed, layer, say
from tests.contract import DEADLINE, eventually

__all__ = ["begin", "layer"]


class Echo(AsyncWebsocketConsumer):
    """Says what it hears, and notes how it ended."""

    groups = ["room"]  # noqa: RUF012

    def __init__(self, log: list[Any] | None = None) -> None:
        super().__init__()
        self.log = log if log is not None else []

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.log.append(text_data)
        if text_data == "close":
            await self.close(4000)
        else:
            await self.send(text_data=text_data, bytes_data=bytes_data)

    async def disconnect(self, code: int) -> None:
        self.log.append(code)


def echo(**limits: Any) -> Any:
    return type("Room", (Echo,), limits)


async def started(begin: Any, log: list[Any] | None = None, **limits: Any) -> Talk:
    talk: Talk = begin(echo(**limits), log=log)
    await talk.accepted()
    return talk


# Attributes


@pytest.mark.parametrize(
    ("limits", "error", "words"),
    [
        ({"rate": 20}, TypeError, "rate of Room is 20, and must be a str"),
        ({"rate": "20"}, ValueError, "rate of Room is '20'"),
        ({"rate": "20/s", "burst": 0}, ValueError, "burst of Room is 0"),
        (
            {"rate_action": "kill"},
            ValueError,
            'rate_action of Room is \'kill\': give one of "wait", "drop", "close"',
        ),
        ({"rate_action": []}, ValueError, "rate_action of Room is []"),
        ({"max_frame": 0}, ValueError, "max_frame of Room is 0: give a number of bytes, 1 or more, or None"),
        ({"max_frame": 1.5}, TypeError, "max_frame of Room is 1.5, and must be an int"),
        ({"max_groups": -1}, ValueError, "max_groups of Room is -1: give a number of groups"),
        ({"idle_timeout": 0}, ValueError, "idle_timeout of Room is 0: give a positive number of seconds"),
        ({"idle_timeout": float("inf")}, ValueError, "idle_timeout of Room is inf"),
        ({"idle_timeout": "60"}, TypeError, "idle_timeout of Room is '60', and must be a number"),
    ],
)
def test_class_with_a_limit_that_is_wrong(limits: dict[str, Any], error: type[Exception], words: str) -> None:
    """There is no such class: the error names it, the value, and what would be right."""
    with pytest.raises(error) as raised:
        echo(**limits)
    assert str(raised.value).startswith(words)


def test_resumable_class_with_a_limit_that_is_wrong() -> None:
    """So it is with the limit of resumes."""
    with pytest.raises(ValueError, match=r"resume_rate of Room is '5': write events per second"):
        type("Room", (ResumableWebsocketConsumer,), {"resume_rate": "5"})
    with pytest.raises(TypeError, match=r"resume_burst of Room is '5', and must be an int"):
        type("Room", (ResumableWebsocketConsumer,), {"resume_burst": "5"})


@pytest.mark.parametrize(
    ("consumer", "words"),
    [
        (echo(burst=5), 'burst of Room is 5 and has no effect, because rate is None: set rate = "20/s"'),
        (echo(rate_action="close"), "rate_action of Room is 'close' and has no effect, because rate is None"),
        (
            type("Room", (ResumableWebsocketConsumer,), {"resume_burst": 5}),
            "resume_burst of Room is 5 and has no effect, because resume_rate is None",
        ),
    ],
)
async def test_limit_without_effect(
    layer: AsyncQueueChannelLayer, begin: Any, consumer: Any, words: str
) -> None:
    """A class may leave the rate to its subclasses; nobody can connect to it without."""
    talk = begin(consumer)
    with pytest.raises(ValueError, match=words):
        await talk.ends()


async def test_limit_of_one_object(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """What `__init__()` sets is what counts, and is checked."""

    class Room(Echo):
        def __init__(self, most: Any) -> None:
            super().__init__()
            self.max_frame = most

    talk = begin(Room, most=3)
    await talk.accepted()
    say(talk, "long")
    assert (await talk.hears())["code"] == 1009
    with pytest.raises(ValueError, match="max_frame of Room is 0"):
        await begin(Room, most=0).ends()


# The rate


async def test_wait(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A client that is too fast is not asked for more, the room still reaches it, and nothing of it is lost."""
    talk = await started(begin, rate="20/s", burst=3)
    loop = asyncio.get_running_loop()
    began = loop.time()
    say(talk, *range(8))
    assert [await hears(talk) for _ in range(3)] == ["0", "1", "2"]
    await layer.group_send("room", {"type": "websocket.send", "text": "hello"})
    assert await hears(talk) == "hello"
    if loop.time() - began < 0.05:  # else the machine was slow
        assert talk.asked == 1 + 3 + 1  # connect, the frames, and the one that is held
    assert [await hears(talk) for _ in range(5)] == ["3", "4", "5", "6", "7"]
    assert loop.time() - began >= 5 * 0.05 - 0.001
    assert layer.statistics().limited == {"rate": 5}
    await talk.leaves()


async def test_wait_and_client_leaves(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A client that has sent all it may and leaves is gone at once, however low its rate is."""
    talk = await started(begin, rate="1/h", burst=1)
    say(talk, "a")
    assert await hears(talk) == "a"
    await talk.leaves()
    assert layer.statistics().limited == {}


async def test_wait_and_client_lost(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """When a send fails, the disconnect is not waited for at the rate; what came before it is dropped."""
    log: list[Any] = []
    talk = await started(begin, log, rate="1/h", burst=1)
    say(talk, *range(1000))
    assert await hears(talk) == "0"
    await eventually(lambda: talk.asked == 3, "the frame that is held")
    talk.say("websocket.disconnect", code=1006)
    talk.refuse = OSError("the client has gone")
    await layer.group_send("room", {"type": "websocket.send", "text": "hello"})
    await talk.ends()
    assert log == ["0", 1006]
    assert talk.refused == 1


async def test_wait_and_consumer_closes(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """So it is when the consumer closes."""
    log: list[Any] = []
    talk = await started(begin, log, rate="1/h", burst=1)
    say(talk, "close", *range(10))
    assert (await talk.hears())["code"] == 4000
    await talk.leaves(4000)
    assert log == ["close", 4000]


async def test_wait_cancelled(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A consumer that waits ends at once with its server, and its channel with it."""
    talk = await started(begin, rate="1/h", burst=1)
    say(talk, "a", "b")
    assert await hears(talk) == "a"
    await eventually(lambda: talk.asked == 3, "the frame that is held")
    await talk.stop()
    assert layer.statistics().channels == 0
    assert len(asyncio.all_tasks()) == 1


async def test_drop(layer: AsyncQueueChannelLayer, begin: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is too much is dropped, counted and logged; the client stays, and so does everything else."""
    log: list[Any] = []
    with caplog.at_level(logging.WARNING, "channels_asyncq"):
        talk = await started(begin, log, rate="1/h", burst=2, rate_action="drop")
        say(talk, *range(400))
        await eventually(lambda: layer.statistics().limited == {"rate": 398}, "the count")
    assert [await hears(talk), await hears(talk)] == ["0", "1"]
    await layer.group_send("room", {"type": "websocket.send", "text": "hello"})
    assert await hears(talk) == "hello"
    await talk.leaves(1001)
    assert log == ["0", "1", 1001]
    (line,) = [record for record in caplog.records if getattr(record, "code", "") == "client.limited"]
    assert "a client of Room exceeds rate: its frames are dropped" in line.getMessage()


async def test_drop_of_a_flood(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """Beyond 500 frames a second a client is not asked for more: others do not pay for what it sends."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    talk = await started(begin, rate="1/h", burst=1, rate_action="drop")
    say(talk, *range(800))
    assert await hears(talk) == "0"
    await eventually(lambda: layer.statistics().limited.get("rate", 0) > 500, "the first pause")
    await layer.group_send("room", {"type": "websocket.send", "text": "hello"})
    assert await hears(talk) == "hello"
    await eventually(lambda: layer.statistics().limited == {"rate": 799}, "the last frame")
    assert loop.time() - began > 0.5
    await talk.leaves()


async def test_drop_of_a_flood_cancelled(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A consumer that pauses ends at once with its server, and its channel with it."""
    talk = await started(begin, rate="1/h", burst=1, rate_action="drop")
    say(talk, *range(5000))
    await eventually(lambda: layer.statistics().limited.get("rate", 0) > 500, "the first pause")
    await talk.stop()
    assert layer.statistics().channels == 0
    assert len(asyncio.all_tasks()) == 1


async def test_over_lets_others_run(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A queue of frames that are dropped without waiting, to come to the disconnect, does not keep the loop."""
    talk = await started(begin, rate="1/h", burst=1, rate_action="close")
    say(talk, *range(200_000))
    assert await hears(talk) == "0"
    assert (await talk.hears())["code"] == 4008
    turns = 0
    while talk.asked < 200_001:
        await asyncio.sleep(0)
        turns += 1
    assert turns > 20
    await talk.leaves()


async def test_close(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """The client is disconnected with 4008; nothing that it sent later is handled, and disconnect() runs."""
    log: list[Any] = []
    talk = await started(begin, log, rate="1/h", burst=2, rate_action="close")
    say(talk, *range(10))
    assert [await hears(talk), await hears(talk)] == ["0", "1"]
    assert await talk.hears() == {"type": "websocket.close", "code": 4008, "reason": "rate"}
    say(talk, *range(10))
    await talk.leaves(4008)
    assert log == ["0", "1", 4008]
    assert layer.statistics().limited == {"rate": 1}
    assert talk.sent.empty()


async def test_close_of_a_client_that_has_gone(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A server that refuses to close, because the client has gone, is no error: disconnect() runs."""
    log: list[Any] = []
    talk = await started(begin, log, rate="1/h", burst=1, rate_action="close")
    say(talk, 0)
    assert await hears(talk) == "0"
    talk.refuse = OSError("the client has gone")
    say(talk, 1)
    await eventually(lambda: talk.refused == 1, "the refusal")
    await talk.leaves(1006)
    assert log == ["0", 1006]


# Frames


@pytest.mark.parametrize(
    ("frame", "is_too_long"),
    [
        ({"text": "x" * 8}, False),
        ({"text": "x" * 9}, True),
        ({"text": "é" * 4}, False),
        ({"text": "é" * 5}, True),
        ({"text": "\U0001f600" * 2}, False),
        ({"text": "\U0001f600" * 3}, True),
        ({"bytes": b"x" * 8}, False),
        ({"bytes": b"x" * 9}, True),
        ({"bytes": b"x" * 8, "text": None}, False),
        ({"bytes": None, "text": "x" * 9}, True),
    ],
)
async def test_max_frame(
    layer: AsyncQueueChannelLayer, begin: Any, frame: Message, is_too_long: bool
) -> None:
    """Bytes count, not characters. A client that sends more is disconnected with 1009."""
    log: list[Any] = []
    talk = await started(begin, log, max_frame=8)
    talk.say("websocket.receive", **frame)
    answer = await talk.hears()
    if is_too_long:
        assert answer == {"type": "websocket.close", "code": 1009, "reason": "max_frame"}
        say(talk, "a")
        await talk.leaves(1009)
        assert log == [1009]
        assert layer.statistics().limited == {"max_frame": 1}
    else:
        assert answer["type"] == "websocket.send"
        await talk.leaves()
        assert layer.statistics().limited == {}


class Picky(Talk):
    """A server that sends no close code below 3000, as Daphne."""

    async def _send(self, message: Message) -> None:
        if message.get("code", 3000) < 3000:
            raise Exception("invalid close code")
        await super()._send(message)


async def test_max_frame_and_a_server_without_its_code() -> None:
    """There the code is 4009. And no layer is needed."""
    async with installed(None):
        talk = Picky(echo(max_frame=3, groups=[]).as_asgi())
        await talk.accepted()
        say(talk, "long")
        assert await talk.hears() == {"type": "websocket.close", "code": 4009, "reason": "max_frame"}
        await talk.leaves(4009)


# Silence


async def test_idle(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A client that says nothing is disconnected with 4408, whatever it is told meanwhile."""
    log: list[Any] = []
    loop = asyncio.get_running_loop()
    began = loop.time()
    talk = await started(begin, log, idle_timeout=0.2)
    await layer.group_send("room", {"type": "websocket.send", "text": "hello"})
    assert await hears(talk) == "hello"
    assert await talk.hears() == {"type": "websocket.close", "code": 4408, "reason": "idle_timeout"}
    assert loop.time() - began >= 0.199
    say(talk, "too late")
    await talk.leaves(4408)
    assert log == [4408]
    assert layer.statistics().limited == {"idle_timeout": 1}


async def test_no_silence_behind_a_close(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A client that is being disconnected for another reason, and does not answer, counts once."""
    talk = await started(begin, idle_timeout=0.05, max_frame=5)
    say(talk, "too long")
    assert (await talk.hears())["code"] == 1009
    loop = asyncio.get_running_loop()
    passed = asyncio.Event()
    loop.call_later(0.15, passed.set)
    await passed.wait()
    assert talk.sent.empty()
    assert layer.statistics().limited == {"max_frame": 1}
    await talk.leaves()


async def test_not_idle_while_frames_come(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """The time begins anew with each frame, also with one that is dropped."""
    talk = await started(begin, idle_timeout=0.2, rate="1/h", burst=2, rate_action="drop")
    loop = asyncio.get_running_loop()
    began = last = loop.time()
    while loop.time() - began < 0.6:
        if loop.time() - last > 0.15:
            pytest.skip("the machine is too slow to be less idle")
        last = loop.time()
        say(talk, "still here")
        await asyncio.sleep(0.02)
    await hears(talk), await hears(talk)
    assert (await talk.hears())["code"] == 4408
    assert loop.time() - last >= 0.15
    await talk.leaves()


async def test_not_idle_while_the_consumer_is_busy(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A handler that takes its time, and a client that is held to its rate, are not silence of the client."""
    go_on = asyncio.Event()

    class Room(Echo):
        idle_timeout = 0.05
        rate = "3/s"
        burst = 2

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            if text_data == "busy":
                await go_on.wait()
            await self.send(text_data="done")

    talk = begin(Room)
    await talk.accepted()
    say(talk, "busy", "held", "held")
    loop = asyncio.get_running_loop()
    loop.call_later(0.3, go_on.set)
    assert [await hears(talk) for _ in range(3)] == ["done"] * 3
    assert (await talk.hears())["code"] == 4408
    await talk.leaves()


async def test_idle_timer_ends_with_the_consumer(layer: AsyncQueueChannelLayer, begin: Any) -> None:
    """A consumer that has ended leaves no timer behind."""
    talk = await started(begin, idle_timeout=3600)
    await talk.leaves()
    loop: Any = asyncio.get_running_loop()
    assert not [
        handle for handle in loop._scheduled if "LimitedEvents" in repr(handle) and not handle.cancelled()
    ]


# The connection


class Transport:
    """A push producer of Twisted."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.connected = True

    def pauseProducing(self) -> None:  # (Twisted's name)
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")


class Protocol:
    """Daphne's side of a connection."""

    def __init__(self) -> None:
        self.transport = Transport()
        self.events: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: asyncio.Queue[Message] = asyncio.Queue()

    async def hears(self) -> Any:
        async with asyncio.timeout(DEADLINE):
            return await self.sent.get()

    def say(self, *texts: object) -> None:
        for text in texts:
            self.events.put_nowait({"type": "websocket.receive", "text": str(text)})


async def _reply(to: Protocol, message: Message) -> None:
    to.sent.put_nowait(message)


@pytest.fixture
async def daphne() -> AsyncGenerator[Any, None]:
    """A function that begins a consumer behind Daphne's callables, and returns the other side."""
    tasks = []

    async def begin(consumer: Any, **arguments: Any) -> tuple[Protocol, asyncio.Task[None]]:
        protocol = Protocol()
        room = consumer.as_asgi(**arguments)
        send = partial(_reply, protocol)
        task = asyncio.create_task(room({"type": "websocket"}, protocol.events.get, send))
        tasks.append(task)
        protocol.events.put_nowait({"type": "websocket.connect"})
        assert (await protocol.hears())["type"] == "websocket.accept"
        return protocol, task

    async with installed(None):
        yield begin
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def test_reading_stops(daphne: Any) -> None:
    """A server that queues without a bound reads only while the consumer asks for more than was read."""
    protocol, task = await daphne(echo(rate="50/s", burst=2, groups=[]))
    calls = protocol.transport.calls
    await eventually(lambda: calls == ["pause", "resume"], "the question behind the connect event")
    calls.clear()
    protocol.say(*range(4))
    for number in range(4):
        assert (await protocol.hears())["text"] == str(number)
        assert calls == ["pause"]
    await eventually(lambda: calls == ["pause", "resume"], "the question behind the last frame")
    protocol.say(4, 5, 6)
    assert (await protocol.hears())["text"] == "4"
    assert calls[2:] == ["pause"]
    task.cancel()
    await asyncio.wait([task])
    assert calls[2:] == ["pause", "resume"]


async def test_reading_goes_on_without_a_rate(daphne: Any) -> None:
    """Where no rate is set, the connection is left to the server."""
    protocol, _ = await daphne(echo(max_frame=100, groups=[]))
    protocol.say(*range(10))
    for number in range(10):
        assert (await protocol.hears())["text"] == str(number)
    assert protocol.transport.calls == []


async def test_client_that_has_gone(daphne: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it sent before is handled at the rate for a while; then its disconnect is looked for."""
    monkeypatch.setattr(admission, "_LINGER", 0.1)
    monkeypatch.setattr(admission, "_LOOK", 0.01)
    log: list[Any] = []
    protocol, task = await daphne(echo(rate="50/s", burst=1, groups=[]), log=log)
    protocol.say(*range(1000))
    protocol.events.put_nowait({"type": "websocket.disconnect", "code": 1006})
    protocol.transport.connected = False
    async with asyncio.timeout(DEADLINE):
        await task
    assert log[-1] == 1006
    assert 2 <= len(log) <= 100
    assert log[:-1] == [str(number) for number in range(len(log) - 1)]


async def test_connections_of_servers() -> None:
    """Of Daphne and uvicorn more is known than ASGI tells; what is not theirs is left alone."""

    async def send(message: Message) -> None: ...
    async def receive() -> Message: ...  # type: ignore[empty-body]
    async def reply(to: object, message: Message) -> None: ...

    class Middleware:
        def __init__(self, send: Any) -> None:
            self.real_send = send

        async def send(self, message: Message) -> None: ...

    class Loop:
        def is_closing(self) -> bool:
            return True

    class Uvicorn:
        transport: Any = Loop()

        async def receive(self) -> Message: ...  # type: ignore[empty-body]

    class Other(Uvicorn):
        transport = None

    protocol = Protocol()
    get = protocol.events.get
    assert type(connection_of(get, partial(reply, protocol))) is DaphneConnection
    middleware = Middleware(Middleware(partial(reply, protocol)).send)
    assert type(connection_of(get, middleware.send)) is DaphneConnection
    uvicorn = connection_of(Uvicorn().receive, send)
    assert type(uvicorn) is UvicornConnection
    assert uvicorn.is_gone is True
    for unknown in (
        connection_of(get, send),
        connection_of(receive, partial(reply, protocol)),
        connection_of(get, partial(reply, object())),
        connection_of(Other().receive, send),
    ):
        assert type(unknown) is Connection
        assert unknown.is_gone is False
