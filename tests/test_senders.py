"""Senders that wait for a place in a full channel: order, cancelling, expiry, closing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from channels_asyncq.exceptions import ChannelClosed, LayerClosed
from channels_asyncq.local.counters import Counters
from tests.buffers import envelope, make, texts
from tests.clock import Clock
from tests.contract import ended, eventually, every, started


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.put_into(monkeypatch, ["local"])
    return clock


async def test_a_place_is_taken_at_once() -> None:
    """put_when_free() does not wait if there is a place; the message's time begins when it is put."""
    buffer = make(1)
    one = envelope("a", expires_at=0.0)
    await buffer.put_when_free(one, 60.0)
    assert buffer.take() is one


async def test_senders_in_order() -> None:
    """Those who wait for a place get one in the order in which they came."""
    buffer = make(1)
    buffer.offer(envelope("first"))
    senders = [await started(buffer.put_when_free(envelope(text), 60.0)) for text in "abc"]
    assert buffer.is_awaited and not buffer.waiting
    received = [(await buffer.get()).payload.decode()]
    for sender in senders:
        await every([sender])
        received.append((await buffer.get()).payload.decode())
    assert received == ["first", "a", "b", "c"] and not buffer.is_awaited


async def test_many_places_at_once() -> None:
    """When several places come free in one turn, as many senders get one."""
    buffer = make(4)
    while buffer.offer(envelope("old")) > 0:
        pass
    senders = [await started(buffer.put_when_free(envelope(text), 60.0)) for text in "abcdef"]
    assert buffer.clear() == 4
    await eventually(lambda: buffer.queued == 4, "the senders' turn")
    assert [sender.done() for sender in senders] == [True] * 4 + [False] * 2
    assert texts(buffer) == ["a", "b", "c", "d"]
    await every(senders)
    assert texts(buffer) == ["e", "f"]


async def test_a_newcomer_does_not_overtake_a_sender_that_was_just_woken() -> None:
    """The place is held for who waited for it, whoever else runs first."""
    buffer = make(1)
    buffer.offer(envelope("old"))
    first = await started(buffer.put_when_free(envelope("a"), 60.0))
    newcomer = asyncio.create_task(buffer.put_when_free(envelope("b"), 60.0))  # runs after this turn ...
    buffer.take()  # ... in which the first one is woken
    order = [(await buffer.get()).payload for _ in range(2)]
    await every([first, newcomer])
    assert order == [b"a", b"b"]


async def test_a_held_place_is_not_free() -> None:
    """What does not wait finds the buffer full while a place is held, and free when its holder was cancelled."""
    buffer = make(1)
    buffer.offer(envelope("old"))
    first = await started(buffer.put_when_free(envelope("a"), 60.0))
    second = await started(buffer.put_when_free(envelope("b"), 60.0))
    buffer.take()
    assert buffer.full() and buffer.offer(envelope("robber")) == -1 and buffer.is_awaited
    first.cancel()
    await every([second])
    assert texts(buffer) == ["b"] and first.cancelled()
    third = await started(buffer.put_when_free(envelope("c"), 60.0))
    await every([third])
    assert texts(buffer) == ["c"] and not buffer.full() and not buffer.is_awaited


async def test_a_place_that_was_held_and_is_gone() -> None:
    """What is put back over capacity takes a held place: its sender waits for another, and nothing is lost."""
    buffer = make(1)
    buffer.offer(envelope("old"))
    first = await started(buffer.put_when_free(envelope("a"), 60.0))
    taken = buffer.take()
    assert taken is not None
    buffer.put_back(taken)
    senders = buffer._senders
    await eventually(lambda: senders is not None and not senders.held, "the sender's turn")
    assert not first.done()
    assert texts(buffer) == ["old"]
    await every([first])
    assert texts(buffer) == ["a"]


async def test_a_newcomer_waits_behind_others() -> None:
    """Who comes while others wait waits behind them, even if there is a place in that moment."""
    buffer = make(1)
    buffer.offer(envelope("old"))
    senders = [await started(buffer.put_when_free(envelope(text), 60.0)) for text in "ab"]
    buffer.take()
    newcomer = asyncio.create_task(buffer.put_when_free(envelope("c"), 60.0))
    order = [(await buffer.get()).payload.decode() for _ in range(3)]
    await every([*senders, newcomer])
    assert order == ["a", "b", "c"]


async def test_expiry_makes_room() -> None:
    """A sender who waits is woken when the oldest message expires, though nobody says so."""
    counters = Counters()
    buffer = make(1, counters)
    buffer.offer(envelope("a", asyncio.get_running_loop().time() + 0.02))
    async with asyncio.timeout(20):
        await buffer.put_when_free(envelope("b"), 60.0)
    assert dict(counters.dropped) == {"expired": 1}
    assert texts(buffer) == ["b"]


