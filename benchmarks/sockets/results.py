"""All rounds of all sides: medians, ratios, and whether a goal is met."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .rounds import JOINS, SIZES, Round, delivery, memory
from .sides import BOTH, Side

DELIVERIES = tuple(delivery(way, size) for way in BOTH for size in SIZES)
CONNECTS = tuple(JOINS)
MEMORY = tuple(memory(size) for size in SIZES)


@dataclass(slots=True)
class Result:
    """All rounds of one side, and the errors of those that failed."""

    side: Side
    rounds: list[Round] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def figures(self, name: str) -> list[float]:
        return [each.figures[name] for each in self.rounds if name in each.figures]

    def median(self, name: str) -> float | None:
        figures = self.figures(name)
        return statistics.median(figures) if figures else None

    @property
    def lost(self) -> int:
        return sum(each.lost for each in self.rounds)

    @property
    def is_deflated(self) -> bool:
        return any(each.is_deflated for each in self.rounds)

    @property
    def is_complete(self) -> bool:
        """Whether no round failed or lost a message, and each has its figures."""
        wanted = {delivery(way, size) for way in self.side.ways for size in SIZES} | {*MEMORY, "accept"}
        return (
            not self.errors and not self.lost and all(wanted <= each.figures.keys() for each in self.rounds)
        )


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of a side as a multiple of one of another side; with a goal, at most so many times as much."""

    name: str
    side: str
    figure: str
    reference: str
    of_reference: str
    at_most: float | None = None

    def value(self, results: Mapping[str, Result]) -> float | None:
        """The ratio of the medians; None without both."""
        ours, theirs = results.get(self.side), results.get(self.reference)
        if ours is None or theirs is None:
            return None
        value, base = ours.median(self.figure), theirs.median(self.of_reference)
        return value / base if value is not None and base else None


OURS = "this layer; uvicorn"
TASKS = "queue and task per client; uvicorn"
DEFLATE = "this layer; uvicorn, deflate"


def _ratios() -> Iterator[Ratio]:
    for size in SIZES:
        frame, handler = delivery("frame", size), delivery("handler", size)
        yield Ratio(f"{frame}: this layer / ws", OURS, frame, "ws; Node", frame, 1.15)
        yield Ratio(f"{handler}: this layer / Socket.IO", OURS, handler, "Socket.IO; Node", handler, 1.0)
        for figure in (frame, handler):
            yield Ratio(f"{figure}: this layer / queue and task per client", OURS, figure, TASKS, figure)
        yield Ratio(
            f"{frame}: sync consumer, this layer's / Channels'",
            "this layer, sync consumer; uvicorn",
            frame,
            "Channels, this layer, sync consumer; uvicorn",
            frame,
            0.5,
        )
        yield Ratio(f"{frame}: with compression / without", DEFLATE, frame, OURS, frame)
        for server in ("uvicorn", "Daphne"):
            theirs, ours = f"Channels, channels_redis; {server}", f"this layer; {server}"
            yield Ratio(f"{handler}, {server}: channels_redis / this layer", theirs, handler, ours, handler)
    yield Ratio(
        "connect, 1 group: this layer / bare loop", OURS, "1 group", "bare loop; uvicorn", "1 group", 1.5
    )
    for size in SIZES:
        open_one = memory(size)
        yield Ratio(f"{open_one}: with compression / without", DEFLATE, open_one, OURS, open_one)


RATIOS: Sequence[Ratio] = tuple(_ratios())
