"""How logs are read for channels that come back: few commands, and an honest answer whatever happens."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from channels_asyncq import AsyncQueueChannelLayer, Replay
from channels_asyncq.bus.redis import bus, log_reading
from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.bus.redis.log_reading import LogsReader
from channels_asyncq.bus.redis.shared import Shared
from channels_asyncq.exceptions import ChannelLayerError, LayerUnavailable
from channels_asyncq.messages import sealing
from channels_asyncq.messages.positions import Place, Position
from channels_asyncq.testing import EmbeddedServer
from tests import contract, resp_server
from tests.contract import DEADLINE, MakeLayer, every, note, receive, started, steps
from tests.refusals import KINDS, PROTECTED, refusing
from tests.resp_server import RespServer, error
from tests.routers import MovingRouter
from tests.sessions import session_of, shorten_send_timeout

pytestmark = pytest.mark.server

GROUPS = [f"group-{number}" for number in range(40)]


def reads(server: RespServer) -> int:
    """How many scripts that read logs the server was given."""
    return sum(server.kind_of("EVALSHA", command) == "READ_LOGS" for command in server.received("EVALSHA"))


def questions(server: RespServer) -> int:
    """How many scripts that ask for the ends of logs."""
    return sum(server.kind_of("EVALSHA", command) == "LOG_ENDS" for command in server.received("EVALSHA"))


def bus_of(layer: AsyncQueueChannelLayer) -> RedisBus:
    found = session_of(layer)._bus
    assert isinstance(found, RedisBus)
    return found


async def resume(layer: AsyncQueueChannelLayer, group: str, since: str) -> Replay:
    channel = await layer.new_channel()
    async with asyncio.timeout(DEADLINE):
        return await layer.group_resume(group, channel, since=since)


async def first_since(layer: AsyncQueueChannelLayer, group: str, since: str) -> dict[str, Any]:
    """
    Return the first message since a position.

    The push of a message may arrive after the answer to its sender: then it was not missed, and comes live.
    """
    channel = await layer.new_channel()
    async with asyncio.timeout(DEADLINE):
        replay = await layer.group_resume(group, channel, since=since)
        assert replay.recovered
        return replay.messages[0] if replay.messages else await layer.receive(channel)


def numbers(replay: Replay) -> list[int]:
    return [message["n"] for message in replay.messages]


@pytest.fixture
async def beside(redis_url: str, prefix: str) -> AsyncIterator[MakeLayer]:
    """Layers of other processes, which reach the server without the proxy."""
    async with contract.layers(hosts=[redis_url], prefix=prefix) as make_layer:
        yield make_layer


# Few commands


async def test_all_partitions_are_read_by_few_scripts(make_scripted: MakeLayer, server: RespServer) -> None:
    """Forty channels of forty groups come back at once: two scripts at most, and all get what they missed."""
    layer = await make_scripted()
    await layer.new_channel()
    position = await layer.position(*GROUPS)
    await every(layer.group_send(group, note(1)) for group in GROUPS)
    replays = await every(resume(layer, group, position) for group in GROUPS)
    assert [(replay.recovered, numbers(replay)) for replay in replays] == [(True, [1])] * 40
    # The first confirmations come before the others.
    assert reads(server) <= 2


async def test_what_is_in_memory_is_not_read_again(make_scripted: MakeLayer, server: RespServer) -> None:
    """A group with members here needs no read after the first."""
    layer = await make_scripted()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    position = await layer.position("room")
    for count in range(1, 5):
        await layer.group_send("room", note(count))
        await receive(layer, channel)
        assert numbers(await resume(layer, "room", position)) == list(range(1, count + 1))
    assert reads(server) == 1


async def test_reads_are_apart(
    make_scripted: MakeLayer, server: RespServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes during a read, or shortly after it, shares the next one."""
    monkeypatch.setattr(log_reading, "_BETWEEN_READS", 0.3)
    layer = await make_scripted()
    position = await layer.position(*GROUPS)
    await resume(layer, GROUPS[0], position)
    began = time.monotonic()
    await every(resume(layer, group, position) for group in GROUPS[1:])
    assert time.monotonic() - began > 0.2
    assert reads(server) == 2


