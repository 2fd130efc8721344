"""SupervisedConnection: one connection that is made again, and when waiting for it is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from django.core.exceptions import ImproperlyConfigured
from hiredis import Reader

from channels_asyncq.bus.resp import attempts, outages
from channels_asyncq.bus.resp.connector import Connector
from channels_asyncq.bus.resp.downtime import Phase
from channels_asyncq.bus.resp.outages import Outage, Outages
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.bus.resp.remedies import Diagnosis
from channels_asyncq.bus.resp.replies import InFlight, NoAnswer, NotSent
from channels_asyncq.bus.resp.supervisor import SupervisedConnection
from channels_asyncq.events import CONNECTION
from channels_asyncq.exceptions import LayerClosed, LayerUnavailable
from channels_asyncq.settings.options import Options
from tests.clock import Clock
from tests.contract import codes, eventually, every

DEADLINE = 10.0
#: Short, for tests in which waiting ends; long, for those in which it must not.
BRIEF, LONG = 0.1, 30.0


class Transport(asyncio.Transport):
    """What is written is kept; ends only when it is told to."""

    def __init__(self, protocol: WireProtocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._is_closing = False
        self.written: list[bytes] = []
        #: Bytes that were written and have not left.
        self.unsent = 0
        self._reader = Reader()

    def is_closing(self) -> bool:
        return self._is_closing

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        self._reader.feed(bytes(data))
        while isinstance(command := self._reader.gets(), list):
            self.written.append(b" ".join(command))

    def abort(self) -> None:
        self.end(None)

    close = abort

    def end(self, exc: Exception | None) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, exc)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


WORDLESS = "Connection reset by peer"


class Hosts:
    """Stands in for a Connector: connects, refuses, or keeps the caller waiting, as it is told."""

    address = "redis://host:6379/0"

    def __init__(self) -> None:
        self.attempts = 0
        self.waiting = 0
        self.most_waiting = 0
        self.error: Exception | None = None
        #: What waiting does not help against.
        self.incurable: set[str] = set()
        self.is_open = asyncio.Event()
        self.is_open.set()
        #: New connections take nothing before they end.
        self.takes_nothing = False
        self.wires: list[WireProtocol] = []
        self.transports: list[Transport] = []

    def diagnose(self, exc: Exception) -> Diagnosis:
        words = exc.reason if isinstance(exc, LayerUnavailable) else str(exc)
        return Diagnosis(words, words, words not in self.incurable, words == WORDLESS)

    async def look(self) -> Diagnosis | None:
        return None

    async def connect(self, make_protocol: Callable[[], WireProtocol]) -> WireProtocol:
        self.attempts += 1
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            await self.is_open.wait()
        finally:
            self.waiting -= 1
        if self.error is not None:
            raise self.error
        wire = make_protocol()
        transport = Transport(wire)
        wire.connection_made(transport)
        if self.takes_nothing:
            wire.pause_writing()
        self.wires.append(wire)
        self.transports.append(transport)
        return wire


class Recorded:
    """
    One connection and its owner, which keeps everything it was told.

    What a lost connection leaves in flight it sends again by the next one, first of all, or fails it when it is
    told that waiting is over; so do the senders of a node.
    """

    def __init__(
        self, hosts: Hosts, send_timeout: float, *, resends: bool, outage: Outage | None = None
    ) -> None:
        self.hosts = hosts
        self.changes: list[bool] = []
        self.ups: list[WireProtocol] = []
        self.losses = 0
        self.refusals = 0
        self.overdue: list[Exception] = []
        self.in_flight: list[InFlight] = []
        self.set_up_error: Exception | None = None
        #: Awaited by each set-up.
        self.during_set_up: Callable[[WireProtocol], Awaitable[None]] = self._nothing
        self.line = SupervisedConnection(
            cast(Connector, hosts),
            "commands",
            Options.from_config({"send_timeout": send_timeout}),
            self,
            resends=resends,
            outage=outage,
        )

    @staticmethod
    async def _nothing(wire: WireProtocol) -> None:
        await asyncio.sleep(0)

    # As a ConnectionOwner

    async def set_up(self, wire: WireProtocol) -> None:
        await self.during_set_up(wire)
        if self.set_up_error is not None:
            raise self.set_up_error

    def on_up(self, wire: WireProtocol) -> None:
        assert self.line.wire is wire
        self.ups.append(wire)
        in_flight, self.in_flight = self.in_flight, []
        wire.pipeline.resend(in_flight)

    def on_silent(self) -> None:
        pass

    def on_refusing(self) -> None:
        self.refusals += 1

    def on_lost(self, in_flight: list[InFlight]) -> None:
        self.losses += 1
        self.in_flight += in_flight

    def on_overdue(self, error: Exception) -> None:
        self.overdue.append(error)
        in_flight, self.in_flight = self.in_flight, []
        for command in in_flight:
            command.fail(error)

    def on_change(self) -> None:
        self.changes.append(self.line.wire is not None)

    @property
    def is_awaited(self) -> bool:
        return bool(self.in_flight)

    async def up(self) -> WireProtocol:
        async with asyncio.timeout(DEADLINE):
            return await self.line.up()

    async def down(self, exc: Exception | None = None) -> None:
        """End the connection, and return when the line knows."""
        count = self.losses
        self.hosts.transports[-1].end(exc)
        await eventually(lambda: self.losses != count)


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


@pytest.fixture
async def make(hosts: Hosts) -> AsyncIterator[Callable[..., Recorded]]:
    made: list[Recorded] = []

    def make(send_timeout: float = LONG, *, resends: bool = True, outage: Outage | None = None) -> Recorded:
        made.append(Recorded(hosts, send_timeout, resends=resends, outage=outage))
        return made[-1]

    yield make
    for recorded in made:
        recorded.line.abort()
    await asyncio.sleep(0)


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each attempt waited; none really waits. Jitter is at its most."""
    waited: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float, result: Any = None) -> Any:
        task = asyncio.current_task()
        # Its own, not those of whoever it calls, which are whole numbers here.
        is_own = isinstance(seconds, float)
        if is_own and task is not None and task.get_name().startswith("channels_asyncq connecting"):
            waited.append(seconds)
            seconds = 0
        return await sleep(seconds, result)

    monkeypatch.setattr(asyncio, "sleep", note)
    monkeypatch.setattr(attempts._jitter, "uniform", lambda low, high: high)
    return waited


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class TestBackOff:
    """When the next attempt is made."""

    async def test_doubles_up_to_a_cap(
        self, hosts: Hosts, make: Callable[..., Recorded], delays: list[float]
    ) -> None:
        """The first attempt is made at once; each further one waits twice as long, at most two seconds."""
        hosts.error = LayerUnavailable(hosts.address, "refused")
        make().line.start()
        await eventually(lambda: hosts.attempts >= 10)
        assert delays[:10] == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]

    async def test_jitter(
        self,
        hosts: Hosts,
        make: Callable[..., Recorded],
        delays: list[float],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Processes that lost one server come back at different times: half to all of the delay."""
        bounds: list[tuple[float, float]] = []

        def uniform(low: float, high: float) -> float:
            bounds.append((low, high))
            return low

        monkeypatch.setattr(attempts._jitter, "uniform", uniform)
        hosts.error = LayerUnavailable(hosts.address, "refused")
        make().line.start()
        await eventually(lambda: hosts.attempts >= 3)
        assert set(bounds) == {(0.5, 1.0)}
        assert delays[:3] == [0.0, 0.025, 0.05]

    async def test_first_attempt_after_a_loss_waits_a_little(
        self, hosts: Hosts, make: Callable[..., Recorded], delays: list[float]
    ) -> None:
        """A connection that served begins from the shortest delay, however long the last outage was."""
        recorded = make()
        hosts.error = LayerUnavailable(hosts.address, "refused")
        recorded.line.start()
        await eventually(lambda: hosts.attempts >= 5)
        hosts.error = None
        await recorded.up()
        delays.clear()
        await recorded.down()
        await recorded.up()
        assert delays == [0.05]

    async def test_server_that_refuses_is_asked_less_often(
        self, hosts: Hosts, make: Callable[..., Recorded], delays: list[float]
    ) -> None:
        """Each connection given up for what the server answered doubles the delay, until it serves."""
        recorded = make()
        wire = await recorded.up()
        delays.clear()
        for _ in range(7):
            recorded.line.give_up(wire, "READONLY no")
            await turns()
            wire = await recorded.up()
        assert delays == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
        recorded.line.mark_healthy()
        delays.clear()
        await recorded.down()
        await recorded.up()
        assert delays == [0.05]

    async def test_server_that_refuses_answers_first(
        self, hosts: Hosts, make: Callable[..., Recorded], delays: list[float]
    ) -> None:
        """A connection that is given up answers what was sent on it before, and the next one is made then."""
        recorded = make()
        wire = await recorded.up()
        delays.clear()
        answer = wire.call("PUBLISH", "x")
        for _ in range(2):
            recorded.line.give_up(wire, "READONLY no")
        await turns()
        assert wire.is_retired and not wire.is_lost and recorded.losses == 0 and recorded.refusals == 1
        wire.data_received(b":1\r\n")
        assert await answer == 1
        await eventually(lambda: recorded.line.wire is not wire)
        await recorded.up()
        assert wire.is_lost and recorded.in_flight == [] and delays == [0.1]


class TestIncurable:
    """What waiting does not help against."""

    async def test_fails_at_once(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """Who waits is told now, and so is who comes later, on whatever line of the process."""
        outage = Outage()
        recorded = make(outage=outage)
        hosts.error, hosts.incurable = LayerUnavailable(hosts.address, "wrong port"), {"wrong port"}
        for line in (recorded.line, recorded.line, make(outage=outage).line):
            with pytest.raises(LayerUnavailable, match="wrong port"):
                await every([line.up()])

    @pytest.mark.parametrize("times", [1, 2])
    async def test_said_in_passing(self, hosts: Hosts, make: Callable[..., Recorded], times: int) -> None:
        """A server that is just set up may say so once or twice: sends wait for the next attempt."""
        recorded = make()
        hosts.error, hosts.incurable = LayerUnavailable(hosts.address, "wrong port"), {"wrong port"}
        waiting = asyncio.create_task(recorded.line.up())
        await eventually(lambda: hosts.attempts == times)
        hosts.error = None
        await every([waiting])

    async def test_said_after_it_served(
        self, hosts: Hosts, make: Callable[..., Recorded], delays: list[float]
    ) -> None:
        """What served before may do so again: that is an outage, for other lines of the process too."""
        outage = Outage()
        recorded = make(outage=outage)
        await recorded.up()
        hosts.error, hosts.incurable = LayerUnavailable(hosts.address, "wrong port"), {"wrong port"}
        await recorded.down()
        before = hosts.attempts
        waiting = [asyncio.create_task(line.up()) for line in (recorded.line, make(outage=outage).line)]
        await eventually(lambda: hosts.attempts > before + 10)
        assert not any(task.done() for task in waiting)
        hosts.error = None
        await every(waiting)

    async def test_ends_without_a_word(
        self,
        hosts: Hosts,
        make: Callable[..., Recorded],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The first is followed by an attempt, and not held up by a look at the port; the second is."""
        looks: list[tuple[int, list[str]]] = []

        async def look() -> Diagnosis | None:
            looks.append((hosts.attempts, codes(caplog)))
            return None

        monkeypatch.setattr(hosts, "look", look)
        recorded = make()
        hosts.error = LayerUnavailable(hosts.address, WORDLESS)
        recorded.line.start()
        await eventually(lambda: codes(caplog))
        assert looks[0] == (2, [])
        assert codes(caplog) == ["connection.failed"]

    async def test_ends_without_a_word_after_words(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """What was said before in the same outage stays the reason: a server may say so every other time."""
        recorded = make()
        hosts.error = LayerUnavailable(hosts.address, "too many clients")
        recorded.line.start()
        await eventually(lambda: hosts.attempts == 1)
        await turns()
        hosts.error = LayerUnavailable(hosts.address, WORDLESS)
        await eventually(lambda: hosts.attempts == 2)
        await turns()
        assert recorded.line.reason == "too many clients"

    async def test_mended(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """It is tried again all the same: somebody may mend it."""
        recorded = make()
        hosts.error, hosts.incurable = LayerUnavailable(hosts.address, "wrong port"), {"wrong port"}
        with pytest.raises(LayerUnavailable):
            await every([recorded.line.up()])
        hosts.error = None
        await eventually(lambda: recorded.line.wire is not None)
        await every([recorded.line.up()])

    async def test_handler_of_logs_fails(
        self, hosts: Hosts, make: Callable[..., Recorded], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its error is not the connection's, which is made as soon as it can be. (This one has no emit().)"""
        monkeypatch.setattr(CONNECTION, "handlers", [logging.Handler()])
        recorded = make()
        hosts.error = LayerUnavailable(hosts.address, "refused")
        recorded.line.start()
        await eventually(lambda: hosts.attempts == 3)
        hosts.error = None
        await eventually(lambda: recorded.line.wire is not None)


class TestSaidOnce:
    """What both connections to a host, of all event loops, have to say."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        clock.put_into(monkeypatch, ["events"])
        return clock

    async def test_failures(
        self,
        hosts: Hosts,
        make: Callable[..., Recorded],
        delays: list[float],
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """One line for all attempts of both; the next one has their count."""
        outages = Outages()
        hosts.error = LayerUnavailable(hosts.address, "refused")
        for name in ("commands", "pushes"):
            make(outage=outages.of(0, name)).line.start()
        await eventually(lambda: hosts.attempts >= 20)
        assert codes(caplog) == ["connection.failed"]
        clock.turn(10)
        before = hosts.attempts
        await eventually(lambda: hosts.attempts >= before + 10)
        assert codes(caplog) == ["connection.failed"] * 2
        assert "more since the last such line" in caplog.text

    async def test_losses(
        self, hosts: Hosts, make: Callable[..., Recorded], clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A server that ends both."""
        outages = Outages()
        both = [make(outage=outages.of(0, name)) for name in ("commands", "pushes")]
        for recorded in both:
            await recorded.up()
        for transport in list(hosts.transports):
            transport.end(None)
        await eventually(lambda: all(recorded.losses for recorded in both))
        assert codes(caplog) == ["connection.lost"]


class TestIdle:
    """A server that closes idle connections (`timeout`)."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        clock.put_into(monkeypatch, ["bus.resp.deadline", "bus.resp.protocol"])
        return clock

    async def close_idle(self, recorded: Recorded, clock: Clock, idle: float = 1.2) -> None:
        wire = await recorded.up()
        answer = wire.call("PUBLISH", "1")
        await turns()
        wire.data_received(b":1\r\n")
        await every([answer])
        clock.turn(idle)
        await recorded.down()

    async def test_is_no_warning(
        self, hosts: Hosts, make: Callable[..., Recorded], clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is told as information."""
        caplog.set_level(logging.INFO)
        await self.close_idle(make(), clock)
        [line] = [line for line in caplog.records if line.__dict__.get("code") == "connection.lost"]
        assert line.levelno == logging.INFO
        assert "idle for 1 s" in line.getMessage()

    async def test_second_time(self, hosts: Hosts, make: Callable[..., Recorded], clock: Clock) -> None:
        """From then on the connection is used in time; the first time may have been a restart."""
        recorded = make()
        await self.close_idle(recorded, clock)
        await recorded.up()
        await turns(100)
        assert not recorded.line._idle.is_keeping
        await self.close_idle(recorded, clock)
        await recorded.up()
        await eventually(lambda: hosts.transports[-1].written.count(b"PING") == 2)

    async def test_another_end_between(
        self, hosts: Hosts, make: Callable[..., Recorded], clock: Clock
    ) -> None:
        """What ends a connection in use says nothing about idle ones."""
        recorded = make()
        await self.close_idle(recorded, clock)
        await self.close_idle(recorded, clock, idle=0.5)
        await self.close_idle(recorded, clock)
        await recorded.up()
        assert not recorded.line._idle.is_keeping


class TestReconnecting:
    """One connection's end, and the next."""

    async def test_one_attempt_at_a_time(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """However many wait and start it, one connection is made."""
        hosts.is_open.clear()
        recorded = make()
        waiting = [asyncio.create_task(recorded.line.up()) for _ in range(20)]
        for _ in range(5):
            recorded.line.start()
            await asyncio.sleep(0)
        await eventually(lambda: hosts.waiting)
        hosts.is_open.set()
        wires = await asyncio.gather(*waiting)
        assert hosts.attempts == hosts.most_waiting == 1
        assert set(wires) == {hosts.wires[0]}

    async def test_owner_is_told(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """Up, down, up; and the line counts the reconnects and says why it is down."""
        recorded = make()
        await recorded.up()
        assert recorded.line.reason == ""
        await recorded.down(ConnectionResetError("reset by peer"))
        assert recorded.line.reason == "reset by peer"
        await recorded.up()
        assert recorded.changes == [True, False, True]
        assert (recorded.losses, recorded.line.reconnects) == (1, 1)

    async def test_failed_set_up(
        self, hosts: Hosts, make: Callable[..., Recorded], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A connection whose set-up fails is ended and another made; whatever the error was."""
        recorded = make()
        recorded.set_up_error = ValueError("nonsense")
        with caplog.at_level(logging.WARNING):
            recorded.line.start()
            await eventually(lambda: hosts.attempts >= 2)
        assert hosts.transports[0].is_closing()
        assert recorded.line.wire is None
        assert "nonsense" in recorded.line.reason
        assert codes(caplog) == ["connection.failed"]
        recorded.set_up_error = None
        assert await recorded.up() is hosts.wires[-1]

    async def test_lost_while_it_is_set_up(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """A connection that ends under the set-up never counts as up."""
        recorded = make()

        async def end_it(wire: WireProtocol) -> None:
            if len(hosts.wires) == 1:
                hosts.transports[0].end(None)
                await turns(3)

        recorded.during_set_up = end_it
        assert await recorded.up() is hosts.wires[1]
        assert recorded.changes == [True]
        assert recorded.losses == 1 and recorded.ups == [hosts.wires[1]]

    async def test_first_up(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """first_up() outwaits an outage of any length, and returns at once afterwards."""
        recorded = make(BRIEF)
        hosts.is_open.clear()
        task = asyncio.create_task(recorded.line.first_up())
        await eventually(lambda: recorded.overdue)
        hosts.is_open.set()
        await asyncio.wait_for(task, DEADLINE)
        await recorded.down()
        await recorded.line.first_up()


class TestInFlight:
    """What is unanswered when the connection ends: the owner gets it."""

    async def test_sent_again_first_and_in_order(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """What the owner resends when it is up leaves first; who waited for the connection comes after."""
        recorded = make()
        wire = await recorded.up()
        carried = [wire.call("PUBLISH", f"{number}") for number in range(3)]
        await turns()
        wire.data_received(b":1\r\n")
        await recorded.down()

        async def send_new() -> Any:
            wire = await recorded.line.up()
            return await wire.call("PUBLISH", "new")

        new = asyncio.create_task(send_new())
        second = await recorded.up()
        await turns()
        assert hosts.transports[0].written == [b"PUBLISH 0", b"PUBLISH 1", b"PUBLISH 2"]
        assert hosts.transports[1].written == [b"PUBLISH 1", b"PUBLISH 2", b"PUBLISH new"]
        second.data_received(b":2\r\n:3\r\n:4\r\n")
        assert [await future for future in carried] == [1, 2, 3]
        assert await new == 4

    async def test_through_several_connections(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """What no connection answered is carried on, what came between is behind it."""
        recorded = make()
        futures = []
        for number in range(4):
            wire = await recorded.up()
            futures.append(wire.call("PUBLISH", f"{number}"))
            await turns()
            await recorded.down()
        wire = await recorded.up()
        await turns()
        assert hosts.transports[-1].written == [b"PUBLISH %d" % number for number in range(4)]
        wire.data_received(b":0\r\n:1\r\n:2\r\n:3\r\n")
        assert await asyncio.gather(*futures) == [0, 1, 2, 3]

    async def test_cancelled_ones_are_left_out(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """Nobody waits for the answer of a cancelled call: its owner does not get it, and it is not resent."""
        recorded = make()
        wire = await recorded.up()
        futures = [wire.call("PUBLISH", f"{number}") for number in range(3)]
        await turns()
        futures[1].cancel()
        await recorded.down()
        await recorded.up()
        await turns()
        assert hosts.transports[1].written == [b"PUBLISH 0", b"PUBLISH 2"]

    async def test_owner_that_does_not_resend(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """The owner of pushes gets nothing: it sends SUBSCRIBE for what is wanted then."""
        recorded = make(resends=False)
        wire = await recorded.up()
        future = wire.call("SUBSCRIBE", "topic")
        await turns()
        await recorded.down()
        with pytest.raises(NoAnswer):
            await future
        await recorded.up()
        await turns()
        assert hosts.transports[1].written == []


class TestOverdue:
    """send_timeout after the loss."""

    async def test_written_and_unwritten(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """Only what was written may have been executed: NoAnswer; the rest was NotSent, and can be sent anew."""
        recorded = make(1.0)
        wire = await recorded.up()
        written = wire.call("PUBLISH", "written")
        await turns()
        wire.pause_writing()
        unwritten = wire.call("PUBLISH", "unwritten")
        hosts.is_open.clear()
        await recorded.down()
        assert not written.done() and not unwritten.done()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(NoAnswer):
                await written
            with pytest.raises(NotSent):
                await unwritten
        assert hosts.transports[0].written == [b"PUBLISH written"]
        [error] = recorded.overdue
        assert isinstance(error, LayerUnavailable)

    async def test_written_once_is_written_for_good(
        self, hosts: Hosts, make: Callable[..., Recorded]
    ) -> None:
        """Bytes that an earlier connection wrote count, although the last one did not come to it."""
        recorded = make(1.0)
        wire = await recorded.up()
        future = wire.call("PUBLISH", "x")
        await turns()
        await recorded.down()
        # The next connection takes nothing before it ends too.
        await recorded.up()
        hosts.is_open.clear()
        await recorded.down()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(NoAnswer):
                await future

    async def test_waiting_ends_and_fails_at_once_from_then_on(
        self, hosts: Hosts, make: Callable[..., Recorded]
    ) -> None:
        """Everybody gets an error of their own, with the address and the reason; later callers at once."""
        hosts.error = LayerUnavailable(hosts.address, "refused")
        recorded = make(1.0)
        results = await asyncio.wait_for(
            asyncio.gather(*(recorded.line.up() for _ in range(3)), return_exceptions=True),
            DEADLINE,
        )
        assert [type(result) for result in results] == [LayerUnavailable] * 3
        assert len({id(result) for result in results}) == 3
        later = asyncio.ensure_future(recorded.line.up())
        await turns(1)
        assert later.done()
        with pytest.raises(LayerUnavailable, match="refused") as raised:
            await later
        assert raised.value.address == hosts.address

    async def test_connection_ends_the_failing(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """The attempts go on; when one succeeds, the line is as before."""
        hosts.error = LayerUnavailable(hosts.address, "refused")
        recorded = make(BRIEF)
        with pytest.raises(LayerUnavailable):
            await recorded.up()
        hosts.error = None
        await eventually(lambda: recorded.line.wire is not None)
        assert await recorded.line.up() is hosts.wires[-1]
        assert recorded.line.reason == ""

    async def test_other_layout_ends_the_waiting_now(
        self, hosts: Hosts, make: Callable[..., Recorded]
    ) -> None:
        """Waiting would not help: ImproperlyConfigured, at once and for everybody."""
        recorded = make(LONG)
        recorded.set_up_error = ImproperlyConfigured("laid out otherwise")
        for wait in (recorded.line.up, recorded.line.first_up):
            with pytest.raises(ImproperlyConfigured, match="otherwise"):
                await asyncio.wait_for(wait(), DEADLINE)

    async def test_lost_again_while_refused(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """A send that was written when the server still refused, and lost its connection, is given up."""
        recorded = make(BRIEF)
        wire = await recorded.up()
        hosts.is_open.clear()
        recorded.line.give_up(wire, "READONLY no")
        await eventually(lambda: recorded.overdue)
        hosts.is_open.set()
        await eventually(lambda: recorded.line.wire is not None)
        future = hosts.wires[-1].call("PUBLISH", "x")
        await turns()
        hosts.is_open.clear()
        await recorded.down()
        async with asyncio.timeout(20 * BRIEF):
            with pytest.raises(NoAnswer):
                await future


class TestTrial:
    """An outage ends with an answer, and not with a connection."""

    @pytest.mark.parametrize("is_written", [True, False], ids=["written", "unwritten"])
    async def test_connections_that_answer_nothing(
        self, hosts: Hosts, make: Callable[..., Recorded], is_written: bool
    ) -> None:
        """However often the connection is made again: what has no answer send_timeout after the loss ends."""
        recorded = make(BRIEF)
        wire = await recorded.up()
        if not is_written:
            hosts.takes_nothing = True
            wire.pause_writing()
        future = wire.call("PUBLISH", "x")
        await turns()
        async with asyncio.timeout(DEADLINE):
            while not future.done():
                await recorded.down()
                with contextlib.suppress(LayerUnavailable):
                    await recorded.up()
        with pytest.raises(NoAnswer if is_written else NotSent):
            await future

    async def test_connection_that_is_silent(
        self, make: Callable[..., Recorded], delays: list[float]
    ) -> None:
        """A connection that takes everything and answers nothing is given up, with what was sent over it."""
        recorded = make(1.0)
        wire = await recorded.up()
        future = wire.call("PUBLISH", "x")
        await turns()
        await recorded.down()
        second = await recorded.up()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(NoAnswer):
                await future
        assert second.is_lost

    async def test_callers_who_come_meanwhile(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """Who waited for the connection, and who came when it was there, are told like those before."""
        recorded = make(1.0)
        wire = await recorded.up()
        hosts.is_open.clear()
        futures = [wire.call("PUBLISH", "before")]
        await turns()
        await recorded.down()

        async def send() -> Any:
            return await (await recorded.line.up()).call("PUBLISH", "x")

        waits = asyncio.create_task(send())
        await turns()
        hosts.is_open.set()
        await recorded.up()
        async with asyncio.timeout(DEADLINE):
            results = await asyncio.gather(*futures, waits, send(), return_exceptions=True)
        assert [type(result) for result in results] == [NoAnswer] * 3
        # When the time is over, and for what the connection left when it was given up.
        assert [type(error) for error in recorded.overdue] == [LayerUnavailable] * 2

    async def test_answer_ends_it(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """After an answer the next loss is a new outage, with all of send_timeout; also of a cancelled call."""
        recorded = make(1.0)
        for cancel in (False, True):
            wire = await recorded.up()
            future = wire.call("PUBLISH", "x")
            await turns()
            await recorded.down()
            second = await recorded.up()
            if cancel:
                future.cancel()
            second.data_received(b":1\r\n")
            await eventually(future.done)
        later = second.call("PUBLISH", "y")
        await turns()
        await recorded.down()
        third = await recorded.up()
        third.data_received(b":2\r\n")
        assert await later == 2
        assert recorded.overdue == []

    async def test_idle_line(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """Where nobody waits for an answer a connection ends the outage, also one that is overdue by then."""
        recorded = make(BRIEF)
        await recorded.up()
        hosts.is_open.clear()
        await recorded.down()
        await eventually(lambda: recorded.overdue)
        hosts.is_open.set()
        await eventually(lambda: recorded.line.wire is not None)
        hosts.is_open.clear()
        await recorded.down()
        waits = asyncio.create_task(recorded.line.up())
        await turns()
        assert not waits.done()
        waits.cancel()

    async def test_trial_without_a_question(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """Who waited for the connection and sends nothing over it does not end it."""
        recorded = make(BRIEF)
        await recorded.up()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(2 * BRIEF, ended.set_result, None)
        await ended
        assert recorded.overdue == [] and recorded.line.wire is hosts.wires[0]

    async def test_large_message_on_its_way(
        self, hosts: Hosts, make: Callable[..., Recorded], delays: list[float]
    ) -> None:
        """While bytes leave, a connection is not given up, and the senders wait; once none do, all ends."""
        recorded = make(4 * BRIEF)
        wire = await recorded.up()
        future = wire.call("PUBLISH", "x" * 1000)
        await turns()
        await recorded.down()
        second, transport = await recorded.up(), hosts.transports[-1]
        transport.unsent = 1000
        loop = asyncio.get_running_loop()
        until = loop.time() + 12 * BRIEF
        moving: asyncio.Future[None] = loop.create_future()

        def move() -> None:
            transport.unsent -= 1
            if loop.time() < until:
                loop.call_later(BRIEF / 20, move)
            else:
                moving.set_result(None)

        move()
        await moving
        assert not second.is_lost and not future.done()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(NoAnswer):
                await future
        assert second.is_lost

    async def test_loop_that_was_blocked(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """An answer that came while this loop was blocked for longer than send_timeout is read before the end."""
        recorded = make(1.0)
        wire = await recorded.up()
        future = wire.call("PUBLISH", "x")
        await turns()
        await recorded.down()
        second = await recorded.up()
        loop = asyncio.get_running_loop()
        # As on a loop that runs timers before it reads: the answer is read after the timer has run.
        late = loop.time() + 1.3
        while loop.time() < late:
            pass
        loop.call_soon(loop.call_soon, second.data_received, b":1\r\n")
        assert await future == 1

    async def test_loop_that_was_blocked_before_it_connected(
        self, hosts: Hosts, make: Callable[..., Recorded]
    ) -> None:
        """A loop that was blocked for longer than send_timeout connects before it tells anybody of an outage."""
        outage = Outage()
        recorded = make(1.0, outage=outage)
        await recorded.up()
        await recorded.down()
        waiting = asyncio.ensure_future(recorded.line.up())
        await turns()
        loop = asyncio.get_running_loop()
        late = loop.time() + 1.3
        while loop.time() < late:
            pass
        assert await waiting is hosts.wires[1]
        assert outage.reason is None

    async def test_loop_that_was_blocked_as_the_outage_began(
        self, hosts: Hosts, make: Callable[..., Recorded]
    ) -> None:
        """The turn of the loop in which a connection is first wanted may be a long one: it does not count."""
        outage = Outage()
        recorded = make(1.0, outage=outage)
        recorded.line.start()
        loop = asyncio.get_running_loop()
        late = loop.time() + 1.05  # no later than a timer may be
        while loop.time() < late:
            pass
        assert await recorded.up() is hosts.wires[0]
        assert outage.reason is None

    async def test_cut_while_it_was_on_its_way(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """A message that is cut on its way on each connection is not sent again for ever."""
        recorded = make(BRIEF)
        wire = await recorded.up()
        future = wire.call("PUBLISH", "x" * 1000)
        await turns()
        loop = asyncio.get_running_loop()

        def move() -> None:
            hosts.transports[-1].unsent -= 1
            if not future.done():
                loop.call_later(BRIEF / 20, move)

        move()
        async with asyncio.timeout(DEADLINE):
            while not future.done():
                await recorded.down()
                with contextlib.suppress(LayerUnavailable):
                    await recorded.up()
                    hosts.transports[-1].unsent = 1000
                    cut = loop.create_future()
                    loop.call_later(2 * BRIEF, cut.set_result, None)
                    await asyncio.wait([cut, future], return_when="FIRST_COMPLETED")
            with pytest.raises(NoAnswer):
                await future

    async def test_connections_that_end_at_once(
        self, hosts: Hosts, make: Callable[..., Recorded], delays: list[float]
    ) -> None:
        """A server that accepts each connection and ends it is asked ever less often; one that serves is not."""
        recorded = make()
        await recorded.up()
        delays.clear()
        for _ in range(8):
            await recorded.down()
            wire = await recorded.up()
        assert delays == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
        future = wire.call("PING")
        await turns()
        wire.data_received(b"+PONG\r\n")
        await future
        delays.clear()
        await recorded.down()
        await recorded.up()
        assert delays == [0.05]


class TestOutage:
    """What one line of a process knows of its host, all know."""

    async def known(self, hosts: Hosts, make: Callable[..., Recorded]) -> Outage:
        """An outage that a line has waited for in vain."""
        outage = Outage()
        hosts.error = LayerUnavailable(hosts.address, "refused")
        recorded = make(BRIEF, outage=outage)
        recorded.line.start()
        await eventually(lambda: recorded.overdue)
        return outage

    async def test_new_line(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """A line that is made in an outage fails at once, with the reason, and goes on connecting."""
        outage = await self.known(hosts, make)
        recorded = make(LONG, outage=outage)
        for _ in range(2):
            with pytest.raises(LayerUnavailable, match="refused"):
                await asyncio.wait_for(recorded.line.up(), DEADLINE)
        first = asyncio.create_task(recorded.line.first_up())
        await turns()
        assert not first.done()
        hosts.error = None
        await asyncio.wait_for(first, DEADLINE)
        assert await recorded.line.up() in hosts.wires

    async def test_it_ends_for_all(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """It is over when one line has a connection: a new one waits for its own."""
        outage = await self.known(hosts, make)
        hosts.error = None
        await make(LONG, outage=outage).line.first_up()
        hosts.is_open.clear()
        waits = asyncio.create_task(make(LONG, outage=outage).line.up())
        await turns()
        assert not waits.done()
        hosts.is_open.set()
        await asyncio.wait_for(waits, DEADLINE)

    async def test_line_that_was_up(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """A line that loses its connection meanwhile waits all of send_timeout from then on, as ever."""
        outage = Outage()
        recorded = make(LONG, outage=outage)
        await recorded.up()
        outage.failed("refused", asyncio.get_running_loop().time(), LONG)
        hosts.is_open.clear()
        await recorded.down()
        waits = asyncio.create_task(recorded.line.up())
        await turns()
        assert not waits.done()
        waits.cancel()

    def test_late_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What failed before a line had its connection says nothing; and what nobody repeats does not last."""
        now = 100.0
        monkeypatch.setattr(outages, "monotonic", lambda: now)
        outage = Outage()
        assert outage.reason is None
        outage.failed("refused", 99.0, 5.0)
        assert outage.reason == "refused"
        now = 103.0
        outage.served()
        assert outage.reason is None
        outage.failed("late", 102.0, 5.0)
        assert outage.reason is None
        now = 104.0
        outage.failed("again", 103.5, 5.0)
        assert outage.reason == "again"
        now = 109.1
        assert outage.reason is None


class TestResting:
    """rest(), and the next start()."""

    async def test_it_begins_anew(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """Without a pause, and with all of send_timeout, however the connection was lost before."""
        recorded = make(LONG)
        await recorded.up()
        await recorded.down(TimeoutError("no reply"))
        await recorded.up()
        await recorded.line.rest()
        assert recorded.line.is_resting and not recorded.line.was_up
        hosts.is_open.clear()
        recorded.line.start()
        began = asyncio.get_running_loop().time()
        assert recorded.line._downtime.phase is Phase.RUNNING
        await turns()  # its time begins with the next turn
        assert recorded.line._downtime._due == pytest.approx(began + LONG, abs=1.0)
        hosts.is_open.set()
        assert await recorded.up() is hosts.wires[2]


class TestEnding:
    """close() and abort()."""

    async def test_close_fails_what_waits(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """Who waits for the line gets LayerClosed, and so does who comes later; no attempt goes on."""
        hosts.is_open.clear()
        recorded = make()
        task = asyncio.create_task(recorded.line.up())
        await eventually(lambda: hosts.waiting)
        await recorded.line.close()
        with pytest.raises(LayerClosed):
            await task
        with pytest.raises(LayerClosed):
            await recorded.line.up()
        recorded.line.start()
        await turns()
        assert (hosts.attempts, hosts.waiting) == (1, 0)
        await recorded.line.close()

    @pytest.mark.parametrize("during", ["connecting", "set-up"])
    async def test_close_of_an_attempt_that_hides_its_cancellation(
        self, hosts: Hosts, make: Callable[..., Recorded], during: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An attempt whose cancellation becomes another error, in a library, is the last one all the same."""
        recorded = make()
        began = asyncio.Event()

        async def hide(*_: object) -> Any:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise OSError("cancelled") from None

        if during == "connecting":
            monkeypatch.setattr(hosts, "connect", hide)
        else:
            recorded.during_set_up = hide
        recorded.line.start()
        await began.wait()
        await every([recorded.line.close()])
        assert recorded.line.wire is None

    async def test_close_fails_what_is_carried(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """A command that waits to be sent again is given up."""
        recorded = make()
        wire = await recorded.up()
        future = wire.call("PUBLISH", "x")
        await turns()
        hosts.is_open.clear()
        await recorded.down()
        await recorded.line.close()
        with pytest.raises(NoAnswer):
            await future

    async def test_abort(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """The connection ends now, and what it owed fails."""
        recorded = make()
        wire = await recorded.up()
        future = wire.call("PUBLISH", "x")
        await turns()
        recorded.line.abort()
        with pytest.raises(NoAnswer):
            await asyncio.wait_for(future, DEADLINE)
        assert hosts.transports[0].is_closing()
        assert recorded.line.wire is None

    async def test_cancelled_waiting(self, hosts: Hosts, make: Callable[..., Recorded]) -> None:
        """One waiter that is cancelled changes nothing for the others."""
        hosts.is_open.clear()
        recorded = make()
        first, second = (asyncio.create_task(recorded.line.up()) for _ in range(2))
        await turns()
        first.cancel()
        hosts.is_open.set()
        assert await asyncio.wait_for(second, DEADLINE) is hosts.wires[0]
        assert first.cancelled()
