"""What a partition has in memory of its log, against a log and a connection in lists."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels_asyncq.bus.base import NotReplayed, ReplayCounts
from channels_asyncq.bus.redis import replay as replay_module
from channels_asyncq.bus.redis.log_ends import LogScripts
from channels_asyncq.bus.redis.log_reading import LogRead, LogsReader
from channels_asyncq.bus.redis.partition import Partition, Reading
from channels_asyncq.bus.redis.replay import LogEpoch, PartitionReplay
from channels_asyncq.bus.redis.tracks import Track
from channels_asyncq.messages.framing import pack, pack_names, unpack
from channels_asyncq.messages.positions import Place
from channels_asyncq.names import Topic
from tests.partitions import Home, Recorder, as_node, shared_for

EPOCH, OTHER_EPOCH = "0" * 8, "1" * 8
SENDERS = [bytes([number]) * 8 for number in range(1, 3)]
# Milliseconds before a place at which a read begins at least.
MARGIN = 30


class World:
    """A partition, the log of it on a server, and what is under way on the connection for pushes."""

    def __init__(self, **config: Any) -> None:
        asyncio.run(self._make(recovery={"seconds": 3600.0, **config}))
        groups = [self.shared.topics.group(f"g{number}").topic for number in range(20)]
        self.topics: list[Topic] = [topic for topic in groups if topic.partition == 0][:3]
        self.epoch = EPOCH
        self.partition.position = 0
        self.partition.enter(Reading.LIVE)
        self.now = 1
        self.ends_at = 0
        #: Position, topic, sender, first number and bytes of all entries ever, and of those that are kept.
        self.history: list[tuple[int, Topic, bytes, int, bytes]] = []
        self.log: list[tuple[int, Topic, bytes, int, bytes]] = []
        self.numbers = dict.fromkeys(SENDERS, 0)
        #: Topics that the server has subscribed this session to.
        self.subscribed: set[Topic] = set()
        self.wire: deque[tuple[str, Any]] = deque()
        #: Everything up to here has arrived, where it is subscribed to.
        self.arrived_to = 0
        self.read: LogRead | None = None
        self.reply: list[tuple[int, Topic, bytes, int, bytes]] | None = None
        self.has_marker = False

    async def _make(self, **config: Any) -> None:
        """The parts that want a running loop when they are made, and never again."""
        self.receiver = Recorder()
        _, self.shared = shared_for(self.receiver, **config)
        home = Home()
        self.partition: Partition = home.partition(0, self.shared)
        self.reader = LogsReader(self.shared, as_node(home), LogScripts(self.shared, as_node(home)))

    @property
    def replay(self) -> PartitionReplay:
        return self.partition.replay

    # The server

    def publish(self, topic: Topic, sender: bytes, count: int = 1) -> None:
        first = self.numbers[sender] + 1
        self.numbers[sender] += count
        name = topic.name.rpartition(b":")[2].decode()
        data = pack([(pack_names(name), b"x%d" % number) for number in range(count)], sender, first)
        self._log(topic, sender, first, data)

    def _log(self, topic: Topic, sender: bytes, first: int, data: bytes) -> None:
        self.now += 1
        entry = (self.now << 64, topic, sender, first, data)
        self.ends_at = entry[0]
        self.log.append(entry)
        self.history.append(entry)
        if topic in self.subscribed:
            self.wire.append(("push", entry))

    def send_again(self, sender: bytes) -> None:
        """The last entry of a sender, which had no answer, and is in the log."""
        for _, topic, by, first, data in reversed(self.log):
            if by == sender:
                self._log(topic, by, first, data)
                return

    def trim(self, count: int) -> None:
        """Drop entries, except one that was sent again: a log is seldom so short that it has the repeat alone."""
        for _ in range(min(count, len(self.log))):
            again = [entry[2:4] for entry in self.log[1:]]
            if self.log[0][2:4] in again:
                break
            del self.log[0]

    # Subscriptions

    def subscribe(self, topic: Topic) -> None:
        entry = self.partition.subscriptions.want(topic.name, is_logged=True)
        if topic not in self.subscribed:
            self.subscribed.add(topic)
            self.wire.append(("confirmed", (topic, entry)))

    def give_up(self, topic: Topic) -> None:
        self.subscribed.discard(topic)
        self.partition.subscriptions.give_up(topic.name)
        if self.replay.is_active:
            self.replay.note_given_up(topic.name)
        # Pushes before the reply to UNSUBSCRIBE do not count.
        self.wire = deque(
            item for item in self.wire if item[0] == "marker" or item[1][topic_at(item)] != topic
        )

    def arrive(self, count: int = 1) -> None:
        """Let the next of what is under way arrive."""
        while self.wire and count:
            count -= 1
            kind, what = self.wire.popleft()
            if kind == "confirmed":
                topic, entry = what
                entry.is_confirmed = True
                if self.replay.is_active:
                    self.replay.note_confirmed(topic.name)
            elif kind == "marker":
                if self.read is not None and what is self.read:
                    self.has_marker = True
                    if self.read.is_current:
                        self.replay.on_marker()
            else:
                self._push(what)

    def _push(self, entry: tuple[int, Topic, bytes, int, bytes]) -> None:
        position, topic, _, _, data = entry
        subscription = self.partition.subscriptions.get(topic.name)
        assert subscription is not None
        envelopes = unpack(data)
        for envelope in envelopes:
            envelope.position = position
        assert self.partition.deliver(subscription, envelopes[::-1], is_logged=True)
        self.arrived_to = position
        self.partition.passed(position)

    def arrive_all(self) -> None:
        self.arrive(len(self.wire))

    # Reads

    def begin(self, place: Place) -> None:
        assert self.read is None
        self.read = LogRead(self.partition, place, MARGIN, self.shared.replay_counts)
        self.reply, self.has_marker = None, False

    def execute(self) -> None:
        """The server reads the log, and publishes the marker."""
        assert self.read is not None
        self.reply = [entry for entry in self.log if entry[0] >= self.read.after]
        self.reply_end = self.ends_at
        self.wire.append(("marker", self.read))

    def finish(self) -> bool:
        """Let the rest of a read arrive, and use it; return whether it counts."""
        read = self.read
        assert read is not None
        if self.reply is None:
            self.execute()
        reply = self.reply
        assert reply is not None
        while not self.has_marker:
            self.arrive()
        read.begin_page(self.epoch, self.reply_end, reply[0][0] if reply else None)
        for position, topic, _, _, data in reply:
            if read.pass_entry(position):
                self.reader._add(read, position, [b"t", topic.name, b"e", data])
        self.read = None
        return self.reader._finish(read)

    def fail(self) -> None:
        assert self.read is not None
        self.read.part.drop()
        if self.read.is_current:
            self.replay.fail()
        self.read = None

    def read_now(self, position: int = 0) -> None:
        self.begin(Place(EPOCH, position))
        assert self.finish()

    # Questions

    def has(self, topic: Topic, place: Place, *, has_read: bool = False) -> bool:
        return self.replay.has(topic, place, self.partition.position or 0, 0, has_read=has_read)

    def since(self, topic: Topic, place: Place) -> list[tuple[int, int]]:
        return [(each.position, each.nth) for each in self.replay.since(topic, place)]

    def expected(self, topic: Topic, place: Place) -> list[tuple[int, int]]:
        """What a channel has missed of a topic: each message once, where its first copy is."""
        index = self.replay.index
        assert index is not None
        highest = dict.fromkeys(SENDERS, 0)
        found = []
        for position, of, sender, _, data in self.history:
            for envelope in unpack(data):
                if envelope.seq <= highest[sender]:
                    continue
                highest[sender] = envelope.seq
                envelope.position = position
                has_come = position <= max(index.tip, self.arrived_to)
                if of == topic and place.is_before(envelope) and has_come:
                    found.append((position, envelope.nth))
        return found

    def recount(self) -> tuple[int, int]:
        """The records and bytes in the index."""
        index, counts = self.replay.index, ReplayCounts()
        for track in index._part.values() if index is not None else ():
            for record in track._records[track._gone :]:
                Track(counts).append(0, record)
        return counts.records, counts.bytes


def topic_at(item: tuple[str, Any]) -> int:
    return 1 if item[0] == "push" else 0


# How often each thing happens to a partition, in relation to the others.
WEIGHTS = {
    "publish": 8,
    "send_again": 2,
    "trim": 1,
    "subscribe": 3,
    "give_up": 2,
    "arrive": 8,
    "begin": 4,
    "execute": 2,
    "finish": 4,
    "fail": 1,
    "forget": 1,
    "resume": 6,
}
steps = st.tuples(
    st.sampled_from([name for name, weight in WEIGHTS.items() for _ in range(weight)]),
    st.integers(0, 2),
    st.integers(0, 20),
)


class Player:
    """Lets things happen to a partition, and compares each answer with the log."""

    def __init__(self) -> None:
        self.world = World()
        self.world.subscribe(self.world.topics[0])
        self.world.arrive_all()
        self.asked = Place(EPOCH, 0)
        self.confirmed: set[bytes] = set()

    def play(self, name: str, number: int, amount: int) -> None:
        world = self.world
        topic, sender = world.topics[number], SENDERS[amount % 2]
        if name == "publish":
            world.publish(topic, sender, 1 + amount % 3)
        elif name == "send_again":
            world.send_again(sender)
        elif name == "trim":
            world.trim(amount // 4)
        elif name == "subscribe":
            world.subscribe(topic)
        elif name == "give_up":
            world.give_up(topic)
            self.confirmed.discard(topic.name)
        elif name == "arrive":
            world.arrive(1 + amount // 4)
        elif name == "forget":
            if amount == 0:
                world.replay.forget()
        elif name == "resume":
            self.resume(topic, amount)
        elif name == "begin":
            if world.read is None:
                self.begin(amount)
        elif world.read is not None:
            self.go_on(name)
        if world.read is None:
            counts = world.shared.replay_counts
            assert (counts.records, counts.bytes) == world.recount()

    def begin(self, back: int) -> None:
        self.asked = Place(EPOCH, max(0, self.world.now - back) << 64)
        self.world.begin(self.asked)
        self.confirmed = {entry.topic for entry in self.world.partition.subscriptions if entry.is_confirmed}

    def go_on(self, name: str) -> None:
        """Let a read go on, or end. Then topics that were confirmed all the time have an answer."""
        world = self.world
        if name == "fail":
            world.fail()
        elif name == "execute":
            if world.reply is None:
                world.execute()
        elif world.finish():
            for topic in world.topics:
                if topic.name in self.confirmed:
                    assert self.answer(topic, self.asked, has_read=True) in ("", "trimmed", "ahead")

    def resume(self, topic: Topic, back: int) -> None:
        """If there is an answer, it is all that was missed, once."""
        world = self.world
        for place in (Place(EPOCH, max(0, world.now - back) << 64, nth) for nth in range(1 + (back % 2) * 2)):
            answer = self.answer(topic, place)
            assert answer in (None, "", "trimmed")
            if answer == "":
                assert world.since(topic, place) == world.expected(topic, place)

    def answer(self, topic: Topic, place: Place, *, has_read: bool = False) -> str | None:
        """The reason for which there is none, None if a read is due."""
        try:
            return "" if self.world.has(topic, place, has_read=has_read) else None
        except NotReplayed as exc:
            return exc.reason

    def end(self) -> None:
        """Nothing is counted when nothing is held."""
        if self.world.read is not None:
            self.world.fail()
        self.world.replay.forget()
        counts = self.world.shared.replay_counts
        assert (counts.records, counts.bytes) == (0, 0)


@settings(deadline=None, max_examples=300)
@given(st.lists(steps, min_size=40, max_size=150))
def test_every_answer_is_what_the_log_has(played: list[tuple[str, int, int]]) -> None:
    """
    Messages, repeats, subscriptions, reads, failures and losses, in any order: an answer has each message that
    was missed, once, and the counts of records and bytes are right.
    """
    player = Player()
    for step in played:
        player.play(*step)
    player.end()


@pytest.fixture
def world() -> World:
    return World()


def start_of(world: World) -> Place:
    return Place(EPOCH, world.ends_at)


def test_a_topic_that_was_given_up_and_is_wanted_again_is_live_after_a_read(world: World) -> None:
    """It was confirmed before the read began, so nothing of it is missing."""
    room, other, _ = world.topics
    world.subscribe(other)
    world.subscribe(room)
    world.arrive_all()
    world.publish(room, SENDERS[0])
    place = start_of(world)
    world.arrive_all()
    world.read_now()
    world.give_up(room)
    world.publish(room, SENDERS[0])
    world.subscribe(room)
    world.arrive_all()
    assert not world.has(room, place)
    world.read_now(place.position)
    assert world.has(room, place, has_read=True)
    assert world.since(room, place) == [(world.ends_at, 0)]


def test_a_repeat_behind_the_marker_whose_first_copy_was_read(world: World) -> None:
    """It is delivered before the end of the read is known, and counts once, where its first copy is."""
    room, _, _ = world.topics
    world.publish(room, SENDERS[0])
    first = world.ends_at
    world.subscribe(room)
    world.arrive_all()
    world.begin(Place(EPOCH, 0))
    world.execute()
    world.send_again(SENDERS[0])
    world.arrive_all()
    assert world.finish()
    assert world.since(room, Place(EPOCH, 0)) == [(first, 0)]


def test_a_repeat_behind_the_end_of_the_last_read(world: World) -> None:
    """A channel whose place is between both copies has the message already."""
    room, _, _ = world.topics
    world.publish(room, SENDERS[0])
    place = start_of(world)
    world.read_now()
    world.send_again(SENDERS[0])
    world.subscribe(room)
    world.arrive_all()
    world.read_now(place.position)
    assert world.since(room, place) == []


def test_a_push_of_which_a_part_was_delivered(world: World) -> None:
    """A channel that comes back then gets that part, and the rest as it is delivered."""
    room, _, _ = world.topics
    world.subscribe(room)
    world.arrive_all()
    world.read_now()
    world.publish(room, SENDERS[0], 3)
    [(_, (position, _, _, _, data))] = world.wire
    entry = world.partition.subscriptions.get(room.name)
    assert entry is not None
    envelopes = unpack(data)[::-1]
    for envelope in envelopes:
        envelope.position = position
    world.receiver.places = 2
    assert not world.partition.deliver(entry, envelopes, is_logged=True)
    place = Place(EPOCH, position - 1)
    assert world.since(room, place) == [(position, 1), (position, 2)]
    assert world.since(room, Place(EPOCH, position, 1)) == [(position, 2)]
    world.receiver.is_full, world.receiver.places = False, None
    assert world.partition.deliver(entry, envelopes, is_logged=True)
    assert world.since(room, place) == [(position, 1), (position, 2), (position, 0)]


def test_a_topic_that_is_given_up_is_read_again(world: World) -> None:
    """What had arrived is in the next read too, and counts once."""
    room, _, _ = world.topics
    world.subscribe(room)
    world.arrive_all()
    world.read_now()
    places = []
    for _ in range(2):
        world.publish(room, SENDERS[0])
        places.append((world.ends_at, 0))
        world.arrive_all()
        world.give_up(room)
    world.subscribe(room)
    world.arrive_all()
    world.read_now()
    assert world.since(room, Place(EPOCH, 0)) == places


def test_a_log_that_was_trimmed_since_the_last_read(world: World) -> None:
    """What was logged between that read and the present beginning is gone: no place before it counts."""
    room, other, _ = world.topics
    world.subscribe(other)
    world.arrive_all()
    world.publish(other, SENDERS[0])
    place = start_of(world)
    world.arrive_all()
    world.read_now()
    world.publish(room, SENDERS[0])
    world.publish(room, SENDERS[0])
    world.trim(2)
    world.subscribe(room)
    world.arrive_all()
    world.read_now(place.position)
    with pytest.raises(NotReplayed, match="trimmed"):
        world.has(room, place, has_read=True)
    # The log begins with this entry.
    assert world.has(room, start_of(world), has_read=True)


def test_a_log_that_was_deleted_since_the_last_read(world: World) -> None:
    """A server that evicts keys may take a log, and the next entry begins another one."""
    room, other, _ = world.topics
    world.subscribe(other)
    world.arrive_all()
    world.publish(other, SENDERS[0])
    place = start_of(world)
    world.arrive_all()
    world.read_now()
    world.publish(room, SENDERS[0])
    world.trim(2)
    world.subscribe(room)
    world.arrive_all()
    world.now += 1
    world.ends_at = world.now << 64
    world.read_now(place.position)
    with pytest.raises(NotReplayed, match="trimmed"):
        world.has(room, place, has_read=True)


def test_a_log_that_is_trimmed_between_two_pages(world: World) -> None:
    """The second page does not begin with the end of the first: what was between them is missing."""
    room, _, _ = world.topics
    for _ in range(6):
        world.publish(room, SENDERS[0])
    pages = world.log[:2], world.log[4:]
    read = LogRead(world.partition, Place(EPOCH, 0), MARGIN, world.shared.replay_counts)
    for page in pages:
        read.begin_page(EPOCH, world.ends_at, page[0][0])
        for position, topic, _, _, data in page:
            if read.pass_entry(position):
                world.reader._add(read, position, [b"t", topic.name, b"e", data])
    assert world.reader._finish(read)
    assert world.replay.index is not None
    assert world.replay.index.floor == pages[1][0][0]
    assert world.recount()[0] == 2


def test_pages_that_follow_each_other(world: World) -> None:
    """A page begins with the last entry of the page before, which counts once."""
    room, _, _ = world.topics
    for _ in range(6):
        world.publish(room, SENDERS[0])
    read = LogRead(world.partition, Place(EPOCH, 0), MARGIN, world.shared.replay_counts)
    for page in (world.log[:3], world.log[2:5], world.log[4:]):
        read.begin_page(EPOCH, world.ends_at, page[0][0])
        for position, topic, _, _, data in page:
            if read.pass_entry(position):
                world.reader._add(read, position, [b"t", topic.name, b"e", data])
    assert world.reader._finish(read)
    assert world.recount()[0] == 6


def test_another_epoch_between_two_pages(world: World) -> None:
    """Messages were published meanwhile that are in no log: the read does not count."""
    read = LogRead(world.partition, Place(EPOCH, 0), MARGIN, world.shared.replay_counts)
    read.begin_page(EPOCH, 1, None)
    with pytest.raises(ConnectionResetError, match="missing"):
        read.begin_page(OTHER_EPOCH, 1, None)


def test_topics_without_records_take_no_memory() -> None:
    """A user's room that was read once is forgotten with its last message."""
    world = World(messages=100)
    replies = world.topics[0]
    index = None
    for number in range(300):
        group = world.shared.topics.group(f"user.{number}").topic
        topic = Topic(0, group.name)
        world.publish(topic, SENDERS[0])
    world.read_now()
    index = world.replay.index
    assert index is not None
    assert len(index._part) <= 100
    assert world.shared.replay_counts.evicted == 200
    world.subscribe(replies)
    world.arrive_all()
    world.read_now(world.ends_at)
    for _ in range(150):
        world.publish(replies, SENDERS[0])
    world.arrive_all()
    assert list(index._part) == [replies.name]
    assert len(index._part.order) == 100