async def test_the_ends_of_a_turn_are_one_question(make_scripted: MakeLayer, server: RespServer) -> None:
    """Each caller gets its own partitions."""
    layer = await make_scripted()
    await layer.new_channel()
    before = questions(server)
    positions = await every(layer.position(group) for group in GROUPS)
    assert questions(server) == before + 1
    for group, position in zip(GROUPS, positions, strict=True):
        assert set(Position.parse(position).places) == session_of(layer).resumer.partitions([group])


# Connections and refusals


@pytest.mark.parametrize("script", ["READ_LOGS", "LOG_ENDS"])
@pytest.mark.parametrize(
    "answer",
    [
        error("NOSCRIPT No matching script. Please use EVAL."),
        error("READONLY You can't write against a read only replica."),
        error("LOADING Redis is loading the dataset in memory"),
        resp_server.close(),
        resp_server.close(executes=False),
        resp_server.half(closes=True),
    ],
    ids=["no script", "read-only", "loading", "closed", "not executed", "half"],
)
async def test_a_script_that_is_not_answered(
    make_scripted: MakeLayer,
    beside: MakeLayer,
    server: RespServer,
    script: str,
    answer: resp_server.Answer,
) -> None:
    """It is sent again, and nothing is missing."""
    sender, layer = await beside(), await make_scripted(send_timeout=5)
    await layer.new_channel()
    position = await sender.position("room")
    await sender.group_send("room", note(1))
    server.script(script, answer)
    if script == "LOG_ENDS":
        assert await layer.position("room")
    replay = await resume(layer, "room", position)
    assert (replay.recovered, numbers(replay)) == (True, [1])


async def test_a_script_that_is_refused(make_scripted: MakeLayer, server: RespServer) -> None:
    """All who wait for it get the server's words, and the next call works."""
    layer = await make_scripted()
    position = await layer.position("room")
    server.script("READ_LOGS", error("NOPERM this user has no permissions to run 'xrange'"))
    channels = [await layer.new_channel() for _ in range(3)]
    results = await asyncio.gather(
        *(layer.group_resume("room", channel, since=position) for channel in channels), return_exceptions=True
    )
    assert all(isinstance(result, ChannelLayerError) and "xrange" in str(result) for result in results)
    assert layer.statistics().groups == 0
    assert (await resume(layer, "room", position)).recovered


async def test_a_marker_that_is_lost(make_redis: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it nobody knows what is still under way: the logs are read again."""
    lost: list[bytes] = []
    on_push = LogsReader.on_push

    def lose(self: LogsReader, data: bytes) -> bool:
        if data.startswith(b"R") and not lost:
            lost.append(data)
            return True
        return on_push(self, data)

    monkeypatch.setattr(log_reading, "_LONGEST_MARKER", 0.1)
    monkeypatch.setattr(LogsReader, "on_push", lose)
    layer = await make_redis()
    position = await layer.position("room")
    await layer.group_send("room", note(1))
    replay = await resume(layer, "room", position)
    assert (replay.recovered, numbers(replay), len(lost)) == (True, [1], 1)
    assert layer.statistics().replay.reads == 2


async def test_a_connection_that_is_lost_before_the_marker(
    make_redis: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read ends at once, and another begins when the topics are confirmed again."""
    lost: list[bytes] = []
    on_push = LogsReader.on_push

    def cut(self: LogsReader, data: bytes) -> bool:
        wire = self._node.pushes.wire
        if data.startswith(b"R") and not lost and wire is not None:
            lost.append(data)
            wire.abort(ConnectionResetError("cut by a test"))
            return True
        return on_push(self, data)

    monkeypatch.setattr(LogsReader, "on_push", cut)
    monkeypatch.setattr(log_reading, "_LONGEST_MARKER", 60.0)
    layer = await make_redis()
    position = await layer.position("room")
    await layer.group_send("room", note(1))
    replay = await resume(layer, "room", position)
    assert (replay.recovered, numbers(replay)) == (True, [1])


async def test_errors_of_reads_that_nobody_waits_for(
    make_scripted: MakeLayer, server: RespServer, caplog: pytest.LogCaptureFixture
) -> None:
    """They are nobody's, and leave no line in the log of asyncio."""
    layer = await make_scripted()
    position = await layer.position("room")
    hold = asyncio.Event()
    server.script("READ_LOGS", resp_server.Answer(executes=False, data=b"-ERR no\r\n", waits_for=hold))
    task = await started(resume(layer, "room", position))
    await contract.eventually(lambda: reads(server) == 1)
    task.cancel()
    await asyncio.wait([task])
    hold.set()
    await contract.eventually(lambda: not [each for each in asyncio.all_tasks() if "logs" in each.get_name()])
    with caplog.at_level(logging.ERROR, "asyncio"):
        gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelno > 30] == []


