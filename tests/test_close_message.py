"""`websocket.close` from the channel layer: what it may say, and how it ends the WebSockets of a group."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator

import channels_asyncq
from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.generic.websocket import ResumableWebsocketConsumer
from channels_asyncq.messages.closing import CLOSE, Close, close_of
from tests.consumers import OURS, OURS_SYNC, Begin, Kind, Message, begin, installed, make
from tests.contract import Publish, eventually
from tests.handlers import Steps

__all__ = ["begin"]

OUT = {"type": CLOSE, "code": 4401, "reason": "signed out"}


# What it may say


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, Close(1000, "")),
        ({"code": 4001}, Close(4001, "")),
        ({"code": 1012, "reason": None}, Close(1012, "")),
        ({"code": 3000, "reason": "ü" * 61}, Close(3000, "ü" * 61)),
        ({"code": 1012, "retry": 2}, Close(1012, "", 2)),
    ],
)
def test_close_of(content: Message, expected: Close) -> None:
    """Code and reason may be missing, as in ASGI."""
    assert close_of({"type": CLOSE, **content}) == expected


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        ({"code": "4001"}, TypeError, "not '4001'"),
        ({"code": True}, TypeError, "not True"),
        ({"code": None}, TypeError, "not None"),
        ({"code": 1005}, ValueError, "the code 1005, which no server may send: use 1000"),
        ({"code": 1006}, ValueError, "1006"),
        ({"code": 1015}, ValueError, "1015"),
        ({"code": 2999}, ValueError, "2999"),
        ({"code": 5000}, ValueError, "5000"),
        ({"code": 4001, "reason": b"x"}, TypeError, "a str, not b'x'"),
        ({"code": 4001, "reason": "ü" * 62}, ValueError, "124 bytes"),
        ({"code": 1012, "retry": "2"}, TypeError, "a number of seconds, not '2'"),
        ({"code": 1012, "retry": True}, TypeError, "not True"),
        ({"code": 1012, "retry": 0}, ValueError, "retry=0: it must be"),
        ({"code": 1012, "retry": float("nan")}, ValueError, "retry=nan"),
        ({"code": 1012, "retry": 3601}, ValueError, "3601"),
    ],
)
def test_close_of_refuses(content: Message, error: type[Exception], text: str) -> None:
    """What no server could send is refused; the error names the value and the remedy."""
    with pytest.raises(error, match=re.escape(text)):
        close_of({"type": CLOSE, **content})


def test_final_codes_are_those_of_the_script() -> None:
    """`is_final` and resume.js agree about every code."""
    script = Path(channels_asyncq.__file__).with_name("static") / "channels_asyncq" / "resume.js"
    final = re.search(r"FINAL = /(.+)/;", script.read_text())
    assert final is not None
    codes = range(1000, 5000)
    assert [code for code in codes if Close(code).is_final] == [
        code for code in codes if re.search(final[1], str(code))
    ]


def test_substitutes() -> None:
    """Under Daphne every standard code has one that it sends, and at which the script does the same."""
    for code in range(1001, 1015):
        assert 3000 <= Close(code).substitute < 5000
        assert Close(Close(code).substitute).is_final is Close(code).is_final


# Consumers


@pytest.fixture(params=[OURS, OURS_SYNC], ids=lambda kind: str(kind.name))
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def Member(kind: Kind) -> Any:
    class Member(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        """In the room; notes what it is told."""

        groups = ["room"]  # noqa: RUF012
        log: list[Any] = []  # noqa: RUF012

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            self.log.append(text_data)

        def layer_message(self, event: Message) -> None:
            self.log.append(event["type"])

        def disconnect(self, code: int) -> None:
            self.log.append(("disconnect", code))

    return Member


@pytest.fixture
def log(Member: Any) -> list[Any]:
    return Member.log  # type: ignore[no-any-return]


@pytest.fixture(params=["asyncq.memory", "asyncq.traced", "inmemory"])
async def layer(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[Any]:
    async with installed(make(request.param, "", prefix)) as layer:
        yield layer


async def test_it_closes_the_members_of_a_group(
    layer: Any, begin: Begin, log: list[Any], Member: Any
) -> None:
    """Each client gets code and reason, after what was sent before; `disconnect()` runs, and others stay."""

    class Elsewhere(Member):  # type: ignore[misc]
        groups = ["elsewhere"]  # noqa: RUF012

    room = [begin(Member) for _ in range(2)]
    other = begin(Elsewhere)
    for talk in (*room, other):
        await talk.accepted()
    await layer.group_send("room", {"type": "websocket.send", "text": "before"})
    await layer.group_send("room", OUT)
    for talk in room:
        assert [await talk.hears(), await talk.hears()] == [{"type": "websocket.send", "text": "before"}, OUT]
        await talk.leaves(4401)
    await layer.group_send("elsewhere", {"type": "websocket.send", "text": "still here"})
    assert (await other.hears())["text"] == "still here"
    await other.leaves()
    assert log == [("disconnect", 4401)] * 2 + [("disconnect", 1000)]


async def test_without_a_code(layer: Any, begin: Begin, Member: Any) -> None:
    """The code is 1000 then, and there is no reason."""
    talk = begin(Member)
    await talk.accepted()
    await layer.group_send("room", {"type": CLOSE})
    assert await talk.hears() == {"type": CLOSE, "code": 1000}
    await talk.leaves()


async def test_what_the_client_still_says_is_dropped(
    layer: Any, begin: Begin, log: list[Any], Member: Any
) -> None:
    """Frames that were under way when the connection was closed reach no handler, and nor do messages."""
    talk = begin(Member)
    await talk.accepted()
    await layer.group_send("room", OUT)
    await layer.group_send("room", {"type": "layer.message"})
    assert await talk.hears() == OUT
    for _ in range(3):
        talk.say("websocket.receive", text="too late")
    await talk.leaves(4401)
    assert log == [("disconnect", 4401)]


async def test_events_before_it_are_handled(layer: Any, begin: Begin, log: list[Any], Member: Any) -> None:
    """Only what comes after the close is dropped: a frame from before it has reached its handler."""
    talk = begin(Member)
    await talk.accepted()
    talk.say("websocket.receive", text="in time")
    await eventually(lambda: log == ["in time"], "the frame")
    await layer.group_send("room", OUT)
    assert await talk.hears() == OUT
    await talk.leaves(4401)


async def test_closed_once(layer: Any, begin: Begin, Member: Any) -> None:
    """A second message, and one after the consumer's own close(), sends nothing: servers would refuse it."""

    class Closes(Member):  # type: ignore[misc]
        def layer_close(self, event: Message) -> Steps:
            yield self.close(4000)

    talk = begin(Closes)
    await talk.accepted()
    for type_ in ("layer.close", CLOSE, CLOSE):
        await layer.group_send("room", {"type": type_})
    await layer.group_send("room", {"type": "layer.message"})
    assert (await talk.hears())["code"] == 4000
    await eventually(lambda: "layer.message" in Closes.log, "the last message")
    await talk.leaves()
    assert talk.sent.empty()


