"""The messages of a subscriber's connection: held, offered again, in slices, and before its end."""

from __future__ import annotations

import asyncio
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels_asyncq.bus.resp import reader
from channels_asyncq.bus.resp.replies import NoAnswer, NotSent
from channels_asyncq.slices import SLICE
from tests.wires import Session, encode, message, messages, python_calls, turns
from tests.wires import no_haste as no_haste


def in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in slices, as without no_haste()."""
    monkeypatch.setattr(reader, "_READ_SECONDS", SLICE)


def subscriber_stream() -> tuple[bytes, int, list[tuple[bytes, bytes]]]:
    """Return a stream of messages and replies, the number of replies, and the messages."""
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


async def test_malformed_message() -> None:
    """A message array of another length ends the connection, as other garbage does."""
    session = Session(subscriber=True)
    session.feed(encode([b"message", b"topic"]))
    await session.ended.wait()
    assert isinstance(session.lost[0], ValueError)


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer changes what is counted")
async def test_work_per_message() -> None:
    """A message costs one Python call: on_message()."""
    session = Session(subscriber=True)
    stream = b"".join(map(message, range(1000)))
    # on_message() of the test calls another function.
    assert python_calls(lambda: session.feed(stream)) <= 2 * 1000 + 200


# Held messages.


async def test_hold_in_every_position() -> None:
    """A held message holds back everything behind it, replies too, and is offered again first."""
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
    """resume_now() offers the held message before it returns, unless resume() was called before."""
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


async def test_resume_now_after_the_end() -> None:
    """After the end of the connection resume_now() delivers nothing; a later loop iteration does."""
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
    """Wherever reads end and messages are held, each message is taken exactly once and in order."""
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
    """Messages and replies that came before the end are handed on before on_lost() is called."""
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
    """on_lost() is called after the timeout if the owner never resumes."""
    session = Session(subscriber=True, timeout=0.02)
    session.take = lambda topic, payload: False
    session.feed(message(0))
    session.pipe.lose(None)
    await session.ended.wait()
    session.wire.resume()
    await turns()
    assert session.seen == []


async def test_lost_while_held_with_garbage_behind() -> None:
    """Garbage behind a held message ends the delivery after the end; on_lost() is called once."""
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
    """After abort() nothing is delivered, whether the connection had ended before or not."""
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


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("take", [False, True])
async def test_abort_from_inside_on_message(held: bool, take: bool) -> None:
    """on_message() may abort the connection."""
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
    """An error in on_message() ends the connection with that error."""
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


# Slices.


async def test_reader_yields(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 3 ms of delivering the other callbacks of the loop run. Nothing is lost or reordered."""
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
    """Thousands of confirmations that arrive together are handed on in slices, too."""
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


async def test_callbacks_of_replies_have_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 512 confirmations their callbacks run, however fast they were read."""
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
    """A connection that ends while messages wait delivers them before on_lost() is called."""
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
