"""The faults. Each is a function that breaks something once, and has it whole again when it returns."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from functools import partial

from channels_asyncq.testing import EmbeddedServer, EmbeddedServerError
from tests.evictions import fill, info
from tests.refusals import KINDS as REFUSALS
from tests.refusals import PROTECTED, refuse_to_write, write_again

from . import clusters, sentinels
from .fleet import Scenario, World
from .proxy import Direction, Kind

CHANGED = frozenset({"server_changed"})
NOT_LOGGED = frozenset({"not_logged"})
# Who is connected has missed nothing, and a log that is gone may have held nothing for those who come back.
FORGOT = frozenset({"server_forgot", "trimmed"})
DIRECTIONS: tuple[Direction, ...] = ("up", "down")
KINDS: tuple[Kind | None, ...] = ("commands", "pushes", None)


# Connections


async def _kill(world: World, *kinds: str) -> None:
    for kind in kinds:
        with contextlib.suppress(EmbeddedServerError, OSError):
            await world.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


async def kill_pubsub(world: World) -> None:
    await _kill(world, "pubsub")


async def kill_normal(world: World) -> None:
    await _kill(world, "normal")


async def kill_both(world: World) -> None:
    await _kill(world, *world.rng.sample(["pubsub", "normal"], 2))


# The server


async def pause(world: World) -> None:
    world.server.pause()
    await world.some_time(0.05, 0.9)
    world.server.resume()


async def pause_for_long(world: World) -> None:
    """Longer than `send_timeout`: what was written may be executed after its sender gave up."""
    world.server.pause()
    await world.some_time(0.3, 1.5)
    world.server.resume()


async def restart(world: World) -> None:
    await asyncio.to_thread(world.server.kill)
    world.changes += 1
    await world.some_time(0.0, 0.3)
    await asyncio.to_thread(world.server.restart)


async def restart_unread(world: World) -> None:
    """The same, when some receivers are behind: the end of what the server had is lost with it."""
    await _fall_behind(world)
    await restart(world)


async def _fall_behind(world: World) -> None:
    """What is pushed on some connections is on its way for so long that it will not arrive."""
    for tunnel in world.lane.of("pushes"):
        if world.rng.random() < 0.5:
            tunnel.down.is_deaf = True
    await world.some_time(0.05, 0.3)


async def _promote(world: World, *, with_tail: bool) -> None:
    """Have the replica be the master, and the old master its replica."""
    old, new = world.servers
    await _in_sync(world, old, new)
    if with_tail:
        # Nobody speaks any more; what was said reaches the replica.
        world.lane.stall("up")
        await _in_sync(world, old, new)
        await world.command("REPLICAOF", "NO", "ONE", server=new)
    else:
        await world.command("REPLICAOF", "NO", "ONE", server=new)
        await _fall_behind(world)
    world.changes += 1
    world.lane.switch(new.port)
    await world.command("REPLICAOF", "127.0.0.1", new.port, server=old)
    world.servers.reverse()


async def _in_sync(world: World, master: EmbeddedServer, replica: EmbeddedServer) -> None:
    """Return when the replica has what the master had when this was called."""

    async def offset(server: EmbeddedServer) -> tuple[bool, int]:
        text = (await world.command("INFO", "replication", server=server)).decode()
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        is_up = lines.get("master_link_status") == "up" and lines.get("master_sync_in_progress") == "0"
        key = "master_repl_offset" if server is master else "slave_repl_offset"
        return is_up, int(lines.get(key, "-1"))

    _, goal = await offset(master)
    async with asyncio.timeout(20):
        while True:
            is_up, reached = await offset(replica)
            if is_up and reached >= goal:
                return
            await asyncio.sleep(0.01)


async def replicate(world: World) -> None:
    master, replica = world.servers
    await world.command("REPLICAOF", "127.0.0.1", master.port, server=replica)
    await _in_sync(world, master, replica)


async def promote_with_tail(world: World) -> None:
    await _promote(world, with_tail=True)


async def promote_without_tail(world: World) -> None:
    await _promote(world, with_tail=False)


async def refuse_writes(world: World, kind: str) -> None:
    """The server is full, cannot save, or lacks replicas: it publishes and writes nothing. Some reconnect."""
    server = world.server
    await asyncio.to_thread(refuse_to_write, server, kind)
    await world.some_time(0.0, 0.3)
    if world.rng.random() < 0.7:
        await _kill(world, *world.rng.choice([["pubsub"], ["normal"], ["normal", "pubsub"]]))
    await world.some_time(0.0, 0.3)
    await asyncio.to_thread(write_again, server, kind)
    if world.rng.random() < 0.5:
        await _kill(world, *world.rng.choice([["pubsub"], ["normal"]]))


async def flushdb(world: World) -> None:
    """Everything is deleted, as by Django's cache.clear(); some are away then."""
    kinds: list[str] = world.rng.choice([[], ["pubsub"], ["normal"], ["normal", "pubsub"]])
    is_before = world.rng.random() < 0.5
    if is_before:
        await _kill(world, *kinds)
    await world.command("FLUSHDB")
    if not is_before:
        await world.some_time(0.0, 0.1)
        await _kill(world, *kinds)


