"""What only the log of a server can have: entries that cannot be read, messages that have expired, batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from channels_asyncq.messages.positions import Position
from channels_asyncq.testing import EmbeddedServer
from tests.contract import (
    MakeLayer,
    Publish,
    eventually,
    every,
    layers,
    members_of,
    note,
    receive,
    receive_many,
    time_passes,
)
from tests.contract.resume import resumed, take
from tests.test_catching_up import Away

KEYS = ["key"]
AddEntry = Callable[[str, str, bytes], bytes]


@pytest.fixture
def add_entry(redis_server: EmbeddedServer, prefix: str) -> AddEntry:
    """Add an entry to the log of the only partition."""

    def add_entry(topic: str, kind: str, data: bytes) -> bytes:
        name = redis_server.command("XADD", f"{prefix}:0:log:0", "*", "t", f"{prefix}:0:{topic}", kind, data)
        assert isinstance(name, bytes)
        return name

    return add_entry


@pytest.mark.parametrize("keys", [[], KEYS], ids=["open", "sealed"])
@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"garbage", b"\x01" + b"\x7f" * 60, b'{"type": "x"}'], ids=repr
)
async def test_garbage(make_layer: MakeLayer, add_entry: AddEntry, keys: list[str], data: bytes) -> None:
    """An entry of the group that is no message ends the replay; one of another group, or of none, does not."""
    layer = await make_layer(partitions=1, symmetric_encryption_keys=keys)
    position = await layer.position("room", "lobby")
    add_entry("group:lobby", "e", data)
    add_entry("elsewhere", "e", data)
    await layer.group_send("room", note(1))
    channel, replay = await resumed(layer, "room", position)
    assert replay.recovered and replay.messages == [note(1)]
    _, replay = await resumed(layer, "lobby", position)
    assert (replay.recovered, replay.reason, replay.messages) == (False, "unreadable", [])
    _, again = await resumed(layer, "lobby", replay.position)
    assert again.recovered
    assert layer.statistics().refused == {"unreadable": 1}
    await layer.group_send("room", note(2))
    assert await receive(layer, channel) == note(2)


async def test_garbage_that_arrived(make_layer: MakeLayer, add_entry: AddEntry, publish: Publish) -> None:
    """What arrived and could not be read is in the log: a session that was there gives the same answer."""
    layer = await make_layer(partitions=1)
    position = await layer.position("room")
    channel, _ = await resumed(layer, "room", position)
    await layer.group_send("room", note(1))
    name = add_entry("group:room", "e", b"garbage")
    publish("group:room", b"\x01#" + name + b" garbage")
    await eventually(lambda: layer.statistics().dropped == {"unreadable": 1}, "the drop")
    await layer.group_send("room", note(2))
    assert await receive_many(layer, channel, 2) == [note(1), note(2)]
    _, replay = await resumed(layer, "room", position)
    assert (replay.recovered, replay.reason, replay.messages) == (False, "unreadable", [])


async def test_older_than_expiry(make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The age limit of encrypted messages is that of the log: what has expired in channels is replayed."""
    layer = await make_layer(partitions=1, symmetric_encryption_keys=KEYS, expiry=1, recovery={"seconds": 60})
    position = await layer.position("room")
    now, before = time.time_ns, iter([40 * 10**9])
    with monkeypatch.context() as patch:
        patch.setattr("channels_asyncq.messages.sealing.time_ns", lambda: now() - next(before, 0))
        await layer.group_send("room", note(1))
    await layer.group_send("room", note(2))
    _, replay = await resumed(layer, "room", position)
    assert replay.recovered and replay.messages == [note(1), note(2)]


async def test_joined_messages_have_places_of_their_own(make_layer: MakeLayer) -> None:
    """Of several messages in one entry each has its place: a resume from it gets the others only."""
    layer = await make_layer(partitions=1, capacity=1000)
    (member,) = await members_of(layer, "room", 1)
    async with layer.subscribe("room") as subscription:
        first = await layer.position("room")
        await every(layer.group_send("room", note(n)) for n in range(16))
        places = []
        for n in range(16):
            assert await anext(subscription) == await receive(layer, member) == note(n)
            places.append(subscription.position)
    entries = {Position.parse(place).places[0].position for place in places}
    assert len(entries) < 16  # some share an entry, or this looks at the wrong thing
    for n, place in enumerate([first, *places]):
        _, replay = await resumed(layer, "room", place)
        assert replay.recovered and [message["n"] for message in replay.messages] == list(range(n, 16))


@pytest.mark.slow
@pytest.mark.server
async def test_sentinels_and_a_failover(prefix: str) -> None:
    """The master that Sentinels name has logs like any server; its successor may lack the end of them."""
    with (
        EmbeddedServer(external=False) as master,
        EmbeddedServer(external=False, replicaof=f"127.0.0.1 {master.port}") as replica,
        EmbeddedServer(
            external=False,
            sentinel=[
                f"monitor mymaster 127.0.0.1 {master.port} 1",
                "down-after-milliseconds mymaster 500",
                "failover-timeout mymaster 2000",
            ],
        ) as sentinel,
    ):
        hosts: Any = [{"sentinels": [("127.0.0.1", sentinel.port)], "master_name": "mymaster"}]
        async with layers(hosts=hosts, prefix=prefix, send_timeout=20) as make_layer:
            layer, sender = await make_layer(), await make_layer()
            position = await layer.position("room")
            await sender.group_send("room", {"type": "note", "n": 1})
            channel = await layer.new_channel()
            replay = await layer.group_resume("room", channel, since=position)
            assert (replay.recovered, [message["n"] for message in replay.messages]) == (True, [1])
            # Sentinels ask a master for its replicas every ten seconds.
            await eventually(lambda: sentinel.command("SENTINEL", "replicas", "mymaster"), within=30)
            await asyncio.to_thread(master.kill)
            successor = str(replica.port).encode()
            await eventually(
                lambda: sentinel.command("SENTINEL", "get-master-addr-by-name", "mymaster")[1] == successor,
                within=60,
            )
            await sender.group_send("room", {"type": "note", "n": 2})
            other = await layer.new_channel()
            late = await layer.group_resume("room", other, since=replay.position)
            assert (late.recovered, late.reason) == (False, "server_changed")
            await sender.group_send("room", {"type": "note", "n": 3})
            third = await layer.new_channel()
            again = await layer.group_resume("room", third, since=late.position)
            assert again.recovered
            assert [message["n"] for message in again.messages][-1:] in ([3], [])


async def test_expired_while_the_process_was_away(
    make_layer: MakeLayer, own_redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has expired for channels is in the log still, so a reader gets it, before what was sent later."""
    config: dict[str, Any] = {"hosts": [own_redis_server.url], "partitions": 1, "expiry": 1}
    reader, sender = await make_layer(on_loss="test.loss", **config), await make_layer(**config)
    async with reader.subscribe("room") as subscription:
        away = Away([own_redis_server])
        away.install(monkeypatch)
        await away.leave()
        await sender.group_send("room", note(0))
        await time_passes(1.1)
        await sender.group_send("room", note(1))
        away.come_back()
        assert await take(subscription, 2) == [note(0), note(1)]
