"""
What Channels documents of its consumers, async and sync, on its own and on ours, over every layer and none.

The same tests for both: what is only ours is in test_consumers.py.
"""

import asyncio
import contextvars
import json
from collections.abc import AsyncGenerator
from typing import Any

import channels.consumer
import channels.generic.websocket
import pytest
from channels.exceptions import (
    AcceptConnection,
    DenyConnection,
    InvalidChannelLayerError,
    StopConsumer,
)
from channels.testing import WebsocketCommunicator

import channels_asyncq.consumers
import channels_asyncq.generic.websocket
from tests.consumers import KINDS, LAYERS, Kind, Message, TracedLayer, begin, installed, make
from tests.contract import DEADLINE, eventually, steps
from tests.handlers import Steps

__all__ = ["begin"]


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.server] if "redis" in name else []) for name in LAYERS]
)
async def layer(request: pytest.FixtureRequest, prefix: str) -> AsyncGenerator[Any, None]:
    url = ""
    if "redis" in request.param:
        if request.param == "redis.pubsub":
            pytest.importorskip("channels_redis")
        url = request.getfixturevalue("redis_url")
    made = make(request.param, url, prefix)
    async with installed(made):
        yield made
        if request.param == "redis.pubsub":
            await made.close_pools() if hasattr(made, "close_pools") else await made.flush()


