"""
No silent loss, in any order of events: the outboxes, the logs, the positions and the numbers seen together.

The state is real (`SequenceNumbers`, `Partition`, `LogReader`, the envelopes), and so is the code that changes it
(`Subscriber.on_message()` and `CatchingUp`, `Checkpoint`). The server, the connections and the clock are played
here, and hypothesis chooses what happens next. `Receiver.shell` below does what `Subscriber.set_up()` does, in
the same order.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict, deque
from collections.abc import Collection, Coroutine, Generator
from dataclasses import dataclass, field
from types import coroutine
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from channels_asyncq import slices
from channels_asyncq.bus.redis import catching_up, recovery
from channels_asyncq.bus.redis.checkpoint import Checkpoint
from channels_asyncq.bus.redis.log_ends import LogScripts
from channels_asyncq.bus.redis.log_reading import LogsReader
from channels_asyncq.bus.redis.partition import Partition, Reading
from channels_asyncq.bus.redis.recovery import LogReader
from channels_asyncq.bus.redis.sequences import SequenceNumbers, format_position, parse_position
from channels_asyncq.bus.redis.shared import Shared
from channels_asyncq.bus.redis.subscriber import Subscriber
from channels_asyncq.bus.redis.watch import Watch
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.messages.envelopes import HEADER_ONLY
from channels_asyncq.messages.framing import FORMATS, pack, pack_names
from tests.partitions import Home, Recorder, as_node, page_of, shared_for

# Small, so that a few steps reach what takes a thousand in earnest.
PAGE = 3
# CHANNELS_ASYNCQ_MODEL=20000 for a long run.
EXAMPLES = int(os.environ.get("CHANNELS_ASYNCQ_MODEL", "250"))
UNANSWERED = 6
EXPIRY = 60
TOPICS = {b"g:a": 0, b"g:b": 0, b"g:c": 1}
LATE = b"g:late"  # joined in the middle
PARTITIONS = (0, 1)
LOGGED = b"%c#" % FORMATS.newest
SENDERS = (b"a" * 8, b"b" * 8)


@dataclass
class Message:
    """One send, and what became of it."""

    number: int
    topic: bytes
    sender: bytes
    seq: int
    is_large: bool
    was_joined: bool
    is_unknown: bool = False  # the caller got DeliveryUnknown: it may have arrived or not


@dataclass
class Command:
    """Bytes on their way to the server, and the messages that they are of."""

    topic: bytes
    envelopes: list[bytes]
    messages: list[Message]


@dataclass
class Connection:
    """What a server has not read yet, and what the client has not read yet."""

    commands: deque[Command] = field(default_factory=deque)
    replies: int = 0


class Server:
    """One master: logs, and the connection that is subscribed."""

    def __init__(self, run_id: int, clock: int) -> None:
        self.run_id = run_id
        self.clock = clock
        self.logs: dict[int, list[tuple[bytes, list[bytes]]]] = {}
        self.last: dict[int, bytes] = {}

    def add(self, partition: int, *fields: bytes) -> bytes:
        last = parse_position(self.last.get(partition, b"0-0"))
        name = format_position(max(self.clock << 64, last + 1))
        self.last[partition] = name
        self.logs.setdefault(partition, []).append((name, list(fields)))
        return name

    def page(self, partition: int, start: bytes, count: int, topics: Collection[bytes]) -> list[Any]:
        first = parse_position(start)
        found = [entry for entry in self.logs.get(partition, []) if parse_position(entry[0]) >= first]
        return page_of(found, self.last.get(partition, b"0-0"), self.clock, count, topics)


class Sender:
    """A session: its real outbox, and the line for commands that carries what is unanswered."""

    def __init__(self, session_id: bytes) -> None:
        self.session_id = session_id
        self.numbers: defaultdict[int, SequenceNumbers] = defaultdict(SequenceNumbers)
        self.unanswered: deque[Command] = deque()
        self.connection: Connection | None = Connection()


@coroutine
def step() -> Generator[None]:
    """Let hypothesis do something else."""
    yield


class Heard(Recorder):
    """What is handed up; the marks of this server are always there."""

    def on_forgotten(self, partitions: Collection[int], topics: set[bytes]) -> None:
        assert not topics


class Wire:
    """The connection for pushes: what arrives on it is offered by `Receiver.arrive()`."""

    is_lost = False

    def resume(self) -> None:
        pass


class LeaseKeeper:
    """A lease that always holds."""

    keeps_past = 900
    compatible: frozenset[bytes] = frozenset()

    def __init__(self) -> None:
        self.lease = self
        self.layout = self
        self.gap = -1

    def command(self, *arguments: Any) -> tuple[bytes, ...]:
        return (b"EVALSHA",)


class Receiver:
    """A session's push connection and the reader of its logs: a node whose connection for commands is played."""

    host = number = 0

    def __init__(self, world: Delivery) -> None:
        self.world = world
        self.receiver = Heard()
        self.loop = asyncio.new_event_loop()
        self.shared, self.partitions = self.loop.run_until_complete(self._make())
        self.home = home = Home()
        self.log = LogReader(self.shared, self)
        self.lease = LeaseKeeper()
        node: Any = home
        node.host = node.number = 0
        node.lease_keeper = node.lease = self.lease
        node.log, node.has_refused = self.log, self.has_refused
        home.partitions = {each.number: each for each in self.partitions}
        for each in self.partitions:
            each.home = as_node(home)
        self.checkpoint = node.checkpoint = Checkpoint(self.shared, node, Watch(home.address, None))
        self.subscriber = node.subscriber = Subscriber(self.shared, node)
        node.logs = LogsReader(self.shared, node, LogScripts(self.shared, node))
        for topic, partition in TOPICS.items():
            self.want(topic, partition)
        self.wire = Wire()
        self.subscribed: set[bytes] = set()
        self.pushed: deque[tuple[bytes, bytes]] = deque()
        self.is_connected = False
        self.is_up = False
        self.task: Coroutine[Any, Any, None] | None = None
        self.fails_next = False

    async def _make(self) -> tuple[Shared, list[Partition]]:
        limit = {"catch_up_messages": self.world.most_entries}
        _, shared = shared_for(self.receiver, self.loop, expiry=EXPIRY, recovery=limit)
        home = Home()
        return shared, [home.partition(number, shared) for number in PARTITIONS]

    def want(self, topic: bytes, partition: int) -> None:
        self.partitions[partition].subscriptions.want(topic, is_logged=True)

    async def has_refused(self) -> bool:
        await step()
        return False

    async def read_log(
        self, partition: Partition, start: bytes, count: int, topics: Collection[bytes] = ()
    ) -> list[Any]:
        await step()
        if self.fails_next:
            self.fails_next = False
            raise ConnectionError("the line for commands is down")
        page = self.world.server.page(partition.number, start, count, topics)
        await step()
        return page

    @property
    def is_reading(self) -> bool:
        return any(each.reading is Reading.CATCHING_UP for each in self.partitions)

    def connect(self) -> None:
        self.task = self.shell()
        self.is_connected = True
        self.pushed.clear()
        self.subscribed = set()

    async def shell(self) -> None:
        """Do as Subscriber.set_up() does."""
        subscriber, server = self.subscriber, self.world.server
        run_id = b"run_id:%d" % server.run_id
        subscriber._disconnect()
        readings = [each.begin_reading() for each in self.partitions]
        self.checkpoint.drop()
        subscriber._held = None
        self.wire = Wire()
        subscriber.topics.wire = wire = cast(WireProtocol, self.wire)
        subscriber._pauses = 0
        subscriber.run_id = run_id
        topics = [subscriber.topics.fence_topic, *TOPICS, *([LATE] if self.world.joined else [])]
        for topic in topics:
            await step()
            if self.is_connected:
                self.subscribed.add(topic)
        await step()
        if any(each.position is not None for each in self.partitions):
            await subscriber._catching_up.catch_up(wire, readings)
            if self.is_connected:
                self.send_fence()
        else:
            number = self.send_fence()
            while number in self.checkpoint._fences:
                await step()
                if not self.is_connected:
                    raise ConnectionError("lost")
                self.arrive()
        for each in readings:
            if each.is_current:
                each.partition.server = run_id

    def advance(self) -> None:
        assert self.task is not None
        self.receiver.is_full, self.receiver.places = False, None
        try:
            self.task.send(None)
        except StopIteration:
            self.task = None
            self.is_up = self.is_connected
            if self.is_up:
                self.subscriber.on_up(cast(WireProtocol, self.wire))
            else:
                self.lose()  # the end of the connection is told when it is set up
        except ConnectionError:
            self.task = None
            self.lose()  # nothing arrives on a connection whose recovery has failed

    def send_fence(self) -> int:
        self.checkpoint._new()
        self.world.fences.append(self.checkpoint._number)
        return self.checkpoint._number

    def lose(self) -> None:
        self.is_connected = self.is_up = False
        self.pushed.clear()
        self.subscribed = set()
        # As the owner of a connection that is lost: while it is set up, when that has failed.
        if self.task is None:
            self.subscriber._disconnect()
            self.checkpoint.drop()

    def arrive(self) -> None:
        """Offer the oldest push."""
        if self.pushed and self.subscriber.on_message(*self.pushed[0]):
            self.pushed.popleft()

    def close(self) -> None:
        if self.task is not None:
            self.task.close()
        self.loop.close()


