"""WebSockets that end when their user signs out."""

from __future__ import annotations

from typing import Any

from channels.consumer import AsyncConsumer as ChannelsAsyncConsumer
from channels.consumer import SyncConsumer
from django.core.exceptions import ImproperlyConfigured

from ..auth.guard import ENDED, RECHECK, Guard, checked_recheck, require_app
from ..exceptions import LayerUnavailable
from ..layer import AsyncQueueChannelLayer
from .consumer import AsyncConsumer
from .conversation import TRY_AGAIN


class AuthGroups:
    """
    A mixin for the WebSocket consumers of this package, whose connections end with their session.

        class Room(AuthGroups, AsyncJsonWebsocketConsumer): ...

    Before `connect()` it joins the groups `user.<primary key>` and `session.<digest>`, and looks whether the
    session is still there. When its user signs out, changes the password, is deactivated or deleted, the
    connection is closed. A connection without a user is left alone. Needs "channels_asyncq.auth" in
    INSTALLED_APPS, and the AuthMiddleware of Channels.
    """

    #: Seconds after which the session is looked at again; None for never.
    recheck: float | None = RECHECK

    _guard: Guard | None = None

    # Of the consumer.
    scope: Any
    channel_layer: Any
    channel_name: Any
    _asyncq: Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not issubclass(cls, (ChannelsAsyncConsumer, SyncConsumer)):
            return  # a mixin itself
        if not issubclass(cls, AsyncConsumer) or issubclass(cls, SyncConsumer):
            raise TypeError(
                f"AuthGroups of {cls.__name__} needs an async consumer of channels_asyncq.generic.websocket"
            )
        before = cls.__mro__[: cls.__mro__.index(AuthGroups)]
        if any(
            issubclass(base, ChannelsAsyncConsumer) and not issubclass(base, AuthGroups) for base in before
        ):
            raise TypeError(f"AuthGroups must come first: class {cls.__name__}(AuthGroups, ...)")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one connection."""
        try:
            await super().__call__(scope, receive, send)  # type: ignore[misc]
        finally:
            if self._guard is not None:
                self._guard.stop()

    async def websocket_connect(self, message: Any) -> None:
        """Connect, if the session of the handshake has not ended meanwhile."""
        require_app()
        if not isinstance(self.channel_layer, AsyncQueueChannelLayer):
            raise ImproperlyConfigured(
                f"{type(self).__name__} needs a channel layer of channels_asyncq: set BACKEND in "
                'CHANNEL_LAYERS to "channels_asyncq.AsyncQueueChannelLayer"'
            )
        recheck = checked_recheck(type(self).__name__, self.recheck)
        self._guard = guard = Guard(self.channel_layer, self.channel_name, recheck)
        try:
            holds = await guard.begin(self.scope.get("session"), self.scope.get("user"))
        except LayerUnavailable:
            # Unguarded it cannot be let in. The layer logs the outage, once for all.
            await self._asyncq.close(TRY_AGAIN)
            return
        if holds:
            await super().websocket_connect(message)  # type: ignore[misc]
        else:
            await self._asyncq.close(ENDED)
