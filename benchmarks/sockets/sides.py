"""The sides that take part: an application under a server."""

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..asgi import COMMANDS
from ..layers import CONTENDERS
from ..node import has_node, node_command
from ..runner import BenchmarkError
from .messages import Way
from .servers import APPLICATION, ASYNCIO, NODE

BOTH: tuple[Way, ...] = ("frame", "handler")

NO_DEFLATE = ("--ws-per-message-deflate", "false")
#: By the name of a server and its settings: the kind of server, and its options.
SERVERS: Mapping[str, tuple[str, Sequence[str]]] = {
    "uvicorn": ("uvicorn", (*ASYNCIO["uvicorn"], *NO_DEFLATE)),
    "uvicorn, deflate": ("uvicorn", ASYNCIO["uvicorn"]),
    "uvicorn, uvloop": ("uvicorn", ("--loop", "uvloop", *NO_DEFLATE)),
    "Daphne": ("daphne", ASYNCIO["daphne"]),
    "granian": ("granian", ASYNCIO["granian"]),
    "gunicorn": ("gunicorn", ASYNCIO["gunicorn"]),
    "hypercorn": ("hypercorn", ASYNCIO["hypercorn"]),
}


@dataclass(frozen=True, slots=True)
class Side:
    """
    An application under a server.

    `consumer` is a kind of application of `site.py`, or a script for Node. `layer` is a name of CONTENDERS.
    """

    application: str
    server: str
    consumer: str
    ways: tuple[Way, ...] = BOTH
    layer: str = "asyncq"

    @property
    def name(self) -> str:
        return f"{self.application}; {self.server}"

    @property
    def is_node(self) -> bool:
        return self.server == "Node"

    @property
    def is_ours(self) -> bool:
        return self.application.startswith("this layer")

    @property
    def has_groups(self) -> bool:
        """Whether its clients join groups. Without that it is no application, but a part of what each costs."""
        return self.consumer not in ("bare", "tasks")

    def path(self, groups: int) -> str:
        """The path of a client that joins so many groups."""
        if self.consumer == "socket_io":
            return f"/socket.io/?EIO=4&transport=websocket&groups={groups}"
        return f"/ws/{groups}/"

    def command(self, port: int) -> list[str]:
        """What starts its server."""
        if self.is_node:
            return node_command(NODE, f"{self.consumer}.js", options=("--expose-gc",))
        kind, options = SERVERS[self.server]
        return [*COMMANDS[kind](APPLICATION, port), *options]

    def order(self, url: str, prefix: str) -> dict[str, Any]:
        """What the server's process is told, beside its address."""
        if self.is_node:
            return {"redis": url, "prefix": prefix}
        contender = CONTENDERS[self.layer]
        config = {**contender.config(url, prefix), **contender.settings}
        return {"consumer": self.consumer, "backend": contender.backend, "config": config}

    def obstacle(self) -> str | None:
        """Why it cannot take part here; None if it can."""
        if self.is_node:
            return None if has_node() else "there is no node and npm on PATH"
        modules = {SERVERS[self.server][0], *(("uvloop",) if "uvloop" in self.server else ())}
        for module in sorted(modules):
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        if not CONTENDERS[self.layer].is_installed:
            return f"{CONTENDERS[self.layer].distribution} is not installed"
        if self.consumer == "sync-own" and not _has_own_sync_consumer():
            return "the sync consumers of channels_asyncq are those of Channels"
        return None


def _has_own_sync_consumer() -> bool:
    ours = importlib.import_module("channels_asyncq.generic.websocket")
    theirs = importlib.import_module("channels.generic.websocket")
    name = "JsonWebsocketConsumer"
    return getattr(ours, name, None) not in (None, getattr(theirs, name))


def _sides() -> Iterator[Side]:
    for server in SERVERS:
        if server not in ("uvicorn, deflate", "uvicorn, uvloop"):
            yield Side("bare loop", server, "bare", ("frame",))
        yield Side("this layer", server, "own")
    yield Side("queue and task per client", "uvicorn", "tasks")
    yield Side("this layer, sync consumer", "uvicorn", "sync-own")
    yield Side("Channels, this layer", "uvicorn", "stock", ("handler",))
    yield Side("Channels, this layer, sync consumer", "uvicorn", "sync-stock")
    for server in ("uvicorn", "Daphne"):
        yield Side("Channels, channels_redis", server, "stock", ("handler",), "redis.pubsub")
    yield Side("ws", "Node", "ws", ("frame",))
    yield Side("Socket.IO", "Node", "socket_io", ("handler",))


SIDES: Mapping[str, Side] = {side.name: side for side in _sides()}


def chosen_sides(pattern: str) -> list[Side]:
    """
    The sides in whose name the pattern is found, a regular expression.

    Raises:
        BenchmarkError: it is none, or is found in no name.
    """
    try:
        sides = [side for side in SIDES.values() if re.search(pattern, side.name, re.IGNORECASE)]
    except re.error as error:
        raise BenchmarkError(f"--rows {pattern!r} is no regular expression: {error}") from error
    if not sides:
        raise BenchmarkError(f"--rows {pattern!r} fits none of: {', '.join(SIDES)}")
    return sides
