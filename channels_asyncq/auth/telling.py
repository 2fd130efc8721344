"""Messages that end the connections of a group, on every layer of the site."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from channels.layers import channel_layers
from django.db import transaction

from .. import threads
from ..events import LOSS, record
from ..exceptions import ChannelLayerError
from ..layer import AsyncQueueChannelLayer
from ..messages.closing import Close

# Messages that are sent by the event loop of the thread in which a signal was sent.
_under_way: set[asyncio.Task[None]] = set()


def tell(group: str, close: Close) -> None:
    """
    Have the connections of a group closed, from code without an event loop.

    Raises as `group_send()`: the first error, when all layers were asked.
    """
    errors: list[ChannelLayerError] = []
    for layer in _layers():
        try:
            layer.prepare_group_send(group, close.as_message())()
        except ChannelLayerError as error:
            errors.append(error)
    if errors:
        raise errors[0]


async def atell(group: str, close: Close) -> None:
    """Have the connections of a group closed. Raises as `tell()`."""
    errors: list[ChannelLayerError] = []
    for layer in _layers():
        try:
            await layer.group_send(group, close.as_message())
        except ChannelLayerError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def tell_in_time(group: str, close: Close, using: str | None) -> None:
    """
    Have the connections of a group closed when the transaction on a database commits; at once if there is none.

    With `using=None` no database knows of the change. An error is logged and not raised: it must not keep a user
    from signing out. Connections that were not told find out when they look at their session again.
    """
    if using is not None and transaction.get_connection(using).in_atomic_block:
        transaction.on_commit(partial(_try, group, close), using=using, robust=True)
    else:
        _try(group, close)


def _try(group: str, close: Close) -> None:
    if threads.is_on_a_loop():
        # As when an async view calls logout(), which is possible where sessions are in a cache.
        task = asyncio.ensure_future(_atry(group, close))
        _under_way.add(task)
        task.add_done_callback(_under_way.discard)
        return
    try:
        tell(group, close)
    except Exception as error:
        _note(error)


async def _atry(group: str, close: Close) -> None:
    try:
        await atell(group, close)
    except Exception as error:
        _note(error)


def _note(error: Exception) -> None:
    text = (
        "a session has ended, and its connections were not told; they find out by their next look: %(reason)s"
    )
    record(LOSS, logging.ERROR, "session.untold", text, reason=f"{type(error).__name__}: {error}")


def _layers() -> Iterator[AsyncQueueChannelLayer]:
    """Yield the layers of this package: a consumer may use any of them."""
    for alias in channel_layers.configs:
        layer: Any = channel_layers[alias]
        if isinstance(layer, AsyncQueueChannelLayer):
            yield layer
