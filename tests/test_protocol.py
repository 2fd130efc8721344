"""The life of a connection: made, used over real transports, closed, aborted, lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hiredis import ProtocolError, ReplyError

from channels_asyncq.bus.resp.protocol import ClosedIdle, WireProtocol
from channels_asyncq.bus.resp.replies import NoAnswer, NotSent
from channels_asyncq.testing import EmbeddedServer
from tests.wires import Clock, Handler, Owner, Pipe, Session, encode, message, turns
from tests.wires import no_haste as no_haste


async def test_called_before_it_is_connected() -> None:
    """Commands called before connection_made() wait for the transport."""
    protocol = WireProtocol(owner=Owner())
    assert not protocol.pipeline.has_capacity
    assert protocol.transport is None
    future = protocol.call("PING")
    await turns(2)
    pipe = Pipe(protocol)
    await turns(1)
    assert protocol.transport is pipe
    protocol.data_received(b"+PONG\r\n")
    assert await future == b"PONG"


# The end.


async def test_closed_by_the_server() -> None:
    """If the server closes the connection, on_lost() gets an error that says so."""
    session = Session()
    session.pipe.lose(None)
    await session.ended.wait()
    assert isinstance(session.lost[0], ConnectionResetError)
    assert session.wire.is_lost


@pytest.mark.parametrize("subscriber", [False, True])
async def test_reply_that_nothing_asked_for(subscriber: bool) -> None:
    """A reply that no command waits for ends the connection, and the error quotes it."""
    session = Session(subscriber=subscriber)
    first = session.wire.call("PING")
    await turns(1)
    second = session.wire.call("PING")
    session.feed(b"+PONG\r\n-ERR max number of clients reached\r\n")
    assert await first == b"PONG"
    with pytest.raises(NotSent, match="max number of clients"):
        await second
    assert isinstance(session.lost[0], ConnectionAbortedError)
    assert session.pipe.aborted


async def test_long_unexpected_reply_is_shortened() -> None:
    """The error about an unexpected reply quotes only its beginning."""
    session = Session()
    session.feed(encode(b"x" * 100_000))
    await session.ended.wait()
    assert len(str(session.lost[0])) < 300


@pytest.mark.parametrize("subscriber", [False, True])
async def test_garbage(subscriber: bool) -> None:
    """Bytes that are not RESP end the connection with hiredis' error. Replies before them count."""
    session = Session(subscriber=subscriber)
    first, second = session.wire.call("PING"), session.wire.call("PING")
    await turns(1)
    session.feed(b"+PONG\r\nHTTP/1.1 400 Bad Request\r\n\r\n")
    assert await first == b"PONG"
    with pytest.raises(NoAnswer):
        await second
    assert isinstance(session.lost[0], ProtocolError)
    session.feed(b"+PONG\r\n")
    await turns(2)
    assert len(session.lost) == 1


async def test_close_waits_for_replies() -> None:
    """close() writes what was called, waits for the replies, and the owner gets no error."""
    session = Session()
    future = session.wire.call("PING")
    closing = asyncio.ensure_future(session.wire.close())
    await turns()
    assert len(session.pipe.writes) == 1
    with pytest.raises(NotSent):
        await session.wire.call("PING")
    session.feed(b"+PONG\r\n")
    await closing
    assert await future == b"PONG"
    assert session.lost == [None]
    await session.wire.close()
    assert session.lost == [None]


async def test_close_twice_at_once() -> None:
    """Concurrent closes wait for the same end."""
    session = Session()
    session.wire.call("PING")
    closing = [asyncio.ensure_future(session.wire.close()) for _ in range(2)]
    await turns()
    session.feed(b"+PONG\r\n")
    await asyncio.gather(*closing)
    assert session.lost == [None]


async def test_close_is_bounded() -> None:
    """A server that never answers cannot keep close() for longer than the timeout."""
    session = Session(timeout=0.02)
    session.wire.pause_writing()
    future = session.wire.call("PING")
    await session.wire.close()
    with pytest.raises(NotSent):
        await future
    assert isinstance(session.lost[0], TimeoutError)


async def test_close_cuts_off_a_slow_goodbye() -> None:
    """A transport that does not close in time (TLS with a silent peer) is aborted."""
    session = Session(timeout=0.02)
    session.pipe.deaf = True
    await session.wire.close()
    assert session.pipe.aborted
    assert len(session.lost) == 1


async def test_close_cancelled() -> None:
    """Cancelling close() ends the connection at once."""
    session = Session()
    future = session.wire.call("PING")
    closing = asyncio.ensure_future(session.wire.close())
    await turns()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await session.ended.wait()
    assert session.pipe.aborted
    with pytest.raises(NoAnswer):
        await future


async def test_close_while_held() -> None:
    """close() drops the held message and those behind it, and still gets the replies."""
    session = Session(subscriber=True)
    session.take = lambda topic, payload: False
    future = session.wire.call("UNSUBSCRIBE", "topic")
    await turns(1)
    session.feed(message(0) + message(1) + encode([b"unsubscribe", b"topic", 0]))
    await session.wire.close()
    assert (await future)[0] == b"unsubscribe"
    assert session.seen == []
    assert session.lost == [None]


async def test_lost_while_closing() -> None:
    """A connection that ends during close(), while replies are due, is lost with an error."""
    session = Session()
    future = session.wire.call("PING")
    closing = asyncio.ensure_future(session.wire.close())
    await turns()
    session.pipe.lose(None)
    await closing
    with pytest.raises(NoAnswer):
        await future
    assert isinstance(session.lost[0], ConnectionResetError)


