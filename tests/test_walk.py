"""
A reader's walks through the package by "go to definition": from a send to the socket, and from there to a queue.

Each walk is a table of definitions. The source of each must contain a call or an attribute that is defined by the
next one. Where an interface hides the next one, the table has a `Door`, at which the reader has to choose; the
interface's docstring must name the choices. Further tests keep callables out of attributes: a reader stops there.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import jedi
import pytest

import channels_asyncq

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PACKAGE = Path(channels_asyncq.__file__).parent
PROJECT = jedi.Project(PACKAGE.parent, load_unsafe_extensions=False)


class Door(NamedTuple):
    """A method of an interface, and one that implements it."""

    method: str
    leads_to: str


# Names within the package are without the package's name. Those of others are whole.
WALKS: dict[str, list[str | Door]] = {
    # A message to a group, until its bytes are given to the socket.
    "group_send": [
        "layer.AsyncQueueChannelLayer.group_send",
        Door("bus.base.GroupRoute.send", "bus.redis.pubsub.NameRoute.send"),
        "bus.redis.sender.Sender.send",
        "bus.redis.sender.Sender._write",
        "bus.resp.pipeline.Pipeline.call_open",
        "bus.resp.pipeline.Pipeline._write_or_schedule",
        "bus.resp.pipeline.Pipeline._write",
        "asyncio.transports.WriteTransport.write",
    ],
    # Where group_send() gets its route, the first time.
    "route": [
        "layer.AsyncQueueChannelLayer.group_send",
        "session.routes.Routes.to_group",
        Door("bus.base.PubSub.group_route", "bus.redis.pubsub.RedisPubSub.group_route"),
        "bus.redis.pubsub.NameRoute",
    ],
    # What the socket gets: the messages of a batch take their numbers and are packed when it is written.
    "packing": [
        "bus.resp.pipeline.Pipeline._write",
        Door("bus.resp.replies.OpenCommand.pack", "bus.redis.batches.Batch.pack"),
        Door("bus.redis.batches.Route.pack", "bus.redis.batches.TopicRoute.pack"),
        "bus.redis.sequences.SequenceNumbers.take",
    ],
    # The arrival of a message to a group, until it waits for its reader, who takes it.
    "push": [
        "bus.resp.protocol.WireProtocol.data_received",
        "bus.resp.reader.PushReader.read",
        Door("bus.resp.reader.MessageHandler.on_message", "bus.redis.subscriber.Subscriber.on_message"),
        "bus.redis.partition.Partition.deliver",
        Door("bus.base.Receiver.on_envelope", "session.arrivals.Arrivals.on_envelope"),
        "local.hub.Hub.deliver",
        "local.hub.Hub._put",
        "local.buffers.ChannelBuffer.offer",
        "collections.deque.append",
    ],
    "receive": [
        "layer.AsyncQueueChannelLayer.receive",
        "local.buffers.ChannelBuffer.take",
        "collections.deque.popleft",
    ],
    # On `memory://`: from a send to the mailbox of a session, and from there to its hub.
    "memory_send": [
        "layer.AsyncQueueChannelLayer.group_send",
        Door("bus.base.GroupRoute.send", "bus.memory.bus.MemoryGroupRoute.send"),
        "bus.memory.bus.MemoryPubSub.group_send",
        "bus.memory.broker.Broker.group_send",
        "bus.memory.pubsub.Listeners.publish",
        Door("bus.memory.pubsub.Listener.accept", "bus.memory.subscriber.MemorySubscriber.accept"),
        "local.mailbox.Mailbox.put",
        "local.mailbox.Mailbox.put_always",
        "collections.deque.append",
    ],
    "memory_push": [
        "local.mailbox.Mailbox.drain",
        Door("local.mailbox.MailboxOwner.on_envelope", "bus.memory.subscriber.MemorySubscriber.on_envelope"),
        Door("bus.base.Receiver.on_envelope", "session.arrivals.Arrivals.on_envelope"),
        "local.hub.Hub.deliver",
    ],
}


class Module:
    """The source of one module, and where the names in it are defined."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source = path.read_text()
        self.tree = ast.parse(self._source)

    @cached_property
    def _script(self) -> jedi.Script:
        environment = jedi.InterpreterEnvironment()
        return jedi.Script(self._source, path=self._path, project=PROJECT, environment=environment)

    def definitions(self, node: ast.Attribute | ast.Name) -> list[tuple[str, str]]:
        """Return the full name and the kind of each definition of the last name in an expression."""
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        assert node.end_lineno is not None and node.end_col_offset is not None
        before = self._source.splitlines()[node.end_lineno - 1].encode()[: node.end_col_offset].decode()
        found = self._script.goto(node.end_lineno, len(before) - len(name), follow_imports=True)
        return [((each.full_name or "").removeprefix("channels_asyncq."), each.type) for each in found]


