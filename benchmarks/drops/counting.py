"""What each client should have got, and what it got: by the numbers of the messages."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ACCEPTED, UNKNOWN, REFUSED = "a", "u", "r"


class Ledger:
    """
    The messages of one room, as one client gets them: counted from 0.

    `gaps` are ranges of numbers (from, up to, time of the reset that told of it or None) that were jumped over.
    """

    __slots__ = ("gaps", "late", "next", "told_at", "twice")

    def __init__(self) -> None:
        self.next = 0
        self.twice = 0
        self.late = 0
        self.told_at: float | None = None
        self.gaps: list[tuple[int, int, float | None]] = []

    def take(self, number: int) -> None:
        """Note that a message came."""
        if number == self.next:
            self.next += 1
            self.told_at = None
        elif number > self.next:
            self.gaps.append((self.next, number, self.told_at))
            self.next = number + 1
            self.told_at = None
        elif self._fill(number):
            self.late += 1
        else:
            self.twice += 1

    def tell(self, now: float) -> None:
        """Note that the client was told to load its data again."""
        self.told_at = now

    def _fill(self, number: int) -> bool:
        """Take a number out of the gaps; False if it is in none."""
        for index, (first, end, told) in enumerate(self.gaps):
            if first <= number < end:
                parts = [(first, number, told), (number + 1, end, told)]
                self.gaps[index : index + 1] = [part for part in parts if part[0] < part[1]]
                return True
        return False

    def as_json(self) -> dict[str, Any]:
        return {
            "next": self.next,
            "twice": self.twice,
            "late": self.late,
            "told_at": self.told_at,
            "gaps": self.gaps,
        }


@dataclass(frozen=True, slots=True)
class Sent:
    """The messages of one room in the order of their numbers: when each send began, and its fate."""

    began: Sequence[float]
    fates: str


@dataclass(slots=True)
class Tally:
    """
    The count over all clients.

    `missing` are messages that did not come, and of which no reset told; `told` are those of which one did. A
    reset is true if the server lost its data since the client's last one.
    """

    expected: int = 0
    missing: int = 0
    told: int = 0
    twice: int = 0
    disordered: int = 0
    true_resets: int = 0
    false_resets: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def delivered(self) -> float:
        """Per cent of the expected messages that came."""
        return 100 * (1 - (self.missing + self.told) / self.expected) if self.expected else 0.0

    def add(self, client: Mapping[str, Any], sent: Mapping[str, Sent], losses: Sequence[float]) -> None:
        """Count one client: its `ledgers` by room, its `resets` as (time, reason)."""
        self._resets(client["resets"], losses)
        for room, ledger in client["ledgers"].items():
            messages = sent[room]
            self.expected += messages.fates.count(ACCEPTED)
            self.twice += ledger["twice"]
            self.disordered += ledger["late"]
            for first, end, told_at in ledger["gaps"]:
                self._gap(range(first, end), told_at, messages)
            self._gap(range(ledger["next"], len(messages.fates)), ledger["told_at"], messages)

    def _resets(self, resets: Sequence[tuple[float, str]], losses: Sequence[float]) -> None:
        previous = 0.0
        for time, reason in resets:
            self.reasons[reason] += 1
            if any(previous < loss <= time for loss in losses):
                self.true_resets += 1
            else:
                self.false_resets += 1
            previous = time

    def as_json(self) -> dict[str, Any]:
        return {
            "expected": self.expected,
            "delivered": self.delivered,
            "missing": self.missing,
            "told": self.told,
            "twice": self.twice,
            "disordered": self.disordered,
            "true_resets": self.true_resets,
            "false_resets": self.false_resets,
            "reasons": self.reasons,
        }

    def _gap(self, numbers: range, told_at: float | None, messages: Sent) -> None:
        """A reset tells of what was sent before it, and of nothing that came later."""
        for number in numbers:
            if messages.fates[number] != ACCEPTED:
                continue
            if told_at is not None and messages.began[number] < told_at:
                self.told += 1
            else:
                self.missing += 1


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values is; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def apart_from(
    visits: Iterable[tuple[float, float]], outages: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """The visits (begin, caught up) that no outage (begin, end) touches."""
    return [
        (begin, end)
        for begin, end in visits
        if not any(begin < outage_end and end > outage_begin for outage_begin, outage_end in outages)
    ]