def test_senders_that_send_no_more_are_forgotten(world: World) -> None:
    """Sessions of short processes come and go for months."""
    room = world.topics[0]
    world.read_now()
    for number in range(5000):
        sender = number.to_bytes(8)
        world.numbers[sender] = 0
        world.publish(room, sender)
        world.now += 900
        if number % 100 == 0:
            world.read_now(world.ends_at)
    assert world.replay.index is not None
    assert len(world.replay.index.seen) < 5000


def test_a_full_index_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bytes of all partitions: a place before what was dropped is `trimmed`, one behind it is not."""
    monkeypatch.setattr(replay_module, "MOST_BYTES", 20_000)
    world = World()
    room = world.topics[0]
    world.subscribe(room)
    world.arrive_all()
    world.read_now()
    places = []
    for _ in range(100):
        world.publish(room, SENDERS[0])
        places.append(start_of(world))
        world.arrive_all()
    counts = world.shared.replay_counts
    assert counts.bytes <= 20_000
    assert counts.evicted == 100 - counts.records
    for number, place in enumerate(places):
        if number + 1 < counts.evicted:
            with pytest.raises(NotReplayed, match="trimmed"):
                world.has(room, place)
        else:
            assert world.has(room, place)
            assert len(world.since(room, place)) == 99 - number


def test_what_is_older_than_the_log_keeps_is_dropped() -> None:
    """By the server's clock, when something arrives."""
    world = World(seconds=1.0)
    room = world.topics[0]
    world.subscribe(room)
    world.arrive_all()
    world.read_now()
    world.publish(room, SENDERS[0])
    world.now += 1100
    world.publish(room, SENDERS[0])
    world.arrive_all()
    assert world.recount()[0] == 1
    assert world.shared.replay_counts.evicted == 0


