"""The sides that take part: this layer with and without resume, Channels, and Socket.IO."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..asgi import free_port
from ..layers import CONTENDERS
from ..node import node_command
from .publisher import TEXT
from .servers import Server, asgi_server

NODE = Path(__file__).parent / "node"


@dataclass(frozen=True, slots=True)
class Side:
    """
    What is measured. `kind` is that of the connections (`links.LINKS`).

    With `resume` the clients miss nothing: such a side has goals.
    """

    name: str
    kind: str
    layer: str = "asyncq"
    resume: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether its messages go through this layer."""
        return self.layer == "asyncq"

    @property
    def path(self) -> str:
        return {"sse": "/events/", "websocket": "/ws/", "socketio": "/socket.io/"}[self.kind]

    def query(self) -> str:
        """What the address of a client begins with, up to its rooms."""
        return f"{self.path}?EIO=4&transport=websocket&" if self.kind == "socketio" else f"{self.path}?"


SIDES: Mapping[str, Side] = {
    side.name: side
    for side in (
        Side("sse", "sse", resume=True),
        Side("websocket", "websocket", resume=True),
        Side("sse-control", "sse"),
        Side("websocket-control", "websocket"),
        Side("channels_redis", "websocket", "redis.pubsub"),
        Side("socketio", "socketio", "socketio"),
    )
}


class Stage:
    """Where a side is played: makes its servers and its publisher's command."""

    def __init__(
        self,
        side: Side,
        server: str,
        url: str,
        folder: Path,
        prefix: str,
        database: Path | None,
        drain: float = 0.0,
    ) -> None:
        self.side = side
        self._drain = drain
        self._server = server
        self._folder = folder
        self._database = database
        self._config = {"url": url, "prefix": prefix}

    def _layer_config(self) -> dict[str, Any]:
        contender = CONTENDERS[self.side.layer]
        return {**contender.config(self._config["url"], self._config["prefix"]), **contender.settings}

    def make_server(self, number: int) -> Server:
        """Return a server that is not started."""
        log = self._folder / f"{self.side.name}-{number}.log"
        if self.side.kind == "socketio":
            return Server(node_command(NODE, "server.js"), free_port(), self._config, log)
        contender = CONTENDERS[self.side.layer]
        order = {
            "backend": contender.backend,
            "config": self._layer_config(),
            "kind": self.side.kind,
            "resume": self.side.resume,
            "database": str(self._database) if self._database is not None else "",
            "drain": self._drain,
        }
        return asgi_server(self._server, order, log)

    def publisher(self, rooms: list[str], rate: float) -> list[str]:
        """Return the command of the process that publishes."""
        order: dict[str, Any] = {"rooms": rooms, "rate": rate}
        if self.side.kind == "socketio":
            order |= {"config": self._config, "text": TEXT}
            return node_command(NODE, "publisher.js", json.dumps(order))
        # The message and its settings are of CONTENDERS: the process makes the layer itself.
        contender = CONTENDERS[self.side.layer]
        config = contender.config(self._config["url"], self._config["prefix"])
        order |= {"layer": self.side.layer, "config": config}
        return [sys.executable, "-m", "benchmarks.drops.publisher", json.dumps(order)]
