"""QueueReader in every state of its table, against a bus that does what the test says."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import pytest

from channels_asyncq.bus.base import WorkQueues
from channels_asyncq.exceptions import ChannelClosed, LayerClosed
from channels_asyncq.local.counters import Counters
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.session import queues
from channels_asyncq.session.drops import DropLog
from channels_asyncq.session.queues import QueueReader
from tests.contract import ended, eventually, every, started, steps


def envelope(text: str) -> Envelope:
    return Envelope(text.encode(), "jobs", expires_at=float("inf"))


class ScriptedBus:
    """What a reader sees of a bus: it notes what it is asked, and answers when it is told to."""

    def __init__(self) -> None:
        self.is_up = True
        self.said: list[str] = []
        self._pops: list[asyncio.Future[Envelope | None]] = []
        self._gives: list[asyncio.Future[None]] = []
        self._before_the_first: int | None = None

    def _relative(self, number: int) -> int:
        """Numbers grow over all readers of a process; a test counts from its first one."""
        if self._before_the_first is None:
            self._before_the_first = number - 1
        return number - self._before_the_first

    def pop(self, channel: str, number: int) -> asyncio.Future[Envelope | None] | None:
        assert channel == "jobs"
        if not self.is_up:
            return None
        self.said.append(f"pop {self._relative(number)}")
        self._pops.append(asyncio.get_running_loop().create_future())
        return self._pops[-1]

    def give_back(self, channel: str, number: int) -> asyncio.Future[None] | None:
        assert channel == "jobs"
        if not self.is_up:
            return None
        self.said.append(f"give back {self._relative(number)}")
        self._gives.append(asyncio.get_running_loop().create_future())
        return self._gives[-1]

    async def answer(self, text: str | None) -> None:
        """Answer the oldest pop, with a message or with none, and let everybody go on."""
        self._pops.pop(0).set_result(None if text is None else envelope(text))
        await steps(5)

    async def refuse(self, error: Exception) -> None:
        self._pops.pop(0).set_exception(error)
        await steps(5)

    async def refuse_to_take(self) -> None:
        self._gives.pop(0).set_exception(ConnectionAbortedError("OOM"))
        await steps(5)

    async def given(self) -> None:
        self._gives.pop(0).set_result(None)
        await steps(5)

    async def lose(self) -> None:
        """Lose the link: what is unanswered fails."""
        self.is_up = False
        for pop in self._pops:
            pop.set_exception(ConnectionResetError("lost"))
        for give in self._gives:
            give.set_exception(ConnectionResetError("lost"))
        self._pops.clear()
        self._gives.clear()
        await steps(5)

    @property
    def unanswered(self) -> int:
        return len(self._pops) + len(self._gives)


class Stage:
    """A reader, its bus, and what it reported."""

    def __init__(self) -> None:
        self.bus = ScriptedBus()
        self.counters = Counters()
        self.dropped: list[tuple[bytes, str]] = []
        self.reader = QueueReader(
            "jobs",
            b"asgi:0:queue:jobs",
            cast(WorkQueues, self.bus),
            self.counters,
            cast(DropLog, self),
        )

    def unreadable(self, topic: bytes, reason: str) -> None:
        """What a reader calls for a message that it cannot read, as of a DropLog."""
        self.dropped.append((topic, reason))

    async def receiver(self) -> asyncio.Task[Envelope]:
        return await started(self.reader.get())

    async def back(self) -> None:
        """The link is up again."""
        self.bus.is_up = True
        self.reader.reconnected()
        await steps(5)


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def text(receiver: asyncio.Task[Envelope]) -> str:
    [got] = await every([receiver])
    return got.payload.decode()


async def cancel(receiver: asyncio.Task[Envelope]) -> None:
    receiver.cancel()
    await ended(receiver)
    assert receiver.cancelled()


# idle


async def test_nobody_waits_nobody_asks(stage: Stage) -> None:
    """Without a receiver nothing is taken from the server, whatever is pushed or comes back."""
    stage.reader.poke()
    stage.reader.reconnected()
    assert stage.bus.said == [] and stage.reader.is_idle


async def test_a_receiver_asks(stage: Stage) -> None:
    """A receiver makes the reader ask for one message, and gets it; the next one acknowledges it."""
    first = await stage.receiver()
    assert stage.bus.said == ["pop 1"] and not stage.reader.is_idle
    await stage.bus.answer("a")
    assert await text(first) == "a"
    assert stage.bus.said == ["pop 1"] and stage.reader.is_idle and stage.counters.delivered == 1
    second = await stage.receiver()
    await stage.bus.answer("b")
    assert await text(second) == "b"
    assert stage.bus.said == ["pop 1", "pop 2"]


async def test_nothing_there(stage: Stage) -> None:
    """An empty channel is asked again when something is pushed, not before."""
    receiver = await stage.receiver()
    await stage.bus.answer(None)
    assert stage.bus.said == ["pop 1"] and not receiver.done()
    stage.reader.poke()
    assert stage.bus.said == ["pop 1", "pop 2"]
    await stage.bus.answer("a")
    assert await text(receiver) == "a"


async def test_a_message_keeps_what_was_decoded(stage: Stage) -> None:
    """What the bus has decoded already is not decoded again, and does not expire on its last inch."""
    receiver = await stage.receiver()
    late = envelope("a")
    late.message, late.expires_at = {"type": "x"}, 0.0
    stage.bus._pops.pop().set_result(late)
    [got] = await every([receiver])
    assert got.message == {"type": "x"} and got.payload == b"a"


# asking


async def test_one_question_at_a_time(stage: Stage) -> None:
    """However many wait and however often something is pushed, one question is under way."""
    receivers = [await stage.receiver() for _ in range(3)]
    for _ in range(3):
        stage.reader.poke()
    assert stage.bus.said == ["pop 1"]
    await stage.bus.answer("a")
    await stage.bus.answer("b")
    await stage.bus.answer("c")
    assert [await text(receiver) for receiver in receivers] == ["a", "b", "c"]
    assert stage.bus.said == ["pop 1", "pop 2", "pop 3"] and stage.reader.is_idle


async def test_woken_while_asking(stage: Stage) -> None:
    """What was pushed after the server had answered "nothing" is asked for."""
    receiver = await stage.receiver()
    stage.reader.poke()
    await stage.bus.answer(None)
    assert stage.bus.said == ["pop 1", "pop 2"]
    await stage.bus.answer(None)
    assert stage.bus.said == ["pop 1", "pop 2"] and not receiver.done()


async def test_lost_while_asking(stage: Stage) -> None:
    """The question whose answer was lost is asked again under its number, when the link is back."""
    receiver = await stage.receiver()
    await stage.bus.lose()
    stage.reader.poke()
    assert stage.bus.said == ["pop 1"]
    await stage.back()
    stage.reader.reconnected()
    assert stage.bus.said == ["pop 1", "pop 1"]
    await stage.bus.answer("a")
    assert await text(receiver) == "a"


async def test_refused_while_asking(stage: Stage) -> None:
    """An error reply is no answer: the same number is asked when something happens."""
    receiver = await stage.receiver()
    await stage.bus.refuse(ConnectionAbortedError("OOM"))
    assert stage.bus.said == ["pop 1"] and not receiver.done()
    stage.reader.poke()
    await stage.bus.answer("a")
    assert await text(receiver) == "a" and stage.bus.said == ["pop 1", "pop 1"]


async def test_refused_and_asked_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing happens, a refused question is repeated after a while: nobody else would do it."""
    monkeypatch.setattr(queues, "_PAUSE_AFTER_REFUSAL", 0.0)
    receiver = await stage.receiver()
    await stage.bus.refuse(ConnectionAbortedError("OOM"))
    await eventually(lambda: stage.bus.said == ["pop 1", "pop 1"], "another attempt")
    await stage.bus.answer("a")
    assert await text(receiver) == "a"


