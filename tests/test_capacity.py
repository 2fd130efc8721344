"""How many commands a connection takes, and the tasks that wait until it takes more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from channels_asyncq.bus.resp.replies import NotSent
from tests.wires import Growing, Session, encode, turns
from tests.wires import no_haste as no_haste


async def test_capacity_by_count() -> None:
    """With max_pending unanswered calls wait_for_capacity() waits; a reply wakes one task."""
    session = Session(max_pending=2)
    await session.wire.pipeline.wait_for_capacity()
    session.wire.call("GET", 1)
    session.wire.call("GET", 2)
    assert not session.wire.pipeline.has_capacity
    waiting = asyncio.ensure_future(session.wire.pipeline.wait_for_capacity())
    await turns()
    assert not waiting.done()
    session.feed(b":1\r\n")
    assert not session.wire.pipeline.has_capacity, "the capacity belongs to the task that waits"
    await waiting
    assert session.wire.pipeline.has_capacity


@pytest.mark.parametrize("bound", [{"max_pending": 6}, {"max_bytes": 120}])
async def test_capacity_that_was_not_used(bound: dict[str, Any]) -> None:
    """An open command counts as what it may grow to; when it is written, the rest is free again."""
    session = Session(**bound)
    first = session.wire.call("PING")  # so that the next commands are not written at once
    session.wire.pipeline.call_open(Growing())
    assert session.wire.pipeline.has_capacity
    session.wire.pipeline.call_open(Growing())
    assert not session.wire.pipeline.has_capacity
    waiting = asyncio.ensure_future(session.wire.pipeline.wait_for_capacity())
    await turns()
    assert waiting.done() and session.wire.pipeline.has_capacity and len(session.pipe.writes) == 2
    assert (session.wire.pipeline._pending, session.wire.pipeline.unanswered_bytes) == (3, 42)
    session.feed(b"+PONG\r\n" * 3)
    assert await first == b"PONG"
    assert (session.wire.pipeline._pending, session.wire.pipeline.unanswered_bytes) == (0, 0)


async def test_nobody_overtakes() -> None:
    """A task that finds no capacity when it runs keeps its place, also before tasks woken later."""
    session = Session(max_pending=20)
    order: list[str] = []

    async def send(name: str) -> None:
        await session.wire.pipeline.wait_for_capacity()
        order.append(name)
        session.wire.pipeline.call_open(Growing(16))

    for _ in range(20):
        session.wire.call("PING")
    await turns()
    tasks = [asyncio.ensure_future(send(name)) for name in "abc"]
    await turns()
    session.feed(b"+PONG\r\n" * 2)  # wakes a and b, but a takes all
    session.wire.call("PING")  # its write gives back the calls that a does not use
    session.feed(b"+PONG\r\n" * 2)  # wakes c as well
    await turns(20)
    session.feed(b"+PONG\r\n" * session.wire.pending)
    await turns()
    assert all(task.done() for task in tasks) and order == ["a", "b", "c"]
    session.feed(b"+PONG\r\n" * session.wire.pending)
    assert session.wire.pipeline.has_capacity and (
        session.wire.pipeline._pending,
        session.wire.pipeline.unanswered_bytes,
    ) == (0, 0)


async def test_capacity_by_bytes() -> None:
    """With max_bytes unanswered the tasks wait, and each looks again when it is woken, in order."""
    session = Session(max_bytes=1000)
    order: list[int] = []

    async def send(number: int) -> None:
        await session.wire.pipeline.wait_for_capacity()
        order.append(number)
        session.wire.call("SET", "k", b"x" * 2000)

    tasks = [asyncio.ensure_future(send(number)) for number in range(5)]
    for answered in range(5):
        await turns()
        assert order == list(range(answered + 1)), "one large command at a time"
        session.feed(b"+OK\r\n")
    await asyncio.gather(*tasks)
    assert session.wire.pipeline.unanswered_bytes == 0


@pytest.mark.parametrize("batch", [1, 3, 7])
async def test_capacity_is_first_come_first_served(batch: int) -> None:
    """However many calls become free at once, the tasks get them in the order in which they came."""
    session = Session(max_pending=batch)
    order: list[int] = []

    async def send(number: int) -> None:
        await session.wire.pipeline.wait_for_capacity()
        order.append(number)
        session.wire.call("GET", number)
        assert session.wire.pending <= batch

    tasks = [asyncio.ensure_future(send(number)) for number in range(30)]
    while not all(task.done() for task in tasks):
        await turns()
        session.feed(b"+OK\r\n" * session.wire.pending)
    assert order == list(range(30))


@pytest.mark.parametrize("woken", [False, True])
async def test_capacity_cancelled_passes_the_place_on(woken: bool) -> None:
    """Cancelling a task, woken or not, gives its place to the next."""
    session = Session(max_pending=1)
    session.wire.call("GET", 1)
    first, second = (asyncio.ensure_future(session.wire.pipeline.wait_for_capacity()) for _ in range(2))
    await turns()
    if woken:
        session.feed(b":1\r\n")
        first.cancel()
    else:
        first.cancel()
        await turns()
        session.feed(b":1\r\n")
    await second
    assert first.cancelled()
    assert session.wire.pipeline.has_capacity


async def test_capacity_cancelled_in_the_middle_of_the_queue() -> None:
    """Cancelling a task in the middle of the queue keeps the order of the others."""
    session = Session(max_pending=1)
    session.wire.call("GET", 0)
    order: list[int] = []

    async def send(number: int) -> None:
        await session.wire.pipeline.wait_for_capacity()
        order.append(number)
        session.wire.call("GET", number)

    tasks = [asyncio.ensure_future(send(number)) for number in range(1, 5)]
    await turns()
    tasks[1].cancel()
    for _ in range(4):
        await turns()
        session.feed(b"+OK\r\n" * session.wire.pending)
    await turns()
    assert order == [1, 3, 4]


async def test_capacity_granted_and_not_used() -> None:
    """A task that may call and does not call does not block the tasks behind it."""
    session = Session(max_pending=1)
    session.wire.call("GET", 1)
    waiting = [asyncio.ensure_future(session.wire.pipeline.wait_for_capacity()) for _ in range(5)]
    await turns()
    session.feed(b":1\r\n")
    await asyncio.gather(*waiting)
    assert session.wire.pending == 0


@pytest.mark.parametrize("subscriber", [False, True])
async def test_capacity_closed_while_writing_is_paused(subscriber: bool) -> None:
    """While the transport's buffer is full, nothing is written and nothing may be called."""
    session = Session(subscriber=subscriber)
    session.wire.pause_writing()
    assert not session.wire.pipeline.has_capacity
    waiting = asyncio.ensure_future(session.wire.pipeline.wait_for_capacity())
    future = session.wire.call("PING")
    await turns()
    assert session.pipe.writes == []
    assert not waiting.done()
    session.wire.resume_writing()
    await waiting
    await turns(1)
    assert len(session.pipe.writes) == 1
    session.feed(b"+PONG\r\n")
    assert await future == b"PONG"


async def test_capacity_for_a_subscriber() -> None:
    """On a subscriber's connection confirmations free capacity."""
    session = Session(subscriber=True, max_pending=1)
    session.wire.call("SUBSCRIBE", "a")
    waiting = asyncio.ensure_future(session.wire.pipeline.wait_for_capacity())
    await turns()
    session.feed(encode([b"subscribe", b"a", 1]))
    await waiting


@pytest.mark.parametrize("end", ["lost", "abort", "close"])
async def test_capacity_when_the_connection_ends(end: str) -> None:
    """At the end of the connection every task that waits gets NotSent, and so does a later one."""
    session = Session(max_pending=1)
    session.wire.call("GET", 1)
    waiting = [asyncio.ensure_future(session.wire.pipeline.wait_for_capacity()) for _ in range(3)]
    await turns()
    closing: asyncio.Future[None] | None = None
    if end == "lost":
        session.pipe.lose(OSError("cable"))
    elif end == "abort":
        session.wire.abort(OSError("cable"))
    else:
        closing = asyncio.ensure_future(session.wire.close())
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, NotSent)
    with pytest.raises(NotSent):
        await session.wire.pipeline.wait_for_capacity()
    if closing is not None:
        session.feed(b":1\r\n")
        await closing
