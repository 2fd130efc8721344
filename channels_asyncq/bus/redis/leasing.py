"""The lease of a session at one node: taken before anything is sent or read, renewed, changed and given back."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError

from ...exceptions import ChannelLayerError, LayerUnavailable
from .layout import Layout, Lease, Standing
from .register import member_of
from .scripts import Script
from .shared import Shared

if TYPE_CHECKING:
    from ..resp.supervisor import SupervisedConnection
    from .refusals import Refusals
    from .sender import Sender

#: Seconds between two renewals, and between two fences, which renew it as well.
RENEW_EVERY = 5.0
_UNUSED_LOG_EXPIRES = 900
# Seconds between two checks whether others have stopped writing a format that this session does not read.
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.5
_LET_IN = (Standing.HELD, Standing.UNPUBLISHED)

Command = tuple[bytes | str | int, ...]


class LeaseHome(Protocol):
    """
    Where a lease is kept: a node, or the home of partition 0 in a cluster.

    Implemented by `bus.redis.node.Node` and `bus.redis.cluster.lease.ClusterLeaseHome`.
    """

    @property
    def host(self) -> int:
        """The index of its host in `hosts`."""

    @property
    def address(self) -> str: ...

    @property
    def is_closed(self) -> bool: ...

    @property
    def renews_by_timer(self) -> bool:
        """Whether no fence renews the lease now."""

    @property
    def sender(self) -> Sender: ...

    @property
    def commands(self) -> SupervisedConnection: ...

    @property
    def refusals(self) -> Refusals: ...

    def start_over(self, reason: str) -> None:
        """Connect anew: the set-up waits until this session has a lease again."""


class LeaseKeeper:
    """
    Keeps the lease of a session at a node. `Lease` explains it and has the table of its states.

    Each fence renews it. While the connection for pushes is down, a timer does.
    """

    def __init__(self, shared: Shared, node: LeaseHome, lease: Lease) -> None:
        self._shared = shared
        self._node = node
        self.lease = lease
        self._context = contextvars.Context()
        # A task while this session turns to another format.
        self._changing: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._session = member_of(shared.session_id)

    @property
    def is_changing(self) -> bool:
        """Whether the session turns to another format."""
        return self._changing is not None

    @property
    def keeps_past(self) -> int:
        """Seconds after which an unused log expires, and the record of the layouts that wrote it."""
        recovery = self._shared.options.recovery
        return _UNUSED_LOG_EXPIRES + (math.ceil(recovery.seconds) if recovery else 0)

    def command(self, layout: Layout, script: Script | None = None, *more: bytes) -> Command:
        """Return the command that publishes a layout, or renews it. `more` are further keys of the script."""
        keys = (*self._shared.topics.lease_keys(self._node.host, layout.text()), *more)
        arguments = self.lease.arguments(layout, self._session, 1000 * self.keeps_past)
        return (b"EVALSHA", (script or self._shared.scripts.lease).sha, len(keys), *keys, *arguments)

    def is_let_in(self, answer: Any, layout: Layout) -> bool:
        """
        Process the answer to the script; return whether the session may read and write here.

        Raises:
            ImproperlyConfigured: another session uses the namespace in an incompatible way.
            LayerUnavailable: the server refuses to write.
        """
        return self.lease.learn(answer, layout) in _LET_IN

    async def hold(self, call: Callable[..., Awaitable[Any]]) -> None:
        """
        Return when the session may read and write here.

        Raises:
            ImproperlyConfigured: another session uses the namespace in an incompatible way.
        """
        pause = 0.0
        while True:
            layout = self.lease.layout
            if self.is_let_in(await call(*self.command(layout)), layout):
                self.note_held()
                return
            # The others were notified of the layout. A session that is stopped is not waited for: its lease ends.
            await asyncio.sleep(pause)
            pause = min(2 * pause or _FIRST_PAUSE, _LONGEST_PAUSE)

    def note_held(self) -> None:
        """Note that the session has its lease."""

    async def refresh(self) -> None:
        """Return when the session is known to have its lease still, or has it again. Raises as `hold()`."""
        await self.hold(partial(self._node.sender.commands.call, is_repeatable=True))

    # Renewing

    def renew_later(self) -> None:
        """Renew the lease after a while, unless a fence does that before."""
        if self._renewal is None and not self._node.is_closed:
            self._renewal = self._shared.loop.call_later(RENEW_EVERY, self._renew, context=self._context)

    def _renew(self) -> None:
        self._renewal = None
        self.look()
        if self._node.renews_by_timer:
            self.renew_later()

    def stop_renewal(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None

    def look(self) -> None:
        """Renew the lease, and compare the layouts of the others."""
        layout = self.lease.layout
        answer = None if self._node.is_closed else self._node.sender.commands.ask(*self.command(layout))
        if answer is not None:
            answer.add_done_callback(partial(self._looked, layout))

    def _looked(self, layout: Layout, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self.note(answer.result(), layout)

    def note(self, answer: Any, layout: Layout) -> bool:
        """Act on the answer to the script; return whether the session may go on."""
        try:
            standing = self.lease.learn(answer, layout)
        except ImproperlyConfigured as exc:
            self._node.start_over(str(exc))
            return False
        except LayerUnavailable as exc:
            if exc.reason.startswith("READONLY"):
                self._node.start_over(exc.reason)
            return True  # a lease that is held still holds
        if standing is Standing.WAIT:
            self._node.start_over("after it was away, others write what this release does not read")
        elif standing is Standing.ASK_AGAIN:
            self._shared.loop.call_later(_FIRST_PAUSE, self.look, context=self._context)
        elif self._changing is None and not self._node.is_closed and self.lease.wanted != self.lease.layout:
            self._changing = self._shared.loop.create_task(
                self._change(),
                name=f"channels_asyncq changing the format for {self._node.address}",
                context=contextvars.Context(),
            )
        is_let_in = standing in _LET_IN
        if is_let_in:
            self.note_held()
        return is_let_in

    async def write(self) -> None:
        """
        Renew the lease: a server that refuses to write messages refuses this as well.

        Raises:
            ChannelLayerError: the server refuses to write.
        """
        layout = self.lease.layout
        answer = await self._node.sender.commands.call(*self.command(layout), is_repeatable=True)
        if isinstance(answer, list) and answer[0] not in (b"in", b"out"):
            raise self._node.refusals.error_for(ReplyError(answer[0].decode(errors="replace")))
        self.note(answer, layout)

    # Changing, and giving back

    async def _change(self) -> None:
        """Turn to a format that all others read: publish it, write it, and withdraw the layout of before."""
        lease = self.lease
        call = self._node.sender.commands.call
        try:
            while lease.wanted != lease.layout:
                wanted, before = lease.wanted, lease.layout
                answer = await call(*self.command(wanted), is_repeatable=True)
                standing = lease.learn(answer, wanted)
                if standing is Standing.HELD:
                    lease.turn_to(wanted)
                    # Sent after the last message in the old format, including messages that are resent.
                    await call(*self._leave_command(before), is_repeatable=True)
                    lease.published.discard(before)
                elif standing is not Standing.ASK_AGAIN:
                    return
        except (ChannelLayerError, ImproperlyConfigured):
            pass  # the next fence, or the next connection, tries again
        finally:
            self._changing = None

    def _leave_command(self, layout: Layout) -> Command:
        text = layout.text()
        keys = self._shared.topics.lease_keys(self._node.host, text)[:2]
        return (b"EVALSHA", self._shared.scripts.leave.sha, len(keys), *keys, text, self._session)

    async def leave(self) -> None:
        """Give the lease back, so that a process with another layout need not wait for its end."""
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait([self._changing])
        wire = self._node.commands.wire
        if wire is not None:
            for layout in self.lease.published:
                wire.call(*self._leave_command(layout))