async def make_evict(world: World) -> None:
    """Have the server evict keys from two megabytes more than it holds now."""
    used = int(await asyncio.to_thread(info, world.server, "memory", "used_memory"))
    await world.command("CONFIG", "SET", "maxmemory", used + 2**21, "maxmemory-policy", "allkeys-lru")


async def evict(world: World) -> None:
    """Somebody else fills the server; some reconnect."""
    await asyncio.to_thread(fill, world.server, world.rng.randint(5, 40), 100 * world.faults)
    if world.rng.random() < 0.6:
        await _kill(world, *world.rng.choice([["pubsub"], ["normal"]]))


# The network


async def cut(world: World) -> None:
    world.lane.cut(world.rng.choice(KINDS))


async def refuse(world: World) -> None:
    world.lane.refuses = True
    world.lane.cut()
    await world.some_time(0.05, 0.5)
    world.lane.refuses = False


async def stall(world: World) -> None:
    """One direction of one kind of connection, or all; then it is cut, or goes on."""
    direction = world.rng.choice(DIRECTIONS)
    kind = world.rng.choice(KINDS)
    tunnels = world.lane.of(kind)
    for tunnel in tunnels:
        tunnel.flow(direction).stall()
    await world.some_time(0.05, 0.8)
    ends = world.rng.random() < 0.5
    for tunnel in tunnels:
        if ends:
            tunnel.cut()
        tunnel.flow(direction).resume()


async def split_and_delay(world: World) -> None:
    """Everything in small pieces, some late; and now and then an end in the middle of it."""
    rng, lane = world.rng, world.lane
    for direction in DIRECTIONS:
        lane.splits[direction] = rng.choice([0, 50, 300, 2000])
        lane.delays[direction] = rng.choice([None, lambda: lane.rng.expovariate(2000)])
    await world.some_time(0.1, 0.4)
    if rng.random() < 0.5:
        lane.cut(rng.choice(KINDS))


async def swallow_replies(world: World) -> None:
    """Commands are executed, and nobody hears of it."""
    tunnels = world.lane.of("commands")
    for tunnel in tunnels:
        tunnel.down.is_deaf = True
    await world.some_time(0.01, 0.2)
    for tunnel in tunnels:
        tunnel.cut()


async def deafen(world: World) -> None:
    """The connections for pushes stay, and nothing comes on them any more. Some are left alone."""
    tunnels = world.lane.of("pushes")
    for tunnel in tunnels:
        if world.rng.random() < 0.7:
            tunnel.down.is_deaf = True
    await world.some_time(8.0, 10.0)


async def stop_receivers(world: World) -> None:
    """SIGSTOP until the server drops the receivers for their output buffers, or for a while."""
    stopped = [receiver for receiver in world.receivers if world.rng.random() < 0.7]
    for receiver in stopped:
        receiver.signal(signal.SIGSTOP)
    await world.some_time(0.7, 1.3)
    for receiver in stopped:
        receiver.signal(signal.SIGCONT)


