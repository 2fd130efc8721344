"""The wire: bytes in every cut, futures in order, held messages, deadlines, room, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from hiredis import ProtocolError, ReplyError
from hypothesis import given, settings
from hypothesis import strategies as st

from channels_asyncq.bus.resp import deadline, protocol, reader
from channels_asyncq.bus.resp.protocol import ClosedIdle, WireProtocol
from channels_asyncq.bus.resp.replies import InFlight, NoAnswer, NotSent
from channels_asyncq.slices import SLICE
from channels_asyncq.testing import EmbeddedServer
from tests.wires import Handler, Owner


@pytest.fixture(autouse=True)
def no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test feeds is handed on at once, however slow the machine; tests of slices set the limit back."""
    monkeypatch.setattr(reader, "_READ_SECONDS", 3600 * SLICE)


def in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in slices, as ever."""
    monkeypatch.setattr(reader, "_READ_SECONDS", SLICE)


class Pipe(asyncio.Transport):
    """A transport that keeps what is written; the test plays the server."""

    def __init__(self, protocol: WireProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.writes: list[bytes] = []
        self.reading = True
        self.closing = False
        self.aborted = False
        self.ended = False
        self.deaf = False
        #: Bytes that were written and have not left.
        self.unsent = 0
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.closing
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True
        if not self.deaf:
            self.lose(None)

    def abort(self) -> None:
        self.closing = self.aborted = True
        self.lose(None)

    def lose(self, exc: Exception | None) -> None:
        """End the connection as asyncio does: on the next turn, and once."""
        self.closing = True
        asyncio.get_running_loop().call_soon(self._end, exc)

    def _end(self, exc: Exception | None) -> None:
        if not self.ended:
            self.ended = True
            self.protocol.connection_lost(exc)


class Session:
    """A WireProtocol on a Pipe, and what it told its owner."""

    def __init__(self, *, subscriber: bool = False, **arguments: Any) -> None:
        self.lost: list[Exception | None] = []
        self.ended = asyncio.Event()
        self.seen: list[tuple[bytes, bytes]] = []
        #: Decides for each offer; by default everything is taken.
        self.take: Callable[[bytes, bytes], bool] = lambda topic, payload: True
        self.wire = WireProtocol(owner=self, messages=self if subscriber else None, **arguments)
        self.pipe = Pipe(self.wire)

    def on_lost(self, wire: WireProtocol, error: Exception | None) -> None:
        assert wire is self.wire and not wire.pending, "on_lost comes after the futures"
        self.lost.append(error)
        self.ended.set()

    def on_message(self, topic: bytes, payload: bytes) -> bool:
        taken = self.take(topic, payload)
        if taken:
            self.seen.append((topic, payload))
        return taken

    def feed(self, data: bytes) -> None:
        self.wire.data_received(data)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def encode(value: Any) -> bytes:
    """What a server sends for a value."""
    match value:
        case None:
            return b"$-1\r\n"
        case bool() | float():
            raise TypeError(value)
        case int():
            return b":%d\r\n" % value
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case str():
            return b"+%b\r\n" % value.encode()
        case ReplyError():
            return b"-%b\r\n" % str(value).encode()
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(encode, value))
    raise TypeError(value)


def plain(value: Any) -> Any:
    """The value as a reply looks: text is bytes, errors compare by their text."""
    match value:
        case str():
            return value.encode()
        case ReplyError():
            return ("error", str(value))
        case list():
            return [plain(item) for item in value]
    return value


def message(number: int) -> bytes:
    return encode([b"message", b"topic", b"%d" % number])


def messages(*numbers: int) -> list[tuple[bytes, bytes]]:
    return [(b"topic", b"%d" % number) for number in numbers]


async def result(future: asyncio.Future[Any]) -> Any:
    try:
        return plain(await future)
    except ReplyError as exc:
        return plain(exc)


VALUES: list[Any] = [
    "OK",
    42,
    -1,
    None,
    b"",
    b"with\r\nline ends\r\n",
    [],
    [1, b"two", None, [b"three", [ReplyError("ERR nested")]], "OK"],
    ReplyError("NOPERM this user has no permissions"),
    b"last",
]


# Replies.


async def test_replies_at_every_split() -> None:
    """Wherever the stream is cut in two, every command gets its own reply."""
    stream = b"".join(map(encode, VALUES))
    for cut in range(len(stream) + 1):
        session = Session()
        futures = [session.wire.call("GET", number) for number in range(len(VALUES))]
        await turns(1)
        for part in (stream[:cut], stream[cut:]):
            if part:
                session.feed(part)
        assert [await result(future) for future in futures] == plain(VALUES)
        assert session.wire.pending == session.wire.pipeline.unanswered_bytes == 0


async def test_replies_byte_by_byte() -> None:
    """A stream that comes one byte at a time says the same."""
    session = Session()
    futures = [session.wire.call("GET", number) for number in range(len(VALUES))]
    await turns(1)
    for byte in b"".join(map(encode, VALUES)):
        session.feed(bytes([byte]))
    assert [await result(future) for future in futures] == plain(VALUES)


leaf = st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=50)
replies = st.recursive(leaf, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@settings(deadline=None, max_examples=100)
@given(values=st.lists(replies, max_size=12), data=st.data())
def test_any_replies_in_any_pieces(values: list[Any], data: st.DataObject) -> None:
    """Any replies, cut anywhere into any number of pieces, answer the FIFO in order."""
    stream = b"".join(map(encode, values))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))

    async def run() -> None:
        session = Session()
        futures = [session.wire.call("GET", number) for number in range(len(values))]
        await turns(1)
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            session.feed(stream[start:end])
        assert [future.result() for future in futures] == values

    asyncio.run(run())


async def test_big_reply() -> None:
    """A reply of many reads arrives whole, and the next one after it."""
    session = Session()
    big, after = session.wire.call("GET", "big"), session.wire.call("PING")
    await turns(1)
    stream = encode(b"x" * 5_000_000) + encode("PONG")
    for start in range(0, len(stream), 65536):
        session.feed(stream[start : start + 65536])
    assert await big == b"x" * 5_000_000
    assert await after == b"PONG"


async def test_error_reply_is_an_answer() -> None:
    """An error reply is raised to its own caller alone; the connection goes on."""
    session = Session()
    first, second = session.wire.call("EVALSHA", "no"), session.wire.call("PING")
    await turns(1)
    session.feed(b"-NOSCRIPT no matching script\r\n+PONG\r\n")
    with pytest.raises(ReplyError, match="NOSCRIPT"):
        await first
    assert await second == b"PONG"
    assert not session.wire.is_lost


async def test_subscriber_error_reply() -> None:
    """A denied SUBSCRIBE is told to its caller."""
    session = Session(subscriber=True)
    future = session.wire.call("SUBSCRIBE", "secret")
    await turns(1)
    session.feed(b"-NOPERM no permissions to access a channel\r\n")
    with pytest.raises(ReplyError, match="NOPERM"):
        await future


# Commands.


async def test_commands_of_one_turn_are_one_write() -> None:
    """While an answer is due, what is called in one turn of the loop leaves in one write, packed, in order."""
    session = Session()
    session.wire.call("GET", "k")
    session.wire.call("SET", b"k\xff", 7)
    session.wire.call("PING")
    assert len(session.pipe.writes) == 1
    await turns(1)
    assert session.pipe.writes[1:] == [b"*3\r\n$3\r\nSET\r\n$2\r\nk\xff\r\n$1\r\n7\r\n*1\r\n$4\r\nPING\r\n"]
    session.wire.call("PING")
    await turns(1)
    assert session.pipe.writes[2:] == [b"*1\r\n$4\r\nPING\r\n"]
    assert (len(session.pipe.writes), session.wire.pending) == (3, 4)
    assert session.wire.pipeline.unanswered_bytes == sum(map(len, session.pipe.writes))


async def test_a_command_alone_is_written_at_once() -> None:
    """While nothing is unanswered a command does not wait for the end of the turn."""
    session = Session()
    for number in (1, 2):
        reply = session.wire.call("PING")
        assert session.pipe.writes == number * [b"*1\r\n$4\r\nPING\r\n"]
        session.feed(b"+PONG\r\n")
        assert await reply == b"PONG"


async def test_a_command_after_several_answers() -> None:
    """Those who were answered at once may call at once: the first command waits for the others for a turn."""
    session = Session()
    for _ in range(2):
        session.wire.call("PING")
    await turns(1)
    session.feed(b"+PONG\r\n" * 2)
    before = len(session.pipe.writes)
    for _ in range(2):
        session.wire.call("PING")
    assert len(session.pipe.writes) == before
    await turns(1)
    assert session.pipe.writes[before:] == [b"*1\r\n$4\r\nPING\r\n" * 2]
    # One by one again.
    session.feed(b"+PONG\r\n")
    session.feed(b"+PONG\r\n")
    session.wire.call("PING")
    assert len(session.pipe.writes) == before + 2


async def test_a_command_after_an_answer_to_several() -> None:
    """The same for one command that stood for several calls."""
    session = Session()
    command = Told()
    command.count = 3
    session.wire.pipeline.call_open(command)
    session.feed(b"+PONG\r\n")
    assert command.results == [b"PONG"]
    session.wire.call("PING")
    assert len(session.pipe.writes) == 1
    await turns(1)
    assert len(session.pipe.writes) == 2


class Told:
    """A command that keeps what it is told."""

    size, count = 4, 1

    def __init__(self) -> None:
        self.results: list[object] = []

    def pack(self) -> bytes:
        return b"*1\r\n$4\r\nPING\r\n"

    def done(self) -> bool:
        return False

    def set_result(self, reply: object, /) -> None:
        self.results.append(reply)

    def set_exception(self, error: Exception, /) -> None:
        self.results.append(error)

    def exception(self) -> None:
        return None


async def test_who_need_not_be_woken() -> None:
    """A reply sink in the FIFO is notified within data_received(), in its place, a future on the next turn."""
    session = Session()
    first, last = Told(), Told()
    session.wire.pipeline.call_open(first)
    between = session.wire.call("PING")
    session.wire.pipeline.call_open(last)
    await turns(1)
    session.feed(b":1\r\n:2\r\n-ERR odd\r\n")
    assert first.results == [1] and between.result() == 2
    [error] = last.results
    assert isinstance(error, ReplyError)


async def test_answers_at_the_end_of_the_connection() -> None:
    """At the end each is told whether its command was written; later ones at once."""
    session = Session()
    written, unwritten, late = Told(), Told(), Told()
    session.wire.pipeline.call_open(written)
    session.wire.pipeline.call_open(unwritten)
    session.wire.connection_lost(OSError("cable"))
    session.wire.pipeline.call_open(late)
    assert [type(answer.results[0]) for answer in (written, unwritten, late)] == [NoAnswer, NotSent, NotSent]
    assert all(len(answer.results) == 1 for answer in (written, unwritten, late))


async def test_reply_future_of_the_caller() -> None:
    """The caller's own future gets the reply, the error, or stays pending in what is unanswered."""

    class Owned(asyncio.Future[Any]):
        """A future that says whom it belongs to."""

    session = Session()
    futures = [Owned() for _ in range(3)]
    for future in futures:
        assert session.wire.call("PING", reply=future) is future
    await turns(1)
    session.feed(b"+PONG\r\n-ERR odd\r\n")
    assert await futures[0] == b"PONG"
    with pytest.raises(ReplyError, match="odd"):
        await futures[1]
    [command] = await left(session)
    assert command.future is futures[2] and not futures[2].done()
    late = session.wire.call("PING", reply=Owned())
    assert isinstance(late.exception(), NotSent)