async def test_before_accept(layer: Any, begin: Begin, Member: Any) -> None:
    """A handshake that waits is refused."""

    class Waits(Member):  # type: ignore[misc]
        def connect(self) -> None:
            self.log.append("waits")

    talk = begin(Waits)
    talk.say("websocket.connect")
    await eventually(lambda: Waits.log == ["waits"], "connect()")
    await layer.group_send("room", OUT)
    assert (await talk.hears())["type"] == CLOSE
    await talk.leaves()


async def test_a_server_that_refuses_codes_below_3000(layer: Any, begin: Begin, Member: Any) -> None:
    """Under Daphne 1012 becomes 4012; another error of the server is not hidden."""

    class Refuses(Member):  # type: ignore[misc]
        def send(self, *arguments: Any, **options: Any) -> None:
            raise AssertionError("the consumer's own send() is not asked")

    sent: list[int] = []

    def daphne(application: Any) -> Any:
        async def served(scope: Message, receive: Any, send: Any) -> None:
            async def like_daphne(message: Message) -> None:
                if message["type"] == CLOSE:
                    sent.append(message["code"])
                    if 1000 < message["code"] < 3000:
                        raise Exception(f"invalid close code {message['code']}")
                await send(message)

            await application(scope, receive, like_daphne)

        return served

    class App:
        @staticmethod
        def as_asgi() -> Any:
            return daphne(Refuses.as_asgi())

    talk = begin(App)
    await talk.accepted()
    await layer.group_send("room", {"type": CLOSE, "code": 1012})
    assert (await talk.hears())["code"] == 4012
    await talk.leaves()
    assert sent == [1012, 4012]


