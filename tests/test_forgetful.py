"""A server that forgets: FLUSHDB and eviction. What is renewed, who is told, what is counted and logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.redis import checkpoint
from channels_asyncq.testing import EmbeddedServer, server_binaries
from tests import contract, resp_server
from tests.contract import MakeLayer, codes, eventually, member_of, note, receive
from tests.evictions import POLICIES, evict, evicting, fill
from tests.resp_server import RespServer, error

pytestmark = pytest.mark.server

TOLD = {"type": "loss", "reason": "server_forgot", "groups": ["room"]}


@pytest.fixture(params=server_binaries(), ids=["first", "second"][: len(server_binaries())])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(external=False, binary=request.param) as server:
        yield server


@pytest.fixture
async def make_layer(server: EmbeddedServer, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[server.url], prefix=prefix, on_loss="loss") as make_layer:
        yield make_layer


async def reaches(sender: AsyncQueueChannelLayer, reader: AsyncQueueChannelLayer, channel: str) -> None:
    """Return when what is sent to `room` comes to this normal channel."""
    receiving = asyncio.create_task(reader.receive(channel))
    async with asyncio.timeout(contract.DEADLINE):
        while not receiving.done():
            await sender.group_send("room", note(1))
            await asyncio.wait([receiving], timeout=contract.POLL)
    assert await receiving == note(1)


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the layer has logged; asyncio complains of a slow machine."""
    return [line for line in caplog.records if line.name.startswith("channels_asyncq")]


def dropped(layer: AsyncQueueChannelLayer) -> int:
    return layer.statistics().dropped.get("server_forgot", 0)


@pytest.mark.parametrize("recovery", [None, {"seconds": 60}])
async def test_memberships_are_renewed(
    make_layer: MakeLayer, server: EmbeddedServer, recovery: dict[str, Any] | None
) -> None:
    """After FLUSHDB a worker is a member again as soon as a fence has found it out, with logs and without."""
    worker, sender = await make_layer(recovery=recovery), await make_layer(recovery=recovery)
    await worker.new_channel()  # a session of its own
    await worker.group_add("room", "jobs")
    await reaches(sender, worker, "jobs")
    server.command("FLUSHDB")
    await worker.health()  # it sends a fence
    await reaches(sender, worker, "jobs")


async def test_a_membership_older_than_the_first_fence(
    make_layer: MakeLayer, server: EmbeddedServer, prefix: str
) -> None:
    """What was added before any fence has arrived is renewed too."""
    async with RespServer(server) as proxy:
        proxy.always("FENCE", resp_server.silence(executes=False))
        worker = await make_layer(hosts=[proxy.url])
        receiving = await contract.started(worker.receive("jobs"))
        await worker.group_add("room", "jobs")
        server.command("FLUSHDB")
        proxy.restore()
        proxy.cut()
        await eventually(lambda: server.command("EXISTS", f"{prefix}:0:members:room"), "the renewal")
        receiving.cancel()
        await worker.close()


async def test_what_was_ended_is_not_renewed(
    make_layer: MakeLayer, server: EmbeddedServer, prefix: str
) -> None:
    """Neither a membership that was discarded, nor one that flush() ended."""
    layer = await make_layer()
    members = f"{prefix}:0:members:"
    await layer.group_add("gone", "jobs")
    await layer.group_discard("gone", "jobs")
    await layer.group_add("flushed", "jobs")
    await layer.flush()
    await layer.group_add("room", "jobs")
    server.command("FLUSHDB")
    await layer.health()
    await eventually(lambda: server.command("EXISTS", members + "room"), "the renewal")
    assert not server.command("EXISTS", members + "gone", members + "flushed")


async def test_a_renewal_lasts_for_the_rest_of_its_time(
    make_layer: MakeLayer, server: EmbeddedServer, prefix: str
) -> None:
    """It ends no later than the membership would have, and shortens nobody else's."""
    short, long = await make_layer(group_expiry=100), await make_layer(group_expiry=1000)
    key = f"{prefix}:0:members:room"
    await long.group_add("room", "long")
    await short.group_add("room", "short")
    for _ in range(2):
        assert server.command("PTTL", key) > 900_000
        assert float(server.command("ZSCORE", key, "long")) > float(server.command("ZSCORE", key, "short"))
        server.command("FLUSHDB")
        await long.health()
        await eventually(lambda: server.command("ZSCORE", key, "long"), "the renewal")
        await short.health()
        await eventually(lambda: server.command("ZSCORE", key, "short"), "the other renewal")