async def test_argument_of_another_type() -> None:
    """What cannot be packed is an error at the caller; nothing is sent and nothing is waited for."""
    session = Session()
    with pytest.raises(TypeError):
        session.wire.call("SET", "k", object())  # type: ignore[arg-type]
    await turns(2)
    assert session.pipe.writes == []
    assert session.wire.pending == 0


@pytest.mark.parametrize("subscriber", [False, True])
@pytest.mark.parametrize("written", [False, True])
async def test_cancelled_command_keeps_its_place(written: bool, subscriber: bool) -> None:
    """A command cancelled before or after it is written is answered still; its neighbours get their own."""
    session = Session(subscriber=subscriber)
    futures = [session.wire.call("GET", number) for number in range(3)]
    if written:
        await turns(1)
    futures[1].cancel()
    await turns(1)
    session.feed(b":0\r\n-ERR for the cancelled\r\n:2\r\n")
    assert await futures[0] == 0
    assert await futures[2] == 2
    assert futures[1].cancelled()
    assert session.wire.replies == 3


async def test_cancelled_after_the_reply() -> None:
    """Cancelling the task that awaits an answered command changes nothing for the others."""
    session = Session()
    task = asyncio.ensure_future(result(session.wire.call("GET", 0)))
    other = session.wire.call("GET", 1)
    await turns(1)
    session.feed(b":0\r\n")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    session.feed(b":1\r\n")
    assert await other == 1


