"""
Every private name of CPython, Channels, redis-py and hiredis that the package uses, in one table.

A new version may change any of them without notice. Each row names the test that fails then, and no other private
name may be used.
"""

import ast
import asyncio
import gc
import importlib
import inspect
import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import hiredis
import pytest
from asgiref.sync import ThreadSensitiveContext
from django.http import HttpResponse
from django.test import RequestFactory
from django.utils.log import log_response
from redis.asyncio.connection import Connection

import channels_asyncq
from channels_asyncq.bus.resp.handover import _ClosedTransport
from channels_asyncq.testing import EmbeddedServer

PACKAGE = Path(channels_asyncq.__file__).parent


class Private(NamedTuple):
    """A private name of another project: where it is used, for what, and which test fails when it changes."""

    owner: str
    name: str
    modules: set[str]
    purpose: str
    test: str


DEADLINE = {"bus.resp.deadline"}
HANDOVER = {"bus.resp.handover"}

TABLE = [
    Private(
        "redis.asyncio.Connection",
        "_reader",
        HANDOVER,
        "taken with its transport when the connection is authenticated",
        "test_connection_of_redis_py",
    ),
    Private(
        "redis.asyncio.Connection",
        "_writer",
        HANDOVER,
        "taken likewise: the transport is the writer's",
        "test_connection_of_redis_py",
    ),
    Private(
        "redis.asyncio.Connection",
        "_parser",
        HANDOVER,
        "whether it holds bytes that were read and not asked for",
        "test_connection_of_redis_py",
    ),
    Private(
        "redis._parsers._AsyncHiredisParser",
        "_reader",
        HANDOVER,
        "the hiredis.Reader, which knows that",
        "test_connection_of_redis_py",
    ),
    Private(
        "asyncio.StreamReader",
        "_buffer",
        HANDOVER,
        "whether bytes arrived that redis-py has not read",
        "test_buffer_of_a_stream_reader",
    ),
    Private(
        "asyncio.StreamWriter",
        "_transport",
        HANDOVER,
        "replaced, because collecting a writer closes its transport",
        "test_transport_of_a_stream_writer",
    ),
    Private(
        "asyncio.selector_events._SelectorTransport",
        "_sock",
        HANDOVER,
        "closed by hand where the event loop is closed and cannot do it",
        "test_socket_of_a_transport",
    ),
    Private(
        "asyncio.sslproto._SSLProtocolTransport",
        "_ssl_protocol",
        DEADLINE | HANDOVER,
        "the way to the transport below TLS",
        "test_transport_below_tls",
    ),
    Private(
        "asyncio.sslproto.SSLProtocol",
        "_transport",
        DEADLINE | HANDOVER,
        "that transport: its buffer counts as unsent, and its socket is closed",
        "test_transport_below_tls",
    ),
    Private(
        "channels.consumer",
        "_ChannelScope",
        {"consumers.consumer"},
        "a type of the stubs of Channels, for type checkers alone (`tox -e types`)",
        "test_a_private_type_is_for_type_checkers",
    ),
    Private(
        "asgiref.sync.ThreadSensitiveContext",
        "_executor",
        {"http.request_thread"},
        "whether the thread belongs to somebody else, who goes on using it; before 3.13 it never does",
        "test_executor_of_a_thread_sensitive_context",
    ),
    Private(
        "django.http.HttpResponse",
        "_has_been_logged",
        {"probes"},
        "keeps Django from logging an error for each answer 503 of the page `ready/`",
        "test_response_that_is_not_logged",
    ),
]

#: Names that begin with an underscore and are documented all the same.
DOCUMENTED = {
    "_base_manager",  # of Django's models
    "_instrument",  # of OpenTelemetry's BaseInstrumentor, whose subclasses define it
    "_uninstrument",  # likewise
    "_meta",  # of Django's models
    "_replace",  # of named tuples
    "_thread",  # a module of the standard library
}
#: Functions that take the name of an attribute, or of a module's attribute, as text.
BY_NAME = {"attrgetter", "delattr", "getattr", "hasattr", "methodcaller", "original", "setattr"}


