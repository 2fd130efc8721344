"""
What a client that floods takes from the others: `python -m benchmarks.flood`.

Clients send a frame ten times a second each, and wait for its echo. For each server and each `rate_action` there
are rounds without a client that floods, and rounds with one; they take turns, each in a fresh process. The
consumers of all are the same, with `rate = "20/s"`, or without a rate. What is counted is the time until an echo
comes, and the memory of the server.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect

from .asgi import COMMANDS, HOST, free_port
from .runner import ROOT
from .sockets.flooder import LONGEST_FRAME
from .sockets.servers import APPLICATION, ASYNCIO, START_SECONDS

SERVERS = ("uvicorn", "daphne")
ACTIONS = ("none", "wait", "drop", "close")
EVERY = 0.1
WARM_UP = 1.0


@dataclass(slots=True)
class Round:
    """The milliseconds of all echoes, the growth of the server in MiB, and what was sent by the flood, if any."""

    echoes: list[float]
    growth: float
    flood_bytes: int = 0
    flood_connections: int = 0

    def at(self, share: float) -> float:
        return sorted(self.echoes)[int(share * (len(self.echoes) - 1))]


@dataclass(slots=True)
class Result:
    """All rounds with one server and action."""

    quiet: list[Round] = field(default_factory=list)
    flooded: list[Round] = field(default_factory=list)


def mebibytes(pid: int) -> float:
    """The memory of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


async def opened(port: int, process: asyncio.subprocess.Process) -> ClientConnection:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return await connect(
                f"ws://{HOST}:{port}/ws/room/", open_timeout=START_SECONDS, ping_interval=None
            )
        except OSError:
            if process.returncode is not None or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def talk(client: ClientConnection, until: float, echoes: list[float]) -> None:
    """Send a frame now and then, and note how long its echo takes. A late one makes the next ones later."""
    await asyncio.sleep(random.uniform(0, EVERY))
    while time.monotonic() < until:
        began = time.perf_counter()
        await client.send("hello")
        await client.recv()
        took = time.perf_counter() - began
        echoes.append(1000 * took)
        await asyncio.sleep(max(0.0, EVERY - took))


async def play(server: str, action: str, floods: bool, arguments: argparse.Namespace) -> Round:
    """Play one round."""
    port = free_port()
    limits = {} if action == "none" else {"rate": "20/s", "rate_action": action}
    order = {
        "consumer": "echo",
        "limits": limits,
        "backend": "channels_asyncq.AsyncQueueChannelLayer",
        "config": {"hosts": ["memory://"]},
    }
    process = await asyncio.create_subprocess_exec(
        *COMMANDS[server](APPLICATION, port),
        *ASYNCIO[server],
        cwd=ROOT,
        env={**os.environ, "BENCHMARK_SOCKETS": json.dumps(order)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    flooder: asyncio.subprocess.Process | None = None
    clients: list[ClientConnection] = []
    try:
        while len(clients) < arguments.clients:
            clients.append(await opened(port, process))
        warming: list[float] = []
        until = time.monotonic() + WARM_UP
        await asyncio.gather(*(talk(client, until, warming) for client in clients))
        before = mebibytes(process.pid)
        if floods:
            flooder = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.sockets.flooder", HOST, str(port), str(arguments.size)),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            await asyncio.sleep(WARM_UP)
        echoes: list[float] = []
        until = time.monotonic() + arguments.seconds
        await asyncio.gather(*(talk(client, until, echoes) for client in clients))
        result = Round(echoes, mebibytes(process.pid) - before)
        if flooder is not None:
            output, _ = await flooder.communicate(b"")
            result.flood_bytes, result.flood_connections = json.loads(output)
        return result
    finally:
        for each in (flooder, process):
            if each is not None and each.returncode is None:
                each.kill()
                await each.wait()
        for client in clients:
            client.transport.abort()


def table(server: str, results: dict[str, Result], arguments: argparse.Namespace) -> Table:
    """One row per action."""
    title = (
        f"{server}: {arguments.clients} clients, frames of {arguments.size} bytes, {arguments.rounds} rounds"
    )
    rows = Table(title=title, title_justify="left", title_style="bold")
    rows.add_column("rate_action")
    for name in (
        "p50 ms",
        "p99 ms",
        "flooded: p50",
        "p99",
        "highest p99",
        "growth MiB",
        "MB/s",
        "connections",
    ):
        rows.add_column(name, justify="right")
    for action, result in results.items():
        quiet, flooded = result.quiet, result.flooded
        p99 = [each.at(0.99) for each in flooded]
        rows.add_row(
            action,
            f"{statistics.median(each.at(0.5) for each in quiet):.1f}",
            f"{statistics.median(each.at(0.99) for each in quiet):.1f}",
            f"{statistics.median(each.at(0.5) for each in flooded):.1f}",
            f"{statistics.median(p99):.1f}",
            f"{max(p99):.1f}",
            f"{max(each.growth for each in flooded):.0f}",
            f"{statistics.median(each.flood_bytes for each in flooded) / arguments.seconds / 1e6:.2f}",
            f"{statistics.median(each.flood_connections for each in flooded):.0f}",
        )
    return rows


async def run(arguments: argparse.Namespace, console: Console) -> None:
    figures: dict[str, Any] = {}
    for server in arguments.servers.split(","):
        results = {action: Result() for action in arguments.actions.split(",")}
        for _ in range(arguments.rounds):
            for action, result in results.items():
                for rounds, floods in ((result.quiet, False), (result.flooded, True)):
                    rounds.append(await play(server, action, floods, arguments))
                    found = rounds[-1]
                    console.print(
                        f"{server}, {action}, {'flooded' if floods else 'quiet'}: p50 {found.at(0.5):.1f}, "
                        f"p99 {found.at(0.99):.1f} ms, {found.growth:+.0f} MiB, {found.flood_bytes} bytes"
                    )
        console.print(table(server, results, arguments))
        figures[server] = {
            action: {
                name: [{"p50": each.at(0.5), "p99": each.at(0.99), "growth": each.growth} for each in rounds]
                for name, rounds in (("quiet", result.quiet), ("flooded", result.flooded))
            }
            for action, result in results.items()
        }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def frame_size(text: str) -> int:
    """Return the bytes of a frame. The client that floods writes headers of short frames only."""
    if not text.isdecimal() or not 1 <= int(text) <= LONGEST_FRAME:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes from 1 to {LONGEST_FRAME}")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__)
    command.add_argument("--rounds", type=int, default=5, help="rounds of each kind (default: %(default)s)")
    command.add_argument(
        "--clients", type=int, default=20, help="clients that mean no harm (default: %(default)s)"
    )
    command.add_argument("--seconds", type=float, default=10, help="of a round (default: %(default)s)")
    command.add_argument(
        "--size", type=frame_size, default=100, help="bytes of a frame, up to 125 (default: %(default)s)"
    )
    command.add_argument("--servers", default=",".join(SERVERS), help="default: %(default)s")
    command.add_argument("--actions", default=",".join(ACTIONS), help="default: %(default)s")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    asyncio.run(run(command.parse_args(argv), Console(width=130)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
