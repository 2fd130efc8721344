"""What is read from the logs after a lost connection, against logs that the test holds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from channels_asyncq.bus.delivery import (
    WINDOW,
    Outbox,
    SeenWindow,
    SeenWindows,
    format_position,
    milliseconds_of,
    parse_position,
)
from channels_asyncq.bus.recovery import LogReader
from channels_asyncq.bus.subscriptions import SubscriptionLedger
from channels_asyncq.envelopes import Envelope, pack, unpack
from channels_asyncq.options import Options

NODE = bytes(range(8))
TOPIC = b"asgi:0:group:room"
NOW = 100_000


class Receiver:
    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.lost: dict[str, set[bytes]] = {}
        self.unreadable: list[str] = []
        self.refusals = 0

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        if self.refusals:
            self.refusals -= 1
            return False
        self.got.append(envelope.payload)
        return True

    def on_loss(self, reason: str, topics: set[bytes]) -> None:
        self.lost[reason] = topics

    def on_unreadable(self, topic: bytes, reason: str) -> None:
        self.unreadable.append(reason)


class Logs:
    """A LogReader over one log, whose partition is 3."""

    def __init__(self) -> None:
        self.entries: list[list[Any]] = []
        self.last = b"0-0"
        self.receiver = Receiver()
        self.ledger = SubscriptionLedger()
        self.ledger.want(TOPIC, 3)
        self.reader = LogReader(
            Options.from_config({}),
            self.receiver,  # type: ignore[arg-type]  # what the reader calls of it
            self.ledger,
            self._read,
            lambda topic, data: unpack(data),
        )
        self.pages = 0

    async def _read(self, partition: int, start: bytes, count: int) -> list[Any]:
        assert partition == 3
        self.pages += 1
        found = [entry for entry in self.entries if parse_position(entry[0]) >= parse_position(start)]
        return [self.last, b"%d" % NOW, found[:count]]

    def add(self, number: int, *, at: int = NOW, kind: bytes = b"e", topic: bytes = TOPIC) -> bytes:
        self.last = b"%d-%d" % (at, number)
        data = pack("room", b"%d" % number, NODE, number)
        self.entries.append([self.last, [b"t", topic, kind, data]])
        return data

    async def catch_up(self, *, has_changed: bool = False) -> None:
        async with asyncio.timeout(10):
            await self.reader.catch_up(has_changed=has_changed)


@pytest.fixture
def logs() -> Logs:
    logs = Logs()
    logs.entries.append([b"1-0", [b"begin", b""]])
    logs.last = b"1-0"
    logs.reader.move_to({3: b"1-0"})
    return logs


async def test_missed_messages_are_delivered_in_order(logs: Logs) -> None:
    """From the position to the end, page by page, once; what was seen before is left out."""
    for number in range(1, 1201):
        logs.add(number)
    entry = logs.ledger.want(TOPIC, 3)
    seen = unpack(pack("room", b"5", NODE, 5))
    assert logs.reader.deliver(entry, seen, 0)
    await logs.catch_up()
    assert logs.receiver.got == [b"5", *(b"%d" % n for n in range(1, 1201) if n != 5)]
    assert logs.receiver.lost == {}
    assert logs.pages == 3
    assert logs.reader.read_until == {3: parse_position(logs.last)} == logs.reader.positions
    await logs.catch_up()
    assert len(logs.receiver.got) == 1200


async def test_topics_of_others_are_passed_over(logs: Logs) -> None:
    """A log holds what concerns other sessions too."""
    logs.add(1, topic=b"asgi:0:group:other")
    logs.add(2)
    await logs.catch_up()
    assert logs.receiver.got == [b"2"]


@pytest.mark.parametrize("has_changed", [False, True])
async def test_a_log_that_does_not_reach_back(logs: Logs, has_changed: bool) -> None:
    """What is left is delivered, and the loss is told: once, and for another server as such."""
    logs.entries.clear()
    logs.add(7)
    await logs.catch_up(has_changed=has_changed)
    assert logs.receiver.got == [b"7"]
    assert logs.receiver.lost == {"server_changed" if has_changed else "trimmed": {TOPIC}}


async def test_a_log_that_was_trimmed_to_nothing(logs: Logs) -> None:
    """If its last id is the position, nothing was missed; if it is not, something was."""
    logs.entries.clear()
    await logs.catch_up()
    assert logs.receiver.lost == {}
    logs.last = b"2-0"
    await logs.catch_up()
    assert logs.receiver.lost == {"trimmed": {TOPIC}}


async def test_too_large_and_expired(logs: Logs) -> None:
    """Messages of which the log has the header only, or that are too old, are told, unless they were seen."""
    seen = logs.add(1, kind=b"h")
    entry = logs.ledger.want(TOPIC, 3)
    assert logs.reader.deliver(entry, unpack(seen), 0)
    await logs.catch_up()
    assert logs.receiver.lost == {}
    logs.add(2, kind=b"h")
    await logs.catch_up()
    assert logs.receiver.lost == {"too_large": {TOPIC}}
    logs.receiver.lost.clear()
    logs.reader.positions[3] = parse_position(b"1-0")
    logs.entries[1:] = []
    logs.add(3, at=NOW - 61_000)
    await logs.catch_up()
    assert logs.receiver.lost == {"expired": {TOPIC}}
    assert logs.receiver.got == [b"1"]


async def test_a_full_channel_is_waited_for(logs: Logs) -> None:
    """What the receiver does not take is offered again after resume()."""
    logs.add(1)
    logs.receiver.refusals = 1
    reading = asyncio.create_task(logs.catch_up())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not logs.receiver.refusals
    assert not logs.receiver.got
    logs.reader.resume()
    await reading
    assert logs.receiver.got == [b"1"]


async def test_garbage_in_a_log(logs: Logs) -> None:
    """It is counted, and what comes after it is delivered."""
    logs.add(1)
    logs.entries[-1][1][3] = b"garbage"
    logs.add(2)
    await logs.catch_up()
    assert logs.receiver.got == [b"2"]
    assert len(logs.receiver.unreadable) == 1


def test_external_messages_have_no_number(logs: Logs) -> None:
    """They are delivered each time; a refusal leaves the position where it was."""
    entry = logs.ledger.want(TOPIC, 3)
    external = Envelope(b"{}", "room")
    assert logs.reader.deliver(entry, external, 0) and logs.reader.deliver(entry, external, 0)
    logs.receiver.refusals = 1
    assert not logs.reader.deliver(entry, external, 9)
    assert logs.reader.positions == {3: parse_position(b"1-0")}
    assert logs.reader.deliver(entry, external, 9)
    assert logs.reader.positions == {3: 9}


# Numbers and positions


def test_positions_sort_as_ids_do() -> None:
    """By time, then by number; there and back."""
    ids = [b"0-0", b"1-0", b"1-1", b"1-10", b"2-0", b"1700000000000-5"]
    positions = [parse_position(text) for text in ids]
    assert positions == sorted(positions)
    assert [format_position(position) for position in positions] == ids
    assert milliseconds_of(positions[-1]) == 1_700_000_000_000
    with pytest.raises(ValueError, match="invalid"):
        parse_position(b"garbage")


def test_outbox_counts_per_partition() -> None:
    """Numbers are consecutive from 1 in each partition."""
    outbox = Outbox()
    assert [outbox.next(1), outbox.next(1), outbox.next(2), outbox.next(1)] == [1, 2, 1, 3]
    assert outbox.last(1) == 3


def test_window() -> None:
    """It knows the last 1024 numbers; what is further behind counts as seen."""
    window = SeenWindow(10)
    assert not window.has(10)
    window.note(10)
    assert window.has(10) and not window.has(9) and not window.has(11)
    window.note(13)
    window.note(11)
    assert [number for number in range(9, 15) if window.has(number)] == [10, 11, 13]
    window.note(13 + WINDOW)
    assert window.has(13) and window.has(1) and not window.has(14)
    window.note(1)  # too far behind to be kept
    window.note(10_000_000)
    assert not window.has(10_000_000 - 1) and window.has(10_000_000)


def test_unused_windows_are_forgotten() -> None:
    """After 15 minutes; a window in use stays."""
    windows = SeenWindows()
    windows.window(NODE, 1, 5, now=0.0)
    windows.window(NODE, 2, 5, now=800.0)
    windows.sweep(901.0)
    assert len(windows) == 1
    assert windows.window(NODE, 2, 6, now=902.0).highest == 5
