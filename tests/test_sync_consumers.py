"""What sync consumers alone do: which thread handlers run in, and what reaches the client without it."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from channels import db
from channels.exceptions import StopConsumer
from channels.generic import websocket as theirs

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.consumers import SyncConsumer
from channels_asyncq.generic.websocket import JsonWebsocketConsumer, WebsocketConsumer
from tests.consumers import Begin, Message, begin, hears, layer, say
from tests.contract import DEADLINE, eventually

__all__ = ["begin", "layer"]

CLOSE = {"type": "websocket.close", "code": 4000}


class Room(WebsocketConsumer):
    """In the room; its handlers can be held, and note the thread that they run in."""

    def __init__(
        self, log: list[Any], groups: Sequence[str] = ("room",), may_go_on: threading.Event | None = None
    ) -> None:
        self.log = log
        self.groups = list(groups)
        self.may_go_on = may_go_on

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.log.append((text_data, threading.get_ident()))

    def layer_message(self, event: Message) -> None:
        self.log.append((event["n"], threading.get_ident()))
        if event.get("waits"):
            assert self.may_go_on is not None and self.may_go_on.wait(DEADLINE)

    def layer_reply(self, event: Message) -> None:
        self.send(text_data=event["text"])

    def disconnect(self, code: int) -> None:
        self.log.append((code, threading.get_ident()))


@pytest.fixture
def may_go_on() -> Iterator[threading.Event]:
    """An event for held handlers, which is set at the end in any case: they have one thread."""
    event = threading.Event()
    yield event
    event.set()


# Threads


async def test_handlers_run_in_the_thread_of_sync_code(layer: AsyncQueueChannelLayer, begin: Begin) -> None:
    """All handlers of all consumers run in the thread in which `sync_to_async` runs other code of the site."""
    logs: list[list[Any]] = [[], []]
    thread = await sync_to_async(threading.get_ident)()
    room = [begin(Room, log=log) for log in logs]
    for talk in room:
        await talk.accepted()
    await layer.group_send("room", {"type": "layer.message", "n": 1})
    say(room[0], "x")
    await eventually(lambda: [len(log) for log in logs] == [2, 1], "the handlers")
    for talk in room:
        await talk.leaves()
    assert {where for log in logs for _, where in log} == {thread}
    assert thread != threading.get_ident()


async def test_thread_of_a_context(layer: AsyncQueueChannelLayer, begin: Begin) -> None:
    """In a ThreadSensitiveContext, handlers run in its thread."""
    log: list[Any] = []
    shared = await sync_to_async(threading.get_ident)()
    async with ThreadSensitiveContext():
        talk = begin(Room, log=log)
        await talk.accepted()
        say(talk, "x")
        await talk.leaves()
        own = await sync_to_async(threading.get_ident)()
    assert log == [("x", own), (1000, own)]
    assert own != shared


async def test_frames_need_no_thread(
    layer: AsyncQueueChannelLayer, begin: Begin, may_go_on: threading.Event
) -> None:
    """While the thread is busy with another consumer's handler, frames reach the client, and so does a close."""
    log: list[Any] = []
    talk = begin(Room, log=[])
    busy = begin(Room, log=log, groups=("room", "busy"), may_go_on=may_go_on)
    for each in (talk, busy):
        await each.accepted()
    await layer.group_send("busy", {"type": "layer.message", "n": 1, "waits": True})
    await eventually(lambda: log, "the handler")
    for n in range(50):
        await layer.group_send("room", {"type": "websocket.send", "text": str(n)})
    await layer.group_send("room", CLOSE)
    assert [await hears(talk) for _ in range(50)] == [str(n) for n in range(50)]
    assert await talk.hears() == CLOSE
    assert busy.sent.empty()
    may_go_on.set()
    assert [await hears(busy) for _ in range(50)] == [str(n) for n in range(50)]
    assert await busy.hears() == CLOSE
    for each in (talk, busy):
        await each.leaves(4000)


