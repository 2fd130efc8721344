"""The last hop at its edges: clients that are slow to leave, handlers that close, layers that end."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Collection
from typing import Any
from urllib.parse import urlencode

import pytest

from channels_asyncq import AsyncQueueChannelLayer, MessagesLost
from channels_asyncq.consumers.resumable import ResumableWebsocketConsumer
from channels_asyncq.exceptions import LayerUnavailable
from channels_asyncq.session.resuming import Resumer
from channels_asyncq.testing import EmbeddedServer
from tests.consumers import Message, Talk, installed, talks
from tests.contract import DEADLINE, eventually


class Orders(ResumableWebsocketConsumer):
    """Follows one group."""

    def resumable_groups(self) -> Collection[str]:
        return ["orders"]


def scope(since: str | None = None) -> Message:
    query = urlencode({"since": since}) if since is not None else ""
    return {"type": "websocket", "query_string": query.encode()}


async def frame(talk: Talk) -> Any:
    return json.loads((await talk.hears())["text"])


@contextlib.asynccontextmanager
async def memory(prefix: str, **config: Any) -> AsyncGenerator[AsyncQueueChannelLayer]:
    async with installed(AsyncQueueChannelLayer(hosts=["memory://"], prefix=prefix, **config)) as layer:
        yield layer


async def send(layer: AsyncQueueChannelLayer, count: int, group: str = "orders") -> None:
    for number in range(count):
        await layer.group_send(group, {"type": "order.changed", "number": number})


async def test_handler_that_closes_while_missed_messages_are_sent(prefix: str) -> None:
    """A client that does not answer the close costs nothing until it is gone."""

    class Closing(Orders):
        dispatched = 0

        async def dispatch(self, message: Message) -> None:
            Closing.dispatched += 1
            await super().dispatch(message)

        async def order_changed(self, message: Message) -> None:
            await self.close(4000)

    async with memory(prefix) as layer, talks() as talk_with:
        since = await layer.position("orders")
        await send(layer, 3)
        talk = talk_with(Closing, scope(since))
        await talk.accepted()
        assert (await talk.hears())["type"] == "websocket.close"
        for _ in range(50):
            await asyncio.sleep(0)
        assert Closing.dispatched < 10
        assert talk.sent.empty()
        await talk.leaves()


@pytest.mark.parametrize("since", [False, True])
async def test_nothing_is_sent_after_a_close(prefix: str, since: bool) -> None:
    """Servers raise RuntimeError for a frame after the close, which would be in the log as an error."""

    class Closing(Orders):
        heartbeat = 0.005

        async def order_changed(self, message: Message) -> None:
            await self.close(4000)

    async with memory(prefix) as layer, talks() as talk_with:
        position = await layer.position("orders")
        if since:
            await send(layer, 1)
        talk = talk_with(Closing, scope(position))
        await talk.accepted()
        if not since:
            await send(layer, 1)
        while (await talk.hears())["type"] != "websocket.close":
            pass
        talk.refuse = RuntimeError("after close")
        await asyncio.sleep(0.05)  # several heartbeats
        assert talk.refused == 0
        await talk.leaves()


async def test_server_lost_while_mending(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is sent away once, however late its disconnect comes."""

    async with memory(prefix, capacity=1) as layer, talks() as talk_with:
        talk = talk_with(Orders, scope())
        await talk.accepted()
        assert (await frame(talk))["type"] == "resumed"

        async def fail(*args: object) -> None:
            raise LayerUnavailable("the server", "test")

        monkeypatch.setattr(Resumer, "resume", fail)
        talk.hold = asyncio.Event()
        await send(layer, 5)
        await eventually(lambda: bool(layer.statistics().dropped["overflow"]))
        talk.hold.set()
        while (await talk.hears())["type"] != "websocket.close":
            pass
        for _ in range(50):
            await asyncio.sleep(0)
        assert talk.sent.empty()
        await talk.leaves()