async def test_expiry_makes_room_for_the_next_sender() -> None:
    """It is woken when the message of the sender before it expires, though it was in line before that was put."""
    counters = Counters()
    buffer = make(1, counters)
    buffer.offer(envelope("a", asyncio.get_running_loop().time() + 0.02))
    senders = [
        await started(buffer.put_when_free(envelope(text), lives))
        for text, lives in (("b", 0.02), ("c", 60.0))
    ]
    await every(senders)
    assert dict(counters.dropped) == {"expired": 2}
    assert texts(buffer) == ["c"]


async def test_expiry_counts_from_the_place(clock: Clock) -> None:
    """A message that waited long for its place lives its whole time from there."""
    buffer = make(1)
    buffer.offer(envelope("a"))
    one = envelope("b")
    sender = await started(buffer.put_when_free(one, 60.0))
    clock.turn(100)
    buffer.take()
    await every([sender])
    assert one.expires_at == clock.now + 60.0


async def test_sender_cancelled() -> None:
    """Cancelling who waits for a place puts nothing, and the next one who waits gets the place."""
    buffer = make(1)
    buffer.offer(envelope("a"))
    first = await started(buffer.put_when_free(envelope("b"), 60.0))
    second = await started(buffer.put_when_free(envelope("c"), 60.0))
    first.cancel()
    await ended(first)
    assert first.cancelled() and buffer.is_awaited
    buffer.take()
    await every([second])
    assert texts(buffer) == ["c"] and not buffer.is_awaited


async def test_sender_cancelled_with_a_place_at_hand() -> None:
    """The place of one who is cancelled in the turn in which it came free is for the next one."""
    buffer = make(1)
    buffer.offer(envelope("a"))
    first = await started(buffer.put_when_free(envelope("b"), 60.0))
    second = await started(buffer.put_when_free(envelope("c"), 60.0))
    buffer.take()
    first.cancel()
    await every([second])
    assert first.cancelled() and texts(buffer) == ["c"]


async def test_sender_cancelled_alone() -> None:
    """Nobody else waits: the place stays free."""
    buffer = make(1)
    buffer.offer(envelope("a"))
    sender = await started(buffer.put_when_free(envelope("b"), 60.0))
    buffer.take()
    sender.cancel()
    await ended(sender)
    assert sender.cancelled() and buffer.empty() and not buffer.is_awaited


@pytest.mark.parametrize("reason", [ChannelClosed, LayerClosed])
async def test_close_ends_senders(reason: type[ChannelClosed]) -> None:
    """close() ends those who wait for a place; so does a closed buffer those who come."""
    buffer = make(1)
    buffer.offer(envelope("a"))
    senders = [await started(buffer.put_when_free(envelope("b"), 60.0)) for _ in range(2)]
    buffer.close(reason)
    attempts: list[Callable[[], Awaitable[None]]] = [
        lambda: senders[0],
        lambda: senders[1],
        lambda: buffer.put_when_free(envelope("c"), 60.0),
    ]
    for attempt in attempts:
        with pytest.raises(reason):
            await attempt()
    assert texts(buffer) == ["a"]


async def test_a_waiting_sender_keeps_the_buffer_in_use(clock: Clock) -> None:
    """When a sender gets its place, the buffer has just been used, though nobody received."""
    buffer = make(1)
    buffer.offer(envelope("a", clock.now + 1))
    sender = await started(buffer.put_when_free(envelope("b"), 60.0))
    clock.turn(100)
    assert buffer.drop_expired() == 1
    assert buffer.last_used == clock.now
    await every([sender])


async def test_senders_and_receivers_at_once() -> None:
    """Whatever is cancelled when, each message that was put is received once, in order per sender."""
    buffer = make(2)
    got: list[str] = []

    async def read() -> None:
        while True:
            got.append((await buffer.get()).payload.decode())

    async def write(name: str) -> list[str]:
        put: list[str] = []
        for number in range(30):
            text = f"{name} {number:02}"
            task = asyncio.create_task(buffer.put_when_free(envelope(text), 60.0))
            await asyncio.wait([task], timeout=0) if number % 3 else None
            if number % 3:
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                put.append(text)
        return put

    readers = [asyncio.create_task(read()) for _ in range(3)]
    writers = [asyncio.create_task(write(name)) for name in "abcd"]
    for turn in range(60):
        await asyncio.sleep(0)  # each reader is cancelled somewhere else
        readers[turn % 3].cancel()
        readers[turn % 3] = asyncio.create_task(read())
    put = [text for texts in await every(writers) for text in texts]
    await eventually(lambda: len(got) == len(put), "the receipt of everything")
    assert sorted(got) == sorted(put) and len(put) >= 40
    for name in "abcd":
        own = [text for text in got if text.startswith(name)]
        assert own == sorted(own)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
