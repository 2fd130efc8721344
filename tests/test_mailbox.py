"""The door into one loop's session: order, stopping, other threads, waiting, closing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from channels_asyncq.local import mailbox as mailbox_module
from channels_asyncq.local.mailbox import Mailbox
from channels_asyncq.messages.envelopes import Envelope
from channels_asyncq.slices import SLICE
from tests.clock import Clock
from tests.contract import ended, eventually, every, started, steps


class Session:
    """Takes what it is offered, unless it is told to stop at a text."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.stops_at: str | None = None
        self.offered = 0
        self.threads: set[int] = set()

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        text = envelope.payload.decode()
        self.offered += 1
        self.threads.add(threading.get_ident())
        if text == self.stops_at:
            return False
        self.taken.append(text)
        return True


class Busy:
    """A session that does something with each envelope before it takes it."""

    def __init__(self, session: Session, work: Callable[[Envelope], None]) -> None:
        self.session = session
        self.work = work

    def on_envelope(self, topic: bytes, envelope: Envelope) -> bool:
        self.work(envelope)
        return self.session.on_envelope(topic, envelope)


@pytest.fixture
def session() -> Session:
    return Session()


@pytest.fixture
async def mailbox(session: Session) -> Mailbox:
    return Mailbox(asyncio.get_running_loop(), session)


def put(mailbox: Mailbox, *texts: str) -> list[bool]:
    return [mailbox.put(b"topic", Envelope(text.encode(), "x")) for text in texts]


async def test_in_order(mailbox: Mailbox, session: Session) -> None:
    """What was put is offered in order, when it is drained and not before."""
    assert mailbox.is_empty
    put(mailbox, "a", "b")
    assert session.taken == [] and not mailbox.is_empty
    mailbox.drain()
    assert session.taken == ["a", "b"] and mailbox.is_empty


async def test_what_is_not_taken_is_offered_again(mailbox: Mailbox, session: Session) -> None:
    """An envelope that is not taken stops the mailbox, keeps its place, and is not overtaken."""
    session.stops_at = "b"
    put(mailbox, "a", "b", "c")
    for _ in range(3):
        mailbox.drain()
    put(mailbox, "d")
    mailbox.drain()
    assert session.taken == ["a"] and session.offered == 5 and not mailbox.is_empty
    session.stops_at = None
    mailbox.drain()
    assert session.taken == ["a", "b", "c", "d"]


