"""The faults of a Redis Cluster: its nodes share the names, and any of them may move, fail, or hang."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

from channels_asyncq.names import Topics
from channels_asyncq.settings.keys import CLUSTER_PARTITIONS
from channels_asyncq.slots import slot_of, tags
from tests.cluster_moves import Step
from tests.cluster_nodes import Node, wait_for
from tests.clusters import Cluster

from .fleet import GROUPS, PREFIX, Fault, Scenario, World, valkey

CHANGED: Final = frozenset({"server_changed"})
#: A node that leaves answers for so long after its last slot has moved. A process asks it whether it was a move.
FAREWELL: Final = 1.0
#: Two failovers of one shard within twice the node timeout get no votes.
BETWEEN_FAILOVERS: Final = 2.1


@asynccontextmanager
async def cluster(scenario: Scenario) -> AsyncGenerator[World, None]:
    """Three primaries with a replica each."""
    nodes = Cluster(binary=valkey(), **dict(scenario.options))
    await asyncio.to_thread(nodes.start)
    try:
        yield World(random.Random(), list(nodes.nodes), [nodes.url], cluster=nodes)
    finally:
        await asyncio.to_thread(nodes.stop)


# Which slots and nodes


def _slots_in_use() -> list[int]:
    """The slots of the groups."""
    topics = Topics(PREFIX, CLUSTER_PARTITIONS, [0], "0" * 16, is_cluster=True)
    names = tags(CLUSTER_PARTITIONS)
    partitions = {topics.group(f"group.{n}")[0].partition for n in range(GROUPS)}
    return sorted(slot_of(names[partition]) for partition in partitions)


def _some_slot(world: World, *, of: Callable[[int], bool] = lambda slot: True) -> int:
    """A slot of a group, or now and then of any partition: inboxes and jobs are there too."""
    slots = _slots_in_use()
    if world.rng.random() < 0.3:
        slots = [slot_of(tag) for tag in tags(CLUSTER_PARTITIONS)]
    return world.rng.choice([slot for slot in slots if of(slot)])


def _primary(world: World) -> tuple[Node, Node]:
    """A primary, and the replica that will be promoted."""
    primary = world.rng.choice(world.nodes.primaries())
    return primary, world.nodes.replicas_of(primary)[0]


def _move(world: World, slot: int, source: Node, on_step: Callable[[Step], object] | None = None) -> None:
    """Move a slot by hand to another primary."""
    others = [node for node in world.nodes.primaries() if node is not source]
    world.nodes.migrate_classic(slot, world.rng.choice(others), on_step)


# Planned changes


async def classic(world: World) -> None:
    """A slot is moved with its keys, as `valkey-cli --cluster reshard` does."""

    def move() -> None:
        slot = _some_slot(world)
        _move(world, slot, world.nodes.node_of(slot))

    await asyncio.to_thread(move)


async def atomic(world: World) -> None:
    """The servers move a slot themselves; by hand, where they cannot."""
    if not world.nodes.has_atomic:
        return await classic(world)

    def move() -> None:
        slot = _some_slot(world)
        source = world.nodes.node_of(slot)
        others = [node for node in world.nodes.primaries() if node is not source]
        world.nodes.migrate_atomic(slot, world.rng.choice(others))

    return await asyncio.to_thread(move)


async def failover(world: World) -> None:
    """CLUSTER FAILOVER: a replica takes over from a primary that lives."""

    def change() -> None:
        _, replica = _primary(world)
        world.nodes.failover(replica)
        world.nodes.wait_until_ok()

    await asyncio.to_thread(change)
    await asyncio.sleep(BETWEEN_FAILOVERS)


async def join(world: World) -> None:
    """A node joins, takes some slots, gives them back and leaves."""

    def come_and_go() -> None:
        node = world.nodes.add_node()
        taken = []
        for slot in world.rng.sample(_slots_in_use(), 3):
            taken.append((slot, world.nodes.node_of(slot)))
            world.nodes.migrate_classic(slot, node)
        for slot, home in taken:
            world.nodes.migrate_classic(slot, home)
        time.sleep(FAREWELL)
        world.nodes.forget(node)
        world.nodes.wait_until_ok()

    await asyncio.to_thread(come_and_go)


# Failures


def _await_promotion(world: World, replica: Node) -> None:
    """Return when a replica is a primary, and all that live serve again."""
    world.nodes.wait_for_promotion(replica)
    wait_for(
        lambda: all(node.cluster_info()["cluster_state"] == "ok" for node in world.nodes.living()),
        "the cluster serves",
    )
    world.repairs.append(time.monotonic())


async def kill(world: World) -> None:
    """kill -9 of a primary; it comes back without data, as a replica."""

    def die_and_come_back() -> None:
        primary, replica = _primary(world)
        primary.kill()
        _await_promotion(world, replica)
        primary.restart()
        world.nodes.wait_until_ok()

    _note_change(world)
    await asyncio.to_thread(die_and_come_back)


async def freeze(world: World) -> None:
    """SIGSTOP of a primary until another node has taken its place."""

    def hang() -> None:
        primary, replica = _primary(world)
        primary.freeze()
        try:
            _await_promotion(world, replica)
        finally:
            primary.thaw()
        world.nodes.wait_until_ok()

    _note_change(world)
    await asyncio.to_thread(hang)


def _note_change(world: World) -> None:
    # A channel has names on two nodes: its own and that of its group.
    world.changes += 2


async def several(world: World) -> None:
    """A primary dies or hangs; meanwhile a slot moves between the others, and connections to them are cut."""
    rng = world.rng

    def much() -> None:
        primary, replica = _primary(world)
        lost = primary.me().numbers()
        is_killed = rng.random() < 0.5
        if is_killed:
            primary.kill()
        else:
            primary.freeze()
        try:
            slot = _some_slot(world, of=lambda slot: slot not in lost)
            source = world.nodes.node_of(slot)
            cut_at = rng.choice(["migrating", "keys", "source"])

            def cut(step: Step) -> None:
                if step == cut_at:
                    kinds = rng.sample(["pubsub", "normal"], rng.randint(1, 2))
                    for kind in kinds:
                        source.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

            _move(world, slot, source, cut)
            _await_promotion(world, replica)
        finally:
            if not is_killed:
                primary.thaw()
        if is_killed:
            primary.restart()
        world.nodes.wait_until_ok()

    _note_change(world)
    await asyncio.to_thread(much)


async def any_of_them(world: World) -> None:
    """Any fault of a cluster, one after the other."""
    await world.rng.choice([classic, classic, atomic, failover, join, kill, freeze, several])(world)


def _planned(name: str, fault: Fault, least: float = 0.0) -> Scenario:
    """Nothing is lost, nothing raises, and nobody is told anything."""
    return Scenario(
        f"cluster_{name}",
        fault,
        (0.05, 0.3),
        place=cluster,
        least=least,
        # A primary that gives its last slot away would follow the node that took it, and begin a new history.
        options={"cluster_allow_replica_migration": "no"},
        most_raised=0.0,
    )


def _unplanned(name: str, fault: Fault, least: float, most_resumed: float = 2.0, **options: bool) -> Scenario:
    """
    What the replica lacks is lost and told; jobs cannot be told.

    Sends go on a second later than after a kill where a node stands still: a question to it may be under way.
    """
    return Scenario(
        f"cluster_{name}",
        fault,
        (0.3, 1.0),
        place=cluster,
        least=least,
        options={"cluster_allow_replica_migration": "no", **options},
        may_tell=CHANGED,
        keeps_jobs=False,
        most_resumed=most_resumed,
    )


SCENARIOS: Final = (
    _planned("classic", classic),
    _planned("atomic", atomic),
    _planned("failover", failover, 6.0),
    _planned("join", join, 6.0),
    _unplanned("kill", kill, 8.0, most_resumed=1.0),
    _unplanned("freeze", freeze, 8.0),
    _unplanned("several", several, 10.0, full_coverage=False),
    _unplanned("all", any_of_them, 15.0, full_coverage=False),
)