@pytest.mark.parametrize("subscriber", [False, True])
async def test_loss_tells_written_from_unwritten(subscriber: bool) -> None:
    """At the end of the connection written commands raise NoAnswer, others and later ones NotSent."""
    session = Session(subscriber=subscriber)
    written = session.wire.call("GET", 1)
    cancelled = session.wire.call("GET", 2)
    await turns(1)
    cancelled.cancel()
    unwritten = session.wire.call("GET", 3)
    session.wire.connection_lost(OSError("cable"))
    with pytest.raises(NoAnswer, match="cable"):
        await written
    with pytest.raises(NotSent, match="cable") as caught:
        await unwritten
    assert isinstance(caught.value.__cause__, OSError)
    late = session.wire.call("GET", 4)
    assert late.done()
    with pytest.raises(NotSent, match="cable"):
        await late
    assert isinstance(session.lost[0], OSError)
    await turns(3)
    assert len(session.lost) == 1
    assert b"".join(session.pipe.writes) == b"*2\r\n$3\r\nGET\r\n$1\r\n1\r\n*2\r\n$3\r\nGET\r\n$1\r\n2\r\n"


async def test_closed_by_the_server() -> None:
    """An end without an error, which the owner did not ask for, has an error that says so."""
    session = Session()
    session.pipe.lose(None)
    await session.ended.wait()
    assert isinstance(session.lost[0], ConnectionResetError)
    assert session.wire.is_lost


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


@contextlib.contextmanager
def no_noise() -> Iterator[None]:
    """Fail if the loop is told about an exception that nobody saw."""
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context))
    yield
    gc.collect()
    assert noise == []


async def test_failures_nobody_awaits_are_quiet() -> None:
    """Error replies and losses of commands that nobody awaits write nothing to the log."""
    with no_noise():
        session = Session()
        session.wire.call("GET", 1)
        await turns(1)
        session.feed(b"-ERR 1\r\n")
        session.wire.call("GET", 2)
        await turns(1)
        session.wire.call("GET", 3)
        session.pipe.lose(OSError("cable"))
        await session.ended.wait()
        session.wire.call("GET", 4)
        del session


@pytest.mark.parametrize("subscriber", [False, True])
async def test_reply_that_nothing_asked_for(subscriber: bool) -> None:
    """More replies than commands end the connection, and the error says what came."""
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
    """The error about an unexpected reply quotes no more than a line of it."""
    session = Session()
    session.feed(encode(b"x" * 100_000))
    await session.ended.wait()
    assert len(str(session.lost[0])) < 300


@pytest.mark.parametrize("subscriber", [False, True])
async def test_garbage(subscriber: bool) -> None:
    """What is no RESP ends the connection with hiredis' error; what came before it was answered."""
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


# What an earlier connection left unanswered.


