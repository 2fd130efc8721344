"""
An ASGI application whose clients leave one after the other before its server stops.

    # asgi.py
    from channels_asyncq.asgi import drained

    application = drained(ProtocolTypeRouter({...}), seconds=25)
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER
from channels.layers import get_channel_layer
from django.conf import settings

from . import get_layer
from .events import DRAIN, record
from .layer import AsyncQueueChannelLayer
from .stopping import signals
from .stopping.connections import is_ready
from .stopping.orders import OrderListener
from .stopping.sockets import SCOPE_KEY, OpenSocket

__all__ = ["Drained", "drained", "is_ready"]


def drained(
    application: Callable[[Any, Any, Any], Awaitable[None]],
    seconds: float = 25.0,
    *,
    layer: str = DEFAULT_CHANNEL_LAYER,
) -> Drained:
    """
    Return the application; when its process is told to stop, its clients leave one after the other before.

    At SIGTERM `is_ready()` becomes false. Over the `seconds`, in random order, event streams end with `retry:`,
    and WebSockets are closed with 1012 (4012 under Daphne), those of `ResumableWebsocketConsumer` after a frame
    `retry`. Clients that come meanwhile are served, and leave last. When nobody is left, or a second after the
    last one was told (later where the event loop is late), the server gets the signal. A second SIGTERM goes
    straight to the server. Ctrl-C ends all connections at once.

    Under some servers, and where the server runs in a thread, SIGTERM does not reach the application: there
    `manage.py asyncq drain` has to come before it. See the page about deployment.

    Args:
        application: an ASGI application, with any consumers.
        seconds: the time in which the clients leave. The process manager must wait longer.
        layer: the alias of the layer over which the command reaches this process.

    Raises:
        TypeError, ValueError: an argument is wrong.
        ImproperlyConfigured: the alias names no layer of this package. (Without a default layer of this package
            the command does not reach the process, and that is no error.)
    """
    if not callable(application):
        raise TypeError(f"application must be an ASGI application, not {application!r}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"seconds must be a number, not {seconds!r}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be a number from 0 on, not {seconds!r}")
    return Drained(application, seconds, _layer(layer))


def _layer(alias: str) -> AsyncQueueChannelLayer | None:
    if alias != DEFAULT_CHANNEL_LAYER:
        return get_layer(alias)
    layer = get_channel_layer(alias)
    return layer if isinstance(layer, AsyncQueueChannelLayer) else None


class Drained:
    """An ASGI application around another one, whose clients leave before its server stops."""

    def __init__(
        self,
        application: Callable[[Any, Any, Any], Awaitable[None]],
        seconds: float,
        layer: AsyncQueueChannelLayer | None,
    ) -> None:
        # Channels and Django annotate their applications in different ways, so its arguments are Any.
        self.application = application
        self.seconds = seconds
        self._layer = layer
        # What each event loop has seen, by the type of its scopes: a server may set its handlers late.
        self._seen: dict[asyncio.AbstractEventLoop, set[str]] = {}
        self._listeners: dict[asyncio.AbstractEventLoop, OrderListener] = {}
        signals.drain_for(seconds)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        loop = asyncio.get_running_loop()
        if kind not in self._seen.get(loop, ()):
            self._prepare(loop, kind)
        if kind != "websocket":
            await self.application(scope, receive, send)
            return
        opened = OpenSocket(send)
        try:
            await self.application({**scope, SCOPE_KEY: opened}, receive, opened.send)
        finally:
            await opened.stop()

    def _prepare(self, loop: asyncio.AbstractEventLoop, kind: str) -> None:
        """Stand before the server's signal handlers, and hear the command from the first scope of a loop on."""
        for ended in [known for known in list(self._seen) if known.is_closed()]:
            del self._seen[ended]
            self._listeners.pop(ended, None)
        seen = self._seen.setdefault(loop, set())
        is_first_request = kind != "lifespan" and seen <= {"lifespan"}
        seen.add(kind)
        found = signals.watched()
        if self._layer is not None and loop not in self._listeners:
            self._listeners[loop] = OrderListener(self._layer, found, self.seconds)
        if is_first_request and (reason := signals.why_unheard()):
            level = logging.INFO if settings.DEBUG else logging.WARNING
            text = "SIGTERM begins no drain here: %(reason)s. Run `manage.py asyncq drain` before it"
            record(DRAIN, level, "drain.unheard", text, reason=reason)
