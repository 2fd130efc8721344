"""The answers with which a cluster refuses a command, and the pause until it is sent again."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING

from hiredis import ReplyError

from ....clock import monotonic
from ...resp.replies import is_redirect, moved_to

if TYPE_CHECKING:
    from ..node import Node
    from .router import ClusterRouter

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.2
# After this many refusals in a row the slot map is asked for.
_PATIENCE = 3
# Refusals with less than these seconds between them are one trouble: two nodes that name each other, for example.
_A_MOMENT = 1.0


class ClusterRedirects:
    """
    Holds the commands of a partition while the cluster refuses them.

    `ASK` is not followed: a message that is published at the target before the slot is there reaches no
    subscriber. The commands are held, as for `TRYAGAIN`, until a question about keys of the partition is
    answered.

    state   | `_timer` | event: next state
    --------|----------|----------------------------------------------------------------------------
    usable  | None     | MOVED: the same, at another node; ASK, TRYAGAIN, CLUSTERDOWN: pausing
    pausing | there    | the timer: probing; a move: usable
    probing | None     | an answer: usable; a refusal, or no answer: pausing, for twice as long
    """

    def __init__(self, router: ClusterRouter, number: int) -> None:
        self._router = router
        self._number = number
        self._context = Context()
        self._pause = _FIRST_PAUSE
        self._refusals = 0
        self._timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.Future[object] | None = None
        # When the first and the last of several refusals came.
        self._first_at = self._last_at = 0.0
        #: Why the partition cannot be used now, for an error.
        self.reason = ""

    @property
    def is_holding(self) -> bool:
        """Whether commands are held."""
        return self._timer is not None or self._probe is not None

    @property
    def spent(self) -> float:
        """For how many seconds commands have been refused, again and again; 0.0 if none was a moment ago."""
        return self._last_at - self._first_at if monotonic() - self._last_at < _A_MOMENT else 0.0

    def _note_refusal(self) -> None:
        now = monotonic()
        if now - self._last_at >= _A_MOMENT:
            self._first_at = now
        self._last_at = now

    def take(self, error: BaseException | None, by: Node) -> bool:
        """
        Act on a node's error for a command, which was not executed then; False if it is no redirect.

        The errors of a node that the partition has left say nothing of its present home.
        """
        if not isinstance(error, ReplyError) or not is_redirect(error):
            return False
        if self._router.partitions[self._number].home is not by:
            return True
        self._note_refusal()
        moved = moved_to(error)
        if moved is not None:
            _, host, port = moved
            self._router.moved(self._number, host, port)
        else:
            self.hold(str(error))
        return True

    def hold(self, reason: str = "") -> None:
        """Send nothing for a while: the node has answered that it cannot serve the partition now."""
        self.reason = self._router.explain(self._number, reason)
        if self.is_holding:
            return
        self._refusals += 1
        if self._refusals >= _PATIENCE or reason.startswith("CLUSTERDOWN"):
            self._router.doubt([self._number])
        self._router.partitions[self._number].sender.pause()
        self._wait()

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._pause, self._ask, context=self._context)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _ask(self) -> None:
        """Ask the home for keys of the partition: it refuses as it would refuse a send."""
        self._timer = None
        partition = self._router.partitions[self._number]
        wire = partition.home.commands.wire
        if wire is None or wire.is_lost:
            # The commands in flight come back by themselves, and are sent when it is up.
            self.release()
            return
        self._probe = wire.call(b"EXISTS", *self._router.probe_keys(self._number))
        self._probe.add_done_callback(self._answered)

    def _answered(self, probe: asyncio.Future[object]) -> None:
        if probe is not self._probe:
            return
        self._probe = None
        error = probe.exception()
        if not isinstance(error, ReplyError) or not is_redirect(error):
            self.release()
            if self._router.partitions[self._number].is_away:
                self._router.doubt([self._number])  # it is read again where it is
            return
        self._note_refusal()
        moved = moved_to(error)
        if moved is not None:
            _, host, port = moved
            self._router.moved(self._number, host, port)
            return
        self._refusals += 1
        if self._refusals >= _PATIENCE:
            self._router.doubt([self._number])
        self.reason = self._router.explain(self._number, str(error))
        self._wait()

    def release(self) -> None:
        """Send again: the partition has moved, or its home answers."""
        if self._timer is not None:
            self._timer.cancel()
        was_holding = self._timer is not None or self._probe is not None
        self._timer = self._probe = None
        self._pause, self._refusals, self.reason = _FIRST_PAUSE, 0, ""
        if was_holding or self._router.partitions[self._number].sender.is_paused:
            self._router.partitions[self._number].sender.proceed()

    def stop(self) -> None:
        """Hold nothing more: the session ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._probe = None