async def test_refused_again_and_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that goes on refusing is asked ever less often, up to a bound; an answer ends that."""
    loop = asyncio.get_running_loop()
    call_later, pauses = loop.call_later, list[float]()

    def note(delay: float, callback: Any, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        if callback == stage.reader.reconnected:
            pauses.append(delay)
            delay = 0.0
        return call_later(delay, callback, *arguments, **options)

    monkeypatch.setattr(loop, "call_later", note)
    receiver = await stage.receiver()
    for count in range(1, 7):
        await stage.bus.refuse(ConnectionAbortedError("OOM"))
        await eventually(partial(lambda count: len(stage.bus.said) == count + 1, count), "another attempt")
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    await stage.bus.answer("a")
    assert await text(receiver) == "a"
    receiver = await stage.receiver()
    await stage.bus.refuse(ConnectionAbortedError("OOM"))
    assert pauses[6:] == [1.0]
    await eventually(lambda: stage.bus.said[-2] == stage.bus.said[-1], "another attempt")
    await stage.bus.answer("b")
    assert await text(receiver) == "b"


async def test_repeated_in_vain(stage: Stage) -> None:
    """The answer "nothing" to a repeated question may be an old one: another is asked."""
    receiver = await stage.receiver()
    await stage.bus.lose()
    await stage.back()
    await stage.bus.answer(None)
    assert stage.bus.said == ["pop 1", "pop 1", "pop 2"]
    await stage.bus.answer("a")
    assert await text(receiver) == "a"


async def test_two_readers_in_a_row(stage: Stage) -> None:
    """A reader that comes after another one of the same channel never repeats its numbers."""
    first = await stage.receiver()
    await stage.bus.answer("a")
    assert await text(first) == "a"
    stage.reader = QueueReader(
        "jobs", b"asgi:0:queue:jobs", cast(WorkQueues, stage.bus), stage.counters, cast(DropLog, stage)
    )
    second = await stage.receiver()
    assert stage.bus.said == ["pop 1", "pop 2"]
    await stage.bus.answer("b")
    assert await text(second) == "b"


async def test_down_before_asking(stage: Stage) -> None:
    """A receiver that comes while the link is down is served when it is back."""
    stage.bus.is_up = False
    receivers = [await stage.receiver() for _ in range(2)]
    assert stage.bus.said == []
    await stage.back()
    assert len(stage.bus.said) == 1
    await stage.bus.answer("a")
    await stage.bus.answer("b")
    assert [await text(receiver) for receiver in receivers] == ["a", "b"]


async def test_unreadable(stage: Stage) -> None:
    """What is no message is reported, acknowledged by the next number, and the receiver waits on."""
    receiver = await stage.receiver()
    await stage.bus.refuse(ValueError("no envelope"))
    assert stage.dropped == [(b"asgi:0:queue:jobs", "no envelope")]
    assert stage.bus.said == ["pop 1", "pop 2"]
    await stage.bus.answer("a")
    assert await text(receiver) == "a" and stage.counters.delivered == 1


async def test_unreadable_for_nobody(stage: Stage) -> None:
    """The same with nobody waiting any more: nothing is asked."""
    await cancel(await stage.receiver())
    await stage.bus.refuse(ValueError("no envelope"))
    assert stage.dropped and stage.bus.said == ["pop 1"] and stage.reader.is_idle


async def test_cancelled_while_asking(stage: Stage) -> None:
    """What comes for a receiver that is gone is given back."""
    await cancel(await stage.receiver())
    await stage.bus.answer("a")
    assert stage.bus.said == ["pop 1", "give back 1"]
    await stage.bus.given()
    assert stage.reader.is_idle and stage.counters.delivered == 0


async def test_cancelled_while_asking_for_two(stage: Stage) -> None:
    """What comes for a receiver that is gone is for another one who waits here."""
    first, second = await stage.receiver(), await stage.receiver()
    await cancel(first)
    await stage.bus.answer("a")
    assert await text(second) == "a" and stage.bus.said == ["pop 1"]


async def test_cancelled_and_a_new_one_while_asking(stage: Stage) -> None:
    """A receiver that comes before the answer gets what was asked for one that is gone."""
    await cancel(await stage.receiver())
    second = await stage.receiver()
    assert stage.bus.said == ["pop 1"]
    await stage.bus.answer("a")
    assert await text(second) == "a"


async def test_flush_while_asking(stage: Stage) -> None:
    """There is nothing to drop yet."""
    receiver = await stage.receiver()
    assert stage.reader.flush() == 0
    await stage.bus.answer("a")
    assert await text(receiver) == "a"


# holding


async def test_cancelled_while_holding(stage: Stage) -> None:
    """A receiver that is cancelled in the turn in which its message came leaves it: it is given back."""
    receiver = await stage.receiver()
    stage.bus._pops.pop().set_result(envelope("a"))
    await steps(1)
    assert stage.reader.buffer.queued == 1 and not receiver.done()
    await cancel(receiver)
    assert stage.bus.said == ["pop 1", "give back 1"] and stage.counters.delivered == 0


async def test_cancelled_while_holding_for_two(stage: Stage) -> None:
    """The same with another one waiting: it gets the message."""
    first, second = await stage.receiver(), await stage.receiver()
    stage.bus._pops.pop().set_result(envelope("a"))
    await steps(1)
    await cancel(first)
    assert await text(second) == "a" and stage.bus.said == ["pop 1"]


async def test_poked_and_reconnected_while_holding(stage: Stage) -> None:
    """While a message is on its way to a receiver nothing is asked: it would acknowledge it."""
    receiver = await stage.receiver()
    stage.bus._pops.pop().set_result(envelope("a"))
    await steps(1)
    stage.reader.poke()
    stage.reader.reconnected()
    assert stage.bus.said == ["pop 1"] and not receiver.done()
    assert await text(receiver) == "a"


async def test_lost_while_holding(stage: Stage) -> None:
    """A message that was taken before the link was lost is received once."""
    first, second = await stage.receiver(), await stage.receiver()
    stage.bus._pops.pop().set_result(envelope("a"))
    await steps(1)
    await stage.bus.lose()
    assert await text(first) == "a"
    await stage.back()
    assert stage.bus.said == ["pop 1", "pop 2"]
    await stage.bus.answer("b")
    assert await text(second) == "b"


async def test_flush_while_holding(stage: Stage) -> None:
    """flush() drops what is held and says so; the receiver waits for the next message."""
    receiver = await stage.receiver()
    stage.bus._pops.pop().set_result(envelope("a"))
    await steps(1)
    assert stage.reader.flush() == 1
    await steps(5)
    assert not receiver.done() and stage.bus.said == ["pop 1", "pop 2"]
    await stage.bus.answer("b")
    assert await text(receiver) == "b"


# giving


async def test_asked_while_giving(stage: Stage) -> None:
    """A receiver that comes while a message goes back asks when it is back, and gets it again."""
    await cancel(await stage.receiver())
    await stage.bus.answer("a")
    second = await stage.receiver()
    stage.reader.poke()
    assert stage.bus.said == ["pop 1", "give back 1"]
    await stage.bus.given()
    assert stage.bus.said == ["pop 1", "give back 1", "pop 2"]
    await stage.bus.answer("a")
    assert await text(second) == "a" and stage.reader.is_idle


async def test_lost_while_giving(stage: Stage) -> None:
    """What may not have gone back is given back again under its number when the link is back."""
    await cancel(await stage.receiver())
    await stage.bus.answer("a")
    await stage.bus.lose()
    assert not stage.reader.is_idle
    await stage.back()
    assert stage.bus.said == ["pop 1", "give back 1", "give back 1"]
    await stage.bus.given()
    assert stage.reader.is_idle


async def test_lost_while_giving_with_a_receiver(stage: Stage) -> None:
    """The same with a receiver that came meanwhile: it is asked for when the message is surely back."""
    await cancel(await stage.receiver())
    await stage.bus.answer("a")
    await stage.bus.lose()
    receiver = await stage.receiver()
    await stage.back()
    assert stage.bus.said == ["pop 1", "give back 1", "give back 1"]
    await stage.bus.given()
    assert stage.bus.said[-1] == "pop 2"
    await stage.bus.answer("a")
    assert await text(receiver) == "a"


async def test_refused_while_giving(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server refuses to take back is offered again after a while."""
    monkeypatch.setattr(queues, "_PAUSE_AFTER_REFUSAL", 0.0)
    await cancel(await stage.receiver())
    await stage.bus.answer("a")
    await stage.bus.refuse_to_take()
    await eventually(lambda: stage.bus.said == ["pop 1", "give back 1", "give back 1"], "another attempt")
    await stage.bus.given()
    assert stage.reader.is_idle


