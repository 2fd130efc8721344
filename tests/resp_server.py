"""
A small Redis for tests: asyncio, RESP2, scripted to answer as badly as a newcomer's server would.

    async with RespServer() as server:
        server.script("EVALSHA", error("OOM command not allowed when used memory > 'maxmemory'."))
        ...                                     # layers on server.url; the next EVALSHA is refused
        server.always("PUBLISH", error("READONLY You can't write against a read only replica."))
        server.restore("PUBLISH")

Connections share one `RespServer`: its keys, its subscribers, what it was sent and what it is told to answer. Lua
is not run: a script that is loaded is recognised by its text and answered by a Python function (`SCRIPTS`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from types import TracebackType
from typing import Any, Self

from hiredis import Reader

__all__ = [
    "SCRIPTS",
    "Answer",
    "RespServer",
    "after",
    "close",
    "error",
    "half",
    "reply",
    "silence",
]


class Error(Exception):
    """An error reply; its text begins with the code."""


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
        case Error():
            return b"-%b\r\n" % str(value).encode()
        case list() | tuple():
            return b"*%d\r\n" % len(value) + b"".join(map(encode, value))
    raise TypeError(f"no reply can hold {value!r}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command gets in place of its own reply, or around it. Made by the functions below."""

    #: These bytes in place of the reply; None is the command's own.
    data: bytes | None = None
    #: Whether the command is executed all the same.
    executes: bool = False
    #: Send so much of the reply; None is all of it.
    part: float | None = None
    #: Close the connection after it.
    closes: bool = False
    #: Say nothing more on this connection, and read nothing.
    falls_silent: bool = False
    #: Answer, on this connection, only when this is set.
    waits_for: asyncio.Event | None = None


def error(text: str) -> Answer:
    """Refuse: `LOADING ...`, `READONLY ...`, `NOAUTH ...`, `NOPERM ...`, `OOM ...`. Nothing is executed."""
    return Answer(encode(Error(text)))


def reply(value: object) -> Answer:
    """Answer this; nothing is executed."""
    return Answer(encode(value))


def half(*, closes: bool = False, executes: bool = True) -> Answer:
    """Answer the first half of the reply, then nothing more, or the end of the connection."""
    return Answer(part=0.5, executes=executes, closes=closes, falls_silent=not closes)


def silence(*, executes: bool = True) -> Answer:
    """Say nothing, now and later; the connection stays open."""
    return Answer(part=0, executes=executes, falls_silent=True)


def close(*, executes: bool = True) -> Answer:
    """Close the connection in place of answering."""
    return Answer(part=0, executes=executes, closes=True)


def after(event: asyncio.Event) -> Answer:
    """Execute, and answer when `event` is set. What comes later on the connection waits behind it."""
    return Answer(executes=True, waits_for=event)


@dataclass
class State:
    """The keys. What has expired is not there."""

    strings: dict[bytes, bytes] = field(default_factory=dict)
    lists: dict[bytes, list[bytes]] = field(default_factory=dict)
    hashes: dict[bytes, dict[bytes, bytes]] = field(default_factory=dict)
    scores: dict[bytes, dict[bytes, float]] = field(default_factory=dict)
    deadlines: dict[bytes, int] = field(default_factory=dict)
    #: The entries of each log, and the last id that was given in it.
    logs: dict[bytes, list[tuple[bytes, list[bytes]]]] = field(default_factory=dict)
    last_ids: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    def spaces(self) -> tuple[dict[bytes, Any], ...]:
        return self.strings, self.lists, self.hashes, self.scores

    def keys(self) -> list[bytes]:
        now = milliseconds()
        for key in [key for key, deadline in self.deadlines.items() if deadline <= now]:
            self.delete(key)
        return [key for space in self.spaces() for key, value in space.items() if value or value == b""]

    def delete(self, key: bytes) -> bool:
        self.deadlines.pop(key, None)
        # All of them: any() would stop at the first.
        return any([space.pop(key, None) is not None for space in self.spaces()])


