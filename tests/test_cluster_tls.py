"""A real cluster whose nodes speak TLS alone, with a password and hostnames: rediss+cluster://."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from channels_asyncq import LayerUnavailable
from tests import contract
from tests.certificates import make_certificate, tls_options
from tests.cluster_sessions import Company, home_of, is_at, slot_of_group
from tests.clusters import Cluster
from tests.contract import DEADLINE, MakeLayer, note
from tests.test_cluster_failovers import change_places, replica_of
from tests.test_cluster_moves import other_than

pytestmark = [pytest.mark.server, pytest.mark.slow]

GROUPS = [f"room-{number}" for number in range(4)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for the name alone: a connection to 127.0.0.1 is refused by the client."""
    return make_certificate(tmp_path_factory.mktemp("cluster-tls"), "DNS:localhost")[0]


@pytest.fixture(scope="module")
def cluster(certificate: Path) -> Iterator[Cluster]:
    with Cluster(
        tls_cluster="yes",
        tls_replication="yes",
        requirepass="s3cret",
        masterauth="s3cret",
        cluster_announce_hostname="localhost",
        cluster_preferred_endpoint_type="hostname",
        **tls_options(certificate, certificate.with_name("key.pem")),
    ) as cluster:
        yield cluster


@pytest.fixture
def seeds(cluster: Cluster) -> str:
    return ",".join(f"localhost:{node.port}" for node in cluster.nodes[:3])


@pytest.fixture
async def make_layer(seeds: str, certificate: Path, prefix: str) -> AsyncIterator[MakeLayer]:
    hosts = [f"rediss+cluster://:s3cret@{seeds}?ssl_ca_certs={certificate}"]
    async with contract.layers(
        hosts=hosts, prefix=prefix, partitions=16, on_loss="lost", capacity=100_000
    ) as make_layer:
        yield make_layer


async def test_moves_and_a_failover(cluster: Cluster, make_layer: MakeLayer) -> None:
    """Partitions follow their slots from name to name: nothing is lost, nobody is told."""
    company = Company([await make_layer(), await make_layer()])
    await company.join(*GROUPS)
    slot = slot_of_group(company.layers[0], GROUPS[0])
    home = cluster.node_of(slot)
    away = other_than(cluster, home)
    async with company.at_work():
        await asyncio.to_thread(cluster.migrate_classic, slot, away)
        await is_at(company.layers, slot, away)
        assert home_of(company.layers[0], slot).place == ("localhost", away.port)
        replica = replica_of(cluster, away)
        await asyncio.to_thread(change_places, cluster, replica)
        await is_at(company.layers, slot, replica)
    await company.settle()
    company.assert_intact()
    await company.leave()


async def test_address_in_place_of_the_name(cluster: Cluster, certificate: Path, prefix: str) -> None:
    """The name in the settings is the one that the certificate must have."""
    hosts = [f"rediss+cluster://:s3cret@127.0.0.1:{cluster.nodes[0].port}?ssl_ca_certs={certificate}"]
    async with contract.layers(hosts=hosts, prefix=prefix, send_timeout=DEADLINE) as make_layer:
        layer = await make_layer()
        with pytest.raises(LayerUnavailable, match="certificate"):
            await layer.group_send("room", note(1))


async def test_url_without_tls(cluster: Cluster, prefix: str) -> None:
    """The error of a node that speaks TLS alone names the URL to use."""
    hosts = [f"redis+cluster://:s3cret@localhost:{cluster.nodes[0].port}"]
    async with contract.layers(hosts=hosts, prefix=prefix, send_timeout=DEADLINE) as make_layer:
        layer = await make_layer()
        with pytest.raises(LayerUnavailable, match=r"Use rediss\+cluster:// in place of redis\+cluster://"):
            await layer.group_send("room", note(1))
