"""`python -m benchmarks.growth`: the cost of a message as the rest grows, as plots and figures."""

import argparse
import asyncio
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from channels_asyncq.testing import EmbeddedServer

from .layers import CONTENDERS, OURS, THEIRS
from .runner import BenchmarkError, Round
from .scenarios.growth import Growth

SIZES: Mapping[str, tuple[int, ...]] = {
    "channels": (10, 100, 1000, 10_000, 100_000),
    "groups": (10, 100, 1000, 10_000, 100_000),
    "members": (1, 10, 100, 1000, 10_000),
    "processes": (1, 2, 4, 8, 16),
    "bytes": (100, 1000, 10_000, 100_000, 1_000_000),
}
ACROSS: Mapping[str, tuple[str, str]] = {
    "channels": ("other channels in the process", "us of CPU, a message sent and received"),
    "groups": ("other groups in the process", "us of CPU, a message sent and received"),
    "members": ("members of the group, in the process", "us of CPU, one member's copy"),
    "processes": ("processes with a member", "us of CPU of the sender, a message"),
    "bytes": ("characters of text in the message", "us of CPU, a message sent and received"),
}
Points = dict[str, dict[str, list[tuple[float, float]]]]


async def measure(rounds: int, console: Console) -> Points:
    """Return the medians: by what grows, by layer, as (size, microseconds)."""
    points: Points = {kind: {OURS: [], THEIRS: []} for kind in SIZES}
    with (
        EmbeddedServer(external=False, client_output_buffer_limit="pubsub 0 0 0") as server,
        Progress(console=console) as progress,
    ):
        for kind, sizes in SIZES.items():
            task = progress.add_task(kind, total=2 * rounds * len(sizes))
            for size in sizes:
                costs: defaultdict[str, list[float]] = defaultdict(list)
                for _ in range(rounds):
                    for layer in (OURS, THEIRS):
                        try:
                            played = await Round(server, Growth(kind, size), CONTENDERS[layer]).play()
                            costs[layer].append(played.figure)
                        except BenchmarkError as error:
                            console.print(f"{layer}, {size} {kind}: {error}", markup=False)
                        progress.advance(task)
                for layer, found in costs.items():
                    points[kind][layer].append((size, statistics.median(found)))
    return points


def main() -> int:
    command = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    command.add_argument("--rounds", type=int, default=3, help="rounds per point (default: %(default)s)")
    command.add_argument("--docs", type=Path, metavar="FOLDER", help="write plots and figures there")
    arguments = command.parse_args()
    console = Console()
    points = asyncio.run(measure(arguments.rounds, console))
    for kind, layers in points.items():
        for layer, line in layers.items():
            figures = "  ".join(f"{size:,.0f}: {cost:.1f}" for size, cost in line)
            console.print(f"{kind:10} {layer:14} {figures}", highlight=False)
    if arguments.docs is not None:
        from .plots import curves

        arguments.docs.mkdir(parents=True, exist_ok=True)
        arguments.docs.joinpath("growth.json").write_text(json.dumps(points, indent=1) + "\n")
        for kind, layers in points.items():
            across, up = ACROSS[kind]
            curves(f"What a message costs: {kind}", across, up, layers, arguments.docs / f"growth-{kind}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