async def test_closing_in_the_middle_of_a_read(make_scripted: MakeLayer, server: RespServer) -> None:
    """The call ends with an error, and no task is left."""
    layer = await make_scripted()
    position = await layer.position("room")
    server.script("READ_LOGS", resp_server.silence(executes=False))
    task = await started(resume(layer, "room", position))
    await contract.eventually(lambda: reads(server) == 1)
    async with asyncio.timeout(DEADLINE):
        await layer.close()
        with pytest.raises(ChannelLayerError):
            await task
    await steps(3)
    assert [each for each in asyncio.all_tasks() if "channels_asyncq" in each.get_name()] == []


async def test_resting_with_topics_that_linger(make_redis: MakeLayer) -> None:
    """`close_pools()` closes the connections; the next resume makes them, and misses nothing."""
    layer = await make_redis()
    position = await layer.position("room")
    await resume(layer, "room", position)
    for channel in list(layer.channels):
        await layer.close_channel(channel)
    await layer.close_pools()
    await layer.group_send("room", note(1))
    assert numbers(await resume(layer, "room", position)) == [1]


# What no log has


async def test_a_server_that_does_not_tell_which_it_is(make_scripted: MakeLayer, server: RespServer) -> None:
    """Without INFO nobody knows whether it is the same: nothing is ever recovered, and nothing fails."""
    server.always("INFO", error("NOPERM User site has no permissions to run the 'info' command"))
    layer = await make_scripted()
    channel = await layer.new_channel()
    position = await layer.position("room")
    await layer.group_send("room", note(1))
    replay = await layer.group_resume("room", channel, since=position)
    assert (replay.recovered, replay.reason, replay.messages) == (False, "server_changed", [])
    await layer.group_send("room", note(2))
    assert await receive(layer, channel) == note(2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_followed", [False, True], ids=["by nothing", "by a logged one"])
async def test_a_message_that_the_server_refused_to_log(prefix: str, kind: str, is_followed: bool) -> None:
    """It was published to those who listened: a channel that was away is told so, in each process."""
    with EmbeddedServer(external=False, **PROTECTED) as real:
        async with contract.layers(hosts=[real.url], prefix=prefix) as make_layer:
            here, elsewhere = await make_layer(), await make_layer()
            listener = await here.new_channel()
            await here.group_add("room", listener)
            position = await here.position("room")
            assert (await resume(here, "room", position)).recovered
            with refusing(real, kind):
                await elsewhere.group_send("room", note(1))
                assert await receive(here, listener) == note(1)
            if is_followed:
                await elsewhere.group_send("room", note(2))
            for layer in (here, elsewhere):
                replay = await resume(layer, "room", position)
                assert (replay.recovered, replay.reason) == (False, "server_changed")
            assert (await resume(here, "room", await here.position("room"))).recovered


async def test_a_flush_of_the_database(prefix: str, own_redis_server: EmbeddedServer) -> None:
    """The logs and their epochs are gone."""
    async with contract.layers(hosts=[own_redis_server.url], prefix=prefix) as make_layer:
        layer = await make_layer()
        position = await layer.position("room")
        await layer.group_send("room", note(1))
        own_redis_server.command("FLUSHDB")
        await layer.group_send("room", note(2))
        replay = await resume(layer, "room", position)
        assert (replay.recovered, replay.reason) == (False, "server_changed")


async def test_a_restarted_server(prefix: str) -> None:
    """With its data or without the last of it: nobody can tell."""
    with EmbeddedServer(external=False, persist=True) as real:
        async with contract.layers(hosts=[real.url], prefix=prefix) as make_layer:
            layer = await make_layer()
            position = await layer.position("room")
            await layer.group_send("room", note(1))
            await asyncio.to_thread(real.restart)
            replay = await resume(layer, "room", position)
            assert (replay.recovered, replay.reason) == (False, "server_changed")
            after = await layer.position("room")
            await layer.group_send("room", note(2))
            assert await first_since(layer, "room", after) == note(2)


async def test_a_server_that_has_lost_the_end_of_its_log(prefix: str) -> None:
    """No process has seen the server before: its run_id is another one than that beside the epoch."""
    with EmbeddedServer(external=False, persist=True, appendonly="no") as real:
        async with contract.layers(hosts=[real.url], prefix=prefix) as make_layer:
            layer = await make_layer()
            position = await layer.position("room")
            await layer.group_send("room", note(1))
            real.command("SAVE")
            await layer.group_send("room", note(2))
            await layer.close()
        await asyncio.to_thread(real.kill)
        await asyncio.to_thread(real.restart)
        async with contract.layers(hosts=[real.url], prefix=prefix) as make_layer:
            fresh = await make_layer()
            assert real.command("EXISTS", *real.command("KEYS", f"{prefix}:*:epoch:*")) == 1
            replay = await resume(fresh, "room", position)
            assert (replay.recovered, replay.reason) == (False, "server_changed")


async def test_a_process_without_recovery(make_redis: MakeLayer) -> None:
    """Its messages are in no log: while it runs, nothing is recovered."""
    layer, without = await make_redis(), await make_redis(recovery=None)
    await layer.new_channel()
    position = await layer.position("room")
    await without.group_send("room", note(1))
    replay = await resume(layer, "room", position)
    assert not replay.recovered


async def test_an_entry_that_is_older_than_expiry(
    make_redis: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`expiry` is for messages that wait in channels: a log keeps them for longer, encrypted ones too."""
    config: dict[str, Any] = {"expiry": 2, "symmetric_encryption_keys": ["a secret"], "send_timeout": 2}
    layer, other = await make_redis(**config), await make_redis(**config)
    position = await layer.position("room")
    now = time.time_ns
    with monkeypatch.context() as patch:
        patch.setattr(sealing, "time_ns", lambda: now() - 40_000_000_000)
        await other.group_send("room", note(1))
    replay = await resume(layer, "room", position)
    assert (replay.recovered, numbers(replay)) == (True, [1])


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01" * 60, b"{}"])
async def test_an_entry_that_cannot_be_read(
    make_redis: MakeLayer, redis_server: EmbeddedServer, data: bytes
) -> None:
    """A channel that would miss it is told so; one that is past it is not concerned."""
    layer = await make_redis()
    await layer.new_channel()
    position = await layer.position("room")
    topic, _, log = bus_of(layer).partitions[0].replay._opener._topics.group("room")
    redis_server.command("XADD", log, "*", "t", topic.name, "e", data)
    await layer.group_send("room", note(1))
    replay = await resume(layer, "room", position)
    assert (replay.recovered, replay.reason) == (False, "unreadable")
    after = await layer.position("room")
    await layer.group_send("room", note(2))
    assert await first_since(layer, "room", after) == note(2)


async def test_a_quiet_log_keeps_its_last_entry(make_redis: MakeLayer, redis_server: EmbeddedServer) -> None:
    """A position that was read a moment ago counts, however old the last message was."""
    layer = await make_redis(recovery={"seconds": 3})
    await layer.new_channel()
    await every(layer.group_send("room", note(n)) for n in range(1000))
    partition = bus_of(layer).partitions[session_of(layer).resumer.topic("room").partition]
    await asyncio.sleep(3.1)
    await partition.home.checkpoint.first()
    position = await layer.position("room")
    await layer.group_send("room", note(1))
    await asyncio.sleep(0.5)
    await partition.home.checkpoint.first()
    replay = await resume(layer, "room", position)
    assert (replay.recovered, numbers(replay)) == (True, [1])


# Messages under way


class Lag:
    """Holds back what arrives on the connection for pushes of the layers on a proxy."""

    def __init__(self, server: RespServer, layer: AsyncQueueChannelLayer) -> None:
        self._server = server
        self._layer = layer
        self._end = asyncio.Event()

    async def begin(self) -> None:
        """From now on nothing arrives: the reply to a SUBSCRIBE waits, and everything behind it."""
        self._server.script("SUBSCRIBE", resp_server.after(self._end))
        count = len(self._server.received("SUBSCRIBE"))
        self._task = await started(self._layer.group_add("lag", await self._layer.new_channel()))
        await contract.eventually(lambda: len(self._server.received("SUBSCRIBE")) > count)

    async def end(self) -> None:
        self._end.set()
        await self._task


async def test_a_client_that_is_ahead_of_a_process(
    make_scripted: MakeLayer, beside: MakeLayer, server: RespServer
) -> None:
    """It has what this process gets in a moment: the replay waits for it, and it does not come again."""
    behind, ahead = await make_scripted(send_timeout=5), await beside()
    await behind.group_add("room", await behind.new_channel())
    lag = Lag(server, behind)
    await lag.begin()
    await ahead.group_send("room", note(1))
    position = await ahead.position("room")
    channel = await behind.new_channel()
    task = await started(behind.group_resume("room", channel, since=position))
    await contract.eventually(lambda: reads(server) == 1)
    assert not task.done()
    await lag.end()
    replay = await task
    assert (replay.recovered, replay.messages) == (True, [])
    await ahead.group_send("room", note(2))
    assert await receive(behind, channel) == note(2)


async def test_a_client_that_is_ahead_of_what_is_in_memory(
    make_scripted: MakeLayer, beside: MakeLayer, server: RespServer
) -> None:
    """The same in a process that has read the log before."""
    behind, ahead = await make_scripted(send_timeout=5), await beside()
    await behind.group_add("room", await behind.new_channel())
    assert (await resume(behind, "room", await ahead.position("room"))).recovered
    lag = Lag(server, behind)
    await lag.begin()
    before = await ahead.position("room")
    await ahead.group_send("room", note(1))
    position = await ahead.position("room")
    channels = [await behind.new_channel() for _ in range(2)]
    at_once = await behind.group_resume("room", channels[0], since=before)
    assert (at_once.recovered, at_once.messages) == (True, [])
    task = await started(behind.group_resume("room", channels[1], since=position))
    assert not task.done()
    await lag.end()
    assert (await task).messages == []
    await ahead.group_send("room", note(2))
    assert await receive(behind, channels[0]) == note(1)
    assert await receive(behind, channels[0]) == note(2)
    assert await receive(behind, channels[1]) == note(2)


async def test_no_read_marks_messages_as_seen_that_are_under_way(
    make_scripted: MakeLayer, beside: MakeLayer, server: RespServer
) -> None:
    """Another member gets what the read has found and what arrives a moment later."""
    behind, sender = await make_scripted(send_timeout=5), await beside()
    member = await behind.new_channel()
    await behind.group_add("room", member)
    position = await sender.position("room")
    lag = Lag(server, behind)
    await lag.begin()
    await every(sender.group_send("room", note(n)) for n in range(20))
    task = await started(resume(behind, "room", position))
    await contract.eventually(lambda: reads(server) == 1)
    await lag.end()
    assert numbers(await task) == list(range(20))
    assert [await receive(behind, member) for _ in range(20)] == [note(n) for n in range(20)]


async def test_the_last_member_leaves_while_a_resume_waits(
    make_scripted: MakeLayer, server: RespServer
) -> None:
    """The topic stays subscribed, as the channel that comes back needs it."""
    layer = await make_scripted(send_timeout=5)
    member, channel = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("room", member)
    position = await layer.position("room")
    hold = asyncio.Event()
    server.script("READ_LOGS", resp_server.after(hold))
    task = await started(layer.group_resume("room", channel, since=position))
    await contract.eventually(lambda: reads(server) == 1)
    await layer.group_discard("room", member)
    hold.set()
    assert (await task).recovered
    assert server.received("UNSUBSCRIBE") == []
    await layer.group_send("room", note(1))
    assert await receive(layer, channel) == note(1)


async def test_a_place_after_each_message_of_a_push_in_three_sessions(make_redis: MakeLayer) -> None:
    """Sixteen messages share a push: from the log, live and from memory each of them has the same place."""
    roomy: dict[str, Any] = {"capacity": 1000}
    live, late, sender = [await make_redis(**roomy) for _ in range(3)]
    start = await sender.position("room")
    async with live.subscribe("room", since=start) as subscription:
        # Larger than an entry, so that the push has several.
        for _ in range(3):
            await every(sender.group_send("room", note(n) | {"pad": "x" * 200}) for n in range(16))
        live_places = []
        for _ in range(48):
            await anext(subscription)
            # Without the channel's name.
            live_places.append(subscription.position.partition("~~")[0])
    read_places = []
    async with late.subscribe("room", since=start) as subscription:
        for _ in range(48):
            await anext(subscription)
            read_places.append(subscription.position.partition("~~")[0])
    assert len(set(live_places)) == 48
    # Each with the name of its own channel.
    read, came = ([Position.parse(text).places for text in texts] for texts in (read_places, live_places))
    assert came == read
    for index, place in enumerate(live_places):
        for layer in (live, late, sender):
            assert len((await resume(layer, "room", place)).messages) == 47 - index


async def test_coming_back_to_a_large_group(make_redis: MakeLayer) -> None:
    """A message to it is delivered over several turns, and a channel may join in each of them."""
    layer, sender = await make_redis(capacity=1000), await make_redis()
    await sender.new_channel()  # its sends are made on this loop, which the coming channels keep busy
    members = [await layer.new_channel() for _ in range(3000)]
    await every(layer.group_add("room", member) for member in members)
    position = await layer.position("room")
    assert (await resume(layer, "room", position)).recovered
    came: list[tuple[str, Replay]] = []

    async def come_all_the_time() -> None:
        while True:
            channel = await layer.new_channel()
            came.append((channel, await layer.group_resume("room", channel, since=position)))
            for _ in range(5):
                await asyncio.sleep(0)

    coming = asyncio.create_task(come_all_the_time())
    for count in range(10):
        await sender.group_send("room", note(count))
    await contract.eventually(lambda: contract.queued(layer, members[-1]) == 10)
    coming.cancel()
    await asyncio.wait([coming])
    assert len({len(replay.messages) for _, replay in came}) > 1
    for channel, replay in came:
        rest = contract.queued(layer, channel)
        assert replay.recovered
        assert numbers(replay) + [(await receive(layer, channel))["n"] for _ in range(rest)] == list(
            range(10)
        )


async def test_the_place_of_a_session_is_not_behind_what_it_has_delivered(
    make_scripted: MakeLayer, beside: MakeLayer, server: RespServer
) -> None:
    """A stream without a position begins there: what is under way to this process is behind it."""
    behind, sender = await make_scripted(send_timeout=5), await beside()
    await behind.group_add("room", await behind.new_channel())
    await behind.position("room")
    log, number = bus_of(behind).log, session_of(behind).resumer.topic("room").partition
    await sender.group_send("room", note(1))
    await contract.eventually(lambda: log.here(number) is not None)
    lag = Lag(server, behind)
    await lag.begin()
    before = log.here(number)
    await sender.group_send("room", note(2))
    end = (await log.ends([number]))[number]
    assert before is not None
    assert log.here(number) == before
    assert before.epoch == end.epoch
    assert before.position < end.position
    assert log.epoch_at(number, end.position) == end.epoch
    await lag.end()
    await contract.eventually(lambda: log.here(number) == end)


async def test_the_place_of_a_session_goes_on_after_a_reconnect(
    make_redis: MakeLayer, redis_server: EmbeddedServer
) -> None:
    """Streams of quiet groups keep fresh positions: the epoch is asked for with the first fence."""
    layer = await make_redis()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.position("room")
    log, number = bus_of(layer).log, session_of(layer).resumer.topic("room").partition
    await layer.group_send("room", note(1))
    await contract.eventually(lambda: log.here(number) is not None)
    before = log.here(number)
    assert before is not None
    redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
    await contract.eventually(lambda: log.here(number) is None)
    # A message that is read from the log is not behind the end of the log when the epoch is asked for.
    partition = bus_of(layer).partitions[number]
    await contract.eventually(lambda: partition.is_live and partition.replay.epoch.known)
    await layer.group_send("room", note(2))
    await contract.eventually(
        lambda: (here := log.here(number)) is not None and here.position > before.position
    )
    here = log.here(number)
    assert here is not None
    assert here.epoch == before.epoch


async def test_the_place_of_a_session_goes_on_in_another_epoch(prefix: str) -> None:
    """After a message that no log has, those who got it come back without a reset once the epoch is known."""
    with EmbeddedServer(external=False, **PROTECTED) as real:
        async with contract.layers(hosts=[real.url], prefix=prefix) as make_layer:
            layer = await make_layer()
            start = await layer.position("room")
            async with layer.subscribe("room", since=start) as subscription:
                number = session_of(layer).resumer.topic("room").partition
                epoch = bus_of(layer).partitions[number].replay.epoch
                known = epoch.known
                with refusing(real, "OOM"):
                    await layer.group_send("room", note(1))
                    assert await anext(subscription) == note(1)
                    assert epoch.known == ""
                await contract.eventually(lambda: epoch.known not in ("", known))
                await layer.group_send("room", note(2))
                assert await anext(subscription) == note(2)
                position = subscription.position
            await layer.group_send("room", note(3))
            assert numbers(await resume(layer, "room", position)) == [3]


async def test_another_epoch_that_is_noticed_while_pushes_are_under_way(prefix: str) -> None:
    """The place of a session does not name it before a message behind its beginning was delivered."""
    with EmbeddedServer(external=False, **PROTECTED) as real:
        async with (
            RespServer(real) as server,
            contract.layers(hosts=[server.url], prefix=prefix, send_timeout=5) as make_behind,
            contract.layers(hosts=[real.url], prefix=prefix) as make_beside,
        ):
            behind, sender = await make_behind(), await make_beside()
            member = await behind.new_channel()
            await behind.group_add("room", member)
            await sender.group_send("room", note(0))
            assert await receive(behind, member) == note(0)
            log, number = bus_of(behind).log, session_of(behind).resumer.topic("room").partition
            first = (await log.ends([number]))[number]
            lag = Lag(server, behind)
            await lag.begin()
            with refusing(real, "OOM"):
                await sender.group_send("room", note(1))
            second = (await log.ends([number]))[number]
            assert second.epoch != first.epoch
            # The message without a log is still under way.
            assert log.here(number) is None
            assert log.epoch_at(number, second.position) == ""
            await lag.end()
            await sender.group_send("room", note(2))
            assert [await receive(behind, member) for _ in range(2)] == [note(1), note(2)]
            # It was forgotten with the message that no log has, and is asked for with the next fence.
            epoch = bus_of(behind).partitions[number].replay.epoch
            await contract.eventually(lambda: epoch.known)
            await sender.group_send("room", note(3))
            assert await receive(behind, member) == note(3)
            await contract.eventually(lambda: log.here(number) is not None)
            here = log.here(number)
            assert here is not None
            assert here.epoch == second.epoch


async def test_a_read_of_a_partition_that_moves(
    make_redis: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, during and after the script: its pushes come over another connection than the marker."""
    routers: list[MovingRouter] = []
    loop = asyncio.get_running_loop()

    def make(shared: Shared) -> MovingRouter:
        router = MovingRouter(shared)
        if shared.loop is loop:
            routers.append(router)
        return router

    monkeypatch.setattr(bus, "router_for", make)
    layer = await make_redis(send_timeout=5)
    channel = await layer.new_channel()
    position = await layer.position("room")
    number = session_of(layer).resumer.topic("room").partition
    await layer.group_add("room", channel)
    for turns in range(40):
        count = turns + 1
        await layer.group_send("room", note(count))
        comer = await layer.new_channel()
        task = await started(layer.group_resume("room", comer, since=position))
        await steps(turns)
        routers[-1].move(number)
        replay = await task
        # What is under way when the channel comes back may follow.
        rest = count - len(replay.messages)
        assert replay.recovered
        assert numbers(replay) + [(await receive(layer, comer))["n"] for _ in range(rest)] == list(
            range(1, count + 1)
        )
        await layer.close_channel(comer)


async def test_a_partition_that_has_moved_is_not_read_here(
    make_redis: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for its turn at the old home, and is live at the new one: that reads it."""
    routers: list[MovingRouter] = []

    def make(shared: Shared) -> MovingRouter:
        routers.append(MovingRouter(shared))
        return routers[-1]

    monkeypatch.setattr(bus, "router_for", make)
    monkeypatch.setattr(log_reading, "_BETWEEN_READS", 0.3)
    layer = await make_redis(send_timeout=5)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    router = routers[-1]
    partition = bus_of(layer).partitions[session_of(layer).resumer.topic("room").partition]
    old = partition.home
    place = Place("0" * 8, 0)
    await old.logs.read(partition, place)
    task = await started(old.logs.read(partition, place))
    router.move(partition.number)
    await contract.eventually(lambda: partition.is_live)
    with pytest.raises(ConnectionResetError):
        await task
    assert partition.replay.index is None


async def test_connections_that_are_lost_all_the_time(make_scripted: MakeLayer, server: RespServer) -> None:
    """Both questions end, after twice `send_timeout` at most."""
    layer = await make_scripted(send_timeout=DEADLINE)
    await layer.new_channel()
    position = await layer.position("room")
    shorten_send_timeout(bus_of(layer), 0.5)
    for script in ("LOG_ENDS", "READ_LOGS"):
        server.always(script, resp_server.close())
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(LayerUnavailable):
            await layer.position("room")
        with pytest.raises(LayerUnavailable):
            await resume(layer, "room", position)
