"""Other programs, users with few rights, wrong URLs and old servers, where a Redis Cluster is or should be."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from channels_asyncq import LayerUnavailable
from channels_asyncq.testing import EmbeddedServer
from tests import contract, resp_server
from tests.clusters import Cluster
from tests.code_blocks import block
from tests.contract import DEADLINE, MakeLayer, eventually, members_of, note, receive
from tests.resp_server import RespServer


@pytest.fixture
async def make_layer(shared_redis_cluster: Cluster, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[shared_redis_cluster.url], prefix=prefix) as make_layer:
        yield make_layer


def publish(cluster: Cluster, topic: str, message: dict[str, Any]) -> int:
    """SPUBLISH at the node of the topic's slot, as a client of the cluster does."""
    slot = int(cluster.nodes[0].command("CLUSTER", "KEYSLOT", topic))
    return int(cluster.node_of(slot).command("SPUBLISH", topic, json.dumps(message)))


@pytest.mark.parametrize("recovery", [{}, {"recovery": None}], ids=["logged", "unlogged"])
async def test_message_of_another_program(
    make_layer: MakeLayer, shared_redis_cluster: Cluster, recovery: dict[str, Any]
) -> None:
    """JSON that is published to `topic_of_group()` reaches the members, of each partition."""
    layer = await make_layer(external={"types": ["test.note"], "groups": ["room*"]}, **recovery)
    for number in range(8):
        (member,) = await members_of(layer, f"room.{number}", 1)
        assert publish(shared_redis_cluster, layer.topic_of_group(f"room.{number}"), note(number)) == 1
        assert await receive(layer, member) == note(number)
    assert layer.statistics().external == 8


async def test_refused_message_of_another_program(
    make_layer: MakeLayer, shared_redis_cluster: Cluster
) -> None:
    """Without `external`, and of another type, it is dropped and counted."""
    layer = await make_layer(external={"types": ["test.note"], "groups": ["room*"]})
    (member,) = await members_of(layer, "room", 1)
    publish(shared_redis_cluster, layer.topic_of_group("room"), {"type": "test.other"})
    await eventually(lambda: layer.statistics().dropped.get("unreadable") == 1, "the drop")
    await layer.group_send("room", note(1))
    assert await receive(layer, member) == note(1)


def rights_of_the_page(prefix: str) -> list[str]:
    """The rules of docs/settings-advanced.md for a user of a cluster, for this prefix."""
    page = (Path(__file__).parent.parent / "docs" / "settings-advanced.md").read_text()
    rules = block("docs/settings-advanced.md", "text", having="user site ").removeprefix("user site ")
    added = block("docs/settings-advanced.md", "text", having="+cluster|slots")
    [needless] = re.findall(r"does not need `(.*?)`", page)
    kept = [rule for rule in rules.split() if rule not in needless.split()]
    return [rule.replace("asgi:", f"{prefix}:") for rule in (*kept, *added.split())]


async def test_user_of_the_page(
    redis_cluster: Cluster, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The user that the page describes may do all that the layer does, also while a slot moves."""
    for node in redis_cluster.nodes:
        node.command("ACL", "SETUSER", prefix, *rights_of_the_page(prefix))
    url = redis_cluster.url.replace("//", f"//{prefix}:secret@")
    history = {"room": {"messages": 3}}
    async with contract.layers(hosts=[url], prefix=prefix, on_loss="loss", history=history) as make_layer:
        layer, other = await make_layer(), await make_layer()
        (member,) = await members_of(layer, "room", 1)
        await layer.group_add("room", "jobs")
        await other.group_add("hall", member)
        position = await layer.position("room")
        slot = int(redis_cluster.nodes[0].command("CLUSTER", "KEYSLOT", layer.topic_of_group("room")))
        home = redis_cluster.node_of(slot)
        away = next(node for node in redis_cluster.primaries() if node is not home)
        for number, place in enumerate((away, home)):
            await asyncio.to_thread(redis_cluster.migrate_classic, slot, place)
            await other.group_send("room", note(number))
            for channel in (member, "jobs"):
                assert await receive(layer, channel) == note(number)
        replay = await layer.group_resume("room", await layer.new_channel(), since=position)
        assert replay.messages == [note(0), note(1)]
        large = {"type": "test.note", "text": "x" * 100_000}
        await other.group_send("room", large)
        assert (await layer.history("room")).messages == [note(0), note(1), large]
        replay = await layer.group_resume("room", await layer.new_channel(), since=position)
        assert replay.messages == [note(0), note(1), large]
        await other.group_discard("hall", member)
        await layer.group_discard("room", "jobs")
        assert (await layer.health()).ok
        await layer.flush()
        assert layer.statistics().told == {}
    assert "refused" not in caplog.text and "NOPERM" not in caplog.text


async def test_plain_url_for_a_cluster(make_layer: MakeLayer, shared_redis_cluster: Cluster) -> None:
    """`redis://` that meets a node of a cluster says which URL to use, from the first call on."""
    url = f"redis://{shared_redis_cluster.nodes[0].address}"
    layer = await make_layer(hosts=[url], send_timeout=10 * DEADLINE)
    remedy = "it runs in cluster mode. That is a node of a Redis Cluster: use redis+cluster://HOST:PORT"
    for call in contract.calls(
        lambda: layer.send("jobs", note(1)), lambda: layer.group_send("room", note(1))
    ):
        with pytest.raises(LayerUnavailable, match=re.escape(remedy)):
            await call()
    assert remedy in (await layer.health()).hosts[0].reason


async def test_cluster_url_for_a_plain_server(make_layer: MakeLayer, redis_server: EmbeddedServer) -> None:
    """`redis+cluster://` that meets a server without a cluster says which URL to use."""
    address = f"127.0.0.1:{redis_server.port}"
    layer = await make_layer(hosts=[f"redis+cluster://{address}"], send_timeout=10 * DEADLINE)
    with pytest.raises(LayerUnavailable, match=f"redis://{address} "):
        await layer.send("jobs", note(1))
    assert f"redis://{address} " in (await layer.health(1.0)).hosts[0].reason


async def test_old_cluster(make_layer: MakeLayer, shared_redis_cluster: Cluster) -> None:
    """Redis below 7.0 has no sharded channels: it is refused with its version."""
    async with RespServer(shared_redis_cluster.nodes[0]) as server:
        server.always(
            "INFO", resp_server.reply(b"# Server\r\nredis_version:6.2.14\r\nredis_mode:cluster\r\n")
        )
        place = ("127.0.0.1", server.port)
        host = {"startup_nodes": [place], "address_remap": lambda address: place}
        layer = await make_layer(hosts=[host], send_timeout=10 * DEADLINE)
        refusal = "Redis 6.2.14, without sharded channels. Redis 7.0 is the oldest"
        with pytest.raises(LayerUnavailable, match=re.escape(refusal)):
            await layer.send("jobs", note(1))
