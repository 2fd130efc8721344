"""`websocket.close` from the channel layer ends the event streams of a group, and some for good."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from channels_asyncq.events import Faults
from channels_asyncq.http import EventStream, stream
from channels_asyncq.messages.closing import CLOSE
from tests import contract
from tests.sse import Client, Comment, Event
from tests.test_event_stream import live, make_any, message, numbers, opened, request, send

__all__ = ["make_any"]

BANNED = {"type": CLOSE, "code": 4403, "reason": "banned"}
RESTART = {"type": CLOSE, "code": 1012}


async def test_final_code(make_any: contract.MakeLayer) -> None:
    """After what was sent before, an event tells code and reason, and the stream ends; it is left by then."""
    layer = await make_any()
    client = await live(layer, "room")
    await send(layer, "room", 1)
    await layer.group_send("room", BANNED)
    await send(layer, "room", 2)
    first, closed = await client.end()
    assert isinstance(first, Event) and first.json["n"] == 1
    assert isinstance(closed, Event) and closed.type == CLOSE
    assert closed.json == {"code": 4403, "reason": "banned", "final": True}
    assert layer.statistics().channels == 0


async def test_its_client_is_told_not_to_come_back(make_any: contract.MakeLayer) -> None:
    """The id that an EventSource then comes back with is answered with 204, and nothing is opened for it."""
    layer = await make_any()
    client = await live(layer, "room")
    await layer.group_send("room", BANNED)
    await client.end()
    response = EventStream(request(**{"Last-Event-ID": client.last_id}), ["room"], layer=layer)
    assert response.status_code == 204
    assert [chunk async for chunk in response] == []
    assert layer.statistics().channels == 0


async def test_a_new_page_begins_afresh(make_any: contract.MakeLayer) -> None:
    """Only the header says that a stream has ended: a position in the address does not."""
    layer = await make_any()
    client = await live(layer, "room")
    await layer.group_send("room", BANNED)
    await client.end()
    for path in ("/", f"/?since={client.last_id}"):
        response = EventStream(request(path), ["room"], layer=layer)
        assert response.status_code == 200
        async with Client(aiter(response)) as again:
            await again.here()


async def test_code_that_is_not_final(make_any: contract.MakeLayer) -> None:
    """The client comes back to where it was: what follows the close comes, and the close not again."""
    layer = await make_any()
    client = await live(layer, "room")
    await layer.group_send("room", RESTART)
    await send(layer, "room", 1)
    (closed,) = await client.end()
    assert isinstance(closed, Event)
    assert closed.json == {"code": 1012, "reason": "", "final": False}
    assert client.parser.retry is not None
    async with opened(layer, "room", since=client.last_id) as back:
        assert numbers(await back.here()) == [1]


async def test_when_to_come_back(make_any: contract.MakeLayer) -> None:
    """The message may say after how many seconds; the stream passes it on with jitter."""
    layer = await make_any()
    client = await live(layer, "room")
    await layer.group_send("room", {**RESTART, "retry": 60})
    await client.end()
    assert client.parser.retry is not None
    assert 60_000 <= client.parser.retry <= 120_000


async def test_a_close_that_was_missed(make_any: contract.MakeLayer) -> None:
    """It was meant for the connection before: a client that the view has admitted anew is not ended by it."""
    layer = await make_any()
    async with await live(layer, "room") as client:
        pass
    await send(layer, "room", 1)
    await layer.group_send("room", BANNED)
    await send(layer, "room", 2)
    async with opened(layer, "room", since=client.last_id) as back:
        assert numbers(await back.here()) == [1, 2]
        await layer.group_send("room", BANNED)
        assert (await back.event()).type == CLOSE


async def test_a_close_that_finds_no_place(make_any: contract.MakeLayer) -> None:
    """The stream ends all the same. Its client comes back to the view, and misses nothing else."""
    layer = await make_any(capacity=2)
    client = await live(layer, "room")
    await send(layer, "room", *range(20))
    await layer.group_send("room", BANNED)
    await contract.eventually(lambda: layer.statistics().dropped.get("overflow") == 19)
    events = [event for event in await client.end() if isinstance(event, Event)]
    assert not any(event.type == CLOSE for event in events) and client.last_id != "ended"
    async with opened(layer, "room", since=client.last_id) as back:
        assert numbers(events) + numbers(await back.here()) == list(range(20))


async def test_to_the_channel_itself(make_any: contract.MakeLayer) -> None:
    """One stream can be ended by the name of its channel; other messages to it are no events."""
    layer = await make_any()
    client = await live(layer, "room")
    (name,) = layer.channels
    await layer.send(name, message(1))
    await layer.send(name, BANNED)
    (closed,) = await client.end()
    assert isinstance(closed, Event) and closed.type == CLOSE


async def test_render_is_not_asked(make_any: contract.MakeLayer) -> None:
    """The message is not for pages, so `render` cannot keep it back."""

    def render(message: dict[str, Any]) -> None:
        raise AssertionError(message)

    layer = await make_any()
    client = await live(layer, "room", render=render)
    await layer.group_send("room", BANNED)
    (closed,) = await client.end()
    assert isinstance(closed, Event) and closed.type == CLOSE


async def test_not_before_keeps_no_close_back(make_any: contract.MakeLayer) -> None:
    """A stream whose client may read from tomorrow on can be ended today."""
    layer = await make_any()
    client = await live(layer, "room", not_before=datetime.now(UTC) + timedelta(days=1))
    await send(layer, "room", 1)
    await layer.group_send("room", BANNED)
    (closed,) = await client.end()
    assert isinstance(closed, Event) and closed.type == CLOSE


async def test_wrong_code(
    make_any: contract.MakeLayer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A code that nobody may send ends the stream, is logged, and does not end the next one too."""
    monkeypatch.setattr(stream, "_faults", Faults())
    layer = await make_any()
    client = await live(layer, "room")
    before = client.last_id
    with caplog.at_level(logging.ERROR):
        await layer.group_send("room", {"type": CLOSE, "code": 999})
        assert await client.end() == []
    assert "the code 999, which no server may send" in caplog.text
    async with opened(layer, "room", since=before) as back:
        assert await back.here() == []
        await send(layer, "room", 1)
        assert numbers([await back.event()]) == [1]


async def test_other_streams_stay(make_any: contract.MakeLayer) -> None:
    """A stream of other groups goes on."""
    layer = await make_any()
    ends = await live(layer, "a")
    async with await live(layer, "b", heartbeat=0.05) as stays:
        await layer.group_send("a", BANNED)
        await ends.end()
        assert await stays.next() == Comment("")
