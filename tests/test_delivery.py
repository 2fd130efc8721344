"""Sequence numbers out, windows in, positions: tables of cases, and what holds for all of them."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_asyncq.bus.delivery import (
    WINDOW,
    Outbox,
    SeenWindow,
    SeenWindows,
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

    @pytest.mark.parametrize("text", [b"", b"-", b"1", b"1-", b"-1", b"a-1", b"1-2-3", b"1 2"])
    def test_no_id(self, text: bytes) -> None:
        """Anything else is a ValueError, which on_message() counts as unreadable."""
        with pytest.raises(ValueError):
            parse_position(text)

    @given(ids, ids)
    def test_order(self, one: tuple[int, int], other: tuple[int, int]) -> None:
        """Positions sort as the server sorts its ids, and carry the server's time."""
        first, second = parse_position(b"%d-%d" % one), parse_position(b"%d-%d" % other)
        assert (first < second) is (one < other)
        assert milliseconds_of(first) == one[0]
        assert parse_position(format_position(first)) == first


class TestOutbox:
    """Numbers of one node, per partition."""

    def test_consecutive_within_each_partition(self) -> None:
        """Each partition counts for itself, from 1."""
        outbox = Outbox()
        assert [outbox.next(partition) for partition in (3, 3, 0, 3, 0)] == [1, 2, 1, 3, 2]

    @given(st.lists(st.integers(0, 7)))
    def test_no_gaps_and_no_repeats(self, partitions: list[int]) -> None:
        """Whatever the order of the sends, a partition's numbers are 1, 2, 3..."""
        outbox = Outbox()
        given_out = defaultdict(list)
        for partition in partitions:
            given_out[partition].append(outbox.next(partition))
        for numbers in given_out.values():
            assert numbers == list(range(1, len(numbers) + 1))


class TestSeenWindow:
    """Which numbers were delivered."""

    def test_first_number_is_not_seen_yet(self) -> None:
        """A new window has seen nothing: neither the number it was made for, nor those around it."""
        window = SeenWindow(500)
        assert not any(window.has(number) for number in range(1, 600))

    @pytest.mark.parametrize(
        ("noted", "seen", "unseen"),
        [
            ([1], [1], [2, 3]),
            ([1, 2, 3], [1, 2, 3], [4]),
            ([3, 1], [1, 3], [2, 4]),  # a session that came late to one name
            ([5, 5], [5], [4, 6]),
            ([1, WINDOW], [1, WINDOW], [2, WINDOW - 1, WINDOW + 1]),
            ([1, WINDOW + 1], [0, 1, WINDOW + 1], [2, WINDOW]),  # 1 is further behind than any resend
            ([1, 5 * WINDOW], [1, 4 * WINDOW, 5 * WINDOW], [4 * WINDOW + 1, 5 * WINDOW - 1, 5 * WINDOW + 1]),
            ([2 * WINDOW, 1], [1, WINDOW, 2 * WINDOW], [WINDOW + 1]),  # too late to be noted
        ],
    )
    def test_noted(self, noted: list[int], seen: list[int], unseen: list[int]) -> None:
        """What was noted is seen, whatever its order; so is everything 1024 or more behind the highest."""
        window = SeenWindow(noted[0])
        for number in noted:
            window.note(number)
        assert [window.has(number) for number in seen] == [True] * len(seen)
        assert [window.has(number) for number in unseen] == [False] * len(unseen)

    @given(
        st.integers(1, 4 * WINDOW),
        st.lists(st.integers(-WINDOW - 3, WINDOW + 3), max_size=60),
        st.lists(st.integers(-2 * WINDOW, 2 * WINDOW), max_size=60),
    )
    def test_like_a_set(self, first: int, steps: list[int], probes: list[int]) -> None:
        """A window is a set of all noted numbers that forgets what is 1024 behind the highest, as seen."""
        window, model = SeenWindow(first), set[int]()
        highest = number = first
        for step in [0, *steps]:
            number += step
            window.note(number)
            model.add(number)
            highest = max(highest, number)
        assert window.highest == highest
        for probe in (highest + step for step in probes):
            expected = probe in model or probe <= highest - WINDOW
            assert window.has(probe) is expected

    @given(st.lists(st.integers(1, 10**6), max_size=100))
    def test_memory_is_bounded(self, numbers: list[int]) -> None:
        """However the numbers jump, a window holds 1024 bits."""
        window = SeenWindow(1)
        for number in numbers:
            window.note(number)
        assert window._bits.bit_length() <= WINDOW


class TestSeenWindows:
    """The windows of all nodes."""

    def test_one_per_node_and_partition(self) -> None:
        """The same number of another node, or in another partition, is another message."""
        windows = SeenWindows()
        windows.window(A, 0, 7, 0.0).note(7)
        assert windows.window(A, 0, 7, 0.0).has(7)
        assert not windows.window(A, 1, 7, 0.0).has(7)
        assert not windows.window(B, 0, 7, 0.0).has(7)
        assert len(windows) == 3

    def test_sweep_forgets_what_is_unused(self) -> None:
        """A window unused for more than 15 minutes is forgotten; use keeps it."""
        windows = SeenWindows()
        windows.window(A, 0, 1, 0.0)
        windows.window(B, 0, 1, 0.0).note(1)
        windows.window(B, 0, 1, 500.0)
        windows.sweep(900.0)
        assert len(windows) == 2
        windows.sweep(901.0)
        assert len(windows) == 1
        assert windows.window(B, 0, 1, 901.0).has(1)