def milliseconds() -> int:
    return time.time_ns() // 1_000_000


# The scripts of channels_asyncq/bus/scripts, by the name of the file.

Script = Callable[["RespServer", Sequence[bytes], Sequence[bytes]], object]


def push(server: RespServer, keys: Sequence[bytes], arguments: Sequence[bytes]) -> object:
    [key, seen], [item, capacity, expiry, number] = keys, arguments
    numbers = server.state.hashes.setdefault(seen, {})
    if number in numbers:
        return 1
    now, items = milliseconds(), server.state.lists.setdefault(key, [])
    while items and int(items[0][:13]) <= now:
        items.pop(0)
    if len(items) >= int(capacity):
        return 0
    items.append(b"%013d" % (now + int(expiry)) + item)
    numbers[number] = b"taken"
    server.state.deadlines[key] = now + int(expiry)
    server.publish(key, b"+")
    return 1


def pop(server: RespServer, keys: Sequence[bytes], arguments: Sequence[bytes]) -> object:
    [key, taken], [number, expiry] = keys, arguments
    held = server.state.hashes.get(taken, {})
    last = int(held.get(b"number", 0))
    if last >= int(number):
        return held.get(b"item") if last == int(number) else None
    now, items = milliseconds(), server.state.lists.setdefault(key, [])
    while items and int(items[0][:13]) <= now:
        items.pop(0)
    server.state.hashes[taken] = {b"number": number}
    server.state.deadlines[taken] = now + int(expiry)
    if items:
        server.state.hashes[taken][b"item"] = items.pop(0)
    return server.state.hashes[taken].get(b"item")


def give_back(server: RespServer, keys: Sequence[bytes], arguments: Sequence[bytes]) -> object:
    [key, taken], [number, expiry] = keys, arguments
    held = server.state.hashes.get(taken, {})
    if int(held.get(b"number", 0)) > int(number):
        return 0
    server.state.hashes[taken] = {b"number": number}
    server.state.deadlines[taken] = milliseconds() + int(expiry)
    if held.get(b"number") != number or b"item" not in held or int(held[b"item"][:13]) <= milliseconds():
        return 0
    server.state.lists.setdefault(key, []).insert(0, held[b"item"])
    server.publish(key, b"+")
    return 1


def group_send(server: RespServer, keys: Sequence[bytes], arguments: Sequence[bytes]) -> object:
    [members], [topic, envelope] = keys, arguments
    server.publish(topic, envelope)
    now = milliseconds()
    found = server.state.scores.get(members)
    return [channel for channel, until in found.items() if until > now] if found else None


def log_entry(server: RespServer, key: bytes, *fields: bytes) -> bytes:
    """Append to a log; return the entry's id."""
    last = server.state.last_ids.get(key, (0, 0))
    identity = max((milliseconds(), 0), (last[0], last[1] + 1))
    server.state.last_ids[key] = identity
    name = b"%d-%d" % identity
    server.state.logs.setdefault(key, []).append((name, list(fields)))
    return name


def send(server: RespServer, keys: Sequence[bytes], arguments: Sequence[bytes]) -> object:
    [log, *members], [topic, header, *envelopes] = keys, arguments
    name = b""
    for envelope in envelopes:
        kind, kept = (b"h", envelope[: int(header)]) if int(header) else (b"e", envelope)
        name = log_entry(server, log, b"t", topic, kind, kept)
    receivers = server.publish(topic, envelopes[0][:1] + b"#" + name + b" " + b"".join(envelopes))
    if not members:
        return receivers
    now = milliseconds()
    found = server.state.scores.get(members[0])
    return [channel for channel, until in found.items() if until > now] if found else None


def fence(server: RespServer, keys: Sequence[bytes], arguments: Sequence[bytes]) -> object:
    [topic, number, _, _] = arguments
    for log in keys:
        if log not in server.state.logs:
            log_entry(server, log, b"begin", b"")
    ends = [b"%d-%d" % server.state.last_ids[log] for log in keys]
    server.publish(topic, b" ".join([number, *ends]))
    return 1


