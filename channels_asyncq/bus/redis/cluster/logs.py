"""The ends and entries of the logs at a node of a cluster: one command for each log, as each is in its slot."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from hiredis import ReplyError

from ....clock import monotonic
from ...resp.protocol import WireProtocol
from ...resp.replies import is_redirect
from ..log_ends import EPOCH_LIVES, LogEnd, LogPage, LogScripts
from ..partition import Partition
from ..redirects import Redirected
from ..refusals import is_script_missing
from ..scripts import Script
from ..sequences import format_position, parse_position

if TYPE_CHECKING:
    from ..shared import Shared
    from .node import ClusterNode

# Seconds within which a session that was there tells, by the record of an epoch, that a move has lost nothing.
_PATIENCE = 2.5
# In place of the number of entries: only bring the record of the epoch up to date.
_ADOPT = -1


class ClusterLogScripts(LogScripts):
    """
    Asks for each log alone, all in one write.

    A partition that the node refuses is left out of the answer, and so is one whose epoch is unsure: its record
    names another server, and this session does not know whether the messages of that are here. One that was there
    brings the record up to date. If none has done so for a while, another epoch begins.
    """

    _node: ClusterNode

    def __init__(self, shared: Shared, node: ClusterNode) -> None:
        super().__init__(shared, node)
        self._patience = min(_PATIENCE, shared.options.send_timeout)
        # By partition: the server that the record of its epoch names, and since when it is known here.
        self._unsure: dict[int, tuple[bytes, float]] = {}

    async def answerable(self, partitions: Collection[Partition]) -> Collection[Partition]:
        for partition in partitions:
            # Not the node: the partition may leave it while it is down.
            await partition.sender.usable_wire()
        return [partition for partition in partitions if partition.home is self._node]

    async def ends(self, partitions: Collection[Partition]) -> dict[int, LogEnd]:
        rows = await self._ask_all({partition: (0, b"") for partition in partitions})
        return {
            partition.number: LogEnd(epoch.decode(), parse_position(last), server)
            for partition, (epoch, last, server, _) in rows.items()
        }

    async def pages(
        self, starts: Mapping[Partition, int], count: int, marker: bytes
    ) -> dict[Partition, LogPage]:
        """Return a page of each log from an id on, inclusive. Each may be the last one of its log."""
        for partition in starts:
            # Before the marker comes: other messages may be published between a page and the marker.
            partition.replay.begin_page()
        rows = await self._ask_all({each: (count, format_position(start)) for each, start in starts.items()})
        return {
            partition: LogPage(epoch.decode(), parse_position(last), entries, len(entries) < count)
            for partition, (epoch, last, _, entries) in rows.items()
        }

    async def publish(self, marker: bytes) -> None:
        """
        Publish the marker of a read: everything that was found has arrived before it.

        Raises:
            ConnectionError: it does not arrive.
        """
        topic = self._node.subscriber.topics.fence_topic
        try:
            receivers = await self._wire().call(b"SPUBLISH", topic, marker)
        except ReplyError as exc:
            if not is_redirect(exc):
                raise self._node.refusals.error_for(exc) from exc
            if (owner := self._node.partition_of_own(topic)) is not None:
                owner.sender.is_redirected(exc)
            raise Redirected(str(exc)) from exc
        if not receivers:
            raise ConnectionResetError("the topic of the fences is not subscribed to now")

    def adopt(self, partitions: Collection[Partition]) -> None:
        """Bring the records of the epochs up to date, as the messages of the servers of before are here."""
        wire = self._node.commands.wire
        if wire is None or wire.is_lost:
            return
        for partition in partitions:
            wire.call(*self._command(partition, _ADOPT, b"")).add_done_callback(_retrieve)

    # One command for each partition

    async def _ask_all(self, questions: Mapping[Partition, tuple[int, bytes]]) -> dict[Partition, list[Any]]:
        rows: dict[Partition, list[Any]] = {}
        loads = 0
        wire = self._wire()
        left = dict(questions)
        while left:
            asked = {each: wire.call(*self._command(each, *words)) for each, words in left.items()}
            await asyncio.wait(asked.values())
            left = {}
            is_missing = False
            for partition, reply in asked.items():
                error = reply.exception()
                if error is None:
                    if self._is_sure(partition, reply.result()):
                        rows[partition] = reply.result()
                elif not isinstance(error, ReplyError):
                    raise error
                elif not self._is_redirected(partition, error):
                    if not self._node.refusals.may_go_on(wire, error, loads):
                        raise self._node.refusals.error_for(error) from error
                    is_missing = is_missing or is_script_missing(error)
                    left[partition] = questions[partition]
            loads += is_missing
        return rows

    def _wire(self) -> WireProtocol:
        wire = self._node.commands.wire
        if wire is None or wire.is_lost:
            raise ConnectionResetError("the connection for commands is down")
        return wire

    def _command(self, partition: Partition, count: int, start: bytes) -> list[bytes | str | int]:
        script = self._shared.scripts.log_part
        assert isinstance(script, Script)
        topics, number, lineage = self._topics, partition.number, partition.lineage
        keys = topics.log(number), topics.epoch(number)
        history: tuple[bytes, ...] = ()
        if lineage is not None and lineage.server == partition.server:
            history = (
                lineage.server,
                lineage.refusals,
                *(word for former in lineage.formers for word in former),
            )
        is_final = b"1" if self._is_patience_over(number) else b"0"
        epochs = secrets.token_hex(4), EPOCH_LIVES, is_final
        return [b"EVALSHA", script.sha, len(keys), *keys, *epochs, count, start, *history]

    def _is_redirected(self, partition: Partition, error: ReplyError) -> bool:
        if partition.home is not self._node:
            return True  # it has moved meanwhile, and is asked for there
        return partition.sender.is_redirected(error)

    # Epochs whose record names another server

    def _is_patience_over(self, number: int) -> bool:
        _, since = self._unsure.get(number, (b"", math.inf))
        return monotonic() - since > self._patience

    def _is_sure(self, partition: Partition, row: list[Any]) -> bool:
        epoch, recorded, *_ = row
        number = partition.number
        if epoch:
            self._unsure.pop(number, None)
            return True
        if self._unsure.get(number, (b"", 0.0))[0] != recorded:
            self._unsure[number] = recorded, monotonic()
        return False


def _retrieve(reply: asyncio.Future[Any]) -> None:
    """Mark an error as retrieved: the next question about the log brings the record up to date."""
    if not reply.cancelled():
        reply.exception()
