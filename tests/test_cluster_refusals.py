"""What nodes of a real cluster answer through proxies: refusals, redirects, and the end of a connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.cluster_sessions import Company, partition_of, router_of, slot_of_group
from tests.clusters import Cluster
from tests.contract import eventually, layers
from tests.resp_server import Answer, RespServer, close, error

pytestmark = pytest.mark.server


class Proxies:
    """A proxy before each node of a cluster, and the address of each of them in place of the node's."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.of = {node.port: RespServer(node) for node in cluster.nodes}

    def remap(self, address: tuple[str, int]) -> tuple[str, int]:
        """As `address_remap`."""
        host, port = address
        return (host, self.of[port].port) if port in self.of else address

    def home_of(self, slot: int) -> RespServer:
        """The proxy of the node that has a slot."""
        return self.of[self._cluster.node_of(slot).port]

    def received(self, name: str) -> int:
        """How many commands NAME all nodes were sent."""
        return sum(len(each.received(name)) for each in self.of.values())


@pytest.fixture
async def proxies(redis_cluster: Cluster) -> AsyncIterator[Proxies]:
    """A proxy before each node."""
    proxies = Proxies(redis_cluster)
    async with contextlib.AsyncExitStack() as stack:
        for proxy in proxies.of.values():
            await stack.enter_async_context(proxy)
        yield proxies


@pytest.fixture
async def company(redis_cluster: Cluster, proxies: Proxies, prefix: str) -> AsyncIterator[Company]:
    """Two sessions that reach the nodes through their proxies."""
    host = {"address": redis_cluster.url, "address_remap": proxies.remap}
    async with layers(
        hosts=[host], prefix=prefix, partitions=16, on_loss="lost", capacity=1000
    ) as make_layer:
        company = Company([await make_layer(), await make_layer()])
        await company.join("room")
        yield company
        await company.leave()


@pytest.mark.parametrize(
    "words", ["ASK {slot} 127.0.0.1:{port}", "TRYAGAIN Multiple keys", "CLUSTERDOWN It is down"]
)
async def test_refused_for_now(
    redis_cluster: Cluster, proxies: Proxies, company: Company, words: str
) -> None:
    """
    What a node refuses for now is sent again to the same node, in order, over the same connection. ASKING is not
    sent, and nothing goes to the node that ASK names.
    """
    slot = slot_of_group(company.layers[0], "room")
    home = proxies.home_of(slot)
    other = next(node for node in redis_cluster.primaries() if proxies.of[node.port] is not home)
    before = list(home.connections)
    target = proxies.of[other.port]
    sent_there = len(sends_to(target, company))
    refusal = error(words.format(slot=slot, port=other.port))
    for number in (0, 1):
        company.send(number, "room", 40)
    home.always("SEND", refusal)
    for _ in range(5):
        for number in (0, 1):
            company.send(number, "room", 40)
        await asyncio.sleep(0)
    partitions = [partition_of(layer, slot) for layer in company.layers]
    # Nothing is under way any more: a later command would be executed before the refused ones.
    await eventually(
        lambda: all(each.sender.is_paused and not each.sender.is_draining for each in partitions)
    )
    home.restore()
    await company.settle()
    company.assert_intact()
    assert not proxies.received("ASKING")
    assert len(sends_to(target, company)) == sent_there
    assert [each for each in before if each in home.connections] == before


def sends_to(proxy: RespServer, company: Company) -> list[tuple[object, ...]]:
    """The commands with which a node was sent messages to the group."""
    topic = company.layers[0].topic_of_group("room").encode()
    return [command for command in proxy.received("EVALSHA") if topic in command]


@pytest.mark.parametrize("answer", [close(), close(executes=False)], ids=["executed", "not executed"])
async def test_connection_ends_without_an_answer(proxies: Proxies, company: Company, answer: Answer) -> None:
    """Messages without an answer are sent again under their numbers: each arrives once, and in order."""
    home = proxies.home_of(slot_of_group(company.layers[0], "room"))
    home.script("SEND", None, answer)
    for number in (0, 1):
        company.send(number, "room", 40)
        company.send(number, "room", 40)
    await company.settle()
    company.assert_intact()


async def test_wrong_redirect(redis_cluster: Cluster, proxies: Proxies, company: Company) -> None:
    """A node that names a wrong home is followed, and the wrong one names the right one: nothing is lost."""
    slot = slot_of_group(company.layers[0], "room")
    home = proxies.home_of(slot)
    wrong = next(node for node in redis_cluster.primaries() if proxies.of[node.port] is not home)
    home.always("SEND", error(f"MOVED {slot} 127.0.0.1:{wrong.port}"))
    for _ in range(5):
        for number in (0, 1):
            company.send(number, "room", 40)
        await asyncio.sleep(0)
    routers = [router_of(layer) for layer in company.layers]
    number = partition_of(company.layers[0], slot).number
    await eventually(
        lambda: all(len(router._moves.get(number, ())) == 4 for router in routers), "the dispute"
    )
    home.restore()
    await company.settle()
    company.assert_intact()
