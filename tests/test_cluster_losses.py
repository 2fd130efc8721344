"""The names that a fault of a Redis Cluster concerns, and their notices: as docs/delivery.md describes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest
from redis.credentials import CredentialProvider

from channels_asyncq import AsyncQueueChannelLayer, DeliveryUnknown, LayerUnavailable
from tests import contract
from tests.cluster_sessions import slot_of_group, slot_of_inbox
from tests.clusters import Cluster
from tests.contract import MakeLayer, eventually, member_of, note, receive, receive_many, started

pytestmark = pytest.mark.server


@pytest.fixture
async def make_layer(redis_cluster: Cluster, prefix: str) -> AsyncIterator[MakeLayer]:
    async with contract.layers(hosts=[redis_cluster.url], prefix=prefix, on_loss="lost") as make_layer:
        yield make_layer


async def test_data_of_a_slot_are_lost(make_layer: MakeLayer, redis_cluster: Cluster) -> None:
    """After a move that loses a slot's keys, the log does not reach back, and the server has forgotten."""
    layer = await make_layer()
    member = await member_of(layer)
    await layer.group_send("room", note(0))
    assert await receive(layer, member) == note(0)
    slot = slot_of_group(layer, "room")
    home = redis_cluster.node_of(slot)
    away = next(node for node in redis_cluster.primaries() if node is not home)
    home.command("DEL", *home.command("CLUSTER", "GETKEYSINSLOT", slot, 100))
    await asyncio.to_thread(redis_cluster.migrate_classic, slot, away)
    await layer.group_send("room", note(1))
    told = {"type": "lost", "reason": "trimmed", "groups": ["room"]}
    assert told in await receive_many(layer, member, 2)
    assert (await layer.health()).ok  # a fence, as every few seconds
    assert await receive(layer, member) == told | {"reason": "server_forgot"}


class Rotating(CredentialProvider):
    """The credentials of a user whose password changes."""

    def __init__(self, user: str) -> None:
        self._user = user
        self.password = "first"
        self.asked = 0

    def get_credentials(self) -> tuple[str, str]:
        self.asked += 1
        return self._user, self.password

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


def has_reconnected(layer: AsyncQueueChannelLayer, times: int) -> bool:
    """Whether the layer has made connections again that often."""
    return layer.statistics().reconnects == times


async def test_credentials_that_rotate(make_layer: MakeLayer, redis_cluster: Cluster, prefix: str) -> None:
    """Each node ends its connections, and the layer comes back with the next password: nothing is lost."""
    provider = Rotating(prefix)
    for node in redis_cluster.nodes:
        node.command("ACL", "SETUSER", prefix, "on", ">first", "~*", "&*", "+@all")
    seeds = [(node.host, node.port) for node in redis_cluster.primaries()]
    layer = await make_layer(hosts=[{"startup_nodes": seeds, "credential_provider": provider}])
    member = await layer.new_channel()
    groups = [f"room-{number}" for number in range(20)]
    for group in groups:
        await layer.group_add(group, member)
    for number, password in enumerate(("second", "third")):
        asked = provider.asked
        provider.password = password
        for node in redis_cluster.nodes:
            node.command("ACL", "SETUSER", prefix, "resetpass", f">{password}")
        for node in redis_cluster.primaries():
            assert node.command("CLIENT", "KILL", "USER", prefix) == 2
        for group in groups:
            await layer.group_send(group, note(number))
        assert await receive_many(layer, member, len(groups)) == [note(number)] * len(groups)
        await eventually(partial(has_reconnected, layer, 6 * (number + 1)), "all connections")
        assert provider.asked >= asked + 6
    assert layer.statistics().told == {}


async def session_away_from(make_layer: MakeLayer, cluster: Cluster, port: int) -> AsyncQueueChannelLayer:
    """A session whose inbox is not at the node of a port."""
    while True:
        layer = await make_layer()
        await layer.new_channel()
        if cluster.node_of(slot_of_inbox(layer)).port != port:
            return layer


@pytest.mark.slow
async def test_a_primary_without_a_replica(prefix: str) -> None:
    """Its groups fail and are told when it is back; those of others go on, and are told nothing."""
    with Cluster(replicas=0, full_coverage=False) as cluster:
        dying = cluster.nodes[0]
        async with contract.layers(
            hosts=[cluster.url], prefix=prefix, on_loss="lost", send_timeout=3.0
        ) as make_layer:
            layer = await session_away_from(make_layer, cluster, dying.port)
            groups = [f"room-{number}" for number in range(20)]
            members = {group: await member_of(layer, group) for group in groups}
            ports = {group: cluster.node_of(slot_of_group(layer, group)).port for group in groups}
            dead = next(group for group in groups if ports[group] == dying.port)
            others = [group for group in groups if ports[group] != dying.port]
            await asyncio.to_thread(dying.kill)
            with pytest.raises((DeliveryUnknown, LayerUnavailable)):
                await layer.group_send(dead, note(0))
            sending = await started(layer.group_send(dead, note(1)))
            assert sending.done()
            with pytest.raises(LayerUnavailable, match="Nobody listens there"):
                await sending
            for group in others:
                await layer.group_send(group, note(2))
                assert await receive(layer, members[group]) == note(2)
            await asyncio.to_thread(dying.restart)
            told = await receive(layer, members[dead])
            assert told == {"type": "lost", "reason": "server_changed", "groups": [dead]}
            for group in others:
                await layer.group_send(group, note(3))
                assert await receive(layer, members[group]) == note(3)