def recorder(kind: Kind) -> Any:
    """A consumer that notes what it is handed, and that handlers do not overlap."""

    class Recorder(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def __init__(self, log: list[Any]) -> None:
            super().__init__()
            self.log = log
            self.busy = False

        def note(self, what: Any) -> Steps:
            assert not self.busy
            self.busy = True
            yield steps(3)
            self.log.append(what)
            self.busy = False

        def connect(self) -> Steps:
            yield self.note("connect")
            yield self.accept()

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield self.note(text_data if text_data is not None else bytes_data)

        def disconnect(self, code: int) -> Steps:
            yield self.note(code)

        def layer_message(self, event: Message) -> Steps:
            yield self.note(event["n"])

    return Recorder


# Order


async def test_events_in_order(kind: Kind, layer: Any, begin: Any) -> None:
    """What the client does is handled in order, one at a time; the end is the disconnect handler's."""
    log: list[Any] = []
    talk = begin(recorder(kind), log=log)
    talk.say("websocket.connect")
    for n in range(5):
        talk.say("websocket.receive", text=str(n))
    talk.say("websocket.receive", bytes=b"5")
    talk.say("websocket.receive", bytes=b"6", text=None)
    await talk.leaves(4001)
    assert log == ["connect", "0", "1", "2", "3", "4", b"5", b"6", 4001]


async def test_messages_in_order(kind: Kind, layer: Any, begin: Any) -> None:
    """Messages of a group and of the channel are handled in order, beside those of the client, one at a time."""
    if layer is None:
        pytest.skip("needs a layer")
    log: list[Any] = []

    class Member(recorder(kind)):  # type: ignore[misc]
        groups = ["room"]  # noqa: RUF012

    talk = begin(Member, log=log)
    await talk.accepted()
    for n in range(20):
        await layer.group_send("room", {"type": "layer.message", "n": n})
        if n % 4 == 0:
            talk.say("websocket.receive", text=str(n))
    await eventually(lambda: len(log) == 26, "all")
    assert [entry for entry in log if isinstance(entry, int)] == list(range(20))
    assert [entry for entry in log if isinstance(entry, str)] == [
        "connect",
        *(str(n) for n in range(0, 20, 4)),
    ]
    await talk.leaves()


async def test_message_during_connect(kind: Kind, layer: Any, begin: Any) -> None:
    """What arrives for the channel while connect() runs is handled after it."""
    if layer is None:
        pytest.skip("needs a layer")
    log: list[Any] = []

    class Early(recorder(kind)):  # type: ignore[misc]
        def connect(self) -> Steps:
            yield self.channel_layer.send(self.channel_name, {"type": "layer.message", "n": 1})
            yield steps(20)
            yield super().connect()

    talk = begin(Early, log=log)
    await talk.accepted()
    await eventually(lambda: len(log) == 2, "both")
    assert log == ["connect", 1]
    await talk.leaves()


async def test_receive_is_asked_after_the_handler(kind: Kind, layer: Any, begin: Any) -> None:
    """The server's receive() is not called while a client's event is handled: its flow control sees us work."""
    go_on = asyncio.Event()

    class Slow(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield self.send(text_data="begun")
            yield go_on.wait()

    talk = begin(Slow)
    await talk.accepted()
    for _ in range(3):
        talk.say("websocket.receive", text="x")
    assert (await talk.hears())["text"] == "begun"
    await steps(50)
    assert talk.asked == 2
    assert talk.events.qsize() == 2
    go_on.set()
    assert [(await talk.hears())["text"] for _ in range(2)] == ["begun"] * 2
    await talk.leaves()
    await steps(10)
    assert talk.asked == 5


async def test_context_of_a_consumer(kind: Kind, layer: Any, begin: Any) -> None:
    """A context variable that connect() sets is there in later handlers."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    class Contextual(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def connect(self) -> Steps:
            variable.set("set")
            yield self.accept()

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield self.send(text_data=variable.get())

    talk = begin(Contextual)
    await talk.accepted()
    talk.say("websocket.receive", text="x")
    assert (await talk.hears())["text"] == "set"
    await talk.leaves()


# Ends


async def test_stop_consumer(kind: Kind, layer: Any, begin: Any) -> None:
    """StopConsumer ends the consumer without an error, from the handler of an event and of a message."""

    class Stops(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            raise StopConsumer()

        def layer_stop(self, event: Message) -> None:
            raise StopConsumer()

        def connect(self) -> Steps:
            yield self.accept()
            if layer is not None and self.scope.get("by_layer"):
                yield layer.send(self.channel_name, {"type": "layer.stop"})

    talk = begin(Stops)
    await talk.accepted()
    talk.say("websocket.receive", text="x")
    await talk.ends()
    talk = begin(Stops, {"type": "websocket", "by_layer": True})
    await talk.accepted()
    if layer is not None:
        await talk.ends()


class Problem(Exception):
    """An error of somebody's consumer."""


@pytest.mark.parametrize("where", ["websocket_connect", "websocket_receive", "layer_message", "disconnect"])
async def test_error_in_a_handler(kind: Kind, layer: Any, begin: Any, where: str) -> None:
    """The error of a handler reaches the server as it is, and nothing goes on behind it."""
    if layer is None and where == "layer_message":
        pytest.skip("needs a layer")
    problem = Problem("mine")

    def fail(self: Any, *_: Any) -> None:
        raise problem

    class Fails(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def connect(self) -> Steps:
            yield self.accept()
            if layer is not None:
                yield layer.send(self.channel_name, {"type": "layer.message"})

        def layer_message(self, event: Message) -> None: ...

    talk = begin(type("Failing", (Fails,), {where: fail}))
    talk.say("websocket.connect")
    if where != "layer_message":  # which takes its time to arrive
        talk.say("websocket.receive", text="x")
        talk.say("websocket.disconnect", code=1000)
    with pytest.raises(Problem) as caught:
        await talk.ends()
    assert caught.value is problem


async def test_error_of_receive(kind: Kind, layer: Any, begin: Any) -> None:
    """What the server's receive() raises ends the consumer with it."""
    problem = Problem("the server's")
    talk = begin(recorder(kind), log=[])
    await talk.accepted()
    talk.events.put_nowait(problem)
    with pytest.raises(Problem) as caught:
        await talk.ends()
    assert caught.value is problem


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"type": "no.such"}, "No handler for message type no.such"),
        ({"type": "_private"}, "Malformed type in message"),
        ({"text": "x"}, "Incoming message has no 'type' attribute"),
    ],
)
async def test_message_without_handler(
    kind: Kind, layer: Any, begin: Any, message: Message, text: str
) -> None:
    """A type that names no handler is a ValueError, from the client and from the layer."""
    talk = begin(recorder(kind), log=[])
    await talk.accepted()
    talk.events.put_nowait(message)
    with pytest.raises(ValueError, match=text):
        await talk.ends()
    if layer is None or "type" not in message:
        return

    class Tells(recorder(kind)):  # type: ignore[misc]
        def connect(self) -> Steps:
            yield self.accept()
            yield layer.send(self.channel_name, message)

    talk = begin(Tells, log=[])
    await talk.accepted()
    with pytest.raises(ValueError, match=text):
        await talk.ends()


