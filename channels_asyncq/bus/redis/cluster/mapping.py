"""Asks the nodes of a cluster for the slot map: over a connection that is up, or one made for the question."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ....events import CONNECTION
from ...resp.connector import Connector
from ...resp.protocol import Nobody, WireProtocol
from .slot_map import Address, SlotMap, not_a_cluster

if TYPE_CHECKING:
    from ..shared import Shared
    from .router import ClusterRouter

# Seconds for an answer; fewer for a node that did not answer the last time, while others do.
_TIMEOUT = 1.0
_BRIEF = 0.2


class SlotMapReader:
    """Reads the slot map from one node at a time."""

    def __init__(self, shared: Shared, router: ClusterRouter) -> None:
        self._shared = shared
        self._router = router
        self._host = shared.options.hosts[0]
        # The nodes that are asked next.
        self._first: dict[Address, None] = {}
        #: The nodes that did not answer the last time, and why.
        self.silent: dict[Address, str] = {}
        # The nodes of the last map.
        self._known: dict[Address, None] = {}
        self._faults = shared.outages.faults_of(self._host.address)

    def has_others(self, address: Address) -> bool:
        """Tell whether there are nodes to ask beside this one."""
        return any(each != address for each in (*self._router.nodes_by_place, *self._known))

    @property
    def has_asked_all(self) -> bool:
        """Whether each node in the settings was asked, and did not answer the last time."""
        return self.silent.keys() >= set(self._host.startup_nodes)

    def ask_first(self, address: Address) -> None:
        """Note a node that is asked next."""
        self._first[address] = None

    def addresses(self) -> Iterator[Address]:
        """
        Yield the nodes to ask in one round: those that are up, all that are known, and those in the settings.

        Of those that did not answer the last time, one is asked in a round, the last of all. It may be waited for
        until the timeout, and the others know of a change meanwhile.
        """
        nodes = self._router.nodes_by_place
        up = [place for place, node in nodes.items() if node.commands.wire is not None]
        known = dict.fromkeys([*up, *nodes, *self._known, *self._host.startup_nodes])
        yield from self._asked_first()
        for address in known:
            if address not in self.silent:
                yield address
                yield from self._asked_first()
        # The one that was asked the longest time ago.
        if (silent := next((each for each in self.silent if each in known), None)) is not None:
            yield silent
            yield from self._asked_first()

    def _asked_first(self) -> Iterator[Address]:
        while self._first:
            first = next(iter(self._first))
            del self._first[first]
            yield first

    async def read(self, address: Address) -> SlotMap | None:
        """Return the map of a node; None if it does not answer, or is not part of a cluster that works."""
        timeout = self._patience_with(address)
        try:
            async with asyncio.timeout(timeout):
                reply = await self.ask(address, b"CLUSTER", b"SLOTS")
            found = SlotMap.from_reply(reply, address, self._host.address_remap)
        except Exception as exc:
            # Whatever it is, an error of the site's `address_remap` included: the search for the homes goes on.
            reason = not_a_cluster(self._host.at(*address).address, exc)
            reason = reason or str(exc) or f"no answer within {timeout:g} s"
            self._faults.warn(
                CONNECTION,
                "cluster.unanswered",
                f"{address[0]}:{address[1]}",
                "%(address)s did not tell the nodes of the cluster: %(reason)s",
                address=f"{address[0]}:{address[1]}",
                reason=reason,
            )
            self.silent.pop(address, None)
            self.silent[address] = reason
            return None
        self.silent.pop(address, None)
        self._learn(found)
        return found

    def _patience_with(self, address: Address) -> float:
        """Return how long to wait for a node: meanwhile another one may learn of a replica's promotion."""
        nodes = (*self._router.nodes_by_place, *self._known)
        is_brief = address in self.silent and any(each not in self.silent for each in nodes)
        return _BRIEF if is_brief else _TIMEOUT

    def _learn(self, found: SlotMap) -> None:
        """Note the nodes of a map. Others have left the cluster, unless the map is that of a part of it."""
        self._known = dict(found.nodes) if found.is_whole else {**found.nodes, **self._known}
        kept = {*self._known, *self._router.nodes_by_place, *self._host.startup_nodes}
        for place in [each for each in self.silent if each not in kept]:
            del self.silent[place]

    async def ask(self, address: Address, *command: bytes) -> Any:
        """
        Return a node's reply to a command.

        Raises:
            LayerUnavailable, OSError: it cannot be asked, or does not answer.
            ReplyError: it has refused the command.
        """
        node = self._router.nodes_by_place.get(address)
        wire = node.commands.wire if node is not None else None
        if wire is not None and not wire.is_lost:
            return await wire.call(*command)
        connector = Connector(self._host.at(*address), connect_timeout=_TIMEOUT)
        wire = await connector.connect(lambda: WireProtocol(owner=Nobody(), timeout=_TIMEOUT))
        try:
            return await wire.call(*command)
        finally:
            wire.abort(ConnectionAbortedError("the question was answered"))