@pytest.fixture(scope="module", autouse=True)
def cache_of_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Other processes may be writing to the cache that jedi has for each user."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(jedi.settings, "cache_directory", str(tmp_path_factory.mktemp("jedi")))
        yield


@cache
def module_at(path: Path) -> Module:
    return Module(path)


def name_of(path: Path) -> str:
    """The name of a module within the package."""
    parts = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else path.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def path_of(name: str) -> tuple[Path, list[str]]:
    """Split a name into the path of its module and the names inside."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        path = PACKAGE.joinpath(*parts[:count]).with_suffix(".py")
        if path.exists():
            return path, parts[count:]
    raise AssertionError(f"no module has {name}")


def links(name: str, last: str) -> set[str]:
    """Return what the uses of this last name, in the source of a function, are defined by."""
    path, inside = path_of(name)
    found = module_at(path)
    node: ast.AST = found.tree
    for each in inside:
        parts = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == each]
        assert parts, f"{name} is no function or method"
        node = parts[-1]
    uses = [
        use
        for use in ast.walk(node)
        if (isinstance(use, ast.Attribute) and use.attr == last)
        or (isinstance(use, ast.Name) and use.id == last)
    ]
    return {definition for use in uses for definition, _ in found.definitions(use)}


def broken_steps(walk: list[str | Door]) -> Iterator[str]:
    """Say where a walk stops."""
    at, *steps = walk
    assert isinstance(at, str)
    for step in steps:
        wanted = step.method if isinstance(step, Door) else step
        found = links(at, wanted.rpartition(".")[2])
        if wanted not in found:
            yield f"from {at} nothing leads to {wanted}, but to {sorted(found)}"
        at = step.leads_to if isinstance(step, Door) else step


def test_walks() -> None:
    """Each definition leads to the next one of its walk."""
    assert {name: list(broken_steps(walk)) for name, walk in WALKS.items()} == {name: [] for name in WALKS}


# What may stand in an attribute and be called: its place, and why there is no method instead.
CALLABLES = {
    "asgi.Drained.application": "an argument of users: an ASGI application",
    "consumers.admission.Admission._receive": "an argument of ASGI, which passes no object",
    "consumers.consumer.AsyncConsumer.channel_receive": "an attribute that consumers of Channels have",
    "consumers.conversation.Client.send": "an argument of ASGI, which passes no object",
    "consumers.sources.ReceiveSource._receive": "likewise, or the receive() of another layer",
    "http.frames.Renderer._render": "an argument of users: a function from a message to its event",
    "messages.framing.Format.pack": "a table of functions by the version of the wire",
    "messages.framing.Format.unpack": "likewise",
    "messages.framing.Format.unpack_header": "likewise",
    "messages.framing.Formats.unpack.newest": "likewise: the function for unknown versions",
    "messages.framing._Unpackers.newest": "likewise",
    "opentelemetry.instrumentor.Wrapped.wrap": "a table of the functions that tracing wraps, and what wraps each",
    "settings.arguments._Argument.fits": "a table of the arguments of redis-py, and what each may be",
    "settings.hosts.Host.address_remap": "an argument of redis-py, which takes a function there",
    "stopping.sockets.OpenSocket.real_send": "an argument of ASGI",
    "threads._RealThread._target": "the target of a thread, as threading.Thread takes it",
}


def assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield each target of an assignment with its value; the parts of tuples one by one."""
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        pairs = [(node.target, node.value)]
    else:
        return
    for target, value in pairs:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            yield from zip(target.elts, value.elts, strict=True)
        else:
            yield target, value


def alternatives(value: ast.expr) -> Iterator[ast.expr]:
    """Yield what an expression may be: each side of `or` and of `a if b else c`."""
    if isinstance(value, ast.BoolOp):
        for each in value.values:
            yield from alternatives(each)
    elif isinstance(value, ast.IfExp):
        yield from alternatives(value.body)
        yield from alternatives(value.orelse)
    else:
        yield value


def is_callable(value: ast.expr, arguments: dict[str, bool], found: Module) -> bool:
    """Tell whether a value is a lambda, a partial, a function, a method, or an argument that is marked so."""
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).rpartition(".")[2] in ("partial", "partialmethod")
    if isinstance(value, ast.Name) and value.id in arguments:
        return arguments[value.id]
    if isinstance(value, ast.Attribute) and value.attr.isupper():
        return False  # a constant, or a member of an Enum
    if isinstance(value, (ast.Attribute, ast.Name)):
        return any(kind == "function" or name in CALLABLES for name, kind in found.definitions(value))
    return isinstance(value, ast.Lambda)


