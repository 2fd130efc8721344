"""Readers of normal channels: what may happen between a question and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from channels_asyncq.bus.base import WorkQueues
from channels_asyncq.exceptions import ChannelClosed
from channels_asyncq.local.counters import Counters
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.session.drops import DropLog
from channels_asyncq.session.queues import QueueReader
from tests.contract import eventually, started

Answer = asyncio.Future[Envelope | None]


class Questions:
    """A bus that notes what it is asked; the test answers."""

    def __init__(self) -> None:
        self.is_up = True
        self.asked: list[tuple[str, int]] = []
        self.answers: list[asyncio.Future[Envelope | None]] = []

    def _ask(self, what: str, number: int) -> Answer | None:
        if not self.is_up:
            return None
        self.asked.append((what, number))
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]

    def pop(self, channel: str, number: int) -> Answer | None:
        return self._ask("pop", number)

    def give_back(self, channel: str, number: int) -> Answer | None:
        return self._ask("give_back", number)

    async def answer(self, text: str | None = None) -> None:
        """Answer the oldest question, and return when the reader has been told."""
        answer = self.answers.pop(0)
        answer.set_result(None if text is None else Envelope(text.encode(), "jobs"))
        await asyncio.wait([answer])

    async def fail(self) -> None:
        """Fail all questions, and return when the reader has been told."""
        answers, self.answers = self.answers, []
        for answer in answers:
            answer.set_exception(ConnectionResetError("lost"))
        await asyncio.wait(answers)

    @property
    def verbs(self) -> list[str]:
        return [what for what, _ in self.asked]

    def number(self, index: int) -> int:
        return self.asked[index][1]


@pytest.fixture
def bus() -> Questions:
    return Questions()


@pytest.fixture
def make_reader(bus: Questions) -> Callable[[], QueueReader]:
    return lambda: QueueReader("jobs", b"jobs", cast(WorkQueues, bus), Counters(), cast(DropLog, None))


@pytest.fixture
def reader(make_reader: Callable[[], QueueReader]) -> QueueReader:
    return make_reader()


async def cancelled(task: asyncio.Task[Envelope]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_subscribed_while_asking(bus: Questions, reader: QueueReader) -> None:
    """A push between the pop and the subscription had no wake-up: an empty answer is not the last word."""
    receiving = await started(reader.get())
    reader.reconnected()
    await bus.answer()
    assert bus.verbs == ["pop", "pop"]
    assert bus.number(1) > bus.number(0)
    await bus.answer("one")
    assert (await receiving).payload == b"one"


async def test_given_back_and_asked_when_the_link_is_lost(bus: Questions, reader: QueueReader) -> None:
    """What was being given back is given back again before the next question acknowledges it."""
    receiving = await started(reader.get())
    await cancelled(receiving)
    await bus.answer("one")
    receiving = await started(reader.get())
    bus.is_up = False
    await bus.fail()
    del bus.asked[1:]
    bus.is_up = True
    reader.reconnected()
    assert bus.asked[1:] == [("give_back", bus.number(0))]
    await bus.answer()
    assert bus.verbs[1:] == ["give_back", "pop"]
    assert bus.number(2) > bus.number(0)
    await bus.answer("one")
    assert (await receiving).payload == b"one"


async def test_asked_and_cancelled_while_the_link_is_down(bus: Questions, reader: QueueReader) -> None:
    """The server may hold a message for a question nobody has any more: it goes back."""
    receiving = await started(reader.get())
    bus.is_up = False
    await bus.fail()
    await cancelled(receiving)
    assert not reader.is_idle
    bus.is_up = True
    reader.reconnected()
    assert bus.asked[1:] == [("give_back", bus.number(0))]
    await bus.answer()
    assert reader.is_idle


async def test_asked_again_after_a_reconnect(bus: Questions, reader: QueueReader) -> None:
    """The same number first; if that was answered with nothing, a new one, for what came since."""
    receiving = await started(reader.get())
    bus.is_up = False
    await bus.fail()
    bus.is_up = True
    reader.reconnected()
    assert bus.number(1) == bus.number(0)
    await bus.answer()
    assert bus.number(2) > bus.number(1)
    await bus.answer("one")
    assert (await receiving).payload == b"one"


async def test_flush_of_what_is_held(bus: Questions, reader: QueueReader) -> None:
    """After a flush the receiver's question is asked anew: what was pushed since had its wake-up already."""
    receiving = await started(reader.get())
    flushed = asyncio.Event()

    def flush() -> None:
        reader.flush()
        flushed.set()

    bus.answers[0].add_done_callback(lambda _: asyncio.get_running_loop().call_soon(flush))
    await bus.answer("one")
    await flushed.wait()
    if bus.verbs == ["pop", "pop"]:
        await bus.answer("two")
        assert (await receiving).payload == b"two"
    else:
        assert (await receiving).payload == b"one"


async def test_numbers_of_a_later_reader(
    bus: Questions, make_reader: Callable[[], QueueReader], reader: QueueReader
) -> None:
    """A reader made after another one was swept never asks for what that one has had."""
    receiving = await started(reader.get())
    await bus.answer("one")
    await receiving
    receiving = await started(make_reader().get())
    assert bus.number(1) > bus.number(0)
    await cancelled(receiving)


@pytest.mark.parametrize("what", ["pop", "give_back"])
async def test_refused(
    bus: Questions, reader: QueueReader, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that the server refuses is asked again after a while, with the link up all the time."""
    monkeypatch.setattr("channels_asyncq.session.queues._PAUSE_AFTER_REFUSAL", 0.01)
    receiving = await started(reader.get())
    if what == "give_back":
        await cancelled(receiving)
        await bus.answer("one")
        receiving = await started(reader.get())
    asked = len(bus.asked)
    await bus.fail()
    await eventually(lambda: len(bus.asked) > asked, "the question")
    assert bus.asked[asked] == bus.asked[asked - 1]
    assert bus.verbs[asked] == what
    await bus.answer("one" if what == "pop" else None)
    if what == "give_back":
        await bus.answer("one")
    assert (await receiving).payload == b"one"


async def test_close_with_a_refusal_pending(bus: Questions, reader: QueueReader) -> None:
    """Closing ends the receivers and leaves no timer."""
    receiving = await started(reader.get())
    await bus.fail()
    await reader.close(ChannelClosed)
    with pytest.raises(ChannelClosed):
        await receiving
    asked = len(bus.asked)
    reader.reconnected()
    assert bus.verbs[asked:] in ([], ["give_back"])
