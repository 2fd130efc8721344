"""Sequence numbers out, the highest seen in, and positions in the logs: pure state, no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import count

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


def stream_of(partition: int, *, is_logged: bool) -> int:
    """
    Return the key of the numbers that a partition's envelopes get.

    What is not logged has numbers of its own: it arrives while logged envelopes before it are still to be read.
    """
    return partition if is_logged else ~partition


class Outbox:
    """Numbers the sends, or the pushes, of a node: from 1 in each stream, in the order of the writes."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: defaultdict[int, Iterator[int]] = defaultdict(partial(count, 1))

    def numbers(self, stream: int) -> Iterator[int]:
        """Return what counts a stream, to take one number after the other from: it is the only one."""
        return self._numbers[stream]

    def next(self, stream: int) -> int:
        return next(self._numbers[stream])


class _Seen:
    __slots__ = ("highest", "last_used")

    def __init__(self) -> None:
        self.highest = 0
        self.last_used = 0.0


class SeenNumbers:
    """
    The highest number that was delivered of each stream of each node; what is not above it is a repeat, or late.

    The numbers of a stream are executed in their order, save by connections that their node has given up. What
    such a one brings was sent again and seen, or its sender was told DeliveryUnknown: it must not come behind
    what was sent after it. One that is not used for 15 minutes is forgotten.
    """

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: dict[tuple[bytes, int], _Seen] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def has(self, node: bytes, stream: int, number: int) -> bool:
        seen = self._streams.get((node, stream))
        return seen is not None and number <= seen.highest

    def note(self, node: bytes, stream: int, number: int, now: float) -> None:
        seen = self._streams.get((node, stream))
        if seen is None:
            seen = self._streams[node, stream] = _Seen()
        if number > seen.highest:
            seen.highest = number
        seen.last_used = now

    def sweep(self, now: float) -> None:
        for key in [key for key, seen in self._streams.items() if now - seen.last_used > _FORGET_AFTER]:
            del self._streams[key]
