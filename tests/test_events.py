"""Log lines: their codes, and how many there may be."""

from __future__ import annotations

import logging

import pytest

from channels_asyncq import events as journal
from channels_asyncq.events import CONNECTION, EVERY, FORGOTTEN, LOSS, WIRE, Faults, Throttle, record
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["events"])
    return clock


def code_of(line: logging.LogRecord) -> object:
    return line.__dict__["code"]


def test_the_loggers() -> None:
    """The names that users configure."""
    assert [logger.name for logger in (CONNECTION, LOSS, WIRE)] == [
        "channels_asyncq.connection",
        "channels_asyncq.loss",
        "channels_asyncq.wire",
    ]


def test_record(caplog: pytest.LogCaptureFixture) -> None:
    """A line has its level, its event code in the record and at its end, and each of its fields apart."""
    with caplog.at_level(logging.DEBUG):
        text = "%(address)s is %(share)d%% back"
        record(CONNECTION, logging.INFO, "connection.restored", text, address="redis", share=100)
    [line] = caplog.records
    assert line.levelno == logging.INFO
    assert line.getMessage() == "redis is 100% back [connection.restored]"
    assert code_of(line) == "connection.restored"
    assert line.name == "channels_asyncq.connection"
    assert (line.__dict__["address"], line.__dict__["share"]) == ("redis", 100)
    assert line.msg == "%(address)s is %(share)d%% back [%(code)s]"


class Broken(logging.Handler):
    """A handler of a site that has failed, and says so by an exception."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("no space left on device")


@pytest.mark.parametrize("is_shown", [True, False])
def test_handler_that_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_shown: bool
) -> None:
    """It ends nothing: what is logged is often the last that is done before something else has to be."""
    monkeypatch.setattr(CONNECTION, "handlers", [Broken()])
    monkeypatch.setattr(logging, "raiseExceptions", is_shown)
    record(CONNECTION, logging.WARNING, "connection.lost", "x")
    assert ("no space left on device" in capsys.readouterr().err) is is_shown


def test_one_line_in_ten_seconds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Of a flood the first line is written; after ten seconds the next one says how many were left out."""
    throttle = Throttle()
    for number in range(1000):
        throttle.warn(LOSS, "loss.overflow", "message %(number)d", number=number)
    assert [line.getMessage() for line in caplog.records] == ["message 0 [loss.overflow]"]
    clock.turn(EVERY)
    throttle.warn(LOSS, "loss.overflow", "message %(number)d", number=1000)
    assert caplog.records[1].getMessage() == (
        "message 1000 (and 999 more since the last such line) [loss.overflow]"
    )
    clock.turn(EVERY)
    throttle.warn(LOSS, "loss.overflow", "message %(number)d", number=1001)
    assert caplog.records[2].getMessage() == "message 1001 [loss.overflow]"
    assert {line.levelno for line in caplog.records} == {logging.WARNING}
    assert {code_of(line) for line in caplog.records} == {"loss.overflow"}


def test_a_moment_before_its_time(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The pause is counted from the last line that was written, not from the last event."""
    throttle = Throttle()
    throttle.warn(WIRE, "wire.unreadable", "x")
    clock.turn(EVERY - 0.001)
    throttle.warn(WIRE, "wire.unreadable", "x")
    assert len(caplog.records) == 1
    clock.turn(0.002)
    throttle.warn(WIRE, "wire.unreadable", "x")
    assert len(caplog.records) == 2


def test_codes_are_apart(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A flood of one kind of event hides no other kind, nor that of another throttle."""
    throttle = Throttle()
    for _ in range(10):
        throttle.warn(LOSS, "loss.overflow", "full")
        throttle.warn(WIRE, "wire.unreadable", "garbage")
    Throttle().warn(LOSS, "loss.overflow", "of somebody else")
    assert [code_of(line) for line in caplog.records] == ["loss.overflow", "wire.unreadable", "loss.overflow"]


def test_the_pause_is_ten_seconds() -> None:
    """What the documentation says."""
    assert journal.EVERY == 10.0


def test_fault_that_lasts(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A fault met every second for an hour: at once, then after 10 s, 20, 40 ... with how often it was met."""
    faults = Faults()
    said: list[int] = []
    for second in range(3601):
        faults.warn(
            CONNECTION, "connection.failed", "refused", "cannot connect: %(reason)s", reason="refused"
        )
        if len(caplog.records) > len(said):
            said.append(second)
        clock.turn(1)
    assert said == [0, 10, 30, 70, 150, 310, 630, 1270, 1910, 2550, 3190]
    assert caplog.records[2].getMessage() == (
        "cannot connect: refused (and 19 more since the last such line) [connection.failed]"
    )


def test_faults_are_apart(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Another cause is another fault, and so is another event; that of somebody else is the same."""
    faults = Faults()
    for _ in range(3):
        faults.warn(CONNECTION, "connection.failed", "refused", "refused")
        faults.warn(CONNECTION, "connection.failed", "wrong password", "wrong password")
        faults.warn(CONNECTION, "connection.lost", "refused", "lost", level=logging.INFO)
    assert [line.getMessage().split(" [")[0] for line in caplog.records] == ["refused", "wrong password"]


def test_fault_that_was_gone(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """One that comes back after a minute is said at once again, without a count."""
    faults = Faults()
    for _ in range(20):
        faults.warn(CONNECTION, "connection.failed", "refused", "refused")
        clock.turn(5)
    count = len(caplog.records)
    clock.turn(FORGOTTEN - 5)
    faults.warn(CONNECTION, "connection.failed", "refused", "refused")
    assert [line.getMessage() for line in caplog.records[count:]] == ["refused [connection.failed]"]


def test_many_causes_are_few_in_memory(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Causes that never repeat are forgotten, those met longest ago first."""
    faults = Faults()
    for number in range(1000):
        faults.warn(CONNECTION, "connection.failed", "lasting", "lasting")
        faults.warn(CONNECTION, "connection.failed", f"error {number}", "one of many")
    assert len(faults._known) <= journal._MOST_FAULTS
    assert sum("lasting" in line.getMessage() for line in caplog.records) == 1
