"""The commands of a connection: replies in order, writes, resends, and the number of function calls."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hiredis import ReplyError
from hypothesis import given, settings
from hypothesis import strategies as st

from channels_asyncq.bus.resp.replies import (
    InFlight,
    NoAnswer,
    NotSent,
    copy_error,
    is_redirect,
    moved_to,
)
from tests.wires import Recording, Session, encode, python_calls, turns
from tests.wires import no_haste as no_haste


def plain(value: Any) -> Any:
    """Return the value as a reply has it: text as bytes, errors by their text."""
    match value:
        case str():
            return value.encode()
        case ReplyError():
            return ("error", str(value))
        case list():
            return [plain(item) for item in value]
    return value


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
    """A stream that arrives byte by byte gives every command its own reply."""
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
    """A refused SUBSCRIBE raises the error at its caller."""
    session = Session(subscriber=True)
    future = session.wire.call("SUBSCRIBE", "secret")
    await turns(1)
    session.feed(b"-NOPERM no permissions to access a channel\r\n")
    with pytest.raises(ReplyError, match="NOPERM"):
        await future


# Commands.


async def test_commands_of_one_turn_are_one_write() -> None:
    """While a reply is due, the commands of one loop iteration are written together, packed, in order."""
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
    """While nothing is unanswered, a command does not wait for the end of the loop iteration."""
    session = Session()
    for number in (1, 2):
        reply = session.wire.call("PING")
        assert session.pipe.writes == number * [b"*1\r\n$4\r\nPING\r\n"]
        session.feed(b"+PONG\r\n")
        assert await reply == b"PONG"


async def test_a_command_after_several_answers() -> None:
    """Callers that were answered together may call again together: their commands share a write."""
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
    # Replies that arrive one by one.
    session.feed(b"+PONG\r\n")
    session.feed(b"+PONG\r\n")
    session.wire.call("PING")
    assert len(session.pipe.writes) == before + 2


async def test_a_command_after_an_answer_to_several() -> None:
    """The calls that shared a command were answered together, too: the next command waits for more."""
    session = Session()
    command = Recording()
    command.count = 3
    session.wire.pipeline.call_open(command)
    session.feed(b"+PONG\r\n")
    assert command.results == [b"PONG"]
    session.wire.call("PING")
    assert len(session.pipe.writes) == 1
    await turns(1)
    assert len(session.pipe.writes) == 2


async def test_early_writes() -> None:
    """A command of sixteen calls is written before the end of the loop iteration, with those before it."""
    session = Session()
    session.wire.call("PING")
    session.wire.pipeline.call_open(Recording())
    session.wire.pipeline.seal(15)
    assert len(session.pipe.writes) == 1
    session.wire.call("PING")
    assert len(session.pipe.writes) == 2 and session.wire.pending == 3


async def test_pause_between_call_and_write() -> None:
    """A pause between a call and its write holds the write back."""
    session = Session()
    session.wire.call("GET", "k")
    session.wire.call("PING")
    session.wire.pause_writing()
    await turns()
    assert len(session.pipe.writes) == 1
    session.wire.resume_writing()
    await turns(1)
    assert len(session.pipe.writes) == 2


async def test_reply_sinks_and_futures() -> None:
    """A reply sink gets its reply within data_received(), in order; callbacks of futures run later."""
    session = Session()
    first, last = Recording(), Recording()
    session.wire.pipeline.call_open(first)
    between = session.wire.call("PING")
    session.wire.pipeline.call_open(last)
    await turns(1)
    session.feed(b":1\r\n:2\r\n-ERR odd\r\n")
    assert first.results == [1] and between.result() == 2
    [error] = last.results
    assert isinstance(error, ReplyError)


async def test_reply_sinks_at_the_end() -> None:
    """At the end a reply sink learns whether its command was written. Later commands fail at once."""
    session = Session()
    written, unwritten, late = Recording(), Recording(), Recording()
    session.wire.pipeline.call_open(written)
    session.wire.pipeline.call_open(unwritten)
    session.wire.connection_lost(OSError("cable"))
    session.wire.pipeline.call_open(late)
    assert [type(answer.results[0]) for answer in (written, unwritten, late)] == [NoAnswer, NotSent, NotSent]
    assert all(len(answer.results) == 1 for answer in (written, unwritten, late))


async def test_reply_future_of_the_caller() -> None:
    """The caller's own future gets the reply or the error, or stays pending in what is in flight."""

    class Owned(asyncio.Future[Any]):
        """A future that could name its owner."""

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
    """An argument that cannot be packed is an error at the caller. Nothing is sent."""
    session = Session()
    with pytest.raises(TypeError):
        session.wire.call("SET", "k", object())  # type: ignore[arg-type]
    await turns(2)
    assert session.pipe.writes == []
    assert session.wire.pending == 0


@pytest.mark.parametrize("subscriber", [False, True])
@pytest.mark.parametrize("written", [False, True])
async def test_cancelled_command_keeps_its_place(written: bool, subscriber: bool) -> None:
    """A command that is cancelled, written or not, still gets its reply; the others get their own."""
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