async def test_renewal_that_is_refused(make_layer: MakeLayer, server: EmbeddedServer) -> None:
    """It is tried again until it succeeds."""
    async with RespServer(server) as proxy:
        worker, sender = await make_layer(hosts=[proxy.url]), await make_layer()
        await worker.group_add("room", "jobs")
        proxy.script("ADD_MEMBER", error("OOM command not allowed when used memory > 'maxmemory'."))
        server.command("FLUSHDB")
        await worker.health()
        await reaches(sender, worker, "jobs")
        await worker.close()


async def test_everybody_is_told_and_jobs_are_counted(make_layer: MakeLayer, server: EmbeddedServer) -> None:
    """
    Each process tells its channels, once, whoever found out first, and counts the normal channels that it uses.
    Nothing of it the first time that a process connects.
    """
    one, other = await make_layer(), await make_layer()
    channels = [(layer, await member_of(layer)) for layer in (one, other)]
    for name in ("jobs.1", "jobs.2"):
        await one.send(name, note(1))
    receiving = asyncio.create_task(other.receive("jobs.3"))
    await other.health()
    assert dropped(one) == dropped(other) == 0
    server.command("FLUSHDB")
    for layer in (one, other):
        for _ in range(2):
            await layer.health()
    for layer, channel in channels:
        assert await receive(layer, channel) == TOLD
        await contract.assert_nothing_waits(layer, channel)
    assert (dropped(one), dropped(other)) == (2, 1)
    late = await make_layer()
    await member_of(late)
    await late.health()
    assert late.statistics().told == {} and dropped(late) == 0
    await one.send("jobs.3", note(2))
    assert await receiving == note(2)


async def test_without_logs_nobody_is_told(make_layer: MakeLayer, server: EmbeddedServer) -> None:
    """Of a topic without a log the server holds nothing."""
    layer = await make_layer(recovery=None)
    channel = await member_of(layer)
    await layer.send("jobs", note(1))
    await layer.health()
    server.command("FLUSHDB")
    await layer.health()
    await contract.assert_nothing_waits(layer, channel)
    assert dropped(layer) == 1


async def test_a_restart_is_told_as_one(make_layer: MakeLayer, server: EmbeddedServer) -> None:
    """A server that comes back empty is another server, and memberships are renewed there too."""
    layer = await make_layer()
    channel = await member_of(layer)
    await layer.group_add("room", "jobs")
    before = layer.statistics().reconnects
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.restart)
    await eventually(lambda: layer.statistics().reconnects >= before + 2, "both connections")
    await layer.health()
    assert await receive(layer, channel) == TOLD | {"reason": "server_changed"}
    await reaches(layer, layer, "jobs")
    assert layer.statistics().told == {"server_changed": 1}


