"""Ends one connection when its session has ended."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from contextvars import ContextVar
from typing import Any

from channels.db import database_sync_to_async
from channels.exceptions import ChannelFull
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from ..events import CONNECTION, Faults
from ..exceptions import ChannelLayerError
from ..layer import AsyncQueueChannelLayer
from ..messages.closing import NEW_SESSION, UNAUTHORIZED, Close
from .names import group_of_key, session_group, user_group
from .sessions import Claim, claim_of, holds

#: What a client gets whose session does not hold any more. It comes back with the session that it has then.
ENDED = Close(UNAUTHORIZED, "the session has ended", NEW_SESSION)
#: Seconds after which a session is looked at again.
RECHECK = 300.0

#: The session of the consumer for which a task works: `channels.auth.logout()` does not say whose it is.
guarded: ContextVar[Claim | None] = ContextVar("channels_asyncq.guarded", default=None)
# A generator of our own: the state of the global one belongs to the application.
_jitter = random.Random()
_faults = Faults()


def require_app() -> None:
    """
    Raises:
        ImproperlyConfigured: the app is not installed, so connections would not be told when a session ends.
    """
    if not apps.is_installed("channels_asyncq.auth"):
        raise ImproperlyConfigured(
            'add "channels_asyncq.auth" to INSTALLED_APPS: without it, signing out ends no connection'
        )


def checked_recheck(owner: str, recheck: object) -> float | None:
    """
    Return the seconds, None for never.

    Raises:
        TypeError, ValueError: it is neither a positive number nor None.
    """
    if recheck is None:
        return None
    if isinstance(recheck, bool) or not isinstance(recheck, (int, float)):
        raise TypeError(f"recheck of {owner} must be a number of seconds or None, not {recheck!r}")
    if not 0 < recheck <= 86400 * 365:
        raise ValueError(f"recheck of {owner} must be a positive number of seconds or None, not {recheck!r}")
    return float(recheck)


class Guard:
    """
    One connection that ends with its session. Its channel gets the message that closes it.

    state    | `_timer` | `_checking` | event: next state
    ---------|----------|-------------|------------------------------------------------------------
    idle     | None     | None        | `begin()` finds a session that holds: waiting
    waiting  | set      | None        | `recheck` seconds have passed: checking. `stop()`: idle
    checking | None     | a task      | it holds, or that is unknown: waiting. It does not, or `stop()`: idle
    """

    def __init__(self, layer: AsyncQueueChannelLayer, channel: str, recheck: float | None) -> None:
        self._layer = layer
        self._channel = channel
        self._recheck = recheck
        self._claim: Claim | None = None
        self._groups: tuple[str, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._checking: asyncio.Task[None] | None = None

    async def begin(self, session: Any, user: Any = None) -> bool:
        """
        Join the groups of the user and of the session; return False if the session has ended.

        The user is that of the handshake; with None, the session says who it is. Without a session, as with a
        token, the user's group is joined and nothing is looked at again. An anonymous user has no groups.
        Cancelling leaves memberships, which end with the channel.

        Raises:
            ImproperlyConfigured: sessions are kept in cookies.
            ChannelLayerError: as `group_add()`.
        """
        claim = await database_sync_to_async(claim_of)(session)
        if user is None and claim is not None:
            group = group_of_key(claim.user)
        elif user is None or not user.is_authenticated:
            return True
        else:
            group = user_group(user)
            if claim is not None and group_of_key(claim.user) != group:
                claim = None  # the user is not that of this session
        self._claim = claim
        self._groups = (group,) if claim is None else (group, session_group(claim.key))
        self._layer.allow_own_groups(self._channel, len(self._groups))
        await self._join()
        if claim is None:
            return True
        # After joining: an end before this look is seen by it, and a later one is told to the groups.
        if not await database_sync_to_async(holds)(claim):
            return False
        guarded.set(claim)
        self._start_timer()
        return True

    async def _join(self) -> None:
        for group in self._groups:
            await self._layer.group_add(group, self._channel)

    def stop(self) -> None:
        """Look no more. Stopping twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None

    def _start_timer(self) -> None:
        if self._recheck is not None:
            seconds = self._recheck * _jitter.uniform(0.8, 1.0)
            loop = asyncio.get_running_loop()
            # In a context of its own: the thread of the request, or of the connection, may have ended by then.
            self._timer = loop.call_later(seconds, self._check, context=contextvars.Context())

    def _check(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        self._checking = loop.create_task(self._look(), name="channels_asyncq: is the session still there?")

    async def _look(self) -> None:
        assert self._claim is not None
        try:
            # Memberships end by `flush()`. An outage must not stop the look, and a closed channel needs none.
            with contextlib.suppress(ChannelLayerError):
                await self._join()
            is_there = await database_sync_to_async(holds)(self._claim)
        except Exception as error:
            text = (
                "a session could not be looked at, and its connection stays until the next time: %(reason)s"
            )
            name = type(error).__name__
            _faults.warn(CONNECTION, "session.unknown", name, text, reason=f"{name}: {error}")
            is_there = True
        if is_there:
            self._checking = None
            self._start_timer()
        else:
            await self._end()
            self._checking = None

    async def _end(self) -> None:
        try:
            await self._layer.send(self._channel, ENDED.as_message())
        except ChannelFull:
            await self._layer.close_channel(self._channel)  # which closes the connection with 1013
        except ChannelLayerError:
            pass  # it is closed
