"""The sessions inside a layer, for the tests that look at one."""

from __future__ import annotations

import asyncio

from channels_asyncq import AsyncQueueChannelLayer
from channels_asyncq.bus.base import Bus
from channels_asyncq.bus.redis.bus import RedisBus
from channels_asyncq.session.session import Session


def session_of(layer: AsyncQueueChannelLayer) -> Session:
    """The session of the running loop."""
    return layer._registry.sessions[asyncio.get_running_loop()]


def has_session(layer: AsyncQueueChannelLayer) -> bool:
    """Whether the running loop has a session."""
    return asyncio.get_running_loop() in layer._registry.sessions


def bus_of(layer: AsyncQueueChannelLayer) -> Bus:
    """The bus of the running loop's session."""
    return session_of(layer)._bus


def shorten_send_timeout(bus: Bus, seconds: float) -> None:
    """
    Let senders wait for `seconds` from now on; the connections that are up keep the time that they had.

    With a short `send_timeout` from the beginning, a busy machine may not connect in time, and an answer that
    takes six tenths of it ends the connection.
    """
    assert isinstance(bus, RedisBus)
    bus.shared.options.send_timeout = seconds
    for node in bus.nodes:
        node.send_timeout = seconds
        for connection in (node.commands, node.pushes):
            connection._send_timeout = seconds