PLACES = ("connect", "accept", "waiting", "receive", "layer", "send", "disconnect")


@pytest.mark.parametrize("place", PLACES)
async def test_cancelled_at(kind: Kind, layer: Any, begin: Any, place: str) -> None:
    """A server that kills the application: CancelledError comes through, wherever it waits; no task is left."""
    if layer is None and place == "layer":
        pytest.skip("needs a layer")
    there = asyncio.Event()
    cancelled: list[str] = []

    async def stay() -> None:
        there.set()
        await asyncio.Event().wait()

    class Waits(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def wait_in(self, name: str) -> Steps:
            if place == name:
                try:
                    yield stay()
                except asyncio.CancelledError:
                    cancelled.append(name)
                    raise

        def connect(self) -> Steps:
            yield self.wait_in("connect")
            yield self.accept()
            if layer is not None:
                yield layer.send(self.channel_name, {"type": "layer.message"})

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield self.wait_in("receive")
            if place == "send":
                talk.hold = asyncio.Event()
                yield self.send(text_data="x")

        def layer_message(self, event: Message) -> Steps:
            yield self.wait_in("layer")

        def disconnect(self, code: int) -> Steps:
            yield self.wait_in("disconnect")

    before = asyncio.all_tasks()
    talk = begin(Waits)
    if place == "accept":
        talk.hold = asyncio.Event()
    talk.say("websocket.connect")
    if place == "waiting":
        await talk.hears()
        there.set()
    elif place in ("receive", "send"):
        talk.say("websocket.receive", text="x")
    elif place == "disconnect":
        talk.say("websocket.disconnect", code=1000)
    async with asyncio.timeout(20):
        await (talk.is_held if place in ("accept", "send") else there).wait()
    await steps(20)
    talk.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await talk.ends()
    assert cancelled == ([place] if place not in ("accept", "waiting", "send") else [])
    mine = {task for task in asyncio.all_tasks() - before if "Talk." in repr(task.get_coro())}
    assert not mine


async def test_cancelled_at_each_turn(kind: Kind, layer: Any, begin: Any) -> None:
    """However many turns of the loop a consumer has had when it is cancelled: it ends, and leaves no task."""
    for turns in range(30):
        before = asyncio.all_tasks()
        talk = begin(recorder(kind), log=[])
        talk.say("websocket.connect")
        talk.say("websocket.receive", text="x")
        await steps(turns)
        talk.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await talk.ends()
        assert not {task for task in asyncio.all_tasks() - before if "Talk." in repr(task.get_coro())}


# What a WebSocket consumer says to the server


async def test_accept_and_close(kind: Kind, layer: Any, begin: Any) -> None:
    """accept() and close() become the server's messages, with subprotocol, headers, code and reason."""

    class Says(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def connect(self) -> Steps:
            yield self.accept("soap", headers=[(b"x", b"y")])

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            if text_data is None:
                yield self.send(bytes_data=bytes_data)
            elif text_data == "nothing":
                with pytest.raises(ValueError, match="You must pass one of"):
                    yield self.send()
                yield self.send(text_data="", close=4002)
            else:
                yield self.close(**json.loads(text_data))

    expected: list[tuple[Message, Message]] = [
        ({}, {}),
        ({"code": True}, {}),
        ({"code": 4001, "reason": "why not"}, {"code": 4001, "reason": "why not"}),
    ]
    for arguments, sent in expected:
        talk = begin(Says)
        talk.say("websocket.connect")
        assert await talk.hears() == {
            "type": "websocket.accept",
            "subprotocol": "soap",
            "headers": [(b"x", b"y")],
        }
        talk.say("websocket.receive", bytes=b"z")
        assert await talk.hears() == {"type": "websocket.send", "bytes": b"z"}
        talk.say("websocket.receive", text=json.dumps(arguments))
        assert await talk.hears() == {"type": "websocket.close", **sent}
        await talk.leaves()
    talk = begin(Says)
    talk.say("websocket.connect")
    await talk.hears()
    talk.say("websocket.receive", text="nothing")
    assert await talk.hears() == {"type": "websocket.send", "text": ""}
    assert await talk.hears() == {"type": "websocket.close", "code": 4002}
    await talk.leaves()


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (AcceptConnection, {"type": "websocket.accept", "subprotocol": None}),
        (DenyConnection, {"type": "websocket.close"}),
    ],
)
async def test_connect_by_exception(
    kind: Kind, layer: Any, begin: Any, error: type[Exception], sent: Message
) -> None:
    """connect() may raise AcceptConnection or DenyConnection."""

    class Raises(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def connect(self) -> None:
            raise error()

    talk = begin(Raises)
    talk.say("websocket.connect")
    assert await talk.hears() == sent
    await talk.leaves()


async def test_json(kind: Kind, layer: Any, begin: Any) -> None:
    """The JSON consumer decodes and encodes, by methods that can be replaced; it takes no binary data."""

    class Echo(kind.JsonWebsocketConsumer):  # type: ignore[misc, name-defined]
        def receive_json(self, content: Any, **kwargs: Any) -> Steps:
            yield self.send_json(content, close=content == "bye")

        @classmethod
        def encode_json(cls, content: Any) -> str:
            return json.dumps(content) + "!"

        @classmethod
        def decode_json(cls, text_data: str) -> Any:
            return json.loads(text_data.removesuffix("!"))

    talk = begin(Echo)
    await talk.accepted()
    talk.say("websocket.receive", text='{"a": [1, null]}!')
    assert await talk.hears() == {"type": "websocket.send", "text": '{"a": [1, null]}!'}
    talk.say("websocket.receive", text='"bye"')
    assert (await talk.hears())["text"] == '"bye"!'
    assert await talk.hears() == {"type": "websocket.close"}
    talk.say("websocket.receive", bytes=b"x")
    with pytest.raises(ValueError, match="No text section"):
        await talk.ends()


async def test_groups(kind: Kind, layer: Any, begin: Any) -> None:
    """`groups` are joined before connect() and left before disconnect(); without a layer that is an error."""

    class Member(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        groups = ["one", "two"]  # noqa: RUF012

        def connect(self) -> Steps:
            yield self.channel_layer.group_send("one", {"type": "layer.message", "text": "joined"})
            yield self.accept()

        def layer_message(self, event: Message) -> Steps:
            yield self.send(text_data=event["text"])

        def disconnect(self, code: int) -> Steps:
            yield self.channel_layer.group_send("two", {"type": "layer.message", "text": "left"})

    talk = begin(Member)
    talk.say("websocket.connect")
    if layer is None:
        with pytest.raises(
            InvalidChannelLayerError, match="BACKEND is unconfigured or doesn't support groups"
        ):
            await talk.ends()
        return
    assert (await talk.hears())["type"] == "websocket.accept"
    assert (await talk.hears())["text"] == "joined"
    await talk.leaves()
    assert talk.sent.empty()


async def test_attributes(kind: Kind, layer: Any, begin: Any) -> None:
    """A consumer has the attributes that Channels gives it, its arguments, and a channel of its own."""
    names: list[str] = []

    class Looks(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        def __init__(self, colour: str) -> None:  # no super().__init__(): many forget it
            self.colour = colour
            self.groups: list[str] = []

        def connect(self) -> Steps:
            assert self.scope["path"] == "/there"
            assert self.colour == "red"
            assert self.channel_layer is layer
            yield self.base_send({"type": "websocket.accept"})
            if layer is not None:
                names.append(self.channel_name)
                yield layer.send(self.channel_name, {"type": "to.myself"})
            else:
                assert not hasattr(self, "channel_name")
                yield self.send(text_data="to myself")

        def to_myself(self, event: Message) -> Steps:
            assert callable(self.channel_receive)
            yield self.send(text_data="to myself")

    scope = {"type": "websocket", "path": "/there"}
    for _ in range(2):
        talk = begin(Looks, scope, colour="red")
        await talk.accepted()
        assert (await talk.hears())["text"] == "to myself"
        await talk.leaves()
    assert len(set(names)) == len(names)
    application = Looks.as_asgi(colour="blue")
    assert application.consumer_class is Looks
    assert application.consumer_initkwargs == {"colour": "blue"}
    assert application.__name__ == "Looks"


async def test_overridden_dispatch_and_send(kind: Kind, layer: Any, begin: Any) -> None:
    """Every event and message passes dispatch(), and every frame send(): both can be overridden."""
    seen: list[str] = []

    class Overrides(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        async def dispatch(self, message: Message) -> None:
            seen.append(message["type"])
            try:
                await super().dispatch(message)
            except ZeroDivisionError:
                seen.append("caught")

        def send(self, *args: Any, **kwargs: Any) -> Steps:
            seen.append("send")
            yield super().send(*args, **kwargs)

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            raise ZeroDivisionError

        def layer_message(self, event: Message) -> Steps:
            yield self.send(text_data="message")

        def connect(self) -> Steps:
            yield self.accept()
            if layer is not None:
                yield layer.send(self.channel_name, {"type": "layer.message"})

    talk = begin(Overrides)
    await talk.accepted()
    if layer is not None:
        assert (await talk.hears())["text"] == "message"
    talk.say("websocket.receive", text="x")
    await talk.leaves()
    by_layer = ["layer.message", "send"] if layer is not None else []
    assert seen == ["websocket.connect", *by_layer, "websocket.receive", "caught", "websocket.disconnect"]


async def test_low_level_consumer(kind: Kind, layer: Any, begin: Any) -> None:
    """AsyncConsumer itself: handlers by the type of the event, replies by send()."""

    class Echo(kind.Consumer):  # type: ignore[misc, name-defined]
        def websocket_connect(self, event: Message) -> Steps:
            yield self.send({"type": "websocket.accept"})

        def websocket_receive(self, event: Message) -> Steps:
            yield self.send({"type": "websocket.send", "text": event["text"]})

        def websocket_disconnect(self, event: Message) -> None:
            raise StopConsumer()

    talk = begin(Echo)
    await talk.accepted()
    talk.say("websocket.receive", text="x")
    assert await talk.hears() == {"type": "websocket.send", "text": "x"}
    await talk.leaves()


async def test_worker(kind: Kind, layer: Any, begin: Any) -> None:
    """A consumer of a channel (`runworker`): its events come from the server's receive()."""
    done: list[int] = []

    class Works(kind.Consumer):  # type: ignore[misc, name-defined]
        def do_work(self, event: Message) -> None:
            done.append(event["n"])

    talk = begin(Works, {"type": "channel", "channel": "jobs"})
    for n in range(3):
        talk.say("do.work", n=n)
    await eventually(lambda: done == [0, 1, 2], "the work")


async def test_communicator(kind: Kind, layer: Any) -> None:
    """Channels' WebsocketCommunicator drives it: accepted and refused, both ways, to the end."""

    class Greets(kind.JsonWebsocketConsumer):  # type: ignore[misc, name-defined]
        def connect(self) -> Steps:
            if self.scope["path"] == "/no":
                yield self.close(4003)
            else:
                yield self.accept(self.scope["subprotocols"][0])

        def receive_json(self, content: Any, **kwargs: Any) -> Steps:
            yield self.send_json({"hello": content["name"]})

    application = Greets.as_asgi()
    communicator = WebsocketCommunicator(application, "/yes", subprotocols=["a", "b"])
    assert await communicator.connect(DEADLINE) == (True, "a")
    await communicator.send_json_to({"name": "Ada"})
    assert await communicator.receive_json_from(DEADLINE) == {"hello": "Ada"}
    assert await communicator.receive_nothing(0.01)
    await communicator.disconnect(timeout=DEADLINE)
    refused = WebsocketCommunicator(application, "/no")
    assert await refused.connect(DEADLINE) == (False, 4003)
    await refused.disconnect(timeout=DEADLINE)
    unfinished = WebsocketCommunicator(application, "/yes", subprotocols=["a"])
    await unfinished.connect(DEADLINE)
    with pytest.raises(TimeoutError):
        await unfinished.receive_output(timeout=0.01)
    assert unfinished.future.cancelled()


async def test_messages_are_its_own(kind: Kind, layer: Any, begin: Any) -> None:
    """What one consumer does to its event no other consumer sees, flat or nested."""
    if layer is None:
        pytest.skip("needs a layer")
    seen: list[Any] = []

    class Spoils(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        groups = ["room"]  # noqa: RUF012

        def flat_message(self, event: Message) -> None:
            seen.append(dict(event))
            event["text"] = "spoiled"
            event["more"] = 1

        def deep_message(self, event: Message) -> None:
            seen.append(list(event["list"]))
            event["list"].append("spoiled")

    members = [begin(Spoils) for _ in range(3)]
    for talk in members:
        await talk.accepted()
    await layer.group_send("room", {"type": "flat.message", "text": "x", "n": 1, "raw": b"\x00", "no": None})
    await layer.group_send("room", {"type": "deep.message", "list": [1]})
    await eventually(lambda: len(seen) == 6, "all")
    flat = {"type": "flat.message", "text": "x", "n": 1, "raw": b"\x00", "no": None}
    assert [entry for entry in seen if isinstance(entry, dict)] == [flat] * 3
    assert [entry for entry in seen if isinstance(entry, list)] == [[1]] * 3
    for talk in members:
        await talk.leaves()


async def test_subclassed_layer_sees_messages(kind: Kind, prefix: str, begin: Any) -> None:
    """A layer whose receive() is overridden is read by it."""
    layer = TracedLayer(hosts=["memory://"], prefix=prefix)
    log: list[Any] = []
    async with installed(layer):

        class Member(recorder(kind)):  # type: ignore[misc]
            groups = ["room"]  # noqa: RUF012

        talk = begin(Member, log=log)
        await talk.accepted()
        await layer.group_send("room", {"type": "layer.message", "n": 1})
        await eventually(lambda: log == ["connect", 1], "the message")
        assert layer.seen == [{"type": "layer.message", "n": 1}]
        await talk.leaves()


def test_names() -> None:
    """The names are those of Channels, and each consumer is a subclass of its own."""
    own, theirs = channels_asyncq.generic.websocket, channels.generic.websocket
    for style in ("", "Async"):
        ours = getattr(own, f"{style}WebsocketConsumer"), getattr(own, f"{style}JsonWebsocketConsumer")
        base = f"{style or 'Sync'}Consumer"
        assert issubclass(ours[0], getattr(theirs, f"{style}WebsocketConsumer"))
        assert issubclass(ours[1], getattr(theirs, f"{style}JsonWebsocketConsumer"))
        assert issubclass(ours[1], ours[0])
        assert issubclass(ours[0], getattr(channels_asyncq.consumers, base))
        assert issubclass(getattr(channels_asyncq.consumers, base), getattr(channels.consumer, base))
    assert channels_asyncq.consumers.get_handler_name is channels.consumer.get_handler_name
