"""Figures for people and for programs."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from channels_asyncq.testing import EmbeddedServer

from .layers import OURS, Contender
from .runner import Result
from .scenario import Scenario


@dataclass(frozen=True, slots=True)
class Comparison:
    """A scenario and its results."""

    scenario: Scenario
    results: Sequence[Result]

    def ratio(self, result: Result) -> float | None:
        """How many times better this is than the reference; None without both figures."""
        reference = next((each for each in self.results if each.layer == self.scenario.reference), None)
        if reference is None or not reference.median or not result.median:
            return None
        ratio = result.median / reference.median
        return ratio if self.scenario.higher_is_better else 1 / ratio

    def is_goal_met(self, result: Result) -> bool | None:
        """None where there is no goal, or it cannot be told."""
        goal = self.scenario.goals.get(result.layer)
        if goal is None or result.median is None:
            return None
        return goal.is_met(result.median, self.ratio(result))

    @property
    def has_failed(self) -> bool:
        """Was a goal missed, or a message of ours lost?"""
        return any(
            self.is_goal_met(result) is False or (is_ours(result) and (result.error or any(result.lost)))
            for result in self.results
        )


def is_ours(result: Result) -> bool:
    return result.layer.startswith(OURS)


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lines(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """A line per layer: its name, median, lowest, highest, lost, ratio and goal."""
    for result in comparison.results:
        ratio, goal = comparison.ratio(result), comparison.scenario.goals.get(result.layer)
        mark = {True: "met", False: "MISSED", None: "?"}[comparison.is_goal_met(result)]
        yield (
            result.layer,
            "failed" if result.error else "lost" if result.median is None else number(result.median),
            number(min(result.figures, default=None)),
            number(max(result.figures, default=None)),
            f"{sum(result.lost):,}",
            "-" if ratio is None else f"{ratio:.2f} x",
            "" if goal is None else f"{goal} {mark}",
        )


HEADINGS = ("layer", "median", "lowest", "highest", "lost", "ratio", "goal")


def heading(comparison: Comparison) -> str:
    scenario = comparison.scenario
    direction = "more" if scenario.higher_is_better else "less"
    return f"{scenario.name}: {scenario.title}; {scenario.unit}, {direction} is better"


def table(comparison: Comparison) -> Table:
    """One row per layer."""
    rows = Table(title=heading(comparison), title_justify="left", title_style="bold")
    rows.add_column(HEADINGS[0])
    for name in HEADINGS[1:]:
        rows.add_column(name, justify="right")
    for line in lines(comparison):
        rows.add_row(*line)
    return rows


def markdown(comparisons: Sequence[Comparison]) -> str:
    """All tables as one page, with the names of the plots."""
    parts = []
    for comparison in comparisons:
        scenario = comparison.scenario
        rows = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *lines(comparison)]
        text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        out = "".join(f"\n{name} is left out: {why}." for name, why in scenario.unable.items())
        parts.append(f"## {heading(comparison)}\n\n![{scenario.title}]({scenario.name}.svg)\n\n{text}\n{out}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def page(comparisons: Sequence[Comparison], figures: Mapping[str, Any]) -> str:
    """The page of a run: the command, the day, what it ran on, and all tables."""
    versions = [
        f"{name} {found}"
        for name, found in figures["versions"].items()
        if found and name != "channels_asyncq"
    ]
    return (
        f"# Results\n\n`{figures['command']}` on {figures['date']}: medians of {figures['rounds']} rounds in "
        "turn, with the lowest and the highest. `lost` counts messages that did not arrive. "
        f"Python {figures['python']}, {figures['server']}, {', '.join(versions)}.\n\n{markdown(comparisons)}"
    )


def as_json(
    comparisons: Sequence[Comparison],
    contenders: Sequence[Contender],
    rounds: int,
    server: EmbeddedServer,
    command: str,
) -> dict[str, Any]:
    """Everything that was measured, by which command, and on what."""
    return {
        "command": command,
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "server": server_version(server),
        "versions": {
            name: installed(name)
            for name in sorted(
                {contender.distribution for contender in contenders} | {"redis", "hiredis", "channels"}
            )
        },
        "rounds": rounds,
        "scenarios": {
            comparison.scenario.name: {
                "title": comparison.scenario.title,
                "unit": comparison.scenario.unit,
                "higher_is_better": comparison.scenario.higher_is_better,
                "reference": comparison.scenario.reference,
                "layers": {
                    result.layer: {
                        "median": result.median,
                        "ratio": comparison.ratio(result),
                        "goal_met": comparison.is_goal_met(result),
                        "figures": result.figures,
                        "lost": result.lost,
                        "details": result.details,
                        "error": result.error,
                    }
                    for result in comparison.results
                },
            }
            for comparison in comparisons
        },
    }


def installed(distribution: str) -> str | None:
    """The version of a distribution, None where it runs from its source."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def server_version(server: EmbeddedServer) -> str:
    """Name and version, as the server says."""
    lines = dict(
        line.split(":", 1) for line in server.command("INFO", "server").decode().splitlines() if ":" in line
    )
    if "valkey_version" in lines:
        return f"Valkey {lines['valkey_version']}"
    return f"Redis {lines.get('redis_version', '?')}"
