"""
What a WebSocket frame to each of the 500 clients in a room costs a server: `python -m benchmarks.websockets`.

One process serves, one has the clients and sends, one message after the other. Fresh processes for each
round, and the sides take turns. What is counted is the CPU time of all threads of the serving process; a
round in which a frame was lost has no figure.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from channels_asyncq.testing import EmbeddedServer

from .layers import CONTENDERS
from .runner import ROOT
from .scenario import CHAT_MESSAGE
from .sockets.clients import Clients

WARM_UP = 5
PATIENCE = 20.0
START_TIMEOUT = 30.0
SERVERS = ("uvicorn", "daphne")


@dataclass(frozen=True, slots=True)
class Side:
    """What is measured: a kind of application over a layer; `frames` are sent as `websocket.send`."""

    name: str
    consumer: str
    layer: str
    frames: bool = False


SIDES = (
    Side("bare ASGI application", "bare", "asyncq"),
    Side("our consumer, websocket.send", "own", "asyncq", frames=True),
    Side("our consumer", "own", "asyncq"),
    Side("Channels' consumer", "stock", "asyncq"),
    Side("Channels' consumer, channels_redis.pubsub", "stock", "redis.pubsub"),
)


@dataclass(slots=True)
class Result:
    """All rounds of one side under one server: microseconds per frame, and frames lost."""

    side: Side
    figures: list[float] = field(default_factory=list)
    lost: int = 0

    @property
    def median(self) -> float | None:
        return statistics.median(self.figures) if self.figures else None


def cpu_seconds(pid: int) -> float:
    """CPU time of a process that is alive, over all its threads."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def measure(
    side: Side, server: str, redis: EmbeddedServer, members: int, sends: int, prefix: str
) -> tuple[float, int]:
    """Play one round: microseconds of CPU time per frame, and how many frames were lost."""
    contender = CONTENDERS[side.layer]
    config = {"hosts": [redis.url], "prefix": prefix}
    port = free_port()
    order = {
        "server": server,
        "consumer": side.consumer,
        "backend": contender.backend,
        "config": {**config, **contender.settings},
        "host": "127.0.0.1",
        "port": port,
    }
    message: Mapping[str, Any] = CHAT_MESSAGE
    if side.frames:
        text = json.dumps({key: value for key, value in CHAT_MESSAGE.items() if key != "type"})
        message = {"type": "websocket.send", "text": text}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.sockets.site",
        cwd=ROOT,
        env={**environment, "BENCHMARK_SOCKETS": json.dumps(order)},
        stdout=subprocess.DEVNULL,
    )
    layer = contender.make(config)
    clients = Clients("127.0.0.1", port)
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                await asyncio.to_thread(clients.connect, 1)
                break
            except ConnectionRefusedError:
                if process.returncode is not None or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
        await asyncio.to_thread(clients.connect, members - 1)
        await layer.group_send("room", dict(message))
        # The size of a frame is not known before one has come, and with many clients that takes a while.
        await asyncio.to_thread(clients.read, sum(clients.received) + 1, PATIENCE)
        await asyncio.to_thread(clients.read, 1 << 62, 1.0)
        size = max(clients.received)
        for _ in range(WARM_UP):
            before = sum(clients.received)
            await layer.group_send("room", dict(message))
            await asyncio.to_thread(clients.read, before + size * members, PATIENCE)
        before = sum(clients.received)
        cpu = cpu_seconds(process.pid)
        for number in range(1, sends + 1):
            await layer.group_send("room", dict(message))
            expected = before + number * size * members
            if await asyncio.to_thread(clients.read, expected, PATIENCE) < expected:
                break
        cpu = cpu_seconds(process.pid) - cpu
        frames = (sum(clients.received) - before) // max(1, size)
        return 1e6 * cpu / max(1, frames), sends * members - frames
    finally:
        clients.close()
        process.kill()
        await process.wait()
        close = getattr(layer, "close", None)
        if close is not None:
            await close()


async def run(arguments: argparse.Namespace, console: Console) -> None:
    figures: dict[str, Any] = {}
    with EmbeddedServer(external=False) as redis:
        for server in arguments.servers.split(","):
            results = [
                Result(side) for side in SIDES if any(word in side.name for word in arguments.only.split(","))
            ]
            for number in range(arguments.rounds):
                for result in results if number % 2 == 0 else reversed(results):
                    prefix = f"bench{server}{number}x{SIDES.index(result.side)}"
                    figure, lost = await measure(
                        result.side, server, redis, arguments.members, arguments.sends, prefix
                    )
                    result.lost += lost
                    if not lost:
                        result.figures.append(figure)
                    console.print(f"{server}: {result.side.name}: {figure:.1f} us, {lost} lost")
            console.print(table(server, results, arguments))
            figures[server] = {
                result.side.name: {"median": result.median, "figures": result.figures, "lost": result.lost}
                for result in results
            }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def table(server: str, results: Sequence[Result], arguments: argparse.Namespace) -> Table:
    """One row per side, with its ratio to the bare application and to Channels over channels_redis."""
    title = f"{server}: {arguments.members} clients, {arguments.sends} messages, {arguments.rounds} rounds"
    rows = Table(title=title, title_justify="left", title_style="bold")
    rows.add_column("side")
    for name in ("us CPU/frame", "lowest", "highest", "lost", "x bare", "times less than channels_redis"):
        rows.add_column(name, justify="right")
    medians = {result.side: result.median for result in results}
    least, most = medians.get(SIDES[0]), medians.get(SIDES[-1])
    for result in results:
        median = result.median
        rows.add_row(
            result.side.name,
            *(f"{x:.1f}" for x in (median, min(result.figures), max(result.figures)) if x is not None)
            if result.figures
            else ("-", "-", "-"),
            str(result.lost),
            f"{median / least:.2f}" if median and least else "-",
            f"{most / median:.2f}" if median and most else "-",
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    command = argparse.ArgumentParser(prog="python -m benchmarks.websockets", description=__doc__)
    command.add_argument("--rounds", type=int, default=5, help="rounds per side (default: %(default)s)")
    command.add_argument("--members", type=int, default=500, help="clients (default: %(default)s)")
    command.add_argument("--sends", type=int, default=100, help="messages (default: %(default)s)")
    command.add_argument("--servers", default=",".join(SERVERS), help="default: %(default)s")
    command.add_argument("--only", default="", metavar="WORDS", help="sides whose name contains one of them")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    asyncio.run(run(command.parse_args(argv), Console()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