def is_of_callable(annotation: ast.expr | None) -> bool:
    return annotation is not None and "Callable" in ast.unparse(annotation)


def stored_callables(path: Path) -> Iterator[str]:
    """Yield the attributes of the classes of a module that hold a callable."""
    found = module_at(path)
    for owner in ast.walk(found.tree):
        if not isinstance(owner, ast.ClassDef):
            continue
        for part in owner.body:
            if isinstance(part, ast.AnnAssign) and is_of_callable(part.annotation):
                yield f"{name_of(path)}.{owner.name}.{ast.unparse(part.target)}"
            if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            given = [*part.args.posonlyargs, *part.args.args, *part.args.kwonlyargs]
            arguments = {each.arg: is_of_callable(each.annotation) for each in given}
            for target, value in (pair for node in ast.walk(part) for pair in assigned(node)):
                if isinstance(target, ast.Attribute) and any(
                    is_callable(each, arguments, found) for each in alternatives(value)
                ):
                    yield f"{name_of(path)}.{owner.name}.{ast.unparse(target).removeprefix('self.')}"


def test_no_callable_in_an_attribute() -> None:
    """A call of an attribute leads to its method: no attribute holds a function, but for those with a reason."""
    stored = {each for path in PACKAGE.rglob("*.py") for each in stored_callables(path)}
    assert stored == set(CALLABLES)


@pytest.mark.parametrize(
    "value",
    ["lambda: 1", "partial(run, 1)", "functools.partial(run, 1)", "run", "self.run", "other or self.run",
     "run if other else None", "given", "other.append"],
)  # fmt: skip
def test_callables_are_found(tmp_path: Path, value: str) -> None:
    """Each kind of callable is found, whether it is stored alone or beside others."""
    lines = [
        "import functools",
        "from functools import partial",
        "from collections.abc import Callable",
        "def run() -> None: ...",
        "class Room:",
        "    def __init__(self, given: Callable[[], None], other: list[int]) -> None:",
        f"        self.number, self.stored = 1, {value}",
        "        self.other = other",
        "        self.kind = self.size",
        "    def run(self) -> None: ...",
        "    @property",
        "    def size(self) -> int: return 1",
    ]
    path = tmp_path / "room.py"
    path.write_text("\n".join(lines))
    assert list(stored_callables(path)) == ["room.Room.stored"]


def is_interface(node: ast.ClassDef) -> bool:
    bases = map(ast.unparse, node.bases)
    return "Protocol" in bases or any("@abstractmethod" in ast.unparse(part) for part in node.body)


def interfaces() -> Iterator[type]:
    """Yield the classes of the package that others implement."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(module_at(path).tree):
            if isinstance(node, ast.ClassDef) and is_interface(node):
                interface: type = getattr(
                    importlib.import_module(f"channels_asyncq.{name_of(path)}"), node.name
                )
                yield interface


def implementers(interface: type) -> list[str]:
    """Return the classes that the docstring of an interface names."""
    _, _, text = (inspect.getdoc(interface) or "").partition("Implemented by ")
    return re.findall(r"`(\w+(?:\.\w+)+)`", text)


def resolve(name: str) -> type:
    """Return a class of the package, or of the standard library."""
    home, _, last = name.rpartition(".")
    try:
        found: type = getattr(importlib.import_module(f"channels_asyncq.{home}"), last)
    except ModuleNotFoundError:
        found = getattr(importlib.import_module(home), last)
    return found


def missing_in(implementer: type, interface: type) -> set[str]:
    """Return the public names of an interface that a class neither has nor sets in its methods."""
    names = {name for name in vars(interface) if not name.startswith("_")} - set(dir(implementer))
    return {name for name in names if f"self.{name} = " not in inspect.getsource(implementer)}


def test_interfaces_name_their_implementers() -> None:
    """The docstring of each interface names classes, and these have all that it asks for."""
    for interface in interfaces():
        names = implementers(interface)
        assert names, f"{interface.__name__} does not say by which classes it is implemented"
        for name in names:
            missing = missing_in(resolve(name), interface)
            assert not missing, f"{name} has no {missing} of {interface.__name__}"


DOORS = sorted({step for walk in WALKS.values() for step in walk if isinstance(step, Door)})


@pytest.mark.parametrize("door", DOORS, ids=[door.leads_to for door in DOORS])
def test_doors(door: Door) -> None:
    """Where a walk must choose, the interface names the class with which it goes on."""
    interface, method = door.method.rsplit(".", 1)
    implementer, same_method = door.leads_to.rsplit(".", 1)
    assert implementer in implementers(resolve(interface)) and method == same_method