async def test_order_of_frames_and_handlers(layer: AsyncQueueChannelLayer, begin: Begin) -> None:
    """A frame does not overtake a message with a handler: they reach the client as they were sent."""
    talk = begin(Room, log=[])
    await talk.accepted()
    kinds = ["websocket.send", "layer.reply", "layer.reply", "websocket.send"] * 5
    for n, kind in enumerate(kinds):
        await layer.group_send("room", {"type": kind, "text": str(n)})
    assert [await hears(talk) for _ in kinds] == [str(n) for n in range(len(kinds))]
    await talk.leaves()


@pytest.mark.parametrize("base", [theirs.WebsocketConsumer, WebsocketConsumer], ids=["channels", "ours"])
async def test_connections_are_cleaned_around_each_handler(
    layer: AsyncQueueChannelLayer, begin: Begin, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`close_old_connections()` runs before and after each handler, in its thread, as in Channels."""
    log: list[Any] = []
    original = db.close_old_connections  # type: ignore[attr-defined]

    def cleaned(**options: Any) -> None:
        log.append(("cleaned", threading.get_ident()))
        original(**options)

    monkeypatch.setattr(db, "close_old_connections", cleaned)

    class Notes(base):  # type: ignore[misc]
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            log.append((text_data, threading.get_ident()))

    talk = begin(Notes)
    await talk.accepted()
    say(talk, "x", "y")
    await talk.leaves()
    assert [what for what, _ in log] == [*["cleaned"] * 3, "x", *["cleaned"] * 2, "y", *["cleaned"] * 3]
    assert len({where for _, where in log}) == 1


# As tutorials write them


async def test_as_the_tutorial_writes_it(layer: AsyncQueueChannelLayer, begin: Begin) -> None:
    """`async_to_sync` around the layer's methods, and `send_json()` in handlers."""

    class Chat(JsonWebsocketConsumer):
        def connect(self) -> None:
            async_to_sync(self.channel_layer.group_add)("chat", self.channel_name)
            self.accept()

        def disconnect(self, code: int) -> None:
            async_to_sync(self.channel_layer.group_discard)("chat", self.channel_name)

        def receive_json(self, content: Any, **kwargs: Any) -> None:
            event = {"type": "chat.message", "message": content["message"]}
            async_to_sync(self.channel_layer.group_send)("chat", event)

        def chat_message(self, event: Message) -> None:
            self.send_json({"message": event["message"]})

    room = [begin(Chat) for _ in range(2)]
    for talk in room:
        await talk.accepted()
    say(room[0], '{"message": "hello"}')
    assert [await hears(talk) for talk in room] == ['{"message": "hello"}'] * 2
    assert len(layer.groups["chat"]) == 2
    for talk in room:
        await talk.leaves()
    assert not layer.groups


async def test_limits_hold(layer: AsyncQueueChannelLayer, begin: Begin) -> None:
    """The limits for clients are those of the async consumers."""
    talk = begin(type("Limited", (Room,), {"max_frame": 3}), log=[])
    await talk.accepted()
    say(talk, "long")
    assert (await talk.hears())["code"] == 1009
    await talk.leaves(1009)
    assert layer.statistics().limited == {"max_frame": 1}
    with pytest.raises(ValueError, match="max_frame of Limited is 0"):
        type("Limited", (Room,), {"max_frame": 0})


async def test_dispatch_by_hand() -> None:
    """dispatch() is a coroutine, as in Channels, and tests of consumers may call it."""

    class Plain(SyncConsumer):
        def stop_now(self, event: Message) -> None:
            raise StopConsumer()

    with pytest.raises(StopConsumer):
        await Plain().dispatch({"type": "stop.now"})
    with pytest.raises(ValueError, match="No handler"):
        await Plain().dispatch({"type": "websocket.send", "text": "x"})
