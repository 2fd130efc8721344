"""Positions as texts: what was written is read, and nothing else does harm."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.messages.positions import (
    MOST_CHANNELS,
    MOST_CHARACTERS,
    BadPosition,
    Place,
    Position,
    order_of,
)

LOW = (1 << 64) - 1
epochs = st.text("0123456789abcdef", min_size=8, max_size=8)
ids = st.builds(lambda ms, seq: ms << 64 | seq, st.integers(0, LOW), st.integers(0, LOW))
places = st.builds(Place, epochs, ids, st.integers(0, 65_535))
locals_ = st.text("abcXYZ019-_.", max_size=30)
channels = st.builds("{}!{}".format, st.text("abcXYZ019-_.", min_size=1, max_size=30), locals_)
positions = st.builds(
    Position,
    st.dictionaries(st.integers(0, 4095), places, max_size=16),
    st.lists(channels, max_size=MOST_CHANNELS).map(tuple),
)


@given(positions)
def test_what_was_written_is_read(position: Position) -> None:
    """A position of any places and channels comes back as it was."""
    assert Position.parse(str(position)) == position


@given(positions)
def test_all_characters_are_unreserved(position: Position) -> None:
    """RFC 3986: no text of a position needs quoting in a URL, a header or an `id:` line."""
    assert re.fullmatch(r"[A-Za-z0-9\-._~]+", str(position))


@given(st.text())
def test_any_text_is_a_position_or_refused(text: str) -> None:
    """Nothing but BadPosition is raised."""
    with contextlib.suppress(BadPosition):
        assert isinstance(Position.parse(text), Position)


@given(st.text("01az.~!-_\0\n é٣", max_size=60).map("1~".__add__))
def test_what_nearly_is_a_position_is_one_or_refused(text: str) -> None:
    """The same for texts that begin as positions do."""
    try:
        position = Position.parse(text)
    except BadPosition:
        return
    assert Position.parse(str(position)) == position


@given(positions, st.data())
def test_a_changed_position_is_one_or_refused(position: Position, data: st.DataObject) -> None:
    """One character replaced, removed or doubled."""
    text = str(position)
    at = data.draw(st.integers(0, len(text) - 1))
    text = (
        text[:at] + data.draw(st.sampled_from(["", "~", "~~", ".", "z", "!", text[at] * 2])) + text[at + 1 :]
    )
    try:
        changed = Position.parse(text)
    except BadPosition:
        return
    assert Position.parse(str(changed)) == changed


@pytest.mark.parametrize("value", [None, b"1~", 1, 1.5, ["1~"], {}])
def test_what_is_no_text_is_refused(value: Any) -> None:
    """A view may hand on whatever a client sent."""
    with pytest.raises(BadPosition):
        Position.parse(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2~0123abcd~0.1.1",
        "1~0.1.1",
        "1~0123abcd~0.1",
        "1~0123abcd~0.1.1.1.1",
        "1~0123abcd~1ekh.0.0",
        "1~0123abcd~0.3w5e11264sgsg.0",
        "1~0123abcd~0.0.3w5e11264sgsg",
        "1~0123abcd~0.0.0.1ekg",
        "1~0123abcd~0.00000000000000000001.0",
        "1~0123ABCD~0.1.1",
        "1~0123abcd~0.1.1~~",
        "1~0123abcd~0.1.1~~alone",
        "1~0123abcd~0.1.1~~a~b~c",
        "1~0123abcd~0.1.1" + "~~" + "~".join(["a~b"] * (MOST_CHANNELS + 1)),
        "1~" + "a" * MOST_CHARACTERS,
    ],
)
def test_what_is_no_position_is_refused(text: str) -> None:
    """An unknown version, no epoch, too few or too many numbers, numbers beyond a log, odd channels, too long."""
    with pytest.raises(BadPosition):
        Position.parse(text)


def test_only_the_last_channels_are_kept() -> None:
    """A reader that came back often names the latest four."""
    names = tuple(f"s.{number}!x" for number in range(6))
    assert Position.parse(str(Position({}, names))).channels == names[2:]


def test_a_position_in_sixteen_partitions_is_short() -> None:
    """About 300 characters: it fits in a URL, a header and each event."""
    position = Position({number: Place("0123abcd", 1_800_000_000_000 << 64 | 7) for number in range(16)})
    assert len(str(position)) < 300


def test_places_of_one_epoch_share_it() -> None:
    """An epoch stands in front of the places that have it."""
    position = Position({0: Place("a" * 8, 1), 1: Place("b" * 8, 2), 2: Place("a" * 8, 3)})
    assert str(position).count("a" * 8) == str(position).count("b" * 8) == 1
    assert Position.parse(str(position)) == position


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), unique=True))
def test_messages_and_places_have_one_order(points: list[tuple[int, int]]) -> None:
    """Behind a place is what follows it in the log; the last message of an entry has the number 0."""
    envelopes = []
    for position, nth in points:
        envelope = Envelope(b"", "room")
        envelope.position, envelope.nth = position, nth
        envelopes.append(envelope)
    envelopes.sort(key=order_of)
    for index, envelope in enumerate(envelopes):
        place = Place("0" * 8, envelope.position, envelope.nth)
        assert [each for each in envelopes if place.is_before(each)] == envelopes[index + 1 :]
