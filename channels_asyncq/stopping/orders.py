"""How the command reaches the processes, over the channel layer, and what they answer."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ..clock import monotonic
from ..exceptions import ChannelClosed, ChannelLayerError, DeliveryUnknown, LayerUnavailable
from ..layer import AsyncQueueChannelLayer
from ..messages.external import ExternalMessage
from ..session.open_channel import OpenChannel
from .connections import OpenConnections, Phase

#: The group of all processes that can be told to drain.
GROUP = "asyncq.processes"
ORDER = "asyncq.drain"
REPORT = "asyncq.draining"
#: Seconds from one question of the command to the next.
EVERY = 0.5
#: Seconds until a process joins its group again that could not.
RETRY = 5.0
#: Seconds until a process renews its membership, at most: it may expire, or be dropped by a flush.
RENEW = 60.0
#: Seconds of silence after which a process is taken for ended.
SILENT = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """What one event loop of a process answered: how many connections are open, and whether it has drained."""

    process: str
    channel: str
    open: int
    has_drained: bool
    seconds: float


def is_meant(patterns: Sequence[str], host: str, pids: Sequence[int]) -> bool:
    """Tell whether one of the patterns is for a process: a pattern is for `host:pid`, with `*` for any text."""
    names = [f"{host}:{pid}" for pid in pids]
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def with_host(pattern: str) -> str:
    """Return the pattern for `host:pid` that a user means: a number alone is a process of this host."""
    return f"{socket.gethostname()}:{pattern}" if ":" not in pattern and pattern.isdigit() else pattern


class OrderListener:
    """
    Hears the command on one event loop, and begins the drain.

    state   | `_channel` | `_joining`, `_timer`        | what ends the state
    --------|------------|-----------------------------|-------------------------------------------------
    joining | None       | a task; then the timer      | the server of the layer answers: hearing
    hearing | is open    | the timer; now and then a   | the channel closes with the layer: deaf
            |            | task renews the membership  |
    deaf    | is closed  | the timer is cancelled      |
    """

    def __init__(
        self, layer: AsyncQueueChannelLayer, open_connections: OpenConnections, seconds: float
    ) -> None:
        self._layer = layer
        self._open_connections = open_connections
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._channel: OpenChannel | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._join()

    def _join(self) -> None:
        # The context of a request is not for this task.
        self._joining = self._loop.create_task(self._keep_joined(), context=contextvars.Context())

    async def _keep_joined(self) -> None:
        """Join the group, or renew the membership. Where that fails, it is tried again."""
        delay = min(RENEW, self._layer.group_expiry / 3)
        try:
            if self._channel is None:
                self._channel = await self._layer.open_channel()
                self._channel.read_by(type(self))
                self._listen(self._channel)
            await self._layer.group_add(GROUP, self._channel.name)
        except ChannelClosed:
            return
        except (ChannelLayerError, ImproperlyConfigured):
            # Another site may have the namespace, and leave it.
            delay = RETRY
        self._timer = self._loop.call_later(delay, self._join)

    def _listen(self, channel: OpenChannel) -> None:
        """Take what waits, and have what comes next wake this again. No task: none is left when the loop ends."""
        try:
            while (message := channel.take()) is not None:
                if message.get("type") == ORDER and not isinstance(message, ExternalMessage):
                    self._obey(message, channel)
        except ChannelClosed:
            if self._timer is not None:
                self._timer.cancel()
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        waiter.add_done_callback(self._on_wake)
        channel.wake(waiter)

    def _on_wake(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.cancelled() and self._channel is not None:
            self._listen(self._channel)

    def _obey(self, order: dict[str, Any], channel: OpenChannel) -> None:
        if not is_meant(order["processes"], socket.gethostname(), (os.getpid(), os.getppid())):
            return
        seconds = self._seconds if order["seconds"] is None else order["seconds"]
        report = {
            "type": REPORT,
            "process": f"{socket.gethostname()}:{os.getpid()}",
            "channel": channel.name,
            "open": len(self._open_connections),
            "has_drained": self._open_connections.phase is Phase.ENDED,
            "seconds": seconds,
        }
        self._open_connections.begin(seconds)
        task = self._loop.create_task(self._answer(order["answer"], report))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, to: str, report: dict[str, Any]) -> None:
        try:
            await self._layer.send(to, report)
        except (ChannelClosed, LayerUnavailable, DeliveryUnknown):
            pass  # it is asked again


class Order:
    """
    The command's side: tells processes to drain, and asks them how far they are.

    An order is repeated until all have drained. A process that has begun does not begin again, and answers.
    """

    def __init__(
        self,
        layer: AsyncQueueChannelLayer,
        channel: OpenChannel,
        patterns: Sequence[str],
        seconds: float | None,
    ) -> None:
        self._layer = layer
        self._channel = channel
        self._order = {
            "type": ORDER,
            "processes": list(patterns),
            "seconds": seconds,
            "answer": channel.name,
        }
        #: The last report of each event loop that has answered, by its channel.
        self.reports: dict[str, Report] = {}
        self._heard_at: dict[str, float] = {}

    async def ask(self) -> list[Report]:
        """
        Give the order; return the first reports of those that had not answered before.

        Raises:
            LayerUnavailable, DeliveryUnknown: the server of the layer cannot be reached.
        """
        await self._layer.group_send(GROUP, self._order)
        first = []
        try:
            async with asyncio.timeout(EVERY):
                while True:
                    await self._channel.wait()
                    while (message := self._channel.take()) is not None:
                        if message.pop("type") == REPORT and self._note(report := Report(**message)):
                            first.append(report)
        except TimeoutError:
            pass
        return first

    def _note(self, report: Report) -> bool:
        """Keep a report; return whether it is the first one of its event loop."""
        is_first = report.channel not in self.reports
        self.reports[report.channel] = report
        self._heard_at[report.channel] = monotonic()
        return is_first

    def late(self) -> list[Report]:
        """Return the last reports of those that have not drained. A process that is silent has ended."""
        now = monotonic()
        return [
            report
            for channel, report in self.reports.items()
            if not report.has_drained and now - self._heard_at[channel] < SILENT
        ]

    def processes(self) -> set[str]:
        """Return the names of the processes that have answered."""
        return {report.process for report in self.reports.values()}
