"""Sender: commands and messages of a partition while it is open, draining and waiting, and when it moves."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from channels_asyncq.bus.redis import bus as redis
from channels_asyncq.bus.redis.node import Node
from channels_asyncq.bus.redis.partition import Partition
from channels_asyncq.bus.redis.sender import Sender
from channels_asyncq.bus.redis.shared import Shared
from channels_asyncq.exceptions import DeliveryUnknown, LayerClosed, LayerUnavailable
from channels_asyncq.messages.codecs import Codec
from tests import resp_server
from tests.buses import Owner
from tests.contract import DEADLINE, ended, eventually, every, started, time_passes
from tests.resp_server import RespServer, error
from tests.routers import MovingRouter
from tests.sessions import shorten_send_timeout

CODEC = Codec()
READONLY = error("READONLY You can't write against a read only replica.")
NOSCRIPT = error("NOSCRIPT No matching script.")


def payload(number: int) -> bytes:
    return CODEC.encode({"type": "test.note", "n": number})


class Moving:
    """A bus with two nodes at one server, a group, and a member in another session that hears what arrives."""

    def __init__(self, owner: Owner, member: Owner) -> None:
        self.owner, self.member = owner, member
        self.router = owner.bus.router
        assert isinstance(self.router, MovingRouter)
        self.here, self.there = self.router.nodes
        number = owner.topics.group("room").topic.partition
        self.partition: Partition = owner.bus.partitions[number]
        if self.partition.home is not self.here:
            self.here, self.there = self.there, self.here

    @property
    def sender(self) -> Sender:
        return self.partition.sender

    def move(self, home: Node | None = None) -> None:
        self.partition.move(home or (self.there if self.partition.home is self.here else self.here))

    def send(self, *numbers: int) -> list[Awaitable[Any]]:
        """Messages that are sent in one turn, as tasks."""
        return [asyncio.ensure_future(_wait(self.owner.group_send("room", payload(n)))) for n in numbers]

    async def arrived(self, count: int) -> list[int]:
        """The numbers of what arrived in another session, in order, when there are so many."""
        await eventually(lambda: len(self.member.arrived) >= count, f"{count} messages")
        return [CODEC.decode(envelope.payload)["n"] for _, envelope in self.member.arrived]

    @property
    def state(self) -> str:
        """The row of the table."""
        sender = self.sender
        if sender.gate.at is not None:
            assert sender.node is sender.home and sender._drained is None
            return "open"
        return "waiting" if sender._drained is None else "draining"

    async def is_open(self, home: Node) -> None:
        await eventually(lambda: self.state == "open" and self.sender.node is home, "the end of the move")


async def _wait(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


MakeMoving = Callable[..., Awaitable[Moving]]


@pytest.fixture
async def make(server: RespServer, prefix: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeMoving]:
    """Make a bus whose partitions can be moved, behind the server that answers badly, and a member beside it."""
    owners: list[Owner] = []

    async def make(**config: Any) -> Moving:
        config = {"partitions": 2, "send_timeout": 20, "recovery": {"seconds": 10}} | config
        owners.append(Owner(server.real.url, prefix, **config))

        def make_router(shared: Shared) -> MovingRouter:
            return MovingRouter(shared)

        with monkeypatch.context() as patch:
            patch.setattr(redis, "router_for", make_router)
            owners.append(Owner(server.url, prefix, **config))
        member, owner = owners[-2:]
        for each in (member, owner):
            each.bus.start()
            await each.up()
        await member.join()
        return Moving(owner, member)

    yield make
    for owner in owners:
        await owner.bus.close()


@pytest.fixture
async def moving(make: MakeMoving) -> Moving:
    return await make()


class TestTheTable:
    """open, draining, waiting."""

    async def test_open(self, moving: Moving, server: RespServer) -> None:
        """What is sent is written at once, to the home."""
        assert moving.state == "open" and moving.sender.node is moving.here
        await every(moving.send(1))
        assert await moving.arrived(1) == [1]

    async def test_a_move_without_anything_in_flight(self, moving: Moving) -> None:
        """The last home is asked all the same, as its reply says that all is answered; then the next is used."""
        moving.move()
        assert moving.state == "draining"
        assert (moving.sender.home, moving.sender.node) == (moving.there, moving.here)
        await moving.is_open(moving.there)
        await every(moving.send(1, 2))
        assert await moving.arrived(2) == [1, 2]

    async def test_drained(self, moving: Moving, server: RespServer) -> None:
        """Nothing is written to the next home before the last one has answered everything, and then in order."""
        answers = asyncio.Event()
        server.script("EVALSHA", resp_server.after(answers))
        sends = moving.send(1, 2, 3)
        await eventually(lambda: server.received("EVALSHA"), "the first command")
        moving.move()
        sends += moving.send(4, 5)
        for _ in range(20):
            await asyncio.sleep(0)
        assert moving.state == "draining" and moving.sender.is_awaited
        assert moving.sender.commands.ask(b"PING") is None
        before = len(server.received("EVALSHA"))
        answers.set()
        await every(sends)
        assert await moving.arrived(5) == [1, 2, 3, 4, 5]
        assert len(server.received("EVALSHA")) > before
        assert moving.state == "open" and moving.sender.node is moving.there

    async def test_drained_ends_by_a_loss(self, moving: Moving, server: RespServer) -> None:
        """The last home is lost meanwhile: what it did not answer is resent at the next one, first."""
        server.script("EVALSHA", resp_server.silence(executes=False))
        sends = moving.send(1, 2)
        await eventually(lambda: server.received("EVALSHA"), "the first command")
        moving.move()
        sends += moving.send(3, 4)
        wire = moving.here.commands.wire
        assert wire is not None and moving.state == "draining"
        wire.abort(ConnectionResetError("cable"))
        await every(sends)
        assert await moving.arrived(4) == [1, 2, 3, 4]
        assert moving.sender.node is moving.there and not moving.sender.in_flight

    async def test_waiting_for_the_next(self, make: MakeMoving, server: RespServer) -> None:
        """The next home has no connection: sends wait for it, in order, and what is lost meanwhile is resent."""
        moving = await make()
        stuck = asyncio.Event()
        server.script("ROLE", resp_server.after(stuck))
        wire = moving.there.commands.wire
        assert wire is not None
        wire.abort(ConnectionResetError("cable"))
        await eventually(lambda: moving.there.commands.wire is None, "the loss")
        moving.move()
        await eventually(lambda: moving.state == "waiting", "the end of the draining")
        sends = moving.send(1, 2)
        await asyncio.sleep(0)
        assert moving.sender.is_awaited and moving.there.is_awaited
        stuck.set()
        await every(sends)
        assert await moving.arrived(2) == [1, 2]

    async def test_a_loss_at_home(self, moving: Moving, server: RespServer) -> None:
        """Without a move: waiting, then what is in flight is resent, and what came after follows."""
        server.script("EVALSHA", resp_server.close(executes=False))
        sends = moving.send(1, 2)
        await eventually(lambda: moving.state == "waiting", "the loss")
        sends += moving.send(3)
        await every(sends)
        assert await moving.arrived(3) == [1, 2, 3]
        assert moving.sender.node is moving.here


class TestMoves:
    """One after the other, and when not all is well."""

    @pytest.mark.parametrize("times", [2, 3])
    async def test_back_and_forth_while_it_drains(
        self, moving: Moving, server: RespServer, times: int
    ) -> None:
        """The last home is asked once; where it is sent in the end is the last one named."""
        answers = asyncio.Event()
        server.script("EVALSHA", resp_server.after(answers))
        sends = moving.send(1, 2)
        await eventually(lambda: server.received("EVALSHA"), "the first command")
        for number in range(times):
            moving.move()
            sends += moving.send(10 + number)
        draining = moving.sender._drained
        answers.set()
        await every(sends)
        assert await moving.arrived(2 + times) == [1, 2, *range(10, 10 + times)]
        assert draining is not None and moving.sender._drained is None
        assert moving.sender.node is (moving.here if times == 2 else moving.there)

    async def test_to_where_it_is(self, moving: Moving) -> None:
        """Nothing is drained."""
        moving.sender.move(moving.here)
        assert moving.state == "open"

    async def test_in_an_outage(self, make: MakeMoving, server: RespServer) -> None:
        """What the lost home left in flight is resent at the next, at once, before everything else."""
        moving = await make()
        stuck = asyncio.Event()
        server.always("ROLE", resp_server.after(stuck))
        server.script("EVALSHA", resp_server.close(executes=False))
        sends = moving.send(1, 2)
        await eventually(lambda: moving.state == "waiting", "the loss")
        sends += moving.send(3)
        await asyncio.sleep(0)
        moving.move()
        assert moving.state == "open" and moving.sender.node is moving.there
        await every(sends)
        assert await moving.arrived(3) == [1, 2, 3]
        stuck.set()

    async def test_to_a_node_that_is_overdue(self, make: MakeMoving, server: RespServer) -> None:
        """Sends fail at once, and what is in flight is unknown; when it is back, sends go on."""
        moving = await make()
        shorten_send_timeout(moving.owner.bus, 0.5)
        server.always("ROLE", resp_server.close())
        wire = moving.there.commands.wire
        assert wire is not None
        wire.abort(ConnectionResetError("cable"))
        await eventually(lambda: moving.there.commands._downtime.error is not None, "the end of the waiting")
        moving.move()
        await eventually(lambda: moving.state == "waiting", "the end of the draining")
        with pytest.raises(LayerUnavailable):
            await every(moving.send(1))
        server.restore()
        await moving.is_open(moving.there)
        await every(moving.send(2))
        assert await moving.arrived(1) == [2]

    async def test_that_takes_too_long(self, make: MakeMoving, server: RespServer) -> None:
        """Who waits is told `send_timeout` after the move, whatever holds it up; later it goes on."""
        moving = await make(send_timeout=3)
        shorten_send_timeout(moving.owner.bus, 0.5)
        stuck = asyncio.Event()
        server.always("PING", resp_server.silence(executes=False))
        server.always("ROLE", resp_server.after(stuck))
        wire = moving.there.commands.wire
        assert wire is not None
        moving.move()
        wire.abort(ConnectionResetError("cable"))
        with pytest.raises(LayerUnavailable, match=r"was moved here, and could not be used within 0.5 s"):
            await every(moving.send(1))
        with pytest.raises(LayerUnavailable):
            await every(moving.send(2))
        stuck.set()
        server.restore()
        await moving.is_open(moving.there)
        await every(moving.send(3))
        assert await moving.arrived(1) == [3]

    async def test_at_rest_before_it_has_arrived(self, make: MakeMoving) -> None:
        """A bus at rest waits for nothing: a move is not overdue when it is used again."""
        moving = await make()
        shorten_send_timeout(moving.owner.bus, 0.5)
        bus = moving.owner.bus
        first = bus.rest()
        moving.move()
        second = bus.rest()
        assert first is not None and second is not None
        await every([first, second])
        assert moving.sender._timer is None
        await time_passes(0.6)
        await every(moving.send(1))

    async def test_closed_while_it_drains(self, make: MakeMoving, server: RespServer) -> None:
        """Who waits gets LayerClosed; what was written and never answered is unknown; nothing is left behind."""
        moving = await make(send_timeout=3)
        shorten_send_timeout(moving.owner.bus, 0.5)
        server.script("EVALSHA", resp_server.silence(executes=False))
        written = moving.send(1)
        await eventually(lambda: server.received("EVALSHA"), "the first command")
        moving.move()
        waiting = moving.send(2, 3)
        await asyncio.sleep(0)
        assert moving.state == "draining"
        await moving.owner.bus.close()
        results = await asyncio.wait_for(asyncio.gather(*written, *waiting, return_exceptions=True), DEADLINE)
        assert [type(result) for result in results] == [DeliveryUnknown, LayerClosed, LayerClosed]
        assert moving.sender._timer is None and not moving.sender._again

    @pytest.mark.parametrize("call", ["add_member", "flush", "group_send"])
    async def test_called_while_it_closes(self, moving: Moving, server: RespServer, call: str) -> None:
        """A connection that is closed waits for its replies: what is called meanwhile fails at once."""
        answers = asyncio.Event()
        server.script("EVALSHA", resp_server.after(answers))
        written = moving.send(1)
        await eventually(lambda: server.received("EVALSHA"), "the first command")
        closing = asyncio.ensure_future(moving.owner.bus.close())
        await eventually(lambda: moving.here.commands.wire is None, "the closing")
        with pytest.raises(LayerClosed):
            await asyncio.wait_for(_wait(moving.owner.calls()[call]()), DEADLINE)
        assert moving.sender.commands.ask(b"PING") is None
        answers.set()
        await every([*written, closing])

    async def test_asked_when_it_closes(self, moving: Moving, server: RespServer) -> None:
        """Who waits until all is answered does not look at the errors: asyncio logs none of them."""
        logged: list[dict[str, Any]] = []
        moving.owner.bus.shared.loop.set_exception_handler(lambda _, context: logged.append(context))
        server.always("PING", resp_server.silence())
        waiting = await started(moving.owner.bus.answered())
        await eventually(lambda: server.received("PING"), "the question")
        assert moving.here.commands.wire is not None
        moving.here.commands.abort()
        moving.there.commands.abort()
        await ended(waiting)
        gc.collect()
        assert logged == []

    async def test_cancelled(self, moving: Moving, server: RespServer) -> None:
        """A send that is cancelled while the partition moves is not sent, and takes nobody along."""
        answers = asyncio.Event()
        server.script("EVALSHA", resp_server.after(answers))
        sends = moving.send(1)
        await eventually(lambda: server.received("EVALSHA"), "the first command")
        moving.move()
        waiting = [await started(_wait(moving.owner.group_send("room", payload(n)))) for n in (2, 3, 4)]
        waiting[1].cancel()
        await ended(waiting[1])
        answers.set()
        await every([*sends, waiting[0], waiting[2]])
        assert await moving.arrived(3) == [1, 2, 4]

    @pytest.mark.parametrize("call", ["call", "ask"])
    async def test_commands(self, moving: Moving, server: RespServer, call: str) -> None:
        """A command that was written is answered by the last home; one that is lost with it, by the next."""
        server.script("PUBLISH", resp_server.silence(executes=False))
        command = (b"PUBLISH", b"nobody", b"x")
        answer: Awaitable[Any] | None
        if call == "call":
            answer = asyncio.ensure_future(moving.sender.commands.call(*command))
        else:
            answer = moving.sender.commands.ask(*command)
        assert answer is not None
        await eventually(lambda: server.received("PUBLISH"), "the command")
        moving.move()
        wire = moving.here.commands.wire
        assert wire is not None
        wire.abort(ConnectionResetError("cable"))
        assert await every([answer]) == [0]
        assert len(server.received("PUBLISH")) == 2


class TestNothingOvertakes:
    """The order of the sends of one session is that in which they are called, whatever moves."""

    async def test_what_waited_for_capacity(self, moving: Moving, server: RespServer) -> None:
        """Who waited for the last home to take more comes before who waited for the next one."""
        answers = asyncio.Event()
        server.script("EVALSHA", resp_server.after(answers))
        sends = moving.send(*range(1200))
        wire = moving.here.commands.wire
        assert wire is not None
        await eventually(
            lambda: not wire.pipeline.has_capacity and wire.pipeline._queue, "more than it takes"
        )
        moving.move()
        sends += moving.send(*range(1200, 1210))
        await asyncio.sleep(0)
        answers.set()
        await every(sends)
        assert await moving.arrived(1210) == list(range(1210))

    @pytest.mark.parametrize("answer", [READONLY, NOSCRIPT], ids=["READONLY", "NOSCRIPT"])
    async def test_what_was_refused(
        self, moving: Moving, server: RespServer, answer: resp_server.Answer
    ) -> None:
        """What the last home refused is sent again before what was sent since."""
        answers = asyncio.Event()
        blocked = resp_server.after(answers)
        server.script("PUBLISH", blocked)
        server.script("EVALSHA", answer)
        moving.sender.commands.ask(b"PUBLISH", b"nobody", b"x")
        sends = moving.send(1)
        await eventually(lambda: server.received("PUBLISH"), "the command")
        moving.move()
        sends += moving.send(2, 3)
        await asyncio.sleep(0)
        assert moving.state == "draining"
        answers.set()
        await every(sends)
        assert await moving.arrived(3) == [1, 2, 3]

    async def test_question_that_missed_its_script(self, moving: Moving, server: RespServer) -> None:
        """It is asked again at the next home: the last one may go, and the answer comes all the same."""
        answers, replies = asyncio.Event(), asyncio.Event()
        server.script("PUBLISH", resp_server.after(answers))
        server.script("ECHO", NOSCRIPT, resp_server.after(replies))
        moving.sender.commands.ask(b"PUBLISH", b"nobody", b"x")
        answer = moving.sender.commands.ask(b"ECHO", b"x")
        await eventually(lambda: server.received("PUBLISH"), "the command")
        moving.move()
        answers.set()
        await moving.is_open(moving.there)
        await eventually(lambda: len(server.received("ECHO")) == 2, "the question")
        wire = moving.here.commands.wire
        assert wire is not None and answer is not None
        wire.abort(ConnectionResetError("cable"))
        await eventually(lambda: moving.here.commands.reconnects, "another connection")
        replies.set()
        assert await every([answer]) == [b"x"]
        assert not moving.sender.is_awaited

    async def test_moved_as_the_gate_opens(self, moving: Moving) -> None:
        """Who was let through, and had no turn before the move, is not overtaken by who came meanwhile."""
        wire = moving.here.commands.wire
        assert wire is not None
        moving.sender.on_lost()
        sends = moving.send(1, 2)
        await asyncio.sleep(0)
        # In one turn: a third send waits, the partition moves, and then the first two would have had theirs.
        sends += moving.send(3)
        moving.owner.bus.shared.loop.call_soon(moving.move)
        moving.sender.on_up(wire)
        await every(sends)
        assert await moving.arrived(3) == [1, 2, 3]

    async def test_many_times(self, moving: Moving) -> None:
        """A stream of messages arrives once and in order, wherever the partition is."""
        sends: list[Awaitable[Any]] = []
        for number in range(600):
            sends += moving.send(number)
            if number % 7 == 0:
                moving.move()
            if number % 5 == 0:
                await asyncio.sleep(0)
        await every(sends)
        assert await moving.arrived(600) == list(range(600))

    async def test_moved_in_the_turn_of_the_loss(self, moving: Moving, server: RespServer) -> None:
        """
        What is in flight on a connection that was given up a moment ago is resent at the next home, first: it is
        handed over a turn later than the connection is lost.
        """
        server.script("EVALSHA", resp_server.silence(executes=False))
        sends = moving.send(1, 2)
        await eventually(lambda: server.received("EVALSHA"), "the first command")
        wire = moving.here.commands.wire
        assert wire is not None
        wire.abort(ConnectionResetError("the server cannot serve"))
        moving.move()
        sends += moving.send(3)
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*sends)
        assert await moving.arrived(3) == [1, 2, 3]


class TestStale:
    """A command that names another connection than the present one."""

    @pytest.mark.parametrize("kind", ["send", "call"])
    async def test_refused_where_it_was_resent(self, moving: Moving, server: RespServer, kind: str) -> None:
        """What was never written, and is refused by the next connection, does not hold that one for ever."""
        wire = moving.here.commands.wire
        assert wire is not None
        server.script("ECHO", resp_server.silence(executes=False))
        moving.sender.commands.ask(b"ECHO", b"x")
        await eventually(lambda: server.received("ECHO"), "the command in flight")
        name = "EVALSHA" if kind == "send" else "PUBLISH"
        server.script(name, READONLY)
        # In the turn of the loss: it is called, and never written.
        asyncio.get_running_loop().call_soon(wire.abort, ConnectionResetError("cable"))
        if kind == "send":
            send = asyncio.ensure_future(moving.owner.group_send("room", payload(1)))
        else:
            send = asyncio.ensure_future(moving.sender.commands.call(b"PUBLISH", b"nobody", b"x"))
        await eventually(lambda: server.received(name), "the refusal")
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(send, *moving.send(2))
