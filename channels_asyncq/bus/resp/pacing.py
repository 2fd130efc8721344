"""When a connection writes what was called: a pure decision, as a table."""

from __future__ import annotations

from enum import Enum

#: Commands, or calls that share a command, after which a turn's commands leave in a write of their own. The
#: server works on the first while the next are packed. (32 senders: 172,000 sends a second with one write a
#: turn, 240,000 so; one write more costs 3 us.)
EARLY = 16


class Pace(Enum):
    """What to do after a call."""

    WRITE = "now"
    SCHEDULE = "at the end of this turn of the loop"
    WAIT = "something else will write it"


def pace_of(calls: int, unanswered: int, answered: int, *, is_scheduled: bool, is_paused: bool) -> Pace:
    """
    Return when to write, like Nagle's algorithm: at once when nothing is in flight, else once a turn.

    scheduled | paused | calls since the last write | in flight and answered last      | pace
    ----------|--------|----------------------------|----------------------------------|---------
    yes       | any    | EARLY or more              | any                              | WRITE
    yes       | any    | fewer                      | any                              | WAIT
    no        | yes    | any                        | any                              | WAIT
    no        | no     | any                        | only this; at most one answered  | WRITE
    no        | no     | any                        | else                             | SCHEDULE

    Args:
        calls: calls since the last write, this one included; an open command counts once until it is sealed.
        unanswered: commands without a reply, this one included.
        answered: calls that the last read answered. If several were answered together, each may call again now;
            a command that left ahead of the others would stay ahead of them in each round.
        is_scheduled: a write at the end of this turn is scheduled.
        is_paused: the transport takes no more; when it does again, a write is scheduled.
    """
    if is_scheduled:
        return Pace.WRITE if calls >= EARLY else Pace.WAIT
    if is_paused:
        return Pace.WAIT
    return Pace.WRITE if unanswered == 1 and answered <= 1 else Pace.SCHEDULE
