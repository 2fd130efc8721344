"""All rounds of all sides: medians, ratios, and whether a goal is met."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .rounds import JOINS, SIZES, Round, delivery, memory
from .sides import BOTH, SIDES, Side

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
class SocketGoal:
    """A figure of a side is at most a multiple of a figure of another one."""

    name: str
    side: str
    figure: str
    reference: str
    of_reference: str
    at_most: float

    def ratio(self, results: Mapping[str, Result]) -> float | None:
        """The ratio of the medians; None without both."""
        ours, theirs = results.get(self.side), results.get(self.reference)
        if ours is None or theirs is None:
            return None
        value, base = ours.median(self.figure), theirs.median(self.of_reference)
        return value / base if value is not None and base else None


def _goals() -> Iterator[SocketGoal]:
    ours, sync = SIDES["this layer; uvicorn"].name, SIDES["this layer, sync consumer; uvicorn"].name
    ws, socket_io, bare = (
        SIDES["ws; Node"].name,
        SIDES["Socket.IO; Node"].name,
        SIDES["bare loop; uvicorn"].name,
    )
    stock_sync = SIDES["Channels, this layer, sync consumer; uvicorn"].name
    for size in SIZES:
        frame, handler = delivery("frame", size), delivery("handler", size)
        yield SocketGoal(f"{frame}: this layer / ws", ours, frame, ws, frame, 1.15)
        yield SocketGoal(f"{handler}: this layer / Socket.IO", ours, handler, socket_io, handler, 1.0)
        yield SocketGoal(f"{frame}: sync consumer, this / Channels", sync, frame, stock_sync, frame, 0.5)
    yield SocketGoal("connect, 1 group: this layer / bare loop", ours, "1 group", bare, "accept", 1.5)


GOALS: Sequence[SocketGoal] = tuple(_goals())
