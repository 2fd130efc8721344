"""The buses of a layer's sessions: in memory, or on a server."""

from __future__ import annotations

import weakref
from typing import Protocol

from ..bus.base import Bus, Receiver
from ..bus.memory.bus import MemoryBus
from ..bus.memory.namespaces import broker_for, leave_broker
from ..bus.redis.bus import RedisBus
from ..bus.resp.outages import Outages
from ..messages.codecs import Codec
from ..names import Topics
from ..settings.options import Options


class Buses(Protocol):
    """
    Makes the buses of one layer's sessions, and owns the objects that these share.

    Implemented by `session.buses.MemoryBuses` and `session.buses.RedisBuses`.
    """

    def open(
        self, options: Options, topics: Topics, codec: Codec, session_id: str, receiver: Receiver
    ) -> Bus:
        """Return a bus for one session, on the running loop."""

    def leave(self) -> None:
        """The layer is closed: it needs no bus any more."""

    def start_afresh(self) -> None:
        """Share nothing with the buses that a forked child has inherited."""


class MemoryBuses:
    """
    The buses of `memory://`: they share the broker of their namespace.

    The layer is held weakly: a namespace ends with its last layer, and sessions hold this object.
    """

    def __init__(self, options: Options, layer: object) -> None:
        self._namespace = options.prefix, options.hosts[0].db
        self._layer = weakref.ref(layer)
        self._broker = broker_for(*self._namespace, layer)

    def open(
        self, options: Options, topics: Topics, codec: Codec, session_id: str, receiver: Receiver
    ) -> MemoryBus:
        return MemoryBus(self._broker, options, topics, codec, session_id, receiver)

    def leave(self) -> None:
        layer = self._layer()
        if layer is not None:
            leave_broker(*self._namespace, layer)

    def start_afresh(self) -> None:
        layer = self._layer()
        if layer is not None:
            self._broker = broker_for(*self._namespace, layer)


class RedisBuses:
    """The buses of a server: they share the process's knowledge of its outages."""

    def __init__(self) -> None:
        self._outages = Outages()

    def open(
        self, options: Options, topics: Topics, codec: Codec, session_id: str, receiver: Receiver
    ) -> RedisBus:
        return RedisBus(options, topics, codec, session_id, receiver, outages=self._outages)

    def leave(self) -> None:
        """A server needs no word: each session ends its own connections."""

    def start_afresh(self) -> None:
        self._outages = Outages()


def buses_for(options: Options, layer: object) -> Buses:
    """Return the buses that the hosts of a layer ask for."""
    return MemoryBuses(options, layer) if options.hosts[0].kind == "memory" else RedisBuses()