async def test_the_client_goes_at_the_same_time(
    layer: Any, begin: Begin, log: list[Any], Member: Any
) -> None:
    """The server refuses the close because the client has just gone: `disconnect()` runs, nothing is raised."""
    talk = begin(Member)
    await talk.accepted()
    talk.refuse = RuntimeError("the client has gone")
    await layer.group_send("room", OUT)
    await eventually(lambda: talk.refused, "the refusal")
    await talk.leaves(1006)
    assert log == [("disconnect", 1006)]


async def test_cancelled_while_it_closes(layer: Any, begin: Begin, Member: Any) -> None:
    """A server that gives up waiting for the end of the connection ends the consumer."""
    talk = begin(Member)
    await talk.accepted()
    await layer.group_send("room", OUT)
    assert await talk.hears() == OUT
    await talk.stop()
    assert talk.task.cancelled()


async def test_a_handler_of_the_consumers_own(layer: Any, begin: Begin, Member: Any) -> None:
    """A consumer that defines websocket_close() handles it itself."""

    class Own(Member):  # type: ignore[misc]
        def websocket_close(self, event: Message) -> Steps:
            yield self.send(text_data=f"not for {event['code']}")

    talk = begin(Own)
    await talk.accepted()
    await layer.group_send("room", OUT)
    assert (await talk.hears())["text"] == "not for 4401"
    await talk.leaves()


async def test_a_dispatch_of_the_consumers_own(layer: Any, begin: Begin, log: list[Any], Member: Any) -> None:
    """A consumer that overrides dispatch() sees it there."""

    class Sees(Member):  # type: ignore[misc]
        async def dispatch(self, message: Message) -> None:
            self.log.append(message["type"])
            await super().dispatch(message)

    talk = begin(Sees)
    await talk.accepted()
    await layer.group_send("room", OUT)
    assert await talk.hears() == OUT
    await talk.leaves()
    assert log == ["websocket.connect", CLOSE, "websocket.disconnect", ("disconnect", 1000)]


async def test_wrong_content(layer: Any, begin: Begin, Member: Any) -> None:
    """A code that nobody may send is an error that names it."""
    talk = begin(Member)
    await talk.accepted()
    await layer.group_send("room", {"type": CLOSE, "code": 999})
    with pytest.raises(ValueError, match="the code 999"):
        await talk.ends()


async def test_consumers_that_are_no_websockets(layer: Any, begin: Begin, log: list[Any], kind: Kind) -> None:
    """A consumer of another protocol in the group ignores it."""

    class Worker(kind.Consumer):  # type: ignore[misc, name-defined]
        def layer_join(self, event: Message) -> Steps:
            yield self.channel_layer.group_add("room", self.channel_name)
            log.append("joined")

        def layer_message(self, event: Message) -> None:
            log.append("message")

    talk = begin(Worker, {"type": "channel", "channel": "work"})
    talk.say("layer.join")
    await eventually(lambda: log == ["joined"], "the membership")
    await layer.group_send("room", OUT)
    await layer.group_send("room", {"type": "layer.message"})
    await eventually(lambda: log == ["joined", "message"], "the next message")
    assert talk.sent.empty()


# Resumable consumers


class Room(ResumableWebsocketConsumer):
    """Follows a room, and is in another group by itself."""

    def resumable_groups(self) -> list[str]:
        return ["room"]

    async def connect(self) -> None:
        await self.channel_layer.group_add("apart", self.channel_name)
        await self.accept()


