"""Real round trips through a layer: over pub/sub, a join and a job, at each server."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from ..clock import monotonic
from ..exceptions import ChannelLayerError
from ..layer import AsyncQueueChannelLayer
from .findings import Finding, State
from .servers import Server

__all__ = ["round_trips"]

_TYPE = "asyncq.check"


async def round_trips(layer: AsyncQueueChannelLayer, server: Server) -> AsyncIterator[Finding]:
    """Yield how long a join, a message to a group and a job take at a server, up to the first that fails."""
    if not server.partitions:
        text = "no partition of this prefix is here, so nothing can be tried"
        yield Finding(server.address, "join", State.UNSEEN, text)
        return
    # Names of nobody else, at this server.
    name = _name_at(server)
    channel = await layer.new_channel()
    try:
        trips: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("join", partial(layer.group_add, name, channel)),
            ("pub/sub", partial(_publish, layer, name, channel)),
            ("job", partial(_job, layer, name)),
        ]
        for subject, trip in trips:
            finding = await _timed(layer, server, subject, trip())
            yield finding
            if finding.state is State.FAULT:
                return
    finally:
        layer.close_channel(channel)


def _name_at(server: Server) -> str:
    token = secrets.token_hex(8)
    names = (f"asyncq.check.{token}.{number}" for number in itertools.count())
    here = frozenset(server.partitions)
    return next(name for name in names if server.topics.partition(name) in here)


async def _publish(layer: AsyncQueueChannelLayer, group: str, channel: str) -> None:
    await layer.group_send(group, {"type": _TYPE})
    await layer.receive(channel)


async def _job(layer: AsyncQueueChannelLayer, channel: str) -> None:
    await layer.send(channel, {"type": _TYPE})
    await layer.receive(channel)
    await layer.close_channel(channel)


async def _timed(
    layer: AsyncQueueChannelLayer, server: Server, subject: str, trip: Awaitable[None]
) -> Finding:
    seconds = 2 * layer.options.send_timeout
    began = monotonic()
    try:
        async with asyncio.timeout(seconds):
            await trip
    except (ChannelLayerError, TimeoutError) as exc:
        words = str(exc) or f"not done within {seconds:g} s"
        found = server.remedies.diagnose(words)
        remedy = found.remedy or "Look into the log of this command and of the server"
        return Finding(server.address, subject, State.FAULT, found.words, remedy)
    return Finding(server.address, subject, State.OK, f"{1000 * (monotonic() - began):.1f} ms")