async def test_cancelled_after_the_link_was_lost(stage: Stage) -> None:
    """What the server may have taken out for a receiver that left during the outage goes back after it."""
    receiver = await stage.receiver()
    await stage.bus.lose()
    await cancel(receiver)
    assert not stage.reader.is_idle
    await stage.back()
    assert stage.bus.said == ["pop 1", "give back 1"]
    await stage.bus.given()
    assert stage.reader.is_idle


async def test_cancelled_while_holding_and_down(stage: Stage) -> None:
    """A message held for one who is cancelled in an outage goes back after it."""
    receiver = await stage.receiver()
    stage.bus._pops.pop().set_result(envelope("a"))
    await steps(1)
    stage.bus.is_up = False
    await cancel(receiver)
    assert stage.bus.said == ["pop 1"] and not stage.reader.is_idle
    await stage.back()
    assert stage.bus.said == ["pop 1", "give back 1"]
    await stage.bus.given()
    assert stage.reader.is_idle


# Closing, in every state


@pytest.mark.parametrize("reason", [ChannelClosed, LayerClosed])
async def test_close_while_idle(stage: Stage, reason: type[ChannelClosed]) -> None:
    """Nothing is under way: close() returns at once, twice too; receivers that come get its reason."""
    async with asyncio.timeout(20):
        await stage.reader.close(reason)
        await stage.reader.close(reason)
        with pytest.raises(reason):
            await stage.reader.get()
    assert stage.bus.said == []


