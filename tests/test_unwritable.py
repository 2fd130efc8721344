"""A server that answers and refuses to write: what is sent without a log, who is told, and what fails how."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from channels_asyncq import AsyncQueueChannelLayer, sync
from channels_asyncq.exceptions import LayerUnavailable
from channels_asyncq.testing import EmbeddedServer, EmbeddedServerError, server_binaries
from tests import contract
from tests.contract import (
    MakeLayer,
    codes,
    eventually,
    every,
    member_of,
    note,
    notes,
    receive,
    receive_many,
    started,
)
from tests.refusals import KINDS, PROTECTED, refusing
from tests.resp_server import RespServer, error

TOLD = {"type": "loss", "reason": "not_logged", "groups": ["room"]}


@pytest.fixture(scope="module", params=server_binaries(), ids=["first", "second"][: len(server_binaries())])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(external=False, binary=request.param, **PROTECTED) as server:
        yield server


@pytest.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[RespServer]:
    """What a reader is away behind while the server does without it."""
    async with RespServer(server) as proxy:
        yield proxy


@pytest.fixture
async def make_layer(server: EmbeddedServer, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[server.url], prefix=prefix, on_loss="loss") as make_layer:
        yield make_layer


async def away(layer: AsyncQueueChannelLayer, proxy: RespServer) -> None:
    await proxy.stop()
    await eventually(lambda: not layer.statistics().connected, "the loss of the link")


async def back(layer: AsyncQueueChannelLayer, proxy: RespServer) -> None:
    await proxy.start()
    await eventually(lambda: layer.statistics().connected, "the link")


def is_closed_to_subscribers(server: EmbeddedServer, kind: str) -> bool:
    """Whether it refuses to subscribe too. Redis 8.6 does, when it is full."""
    return kind == "OOM" and "denyoom" in str(server.command("COMMAND", "INFO", "subscribe"))


pytestmark = pytest.mark.server
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
async def test_messages_are_sent_without_a_log(
    make_layer: MakeLayer, server: EmbeddedServer, kind: str
) -> None:
    """Members and channels of other processes get what is sent meanwhile, in order with what is logged."""
    sender, reader = await make_layer(), await make_layer()
    channel = await member_of(reader)
    for n in range(10):
        await sender.group_send("room", note(n))
    with refusing(server, kind):
        await every(sender.group_send("room", note(n)) for n in range(10, 60))
        await sender.send(channel, note(60))
    await every(sender.group_send("room", note(n)) for n in range(61, 70))
    assert await receive_many(reader, channel, 70) == notes(70)
    assert reader.statistics().told == {}


@each_kind
async def test_who_was_away_is_told(
    make_layer: MakeLayer, server: EmbeddedServer, proxy: RespServer, kind: str
) -> None:
    """A process that reconnects when the server writes again gets what is logged, and is told of the rest."""
    sender, reader = await make_layer(), await make_layer(hosts=[proxy.url])
    channel = await member_of(reader)
    await away(reader, proxy)
    await sender.group_send("room", note(0))
    with refusing(server, kind):
        await sender.group_send("room", note(1))
    await sender.group_send("room", note(2))
    await back(reader, proxy)
    assert sorted([str(await receive(reader, channel)) for _ in range(3)]) == sorted(
        map(str, (note(0), note(2), TOLD))
    )
    # With the next fence it begins anew: what is missed from then on is told.
    await reader.health()
    await away(reader, proxy)
    await sender.group_send("room", note(3))
    await back(reader, proxy)
    assert await receive(reader, channel) == note(3)
    assert reader.statistics().told == {"not_logged": 1}


@each_kind
async def test_who_reconnects_meanwhile_is_told(
    make_layer: MakeLayer, server: EmbeddedServer, proxy: RespServer, kind: str
) -> None:
    """A process that reconnects while the server refuses to write is told, and hears what is sent then."""
    if is_closed_to_subscribers(server, kind):
        pytest.skip("a full server of this version lets nobody subscribe")
    sender, reader = await make_layer(), await make_layer(hosts=[proxy.url])
    channel = await member_of(reader)
    with refusing(server, kind):
        await away(reader, proxy)
        await sender.group_send("room", note(1))
        await back(reader, proxy)
        assert await receive(reader, channel) == TOLD
        await sender.group_send("room", note(2))
        assert await receive(reader, channel) == note(2)


async def test_a_full_server_that_lets_nobody_subscribe(
    make_layer: MakeLayer, server: EmbeddedServer, proxy: RespServer
) -> None:
    """As Redis 8.6 does: who is away comes back when there is memory, and is told; a join says why it fails."""
    sender, reader = await make_layer(), await make_layer(hosts=[proxy.url])
    channel = await member_of(reader)
    with refusing(server, "OOM"):
        await away(reader, proxy)
        await sender.group_send("room", note(1))
        proxy.always("SUBSCRIBE", error("OOM command not allowed when used memory > 'maxmemory'."))
        await proxy.start()
        await eventually(lambda: "OOM" in reader.statistics().links[0].reason, "the refusal")
        with pytest.raises(LayerUnavailable, match="OOM"):
            await every([member_of(await make_layer(hosts=[proxy.url]))])
        assert not reader.statistics().connected
    proxy.restore()
    await eventually(lambda: reader.statistics().connected, "the link")
    assert await receive(reader, channel) == TOLD
    await sender.group_send("room", note(2))
    assert await receive(reader, channel) == note(2)


@each_kind
async def test_a_process_that_starts_meanwhile(
    make_layer: MakeLayer, server: EmbeddedServer, kind: str
) -> None:
    """One that connects the first time hears everything that is sent from then on."""
    if is_closed_to_subscribers(server, kind):
        pytest.skip("a full server of this version lets nobody subscribe")
    sender = await make_layer()
    await sender.new_channel()
    with refusing(server, kind):
        reader = await make_layer()
        channel = await member_of(reader)
        await sender.group_send("room", note(1))
        assert await receive(reader, channel) == note(1)
    await sender.group_send("room", note(2))
    assert await receive(reader, channel) == note(2)


@each_kind
async def test_jobs_and_memberships_fail_with_the_words_of_the_server(
    make_layer: MakeLayer, server: EmbeddedServer, kind: str
) -> None:
    """What needs the write is refused at once, and works again when the server writes."""
    layer = await make_layer()
    await layer.group_add("room", "jobs")
    channel = await member_of(layer)
    with refusing(server, kind):
        for call in contract.calls(
            lambda: layer.send("jobs", note(1)),
            lambda: layer.group_add("room", "other"),
            # The members have it: the copy for `jobs` is what fails.
            lambda: layer.group_send("room", note(2)),
        ):
            with pytest.raises(LayerUnavailable, match=kind) as raised:
                await every([call()])
            assert "No connection" not in str(raised.value)
            assert raised.value.reason.startswith(kind)
        with pytest.raises(LayerUnavailable, match=kind):
            await sync_send(layer, "jobs")
    assert await receive(layer, channel) == note(2)
    await layer.send("jobs", note(3))
    assert await receive(layer, "jobs") == note(3)
    assert layer.statistics().reconnects == 0


async def sync_send(layer: AsyncQueueChannelLayer, channel: str) -> None:
    """By the thread that sends for callers without an event loop."""
    await asyncio.to_thread(sync.send, channel, note(9), layer)


@each_kind
async def test_waiting_receiver_gets_what_comes_later(
    make_layer: MakeLayer, server: EmbeddedServer, kind: str
) -> None:
    """A receiver of a normal channel that asks while the server refuses is not ended, and loses nothing."""
    layer = await make_layer()
    await layer.send("jobs", note(1))
    with refusing(server, kind):
        receiving = await started(layer.receive("jobs"))
        with pytest.raises(LayerUnavailable):
            await layer.send("jobs", note(2))
    await layer.send("jobs", note(3))
    assert await contract.ended(receiving) == note(1)
    assert await receive(layer, "jobs") == note(3)


@each_kind
async def test_required(make_layer: MakeLayer, server: EmbeddedServer, kind: str) -> None:
    """With `required` nothing is sent that is not logged: the sender gets the words of the server."""
    layer = await make_layer(recovery={"required": True})
    other = await make_layer(recovery={"required": True})
    channel = await member_of(other)
    with refusing(server, kind):
        for call in contract.calls(
            lambda: layer.group_send("room", note(1)), lambda: layer.send(channel, note(1))
        ):
            with pytest.raises(LayerUnavailable, match=rf"refused: {kind}"):
                await every([call()])
    await layer.group_send("room", note(2))
    assert await receive(other, channel) == note(2)


@each_kind
async def test_without_recovery(make_layer: MakeLayer, server: EmbeddedServer, kind: str) -> None:
    """Without logs messages pass, and nobody is told."""
    layer, other = await make_layer(recovery=None), await make_layer(recovery=None)
    channel = await member_of(other)
    with refusing(server, kind):
        await layer.group_send("room", note(1))
        assert await receive(other, channel) == note(1)


@each_kind
async def test_health_and_one_line(
    make_layer: MakeLayer, server: EmbeddedServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """health() has the words of the server and what follows from it; the log has one line, and one at the end."""
    caplog.set_level(logging.INFO, "channels_asyncq")
    layer = await make_layer()
    await layer.new_channel()
    with refusing(server, kind):
        for _ in range(3):
            health = await layer.health()
        assert not health.ok
        assert kind in health.hosts[0].reason and "without a log" in health.hosts[0].reason
    assert (await layer.health()).ok
    assert [code for code in codes(caplog) if code.startswith("connection.")] == [
        "connection.unwritable",
        "connection.writable",
    ]
    assert kind in caplog.text


async def test_busy_with_the_script_of_somebody(make_layer: MakeLayer, server: EmbeddedServer) -> None:
    """While a server runs somebody's script, sends fail at once with its words; afterwards they work."""
    layer, reader = await make_layer(), await make_layer()
    channel = await member_of(reader)
    await layer.group_send("room", note(1))
    server.command("CONFIG", "SET", "lua-time-limit", "1")
    script = asyncio.create_task(
        asyncio.to_thread(server.command, "EVAL", "while true do end", "0", timeout=contract.DEADLINE)
    )
    try:
        for call in contract.calls(
            lambda: layer.group_send("room", note(2)),
            lambda: layer.send("jobs", note(2)),
            lambda: layer.group_add("room", "jobs"),
        ):
            async with asyncio.timeout(contract.DEADLINE):
                # Until the server says so it says nothing, and what was sent then is executed in the end.
                with pytest.raises(LayerUnavailable, match="refused: BUSY"):
                    while True:
                        await asyncio.sleep(contract.POLL)
                        await asyncio.wait_for(call(), 10)
    finally:
        server.command("SCRIPT", "KILL")
        with pytest.raises(EmbeddedServerError, match="killed"):
            await script
    await layer.group_send("room", note(3))
    while await receive(reader, channel) != note(3):
        pass
    assert layer.statistics().reconnects == 0