def is_private(name: str) -> bool:
    return re.match(r"_[^_]", name) is not None and name not in DOCUMENTED


class Module:
    """One module of the package, and the private names in it."""

    def __init__(self, path: Path) -> None:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        self.name = ".".join(parts)
        self.tree = ast.parse(path.read_text())
        self.defined = {name for node in ast.walk(self.tree) for name in names_defined_by(node)}

    def foreign(self, everywhere: set[str]) -> Iterator[str]:
        """
        Yield the private names that are not the package's own.

        A name that is not reached through `self` has to be defined in this module, so a module that uses private
        names of another module of the package shows up too. `everywhere` is what the whole package defines.
        """
        for node in ast.walk(self.tree):
            match node:
                case ast.Attribute(value=ast.Name("self" | "cls"), attr=name):
                    if is_private(name) and name not in everywhere:
                        yield name
                case ast.Attribute(attr=name):
                    if is_private(name) and name not in self.defined:
                        yield name
                case ast.Import(names=names) | ast.ImportFrom(names=names, level=0):
                    module = getattr(node, "module", None) or ""
                    for alias in names:
                        yield from filter(is_private, [*module.split("."), *alias.name.split(".")])
                case ast.Call(func=ast.Name(function) | ast.Attribute(attr=function)) if function in BY_NAME:
                    is_own = isinstance(node.args[0], ast.Name) and node.args[0].id == "self"
                    for argument in node.args:
                        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                            name = argument.value
                            if is_private(name) and not (is_own and name in everywhere):
                                yield name