async def test_resumed_comes_before_live_messages(prefix: str) -> None:
    """A reader that is never done with its messages is told all the same that it has not recovered."""

    async with memory(prefix) as layer, talks() as talk_with:

        class Busy(Orders):
            async def order_changed(self, message: Message) -> None:
                await layer.group_send("orders", message)
                await self.send_json(message)

        class Refused(Busy):
            async def connect(self) -> None:
                await self.accept()
                await layer.group_add("orders", self.channel_name)
                await send(layer, 1)

        talk = talk_with(Refused, scope("none"))
        await talk.accepted()
        kinds = [(await frame(talk)).get("type", "m") for _ in range(5)]
        assert "resumed" in kinds
        await talk.stop()


async def test_frames_of_other_tasks_have_no_id(prefix: str) -> None:
    """A task that sends while a handler waits does not tell the client that the handler's message has come."""
    waits, go_on = asyncio.Event(), asyncio.Event()
    ticks: list[asyncio.Task[None]] = []

    class Ticking(Orders):
        async def receive_json(self, content: Any, **_: Any) -> None:
            ticks.append(asyncio.create_task(self.tick()))

        async def tick(self) -> None:
            await waits.wait()
            await self.send_json({"tick": 1})
            go_on.set()

        async def order_changed(self, message: Message) -> None:
            waits.set()
            await go_on.wait()
            await self.send_json(message["number"])

    async with memory(prefix) as layer, talks() as talk_with:
        talk = talk_with(Ticking, scope())
        await talk.accepted()
        await frame(talk)
        talk.say("websocket.receive", text="{}")
        await eventually(lambda: bool(ticks))
        await send(layer, 1)
        assert await frame(talk) == {"tick": 1}
        assert (await frame(talk))["m"] == 0
        await talk.leaves()


async def test_frames_of_a_task_that_outlives_its_handler_have_no_id(prefix: str) -> None:
    """An old id would take the client back, and it would get messages twice."""
    over = asyncio.Event()
    late: list[asyncio.Task[None]] = []

    class Late(Orders):
        async def order_changed(self, message: Message) -> None:
            await asyncio.gather(self.send_json(message["number"]))  # a task of the handler
            if message["number"] == 0:
                late.append(asyncio.create_task(self.later()))

        async def later(self) -> None:
            await over.wait()
            await self.send_json({"late": 1})

    async with memory(prefix) as layer, talks() as talk_with:
        talk = talk_with(Late, scope())
        await talk.accepted()
        await frame(talk)
        await send(layer, 2)
        frames = [await frame(talk) for _ in range(2)]
        assert [(found["m"], "id" in found) for found in frames] == [(0, True), (1, True)]
        over.set()
        assert await frame(talk) == {"late": 1}
        await talk.leaves()


@pytest.mark.parametrize("kind", ["heartbeat", "groups", "scope", "not_before", "channel_layer"])
async def test_types_that_name_attributes(prefix: str, kind: str) -> None:
    """A message whose type is the name of an attribute has no handler."""
    async with memory(prefix) as layer, talks() as talk_with:
        talk = talk_with(Orders, scope())
        await talk.accepted()
        await frame(talk)
        await layer.group_send("orders", {"type": kind})
        assert (await frame(talk))["m"] == {"type": kind}
        await talk.leaves()


async def test_groups_as_a_text_are_refused(prefix: str) -> None:
    class Wrong(Orders):
        def resumable_groups(self) -> Collection[str]:
            return "orders"

    async with memory(prefix), talks() as talk_with:
        talk = talk_with(Wrong, scope())
        await talk.accepted()
        with pytest.raises(TypeError, match="orders"):
            await talk.ends()


async def test_invalid_group_name_is_refused(prefix: str) -> None:
    class Wrong(Orders):
        def resumable_groups(self) -> Collection[str]:
            return ["a b"]

    async with memory(prefix), talks() as talk_with:
        talk = talk_with(Wrong, scope())
        await talk.accepted()
        with pytest.raises(TypeError, match="a b"):
            await talk.ends()


