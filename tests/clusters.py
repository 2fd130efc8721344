"""A real Redis Cluster for tests: moved, failed over, killed and frozen, and put back again."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

from channels_asyncq.clock import monotonic
from channels_asyncq.testing import HOST, EmbeddedServerError, Option, _free_port, find_server
from tests import cluster_moves
from tests.cluster_moves import Step
from tests.cluster_nodes import LIMIT, SLOTS, Node, version_of, wait_for
from tests.cluster_restore import FirstState

#: For how long a server keeps the votes that it has got: 4 seconds, or 4 node timeouts if that is longer. If it
#: is asked to take over meanwhile, Redis 7.0 counts them again, under its old epoch, and the others undo it.
VOTES_TIMEOUTS: Final = 4
VOTES_TIMEOUT_LEAST: Final = 4.0

#: A server gives a failover up after five seconds. Then it is asked again, so often at most.
FAILOVER_TIMEOUT: Final = 5.5
FAILOVERS: Final = 5

#: How many of the last lines of a server's log a failure shows.
LOG_LINES: Final = 30

#: How often a start is tried with new ports: another process may take one of them meanwhile.
STARTS: Final = 5


class Cluster:
    """
    A Redis Cluster of this process: it lives as long as a `with` block, or from `start()` to `stop()`.

    The nodes know each other from files that are written before they start, so it is ready after about 2.1
    seconds, of which 2 are the server's own. `nodes` begins with the primaries, in the order of their slots;
    replica `primaries + n` follows primary `n` (modulo `primaries`).

    All methods block, and none may be called by two threads at once, except those of the nodes.

    Args:
        primaries: how many share the slots, in equal parts.
        replicas: how many replicas each of them has.
        binary: the server, in place of `find_server()`.
        node_timeout: `cluster-node-timeout`, in milliseconds: a primary that is silent for longer is replaced.
        full_coverage: `cluster-require-full-coverage`: whether all slots stop when one has no primary.
        options: lines of each server's configuration, as for `EmbeddedServer`.
    """

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 1,
        binary: str | None = None,
        node_timeout: int = 1000,
        full_coverage: bool = True,
        **options: Option,
    ) -> None:
        self.binary = binary or find_server()
        self.nodes: list[Node] = []
        self._primaries = primaries
        self._replicas = replicas
        self._options: dict[str, Option] = {
            "cluster_node_timeout": node_timeout,
            "cluster_require_full_coverage": "yes" if full_coverage else "no",
            "cluster_announce_ip": HOST,
            # Replicas are linked as soon as they ask, and a primary that ends does not wait for them.
            "repl_diskless_sync": "yes",
            "repl_diskless_sync_delay": 0,
            "shutdown_timeout": 0,
            **options,
        }
        self._votes_timeout = max(VOTES_TIMEOUT_LEAST, VOTES_TIMEOUTS * node_timeout / 1000)
        self._elected_at: dict[str, float] = {}
        self._first: FirstState | None = None

    # Starting and stopping

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """
        Start the nodes, and return when all slots are served and all replicas linked.

        Raises:
            EmbeddedServerError: no server was found, or it ended; the text has its output.
            TimeoutError: the nodes did not come together.
        """
        for attempt in range(STARTS):
            self.nodes = self._new_nodes()
            try:
                self._start_nodes()
                break
            except EmbeddedServerError as error:
                self.stop()
                if "is taken" not in str(error) or attempt == STARTS - 1:
                    raise
            except BaseException:
                self.stop()
                raise
        self._first = FirstState(self)
        return self

    def stop(self) -> None:
        """Stop all nodes, and forget them. Safe to call twice."""
        for node in self.nodes:
            _end(node)
        self.nodes = []
        self._first = None

    def _start_nodes(self) -> None:
        self._elected_at.clear()
        for node in self.nodes:
            node.start()
        self.wait_until_ok()

    def start_anew(self, nodes: Sequence[Node]) -> None:
        """Kill all nodes, and start these again on their ports, as they were at first."""
        for node in {*self.nodes, *nodes}:
            _end(node)
        self.nodes = list(nodes)
        self._start_nodes()

    def _new_nodes(self) -> list[Node]:
        count = self._primaries * (1 + self._replicas)
        ports = _free_ports(2 * count)
        plan = _Plan(self.binary, self._primaries, ports[:count], ports[count:])
        return [self._new_node(ports[n], ports[count + n], plan.nodes_file(n)) for n in range(count)]

    def _new_node(self, port: int, bus_port: int, nodes_file: str = "") -> Node:
        return Node(binary=self.binary, port=port, bus_port=bus_port, nodes_file=nodes_file, **self._options)

    # What there is

    @property
    def url(self) -> str:
        """The URL for `hosts`, with the primaries that were first as the nodes to begin with."""
        return "redis+cluster://" + ",".join(node.address for node in self.nodes[: self._primaries])

    @property
    def has_atomic(self) -> bool:
        """Whether the server can do `migrate_atomic()`."""
        return cluster_moves.has_atomic(self.living()[0])

    def living(self) -> list[Node]:
        """Return the nodes that answer: neither dead nor frozen."""
        return [node for node in self.nodes if node.is_living]

    def primaries(self) -> list[Node]:
        """Return the living nodes that are primaries now, as each of them says itself."""
        return [node for node in self.living() if node.me().primary is None]

    def replicas_of(self, primary: Node) -> list[Node]:
        """Return the living nodes that follow this one now, as each of them says itself."""
        return [node for node in self.living() if node.me().primary == primary.id]

    def node_of(self, slot: int) -> Node:
        """
        Return the living node that has the slot.

        Each node is asked about itself, as others learn of a move later. If two claim the slot, the one with the
        higher epoch has it.

        Raises:
            LookupError: no living node has it.
        """
        owners = [(entry.epoch, node) for node in self.living() if (entry := node.me()).has_slot(slot)]
        if not owners:
            raise LookupError(f"No living node has slot {slot}.")
        return max(owners, key=lambda owner: owner[0])[1]

    # Moving slots

    def classic_steps(self, slot: int, to: Node, batch: int = 100) -> Iterator[Step]:
        """Move a slot with its keys by hand, one step at each `next()`; see `cluster_moves.classic_steps()`."""
        source = self.node_of(slot)
        primaries = self.primaries()
        others = [node for node in primaries if node not in (source, to)]
        # It takes the slot under an epoch above all that it has heard of: another move may just have made one.
        newest = max(int(node.cluster_info()["cluster_my_epoch"]) for node in primaries)
        wait_for(lambda: _epoch_of(to) >= newest, f"{to.address} has heard of epoch {newest}")
        if source is to:
            yield from cluster_moves.tell(slot, to, others)
        else:
            yield from cluster_moves.classic_steps(slot, source, to, others, batch)

    def migrate_classic(
        self, slot: int, to: Node, on_step: Callable[[Step], object] | None = None, batch: int = 100
    ) -> None:
        """
        Move a slot with its keys by hand. `on_step(name)` is called after each step.

        What `on_step` raises ends it there and leaves the slot open; called again, it goes on.
        """
        for step in self.classic_steps(slot, to, batch):
            if on_step is not None:
                on_step(step)

    def close_slot(self, slot: int) -> None:
        """Give a move up that was left off: the slot stays where it is, with those of its keys that are there."""
        for node in self.primaries():
            node.command("CLUSTER", "SETSLOT", slot, "STABLE")

    def migrate_atomic(self, slot: int, to: Node) -> None:
        """Have the servers move a slot by themselves; see `cluster_moves.migrate_atomic()`."""
        cluster_moves.migrate_atomic(slot, self.node_of(slot), to)

    # Other changes

    def failover(self, replica: Node, force: bool = False) -> None:
        """
        Make a replica the primary of its slots, and return when it is.

        Usually it takes milliseconds. A second failover to the same node begins when the node has forgotten its
        votes of the first one.

        Args:
            force: do not ask the present primary, which may be dead or frozen.
        """
        time.sleep(max(0.0, self._elected_at.get(replica.id, 0.0) + self._votes_timeout - monotonic()))
        for attempts_left in reversed(range(FAILOVERS)):
            replica.command("CLUSTER", "FAILOVER", *(["FORCE"] if force else []))
            try:
                self._wait_for_primary(replica, max(FAILOVER_TIMEOUT, self._votes_timeout))
                break
            except TimeoutError:
                # The others did not vote, or the primary did not yet know its replica.
                if not attempts_left:
                    raise
        self._elected_at[replica.id] = monotonic()

    def add_node(self) -> Node:
        """Start one more node, a primary without slots, and return it when all living nodes know it."""
        port, bus_port = _free_ports(2)
        node = self._new_node(port, bus_port)
        node.start()
        peers = self.living()
        self.nodes.append(node)
        peers[0].command("CLUSTER", "MEET", HOST, node.port, node.bus_port)
        self.wait_until_ok()
        return node

    def forget(self, node: Node) -> None:
        """
        Have the others forget a node, and stop it.

        Raises:
            ValueError: it has slots, which would have no node.
        """
        if node.is_living and node.me().slots:
            raise ValueError(f"{node.address} has slots {node.me().slots}; move them to another node first")
        for other in self.living():
            if other is not node:
                _forget(other, node.id)
        self.nodes.remove(node)
        _end(node)

    # Waiting

    def wait_for_promotion(self, replica: Node) -> None:
        """
        Return when a replica has taken the place of its primary, which is dead or frozen.

        Raises:
            TimeoutError: the others did not elect it.
        """
        self._wait_for_primary(replica, LIMIT)

    def _wait_for_primary(self, node: Node, timeout: float) -> None:
        with self._logs_shown():
            wait_for(lambda: node.role == "master", f"{node.address} is primary", timeout)

    @contextlib.contextmanager
    def _logs_shown(self) -> Iterator[None]:
        """Let a failure show what each server has written last."""
        try:
            yield
        except TimeoutError as error:
            for node in self.nodes:
                error.add_note("\n".join([f"{node.address}:", *node.log.splitlines()[-LOG_LINES:]]))
            raise

    def wait_until_ok(self, timeout: float = LIMIT) -> None:
        """
        Return when all living nodes serve, and say the same.

        That is: their state is ok, they have all slots among them, reach each other, agree where each of them
        stands, and each replica is linked to its primary.

        Raises:
            TimeoutError: it was not so within `timeout` seconds.
        """
        with self._logs_shown():
            wait_for(self.is_ok, "the cluster is ok", timeout)

    def is_ok(self) -> bool:
        """Whether it is as `wait_until_ok()` waits for."""
        living = self.living()
        ids = {node.id for node in living}
        places: list[dict[str, Any]] = []
        for node in living:
            view = node.view()
            if not _serves(node) or any(name not in view or not view[name].is_well for name in ids):
                return False
            places.append({name: view[name].place for name in ids})
            if sum(len(view[name].numbers()) for name in ids) < SLOTS:
                return False
        return all(place == places[0] for place in places)

    def restore(self) -> None:
        """
        Put everything back: nodes, roles, slots, settings and users as they were at first, and no keys.

        Where nothing has changed, or only slots and roles, it takes milliseconds. Where nodes are dead or do not
        come together, all nodes are started anew on the same ports, as `start()` does.
        """
        if self._first is None:
            raise EmbeddedServerError("The cluster is not running; call start().")
        self._first.put_back()


class _Plan:
    """The cluster as its nodes know it when they start."""

    def __init__(self, binary: str, primaries: int, ports: Sequence[int], bus_ports: Sequence[int]) -> None:
        self._primaries = primaries
        self._ports = ports
        self._bus_ports = bus_ports
        self._ids = [secrets.token_hex(20) for _ in ports]
        # Valkey 9 aborts at the first SPUBLISH if the file names no shard; Redis 7.0 knows no shards.
        self._shards = [secrets.token_hex(20) for _ in range(primaries)] if _has_shards(binary) else []

    def nodes_file(self, myself: int) -> str:
        """Return the file of a node."""
        lines = [self._line(number, number == myself) for number in range(len(self._ports))]
        return "\n".join([*lines, f"vars currentEpoch {self._primaries} lastVoteEpoch 0", ""])

    def _line(self, number: int, is_myself: bool) -> str:
        primary = number % self._primaries
        address = f"{HOST}:{self._ports[number]}@{self._bus_ports[number]}"
        if self._shards:
            address += f",,tls-port=0,shard-id={self._shards[primary]}"
        me = "myself," if is_myself else ""
        if number >= self._primaries:
            return f"{self._ids[number]} {address} {me}slave {self._ids[primary]} 0 0 {primary + 1} connected"
        low, high = number * SLOTS // self._primaries, (number + 1) * SLOTS // self._primaries - 1
        return f"{self._ids[number]} {address} {me}master - 0 0 {number + 1} connected {low}-{high}"


def _has_shards(binary: str) -> bool:
    name, version = version_of(binary)
    return name == "valkey" or version >= (7, 2)


def _free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(_free_port())
    return list(ports)


def _serves(node: Node) -> bool:
    is_linked = node.info("replication").get("master_link_status", "up") == "up"
    return is_linked and node.cluster_info()["cluster_state"] == "ok"


def _epoch_of(node: Node) -> int:
    """Return the highest epoch that a node has heard of."""
    return int(node.cluster_info()["cluster_current_epoch"])


def _forget(node: Node, other: str) -> None:
    try:
        node.command("CLUSTER", "FORGET", other)
    except EmbeddedServerError as error:
        # Newer servers tell each other what to forget.
        if "Unknown node" not in str(error):
            raise


def _end(node: Node) -> None:
    """End a node at once: it has nothing to save."""
    if node.is_running:
        node.kill()
    node.stop()