def test_an_unused_index_is_forgotten(world: World) -> None:
    """After the time that the log keeps, but not while a read is under way."""
    room = world.topics[0]
    world.subscribe(room)
    world.publish(room, SENDERS[0])
    world.arrive_all()
    world.read_now()
    index = world.replay.index
    assert index is not None
    world.replay.forget_unused(index.used_at + 3599)
    assert world.replay.index is index
    world.begin(Place(EPOCH, 0))
    world.replay.forget_unused(index.used_at + 3601)
    assert world.replay.index is index
    world.fail()
    world.replay.forget_unused(index.used_at + 3601)
    assert not world.replay.is_active


def test_a_partition_whose_only_read_failed_is_as_before(world: World) -> None:
    """Nothing is noted for nobody."""
    world.begin(Place(EPOCH, 0))
    world.fail()
    world.replay.forget_unused(0.0)
    assert not world.replay.is_active


def test_the_answers_to_places(world: World) -> None:
    """Each refusal has its reason, and only once a read cannot help."""
    room = world.topics[0]
    world.subscribe(room)
    world.arrive_all()
    for _ in range(3):
        world.publish(room, SENDERS[0])
    world.arrive_all()
    world.trim(1)
    start = world.log[0][0]
    assert not world.has(room, Place(EPOCH, start))
    world.begin(Place(EPOCH, start + (500 << 64)))
    world.finish()
    ahead, other = Place(EPOCH, world.ends_at + 1), Place(OTHER_EPOCH, world.ends_at)
    assert not world.has(room, ahead)
    assert not world.has(room, other)
    for place, reason in ((ahead, "ahead"), (other, "server_changed")):
        with pytest.raises(NotReplayed, match=reason):
            world.has(room, place, has_read=True)
    assert not world.replay.has(room, start_of(world), 0, world.now + 1, has_read=False)
    with pytest.raises(NotReplayed, match="not_logged"):
        world.replay.has(room, start_of(world), 0, world.now + 1, has_read=True)


@pytest.mark.parametrize(
    ("since", "position", "epoch"), [(5, 4, ""), (5, 5, ""), (5, 6, EPOCH)], ids=["before", "end", "behind"]
)
def test_the_epoch_of_a_message(since: int, position: int, epoch: str) -> None:
    """A message up to the end at which the epoch became known may be of an earlier one."""
    log_epoch = LogEpoch()
    log_epoch.note(EPOCH, since)
    log_epoch.note(EPOCH, 100)
    assert log_epoch.at(position) == epoch
    log_epoch.forget()
    assert log_epoch.at(position) == ""
