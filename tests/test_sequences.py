"""Sequence numbers out, the highest seen in, positions: tables of cases, and what holds for all of them."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq.bus.redis.sequences import (
    DuplicateFilter,
    SequenceNumbers,
    format_position,
    milliseconds_of,
    parse_position,
)

A, B = b"a" * 8, b"b" * 8

words = st.integers(0, 2**64 - 1)
ids = st.tuples(words, words)


class TestPositions:
    """The id of a log's entry as one int."""

    @pytest.mark.parametrize(
        ("text", "position"),
        [
            (b"0-0", 0),
            (b"0-1", 1),
            (b"1-0", 1 << 64),
            (b"1700000000000-7", 1_700_000_000_000 << 64 | 7),
            (b"18446744073709551615-18446744073709551615", (1 << 128) - 1),
        ],
    )
    def test_parse_and_format(self, text: bytes, position: int) -> None:
        """Both parts have 64 bits, and come back as they were."""
        assert parse_position(text) == position
        assert format_position(position) == text

    @pytest.mark.parametrize(
        "text",
        [b"", b"-", b"1", b"1-", b"-1", b"a-1", b"1-2-3", b"1 2", b"1--2", b"%d-0" % 2**64, b"0-%d" % 2**64],
    )
    def test_no_id(self, text: bytes) -> None:
        """Anything else is a ValueError, which on_message() counts as unreadable."""
        with pytest.raises(ValueError, match=r"invalid literal|no position in a log"):
            parse_position(text)

    @given(ids, ids)
    def test_order(self, one: tuple[int, int], other: tuple[int, int]) -> None:
        """Positions sort as the server sorts its ids, and carry the server's time."""
        first, second = parse_position(b"%d-%d" % one), parse_position(b"%d-%d" % other)
        assert (first < second) is (one < other)
        assert milliseconds_of(first) == one[0]
        assert parse_position(format_position(first)) == first


class TestNumbers:
    """Numbers of one session, per partition."""

    def test_consecutive_within_each_partition(self) -> None:
        """Each partition counts for itself, from 1."""
        outbox: defaultdict[int, SequenceNumbers] = defaultdict(SequenceNumbers)
        assert [outbox[partition].take() for partition in (3, 3, 0, 3, 0)] == [1, 2, 1, 3, 2]

    @given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 5))))
    def test_no_gaps_and_no_repeats(self, takes: list[tuple[int, int]]) -> None:
        """Whatever the order of the sends, a partition's numbers are 1, 2, 3..., also several at a time."""
        outbox: defaultdict[int, SequenceNumbers] = defaultdict(SequenceNumbers)
        given_out: defaultdict[int, list[int]] = defaultdict(list)
        for partition, count in takes:
            first = outbox[partition].take(count)
            given_out[partition] += range(first, first + count)
        for numbers in given_out.values():
            assert numbers == list(range(1, len(numbers) + 1))


class TestDuplicateFilter:
    """What was delivered of each session's two streams in one partition."""

    def test_first_number_may_be_any(self) -> None:
        """Of a session that nothing was heard of, nothing was seen, and to ask notes nothing."""
        seen = DuplicateFilter()
        assert seen.highest(A, True) == seen.highest(A, False) == 0
        assert len(seen) == 0

    def test_one_per_session_and_stream(self) -> None:
        """The same number of another session, or in another stream, is another message."""
        seen = DuplicateFilter()
        seen.of(A, True).highest = 7
        assert seen.highest(A, True) == seen.of(A, True).highest == 7
        assert seen.highest(A, False) == 0
        assert seen.highest(B, True) == 0
        assert len(seen) == 1
        seen.of(A, False).highest = 3
        assert (seen.highest(A, True), seen.highest(A, False), len(seen)) == (7, 3, 2)

    @pytest.mark.parametrize("is_logged", [True, False])
    def test_sweep_forgets_what_is_unused(self, is_logged: bool) -> None:
        """What is unused for more than 15 minutes is forgotten; use keeps it."""
        seen = DuplicateFilter()
        for session_id, highest, last_used in ((A, 1, 0.0), (B, 1, 0.0), (B, 2, 500.0)):
            entry = seen.of(session_id, is_logged)
            entry.highest, entry.last_used = highest, last_used
        seen.sweep(900.0)
        assert len(seen) == 2
        seen.sweep(901.0)
        assert len(seen) == 1
        assert seen.highest(B, is_logged) == 2
