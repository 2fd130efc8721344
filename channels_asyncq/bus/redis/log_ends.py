"""The ends of the logs at a node, and the scripts that know the epochs of logs."""

from __future__ import annotations

import asyncio
import contextvars
import secrets
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hiredis import ReplyError

from ...clock import monotonic
from ...exceptions import ChannelLayerError, LayerUnavailable
from ...messages.positions import Place
from ..resp.replies import copy_error
from .partition import Partition
from .refusals import is_script_missing
from .sequences import format_position, parse_position
from .shared import Shared

if TYPE_CHECKING:
    from .node import Node

# Seconds for which an epoch is kept after its last use; a log keeps less.
EPOCH_LIVES = 86_400


class LogEnd(NamedTuple):
    """The end of a log: its epoch, the id of its last entry, and the identity of the server that has it."""

    epoch: str
    position: int
    server: bytes


class LogPage(NamedTuple):
    """
    Entries of a log, as the server returns them.

    With `is_last` there were no more when the page was read.
    """

    epoch: str
    last: int
    entries: list[Any]
    is_last: bool


class LogScripts:
    """
    Asks a server for the ends and entries of logs, and checks their epochs: one command for all logs.

    A subclass for the nodes of a cluster is `bus.redis.cluster.logs.ClusterLogScripts`. There a partition may be
    at another node by the time that it is asked for, and is left out of the answer.
    """

    def __init__(self, shared: Shared, node: Node) -> None:
        self._shared = shared
        self._topics = shared.topics
        self._node = node

    async def answerable(self, partitions: Collection[Partition]) -> Collection[Partition]:
        """
        Return those of these partitions that can be asked for here, when there is a connection.

        Raises:
            LayerUnavailable: the server cannot be reached.
        """
        await self._node.commands.up()
        return partitions

    async def ends(self, partitions: Collection[Partition]) -> dict[int, LogEnd]:
        """
        Return the ends of the logs of these partitions.

        Raises:
            ConnectionError: the connection was lost before the answer.
        """
        keys = self._keys(partitions)
        rows = await self._call(b"EVALSHA", self._shared.scripts.log_ends.sha, len(keys), *keys)
        server = self._node.run_id
        return {
            partition.number: LogEnd(epoch.decode(), parse_position(last), server)
            for partition, (epoch, last) in zip(partitions, rows, strict=True)
        }

    async def pages(
        self, starts: Mapping[Partition, int], count: int, marker: bytes
    ) -> dict[Partition, LogPage]:
        """
        Return a page of each log from an id on, inclusive. The pages are the last ones of all logs, or of none.

        With the last ones, the marker is published on the topic of the fences.
        """
        keys = self._keys(starts)
        is_end, *rows = await self._call(
            b"EVALSHA",
            self._shared.scripts.read_logs.sha,
            len(keys),
            *keys,
            count,
            self._node.subscriber.topics.fence_topic,
            marker,
            *map(format_position, starts.values()),
        )
        return {
            partition: LogPage(epoch.decode(), parse_position(last), entries, bool(is_end))
            for partition, (epoch, last, entries) in zip(starts, rows, strict=True)
        }

    async def publish(self, marker: bytes) -> None:
        """Publish the marker of a read, if that was not done with the last pages."""

    def _keys(self, partitions: Collection[Partition]) -> list[bytes]:
        """Return the keys of the logs of these partitions, each followed by that of its epoch."""
        topics = self._topics
        numbers = [partition.number for partition in partitions]
        return [key for number in numbers for key in (topics.log(number), topics.epoch(number))]

    async def _call(self, *command: bytes | str | int) -> Any:
        """
        Return the reply to a script about epochs. It is not sent again to another server, whose run_id differs.

        Raises:
            ConnectionError: the connection was lost before the answer.
        """
        node = self._node
        loads = 0
        wire = await node.commands.up()
        while True:
            head, tail = command[:3], command[3:]
            keys = int(head[2])
            epoch_arguments = (node.run_id, secrets.token_hex(4), EPOCH_LIVES)
            try:
                return await wire.call(*head, *tail[:keys], *epoch_arguments, *tail[keys:])
            except ReplyError as exc:
                if not node.refusals.may_go_on(wire, exc, loads):
                    raise node.refusals.error_for(exc) from exc
                loads += is_script_missing(exc)


