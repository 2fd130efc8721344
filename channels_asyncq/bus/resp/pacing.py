"""When a connection writes the commands that were called: a pure decision, as a table."""

from __future__ import annotations

from enum import Enum

#: After this many calls the next write does not wait for the end of the loop iteration: the server works on the
#: first commands while the next are packed. Each write is a system call. (`python -m benchmarks senders`)
CALLS_PER_WRITE = 16


class Pace(Enum):
    """When the commands that were called are written."""

    WRITE = "now"
    SCHEDULE = "at the end of this loop iteration"
    WAIT = "by a write that is scheduled, or when the transport takes more"


def pace_of(calls: int, unanswered: int, answered: int, *, is_scheduled: bool, is_paused: bool) -> Pace:
    """
    Return when to write, like Nagle's algorithm: at once when nothing is in flight, else once per loop iteration.

    scheduled | paused | calls since the last write | in flight and answered last       | pace
    ----------|--------|----------------------------|-----------------------------------|---------
    yes       | any    | CALLS_PER_WRITE or more    | any                               | WRITE
    yes       | any    | fewer                      | any                               | WAIT
    no        | yes    | any                        | any                               | WAIT
    no        | no     | any                        | only this one; at most 1 answered | WRITE
    no        | no     | any                        | any other                         | SCHEDULE

    Args:
        calls: calls since the last write, this one included; an open command counts once until it is sealed.
        unanswered: commands without a reply, this one included.
        answered: calls that the last read answered. Callers that were answered together may all call again now. A
            command that is written before theirs stays ahead of them in every later round trip.
        is_scheduled: a write at the end of this loop iteration is scheduled.
        is_paused: the transport's buffer is full; a write is scheduled when it has room again.
    """
    if is_scheduled:
        return Pace.WRITE if calls >= CALLS_PER_WRITE else Pace.WAIT
    if is_paused:
        return Pace.WAIT
    return Pace.WRITE if unanswered == 1 and answered <= 1 else Pace.SCHEDULE