async def left(session: Session) -> list[InFlight]:
    """End the connection; what it leaves unanswered."""
    session.wire.keeps_unanswered = True
    session.pipe.lose(OSError("cable"))
    await session.ended.wait()
    return session.wire.unanswered


async def test_resend_behind_commands_in_flight() -> None:
    """On a live connection they are sent behind what was called so far, and each gets its own reply."""
    first = Session()
    moved = [first.wire.call("GET", number) for number in range(2)]
    await turns(1)
    in_flight = await left(first)
    session = Session()
    written = session.wire.call("SET", 1)
    unwritten = session.wire.call("SET", 2)
    session.wire.pipeline.resend(in_flight)
    last = session.wire.call("SET", 3)
    await turns(1)
    sent = b"".join(session.pipe.writes)
    places = [sent.index(command) for command in (b"SET\r\n$1\r\n1", b"SET\r\n$1\r\n2", b"GET\r\n$1\r\n0")]
    places += [sent.index(command) for command in (b"GET\r\n$1\r\n1", b"SET\r\n$1\r\n3")]
    assert places == sorted(places) and sent.count(b"GET") == 2
    session.feed(b":10\r\n:11\r\n:12\r\n:13\r\n:14\r\n")
    assert await asyncio.gather(written, unwritten, *moved, last) == [10, 11, 12, 13, 14]
    assert session.wire.pending == session.wire.pipeline.unanswered_bytes == 0


@pytest.mark.parametrize("subscriber", [False, True])
async def test_refusal_of_what_was_written_before(subscriber: bool) -> None:
    """An error reply is NoAnswer to what was written before, and an answer to its neighbours in flight."""
    first = Session()
    written = first.wire.call("GET", 1)
    await turns(1)
    first.wire.pause_writing()
    unwritten = first.wire.call("GET", 2)
    in_flight = await left(first)
    assert [command.is_written for command in in_flight] == [True, False]
    session = Session(subscriber=subscriber)
    before = session.wire.call("SET", 1)
    session.wire.pipeline.resend(in_flight)
    after = session.wire.call("SET", 2)
    await turns(1)
    session.feed(b"-ERR refused\r\n" * 4)
    for own in (before, unwritten, after):
        with pytest.raises(ReplyError, match="refused"):
            await own
    with pytest.raises(NoAnswer, match="refused") as caught:
        await written
    assert isinstance(caught.value.__cause__, ReplyError)


async def test_written_marks_when_the_connection_ends_again() -> None:
    """Each command keeps whether any connection has written it, whatever stands before and behind it."""
    first = Session()
    first.wire.call("GET", "written")
    await turns(1)
    first.wire.call("GET", "unwritten")
    in_flight = await left(first)
    session = Session()
    session.wire.call("SET", "written")
    session.wire.pause_writing()
    session.wire.call("SET", "unwritten")
    session.wire.pipeline.resend(in_flight)
    left_again = await left(session)
    assert [(command.packed.split(b"\r\n")[2], command.is_written) for command in left_again] == [
        (b"SET", True),
        (b"SET", False),
        (b"GET", True),
        (b"GET", False),
    ]
    again = Session()
    again.wire.pipeline.resend(left_again)
    assert [command.is_written for command in await left(again)] == [True] * 4


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_resend_to_a_connection_that_ends(end: str) -> None:
    """They fail at once, as NoAnswer or NotSent; nothing waits for a reply that cannot come."""
    first = Session()
    written = first.wire.call("GET", 1)
    await turns(1)
    unwritten = first.wire.call("GET", 2)
    in_flight = await left(first)
    session = Session()
    session.wire.call("PING")
    closing = asyncio.ensure_future(session.wire.close())
    await turns(1)
    if end == "abort":
        session.wire.abort(OSError("enough"))
    session.wire.pipeline.resend(in_flight)
    assert isinstance(written.exception(), NoAnswer) and isinstance(unwritten.exception(), NotSent)
    session.feed(b"+PONG\r\n")
    await closing


# Messages.


def subscriber_stream() -> tuple[bytes, int, list[tuple[bytes, bytes]]]:
    """A stream of messages and replies, the number of replies, and the messages."""
    stream = b"".join(
        [
            encode([b"subscribe", b"topic", 1]),
            message(0),
            encode([b"smessage", b"topic", b"1"]),
            encode([b"subscribe", b"other", 2]),
            message(2),
            encode([b"pong", b""]),
            encode([b"message", b"topic", b"\r\n*3\r\n"]),
            encode([b"unsubscribe", b"other", 1]),
        ]
    )
    return stream, 4, [*messages(0, 1, 2), (b"topic", b"\r\n*3\r\n")]


async def test_messages_and_replies_at_every_split() -> None:
    """Wherever the stream is cut, messages go to on_message and confirmations to their callers."""
    stream, count, expected = subscriber_stream()
    for cut in range(1, len(stream)):
        session = Session(subscriber=True)
        futures = [session.wire.call("SUBSCRIBE", number) for number in range(count)]
        await turns(1)
        session.feed(stream[:cut])
        session.feed(stream[cut:])
        assert session.seen == expected
        assert [(await future)[0] for future in futures] == [
            b"subscribe",
            b"subscribe",
            b"pong",
            b"unsubscribe",
        ]
        assert (session.wire.arrived[0], session.wire.replies) == (4, 4)


