"""What servers hold, as operators ask for it: normal channels and logs; and listening to messages."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured

from channels_asyncq import AsyncQueueChannelLayer, LayerUnavailable
from channels_asyncq.operate.listening import Heard, listen
from channels_asyncq.operate.logs import logs_of
from channels_asyncq.operate.queues import Queue, queues_of
from channels_asyncq.testing import EmbeddedServer
from tests import contract, resp_server
from tests.contract import DEADLINE, MakeLayer, ended, every, note, receive
from tests.contract import started as begun
from tests.resp_server import Answer, RespServer
from tests.test_operate_check import granted

#: Seconds that pass on a busy machine before somebody looks.
BUSY = DEADLINE


@pytest.fixture(params=["plain", "hosts", pytest.param("cluster", marks=pytest.mark.server)])
async def make(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[MakeLayer]:
    """Make layers on one server, on two, and on a cluster."""
    if request.param == "cluster":
        hosts = [request.getfixturevalue("redis_cluster").url]
    else:
        hosts = [request.getfixturevalue("redis_url")]
        if request.param == "hosts":
            hosts.append(request.getfixturevalue("own_redis_server").url)
    async with contract.layers(hosts=hosts, prefix=prefix) as make_layer:
        yield make_layer


# Normal channels


async def test_queues(make: MakeLayer) -> None:
    """Each has its length, its bytes and the age of its oldest message; one without messages is not there."""
    layer = await make()
    for number in range(1, 12):
        for n in range(number):
            await layer.send(f"jobs.{number:02}", note(n))
    await layer.send("done", note(1))
    await receive(layer, "done")
    found = await queues_of(layer.options)
    expected = [(f"jobs.{number:02}", number) for number in range(1, 12)]
    assert [(queue.channel, queue.length) for queue in found] == expected
    by_length = {queue.length: queue for queue in found}
    # All messages are of one size, as are the names.
    assert by_length[1].bytes > len("test.note")
    for length, queue in by_length.items():
        assert queue.bytes == length * by_length[1].bytes
        assert queue.oldest is not None and 0 <= queue.oldest < BUSY


async def test_long_queue(make_layer: MakeLayer) -> None:
    """A queue is measured in pages."""
    layer = await make_layer(capacity=2000)
    await every(layer.send("jobs", note(n)) for n in range(1234))
    (queue,) = await queues_of(layer.options)
    assert queue.length == 1234


async def test_age_and_expired_messages(make_layer: MakeLayer) -> None:
    """Messages that have expired do not count, and the age is that of the oldest one that has not."""
    layer = await make_layer()
    layer.expiry = 0.05
    await layer.send("jobs", note(1))
    layer.expiry = 1000.0
    await layer.send("jobs", note(2))
    began = time.monotonic()
    found: list[Queue] = []
    # The server drops nothing unasked, so the first one is in the list; it has expired after a while.
    while not found or found[0].length == 2:
        found = await queues_of(layer.options)
        assert time.monotonic() - began < DEADLINE
    assert found[0].channel == "jobs" and found[0].length == 1
    assert found[0].oldest is not None and found[0].oldest < BUSY


async def test_queues_of_another_site(make_layer: MakeLayer, prefix: str) -> None:
    """Keys of a layer whose prefix begins with ours are not ours."""
    layer, other = await make_layer(), await make_layer(prefix=f"{prefix}:0:queue")
    await other.send("theirs", note(1))
    await layer.send("ours", note(1))
    assert [queue.channel for queue in await queues_of(layer.options)] == ["ours"]


# Logs


async def test_logs(make: MakeLayer) -> None:
    """Each partition has its log, with what was sent to its groups; all that was ever sent can be had."""
    layer = await make(recovery={"seconds": 90})
    sent: dict[int, int] = {}
    topics = layer.options.topics("")
    for number in range(20):
        group = f"room.{number}"
        partition = topics.partition(group)
        sent[partition] = sent.get(partition, 0) + 1
        await layer.group_send(group, note(number))
    logs = await logs_of(layer.options)
    assert [log.partition for log in logs] == list(range(layer.options.partitions))
    assert {log.partition: log.entries for log in logs if log.entries} == sent
    for log in logs:
        assert bool(log.bytes) == bool(log.entries)
        assert 0 <= log.span < BUSY and log.reaches == 90


async def test_log_that_drops(make_layer: MakeLayer) -> None:
    """Where the log has dropped entries because of their number, it reaches back to its first one only."""
    layer = await make_layer(partitions=1, recovery={"seconds": 3600, "messages": 100})
    # The server drops in blocks of 100.
    for n in range(500):
        await layer.group_send("room", note(n))
    (log,) = await logs_of(layer.options)
    assert 100 <= log.entries < 500
    assert log.span <= log.reaches < BUSY


async def test_log_with_large_messages(make_layer: MakeLayer, prefix: str, redis_url: str) -> None:
    """Large messages drop others by their bytes. In pages, the entries and bytes of all are counted."""
    layer = await make_layer(partitions=1, recovery={"seconds": 3600, "message_bytes": 2**20})
    for n in range(1100):
        await layer.group_send("room", note(n))
    (before,) = await logs_of(layer.options)
    assert before.entries == 1100 and before.reaches == 3600
    for _ in range(8):
        await layer.group_send("room", {"type": "large", "text": "x" * (2**20 - 200)})
    (log,) = await logs_of(layer.options)
    assert log.entries < 1100 and log.bytes > 7 * 2**20
    assert log.reaches < BUSY


async def test_log_beside_a_process_without_recovery(make_layer: MakeLayer) -> None:
    """While a process runs that logs nothing, nothing can be relied on."""
    layer, other = await make_layer(), await make_layer(recovery=None)
    await layer.new_channel()
    await other.new_channel()
    assert {log.reaches for log in await logs_of(layer.options)} == {0.0}
    assert await logs_of(other.options) == []


async def test_user_of_the_page(own_redis_server: EmbeddedServer, prefix: str) -> None:
    """The documented rights are enough for all of it."""
    plain, _ = granted()
    rules = [f"~{prefix}:*", f"&{prefix}:*", "-@all", *(f"+{command}" for command in plain)]
    own_redis_server.command("ACL", "SETUSER", "site", "reset", "on", ">secret", *rules)
    host = f"redis://site:secret@{own_redis_server.host}:{own_redis_server.port}/0"
    async with contract.layers(hosts=[host], prefix=prefix) as make_layer:
        layer = await make_layer()
        await layer.send("jobs", note(1))
        await layer.group_add("room", "jobs")
        await layer.group_send("room", note(2))
        (queue,) = await queues_of(layer.options)
        assert queue.length == 2
        assert sum(log.entries for log in await logs_of(layer.options)) == 1


@pytest.mark.parametrize("ask", [queues_of, logs_of])
async def test_nobody_there(ask: Any) -> None:
    """A server that cannot be reached is an error with the remedy, for a cluster too."""
    for url in ("redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"):
        layer = AsyncQueueChannelLayer(hosts=[url])
        with pytest.raises(LayerUnavailable, match="Nobody listens there"):
            await ask(layer.options)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (resp_server.error("ERR not on a Monday"), "refused: ERR not on a Monday"),
        (resp_server.close(executes=False), "Nobody said why"),
    ],
)
async def test_server_that_does_not_answer(server: RespServer, answer: Answer, words: str) -> None:
    """A server that refuses a command, or hangs up, is an error with its words."""
    server.always("SCRIPT", answer)
    layer = AsyncQueueChannelLayer(hosts=[server.url])
    with pytest.raises(LayerUnavailable, match=words):
        await queues_of(layer.options)


# Listening


async def take(heard: AsyncGenerator[Heard], count: int) -> list[Heard]:
    """Return the next messages."""
    (found,) = await every([_take(heard, count)])
    return found


async def _take(heard: AsyncGenerator[Heard], count: int) -> list[Heard]:
    return [await anext(heard) for _ in range(count)]


async def test_listen(make: MakeLayer) -> None:
    """Messages come with their group, the server's time and the session of their sender."""
    listener, sender = await make(), await make()
    async with aclosing(listen(listener, ["room", "hall"])) as heard:
        first = await begun(take(heard, 1))
        own = (await sender.new_channel()).partition("!")[0].rpartition(".")[2]
        group = iter(["room", "hall"] * 10_000)
        while not first.done():
            # The listener may not have joined yet.
            await sender.group_send(next(group), note(0))
            await contract.steps(1)
        (begin,) = await first
        await sender.group_send("room", note(1))
        await sender.group_send("hall", note(2))
        found: dict[int, Heard] = {}
        while len(found) < 2:
            for each in await take(heard, 1):
                if each.message["n"]:
                    found[each.message["n"]] = each
    assert [found[1].group, found[2].group] == ["room", "hall"]
    for each in (begin, *found.values()):
        assert each.session == own
        assert abs(each.at - time.time()) < BUSY
    assert not listener.groups