async def test_a_restart_without_logs(
    make_layer: MakeLayer, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Memberships are renewed, and the log does not say that somebody flushed the server."""
    layer = await make_layer(recovery=None)
    await layer.new_channel()
    await layer.group_add("room", "jobs")
    before = layer.statistics().reconnects
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.restart)
    await eventually(lambda: layer.statistics().reconnects >= before + 2, "both connections")
    await layer.health()
    await reaches(layer, layer, "jobs")
    await layer.health()  # what came before it was answered
    assert "loss.server_forgot" not in codes(caplog)


async def test_a_mark_that_lapses_is_no_loss(
    make_layer: MakeLayer, server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark lives for a week, whatever happens. The next one is set when it has gone, and nobody is told."""
    monkeypatch.setattr(checkpoint, "MARK_LIVES", 1500)
    monkeypatch.setattr(checkpoint, "MARK_DIFFERS", 1)
    layer = await make_layer()
    await member_of(layer)
    await layer.send("jobs", note(1))
    key = f"{prefix}:0:mark:0"
    for _ in range(2):
        await layer.health()
        assert server.command("EXISTS", key)
        await eventually(lambda: not server.command("EXISTS", key), "the end of the mark")
    await layer.health()
    assert layer.statistics().told == {} and dropped(layer) == 0


async def test_the_log_names_flushdb(
    make_layer: MakeLayer, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, with the likely cause and the remedy, also in a process without channels."""
    layer = await make_layer()
    await layer.health()
    server.command("FLUSHDB")
    await layer.health()
    await eventually(lambda: codes(caplog), "the line")
    assert codes(caplog) == ["loss.server_forgot"]
    assert "FLUSHDB" in caplog.text and "cache.clear()" in caplog.text and "another database" in caplog.text


@pytest.mark.parametrize("policy", POLICIES)
async def test_eviction(
    make_layer: MakeLayer, server: EmbeddedServer, prefix: str, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    """When jobs are evicted that is counted, and logged with the policy."""
    layer = await make_layer()
    await layer.new_channel()  # a session of its own
    for n in range(50):
        await layer.send("jobs", note(n))
    await layer.health()
    with evicting(server, policy):
        await asyncio.to_thread(evict, server, f"{prefix}:0:queue:jobs")
        await layer.health()
        assert dropped(layer) == 1
        await eventually(lambda: codes(caplog), "the line")
    assert codes(caplog)[0] in ("loss.server_forgot", "loss.evicted")
    assert "evicts keys" in caplog.text and "noeviction" in caplog.text


async def test_a_membership_that_goes_before_its_mark(
    make_layer: MakeLayer, server: EmbeddedServer, prefix: str
) -> None:
    """Under volatile-ttl it goes first, as a mark lives longer. It is renewed as the server counts evictions."""
    worker = await make_layer(group_expiry=1000)
    await worker.new_channel()  # a session of its own
    await worker.group_add("room", "jobs")
    await worker.health()
    members = f"{prefix}:0:members:room"
    with evicting(server, "volatile-ttl"):
        await asyncio.to_thread(evict, server, members)
        assert server.command("EXISTS", *(f"{prefix}:0:mark:{n}" for n in range(16))) == 16
    await worker.health()
    await eventually(lambda: server.command("EXISTS", members), "the membership")


async def test_marks_go_before_what_is_used(
    make_layer: MakeLayer, server: EmbeddedServer, prefix: str
) -> None:
    """A mark is evicted before a channel that was sent to later, so that this is found out in time."""
    layer = await make_layer()
    await layer.health()
    # The server's clock for that goes by seconds.
    await asyncio.sleep(1.1)
    keys = [f"{prefix}:0:mark:{n}" for n in range(16)]
    with evicting(server, "allkeys-lru"):
        number = 0
        while server.command("EXISTS", *keys) == 16:
            await layer.health()  # which finds them there, and is no use of them
            await layer.send("jobs", note(1))
            assert await layer.receive("jobs") == note(1)
            await asyncio.to_thread(fill, server, 1, number)
            number += 1
        await layer.health()
    assert dropped(layer) >= 1


async def test_warning_at_the_connection(
    make_layer: MakeLayer, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Once per host and process, where the server may evict; a word only where it would not yet."""
    caplog.set_level(logging.INFO, "channels_asyncq")
    await (await make_layer()).health()
    assert codes(caplog) == []
    with evicting(server, "volatile-lru"):
        for _ in range(2):
            await (await make_layer()).health()
    assert codes(caplog) == ["connection.eviction"]
    [line] = lines(caplog)
    assert line.levelno == logging.WARNING
    assert "volatile-lru" in line.getMessage() and "noeviction" in line.getMessage()


async def test_no_warning_where_nothing_is_evicted(
    make_layer: MakeLayer, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With `maxmemory` 0 the line says so, and is no warning."""
    caplog.set_level(logging.INFO, "channels_asyncq")
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    await (await make_layer()).health()
    [line] = lines(caplog)
    assert line.levelno == logging.INFO and "maxmemory is 0" in line.getMessage()
