"""Messages of other programs: what they may say, and that they end no consumer, whatever they say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from channels import consumer
from channels.generic import http, websocket

from channels_asyncq import AsyncQueueChannelLayer, ExternalMessage
from channels_asyncq.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AuthGroups,
    JsonWebsocketConsumer,
    ResumableWebsocketConsumer,
)
from channels_asyncq.messages.external import CONSUMER_NAMES
from tests.consumers import OURS, OURS_SYNC, Kind, Message, TracedLayer, installed, talks
from tests.contract import MakeLayer, Publish, assert_nothing_waits, eventually, members_of, note, receive
from tests.handlers import Steps


def say(publish: Publish, kind: str, **content: Any) -> None:
    publish("group:room", json.dumps({"type": kind, **content}))


def dropped(layer: AsyncQueueChannelLayer, reason: str = "unreadable") -> int:
    return layer.statistics().dropped.get(reason, 0)


OF_SERVERS = "websocket.receive websocket.connect websocket.disconnect websocket.accept http.request"
OTHERS = "channel.layer websocket_receive websocket_send http_disconnect asyncq.lost asyncq.over_limit"
OF_CONSUMERS = (
    "disconnect receive receive.json send send_json close dispatch scope on.resumed _private .private"
)
REFUSED = f"{OF_SERVERS} {OTHERS} {OF_CONSUMERS}".split()


@pytest.mark.parametrize("kind", [*REFUSED, "site.loss", "site.down", "site.up"])
async def test_types_of_others_are_refused(make_layer: MakeLayer, publish: Publish, kind: str) -> None:
    """What only a server, a consumer or the layer itself says is dropped and counted, and no member sees it."""
    layer = await make_layer(on_loss="site.loss", on_disconnect="site.down", on_reconnect="site.up")
    (member,) = await members_of(layer, "room", 1)
    say(publish, kind, text="{}")
    await eventually(lambda: dropped(layer) == 1, "the drop")
    await layer.group_send("room", note(1))
    assert await receive(layer, member) == note(1)
    assert layer.statistics().external == 0


def test_names_of_consumers() -> None:
    """Methods and attributes of Channels' consumers, and methods of ours, are names that no type may lead to."""
    classes: set[Any] = {
        kind
        for module in (consumer, websocket, http)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, consumer.AsyncConsumer)
    }
    assert len(classes) > 5
    names = {name for kind in classes for name in dir(kind)}
    for ours in (AsyncJsonWebsocketConsumer, JsonWebsocketConsumer, ResumableWebsocketConsumer, AuthGroups):
        names |= {name for name in dir(ours) if callable(getattr(ours, name))}
    names = {name for name in names if not name.startswith("_")}
    assert {name for name in names if not name.startswith(("websocket_", "http_"))} <= CONSUMER_NAMES


@pytest.mark.parametrize(
    ("external", "passes", "fails"),
    [
        ({"types": ["news.*", "chat.message"]}, ["news.new", "chat.message"], ["chat.other", "new"]),
        ({"groups": ["room"]}, ["news.new"], ["websocket.close"]),
        ({"types": ["websocket.*", "*"]}, ["websocket.send"], ["websocket.receive"]),
        ({"groups": ["board.*"]}, [], ["news.new"]),
        ({"types": []}, [], ["news.new"]),
        (None, [], ["news.new", "websocket.send"]),
    ],
    ids=["types", "groups", "never", "other-groups", "no-types", "None"],
)
async def test_the_setting(
    make_layer: MakeLayer, publish: Publish, external: Any, passes: list[str], fails: list[str]
) -> None:
    """`external` says which types and groups other programs may send; None refuses all."""
    layer = await make_layer(external=external)
    (member,) = await members_of(layer, "room", 1)
    for kind in fails + passes:
        say(publish, kind, text="x")
    for kind in passes:
        assert await receive(layer, member) == {"type": kind, "text": "x"}
    await eventually(lambda: dropped(layer) == len(fails), "the drops")
    await assert_nothing_waits(layer, member)


async def test_receivers_can_tell(make_layer: MakeLayer, publish: Publish) -> None:
    """Each member's copy is an `ExternalMessage`, flat or not; what the layer sends is a plain dict."""
    layer = await make_layer()
    members = await members_of(layer, "room", 3)
    say(publish, "a.b", n=1)
    say(publish, "a.b", list=[])
    await layer.group_send("room", note(1))
    for member in members:
        assert [type(await receive(layer, member)) for _ in range(3)] == [
            ExternalMessage,
            ExternalMessage,
            dict,
        ]


# Consumers.


def reader(kind: Kind) -> Any:
    class Reader(kind.WebsocketConsumer):  # type: ignore[misc, name-defined]
        groups = ["room"]  # noqa: RUF012  (as Channels documents it)
        topic = "an attribute"
        asked = 0

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> Steps:
            yield self.send("received")

        def disconnect(self, code: int) -> Steps:
            yield self.send("disconnected")

        def chat_message(self, event: Message) -> Steps:
            yield self.send(event["text"])

    async def helper_of_sync(self: Any, event: Message) -> None:
        Reader.asked += 1

    def helper(self: Any, event: Message) -> None:
        Reader.asked += 1

    # A method that handles no messages: here a coroutine function, there a function.
    Reader.helper = helper_of_sync if kind.is_sync else helper
    # What is no method of the consumer's own.
    Reader.tool = staticmethod(helper)
    return Reader


def dispatcher(kind: Kind) -> Any:
    class Dispatcher(reader(kind)):  # type: ignore[misc]
        async def dispatch(self, message: Message) -> None:
            await super().dispatch(message)

    return Dispatcher


@pytest.fixture(params=[AsyncQueueChannelLayer, TracedLayer], ids=["ours", "subclass"])
async def layer(request: pytest.FixtureRequest, redis_url: str, prefix: str) -> AsyncIterator[Any]:
    async with installed(request.param(hosts=[redis_url], prefix=prefix)) as made:
        yield made


@pytest.mark.parametrize("kind", [OURS, OURS_SYNC], ids=lambda kind: str(kind.name))
@pytest.mark.parametrize("make_consumer", [reader, dispatcher])
async def test_no_type_ends_a_consumer(
    layer: AsyncQueueChannelLayer,
    publish: Publish,
    kind: Kind,
    make_consumer: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Types without a handler are counted and logged by our consumers, and those that are refused harm none."""
    async with talks() as begin:
        consumer = make_consumer(kind)
        talk = begin(consumer)
        await talk.accepted()
        for unhandled in ("no.such", "topic", "helper", "tool", "chat"):
            say(publish, unhandled)
        say(publish, "websocket.send", text=None)
        for refused in REFUSED:
            say(publish, refused, text="x", code=1000)
        say(publish, "websocket.send", text="to the client")
        say(publish, "chat.message", text="handled")
        assert [(await talk.hears())["text"] for _ in range(2)] == ["to the client", "handled"]
        assert dropped(layer, "unhandled") == 5 and consumer.asked == 0
        assert "'no.such'" in caplog.text and "`external`" in caplog.text and consumer.__name__ in caplog.text
        await asyncio.wait_for(layer.group_send("room", {"type": "no.such"}), 20)
        with pytest.raises(ValueError, match=r"no\.such"):
            await talk.ends()
