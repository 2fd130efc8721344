"""Other programs, wrong URLs and old servers, where a Redis Cluster is or should be."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from channels_asyncq import LayerUnavailable
from channels_asyncq.testing import EmbeddedServer
from tests import contract, resp_server
from tests.clusters import Cluster
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


async def test_plain_url_for_a_cluster(make_layer: MakeLayer, shared_redis_cluster: Cluster) -> None:
    """`redis://` that meets a node of a cluster says which URL to use, from the first call on."""
    url = f"redis://{shared_redis_cluster.nodes[0].address}"
    layer = await make_layer(hosts=[url], send_timeout=1.0)
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
        layer = await make_layer(hosts=[host], send_timeout=1.0)
        refusal = "Redis 6.2.14, without sharded channels. Redis 7.0 is the oldest"
        with pytest.raises(LayerUnavailable, match=re.escape(refusal)):
            await layer.send("jobs", note(1))
