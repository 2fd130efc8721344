"""What goes wrong in a cluster during a run."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from channels_asyncq.names import Topics
from channels_asyncq.settings.keys import CLUSTER_PARTITIONS
from channels_asyncq.slots import slot_of, tags
from tests.cluster_nodes import Node, wait_for
from tests.clusters import Cluster

from .counting import Outage
from .faults import Faults
from .servers import Server

#: Slots that one fault moves.
MOVED = 4
#: Seconds for a replica to be promoted.
PATIENCE = 20.0
#: Seconds after a failover that was not planned, until positions of before are refused: for 2.5 of them a session
#: may tell that nothing was lost.
RESUMED = 3.0


def slots_of(prefix: str, rooms: Sequence[str]) -> list[int]:
    """Return the slots of rooms, each once."""
    topics = Topics(prefix, CLUSTER_PARTITIONS, [0], "0" * 16, is_cluster=True)
    partitions = {topics.group(room)[0].partition for room in rooms}
    names = tags(CLUSTER_PARTITIONS)
    return sorted(slot_of(names[partition]) for partition in partitions)


class ClusterFaults(Faults):
    """
    The faults of one run on a cluster, as `Faults`.

    `losses` has the times at which a primary was replaced that might have had more than its replica.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        every: tuple[float, float],
        cluster: Cluster,
        slots: Sequence[int],
        servers: Sequence[Server],
        seed: int,
    ) -> None:
        super().__init__(kinds, every, cluster.nodes[0], servers, seed)
        self._cluster = cluster
        self._slots = slots

    async def play(self, kind: str) -> None:
        await CLUSTER_FAULTS[kind](self)

    async def kill_connections(self) -> None:
        """CLIENT KILL of every connection to any primary."""

        def kill() -> None:
            for node in self._cluster.primaries():
                for kind in ("normal", "pubsub"):
                    node.command("CLIENT", "KILL", "TYPE", kind)

        await asyncio.to_thread(kill)

    async def move_slots(self) -> None:
        """Some slots of rooms are moved, by hand or, where the servers can, by themselves."""

        def move() -> None:
            cluster = self._cluster
            for slot in self._random.sample(self._slots, min(MOVED, len(self._slots))):
                source = cluster.node_of(slot)
                target = self._random.choice([node for node in cluster.primaries() if node is not source])
                if cluster.has_atomic and self._random.random() < 0.5:
                    cluster.migrate_atomic(slot, target)
                else:
                    cluster.migrate_classic(slot, target)

        await asyncio.to_thread(move)

    async def fail_over(self) -> None:
        """CLUSTER FAILOVER of one primary."""

        def change() -> None:
            _, replica = self._primary()
            self._cluster.failover(replica)
            self._cluster.wait_until_ok()

        await asyncio.to_thread(change)

    async def kill_primary(self) -> None:
        """kill -9 of a primary; it comes back without data, as a replica."""
        primary, replica = self._primary()
        await self._lose(primary.kill, replica, primary.restart)

    async def stop_primary(self) -> None:
        """SIGSTOP of a primary until its replica has taken its place."""
        primary, replica = self._primary()
        await self._lose(primary.freeze, replica, primary.thaw)

    def _primary(self) -> tuple[Node, Node]:
        primary = self._random.choice(self._cluster.primaries())
        return primary, self._cluster.replicas_of(primary)[0]

    async def _lose(self, harm: Callable[[], None], replica: Node, repair: Callable[[], None]) -> None:
        begin = time.monotonic()
        self.losses.append(begin)

        def fail() -> None:
            harm()
            wait_for(lambda: replica.role == "master", f"{replica.address} is promoted", PATIENCE)
            wait_for(
                lambda: all(node.cluster_info()["cluster_state"] == "ok" for node in self._cluster.living()),
                "the cluster serves",
                PATIENCE,
            )
            self.outages.append(Outage(begin, time.monotonic() + RESUMED))
            repair()
            self._cluster.wait_until_ok()

        await asyncio.to_thread(fail)


CLUSTER_FAULTS: Mapping[str, Callable[[ClusterFaults], Awaitable[None]]] = {
    "server": ClusterFaults.kill_server,
    "connections": ClusterFaults.kill_connections,
    "move": ClusterFaults.move_slots,
    "failover": ClusterFaults.fail_over,
    "kill": ClusterFaults.kill_primary,
    "stop": ClusterFaults.stop_primary,
}