def read_log(server: RespServer, keys: Sequence[bytes], arguments: Sequence[bytes]) -> object:
    [log], [start, count] = keys, arguments

    def order(name: bytes) -> tuple[int, ...]:
        return tuple(map(int, name.split(b"-")))

    entries = [entry for entry in server.state.logs.get(log, []) if order(entry[0]) >= order(start)]
    last = b"%d-%d" % server.state.last_ids.get(log, (0, 0))
    return [last, b"%d" % milliseconds(), [list(entry) for entry in entries[: int(count)]]]


def add_member(server: RespServer, keys: Sequence[bytes], arguments: Sequence[bytes]) -> object:
    [members], [channel, expiry] = keys, arguments
    server.state.scores.setdefault(members, {})[channel] = milliseconds() + int(expiry)
    return 1


#: By name; a test may add to it or replace one on its own server (`RespServer.scripts`).
SCRIPTS: dict[str, Script] = {
    "push": push,
    "pop": pop,
    "give_back": give_back,
    "group_send": group_send,
    "add_member": add_member,
    "send": send,
    "fence": fence,
    "read_log": read_log,
}


class Connection(asyncio.Protocol):
    """One client: its user, its database, its subscriptions, and what it is still to be told."""

    def __init__(self, server: RespServer) -> None:
        self._server = server
        self._reader = Reader()
        self._transport: asyncio.Transport | None = None
        self._commands: deque[list[bytes]] = deque()
        self._waiting: asyncio.Task[bool] | None = None
        self._is_silent = False
        self.number = 0
        self.topics: dict[bytes, None] = {}
        self.is_authenticated = server.password is None
        self.db = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._server.disconnected(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while isinstance(command := self._reader.gets(), list):
            self._commands.append(command)
        self._work()

    def _work(self) -> None:
        while self._commands and self._waiting is None and not self._is_silent:
            self._handle(self._commands.popleft())

    def _handle(self, command: list[bytes]) -> None:
        name = command[0].upper().decode()
        self._server.commands.append((name, *command[1:]))
        answer = self._server.answer_for(name, command[1:])
        if answer is None:
            self.write(encode(self._execute(name, command[1:])))
            return
        data = encode(self._execute(name, command[1:])) if answer.executes else b"+OK\r\n"
        if answer.data is not None:
            data = answer.data
        if answer.part is not None:
            data = data[: int(len(data) * answer.part)]
        if answer.waits_for is not None:
            self._waiting = asyncio.ensure_future(answer.waits_for.wait())
            self._waiting.add_done_callback(lambda task: self._go_on(task, data))
            return
        self.write(data)
        if answer.closes and self._transport is not None:
            self._is_silent = True
            self._transport.close()
        elif answer.falls_silent:
            self._is_silent = True

    def _go_on(self, task: asyncio.Task[bool], data: bytes) -> None:
        self._waiting = None
        if not task.cancelled():
            self.write(data)
            self._work()

    def _execute(self, name: str, arguments: list[bytes]) -> object:
        if name not in ("AUTH", "HELLO") and not self.is_authenticated:
            return Error("NOAUTH Authentication required.")
        handler = getattr(self._server, f"do_{name.lower()}", None)
        if handler is None:
            return Error(f"ERR unknown command '{name}', with args beginning with: ")
        try:
            return handler(self, *arguments)
        except Error as refusal:
            return refusal
        except (TypeError, ValueError) as problem:
            return Error(f"ERR {problem}")

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def push(self, topic: bytes, payload: bytes) -> None:
        """Deliver a message, unless the connection has fallen silent."""
        if not self._is_silent:
            self.write(encode([b"message", topic, payload]))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class RespServer:
    """
    The server: an asynchronous context manager, on a free port of 127.0.0.1.

    Attributes:
        commands: every command received, name in capitals first, in order.
        state: the keys.
        scripts: name of a script's file to what it does.
        role: what ROLE answers.
    """

    def __init__(self, *, password: str | None = None) -> None:
        self.password = password
        self.state = State()
        self.scripts = dict(SCRIPTS)
        self.role: list[object] = [b"master", 0, []]
        self.commands: list[tuple[Any, ...]] = []
        self.connections: list[Connection] = []
        self._numbers = 0
        self._subscribers: defaultdict[bytes, dict[Connection, None]] = defaultdict(dict)
        self._loaded: dict[bytes, str | None] = {}
        self._next: defaultdict[str, deque[Answer | None]] = defaultdict(deque)
        self._always: dict[str, Answer] = {}
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", port)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, cut every connection and wait until they are gone. Keys stay."""
        if self._server is not None:
            self._server.close()
            self.cut()
            await self._empty.wait()
            await self._server.wait_closed()
            self._server = None

    async def restart(self) -> None:
        """Stop and start on the same port: subscribers and loaded scripts are forgotten, keys are kept."""
        await self.stop()
        self._loaded.clear()
        await self.start(self.port)

    @property
    def url(self) -> str:
        return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        """End every connection without a word."""
        for connection in list(self.connections):
            connection.abort()

    # What it is told to answer.

    def script(self, name: str, *answers: Answer | None) -> None:
        """Give the next commands NAME these answers, one each; None is the ordinary one. Then as always."""
        self._next[name.upper()].extend(answers)

    def always(self, name: str, answer: Answer) -> None:
        """Give every command NAME this answer; `*` is every command that has none of its own."""
        self._always[name.upper()] = answer

    def restore(self, name: str | None = None) -> None:
        """Answer NAME, or everything, ordinarily again."""
        if name is None:
            self._next.clear()
            self._always.clear()
        else:
            self._next.pop(name.upper(), None)
            self._always.pop(name.upper(), None)

    def answer_for(self, name: str, arguments: Sequence[bytes]) -> Answer | None:
        """The answer that `script` or `always` has for a command. EVALSHA also goes by its script's name."""
        names = [name]
        if name == "EVALSHA" and arguments and (script := self._loaded.get(arguments[0])) is not None:
            names.insert(0, script.upper())
        for candidate in names:
            if self._next[candidate]:
                return self._next[candidate].popleft()
        for candidate in [*names, "*"]:
            if candidate in self._always:
                return self._always[candidate]
        return None

    def received(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every command NAME so far."""
        return [tuple(arguments) for command, *arguments in self.commands if command == name.upper()]

    # Connections and subscribers.

    def connected(self, connection: Connection) -> None:
        self._numbers += 1
        connection.number = self._numbers
        self.connections.append(connection)
        self._empty.clear()

    def disconnected(self, connection: Connection) -> None:
        self.connections.remove(connection)
        for topic in connection.topics:
            self._subscribers[topic].pop(connection, None)
        if not self.connections:
            self._empty.set()

    def publish(self, topic: bytes, payload: bytes) -> int:
        """Deliver to every subscriber; how many there were."""
        subscribers = list(self._subscribers[topic])
        for connection in subscribers:
            connection.push(topic, payload)
        return len(subscribers)

    # Commands: do_<name in small letters>(connection, *arguments).

    def do_ping(self, connection: Connection, *text: bytes) -> object:
        if connection.topics:
            return [b"pong", text[0] if text else b""]
        return text[0] if text else "PONG"

    def do_auth(self, connection: Connection, *login: bytes) -> object:
        if (
            self.password is None
            or login[-1].decode() != self.password
            or login[0] not in (login[-1], b"default")
        ):
            raise Error("WRONGPASS invalid username-password pair or user is disabled.")
        connection.is_authenticated = True
        return "OK"

    def do_hello(self, connection: Connection, *arguments: bytes) -> object:
        raise Error("NOPROTO unsupported protocol version")

    def do_select(self, connection: Connection, db: bytes) -> object:
        connection.db = int(db)
        return "OK"

    def do_client(self, connection: Connection, what: bytes, *arguments: bytes) -> object:
        return connection.number if what.upper() == b"ID" else "OK"

    def do_info(self, connection: Connection, *sections: bytes) -> object:
        return b"# Server\r\nrun_id:%040d\r\n" % id(self)

    def do_role(self, connection: Connection) -> object:
        return self.role

    def do_subscribe(self, connection: Connection, topic: bytes) -> object:
        connection.topics[topic] = None
        self._subscribers[topic][connection] = None
        return [b"subscribe", topic, len(connection.topics)]

    def do_unsubscribe(self, connection: Connection, topic: bytes) -> object:
        connection.topics.pop(topic, None)
        self._subscribers[topic].pop(connection, None)
        return [b"unsubscribe", topic, len(connection.topics)]

    def do_publish(self, connection: Connection, topic: bytes, payload: bytes) -> object:
        return self.publish(topic, payload)

    def do_get(self, connection: Connection, key: bytes) -> object:
        return self.state.strings.get(key) if key in self.state.keys() else None

    def do_set(self, connection: Connection, key: bytes, value: bytes, *options: bytes) -> object:
        words = [option.upper() for option in options]
        if b"NX" in words and key in self.state.keys():
            return None
        self.state.delete(key)
        self.state.strings[key] = value
        for unit, factor in ((b"EX", 1000), (b"PX", 1)):
            if unit in words:
                self.state.deadlines[key] = milliseconds() + factor * int(words[words.index(unit) + 1])
        return "OK"

    def do_unlink(self, connection: Connection, *keys: bytes) -> object:
        there = set(self.state.keys())
        return sum(self.state.delete(key) for key in keys if key in there)

    do_del = do_unlink

    def do_exists(self, connection: Connection, *keys: bytes) -> object:
        return sum(key in self.state.keys() for key in keys)

    def do_zrem(self, connection: Connection, key: bytes, *members: bytes) -> object:
        scores = self.state.scores.get(key, {})
        return sum(scores.pop(member, None) is not None for member in members)

    def do_scan(self, connection: Connection, cursor: bytes, *options: bytes) -> object:
        words = dict(zip(options[::2], options[1::2], strict=True))
        pattern = words.get(b"MATCH", b"*")
        return [b"0", [key for key in self.state.keys() if _matches(pattern, key)]]

    def do_script(self, connection: Connection, what: bytes, *arguments: bytes) -> object:
        if what.upper() == b"FLUSH":
            self._loaded.clear()
            return "OK"
        if what.upper() != b"LOAD":
            raise Error(f"ERR unknown subcommand '{what.decode()}'")
        [text] = arguments
        sha = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        self._loaded[sha] = _name_of(text)
        return sha

    def do_evalsha(self, connection: Connection, sha: bytes, count: bytes, *rest: bytes) -> object:
        if sha not in self._loaded:
            raise Error("NOSCRIPT No matching script. Please use EVAL.")
        name = self._loaded[sha]
        if name is None or name not in self.scripts:
            raise Error(f"ERR this server has no Python for the script {name or sha.decode()}")
        self.state.keys()
        return self.scripts[name](self, rest[: int(count)], rest[int(count) :])


def _matches(pattern: bytes, key: bytes) -> bool:
    """Whether a pattern of SCAN, without character classes, fits the key."""
    wildcards = {b"*": b".*", b"?": b"."}
    parts = re.findall(rb"\\.|.", pattern, re.DOTALL)
    expression = b"".join(wildcards.get(part) or re.escape(part[-1:]) for part in parts)
    return re.fullmatch(expression, key, re.DOTALL) is not None


def _name_of(text: bytes) -> str | None:
    """The name of the package's script with this text."""
    for file in resources.files("channels_asyncq.bus").joinpath("scripts").iterdir():
        # By what it says first of itself: some have constants put in.
        if file.name.endswith(".lua") and file.read_bytes().splitlines()[0] == text.splitlines()[0]:
            return file.name.removesuffix(".lua")
    return None
