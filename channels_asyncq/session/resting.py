"""Closes a session's connections until they are needed, unless a task waits for them."""

from __future__ import annotations

from ..bus.base import Bus
from ..local.hub import Hub
from ..slices import Slices
from .connections import Connections
from .control import Control
from .holding import Holding
from .lifetime import Lifetime
from .readers import QueueReaders
from .requests import Requests
from .waiting import SenderLines


class Resting:
    """Knows everything that waits in a session, and so whether its connections may be closed."""

    def __init__(
        self,
        lifetime: Lifetime,
        hub: Hub,
        slices: Slices,
        bus: Bus,
        connections: Connections,
        readers: QueueReaders,
        requests: Requests,
        control: Control,
        waiting: SenderLines,
        holding: Holding,
    ) -> None:
        self._lifetime = lifetime
        self._hub = hub
        self._slices = slices
        self._bus = bus
        self._connections = connections
        self._readers = readers
        self._requests = requests
        self._control = control
        self._waiting = waiting
        self._holding = holding

    async def rest(self) -> None:
        """
        Close the connections until this loop uses the layer again, unless something here waits for them.

        Channels, messages in them and memberships stay. Cancelling is safe.
        """
        await self._bus.answered()
        if not self._lifetime.is_closed and not self._is_awaited():
            await self._connections.rest()

    def _is_awaited(self) -> bool:
        """Tell whether a task would wait in vain without connections."""
        return not (
            self._requests.is_empty
            and self._waiting.is_empty
            and self._control.is_idle
            and self._readers.is_idle
            and not self._holding.is_holding
            and not self._slices.is_busy
            and not self._hub.channels.are_awaited
        )