@each_kind
async def test_a_user_who_may_not_ask(
    make_layer: MakeLayer, server: EmbeddedServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where INFO is not permitted nobody could be told: nothing is sent that is not logged."""
    server.command("ACL", "SETUSER", "blind", "on", ">blind", "~*", "&*", "+@all", "-info")
    blind = server.url.replace("//", "//blind:blind@")
    layer, other = await make_layer(hosts=[blind]), await make_layer()
    channel = await member_of(other)
    await layer.group_send("room", note(1))
    with refusing(server, kind), pytest.raises(LayerUnavailable, match=rf"refused: {kind}"):
        await layer.group_send("room", note(2))
    await layer.group_send("room", note(3))
    assert await receive_many(other, channel, 2) == [note(1), note(3)]
    with refusing(server, kind):
        assert "Sends, jobs and memberships of normal channels fail" in (await layer.health()).hosts[0].reason
    assert "without a log" not in caplog.text


@pytest.mark.parametrize(
    "before",
    ["@user_script: 17: -", "ERR Error running script (call to f_0): @user_script:62: @user_script: 62: -"],
)
async def test_the_words_of_redis_6(make_layer: MakeLayer, proxy: RespServer, before: str) -> None:
    """Redis 6 says first where in a script an error was, and what it means is the same."""
    layer = await make_layer(hosts=[proxy.url])
    await layer.new_channel()
    proxy.script("EVALSHA", error(f"{before}OOM command not allowed."))
    with pytest.raises(LayerUnavailable, match="refused: OOM command"):
        await layer.group_send("room", note(1))
    proxy.script("EVALSHA", error(f"{before}READONLY You can't write against a read only replica."))
    await layer.group_send("room", note(1))
    assert layer.statistics().reconnects > 0