async def refuse_pushes(world: World) -> None:
    """Nothing is pushed for longer than the logs reach back."""
    world.lane.refuses = True
    world.lane.cut("pushes")
    await world.some_time(0.1, 1.0)
    world.lane.refuses = False


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("kill_pubsub", kill_pubsub, (0.05, 0.3)),
        Scenario("kill_normal", kill_normal, (0.05, 0.3)),
        Scenario("kill_both", kill_both, (0.05, 0.3)),
        Scenario(
            "unlogged",
            kill_both,
            (0.1, 0.3),
            config={"partitions": 2, "recovery": {"seconds": 60, "exclude": ["group.[89]"]}},
            unlogged=frozenset({"group.8", "group.9"}),
        ),
        Scenario("large", kill_pubsub, (0.2, 0.5), pause=0.1, size=20_000),
        Scenario(
            "too_large",
            kill_pubsub,
            (0.2, 0.5),
            config={"recovery": {"message_bytes": 16 * 1024}},
            may_tell=frozenset({"too_large"}),
            pause=0.1,
            size=20_000,
        ),
        Scenario("pause", pause, (0.1, 0.6)),
        Scenario("pause_for_long", pause_for_long, (0.3, 0.8), config={"send_timeout": 0.5}, most_raised=1.0),
        Scenario("restart", restart, (0.3, 0.9), may_tell=CHANGED, keeps_jobs=False),
        Scenario("restart_persisted", restart, (0.3, 0.9), options={"persist": True}, may_tell=CHANGED),
        Scenario(
            "restart_unread",
            restart_unread,
            (0.3, 0.6),
            through_proxy=True,
            may_tell=CHANGED,
            keeps_jobs=False,
        ),
        Scenario("cut", cut, (0.05, 0.3), through_proxy=True),
        Scenario("refuse", refuse, (0.2, 0.6), through_proxy=True),
        Scenario("stall", stall, (0.1, 0.3), through_proxy=True),
        Scenario("split_and_delay", split_and_delay, (0.0, 0.1), through_proxy=True, pause=0.1),
        Scenario("swallow_replies", swallow_replies, (0.1, 0.4), through_proxy=True),
        Scenario("deafen", deafen, (0.1, 0.5), through_proxy=True),
        # Large messages, that the buffers of the kernel do not hold what the receivers leave.
        Scenario(
            "output_buffers",
            stop_receivers,
            (0.3, 0.6),
            options={"client_output_buffer_limit": "pubsub 64kb 32kb 1"},
            pause=0.06,
            size=14_000,
            # On a busy machine receivers come back so late that a log, which holds 600 of these, is not enough.
            may_tell=frozenset({"trimmed"}),
        ),
        Scenario(
            "short_logs",
            refuse_pushes,
            (0.2, 0.5),
            through_proxy=True,
            config={"recovery": {"seconds": 60, "messages": 100}},
            may_tell=frozenset({"trimmed"}),
        ),
        Scenario(
            "promote_with_tail",
            promote_with_tail,
            (0.3, 0.9),
            prepare=replicate,
            servers=2,
            through_proxy=True,
            options={"repl_diskless_sync_delay": 0},
            may_tell=CHANGED,
        ),
        Scenario(
            "promote_without_tail",
            promote_without_tail,
            (0.3, 0.9),
            prepare=replicate,
            servers=2,
            through_proxy=True,
            options={"repl_diskless_sync_delay": 0},
            may_tell=CHANGED,
            keeps_jobs=False,
        ),
        Scenario("flushdb", flushdb, (0.1, 0.6), may_tell=FORGOT, in_vain=FORGOT, keeps_jobs=False),
        Scenario(
            "evict",
            evict,
            (0.1, 0.4),
            prepare=make_evict,
            may_tell=FORGOT,
            in_vain=FORGOT,
            keeps_jobs=False,
        ),
        # Jobs are refused meanwhile.
        *(
            Scenario(
                kind.lower(),
                partial(refuse_writes, kind=kind),
                (0.2, 0.6),
                options=PROTECTED,
                may_tell=NOT_LOGGED,
                in_vain=NOT_LOGGED,
                most_raised=0.5,
            )
            for kind in REFUSALS
        ),
        *clusters.SCENARIOS,
        *sentinels.SCENARIOS,
    )
}
