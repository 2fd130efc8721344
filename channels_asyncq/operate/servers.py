"""The servers of a layer, asked over connections of their own: a process that serves is not needed for that."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from hiredis import ReplyError

from ..bus.redis.cluster.slot_map import SlotMap, not_a_cluster
from ..bus.redis.scripts import Scripts
from ..bus.resp.connector import Connector
from ..bus.resp.protocol import Nobody, WireProtocol
from ..bus.resp.remedies import Diagnosis, Remedies
from ..exceptions import LayerUnavailable
from ..names import Topics
from ..settings.hosts import Host
from ..settings.options import Options

__all__ = ["Server", "open_servers", "server_at", "slots_of"]


class Server:
    """
    One server: a host of the settings, or a node of a Redis Cluster. `index` is that of the host in `hosts`.

    `partitions` are those whose names it holds.
    """

    def __init__(self, options: Options, host: Host, index: int, partitions: Sequence[int] = ()) -> None:
        self.options = options
        self.index = index
        self.partitions = partitions
        self.is_cluster = options.hosts[0].is_cluster
        self.scripts = Scripts.of(options.recovery, options.partitions, is_cluster=self.is_cluster)
        texts = {script.sha.decode(): script.text.decode() for script in self.scripts}
        self.host = host
        self.remedies = Remedies(host, options.prefix, texts, self.is_cluster)
        self._seconds = max(1.0, options.send_timeout)
        self.connector = Connector(host, connect_timeout=self._seconds, remedies=self.remedies)
        self._wire: WireProtocol | None = None

    @property
    def address(self) -> str:
        """The address, for messages: no credentials."""
        return self.connector.address

    @property
    def has_layouts(self) -> bool:
        """Whether the layouts of sessions are here. A cluster has them in one place."""
        return not self.is_cluster or 0 in self.partitions

    @property
    def topics(self) -> Topics:
        """The names of the namespace."""
        return self.options.topics("")

    @property
    def wire(self) -> WireProtocol:
        """The connection, between `connect()` and `close()`."""
        assert self._wire is not None
        return self._wire

    async def connect(self) -> None:
        """
        Connect and log in.

        Raises:
            LayerUnavailable: that failed.
        """
        self._wire = await self.connector.connect(lambda: WireProtocol(owner=Nobody(), timeout=self._seconds))

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._wire is not None:
            self._wire.abort(ConnectionAbortedError("the questions were answered"))
            self._wire = None

    async def ask(self, *command: bytes | str | int) -> Any:
        """
        Return the reply to a command.

        Raises:
            LayerUnavailable: the server refused it, or did not answer.
        """
        try:
            return await self.wire.call(*command)
        except ReplyError as exc:
            reason = self.remedies.diagnose(str(exc)).reason
            raise LayerUnavailable(self.address, reason, is_refusal=True) from exc
        except OSError as exc:
            raise LayerUnavailable(self.address, (await self.diagnose(exc)).reason) from exc

    async def diagnose(self, exc: Exception) -> Diagnosis:
        """Return the meaning of an error, and examine the port if the connection ended without a word."""
        diagnosis = self.connector.diagnose(exc)
        return (await self.connector.look() or diagnosis) if diagnosis.is_wordless else diagnosis


def server_at(options: Options, index: int) -> Server:
    """Return the server of one entry of `hosts`, which is no cluster."""
    hosts = len(options.hosts)
    return Server(options, options.hosts[index], index, range(index, options.partitions, hosts))


async def slots_of(seed: Server) -> SlotMap:
    """
    Return the slot map of a cluster, as a connected node tells it.

    Raises:
        LayerUnavailable: it does not tell, or is no node of a cluster.
    """
    place = str(seed.host.arguments["host"]), int(seed.host.arguments["port"])
    try:
        reply = await seed.wire.call(b"CLUSTER", b"SLOTS")
        return SlotMap.from_reply(reply, place, seed.options.hosts[0].address_remap)
    except (ReplyError, ValueError) as exc:
        words = not_a_cluster(seed.address, exc) or str(exc)
        raise LayerUnavailable(seed.address, seed.remedies.diagnose(words).reason) from exc
    except OSError as exc:
        raise LayerUnavailable(seed.address, (await seed.diagnose(exc)).reason) from exc


def seeds_of(options: Options) -> Iterator[Server]:
    """Yield the nodes of a cluster that the settings name."""
    host = options.hosts[0]
    for place in host.startup_nodes:
        yield Server(options, host.at(*place), 0)


def primaries_in(slots: SlotMap, options: Options) -> list[Server]:
    """Return the primaries of a cluster, each with its partitions."""
    topics, host = options.topics(""), options.hosts[0]
    found: dict[tuple[str, int], list[int]] = {place: [] for _, _, place in slots.ranges}
    for partition in range(options.partitions):
        place = slots.address_of(topics.slot(partition))
        if place is not None:
            found[place].append(partition)
    return [Server(options, host.at(*place), 0, partitions) for place, partitions in found.items()]


async def _servers_of(options: Options) -> list[Server]:
    if not options.hosts[0].is_cluster:
        return [server_at(options, index) for index in range(len(options.hosts))]
    problem: LayerUnavailable | None = None
    for seed in seeds_of(options):
        try:
            await seed.connect()
            return primaries_in(await slots_of(seed), options)
        except LayerUnavailable as exc:
            problem = exc
        finally:
            seed.close()
    assert problem is not None
    raise problem


@asynccontextmanager
async def open_servers(options: Options) -> AsyncGenerator[list[Server]]:
    """
    Connect to all servers of a layer, in a cluster to all primaries, for the time of the block.

    Raises:
        LayerUnavailable: one of them cannot be reached.
    """
    servers = await _servers_of(options)
    try:
        for server in servers:
            await server.connect()
        yield servers
    finally:
        for server in servers:
            server.close()