async def test_close_while_asking(stage: Stage) -> None:
    """close() ends the receivers at once; the message that was under way goes back before it returns."""
    receivers = [await stage.receiver() for _ in range(2)]
    closing = await started(stage.reader.close(ChannelClosed))
    for receiver in receivers:
        with pytest.raises(ChannelClosed):
            await receiver
    assert not closing.done()
    await stage.bus.answer("a")
    assert not closing.done() and stage.bus.said == ["pop 1", "give back 1"]
    await stage.bus.given()
    await every([closing])
    assert stage.bus.unanswered == 0


@pytest.mark.parametrize("is_lost", [False, True])
async def test_close_while_asking_in_vain(stage: Stage, is_lost: bool) -> None:
    """With nothing there, or with the link lost, close() waits for no more than that."""
    receiver = await stage.receiver()
    closing = await started(stage.reader.close(ChannelClosed))
    assert not closing.done()
    if is_lost:
        await stage.bus.lose()
    else:
        await stage.bus.answer(None)
    await every([closing])
    with pytest.raises(ChannelClosed):
        await receiver
    assert stage.bus.said == ["pop 1"]


async def test_close_while_holding(stage: Stage) -> None:
    """What is held for a receiver that has not run yet goes back, and the receiver ends: never both."""
    receiver = await stage.receiver()
    stage.bus._pops.pop().set_result(envelope("a"))
    closing = await started(stage.reader.close(ChannelClosed))
    with pytest.raises(ChannelClosed):
        await receiver
    assert stage.bus.said == ["pop 1", "give back 1"] and not closing.done()
    await stage.bus.given()
    await every([closing])


