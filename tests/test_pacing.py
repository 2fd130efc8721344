"""When a connection writes: each row of the table."""

import itertools

import pytest

from channels_asyncq.bus.resp.pacing import CALLS_PER_WRITE, Pace, pace_of


@pytest.mark.parametrize(
    ("calls", "unanswered", "answered", "is_scheduled", "is_paused", "pace"),
    [
        pytest.param(1, 1, 0, False, False, Pace.WRITE, id="alone"),
        pytest.param(1, 1, 1, False, False, Pace.WRITE, id="alone again"),
        pytest.param(1, 1, 2, False, False, Pace.SCHEDULE, id="several were answered together"),
        pytest.param(1, 2, 0, False, False, Pace.SCHEDULE, id="another is in flight"),
        pytest.param(1, 2, 0, True, False, Pace.WAIT, id="a write is scheduled"),
        pytest.param(
            CALLS_PER_WRITE - 1,
            CALLS_PER_WRITE,
            0,
            True,
            False,
            Pace.WAIT,
            id="fewer than make a write of their own",
        ),
        pytest.param(
            CALLS_PER_WRITE,
            CALLS_PER_WRITE,
            0,
            True,
            False,
            Pace.WRITE,
            id="as many as make a write of their own",
        ),
        pytest.param(
            CALLS_PER_WRITE, CALLS_PER_WRITE, 0, False, True, Pace.WAIT, id="many, and the transport is full"
        ),
        pytest.param(1, 1, 0, False, True, Pace.WAIT, id="alone, and the transport is full"),
    ],
)
def test_pace(
    calls: int, unanswered: int, answered: int, is_scheduled: bool, is_paused: bool, pace: Pace
) -> None:
    """Each row of the table."""
    decided = pace_of(calls, unanswered, answered, is_scheduled=is_scheduled, is_paused=is_paused)
    assert decided is pace


def test_nothing_is_forgotten() -> None:
    """Each call is written, or a write is scheduled, or resume_writing() will schedule one."""
    for calls, more, answered, is_scheduled, is_paused in itertools.product(
        (1, 2, CALLS_PER_WRITE, 2 * CALLS_PER_WRITE), (0, 1, 50), (0, 1, 2, 50), (False, True), (False, True)
    ):
        pace = pace_of(calls, calls + more, answered, is_scheduled=is_scheduled, is_paused=is_paused)
        if pace is Pace.WAIT:
            assert is_scheduled or is_paused
