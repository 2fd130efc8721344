"""What each client should have got, and what it got: by the numbers of the messages."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

#: A reset may come so many seconds behind the first message after a gap.
GRACE = 1.0
ACCEPTED, UNKNOWN, REFUSED = "a", "u", "r"


class Irregular(NamedTuple):
    """Numbers from `first` up to `end`, when that was noted, and when the last reset before it came."""

    first: int
    end: int
    when: float
    told_at: float | None


class Ledger:
    """
    The messages of one room, as one client gets them: counted from 0.

    `gaps` are numbers that were jumped over, `twice` and `late` are those that came again or behind a higher one.
    """

    __slots__ = ("gaps", "late", "next", "told_at", "twice")

    def __init__(self) -> None:
        self.next = 0
        self.told_at: float | None = None
        self.gaps: list[Irregular] = []
        self.twice: list[Irregular] = []
        self.late: list[Irregular] = []

    def take(self, number: int) -> None:
        """Note that a message came."""
        if number == self.next:
            self.next += 1
        elif number > self.next:
            self.gaps.append(Irregular(self.next, number, time.monotonic(), self.told_at))
            self.next = number + 1
        else:
            where = self.late if self._fill(number) else self.twice
            where.append(Irregular(number, number + 1, time.monotonic(), self.told_at))

    def tell(self, now: float) -> None:
        """Note that the client was told to load its data again, also because of a gap just noticed."""
        self.told_at = now
        for index, gap in enumerate(self.gaps):
            if now - gap.when <= GRACE:
                self.gaps[index] = gap._replace(told_at=now)

    def _fill(self, number: int) -> bool:
        """Take a number out of the gaps; False if it is in none."""
        for index, gap in enumerate(self.gaps):
            if gap.first <= number < gap.end:
                parts = gap._replace(end=number), gap._replace(first=number + 1)
                self.gaps[index : index + 1] = [part for part in parts if part.first < part.end]
                return True
        return False

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Wrong:
    """Something that went wrong at a client: in a room, or for a reason; with the first and the last number."""

    what: str
    where: str
    numbers: Sequence[int]
    when: float

    def since(self, origin: float) -> "Wrong":
        return replace(self, when=self.when - origin)

    def __str__(self) -> str:
        numbers = " to ".join(str(number) for number in self.numbers)
        return f"{self.when:.3f} s: {self.what}, {self.where} {numbers}".rstrip()


@dataclass(frozen=True, slots=True)
class Sent:
    """The messages of one room in the order of their numbers: when each send began, and its fate."""

    began: Sequence[float]
    fates: str

    def is_before(self, number: int, told_at: float | None) -> bool:
        """Whether the sending of a message began before a reset, so that the reset tells of it."""
        return told_at is not None and self.began[number] < told_at


@dataclass(slots=True)
class Tally:
    """
    The count over all clients.

    `missing` are messages that did not come, and of which no reset told; `told` are those of which one did. A
    reset is true if the server lost its data since the client's last one. `wrongs` says where and when, for the
    first hundred.
    """

    expected: int = 0
    missing: int = 0
    told: int = 0
    twice: int = 0
    disordered: int = 0
    true_resets: int = 0
    false_resets: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    wrongs: list[Wrong] = field(default_factory=list, compare=False)

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
            rest = Irregular(ledger["next"], len(messages.fates), math.inf, ledger["told_at"])
            for gap in [*(Irregular(*gap) for gap in ledger["gaps"]), rest]:
                self._gap(room, gap, messages)
            self.twice += self._again("twice", room, ledger["twice"], messages)
            self.disordered += self._again("out of order", room, ledger["late"], messages)

    def _resets(self, resets: Sequence[tuple[float, str]], losses: Sequence[float]) -> None:
        previous = 0.0
        for when, reason in resets:
            self.reasons[reason] += 1
            if any(previous < loss <= when for loss in losses):
                self.true_resets += 1
            else:
                self.false_resets += 1
                self._note(f"false reset {when - previous:.3f} s after the last", reason, [], when)
            previous = when

    def _again(self, what: str, room: str, messages: Sequence[Sequence[Any]], sent: Sent) -> int:
        """Count repeats: after a reset the page loads its data, and then older messages do not matter."""
        count = 0
        for number, _, when, told_at in messages:
            if not sent.is_before(number, told_at):
                count += 1
                self._note(what, room, [number], when)
        return count

    def _gap(self, room: str, gap: Irregular, sent: Sent) -> None:
        """A reset tells of what was sent before it, and of nothing that came later."""
        accepted = [number for number in range(gap.first, gap.end) if sent.fates[number] == ACCEPTED]
        missing = [number for number in accepted if not sent.is_before(number, gap.told_at)]
        self.missing += len(missing)
        self.told += len(accepted) - len(missing)
        if missing:
            self._note("missing", room, missing, gap.when)

    def _note(self, what: str, where: str, numbers: Sequence[int], when: float) -> None:
        if len(self.wrongs) < 100:
            self.wrongs.append(Wrong(what, where, list(numbers[:1]) + list(numbers[1:][-1:]), when))

    def as_json(self, origin: float = 0.0) -> dict[str, Any]:
        """All counts; times in seconds from an origin."""
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
            "wrongs": [str(wrong.since(origin)) for wrong in self.wrongs],
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values is; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Visit(NamedTuple):
    """A reconnect: when the client began to connect, when it had caught up, and at which server's port."""

    begin: float
    end: float
    port: int

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class Outage(NamedTuple):
    """A time without the server of the layer, or without the server at a port."""

    begin: float
    end: float
    port: int | None = None

    def touches(self, visit: Visit) -> bool:
        is_same = self.port is None or self.port == visit.port
        return is_same and visit.begin < self.end and visit.end > self.begin


def apart_from(visits: Iterable[Visit], outages: Sequence[Outage]) -> list[Visit]:
    """The visits that no outage touches."""
    return [visit for visit in visits if not any(outage.touches(visit) for outage in outages)]