async def test_a_limit(mailbox: Mailbox, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders that cannot be made to wait are told when too much waits; places come free by draining."""
    monkeypatch.setattr(mailbox_module, "LIMIT", 3)
    assert put(mailbox, *"abcd") == [True, True, True, False]
    mailbox.drain()
    assert put(mailbox, "e") == [True]
    mailbox.drain()
    assert session.taken == ["a", "b", "c", "e"]


async def test_drain_soon(mailbox: Mailbox, session: Session) -> None:
    """The loop drains once in a turn, however often it is asked to."""
    for text in "abc":
        put(mailbox, text)
        assert mailbox.drain_soon()
    assert session.taken == []
    await steps(1)
    assert session.taken == ["a", "b", "c"] and session.offered == 3
    put(mailbox, "d")
    assert mailbox.drain_soon()
    await steps(1)
    assert session.taken[-1] == "d"


async def test_from_other_threads(mailbox: Mailbox, session: Session) -> None:
    """What threads put arrives on the loop, all of it, in the order of each."""

    def sender(name: str) -> None:
        for number in range(500):
            assert put(mailbox, f"{name}{number:03}") == [True]
            assert mailbox.drain_soon()

    threads = [threading.Thread(target=sender, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    await eventually(lambda: len(session.taken) == 2000, "the arrival of everything")
    for thread in threads:
        thread.join()
    assert session.threads == {threading.get_ident()}
    for name in "abcd":
        own = [text for text in session.taken if text.startswith(name)]
        assert own == sorted(own) and len(own) == 500


def test_a_loop_that_is_closed(session: Session) -> None:
    """drain_soon() says that nobody drains any more, the first time and later."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop, session)
    loop.close()
    put(mailbox, "a")
    assert [mailbox.drain_soon(), mailbox.drain_soon()] == [False, False]
    assert session.taken == []


async def test_drained(mailbox: Mailbox, session: Session) -> None:
    """drained() returns at once when nothing waits, else when everything was taken."""
    async with asyncio.timeout(20):
        await mailbox.drained()
    session.stops_at = "b"
    put(mailbox, "a", "b")
    waiting = [await started(mailbox.drained()) for _ in range(2)]
    mailbox.drain()
    await steps(3)
    assert not any(waiter.done() for waiter in waiting)
    session.stops_at = None
    mailbox.drain()
    await every(waiting)


async def test_drained_and_filled_again(mailbox: Mailbox, session: Session) -> None:
    """Who waits is told when what waited then is taken, though others have filled the mailbox again."""
    put(mailbox, "a")
    waiting = await started(mailbox.drained())
    session.stops_at = "b"
    put(mailbox, "b")
    mailbox.drain()
    await every([waiting])
    assert session.taken == ["a"] and not mailbox.is_empty


async def test_drained_while_others_never_cease(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits has an end, though more comes than is taken in a slice."""
    clock = Clock()
    clock.put_into(monkeypatch, ["local.mailbox"])

    mailbox = Mailbox(asyncio.get_running_loop(), Busy(session, lambda envelope: on_offer(envelope)))

    def on_offer(envelope: Envelope) -> None:
        clock.turn(0.22 * SLICE)
        if len(session.taken) < 1000:
            put(mailbox, "more", "more")

    put(mailbox, "a", "b")
    waiting = await started(mailbox.drained())
    mailbox.drain()
    await every([waiting])
    assert len(session.taken) < 1000
    mailbox.close()


async def test_drained_cancelled(mailbox: Mailbox, session: Session) -> None:
    """Cancelling who waits leaves the envelopes, and the others who wait."""
    put(mailbox, "a")
    first, second = await started(mailbox.drained()), await started(mailbox.drained())
    first.cancel()
    await ended(first)
    mailbox.drain()
    await every([second])
    assert session.taken == ["a"] and first.cancelled()


async def test_put_while_draining(session: Session) -> None:
    """What is put by what is being offered is taken in the same go."""

    mailbox = Mailbox(asyncio.get_running_loop(), Busy(session, lambda envelope: on_offer(envelope)))

    def on_offer(envelope: Envelope) -> None:
        if envelope.payload == b"a":
            put(mailbox, "b")

    put(mailbox, "a")
    mailbox.drain()
    assert session.taken == ["a", "b"] and mailbox.is_empty


async def test_drains_in_slices(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 3 ms of offering the loop gets a turn, whoever drains; the rest follows in order, without a pause."""
    clock = Clock()
    clock.put_into(monkeypatch, ["local.mailbox"])
    most = 0

    mailbox = Mailbox(asyncio.get_running_loop(), Busy(session, lambda envelope: clock.turn(0.22 * SLICE)))
    texts = [f"{number:02}" for number in range(50)]
    put(mailbox, *texts)
    while not mailbox.is_empty:
        before = len(session.taken)
        mailbox.drain()
        mailbox.drain()
        most = max(most, len(session.taken) - before)
        await steps(1)
    assert session.taken == texts and most == 5
    await mailbox.drained()


async def test_close_while_it_drains_in_slices(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left for the next turn is dropped and counted by close(), and nobody waits for it."""
    clock = Clock()
    clock.put_into(monkeypatch, ["local.mailbox"])

    mailbox = Mailbox(asyncio.get_running_loop(), Busy(session, lambda envelope: clock.turn(1.0)))
    put(mailbox, "a", "b")
    mailbox.drain()
    waiting = await started(mailbox.drained())
    put(mailbox, "c")
    assert session.taken[:1] == ["a"]
    count = mailbox.close()
    await every([waiting])
    await steps(3)
    assert len(session.taken) + count == 3 and mailbox.is_empty


async def test_close(mailbox: Mailbox, session: Session) -> None:
    """close() drops what waits and says how many that were; nobody waits for it any more; twice is fine."""
    session.stops_at = "a"
    put(mailbox, "a", "b")
    waiting = await started(mailbox.drained())
    assert [mailbox.close(), mailbox.close()] == [2, 0]
    await every([waiting])
    assert session.taken == [] and mailbox.is_empty
