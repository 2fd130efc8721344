"""
A proxy before a real server, which answers badly where a test says so.

    async with RespServer(redis_server) as server:
        server.script("EVALSHA", error("OOM command not allowed when used memory > 'maxmemory'."))
        ...                                     # layers on server.url; the next EVALSHA is refused
        server.always("PUBLISH", error("READONLY You can't write against a read only replica."))
        server.restore("PUBLISH")

The real server answers what is not scripted. There is no scripted server beside it: what no healthy server says
(LOADING, NOAUTH, silence, garbage) is a scripted answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hiredis import Reader, ReplyError, pack_command

import channels_asyncq
from channels_asyncq.testing import EmbeddedServer

#: The package's scripts by their first lines; in what follows constants may be put in.
SCRIPTS = {
    path.read_bytes().splitlines()[0]: path.stem.upper().removeprefix("TAKE_")
    for path in Path(channels_asyncq.__file__).parent.glob("bus/redis/scripts/*.lua")
}
#: Those by which a session comes and goes: they do not count as EVALSHA.
LEASES = ("LEASE", "LEAVE")


def encode(value: object) -> bytes:
    """Return a reply as it goes over the wire; `str` is a simple string, `bytes` a bulk string."""
    match value:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % value
        case str():
            return b"+%b\r\n" % value.encode()
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case ReplyError():
            return b"-%b\r\n" % str(value).encode()
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(encode, value))
    raise TypeError(f"no reply can hold {value!r}")


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What a command gets in place of the server's reply, or around it. Made by the functions below.

    Attributes:
        executes: the server executes the command.
        data: these bytes in place of its reply.
        part: this share of the reply is sent.
        closes: the connection is closed after it.
        falls_silent: it is the last; the connection stays open, and nothing is executed after it.
        waits_for: the reply is held back until this is set, and so is what follows on the connection.
    """

    executes: bool = True
    data: bytes | None = None
    part: float = 1
    closes: bool = False
    falls_silent: bool = False
    waits_for: asyncio.Event | None = None


def error(text: str) -> Answer:
    """Refuse: `LOADING ...`, `READONLY ...`, `NOAUTH ...`, `NOPERM ...`, `OOM ...`. Nothing is executed."""
    return reply(ReplyError(text))


def reply(value: object) -> Answer:
    """Answer this; nothing is executed."""
    return Answer(executes=False, data=encode(value))


def half(*, closes: bool = False) -> Answer:
    """Execute, and send the first half of the reply, then nothing more, or the end of the connection."""
    return Answer(part=0.5, closes=closes, falls_silent=not closes)


def silence(*, executes: bool = True) -> Answer:
    """Say nothing, now and later; the connection stays open."""
    return Answer(executes, part=0, falls_silent=True)


def close(*, executes: bool = True) -> Answer:
    """Close the connection in place of answering."""
    return Answer(executes, part=0, closes=True)


def after(event: asyncio.Event) -> Answer:
    """Execute, and answer when `event` is set. What comes later on the connection waits behind it."""
    return Answer(waits_for=event)


@dataclass(slots=True)
class Ending:
    """
    A SUNSUBSCRIBE that is executed: an array confirms it, which also comes unasked, or an error.

    Attributes:
        is_confirmed: the array has come; if it came unasked, an error comes, too.
    """

    topic: bytes
    answer: Answer
    is_confirmed: bool = False

    @property
    def executes(self) -> bool:
        return True


