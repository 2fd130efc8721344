"""The WebSocket consumer whose clients come back."""

import asyncio
import json
from collections.abc import AsyncGenerator, Collection
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import urlencode
from uuid import UUID

import pytest
from channels.layers import InMemoryChannelLayer
from channels.testing import WebsocketCommunicator
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.consumers import resumable
from channels_asyncq.generic.websocket import ResumableWebsocketConsumer
from channels_asyncq.testing import EmbeddedServer
from tests.consumers import Message, installed
from tests.contract import DEADLINE, eventually
from tests.contract.history import SHORT_LOG, trim_the_log
from tests.sessions import bus_of, shorten_send_timeout

GROUPS = ("room", "other")


class Room(ResumableWebsocketConsumer):
    """Follows two groups, has a handler for one type, and notes what it is told."""

    made: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[bool, str]] = []
        self.made.append(self)

    def resumable_groups(self) -> Collection[str]:
        return GROUPS

    async def on_resumed(self, recovered: bool, reason: str) -> None:
        self.told.append((recovered, reason))

    async def chat_shout(self, message: Message) -> None:
        await self.send_json({"shout": message["text"].upper()})

    async def chat_pair(self, message: Message) -> None:
        await self.send_json({"half": 1}, more=True)
        await self.send_json({"half": 2})

    async def receive_json(self, content: Any, **_: Any) -> None:
        await self.send_json({"echo": content})


class Client:
    """A client of the consumer, and the last id that it has got."""

    def __init__(self, consumer: type[ResumableWebsocketConsumer], since: str | None) -> None:
        query = "?" + urlencode({"since": since}) if since is not None else ""
        self.socket = WebsocketCommunicator(consumer.as_asgi(), f"/ws/{query}")
        self.id = since

    async def connect(self) -> "Client":
        connected, _ = await self.socket.connect(timeout=DEADLINE)
        assert connected
        return self

    async def frame(self) -> Any:
        frame = json.loads(await self.socket.receive_from(timeout=DEADLINE))
        self.id = frame.get("id", self.id)
        return frame

    async def frames_until_resumed(self) -> list[Any]:
        frames: list[Any] = []
        while not frames or frames[-1].get("type") != "resumed":
            frames.append(await self.frame())
        return frames

    async def leave(self) -> None:
        await self.socket.disconnect(timeout=DEADLINE)


@pytest.fixture(params=["memory", pytest.param("redis", marks=[pytest.mark.server])])
async def layer(request: pytest.FixtureRequest, prefix: str) -> AsyncGenerator[AsyncQueueChannelLayer, None]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    async with installed(AsyncQueueChannelLayer(hosts=[url], prefix=prefix)) as layer:
        yield layer


async def come(consumer: type[ResumableWebsocketConsumer] = Room, since: str | None = None) -> Client:
    return await Client(consumer, since).connect()


async def test_the_first_connection_is_told_that_it_is_live(layer: AsyncQueueChannelLayer) -> None:
    client = await come()
    frame = await client.frame()
    assert frame == {"type": "resumed", "id": frame["id"], "recovered": True, "reason": ""}
    await layer.group_send("room", {"type": "chat.text", "text": "hi"})
    frame = await client.frame()
    assert frame == {"id": frame["id"], "m": {"type": "chat.text", "text": "hi"}}
    await client.leave()


async def test_missed_messages_come_before_resumed_and_once(layer: AsyncQueueChannelLayer) -> None:
    client = await come()
    await client.frames_until_resumed()
    await client.leave()
    for number in range(20):
        await layer.group_send(GROUPS[number % 2], {"type": "chat.text", "number": number})
    client = await come(since=client.id)
    await layer.group_send("room", {"type": "chat.text", "number": 20})
    *frames, resumed = await client.frames_until_resumed()
    assert resumed["recovered"]
    if len(frames) == 20:
        frames.append(await client.frame())
    numbers = [frame["m"]["number"] for frame in frames]
    assert sorted(numbers) == list(range(21))
    assert [number for number in numbers if number % 2] == list(range(1, 20, 2))
    assert [number for number in numbers if not number % 2] == list(range(0, 21, 2))
    assert await client.socket.receive_nothing()
    await client.leave()


