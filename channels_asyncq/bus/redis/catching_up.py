"""Partitions of a node that catch up: after a reconnect, or when they were moved there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection
from typing import TYPE_CHECKING

from ...clock import monotonic
from ..resp.protocol import WireProtocol
from .partition import Partition, PartitionReading, Reading
from .recovery import Backlog
from .shared import Shared

if TYPE_CHECKING:
    from .node import Node
    from .subscriber import Subscriber

# A generator of our own: the state of the global one belongs to the application.
_jitter = random.Random()
# Seconds at most before logs of more than one page are read.
LONGEST_WAIT = 0.25


class CatchingUp:
    """
    Has logs read, and pauses the connection for pushes where that must be.

    Most logs have one page. They are read in one pause, and their partitions are live. A log with more is read
    while the connection is not paused: its own pushes are discarded, and those of other partitions arrive. The
    connection is paused for its last page.
    """

    def __init__(self, shared: Shared, node: Node, subscriber: Subscriber) -> None:
        self._shared = shared
        self._node = node
        self._subscriber = subscriber

    async def catch_up(self, wire: WireProtocol, readings: list[PartitionReading]) -> None:
        """
        Read the logs of these partitions. Then they are live.

        A page of each is read while the connection is paused. Partitions with longer logs are read afterwards.
        """
        node = self._node
        readings = [each for each in readings if each.is_current and each.partition.position is not None]
        changed = await node.changed_among([each.partition for each in readings])
        readings = [each for each in readings if each.is_current]
        partitions = [each.partition for each in readings]
        changed = [each for each in changed if each in partitions]
        node.checkpoint.has_changed = node.checkpoint.has_changed or bool(changed)
        with self._subscriber.paused(wire):
            for partition in partitions:
                partition.enter(Reading.CATCHING_UP)
            gaps = [each for each in partitions if node.lease.gap >= each.fenced_at]
            backlogs = await node.log.catch_up(partitions, changed, gaps)
            await self._report_refusals([each for each in partitions if each not in changed])
            behind = {each.partition for each in backlogs}
            for reading in readings:
                if reading.is_current and reading.partition not in behind:
                    reading.partition.enter(Reading.LIVE)
        if backlogs:
            await self._read_on(wire, backlogs)

    async def _read_on(self, wire: WireProtocol, backlogs: list[Backlog]) -> None:
        """
        Read long logs to their ends, one after the other. Only the end of each needs a pause.

        All together get the seconds of `catch_up_seconds`: each has its share of the rest, and leaves to the next
        ones what it does not need.
        """
        log, recovery = self._node.log, self._shared.options.recovery
        assert recovery is not None
        # Processes that have lost their connections at the same moment do not read all at once.
        await asyncio.sleep(_jitter.uniform(0, LONGEST_WAIT))
        end = monotonic() + recovery.catch_up_seconds
        for done, backlog in enumerate(backlogs):
            backlog.limit((end - monotonic()) / (len(backlogs) - done), recovery.catch_up_messages)
            await log.read_on(backlog)
            if wire.is_lost:
                raise ConnectionResetError("the connection was lost while the logs were read")
            with self._subscriber.paused(wire):
                await log.finish(backlog)
                await self._report_refusals([backlog.partition])
                if backlog.is_current:
                    backlog.partition.enter(Reading.LIVE)

    async def _report_refusals(self, partitions: Collection[Partition]) -> None:
        """Report the loss of messages that the server refused to log, in partitions whose logs were read."""
        if partitions and await self._node.has_refused():
            numbers = {each.number for each in partitions}
            self._shared.report_loss("not_logged", self._node.logged_topics(numbers))
