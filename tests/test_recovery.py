"""LogReader against scripted logs: what it delivers and reports, and where the partitions are afterwards."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import pytest

from channels_asyncq import slices
from channels_asyncq.bus.redis import recovery
from channels_asyncq.bus.redis.partition import Partition
from channels_asyncq.bus.redis.recovery import LogReader
from channels_asyncq.bus.redis.sequences import parse_position
from channels_asyncq.exceptions import LayerUnavailable
from channels_asyncq.messages.envelopes import HEADER_ONLY, Envelope
from channels_asyncq.messages.framing import pack, pack_names
from channels_asyncq.settings.options import Options
from tests.contract import eventually
from tests.partitions import Home, Recorder, as_node, page_of, shared_for

A, B = b"a" * 8, b"b" * 8
NOW = 1_700_000_000_000
Entry = tuple[bytes, list[bytes]]


def at(milliseconds: int, number: int = 0) -> bytes:
    """The id of an entry so many ms after the beginning of time."""
    return b"%d-%d" % (NOW + milliseconds, number)


def position(milliseconds: int, number: int = 0) -> int:
    return parse_position(at(milliseconds, number))


@dataclass
class Log:
    """One partition's stream."""

    entries: list[Entry] = field(default_factory=list)
    last: bytes = b"0-0"

    def begin(self, milliseconds: int = 0) -> None:
        self._add(at(milliseconds), [b"begin", b""])

    def add(
        self, milliseconds: int, topic: bytes, seq: int, session_id: bytes = A, *, is_large: bool = False
    ) -> None:
        body, flags, kind = (b"", HEADER_ONLY, b"h") if is_large else (b"%d" % seq, 0, b"e")
        data = pack([(pack_names("g"), body)], session_id, seq, flags)
        self._add(at(milliseconds), [b"t", topic, kind, data])

    def add_raw(self, milliseconds: int, topic: bytes, data: bytes) -> None:
        self._add(at(milliseconds), [b"t", topic, b"e", data])

    def _add(self, name: bytes, fields: list[bytes]) -> None:
        self.entries.append((name, fields))
        self.last = name

    def trim(self, count: int) -> None:
        """Drop the oldest entries; the last id stays."""
        del self.entries[:count]


class Server:
    """Pages of logs; `now` is its clock, in ms."""

    def __init__(self) -> None:
        self.logs: dict[int, Log] = {}
        self.now = NOW
        self.pages: list[tuple[int, bytes]] = []
        #: The topics that the pages were asked for.
        self.filters: list[Collection[bytes]] = []
        #: Called before each page; may raise, or change the logs.
        self.before: Callable[[int], None] = lambda partition: None

    def log(self, partition: int) -> Log:
        return self.logs.setdefault(partition, Log())

    async def read_log(
        self, partition: Partition, start: bytes, count: int, topics: Collection[bytes] = ()
    ) -> list[object]:
        self.before(partition.number)
        self.pages.append((partition.number, start))
        self.filters.append(topics)
        log = self.log(partition.number)
        found = [entry for entry in log.entries if parse_position(entry[0]) >= parse_position(start)]
        await asyncio.sleep(0)
        return page_of(found, log.last, self.now, count, topics)


@dataclass
class World:
    server: Server
    receiver: Recorder
    partitions: list[Partition]
    reader: LogReader
    options: Options
    #: Seconds for each log, and entries.
    limit: tuple[float, int] = (60.0, 10**6)

    async def catch_up(self, *, has_changed: bool = False, has_gap: bool = False) -> None:
        """Read all logs, of the server that the positions are from or of another one."""
        changed = self.partitions if has_changed else []
        await self.read(self.partitions, changed, self.partitions if has_gap else ())

    async def read(
        self,
        partitions: Collection[Partition],
        changed: Collection[Partition] = (),
        gaps: Collection[Partition] = (),
    ) -> None:
        """Read these logs to their ends, within `limit`."""
        for backlog in await self.reader.catch_up(partitions, changed, gaps):
            backlog.limit(*self.limit)
            await self.reader.read_on(backlog)
            await self.reader.finish(backlog)

    def positions(self) -> list[int | None]:
        return [partition.position for partition in self.partitions]

    def live(self, topic: bytes, seq: int, milliseconds: int, session_id: bytes = A) -> bool:
        """A push that arrives in partition 0."""
        partition = self.partitions[0]
        entry = partition.subscriptions.get(topic)
        assert entry is not None
        taken = partition.deliver(entry, [Envelope(b"x", "g", session_id, seq)], is_logged=True)
        if taken:
            partition.passed(position(milliseconds))
        return taken


