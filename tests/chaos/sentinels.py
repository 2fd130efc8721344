"""The faults of a server with a replica that three Sentinels watch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Final

from channels_asyncq.testing import HOST, EmbeddedServer, EmbeddedServerError
from tests.cluster_nodes import wait_for

from .fleet import Scenario, World, valkey

CHANGED: Final = frozenset({"server_changed"})
NAME: Final = "mymaster"
SENTINELS: Final = 3
#: Seconds for the Sentinels to agree on something.
PATIENCE: Final = 60.0
#: How often they ask the servers and tell each other, in milliseconds; by themselves, once in 10 and 2 seconds.
PERIODS: Final = ("info-period", 500, "publish-period", 500)


@asynccontextmanager
async def watched(scenario: Scenario) -> AsyncGenerator[World, None]:
    """A master and its replica, and the Sentinels: `servers[0]` is the master now, the Sentinels come last."""
    async with AsyncExitStack() as stack:

        async def start(server: EmbeddedServer) -> EmbeddedServer:
            await asyncio.to_thread(server.start)
            stack.push_async_callback(asyncio.to_thread, server.stop)
            return server

        pair = [
            await start(EmbeddedServer(external=False, binary=valkey(), repl_diskless_sync_delay=0))
            for _ in range(2)
        ]
        master, replica = pair
        await asyncio.to_thread(replica.command, "REPLICAOF", HOST, master.port)
        lines = [
            f"monitor {NAME} {HOST} {master.port} 2",
            f"down-after-milliseconds {NAME} 2000",
            f"failover-timeout {NAME} 2000",
        ]
        sentinels = [
            await start(EmbeddedServer(external=False, binary=valkey(), sentinel=lines))
            for _ in range(SENTINELS)
        ]
        for sentinel in sentinels:
            await asyncio.to_thread(sentinel.command, "SENTINEL", "DEBUG", *PERIODS)
        hosts = [
            {"sentinels": [[HOST, sentinel.port] for sentinel in sentinels], "master_name": NAME},
        ]
        world = World(random.Random(), [*pair, *sentinels], list(hosts))
        await asyncio.to_thread(_await_agreement, world)
        yield world


def _sentinels(world: World) -> list[EmbeddedServer]:
    return world.servers[2:]


def _named(sentinel: EmbeddedServer) -> dict[bytes, bytes]:
    """What a Sentinel says of the master."""
    words = sentinel.command("SENTINEL", "MASTER", NAME)
    return dict(zip(words[::2], words[1::2], strict=True))


def _knows_all(sentinel: EmbeddedServer, master: EmbeddedServer) -> bool:
    """Whether a Sentinel sees this master well, with its replica, and the other Sentinels."""
    said = _named(sentinel)
    return (
        int(said[b"port"]) == master.port
        and said[b"flags"] == b"master"
        and int(said[b"num-slaves"]) == 1
        and int(said[b"num-other-sentinels"]) == SENTINELS - 1
        and _has_good_replica(sentinel)
    )


def _has_good_replica(sentinel: EmbeddedServer) -> bool:
    [words] = sentinel.command("SENTINEL", "REPLICAS", NAME)
    said = dict(zip(words[::2], words[1::2], strict=True))
    return (said[b"flags"], said[b"master-link-status"]) == (b"slave", b"ok")


def _wait_for(question: Callable[[], bool], what: str) -> None:
    """Wait for an answer yes; the Sentinels cut connections when they tell a server its role."""

    def is_so() -> bool:
        try:
            return question()
        except OSError:
            return False

    wait_for(is_so, what, PATIENCE)


def _await_agreement(world: World) -> None:
    """
    Return when one server is the master, the other is linked to it, and all Sentinels see both.

    On a machine that stands still for two seconds, the Sentinels take the master for dead and promote the other
    one: a change that no fault has made. The order of the servers follows.
    """

    def is_so() -> bool:
        first, second = world.servers[:2]
        for master, replica in ((first, second), (second, first)):
            if b"master_link_status:up" in replica.command("INFO", "replication") and all(
                _knows_all(sentinel, master) for sentinel in _sentinels(world)
            ):
                world.changes += master is not first
                world.servers[:2] = master, replica
                return True
        return False

    _wait_for(is_so, "the Sentinels agree")


def _await_promotion(world: World) -> None:
    """Return when the replica is the master, and all Sentinels say so; the order of the servers follows."""
    replica = world.servers[1]
    _wait_for(
        lambda: (
            b"role:master" in replica.command("INFO", "replication")
            and all(int(_named(sentinel)[b"port"]) == replica.port for sentinel in _sentinels(world))
        ),
        "the replica is promoted",
    )
    world.repairs.append(monotonic())
    world.servers[:2] = reversed(world.servers[:2])


def _follow(world: World) -> None:
    """Have the old master follow the new one; the Sentinels would do that too, some seconds later."""
    master, old = world.servers[:2]
    old.command("REPLICAOF", HOST, master.port)
    _await_agreement(world)


async def failover(world: World) -> None:
    """SENTINEL FAILOVER: the replica is promoted although the master lives, and may lack its last messages."""

    def change() -> None:
        sentinel = world.rng.choice(_sentinels(world))
        while True:
            try:
                sentinel.command("SENTINEL", "FAILOVER", NAME)
                break
            except EmbeddedServerError as error:
                # It sees the replica too late, or the last failover has not ended yet.
                if "NOGOODSLAVE" not in str(error) and "INPROG" not in str(error):
                    raise
        _await_promotion(world)
        _await_agreement(world)

    world.changes += 1
    await asyncio.to_thread(change)


async def kill(world: World) -> None:
    """kill -9 of the master; it comes back without data and follows the new one."""

    def die_and_come_back() -> None:
        old = world.server
        old.kill()
        _await_promotion(world)
        old.restart()
        _follow(world)

    world.changes += 1
    await asyncio.to_thread(die_and_come_back)


async def freeze(world: World) -> None:
    """SIGSTOP of the master until the replica has taken its place."""

    def hang() -> None:
        old = world.server
        old.pause()
        try:
            _await_promotion(world)
        finally:
            old.resume()
        _follow(world)

    world.changes += 1
    await asyncio.to_thread(hang)


SCENARIOS: Final = tuple(
    Scenario(
        f"sentinel_{fault.__name__}",
        fault,
        (0.3, 0.9),
        place=watched,
        least=6.0,
        # The Sentinels need two seconds to see that the master is away, and longer to vote.
        config={"send_timeout": 20.0},
        may_tell=CHANGED,
        keeps_jobs=False,
    )
    for fault in (failover, kill, freeze)
)