async def test_no_groups_miss_nothing(prefix: str) -> None:
    class Lonely(Orders):
        def resumable_groups(self) -> Collection[str]:
            return []

    async with memory(prefix), talks() as talk_with:
        talk = talk_with(Lonely, scope())
        await talk.accepted()
        first = await frame(talk)
        assert first["recovered"]
        await talk.leaves()
        talk = talk_with(Lonely, scope(first["id"]))
        await talk.accepted()
        assert (await frame(talk))["recovered"]
        await talk.leaves()


@pytest.mark.parametrize("value", [0, -1, None, "15", float("nan")])
async def test_wrong_heartbeat_is_refused(prefix: str, value: Any) -> None:
    class Wrong(Orders):
        heartbeat = value

    async with memory(prefix), talks() as talk_with:
        talk = talk_with(Wrong, scope())
        talk.say("websocket.connect")
        with pytest.raises((TypeError, ValueError), match="heartbeat"):
            await asyncio.wait_for(talk.task, DEADLINE)


async def test_layers_share_no_json(prefix: str) -> None:
    """Two layers may give one position to messages of one group name."""
    texts = []
    for number in range(2):
        async with memory(prefix) as layer, talks() as talk_with:
            talk = talk_with(Orders, scope())
            await talk.accepted()
            await frame(talk)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "channels_asyncq.bus.memory.logs.Logs._position", lambda self, published: 7 << 64
                )
                await layer.group_send("orders", {"type": "x", "number": number})
            texts.append((await frame(talk))["m"]["number"])
            await talk.stop()
    assert texts == [0, 1]


async def test_layer_closed_while_joining(prefix: str) -> None:
    async with memory(prefix) as layer, talks() as talk_with:

        class Ending(Orders):
            async def resumable_groups(self) -> Collection[str]:  # type: ignore[override]
                await layer.close()
                return ["orders"]

        talk = talk_with(Ending, scope("none"))
        await talk.accepted()
        assert (await talk.hears())["type"] in ("websocket.close", "websocket.send")
        await talk.leaves()


async def test_overflow_close_does_not_end_a_subscription(prefix: str) -> None:
    """The log has what its channel has lost; an end without an error would hide that messages are missing."""
    async with (
        memory(prefix, capacity=1, overflow="close") as layer,
        layer.subscribe("orders") as subscription,
    ):
        await send(layer, 5)
        await eventually(lambda: bool(layer.statistics().dropped["overflow"]))
        async with asyncio.timeout(DEADLINE):
            assert [(await anext(subscription))["number"] for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_a_channel_that_is_closed_twice_can_leave_its_groups(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`groups` and a group_discard() in disconnect() work after the client was sent away."""

    class Both(Orders):
        groups = ["orders", "more"]  # noqa: RUF012

        async def disconnect(self, code: int) -> None:
            await self.channel_layer.group_discard("more", self.channel_name)

    async with memory(prefix, capacity=1), talks() as talk_with:

        async def fail(*args: object) -> None:
            raise LayerUnavailable("the server", "test")

        monkeypatch.setattr(Resumer, "resume", fail)
        talk = talk_with(Both, scope("none"))
        await talk.accepted()
        while (await talk.hears())["type"] != "websocket.close":
            pass
        await talk.leaves()


@pytest.mark.server
async def test_notices_of_the_layer_are_no_messages_of_groups(
    own_redis_server: EmbeddedServer, prefix: str
) -> None:
    layer = AsyncQueueChannelLayer(
        hosts=[own_redis_server.url], prefix=prefix, on_disconnect="the.end", on_reconnect="the.return"
    )
    async with installed(layer), layer.subscribe("orders") as subscription:
        other = await layer.new_channel()
        own_redis_server.restart()
        async with asyncio.timeout(DEADLINE):
            while (await layer.receive(other))["type"] != "the.return":
                pass
            await send(layer, 1)
            with pytest.raises(MessagesLost):
                await anext(subscription)
            assert (await anext(subscription))["type"] == "order.changed"
