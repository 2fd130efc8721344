"""
Sends from code that has no event loop: views, signals, Celery tasks, commands, threads, a shell.

    from channels_asyncq import sync

    sync.group_send("room.7", {"type": "chat.message", "text": "hi"})
    sync.group_send("room.7", {"type": "order.paid", "id": order.pk}, on_commit=True)

A call makes no event loop: the one relay of the process sends the message, and the calling thread waits until
the server has accepted it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER

from . import get_layer, threads
from .events import LOSS, record
from .layer import AsyncQueueChannelLayer
from .session.histories import History

__all__ = ["group_send", "history", "position", "send"]


def send(
    channel: str,
    message: dict[str, Any],
    layer: str | AsyncQueueChannelLayer = DEFAULT_CHANNEL_LAYER,
    *,
    on_commit: bool = False,
    using: str | None = None,
) -> None:
    """
    Send a message to a channel; return when it is in the queue, or the server has accepted it.

    With `on_commit` the message is sent when the transaction on the database `using` commits, at once if there is
    no transaction, and never if it is rolled back. The name is checked and the message encoded now. A send that
    fails after the commit is logged with the event code `commit.unsent` and raises nothing, because the commit
    cannot be undone.

    Args:
        layer: an alias of CHANNEL_LAYERS, or a layer.

    Raises:
        RuntimeError: an event loop runs in this thread; await the layer's own `send()` there.
        TypeError, MessageTooLarge, ChannelFull, ChannelClosed, LayerUnavailable, DeliveryUnknown: as
            `AsyncQueueChannelLayer.send()`.
        ImproperlyConfigured: the alias names no layer of this package.
    """
    _refuse_on_a_loop("send")
    _do(_layer(layer).prepare_send(channel, message), f"channel {channel!r}", on_commit, using)


def group_send(
    group: str,
    message: dict[str, Any],
    layer: str | AsyncQueueChannelLayer = DEFAULT_CHANNEL_LAYER,
    *,
    exclude: Collection[str] = (),
    on_commit: bool = False,
    using: str | None = None,
) -> None:
    """
    Send a message to all members of a group but the channels in `exclude`.

    `layer`, `on_commit` and `using` as for `send()`.

    Raises:
        RuntimeError: an event loop runs in this thread; await the layer's own `group_send()` there.
        TypeError, MessageTooLarge, LayerClosed, LayerUnavailable, DeliveryUnknown: as
            `AsyncQueueChannelLayer.group_send()`.
        ImproperlyConfigured: the alias names no layer of this package.
    """
    _refuse_on_a_loop("group_send")
    _do(_layer(layer).prepare_group_send(group, message, exclude), f"group {group!r}", on_commit, using)


def position(
    *groups: str,
    layer: str | AsyncQueueChannelLayer = DEFAULT_CHANNEL_LAYER,
    channel: str | None = None,
) -> str:
    """
    Return where these groups are now, as `AsyncQueueChannelLayer.position()` does: for a view that renders a
    page.

    Raises:
        RuntimeError: an event loop runs in this thread; await the layer's own `position()` there.
        TypeError, LayerClosed, LayerUnavailable: as `AsyncQueueChannelLayer.position()`.
        ImproperlyConfigured: the alias names no layer of this package.
    """
    _refuse_on_a_loop("position")
    return _layer(layer).position_from_thread(*groups, channel=channel)


def history(
    group: str,
    limit: int = 50,
    before: str | None = None,
    *,
    layer: str | AsyncQueueChannelLayer = DEFAULT_CHANNEL_LAYER,
) -> History:
    """
    Return the last messages of a group, as `AsyncQueueChannelLayer.history()` does: for a view that shows them.

    Raises:
        RuntimeError: an event loop runs in this thread; await the layer's own `history()` there.
        TypeError, ValueError, ChannelLayerError, LayerUnavailable: as `AsyncQueueChannelLayer.history()`.
        ImproperlyConfigured: the alias names no layer of this package.
    """
    _refuse_on_a_loop("history")
    return _layer(layer).history_from_thread(group, limit, before)


def _layer(layer: str | AsyncQueueChannelLayer) -> AsyncQueueChannelLayer:
    return layer if isinstance(layer, AsyncQueueChannelLayer) else get_layer(layer)


def _refuse_on_a_loop(name: str) -> None:
    if threads.is_on_a_loop():
        raise RuntimeError(
            f"channels_asyncq.sync.{name}() would block the event loop that runs in this thread; "
            f"use `await layer.{name}(...)` here, with layer = channels_asyncq.get_layer()"
        )


def _do(post: Callable[[], None], target: str, on_commit: bool, using: str | None) -> None:
    if on_commit:
        from django.db import transaction

        # robust: Django runs the other callbacks even if this one raises.
        transaction.on_commit(lambda: _try(post, target), using=using, robust=True)
    elif using is not None:
        raise TypeError(
            f"using={using!r} names the database whose commit is awaited: on_commit=True is missing"
        )
    else:
        post()


def _try(post: Callable[[], None], target: str) -> None:
    try:
        post()
    except Exception as exc:
        text = "a message to %(target)s was not sent after the commit: %(reason)s"
        reason = f"{type(exc).__name__}: {exc}"
        record(LOSS, logging.ERROR, "commit.unsent", text, target=target, reason=reason)
