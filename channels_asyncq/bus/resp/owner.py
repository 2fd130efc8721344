"""The seam between a supervised connection and the part of a bus that uses it."""

from __future__ import annotations

from typing import Protocol

from .protocol import WireProtocol
from .replies import InFlight

__all__ = ["ConnectionOwner"]


class ConnectionOwner(Protocol):
    """
    The owner of a supervised connection: it sends and reads, and decides about commands in flight.

    Implemented by `bus.redis.node.Node`, and for pushes by `bus.redis.subscriber.Subscriber`.
    """

    async def set_up(self, wire: WireProtocol) -> None:
        """Prepare a new connection before it is used. An error ends the attempt."""

    def on_up(self, wire: WireProtocol) -> None:
        """The connection is set up: resend commands in flight, then use it."""

    def on_refusing(self) -> None:
        """The server cannot serve: write nothing more. The connection ends when everything is answered."""

    def on_lost(self, in_flight: list[InFlight]) -> None:
        """The connection, or the attempt at one, has ended. These commands have no reply, if they are kept."""

    def on_overdue(self, error: Exception) -> None:
        """Waiting is over: fail everything that waits for the connection, and commands in flight without one."""

    def on_silent(self) -> None:
        """Nothing has been answered for a while, although something was asked."""

    def on_change(self) -> None:
        """The connection came up or was lost; called after the others, when its state is that of the table."""

    @property
    def is_awaited(self) -> bool:
        """Whether anything waits to be sent or resent, or else for the connection."""