class Delivery(RuleBasedStateMachine):
    """Two senders, one receiver, one server after the other."""

    #: How many entries of a log the receiver may read to catch up.
    most_entries = 3 * PAGE

    def __init__(self) -> None:
        super().__init__()
        self.clock = 1_000_000
        self.server = Server(1, self.clock)
        self.senders = {session_id: Sender(session_id) for session_id in SENDERS}
        #: Connections that their clients have given up: the server may still execute what it was sent.
        self.zombies: list[Connection] = []
        self.fences: list[int] = []
        self.messages: dict[tuple[bytes, int, int], Message] = {}
        self.told: list[tuple[int, str, set[bytes]]] = []
        self.receiver = Receiver(self)
        self.checked = 0
        self.reasons: set[str] = set()
        self.delivered: list[Message] = []
        self.joined = False

    @initialize()
    def first_connection(self) -> None:
        self.receiver.connect()
        self.settle()

    # Sending

    @rule(
        session_id=st.sampled_from(SENDERS),
        topic=st.sampled_from([*TOPICS, LATE]),
        is_large=st.sampled_from([False, False, False, True]),
        count=st.integers(1, 3),
        each=st.integers(1, 3),
    )
    def publish(self, session_id: bytes, topic: bytes, is_large: bool, count: int = 1, each: int = 3) -> None:
        """
        Numbers are given only when a command is written: the line is up and has room.

        Several messages of one turn to one topic share a command, and as many of them an entry of the log.
        """
        sender = self.senders[session_id]
        if sender.connection is None or len(sender.unanswered) >= UNANSWERED:
            return
        partition = TOPICS.get(topic, 1)
        count = 1 if is_large else count
        first = sender.numbers[partition].take(count)
        was_joined = topic != LATE or self.joined
        messages = []
        for seq in range(first, first + count):
            message = Message(len(self.messages), topic, session_id, seq, is_large, was_joined)
            self.messages[session_id, partition, seq] = message
            messages.append(message)
        bodies = [b"%d" % message.number for message in messages]
        envelopes = [
            pack([(pack_names("g"), body) for body in bodies[at : at + each]], session_id, first + at)
            for at in range(0, count, each)
        ]
        command = Command(topic, envelopes, messages)
        sender.unanswered.append(command)
        sender.connection.commands.append(command)

    def execute(self, connection: Connection) -> None:
        """What send.lua does."""
        command = connection.commands.popleft()
        large = command.messages[0].is_large
        if large:
            self.reasons.add("too_large")
        name = b""
        for data in command.envelopes:
            kind, kept = b"e", data
            if large:
                first = command.messages[0]
                kind, kept = b"h", pack([(pack_names("g"), b"")], first.sender, first.seq, HEADER_ONLY)
            name = self.server.add(TOPICS.get(command.topic, 1), b"t", command.topic, kind, kept)
        if command.topic in self.receiver.subscribed:
            data = LOGGED + name + b" " + b"".join(command.envelopes)
            self.receiver.pushed.append((command.topic, data))
        connection.replies += 1

    @rule(session_id=st.sampled_from(SENDERS), count=st.integers(1, 4))
    def server_works(self, session_id: bytes, count: int) -> None:
        connection = self.senders[session_id].connection
        for _ in range(count):
            if connection is not None and connection.commands:
                self.execute(connection)

    @precondition(lambda self: self.zombies)
    @rule(which=st.integers(0), count=st.integers(1, 4))
    def server_works_for_a_dead_client(self, which: int, count: int) -> None:
        connection = self.zombies[which % len(self.zombies)]
        for _ in range(count):
            if connection.commands:
                self.execute(connection)
        if not connection.commands:
            self.zombies.remove(connection)

    @rule(
        session_id=st.sampled_from(SENDERS),
        topic=st.sampled_from(list(TOPICS)),
        count=st.integers(1, 2 * PAGE),
    )
    def burst(self, session_id: bytes, topic: bytes, count: int) -> None:
        """Several messages that the server has taken and answered."""
        sender = self.senders[session_id]
        while sender.unanswered and sender.connection is not None:
            self.server_works(session_id, 1)
            self.replies_arrive(session_id, 1)
        for _ in range(count):
            self.publish(session_id, topic, False)
            self.server_works(session_id, 1)
            self.replies_arrive(session_id, 1)

    @rule(session_id=st.sampled_from(SENDERS), count=st.integers(1, 4))
    def replies_arrive(self, session_id: bytes, count: int) -> None:
        sender = self.senders[session_id]
        for _ in range(count):
            if sender.connection is not None and sender.connection.replies:
                sender.connection.replies -= 1
                sender.unanswered.popleft()

    @rule(session_id=st.sampled_from(SENDERS))
    def lose_commands(self, session_id: bytes) -> None:
        sender = self.senders[session_id]
        if sender.connection is not None:
            self.zombies.append(sender.connection)
            sender.connection = None

    @rule(session_id=st.sampled_from(SENDERS))
    def resend(self, session_id: bytes) -> None:
        sender = self.senders[session_id]
        if sender.connection is None:
            sender.connection = Connection(deque(sender.unanswered))

    @rule(session_id=st.sampled_from(SENDERS))
    def give_up(self, session_id: bytes) -> None:
        """send_timeout passes: DeliveryUnknown."""
        sender = self.senders[session_id]
        if sender.connection is None:
            for command in sender.unanswered:
                for message in command.messages:
                    message.is_unknown = True
            sender.unanswered.clear()

    # Receiving

    @rule(count=st.integers(1, 5))
    def arrive(self, count: int) -> None:
        for _ in range(count):
            self.receiver.arrive()

    @precondition(lambda self: self.receiver.is_up)
    @rule()
    def new_fence(self) -> None:
        self.receiver.send_fence()

    @precondition(lambda self: self.fences)
    @rule()
    def fence_is_executed(self) -> None:
        """What fence.lua does; the command may be of a connection that is gone."""
        number = self.fences.pop(0)
        ends = []
        for partition in PARTITIONS:
            if not self.server.logs.get(partition) and partition not in self.server.last:
                self.server.add(partition, b"begin", b"")
            ends.append(self.server.last[partition])
        fence = self.receiver.subscriber.topics.fence_topic
        if fence in self.receiver.subscribed:
            head = b"%d %d" % (number, self.server.clock)
            data = b"\n".join([head, b" ".join(ends), b"- -", b"", b"0 0"])
            self.receiver.pushed.append((fence, data))

    @rule()
    def lose_pushes(self) -> None:
        self.receiver.lose()

    @precondition(lambda self: self.receiver.task is None and not self.receiver.is_connected)
    @rule(count=st.integers(0, 12))
    def reconnect(self, count: int) -> None:
        self.receiver.connect()
        self.recovery_goes_on(count)

    @precondition(lambda self: self.receiver.task is not None)
    @rule(count=st.integers(1, 6))
    def recovery_goes_on(self, count: int) -> None:
        for _ in range(count):
            if self.receiver.task is not None:
                self.receiver.advance()
        # Losses are told at the end of a recovery, of everything that was sent until then.
        self.note_losses()

    @precondition(lambda self: self.receiver.task is not None)
    @rule(session_id=st.sampled_from(SENDERS), topic=st.sampled_from(list(TOPICS)), count=st.integers(1, 3))
    def meanwhile(self, session_id: bytes, topic: bytes, count: int) -> None:
        """While it is subscribed, or while the logs are read: messages, a fence of before, and they arrive."""
        self.burst(session_id, topic, count)
        if self.fences:
            self.fence_is_executed()
        self.arrive(2 * count)

    @precondition(lambda self: self.receiver.is_up)
    @rule(
        session_id=st.sampled_from(SENDERS),
        topic=st.sampled_from(list(TOPICS)),
        count=st.integers(1, 2 * PAGE),
        has_fence=st.booleans(),
        trimmed=st.sampled_from([0, 0, 1, 2 * PAGE]),
    )
    def missed(self, session_id: bytes, topic: bytes, count: int, has_fence: bool, trimmed: int) -> None:
        """An outage in which messages are sent, and of which the log keeps all, a part or nothing."""
        if has_fence:
            self.new_fence()
        self.lose_pushes()
        self.burst(session_id, topic, count)
        if trimmed and self.trim is not None:
            self.trim(TOPICS[topic], trimmed)

    @precondition(lambda self: self.receiver.is_reading)
    @rule()
    def reading_fails(self) -> None:
        self.receiver.fails_next = True

    @precondition(lambda self: self.receiver.is_up and not self.joined)
    @rule()
    def join(self) -> None:
        """group_add(): subscribed, and confirmed on a connection that is up."""
        self.receiver.want(LATE, 1)
        self.receiver.subscribed.add(LATE)
        self.joined = True

    @rule(is_full=st.booleans())
    def channel_fills_or_drains(self, is_full: bool) -> None:
        """A full channel holds what is pushed; recovered entries find room here (see test_recovery.py)."""
        if self.receiver.task is None:
            self.receiver.receiver.is_full, self.receiver.receiver.places = is_full, None

    @rule(places=st.integers(1, 3))
    def channel_takes_only_so_many(self, places: int) -> None:
        """It may fill in the middle of what arrives together."""
        if self.receiver.task is None and not self.receiver.receiver.is_full:
            self.receiver.receiver.places = places

    # The server

    @rule(partition=st.sampled_from(PARTITIONS), count=st.integers(1, 8))
    def trim(self, partition: int, count: int) -> None:
        if self.server.logs.get(partition):
            self.reasons.add("trimmed")
            del self.server.logs[partition][:count]

    @rule(seconds=st.sampled_from([0.001, 0.5, 20, 61]))
    def time_passes(self, seconds: float) -> None:
        self.server.clock += int(1000 * seconds)
        if seconds > 1:
            self.reasons.add("expired")

    @rule(
        lost=st.sampled_from([0, 0, 1, 2, 5, 1000]),
        skew=st.sampled_from([0, 0, -30_000, 30_000]),
        kills_tail_of=st.sampled_from(PARTITIONS),
    )
    def promote(self, lost: int, skew: int, kills_tail_of: int) -> None:
        """A replica takes over, or the server is restarted: with its whole log, without a tail, with nothing."""
        self.reasons.update(("server_changed", "trimmed"))
        if skew > 0:
            self.reasons.add("expired")
        old, new = self.server, Server(self.server.run_id + 1, self.server.clock + skew)
        for partition, entries in old.logs.items():
            cut = lost if lost == 1000 or partition == kills_tail_of else 0
            new.logs[partition] = entries[: max(0, len(entries) - cut)]
            if cut == 0:
                new.last[partition] = old.last[partition]
            elif new.logs[partition]:
                new.last[partition] = new.logs[partition][-1][0]
            else:
                del new.logs[partition]
        self.server = new
        for session_id in SENDERS:
            self.lose_commands(session_id)
        self.zombies.clear()
        self.fences.clear()
        self.receiver.lose()

    # What must hold

    def note_losses(self) -> None:
        """Whoever is told of a loss is told of everything that was sent until now."""
        losses = self.receiver.receiver.losses
        if any(len(log) >= self.most_entries - PAGE for log in self.server.logs.values()):
            self.reasons.add("too_far")
        for reason, topics in losses:
            assert reason in self.reasons, f"told {reason!r}, and nothing like that happened"
            self.told.append((len(self.messages), reason, topics))
        losses.clear()

    @invariant()
    def never_twice_and_in_order(self) -> None:
        recorded = self.receiver.receiver.delivered
        for envelope in self.receiver.receiver.envelopes[self.checked :]:
            topic, _ = recorded[self.checked]
            self.checked += 1
            partition = TOPICS.get(topic, 1)
            message = self.messages[envelope.session_id, partition, envelope.seq]
            assert message.topic == topic
            earlier = [m for m in self.delivered if (m.sender, m.topic) == (message.sender, topic)]
            assert message not in earlier, f"{message} arrived twice"
            assert not earlier or earlier[-1].number < message.number, f"{message} arrived out of order"
            self.delivered.append(message)
        self.note_losses()

    def was_told(self, message: Message) -> bool:
        return any(message.number < count and message.topic in topics for count, _, topics in self.told)

    def settle(self) -> None:
        """The network heals, and everything that is under way arrives."""
        receiver = self.receiver
        receiver.receiver.is_full = receiver.fails_next = False
        receiver.receiver.places = None
        for session_id in SENDERS:
            self.resend(session_id)
            for _ in range(len(self.senders[session_id].unanswered)):
                self.server_works(session_id, 1)
                self.replies_arrive(session_id, 1)
        while self.zombies:
            self.server_works_for_a_dead_client(0, 10)
        for _ in range(10_000):
            if receiver.task is not None:
                receiver.advance()
            elif not receiver.is_connected:
                receiver.connect()
            elif not self.fences and not receiver.pushed:
                break
            while self.fences:
                self.fence_is_executed()
            receiver.arrive()
        else:
            raise AssertionError("nothing moves any more")
        self.never_twice_and_in_order()

    def teardown(self) -> None:
        """Nothing that was accepted, or will be, is lost untold."""
        self.settle()
        arrived = {message.number for message in self.delivered}
        for message in self.messages.values():
            if message.is_unknown or message.number in arrived or not message.was_joined:
                continue
            assert self.was_told(message), f"{message} is lost, and nobody was told"
        if not self.reasons:
            assert not self.told
        assert self.receiver.subscriber._pauses == 0
        self.receiver.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_PAGE", PAGE)
    monkeypatch.setattr(catching_up, "LONGEST_WAIT", 0.0)
    monkeypatch.setattr(slices, "SHORT", 3600.0)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("faults", ["all", "without a change of server"])
def test_nothing_is_lost_untold(faults: str) -> None:
    """Nothing lost untold, nothing twice, nothing out of order, and nobody told without a reason."""
    machine = Delivery if faults == "all" else SameServer
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None, database=None),
    )


class SameServer(Delivery):
    """The machine with one server that trims nothing and no time: whatever happens, nothing is lost or told."""

    trim = time_passes = promote = None  # type: ignore[assignment]
    most_entries = 10**6
