"""What the records of a run prove. Pure: records in, a verdict out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import NamedTuple

#: A word about a loss comes after what was read from the log behind the gap: so many seconds later at most, also
#: on a busy machine.
LATE = 10.0


class Sent(NamedTuple):
    begin: float
    end: float
    error: str | None = None


class Heard(NamedTuple):
    sender: str
    name: str
    number: int
    time: float


class Told(NamedTuple):
    reason: str
    groups: tuple[str, ...]
    time: float


Record = Heard | Told
Stream = tuple[str, str]  # a sender and a name


@dataclass(frozen=True)
class Ear:
    """A channel that hears all of a group and all that is sent to itself."""

    channel: str
    group: str
    records: Sequence[Record]
    #: The process that it is in.
    owner: str = ""

    @property
    def told(self) -> list[Told]:
        return [record for record in self.records if isinstance(record, Told)]

    def numbers(self) -> dict[Stream, list[Heard]]:
        streams: defaultdict[Stream, list[Heard]] = defaultdict(list)
        for record in self.records:
            if isinstance(record, Heard):
                streams[record.sender, record.name].append(record)
        return streams


@dataclass(frozen=True)
class Worker:
    """What one process got of a normal channel that several read."""

    name: str
    records: Sequence[Heard]


@dataclass(frozen=True)
class Expected:
    """What a scenario may do to the fleet."""

    #: Reasons that may be told, though never without cause.
    may_tell: frozenset[str] = frozenset()
    #: How often the server was another one than before.
    changes: int = 0
    #: A server that goes back in time takes messages of normal channels with it, or brings back what was taken
    #: from it; nobody is told of those.
    keeps_jobs: bool = True
    #: Groups that `recovery` leaves out: what they miss is lost, and nobody is told.
    unlogged: frozenset[str] = frozenset()
    #: Reasons that may be told although nothing is missing: what nobody can know is told too.
    in_vain: frozenset[str] = frozenset()


@dataclass
class Verdict:
    """Figures, and complaints in words: none means that every promise was kept."""

    sends: int = 0
    raised: Counter[str] = field(default_factory=Counter)
    receipts: int = 0
    lost: int = 0
    lost_told: int = 0
    #: Of normal channels, on a server that does not keep them.
    lost_jobs: int = 0
    lost_unlogged: int = 0
    jobs_again: int = 0
    twice: int = 0
    out_of_order: int = 0
    told: Counter[str] = field(default_factory=Counter)
    #: Seconds of the longest send.
    longest: float = 0.0
    #: Seconds from the end of a failover to that of the last send that had waited for it.
    resumed: float = 0.0
    complaints: list[str] = field(default_factory=list)

    @property
    def raised_share(self) -> float:
        return sum(self.raised.values()) / max(1, self.sends)

    def complain(self, text: str) -> None:
        self.complaints.append(text)


def check(
    sent: Mapping[Stream, Sequence[Sent]],
    ears: Iterable[Ear],
    workers: Iterable[Worker] = (),
    expected: Expected = Expected(),
) -> Verdict:
    """Hold the records against what was sent."""
    verdict = Verdict()
    for sends in sent.values():
        verdict.sends += len(sends)
        verdict.raised.update(send.error for send in sends if send.error is not None)
        verdict.longest = max([verdict.longest, *(send.end - send.begin for send in sends)])
    members: defaultdict[str, list[Ear]] = defaultdict(list)
    causes: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    ears = list(ears)
    for ear in ears:
        members[ear.group].append(ear)
        for word in _check_ear(verdict, sent, ear, expected):
            causes[ear.owner, word.reason].append(word.time)
    for ear in ears:
        _check_words(verdict, ear, causes, expected)
    for group, its in members.items():
        _check_group(verdict, group, its, expected)
    _check_jobs(verdict, sent, list(workers), expected)
    return verdict


def check_resumption(
    verdict: Verdict, sent: Mapping[Stream, Sequence[Sent]], repairs: Iterable[float], most: float
) -> None:
    """After each failover, the sends that waited for it are over within `most` seconds."""
    for repaired in repairs:
        for stream, sends in sent.items():
            for number, send in enumerate(sends):
                if send.begin < repaired < send.end:
                    seconds = send.end - repaired
                    verdict.resumed = max(verdict.resumed, seconds)
                    if seconds > most:
                        verdict.complain(f"{stream} {number} took {seconds:.2f} s after the failover")


def _check_ear(
    verdict: Verdict, sent: Mapping[Stream, Sequence[Sent]], ear: Ear, expected: Expected
) -> list[Told]:
    """Check what one channel heard; return the words about losses that had a loss for their cause."""
    streams = ear.numbers()
    verdict.told.update(told.reason for told in ear.told)
    caused: list[Told] = []
    for stream, sends in sent.items():
        if stream[1] not in (ear.group, ear.channel):
            continue
        heard = streams.pop(stream, [])
        verdict.receipts += len(heard)
        _check_sequence(verdict, f"{ear.channel} heard {stream}", [record.number for record in heard])
        seen = {record.number for record in heard}
        # For each number that is missing, when the next one was heard: a word about it is due by then.
        due = float("inf")
        next_heard = iter(sorted(heard, key=lambda record: -record.number))
        following = next(next_heard, None)
        for number in range(len(sends) - 1, -1, -1):
            if following is not None and following.number == number:
                due = following.time
                while following is not None and following.number == number:
                    following = next(next_heard, None)
            if number in seen or sends[number].error is not None:
                continue
            if stream[1] in expected.unlogged:
                verdict.lost_unlogged += 1
                continue
            word = _word_about(ear, stream[1], sends[number].begin, due + LATE)
            if word is None:
                verdict.lost += 1
                verdict.complain(f"{ear.channel} lost {stream} {number} and was not told")
            else:
                verdict.lost_told += 1
                caused.append(word)
    for stream, heard in streams.items():
        verdict.complain(f"{ear.channel} heard {len(heard)} of {stream}, which was not sent to it")
    return caused


def _word_about(ear: Ear, name: str, since: float, until: float) -> Told | None:
    for told in ear.told:
        # One that names groups may be about the channel itself as well.
        if since <= told.time <= until and (name in told.groups or name == ear.channel):
            return told
    return None


def _check_words(
    verdict: Verdict, ear: Ear, causes: dict[tuple[str, str], list[float]], expected: Expected
) -> None:
    """No word without cause: the server was another one, or something was lost."""
    changes = sum(word.reason == "server_changed" for word in ear.told)
    if changes > expected.changes:
        verdict.complain(f"{ear.channel} was told of {changes} changes of {expected.changes}")
    for word in ear.told:
        if word.reason not in expected.may_tell:
            verdict.complain(f"{ear.channel} was told {word.reason!r}, which did not happen")
        elif word.reason != "server_changed" and word.reason not in expected.in_vain:
            # Groups share logs: what was trimmed may have been another's, in the same process.
            of_owner = causes.get((ear.owner, word.reason), [])
            if not any(abs(word.time - time) <= LATE for time in of_owner):
                verdict.complain(f"{ear.channel} was told {word.reason!r}, and nobody there lost anything")


def _check_sequence(verdict: Verdict, what: str, numbers: list[int]) -> None:
    repeats = len(numbers) - len(set(numbers))
    if repeats:
        verdict.twice += repeats
        verdict.complain(f"{what}: {repeats} twice, {[n for n, c in Counter(numbers).items() if c > 1][:5]}")
    backwards = [(one, other) for one, other in pairwise(numbers) if other < one]
    if backwards:
        verdict.out_of_order += len(backwards)
        verdict.complain(f"{what} out of order: {backwards[:5]}")


def _check_group(verdict: Verdict, group: str, members: list[Ear], expected: Expected) -> None:
    """All members hear what they have in common in one order."""
    sequences = [
        (ear, [(r.sender, r.number) for r in ear.records if isinstance(r, Heard) and r.name == group])
        for ear in members
    ]
    for (one, first), (other, second) in combinations(sequences, 2):
        if first == second:
            continue
        common = set(first) & set(second)
        if [item for item in first if item in common] == [item for item in second if item in common]:
            continue
        # What a server forgot, or did not log, is sent again, behind what others sent meanwhile: either those who
        # had heard it are told, or those who had not.
        reasons = expected.in_vain | ({"server_changed"} if expected.changes else set())
        if any(word.reason in reasons for word in one.told + other.told):
            continue
        verdict.out_of_order += 1
        verdict.complain(f"{one.channel} and {other.channel} heard {group} in different orders")


def _check_jobs(
    verdict: Verdict, sent: Mapping[Stream, Sequence[Sent]], workers: list[Worker], expected: Expected
) -> None:
    taken: defaultdict[Stream, Counter[int]] = defaultdict(Counter)
    for worker in workers:
        of_sender: defaultdict[str, list[int]] = defaultdict(list)
        for record in worker.records:
            of_sender[record.sender].append(record.number)
            taken[record.sender, record.name][record.number] += 1
        verdict.receipts += len(worker.records)
        for sender, numbers in of_sender.items():
            backwards = [(one, other) for one, other in pairwise(numbers) if other < one]
            if backwards and expected.keeps_jobs:
                verdict.out_of_order += len(backwards)
                verdict.complain(f"a reader of {worker.name} heard {sender} out of order: {backwards[:5]}")
    names = {worker.name for worker in workers}
    for (sender, name), sends in sent.items():
        if name not in names:
            continue
        counts = taken[sender, name]
        repeats = [number for number, count in counts.items() if count > 1]
        if not expected.keeps_jobs:
            verdict.jobs_again += len(repeats)
        elif repeats:
            verdict.twice += len(repeats)
            verdict.complain(f"jobs of {sender} to {name} were done twice: {repeats[:5]}")
        missing = [number for number, send in enumerate(sends) if send.error is None and number not in counts]
        if not expected.keeps_jobs:
            verdict.lost_jobs += len(missing)
        elif missing:
            verdict.lost += len(missing)
            verdict.complain(f"{len(missing)} jobs of {sender} to {name} are lost: {missing[:5]}")