class EndsQuestion:
    """The partitions whose ends are asked for in one turn of the event loop, and the answer for all callers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.partitions: dict[int, Partition] = {}
        self.answer: asyncio.Future[dict[int, Place]] = loop.create_future()


class LogEnds:
    """The questions for the ends of logs at one node: one for all that are asked for in a turn of the loop."""

    def __init__(self, shared: Shared, node: Node, scripts: LogScripts) -> None:
        self._shared = shared
        self._node = node
        self._scripts = scripts
        # The question that is asked in the next turn.
        self._question: EndsQuestion | None = None
        self._asking: set[asyncio.Task[None]] = set()

    async def of(self, partitions: Collection[Partition]) -> dict[int, Place]:
        """
        Return the ends of the logs of these partitions, except those that are not at this node any more.
        Cancelling is safe.

        Raises:
            LayerUnavailable: the server cannot be reached, or connections are lost all the time.
        """
        ends_at = monotonic() + 2 * self._shared.options.send_timeout
        while True:
            partitions = await self._scripts.answerable(partitions)
            if not partitions:
                return {}
            question = self._question or self._new_question()
            question.partitions.update((partition.number, partition) for partition in partitions)
            await asyncio.wait([question.answer])
            if question.answer.cancelled():
                raise LayerUnavailable(self._node.address, "the session was closed")
            error = question.answer.exception()
            if error is None:
                ends = question.answer.result()
                return {each.number: ends[each.number] for each in partitions if each.number in ends}
            if isinstance(error, ChannelLayerError) or not isinstance(error, ConnectionError):
                assert isinstance(error, Exception)
                raise copy_error(error) from error
            if monotonic() > ends_at:
                raise LayerUnavailable(self._node.address, "connections are lost all the time") from error

    def ask_for_epochs(self) -> None:
        """Ask for the epochs that were forgotten, so that the places of this session go on."""
        partitions = [
            partition
            for partition in self._node.partitions.values()
            if partition.replay.epoch.is_used and not partition.replay.epoch.known and partition.is_live
        ]
        if partitions:
            question = self._question or self._new_question()
            question.partitions.update((partition.number, partition) for partition in partitions)

    def _new_question(self) -> EndsQuestion:
        question = self._question = EndsQuestion(self._shared.loop)
        task = self._shared.loop.create_task(self._ask(question), context=contextvars.Context())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return question

    async def _ask(self, question: EndsQuestion) -> None:
        """Ask for the ends of all partitions that were added until the task had its first turn."""
        self._question = None
        try:
            question.answer.set_result(await self._ends(list(question.partitions.values())))
        except Exception as exc:
            question.answer.set_exception(exc)
            question.answer.exception()  # mark it as retrieved: all callers may have been cancelled
        finally:
            question.answer.cancel()  # if this task was cancelled

    async def _ends(self, partitions: list[Partition]) -> dict[int, Place]:
        ends = await self._scripts.ends(partitions)
        places = {}
        for partition in partitions:
            if (end := ends.get(partition.number)) is None:
                continue
            if partition.is_live and partition.server == end.server:
                # Otherwise the pushes that arrive may be of another server, or an earlier one.
                partition.replay.epoch.note(end.epoch, end.position)
            places[partition.number] = Place(end.epoch, end.position)
        return places

    def close(self) -> None:
        """Cancel the questions."""
        for task in self._asking:
            task.cancel()
        if self._question is not None:
            self._question.answer.cancel()  # its task may never have run