def names_defined_by(node: ast.AST) -> Iterator[str]:
    """The names of functions, classes and attributes that a statement defines, those of __slots__ included."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Attribute(value=ast.Name("self" | "cls"), attr=name, ctx=ast.Store()):
            yield name
        case ast.Assign(targets=[ast.Name("__slots__")], value=ast.Tuple(elements)):
            yield from (item.value for item in elements if isinstance(item, ast.Constant))  # type: ignore[misc]
        case ast.Name(id=name, ctx=ast.Store()):
            yield name


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    return [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]


# The table


def test_nothing_else_is_used(modules: list[Module]) -> None:
    """The package uses the private names of the table, where the table says, and no other."""
    everywhere: set[str] = set().union(*(module.defined for module in modules))
    used = {(name, module.name) for module in modules for name in module.foreign(everywhere)}
    assert used == {(row.name, module) for row in TABLE for module in row.modules}


def test_no_private_name_is_taken(modules: list[Module]) -> None:
    """No class of the package replaces a private name of a base class from another project."""
    taken = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                kind = getattr(importlib.import_module(f"channels_asyncq.{module.name}"), node.name, None)
                if not isinstance(kind, type):
                    continue  # a class within a function or another class
                own = {name for inner in ast.walk(node) for name in names_defined_by(inner)}
                shared = {name for name in own & private_names_of_bases(kind) if is_private(name)}
                if shared:
                    taken[kind] = shared
    assert not taken


def private_names_of_bases(kind: type) -> set[str]:
    """What the bases from other projects define, and what their code sets on `self`."""
    found: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("channels_asyncq"):
            found |= vars(base).keys()
            try:
                found |= set(re.findall(r"\bself\.(_\w+)", inspect.getsource(base)))
            except (OSError, TypeError):
                pass  # written in C
    return found


def test_each_row_has_its_test() -> None:
    """The test that a row names exists, and no row is there twice."""
    assert all(callable(globals()[row.test]) for row in TABLE)
    assert len({(row.owner, row.name) for row in TABLE}) == len(TABLE)


# What is relied on. ChannelBuffer is an asyncio.Queue without its __init__(): tests/test_queue_interface.py.


async def test_connection_of_redis_py(redis_server: EmbeddedServer) -> None:
    """A connection that is up has its two streams, and a parser of hiredis that says what is left unread."""
    connection: Any = Connection(host=redis_server.host, port=redis_server.port)
    await connection.connect()
    reader, writer = connection._reader, connection._writer
    assert isinstance(reader, asyncio.StreamReader)
    assert isinstance(writer, asyncio.StreamWriter)
    of_hiredis = connection._parser._reader
    assert isinstance(of_hiredis, hiredis.Reader)
    assert of_hiredis.has_data() is False
    of_hiredis.feed(b"+OK\r\n+unread")
    assert of_hiredis.gets() in ("OK", b"OK")
    assert of_hiredis.has_data() is True
    # Without its streams a connection is a closed one, also when it is collected.
    connection._reader = connection._writer = None
    assert not connection.is_connected
    del connection
    gc.collect()
    assert not writer.transport.is_closing()
    writer.close()
    await writer.wait_closed()


async def test_buffer_of_a_stream_reader() -> None:
    """It is true as long as bytes are unread."""
    reader = asyncio.StreamReader()
    buffer: Any = reader._buffer  # type: ignore[attr-defined]
    assert not buffer
    reader.feed_data(b"ab")
    assert buffer
    assert await reader.readexactly(2) == b"ab"
    assert not reader._buffer  # type: ignore[attr-defined]


async def test_transport_of_a_stream_writer() -> None:
    """A writer whose transport was replaced closes nothing when it is collected."""
    ours, theirs = socket.socketpair()
    with theirs:
        _, writer = await asyncio.open_connection(sock=ours)
        transport = writer.transport
        assert writer._transport is transport  # type: ignore[attr-defined]
        writer._transport = _ClosedTransport()  # type: ignore[attr-defined]
        assert isinstance(writer.transport, _ClosedTransport)
        del writer
        gc.collect()
        assert not transport.is_closing()
        transport.close()
        await asyncio.sleep(0)


async def test_socket_of_a_transport() -> None:
    """A transport holds its socket, and nothing warns of one that was closed and taken from it."""
    ours, theirs = socket.socketpair()
    with theirs:
        transport: Any
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        assert isinstance(transport._sock, socket.socket)
        assert transport._sock is ours
        transport.abort()
        await asyncio.sleep(0)
        # As let_go() has left it on a loop that is closed: __del__() warns of a socket that is there.
        assert transport._sock is None


async def test_transport_below_tls(certificate: tuple[Path, Path]) -> None:
    """From a transport of TLS two names lead to the one below it, which has the socket and its own buffer."""
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    accepting.load_cert_chain(*certificate)
    trusting = ssl.create_default_context(cafile=certificate[0])
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=accepting)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        transport: Any = writer.transport
        below = transport._ssl_protocol._transport
        assert below is not transport
        assert isinstance(below._sock, socket.socket)
        assert below.get_write_buffer_size() == 0
        writer.transport.abort()
        await asyncio.sleep(0)


def test_executor_of_a_thread_sensitive_context() -> None:
    """A context that was given an executor has it, and any other has none."""
    assert getattr(ThreadSensitiveContext(), "_executor", None) is None
    if "executor" in inspect.signature(ThreadSensitiveContext).parameters:
        with ThreadPoolExecutor(1) as executor:
            assert ThreadSensitiveContext(executor=executor)._executor is executor


def test_response_that_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Django logs an answer 503 as an error, and leaves out one that says it was logged."""
    request = RequestFactory().get("/")
    for has_been_logged in (False, True):
        response: Any = HttpResponse(status=503)
        response._has_been_logged = has_been_logged
        log_response("%s", "answered", response=response, request=request)
    assert [line.levelname for line in caplog.records] == ["ERROR"]


def test_a_private_type_is_for_type_checkers(modules: list[Module]) -> None:
    """A private name that is imported is imported under TYPE_CHECKING: nothing fails at run time without it."""
    for module in modules:
        for node in module.tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [
                    *(getattr(node, "module", None) or "").split("."),
                    *(alias.name for alias in node.names),
                ]
                level = getattr(node, "level", 0)
                assert level or not any(is_private(name) for name in names), (module.name, names)