async def test_listen_to_another_program(make_layer: MakeLayer, publish: contract.Publish) -> None:
    """What another program publishes has no session."""
    layer = await make_layer()
    async with aclosing(listen(layer, ["room"])) as heard:
        first = await begun(take(heard, 1))
        await contract.eventually(lambda: publish("group:room", '{"type": "news"}'), "the listener")
        (message,) = await first
    assert message.session == "" and message.message == {"type": "news"}


async def test_listen_hears_of_losses(make_layer: MakeLayer) -> None:
    """What comes faster than it is taken is reported, in place of a gap that nobody sees."""
    listener, sender = await make_layer(capacity=5), await make_layer()
    async with aclosing(listen(listener, ["room"])) as heard:
        first = await begun(take(heard, 1))
        while not first.done():
            await sender.group_send("room", note(0))
            await contract.steps(1)
        dropped = listener.statistics().dropped
        while not dropped:
            await sender.group_send("room", note(1))
            dropped = listener.statistics().dropped
        found = [await first]
        while found[-1][0].group:
            found.append(await take(heard, 1))
    (lost,) = found[-1]
    assert lost.group == "" and lost.message["reason"] == "overflow"


KEY = Fernet.generate_key().decode()


async def test_listen_to_encrypted_messages(make_layer: MakeLayer) -> None:
    """With the keys of the site messages are read; without them, or with others, nothing is joined."""
    sealed = {"symmetric_encryption_keys": [KEY]}
    listener, sender = await make_layer(**sealed), await make_layer(**sealed)
    await sender.new_channel()
    async with aclosing(listen(listener, ["room"])) as heard:
        first = await begun(take(heard, 1))
        while not first.done():
            await sender.group_send("room", note(1))
            await contract.steps(1)
        assert (await first)[0].message == note(1)
    for wrong in ({}, {"symmetric_encryption_keys": [Fernet.generate_key().decode()]}):
        blind = await make_layer(**wrong)
        async with aclosing(listen(blind, ["room"])) as heard:
            with pytest.raises(ImproperlyConfigured, match="symmetric_encryption_keys"):
                await take(heard, 1)


async def test_listen_cancelled(make_layer: MakeLayer) -> None:
    """Cancelling leaves the groups, and no channel."""
    layer = await make_layer()
    async with aclosing(listen(layer, ["room"])) as heard:
        waiting = await begun(_take(heard, 1))
        await contract.eventually(lambda: layer.groups, "the join")
        waiting.cancel()
        await ended(waiting)
    assert not layer.groups and not layer.channels
