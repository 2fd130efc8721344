"""Figures for people and for programs."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from channels_asyncq.testing import EmbeddedServer

from .layers import Contender
from .runner import Result
from .scenario import Scenario


@dataclass(frozen=True, slots=True)
class Comparison:
    """A scenario and its results, ours first."""

    scenario: Scenario
    results: Sequence[Result]

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the second; None without both figures."""
        medians = [result.median for result in self.results[:2]]
        if len(medians) < 2 or not medians[0] or not medians[1]:
            return None
        ratio = medians[0] / medians[1]
        return ratio if self.scenario.higher_is_better else 1 / ratio

    @property
    def is_goal_met(self) -> bool | None:
        """None where there is no goal, or it cannot be told."""
        ours = self.results[0].median
        if self.scenario.goal is None or ours is None:
            return None
        return self.scenario.goal.is_met(ours, self.ratio)


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(comparison: Comparison, rounds: int) -> Table:
    """One row per layer."""
    scenario = comparison.scenario
    title = f"{scenario.name}: {scenario.title}; {scenario.unit}, {rounds} rounds"
    rows = Table(title=title, title_justify="left", title_style="bold")
    rows.add_column("layer")
    for name in ("median", "lowest", "highest", "lost", "ratio", "goal"):
        rows.add_column(name, justify="right")
    for place, result in enumerate(comparison.results):
        ratio = goal = ""
        if place == 0:
            ratio = "-" if comparison.ratio is None else f"{comparison.ratio:.2f} x"
            if scenario.goal is not None:
                mark = {True: "met", False: "MISSED", None: "?"}[comparison.is_goal_met]
                goal = f"{scenario.goal} {mark}"
        rows.add_row(
            result.layer,
            "failed" if result.error else number(result.median),
            number(min(result.figures, default=None)),
            number(max(result.figures, default=None)),
            str(sum(result.lost)),
            ratio,
            goal,
        )
    return rows


def as_json(
    comparisons: Sequence[Comparison], contenders: Sequence[Contender], rounds: int, server: EmbeddedServer
) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    return {
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
                "ratio": comparison.ratio,
                "goal": None if comparison.scenario.goal is None else str(comparison.scenario.goal),
                "goal_met": comparison.is_goal_met,
                "layers": {
                    result.layer: {
                        "median": result.median,
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
