"""Sequence numbers out, windows of seen numbers in, and positions in the logs: pure state, no I/O."""

from __future__ import annotations

from collections import defaultdict

# As many sends of a node may be unanswered, so no repeat can be further behind.
WINDOW = 1024
_ALL = (1 << WINDOW) - 1
_FORGET_AFTER = 900.0
_LOW = (1 << 64) - 1


def parse_position(text: bytes) -> int:
    """
    Return the id of a log's entry, `<milliseconds>-<number>`, as one int that sorts as the ids do.

    Raises:
        ValueError: it is no such id.
    """
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds) << 64 | int(number)


def format_position(position: int) -> bytes:
    return b"%d-%d" % (position >> 64, position & _LOW)


def milliseconds_of(position: int) -> int:
    """Return when the entry was made, by the server's clock in ms."""
    return position >> 64


class Outbox:
    """Numbers the sends, or the pushes, of a node: from 1 in each partition, in the order of the writes."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: defaultdict[int, int] = defaultdict(int)

    def next(self, partition: int) -> int:
        number = self._last[partition] = self._last[partition] + 1
        return number


class SeenWindow:
    """
    Which numbers of one node have been delivered: the last 1024 up to the highest, as bits.

    What is further behind counts as seen. A node's first number may be any.
    """

    __slots__ = ("_bits", "highest", "last_used")

    def __init__(self, number: int) -> None:
        self.highest = number
        self._bits = 0
        self.last_used = 0.0

    def has(self, number: int) -> bool:
        behind = self.highest - number
        return behind >= 0 and (behind >= WINDOW or bool(self._bits >> behind & 1))

    def note(self, number: int) -> None:
        ahead = number - self.highest
        if ahead > 0:
            self._bits = (self._bits << ahead | 1) & _ALL if ahead < WINDOW else 1
            self.highest = number
        elif -ahead < WINDOW:
            self._bits |= 1 << -ahead


class SeenWindows:
    """The windows of all nodes that were heard of, per partition; one not used for 15 minutes is forgotten."""

    __slots__ = ("_windows",)

    def __init__(self) -> None:
        self._windows: dict[tuple[bytes, int], SeenWindow] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def window(self, node: bytes, partition: int, number: int, now: float) -> SeenWindow:
        """Return a node's window, made if it is new; `number` is what arrived."""
        window = self._windows.get((node, partition))
        if window is None:
            window = self._windows[node, partition] = SeenWindow(number)
        window.last_used = now
        return window

    def sweep(self, now: float) -> None:
        for key in [key for key, window in self._windows.items() if now - window.last_used > _FORGET_AFTER]:
            del self._windows[key]
