"""The homes of the partitions in a cluster: learned from its nodes, and from their refusals."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ....clock import monotonic
from ...base import HostHealth, Link
from ..node import Node
from ..router import Router
from .departures import departures_of
from .health import health_of
from .lease import ClusterLease
from .mapping import SlotMapReader
from .node import ClusterNode
from .redirects import ClusterRedirects
from .slot_map import Address, SlotMap, address_in

if TYPE_CHECKING:
    from ..partition import Partition
    from ..shared import Shared

# A generator of our own: the state of the global one belongs to the application.
_jitter = random.Random()
# Seconds between two questions for the slot map while a home is in doubt.
_PAUSE = 0.1
# After this many seconds of a search, the pauses are longer: a slot without a primary may stay so for hours.
_EAGER = 20.0
_LATER_PAUSE = 0.5
# Seconds after which a node without partitions is left.
_UNUSED = 30.0
# A partition that was moved this often within a second waits: two nodes name each other.
_MOST_MOVES = 4
_SECOND = 1.0


class ClusterRouter(Router):
    """
    Moves partitions to the primaries of their slots.

    A home is in doubt if its node is lost, silent or refuses, or has taken a subscription back. While one is in
    doubt, the nodes are asked for the slot map, one after the other. A map moves partitions in doubt only: that
    of a node which has not heard of the last change is old. A node that refuses a command with MOVED knows the
    next home, and is believed at once.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__([])
        self._shared = shared
        self._host = shared.options.hosts[0]
        self.remap = self._host.address_remap
        self._numbers = itertools.count()
        self.nodes_by_place: dict[Address, ClusterNode] = {}
        self.partitions: Sequence[Partition] = ()
        count = shared.topics.partitions
        self._slots = [shared.topics.slot(number) for number in range(count)]
        self._redirects = [ClusterRedirects(self, number) for number in range(count)]
        self.lease = ClusterLease(shared, self)
        # The partitions whose home is in doubt.
        self._doubts: set[int] = set()
        self._map: SlotMap | None = None
        #: Set when a node has told the homes.
        self.has_map = asyncio.Event()
        self._reader = SlotMapReader(shared, self)
        self._searching: asyncio.Task[None] | None = None
        # When a node was asked last.
        self._asked_at = 0.0
        # The times of the last moves of each partition.
        self._moves: dict[int, deque[float]] = {}
        self._retiring: dict[ClusterNode, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._context = contextvars.Context()
        self.is_closed = False
        # Between `stop()` and `start()`: the homes are not searched for.
        self._is_resting = False
        # Until a map is known, all partitions are at a node that the settings name.
        self._first = self.node_at(self._host.startup_nodes[0])

    # Nodes

    def node_at(self, address: Address) -> ClusterNode:
        """Return the node at an address; a new one if there is none."""
        node = self.nodes_by_place.get(address)
        if node is None:
            node = ClusterNode(self._shared, self, self._host.at(*address), next(self._numbers))
            self.nodes_by_place[address] = node
            self.nodes.append(node)
        if (timer := self._retiring.pop(node, None)) is not None:
            timer.cancel()
        return node

    def home_of(self, partition: int) -> Node:
        return self._first

    def redirects_for(self, partition: int) -> ClusterRedirects:
        return self._redirects[partition]

    def adopt(self, partitions: Sequence[Partition]) -> None:
        self.partitions = partitions

    def start(self) -> None:
        """Learn the homes, if none is known, and connect to the nodes in use."""
        self._is_resting = False
        if self._map is None:
            self.doubt(range(len(self._slots)))
        else:
            for node in self.in_use:
                node.start()
            self._search()

    # The state of the connections

    @property
    def in_use(self) -> list[ClusterNode]:
        return [node for node in list(self.nodes_by_place.values()) if node.partitions]

    @property
    def is_up(self) -> bool:
        return self._map is not None and super().is_up

    @property
    def is_down(self) -> bool:
        # A partition that moves to a node which is not connected yet makes no outage.
        return any(node.is_missing for node in self.in_use)

    def links(self) -> list[Link]:
        if self._map is None and self._searching is not None and not (self.is_closed or self._is_resting):
            why = self.why_unknown
            return [Link(self.address, "connecting", reason=why, fault=why)]
        return super().links()

    async def health(self, timeout: float) -> list[HostHealth]:  # noqa: ASYNC109
        # All nodes wait for the lease if the home of partition 0 has died while the session rested.
        self.wake()
        return await health_of(self, timeout)

    @property
    def address(self) -> str:
        """The cluster, by the nodes in the settings."""
        return self._host.address

    @property
    def why_unknown(self) -> str:
        """Why the first node in the settings has not told the homes."""
        return self._reader.silent.get(self._first.place, "no node has told the slots of the cluster")

    @property
    def is_unreachable(self) -> bool:
        """Whether all nodes were asked for the slot map, and none has ever told it."""
        return not self.has_map.is_set() and self._reader.has_asked_all

    def trouble(self, node: Node) -> str:
        """Return why a partition of a node cannot be used now; empty if all can."""
        for number in sorted(node.partitions):
            redirects = self._redirects[number]
            if redirects.is_holding or number in self._doubts:
                unknown = f"it is not known which node has slot {self._slots[number]}"
                return redirects.reason or self.explain(number, "") or unknown
        return ""

    async def ask(self, address: Address, *command: bytes) -> Any:
        """Return a node's reply to a command: over its connection that is up, or one made for the question."""
        return await self._reader.ask(address, *command)

    # Homes

    def moved(self, number: int, host: str, port: int) -> None:
        """
        Move a partition: its node has answered that another one has it.

        Two nodes may name each other, for a while or until an operator mends it. Then the partition is held, and
        so it is while no address of the other one is known.
        """
        if self.is_closed:
            # No node is made that nobody would close. What is held fails when the connections are closed.
            self._redirects[number].hold("MOVED")
            return
        home = self._node_of(number)
        try:
            address = address_in(host, port, home.place, self.remap)
        except Exception:
            address = home.place  # the site's `address_remap` does not know that node
        moves = self._moves.setdefault(number, deque(maxlen=_MOST_MOVES))
        is_disputed = len(moves) == _MOST_MOVES and monotonic() - moves[0] < _SECOND
        if address != home.place and not is_disputed:
            moves.append(monotonic())
            self._move(number, address, is_known_here=True)
            return
        partition = self.partitions[number]
        if not partition.is_away:
            departures = departures_of(partition, home, is_known_there=True)
            partition.leave_connection()
            partition.departures = departures
        # Its probes ask for the slot map, with pauses.
        self._redirects[number].hold("MOVED")

    def _move(self, number: int, address: Address, *, is_known_here: bool) -> None:
        partition = self.partitions[number]
        last = self._node_of(number)
        departures = departures_of(
            partition, last, is_known_there=is_known_here, is_silent=self.is_silent(last)
        )
        node = self.node_at(address)
        if node.is_up:
            self._doubts.discard(number)
        else:
            self._doubts.add(number)  # it may not be a primary any more
        partition.move(node)
        last.commands.look_again()
        partition.departures = departures
        self._redirects[number].release()
        node.start()
        if number == 0:
            self.lease.note_home()
        if not last.partitions:
            self._retire_in(_UNUSED if last.is_up else 0.0, last)
        self._search()
        self._shared.observer.on_links_changed()

    def _node_of(self, number: int) -> ClusterNode:
        node = self.partitions[number].home
        assert isinstance(node, ClusterNode)
        return node

    def left(self, partition: Partition) -> None:
        """Note that the home has taken a subscription back: the slot is moving, or the node is a replica now."""
        node = self._node_of(partition.number)
        departures = departures_of(partition, node, is_known_there=True)
        partition.leave_connection()
        partition.departures = departures
        self.doubt([partition.number], first=node)

    def is_in_doubt(self, number: int) -> bool:
        """Whether it is being found out where a partition is."""
        return number in self._doubts

    def doubt(self, numbers: Iterable[int], first: ClusterNode | None = None) -> None:
        """
        Find out where partitions are.

        Args:
            first: the node that knows most likely.
        """
        self._doubts.update(numbers)
        if first is not None:
            self._reader.ask_first(first.place)
        self._search()

    def _search(self) -> None:
        is_under_way = self._searching is not None and not self._searching.done()
        if is_under_way or not self._doubts or self.is_closed or self._is_resting:
            return
        self._searching = self._shared.loop.create_task(
            self._search_homes(),
            name="channels_asyncq searching the nodes of the cluster",
            context=self._context,
        )

    async def _search_homes(self) -> None:
        """Ask one node after the other until no home is in doubt; less often when that lasts."""
        began = monotonic()
        # A home that names another node may be settled and doubted again at once.
        await asyncio.sleep(max(0.0, self._asked_at + _PAUSE / 2 - began))
        while self._doubts:
            for address in self._reader.addresses():
                found = await self._reader.read(address)
                self._asked_at = monotonic()
                if found is not None:
                    self.learn(found, address)
                if not self._doubts:
                    return
                pause = _PAUSE if monotonic() - began < _EAGER else _LATER_PAUSE
                await asyncio.sleep(pause * _jitter.uniform(0.5, 1.0))

    def learn(self, found: SlotMap, source: Address) -> None:
        """Use a slot map that a node has sent."""
        if self.is_closed:
            return
        self._map = found
        self.has_map.set()
        # Homes that do not answer, and have no successor; those that have one.
        confirmed: set[ClusterNode] = set()
        replaced: set[ClusterNode] = set()
        for number in sorted(self._doubts):
            address = found.address_of(self._slots[number])
            home = self._node_of(number)
            if address is None:
                self._redirects[number].reason = self.explain(number, "")
            elif address != home.place:
                if source != home.place and home.is_up and not self.is_silent(home):
                    # It is asked next: if it knows, it can also tell that nothing was lost.
                    self._reader.ask_first(home.place)
                else:
                    self._move(number, address, is_known_here=source == home.place)
                    if source != home.place and self.is_silent(home):
                        replaced.add(home)
            elif not home.is_up:
                home.start()
            elif self.is_silent(home):
                confirmed.add(home)
            else:
                self._settle(number, home)
        for home in replaced:
            # What it has not answered is sent again to the next home; what it answers later does not count.
            home.start_over("it does not answer, and the cluster has another primary")
        if source not in {home.place for home in confirmed}:
            for home in confirmed:
                home.take_answers()

    def _settle(self, number: int, home: ClusterNode) -> None:
        """Stay at the present home, which is up."""
        self._doubts.discard(number)
        partition = self.partitions[number]
        if partition.is_away:
            home.subscriber.take_in(partition)
        self._shared.observer.on_links_changed()

    def on_node_lost(self, node: ClusterNode) -> None:
        """Note that a node has lost a connection."""
        if self.is_closed:
            return
        if node.partitions:
            self.doubt(list(node.partitions))
        else:
            # One that is dead, or a replica now, is not connected to for nothing.
            self._retire_in(0.0, node)

    def is_silent(self, node: ClusterNode) -> bool:
        """Whether a node did not answer the last time."""
        return node.place in self._reader.silent

    def on_node_silent(self, node: ClusterNode) -> None:
        """Note that a node does not answer, on connections that are up."""
        if not self.is_silent(node) and self._reader.has_others(node.place):
            node.hold_answers()
        self._reader.silent[node.place] = "it has not answered for a while"
        self.on_node_lost(node)

    def on_node_answering(self, node: ClusterNode) -> None:
        """Note that a node answers again."""
        self._reader.silent.pop(node.place, None)

    def on_node_up(self, node: ClusterNode) -> None:
        """Note that both connections of a node are up: its partitions are there, until it says otherwise."""
        for number in self._doubts.intersection(node.partitions):
            self._doubts.discard(number)
            if (partition := node.partitions[number]).is_away:
                node.subscriber.take_in(partition)  # it has left, or was wanted, while it was in doubt

    def explain(self, number: int, refusal: str) -> str:
        """Return why a partition cannot be used, for an error."""
        slot = self._slots[number]
        if refusal.startswith(("ASK", "TRYAGAIN")):
            return f"slot {slot} is migrating"
        if self._map is not None and self._map.address_of(slot) is None:
            return f"no primary for slots {self._map.gap_around(slot)}"
        if refusal.startswith("CLUSTERDOWN"):
            return refusal
        return f"the nodes disagree about slot {slot}" if refusal.startswith("MOVED") else refusal

    def probe_keys(self, number: int) -> tuple[bytes, bytes]:
        """Return keys of a partition, of which one never exists: their command is refused as any send may be."""
        return self._shared.topics.probes(number)

    def counts(self) -> Counter[str]:
        """Return how many partitions are at each node."""
        return Counter({node.address: len(node.partitions) for node in self.in_use})

    # The end

    def _retire_in(self, seconds: float, node: ClusterNode) -> None:
        """Leave a node without partitions after a while."""
        if self.is_closed or self.nodes_by_place.get(node.place) is not node:
            return
        if (timer := self._retiring.get(node)) is not None:
            timer.cancel()
        self._retiring[node] = self._shared.loop.call_later(
            seconds, self._retire, node, context=self._context
        )

    def _retire(self, node: ClusterNode) -> None:
        self._retiring.pop(node, None)
        if node.partitions:
            return
        self.nodes.remove(node)
        del self.nodes_by_place[node.place]
        task = self._shared.loop.create_task(
            node.close(), name=f"channels_asyncq leaving {node.address}", context=self._context
        )
        self._keep(task)

    def _keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task that is ending."""
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def stop(self) -> None:
        """
        Search no more, and hold nothing: the session ends or rests.

        While it rests the lease runs out. Then all nodes wait for another one.
        """
        self._is_resting = True
        if self._searching is not None:
            self._searching.cancel()
            self._keep(self._searching)
            self._searching = None
        for timer in self._retiring.values():
            timer.cancel()
        self._retiring.clear()
        for redirects in self._redirects:
            if self.is_closed:
                redirects.stop()
            else:
                redirects.release()  # nothing else lets its commands go on
        self.lease.stop()
        self.lease.note_lost()

    def wake(self) -> None:
        """Note that a command waits for a connection: the session does not rest any more."""
        if self._is_resting and not self.is_closed:
            self.start()

    async def leave(self) -> None:
        """End what is no node's: give the lease back, and wait for nodes that were left."""
        self.is_closed = True
        self.stop()
        await self.lease.leave()
        if self._closing:
            await asyncio.wait(self._closing)

    def abort(self) -> None:
        self.is_closed = True
        self.stop()