async def come(since: str = "", room: type[Room] = Room) -> tuple[WebsocketCommunicator, list[Any]]:
    """Connect; return the client, and the frames until `resumed`."""
    client = WebsocketCommunicator(room.as_asgi(), f"/?since={since}" if since else "/")
    connected, _ = await client.connect(timeout=20)
    assert connected
    frames: list[Any] = []
    while not frames or frames[-1].get("type") != "resumed":
        frames.append(json.loads(await client.receive_from(timeout=20)))
    return client, frames


@pytest.fixture
async def own(prefix: str) -> AsyncIterator[AsyncQueueChannelLayer]:
    async with installed(make("asyncq.memory", "", prefix)) as layer:
        yield layer


@pytest.mark.parametrize("group", ["room", "apart"])
async def test_resumable_consumers(own: AsyncQueueChannelLayer, group: str) -> None:
    """A message to a group that it follows closes it as one to any other group; no frame has it."""
    client, _ = await come()
    await own.group_send("room", {"type": "chat.said", "n": 1})
    await own.group_send(group, OUT)
    assert json.loads(await client.receive_from(timeout=20))["m"]["n"] == 1
    assert await client.receive_output(timeout=20) == OUT
    await client.disconnect()


@pytest.mark.parametrize("group", ["room", "apart"])
async def test_when_to_come_back(own: AsyncQueueChannelLayer, group: str) -> None:
    """A client that may come back is told when, with jitter, before the close; one that may not is not told."""
    for code in (1012, 4401):
        client, _ = await come()
        await own.group_send(group, {"type": CLOSE, "code": code, "retry": 2})
        if code == 1012:
            frame = json.loads(await client.receive_from(timeout=20))
            assert frame["type"] == "retry" and 2000 <= frame["ms"] <= 4000
        assert await client.receive_output(timeout=20) == {"type": CLOSE, "code": code}
        await client.disconnect()


async def test_a_close_that_was_missed_is_not_for_the_next_connection(own: AsyncQueueChannelLayer) -> None:
    """
    A client that was away returns to what else it missed. Otherwise it would meet the same close again and again.
    """
    client, (resumed,) = await come()
    await client.disconnect()
    await own.group_send("room", {"type": "chat.said", "n": 1})
    await own.group_send("room", OUT)
    await own.group_send("room", {"type": "chat.said", "n": 2})
    client, frames = await come(resumed["id"])
    assert [frame["m"]["n"] for frame in frames[:-1]] == [1, 2]
    assert frames[-1]["recovered"] is True
    await own.group_send("room", OUT)
    assert await client.receive_output(timeout=20) == OUT
    await client.disconnect()


async def test_a_close_that_finds_no_place(own: AsyncQueueChannelLayer) -> None:
    """A full channel is closed then. The client comes back, is admitted anew or not, and misses nothing else."""
    enters, goes_on = asyncio.Event(), asyncio.Event()

    class Slow(Room):
        async def chat_slow(self, message: Message) -> None:
            enters.set()
            await goes_on.wait()
            await self.send_json(message)

    own.capacity = 2
    client, _ = await come(room=Slow)
    for n in range(10):
        await own.group_send("room", {"type": "chat.slow", "n": n})
    await enters.wait()
    await eventually(lambda: own.statistics().dropped.get("overflow"), "the overflow")
    await own.group_send("apart", OUT)
    await eventually(lambda: own.statistics().told.get("overflow", 0) > 1, "the end of the channel")
    goes_on.set()
    seen: list[Any] = []
    while (output := await client.receive_output(timeout=20))["type"] != CLOSE:
        seen.append(json.loads(output["text"]))
    assert output["code"] == 1013
    await client.disconnect()
    client, frames = await come(seen[-1]["id"], Room)
    assert [frame["m"]["n"] for frame in (*seen, *frames[:-1])] == list(range(10))
    await client.disconnect()


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "close"])
async def test_overflow(prefix: str, begin: Begin, overflow: str, Member: Any) -> None:
    """Whatever `overflow` drops, it is not a close: the connection ends, with 1013 if the close had no place."""
    enters, goes_on = asyncio.Event(), asyncio.Event()

    async def stay() -> None:
        enters.set()
        await goes_on.wait()

    class Busy(Member):  # type: ignore[misc]
        def layer_wait(self, event: Message) -> Steps:
            yield stay()

    async with installed(make("asyncq.memory", "", prefix, capacity=2, overflow=overflow)) as layer:
        talk = begin(Busy)
        await talk.accepted()
        await layer.group_send("room", {"type": "layer.wait"})
        await enters.wait()
        frame = {"type": "websocket.send", "text": CLOSE}
        for message in (
            (frame, OUT, *[frame] * 40) if overflow == "drop_oldest" else (frame, frame, *[OUT] * 40)
        ):
            await layer.group_send("room", message)
        await eventually(lambda: not layer.groups, "the end of the channel, which leaves its groups")
        goes_on.set()
        heard = [await talk.hears()]
        while heard[-1]["type"] != CLOSE:
            heard.append(await talk.hears())
        assert heard[-1]["code"] == 1013
        await talk.leaves()


