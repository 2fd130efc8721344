"""Histories on a server: what a send writes, and when a history does not show that nothing is missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer, ChannelLayerError, LayerUnavailable, MessagesLost
from channels_asyncq.bus.redis import histories, layout
from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.bus.redis.leasing import LeaseKeeper
from channels_asyncq.bus.redis.scripts import Scripts
from channels_asyncq.messages import sealing
from channels_asyncq.settings.keys import Keeping, Recovery
from channels_asyncq.testing import EmbeddedServer
from tests import contract
from tests.buses import calls_of
from tests.cluster_moves import Step
from tests.cluster_sessions import are_held_or_done, slot_of_group
from tests.clusters import Cluster
from tests.contract import (
    DEADLINE,
    MakeLayer,
    assert_nothing_waits,
    eventually,
    every,
    member_of,
    note,
    notes,
    receive,
    receive_many,
    started,
)
from tests.contract.history import KEPT, LARGE, SHORT_LOG, trim_the_log
from tests.contract.resume import resumed, send_all, take
from tests.evictions import evicting, fill, info
from tests.fences import fence_every
from tests.resp_server import RespServer
from tests.sessions import bus_of, shorten_send_timeout
from tests.test_catching_up import Away
from tests.test_cluster_resume import STEPS, Place

pytestmark = pytest.mark.server


def history_of(prefix: str, group: str = "room") -> str:
    return f"{prefix}:0:history:{group}"


def ids_in(server: EmbeddedServer, key: str, topic: bytes = b"") -> list[bytes]:
    """The ids of a stream, of the entries of one topic if it is a log."""
    found = server.command("XRANGE", key, "-", "+")
    return [name for name, fields in found if not topic or topic in fields]


def add(server: EmbeddedServer, key: str, *fields: bytes | str) -> None:
    """Add an entry, at a time at which nothing else is sent."""
    last = int(ids_in(server, key)[-1].split(b"-")[0])
    while (now := time_of(server)) <= last:
        pass
    server.command("XADD", key, f"{now}-0", *fields)
    while time_of(server) <= now:
        pass


def time_of(server: EmbeddedServer) -> int:
    """The server's, in ms."""
    seconds, microseconds = map(int, server.command("TIME"))
    return 1000 * seconds + microseconds // 1000


async def refused(layer: AsyncQueueChannelLayer, position: str, reason: str = "trimmed") -> None:
    _, replay = await resumed(layer, "room", position)
    assert (replay.recovered, replay.reason) == (False, reason)


# Sends


def test_scripts_of_other_groups() -> None:
    """Groups without a history are sent to by the script of a process without histories."""
    kept = Keeping(seconds=10, messages=5)
    plain, keeping = Scripts.of(Recovery()), Scripts.of(Recovery(), keepings={kept})
    assert plain.send == keeping.send and plain.history is None and not plain.keep
    assert keeping.keep[kept] != keeping.send
    assert set(keeping) - set(plain) == {keeping.keep[kept], keeping.history}
    assert not Scripts.of(None, keepings={kept}).keep


async def test_commands_of_other_groups(make_layer: MakeLayer, server: RespServer, prefix: str) -> None:
    """They have the same keys as without the setting, and no history."""
    commands = []
    for config in ({}, KEPT):
        layer = await make_layer(hosts=[server.url], **config)
        await layer.new_channel()
        before = len(server.received("EVALSHA"))
        await layer.group_send("lobby", note(1))
        commands.append(server.received("EVALSHA")[before])
        await layer.close()
    # All but the envelope, which has the session.
    assert commands[0][:-1] == commands[1][:-1] and commands[0][1] == b"2"


async def test_ids_of_the_log(make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str) -> None:
    """An entry has the id of its entry in the log, alone and among messages that are sent at once."""
    layer = await make_layer(partitions=1, recovery={"message_bytes": 1024}, **KEPT)
    for message in (note(0), LARGE):
        await layer.group_send("room", message)
        await layer.group_send("lobby", message)
    await send_all(layer, "room", [{**note(n), "text": "x" * 300} for n in range(16)])
    kept = ids_in(redis_server, history_of(prefix))
    assert len(kept) > 4 and kept == ids_in(
        redis_server, f"{prefix}:0:log:0", f"{prefix}:0:group:room".encode()
    )
    assert not redis_server.command("EXISTS", history_of(prefix, "lobby"))


