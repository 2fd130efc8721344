"""How a session ends: closed on its loop, abandoned with a closed loop, or inherited by a forked child."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from ..bus.base import Bus
from ..exceptions import ChannelClosed, LayerClosed
from ..local.hub import Hub
from ..local.mailbox import Mailbox
from ..process.loops import LoopPhase
from ..settings.options import Options
from ..slices import Slices
from .control import Control
from .holding import Holding
from .lifetime import Lifetime
from .lingering import LingeringTopics
from .memberships import Memberships
from .owners import Siblings
from .readers import QueueReaders
from .routes import Routes
from .sweeping import Sweeper


class Ending:
    """
    Ends one session, once.

    `_ended` is set when the session has ended, in whichever way. `_generator` is suspended while the session
    lives: `loop.shutdown_asyncgens()` closes it, and thereby the session. `LoopPhase` has the table of phases.
    """

    def __init__(
        self,
        session_id: str,
        options: Options,
        lifetime: Lifetime,
        siblings: Siblings,
        hub: Hub,
        slices: Slices,
        bus: Bus,
        mailbox: Mailbox,
        routes: Routes,
        readers: QueueReaders,
        memberships: Memberships,
        control: Control,
        holding: Holding,
        sweeper: Sweeper,
        lingering: LingeringTopics,
    ) -> None:
        self._session_id = session_id
        self._options = options
        self._lifetime = lifetime
        self._siblings = siblings
        self._hub = hub
        self._slices = slices
        self._bus = bus
        self._mailbox = mailbox
        self._routes = routes
        self._readers = readers
        self._memberships = memberships
        self._control = control
        self._holding = holding
        self._sweeper = sweeper
        self._lingering = lingering
        self._ended = asyncio.Event()
        self._generator: AsyncGenerator[None] | None = None

    async def close_with_loop(self) -> None:
        """Close the session in `shutdown_asyncgens()`: after the finally blocks of consumers, which may send."""
        self._generator = self._live()
        await anext(self._generator)

    async def _live(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._generator = None
            await self.close()

    async def close(self) -> None:
        """
        End the session: receivers get LayerClosed, claimed messages go back, and due replies are awaited.

        A second call returns when the first has ended the session. Cancelling the first ends it at once.
        """
        if self._lifetime.is_closed:
            await self._ended.wait()
            return
        try:
            await self._close(LayerClosed)
        finally:
            self._ended.set()
            generator, self._generator = self._generator, None
            if generator is not None:
                await generator.aclose()  # nothing is left for it to do

    async def _close(self, reason: type[ChannelClosed]) -> None:
        self._lifetime.phase = LoopPhase.ENDING
        self._siblings.note_end(self._session_id)
        self._routes.clear()
        self._holding.stop()
        self._sweeper.stop()
        self._lingering.close()
        self._control.close()
        self._memberships.close()
        self._hub.close(reason)
        try:
            closing = self._readers.closing(reason)
            await self._slices.idle()
            if closing is not None:
                await asyncio.wait([closing], timeout=self._options.send_timeout)
                closing.cancel()
        finally:
            self._lifetime.phase = LoopPhase.ENDED
            self._mailbox.close()
            await self._bus.close()

    def let_go(self) -> None:
        """
        Release the connections of a session whose loop is closed and runs nothing any more.

        From any thread and without a lock: the garbage collector may call it.
        """
        self._lifetime.phase = LoopPhase.ENDED
        if not self._ended.is_set():
            self._bus.let_go()

    def let_go_in_child(self) -> list[int]:
        """Be closed without closing anything, in a forked child; return the descriptors of the connections."""
        self._lifetime.phase = LoopPhase.ENDED
        self._ended.set()
        sockets = [transport.get_extra_info("socket") for transport in self._bus.connections.transports()]
        return [sock.fileno() for sock in sockets if sock is not None and sock.fileno() >= 0]
