"""The command: `python -m benchmarks [SCENARIO ...]`."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from channels_asyncq.testing import EmbeddedServer

from .layers import CONTENDERS, OURS, THEIRS, Contender
from .limits import limits
from .nats import NatsServer
from .report import Comparison, as_json, page, table
from .runner import Server, compare
from .scenarios import load


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure this layer beside another, both in one run."
    )
    command.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="which ones; all by default")
    command.add_argument("--rounds", type=int, default=5, help="rounds per layer (default: %(default)s)")
    command.add_argument(
        "--layers",
        default=f"{OURS};{THEIRS}",
        help=f"the layers to compare, with ; between them, or all (default: %(default)s; there are: "
        f"{'; '.join(CONTENDERS)})",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    command.add_argument("--limits", action="store_true", help="measure also what no layer can exceed here")
    command.add_argument("--docs", type=Path, metavar="FOLDER", help="write tables, plots and figures there")
    command.add_argument("--list", action="store_true", help="list the scenarios and end")
    command.add_argument(
        "--check", action="store_true", help="exit with 1 when a goal is missed or a message of ours was lost"
    )
    return command


async def run(arguments: argparse.Namespace, console: Console) -> int:
    scenarios = load()
    default = [name for name, scenario in scenarios.items() if scenario.is_default]
    chosen = [scenarios[name] for name in arguments.scenarios or default]
    contenders = chosen_contenders(arguments.layers)
    comparisons: list[Comparison] = []
    # The watch of what is published reads late: the server must not throw it out for that.
    with (
        EmbeddedServer(external=False, client_output_buffer_limit="pubsub 0 0 0") as server,
        ExitStack() as stack,
    ):
        servers: dict[str, Server] = {"redis": server}
        if any(contender.server == "nats" for contender in contenders):
            servers["nats"] = stack.enter_context(NatsServer())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            for scenario in chosen:
                able = [each for each in contenders if each.name not in scenario.unable]
                task = progress.add_task(scenario.name, total=arguments.rounds * len(able))
                results = await compare(
                    scenario, able, arguments.rounds, servers, partial(progress.advance, task)
                )
                comparisons.append(Comparison(scenario, results))
        for comparison in comparisons:
            console.print(table(comparison))
            for result in comparison.results:
                if result.error is not None:
                    console.print(f"{result.layer}: {result.error}", markup=False)
        figures = as_json(comparisons, contenders, arguments.rounds, server, command_of(arguments))
        if arguments.limits:
            figures["limits"] = await asyncio.to_thread(limits, server)
            for name, value in figures["limits"].items():
                console.print(f"limit: {name}: {value:,.0f}/s", highlight=False)
        text = json.dumps(figures, indent=2) + "\n"
        if arguments.json is not None:
            arguments.json.write_text(text)
        if arguments.docs is not None:
            arguments.docs.mkdir(parents=True, exist_ok=True)
            arguments.docs.joinpath("results.json").write_text(text)
            arguments.docs.joinpath("results.md").write_text(page(comparisons, figures))
            # Imported here, because it takes a while, and is not needed to measure.
            from .plots import bars

            for comparison in comparisons:
                bars(comparison, arguments.docs / f"{comparison.scenario.name}.svg")
    return 1 if arguments.check and any(comparison.has_failed for comparison in comparisons) else 0


def command_of(arguments: argparse.Namespace) -> str:
    """Return the command that measures the same again."""
    parts = ["python -m benchmarks", *arguments.scenarios, f"--rounds {arguments.rounds}"]
    return " ".join([*parts, *["--limits"] * arguments.limits, f'--layers "{arguments.layers}"'])


def chosen_contenders(names: str) -> list[Contender]:
    """Those of `--layers`; of all, those that are installed."""
    if names == "all":
        return [contender for contender in CONTENDERS.values() if contender.is_installed]
    return [CONTENDERS[name] for name in names.split(";")]


def main(argv: Sequence[str] | None = None) -> int:
    command = parser()
    arguments = command.parse_args(argv)
    scenarios = load()
    if arguments.list:
        for scenario in scenarios.values():
            print(f"{scenario.name:16} {scenario.title} ({scenario.unit})")
        return 0
    for name in arguments.scenarios:
        if name not in scenarios:
            command.error(f"no scenario {name!r}; there are: {', '.join(scenarios)}")
    for name in arguments.layers.split(";"):
        if name not in CONTENDERS and arguments.layers != "all":
            command.error(f"no layer {name!r}; there are: {'; '.join(CONTENDERS)}")
    if arguments.rounds < 1:
        command.error(f"--rounds {arguments.rounds}: at least one round is needed")
    return asyncio.run(run(arguments, Console()))


if __name__ == "__main__":
    sys.exit(main())
