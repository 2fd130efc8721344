"""`python -m benchmarks.recovery`: what it takes until processes that were away have what they missed."""

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.testing import EmbeddedServer

from .runner import ROOT, BenchmarkError
from .scenario import CHAT_MESSAGE

LONGEST_ROUND = 100.0
TICK = 0.005
# No log is trimmed by number: with few groups in many partitions, some partitions have several of them.
MESSAGES = 40_000


class Used(NamedTuple):
    """What servers have used since they were started: seconds of CPU, and bytes that they have sent."""

    cpu: float
    sent: float


class Round(NamedTuple):
    """One round: seconds and seconds of CPU, megabytes, and messages and notices of all readers."""

    seconds: float
    cpu: float
    sent: float
    reader_cpu: float
    received: int
    told: int


class Servers:
    """One server, or the primaries of a cluster."""

    def __init__(self, stack: ExitStack, *, is_cluster: bool) -> None:
        self.nodes: Sequence[EmbeddedServer]
        if is_cluster:
            # Imported here: it is no part of what is measured otherwise.
            from tests.clusters import Cluster

            cluster = stack.enter_context(Cluster(primaries=3, replicas=0))
            self.nodes, self.url = cluster.nodes, cluster.url
        else:
            server = stack.enter_context(EmbeddedServer(external=False))
            self.nodes, self.url = [server], server.url

    def clients(self) -> set[tuple[int, str]]:
        """Return the connections: the index of the server, and the number that it gave."""
        found = set()
        for index, node in enumerate(self.nodes):
            for line in _text(node.command("CLIENT", "LIST")).splitlines():
                found.add((index, line.split()[0].removeprefix("id=")))
        return found

    def cut(self, clients: set[tuple[int, str]]) -> None:
        """End these connections."""
        for index, number in clients:
            self.nodes[index].command("CLIENT", "KILL", "ID", number)

    def used(self) -> Used:
        cpu = sent = 0.0
        for node in self.nodes:
            figures = _fields(node.command("INFO", "cpu")) | _fields(node.command("INFO", "stats"))
            cpu += float(figures["used_cpu_user"]) + float(figures["used_cpu_sys"])
            sent += float(figures["total_net_output_bytes"])
        return Used(cpu, sent)


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def _fields(info: Any) -> dict[str, str]:
    return dict(line.split(":", 1) for line in _text(info).splitlines() if ":" in line)


def make_layer(url: str, **config: Any) -> AsyncQueueChannelLayer:
    return AsyncQueueChannelLayer(hosts=[url], prefix="bench", recovery={"messages": MESSAGES}, **config)