async def test_each_id_resumes_behind_its_message(layer: AsyncQueueChannelLayer) -> None:
    client = await come()
    await client.frames_until_resumed()
    await asyncio.gather(*(layer.group_send("room", {"type": "chat.text", "n": n}) for n in range(20)))
    frames = [await client.frame() for _ in range(20)]
    await client.leave()
    for index, frame in enumerate(frames):
        client = await come(since=frame["id"])
        *missed, resumed = await client.frames_until_resumed()
        assert resumed["recovered"]
        assert [each["m"]["n"] for each in missed] == [each["m"]["n"] for each in frames[index + 1 :]]
        await client.leave()


async def test_what_a_handler_sends_has_the_id_of_its_message(layer: AsyncQueueChannelLayer) -> None:
    client = await come()
    await client.frames_until_resumed()
    await layer.group_send("room", {"type": "chat.shout", "text": "hi"})
    frame = await client.frame()
    assert frame == {"id": frame["id"], "m": {"shout": "HI"}}
    await client.socket.send_json_to("ping")
    assert await client.frame() == {"echo": "ping"}  # an answer to the client is not of a group
    await client.leave()


async def test_of_several_frames_only_the_last_has_the_id(layer: AsyncQueueChannelLayer) -> None:
    client = await come()
    await client.frames_until_resumed()
    await layer.group_send("room", {"type": "chat.pair"})
    first, second = await client.frame(), await client.frame()
    assert first == {"m": {"half": 1}}
    assert second == {"id": second["id"], "m": {"half": 2}}
    await client.leave()


async def test_a_message_to_the_channel_itself_has_no_id(layer: AsyncQueueChannelLayer) -> None:
    Room.made.clear()
    client = await come()
    await client.frames_until_resumed()
    await layer.send(Room.made[-1].channel_name, {"type": "chat.shout", "text": "you"})
    assert await client.frame() == {"shout": "YOU"}
    await client.leave()


async def test_what_excludes_the_former_channel_is_not_for_the_next(layer: AsyncQueueChannelLayer) -> None:
    Room.made.clear()
    client = await come()
    [resumed] = await client.frames_until_resumed()
    former = Room.made[-1].channel_name
    await client.leave()
    await layer.group_send("room", {"type": "chat.text", "n": 1}, exclude=[former])
    await layer.group_send("room", {"type": "chat.text", "n": 2})
    client = await come(since=resumed["id"])
    missed, _ = await client.frames_until_resumed()
    assert missed["m"]["n"] == 2
    await layer.group_send("room", {"type": "chat.text", "n": 3}, exclude=[former])
    await layer.group_send("room", {"type": "chat.text", "n": 4})
    assert (await client.frame())["m"]["n"] == 4
    await client.leave()


async def test_a_position_that_is_refused_is_told(layer: AsyncQueueChannelLayer) -> None:
    Room.made.clear()
    client = await come(since="nonsense")
    frame = await client.frame()
    assert (frame["recovered"], frame["reason"]) == (False, "bad_token")
    await layer.group_send("room", {"type": "chat.text", "n": 1})
    assert (await client.frame())["m"]["n"] == 1
    assert Room.made[-1].told == [(False, "bad_token")]
    await client.leave()


@pytest.mark.server
async def test_what_the_log_has_no_more_comes_from_histories(redis_url: str, prefix: str) -> None:
    """A client that was away for longer gets all of it, with ids from which it may come back again."""
    config: dict[str, Any] = {"hosts": [redis_url], "prefix": prefix, **SHORT_LOG}
    history: Any = {group: {"messages": 50} for group in GROUPS}
    async with installed(AsyncQueueChannelLayer(**config, history=history)) as layer:
        client = await come()
        await client.frames_until_resumed()
        await client.leave()
        for n in range(6):
            text = "x" * 2000 if n == 3 else "x"
            await layer.group_send(GROUPS[n % 2], {"type": "chat.text", "n": n, "text": text})
        await trim_the_log(layer)
        got: list[int] = []
        for count in (2, 4):
            client = await come(since=client.id)
            got += [(await client.frame())["m"]["n"] for _ in range(count)]
            if count == 4:
                assert (await client.frames_until_resumed())[-1]["recovered"]
            await client.leave()
        assert got == list(range(6))
        assert layer.statistics().refused == {}


async def test_not_before(layer: AsyncQueueChannelLayer) -> None:
    position = await layer.position(*GROUPS)
    await layer.group_send("room", {"type": "chat.text", "n": 1})

    class Newcomer(Room):
        not_before = datetime.now(UTC) + timedelta(seconds=60)

    client = await come(Newcomer, since=position)
    [resumed] = await client.frames_until_resumed()
    assert resumed["recovered"]
    await client.leave()