async def test_hold_in_every_position() -> None:
    """A held message stops everything behind it, replies included, and is the next to be offered."""
    for position in range(6):
        session = Session(subscriber=True)
        future = session.wire.call("PING")
        await turns(1)
        refusals = 2

        def take(topic: bytes, payload: bytes, position: int = position) -> bool:
            nonlocal refusals
            if int(payload) == position and refusals:
                refusals -= 1
                return False
            return True

        session.take = take
        session.feed(b"".join(map(message, range(6))) + encode([b"pong", b""]))
        assert session.seen == messages(*range(position))
        assert not session.pipe.reading
        # The transport may hand over what it had read before it was paused.
        session.feed(message(6))
        assert not future.done()
        session.wire.resume()
        await turns()
        assert session.seen == messages(*range(position)), "held again"
        assert not session.pipe.reading
        session.wire.resume()
        session.wire.resume()
        await turns()
        assert session.seen == messages(*range(7))
        assert session.pipe.reading
        assert await future == [b"pong", b""]
        assert session.wire.arrived[0] == 7


async def test_resume_with_nothing_held() -> None:
    """resume() without a held message does nothing, at any time."""
    session = Session(subscriber=True)
    session.wire.resume()
    session.feed(message(0))
    session.wire.resume()
    await turns()
    assert session.pipe.reading
    assert session.seen == messages(0)
    session.wire.abort(OSError("enough"))
    session.wire.resume()
    await turns()
    session.wire.resume()
    await turns()
    assert session.seen == messages(0)


async def test_resume_now() -> None:
    """The held message is offered before the call returns; what is held no more, or is about to be, is not."""
    session = Session(subscriber=True)
    holds = iter([False, False])
    session.take = lambda topic, payload: next(holds, True)
    session.wire.resume_now()
    session.feed(message(0) + message(1))
    session.wire.resume_now()
    assert session.seen == [] and not session.pipe.reading
    session.wire.resume()
    session.wire.resume_now()
    assert session.seen == []
    await turns(1)
    assert session.seen == messages(0, 1) and session.pipe.reading
    session.wire.resume_now()
    assert session.seen == messages(0, 1)


async def test_resume_now_tells_no_end() -> None:
    """What was received before the end is delivered, and the end is told, on a later turn."""
    session = Session(subscriber=True)
    holds = iter([False])
    session.take = lambda topic, payload: next(holds, True)
    session.feed(message(0))
    session.pipe.lose(OSError("cable"))
    await turns()
    session.wire.resume_now()
    assert session.seen == [] and session.lost == []
    await session.ended.wait()
    assert session.seen == messages(0)


async def test_resume_from_inside_on_message() -> None:
    """Inside on_message resume() does nothing: a message is never offered recursively."""
    session = Session(subscriber=True)
    depth = offers = 0

    def take(topic: bytes, payload: bytes) -> bool:
        nonlocal depth, offers
        depth += 1
        offers += 1
        assert depth == 1
        session.wire.resume()
        depth -= 1
        return offers % 2 == 0

    session.take = take
    session.feed(message(0) + message(1))
    for expected in (messages(0), messages(0, 1)):
        session.wire.resume()
        await turns()
        assert session.seen == expected
    assert offers == 4


