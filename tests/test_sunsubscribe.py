"""Sharded subscriptions on a connection: they end unasked, and a PING answers SUNSUBSCRIBE."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from hiredis import ReplyError, pack_command
from hypothesis import given, settings
from hypothesis import strategies as st

from channels_asyncq.bus.resp.replies import NoAnswer, NotSent
from tests.wires import Session, encode, python_calls, turns
from tests.wires import no_haste as no_haste

MOVED = ReplyError("MOVED 3999 127.0.0.1:6381")
BUSY = ReplyError("BUSY Redis is busy running a script.")
MISCONF = ReplyError(
    "MISCONF Redis is configured to save RDB snapshots, but it is unable to persist to disk."
)
NO_PING = ReplyError("NOPERM User reader has no permissions to run the 'ping' command")
NO_SUNSUBSCRIBE = ReplyError("NOPERM User reader has no permissions to run the 'sunsubscribe' command")


def packed(*command: bytes) -> bytes:
    data: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub says: a tuple of one
    return data


def ended(topic: bytes, count: int = 0) -> bytes:
    return encode([b"sunsubscribe", topic, count])


def pushed(topic: bytes, payload: bytes) -> bytes:
    return encode([b"smessage", topic, payload])


# Unasked.


async def test_unasked_at_every_split() -> None:
    """Wherever the stream is cut, the end of a subscription goes to the handler in order, and answers nothing."""
    stream = b"".join(
        [
            pushed(b"x", b"1"),
            ended(b"x", 1),
            encode([b"ssubscribe", b"y", 1]),
            ended(b"y"),
            pushed(b"z", b"2"),
            encode([b"unsubscribe", b"sunsubscribe", 0]),
        ]
    )
    for cut in range(len(stream) + 1):
        session = Session(subscriber=True)
        futures = [session.wire.call("SSUBSCRIBE", "y"), session.wire.call("UNSUBSCRIBE", "sunsubscribe")]
        await turns(1)
        for part in (stream[:cut], stream[cut:]):
            session.feed(part)
        assert session.seen == [(b"x", b"1"), (b"z", b"2")]
        assert session.unsubscribed == [(1, b"x"), (1, b"y")]
        assert [(await future)[0] for future in futures] == [b"ssubscribe", b"unsubscribe"]
        assert (session.wire.arrived[0], session.wire.replies, session.wire.pending) == (2, 2, 0)


async def test_unasked_waits_behind_a_held_message() -> None:
    """A message that arrived before the end of its subscription is handed on before it."""
    session = Session(subscriber=True)
    holds = iter([False, False])
    session.take = lambda topic, payload: next(holds, True)
    session.feed(pushed(b"x", b"1") + ended(b"x") + pushed(b"y", b"2"))
    session.wire.resume()
    await turns()
    assert session.unsubscribed == []
    session.wire.resume()
    await turns()
    assert session.unsubscribed == [(1, b"x")]
    assert session.seen == [(b"x", b"1"), (b"y", b"2")]


async def test_unasked_before_the_end_of_the_connection() -> None:
    """What arrived before the end of the connection is handed on before on_lost() is called."""
    session = Session(subscriber=True)
    holds = iter([False])
    session.take = lambda topic, payload: next(holds, True)
    session.feed(pushed(b"x", b"1") + ended(b"x"))
    session.pipe.lose(OSError("cable"))
    await turns()
    assert (session.unsubscribed, session.lost) == ([], [])
    session.wire.resume()
    await session.ended.wait()
    assert session.unsubscribed == [(1, b"x")]


async def test_unasked_while_closing() -> None:
    """While the connection is closed, the handler is not called any more. Replies still arrive."""
    session = Session(subscriber=True)
    future = session.wire.sunsubscribe(b"x")
    closing = asyncio.ensure_future(session.wire.close())
    await turns()
    session.feed(ended(b"y") + ended(b"x") + encode(b"x"))
    await closing
    assert future.done() and future.exception() is None
    assert (session.unsubscribed, session.lost) == ([], [None])


@pytest.mark.parametrize("act", ["abort", "raise"])
async def test_end_from_inside_on_unsubscribed(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """on_unsubscribed() may abort the connection. An error in it ends the connection, too."""
    session = Session(subscriber=True)

    def on_unsubscribed(topic: bytes) -> None:
        if act == "raise":
            raise OSError("enough")
        session.wire.abort(OSError("enough"))

    monkeypatch.setattr(session, "on_unsubscribed", on_unsubscribed)
    session.feed(ended(b"x") + pushed(b"y", b"1"))
    await session.ended.wait()
    assert session.seen == []
    assert [str(error) for error in session.lost] == ["enough"]


@pytest.mark.parametrize(
    "array", [[b"sunsubscribe"], [b"sunsubscribe", b"x"], [b"sunsubscribe", None, 0], [b"sunsubscribe", 1, 0]]
)
async def test_malformed(array: list[Any]) -> None:
    """An array of another shape ends the connection, and the error quotes it."""
    session = Session(subscriber=True)
    future = session.wire.call("PING")
    session.feed(encode(array))
    await session.ended.wait()
    assert repr(array) in str(session.lost[0])
    with pytest.raises(NoAnswer):
        await future


# Asked.


@pytest.mark.parametrize("pong", [[b"pong", b"x"], b"x"], ids=["subscribed", "none left"])
@pytest.mark.parametrize(
    ("before", "topics"),
    [
        ([ended(b"x", 1)], [b"x"]),
        ([encode(MOVED)], []),
        ([ended(b"x"), encode(MOVED)], [b"x"]),
        ([ended(b"x", 1), ended(b"inbox"), encode(MOVED)], [b"x", b"inbox"]),
        ([encode(MOVED), ended(b"y")], [b"y"]),
        ([encode(BUSY)], []),
        ([encode(NO_SUNSUBSCRIBE)], []),
    ],
    ids=["confirmed", "moved before", "moved", "moved, two topics", "another later", "busy", "no permission"],
)
async def test_answered_by_the_pong(before: list[bytes], topics: list[bytes], pong: Any) -> None:
    """The future is done with the pong, whatever came before. The commands around it get their own replies."""
    session = Session(subscriber=True)
    first = session.wire.call("SSUBSCRIBE", "y")
    future = session.wire.sunsubscribe(b"x")
    last = session.wire.call("SSUBSCRIBE", "z")
    await turns(1)
    session.feed(encode([b"ssubscribe", b"y", 2]))
    for part in before:
        session.feed(part)
        assert (session.wire.pending, session.wire.replies) == (2, 1)
    assert not future.done()
    session.feed(encode(pong))
    assert future.done() and (session.wire.pending, session.wire.replies) == (1, 2)
    session.feed(encode([b"ssubscribe", b"z", 1]))
    assert [await first, await future, await last] == [
        [b"ssubscribe", b"y", 2],
        pong,
        [b"ssubscribe", b"z", 1],
    ]
    assert [topic for _, topic in session.unsubscribed] == topics
    assert session.wire.pipeline.unanswered_bytes == 0
    assert not session.wire.is_lost


@pytest.mark.parametrize(
    "replies",
    [
        [ended(b"x"), encode(MISCONF)],
        [ended(b"x"), encode(NO_PING)],
        [encode(BUSY), encode(BUSY)],
        [ended(b"x"), encode(MOVED), encode(MISCONF)],
        [encode(NO_SUNSUBSCRIBE), encode(NO_PING)],
    ],
    ids=["cannot save", "no PING", "busy", "moved, cannot save", "no permission"],
)
async def test_refused_ping(replies: list[bytes]) -> None:
    """A server that refuses the PING has answered: the future has its error, and the next command its reply."""
    session = Session(subscriber=True)
    future, last = session.wire.sunsubscribe(b"x"), session.wire.call("SSUBSCRIBE", "z")
    await turns(1)
    session.feed(b"".join(replies))
    with pytest.raises(ReplyError):
        await future
    session.feed(encode([b"ssubscribe", b"z", 1]))
    assert await last == [b"ssubscribe", b"z", 1]


@pytest.mark.parametrize(
    "reply", [[b"pong", b"y"], b"y", "PONG", [b"pong", b""], 1, None, [], [b"ssubscribe", b"z", 1]]
)
@pytest.mark.parametrize("is_moved", [False, True])
async def test_another_reply_in_its_place(reply: Any, is_moved: bool) -> None:
    """A reply that is not its pong ends the connection: replies and commands do not fit any more."""
    session = Session(subscriber=True)
    future, last = session.wire.sunsubscribe(b"x"), session.wire.call("SSUBSCRIBE", "z")
    await turns(1)
    session.feed(encode(MOVED) * is_moved + encode(reply))
    for each in (future, last):
        with pytest.raises(NoAnswer, match="the server sent what no command asked for"):
            await each
    assert isinstance(session.lost[0], ConnectionAbortedError)


async def test_error_without_a_command() -> None:
    """Once the pong has come, an error that no command waits for ends the connection as ever."""
    session = Session(subscriber=True)
    future = session.wire.sunsubscribe(b"x")
    session.feed(ended(b"x") + encode(b"x") + encode(MOVED))
    assert await future == b"x"
    await session.ended.wait()
    assert isinstance(session.lost[0], ConnectionAbortedError)


async def test_several_in_flight() -> None:
    """Each has an error and a pong of its own, also those for one topic."""
    session = Session(subscriber=True)
    futures = [session.wire.sunsubscribe(topic) for topic in (b"x", b"x", b"y")]
    await turns(1)
    pongs = [encode([b"pong", b"x"]), encode([b"pong", b"x"]), encode(b"y")]
    for future, pong in zip(futures, pongs, strict=True):
        session.feed(encode(MOVED))
        assert not future.done()
        session.feed(pong)
        assert future.done()
    assert session.unsubscribed == []


async def test_written_together() -> None:
    """SUNSUBSCRIBE and PING are one write and one command of the pipeline."""
    session = Session(subscriber=True)
    session.wire.sunsubscribe(b"x")
    both = packed(b"SUNSUBSCRIBE", b"x") + packed(b"PING", b"x")
    assert session.pipe.writes == [both]
    assert (session.wire.pending, session.wire.pipeline.unanswered_bytes) == (1, len(both))
    session.wire.call("SSUBSCRIBE", "x")
    session.wire.sunsubscribe(b"x")
    await turns(1)
    assert session.pipe.writes[1:] == [packed(b"SSUBSCRIBE", b"x") + both]
    assert session.wire.pending == 3


async def test_capacity() -> None:
    """It counts as one call: its dropped error frees no place for another one, its pong does."""
    session = Session(subscriber=True, max_pending=1)
    session.wire.sunsubscribe(b"x")
    assert not session.wire.pipeline.has_capacity
    session.feed(encode(MOVED))
    assert not session.wire.pipeline.has_capacity
    session.feed(encode(b"x"))
    assert session.wire.pipeline.has_capacity


async def test_cancelled() -> None:
    """One that is cancelled keeps its place: its error and its pong are thrown away."""
    session = Session(subscriber=True)
    future, last = session.wire.sunsubscribe(b"x"), session.wire.call("SSUBSCRIBE", "z")
    future.cancel()
    await turns(1)
    session.feed(encode(MOVED) + encode(b"x") + encode([b"ssubscribe", b"z", 1]))
    assert await last == [b"ssubscribe", b"z", 1]
    assert future.cancelled()


async def test_lost() -> None:
    """At the end of the connection it was sent and not answered, or not sent."""
    session = Session(subscriber=True)
    written = session.wire.sunsubscribe(b"x")
    session.feed(encode(MOVED))
    unwritten = session.wire.sunsubscribe(b"y")
    session.wire.connection_lost(OSError("cable"))
    late = session.wire.sunsubscribe(b"z")
    with pytest.raises(NoAnswer, match="cable"):
        await written
    for future in (unwritten, late):
        with pytest.raises(NotSent, match="cable"):
            await future


# Any order.

TOPICS = [b"x", b"y", b"z"]


class ModelServer:
    """
    A server whose slots move, one connection to it, and what its client must get for each command.

    A topic whose slot has moved is refused until the slot is back.
    """

    def __init__(self) -> None:
        self.subscribed: list[bytes] = []
        self.away: set[bytes] = set()
        self.stream: list[bytes] = []
        #: The expected outcome of each command, messages, and ends with the number of messages before.
        self.outcomes: list[Any] = []
        self.messages: list[tuple[bytes, bytes]] = []
        self.ends: list[tuple[int, bytes]] = []

    def _end(self, topic: bytes) -> None:
        if topic in self.subscribed:
            self.subscribed.remove(topic)
        self.ends.append((len(self.messages), topic))
        self.stream.append(ended(topic, len(self.subscribed)))

    def _reply(self, value: Any) -> None:
        self.outcomes.append(str(value) if isinstance(value, ReplyError) else value)
        self.stream.append(encode(value))

    def publish(self, topic: bytes, payload: bytes) -> None:
        self.messages.append((topic, payload))
        self.stream.append(pushed(topic, payload))

    def move(self, topic: bytes) -> None:
        """Move a slot away, or back."""
        if topic in self.away:
            self.away.remove(topic)
            return
        self.away.add(topic)
        if topic in self.subscribed:
            self._end(topic)

    def ssubscribe(self, topic: bytes) -> None:
        if topic in self.away:
            self._reply(MOVED)
            return
        if topic not in self.subscribed:
            self.subscribed.append(topic)
        self._reply([b"ssubscribe", topic, len(self.subscribed)])

    def sunsubscribe(self, topic: bytes) -> None:
        if topic in self.away:
            self.stream.append(encode(MOVED))
        else:
            self._end(topic)  # the server confirms it also if there was no subscription
        self.ping(topic)

    def ping(self, token: bytes) -> None:
        self._reply([b"pong", token] if self.subscribed else token)


steps = st.lists(
    st.tuples(
        st.sampled_from(["publish", "move", "ssubscribe", "sunsubscribe", "ping"]), st.sampled_from(TOPICS)
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=300)
@given(steps=steps, data=st.data())
def test_any_order_in_any_pieces(steps: list[tuple[str, bytes]], data: st.DataObject) -> None:
    """Whatever moves meanwhile, and wherever reads end, all is in order and each future has its own reply."""
    server = ModelServer()
    calls: list[tuple[str, bytes]] = []
    for number, (step, topic) in enumerate(steps):
        if step == "publish":
            server.publish(topic, b"%d" % number)
        elif step == "move":
            server.move(topic)
        else:
            getattr(server, step)(topic)
            calls.append((step, topic))
    stream = b"".join(server.stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    holds = iter(data.draw(st.lists(st.booleans(), max_size=20)))
    cancelled = data.draw(st.sets(st.integers(0, len(calls))))

    async def run() -> None:
        session = Session(subscriber=True)
        session.take = lambda topic, payload: next(holds, True)
        futures = []
        for number, (step, topic) in enumerate(calls):
            if step == "sunsubscribe":
                futures.append(session.wire.sunsubscribe(topic))
            else:
                futures.append(session.wire.call(step, topic))
            if number in cancelled:
                futures[-1].cancel()
        await turns(1)
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            session.feed(stream[start:end])
        while not session.pipe.reading:
            session.wire.resume()
            await turns(2)
        assert session.lost == []
        assert (session.seen, session.unsubscribed) == (server.messages, server.ends)
        assert (session.wire.pending, session.wire.replies) == (0, len(calls))
        assert session.wire.pipeline.unanswered_bytes == 0
        for number, (future, expected) in enumerate(zip(futures, server.outcomes, strict=True)):
            if number in cancelled:
                assert future.cancelled()
            elif (error := future.exception()) is not None:
                assert str(error) == expected
            else:
                assert future.result() == expected

    asyncio.run(run())


# Work.


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer changes what is counted")
async def test_work_per_message_beside_a_sunsubscribe() -> None:
    """An smessage costs one Python call, as a message does: on_message()."""
    session = Session(subscriber=True)
    stream = b"".join(pushed(b"x", b"%d" % number) for number in range(1000)) + ended(b"x")
    # on_message() of the test calls another function.
    assert python_calls(lambda: session.feed(stream)) <= 2 * 1000 + 20
    assert session.unsubscribed == [(1000, b"x")]