async def test_expiry(make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str) -> None:
    """
    A history expires `seconds` after its last message. Entries of twice that age are deleted by a send in every
    tenth millisecond, and are in no page before.
    """
    layer = await make_layer(history={"room": {"seconds": 30, "messages": 500}})
    key = history_of(prefix)
    now = time_of(redis_server)
    old, younger = (f"{now - age}-0".encode() for age in (61_000, 45_000))
    for name in (old, younger):
        redis_server.command("XADD", key, name, "e", "x")
    for number in range(400):
        await layer.group_send("room", note(number))
        *kept, last = ids_in(redis_server, key)
        assert 25_000 < redis_server.command("PTTL", key) <= 30_000
        if b"0-" in last:
            break
        assert kept[0] == old
    assert kept[0] == younger
    assert (await layer.history("room", 1000)).messages == notes(number + 1)


async def test_clock_that_was_set_back(
    make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
) -> None:
    """If the log begins anew with lower ids, the history does too, and the message is delivered."""
    layer = await make_layer(**KEPT)
    channel = await member_of(layer)
    ahead = time_of(redis_server) + 3_600_000
    redis_server.command("XADD", history_of(prefix), f"{ahead}-0", "e", "x")
    await send_all(layer, "room", notes(2))
    assert await receive_many(layer, channel, 2) == notes(2)
    assert (await layer.history("room")).messages == notes(2)


async def test_a_message_that_was_sent_again(
    make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
) -> None:
    """It is in the history twice, and in pages and replays once, also if its first copy is on an earlier page."""
    layer, other = await make_layer(**KEPT, **SHORT_LOG), await make_layer(**KEPT, **SHORT_LOG)
    position = await layer.position("room")
    for n in range(3):
        await layer.group_send("room", note(n))
    key = history_of(prefix)
    for _, fields in redis_server.command("XRANGE", key, "-", "+"):
        add(redis_server, key, *fields)
    await layer.group_send("room", note(3))
    assert len(ids_in(redis_server, key)) == 7
    assert (await layer.history("room")).messages == notes(4)
    page = await other.history("room", limit=2)
    assert page.messages == notes(4)[2:]
    earlier = await other.history("room", limit=4, before=page.before)
    assert earlier.messages == notes(2)
    await trim_the_log(other)
    _, replay = await resumed(other, "room", position)
    assert replay.messages == notes(4)