async def test_close_and_abort_before_it_is_connected() -> None:
    """A protocol without a transport can be closed, and on_lost() is called."""
    owner = Owner()
    protocol = WireProtocol(owner=owner)
    future = protocol.call("PING")
    await protocol.close()
    await turns()
    assert len(owner.lost) == 1
    with pytest.raises(NotSent):
        await future


async def test_close_after_abort() -> None:
    """close() after abort() waits for the end and does not change its reason."""
    session = Session()
    session.wire.abort(OSError("enough"))
    await session.wire.close()
    assert [str(error) for error in session.lost] == ["enough"]


async def test_abort_drops_what_arrives() -> None:
    """After abort() replies are dropped, and nothing is written, whatever the transport reports."""
    session = Session()
    written = session.wire.call("PING")
    unwritten = session.wire.call("PING")
    session.wire.abort(OSError("enough"))
    session.feed(b"+PONG\r\n")
    session.wire.pause_writing()
    session.wire.resume_writing()
    assert not session.wire.pipeline.has_capacity
    await session.ended.wait()
    with pytest.raises(NoAnswer):
        await written
    with pytest.raises(NotSent):
        await unwritten
    assert len(session.pipe.writes) == 1


class TestClosedIdle:
    """The ends that are taken for those of a server that closes idle connections."""

    @staticmethod
    async def end(session: Session) -> Exception | None:
        session.wire.connection_lost(None)
        await session.ended.wait()
        return session.lost[0]

    async def test_idle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All commands are answered, and the last one was called a second ago."""
        clock = Clock(monkeypatch)
        session = Session()
        session.wire.call("PING")
        await turns()
        session.feed(b"+PONG\r\n")
        clock.now += 1.0
        error = await self.end(session)
        assert isinstance(error, ClosedIdle)
        assert error.seconds == 1.0

    @pytest.mark.parametrize("case", ["used just now", "unanswered", "never used", "subscriber"])
    async def test_not_idle(self, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
        """A connection that was just used, waits, was never used, or is a subscriber is not idle."""
        clock = Clock(monkeypatch)
        session = Session(subscriber=case == "subscriber")
        if case != "never used":
            session.wire.call("PING")
            await turns()
        if case != "unanswered":
            session.feed(b"+PONG\r\n" if case != "never used" else b"")
        clock.now += 0.9 if case == "used just now" else 5.0
        error = await self.end(session)
        assert isinstance(error, ConnectionResetError)
        assert not isinstance(error, ClosedIdle)


# Real servers and transports.


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = None
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


def test_real_server(runner: asyncio.Runner, redis_server: EmbeddedServer, prefix: str) -> None:
    """A real server: pipelines, large values, pub/sub with held messages, errors and close()."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        owner = Owner()
        seen: list[bytes] = []
        holds = 0
        complete = asyncio.Event()

        def on_message(topic: bytes, payload: bytes) -> bool:
            nonlocal holds
            if len(seen) % 50 == 49 and holds * 50 < len(seen):
                holds += 1
                loop.call_soon(subscriber.resume)
                return False
            seen.append(payload)
            if len(seen) == 500:
                complete.set()
            return True

        address = ("127.0.0.1", redis_server.port)
        _, commands = await loop.create_connection(lambda: WireProtocol(owner=owner), *address)
        _, subscriber = await loop.create_connection(
            lambda: WireProtocol(owner=owner, messages=Handler(on_message)), *address
        )
        topic = f"{prefix}:topic"
        assert await subscriber.call("SUBSCRIBE", topic) == [b"subscribe", topic.encode(), 1]
        await asyncio.gather(*(commands.call("PUBLISH", topic, number) for number in range(500)))
        await complete.wait()
        assert seen == [b"%d" % number for number in range(500)]
        assert holds
        big = b"x" * 8_000_000
        assert await commands.call("SET", f"{prefix}:big", big) == b"OK"
        assert await commands.call("GET", f"{prefix}:big") == big
        with pytest.raises(ReplyError, match="unknown command"):
            await commands.call("NOPE")
        await asyncio.gather(commands.close(), subscriber.close())
        assert owner.lost == [None, None]

    runner.run(run())


def test_server_that_does_not_read(runner: asyncio.Runner) -> None:
    """When a server stops reading, capacity ends. When it reads again, everything arrives."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        may_read, served = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await may_read.wait()
            while line := await reader.readline():
                if line.startswith(b"*"):
                    writer.write(b"+OK\r\n")
            writer.close()
            await writer.wait_closed()
            served.set()

        owner = Owner()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        _, protocol = await loop.create_connection(lambda: WireProtocol(owner=owner), host, port)
        futures = []
        while protocol.pipeline.has_capacity:
            futures.append(protocol.call("SET", "k", b"x" * 60_000))
            await asyncio.sleep(0)
        assert protocol.pipeline.unanswered_bytes < 16 * 2**20 + 70_000
        waiting = asyncio.ensure_future(protocol.pipeline.wait_for_capacity())
        await turns()
        assert not waiting.done()
        may_read.set()
        await waiting
        assert set(await asyncio.gather(*futures)) == {b"OK"}
        await protocol.close()
        await owner.ended.wait()
        assert owner.lost == [None]
        await served.wait()
        server.close()
        await server.wait_closed()

    runner.run(run())