@pytest.fixture
async def world() -> World:
    """Topics `x` and `y` in partition 0 and `z` in partition 1; positions at the beginning of both logs."""
    server, receiver, home = Server(), Recorder(), Home()
    options, shared = shared_for(receiver, expiry=60)
    partitions = [home.partition(number, shared) for number in (0, 1)]
    for topic, number in ((b"x", 0), (b"y", 0), (b"z", 1)):
        partitions[number].subscriptions.want(topic, is_logged=True)
    partitions[0].subscriptions.want(b"queue", is_logged=False)
    for partition in partitions:
        server.log(partition.number).begin()
        partition.position = position(0)
    return World(server, receiver, partitions, LogReader(shared, server), options)


async def test_what_was_missed_is_delivered_in_order(world: World) -> None:
    """Everything after the position that concerns the session, once, as logged; nothing is told."""
    for number, topic in enumerate((b"x", b"other", b"y", b"x"), 1):
        world.server.log(0).add(number, topic, number)
    world.server.log(1).add(9, b"z", 1)
    await world.catch_up()
    assert world.receiver.delivered == [(b"x", 1), (b"y", 3), (b"x", 4), (b"z", 1)]
    assert world.receiver.losses == []
    assert world.positions() == [position(4), position(9)]
    assert [each.read_until for each in world.partitions] == world.positions()


async def test_nothing_new(world: World) -> None:
    """A log whose end is the position has lost nothing, whether or not the entry itself is still there."""
    world.server.log(0).trim(1)
    await world.catch_up()
    assert (world.receiver.delivered, world.receiver.losses) == ([], [])


async def test_what_was_delivered_live_is_not_delivered_again(world: World) -> None:
    """A resend that the log holds a second time is dropped, and so is one that arrives after it was read."""
    assert world.live(b"x", 1, 1)
    assert world.partitions[0].position == position(1)
    log = world.server.log(0)
    log.add(1, b"x", 1)
    log.add(2, b"x", 1)
    log.add(3, b"x", 2)
    await world.catch_up()
    assert world.live(b"x", 2, 4)
    assert world.receiver.delivered == [(b"x", 1), (b"x", 2)]


async def test_same_number_of_another_session_is_another_message(world: World) -> None:
    """Numbers are per session and partition."""
    log = world.server.log(0)
    log.add(1, b"x", 1, A)
    log.add(2, b"x", 1, B)
    world.server.log(1).add(1, b"z", 1, A)
    await world.catch_up()
    assert world.receiver.delivered == [(b"x", 1), (b"x", 1), (b"z", 1)]


async def test_what_is_not_logged_hides_nothing(world: World) -> None:
    """
    An envelope that is in no log arrives before the logged ones in front of it are read: however many they are,
    they are delivered.
    """
    [partition, _] = world.partitions
    entry = partition.subscriptions.get(b"y")
    assert entry is not None
    log = world.server.log(0)
    numbers = range(1000, 2500)
    for number in numbers:
        log.add(number, b"x", number)
    assert partition.deliver(entry, [Envelope(b"x", "g", A, 2500)], is_logged=False)
    await world.catch_up()
    assert world.receiver.delivered == [(b"y", 2500), *((b"x", number) for number in numbers)]


async def test_late_and_out_of_order(world: World) -> None:
    """What a dead connection brings after its sender went on is dropped, live and in the log."""
    assert world.live(b"x", 2, 2)
    assert world.live(b"x", 1, 3)
    log = world.server.log(0)
    for number, seq in ((2, 2), (3, 1), (4, 4), (5, 3)):
        log.add(number, b"x", seq)
    await world.catch_up()
    assert world.receiver.delivered == [(b"x", 2), (b"x", 4)]