async def test_types_that_django_writes_as_json(layer: AsyncQueueChannelLayer) -> None:
    client = await come()
    await client.frames_until_resumed()
    key = UUID("12345678123456781234567812345678")
    await layer.group_send("room", {"type": "chat.text", "key": key})
    assert (await client.frame())["m"]["key"] == str(key)
    await client.leave()


async def test_the_json_is_made_once_for_all(
    layer: AsyncQueueChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = 0

    class Counting(Room):
        @classmethod
        async def encode_json(cls, content: Any) -> str:
            nonlocal encoded
            encoded += "type" in content and content["type"] == "chat.text"
            return await super().encode_json(content)

    clients = [await come(Counting) for _ in range(5)]
    for client in clients:
        await client.frames_until_resumed()
    await layer.group_send("room", {"type": "chat.text"})
    for client in clients:
        assert (await client.frame())["m"] == {"type": "chat.text"}
        await client.leave()
    assert encoded == 1


async def test_quiet_groups_get_fresh_positions(layer: AsyncQueueChannelLayer) -> None:
    class Quick(Room):
        heartbeat = 0.05

    client = await come(Quick)
    [resumed] = await client.frames_until_resumed()
    beat = await client.frame()
    assert list(beat) == ["id"]
    assert beat["id"] == resumed["id"].partition("~~")[0]
    await client.leave()


async def test_a_client_that_overflows_is_mended_from_the_log(layer: AsyncQueueChannelLayer) -> None:
    holds, enters = asyncio.Event(), asyncio.Event()

    class Slow(Room):
        async def chat_slow(self, message: Message) -> None:
            enters.set()
            await holds.wait()
            await self.send_json(message["n"])

    layer.capacity = 2
    client = await come(Slow)
    await client.frames_until_resumed()
    for number in range(40):
        await layer.group_send("room", {"type": "chat.slow", "n": number})
    await enters.wait()
    await eventually(lambda: layer.statistics().dropped.get("overflow", 0) > 0)
    holds.set()
    assert [(await client.frame())["m"] for _ in range(40)] == list(range(40))
    await client.leave()


async def test_connect_may_refuse(layer: AsyncQueueChannelLayer) -> None:
    class Closed(Room):
        async def connect(self) -> None:
            await self.close()

    client = Client(Closed, None)
    connected, _ = await client.socket.connect(timeout=DEADLINE)
    assert not connected
    assert not layer.groups


async def test_nothing_is_left_when_the_client_has_gone(layer: AsyncQueueChannelLayer) -> None:
    client = await come()
    await client.frames_until_resumed()
    assert set(layer.groups) == set(GROUPS)
    await client.leave()
    assert not layer.groups
    assert not layer.channels


async def test_another_layer_is_refused_clearly() -> None:
    async with installed(InMemoryChannelLayer()):
        client = Client(Room, None)
        with pytest.raises(ImproperlyConfigured, match="channels_asyncq"):
            # The whole time is waited for an answer that does not come.
            await client.socket.connect(timeout=1)


async def test_without_groups_the_error_names_the_method(layer: AsyncQueueChannelLayer) -> None:
    client = Client(ResumableWebsocketConsumer, None)
    await client.socket.connect(timeout=DEADLINE)
    with pytest.raises(NotImplementedError, match="resumable_groups"):
        await client.socket.receive_from(timeout=DEADLINE)


@pytest.mark.server
async def test_without_the_server_the_client_is_sent_away_to_come_back(
    own_redis_server: EmbeddedServer, prefix: str
) -> None:
    class Late(Room):
        async def connect(self) -> None:
            own_redis_server.stop()
            await self.accept()

    layer = AsyncQueueChannelLayer(hosts=[own_redis_server.url], prefix=prefix)
    async with installed(layer):
        await layer.new_channel()
        shorten_send_timeout(bus_of(layer), 0.3)
        client = await come(Late)
        frame = await client.frame()
        assert frame == {"type": "retry", "ms": frame["ms"]}
        assert 500 <= frame["ms"] <= 3000
        closed = await client.socket.receive_output(timeout=DEADLINE)
        assert (closed["type"], closed["code"]) == ("websocket.close", 1012)


def test_bodies_are_bounded() -> None:
    assert resumable._MOST_BODIES * resumable._MOST_CHARACTERS <= 16 * 2**20
