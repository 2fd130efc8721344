"""The sessions of one layer, and the event loops for which the relay sends."""

from __future__ import annotations

import asyncio
import weakref

from .. import threads
from ..exceptions import ChannelClosed, LayerClosed
from ..messages.codecs import Codec
from ..names import owner_of
from ..process import relay
from ..process.loops import LoopPhase, LoopState
from ..settings.options import Options
from . import forks
from .buses import Buses
from .closing import close_session
from .decoding import Decoder
from .owners import EndedSessions
from .session import Session


class SessionRegistry:
    """
    The sessions of a layer by event loop, and the states of its other loops. From any thread.

    It does not refer to the layer: sessions hold the registry, and a dropped layer must be collected.

    a loop is in    | meaning
    ----------------|---------------------------------------------------------------------------------
    neither         | it has not used the layer, or its session is SETTLED and it is in `sessions` only
    `loops`         | the relay sends for it: RELAYED, or ENDING when its session has ended
    `loops` and     | its session is CHANGING: it sends when the relayed sends are answered, and the loop
    `sessions`      | then leaves `loops`; or its session has ended and is not forgotten yet
    """

    def __init__(self, options: Options, codec: Codec, decoder: Decoder, buses: Buses) -> None:
        self._options = options
        self._codec = codec
        self._decoder = decoder
        self.buses = buses
        self.is_closed = False
        self._start_afresh()
        forks.start_afresh_after_forks(self)

    def _start_afresh(self) -> None:
        self._lock = threads.lock()
        self.sessions: dict[asyncio.AbstractEventLoop, Session] = {}
        #: The sessions by id, of those that may receive.
        self.owners: dict[str | None, Session] = {}
        self._ended = EndedSessions()
        # Held weakly: a session that has ended, or whose loop has, needs no closing.
        self._ending: weakref.WeakSet[Session] = weakref.WeakSet()
        self.loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopState] = (
            weakref.WeakKeyDictionary()
        )

    # Sessions

    async def session(self) -> Session:
        """
        Return the running loop's session, made if it has none.

        Raises:
            LayerClosed: the layer is closed, or the loop is ending.
        """
        loop = asyncio.get_running_loop()
        session = self.sessions.get(loop)
        if session is not None and not session.lifetime.is_closed:
            return session
        forks.notice_fork()
        # end(), on another loop, takes the sessions under this lock: it sees this session, or this sees the end.
        with self._lock:
            session = self._make(loop)
        await session.start()
        return session

    def _make(self, loop: asyncio.AbstractEventLoop) -> Session:
        if self.is_closed:
            raise LayerClosed()
        if self.is_ending(loop):
            raise LayerClosed(
                message="The event loop is ending, and its session of the channel layer was closed with its "
                "asynchronous generators: it can receive nothing any more. Use another event loop."
            )
        self._forget_ended()
        session = Session(self._options, self._codec, self._decoder, self.buses, self)
        state = self.loops.get(loop)
        if state is None:
            session.lifetime.phase = LoopPhase.SETTLED
        else:
            for channel in state.closed_names:
                session.hub.channels.close(channel)
            state.closed_names.clear()
        self.sessions[loop] = session
        self.owners[session.session_id] = session
        return session

    async def settled_session(self, loop: asyncio.AbstractEventLoop) -> Session:
        """Return the running loop's session when its relayed sends are answered: nothing must overtake them."""
        state = self.loops.get(loop)
        if state is not None:
            await state.all_answered()
        session = await self.session()
        self.loops.pop(loop, None)
        if session.lifetime.phase is LoopPhase.CHANGING:
            session.lifetime.phase = LoopPhase.SETTLED
        return session

    def hand_over(self, channel: str, payload: bytes, sender: Session | None = None) -> bool:
        """Give a message to the session of another loop of this process; False if none has the channel."""
        owner = self.owners.get(owner_of(channel))
        if owner is None or owner is sender or owner.lifetime.is_closed:
            return False
        return owner.sending.hand_over(channel, payload)

    # Loops without a session

    def relayed_loop(self, loop: asyncio.AbstractEventLoop) -> LoopState | None:
        """Return the state of a loop for which the relay sends, None if it is to send with its own session."""
        session = self.sessions.get(loop)
        if session is not None and not session.lifetime.is_closed:
            return None
        if self.is_closed:
            raise LayerClosed()
        if loop not in self.loops:
            self.look_for_ended()  # once for each loop
        state = self._state_of(loop)
        if session is not None:
            state.phase = LoopPhase.ENDING
        return None if state.is_lasting else state

    def _state_of(self, loop: asyncio.AbstractEventLoop) -> LoopState:
        # Not only the loop's own thread asks.
        return self.loops.get(loop) or self.loops.setdefault(loop, LoopState())

    def is_ending(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether the loop's session has ended before the layer: nothing would close another one."""
        session = self.sessions.get(loop)
        if session is not None:
            return session.lifetime.is_closed
        state = self.loops.get(loop)
        return state is not None and state.phase is LoopPhase.ENDING

    def close_channel(self, loop: asyncio.AbstractEventLoop, channel: str) -> None:
        """Remember that a loop without a session has closed a normal channel."""
        self._state_of(loop).close_channel(channel)

    def require_channel_open(self, loop: asyncio.AbstractEventLoop, channel: str) -> None:
        """
        Raises:
            ChannelClosed: a loop without a session has closed this normal channel.
        """
        state = self.loops.get(loop)
        if state is not None and channel in state.closed_names:
            raise ChannelClosed(channel)

    # Sessions that have ended (Siblings)

    def look_for_ended(self) -> None:
        """Release the sessions of loops that `loop.close()` has ended without a word. From any thread."""
        forks.notice_fork()
        with self._lock:
            self._forget_ended()

    def _forget_ended(self) -> None:
        for loop, session in list(self.sessions.items()):
            if session.lifetime.phase is LoopPhase.ENDED or loop.is_closed():
                if loop.is_closed():
                    session.let_go()
                else:
                    self._state_of(loop).phase = LoopPhase.ENDING
                    self._ending.add(session)
                self._ended.add(session.session_id)
                del self.sessions[loop]
                self.owners.pop(session.session_id, None)

    def has_ended(self, session_id: str) -> bool:
        self.look_for_ended()
        return session_id in self._ended

    def refuse_ended(self, session_id: str, channel: str) -> None:
        self.look_for_ended()
        self._ended.refuse(session_id, channel)

    def note_end(self, session_id: str) -> None:
        self._ended.add(session_id)

    # The layer

    def options_changed(self) -> None:
        for session in list(self.sessions.values()):
            session.options_changed()

    def end(self) -> list[Session]:
        """Accept nothing any more; return the sessions that must close, also those that are closing already."""
        with self._lock:
            self.is_closed = True
            self._ending.update(self.sessions.values())
            sessions = list(self._ending)
            self.sessions.clear()
            self.owners.clear()
        self.buses.leave()
        return sessions

    def drop(self) -> None:
        """
        Close the sessions of a layer that was collected, each on its own loop.

        The garbage collector may call this anywhere: nothing here waits, or takes a lock of ours.
        """
        # In a child that was forked in C and has not noticed, the sessions are the parent's.
        if not forks.is_unnoticed():
            for session in self.sessions.values():
                close_session(session)

    def start_afresh_in_child(self) -> object:
        """Start without sessions in a forked child; return the inherited ones, which must never be collected."""
        inherited = self.sessions, self.owners, self.loops, list(self._ending)
        relay.let_go(
            descriptor
            for session in self.sessions.values()
            if not session.lifetime.is_closed
            for descriptor in session.let_go_in_child()
        )
        self._start_afresh()
        self.buses.start_afresh()
        return inherited