async def test_overflow_of_other_messages(prefix: str, begin: Begin, Member: Any) -> None:
    """A message that merely has these words in its text closes no channel."""
    enters, goes_on = asyncio.Event(), asyncio.Event()

    async def stay() -> None:
        enters.set()
        await goes_on.wait()

    class Busy(Member):  # type: ignore[misc]
        def layer_wait(self, event: Message) -> Steps:
            yield stay()

    async with installed(make("asyncq.memory", "", prefix, capacity=2)) as layer:
        talk = begin(Busy)
        await talk.accepted()
        await layer.group_send("room", {"type": "layer.wait"})
        await enters.wait()
        for _ in range(40):
            await layer.group_send("room", {"type": "websocket.send", "text": CLOSE})
        await eventually(lambda: layer.statistics().dropped.get("overflow"), "the overflow")
        goes_on.set()
        assert (await talk.hears())["text"] == CLOSE
        await layer.group_send("room", {"type": "websocket.send", "text": "still here"})
        while (heard := await talk.hears())["text"] != "still here":
            assert heard == {"type": "websocket.send", "text": CLOSE}
        await talk.leaves()


# From outside


@pytest.mark.parametrize(
    ("external", "passes"),
    [
        ({}, False),
        ({"groups": ["room"]}, False),
        (None, False),
        ({"types": ["websocket.send", "chat.*"]}, False),
        ({"types": ["websocket.send", "websocket.close"]}, True),
        ({"types": ["websocket.*"], "groups": ["board"]}, False),
        ({"types": ["websocket.*"]}, True),
    ],
    ids=["default", "groups", "None", "others", "named", "other-groups", "pattern"],
)
@pytest.mark.server
async def test_from_outside(
    redis_url: str, prefix: str, publish: Publish, begin: Begin, external: Any, passes: bool, Member: Any
) -> None:
    """Another program may end connections only if `external["types"]` says so."""
    async with installed(make("asyncq.redis", redis_url, prefix, external=external)) as layer:
        talk = begin(Member)
        await talk.accepted()
        publish("group:room", json.dumps(OUT))
        if passes:
            assert await talk.hears() == OUT
        else:
            await eventually(lambda: layer.statistics().dropped.get("unreadable"), "the drop")
            await layer.group_send("room", {"type": "websocket.send", "text": "still here"})
            assert (await talk.hears())["text"] == "still here"
        await talk.leaves()


@pytest.mark.parametrize("content", [{"code": 999}, {"code": "4001"}, {"reason": "x" * 124}])
@pytest.mark.server
async def test_nonsense_from_outside(
    redis_url: str,
    prefix: str,
    publish: Publish,
    begin: Begin,
    content: Message,
    caplog: pytest.LogCaptureFixture,
    Member: Any,
) -> None:
    """What no server could send is dropped and logged before it reaches a consumer."""
    allowed = {"types": ["websocket.*"]}
    async with installed(make("asyncq.redis", redis_url, prefix, external=allowed)) as layer:
        talk = begin(Member)
        await talk.accepted()
        publish("group:room", json.dumps({"type": CLOSE, **content}))
        await eventually(lambda: layer.statistics().dropped.get("unreadable"), "the drop")
        assert f'a "{CLOSE}" message' in caplog.text
        await layer.group_send("room", {"type": "websocket.send", "text": "still here"})
        assert (await talk.hears())["text"] == "still here"
        await talk.leaves()
