"""
What a room of 500 clients costs a server: `python -m benchmarks.websockets`.

This layer under each ASGI server, Channels with channels_redis, `ws` and Socket.IO under Node, the bare loop of
each server, and a queue and a task for each client without a layer. A fresh server for each round, and the sides
take turns. What is counted is the CPU time of all threads and workers of the server, and its memory; one other
process has the clients and sends, one message after the other. A figure for which a message was lost is left out.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from rich.console import Console

from channels_asyncq.testing import EmbeddedServer

from .node import install_packages
from .runner import BenchmarkError
from .sockets import pages, profile_pages
from .sockets.profiling import profiles
from .sockets.results import CONNECTS, DELIVERIES, MEMORY, Result
from .sockets.rounds import SIZES, play
from .sockets.servers import NODE
from .sockets.sides import Side, chosen_sides

#: Clients, messages and rounds of a quick look at whether all sides still run.
CHECK = {"clients": 10, "messages": 3, "rounds": 1}


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(prog="python -m benchmarks.websockets", description=__doc__)
    add = command.add_argument
    add("--rounds", type=int, default=5, help="rounds for each side (default: %(default)s)")
    add("--clients", type=int, default=500, help="clients in the room (default: %(default)s)")
    add("--messages", type=int, default=20, help="messages of each kind (default: %(default)s)")
    add(
        "--rows",
        default="",
        metavar="PATTERN",
        help="sides whose name has this regular expression; --list has all",
    )
    add("--list", action="store_true", help="list the sides and end")
    add("--check", action="store_true", help="a quick round of each side: exit with 1 if one fails")
    add(
        "--profile",
        action="store_true",
        help="where the CPU time under uvicorn goes, in place of rounds",
    )
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--docs", type=Path, metavar="FOLDER", help="write tables, plot and figures there")
    return command


async def able_sides(sides: Sequence[Side], console: Console) -> tuple[list[Side], dict[str, str]]:
    """Those that can take part, and why the others cannot."""
    left_out = {side.name: why for side in sides if (why := side.obstacle()) is not None}
    if any(side.is_node and side.name not in left_out for side in sides):
        try:
            await install_packages(NODE)
        except BenchmarkError as error:
            console.print(str(error), markup=False)
            left_out |= {side.name: "npm could not install its packages" for side in sides if side.is_node}
    for name, why in left_out.items():
        console.print(f"{name} is left out: {why}", markup=False, highlight=False)
    return [side for side in sides if side.name not in left_out], left_out


async def measure(
    sides: Sequence[Side], rounds: int, clients: int, messages: int, console: Console
) -> list[Result]:
    """Play all rounds in turn."""
    results = [Result(side) for side in sides]
    with EmbeddedServer(external=False) as redis:
        for number in range(rounds):
            for result in results if number % 2 == 0 else reversed(results):
                prefix = f"sockets{number}x{results.index(result)}"
                try:
                    found = await play(result.side, redis, prefix, clients, messages)
                except BenchmarkError as error:
                    result.errors.append(str(error))
                    console.print(f"{result.side.name} failed: {error}", markup=False)
                    continue
                result.rounds.append(found)
                figures = "  ".join(
                    f"{name}: {found.figures[name]:.1f}"
                    for name in (*DELIVERIES, *CONNECTS, *MEMORY)
                    if name in found.figures
                )
                console.print(f"{result.side.name}: {figures}  lost: {found.lost}", highlight=False)
    return results


async def compare(arguments: argparse.Namespace, console: Console) -> int:
    """Measure the sides, and write what was found."""
    size = {name: getattr(arguments, name) for name in CHECK} if not arguments.check else CHECK
    clients, messages = size["clients"], size["messages"]
    sides, left_out = await able_sides(chosen_sides(arguments.rows), console)
    results = await measure(sides, size["rounds"], clients, messages, console)
    for table in pages.tables(results):
        console.print(table)
    text = json.dumps(pages.as_json(results, left_out, clients, messages), indent=1) + "\n"
    if arguments.json is not None:
        arguments.json.write_text(text)
    if arguments.docs is not None:
        # Imported here, because it takes a while, and is not needed to measure.
        from .plots import pairs

        arguments.docs.mkdir(parents=True, exist_ok=True)
        arguments.docs.joinpath("websockets.json").write_text(text)
        conditions = pages.conditions(size["rounds"], clients, messages, arguments.rows)
        arguments.docs.joinpath("websockets.md").write_text(pages.page(results, left_out, conditions))
        small = min(SIZES, key=lambda name: SIZES[name])
        pairs(
            f"us of CPU time for a message of {small} to one of {clients} clients, less is better",
            {
                way: [(each.side.name, each.median(f"{way}, {small}")) for each in results]
                for way in ("frame", "handler")
            },
            arguments.docs / "websockets.svg",
        )
    return 0 if all(result.is_complete for result in results) or not arguments.check else 1


async def look(arguments: argparse.Namespace, console: Console) -> int:
    """Profile, and write what was found."""
    clients, messages = arguments.clients, arguments.messages
    with EmbeddedServer(external=False) as redis:
        found = await profiles(redis, clients, messages)
    conditions = (
        f"`python -m benchmarks.websockets --profile --clients {clients} --messages {messages}` "
        f"on {date.today()}. {clients} clients in a room, messages of 100 B, uvicorn without compression on "
        f"asyncio's own loop.\n\n{pages.machine()}."
    )
    text = profile_pages.page(found, conditions)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if arguments.docs is not None:
        arguments.docs.mkdir(parents=True, exist_ok=True)
        arguments.docs.joinpath("websockets-profile.md").write_text(text)
    return 0


async def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run until it is done, or told to stop: then all servers end, and the status is that of the signal."""
    task = asyncio.current_task()
    assert task is not None
    is_told = False

    def stop() -> None:
        nonlocal is_told
        is_told = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    try:
        return await (look if arguments.profile else compare)(arguments, console)
    except asyncio.CancelledError:
        if not is_told:
            raise
        return 128 + signal.SIGTERM
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1


def main(argv: Sequence[str] | None = None) -> int:
    command = parser()
    arguments = command.parse_args(argv)
    if arguments.list:
        for side in chosen_sides(arguments.rows):
            print(side.name)
        return 0
    for name in CHECK:
        if getattr(arguments, name) < 1:
            command.error(f"--{name} {getattr(arguments, name)}: at least one is needed")
    try:
        return asyncio.run(run(arguments, Console(width=160)))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
