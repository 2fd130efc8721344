"""One bounded queue: expiry, closing, waiting for a message, and what is counted."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from channels_asyncq.exceptions import ChannelClosed, LayerClosed
from channels_asyncq.local.buffers import ChannelBuffer
from channels_asyncq.local.counters import Counters
from channels_asyncq.messages.codecs import Codec
from channels_asyncq.messages.envelopes import NOTICE, Envelope
from tests.buffers import NEVER, Observer, envelope, make, texts
from tests.clock import Clock
from tests.contract import ended, eventually, every, started


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["local"])
    return clock


@pytest.fixture
def counters() -> Counters:
    return Counters()


def test_resized() -> None:
    """Another capacity holds from then on, and takes nothing away."""
    buffer = make(capacity=2)
    message = Envelope(b"x", "chat", expires_at=float("inf"))
    assert [buffer.offer(message) for _ in range(3)] == [1, 0, -1]
    buffer.resize(3)
    assert [buffer.offer(message) for _ in range(2)] == [0, -1]
    buffer.resize(1)
    assert buffer.queued == 3 and buffer.offer(message) == -1 and buffer.maxsize == 1


# Putting and taking, without waiting


def test_first_in_first_out() -> None:
    """Envelopes come out as they went in, the very same objects."""
    buffer = make(3)
    put = [envelope(text) for text in "abc"]
    assert [buffer.offer(one) for one in put] == [2, 1, 0]
    assert buffer.full() and buffer.queued == buffer.qsize() == 3 and buffer.oldest is put[0]
    taken = [buffer.take() for _ in range(4)]
    assert taken[3] is None and all(one is two for one, two in zip(taken, put, strict=False))
    assert buffer.empty() and buffer.oldest is None


def test_a_full_buffer_takes_nothing() -> None:
    """offer() says so by -1, and leaves what is there as it was."""
    buffer = make(2)
    for text in "ab":
        buffer.put_nowait(envelope(text))
    assert buffer.offer(envelope("c")) == -1
    with pytest.raises(asyncio.QueueFull):
        buffer.put_nowait(envelope("c"))
    assert texts(buffer) == ["a", "b"]
    with pytest.raises(asyncio.QueueEmpty):
        buffer.get_nowait()


def test_expired_messages_free_their_places(clock: Clock, counters: Counters) -> None:
    """An expired message is never taken, is counted once, and a full buffer has its place again."""
    buffer = make(3, counters)
    for text, lifetime in (("a", 1), ("b", 2), ("c", 3)):
        buffer.offer(envelope(text, clock.now + lifetime))
    assert buffer.offer(envelope("d", clock.now + 4)) == -1
    clock.turn(1)
    assert not counters.dropped
    assert buffer.offer(envelope("e", clock.now + 3)) == 0
    assert dict(counters.dropped) == {"expired": 1}
    clock.turn(1)
    assert buffer.drop_expired() == 1
    assert buffer.drop_expired() == 0
    clock.turn(1)
    assert texts(buffer) == ["e"]
    assert dict(counters.dropped) == {"expired": 3}


def test_put_back_is_taken_first() -> None:
    """What was taken in vain goes back to the head, whatever the capacity."""
    buffer = make(2)
    for text in "ab":
        buffer.offer(envelope(text))
    first = buffer.get_nowait()
    buffer.offer(envelope("c"))
    buffer.put_back(first)
    assert buffer.queued == 3 and buffer.offer(envelope("d")) == -1
    assert texts(buffer) == ["a", "b", "c"]


def test_the_first_of_all() -> None:
    """A buffer that has had nothing takes back what was taken elsewhere, and loss notices."""
    first = envelope("a")
    buffer = make()
    assert buffer.empty() and not buffer.clear() and buffer.take() is None and buffer.oldest is None
    assert not buffer.drop_expired() and not buffer.losses
    buffer.put_back(first)
    assert texts(buffer) == ["a"]
    for at_head in (True, False):
        buffer = make(1, on_loss="loss")
        buffer.notify_loss("overflow", ["room", "x!1", ""], at_head=at_head)
        assert buffer.offer(first) == 0 and buffer.queued == 2
        notice, other = buffer.take(), buffer.take()
        assert other is first and notice is not None and notice.flags & NOTICE
        assert notice.message == {"type": "loss", "reason": "overflow", "groups": ["room"]}


def test_clear_and_drop_oldest() -> None:
    """clear() says how many it dropped; drop_oldest() drops the one at the head."""
    buffer = make(3)
    for text in "abc":
        buffer.offer(envelope(text))
    buffer.drop_oldest()
    assert buffer.oldest is not None and buffer.oldest.payload == b"b"
    assert [buffer.clear(), buffer.clear()] == [2, 0]


def test_what_was_lost_by_expiry_is_remembered(clock: Clock) -> None:
    """`lost_expired` holds from an expiry to the next message that is received."""
    buffer = make(3)
    buffer.offer(envelope("a", clock.now + 1))
    clock.turn(5)
    assert buffer.take() is None and buffer.lost_expired
    assert buffer.last_received == clock.now - 5
    buffer.offer(envelope("b", clock.now + 1))
    assert buffer.take() is not None and not buffer.lost_expired
    assert buffer.last_received == buffer.last_used == clock.now


def test_close_messages_do_not_expire(clock: Clock) -> None:
    """A reader that ends at them gets them, however late it comes; what only names them expires."""
    codec = Codec()
    message = {"type": "websocket.close", "code": 4401}
    named = {"type": "chat.message", "text": "websocket.close"}
    buffer = make(3)
    buffer.close_codec = codec
    for each in (named, message, named):
        buffer.offer(Envelope(codec.encode(each), "chat", expires_at=clock.now + 1))
    clock.turn(5)
    assert buffer.next_expiry() == clock.now - 4
    assert [buffer.drop_expired(), buffer.drop_expired()] == [1, 0]
    assert buffer.next_expiry() is None
    taken = buffer.take()
    assert taken is not None and codec.decode(taken.payload) == message
    assert buffer.take() is None and buffer.empty()


def test_close_messages_that_have_come_are_not_replayed() -> None:
    """What is in a log is dropped for a replay, in which a close message is left out: so that one stays."""
    codec = Codec()
    close, other = (codec.encode({"type": kind}) for kind in ("websocket.close", "chat.message"))
    buffer = make(3)
    buffer.close_codec = codec
    for payload in (close, other):
        logged = Envelope(payload, "chat", expires_at=NEVER)
        logged.position = 1
        buffer.offer(logged)
    buffer.drop_logged({"room"})
    assert buffer.queued == 2
    buffer.drop_logged({"chat"})
    taken = buffer.take()
    assert taken is not None and taken.payload == close and buffer.empty()


def test_a_closed_buffer() -> None:
    """Nothing new is accepted, what is there is received, and a second close changes nothing."""
    buffer = make(3)
    buffer.offer(envelope("a"))
    buffer.close()
    buffer.close(LayerClosed)
    with pytest.raises(ChannelClosed) as raised:
        buffer.put_nowait(envelope("b"))
    assert type(raised.value) is ChannelClosed and raised.value.channel == "chat"
    assert texts(buffer) == ["a"]


def test_a_free_place_is_reported_once() -> None:
    """`on_place_free()` comes when a buffer that was reported full has a place again, not for every message."""
    observer = Observer()
    buffer = make(2, observer=observer)
    for text in "ab":
        buffer.offer(envelope(text))
    buffer.take()
    assert not observer.freed
    buffer.offer(envelope("c"))
    buffer.is_reported_full = True
    buffer.take()
    assert observer.freed == [buffer] and not buffer.is_reported_full
    buffer.take()
    assert observer.freed == [buffer]


# Waiting for a message


async def test_get_takes_what_is_there() -> None:
    """get() returns at once if something waits."""
    buffer = make()
    buffer.offer(envelope("a"))
    assert (await buffer.get()).payload == b"a"


async def test_get_waits() -> None:
    """get() returns when something is put, to those who wait in the order in which they came."""
    buffer = make()
    waiting = [await started(buffer.get()) for _ in range(3)]
    assert buffer.waiting == 3 and buffer.is_awaited
    for text in "abc":
        buffer.put_nowait(envelope(text))
    assert [one.payload for one in await every(waiting)] == [b"a", b"b", b"c"]
    assert buffer.waiting == 0 and not buffer.is_awaited


async def test_get_cancelled_keeps_envelope() -> None:
    """Cancelling get() in the very turn in which a message came loses nothing: the next get() returns it."""
    buffer = make()
    waiting = await started(buffer.get())
    buffer.offer(envelope("a"))
    waiting.cancel()
    assert await ended(waiting) is None
    assert not buffer.is_awaited
    assert (await buffer.get()).payload == b"a"


async def test_get_cancelled_wakes_the_next_one() -> None:
    """If the one that was woken is cancelled, another one who waits gets the message."""
    buffer = make()
    first, second = await started(buffer.get()), await started(buffer.get())
    buffer.offer(envelope("a"))
    first.cancel()
    [got] = await every([second])
    assert got.payload == b"a" and first.cancelled()


async def test_get_cancelled_while_waiting() -> None:
    """One who waits no more is not counted, and is not woken."""
    buffer = make()
    first, second = await started(buffer.get()), await started(buffer.get())
    first.cancel()
    await ended(first)
    assert buffer.waiting == 1
    buffer.offer(envelope("a"))
    [got] = await every([second])
    assert got.payload == b"a"


async def test_get_woken_and_robbed_waits_on() -> None:
    """One who is woken and finds the message taken by somebody else goes on waiting."""
    buffer = make()
    waiting = await started(buffer.get())
    buffer.offer(envelope("a"))
    assert buffer.take() is not None and not buffer.waiting
    await eventually(lambda: buffer.waiting == 1, "waiting again")
    assert not waiting.done()
    buffer.offer(envelope("b"))
    [got] = await every([waiting])
    assert got.payload == b"b"


async def test_get_does_not_return_what_expired(clock: Clock) -> None:
    """A message that expires between its arrival and the turn of its receiver is not received."""
    buffer = make()
    waiting = await started(buffer.get())
    buffer.offer(envelope("a", clock.now + 1))
    clock.turn(1)
    await eventually(lambda: buffer.waiting == 1, "waiting again")
    assert not waiting.done()
    buffer.offer(envelope("b"))
    [got] = await every([waiting])
    assert got.payload == b"b"


@pytest.mark.parametrize("reason", [ChannelClosed, LayerClosed])
async def test_close_ends_receivers(reason: type[ChannelClosed]) -> None:
    """close() ends all who wait with its reason; a later get() too, once what is left was received."""
    buffer = make()
    waiting = [await started(buffer.get()) for _ in range(3)]
    buffer.close(reason)
    for receiver in waiting:
        with pytest.raises(reason) as raised:
            await receiver
        assert type(raised.value) is reason and raised.value.channel == "chat"
    with pytest.raises(reason):
        await buffer.get()


async def test_close_leaves_what_is_there() -> None:
    """What was put before close() is received after it."""
    buffer = make()
    buffer.offer(envelope("a"))
    buffer.close()
    assert (await buffer.get()).payload == b"a"
    with pytest.raises(ChannelClosed):
        await buffer.get()


async def test_close_and_a_message_in_one_turn() -> None:
    """Of two who wait when one message comes and the buffer closes, one gets the message."""
    buffer = make()
    waiting = [await started(buffer.get()) for _ in range(2)]
    buffer.offer(envelope("a"))
    buffer.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results if isinstance(result, Exception)] == [ChannelClosed]
    assert [result.payload for result in results if isinstance(result, Envelope)] == [b"a"]


# Against a model


class BufferMachine(RuleBasedStateMachine):
    """A buffer that nobody waits in, against a list of (text, end)."""

    @initialize(capacity=st.integers(1, 4))
    def begin(self, capacity: int) -> None:
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.clock.put_into(self.patch, ["local"])
        self.counters = Counters()
        self.buffer = ChannelBuffer("chat", capacity, self.counters, Observer())
        self.model: list[tuple[str, float]] = []
        self.expired = self.number = 0

    def purge(self) -> None:
        live = [entry for entry in self.model if entry[1] > self.clock.now]
        self.expired += len(self.model) - len(live)
        self.model = live

    @rule(seconds=st.integers(1, 5))
    def turn(self, seconds: int) -> None:
        self.clock.turn(seconds)

    @rule()
    def offer(self) -> None:
        self.number += 1
        if len(self.model) >= self.buffer.capacity:
            self.purge()
        left = self.buffer.offer(envelope(str(self.number), self.clock.now + 6))
        if len(self.model) < self.buffer.capacity:
            self.model.append((str(self.number), self.clock.now + 6))
            assert left == self.buffer.capacity - len(self.model)
        else:
            assert left == -1

    @rule()
    def take(self) -> None:
        self.purge()
        taken = self.buffer.take()
        assert (None if taken is None else taken.payload.decode()) == (
            self.model.pop(0)[0] if self.model else None
        )

    @rule()
    def put_back(self) -> None:
        taken = self.buffer.take()
        self.purge()
        if taken is not None:
            self.buffer.put_back(taken)

    @rule()
    def sweep(self) -> None:
        self.purge()
        self.buffer.drop_expired()

    @rule()
    def clear(self) -> None:
        assert self.buffer.clear() == len(self.model)
        self.model = []

    @rule()
    def drop_oldest(self) -> None:
        if self.model:
            self.buffer.drop_oldest()
            self.model.pop(0)

    @invariant()
    def figures(self) -> None:
        if hasattr(self, "buffer"):
            assert self.buffer.queued == len(self.model)
            assert self.buffer.full() is (len(self.model) >= self.buffer.capacity)
            assert self.counters.dropped["expired"] == self.expired

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()


TestBufferMachine = BufferMachine.TestCase