async def test_unreadable(
    make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that nobody can read is left out of pages, counted, and ends a replay."""
    layer = await make_layer(**KEPT, **SHORT_LOG)
    await layer.new_channel()
    bus = bus_of(layer)
    assert isinstance(bus, RedisBus)
    position = await layer.position("room")
    await layer.group_send("room", note(0))
    for _ in range(2):
        add(redis_server, history_of(prefix), "e", b"\x01garbage")
    await layer.group_send("room", note(1))
    with monkeypatch.context() as patches:
        # Otherwise the page is filled with what is read to find messages that were sent again.
        patches.setattr(bus.histories, "_margin", -1000)
        page = await layer.history("room", limit=1)
        assert page.messages == [note(1)] and page.before is not None
        page = await layer.history("room", limit=1, before=page.before)
        assert page.messages == [] and page.before is not None
        page = await layer.history("room", limit=1, before=page.before)
        assert (page.messages, page.before) == ([note(0)], None)
    assert layer.statistics().dropped["unreadable"] > 0
    await trim_the_log(layer)
    await refused(layer, position, "unreadable")
    later = await layer.history("room", limit=1)
    assert later.before is not None
    _, replay = await resumed(layer, "room", later.before)
    assert replay.messages == [note(1)]


async def test_age_of_sealed_messages(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are opened for as long as the history keeps them, which is longer than a log does."""
    layer = await make_layer(symmetric_encryption_keys=["key"], **KEPT, **SHORT_LOG)
    position = await layer.position("room")
    sent = [note(0), LARGE, note(1)]
    for message in sent:
        await layer.group_send("room", message)
    await trim_the_log(layer)
    # Longer than `recovery.seconds`, `expiry`, `send_timeout` and the allowance for clocks together.
    monkeypatch.setattr(sealing, "time_ns", lambda: time.time_ns() + 200 * 10**9)
    assert (await layer.history("room")).messages == sent
    _, replay = await resumed(layer, "room", position)
    assert replay.messages == sent
    monkeypatch.setattr(sealing, "time_ns", lambda: time.time_ns() + 400 * 10**9)
    assert (await layer.history("room")).messages == []
    await refused(layer, position, "unreadable")


async def test_rotated_keys(make_layer: MakeLayer) -> None:
    """A history is read for as long as its key is there. Then its messages are left out, and end a replay."""
    old = await make_layer(symmetric_encryption_keys=["old"], **KEPT, **SHORT_LOG)
    position = await old.position("room")
    await send_all(old, "room", notes(3))
    await trim_the_log(old)
    await old.close()
    both = await make_layer(symmetric_encryption_keys=["new", "old"], **KEPT, **SHORT_LOG)
    await both.group_send("room", note(3))
    assert (await both.history("room")).messages == notes(4)
    _, replay = await resumed(both, "room", position)
    assert replay.messages == notes(4)
    await both.close()
    new = await make_layer(symmetric_encryption_keys=["new"], **KEPT, **SHORT_LOG)
    await new.new_channel()
    page = await new.history("room")
    assert page.messages == [note(3)] and new.statistics().dropped["unreadable"] > 0
    await refused(new, position, "unreadable")
    _, replay = await resumed(new, "room", page.position)
    assert replay.recovered and replay.messages == []


async def test_pages_of_another_epoch(
    make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
) -> None:
    """After a failover, pages go on from a position of before; a resume from it is refused."""
    first = await make_layer(partitions=1, **KEPT)
    for n in range(6):
        await first.group_send("room", note(n))
    page = await first.history("room", limit=2)
    # As where the server is another one: the next question begins an epoch.
    redis_server.command("HSET", f"{prefix}:0:epoch:0", "server", "another")
    later = await make_layer(partitions=1, **KEPT)
    await later.group_send("room", note(6))
    for layer in (first, later):
        earlier = await layer.history("room", limit=2, before=page.before)
        assert earlier.messages == notes(4)[2:]
        assert (await layer.history("room", before=earlier.before)).messages == notes(2)
        assert (await layer.history("room")).messages == notes(7)
    await refused(later, page.position, "server_changed")


# What a read costs


async def test_one_read_for_a_crowd(make_layer: MakeLayer, own_redis_server: EmbeddedServer) -> None:
    """Channels that come back at the same time share the read of a history."""
    layer = await make_layer(hosts=[own_redis_server.url], **KEPT, **SHORT_LOG)
    position = await layer.position("room")
    await send_all(layer, "room", notes(10))
    await trim_the_log(layer)
    replays = await every(resumed(layer, "room", position) for _ in range(100))
    assert all(replay.messages == notes(10) for _, replay in replays)
    assert 1 <= calls_of(own_redis_server, "xrevrange") <= 3


async def test_several_pages(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A history of more entries than a page of a read is read whole, from the place or from its beginning."""
    monkeypatch.setattr(histories, "_PAGE", 7)
    layer = await make_layer(**KEPT, **SHORT_LOG)
    positions = []
    for n in range(30):
        positions.append(await layer.position("room"))
        await layer.group_send("room", note(n))
    await trim_the_log(layer)
    for n in (0, 1, 13, 29):
        _, replay = await resumed(layer, "room", positions[n])
        assert replay.recovered and replay.messages == notes(30)[n:]


async def test_a_message_too_large_while_it_is_read(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another message that no log keeps, sent between the read and the join, is read too."""
    layer, other = await make_layer(**KEPT, **SHORT_LOG), await make_layer(**KEPT, **SHORT_LOG)
    position = await layer.position("room")
    sent = [LARGE | note(0)]
    await other.group_send("room", sent[0])
    member = await member_of(other)
    bus = bus_of(other)
    assert isinstance(bus, RedisBus)
    read, reads = bus.histories._read, 0

    async def read_and_send(group: str) -> Any:
        nonlocal reads
        result = await read(group)
        reads += 1
        if reads < 4:
            sent.append(LARGE | note(reads))
            await other.group_send("room", sent[-1])
            # It has reached the session: one that arrives after the join needs no other read.
            assert await receive(other, member) == sent[-1]
        return result

    monkeypatch.setattr(bus.histories, "_read", read_and_send)
    channel, replay = await resumed(other, "room", position)
    assert replay.recovered and replay.messages == sent
    assert reads == 4
    await assert_nothing_waits(other, channel)


async def test_without_a_server(make_layer: MakeLayer, own_redis_server: EmbeddedServer) -> None:
    """A page raises LayerUnavailable `send_timeout` after the server has gone, and works when it is back."""
    layer = await make_layer(hosts=[own_redis_server.url], **KEPT)
    await layer.new_channel()
    await layer.group_send("room", note(1))
    assert (await layer.history("room")).messages == [note(1)]
    shorten_send_timeout(bus_of(layer), 0.5)
    own_redis_server.kill()
    with pytest.raises(LayerUnavailable):
        async with asyncio.timeout(DEADLINE):
            while True:
                await layer.history("room")
    own_redis_server.start()
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                assert (await layer.history("room")).messages == []
                break
            except LayerUnavailable:
                await asyncio.sleep(0.01)


async def test_closed_during_a_read(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the layer ends a read of a history, and the resumes that wait for it."""
    monkeypatch.setattr(histories, "_UNTIL_READ", 1000)
    layer = await make_layer(**KEPT, **SHORT_LOG)
    position = await layer.position("room")
    await layer.group_send("room", LARGE)
    channel = await layer.new_channel()
    bus = bus_of(layer)
    assert isinstance(bus, RedisBus)
    resuming = asyncio.create_task(layer.group_resume("room", channel, since=position))
    await eventually(lambda: bus.histories._tasks, "the read")
    await layer.close()
    with pytest.raises(ChannelLayerError):
        await every([resuming])
    await eventually(lambda: not bus.histories._tasks, "its end")


# A process that was away


@pytest.mark.parametrize("kind", ["trimmed", "too large"])
async def test_a_process_that_was_away(
    make_layer: MakeLayer, own_redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its readers get from the history what the log does not have, in order, and no reset."""
    config: dict[str, Any] = {"hosts": [own_redis_server.url], **KEPT, **SHORT_LOG}
    reader, sender = await make_layer(on_loss="test.loss", **config), await make_layer(**config)
    member = await member_of(reader)
    async with reader.subscribe("room") as subscription:
        await sender.group_send("room", note(0))
        assert await take(subscription, 1) == [note(0)]
        away = Away([own_redis_server])
        away.install(monkeypatch)
        await away.leave()
        sent = [note(1), LARGE, note(2), LARGE | note(3), note(4)]
        for message in sent:
            await sender.group_send("room", message)
        if kind == "trimmed":
            await trim_the_log(sender)
        sent.append(note(5))
        await sender.group_send("room", note(5))
        away.come_back()
        assert await take(subscription, 6) == sent
    # A plain member is told, before what follows.
    reason = "trimmed" if kind == "trimmed" else "too_large"
    loss = {"type": "test.loss", "reason": reason, "groups": ["room"]}
    told = await receive_many(reader, member, 3)
    assert told[1:] == ([loss, note(5)] if kind == "trimmed" else [note(1), loss])


async def test_a_group_without_a_history(
    make_layer: MakeLayer, own_redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of groups that have histories, and of one that has none, is told what it missed."""
    config: dict[str, Any] = {"hosts": [own_redis_server.url], **KEPT, **SHORT_LOG}
    reader, sender = await make_layer(on_loss="test.loss", **config), await make_layer(**config)
    async with reader.subscribe("room", "chat") as subscription:
        away = Away([own_redis_server])
        away.install(monkeypatch)
        await away.leave()
        await sender.group_send("chat", LARGE)
        away.come_back()
        with pytest.raises(MessagesLost, match="chat were missed: too_large"):
            await take(subscription, 1)


# When it does not show that nothing is missing


def test_a_server_that_does_not_count(redis_server: EmbeddedServer, prefix: str) -> None:
    """Before Redis 7.0 the first entry alone shows something; without entries all have expired."""
    script = Scripts.of(Recovery(), keepings={Keeping()}).history
    assert script is not None
    old = script.text.replace(b"entries-added", b"not-counted")
    assert old != script.text
    key = history_of(prefix)
    for has_entries in (False, True):
        if has_entries:
            redis_server.command("XADD", key, "5-0", "e", "x")
        for text in (script.text, old):
            _, entries, first, is_whole = redis_server.command("EVAL", text, 1, key, "+", "-", 10, 1)
            assert bool(entries) == bool(first) == has_entries
            assert is_whole == (text == script.text or not has_entries)
    redis_server.command("XADD", key, "MAXLEN", "1", "6-0", "e", "x")
    assert redis_server.command("EVAL", script.text, 1, key, "+", "-", 10, 1)[2:] == [b"6-0", 0]


async def test_a_history_that_was_evicted(
    make_layer: MakeLayer, own_redis_server: EmbeddedServer, prefix: str
) -> None:
    """A history that has expired had no message behind the position. One that was evicted may have had some."""
    layer = await make_layer(hosts=[own_redis_server.url], **KEPT, **SHORT_LOG)
    position = await layer.position("room")
    await trim_the_log(layer)
    _, replay = await resumed(layer, "room", position)
    assert replay.recovered and replay.messages == []
    own_redis_server.command("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
    await refused(layer, position)
    own_redis_server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert (await resumed(layer, "room", position))[1].recovered
    with evicting(own_redis_server, "volatile-ttl"):
        for number in range(200):
            if int(info(own_redis_server, "stats", "evicted_keys")):
                break
            fill(own_redis_server, 20, 20 * number)
    position = await layer.position("room")
    await trim_the_log(layer)
    await refused(layer, position)
    await layer.group_send("room", note(1))
    position = (await layer.history("room", 1)).position
    await trim_the_log(layer)
    assert (await resumed(layer, "room", position))[1].recovered  # its first entry is before the position


async def test_expiry_after_the_clock_was_set_back(
    make_layer: MakeLayer, redis_server: EmbeddedServer, prefix: str
) -> None:
    """The ids of messages are ahead of the clock then, so a history may have expired that had young ones."""
    layer = await make_layer(**KEPT, **SHORT_LOG)
    await layer.group_send("lobby", note(0))
    ahead = time_of(redis_server) + 3_600_000
    redis_server.command("XADD", f"{prefix}:0:log:0", f"{ahead}-0", "begin", "")
    position = await layer.position("room")
    await layer.group_send("room", note(0))
    await trim_the_log(layer)
    redis_server.command("DEL", history_of(prefix))
    await refused(layer, position)
    await layer.group_send("room", note(1))
    position = (await layer.history("room")).position
    await layer.group_send("room", note(2))
    await trim_the_log(layer)
    _, replay = await resumed(layer, "room", position)
    assert replay.messages == [note(2)]


async def test_a_process_without_histories(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it sends is in no history, so positions from before its lease ends are refused, at once."""
    monkeypatch.setattr(layout, "LEASE", 1.0)
    fence_every(monkeypatch, 0.2)
    layer = await make_layer(**KEPT, **SHORT_LOG)
    await layer.group_send("room", note(0))
    position = await layer.position("room")
    await trim_the_log(layer)
    assert (await resumed(layer, "room", position))[1].recovered
    other = await make_layer(**SHORT_LOG)
    await other.group_send("room", note(1))
    await refused(layer, position)
    await other.close()

    async def recovers() -> bool:
        later = await layer.position("room")
        await layer.group_send("room", note(2))
        await trim_the_log(layer)
        _, replay = await resumed(layer, "room", later)
        return replay.recovered and replay.messages == [note(2)]

    async with asyncio.timeout(DEADLINE):
        while not await recovers():
            pass
    await refused(layer, position)


async def test_a_process_that_has_just_come(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts at once, also for a process that has not heard of it."""
    layer = await make_layer(**KEPT, **SHORT_LOG)
    await layer.new_channel()
    position = await layer.position("room")
    monkeypatch.setattr(LeaseKeeper, "look", lambda keeper: None)
    other = await make_layer(**SHORT_LOG)
    await other.group_send("room", note(1))
    await layer.group_send("room", note(2))
    await trim_the_log(layer)
    await refused(layer, position)


@pytest.mark.parametrize("config", [{}, {"history": {"room": {"messages": 99}}}], ids=["none", "others"])
async def test_processes_one_after_the_other(make_layer: MakeLayer, config: dict[str, Any]) -> None:
    """What was sent while no process kept these histories is missing from them."""
    first = await make_layer(**KEPT, **SHORT_LOG)
    await first.group_send("room", note(0))
    position = await first.position("room")
    await first.close()
    again = await make_layer(**KEPT, **SHORT_LOG)
    await trim_the_log(again)
    _, replay = await resumed(again, "room", position)
    assert replay.recovered and replay.messages == []
    await again.close()
    between = await make_layer(**config, **SHORT_LOG)
    await between.group_send("room", note(1))
    await between.close()
    last = await make_layer(**KEPT, **SHORT_LOG)
    await trim_the_log(last)
    await refused(last, position)


async def test_nobody_was_there(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time without any process, positions of before need the log: nobody knows who has sent."""
    monkeypatch.setattr(layout, "LEASE", 0.3)
    first = await make_layer(**KEPT, **SHORT_LOG)
    position = await first.position("room")
    await first.close()
    await contract.time_passes(0.4)
    last = await make_layer(**KEPT, **SHORT_LOG)
    await last.group_send("room", note(1))
    _, replay = await resumed(last, "room", position)
    assert replay.messages == [note(1)]
    await trim_the_log(last)
    await refused(await make_layer(**KEPT, **SHORT_LOG), position)


# A cluster


@pytest.fixture
async def make_on_cluster(redis_cluster: Cluster, prefix: str) -> AsyncIterator[MakeLayer]:
    config: dict[str, Any] = {"send_timeout": 15, **KEPT, **SHORT_LOG}
    async with contract.layers(hosts=[redis_cluster.url], prefix=prefix, **config) as make_layer:
        yield make_layer


async def check(layer: AsyncQueueChannelLayer, position: str, count: int) -> None:
    """A page, and a resume that the log has not, have everything."""
    async with asyncio.timeout(DEADLINE):
        page = await layer.history("room", before=None)
        assert page.messages[:count] == notes(count)
        _, replay = await resumed(layer, "room", position)
        assert replay.recovered and replay.messages[:count] == notes(count), replay.reason


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
async def test_at_each_step_of_a_move(make_on_cluster: MakeLayer, redis_cluster: Cluster, step: Step) -> None:
    """While the slot is open they wait; afterwards the history is at the other node."""
    layer, sender = await make_on_cluster(), await make_on_cluster()
    channel = await member_of(layer)
    position = await layer.position("room")
    for n in range(3):
        await sender.group_send("room", note(n))
    await receive_many(layer, channel, 3)
    await trim_the_log(sender)
    steps = Place(redis_cluster, layer).steps()
    while await asyncio.to_thread(next, steps) != step:
        pass
    tasks = [await started(check(each, position, 3)) for each in (layer, sender)]
    sending = await started(sender.group_send("room", note(3)))
    # The slot stays open for longer than a read takes.
    slot = slot_of_group(layer, "room")
    await are_held_or_done(layer, slot, tasks[:1])
    await are_held_or_done(sender, slot, [*tasks[1:], sending])
    await asyncio.to_thread(list, steps)
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*tasks, sending)
    await check(layer, position, 4)
    await check(await make_on_cluster(), position, 4)


async def test_several_nodes(redis_cluster: Cluster, prefix: str) -> None:
    """Each history is in the slot of its group's partition, and a flush deletes all of them."""
    async with contract.layers(hosts=[redis_cluster.url], prefix=prefix, **KEPT) as make_layer:
        layer = await make_layer()
        groups = [f"room.{n}" for n in range(30)]
        for group in groups:
            await layer.group_send(group, note(1))
            assert (await layer.history(group)).messages == [note(1)]

        def kept() -> int:
            return sum(
                len(node.command("KEYS", f"{prefix}:0:*:history:*")) for node in redis_cluster.primaries()
            )

        assert kept() == 30
        await layer.flush()
        assert kept() == 0