async def test_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A long log is read in pages, each from the last entry of the one before, inclusively, to its end. The end is
    read once more, while the connection is paused.
    """
    monkeypatch.setattr(recovery, "_PAGE", 3)
    for number in range(1, 8):
        world.server.log(0).add(number, b"x", number)
    await world.catch_up()
    assert [seq for _, seq in world.receiver.delivered] == list(range(1, 8))
    assert [start for partition, start in world.server.pages if partition == 0] == [
        at(0),
        at(2),
        at(4),
        at(6),
        at(7),
    ]
    assert world.receiver.losses == []


async def test_entries_added_while_reading(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged between two pages is read too."""
    monkeypatch.setattr(recovery, "_PAGE", 2)
    log = world.server.log(0)
    for number in (1, 2):
        log.add(number, b"x", number)

    def add_one(partition: int) -> None:
        if partition == 0 and len(log.entries) < 6:
            log.add(10 + len(log.entries), b"x", 10 + len(log.entries))

    world.server.before = add_one
    await world.catch_up()
    assert len(world.receiver.delivered) == len(log.entries) - 1
    assert world.partitions[0].position == parse_position(log.last)


class TestReach:
    """When a log does not reach back to the position."""

    async def test_trimmed(self, world: World) -> None:
        """Only the topics of that partition are told; what is left is delivered."""
        log = world.server.log(0)
        for number in (1, 2, 3):
            log.add(number, b"x", number)
        log.trim(2)
        await world.catch_up()
        assert world.receiver.losses == [("trimmed", {b"x", b"y"})]
        assert world.receiver.delivered == [(b"x", 2), (b"x", 3)]

    async def test_trimmed_to_nothing(self, world: World) -> None:
        """An empty log whose end is beyond the position has lost what was between."""
        world.server.log(0).add(5, b"x", 1)
        world.server.log(0).trim(2)
        await world.catch_up()
        assert world.receiver.losses == [("trimmed", {b"x", b"y"})]
        assert world.partitions[0].position == position(5)

    async def test_trimmed_between_pages(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A log that is trimmed past the reader while it is being read has lost what was between."""
        monkeypatch.setattr(recovery, "_PAGE", 2)
        log = world.server.log(0)
        for number in range(1, 8):
            log.add(number, b"x", number)

        def trim(partition: int) -> None:
            if partition == 0 and world.server.pages:
                log.trim(4)
                world.server.before = lambda partition: None

        world.server.before = trim
        await world.catch_up()
        missing = {1, 2, 3, 4, 5, 6, 7} - {seq for _, seq in world.receiver.delivered}
        assert missing
        assert world.receiver.losses == [("trimmed", {b"x", b"y"})]

    async def test_told_once(self, world: World) -> None:
        """The next recovery begins at the end of this one, and tells nothing of what is past."""
        world.server.log(0).add(1, b"x", 1)
        world.server.log(0).trim(2)
        await world.catch_up()
        await world.catch_up()
        assert len(world.receiver.losses) == 1

    async def test_log_is_gone(self, world: World) -> None:
        """A log that is not there at all has lost everything."""
        del world.server.logs[1]
        await world.catch_up()
        assert world.receiver.losses == [("trimmed", {b"z"})]
        assert world.partitions[1].position == 0

    async def test_lost_tail(self, world: World) -> None:
        """A log that ends before the position, of a server that may not be asked who it is, is a loss."""
        world.partitions[0].position = position(50)
        world.server.log(0).add(10, b"x", 1)
        await world.catch_up()
        assert world.receiver.losses == [("trimmed", {b"x", b"y"})]

    async def test_trimmed_since_there_was_no_log(self, world: World) -> None:
        """Where there was no log and now is one whose entries are all gone, something is."""
        world.server.logs.clear()
        await world.catch_up(has_changed=True)
        assert world.positions() == [0, 0]
        world.receiver.losses.clear()
        log = world.server.log(0)
        log.add(5, b"x", 1)
        log.trim(1)
        await world.catch_up()
        assert world.receiver.losses == [("trimmed", {b"x", b"y"})]

    async def test_other_server(self, world: World) -> None:
        """Everybody is told, once, whatever the logs look like; what is there is delivered all the same."""
        world.server.log(0).add(1, b"x", 1)
        del world.server.logs[1]
        await world.catch_up(has_changed=True)
        assert world.receiver.losses == [("server_changed", {b"x", b"y", b"z"})]
        assert world.receiver.delivered == [(b"x", 1)]

    async def test_a_gap(self, world: World) -> None:
        """If something may be in no log everybody is told, and what is there is delivered."""
        world.server.log(0).add(1, b"x", 1)
        await world.catch_up(has_gap=True)
        assert world.receiver.losses == [("not_logged", {b"x", b"y", b"z"})]
        assert world.receiver.delivered == [(b"x", 1)]

    async def test_other_server_with_a_clock_behind(self, world: World) -> None:
        """Pushes with lower ids than those of the server before are delivered, in every partition."""
        world.partitions[1].subscriptions.give_up(b"z")
        world.partitions[1].read_until = position(1000)
        world.server.logs = {}
        await world.catch_up(has_changed=True)
        assert world.partitions[1].read_until < position(1)


class TestEntriesThatCannotBeDelivered:
    """What the log tells of, and cannot give."""

    async def test_expired(self, world: World) -> None:
        """Entries older than `expiry`, by the server's clock, are told."""
        log = world.server.log(0)
        log.add(1, b"x", 1)
        log.add(30_000, b"x", 2)
        log.add(2_000_000, b"other", 3)
        world.server.now = NOW + 60_002
        await world.catch_up()
        assert world.receiver.delivered == [(b"x", 2)]
        assert world.receiver.losses == [("expired", {b"x"})]

    async def test_expiry_that_was_changed(self, world: World) -> None:
        """What counts is `expiry` at the time of reading."""
        world.server.log(0).add(1, b"x", 1)
        world.server.now = NOW + 60_002
        world.options.change("expiry", 61)
        await world.catch_up()
        assert (world.receiver.delivered, world.receiver.losses) == ([(b"x", 1)], [])

    async def test_expired_and_sealed(self, world: World) -> None:
        """What is too old to be opened is told nevertheless."""
        world.server.log(0).add(1, b"x", 666)
        world.server.now = NOW + 80_000
        await world.catch_up()
        assert (world.receiver.delivered, world.receiver.losses) == ([], [("expired", {b"x"})])

    @pytest.mark.parametrize("is_large", [True, False])
    async def test_header_in_the_place_of_a_message(self, world: World, is_large: bool) -> None:
        """An entry whose kind is changed is unreadable: it neither tells of a loss nor is a message."""
        log = world.server.log(0)
        log.add(1, b"x", 1, is_large=is_large)
        fields = log.entries[-1][1]
        fields[2] = b"e" if is_large else b"h"
        await world.catch_up()
        assert (world.receiver.delivered, world.receiver.losses) == ([], [])
        assert world.receiver.unreadable == [b"x"]

    async def test_exactly_at_expiry(self, world: World) -> None:
        """An entry that is as old as `expiry` is delivered."""
        world.server.log(0).add(0, b"x", 1)
        world.server.log(0).entries[-1] = (at(0, 1), world.server.log(0).entries[-1][1])
        world.server.now = NOW + 60_000
        await world.catch_up()
        assert world.receiver.delivered == [(b"x", 1)]

    async def test_too_large(self, world: World) -> None:
        """Of a large message there is only the header."""
        world.server.log(1).add(1, b"z", 1, is_large=True)
        await world.catch_up()
        assert (world.receiver.delivered, world.receiver.losses) == ([], [("too_large", {b"z"})])

    @pytest.mark.parametrize("is_large", [True, False])
    async def test_not_told_of_what_was_delivered(self, world: World, is_large: bool) -> None:
        """A repeat of what arrived live is no loss, be it expired or too large."""
        assert world.live(b"x", 1, 1)
        world.server.log(0).add(1, b"x", 1, is_large=is_large)
        world.server.log(0).add(2, b"x", 1, is_large=is_large)
        world.server.now = NOW + 10**6
        await world.catch_up()
        assert world.receiver.losses == []

    async def test_of_a_newer_release(self, world: World) -> None:
        """What was logged in a format that this release does not read is told, and the rest is read."""
        world.server.log(0).add_raw(1, b"x", b"\x02" + pack([(pack_names("g"), b"1")], A, 1)[1:])
        world.server.log(0).add(2, b"x", 2)
        await world.catch_up()
        assert world.receiver.losses == [("not_logged", {b"x"})]
        assert world.receiver.delivered == [(b"x", 2)] and not world.receiver.unreadable

    @pytest.mark.parametrize("data", [b"", b"nonsense", pack([(pack_names("g"), b"666")], A, 1)])
    async def test_unreadable(self, world: World, data: bytes) -> None:
        """Bytes that are no message, or of somebody without our keys, are counted, and the rest is read."""
        world.server.log(0).add_raw(1, b"x", data)
        world.server.log(0).add(2, b"x", 2)
        await world.catch_up()
        assert world.receiver.unreadable == [b"x"]
        assert world.receiver.delivered == [(b"x", 2)]


class TestInterrupted:
    """A recovery that fails half way, and the next."""

    async def test_goes_on_where_it_stopped(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was delivered is not delivered again, and the rest is."""
        monkeypatch.setattr(recovery, "_PAGE", 2)
        for number in range(1, 6):
            world.server.log(0).add(number, b"x", number)

        def fail(partition: int) -> None:
            if len(world.server.pages) == 2:
                raise LayerUnavailable("redis://host", "gone")

        world.server.before = fail
        with pytest.raises(LayerUnavailable):
            await world.catch_up()
        assert 0 < len(world.receiver.delivered) < 5
        world.server.before = lambda partition: None
        await world.catch_up()
        assert [seq for _, seq in world.receiver.delivered] == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize("reason", ["trimmed", "too_large", "expired"])
    async def test_what_it_found_lost_is_told(self, world: World, reason: str) -> None:
        """A loss in the first log is told although reading the second failed, by the next recovery, once."""
        log = world.server.log(0)
        log.add(1, b"x", 1, is_large=reason == "too_large")
        if reason == "trimmed":
            log.trim(2)
        elif reason == "expired":
            world.server.now = NOW + 10**6

        def fail(partition: int) -> None:
            if partition == 1:
                raise LayerUnavailable("redis://host", "gone")

        world.server.before = fail
        with pytest.raises(LayerUnavailable):
            await world.catch_up()
        world.server.before = lambda partition: None
        await world.catch_up()
        await world.catch_up()
        assert [loss[0] for loss in world.receiver.losses] == [reason]
        assert b"x" in world.receiver.losses[0][1]

    async def test_trimmed_and_failed_on_the_next_page(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A gap that a log's first page showed is told though the second failed: the positions are past it."""
        monkeypatch.setattr(recovery, "_PAGE", 2)
        log = world.server.log(0)
        for number in range(1, 6):
            log.add(number, b"x", number)
        log.trim(2)

        def fail(partition: int) -> None:
            if len(world.server.pages) == 1:
                raise LayerUnavailable("redis://host", "gone")

        world.server.before = fail
        with pytest.raises(LayerUnavailable):
            await world.catch_up()
        world.server.before = lambda partition: None
        await world.catch_up()
        assert world.receiver.losses == [("trimmed", {b"x", b"y"})]
        assert [seq for _, seq in world.receiver.delivered] == [2, 3, 4, 5]

    async def test_cancelled_while_a_channel_is_full(self, world: World) -> None:
        """What was not taken when the recovery was cancelled is delivered by the next."""
        world.server.log(0).add(1, b"x", 1)
        world.receiver.is_full = True
        task = asyncio.create_task(world.catch_up())
        await world.receiver.offered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        world.receiver.is_full = False
        await world.catch_up()
        assert world.receiver.delivered == [(b"x", 1)]


class TestFlow:
    """Full channels, live and while reading."""

    async def test_full_channel_stops_the_reading(self, world: World) -> None:
        """An envelope that is not taken is offered again after resume(), before anything else."""
        for number in (1, 2):
            world.server.log(0).add(number, b"x", number)
        world.receiver.is_full = True
        task = asyncio.create_task(world.catch_up())
        for _ in range(3):
            await world.receiver.offered.wait()
            world.receiver.offered.clear()
            world.reader.resume()
        world.receiver.is_full = False
        world.reader.resume()
        await task
        assert world.receiver.delivered == [(b"x", 1), (b"x", 2)]

    def test_resume_with_nothing_held(self, world: World) -> None:
        """resume() does nothing then, as often as it is called."""
        world.reader.resume()
        world.reader.resume()

    async def test_live_and_not_taken(self, world: World) -> None:
        """What is held moves no position and is not seen: the log has it if the connection ends now."""
        world.receiver.is_full = True
        assert not world.live(b"x", 1, 1)
        assert world.partitions[0].position == position(0)
        world.server.log(0).add(1, b"x", 1)
        world.receiver.is_full = False
        await world.catch_up()
        assert world.receiver.delivered == [(b"x", 1)]

    async def test_reading_lets_others_run(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A long recovery gives the loop its turns."""
        monkeypatch.setattr(slices, "SHORT", -1.0)
        for number in range(1, 50):
            world.server.log(0).add(number, b"x", number)
        task = asyncio.create_task(world.catch_up())
        turns = 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns >= 49


class TestPositions:
    """Where the partitions are."""

    async def test_without_a_position(self, world: World) -> None:
        """A partition that has had no fence has nothing to compare with: its log is not read."""
        world.partitions[0].position = None
        world.server.log(0).add(1, b"x", 1)
        world.server.log(1).add(1, b"z", 1)
        await world.catch_up()
        assert world.receiver.delivered == [(b"z", 1)]
        assert world.partitions[0].position is None

    async def test_topic_of_no_log_is_not_read(self, world: World) -> None:
        """Topics that no log keeps are neither looked for nor told of."""
        for topic in (b"x", b"y"):
            world.partitions[0].subscriptions.give_up(topic)
        await world.catch_up(has_changed=True)
        assert {partition for partition, _ in world.server.pages} == {1}
        assert world.receiver.losses == [("server_changed", {b"z"})]

    async def test_joined_while_reading(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        A topic that is wanted while its log is being read gets what the next pages have of it. (It is confirmed
        when the partition is live, and not before.)
        """
        monkeypatch.setattr(recovery, "_PAGE", 2)
        world.server.log(0).add(1, b"x", 1)

        def join(partition: int) -> None:
            if not world.partitions[0].subscriptions.get(b"new"):
                world.partitions[0].subscriptions.want(b"new", is_logged=True)
                world.server.log(0).add(2, b"new", 2)

        world.server.before = join
        await world.catch_up()
        assert (b"new", 2) in world.receiver.delivered


class TestSomeOfThem:
    """Partitions come one by one, and some move while they are read."""

    async def read(self, world: World, *numbers: int, changed: Collection[int] = ()) -> None:
        partitions = [world.partitions[number] for number in numbers]
        await world.read(partitions, [world.partitions[number] for number in changed])

    async def test_only_those_that_are_asked_for(self, world: World) -> None:
        """The log of one partition is read, and of the other neither position nor `read_until` changes."""
        other = world.partitions[1]
        other.read_until = position(7)
        world.server.log(0).add(1, b"x", 1)
        world.server.log(1).add(1, b"z", 1)
        await self.read(world, 0)
        assert world.receiver.delivered == [(b"x", 1)]
        assert (other.position, other.read_until) == (position(0), position(7))

    async def test_one_is_from_another_server(self, world: World) -> None:
        """Only its topics are told; a log that is trimmed is told beside it, of the other."""
        world.server.log(1).add(1, b"z", 1)
        world.server.log(1).trim(2)
        await self.read(world, 0, 1, changed=[0])
        assert world.receiver.losses == [("trimmed", {b"z"}), ("server_changed", {b"x", b"y"})]

    @pytest.mark.parametrize("when", ["at the page", "while a channel is full"])
    async def test_moved_while_it_is_read(self, world: World, when: str) -> None:
        """The reading ends, without a word and without a position of what its next home will read."""
        partition, elsewhere = world.partitions[0], as_node(Home())
        log = world.server.log(0)
        for number in range(1, 4):
            log.add(number, b"x", number)
        log.trim(1)
        if when == "at the page":
            world.server.before = lambda number: partition.move(elsewhere)
            await self.read(world, 0)
            assert world.receiver.delivered == []
            assert (partition.position, partition.read_until) == (position(0), 0)
            assert world.receiver.losses == []
        else:
            log.entries.insert(0, (at(0), [b"begin", b""]))
            world.receiver.places = 2
            reading = asyncio.create_task(self.read(world, 0))
            await eventually(lambda: world.receiver.offers == 3)
            partition.move(elsewhere)
            world.receiver.is_full, world.receiver.places = False, None
            world.reader.resume()
            await reading
            # The one that waited was delivered: the next home reads it once more, and drops it as a repeat.
            assert world.receiver.delivered == [(b"x", 1), (b"x", 2), (b"x", 3)]
            assert partition.position == position(2)

    async def test_two_readings_wait_for_a_full_channel(self, world: World) -> None:
        """Both go on after one resume(), each with its own envelope first."""
        for number in (1, 2):
            world.server.log(0).add(number, b"x", number)
            world.server.log(1).add(number, b"z", number)
        world.receiver.is_full = True
        readings = [asyncio.create_task(self.read(world, number)) for number in (0, 1)]
        await eventually(lambda: world.receiver.offers == 2)
        world.receiver.is_full = False
        world.reader.resume()
        await asyncio.gather(*readings)
        for topic in (b"x", b"z"):
            assert [seq for name, seq in world.receiver.delivered if name == topic] == [1, 2]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of three entries."""
    monkeypatch.setattr(recovery, "_PAGE", 3)


@pytest.mark.usefixtures("small")
class TestTooFar:
    """Logs with more than a process may read to catch up."""

    async def test_entries(self, world: World) -> None:
        """What is behind the limit is left out and told, for all topics of that partition and no other."""
        world.limit = (60.0, 6)
        for number in range(1, 21):
            world.server.log(0).add(number, b"x", number)
            world.server.log(1).add(number, b"z", number)
        world.server.log(1).trim(16)
        world.partitions[1].position = position(15)
        await world.catch_up()
        assert world.receiver.losses == [("trimmed", {b"z"}), ("too_far", {b"x", b"y"})]
        assert [seq for topic, seq in world.receiver.delivered if topic == b"x"] == [1, 2, 3, 4]
        assert [seq for topic, seq in world.receiver.delivered if topic == b"z"] == [16, 17, 18, 19, 20]

    @pytest.mark.parametrize("limit", [(60.0, 1), (0.0, 1000)], ids=["entries", "seconds"])
    async def test_it_goes_on_at_the_end(self, world: World, limit: tuple[float, int]) -> None:
        """
        The position is the end of the log, and pushes up to there are dropped. What comes later arrives, and
        the next recovery tells nothing of what is past.
        """
        world.limit = limit
        log = world.server.log(0)
        for number in range(1, 21):
            log.add(number, b"x", number)
        await world.catch_up()
        partition = world.partitions[0]
        assert partition.position == partition.read_until == position(20)
        assert world.receiver.losses == [("too_far", {b"x", b"y"})]
        assert world.live(b"x", 21, 21)
        log.add(21, b"x", 21)
        log.add(22, b"x", 22)
        await world.catch_up()
        assert [seq for _, seq in world.receiver.delivered] == [1, 2, 21, 22]
        assert len(world.receiver.losses) == 1

    async def test_the_first_page_is_always_read(self, world: World) -> None:
        """A log of one page is read, whatever the limit."""
        world.limit = (0.0, 1)
        world.server.log(0).add(1, b"x", 1)
        await world.catch_up()
        assert (world.receiver.delivered, world.receiver.losses) == ([(b"x", 1)], [])

    async def test_exactly_at_the_end(self, world: World) -> None:
        """A reading that reaches its limit with the last entry has lost nothing."""
        world.limit = (60.0, 3)
        for number in (1, 2):
            world.server.log(0).add(number, b"x", number)
        await world.catch_up()
        assert [seq for _, seq in world.receiver.delivered] == [1, 2]
        assert world.receiver.losses == []

    async def test_a_log_that_grows_as_fast_as_it_is_read(self, world: World) -> None:
        """The reading ends: at its limit."""
        world.limit = (60.0, 100)
        log = world.server.log(0)
        numbers = iter(range(1, 10_000))

        def grow(partition: int) -> None:
            for _ in range(3):
                number = next(numbers)
                log.add(number, b"x", number)

        world.server.before = grow
        await world.catch_up()
        assert world.receiver.losses == [("too_far", {b"x", b"y"})]
        assert world.partitions[0].position == parse_position(log.last)

    async def test_a_log_that_grows_before_the_pause(self, world: World) -> None:
        """What is logged between the last page and the pause is read in the pause, however much it is."""
        for number in range(1, 4):
            world.server.log(0).add(number, b"x", number)
        [backlog] = await world.reader.catch_up(world.partitions, ())
        backlog.limit(60.0, 1000)
        await world.reader.read_on(backlog)
        for number in range(4, 11):
            world.server.log(0).add(number, b"x", number)
        await world.reader.finish(backlog)
        assert [seq for _, seq in world.receiver.delivered] == list(range(1, 11))
        assert world.partitions[0].read_until == position(10)

    async def test_trimmed_after_another_server_was_told(self, world: World) -> None:
        """`server_changed` is told with the first page: what is found lost on a later page is another loss."""
        log = world.server.log(0)
        for number in range(1, 10):
            log.add(number, b"x", number)
        [backlog] = await world.reader.catch_up(world.partitions, world.partitions)
        assert world.receiver.losses == [("server_changed", {b"x", b"y", b"z"})]
        log.trim(8)
        backlog.limit(60.0, 1000)
        await world.reader.read_on(backlog)
        await world.reader.finish(backlog)
        assert world.receiver.losses[1:] == [("trimmed", {b"x", b"y"})]
        assert [seq for _, seq in world.receiver.delivered] == [1, 2, 8, 9]

    async def test_it_fails_at_the_end(self, world: World) -> None:
        """A reading that cannot ask for the end of the log leaves the position: the next one tells it, once."""
        world.limit = (0.0, 1)
        for number in range(1, 21):
            world.server.log(0).add(number, b"x", number)

        def fail(partition: int) -> None:
            if len(world.server.pages) == 2:
                raise LayerUnavailable("redis://host", "gone")

        world.server.before = fail
        with pytest.raises(LayerUnavailable):
            await world.catch_up()
        assert (world.positions()[0], world.receiver.losses) == (position(2), [])
        world.server.before = lambda partition: None
        await world.catch_up()
        assert world.receiver.losses == [("too_far", {b"x", b"y"})]

    async def test_moved_while_it_is_finished(self, world: World) -> None:
        """The next home reads it, and nothing is told here."""
        world.limit = (0.0, 1)
        for number in range(1, 21):
            world.server.log(0).add(number, b"x", number)

        def move(partition: int) -> None:
            if len(world.server.pages) == 2:
                world.partitions[0].move(as_node(Home()))

        world.server.before = move
        await world.catch_up()
        assert (world.positions()[0], world.receiver.losses) == (position(2), [])


@pytest.mark.usefixtures("small")
class TestFilter:
    """The server leaves out the entries of topics that nobody wants here."""

    async def test_pages_without_wanted_entries(self, world: World) -> None:
        """The position passes them, and nothing counts as lost."""
        for number in range(1, 21):
            world.server.log(0).add(number, b"x" if number == 13 else b"other", number)
        await world.catch_up()
        assert world.receiver.delivered == [(b"x", 13)]
        assert (world.positions()[0], world.receiver.losses) == (position(20), [])

    async def test_trimmed_and_none_is_wanted(self, world: World) -> None:
        """A page without wanted entries shows all the same that the log was trimmed."""
        for number in range(1, 21):
            world.server.log(0).add(number, b"other", number)
        world.server.log(0).trim(3)
        await world.catch_up()
        assert world.receiver.losses == [("trimmed", {b"x", b"y"})]

    @pytest.mark.parametrize(("most", "is_filtered"), [(3, True), (2, False)])
    async def test_many_topics(
        self, world: World, monkeypatch: pytest.MonkeyPatch, most: int, is_filtered: bool
    ) -> None:
        """With more topics than the limit, pages have everything, and other topics are left out here."""
        monkeypatch.setattr(recovery, "_MOST_FILTERED", most)
        for number in range(1, 9):
            world.server.log(0).add(number, b"x" if number % 2 else b"other", number)
        await world.catch_up()
        assert [seq for _, seq in world.receiver.delivered] == [1, 3, 5, 7]
        assert (b"x" in world.server.filters[0]) == is_filtered
