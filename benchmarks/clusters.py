"""
`python -m benchmarks.clusters`: one server beside Redis Clusters of one and of three primaries, at equal load.

`--idle` measures sessions that have nothing to do in place of that.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from channels_asyncq.testing import EmbeddedServer, server_binaries
from tests.clusters import Cluster

from .layers import CONTENDERS, OURS
from .runner import Round
from .scenario import Measurement
from .scenarios.cluster import ClusterLoad, IdleSessions

ONE, ALONE, THREE, REPLICATED = "one server", "1 primary", "3 primaries", "3 primaries, replicas"
PLACES = (ONE, ALONE, THREE, REPLICATED)
#: The numbers of sessions that are measured, and the one that follows from them.
SESSIONS = (0, 1, 20)
MANY = 200
PARTITIONS = 64


class Place:
    """Servers of one kind, and how much CPU time they have used."""

    def __init__(self, name: str, server: EmbeddedServer | Cluster, nodes: Sequence[EmbeddedServer]) -> None:
        self.name = name
        self.server: Any = server
        self.nodes = nodes

    async def cpu(self) -> Sequence[float]:
        """CPU seconds of each server until now, by INFO."""
        return await asyncio.to_thread(lambda: [cpu_of(node) for node in self.nodes])


def cpu_of(server: EmbeddedServer) -> float:
    """Return the CPU seconds of a server, in the kernel and outside, all its threads together."""
    fields = dict(
        line.split(":") for line in server.command("INFO", "cpu").decode().splitlines() if ":" in line
    )
    return float(fields["used_cpu_sys"]) + float(fields["used_cpu_user"])


def start(name: str, binary: str, stack: ExitStack) -> Place:
    """Start the servers of a place; they end with the stack."""
    if name == ONE:
        server = stack.enter_context(EmbeddedServer(external=False, binary=binary))
        return Place(name, server, [server])
    # It is not what a busy machine does to a failover that is measured.
    cluster = Cluster(
        1 if name == ALONE else 3, 1 if name == REPLICATED else 0, binary=binary, node_timeout=15_000
    )
    stack.enter_context(cluster)
    return Place(name, cluster, cluster.nodes)


async def load_of(place: Place, arguments: argparse.Namespace) -> Measurement:
    scenario = ClusterLoad(place.cpu, arguments.rate, arguments.seconds, arguments.processes)
    return await Round(place.server, scenario, CONTENDERS[OURS]).play()


async def idle_of(place: Place, sessions: int, arguments: argparse.Namespace) -> Measurement:
    config = {"hosts": [place.server.url], "partitions": PARTITIONS}
    scenario = IdleSessions(place.cpu, sessions, arguments.seconds, config)
    return await Round(place.server, scenario, CONTENDERS[OURS]).play()


Rows = dict[str, list[Measurement]]
Play = Callable[[str], Awaitable[Measurement]]


async def in_turn(rows: Sequence[str], play: Play, rounds: int, console: Console) -> Rows:
    """Play each row once a round; which one begins changes with each round."""
    played: defaultdict[str, list[Measurement]] = defaultdict(list)
    with Progress(console=console) as progress:
        task = progress.add_task("rounds", total=rounds * len(rows))
        for number in range(rounds):
            for row in rows if number % 2 == 0 else reversed(rows):
                played[row].append(await play(row))
                progress.advance(task)
    return {row: played[row] for row in rows}


def median(measurements: Sequence[Measurement], name: str) -> float:
    return statistics.median(each.details[name] for each in measurements)


def load_table(rows: Rows, places: Mapping[str, Place]) -> Table:
    """The medians of each place."""
    table = Table()
    for title in (
        "",
        "CPU a message, us: all",
        "each primary",
        "replicas",
        "client",
        "sends/s",
        "deliveries/s",
        "lost",
    ):
        table.add_column(title, justify="right" if title else "left")
    for name, rounds in rows.items():
        costs = [median(rounds, f"cpu of {number}") for number in range(len(places[name].nodes))]
        primaries = costs[: 3 if len(costs) > 1 else 1]
        table.add_row(
            name,
            f"{median(rounds, 'cpu'):.1f}",
            " ".join(f"{cost:.1f}" for cost in primaries),
            f"{sum(costs[len(primaries) :]):.1f}",
            f"{median(rounds, 'client'):.1f}",
            f"{median(rounds, 'sends/s'):,.0f}",
            f"{median(rounds, 'deliveries/s'):,.0f}",
            str(sum(each.lost for each in rounds)),
        )
    return table


def idle_table(rows: Rows, names: Sequence[str]) -> Table:
    """The medians for each number of sessions, and what follows for more."""
    table = Table()
    none, *some = SESSIONS
    for title in ("CPU, ms a second", *(f"servers, {count} sessions" for count in SESSIONS)):
        table.add_column(title, justify="left" if title.startswith("CPU") else "right")
    table.add_column(f"servers, {MANY} (computed)", justify="right")
    table.add_column("one session", justify="right")
    for name in names:
        figures = {
            count: statistics.median(each.figure for each in rows[f"{name}; {count}"]) for count in SESSIONS
        }
        most = some[-1]
        many = figures[none] + (figures[most] - figures[none]) / most * MANY
        cells = [f"{figures[count]:.2f}" for count in SESSIONS]
        client = median(rows[f"{name}; {most}"], "client")
        table.add_row(name, *cells, f"{many:.1f}", f"{client:.2f}")
    return table


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(prog="python -m benchmarks.clusters", description=__doc__)
    add = command.add_argument
    add("--rounds", type=int, help="rounds for each; 5 by default, 1 with --idle")
    add("--rate", type=float, default=1000, help="messages a second, equal for all (default: %(default)s)")
    add("--seconds", type=float, help="of a round at that rate: 5 by default, 60 with --idle")
    add("--processes", type=int, default=2, help="with a member of each room (default: %(default)s)")
    add("--places", default=";".join(PLACES), help="with ; between them (default: %(default)s)")
    add("--server", metavar="PATH", help="the server to start; the newest that is installed by default")
    add("--idle", action="store_true", help=f"{SESSIONS} sessions that have nothing to do")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    return command


async def run(arguments: argparse.Namespace, console: Console) -> Rows:
    names = arguments.places.split(";")
    with ExitStack() as stack:
        places = {name: start(name, arguments.server or server_binaries()[-1], stack) for name in names}
        console.print(f"load of the machine before: {os.getloadavg()[0]:.1f}", highlight=False)
        if arguments.idle:
            rows = [f"{name}; {count}" for name in names for count in SESSIONS]

            async def play(row: str) -> Measurement:
                name, count = row.split("; ")
                return await idle_of(places[name], int(count), arguments)

            played = await in_turn(rows, play, arguments.rounds, console)
            console.print(idle_table(played, names))
        else:
            played = await in_turn(
                names, lambda name: load_of(places[name], arguments), arguments.rounds, console
            )
            console.print(load_table(played, places))
        console.print(f"load of the machine after: {os.getloadavg()[0]:.1f}", highlight=False)
    return played


def main() -> int:
    command = parser()
    arguments = command.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.idle else 5)
    arguments.seconds = arguments.seconds or (60.0 if arguments.idle else 5.0)
    for name in arguments.places.split(";"):
        if name not in PLACES:
            command.error(f"no place {name!r}; there are: {'; '.join(PLACES)}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    played = asyncio.run(run(arguments, console))
    if arguments.json is not None:
        figures = {
            row: [{"figure": each.figure, "lost": each.lost, **each.details} for each in rounds]
            for row, rounds in played.items()
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if any(each.lost for rounds in played.values() for each in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
