"""`confirm=False`: sends that return when they are written, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from channels_asyncq import AsyncQueueChannelLayer, LayerUnavailable
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.contract import (
    MakeLayer,
    ended,
    eventually,
    note,
    notes,
    receive,
    receive_many,
    started,
    steps,
)
from tests.resp_server import RespServer, error


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    url: str = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    return url


@pytest.fixture
async def make_layer(url: str, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[url], prefix=prefix, confirm=False) as make_layer:
        yield make_layer


@pytest.fixture
async def own_layers(own_redis_server: EmbeddedServer, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(
        hosts=[own_redis_server.url], prefix=prefix, confirm=False, send_timeout=20.0
    ) as make_layer:
        yield make_layer


class TestGroups(contract.Groups):
    """The rules of groups, but for the two that say that a message is on its way when the send has returned."""

    test_coming_back = None  # type: ignore[assignment]
    test_a_full_normal_member_is_not_the_senders_concern = None  # type: ignore[assignment]


async def test_every_kind_of_target(make_layer: MakeLayer) -> None:
    """A group with members here, elsewhere and normal ones, a channel elsewhere, a normal channel: in order."""
    here, there = await make_layer(), await make_layer(capacity=1000)
    channel = await there.new_channel()
    await here.group_add("room", channel)
    await here.group_add("room", "jobs")
    for each in notes(200):
        await here.group_send("room", each)
    assert await receive_many(there, channel, 200) == notes(200)
    assert await receive_many(there, "jobs", 100) == notes(100)
    for each in notes(50):
        await here.send(channel, each)
        await here.send("other", each)
    assert await receive_many(there, channel, 50) == notes(50)
    assert await receive_many(there, "other", 50) == notes(50)


async def test_full(make_layer: MakeLayer) -> None:
    """A full normal channel is counted and no error; send_wait() still knows; so does the channel's own loop."""
    layer = await make_layer(capacity=2)
    for each in notes(5):
        await layer.send("jobs", each)
    await eventually(lambda: layer.statistics().dropped == {"overflow": 3})
    with pytest.raises(TimeoutError):
        await layer.send_wait("jobs", note(6), timeout=0.01)
    own = await layer.new_channel()
    for each in notes(2):
        await layer.send(own, each)
    with pytest.raises(layer.ChannelFull):
        await layer.send(own, note(3))
    assert await receive_many(layer, "jobs", 2) == notes(2)


async def test_closing_waits_for_what_was_written(make_layer: MakeLayer) -> None:
    """What was sent before close() is there after it: to groups, and the copies for normal channels."""
    here, there = await make_layer(), await make_layer()
    await there.group_add("room", "jobs")
    await here.group_send("room", note(0))  # its session begins
    for each in notes(50):
        await here.group_send("room", each)
    await here.close()
    assert await receive_many(there, "jobs", 51) == [note(0), *notes(50)]


async def test_sends_are_pipelined(redis_url: str, prefix: str) -> None:
    """A thousand sends in a row wait for no answer: they leave in few writes."""
    layer = AsyncQueueChannelLayer(hosts=[redis_url], prefix=prefix, confirm=False, capacity=2000)
    try:
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        [session] = layer._sessions.values()
        wire = session._bus._shards[0].commands.wire  # type: ignore[attr-defined]
        before, answered = wire.writes, wire.replies
        for each in notes(1000):
            await layer.group_send("room", each)
        assert wire.replies == answered, "it waited"
        assert wire.writes - before <= 1000 / 16 + 1
        assert await receive_many(layer, channel, 1000) == notes(1000)
    finally:
        await layer.close()


async def test_flight_is_bounded(own_redis_server: EmbeddedServer, own_layers: MakeLayer) -> None:
    """1024 sends may be without an answer; the next one waits, and can be cancelled."""
    layer = await own_layers(send_timeout=30.0)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    own_redis_server.pause()
    try:
        for each in notes(1024):
            await layer.group_send("room", each)
        waiting = await started(layer.group_send("room", note(-1)))
        assert not waiting.done()
        waiting.cancel()
        await ended(waiting)
        assert waiting.cancelled()
    finally:
        own_redis_server.resume()
    await layer.group_send("room", note(-2))
    await eventually(
        lambda: layer.statistics().delivered + layer.statistics().dropped.get("overflow", 0) == 1025
    )


async def test_lost_connection(own_redis_server: EmbeddedServer, own_layers: MakeLayer) -> None:
    """What was written when the connections were killed arrives, once and in order."""
    layer = await own_layers(capacity=2000)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    for n in range(1000):
        if n % 100 == 50:
            own_redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await layer.group_send("room", note(n))
    assert await receive_many(layer, channel, 1000) == notes(1000)
    assert not layer.statistics().dropped


async def test_scripts_are_gone(own_redis_server: EmbeddedServer, own_layers: MakeLayer) -> None:
    """A server that has forgotten the scripts gets them again, and every message once."""
    layer = await own_layers()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.send("jobs", note(0))
    assert await receive(layer, "jobs") == note(0)
    own_redis_server.command("SCRIPT", "FLUSH")
    for each in notes(50):
        await layer.group_send("room", each)
        await layer.send("jobs", each)
    assert await receive_many(layer, channel, 50) == notes(50)
    assert await receive_many(layer, "jobs", 50) == notes(50)


async def test_no_answer(
    own_redis_server: EmbeddedServer, own_layers: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that goes away with what was written: counted, logged once, told to the members that are here."""
    layer = await own_layers(on_loss="loss", send_timeout=0.5, recovery=None)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    own_redis_server.pause()
    try:
        for each in notes(20):
            await layer.group_send("room", each)
            await layer.send("jobs", each)
        await eventually(lambda: layer.statistics().dropped.get("unsent") == 40)
        assert await receive(layer, channel) == {"type": "loss", "reason": "unsent", "groups": ["room"]}
        with pytest.raises(LayerUnavailable):
            await layer.group_send("room", note(0))
    finally:
        own_redis_server.resume()
    codes = [getattr(record, "code", "") for record in caplog.records]
    assert codes.count("loss.unsent") == 1


async def test_refused(prefix: str) -> None:
    """A server without memory: the error is counted and told, and the next message goes through."""
    async with (
        RespServer() as server,
        contract.layers(hosts=[server.url], prefix=prefix, confirm=False, on_loss="loss") as make_layer,
    ):
        layer = await make_layer()
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        server.script("SEND", error("OOM command not allowed when used memory > 'maxmemory'."))
        await layer.group_send("room", note(1))
        assert await receive(layer, channel) == {"type": "loss", "reason": "unsent", "groups": ["room"]}
        assert layer.statistics().dropped == {"unsent": 1}
        await layer.group_send("room", note(2))
        assert await receive(layer, channel) == note(2)


@pytest.mark.parametrize("turns", [0, 3])
async def test_copies_that_are_cancelled(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """When the loop ends before the copies for normal channels are on their way, they are counted."""
    layer = await make_layer()
    await layer.new_channel()
    [session] = layer._sessions.values()

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(session, "push_copies", never)
    session.on_members([b"jobs"], b"", ())
    [copying] = session._copying
    await steps(turns)
    copying.cancel()
    await asyncio.wait([copying])
    await steps(1)
    assert not session._copying
    assert layer.statistics().dropped == {"unsent": 1}
