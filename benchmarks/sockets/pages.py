"""What was found, for people and for programs."""

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from rich.table import Table

from ..node import has_node
from ..report import installed, number
from .results import CONNECTS, DELIVERIES, MEMORY, RATIOS, Result

#: Heading, what a figure is, and the names of the figures.
TABLES: Sequence[tuple[str, str, Sequence[str]]] = (
    ("Deliveries", "Microseconds of CPU time of the server for a message to one client.", DELIVERIES),
    ("Connects", "Microseconds of CPU time of the server for a client that connects and joins.", CONNECTS),
    ("Memory", "KiB of the server for an open connection, after messages of that size.", MEMORY),
)
DISTRIBUTIONS = (
    "channels",
    "channels_redis",
    "daphne",
    "django",
    "granian",
    "gunicorn",
    "h11",
    "httptools",
    "hypercorn",
    "uvicorn",
    "uvloop",
    "websockets",
)


def _cell(result: Result, name: str) -> str:
    """The median, and the lowest and the highest."""
    figures = result.figures(name)
    if not figures:
        return ""
    return f"{number(result.median(name))} ({number(min(figures))} to {number(max(figures))})"


def _rows(results: Sequence[Result], names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A row for each side that has one of the figures."""
    for result in results:
        cells = [_cell(result, name) for name in names]
        if any(cells):
            deflate = ("yes" if result.is_deflated else "no",) if names is MEMORY else ()
            yield (result.side.application, result.side.server, *cells, *deflate)


def _headings(names: Sequence[str]) -> tuple[str, ...]:
    return ("application", "server", *names, *(("compresses",) if names is MEMORY else ()))


def _ratio_rows(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    by_name = {result.side.name: result for result in results}
    for ratio in RATIOS:
        value = ratio.value(by_name)
        if value is not None:
            goal = ratio.at_most
            verdict = () if goal is None else (f"{goal:g}", "met" if value <= goal else "missed")
            yield ratio.name, f"{value:.2f}", *(verdict or ("", ""))


RATIO_HEADINGS = ("ratio of medians", "found", "goal: at most", "")


def _carried(result: Result) -> Iterator[str]:
    """What a core and a GiB of that side carry, by the medians."""
    for name in ("frame, 100 B", "handler, 100 B", "1 group"):
        cost = result.median(name)
        yield "" if cost is None else number(1e6 / cost)
    size = result.median(MEMORY[-1])
    yield number(2**20 / size) if size is not None and size > 0 else ""


def _carried_rows(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    for result in results:
        if result.side.has_groups:
            yield result.side.application, result.side.server, *_carried(result)


CARRIED_HEADINGS = (
    "application",
    "server",
    "frames a second and core",
    "handlers' messages a second and core",
    "connects a second and core",
    "connections in a GiB",
)


def tables(results: Sequence[Result]) -> Iterator[Table]:
    """All tables for a terminal."""
    for heading, meaning, names in TABLES:
        yield _table(f"{heading}. {meaning}", _headings(names), _rows(results, names))
    yield _table("Ratios", RATIO_HEADINGS, _ratio_rows(results))


def _table(title: str, headings: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(*headings, title=title, title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(headings: Sequence[str], rows: Iterator[tuple[str, ...]], texts: int) -> str:
    """A table whose first columns are texts, and the others numbers."""
    ruler = ["---"] * texts + ["---:"] * (len(headings) - texts)
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, ruler, *rows))


def page(results: Sequence[Result], left_out: Mapping[str, str], conditions: str) -> str:
    """All tables as one page."""
    parts = ["# WebSockets", conditions]
    for heading, meaning, names in TABLES:
        parts += [f"## {heading}", meaning]
        if names is DELIVERIES:
            parts.append("![CPU time for a message to one client](websockets.svg)")
        parts.append(markdown_table(_headings(names), _rows(results, names), 2))
    parts += ["## Ratios", markdown_table(RATIO_HEADINGS, _ratio_rows(results), 1)]
    parts += [
        "## A core and a GiB",
        "Computed from the medians: messages of 100 B, connects with one group, and connections that have got "
        "messages of 2 KB. The core does nothing else, and nothing is left for peaks.",
        markdown_table(CARRIED_HEADINGS, _carried_rows(results), 2),
    ]
    failed = [
        f"- {each.side.name}: {each.lost} messages lost, {len(each.errors)} rounds failed."
        for each in results
        if each.lost or each.errors
    ]
    out = [f"- {name} is left out: {why}." for name, why in left_out.items()]
    if failed or out:
        parts += ["## Not measured", "\n".join(failed + out)]
    return "\n\n".join(parts) + "\n"


def conditions(rounds: int, clients: int, messages: int, rows: str = "") -> str:
    """By which command and how it was measured, and with which versions."""
    only = f' --rows "{rows}"' if rows else ""
    return (
        f"`python -m benchmarks.websockets --rounds {rounds} --clients {clients} --messages {messages}{only}` "
        f"on {date.today()}. Medians of {rounds} rounds in turn, with the lowest and the highest: "
        f"{clients} clients in a room, which offer compression as browsers do, and {messages} messages of each "
        f"kind, one after the other. "
        f"`frame` is a message that is passed on as it is, `handler` one that a handler makes anew "
        f"for each client. "
        f"A figure is missing where a side has none, or has lost a message.\n\n{machine()}."
    )


def machine() -> str:
    """The versions of what takes part, and how busy the machine was, as text."""
    found = ", ".join(f"{name} {version}" for name, version in _versions().items() if version)
    return f"{found}. {os.cpu_count()} cores, whose load was {os.getloadavg()[2]:.1f} in the last 15 minutes"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"Python": platform.python_version()}
    if has_node():
        found["Node"] = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    return found | {name: installed(name) for name in DISTRIBUTIONS}


def as_json(
    results: Sequence[Result], left_out: Mapping[str, str], clients: int, messages: int
) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    by_name = {result.side.name: result for result in results}
    return {
        "platform": platform.platform(),
        "versions": _versions(),
        "clients": clients,
        "messages": messages,
        "rows": {
            name: {
                "figures": {
                    figure: {"median": result.median(figure), "figures": result.figures(figure)}
                    for figure in (*DELIVERIES, *CONNECTS, *MEMORY)
                    if result.figures(figure)
                },
                "compresses": result.is_deflated,
                "lost": result.lost,
                "errors": result.errors,
            }
            for name, result in by_name.items()
        },
        "left_out": dict(left_out),
        "ratios": {each.name: {"ratio": each.value(by_name), "at_most": each.at_most} for each in RATIOS},
    }