@settings(deadline=None, max_examples=100)
@given(count=st.integers(0, 12), data=st.data())
def test_any_holds_and_any_pieces(count: int, data: st.DataObject) -> None:
    """However reads and holds fall, each message is taken exactly once and in order."""
    stream = b"".join(map(message, range(count)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    answers = iter(data.draw(st.lists(st.booleans(), max_size=20)))

    async def run() -> None:
        session = Session(subscriber=True)
        session.take = lambda topic, payload: next(answers, True)
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            session.feed(stream[start:end])
            if data.draw(st.booleans()):
                session.wire.resume()
                await turns(2)
        while len(session.seen) < count:
            session.wire.resume()
            await turns(2)
        assert session.seen == messages(*range(count))
        assert session.pipe.reading

    asyncio.run(run())


async def test_lost_while_held() -> None:
    """What was received before the end is delivered, and answered, before the end is told."""
    session = Session(subscriber=True)
    future, unanswered = session.wire.call("PING"), session.wire.call("PING")
    await turns(1)
    holds = iter([False, True, False])
    session.take = lambda topic, payload: next(holds, True)
    session.feed(message(0) + message(1) + encode([b"pong", b""]) + message(2))
    session.pipe.lose(OSError("cable"))
    await turns()
    assert session.wire.is_lost
    assert session.lost == []
    with pytest.raises(NotSent):
        await session.wire.call("PING")
    session.wire.resume()
    await turns()
    assert session.seen == messages(0)
    session.wire.resume()
    await session.ended.wait()
    assert session.seen == messages(0, 1, 2)
    assert await future == [b"pong", b""]
    with pytest.raises(NoAnswer, match="cable"):
        await unanswered
    assert len(session.lost) == 1


async def test_lost_while_held_and_never_resumed() -> None:
    """An owner that never resumes is told of the end all the same, after the timeout."""
    session = Session(subscriber=True, timeout=0.02)
    session.take = lambda topic, payload: False
    session.feed(message(0))
    session.pipe.lose(None)
    await session.ended.wait()
    session.wire.resume()
    await turns()
    assert session.seen == []


async def test_lost_while_held_with_garbage_behind() -> None:
    """Garbage behind a held message, found after the end, ends the delivery and is not told twice."""
    session = Session(subscriber=True)
    holds = iter([False])
    session.take = lambda topic, payload: next(holds, True)
    session.feed(message(0) + message(1) + b"garbage\r\n" + message(2))
    session.pipe.lose(OSError("cable"))
    await turns()
    session.wire.resume()
    await session.ended.wait()
    await turns()
    assert session.seen == messages(0, 1)
    assert [str(error) for error in session.lost] == ["cable"]


@pytest.mark.parametrize("lost_first", [False, True])
async def test_abort_while_held_drops_the_rest(lost_first: bool) -> None:
    """abort() delivers nothing more, whether the connection had ended before or not."""
    session = Session(subscriber=True)
    holds = iter([True, False])
    session.take = lambda topic, payload: next(holds, True)
    session.feed(message(0) + message(1) + message(2))
    if lost_first:
        session.pipe.lose(OSError("cable"))
        await turns()
    session.wire.resume()
    session.wire.abort(OSError("enough"))
    session.wire.abort(OSError("again"))
    assert session.lost == []
    await session.ended.wait()
    await turns()
    assert session.seen == messages(0)
    assert [str(error) for error in session.lost] == ["cable" if lost_first else "enough"]


@pytest.mark.parametrize("interrupted", ["call", "pack"])
async def test_abort_of_what_was_interrupted(interrupted: str) -> None:
    """Where a call left half of what it notes, the end is told all the same, and who waits is told too."""
    session = Session()
    first = session.wire.call("PING")
    second = session.wire.call("PING")
    if interrupted == "call":
        session.wire.pipeline._outgoing.append((b"never noted", 1, False))
    else:
        session.wire.pipeline._outgoing.clear()
    session.wire.abort(OSError("enough"))
    await session.ended.wait()
    with pytest.raises(NoAnswer):
        await first
    with pytest.raises(NotSent):
        await second
    assert [str(error) for error in session.lost] == ["enough"]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("take", [False, True])
async def test_abort_from_inside_on_message(held: bool, take: bool) -> None:
    """An owner may give the connection up while it is offered a message."""
    session = Session(subscriber=True)
    holding = held

    def decide(topic: bytes, payload: bytes) -> bool:
        nonlocal holding
        if holding:
            holding = False
            return False
        session.wire.abort(OSError("enough"))
        return take

    session.take = decide
    session.feed(message(0) + message(1))
    if held:
        session.wire.resume()
    await session.ended.wait()
    await turns()
    assert session.seen == messages(*([0] if take else []))
    assert len(session.lost) == 1


@pytest.mark.parametrize("held", [False, True])
async def test_on_message_that_raises(held: bool) -> None:
    """An error in on_message ends the connection with that error, in place of a reader that is stuck."""
    session = Session(subscriber=True)
    holds = iter([False] if held else [])

    def take(topic: bytes, payload: bytes) -> bool:
        if not next(holds, True):
            return False
        raise ValueError("bug")

    session.take = take
    session.feed(message(0) + message(1))
    session.wire.resume()
    await session.ended.wait()
    assert isinstance(session.lost[0], ValueError)


async def test_reader_yields(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 3 ms of delivering, the reader pauses and the loop gets a turn; nothing is lost or reordered."""
    now = 100.0
    in_slices(monkeypatch)
    monkeypatch.setattr(reader, "monotonic", lambda: now)
    session = Session(subscriber=True)
    future = session.wire.call("PING")
    await turns(1)

    def take(topic: bytes, payload: bytes) -> bool:
        nonlocal now
        now += 0.22 * SLICE
        return True

    session.take = take
    between: list[int] = []
    loop = asyncio.get_running_loop()

    def look() -> None:
        between.append(len(session.seen))
        if len(session.seen) < 100:
            loop.call_soon(look)

    loop.call_soon(look)
    session.feed(b"".join(map(message, range(100))) + encode([b"pong", b""]))
    assert session.seen == messages(*range(5))
    assert not session.pipe.reading
    assert await future == [b"pong", b""]
    assert session.seen == messages(*range(100))
    await turns()
    assert session.pipe.reading
    assert len(between) > 10


async def test_reader_yields_between_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of confirmations that arrive together do not hold up the loop either."""
    now = 100.0

    def monotonic() -> float:
        nonlocal now
        now += 0.22 * SLICE
        return now

    session = Session(subscriber=True)
    futures = [session.wire.call(b"SUBSCRIBE", b"%d" % number) for number in range(50)]
    await turns(1)
    in_slices(monkeypatch)
    monkeypatch.setattr(reader, "monotonic", monotonic)
    session.feed(b"".join(encode([b"subscribe", b"%d" % number, 1]) for number in range(50)))
    assert sum(future.done() for future in futures) <= 5
    for number, future in enumerate(futures):
        assert (await future)[1] == b"%d" % number
    await turns()
    assert session.pipe.reading


async def test_those_answered_have_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast confirmations are read, 512 of them are handed on before the next are read."""
    session = Session(subscriber=True)
    futures = [session.wire.call(b"SUBSCRIBE", b"x") for _ in range(3000)]
    await turns(1)
    monkeypatch.setattr(reader, "monotonic", lambda: 100.0)
    session.feed(encode([b"subscribe", b"x", 1]) * 3000)
    answered = [sum(future.done() for future in futures)]
    while answered[-1] < 3000:
        await turns(1)
        answered.append(sum(future.done() for future in futures))
        assert answered[-1] - answered[-2] <= 512
    assert answered[0] <= 512


async def test_lost_while_the_reader_yields(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ends while messages wait for their turn delivers them, then tells its end."""
    now = 100.0
    in_slices(monkeypatch)
    monkeypatch.setattr(reader, "monotonic", lambda: now)
    session = Session(subscriber=True)

    def take(topic: bytes, payload: bytes) -> bool:
        nonlocal now
        now += 0.01
        assert session.lost == []
        return True

    session.take = take
    session.feed(b"".join(map(message, range(50))))
    session.pipe.lose(None)
    await session.ended.wait()
    assert session.seen == messages(*range(50))


async def test_malformed_message() -> None:
    """A message array of another length ends the connection, as any garbage."""
    session = Session(subscriber=True)
    session.feed(encode([b"message", b"topic"]))
    await session.ended.wait()
    assert isinstance(session.lost[0], ValueError)


# Room.


async def test_room_by_count() -> None:
    """Beyond max_pending unanswered commands room() waits; a reply gives one place."""
    session = Session(max_pending=2)
    await session.wire.pipeline.wait_for_capacity()
    session.wire.call("GET", 1)
    session.wire.call("GET", 2)
    assert not session.wire.pipeline.has_capacity
    waiting = asyncio.ensure_future(session.wire.pipeline.wait_for_capacity())
    await turns()
    assert not waiting.done()
    session.feed(b":1\r\n")
    assert not session.wire.pipeline.has_capacity, "the place is for the one who waits"
    await waiting
    assert session.wire.pipeline.has_capacity


class Growing(Told):
    """A command that could become several calls of 25 bytes each, and is one."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.size, self.count = 25 * count, count

    def pack(self) -> bytes:
        self.count = 1
        return super().pack()


@pytest.mark.parametrize("bound", [{"max_pending": 6}, {"max_bytes": 120}])
async def test_room_that_was_not_needed(bound: dict[str, Any]) -> None:
    """An open command counts as what it may become; when it is written, who waits has what it did not need."""
    session = Session(**bound)
    first = session.wire.call("PING")  # what follows is not written at once
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


async def test_nobody_overtakes_in_room() -> None:
    """Who was woken for places that another one took first keeps its turn, also before those woken later."""
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
    session.feed(b"+PONG\r\n" * 2)  # for a and b, but a takes all
    session.wire.call("PING")  # its write gives back what a does not need
    session.feed(b"+PONG\r\n" * 2)  # for c as well
    await turns(20)
    session.feed(b"+PONG\r\n" * session.wire.pending)
    await turns()
    assert all(task.done() for task in tasks) and order == ["a", "b", "c"]
    session.feed(b"+PONG\r\n" * session.wire.pending)
    assert session.wire.pipeline.has_capacity and (
        session.wire.pipeline._pending,
        session.wire.pipeline.unanswered_bytes,
    ) == (0, 0)


async def test_early_writes() -> None:
    """A command that grew to sixteen calls leaves before the end of the turn, with what was called before it."""
    session = Session()
    session.wire.call("PING")
    session.wire.pipeline.call_open(Told())
    session.wire.pipeline.seal(15)
    assert len(session.pipe.writes) == 1
    session.wire.call("PING")
    assert len(session.pipe.writes) == 2 and session.wire.pending == 3


async def test_room_by_bytes() -> None:
    """Beyond max_bytes unanswered room() waits, and each that is woken looks again, in order."""
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
async def test_room_is_first_come_first_served(batch: int) -> None:
    """However many places come free at once, those who wait get them in the order in which they came."""
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
async def test_room_cancelled_passes_the_place_on(woken: bool) -> None:
    """Cancelling one who waits, woken or not, leaves the place to the next."""
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


async def test_room_cancelled_in_the_middle_of_the_queue() -> None:
    """Cancelling one in the middle keeps the order of the others."""
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


async def test_room_granted_and_not_used() -> None:
    """One who gets a place and calls nothing does not block those behind."""
    session = Session(max_pending=1)
    session.wire.call("GET", 1)
    waiting = [asyncio.ensure_future(session.wire.pipeline.wait_for_capacity()) for _ in range(5)]
    await turns()
    session.feed(b":1\r\n")
    await asyncio.gather(*waiting)
    assert session.wire.pending == 0


@pytest.mark.parametrize("subscriber", [False, True])
async def test_room_closed_while_writing_is_paused(subscriber: bool) -> None:
    """While the transport's buffer is full nothing is written and there is no room."""
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


async def test_pause_between_call_and_write() -> None:
    """A pause that comes after the call and before its write is respected."""
    session = Session()
    session.wire.call("GET", "k")
    session.wire.call("PING")
    session.wire.pause_writing()
    await turns()
    assert len(session.pipe.writes) == 1
    session.wire.resume_writing()
    await turns(1)
    assert len(session.pipe.writes) == 2


async def test_room_for_a_subscriber() -> None:
    """Confirmations give places back on a subscriber's connection too."""
    session = Session(subscriber=True, max_pending=1)
    session.wire.call("SUBSCRIBE", "a")
    waiting = asyncio.ensure_future(session.wire.pipeline.wait_for_capacity())
    await turns()
    session.feed(encode([b"subscribe", b"a", 1]))
    await waiting


@pytest.mark.parametrize("end", ["lost", "abort", "close"])
async def test_room_when_the_connection_ends(end: str) -> None:
    """Everybody who waits for room learns that there will be none, and so do those who come later."""
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


# Deadlines.


class Clock:
    """A clock for wire.monotonic, and the timers that the connection sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None], FakeHandle]] = []
        for module in (deadline, protocol, reader):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self._call_later)

    def _call_later(
        self, delay: float, callback: Callable[[], None], *, context: object = None
    ) -> FakeHandle:
        handle = FakeHandle()
        self.timers.append((self.now + delay, callback, handle))
        return handle

    def advance(self, seconds: float, *, at_once: bool = False) -> None:
        """Let time pass and timers run, each at its time, or all late if the loop was blocked."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = end if at_once else max(self.now, timer[0])
            if not timer[2].cancelled:
                timer[1]()
            if at_once:
                break
        self.now = end


class FakeHandle:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


async def test_silent_server() -> None:
    """A server that takes a command and says nothing is given up within the timeout."""
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
    """Each command has its own time: answers to older ones and writes of younger ones do not prolong it."""
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
    """A busy connection has one timer whatever it writes; an idle one has none once that has run out."""
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


async def test_deadline_does_not_count_a_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a message is held we do not read, so an unanswered command is not the server's fault."""
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
    """A command larger than the link carries in the timeout is not cut; when nothing leaves any more, it is."""
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
    """Once all of it has left, its answer is due within the timeout."""
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
    """A server that reads and answers nothing is noticed, however much is sent to it meanwhile."""
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
    """What left before a command was written is not taken for its own bytes."""
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
    """A reply larger than the link carries in the timeout is not cut while parts of it arrive."""
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
    """A subscriber's reply comes after the messages before it: while these arrive, it is on its way."""
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
    """What waits in the buffers of the kernel and of TLS has not left: while it does, the connection stays."""
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
            # The peer takes a little, and what that made room for is sent; then much time passes.
            for _ in range(20):
                if size > 0:
                    size -= len(await asyncio.to_thread(peer.recv, 1 << 16))
            clock.advance(4)
            assert not protocol.is_lost
        peer.sendall(b"+OK\r\n")
        assert await future == b"OK"
        protocol.abort(ConnectionAbortedError())
        await owner.ended.wait()


async def test_deadline_after_a_blocked_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that was blocked beyond the deadline reads what came meanwhile before it judges."""
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
    """The respite for a blocked loop is given once."""
    clock = Clock(monkeypatch)
    session = Session(timeout=5)
    session.wire.call("PING")
    await turns(1)
    clock.advance(60, at_once=True)
    clock.advance(60, at_once=True)
    assert session.wire.is_lost


# The end.


async def test_close_waits_for_replies() -> None:
    """close() sends what was called, waits for the answers, and tells the owner: no error."""
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
    """A transport that does not get closed (TLS with a silent peer) is cut off."""
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
    """close() drops the held message and what comes after it, and gets its answers from behind them."""
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
    """A connection that ends by itself while answers are due is lost, not closed."""
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
    """A protocol that never got a transport can be closed, and tells its owner."""
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


# Work.


def python_calls(work: Callable[[], object]) -> int:
    """How many Python functions `work` calls, itself included."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    # A collection would call what other tests left to be finalised.
    gc.collect()
    gc.disable()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer changes what is counted")
async def test_work_per_command() -> None:
    """Each of 1000 pipelined commands is one Python call beside its future; a write carries sixteen."""
    session = Session()
    asyncio.get_running_loop().set_debug(False)

    def send() -> None:
        for _ in range(1000):
            session.wire.pipeline.call("PUBLISH", "topic", "x")

    stream = b":1\r\n" * 1000
    sending = python_calls(send)
    await turns(1)
    reading = python_calls(lambda: session.feed(stream))
    writes = 1 + -(-999 // 16)
    assert len(session.pipe.writes) == writes
    assert session.wire.replies == 1000
    # asyncio.Future asks its loop for get_debug(): a Python call that no future can be made without.
    futures = python_calls(lambda: [asyncio.Future(loop=session.wire._loop) for _ in range(1000)])
    # A write is planned, packed and handed to the transport in a handful of calls.
    assert sending - futures <= 1010 + 6 * writes
    assert reading <= 10


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer changes what is counted")
async def test_work_per_message() -> None:
    """A message costs the call of on_message and nothing else."""
    session = Session(subscriber=True)
    stream = b"".join(map(message, range(1000)))
    # The three functions of this test's own on_message.
    assert python_calls(lambda: session.feed(stream)) <= 2 * 1000 + 200


# Real servers and transports.


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = None
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


def test_real_server(runner: asyncio.Runner, redis_server: EmbeddedServer, prefix: str) -> None:
    """Against a real server: pipelines, large values, pub/sub with holds, errors and a graceful end."""

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
    """A server that stops reading closes the room; when it reads again everything arrives."""

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


class TestIdle:
    """Which ends are those of a server that closes idle connections."""

    @staticmethod
    async def end(session: Session) -> Exception | None:
        session.wire.connection_lost(None)
        await session.ended.wait()
        return session.lost[0]

    async def test_idle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Everything is answered, and nothing was asked for a second."""
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
        """What was used, waits for an answer, was never used, or gets messages is not idle."""
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