async def test_close_after_a_refusal(stage: Stage) -> None:
    """A question that would be repeated later is not: nothing is left running."""
    receiver = await stage.receiver()
    await stage.bus.refuse(ConnectionAbortedError("OOM"))
    async with asyncio.timeout(20):
        await stage.reader.close(ChannelClosed)
    with pytest.raises(ChannelClosed):
        await receiver
    assert stage.bus.said == ["pop 1"]


async def test_close_while_giving(stage: Stage) -> None:
    """close() waits for the answer to what is being given back; two of them do."""
    await cancel(await stage.receiver())
    await stage.bus.answer("a")
    closing = [await started(stage.reader.close(ChannelClosed)) for _ in range(2)]
    assert not any(one.done() for one in closing)
    await stage.bus.given()
    await every(closing)
    assert stage.bus.said == ["pop 1", "give back 1"]


async def test_close_while_giving_and_lost(stage: Stage) -> None:
    """A link that is lost with a message under way home holds nobody up."""
    await cancel(await stage.receiver())
    await stage.bus.answer("a")
    closing = await started(stage.reader.close(ChannelClosed))
    await stage.bus.lose()
    await every([closing])


async def test_close_cancelled(stage: Stage) -> None:
    """Cancelling close() ends only the waiting: what was under way goes back all the same."""
    receiver = await stage.receiver()
    closing = await started(stage.reader.close(ChannelClosed))
    with pytest.raises(ChannelClosed):
        await receiver
    closing.cancel()
    await ended(closing)
    await stage.bus.answer("a")
    assert stage.bus.said == ["pop 1", "give back 1"]
    await stage.bus.given()
    async with asyncio.timeout(20):
        await stage.reader.close(ChannelClosed)
