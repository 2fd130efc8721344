"""Plots, as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
# The same bytes for the same figures.
matplotlib.rcParams["svg.hashsalt"] = "channels_asyncq"

from matplotlib import pyplot  # noqa: E402  (it looks at what was set)

from .report import Comparison, heading, is_ours, number  # noqa: E402

OURS_COLOUR, THEIRS_COLOUR = "#2a7f62", "#9aa5b1"


def bars(comparison: Comparison, path: Path) -> None:
    """A bar for the median of each layer that lost nothing, with a line from the lowest to the highest."""
    results = [result for result in comparison.results if result.median is not None]
    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.45 * max(1, len(results))), layout="constrained")
    for place, result in enumerate(reversed(results)):
        assert result.median is not None
        colour = OURS_COLOUR if is_ours(result) else THEIRS_COLOUR
        axes.barh(place, result.median, color=colour)
        axes.plot([min(result.figures), max(result.figures)], [place, place], color="black", linewidth=1)
        axes.annotate(
            number(result.median),
            (max(result.figures), place),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(results)), [result.layer for result in reversed(results)])
    axes.set_title(heading(comparison), fontsize=9, loc="left")
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def curves(
    title: str, across: str, up: str, points: Mapping[str, Sequence[tuple[float, float]]], path: Path
) -> None:
    """A line for each name, on logarithmic scales."""
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for name, line in points.items():
        axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def pairs(title: str, series: Mapping[str, Sequence[tuple[str, float | None]]], path: Path) -> None:
    """A group of bars for each name, one for each series that has a figure of it."""
    names = [name for name, _ in next(iter(series.values()))]
    height = 0.8 / len(series)
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.42 * len(names)), layout="constrained")
    for order, (label, line) in enumerate(series.items()):
        found = [
            (-place - order * height, value) for place, (_, value) in enumerate(line) if value is not None
        ]
        colour = (OURS_COLOUR, THEIRS_COLOUR)[order % 2]
        bars = axes.barh(
            [y for y, _ in found], [value for _, value in found], height, color=colour, label=label
        )
        axes.bar_label(bars, [number(value) for _, value in found], padding=3, fontsize=7)
    axes.set_yticks([-place - height / 2 for place in range(len(names))], names, fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.margins(x=0.1)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
