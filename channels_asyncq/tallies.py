"""Counts that one part raises and another reads, from any thread."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from operator import add

#: The upper bounds of the buckets of `Latency`, in seconds. One more bucket has no bound.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Tally:
    """A number of messages."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


@dataclass(frozen=True, slots=True)
class Latency:
    """
    A histogram of durations: how many are in each bucket, and their sum in seconds.

    Buckets are not cumulative: a duration is in the first one whose bound of `BOUNDS` it does not exceed.
    """

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.counts)

    def __add__(self, other: Latency) -> Latency:
        return Latency(tuple(map(add, self.counts, other.counts)), self.seconds + other.seconds)


NO_LATENCY = Latency()


@dataclass(slots=True)
class LatencyTally:
    """Durations that are counted as they occur."""

    _counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    _seconds: float = 0.0

    def note(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def snapshot(self) -> Latency:
        return Latency(tuple(self._counts), self._seconds)
