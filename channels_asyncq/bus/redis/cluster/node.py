"""One primary of a cluster, as a session uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from hiredis import ReplyError

from ....exceptions import ChannelLayerError, LayerUnavailable
from ....settings.hosts import Host
from ...resp.outages import Outage
from ...resp.protocol import WireProtocol
from ...resp.replies import InFlight, NoAnswer, NotSent
from ..leasing import Command
from ..node import Node
from ..partition import Partition, PartitionReading
from ..redirects import Redirected
from ..refusals import is_script_missing
from .checkpoint import ClusterCheckpoint
from .departures import Witnesses, lineage_of
from .logs import ClusterLogScripts
from .replication import Replication
from .slot_map import Address, SlotMap, not_a_cluster

if TYPE_CHECKING:
    from ..shared import Shared
    from .router import ClusterRouter


# Seconds between two checks of a node while one of its partitions moves.
_PAUSE = 0.05

# Seconds for which answers of a silent node are read at a time.
_MOMENT = 0.01

# Seconds to wait for a node's words on its history; fewer for one that did not answer lately.
_TIMEOUT = 3.0
_BRIEF = 0.5


class ClusterNode(Node):
    """
    A `Node` whose partitions come and go with their slots.

    The identity of its server is that of the history it has (`master_replid` of INFO replication): a primary
    keeps it until it is a replica, or is started again.
    """

    identity_section = "replication"

    def __init__(self, shared: Shared, router: ClusterRouter, at: Host, number: int) -> None:
        self.router = router
        #: Its host and port.
        self.place: Address = (at.arguments["host"], at.arguments["port"])
        # In the slot of which the fences are.
        self._fence_partition = -1
        #: The run_id of its server, which a restart changes; empty if it is not known.
        self.process = b""
        # The connection of which no answers are read.
        self._held_wire: WireProtocol | None = None
        super().__init__(shared, 0, number, at=at, lease=router.lease)

    checkpoint: ClusterCheckpoint

    def _outage(self, name: str) -> Outage:
        # Of this node alone: the one that was a replica a moment ago may be the next primary.
        return Outage(self.faults)

    def _make_checkpoint(self) -> ClusterCheckpoint:
        return ClusterCheckpoint(self._shared, self, self._watch)

    def _make_log_scripts(self) -> ClusterLogScripts:
        self.log_scripts = ClusterLogScripts(self._shared, self)
        return self.log_scripts

    # As the owner of the connection for commands

    async def set_up(self, wire: WireProtocol) -> None:
        try:
            reply = await wire.call(b"CLUSTER", b"SLOTS")
        except ReplyError as exc:
            if problem := not_a_cluster(self.address, exc):
                raise LayerUnavailable(self.address, problem) from exc
            raise
        self.router.learn(SlotMap.from_reply(reply, self.place, self.router.remap), self.place)
        is_leased = self.keeps_lease
        try:
            await super().set_up(wire)
        except ReplyError as exc:
            self.router.redirects_for(0).take(exc, self)  # the lease is kept with partition 0
            raise
        except ImproperlyConfigured as exc:
            self.router.lease.note_refused(exc)
            raise
        self.process = self.run_id.removeprefix(b"run_id:")
        self.run_id = self.identity_in(await _done(wire.call(b"INFO", b"replication")))
        if is_leased:
            self.router.lease.note_held()
        else:
            await self._wait_for_lease(wire)

    async def _wait_for_lease(self, wire: WireProtocol) -> None:
        """Return when the session has its lease. Ask for it if partition 0 has come here meanwhile."""
        lease = self.router.lease
        while True:
            if self.keeps_lease:
                await lease.hold(wire.call)
            if lease.is_held:
                return
            home = self.router.partitions[0].home
            self.commands.explain(f"it waits for the lease of this session, which is kept at {home.address}")
            await lease.news()

    @property
    def keeps_lease(self) -> bool:
        """Whether the lease of the session is kept here."""
        return 0 in self.partitions

    def _ask_for_lease(self, wire: WireProtocol) -> list[asyncio.Future[Any]]:
        return super()._ask_for_lease(wire) if self.keeps_lease else []

    async def _give_lease_back(self) -> None:
        """The router does it, for all nodes."""

    def is_at(self, server: bytes) -> bool:
        # The connections may be of different times; both are to the primary at this address.
        return True

    def identity_in(self, info: asyncio.Future[bytes]) -> bytes:
        if info.exception() is not None:
            return b""
        replication = Replication.of(info.result())
        if not replication.is_primary:
            raise LayerUnavailable(self.address, "it is a replica; only primaries are used")
        return replication.history

    # While it does not answer

    def on_silent(self) -> None:
        """Ask other nodes: if it is frozen, a replica takes its place."""
        self.router.on_node_silent(self)

    def hold_answers(self) -> None:
        """Read no answers: after a failover, a node that wakes up answers a little more, and that is lost."""
        if self.commands.wire is not None:
            self._held_wire = self.commands.wire
            self._held_wire.pause_reading()

    def take_answers(self) -> None:
        """Read what it has answered by now, as another node says that it is the primary still."""
        wire = self._held_wire
        if wire is not None and not wire.is_lost:
            wire.resume_reading()
            self._shared.loop.call_later(_MOMENT, self._look_for_answers, wire, wire.replies)

    def _look_for_answers(self, wire: WireProtocol, before: int) -> None:
        if wire is not self._held_wire or wire.is_lost:
            return
        if wire.replies > before or not wire.pending:
            self._held_wire = None
            self.router.on_node_answering(self)
        else:
            wire.pause_reading()

    def on_lost(self, in_flight: list[InFlight]) -> None:
        super().on_lost(in_flight)
        self.router.on_node_lost(self)

    def on_links_changed(self) -> None:
        if self.is_up:
            self.router.on_node_up(self)
        elif self.pushes.wire is None or self.commands.wire is None:
            self.router.on_node_lost(self)
        super().on_links_changed()

    def wake(self) -> None:
        self.router.wake()  # the node may have died while the session rested
        super().wake()

    # Topics

    def own_topics(self) -> tuple[bytes, bytes]:
        """The fences are in the slot of a partition that is read here, the layouts in that of 0."""
        topics = self._shared.topics
        read = {number for number, each in self.partitions.items() if self.reads(each) or not each.is_away}
        if not read:
            return b"", b""
        if self._fence_partition not in read:
            self._fence_partition = min(read)
        return topics.fence_of(self._fence_partition, self.number), topics.layouts(0) if 0 in read else b""

    def partition_of_own(self, topic: bytes) -> Partition | None:
        """Return the partition of a topic, which may have left already."""
        root = self._shared.topics.root
        return next((each for each in self.router.partitions if topic.startswith(root(each.number))), None)

    def reads(self, partition: Partition) -> bool:
        """Tell whether a topic of the partition is wanted: another one has no position."""
        return len(partition.subscriptions) > 0

    def on_wanted(self, partition: Partition) -> None:
        wire = self.pushes.wire
        if wire is not None and not wire.is_lost and not self.router.is_in_doubt(partition.number):
            self.subscriber.take_in(partition)

    def leave_unwanted(self) -> None:
        """Stop reading partitions without topics: their ends need not be asked for."""
        for partition in self.partitions.values():
            if not partition.is_away and not self.reads(partition):
                partition.leave_connection()
                self.on_unread(partition)

    def on_unread(self, partition: Partition) -> None:
        """
        Forget its position: those that want a topic of it later have missed nothing that is behind it.

        Not if it has left its last home as planned. Then this session can tell that the epoch of its log goes on.
        """
        if not partition.departures:
            partition.position = None
            partition.read_until = 0

    def on_taken_back(self, partition: Partition) -> None:
        self.router.left(partition)

    def read_again(self, partition: Partition) -> None:
        partition.leave_connection()
        self.router.doubt([partition.number])

    # Health

    @property
    def is_missing(self) -> bool:
        """Whether a connection was lost, or cannot be made. A node that is new has `send_timeout` to come up."""
        return any(
            each.wire is None and (each.was_up or each.is_overdue) for each in (self.commands, self.pushes)
        )

    def on_overdue(self, error: Exception) -> None:
        super().on_overdue(error)
        self._shared.observer.on_links_changed()

    async def _check(self) -> None:
        while True:
            try:
                return await super()._check()
            except Redirected:
                await asyncio.sleep(_PAUSE)  # a partition moves: either away from here, or it is asked again

    async def _write(self) -> None:
        await self.checkpoint.write()

    # Catching up

    async def _replication(self) -> Replication | None:
        """Return what the node says of its history now; None if the user may not ask."""
        while True:
            wire = await self.commands.up()
            try:
                return Replication.of(await wire.call(b"INFO", b"replication"))
            except (NotSent, NoAnswer):
                continue
            except ReplyError:
                return None

    async def testimony(self) -> Replication | None:
        """
        Return what the node says of its history now that partitions have left it, with its process.

        It is asked over a connection of the question's own where its connection is lost. One that did not answer
        lately is not waited for: it may be frozen.
        """
        try:
            async with asyncio.timeout(_BRIEF if self.router.is_silent(self) else _TIMEOUT):
                return Replication.of(
                    await self.router.ask(self.place, b"INFO", b"server", b"replication", b"errorstats")
                )
        except (ChannelLayerError, OSError, TimeoutError, ReplyError):
            return None

    async def changed_among(self, partitions: Collection[Partition]) -> list[Partition]:
        """
        Return those whose messages may be missing from the logs here: after a failover that was not planned.

        Raises:
            LayerUnavailable: the node is a replica now.
        """
        readings = [PartitionReading(each, each.epoch) for each in partitions]
        present = await self._replication()
        if present is not None and not present.is_primary:
            for reading in readings:
                if reading.is_current:  # its next home has said nothing
                    self.router.left(reading.partition)
            raise LayerUnavailable(self.address, "it is a replica; only primaries are used")
        history = self.subscriber.run_id = present.history if present is not None else b""
        changed = []
        witnesses = Witnesses()
        for reading in readings:
            partition = reading.partition
            if not reading.is_current or (history and partition.server == history):
                continue
            departures = partition.departures
            is_complete = bool(history and departures) and all(
                [await each.is_complete(witnesses) for each in departures]
            )
            if not reading.is_current:
                continue  # it has moved on meanwhile, and its next home decides
            if is_complete:
                partition.note_successor(lineage_of(departures, history))
            else:
                partition.lineage = None
                changed.append(partition)
        self.log_scripts.adopt([each for each in partitions if each.lineage is not None])
        return changed

    async def read_log(
        self, partition: Partition, start: bytes, count: int, topics: Collection[bytes] = ()
    ) -> Any:
        """
        Return a page of a log, as `Node` does. This node alone is asked: what it has pushed is in its log.

        Raises:
            Redirected: the partition is not here. It is looked for.
        """
        key = self._shared.topics.log(partition.number)
        command: Command = (b"EVALSHA", self._shared.scripts.read_log.sha, 1, key, start, count, *topics)
        loads = 0
        while True:
            wire = await self.commands.up()
            try:
                return await wire.call(*command)
            except (NotSent, NoAnswer):
                continue
            except ReplyError as exc:
                self.raise_redirect([partition], exc)
                if not self.refusals.may_go_on(wire, exc, loads):
                    raise self.refusals.error_for(exc) from exc
                loads += is_script_missing(exc)

    @property
    def refusals_by_fence(self) -> bytes | None:
        """How often the server had refused to write by the last fence, in digits; None before the first."""
        return self._watch.refusals

    def raise_redirect(self, partitions: Iterable[Partition], error: ReplyError) -> None:
        """
        Act on an error of a command about these partitions that is a redirect.

        Raises:
            Redirected: it is one. The partitions are read where they are found, or here after a while.
        """
        for partition in partitions:
            if not partition.sender.is_redirected(error, self):
                return
            if partition.home is self:
                self.read_again(partition)
        raise Redirected(str(error)) from error


async def _done(future: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """Return a future when it is done, with a result or an error."""
    await asyncio.wait([future])
    return future