class Connection(asyncio.Protocol):
    """A client's connection, with one to the real server behind it."""

    def __init__(self, server: RespServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._real = socket.create_connection((server.real.host, server.real.port))
        self._loop.add_reader(self._real, self._read)
        self._commands, self._replies = Reader(), Reader()
        #: The answers to the commands that have none yet, in order.
        self._owed: deque[Answer | Ending] = deque()
        #: A reply that is held back with what follows, and what that waits for.
        self._held: list[bytes] = []
        self._waiting: asyncio.Task[bool] | None = None
        #: Commands are not executed any more; then nothing is said any more either.
        self._is_deaf = self._is_silent = False
        self.is_subscriber = False
        self.end: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.append(self)
        if self._server.listener is None:
            self.abort()  # it was accepted just before the end

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._loop.remove_reader(self._real)
        self._real.close()
        self._server.connections.remove(self)
        self.end.set_result(None)

    def abort(self) -> None:
        """End it without a word."""
        self._transport.abort()

    def say(self, value: object) -> None:
        """Send this to a subscriber unasked: `[b"sunsubscribe", topic, 0]`, as when the slot of a topic moves."""
        self._write(encode(value))

    def data_received(self, data: bytes) -> None:
        self._commands.feed(data)
        passed = []
        while isinstance(command := self._commands.gets(), list):
            name = self._server.note(command)
            if not self._is_deaf:
                self.is_subscriber |= name in ("SUBSCRIBE", "SSUBSCRIBE")
                answer = self._server.answer_for(name, command[1:]) or Answer()
                is_ending = name == "SUNSUBSCRIBE" and answer.executes
                self._owed.append(Ending(command[1], answer) if is_ending else answer)
                self._is_deaf = answer.closes or answer.falls_silent
                if answer.executes:
                    passed.append(pack_command(tuple(command)))
        if passed:
            self._real.sendall(b"".join(passed))
        self._answer_what_is_not_executed()

    def _read(self) -> None:
        """Pass on what the real server says: replies, and messages of topics."""
        data = self._real.recv(1 << 16)
        if not data:
            self.abort()
            return
        self._replies.feed(data)
        while (value := self._replies.gets()) is not False:
            kind = value[0] if self.is_subscriber and isinstance(value, list) and value else None
            if kind in (b"message", b"smessage"):
                self._write(encode(value))
            elif kind == b"sunsubscribe":
                self._end_subscription(value)
            else:
                self._answer(self._owed_by(value), encode(value))
            self._answer_what_is_not_executed()

    def _end_subscription(self, value: list[Any]) -> None:
        """Pass on a `sunsubscribe` array: it confirms a command, or comes unasked."""
        ending = self._owed[0] if self._owed else None
        if not isinstance(ending, Ending) or ending.topic != value[1] or ending.is_confirmed:
            self._write(encode(value))
            return
        if self._is_deaf and len(self._owed) == 1:
            self._owed.popleft()  # nothing comes after it
        ending.is_confirmed = True
        self._answer(ending.answer, encode(value))

    def _owed_by(self, value: object) -> Answer:
        """Return the answer that a reply is for. An error behind the end of a subscription is SUNSUBSCRIBE's."""
        while isinstance(owed := self._owed.popleft(), Ending):
            if isinstance(value, ReplyError):
                return Answer() if owed.is_confirmed else owed.answer
        return owed

    def _answer_what_is_not_executed(self) -> None:
        while self._owed:
            owed = self._owed[0]
            if isinstance(owed, Ending):
                # Otherwise the next reply tells: an error is that of a SUNSUBSCRIBE whose array came unasked.
                is_over = owed.is_confirmed and len(self._owed) > 1 and not self._owed[1].executes
                if not is_over:
                    break
                self._owed.popleft()
            elif owed.executes:
                break
            else:
                self._owed.popleft()
                self._answer(owed, b"")

    def _answer(self, answer: Answer, data: bytes) -> None:
        if answer.data is not None:
            data = answer.data
        if answer.waits_for is not None:
            self._waiting = self._loop.create_task(answer.waits_for.wait())
            self._waiting.add_done_callback(self._release)
        self._write(data[: int(len(data) * answer.part)])
        self._is_silent = self._is_deaf and not self._owed
        if answer.closes:
            self._transport.close()

    def _release(self, waiting: asyncio.Task[bool]) -> None:
        if not waiting.cancelled():
            self._waiting = None
            self._write(b"".join(self._held))
            self._held.clear()

    def _write(self, data: bytes) -> None:
        if self._waiting is not None:
            self._held.append(data)
        elif not self._is_silent and not self._transport.is_closing():
            self._transport.write(data)


class RespServer:
    """
    The proxy: an asynchronous context manager, on a free port of 127.0.0.1.

    Attributes:
        real: the server behind it.
        commands: every command received, name in capitals first, in order.
        connections: those that are open.
    """

    def __init__(self, real: EmbeddedServer) -> None:
        self.real = real
        self.port = 0
        self.commands: list[tuple[Any, ...]] = []
        self.connections: list[Connection] = []
        self._next: defaultdict[str, deque[Answer | None]] = defaultdict(deque)
        self._always: dict[str, Answer] = {}
        self._scripts: dict[bytes, str] = {}
        self.listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after `stop()` on the same port again."""
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port)
        self.port = self.listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, cut every connection and wait until they are gone. The real server goes on."""
        if self.listener is not None:
            listener, self.listener = self.listener, None
            listener.close()
            self.cut()
            await asyncio.gather(*(connection.end for connection in self.connections))
            await listener.wait_closed()

    def cut(self) -> None:
        """End every connection without a word."""
        for connection in self.connections:
            connection.abort()

    def script(self, name: str, *answers: Answer | None) -> None:
        """
        Give the next commands NAME these answers, one each; None is the real one. Then as `always()` says.

        EVALSHA also goes by the name of its script, which comes first; LEASE and LEAVE only by theirs.
        """
        self._next[name.upper()].extend(answers)

    def always(self, name: str, answer: Answer) -> None:
        """Give every command NAME this answer. Here and in `script()`, `*` is any command without its own."""
        self._always[name.upper()] = answer

    def restore(self) -> None:
        """Let the real server answer everything again."""
        self._next.clear()
        self._always.clear()

    def answer_for(self, name: str, arguments: Sequence[bytes]) -> Answer | None:
        """The answer that `script()` or `always()` has for a command."""
        names = [self.kind_of(name, arguments), name, "*"]
        for candidate in names:
            if self._next[candidate]:
                return self._next[candidate].popleft()
        return next((self._always[candidate] for candidate in names if candidate in self._always), None)

    def kind_of(self, name: str, arguments: Sequence[bytes]) -> str:
        """The name of a command; of EVALSHA that of its script, in capitals."""
        return self._scripts.get(arguments[0], name) if name == "EVALSHA" else name

    def note(self, command: list[bytes]) -> str:
        """Record a command that was received, and return its name."""
        name = command[0].upper().decode()
        kind = self.kind_of(name, command[1:2])
        if kind in LEASES:
            name = kind
        self.commands.append((name, *command[1:]))
        if command[:2] == [b"SCRIPT", b"LOAD"]:
            sha = hashlib.sha1(command[2], usedforsecurity=False).hexdigest().encode()
            self._scripts[sha] = SCRIPTS.get(command[2].splitlines()[0], "EVALSHA")
        return name

    def received(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every command NAME so far."""
        return [tuple(arguments) for command, *arguments in self.commands if command == name.upper()]
