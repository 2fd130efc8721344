"""Sequence numbers out, the highest seen in, and positions in the logs: pure state, no I/O."""

from __future__ import annotations

_FORGET_AFTER = 900.0
_LOW = (1 << 64) - 1


def parse_position(text: bytes) -> int:
    """
    Return the id of a log's entry, `<milliseconds>-<number>`, as one int that sorts as the ids do.

    Raises:
        ValueError: the text is not such an id.
    """
    parts = text.partition(b"-")
    milliseconds, number = int(parts[0]), int(parts[2])
    if not (0 <= milliseconds <= _LOW and 0 <= number <= _LOW):
        raise ValueError(f"{text.decode(errors='replace')} is no position in a log: beyond 64 bits")
    return milliseconds << 64 | number


def format_position(position: int) -> bytes:
    return b"%d-%d" % (position >> 64, position & _LOW)


def milliseconds_of(position: int) -> int:
    """Return the time at which the entry was added, by the server's clock in ms."""
    return position >> 64


class SequenceNumbers:
    """The numbers of one stream of a session's sends or pushes, from 1, in the order of the writes."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def take(self, count: int = 1) -> int:
        """Reserve the next `count` numbers; return the first."""
        first = self._last + 1
        self._last += count
        return first


class Seen:
    """The highest number that was delivered of a stream, and when the stream was last used."""

    __slots__ = ("highest", "last_used")

    def __init__(self) -> None:
        self.highest = 0
        self.last_used = 0.0


class DuplicateFilter:
    """
    The highest number that was delivered of each stream of one partition. A number not above it is a repeat.

    A session has two streams in a partition: logged messages and unlogged ones. Unlogged messages have numbers of
    their own, because they may arrive before earlier logged messages have been read from the log.

    A server executes the numbers of a stream in their order, except those of a connection that its session has
    abandoned. A message that arrives late from such a connection was resent, or reported as DeliveryUnknown.
    Delivering it now would break the order. A stream that is not used for 15 minutes is forgotten.
    """

    __slots__ = ("_logged", "_unlogged")

    def __init__(self) -> None:
        # By session id.
        self._logged: dict[bytes, Seen] = {}
        self._unlogged: dict[bytes, Seen] = {}

    def __len__(self) -> int:
        return len(self._logged) + len(self._unlogged)

    def of(self, session_id: bytes, is_logged: bool) -> Seen:
        """Return the record of a stream, for the caller to read and to set."""
        streams = self._logged if is_logged else self._unlogged
        seen = streams.get(session_id)
        if seen is None:
            seen = streams[session_id] = Seen()
        return seen

    def highest(self, session_id: bytes, is_logged: bool) -> int:
        """Return the highest number that was delivered, 0 for none."""
        seen = (self._logged if is_logged else self._unlogged).get(session_id)
        return 0 if seen is None else seen.highest

    def note_highest(self, session_id: bytes, seq: int, now: float) -> None:
        """Note that logged messages up to this number will not come any more, or are repeats."""
        seen = self.of(session_id, True)
        if seq > seen.highest:
            seen.highest, seen.last_used = seq, now

    def sweep(self, now: float) -> None:
        """Forget the streams that were not used for 15 minutes; `now` in seconds of the monotonic clock."""
        for streams in (self._logged, self._unlogged):
            for session_id in [key for key, seen in streams.items() if now - seen.last_used > _FORGET_AFTER]:
                del streams[session_id]
