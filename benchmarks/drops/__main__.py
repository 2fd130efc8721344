"""The command: `python -m benchmarks.drops`."""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from ..asgi import COMMANDS
from ..node import has_node, install_packages
from ..runner import BenchmarkError
from .cluster_faults import CLUSTER_FAULTS
from .faults import FAULTS
from .report import as_json, heading, missed, table
from .runs import Outcome, Plan, cuts, cuts_plan, drops, held, herd
from .sides import NODE, SIDES, Side

COMPARED = ("sse", "websocket", "sse-control", "channels_redis", "socketio")

Run = Callable[[Side, Path], Awaitable[Outcome]]


def spread(text: str) -> tuple[float, float]:
    """Read MIN,MAX."""
    least, most = (float(part) for part in text.split(","))
    return least, most


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.drops",
        description="Cut off clients and count what they miss: see docs/drops.md.",
    )
    add = command.add_argument
    add("--clients", type=int, help="300 by default, 2000 with --herd, 1000 with --open")
    add("--rooms", type=int, default=10, help="a client is in one of them (default: %(default)s)")
    add("--rate", type=float, default=10.0, help="messages per second to each room (default: %(default)s)")
    add(
        "--seconds",
        type=float,
        help="of publishing: 60 by default; 5 with --herd (before the kill) and --open",
    )
    add(
        "--stay",
        type=spread,
        default="10,16",
        metavar="MIN,MAX",
        help="seconds to a cut (default: %(default)s)",
    )
    add("--away", type=float, default=2.0, help="seconds until a client is back (default: %(default)s)")
    add("--kind", choices=("sse", "websocket", "both"), default="both", help="default: %(default)s")
    add("--sides", metavar="NAMES", help=f"in place of --kind, with commas: {', '.join(SIDES)}")
    add("--compare", action="store_true", help=f"the sides {', '.join(COMPARED)} in turn")
    add("--server", choices=tuple(COMMANDS), default="uvicorn", help="default: %(default)s")
    add(
        "--faults",
        nargs="?",
        const="all",
        default="",
        metavar="KINDS",
        help=f"faults in turn, with commas; without a value all: {', '.join(FAULTS)}; with --cluster "
        f"{', '.join(CLUSTER_FAULTS)}",
    )
    add(
        "--every",
        type=spread,
        default="3,6",
        metavar="MIN,MAX",
        help="seconds to a fault (default: %(default)s)",
    )
    add(
        "--drain",
        type=float,
        default=5.0,
        help="seconds in which the clients of a server leave that is restarted (default: %(default)s)",
    )
    add("--cluster", action="store_true", help="on a Redis Cluster: three primaries with a replica each")
    add("--herd", action="store_true", help="all come back at once to a fresh process")
    add("--cuts", type=int, metavar="N", help="N cuts at random bytes of each side's streams")
    add("--open", action="store_true", help="streams stay open: what a server holds for each")
    add("--seed", type=int, default=1, help="of all that is random (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--keep", type=Path, metavar="FOLDER", help="keep the output of the servers there")
    add("--check", action="store_true", help="exit with 1 when a goal is missed")
    return command


def chosen_sides(arguments: argparse.Namespace) -> list[Side]:
    """The sides of the options; Socket.IO only where node is."""
    names: Sequence[str]
    if arguments.sides:
        names = arguments.sides.split(",")
    elif arguments.compare:
        names = COMPARED if has_node() else [name for name in COMPARED if name != "socketio"]
    else:
        names = ("sse", "websocket") if arguments.kind == "both" else (arguments.kind,)
    return [SIDES[name] for name in names]


def chosen_faults(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The faults of the options, in turn."""
    if arguments.faults == "all":
        return tuple(CLUSTER_FAULTS if arguments.cluster else FAULTS)
    return tuple(kind for kind in arguments.faults.split(",") if kind)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The size of the runs."""
    is_alone = arguments.herd or arguments.open
    clients = arguments.clients or (2000 if arguments.herd else 1000 if arguments.open else 300)
    seconds = arguments.seconds or (5.0 if is_alone else 60.0)
    return Plan(
        clients,
        arguments.rooms,
        arguments.rate,
        seconds,
        stay=arguments.stay,
        away=arguments.away,
        servers=1 if is_alone else 2,
        server=arguments.server,
        faults=chosen_faults(arguments),
        every=arguments.every,
        seed=arguments.seed,
        is_cluster=arguments.cluster,
        drain=arguments.drain,
    )


def chosen_run(arguments: argparse.Namespace) -> Callable[[Side, Path], Awaitable[Outcome]]:
    """What is done with each side."""
    plan = plan_of(arguments)
    if arguments.cuts:
        return partial(cuts, arguments.cuts, cuts_plan(plan))
    play = herd if arguments.herd else held if arguments.open else drops
    return partial(play, plan)


async def run(arguments: argparse.Namespace, console: Console, folder: Path) -> int:
    sides, play = chosen_sides(arguments), chosen_run(arguments)
    if any(side.kind == "socketio" for side in sides):
        await install_packages(NODE)
    elif arguments.compare:
        console.print("Socket.IO is left out: there is no node and npm on PATH.")
    outcomes: list[Outcome] = []
    for side in sides:
        with console.status(f"{side.name} ..."):
            outcome = await play(side, folder)
        outcomes.append(outcome)
        console.print(heading(outcome), style="bold", highlight=False)
        console.print(table([outcome]))
        for text in missed(outcome):
            console.print(f"{side.name}: MISSED: {text}", markup=False)
    if len(outcomes) > 1:
        console.print(table(outcomes))
    if arguments.json is not None:
        text = json.dumps([as_json(outcome) for outcome in outcomes], indent=2)
        arguments.json.write_text(text + "\n")
    return 1 if arguments.check and any(missed(outcome) for outcome in outcomes) else 0


def main(argv: Sequence[str] | None = None) -> int:
    command = parser()
    arguments = command.parse_args(argv)
    for name in arguments.sides.split(",") if arguments.sides else ():
        if name not in SIDES:
            command.error(f"no side {name!r}; there are: {', '.join(SIDES)}")
    kinds = tuple(CLUSTER_FAULTS if arguments.cluster else FAULTS)
    for kind in chosen_faults(arguments):
        if kind not in kinds:
            command.error(f"no fault {kind!r}; there are: {', '.join(kinds)}")
    if arguments.cluster and arguments.herd:
        command.error("--herd counts the scripts of one server; leave out --cluster")
    if arguments.cluster and any(not side.is_ours for side in chosen_sides(arguments)):
        command.error("--cluster is for the sides of this layer; choose them with --sides or --kind")
    console = Console()
    if not console.is_terminal:
        # A table of five sides.
        console = Console(width=150)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(arguments.keep or temporary).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            return asyncio.run(run(arguments, console, folder))
    except* BenchmarkError as errors:
        # Faults are played in a task group.
        for error in errors.exceptions:
            print(error, file=sys.stderr)
    return 2


if __name__ == "__main__":
    # The processes of the clients inherit it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sys.exit(main())
