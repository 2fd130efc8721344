"""The broker of `memory://`: what a reader gives back, capacities that differ, and what sessions do not share."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import pytest
from channels.exceptions import ChannelFull

from channels_asyncq import AsyncQueueChannelLayer, sync
from channels_asyncq.bus.base import WAITS_SECONDS
from channels_asyncq.bus.memory.broker import Broker
from channels_asyncq.bus.memory.queues import Waiter
from channels_asyncq.local import mailbox
from channels_asyncq.messages.envelopes import Envelope
from tests.clock import Clock
from tests.contract import ended, eventually, layers, members_of, note, notes, receive, receive_many, started
from tests.sessions import session_of


@pytest.fixture
async def memory_layer(prefix: str) -> AsyncIterator[AsyncQueueChannelLayer]:
    """A layer on `memory://`."""
    async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
        yield await make_layer()


def push(broker: Broker, payload: bytes, capacity: int, waiter: Waiter | None = None) -> None:
    broker.push("jobs", b"queue:jobs", Envelope(payload, "jobs", expires_at=float("inf")), capacity, waiter)


def has_place(broker: Broker, capacity: int, waiter: Waiter | None = None) -> bool:
    """Push, and tell whether it was taken."""
    try:
        push(broker, b"new", capacity, waiter)
    except ChannelFull:
        return False
    return True


def pop(broker: Broker, session_id: str, number: int) -> bytes | None:
    envelope = broker.pop("jobs", session_id, number)
    return None if envelope is None else envelope.payload


def test_given_back_to_an_empty_channel() -> None:
    """It is at the head again, and the channel holds as many as ever."""
    broker = Broker()
    push(broker, b"1", 3)
    assert pop(broker, "a", 1) == b"1"
    assert pop(broker, "b", 1) is None
    broker.give_back("jobs", b"queue:jobs", "a", 1)
    for payload in (b"2", b"3"):
        push(broker, payload, 3)
    with pytest.raises(ChannelFull):
        push(broker, b"4", 3)
    assert [pop(broker, "b", number) for number in (2, 3, 4, 5)] == [b"1", b"2", b"3", None]


def test_layers_of_other_capacities() -> None:
    """Each push goes by the capacity of its own layer."""
    broker = Broker()
    push(broker, b"1", 1)
    with pytest.raises(ChannelFull):
        push(broker, b"2", 1)
    push(broker, b"2", 2)
    with pytest.raises(ChannelFull):
        push(broker, b"3", 1)


def test_waiting_senders() -> None:
    """Nodes whose senders wait get places in the order in which they came; others leave them the last one."""
    broker = Broker()
    for payload in (b"1", b"2", b"3"):
        push(broker, payload, 3)
    first, second, third = Waiter("c", 1.0), Waiter("b", 2.0), Waiter("a", 3.0)
    assert not any(has_place(broker, 3, waiter) for waiter in (second, first, third))
    pop(broker, "r", 1)
    # One place.
    assert not has_place(broker, 3)
    assert not has_place(broker, 3, second)
    pop(broker, "r", 2)
    # Two places: the first two have them, and whoever does not wait has what is more than the last.
    assert not has_place(broker, 3, third)
    assert has_place(broker, 3, second)
    assert not has_place(broker, 3)
    assert has_place(broker, 3, first)
    pop(broker, "r", 3)
    pop(broker, "r", 4)
    assert has_place(broker, 3)
    assert not has_place(broker, 3)
    assert has_place(broker, 3, third)


def test_waiting_senders_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has given up, or has not asked again in its time, waits no more."""
    broker = Broker()
    clock = Clock()
    clock.put_into(monkeypatch, ["bus.memory"])
    push(broker, b"1", 1)
    gone, gives_up, there = Waiter("a", 1.0), Waiter("b", 2.0), Waiter("c", 3.0)
    assert not has_place(broker, 1, gone)
    clock.turn(WAITS_SECONDS)
    assert not has_place(broker, 1, gives_up)
    assert not has_place(broker, 1, there)
    pop(broker, "r", 1)
    assert not has_place(broker, 1, there)
    broker.stop_waiting("jobs", "b")
    assert has_place(broker, 1, there)


async def test_sessions_count_their_own_bytes(prefix: str) -> None:
    """A group with members in several sessions: each session's bytes are those that wait in its own channels."""
    async with layers(hosts=["memory://"], prefix=prefix, max_buffered_bytes=1000) as make_layer:
        here = [await make_layer() for _ in range(3)]
        members = [(layer, member) for layer in here for member in await members_of(layer, "room", 2)]
        for number in range(300):
            await here[number % 3].group_send("room", note(number))
            # Every session is the first, the second and the last to have read it.
            for layer, member in members[number % 6 :] + members[: number % 6]:
                assert await receive(layer, member) == note(number)
        for number in range(3):
            await here[0].group_send("room", note(number))
        for layer, member in members:
            assert [(await receive(layer, member))["n"] for _ in range(3)] == [0, 1, 2]
        assert all(not layer.statistics().dropped for layer in here)


async def test_sessions_hold_no_more_than_their_bytes(prefix: str) -> None:
    """What waits in one session makes another one hold neither more nor less."""
    async with layers(hosts=["memory://"], prefix=prefix, max_buffered_bytes=1000) as make_layer:
        here = [await make_layer() for _ in range(2)]
        members = [(layer, member) for layer in here for member in await members_of(layer, "room", 2)]
        message = {"type": "m", "text": "x" * 280}
        for _ in range(5):
            await here[0].group_send("room", message)
        # Nobody reads before all of them have arrived: an empty channel takes more.
        await eventually(lambda: all(layer.statistics().dropped == {"overflow": 4} for layer in here))
        for layer, member in members:
            for _ in range(3):
                assert await receive(layer, member) == message
            assert not [name for name, _ in layer.statistics().queued if name == member]


async def test_what_was_sent_before_a_group_was_joined_again(prefix: str) -> None:
    """Who leaves and joins while a message waits for the event loop does not get it, as on a server."""
    async with layers(hosts=["memory://"], prefix=prefix) as make_layer:
        layer, other = await make_layer(), await make_layer()
        [member] = await members_of(layer, "room", 1)
        await other.new_channel()
        session_of(layer).hub._slices.run(iter([True] * 20))  # a delivery to many is unfinished
        await other.group_send("room", note(1))
        await layer.group_discard("room", member)
        await layer.group_add("room", member)
        await other.group_send("room", note(2))
        assert await receive(layer, member) == note(2)
        await other.group_send("room", note(3))
        assert await receive(layer, member) == note(3)


async def test_wake_up_for_a_loop_that_has_too_much(
    memory_layer: AsyncQueueChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A reader of a normal channel is woken, however many messages wait for its loop; only those beyond the limit
    count as dropped.
    """
    monkeypatch.setattr(mailbox, "LIMIT", 3)
    [channel] = await members_of(memory_layer, "room", 1)
    reading = await started(memory_layer.receive("jobs"))

    def send() -> None:
        for message in notes(5):
            sync.group_send("room", message, memory_layer)
        for message in notes(5):
            sync.send("jobs", message, memory_layer)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()  # and this loop stands still
    assert await ended(reading) == note(0)
    assert await receive_many(memory_layer, "jobs", 4) == notes(5)[1:]
    assert await receive_many(memory_layer, channel, 3) == notes(3)
    assert memory_layer.statistics().dropped == {"overflow": 2}