@contextlib.contextmanager
def no_noise() -> Iterator[None]:
    """Fail if the loop logs an exception that was never retrieved."""
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context))
    yield
    gc.collect()
    assert noise == []


async def test_errors_nobody_awaits_are_not_logged() -> None:
    """Errors of commands whose futures are never awaited are not logged."""
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


@pytest.mark.parametrize("interrupted", ["call", "pack"])
async def test_abort_after_an_interrupted_call(interrupted: str) -> None:
    """After a call that a signal interrupted, the connection still ends, and every future fails."""
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


# Commands of an earlier connection.


async def left(session: Session) -> list[InFlight]:
    """End the connection and return what it leaves in flight."""
    session.wire.keeps_unanswered = True
    session.pipe.lose(OSError("cable"))
    await session.ended.wait()
    return session.wire.unanswered


async def test_resend_behind_commands_in_flight() -> None:
    """They are written behind the commands that were called before, and each gets its own reply."""
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
async def test_refusal_of_a_command_written_before(subscriber: bool) -> None:
    """An error reply is NoAnswer for a command that was written before, and an answer for all others."""
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
    assert caught.value.resend is None


REDIRECTS = [
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN The cluster is down",
]


@pytest.mark.parametrize("subscriber", [False, True])
@pytest.mark.parametrize("text", REDIRECTS)
async def test_redirect_of_a_command_written_before(subscriber: bool, text: str) -> None:
    """The command is in the error, and can be sent once more, as often as it is redirected."""
    first = Session()
    sink = Recording()
    sink.count = 3
    first.wire.pipeline.call_open(sink)
    [in_flight] = await left(first)
    for _ in range(2):
        session = Session(subscriber=subscriber)
        before = session.wire.call("SET", 1)
        session.wire.pipeline.resend([in_flight])
        await turns(1)
        session.feed(encode(ReplyError(text)) * 2)
        with pytest.raises(ReplyError, match=text.split()[0]):
            await before
        error = sink.results.pop()
        assert isinstance(error, NoAnswer) and isinstance(error.__cause__, ReplyError)
        again = error.resend
        assert again == (sink.pack(), sink, True, 3)
        assert sink.results == []
        copied = copy_error(error)
        assert isinstance(copied, NoAnswer) and copied.resend == again
        assert again is not None
        in_flight = again
    session = Session()
    session.wire.pipeline.resend([in_flight])
    session.feed(b"+PONG\r\n")
    assert sink.results == [b"PONG"]


async def test_redirect_of_a_command_that_was_not_written_before() -> None:
    """It is an answer like any other error: the server has not executed the command."""
    session = Session()
    sink = Recording()
    session.wire.pipeline.call_open(sink)
    session.feed(b"-MOVED 3999 127.0.0.1:6381\r\n")
    [error] = sink.results
    assert isinstance(error, ReplyError)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("MOVED 3999 127.0.0.1:6381", (3999, "127.0.0.1", 6381)),
        ("MOVED 0 node-1.example:6379", (0, "node-1.example", 6379)),
        ("MOVED 12067 :25719", (12067, "", 25719)),
        ("MOVED 16383 ::1:6381", (16383, "::1", 6381)),
        ("MOVED 16383 2001:db8::a:6381", (16383, "2001:db8::a", 6381)),
        ("MOVED 12067 ?:25719", None),
        ("MOVED 12067 25719", None),
        ("MOVED 12067", None),
        ("MOVED", None),
        ("MOVED twelve 127.0.0.1:6381", None),
        ("MOVED 12067 127.0.0.1:", None),
        ("ASK 3999 127.0.0.1:6381", None),
        ("MOVEDON 3999 127.0.0.1:6381", None),
        ("", None),
    ],
)
def test_address_in_moved(text: str, address: tuple[int, str, int] | None) -> None:
    """Slot, host and port come from a MOVED, whatever kind of address the node announces."""
    assert moved_to(ReplyError(text)) == address


def test_redirects() -> None:
    """The first word of an error decides whether it is a redirect."""
    assert all(is_redirect(ReplyError(text)) for text in [*REDIRECTS, "CLUSTERDOWN"])
    others = [
        "",
        "ERR MOVED",
        "MOVEDON 1",
        "CROSSSLOT Keys in request don't hash to the same slot",
        "moved 1 :1",
    ]
    assert not any(is_redirect(ReplyError(text)) for text in others)


async def test_written_marks_when_the_connection_ends_again() -> None:
    """Each command keeps whether any connection has written it, whatever is in flight beside it."""
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
    """They fail at once, as NoAnswer or NotSent, since no reply can come."""
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


# Work.


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer changes what is counted")
async def test_work_per_command() -> None:
    """Each of 1000 pipelined commands costs one Python call besides its future. A write carries sixteen."""
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
    # Making an asyncio.Future calls get_debug() of its loop, which is a Python function.
    futures = python_calls(lambda: [asyncio.Future(loop=session.wire._loop) for _ in range(1000)])
    # A write costs six calls: plan, pack, note the time, and hand over.
    assert sending - futures <= 1010 + 6 * writes
    assert reading <= 10