class Reader:
    """A process that reads groups. It is stopped by a signal, so it notices nothing before it goes on."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, url: str, groups: Sequence[str]) -> "Reader":
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __spec__.name if __spec__ is not None else "benchmarks.recovery",
            "--read",
            json.dumps({"url": url, "groups": list(groups)}),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        reader = cls(process)
        await reader.hear()
        return reader

    async def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(LONGEST_ROUND):
            line = await self._process.stdout.readline()
        if not line:
            raise BenchmarkError("a reader has ended")
        news: dict[str, Any] = json.loads(line)
        return news

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        if self._process.returncode is None:
            self.go_on()
            self._process.kill()
        await self._process.wait()


async def read(order: dict[str, Any]) -> None:
    """Be a reader: join the groups, read until the last message of each, and print what was received."""
    layer = make_layer(order["url"], capacity=10**6, on_loss="loss")
    received = told = 0
    have_all = asyncio.Event()
    behind = set(order["groups"])

    async def follow(group: str, channel: str) -> None:
        nonlocal received, told
        while True:
            message = await layer.receive(channel)
            if message["type"] == "last":
                behind.discard(group)
                if not behind:
                    have_all.set()
            elif message["type"] == "loss":
                told += 1
            else:
                received += 1

    channels = [await layer.new_channel() for _ in order["groups"]]
    for group, channel in zip(order["groups"], channels, strict=True):
        await layer.group_add(group, channel)
    tasks = [
        asyncio.create_task(follow(group, channel))
        for group, channel in zip(order["groups"], channels, strict=True)
    ]
    # The first checkpoint after the groups were joined gives the positions.
    await layer.health()
    print(json.dumps({"cpu": time.process_time()}), flush=True)
    before = time.process_time()
    await have_all.wait()
    news = {"at": time.monotonic(), "cpu": time.process_time() - before, "received": received, "told": told}
    print(json.dumps(news), flush=True)
    await asyncio.gather(*tasks)


async def play(servers: Servers, arguments: argparse.Namespace) -> Round:
    """Stop the readers, send, let them go on, and measure until they have everything."""
    wanted = [f"wanted-{number}" for number in range(arguments.groups)]
    others = [f"other-{number}" for number in range(arguments.others)]
    for node in servers.nodes:
        node.command("FLUSHALL")
    layer = make_layer(servers.url)
    readers: list[Reader] = []
    try:
        await layer.group_send(wanted[0], {"type": "first"})
        before = await asyncio.to_thread(servers.clients)
        readers += [await Reader.start(servers.url, wanted) for _ in range(arguments.readers)]
        theirs = await asyncio.to_thread(servers.clients) - before
        for reader in readers:
            reader.stop()
        await asyncio.to_thread(servers.cut, theirs)
        sent = await send(layer, wanted, others, arguments)
        used, began = await asyncio.to_thread(servers.used), time.monotonic()
        for reader in readers:
            reader.go_on()
        again = asyncio.create_task(send_last_again(layer, wanted))
        news = await asyncio.gather(*(reader.hear() for reader in readers))
        again.cancel()
        after = await asyncio.to_thread(servers.used)
    finally:
        for reader in readers:
            await reader.end()
        await layer.close()
    told = sum(each["told"] for each in news)
    received = sum(each["received"] for each in news)
    if not told and received != sent * len(readers):
        raise BenchmarkError(f"{received} of {sent * len(readers)} messages arrived, and nothing was told")
    return Round(
        max(each["at"] for each in news) - began,
        after.cpu - used.cpu,
        (after.sent - used.sent) / 1e6,
        sum(each["cpu"] for each in news) / len(news),
        received,
        told,
    )


async def send(
    layer: AsyncQueueChannelLayer, wanted: Sequence[str], others: Sequence[str], arguments: argparse.Namespace
) -> int:
    """Send to all groups, at random, at the rate; return how many messages the wanted ones got."""
    chance = random.Random(1)
    groups, is_wanted = [*wanted, *others], set(wanted)
    sent, each = 0, round(arguments.rate * TICK)
    began = time.monotonic()
    for tick in range(round(arguments.seconds / TICK)):
        chosen = chance.sample(groups, min(each, len(groups)))
        await asyncio.gather(*(layer.group_send(group, dict(CHAT_MESSAGE)) for group in chosen))
        sent += len(is_wanted.intersection(chosen))
        await asyncio.sleep(max(0.0, began + (tick + 1) * TICK - time.monotonic()))
    await send_last(layer, wanted)
    return sent


async def send_last(layer: AsyncQueueChannelLayer, wanted: Sequence[str]) -> None:
    await asyncio.gather(*(layer.group_send(group, {"type": "last"}) for group in wanted))


async def send_last_again(layer: AsyncQueueChannelLayer, wanted: Sequence[str]) -> None:
    """For readers that leave out the end of a log: they have everything that they will ever have."""
    while True:
        await asyncio.sleep(1)
        await send_last(layer, wanted)


async def measure(arguments: argparse.Namespace) -> list[Round]:
    with ExitStack() as stack:
        servers = Servers(stack, is_cluster=arguments.cluster)
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(await play(servers, arguments))
            print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
        return rounds


def main() -> int:
    command = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    command.add_argument("--read", help=argparse.SUPPRESS)
    command.add_argument(
        "--groups", type=int, default=50, help="groups of each reader (default: %(default)s)"
    )
    command.add_argument("--others", type=int, default=0, help="groups of nobody (default: %(default)s)")
    command.add_argument("--readers", type=int, default=1, help="processes (default: %(default)s)")
    command.add_argument("--rate", type=int, default=10_000, help="messages a second (default: %(default)s)")
    command.add_argument("--seconds", type=float, default=5.0, help="how long away (default: %(default)s)")
    command.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    command.add_argument("--cluster", action="store_true", help="three primaries in place of one server")
    arguments = command.parse_args()
    if arguments.read:
        asyncio.run(read(json.loads(arguments.read)))
        return 0
    rounds = asyncio.run(measure(arguments))
    for name in Round._fields:
        values = [float(getattr(each, name)) for each in rounds]
        print(f"{name:12} {statistics.median(values):12,.3f} ({min(values):,.3f} to {max(values):,.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
