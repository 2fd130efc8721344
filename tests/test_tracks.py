"""The records of one topic, against a plain list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from channels_asyncq.bus.base import NotReplayed, ReplayCounts
from channels_asyncq.bus.redis import tracks
from channels_asyncq.bus.redis.tracks import Track
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.messages.framing import BadEnvelope
from channels_asyncq.messages.positions import Place

EPOCH = "0123abcd"


def envelope(position: int, nth: int = 0, payload: bytes = b"x") -> Envelope:
    one = Envelope(payload, "room")
    one.position, one.nth = position, nth
    return one


def entry(position: int, size: int) -> list[Envelope]:
    """The messages of an entry: numbered from 1, the last one 0."""
    return [envelope(position, nth % size) for nth in range(1, size + 1)]


def opened(data: bytes, position: int) -> list[Envelope]:
    """The messages in `data`: as many as its length."""
    if data.startswith(b"!"):
        raise BadEnvelope("unreadable")
    return entry(position, len(data))


def keys(envelopes: list[Envelope]) -> list[tuple[int, int]]:
    return [(one.position, one.nth) for one in envelopes]


class TrackMachine(RuleBasedStateMachine):
    """A track, and a list of the position, number and problem of each message that it has."""

    @initialize()
    def begin(self) -> None:
        self.counts = ReplayCounts()
        self.track = Track(self.counts)
        self.last = 0
        self.model: list[tuple[int, int, str]] = []

    def next_position(self, step: int) -> int:
        self.last += step
        return self.last

    @rule(step=st.integers(1, 3), size=st.integers(1, 4))
    def arrives(self, step: int, size: int) -> None:
        """A push of one entry."""
        position = self.next_position(step)
        for one in entry(position, size):
            self.track.append(position, one)
            self.model.append((position, one.nth, ""))

    @rule(step=st.integers(1, 3), size=st.integers(1, 4), is_readable=st.booleans())
    def is_read(self, step: int, size: int, is_readable: bool) -> None:
        """An entry of a log."""
        position = self.next_position(step)
        if is_readable:
            self.track.append(position, b"x" * size)
            self.model += [(position, one.nth, "") for one in entry(position, size)]
        else:
            self.track.append(position, b"!")
            self.model.append((position, 0, "unreadable"))

    @rule(step=st.integers(1, 3))
    def is_too_large(self, step: int) -> None:
        position = self.next_position(step)
        self.track.append(position, "too_large")
        self.model.append((position, 0, "too_large"))

    @rule(count=st.integers(100, 200))
    def many_arrive(self, count: int) -> None:
        """So many that the track is shortened when they are dropped."""
        for _ in range(count):
            self.arrives(1, 1)

    @rule(sizes=st.lists(st.integers(1, 4), max_size=3))
    def goes_on(self, sizes: list[int]) -> None:
        """What a later read has found."""
        other = Track(self.counts)
        for size in sizes:
            position = self.next_position(1)
            other.append(position, b"x" * size)
            self.model += [(position, one.nth, "") for one in entry(position, size)]
        self.track.take_all(other)

    @rule(back=st.integers(-1, 150))
    def drop_until(self, back: int) -> None:
        position = self.last - back
        self.track.drop_until(position)
        self.model = [each for each in self.model if each[0] > position]

    @rule(back=st.integers(-1, 10))
    def drop_behind(self, back: int) -> None:
        position = self.last - back
        self.track.drop_behind(position)
        self.model = [each for each in self.model if each[0] <= position]

    @rule()
    def drop_all(self) -> None:
        self.track.drop_all()
        self.model.clear()
        assert (self.counts.records, self.counts.bytes) == (0, 0)

    @precondition(lambda self: self.last)
    @rule(back=st.integers(-1, 20), nth=st.integers(0, 4))
    def since(self, back: int, nth: int) -> None:
        """The messages behind a place, or the first reason why there are not all of them."""
        place = Place(EPOCH, max(0, self.last - back), nth)
        behind = [each for each in self.model if (each[0], each[1] or 99) > (place.position, nth or 99)]
        problem = next((each[2] for each in behind if each[2]), "")
        if problem:
            with pytest.raises(NotReplayed) as caught:
                self.track.since(place, opened)
            assert caught.value.reason == problem
        else:
            assert keys(self.track.since(place, opened)) == [each[:2] for each in behind]

    @invariant()
    def counts_are_right(self) -> None:
        """The records, and their bytes: of what is there, and of nothing else."""
        recount: Any = ReplayCounts()
        copy = Track(recount)
        copy.take_all(self.track)
        for record in copy._records:
            Track(recount).append(0, record)
        assert len(self.track) == self.counts.records == recount.records
        assert self.counts.bytes == recount.bytes


TestTrack = TrackMachine.TestCase


def test_an_entry_is_opened_once() -> None:
    """The messages take its place: the next channel that comes back costs no decoding."""
    track = Track(ReplayCounts())
    track.append(5, b"xx")
    calls: list[int] = []

    def count(data: bytes, position: int) -> list[Envelope]:
        calls.append(position)
        return opened(data, position)

    first = track.since(Place(EPOCH, 4), count)
    second = track.since(Place(EPOCH, 5, 1), count)
    assert keys(first) == [(5, 1), (5, 0)]
    assert second == first[1:]
    assert calls == [5]


def test_what_is_before_the_place_is_not_opened() -> None:
    """An entry that cannot be read is no harm to a channel that is past it."""
    track = Track(ReplayCounts())
    track.append(5, b"!")
    track.append(6, b"x")
    assert keys(track.since(Place(EPOCH, 5), opened)) == [(6, 0)]


def test_little_stays_decoded_when_much_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoded message takes several times the memory of its bytes: a crowd of groups decodes them again."""
    monkeypatch.setattr(tracks, "_MOST_DECODED", 0)
    counts = ReplayCounts()
    track = Track(counts)
    for position in range(1, 10):
        track.append(position, b"xx")
    before = counts.bytes
    for _ in range(2):
        assert len(track.since(Place(EPOCH, 5), opened)) == 8
    assert (counts.records, counts.bytes) == (9, before)
