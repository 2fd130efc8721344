"""The deadline of a connection, on a clock that the test sets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from contextvars import Context

import pytest

from channels_asyncq.bus.resp.deadline import Deadline
from channels_asyncq.bus.resp.protocol import WireProtocol
from channels_asyncq.bus.resp.replies import NoAnswer
from tests.wires import Clock, Owner, Pipe, Session, message, turns
from tests.wires import no_haste as no_haste


async def test_silent_server() -> None:
    """A connection whose server reads a command and does not answer ends after the timeout."""
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
            writer.close()
            await writer.wait_closed()
        served.set()

    owner = Owner()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        _, protocol = await asyncio.get_running_loop().create_connection(
            lambda: WireProtocol(owner=owner, timeout=0.05), host, port
        )
        future = protocol.call("PING")
        await owner.ended.wait()
        await served.wait()
    with pytest.raises(NoAnswer, match=r"no reply within 0\.05 s"):
        await future
    assert isinstance(owner.lost[0], TimeoutError)


async def test_deadline_counts_from_the_oldest_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write has its own deadline: replies to older ones and younger writes do not extend it."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    session.wire.call("GET", 1)
    await turns(1)
    clock.advance(3)
    session.wire.call("GET", 2)
    await turns(1)
    session.feed(b":1\r\n")
    clock.advance(4.9)
    assert not session.wire.is_lost
    clock.advance(0.2)
    assert session.wire.is_lost
    await session.ended.wait()
    assert isinstance(session.lost[0], TimeoutError)


async def test_one_timer_and_none_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy connection has one timer, whatever it writes. An idle one has none when that has run out."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    for _ in range(100):
        session.wire.call("PING")
        await turns(1)
        session.feed(b"+PONG\r\n")
        clock.advance(0.01)
    assert len(clock.timers) == 1
    clock.advance(60)
    assert clock.timers == []
    assert not session.wire.is_lost
    session.wire.call("PING")
    await turns(1)
    assert len(clock.timers) == 1


async def test_rest_ends_the_timer_of_an_idle_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the timer when all is answered, and never while something is unanswered."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    session.wire.call("PING")
    await turns(1)
    session.wire.rest()
    assert [handle.cancelled for _, _, handle in clock.timers] == [False]
    session.feed(b"+PONG\r\n")
    session.wire.rest()
    assert [handle.cancelled for _, _, handle in clock.timers] == [True]
    session.wire.call("PING")
    await turns(1)
    session.wire.rest()
    clock.advance(5.1)
    assert session.wire.is_lost
    await session.ended.wait()


async def test_deadline_does_not_count_a_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in which a message is held does not count, since replies are not read then."""
    clock = Clock(monkeypatch)
    session = Session(subscriber=True, timeout=5)
    holding = True
    session.take = lambda topic, payload: not holding
    session.wire.call("PING")
    await turns(1)
    session.feed(message(0))
    clock.advance(30)
    holding = False
    session.wire.resume()
    await turns()
    clock.advance(4.9)
    assert not session.wire.is_lost
    clock.advance(5.2)
    assert session.wire.is_lost


async def test_deadline_moves_while_bytes_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large command may take longer than the timeout as long as bytes of it leave."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    session.wire.call("GET", "x" * 1000)
    for unsent in range(1000, 980, -1):
        session.pipe.unsent = unsent
        clock.advance(2)
    assert not session.wire.is_lost
    clock.advance(6.3)
    assert session.wire.is_lost


