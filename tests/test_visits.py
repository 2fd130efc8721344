"""Visits: what a thread does with the relay's loop while that sleeps, and what it must leave as it was."""

import asyncio
import contextlib
import contextvars
import gc
import os
import select
import selectors
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from channels_asyncq import AsyncQueueChannelLayer, DeliveryUnknown, LayerClosed, LayerUnavailable, sync
from channels_asyncq import layer as layer_module
from channels_asyncq import relay as relay_module
from channels_asyncq.bus import redis as redis_module
from channels_asyncq.bus import sending as sending_module
from channels_asyncq.bus import wire as wire_module
from channels_asyncq.bus.answers import AnswerSource
from channels_asyncq.bus.wire import WireProtocol
from channels_asyncq.relay import Errand, LendingSelector, Relay, RelayLoop
from channels_asyncq.session import Session
from tests.contract import (
    DEADLINE,
    assert_nothing_waits,
    eventually,
    note,
    notes,
    receive_many,
    started,
)
from tests.resp_server import Answer, RespServer, after, close, error, half, silence

pytestmark = pytest.mark.skipif(
    not hasattr(select, "epoll") or relay_module._new_bell() is None, reason="no epoll or no eventfd"
)


class Visits:
    """The relay of these tests, and what came of each attempt to visit it."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.outcomes: list[bool] = []
        self.turns = 0
        #: asyncio's debug mode, for the loops that the relay makes.
        self.debug = False
        self.rings = 0

    @property
    def loop(self) -> RelayLoop:
        loop = self.relay.loop
        assert isinstance(loop, RelayLoop)
        return loop

    @property
    def is_asleep(self) -> bool:
        """Whether nobody is in the way of a visit."""
        loop = self.relay.loop
        if loop is None:
            return False
        selector = self.loop.selector
        assert isinstance(selector, LendingSelector)
        return not (self.loop.errands or selector.is_awake)


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Visits]:
    """A relay that nobody else uses."""
    relay = Relay()
    noted = Visits(relay)
    visit, turn = RelayLoop.visit, LendingSelector.select

    def note_visit(self: RelayLoop, errand: Errand[Any], seconds: float) -> bool:
        noted.outcomes.append(visit(self, errand, seconds))
        return noted.outcomes[-1]

    def count_turn(self: LendingSelector, timeout: float | None = None) -> list[Any]:
        noted.turns += 1
        events: list[Any] = turn(self, timeout)
        return events

    ring = getattr(os, "eventfd_write", None)

    def count_ring(descriptor: int, value: int) -> None:
        noted.rings += 1
        assert ring is not None
        ring(descriptor, value)

    monkeypatch.setattr(os, "eventfd_write", count_ring, raising=False)
    make_loop = RelayLoop.__init__

    def make_loop_as_told(self: RelayLoop) -> None:
        make_loop(self)
        self.set_debug(noted.debug)

    monkeypatch.setattr(RelayLoop, "__init__", make_loop_as_told)
    monkeypatch.setattr(RelayLoop, "visit", note_visit)
    monkeypatch.setattr(LendingSelector, "select", count_turn)
    monkeypatch.setattr(relay_module, "_relay", relay)
    yield noted
    relay.stop()


@pytest.fixture
async def server() -> AsyncIterator[RespServer]:
    async with RespServer() as server:
        yield server


class Sender:
    """Sends from threads with a loop for each send, as sync views do, and keeps the order of what arrives."""

    def __init__(self, visits: Visits, there: AsyncQueueChannelLayer, layer: AsyncQueueChannelLayer) -> None:
        self._visits = visits
        self.there, self.layer = there, layer

    async def start(self) -> None:
        """Have the relay connected, with a member of the group elsewhere."""
        self.member = await self.there.new_channel()
        await self.there.group_add("room", self.member)
        await self.send(0)
        assert await self.arrived(1) == [0]
        await eventually(lambda: self.layer.statistics().connected, "both of its connections")

    async def send(self, n: int) -> None:
        """Send when the relay sleeps; that is a visit, unless something is in its way."""
        await eventually(lambda: self._visits.relay.loop is None or self._visits.is_asleep, "its sleep")
        async with asyncio.timeout(DEADLINE):
            await asyncio.to_thread(async_to_sync(self.layer.group_send), "room", note(n))

    async def arrived(self, count: int) -> list[int]:
        messages = await receive_many(self.there, self.member, count)
        await assert_nothing_waits(self.there, self.member)
        return [message["n"] for message in messages]

    async def close(self) -> None:
        await self.layer.close()
        await self.there.close()


@pytest.fixture
async def sender(visits: Visits, server: RespServer, prefix: str) -> AsyncIterator[Sender]:
    """A sender on a server that answers as it is told."""
    sender = make_sender(visits, server.url, prefix, send_timeout=1)
    await sender.start()
    visits.outcomes.clear()
    yield sender
    await sender.close()


@pytest.fixture
async def patient(
    visits: Visits, server: RespServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Sender]:
    """The same, whose relay no timer wakes while a test runs, and whose visitors stand still for long."""
    monkeypatch.setattr(layer_module, "_STAND_STILL_FIRST_SECONDS", 2 * DEADLINE)
    monkeypatch.setattr(redis_module, "_FENCE_EVERY", 3600.0)
    sender = make_sender(visits, server.url, prefix, send_timeout=10 * DEADLINE)
    await sender.start()
    visits.outcomes.clear()
    yield sender
    await sender.close()


def make_sender(visits: Visits, url: str, prefix: str, **config: Any) -> Sender:
    config = {"hosts": [url], "prefix": prefix, **config}
    return Sender(visits, AsyncQueueChannelLayer(**config), AsyncQueueChannelLayer(**config))


class TestTheLoop:
    """What the relay does meanwhile."""

    async def test_nobody_is_woken(self, visits: Visits, redis_url: str, prefix: str) -> None:
        """A send that is answered in time takes no turn of the relay's loop; each arrives, in order."""
        sender = make_sender(visits, redis_url, prefix)
        await sender.start()
        still = 0
        for n in range(50):
            before = visits.turns
            await sender.send(n)
            still += visits.turns == before
        assert await sender.arrived(50) == list(range(50))
        # Not each time: a busy machine may be late with any of them, and the relay has timers.
        assert still > 0
        await sender.close()

    async def test_it_goes_on_reading(self, visits: Visits, patient: Sender, server: RespServer) -> None:
        """After visits the loop still learns of what comes: here, of the end of its connection."""
        for n in range(3):
            await patient.send(n)
        assert visits.outcomes == [True, True, True]
        assert patient.layer.statistics().connected
        await server.stop()
        await eventually(lambda: not patient.layer.statistics().connected, "the news")
        await server.restart()
        await eventually(lambda: patient.layer.statistics().connected, "the next connection")
        await patient.send(3)

    async def test_whoever_comes_meanwhile(self, visits: Visits, patient: Sender, server: RespServer) -> None:
        """A visitor whose answer is late gives the loop back as soon as another thread posts an errand."""
        answered = asyncio.Event()
        before = len(server.received("EVALSHA"))
        server.script("SEND", after(answered))
        first = await started(patient.send(0))
        await eventually(lambda: len(server.received("EVALSHA")) == before + 1, "the first")
        second: asyncio.Task[None] = asyncio.create_task(
            asyncio.to_thread(visits.relay.wait, lambda: asyncio.sleep(0))
        )
        async with asyncio.timeout(DEADLINE):
            # The loop does this while the other one's answer is still due.
            await second
            answered.set()
            await first
        assert visits.outcomes == [True]
        assert await patient.arrived(1) == [0]

    async def test_it_stops_during_a_visit(
        self, visits: Visits, patient: Sender, server: RespServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever visits when the relay stops is told, soon."""
        monkeypatch.setattr(layer_module, "_STAND_STILL_FIRST_SECONDS", 0.005)
        before = len(server.received("EVALSHA"))
        server.script("SEND", silence())
        sending = await started(patient.send(0))
        await eventually(lambda: len(server.received("EVALSHA")) > before, "the command")
        await asyncio.to_thread(visits.relay.stop)
        async with asyncio.timeout(DEADLINE):
            with pytest.raises((LayerClosed, DeliveryUnknown)):
                await sending
        assert visits.outcomes == [True]

    async def test_nothing_of_a_visitor_stays(self, visits: Visits, patient: Sender) -> None:
        """Neither its errand nor its context is kept."""

        class Request:
            pass

        request: contextvars.ContextVar[Request] = contextvars.ContextVar("request")

        def view(n: int) -> "weakref.ref[Request]":
            request.set(Request())
            async_to_sync(patient.layer.group_send)("room", note(n))
            return weakref.ref(request.get())

        def all_are_gone() -> bool:
            gc.collect()
            return all(reference() is None for reference in references)

        references: list[weakref.ref[Request]] = []

        def thread(n: int) -> "weakref.ref[Request]":
            return contextvars.Context().run(view, n)

        for n in range(3):
            await eventually(lambda: visits.is_asleep, "its sleep")
            references.append(await asyncio.to_thread(thread, n))
            await eventually(all_are_gone, "the end of the request")
        assert visits.outcomes == [True, True, True]
        assert not visits.loop.errands


class TestAnswers:
    """What comes back is what it would be without a visit."""

    @pytest.mark.parametrize("answer", [half(), half(closes=True), close(), silence()], ids=str)
    async def test_sent_again(
        self, visits: Visits, sender: Sender, server: RespServer, answer: Answer
    ) -> None:
        """When the connection ends before the answer has come, the same is sent on the next one."""
        for n in range(3):
            server.script("SEND", answer)
            await sender.send(n)
        # Not each time: this relay has timers.
        assert any(visits.outcomes)
        assert await sender.arrived(3) == [0, 1, 2]
        assert not visits.loop.errands

    async def test_no_answer(self, visits: Visits, sender: Sender, server: RespServer) -> None:
        """Who waits for a server that stays silent and then goes is told after send_timeout, as ever."""
        server.always("SEND", silence())
        before = len(server.received("EVALSHA"))
        sending = await started(sender.send(1))
        await eventually(lambda: len(server.received("EVALSHA")) > before, "the command")
        await server.stop()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(DeliveryUnknown, match=str(server.port)):
                await sending
        assert not visits.loop.errands

    async def test_a_late_answer(
        self, visits: Visits, patient: Sender, server: RespServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A visitor that has stood still long enough waits as others do, and gets the answer."""
        monkeypatch.setattr(layer_module, "_STAND_STILL_FIRST_SECONDS", 0.005)
        answered = asyncio.Event()
        before = len(server.received("EVALSHA"))
        server.script("SEND", after(answered))
        sending = await started(patient.send(1))
        await eventually(lambda: len(server.received("EVALSHA")) > before, "the command")
        await eventually(lambda: visits.outcomes, "the end of the visit")
        assert not sending.done()
        answered.set()
        async with asyncio.timeout(DEADLINE):
            await sending
        assert visits.outcomes == [True]
        assert await patient.arrived(1) == [1]

    async def test_a_refusal(self, visits: Visits, patient: Sender, server: RespServer) -> None:
        """What the server refuses the caller is told, with the address."""
        server.script("SEND", error("OOM command not allowed"))
        with pytest.raises(LayerUnavailable, match=f"127.0.0.1:{server.port}.*OOM"):
            await patient.send(1)
        await patient.send(2)
        assert visits.outcomes == [True, True]
        assert await patient.arrived(1) == [2]

    async def test_forgotten_scripts(self, visits: Visits, patient: Sender, server: RespServer) -> None:
        """They are loaded again by the loop, which is woken for it, and nobody is concerned."""
        rings = visits.rings
        for n in range(3):
            server.do_script(server.connections[0], b"FLUSH")
            await patient.send(n)
        assert visits.outcomes == [True, True, True]
        assert visits.rings == rings + 3
        assert await patient.arrived(3) == [0, 1, 2]

    async def test_copies(self, visits: Visits, patient: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
        """Normal channels of the group get theirs, from the relay's own thread."""
        threads: list[str] = []
        push = Session.push_copies

        def note_thread(self: Session, *arguments: Any) -> Any:
            threads.append(threading.current_thread().name)
            return push(self, *arguments)

        monkeypatch.setattr(Session, "push_copies", note_thread)
        await patient.there.group_add("room", "jobs")
        for n in range(3):
            await patient.send(n)
        assert visits.outcomes == [True, True, True]
        assert threads == ["channels_asyncq relay"] * 3
        assert await receive_many(patient.there, "jobs", 3) == notes(3)
        assert await patient.arrived(3) == [0, 1, 2]

    async def test_large_messages(self, visits: Visits, redis_url: str, prefix: str) -> None:
        """What no socket takes in one piece is written by the loop, which does not sleep on then."""
        sender = make_sender(visits, redis_url, prefix, max_message_size=2**25, send_timeout=10 * DEADLINE)
        await sender.start()
        message = {"type": "test.note", "text": "x" * (2**24)}
        for _ in range(3):
            await eventually(lambda: visits.is_asleep, "its sleep")
            await asyncio.to_thread(async_to_sync(sender.layer.group_send), "room", message)
            assert await receive_many(sender.there, sender.member, 1) == [message]
        # Not each time: meanwhile the relay may have been woken by a timer.
        assert any(visits.outcomes)
        await sender.close()

    async def test_the_rest_of_a_large_message(
        self, visits: Visits, patient: Sender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the loop has yet to write for a visitor, it does not do in the visitor's context."""
        request = contextvars.ContextVar("request", default="nobody's")
        seen: list[str] = []
        resume = WireProtocol.resume_writing

        def note_context(self: WireProtocol) -> None:
            seen.append(request.get())
            resume(self)

        def view() -> None:
            request.set("a visitor's")
            async_to_sync(patient.layer.group_send)("room", {"type": "test.note", "text": "x" * 900_000})

        await patient.send(1)
        assert await patient.arrived(1) == [1]
        wire = patient.layer._sessions[visits.loop]._bus._shards[0].commands.wire  # type: ignore[attr-defined]
        wire.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        monkeypatch.setattr(WireProtocol, "resume_writing", note_context)
        await asyncio.to_thread(contextvars.Context().run, view)
        assert len(await receive_many(patient.there, patient.member, 1)) == 1
        assert visits.outcomes == [True, True]
        assert seen and set(seen) == {"nobody's"}

    async def test_given_up_by_the_caller(
        self, visits: Visits, patient: Sender, server: RespServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A visitor that no longer waits leaves nothing behind."""
        monkeypatch.setattr(layer_module, "_STAND_STILL_FIRST_SECONDS", 0.005)
        server.script("SEND", after(answered := asyncio.Event()))

        async def send() -> None:
            async with asyncio.timeout(0.05):
                await patient.layer.group_send("room", note(1))

        await eventually(lambda: visits.is_asleep, "its sleep")
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(asyncio.run, send())
        answered.set()
        await eventually(lambda: not visits.loop.errands, "the end of its errand")
        await patient.send(2)
        # The answer to the first may have come just when the second was about to visit.
        assert visits.outcomes[0]
        assert await patient.arrived(2) == [1, 2]


class TimeLimit(BaseException):
    """What a worker raises in the thread of a job that takes too long."""


class JobTimeout(Exception):
    """Another's."""


class Struck:
    """Does what another object does; one of its methods raises after that, once, but not to the relay."""

    def __init__(self, wrapped: Any, method: str, limit: type[BaseException]) -> None:
        self._wrapped, self._method, self._limit = wrapped, method, limit

    def __getattr__(self, name: str) -> Any:
        done = getattr(self._wrapped, name)
        return partial(self._strike, done) if name == self._method else done

    def _strike(self, done: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        outcome = done(*arguments, **options)
        if self._method and threading.current_thread().name != "channels_asyncq relay":
            self._method = ""
            raise self._limit
        return outcome


class TestStruck:
    """Another thread has an exception raised in a visitor, as workers do with PyThreadState_SetAsyncExc()."""

    @pytest.mark.parametrize("limit", [TimeLimit, JobTimeout, TimeoutError])
    @pytest.mark.parametrize("where", ["turn", "gate", "poll", "read", "pack"])
    async def test_others_go_on(
        self,
        where: str,
        limit: type[BaseException],
        visits: Visits,
        patient: Sender,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The visitor gets it; nothing stays as it was just then, and the next ones send at once."""
        loop = visits.loop
        for n in (1, 2):
            await patient.send(n)
            assert visits.outcomes[-1]
        if where in ("turn", "gate"):
            method = {"turn": "acquire", "gate": "modify"}[where]
            setattr(loop.selector, where, Struck(getattr(loop.selector, where), method, limit))
        elif where == "poll":
            wire = patient.layer._sessions[loop]._bus._shards[0].commands.wire  # type: ignore[attr-defined]
            monkeypatch.setattr(wire, "_poll", Struck(wire._poll, "poll", limit))
        elif where == "read":
            monkeypatch.setattr(wire_module, "os", Struck(os, "read", limit))
        else:
            monkeypatch.setattr(
                sending_module, "pack_named", Struck(sending_module, "pack_named", limit).pack_named
            )
        with pytest.raises(limit):
            await patient.send(3)
        async with asyncio.timeout(DEADLINE):
            await asyncio.to_thread(sync.group_send, "room", note(4), patient.layer)
        await patient.send(5)
        arrived = [message["n"] for message in await receive_many(patient.there, patient.member, 4)]
        assert [n for n in arrived if n != 3][:3] == [1, 2, 4]

    @pytest.mark.parametrize("limit", [TimeLimit, JobTimeout, TimeoutError])
    async def test_while_it_is_told(
        self, limit: type[BaseException], visits: Visits, patient: Sender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The visitor does not wait for ever for an answer that has come, and nothing is sent twice."""
        for n in (1, 2):
            await patient.send(n)
        end = Errand.end
        raised = 0

        def end_struck(self: Errand[Any], outcome: Any) -> None:
            nonlocal raised
            if not raised:
                raised += 1
                raise limit
            end(self, outcome)

        monkeypatch.setattr(Errand, "end", end_struck)
        with contextlib.suppress(limit):
            await patient.send(3)
        assert raised and not visits.loop.errands
        await patient.send(4)
        assert await patient.arrived(4) == [1, 2, 3, 4]


class TestWhoDoesNot:
    """Who has the relay do it."""

    async def test_the_main_thread(
        self, visits: Visits, patient: Sender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C would come between."""
        # The server is in this thread.
        monkeypatch.setattr(layer_module, "_STAND_STILL_FIRST_SECONDS", 0.005)
        assert threading.current_thread() is threading.main_thread()
        await eventually(lambda: visits.is_asleep, "its sleep")
        await patient.layer.group_send("elsewhere", note(0))
        assert visits.outcomes == [False]

    async def test_while_somebody_waits_for_the_loop(self, visits: Visits, patient: Sender) -> None:
        """The loop is lent to nobody then, and whoever waits is served first."""
        go_on = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def wait() -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))

        waiting = asyncio.create_task(asyncio.to_thread(visits.relay.wait, wait))
        await eventually(lambda: visits.loop.errands, "its errand")
        await asyncio.to_thread(async_to_sync(patient.layer.group_send), "room", note(1))
        assert visits.outcomes == [False]
        go_on.set()
        await waiting
        assert await patient.arrived(1) == [1]

    async def test_before_it_has_woken(self, visits: Visits, patient: Sender) -> None:
        """What was posted goes first, also while the loop does not know of it yet."""
        posted: Errand[None] = Errand(lambda: asyncio.sleep(0))
        await eventually(lambda: visits.is_asleep, "its sleep")
        visits.loop.errands.add(posted)
        await asyncio.to_thread(async_to_sync(patient.layer.group_send), "room", note(1))
        visits.loop.errands.discard(posted)
        assert visits.outcomes == [False]
        assert await patient.arrived(1) == [1]

    @pytest.mark.parametrize("missing", ["eventfd", "epoll", "debug"])
    async def test_where_it_cannot_be(
        self, missing: str, visits: Visits, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without epoll or eventfd, and in asyncio's debug mode, the relay does all, and all arrive."""
        if missing == "eventfd":
            monkeypatch.delattr("os.eventfd")
        elif missing == "epoll":
            monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)
        else:
            visits.debug = True
        sender = make_sender(visits, redis_url, prefix)
        await asyncio.to_thread(async_to_sync(sender.layer.group_send), "room", note(0))
        assert visits.loop.get_debug() == (missing == "debug")
        assert isinstance(visits.loop.selector, LendingSelector) == (missing == "debug")
        sender.member = await sender.there.new_channel()
        await sender.there.group_add("room", sender.member)
        for n in range(10):
            await asyncio.to_thread(async_to_sync(sender.layer.group_send), "room", note(n))
        assert not any(visits.outcomes)
        assert await sender.arrived(10) == list(range(10))
        await sender.close()

    async def test_an_errand_that_cannot_be_done_at_once(self, visits: Visits) -> None:
        """It is posted, and nothing of the attempt stays; what fails at once tells the visitor."""

        def refuse(errand: Errand[int]) -> AnswerSource | None:
            return None

        def fail(errand: Errand[int]) -> AnswerSource | None:
            raise ZeroDivisionError

        async def answer() -> int:
            return 42

        async def run(at_once: Callable[[Errand[int]], AnswerSource | None]) -> int:
            return await visits.relay.run(answer, at_once, stands_still=0.005, visits=True)

        visits.relay.wait(answer)
        await eventually(lambda: visits.is_asleep, "its sleep")
        assert await asyncio.to_thread(asyncio.run, run(refuse)) == 42
        await eventually(lambda: visits.is_asleep, "its sleep")
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(asyncio.run, run(fail))
        assert visits.outcomes == [False, True]
        assert not visits.loop.errands