async def test_deadline_of_the_answer_to_a_large_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """When all bytes of a command have left, its reply is due within the timeout."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    session.wire.call("GET", "x" * 1000)
    session.pipe.unsent = 1000
    clock.advance(4)
    session.pipe.unsent = 500
    clock.advance(4)
    session.pipe.unsent = 0
    clock.advance(4.9)
    assert not session.wire.is_lost
    clock.advance(1.4)
    assert session.wire.is_lost


async def test_deadline_is_not_moved_by_younger_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that reads and does not answer is noticed, however much is written meanwhile."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    session.wire.call("GET", 1)
    for unsent in (0, 600, 400, 200, 0):
        session.wire.call("GET", "x" * 1000)
        await turns(1)
        session.pipe.unsent = unsent
        clock.advance(0.95)
    assert not session.wire.is_lost
    clock.advance(0.3)
    assert session.wire.is_lost


async def test_deadline_of_a_command_that_is_stuck_from_the_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes that left before a command was written do not count as its own."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    for number in range(3):
        session.wire.call("GET", number)
        session.feed(b":1\r\n")
        clock.advance(60)
    session.wire.call("GET", "x" * 1000)
    session.pipe.unsent = len(session.pipe.writes[-1])
    clock.advance(5.1)
    assert session.wire.is_lost


async def test_deadline_moves_while_a_reply_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large reply may take longer than the timeout as long as parts of it arrive."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    future = session.wire.call("GET", 1)
    session.feed(b"$1000\r\n")
    for _ in range(10):
        session.feed(b"x" * 90)
        clock.advance(4)
    assert not session.wire.is_lost
    session.feed(b"x" * 100 + b"\r\n")
    assert await future == b"x" * 1000
    session.wire.call("GET", 2)
    session.feed(b"$1000\r\n")
    clock.advance(6.3)
    assert session.wire.is_lost


async def test_deadline_moves_while_messages_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """While messages arrive a reply behind them may still come: the deadline moves."""
    clock = Clock(monkeypatch)
    session = Session(subscriber=True, timeout=5)
    session.wire.call("SUBSCRIBE", "topic")
    for number in range(10):
        session.feed(message(number))
        clock.advance(4)
    assert not session.wire.is_lost
    clock.advance(6.3)
    assert session.wire.is_lost


@pytest.mark.parametrize("encrypted", [False, True], ids=["tcp", "tls"])
async def test_deadline_on_a_slow_link(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, encrypted: bool
) -> None:
    """Bytes in the buffers of the kernel and of TLS have not left. While they leave, the deadline moves."""
    client = server = None
    if encrypted:
        path, key = request.getfixturevalue("certificate")
        client = ssl.create_default_context(cafile=path)
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(path, key)
    loop = asyncio.get_running_loop()
    owner = Owner()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)

        def accept() -> socket.socket:
            peer = listener.accept()[0]
            return server.wrap_socket(peer, server_side=True) if server else peer

        (_, protocol), peer = await asyncio.gather(
            loop.create_connection(
                lambda: WireProtocol(owner=owner, timeout=5), *listener.getsockname(), ssl=client
            ),
            asyncio.to_thread(accept),
        )
    with peer:
        clock = Clock(monkeypatch)
        size = 8_000_000
        future = protocol.call("SET", "k", b"x" * size)
        while size > 0:
            # The peer reads a little, so that more bytes leave. Then much time passes.
            for _ in range(20):
                if size > 0:
                    size -= len(await asyncio.to_thread(peer.recv, 1 << 16))
            if size > 0:  # the last bytes may have left before the peer read them
                clock.advance(4)
            assert not protocol.is_lost
        peer.sendall(b"+OK\r\n")
        assert await future == b"OK"
        protocol.abort(ConnectionAbortedError())
        await owner.ended.wait()


async def test_deadline_after_a_blocked_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that was blocked beyond the deadline reads what arrived before the connection is judged."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    future = session.wire.call("PING")
    await turns(1)
    clock.advance(60, at_once=True)
    assert not session.wire.is_lost
    session.feed(b"+PONG\r\n")
    clock.advance(60)
    assert await future == b"PONG"
    assert not session.wire.is_lost


async def test_deadline_on_a_loop_that_stays_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that is blocked twice in a row does not extend the deadline again."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    session.wire.call("PING")
    await turns(1)
    clock.advance(60, at_once=True)
    clock.advance(60, at_once=True)
    assert session.wire.is_lost


async def test_remaining_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 0 unless bytes of the oldest unanswered command moved, and 0 on a connection that has ended."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    assert session.wire.remaining_wait() == 0
    session.wire.call("GET", "x" * 1000)
    session.pipe.unsent = 1000
    assert session.wire.remaining_wait() == 0
    clock.advance(1)
    session.pipe.unsent = 500
    assert session.wire.remaining_wait() == 5
    clock.advance(1)
    assert session.wire.remaining_wait() == 4
    session.wire.abort(OSError("enough"))
    assert session.wire.remaining_wait() == 0


class Stalled:
    """A connection that does not read for a while, for a deadline alone."""

    replies = 0
    arrived = (0, 0)
    is_stalled = True

    def on_silent(self) -> None:
        pass

    def __init__(self) -> None:
        self.transport = Pipe(WireProtocol(owner=Owner()))
        self.aborted: list[Exception] = []

    def abort(self, exc: Exception) -> None:
        self.aborted.append(exc)


async def test_deadline_starts_anew_with_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout counts from the time at which this side reads again, even if nothing arrives."""
    clock = Clock(monkeypatch)
    connection = Stalled()
    deadline = Deadline(connection, 5, Context())
    deadline.note_write(1, 10, 0)
    clock.advance(29)
    connection.is_stalled = False
    deadline.note_reading()
    clock.advance(4.9)
    assert connection.aborted == []
    clock.advance(1.4)
    assert [type(error) for error in connection.aborted] == [TimeoutError]
